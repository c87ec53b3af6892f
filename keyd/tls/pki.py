"""keyd's built-in CA as pure functions: certificates, requests and revocation lists, SM2 with SM3 or ECDSA P-256.

Moments and serial numbers are arguments. Signatures come from a `CertificateKey`, which signs and names its public
key and no more, so that a CA's key may as well be somewhere else. `keyd.crypto.sm2` makes the SM2 ones; names and
extensions are encoded by `cryptography`, which signs with no SM2 itself.

A terminal's certificate carries its code as the one common name; a server's carries its names as alternatives. Each
is good for its one side of a line only.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import secrets
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from keyd.crypto.sm2 import PointNotOnCurve, SignatureNotAuthentic, Sm2PrivateKey, Sm2PublicKey
from keyd.crypto.sm2.curve import N as SM2_ORDER
from keyd.crypto.sm2.curve import scalar
from keyd.crypto.sm2.der import signature_from_der, signature_to_der
from keyd.tls import der
from keyd.tls.kinds import P256_CURVE, POINT_BYTES, SM2_CURVE, TlsKind

if TYPE_CHECKING:
    import datetime
    from collections.abc import Mapping, Sequence

# A terminal's code, in the registry as in its certificate.
MAX_CODE: Final = 32

# RFC 5280 §4.1.2.2.
_MAX_SERIAL_BYTES: Final = 20

# A request of keyd's own has 300 bytes; other programs add attributes.
MAX_REQUEST: Final = 16 * 1024

_EC_PUBLIC_KEY: Final = bytes.fromhex("2a8648ce3d0201")  # 1.2.840.10045.2.1
_X509_V3: Final = 2
_CRL_V2: Final = 1
_KEY_ID_BYTES: Final = 20

_KIND_OF_CURVE: Final = {SM2_CURVE: TlsKind.GUOMI, P256_CURVE: TlsKind.STANDARD}


class RequestRefused(Exception):  # noqa: N818 - says what happened
    """The certificate request is none that a CA of keyd grants; the sentence says why."""


class PublicKey(NamedTuple):
    """A public key of either kind: 65 bytes 04‖x‖y on the kind's curve."""

    kind: TlsKind
    point: bytes

    def encode(self) -> bytes:
        """Return the SubjectPublicKeyInfo (RFC 5480 §2)."""
        return der.sequence(_key_algorithm(self.kind), der.bit_string(self.point))

    def verify(self, message: bytes, signature: bytes) -> None:
        """Check a signature in DER over a message.

        Raises:
            ValueError: it is not this key's owner's, or no signature, or the point is none.
        """
        try:
            if self.kind is TlsKind.GUOMI:
                Sm2PublicKey.load(self.point).verify(message, signature_from_der(signature))
            else:
                curve = ec.SECP256R1()
                key = ec.EllipticCurvePublicKey.from_encoded_point(curve, self.point)
                key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
        except (InvalidSignature, SignatureNotAuthentic, PointNotOnCurve):
            raise ValueError("the signature is not the key's") from None


class CertificateKey(Protocol):
    """A private key that certificates know: a CA's, a server's or a terminal's."""

    @property
    def public(self) -> PublicKey:
        """The public key that belongs to it."""

    def sign(self, message: bytes) -> bytes:
        """Sign, with the digest of its kind; return DER."""


class _Sm2Key:
    def __init__(self, key: Sm2PrivateKey) -> None:
        self._key = key
        self.public = PublicKey(TlsKind.GUOMI, key.public.encode())

    def sign(self, message: bytes) -> bytes:
        return signature_to_der(self._key.sign(message))


class _EcdsaKey:
    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        numbers = key.public_key().public_numbers()
        self.public = PublicKey(TlsKind.STANDARD, b"\x04" + scalar(numbers.x) + scalar(numbers.y))

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message, ec.ECDSA(hashes.SHA256()))


class Validity(NamedTuple):
    """From when until when, both inclusive, in UTC."""

    not_before: datetime.datetime
    not_after: datetime.datetime


class Request(NamedTuple):
    """A certificate request whose sender has the private key."""

    common_name: str
    public_key: PublicKey


class Authority(NamedTuple):
    """A CA: its certificate and what signs in its name."""

    certificate: bytes
    key: CertificateKey

    @classmethod
    def load(cls, certificate: bytes, key: CertificateKey) -> Authority:
        """Take a CA's certificate in PEM and its key.

        Raises:
            ValueError: the one is not the other's, or the certificate is no CA's.
        """
        parsed = x509.load_pem_x509_certificate(certificate)
        if public_key_of(parsed) != key.public:
            raise ValueError("the key is not the CA certificate's")
        try:
            is_ca = parsed.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        except x509.ExtensionNotFound:
            is_ca = False
        if not is_ca:
            raise ValueError("the certificate is not a CA's")
        return cls(certificate, key)


