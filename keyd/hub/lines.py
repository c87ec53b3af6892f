"""Encrypted lines, as the hub sees them: what their certificates say, and whether that is still so.

The hub moves ciphertext; this makes plaintext of it and judges who may have a line at all. Steps of handshakes and
judgements of certificates cost about a millisecond each: they are objects here, and `work_off` does them wherever it
is called, touching nothing else. Faults are counted and logged in one place, with their cause, of which the peer
learns nothing.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Final

import trio

from keyd.errors import LocalProtocolError
from keyd.hub.handshakes import Handshakes
from keyd.hub.limits import MAX_ENROLLING, MAX_JUDGED_AT_ONCE
from keyd.terminals import Line
from keyd.tls import TlsFault, TlsState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from keyd.hub.door import Entrance
    from keyd.hub.peer import Peer
    from keyd.telemetry import Events, Meter
    from keyd.tls import CertificateChain, TlsConnection, TlsServerContext


# Of what a cause speaks, in order: an alert is the peer's, whatever it is about.
_CLASSES: Final = (
    ("alert", ("alert",)),
    ("not_allowed", ("registry",)),
    ("certificate", ("certificate",)),
    ("truncated", ("without close_notify",)),
)


class Step:
    """A step of one handshake: what came, and what came of it."""

    __slots__ = ("_data", "error", "peer", "plaintext", "tls")

    def __init__(self, peer: Peer, tls: TlsConnection, data: bytes) -> None:
        self.peer = peer
        self.tls = tls
        self._data = data
        self.plaintext = b""
        self.error: Exception | None = None

    def take(self) -> None:
        """Take it. It costs up to 1.5 ms."""
        try:
            if not self._data:
                self.tls.receive_eof_untrusted()
            self.plaintext = self.tls.receive_data_untrusted(self._data)
            require_unbroken(self.tls)
        except Exception as error:  # noqa: BLE001 - the hub's thread will say what it is
            self.error = error


class Judgement:
    """Whether one open line would still be let in."""

    __slots__ = ("_chain", "_context", "_now", "error", "peer")

    def __init__(
        self, peer: Peer, context: TlsServerContext, chain: CertificateChain, now: int
    ) -> None:
        self.peer = peer
        self._context = context
        self._chain = chain
        self._now = now
        self.error: Exception | None = None

    def judge(self) -> None:
        """Judge. It costs some 1 ms."""
        try:
            self._context.judge(self._now).require_trusted(self._chain)
        except Exception as error:  # noqa: BLE001 - the hub's thread will say what it is
            self.error = error


def work_off(steps: Sequence[Step], judgements: Sequence[Judgement]) -> None:
    """Do what is slow, on whatever thread this is: nobody else has these lines meanwhile."""
    for step in steps:
        step.take()
    for judgement in judgements:
        judgement.judge()


def require_unbroken(tls: TlsConnection) -> None:
    """Refuse what came before a fault as well: no answer to it could leave.

    Raises:
        TlsFault: the line is broken.
    """
    if tls.is_broken:
        tls.receive_data_untrusted(b"")


class Lines:
    """The encrypted lines of one hub."""

    def __init__(
        self,
        meter: Meter,
        events: Events,
        clock: Callable[[], float],
        unix_now: Callable[[], int],
        allows_line: Callable[[Line, int], bool],
    ) -> None:
        self.handshakes = Handshakes()
        # Set when there are steps to take or lines to judge.
        self.wanted = trio.Event()
        self._meter = meter
        self._events = events
        self._clock = clock
        self._unix_now = unix_now
        self._allows_line = allows_line
        self._open: dict[Peer, None] = {}
        self._enrolling: dict[Peer, None] = {}
        self._to_judge: deque[Peer] = deque()
        # The first moment, in Unix seconds, at which a certificate of an open line has expired.
        self._expiry: float = math.inf

    # Handshakes ---------------------------------------------------------------------------------------

    def begin(self, peer: Peer, entrance: Entrance, context: TlsServerContext) -> None:
        """Begin a line on a new connection."""
        peer.entrance = entrance
        peer.tls = context.accept(self._unix_now())
        peer.context = context
        peer.is_half_open = True
        self.handshakes.add(peer)
        self._meter.tls_half_open = len(self.handshakes)

    def line_up(self, peer: Peer) -> None:
        """Give a turn, later, to a half-open line that has sent something."""
        self.handshakes.line_up(peer)
        self.wanted.set()

    def step(self, peer: Peer, data: bytes) -> Step:
        """Return the step that a half-open line takes with what came; nothing at its end."""
        return Step(peer, _tls_of(peer), data)

    def open(self, peer: Peer) -> None:
        """Let a line in, whose handshake is done.

        Raises:
            TlsFault: its certificate is good, and yet it may have no line.
        """
        tls, session = _tls_of(peer), peer.session
        certificate = tls.peer_certificate
        if certificate is not None:
            line = Line(
                certificate.common_name,
                certificate.serial,
                certificate.fingerprint,
                certificate.public_key.point,
                certificate.not_after,
                tls.channel_binding,
            )
            if not self._allows_line(line, self._unix_now()):
                raise TlsFault("the registry allows this certificate no line")
            session.line = line
            self._expiry = min(self._expiry, line.not_after)
            if peer.context is not _context_of(peer):
                # The authorities or the lists have changed since it began.
                self._judge_later(peer)
        self.handshakes.remove(peer)
        peer.is_half_open = False
        self._open[peer] = None
        if session.is_enrolment:
            self._enrolling[peer] = None
        kind = tls.kind.value
        self._meter.tls_half_open = len(self.handshakes)
        self._meter.tls_opened(kind, self._clock() - peer.opened_at, is_resumed=tls.is_resumed)
        self._events.peer(
            "line_opened",
            connection=session.number,
            kind=kind,
            group=tls.group,
            resumed=tls.is_resumed,
            certificate=session.line.common_name if session.line else None,
        )

    def surplus(self) -> Peer | None:
        """Return the oldest line for enrolment on which nothing is being done, if there are too many of them."""
        enrolling = [peer for peer in self._enrolling if peer.close_reason is None]
        if len(enrolling) <= MAX_ENROLLING:
            return None
        return next((peer for peer in enrolling if not peer.in_flight), None)

    # Bytes --------------------------------------------------------------------------------------------

    def decrypt(self, peer: Peer, data: memoryview) -> bytes | memoryview:
        """Return the plaintext of what came; of a plain connection it is that itself.

        Raises:
            TlsFault: it is not good TLS.
        """
        tls = peer.tls
        if tls is None:
            return data
        plaintext = tls.receive_data_untrusted(data)
        require_unbroken(tls)
        peer.out += tls.data_to_send()
        peer.is_at_eof = tls.state is TlsState.PEER_CLOSED
        return plaintext

    def end(self, peer: Peer) -> None:
        """Take note that the peer's socket brings no more.

        Raises:
            TlsFault: the peer did not say so within the line: something may be missing.
        """
        if peer.tls is not None:
            peer.tls.receive_eof_untrusted()

    def say_goodbye(self, peer: Peer) -> bool:
        """Put close_notify where it leaves next; return whether there was one to put."""
        if peer.tls is None or peer.has_said_goodbye:
            return False
        peer.has_said_goodbye = True
        peer.out += peer.tls.close()
        return bool(peer.out)

    # Judging again ------------------------------------------------------------------------------------

    def is_allowed(self, peer: Peer) -> bool:
        """Whether the registry still allows a connection its line, if it has one."""
        line = peer.session.line
        return line is None or self._allows_line(line, self._unix_now())

    def judge_again(self) -> None:
        """Have all open lines judged by the present contexts of their entrances."""
        for peer in self._open:
            if peer.session.line is not None:
                self._judge_later(peer)

    def next_judgements(self) -> list[Judgement]:
        """Return some of the lines that are to be judged."""
        judgements: list[Judgement] = []
        while self._to_judge and len(judgements) < MAX_JUDGED_AT_ONCE:
            peer = self._to_judge.popleft()
            context = _context_of(peer)
            if peer.is_open and context is not None:
                chain = _tls_of(peer).peer_chain()
                judgements.append(Judgement(peer, context, chain, self._unix_now()))
        return judgements

    def expired(self) -> list[Peer]:
        """Return the open lines whose certificates have expired, each once."""
        now = self._unix_now()
        if now <= self._expiry:
            return []
        over = []
        self._expiry = math.inf
        for peer in self._open:
            line = peer.session.line
            if line is None:
                continue
            if line.not_after < now:
                over.append(peer)
            else:
                self._expiry = min(self._expiry, line.not_after)
        return over

    def _judge_later(self, peer: Peer) -> None:
        self._to_judge.append(peer)
        self.wanted.set()

    # Ends ---------------------------------------------------------------------------------------------

    def give_up(self, peer: Peer, fault: TlsFault) -> None:
        """Count and log a fault; put the last that is to be said, in TLS's own words, where it leaves next."""
        tls = _tls_of(peer)
        last_words = tls.data_to_send()
        # A line that is not let in gets no tickets, and hears the end instead of an alert.
        peer.out += last_words if tls.is_broken else tls.close()
        peer.said.clear()
        self.count_failure(peer, _class_of(fault.cause))
        self._events.peer(
            "tls_fault",
            connection=peer.session.number,
            kind=tls.kind.value,
            cause=fault.cause,
        )

    def count_failure(self, peer: Peer, cause: str) -> None:
        """Count a line that ended badly, or was never there."""
        self._meter.tls_failed(_tls_of(peer).kind.value, cause)

    def forget(self, peer: Peer) -> None:
        """Let go of a connection that is closed."""
        if peer.is_half_open:
            peer.is_half_open = False
            self.handshakes.remove(peer)
            self._meter.tls_half_open = len(self.handshakes)
        elif peer in self._open:
            del self._open[peer]
            self._enrolling.pop(peer, None)
            self._meter.tls_closed(_tls_of(peer).kind.value)


def _tls_of(peer: Peer) -> TlsConnection:
    if peer.tls is None:
        raise LocalProtocolError("this connection is not encrypted")
    return peer.tls


def _context_of(peer: Peer) -> TlsServerContext | None:
    """Return what would begin this line now."""
    return None if peer.entrance is None else peer.entrance.context


def _class_of(cause: str) -> str:
    """Return one of few names for a cause, for the metrics."""
    for name, signs in _CLASSES:
        if any(sign in cause for sign in signs):
            return name
    return "protocol"
