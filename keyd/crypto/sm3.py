"""SM3 (GB/T 32905) and HMAC-SM3 (GM/T 0042)."""

from __future__ import annotations

import hashlib
import hmac as _hmac
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import hmac as _openssl_hmac

DIGEST_BYTES: Final = 32

# hashlib has SM3 where Python's OpenSSL was built with it; `cryptography` brings its own OpenSSL.
_IN_HASHLIB: Final = "sm3" in hashlib.algorithms_available


def sm3(message: bytes) -> bytes:
    """Return the 32-byte SM3 digest."""
    if _IN_HASHLIB:
        return hashlib.new("sm3", message).digest()
    digest = hashes.Hash(hashes.SM3())
    digest.update(message)
    return digest.finalize()


def hmac_sm3(key: bytes, message: bytes) -> bytes:
    """Return the 32-byte HMAC-SM3. The key may have any length."""
    if _IN_HASHLIB:
        return _hmac.digest(key, message, "sm3")
    mac = _openssl_hmac.HMAC(key, hashes.SM3())
    mac.update(message)
    return mac.finalize()
