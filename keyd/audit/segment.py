"""One segment file that is open: appended to, cut back to its last whole frame, synced and closed.

It appears under its name whole or not at all. Whether its links follow from each other is for those who read it.
"""

from __future__ import annotations

import errno
import fcntl
import os
from typing import TYPE_CHECKING, Final, NamedTuple

from keyd.audit.records import HEADER_MAX, decode_header

if TYPE_CHECKING:
    from pathlib import Path

    from keyd.audit.records import Header

APPENDING: Final = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW


class Segment:
    """A segment file that is open, for appending or until it is durable."""

    __slots__ = (
        *("begun", "durable_at", "fd", "identity", "is_lost", "is_removed", "is_suspect"),
        *("is_told", "number", "path", "size"),
    )

    def __init__(self, path: Path, number: int, fd: int, *, size: int) -> None:
        self.path = path
        self.number = number
        self.fd = fd  # -1 if it is closed although a sync is still to come
        own = os.fstat(fd)
        self.identity = (own.st_ino, own.st_dev)
        self.begun = size  # its size when this process began to append to it
        self.size = size  # where it ends, once it has been retired; until then `Tail.size` is right
        self.durable_at = 0
        self.is_suspect = False  # an fsync of it failed
        self.is_lost = False  # the file under its name is not this one, or not as it was written
        self.is_removed = False  # retention has removed it
        self.is_told = False  # a sync has said so to those who wait

    def why_lost(self, least: int, most: int | None) -> str | None:
        """Tell what has happened to the file under the daemon; sizes as they must be."""
        name = self.path.name
        try:
            named = self.path.lstat()
        except OSError:
            return f"{name} was removed under keyd"
        if (named.st_ino, named.st_dev) != self.identity:
            return f"{name} was replaced under keyd"
        if named.st_size < least or (most is not None and named.st_size > most):
            return f"{name} was changed under keyd"
        return None

    def cut(self, size: int) -> bool:
        """Cut off what stands behind its last whole frame; return whether nothing does any more."""
        try:
            os.ftruncate(self.fd, size)
        except OSError:
            return False
        return os.fstat(self.fd).st_size == size

    def retire(self, size: int) -> None:
        """Append to it no more: it ends at this size."""
        self.size = size
        try:
            os.fchmod(self.fd, 0o400)
            # What may have to be written again must go to its place, not to the end.
            flags = fcntl.fcntl(self.fd, fcntl.F_GETFL)
            fcntl.fcntl(self.fd, fcntl.F_SETFL, flags & ~os.O_APPEND)
        except OSError:
            self.is_lost = True

    def sync(self, end: int) -> None:
        """Make it durable up to an offset. An OSError leaves it suspect, to be written again from where it was."""
        try:
            if self.fd < 0:
                self.fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            if self.is_suspect:
                _write_again(self.fd, self.durable_at, end)
            os.fdatasync(self.fd)
        except OSError:
            # After a failed fsync the kernel takes the pages for clean: asking again proves nothing.
            self.is_suspect = True
            raise
        self.is_suspect = False
        self.durable_at = end

    def close(self) -> None:
        """Let the file go; a sync may open it again."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Tail(NamedTuple):
    """Where the journal ends. Replaced whole, so that another thread sees one state or the next."""

    number: int
    segment: Segment
    size: int
    link: bytes
    time_ns: int


def make_segment(path: Path, number: int, content: bytes) -> Segment:
    """Make a segment that begins with this content. On an OSError there is none."""
    making = path.with_name(path.name + ".new")
    fd = os.open(making, APPENDING | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        put(fd, content)
        making.rename(path)
    except OSError:
        os.close(fd)
        making.unlink(missing_ok=True)
        raise
    return Segment(path, number, fd, size=len(content))


def put(fd: int, content: bytes) -> None:
    """Write all of it, or raise what keeps it from being written; a part may be on file then."""
    written = os.write(fd, content)
    if written != len(content):
        # A disk that fills up takes a part, and says why not more when asked again.
        written += os.write(fd, content[written:])
    if written != len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def header_of(path: Path) -> Header:
    """Return the header of a segment that may be another's by now.

    Raises:
        NotAJournal: it has none.
    """
    with path.open("rb") as file:
        return decode_header(file.read(HEADER_MAX))[0]


def _write_again(fd: int, start: int, end: int) -> None:
    while start < end:
        chunk = os.pread(fd, min(1024 * 1024, end - start), start)
        if not chunk:
            raise OSError(errno.EIO, "the segment is shorter than what was written")
        start += os.pwrite(fd, chunk, start)
