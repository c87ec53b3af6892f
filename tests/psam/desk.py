"""A desk that lends PSAMs which keyd plays, in this process: real applets behind what handlers know of a pool."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

import trio

from keyd.cards.profile import newest
from keyd.cards.profile_files import load_profiles
from keyd.crypto.algorithms import CardAlgorithm
from keyd.errors import PoolExhausted, PsamGone, PsamNotFound, Refusal
from keyd.handlers.desk import MemberReport, Wanted
from keyd.keys.ring import KeyRing
from keyd.keys.roots import synthetic
from keyd.psam import (
    Applet,
    Psam,
    PsamIdentity,
    TransientMemory,
    load_psam_profiles,
    synthetic_psam,
)
from keyd.psam.level_index import MemberFacts, Place
from keyd.psam.transactions import PURCHASE_KIND

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyd.keys.sam import SamTask

NUMBER: Final = bytes.fromhex("510100000001")
SERIAL: Final = bytes.fromhex("00000000000000000042")
COMPUTED: Final = (CardAlgorithm.DES, CardAlgorithm.SM4)


class LentApplet:
    """One open PSAM, on an applet of its own."""

    kind = "virtual"

    def __init__(self, desk: AppletDesk) -> None:
        self._desk = desk
        self._applet = Applet(desk.psam)
        self.facts = MemberFacts(SERIAL, NUMBER, self._applet.atr, desk.levels)
        self.sent: list[bytes] = []
        self.is_open = True
        self.is_back = trio.Event()
        self._is_busy = False

    async def transmit(self, command: bytes) -> bytes:
        if not self.is_open:
            raise PsamGone
        # keyd does not ask for two things at the same time.
        assert not self._is_busy
        self._is_busy = True
        try:
            if self._desk.must_wait:
                await self._desk.go_on.wait()
            await trio.lowlevel.checkpoint()
        finally:
            self._is_busy = False
        if not self.is_open or self._desk.is_broken:
            raise PsamGone
        self.sent.append(command)
        return self._applet.transmit(command)

    async def close(self) -> None:
        await trio.lowlevel.checkpoint()
        self.abandon()

    def abandon(self) -> None:
        self.is_open = False
        self.is_back.set()


class AppletDesk:
    """A pool of as many slots as it is made with, all of one PSAM."""

    def __init__(self, slots: int = 64, psam: Psam | None = None) -> None:
        self.psam = psam or made()
        self.levels = levels()
        self.slots = slots
        self.lent: list[LentApplet] = []
        self.tasks: list[SamTask] = []
        self.askers: list[str] = []
        # Whether commands wait for `go_on`, and whether the member has failed.
        self.must_wait = False
        self.go_on = trio.Event()
        self.is_broken = False

    @property
    def open_ones(self) -> list[LentApplet]:
        return [lent for lent in self.lent if lent.is_open]

    async def open(self, terminal: str, wanted: Wanted) -> LentApplet:
        if self.must_wait:
            await self.go_on.wait()
        await trio.lowlevel.checkpoint()
        self.askers.append(terminal)
        if wanted.number not in ("", NUMBER.hex()) or not wanted.places <= self.levels.keys():
            raise PsamNotFound
        if len(self.open_ones) >= self.slots:
            raise PoolExhausted.retry_in(250)
        self.lent.append(LentApplet(self))
        return self.lent[-1]

    async def compute(self, tasks: Sequence[SamTask], terminal: str) -> list[bytes | Refusal]:
        await trio.lowlevel.checkpoint()
        self.askers.append(terminal)
        self.tasks += tasks
        return ring().compute(list(tasks))

    def members(self) -> Sequence[MemberReport]:
        count = len(self.open_ones)
        return (
            MemberReport("psam-1", "virtual", "ready", NUMBER.hex(), count, 0, 7, 2, len(levels())),
        )


def made() -> Psam:
    """Return a PSAM with synthetic keys and nothing behind it."""
    profile = load_psam_profiles()["social-security"]
    return synthetic_psam(profile, PsamIdentity(SERIAL, NUMBER), TransientMemory())


@functools.cache
def ring() -> KeyRing:
    return KeyRing(synthetic(newest(load_profiles()).key_places(COMPUTED)))


@functools.cache
def levels() -> dict[Place, int]:
    """Return the level index of the synthetic PSAM: every root of the nation diversifies three times."""
    kinds = load_psam_profiles()["social-security"].kinds
    return {
        Place(key.psam_type, key.psam_id, algorithm): 3
        for key in newest(load_profiles()).keys.values()
        for algorithm in COMPUTED
        if key.set == 1 and (key.psam_type == PURCHASE_KIND or kinds[key.psam_type].operations)
    }
