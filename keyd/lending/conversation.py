"""A dialogue with a chip that has to be waited for: `keyd.iso7816.converse` on trio."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, TypeVar

from keyd.iso7816 import ResponseApdu

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from keyd.iso7816 import Dialogue

T = TypeVar("T")


async def converse(dialogue: Dialogue[T], transceive: Callable[[bytes], Awaitable[bytes]]) -> T:
    """Run a dialogue to its end over a function that carries one command to the chip.

    Raises:
        RemoteProtocolError: a response has no status word.
        And whatever the dialogue and `transceive` raise.
    """
    with contextlib.closing(dialogue):
        response = None
        while True:
            try:
                command = next(dialogue) if response is None else dialogue.send(response)
            except StopIteration as finished:
                result: T = finished.value
                return result
            response = ResponseApdu.parse_untrusted(await transceive(bytes(command)))
