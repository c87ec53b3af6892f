"""The way out of the pipeline: what became of each request is recorded, measured, logged and encoded.

A tick ends here as a whole, and so does, by itself, each request that left one. There is no answer before its record
is in the journal: what the journal missed is refused.
"""

from __future__ import annotations

from collections import Counter as Counts
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import msgspec
from msgspec.structs import replace

from keyd.errors import AuditUnavailable, Internal, NotAllowed, Refusal, Status
from keyd.late import Slow
from keyd.policy import FOREVER
from keyd.protocol.commands import BY_REQUEST
from keyd.protocol.connection import answer_bytes, refusal_bytes, refusal_on_wire
from keyd.uses import CONNECTION_MASK, USE

if TYPE_CHECKING:
    from keyd.gate import Gate
    from keyd.handlers.services import Services
    from keyd.keys.sam import CardKeyRef
    from keyd.protocol.fields import Request, Response
    from keyd.recorder import Recorder
    from keyd.telemetry import Events, Meter
    from keyd.terminals import KnownTerminal, Moment, Session

# What a method is called in metrics when there is no such method: a peer must not make up label values.
UNKNOWN_METHOD: Final = "unknown"

# What did not verify; so many of them with one card are strange.
_NOT_AUTHENTIC: Final = frozenset(
    {Status.CARD_NOT_AUTHENTIC, Status.MAC_NOT_AUTHENTIC, Status.TAC_NOT_AUTHENTIC}
)

_NO_PLACES: Final[frozenset[int]] = frozenset()


class Decided(NamedTuple):
    """Answers, and until when to keep them."""

    answers: list[bytes | Slow]
    # They may leave once the journal is durable up to here; 0 if at once.
    position: int = 0
    # Which of the answers wait for nothing, since they leave no record.
    free: frozenset[int] = _NO_PLACES


class Asked(msgspec.Struct, frozen=True, gc=False):
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


NOBODY: Final = Pass(None)


class ShortCut(Protocol):
    """Something that answers requests like those that it has learnt, without this pipeline."""

    def learn(self, request: Request[Any], passed: Pass) -> None:
        """Take note of a request that has just been answered well, and who was let through with it."""

    def forget(self) -> None:
        """Answer nothing any more until something is learnt again."""

    @property
    def until(self) -> float:
        """The first moment at which something that was learnt may be another way: seconds since 1970."""


