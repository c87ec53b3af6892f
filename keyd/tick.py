"""The way in of the pipeline: the requests of one tick are authorised, limited, and computed as one batch.

Services are generators that yield what they need computed; the tasks of all of them go to the `Sam` as one batch, again
and again until all have answered. A service that needs a key of the pool is left where it stands, and its request
leaves the tick (`keyd.late`). What has become of each request is then recorded and answered in one go, by
`keyd.answering`.
"""

from __future__ import annotations

from types import GeneratorType
from typing import TYPE_CHECKING, Any, cast

import msgspec
from msgspec.structs import replace

from keyd.answering import UNKNOWN_METHOD, Answering, Asked, Pass
from keyd.errors import BadParameter, Internal, Malformed, MethodUnknown, NotAllowed, Refusal
from keyd.handlers import HANDLERS
from keyd.handlers.opened import drop, opened_for, turn_for
from keyd.late import Late, Running, Slow
from keyd.leaving import resume
from keyd.protocol.commands import BATCHES, BY_REQUEST, MAX_BATCH, TABLE, Command, Cost
from keyd.roles import authorise, is_governed

if TYPE_CHECKING:
    from keyd.answering import Decided, ShortCut
    from keyd.gate import Gate
    from keyd.handlers.services import Services
    from keyd.keys.sam import CardKeyRef, SamTask
    from keyd.protocol.connection import Ask
    from keyd.protocol.fields import Request, Response
    from keyd.recorder import Recorder
    from keyd.telemetry import Events, Meter
    from keyd.terminals import KnownTerminal, Session


class Tick:
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
        self._answering = Answering(services, events, recorder, gate)
        self._running: list[Running] = []
        self._leaving: list[Running] = []

    def start(self, session: Session, ask: Ask) -> None:
        """Authorise and limit one request, and take its service to the first thing it needs."""
        answering = self._answering
        first = len(answering.outcomes)
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
                answering.put(MethodUnknown())
            else:
                items = self._start_batch(session, command, ask)
        number = terminal = 0
        if self._recorder is not None and command is not None and command.audited:
            numbers = self._recorder.numbers
            number = numbers.methods[command.method]
            # Whoever has just authenticated is recorded as who did.
            terminal = answering.terminal_number(session)
        is_authentication = session.terminal is not before and session.terminal is not None
        answering.asked.append(
            Asked(session, ask.msgid, method, first, items, number, terminal, is_authentication)
        )

    def _start_batch(self, session: Session, command: Command, ask: Ask) -> int | None:
        """Start the items of a batch and return how many; None if it is none, and refused as a whole."""
        items = ask.params[0] if len(ask.params) == 1 else None
        if type(items) is not list or not 1 <= len(items) <= MAX_BATCH:
            self._answering.put(
                BadParameter(f"a batch is one list of 1 to {MAX_BATCH} parameter lists")
            )
            return None
        for params in items:
            self._start_one(session, command, ask.msgid, params)
        return len(items)

    def _start_one(
        self, session: Session, command: Command, msgid: int | None, params: Any
    ) -> None:
        place = len(self._answering.outcomes)
        request: Request[Any] | None = None
        outcome: Response | Refusal | Slow | None = None
        key: CardKeyRef | None = None
        passed = Pass(session.terminal)
        try:
            if msgid is None:
                raise Malformed("keyd takes no notifications: ask with a msgid")  # noqa: TRY301
            authorise(session, command, self._services, self._recorder)
            gate = self._gate
            asker = session.terminal if is_governed(session, command) else None
            if gate is not None and asker is not None:
                gate.require_method(asker, command.method)
            # Without builtin_types, a string would be taken for bytes in base64.
            request = msgspec.convert(params, command.request, builtin_types=(bytes,))
            if gate is not None and asker is not None:
                until = gate.admit(asker, command.method, request, self._answering.moment())
                passed = Pass(asker, until)
                self._require_still(gate, asker, session, request)
            if command.cost is Cost.SLOW:
                outcome = self._slow(session, command, msgid, request)
            else:
                answer = HANDLERS[command.request](request, session, self._services)
                if type(answer) is GeneratorType:
                    tasks = next(answer)
                    if self._routing is None:
                        self._running.append(Running(place, answer, tasks))
                    else:
                        self._go_on(Running(place, answer, tasks))
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
        self._answering.put(outcome, request, key, passed)

    def _slow(
        self, session: Session, command: Command, msgid: int | None, request: Request[Any]
    ) -> Slow:
        by = self._answering.terminal_number(session)
        if self._answering.loss is not None and command.audited:
            # It could not be recorded whose it is.
            raise self._answering.loss
        turn = turn_for(session, request)
        return Slow(msgid, command, request, session, by, turn=turn)

    def _go_on(self, service: Running) -> None:
        """Let a service have its tasks computed in this tick, or leave it if one is the pool's."""
        routing = self._routing
        if routing is not None and routing.has_pooled(service.tasks):
            self._leaving.append(service)
        else:
            self._running.append(service)

    def _require_still(
        self, gate: Gate, asker: KnownTerminal, session: Session, request: Request[Any]
    ) -> None:
        """Refuse a request to a PSAM that its terminal could not open now, and give the PSAM back."""
        opened = opened_for(session, request)
        if opened is None:
            return
        method = BY_REQUEST[type(opened.ask)].method
        try:
            gate.require_still(asker, method, opened.ask, self._answering.moment())
        except NotAllowed:
            drop(session, opened)
            raise

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

    def _compute_alone(self, service: Running) -> None:
        try:
            results = self._services.sam.compute(service.tasks)
        except Exception as error:  # noqa: BLE001 - a bug must cost one answer, not the daemon
            self._answering.outcomes[service.place] = self._answering.bug(error, service.place)
        else:
            self._advance(service, results)

    def _advance(self, service: Running, results: list[bytes | Refusal]) -> None:
        """Give a service its results and take it to the next thing it needs, or to its answer."""
        place, steps = service.place, service.steps
        outcomes = self._answering.outcomes
        try:
            self._go_on(Running(place, steps, resume(steps, results)))
        except StopIteration as stop:
            outcomes[place] = stop.value
        except Refusal as refusal:
            outcomes[place] = refusal
        except Exception as error:  # noqa: BLE001 - a bug must cost one answer, not the daemon
            outcomes[place] = self._answering.bug(error, place)

    def finish(self, meter: Meter, short_cut: ShortCut | None) -> Decided:
        """Let leave what has to, then record, measure, log and encode."""
        if self._leaving:
            self._let_leave()
        return self._answering.finish(meter, short_cut)

    def _let_leave(self) -> None:
        """Make Slow ones of the requests of which a service leaves: a batch is answered as a whole.

        What of a batch is done already goes with the rest and is recorded with it, so each item is recorded once.
        """
        answering = self._answering
        leaving = {service.place: service for service in self._leaving}
        for at, asked in enumerate(answering.asked):
            first, end = asked.first, asked.first + (asked.items or 1)
            places = sorted(leaving.keys() & range(first, end))
            if not places:
                continue
            if answering.loss is not None:
                # It could not be recorded whose it is.
                for place in places:
                    answering.outcomes[place] = answering.loss
                continue
            waiting = [replace(leaving[place], place=place - first) for place in places]
            late = Late(answering.part(asked), waiting, self._services, self._recorder)
            request = cast("Request[Any]", answering.requests[places[0]])
            command = BY_REQUEST[type(request)]
            slow = Slow(asked.msgid, command, request, asked.session, asked.terminal, late)
            answering.outcomes[first:end] = [slow] * (end - first)
            answering.asked[at] = replace(asked, items=None)
