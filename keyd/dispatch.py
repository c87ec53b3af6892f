"""The pipeline: authorise, limit, compute as one batch, record, measure, log. Written once, for every command.

`Dispatch.run` takes everything that arrived in a tick, from all connections, and returns an answer for each,
in order. Services are generators that yield what they need computed; the tasks of all of them go to the `Sam`
as one batch, again and again until all have answered. Then the uses of the whole tick go to the journal, and only
then are there answers. It is a plain function: no trio, no waiting, and no I/O but that one append. Work that must
wait comes back as `Slow`, for the hub to run beside the tick: an async handler, or a request some of whose services
need a key that is in the pool. Such a request takes the rest of the same path when its services are done.
"""

from __future__ import annotations

import contextlib
from collections import Counter as Counts
from functools import partial
from types import GeneratorType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, cast

import msgspec
from msgspec.structs import replace

from keyd.errors import (
    AuditUnavailable,
    BadParameter,
    Internal,
    Malformed,
    MethodUnknown,
    NotAllowed,
    NotAuthenticated,
    Refusal,
    RoleMissing,
    Sealed,
    SelftestFailed,
    Status,
)
from keyd.handlers import HANDLERS
from keyd.handlers.opened import drop, opened_for, turn_for
from keyd.leaving import finish_service, resume, side_by_side
from keyd.needs import GOVERNED
from keyd.policy import FOREVER
from keyd.protocol.commands import BATCHES, BY_REQUEST, MAX_BATCH, TABLE, Command, Cost, Role
from keyd.protocol.connection import ServerConnection, answer_bytes, refusal_bytes, refusal_on_wire
from keyd.protocol.messages.terminal import KeydSigned
from keyd.uses import USE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from keyd.crypto.selftest import SelftestResult
    from keyd.gate import Gate
    from keyd.handlers.in_order import Turn
    from keyd.handlers.services import Services
    from keyd.keys.sam import CardKeyRef, SamTask, Steps
    from keyd.protocol.connection import Ask
    from keyd.protocol.fields import Request, Response
    from keyd.recorder import Recorder
    from keyd.telemetry import Events, Meter
    from keyd.terminals import KnownTerminal, Line, Moment, Session

# What a method is called in metrics when there is no such method: a peer must not make up label values.
UNKNOWN_METHOD: Final = "unknown"

# A connection's number has 4 bytes in a record. After four thousand million of them it begins again.
_CONNECTION_MASK: Final = 0xFFFF_FFFF

DONE_UNRECORDED: Final = (
    "the journal cannot be written. It may have been done: look before you ask again"
)

# What a sealed keyd answers: how it does, and unsealing.
_WHILE_SEALED: Final = frozenset({Role.OPERATOR, Role.ADMINISTRATION, Role.OFFICER})

# What did not verify; so many of them with one card are strange.
_NOT_AUTHENTIC: Final = frozenset(
    {Status.CARD_NOT_AUTHENTIC, Status.MAC_NOT_AUTHENTIC, Status.TAC_NOT_AUTHENTIC}
)

_ENROLMENT: Final = "on this line machines ask for a certificate, and for nothing else"
_NO_ENROLMENT: Final = "this is asked on an enrolment line, and nowhere else"

_NO_PLACES: Final[frozenset[int]] = frozenset()


class Slow(msgspec.Struct, frozen=True, gc=False):
    """Work that leaves the tick: await it with `Dispatch.run_slow`, then send what that returns."""

    msgid: int | None
    command: Command
    request: Request[Any]
    session: Session
    # The number of the terminal that asked; who is authenticated when it is done may be somebody else.
    terminal: int = 0
    # Where the request left a tick with services in the middle: what is to be done of it.
    late: _Tick | None = None
    # Its place among the requests to one open PSAM, taken as it arrived. Tasks are started in any order.
    turn: Turn | None = None


