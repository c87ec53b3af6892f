"""A line to a server on loopback that delays all it carries, until it is killed.

    python -m bench.slow_line PORT MILLISECONDS

Whatever comes leaves that much later, in either direction; its rate is not limited and nothing is lost.
"""

from __future__ import annotations

import math
import sys
from typing import Final

import trio

from bench.ready import say_ready

HOST: Final = "127.0.0.1"
CHUNK_BYTES: Final = 65_536


async def main(port: int, seconds: float) -> None:
    """Carry every connection, and say where they are taken."""

    async def carry(near: trio.SocketStream) -> None:
        far = await trio.open_tcp_stream(HOST, port)
        async with near, far, trio.open_nursery() as nursery:
            nursery.start_soon(_delay, near, far, seconds)
            await _delay(far, near, seconds)
            nursery.cancel_scope.cancel()

    (listener,) = await trio.open_tcp_listeners(0, host=HOST)
    say_ready(listener)
    await trio.serve_listeners(carry, [listener])


async def _delay(source: trio.SocketStream, sink: trio.SocketStream, seconds: float) -> None:
    send, receive = trio.open_memory_channel[tuple[float, bytes]](math.inf)

    async def let_go() -> None:
        async for due, data in receive:
            await trio.sleep_until(due)
            await sink.send_all(data)
        await sink.send_eof()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(let_go)
            with send:
                while data := bytes(await source.receive_some(CHUNK_BYTES)):
                    send.send_nowait((trio.current_time() + seconds, data))
    except* (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # Either end hung up: there is nobody left to carry for.


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), float(sys.argv[2]) / 1000)
