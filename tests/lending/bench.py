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
    from collections.abc import Awaitable

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
    """A PSAM that goes on computing until it is let go."""

    def __init__(self) -> None:
        self.applet = make_applet()
        self.is_slow = False
        self.begun, self.let_go = threading.Event(), threading.Event()

    @property
    def atr(self) -> bytes:
        return self.applet.atr

    def reset(self) -> bytes:
        return self.applet.reset()

    def transmit(self, command: bytes) -> bytes:
        if self.is_slow:
            self.begun.set()
            self.let_go.wait(SECONDS)
        return self.applet.transmit(command)


async def failing(call: Awaitable[bytes]) -> str:
    with pytest.raises(MemberFailed) as caught:
        await call
    return str(caught.value)
