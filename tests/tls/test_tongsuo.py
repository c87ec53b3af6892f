"""国密 lines with a program that is not keyd's. Invariant: what keyd speaks is RFC 8998 as Tongsuo speaks it, on both
sides, and neither side believes what it should not.

keyd's own TLS is OpenSSL's; Tongsuo had RFC 8998 before, from others.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Final

import pytest

from keyd.tls import TlsFault, TlsKind
from tests.tls.lines import (
    CODE,
    NOW,
    SERVER_ADDRESS,
    SERVER_NAME,
    client_context,
    pki,
    server_context,
    stranger_pki,
)
from tests.tls.test_sockets import echo, receive_until_open, serving
from tests.tls.tongsuo import (
    SECONDS,
    TongsuoContext,
    TongsuoFault,
    TongsuoLine,
    connected,
    needs_tongsuo,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = needs_tongsuo

GUOMI: Final = TlsKind.GUOMI
MESSAGE: Final = b"spoken by another\n" * 2000


def client(*, is_terminal: bool = True, stranger: bool = False) -> TongsuoContext:
    """A client that trusts keyd's authority, and is a terminal of the same or a stranger's."""
    made = stranger_pki(GUOMI) if stranger else pki(GUOMI)
    own = made.terminals[CODE] if is_terminal else None
    return TongsuoContext(pki(GUOMI).authority.certificate, own, NOW)


def spoken(line: TongsuoLine, message: bytes = MESSAGE) -> bytes:
    line.send(message)
    answer = b""
    while len(answer) < len(message):
        answer += line.receive()
    return answer


def test_its_client_is_answered() -> None:
    with (
        serving(server_context(GUOMI)) as server,
        connected(client(), (SERVER_ADDRESS, server.port), name=SERVER_NAME) as line,
    ):
        assert spoken(line) == MESSAGE.upper()
        (ours,) = server.lines
        assert line.suite == ours.suite == "TLS_SM4_GCM_SM3"
        assert ours.group == "curveSM2"
        assert ours.peer_certificate is not None
        assert ours.peer_certificate.common_name == CODE
        # What a terminal signs to prove itself on this line, and what keyd compares it with.
        assert line.channel_binding == ours.channel_binding


def test_its_client_resumes() -> None:
    context = client()
    with serving(server_context(GUOMI)) as server:
        address = (SERVER_ADDRESS, server.port)
        with connected(context, address) as line:
            spoken(line)
            session = line.session
        with connected(context, address, session=session) as line:
            assert line.is_resumed
            assert spoken(line) == MESSAGE.upper()
        assert [ours.is_resumed for ours in server.lines] == [False, True]
        again = server.lines[1].peer_certificate
        assert again is not None
        assert again.common_name == CODE


@pytest.mark.parametrize(
    ("is_terminal", "stranger", "cause"),
    [(False, False, "did not return a certificate"), (True, True, "unable to get local issuer")],
    ids=["no certificate", "of another authority"],
)
def test_its_client_is_refused(*, is_terminal: bool, stranger: bool, cause: str) -> None:
    context = client(is_terminal=is_terminal, stranger=stranger)
    with (
        serving(server_context(GUOMI)) as server,
        # With TLS 1.3 a client learns of it when it listens.
        pytest.raises(TongsuoFault, match="alert"),
        connected(context, (SERVER_ADDRESS, server.port)) as line,
    ):
        line.receive()
    (fault,) = server.faults
    assert cause in fault.cause


def test_a_client_without_sm4_gets_no_line() -> None:
    made = pki(TlsKind.STANDARD)
    context = TongsuoContext(
        made.authority.certificate,
        made.terminals[CODE],
        NOW,
        suites="TLS_AES_128_GCM_SHA256",
        signatures="ECDSA+SHA256",
    )
    with (
        serving(server_context(GUOMI)) as server,
        pytest.raises(TongsuoFault, match="alert"),
        connected(context, (SERVER_ADDRESS, server.port)),
    ):
        pass
    assert len(server.faults) == 1


def test_its_client_refuses_a_keyd_of_another_name_or_authority() -> None:
    of_stranger = TongsuoContext(stranger_pki(GUOMI).authority.certificate, None, NOW)
    for context, name in ((client(), "another.example"), (of_stranger, SERVER_NAME)):
        with (
            serving(server_context(GUOMI)) as server,
            pytest.raises(TongsuoFault, match="certificate verify failed"),
            connected(context, (SERVER_ADDRESS, server.port), name=name),
        ):
            pass


@contextlib.contextmanager
def tongsuo_serving(context: TongsuoContext) -> Iterator[int]:
    """Its server, which answers one line in capitals; the port that it listens on."""
    with socket.create_server((SERVER_ADDRESS, 0)) as listener:
        listener.settimeout(SECONDS)

        def serve() -> None:
            sock, _ = listener.accept()
            with sock, contextlib.suppress(TongsuoFault):
                line = TongsuoLine(context, sock)
                while said := line.receive():
                    line.send(said.upper())
                line.close()

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def server() -> TongsuoContext:
    made = pki(GUOMI)
    return TongsuoContext(made.authority.certificate, made.server, NOW, is_server=True)


def test_keyds_client_speaks_to_its_server() -> None:
    with tongsuo_serving(server()) as port:
        line = client_context(GUOMI).connect(SERVER_NAME, NOW)
        assert echo(line, port, MESSAGE) == MESSAGE.upper()
    assert line.suite == "TLS_SM4_GCM_SM3"
    assert line.group == "curveSM2"


@pytest.mark.parametrize("name", ["another.example", SERVER_NAME])
def test_keyds_client_refuses_its_server_of_another_name_or_authority(name: str) -> None:
    authorities = {}
    if name == SERVER_NAME:
        authorities["server_authorities"] = stranger_pki(GUOMI).authority.certificate
    with tongsuo_serving(server()) as port:
        line = client_context(GUOMI, **authorities).connect(name, NOW)
        with socket.create_connection((SERVER_ADDRESS, port), timeout=SECONDS) as sock:
            sock.sendall(line.data_to_send())
            with pytest.raises(TlsFault) as refused:
                receive_until_open(line, sock)
    assert refused.value.cause.startswith("certificate: ")
