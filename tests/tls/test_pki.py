"""keyd's built-in CA. Invariant: another program verifies what it issues; what it is asked for it grants only to
whoever has the key, and only what it decided itself.
"""

from __future__ import annotations

import base64
import datetime
import subprocess
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from keyd.tls import TlsKind
from keyd.tls.pki import (
    MAX_CODE,
    MAX_REQUEST,
    Authority,
    PublicKey,
    RequestRefused,
    Validity,
    generate_key,
    issue_server,
    issue_terminal,
    load_key,
    make_request,
    make_revocation_list,
    public_key_of,
    read_request_untrusted,
)
from tests.tls.lines import (
    CODE,
    KINDS,
    NOW,
    OTHER_CODE,
    TODAY,
    VALIDITY,
    needs_openssl,
    pki,
    stranger_pki,
)

if TYPE_CHECKING:
    from pathlib import Path

every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.value)

# An OpenSSL of the 3.0 line assumes an empty identifier for SM2 unless it is told GM/T 0009's.
IDENTIFIER = {
    TlsKind.GUOMI: ["-vfyopt", "distid:1234567812345678"],
    TlsKind.STANDARD: [],
}


def run(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=check)


def verify(folder: Path, kind: TlsKind, ca: bytes, certificate: bytes, *options: str) -> str:
    """Have the system's OpenSSL judge a certificate; return all that it says."""
    (folder / "ca.pem").write_bytes(ca)
    (folder / "leaf.pem").write_bytes(certificate)
    done = run(
        *("openssl", "verify", "-x509_strict", "-CAfile", str(folder / "ca.pem")),
        *IDENTIFIER[kind],
        *(() if "-attime" in options else ("-attime", str(NOW))),
        *options,
        str(folder / "leaf.pem"),
        check=False,
    )
    return done.stdout + done.stderr


@needs_openssl
@every_kind
def test_another_program_verifies_what_is_issued_for_its_purpose_only(
    kind: TlsKind, tmp_path: Path
) -> None:
    made = pki(kind)
    ca = made.authority.certificate
    purposes = {
        made.server.certificate: ("sslserver", "sslclient"),
        made.terminals[CODE].certificate: ("sslclient", "sslserver"),
    }
    for certificate, (good, bad) in purposes.items():
        said = verify(tmp_path, kind, ca, certificate, "-purpose", good)
        assert said.endswith("leaf.pem: OK\n"), said
        said = verify(tmp_path, kind, ca, certificate, "-purpose", bad)
        assert "unsuitable certificate purpose" in said


@needs_openssl
@every_kind
def test_another_program_refuses_another_ca_and_another_time(kind: TlsKind, tmp_path: Path) -> None:
    made, stranger = pki(kind), stranger_pki(kind)
    certificate = made.terminals[CODE].certificate
    assert "verification failed" in verify(
        tmp_path, kind, stranger.authority.certificate, certificate
    )
    ca = made.authority.certificate
    late, early = (
        str(int(moment.timestamp()) + offset)
        for moment, offset in ((VALIDITY.not_after, 1), (VALIDITY.not_before, -1))
    )
    assert "expired" in verify(tmp_path, kind, ca, certificate, "-attime", late)
    assert "not yet valid" in verify(tmp_path, kind, ca, certificate, "-attime", early)


@needs_openssl
@every_kind
def test_another_program_reads_requests_and_keys(kind: TlsKind, tmp_path: Path) -> None:
    key, request = tmp_path / "key.pem", tmp_path / "request.pem"
    key.write_bytes(generate_key(kind))
    request.write_bytes(make_request(load_key(key.read_bytes()), CODE))
    run("openssl", "pkey", "-in", str(key), "-check", "-noout")
    read = run(
        *("openssl", "req", "-in", str(request), "-verify", "-noout", "-subject"),
        *IDENTIFIER[kind],
    )
    assert "verify OK" in read.stdout + read.stderr
    assert CODE in read.stdout


CURVES = {TlsKind.GUOMI: "SM2", TlsKind.STANDARD: "P-256"}


