"""A share of a key as it is printed, for the envelope (密码信封) of the officer who keeps it.

    KEYD-SHARE-1-41G2-0R20-…    12 groups of 4 characters: Crockford's base32 of 30 bytes, which are
                                store 4 ‖ generation 4 ‖ number 1 ‖ threshold 1 ‖ value 16 ‖ checksum 4

The checksum is the beginning of SM3 over the prefix and the 26 bytes before it. It finds a slip of the pen, and it
proves nothing: whoever can write a share can write its checksum. What a store knows of its shares is their
commitments, see `share_commitment`.

This module knows text and bytes. Splitting and combining is `SecretKey`'s. A share is a Python object wherever people
read and write it; what is made of it here is to be dropped soon.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Final, NoReturn

from keyd.crypto.sm3 import sm3
from keyd.errors import ShareRefused

STORE_BYTES: Final = 4
VALUE_BYTES: Final = 16
SALT_BYTES: Final = 16
COMMITMENT_BYTES: Final = 16

# A wrong text passes once in 2^32 times. With it a share has 240 bits, which are whole characters and whole groups.
CHECKSUM_BYTES: Final = 4

MAX_GENERATION: Final = 0xFFFFFFFF
MAX_NUMBER: Final = 255

_PREFIX: Final = "KEYD-SHARE-1"
_GROUP: Final = 4
_BITS: Final = 5

# Crockford's: no I, L, O, which look like digits, and no U.
_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_VALUES: Final = {character: value for value, character in enumerate(_ALPHABET)}

_FIELDS_BYTES: Final = STORE_BYTES + 4 + 1 + 1 + VALUE_BYTES
_CHARACTERS: Final = (_FIELDS_BYTES + CHECKSUM_BYTES) * 8 // _BITS

# A share is 72 characters long as it is printed. Who puts spaces everywhere and lines between them needs thrice that.
_MAX_TEXT: Final = 256

# What people put between groups, and what a word processor or a Chinese input method makes of it.
_BETWEEN: Final = " \t\r\n\u00a0\u3000-‐‑‒–—−－_"

_SEEN_AS: Final = {"O": "0", "I": "1", "L": "1"}


def _table() -> dict[int, str | None]:
    """Return what each character that somebody may type is read as: itself in upper case, or nothing.

    A Chinese input method types ASCII in its full width, at FF01 to FF5E. `str.upper` alone would also make capitals
    of letters that no share has.
    """
    table: dict[int, str | None] = {}
    for code in range(0x21, 0x7F):
        capital = chr(code).upper()
        table[code] = table[code + 0xFEE0] = _SEEN_AS.get(capital, capital)
    return table | dict.fromkeys(map(ord, _BETWEEN))


_TYPED: Final = _table()


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Share:
    """One share of one key, and what it belongs to. Its text shows its number and never its value."""

    store: bytes
    """Which store's key it is a share of: 4 bytes."""
    generation: int
    """Which splitting of that key: 0 to 2^32 - 1."""
    number: int
    """Which of the shares: 1 to 255."""
    threshold: int
    """How many shares make the key: 1 to 255."""
    value: bytes
    """The share itself: 16 bytes."""

    def __post_init__(self) -> None:
        if len(self.store) != STORE_BYTES:
            raise ValueError(f"a store is named by {STORE_BYTES} bytes")
        if not 0 <= self.generation <= MAX_GENERATION:
            raise ValueError(f"a generation is 0 to {MAX_GENERATION}")
        if not (1 <= self.number <= MAX_NUMBER and 1 <= self.threshold <= MAX_NUMBER):
            raise ValueError(f"a share's number and its threshold are 1 to {MAX_NUMBER}")
        if len(self.value) != VALUE_BYTES:
            raise ValueError(f"a share has {VALUE_BYTES} bytes")

    def __repr__(self) -> str:
        return f"<Share {self.number}>"

    def __eq__(self, other: object) -> NoReturn:
        raise TypeError("shares are not compared; compare their commitments in constant time")

    __hash__ = None  # type: ignore[assignment]  # a secret is no dictionary key

    def __reduce__(self) -> NoReturn:
        raise TypeError("a share is never pickled")


