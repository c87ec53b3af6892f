"""Which key is computed where: in the key ring, or by the PSAMs of the pool.

The configuration says it by rows of keys, as the policy names them; the first that names a key decides, and what none
names is the ring's. Rows are resolved once, over the card profiles, to what dispatch asks of every request: a place in
a set. A key that is the pool's is never the ring's, even if the ring has it too.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Final, Literal

from msgspec import Meta, Struct

from keyd.crypto.algorithms import CardAlgorithm
from keyd.errors import BadParameter
from keyd.policy.catalogue import Catalogue, keys_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from keyd.cards.profile import Profile
    from keyd.keys.sam import CardKeyRef, SamTask

# As many as a role's rule may name.
MAX_KEYS: Final = 64

_ADDRESS: Final = re.compile(r"\A[0-9A-F]{4}\Z")


class RouteRow(Struct, frozen=True, forbid_unknown_fields=True):
    """One `[[psams.route]]` of the configuration.

    `keys` are logical addresses (4 hex digits) or names, where `RK*` is every name that begins with RK and `*` is all.
    Without an algorithm the row is for all of them.
    """

    keys: Annotated[tuple[str, ...], Meta(min_length=1, max_length=MAX_KEYS)]
    to: Literal["ring", "pool", "hardware"]
    algorithm: Literal["DES", "SSF33", "SM4"] | None = None


class Routing:
    """The keys that are the pool's: by logical address and card algorithm."""

    def __init__(self, pooled: frozenset[tuple[int, CardAlgorithm]]) -> None:
        self._pooled: Final = pooled

    @classmethod
    def of(cls, rows: Iterable[RouteRow], profiles: Mapping[int, Profile]) -> Routing | None:
        """Resolve the rows of a configuration; None if every key is the ring's, which costs nothing to ask.

        Raises:
            BadParameter: the sentence says which row is wrong, counting from 1, and how.
        """
        catalogue = Catalogue({}, keys_of(profiles))
        decided: dict[tuple[int, CardAlgorithm], str] = {}
        for number, row in enumerate(rows, 1):
            try:
                _decide(row, catalogue, decided)
            except ValueError as error:
                raise BadParameter(f"route {number}: {error}") from None
        pooled = frozenset(place for place, to in decided.items() if to == "pool")
        return cls(pooled) if pooled else None

    def is_pooled(self, key: CardKeyRef) -> bool:
        """Whether the pool computes with a key."""
        return (key.address, key.algorithm) in self._pooled

    def is_pooled_at(self, address: int, algorithm: CardAlgorithm) -> bool:
        """Whether the pool computes with the keys of an address, for cards of an algorithm."""
        return (address, algorithm) in self._pooled

    def has_pooled(self, tasks: Sequence[SamTask]) -> bool:
        """Whether any of these tasks is the pool's."""
        return any((task.key.address, task.key.algorithm) in self._pooled for task in tasks)


def _decide(
    row: RouteRow, catalogue: Catalogue, decided: dict[tuple[int, CardAlgorithm], str]
) -> None:
    if row.to == "hardware":
        raise ValueError("there is no hardware module yet: a key goes to the ring or to the pool")
    algorithms = tuple(CardAlgorithm) if row.algorithm is None else (CardAlgorithm[row.algorithm],)
    for entry in row.keys:
        places = [(a, algorithm) for a in _named(entry, catalogue) for algorithm in algorithms]
        new = [place for place in places if place not in decided]
        if not new:
            # Somebody meant something by it, and it would do nothing.
            raise ValueError(f"{entry} is decided already by what stands before it")
        decided.update(dict.fromkeys(new, row.to))


def _named(entry: str, catalogue: Catalogue) -> frozenset[int]:
    named = catalogue.addresses_named(entry)
    if _ADDRESS.match(entry):
        if named:
            raise ValueError(f"{entry} is an address and a name")
        address = int(entry, 16)
        named = frozenset({address} & catalogue.keys.keys())
    if not named:
        raise ValueError(f"no profile knows a key {entry!r}: write 0090, PUK, RK* or *")
    return named