class Credentials(NamedTuple):
    """What one side of a line presents: both in PEM, the key unencrypted."""

    certificate: bytes
    private_key: bytes


class SyntheticPki(NamedTuple):
    """A whole PKI for development and tests: a CA, a server and terminals by their codes."""

    authority: Authority
    authority_key: bytes
    server: Credentials
    terminals: Mapping[str, Credentials]


def synthetic_pki(
    kind: TlsKind, validity: Validity, server_names: Sequence[str], codes: Sequence[str]
) -> SyntheticPki:
    """Make a PKI with new keys, everything valid for the same time."""
    authority_key = generate_key(kind)
    authority = make_authority(
        load_key(authority_key), "keyd synthetic CA", validity, random_serial()
    )

    server_key = generate_key(kind)
    server = issue_server(
        authority, server_names, load_key(server_key).public, validity, random_serial()
    )
    terminals = {}
    for code in codes:
        key = generate_key(kind)
        certificate = issue_terminal(
            authority, code, load_key(key).public, validity, random_serial()
        )
        terminals[code] = Credentials(certificate, key)
    return SyntheticPki(authority, authority_key, Credentials(server, server_key), terminals)


def generate_key(kind: TlsKind) -> bytes:
    """Make a private key; return it as unencrypted PKCS #8 in PEM, which is the only form in which one leaves."""
    if kind is TlsKind.STANDARD:
        key = ec.generate_private_key(ec.SECP256R1())
        return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    # 1 to N-2, as Sm2PrivateKey wants it.
    d = scalar(1 + secrets.randbelow(SM2_ORDER - 2))
    point = Sm2PrivateKey.load(d).public.encode()
    # RFC 5915 §3, within RFC 5208 §5.
    private = der.sequence(
        der.integer(1),
        der.element(der.OCTET_STRING, d),
        der.element(der.CONTEXT_1, der.bit_string(point)),
    )
    return _pem(
        "PRIVATE KEY",
        der.sequence(der.integer(0), _key_algorithm(kind), der.element(der.OCTET_STRING, private)),
    )


def load_key(pem: bytes) -> CertificateKey:
    """Take a private key from unencrypted PKCS #8 in PEM.

    Raises:
        ValueError: it is not one of the two kinds. The text says nothing of its bytes.
    """
    try:
        blob = _from_pem("PRIVATE KEY", pem)
        _, algorithm, octets = der.read_one(blob, der.SEQUENCE)[:3]
        if algorithm.der == _key_algorithm(TlsKind.GUOMI):
            d = der.read_one(octets.content, der.SEQUENCE)[1]
            return _Sm2Key(Sm2PrivateKey.load(d.content))
        key = load_pem_private_key(pem, password=None)
    except Exception:  # noqa: BLE001 - whatever a parser says about a private key may quote it
        raise ValueError("the private key is no unencrypted PKCS #8 in PEM") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("the private key is neither SM2 nor ECDSA P-256")  # noqa: TRY004 - it is about the file
    return _EcdsaKey(key)


def random_serial() -> int:
    """Return a serial number that nobody can foresee (RFC 5280 §4.1.2.2 allows 159 bits)."""
    return x509.random_serial_number()


def make_authority(
    key: CertificateKey, common_name: str, validity: Validity, serial: int
) -> Authority:
    """Make a CA that signs itself, and end entities only."""
    name = _name(common_name)
    extensions: list[tuple[x509.ExtensionType, bool]] = [
        (x509.BasicConstraints(ca=True, path_length=0), True),
        (_key_usage(is_ca=True), True),
        (_subject_key_id(key.public), False),
    ]
    return Authority(_certificate(name, key, name, key.public, validity, serial, extensions), key)


def issue_terminal(
    authority: Authority, code: str, public_key: PublicKey, validity: Validity, serial: int
) -> bytes:
    """Issue the certificate of a terminal, in PEM: a client, whose common name is its code of 1 to 32 characters."""
    _require_code(code)
    return _issue_leaf(
        authority, _name(code), public_key, validity, serial, ExtendedKeyUsageOID.CLIENT_AUTH, []
    )


def issue_server(
    authority: Authority,
    names: Sequence[str],
    public_key: PublicKey,
    validity: Validity,
    serial: int,
) -> bytes:
    """Issue the certificate of a server, in PEM, for DNS names and IP addresses; the first is its common name too."""
    if not names:
        raise ValueError("a server's certificate has at least one name")
    alternatives = x509.SubjectAlternativeName([_general_name(name) for name in names])
    return _issue_leaf(
        authority,
        _name(names[0]),
        public_key,
        validity,
        serial,
        ExtendedKeyUsageOID.SERVER_AUTH,
        [(alternatives, False)],
    )


