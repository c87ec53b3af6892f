"""The pool: which PSAM serves whom, who waits, and whose turn it is. It decides; `keyd.lending` does.

    pool.join("reader 0", slots=1)
    pool.ready("reader 0", facts, now)             # it was read, and every slot reset
    session = pool.attach("T001", now, places=wanted)
    ticket = pool.ask(session, now)
    for event in pool.settle(now): ...             # Granted(ticket, turn)
    pool.touch(turn, now)                          # with every command
    pool.give_back(turn, now, is_clean=True)

It has no clock: `now` is monotonic seconds and never goes back. It knows no chip and no command: what a turn is for,
when it is over and what has to be replayed is decided by `keyd.psam.turns` and by whoever drives the chip.
After every call that changes something, `settle` has to be called; and again at `next_moment()` at the latest.

A session has one member for its whole life. If that goes, the session is lost, and so is what waits for it; nothing is
moved to another member. A slot whose turn did not end in order holds what somebody had begun: nobody gets it until
`clean` says that it was reset.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Set as AbstractSet
from itertools import count
from math import ceil, inf
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec import Struct

from keyd.errors import LocalProtocolError, NotAllowed, PoolExhausted, PsamGone, PsamNotFound
from keyd.psam.pool_member import (
    Found,
    MemberState,
    PooledMember,
    Session,
    Ticket,
    Turn,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keyd.psam.level_index import MemberFacts, Place

__all__ = [
    "Event",
    "Expired",
    "Found",
    "Granted",
    "Lost",
    "MemberState",
    "Pool",
    "PoolLimits",
    "RanOut",
    "Session",
    "Standing",
    "Strategy",
    "Ticket",
    "Turn",
]

# Nobody is told to come back later than this, in milliseconds: much may change in a minute.
MOST_RETRY_MILLISECONDS: Final = 60_000

GONE: Final = "the PSAM was taken away or failed: open another"
ENDED: Final = "the PSAM's turn took too long, and what was begun is lost"

# Doubling more often than this changes nothing: every limit is reached long before.
MOST_DOUBLINGS: Final = 32


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


class Pool:
    """All members, sessions, tickets and turns. See the module for how it is driven."""

    def __init__(self, limits: PoolLimits, strategy: Strategy) -> None:
        self._limits = limits
        self._strategy = strategy
        self._numbers = count(1)
        self._members: dict[str, PooledMember] = {}
        self._sessions: set[Session] = set()
        # What each session waits for or holds: one thing at a time.
        self._busy: dict[Session, Ticket | Turn] = {}
        # Tickets and the members whose rotations they are in. All wait equally long, so the first expires first.
        self._tickets: dict[Ticket, list[PooledMember]] = {}
        self._by_asker: dict[str, int] = {}
        # Turns in the order in which they were granted; and those whose holder might be idle, with the moment when it
        # was heard of last, the longest silence first. So no limit needs a search.
        self._turns: dict[Turn, None] = {}
        self._heard: OrderedDict[Turn, float] = OrderedDict()
        # Members that might have become able to serve somebody.
        self._open: dict[PooledMember, None] = {}
        self._last: OrderedDict[str, str] = OrderedDict()

    # Members come and go.

    def join(self, name: str, slots: int, *, owner: str = "") -> None:
        """Take a member in, which is to be read. `owner` is the only asker that it serves; empty: it serves all.

        Raises:
            LocalProtocolError: a member of this name is there, or it has no slot.
        """
        if name in self._members or slots < 1:
            raise LocalProtocolError(f"member {name} is there already, or has no slot")
        self._members[name] = PooledMember(name, slots, owner)

    def ready(self, name: str, facts: MemberFacts, now: float) -> None:  # noqa: ARG002 - as all others
        """Let a member serve: it was identified and probed, and then every slot was reset; nobody is on any.

        Raises:
            LocalProtocolError: it serves already, or is not there.
        """
        member = self._member(name)
        if member.is_ready:
            raise LocalProtocolError(f"member {name} serves already")
        member.state = MemberState.READY
        member.facts = facts
        member.probe_at = inf
        member.refresh()
        for ticket, members in self._tickets.items():
            if ticket.session is None and _serves(member, ticket.asker, ticket.places):
                members.append(member)
                member.rotation.add(ticket)
        self._open[member] = None

    def fail(self, name: str, now: float) -> Lost:
        """Quarantine a member that misbehaved, also while it was read. What it served is lost.

        A failure of one that is in quarantine was a probe's, and doubles the time until the next.
        """
        member = self._member(name)
        member.state = MemberState.QUARANTINED
        member.failures += 1
        limits = self._limits
        pause = limits.first_probe_seconds * 2 ** min(member.strikes, MOST_DOUBLINGS)
        member.strikes += 1
        member.probe_at = now + min(pause, limits.longest_probe_seconds)
        return self._empty(member)

    def part(self, name: str) -> Lost:
        """Let go of a member that was taken away. What it served is lost."""
        member = self._member(name)
        del self._members[name]
        return self._empty(member)

    def due_probes(self, now: float) -> list[str]:
        """Return the members in quarantine that are to be reset and read now. Each is named once: then `ready` or
        `fail` has to say how it went."""
        due = [member for member in self._members.values() if member.probe_at <= now]
        for member in due:
            member.probe_at = inf
        return [member.name for member in due]

    def clean(self, name: str, slot: int) -> None:
        """Take note that a slot was reset. Of a member that has gone meanwhile it is of no interest.

        Raises:
            LocalProtocolError: somebody has a turn on it.
        """
        member = self._members.get(name)
        if member is not None and member.is_ready:
            member.clean(slot)
            self._open[member] = None

    # Sessions.

    def attach(
        self,
        asker: str,
        now: float,
        *,
        number: str = "",
        places: AbstractSet[Place] = frozenset(),
    ) -> Session:
        """Give an asker a member for as long as the session lasts: the one of this 终端机编号, 12 digits, if there is
        one given; and one that has keys at all these places.

        Raises:
            PsamNotFound: there is none such, now or in quarantine.
            NotAllowed: the number is that of another's.
            PoolExhausted: there may be one, but it does not serve now; or there are too many sessions.
        """
        if len(self._sessions) >= self._limits.sessions:
            raise PoolExhausted.retry_in(self._retry(self._members.values(), now))
        members = self._candidates(asker, now, number, places)
        member = min(members, key=lambda member: self._rank(member, asker))
        if member.facts is None:  # Nobody serves who was not read.
            raise LocalProtocolError(f"member {member.name} was not read")
        session = Session(next(self._numbers), asker, member.name, member.facts)
        self._sessions.add(session)
        member.sessions.add(session)
        self._remember(asker, member)
        return session

    def detach(self, session: Session) -> Turn | None:
        """End a session, and what it waits for. Returns the turn that it held, whose slot has to be reset, then
        `clean`. Of a session that has ended nothing is left to do."""
        if session not in self._sessions:
            return None
        self._sessions.remove(session)
        member = self._member(session.member)
        busy = self._busy.pop(session, None)
        if isinstance(busy, Ticket):
            self._drop(busy)
        turn = busy if isinstance(busy, Turn) else None
        if turn is not None:
            self._end(turn, is_clean=False)
        member.forget(session)
        return turn

    # Turns.

    def ask(self, session: Session, now: float) -> Ticket:
        """Wait for a turn of the session's member.

        Raises:
            PsamGone: the session has ended.
            PoolExhausted: too many wait.
            LocalProtocolError: the session waits already, or has a turn.
        """
        if session not in self._sessions:
            raise PsamGone(GONE)
        if session in self._busy:
            raise LocalProtocolError("a session waits for one turn at a time")
        ticket = self._wait(
            session.asker, session, frozenset(), [self._member(session.member)], now
        )
        self._busy[session] = ticket
        return ticket

    def ask_any(self, asker: str, places: AbstractSet[Place], now: float) -> Ticket:
        """Wait for a turn of any member that has keys at all these places, for what is whole within one turn. If such
        a member does not serve now, it may before the ticket expires.

        Raises:
            PsamNotFound: there is none such, now or in quarantine.
            PoolExhausted: too many wait.
        """
        members = [m for m in self._members.values() if _serves(m, asker, places)]
        if not any(member.is_ready for member in members):
            self._require_possible(asker, "", places)
        ready = [member for member in members if member.is_ready]
        return self._wait(asker, None, places, ready, now)

    def withdraw(self, ticket: Ticket) -> bool:
        """Let nobody wait for this ticket any more. False: it did not wait; if it was granted, there is a turn to be
        given back."""
        if ticket not in self._tickets:
            return False
        self._drop(ticket)
        if ticket.session is not None:
            del self._busy[ticket.session]
        return True

    def touch(self, turn: Turn, now: float, *, is_busy: bool = False) -> None:
        """Note that the holder was heard of. While it `is_busy`, waiting for its chip, it is not idle; with the next
        touch the pause begins. The turn's whole length is bounded all the same.

        Raises:
            PsamGone: the turn has ended.
        """
        if turn not in self._turns:
            raise PsamGone(ENDED)
        self._heard.pop(turn, None)
        if not is_busy:
            self._heard[turn] = now

    def give_back(self, turn: Turn, now: float, *, is_clean: bool) -> bool:
        """End a turn. Not `is_clean`: the slot has to be reset, then `clean`. False: the turn had ended, and the slot
        may be another's."""
        if turn not in self._turns:
            return False
        member = self._member(turn.member)
        self._end(turn, is_clean=is_clean)
        member.ended_in_order(now - turn.began)
        return True

    def has(self, turn: Turn) -> bool:
        """Whether a turn has not ended."""
        return turn in self._turns

    # Time passes.

    def settle(self, now: float) -> list[Event]:
        """End turns that ran out and tickets that waited too long, then give free slots to who waits."""
        events: list[Event] = [*self._run_out(now), *self._expire(now)]
        while self._open:
            member = next(iter(self._open))
            ticket = member.rotation.head()
            if not member.is_ready or not member.free or ticket is None:
                del self._open[member]
                continue
            events.append(self._grant(ticket, now))
        return events

    def next_moment(self) -> float:
        """Return when `settle` or `due_probes` has something to do at the latest, if nothing else happens; `inf` if
        never."""
        moments = [member.probe_at for member in self._members.values()]
        for ticket in self._tickets:
            moments.append(ticket.deadline)
            break
        for turn in self._turns:
            moments.append(turn.began + self._limits.turn_seconds)
            break
        for heard in self._heard.values():
            moments.append(heard + self._limits.idle_seconds)
            break
        return min(moments, default=inf)

    # What is known.

    def state(self, name: str) -> MemberState | None:
        """Return what a member is good for; None if there is none of this name."""
        member = self._members.get(name)
        return None if member is None else member.state

    def dirty(self, name: str) -> frozenset[int]:
        """Return the slots of a member that have to be reset."""
        return frozenset(self._member(name).dirty)

    def standings(self) -> list[Standing]:
        """Return what is reported of each member. Who would take any of some members waits for each of them."""
        return [
            Standing(
                member.name,
                member.state,
                member.owner,
                member.terminal_number,
                member.slots,
                0 if member.facts is None else len(member.facts.levels),
                len(member.sessions),
                len(member.held),
                len(member.dirty),
                len(member.rotation),
                member.turns,
                member.failures,
            )
            for member in self._members.values()
        ]

    @property
    def waiting(self) -> int:
        """How many tickets wait."""
        return len(self._tickets)

    @property
    def sessions(self) -> int:
        """How many sessions there are."""
        return len(self._sessions)

    # Within.

    def _member(self, name: str) -> PooledMember:
        try:
            return self._members[name]
        except KeyError:
            raise LocalProtocolError(f"there is no member {name}") from None

    def _empty(self, member: PooledMember) -> Lost:
        """End all that a member serves. Tickets that others could serve go on waiting."""
        turns = member.spoil()
        for turn in turns:
            self._forget(turn)
        tickets = []
        for ticket in member.rotation.clear():
            self._tickets[ticket].remove(member)
            if ticket.session is not None:
                self._drop(ticket)
                tickets.append(ticket)
        sessions = sorted(member.sessions, key=lambda session: session.number)
        for session in sessions:
            self._sessions.remove(session)
            self._busy.pop(session, None)
            member.forget(session)
        self._open.pop(member, None)
        return Lost(sessions, turns, tickets)

    def _candidates(
        self, asker: str, now: float, number: str, places: AbstractSet[Place]
    ) -> list[PooledMember]:
        """Return the members that serve now what is wanted, at least one."""
        members = [
            member
            for member in self._members.values()
            if number in ("", member.terminal_number) and _serves(member, asker, places)
        ]
        ready = [member for member in members if member.is_ready]
        if not ready:
            self._require_possible(asker, number, places)
            raise PoolExhausted.retry_in(self._retry(members, now))
        return ready

    def _require_possible(self, asker: str, number: str, places: AbstractSet[Place]) -> None:
        """Refuse what no member has. One that was never read may have anything, until its first reading failed."""
        there = [m for m in self._members.values() if number in ("", m.terminal_number)]
        if any(_serves(member, asker, places) for member in there):
            return
        if number and any(not member.may_serve(asker) for member in there):
            raise NotAllowed(f"PSAM {number} is another terminal's")
        for member in self._members.values():
            if member.state is MemberState.READING and member.may_serve(asker):
                return
        if number and not there:
            raise PsamNotFound(f"the pool has no PSAM {number}")
        raise PsamNotFound("the pool has no PSAM with these keys")

    def _rank(self, member: PooledMember, asker: str) -> tuple[bool, float, float, int]:
        """Return how well a member suits an asker: the lowest comes first."""
        preference = 0
        if self._strategy is Strategy.KEY_SET and member.facts is not None:
            preference = len(member.facts.levels)
        elif self._strategy is Strategy.AFFINITY:
            preference = self._last.get(asker) != member.name
        return (member.owner == "", preference, member.load, member.turns)

    def _remember(self, asker: str, member: PooledMember) -> None:
        self._last[asker] = member.name
        self._last.move_to_end(asker)
        # Askers whose affinity is remembered: as many as there may be sessions.
        if len(self._last) > self._limits.sessions:
            self._last.popitem(last=False)

    def _wait(
        self,
        asker: str,
        session: Session | None,
        places: AbstractSet[Place],
        members: list[PooledMember],
        now: float,
    ) -> Ticket:
        waiting = self._by_asker.get(asker, 0)
        if len(self._tickets) >= self._limits.waiting or waiting >= self._limits.waiting_per_asker:
            raise PoolExhausted.retry_in(self._retry(members, now))
        deadline = now + self._limits.wait_seconds
        ticket = Ticket(next(self._numbers), asker, session, places, now, deadline)
        self._tickets[ticket] = members
        self._by_asker[asker] = waiting + 1
        for member in members:
            member.rotation.add(ticket)
            self._open[member] = None
        return ticket

    def _drop(self, ticket: Ticket) -> None:
        """Let a ticket wait no more, wherever it does."""
        for member in self._tickets.pop(ticket):
            member.rotation.remove(ticket)
        self._by_asker[ticket.asker] -= 1
        if not self._by_asker[ticket.asker]:
            del self._by_asker[ticket.asker]

    def _grant(self, ticket: Ticket, now: float) -> Granted:
        """Make a turn of a ticket that comes next at one member at least; the strategy says at which of those."""
        members = [
            member
            for member in self._tickets[ticket]
            # Nowhere is it let in before others who wait there.
            if member.free and member.rotation.head() is ticket
        ]
        member = min(members, key=lambda member: self._rank(member, ticket.asker))
        self._drop(ticket)
        member.rotation.to_end(ticket.asker)
        slot, found = member.take(ticket.session)
        turn = Turn(
            next(self._numbers), ticket.asker, ticket.session, member.name, slot, found, now
        )
        member.held[slot] = turn
        member.turns += 1
        self._turns[turn] = None
        self._heard[turn] = now
        if ticket.session is not None:
            self._busy[ticket.session] = turn
        self._remember(ticket.asker, member)
        return Granted(ticket, turn)

    def _end(self, turn: Turn, *, is_clean: bool) -> None:
        member = self._member(turn.member)
        member.release(turn, is_clean=is_clean)
        self._forget(turn)
        self._open[member] = None

    def _forget(self, turn: Turn) -> None:
        del self._turns[turn]
        self._heard.pop(turn, None)
        if turn.session is not None:
            self._busy.pop(turn.session, None)

    def _run_out(self, now: float) -> list[RanOut]:
        events = []
        while (turn := next(iter(self._turns), None)) is not None:
            if turn.began + self._limits.turn_seconds > now:
                break
            events.append(RanOut(turn, was_idle=False))
            self._end(turn, is_clean=False)
        while self._heard:
            turn, heard = next(iter(self._heard.items()))
            if heard + self._limits.idle_seconds > now:
                break
            events.append(RanOut(turn, was_idle=True))
            self._end(turn, is_clean=False)
        return events

    def _expire(self, now: float) -> list[Expired]:
        expired: list[tuple[Ticket, frozenset[PooledMember]]] = []
        while (ticket := next(iter(self._tickets), None)) is not None:
            if ticket.deadline > now:
                break
            expired.append((ticket, frozenset(self._tickets[ticket])))
            self.withdraw(ticket)
        # Most wait for the same members, and get the same advice.
        retries = {members: self._retry(members, now) for members in {m for _, m in expired}}
        return [Expired(ticket, retries[members]) for ticket, members in expired]

    def _retry(self, members: Iterable[PooledMember], now: float) -> int:
        """Return when to ask again, in milliseconds: when the first of these members has got round to who waits for it
        now, and not before a slot can be free; of members that do not serve, when the first is read again."""
        members = list(members)
        ready = [member for member in members if member.is_ready]
        if ready:
            seconds = min(self._seconds_until_free(member, now) for member in ready)
        else:
            probes = [member.probe_at - now for member in members]
            soonest = min(probes, default=inf)
            seconds = self._limits.first_probe_seconds if soonest == inf else soonest
        return min(max(ceil(seconds * 1000), 1), MOST_RETRY_MILLISECONDS)

    def _seconds_until_free(self, member: PooledMember, now: float) -> float:
        queue = (len(member.rotation) + 1) * member.mean_seconds / member.slots
        if member.free:
            return queue
        ends = [min(self._limit(turn) for turn in member.held.values())] if member.held else []
        return max([queue, *(end - now for end in ends)])

    def _limit(self, turn: Turn) -> float:
        """Return when a turn runs out if its holder is heard of no more."""
        idle = self._heard.get(turn, inf) + self._limits.idle_seconds
        return min(turn.began + self._limits.turn_seconds, idle)


def _serves(member: PooledMember, asker: str, places: AbstractSet[Place]) -> bool:
    """Whether a member would do for an asker once it is ready."""
    return member.may_serve(asker) and member.has(places)
