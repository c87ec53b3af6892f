"""SM2 keys: what the rest of keyd sees.

Everything that the standard says about bytes is decided here, once for every backend: lengths, ranges,
orders, points, and the key stream that must not be all zero.
"""

from __future__ import annotations

import contextlib
import enum
import hmac
import secrets
from typing import TYPE_CHECKING, Final, NoReturn

from keyd.crypto.algorithms import KEY_BYTES, Algorithm, require_software
from keyd.crypto.native import _core
from keyd.crypto.secret import TAG_BYTES, KeyNotAuthentic, SecretKey
from keyd.crypto.sm2.backend import (
    Ciphertext,
    CiphertextNotAuthentic,
    SignatureNotAuthentic,
)
from keyd.crypto.sm2.curve import (
    DEFAULT_USER_ID,
    POINT_BYTES,
    SCALAR_BYTES,
    N,
    PointNotOnCurve,
    require_on_curve,
    require_user_id,
    scalar,
)
from keyd.crypto.sm2.selection import default_backend
from keyd.crypto.sm3 import DIGEST_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keyd.crypto.sm2.backend import Backend, PrivateOperations, PublicOperations

SIGNATURE_BYTES: Final = 2 * SCALAR_BYTES

# SM2 carries keys and the like. The wire's largest message is 64 KiB, so nothing longer can come from a peer.
MAX_PLAINTEXT_BYTES: Final = 64 * 1024

_LEAST: Final = scalar(1)
_MOST: Final = scalar(N - 2)

# Even for a plaintext of 1 byte, 32 zero key streams in a row have a chance of 2^-256: k is not random.
_MAX_ENCRYPTIONS: Final = 32


class CiphertextOrder(enum.Enum):
    """How the parts of a ciphertext follow each other: by configuration, since both are in the field."""

    C1C3C2 = "C1C3C2"
    """GB/T 32918.4-2016."""
    C1C2C3 = "C1C2C3"
    """The announcement of 2010 (国家密码管理局公告第 21 号), and what some devices still speak."""


class Sm2PublicKey:
    """A public key: a point on the curve."""

    __slots__ = ("_operations", "_point")

    def __init__(self, point: bytes, operations: PublicOperations) -> None:
        self._point = point
        self._operations = operations

    @classmethod
    def load(cls, point: bytes, *, backend: Backend | None = None) -> Sm2PublicKey:
        """Take 65 bytes 04‖x‖y.

        Raises:
            PointNotOnCurve: for every byte string that is not a point on the curve.
        """
        require_on_curve(point)
        return cls(point, (backend or default_backend()).public_key(point))

    def encode(self) -> bytes:
        """Return 65 bytes 04‖x‖y."""
        return self._point

    def verify(self, message: bytes, signature: bytes, *, user_id: bytes = DEFAULT_USER_ID) -> None:
        """Check a signature r‖s of 64 bytes over a message (SM3 with Z). The user_id has 1 to 8190 bytes.

        Raises:
            SignatureNotAuthentic: the signature is anything but one of this key's owner over this message.
        """
        require_user_id(user_id)
        if len(signature) != SIGNATURE_BYTES:
            raise SignatureNotAuthentic(f"a signature has {SIGNATURE_BYTES} bytes")
        for part in (signature[:SCALAR_BYTES], signature[SCALAR_BYTES:]):
            # GB/T 32918.2 §7.1 B1, B2. Without it every signature has further spellings modulo N.
            if not 1 <= int.from_bytes(part, "big") < N:
                raise SignatureNotAuthentic("r or s is out of range")
        self._operations.verify(message, signature, user_id)

    def encrypt(
        self, plaintext: bytes | bytearray, *, order: CiphertextOrder = CiphertextOrder.C1C3C2
    ) -> bytes:
        """Encrypt 1 to 65536 bytes. The ciphertext is 97 bytes longer: C1 has 65, with its 04, and C3 32.

        A bytearray is for the caller to wipe: libcrypto reads it where it is, the guarded fallback copies it.
        """
        if not 1 <= len(plaintext) <= MAX_PLAINTEXT_BYTES:
            raise ValueError(f"SM2 encrypts 1 to {MAX_PLAINTEXT_BYTES} bytes")
        for _ in range(_MAX_ENCRYPTIONS):
            c1, c2, c3 = self._operations.encrypt(plaintext)
            # GB/T 32918.4 §6.1 A5: a key stream that is all zero shows the plaintext, once in 256 tries when
            # that is a single byte. OpenSSL does not look.
            if not hmac.compare_digest(c2, plaintext):
                return c1 + c3 + c2 if order is CiphertextOrder.C1C3C2 else c1 + c2 + c3
        raise RuntimeError("SM2 made zero key streams only; its random source cannot be trusted")

    def __repr__(self) -> str:
        return f"<Sm2PublicKey {self._point[1:5].hex().upper()}…>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sm2PublicKey):
            return NotImplemented
        return self._point == other._point

    def __hash__(self) -> int:
        return hash(self._point)


