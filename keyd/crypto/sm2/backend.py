"""What an SM2 backend must do, and the two ways in which a peer's bytes can be wrong.

A backend computes. Lengths, ranges, orders and points were checked before it is asked (`keys.py`), and are
not checked twice; what only the arithmetic can tell, it tells by raising.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol


class SignatureNotAuthentic(Exception):  # noqa: N818 - says what happened
    """The signature is not one that this public key's owner made over this message."""


class CiphertextNotAuthentic(Exception):  # noqa: N818 - says what happened
    """The ciphertext is malformed, altered, or under another key. Which of these is not said."""


class Ciphertext(NamedTuple):
    """The parts of an SM2 ciphertext, in the standard's numbering."""

    c1: bytes
    """The point [k]G: 65 bytes."""
    c2: bytes
    """The plaintext under the key stream: as many bytes as the plaintext."""
    c3: bytes
    """SM3(x2 ‖ plaintext ‖ y2): 32 bytes."""


class PublicOperations(Protocol):
    """One public key, as a backend holds it. Safe to use from many threads."""

    def verify(self, message: bytes, signature: bytes, user_id: bytes) -> None:
        """Check r‖s, 64 bytes, both in [1, N-1].

        Raises:
            SignatureNotAuthentic: the equation does not hold.
        """
        ...

    def encrypt(self, plaintext: bytes | bytearray) -> Ciphertext:
        """Encrypt 1 or more bytes."""
        ...


class PrivateOperations(Protocol):
    """One private key, as a backend holds it. Safe to use from many threads."""

    def sign(self, message: bytes, user_id: bytes) -> bytes:
        """Return r‖s, 64 bytes."""
        ...

    def decrypt(self, ciphertext: Ciphertext) -> bytearray:
        """Decrypt. C1 is on the curve and C2 is not empty. The caller wipes the plaintext if it is a secret.

        Raises:
            CiphertextNotAuthentic: C3 is not the plaintext's.
        """
        ...

    def copy_secret(self) -> bytearray:
        """Return d, 32 bytes, which the caller wipes."""
        ...


class Backend(Protocol):
    """An implementation of SM2's arithmetic."""

    @property
    def name(self) -> str:
        """The backend's name, for people and for the log."""
        ...

    def public_point(self, d: bytearray) -> bytes:
        """Return [d]G, 65 bytes, for d of 32 bytes in [1, N-2]."""
        ...

    def private_key(self, d: bytearray, point: bytes) -> PrivateOperations:
        """Take a private key: d of 32 bytes in [1, N-2], which the caller wipes, and the point [d]G."""
        ...

    def public_key(self, point: bytes) -> PublicOperations:
        """Take a public key: 65 bytes on the curve."""
        ...
