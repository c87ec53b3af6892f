"""Both sides of one line: ciphertext in, plaintext out, and back, over memory only.

A driver feeds what it read with `receive_data_untrusted`, passes on the plaintext that this returns, and writes what
`data_to_send` has after every call: handshake, tickets and alerts leave that way too. The time is an argument, once
for each connection. What goes wrong on the peer's side is `TlsFault`, whatever it is: its text is always the same, and
its cause is for the log alone.

Memory per line is bounded: of input there is at most one record unread, of output nothing that `data_to_send` has not
been asked for beyond one flight, and a handshake ends or is over after MAX_HANDSHAKE bytes.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import ipaddress
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from OpenSSL import SSL

from keyd.errors import LocalProtocolError, RemoteProtocolError
from keyd.tls import openssl
from keyd.tls.pki import PublicKey, public_key_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from OpenSSL import crypto

    from keyd.tls.kinds import TlsKind

# A driver reads at most this much at once; the same as the protocol above.
MAX_CHUNK: Final = 64 * 1024

# What a peer may send before its handshake is done, with the chunk that ends it: OpenSSL itself would buffer 100 KiB
# of certificates. An honest flight has 2 KiB, and 4 with two intermediates.
MAX_HANDSHAKE: Final = MAX_CHUNK + 16 * 1024

# What may be sent at once: the unsent answers of a connection and a share of a tick's, with room.
MAX_SEND: Final = 4 * 1024 * 1024

# RFC 8446 §5.1, §5.2: the most plaintext in a record, and the most that a record adds: header, type and tag.
_RECORD: Final = 16 * 1024
_RECORD_OVERHEAD: Final = 5 + 1 + 16

# Reads of one chunk that bring no data. A key update is one or two of them and may cost a new key and an answer, some
# 30 µs, and a chunk has room for 2,400. Honest peers send two tickets, or one update in millions of records.
MAX_IDLE_READS: Final = 64

# RFC 9266: what a proof of the terminal is bound to.
_EXPORTER_LABEL: Final = b"EXPORTER-Channel-Binding"
_EXPORTER_BYTES: Final = 32


# A certificate, and what its holder sent along to lead to a CA.
CertificateChain: TypeAlias = list[x509.Certificate]

# What a client resumes with.
ClientSession: TypeAlias = SSL.Session


class TlsFault(RemoteProtocolError):  # noqa: N818 - says what happened
    """The peer's TLS is at fault and the line is over. `cause` is for the log and for nobody else."""

    def __init__(self, cause: str) -> None:
        super().__init__("the line is not good TLS")
        self.cause = cause


class TlsState(enum.Enum):
    """Where a line is."""

    HANDSHAKING = "handshaking"
    OPEN = "open"
    PEER_CLOSED = "peer closed"
    """The peer has said that it sends no more. It may still read."""
    BROKEN = "broken"


class PeerCertificate(NamedTuple):
    """Who is at the other end, as its certificate says and its CA has signed."""

    common_name: str
    """The terminal's code, of a terminal."""
    serial: int
    public_key: PublicKey
    fingerprint: bytes
    """SHA-256 over the whole certificate, 32 bytes."""
    not_before: int
    """Unix seconds, as `not_after`."""
    not_after: int


