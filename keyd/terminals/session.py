"""What keyd knows of the other end of one connection."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyd.terminals.authentication import OpenChallenge
    from keyd.terminals.known import KnownTerminal, Proven
    from keyd.terminals.signatures import Attempt


class Line(NamedTuple):
    """Who is at the other end of an encrypted line, as its certificate says and a CA has signed."""

    common_name: str
    """The terminal's code: nobody else may use this line."""
    serial: int
    fingerprint: bytes
    """SHA-256 over the certificate, 32 bytes."""
    public_key: bytes
    """04‖x‖y, 65 bytes."""
    not_after: int
    """Unix seconds."""
    channel_binding: bytes
    """32 bytes that only the two ends of this line know."""


class Lent(Protocol):
    """Something that is lent to a terminal as long as it is there."""

    def abandon(self) -> None:
        """Have it given back, without waiting."""


class Session:
    """What keyd knows of the other end of one connection."""

    __slots__ = (
        *("_leave", "attempt", "challenge", "failures", "is_administration", "is_enrolment"),
        *("is_operator", "line", "must_close", "number", "numbered", "officer_challenge", "proven"),
        *("psams", "recorded_at", "source", "terminal", "terminal_number", "until"),
    )

    def __init__(
        self,
        number: int,
        *,
        is_operator: bool = False,
        is_administration: bool = False,
        is_enrolment: bool = False,
        source: str = "",
    ) -> None:
        self.number = number
        self.is_operator = is_operator
        # Whether it came in by the administration's socket.
        self.is_administration = is_administration
        # Whether it came in by a line on which machines without a certificate ask for one, and can ask nothing else.
        self.is_enrolment = is_enrolment
        # The address that it came from; "unix" on a Unix socket.
        self.source = source
        # Set once an encrypted line is there.
        self.line: Line | None = None
        # What the next officer's command must be signed over, and until when.
        self.officer_challenge: tuple[bytes, float] | None = None
        # Who has proven to be there, and until when that counts (monotonic seconds). `enter` and `leave` set them.
        self.terminal: KnownTerminal | None = None
        self.until = math.inf
        # With what, for when its record changes.
        self.proven: Proven | None = None
        self._leave: Callable[[], None] | None = None
        # The PSAMs that the terminal has open, by the numbers that it was told.
        self.psams: dict[int, Lent] = {}
        self.challenge: OpenChallenge | None = None
        # A signature that is being judged beside the tick.
        self.attempt: Attempt | None = None
        self.failures = 0
        self.must_close = False
        # The terminal's number in the journal, and whose number that is.
        self.terminal_number = 0
        self.numbered: KnownTerminal | None = None
        # The place in the journal of the record of its authentication.
        self.recorded_at = 0

    def enter(
        self,
        terminal: KnownTerminal,
        until: float = math.inf,
        leave: Callable[[], None] | None = None,
    ) -> None:
        """Make the connection a terminal's, until that moment. `leave` is called once when it is no more."""
        self.leave()
        self.terminal = terminal
        self.until = until
        self._leave = leave

    def leave(self) -> None:
        """Make the connection nobody's, and what was lent to its terminal nobody's too. Safe to call twice."""
        self.terminal = None
        self.proven = None
        self.until = math.inf
        leave, self._leave = self._leave, None
        psams, self.psams = self.psams, {}
        for psam in psams.values():
            psam.abandon()
        if leave is not None:
            leave()

    def expire(self, now: float) -> None:
        """Make the connection nobody's if its terminal's time is over (monotonic seconds)."""
        if now >= self.until:
            self.leave()

    def end(self) -> None:
        """Make the connection nobody's for good: it is closed, and what is still being judged comes too late."""
        self.must_close = True
        self.leave()
