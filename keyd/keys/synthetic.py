"""Synthetic roots: public by construction, for `keyd serve --dev`, the demo, the simulator and tests.

Anybody can compute them from this file. They let an integrator's card simulator and a development keyd
agree without exchanging anything, and they must never make a real card.
"""

from __future__ import annotations

from typing import Final

from keyd.crypto.algorithms import KEY_BYTES, Algorithm
from keyd.crypto.sm3 import sm3

_LABEL: Final = b"keyd synthetic root: public, never for a real card"

# The synthetic hierarchy is a national one: every root diversifies province, city, card.
SYNTHETIC_LEVELS: Final = 3


def synthetic_root(address: int, algorithm: Algorithm) -> bytes:
    """Return the synthetic national root of a logical key address: 16 bytes, 8 for DES."""
    digest = sm3(_LABEL + address.to_bytes(2, "big") + algorithm.value.encode())
    return digest[: KEY_BYTES[algorithm]]


_TERMINAL_LABEL: Final = b"keyd synthetic terminal key: public, never for a real terminal"


def synthetic_terminal_key(code: str) -> bytes:
    """Return the synthetic terminal key, 16 bytes, of a terminal code."""
    return sm3(_TERMINAL_LABEL + code.encode())[:16]
