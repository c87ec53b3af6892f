"""A chip at the end of a line: what is said on it, by the `vpcd` driver of vsmartcard and by racks of PSAMs alike.

Each message has its length before it, two bytes, big-endian. One byte alone is a control; everything else is a
command APDU, and is answered, framed in the same way, by data and status word. Nothing but the order says which answer
belongs to which command. Who connects to whom, and when an answer is too late, is not known here.
"""

from __future__ import annotations

from typing import Final, Protocol

from keyd.errors import RemoteProtocolError

LENGTH_BYTES: Final = 2
MAX_MESSAGE_BYTES: Final = 0xFFFF

# Controls. Others are passed over: GET_ATR alone is answered.
POWER_OFF, POWER_ON, RESET, GET_ATR = 0, 1, 2, 4
STARTS_ANEW: Final = frozenset({POWER_OFF, POWER_ON, RESET})


class Chip(Protocol):
    """What can be at the end of a line. Its methods may wait for a disk; only one of them is called at a time."""

    @property
    def atr(self) -> bytes:
        """The answer to reset."""

    def reset(self) -> bytes:
        """Power the chip off and on again."""

    def transmit(self, command: bytes) -> bytes:
        """Answer one command APDU, whatever the bytes."""


class Messages:
    """The messages out of a stream of bytes, however it was cut; none longer than `longest` bytes."""

    def __init__(self, longest: int = MAX_MESSAGE_BYTES) -> None:
        self._buffer = bytearray()
        self._longest = longest

    @property
    def is_between(self) -> bool:
        """Whether no message has begun that is not whole."""
        return not self._buffer

    def receive_data_untrusted(self, data: bytes) -> list[bytes]:
        """Take bytes of the stream in, and return the messages that are whole now.

        Raises:
            RemoteProtocolError: a message has no byte, or announces too many.
        """
        self._buffer += data
        messages = []
        while len(self._buffer) >= LENGTH_BYTES:
            length = int.from_bytes(self._buffer[:LENGTH_BYTES], "big")
            if not length:
                raise RemoteProtocolError("a message on the line has no byte")
            # Seen before the message is waited for: what is announced is not buffered either.
            if length > self._longest:
                raise RemoteProtocolError(f"a message on the line has {length} bytes")
            end = LENGTH_BYTES + length
            if len(self._buffer) < end:
                break
            messages.append(bytes(self._buffer[LENGTH_BYTES:end]))
            del self._buffer[:end]
        return messages


def framed(message: bytes) -> bytes:
    """Return a message of 1 to 65535 bytes as it is sent: its length, 2 bytes, and itself."""
    return len(message).to_bytes(LENGTH_BYTES, "big") + message


def control(octet: int) -> bytes:
    """Return a control as it is sent."""
    return framed(bytes((octet,)))


def maybe_answer(chip: Chip, message: bytes) -> bytes | None:
    """Have the chip do what a message says; None where no answer is waited for."""
    if len(message) > 1:
        return chip.transmit(message)
    if message[0] == GET_ATR:
        return chip.atr
    if message[0] in STARTS_ANEW:
        chip.reset()
    return None
