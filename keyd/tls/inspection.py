"""What keyd reads of a certificate, a request or a revocation list, for people. It judges nothing.

A private key is recognised, and nothing of it is shown but what belongs to its public half.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from keyd.tls.pki import load_key, public_key_of, request_key_of

if TYPE_CHECKING:
    import datetime
    from collections.abc import Iterator

    from keyd.tls.pki import PublicKey

# A chain, a request or a revocation list of a whole province.
MAX_FILE: Final = 8 * 1024 * 1024
MAX_BLOCKS: Final = 64

_MARK: Final = re.compile(rb"-----(BEGIN|END) ([A-Z0-9 ]{1,32})-----")

CLIENT_USE: Final = "a terminal's side of a line"

_USES: Final = {
    ExtendedKeyUsageOID.CLIENT_AUTH: CLIENT_USE,
    ExtendedKeyUsageOID.SERVER_AUTH: "a server's side of a line",
}


class Shown(NamedTuple):
    """One thing in a file, by what keyd calls its parts. What it does not have is empty, or None."""

    what: str
    """certificate, certificate request, revocation list or private key."""
    kind: str
    """guomi or standard; "other" for a key that keyd has no line with."""
    common_name: str = ""
    issuer: str = ""
    names: tuple[str, ...] = ()
    """DNS names and IP addresses, of a server."""
    use: tuple[str, ...] = ()
    serial: int | None = None
    not_before: datetime.datetime | None = None
    not_after: datetime.datetime | None = None
    fingerprint: bytes = b""
    """SHA-256 over the certificate, 32 bytes."""
    public_key: bytes = b""
    """04‖x‖y, 65 bytes."""
    revoked: tuple[tuple[int, datetime.datetime], ...] = ()
    """Serial numbers, and since when."""
    number: int | None = None
    """Of a revocation list: it grows with every one."""


def read_pem_untrusted(data: bytes) -> list[Shown]:
    """Read everything that a PEM file holds, in its order.

    Raises:
        ValueError: there is nothing in PEM, too much of it, or something that keyd does not read.
    """
    if len(data) > MAX_FILE:
        raise ValueError(f"it has more than {MAX_FILE} bytes")
    blocks = list(itertools.islice(_blocks(data), MAX_BLOCKS + 1))
    if not 1 <= len(blocks) <= MAX_BLOCKS:
        raise ValueError("there is nothing in PEM" if not blocks else "there is too much in PEM")
    return [_read_block(label, pem) for label, pem in blocks]


def _blocks(data: bytes) -> Iterator[tuple[str, bytes]]:
    # Mark by mark: one expression for a whole block would look for the end of each of a million beginnings.
    begin: re.Match[bytes] | None = None
    for mark in _MARK.finditer(data):
        if mark[1] == b"BEGIN":
            begin = mark
        elif begin is not None and begin[2] == mark[2]:
            yield mark[2].decode("ascii"), data[begin.start() : mark.end()]
            begin = None


def _read_block(label: str, pem: bytes) -> Shown:
    # Whatever a parser says of a private key may quote it, and of anything else it is written for programmers.
    try:
        match label:
            case "CERTIFICATE":
                return _certificate(x509.load_pem_x509_certificate(pem))
            case "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST":
                return _request(x509.load_pem_x509_csr(pem))
            case "X509 CRL":
                return _revocation_list(x509.load_pem_x509_crl(pem))
            case "PRIVATE KEY":
                key = load_key(pem).public
                return Shown("private key", key.kind.value, public_key=key.point)
    except Exception:  # noqa: BLE001 - parsers of a stranger's bytes have many ways to say no
        raise ValueError(f"the {label} cannot be read") from None
    raise ValueError(f"keyd does not read a {label}")


def _certificate(certificate: x509.Certificate) -> Shown:
    key = _key_or_none(certificate)
    return Shown(
        "certificate",
        _kind(key),
        common_name=_common_name(certificate.subject),
        issuer=_common_name(certificate.issuer),
        names=_names(certificate),
        use=_uses(certificate),
        serial=certificate.serial_number,
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        fingerprint=hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest(),
        public_key=key.point if key else b"",
    )


def _request(request: x509.CertificateSigningRequest) -> Shown:
    try:
        key = request_key_of(request)
    except ValueError:
        key = None
    return Shown(
        "certificate request",
        _kind(key),
        common_name=_common_name(request.subject),
        public_key=key.point if key else b"",
    )


def _revocation_list(revocation_list: x509.CertificateRevocationList) -> Shown:
    try:
        number = revocation_list.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        number = None
    algorithm = revocation_list.signature_algorithm_oid.dotted_string
    return Shown(
        "revocation list",
        _KINDS.get(algorithm, "other"),
        issuer=_common_name(revocation_list.issuer),
        not_before=revocation_list.last_update_utc,
        not_after=revocation_list.next_update_utc,
        revoked=tuple(
            (entry.serial_number, entry.revocation_date_utc) for entry in revocation_list
        ),
        number=number,
    )


# By the algorithm that signs, in the form that cryptography names it.
_KINDS: Final = {"1.2.156.10197.1.501": "guomi", "1.2.840.10045.4.3.2": "standard"}


def _key_or_none(certificate: x509.Certificate) -> PublicKey | None:
    try:
        return public_key_of(certificate)
    except ValueError:
        return None


def _kind(key: PublicKey | None) -> str:
    return key.kind.value if key else "other"


def _common_name(name: x509.Name) -> str:
    """Return the common name, or the whole name where there is not exactly one."""
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(found) == 1 and isinstance(found[0].value, str):
        return found[0].value
    return name.rfc4514_string()


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    addresses = found.get_values_for_type(x509.IPAddress)
    return (*found.get_values_for_type(x509.DNSName), *map(str, addresses))


def _uses(certificate: x509.Certificate) -> tuple[str, ...]:
    extensions = certificate.extensions
    uses: list[str] = []
    try:
        if extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            uses.append("signing certificates")
    except x509.ExtensionNotFound:
        pass
    try:
        named = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return tuple(uses)
    return (*uses, *(_USES.get(each, each.dotted_string) for each in named))
