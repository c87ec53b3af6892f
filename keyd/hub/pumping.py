"""The pump's part of a tick: its answers are held and measured, and what it leaves is taken over.

Whom it may answer is `admission.py`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyd.errors import Status
from keyd.pump import METHODS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from keyd.dispatch import Dispatch
    from keyd.hub.connections import Connections
    from keyd.pump import Rest
    from keyd.pump._pump import Pump
    from keyd.telemetry import Meter


class Pumping:
    """The part of a hub's ticks that its pump does."""

    def __init__(
        self,
        pump: Pump,
        connections: Connections,
        dispatch: Dispatch,
        meter: Meter,
        clock: Callable[[], float],
    ) -> None:
        self._pump = pump
        self._connections = connections
        self._dispatch = dispatch
        self._meter = meter
        self._clock = clock

    def tick(self, *, cannot_record: bool) -> tuple[list[tuple[int, int]] | None, int]:
        """Let the pump work. Return what is ready for Python, None if nothing at all was, and how many are answered."""
        started = self._clock()
        self._dispatch.look_at_clock()
        rests, counts = self._pump.tick(cannot_record)
        answered = sum(counts)
        if answered:
            held = self._hold(started) if self._pump.held else 0
            self._measure(counts, answered, started, held)
        if not rests:
            return [] if answered else None, answered
        events = [event for rest in rests if (event := self._take_over(rest, started)) is not None]
        return events, answered

    def _take_over(self, rest: Rest, now: float) -> tuple[int, int] | None:
        """Go on with a connection where the pump stopped. Returns the event that is left to handle."""
        fd, mask, is_reset, data, unsent = rest
        connections = self._connections
        peer = connections.peers.get(fd)
        if peer is None:
            return fd, mask
        if is_reset:
            connections.close(peer, "reset")
            return None
        if unsent:
            peer.out += unsent
            connections.stall(peer, now)
        if data:
            peer.arrived = now
            # At most MAX_CHUNK, into an empty connection: this cannot be too much.
            peer.connection.receive_data_untrusted(data)
            peer.has_more = True
        if peer.has_more and not peer.out:
            connections.backlog[fd] = peer
        connections.register(peer)
        return (fd, mask) if mask else None

    def _hold(self, now: float) -> int:
        """Keep the pump's answers until their records are durable; return how many."""
        connections = self._connections
        total = 0
        for fd, answers, position, count in self._pump.held:
            connections.hold(connections.peers[fd], answers, position, count, now)
            total += count
        return total

    def _measure(self, counts: Sequence[int], answered: int, started: float, held: int) -> None:
        pump = self._pump
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
        peer = self._connections.peers.get(fd)
        if peer is not None:
            self._dispatch.sample_pumped(peer.session, request, answered)
