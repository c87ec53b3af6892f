"""A disk that is full or broken: refused, undone, told, and mended without a restart."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from keyd.audit.folder import RESERVE_NAME, segments_of
from keyd.audit.journal import Journal
from keyd.audit.query import EventRecord, query
from keyd.audit.records import Use, encode_use, segment_name
from keyd.audit.verify import verify
from keyd.errors import AuditUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.audit.conftest import Clock, OpenJournal


def events(folder: Path, name: str) -> list[EventRecord]:
    return [r for r in query(folder) if isinstance(r, EventRecord) and r.name == name]


def append_until_refused(journal: Journal, use: bytes) -> str:
    for _ in range(100_000):
        try:
            journal.append(use)
        except AuditUnavailable as error:
            return str(error)
    raise AssertionError("the disk did not fill up")


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """No file may grow beyond this: what a full disk is, for a process without privileges."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_does_not_fit_leaves_nothing(
    journal: Journal, folder: Path, use: bytes
) -> None:
    """The kernel writes a part of the frame: every possible part of it is cut off again."""
    path = folder / segment_name(1)
    journal.number_of("key", "a")
    journal.append(use)
    for room in range(1, 120, 7):
        size = path.stat().st_size
        before = journal.head()
        with files_limited_to(size + room):
            with pytest.raises(AuditUnavailable, match="cannot be written"):
                journal.append(use * 40)
            assert journal.unavailable_because is not None
            with pytest.raises(AuditUnavailable):
                journal.append(use)
            assert not journal.recover()
            assert verify(folder, expected=[before.anchor]).torn is None
        assert journal.recover()
        assert journal.unavailable_because is None
        journal.append(use)
        assert journal.sync() == journal.position
        assert verify(folder, expected=[before.anchor, journal.head().anchor]).is_good
    assert (folder / RESERVE_NAME).exists()
    told = events(folder, "journal.recovered")
    assert told[-1].fields["left_out"] == 41


def test_definitions_survive_a_refused_frame(journal: Journal, folder: Path, use: bytes) -> None:
    number = journal.number_of("terminal", "T-1")
    with (
        files_limited_to((folder / segment_name(1)).stat().st_size),
        pytest.raises(AuditUnavailable),
    ):
        journal.append(use)
    assert journal.recover()
    assert journal.number_of("terminal", "T-1") == number
    journal.append(use)
    assert [r.terminal for r in query(folder) if not isinstance(r, EventRecord)] == ["T-1"]


def test_a_full_disk(open_journal: OpenJournal, tmp_path: Path, use: bytes) -> None:
    """On a real filesystem of 2 MiB: a last word, a goodbye, and back when there is room."""
    mounted = tmp_path / "small"
    mounted.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "keyd-test", mounted],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip("this machine cannot run it: mounting a tmpfs needs privileges")
    folder = mounted / "journal"
    ballast = mounted / "ballast"
    ballast.write_bytes(bytes(1024 * 1024))
    journal = open_journal(folder, segment_bytes=100_000)
    try:
        assert "No space left" in append_until_refused(journal, use * 50)
        assert not (folder / RESERVE_NAME).exists()
        assert len(events(folder, "journal.full")) == 1
        full = journal.head()
        assert not journal.recover()
        assert verify(folder, expected=[full.anchor]).is_good
        ballast.unlink()
        assert journal.recover()
        assert (folder / RESERVE_NAME).exists()
        journal.append(use)
        assert len(events(folder, "journal.recovered")) == 1
        append_until_refused(journal, use * 50)
        journal.close([{"event": "daemon.stopped"}])
        assert events(folder, "daemon.stopped")
        assert events(folder, "journal.closed")
        assert verify(folder, expected=[full.anchor, journal.head().anchor]).is_good
    finally:
        journal.close()
        subprocess.run(["umount", mounted], check=True)


