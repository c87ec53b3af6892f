"""What the pool is made of: members, and the sources that bring and take them."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from keyd.psam.level_index import MemberFacts, Place
    from keyd.psam.profile import PsamProfile


class MemberKind(enum.StrEnum):
    """Where a member is."""

    VIRTUAL = "virtual"
    """keyd plays it."""
    READER = "reader"
    """In a reader of this machine, through PC/SC."""
    RACK = "rack"
    """In a rack, at the other end of a TCP line."""


class MemberFailed(Exception):  # noqa: N818 - says what happened
    """The member did not answer, or not as a chip does. The sentence says which and why, and nothing of any APDU."""


class Member(Protocol):
    """One PSAM, wherever it is. A slot is what one user may have: its own logical channel, or the whole chip.

    No two calls for one slot are made at the same time. A cancelled or failed call leaves the slot unusable until
    its next `reset`; a member sees to it that a late answer is never taken for the answer to another command.
    """

    @property
    def name(self) -> str:
        """What it is called in logs, metrics and lists; no other member is called so."""

    @property
    def kind(self) -> MemberKind:
        """Where it is."""

    @property
    def profile(self) -> PsamProfile:
        """What kind of PSAM it is."""

    @property
    def owner(self) -> str:
        """The code of the only terminal that it is lent to; empty: it is shared."""

    @property
    def slots(self) -> int:
        """How many may use it side by side, at least 1."""

    def known(self, places: Iterable[Place]) -> MemberFacts | None:
        """Return who it is and which of these keys it has, if that is known without asking it; else None."""

    async def reset(self, slot: int) -> bytes:
        """Begin afresh: power, or whatever leaves nothing of who was there before. Returns the ATR.

        Raises:
            MemberFailed: it could not be.
        """

    async def transmit(self, slot: int, command: bytes) -> bytes:
        """Send one command APDU; return data and status word, at least 2 bytes.

        Raises:
            MemberFailed: there is no answer, and whether the PSAM has done it is not known.
        """


class Source(Protocol):
    """Something that members come from: the PSAMs that officers issued, readers, a rack."""

    async def run(self, joined: Callable[[Member], None], parted: Callable[[Member], None]) -> None:
        """Say of each member when it is there and when it is there no more. Does not end by itself."""
