"""The other end of a rack's line: chips, each behind a port of its own, for whoever connects.

A site serves what it has to keyd in this way, and so do the tests and the demonstration. `keyd.vpcd` is the mirror
image: there the chip connects. Both play a chip over a stream, which is `play`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from keyd.errors import RemoteProtocolError
from keyd.iso7816.chip_line import Messages, framed, maybe_answer
from keyd.lending.promptly import receive_promptly

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyd.iso7816.chip_line import Chip

CHUNK_BYTES: Final = 4096


async def serve_rack(chips: Sequence[Chip], listeners: Sequence[trio.SocketListener]) -> None:
    """Put each chip behind the listener in its place, one for each. It does not end by itself.

    A chip is powered anew for each connection. The newest connection has it: what the line lost is not waited for.
    """
    async with trio.open_nursery() as nursery:
        for chip, listener in zip(chips, listeners, strict=True):
            nursery.start_soon(_serve_slot, chip, listener)


async def _serve_slot(chip: Chip, listener: trio.SocketListener) -> None:
    newest = trio.CancelScope()
    # A chip that still computes for the connection before cannot be stopped, only waited for.
    alone = trio.Lock()

    async def attend(stream: trio.SocketStream) -> None:
        nonlocal newest
        newest.cancel()
        newest = trio.CancelScope()
        with newest:
            async with stream, alone:
                await play(chip, stream)

    await trio.serve_listeners(attend, [listener])


async def play(chip: Chip, stream: trio.SocketStream) -> bool:
    """Have the chip, powered anew, answer one connection until it ends; return whether anything came on it."""
    await trio.to_thread.run_sync(chip.reset)
    messages = Messages()
    was_used = False
    try:
        while data := await receive_promptly(stream, CHUNK_BYTES):
            for message in messages.receive_data_untrusted(data):
                was_used = True
                # In a thread: a PSAM syncs its transaction numbers to the disk.
                answer = await trio.to_thread.run_sync(maybe_answer, chip, message)
                if answer is not None:
                    await stream.send_all(framed(answer))
    except (trio.BrokenResourceError, RemoteProtocolError):
        pass  # Whatever it was, the next connection begins afresh.
    return was_used