class _Line:
    """What both sides have in common."""

    __slots__ = (
        "_expects_certificate",
        "_fault",
        "_handshake_bytes",
        "_has_closed",
        "_kind",
        "_last_words",
        "_now",
        "_ssl",
        "_state",
        "peer_certificate",
    )

    def __init__(
        self, context: SSL.Context, kind: TlsKind, now: int, *, expects_certificate: bool = True
    ) -> None:
        self._kind = kind
        self._now = now
        self._expects_certificate = expects_certificate
        self._ssl = SSL.Connection(context)
        openssl.set_moment(self._ssl, now)
        openssl.return_after_each_record(self._ssl)
        self._state = TlsState.HANDSHAKING
        self._handshake_bytes = 0
        self._has_closed = False
        self._fault: TlsFault | None = None
        # What is left to be written once the line is broken: the alert.
        self._last_words = b""
        self.peer_certificate: PeerCertificate | None = None

    @property
    def state(self) -> TlsState:
        """Where the line is."""
        return self._state

    @property
    def is_handshaking(self) -> bool:
        """Whether the next call may cost a handshake step, some hundred microseconds."""
        return self._state is TlsState.HANDSHAKING

    @property
    def is_broken(self) -> bool:
        """Whether the peer was at fault: the next call that receives raises."""
        return self._state is TlsState.BROKEN

    @property
    def is_resumed(self) -> bool:
        """Whether the handshake was shortened by a ticket."""
        return openssl.is_resumed(self._ssl)

    @property
    def suite(self) -> str | None:
        """The cipher suite that was agreed on."""
        return self._ssl.get_cipher_name()

    @property
    def group(self) -> str | None:
        """The group that was agreed on."""
        return self._ssl.get_group_name()

    @property
    def channel_binding(self) -> bytes:
        """32 bytes that only the two ends of this one line know (RFC 9266, tls-exporter)."""
        if self.is_handshaking or self.is_broken:
            raise LocalProtocolError("there is no channel before the handshake, nor after a fault")
        return self._ssl.export_keying_material(_EXPORTER_LABEL, _EXPORTER_BYTES)

    def peer_chain(self) -> CertificateChain:
        """Return the peer's certificate and what came after it; a resumed line has nothing of the latter."""
        own = self._ssl.get_peer_certificate(as_cryptography=True)
        if own is None:
            return []
        # With its own certificate first on a client's side, and without it on a server's.
        sent = self._ssl.get_peer_cert_chain(as_cryptography=True) or []
        return [own, *(certificate for certificate in sent if certificate != own)]

    def receive_data_untrusted(self, data: bytes | bytearray | memoryview) -> bytes:
        """Take what the peer sent, at most MAX_CHUNK bytes; return the plaintext that it completes.

        Raises:
            TlsFault: the bytes are not what a good peer sends. Good plaintext before them has been returned.
        """
        if len(data) > MAX_CHUNK:
            raise LocalProtocolError(f"at most {MAX_CHUNK} bytes may be received at once")
        if self._fault is not None:
            raise self._fault
        # After close_notify the peer has nothing to say, and nothing is kept of it (RFC 8446 §6.1).
        if not data or self._state is TlsState.PEER_CLOSED:
            return b""
        if self._state is TlsState.HANDSHAKING:
            self._handshake_bytes += len(data)
            if self._handshake_bytes > MAX_HANDSHAKE:
                self._fail("the handshake is longer than the limit")
            self._ssl.bio_write(data)
            if not self._has_shaken_hands():
                return b""
        else:
            self._ssl.bio_write(data)
        return self._read()

    def receive_eof_untrusted(self) -> None:
        """The peer's socket will bring no more.

        Raises:
            TlsFault: the peer never said that it was done, so something may be missing.
        """
        if self._fault is not None:
            raise self._fault
        if self._state is not TlsState.PEER_CLOSED:
            self._fail("the stream ended without close_notify")

    def send(self, plaintext: bytes | bytearray | memoryview) -> bytes:
        """Encrypt, at most MAX_SEND bytes; return everything that is to be written now.

        Raises:
            LocalProtocolError: before the handshake, after `close`, or too much at once.
            TlsFault: the line is broken.
        """
        if self._fault is not None:
            raise self._fault
        if self._state is TlsState.HANDSHAKING or self._has_closed:
            raise LocalProtocolError("plaintext is sent between the handshake and the end")
        if len(plaintext) > MAX_SEND:
            raise LocalProtocolError(f"at most {MAX_SEND} bytes may be sent at once")
        if plaintext:
            self._ssl.sendall(plaintext)
        records = len(plaintext) // _RECORD + 1
        return self._drain(len(plaintext) + records * _RECORD_OVERHEAD)

    def data_to_send(self) -> bytes:
        """Return what TLS itself wants written, once: handshake, tickets, alerts. To be asked after every receiving."""
        if self._fault is not None:
            last_words, self._last_words = self._last_words, b""
            return last_words
        return self._drain(_RECORD) if openssl.has_unsent(self._ssl) else b""

    def close(self) -> bytes:
        """Say close_notify; return what is to be written. Safe to call twice; the peer may still send."""
        if self._fault is not None or self._has_closed:
            return self.data_to_send()
        self._has_closed = True
        # Within a handshake OpenSSL refuses, and there is nothing that the peer could mistake for the end.
        with contextlib.suppress(SSL.Error):
            self._ssl.shutdown()
        openssl.forget_verification()
        return self._drain(_RECORD)

    def _has_shaken_hands(self) -> bool:
        openssl.forget_verification()
        try:
            self._ssl.do_handshake()
        except SSL.WantReadError:
            return False
        except SSL.Error as error:
            self._fail(openssl.cause_of(error))
        try:
            if self._expects_certificate:
                self.peer_certificate = self._read_peer_certificate()
        except ValueError as error:
            # What OpenSSL wants to say is "welcome", with tickets: a peer that is not gets none.
            self._drain(_RECORD)
            self._fail(str(error))
        self._state = TlsState.OPEN
        return True

    def _read(self) -> bytes:
        pieces = []
        idle_reads = 0
        openssl.forget_verification()
        while True:
            try:
                pieces.append(self._ssl.recv(_RECORD))
            except SSL.WantReadError:
                if not openssl.has_unread(self._ssl):
                    break
                idle_reads += 1
                if idle_reads > MAX_IDLE_READS:
                    self._break("too many records without data")
                    break
            except SSL.ZeroReturnError:
                self._state = TlsState.PEER_CLOSED
                break
            except SSL.Error as error:
                self._break(openssl.cause_of(error))
                break
        # The good ones come first; the next call raises.
        if self._fault is not None and not pieces:
            raise self._fault
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _read_peer_certificate(self) -> PeerCertificate:
        try:
            certificate = self._ssl.get_peer_certificate(as_cryptography=True)
        except x509.InvalidVersion:
            # OpenSSL does not mind.
            raise ValueError("the certificate is of a version that does not exist") from None
        if certificate is None:
            raise ValueError("there is no certificate")
        peer = read_certificate(certificate)
        if peer.public_key.kind is not self._kind:
            raise ValueError("the certificate's key is of the other kind")
        # A ticket resumes without looking at the certificate again, so whether it has expired is asked here.
        if not peer.not_before <= self._now <= peer.not_after:
            raise ValueError("the certificate of a resumed session is not valid now")
        return peer

    def _drain(self, expected: int) -> bytes:
        pieces = []
        with contextlib.suppress(SSL.WantReadError):
            while True:
                piece = self._ssl.bio_read(expected)
                pieces.append(piece)
                if len(piece) < expected:
                    break
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _break(self, cause: str) -> None:
        self._last_words = self._drain(_RECORD)
        self._state = TlsState.BROKEN
        self._fault = TlsFault(cause)
        self.peer_certificate = None

    def _fail(self, cause: str) -> NoReturn:
        self._break(cause)
        assert self._fault is not None  # noqa: S101 - for the type checker: _break has just set it
        raise self._fault from None