@needs_openssl
@every_kind
def test_keys_and_requests_of_another_program_are_read(kind: TlsKind, tmp_path: Path) -> None:
    key, request = str(tmp_path / "key.pem"), str(tmp_path / "request.pem")
    curve = f"ec_paramgen_curve:{CURVES[kind]}"
    run("openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", curve, "-out", key)
    sign = [] if kind is TlsKind.STANDARD else ["-sm3", "-sigopt", "distid:1234567812345678"]
    run("openssl", "req", "-new", "-key", key, "-subj", f"/CN={CODE}", *sign, "-out", request)
    read = read_request_untrusted((tmp_path / "request.pem").read_bytes(), kind)
    assert read.common_name == CODE
    assert read.public_key == load_key((tmp_path / "key.pem").read_bytes()).public


@needs_openssl
def test_another_program_verifies_the_revocation_list(tmp_path: Path) -> None:
    # Of the standard kind: the system's OpenSSL cannot be told SM2's identifier for a list.
    made = pki(TlsKind.STANDARD)
    serial = x509.load_pem_x509_certificate(made.terminals[CODE].certificate).serial_number
    (tmp_path / "crl.pem").write_bytes(
        make_revocation_list(
            made.authority, {serial: TODAY}, TODAY, TODAY + datetime.timedelta(days=1), number=7
        )
    )
    ca = made.authority.certificate
    options = ("-crl_check", "-CRLfile", str(tmp_path / "crl.pem"))
    revoked = verify(tmp_path, TlsKind.STANDARD, ca, made.terminals[CODE].certificate, *options)
    assert "revoked" in revoked
    other = verify(tmp_path, TlsKind.STANDARD, ca, made.terminals[OTHER_CODE].certificate, *options)
    assert other.endswith("OK\n"), other


@every_kind
def test_a_revocation_list_is_signed_numbered_and_in_order(kind: TlsKind) -> None:
    made = pki(kind)
    until = TODAY + datetime.timedelta(days=1)
    empty, full = (
        x509.load_pem_x509_crl(make_revocation_list(made.authority, revoked, TODAY, until, 9))
        for revoked in ({}, {300: TODAY, 2: TODAY})
    )
    assert len(empty) == 0
    assert [entry.serial_number for entry in full] == [2, 300]
    for each in (empty, full):
        made.authority.key.public.verify(each.tbs_certlist_bytes, each.signature)
        assert each.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 9
        assert each.next_update_utc == until


@every_kind
def test_certificates_say_what_they_were_asked_to(kind: TlsKind) -> None:
    made = pki(kind)
    key = load_key(generate_key(kind)).public
    server = x509.load_pem_x509_certificate(
        issue_server(made.authority, ["a.example", "::1"], key, VALIDITY, serial=1 << 158)
    )
    assert server.serial_number == 1 << 158
    assert (server.not_valid_before_utc, server.not_valid_after_utc) == VALIDITY
    assert public_key_of(server) == key
    alternatives = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert alternatives.get_values_for_type(x509.DNSName) == ["a.example"]
    assert [str(each) for each in alternatives.get_values_for_type(x509.IPAddress)] == ["::1"]
    use = server.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(use) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    ca = x509.load_pem_x509_certificate(made.authority.certificate)
    assert server.issuer == ca.subject
    # A CA of keyd makes no further CAs.
    constraints = ca.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (constraints.ca, constraints.path_length) == (True, 0)
    ca_key_id = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    key_id = server.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert key_id.key_identifier == ca_key_id.digest


@every_kind
def test_a_request_gives_back_what_was_put_in(kind: TlsKind) -> None:
    key = load_key(generate_key(kind))
    for code in ("1", "终端-1", "x" * MAX_CODE):
        read = read_request_untrusted(make_request(key, code), kind)
        assert read == (code, key.public)


@every_kind
def test_a_request_that_was_altered_anywhere_is_refused(kind: TlsKind) -> None:
    pem = make_request(load_key(generate_key(kind)), CODE)
    body = base64.b64decode(b"".join(pem.splitlines()[1:-1]))
    for at in range(len(body)):
        altered = bytearray(body)
        altered[at] ^= 1
        with pytest.raises(RequestRefused):
            read_request_untrusted(as_request(bytes(altered)), kind)


def as_request(body: bytes) -> bytes:
    lines = base64.encodebytes(body)
    return b"-----BEGIN CERTIFICATE REQUEST-----\n" + lines + b"-----END CERTIFICATE REQUEST-----\n"


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_refused(data: bytes) -> None:
    for pem in (data, as_request(data)):
        with pytest.raises(RequestRefused):
            read_request_untrusted(pem, TlsKind.GUOMI)


