"""How long turns last: which have gone on for too long, and which holders were silent for too long."""

from __future__ import annotations

from collections import OrderedDict
from math import inf
from typing import TYPE_CHECKING

from keyd.psam.pool_terms import RanOut

if TYPE_CHECKING:
    from keyd.psam.pool_terms import PoolLimits, Turn


class TurnClock:
    """The turns that there are. Both limits are the same for all, so no search is needed for who comes first."""

    def __init__(self, limits: PoolLimits) -> None:
        self._limits = limits
        # In the order in which they began.
        self._turns: dict[Turn, None] = {}
        # Those whose holder may be idle, and when it was heard of last: the longest silence first.
        self._heard: OrderedDict[Turn, float] = OrderedDict()

    def __contains__(self, turn: Turn) -> bool:
        return turn in self._turns

    def begin(self, turn: Turn) -> None:
        """Time a turn from now on, which is when it began."""
        self._turns[turn] = None
        self._heard[turn] = turn.began

    def heard(self, turn: Turn, now: float, *, is_busy: bool) -> None:
        """Note that the holder was heard of; while it is busy it is not idle."""
        self._heard.pop(turn, None)
        if not is_busy:
            self._heard[turn] = now

    def end(self, turn: Turn) -> None:
        """Time a turn no more."""
        del self._turns[turn]
        self._heard.pop(turn, None)

    def first_out(self, now: float) -> RanOut | None:
        """Return a turn that has run out, if there is one."""
        for turn in self._turns:
            if turn.began + self._limits.turn_seconds <= now:
                return RanOut(turn, was_idle=False)
            break
        for turn, heard in self._heard.items():
            if heard + self._limits.idle_seconds <= now:
                return RanOut(turn, was_idle=True)
            break
        return None

    def ends(self, turn: Turn) -> float:
        """Return when a turn runs out if its holder is heard of no more."""
        idle = self._heard.get(turn, inf) + self._limits.idle_seconds
        return min(turn.began + self._limits.turn_seconds, idle)

    def next_moment(self) -> float:
        """Return when the first of them runs out; `inf` if there is none."""
        firsts = [next(iter(turns)) for turns in (self._turns, self._heard) if turns]
        return min((self.ends(turn) for turn in firsts), default=inf)
