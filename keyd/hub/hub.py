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
import socket
import struct
import time
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
from keyd.hub.deadlines import Deadlines, expired
from keyd.hub.door import Door, Entrance, tell
from keyd.hub.held import HeldAnswers
from keyd.hub.limits import (
    LINGER_SECONDS,
    MAX_ASKS_PER_CONNECTION,
    MAX_ASKS_PER_TICK,
    MAX_CIPHERTEXT,
    MAX_EVENTS,
    MAX_LATE,
    MAX_LATE_PER_CONNECTION,
    MAX_NEW_ASKS_PER_TICK,
    MAX_OUTPUT,
    MAX_SLOW,
    MAX_SLOW_PER_CONNECTION,
    MAX_STEPS_AT_ONCE,
    MAX_TICKS_IN_A_ROW,
    SPARE_FOR_OFFICERS,
    SWEEP_SECONDS,
    TICKET_KEY_SECONDS,
    Limits,
)
from keyd.hub.lines import Lines, work_off
from keyd.hub.peer import Peer
from keyd.protocol.connection import MAX_CHUNK, refusal_bytes
from keyd.pump import METHODS
from keyd.terminals import Session
from keyd.tls import TlsFault, TlsState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from keyd.dispatch import Decided, Dispatch
    from keyd.hub.lines import Step
    from keyd.protocol.connection import Ask
    from keyd.pump import Rest
    from keyd.pump._pump import Pump, SeenCards
    from keyd.telemetry import Events, Meter
    from keyd.terminals import Moment, Terminals

_HANGUP: Final = select.EPOLLHUP | select.EPOLLERR
_PEER_CREDENTIALS: Final = struct.Struct("3i")

# Requests to PSAMs, by the table's rows.
PSAM_FAMILY: Final = "psam"

