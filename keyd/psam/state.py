"""What a PSAM remembers: `Psam` for as long as it lives, `Channel` until it is reset or its folder is left.

A command that cannot go on raises `Declined`, which `Applet.transmit` turns into a bare status word.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from keyd.errors import AlgorithmNotSupported, Refusal, StoreUnavailable
from keyd.iso7816 import SW
from keyd.psam.counters import NumbersSpent
from keyd.psam.own import OwnKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from keyd.keys.hierarchy import CipherKey, SessionKey
    from keyd.psam.counters import Counters
    from keyd.psam.keys import PsamKey, PsamKeys
    from keyd.psam.level_index import Place
    from keyd.psam.profile import Environment, Operation, PsamIdentity, PsamProfile

# The name under which wrong MAC2s are counted; own keys have their type and id.
MAC2: Final = "MAC2"


class Declined(Exception):  # noqa: N818 - the PSAM's ordinary "no", not an error of keyd
    """The PSAM answers with this status word and no data."""

    def __init__(self, sw: int) -> None:
        super().__init__(f"{sw:04X}")
        self.sw = sw


@dataclass
class Working:
    """The key that was delivered, what it may do, and the chaining value of a MAC that was begun."""

    key: CipherKey
    operations: tuple[Operation, ...]
    chain: bytes | None = None


@dataclass(frozen=True)
class Transaction:
    """A purchase that was initialised and waits for the card's MAC2."""

    key: SessionKey
    amounts: bytes


@dataclass
class Channel:
    """What is selected on one logical channel and was begun there."""

    environment: Environment
    is_in_application: bool = False
    file: int | None = None
    challenge: bytes | None = None
    # Own keys that were proved here, by id.
    rights: set[int] = field(default_factory=set)
    working: Working | None = None
    transaction: Transaction | None = None
    # What waits for GET RESPONSE.
    waiting: bytes = b""

    def enter(self, environment: Environment, *, in_application: bool) -> None:
        """Select a folder. What was delivered in the one before ends; a purchase ends with any command."""
        if environment is not self.environment:
            self.challenge = None
            self.rights = set()
        self.environment = environment
        self.is_in_application = in_application
        self.file = None
        self.working = None

    def take_challenge(self) -> bytes:
        """Take the last challenge. Taking it uses it up, whatever comes of it."""
        challenge, self.challenge = self.challenge, None
        if challenge is None:
            raise Declined(SW.NO_CHALLENGE)
        return challenge


@dataclass(frozen=True)
class Psam:
    """One PSAM: its kind, itself, its keys and counters. `random_bytes` gives so many random bytes."""

    profile: PsamProfile
    identity: PsamIdentity
    keys: PsamKeys
    counters: Counters
    random_bytes: Callable[[int], bytes]

    def __post_init__(self) -> None:
        if self.identity.environment not in self.profile.environments:
            name = self.identity.environment.name
            raise ValueError(f"a PSAM of profile {self.profile.name} has no {name} environment")

    def new_channel(self) -> Channel:
        """Return a channel as it is after reset."""
        return Channel(self.profile.environments[self.identity.environment])

    def key(
        self, channel: Channel, kind: int, key_id: int, missing: int = SW.KEY_NOT_FOUND
    ) -> PsamKey:
        """Find a key that is seen where the channel is; that is one use of it."""
        environment = channel.environment
        if not self.profile.is_seen(kind, key_id, in_application=channel.is_in_application):
            raise Declined(missing)
        try:
            found = self.keys.find(kind, key_id, environment.algorithm)
        except AlgorithmNotSupported:
            raise Declined(SW.FUNCTION_NOT_SUPPORTED) from None
        except Refusal:
            raise Declined(SW.CONDITIONS_NOT_SATISFIED) from None
        if found is None:
            raise Declined(missing)
        return found

    def levels_at(self, places: Iterable[Place]) -> dict[Place, int]:
        """Return the level index of keys that a terminal can use: what probing finds out, without a use of any."""
        found = {}
        for place in places:
            row = self.profile.kinds.get(place.kind)
            if row is None or place.algorithm not in self.profile.environments:
                continue
            if row.operations or row.is_by_version:
                levels = self.keys.levels(*place)
                if levels:
                    found[place] = levels
        return found

    def own_key(self, channel: Channel, key_id: int) -> tuple[OwnKey, str]:
        """Find an own key by its id, and the name under which its wrong proofs are counted."""
        for kind, row in self.profile.kinds.items():
            if row.is_own:
                try:
                    found = self.key(channel, kind, key_id)
                except Declined as no:
                    if no.sw != SW.KEY_NOT_FOUND:
                        raise
                    continue
                if isinstance(found, OwnKey):
                    name = f"{channel.environment.algorithm.name} {kind:02X} {key_id:02X}"
                    return found, name
        raise Declined(SW.KEY_NOT_FOUND)

    def take_number(self) -> int:
        """Take the next terminal transaction number."""
        try:
            return self.counters.take_number()
        except NumbersSpent:
            raise Declined(SW.CONDITIONS_NOT_SATISFIED) from None
        except StoreUnavailable:
            raise Declined(SW.MEMORY_FAILURE) from None

    def count_wrong(self, name: str) -> int:
        """Count a wrong proof; how many there were in a row."""
        try:
            return self.counters.count_wrong(name)
        except StoreUnavailable:
            raise Declined(SW.MEMORY_FAILURE) from None

    def forget_wrong(self, name: str, tries: int) -> None:
        """Begin to count anew, since a proof was right; so many wrong ones stay."""
        try:
            self.counters.forget_wrong(name, tries)
        except StoreUnavailable:
            raise Declined(SW.MEMORY_FAILURE) from None

    def require_unlocked(self) -> None:
        """Insist that MAC2 was not wrong too often: then the application is locked for good."""
        if self.counters.wrong(MAC2) >= self.profile.purchase.mac2_tries:
            raise Declined(SW.APPLICATION_BLOCKED_FOR_GOOD)
