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

from collections.abc import Set as AbstractSet
from itertools import count
from math import inf
from typing import TYPE_CHECKING, Final

from keyd.errors import LocalProtocolError, PoolExhausted, PsamGone
from keyd.psam.pool_clock import TurnClock
from keyd.psam.pool_member import PooledMember
from keyd.psam.pool_members import Members
from keyd.psam.pool_retry import retry_milliseconds
from keyd.psam.pool_terms import (
    Event,
    Expired,
    Found,
    Granted,
    Lost,
    MemberState,
    PoolLimits,
    RanOut,
    Session,
    Standing,
    Strategy,
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

GONE: Final = "the PSAM was taken away or failed: open another"
ENDED: Final = "the PSAM's turn took too long, and what was begun is lost"

# Doubling more often than this changes nothing: every limit is reached long before.
MOST_DOUBLINGS: Final = 32


class Pool:
    """All members, sessions, tickets and turns. See the module for how it is driven."""

    def __init__(self, limits: PoolLimits, strategy: Strategy) -> None:
        self._limits = limits
        self._numbers = count(1)
        self._members = Members(strategy, limits.sessions)
        self._sessions: set[Session] = set()
        self._sessions_of: dict[str, int] = {}
        # What each session waits for or holds: one thing at a time.
        self._busy: dict[Session, Ticket | Turn] = {}
        # Tickets and the members whose rotations they are in. All wait equally long, so the first expires first.
        self._tickets: dict[Ticket, list[PooledMember]] = {}
        self._waiting_of: dict[str, int] = {}
        self._clock = TurnClock(limits)
        # Members that might have become able to serve somebody, and those that are to be probed.
        self._open: dict[PooledMember, None] = {}
        self._to_probe: dict[PooledMember, None] = {}

    # Members come and go.

    def join(self, name: str, slots: int, *, owner: str = "") -> None:
        """Take a member in, which is to be read. `owner` is the only asker that it serves; empty: it serves all.

        Raises:
            LocalProtocolError: a member of this name is there, or it has no slot.
        """
        self._members.add(PooledMember(name, slots, owner))

    def ready(self, name: str, facts: MemberFacts, now: float) -> None:  # noqa: ARG002 - as all others
        """Let a member serve: it was identified and probed, and then every slot was reset; nobody is on any.

        Raises:
            LocalProtocolError: it serves already, or is not there.
        """
        member = self._members[name]
        if member.is_ready:
            raise LocalProtocolError(f"member {name} serves already")
        member.state = MemberState.READY
        member.facts = facts
        member.probe_at = inf
        self._to_probe.pop(member, None)
        member.refresh()
        for ticket, members in self._tickets.items():
            if ticket.session is None and member.serves(ticket.asker, ticket.places):
                members.append(member)
                member.rotation.add(ticket)
        self._open[member] = None

    def fail(self, name: str, now: float) -> Lost:
        """Quarantine a member that misbehaved, also while it was read. What it served is lost.

        A failure of one that is in quarantine was a probe's, and doubles the time until the next.
        """
        member = self._members[name]
        member.state = MemberState.QUARANTINED
        member.failures += 1
        limits = self._limits
        pause = limits.first_probe_seconds * 2 ** min(member.strikes, MOST_DOUBLINGS)
        member.strikes += 1
        member.probe_at = now + min(pause, limits.longest_probe_seconds)
        self._to_probe[member] = None
        return self._empty(member)

    def part(self, name: str) -> Lost:
        """Let go of a member that was taken away. What it served is lost."""
        member = self._members.remove(name)
        self._to_probe.pop(member, None)
        return self._empty(member)

    def due_probes(self, now: float) -> list[str]:
        """Return the members in quarantine that are to be reset and read now. Each is named once: then `ready` or
        `fail` has to say how it went."""
        due = [member for member in self._to_probe if member.probe_at <= now]
        for member in due:
            member.probe_at = inf
            del self._to_probe[member]
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
        limits, own = self._limits, self._sessions_of.get(asker, 0)
        if len(self._sessions) >= limits.sessions or own >= limits.sessions_per_asker:
            raise self._exhausted(self._members, now)
        suitable = self._members.suitable(asker, number, places)
        ready = [member for member in suitable if member.is_ready]
        if not ready:
            raise self._exhausted(suitable, now)
        member = self._members.best(ready, asker)
        session = Session(next(self._numbers), asker, member.name, member.read_facts)
        self._sessions.add(session)
        self._sessions_of[asker] = own + 1
        member.sessions.add(session)
        return session

    def detach(self, session: Session) -> Turn | None:
        """End a session, and what it waits for. Returns the turn that it held, whose slot has to be reset, then
        `clean`. Of a session that has ended nothing is left to do."""
        if session not in self._sessions:
            return None
        busy = self._leave(session)
        if isinstance(busy, Ticket):
            self._drop(busy)
        turn = busy if isinstance(busy, Turn) else None
        if turn is not None:
            self._end(turn, is_clean=False)
        self._members[session.member].forget(session)
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
            session.asker, session, frozenset(), [self._members[session.member]], now
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
        suitable = self._members.suitable(asker, places=places)
        return self._wait(asker, None, places, suitable, now)

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
        if turn not in self._clock:
            raise PsamGone(ENDED)
        self._clock.heard(turn, now, is_busy=is_busy)

    def give_back(self, turn: Turn, now: float, *, is_clean: bool) -> bool:
        """End a turn. Not `is_clean`: the slot has to be reset, then `clean`. False: the turn had ended, and the slot
        may be another's."""
        if turn not in self._clock:
            return False
        member = self._members[turn.member]
        self._end(turn, is_clean=is_clean)
        member.ended_in_order(now - turn.began)
        return True

    def has(self, turn: Turn) -> bool:
        """Whether a turn has not ended."""
        return turn in self._clock

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
        probes = (member.probe_at for member in self._to_probe)
        # All tickets wait equally long.
        deadline = next((ticket.deadline for ticket in self._tickets), inf)
        return min(deadline, self._clock.next_moment(), *probes)

    # What is known.

    def has_unread(self, asker: str) -> bool:
        """Whether a member is being read for the first time, which may turn out to be what an asker wants."""
        return self._members.has_unread(asker)

    @property
    def wait_seconds(self) -> float:
        """How long anybody waits at most."""
        return self._limits.wait_seconds

    def state(self, name: str) -> MemberState | None:
        """Return what a member is good for; None if there is none of this name."""
        member = self._members.get(name)
        return None if member is None else member.state

    def dirty(self, name: str) -> frozenset[int]:
        """Return the slots of a member that have to be reset."""
        return frozenset(self._members[name].dirty)

    def standings(self) -> list[Standing]:
        """Return what is reported of each member. Who would take any of some members waits for each of them."""
        return [member.standing for member in self._members]

    @property
    def waiting(self) -> int:
        """How many tickets wait."""
        return len(self._tickets)

    @property
    def sessions(self) -> int:
        """How many sessions there are."""
        return len(self._sessions)

    # Within.

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
            self._leave(session)
            member.forget(session)
        self._open.pop(member, None)
        return Lost(sessions, turns, tickets)

    def _leave(self, session: Session) -> Ticket | Turn | None:
        """Let go of a session, and return what it waits for or holds."""
        self._sessions.remove(session)
        _count_down(self._sessions_of, session.asker)
        return self._busy.pop(session, None)

    def _wait(
        self,
        asker: str,
        session: Session | None,
        places: AbstractSet[Place],
        members: list[PooledMember],
        now: float,
    ) -> Ticket:
        waiting = self._waiting_of.get(asker, 0)
        if len(self._tickets) >= self._limits.waiting or waiting >= self._limits.waiting_per_asker:
            raise self._exhausted(members, now)
        deadline = now + self._limits.wait_seconds
        ticket = Ticket(next(self._numbers), asker, session, places, now, deadline)
        self._tickets[ticket] = [member for member in members if member.is_ready]
        self._waiting_of[asker] = waiting + 1
        for member in self._tickets[ticket]:
            member.rotation.add(ticket)
            self._open[member] = None
        return ticket

    def _drop(self, ticket: Ticket) -> None:
        """Let a ticket wait no more, wherever it does."""
        for member in self._tickets.pop(ticket):
            member.rotation.remove(ticket)
        _count_down(self._waiting_of, ticket.asker)

    def _grant(self, ticket: Ticket, now: float) -> Granted:
        """Make a turn of a ticket that comes next at one member at least; the strategy says at which of those."""
        waited_for = self._tickets[ticket]
        # Nowhere is it let in before others who wait there.
        members = [m for m in waited_for if m.free and m.rotation.head() is ticket]
        member = self._members.best(members, ticket.asker)
        self._drop(ticket)
        number = next(self._numbers)
        for other in waited_for:
            other.rotation.served(ticket.asker, number, is_here=other is member)
        slot, found = member.take(ticket.session)
        turn = Turn(number, ticket.asker, ticket.session, member.name, slot, found, now)
        member.held[slot] = turn
        member.turns += 1
        self._clock.begin(turn)
        if ticket.session is not None:
            self._busy[ticket.session] = turn
        return Granted(ticket, turn)

    def _end(self, turn: Turn, *, is_clean: bool) -> None:
        member = self._members[turn.member]
        member.release(turn, is_clean=is_clean)
        self._forget(turn)
        self._open[member] = None

    def _forget(self, turn: Turn) -> None:
        self._clock.end(turn)
        if turn.session is not None:
            self._busy.pop(turn.session, None)

    def _run_out(self, now: float) -> list[RanOut]:
        events = []
        while (event := self._clock.first_out(now)) is not None:
            events.append(event)
            self._end(event.turn, is_clean=False)
        return events

    def _expire(self, now: float) -> list[Expired]:
        expired = []
        while (ticket := next(iter(self._tickets), None)) is not None:
            if ticket.deadline > now:
                break
            # While none of them serves: of those that may again.
            members = self._tickets[ticket] or [
                member for member in self._members if member.serves(ticket.asker, ticket.places)
            ]
            expired.append((ticket, frozenset(members)))
            self.withdraw(ticket)
        # Most wait for the same members, and get the same advice.
        which = {members for _, members in expired}
        retries = {members: retry_milliseconds(members, self._clock, now) for members in which}
        return [Expired(ticket, retries[members]) for ticket, members in expired]

    def _exhausted(self, members: Iterable[PooledMember], now: float) -> PoolExhausted:
        return PoolExhausted.retry_in(retry_milliseconds(members, self._clock, now))


def _count_down(counts: dict[str, int], asker: str) -> None:
    counts[asker] -= 1
    if not counts[asker]:
        del counts[asker]
