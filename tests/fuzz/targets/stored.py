"""What is read back from the store or from a backup, by whoever could write to it.

The first byte says what it is: a backup as bytes; a backup that somebody signed with a key of their own; a store's
rows, tagged under the real wrapping keys after they were changed, so that what stands behind the tag is reached; a key
block's header. Nothing but the documented refusals comes of it.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

import msgpack
import msgspec

from keyd.crypto.algorithms import Algorithm
from keyd.crypto.secret import KeyNotAuthentic, SecretKey
from keyd.crypto.sm2 import Sm2PrivateKey
from keyd.custody import actions as act
from keyd.custody.backup import MAGIC, SIGNATURE_BYTES, make_backup, verify_backup
from keyd.custody.bodies import StoreAltered, _bound
from keyd.custody.contents import open_contents
from keyd.errors import KeyFileUnusable
from keyd.keys.block import Domain, read_header
from keyd.store.rows import Kind, Row, Snapshot
from tests.custody.test_backup import HEAD
from tests.custody.world import NOON, World, contents_of, spec
from tests.fuzz.mutators import messages_of, mutate_bytes, mutate_message, mutate_value
from tests.fuzz.target import Target

if TYPE_CHECKING:
    from random import Random

    from keyd.custody.contents import Contents

BACKUP, SIGNED_BACKUP, ROWS, HEADER = range(4)

_NONCE: Final = bytes(12)


@functools.cache
def _stored() -> tuple[Contents, Snapshot, bytes]:
    """A small store with a row of each kind, and its backup."""
    world = World()
    world.make_key()
    world.propose(Domain.SOCIAL, act.GenerateKey(spec()))
    contents, snapshot = contents_of(world.vault), world.store.load()
    backup = make_backup(contents, snapshot, HEAD, NOON, "LOCAL/e")
    world.close()
    return contents, snapshot, backup


@functools.cache
def _strangers_key() -> Sm2PrivateKey:
    return Sm2PrivateKey.generate()


def one_input(data: bytes) -> None:
    if not data:
        return
    match data[0] % 4:
        case 0:
            _verify(data[1:])
        case 1:
            _verify_signed(data[1:])
        case 2:
            _open_rows(data[1:])
        case _:
            _read_header(data[1:])


def _verify(backup: bytes) -> None:
    contents, snapshot, _backup = _stored()
    try:
        report, found = verify_backup(backup, contents.identity_body.public_key)
    except KeyFileUnusable as unusable:
        assert str(unusable)
        return
    # Nobody else can sign for this keyd.
    assert found == snapshot
    assert report.public_key == contents.identity_body.public_key


def _verify_signed(body: bytes) -> None:
    """Sign the first object of the body with a stranger's key, and put that key where keyd's is named."""
    point = _strangers_key().public.encode()
    original = _stored()[0].identity_body.public_key
    signed = MAGIC + body.replace(original, point)
    try:
        report, snapshot = verify_backup(signed + _strangers_key().sign(signed))
    except KeyFileUnusable as unusable:
        assert str(unusable)
        return
    assert report.public_key == point
    assert sum(report.rows.values()) == len(snapshot.rows)


def _open_rows(tree: bytes) -> None:
    contents, snapshot, _backup = _stored()
    rows = []
    for fields in messages_of(tree)[:40]:
        try:
            rows.append(_row(contents, snapshot, fields))
        except (ValueError, TypeError, OverflowError):
            continue  # it is none that a database could give
    try:
        opened = open_contents(Snapshot(1, tuple(rows)), contents.seal)
    except StoreAltered as refused:
        assert str(refused)
        return
    assert opened.identity_body.public_key
    for held in opened.keys.values():
        assert held.header.label


def _row(contents: Contents, snapshot: Snapshot, fields: Any) -> Row:
    """Make a row of [kind, id, domain, revision, body], tagged as a keyd would. A seal's is taken as it is."""
    kind, row_id, domain, revision, body = fields
    if [type(field) for field in fields[1:4]] != [bytes, str, int]:
        raise TypeError("a column has another type")
    kind = Kind(kind)
    if kind in (Kind.SEAL, Kind.LMK, Kind.IDENTITY):
        same = [row for row in snapshot.rows if (row.kind, row.id) == (kind, row_id)]
        if not same:
            raise ValueError("nobody can make such a row")
        return same[0]
    encoded = body if isinstance(body, bytes) else msgpack.packb(body)
    wrapping = contents.seal.wrapping_keys[Domain(domain)]
    if kind is Kind.KEY and revision % 2:
        sealed = wrapping.wrap(_key(), _NONCE, encoded)
    else:
        sealed = wrapping.seal(b"", _NONCE, _bound(kind, encoded))
    return Row(kind, row_id, domain, revision, encoded, _NONCE, sealed)


@functools.cache
def _key() -> SecretKey:
    # Synthetic.
    return SecretKey.load(Algorithm.SM4, bytes(range(16)))


def _read_header(encoded: bytes) -> None:
    try:
        header = read_header(encoded)
    except KeyNotAuthentic as refused:
        assert str(refused)
        return
    assert read_header(msgspec.msgpack.encode(header)) == header
    assert header.label


def mutate(data: bytes, random: Random) -> bytes:
    if not data or random.random() < 0.05:
        return mutate_bytes(data, random)
    what, content = data[0] % 4, data[1:]
    if what == BACKUP:
        return data[:1] + mutate_bytes(content, random)
    if what == SIGNED_BACKUP:
        return data[:1] + _mutate_nested(content, random)
    return data[:1] + mutate_message(content, random)


def _mutate_nested(body: bytes, random: Random) -> bytes:
    """Change a backup's body, mostly within the bytes of one of its rows."""
    try:
        tree = msgpack.unpackb(body)
        row = random.choice(tree[5])
        inner = msgpack.unpackb(row[4])
    except (ValueError, TypeError, IndexError, KeyError):
        return mutate_message(body, random)
    if random.random() < 0.6:
        row[4] = msgpack.packb(mutate_value(inner, random))
        octets: bytes = msgpack.packb(tree)
        return octets
    return mutate_message(body, random)


def seeds() -> list[bytes]:
    _contents, snapshot, backup = _stored()
    rows = [
        [row.kind.value, row.id, row.domain, row.revision, msgpack.unpackb(row.body)]
        for row in snapshot.rows
        # Enough of each kind, so that a change has somewhere to show.
        if row.kind is not Kind.OFFICER or row.domain == "SOCIAL"
    ]
    header = next(row.body for row in snapshot.rows if row.kind is Kind.KEY)
    return [
        bytes([BACKUP]) + backup,
        bytes([SIGNED_BACKUP]) + backup[len(MAGIC) : -SIGNATURE_BYTES],
        bytes([ROWS]) + b"".join(map(msgpack.packb, rows)),
        bytes([HEADER]) + header,
    ]


TARGET = Target(one_input, seeds, mutate, max_bytes=32 * 1024)
