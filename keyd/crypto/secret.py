"""A secret key and the few things that can be done with it.

Its bytes are in locked memory (`keyd.crypto.native`), and block cipher keys are nowhere else. (SM2 private keys
are `keyd.crypto.sm2`'s; terminal keys, which are HMAC keys, are `keyd.terminals`'.) A `SecretKey` encrypts,
decrypts, makes a CBC-MAC, makes or wraps another `SecretKey` and shows its check value; it never prints, pickles
or compares its bytes. They enter through `SecretKey.load`, they leave wrapped or not at all, and
`tests/crypto/test_secret.py` lists every place that takes key bytes in.
"""

from __future__ import annotations

from typing import Final, NoReturn

from keyd.crypto.algorithms import BLOCK_BYTES, Algorithm, require_software
from keyd.crypto.native import _core
from keyd.crypto.native._core import KeyHandle, KeyNotAuthentic

__all__ = ["KCV_BYTES", "KeyNotAuthentic", "SecretKey"]

KCV_BYTES: Final = 3

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
