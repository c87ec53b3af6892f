"""The request and response of every command, by family. `keyd.protocol.commands` puts them in the table."""
