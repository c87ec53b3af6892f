"""An encrypted line of a client: conversations go through it, and it resumes where the last one was. No I/O.

There is no way back to a plain line in here: what cannot be encrypted is not said.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from keyd.client.conversation import ConnectionLost
from keyd.protocol.proof import NO_BINDING
from keyd.tls import TlsFault, TlsState

if TYPE_CHECKING:
    from keyd.client.conversation import Talk
    from keyd.tls import ClientSession, TlsClientConnection, TlsClientContext

T = TypeVar("T")


class LineRefused(ConnectionLost):
    """One of the two ends did not accept the other's TLS; asking again changes nothing. The text has the cause."""

    def __init__(self, fault: TlsFault) -> None:
        super().__init__(f"there is no encrypted line: {fault.cause}")


class Lines:
    """The encrypted lines of one client, one after the other."""

    def __init__(self, context: TlsClientContext, server_name: str) -> None:
        self._context = context
        self._server_name = server_name
        self._session: ClientSession | None = None
        self._line: TlsClientConnection | None = None

    def begin(self) -> Talk[None]:
        """Begin another line: shake hands."""
        self.end()
        line = self._context.connect(self._server_name, int(time.time()), self._session)
        self._line = line
        try:
            while line.is_handshaking:
                line.receive_data_untrusted((yield line.data_to_send()))
        except TlsFault as fault:
            raise LineRefused(fault) from None

    @property
    def binding(self) -> bytes:
        """What a signature on this line is bound to, 32 bytes."""
        return NO_BINDING if self._line is None else self._line.channel_binding

    def carry(self, talk: Talk[T]) -> Talk[T]:
        """Have a conversation on the line: what it says and hears is encrypted on its way."""
        line = self._line
        if line is None:
            raise ConnectionLost("not connected")
        try:
            # What the handshake has left to say goes first.
            to_send = line.data_to_send() + line.send(next(talk))
            while True:
                heard = line.receive_data_untrusted((yield to_send))
                to_send = line.data_to_send()
                if heard:
                    to_send += line.send(talk.send(heard))
                elif line.state is TlsState.PEER_CLOSED:
                    raise ConnectionLost("keyd closed the connection")
        except StopIteration as stop:
            result: T = stop.value
            return result
        except TlsFault as fault:
            raise LineRefused(fault) from None

    def end(self) -> bytes:
        """Let go of the line; return what is to be said before hanging up. After a fault, the next begins anew."""
        line, self._line = self._line, None
        if line is None or line.is_handshaking:
            return b""
        self._session = line.session
        return line.close()
