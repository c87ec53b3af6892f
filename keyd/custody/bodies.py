"""What the store keeps, and how it is sealed: nothing in a row is believed that a wrapping key has not tagged.

A key's row is a key block (`keyd.keys.block`). Every other row has a body and a tag over it under its domain's
wrapping key, with the row's kind before the body so that no row passes for one of another kind. Columns repeat what
the body says, for the database's sake; only the body counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta, Struct

from keyd.crypto.secret import KeyNotAuthentic, SecretKey
from keyd.custody.officers import PublicPoint
from keyd.errors import AlgorithmNotSupported, StoreUnavailable
from keyd.keys.block import (
    NONCE_BYTES,
    Domain,
    KeyBlock,
    KeyHeader,
    KeyState,
    Seconds,
    Tier,
    make_block,
    open_block,
    read_header,
)
from keyd.store.rows import Kind, Row

if TYPE_CHECKING:
    from collections.abc import Callable

    RandomBytes = Callable[[int], bytes]

STORE_ID_BYTES: Final = 16
SALT_BYTES: Final = 16

# The row of keyd's own key: there is one.
IDENTITY_ID: Final = b"identity"

_LABEL: Final = b"keyd row 1\n"

Revision = Annotated[int, Meta(ge=1)]


class StoreAltered(Exception):  # noqa: N818 - says what happened
    """A row of the store does not open: somebody changed it, or it belongs to another store."""


class StoreNotOurs(StoreUnavailable):
    """The store was altered, or has another seal now: what is held of it must go."""


class ShareMark(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """How a share is recognised without being known: its number and its commitment, 16 bytes."""

    number: Annotated[int, Meta(ge=1, le=255)]
    commitment: Annotated[bytes, Meta(min_length=16, max_length=16)]


class WrappedSealKey(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """The seal key under a key that something other than people keeps: a systemd credential or a token.

    `hint` is what the keeper needs to find or open its key; it is no secret.
    """

    keeper: Annotated[str, Meta(min_length=1, max_length=32)]
    hint: Annotated[bytes, Meta(max_length=1024)]
    nonce: Annotated[bytes, Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
    wrapped: Annotated[bytes, Meta(max_length=64)]


class SealBody(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """The seal: whose store this is, and how it is opened."""

    store_id: Annotated[bytes, Meta(min_length=STORE_ID_BYTES, max_length=STORE_ID_BYTES)]
    tier: Tier
    generation: Annotated[int, Meta(ge=1, le=0xFFFF)]
    threshold: Annotated[int, Meta(ge=1, le=255)]
    salt: Annotated[bytes, Meta(min_length=SALT_BYTES, max_length=SALT_BYTES)]
    shares: tuple[ShareMark, ...]
    keepers: tuple[WrappedSealKey, ...]
    made_at: Seconds
    revision: Revision = 1


class WrappingKeyBody(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A domain's wrapping key (LMK), under the seal key."""

    domain: Domain
    generation: Annotated[int, Meta(ge=1, le=0xFFFF)]
    revision: Revision = 1


