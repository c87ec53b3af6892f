"""The algorithms by name, including those that only hardware has."""

from __future__ import annotations

import enum
from typing import Final

from keyd.errors import AlgorithmNotSupported


class Algorithm(enum.Enum):
    """A block cipher, by what it does to one block under one key."""

    SM4 = "SM4"
    TDES = "3DES"
    DES = "DES"
    SSF33 = "SSF33"
    SM1 = "SM1"

    # Members are singletons, and tables are looked up by them for every key that is made: Enum's own hash is
    # a Python function.
    __hash__ = object.__hash__


class CardAlgorithm(enum.IntEnum):
    """The card's algorithm identifier (tag 86 of the FCI). A DES card has 3DES keys and single ones."""

    DES = 1
    SSF33 = 2
    SM4 = 3


KEY_BYTES: Final = {
    Algorithm.SM4: 16,
    Algorithm.TDES: 16,
    Algorithm.DES: 8,
    Algorithm.SSF33: 16,
    Algorithm.SM1: 16,
}

BLOCK_BYTES: Final = {
    Algorithm.SM4: 16,
    Algorithm.TDES: 8,
    Algorithm.DES: 8,
    Algorithm.SSF33: 16,
    Algorithm.SM1: 16,
}

# SSF33 and SM1 are unpublished: their arithmetic exists in certified hardware only.
IN_SOFTWARE: Final = frozenset({Algorithm.SM4, Algorithm.TDES, Algorithm.DES})


def require_software(algorithm: Algorithm) -> None:
    """Refuse an algorithm that software cannot compute.

    Raises:
        AlgorithmNotSupported: for SSF33 and SM1.
    """
    if algorithm not in IN_SOFTWARE:
        raise AlgorithmNotSupported(
            f"{algorithm.value} is not published; it needs hardware that offers it"
        )