class TlsConnection(_Line):
    """keyd's side of one line: made by `TlsServerContext.accept`."""

    __slots__ = ()

    def __init__(
        self, context: SSL.Context, kind: TlsKind, now: int, *, expects_certificate: bool
    ) -> None:
        super().__init__(context, kind, now, expects_certificate=expects_certificate)
        self._ssl.set_accept_state()

    @property
    def kind(self) -> TlsKind:
        """Which kind of line it is."""
        return self._kind


class TlsClientConnection(_Line):
    """A client's side of one line: made by `TlsClientContext.connect`. It speaks first: `data_to_send`."""

    __slots__ = ()

    def __init__(
        self,
        context: SSL.Context,
        kind: TlsKind,
        now: int,
        server_name: str,
        session: SSL.Session | None,
    ) -> None:
        super().__init__(context, kind, now)
        try:
            address = ipaddress.ip_address(server_name)
        except ValueError:
            openssl.expect_host(self._ssl, server_name)
            self._ssl.set_tlsext_host_name(server_name.encode("ascii"))
        else:
            openssl.expect_address(self._ssl, address.packed)
        if session is not None:
            self._ssl.set_session(session)
        self._ssl.set_connect_state()
        self._has_shaken_hands()

    @property
    def session(self) -> SSL.Session | None:
        """What the next connection of the same context may resume with; good once something was received."""
        return None if self.is_broken else self._ssl.get_session()


