"""The pipeline: authorise, limit, compute as one batch, record, measure, log. Written once, for every command.

`Dispatch.run` takes everything that arrived in a tick, from all connections, and returns an answer for each,
in order. It is a plain function: no trio, no waiting, and no I/O but that one append to the journal. On the way in
(`keyd.tick`) requests are decided and computed; on the way out (`keyd.answering`) the uses of the whole tick go to the
journal, and only then are there answers. Work that must wait comes back as `Slow`, for the hub to run beside the tick
(`keyd.late`).
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

import msgspec

from keyd.answering import UNKNOWN_METHOD, Decided, Pass, ShortCut, who
from keyd.errors import AuditUnavailable, Internal, Refusal, Status
from keyd.handlers import HANDLERS
from keyd.late import Slow
from keyd.protocol.commands import TABLE
from keyd.protocol.connection import ServerConnection, answer_bytes, refusal_bytes
from keyd.protocol.messages.terminal import KeydSigned
from keyd.tick import Tick
from keyd.uses import CONNECTION_MASK, USE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from keyd.crypto.selftest import SelftestResult
    from keyd.gate import Gate
    from keyd.handlers.services import Services
    from keyd.protocol.connection import Ask
    from keyd.protocol.fields import Response
    from keyd.recorder import Recorder
    from keyd.telemetry import Events, Meter
    from keyd.terminals import Line, Session

__all__ = ["UNKNOWN_METHOD", "Decided", "Dispatch", "Pass", "ShortCut", "Slow"]

DONE_UNRECORDED: Final = (
    "the journal cannot be written. It may have been done: look before you ask again"
)


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
        tick = Tick(self._services, self._events, self.recorder, self.gate)
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
            self._events.answered(ask.method, request, **who(session))

    async def run_slow(self, slow: Slow) -> Decided:
        """Do the work that left the tick, record it and return its answer."""
        if slow.late is not None:
            await slow.late.compute()
            return slow.late.finish(self._meter)
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
            slow.late.refuse(refusal)
            return slow.late.finish(self._meter)
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
            method = numbers.methods[slow.command.method]
            status = outcome.status if isinstance(outcome, Refusal) else Status.OK
            # Whoever has just authenticated is recorded as who did.
            terminal = numbers.terminal(session) if is_authentication else slow.terminal
            connection, card_id = session.number & CONNECTION_MASK, numbers.card_id(slow.request)
            uses = [
                USE.pack(method, status, connection, terminal, key, card_id)
                for key in numbers.lent_keys(slow.request)
            ]
            position = recorder.append(b"".join(uses), notes)
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
