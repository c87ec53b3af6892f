"""Where roots come from before there is a ceremony: random ones, and the public synthetic ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from keyd.crypto.algorithms import KEY_BYTES, Algorithm
from keyd.crypto.secret import SecretKey
from keyd.keys.block import KeyHeader
from keyd.keys.synthetic import SYNTHETIC_LEVELS, synthetic_root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Wanted(Struct, frozen=True):
    """A key that is to be made: where it answers, what it is called, and for which algorithm."""

    address: int
    name: str
    set: int
    algorithm: Algorithm


def generate(
    wanted: Iterable[Wanted], levels: int, random_bytes: Callable[[int], bytes]
) -> list[tuple[KeyHeader, SecretKey]]:
    """Make random roots that stand 3, 2 or 1 levels above their cards."""
    return [_made(key, levels, random_bytes(KEY_BYTES[key.algorithm])) for key in wanted]


def synthetic(wanted: Iterable[Wanted]) -> list[tuple[KeyHeader, SecretKey]]:
    """Make the public synthetic roots of `keyd.keys.synthetic`."""
    return [
        _made(key, SYNTHETIC_LEVELS, synthetic_root(key.address, key.algorithm)) for key in wanted
    ]


def _made(wanted: Wanted, levels: int, material: bytes) -> tuple[KeyHeader, SecretKey]:
    key = SecretKey.load(wanted.algorithm, material)
    header = KeyHeader(wanted.address, wanted.name, wanted.set, wanted.algorithm, levels, key.kcv())
    return header, key
