"""Lines over real sockets, among keyd's own two sides and with another program. Invariant: a thin loop of reads and
writes is all that a line needs, and what it speaks is TLS 1.3 as others speak it.
"""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest

from keyd.tls import (
    MAX_CHUNK,
    TlsClientConnection,
    TlsConnection,
    TlsFault,
    TlsKind,
    TlsServerContext,
    TlsState,
)
from tests.tls.lines import (
    CODE,
    KINDS,
    NOW,
    SERVER_ADDRESS,
    SERVER_NAME,
    client_context,
    needs_openssl,
    pki,
    server_context,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.value)

# Everything here takes milliseconds; a busy machine may need seconds.
SECONDS = 30.0

# The other program judges by the machine's clock, which is not at NOW: it is told NOW instead.
AT = ["-attime", str(NOW)]


def receive(line: TlsConnection | TlsClientConnection, sock: socket.socket) -> bytes | None:
    """Read once; None at the end. What TLS wants to say is said, whatever happens."""
    data = sock.recv(MAX_CHUNK)
    try:
        if not data:
            line.receive_eof_untrusted()
            return None
        return line.receive_data_untrusted(data)
    finally:
        with contextlib.suppress(OSError):
            sock.sendall(line.data_to_send())


def receive_until_open(line: TlsClientConnection, sock: socket.socket) -> None:
    while line.is_handshaking:
        receive(line, sock)


