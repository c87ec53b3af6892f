"""A backup is whole, one moment's, and its keyd's; restored into an empty store, the same shares open all of it."""

from __future__ import annotations

import secrets
import threading
from typing import TYPE_CHECKING, Final

import msgspec
import pytest
from msgspec.structs import replace
from sqlalchemy import text

from keyd.crypto.shares import Share
from keyd.crypto.sm2 import Sm2PrivateKey
from keyd.custody import actions as act
from keyd.custody.backup import MAGIC, Backup, JournalHead, make_backup, verify_backup
from keyd.custody.bodies import StoreNotOurs
from keyd.custody.contents import open_contents
from keyd.custody.vault import Vault
from keyd.errors import KeyFileUnusable, ShareRefused, StoreUnavailable
from keyd.keys.block import Domain
from keyd.store.database import Store
from tests.custody.world import NOON, SHARES, THRESHOLD, World, contents_of, spec

if TYPE_CHECKING:
    from pathlib import Path

HEAD: Final = JournalHead("keyd1", 3, 1234, bytes(range(32)), NOON * 10**9)


def backup_of(world: World) -> bytes:
    return make_backup(
        contents_of(world.vault), world.store.load(with_counters=True), HEAD, NOON, "LOCAL/e"
    )


def test_what_it_says_needs_no_share(world: World) -> None:
    key_id = world.make_key()
    report, snapshot = verify_backup(backup_of(world), world.founded.public_key)
    assert (report.store_id, report.public_key) == (
        world.founded.store_id,
        world.founded.public_key,
    )
    assert (report.generation, report.threshold, report.shares) == (1, THRESHOLD, SHARES)
    assert (report.made_at, report.made_by, report.journal) == (NOON, "LOCAL/e", HEAD)
    assert report.keys == (world.header(key_id).label,)
    assert report.rows["key"] == 1
    assert snapshot == world.store.load()


def test_no_altered_byte_and_no_cut_passes(world: World) -> None:
    world.make_key()
    data = backup_of(world)
    # Every byte of what frames it and of its signature, and of the long middle each seventh.
    places = [*range(400), *range(400, len(data) - 64, 7), *range(len(data) - 64, len(data))]
    for i in places:
        with pytest.raises(KeyFileUnusable):
            verify_backup(data[:i] + bytes([data[i] ^ 1 << i % 8]) + data[i + 1 :])
    for length in [*range(len(MAGIC) + 70), *range(100, len(data), 97), len(data) - 1]:
        with pytest.raises(KeyFileUnusable):
            verify_backup(data[:length])
    with pytest.raises(KeyFileUnusable):
        verify_backup(data + b"\0")


def test_another_keyds_backup_is_not_taken_for_this_ones(world: World) -> None:
    stranger = Sm2PrivateKey.generate().public.encode()
    with pytest.raises(KeyFileUnusable, match="another keyd's"):
        verify_backup(backup_of(world), stranger)


def forged(data: bytes, **changed: object) -> bytes:
    """What somebody else signs, with a key of their own."""
    key = Sm2PrivateKey.generate()
    body = msgspec.msgpack.decode(data[len(MAGIC) : -64], type=Backup)
    body = replace(body, public_key=key.public.encode(), **changed)
    signed = MAGIC + msgspec.msgpack.encode(body)
    return signed + key.sign(signed)


def test_what_a_stranger_signed_is_refused_and_breaks_nothing(world: World) -> None:
    """They can sign anything, also rows that nobody could read: it is refused in one way."""
    world.make_key()
    data = backup_of(world)
    rows = msgspec.msgpack.decode(data[len(MAGIC) : -64], type=Backup).rows
    broken = [
        (),
        rows,
        tuple(row for row in rows if row.kind != "seal"),
        tuple(replace(row, body=b"\xc1") if row.kind == "seal" else row for row in rows),
        tuple(replace(row, body=b"\xc1") if row.kind == "identity" else row for row in rows),
        tuple(replace(row, body=b"\xc1") if row.kind == "key" else row for row in rows),
        tuple(replace(row, revision=-1) for row in rows),
        rows + rows,
    ]
    for some in broken:
        with pytest.raises(KeyFileUnusable):
            verify_backup(forged(data, rows=some))


