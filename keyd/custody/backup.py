"""Backups: the whole store as ciphertext, with the journal's head, signed by the keyd that made it.

    "keyd backup 1\\n" ‖ MessagePack body ‖ SM2 signature 64 over all before it

It opens with the shares of the seal that it was made under and is useless without them. Anybody can verify that it is
whole and whose it is, with no share and no key: the signature is by the store's own SM2 key, whose public half an
organisation writes down at the founding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta, Struct

from keyd.crypto.secret import KeyNotAuthentic
from keyd.crypto.sm2 import PointNotOnCurve, SignatureNotAuthentic, Sm2PublicKey
from keyd.custody.bodies import IdentityBody, SealBody, StoreAltered, StoreNotOurs, decode
from keyd.custody.contents import open_contents
from keyd.custody.officers import PublicPoint
from keyd.custody.psam_rows import open_counters
from keyd.errors import KeyFileUnusable
from keyd.keys.block import read_header
from keyd.store.rows import CounterRow, Kind, Row, Snapshot

if TYPE_CHECKING:
    from keyd.custody.contents import Contents

MAGIC: Final = b"keyd backup 1\n"
SIGNATURE_BYTES: Final = 64

# 10,000 keys, officers and proposals of some 500 bytes; what is larger is no backup of ours.
MAX_BACKUP_BYTES: Final = 64 * 1024 * 1024


class JournalHead(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """How far an instance's journal was: segment, record number, link (32 bytes), time in ns since 1970."""

    instance: str
    segment: int
    record: int
    link: Annotated[bytes, Meta(min_length=32, max_length=32)]
    time_ns: int


class _Row(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    kind: Kind
    id: bytes
    domain: str
    revision: int
    body: bytes
    nonce: bytes
    sealed: bytes


class _Counters(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    psam: bytes
    revision: int
    nonce: bytes
    sealed: bytes
    restored: int


class Backup(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """What a backup holds. `made_at` is seconds since 1970; `number` is the store's change that it was made after."""

    made_at: int
    made_by: str
    public_key: PublicPoint
    journal: JournalHead
    number: int
    rows: tuple[_Row, ...]
    # Those of PSAMs that keyd plays. Backups of before there were any have none.
    counters: tuple[_Counters, ...] = ()


class Report(Struct, frozen=True):
    """What can be said of a backup without opening it."""

    store_id: bytes
    generation: int
    threshold: int
    shares: int
    public_key: bytes
    made_at: int
    made_by: str
    journal: JournalHead
    rows: dict[str, int]
    keys: tuple[str, ...]


def make_backup(
    contents: Contents, snapshot: Snapshot, journal: JournalHead, made_at: int, made_by: str
) -> bytes:
    """Return a backup of one consistent snapshot, which has PSAMs' counters too.

    Raises:
        StoreNotOurs: the snapshot does not open, so nobody could restore it.
    """
    try:
        opened = open_contents(snapshot, contents.seal, contents)
        _require_counters(snapshot)
        for row in snapshot.counters:
            open_counters(opened.psam_keys[row.psam.hex()], row)
    except StoreAltered as error:
        raise StoreNotOurs(f"the store was altered: {error}") from None
    body = Backup(
        made_at=made_at,
        made_by=made_by,
        public_key=contents.identity.public.encode(),
        journal=journal,
        number=snapshot.number,
        rows=tuple(_Row(**msgspec.structs.asdict(row)) for row in snapshot.rows),
        counters=tuple(_Counters(**msgspec.structs.asdict(row)) for row in snapshot.counters),
    )
    signed = MAGIC + msgspec.msgpack.encode(body)
    return signed + contents.identity.sign(signed)


def verify_backup(data: bytes, public_key: bytes | None = None) -> tuple[Report, Snapshot]:
    """Check a backup: whole, signed by the key that it names, and by this one if it is given. No share is needed.

    Raises:
        KeyFileUnusable: it is none, was altered or cut, or another key signed it.
    """
    if len(data) > MAX_BACKUP_BYTES or not data.startswith(MAGIC):
        raise KeyFileUnusable("it is no backup of this version")
    signed, signature = data[:-SIGNATURE_BYTES], data[-SIGNATURE_BYTES:]
    try:
        body = msgspec.msgpack.decode(signed[len(MAGIC) :], type=Backup)
        rows = tuple(Row(**msgspec.structs.asdict(row)) for row in body.rows)
        counters = tuple(CounterRow(**msgspec.structs.asdict(row)) for row in body.counters)
    except (msgspec.MsgspecError, ValueError):
        raise KeyFileUnusable("the backup is damaged or cut") from None
    try:
        Sm2PublicKey.load(body.public_key).verify(signed, signature)
    except (PointNotOnCurve, SignatureNotAuthentic):
        raise KeyFileUnusable("the backup was altered: its signature does not hold") from None
    if public_key is not None and public_key != body.public_key:
        raise KeyFileUnusable("the backup is another keyd's: it is signed with another key")
    try:
        snapshot = Snapshot(body.number, rows, counters)
        _require_counters(snapshot)
        return _report(body, rows), snapshot
    except (StoreAltered, KeyNotAuthentic, ValueError):
        # Whoever signs with a key of their own can sign anything.
        raise KeyFileUnusable("the backup holds rows that no keyd wrote") from None


def _require_counters(snapshot: Snapshot) -> None:
    """Insist that each PSAM has its counters: without them it would begin from the first number again."""
    psams = [row.id for row in snapshot.rows if row.kind is Kind.PSAM]
    if sorted(psams) != sorted(row.psam for row in snapshot.counters):
        raise StoreAltered("PSAMs and counters do not go together")


def _report(body: Backup, rows: tuple[Row, ...]) -> Report:
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.kind.value] = counts.get(row.kind.value, 0) + 1
    if counts.get(Kind.SEAL.value) != 1 or counts.get(Kind.IDENTITY.value) != 1:
        raise KeyFileUnusable("the backup is of no founded store")
    seal = next(decode(row, SealBody) for row in rows if row.kind is Kind.SEAL)
    identity = next(decode(row, IdentityBody) for row in rows if row.kind is Kind.IDENTITY)
    if identity.public_key != body.public_key:
        raise KeyFileUnusable("the backup is not signed by the keyd whose store it holds")
    return Report(
        store_id=seal.store_id,
        generation=seal.generation,
        threshold=seal.threshold,
        shares=len(seal.shares),
        public_key=body.public_key,
        made_at=body.made_at,
        made_by=body.made_by,
        journal=body.journal,
        rows=counts,
        keys=tuple(sorted(read_header(row.body).label for row in rows if row.kind is Kind.KEY)),
    )
