"""A secret key and the few things that can be done with it.

Block cipher keys live here and nowhere else. (SM2 private keys are `keyd.crypto.sm2`'s; terminal keys, which
are HMAC keys, are `keyd.terminals`'.) A `SecretKey` encrypts, decrypts, makes a CBC-MAC, makes or wraps
another `SecretKey` and shows its check value; it never prints, pickles or compares its bytes. They enter through
`SecretKey.load`, they leave wrapped or not at all, and `tests/crypto/test_secret.py` lists every place that
takes key bytes in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from keyd.crypto.algorithms import BLOCK_BYTES, KEY_BYTES, Algorithm, require_software

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers import CipherContext

# The card specification's arithmetic is on single blocks; ECB is how a library is asked for those.
ECB: Final = modes.ECB()  # noqa: S305 - see above

# From this length on, `cryptography` computes without the GIL; a context that another thread is using then
# raises, so long inputs get a context of their own.
_SHARED_CONTEXT_BYTES: Final = 2048

KCV_BYTES: Final = 3

GCM_NONCE_BYTES: Final = 12
GCM_TAG_BYTES: Final = 16


class KeyNotAuthentic(Exception):  # noqa: N818 - says what happened
    """A wrapped key does not open: it was altered, or the wrapping key is another."""


class SecretKey:
    """Key bytes for one block cipher. SM4 and 3DES keys have 16 bytes, DES keys 8."""

    __slots__ = ("_encryptor", "_material", "algorithm", "block_bytes")

    def __init__(self, algorithm: Algorithm, material: bytes) -> None:
        require_software(algorithm)
        if len(material) != KEY_BYTES[algorithm]:
            raise ValueError(f"a {algorithm.value} key has {KEY_BYTES[algorithm]} bytes")
        self.algorithm = algorithm
        self.block_bytes = BLOCK_BYTES[algorithm]
        self._material = material
        self._encryptor: CipherContext | None = None

    @classmethod
    def load(cls, algorithm: Algorithm, material: bytes) -> SecretKey:
        """Take key bytes in: the named entry. 16 bytes for SM4 and 3DES, 8 for DES.

        Raises:
            AlgorithmNotSupported: for SSF33 and SM1.
        """
        return cls(algorithm, material)

    def encrypt(self, blocks: bytes) -> bytes:
        """Encrypt whole blocks, each on its own (ECB)."""
        if len(blocks) >= _SHARED_CONTEXT_BYTES:
            self._require_whole_blocks(blocks)
            return self._cipher(ECB).encryptor().update(blocks)
        encryptor = self._encryptor
        if encryptor is None:
            # ECB keeps no state between whole blocks, so one context serves the key's life:
            # setting a context up costs ten times what a block does.
            encryptor = self._encryptor = self._cipher(ECB).encryptor()
        self._require_whole_blocks(blocks)
        return encryptor.update(blocks)

    def decrypt(self, blocks: bytes) -> bytes:
        """Decrypt whole blocks, each on its own (ECB)."""
        self._require_whole_blocks(blocks)
        return self._cipher(ECB).decryptor().update(blocks)

    def encrypt_to_key(self, blocks: bytes, algorithm: Algorithm) -> SecretKey:
        """Encrypt whole blocks and keep the ciphertext as a key: how diversifying and deriving work."""
        return SecretKey(algorithm, self.encrypt(blocks))

    def cbc_mac(self, blocks: bytes, iv: bytes) -> bytes:
        """Return the last block of a CBC encryption. The caller has padded and will truncate or fold."""
        self._require_whole_blocks(blocks)
        return self._cipher(modes.CBC(iv)).encryptor().update(blocks)[-self.block_bytes :]

    def wrap(self, key: SecretKey, nonce: bytes, header: bytes) -> bytes:
        """Encrypt another key under this SM4 key (GCM) and bind the header to it.

        The nonce has 12 bytes and is never used twice with this key. Returns ciphertext ‖ tag of 16 bytes.
        """
        sealer = self._gcm(nonce, None).encryptor()
        sealer.authenticate_additional_data(header)
        return sealer.update(key._material) + sealer.finalize() + sealer.tag

    def unwrap(
        self, wrapped: bytes, nonce: bytes, header: bytes, algorithm: Algorithm
    ) -> SecretKey:
        """Decrypt a wrapped key; the opposite of `wrap`.

        Raises:
            KeyNotAuthentic: wrapped key, header, nonce or wrapping key is not what it was.
        """
        ciphertext, tag = wrapped[:-GCM_TAG_BYTES], wrapped[-GCM_TAG_BYTES:]
        if len(ciphertext) != KEY_BYTES[algorithm] or len(tag) != GCM_TAG_BYTES:
            raise KeyNotAuthentic("the wrapped key has the wrong length for its algorithm")
        opener = self._gcm(nonce, tag).decryptor()
        opener.authenticate_additional_data(header)
        material = opener.update(ciphertext)
        try:
            opener.finalize()
        except InvalidTag:
            raise KeyNotAuthentic("the key block was altered or is under another key") from None
        return SecretKey(algorithm, material)

    def xor_halves(self) -> SecretKey:
        """Return left half XOR right half of a 3DES key, as a DES key (the TAC key of §2.5)."""
        if self.algorithm is not Algorithm.TDES:
            raise ValueError("only a 3DES key has two halves")
        left, right = self._material[:8], self._material[8:]
        return SecretKey(Algorithm.DES, bytes(a ^ b for a, b in zip(left, right, strict=True)))

    def kcv(self) -> bytes:
        """Return the key check value: the first 3 bytes of a zero block encrypted. It may be shown."""
        return self.encrypt(bytes(self.block_bytes))[:KCV_BYTES]

    def _require_whole_blocks(self, blocks: bytes) -> None:
        # A context that is reused would keep a partial block and spoil the next answer.
        if not blocks or len(blocks) % self.block_bytes:
            raise ValueError(
                f"{self.algorithm.value} takes whole blocks of {self.block_bytes} bytes"
            )

    def _gcm(self, nonce: bytes, tag: bytes | None) -> Cipher[modes.GCM]:
        if self.algorithm is not Algorithm.SM4:
            raise ValueError("keys are wrapped under SM4")
        if len(nonce) != GCM_NONCE_BYTES:
            raise ValueError(f"a nonce has {GCM_NONCE_BYTES} bytes")
        return Cipher(algorithms.SM4(self._material), modes.GCM(nonce, tag))

    def _cipher(self, mode: modes.ECB | modes.CBC) -> Cipher[modes.ECB | modes.CBC]:
        if self.algorithm is Algorithm.SM4:
            return Cipher(algorithms.SM4(self._material), mode)
        # One-, two- and three-key DES are one cipher: K‖K‖K is single DES, L‖R‖L is two-key 3DES.
        material = self._material
        full = material * 3 if len(material) == 8 else material + material[:8]
        return Cipher(TripleDES(full), mode)

    def __repr__(self) -> str:
        return f"<SecretKey {self.algorithm.value}>"

    def __eq__(self, other: object) -> NoReturn:
        raise TypeError("secret keys are not compared; compare check values")

    __hash__ = None  # type: ignore[assignment]  # a secret is no dictionary key

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret key is never pickled")

    def __getstate__(self) -> NoReturn:
        raise TypeError("a secret key is never pickled")
