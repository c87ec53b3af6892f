"""Use ceilings: exact counts without a database write for each use.

A key's header counts the uses that were handed out. A keyd takes them in leases, writes the lease before it uses
any of it, and hands back what is left when it ends in order. A keyd that is killed loses the rest of one lease,
which counts as used: a ceiling is never exceeded, not by a crash and not by many keyds at one store.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final, NamedTuple

from keyd.custody import lifecycle
from keyd.custody.bodies import seal_key_row
from keyd.custody.work import Outcome
from keyd.errors import Overloaded
from keyd.keys.block import KeyState
from keyd.store.rows import Put

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyd.custody.contents import Contents
    from keyd.custody.work import Event
    from keyd.keys.block import KeyHeader

# A lease is a hundredth of the ceiling: a crash costs one percent at most, and a busy key one write per percent.
LEASE_SHARE: Final = 100
MAX_LEASE: Final = 100_000

# States in which a key computes, and so has uses to count.
_LIVE: Final = frozenset({KeyState.ACTIVE, KeyState.DEACTIVATED})


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


class Lease(NamedTuple):
    """A lease for a quota: `uses` more, which nobody may use before the store has it on record."""

    quota: LeasedQuota
    uses: int
    is_final: bool

    def begin(self) -> None:
        """Let it be used."""
        self.quota.add(self.uses, is_final=self.is_final)


class Leases:
    """What one keyd has leased of every key with a ceiling. It says what to write; whoever asks writes it.

    `want_more` is called from the tick when a quota runs low.
    """

    def __init__(self, want_more: Callable[[], None]) -> None:
        self._want_more = want_more
        self._quotas: dict[bytes, LeasedQuota] = {}

    @property
    def quotas(self) -> dict[bytes, LeasedQuota]:
        """The quotas, by key id. The ring has this very dictionary, and finds in it what is leased later."""
        return self._quotas

    def forget(self) -> None:
        """Have nothing leased any more. Another thread may be going through the dictionary: it is left as it is."""
        self._quotas = {}

    def renewed(
        self, contents: Contents, random_bytes: Callable[[int], bytes]
    ) -> tuple[Outcome, list[Lease]]:
        """Return what to write for every quota that is low, and the leases that begin when it is written."""
        outcome = Outcome()
        leases: list[Lease] = []
        for held in contents.keys.values():
            header = held.header
            # Transport keys have levels 0: their uses are counted one by one where they are used.
            if not (header.ceiling and header.levels and held.key and header.state in _LIVE):
                continue
            quota = self._quotas.setdefault(
                header.key_id, LeasedQuota(header.key_id, self._want_more)
            )
            if not quota.is_low:
                continue
            lease = next_lease(header)
            uses = header.uses + lease
            leases.append(Lease(quota, lease, uses >= header.ceiling))
            if not lease:
                continue
            leased = lifecycle.changed(header, uses=uses)
            lmk = contents.seal.wrapping_keys[header.domain]
            outcome.changes.append(Put(seal_key_row(lmk, leased, held.key, random_bytes)))
            if header.warn_at and header.uses < header.warn_at <= uses:
                outcome.events.append(near_its_ceiling(leased))
        return outcome, leases

    def returned(
        self, contents: Contents, key_id: bytes | None, random_bytes: Callable[[int], bytes]
    ) -> tuple[Outcome, list[Lease]]:
        """Take what is left out of one key's quota, or of all: nobody uses it from now on.

        Returns what to write, and the leases that begin again if it is certain that it was not written.
        """
        outcome = Outcome()
        leases: list[Lease] = []
        for quota in self._quotas.values():
            if key_id is not None and quota.key_id != key_id:
                continue
            held = contents.keys.get(quota.key_id)
            left = quota.give_back()
            if held is None or held.key is None or not left:
                continue
            leases.append(Lease(quota, left, is_final=False))
            header = lifecycle.changed(held.header, uses=max(0, held.header.uses - left))
            lmk = contents.seal.wrapping_keys[header.domain]
            outcome.changes.append(Put(seal_key_row(lmk, header, held.key, random_bytes)))
        return outcome, leases

    def keep_to(self, contents: Contents) -> None:
        """Let no quota be used beyond what is now held of its key."""
        for key_id, quota in list(self._quotas.items()):
            held = contents.keys.get(key_id)
            if held is None or held.key is None:
                del self._quotas[key_id]
            elif held.header.uses > held.header.ceiling > 0:
                # The ceiling was lowered below what is leased: the rest of this lease counts as used.
                quota.give_back()
            elif held.header.uses < held.header.ceiling:
                quota.reopen()


def near_its_ceiling(header: KeyHeader) -> Event:
    """Return the event of a key whose uses have reached the count at which to warn."""
    return {
        "event": "key.near_its_ceiling",
        "domain": header.domain.value,
        "key": header.label,
        "uses": header.uses,
        "ceiling": header.ceiling,
    }
