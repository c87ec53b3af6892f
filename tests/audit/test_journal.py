"""The writer: what it acknowledges is on file and reads back equal, through rotations, reopenings and loss."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyd.audit.folder import RESERVE_NAME, segments_of
from keyd.audit.journal import Journal
from keyd.audit.query import EventRecord, UseRecord, query
from keyd.audit.records import Use, encode_use, segment_name
from keyd.audit.verify import verify
from keyd.errors import AuditUnavailable
from tests.audit.conftest import INSTANCE, SECOND, Clock

if TYPE_CHECKING:
    from tests.audit.conftest import OpenJournal


def last_segment(folder: Path) -> Path:
    return folder / segment_name(segments_of(folder)[-1])


def events(folder: Path) -> list[EventRecord]:
    return [record for record in query(folder) if isinstance(record, EventRecord)]


def event(folder: Path, name: str) -> EventRecord:
    (found,) = [told for told in events(folder) if told.name == name]
    return found


# --- reads back equal ----------------------------------------------------------------------------------

names = st.sampled_from(["a", "b", "c", "d"])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.lists(names, max_size=4), st.lists(names, max_size=3)),
        st.tuples(st.just("reopen"), st.just([]), st.just([])),
        st.tuples(st.just("sync"), st.just([]), st.just([])),
    ),
    max_size=25,
)


@settings(max_examples=100, deadline=None)
@given(steps=steps, segment_bytes=st.sampled_from([200, 500, 2000, 1 << 20]))
def test_any_sequence_reads_back_equal(
    steps: list[tuple[str, list[str], list[str]]], segment_bytes: int
) -> None:
    """Appends, rotations, reopenings and syncs in any order: the same uses and events, in order, by name."""
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - as in conftest.py
    with tempfile.TemporaryDirectory(dir=memory) as made:
        clock = Clock()
        folder = Path(made) / "journal"

        def open_() -> Journal:
            return Journal(
                folder,
                INSTANCE,
                clock_ns=clock.realtime_ns,
                monotonic_ns=clock.monotonic_ns,
                segment_bytes=segment_bytes,
            )

        journal = open_()
        written: list[tuple[object, ...]] = []
        for action, methods, told in steps:
            clock.wait(SECOND)
            if action == "reopen":
                journal.close()
                journal = open_()
            elif action == "sync":
                assert journal.sync() == journal.position == journal.durable
            else:
                uses = b"".join(
                    encode_use(Use(journal.number_of("method", m), 0, 1, 0, 0, bytes(16)))
                    for m in methods
                )
                before = journal.position
                after = journal.append(uses, [{"event": "x", "name": name} for name in told])
                assert after == journal.position >= before + len(methods) + len(told)
                written += [("use", m, clock.realtime) for m in methods]
                written += [("event", name, clock.realtime) for name in told]
        head = journal.head()
        read: list[tuple[object, ...]] = []
        for record in query(folder):
            if isinstance(record, UseRecord):
                read.append(("use", record.method, record.time_ns))
            elif record.name == "x":
                read.append(("event", record.fields["name"], record.time_ns))
        assert read == written
        report = verify(folder, expected=[head.anchor])
        assert report.bad is None
        assert report.torn is None
        assert report.head == head
        journal.close()


def test_numbers_stay_and_every_segment_can_be_read_alone(
    open_journal: OpenJournal, folder: Path
) -> None:
    journal = open_journal(segment_bytes=400)
    numbers = {name: journal.number_of("terminal", name) for name in ("T-1", "T-2", "T-3")}
    assert sorted(numbers.values()) == [1, 2, 3]
    for count in range(30):
        name = f"T-{1 + count % 3}"
        assert journal.number_of("terminal", name) == numbers[name]
        journal.append(encode_use(Use(0, 0, 0, numbers[name], 0, bytes(16))))
    journal.close()
    wanted = [f"T-{1 + count % 3}" for count in range(30)]
    segments = segments_of(folder)
    assert len(segments) > 5
    for number in segments[:-1]:
        (folder / segment_name(number)).unlink()
        got = [record.terminal for record in query(folder) if isinstance(record, UseRecord)]
        assert got == wanted[len(wanted) - len(got) :]


def test_a_definition_survives_a_reopening(open_journal: OpenJournal) -> None:
    journal = open_journal()
    journal.number_of("key", "SOCIAL/1")
    number = journal.number_of("key", "SOCIAL/2")
    journal.append(bytes(32))
    journal.close()
    again = open_journal()
    assert again.number_of("key", "SOCIAL/2") == number
    assert again.number_of("key", "SOCIAL/3") == number + 1


def test_a_number_without_room_is_refused(journal: Journal) -> None:
    journal._names._last_numbers["method"] = 0xFFFF
    with pytest.raises(AuditUnavailable, match="no number left"):
        journal.number_of("method", "one too many")
    with pytest.raises(KeyError):
        journal.number_of("nothing", "x")


def test_nothing_appended_is_no_frame(journal: Journal) -> None:
    before = journal.head()
    assert journal.append() == before.number
    assert journal.head() == before


# --- the folder and its files --------------------------------------------------------------------------


def test_files_and_folder_are_private(open_journal: OpenJournal, folder: Path, use: bytes) -> None:
    journal = open_journal(segment_bytes=400)
    for _ in range(20):
        journal.append(use)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    *closed, current = (folder / segment_name(number) for number in segments_of(folder))
    assert {stat.S_IMODE(path.stat().st_mode) for path in closed} == {0o400}
    assert stat.S_IMODE(current.stat().st_mode) == 0o600
    assert stat.S_IMODE((folder / RESERVE_NAME).stat().st_mode) == 0o600


def test_a_second_writer_is_refused(journal: Journal, folder: Path, use: bytes) -> None:
    program = (
        "import sys, time; from pathlib import Path; from keyd.audit.journal import Journal\n"
        "Journal(Path(sys.argv[1]), 'keyd-1', clock_ns=time.time_ns)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, folder], capture_output=True, text=True, check=False
    )
    assert "another process writes the journal" in done.stderr
    journal.append(use)
    assert verify(folder, expected=[journal.head().anchor]).is_good


def test_a_closed_journal_can_be_opened_again_and_is_refused_itself(
    open_journal: OpenJournal, use: bytes
) -> None:
    journal = open_journal()
    journal.close()
    journal.close()
    with pytest.raises(AuditUnavailable, match="closed"):
        journal.append(use)
    with pytest.raises(AuditUnavailable, match="closed"):
        journal.sync()
    assert not journal.recover()
    open_journal().append(use)


def test_the_journal_of_another_instance_is_refused(
    open_journal: OpenJournal, folder: Path
) -> None:
    open_journal().close()
    with pytest.raises(AuditUnavailable, match="is the journal of keyd-1"):
        Journal(folder, "keyd-2", clock_ns=lambda: 1)
    open_journal()  # the lock was let go


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AuditUnavailable, match="cannot be opened"):
        Journal(tmp_path / "file" / "journal", INSTANCE, clock_ns=lambda: 1)


def test_a_planted_segment_is_not_written_over(
    open_journal: OpenJournal, folder: Path, use: bytes
) -> None:
    journal = open_journal(segment_bytes=400)
    planted = folder / segment_name(2)
    planted.write_text("mine")

    def append_many() -> None:
        for _ in range(20):
            journal.append(use)

    with pytest.raises(AuditUnavailable, match="keyd did not write it"):
        append_many()
    assert planted.read_text() == "mine"
    planted.unlink()
    assert journal.recover()
    journal.append(use)
    assert verify(folder, expected=[journal.head().anchor]).is_good


# --- rotation and retention ----------------------------------------------------------------------------


def test_retention_removes_whole_segments_and_tells_of_it(
    open_journal: OpenJournal, folder: Path, use: bytes
) -> None:
    journal = open_journal(segment_bytes=600, retain_segments=3)
    heads = []
    for _ in range(60):
        journal.append(use)
        heads.append(journal.head())
    segments = segments_of(folder)
    assert len(segments) == 3
    assert segments[0] > 3
    report = verify(folder, expected=[head.anchor for head in heads[-3:]])
    assert report.is_good, report.bad
    told = [event for event in events(folder) if event.name == "journal.removed"]
    assert told[-1].fields["segment"] == segments[0] - 1
    assert told[-1].fields["next"] == report.first
    # Whoever removes one more does so without an event.
    (folder / segment_name(segments[0])).unlink()
    assert verify(folder).bad is not None


def test_a_removal_that_fails_stops_nothing(
    open_journal: OpenJournal, folder: Path, use: bytes
) -> None:
    journal = open_journal(segment_bytes=400, retain_segments=1)
    journal.append(use)
    first = folder / segment_name(1)
    first.chmod(0o600)
    first.write_text("somebody wrote here")
    for _ in range(10):
        journal.append(use)
    assert first.exists()
    first.unlink()
    assert any(told.name == "journal.not_removed" for told in events(folder))


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_without_a_sync_few_files_stay_open(
    open_journal: OpenJournal, folder: Path, use: bytes
) -> None:
    journal = open_journal(segment_bytes=400)
    before = open_files()
    for _ in range(200):
        journal.append(use)
    assert len(segments_of(folder)) > 50
    assert open_files() < before + 12
    assert journal.sync() == journal.position
    assert open_files() == before


def test_what_retention_removed_is_not_lost_to_sync(open_journal: OpenJournal, use: bytes) -> None:
    journal = open_journal(segment_bytes=400, retain_segments=2)
    for _ in range(100):
        journal.append(use)
    assert journal.sync() == journal.position


# --- clocks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", [-2 * SECOND, 61 * SECOND, -400 * 86_400 * SECOND])
def test_a_clock_that_jumps_is_told(
    journal: Journal, folder: Path, clock: Clock, use: bytes, by: int
) -> None:
    journal.append(use)
    clock.wait(3600 * SECOND)
    clock.step(by)
    journal.append(use)
    journal.append(use)
    assert event(folder, "clock.jumped").fields == {"by_ns": by}
    assert verify(folder, expected=[journal.head().anchor]).is_good


@pytest.mark.parametrize("by", [-SECOND // 2, 59 * SECOND])
def test_a_clock_that_is_set_a_little_is_not(
    journal: Journal, folder: Path, clock: Clock, use: bytes, by: int
) -> None:
    journal.append(use)
    clock.step(by)
    journal.append(use)
    assert not [told for told in events(folder) if told.name == "clock.jumped"]


def test_a_clock_that_went_back_while_keyd_was_down_is_told(
    open_journal: OpenJournal, folder: Path, clock: Clock
) -> None:
    open_journal().close()
    clock.step(-3600 * SECOND)
    open_journal()
    assert event(folder, "clock.jumped").fields == {"by_ns": -3600 * SECOND}


# --- torn ends -----------------------------------------------------------------------------------------


def test_every_torn_end_is_cut_off_kept_and_told(
    open_journal: OpenJournal, folder: Path, use: bytes
) -> None:
    journal = open_journal()
    journal.append(use)
    path = folder / segment_name(1)
    before = path.stat().st_size
    anchor = journal.head().anchor
    journal.append(use, [{"event": "x"}])
    whole = path.read_bytes()
    journal.close()
    for length in range(before + 1, len(whole)):
        path.write_bytes(whole[:length])
        assert verify(folder, expected=[anchor]).torn is not None
        again = open_journal()
        again.append(use)
        again.close()
        report = verify(folder, expected=[anchor])
        assert report.is_good
        assert report.torn is None
        torn = folder / "00000001.torn"
        assert torn.read_bytes() == whole[before:length]
        assert stat.S_IMODE(torn.stat().st_mode) == 0o400
        told = [e for e in events(folder) if e.name == "journal.opened"]
        assert told[-1].fields["torn_bytes"] == length - before
        torn.unlink()


def test_evidence_is_not_written_over(open_journal: OpenJournal, folder: Path, use: bytes) -> None:
    open_journal().close()
    for _ in range(3):
        with (folder / segment_name(1)).open("ab") as file:
            file.write(b"\0\0")
        open_journal().close()
    assert sorted(path.name for path in folder.glob("*.torn*")) == [
        "00000001.torn",
        "00000001.torn-2",
        "00000001.torn-3",
    ]


@pytest.mark.parametrize("content", [b"", bytes(300), b"keyd journal 1\n"])
def test_a_segment_that_never_arrived_is_set_aside(
    open_journal: OpenJournal, folder: Path, use: bytes, content: bytes
) -> None:
    journal = open_journal()
    journal.append(use)
    journal.close()
    (folder / segment_name(2)).write_bytes(content)
    assert verify(folder, expected=[journal.head().anchor]).torn is not None
    again = open_journal()
    again.append(use)
    assert (folder / "00000002.torn").read_bytes() == content
    assert segments_of(folder) == [1]
    assert verify(folder, expected=[journal.head().anchor, again.head().anchor]).is_good


def test_a_changed_journal_is_not_opened(
    open_journal: OpenJournal, folder: Path, use: bytes
) -> None:
    """Every byte of every frame: opening must not cut off as torn what somebody has changed."""
    journal = open_journal()
    journal.append(use)
    journal.append(use)
    journal.close()
    path = folder / segment_name(1)
    data = path.read_bytes()
    for offset in range(len(data)):
        changed = bytearray(data)
        changed[offset] ^= 0x11
        path.write_bytes(changed)
        with pytest.raises(AuditUnavailable, match="move the folder away"):
            open_journal()
        assert path.read_bytes() == changed
    path.write_bytes(data)
    open_journal()


# --- the file under the daemon -------------------------------------------------------------------------


def _unlink(path: Path) -> None:
    path.unlink()


def _replace(path: Path) -> None:
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    copy.rename(path)


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _vanish(path: Path) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))


@pytest.mark.parametrize("by_sync", [False, True], ids=["check", "sync"])
@pytest.mark.parametrize("harm", [_unlink, _replace, _truncate, _vanish])
def test_a_file_that_is_lost_is_noticed_and_told_with_the_last_link(
    journal: Journal, folder: Path, use: bytes, harm: Any, by_sync: bool
) -> None:
    journal.append(use)
    assert journal.check()
    lost = journal.head()
    harm(folder / segment_name(1))
    if by_sync:
        with pytest.raises(AuditUnavailable, match="under keyd"):
            journal.sync()
        assert journal.unavailable_because is not None
        with pytest.raises(AuditUnavailable):
            journal.append(use)
        assert journal.recover()
    else:
        assert journal.check()
        # Whoever waits for what was lost must hear of it.
        with pytest.raises(AuditUnavailable, match="under keyd"):
            journal.sync()
    assert journal.unavailable_because is None
    number = journal.append(use)
    assert journal.sync() == journal.durable == number
    last = last_segment(folder)
    assert last.name == segment_name(2)
    told = event(folder, "journal.lost") if harm in (_unlink, _vanish) else None
    if told is not None:
        assert told.fields["link"] == lost.link
        assert told.fields["number"] == lost.number
    assert verify(folder, expected=[lost.anchor]).bad is not None or harm is _replace


def test_what_was_removed_shows_as_a_gap(
    open_journal: OpenJournal, folder: Path, use: bytes
) -> None:
    journal = open_journal(segment_bytes=400)
    while len(segments_of(folder)) < 3:
        journal.append(use)
    last_segment(folder).unlink()
    assert journal.check()
    report = verify(folder)
    assert report.bad is not None
    assert report.bad.file == segment_name(3)
    assert "keyd noticed" in report.bad.why


# --- threads -------------------------------------------------------------------------------------------


def test_sync_runs_beside_append(open_journal: OpenJournal, folder: Path, use: bytes) -> None:
    """What a sync returns was written before it was called, through rotations, and never goes back."""
    journal = open_journal(segment_bytes=20_000)
    is_done = threading.Event()
    synced: list[tuple[int, int]] = []
    faults: list[BaseException] = []

    def sync() -> None:
        try:
            while not is_done.is_set():
                before = journal.position
                synced.append((before, journal.sync()))
        except BaseException as error:  # noqa: BLE001 - shown by the test
            faults.append(error)

    thread = threading.Thread(target=sync)
    thread.start()
    for _ in range(20_000):
        journal.append(use)
    is_done.set()
    thread.join()
    assert not faults
    assert all(before <= position for before, position in synced)
    assert all(one <= other for (_, one), (_, other) in pairwise(synced))
    assert journal.sync() == journal.position
    assert len(journal._unsynced._segments) == 1
    assert verify(folder, expected=[journal.head().anchor]).is_good


def test_verify_and_query_read_while_it_is_written(
    open_journal: OpenJournal, folder: Path, use: bytes
) -> None:
    journal = open_journal(segment_bytes=500_000)
    is_done = threading.Event()

    def write() -> None:
        while not is_done.is_set():
            journal.append(use)
            time.sleep(0.0001)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(10):
            head = journal.head()
            assert verify(folder, expected=[head.anchor]).bad is None
            assert sum(1 for _ in query(folder)) > 0
    finally:
        is_done.set()
        thread.join()