def restored(world: World, data: bytes, folder: Path) -> tuple[Store, Vault]:
    _, snapshot = verify_backup(data)
    store = Store.create(f"sqlite:///{folder}/restored.db")
    store.fill(snapshot)
    return store, Vault(store, "new", world.clock, secrets.token_bytes, lambda: None)


def test_the_same_shares_open_a_restored_store_and_everything_is_there(
    either_world: World, tmp_path: Path
) -> None:
    world = either_world
    keys = {domain: world.make_key(domain) for domain in Domain}
    world.decide(Domain.SOCIAL, act.Destroy(world.make_key(), 0))
    open_one = world.propose(Domain.SOCIAL, act.Deactivate(keys[Domain.SOCIAL]))
    store, vault = restored(world, backup_of(world), tmp_path)
    stranger = World()
    with pytest.raises(ShareRefused):
        vault.give_share(
            replace_value(world.founded.shares[0].value, stranger)  # another splitting's value
        )
    for share in world.founded.shares[1:]:
        vault.give_share(share)
    was, now = contents_of(world.vault), contents_of(vault)
    assert now.officers == was.officers
    assert now.proposals == was.proposals
    assert now.identity.public == was.identity.public
    for key_id, held in was.keys.items():
        assert now.keys[key_id].header == held.header
        if held.key is not None:
            there = now.keys[key_id].key
            assert there is not None
            assert there.encrypt(bytes(64)) == held.key.encrypt(bytes(64))
    # And it goes on from there.
    world.approve(open_one, vault=vault)
    with pytest.raises(StoreUnavailable, match="holds something"):
        store.fill(verify_backup(backup_of(world))[1])
    stranger.close()
    store.close()


def replace_value(value: bytes, world: World) -> Share:
    share = world.founded.shares[0]
    wrong = bytes([value[0] ^ 1]) + value[1:]
    return Share(share.store, share.generation, share.number, share.threshold, wrong)


def test_nothing_is_signed_that_does_not_open(world: World) -> None:
    """Otherwise a store that was altered would be verified, kept for years, and open for nobody."""
    world.make_key()
    contents = contents_of(world.vault)
    with world.store._engine.connect() as connection:
        connection.execute(text("UPDATE key_rows SET sealed = zeroblob(32)"))
        connection.commit()
    with pytest.raises(StoreNotOurs):
        make_backup(contents, world.store.load(with_counters=True), HEAD, NOON, "LOCAL/e")


def test_under_load_it_is_one_moment(either_world: World) -> None:
    """While another keyd decides on and on, every backup opens and holds what its number says."""
    world = either_world
    keys = world.vault
    other = world.open_vault()
    has_ended = threading.Event()
    failed: list[BaseException] = []

    def work() -> None:
        try:
            while not has_ended.is_set():
                other.reload()
                proposal = world.propose(Domain.SOCIAL, act.GenerateKey(spec()), vault=other)
                world.approve(proposal, vault=other)
        except BaseException as error:  # noqa: BLE001 - the main thread looks at it
            failed.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        numbers = []
        for _ in range(8):
            _, snapshot = verify_backup(backup_of(world))
            numbers.append(snapshot.number)
            opened = open_contents(snapshot, contents_of(keys).seal)
            done = [p for p in opened.proposals.values() if p.state == "done"]
            # A proposal is done in the commit that made its key: neither is ever without the other.
            assert {p.result["key_id"] for p in done} == set(opened.keys)
    finally:
        has_ended.set()
        worker.join()
    assert not failed
    assert numbers == sorted(numbers)
