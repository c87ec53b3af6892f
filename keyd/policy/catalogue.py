"""What there is to allow: the methods that the policy decides on, and the keys that the card profiles know.

The middle floor does not know the table of commands. Whoever does hands this in (`keyd.needs`).
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from keyd.cards.profile import ProfileKey, Use, names_match

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from keyd.cards.profile import Profile

# The address of a request that uses no key. Logical addresses have 16 bits, so none is this.
NO_KEY: Final = -1


class Business(enum.IntEnum):
    """业务类型: why a card is made (01, 05, 06, 07, 08)."""

    NEW = 1
    LOST = 5
    CHANGED = 6
    WARRANTY = 7
    PREPARED = 8


# 业务类型 of a request that carries none.
NO_BUSINESS: Final = 0


class Shape(Struct, frozen=True):
    """What a method can ask for: keys of these uses and names, with or without a 业务类型."""

    uses: frozenset[Use] = frozenset()
    names: tuple[str, ...] = ("*",)
    # Of those, the ones that it never takes.
    never: tuple[str, ...] = ()
    has_business: bool = False
    # It makes a command that gives a PIN its tries back, so the card's ceiling counts it.
    resets_pin: bool = False

    @property
    def has_key(self) -> bool:
        """Whether the method uses keys at all."""
        return bool(self.uses)

    def can_use(self, key: ProfileKey) -> bool:
        """Whether a request of this method can name the key without being refused for it."""
        return (
            key.use in self.uses
            and names_match(self.names, key.name)
            and key.name not in self.never
        )


class Catalogue:
    """The methods that a policy decides on, and every key that a profile knows, by address."""

    def __init__(self, methods: Mapping[str, Shape], keys: Iterable[ProfileKey]) -> None:
        self.methods: Final = dict(methods)
        self.keys: Final[dict[int, tuple[ProfileKey, ...]]] = {}
        for key in keys:
            # Generations may name one address differently; a rule that names either means the address.
            self.keys[key.address] = (*self.keys.get(key.address, ()), key)
        self.names: Final = frozenset(key.name for keys in self.keys.values() for key in keys)

    def can_use(self, method: str, address: int) -> bool:
        """Whether a request of the method can name the address without being refused for it."""
        shape = self.methods[method]
        return any(shape.can_use(key) for key in self.keys[address])

    def addresses_named(self, pattern: str) -> frozenset[int]:
        """Return the addresses whose key has this name; STK* is every name that begins with STK."""
        return frozenset(
            address
            for address, keys in self.keys.items()
            if any(names_match((pattern,), key.name) for key in keys)
        )

    def name_of(self, address: int) -> str:
        """Return what people call the key at an address: its name, or that there is none."""
        keys = self.keys.get(address)
        return keys[0].name if keys else "no key that a profile knows"


def keys_of(profiles: Mapping[int, Profile]) -> list[ProfileKey]:
    """List the keys of all generations, each once."""
    keys = {
        (key.address, key.name, key.use): key
        for _generation, profile in sorted(profiles.items())
        for key in profile.keys.values()
    }
    return list(keys.values())