def make_request(key: CertificateKey, code: str) -> bytes:
    """Make a certificate request, in PEM (PKCS #10, RFC 2986), as a terminal does."""
    _require_code(code)
    body = der.sequence(
        der.integer(0), _name(code), key.public.encode(), der.element(der.CONTEXT_0)
    )
    return _pem("CERTIFICATE REQUEST", _signed(key, body))


def read_request_untrusted(pem: bytes, kind: TlsKind) -> Request:
    """Read a certificate request: of this kind, with one common name, signed with its own key.

    Whether that name may have a certificate is not asked here. Whatever else the request asks for is ignored: the CA
    alone decides on extensions.

    Raises:
        RequestRefused: it is not that.
    """
    if len(pem) > MAX_REQUEST:
        raise RequestRefused(f"a certificate request has at most {MAX_REQUEST} bytes")
    try:
        request = x509.load_pem_x509_csr(pem)
        names = request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        public_key = request_key_of(request)
        algorithm = request.signature_algorithm_oid.dotted_string
    except Exception:  # noqa: BLE001 - parsers of a stranger's bytes have many ways to say no
        raise RequestRefused("the certificate request is not readable") from None
    if len(names) != 1 or not isinstance(names[0].value, str):
        raise RequestRefused("a certificate request has exactly one common name")
    if public_key.kind is not kind or algorithm != _SIGNATURE_NAMES[kind]:
        raise RequestRefused(f"the certificate request is not of the {kind.value} kind")
    body, signature = request.tbs_certrequest_bytes, request.signature
    # One request, one spelling: a bit string whose last bit is zero could also leave it out.
    spelled = der.sequence(body, _signature_algorithm(kind), der.bit_string(signature))
    if spelled != request.public_bytes(Encoding.DER):
        raise RequestRefused("the certificate request is not DER")
    try:
        public_key.verify(body, signature)
    except ValueError:
        raise RequestRefused("the certificate request is not signed with its own key") from None
    try:
        _require_code(names[0].value)
    except ValueError as error:
        raise RequestRefused(str(error)) from None
    return Request(names[0].value, public_key)


def make_revocation_list(
    authority: Authority,
    revoked: Mapping[int, datetime.datetime],
    this_update: datetime.datetime,
    next_update: datetime.datetime,
    number: int,
) -> bytes:
    """Make a revocation list, in PEM: serial numbers, and since when. `number` grows with every list."""
    entries = [
        der.sequence(der.integer(serial), der.time(since))
        for serial, since in sorted(revoked.items())
    ]
    extensions = _extensions(
        [(_authority_key_id(authority.key.public), False), (x509.CRLNumber(number), False)]
    )
    body = der.sequence(
        der.integer(_CRL_V2),
        _signature_algorithm(authority.key.public.kind),
        _subject_of(authority),
        der.time(this_update),
        der.time(next_update),
        # RFC 5280 §5.1.2.6: with nothing revoked, there is no list at all.
        der.sequence(*entries) if entries else b"",
        der.element(der.CONTEXT_0, extensions),
    )
    return _pem("X509 CRL", _signed(authority.key, body))


def public_key_of(certificate: x509.Certificate) -> PublicKey:
    """Read a certificate's public key.

    Raises:
        ValueError: it is not an uncompressed point on one of the two curves.
    """
    return _public_key(certificate.tbs_certificate_bytes, at=6)


def request_key_of(request: x509.CertificateSigningRequest) -> PublicKey:
    """Read a request's public key. Whether its sender has the private one is not asked here.

    Raises:
        ValueError: it is not an uncompressed point on one of the two curves.
    """
    return _public_key(request.tbs_certrequest_bytes, at=2)


# By kind, in the form that cryptography names algorithms.
_SIGNATURE_NAMES: Final = {
    TlsKind.GUOMI: "1.2.156.10197.1.501",
    TlsKind.STANDARD: "1.2.840.10045.4.3.2",
}


def _public_key(body: bytes, at: int) -> PublicKey:
    """Read the key out of what is signed: the element at this place."""
    elements = der.read_one(body, der.SEQUENCE)
    if len(elements) <= at:
        raise ValueError("there is no public key in its place")
    algorithm, point = der.read_elements(elements[at].content)
    parts = der.read_elements(algorithm.content)
    if len(parts) != 2 or parts[0].content != _EC_PUBLIC_KEY:
        raise ValueError("the public key is not on an elliptic curve")
    kind = _KIND_OF_CURVE.get(parts[1].content)
    if kind is None or len(point.content) != 1 + POINT_BYTES or point.content[:2] != b"\0\x04":
        raise ValueError("the public key is no uncompressed point on SM2's curve or P-256")
    return PublicKey(kind, point.content[1:])


