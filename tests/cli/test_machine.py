"""A machine gets its certificate with a one-time code: its own and for its own key, or nothing is written."""

from __future__ import annotations

import json
import socket
import stat
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest
from typer.testing import CliRunner

from keyd.cli.main import app
from keyd.client import ConnectionLost
from keyd.config import ConfigError
from keyd.errors import (
    BadParameter,
    KeyFileUnusable,
    Refusal,
    RemoteProtocolError,
    TerminalNotAuthentic,
)
from keyd.protocol.commands import TABLE
from keyd.protocol.connection import ServerConnection, answer_bytes, refusal_bytes
from keyd.protocol.messages.registry import Enrolled, EnrolWithCode
from keyd.tls import MAX_CHUNK, TlsClientContext, TlsFault, TlsKind, TlsServerContext, TlsState
from keyd.tls.pki import (
    SyntheticPki,
    Validity,
    issue_server,
    issue_terminal,
    random_serial,
    read_request_untrusted,
    synthetic_pki,
)
from tests.tls.lines import talk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CODE: Final = "DESK-1"
# As somebody types it at a Chinese keyboard: keyd reads it, and it is sent as it is.
ENROLMENT_CODE: Final = "SYNTHETIC－CODE 0001"

ADDRESS: Final = "127.0.0.1"
FAULTS: Final = (Refusal, ConfigError, RemoteProtocolError, ConnectionLost)


class EnrolmentLine:
    """A line on which a machine without a certificate gets one, served by a thread."""

    def __init__(self, kind: TlsKind, made: SyntheticPki, validity: Validity) -> None:
        self.kind, self.made, self.validity = kind, made, validity
        self.issued_for: bytes | None = None
        self.issued_name = CODE
        self.has_wrong_use = False
        self.asked = 0
        self._context = TlsServerContext(
            kind,
            certificate=made.server.certificate,
            private_key=made.server.private_key,
            client_authorities=None,
        )
        self._listener = socket.create_server((ADDRESS, 0))
        self.address = f"{ADDRESS}:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            with peer:
                try:
                    self._talk(peer)
                except (TlsFault, OSError):
                    continue

    def _talk(self, peer: socket.socket) -> None:
        line = self._context.accept(int(time.time()))
        connection = ServerConnection()
        while data := peer.recv(MAX_CHUNK):
            connection.receive_data_untrusted(line.receive_data_untrusted(data))
            peer.sendall(line.data_to_send())
            for ask in connection.next_asks_untrusted(1):
                peer.sendall(line.send(self._answer(ask.msgid, ask.method, ask.params)))
            if line.state is TlsState.PEER_CLOSED:
                return

    def _answer(self, msgid: int | None, method: str, params: Any) -> bytes:
        request = msgspec.convert(params, TABLE[method].request, builtin_types=(bytes,))
        assert isinstance(request, EnrolWithCode)
        self.asked += 1
        if (request.code, request.enrolment_code) != (CODE, ENROLMENT_CODE):
            return refusal_bytes(msgid, TerminalNotAuthentic())
        wanted = read_request_untrusted(request.request, self.kind)
        assert wanted.common_name == CODE
        key = wanted.public_key
        if self.issued_for is not None:
            key = key._replace(point=self.issued_for)
        authority, serial = self.made.authority, random_serial()
        if self.has_wrong_use:
            pem = issue_server(authority, [CODE], key, self.validity, serial)
        else:
            pem = issue_terminal(authority, self.issued_name, key, self.validity, serial)
        return answer_bytes(msgid, Enrolled(pem + authority.certificate))


@pytest.fixture(params=list(TlsKind), ids=lambda kind: kind.value)
def line(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EnrolmentLine]:
    """An enrolment line, and in the folder what the machine was given: the CA and the code."""
    kind: TlsKind = request.param
    validity = Validity(*_today())
    made = synthetic_pki(kind, validity, [ADDRESS], [])
    (tmp_path / "ca.crt").write_bytes(made.authority.certificate)
    (tmp_path / "code").write_text(f" {ENROLMENT_CODE}\r\n")
    (tmp_path / "code").chmod(0o600)
    serving = EnrolmentLine(kind, made, validity)
    try:
        yield serving
    finally:
        serving.close()


def _today() -> tuple[datetime, datetime]:
    now = datetime.now(UTC).replace(microsecond=0)
    return now - timedelta(hours=1), now + timedelta(days=2)


def run(*arguments: object) -> str:
    """Run `keyd terminal`, which succeeds; return what it printed."""
    ended = CliRunner().invoke(app, ["terminal", *map(str, arguments)])
    if isinstance(ended.exception, FAULTS):
        raise ended.exception
    assert ended.exit_code == 0, ended.output
    return ended.stdout


