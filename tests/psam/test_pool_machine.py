"""The pool against a naive book of it: whatever happens in whatever order, nobody loses what is theirs.

The book writes down what was asked for and what the pool says, looks at everything each time, and knows no index. It
does not foretell whom the pool serves, except for what is promised: it judges every single grant.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Any, Final

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from keyd.crypto.algorithms import CardAlgorithm
from keyd.errors import (
    LocalProtocolError,
    NotAllowed,
    PoolExhausted,
    PsamGone,
    PsamNotFound,
    Refusal,
)
from keyd.psam.level_index import MemberFacts, Place
from keyd.psam.pool import (
    Event,
    Expired,
    Found,
    Granted,
    Lost,
    MemberState,
    Pool,
    PoolLimits,
    RanOut,
    Session,
    Strategy,
    Ticket,
    Turn,
)

NAMES: Final = ("m1", "m2", "m3")
ASKERS: Final = ("a", "b", "c", "d")
PLACES: Final = tuple(Place(7, key_id, CardAlgorithm.SM4) for key_id in (1, 2, 3))
LIMITS: Final = PoolLimits(
    waiting=8, waiting_per_asker=4, sessions=6, sessions_per_asker=3, longest_probe_seconds=6
)
# All times are halves and quarters, so that sums are exact and what is due at a moment is due at that moment.
PAUSES: Final = (0.25, 0.25, 0.25, 0.5, 0.5, 1.0, 2.0, 3.0)

# What takes much with it comes seldom, or nothing would ever be in the way of anything.
SELDOM: Final = st.integers(0, 7).map(lambda chance: chance == 7)

places = st.sets(st.sampled_from(PLACES), max_size=2).map(frozenset)
askers = st.sampled_from(ASKERS)


@dataclass
class BookMember:
    """What the book knows of a member. A slot's history is what happened on it last."""

    slots: int
    owner: str
    state: str = "reading"
    facts: MemberFacts | None = None
    # "dirty", "fresh", a Turn that is held, or ("left", session or None).
    history: dict[int, Any] = field(default_factory=dict)
    probe_at: float = inf
    failures: int = 0
    strikes: int = 0
    # The grants of this member, in their order.
    grants: list[Turn] = field(default_factory=list)


@dataclass
class BookTicket:
    """A ticket that waits, and how many grants its member had made when it was asked for."""

    ticket: Ticket
    grants_before: int = 0


