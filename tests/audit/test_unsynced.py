"""What waits for a sync: nothing is closed too early, and nothing counts as durable that was not synced whole."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from keyd.audit.folder import Folder
from keyd.audit.records import segment_name
from keyd.audit.segment import Segment, Tail, make_segment, put
from keyd.audit.unsynced import Unsynced
from keyd.errors import AuditUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def locked(folder: Path) -> Iterator[Folder]:
    made = Folder(folder)
    made.take()
    yield made
    made.release()


@pytest.fixture
def unsynced(locked: Folder) -> Iterator[Unsynced]:
    made = Unsynced(locked)
    yield made
    made.close()


def begun(locked: Folder, number: int) -> Segment:
    return make_segment(locked.path / segment_name(number), number, b"x" * 100)


def tail(segment: Segment, size: int = 100, number: int = 5) -> Tail:
    return Tail(number, segment, size, bytes(32), 0)


def test_a_segment_that_has_just_begun_stays_open(unsynced: Unsynced, locked: Folder) -> None:
    """A sync may come when it is listed already and the journal does not end in it yet."""
    first, second = begun(locked, 1), begun(locked, 2)
    unsynced.add(first)
    first.retire(100)
    unsynced.add(second)
    assert unsynced.sync(lambda: tail(first)) == 5
    assert unsynced.durable == 5
    assert first.fd == -1
    put(second.fd, b"more")


def test_what_ended_behind_the_syncs_tail_is_written_again_to_its_end(
    unsynced: Unsynced, locked: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = begun(locked, 1)
    unsynced.add(first)

    def fail(_fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", fail)
        with pytest.raises(OSError, match="Input/output"):
            unsynced.sync(lambda: tail(first))
    assert unsynced.durable == 0
    before = tail(first)
    put(first.fd, b"y" * 20)
    first.retire(120)
    unsynced.add(begun(locked, 2))
    again: list[int] = []
    pwrite = os.pwrite

    def count(fd: int, data: bytes, at: int) -> int:
        again.append(len(data))
        return pwrite(fd, data, at)

    monkeypatch.setattr(os, "pwrite", count)
    assert unsynced.sync(lambda: before) == 5
    assert sum(again) == 120
    assert first.fd == -1


def test_a_file_that_retention_removes_is_not_missed(unsynced: Unsynced, locked: Folder) -> None:
    first, second = begun(locked, 1), begun(locked, 2)
    unsynced.add(first)
    first.retire(100)
    unsynced.add(second)
    unsynced.expect_removal(1)
    first.path.unlink()
    assert unsynced.sync(lambda: tail(second)) == 5


def test_nothing_is_durable_by_a_sync_after_the_end(unsynced: Unsynced, locked: Folder) -> None:
    first = begun(locked, 1)
    unsynced.add(first)
    unsynced.close()
    assert first.fd == -1
    with pytest.raises(AuditUnavailable, match="closed"):
        unsynced.sync(lambda: tail(first))
    assert unsynced.durable == 0
