"""Who a card is: from the identifier and reset information a terminal sends to what keys are diversified by.

The checks are the cheap and sound ones of the specification: the serial must stand in both places, and a
region that differs from the historical bytes is noticed and let pass.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from keyd.crypto.algorithms import CardAlgorithm
from keyd.errors import BadParameter, CardDataInconsistent, RemoteProtocolError
from keyd.iso7816 import historical_bytes
from keyd.keys.hierarchy import Region, region_from_card_id
from keyd.keys.sam import CardKeyRef, purpose

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyd.cards.profile import Profile
    from keyd.keys.block import Use

CARD_ID_BYTES: Final = 16

_RID: Final = bytes.fromhex("D156000005")


class Warned(enum.StrEnum):
    """What was noticed and let pass."""

    # The specification's own sample has region 6399 beside historical bytes 1599, so it is no error.
    REGION_MISMATCH = "REGION_MISMATCH"


_NOTHING: Final[tuple[Warned, ...]] = ()
_REGION: Final = (Warned.REGION_MISMATCH,)


class Card(Struct, frozen=True, gc=False):
    """A card that keyd knows how to speak about."""

    profile: Profile
    algorithm: CardAlgorithm
    region: Region
    diversifier: bytes
    warnings: tuple[Warned, ...]
    # Which version of the master keys it was made with; 0 is the current one.
    key_version: int = 0

    def key(self, address: int, use: Use, *, is_verifying: bool = False) -> CardKeyRef:
        """Name this card's key at a logical address, and what it is wanted for.

        `is_verifying` says that what is computed will be compared with what the card said and not be given away.
        """
        wanted = purpose(use, is_verifying=is_verifying, version=self.key_version)
        return CardKeyRef(address, self.algorithm, self.region, self.diversifier, wanted)


def historical_of(reset_information: bytes) -> bytes:
    """Return the 13 historical bytes of 卡复位信息, which some clients send as the whole ATR.

    Raises:
        BadParameter: it is neither.
    """
    try:
        return historical_bytes(reset_information)
    except RemoteProtocolError as error:
        raise BadParameter(f"the reset information is no card's: {error}") from None


def identify(
    profiles: Mapping[int, Profile],
    card_id: bytes,
    reset_information: bytes,
    algorithm: CardAlgorithm,
    generation: int,
    key_version: int = 0,
) -> Card:
    """Check a card's data against each other and return the card.

    Raises:
        BadParameter: a field is not what the specification makes of it.
        CardDataInconsistent: identifier and historical bytes are not of one card.
        AlgorithmNotSupported: cards of this generation do not have the algorithm.
    """
    profile = profiles.get(generation)
    if profile is None:
        raise BadParameter(f"no profile is loaded for generation {generation}")
    if algorithm not in profile.algorithms:
        profile.require_algorithm(algorithm)
    if len(card_id) != CARD_ID_BYTES or card_id[3:8] != _RID:
        raise BadParameter("a card identifier is region 3 ‖ D156000005 ‖ serial 4 ‖ 认证码 4")
    historical = historical_of(reset_information)
    if card_id[8:12] != historical[9:13]:
        raise CardDataInconsistent(
            "the serial in the card identifier is not the one in the historical bytes"
        )
    return Card(
        profile,
        algorithm,
        region_from_card_id(card_id),
        profile.card_diversifier(historical),
        _NOTHING if card_id[:2] == historical[7:9] else _REGION,
        key_version,
    )
