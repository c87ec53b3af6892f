"""Who gets a line and who does not. Invariant: a line opens only between two sides that each hold a certificate of the
other's CA, good at the time that was given, and of one kind; everybody else learns the same one thing.
"""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from OpenSSL import SSL

from keyd.errors import LocalProtocolError, RemoteProtocolError
from keyd.tls import (
    MAX_CHUNK,
    MAX_SEND,
    TlsClientContext,
    TlsConnection,
    TlsFault,
    TlsKind,
    TlsState,
    TlsUnusable,
    kinds,
    openssl,
    require_support,
)
from keyd.tls.pki import (
    Authority,
    Validity,
    _key_usage,
    issue_server,
    issue_terminal,
    load_key,
    make_revocation_list,
)
from tests.tls.lines import (
    CODE,
    DAY,
    KINDS,
    NOW,
    OTHER_CODE,
    SERVER_ADDRESS,
    SERVER_NAME,
    TODAY,
    VALIDITY,
    client_context,
    open_line,
    pki,
    server_context,
    stranger_pki,
    talk,
)

if TYPE_CHECKING:
    from collections.abc import Callable

SUITES = {TlsKind.GUOMI: {"TLS_SM4_GCM_SM3"}, TlsKind.STANDARD: {"TLS_AES_128_GCM_SHA256"}}

every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.value)


def revocation_list(kind: TlsKind, *codes: str, days_ago: int = 1) -> bytes:
    made = pki(kind)
    since = TODAY - datetime.timedelta(days=days_ago)
    serials = {serial_of(kind, code): since for code in codes}
    return make_revocation_list(
        made.authority, serials, since, since + datetime.timedelta(days=2), number=1
    )


def serial_of(kind: TlsKind, code: str) -> int:
    terminal = pki(kind).terminals[code]
    client = client_context(
        kind, certificate=terminal.certificate, private_key=terminal.private_key
    )
    peer = open_line(kind, client=client)[1].peer_certificate
    assert peer is not None
    return peer.serial


@every_kind
def test_both_sides_know_whom_they_talk_to(kind: TlsKind) -> None:
    client, server = open_line(kind)
    assert client.state is server.state is TlsState.OPEN
    assert {client.suite, server.suite} == SUITES[kind]
    assert client.group == server.group == kind.groups[0]
    assert server.peer_certificate is not None
    assert server.peer_certificate.common_name == CODE
    key = load_key(pki(kind).terminals[CODE].private_key)
    assert server.peer_certificate.public_key == key.public
    assert len(server.peer_certificate.fingerprint) == 32
    assert server.peer_certificate.not_before == NOW - 10 * DAY
    assert server.peer_certificate.not_after == NOW + 10 * DAY
    assert client.peer_certificate is not None
    assert client.peer_certificate.common_name == SERVER_NAME


@every_kind
def test_what_one_says_the_other_hears_in_both_directions(kind: TlsKind) -> None:
    client, server = open_line(kind)
    assert server.receive_data_untrusted(client.send(b"ask")) == b"ask"
    assert client.receive_data_untrusted(server.send(b"answer")) == b"answer"
    assert b"ask" not in client.send(b"ask")


SIGNATURES = {TlsKind.GUOMI: 0x0708, TlsKind.STANDARD: 0x0403}


@every_kind
def test_a_client_offers_one_signature_algorithm(kind: TlsKind) -> None:
    # Extension 13, of 4 bytes: a list of 2 bytes.
    offer = b"\x00\x0d\x00\x04\x00\x02" + SIGNATURES[kind].to_bytes(2, "big")
    assert offer in client_context(kind).connect(SERVER_NAME, NOW).data_to_send()


@every_kind
def test_a_line_opens_to_a_name_and_to_an_address_of_the_certificate(kind: TlsKind) -> None:
    for name in (SERVER_NAME, SERVER_ADDRESS):
        assert open_line(kind, server_name=name)[0].state is TlsState.OPEN


@every_kind
@pytest.mark.parametrize("name", ["other.example", "127.0.0.2", "::1", "example"])
def test_a_client_refuses_a_server_of_another_name(kind: TlsKind, name: str) -> None:
    with pytest.raises(TlsFault) as refused:
        open_line(kind, server_name=name)
    assert "mismatch" in refused.value.cause


@every_kind
def test_each_group_of_a_kind_can_be_had_alone(kind: TlsKind) -> None:
    for group in kind.groups:
        client, _ = open_line(kind, server=server_context(kind, groups=[group]))
        assert client.group == group