class PoolMachine(RuleBasedStateMachine):
    pool: Pool

    @initialize(strategy=st.sampled_from(Strategy))
    def begin(self, strategy: Strategy) -> None:
        self.strategy = strategy
        self.pool = Pool(LIMITS, strategy)
        self.now = 100.0
        self.members: dict[str, BookMember] = {}
        self.sessions: list[Session] = []
        self.waiting: list[BookTicket] = []
        self.fates: dict[Ticket, str] = {}
        self.heard: dict[Turn, float] = {}
        self.last: dict[str, str] = {}
        self.all_grants: list[Turn] = []
        self.is_settled = True
        # Most of what can go wrong needs members that serve.
        for name, slots in (("m1", 1), ("m2", 2)):
            self.join(name, slots, "")
            self.ready(name, set(PLACES[:slots]))

    # What the book can say.

    def suits(self, member: BookMember, asker: str, wanted: frozenset[Place]) -> bool:
        return (
            member.owner in ("", asker)
            and member.facts is not None
            and all(place in member.facts.levels for place in wanted)
        )

    def eligible(self, ticket: Ticket, name: str) -> bool:
        member = self.members[name]
        if member.state != "ready":
            return False
        if ticket.session is not None:
            return ticket.session.member == name
        return self.suits(member, ticket.asker, frozenset(ticket.places))

    def held(self, name: str) -> list[Turn]:
        return [now for now in self.members[name].history.values() if isinstance(now, Turn)]

    def turns(self) -> list[Turn]:
        return [turn for name in self.members for turn in self.held(name)]

    def busy(self, session: Session) -> bool:
        return any(kept.ticket.session is session for kept in self.waiting) or any(
            turn.session is session for turn in self.turns()
        )

    def load(self, name: str) -> float:
        sessions = sum(session.member == name for session in self.sessions)
        return (sessions + len(self.held(name))) / self.members[name].slots

    def limit(self, turn: Turn) -> float:
        return min(turn.began + LIMITS.turn_seconds, self.heard[turn] + LIMITS.idle_seconds)

    # Members.

    @precondition(lambda self: len(self.members) < len(NAMES))
    @rule(data=st.data(), slots=st.integers(1, 3), owner=st.sampled_from(("", "", "a")))
    def member_joins(self, data: Any, slots: int, owner: str) -> None:
        there = sorted(set(NAMES) - self.members.keys())
        self.join(data.draw(st.sampled_from(there)), slots, owner)

    def join(self, name: str, slots: int, owner: str) -> None:
        self.pool.join(name, slots, owner=owner)
        self.members[name] = BookMember(slots, owner, history=dict.fromkeys(range(slots), "dirty"))

    def in_states(self, *states: str) -> list[str]:
        return [name for name, member in self.members.items() if member.state in states]

    @precondition(lambda self: self.in_states("reading", "probed"))
    @rule(data=st.data(), there=st.sets(st.sampled_from(PLACES), min_size=1))
    def member_is_ready(self, data: Any, there: set[Place]) -> None:
        self.ready(data.draw(st.sampled_from(self.in_states("reading", "probed"))), there)

    def ready(self, name: str, there: set[Place]) -> None:
        member = self.members[name]
        number = bytes.fromhex(f"{NAMES.index(name) + 1:012d}")
        member.facts = MemberFacts(bytes(10), number, b"", dict.fromkeys(sorted(there), 3))
        self.pool.ready(name, member.facts, self.now)
        member.state = "ready"
        member.history = dict.fromkeys(range(member.slots), "fresh")
        self.is_settled = False

    @precondition(lambda self: self.in_states("reading", "probed", "ready"))
    @rule(data=st.data(), is_likely=SELDOM)
    def fail(self, data: Any, is_likely: bool) -> None:
        name = data.draw(st.sampled_from(self.in_states("reading", "probed", "ready")))
        member = self.members[name]
        if member.state == "ready" and not is_likely:
            return
        self._lost(name, self.pool.fail(name, self.now))
        member.state = "quarantined"
        member.probe_at = self.now + min(2.0**member.strikes, 6)
        member.failures += 1
        member.strikes += 1

    @precondition(lambda self: self.members)
    @rule(data=st.data(), is_likely=SELDOM)
    def member_parts(self, data: Any, is_likely: bool) -> None:
        if is_likely:
            self.part(data.draw(st.sampled_from(sorted(self.members))))

    def part(self, name: str) -> None:
        self._lost(name, self.pool.part(name))
        del self.members[name]

    def _lost(self, name: str, lost: Lost) -> None:
        """Everything that was this member's is lost, once; and nothing else."""
        member = self.members[name]
        sessions = [session for session in self.sessions if session.member == name]
        assert set(lost.sessions) == set(sessions)
        assert len(lost.sessions) == len(sessions)
        assert sorted(turn.number for turn in lost.turns) == sorted(
            t.number for t in self.held(name)
        )
        tickets = [kept.ticket for kept in self.waiting if kept.ticket.session in sessions]
        assert set(lost.tickets) == set(tickets)
        assert len(lost.tickets) == len(tickets)
        for ticket in tickets:
            self._fate(ticket, "lost")
        for turn in lost.turns:
            del self.heard[turn]
        self.sessions = [session for session in self.sessions if session.member != name]
        member.history = dict.fromkeys(range(member.slots), "dirty")
        self.is_settled = False

    @precondition(lambda self: self.in_states("quarantined"))
    @rule()
    def probe(self) -> None:
        due = {name for name, m in self.members.items() if m.probe_at <= self.now}
        assert set(self.pool.due_probes(self.now)) == due
        for name in due:
            self.members[name].probe_at = inf
            self.members[name].state = "probed"

    def dirty(self) -> list[tuple[str, int]]:
        return [
            (name, slot)
            for name in self.in_states("ready")
            for slot, now in self.members[name].history.items()
            if now == "dirty"
        ]

    @precondition(lambda self: self.dirty())
    @rule(data=st.data())
    def reset(self, data: Any) -> None:
        name, slot = data.draw(st.sampled_from(self.dirty()))
        self.pool.clean(name, slot)
        self.members[name].history[slot] = "fresh"
        self.is_settled = False

    # Sessions.

    @rule(asker=askers, number=st.sampled_from(("", "", *range(1, 4))), wanted=places)
    def attach(self, asker: str, number: int | str, wanted: frozenset[Place]) -> None:
        text = number and f"{number:012d}"
        expected, candidates = self._expected(asker, str(text), wanted)
        if len(self.sessions) >= 6 or sum(s.asker == asker for s in self.sessions) >= 3:
            expected = PoolExhausted
        if expected is not None:
            with pytest.raises(expected) as no:
                self.pool.attach(asker, self.now, number=str(text), places=wanted)
            if isinstance(no.value, PoolExhausted):
                assert 1 <= no.value.retry_milliseconds <= 60_000
            return
        own = [name for name in candidates if self.members[name].owner]
        best = self._preferred(own or candidates, asker)
        session = self.pool.attach(asker, self.now, number=str(text), places=wanted)
        assert session.member in best
        assert session.facts is self.members[session.member].facts
        self.sessions.append(session)
        self.last[asker] = session.member

    def _expected(
        self, asker: str, number: str, wanted: frozenset[Place]
    ) -> tuple[type[Refusal] | None, list[str]]:
        """What an asker has to be told, and which members would do."""
        there = {
            name: member
            for name, member in self.members.items()
            if not number or (member.facts is not None and member.facts.terminal.hex() == number)
        }
        good = [name for name, member in there.items() if self.suits(member, asker, wanted)]
        ready = [name for name in good if self.members[name].state == "ready"]
        if ready:
            return None, ready
        if good:
            return PoolExhausted, []
        if number and there and all(m.owner not in ("", asker) for m in there.values()):
            return NotAllowed, []
        for member in self.members.values():
            if member.state == "reading" and member.owner in ("", asker):
                return PoolExhausted, []
        return PsamNotFound, []

    def _preferred(self, names: list[str], asker: str) -> list[str]:
        if self.strategy is Strategy.AFFINITY and self.last.get(asker) in names:
            return [self.last[asker]]
        if self.strategy is Strategy.KEY_SET:
            keys = {name: len(self._facts(name).levels) for name in names}
            names = [name for name in names if keys[name] == min(keys.values())]
        least = min(self.load(name) for name in names)
        return [name for name in names if self.load(name) == least]

    def _facts(self, name: str) -> MemberFacts:
        facts = self.members[name].facts
        assert facts is not None
        return facts

    @precondition(lambda self: self.sessions)
    @rule(data=st.data())
    def detach(self, data: Any) -> None:
        session = data.draw(st.sampled_from(self.sessions))
        held = [turn for turn in self.turns() if turn.session is session]
        turn = self.pool.detach(session)
        assert turn is (held[0] if held else None)
        assert self.pool.detach(session) is None
        self.sessions.remove(session)
        for kept in list(self.waiting):
            if kept.ticket.session is session:
                self._fate(kept.ticket, "detached")
        if turn is not None:
            self._ended(turn, "dirty")
        with pytest.raises(PsamGone):
            self.pool.ask(session, self.now)

    # Turns.

    def _is_full(self, asker: str) -> bool:
        return len(self.waiting) >= 8 or sum(k.ticket.asker == asker for k in self.waiting) >= 4

    def idle(self) -> list[Session]:
        return [session for session in self.sessions if not self.busy(session)]

    @precondition(lambda self: self.idle())
    @rule(data=st.data())
    def ask(self, data: Any) -> None:
        session: Session = data.draw(st.sampled_from(self.idle()))
        if self._is_full(session.asker):
            with pytest.raises(PoolExhausted):
                self.pool.ask(session, self.now)
            return
        ticket = self.pool.ask(session, self.now)
        assert ticket.session is session
        with pytest.raises(LocalProtocolError):
            self.pool.ask(session, self.now)
        self.waiting.append(BookTicket(ticket, len(self.members[session.member].grants)))
        self.is_settled = False

    @rule(asker=askers, wanted=places, times=st.integers(1, 3))
    def ask_any(self, asker: str, wanted: frozenset[Place], times: int) -> None:
        for _ in range(times):
            self.ask_once(asker, wanted)

    def ask_once(self, asker: str, wanted: frozenset[Place]) -> None:
        expected, _ = self._expected(asker, "", wanted)
        if expected is PsamNotFound:
            with pytest.raises(PsamNotFound):
                self.pool.ask_any(asker, wanted, self.now)
        elif self._is_full(asker):
            with pytest.raises(PoolExhausted):
                self.pool.ask_any(asker, wanted, self.now)
        else:
            self.waiting.append(BookTicket(self.pool.ask_any(asker, wanted, self.now)))
            self.is_settled = False

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def withdraw(self, data: Any) -> None:
        ticket = data.draw(st.sampled_from([kept.ticket for kept in self.waiting]))
        assert self.pool.withdraw(ticket)
        assert not self.pool.withdraw(ticket)
        self._fate(ticket, "withdrawn")

    @precondition(lambda self: self.turns())
    @rule(data=st.data(), is_busy=st.booleans())
    def touch(self, data: Any, is_busy: bool) -> None:
        turn = data.draw(st.sampled_from(self.turns()))
        self.pool.touch(turn, self.now, is_busy=is_busy)
        self.heard[turn] = inf if is_busy else self.now

    @precondition(lambda self: self.turns())
    @rule(data=st.data(), is_clean=st.booleans())
    def give_back(self, data: Any, is_clean: bool) -> None:
        self.give_back_turn(data.draw(st.sampled_from(self.turns())), is_clean=is_clean)

    def give_back_turn(self, turn: Turn, *, is_clean: bool) -> None:
        assert self.pool.give_back(turn, self.now, is_clean=is_clean)
        assert not self.pool.give_back(turn, self.now, is_clean=True)
        self._ended(turn, ("left", turn.session) if is_clean else "dirty")
        self.members[turn.member].strikes = 0

    def _ended(self, turn: Turn, after: Any) -> None:
        assert self.members[turn.member].history[turn.slot] is turn
        self.members[turn.member].history[turn.slot] = after
        del self.heard[turn]
        with pytest.raises(PsamGone):
            self.pool.touch(turn, self.now)
        self.is_settled = False

    def _fate(self, ticket: Ticket, fate: str) -> None:
        """A ticket has one fate."""
        assert ticket not in self.fates
        self.fates[ticket] = fate
        self.waiting = [kept for kept in self.waiting if kept.ticket is not ticket]

    @precondition(lambda self: self.turns())
    @rule(data=st.data())
    def give_back_in_order(self, data: Any) -> None:
        turn = data.draw(st.sampled_from(self.turns()))
        self.give_back_turn(turn, is_clean=True)
        self.settle()

    # Time.

    @rule(pause=st.sampled_from(PAUSES))
    def time_passes(self, pause: float) -> None:
        self.now += pause
        self.is_settled = False

    @rule()
    def settle(self) -> None:
        out = {turn for turn in self.turns() if self.limit(turn) <= self.now}
        expired = {kept.ticket for kept in self.waiting if kept.ticket.deadline <= self.now}
        for event in self.pool.settle(self.now):
            self._event(event)
            if isinstance(event, RanOut):
                out.remove(event.turn)
            elif isinstance(event, Expired):
                expired.remove(event.ticket)
        assert not out
        assert not expired
        self.is_settled = True
        # No slot is free while somebody waits who could have it.
        for name, member in self.members.items():
            idle = [now for now in member.history.values() if not isinstance(now, Turn)]
            if any(now != "dirty" for now in idle):
                assert not [kept for kept in self.waiting if self.eligible(kept.ticket, name)]

    def _event(self, event: Event) -> None:
        if isinstance(event, RanOut):
            is_long = event.turn.began + LIMITS.turn_seconds <= self.now
            assert event.was_idle is not is_long
            self._ended(event.turn, "dirty")
        elif isinstance(event, Expired):
            assert 1 <= event.retry_milliseconds <= 60_000
            self._fate(event.ticket, "expired")
        else:
            self._granted(event)

    def _granted(self, event: Granted) -> None:
        ticket, turn = event
        name, member = turn.member, self.members[turn.member]
        assert self.eligible(ticket, name)
        assert ticket.deadline > self.now
        assert (turn.asker, turn.session, turn.began) == (ticket.asker, ticket.session, self.now)
        self._found(member, turn)
        # Of one asker's tickets for a member the oldest is first.
        for kept in self.waiting:
            if kept.ticket.asker == turn.asker and self.eligible(kept.ticket, name):
                assert kept.ticket.number >= ticket.number
        # Nobody gets a second turn of a member while somebody waits for it who had none since the first.
        mine = [number for number, grant in enumerate(self.all_grants) if grant in member.grants]
        mine = [number for number in mine if self.all_grants[number].asker == turn.asker]
        if mine:
            since = {grant.asker for grant in self.all_grants[mine[-1] + 1 :]}
            for kept in self.waiting:
                if kept.ticket.asker != turn.asker and self.eligible(kept.ticket, name):
                    assert kept.ticket.asker in since
        self._fate(ticket, "granted")
        member.grants.append(turn)
        self.all_grants.append(turn)
        member.history[turn.slot] = turn
        self.heard[turn] = self.now
        self.last[turn.asker] = name
        # And a session is passed by nobody more often than its own asker is served by this member, and once.
        for kept in self.waiting:
            session = kept.ticket.session
            if session is not None and session.member == name:
                grants = [grant.asker for grant in member.grants[kept.grants_before :]]
                for other in set(grants) - {session.asker}:
                    assert grants.count(other) <= grants.count(session.asker) + 1

    def _found(self, member: BookMember, turn: Turn) -> None:
        """The slot was nobody's, and not dirty; and what the turn is said to find is so."""
        before = member.history[turn.slot]
        assert not isinstance(before, Turn)
        assert before != "dirty"
        if turn.found is Found.FRESH:
            assert before == "fresh"
        elif turn.found is Found.OWN:
            assert turn.session is not None
            assert before == ("left", turn.session)
        else:
            assert before != "fresh"
            assert turn.session is None or before != ("left", turn.session)

    # Always.

    @invariant()
    def the_pool_says_the_same(self) -> None:
        if not hasattr(self, "pool"):
            return
        assert self.pool.waiting == len(self.waiting)
        assert self.pool.sessions == len(self.sessions)
        standings = {standing.name: standing for standing in self.pool.standings()}
        assert standings.keys() == self.members.keys()
        for name, member in self.members.items():
            standing = standings[name]
            state = "quarantined" if member.state == "probed" else member.state
            assert standing.state is MemberState(state)
            assert standing.sessions == sum(s.member == name for s in self.sessions)
            assert standing.held == len(self.held(name))
            assert standing.turns == len(member.grants)
            assert standing.failures == member.failures
            assert standing.waiting == sum(self.eligible(k.ticket, name) for k in self.waiting)
            dirty = {slot for slot, now in member.history.items() if now == "dirty"}
            assert self.pool.dirty(name) == dirty

    @invariant()
    def the_pool_wakes_up_in_time(self) -> None:
        if not hasattr(self, "pool") or not self.is_settled:
            return
        moments = [member.probe_at for member in self.members.values()]
        moments += [kept.ticket.deadline for kept in self.waiting]
        moments += [self.limit(turn) for turn in self.turns()]
        assert self.pool.next_moment() == min(moments, default=inf)

    def teardown(self) -> None:
        """In the end every ticket had its fate, and every turn its end."""
        if not hasattr(self, "pool"):
            return
        self.now += LIMITS.wait_seconds
        self.settle()
        self.now += LIMITS.turn_seconds
        self.settle()
        assert not self.waiting
        assert not self.turns()
        for name in list(self.members):
            self.part(name)
        assert (self.pool.sessions, self.pool.waiting) == (0, 0)
        assert self.pool.next_moment() == inf


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=150, stateful_step_count=80, deadline=None)
