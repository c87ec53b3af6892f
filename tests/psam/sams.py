"""A `Sam` that is a PSAM: every task is a conversation with an applet. For tests that run on ring and PSAM alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from keyd.crypto.algorithms import CardAlgorithm
from keyd.errors import AlgorithmNotSupported, KeyNotFound, PsamNotFound, Refusal
from keyd.iso7816 import converse
from keyd.keys.block import Use
from keyd.psam import Applet, Counters, KeySet, Psam, PsamIdentity, RingKeys, TransientMemory
from keyd.psam.card_tasks import dialogue_of, place_of_task
from keyd.psam.level_index import every_place, identify_and_probe
from keyd.routing import RouteRow
from tests.psam.bench import PROFILES, SERIAL, TERMINAL, random_source

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from keyd.cards.profile import ProfileKey
    from keyd.handlers.desk import MemberReport, OpenPsam, Wanted
    from keyd.keys.ring import KeyRing
    from keyd.keys.sam import ProofTask, Sam, SamTask
    from keyd.psam import PsamProfile

PROFILE: Final = PROFILES["social-security"]

# What no PSAM computes for somebody else: see `keyd.psam.card_tasks`.
RINGS_ALONE: Final = frozenset({Use.DEBIT, Use.TAC})


class PsamSam:
    """One PSAM with a ring's keys. It counts what it was asked for."""

    def __init__(
        self, ring: KeyRing, keys: Mapping[int, ProfileKey], profile: PsamProfile = PROFILE
    ) -> None:
        self._keys = keys
        self._ring = ring
        self._profile = profile
        identity = PsamIdentity(SERIAL, TERMINAL)
        ring_keys = RingKeys(ring, keys.values(), KeySet())
        counters = Counters(TransientMemory(), 1)
        self.applet = Applet(Psam(profile, identity, ring_keys, counters, random_source()))
        places = every_place(keys.values(), CardAlgorithm)
        self.facts = converse(identify_and_probe(places, profile), self.applet.transmit)
        self.asked = 0

    def compute(self, tasks: Sequence[SamTask]) -> list[bytes | Refusal]:
        """See `keyd.keys.sam.Sam`."""
        results: list[bytes | Refusal] = []
        for task in tasks:
            self.asked += 1
            try:
                results.append(self._compute(task))
            except Refusal as refusal:
                results.append(refusal)
        return results

    def prove(self, tasks: Sequence[ProofTask]) -> list[bytes | Refusal]:
        """Terminals' keys are in no PSAM."""
        return self._ring.prove(tasks)

    def _compute(self, task: SamTask) -> bytes:
        place = place_of_task(task, self._keys)
        if place is None:
            raise KeyNotFound(f"PSAMs have no key {task.key.address:04X}")
        levels = self.facts.levels.get(place)
        if levels is None and place.algorithm is CardAlgorithm.SSF33:
            raise AlgorithmNotSupported("no PSAM has SSF33")
        # What it does not have is refused by the dialogue, or by the PSAM.
        return converse(dialogue_of(task, place, levels or 3, self._profile), self.applet.transmit)


class Divided:
    """A PSAM for what PSAMs do, and the ring for the rest: other sets of a key, purchases and TACs."""

    def __init__(self, psam: PsamSam, ring: Sam, keys: Mapping[int, ProfileKey]) -> None:
        self.psam = psam
        self._ring = ring
        # By address; whether the use is right is then for whoever computes.
        self._psams = {
            key.address for key in keys.values() if key.set == 1 and key.use not in RINGS_ALONE
        }

    def compute(self, tasks: Sequence[SamTask]) -> list[bytes | Refusal]:
        """See `keyd.keys.sam.Sam`."""
        return [self._sam(task).compute([task])[0] for task in tasks]

    def prove(self, tasks: Sequence[ProofTask]) -> list[bytes | Refusal]:
        """Terminals' keys are in the ring."""
        return self._ring.prove(tasks)

    def _sam(self, task: SamTask) -> Sam:
        return self.psam if task.key.address in self._psams else self._ring


# Pool ------------------------------------------------------------------------------------------------------------

# What a site routes to its PSAMs that has them for reading, writing and maintaining cards and for loads.
ROUTES: Final = (
    RouteRow(keys=("IRK", "RK*", "UK*", "PUK", "BK", "LK*", "STK*", "DLK"), to="pool"),
)


class LendsNothing:
    """A desk without a PSAM to lend. Those of this kind compute."""

    async def open(self, terminal: str, wanted: Wanted) -> OpenPsam:
        """See `keyd.handlers.desk.PsamDesk`."""
        raise PsamNotFound(f"{terminal} gets no {wanted}")

    def members(self) -> list[MemberReport]:
        """See `keyd.handlers.desk.PsamDesk`."""
        return []


class OnePool(LendsNothing):
    """Computes with one PSAM. It notes for whom it computed what."""

    def __init__(self, psam: Sam) -> None:
        self.psam = psam
        self.asked: list[tuple[str, SamTask]] = []

    async def compute(self, tasks: Sequence[SamTask], terminal: str) -> list[bytes | Refusal]:
        """See `keyd.handlers.desk.PsamDesk`."""
        self.asked += [(terminal, task) for task in tasks]
        await trio.lowlevel.checkpoint()
        return self.psam.compute(tasks)
