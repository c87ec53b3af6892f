"""The hub: one trio task that owns every client connection, and its tick.

A tick reads all ready sockets, lets `Dispatch` decide on everything that arrived as one batch, and writes one
buffer per connection. No task, lock or checkpoint exists per request or per connection: connections wait in
the hub's own epoll, and trio waits for that one file descriptor. The hub frames and moves bytes; it does not
know what any of them mean.

What bounds a peer: MAX_MESSAGE of input, MAX_OUTPUT of output, a share of each tick, and a deadline for every
state it can be in.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import os
import select
import socket
import struct
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from keyd.dispatch import Slow
from keyd.errors import (
    Draining,
    Malformed,
    Overloaded,
    Refusal,
    RemoteProtocolError,
    Status,
    TimedOut,
    TooManyInFlight,
)
from keyd.protocol.connection import MAX_CHUNK, ServerConnection, refusal_bytes
from keyd.pump import METHODS
from keyd.terminals import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from keyd.dispatch import Dispatch
    from keyd.protocol.connection import Ask
    from keyd.pump import Rest
    from keyd.pump._pump import Pump
    from keyd.telemetry import Events, Meter
    from keyd.terminals import Terminals

# One connection's share of a tick. A pipelining client is served 64 at a time, and everybody else between.
MAX_ASKS_PER_CONNECTION: Final = 64

# A tick's work: at some 10 µs a request, 1024 of them keep the tick near 10 ms, and with it everybody's wait.
MAX_ASKS_PER_TICK: Final = 1024

# The part of it that goes to what has just arrived; the rest is kept for those with a backlog.
MAX_NEW_ASKS_PER_TICK: Final = 768

# Readiness taken from epoll at once; what is left over is reported again.
MAX_EVENTS: Final = 1024

# Connections accepted in one tick, so that a storm of them does not stop answering.
MAX_ACCEPTS_PER_TICK: Final = 64

# Ticks in a row without giving trio's other tasks (metrics, signals) a turn.
MAX_TICKS_IN_A_ROW: Final = 4

# Unsent answers of one connection. A connection with unsent answers is not read, so honest peers stay far
# below: a whole share of the largest batches makes half of it.
MAX_OUTPUT: Final = 2 * 1024 * 1024

# Slow work (outside the tick) that one connection, and all together, may have under way.
MAX_SLOW_PER_CONNECTION: Final = 8
MAX_SLOW: Final = 64

# After file descriptors ran out, how long not to accept: long enough not to spin, short enough not to notice.
ACCEPT_PAUSE_SECONDS: Final = 0.1

# How long a closed line is listened to, so that the last answer is not lost to a reset.
LINGER_SECONDS: Final = 2.0

# Entries of closed connections in the heap of looks, beside as many as there are open ones.
MAX_DEAD_LOOKS: Final = 64

# How often deadlines are looked at. Deadlines are seconds, so half of one is exact enough.
SWEEP_SECONDS: Final = 0.5

_HANGUP: Final = select.EPOLLHUP | select.EPOLLERR
_PEER_CREDENTIALS: Final = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class Limits:
    """What the operator may tune. Seconds and counts."""

    connections: int = 1024
    first_message_seconds: float = 10.0
    idle_seconds: float = 300.0
    write_seconds: float = 10.0
    drain_seconds: float = 10.0


class _Peer:
    """One client connection."""

    __slots__ = (
        "arrived",
        "asked_at",
        "close_reason",
        "connection",
        "fd",
        "has_more",
        "has_spoken",
        "in_flight",
        "is_admitted",
        "is_at_eof",
        "is_lingering",
        "is_open",
        "is_registered_for",
        "out",
        "session",
        "sock",
    )

    def __init__(self, sock: socket.socket, session: Session) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.session = session
        self.connection = ServerConnection()
        self.out = bytearray()
        self.in_flight = 0
        self.arrived = 0.0
        # When it last said something whole: a trickle of bytes is silence.
        self.asked_at = 0.0
        self.is_open = True
        # Whether the pump reads it.
        self.is_admitted = False
        self.has_spoken = False
        # Whole requests may still be buffered. It is not read before they are taken, which bounds the buffer.
        self.has_more = False
        self.is_at_eof = False
        # Set once keyd is to close the line: after the output has left, and for this reason.
        self.close_reason: str | None = None
        self.is_lingering = False
        self.is_registered_for = 0


@dataclass(frozen=True, slots=True)
class _Work:
    """What a tick has to answer, and how many requests each peer has in it, in the same order."""

    asks: list[tuple[Session, Ask]]
    askers: list[tuple[_Peer, int]]


class Hub:
    """Owns the listeners and every connection; `run` is the one task."""

    def __init__(
        self,
        dispatch: Dispatch,
        meter: Meter,
        events: Events,
        limits: Limits,
        clock: Callable[[], float],
        make_pump: Callable[[int], Pump] | None = None,
    ) -> None:
        self.limits = limits
        # Grows with every tick: the watchdog's proof that the hub lives.
        self.ticks = 0
        self._dispatch = dispatch
        self._meter = meter
        self._events = events
        self._clock = clock
        self._epoll = select.epoll()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        # Kept so that, when file descriptors run out, there is one to accept and refuse with.
        self._reserve_fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self._listeners: dict[int, socket.socket] = {}
        self._peers: dict[int, _Peer] = {}
        self._numbers = 0
        # Peers with whole requests still buffered, for the next tick.
        self._backlog: dict[int, _Peer] = {}
        # Deadlines: each holds its peers in the order in which they will expire.
        self._fresh: OrderedDict[_Peer, float] = OrderedDict()
        self._stalled: OrderedDict[_Peer, float] = OrderedDict()
        self._lingering: OrderedDict[_Peer, float] = OrderedDict()
        # When to look whether a peer has fallen silent: one entry for each, by time, moved only when looked at.
        self._looks: list[tuple[float, int, _Peer]] = []
        self._accept_again_at: float | None = None
        self._slow = 0
        self._is_draining = False
        self._drain_deadline = 0.0
        self._buffer = bytearray(MAX_CHUNK)
        self._view = memoryview(self._buffer)
        self._nursery: trio.Nursery | None = None
        # Without one, everything goes the long way: the same answers, later.
        self.pump = make_pump(self._epoll.fileno()) if make_pump else None

    def listen(self, listeners: Sequence[socket.socket]) -> None:
        """Take over listening sockets, TCP or Unix."""
        for listener in listeners:
            listener.setblocking(False)
            self._listeners[listener.fileno()] = listener
            self._epoll.register(listener.fileno(), select.EPOLLIN)

    def wake(self) -> None:
        """Make the hub tick soon, though nothing arrived."""
        os.eventfd_write(self._wake_fd, 1)

    def drain(self) -> None:
        """Answer what was accepted, close every line, then let `run` return. Safe to call twice."""
        if self._is_draining:
            return
        self._is_draining = True
        self._drain_deadline = self._clock() + self.limits.drain_seconds
        for fd, listener in self._listeners.items():
            self._epoll.unregister(fd)
            listener.close()
        self._listeners.clear()
        self._accept_again_at = None
        self.wake()

    def review(self, terminals: Terminals) -> None:
        """Take connections away from terminals that are no longer enrolled as they were."""
        for peer in self._peers.values():
            terminals.review(peer.session)
            self._admit(peer)

    async def run(self) -> None:
        """Serve until drained."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._sweep_forever)
                in_a_row = 0
                while not (self._is_draining and not self._peers):
                    events = self._poll()
                    if events is None and not self._backlog:
                        await trio.lowlevel.wait_readable(self._epoll.fileno())
                        in_a_row = 0
                        continue
                    self._tick(events or [])
                    in_a_row += 1
                    if in_a_row >= MAX_TICKS_IN_A_ROW:
                        await trio.lowlevel.checkpoint()
                        in_a_row = 0
                nursery.cancel_scope.cancel()
        finally:
            self._close_all()

    def _poll(self) -> list[tuple[int, int]] | None:
        """Return what is ready for Python; None if nothing at all was ready."""
        if self.pump is None:
            return self._epoll.poll(0, MAX_EVENTS) or None
        started = self._clock()
        rests, counts = self.pump.tick()
        answered = sum(counts)
        if answered:
            self._measure_pumped(self.pump, counts, started)
        if not rests:
            return [] if answered else None
        return [event for rest in rests if (event := self._take_over(rest, started)) is not None]

    def _take_over(self, rest: Rest, now: float) -> tuple[int, int] | None:
        """Go on with a connection where the pump stopped. Returns the event that is left to handle."""
        fd, mask, is_reset, data, unsent = rest
        peer = self._peers.get(fd)
        if peer is None:
            return fd, mask
        if is_reset:
            self._close(peer, "reset")
            return None
        if unsent:
            peer.out += unsent
            self._stalled.setdefault(peer, now + self.limits.write_seconds)
        if data:
            peer.arrived = now
            # At most MAX_CHUNK, into an empty connection: this cannot be too much.
            peer.connection.receive_data_untrusted(data)
            peer.has_more = True
        if peer.has_more and not peer.out:
            self._backlog[fd] = peer
        self._register(peer)
        return (fd, mask) if mask else None

    def _measure_pumped(self, pump: Pump, counts: Sequence[int], started: float) -> None:
        self.ticks += 1
        answered = sum(counts)
        meter = self._meter
        meter.count(
            {
                (method, Status.OK): count
                for method, count in zip(METHODS, counts, strict=True)
                if count
            }
        )
        meter.compute.observe(pump.compute_seconds, answered)
        meter.batch.observe(answered)
        meter.duration.observe(self._clock() - started, answered)
        fd, request = pump.last_request
        peer = self._peers.get(fd)
        if peer is not None:
            self._dispatch.sample_pumped(peer.session, request, answered)

    def _tick(self, events: list[tuple[int, int]]) -> None:
        self.ticks += 1
        now = self._clock()
        work = _Work([], [])
        if events:
            # When there is more than one tick's work, everybody comes first in turn.
            first = self.ticks % len(events)
            for fd, mask in events[first:] + events[:first]:
                peer = self._peers.get(fd)
                if peer is None:
                    self._other_event(fd)
                else:
                    self._peer_event(peer, mask, now, work)
        self._take_backlog(work)
        if work.asks:
            self._answer(work)
        if self._is_draining:
            self._drain_step()

    def _peer_event(self, peer: _Peer, mask: int, now: float, work: _Work) -> None:
        if mask & select.EPOLLOUT:
            self._flush(peer)
        if not mask & (select.EPOLLIN | _HANGUP) or not peer.is_open:
            return
        if peer.is_at_eof or (peer.out and mask & _HANGUP):
            # It had closed its side already, and now nobody is left to answer to.
            self._close(peer, "reset")
        elif not peer.has_more and not peer.out and len(work.asks) < MAX_NEW_ASKS_PER_TICK:
            # Whoever is not read now is reported again.
            self._read(peer, now)
            self._take_asks(peer, work)

    # Reading ------------------------------------------------------------------------------------------

    def _read(self, peer: _Peer, now: float) -> bool:
        """Read once. Return whether anything came, or the end did."""
        try:
            count = peer.sock.recv_into(self._buffer)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            self._close(peer, "reset")
            return False
        if peer.is_lingering:
            # The line is closed for the peer's words: they are read so that ours arrive, and dropped.
            if count == 0:
                self._close(peer, peer.close_reason or "closed")
            return False
        if count == 0:
            peer.is_at_eof = True
            return True
        peer.arrived = now
        try:
            peer.connection.receive_data_untrusted(self._view[:count])
        except RemoteProtocolError as error:
            self._break_off(peer, Malformed(str(error)), "malformed")
        # What comes next belongs behind this: the pump must not read it before Python is done.
        self._admit(peer)
        return True

    def _take_backlog(self, work: _Work) -> None:
        backlog, self._backlog = self._backlog, {}
        for peer in backlog.values():
            if len(work.asks) < MAX_ASKS_PER_TICK:
                self._take_asks(peer, work)
            else:
                self._backlog[peer.fd] = peer

    def _take_asks(self, peer: _Peer, work: _Work) -> None:
        if peer.close_reason is not None or not peer.is_open:
            return
        try:
            asks = peer.connection.next_asks_untrusted(MAX_ASKS_PER_CONNECTION)
            peer.has_more = len(asks) == MAX_ASKS_PER_CONNECTION or peer.connection.is_broken
            if peer.is_at_eof and not peer.has_more:
                peer.connection.receive_eof_untrusted()
        except RemoteProtocolError as error:
            self._break_off(peer, Malformed(str(error)), "malformed")
            return
        if peer.is_at_eof and not peer.has_more:
            peer.close_reason = "peer_closed"
        if not asks:
            self._flush(peer)
            return
        if not peer.has_spoken:
            peer.has_spoken = True
            del self._fresh[peer]
            self._look_later(peer, peer.arrived)
        peer.asked_at = peer.arrived
        session = peer.session
        work.asks.extend([(session, ask) for ask in asks])
        work.askers.append((peer, len(asks)))

    # Answering ----------------------------------------------------------------------------------------

    def _answer(self, work: _Work) -> None:
        clock = self._clock
        meter = self._meter
        started = clock()
        answers = self._dispatch.run(work.asks)
        meter.compute.observe(clock() - started, len(answers))
        meter.batch.observe(len(answers))
        at = 0
        for peer, count in work.askers:
            for answer in answers[at : at + count]:
                if isinstance(answer, Slow):
                    self._start_slow(peer, answer)
                else:
                    peer.out += answer
            at += count
            if peer.session.must_close:
                peer.close_reason = "not_authentic"
            self._flush(peer)
            meter.duration.observe(clock() - peer.arrived, count)

    def _start_slow(self, peer: _Peer, slow: Slow) -> None:
        refusal: Refusal | None = None
        if peer.in_flight >= MAX_SLOW_PER_CONNECTION:
            refusal = TooManyInFlight()
        elif self._slow >= MAX_SLOW:
            refusal = Overloaded()
        if refusal is not None:
            peer.out += refusal_bytes(slow.msgid, refusal)
            return
        if self._nursery is None:
            raise RuntimeError("the hub is not running")
        peer.in_flight += 1
        self._slow += 1
        self._nursery.start_soon(self._run_slow, peer, slow)

    async def _run_slow(self, peer: _Peer, slow: Slow) -> None:
        try:
            answer = await self._dispatch.run_slow(slow)
        finally:
            peer.in_flight -= 1
            self._slow -= 1
        if peer.is_open:
            peer.out += answer
            self._flush(peer)

    # Writing ------------------------------------------------------------------------------------------

    def _flush(self, peer: _Peer) -> None:
        if not peer.is_open or peer.is_lingering:
            return
        out = peer.out
        if out:
            try:
                sent = peer.sock.send(out)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError:
                self._close(peer, "reset")
                return
            if sent < len(out):
                del out[:sent]
                if len(out) > MAX_OUTPUT:
                    self._close(peer, "slow_reader")
                    return
                # From the first byte that had to wait until the last has left: a trickle is no progress.
                self._stalled.setdefault(peer, self._clock() + self.limits.write_seconds)
                self._register(peer)
                return
            out.clear()
            self._stalled.pop(peer, None)
        if peer.has_more:
            self._backlog[peer.fd] = peer
        elif peer.close_reason is not None and not peer.in_flight:
            self._linger(peer)
            return
        self._register(peer)

    def _admit(self, peer: _Peer) -> None:
        """Let the pump read a connection of which Python holds nothing, and no other."""
        if self.pump is None:
            return
        wanted = (
            peer.is_open
            and peer.session.terminal is not None
            and peer.is_registered_for == select.EPOLLIN
            and peer.close_reason is None
            and not peer.has_more
            and not peer.out
            and not peer.connection.has_partial
        )
        if wanted is not peer.is_admitted:
            peer.is_admitted = wanted
            if wanted:
                self.pump.admit(peer.fd)
            else:
                # The pump forgets when it is given the connection again.
                peer.asked_at = max(peer.asked_at, self.pump.served_at(peer.fd))
                self.pump.dismiss(peer.fd)

    def _register(self, peer: _Peer) -> None:
        if peer.out:
            wanted = select.EPOLLOUT
        elif peer.is_at_eof:
            wanted = 0
        else:
            wanted = select.EPOLLIN
        if wanted != peer.is_registered_for:
            peer.is_registered_for = wanted
            self._epoll.modify(peer.fd, wanted)
        self._admit(peer)

    # Opening and closing ------------------------------------------------------------------------------

    def _other_event(self, fd: int) -> None:
        if fd == self._wake_fd:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(fd)
        elif fd in self._listeners:
            self._accept(self._listeners[fd])

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(MAX_ACCEPTS_PER_TICK):
            try:
                sock, _address = listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._meter.accept_errors.inc()
                    self._refuse_without_descriptor(listener)
                    self._pause_accepting(error)
                    return
                # The peer gave up between the handshake and accept (ECONNABORTED and its kin).
                continue
            self._open(sock)

    def _refuse_without_descriptor(self, listener: socket.socket) -> None:
        # With the reserve given back, one waiting peer can be told instead of left hanging.
        os.close(self._reserve_fd)
        try:
            sock, _address = listener.accept()
            sock.setblocking(False)
            _tell(sock, Overloaded("keyd has no file descriptor left"))
            sock.close()
        except OSError:
            pass
        try:
            self._reserve_fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._reserve_fd = os.dup(self._wake_fd)

    def _pause_accepting(self, error: OSError) -> None:
        self._events.warning("accept_paused", reason=errno.errorcode.get(error.errno or 0, "?"))
        for fd in self._listeners:
            self._epoll.modify(fd, 0)
        self._accept_again_at = self._clock() + ACCEPT_PAUSE_SECONDS

    def _resume_accepting(self) -> None:
        self._accept_again_at = None
        for fd in self._listeners:
            self._epoll.modify(fd, select.EPOLLIN)

    def _open(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        if len(self._peers) >= self.limits.connections:
            _tell(sock, Overloaded("keyd has as many connections as it may"))
            sock.close()
            self._meter.connections_refused.inc()
            self._events.peer("connection_refused", reason="limit")
            return
        is_unix = sock.family == socket.AF_UNIX
        if not is_unix:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._numbers += 1
        peer = _Peer(sock, Session(self._numbers, is_operator=is_unix and _is_operator(sock)))
        peer.arrived = self._clock()
        peer.is_registered_for = select.EPOLLIN
        self._peers[peer.fd] = peer
        self._epoll.register(peer.fd, select.EPOLLIN)
        self._fresh[peer] = peer.arrived + self.limits.first_message_seconds
        self._meter.opened()
        self._events.peer(
            "connection_opened", connection=peer.session.number, source=_source(sock, is_unix)
        )

    def _break_off(self, peer: _Peer, refusal: Refusal, reason: str) -> None:
        """Say one last thing, and close once it has left."""
        if peer.close_reason is None and peer.is_open:
            peer.close_reason = reason
            peer.has_more = False
            peer.out += refusal_bytes(None, refusal)
            self._flush(peer)

    def _finish(self, peer: _Peer, reason: str) -> None:
        """Close once everything has left."""
        if peer.close_reason is None:
            peer.close_reason = reason
            self._flush(peer)

    def _linger(self, peer: _Peer) -> None:
        if peer.is_at_eof:
            self._close(peer, peer.close_reason or "closed")
            return
        # Closing a socket with unread input sends a reset, which can destroy answers on their way.
        try:
            peer.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._close(peer, "reset")
            return
        peer.is_lingering = True
        self._lingering[peer] = self._clock() + LINGER_SECONDS
        self._register(peer)

    def _close(self, peer: _Peer, reason: str) -> None:
        if not peer.is_open:
            return
        peer.is_open = False
        self._admit(peer)
        del self._peers[peer.fd]
        for deadlines in (self._fresh, self._stalled, self._lingering):
            deadlines.pop(peer, None)
        self._backlog.pop(peer.fd, None)
        self._epoll.unregister(peer.fd)
        peer.sock.close()
        peer.out.clear()
        if len(self._looks) > 2 * len(self._peers) + MAX_DEAD_LOOKS:
            self._looks = [entry for entry in self._looks if entry[2].is_open]
            heapq.heapify(self._looks)
        self._meter.closed(reason)
        terminal = peer.session.terminal
        self._events.peer(
            "connection_closed",
            connection=peer.session.number,
            reason=reason,
            terminal=terminal.code if terminal else None,
        )

    def _close_all(self) -> None:
        self._events.say_left_out()
        for peer in list(self._peers.values()):
            self._close(peer, "stopped")
        for listener in self._listeners.values():
            listener.close()
        self._epoll.close()
        os.close(self._wake_fd)
        os.close(self._reserve_fd)

    # Time ---------------------------------------------------------------------------------------------

    async def _sweep_forever(self) -> None:
        while True:
            await trio.sleep(SWEEP_SECONDS)
            self._sweep()

    def _sweep(self) -> None:
        now = self._clock()
        self._events.say_left_out()
        if self._accept_again_at is not None and now >= self._accept_again_at:
            self._resume_accepting()
        for peer in _expired(self._fresh, now):
            self._break_off(peer, TimedOut("no message came"), "no_first_message")
        while self._looks and self._looks[0][0] <= now:
            self._look(heapq.heappop(self._looks)[2], now)
        for peer in _expired(self._stalled, now):
            self._close(peer, "slow_reader")
        for peer in _expired(self._lingering, now):
            self._close(peer, peer.close_reason or "closed")
        if self._is_draining:
            self.wake()

    def _look_later(self, peer: _Peer, spoke_at: float) -> None:
        entry = (spoke_at + self.limits.idle_seconds, peer.session.number, peer)
        heapq.heappush(self._looks, entry)

    def _look(self, peer: _Peer, now: float) -> None:
        """End a connection that has been idle for too long, or look again when it may have been."""
        if not peer.is_open:
            return
        spoke_at = max(peer.asked_at, self.pump.served_at(peer.fd) if self.pump else 0.0)
        if peer.in_flight or peer.out:
            spoke_at = now  # it waits for us, not we for it; the write deadline bounds that
        if spoke_at + self.limits.idle_seconds > now:
            self._look_later(peer, spoke_at)
        else:
            self._break_off(peer, TimedOut(), "idle")

    def _drain_step(self) -> None:
        """Read what had arrived, and close every line that is quiet."""
        now = self._clock()
        is_overdue = now >= self._drain_deadline
        for peer in list(self._peers.values()):
            if is_overdue:
                self._break_off(peer, Draining(), "drain_overdue")
                self._close(peer, "drain_overdue")
            elif peer.is_lingering or peer.has_more or peer.in_flight or peer.out:
                continue  # not quiet yet
            elif self._read(peer, now):
                self._register(peer)
                # Something had arrived: it is answered in the next tick, before the line is closed.
                peer.has_more = peer.is_open and peer.close_reason is None
                if peer.has_more:
                    self._backlog[peer.fd] = peer
            else:
                self._finish(peer, "drained")


def _expired(deadlines: OrderedDict[_Peer, float], now: float) -> list[_Peer]:
    expired = []
    while deadlines:
        peer = next(iter(deadlines))
        if deadlines[peer] > now:
            break
        del deadlines[peer]
        expired.append(peer)
    return expired


def _tell(sock: socket.socket, refusal: Refusal) -> None:
    with contextlib.suppress(OSError):  # it is a courtesy
        sock.send(refusal_bytes(None, refusal))


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
