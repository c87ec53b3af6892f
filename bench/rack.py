"""A rack with one PSAM on loopback, until it is killed: `python -m bench.rack`."""

from __future__ import annotations

from typing import Final

import trio

from bench.card_reading import make_psam
from bench.ready import say_ready
from keyd.lending.rack_server import serve_rack
from keyd.psam import Applet

HOST: Final = "127.0.0.1"


async def main() -> None:
    """Serve it, and say where."""
    (listener,) = await trio.open_tcp_listeners(0, host=HOST)
    say_ready(listener)
    await serve_rack([Applet(make_psam())], [listener])


if __name__ == "__main__":
    trio.run(main)
