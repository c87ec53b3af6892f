"""How a helper process of a suite says that it is ready, and where: as keyd's log does."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import trio


def say_ready(listener: trio.SocketListener) -> None:
    """Say the address in a line on standard error."""
    host, port = listener.socket.getsockname()
    sys.stderr.write(json.dumps({"event": "ready", "listen": [f"{host}:{port}"]}) + "\n")
    sys.stderr.flush()
