"""The operations port: /metrics, /livez and /readyz over HTTP/1.1, beside the hub and never through it.

h11 speaks HTTP; this module knows three paths. Scrapers and probes are few and trusted with little: a request
is small, a connection is short, and there are not many at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import h11
import trio
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import CollectorRegistry

    from keyd.telemetry import Events

# A scrape's request is some hundred bytes.
MAX_REQUEST_BYTES: Final = 8 * 1024

# Prometheus gives up after 10 s by default; a probe sooner.
REQUEST_SECONDS: Final = 10

# One Prometheus or two, a probe and a curious operator.
MAX_CONNECTIONS: Final = 16

_TEXT: Final = "text/plain; charset=utf-8"


class Operations:
    """Answers the operations port."""

    def __init__(
        self, registry: CollectorRegistry, unready_because: Callable[[], str | None], events: Events
    ) -> None:
        self._events = events
        self._registry = registry
        self._unready_because = unready_because
        self._connections = 0

    async def serve(self, listener: trio.SocketListener) -> None:
        """Serve until cancelled."""
        await trio.serve_listeners(self._handle, [listener])

    async def _handle(self, stream: trio.SocketStream) -> None:
        if self._connections >= MAX_CONNECTIONS:
            await stream.aclose()
            return
        self._connections += 1
        try:
            with trio.move_on_after(REQUEST_SECONDS):
                await self._converse(stream)
        except (trio.BrokenResourceError, h11.ProtocolError):
            pass  # the other side went away or does not speak HTTP; neither is our news
        except Exception as error:  # noqa: BLE001 - a bug here must not end the daemon
            self._events.bug("operations_failed", error)
        finally:
            self._connections -= 1
            await trio.aclose_forcefully(stream)

    async def _converse(self, stream: trio.SocketStream) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_REQUEST_BYTES)
        while True:
            try:
                event = connection.next_event()
            except h11.RemoteProtocolError as error:
                status = error.error_status_hint
                await _respond(stream, connection, status, _TEXT, b"this is no request\n")
                return
            if event is h11.NEED_DATA:
                connection.receive_data(await stream.receive_some(MAX_REQUEST_BYTES))
            elif isinstance(event, h11.Request):
                status, content_type, body = self._answer(event)
                await _respond(
                    stream, connection, status, content_type, body, is_head=event.method == b"HEAD"
                )
                return
            elif isinstance(event, h11.ConnectionClosed):
                return

    def _answer(self, request: h11.Request) -> tuple[int, str, bytes]:
        if request.method not in (b"GET", b"HEAD"):
            return 405, _TEXT, b"only GET and HEAD\n"
        path = request.target.partition(b"?")[0]
        if path == b"/metrics":
            return 200, CONTENT_TYPE_LATEST, generate_latest(self._registry)
        if path == b"/livez":
            return 200, _TEXT, b"alive\n"
        if path == b"/readyz":
            reason = self._unready_because()
            if reason is None:
                return 200, _TEXT, b"ready\n"
            return 503, _TEXT, f"{reason}\n".encode()
        return 404, _TEXT, b"there are /metrics, /livez and /readyz\n"


async def _respond(
    stream: trio.SocketStream,
    connection: h11.Connection,
    status: int,
    content_type: str,
    body: bytes,
    *,
    is_head: bool = False,
) -> None:
    headers = [
        ("content-type", content_type),
        ("content-length", str(len(body))),
        ("connection", "close"),
        ("allow", "GET, HEAD"),
    ]
    data = connection.send(h11.Response(status_code=status, headers=headers)) or b""
    if not is_head:
        data += connection.send(h11.Data(data=body)) or b""
    data += connection.send(h11.EndOfMessage()) or b""
    await stream.send_all(data)