class Decided(NamedTuple):
    """Answers, and until when to keep them."""

    answers: list[bytes | Slow]
    # They may leave once the journal is durable up to here; 0 if at once.
    position: int = 0
    # Which of the answers wait for nothing, since they leave no record.
    free: frozenset[int] = _NO_PLACES


class _Running(msgspec.Struct, frozen=True, gc=False):
    """A service in the middle of its steps, and the place its outcome goes to."""

    place: int
    steps: Steps[Response]
    tasks: tuple[SamTask, ...]


class _Leaving(msgspec.Struct, frozen=True, gc=False):
    """A service in the middle of its steps that wants a key of the pool: its outcome comes after the tick."""

    steps: Steps[Response]
    tasks: tuple[SamTask, ...]


class _Asked(msgspec.Struct, frozen=True, gc=False):
    """A request of the tick, for the end of the pipeline: where its outcomes are and what to call it."""

    session: Session
    msgid: int | None
    method: str
    first: int
    # None for a single request, the number of items for a batch.
    items: int | None
    # For the journal: the numbers of the method and the terminal. A method without one leaves no record.
    number: int
    terminal: int
    # Whether it made the connection a terminal's.
    is_authentication: bool


class Pass(NamedTuple):
    """Who was let through, and until when its like is (seconds since 1970)."""

    terminal: KnownTerminal | None
    until: int = FOREVER


_NOBODY: Final = Pass(None)


class ShortCut(Protocol):
    """Something that answers requests like those that it has learnt, without this pipeline."""

    def learn(self, request: Request[Any], passed: Pass) -> None:
        """Take note of a request that has just been answered well, and who was let through with it."""

    def forget(self) -> None:
        """Answer nothing any more until something is learnt again."""

    @property
    def until(self) -> float:
        """The first moment at which something that was learnt may be another way: seconds since 1970."""