def _issue_leaf(
    authority: Authority,
    subject: bytes,
    public_key: PublicKey,
    validity: Validity,
    serial: int,
    use: x509.ObjectIdentifier,
    more: list[tuple[x509.ExtensionType, bool]],
) -> bytes:
    if public_key.kind is not authority.key.public.kind:
        raise ValueError("a CA issues certificates of its own kind")
    extensions: list[tuple[x509.ExtensionType, bool]] = [
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_key_usage(is_ca=False), True),
        (x509.ExtendedKeyUsage([use]), False),
        (_subject_key_id(public_key), False),
        (_authority_key_id(authority.key.public), False),
        *more,
    ]
    issuer = _subject_of(authority)
    return _certificate(issuer, authority.key, subject, public_key, validity, serial, extensions)


def _certificate(
    issuer: bytes,
    issuer_key: CertificateKey,
    subject: bytes,
    public_key: PublicKey,
    validity: Validity,
    serial: int,
    extensions: list[tuple[x509.ExtensionType, bool]],
) -> bytes:
    if not 0 < serial < 1 << (8 * _MAX_SERIAL_BYTES - 1):
        raise ValueError("a serial number is positive and has at most 20 bytes")
    if validity.not_after < validity.not_before:
        raise ValueError("the validity ends before it begins")
    # RFC 5280 §4.1.
    body = der.sequence(
        der.element(der.CONTEXT_0, der.integer(_X509_V3)),
        der.integer(serial),
        _signature_algorithm(issuer_key.public.kind),
        issuer,
        der.sequence(der.time(validity.not_before), der.time(validity.not_after)),
        subject,
        public_key.encode(),
        der.element(der.CONTEXT_3, _extensions(extensions)),
    )
    return _pem("CERTIFICATE", _signed(issuer_key, body))


def _signed(key: CertificateKey, body: bytes) -> bytes:
    return der.sequence(body, _signature_algorithm(key.public.kind), der.bit_string(key.sign(body)))


def _signature_algorithm(kind: TlsKind) -> bytes:
    # Without parameters: RFC 5758 §3.2 for ECDSA, and GM/T 0015 writes SM2 the same way.
    return der.sequence(der.element(der.OBJECT_IDENTIFIER, kind.signature_algorithm))


def _key_algorithm(kind: TlsKind) -> bytes:
    return der.sequence(
        der.element(der.OBJECT_IDENTIFIER, _EC_PUBLIC_KEY),
        der.element(der.OBJECT_IDENTIFIER, kind.curve),
    )


def _extensions(extensions: list[tuple[x509.ExtensionType, bool]]) -> bytes:
    return der.sequence(*(_extension(value, is_critical) for value, is_critical in extensions))


def _extension(value: x509.ExtensionType, is_critical: bool) -> bytes:
    return der.sequence(
        _object_identifier(value.oid),
        der.element(der.BOOLEAN, b"\xff") if is_critical else b"",
        der.element(der.OCTET_STRING, value.public_bytes()),
    )


def _object_identifier(oid: x509.ObjectIdentifier) -> bytes:
    first, second, *rest = map(int, oid.dotted_string.split("."))
    content = bytearray()
    for arc in (40 * first + second, *rest):
        digits = [arc & 0x7F]
        while arc := arc >> 7:
            digits.append(0x80 | arc & 0x7F)
        content += bytes(reversed(digits))
    return der.element(der.OBJECT_IDENTIFIER, bytes(content))


def _subject_of(authority: Authority) -> bytes:
    certificate = x509.load_pem_x509_certificate(authority.certificate)
    # The bytes as they are, since chains are compared by them: element 5 of RFC 5280 §4.1.
    return der.read_one(certificate.tbs_certificate_bytes, der.SEQUENCE)[5].der


def _name(common_name: str) -> bytes:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]).public_bytes()


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _require_code(code: str) -> None:
    if not 1 <= len(code) <= MAX_CODE or not code.isprintable():
        raise ValueError(f"a terminal's code has 1 to {MAX_CODE} printable characters")


def _key_usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _key_id(public_key: PublicKey) -> bytes:
    # RFC 7093 §2: the leftmost 160 bits of a SHA-256. It names a key and proves nothing.
    return hashlib.sha256(public_key.point).digest()[:_KEY_ID_BYTES]


def _subject_key_id(public_key: PublicKey) -> x509.SubjectKeyIdentifier:
    return x509.SubjectKeyIdentifier(_key_id(public_key))


def _authority_key_id(public_key: PublicKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier(_key_id(public_key), None, None)


def _pem(label: str, content: bytes) -> bytes:
    text = base64.b64encode(content).decode()
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""]).encode()


def _from_pem(label: str, pem: bytes) -> bytes:
    begin, end = f"-----BEGIN {label}-----".encode(), f"-----END {label}-----".encode()
    _, found, rest = pem.partition(begin)
    body, closed, _ = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"there is no {label} in PEM")
    return base64.b64decode(b"".join(body.split()), validate=True)
