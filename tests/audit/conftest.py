"""What the journal's tests share: a clock that a test moves, a folder in memory, journals that get closed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import pytest

from keyd.audit.journal import Journal
from keyd.audit.records import Use, encode_use

if TYPE_CHECKING:
    from collections.abc import Iterator

INSTANCE: Final = "keyd-1"
SECOND: Final = 1_000_000_000

# Most tests write thousands of files; what they show does not depend on a disk.
_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - only as a place for temporary folders


class Clock:
    """A realtime and a monotonic clock that move together, unless a test steps the first."""

    def __init__(self) -> None:
        # 2026-03-01T00:00:00Z
        self.realtime = 1_772_323_200 * SECOND
        self.elapsed = 0

    def realtime_ns(self) -> int:
        return self.realtime

    def monotonic_ns(self) -> int:
        return self.elapsed

    def wait(self, ns: int) -> None:
        self.realtime += ns
        self.elapsed += ns

    def step(self, ns: int) -> None:
        self.realtime += ns


class OpenJournal(Protocol):
    def __call__(self, at: Path | None = None, **options: Any) -> Journal: ...


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as made:
        yield Path(made) / "journal"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def open_journal(folder: Path, clock: Clock) -> Iterator[OpenJournal]:
    opened: list[Journal] = []

    def open_(at: Path | None = None, **options: Any) -> Journal:
        options.setdefault("monotonic_ns", clock.monotonic_ns)
        journal = Journal(at or folder, INSTANCE, clock_ns=clock.realtime_ns, **options)
        opened.append(journal)
        return journal

    yield open_
    for journal in opened:
        journal.close()


@pytest.fixture
def journal(open_journal: OpenJournal) -> Journal:
    return open_journal()


@pytest.fixture
def use() -> bytes:
    return encode_use(Use(1, 0, 7, 1, 1, bytes.fromhex("510100") + bytes(13)))
