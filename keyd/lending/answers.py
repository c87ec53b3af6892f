"""What goes to a chip and what may come from it, wherever it is: a command APDU, and data with a status word."""

from __future__ import annotations

from typing import Final

from keyd.errors import RemoteProtocolError
from keyd.iso7816 import SW, CommandApdu
from keyd.iso7816.atr import MAX_ATR_BYTES

SW_BYTES: Final = 2

# No PSAM has the extended form: 256 bytes of data, and the status word.
MAX_ANSWER_BYTES: Final = 256 + SW_BYTES

# What is answered to bytes that are no command APDU, or one in the extended form, without asking the chip: the answer
# is the one of any chip. A reader may hang on them, and on a rack's line one byte alone would be a control.
NO_COMMAND: Final = int(SW.WRONG_LENGTH).to_bytes(SW_BYTES, "big")


def maybe_command(message: bytes) -> CommandApdu | None:
    """Return the command that a user's bytes are, in the short form; None where they are none."""
    try:
        command = CommandApdu.parse_untrusted(message)
    except RemoteProtocolError:
        return None
    return None if command.extended else command


def check_answer_untrusted(answer: bytes) -> bytes:
    """Return data and status word as they came.

    Raises:
        RemoteProtocolError: they are too short or too long, or there is no status word.
    """
    if not SW_BYTES <= len(answer) <= MAX_ANSWER_BYTES:
        raise RemoteProtocolError(f"an answer of {len(answer)} bytes")
    # ISO 7816-4, 5.6: no status word begins otherwise; 60 is a procedure byte.
    if answer[-2] >> 4 not in (0x6, 0x9) or answer[-2] == 0x60:
        raise RemoteProtocolError("an answer without a status word")
    return answer


def check_atr_untrusted(atr: bytes) -> bytes:
    """Return an ATR as it came. Whether its parts add up is nothing to us: there are chips whose do not.

    Raises:
        RemoteProtocolError: it is no ATR by its length or its first byte.
    """
    if not 2 <= len(atr) <= MAX_ATR_BYTES or atr[0] not in (0x3B, 0x3F):
        raise RemoteProtocolError("no ATR")
    return atr