class Dispatch:
    """One keyd's pipeline."""

    def __init__(
        self, services: Services, meter: Meter, events: Events, recorder: Recorder | None = None
    ) -> None:
        self._services = services
        self._meter = meter
        self._events = events
        # Without one there is no journal, and nothing waits for it.
        self.recorder = recorder
        # Without one, every terminal may ask for everything.
        self.gate: Gate | None = None
        self.short_cut: ShortCut | None = None
        # The self-test that the metrics tell of.
        self._shown: Sequence[SelftestResult] | None = None

    def run(self, asks: Sequence[tuple[Session, Ask]]) -> Decided:
        """Decide on everything that arrived in a tick; return an answer for each, in order.

        Every audited one is in the journal by then. If the journal could not be written, they all are refused.
        """
        tick = _Tick(self._services, self._events, self.recorder, self.gate)
        for session, ask in asks:
            tick.start(session, ask)
        tick.compute()
        return tick.finish(self._meter, self.short_cut)

    def look_at_clock(self) -> None:
        """Let the short cut forget what its rules no longer allow."""
        short_cut = self.short_cut
        if short_cut is not None and short_cut.until <= self._services.now():
            short_cut.forget()

    def allows_line(self, line: Line, now_unix: int) -> bool:
        """Whether the registry lets whoever has this line's certificate have a line, at this time in Unix seconds."""
        return self._services.terminals.allows_line(line, now_unix)

    def sample_pumped(self, session: Session, request_bytes: bytes, times: int) -> None:
        """Log one of the requests that the pump has answered, if one is due."""
        if not self._events.wants_answered(times):
            return
        connection = ServerConnection()
        connection.receive_data_untrusted(request_bytes)
        for ask in connection.next_asks_untrusted(1):
            request = msgspec.convert(ask.params, TABLE[ask.method].request, builtin_types=(bytes,))
            self._events.answered(ask.method, request, **_who(session))

    async def run_slow(self, slow: Slow) -> Decided:
        """Do the work that left the tick, record it and return its answer."""
        if slow.late is not None:
            await slow.late.compute_late()
            return slow.late.finish(self._meter, None)
        handler: Callable[..., Awaitable[Response]] = HANDLERS[slow.command.request]  # type: ignore[assignment]
        # A command whose cost is SLOW has an async handler; tests/protocol/test_commands.py sees to it.
        outcome: Response | Refusal
        try:
            async with slow.turn or contextlib.nullcontext():
                outcome = await handler(slow.request, slow.session, self._services)
        except Refusal as refusal:
            outcome = refusal
        except Exception as error:  # noqa: BLE001 - a bug must cost one answer, not the daemon
            self._events.bug("handler_failed", error, method=slow.command.method)
            outcome = Internal()
        outcome, position = self._record_slow(slow, outcome)
        status = outcome.status if isinstance(outcome, Refusal) else Status.OK
        self._meter.count({(slow.command.method, status): 1})
        self._show_selftest()
        if self._services.has_failed_selftest and self.short_cut is not None:
            # Only the long way refuses.
            self.short_cut.forget()
        return _decided(slow, outcome, position)

    def _show_selftest(self) -> None:
        # Most that leaves the tick runs none, and to show one costs as much as to answer a short command.
        results = self._services.selftest
        if results is not self._shown:
            self._shown = results
            self._meter.show_selftest(results)

    def refuse_slow(self, slow: Slow, refusal: Refusal) -> Decided:
        """Record that work was refused before it began, and return the answer."""
        if slow.late is not None:
            slow.late.refuse_late(refusal)
            return slow.late.finish(self._meter, None)
        if slow.turn is not None:
            slow.turn.give_up()
        return _decided(slow, *self._record_slow(slow, refusal))

    def _record_slow(
        self, slow: Slow, outcome: Response | Refusal
    ) -> tuple[Response | Refusal, int]:
        recorder = self.recorder
        notes = self._services.terminals.take_notes(self._services.clock())
        if recorder is None or not slow.command.audited:
            return outcome, 0
        numbers, session = recorder.numbers, slow.session
        is_authentication = isinstance(outcome, KeydSigned)
        try:
            use = USE.pack(
                numbers.methods[slow.command.method],
                outcome.status if isinstance(outcome, Refusal) else Status.OK,
                session.number & _CONNECTION_MASK,
                # Whoever has just authenticated is recorded as who did.
                numbers.terminal(session) if is_authentication else slow.terminal,
                0,
                numbers.card_id(slow.request),
            )
            position = recorder.append(use, notes)
        except AuditUnavailable as refusal:
            if is_authentication:
                session.leave()
                return refusal, 0
            # An officer's work has a record of its own, in the store; only its answer has none.
            return AuditUnavailable(DONE_UNRECORDED), 0
        if is_authentication:
            session.recorded_at = position
        return outcome, position


def _decided(slow: Slow, outcome: Response | Refusal, position: int) -> Decided:
    if isinstance(outcome, Refusal):
        return Decided([refusal_bytes(slow.msgid, outcome)], position)
    return Decided([answer_bytes(slow.msgid, outcome)], position)