# Where nobody counts: after so many answers the pump asks again.
_UNLIMITED: Final = 0xFFFF_FFFF


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
        self.limits = limits
        # Grows with every tick: the watchdog's proof that the hub lives.
        self.ticks = 0
        self._dispatch = dispatch
        self._meter = meter
        self._events = events
        self._clock = clock
        self._unix_clock = unix_clock
        self._epoll = select.epoll()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        self._door = Door(self._epoll, meter, events, clock, self._open, self._has_room)
        self._lines = Lines(meter, events, clock, self._now, dispatch.allows_line)
        self._peers: dict[int, Peer] = {}
        self._numbers = 0
        # Peers with whole requests still buffered, for the next tick.
        self._backlog: dict[int, Peer] = {}
        self._deadlines = Deadlines()
        self._held = HeldAnswers(meter, clock)
        # Work outside the tick, and how much of it waits for PSAMs.
        self._slow = self._late = 0
        self._tickets_until = clock() + TICKET_KEY_SECONDS
        self._one_thread = trio.CapacityLimiter(1)
        self._is_draining = False
        self._drain_deadline = 0.0
        self._buffer = bytearray(MAX_CHUNK)
        self._view = memoryview(self._buffer)
        self._ciphertext = self._view[:MAX_CIPHERTEXT]
        self._nursery: trio.Nursery | None = None
        # Without one, everything goes the long way: the same answers, later.
        self.pump = make_pump(self._epoll.fileno()) if make_pump else None
        # Where uses are recorded before they are answered; without one, nothing is.
        self._recorder = dispatch.recorder
        if self.pump is not None and self._recorder is not None:
            numbers = self._recorder.numbers
            kinds = [numbers.methods[method] for method in METHODS]
            self.pump.record(self._recorder.append, kinds, numbers.card_id_bytes)

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
        for peer in list(self._peers.values()):
            if not self._lines.is_allowed(peer):
                # Not before it has its last answers: one of them may be the certificate that took this one's place.
                peer.session.leave()
                self._finish(peer, "not_allowed")
                continue
            terminals.review(peer.session, now)
            if peer.session.must_close:
                self._finish(peer, "not_authentic")
            self._admit(peer)

    def judge_again(self) -> None:
        """Close, one after the other, the lines that the present contexts of their entrances would not let in."""
        self._lines.judge_again()

    def readmit(self) -> None:
        """Let the pump have every connection anew: another policy is in force."""
        for peer in self._peers.values():
            if self.pump is not None and peer.is_admitted:
                self._keep_from_pump(self.pump, peer)
            self._admit(peer)

    def watch(self, seen: SeenCards, window_seconds: int) -> None:
        """Leave cards to Python that were in another region within so many seconds."""
        if self.pump is not None:
            self.pump.watch(seen, window_seconds)

    async def run(self) -> None:
        """Serve until drained."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._sweep_forever)
                nursery.start_soon(self._shake_hands_forever)
                if self._recorder is not None:
                    nursery.start_soon(
                        self._recorder.run, self.wake, self._release, self._take_back
                    )
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
        recorder = self._recorder
        if recorder is not None and recorder.has_news:
            recorder.settle()
        if self.pump is None:
            return self._epoll.poll(0, MAX_EVENTS) or None
        started = self._clock()
        self._dispatch.look_at_clock()
        cannot_record = recorder is not None and recorder.unavailable_because is not None
        rests, counts = self.pump.tick(cannot_record)
        answered = sum(counts)
        if answered:
            held = self._hold_pumped(self.pump, started) if self.pump.held else 0
            self._measure_pumped(self.pump, counts, started, held)
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
            self._deadlines.stalled.setdefault(peer, now + self.limits.write_seconds)
        if data:
            peer.arrived = now
            # At most MAX_CHUNK, into an empty connection: this cannot be too much.
            peer.connection.receive_data_untrusted(data)
            peer.has_more = True
        if peer.has_more and not peer.out:
            self._backlog[fd] = peer
        self._register(peer)
        return (fd, mask) if mask else None

    def _hold_pumped(self, pump: Pump, now: float) -> int:
        """Keep the pump's answers until their records are durable; return how many."""
        total = 0
        for fd, answers, position, count in pump.held:
            peer = self._peers[fd]
            self._held.hold(peer, answers, position, count, now)
            total += count
            if peer.is_full:
                self._register(peer)
        return total

    def _measure_pumped(self, pump: Pump, counts: Sequence[int], started: float, held: int) -> None:
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
        if answered > held:
            meter.duration.observe(self._clock() - started, answered - held)
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

    def _peer_event(self, peer: Peer, mask: int, now: float, work: _Work) -> None:
        if mask & select.EPOLLOUT:
            self._flush(peer)
        if peer.is_half_open:
            self._half_open_event(peer, mask)
            return
        if not mask & (select.EPOLLIN | _HANGUP) or not peer.is_open:
            return
        if peer.is_at_eof or ((peer.out or peer.is_full) and mask & _HANGUP):
            # It had closed its side already, and now nobody is left to answer to.
            self._close(peer, "reset")
        elif peer.has_more or peer.out or peer.is_full:
            pass  # its turn comes by itself
        elif len(work.asks) < MAX_NEW_ASKS_PER_TICK:
            # Whoever is not read now is reported again.
            self._read(peer, now)
            self._take_asks(peer, work)

    # Handshakes ---------------------------------------------------------------------------------------

    def _half_open_event(self, peer: Peer, mask: int) -> None:
        if mask & _HANGUP:
            self._close(peer, "reset")
        elif mask & select.EPOLLIN and peer.is_open and not peer.is_in_turn:
            # It is read when its turn comes; until then, what it sends stays in the kernel.
            self._lines.line_up(peer)
            self._register(peer)

    async def _shake_hands_forever(self) -> None:
        """Take steps of handshakes on another thread: OpenSSL lets go of the interpreter meanwhile."""
        lines = self._lines
        while True:
            await lines.wanted.wait()
            steps = self._read_steps()
            judgements = lines.next_judgements()
            if not steps and not judgements:
                lines.wanted = trio.Event()
                continue
            await trio.to_thread.run_sync(
                work_off, steps, judgements, limiter=self._one_thread, abandon_on_cancel=True
            )
            for step in steps:
                self._end_step(step)
            for judgement in judgements:
                if judgement.error is not None:
                    self._fail(judgement.peer, judgement.error)
            self._door.room()
            if self._backlog or self._is_draining:
                self.wake()

    def _read_steps(self) -> list[Step]:
        """Read from those whose turn it is."""
        steps: list[Step] = []
        while len(steps) < MAX_STEPS_AT_ONCE:
            peer = self._lines.handshakes.next()
            if peer is None:
                break
            try:
                data = peer.sock.recv(MAX_CIPHERTEXT)
            except (BlockingIOError, InterruptedError):
                self._rest(peer)
            except OSError:
                self._close(peer, "reset")
            else:
                steps.append(self._lines.step(peer, data))
        return steps

    def _rest(self, peer: Peer) -> None:
        self._lines.handshakes.rest(peer)
        self._register(peer)

    def _end_step(self, step: Step) -> None:
        """Go on with a line after its step: with its handshake, with its first question, or with its end."""
        peer, tls = step.peer, step.tls
        if not peer.is_open:
            return
        try:
            if step.error is None and not tls.is_handshaking:
                self._lines.open(peer)
        except TlsFault as fault:
            step.error = fault
        if step.error is not None:
            self._fail(peer, step.error)
            return
        peer.out += tls.data_to_send()
        if tls.is_handshaking:
            peer.is_answered = peer.is_answered or bool(peer.out)
            self._lines.handshakes.rest(peer)
        else:
            self._begin_conversation(peer, step.plaintext)
            surplus = self._lines.surplus()
            if surplus is not None:
                self._break_off(surplus, Overloaded("others want to enrol as well"), "surplus")
        self._flush(peer)

    def _begin_conversation(self, peer: Peer, plaintext: bytes) -> None:
        """Expect questions of a line that is open; some may have come with the end of its handshake."""
        now = peer.arrived = self._clock()
        del self._deadlines.handshaking[peer]
        self._deadlines.fresh[peer] = now + self.limits.first_message_seconds
        try:
            peer.connection.receive_data_untrusted(plaintext)
        except RemoteProtocolError as error:
            self._break_off(peer, Malformed(str(error)), "malformed")
            return
        peer.is_at_eof = peer.tls is not None and peer.tls.state is TlsState.PEER_CLOSED
        peer.has_more = bool(plaintext) or peer.is_at_eof

    def _fail(self, peer: Peer, error: Exception) -> None:
        if not peer.is_open:
            return
        if isinstance(error, TlsFault):
            self._give_up(peer, error)
        else:
            self._events.bug("line_failed", error, connection=peer.session.number)
            self._close(peer, "internal")

    def _now(self) -> int:
        return int(self._unix_clock())

    # Reading ------------------------------------------------------------------------------------------

    def _read(self, peer: Peer, now: float) -> bool:
        """Read once. Return whether anything came, or the end did."""
        try:
            count = peer.sock.recv_into(self._buffer if peer.tls is None else self._ciphertext)
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
        try:
            if count == 0:
                self._lines.end(peer)
                peer.is_at_eof = True
                return True
            peer.arrived = now
            peer.connection.receive_data_untrusted(self._lines.decrypt(peer, self._view[:count]))
        except TlsFault as fault:
            self._give_up(peer, fault)
            return False
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

    def _take_asks(self, peer: Peer, work: _Work) -> None:
        if peer.close_reason is not None or not peer.is_open or peer.is_full:
            return  # a full one comes again once what it waits for has left
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
            del self._deadlines.fresh[peer]
            self._deadlines.look_later(peer, peer.arrived + self.limits.idle_seconds)
        peer.asked_at = peer.arrived
        session = peer.session
        work.asks.extend([(session, ask) for ask in asks])
        work.askers.append((peer, len(asks)))

    # Answering ----------------------------------------------------------------------------------------

    def _answer(self, work: _Work) -> None:
        clock = self._clock
        meter = self._meter
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
                    self._start_slow(peer, answer)
                elif position or peer.held:
                    wait = 0 if place in free else position
                    held += self._say(peer, answer, wait, 1, peer.arrived)
                else:
                    peer.say(answer)
            at += count
            if peer.session.must_close:
                peer.close_reason = "not_authentic"
            self._flush(peer)
            if count > held:
                meter.duration.observe(clock() - peer.arrived, count - held)

    def _say(
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

    def _release(self) -> None:
        """Let go what the disk has by now."""
        if self._recorder is not None:
            self._flush_all(self._held.release(self._recorder.durable))

    def _take_back(self) -> None:
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
            self._flush(peer)
        if self._backlog or self._is_draining:
            self.wake()

    def _start_slow(self, peer: Peer, slow: Slow) -> None:
        refusal: Refusal | None = None
        is_late = _waits_for_psams(slow)
        # Neither keeps the other out.
        if is_late:
            in_flight, most = peer.late, MAX_LATE_PER_CONNECTION
            is_overloaded = self._late >= MAX_LATE
        else:
            in_flight, most = peer.in_flight - peer.late, MAX_SLOW_PER_CONNECTION
            is_overloaded = self._slow - self._late >= MAX_SLOW
        if in_flight >= most:
            refusal = TooManyInFlight()
        elif is_overloaded:
            refusal = Overloaded()
        if refusal is not None:
            decided = self._dispatch.refuse_slow(slow, refusal)
            self._say_decided(peer, decided)
            return
        if self._nursery is None:
            raise RuntimeError("the hub is not running")
        peer.in_flight += 1
        self._slow += 1
        peer.late += is_late
        self._late += is_late
        self._nursery.start_soon(self._run_slow, peer, slow)

    async def _run_slow(self, peer: Peer, slow: Slow) -> None:
        try:
            decided = await self._dispatch.run_slow(slow)
        finally:
            is_late = _waits_for_psams(slow)
            peer.in_flight -= 1
            self._slow -= 1
            peer.late -= is_late
            self._late -= is_late
        if peer.is_open:
            self._say_decided(peer, decided)
            if peer.session.must_close:
                peer.close_reason = peer.close_reason or "not_authentic"
            self._flush(peer)

    def _say_decided(self, peer: Peer, decided: Decided) -> None:
        for answer in decided.answers:
            if not isinstance(answer, Slow):
                self._say(peer, answer, decided.position)

    # Writing ------------------------------------------------------------------------------------------

    def _flush(self, peer: Peer) -> None:
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
                self._close(peer, "reset")
                return
            if sent < len(out):
                del out[:sent]
                if len(out) > MAX_OUTPUT:
                    self._close(peer, "slow_reader")
                    return
                # From the first byte that had to wait until the last has left: a trickle is no progress.
                self._deadlines.stalled.setdefault(peer, self._clock() + self.limits.write_seconds)
                self._register(peer)
                return
            out.clear()
            self._deadlines.stalled.pop(peer, None)
        if peer.has_more:
            if not peer.is_full:
                self._backlog[peer.fd] = peer
        elif peer.close_reason is not None and not peer.in_flight and not peer.held:
            if self._lines.say_goodbye(peer):
                self._flush(peer)
            else:
                self._linger(peer)
            return
        self._register(peer)

    def _admit(self, peer: Peer) -> None:
        """Let the pump read a connection of which Python holds nothing, and no other."""
        if self.pump is None:
            return
        terminal = peer.session.terminal
        if peer.is_admitted and terminal is not peer.pumped_as:
            # Somebody else by now, or the same with other rights: the pump has to be told anew.
            self._keep_from_pump(self.pump, peer)
        wanted = (
            peer.is_open
            # It reads the socket itself.
            and peer.tls is None
            and terminal is not None
            and (self._recorder is None or self._recorder.unavailable_because is None)
            and peer.is_registered_for == select.EPOLLIN
            and peer.close_reason is None
            and not peer.has_more
            and not peer.out
            and not peer.connection.has_partial
        )
        if wanted and not peer.is_admitted:
            self._let_pump(self.pump, peer)
        elif peer.is_admitted and not wanted:
            self._keep_from_pump(self.pump, peer)

    def _let_pump(self, pump: Pump, peer: Peer) -> None:
        session, terminal = peer.session, peer.session.terminal
        connection = number = roles = region = 0
        allowance = _UNLIMITED
        if self._recorder is not None:
            connection = session.number & 0xFFFF_FFFF
            number = self._recorder.numbers.terminal(session)
        gate = self._dispatch.gate
        if gate is not None and terminal is not None:
            allowance = gate.allowance(terminal.asker, self._clock())
            if not allowance:
                return  # the long way refuses
            roles, region = gate.role_set(terminal), gate.region(terminal)
        peer.is_admitted = True
        peer.pumped_as, peer.allowance = terminal, allowance
        pump.admit(peer.fd, connection, number, roles, region, allowance)

    def _keep_from_pump(self, pump: Pump, peer: Peer) -> None:
        # The pump forgets when it is given the connection again.
        peer.asked_at = max(peer.asked_at, pump.served_at(peer.fd))
        answered = peer.allowance - pump.dismiss(peer.fd)
        gate, terminal = self._dispatch.gate, peer.pumped_as
        if gate is not None and terminal is not None:
            gate.charge(terminal.asker, self._clock(), answered)
        peer.is_admitted = False
        peer.pumped_as = None

    def _register(self, peer: Peer) -> None:
        if peer.out:
            wanted = select.EPOLLOUT
        elif peer.is_at_eof or peer.is_full or peer.is_in_turn:
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
        else:
            self._door.knock(fd)

    def _has_room(self, entrance: Entrance) -> bool:
        """Whether one more may come in, now or in place of another."""
        return (
            entrance.context is None
            or len(self._lines.handshakes) < self.limits.handshakes
            or self._lines.handshakes.whom_to_drop() is not None
        )

    def _make_room(self, entrance: Entrance) -> bool:
        """Drop a half-open line for a newcomer if one has to be. Return whether there is room then."""
        handshakes = self._lines.handshakes
        # Officers come in though terminals take all the room there is: there is spare for a few.
        spare = SPARE_FOR_OFFICERS if entrance.is_administration else 0
        is_full = len(self._peers) >= self.limits.connections + spare
        has_too_many = entrance.context is not None and len(handshakes) >= self.limits.handshakes
        if is_full or has_too_many:
            dropped = handshakes.whom_to_drop()
            if dropped is None:
                return False
            self._lines.count_failure(dropped, "dropped")
            self._close(dropped, "handshake_dropped")
        return True

    def _open(self, sock: socket.socket, entrance: Entrance) -> None:
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
        self._peers[peer.fd] = peer
        self._epoll.register(peer.fd, select.EPOLLIN)
        if entrance.context is None:
            self._deadlines.fresh[peer] = peer.arrived + self.limits.first_message_seconds
        else:
            self._lines.begin(peer, entrance, entrance.context)
            self._deadlines.handshaking[peer] = peer.arrived + self.limits.handshake_seconds
        self._meter.opened()
        self._events.peer("connection_opened", connection=session.number, source=session.source)

    def _break_off(self, peer: Peer, refusal: Refusal, reason: str) -> None:
        """Say one last thing, and close once it has left."""
        if peer.close_reason is None and peer.is_open:
            peer.close_reason = reason
            peer.has_more = False
            self._say(peer, refusal_bytes(None, refusal))
            self._flush(peer)

    def _give_up(self, peer: Peer, fault: TlsFault) -> None:
        """End a line whose TLS is not good: an alert if there is one, and not a word of the protocol."""
        self._lines.give_up(peer, fault)
        peer.close_reason = "tls_fault"
        peer.has_more = False
        if peer.out:
            with contextlib.suppress(OSError):
                del peer.out[: peer.sock.send(peer.out)]
        # A line that was never open is not lingered for: whoever can connect could fill keyd with such.
        if peer.is_half_open or peer.is_at_eof or peer.out:
            self._close(peer, "tls_fault")
        else:
            self._linger(peer)

    def _finish(self, peer: Peer, reason: str) -> None:
        """Close once everything has left."""
        if peer.close_reason is None:
            peer.close_reason = reason
            self._flush(peer)

    def _linger(self, peer: Peer) -> None:
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
        self._deadlines.lingering[peer] = self._clock() + LINGER_SECONDS
        self._register(peer)

    def _close(self, peer: Peer, reason: str) -> None:
        if not peer.is_open:
            return
        peer.is_open = False
        self._admit(peer)
        del self._peers[peer.fd]
        self._lines.forget(peer)
        self._deadlines.forget(peer, len(self._peers))
        self._backlog.pop(peer.fd, None)
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

    def _close_all(self) -> None:
        self._events.say_left_out()
        for peer in list(self._peers.values()):
            self._close(peer, "stopped")
        self._door.close()
        self._epoll.close()
        os.close(self._wake_fd)

    # Time ---------------------------------------------------------------------------------------------

    async def _sweep_forever(self) -> None:
        while True:
            await trio.sleep(SWEEP_SECONDS)
            self._sweep()

    def _sweep(self) -> None:
        now = self._clock()
        self._events.say_left_out()
        self._door.resume(now)
        self._door.room()
        for peer in expired(self._deadlines.handshaking, now):
            self._lines.count_failure(peer, "timeout")
            self._close(peer, "handshake_timeout")
        for peer in self._lines.expired():
            self._finish(peer, "certificate_expired")
        for peer in expired(self._deadlines.fresh, now):
            self._break_off(peer, TimedOut("no message came"), "no_first_message")
        for peer in self._deadlines.due_looks(now):
            self._look(peer, now)
        for peer in self._peers.values():
            # Dispatch sees for itself; the pump has no clock for this, so it is a sweep late at most.
            if now >= peer.session.until:
                peer.session.expire(now)
                self._admit(peer)
        for peer in expired(self._deadlines.stalled, now):
            self._close(peer, "slow_reader")
        for peer in expired(self._deadlines.lingering, now):
            self._close(peer, peer.close_reason or "closed")
        if now >= self._tickets_until:
            self._tickets_until = now + TICKET_KEY_SECONDS
            for entrance in self._door.entrances:
                if entrance.context is not None:
                    entrance.context.rotate_ticket_keys()
        if self._is_draining:
            self.wake()

    def _look(self, peer: Peer, now: float) -> None:
        """End a connection that has been idle for too long, or look again when it may have been."""
        if not peer.is_open:
            return
        spoke_at = max(peer.asked_at, self.pump.served_at(peer.fd) if self.pump else 0.0)
        if peer.in_flight or peer.out or peer.held:
            spoke_at = now  # it waits for us, not we for it; the write deadline bounds that
        if spoke_at + self.limits.idle_seconds > now:
            self._deadlines.look_later(peer, spoke_at + self.limits.idle_seconds)
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
            elif peer.is_half_open:
                self._close(peer, "drained")
            elif peer.is_lingering or peer.has_more or peer.in_flight or peer.out or peer.held:
                continue  # not quiet yet
            elif self._read(peer, now):
                self._register(peer)
                # Something had arrived: it is answered in the next tick, before the line is closed.
                peer.has_more = peer.is_open and peer.close_reason is None
                if peer.has_more:
                    self._backlog[peer.fd] = peer
            else:
                self._finish(peer, "drained")


def _waits_for_psams(slow: Slow) -> bool:
    return slow.late is not None or slow.command.family == PSAM_FAMILY


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
