"""Slow work: requests that have left the tick, how many may, and their answers' way back.

Requests that wait for PSAMs are counted apart from all others, and neither kind keeps the other out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyd.dispatch import Slow
from keyd.errors import Overloaded, TooManyInFlight
from keyd.hub.limits import (
    MAX_LATE,
    MAX_LATE_PER_CONNECTION,
    MAX_SLOW,
    MAX_SLOW_PER_CONNECTION,
)

if TYPE_CHECKING:
    import trio

    from keyd.dispatch import Decided, Dispatch
    from keyd.errors import Refusal
    from keyd.hub.connections import Connections
    from keyd.hub.peer import Peer

# Requests to PSAMs, by the table's rows.
PSAM_FAMILY: Final = "psam"


class SlowWork:
    """The slow work of one hub, each request in a task of its own."""

    def __init__(self, dispatch: Dispatch, connections: Connections) -> None:
        # All that is under way, and how much of it waits for PSAMs.
        self.count = self.late = 0
        # Where the tasks run. The hub has one while it runs.
        self.nursery: trio.Nursery | None = None
        self._dispatch = dispatch
        self._connections = connections

    def start(self, peer: Peer, slow: Slow) -> None:
        """Start a request, or refuse it if there are too many."""
        refusal: Refusal | None = None
        is_late = _waits_for_psams(slow)
        if is_late:
            in_flight, most = peer.late, MAX_LATE_PER_CONNECTION
            is_overloaded = self.late >= MAX_LATE
        else:
            in_flight, most = peer.in_flight - peer.late, MAX_SLOW_PER_CONNECTION
            is_overloaded = self.count - self.late >= MAX_SLOW
        if in_flight >= most:
            refusal = TooManyInFlight()
        elif is_overloaded:
            refusal = Overloaded()
        if refusal is not None:
            decided = self._dispatch.refuse_slow(slow, refusal)
            self._say(peer, decided)
            return
        if self.nursery is None:
            raise RuntimeError("the hub is not running")
        peer.in_flight += 1
        self.count += 1
        peer.late += is_late
        self.late += is_late
        self.nursery.start_soon(self._run, peer, slow)

    async def _run(self, peer: Peer, slow: Slow) -> None:
        try:
            decided = await self._dispatch.run_slow(slow)
        finally:
            is_late = _waits_for_psams(slow)
            peer.in_flight -= 1
            self.count -= 1
            peer.late -= is_late
            self.late -= is_late
        if peer.is_open:
            self._say(peer, decided)
            if peer.session.must_close:
                peer.close_reason = peer.close_reason or "not_authentic"
            self._connections.flush(peer)

    def _say(self, peer: Peer, decided: Decided) -> None:
        for answer in decided.answers:
            if not isinstance(answer, Slow):
                self._connections.say(peer, answer, decided.position)


def _waits_for_psams(slow: Slow) -> bool:
    return slow.late is not None or slow.command.family == PSAM_FAMILY
