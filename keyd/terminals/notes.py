"""What the journal is told of terminals that were refused, and how often for which reason.

The peer learns none of it: every refusal looks the same on the wire. Whoever floods keyd with wrong proofs fills the
counts and not the journal, which gets so many events a second and then one that says how many it did not get.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from keyd.keys.block import Domain

if TYPE_CHECKING:
    from collections.abc import Mapping

# An operator reads them; a terminal that fails again and again is in the first few of every second.
MAX_NOTES_PER_SECOND: Final = 20


class Notes:
    """Events for the next frame of the journal."""

    def __init__(self) -> None:
        self._refused: Counter[str] = Counter()
        self._events: list[dict[str, Any]] = []
        self._second = 0
        self._noted = 0
        self._left_out = 0

    @property
    def refused(self) -> Mapping[str, int]:
        """How often terminals were refused since the start, by reason."""
        return self._refused

    def refuse(self, code: str, source: str, reason: str, now: float) -> None:
        """Note that somebody who said to be this terminal was refused. `now` is monotonic seconds."""
        self._refused[reason] += 1
        self._begin_second(now)
        if self._noted >= MAX_NOTES_PER_SECOND:
            self._left_out += 1
            return
        self._noted += 1
        self._note("terminal.refused", code=code, source=source, reason=reason)

    def take(self, now: float) -> list[dict[str, Any]]:
        """Return what the journal has not been told, each once."""
        if self._left_out:
            self._begin_second(now)
        events, self._events = self._events, []
        return events

    def _begin_second(self, now: float) -> None:
        if int(now) == self._second:
            return
        if self._left_out:
            self._note("terminal.refusals_left_out", count=self._left_out)
        self._second, self._noted, self._left_out = int(now), 0, 0

    def _note(self, event: str, **nouns: Any) -> None:
        # Terminals are LOCAL's: its officers decide about them.
        self._events.append({"event": event, "domain": Domain.LOCAL.value, **nouns})
