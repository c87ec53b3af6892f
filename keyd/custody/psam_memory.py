"""The memory of a PSAM that keyd plays, in the store: every keyd of the store may play it at the same time.

A change begins from what the store has, and takes effect only if nobody was quicker; otherwise it is made again. Every
call waits for the database, so it belongs on a worker thread; any number of threads may call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyd.crypto.native._core import KeyGone
from keyd.custody.bodies import StoreAltered, StoreNotOurs
from keyd.custody.psam_rows import open_counters, seal_counters
from keyd.errors import ChangedMeanwhile, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyd.custody.psam_rows import HeldPsam
    from keyd.psam.counters import PsamRecord
    from keyd.store.database import Store
    from keyd.store.rows import CounterRow

# Whoever loses a race has let another win: of so many keyds and threads, each gets its turn long before that.
_TRIES: Final = 1000


class StoreMemory:
    """The record of one PSAM in the store."""

    def __init__(self, store: Store, held: HeldPsam, random_bytes: Callable[[int], bytes]) -> None:
        self._store = store
        self._held = held
        self._random_bytes = random_bytes

    def load(self) -> PsamRecord:
        """See `keyd.psam.counters.PsamMemory.load`.

        Raises:
            StoreUnavailable: it cannot be read, was altered, or keyd was sealed meanwhile.
        """
        return _opened(self._held, _row(self._store, self._held))

    def change(self, to: Callable[[PsamRecord], PsamRecord]) -> PsamRecord:
        """See `keyd.psam.counters.PsamMemory.change`.

        Raises:
            StoreUnavailable: as `load`, or it could not be kept.
        """
        for _ in range(_TRIES):
            row = _row(self._store, self._held)
            before = _opened(self._held, row)
            record = to(before)
            if record == before:
                return record
            try:
                sealed = seal_counters(
                    self._held.key, row.psam, row.revision + 1, record, self._random_bytes
                )
            except KeyGone:
                raise StoreUnavailable(_SEALED) from None
            try:
                self._store.swap_counters(sealed)
            except ChangedMeanwhile:
                continue
            return record
        raise StoreUnavailable("other keyds keep changing the PSAM's counters: try again later")


def _row(store: Store, held: HeldPsam) -> CounterRow:
    row = store.counters(held.kept.spec.number)
    if row is None:
        # They began with the PSAM and are never deleted; from the first number on, every one would come twice.
        raise StoreNotOurs(f"the counters of PSAM {held.kept.number} are missing")
    return row


def _opened(held: HeldPsam, row: CounterRow) -> PsamRecord:
    try:
        return open_counters(held.key, row)
    except StoreAltered as error:
        raise StoreNotOurs(f"the store was altered: {error}") from None
    except KeyGone:
        raise StoreUnavailable(_SEALED) from None


_SEALED: Final = "keyd is sealed: the PSAM's counters cannot be opened"
