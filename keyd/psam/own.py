"""A PSAM's own key: it proves whoever maintains the PSAM, and lets keys be loaded under it.

Loading differs from everything that is done for a card: the key serves directly, the IV is the challenge filled up
with 00, and 3DES has a retail MAC.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyd.keys.hierarchy import CardKey, CipherKey, pad, short_mac

if TYPE_CHECKING:
    from keyd.crypto.algorithms import Algorithm
    from keyd.crypto.secret import SecretKey


class OwnKey:
    """A key of a PSAM for itself, in locked memory. It is diversified no further."""

    __slots__ = ("_key",)

    def __init__(self, key: SecretKey) -> None:
        self._key = key

    @property
    def algorithm(self) -> Algorithm:
        """The block cipher of this key."""
        return self._key.algorithm

    @property
    def block_bytes(self) -> int:
        """16, or 8 for DES and 3DES."""
        return self._key.block_bytes

    def cryptogram(self, session_factor: bytes, challenge: bytes) -> bytes:
        """Return the cryptogram, 8 bytes, that proves this key over a challenge of 8 bytes."""
        return CardKey(self._key).derive(session_factor).cryptogram(challenge)

    def loading_mac(self, challenge: bytes, command: bytes) -> bytes:
        """Return the MAC, 4 bytes, of a command that loads a key: header, Lc and what is enciphered.

        The challenge has at most as many bytes as a block.
        """
        size = self._key.block_bytes
        iv = challenge.ljust(size, b"\0")
        return short_mac(CipherKey(self._key).finish(pad(command, size), iv))

    def unwrap(
        self, ciphertext: bytes, offset: int, algorithm: Algorithm
    ) -> tuple[bytes, SecretKey]:
        """Decrypt what carries a key at that offset: the plaintext with zeros in the key's place, and the key."""
        return self._key.unwrap_within(ciphertext, offset, algorithm)

    def __repr__(self) -> str:
        return f"<OwnKey {self._key.algorithm.value}>"
