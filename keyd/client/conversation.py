"""What both flavours of the client say on one connection, without doing any I/O.

A `Talk` is a generator that yields bytes to send and receives bytes of keyd's; a flavour moves them.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from keyd.errors import (
    Draining,
    LocalProtocolError,
    Refusal,
    RemoteProtocolError,
    TimedOut,
)
from keyd.protocol.commands import BATCH_SUFFIX, BY_REQUEST, MAX_BATCH
from keyd.protocol.connection import ClientConnection, refusal_from_untrusted
from keyd.protocol.messages.terminal import RequestChallenge
from keyd.protocol.proof import CHALLENGE_BYTES, NO_BINDING

if TYPE_CHECKING:
    from keyd.client.enrolment import Enrolled
    from keyd.protocol.connection import Answer
    from keyd.protocol.fields import Request, Response

ResponseT = TypeVar("ResponseT", bound="Response")
T = TypeVar("T")

# How many requests are on the line at once. keyd takes 64 in a tick; twice that keeps it busy.
MAX_PIPELINED: Final = 128

READ_BYTES: Final = 64 * 1024


class ConnectionLost(Exception):  # noqa: N818 - says what happened
    """The line to keyd broke, or cannot be had. Asking again is safe."""


# How a line ends that was good before: broken, or closed by keyd with its reason.
LINE_ENDED: Final = (ConnectionLost, TimedOut, Draining)


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
Talk = Generator[bytes, bytes, T]


class Conversation:
    """What both flavours say on one connection."""

    def __init__(self) -> None:
        self._connection = ClientConnection()
        self._expected: dict[int, Callable[[Any], Any]] = {}

    def ask_all(
        self, calls: Sequence[tuple[str, Any, Callable[[Any], T]]]
    ) -> Talk[list[T | Refusal]]:
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

    def authenticate(self, enrolment: Enrolled, binding: bytes = NO_BINDING) -> Talk[None]:
        """Prove the terminal, and have keyd prove itself, on a line with this channel binding (32 bytes)."""
        ours = secrets.token_bytes(CHALLENGE_BYTES)
        (challenge,) = yield from self.ask_all([call(RequestChallenge(enrolment.code, ours))])
        if isinstance(challenge, Refusal):
            raise challenge
        proof: Any = enrolment.prove(ours, challenge.challenge, binding)
        (authentic,) = yield from self.ask_all([call(proof.request)])
        if isinstance(authentic, Refusal):
            raise authentic
        proof.verify_keyd(authentic)


def call(request: Request[ResponseT]) -> tuple[str, Any, Callable[[Any], ResponseT]]:
    """Return what `Conversation.ask_all` takes for one request."""
    command = BY_REQUEST[type(request)]
    return command.method, request, lambda result: _read(result, command.response)


def batch_call(
    requests: Sequence[Request[ResponseT]],
) -> tuple[str, Any, Callable[[Any], list[ResponseT | Refusal]]]:
    """Return what `Conversation.ask_all` takes for a batch.

    Raises:
        LocalProtocolError: they are not of one kind, too many or none, or the kind has no batch form.
    """
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


def server_name_of(address: tuple[str, int] | str) -> str:
    """Return the name that keyd's certificate has to have if nobody says another.

    Raises:
        ValueError: a Unix socket has no name.
    """
    if isinstance(address, str):
        raise ValueError("a Unix socket is not encrypted, and its end has no name")  # noqa: TRY004 - it is about the address
    return address[0]


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
