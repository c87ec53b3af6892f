"""The public synthetic roots, for development and tests. Real ones come by ceremony: `keyd.custody`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyd.crypto.secret import SecretKey
from keyd.crypto.sm3 import sm3
from keyd.keys.block import (
    BLOCK_FORMAT,
    KEY_ID_BYTES,
    Domain,
    Export,
    KeyHeader,
    KeyPlace,
    KeyState,
    Mode,
    Tier,
)
from keyd.keys.synthetic import SYNTHETIC_LEVELS, synthetic_root

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

TIERS: Final[Mapping[int, Tier]] = {3: Tier.NATIONAL, 2: Tier.PROVINCIAL, 1: Tier.CITY}


def synthetic(places: Iterable[KeyPlace]) -> list[tuple[KeyHeader, SecretKey]]:
    """Make the public synthetic roots of `keyd.keys.synthetic`."""
    return [
        _made(
            place,
            SYNTHETIC_LEVELS,
            synthetic_root(place.address, place.algorithm),
            sm3(f"{place.address:04X} {place.algorithm.value}".encode())[:KEY_ID_BYTES],
            "synthetic",
        )
        for place in places
    ]


def active_root(
    place: KeyPlace, levels: int, key: SecretKey, key_id: bytes, created_by: str
) -> KeyHeader:
    """Return the header of a root of SOCIAL that is active and limited by nothing."""
    return KeyHeader(
        format=BLOCK_FORMAT,
        key_id=key_id,
        domain=Domain.SOCIAL,
        tier=TIERS[levels],
        name=place.name,
        addresses=(place.address,),
        psam_type=0,
        psam_id=0,
        set=place.set,
        algorithm=place.algorithm,
        levels=levels,
        use=place.use,
        modes=(Mode.PRODUCE, Mode.VERIFY),
        version=1,
        valid_from=0,
        valid_until=0,
        ceiling=0,
        warn_at=0,
        export=Export.NEVER,
        created_by=created_by,
        created_at=0,
        kcv=key.kcv(),
        state=KeyState.ACTIVE,
    )


def _made(
    place: KeyPlace, levels: int, material: bytes | bytearray, key_id: bytes, created_by: str
) -> tuple[KeyHeader, SecretKey]:
    key = SecretKey.load(place.algorithm, material)
    return active_root(place, levels, key, key_id, created_by), key
