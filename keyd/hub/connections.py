"""Connections: who comes in, what is said to them and when it leaves, and how they end.

All writing to sockets is here, and every change of what a connection waits for. What is read, and what becomes of it,
is the hub's: nothing here calls back to it.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
from typing import TYPE_CHECKING, Final

from keyd.errors import Overloaded
from keyd.hub.deadlines import Deadlines
from keyd.hub.door import tell
from keyd.hub.held import HeldAnswers
from keyd.hub.limits import LINGER_SECONDS, MAX_OUTPUT, SPARE_FOR_OFFICERS
from keyd.hub.peer import Peer
from keyd.protocol.connection import refusal_bytes
from keyd.terminals import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from keyd.errors import Refusal
    from keyd.hub.admission import Admission
    from keyd.hub.door import Entrance
    from keyd.hub.limits import Limits
    from keyd.hub.lines import Lines
    from keyd.recorder import Recorder
    from keyd.telemetry import Events, Meter
    from keyd.tls import TlsFault

HANGUP: Final = select.EPOLLHUP | select.EPOLLERR

_PEER_CREDENTIALS: Final = struct.Struct("3i")


class Connections:
    """Every connection of one hub, on its epoll."""

    def __init__(
        self,
        epoll: select.epoll,
        limits: Limits,
        lines: Lines,
        admission: Admission,
        recorder: Recorder | None,
        meter: Meter,
        events: Events,
        clock: Callable[[], float],
    ) -> None:
        self.limits = limits
        # By their file descriptors.
        self.peers: dict[int, Peer] = {}
        # Those with whole requests still buffered, for the next tick.
        self.backlog: dict[int, Peer] = {}
        self.deadlines = Deadlines()
        self._epoll = epoll
        self._lines = lines
        self._admission = admission
        self._recorder = recorder
        self._meter = meter
        self._events = events
        self._clock = clock
        self._held = HeldAnswers(meter, clock)
        self._numbers = 0

    # Opening ------------------------------------------------------------------------------------------

    def has_room(self, entrance: Entrance) -> bool:
        """Whether one more may come in, now or in place of another."""
        return (
            entrance.context is None
            or len(self._lines.handshakes) < self.limits.handshakes
            or self._lines.handshakes.whom_to_drop() is not None
        )

    def open(self, sock: socket.socket, entrance: Entrance) -> None:
        """Begin with somebody who has come in, or say that there is no room."""
        sock.setblocking(False)
        if not self._make_room(entrance):
            if entrance.context is None:
                tell(sock, Overloaded("keyd has as many connections as it may"))
            sock.close()
            self._meter.connections_refused.inc()
            self._events.peer("connection_refused", reason="limit")
            return
        is_unix = sock.family == socket.AF_UNIX
        if not is_unix:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._numbers += 1
        session = Session(
            self._numbers,
            is_operator=is_unix and _is_operator(sock),
            is_administration=entrance.is_administration,
            is_enrolment=entrance.is_enrolment,
            source=_source(sock, is_unix),
        )
        peer = Peer(sock, session)
        peer.opened_at = peer.arrived = self._clock()
        peer.is_registered_for = select.EPOLLIN
        self.peers[peer.fd] = peer
        self._epoll.register(peer.fd, select.EPOLLIN)
        if entrance.context is None:
            self.deadlines.fresh[peer] = peer.arrived + self.limits.first_message_seconds
        else:
            self._lines.begin(peer, entrance, entrance.context)
            self.deadlines.handshaking[peer] = peer.arrived + self.limits.handshake_seconds
        self._meter.opened()
        self._events.peer("connection_opened", connection=session.number, source=session.source)

    def _make_room(self, entrance: Entrance) -> bool:
        """Drop a half-open line for a newcomer if one has to be. Return whether there is room then."""
        handshakes = self._lines.handshakes
        # Officers come in though terminals take all the room there is: there is spare for a few.
        spare = SPARE_FOR_OFFICERS if entrance.is_administration else 0
        is_full = len(self.peers) >= self.limits.connections + spare
        has_too_many = entrance.context is not None and len(handshakes) >= self.limits.handshakes
        if is_full or has_too_many:
            dropped = handshakes.whom_to_drop()
            if dropped is None:
                return False
            self._lines.count_failure(dropped, "dropped")
            self.close(dropped, "handshake_dropped")
        return True

    # Writing ------------------------------------------------------------------------------------------

    def say(
        self, peer: Peer, answers: bytes, position: int = 0, count: int = 0, arrived: float = 0.0
    ) -> bool:
        """Let answers leave with the next flush, or hold them for the disk; return whether they are held.

        Answers keep their order, so whatever is said to somebody who waits, waits as well.
        """
        durable = 0 if self._recorder is None else self._recorder.durable
        if peer.held or position > durable:
            self._held.hold(peer, answers, position, count, arrived)
            return True
        peer.say(answers)
        return False

    def hold(self, peer: Peer, answers: bytes, position: int, count: int, arrived: float) -> None:
        """Keep answers until their records are durable."""
        self._held.hold(peer, answers, position, count, arrived)
        if peer.is_full:
            self.register(peer)

    def release(self) -> None:
        """Let go what the disk has by now."""
        if self._recorder is not None:
            self._flush_all(self._held.release(self._recorder.durable))

    def take_back(self) -> None:
        """Refuse what the disk has not taken in time."""
        peers = self._held.take_back()
        for peer in peers:
            session = peer.session
            if self._recorder is not None and session.recorded_at > self._recorder.durable:
                # Whoever was told that it could not be recorded did not become a terminal by it.
                session.leave()
        self._flush_all(peers)

    def _flush_all(self, peers: Sequence[Peer]) -> None:
        for peer in peers:
            self.flush(peer)

    def flush(self, peer: Peer) -> None:
        """Write what is to leave, and go on from there: read, wait, or close."""
        if not peer.is_open or peer.is_lingering:
            return
        if peer.said:
            peer.encrypt()
        out = peer.out
        if out:
            try:
                sent = peer.sock.send(out)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError:
                self.close(peer, "reset")
                return
            if sent < len(out):
                del out[:sent]
                if len(out) > MAX_OUTPUT:
                    self.close(peer, "slow_reader")
                    return
                self.stall(peer, self._clock())
                self.register(peer)
                return
            out.clear()
            self.deadlines.stalled.pop(peer, None)
        if peer.close_reason is not None:
            # It was decided that the line ends, and what is still buffered is asked of nobody.
            peer.has_more = False
        if peer.has_more:
            if not peer.is_full:
                self.backlog[peer.fd] = peer
        elif peer.close_reason is not None and not peer.in_flight and not peer.held:
            if self._lines.say_goodbye(peer):
                self.flush(peer)
            else:
                self._linger(peer)
            return
        self.register(peer)

    def stall(self, peer: Peer, now: float) -> None:
        """Take note that not all has left."""
        # From the first byte that had to wait until the last has left: a trickle is no progress.
        self.deadlines.stalled.setdefault(peer, now + self.limits.write_seconds)

    def register(self, peer: Peer) -> None:
        """Wait for what is to come next on a connection: room to write, something to read, or nothing."""
        if peer.out:
            wanted = select.EPOLLOUT
        elif peer.is_at_eof or peer.is_full or peer.is_in_turn:
            wanted = 0
        else:
            wanted = select.EPOLLIN
        if wanted != peer.is_registered_for:
            peer.is_registered_for = wanted
            self._epoll.modify(peer.fd, wanted)
        self._admission.review(peer)

    # Closing ------------------------------------------------------------------------------------------

    def finish(self, peer: Peer, reason: str) -> None:
        """Close once everything has left."""
        if peer.close_reason is None:
            peer.close_reason = reason
            self.flush(peer)

    def break_off(self, peer: Peer, refusal: Refusal, reason: str) -> None:
        """Say one last thing, and close once it has left."""
        if peer.close_reason is None and peer.is_open:
            peer.close_reason = reason
            peer.has_more = False
            self.say(peer, refusal_bytes(None, refusal))
            self.flush(peer)

    def give_up(self, peer: Peer, fault: TlsFault) -> None:
        """End a line whose TLS is not good: an alert if there is one, and not a word of the protocol."""
        self._lines.give_up(peer, fault)
        peer.close_reason = "tls_fault"
        peer.has_more = False
        if peer.out:
            with contextlib.suppress(OSError):
                del peer.out[: peer.sock.send(peer.out)]
        # A line that was never open is not lingered for: whoever can connect could fill keyd with such.
        if peer.is_half_open or peer.is_at_eof or peer.out:
            self.close(peer, "tls_fault")
        else:
            self._linger(peer)

    def _linger(self, peer: Peer) -> None:
        if peer.is_at_eof:
            self.close(peer, peer.close_reason or "closed")
            return
        # Closing a socket with unread input sends a reset, which can destroy answers on their way.
        try:
            peer.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close(peer, "reset")
            return
        peer.is_lingering = True
        self.deadlines.lingering[peer] = self._clock() + LINGER_SECONDS
        self.register(peer)

    def close(self, peer: Peer, reason: str) -> None:
        """Close at once, whatever has not left; safe to call twice."""
        if not peer.is_open:
            return
        peer.is_open = False
        self._admission.review(peer)
        del self.peers[peer.fd]
        self._lines.forget(peer)
        self.deadlines.forget(peer, len(self.peers))
        self.backlog.pop(peer.fd, None)
        self._epoll.unregister(peer.fd)
        peer.sock.close()
        peer.out.clear()
        peer.said.clear()
        self._meter.closed(reason)
        terminal = peer.session.terminal
        self._events.peer(
            "connection_closed",
            connection=peer.session.number,
            reason=reason,
            terminal=terminal.code if terminal else None,
        )
        peer.session.end()


def _is_operator(sock: socket.socket) -> bool:
    """Whether the process at the other end of a Unix socket runs as keyd's own user, or as root."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
    _pid, uid, _gid = _PEER_CREDENTIALS.unpack(raw)
    return uid in (0, os.geteuid())


def _source(sock: socket.socket, is_unix: bool) -> str:
    if is_unix:
        return "unix"
    try:
        return str(sock.getpeername()[0])
    except OSError:
        return "gone"
