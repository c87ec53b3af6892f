"""SM2 over gmssl's point arithmetic: the backend where the system's libcrypto cannot serve.

From gmssl we take adding, doubling and multiplying points, and nothing else. Its own `sign` and `encrypt`
draw k from a Mersenne Twister, its `verify` has no range check, its `decrypt` never compares C3, its
constructor strips leading zeros and fours off a public key. Each of the standard's steps is therefore written
here, numbered as GB/T 32918.2 §6.1, §7.1 and GB/T 32918.4 §6.1, §7.1 number it.

It is some twenty times slower than libcrypto, and not constant-time: multiplying takes branches that depend
on k and d. Its d, its key streams and what it decrypts are Python numbers and bytes on their way, and stay in
memory until that is used for something else. It serves development and machines without OpenSSL 3; `backend_name`
tells the operator.
"""

from __future__ import annotations

import hmac
import secrets
from typing import Final

from gmssl.sm2 import CryptSM2

from keyd.crypto.sm2.backend import (
    Ciphertext,
    CiphertextNotAuthentic,
    SignatureNotAuthentic,
)
from keyd.crypto.sm2.curve import SCALAR_BYTES, UNCOMPRESSED, G, N, message_digest, scalar
from keyd.crypto.sm3 import DIGEST_BYTES, sm3

# Without keys on purpose: the instance is a bag of formulas over the default curve, and keeps no state.
_FORMULAS: Final = CryptSM2(private_key="", public_key="")


def multiply(k: int, point: bytes) -> bytes:
    """Return [k]point, 65 bytes, for k in [1, N-1] and a point on the curve."""
    # gmssl answers [0]P with P, and forgets the bits above 256.
    if not 1 <= k < N:
        raise ValueError("a multiplier is in [1, N-1]")
    return _point(_FORMULAS._kg(k, point[1:].hex()))  # noqa: SLF001 - gmssl has no public name for it


def maybe_add(left: bytes, right: bytes) -> bytes | None:
    """Return left + right, 65 bytes, or None where the sum is infinity."""
    jacobian = left[1:].hex() + "1"
    if left == right:  # noqa: SIM108 - two sentences of reasons do not fit into one expression
        # gmssl's addition of a point to itself gives 0, 0, 0.
        total = _FORMULAS._double_point(jacobian)  # noqa: SLF001 - gmssl has no public name for it
    else:
        total = _FORMULAS._add_point(jacobian, right[1:].hex())  # noqa: SLF001 - likewise
    affine = _FORMULAS._convert_jacb_to_nor(total)  # noqa: SLF001 - likewise
    return None if affine is None else _point(affine)


def key_stream(point: bytes, length: int) -> bytes:
    """Return KDF(x ‖ y, length) of a point (GB/T 32918.4 §5.4.3)."""
    blocks = -(-length // DIGEST_BYTES)
    stream = b"".join(sm3(point[1:] + i.to_bytes(4, "big")) for i in range(1, blocks + 1))
    return stream[:length]


def maybe_sign(e: int, d: int, k: int) -> bytes | None:
    """Return r‖s for the digest e under this k, or None where the standard wants another k."""
    x1 = int.from_bytes(multiply(k, G)[1:33], "big")  # A4
    r = (e + x1) % N  # A5
    if r == 0 or r + k == N:
        return None
    s = pow(1 + d, -1, N) * (k - r * d) % N  # A6
    if s == 0:
        return None
    return scalar(r) + scalar(s)  # A7


def maybe_encrypt(plaintext: bytes, point: bytes, k: int) -> Ciphertext | None:
    """Return the ciphertext under this k, or None where the standard wants another k."""
    c1 = multiply(k, G)  # A2
    shared = multiply(k, point)  # A4
    stream = key_stream(shared, len(plaintext))  # A5
    if not any(stream):
        return None
    return Ciphertext(c1, _xor(plaintext, stream), _check(shared, plaintext))  # A6, A7


class GuardedPublicKey:
    """A public key: 65 bytes."""

    def __init__(self, point: bytes) -> None:
        self._point = point

    def verify(self, message: bytes, signature: bytes, user_id: bytes) -> None:
        """Check r‖s; r and s are in range (B1, B2)."""
        r = int.from_bytes(signature[:SCALAR_BYTES], "big")
        s = int.from_bytes(signature[SCALAR_BYTES:], "big")
        e = int.from_bytes(message_digest(self._point, message, user_id), "big")  # B3, B4
        t = (r + s) % N  # B5
        if t == 0:
            raise SignatureNotAuthentic("the signature does not verify")
        total = maybe_add(multiply(s, G), multiply(t, self._point))  # B6
        if total is None or (e + int.from_bytes(total[1:33], "big")) % N != r:  # B7
            raise SignatureNotAuthentic("the signature does not verify")

    def encrypt(self, plaintext: bytes | bytearray) -> Ciphertext:
        """Encrypt 1 or more bytes."""
        while True:
            ciphertext = maybe_encrypt(bytes(plaintext), self._point, _random_scalar())
            if ciphertext is not None:
                return ciphertext


class GuardedPrivateKey:
    """A private key: d and its point."""

    def __init__(self, d: bytearray, point: bytes) -> None:
        self._d = int.from_bytes(d, "big")
        self._point = point

    def sign(self, message: bytes, user_id: bytes) -> bytes:
        """Return r‖s, 64 bytes."""
        e = int.from_bytes(message_digest(self._point, message, user_id), "big")
        while True:
            signature = maybe_sign(e, self._d, _random_scalar())
            if signature is not None:
                return signature

    def decrypt(self, ciphertext: Ciphertext) -> bytearray:
        """Decrypt, and compare C3 before giving anything out. Copies of the plaintext stay behind in memory."""
        shared = multiply(self._d, ciphertext.c1)  # B3
        stream = key_stream(shared, len(ciphertext.c2))  # B4
        plaintext = _xor(ciphertext.c2, stream)  # B5
        authentic = hmac.compare_digest(_check(shared, plaintext), ciphertext.c3)  # B6
        if not (authentic and any(stream)):
            raise CiphertextNotAuthentic("the ciphertext does not open under this key")
        return bytearray(plaintext)

    def copy_secret(self) -> bytearray:
        """Return d, 32 bytes. Another copy stays behind in memory."""
        return bytearray(scalar(self._d))


class GuardedBackend:
    """gmssl's points under keyd's guards."""

    name: Final = "guarded"

    def public_point(self, d: bytearray) -> bytes:
        """Return [d]G, 65 bytes."""
        return multiply(int.from_bytes(d, "big"), G)

    def private_key(self, d: bytearray, point: bytes) -> GuardedPrivateKey:
        """Take a private key."""
        return GuardedPrivateKey(d, point)

    def public_key(self, point: bytes) -> GuardedPublicKey:
        """Take a public key."""
        return GuardedPublicKey(point)


def _random_scalar() -> int:
    return 1 + secrets.randbelow(N - 1)


def _check(shared: bytes, plaintext: bytes) -> bytes:
    """Return C3 = SM3(x2 ‖ plaintext ‖ y2)."""
    return sm3(shared[1:33] + plaintext + shared[33:])


def _xor(left: bytes, right: bytes) -> bytes:
    number = int.from_bytes(left, "big") ^ int.from_bytes(right, "big")
    return number.to_bytes(len(left), "big")


def _point(affine: str) -> bytes:
    return bytes([UNCOMPRESSED]) + bytes.fromhex(affine)