class TlsServerContext:
    """What all lines of a port share. It never changes: new certificates, a new revocation list or new ticket keys
    are a new context, and lines that are open keep theirs.
    """

    def __init__(
        self,
        kind: TlsKind,
        *,
        certificate: bytes,
        private_key: bytes,
        client_authorities: bytes | None,
        revoked: bytes | None = None,
        groups: Sequence[str] | None = None,
    ) -> None:
        """Take PEM: the server's certificate, with its intermediates after it, and what clients are judged by.

        Without `client_authorities`, clients are asked for no certificate: that is a line on which they get one.

        Raises:
            TlsUnusable: the sentence says what is missing or does not fit.
        """
        self.kind = kind
        self._authorities = client_authorities
        self._revoked = revoked

        def make() -> SSL.Context:
            return openssl.make_context(
                SSL.TLS_SERVER_METHOD,
                kind,
                authorities=client_authorities,
                certificate=certificate,
                private_key=private_key,
                revoked=revoked,
                groups=groups,
            )

        self._make = make
        self._context = make()

    def accept(self, now: int) -> TlsConnection:
        """Begin the server's side of a line at this time, in Unix seconds."""
        is_mutual = self._authorities is not None
        return TlsConnection(self._context, self.kind, now, expects_certificate=is_mutual)

    def judge(self, now: int) -> ClientJudge:
        """Return what judges clients of other contexts by this one's authorities and lists, at this time."""
        if self._authorities is None:
            raise LocalProtocolError("a line without authorities judges nobody")
        return ClientJudge(openssl.make_store(self.kind, self._authorities, self._revoked, now))

    def rotate_ticket_keys(self) -> None:
        """Forget the key of all tickets given so far: their holders make a full handshake next time."""
        # OpenSSL draws a ticket key with each context and keeps it as long.
        self._context = self._make()


class ClientJudge:
    """Judges certificates at one time by the authorities and revocation lists of a context: for lines that were let in
    by an earlier one.
    """

    def __init__(self, store: crypto.X509Store) -> None:
        self._store = store

    def require_trusted(self, chain: CertificateChain) -> None:
        """Judge a certificate, with what came after it.

        Raises:
            TlsFault: it would not be let in now, or cannot be judged.
        """
        if not chain:
            raise TlsFault("there is no certificate")
        try:
            openssl.require_trusted(self._store, chain)
        except ValueError as error:
            raise TlsFault(str(error)) from None


class TlsClientContext:
    """What all lines of a client share: sessions resume only within one context."""

    def __init__(
        self,
        kind: TlsKind,
        *,
        server_authorities: bytes,
        certificate: bytes | None = None,
        private_key: bytes | None = None,
        revoked: bytes | None = None,
        groups: Sequence[str] | None = None,
    ) -> None:
        """Take PEM: the terminal's certificate and key, and what the server is judged by.

        Without a certificate there is only one thing to ask for: one, on an enrolment line.

        Raises:
            TlsUnusable: the sentence says what is missing or does not fit.
        """
        self.kind = kind
        self._context = openssl.make_context(
            SSL.TLS_CLIENT_METHOD,
            kind,
            authorities=server_authorities,
            certificate=certificate,
            private_key=private_key,
            revoked=revoked,
            groups=groups,
        )

    def connect(
        self, server_name: str, now: int, session: SSL.Session | None = None
    ) -> TlsClientConnection:
        """Begin the client's side of a line to a DNS name or an IP address that the certificate must have."""
        return TlsClientConnection(self._context, self.kind, now, server_name, session)


def read_certificate(certificate: x509.Certificate) -> PeerCertificate:
    """Read what keyd wants to know of a certificate.

    Raises:
        ValueError: there is not exactly one common name, or the key is no point on one of the two curves.
    """
    try:
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except TypeError:
        raise ValueError("the certificate's subject has an attribute that none may have") from None
    if len(names) != 1 or not isinstance(names[0].value, str):
        raise ValueError("the certificate has not exactly one common name")
    der = certificate.public_bytes(Encoding.DER)
    return PeerCertificate(
        common_name=names[0].value,
        serial=certificate.serial_number,
        public_key=public_key_of(certificate),
        fingerprint=hashlib.sha256(der).digest(),
        not_before=int(certificate.not_valid_before_utc.timestamp()),
        not_after=int(certificate.not_valid_after_utc.timestamp()),
    )
