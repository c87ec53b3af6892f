"""The hub: one trio task that owns every client connection, and its tick.

A tick reads all ready sockets, lets `Dispatch` decide on everything that arrived as one batch, and writes one
buffer per connection. No task, lock or checkpoint exists per request or per connection: connections wait in
the hub's own epoll, and trio waits for that one file descriptor. The hub frames and moves bytes; it does not
know what any of them mean.

No answer leaves before its record is written: `Dispatch` sees to that, and the pump asks for it. Where the disk is
to be waited for, answers are held per connection, in order, and the tick goes on.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from keyd.dispatch import Slow
from keyd.errors import Draining, Malformed, RemoteProtocolError
from keyd.hub.admission import Admission
from keyd.hub.connections import HANGUP, Connections
from keyd.hub.door import Door, Entrance
from keyd.hub.limits import (
    MAX_ASKS_PER_CONNECTION,
    MAX_ASKS_PER_TICK,
    MAX_CIPHERTEXT,
    MAX_EVENTS,
    MAX_NEW_ASKS_PER_TICK,
    MAX_TICKS_IN_A_ROW,
    SWEEP_SECONDS,
    Limits,
)
from keyd.hub.line_work import LineWork
from keyd.hub.lines import Lines
from keyd.hub.pumping import Pumping
from keyd.hub.slow_work import SlowWork
from keyd.hub.sweeper import Sweeper
from keyd.protocol.connection import MAX_CHUNK
from keyd.tls import TlsFault

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from keyd.dispatch import Dispatch
    from keyd.hub.peer import Peer
    from keyd.protocol.connection import Ask
    from keyd.pump._pump import Pump, SeenCards
    from keyd.telemetry import Events, Meter
    from keyd.terminals import Moment, Session, Terminals


@dataclass(frozen=True, slots=True)
class _Work:
    """What a tick has to answer, and how many requests each peer has in it, in the same order."""

    asks: list[tuple[Session, Ask]]
    askers: list[tuple[Peer, int]]


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
        unix_clock: Callable[[], float] = time.time,
    ) -> None:
        # Grows with every tick: the watchdog's proof that the hub lives.
        self.ticks = 0
        self._dispatch = dispatch
        self._meter = meter
        self._events = events
        self._clock = clock
        self._unix_clock = unix_clock
        self._epoll = epoll = select.epoll()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        epoll.register(self._wake_fd, select.EPOLLIN)
        # Without one, everything goes the long way: the same answers, later.
        self.pump = pump = make_pump(epoll.fileno()) if make_pump else None
        # Where uses are recorded before they are answered; without one, nothing is.
        self._recorder = recorder = dispatch.recorder
        self._lines = lines = Lines(meter, events, clock, self._now, dispatch.allows_line)
        self._admission = admission = Admission(pump, dispatch, clock)
        self._connections = connections = Connections(
            epoll, limits, lines, admission, recorder, meter, events, clock
        )
        self._door = door = Door(
            epoll, meter, events, clock, connections.open, connections.has_room
        )
        self._pumping = (
            Pumping(pump, connections, dispatch, meter, clock) if pump is not None else None
        )
        self._slow_work = SlowWork(dispatch, connections)
        self._line_work = LineWork(lines, connections, door, events, clock, self._go_on)
        self._sweeper = Sweeper(connections, lines, admission, door, events, clock)
        self._is_draining = False
        self._drain_deadline = 0.0
        self._buffer = bytearray(MAX_CHUNK)
        self._view = memoryview(self._buffer)
        self._ciphertext = self._view[:MAX_CIPHERTEXT]

    @property
    def limits(self) -> Limits:
        """What the operator has tuned; others may be put in force at any time."""
        return self._connections.limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._connections.limits = limits

    def listen(
        self,
        listeners: Sequence[socket.socket],
        administration: Sequence[socket.socket] = (),
        encrypted: Sequence[Entrance] = (),
    ) -> None:
        """Take over listening sockets, TCP or Unix; those of the administration and of encrypted lines apart."""
        plain = map(Entrance, listeners)
        officers = (Entrance(listener, is_administration=True) for listener in administration)
        self._door.listen([*plain, *officers, *encrypted])

    def wake(self) -> None:
        """Make the hub tick soon, though nothing arrived."""
        os.eventfd_write(self._wake_fd, 1)

    def drain(self) -> None:
        """Answer what was accepted, close every line, then let `run` return. Safe to call twice."""
        if self._is_draining:
            return
        self._is_draining = True
        self._drain_deadline = self._clock() + self.limits.drain_seconds
        self._door.shut()
        self.wake()

    def review(self, terminals: Terminals, now: Moment) -> None:
        """After the registry has changed: let every terminal have the rights that it has now, or its line be cut."""
        for peer in list(self._connections.peers.values()):
            if not self._lines.is_allowed(peer):
                # Not before it has its last answers: one of them may be the certificate that took this one's place.
                peer.session.leave()
                self._connections.finish(peer, "not_allowed")
                continue
            terminals.review(peer.session, now)
            if peer.session.must_close:
                self._connections.finish(peer, "not_authentic")
            self._admission.review(peer)

    def judge_again(self) -> None:
        """Close, one after the other, the lines that the present contexts of their entrances would not let in."""
        self._lines.judge_again()

    def readmit(self) -> None:
        """Let the pump have every connection anew: another policy is in force."""
        for peer in self._connections.peers.values():
            self._admission.renew(peer)

    def watch(self, seen: SeenCards, window_seconds: int) -> None:
        """Leave cards to Python that were in another region within so many seconds."""
        if self.pump is not None:
            self.pump.watch(seen, window_seconds)

    async def run(self) -> None:
        """Serve until drained."""
        connections = self._connections
        try:
            async with trio.open_nursery() as nursery:
                self._slow_work.nursery = nursery
                nursery.start_soon(self._sweep_forever)
                nursery.start_soon(self._line_work.run)
                if self._recorder is not None:
                    nursery.start_soon(
                        self._recorder.run, self.wake, self._release, self._take_back
                    )
                in_a_row = 0
                while not (self._is_draining and not connections.peers):
                    events = self._poll()
                    if events is None and not connections.backlog:
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

    def _close_all(self) -> None:
        self._events.say_left_out()
        for peer in list(self._connections.peers.values()):
            self._connections.close(peer, "stopped")
        self._door.close()
        self._epoll.close()
        os.close(self._wake_fd)

    def _now(self) -> int:
        return int(self._unix_clock())

    # The tick -----------------------------------------------------------------------------------------

    def _poll(self) -> list[tuple[int, int]] | None:
        """Return what is ready for Python; None if nothing at all was ready."""
        recorder = self._recorder
        if recorder is not None and recorder.has_news:
            recorder.settle()
        if self._pumping is None:
            return self._epoll.poll(0, MAX_EVENTS) or None
        cannot_record = recorder is not None and recorder.unavailable_because is not None
        events, answered = self._pumping.tick(cannot_record=cannot_record)
        if answered:
            self.ticks += 1
        return events

    def _tick(self, events: list[tuple[int, int]]) -> None:
        self.ticks += 1
        now = self._clock()
        work = _Work([], [])
        if events:
            peers = self._connections.peers
            # When there is more than one tick's work, everybody comes first in turn.
            first = self.ticks % len(events)
            for fd, mask in events[first:] + events[:first]:
                peer = peers.get(fd)
                if peer is None:
                    self._other_event(fd)
                else:
                    self._peer_event(peer, mask, now, work)
        self._take_backlog(work)
        if work.asks:
            self._answer(work)
        if self._is_draining:
            self._drain_step()

    def _other_event(self, fd: int) -> None:
        if fd == self._wake_fd:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(fd)
        else:
            self._door.knock(fd)

    def _peer_event(self, peer: Peer, mask: int, now: float, work: _Work) -> None:
        if mask & select.EPOLLOUT:
            self._connections.flush(peer)
        if peer.is_half_open:
            self._line_work.half_open_event(peer, mask)
            return
        if not mask & (select.EPOLLIN | HANGUP) or not peer.is_open:
            return
        if peer.is_at_eof or ((peer.out or peer.is_full) and mask & HANGUP):
            # It had closed its side already, and now nobody is left to answer to.
            self._connections.close(peer, "reset")
        elif peer.has_more or peer.out or peer.is_full:
            pass  # its turn comes by itself
        elif len(work.asks) < MAX_NEW_ASKS_PER_TICK:
            # Whoever is not read now is reported again.
            self._read(peer, now)
            self._take_asks(peer, work)

    # Reading ------------------------------------------------------------------------------------------

    def _read(self, peer: Peer, now: float) -> bool:
        """Read once. Return whether anything came, or the end did."""
        try:
            count = peer.sock.recv_into(self._buffer if peer.tls is None else self._ciphertext)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            self._connections.close(peer, "reset")
            return False
        if peer.is_lingering:
            # The line is closed for the peer's words: they are read so that ours arrive, and dropped.
            if count == 0:
                self._connections.close(peer, peer.close_reason or "closed")
            return False
        try:
            if count == 0:
                self._lines.end(peer)
                peer.is_at_eof = True
                return True
            peer.arrived = now
            peer.connection.receive_data_untrusted(self._lines.decrypt(peer, self._view[:count]))
        except TlsFault as fault:
            self._connections.give_up(peer, fault)
            return False
        except RemoteProtocolError as error:
            self._connections.break_off(peer, Malformed(str(error)), "malformed")
        # What comes next belongs behind this: the pump must not read it before Python is done.
        self._admission.review(peer)
        return True

    def _take_backlog(self, work: _Work) -> None:
        connections = self._connections
        backlog, connections.backlog = connections.backlog, {}
        for peer in backlog.values():
            if len(work.asks) < MAX_ASKS_PER_TICK:
                self._take_asks(peer, work)
            else:
                connections.backlog[peer.fd] = peer

    def _take_asks(self, peer: Peer, work: _Work) -> None:
        if peer.close_reason is not None or not peer.is_open or peer.is_full:
            return  # a full one comes again once what it waits for has left
        connections = self._connections
        try:
            asks = peer.connection.next_asks_untrusted(MAX_ASKS_PER_CONNECTION)
            peer.has_more = len(asks) == MAX_ASKS_PER_CONNECTION or peer.connection.is_broken
            if peer.is_at_eof and not peer.has_more:
                peer.connection.receive_eof_untrusted()
        except RemoteProtocolError as error:
            connections.break_off(peer, Malformed(str(error)), "malformed")
            return
        if peer.is_at_eof and not peer.has_more:
            peer.close_reason = "peer_closed"
        if not asks:
            connections.flush(peer)
            return
        if not peer.has_spoken:
            peer.has_spoken = True
            deadlines = connections.deadlines
            del deadlines.fresh[peer]
            deadlines.look_later(peer, peer.arrived + connections.limits.idle_seconds)
        peer.asked_at = peer.arrived
        session = peer.session
        work.asks.extend([(session, ask) for ask in asks])
        work.askers.append((peer, len(asks)))

    # Answering ----------------------------------------------------------------------------------------

    def _answer(self, work: _Work) -> None:
        clock = self._clock
        meter = self._meter
        connections = self._connections
        started = clock()
        answers, position, free = self._dispatch.run(work.asks)
        meter.compute.observe(clock() - started, len(answers))
        meter.batch.observe(len(answers))
        at = 0
        for peer, count in work.askers:
            held = 0
            for place in range(at, at + count):
                answer = answers[place]
                if isinstance(answer, Slow):
                    self._slow_work.start(peer, answer)
                elif position or peer.held:
                    wait = 0 if place in free else position
                    held += connections.say(peer, answer, wait, 1, peer.arrived)
                else:
                    peer.say(answer)
            at += count
            if peer.session.must_close:
                peer.close_reason = "not_authentic"
            connections.flush(peer)
            if count > held:
                meter.duration.observe(clock() - peer.arrived, count - held)

    # Beside the tick ----------------------------------------------------------------------------------

    def _go_on(self) -> None:
        """Tick soon, if something outside the tick may have left it something to do."""
        if self._connections.backlog or self._is_draining:
            self.wake()

    def _release(self) -> None:
        """Let go what the disk has by now."""
        self._connections.release()
        self._go_on()

    def _take_back(self) -> None:
        """Refuse what the disk has not taken in time."""
        self._connections.take_back()
        self._go_on()

    async def _sweep_forever(self) -> None:
        while True:
            await trio.sleep(SWEEP_SECONDS)
            self._sweeper.sweep()
            if self._is_draining:
                self.wake()

    # Draining -----------------------------------------------------------------------------------------

    def _drain_step(self) -> None:
        """Read what had arrived, and close every line that is quiet."""
        connections = self._connections
        now = self._clock()
        is_overdue = now >= self._drain_deadline
        for peer in list(connections.peers.values()):
            if is_overdue:
                connections.break_off(peer, Draining(), "drain_overdue")
                connections.close(peer, "drain_overdue")
            elif peer.is_half_open:
                connections.close(peer, "drained")
            elif peer.is_lingering or peer.has_more or peer.in_flight or peer.out or peer.held:
                continue  # not quiet yet
            elif self._read(peer, now):
                connections.register(peer)
                # Something had arrived: it is answered in the next tick, before the line is closed.
                peer.has_more = peer.is_open and peer.close_reason is None
                if peer.has_more:
                    connections.backlog[peer.fd] = peer
            else:
                connections.finish(peer, "drained")
