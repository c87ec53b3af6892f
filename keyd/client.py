"""The client: typed requests in, typed responses out, in a synchronous and a trio flavour.

    from keyd.client import Client, Enrolment
    from keyd.protocol.fields import CardIdentity
    from keyd.protocol.messages.card import InternalAuthenticate

    enrolment = Enrolment("DESK-0001", terminal_key)
    with Client("127.0.0.1:7170", enrolment) as keyd:
        card = CardIdentity(card_id, historical)
        keyd.ask(InternalAuthenticate(card, session_factor, challenge, cryptogram))
        print("genuine")  # a forged card raises keyd.errors.CardNotAuthentic

`ask` sends one request, `ask_all` pipelines many and returns a response or a Refusal for each, `ask_batch`
puts many of one kind into one message. A refusal is raised as the class that keyd raised. Both flavours share
`_Conversation`, which does no I/O.

A line that cannot be had is tried again with growing pauses. A line that was open and has broken since, as
an idle one does, is opened again, the terminal authenticated anew and the question asked once more: nothing
that keyd answers changes anything in keyd, so asking again is safe. If that fails too, `ConnectionLost` is
raised.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import time
from collections.abc import Callable, Generator, Sequence
from hmac import compare_digest
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
import trio

from keyd.errors import (
    Draining,
    LocalProtocolError,
    Refusal,
    RemoteProtocolError,
    TerminalNotAuthentic,
    TimedOut,
)
from keyd.protocol.commands import BATCH_SUFFIX, BY_REQUEST, MAX_BATCH
from keyd.protocol.connection import ClientConnection, refusal_from_untrusted
from keyd.protocol.messages.terminal import AuthenticateTerminal, RequestChallenge
from keyd.protocol.proof import CHALLENGE_BYTES, keyd_proof, terminal_proof

if TYPE_CHECKING:
    from types import TracebackType

    from keyd.protocol.connection import Answer
    from keyd.protocol.fields import Request, Response

ResponseT = TypeVar("ResponseT", bound="Response")
T = TypeVar("T")

# How many requests are on the line at once. keyd takes 64 in a tick; twice that keeps it busy.
MAX_PIPELINED: Final = 128

_READ_BYTES: Final = 64 * 1024


class ConnectionLost(Exception):  # noqa: N818 - says what happened
    """The line to keyd broke, or cannot be had. Asking again is safe."""


# How a line ends that was good before: broken, or closed by keyd with its reason.
_LINE_ENDED: Final = (ConnectionLost, TimedOut, Draining)


class Enrolment:
    """What a terminal proves itself with: its code and its 16-byte terminal key."""

    __slots__ = ("_key", "code")

    def __init__(self, code: str, key: bytes) -> None:
        self.code = code
        self._key = key

    def proof(self, ours: bytes, theirs: bytes) -> bytes:
        """Return the terminal's proof over its own challenge and keyd's."""
        return terminal_proof(self._key, self.code, ours, theirs)

    def verify_keyd(self, ours: bytes, theirs: bytes, proof: bytes) -> None:
        """Check keyd's proof.

        Raises:
            TerminalNotAuthentic: the other end is not the keyd that this terminal is enrolled with.
        """
        if not compare_digest(keyd_proof(self._key, self.code, ours, theirs), proof):
            raise TerminalNotAuthentic("the other end did not prove that it is our keyd")

    def __repr__(self) -> str:
        return f"<Enrolment {self.code}>"


class Backoff:
    """Pauses that double up to a limit, with jitter, so that a thousand terminals do not come at once."""

    def __init__(self, first: float = 0.05, longest: float = 5.0, attempts: int = 6) -> None:
        self.first = first
        self.longest = longest
        self.attempts = attempts

    def pauses(self) -> Generator[float, None, None]:
        """Yield the seconds to wait before each further attempt."""
        pause = self.first
        for _ in range(self.attempts - 1):
            yield pause * (0.5 + secrets.randbelow(1000) / 1000)
            pause = min(pause * 2, self.longest)


# A conversation yields the bytes to send (which may be none), and receives bytes of keyd's.
_Talk = Generator[bytes, bytes, T]


class _Conversation:
    """What both flavours say on one connection."""

    def __init__(self) -> None:
        self._connection = ClientConnection()
        self._expected: dict[int, Callable[[Any], Any]] = {}

    def ask_all(
        self, calls: Sequence[tuple[str, Any, Callable[[Any], T]]]
    ) -> _Talk[list[T | Refusal]]:
        """Pipeline calls of (method, params, how to read the result)."""
        results: dict[int, T | Refusal] = {}
        order: list[int] = []
        waiting = iter(calls)
        to_send = self._send_more(waiting, order, MAX_PIPELINED)
        while len(results) < len(calls):
            data = yield to_send
            to_send = b""
            for answer in self._connection.receive_data_untrusted(data):
                msgid = self._msgid_of(answer)
                read = self._expected.pop(msgid)
                results[msgid] = answer.refusal or read(answer.result)
            if self._connection.is_broken and len(results) < len(calls):
                self._connection.receive_data_untrusted(
                    b""
                )  # raises: what is missing will not come
            room = MAX_PIPELINED - len(self._expected)
            to_send = self._send_more(waiting, order, room)
        return [results[msgid] for msgid in order]

    def _send_more(self, waiting: Any, order: list[int], room: int) -> bytes:
        data = b""
        for _ in range(room):
            call = next(waiting, None)
            if call is None:
                break
            method, params, read = call
            msgid, message = self._connection.ask(method, params)
            self._expected[msgid] = read
            order.append(msgid)
            data += message
        return data

    def _msgid_of(self, answer: Answer) -> int:
        if answer.msgid is None and answer.refusal is not None:
            # keyd says why it is about to hang up.
            raise answer.refusal
        if answer.msgid not in self._expected:
            raise RemoteProtocolError("keyd answered something that was not asked")
        return answer.msgid

    def authenticate(self, enrolment: Enrolment) -> _Talk[None]:
        """Prove the terminal, and have keyd prove itself."""
        ours = secrets.token_bytes(CHALLENGE_BYTES)
        (challenge,) = yield from self.ask_all([_call(RequestChallenge(enrolment.code, ours))])
        if isinstance(challenge, Refusal):
            raise challenge
        theirs = challenge.challenge
        proof = enrolment.proof(ours, theirs)
        (authentic,) = yield from self.ask_all([_call(AuthenticateTerminal(proof))])
        if isinstance(authentic, Refusal):
            raise authentic
        enrolment.verify_keyd(ours, theirs, authentic.proof)


def _call(request: Request[ResponseT]) -> tuple[str, Any, Callable[[Any], ResponseT]]:
    command = BY_REQUEST[type(request)]
    return command.method, request, lambda result: _read(result, command.response)


def _batch_call(
    requests: Sequence[Request[ResponseT]],
) -> tuple[str, Any, Callable[[Any], list[ResponseT | Refusal]]]:
    kinds = {type(request) for request in requests}
    if len(kinds) != 1 or len(requests) > MAX_BATCH:
        raise LocalProtocolError(f"a batch has 1 to {MAX_BATCH} requests of one kind")
    command = BY_REQUEST[kinds.pop()]
    if not command.has_batch:
        raise LocalProtocolError(f"{command.method} has no batch form")

    def read_items(items: Any) -> list[ResponseT | Refusal]:
        if type(items) is not list or len(items) != len(requests):
            raise RemoteProtocolError("a batch is answered item by item")
        return [_read_item(item, command.response) for item in items]

    return command.method + BATCH_SUFFIX, [requests], read_items


def _read_item(item: Any, response: type[Response]) -> Any:
    if type(item) is not list or len(item) != 2:
        raise RemoteProtocolError("an item of a batch is [error, result]")
    error, result = item
    return refusal_from_untrusted(error) or _read(result, response)


def _read(result: Any, response: type[Response]) -> Any:
    try:
        return msgspec.convert(result, response, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise RemoteProtocolError(f"keyd's answer does not fit: {error}") from None


def parse_address(address: str) -> tuple[str, int] | str:
    """Return (host, port) of "HOST:PORT", or the path of "unix:PATH".

    Raises:
        ValueError: it is neither.
    """
    if address.startswith("unix:"):
        return address.removeprefix("unix:")
    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdigit():
        raise ValueError(f"{address!r} is no address: write HOST:PORT or unix:PATH")
    return host.removeprefix("[").removesuffix("]"), int(port)


class Client:
    """A synchronous client. It connects at the first request, and again when the line was lost.

    `timeout` is in seconds, for connecting and for each answer. Not for several threads at once.
    """

    def __init__(
        self,
        address: str,
        enrolment: Enrolment | None = None,
        *,
        timeout: float = 10.0,
        backoff: Backoff | None = None,
    ) -> None:
        self._address = parse_address(address)
        self._enrolment = enrolment
        self._timeout = timeout
        self._backoff = backoff or Backoff()
        self._sock: socket.socket | None = None
        self._conversation = _Conversation()

    def ask(self, request: Request[ResponseT]) -> ResponseT:
        """Ask one thing.

        Raises:
            Refusal: keyd's no, as the class that keyd raised.
            ConnectionLost: the line broke or cannot be had.
        """
        (result,) = self.ask_all([request])
        if isinstance(result, Refusal):
            raise result
        return result

    def ask_all(self, requests: Sequence[Request[ResponseT]]) -> list[ResponseT | Refusal]:
        """Pipeline many requests; return a response or a Refusal for each, in order."""
        return self._converse([_call(request) for request in requests])

    def ask_batch(self, requests: Sequence[Request[ResponseT]]) -> list[ResponseT | Refusal]:
        """Ask up to 256 of one kind in one message; return a response or a Refusal for each."""
        (results,) = self._converse([_batch_call(requests)])
        if isinstance(results, Refusal):
            raise results
        return results

    def connect(self) -> None:
        """Connect and authenticate now instead of at the first request."""
        if self._sock is not None:
            return
        pauses = self._backoff.pauses()
        while True:
            try:
                self._open()
            except ConnectionLost:
                pause = next(pauses, None)
                if pause is None:
                    raise
                time.sleep(pause)
            else:
                return

    def close(self) -> None:
        """Hang up."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self) -> None:
        try:
            if isinstance(self._address, str):
                sock = _connected_unix(self._address, self._timeout)
            else:
                sock = socket.create_connection(self._address, self._timeout)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            raise ConnectionLost(f"cannot connect: {error.strerror or error}") from None
        self._sock = sock
        self._conversation = _Conversation()
        if self._enrolment is not None:
            self._run(self._conversation.authenticate(self._enrolment))

    def _converse(self, calls: Sequence[tuple[str, Any, Callable[[Any], T]]]) -> list[T | Refusal]:
        if not calls:
            return []
        if self._sock is not None:
            with contextlib.suppress(*_LINE_ENDED):
                return self._run(self._conversation.ask_all(calls))
        self.connect()
        return self._run(self._conversation.ask_all(calls))

    def _run(self, talk: _Talk[T]) -> T:
        sock = self._sock
        if sock is None:
            raise ConnectionLost("not connected")
        is_done = False
        try:
            to_send = next(talk)
            while True:
                if to_send:
                    sock.sendall(to_send)
                data = sock.recv(_READ_BYTES)
                if not data:
                    raise ConnectionLost("keyd closed the connection")
                to_send = talk.send(data)
        except StopIteration as stop:
            is_done = True
            result: T = stop.value
            return result
        except OSError as error:
            raise ConnectionLost(f"the line broke: {error.strerror or error}") from None
        finally:
            # Answers that are still to come belong to a question that nobody asks any more.
            if not is_done:
                self.close()