@every_kind
def test_the_binding_is_the_same_at_both_ends_and_another_for_every_line(kind: TlsKind) -> None:
    lines = [open_line(kind) for _ in range(2)]
    assert all(client.channel_binding == server.channel_binding for client, server in lines)
    assert len({server.channel_binding for _, server in lines}) == 2


def terminal_certificate(kind: TlsKind, before_days: int, after_days: int) -> dict[str, bytes]:
    made = pki(kind)
    key = made.terminals[CODE].private_key
    validity = Validity(
        TODAY + datetime.timedelta(days=before_days), TODAY + datetime.timedelta(days=after_days)
    )
    certificate = issue_terminal(made.authority, CODE, load_key(key).public, validity, serial=99)
    return {"certificate": certificate, "private_key": key}


def as_terminal_of_stranger(kind: TlsKind) -> dict[str, bytes]:
    terminal = stranger_pki(kind).terminals[CODE]
    return {"certificate": terminal.certificate, "private_key": terminal.private_key}


def as_server(kind: TlsKind) -> dict[str, bytes]:
    server = pki(kind).server
    return {"certificate": server.certificate, "private_key": server.private_key}


def issued_by_a_terminal(kind: TlsKind) -> dict[str, bytes]:
    made = pki(kind)
    terminal = made.terminals[CODE]
    forged = Authority(terminal.certificate, load_key(terminal.private_key))
    key = made.terminals[OTHER_CODE].private_key
    certificate = issue_terminal(
        forged,
        "admin",
        load_key(key).public,
        Validity(TODAY, TODAY + datetime.timedelta(days=1)),
        serial=5,
    )
    return {"certificate": certificate + terminal.certificate, "private_key": key}


BAD_CLIENTS: dict[str, tuple[Callable[[TlsKind], dict[str, bytes]], str]] = {
    "another CA": (as_terminal_of_stranger, "issuer"),
    "expired": (lambda kind: terminal_certificate(kind, -5, -1), "expired"),
    "not yet valid": (lambda kind: terminal_certificate(kind, 1, 5), "not yet valid"),
    "a server's": (as_server, "purpose"),
    "issued by a terminal": (issued_by_a_terminal, "CA"),
}


@every_kind
@pytest.mark.parametrize("why", BAD_CLIENTS)
def test_a_client_whose_certificate_is_not_good_is_refused_and_learns_no_reason(
    kind: TlsKind, why: str
) -> None:
    make, cause = BAD_CLIENTS[why]
    client = client_context(kind, **make(kind)).connect(SERVER_NAME, NOW)
    server = server_context(kind).accept(NOW)
    refused_and_ignorant(client, server, cause)


@every_kind
def test_a_revoked_client_is_refused_and_another_is_not(kind: TlsKind) -> None:
    context = server_context(kind, revoked=revocation_list(kind, OTHER_CODE))
    assert open_line(kind, server=context)[1].state is TlsState.OPEN
    other = pki(kind).terminals[OTHER_CODE]
    client = client_context(kind, certificate=other.certificate, private_key=other.private_key)
    refused_and_ignorant(client.connect(SERVER_NAME, NOW), context.accept(NOW), "revoked")


@every_kind
def test_an_old_revocation_list_lets_nobody_in(kind: TlsKind) -> None:
    context = server_context(kind, revoked=revocation_list(kind, days_ago=9))
    client = client_context(kind).connect(SERVER_NAME, NOW)
    refused_and_ignorant(client, context.accept(NOW), "CRL has expired")


@every_kind
def test_a_revocation_list_of_another_ca_lets_nobody_in(kind: TlsKind) -> None:
    foreign = make_revocation_list(
        stranger_pki(kind).authority, {}, TODAY, TODAY + datetime.timedelta(days=1), number=1
    )
    context = server_context(kind, revoked=foreign)
    client = client_context(kind).connect(SERVER_NAME, NOW)
    refused_and_ignorant(client, context.accept(NOW), "CRL")


