"""Chips in a virtual reader: PSAMs that keyd plays, or simulated cards, behind the `vpcd` driver of vsmartcard.

The driver is the server: pcscd loads it, it listens on one port for each slot of its reader, and whoever connects is
the chip in that slot. What is said is in `keyd.iso7816.chip_line`. When either side is started anew, the chip is back
in its slot within seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from keyd.lending.rack_server import play

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from keyd.iso7816.chip_line import Chip

DEFAULT_PORT: Final = 35963

# Until the driver is there: soon at first, since it may just be starting, and then without hurry.
FIRST_WAIT_SECONDS: Final = 0.1
LONGEST_WAIT_SECONDS: Final = 2.0


async def serve(
    chips: Sequence[Chip],
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    tell: Callable[[int, bool], None] = lambda _slot, _is_attached: None,
) -> None:
    """Put each chip into a slot: the first at `port`, the next one port further. It does not end by itself.

    `tell` is told whenever the chip of a slot, counted from 0, was attached to the reader or lost it.
    """
    async with trio.open_nursery() as nursery:
        for slot, chip in enumerate(chips):
            nursery.start_soon(_attend, chip, host, port + slot, slot, tell)


async def _attend(
    chip: Chip, host: str, port: int, slot: int, tell: Callable[[int, bool], None]
) -> None:
    wait = FIRST_WAIT_SECONDS
    while True:
        try:
            stream = await trio.open_tcp_stream(host, port)
        except OSError:
            await trio.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT_SECONDS)
            continue
        tell(slot, True)
        async with stream:
            was_used = await play(chip, stream)
        tell(slot, False)
        # A driver that is going away may still take connections, and say nothing.
        wait = FIRST_WAIT_SECONDS if was_used else min(2 * wait, LONGEST_WAIT_SECONDS)
        await trio.sleep(wait)
