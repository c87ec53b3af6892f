"""What a PSAM has to remember over a crash: which transaction numbers are spent, and how often proofs were wrong.

Numbers are reserved some at a time, and the reservation is kept before the first of them is given: a crash skips
what was reserved and repeats nothing. A wrong proof is counted before the answer says that it was wrong.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Annotated, Final, Protocol

import msgspec
from msgspec import Meta, Struct

if TYPE_CHECKING:
    from collections.abc import Callable

# A terminal transaction number has four bytes. The last one there is marks the end and is never given.
MAX_NUMBER: Final = 0xFFFF_FFFF


class PsamRecord(Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept: the first transaction number that was not reserved, and wrong proofs in a row by their name."""

    number: Annotated[int, Meta(ge=0, le=MAX_NUMBER)] = 1
    wrong: dict[str, Annotated[int, Meta(ge=0)]] = {}


class PsamMemory(Protocol):
    """Where the record of one PSAM is. Others may have it at the same time: each change begins from what is there."""

    def load(self) -> PsamRecord:
        """Return what was kept last; of a new PSAM, the first record there is.

        Raises:
            StoreUnavailable: it cannot be read.
        """

    def change(self, to: Callable[[PsamRecord], PsamRecord]) -> PsamRecord:
        """Keep what `to` makes of the record that is there now, and return it. Then it survives a crash.

        `to` is called again whenever somebody else was quicker. What it raises passes, and nothing is kept.

        Raises:
            StoreUnavailable: it could not be kept; the last one may stand, or this one.
        """


class TransientMemory:
    """A memory that lasts as long as this object: for tests, and for PSAMs that nobody counts on."""

    def __init__(self, record: PsamRecord | None = None) -> None:
        self.record = record or PsamRecord()
        self._lock = threading.Lock()

    def load(self) -> PsamRecord:
        """See `PsamMemory.load`."""
        return self.record

    def change(self, to: Callable[[PsamRecord], PsamRecord]) -> PsamRecord:
        """See `PsamMemory.change`; nothing here survives."""
        with self._lock:
            self.record = to(self.record)
            return self.record


class NumbersSpent(Exception):  # noqa: N818 - says what happened
    """All transaction numbers of this PSAM are spent: it is used up."""


class Counters:
    """The counters of one PSAM over its memory, with so many numbers reserved at a time.

    Several threads may use one object, and several objects, in as many processes, one record: a number that one of
    them has reserved is no other's, and wrong proofs add up.
    """

    def __init__(self, memory: PsamMemory, numbers_reserved: int) -> None:
        self._memory = memory
        self._numbers_reserved = numbers_reserved
        # Held while the memory waits for a disk: whoever comes then needs what comes of it.
        self._lock = threading.Lock()
        self._record = memory.load()
        # Wrong proofs that could not be kept yet.
        self._unkept: dict[str, int] = {}
        # Whatever was reserved by who had the memory before may have been given.
        self._next = self._end = self._record.number

    @property
    def next_number(self) -> int:
        """The transaction number that comes next, unless keyd is started anew or another keyd reserves before."""
        return self._next

    def take_number(self) -> int:
        """Return a transaction number that was never given before and never will be again.

        Raises:
            NumbersSpent: there is none any more.
            StoreUnavailable: it could not be kept, and nothing was given.
        """
        with self._lock:
            if self._next >= self._end:
                self._reserve()
            self._next += 1
            return self._next - 1

    def wrong(self, name: str) -> int:
        """Return how many proofs of a name were wrong in a row, as far as this object knows.

        What others count on the same record is known with the next change.
        """
        return self._record.wrong.get(name, 0) + self._unkept.get(name, 0)

    def count_wrong(self, name: str) -> int:
        """Count a wrong proof and return how many there were in a row.

        Raises:
            StoreUnavailable: it could not be kept. As long as this object lives it is counted nevertheless.
        """
        with self._lock:
            # Before it is kept: a full disk must not let anybody guess for ever.
            self._unkept[name] = self._unkept.get(name, 0) + 1
            self._change(lambda record: record)
            return self.wrong(name)

    def forget_wrong(self, name: str, tries: int) -> None:
        """Begin to count anew, since a proof was right. So many wrong ones stay for good, whoever has counted them.

        Raises:
            StoreUnavailable: it could not be kept.
        """

        def forget(record: PsamRecord) -> PsamRecord:
            if record.wrong.get(name, 0) >= tries:
                return record
            rest = {other: count for other, count in record.wrong.items() if other != name}
            return msgspec.structs.replace(record, wrong=rest)

        with self._lock:
            if self.wrong(name):
                self._change(forget)

    def _reserve(self) -> None:
        first = 0

        def reserve(record: PsamRecord) -> PsamRecord:
            nonlocal first
            first = record.number
            if first >= MAX_NUMBER:
                raise NumbersSpent
            end = min(first + self._numbers_reserved, MAX_NUMBER)
            return msgspec.structs.replace(record, number=end)

        self._change(reserve)
        self._next, self._end = first, self._record.number

    def _change(self, to: Callable[[PsamRecord], PsamRecord]) -> None:
        def with_unkept(record: PsamRecord) -> PsamRecord:
            wrong = dict(record.wrong)
            for name, count in self._unkept.items():
                wrong[name] = wrong.get(name, 0) + count
            return to(msgspec.structs.replace(record, wrong=wrong))

        self._record = self._memory.change(with_unkept)
        self._unkept = {}