def encode_share(share: Share) -> str:
    """Return the share as one line of 72 capitals, digits and hyphens."""
    fields = _fields(share)
    number = int.from_bytes(fields + _checksum(fields), "big")
    characters = [
        _ALPHABET[number >> place & 31] for place in range(_BITS * (_CHARACTERS - 1), -1, -_BITS)
    ]
    text = "".join(characters)
    groups = [text[at : at + _GROUP] for at in range(0, _CHARACTERS, _GROUP)]
    return "-".join([_PREFIX, *groups])


def decode_share(text: str) -> Share:
    """Read a share as somebody typed it.

    Case, spaces, line ends, hyphens and full-width characters do not matter, nor O for 0, nor I or L for 1.

    Raises:
        ShareRefused: the text is no share. The sentence names the part that is wrong (length, prefix, character,
            checksum, number), quotes nothing and does not say where.
    """
    if len(text) > _MAX_TEXT:
        raise ShareRefused("the length of the share is wrong: the text is too long")
    typed = text.translate(_TYPED)
    prefix = _PREFIX.replace("-", "")
    if not typed.startswith(prefix):
        raise ShareRefused(f"the prefix of the share is wrong: it begins with {_PREFIX}")
    characters = typed[len(prefix) :]
    if len(characters) != _CHARACTERS:
        raise ShareRefused(
            f"the length of the share is wrong: {_CHARACTERS} characters follow the prefix"
        )
    number = 0
    for character in characters:
        if character not in _VALUES:
            raise ShareRefused("a character of the share is wrong: no share has such a one")
        number = number << _BITS | _VALUES[character]
    octets = number.to_bytes(_FIELDS_BYTES + CHECKSUM_BYTES, "big")
    fields, checksum = octets[:_FIELDS_BYTES], octets[_FIELDS_BYTES:]
    if not hmac.compare_digest(_checksum(fields), checksum):
        raise ShareRefused(
            "the checksum of the share is wrong: a character is not as printed, or two changed places"
        )
    if fields[8] == 0 or fields[9] == 0:
        raise ShareRefused("the number of the share is wrong: numbers and thresholds begin with 1")
    return Share(
        store=fields[:4],
        generation=int.from_bytes(fields[4:8], "big"),
        number=fields[8],
        threshold=fields[9],
        value=fields[10:],
    )


def share_commitment(share: Share, salt: bytes) -> bytes:
    """Return 16 bytes that a store keeps of a share, so that it can refuse a wrong one without knowing the right one.

    The salt has 16 bytes and is random for each splitting. Compare with `hmac.compare_digest`.

    A plain hash is safe here where it would not be for a passphrase: a share's value is 128 uniformly random bits, so
    that finding it from its hash means trying 2^127 values on average, and there is no list to try first. The same
    holds for somebody who has all other shares but one below the threshold. Only the promise of sharing changes: the
    store's file says nothing to whoever cannot compute that much, instead of nothing at all. With a threshold of 1
    the value is the key, and what is said of it holds if the key is random. The fields are hashed too, each of a fixed
    length, so that the commitment of one share is none of another number, generation or store.
    """
    if len(salt) != SALT_BYTES:
        raise ValueError(f"a salt has {SALT_BYTES} bytes")
    return sm3(b"keyd share commitment 1" + salt + _fields(share))[:COMMITMENT_BYTES]


def _fields(share: Share) -> bytes:
    generation = share.generation.to_bytes(4, "big")
    return share.store + generation + bytes([share.number, share.threshold]) + share.value


def _checksum(fields: bytes) -> bytes:
    return sm3(_PREFIX.encode() + fields)[:CHECKSUM_BYTES]
