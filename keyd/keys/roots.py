"""The public synthetic roots, for development and tests. Real ones come by ceremony: `keyd.custody`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from keyd.crypto.algorithms import Algorithm
from keyd.crypto.secret import SecretKey
from keyd.crypto.sm2 import Sm2PrivateKey
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
    Use,
)
from keyd.keys.hierarchy import TERMINAL_LEVELS, TERMINAL_MASTER_ADDRESS
from keyd.keys.synthetic import (
    SYNTHETIC_LEVELS,
    synthetic_identity,
    synthetic_root,
    synthetic_terminal_master,
    synthetic_terminal_scalar,
)

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


def synthetic_terminals_master() -> tuple[KeyHeader, SecretKey]:
    """Make the public synthetic terminal master key of `keyd.keys.synthetic`, a key of LOCAL."""
    place = KeyPlace(TERMINAL_MASTER_ADDRESS, "TMK", 1, Algorithm.SM4, Use.TERMINAL)
    key_id = sm3(b"terminal master key")[:KEY_ID_BYTES]
    header, key = _made(place, TERMINAL_LEVELS, synthetic_terminal_master(), key_id, "synthetic")
    return msgspec.structs.replace(header, domain=Domain.LOCAL), key


def synthetic_identity_key() -> Sm2PrivateKey:
    """Make the public synthetic key with which a development keyd signs."""
    return Sm2PrivateKey.load(synthetic_identity())


def synthetic_signer(code: str) -> Sm2PrivateKey:
    """Make the public synthetic key with which a development terminal signs."""
    return Sm2PrivateKey.load(synthetic_terminal_scalar(code))


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
