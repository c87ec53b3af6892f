"""The seal: which key opens the store, and how people or a keeper bring it back.

Domains' wrapping keys (LMKs) are under the seal key; the seal key is written down nowhere. It comes back from
M of N shares, or from a keeper that holds a key of its own for it: a systemd credential or a PKCS#11 token. A share is
recognised by a commitment before it is used, so a wrong one is refused by its number and says nothing of the others.
"""

from __future__ import annotations

from hmac import compare_digest
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec import Struct

from keyd.crypto.algorithms import Algorithm
from keyd.crypto.secret import KeyNotAuthentic, SecretKey
from keyd.crypto.shares import Share, share_commitment
from keyd.custody.bodies import (
    SALT_BYTES,
    SealBody,
    ShareMark,
    StoreAltered,
    WrappedSealKey,
    open_row,
    open_wrapping_key,
)
from keyd.errors import NotSealed, ShareRefused
from keyd.keys.block import NONCE_BYTES, Domain
from keyd.store.rows import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from keyd.store.rows import Row

# Enough of the store's id to tell an envelope of one keyd from another's.
SHARE_STORE_BYTES: Final = 4

_KEEPER_LABEL: Final = b"keyd seal key under a keeper's 1\n"


class Progress(NamedTuple):
    """How far the unsealing is: which shares are in, and how many are needed."""

    given: tuple[int, ...]
    threshold: int


class OpenSeal(Struct, frozen=True):
    """An open seal: the domains' wrapping keys, and the rows that they were found in."""

    body: SealBody
    wrapping_keys: dict[Domain, SecretKey]
    wrapping_revisions: dict[Domain, int]
    # Their tags are under the seal key, which is gone by now: these are the rows as they were checked.
    rows: tuple[Row, ...]


class Unsealing:
    """Shares that have been given so far. They are kept here and nowhere else, and go when enough are there."""

    def __init__(self, body: SealBody) -> None:
        self.body = body
        self._shares: dict[int, Share] = {}

    @property
    def progress(self) -> Progress:
        """How far it is."""
        return Progress(tuple(sorted(self._shares)), self.body.threshold)

    def give(self, share: Share) -> SecretKey | None:
        """Take one share; return the seal key once there are enough. The same share twice is no fault.

        Raises:
            ShareRefused: it is another store's, of an older seal, or not what this number was given.
        """
        body = self.body
        if share.store != body.store_id[:SHARE_STORE_BYTES]:
            raise ShareRefused("the share is another store's")
        if share.generation != body.generation:
            raise ShareRefused(
                f"the share is of seal {share.generation}, and this is seal {body.generation}"
            )
        mark = next((mark for mark in body.shares if mark.number == share.number), None)
        if mark is None or not compare_digest(share_commitment(share, body.salt), mark.commitment):
            raise ShareRefused(f"share {share.number} is not the one of this seal")
        self._shares[share.number] = share
        if len(self._shares) < body.threshold:
            return None
        shares, self._shares = self._shares, {}
        return SecretKey.combine(
            Algorithm.SM4, [(number, given.value) for number, given in shares.items()]
        )

    def forget(self) -> None:
        """Let go of the shares that are in."""
        self._shares = {}


def open_seal(seal_key: SecretKey, rows: Iterable[Row]) -> OpenSeal:
    """Check the seal's row and unwrap the domains' keys.

    Raises:
        ShareRefused: the key is not this seal's, as when a share is right in form and wrong in substance.
        StoreAltered: a wrapping key does not open, or is missing.
    """
    rows = tuple(row for row in rows if row.kind in (Kind.SEAL, Kind.LMK))
    seal_rows = [row for row in rows if row.kind is Kind.SEAL]
    if len(seal_rows) != 1:
        raise StoreAltered("the store does not have one seal")
    try:
        body = open_row(seal_key, seal_rows[0], SealBody)
    except StoreAltered:
        raise ShareRefused(
            "this is not the key of the store's seal, or the seal was altered"
        ) from None
    if seal_rows[0].id != body.store_id or seal_rows[0].domain:
        raise StoreAltered("the seal was moved to another's place")
    keys: dict[Domain, SecretKey] = {}
    revisions: dict[Domain, int] = {}
    for row in rows:
        if row.kind is Kind.LMK:
            wrapping, lmk = open_wrapping_key(seal_key, row)
            if wrapping.generation != body.generation:
                raise StoreAltered(f"the wrapping key of {wrapping.domain} is of another seal")
            if row.id != wrapping.domain.value.encode() or row.domain != wrapping.domain:
                raise StoreAltered("a wrapping key was moved to another's place")
            keys[wrapping.domain] = lmk
            revisions[wrapping.domain] = wrapping.revision
    if set(keys) != set(Domain):
        raise StoreAltered("a wrapping key is missing")
    return OpenSeal(body, keys, revisions, rows)


def split_seal_key(
    seal_key: SecretKey, store_id: bytes, generation: int, threshold: int, count: int
) -> list[Share]:
    """Split the seal key into shares: the one way in which it leaves, in parts that say nothing alone."""
    return [
        Share(store_id[:SHARE_STORE_BYTES], generation, number, threshold, value)
        for number, value in enumerate(seal_key.split(threshold, count), 1)
    ]


def marks_of(shares: Sequence[Share], salt: bytes) -> tuple[ShareMark, ...]:
    """Return the commitments by which the shares will be recognised. The salt has 16 bytes."""
    if len(salt) != SALT_BYTES:
        raise ValueError(f"a salt has {SALT_BYTES} bytes")
    return tuple(ShareMark(share.number, share_commitment(share, salt)) for share in shares)


def wrap_for_keeper(
    seal_key: SecretKey,
    keeper: str,
    hint: bytes,
    keeper_key: SecretKey,
    random_bytes: Callable[[int], bytes],
) -> WrappedSealKey:
    """Wrap the seal key under the key that a keeper holds."""
    nonce = random_bytes(NONCE_BYTES)
    return WrappedSealKey(
        keeper, hint, nonce, keeper_key.wrap(seal_key, nonce, _KEEPER_LABEL + keeper.encode())
    )


def unwrap_from_keeper(wrapped: WrappedSealKey, keeper_key: SecretKey) -> SecretKey:
    """Unwrap the seal key.

    Raises:
        ShareRefused: the keeper's key is another.
    """
    try:
        return keeper_key.unwrap(
            wrapped.wrapped, wrapped.nonce, _KEEPER_LABEL + wrapped.keeper.encode(), Algorithm.SM4
        )
    except KeyNotAuthentic:
        raise ShareRefused(f"the {wrapped.keeper}'s key does not open this seal") from None


def require_sealed(is_sealed: bool) -> None:
    """Refuse to unseal what is open.

    Raises:
        NotSealed: so it is.
    """
    if not is_sealed:
        raise NotSealed
