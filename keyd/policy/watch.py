"""What is watched of single cards: a ceiling of PIN resets a day, and what looks like a copied or attacked card.

Card identifiers are a peer's to make up, so nothing here may grow with them or be pushed out by them where that would
let somebody through. The ceiling is therefore a table of fixed size that can only count too much, never too
little. The anomalies are memory of what was seen last: a flood can make keyd forget, and forgetting is counted.
"""

from __future__ import annotations

import enum
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, Protocol

from msgspec import Struct

from keyd.errors import CardLimit

if TYPE_CHECKING:
    from keyd.policy.limits import CardLimits

# The ceiling's counters: ROWS rows of 2**20 bytes, 4 MiB however many cards there are. A card is counted too high only
# if in every row somebody else shares its counter. Measured: with 100,000 other cards in one day, one card in ten
# thousand is counted one too high; with a million, one in seven is one too high, and of 100,000 none two too high.
ROWS: Final = 4
COLUMNS: Final = 2**20

# A counter is a byte, and no ceiling is above 100.
_FULL: Final = 255

# Cards that the anomaly counters remember, each. About 250 bytes for one, so 16 MiB; at a thousand cards a second a
# minute's worth.
MAX_WATCHED: Final = 65_536

_DAY_SECONDS: Final = 86_400
_KEY_BYTES: Final = 16


class Strange(enum.StrEnum):
    """What was noticed; the label of a metric."""

    TWO_REGIONS = "two_regions"
    MANY_FAILURES = "many_failures"


