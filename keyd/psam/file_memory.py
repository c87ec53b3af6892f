"""A PSAM's record in a file of its own: for PSAMs that keyd's store does not have, as those of `keyd vpcd`.

The file is replaced as a whole, synced before and after it gets its name, and locked against a second process.
"""

from __future__ import annotations

import fcntl
import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import msgspec

from keyd.errors import StoreUnavailable
from keyd.psam.counters import PsamRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PRIVATE: Final = 0o600


class FileMemory:
    """The record of one PSAM in a file. The lock, beside it, is held until `close`.

    Raises:
        StoreUnavailable: another process has this PSAM, or the folder cannot be written.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = -1
        self._turn = threading.Lock()
        with self._guarded():
            self._lock = os.open(file.with_name(file.name + ".lock"), _LOCK_FLAGS, PRIVATE)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise StoreUnavailable(f"another process uses the PSAM in {file}") from None

    def load(self) -> PsamRecord:
        """See `PsamMemory.load`: without a file it is a new PSAM."""
        with self._guarded():
            try:
                kept = self._file.read_bytes()
            except FileNotFoundError:
                return PsamRecord()
        try:
            return msgspec.json.decode(kept, type=PsamRecord)
        except msgspec.DecodeError:
            raise StoreUnavailable(f"{self._file} is not the record of a PSAM") from None

    def change(self, to: Callable[[PsamRecord], PsamRecord]) -> PsamRecord:
        """See `PsamMemory.change`. The lock keeps other processes away, so nobody else is quicker."""
        with self._turn:
            record = to(self.load())
            self._keep(record)
            return record

    def _keep(self, record: PsamRecord) -> None:
        new = self._file.with_name(self._file.name + ".new")
        with self._guarded():
            # A file object writes all of it or raises; a bare write may stop at the end of the disk.
            with os.fdopen(os.open(new, _NEW_FLAGS, PRIVATE), "wb") as place:
                place.write(msgspec.json.encode(record))
                place.flush()
                os.fsync(place.fileno())
            new.replace(self._file)
            # A name is kept when its folder is.
            folder = os.open(self._file.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def close(self) -> None:
        """Let another process have this PSAM. Safe to call twice."""
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreUnavailable(
                f"the PSAM in {self._file} cannot be kept: {error.strerror}"
            ) from None


_LOCK_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
_NEW_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
