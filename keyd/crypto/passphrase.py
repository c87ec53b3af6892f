"""Keys from a passphrase: scrypt (RFC 7914), slow and large on purpose."""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from keyd.crypto.algorithms import Algorithm
from keyd.crypto.secret import SecretKey

SALT_BYTES: Final = 16

# 2^15 * 8 * 128 bytes: 32 MiB and about 0.1 s, once per start; dear for who must try many.
_N: Final = 1 << 15
_R: Final = 8
_P: Final = 1


def keys_from_passphrase(passphrase: bytes, salt: bytes) -> tuple[SecretKey, bytes]:
    """Return an SM4 wrapping key and a 32-byte HMAC key. The salt has 16 bytes and is random."""
    if len(salt) != SALT_BYTES:
        raise ValueError(f"a salt has {SALT_BYTES} bytes")
    material = Scrypt(salt=salt, length=48, n=_N, r=_R, p=_P).derive(passphrase)
    return SecretKey.load(Algorithm.SM4, bytearray(material[:16])), material[16:]
