"""Synthetic roots: public by construction, for `keyd serve --dev`, the demo, the simulator and tests.

Anybody can compute them from this file. They let an integrator's card simulator and a development keyd
agree without exchanging anything, and they must never make a real card.
"""

from __future__ import annotations

from typing import Final

from keyd.crypto.algorithms import KEY_BYTES, Algorithm
from keyd.crypto.secret import SecretKey
from keyd.crypto.sm3 import sm3

_LABEL: Final = b"keyd synthetic root: public, never for a real card"

# The synthetic hierarchy is a national one: every root diversifies province, city, card.
SYNTHETIC_LEVELS: Final = 3


def synthetic_root(address: int, algorithm: Algorithm) -> bytes:
    """Return the synthetic national root of a logical key address: 16 bytes, 8 for DES."""
    digest = sm3(_LABEL + address.to_bytes(2, "big") + algorithm.value.encode())
    return digest[: KEY_BYTES[algorithm]]


# What the terminal master key answers to. It and the diversifying are written out, because simulators share this
# file and none of keyd's arithmetic.
_TERMINAL_MASTER_ADDRESS: Final = 0xFE00
_BY_CODE: Final = b"keyd terminal key by code"


def synthetic_terminal_master() -> bytes:
    """Return the synthetic terminal master key, 16 bytes for SM4."""
    return synthetic_root(_TERMINAL_MASTER_ADDRESS, Algorithm.SM4)


def synthetic_terminal_key(code: str) -> bytes:
    """Return the synthetic terminal key, 16 bytes, of a terminal code."""
    return _diversified(sm3(_BY_CODE + code.encode("ascii"))[:8])


def synthetic_psam_key(number: bytes) -> bytes:
    """Return the synthetic terminal key, 16 bytes, of a PSAM's 终端机编号 of 6 bytes."""
    return _diversified(bytes(2) + number)


def _diversified(factor: bytes) -> bytes:
    master = SecretKey.load(Algorithm.SM4, synthetic_terminal_master())
    return master.encrypt(factor + bytes(byte ^ 0xFF for byte in factor))


def synthetic_identity() -> bytes:
    """Return the synthetic private key with which a development keyd signs: a scalar of 32 bytes for SM2."""
    return _scalar(b"keyd synthetic identity: public, never for a real keyd")


def synthetic_terminal_scalar(code: str) -> bytes:
    """Return the synthetic private key with which a terminal signs: a scalar of 32 bytes for SM2."""
    return _scalar(b"keyd synthetic signer: public, never for a real terminal" + code.encode())


def _scalar(label: bytes) -> bytes:
    # The first bit away: far below the order of the curve.
    digest = sm3(label)
    return bytes([digest[0] & 0x7F]) + digest[1:]


_PSAM_LABEL: Final = b"keyd synthetic PSAM master key: public, never in a real PSAM"


def synthetic_psam_master_key(algorithm: Algorithm) -> bytes:
    """Return the synthetic master key of a PSAM's environment: 16 bytes."""
    return sm3(_PSAM_LABEL + algorithm.value.encode())[: KEY_BYTES[algorithm]]
