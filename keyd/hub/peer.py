"""One client connection, as the hub sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyd.hub.limits import MAX_HELD
from keyd.protocol.connection import ServerConnection

if TYPE_CHECKING:
    import socket

    from keyd.terminals import Session, Terminal


class Peer:
    """One client connection."""

    __slots__ = (
        "allowance",
        "arrived",
        "asked_at",
        "close_reason",
        "connection",
        "fd",
        "has_more",
        "has_spoken",
        "held",
        "held_bytes",
        "in_flight",
        "is_admitted",
        "is_at_eof",
        "is_lingering",
        "is_open",
        "is_registered_for",
        "out",
        "pumped_as",
        "session",
        "sock",
    )

    def __init__(self, sock: socket.socket, session: Session) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.session = session
        self.connection = ServerConnection()
        self.out = bytearray()
        # Answers that wait for the disk: in how many portions, and how many bytes. They leave before `out` grows.
        self.held = 0
        self.held_bytes = 0
        self.in_flight = 0
        self.arrived = 0.0
        # When it last said something whole: a trickle of bytes is silence.
        self.asked_at = 0.0
        self.is_open = True
        # Whether the pump reads it, as whose, and how many answers it may have there.
        self.is_admitted = False
        self.pumped_as: Terminal | None = None
        self.allowance = 0
        self.has_spoken = False
        # Whole requests may still be buffered. It is not read before they are taken, which bounds the buffer.
        self.has_more = False
        self.is_at_eof = False
        # Set once keyd is to close the line: after the output has left, and for this reason.
        self.close_reason: str | None = None
        self.is_lingering = False
        self.is_registered_for = 0

    @property
    def is_full(self) -> bool:
        """Whether so much waits for the disk that it must not ask for more."""
        return self.held_bytes > MAX_HELD
