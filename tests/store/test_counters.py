"""PSAMs' counters: swapped one at a time beside everything else, begun with their PSAM, and in a backup with it."""

from __future__ import annotations

import threading

import pytest
from msgspec.structs import replace

from keyd.errors import ChangedMeanwhile, StoreUnavailable
from keyd.store.database import STATEMENT_BATCH, Store
from keyd.store.rows import Begin, CounterRow, Kind, Put, Snapshot
from tests.store.writers import row

PSAM = bytes.fromhex("510100000428")


def counters(psam: bytes = PSAM, revision: int = 1, restored: int = 0) -> CounterRow:
    nonce = revision.to_bytes(12, "big")
    return CounterRow(psam, revision, nonce, b"sealed" + nonce, restored)


def begun(store: Store, psam: bytes = PSAM) -> None:
    store.commit([Put(row(psam, kind=Kind.PSAM)), Begin(counters(psam))])


def test_counters_begin_with_their_psam_or_neither_is_there(store: Store) -> None:
    begun(store)
    assert store.counters(PSAM) == counters()
    with pytest.raises(ChangedMeanwhile):
        store.commit([Put(row(b"other", kind=Kind.PSAM)), Begin(counters())])
    assert [r.id for r in store.load().rows] == [PSAM]
    with pytest.raises(ChangedMeanwhile):
        store.commit([Begin(counters(b"third")), Put(row(PSAM, kind=Kind.PSAM))])
    assert store.counters(b"third") is None


def test_a_swap_replaces_exactly_the_revision_before_it_and_counts_as_no_change(
    store: Store,
) -> None:
    begun(store)
    number = store.change_number()
    store.swap_counters(counters(revision=2))
    assert store.counters(PSAM) == counters(revision=2)
    for wrong in (1, 2, 4):
        with pytest.raises(ChangedMeanwhile):
            store.swap_counters(counters(revision=wrong))
    with pytest.raises(ChangedMeanwhile):
        store.swap_counters(counters(b"nobody", 2))
    assert store.counters(PSAM) == counters(revision=2)
    assert store.change_number() == number


def test_of_many_that_swap_one_revision_one_does(store: Store) -> None:
    begun(store)
    done: list[int] = []
    barrier = threading.Barrier(4)

    def swap(who: int) -> None:
        barrier.wait()
        for revision in range(2, 12):
            try:
                store.swap_counters(replace(counters(revision=revision), sealed=bytes([who])))
            except ChangedMeanwhile:
                continue
            done.append(revision)

    threads = [threading.Thread(target=swap, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == len(set(done))
    last = store.counters(PSAM)
    assert last is not None
    assert sorted(done) == list(range(2, last.revision + 1))
    assert last.revision > 1


def test_a_snapshot_has_counters_when_it_is_asked_for_them(store: Store) -> None:
    begun(store)
    assert store.load().counters == ()
    assert store.load(with_counters=True).counters == (counters(),)


def test_whatever_is_restored_says_how_often(store: Store) -> None:
    """What was counted since the snapshot was taken is not known: whoever reads the counters has to skip."""
    ids = [b"%06d" % n for n in range(STATEMENT_BATCH + 1)]
    rows = tuple(row(psam, kind=Kind.PSAM) for psam in ids)
    kept = tuple(counters(psam, 7, restored=n % 3) for n, psam in enumerate(ids))
    store.fill(Snapshot(77, rows, kept))
    loaded = store.load(with_counters=True)
    assert loaded == Snapshot(77, rows, tuple(replace(k, restored=k.restored + 1) for k in kept))


def test_a_store_with_counters_is_not_empty(store: Store) -> None:
    store.commit([Begin(counters())])
    with store._writer.begin() as connection:
        connection.exec_driver_sql("UPDATE changes SET number = 0")
    with pytest.raises(StoreUnavailable, match="holds something already"):
        store.fill(Snapshot(9, ()))


@pytest.mark.parametrize(
    "fields", [{"psam": b""}, {"revision": 0}, {"nonce": bytes(11)}, {"restored": -1}]
)
def test_counters_that_are_none_are_not_made(fields: dict[str, object]) -> None:
    values = {"psam": PSAM, "revision": 1, "nonce": bytes(12), "sealed": b"", "restored": 0}
    with pytest.raises(ValueError, match=r"is not within|bytes, not"):
        CounterRow(**(values | fields))  # type: ignore[arg-type]
