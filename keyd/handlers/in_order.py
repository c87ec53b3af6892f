"""Slow work that is done in the order in which it arrived, one after the other.

Tasks that are started together are run in any order. So a place in the queue is taken when a request arrives, in the
tick, and its task waits for its turn.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from types import TracebackType


class Queue:
    """Places in the order in which they were taken."""

    def __init__(self) -> None:
        self._turns: deque[Turn] = deque()

    def take_place(self) -> Turn:
        """Take the last place."""
        turn = Turn(self._turns)
        self._turns.append(turn)
        return turn


class Turn:
    """A place in a queue. As a context it is the turn itself: it begins when all before it have ended."""

    def __init__(self, turns: deque[Turn]) -> None:
        self._turns = turns
        self._is_next = trio.Event()
        if not turns:
            self._is_next.set()

    async def __aenter__(self) -> None:
        try:
            await self._is_next.wait()
        except BaseException:
            self.give_up()
            raise

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.give_up()

    def give_up(self) -> None:
        """Leave the place to those behind. Safe to call twice."""
        if self not in self._turns:
            return
        self._turns.remove(self)
        if self._turns:
            self._turns[0]._is_next.set()  # noqa: SLF001 - one of its own kind
