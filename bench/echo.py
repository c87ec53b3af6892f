"""A server that does nothing but echo, in C: `python -m bench.echo`. What is faster than it, is not measured."""

from __future__ import annotations

import json
import socket
import sys

from bench import loadgen


def main() -> None:
    """Say the address in a line on standard error, as keyd does, and echo until killed."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        host, port = listener.getsockname()
        sys.stderr.write(json.dumps({"event": "ready", "listen": [f"{host}:{port}"]}) + "\n")
        sys.stderr.flush()
        loadgen.echo(listener)


if __name__ == "__main__":
    main()
