"""A PSAM of keyd's pool as if it were in the machine's own slot: opened, spoken to in APDUs, closed.

Both flavours say the same. Whatever the client's line suffers, an open PSAM does not outlive it: after the line was
lost the next command is refused with `PsamNotOpen`, and what was begun is to be begun anew.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final, TypeVar

from keyd.client.conversation import ConnectionLost
from keyd.crypto.algorithms import CardAlgorithm
from keyd.errors import PsamGone, PsamNotOpen
from keyd.iso7816 import ResponseApdu, converse
from keyd.protocol.messages.psam import (
    AskOpen,
    Close,
    PsamOpened,
    RunScript,
    ScriptReference,
    ScriptResult,
    ScriptStep,
    Transmit,
    TransmitMany,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from keyd.client.blocking import Client
    from keyd.client.on_trio import AsyncClient
    from keyd.iso7816 import CommandApdu, Dialogue

T = TypeVar("T")

# It is closed already, as far as closing goes.
_CLOSED: Final = (PsamNotOpen, PsamGone, ConnectionLost)


def step_of(
    apdu: CommandApdu,
    references: Sequence[ScriptReference] = (),
    expected: Sequence[int] = (0x9000,),
) -> ScriptStep:
    """Return the step of a script that sends a command."""
    return ScriptStep(apdu.header, apdu.data, tuple(references), apdu.le or 0, tuple(expected))


class _Either:
    """What both flavours know of a PSAM: how it is to be opened, and how it is once it was."""

    def __init__(
        self,
        keys: Sequence[int],
        algorithm: CardAlgorithm = CardAlgorithm.SM4,
        *,
        number: str = "any",
        region: str = "any",
    ) -> None:
        self._ask = AskOpen(tuple(keys), algorithm, number, region)
        self._opened: PsamOpened | None = None

    @property
    def opened(self) -> PsamOpened:
        """What keyd said of it when it was opened: 终端机编号, serial number, ATR, levels of the keys.

        Raises:
            PsamNotOpen: it is not open.
        """
        if self._opened is None:
            raise PsamNotOpen
        return self._opened

    def _take_handle(self) -> int | None:
        opened, self._opened = self._opened, None
        return None if opened is None else opened.handle


class Psam(_Either):
    """A PSAM over a `Client`, open while it is a context. Not for several threads at once, like the client."""

    def __init__(
        self,
        client: Client,
        keys: Sequence[int],
        algorithm: CardAlgorithm = CardAlgorithm.SM4,
        *,
        number: str = "any",
        region: str = "any",
    ) -> None:
        super().__init__(keys, algorithm, number=number, region=region)
        self._client = client

    def __enter__(self) -> Psam:
        self._opened = self._client.ask(self._ask)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        handle = self._take_handle()
        if handle is not None:
            with contextlib.suppress(*_CLOSED):
                self._client.ask(Close(handle))

    def transmit(self, command: bytes) -> bytes:
        """Send one command; return data and status word.

        Raises:
            Refusal: keyd's no, `PsamGone` and `NotAllowed` among them.
            ConnectionLost: the line broke or cannot be had.
        """
        return self._client.ask(Transmit(self.opened.handle, command)).answer

    def transmit_many(self, commands: Sequence[bytes], *, go_on: bool = False) -> tuple[bytes, ...]:
        """Send up to 32 commands in one exchange; return the answers until one says no, or all if told to go on."""
        ask = TransmitMany(self.opened.handle, tuple(commands), go_on)
        return self._client.ask(ask).answers

    def converse(self, dialogue: Dialogue[T]) -> T:
        """Run a dialogue, one exchange for each command."""
        return converse(dialogue, self.transmit)

    def run(
        self, steps: Sequence[ScriptStep], results: Sequence[ScriptResult] = ()
    ) -> tuple[bytes, ...]:
        """Run a script in one exchange; return its results."""
        return self._client.ask(RunScript(self.opened.handle, tuple(steps), tuple(results))).results


class AsyncPsam(_Either):
    """A PSAM over an `AsyncClient`. Otherwise like `Psam`."""

    def __init__(
        self,
        client: AsyncClient,
        keys: Sequence[int],
        algorithm: CardAlgorithm = CardAlgorithm.SM4,
        *,
        number: str = "any",
        region: str = "any",
    ) -> None:
        super().__init__(keys, algorithm, number=number, region=region)
        self._client = client

    async def __aenter__(self) -> AsyncPsam:
        self._opened = await self._client.ask(self._ask)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        handle = self._take_handle()
        if handle is not None:
            with contextlib.suppress(*_CLOSED):
                await self._client.ask(Close(handle))

    async def transmit(self, command: bytes) -> bytes:
        """Send one command; return data and status word. Raises like `Psam.transmit`."""
        return (await self._client.ask(Transmit(self.opened.handle, command))).answer

    async def transmit_many(
        self, commands: Sequence[bytes], *, go_on: bool = False
    ) -> tuple[bytes, ...]:
        """Send up to 32 commands in one exchange; return the answers until one says no, or all if told to go on."""
        ask = TransmitMany(self.opened.handle, tuple(commands), go_on)
        return (await self._client.ask(ask)).answers

    async def converse(self, dialogue: Dialogue[T]) -> T:
        """Run a dialogue, one exchange for each command."""
        with contextlib.closing(dialogue):
            response = None
            while True:
                try:
                    command = next(dialogue) if response is None else dialogue.send(response)
                except StopIteration as finished:
                    result: T = finished.value
                    return result
                response = ResponseApdu.parse_untrusted(await self.transmit(bytes(command)))

    async def run(
        self, steps: Sequence[ScriptStep], results: Sequence[ScriptResult] = ()
    ) -> tuple[bytes, ...]:
        """Run a script in one exchange; return its results."""
        ask = RunScript(self.opened.handle, tuple(steps), tuple(results))
        return (await self._client.ask(ask)).results
