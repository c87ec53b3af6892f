"""The trio client."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from keyd.client.conversation import (
    LINE_ENDED,
    READ_BYTES,
    Backoff,
    ConnectionLost,
    Conversation,
    batch_call,
    call,
    parse_address,
    server_name_of,
)
from keyd.client.line import LineRefused, Lines
from keyd.errors import Refusal
from keyd.protocol.proof import NO_BINDING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from keyd.client.conversation import Talk
    from keyd.client.enrolment import Enrolled
    from keyd.protocol.fields import Request, Response
    from keyd.tls import TlsClientContext

ResponseT = TypeVar("ResponseT", bound="Response")
T = TypeVar("T")


class AsyncClient:
    """A trio client. Tasks may share it: each waits its turn. Otherwise like `Client`, `tls` included."""

    def __init__(
        self,
        address: str,
        enrolment: Enrolled | None = None,
        *,
        timeout: float = 10.0,
        backoff: Backoff | None = None,
        tls: TlsClientContext | None = None,
        server_name: str | None = None,
    ) -> None:
        self._place = address
        self._address = parse_address(address)
        # Without a context the line is plain; with one it never is.
        self._lines = Lines(tls, server_name or server_name_of(self._address)) if tls else None
        self._enrolment = enrolment
        self._timeout = timeout
        self._backoff = backoff or Backoff()
        self._stream: trio.SocketStream | None = None
        self._conversation = Conversation()
        self._turn = trio.Lock()

    async def ask(self, request: Request[ResponseT]) -> ResponseT:
        """Ask one thing.

        Raises:
            Refusal: keyd's no, as the class that keyd raised.
            ConnectionLost: the line broke or cannot be had.
        """
        (result,) = await self.ask_all([request])
        if isinstance(result, Refusal):
            raise result
        return result

    async def ask_all(self, requests: Sequence[Request[ResponseT]]) -> list[ResponseT | Refusal]:
        """Pipeline many requests; return a response or a Refusal for each, in order."""
        return await self._converse([call(request) for request in requests])

    async def ask_batch(self, requests: Sequence[Request[ResponseT]]) -> list[ResponseT | Refusal]:
        """Ask up to 256 of one kind in one message; return a response or a Refusal for each."""
        (results,) = await self._converse([batch_call(requests)])
        if isinstance(results, Refusal):
            raise results
        return results

    async def connect(self) -> None:
        """Connect and authenticate now instead of at the first request."""
        async with self._turn:
            await self._connect()

    async def aclose(self) -> None:
        """Hang up."""
        if self._stream is not None:
            stream, self._stream = self._stream, None
            await self._hang_up(stream)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _connect(self) -> None:
        if self._stream is not None:
            return
        pauses = self._backoff.pauses()
        while True:
            try:
                await self._open()
            except LineRefused:
                raise
            except ConnectionLost:
                pause = next(pauses, None)
                if pause is None:
                    raise
                await trio.sleep(pause)
            else:
                return

    async def _open(self) -> None:
        try:
            with trio.fail_after(self._timeout):
                if isinstance(self._address, str):
                    stream = await trio.open_unix_socket(self._address)
                else:
                    stream = await trio.open_tcp_stream(*self._address)
        except (OSError, trio.TooSlowError) as error:
            raise ConnectionLost(f"cannot connect to {self._place}: {error}") from None
        self._stream = stream
        self._conversation = Conversation()
        if self._lines is not None:
            await self._carry(self._lines.begin())
        if self._enrolment is not None:
            binding = NO_BINDING if self._lines is None else self._lines.binding
            await self._run(self._conversation.authenticate(self._enrolment, binding))

    async def _converse(
        self, calls: Sequence[tuple[str, Any, Callable[[Any], T]]]
    ) -> list[T | Refusal]:
        if not calls:
            return []
        async with self._turn:
            if self._stream is not None:
                with contextlib.suppress(*LINE_ENDED):
                    return await self._run(self._conversation.ask_all(calls))
            await self._connect()
            return await self._run(self._conversation.ask_all(calls))

    async def _run(self, talk: Talk[T]) -> T:
        return await self._carry(talk if self._lines is None else self._lines.carry(talk))

    async def _carry(self, talk: Talk[T]) -> T:
        stream = self._stream
        if stream is None:
            raise ConnectionLost("not connected")
        is_done = False
        try:
            to_send = next(talk)
            while True:
                with trio.fail_after(self._timeout):
                    if to_send:
                        await stream.send_all(to_send)
                    data = await stream.receive_some(READ_BYTES)
                if not data:
                    raise ConnectionLost("keyd closed the connection")
                to_send = talk.send(data)
        except StopIteration as stop:
            is_done = True
            result: T = stop.value
            return result
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError) as error:
            raise ConnectionLost(f"the line broke: {error}") from None
        finally:
            # Answers that are still to come belong to a question that nobody asks any more.
            if not is_done:
                self._stream = None
                await self._hang_up(stream)

    async def _hang_up(self, stream: trio.SocketStream) -> None:
        if self._lines is not None:
            # It fits into the socket's buffer, or is not worth waiting for.
            with contextlib.suppress(OSError):
                os.write(stream.socket.fileno(), self._lines.end())
        await trio.aclose_forcefully(stream)
