"""Virtual members: PSAMs that keyd plays itself, each for as many side by side as it has slots."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import trio

from keyd.crypto.native._core import KeyGone
from keyd.errors import Refusal
from keyd.lending.member import MemberFailed, MemberKind
from keyd.psam.applet import Applet, may_wait
from keyd.psam.level_index import MemberFacts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from keyd.lending.member import Member
    from keyd.psam.level_index import Place
    from keyd.psam.profile import PsamProfile
    from keyd.psam.state import Psam

# As many as a busy site has machines; a slot costs a kilobyte and no key.
DEFAULT_SLOTS: Final = 256

# Until a PSAM whose counters could not be read is tried again.
RETRY_SECONDS: Final = 5.0

IssuedT = TypeVar("IssuedT")


class VirtualMember:
    """One PSAM that keyd plays. Slots share its keys and counters, and nothing else."""

    def __init__(
        self, name: str, psam: Psam, *, owner: str = "", slots: int = DEFAULT_SLOTS
    ) -> None:
        self.name = name
        self.owner = owner
        self.slots = slots
        self._psam = psam
        self._applets: dict[int, Applet] = {}
        self._places: tuple[Place, ...] = ()
        self._levels: dict[Place, int] = {}

    @property
    def kind(self) -> MemberKind:
        """See `Member.kind`."""
        return MemberKind.VIRTUAL

    @property
    def profile(self) -> PsamProfile:
        """See `Member.profile`."""
        return self._psam.profile

    def known(self, places: Iterable[Place]) -> MemberFacts:
        """See `Member.known`: probing would be a use of each key, and many have ceilings."""
        identity = self._psam.identity
        self._places = tuple(places)
        self._levels = self._psam.levels_at(self._places)
        return MemberFacts(identity.serial, identity.terminal, self._psam.profile.atr, self._levels)

    @property
    def is_as_known(self) -> bool:
        """Whether its keys are still those that `known` has said."""
        return self._psam.levels_at(self._places) == self._levels

    async def reset(self, slot: int) -> bytes:
        """See `Member.reset`."""
        self._applets.pop(slot, None)
        return self._psam.profile.atr

    async def transmit(self, slot: int, command: bytes) -> bytes:
        """See `Member.transmit`."""
        applet = self._applets.get(slot)
        if applet is None:
            applet = self._applets[slot] = Applet(self._psam)
        try:
            if may_wait(command):
                return await trio.to_thread.run_sync(
                    applet.transmit, command, abandon_on_cancel=True
                )
            # Many commands in a row must not keep the tick waiting.
            await trio.lowlevel.checkpoint()
            return applet.transmit(command)
        except KeyGone:
            # keyd was sealed in this instant.
            raise MemberFailed("its keys were wiped") from None


class VirtualSource(Generic[IssuedT]):
    """The PSAMs that keyd may play now. `show` says which those are, whenever that has changed."""

    def __init__(
        self,
        play: Callable[[IssuedT], Psam],
        owner_of: Callable[[IssuedT], str],
        slots: int = DEFAULT_SLOTS,
    ) -> None:
        """Take what makes a PSAM of its record, which may wait for a disk and refuse, and who is its owner."""
        self._play = play
        self._owner_of = owner_of
        self._slots = slots
        self._issued: dict[str, IssuedT] = {}
        # What the ring decided by when its keys were looked at last, and now.
        self._looked_in = self._epoch = 0
        self._there: dict[str, tuple[IssuedT, VirtualMember]] = {}
        self._changed = trio.Event()
        # Set when those that were shown at first are there, or cannot be played.
        self.has_begun = trio.Event()

    def show(self, issued: Mapping[str, IssuedT], epoch: int = 0) -> None:
        """Take over which PSAMs there are, by 终端机编号. One whose record is another now begins anew.

        So does, when the ring's epoch is another, one that has other keys than before.
        """
        self._issued = dict(issued)
        self._epoch = epoch
        self._changed.set()

    async def run(self, joined: Callable[[Member], None], parted: Callable[[Member], None]) -> None:
        """See `Source.run`."""
        while True:
            self._changed = trio.Event()
            wait = await self._follow(joined, parted)
            self.has_begun.set()
            with trio.move_on_after(wait):
                await self._changed.wait()

    async def _follow(
        self, joined: Callable[[Member], None], parted: Callable[[Member], None]
    ) -> float:
        """Let come and go what has to; return when to try again what could not be played."""
        keys_may_differ = self._looked_in != self._epoch
        self._looked_in = self._epoch
        for number, (record, member) in list(self._there.items()):
            is_same = self._issued.get(number) == record
            if not is_same or (keys_may_differ and not member.is_as_known):
                del self._there[number]
                parted(member)
        wait = math.inf
        for number, record in self._issued.items():
            if number in self._there:
                continue
            try:
                psam = await trio.to_thread.run_sync(self._play, record)
            except Refusal:
                # Its counters could not be read. Without them no number is safe.
                wait = RETRY_SECONDS
                continue
            member = VirtualMember(
                f"virtual {number}", psam, owner=self._owner_of(record), slots=self._slots
            )
            self._there[number] = (record, member)
            joined(member)
        return wait
