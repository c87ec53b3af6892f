"""What a PSAM that keyd plays remembers: in the store, for every keyd of it, over kills, rekeys and restores."""

from __future__ import annotations

import contextlib
import random
import secrets
import sqlite3
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest
from msgspec.structs import replace

from keyd.crypto.shares import encode_share
from keyd.custody import actions as act
from keyd.custody.backup import JournalHead, make_backup, verify_backup
from keyd.custody.bodies import StoreNotOurs
from keyd.custody.psam_memory import StoreMemory
from keyd.custody.psam_rows import RESTORED_NUMBERS, HeldPsam
from keyd.errors import KeyFileUnusable, StoreUnavailable
from keyd.keys.block import Domain
from keyd.psam import Counters, PsamRecord
from keyd.psam.counters import MAX_NUMBER, NumbersSpent
from keyd.registry.psam import PsamAct
from keyd.store.database import Store
from tests.custody import buyers
from tests.custody.world import NOON, World, contents_of, psam_spec

if TYPE_CHECKING:
    from pathlib import Path

    from keyd.store.rows import Snapshot

LOCAL: Final = Domain.LOCAL
NUMBER: Final = "510100000428"
HEAD: Final = JournalHead("keyd1", 3, 1234, bytes(range(32)), NOON * 10**9)

KILLS: Final = 30
# A buyer lives for a few purchases and then for up to this many seconds, in which the next ones are under way.
LONGEST_LIFE: Final = 0.02


def issue(world: World, *serials: int, **fields: Any) -> None:
    specs = tuple(psam_spec(n, **fields) for n in serials or (428,))
    world.decide(LOCAL, act.IssuePsams(specs))


def assign(world: World) -> None:
    world.decide(LOCAL, act.ChangePsams((NUMBER,), PsamAct.ASSIGN))


def memory(world: World) -> StoreMemory:
    contents = contents_of(world.vault)
    held = HeldPsam(contents.psam(NUMBER), contents.psam_keys[NUMBER])
    return StoreMemory(world.store, held, secrets.token_bytes)


def test_a_new_psam_begins_with_the_first_number(either_world: World) -> None:
    world = either_world
    issue(world)
    counters = Counters(memory(world), 16)
    assert [counters.take_number() for _ in range(20)] == list(range(1, 21))
    assert memory(world).load() == PsamRecord(number=33)
    number = world.store.change_number()
    counters.count_wrong("MAC2")
    # Other keyds need not load everything for that.
    assert world.store.change_number() == number


def test_two_keyds_of_one_store_play_one_psam(either_world: World) -> None:
    """Each thread is a keyd with counters of its own: no number comes twice, and every wrong proof counts."""
    world = either_world
    issue(world)
    given: list[list[int]] = []
    failures: list[BaseException] = []

    def keyd() -> None:
        try:
            counters = Counters(memory(world), 3)
            given.append([counters.take_number() for _ in range(25)])
            counters.count_wrong("MAC2")
        except BaseException as error:  # noqa: BLE001 - a thread's end must not be silent
            failures.append(error)

    world.open_vault()
    threads = [threading.Thread(target=keyd) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    numbers = [number for each in given for number in each]
    assert len(set(numbers)) == len(numbers) == 150
    assert all(each == sorted(each) for each in given)
    record = memory(world).load()
    assert record.wrong == {"MAC2": 6}
    assert record.number > max(numbers)


def test_killed_between_the_two_commands_a_number_never_comes_twice(either_world: World) -> None:
    """Two keyds play one PSAM, each is killed at any moment, again and again: in the whole run no number repeats."""
    world = either_world
    issue(world, keys=("*",))
    assign(world)
    chance = random.Random(672)  # noqa: S311 - moments, not secrets
    shares = [encode_share(share) for share in world.founded.shares]
    context = buyers.context()
    seen: list[int] = []
    rounds = 0
    living: list[tuple[Any, Any]] = []
    while rounds < KILLS or living:
        while rounds < KILLS and len(living) < 2:
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=buyers.buy, args=(world.url, shares, theirs))
            process.start()
            theirs.close()
            living.append((process, ours))
            rounds += 1
        process, ours = living.pop(0)
        seen += [ours.recv() for _ in range(chance.randrange(1, 40))]
        time.sleep(chance.random() * LONGEST_LIFE)
        process.kill()
        process.join()
        with ours, contextlib.suppress(EOFError):
            while True:
                seen.append(ours.recv())
    assert len(set(seen)) == len(seen) > KILLS * 10
    # Nothing that was answered is above what is kept as spent.
    assert memory(world).load().number > max(seen)


def test_the_end_of_all_numbers_is_the_end_at_every_keyd(world: World) -> None:
    issue(world)
    memory(world).change(lambda record: replace(record, number=MAX_NUMBER - 1))
    counters = Counters(memory(world), 16)
    assert counters.take_number() == MAX_NUMBER - 1
    for one in (counters, Counters(memory(world), 16)):
        with pytest.raises(NumbersSpent):
            one.take_number()


def test_a_rekey_leaves_counters_to_whoever_counts(world: World) -> None:
    """Another keyd, which does not know of the new seal yet, counts on; so does whoever begins after it."""
    issue(world)
    before = Counters(memory(world), 1)
    assert before.take_number() == 1
    proposal = world.decide(LOCAL, act.Rekey(2, ("a", "b")))
    for code in "ab":
        world.confirm(proposal, code)
    after = Counters(memory(world), 1)
    assert [c.take_number() for c in (before, after, before, after)] == [2, 3, 4, 5]


