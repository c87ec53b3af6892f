"""One rule, and how far it reaches towards a request.

Every rule allows; what no rule allows is denied. A rule matches if it reaches to the end: its method, its key,
its algorithm, its 业务类型, its region and its hours.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from keyd.policy.catalogue import NO_BUSINESS, NO_KEY
from keyd.policy.week import ALWAYS, is_open

if TYPE_CHECKING:
    from collections.abc import Sequence

EVERYWHERE: Final = ("",)


class Reach(enum.IntEnum):
    """What in a request a rule fell short of; `MATCH` if of nothing. In the order in which it is looked at."""

    METHOD = 0
    KEY = 1
    ALGORITHM = 2
    BUSINESS = 3
    REGION = 4
    HOURS = 5
    MATCH = 6


class Rule(Struct, frozen=True, eq=False):
    """One rule of one role. Two rules are one only if they are the same line: they are looked up by identity."""

    line: int
    role: str
    number: int
    why: str
    methods: frozenset[str]
    # Empty for methods that use no key.
    addresses: frozenset[int]
    algorithms: frozenset[int]
    # Empty: whatever 业务类型 the request carries, or none.
    business: frozenset[int]
    # Prefixes of a region's six digits; the empty one is everywhere.
    regions: tuple[str, ...]
    week: int

    @property
    def place(self) -> str:
        """Return what people call it."""
        return f"role {self.role}, rule {self.number}"

    @property
    def is_unconditional(self) -> bool:
        """Whether neither region nor time matter."""
        return self.regions == EVERYWHERE and self.week == ALWAYS

    def reach(
        self, method: str, address: int, algorithm: int, business: int, region: str, minute: int
    ) -> Reach:
        """Return what the rule falls short of for a request in that minute of the week."""
        reach = self.reach_of_key(method, address, algorithm, business)
        if reach is not Reach.MATCH:
            return reach
        if not region.startswith(self.regions):
            return Reach.REGION
        return Reach.MATCH if is_open(self.week, minute) else Reach.HOURS

    def reach_of_key(self, method: str, address: int, algorithm: int, business: int) -> Reach:
        """Return what the rule falls short of, region and hours aside."""
        if method not in self.methods:
            return Reach.METHOD
        if address == NO_KEY:
            if self.addresses:
                return Reach.KEY
        elif address not in self.addresses:
            return Reach.KEY
        elif algorithm not in self.algorithms:
            return Reach.ALGORITHM
        if self.business and business not in self.business:
            return Reach.BUSINESS
        return Reach.MATCH

    def covers(self, other: Rule) -> bool:
        """Whether everything that the other rule allows, this one allows."""
        return (
            self.methods >= other.methods
            and self.addresses >= other.addresses
            and self.algorithms >= other.algorithms
            and (not self.business or bool(other.business and self.business >= other.business))
            and all(region.startswith(self.regions) for region in other.regions)
            and not other.week & ~self.week
        )


def nearest(
    rules: Sequence[Rule],
    method: str,
    address: int,
    algorithm: int,
    region: str,
    minute: int,
    business: int = NO_BUSINESS,
) -> tuple[Rule | None, Reach]:
    """Return the rule that reaches furthest, the first of them, and what it falls short of."""
    best: Rule | None = None
    furthest = Reach.METHOD
    for rule in rules:
        reach = rule.reach(method, address, algorithm, business, region, minute)
        if reach > furthest:
            best, furthest = rule, reach
            if reach is Reach.MATCH:
                break
    return best, furthest
