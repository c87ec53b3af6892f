"""What handlers know of whoever lends PSAMs: how one is asked for, what an open one can do, what is told of members.

`keyd.lending` is above this floor and provides it; tests have a desk of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyd.errors import Refusal
    from keyd.keys.sam import SamTask
    from keyd.psam.level_index import MemberFacts, Place


class Wanted(Struct, frozen=True):
    """Which PSAM is wanted: one with keys at all these places, and if `number` is said, with this 终端机编号."""

    number: str = ""
    places: frozenset[Place] = frozenset()


class MemberReport(Struct, frozen=True):
    """One member of the pool, for whoever looks after it. `kind` is virtual, reader or rack; `number` may be "" yet.

    `sessions` are open now and `waiting` wait for a turn on it; `turns` and `failures` are since it joined; `keys` is
    the size of its level index.
    """

    name: str
    kind: str
    state: str
    number: str
    sessions: int
    waiting: int
    turns: int
    failures: int
    keys: int


class OpenPsam(Protocol):
    """One PSAM as long as it is open: the same member from beginning to end."""

    @property
    def facts(self) -> MemberFacts:
        """Who it is and which keys it has."""

    @property
    def kind(self) -> str:
        """Where it is: virtual, reader or rack."""

    async def transmit(self, command: bytes) -> bytes:
        """Send one command APDU; return data and status word. Calls are done in the order in which they were made.

        Raises:
            PsamGone: the member, the turn or the session is gone.
            PoolExhausted: its turn did not come in time.
        """

    async def close(self) -> None:
        """Give it back. Safe to call twice, and after `abandon`."""

    def abandon(self) -> None:
        """Have it given back soon, without waiting. Safe to call at any moment, in the middle of a command too."""


class PsamDesk(Protocol):
    """Whoever lends PSAMs."""

    async def open(self, terminal: str, wanted: Wanted) -> OpenPsam:
        """Lend a PSAM to the terminal of this code. Cancelled, it lends nothing.

        Raises:
            PoolExhausted: none became free in time.
            PsamNotFound: there is none like that.
            NotAllowed: it is another terminal's.
        """

    async def compute(self, tasks: Sequence[SamTask], terminal: str) -> list[bytes | Refusal]:
        """Compute tasks on any members that have their keys; each result is in its task's place."""

    def members(self) -> Sequence[MemberReport]:
        """Tell of every member there is now."""