class Tree:
    """Somebody else's CA: a root, an intermediate that issues terminals, and both their revocation lists."""

    def __init__(self) -> None:
        self._keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("root", "middle")}
        self.root = self._issue("root", "root", self._keys["root"].public_key(), is_ca=True)
        self._middle = self._issue("middle", "root", self._keys["middle"].public_key(), is_ca=True)
        key = ec.generate_private_key(ec.SECP256R1())
        terminal = self._issue(CODE, "middle", key.public_key(), is_ca=False)
        pem = Encoding.PEM
        self.client = client_context(
            TlsKind.STANDARD,
            certificate=terminal.public_bytes(pem) + self._middle.public_bytes(pem),
            private_key=key.private_bytes(pem, PrivateFormat.PKCS8, NoEncryption()),
        )

    def _issue(
        self, name: str, issuer: str, key: ec.EllipticCurvePublicKey, *, is_ca: bool
    ) -> x509.Certificate:
        issuer_key = self._keys[issuer].public_key()
        builder = (
            x509.CertificateBuilder(self._name(issuer), self._name(name), key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(VALIDITY.not_before)
            .not_valid_after(VALIDITY.not_after)
            .add_extension(x509.BasicConstraints(is_ca, None), critical=True)
            .add_extension(_key_usage(is_ca=is_ca), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False
            )
        )
        return builder.sign(self._keys[issuer], hashes.SHA256())

    @staticmethod
    def _name(name: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])

    def revocation_lists(self, *, is_middle_revoked: bool) -> bytes:
        lists = b""
        for issuer, key in self._keys.items():
            issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
            builder = (
                x509.CertificateRevocationListBuilder(self._name(issuer))
                .last_update(TODAY)
                .next_update(TODAY + datetime.timedelta(days=1))
                .add_extension(issuer_key, critical=False)
                .add_extension(x509.CRLNumber(1), critical=False)
            )
            if is_middle_revoked and issuer == "root":
                revoked = x509.RevokedCertificateBuilder(self._middle.serial_number)
                builder = builder.add_revoked_certificate(revoked.revocation_date(TODAY).build())
            lists += builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
        return lists


def test_another_ca_with_an_intermediate_works_until_that_is_revoked() -> None:
    tree = Tree()
    root = tree.root.public_bytes(Encoding.PEM)
    for revoked in (None, tree.revocation_lists(is_middle_revoked=False)):
        context = server_context(TlsKind.STANDARD, client_authorities=root, revoked=revoked)
        _, server = open_line(TlsKind.STANDARD, context, tree.client)
        assert server.peer_certificate is not None
        assert server.peer_certificate.common_name == CODE
    revoked = tree.revocation_lists(is_middle_revoked=True)
    context = server_context(TlsKind.STANDARD, client_authorities=root, revoked=revoked)
    refused_and_ignorant(tree.client.connect(SERVER_NAME, NOW), context.accept(NOW), "revoked")


def refused_and_ignorant(client: Any, server: TlsConnection, cause: str) -> None:
    """The server's fault names the cause; on the wire and in its text it is like every other."""
    with pytest.raises(TlsFault) as refused:
        talk(client, server)
    assert server.state is TlsState.BROKEN
    assert server.peer_certificate is None
    assert str(refused.value) == "the line is not good TLS"
    assert cause in refused.value.cause
    with pytest.raises(TlsFault) as seen:
        client.receive_data_untrusted(b"\0")
    assert seen.value.cause == "tls alert handshake failure"
    with pytest.raises(RemoteProtocolError):
        server.receive_data_untrusted(b"\0")
    with pytest.raises(RemoteProtocolError):
        server.send(b"never")


