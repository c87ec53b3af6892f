"""What machines and authorities send in DER: requests, certificates and revocation lists are read, or refused.

The first byte says what it is, and whether it is signed again after it was changed: then what stands behind the
signature's check is reached too.
"""

from __future__ import annotations

import base64
import functools
import warnings
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.utils import CryptographyDeprecationWarning

from keyd.tls import TlsKind, TlsServerContext, TlsUnusable, der
from keyd.tls.connection import read_certificate
from keyd.tls.pki import (
    MAX_CODE,
    RequestRefused,
    generate_key,
    load_key,
    make_request,
    make_revocation_list,
    public_key_of,
    read_request_untrusted,
)
from tests.fuzz.mutators import mutate_bytes, mutate_der
from tests.fuzz.target import Target
from tests.tls.lines import CODE, TODAY, VALIDITY, pki

if TYPE_CHECKING:
    from random import Random

    from keyd.tls.pki import CertificateKey

# The bits of the first byte.
GUOMI: Final = 1
SIGNED_AGAIN: Final = 2
WHAT: Final = 0x0C
REQUEST, CERTIFICATE, REVOCATIONS, AUTHORITIES = 0x00, 0x04, 0x08, 0x0C

_LABELS: Final = {
    REQUEST: "CERTIFICATE REQUEST",
    CERTIFICATE: "CERTIFICATE",
    REVOCATIONS: "X509 CRL",
    AUTHORITIES: "CERTIFICATE",
}


@functools.cache
def _key(kind: TlsKind) -> CertificateKey:
    return load_key(generate_key(kind))


# What is odd and still read is said in a warning, once for each input.
warnings.simplefilter("ignore", CryptographyDeprecationWarning)


def one_input(data: bytes) -> None:
    if not data:
        return
    kind = TlsKind.GUOMI if data[0] & GUOMI else TlsKind.STANDARD
    what, content = data[0] & WHAT, data[1:]
    _require_der(content)
    if data[0] & SIGNED_AGAIN:
        content = _signed(kind, content)
    pem = _pem(_LABELS[what], content)
    if what == REQUEST:
        _read_request(pem, kind)
    elif what == CERTIFICATE:
        _read_certificate(content)
    else:
        _make_context(kind, pem, is_revoked=what == REVOCATIONS)


def _require_der(content: bytes) -> None:
    try:
        elements = der.read_elements(content)
    except ValueError:
        return
    assert b"".join(element.der for element in elements) == content
    for element in elements:
        assert der.element(element.tag, element.content) == element.der


def _read_request(pem: bytes, kind: TlsKind) -> None:
    try:
        request = read_request_untrusted(pem, kind)
    except RequestRefused as refused:
        assert str(refused)
        return
    assert 1 <= len(request.common_name) <= MAX_CODE
    assert request.common_name.isprintable()
    assert request.public_key.kind is kind


def _read_certificate(content: bytes) -> None:
    try:
        certificate = x509.load_der_x509_certificate(content)
    except (ValueError, x509.InvalidVersion):
        return
    try:
        peer = read_certificate(certificate)
    except ValueError:
        return
    assert peer.public_key == public_key_of(certificate)
    assert certificate.public_bytes(Encoding.DER) == content
    assert len(peer.fingerprint) == 32


def _make_context(kind: TlsKind, pem: bytes, *, is_revoked: bool) -> None:
    made = pki(kind)
    try:
        TlsServerContext(
            kind,
            certificate=made.server.certificate,
            private_key=made.server.private_key,
            client_authorities=made.authority.certificate if is_revoked else pem,
            revoked=pem if is_revoked else None,
        )
    except TlsUnusable as unusable:
        assert str(unusable)


def _signed(kind: TlsKind, content: bytes) -> bytes:
    """Sign what stands first, as whoever has the key could; a PKI's own for what authorities sign."""
    try:
        body = der.read_elements(content)[0].content
        first = der.read_elements(body)[0].der
    except (ValueError, IndexError):
        return content
    algorithm = der.sequence(der.element(der.OBJECT_IDENTIFIER, kind.signature_algorithm))
    return der.sequence(first, algorithm, der.bit_string(_key(kind).sign(first)))


def _pem(label: str, content: bytes) -> bytes:
    text = base64.encodebytes(content)
    return b"-----BEGIN %b-----\n%b-----END %b-----\n" % (label.encode(), text, label.encode())


def _content(pem: bytes) -> bytes:
    return base64.b64decode(b"".join(pem.split(b"\n")[1:-2]))


def mutate(data: bytes, random: Random) -> bytes:
    if not data or random.random() < 0.05:
        return mutate_bytes(data, random)
    head = bytes([data[0] ^ SIGNED_AGAIN]) if random.random() < 0.1 else data[:1]
    return head + mutate_der(data[1:], random)


def seeds() -> list[bytes]:
    found = []
    for kind in TlsKind:
        flags = GUOMI if kind is TlsKind.GUOMI else 0
        made = pki(kind)
        request = _content(make_request(_key(kind), CODE))
        terminal = _content(made.terminals[CODE].certificate)
        authority = _content(made.authority.certificate)
        revoked = _content(
            make_revocation_list(made.authority, {7: TODAY, 8: TODAY}, *VALIDITY, number=3)
        )
        found += [
            bytes([flags | REQUEST]) + request,
            bytes([flags | REQUEST | SIGNED_AGAIN]) + request,
            bytes([flags | CERTIFICATE]) + terminal,
            bytes([flags | CERTIFICATE | SIGNED_AGAIN]) + authority,
            bytes([flags | REVOCATIONS]) + revoked,
            bytes([flags | AUTHORITIES]) + authority,
            bytes([flags | AUTHORITIES | SIGNED_AGAIN]) + authority,
        ]
    return found


TARGET = Target(one_input, seeds, mutate)
