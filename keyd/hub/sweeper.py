"""The sweep: every so often, the consequences of time are drawn for all connections, the door and the lines.

Nothing here is urgent. Deadlines are seconds, and a sweep may be late by its whole interval.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyd.errors import TimedOut
from keyd.hub.deadlines import expired
from keyd.hub.limits import TICKET_KEY_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyd.hub.admission import Admission
    from keyd.hub.connections import Connections
    from keyd.hub.door import Door
    from keyd.hub.lines import Lines
    from keyd.hub.peer import Peer
    from keyd.telemetry import Events


class Sweeper:
    """Ends what has taken too long in one hub, and renews what is to be renewed."""

    def __init__(
        self,
        connections: Connections,
        lines: Lines,
        admission: Admission,
        door: Door,
        events: Events,
        clock: Callable[[], float],
    ) -> None:
        self._connections = connections
        self._lines = lines
        self._admission = admission
        self._door = door
        self._events = events
        self._clock = clock
        self._tickets_until = clock() + TICKET_KEY_SECONDS

    def sweep(self) -> None:
        """Look once at everything that may be due."""
        now = self._clock()
        connections = self._connections
        deadlines = connections.deadlines
        self._events.say_left_out()
        self._door.resume(now)
        self._door.room()
        for peer in expired(deadlines.handshaking, now):
            self._lines.count_failure(peer, "timeout")
            connections.close(peer, "handshake_timeout")
        for peer in self._lines.expired():
            connections.finish(peer, "certificate_expired")
        for peer in expired(deadlines.fresh, now):
            connections.break_off(peer, TimedOut("no message came"), "no_first_message")
        for peer in deadlines.due_looks(now):
            self._look(peer, now)
        for peer in connections.peers.values():
            # Dispatch sees for itself; the pump has no clock for this, so it is a sweep late at most.
            if now >= peer.session.until:
                peer.session.expire(now)
                self._admission.review(peer)
        for peer in expired(deadlines.stalled, now):
            connections.close(peer, "slow_reader")
        for peer in expired(deadlines.lingering, now):
            connections.close(peer, peer.close_reason or "closed")
        if now >= self._tickets_until:
            self._tickets_until = now + TICKET_KEY_SECONDS
            self._renew_ticket_keys()

    def _look(self, peer: Peer, now: float) -> None:
        """End a connection that has been idle for too long, or look again when it may have been."""
        if not peer.is_open:
            return
        connections = self._connections
        spoke_at = self._admission.asked_at(peer)
        if peer.in_flight or peer.out or peer.held:
            spoke_at = now  # it waits for us, not we for it; the write deadline bounds that
        idle_at = spoke_at + connections.limits.idle_seconds
        if idle_at > now:
            connections.deadlines.look_later(peer, idle_at)
        else:
            connections.break_off(peer, TimedOut(), "idle")

    def _renew_ticket_keys(self) -> None:
        for entrance in self._door.entrances:
            if entrance.context is not None:
                entrance.context.rotate_ticket_keys()
