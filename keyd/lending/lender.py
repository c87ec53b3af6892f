"""The lender: brings members, and whoever wants one, together, as the pool decides.

The pool settles who gets which turn; whoever got one drives the member itself, so that a slow one keeps nobody waiting
but those who wait for it. A member that does not answer, or not as a chip does, is quarantined: whoever had it is
told, and nobody gets it before it was reset and read anew. What somebody left in the middle is reset first.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from itertools import islice
from typing import TYPE_CHECKING, Final

import trio
from msgspec import Struct

from keyd.errors import (
    KeyNotFound,
    PoolExhausted,
    PsamGone,
    PsamNotFound,
    Refusal,
    RemoteProtocolError,
)
from keyd.handlers.desk import MemberReport
from keyd.iso7816 import ResponseApdu, UnexpectedStatusWord
from keyd.lending.conversation import converse
from keyd.lending.member import MemberFailed
from keyd.lending.open import Lent
from keyd.lending.wrong_proofs import WrongProofs
from keyd.psam.card_tasks import dialogue_of, place_of_task, require_possible
from keyd.psam.level_index import identify_and_probe
from keyd.psam.pool import Expired, Found, Granted, MemberState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from keyd.cards.profile import ProfileKey
    from keyd.handlers.desk import Wanted
    from keyd.keys.sam import SamTask
    from keyd.lending.member import Member, Source
    from keyd.psam.level_index import MemberFacts, Place
    from keyd.psam.pool import Lost, Pool, Session, Ticket, Turn
    from keyd.psam.profile import PsamProfile

# All of 155 addresses in two environments at up to three levels, a tenth of a second each, with some to spare.
READING_SECONDS: Final = 180.0

GONE: Final = "the PSAM was taken away, failed, or was kept too long: what was begun is lost"


class Times(Struct, frozen=True):
    """How long a member may take for one answer, and how long a PSAM stays open without a command, in seconds."""

    answer_seconds: float = 3.0
    open_seconds: float = 300.0


class _Waiter:
    """Somebody who waits for a turn."""

    def __init__(self) -> None:
        self.event = trio.Event()
        self.turn: Turn | None = None
        self.refusal: Refusal | None = None


class _Flight:
    """A command on its way: how to stop it, and when it is over."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.is_over = trio.Event()