class Answering:
    """The requests of one tick, or one that left it, and what has become of them.

    Each has a place, and each item of a batch has one: there are as many outcomes, requests, keys and passes.
    """

    def __init__(
        self, services: Services, events: Events, recorder: Recorder | None, gate: Gate | None
    ) -> None:
        self.asked: list[Asked] = []
        # None while a service is in the middle of its steps.
        self.outcomes: list[Response | Refusal | Slow | None] = []
        self.requests: list[Request[Any] | None] = []
        # The first key that each needs. A service that needs two needs both under the card that it is about.
        self.keys: list[CardKeyRef | None] = []
        self.passes: list[Pass] = []
        # Why nothing of this can be recorded.
        self.loss: AuditUnavailable | None = None
        self._services = services
        self._events = events
        self._recorder = recorder
        self._gate = gate
        # None where every key is the ring's.
        self._routing = services.routing
        # When this is decided; looked at once, and only if somebody asks.
        self._now: Moment | None = None

    def put(
        self,
        outcome: Response | Refusal | Slow | None,
        request: Request[Any] | None = None,
        key: CardKeyRef | None = None,
        passed: Pass = NOBODY,
    ) -> None:
        """Take the next place, for a request or an item of a batch."""
        self.outcomes.append(outcome)
        self.requests.append(request)
        self.keys.append(key)
        self.passes.append(passed)

    def moment(self) -> Moment:
        """Return when this is decided, the same for all of it."""
        if self._now is None:
            self._now = self._services.moment()
        return self._now

    def terminal_number(self, session: Session) -> int:
        """Return the journal's number of the terminal on a connection; 0 if nothing can be recorded."""
        recorder = self._recorder
        if recorder is None or recorder.unavailable_because is not None:
            return 0  # nothing will be recorded
        try:
            return recorder.numbers.terminal(session)
        except AuditUnavailable as refusal:
            self.loss = refusal
            return 0

    def bug(self, error: Exception, place: int) -> Internal:
        """Log a fault of ours, and return all that the peer learns of it."""
        request = self.requests[place]
        method = BY_REQUEST[type(request)].method if request is not None else UNKNOWN_METHOD
        self._events.bug("handler_failed", error, method=method)
        return Internal()

    def part(self, asked: Asked) -> Answering:
        """Return what there is of one request, to be recorded and answered by itself."""
        places = slice(asked.first, asked.first + (asked.items or 1))
        part = Answering(self._services, self._events, self._recorder, self._gate)
        part.asked = [replace(asked, first=0)]
        part.outcomes = self.outcomes[places]
        part.requests = self.requests[places]
        part.keys = self.keys[places]
        part.passes = self.passes[places]
        return part

    def finish(self, meter: Meter, short_cut: ShortCut | None) -> Decided:
        """Record, measure, log and encode."""
        # Without a journal nobody reads them, and they are not to gather.
        notes = self._services.terminals.take_notes(self._services.clock())
        position = 0 if self._recorder is None else self._record(self._recorder, notes)
        answers = self._encode(meter, short_cut)
        if not position:
            return Decided(answers)
        free = frozenset(at for at, asked in enumerate(self.asked) if not asked.number)
        return Decided(answers, position, free)

    def _record(self, recorder: Recorder, notes: list[dict[str, Any]]) -> int:
        """Append the uses and notes of the whole tick as one frame. Returns the position that answers wait for."""
        position = 0
        try:
            uses = self._uses(recorder)
            if self.loss is not None:
                raise self.loss
            if uses or notes:
                position = recorder.append(uses, notes)
        except AuditUnavailable as refusal:
            self._withhold(refusal)
            return 0
        for asked in self.asked:
            if asked.is_authentication:
                asked.session.recorded_at = position
        return position

    def _uses(self, recorder: Recorder) -> bytes:
        numbers, routing = recorder.numbers, self._routing
        uses = []
        for asked in self.asked:
            if not asked.number:
                continue
            connection = asked.session.number & CONNECTION_MASK
            for place in range(asked.first, asked.first + (asked.items or 1)):
                outcome = self.outcomes[place]
                status = Status.OK
                if isinstance(outcome, Refusal):
                    status = outcome.status
                    if status is Status.AUDIT_UNAVAILABLE:
                        continue  # it cannot be recorded: that is what it says
                elif isinstance(outcome, Slow):
                    continue  # it is recorded when it is done
                key = self.keys[place]
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
                        numbers.card_id(self.requests[place]),
                    )
                )
        return b"".join(uses)

    def _withhold(self, refusal: AuditUnavailable) -> None:
        """Refuse all that should have been recorded: an answer that the journal missed never happened."""
        for asked in self.asked:
            if not asked.number:
                continue
            if asked.is_authentication:
                asked.session.leave()
            for place in range(asked.first, asked.first + (asked.items or 1)):
                if not isinstance(self.outcomes[place], Slow):
                    self.outcomes[place] = refusal

    def _encode(self, meter: Meter, short_cut: ShortCut | None) -> list[bytes | Slow]:
        counts: Counts[tuple[str, Status]] = Counts()
        answers: list[bytes | Slow] = []
        outcomes = self.outcomes
        for asked in self.asked:
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
                request = self.requests[asked.first]
                if short_cut is not None and request is not None:
                    short_cut.learn(request, self.passes[asked.first])
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

    def _note_refusal(self, asked: Asked, refusal: Refusal, place: int) -> None:
        request = self.requests[place]
        said = who(asked.session)
        if isinstance(refusal, NotAllowed):
            # For whoever reads the log; the peer need not learn where the policy is open.
            said["policy_line"] = refusal.line
        self._events.refused(asked.method, refusal, request, **said)
        if self._gate is None or refusal.status not in _NOT_AUTHENTIC:
            return
        terminal = self.passes[place].terminal
        if request is not None and terminal is not None:
            self._gate.notice_failure(terminal, request, self.moment())

    def _sample(self) -> None:
        if self.asked and self._events.wants_answered(len(self.asked)):
            asked = self.asked[-1]
            request = self.requests[-1]
            if request is not None and not isinstance(self.outcomes[-1], Refusal | Slow):
                self._events.answered(asked.method, request, **who(asked.session))


def who(session: Session) -> dict[str, Any]:
    """Return what a log line says of a connection."""
    terminal = session.terminal
    return {"connection": session.number, "terminal": terminal.code if terminal else None}
