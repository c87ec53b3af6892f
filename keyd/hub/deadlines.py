"""Deadlines: who has kept keyd waiting for too long. What is done about it is the sweeper's."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from typing import TYPE_CHECKING

from keyd.hub.limits import MAX_DEAD_LOOKS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keyd.hub.peer import Peer


class Deadlines:
    """The deadlines of a hub's peers. Each kind holds its peers in the order in which they will expire."""

    def __init__(self) -> None:
        # Until the end of the handshake, the first question, the last byte of an answer, and the end of a closed line.
        self.handshaking: OrderedDict[Peer, float] = OrderedDict()
        self.fresh: OrderedDict[Peer, float] = OrderedDict()
        self.stalled: OrderedDict[Peer, float] = OrderedDict()
        self.lingering: OrderedDict[Peer, float] = OrderedDict()
        # When to look whether a peer has fallen silent: one entry for each, by time, moved only when looked at.
        self._looks: list[tuple[float, int, Peer]] = []

    def look_later(self, peer: Peer, at: float) -> None:
        """Look at a peer again at that time."""
        heapq.heappush(self._looks, (at, peer.session.number, peer))

    def due_looks(self, now: float) -> Iterator[Peer]:
        """Yield the peers to look at; whoever is to be looked at again must be said."""
        while self._looks and self._looks[0][0] <= now:
            yield heapq.heappop(self._looks)[2]

    def forget(self, peer: Peer, open_peers: int) -> None:
        """Drop the deadlines of a peer that is closed, so that few looks of closed ones are kept."""
        for deadlines in (self.handshaking, self.fresh, self.stalled, self.lingering):
            deadlines.pop(peer, None)
        if len(self._looks) > 2 * open_peers + MAX_DEAD_LOOKS:
            self._looks = [entry for entry in self._looks if entry[2].is_open]
            heapq.heapify(self._looks)


def expired(deadlines: OrderedDict[Peer, float], now: float) -> list[Peer]:
    """Take out those whose time is over."""
    over = []
    while deadlines:
        peer = next(iter(deadlines))
        if deadlines[peer] > now:
            break
        del deadlines[peer]
        over.append(peer)
    return over
