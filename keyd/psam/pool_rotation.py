"""Who waits for one member, and who comes next: fairness is between askers, and not between their tickets.

Next is who was served longest ago; who was never served comes before all others. Of one asker's tickets the oldest is
first. So nobody gets a second turn of a member while somebody waits who had none since the first, however many tickets
the one has and however late the other came.

A ticket that several members could serve waits with each of them, and when one has served it, all the others count
that too: otherwise who has many such tickets would be served by all members at once. But it does not count where the
asker waits for this member alone. A session would have to wait there for what others are served elsewhere.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from keyd.psam.pool_terms import Ticket

# Of how many askers it is known when they were served last: more than have a session. One that was forgotten was not
# served for long, and counts as if it never was.
MAX_REMEMBERED: Final = 8192

# So many outdated entries are left where they are, beside as many as there are good ones.
MAX_OUTDATED: Final = 64

# When served last, number of the ticket that came first, asker.
Rank = tuple[int, int, str]


@dataclass(eq=False)
class _Waiting:
    """One asker who waits."""

    rank: Rank
    tickets: dict[Ticket, None] = field(default_factory=dict)
    # How many of them are a session's: no other member can serve them.
    pinned: int = 0


class Rotation:
    """The tickets that wait for one member."""

    def __init__(self) -> None:
        self._waiting: dict[str, _Waiting] = {}
        # The ranks of all who wait, the next first, among others that are outdated.
        self._ranks: list[Rank] = []
        self._served: OrderedDict[str, int] = OrderedDict()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def add(self, ticket: Ticket) -> None:
        """Let a ticket wait behind its asker's others."""
        waiting = self._waiting.get(ticket.asker)
        if waiting is None:
            rank = (self._served.get(ticket.asker, 0), ticket.number, ticket.asker)
            waiting = self._waiting[ticket.asker] = _Waiting(rank)
            self._push(rank)
        waiting.tickets[ticket] = None
        waiting.pinned += ticket.session is not None
        self._length += 1

    def remove(self, ticket: Ticket) -> None:
        """Take a ticket out."""
        waiting = self._waiting[ticket.asker]
        del waiting.tickets[ticket]
        waiting.pinned -= ticket.session is not None
        self._length -= 1
        if not waiting.tickets:
            del self._waiting[ticket.asker]

    def head(self) -> Ticket | None:
        """Return who comes next."""
        while self._ranks:
            rank = self._ranks[0]
            waiting = self._waiting.get(rank[-1])
            if waiting is not None and waiting.rank == rank:
                return next(iter(waiting.tickets))
            heappop(self._ranks)
        return None

    def served(self, asker: str, number: int, *, is_here: bool) -> None:
        """Note that an asker was served, by this member or by another that had the same ticket waiting. Numbers grow
        from turn to turn."""
        waiting = self._waiting.get(asker)
        if not is_here and waiting is not None and waiting.pinned:
            return
        self._served[asker] = number
        self._served.move_to_end(asker)
        if len(self._served) > MAX_REMEMBERED:
            self._served.popitem(last=False)
        if waiting is not None:
            waiting.rank = (number, *waiting.rank[1:])
            self._push(waiting.rank)

    def clear(self) -> list[Ticket]:
        """Take all tickets out and return them."""
        tickets = [ticket for waiting in self._waiting.values() for ticket in waiting.tickets]
        self._waiting.clear()
        self._ranks.clear()
        self._length = 0
        return tickets

    def _push(self, rank: Rank) -> None:
        heappush(self._ranks, rank)
        if len(self._ranks) > 2 * len(self._waiting) + MAX_OUTDATED:
            self._ranks = [waiting.rank for waiting in self._waiting.values()]
            heapify(self._ranks)
