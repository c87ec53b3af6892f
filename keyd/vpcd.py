"""Chips in a virtual reader: PSAMs that keyd plays, or simulated cards, behind the `vpcd` driver of vsmartcard.

The driver is the server: pcscd loads it, it listens on one port for each slot of its reader, and whoever connects is
the chip in that slot. Each message has its length before it, two bytes, big-endian. One byte alone is a control;
everything else is a command APDU, and is answered. When either side is started anew, the chip is back in its slot
within seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import trio

from keyd.errors import RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DEFAULT_PORT: Final = 35963

LENGTH_BYTES: Final = 2
CHUNK_BYTES: Final = 4096

# Controls. Others are passed over: the driver waits for an answer to GET_ATR alone.
POWER_OFF, POWER_ON, RESET, GET_ATR = 0, 1, 2, 4
STARTS_ANEW: Final = frozenset({POWER_OFF, POWER_ON, RESET})

# Until the driver is there: soon at first, since it may just be starting, and then without hurry.
FIRST_WAIT_SECONDS: Final = 0.1
LONGEST_WAIT_SECONDS: Final = 2.0


class Chip(Protocol):
    """What can be in a slot. Its methods may wait for a disk; only one of them is called at a time."""

    @property
    def atr(self) -> bytes:
        """The answer to reset."""

    def reset(self) -> bytes:
        """Power the chip off and on again."""

    def transmit(self, command: bytes) -> bytes:
        """Answer one command APDU, whatever the bytes."""


class Messages:
    """The driver's messages out of a stream of bytes, however it was cut."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def receive_data_untrusted(self, data: bytes) -> list[bytes]:
        """Take bytes of the stream in, and return the messages that are whole now.

        Raises:
            RemoteProtocolError: a message has no byte.
        """
        self._buffer += data
        messages = []
        while len(self._buffer) >= LENGTH_BYTES:
            length = int.from_bytes(self._buffer[:LENGTH_BYTES], "big")
            if not length:
                raise RemoteProtocolError("a message of the virtual reader has no byte")
            end = LENGTH_BYTES + length
            if len(self._buffer) < end:
                break
            messages.append(bytes(self._buffer[LENGTH_BYTES:end]))
            del self._buffer[:end]
        return messages


def framed(message: bytes) -> bytes:
    """Return a message as it is sent: its length, 2 bytes, and itself."""
    return len(message).to_bytes(LENGTH_BYTES, "big") + message


def maybe_answer(chip: Chip, message: bytes) -> bytes | None:
    """Have the chip do what a message says; None where no answer is waited for."""
    if len(message) > 1:
        return chip.transmit(message)
    if message[0] == GET_ATR:
        return chip.atr
    if message[0] in STARTS_ANEW:
        chip.reset()
    return None


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
            was_used = await _play(chip, stream)
        tell(slot, False)
        # A driver that is going away may still take connections, and say nothing.
        wait = FIRST_WAIT_SECONDS if was_used else min(2 * wait, LONGEST_WAIT_SECONDS)
        await trio.sleep(wait)


async def _play(chip: Chip, stream: trio.SocketStream) -> bool:
    """Answer one connection until it ends; whether anything came on it."""
    await trio.to_thread.run_sync(chip.reset)
    messages = Messages()
    was_used = False
    try:
        while data := await stream.receive_some(CHUNK_BYTES):
            for message in messages.receive_data_untrusted(data):
                was_used = True
                # In a thread: a PSAM syncs its transaction numbers to the disk.
                answer = await trio.to_thread.run_sync(maybe_answer, chip, message)
                if answer is not None:
                    await stream.send_all(framed(answer))
    except (trio.BrokenResourceError, RemoteProtocolError):
        pass  # Whatever it was, the next connection begins afresh.
    return was_used
