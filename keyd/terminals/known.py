"""A terminal of the registry in the form that decides: networks as networks, hours as a week, roles as a set.

It is compiled when its terminal first comes to prove itself. It decides nothing about proofs.
"""

from __future__ import annotations

import functools
import ipaddress
import operator
from typing import TYPE_CHECKING, Final, NamedTuple

from keyd.policy.limits import Asker
from keyd.policy.week import ALWAYS, minute_of_week, minutes_left, week_of
from keyd.registry.terminal import TerminalState

if TYPE_CHECKING:
    from keyd.registry.terminal import Proof, Terminal

# Where a Unix socket's other end is: on this machine.
_LOOPBACK: Final = (ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1"))

_MINUTE: Final = 60


class Moment(NamedTuple):
    """A moment by both clocks: monotonic seconds, and seconds since 1970."""

    monotonic: float
    unix: int


class Proven(NamedTuple):
    """How a session's terminal has proven itself, for when its record changes."""

    by: Proof
    # Of the certificate that its signature was under; 0 if it brought none.
    serial: int = 0
    # Until when the certificate is good, in seconds since 1970; 0 if it brought none.
    not_after: int = 0


class KnownTerminal:
    """A terminal that has a record. `code`, `roles`, `asker` and `region` are what the policy asks for."""

    __slots__ = ("_networks", "_week", "asker", "code", "record", "region", "roles")

    def __init__(self, record: Terminal) -> None:
        spec = record.spec
        self.record: Final = record
        self.code: Final = spec.code
        self.roles: Final = frozenset(spec.roles)
        self.asker: Final = Asker(spec.code, spec.organisation)
        self.region: Final = spec.region
        self._networks = [ipaddress.ip_network(network) for network in spec.networks]
        self._week = functools.reduce(operator.or_, map(week_of, spec.hours), 0) or ALWAYS

    def refused_because(self, source: str, now: int, utc_offset: int) -> str | None:
        """Return why it may not be here and now, as one word for the journal; None if it may.

        `source` is the session's, `now` is seconds since 1970, `utc_offset` the minutes that local time is ahead.
        """
        if self.record.state is not TerminalState.ACTIVE:
            return str(self.record.state)
        if not self.is_valid(now):
            return "not-valid"
        if not self._is_here(source):
            return "network"
        if minutes_left(self._week, minute_of_week(now, utc_offset)) == 0:
            return "hours"
        return None

    def is_valid(self, now: int) -> bool:
        """Whether it is valid at this moment, in seconds since 1970."""
        spec = self.record.spec
        return spec.valid_from <= now and (not spec.valid_until or now < spec.valid_until)

    def closes_at(self, now: int, utc_offset: int) -> int | None:
        """Return when it ceases to be valid or its hours end, in seconds since 1970; None if never."""
        ends = [self.record.spec.valid_until] if self.record.spec.valid_until else []
        left = minutes_left(self._week, minute_of_week(now, utc_offset))
        if left is not None:
            ends.append(now - now % _MINUTE + left * _MINUTE)
        return min(ends, default=None)

    def _is_here(self, source: str) -> bool:
        if not self._networks:
            return True
        return any(
            address in network for address in _addresses(source) for network in self._networks
        )

    def __repr__(self) -> str:
        return f"<KnownTerminal {self.code}>"


def _addresses(
    source: str,
) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, ...]:
    if source == "unix":
        return _LOOPBACK
    try:
        address = ipaddress.ip_address(source.partition("%")[0])
    except ValueError:
        return ()
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return (address.ipv4_mapped,)
    return (address,)
