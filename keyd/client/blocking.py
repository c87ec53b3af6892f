"""The synchronous client."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import TYPE_CHECKING, Any, TypeVar

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


class Client:
    """A synchronous client. It connects at the first request, and again when the line was lost.

    `timeout` is in seconds, for connecting and for each answer. Not for several threads at once. With `tls` the line is
    encrypted, and keyd's certificate must be for `server_name`, or else for the address's host.
    """

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
        self._sock: socket.socket | None = None
        self._conversation = Conversation()

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
        return self._converse([call(request) for request in requests])

    def ask_batch(self, requests: Sequence[Request[ResponseT]]) -> list[ResponseT | Refusal]:
        """Ask up to 256 of one kind in one message; return a response or a Refusal for each."""
        (results,) = self._converse([batch_call(requests)])
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
            except LineRefused:
                raise
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
            sock, self._sock = self._sock, None
            if self._lines is not None:
                # It fits into the socket's buffer, or is not worth waiting for.
                with contextlib.suppress(OSError):
                    os.write(sock.fileno(), self._lines.end())
            sock.close()

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
            raise ConnectionLost(
                f"cannot connect to {self._place}: {error.strerror or error}"
            ) from None
        self._sock = sock
        self._conversation = Conversation()
        if self._lines is not None:
            self._carry(self._lines.begin())
        if self._enrolment is not None:
            binding = NO_BINDING if self._lines is None else self._lines.binding
            self._run(self._conversation.authenticate(self._enrolment, binding))

    def _converse(self, calls: Sequence[tuple[str, Any, Callable[[Any], T]]]) -> list[T | Refusal]:
        if not calls:
            return []
        if self._sock is not None:
            with contextlib.suppress(*LINE_ENDED):
                return self._run(self._conversation.ask_all(calls))
        self.connect()
        return self._run(self._conversation.ask_all(calls))

    def _run(self, talk: Talk[T]) -> T:
        return self._carry(talk if self._lines is None else self._lines.carry(talk))

    def _carry(self, talk: Talk[T]) -> T:
        sock = self._sock
        if sock is None:
            raise ConnectionLost("not connected")
        is_done = False
        try:
            to_send = next(talk)
            while True:
                if to_send:
                    sock.sendall(to_send)
                data = sock.recv(READ_BYTES)
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