class EchoServer:
    """Answers every line in capitals, and remembers each line and what was wrong with it."""

    def __init__(self, context: TlsServerContext) -> None:
        self.lines: list[TlsConnection] = []
        self.faults: list[TlsFault] = []
        self._context = context
        self._listener = socket.create_server((SERVER_ADDRESS, 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with sock:
                sock.settimeout(SECONDS)
                line = self._context.accept(NOW)
                self.lines.append(line)
                try:
                    self._serve(line, sock)
                except TlsFault as fault:
                    self.faults.append(fault)
                except OSError:
                    pass

    def _serve(self, line: TlsConnection, sock: socket.socket) -> None:
        while (plaintext := receive(line, sock)) is not None:
            if plaintext:
                sock.sendall(line.send(plaintext.upper()))
            if line.state is TlsState.PEER_CLOSED:
                sock.sendall(line.close())
                return

    def stop(self) -> None:
        # close() alone does not wake an accept() that waits in another thread.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()


@contextlib.contextmanager
def serving(context: TlsServerContext) -> Iterator[EchoServer]:
    server = EchoServer(context)
    try:
        yield server
    finally:
        server.stop()


def echo(line: TlsClientConnection, port: int, message: bytes) -> bytes:
    """Handshake, say one thing, hear the answer, end in order."""
    with socket.create_connection((SERVER_ADDRESS, port), timeout=SECONDS) as sock:
        sock.sendall(line.data_to_send())
        receive_until_open(line, sock)
        sock.sendall(line.send(message))
        answer = b""
        while len(answer) < len(message):
            answer += receive(line, sock) or b""
        sock.sendall(line.close())
        while line.state is not TlsState.PEER_CLOSED:
            receive(line, sock)
    return answer


@every_kind
def test_a_client_is_answered_and_resumes_over_sockets(kind: TlsKind) -> None:
    context = client_context(kind)
    with serving(server_context(kind)) as server:
        first = context.connect(SERVER_NAME, NOW)
        assert echo(first, server.port, b"hello" * 10_000) == b"HELLO" * 10_000
        again = context.connect(SERVER_ADDRESS, NOW, first.session)
        assert echo(again, server.port, b"again") == b"AGAIN"
    assert [line.is_resumed for line in server.lines] == [False, True]
    assert not server.faults


@pytest.fixture
def files(tmp_path: Path) -> Path:
    made = pki(TlsKind.STANDARD)
    terminal = made.terminals[CODE]
    contents = {
        "ca.pem": made.authority.certificate,
        "server.pem": made.server.certificate,
        "server.key": made.server.private_key,
        "terminal.pem": terminal.certificate,
        "terminal.key": terminal.private_key,
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


AS_TERMINAL = ("-cert", "terminal.pem", "-key", "terminal.key")


def s_client(files: Path, server: EchoServer, *options: str) -> str:
    """Run the system's TLS client for one exchange; return all that it wrote."""
    command = [
        *("openssl", "s_client", "-connect", f"{SERVER_ADDRESS}:{server.port}", "-quiet"),
        *("-no_ign_eof", "-CAfile", "ca.pem", "-verify_return_error", *AT, *options),
    ]
    with subprocess.Popen(
        command,
        cwd=files,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(b"spoken by another\n")
            process.stdin.flush()
        said = b""
        while b"SPOKEN BY ANOTHER" not in said:
            line = process.stdout.readline()
            if not line:
                break
            said += line
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        said += process.stdout.read()
        process.wait(SECONDS)
    return said.decode()


@needs_openssl
@pytest.mark.parametrize("group", ["X25519", "P-256"])
def test_another_programs_client_is_answered(files: Path, group: str) -> None:
    with serving(server_context(TlsKind.STANDARD)) as server:
        said = s_client(files, server, "-groups", group, *AS_TERMINAL)
    assert "SPOKEN BY ANOTHER" in said
    (line,) = server.lines
    assert line.suite == "TLS_AES_128_GCM_SHA256"
    assert (line.group or "").lower() == {"X25519": "x25519", "P-256": "secp256r1"}[group]


REFUSED = {
    "no certificate": ((), "peer did not return a certificate"),
    "a server's certificate": (("-cert", "server.pem", "-key", "server.key"), "purpose"),
    "TLS 1.2": (("-tls1_2", *AS_TERMINAL), "unsupported protocol"),
    "a group that is not offered": (("-groups", "P-521", *AS_TERMINAL), "key share"),
    "a suite that is not offered": (
        ("-ciphersuites", "TLS_CHACHA20_POLY1305_SHA256", *AS_TERMINAL),
        "no shared cipher",
    ),
}


@needs_openssl
@pytest.mark.parametrize("why", REFUSED)
def test_another_programs_client_is_refused(files: Path, why: str) -> None:
    options, cause = REFUSED[why]
    with serving(server_context(TlsKind.STANDARD)) as server:
        said = s_client(files, server, *options)
    assert "SPOKEN" not in said
    assert "alert" in said
    (fault,) = server.faults
    assert cause in fault.cause


@needs_openssl
def test_another_programs_client_resumes(files: Path) -> None:
    with serving(server_context(TlsKind.STANDARD)) as server:
        s_client(files, server, *AS_TERMINAL, "-sess_out", "session.pem")
        said = s_client(files, server, *AS_TERMINAL, "-sess_in", "session.pem")
    assert "SPOKEN BY ANOTHER" in said
    assert [line.is_resumed for line in server.lines] == [False, True]
    assert server.lines[1].peer_certificate is not None
    assert server.lines[1].peer_certificate.common_name == CODE


@contextlib.contextmanager
def s_server(files: Path, *options: str) -> Iterator[int]:
    """The system's TLS server, which answers each line in reverse; the port that it listens on."""
    command = [
        *("openssl", "s_server", "-accept", f"{SERVER_ADDRESS}:0", "-rev"),
        *("-cert", "server.pem", "-key", "server.key", "-CAfile", "ca.pem"),
        *("-Verify", "1", "-verify_return_error", *AT, *options),
    ]
    with subprocess.Popen(
        command, cwd=files, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if found := re.match(r"ACCEPT .*:(\d+)$", line):
                    yield int(found[1])
                    break
            else:
                raise AssertionError("the other program's server does not listen")
        finally:
            process.kill()


@needs_openssl
def test_another_programs_server_answers_keyds_client(files: Path) -> None:
    with s_server(files) as port:
        line = client_context(TlsKind.STANDARD).connect(SERVER_NAME, NOW)
        with socket.create_connection((SERVER_ADDRESS, port), timeout=SECONDS) as sock:
            sock.sendall(line.data_to_send())
            receive_until_open(line, sock)
            sock.sendall(line.send(b"abc\n"))
            answer = b""
            while not answer.endswith(b"\n"):
                answer += receive(line, sock) or b""
    assert answer == b"cba\n"
    assert line.peer_certificate is not None
    assert line.peer_certificate.common_name == SERVER_NAME


@needs_openssl
@pytest.mark.parametrize(
    ("options", "cause"),
    [(("-tls1_2",), "protocol version"), (("-groups", "P-521"), "handshake failure")],
    ids=["TLS 1.2", "wrong group"],
)
def test_keyds_client_refuses_a_server_of_something_else(
    files: Path, options: tuple[str, ...], cause: str
) -> None:
    with s_server(files, *options) as port:
        line = client_context(TlsKind.STANDARD).connect(SERVER_NAME, NOW)
        with socket.create_connection((SERVER_ADDRESS, port), timeout=SECONDS) as sock:
            sock.sendall(line.data_to_send())
            with pytest.raises(TlsFault) as refused:
                receive_until_open(line, sock)
    assert cause in refused.value.cause
