"""The folder of a journal: its lock, the reserve for a full disk, and what is set aside as evidence.

What stands in the segments is not looked at here.
"""

from __future__ import annotations

import errno
import fcntl
import os
from typing import TYPE_CHECKING, Final

from keyd.audit.records import SUFFIX, segment_name, segment_number
from keyd.audit.segment import put
from keyd.errors import AuditUnavailable

if TYPE_CHECKING:
    from pathlib import Path

# Room for the last event of a full disk and for saying goodbye, hundreds of times over.
RESERVE_BYTES: Final = 256 * 1024
RESERVE_NAME: Final = "reserve"

# After a full disk, this much must be free beside the reserve: else the journal would come back and go again
# every second, with an event each time.
RECOVERY_BYTES: Final = 2 * RESERVE_BYTES


class Folder:
    """A folder for one writer at a time. Whatever the system refuses is an OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # Whether a name in it may be lost in a power cut.
        self.is_dirty = True
        self._fd = -1

    def take(self) -> None:
        """Lock it, and make it if it is not there.

        Raises:
            AuditUnavailable: another process has locked it.
        """
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.fchmod(fd, 0o700)
        except BlockingIOError:
            os.close(fd)
            raise AuditUnavailable(f"another process writes the journal in {self.path}") from None
        except OSError:
            os.close(fd)
            raise
        self._fd = fd

    def hold(self) -> None:
        """Make sure that the folder is the one that is locked; if it has vanished, make it again.

        Raises:
            AuditUnavailable: another process has locked what is there now.
        """
        own = os.fstat(self._fd)
        try:
            named = self.path.stat()
            if (named.st_ino, named.st_dev) == (own.st_ino, own.st_dev) and own.st_nlink:
                return
        except FileNotFoundError:
            pass
        old = self._fd
        self.take()
        os.close(old)
        self.is_dirty = True

    def release(self) -> None:
        """Let it go, for another writer."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def sync(self) -> None:
        """Make the names in it durable."""
        os.fsync(self._fd)

    # --- room ------------------------------------------------------------------------------------------

    def make_reserve(self) -> None:
        """Take room that is given back when the disk is full."""
        path = self.path / RESERVE_NAME
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(fd, 0, RESERVE_BYTES)
        except OSError:
            path.unlink()
            raise
        finally:
            os.close(fd)

    def drop_reserve(self) -> bool:
        """Give the reserve back; return whether there was one."""
        try:
            (self.path / RESERVE_NAME).unlink()
        except OSError:
            return False
        return True

    def require_room(self) -> None:
        """Refuse with ENOSPC unless there is room for the reserve and for going on."""
        room = os.fstatvfs(self._fd)
        if room.f_bavail * room.f_frsize < RESERVE_BYTES + RECOVERY_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    # --- segments --------------------------------------------------------------------------------------

    def segments(self) -> list[int]:
        """Return the numbers of the segments that are there, in order."""
        return segments_of(self.path)

    def remove_unfinished(self) -> None:
        """Remove segments that were being made: nothing in them was acknowledged."""
        for leftover in self.path.glob("*" + SUFFIX + ".new"):
            leftover.unlink()

    # --- evidence --------------------------------------------------------------------------------------

    def set_aside(self, number: int) -> int:
        """Keep a whole segment as .torn; return its size."""
        path = self.path / segment_name(number)
        size = path.stat().st_size
        path.rename(self._torn_path(number))
        return size

    def keep_as_torn(self, number: int, rest: bytes) -> None:
        """Keep, durably, what is about to be cut off a segment."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(self._torn_path(number), flags, 0o400)
        try:
            put(fd, rest)
            os.fsync(fd)
        finally:
            os.close(fd)

    def _torn_path(self, number: int) -> Path:
        path = self.path / f"{number:08d}.torn"
        count = 1
        while path.exists():
            count += 1
            path = self.path / f"{number:08d}.torn-{count}"
        return path


def segments_of(folder: Path) -> list[int]:
    """Return the numbers of the segments in a folder, in order."""
    numbers = (segment_number(path.name) for path in folder.iterdir())
    return sorted(number for number in numbers if number is not None)