class IdentityBody(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """keyd's own SM2 key, to which envelopes are sealed and which signs checkpoints and backups."""

    public_key: PublicPoint
    made_at: Seconds
    revision: Revision = 1


BodyT = TypeVar("BodyT", bound=Struct)

_encode: Final = msgspec.msgpack.Encoder().encode


def encode(body: Struct) -> bytes:
    """Return a body's bytes, as they are tagged and kept."""
    return _encode(body)


def decode(row: Row, body_type: type[BodyT]) -> BodyT:
    """Read a row's body, which says nothing of whether it is authentic.

    Raises:
        StoreAltered: it is no such body.
    """
    try:
        return msgspec.msgpack.decode(row.body, type=body_type)
    except (msgspec.MsgspecError, ValueError):  # bad UTF-8 is a ValueError of its own
        raise StoreAltered(f"a row of {row.kind} cannot be read") from None


def seal_row(
    kek: SecretKey, kind: Kind, row_id: bytes, domain: str, body: Any, random_bytes: RandomBytes
) -> Row:
    """Make a row whose body is tagged under a wrapping key.

    Raises:
        ValueError: the body has a field beyond its limits.
    """
    encoded = _encode(body)
    # A struct checks nothing when it is made, and one row that cannot be read again is a lost store.
    try:
        is_readable = _encode(msgspec.msgpack.decode(encoded, type=type(body))) == encoded
    except (msgspec.MsgspecError, ValueError):
        is_readable = False
    if not is_readable:
        raise ValueError(f"a row of {kind} has a field beyond its limits")
    nonce = random_bytes(NONCE_BYTES)
    tag = kek.seal(b"", nonce, _bound(kind, encoded))
    return Row(kind, row_id, domain, body.revision, encoded, nonce, tag)


def open_row(kek: SecretKey, row: Row, body_type: type[BodyT]) -> BodyT:
    """Check a row's tag and read its body.

    Raises:
        StoreAltered: one bit of it is not as it was written.
    """
    try:
        kek.open(row.sealed, row.nonce, _bound(row.kind, row.body))
    except (KeyNotAuthentic, ValueError):
        raise StoreAltered(f"a row of {row.kind} was altered, or is another store's") from None
    body = decode(row, body_type)
    _require_same_revision(row, body)
    return body


def seal_wrapping_key(
    seal_key: SecretKey, body: WrappingKeyBody, lmk: SecretKey, random_bytes: RandomBytes
) -> Row:
    """Make the row of a domain's wrapping key."""
    encoded = _encode(body)
    nonce = random_bytes(NONCE_BYTES)
    wrapped = seal_key.wrap(lmk, nonce, _bound(Kind.LMK, encoded))
    row_id = body.domain.value.encode()
    return Row(Kind.LMK, row_id, body.domain.value, body.revision, encoded, nonce, wrapped)


def open_wrapping_key(seal_key: SecretKey, row: Row) -> tuple[WrappingKeyBody, SecretKey]:
    """Unwrap a domain's wrapping key.

    Raises:
        StoreAltered: as `open_row`.
    """
    body = decode(row, WrappingKeyBody)
    try:
        lmk = seal_key.unwrap(row.sealed, row.nonce, _bound(row.kind, row.body), seal_key.algorithm)
    except (KeyNotAuthentic, ValueError):
        raise StoreAltered("a wrapping key was altered, or is another store's") from None
    _require_same_revision(row, body)
    return body, lmk


def seal_key_row(
    lmk: SecretKey, header: KeyHeader, key: SecretKey | None, random_bytes: RandomBytes
) -> Row:
    """Make a key's row: a key block, or, for a key that is gone for good, its header alone."""
    if key is None:
        return seal_row(lmk, Kind.KEY, header.key_id, header.domain.value, header, random_bytes)
    block = make_block(lmk, header, key, random_bytes(NONCE_BYTES))
    return Row(
        Kind.KEY,
        header.key_id,
        header.domain.value,
        header.revision,
        block.header,
        block.nonce,
        block.wrapped,
    )


def open_key_row(lmk: SecretKey, row: Row) -> tuple[KeyHeader, SecretKey | None]:
    """Open a key's row.

    Raises:
        StoreAltered: as `open_row`.
    """
    try:
        header = read_header(row.body)
        if header.state is KeyState.DESTROYED and len(row.sealed) == _TAG_BYTES:
            return open_row(lmk, row, KeyHeader), None
        header, key = open_block(lmk, KeyBlock(row.body, row.nonce, row.sealed))
    except AlgorithmNotSupported:
        raise StoreAltered(
            f"key {row.id.hex()} is of an algorithm that keyd never stores"
        ) from None
    except (KeyNotAuthentic, ValueError):
        raise StoreAltered(f"the block of key {row.id.hex()} was altered") from None
    _require_same_revision(row, header)
    return header, key


_TAG_BYTES: Final = 16


def _bound(kind: Kind, body: bytes) -> bytes:
    return _LABEL + kind.value.encode() + b"\n" + body


def _require_same_revision(row: Row, body: Any) -> None:
    if body.revision != row.revision:
        raise StoreAltered(f"a row of {row.kind} was altered: its revision is not its body's")
