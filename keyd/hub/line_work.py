"""What encrypted lines cost, beside the tick: steps of handshakes, judgements, and what comes of both.

One task has them worked off on another thread, a few at a time: OpenSSL lets go of the interpreter meanwhile. What
comes of them is decided on the hub's own thread.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

import trio

from keyd.errors import Malformed, Overloaded, RemoteProtocolError
from keyd.hub.connections import HANGUP
from keyd.hub.limits import MAX_CIPHERTEXT, MAX_STEPS_AT_ONCE
from keyd.hub.lines import work_off
from keyd.tls import TlsFault, TlsState

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyd.hub.connections import Connections
    from keyd.hub.door import Door
    from keyd.hub.lines import Lines, Step
    from keyd.hub.peer import Peer
    from keyd.telemetry import Events


class LineWork:
    """The work for the encrypted lines of one hub. `go_on` is told when the tick may have something to do by it."""

    def __init__(
        self,
        lines: Lines,
        connections: Connections,
        door: Door,
        events: Events,
        clock: Callable[[], float],
        go_on: Callable[[], None],
    ) -> None:
        self._lines = lines
        self._connections = connections
        self._door = door
        self._events = events
        self._clock = clock
        self._go_on = go_on
        self._one_thread = trio.CapacityLimiter(1)

    def half_open_event(self, peer: Peer, mask: int) -> None:
        """Take note that something has come on a half-open line."""
        if mask & HANGUP:
            self._connections.close(peer, "reset")
        elif mask & select.EPOLLIN and peer.is_open and not peer.is_in_turn:
            # It is read when its turn comes; until then, what it sends stays in the kernel.
            self._lines.line_up(peer)
            self._connections.register(peer)

    async def run(self) -> None:
        """Work off what there is, whenever there is some."""
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
            self._go_on()

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
                self._lines.handshakes.rest(peer)
                self._connections.register(peer)
            except OSError:
                self._connections.close(peer, "reset")
            else:
                steps.append(self._lines.step(peer, data))
        return steps

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
                refusal = Overloaded("others want to enrol as well")
                self._connections.break_off(surplus, refusal, "surplus")
        self._connections.flush(peer)

    def _begin_conversation(self, peer: Peer, plaintext: bytes) -> None:
        """Expect questions of a line that is open; some may have come with the end of its handshake."""
        connections = self._connections
        now = peer.arrived = self._clock()
        del connections.deadlines.handshaking[peer]
        connections.deadlines.fresh[peer] = now + connections.limits.first_message_seconds
        try:
            peer.connection.receive_data_untrusted(plaintext)
        except RemoteProtocolError as error:
            connections.break_off(peer, Malformed(str(error)), "malformed")
            return
        peer.is_at_eof = peer.tls is not None and peer.tls.state is TlsState.PEER_CLOSED
        peer.has_more = bool(plaintext) or peer.is_at_eof

    def _fail(self, peer: Peer, error: Exception) -> None:
        if not peer.is_open:
            return
        if isinstance(error, TlsFault):
            self._connections.give_up(peer, error)
        else:
            self._events.bug("line_failed", error, connection=peer.session.number)
            self._connections.close(peer, "internal")
