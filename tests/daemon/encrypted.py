"""A daemon with encrypted lines for tests: its PKI, its files, and peers that speak TLS or misuse it."""

from __future__ import annotations

import datetime
import functools
import socket
import time
from typing import TYPE_CHECKING, Any, Final

from cryptography import x509

from keyd.client import Client, Enrolment
from keyd.keys.synthetic import synthetic_terminal_key
from keyd.tls import MAX_CHUNK, TlsClientContext, TlsKind, TlsState
from keyd.tls.pki import SyntheticPki, Validity, make_revocation_list, synthetic_pki
from tests.daemon.conftest import RawPeer, write_private

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import RunningDaemon, StartDaemon
    from tests.daemon.conftest import WriteConfig

SERVER_NAME: Final = "127.0.0.1"
CODES: Final = ("DEV-0001", "DEV-0002", "DEV-0003")

# The daemon looks at the machine's clock.
_DAY: Final = datetime.timedelta(days=1)
TODAY: Final = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
VALIDITY: Final = Validity(TODAY - _DAY, TODAY + _DAY)


@functools.cache
def pki(kind: TlsKind) -> SyntheticPki:
    return synthetic_pki(kind, VALIDITY, [SERVER_NAME], CODES)


@functools.cache
def stranger_pki(kind: TlsKind) -> SyntheticPki:
    """The same in everything but its keys."""
    return synthetic_pki(kind, VALIDITY, [SERVER_NAME], CODES)


def revocation_list(kind: TlsKind, *codes: str, number: int = 1) -> bytes:
    made = pki(kind)
    serials = {serial_of(made.terminals[code].certificate): TODAY - _DAY for code in codes}
    return make_revocation_list(made.authority, serials, TODAY - _DAY, TODAY + _DAY, number)


def serial_of(certificate: bytes) -> int:
    return x509.load_pem_x509_certificate(certificate).serial_number


def write_pki(folder: Path, kind: TlsKind) -> None:
    """Write what an entry of the configuration names."""
    made = pki(kind)
    (folder / f"{kind.value}-server.pem").write_bytes(made.server.certificate)
    write_private(folder / f"{kind.value}-server.key", made.server.private_key.decode())
    (folder / f"{kind.value}-ca.pem").write_bytes(made.authority.certificate)
    (folder / f"{kind.value}-revoked.pem").write_bytes(revocation_list(kind))


def entry(folder: Path, kind: TlsKind, *more: str, enrolment: bool = False) -> tuple[str, ...]:
    """Return the lines of one entry."""
    judged_by = (
        ("enrolment = true",)
        if enrolment
        else (
            f'client_authorities = "{folder / f"{kind.value}-ca.pem"}"',
            f'revoked = "{folder / f"{kind.value}-revoked.pem"}"',
        )
    )
    return (
        "[[listen.tls]]",
        'address = "127.0.0.1:0"',
        f'kind = "{kind.value}"',
        f'certificate = "{folder / f"{kind.value}-server.pem"}"',
        f'private_key = "{folder / f"{kind.value}-server.key"}"',
        *judged_by,
        *more,
    )


class Keyd:
    """A daemon with an encrypted line of one kind, and one for enrolment."""

    def __init__(
        self,
        start_daemon: StartDaemon,
        write_config: WriteConfig,
        folder: Path,
        kind: TlsKind,
        *limits: str,
        env: dict[str, str] | None = None,
    ) -> None:
        self.kind = kind
        self.folder = folder
        self._peers: list[TlsPeer] = []
        write_pki(folder, kind)
        arguments = write_config(
            *(("[limits]", *limits) if limits else ()),
            *entry(folder, kind),
            *entry(folder, kind, enrolment=True),
            terminals=CODES,
        )
        self.daemon: RunningDaemon = start_daemon(*arguments, env=env)

    @property
    def address(self) -> str:
        return str(self.daemon.ready["encrypted"][0])

    @property
    def enrolment_address(self) -> str:
        return str(self.daemon.ready["encrypted"][1])

    def context(self, code: str = "DEV-0001", **changes: Any) -> TlsClientContext:
        return client_context(self.kind, code, **changes)

    def client(self, code: str = "DEV-0001", context: TlsClientContext | None = None) -> Client:
        """Return a client that is not connected yet."""
        enrolment = Enrolment(code, synthetic_terminal_key(code))
        return Client(self.address, enrolment, timeout=20, tls=context or self.context(code))

    def peer(self, code: str = "DEV-0001", context: TlsClientContext | None = None) -> TlsPeer:
        return self.peer_at(self.address, context or self.context(code))

    def peer_at(self, address: str, context: TlsClientContext) -> TlsPeer:
        peer = TlsPeer(address, context)
        self._peers.append(peer)
        return peer

    def close(self) -> None:
        """Hang up all peers, without a word."""
        for peer in self._peers:
            peer.close()


def client_context(kind: TlsKind, code: str = "DEV-0001", **changes: Any) -> TlsClientContext:
    made = pki(kind)
    arguments: dict[str, Any] = {
        "certificate": made.terminals[code].certificate,
        "private_key": made.terminals[code].private_key,
        "server_authorities": made.authority.certificate,
    }
    return TlsClientContext(kind, **arguments | changes)


class _EncryptedSocket:
    """As much of a socket as a raw peer needs, with a line between."""

    def __init__(self, sock: socket.socket, context: TlsClientContext) -> None:
        self.plain = sock
        self.line = context.connect(SERVER_NAME, int(time.time()))
        sock.sendall(self.line.data_to_send())
        while self.line.is_handshaking:
            self._receive()

    def sendall(self, data: bytes) -> None:
        self.plain.sendall(self.line.send(data))

    def recv(self, _size: int) -> bytes:
        while self.line.state is not TlsState.PEER_CLOSED:
            heard = self._receive()
            if heard:
                return heard
        return b""

    def close(self) -> None:
        self.plain.close()

    def _receive(self) -> bytes:
        data = self.plain.recv(MAX_CHUNK)
        if not data:
            self.line.receive_eof_untrusted()
        heard = self.line.receive_data_untrusted(data)
        answer = self.line.data_to_send()
        if answer:
            self.plain.sendall(answer)
        return heard


class TlsPeer(RawPeer):
    """A raw peer on an encrypted line."""

    def __init__(self, address: str, context: TlsClientContext) -> None:
        super().__init__(address)
        self.plain = self.sock
        self.line_socket = _EncryptedSocket(self.plain, context)
        self.line = self.line_socket.line
        self.sock = self.line_socket  # type: ignore[assignment]  # it has what a raw peer uses
