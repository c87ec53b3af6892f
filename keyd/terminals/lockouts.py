"""Lockouts: how long nobody is listened to who has given wrong proofs.

Failures are counted for a terminal at a site (a pair), for a site, and for a terminal everywhere. Each count has some
free tries; every failure beyond them locks, for 1 s, 2 s, 4 s and so on up to 15 minutes. A failure while it is
locked is none: nothing is computed then, so nobody can make a lockout longer by hammering at it. A count is forgotten
an hour after its last failure.

A site is an address; of IPv6, the /64, because one machine has as many addresses in it as it likes.

What is promised. A pair that has proven itself within the last 30 days is trusted, and a trusted pair is never locked,
whoever fails how often, as that terminal or beside it. So nobody can lock a terminal out from where it has lately
proven itself, nor, by failing behind the one address of a site, the terminals that lately did so there. For a trusted
pair each guess costs the guesser what any costs, a round trip for one chance in 2^64, and three of them its line.
What is not promised: a terminal that is new at a site may have to wait, up to 15 minutes after the last failure, while
somebody fails there or under its name; and after a restart everybody is new until it has proven itself, or somebody
has said so (`trust`).

Bounded: each kind of count keeps the 16384 that failed last. Trust is only earned by proving, by enrolled terminals
at 8 sites each, so no stranger drives it out. Whoever asks hands the time in: monotonic seconds.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Hashable

# Tries before the first lockout. A person mistypes a code or takes an old key twice; a site has many terminals.
FREE_FOR_PAIR: Final = 5
FREE_FOR_TERMINAL: Final = 20
FREE_FOR_SITE: Final = 30

LONGEST_LOCKOUT: Final = 900.0
FORGOTTEN_AFTER: Final = 3600.0
TRUSTED_FOR: Final = 30 * 86_400.0

MAX_COUNTS: Final = 16_384

# Terminals with trust, and for each the sites that it was lately at. More terminals than that no keyd serves.
MAX_TRUSTED: Final = 65_536
MAX_SITES: Final = 8

_IPV6_SITE_BITS: Final = 64


def site_of(source: str) -> str:
    """Return the site of a connection's source: an address, the /64 of an IPv6 one, or what else stands there."""
    try:
        address = ipaddress.ip_address(source.partition("%")[0])
    except ValueError:
        return source
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, _IPV6_SITE_BITS), strict=False))


class _Count(NamedTuple):
    failures: int
    last: float
    locked_until: float


class _Counts:
    """Failures by name. The one that failed longest ago is the first to go."""

    def __init__(self, free: int, most: int) -> None:
        self._free = free
        self._most = most
        self._counts: dict[Hashable, _Count] = {}

    def is_locked(self, name: Hashable, now: float) -> bool:
        count = self._counts.get(name)
        return count is not None and now < count.locked_until

    def add(self, name: Hashable, now: float) -> None:
        count = self._counts.pop(name, None)
        before = 0
        if count is not None and now - count.last < FORGOTTEN_AFTER:
            before = count.failures
        elif count is None and len(self._counts) >= self._most:
            del self._counts[next(iter(self._counts))]
        failures = before + 1
        self._counts[name] = _Count(failures, now, now + _lockout(failures - self._free))

    def clear(self, name: Hashable) -> None:
        self._counts.pop(name, None)

    def locked(self, now: float) -> int:
        return sum(now < count.locked_until for count in self._counts.values())


class Lockouts:
    """The counts of one keyd. Sources are as `Session.source` has them."""

    def __init__(self, most: int = MAX_COUNTS) -> None:
        self._pairs = _Counts(FREE_FOR_PAIR, most)
        self._sites = _Counts(FREE_FOR_SITE, most)
        self._terminals = _Counts(FREE_FOR_TERMINAL, most)
        # By code, the sites and when it last proved itself there; in the order of last use, both.
        self._trusted: dict[str, dict[str, float]] = {}

    def is_locked(self, code: str, source: str, now: float) -> bool:
        """Whether not even to look at a proof in the name of this terminal from there."""
        site = site_of(source)
        if self._is_trusted(code, site, now):
            return False
        return (
            self._pairs.is_locked((code, site), now)
            or self._sites.is_locked(site, now)
            or self._terminals.is_locked(code, now)
        )

    def failed(self, code: str, source: str, now: float) -> None:
        """Count a wrong proof. While it is locked there is none, and it must not be counted."""
        site = site_of(source)
        self._pairs.add((code, site), now)
        self._sites.add(site, now)
        self._terminals.add(code, now)

    def succeeded(self, code: str, source: str, now: float) -> None:
        """Trust an enrolled terminal at this site from now on, and forget the pair's failures.

        The site's and the terminal's stay: one good terminal is no cover for guessing beside it.
        """
        self._pairs.clear((code, site_of(source)))
        self.trust(code, source, now)

    def trust(self, code: str, source: str, now: float) -> None:
        """Take it that an enrolled terminal proved itself at this site at that moment."""
        sites = self._trusted.pop(code, None)
        if sites is None:
            sites = {}
            if len(self._trusted) >= MAX_TRUSTED:
                del self._trusted[next(iter(self._trusted))]
        self._trusted[code] = sites
        site = site_of(source)
        if sites.pop(site, None) is None and len(sites) >= MAX_SITES:
            del sites[next(iter(sites))]
        sites[site] = now

    def locked(self, now: float) -> int:
        """Return how many pairs, sites and terminals are locked. It looks at all of them."""
        return sum(counts.locked(now) for counts in (self._pairs, self._sites, self._terminals))

    def _is_trusted(self, code: str, site: str, now: float) -> bool:
        proven_at = self._trusted.get(code, {}).get(site)
        return proven_at is not None and now - proven_at < TRUSTED_FOR


def _lockout(beyond: int) -> float:
    """Return the seconds of the lockout after so many failures beyond the free ones."""
    if beyond <= 0:
        return 0.0
    # 2^10 s is more than the longest, and no float grows without end.
    return min(2.0 ** min(beyond - 1, 10), LONGEST_LOCKOUT)
