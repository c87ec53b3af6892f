"""A PSAM that a connection has open: what it was opened for, who guards it, and whose turn it is to speak to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

from keyd.errors import PsamDeclined, PsamGone, RemoteProtocolError
from keyd.handlers.in_order import Queue
from keyd.iso7816 import ResponseApdu, UnexpectedStatusWord

if TYPE_CHECKING:
    from keyd.handlers.desk import OpenPsam
    from keyd.handlers.in_order import Turn
    from keyd.iso7816 import CommandApdu, Dialogue
    from keyd.protocol.fields import Request
    from keyd.psam.guard import Guard
    from keyd.terminals import Session

T = TypeVar("T")

# The longest answer to a short command.
MAX_ANSWER: Final = 258


class Opened:
    """A PSAM that a connection has open, or is about to have: then it counts already."""

    def __init__(self, ask: Request[Any], guard: Guard) -> None:
        # By what it was opened: the policy is asked about it again with each command.
        self.ask = ask
        self.guard = guard
        self.queue = Queue()
        self.lent: OpenPsam | None = None
        self.is_abandoned = False

    def abandon(self) -> None:
        """Have it given back, without waiting."""
        self.is_abandoned = True
        if self.lent is not None:
            self.lent.abandon()

    async def transmit(self, apdu: CommandApdu, command: bytes | None = None) -> bytes:
        """Send one command that the guard lets pass; `command` are its bytes as they came."""
        if self.lent is None or self.is_abandoned:
            # The line was lost, or its terminal is another one, while this waited.
            raise PsamGone
        self.guard.require_allowed(apdu)
        answer = await self.lent.transmit(bytes(apdu) if command is None else command)
        if not 2 <= len(answer) <= MAX_ANSWER:
            raise PsamDeclined("the PSAM answered what no short command is answered")
        self.guard.note(apdu, int.from_bytes(answer[-2:], "big"))
        return answer

    async def converse(self, dialogue: Dialogue[T]) -> T:
        """Run a dialogue to its end.

        Raises:
            PsamDeclined: the PSAM said no.
        """
        try:
            apdu = next(dialogue)
            while True:
                answer = await self.transmit(apdu)
                apdu = dialogue.send(ResponseApdu.parse_untrusted(answer))
        except StopIteration as end:
            result: T = end.value
            return result
        except UnexpectedStatusWord as word:
            raise PsamDeclined(str(word)) from None
        except RemoteProtocolError as error:
            raise PsamDeclined(str(error)) from None
        finally:
            dialogue.close()


def opened_for(session: Session, request: Request[Any]) -> Opened | None:
    """Return the open PSAM that a request speaks of, if it is open."""
    opened = session.psams.get(getattr(request, "handle", 0))
    return opened if isinstance(opened, Opened) else None


def turn_for(session: Session, request: Request[Any]) -> Turn | None:
    """Take the request's place among those to the same open PSAM; None if it speaks of none."""
    opened = opened_for(session, request)
    return opened.queue.take_place() if opened is not None else None


def drop(session: Session, opened: Opened) -> None:
    """Have an open PSAM given back that its terminal must not have any longer."""
    for handle, other in list(session.psams.items()):
        if other is opened:
            del session.psams[handle]
    opened.abandon()


class Ending:
    """Ends an open PSAM with the refusal that says that it is gone."""

    def __init__(self, session: Session, opened: Opened) -> None:
        self._session = session
        self._opened = opened

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, PsamGone):
            drop(self._session, self._opened)
