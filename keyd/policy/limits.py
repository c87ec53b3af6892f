"""How often: token buckets for terminals, organisations, keys and methods, and quotas of connections.

A bucket is one integer, the moment at which it will be full again (the generic cell rate algorithm). Moments
are monotonic nanoseconds times the bucket's own rate, so that a token is a whole number of them and nothing is ever
rounded: a bucket that runs for years gives exactly what its rate says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

from msgspec import Meta, Struct, field

from keyd.errors import QuotaExceeded, RateLimited

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

_NANOSECONDS: Final = 1_000_000_000

# Buckets of one kind. Terminals and organisations are enrolled, keys and methods are in tables, so no peer can make
# them up; this many enrolled terminals on one process is ten times what its connections allow.
MAX_BUCKETS: Final = 65_536


class Rate(Struct, frozen=True, forbid_unknown_fields=True):
    """So many requests in so many seconds on the average, and at most `burst` at once."""

    requests: Annotated[int, Meta(ge=1, le=1_000_000)]
    seconds: Annotated[int, Meta(ge=1, le=86_400)]
    burst: Annotated[int, Meta(ge=1, le=1_000_000)]


class Rates(Struct, frozen=True, forbid_unknown_fields=True):
    """The rates of every kind of bucket. Without one, there is no limit of that kind."""

    terminal: Rate | None = None
    organisation: Rate | None = None
    key: Rate | None = None
    # All terminals together.
    method: Rate | None = None
    # By name, in place of `method`.
    methods: dict[str, Rate] = field(default_factory=dict)


class ConnectionLimits(Struct, frozen=True, forbid_unknown_fields=True):
    """How many connections there may be at one time."""

    per_terminal: Annotated[int, Meta(ge=1, le=100_000)]
    per_organisation: Annotated[int, Meta(ge=1, le=100_000)]


class CardLimits(Struct, frozen=True, forbid_unknown_fields=True):
    """What is watched of single cards, see `keyd.policy.watch`."""

    pin_resets_per_day: Annotated[int, Meta(ge=1, le=100)]
    region_minutes: Annotated[int, Meta(ge=1, le=1440)]
    region_digits: Annotated[int, Meta(ge=2, le=6)]
    failures: Annotated[int, Meta(ge=1, le=1000)]
    failure_minutes: Annotated[int, Meta(ge=1, le=1440)]
    deny_two_regions: bool = False
    deny_failures: bool = False


class Limits(Struct, frozen=True, forbid_unknown_fields=True):
    """The [limits] of a policy file."""

    connections: ConnectionLimits
    cards: CardLimits
    rates: Rates = field(default_factory=Rates)


class Asker(Struct, frozen=True):
    """Who asks, for counting: an enrolled terminal and its organisation."""

    terminal: str
    organisation: str


class Buckets:
    """Token buckets of one rate, by name. One that is full is like one never used, and the first to be let go."""

    def __init__(self, rate: Rate, most: int = MAX_BUCKETS) -> None:
        self._requests = rate.requests
        self._token = rate.seconds * _NANOSECONDS
        self._whole = rate.burst * self._token
        self._most = most
        self._full_at: dict[Hashable, int] = {}

    def __len__(self) -> int:
        return len(self._full_at)

    def without_one(self, name: Hashable, now: int) -> int | None:
        """Return when the bucket would be full if a token were taken now, for `put`; None if there is none.

        `now` is monotonic nanoseconds. Nothing is taken.
        """
        start = now * self._requests
        full_at = self._full_at.get(name, start)
        if full_at < start:
            full_at = start
        elif full_at - start > self._whole:
            full_at = start + self._missing(name, now)
        full_at += self._token
        return full_at if full_at - start <= self._whole else None

    def put(self, name: Hashable, full_at: int, now: int) -> None:
        """Let a bucket be full at that moment."""
        if name not in self._full_at and len(self._full_at) >= self._most:
            self._make_room(now)
        self._full_at[name] = full_at

    def wait(self, name: Hashable, now: int) -> int:
        """Return the nanoseconds until a token is there."""
        over = self._missing(name, now) + self._token - self._whole
        return max(0, -(-over // self._requests))

    def room(self, name: Hashable, now: int) -> int:
        """Return how many tokens are there now."""
        return max(0, self._whole - self._missing(name, now)) // self._token

    def take(self, name: Hashable, tokens: int, now: int) -> None:
        """Take tokens, whether they are there or not. A debt is at most another whole bucket."""
        missing = self._missing(name, now) + tokens * self._token
        self.put(name, now * self._requests + min(missing, 2 * self._whole), now)

    def _missing(self, name: Hashable, now: int) -> int:
        full_at = self._full_at.get(name)
        if full_at is None:
            return 0
        missing = full_at - now * self._requests
        if missing <= 0:
            return 0
        if missing > 2 * self._whole:
            # No debt is that large: the clock went backwards, and the bucket would stay empty for as long as it jumped.
            missing = self._whole
            self._full_at[name] = now * self._requests + missing
        return missing

    def _make_room(self, now: int) -> None:
        # Look for one that is full by now and loses nothing; after a few, the price is not worth it.
        for _ in range(8):
            oldest = next(iter(self._full_at))
            full_at = self._full_at.pop(oldest)
            if full_at <= now * self._requests:
                return
            self._full_at[oldest] = full_at
        del self._full_at[next(iter(self._full_at))]


class Limiter:
    """The rates of one keyd. Everything or nothing: a request that one bucket refuses takes from none."""

    def __init__(self, rates: Rates) -> None:
        self._terminals = _maybe_buckets(rates.terminal)
        self._organisations = _maybe_buckets(rates.organisation)
        self._keys = _maybe_buckets(rates.key)
        self._method = _maybe_buckets(rates.method)
        self._methods = {method: Buckets(rate) for method, rate in rates.methods.items()}

    def admit(self, asker: Asker, method: str, keys: Iterable[Hashable], now: int) -> None:
        """Let a request pass, or an item of a batch; `now` is monotonic nanoseconds.

        A key is whatever names it for counting, e.g. its address and algorithm.

        Raises:
            RateLimited: there were too many; says of what and how long to wait.
        """
        taken: list[tuple[Buckets, Hashable, int]] = []
        for what, buckets, name in self._concerned(asker, method, keys):
            full_at = buckets.without_one(name, now)
            if full_at is None:
                milliseconds = -(-buckets.wait(name, now) // 1_000_000)
                raise RateLimited(
                    f"too many requests for this {what}; there is room in {milliseconds} ms"
                )
            taken.append((buckets, name, full_at))
        for buckets, name, full_at in taken:
            buckets.put(name, full_at, now)

    def counts_by_key_or(self, method: str) -> bool:
        """Whether requests are counted by key, or those of this method all together."""
        return self._keys is not None or self._methods.get(method, self._method) is not None

    @property
    def counts_by_asker(self) -> bool:
        """Whether terminals or organisations have a rate."""
        return self._terminals is not None or self._organisations is not None

    def room(self, asker: Asker, now: int, most: int) -> int:
        """Return how many requests of an asker, at most so many, its terminal's and organisation's rates allow now."""
        for buckets, name in self._askers(asker):
            most = min(most, buckets.room(name, now))
        return most

    def charge(self, asker: Asker, now: int, items: int) -> None:
        """Count requests that were answered already, out of some `room`.

        Where several connections had the same room, what went over is owed, up to a whole bucket, and `admit`
        refuses until it is paid.
        """
        for buckets, name in self._askers(asker):
            buckets.take(name, items, now)

    def _askers(self, asker: Asker) -> list[tuple[Buckets, Hashable]]:
        found: list[tuple[Buckets, Hashable]] = []
        if self._terminals is not None:
            found.append((self._terminals, asker.terminal))
        if self._organisations is not None:
            found.append((self._organisations, asker.organisation))
        return found

    def _concerned(
        self, asker: Asker, method: str, keys: Iterable[Hashable]
    ) -> list[tuple[str, Buckets, Hashable]]:
        found: list[tuple[str, Buckets, Hashable]] = []
        if self._terminals is not None:
            found.append(("terminal", self._terminals, asker.terminal))
        if self._organisations is not None:
            found.append(("organisation", self._organisations, asker.organisation))
        if self._keys is not None:
            found += [("key", self._keys, key) for key in keys]
        method_buckets = self._methods.get(method, self._method)
        if method_buckets is not None:
            found.append(("method", method_buckets, method))
        return found


class Quotas:
    """Connections that are open, counted by terminal and organisation. Counts go away with the last of them."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self._terminals: dict[str, int] = {}
        self._organisations: dict[str, int] = {}

    def enter(self, asker: Asker) -> None:
        """Count one more connection, when its terminal has proven itself.

        Raises:
            QuotaExceeded: there are as many as may be. It is not counted.
        """
        if self._terminals.get(asker.terminal, 0) >= self.limits.per_terminal:
            raise QuotaExceeded("this terminal has as many connections as it may")
        if self._organisations.get(asker.organisation, 0) >= self.limits.per_organisation:
            raise QuotaExceeded("this organisation has as many connections as it may")
        _count(self._terminals, asker.terminal, 1)
        _count(self._organisations, asker.organisation, 1)

    def leave(self, asker: Asker) -> None:
        """Count one less. Once for each `enter` that returned."""
        _count(self._terminals, asker.terminal, -1)
        _count(self._organisations, asker.organisation, -1)

    def __len__(self) -> int:
        return sum(self._terminals.values())


def _count(counts: dict[str, int], name: str, step: int) -> None:
    count = counts.get(name, 0) + step
    if count < 0:
        raise ValueError(f"{name} leaves more often than it came")
    if count:
        counts[name] = count
    else:
        del counts[name]


def _maybe_buckets(rate: Rate | None) -> Buckets | None:
    return Buckets(rate) if rate is not None else None
