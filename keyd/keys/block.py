"""A key block: one wrapped key and the header that says what it may be used for, bound together.

The header is authenticated with the wrapped key as the bytes that were written, never as a re-encoding: one
changed bit makes the block unusable. Header and wrapped key mean nothing apart. Whatever changes in a key's life
(its state, how often it may still be used) is in the header as well, so that a change is a new block: whoever can
write to the store can put an old block back, which the journal shows, but cannot make one. docs/key-blocks.md has
the format.
"""

from __future__ import annotations

import enum
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from keyd.crypto.algorithms import KEY_BYTES, Algorithm
from keyd.crypto.secret import KCV_BYTES, KeyNotAuthentic, SecretKey

NONCE_BYTES: Final = 12
KEY_ID_BYTES: Final = 16

# The number grows when a field changes its meaning; fields are only appended, with defaults.
BLOCK_FORMAT: Final = 1

# A real header has some 200 bytes.
MAX_HEADER_BYTES: Final = 2048

# Addresses of the social security application: they belong to SOCIAL alone.
SOCIAL_ADDRESSES: Final = range(0x0200)

_encode: Final = msgspec.msgpack.Encoder().encode


class Domain(enum.StrEnum):
    """A key system. Each has its own wrapping key, officers and view of the journal; they never meet."""

    SOCIAL = "SOCIAL"
    FINANCE = "FINANCE"
    ACSE = "ACSE"
    LOCAL = "LOCAL"


class Tier(enum.StrEnum):
    """Whose key it is: the ministry's, a province's or a city's."""

    NATIONAL = "national"
    PROVINCIAL = "provincial"
    CITY = "city"


class Use(enum.StrEnum):
    """What a key is for. A key used for anything else is refused."""

    INTERNAL = "internal"
    EXTERNAL = "external"
    MESSAGING = "messaging"
    DEBIT = "debit"
    LOAD = "load"
    TAC = "tac"
    STARTING_DAY = "starting-day"
    TRANSPORT = "transport"
    """A key-transport key: it wraps other keys for their journey and computes nothing else."""
    TERMINAL = "terminal"
    """The terminal master key: terminals and keyd prove themselves to each other under what is diversified from it."""


class Mode(enum.StrEnum):
    """In which direction a key may be used."""

    PRODUCE = "produce"
    VERIFY = "verify"
    WRAP = "wrap"
    UNWRAP = "unwrap"


class KeyState(enum.StrEnum):
    """Where in its life a key is."""

    PRE_ACTIVE = "pre-active"
    ACTIVE = "active"
    DEACTIVATED = "deactivated"
    """It still verifies what it made, and makes nothing new."""
    COMPROMISED = "compromised"
    DESTROYED = "destroyed"
    """It computes nothing; until its waiting period is over it can be brought back."""


class Export(enum.StrEnum):
    """How a key may leave, always wrapped and under dual control."""

    NEVER = "never"
    CHILD = "child"
    """Only what is diversified from it: a city's root, for hand-over (母卡)."""
    WRAPPED = "wrapped"


class KeyPlace(Struct, frozen=True):
    """Where a key answers: logical address, name, set, for which algorithm and which use."""

    address: int
    name: str
    set: int
    algorithm: Algorithm
    use: Use


Seconds = Annotated[int, Meta(ge=0)]