def _connected_unix(path: str, timeout: float) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout)
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    return sock


class AsyncClient:
    """A trio client. Tasks may share it: each waits its turn. Otherwise like `Client`."""

    def __init__(
        self,
        address: str,
        enrolment: Enrolment | None = None,
        *,
        timeout: float = 10.0,
        backoff: Backoff | None = None,
    ) -> None:
        self._address = parse_address(address)
        self._enrolment = enrolment
        self._timeout = timeout
        self._backoff = backoff or Backoff()
        self._stream: trio.SocketStream | None = None
        self._conversation = _Conversation()
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
        return await self._converse([_call(request) for request in requests])

    async def ask_batch(self, requests: Sequence[Request[ResponseT]]) -> list[ResponseT | Refusal]:
        """Ask up to 256 of one kind in one message; return a response or a Refusal for each."""
        (results,) = await self._converse([_batch_call(requests)])
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
            await trio.aclose_forcefully(stream)

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
            raise ConnectionLost(f"cannot connect: {error}") from None
        self._stream = stream
        self._conversation = _Conversation()
        if self._enrolment is not None:
            await self._run(self._conversation.authenticate(self._enrolment))

    async def _converse(
        self, calls: Sequence[tuple[str, Any, Callable[[Any], T]]]
    ) -> list[T | Refusal]:
        if not calls:
            return []
        async with self._turn:
            if self._stream is not None:
                with contextlib.suppress(*_LINE_ENDED):
                    return await self._run(self._conversation.ask_all(calls))
            await self._connect()
            return await self._run(self._conversation.ask_all(calls))

    async def _run(self, talk: _Talk[T]) -> T:
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
                    data = await stream.receive_some(_READ_BYTES)
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
                await trio.aclose_forcefully(stream)
