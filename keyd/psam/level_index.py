"""What a PSAM is and has, as whoever takes it into a pool finds out: its numbers, and its keys by level."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from msgspec import Struct

from keyd.crypto.algorithms import CardAlgorithm
from keyd.psam.keys import SET

if TYPE_CHECKING:
    from keyd.cards.profile import ProfileKey


class Place(NamedTuple):
    """What a PSAM calls a key: its type, its id or, of a purchase key, its version, and whose environment it is in."""

    kind: int
    key_id: int
    algorithm: CardAlgorithm


class MemberFacts(Struct, frozen=True):
    """What is known of a PSAM: serial number (10 bytes), 终端机编号 (6 bytes), ATR, and its keys.

    `levels` is the level index: how often the PSAM diversifies each key that it has and lets be used, 1 to 3.
    """

    serial: bytes
    terminal: bytes
    atr: bytes
    levels: dict[Place, int]

    @property
    def number(self) -> str:
        """The 终端机编号, 12 digits, by which a PSAM is asked for."""
        return self.terminal.hex()


def place_of_key(key: ProfileKey, algorithm: CardAlgorithm) -> Place | None:
    """Return what a PSAM calls a key of the cards; None if PSAMs do not have it: it is of another set."""
    return Place(key.psam_type, key.psam_id, algorithm) if key.set == SET else None
