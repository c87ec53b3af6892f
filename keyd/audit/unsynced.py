"""What is written and would not yet survive a power cut: segments that wait for a sync, and their folder.

A sync goes on in one thread while another appends. It waits for the disk with no lock that an append needs.
"""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING, Final

from keyd.errors import AuditUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyd.audit.folder import Folder
    from keyd.audit.segment import Segment, Tail

# Segments that wait for a sync stay open, since an error in writing them back is told to who has them open;
# but not without limit when nobody syncs.
_MAX_OPEN: Final = 8


class SegmentLost(Exception):  # noqa: N818 - the name says what happened
    """The file of a segment is not there as it was written. `str()` is a sentence for those who wait for it."""

    def __init__(self, segment: Segment, why: str | None) -> None:
        super().__init__(f"{segment.path.name} was removed or changed under keyd")
        # What happened to it; None if that was known before.
        self.why = why


class Unsynced:
    """The segments that wait for a sync. The last of them is the one that is appended to."""

    def __init__(self, folder: Folder) -> None:
        # Everything before this record would survive a power cut.
        self.durable = 0
        self._folder = folder
        self._segments: tuple[Segment, ...] = ()
        self._current: Segment | None = None
        self._is_closed = False
        self._syncing = threading.Lock()  # held during an fsync
        self._listing = threading.Lock()  # held while `_segments` changes; never while waiting

    def add(self, segment: Segment) -> None:
        """From now on this one is appended to; the one before it has been retired."""
        with self._listing:
            self._segments = (*self._segments, segment)
            self._current = segment
            self._folder.is_dirty = True
        if len(self._segments) > _MAX_OPEN and self._syncing.acquire(blocking=False):
            # Nobody syncs. A sync that comes after all opens them again.
            for old in self._segments[:-_MAX_OPEN]:
                old.close()
            self._syncing.release()

    def expect_removal(self, number: int) -> None:
        """Take note that a segment is about to be removed, and is not lost thereby."""
        for segment in self._segments:
            segment.is_removed |= segment.number == number

    def sync(self, where: Callable[[], Tail]) -> int:
        """Make everything durable up to where the journal ends when it is this sync's turn; return that record.

        Raises:
            OSError: it could not be done.
            SegmentLost: a segment is not there any more.
            AuditUnavailable: everything is closed.
        """
        with self._syncing:
            # The tail first: segments that are opened after this only add to what is synced.
            tail = where()
            with self._listing:
                if self._is_closed:
                    raise AuditUnavailable("the journal is closed")
                segments = self._segments
                is_folder_dirty, self._folder.is_dirty = self._folder.is_dirty, False
            try:
                for segment in segments:
                    self._sync_one(segment, tail)
                if is_folder_dirty:
                    self._folder.sync()
            except (OSError, SegmentLost):
                self._folder.is_dirty = True
                raise
            self.durable = max(self.durable, tail.number)
            return tail.number

    def is_free_within(self, seconds: float) -> bool:
        """Wait until no sync waits for the disk, but no longer than this; return whether that is so."""
        is_free = self._syncing.acquire(timeout=seconds)
        if is_free:
            self._syncing.release()
        return is_free

    def close(self) -> None:
        """Let all files go, synced or not."""
        with self._listing:
            self._is_closed = True
            segments, self._segments = self._segments, ()
        for segment in segments:
            segment.close()

    def _sync_one(self, segment: Segment, tail: Tail) -> None:
        is_current = segment is self._current
        # What is no longer appended to is synced whole.
        end = tail.size if is_current and segment is tail.segment else segment.size
        why = None
        if not segment.is_lost and (why := segment.why_lost(end, None)) is not None:
            if segment.is_removed:
                self._forget(segment)
                return
            segment.is_lost = True
        if segment.is_lost:
            was_told, segment.is_told = segment.is_told, True
            if not is_current:
                self._forget(segment)
            if is_current or not was_told:
                raise SegmentLost(segment, why)
            return
        if segment.is_suspect and is_current:
            # It must not be written to again in its middle while it grows: recovery begins another.
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        segment.sync(end)
        if not is_current:
            self._forget(segment)

    def _forget(self, segment: Segment) -> None:
        with self._listing:
            self._segments = tuple(other for other in self._segments if other is not segment)
            segment.close()
