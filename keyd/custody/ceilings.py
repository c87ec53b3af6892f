"""Use ceilings: exact counts without a database write for each use.

A key's header counts the uses that were handed out. A keyd takes them in leases, writes the lease before it uses
any of it, and hands back what is left when it ends in order. A keyd that is killed loses the rest of one lease,
which counts as used: a ceiling is never exceeded, not by a crash and not by many keyds at one store.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from keyd.errors import Overloaded

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyd.keys.block import KeyHeader

# A lease is a hundredth of the ceiling: a crash costs one percent at most, and a busy key one write per percent.
LEASE_SHARE: Final = 100
MAX_LEASE: Final = 100_000


class LeasedQuota:
    """What one keyd may still use of a key before it must ask the store again."""

    __slots__ = ("_lock", "_low", "_want_more", "is_final", "key_id", "left")

    def __init__(self, key_id: bytes, want_more: Callable[[], None]) -> None:
        self.key_id = key_id
        self.left = 0
        # Whether the store has nothing more to give.
        self.is_final = False
        self._low = 0
        self._want_more = want_more
        # The tick takes, a worker thread adds and gives back; no use may be counted twice or not at all.
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Use it once; False if nothing is left. Asks for more before that, where there may be more.

        Raises:
            Overloaded: nothing is left of this lease, and the store has not given the next one yet.
        """
        with self._lock:
            is_left = self.left > 0
            if is_left:
                self.left -= 1
            is_low = self.left <= self._low and not self.is_final
        if is_low:
            self._want_more()
            if not is_left:
                raise Overloaded("the key's next uses are being fetched: ask again in a moment")
        return is_left

    def add(self, lease: int, *, is_final: bool) -> None:
        """Add a lease that the store has on record."""
        with self._lock:
            self.left += lease
            self.is_final = is_final
            self._low = self.left // 2

    def reopen(self) -> None:
        """Ask the store again when it runs low: another keyd has given some back, or the ceiling was raised."""
        with self._lock:
            self.is_final = False

    @property
    def is_low(self) -> bool:
        """Whether it is time for another lease."""
        return self.left <= self._low and not self.is_final

    def give_back(self) -> int:
        """Take everything that is left out again, and return how much it was."""
        with self._lock:
            left, self.left, self.is_final, self._low = self.left, 0, False, 0
        return left


def next_lease(header: KeyHeader) -> int:
    """Return how many uses to take at once: 0 if the ceiling is reached."""
    wanted = min(max(1, header.ceiling // LEASE_SHARE), MAX_LEASE)
    return max(0, min(wanted, header.ceiling - header.uses))
