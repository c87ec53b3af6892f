"""What the targets have found, each as a conversation that can be read. The inputs themselves are mostly as good."""

from __future__ import annotations

import base64
import shutil
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgpack
import pytest
from cryptography import x509
from cryptography.hazmat.bindings.openssl.binding import Binding
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import crypto

from keyd.audit.checkpoints import CheckpointNotAuthentic, decode_checkpoint
from keyd.audit.query import query
from keyd.audit.records import (
    EVENT_LENGTH,
    NO_LINK,
    Header,
    NotAJournal,
    encode_frame,
    encode_header,
    segment_name,
)
from keyd.audit.verify import verify
from keyd.cards.profile_files import load_profiles
from keyd.cli.init import first_officers
from keyd.config import ConfigError, load_config
from keyd.crypto.sm2 import Sm2PrivateKey
from keyd.errors import BadParameter
from keyd.handlers.custody import _inner
from keyd.psam.profile_files import load_psam_profiles
from keyd.tls import TlsClientContext, TlsFault, TlsKind, TlsUnusable, der
from keyd.tls.connection import read_certificate
from tests.tls.lines import CODE, KINDS, NOW, SERVER_NAME, pki, server_context, talk

if TYPE_CHECKING:
    from keyd.tls.pki import Authority

every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.value)

SHIPPED_PROFILES: Final = Path(str(resources.files("keyd.cards") / "profiles"))

# X.509 v3 as it stands in a certificate, and a version that there is not.
VERSION_3: Final = bytes.fromhex("a003020102")
VERSION_89: Final = bytes.fromhex("a003020158")

# A common name, and beside it an organisation (2.5.4.10) that is a bit string: only one attribute may be one.
SUBJECT: Final = der.sequence(
    der.element(
        0x31,
        der.sequence(
            der.element(der.OBJECT_IDENTIFIER, bytes.fromhex("550403")),
            der.element(0x0C, CODE.encode()),
        ),
    ),
    der.element(
        0x31,
        der.sequence(
            der.element(der.OBJECT_IDENTIFIER, bytes.fromhex("55040a")), der.bit_string(b"\1")
        ),
    ),
)


def pem(content: bytes) -> bytes:
    text = base64.encodebytes(content)
    return b"-----BEGIN CERTIFICATE-----\n" + text + b"-----END CERTIFICATE-----\n"


def content_of(certificate: bytes) -> bytes:
    return x509.load_pem_x509_certificate(certificate).public_bytes(Encoding.DER)


def signed_again(authority: Authority, body: bytes) -> bytes:
    """Sign a certificate's body as the CA would."""
    kind = authority.key.public.kind
    algorithm = der.sequence(der.element(der.OBJECT_IDENTIFIER, kind.signature_algorithm))
    return pem(der.sequence(body, algorithm, der.bit_string(authority.key.sign(body))))


def body_of(certificate: bytes) -> list[bytes]:
    """Return the elements of what is signed."""
    whole = der.read_one(content_of(certificate), der.SEQUENCE)[0]
    return [element.der for element in der.read_elements(whole.content)]


@every_kind
@pytest.mark.parametrize("oddity", ["subject", "version", "no version"])
def test_an_odd_certificate_that_the_ca_has_signed_ends_the_line_and_nothing_else(
    kind: TlsKind, oddity: str
) -> None:
    """The library that reads it then has words of its own for it, which are no ValueError."""
    made = pki(kind)
    parts = body_of(made.terminals[CODE].certificate)
    if oddity == "subject":
        parts[5] = SUBJECT
    elif oddity == "version":
        parts[0] = VERSION_89
    else:
        # X.509 v1 has no version and no extensions.
        parts = parts[1:-1]
    context = client_context_with(kind, signed_again(made.authority, der.sequence(*parts)))
    client, server = context.connect(SERVER_NAME, NOW), server_context(kind).accept(NOW)
    with pytest.raises(TlsFault):
        talk(client, server)
    assert server.is_broken
    assert server.peer_certificate is None


def client_context_with(kind: TlsKind, certificate: bytes) -> TlsClientContext:
    """A client that presents a certificate that OpenSSL does not mind, and that keyd would not take from a file."""
    made = pki(kind)
    context = TlsClientContext(
        kind,
        certificate=made.terminals[CODE].certificate,
        private_key=made.terminals[CODE].private_key,
        server_authorities=made.authority.certificate,
    )
    odd = crypto.load_certificate(crypto.FILETYPE_PEM, certificate)
    binding = Binding()
    # pyOpenSSL's own method would read it first.
    assert binding.lib.SSL_CTX_use_certificate(context._context._context, odd._x509) == 1
    key = crypto.load_privatekey(crypto.FILETYPE_PEM, made.terminals[CODE].private_key, b"")
    assert binding.lib.SSL_CTX_use_PrivateKey(context._context._context, key._pkey) == 1
    return context


