"""A key block: one wrapped key and the header that says what it may be used for, bound together.

The header is authenticated with the wrapped key as the bytes that were written, never as a re-encoding: one
changed bit makes the block unusable. Header and wrapped key mean nothing apart.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from keyd.crypto.algorithms import KEY_BYTES, Algorithm
from keyd.crypto.secret import KCV_BYTES, KeyNotAuthentic, SecretKey

NONCE_BYTES: Final = 12

_encode: Final = msgspec.msgpack.Encoder().encode


class KeyPlace(Struct, frozen=True):
    """Where a key answers: logical address, name, set, and for which algorithm."""

    address: int
    name: str
    set: int
    algorithm: Algorithm


class KeyHeader(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """What a key is for. `kcv` is its check value, 3 bytes; `levels` how far above its cards it stands."""

    address: Annotated[int, Meta(ge=0, le=0xFFFF)]
    name: Annotated[str, Meta(min_length=1, max_length=32)]
    set: Annotated[int, Meta(ge=1, le=3)]
    algorithm: Algorithm
    levels: Annotated[int, Meta(ge=1, le=3)]
    kcv: Annotated[bytes, Meta(min_length=KCV_BYTES, max_length=KCV_BYTES)]


class KeyBlock(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Header bytes, nonce (12 bytes) and the wrapped key with its tag."""

    header: bytes
    nonce: Annotated[bytes, Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
    wrapped: bytes


_decode_header: Final = msgspec.msgpack.Decoder(KeyHeader).decode


def make_block(kek: SecretKey, header: KeyHeader, key: SecretKey, nonce: bytes) -> KeyBlock:
    """Wrap a key under the key-encrypting key. The nonce is random, 12 bytes, and used once."""
    if header.kcv != key.kcv() or header.algorithm is not key.algorithm:
        raise ValueError("the header is another key's")
    encoded = _encode(header)
    return KeyBlock(encoded, nonce, kek.wrap(key, nonce, encoded))


def open_block(kek: SecretKey, block: KeyBlock) -> tuple[KeyHeader, SecretKey]:
    """Unwrap a key block.

    Raises:
        KeyNotAuthentic: header or wrapped key was altered, or the block is under another key.
    """
    try:
        header = _decode_header(block.header)
    except (msgspec.MsgspecError, ValueError):  # bad UTF-8 is a ValueError of its own
        raise KeyNotAuthentic("the key block's header cannot be read") from None
    if header.algorithm not in KEY_BYTES:
        raise KeyNotAuthentic("the key block's algorithm is unknown")
    key = kek.unwrap(block.wrapped, block.nonce, block.header, header.algorithm)
    if key.kcv() != header.kcv:
        raise KeyNotAuthentic("the unwrapped key does not have the header's check value")
    return header, key