class Lender:
    """All members of all sources, and who has them. `run` must run while anything is asked."""

    def __init__(
        self,
        pool: Pool,
        sources: Iterable[Source],
        keys: Mapping[int, ProfileKey],
        places: Iterable[Place],
        profile: PsamProfile,
        times: Times,
        say: Callable[[str, str], None] = lambda _event, _detail: None,
    ) -> None:
        """Take the pool, where members come from, the cards' keys by address, and where members may have them.

        Most members are of `profile`: what PSAMs of it cannot do is refused before any is asked. `say` is told, with a
        sentence, what becomes of members.
        """
        self._pool = pool
        self._sources = tuple(sources)
        self._keys = keys
        self._places = tuple(places)
        self._profile = profile
        self._times = times
        self._say = say
        self._members: dict[str, Member] = {}
        self._facts: dict[str, MemberFacts] = {}
        self._waiters: dict[Ticket, _Waiter] = {}
        # What open PSAMs wait for.
        self._asked: dict[Session, Ticket] = {}
        self._flights: dict[Turn, _Flight] = {}
        # By when each was used last, the longest ago first.
        self._open: OrderedDict[Lent, float] = OrderedDict()
        self._nursery: trio.Nursery | None = None
        self.wrong_proofs = WrongProofs()
        # Replaced when it is set: a member was read for the first time, or cannot be.
        self._was_read = trio.Event()
        self._woken = trio.Event()
        # Until when `run` sleeps. It may find that what it was to wake for is over already, which is cheaper than to
        # wake it for each of them.
        self._sleeps_until = -math.inf

    # For those who want a PSAM ----------------------------------------------------------------------------

    async def open(self, terminal: str, wanted: Wanted) -> Lent:
        """See `PsamDesk.open`. Who comes while members are being read for the first time waits for them a little."""
        with trio.move_on_after(self._pool.wait_seconds):
            while True:
                try:
                    return self._lend(terminal, wanted)
                except PoolExhausted:
                    if not self._pool.has_unread(terminal):
                        raise
                await self._was_read.wait()
        return self._lend(terminal, wanted)

    def _lend(self, terminal: str, wanted: Wanted) -> Lent:
        session = self._pool.attach(
            terminal, trio.current_time(), number=wanted.number, places=wanted.places
        )
        lent = Lent(self, self._members[session.member], session)
        self.used(lent)
        return lent

    async def compute(self, tasks: Sequence[SamTask], terminal: str) -> list[bytes | Refusal]:
        """Compute tasks on any members that have their keys; each result stands where its task stood."""
        results: dict[int, bytes | Refusal] = {}

        async def compute_one(at: int, task: SamTask) -> None:
            try:
                results[at] = await self._compute(task, terminal)
            except Refusal as refusal:
                results[at] = refusal

        async with trio.open_nursery() as nursery:
            for at, task in enumerate(tasks):
                nursery.start_soon(compute_one, at, task)
        return [results[at] for at in range(len(tasks))]

    def members(self) -> list[MemberReport]:
        """See `PsamDesk.members`."""
        return [
            MemberReport(
                standing.name,
                self._members[standing.name].kind.value,
                standing.state.value,
                standing.terminal_number,
                standing.sessions,
                standing.waiting,
                standing.turns,
                standing.failures,
                standing.keys,
            )
            for standing in self._pool.standings()
        ]

    async def _compute(self, task: SamTask, terminal: str) -> bytes:
        place = place_of_task(task, self._keys)
        if place is None:
            raise KeyNotFound(f"PSAMs have no key {task.key.address:04X}")
        require_possible(task, place, self._profile)
        try:
            return await self._compute_on_one(task, place, terminal)
        except PsamGone:
            # A task is whole in itself and leaves nothing behind: another member may do all of it.
            return await self._compute_on_one(task, place, terminal)

    async def _compute_on_one(self, task: SamTask, place: Place, terminal: str) -> bytes:
        try:
            ticket = self._pool.ask_any(terminal, {place}, trio.current_time())
        except PsamNotFound:
            raise KeyNotFound(f"no PSAM has the key {task.key.address:04X}") from None
        turn = await self.turn_of(ticket)
        if not self.has(turn):
            # It ended before anybody could take it up, and the member may be gone.
            raise PsamGone(GONE)
        member = self._members[turn.member]
        is_clean = False

        async def send(command: bytes) -> bytes:
            return await self.send(turn, command)

        try:
            levels = self._facts[turn.member].levels[place]
            result = await converse(dialogue_of(task, place, levels, member.profile), send)
            is_clean = True
        except RemoteProtocolError as error:
            self._fail(member, str(error))
            raise PsamGone(GONE) from None
        finally:
            self.give_back(turn, is_clean=is_clean)
        return result

    # For open PSAMs ---------------------------------------------------------------------------------------

    async def turn_on(self, lent: Lent) -> Turn:
        """Wait for a turn of an open PSAM.

        Raises:
            PsamGone: it is not open any more.
            PoolExhausted: too many wait, or its turn did not come in time.
        """
        ticket = self._asked[lent.session] = self._pool.ask(lent.session, trio.current_time())
        # Who waits wants it still.
        self.used(lent)
        try:
            return await self.turn_of(ticket)
        finally:
            del self._asked[lent.session]

    async def turn_of(self, ticket: Ticket) -> Turn:
        """Wait until a ticket becomes a turn. Cancelled, there is neither."""
        waiter = self._waiters[ticket] = _Waiter()
        self._settle()
        try:
            if waiter.turn is None:
                await waiter.event.wait()
        except trio.Cancelled:
            self._pool.withdraw(ticket)
            turn = waiter.turn
            if turn is not None:
                # Nobody has brought the chip to where the session was: it must not pass for what the session left.
                is_clean = turn.session is None or turn.found is Found.OWN
                self.give_back(turn, is_clean=is_clean)
            raise
        finally:
            del self._waiters[ticket]
        if waiter.turn is None:
            raise waiter.refusal or PsamGone(GONE)
        return waiter.turn

    async def send(self, turn: Turn, command: bytes) -> bytes:
        """Send one command on a turn; return data and status word.

        Raises:
            PsamGone: the turn has ended, or the member has failed; whether the command was done is not known.
        """

        async def transmit(member: Member, slot: int) -> bytes:
            return await self._transmit(member, slot, command)

        return await self._fly(turn, transmit)

    async def _fly(self, turn: Turn, do: Callable[[Member, int], Awaitable[bytes]]) -> bytes:
        """Have the member of a turn do something, which is stopped when the turn ends."""
        self._pool.touch(turn, trio.current_time(), is_busy=True)
        member = self._members[turn.member]
        flight = self._flights[turn] = _Flight()
        answer = None
        try:
            with flight.scope:
                answer = await do(member, turn.slot)
        except MemberFailed as error:
            self._fail(member, str(error))
        finally:
            del self._flights[turn]
            flight.is_over.set()
        if answer is None:
            raise PsamGone(GONE)
        self._pool.touch(turn, trio.current_time())
        return answer

    def has(self, turn: Turn) -> bool:
        """Whether a turn has not ended yet."""
        return self._pool.has(turn)

    async def reset(self, turn: Turn) -> None:
        """Reset the chip of a turn.

        Raises:
            PsamGone: as for `send`.
        """

        async def reset(member: Member, slot: int) -> bytes:
            return await self._reset(member, slot)

        await self._fly(turn, reset)

    def give_back(self, turn: Turn, *, is_clean: bool) -> None:
        """End a turn. Not `is_clean`: something was begun, and the slot is reset before anybody else gets it."""
        if self._pool.give_back(turn, trio.current_time(), is_clean=is_clean) and not is_clean:
            self._clean_soon(turn)
        self._settle()

    def used(self, lent: Lent) -> None:
        """Take note that an open PSAM was used: it stays open for another while."""
        self._open[lent] = trio.current_time()
        self._open.move_to_end(lent)

    def close(self, lent: Lent) -> None:
        """End an open PSAM, whatever it is doing. Safe to call twice."""
        self._end(lent)
        self._settle()

    def _end(self, lent: Lent) -> None:
        self._open.pop(lent, None)
        turn = self._pool.detach(lent.session)
        ticket = self._asked.get(lent.session)
        if ticket is not None:
            # Whoever waits for it waits for nothing any more.
            self._refuse(ticket, PsamGone(GONE))
        if turn is not None:
            self._clean_soon(turn)

    # Members ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look after the members, until it is cancelled."""
        try:
            async with trio.open_nursery() as self._nursery:
                for source in self._sources:
                    self._nursery.start_soon(source.run, self._joined, self._parted)
                while True:
                    self._woken = trio.Event()
                    if self._sleeps_until <= trio.current_time():
                        self._sleeps_until = self._decide()
                    with trio.move_on_at(self._sleeps_until):
                        await self._woken.wait()
        finally:
            self._nursery = None

    def _joined(self, member: Member) -> None:
        self._members[member.name] = member
        self._pool.join(member.name, member.slots, owner=member.owner)
        self._say("psam_joined", member.name)
        self._start(self._read, member)

    def _parted(self, member: Member) -> None:
        if self._members.get(member.name) is not member:
            return
        self._lose(self._pool.part(member.name))
        del self._members[member.name]
        self._say("psam_parted", member.name)
        self._tell_who_opens()
        self._settle()

    def _fail(self, member: Member, why: str) -> None:
        """Quarantine a member."""
        if self._members.get(member.name) is not member:
            return
        self._say("psam_failed", f"{member.name}: {why}")
        self._lose(self._pool.fail(member.name, trio.current_time()))
        self._tell_who_opens()
        self._settle()

    def _tell_who_opens(self) -> None:
        self._was_read.set()
        self._was_read = trio.Event()

    def _lose(self, lost: Lost) -> None:
        for turn in lost.turns:
            self._stop(turn)
        for ticket in lost.tickets:
            self._refuse(ticket, PsamGone(GONE))

    async def _read(self, member: Member) -> None:
        """Find out who a member is and what it has, and let it serve then."""
        facts = None
        why = f"it could not be read within {READING_SECONDS:g} s"
        try:
            # What was on its way when it failed has to be over.
            with trio.move_on_after(READING_SECONDS):
                for flight in [
                    f for turn, f in self._flights.items() if turn.member == member.name
                ]:
                    await flight.is_over.wait()
                facts = await self._identify(member)
                for slot in range(member.slots):
                    await self._reset(member, slot)
        except (MemberFailed, UnexpectedStatusWord, RemoteProtocolError) as error:
            facts, why = None, str(error)
        if self._members.get(member.name) is not member:
            return
        if facts is None:
            self._fail(member, why)
            return
        self._facts[member.name] = facts
        self._pool.ready(member.name, facts, trio.current_time())
        self._tell_who_opens()
        self._say(
            "psam_ready", f"{member.name}: 终端机编号 {facts.number}, {len(facts.levels)} keys"
        )
        self._settle()

    async def _identify(self, member: Member) -> MemberFacts:
        known = member.known(self._places)
        if known is not None:
            return known
        atr = await self._reset(member, 0)

        async def send(command: bytes) -> bytes:
            return await self._transmit(member, 0, command)

        return await converse(identify_and_probe(self._places, member.profile, atr), send)

    async def _clean(self, turn: Turn, before: _Flight | None) -> None:
        """Reset the slot of a turn, once what was on its way is over."""
        if before is not None:
            await before.is_over.wait()
        member = self._members.get(turn.member)
        if member is None or self._pool.state(turn.member) is not MemberState.READY:
            return  # Whoever lets it serve again resets all of it.
        flight = self._flights[turn] = _Flight()
        try:
            await self._reset(member, turn.slot)
        except MemberFailed as error:
            self._fail(member, str(error))
            return
        finally:
            del self._flights[turn]
            flight.is_over.set()
        if self._members.get(turn.member) is member and turn.slot in self._pool.dirty(turn.member):
            self._pool.clean(turn.member, turn.slot)
            self._settle()

    def _clean_soon(self, turn: Turn) -> None:
        """Have the slot of a turn that did not end in order reset, once what is on its way is over."""
        self._start(self._clean, turn, self._stop(turn))

    def _stop(self, turn: Turn) -> _Flight | None:
        flight = self._flights.get(turn)
        if flight is not None:
            flight.scope.cancel()
        return flight

    async def _transmit(self, member: Member, slot: int, command: bytes) -> bytes:
        answer = b""
        with trio.move_on_after(self._times.answer_seconds) as patience:
            answer = await member.transmit(slot, command)
        if patience.cancelled_caught:
            raise MemberFailed(f"no answer within {self._times.answer_seconds:g} s")
        try:
            ResponseApdu.parse_untrusted(answer)
        except RemoteProtocolError as error:
            raise MemberFailed(str(error)) from None
        return answer

    async def _reset(self, member: Member, slot: int) -> bytes:
        with trio.move_on_after(self._times.answer_seconds):
            return await member.reset(slot)
        raise MemberFailed(f"no reset within {self._times.answer_seconds:g} s")

    # Time -------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Have the pool decide, and see to it that this happens again in time."""
        until = self._decide()
        if until < self._sleeps_until:
            self._sleeps_until = until
            self._woken.set()

    def _decide(self) -> float:
        """Have the pool decide, and tell whom it concerns; return when something happens by itself."""
        now = trio.current_time()
        for event in self._pool.settle(now):
            if isinstance(event, Granted):
                waiter = self._waiters[event.ticket]
                waiter.turn = event.turn
                waiter.event.set()
            elif isinstance(event, Expired):
                self._refuse(event.ticket, PoolExhausted.retry_in(event.retry_milliseconds))
            else:
                self._clean_soon(event.turn)
        for name in self._pool.due_probes(now):
            self._start(self._read, self._members[name])
        self._close_unused(now)
        return min([self._pool.next_moment(), *self._next_unused()])

    def _close_unused(self, now: float) -> None:
        while self._open:
            lent, used = next(iter(self._open.items()))
            if used + self._times.open_seconds > now:
                return
            self._end(lent)

    def _next_unused(self) -> list[float]:
        # The first one alone: there may be thousands, and this is asked with every turn.
        return [used + self._times.open_seconds for used in islice(self._open.values(), 1)]

    def _start(self, do: Callable[..., Awaitable[None]], *args: object) -> None:
        # Before it runs, and after it has ended, nobody uses a member any more.
        if self._nursery is not None:
            self._nursery.start_soon(do, *args)

    def _refuse(self, ticket: Ticket, refusal: Refusal) -> None:
        waiter = self._waiters[ticket]
        waiter.refusal = refusal
        waiter.event.set()
