"""What was seen of terminals since somebody last took note: counted on the tick, written down now and then.

It helps an operator and proves nothing; what has to be proven is in the journal.
"""

from __future__ import annotations

from typing import Final, NamedTuple

# Enrolled terminals that one keyd hears of between two writes. Codes of strangers are not counted here.
MAX_TERMINALS: Final = 65_536


class Seen(NamedTuple):
    """One terminal: when last (Unix seconds), from where, and how often it proved itself or not."""

    last_seen: int
    last_source: str
    authentications: int
    failures: int


_NEVER: Final = Seen(0, "", 0, 0)


class SeenTerminals:
    """The counters of one keyd, for enrolled terminals only."""

    def __init__(self) -> None:
        self._seen: dict[str, Seen] = {}

    def authenticated(self, code: str, source: str, now: float) -> None:
        """Note that a terminal has proven itself."""
        before = self._of(code)
        self._seen[code] = Seen(int(now), source, before.authentications + 1, before.failures)

    def failed(self, code: str, _source: str, _now: float) -> None:
        """Note that somebody failed to prove to be this terminal: it need not have been there, so it was not seen."""
        before = self._of(code)
        self._seen[code] = before._replace(failures=before.failures + 1)

    def take(self) -> dict[str, Seen]:
        """Return what was seen since this was last asked, and begin anew."""
        seen, self._seen = self._seen, {}
        return seen

    def put_back(self, seen: dict[str, Seen]) -> None:
        """Count again what was taken and could not be written."""
        for code, one in seen.items():
            since = self._of(code)
            newest = max(one, since, key=lambda moment: moment.last_seen)
            self._seen[code] = Seen(
                newest.last_seen,
                newest.last_source,
                one.authentications + since.authentications,
                one.failures + since.failures,
            )

    def _of(self, code: str) -> Seen:
        if code not in self._seen and len(self._seen) >= MAX_TERMINALS:
            del self._seen[next(iter(self._seen))]
        return self._seen.get(code, _NEVER)
