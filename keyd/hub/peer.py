"""One client connection, as the hub sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyd.hub.limits import MAX_HELD
from keyd.protocol.connection import ServerConnection
from keyd.tls import MAX_SEND

if TYPE_CHECKING:
    import socket

    from keyd.hub.door import Entrance
    from keyd.terminals import KnownTerminal, Session
    from keyd.tls import TlsConnection, TlsServerContext


class Peer:
    """One client connection."""

    __slots__ = (
        "allowance",
        "arrived",
        "asked_at",
        "close_reason",
        "connection",
        "context",
        "entrance",
        "fd",
        "has_more",
        "has_said_goodbye",
        "has_spoken",
        "held",
        "held_bytes",
        "in_flight",
        "is_admitted",
        "is_answered",
        "is_at_eof",
        "is_half_open",
        "is_in_turn",
        "is_lingering",
        "is_open",
        "is_registered_for",
        "late",
        "opened_at",
        "out",
        "pumped_as",
        "said",
        "session",
        "sock",
        "tls",
    )

    def __init__(self, sock: socket.socket, session: Session) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.session = session
        self.connection = ServerConnection()
        # What is to be written, as it goes out.
        self.out = bytearray()
        # The encrypted line, where it came in, the context that began it, and what is to leave on it with the next
        # flush, as plaintext.
        self.tls: TlsConnection | None = None
        self.entrance: Entrance | None = None
        self.context: TlsServerContext | None = None
        self.said = bytearray()
        # Until its handshake is done. It is answered once keyd's flight has left, and in turn while it has sent
        # something that keyd has not looked at.
        self.is_half_open = False
        self.is_answered = False
        self.is_in_turn = False
        self.has_said_goodbye = False
        # Answers that wait for the disk: in how many portions, and how many bytes. They leave before `out` grows.
        self.held = 0
        self.held_bytes = 0
        self.in_flight = 0
        # Of those, how many wait for the pool.
        self.late = 0
        self.opened_at = 0.0
        self.arrived = 0.0
        # When it last said something whole: a trickle of bytes is silence.
        self.asked_at = 0.0
        self.is_open = True
        # Whether the pump reads it, as whose, and how many answers it may have there.
        self.is_admitted = False
        self.pumped_as: KnownTerminal | None = None
        self.allowance = 0
        self.has_spoken = False
        # Whole requests may still be buffered. It is not read before they are taken, which bounds the buffer.
        self.has_more = False
        self.is_at_eof = False
        # Set once keyd is to close the line: after the output has left, and for this reason.
        self.close_reason: str | None = None
        self.is_lingering = False
        self.is_registered_for = 0

    def say(self, answers: bytes | bytearray) -> None:
        """Let answers leave with the next flush."""
        if self.tls is None:
            self.out += answers
        else:
            self.said += answers

    def encrypt(self) -> None:
        """Make of all that was said what is to be written: once, since no byte may be encrypted twice."""
        said, self.said = self.said, bytearray()
        if self.tls is not None and not self.tls.is_broken and not self.has_said_goodbye:
            for at in range(0, len(said), MAX_SEND):
                self.out += self.tls.send(said[at : at + MAX_SEND])

    @property
    def is_full(self) -> bool:
        """Whether so much waits for the disk that it must not ask for more."""
        return self.held_bytes > MAX_HELD
