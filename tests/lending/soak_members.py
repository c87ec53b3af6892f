"""The soak's members: chips that fail now and then, and PSAMs that keyd plays. All mind that they are used properly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from keyd.lending.member import MemberFailed, MemberKind
from keyd.lending.virtual import VirtualMember
from keyd.psam import Applet
from tests.lending.members import Chip

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable

    from keyd.psam import Psam, PsamProfile
    from keyd.psam.level_index import MemberFacts, Place
    from tests.lending.members import Fixed

# What becomes of a command, as `Chip` knows it.
TROUBLES: Final = ("silent", "failed", "nothing", "lost answer")
PULLED: Final = "pulled"

# The shortest and longest time between two troubles, and the longest that one lasts, in seconds of an hour's run.
BETWEEN_SECONDS: Final = (30.0, 300.0)
TROUBLE_SECONDS: Final = 60.0


class Flaky(Chip):
    """A chip that fails as long as `trouble` says so, in half of its resets too. Put back, it is the same PSAM."""

    def __init__(self, number: int, round_trip: float, chance: random.Random) -> None:
        super().__init__(number, lambda _command: self.trouble, round_trip)
        self.trouble: str | None = None
        self.number = number
        self._chance = chance

    async def reset(self, slot: int) -> bytes:
        """See `Member.reset`."""
        if self.trouble and self._chance.random() < 0.5:
            await trio.sleep(self.round_trip)
            raise MemberFailed("the reader says that there is no chip")
        return await super().reset(slot)

    def put_back(self) -> Flaky:
        """Return the same PSAM in the same reader, another member."""
        back = Flaky(self.number, self.round_trip, self._chance)
        back.applet = self.applet
        return back


async def misfortune(source: Fixed, chip: Flaky, chance: random.Random, scale: float) -> None:
    """Let a chip fail or be pulled out now and then, each kind of trouble in turn. Cancelled, it is whole again."""
    kinds = [*TROUBLES, PULLED]
    chance.shuffle(kinds)
    try:
        while True:
            for kind in kinds:
                await trio.sleep(chance.uniform(*BETWEEN_SECONDS) * scale)
                if kind == PULLED:
                    source.parted(chip)
                    chip = chip.put_back()
                    with trio.CancelScope(shield=True):
                        await trio.sleep(chance.uniform(0, TROUBLE_SECONDS) * scale)
                    source.joined(chip)
                    continue
                chip.trouble = kind
                await trio.sleep(chance.uniform(0, TROUBLE_SECONDS) * scale)
                chip.trouble = None
    finally:
        chip.trouble = None


class Unthreaded(VirtualMember):
    """A virtual member that counts in trio's own thread: a mock clock would not wait for another."""

    async def transmit(self, slot: int, command: bytes) -> bytes:
        """See `Member.transmit`."""
        if slot not in self._applets:
            self._applets[slot] = Applet(self._psam)
        return self._applets[slot].transmit(command)


class Played:
    """A virtual member, as slow as a chip, that minds what `Member` says of its slots."""

    owner = ""
    kind = MemberKind.VIRTUAL

    def __init__(self, member: VirtualMember, round_trip: float) -> None:
        self.name = member.name
        self.slots = member.slots
        self._member = member
        self._round_trip = round_trip
        self._busy: set[int] = set()
        self._usable: set[int] = set()

    @property
    def profile(self) -> PsamProfile:
        """See `Member.profile`."""
        return self._member.profile

    def known(self, places: Iterable[Place]) -> MemberFacts:
        """See `Member.known`."""
        return self._member.known(places)

    async def reset(self, slot: int) -> bytes:
        """See `Member.reset`."""
        self._begin(slot)
        try:
            await trio.sleep(self._round_trip)
            atr = await self._member.reset(slot)
        finally:
            self._busy.discard(slot)
        self._usable.add(slot)
        return atr

    async def transmit(self, slot: int, command: bytes) -> bytes:
        """See `Member.transmit`."""
        assert slot in self._usable, "a command was sent to a slot that had to be reset first"
        self._begin(slot)
        self._usable.discard(slot)
        try:
            await trio.sleep(self._round_trip)
            answer = await self._member.transmit(slot, command)
        finally:
            self._busy.discard(slot)
        self._usable.add(slot)
        return answer

    def _begin(self, slot: int) -> None:
        assert slot in range(self.slots)
        assert slot not in self._busy, "two commands at the same time"
        self._busy.add(slot)


def played(number: int, psam: Psam, slots: int, round_trip: float, *, has_threads: bool) -> Played:
    """Return a virtual member; with threads it is the one of production, without only its counting differs."""
    kind = VirtualMember if has_threads else Unthreaded
    return Played(kind(f"virtual {number}", psam, slots=slots), round_trip)
