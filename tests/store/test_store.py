"""A commit is all or nothing, on either database, and whoever expected another state learns it and changes nothing."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import event, text

from keyd.errors import ChangedMeanwhile, StoreUnavailable
from keyd.store import database
from keyd.store.database import ANCHORS_BATCH, OUTBOX_BATCH, OutcomeUnknown, Store
from keyd.store.rows import (
    MAX_BODY_BYTES,
    MAX_CHANGES,
    MAX_RECORD_BYTES,
    MAX_RECORDS,
    Anchor,
    Drop,
    Kind,
    Put,
    Row,
    Snapshot,
)
from keyd.store.tables import METADATA
from tests.store import writers
from tests.store.writers import row

if TYPE_CHECKING:
    from collections.abc import Callable


def anchor(sequence: int, segment: int = 0, link: bytes = b"l" * 32) -> Anchor:
    return Anchor("a", segment, sequence, link, 1_000 + sequence)


# --- commits


def test_what_was_committed_is_loaded_by_kind_and_id(store: Store) -> None:
    """A snapshot is all rows, in a fixed order, with every byte that a byte can be."""
    every = bytes(range(256)) * 256
    rows = [
        row(b"\xff", body=every),
        row(b"\x00", body=b""),
        *(row(b"same id", kind=kind) for kind in Kind),
    ]
    assert store.commit([Put(r) for r in rows]) == 1
    order = list(Kind)
    wanted = tuple(sorted(rows, key=lambda r: (order.index(r.kind), r.id)))
    assert store.load() == Snapshot(1, wanted)
    assert store.change_number() == 1


def test_what_was_committed_is_there_after_opening_again(store: Store, store_url: str) -> None:
    """A commit outlives the store that made it."""
    store.commit([Put(row(b"a"))], [b"record"], "i")
    store.put_anchor(anchor(1))
    was = store.load()
    store.close()
    again = Store.open(store_url)
    assert again.load() == was
    assert [record for _, record in again.outbox("i")] == [b"record"]
    assert again.anchors("a") == [anchor(1)]
    again.close()


def test_a_revision_replaces_exactly_the_one_before(store: Store) -> None:
    """Of all revisions, only the next one can be put, and a row that is gone starts anew."""
    for wrong in (2, 3):
        with pytest.raises(ChangedMeanwhile):
            store.commit([Put(row(b"a", wrong))])
    store.commit([Put(row(b"a", 1))])
    for wrong in (1, 3):
        with pytest.raises(ChangedMeanwhile):
            store.commit([Put(row(b"a", wrong))])
    store.commit([Put(row(b"a", 2))])
    for wrong in (1, 3):
        with pytest.raises(ChangedMeanwhile):
            store.commit([Drop(Kind.KEY, b"a", wrong)])
    # The same id under another kind is another row.
    with pytest.raises(ChangedMeanwhile):
        store.commit([Drop(Kind.LMK, b"a", 2)])
    assert store.load() == Snapshot(2, (row(b"a", 2),))
    assert store.commit([Drop(Kind.KEY, b"a", 2)]) == 3
    assert store.commit([Put(row(b"a", 1))]) == 4


def test_one_conflict_undoes_the_whole_commit(store: Store) -> None:
    """After ChangedMeanwhile nothing has changed: no row, no record, no number."""
    store.commit([Put(row(b"there")), Put(row(b"other"))], [b"first"], "i")
    was, outbox = store.load(), store.outbox("i")
    good: list[Put | Drop] = [Put(row(b"new")), Put(row(b"there", 2)), Drop(Kind.KEY, b"other", 1)]
    bads: list[Put | Drop] = [Put(row(b"there")), Put(row(b"gone", 5)), Drop(Kind.KEY, b"gone", 1)]
    for bad in bads:
        for place in range(4):
            changes = [*good[:place], bad, *good[place:]]
            with pytest.raises(ChangedMeanwhile):
                store.commit(changes, [b"second"], "i")
            assert store.load() == was
            assert store.outbox("i") == outbox
    assert store.commit(good) == was.number + 1


def test_one_commit_may_change_a_row_several_times(store: Store) -> None:
    """Changes happen in their order."""
    changes: list[Put | Drop] = [
        Put(row(b"a")),
        Put(row(b"a", 2)),
        Drop(Kind.KEY, b"a", 2),
        Put(row(b"a")),
    ]
    store.commit(changes)
    assert store.load().rows == (row(b"a"),)


def test_the_number_that_was_expected_is_the_only_one_that_passes(store: Store) -> None:
    """With an expected number, a commit is refused if anything at all was committed since."""
    store.commit([Put(row(b"a"))], expected_number=0)
    for wrong in (0, 2):
        with pytest.raises(ChangedMeanwhile):
            store.commit([Put(row(b"b"))], expected_number=wrong)
    assert store.change_number() == 1
    assert store.commit([Put(row(b"b"))], expected_number=1) == 2


def test_limits_refuse_before_anything_is_written(store: Store) -> None:
    """What is larger than a limit is our bug and touches no database; what is as large passes."""
    for wrong in (
        lambda: row(b""),
        lambda: row(b"i" * 65),
        lambda: row(b"a", 0),
        lambda: row(b"a", 2**63),
        lambda: row(b"a", body=bytes(MAX_BODY_BYTES + 1)),
        lambda: Row(Kind.KEY, b"a", "D" * 33, 1, b"", bytes(12), b""),
        lambda: Row(Kind.KEY, b"a", "D\0", 1, b"", bytes(12), b""),
        lambda: Row(Kind.KEY, b"a", "省", 1, b"", bytes(12), b""),
        lambda: Row(Kind.KEY, b"a", "D", 1, b"", bytes(11), b""),
        lambda: Row(Kind.KEY, b"a", "D", 1, b"", bytes(12), bytes(4097)),
        lambda: Drop(Kind.KEY, b"", 1),
        lambda: Drop(Kind.KEY, b"a", 0),
        lambda: anchor(-1),
        lambda: anchor(1, link=b"short"),
        lambda: store.commit([Drop(Kind.KEY, b"a", 1)] * (MAX_CHANGES + 1)),
        lambda: store.commit([], [b""] * (MAX_RECORDS + 1), "i"),
        lambda: store.commit([], [bytes(MAX_RECORD_BYTES + 1)], "i"),
        lambda: store.commit([], [b"record"]),
        lambda: store.outbox("i" * 65),
    ):
        with pytest.raises(ValueError, match=r".+"):
            wrong()
    assert store.change_number() == 0
    largest = Row(Kind.KEY, b"i" * 64, "D" * 32, 1, bytes(MAX_BODY_BYTES), bytes(12), bytes(4096))
    store.commit([Put(largest)], [bytes(MAX_RECORD_BYTES)] * 3, "i" * 64)
    assert store.load().rows == (largest,)
    assert store.outbox("i" * 64)[2][1] == bytes(MAX_RECORD_BYTES)


def test_a_repr_shows_nothing_of_what_is_kept() -> None:
    """What a traceback or a log may say of a row is which one it is."""
    held = Row(Kind.KEY, b"\x01", "SOCIAL", 1, b"BODY", b"NONCENONCE12", b"SEALED")
    for shown in (repr(held), repr(Put(held)), repr(Snapshot(1, (held,)))):
        assert not any(word in shown for word in ("BODY", "NONCE", "SEALED"))


# --- outbox and anchors


def test_the_outbox_keeps_order_per_instance_until_sent(store: Store) -> None:
    """Records come out in the order of their commits, each instance its own, and leave only when sent."""
    for n in range(5):
        store.commit([], [b"a%d" % n, b"A%d" % n], "a")
        store.commit([], [b"b%d" % n], "b")
    records = store.outbox("a")
    assert [record for _, record in records] == [b"%c%d" % (c, n) for n in range(5) for c in b"aA"]
    assert store.outbox("a") == records
    store.sent([number for number, _ in records[:3]])
    store.sent([number for number, _ in records[:3]])
    assert store.outbox("a") == records[3:]
    assert len(store.outbox("b")) == 5
    assert store.outbox("nobody") == []


def test_a_number_of_the_outbox_is_never_given_twice(store: Store) -> None:
    """Being late with `sent` takes away no other record."""
    store.commit([], [b"first"], "i")
    [(number, _)] = store.outbox("i")
    store.sent([number])
    store.commit([], [b"second"], "i")
    store.sent([number])
    assert [record for _, record in store.outbox("i")] == [b"second"]


def test_a_long_outbox_comes_in_batches(store: Store) -> None:
    """However much waits, one answer is bounded, and nothing is passed over."""
    store.commit([], [b"%d" % n for n in range(MAX_RECORDS)], "i")
    store.commit([], [b"last"], "i")
    first = store.outbox("i")
    assert len(first) == OUTBOX_BATCH
    store.sent([number for number, _ in first])
    assert [record for _, record in store.outbox("i")] == [b"last"]


def test_anchors_come_newest_first_and_no_place_has_two(store: Store) -> None:
    """An anchor stays what it was: a second link at its place is a conflict, the same one is none."""
    for sequence in (3, 1, 2):
        store.put_anchor(anchor(sequence))
    store.put_anchor(anchor(1, segment=1))
    store.put_anchor(anchor(2))
    with pytest.raises(ChangedMeanwhile):
        store.put_anchor(anchor(2, link=b"x" * 32))
    assert store.anchors("a") == [anchor(1, segment=1), anchor(3), anchor(2), anchor(1)]
    assert store.anchors("a", limit=1) == [anchor(1, segment=1)]
    assert store.anchors("b") == []


def test_of_many_anchors_the_newest_are_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """One a minute for ever is a table that grows for ever; another instance's are none of this one's business."""
    monkeypatch.setattr(database, "KEPT_ANCHORS", 3)
    other = msgspec.structs.replace(anchor(1), instance="b")
    store.put_anchor(other)
    for segment, sequence in ((0, 5), (0, 6), (1, 7), (1, 8), (2, 9)):
        store.put_anchor(anchor(sequence, segment=segment))
    kept = [(1, 7), (1, 8), (2, 9)]
    assert store.anchors("a") == [anchor(n, segment=s) for s, n in reversed(kept)]
    assert store.anchors("b") == [other]
    assert store.change_number() == 0
    assert ANCHORS_BATCH >= 4


# --- restore


def test_a_restored_store_is_the_one_that_was_saved(store: Store) -> None:
    """Filling an empty store gives the same snapshot, and it goes on from its number."""
    rows = tuple(row(b"%06d" % n, 1 + n % 7) for n in range(1234))
    saved = Snapshot(77, (*rows, row(b"officer", 3, kind=Kind.OFFICER)))
    store.fill(saved)
    assert store.load() == saved
    assert store.commit([Put(row(b"officer", 4, kind=Kind.OFFICER))], expected_number=77) == 78


@pytest.mark.parametrize("what", ["row", "number", "record", "anchor"])
def test_only_an_empty_store_is_filled(store: Store, what: str) -> None:
    """A restore never writes over anything, not even over what was there and is gone."""
    if what == "row":
        store.commit([Put(row(b"a"))])
    elif what == "number":
        store.commit([Put(row(b"a"))])
        store.commit([Drop(Kind.KEY, b"a", 1)])
    elif what == "record":
        store.commit([], [b"record"], "i")
    else:
        store.put_anchor(anchor(1))
    was = store.load()
    with pytest.raises(StoreUnavailable, match="holds something already"):
        store.fill(Snapshot(9, (row(b"b"),)))
    assert store.load() == was


def test_a_restore_that_fails_leaves_the_store_empty(store: Store) -> None:
    """Two rows of one id are no snapshot, and nothing of it stays."""
    with pytest.raises(StoreUnavailable):
        store.fill(Snapshot(9, (*(row(b"%d" % n) for n in range(600)), row(b"5"))))
    assert store.load() == Snapshot(0, ())


# --- many at once


def test_threads_share_a_store(store: Store) -> None:
    """More threads than connections commit at once, and each of them either made its change or was told."""
    made: list[int] = []

    def work(name: bytes) -> None:
        for n in range(5):
            made.append(store.commit([Put(row(name + b"%d" % n))]))
            # This one reads first and then writes: it has to have the lock for writing before it reads.
            store.put_anchor(Anchor(name.decode(), 0, n, b"l" * 32, n))
            store.load()

    threads = [threading.Thread(target=work, args=(b"%d." % n,)) for n in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == list(range(1, 51))
    assert len(store.load().rows) == 50


def test_a_snapshot_is_of_one_moment(store: Store) -> None:
    """While another commits two rows at a time, no load ever sees them differ from each other or from the number."""
    first, second = row(b"a"), row(b"b", kind=Kind.PROPOSAL)
    store.commit([Put(first), Put(second)])
    stop = threading.Event()

    def work() -> None:
        revision = 1
        while not stop.is_set():
            revision += 1
            changed = [
                row(b"a", revision),
                row(b"b", revision, kind=Kind.PROPOSAL),
            ]
            store.commit([Put(r) for r in changed])

    thread = threading.Thread(target=work)
    thread.start()
    try:
        numbers: set[int] = set()
        deadline = time.monotonic() + 60
        while len(numbers) < 20 and time.monotonic() < deadline:
            seen = store.load()
            assert {r.revision for r in seen.rows} == {seen.number}
            numbers.add(seen.number)
    finally:
        stop.set()
        thread.join()
    assert len(numbers) == 20


def test_two_processes_lose_no_update(store: Store, store_url: str) -> None:
    """Of two that change one revision exactly one succeeds: what two processes count together is all they counted."""
    ids, times = [b"x", b"y"], 40
    store.commit([Put(row(row_id, body=bytes(8))) for row_id in ids])
    context = writers.context()
    running = []
    for _ in range(2):
        ours, theirs = context.Pipe()
        process = context.Process(target=writers.count_up, args=(store_url, ids, times, theirs))
        process.start()
        theirs.close()
        running.append((process, ours))
    for _, pipe in running:
        assert pipe.recv() == "ready"
    for _, pipe in running:
        pipe.send("go")
    conflicts = 0
    for process, pipe in running:
        conflicts += pipe.recv()
        pipe.close()
        process.join()
        assert process.exitcode == 0
        process.close()
    assert conflicts > 0, "they never met, so this has shown nothing"
    seen = store.load()
    assert [int.from_bytes(r.body, "big") for r in seen.rows] == [2 * times] * 2
    assert seen.number == 1 + 2 * times * 2


def test_a_commit_waits_for_the_one_before_it(store: Store) -> None:
    """Whoever commits second sees what the first has made of the row, not what was there when it began."""
    store.commit([Put(row(b"a"))])
    has_begun, results = threading.Event(), []
    before: list[bool] = []

    @event.listens_for(store._engine, "commit")
    def _hold(_: object) -> None:
        if not before:
            before.append(True)
            has_begun.set()
            second.join(0.5)
            before.append(second.is_alive())

    def late() -> None:
        has_begun.wait()
        try:
            results.append(store.commit([Put(row(b"a", 2, b"late"))]))
        except ChangedMeanwhile:
            results.append(0)

    second = threading.Thread(target=late)
    second.start()
    store.commit([Put(row(b"a", 2, b"early"))])
    second.join()
    assert before == [True, True]
    assert results == [0]
    assert store.load().rows == (row(b"a", 2, b"early"),)


# --- a commit whose end nobody saw


def lose(store: Store, when: str, then: Callable[[], object] = lambda: None) -> None:
    """Let the connection be lost at the next COMMIT, before or after the database has done it."""
    dialect: Any = store._engine.dialect
    real = type(dialect).do_commit
    error = dialect.loaded_dbapi.OperationalError

    def do_commit(connection: Any) -> None:
        del dialect.do_commit
        if when == "after":
            real(dialect, connection)
        connection.driver_connection.close()
        then()
        # The driver's own words; SQLite's are those that SQLAlchemy knows for a lost connection.
        raise (
            dialect.loaded_dbapi.ProgrammingError("Cannot operate on a closed database.")
            if dialect.name == "sqlite"
            else error("lost")
        )

    dialect.do_commit = do_commit


def test_a_commit_that_was_made_is_acknowledged_though_its_answer_was_lost(store: Store) -> None:
    """Losing the answer to COMMIT is not losing the commit: the store looks and finds its rows."""
    store.commit([Put(row(b"a"))])
    lose(store, "after")
    assert store.commit([Put(row(b"a", 2)), Put(row(b"b"))], [b"record"], "i") == 2
    assert store.load() == Snapshot(2, (row(b"a", 2), row(b"b")))
    assert len(store.outbox("i")) == 1


def test_a_commit_that_was_not_made_is_told_so(store: Store) -> None:
    """A connection lost before COMMIT arrived has changed nothing, and the store says so only after it has looked."""
    lose(store, "before")
    with pytest.raises(StoreUnavailable, match="nothing was changed") as refused:
        store.commit([Put(row(b"a"))], [b"record"], "i")
    assert not isinstance(refused.value, OutcomeUnknown)
    assert store.load() == Snapshot(0, ())
    assert store.commit([Put(row(b"a"))]) == 1


def test_somebody_elses_commit_is_not_taken_for_ones_own(store: Store, store_url: str) -> None:
    """If another has the number that ours would have had, and our rows are not there, nobody knows, and it is said."""
    other = Store.open(store_url)
    lose(store, "before", lambda: other.commit([Put(row(b"a", body=b"theirs"))]))
    with pytest.raises(OutcomeUnknown):
        store.commit([Put(row(b"a"))])
    lose(store, "before", lambda: other.commit([Drop(Kind.KEY, b"a", 1)]))
    with pytest.raises(OutcomeUnknown):
        store.commit([Drop(Kind.KEY, b"a", 1)])
    other.close()


# --- a database that others have written


def test_what_keyd_did_not_write_is_refused(store: Store) -> None:
    """A row that breaks a limit makes loading fail with a sentence that holds nothing of it."""
    store.commit([Put(row(b"a"))])
    with store._writer.begin() as connection:
        connection.execute(text("UPDATE key_rows SET domain = :d"), {"d": "SECRET\n"})
    with pytest.raises(StoreUnavailable, match="did not write") as refused:
        store.load()
    assert "SECRET" not in str(refused.value)


def test_a_closed_store_says_so(store: Store) -> None:
    """Closing is final, and may be done twice."""
    store.close()
    store.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        store.change_number()


# --- the model


IDS = st.sampled_from([b"a", b"b", b"\x00\xff"])
KINDS = st.sampled_from([Kind.KEY, Kind.OFFICER])
REVISIONS = st.integers(1, 4)
BODIES = st.binary(max_size=8)
PUTS = st.builds(lambda i, r, b, k: Put(row(i, r, b, k)), IDS, REVISIONS, BODIES, KINDS)
DROPS = st.builds(Drop, KINDS, IDS, REVISIONS)


class AgainstADict(RuleBasedStateMachine):
    """A store does what a dict would do, with a copy before each commit and a step back after a conflict."""

    store: Store

    def __init__(self) -> None:
        super().__init__()
        with self.store._writer.begin() as connection:
            for table in METADATA.sorted_tables:
                if table.name != "changes":
                    connection.execute(table.delete())
            connection.execute(METADATA.tables["changes"].update().values(number=0))
        self.rows: dict[tuple[Kind, bytes], Row] = {}
        self.number = 0
        self.records: list[bytes] = []

    @rule(
        changes=st.lists(PUTS | DROPS, max_size=5),
        records=st.lists(BODIES, max_size=2),
        expected=st.none() | st.integers(-1, 1),
    )
    def commit(self, changes: list[Put | Drop], records: list[bytes], expected: int | None) -> None:
        after = dict(self.rows)
        is_good = expected in (None, 0)
        for change in changes:
            wanted = change.row if isinstance(change, Put) else change
            there = after.get((wanted.kind, wanted.id))
            revision = there.revision if there is not None else 0
            is_good &= revision == wanted.revision - isinstance(change, Put)
            if isinstance(change, Put):
                after[wanted.kind, wanted.id] = change.row
            else:
                after.pop((wanted.kind, wanted.id), None)
        number = None if expected is None else self.number + expected
        if not is_good:
            with pytest.raises(ChangedMeanwhile):
                self.store.commit(changes, records, "i", number)
            return
        self.number += 1
        assert self.store.commit(changes, records, "i", number) == self.number
        self.rows = after
        self.records += records

    @rule(count=st.integers(0, 3))
    def send(self, count: int) -> None:
        self.store.sent([number for number, _ in self.store.outbox("i")[:count]])
        del self.records[:count]

    @rule()
    def open_again(self) -> None:
        self.store._engine.dispose()

    @invariant()
    def is_the_same(self) -> None:
        order = list(Kind)
        rows = sorted(self.rows.values(), key=lambda r: (order.index(r.kind), r.id))
        assert self.store.load() == Snapshot(self.number, tuple(rows))
        assert [record for _, record in self.store.outbox("i")] == self.records


def test_a_store_behaves_like_a_dict(store: Store) -> None:
    """Whatever is committed, in whatever order, the store holds what a dict would hold."""
    machine = type("Machine", (AgainstADict,), {"store": store})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=30,
            stateful_step_count=15,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    with contextlib.suppress(StoreUnavailable):
        store.close()
