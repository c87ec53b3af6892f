"""The pool's words: its limits and strategies, who has what of it, what it says that has happened."""

from __future__ import annotations

import enum
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from msgspec import Struct

if TYPE_CHECKING:
    from keyd.psam.level_index import MemberFacts, Place


class MemberState(enum.StrEnum):
    """What a member is good for."""

    READING = "reading"
    """It has come and is being identified and probed; it serves nobody yet."""
    READY = "ready"
    """It serves."""
    QUARANTINED = "quarantined"
    """It misbehaved, and serves nobody until it was read again."""


class Found(enum.StrEnum):
    """What a turn finds on its slot."""

    FRESH = "fresh"
    """Nobody has used it since it was reset."""
    OWN = "own"
    """It is as the same session left it: nothing has to be replayed."""
    USED = "used"
    """Somebody else's turn has ended in order here: something else is selected."""


@dataclass(frozen=True, eq=False)
class Session:
    """Somebody who has a member for as long as the session lasts."""

    number: int
    asker: str
    member: str
    facts: MemberFacts


@dataclass(frozen=True, eq=False)
class Ticket:
    """Somebody who waits for a turn: of the session's member, or of any that has the keys at these places."""

    number: int
    asker: str
    session: Session | None
    places: AbstractSet[Place]
    asked: float
    deadline: float


@dataclass(frozen=True, eq=False)
class Turn:
    """A slot of a member, held by one asker and nobody else until it is given back or runs out."""

    number: int
    asker: str
    session: Session | None
    member: str
    slot: int
    found: Found
    began: float


class PoolLimits(Struct, frozen=True, forbid_unknown_fields=True):
    """How much may wait and how long things may take. Seconds are relative."""

    waiting: int = 1024
    """Tickets that wait at the same time. At 10 ms a turn the last of them waits for one member 10 s, much longer
    than `wait_seconds`: more would only be refused later."""
    waiting_per_asker: int = 64
    """Of these, one asker's: sixteen askers together fill the queue, one does not."""
    wait_seconds: float = 2.0
    """How long a ticket waits; a card in a terminal does not want to wait longer."""
    turn_seconds: float = 10.0
    """The longest turn: two hundred commands to a slow chip."""
    idle_seconds: float = 3.0
    """The longest pause of a turn's holder: a terminal asks its card in between, and no person."""
    first_probe_seconds: float = 1.0
    """How long a member that misbehaved is left alone at first; it doubles each time."""
    longest_probe_seconds: float = 300.0
    """And at most: a mended reader is back within five minutes."""
    sessions: int = 4096
    """Sessions at the same time, of all members; as many as a daemon has connections."""
    sessions_per_asker: int = 64
    """Of these, one asker's: one terminal does not leave the others without."""


class Strategy(enum.StrEnum):
    """Which of the members that would do is taken. A terminal's own comes before the shared set's, always."""

    LEAST_USED = "least-used"
    """The one with the fewest sessions and turns by slot."""
    KEY_SET = "key-set"
    """The one with the fewest keys, so that those that have many stay free for who needs them."""
    AFFINITY = "affinity"
    """The one that this asker had last; else the least used."""


class Granted(NamedTuple):
    """A ticket has become a turn."""

    ticket: Ticket
    turn: Turn


class Expired(NamedTuple):
    """A ticket has waited too long. `retry_milliseconds` is when to ask again."""

    ticket: Ticket
    retry_milliseconds: int


class RanOut(NamedTuple):
    """A turn took too long, or its holder was silent for too long. Its slot has to be reset, then `clean`."""

    turn: Turn
    was_idle: bool


Event = Granted | Expired | RanOut


class Lost(NamedTuple):
    """What ended with a member: its sessions, the turns on it, and the tickets of its sessions."""

    sessions: list[Session]
    turns: list[Turn]
    tickets: list[Ticket]


class Standing(Struct, frozen=True):
    """What is reported of one member. `turns` and `failures` count since it joined; the others are now."""

    name: str
    state: MemberState
    owner: str
    terminal_number: str
    slots: int
    keys: int
    sessions: int
    held: int
    dirty: int
    waiting: int
    turns: int
    failures: int
