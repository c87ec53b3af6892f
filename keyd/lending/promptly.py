"""Receiving from whoever sends a message in two pieces, without 40 ms between them."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import trio


async def receive_promptly(stream: trio.SocketStream, most_bytes: int) -> bytes:
    """Wait for bytes of a TCP stream as `receive_some` does, and have them acknowledged at once.

    Whoever writes a length by itself and the APDU after it, as the driver of vsmartcard does, has the second wait until
    the first is acknowledged (Nagle's algorithm), and Linux takes 40 ms for that while there is nothing to send.
    """
    # tcp(7): it does not last, so it is said each time. If the line is gone, reading says so.
    with suppress(OSError):
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
    return await stream.receive_some(most_bytes)
