"""Lines over memory for tests: a PKI that is made once for each kind, and two ends that talk until both are silent."""

from __future__ import annotations

import datetime
import functools
import shutil
from typing import TYPE_CHECKING, Any, Final

import pytest

from keyd.tls import (
    TlsClientConnection,
    TlsClientContext,
    TlsConnection,
    TlsFault,
    TlsKind,
    TlsServerContext,
)
from keyd.tls.pki import SyntheticPki, Validity, synthetic_pki

if TYPE_CHECKING:
    from OpenSSL import SSL

SERVER_NAME: Final = "keyd.example"
SERVER_ADDRESS: Final = "127.0.0.1"
CODE: Final = "510100-0001"
OTHER_CODE: Final = "510100-0002"

DAY: Final = 86_400

# Not the machine's time: a line is judged by the time that it was given.
TODAY: Final = datetime.datetime(2030, 6, 15, 12, 0, 0, tzinfo=datetime.UTC)
NOW: Final = int(TODAY.timestamp())
VALIDITY: Final = Validity(TODAY - datetime.timedelta(days=10), TODAY + datetime.timedelta(days=10))

KINDS: Final = list(TlsKind)

needs_openssl = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="the other program is openssl, and there is none"
)

# A handshake takes three flights; tickets and alerts come after. Whoever needs more is going in circles.
MAX_TURNS: Final = 8


@functools.cache
def pki(kind: TlsKind) -> SyntheticPki:
    return synthetic_pki(kind, VALIDITY, [SERVER_NAME, SERVER_ADDRESS], [CODE, OTHER_CODE])


@functools.cache
def stranger_pki(kind: TlsKind) -> SyntheticPki:
    """The same in everything but its keys."""
    return synthetic_pki(kind, VALIDITY, [SERVER_NAME], [CODE])


def server_context(kind: TlsKind, **changes: Any) -> TlsServerContext:
    made = pki(kind)
    arguments: dict[str, Any] = {
        "certificate": made.server.certificate,
        "private_key": made.server.private_key,
        "client_authorities": made.authority.certificate,
    }
    return TlsServerContext(kind, **arguments | changes)


def client_context(kind: TlsKind, **changes: Any) -> TlsClientContext:
    made = pki(kind)
    arguments: dict[str, Any] = {
        "certificate": made.terminals[CODE].certificate,
        "private_key": made.terminals[CODE].private_key,
        "server_authorities": made.authority.certificate,
    }
    return TlsClientContext(kind, **arguments | changes)


def talk(client: TlsClientConnection, server: TlsConnection) -> None:
    """Carry bytes until both are silent. What a fault leaves to be said is carried too."""
    faults = []
    for _ in range(MAX_TURNS):
        moved = False
        for source, target in ((client, server), (server, client)):
            data = source.data_to_send()
            if data and not target.is_broken:
                moved = True
                try:
                    target.receive_data_untrusted(data)
                except TlsFault as fault:
                    faults.append(fault)
        if not moved:
            break
    if faults:
        raise faults[0]


def open_line(
    kind: TlsKind,
    server: TlsServerContext | None = None,
    client: TlsClientContext | None = None,
    *,
    server_name: str = SERVER_NAME,
    session: SSL.Session | None = None,
) -> tuple[TlsClientConnection, TlsConnection]:
    connecting = (client or client_context(kind)).connect(server_name, NOW, session)
    accepting = (server or server_context(kind)).accept(NOW)
    talk(connecting, accepting)
    return connecting, accepting