def enrol(line: EnrolmentLine, folder: Path, **changes: str) -> str:
    """Make the machine's key and have it enrolled."""
    key = folder / "desk.key"
    if not key.exists():
        run("request", "--code", CODE, "--out", key, "--kind", line.kind.value)
    words = {
        "--code": CODE,
        "--key": key,
        "--ca": folder / "ca.crt",
        "--code-file": folder / "code",
    }
    options = [each for pair in (words | changes).items() for each in pair]
    return run("enrol-here", line.address, *options)


def test_a_machine_gets_its_certificate_and_opens_a_line_with_it(
    line: EnrolmentLine, tmp_path: Path
) -> None:
    said = enrol(line, tmp_path)
    assert f"The certificate of {CODE}" in said
    assert ENROLMENT_CODE not in said
    assert stat.S_IMODE((tmp_path / "desk.key").stat().st_mode) == 0o600
    certificate = (tmp_path / "desk.key.crt").read_bytes()
    server, now = line.made.server, int(time.time())
    accepting = TlsServerContext(
        line.kind, certificate=server.certificate, private_key=server.private_key,
        client_authorities=line.made.authority.certificate,
    ).accept(now)  # fmt: skip
    connecting = TlsClientContext(
        line.kind, certificate=certificate, private_key=(tmp_path / "desk.key").read_bytes(),
        server_authorities=line.made.authority.certificate,
    ).connect(ADDRESS, now)  # fmt: skip
    talk(connecting, accepting)
    assert accepting.peer_certificate is not None
    assert accepting.peer_certificate.common_name == CODE
    # A second time nothing is asked, so that no code is spent in vain.
    asked = line.asked
    with pytest.raises(KeyFileUnusable, match="never overwritten"):
        enrol(line, tmp_path)
    assert line.asked == asked == 1


def test_the_request_is_what_the_terminal_made(tmp_path: Path) -> None:
    told = json.loads(run("request", "--code", CODE, "--out", tmp_path / "k", "--json"))
    assert told == {
        "code": CODE, "kind": "guomi", "private_key": str(tmp_path / "k"), "request": str(tmp_path / "k.csr"),
    }  # fmt: skip
    asked = read_request_untrusted((tmp_path / "k.csr").read_bytes(), TlsKind.GUOMI)
    assert asked.common_name == CODE
    with pytest.raises(KeyFileUnusable, match="never overwritten"):
        run("request", "--code", CODE, "--out", tmp_path / "k")


def test_a_wrong_code_is_keyds_to_refuse(line: EnrolmentLine, tmp_path: Path) -> None:
    (tmp_path / "code").write_text("SYNTHETIC-CODE-0002\n")
    with pytest.raises(TerminalNotAuthentic) as refusal:
        enrol(line, tmp_path)
    assert "0002" not in str(refusal.value)
    assert not (tmp_path / "desk.key.crt").exists()


def test_a_code_that_others_may_read_is_not_sent(line: EnrolmentLine, tmp_path: Path) -> None:
    (tmp_path / "code").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        enrol(line, tmp_path)
    (tmp_path / "code").chmod(0o600)
    for wrong in (b"x" * 65, b"\xff", b" \n"):
        (tmp_path / "code").write_bytes(wrong)
        with pytest.raises(BadParameter, match=r"the enrolment code is|an enrolment code has"):
            enrol(line, tmp_path)
    assert line.asked == 0


def test_a_certificate_that_is_not_its_own_is_thrown_away(
    line: EnrolmentLine, tmp_path: Path
) -> None:
    line.issued_for = line.made.authority.key.public.point
    with pytest.raises(RemoteProtocolError, match="not this terminal's"):
        enrol(line, tmp_path)
    line.issued_for, line.issued_name = None, "DESK-2"
    with pytest.raises(RemoteProtocolError, match="not this terminal's"):
        enrol(line, tmp_path)
    line.issued_name, line.has_wrong_use = CODE, True
    with pytest.raises(RemoteProtocolError, match="not this terminal's"):
        enrol(line, tmp_path)
    assert not (tmp_path / "desk.key.crt").exists()


def test_a_stranger_gets_no_code(line: EnrolmentLine, tmp_path: Path) -> None:
    other = synthetic_pki(line.kind, line.validity, [ADDRESS], [])
    (tmp_path / "ca.crt").write_bytes(other.authority.certificate)
    with pytest.raises(ConnectionLost):
        enrol(line, tmp_path)
    assert line.asked == 0


@pytest.mark.parametrize("address", ["unix:/run/keyd/keyd.sock", "keyd.example", "host:port"])
def test_an_enrolment_line_is_a_host_and_a_port(address: str, tmp_path: Path) -> None:
    run("request", "--code", CODE, "--out", tmp_path / "k")
    (tmp_path / "ca.crt").write_text("x")
    words = ["--code", CODE, "--key", tmp_path / "k", "--ca", tmp_path / "ca.crt"]
    with pytest.raises(ConfigError, match="write HOST:PORT"):
        run("enrol-here", address, *words, "--code-file", tmp_path / "none")
