"""A secret key and the few things that can be done with it.

Its bytes are in locked memory (`keyd.crypto.native`), and block cipher keys are nowhere else. (SM2 private keys
are `keyd.crypto.sm2`'s.) A `SecretKey` encrypts,
decrypts, seals, makes a CBC-MAC, makes or wraps another `SecretKey` and shows its check value; it never prints,
pickles or compares its bytes. They are drawn in locked memory (`generate`) or enter through `load`, `combine` or
`unwrap_ecb`; they leave wrapped, as shares (`split`), under a transport key (`wrap_ecb`), or not at all.
`tests/crypto/test_secret.py` lists every place that uses one of these doors.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Final, NoReturn

from keyd.crypto.algorithms import BLOCK_BYTES, Algorithm, require_software
from keyd.crypto.native import _core
from keyd.crypto.native._core import (
    MAX_SEALED_BYTES,
    MAX_SHARES,
    KeyHandle,
    KeyNotAuthentic,
    KeyWeak,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "KCV_BYTES",
    "MAX_SEALED_BYTES",
    "MAX_SHARES",
    "NONCE_BYTES",
    "SHARE_BYTES",
    "TAG_BYTES",
    "KeyNotAuthentic",
    "KeyWeak",
    "SecretKey",
]

KCV_BYTES: Final = 3

NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
SHARE_BYTES: Final = 16

_NATIVE: Final = {Algorithm.SM4: _core.SM4, Algorithm.TDES: _core.TDES, Algorithm.DES: _core.DES}


class SecretKey:
    """A key for one block cipher, in locked memory. SM4 and 3DES keys have 16 bytes, DES keys 8."""

    __slots__ = ("algorithm", "block_bytes", "handle")

    def __init__(self, algorithm: Algorithm, handle: KeyHandle) -> None:
        self.algorithm = algorithm
        self.block_bytes = BLOCK_BYTES[algorithm]
        self.handle = handle

    @classmethod
    def load(cls, algorithm: Algorithm, material: bytes | bytearray) -> SecretKey:
        """Take key bytes in: the named entry. 16 bytes for SM4 and 3DES, 8 for DES. A bytearray is wiped.

        Raises:
            AlgorithmNotSupported: for SSF33 and SM1.
        """
        require_software(algorithm)
        return cls(algorithm, _core.load(_NATIVE[algorithm], material))

    @classmethod
    def generate(cls, algorithm: Algorithm) -> SecretKey:
        """Make a random key: the kernel writes its bytes into locked memory, and nothing else sees them.

        A DES or 3DES key gets odd parity. A weak or semi-weak DES key is drawn again; so is a 3DES key with such a
        half or with equal halves, which would be plain DES, and an SM4 key that is all zero.

        Raises:
            AlgorithmNotSupported: for SSF33 and SM1.
        """
        require_software(algorithm)
        return cls(algorithm, _core.generate(_NATIVE[algorithm]))

    @classmethod
    def combine(cls, algorithm: Algorithm, shares: Iterable[tuple[int, bytes]]) -> SecretKey:
        """Make an SM4 or 3DES key out of as many shares as its threshold: the opposite of `split`.

        Each share is its number, 1 to 255, and 16 bytes. Wrong shares, or too few or too many that do not all belong
        to one key, make another key and no error: compare its check value, or open something under it.

        Raises:
            ValueError: there is no share, a number is out of range or comes twice, a share has not 16 bytes, or the
                algorithm is DES.
            AlgorithmNotSupported: for SSF33 and SM1.
        """
        require_software(algorithm)
        return cls(algorithm, _core.combine(_NATIVE[algorithm], shares))

    def encrypt(self, blocks: bytes) -> bytes:
        """Encrypt whole blocks, each on its own (ECB)."""
        return self.handle.encrypt(blocks)

    def decrypt(self, blocks: bytes) -> bytes:
        """Decrypt whole blocks, each on its own (ECB)."""
        return self.handle.decrypt(blocks)

    def encrypt_to_key(self, blocks: bytes, algorithm: Algorithm) -> SecretKey:
        """Encrypt whole blocks and keep the ciphertext as a key: how diversifying and deriving work."""
        require_software(algorithm)
        return SecretKey(algorithm, self.handle.encrypt_to_key(blocks, _NATIVE[algorithm]))

    def cbc_mac(self, blocks: bytes, iv: bytes) -> bytes:
        """Return the last block of a CBC encryption. The caller has padded and will truncate or fold."""
        return self.handle.cbc_mac(blocks, iv)

    def retail_chain(self, blocks: bytes, iv: bytes) -> bytes:
        """Return the chaining value, 8 bytes, of all but the end of a retail MAC: CBC under the left half.

        Raises:
            ValueError: this is no 3DES key, or these are no whole blocks.
        """
        return self.handle.left_half().cbc_mac(blocks, iv)

    def retail_mac(self, blocks: bytes, iv: bytes) -> bytes:
        """Return the retail MAC (ISO/IEC 9797-1, algorithm 3) of a 3DES key, 8 bytes.

        CBC under the left half, and the last block under the whole key. The caller has padded and will truncate.

        Raises:
            ValueError: this is no 3DES key, or these are no whole blocks.
        """
        left = self.handle.left_half()
        before, last = blocks[:-8], blocks[-8:]
        chain = left.cbc_mac(before, iv) if before else iv
        # What 3DES does to one block is the end of the retail MAC: left half, back under the right, left again.
        return self.handle.encrypt(bytes(map(operator.xor, chain, last)))

    def wrap(self, key: SecretKey, nonce: bytes, header: bytes) -> bytes:
        """Encrypt another key under this SM4 key (GCM) and bind the header to it.

        The nonce has 12 bytes and is never used twice with this key. Returns ciphertext ‖ tag of 16 bytes.
        """
        return self.handle.wrap(key.handle, nonce, header)

    def unwrap(
        self, wrapped: bytes, nonce: bytes, header: bytes, algorithm: Algorithm
    ) -> SecretKey:
        """Decrypt a wrapped key straight into locked memory; the opposite of `wrap`.

        Raises:
            KeyNotAuthentic: wrapped key, header, nonce or wrapping key is not what it was.
        """
        require_software(algorithm)
        handle = self.handle.unwrap(wrapped, nonce, header, _NATIVE[algorithm])
        return SecretKey(algorithm, handle)

    def seal(self, data: bytes | bytearray, nonce: bytes, header: bytes) -> bytes:
        """Encrypt 0 to 65536 bytes under this SM4 key (GCM) and bind the header, of any length, to them.

        The nonce has 12 bytes and is never used twice with this key, in `wrap` neither. Returns ciphertext ‖ tag of
        16 bytes; of no data, the tag over the header alone. A bytearray is not wiped.

        Raises:
            ValueError: this is no SM4 key, the nonce has another length, or there are too many data.
        """
        return self.handle.seal(data, nonce, header)

    def open(self, sealed: bytes, nonce: bytes, header: bytes) -> bytes:
        """Decrypt what `seal` made. Nothing is decrypted before the tag is found right.

        Raises:
            KeyNotAuthentic: sealed data, header, nonce or key is not what it was.
            ValueError: this is no SM4 key, or the nonce has not 12 bytes.
        """
        return self.handle.open(sealed, nonce, header)

    def open_into(self, place: bytearray, sealed: bytes, nonce: bytes, header: bytes) -> None:
        """Decrypt into a bytearray of the data's length, which the caller wipes: for data that are a secret.

        Raises:
            KeyNotAuthentic: as `open`; the place stays as it was.
            ValueError: as `open`, or the place has another length.
        """
        self.handle.open_into(place, sealed, nonce, header)

    def wrap_ecb(self, key: SecretKey) -> bytes:
        """Encrypt another key's bytes in whole blocks (ECB) under this SM4 or 3DES key, for other equipment.

        Returns as many bytes as the key has. Nothing authenticates them: only formats that demand it use this, and
        `wrap` is for everything else.

        Raises:
            ValueError: this is a DES key, or the other is one of 8 bytes and this one's blocks have 16.
        """
        return self.handle.wrap_ecb(key.handle)

    def unwrap_ecb(self, ciphertext: bytes, algorithm: Algorithm) -> SecretKey:
        """Decrypt what `wrap_ecb` made straight into locked memory.

        Whatever has the right length becomes a key, weak ones too: compare its check value.

        Raises:
            ValueError: this is a DES key, the ciphertext has not as many bytes as a key of that algorithm (16, DES
                8), or this one's blocks are longer than that.
            AlgorithmNotSupported: for SSF33 and SM1.
        """
        require_software(algorithm)
        handle = self.handle.unwrap_ecb(ciphertext, _NATIVE[algorithm])
        return SecretKey(algorithm, handle)

    def unwrap_within(
        self, ciphertext: bytes, offset: int, algorithm: Algorithm
    ) -> tuple[bytes, SecretKey]:
        """Decrypt whole blocks (ECB) of which the bytes from an offset on are a key, straight into locked memory.

        Returns the plaintext, at most 256 bytes, with zeros in the key's place, and the key. Nothing authenticates
        either: the caller has checked a MAC over the ciphertext.

        Raises:
            ValueError: the ciphertext is no whole number of blocks or longer than 256 bytes, or has no room for the
                key there.
            AlgorithmNotSupported: for SSF33 and SM1.
        """
        require_software(algorithm)
        around, handle = self.handle.unwrap_within(ciphertext, offset, _NATIVE[algorithm])
        return around, SecretKey(algorithm, handle)

    def xor(self, other: SecretKey) -> SecretKey:
        """Return this key XOR another of the same algorithm: how the components of a key are put together.

        Each bit is the XOR of two bits, parity bits of DES and 3DES too: an even number of components with odd
        parity makes a key with even parity. DES ignores parity, and so does the check value.

        Raises:
            ValueError: the other key is of another algorithm.
            KeyWeak: the result is a key that `generate` draws again. Components that are random make one by no
                accident worth waiting for; the same component twice does.
        """
        return SecretKey(self.algorithm, self.handle.xor(other.handle))

    def split(self, threshold: int, count: int) -> list[bytes]:
        """Split this SM4 or 3DES key into shares of 16 bytes: the first has number 1, the next 2, and so on.

        Any `threshold` of them make the key again (`combine`), and fewer say nothing of it, with unlimited
        computing too. 1 <= threshold <= count <= 255; with a threshold of 1 each share *is* the key. The scheme is
        Shamir's over GF(2^128) with x^128 + x^7 + x^2 + x + 1, a share one big-endian number, as pycryptodome has
        it. The shares are Python objects, as whoever prints them needs: drop them soon.

        Raises:
            ValueError: the numbers are out of range, or this is a DES key.
        """
        return self.handle.split(threshold, count)

    def xor_halves(self) -> SecretKey:
        """Return left half XOR right half of a 3DES key, as a DES key (the TAC key of §2.5)."""
        return SecretKey(Algorithm.DES, self.handle.xor_halves())

    def kcv(self) -> bytes:
        """Return the key check value: the first 3 bytes of a zero block encrypted. It may be shown."""
        return self.handle.kcv()

    def __repr__(self) -> str:
        return f"<SecretKey {self.algorithm.value}>"

    def __eq__(self, other: object) -> NoReturn:
        raise TypeError("secret keys are not compared; compare check values")

    __hash__ = None  # type: ignore[assignment]  # a secret is no dictionary key

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret key is never pickled")

    def __getstate__(self) -> NoReturn:
        raise TypeError("a secret key is never pickled")