class Sm2PrivateKey:
    """A private key. It signs, decrypts and names its public key; its bytes leave sealed under a `SecretKey`.

    They are not in the arena: libcrypto keeps them in memory of its own, the guarded backend in a Python number.
    """

    __slots__ = ("_operations", "public")

    public: Sm2PublicKey
    """The public key that belongs to it."""

    def __init__(self, operations: PrivateOperations, public: Sm2PublicKey) -> None:
        self._operations = operations
        self.public = public

    @classmethod
    def generate(cls, *, backend: Backend | None = None) -> Sm2PrivateKey:
        """Make a new key from the system's randomness."""
        return cls.load(bytearray(scalar(1 + secrets.randbelow(N - 2))), backend=backend)

    @classmethod
    def load(cls, d: bytes | bytearray, *, backend: Backend | None = None) -> Sm2PrivateKey:
        """Take key bytes in: the named entry. 32 bytes, a number in [1, N-2]. A bytearray is wiped."""
        secret = d if isinstance(d, bytearray) else bytearray(d)
        try:
            # N-1 is excluded because signing divides by 1 + d (GB/T 32918.1 §6.1). Bytes of one length compare as
            # the numbers that they write, and a Python number of d would be one more copy.
            if len(secret) != SCALAR_BYTES or not _LEAST <= secret <= _MOST:
                raise ValueError(
                    f"an SM2 private key is {SCALAR_BYTES} bytes, a number in [1, N-2]"
                )
            backend = backend or default_backend()
            point = backend.public_point(secret)
            operations = backend.private_key(secret, point)
        finally:
            _core.wipe(secret)
        return cls(operations, Sm2PublicKey.load(point, backend=backend))

    @classmethod
    def unwrap(
        cls,
        kek: SecretKey,
        wrapped: bytes,
        nonce: bytes,
        header: bytes,
        *,
        backend: Backend | None = None,
    ) -> Sm2PrivateKey:
        """Open what `wrapped_under` made. The key's bytes pass through a bytearray that is wiped.

        Raises:
            KeyNotAuthentic: wrapped key (48 bytes), header, nonce or wrapping key is not what it was.
            ValueError: the nonce has not 12 bytes, the wrapping key is not for SM4, or what was sealed is no key.
        """
        if len(wrapped) != SCALAR_BYTES + TAG_BYTES:
            raise KeyNotAuthentic("a wrapped SM2 private key has another length")
        d = bytearray(SCALAR_BYTES)
        kek.open_into(d, wrapped, nonce, header)
        return cls.load(d, backend=backend)

    def wrapped_under(self, kek: SecretKey, nonce: bytes, header: bytes) -> bytes:
        """Return the key sealed under an SM4 key, with a header bound to it: 32 bytes of ciphertext and 16 of tag.

        The nonce has 12 bytes and is never used twice with that key.

        Raises:
            ValueError: the nonce has another length, or the wrapping key is not for SM4.
        """
        with self.lent_secret() as d:
            return kek.seal(d, nonce, header)

    @contextlib.contextmanager
    def lent_secret(self) -> Iterator[bytearray]:
        """Lend d, 32 bytes, and wipe it afterwards: the named exit, for sealing it and nothing else."""
        d = self._operations.copy_secret()
        try:
            yield d
        finally:
            _core.wipe(d)

    def sign(self, message: bytes, *, user_id: bytes = DEFAULT_USER_ID) -> bytes:
        """Sign a message (SM3 with Z); return r‖s, 64 bytes. The user_id has 1 to 8190 bytes."""
        require_user_id(user_id)
        return self._operations.sign(message, user_id)

    def decrypt(
        self, ciphertext: bytes, *, order: CiphertextOrder = CiphertextOrder.C1C3C2
    ) -> bytes:
        """Decrypt; the opposite of `Sm2PublicKey.encrypt`, with the same order.

        Raises:
            CiphertextNotAuthentic: the ciphertext is malformed, altered, for another key or in another order.
        """
        plaintext = self._decrypt(ciphertext, order)
        try:
            return bytes(plaintext)
        finally:
            _core.wipe(plaintext)

    def decrypt_to_key(
        self,
        ciphertext: bytes,
        algorithm: Algorithm,
        order: CiphertextOrder = CiphertextOrder.C1C3C2,
    ) -> SecretKey:
        """Decrypt a key of that algorithm, 16 bytes or DES 8, into locked memory.

        Over libcrypto its bytes are written to a bytearray that is wiped, and are no other Python object; libcrypto
        frees its key stream unwiped. The guarded backend computes with Python's numbers and bytes: copies stay in
        memory until that is used for something else.

        Raises:
            CiphertextNotAuthentic: as `decrypt`, or the ciphertext has not the length of such a key's.
            AlgorithmNotSupported: for SSF33 and SM1.
        """
        require_software(algorithm)
        # Before decrypting: how long the plaintext is, the ciphertext shows.
        if len(ciphertext) != POINT_BYTES + DIGEST_BYTES + KEY_BYTES[algorithm]:
            raise CiphertextNotAuthentic("the ciphertext does not have the length of a key's")
        return SecretKey.load(algorithm, self._decrypt(ciphertext, order))

    def _decrypt(self, ciphertext: bytes, order: CiphertextOrder) -> bytearray:
        parts = _split(ciphertext, order)
        plaintext = self._operations.decrypt(parts)
        # GB/T 32918.4 §7.1 B4: the key stream was all zero. OpenSSL does not look.
        if hmac.compare_digest(plaintext, parts.c2):
            raise CiphertextNotAuthentic("the ciphertext does not open under this key")
        return plaintext

    def __repr__(self) -> str:
        return f"<Sm2PrivateKey of {self.public!r}>"

    def __eq__(self, other: object) -> NoReturn:
        raise TypeError("private keys are not compared; compare their public keys")

    __hash__ = None  # type: ignore[assignment]  # a secret is no dictionary key

    def __reduce__(self) -> NoReturn:
        raise TypeError("a private key is never pickled")


def _split(ciphertext: bytes, order: CiphertextOrder) -> Ciphertext:
    longest = POINT_BYTES + DIGEST_BYTES + MAX_PLAINTEXT_BYTES
    if not POINT_BYTES + DIGEST_BYTES < len(ciphertext) <= longest:
        raise CiphertextNotAuthentic("the ciphertext does not have the length of one")
    c1, rest = ciphertext[:POINT_BYTES], ciphertext[POINT_BYTES:]
    try:
        require_on_curve(c1)
    except PointNotOnCurve:
        raise CiphertextNotAuthentic("C1 is not a point on the curve") from None
    if order is CiphertextOrder.C1C3C2:
        return Ciphertext(c1, c2=rest[DIGEST_BYTES:], c3=rest[:DIGEST_BYTES])
    return Ciphertext(c1, c2=rest[:-DIGEST_BYTES], c3=rest[-DIGEST_BYTES:])
