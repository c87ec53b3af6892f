"""What the tests of members share: who is told of them, a PSAM that does not answer, and the commands."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

import pytest
import trio

from keyd.lending.member import MemberFailed
from tests.psam.bench import make_applet
from tests.psam.commands import apdu, deliver

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from keyd.lending.member import Member

SECONDS: Final = 20

SELECT: Final = bytes.fromhex("00A4040006D15600000590")
DELIVER: Final = deliver("social-security", "SM4", 0x67, 0x08)
CIPHER: Final = apdu("80FA0000", bytes(16), 16)
OK: Final = b"\x90\x00"


class Pool:
    """Whoever is told of members: it has those that are there, and knows what it was told."""

    def __init__(self) -> None:
        self.there: dict[str, Member] = {}
        self.told: list[str] = []
        self._changed = trio.Event()

    def joined(self, member: Member) -> None:
        assert member.name not in self.there
        self.there[member.name] = member
        self._tell("joined")

    def parted(self, member: Member) -> None:
        assert self.there.pop(member.name) is member
        self._tell("parted")

    def _tell(self, what: str) -> None:
        self.told.append(what)
        self._changed.set()
        self._changed = trio.Event()

    async def until(self, count: int) -> list[Member]:
        while len(self.there) != count:
            await self._changed.wait()
        return list(self.there.values())

    async def until_told(self, count: int) -> None:
        while len(self.told) < count:
            await self._changed.wait()


class Slow:
    """A PSAM that goes on computing until it is let go, and counts who asks it meanwhile."""

    def __init__(self) -> None:
        self.applet = make_applet()
        self.is_slow = False
        self.is_slow_to_start = False
        self.begun, self.let_go = threading.Event(), threading.Event()
        self.overlaps = 0
        self._busy = threading.Lock()

    @property
    def atr(self) -> bytes:
        if self.is_slow_to_start:
            self._wait()
        return self.applet.atr

    def reset(self) -> bytes:
        return self._alone(self.applet.reset)

    def transmit(self, command: bytes) -> bytes:
        return self._alone(lambda: self._compute(command))

    def _compute(self, command: bytes) -> bytes:
        if self.is_slow:
            self._wait()
        return self.applet.transmit(command)

    def _wait(self) -> None:
        self.begun.set()
        self.let_go.wait(2 * SECONDS)

    def _alone(self, do: Callable[[], bytes]) -> bytes:
        if not self._busy.acquire(blocking=False):
            self.overlaps += 1
            return b"\x6f\x00"
        try:
            return do()
        finally:
            self._busy.release()


async def begun(slow: Slow) -> None:
    """Wait until it computes."""
    while not slow.begun.is_set():  # noqa: ASYNC110 - a thread sets it
        await trio.sleep(0.01)


async def failing(call: Awaitable[bytes]) -> str:
    with pytest.raises(MemberFailed) as caught:
        await call
    return str(caught.value)