def test_no_altered_byte_of_its_counters_is_believed(world: World) -> None:
    issue(world, 428, 429)
    Counters(memory(world), 16).take_number()
    with contextlib.closing(sqlite3.connect(world.path, isolation_level=None)) as database:
        of_it = (psam_spec().number,)
        for column in ("nonce", "sealed"):
            query = f"SELECT {column} FROM psam_counters WHERE psam = ?"  # noqa: S608 - names
            (was,) = database.execute(query, of_it).fetchone()
            set_it = f"UPDATE psam_counters SET {column} = ? WHERE psam = ?"  # noqa: S608 - names
            for place in range(len(was)):
                altered = was[:place] + bytes([was[place] ^ 1 << place % 8]) + was[place + 1 :]
                database.execute(set_it, (altered, *of_it))
                with pytest.raises(StoreNotOurs, match="altered"):
                    memory(world).load()
            database.execute(set_it, (was, *of_it))
        assert memory(world).load().number == 17
        for statement in (
            "UPDATE psam_counters SET revision = revision + 1 WHERE psam = x'510100000428'",
            "UPDATE psam_counters SET (revision, nonce, sealed) = "
            "(SELECT revision, nonce, sealed FROM psam_counters WHERE psam = x'510100000429') "
            "WHERE psam = x'510100000428'",
            "DELETE FROM psam_counters WHERE psam = x'510100000428'",
        ):
            database.execute("SAVEPOINT as_it_was")
            database.execute(statement)
            database.execute("RELEASE as_it_was")
            for attempt in (memory(world).load, lambda: Counters(memory(world), 1)):
                with pytest.raises(StoreNotOurs, match=r"altered|missing"):
                    attempt()


def test_sealed_nothing_is_counted(world: World) -> None:
    issue(world)
    counters = Counters(memory(world), 1)
    counters.take_number()
    # As a wipe of all keys leaves it.
    contents_of(world.vault).psam_keys[NUMBER].handle.free()
    for attempt in (counters.take_number, lambda: counters.count_wrong("MAC2")):
        with pytest.raises(StoreUnavailable, match="sealed"):
            attempt()


# --- backups


def backup_of(world: World) -> bytes:
    contents = contents_of(world.vault)
    return make_backup(contents, world.store.load(with_counters=True), HEAD, NOON, "LOCAL/e")


def restored(
    world: World, snapshot: Snapshot, folder: Path, name: str
) -> tuple[Store, StoreMemory]:
    """A store of a backup's snapshot, and the memory of the PSAM in it."""
    store = Store.create(f"sqlite:///{folder}/{name}.db")
    store.fill(snapshot)
    contents = contents_of(world.open_vault(store))
    held = HeldPsam(contents.psam(NUMBER), contents.psam_keys[NUMBER])
    assert held.kept == contents_of(world.vault).psam(NUMBER)
    return store, StoreMemory(store, held, secrets.token_bytes)


def test_a_restored_psam_repeats_nothing_that_came_after_the_backup(
    world: World, tmp_path: Path
) -> None:
    issue(world)
    assign(world)
    counters = Counters(memory(world), 1)
    assert counters.take_number() == 1
    counters.count_wrong("MAC2")
    report, snapshot = verify_backup(backup_of(world))
    assert report.rows["psam"] == 1
    after_it = {counters.take_number() for _ in range(50)}
    store, again = restored(world, snapshot, tmp_path, "one")
    assert again.load() == PsamRecord(number=2 + RESTORED_NUMBERS, wrong={"MAC2": 1})
    # A backup of what was restored and not used yet, which then was used.
    unused = store.load(with_counters=True)
    counters = Counters(again, 1)
    after_it |= {counters.take_number() for _ in range(50)}
    assert len(after_it) == 100
    used = store.load(with_counters=True)
    store.close()
    for of, first, name in ((unused, 2, "two"), (used, 2 + RESTORED_NUMBERS + 50, "three")):
        times = 2 if of is unused else 1
        store, again = restored(world, of, tmp_path, name)
        number = Counters(again, 16).take_number()
        assert number == first + times * RESTORED_NUMBERS
        assert number not in after_it
        store.close()


def test_a_backup_without_counters_is_none(world: World) -> None:
    issue(world)
    with pytest.raises(StoreNotOurs, match="do not go together"):
        make_backup(contents_of(world.vault), world.store.load(), HEAD, NOON, "LOCAL/e")
    with contextlib.closing(sqlite3.connect(world.path, isolation_level=None)) as database:
        database.execute("UPDATE psam_counters SET sealed = x'00'")
    with pytest.raises(StoreNotOurs, match="counters of PSAM 510100000428 were altered"):
        backup_of(world)


def test_a_backup_of_before_there_were_psams_is_read(world: World) -> None:
    data = backup_of(world)
    body = msgspec.msgpack.decode(data[len(b"keyd backup 1\n") : -64])
    assert body[-1] == []
    signed = b"keyd backup 1\n" + msgspec.msgpack.encode(body[:-1])
    identity = contents_of(world.vault).identity
    report, snapshot = verify_backup(signed + identity.sign(signed))
    assert snapshot == world.store.load()
    assert report.rows["identity"] == 1
    # One that has PSAMs and leaves their counters out was cut by somebody.
    issue(world)
    body = msgspec.msgpack.decode(backup_of(world)[len(b"keyd backup 1\n") : -64])
    signed = b"keyd backup 1\n" + msgspec.msgpack.encode(body[:-1])
    with pytest.raises(KeyFileUnusable):
        verify_backup(signed + identity.sign(signed))
