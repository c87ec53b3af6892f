"""SM3 (GB/T 32905)."""

from __future__ import annotations

import hashlib
from typing import Final

from cryptography.hazmat.primitives import hashes

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
