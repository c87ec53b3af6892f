"""What a PSAM has to remember over a crash: which transaction numbers are spent, and how often proofs were wrong.

Numbers are reserved some at a time, and the reservation is kept before the first of them is given: a crash skips
what was reserved and repeats nothing. A wrong proof is counted before the answer says that it was wrong.
"""

from __future__ import annotations

from typing import Annotated, Final, Protocol

import msgspec
from msgspec import Meta, Struct

# A terminal transaction number has four bytes. The last one there is marks the end and is never given.
MAX_NUMBER: Final = 0xFFFF_FFFF


class PsamRecord(Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept: the first transaction number that was not reserved, and wrong proofs in a row by their name."""

    number: Annotated[int, Meta(ge=0, le=MAX_NUMBER)] = 1
    wrong: dict[str, Annotated[int, Meta(ge=0)]] = {}


class PsamMemory(Protocol):
    """Where the record of one PSAM is. Nobody else may have it at the same time."""

    def load(self) -> PsamRecord:
        """Return what was kept last; of a new PSAM, the first record there is.

        Raises:
            StoreUnavailable: it cannot be read.
        """

    def keep(self, record: PsamRecord) -> None:
        """Keep a record. When this returns, it survives a crash.

        Raises:
            StoreUnavailable: it could not be kept; the last one may stand, or this one.
        """


class TransientMemory:
    """A memory that lasts as long as this object: for tests, and for PSAMs that nobody counts on."""

    def __init__(self, record: PsamRecord | None = None) -> None:
        self.record = record or PsamRecord()

    def load(self) -> PsamRecord:
        """See `PsamMemory.load`."""
        return self.record

    def keep(self, record: PsamRecord) -> None:
        """See `PsamMemory.keep`; nothing here survives."""
        self.record = record


class NumbersSpent(Exception):  # noqa: N818 - says what happened
    """All transaction numbers of this PSAM are spent: it is used up."""


class Counters:
    """The counters of one PSAM over its memory, with so many numbers reserved at a time."""

    def __init__(self, memory: PsamMemory, numbers_reserved: int) -> None:
        self._memory = memory
        self._numbers_reserved = numbers_reserved
        self._record = memory.load()
        # Whatever was reserved by who had the memory before may have been given.
        self._next = self._record.number

    @property
    def next_number(self) -> int:
        """The transaction number that comes next, unless keyd is started anew before."""
        return self._next

    def take_number(self) -> int:
        """Return a transaction number that was never given before and never will be again.

        Raises:
            NumbersSpent: there is none any more.
            StoreUnavailable: it could not be kept, and nothing was given.
        """
        if self._next >= MAX_NUMBER:
            raise NumbersSpent
        if self._next >= self._record.number:
            reserved = min(self._next + self._numbers_reserved, MAX_NUMBER)
            self._keep(msgspec.structs.replace(self._record, number=reserved))
        self._next += 1
        return self._next - 1

    def wrong(self, name: str) -> int:
        """Return how many proofs of a name were wrong in a row."""
        return self._record.wrong.get(name, 0)

    def count_wrong(self, name: str) -> int:
        """Count a wrong proof and return how many there were in a row.

        Raises:
            StoreUnavailable: it could not be kept. As long as this object lives it is counted nevertheless.
        """
        count = self.wrong(name) + 1
        wrong = self._record.wrong | {name: count}
        # Before it is kept: a full disk must not let anybody guess for ever.
        self._record = msgspec.structs.replace(self._record, wrong=wrong)
        self._memory.keep(self._record)
        return count

    def forget_wrong(self, name: str) -> None:
        """Begin to count anew, since a proof was right.

        Raises:
            StoreUnavailable: it could not be kept.
        """
        if name in self._record.wrong:
            rest = {other: count for other, count in self._record.wrong.items() if other != name}
            self._keep(msgspec.structs.replace(self._record, wrong=rest))

    def _keep(self, record: PsamRecord) -> None:
        self._memory.keep(record)
        self._record = record
