"""Who said a wrong MAC2 to a shared PSAM, and how often in a row.

A PSAM that was told too many wrong ones in a row locks its application for good, whoever told them. So nobody may begin
another purchase on a shared one who was wrong a few times: one terminal that is broken, or stolen, takes the PSAM from
nobody else.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from keyd.errors import NotAllowed

# Fifteen lock a PSAM [I]; so it takes five terminals at the same time.
MOST_IN_A_ROW: Final = 3

# A card that was pulled too early makes a wrong one; nobody does that three times in ten minutes.
FORGOTTEN_AFTER_SECONDS: Final = 600.0

# Terminals that are remembered, more than may have a PSAM open.
MAX_REMEMBERED: Final = 8192


class WrongProofs:
    """Wrong MAC2s in a row, by terminal. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def require_few(self, terminal: str, now: float) -> None:
        """Refuse a terminal that was wrong too often of late.

        Raises:
            NotAllowed: it was.
        """
        count, last = self._wrong.get(terminal, (0, 0.0))
        if count >= MOST_IN_A_ROW and now < last + FORGOTTEN_AFTER_SECONDS:
            raise NotAllowed(
                f"MAC2 was wrong {count} times in a row: no purchases on shared PSAMs for a while"
            )

    def note(self, terminal: str, now: float, *, is_right: bool) -> None:
        """Take note of what came of a MAC2."""
        count, last = self._wrong.pop(terminal, (0, 0.0))
        if is_right:
            return
        if now >= last + FORGOTTEN_AFTER_SECONDS:
            count = 0
        self._wrong[terminal] = (count + 1, now)
        if len(self._wrong) > MAX_REMEMBERED:
            self._wrong.popitem(last=False)
