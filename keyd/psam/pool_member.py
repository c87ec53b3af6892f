"""One member of the pool as the pool sees it: its state, its slots and its figures."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Final

from keyd.errors import LocalProtocolError
from keyd.psam.pool_rotation import Rotation
from keyd.psam.pool_terms import Found, MemberState, Standing

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from keyd.psam.level_index import MemberFacts, Place
    from keyd.psam.pool_terms import Session, Turn

# What a turn is thought to take before one was seen, in seconds: a few round trips to a real PSAM.
FIRST_MEAN_SECONDS: Final = 0.1

# How much the last turn counts in the mean: an eighth, as in TCP's round trip time.
MEAN_WEIGHT: Final = 0.125


@dataclass(eq=False)
class PooledMember:
    """A member, its slots and its figures.

    Every slot is in exactly one of `free`, `held` and `dirty`. What is in `free` was reset or left in order; first
    comes the slot that was used longest ago, so that a session likely finds its last one as it left it.
    """

    name: str
    slots: int
    owner: str
    state: MemberState = MemberState.READING
    facts: MemberFacts | None = None
    sessions: set[Session] = field(default_factory=set)
    rotation: Rotation = field(default_factory=Rotation)
    free: dict[int, None] = field(default_factory=dict)
    held: dict[int, Turn] = field(default_factory=dict)
    dirty: set[int] = field(default_factory=set)
    # Which session a free slot is as left by; None: somebody who was no session. Not there: it was reset.
    left_by: dict[int, Session | None] = field(default_factory=dict)
    last_slot: dict[Session, int] = field(default_factory=dict)
    turns: int = 0
    failures: int = 0
    # Failures since a turn last ended in order: a member that only ever answers the probe is not trusted anew.
    strikes: int = 0
    probe_at: float = inf
    mean_seconds: float = FIRST_MEAN_SECONDS

    def __post_init__(self) -> None:
        self.dirty.update(range(self.slots))

    @property
    def is_ready(self) -> bool:
        """Whether it serves."""
        return self.state is MemberState.READY

    @property
    def load(self) -> float:
        """How much it is used: sessions and turns by slot."""
        return (len(self.sessions) + len(self.held)) / self.slots

    @property
    def read_facts(self) -> MemberFacts:
        """What it is.

        Raises:
            LocalProtocolError: it was not read yet.
        """
        if self.facts is None:
            raise LocalProtocolError(f"member {self.name} was not read")
        return self.facts

    @property
    def keys(self) -> int:
        """How many keys it is known to have."""
        return 0 if self.facts is None else len(self.facts.levels)

    @property
    def terminal_number(self) -> str:
        """Its 终端机编号, 12 digits; empty as long as it was not read."""
        return "" if self.facts is None else self.facts.terminal.hex()

    @property
    def standing(self) -> Standing:
        """What is reported of it."""
        return Standing(
            self.name,
            self.state,
            self.owner,
            self.terminal_number,
            self.slots,
            self.keys,
            len(self.sessions),
            len(self.held),
            len(self.dirty),
            len(self.rotation),
            self.turns,
            self.failures,
        )

    def may_serve(self, asker: str) -> bool:
        """Whether it is this asker's, or the shared set's."""
        return self.owner in ("", asker)

    def has(self, places: AbstractSet[Place]) -> bool:
        """Whether it is known to have keys at all these places."""
        return self.facts is not None and places <= self.facts.levels.keys()

    def serves(self, asker: str, places: AbstractSet[Place]) -> bool:
        """Whether it would do for an asker once it is ready."""
        return self.may_serve(asker) and self.has(places)

    def refresh(self) -> None:
        """Take all slots for reset."""
        self.dirty.clear()
        self.left_by.clear()
        self.last_slot.clear()
        self.free = dict.fromkeys(range(self.slots))

    def spoil(self) -> list[Turn]:
        """End all turns, and let no slot be used before it was reset. Returns the turns."""
        turns = list(self.held.values())
        self.held.clear()
        self.free.clear()
        self.dirty.update(range(self.slots))
        return turns

    def take(self, session: Session | None) -> tuple[int, Found]:
        """Take a free slot, the one that the session had last if it is still as it was."""
        slot = self.last_slot.get(session) if session is not None else None
        if slot is not None and slot in self.free and self.left_by.get(slot) is session:
            found = Found.OWN
        else:
            slot = next(iter(self.free))
            found = Found.USED if slot in self.left_by else Found.FRESH
        del self.free[slot]
        return slot, found

    def release(self, turn: Turn, *, is_clean: bool) -> None:
        """End a turn. What was not left in order must be reset first."""
        del self.held[turn.slot]
        if not is_clean:
            self.dirty.add(turn.slot)
            return
        self.free[turn.slot] = None
        self.left_by[turn.slot] = turn.session
        if turn.session is not None and turn.session in self.sessions:
            self.last_slot[turn.session] = turn.slot

    def clean(self, slot: int) -> None:
        """Take note that a slot was reset.

        Raises:
            LocalProtocolError: somebody has a turn on it, who has just lost everything.
        """
        if slot in self.held or not 0 <= slot < self.slots:
            raise LocalProtocolError(f"slot {slot} of {self.name} is not one to be reset")
        self.dirty.discard(slot)
        self.left_by.pop(slot, None)
        self.free[slot] = None

    def forget(self, session: Session) -> None:
        """Let go of a session that has ended."""
        self.sessions.discard(session)
        self.last_slot.pop(session, None)

    def ended_in_order(self, seconds: float) -> None:
        """Learn from a turn that was given back."""
        self.strikes = 0
        self.mean_seconds += (seconds - self.mean_seconds) * MEAN_WEIGHT
