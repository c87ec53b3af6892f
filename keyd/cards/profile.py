"""Card profiles: what a generation of cards has and allows.

This is where generations differ; the services have no branch for any of them. Profiles are data: the files are
read by `keyd.cards.profile_files`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal

from msgspec import Meta, Struct

from keyd.crypto.algorithms import Algorithm, CardAlgorithm
from keyd.errors import (
    AlgorithmNotSupported,
    CommandNotAllowed,
    KeyNotFound,
    KeyUsageRefused,
)
from keyd.keys.block import KeyPlace
from keyd.keys.block import Use as Use  # a profile says what its keys are for
from keyd.keys.hierarchy import CARD_DIVERSIFIERS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

AmountName = Literal["personal_account", "personal_paid", "pooled_fund"]


class KeyRow(Struct, frozen=True, forbid_unknown_fields=True):
    """A key of a profile: what it may do, and its id on the card where that is known."""

    use: Use
    card_key_id: Annotated[int, Meta(ge=0, le=0xFF)] | None = None


class FileRule(Struct, frozen=True, forbid_unknown_fields=True):
    """An elementary file and the permission keys that reading and writing it need; None is free."""

    application: str
    read: str | None = None
    write: str | None = None


class CommandRule(Struct, frozen=True, forbid_unknown_fields=True):
    """A command under secure messaging: which keys protect it and which permission the card wants first."""

    name: str
    prefix: Annotated[str, Meta(pattern=r"\A([0-9A-F]{2}){1,4}\Z")]
    messaging: tuple[str, ...]
    permission: tuple[str, ...]
    method: str | None = None


class ProfileFile(Struct, frozen=True, forbid_unknown_fields=True):
    """A profile as its file has it, extended files merged."""

    generation: Annotated[int, Meta(ge=1)]
    specification: str
    algorithms: tuple[Literal["DES", "SSF33", "SM4"], ...]
    card_diversifier: str
    addresses: str
    library_amounts: tuple[AmountName, ...]
    keys: dict[str, dict[str, KeyRow]]
    applications: dict[str, str]
    files: dict[str, FileRule]
    commands: tuple[CommandRule, ...]


class ProfileKey(Struct, frozen=True):
    """A key as its logical address names it."""

    address: int
    name: str
    set: int
    use: Use
    application: str
    card_key_id: int | None
    # Length of the key on a DES card, in bytes; other algorithms have 16 always.
    des_bytes: int
    # What a PSAM calls it: its type, and its id or, of a purchase key, its version.
    psam_type: int = 0
    psam_id: int = 0

    def algorithm(self, card_algorithm: CardAlgorithm) -> Algorithm:
        """The block cipher of this key on a card of that algorithm."""
        if card_algorithm is CardAlgorithm.DES:
            return Algorithm.DES if self.des_bytes == 8 else Algorithm.TDES
        return Algorithm.SM4 if card_algorithm is CardAlgorithm.SM4 else Algorithm.SSF33


class Profile:
    """One generation of cards."""

    def __init__(self, file: ProfileFile, addresses: Mapping[int, ProfileKey]) -> None:
        self.generation: Final = file.generation
        self.specification: Final = file.specification
        self.algorithms: Final = frozenset(CardAlgorithm[name] for name in file.algorithms)
        self.card_diversifier: Final[Callable[[bytes], bytes]] = CARD_DIVERSIFIERS[
            file.card_diversifier
        ]
        self.library_amounts: Final = file.library_amounts
        self.applications: Final = {
            name: bytes.fromhex(aid) for name, aid in file.applications.items()
        }
        self.files: Final = file.files
        self.keys: Final = addresses
        self.commands: Final = file.commands
        self._rules: Final = {bytes.fromhex(rule.prefix): rule for rule in file.commands}

    def require_algorithm(self, algorithm: CardAlgorithm) -> None:
        """Refuse an algorithm that this generation's cards do not have.

        Raises:
            AlgorithmNotSupported: it is none of theirs.
        """
        if algorithm not in self.algorithms:
            raise AlgorithmNotSupported(
                f"cards of specification {self.specification} have no {algorithm.name}"
            )

    def key(self, address: int, *uses: Use) -> ProfileKey:
        """Return the key at a logical address, if it may be used so.

        Raises:
            KeyNotFound: this generation has no such address.
            KeyUsageRefused: the key there is for another use.
        """
        key = self.keys.get(address)
        if key is None:
            raise KeyNotFound(
                f"cards of specification {self.specification} have no key address {address:04X}"
            )
        if key.use not in uses:
            wanted = " or ".join(uses)
            raise KeyUsageRefused(f"{key.name} at {address:04X} is for {key.use}, not {wanted}")
        return key

    def key_places(self, algorithms: Sequence[CardAlgorithm]) -> list[KeyPlace]:
        """List every key that cards of these algorithms have, by algorithm and address."""
        return [
            KeyPlace(key.address, key.name, key.set, key.algorithm(algorithm), key.use)
            for algorithm in algorithms
            for _address, key in sorted(self.keys.items())
        ]

    def address_of(self, name: str) -> int:
        """Return the logical address of the first set of a named key.

        Raises:
            KeyNotFound: this generation has no such key.
        """
        found = [key.address for key in self.keys.values() if key.name == name and key.set == 1]
        if not found:
            raise KeyNotFound(f"cards of specification {self.specification} have no {name}")
        return min(found)

    def require_messaging(self, header: bytes, address: int, method: str) -> None:
        """Refuse a command header that the key at this address must not protect.

        Raises:
            CommandNotAllowed: no rule allows the header with this key, or another method makes it.
            KeyUsageRefused, KeyNotFound: as `key`.
        """
        key = self.key(address, Use.MESSAGING)
        rule = self._rule(header)
        if rule is None:
            raise CommandNotAllowed(f"{header.hex().upper()} is no command under secure messaging")
        if rule.method is not None and rule.method != method:
            raise CommandNotAllowed(f"{rule.name} is made by {rule.method} alone")
        if not names_match(rule.messaging, key.name):
            raise CommandNotAllowed(f"{rule.name} is not protected by {key.name}")

    def _rule(self, header: bytes) -> CommandRule | None:
        for length in range(len(header), 0, -1):
            rule = self._rules.get(header[:length])
            if rule is not None:
                return rule
        return None


def names_match(patterns: tuple[str, ...], name: str) -> bool:
    """Whether a key's name is one of these, where STK* stands for every name that begins with STK."""
    return any(
        name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern
        for pattern in patterns
    )


def newest(profiles: Mapping[int, Profile]) -> Profile:
    """Return the latest generation's profile, which names every key there is."""
    return profiles[max(profiles)]