class _Tick:
    """The requests of one tick on their way through the pipeline."""

    def __init__(
        self, services: Services, events: Events, recorder: Recorder | None, gate: Gate | None
    ) -> None:
        self._services = services
        self._events = events
        self._recorder = recorder
        self._gate = gate
        # None where every key is the ring's.
        self._routing = services.routing
        # When this tick decides; looked at once, and only if somebody asks.
        self._now: Moment | None = None
        self._asked: list[_Asked] = []
        self._outcomes: list[Response | Refusal | Slow | _Leaving | None] = []
        self._requests: list[Request[Any] | None] = []
        # The first key that each needs. A service that needs two needs both under the card that it is about.
        self._keys: list[CardKeyRef | None] = []
        self._passes: list[Pass] = []
        self._running: list[_Running] = []
        # The places of services that leave.
        self._leaving: list[int] = []
        # Why nothing of this tick can be recorded.
        self._loss: AuditUnavailable | None = None

    def start(self, session: Session, ask: Ask) -> None:
        """Authorise and limit one request, and take its service to the first thing it needs."""
        first = len(self._outcomes)
        before = session.terminal
        items: int | None = None
        method = ask.method
        command = TABLE.get(method)
        if command is not None:
            self._start_one(session, command, ask.msgid, ask.params)
        else:
            command = BATCHES.get(method)
            if command is None:
                method = UNKNOWN_METHOD
                self._put(MethodUnknown())
            else:
                items = self._start_batch(session, command, ask)
        number = terminal = 0
        if self._recorder is not None and command is not None and command.audited:
            numbers = self._recorder.numbers
            number = numbers.methods[command.method]
            # Whoever has just authenticated is recorded as who did.
            terminal = self._terminal(session)
        is_authentication = session.terminal is not before and session.terminal is not None
        self._asked.append(
            _Asked(session, ask.msgid, method, first, items, number, terminal, is_authentication)
        )

    def _start_batch(self, session: Session, command: Command, ask: Ask) -> int | None:
        """Start the items of a batch and return how many; None if it is none, and refused as a whole."""
        items = ask.params[0] if len(ask.params) == 1 else None
        if type(items) is not list or not 1 <= len(items) <= MAX_BATCH:
            self._put(BadParameter(f"a batch is one list of 1 to {MAX_BATCH} parameter lists"))
            return None
        for params in items:
            self._start_one(session, command, ask.msgid, params)
        return len(items)

    def _terminal(self, session: Session) -> int:
        recorder = self._recorder
        if recorder is None or recorder.unavailable_because is not None:
            return 0  # nothing will be recorded
        try:
            return recorder.numbers.terminal(session)
        except AuditUnavailable as refusal:
            self._loss = refusal
            return 0

    def _start_one(
        self, session: Session, command: Command, msgid: int | None, params: Any
    ) -> None:
        place = len(self._outcomes)
        request: Request[Any] | None = None
        outcome: Response | Refusal | Slow | _Leaving | None = None
        key: CardKeyRef | None = None
        passed = Pass(session.terminal)
        try:
            if msgid is None:
                raise Malformed("keyd takes no notifications: ask with a msgid")  # noqa: TRY301
            self._authorise(session, command)
            gate = self._gate
            asker = session.terminal if _is_governed(session, command) else None
            if gate is not None and asker is not None:
                gate.require_method(asker, command.method)
            # Without builtin_types, a string would be taken for bytes in base64.
            request = msgspec.convert(params, command.request, builtin_types=(bytes,))
            if gate is not None and asker is not None:
                until = gate.admit(asker, command.method, request, self._moment())
                passed = Pass(asker, until)
                self._require_still(gate, asker, session, request)
            if command.cost is Cost.SLOW:
                turn = turn_for(session, request)
                by = self._terminal(session)
                outcome = Slow(msgid, command, request, session, by, turn=turn)
            else:
                answer = HANDLERS[command.request](request, session, self._services)
                if type(answer) is GeneratorType:
                    tasks = next(answer)
                    if self._routing is None:
                        self._running.append(_Running(place, answer, tasks))
                    else:
                        outcome = self._go_on(place, answer, tasks)
                    key = tasks[0].key if tasks else None
                else:
                    outcome = answer  # type: ignore[assignment]  # SLOW ones alone are awaitable
        except Refusal as refusal:
            outcome = refusal
        except msgspec.ValidationError as error:
            outcome = BadParameter(str(error))
        except StopIteration as stop:
            outcome = stop.value
        except Exception as error:  # noqa: BLE001 - a bug must cost one answer, not the daemon
            self._events.bug("handler_failed", error, method=command.method)
            outcome = Internal()
        self._put(outcome, request, key, passed)

    def _go_on(
        self, place: int, steps: Steps[Response], tasks: tuple[SamTask, ...]
    ) -> _Leaving | None:
        """Let a service have its tasks computed in this tick; if one is the pool's, return that it leaves."""
        routing = self._routing
        if routing is not None and routing.has_pooled(tasks):
            self._leaving.append(place)
            return _Leaving(steps, tasks)
        self._running.append(_Running(place, steps, tasks))
        return None

    def _require_still(
        self, gate: Gate, asker: KnownTerminal, session: Session, request: Request[Any]
    ) -> None:
        """Refuse a request to a PSAM that its terminal could not open now, and give the PSAM back."""
        opened = opened_for(session, request)
        if opened is None:
            return
        method = BY_REQUEST[type(opened.ask)].method
        try:
            gate.require_still(asker, method, opened.ask, self._moment())
        except NotAllowed:
            drop(session, opened)
            raise

    def _moment(self) -> Moment:
        if self._now is None:
            self._now = self._services.moment()
        return self._now

    def _authorise(self, session: Session, command: Command) -> None:
        role = command.role
        if session.is_enrolment is not (role is Role.ENROLMENT):
            raise RoleMissing(_ENROLMENT if session.is_enrolment else _NO_ENROLMENT)
        if self._services.is_sealed and role not in _WHILE_SEALED:
            raise Sealed
        recorder = self._recorder
        if command.audited and recorder is not None and recorder.unavailable_because is not None:
            # Before any key is used and anybody becomes anybody.
            raise AuditUnavailable
        if role in (Role.ANYONE, Role.ENROLMENT):
            return
        if role is Role.ADMINISTRATION:
            if not session.is_administration:
                raise RoleMissing("this is asked on the administration's socket, and nowhere else")
            return
        if role is Role.OFFICER:
            raise RoleMissing("an officer signs this: officer.command carries it")
        session.expire(self._services.clock())
        if session.terminal is None and not (role is Role.OPERATOR and session.is_operator):
            raise NotAuthenticated
        if self._services.has_failed_selftest and role is not Role.OPERATOR:
            raise SelftestFailed

    def compute(self) -> None:
        """Hand all tasks to the Sam as one batch, and its results back, until every service is done."""
        while self._running:
            running, self._running = self._running, []
            batch: list[SamTask] = []
            for service in running:
                batch += service.tasks
            try:
                results = self._services.sam.compute(batch)
            except Exception:  # noqa: BLE001 - whose fault it was is found, and logged, one by one
                for service in running:
                    self._compute_alone(service)
                continue
            at = 0
            for service in running:
                end = at + len(service.tasks)
                self._advance(service, results[at:end])
                at = end

    def _compute_alone(self, service: _Running) -> None:
        try:
            results = self._services.sam.compute(service.tasks)
        except Exception as error:  # noqa: BLE001 - a bug must cost one answer, not the daemon
            self._outcomes[service.place] = self._bug(error, service.place)
        else:
            self._advance(service, results)

    def _advance(self, service: _Running, results: list[bytes | Refusal]) -> None:
        """Give a service its results and take it to the next thing it needs, or to its answer."""
        place, steps = service.place, service.steps
        try:
            self._outcomes[place] = self._go_on(place, steps, resume(steps, results))
        except StopIteration as stop:
            self._outcomes[place] = stop.value
        except Refusal as refusal:
            self._outcomes[place] = refusal
        except Exception as error:  # noqa: BLE001 - a bug must cost one answer, not the daemon
            self._outcomes[place] = self._bug(error, place)

    def finish(self, meter: Meter, short_cut: ShortCut | None) -> Decided:
        """Record, measure, log and encode."""
        if self._leaving:
            self._let_leave()
        # Without a journal nobody reads them, and they are not to gather.
        notes = self._services.terminals.take_notes(self._services.clock())
        position = 0 if self._recorder is None else self._record(self._recorder, notes)
        answers = self._encode(meter, short_cut)
        if not position:
            return Decided(answers)
        free = frozenset(at for at, asked in enumerate(self._asked) if not asked.number)
        return Decided(answers, position, free)

    # What leaves the tick ---------------------------------------------------------------------------------

    def _let_leave(self) -> None:
        """Make Slow ones of the requests of which a service leaves: a batch is answered as a whole.

        What of a batch is done already goes with the rest and is recorded with it, so each item is recorded once.
        """
        leaving, self._leaving = set(self._leaving), []
        for at, asked in enumerate(self._asked):
            end = asked.first + (asked.items or 1)
            places = sorted(leaving.intersection(range(asked.first, end)))
            if not places:
                continue
            if self._loss is not None:
                # It could not be recorded whose it is.
                for place in places:
                    self._outcomes[place] = self._loss
                continue
            late = self._late(asked, slice(asked.first, end), places)
            request = cast("Request[Any]", self._requests[places[0]])
            command = BY_REQUEST[type(request)]
            slow = Slow(asked.msgid, command, request, asked.session, asked.terminal, late)
            self._outcomes[asked.first : end] = [slow] * (end - asked.first)
            self._asked[at] = replace(asked, items=None)

    def _late(self, asked: _Asked, all_places: slice, leaving: list[int]) -> _Tick:
        """Return what takes one request the rest of its way."""
        late = _Tick(self._services, self._events, self._recorder, self._gate)
        late._asked = [replace(asked, first=0)]
        late._outcomes = self._outcomes[all_places]
        late._requests = self._requests[all_places]
        late._keys = self._keys[all_places]
        late._passes = self._passes[all_places]
        late._leaving = [place - asked.first for place in leaving]
        return late

    async def compute_late(self) -> None:
        """Take the services that left a tick to their ends, side by side."""
        recorder, (asked,) = self._recorder, self._asked
        if asked.number and recorder is not None and recorder.unavailable_because is not None:
            # Before any key is used.
            self.refuse_late(AuditUnavailable())
            return
        places, self._leaving = self._leaving, []
        await side_by_side([partial(self._finish_service, place) for place in places])

    def refuse_late(self, refusal: Refusal) -> None:
        """Refuse the services that left a tick, before they went on."""
        places, self._leaving = self._leaving, []
        for place in places:
            self._outcomes[place] = refusal

    async def _finish_service(self, place: int) -> None:
        leaving = cast("_Leaving", self._outcomes[place])
        terminal = self._passes[place].terminal
        code = "" if terminal is None else terminal.code
        try:
            self._outcomes[place] = await finish_service(
                leaving.steps, leaving.tasks, self._services, code
            )
        except Exception as error:  # noqa: BLE001 - a bug must cost one answer, not the daemon
            self._outcomes[place] = self._bug(error, place)

    # Records and answers ----------------------------------------------------------------------------------

    def _record(self, recorder: Recorder, notes: list[dict[str, Any]]) -> int:
        """Append the uses and notes of the whole tick as one frame. Returns the position that answers wait for."""
        position = 0
        try:
            uses = self._uses(recorder)
            if self._loss is not None:
                raise self._loss
            if uses or notes:
                position = recorder.append(uses, notes)
        except AuditUnavailable as refusal:
            self._withhold(refusal)
            return 0
        for asked in self._asked:
            if asked.is_authentication:
                asked.session.recorded_at = position
        return position

    def _uses(self, recorder: Recorder) -> bytes:
        numbers, routing = recorder.numbers, self._routing
        uses = []
        for asked in self._asked:
            if not asked.number:
                continue
            connection = asked.session.number & _CONNECTION_MASK
            for place in range(asked.first, asked.first + (asked.items or 1)):
                outcome = self._outcomes[place]
                status = Status.OK
                if isinstance(outcome, Refusal):
                    status = outcome.status
                    if status is Status.AUDIT_UNAVAILABLE:
                        continue  # it cannot be recorded: that is what it says
                elif isinstance(outcome, Slow):
                    continue  # it is recorded when it is done
                key = self._keys[place]
                if key is None:
                    key_number = 0
                elif routing is not None and routing.is_pooled(key):
                    key_number = numbers.pooled_key(key.address, key.algorithm)
                else:
                    key_number = numbers.key(key.address, key.algorithm, key.purpose)
                uses.append(
                    USE.pack(
                        asked.number,
                        status,
                        connection,
                        asked.terminal,
                        key_number,
                        numbers.card_id(self._requests[place]),
                    )
                )
        return b"".join(uses)

    def _withhold(self, refusal: AuditUnavailable) -> None:
        """Refuse all that should have been recorded: an answer that the journal missed never happened."""
        for asked in self._asked:
            if not asked.number:
                continue
            if asked.is_authentication:
                asked.session.leave()
            for place in range(asked.first, asked.first + (asked.items or 1)):
                if not isinstance(self._outcomes[place], Slow):
                    self._outcomes[place] = refusal

    def _encode(self, meter: Meter, short_cut: ShortCut | None) -> list[bytes | Slow]:
        counts: Counts[tuple[str, Status]] = Counts()
        answers: list[bytes | Slow] = []
        outcomes = self._outcomes
        for asked in self._asked:
            if asked.items is None:
                outcome = outcomes[asked.first]
                if isinstance(outcome, Slow):
                    answers.append(outcome)
                    continue
                if isinstance(outcome, Refusal):
                    counts[asked.method, outcome.status] += 1
                    self._note_refusal(asked, outcome, asked.first)
                    answers.append(refusal_bytes(asked.msgid, outcome))
                    continue
                counts[asked.method, Status.OK] += 1
                request = self._requests[asked.first]
                if short_cut is not None and request is not None:
                    short_cut.learn(request, self._passes[asked.first])
                answers.append(answer_bytes(asked.msgid, outcome))
                continue
            items: list[tuple[Any, Any]] = []
            for place in range(asked.first, asked.first + asked.items):
                outcome = outcomes[place]
                if isinstance(outcome, Refusal):
                    counts[asked.method, outcome.status] += 1
                    self._note_refusal(asked, outcome, place)
                    items.append((refusal_on_wire(outcome), None))
                else:
                    counts[asked.method, Status.OK] += 1
                    items.append((None, outcome))
            answers.append(answer_bytes(asked.msgid, items))
        meter.count(counts)
        self._sample()
        return answers

    def _put(
        self,
        outcome: Response | Refusal | Slow | _Leaving | None,
        request: Request[Any] | None = None,
        key: CardKeyRef | None = None,
        passed: Pass = _NOBODY,
    ) -> None:
        self._outcomes.append(outcome)
        self._requests.append(request)
        self._keys.append(key)
        self._passes.append(passed)

    def _note_refusal(self, asked: _Asked, refusal: Refusal, place: int) -> None:
        request = self._requests[place]
        who = _who(asked.session)
        if isinstance(refusal, NotAllowed):
            # For whoever reads the log; the peer need not learn where the policy is open.
            who["policy_line"] = refusal.line
        self._events.refused(asked.method, refusal, request, **who)
        if self._gate is None or refusal.status not in _NOT_AUTHENTIC:
            return
        terminal = self._passes[place].terminal
        if request is not None and terminal is not None:
            self._gate.notice_failure(terminal, request, self._moment())

    def _sample(self) -> None:
        if self._asked and self._events.wants_answered(len(self._asked)):
            asked = self._asked[-1]
            request = self._requests[-1]
            if request is not None and not isinstance(self._outcomes[-1], Refusal | Slow):
                self._events.answered(asked.method, request, **_who(asked.session))

    def _bug(self, error: Exception, place: int) -> Internal:
        request = self._requests[place]
        method = BY_REQUEST[type(request)].method if request is not None else UNKNOWN_METHOD
        self._events.bug("handler_failed", error, method=method)
        return Internal()


def _is_governed(session: Session, command: Command) -> bool:
    """Whether it is the policy's to decide. An operator on the Unix socket has no roles."""
    is_operators = command.role is Role.OPERATOR and session.is_operator
    return command.role in GOVERNED and not is_operators


def _who(session: Session) -> dict[str, Any]:
    terminal = session.terminal
    return {"connection": session.number, "terminal": terminal.code if terminal else None}
