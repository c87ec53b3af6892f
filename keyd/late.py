"""What leaves a tick: an async handler's work, or a request some of whose services need a key that is in the pool.

Such a request is decided already. What is left of it is computed beside the tick, and then it goes the rest of the same
path: it is recorded, counted and answered as if it were a tick of its own.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from keyd.errors import AuditUnavailable
from keyd.leaving import finish_service, side_by_side

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyd.answering import Answering, Decided
    from keyd.errors import Refusal
    from keyd.handlers.in_order import Turn
    from keyd.handlers.services import Services
    from keyd.keys.sam import SamTask, Steps
    from keyd.protocol.commands import Command
    from keyd.protocol.fields import Request, Response
    from keyd.recorder import Recorder
    from keyd.telemetry import Meter
    from keyd.terminals import Session


class Slow(msgspec.Struct, frozen=True, gc=False):
    """Work that leaves the tick: await it with `Dispatch.run_slow`, then send what that returns."""

    msgid: int | None
    command: Command
    request: Request[Any]
    session: Session
    # The number of the terminal that asked; who is authenticated when it is done may be somebody else.
    terminal: int = 0
    # Where the request left a tick with services in the middle: what is to be done of it.
    late: Late | None = None
    # Its place among the requests to one open PSAM, taken as it arrived. Tasks are started in any order.
    turn: Turn | None = None


class Running(msgspec.Struct, frozen=True, gc=False):
    """A service in the middle of its steps, and the place its outcome goes to."""

    place: int
    steps: Steps[Response]
    tasks: tuple[SamTask, ...]


class Late:
    """One request that left its tick: what became of its items by then, and the services that are to go on."""

    def __init__(
        self,
        answering: Answering,
        waiting: Sequence[Running],
        services: Services,
        recorder: Recorder | None,
    ) -> None:
        self._answering = answering
        self._waiting = tuple(waiting)
        self._services = services
        self._recorder = recorder

    async def compute(self) -> None:
        """Take its services to their ends, side by side."""
        recorder, (asked,) = self._recorder, self._answering.asked
        if asked.number and recorder is not None and recorder.unavailable_because is not None:
            # Before any key is used.
            self.refuse(AuditUnavailable())
            return
        waiting, self._waiting = self._waiting, ()
        await side_by_side([partial(self._finish, service) for service in waiting])

    def refuse(self, refusal: Refusal) -> None:
        """Refuse its services, before they went on."""
        waiting, self._waiting = self._waiting, ()
        for service in waiting:
            self._answering.outcomes[service.place] = refusal

    def finish(self, meter: Meter) -> Decided:
        """Record, measure, log and encode."""
        return self._answering.finish(meter, None)

    async def _finish(self, service: Running) -> None:
        answering, place = self._answering, service.place
        terminal = answering.passes[place].terminal
        code = "" if terminal is None else terminal.code
        try:
            answering.outcomes[place] = await finish_service(
                service.steps, service.tasks, self._services, code
            )
        except Exception as error:  # noqa: BLE001 - a bug must cost one answer, not the daemon
            answering.outcomes[place] = answering.bug(error, place)
