"""Members for tests: PSAMs as slow as real ones, which fail in every way that a chip in a reader can."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from keyd.cards.profile import newest
from keyd.cards.profile_files import load_profiles
from keyd.crypto.algorithms import CardAlgorithm
from keyd.lending.lender import Lender, Times
from keyd.lending.member import Member, MemberFailed, MemberKind
from keyd.psam import Applet, PsamIdentity, TransientMemory, load_psam_profiles, synthetic_psam
from keyd.psam.level_index import every_place
from keyd.psam.pool import Pool, PoolLimits, Strategy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from keyd.lending.member import Source
    from keyd.psam import Psam, PsamProfile
    from keyd.psam.level_index import Place

PROFILE: Final = load_psam_profiles()["social-security"]
CARDS: Final = newest(load_profiles())
ALGORITHMS: Final = (CardAlgorithm.DES, CardAlgorithm.SM4)
PLACES: Final = every_place(CARDS.keys.values(), ALGORITHMS)

# What a real PSAM takes for a command, in seconds.
ROUND_TRIP: Final = 0.02


def psam(number: int, profile: PsamProfile = PROFILE) -> Psam:
    """Return the PSAM of this 终端机编号, with synthetic keys and counters that last as long as it."""
    terminal = bytes.fromhex(f"{number:012}")
    identity = PsamIdentity(bytes(4) + terminal, terminal)
    return synthetic_psam(profile, identity, TransientMemory())


class Chip:
    """A member with one slot, as slow as a chip; `plan` says before each command what goes wrong: nothing if None."""

    owner = ""
    slots = 1
    kind = MemberKind.READER

    def __init__(
        self,
        number: int,
        plan: Callable[[bytes], str | None] = lambda _command: None,
        round_trip: float = ROUND_TRIP,
    ) -> None:
        self.name = f"reader {number}"
        self.profile = PROFILE
        self.applet = Applet(psam(number))
        self.round_trip = round_trip
        self.resets = 0
        self.commands = 0
        self._plan = plan
        self._is_usable = False
        self._is_busy = False

    def known(self, places: Iterable[Place]) -> None:
        """See `Member.known`: a chip has to be asked."""

    async def reset(self, slot: int) -> bytes:
        """See `Member.reset`."""
        self._begin(slot)
        try:
            await trio.sleep(self.round_trip)
        finally:
            self._is_busy = False
        self.resets += 1
        self._is_usable = True
        return self.applet.reset()

    async def transmit(self, slot: int, command: bytes) -> bytes:
        """See `Member.transmit`."""
        self._begin(slot)
        assert self._is_usable, "a command was sent to a chip that had to be reset first"
        self.commands += 1
        self._is_usable = False
        try:
            trouble = self._plan(command)
            if trouble == "silent":
                await trio.sleep_forever()
            await trio.sleep(self.round_trip)
            if trouble == "failed":
                raise MemberFailed("the reader says that it cannot talk to the chip")
            answer = b"" if trouble == "nothing" else self.applet.transmit(command)
            if trouble == "lost answer":
                raise MemberFailed("the card was pulled")
        finally:
            self._is_busy = False
        self._is_usable = True
        return answer

    def _begin(self, slot: int) -> None:
        assert slot == 0
        assert not self._is_busy, "two commands at the same time"
        self._is_busy = True


class Fixed:
    """A source whose members are said by the test."""

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = list(members)
        self.joined: Callable[[Member], None] = self._members.append
        self.parted: Callable[[Member], None]

    async def run(self, joined: Callable[[Member], None], parted: Callable[[Member], None]) -> None:
        """See `Source.run`."""
        self.joined, self.parted = joined, parted
        for member in self._members:
            joined(member)
        await trio.sleep_forever()


def lender_of(
    source: Source,
    limits: PoolLimits | None = None,
    times: Times | None = None,
    strategy: Strategy = Strategy.LEAST_USED,
    say: Callable[[str, str], None] = lambda _event, _detail: None,
) -> Lender:
    """Return a lender of a source's members, which does not run yet."""
    return Lender(
        Pool(limits or PoolLimits(), strategy),
        [source],
        CARDS.keys,
        PLACES,
        PROFILE,
        times or Times(),
        say,
    )


async def until_ready(lender: Lender, members: int = 1) -> None:
    """Wait until so many members serve."""
    while sum(report.state == "ready" for report in lender.members()) < members:  # noqa: ASYNC110
        await trio.sleep(0.01)