def raw_client(kind: TlsKind, **changes: Any) -> SSL.Connection:
    """A client that is not keyd's, and leaves things out."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_max_proto_version(changes.get("version", SSL.TLS1_3_VERSION))
    openssl._lib.SSL_CTX_set_ciphersuites(
        context._context, changes.get("suites", kind.suites).encode()
    )
    groups = changes.get("groups", ":".join(kind.groups))
    openssl._lib.SSL_CTX_set1_curves_list(context._context, groups.encode())
    client = SSL.Connection(context)
    client.set_connect_state()
    return client


def greet(client: SSL.Connection, server: TlsConnection) -> bytes:
    """Carry bytes until the server is at fault; return the last that it says."""
    for _ in range(4):
        with pytest.raises((SSL.WantReadError, SSL.ZeroReturnError)):
            client.recv(1)
        try:
            server.receive_data_untrusted(client.bio_read(MAX_CHUNK))
        except TlsFault:
            return server.data_to_send()
        client.bio_write(server.data_to_send())
    raise AssertionError("the server was content")


@every_kind
def test_a_client_without_a_certificate_is_refused(kind: TlsKind) -> None:
    server = server_context(kind).accept(NOW)
    greet(raw_client(kind), server)
    with pytest.raises(TlsFault) as refused:
        server.receive_eof_untrusted()
    assert refused.value.cause == "peer did not return a certificate"


BAD_HELLOS: dict[str, tuple[dict[str, Any], str]] = {
    "TLS 1.2": ({"version": SSL.TLS1_2_VERSION}, "unsupported protocol"),
    "no group in common": ({"groups": "secp521r1"}, "no suitable key share"),
    "no suite in common": ({"suites": "TLS_CHACHA20_POLY1305_SHA256"}, "no shared cipher"),
}


@every_kind
@pytest.mark.parametrize("why", BAD_HELLOS)
def test_a_client_that_offers_something_else_is_refused(kind: TlsKind, why: str) -> None:
    changes, cause = BAD_HELLOS[why]
    server = server_context(kind).accept(NOW)
    alert = greet(raw_client(kind, **changes), server)
    assert alert[:1] == b"\x15"
    with pytest.raises(TlsFault) as refused:
        server.receive_eof_untrusted()
    assert refused.value.cause == cause


def test_the_one_kind_does_not_talk_to_the_other() -> None:
    for one, other in (KINDS, KINDS[::-1]):
        client = client_context(one).connect(SERVER_NAME, NOW)
        server = server_context(other).accept(NOW)
        with pytest.raises(TlsFault):
            talk(client, server)
        assert server.is_broken
        assert client.is_broken


@every_kind
def test_a_server_of_the_hybrid_alone_refuses_whoever_lacks_it(kind: TlsKind) -> None:
    client = client_context(kind, groups=[kind.groups[1]])
    with pytest.raises(TlsFault):
        open_line(kind, server=server_context(kind, groups=[kind.groups[0]]), client=client)


@every_kind
def test_a_ticket_resumes_and_the_peer_is_still_known(kind: TlsKind) -> None:
    server_side, client_side = server_context(kind), client_context(kind)
    first, _ = open_line(kind, server_side, client_side)
    client, server = open_line(kind, server_side, client_side, session=first.session)
    assert not first.is_resumed
    assert client.is_resumed
    assert server.is_resumed
    assert server.peer_certificate is not None
    assert server.peer_certificate.common_name == CODE
    assert server.receive_data_untrusted(client.send(b"again")) == b"again"
    assert client.channel_binding == server.channel_binding != first.channel_binding


@every_kind
def test_tickets_of_forgotten_keys_resume_nothing_and_refuse_nobody(kind: TlsKind) -> None:
    server_side, client_side = server_context(kind), client_context(kind)
    first, _ = open_line(kind, server_side, client_side)
    server_side.rotate_ticket_keys()
    client, server = open_line(kind, server_side, client_side, session=first.session)
    assert not client.is_resumed
    assert server.state is TlsState.OPEN


@every_kind
def test_rotating_keys_does_not_disturb_open_lines(kind: TlsKind) -> None:
    server_side = server_context(kind)
    client, server = open_line(kind, server_side)
    server_side.rotate_ticket_keys()
    assert server.receive_data_untrusted(client.send(b"still here")) == b"still here"


@every_kind
def test_a_ticket_does_not_outlive_its_certificate(kind: TlsKind) -> None:
    server_side = server_context(kind)
    client_side = client_context(kind, **terminal_certificate(kind, -1, 1))
    first, _ = open_line(kind, server_side, client_side)
    client = client_side.connect(SERVER_NAME, NOW, first.session)
    server = server_side.accept(NOW + 2 * DAY)
    server.receive_data_untrusted(client.data_to_send())
    client.receive_data_untrusted(server.data_to_send())
    with pytest.raises(TlsFault) as refused:
        server.receive_data_untrusted(client.data_to_send())
    assert refused.value.cause == "the certificate of a resumed session is not valid now"
    # Nor does it get a new one.
    assert server.data_to_send() == b""


@every_kind
def test_a_ticket_does_not_cross_to_a_context_with_a_revocation_list(kind: TlsKind) -> None:
    client_side = client_context(kind)
    first, _ = open_line(kind, server_context(kind), client_side)
    reloaded = server_context(kind, revoked=revocation_list(kind, CODE))
    with pytest.raises(TlsFault) as refused:
        open_line(kind, reloaded, client_side, session=first.session)
    assert "revoked" in refused.value.cause


@every_kind
def test_the_end_is_said_in_each_direction_on_its_own(kind: TlsKind) -> None:
    client, server = open_line(kind)
    assert server.receive_data_untrusted(client.send(b"ask") + client.close()) == b"ask"
    assert server.state is TlsState.PEER_CLOSED
    server.receive_eof_untrusted()
    assert client.receive_data_untrusted(server.send(b"answer")) == b"answer"
    client.receive_data_untrusted(server.close())
    assert client.state is TlsState.PEER_CLOSED
    client.receive_eof_untrusted()
    assert server.close() == b""


@every_kind
def test_this_side_is_held_to_the_rules_too(kind: TlsKind) -> None:
    waiting = server_context(kind).accept(NOW)
    with pytest.raises(LocalProtocolError):
        waiting.send(b"too early")
    with pytest.raises(LocalProtocolError):
        _ = waiting.channel_binding
    with pytest.raises(LocalProtocolError):
        waiting.receive_data_untrusted(bytes(MAX_CHUNK + 1))
    client, _ = open_line(kind)
    with pytest.raises(LocalProtocolError):
        client.send(bytes(MAX_SEND + 1))
    client.close()
    with pytest.raises(LocalProtocolError):
        client.send(b"too late")


@every_kind
def test_what_does_not_fit_together_is_refused_before_any_line(kind: TlsKind) -> None:
    made, stranger = pki(kind), stranger_pki(kind)
    (other,) = (each for each in KINDS if each is not kind)
    refused: list[dict[str, Any]] = [
        {"private_key": stranger.server.private_key},
        {"private_key": pki(other).server.private_key},
        {"private_key": b"no key"},
        {"private_key": made.server.certificate},
        {"certificate": b"no certificate"},
        {"certificate": pki(other).server.certificate},
        pki(other).server._asdict(),
        {"client_authorities": b""},
        {"client_authorities": pki(other).authority.certificate},
        {"revoked": b""},
        {"revoked": b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"},
        {"groups": []},
        {"groups": ["secp521r1"]},
        {"groups": list(other.groups)},
    ]
    for changes in refused:
        with pytest.raises(TlsUnusable):
            server_context(kind, **changes)


@every_kind
@pytest.mark.parametrize(
    ("part", "lacking"),
    [
        ("groups", ("curveOfTomorrow",)),
        ("suites", "TLS_OF_TOMORROW"),
        ("signatures", "of_tomorrow"),
    ],
)
def test_an_openssl_that_lacks_something_is_refused_with_a_sentence(
    kind: TlsKind, part: str, lacking: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_support(kind)
    # The refusal is OpenSSL's own: it is asked for something that it really does not have.
    monkeypatch.setitem(kinds._PARTS, kind, kinds._PARTS[kind]._replace(**{part: lacking}))
    with pytest.raises(TlsUnusable, match=f"{openssl.version()}.*does not offer it"):
        require_support(kind)


class OlderBinding:
    """The binding, without what older ones have not."""

    def __init__(self, binding: Any, lacking: str) -> None:
        self._binding = binding
        self._lacking = lacking

    def __getattr__(self, name: str) -> Any:
        if name == self._lacking:
            raise AttributeError(name)
        return getattr(self._binding, name)


@every_kind
@pytest.mark.parametrize("lacking", ["SSL_CTX_set1_curves_list", "SSL_CTX_set1_sigalgs_list"])
def test_a_binding_that_lacks_something_is_refused_with_the_same_sentence(
    kind: TlsKind, lacking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openssl, "_lib", OlderBinding(openssl._lib, lacking))
    with pytest.raises(TlsUnusable, match=f"{openssl.version()}.*does not offer it"):
        require_support(kind)


@every_kind
def test_a_client_refuses_a_server_of_another_ca(kind: TlsKind) -> None:
    terminal = pki(kind).terminals[CODE]
    context = TlsClientContext(
        kind,
        certificate=terminal.certificate,
        private_key=terminal.private_key,
        server_authorities=stranger_pki(kind).authority.certificate,
    )
    with pytest.raises(TlsFault) as refused:
        open_line(kind, client=context)
    assert "issuer" in refused.value.cause


@every_kind
def test_a_client_refuses_a_terminal_that_plays_the_server(kind: TlsKind) -> None:
    terminal = pki(kind).terminals[OTHER_CODE]
    context = server_context(
        kind, certificate=terminal.certificate, private_key=terminal.private_key
    )
    with pytest.raises(TlsFault) as refused:
        open_line(kind, server=context)
    assert "purpose" in refused.value.cause


@every_kind
def test_reloading_is_a_new_context_beside_the_old_lines(kind: TlsKind) -> None:
    made = pki(kind)
    old_client, old_server = open_line(kind)
    new = issue_server(
        made.authority,
        [SERVER_NAME],
        load_key(made.server.private_key).public,
        Validity(TODAY, TODAY + datetime.timedelta(days=1)),
        serial=77,
    )
    client, _ = open_line(kind, server=server_context(kind, certificate=new))
    assert client.peer_certificate is not None
    assert client.peer_certificate.serial == 77
    assert old_server.receive_data_untrusted(old_client.send(b"old")) == b"old"