def test_a_disk_that_stays_full_is_not_told_every_second(
    journal: Journal, folder: Path, use: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with files_limited_to((folder / segment_name(1)).stat().st_size):
        with pytest.raises(AuditUnavailable):
            journal.append(use)
        size = (folder / segment_name(1)).stat().st_size
        for _ in range(20):
            assert not journal.recover()
        assert (folder / segment_name(1)).stat().st_size == size


# What no test can cause on a real file: the calls themselves fail.


@contextmanager
def failing(name: str, error: int, patch: pytest.MonkeyPatch) -> Iterator[None]:
    def fail(*_: object) -> int:
        raise OSError(error, os.strerror(error))

    with patch.context() as patched:
        patched.setattr(os, name, fail)
        yield


def test_an_input_output_error_is_refused_and_recovered(
    journal: Journal, folder: Path, use: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with failing("write", errno.EIO, monkeypatch):
        with pytest.raises(AuditUnavailable, match="Input/output error"):
            journal.append(use)
        assert not journal.recover()
    assert journal.recover()
    journal.append(use)
    assert events(folder, "journal.recovered")[0].fields["left_out"] == 1
    assert verify(folder, expected=[journal.head().anchor]).is_good


def _half(write: Callable[[int, bytes], int]) -> Callable[[int, bytes], int]:
    calls = []

    def half(fd: int, content: bytes) -> int:
        calls.append(fd)
        if len(calls) > 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return write(fd, content[: len(content) // 2])

    return half


def test_half_a_frame_that_cannot_be_cut_off_ends_its_segment(
    journal: Journal, folder: Path, use: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The torn end stays, the next segment tells of it, and only so it is no tampering."""
    journal.append(use)
    good = journal.head()
    with failing("ftruncate", errno.EIO, monkeypatch):
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", _half(os.write))
            with pytest.raises(AuditUnavailable):
                journal.append(use * 3)
        assert journal.recover()
        journal.append(use)
    assert segments_of(folder) == [1, 2]
    assert events(folder, "journal.torn")[0].fields["segment"] == 1
    report = verify(folder, expected=[good.anchor, journal.head().anchor])
    assert report.is_good, report.bad
    assert any("could not cut off" in note for note in report.notes)
    assert journal.sync() == journal.position


def test_half_a_frame_is_cut_off_later_if_it_can_be(
    journal: Journal, folder: Path, use: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with failing("ftruncate", errno.EIO, monkeypatch), monkeypatch.context() as patched:
        patched.setattr(os, "write", _half(os.write))
        with pytest.raises(AuditUnavailable):
            journal.append(use * 3)
    assert verify(folder).torn is not None
    assert journal.recover()
    assert segments_of(folder) == [1]
    assert verify(folder).torn is None


def test_a_failed_sync_makes_nothing_durable_and_is_mended(
    journal: Journal, folder: Path, use: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.sync()
    durable = journal.durable
    position = journal.append(use)
    with failing("fdatasync", errno.EIO, monkeypatch):
        with pytest.raises(AuditUnavailable, match="cannot be made durable"):
            journal.sync()
        assert journal.durable == durable
        with pytest.raises(AuditUnavailable):
            journal.append(use)
    # The same segment is not trusted again before it was written again.
    assert journal.recover()
    assert segments_of(folder) == [1, 2]
    again: list[int] = []
    pwrite = os.pwrite

    def count(fd: int, data: bytes, at: int) -> int:
        again.append(len(data))
        return pwrite(fd, data, at)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", count)
        assert journal.sync() >= position
    assert sum(again) > 0
    assert verify(folder, expected=[journal.head().anchor]).is_good


def test_writing_again_changes_nothing(
    journal: Journal, folder: Path, use: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.append(use)
    with failing("fdatasync", errno.EIO, monkeypatch), pytest.raises(AuditUnavailable):
        journal.sync()
    before = (folder / segment_name(1)).read_bytes()
    assert journal.recover()
    assert journal.sync() == journal.position
    assert (folder / segment_name(1)).read_bytes() == before
    assert verify(folder, expected=[journal.head().anchor]).is_good


def test_a_name_that_is_new_while_recovery_runs_is_defined_after_it(
    folder: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread may ask for numbers while `recover` writes: the clock does it here, in its middle."""
    asked: list[int] = []
    is_recovering = False

    def clock_ns() -> int:
        if is_recovering and not asked:
            asked.append(journal.number_of("terminal", "T-1"))
        return clock.realtime_ns()

    journal = Journal(folder, "keyd-1", clock_ns=clock_ns, monotonic_ns=clock.monotonic_ns)
    with failing("write", errno.EIO, monkeypatch), pytest.raises(AuditUnavailable):
        journal.append(bytes(32))
    is_recovering = True
    assert journal.recover()
    journal.append(encode_use(Use(0, 0, 0, asked[0], 0, bytes(16))))
    journal.close()
    assert [r.terminal for r in query(folder) if not isinstance(r, EventRecord)] == ["T-1"]


def test_a_file_that_is_removed_during_other_trouble_is_told_as_well(
    journal: Journal, folder: Path, use: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with failing("write", errno.EIO, monkeypatch), pytest.raises(AuditUnavailable):
        journal.append(use)
    lost = journal.head()
    (folder / segment_name(1)).unlink()
    assert journal.recover()
    assert segments_of(folder) == [2]
    assert events(folder, "journal.lost")[0].fields["link"] == lost.link
