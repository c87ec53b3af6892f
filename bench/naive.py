"""The naive alternative: a trio task per connection. `python -m bench.naive`

It is what one writes first, and fairly: the same protocol code, the same `Dispatch` with all that it does
(authorise, compute, measure, log), the same metrics, log lines and idle limit, the same frozen heap. It differs
from keyd in one thing. A task of its own waits for each connection, and asks `Dispatch` about one request at a
time; there is no hub and no tick. It even writes once per read, not once per request.
"""

from __future__ import annotations

import gc
import itertools
import secrets
import sys
import time
from typing import TYPE_CHECKING, Final

import trio

from keyd.cards.profile import newest
from keyd.cards.profile_files import load_profiles
from keyd.crypto.algorithms import CardAlgorithm
from keyd.crypto.selftest import require_selftest, run_selftest
from keyd.daemon import DEV_TERMINALS
from keyd.dispatch import Dispatch, Slow
from keyd.errors import Malformed, RemoteProtocolError
from keyd.handlers.services import Services
from keyd.hub import MAX_ASKS_PER_CONNECTION, Limits
from keyd.keys.ring import KeyRing
from keyd.keys.roots import synthetic, synthetic_terminals_master
from keyd.protocol.connection import MAX_CHUNK, ServerConnection, refusal_bytes
from keyd.registry.synthetic import synthetic_terminals
from keyd.telemetry import Events, Meter, configure_logging
from keyd.terminals import Session, Terminals

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keyd.protocol.connection import Ask

_LISTEN_BACKLOG: Final = 1024


class NaiveServer:
    """Serves each connection in its own task."""

    def __init__(self, services: Services) -> None:
        self._meter = Meter()
        self._events = Events(time.monotonic)
        self._dispatch = Dispatch(services, self._meter, self._events)
        self._numbers = itertools.count(1)
        self._limits = Limits()
        services.counters = self._meter.totals

    async def run(self) -> None:
        """Listen on any loopback port, say which, and serve until cancelled."""
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=_LISTEN_BACKLOG)
        host, port = listeners[0].socket.getsockname()
        self._events.info("ready", listen=[f"{host}:{port}"])
        await trio.serve_listeners(self._serve, listeners)

    async def _serve(self, stream: trio.SocketStream) -> None:
        session = Session(next(self._numbers))
        self._meter.opened()
        self._events.info("connection_opened", connection=session.number, source="127.0.0.1")
        # One scope whose deadline moves costs less than a scope for every read.
        with trio.CancelScope() as patience:
            await self._converse(stream, session, patience)
        reason = "idle" if patience.cancelled_caught else "peer_closed"
        self._meter.closed(reason)
        self._events.info("connection_closed", connection=session.number, reason=reason)

    async def _converse(
        self, stream: trio.SocketStream, session: Session, patience: trio.CancelScope
    ) -> None:
        connection = ServerConnection()
        try:
            while True:
                patience.deadline = trio.current_time() + self._limits.idle_seconds
                data = await stream.receive_some(MAX_CHUNK)
                arrived = time.monotonic()
                if not data:
                    return
                connection.receive_data_untrusted(data)
                has_more = True
                while has_more:
                    asks = connection.next_asks_untrusted(MAX_ASKS_PER_CONNECTION)
                    has_more = len(asks) == MAX_ASKS_PER_CONNECTION
                    if asks:
                        await stream.send_all(await self._answers(session, asks))
                        self._meter.duration.observe(time.monotonic() - arrived, len(asks))
        except RemoteProtocolError as error:
            await stream.send_all(refusal_bytes(None, Malformed(str(error))))
        except trio.BrokenResourceError:
            return

    async def _answers(self, session: Session, asks: Iterable[Ask]) -> bytes:
        out = bytearray()
        for ask in asks:
            started = time.monotonic()
            (answer,) = self._dispatch.run([(session, ask)]).answers
            self._meter.compute.observe(time.monotonic() - started)
            self._meter.batch.observe(1)
            if isinstance(answer, Slow):
                (answer,) = (await self._dispatch.run_slow(answer)).answers
            assert isinstance(answer, bytes)
            out += answer
        return bytes(out)


def _services() -> Services:
    profiles = load_profiles(None)
    places = newest(profiles).key_places((CardAlgorithm.DES, CardAlgorithm.SM4))
    ring = KeyRing([*synthetic(places), synthetic_terminals_master()])
    return Services(
        sam=ring,
        key_headers=ring.headers,
        has_synthetic_keys=True,
        profiles=profiles,
        terminals=Terminals(synthetic_terminals(DEV_TERMINALS), secrets.token_bytes),
        selftest=require_selftest(),
        run_selftest=run_selftest,
        clock=time.monotonic,
        now=time.time,
        random_bytes=secrets.token_bytes,
    )


def main() -> int:
    """Serve until killed."""
    configure_logging("info")
    server = NaiveServer(_services())
    gc.collect()
    gc.freeze()
    trio.run(server.run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