class DailyCeiling:
    """Counts per card and local day, in fixed memory. Never counts too little; a rare card is counted too high."""

    def __init__(
        self, most: int, secret: bytes, utc_offset_minutes: int, columns: int = COLUMNS
    ) -> None:
        """Take a secret of 16 random bytes: nobody can choose cards that share another's counters."""
        if len(secret) != _KEY_BYTES:
            raise ValueError(f"the secret has {_KEY_BYTES} bytes")
        self.most = most
        self._secret = secret
        self._columns = columns
        self._offset_seconds = utc_offset_minutes * 60
        self._day: int | None = None
        self._counters = bytearray()

    def count(self, card: bytes, now: int) -> None:
        """Count one for this card, now (seconds of Unix time).

        Raises:
            CardLimit: it has had as many today as it may. It is not counted.
        """
        self._turn_to((now + self._offset_seconds) // _DAY_SECONDS)
        counters = self._counters
        places = self._places(card)
        counted = min(counters[place] for place in places)
        if counted >= min(self.most, _FULL):
            raise CardLimit(f"this card's PIN was reset {self.most} times today")
        for place in places:
            # Only the lowest are raised: the others have this card's count already, and more of somebody else's.
            if counters[place] == counted:
                counters[place] = counted + 1

    def _places(self, card: bytes) -> list[int]:
        digest = blake2b(card, digest_size=4 * ROWS, key=self._secret).digest()
        return [
            row * self._columns
            + int.from_bytes(digest[4 * row : 4 * row + 4], "big") % self._columns
            for row in range(ROWS)
        ]

    def _turn_to(self, today: int) -> None:
        day = self._day
        if day is None or today > day:
            self._counters = bytearray(ROWS * self._columns)
            self._day = today
        elif today < day - 1:
            # The clock was far ahead and was put right. What was counted goes on counting.
            self._day = today
        # One day back is midnight seen twice: the counters stay those of the later day.


class _Failed(Struct):
    """Failures on one card: the window's beginning, how many in it, and how many in the one before."""

    window: int
    count: int
    before: int


class Seen(Protocol):
    """Where each card was seen last. The native tick brings one that it shares; `SeenCards` is one in Python."""

    @property
    def forgotten(self) -> int:
        """Cards that were forgotten while they still mattered."""

    def find(self, card: bytes) -> tuple[int, int] | None:
        """Return the region and the second in which a card was seen last."""

    def put(self, card: bytes, region: int, at: int, window: int) -> None:
        """Note where a card is, at that second; what is older than the window may be forgotten for it."""


class SeenCards:
    """Where each card was seen last, of so many cards: the one that was not seen for longest makes room."""

    def __init__(self, most: int = MAX_WATCHED) -> None:
        self._most = most
        self._seen: dict[bytes, tuple[int, int]] = {}
        self.forgotten = 0

    def __len__(self) -> int:
        return len(self._seen)

    def find(self, card: bytes) -> tuple[int, int] | None:
        """Return the region and the second in which a card was seen last."""
        return self._seen.get(card)

    def put(self, card: bytes, region: int, at: int, window: int) -> None:
        """Note where a card is, at that second; what is older than the window may be forgotten for it."""
        if self._seen.pop(card, None) is None:
            self._make_room(window, at)
        self._seen[card] = (region, at)

    def _make_room(self, window: int, now: int) -> None:
        # Two for each that comes: what has expired goes faster than it comes, at a bounded price.
        for _ in range(2):
            if not self._seen:
                return
            oldest = next(iter(self._seen))
            is_full = len(self._seen) >= self._most
            has_expired = now - self._seen[oldest][1] >= window
            if not (is_full or has_expired):
                return
            del self._seen[oldest]
            self.forgotten += not has_expired


def region_number(region: str, digits: int) -> int:
    """Return the first digits of a terminal's region as a number; 0 if it has none, and is not watched."""
    return int(region[:digits] or 0)


class Watch:
    """The anomaly counters. `notice…` returns what is strange, for a metric; whether to deny is the file's to say.

    Seconds are of one clock that never goes back.
    """

    def __init__(
        self, limits: CardLimits, seen: Seen | None = None, most: int = MAX_WATCHED
    ) -> None:
        self._limits = limits
        self._most = most
        self._seen: Seen = seen if seen is not None else SeenCards(most)
        self._failed: dict[bytes, _Failed] = {}
        self._forgotten = 0

    @property
    def forgotten(self) -> int:
        """Cards that were forgotten while they still mattered. If it grows, the counters see too little."""
        return self._forgotten + self._seen.forgotten

    def notice(self, card: bytes, terminal_region: str, now: int) -> Strange | None:
        """Take note that a card is at a terminal of this region, now (seconds); return what is strange about it.

        Raises:
            CardLimit: it was elsewhere minutes ago, or failed often, and the policy says to deny that.
        """
        limits = self._limits
        region = region_number(terminal_region, limits.region_digits)
        if region and self._is_elsewhere(card, region, now):
            return Strange.TWO_REGIONS
        if self._failed and self._failures(card, now) >= limits.failures:
            if limits.deny_failures:
                raise CardLimit("too much failed with this card; wait")
            return Strange.MANY_FAILURES
        return None

    def _is_elsewhere(self, card: bytes, region: int, now: int) -> bool:
        window = self._limits.region_minutes * 60
        last = self._seen.find(card)
        is_elsewhere = last is not None and last[0] != region and now - last[1] < window
        if is_elsewhere and self._limits.deny_two_regions:
            # It stays where it was, or asking twice would be a way around; and when it was, or asking on and on from
            # elsewhere would lock the card out at home.
            raise CardLimit("this card was in another region minutes ago")
        self._seen.put(card, region, now, window)
        return is_elsewhere

    def notice_failure(self, card: bytes, now: int) -> Strange | None:
        """Take note that something failed to verify with this card; return what is strange, when it becomes so."""
        window = now // (self._limits.failure_minutes * 60)
        before = self._failures(card, now)
        failed = self._failed.pop(card, None)
        if failed is None:
            if len(self._failed) >= self._most:
                oldest = next(iter(self._failed))
                self._forgotten += self._failed.pop(oldest).window >= window - 1
            failed = _Failed(window, 0, 0)
        _turn(failed, window)
        failed.count += 1
        self._failed[card] = failed
        return Strange.MANY_FAILURES if before + 1 == self._limits.failures else None

    def _failures(self, card: bytes, now: int) -> int:
        failed = self._failed.get(card)
        if failed is None:
            return 0
        _turn(failed, now // (self._limits.failure_minutes * 60))
        return failed.count + failed.before


def _turn(failed: _Failed, window: int) -> None:
    """Begin a new window if it is time. A clock that went backwards begins none."""
    if window > failed.window:
        failed.before = failed.count if window == failed.window + 1 else 0
        failed.window, failed.count = window, 0
