"""Where roots come from before there is a ceremony: random ones, and the public synthetic ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyd.crypto.algorithms import KEY_BYTES
from keyd.crypto.secret import SecretKey
from keyd.keys.block import KeyHeader, KeyPlace
from keyd.keys.synthetic import SYNTHETIC_LEVELS, synthetic_root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def generate(
    places: Iterable[KeyPlace], levels: int, random_bytes: Callable[[int], bytes]
) -> list[tuple[KeyHeader, SecretKey]]:
    """Make random roots that stand 3, 2 or 1 levels above their cards."""
    return [
        _made(place, levels, bytearray(random_bytes(KEY_BYTES[place.algorithm])))
        for place in places
    ]


def synthetic(places: Iterable[KeyPlace]) -> list[tuple[KeyHeader, SecretKey]]:
    """Make the public synthetic roots of `keyd.keys.synthetic`."""
    return [
        _made(place, SYNTHETIC_LEVELS, synthetic_root(place.address, place.algorithm))
        for place in places
    ]


def _made(place: KeyPlace, levels: int, material: bytes | bytearray) -> tuple[KeyHeader, SecretKey]:
    key = SecretKey.load(place.algorithm, material)
    header = KeyHeader(place.address, place.name, place.set, place.algorithm, levels, key.kcv())
    return header, key
