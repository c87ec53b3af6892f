"""What the soak insists on: a pool that is watched at every turn it gives, and what must be left when all have gone.

Fair means: as long as somebody waits for a member, nobody else gets two turns of it, unless whoever waits got one
there as well. So a ticket waits at most for one turn of each other asker who waits there, and whoever is refused for
having waited too long was overtaken by nobody twice. That bounds every wait, whatever the clock does.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from keyd.psam.pool import Expired, Granted, MemberState, Pool, RanOut

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from keyd.lending.lender import Lender
    from keyd.psam.level_index import Place
    from keyd.psam.pool import Event, Lost, PoolLimits, Session, Strategy, Ticket, Turn
    from keyd.psam.pool_member import PooledMember

# More than these say nothing new.
MOST_FAULTS: Final = 50


class Watch:
    """What was seen, and what was wrong with it."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        # By terminal: what it asked for, got, and was refused because it waited too long.
        self.asked: Counter[str] = Counter()
        self.granted: Counter[str] = Counter()
        self.expired: Counter[str] = Counter()
        # By member.
        self.turns: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.ran_out = 0
        self.waits: list[float] = []
        self.most_overtaken = 0

    def fault(self, sentence: str) -> None:
        """Take note of something that must not be."""
        if len(self.faults) < MOST_FAULTS:
            self.faults.append(sentence)


class WatchedPool(Pool):
    """The pool, and an eye on its fairness. It decides nothing otherwise than the pool does."""

    def __init__(self, limits: PoolLimits, strategy: Strategy, watch: Watch) -> None:
        super().__init__(limits, strategy)
        self._watch = watch
        # Who had a turn of a member while a ticket waited there.
        self._overtook: dict[Ticket, dict[str, set[str]]] = {}

    def settle(self, now: float) -> list[Event]:
        """See `Pool.settle`."""
        events = super().settle(now)
        for event in events:
            if isinstance(event, Expired):
                self._watch.expired[event.ticket.asker] += 1
            self._watch.ran_out += isinstance(event, RanOut)
        for member in self._members:
            if member.is_ready and member.free and member.rotation.head() is not None:
                self._watch.fault(f"{member.name} has a free slot, and somebody waits for it")
        oldest = next(iter(self._tickets), None)
        if oldest is not None and oldest.deadline <= now:
            self._watch.fault("a ticket waits that has expired")
        return events

    def fail(self, name: str, now: float) -> Lost:
        """See `Pool.fail`."""
        self._watch.failures[name] += 1
        self._forget_waits(name)
        return super().fail(name, now)

    def part(self, name: str) -> Lost:
        """See `Pool.part`."""
        self._forget_waits(name)
        return super().part(name)

    def _forget_waits(self, name: str) -> None:
        for members in self._overtook.values():
            members.pop(name, None)

    def _drop(self, ticket: Ticket) -> None:
        self._overtook.pop(ticket, None)
        super()._drop(ticket)

    def _grant(self, ticket: Ticket, now: float) -> Granted:
        granted = super()._grant(ticket, now)
        watch, name, asker = self._watch, granted.turn.member, ticket.asker
        watch.waits.append(now - ticket.asked)
        watch.granted[asker] += 1
        watch.turns[name] += 1
        rotation = self._members[name].rotation
        for waiting, members in self._overtook.items():
            if waiting.asker == asker:
                # It had a turn, wherever: from here on everybody may have one again before it.
                members.clear()
        for waiting in [one for who in rotation._waiting.values() for one in who.tickets]:
            if waiting.asker == asker:
                continue
            overtook = self._overtook.setdefault(waiting, {}).setdefault(name, set())
            if asker in overtook:
                watch.fault(f"{asker} had two turns of {name} while {waiting.asker} waited for one")
            overtook.add(asker)
            watch.most_overtaken = max(watch.most_overtaken, len(overtook))
        return granted

    def _wait(
        self,
        asker: str,
        session: Session | None,
        places: AbstractSet[Place],
        members: list[PooledMember],
        now: float,
    ) -> Ticket:
        self._watch.asked[asker] += 1
        return super()._wait(asker, session, places, members, now)


def check_books(pool: Pool, watch: Watch) -> None:
    """Every slot is in one place, every turn is timed, and everything that is counted twice agrees."""
    turns: set[Turn] = set()
    for member in pool._members:
        places = [*member.free, *member.held, *member.dirty]
        if sorted(places) != list(range(member.slots)):
            watch.fault(f"{member.name} has lost a slot, or has one twice")
        if member.held and not member.is_ready:
            watch.fault(f"{member.name} is {member.state.value}, and somebody has a turn on it")
        turns.update(member.held.values())
        if len(member.rotation) != sum(member in on for on in pool._tickets.values()):
            watch.fault(
                f"{member.name}: tickets do not know that they wait for it, or wait no more"
            )
    if turns != set(pool._clock._turns) or not turns >= set(pool._clock._heard):
        watch.fault("turns that are held and turns that are timed are not the same")
    of_members = {session for member in pool._members for session in member.sessions}
    if of_members != pool._sessions or sum(pool._sessions_of.values()) != len(pool._sessions):
        watch.fault("sessions and their members do not agree")
    if sum(pool._waiting_of.values()) != pool.waiting:
        watch.fault("tickets and their askers do not agree")
    if not pool._busy.keys() <= pool._sessions:
        watch.fault("a session that has ended has a turn, or waits")


def check_cleaning(pool: Pool, dirty_since: dict[tuple[str, int], float], now: float) -> list[str]:
    """Return the slots that have to be reset and are not, since when is kept in `dirty_since`. Of a member that serves
    they are reset at once; so whoever looks says how long that may take."""
    dirty = {
        (member.name, slot)
        for member in pool._members
        if member.state is MemberState.READY
        for slot in member.dirty
    }
    for gone in dirty_since.keys() - dirty:
        del dirty_since[gone]
    for slot in dirty:
        dirty_since.setdefault(slot, now)
    return [f"{name}, slot {slot}" for name, slot in dirty]


def is_quiet(lender: Lender, pool: Pool) -> bool:
    """Whether every member serves, every slot is free, and nobody has or wants anything."""
    return not (
        pool.sessions
        or pool.waiting
        or pool._busy
        or pool._sessions_of
        or pool._waiting_of
        or pool._clock._turns
        or lender._waiters
        or lender._flights
        or lender._open
        or any(
            standing.state is not MemberState.READY
            or standing.sessions
            or standing.held
            or standing.dirty
            or standing.waiting
            for standing in pool.standings()
        )
        or any(len(member.free) != member.slots for member in pool._members)
    )
