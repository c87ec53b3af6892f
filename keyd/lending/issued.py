"""From PSAMs that officers issued to PSAMs that answer: which may be played now, for whom, and with what.

A PSAM that is played lives as long as its users want it; what officers change since, whoever lends it has to heed. Its
keys are the ring's, which looks at state, validity, use and ceiling of each at every use, so a key that is stopped
stops here too. It has no master key of its own: officers decide on its keys, and nobody loads one by CREATE KEY.

Its memory waits for the store, so a command that `keyd.psam.may_wait` belongs on a worker thread. The ring is the
tick's alone, and `RingOnTick` asks it there.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import trio

from keyd.custody.psam_memory import StoreMemory
from keyd.custody.psam_rows import HeldPsam
from keyd.errors import BadParameter, NotAllowed
from keyd.psam.counters import Counters
from keyd.psam.keys import KeySet
from keyd.psam.ring import RingKeys
from keyd.psam.state import Psam
from keyd.registry.psam import PsamState, identity_of, places_of, require_usable

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyd.custody.catalogue import Catalogue
    from keyd.custody.contents import Contents
    from keyd.keys.block import KeyHeader
    from keyd.keys.hierarchy import RootKey
    from keyd.keys.sam import CardKeyRef
    from keyd.psam.ring import LendsRoots
    from keyd.registry.psam import KeptPsam
    from keyd.store.database import Store


def playable(contents: Contents, now: int) -> dict[str, KeptPsam]:
    """Return the PSAMs that may be played at this moment, in Unix seconds: assigned, and valid. By number.

    Its `terminal` alone may have it; everybody, where that is empty.
    """
    found = {}
    for number, kept in contents.psams.items():
        if kept.state is not PsamState.ASSIGNED:
            continue
        try:
            require_usable(kept, kept.terminal, now)
        except NotAllowed:
            continue
        found[number] = kept
    return found


class RingOnTick:
    """The tick's ring, for PSAMs that answer on worker threads as well. To be made on the tick."""

    def __init__(self, ring: LendsRoots) -> None:
        self._ring = ring
        self._tick = threading.get_ident()

    def lend(self, ref: CardKeyRef) -> RootKey:
        """See `keyd.keys.ring.KeyRing.lend`; a worker thread of trio's waits for the tick."""
        if threading.get_ident() == self._tick:
            return self._ring.lend(ref)
        return trio.from_thread.run_sync(self._ring.lend, ref)

    def answering(self, ref: CardKeyRef) -> KeyHeader:
        """See `keyd.keys.ring.KeyRing.answering`; as `lend`."""
        if threading.get_ident() == self._tick:
            return self._ring.answering(ref)
        return trio.from_thread.run_sync(self._ring.answering, ref)


class Player:
    """Makes PSAMs that answer of PSAMs that officers issued."""

    def __init__(
        self,
        store: Store,
        ring: LendsRoots,
        catalogue: Catalogue,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._store = store
        self._ring = ring
        self._catalogue = catalogue
        self._random_bytes = random_bytes

    def play(self, contents: Contents, kept: KeptPsam) -> Psam:
        """Return the PSAM, for as many applets as it is to have. It reads the store: call it on a worker thread.

        Raises:
            StoreUnavailable: its counters cannot be read, or were altered.
            PsamNotFound: the store has no such PSAM.
            BadParameter: it was issued with a profile that is there no more.
        """
        contents.psam(kept.number)
        spec = kept.spec
        profile = self._catalogue.profiles.get(spec.profile)
        if profile is None or spec.environment not in profile.environments:
            name = spec.environment.name
            raise BadParameter(
                f"PSAM {kept.number} is of profile {spec.profile} with a {name} environment: there is none"
            )
        held = HeldPsam(kept, contents.psam_keys[kept.number])
        memory = StoreMemory(self._store, held, self._random_bytes)
        return Psam(
            profile,
            identity_of(spec),
            RingKeys(self._ring, places_of(spec, self._catalogue.places), KeySet()),
            Counters(memory, profile.purchase.numbers_reserved),
            self._random_bytes,
        )