class KeyHeader(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """What a key is, what it may do and how it does. Times are seconds since 1970, UTC; 0 is "not set"."""

    format: Annotated[int, Meta(ge=BLOCK_FORMAT, le=BLOCK_FORMAT)]
    key_id: Annotated[bytes, Meta(min_length=KEY_ID_BYTES, max_length=KEY_ID_BYTES)]
    domain: Domain
    tier: Tier
    name: Annotated[str, Meta(min_length=1, max_length=32)]
    addresses: Annotated[tuple[Annotated[int, Meta(ge=0, le=0xFFFF)], ...], Meta(max_length=16)]
    psam_type: Annotated[int, Meta(ge=0, le=0xFF)]
    psam_id: Annotated[int, Meta(ge=0, le=0xFF)]
    set: Annotated[int, Meta(ge=1, le=3)]
    algorithm: Algorithm
    # How far above its cards it stands: 3, 2 or 1, and 0 for a key that is no card's root.
    levels: Annotated[int, Meta(ge=0, le=3)]
    use: Use
    modes: Annotated[tuple[Mode, ...], Meta(min_length=1, max_length=4)]
    version: Annotated[int, Meta(ge=1, le=0xFFFF)]
    valid_from: Seconds
    valid_until: Seconds
    # How often it may be used, and from which count on keyd warns; 0 is without end.
    ceiling: Seconds
    warn_at: Seconds
    export: Export
    created_by: Annotated[str, Meta(min_length=1, max_length=64)]
    created_at: Seconds
    kcv: Annotated[bytes, Meta(min_length=KCV_BYTES, max_length=KCV_BYTES)]
    state: KeyState = KeyState.PRE_ACTIVE
    changed_at: Seconds = 0
    # Cards of an older version than this are refused at these addresses.
    minimum_version: Annotated[int, Meta(ge=1, le=0xFFFF)] = 1
    # Uses that were handed out as quotas; never less than what was used.
    uses: Seconds = 0
    # When its waiting period is over and what is wrapped is deleted.
    destroy_after: Seconds = 0
    # Destruction hides it, restoring must not forget it.
    was_compromised: bool = False
    # Grows by one with every change; the store's column repeats it.
    revision: Annotated[int, Meta(ge=1)] = 1

    @property
    def label(self) -> str:
        """What the journal and metrics call the key: its domain, addresses, version and the start of its id."""
        where = "+".join(f"{address:04X}" for address in self.addresses) or self.name
        return (
            f"{self.domain}/{where}/{self.algorithm.value}/v{self.version}/{self.key_id[:4].hex()}"
        )


class KeyBlock(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Header bytes, nonce (12 bytes) and the wrapped key with its tag."""

    header: Annotated[bytes, Meta(max_length=MAX_HEADER_BYTES)]
    nonce: Annotated[bytes, Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
    wrapped: bytes


_decode_header: Final = msgspec.msgpack.Decoder(KeyHeader).decode


def make_block(kek: SecretKey, header: KeyHeader, key: SecretKey, nonce: bytes) -> KeyBlock:
    """Wrap a key under the key-encrypting key. The nonce is random, 12 bytes, and used once."""
    if header.kcv != key.kcv() or header.algorithm is not key.algorithm:
        raise ValueError("the header is another key's")
    encoded = _encode(header)
    # A struct checks nothing when it is made, and a block that cannot be read again is a lost key.
    try:
        is_readable = read_header(encoded) == header
    except KeyNotAuthentic:
        is_readable = False
    if not is_readable:
        raise ValueError("the header has a field beyond its limits")
    return KeyBlock(encoded, nonce, kek.wrap(key, nonce, encoded))


def open_block(kek: SecretKey, block: KeyBlock) -> tuple[KeyHeader, SecretKey]:
    """Unwrap a key block.

    Raises:
        KeyNotAuthentic: header or wrapped key was altered, or the block is under another key.
    """
    header = read_header(block.header)
    key = kek.unwrap(block.wrapped, block.nonce, block.header, header.algorithm)
    if key.kcv() != header.kcv:
        raise KeyNotAuthentic("the unwrapped key does not have the header's check value")
    return header, key


def read_header(encoded: bytes) -> KeyHeader:
    """Decode a header, which says nothing of whether it is authentic.

    Raises:
        KeyNotAuthentic: it is no header of this format.
    """
    if len(encoded) > MAX_HEADER_BYTES:
        raise KeyNotAuthentic("the key block's header is too long")
    try:
        header = _decode_header(encoded)
    except (msgspec.MsgspecError, ValueError):  # bad UTF-8 is a ValueError of its own
        raise KeyNotAuthentic("the key block's header cannot be read") from None
    if header.algorithm not in KEY_BYTES:
        raise KeyNotAuthentic("the key block's algorithm is unknown")
    return header