def test_a_request_of_the_other_kind_is_refused() -> None:
    for one, other in (KINDS, KINDS[::-1]):
        with pytest.raises(RequestRefused, match="kind"):
            read_request_untrusted(make_request(load_key(generate_key(one)), CODE), other)


def foreign_request(*names: str, curve: ec.EllipticCurve | None = None) -> bytes:
    key = ec.generate_private_key(curve or ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    # A request may ask to be a CA. Nobody here listens.
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


@pytest.mark.parametrize(
    "names",
    [(), ("a", "b"), ("x" * (MAX_CODE + 1),), ("a\nb",)],
    ids=["none", "two", "long", "\\n"],
)
def test_a_request_with_no_good_name_is_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(RequestRefused):
        read_request_untrusted(foreign_request(*names), TlsKind.STANDARD)


def test_a_request_on_another_curve_or_too_long_is_refused() -> None:
    with pytest.raises(RequestRefused):
        read_request_untrusted(foreign_request("a", curve=ec.SECP384R1()), TlsKind.STANDARD)
    with pytest.raises(RequestRefused, match="at most"):
        read_request_untrusted(bytes(MAX_REQUEST + 1), TlsKind.STANDARD)


def test_what_a_request_wants_to_be_it_does_not_become() -> None:
    made = pki(TlsKind.STANDARD)
    read = read_request_untrusted(foreign_request(CODE), TlsKind.STANDARD)
    issued = issue_terminal(made.authority, read.common_name, read.public_key, VALIDITY, serial=3)
    certificate = x509.load_pem_x509_certificate(issued)
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


@every_kind
def test_signatures_verify_with_their_key_and_message_only(kind: TlsKind) -> None:
    key, other = load_key(generate_key(kind)), load_key(generate_key(kind))
    signature = key.sign(b"message")
    key.public.verify(b"message", signature)
    attempts: list[tuple[PublicKey, bytes, bytes]] = [
        (key.public, b"another message", signature),
        (other.public, b"message", signature),
        (key.public, b"message", signature[:-1]),
        (key.public, b"message", b""),
        (PublicKey(kind, b"\x04" + bytes(64)), b"message", signature),
    ]
    for public, message, attempt in attempts:
        with pytest.raises(ValueError):  # noqa: PT011 - that it is refused is the whole of it
            public.verify(message, attempt)


@every_kind
def test_a_key_that_cannot_be_read_is_not_quoted(kind: TlsKind) -> None:
    pem = generate_key(kind)
    for damaged in (b"", pem[:60], pem.replace(b"PRIVATE", b"PUBLIC"), pem[:40] + pem[44:]):
        with pytest.raises(ValueError, match="private key") as refused:
            load_key(damaged)
        assert refused.value.__cause__ is None
        assert refused.value.__suppress_context__


@every_kind
def test_the_ca_refuses_what_would_not_be_a_good_certificate(kind: TlsKind) -> None:
    made = pki(kind)
    (other,) = (each for each in KINDS if each is not kind)
    key = load_key(generate_key(kind)).public
    backwards = Validity(VALIDITY.not_after, VALIDITY.not_before)
    with pytest.raises(ValueError, match="own kind"):
        issue_terminal(made.authority, CODE, load_key(generate_key(other)).public, VALIDITY, 1)
    for code in ("", "x" * (MAX_CODE + 1), "a\0b", "a\n"):
        with pytest.raises(ValueError, match="code"):
            issue_terminal(made.authority, code, key, VALIDITY, 1)
    for serial in (0, -1, 1 << 159):
        with pytest.raises(ValueError, match="serial"):
            issue_terminal(made.authority, CODE, key, VALIDITY, serial)
    with pytest.raises(ValueError, match="validity"):
        issue_terminal(made.authority, CODE, key, backwards, 1)
    with pytest.raises(ValueError, match="name"):
        issue_server(made.authority, [], key, VALIDITY, 1)


@every_kind
def test_an_authority_is_a_cas_certificate_and_its_own_key(kind: TlsKind) -> None:
    made, stranger = pki(kind), stranger_pki(kind)
    loaded = Authority.load(made.authority.certificate, load_key(made.authority_key))
    assert loaded.key.public == made.authority.key.public
    with pytest.raises(ValueError, match="not the CA"):
        Authority.load(made.authority.certificate, load_key(stranger.authority_key))
    terminal = made.terminals[CODE]
    with pytest.raises(ValueError, match="not a CA"):
        Authority.load(terminal.certificate, load_key(terminal.private_key))