@every_kind
def test_an_odd_certificate_is_refused_where_it_is_configured(kind: TlsKind) -> None:
    made = pki(kind)
    parts = body_of(made.authority.certificate)
    parts[0] = VERSION_89
    with pytest.raises(TlsUnusable, match="the authorities: there is no certificate"):
        server_context(kind, client_authorities=signed_again(made.authority, der.sequence(*parts)))


def test_an_authority_of_the_first_version_is_no_authority_of_a_guomi_line() -> None:
    """It has its key in another place than all later ones."""
    made = pki(TlsKind.GUOMI)
    parts = body_of(made.authority.certificate)[1:-1]
    authority = signed_again(made.authority, der.sequence(*parts))
    with pytest.raises(TlsUnusable, match="an authority is standard"):
        server_context(TlsKind.GUOMI, client_authorities=authority)


def test_an_officers_command_that_is_nested_too_deeply_is_a_bad_parameter() -> None:
    """It is signed, and it is still no bug of keyd's."""
    with pytest.raises(BadParameter):
        _inner(b"\x92\xa8key.list" + b"\x91" * 20_000 + b"\x90")


def test_a_subject_that_cannot_be_read_is_a_value_error() -> None:
    made = pki(TlsKind.STANDARD)
    parts = body_of(made.terminals[CODE].certificate)
    parts[5] = SUBJECT
    odd = x509.load_pem_x509_certificate(signed_again(made.authority, der.sequence(*parts)))
    with pytest.raises(ValueError, match="an attribute that none may have"):
        read_certificate(odd)


EVENTS: Final = {
    "a list as what is defined": {"define": ["key"], "number": 1, "name": "x"},
    "a map as what is defined": {"define": {}, "number": 1, "name": "x"},
    "a number that no record can hold": {"define": "method", "number": 1 << 16, "name": "x"},
    "the number that stands for none": {"define": "key", "number": 0, "name": "x"},
    "both an event and a definition": {"event": "x", "define": "nobody", "number": 1, "name": "x"},
}


@pytest.mark.parametrize("fields", EVENTS.values(), ids=EVENTS)
def test_a_journal_with_links_that_hold_and_an_odd_event_is_bad(
    fields: dict[str, object], tmp_path: Path
) -> None:
    """Whoever can write the folder can write this; the auditor must be told, and not see the tool fall."""
    header = encode_header(Header("keyd-1", 1, 1, 10**18, NO_LINK))
    event: bytes = msgpack.packb(fields)
    frame, _ = encode_frame(header[-32:], 1, 10**18, b"", EVENT_LENGTH.pack(len(event)) + event)
    (tmp_path / segment_name(1)).write_bytes(header + frame)
    report = verify(tmp_path)
    assert report.bad is not None
    assert report.bad.why == "an event is neither an event nor a definition"
    with pytest.raises(NotAJournal):
        list(query(tmp_path))


def test_a_checkpoint_that_is_no_utf_8_is_refused() -> None:
    key = Sm2PrivateKey.generate()
    body = b"\x86\xaf" + b"keyd checkpoint" + b"\x01\xa8insta\xffce"
    with pytest.raises(CheckpointNotAuthentic, match="signed, but is no checkpoint"):
        decode_checkpoint(body + key.sign(body), key.public)


TOO_MUCH: Final = {
    "brackets": "a = " + "[" * 3000,
    "digits": "a = " + "9" * 5000,
    "tables": "a = [" + "{a=" * 2000,
}

too_much = pytest.mark.parametrize("line", TOO_MUCH.values(), ids=TOO_MUCH)


@too_much
def test_a_configuration_that_is_nested_too_deeply_or_too_large_is_refused(
    line: str, tmp_path: Path
) -> None:
    path = tmp_path / "keyd.toml"
    path.write_text(line, encoding="utf-8")
    with pytest.raises(ConfigError, match="is no TOML"):
        load_config(path)


@too_much
def test_first_officers_that_are_nested_too_deeply_or_too_large_are_refused(
    line: str, tmp_path: Path
) -> None:
    path = tmp_path / "officers.toml"
    path.write_text(line, encoding="utf-8")
    with pytest.raises(ConfigError, match="is no TOML"):
        first_officers(path, 0)


@too_much
def test_a_profile_that_is_nested_too_deeply_or_too_large_is_refused(
    line: str, tmp_path: Path
) -> None:
    (tmp_path / "generation-1.toml").write_text(line, encoding="utf-8")
    with pytest.raises(BadParameter, match=r"generation-1\.toml"):
        load_profiles(tmp_path)
    with pytest.raises(BadParameter, match=r"generation-1\.toml"):
        load_psam_profiles(tmp_path)


def test_a_table_of_addresses_that_the_csv_reader_will_not_read_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "profiles"
    shutil.copytree(SHIPPED_PROFILES, folder)
    (folder / "key_addresses.csv").write_text("a" * 140_000, encoding="utf-8")
    with pytest.raises(BadParameter, match=r"generation-1\.toml"):
        load_profiles(folder)
