"""The wire protocol, without I/O: fields, messages, the command table, and connections as pure state."""
