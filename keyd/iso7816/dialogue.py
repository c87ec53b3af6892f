"""A conversation with one chip, written as a generator that does not know where the chip is.

A dialogue yields commands and is sent responses: the chip may be a PSAM in a reader, the PSAM that keyd
plays, a card at a far terminal, or a test. `transmit` is the one step; `converse` runs a whole dialogue over
any function that takes and returns bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Generator
from typing import Final, TypeVar

from keyd.errors import RemoteProtocolError
from keyd.iso7816.apdu import CommandApdu, ResponseApdu
from keyd.iso7816.sw import SW, more_data, right_le, status_word_name

T = TypeVar("T")

Dialogue = Generator[CommandApdu, ResponseApdu, T]

GET_RESPONSE: Final = 0xC0

# The largest response that any Le can ask for. A chip that answers 61xx beyond it would talk for ever.
MAX_CHAINED_BYTES: Final = 0x10000


class UnexpectedStatusWord(Exception):  # noqa: N818 - it says what happened, as the house's exceptions do
    """The chip answered a command with a status word other than 9000. No data are kept."""

    def __init__(self, sw: int, ins: int) -> None:
        super().__init__(f"INS {ins:02X} was answered {status_word_name(sw)}")
        self.sw = sw
        self.ins = ins


def transmit(apdu: CommandApdu) -> Dialogue[bytes]:
    """Send one command and return the data of its response, insisting on status word 9000.

    The two courtesies of T=0 are followed here so that no dialogue need know its transport: 6Cxx repeats
    the command with the Le that the chip wants, 61xx fetches what waits with GET RESPONSE.

    Raises:
        UnexpectedStatusWord: the chip said anything else.
        RemoteProtocolError: the chip announced data without end.
    """
    response = yield apdu
    le = right_le(response.sw)
    if le is not None:
        response = yield dataclasses.replace(apdu, le=le)
    data = response.data
    while (waiting := more_data(response.sw)) is not None:
        response = yield CommandApdu(0x00, GET_RESPONSE, 0x00, 0x00, le=waiting)
        data += response.data
        if not response.data or len(data) > MAX_CHAINED_BYTES:
            break
    if more_data(response.sw) is not None:
        raise RemoteProtocolError("the chip announces data without end")
    if response.sw != SW.OK:
        raise UnexpectedStatusWord(response.sw, apdu.ins)
    return data


def converse(dialogue: Dialogue[T], transceive: Callable[[bytes], bytes]) -> T:
    """Run a dialogue to its end over a function that carries one command to the chip.

    Raises:
        RemoteProtocolError: a response has no status word.
        And whatever the dialogue and `transceive` raise.
    """
    # Closing lets the dialogue's own `finally` run when the transport fails in the middle.
    with contextlib.closing(dialogue):
        response = None
        while True:
            try:
                command = next(dialogue) if response is None else dialogue.send(response)
            except StopIteration as finished:
                result: T = finished.value
                return result
            response = ResponseApdu.parse_untrusted(transceive(bytes(command)))
