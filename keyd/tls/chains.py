"""Certificate chains that come beside a line: a terminal's, with a signature of its own. Pure; the time is an argument.

OpenSSL builds and judges the chain, strictly, as it does in a handshake; SM2 certificates like others. What it does not
ask is asked here: that the first certificate is one to sign with, as a client, and whose it is.
"""

from __future__ import annotations

import datetime
import enum
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import crypto

from keyd.tls.der import read_elements
from keyd.tls.openssl import MAX_CHAIN
from keyd.tls.pki import PublicKey, public_key_of

if TYPE_CHECKING:
    from collections.abc import Sequence

# A certificate has about a kilobyte, in PEM a third more; a chain has MAX_CHAIN of them at most.
MAX_CHAIN_BYTES: Final = 16 * 1024

# X509_V_ERR_CERT_NOT_YET_VALID, _HAS_EXPIRED and _REVOKED.
_NOT_YET, _EXPIRED, _REVOKED = 9, 10, 23

_SEQUENCE: Final = 0x30
_CRL: Final = re.compile(rb"-----BEGIN X509 CRL-----.*?-----END X509 CRL-----", re.DOTALL)


class ChainFault(enum.StrEnum):
    """What is wrong with a chain, for the log and the journal."""

    UNREADABLE = "unreadable"
    NOT_TRUSTED = "not-trusted"
    NOT_VALID = "not-valid"
    REVOKED = "revoked"
    WRONG_USE = "wrong-use"


class ChainRefused(Exception):  # noqa: N818 - says what happened
    """The chain does not lead to an authority; says which fault it is, and none of the peer's bytes."""

    def __init__(self, fault: ChainFault) -> None:
        super().__init__(f"the certificate chain is refused: {fault}")
        self.fault = fault


class Anchor(NamedTuple):
    """Authorities that chains may lead to: certificates in PEM, self-signed, and their revocation lists in PEM.

    With revocation lists, every CA of a chain must have one that is in date; with None, nothing is looked up.
    """

    authorities: bytes
    revoked: bytes | None = None


class ChainEnd(NamedTuple):
    """What the certificate at the end of a good chain says."""

    common_name: str
    serial: int
    not_after: int
    """Seconds since 1970."""
    public_key: PublicKey


class Anchors:
    """The anchors of one keyd, parsed."""

    def __init__(self, anchors: Sequence[Anchor] = ()) -> None:
        """Take anchors.

        Raises:
            ValueError: there is no certificate or no revocation list where one belongs, or one is damaged.
        """
        self._anchors = [
            (
                [
                    crypto.X509.from_cryptography(one)
                    for one in x509.load_pem_x509_certificates(anchor.authorities)
                ],
                None if anchor.revoked is None else _revocation_lists(anchor.revoked),
            )
            for anchor in anchors
        ]

    def joined(self, other: Anchors) -> Anchors:
        """Return the anchors of both."""
        both = Anchors()
        both._anchors = self._anchors + other._anchors
        return both

    def verify_untrusted(self, chain: bytes, now: int) -> ChainEnd:
        """Judge a chain, the peer's certificate first, in PEM or as DER certificates one after the other.

        `now` is seconds since 1970, `chain` has at most 16 KiB. It takes some 100 µs a certificate.

        Raises:
            ChainRefused: it does not lead to an authority, or its first certificate is none to sign with.
        """
        leaf, *others = _certificates_untrusted(chain)
        fault = ChainFault.NOT_TRUSTED
        for authorities, revoked in self._anchors:
            found = _fault(authorities, revoked, leaf, others, now)
            if found is None:
                return _end_untrusted(leaf)
            # What an authority says of its own certificates says more than that another one knows none of them.
            fault = fault if found is ChainFault.NOT_TRUSTED else found
        raise ChainRefused(fault)


def _fault(
    authorities: Sequence[crypto.X509],
    revoked: Sequence[x509.CertificateRevocationList] | None,
    leaf: x509.Certificate,
    others: Sequence[x509.Certificate],
    now: int,
) -> ChainFault | None:
    # A store of its own each time: the time is a property of the store, and other threads use theirs.
    store = crypto.X509Store()
    for authority in authorities:
        store.add_cert(authority)
    flags = crypto.X509StoreFlags.X509_STRICT
    if revoked is not None:
        for revocation_list in revoked:
            store.add_crl(revocation_list)
        flags |= crypto.X509StoreFlags.CRL_CHECK | crypto.X509StoreFlags.CRL_CHECK_ALL
    store.set_flags(flags)
    store.set_time(datetime.datetime.fromtimestamp(now, datetime.UTC))
    context = crypto.X509StoreContext(
        store,
        crypto.X509.from_cryptography(leaf),
        [crypto.X509.from_cryptography(one) for one in others],
    )
    try:
        context.verify_certificate()
    except crypto.X509StoreContextError as error:
        number = error.errors[0]
        if number in (_NOT_YET, _EXPIRED):
            return ChainFault.NOT_VALID
        return ChainFault.REVOKED if number == _REVOKED else ChainFault.NOT_TRUSTED
    return None


def _end_untrusted(leaf: x509.Certificate) -> ChainEnd:
    try:
        _require_for_signing(leaf.extensions)
        names = leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        public_key = public_key_of(leaf)
        not_after = int(leaf.not_valid_after_utc.timestamp())
    except ChainRefused:
        raise
    except Exception:  # noqa: BLE001 - parsers of a stranger's bytes have many ways to say no
        raise ChainRefused(ChainFault.UNREADABLE) from None
    if len(names) != 1 or not isinstance(names[0].value, str):
        raise ChainRefused(ChainFault.WRONG_USE)
    return ChainEnd(names[0].value, leaf.serial_number, not_after, public_key)


def _require_for_signing(extensions: x509.Extensions) -> None:
    """Refuse a CA's certificate, one not for signatures, and one for something else than clients."""
    for extension in extensions:
        value = extension.value
        is_wrong = (
            (isinstance(value, x509.BasicConstraints) and value.ca)
            or (isinstance(value, x509.KeyUsage) and not value.digital_signature)
            or (
                isinstance(value, x509.ExtendedKeyUsage)
                and ExtendedKeyUsageOID.CLIENT_AUTH not in value
            )
        )
        if is_wrong:
            raise ChainRefused(ChainFault.WRONG_USE)


def _certificates_untrusted(chain: bytes) -> list[x509.Certificate]:
    if len(chain) > MAX_CHAIN_BYTES:
        raise ChainRefused(ChainFault.UNREADABLE)
    try:
        is_der = chain[:1] == bytes([_SEQUENCE])
        found = _der_certificates(chain) if is_der else x509.load_pem_x509_certificates(chain)
    except Exception:  # noqa: BLE001 - parsers of a stranger's bytes have many ways to say no
        raise ChainRefused(ChainFault.UNREADABLE) from None
    if not 1 <= len(found) <= MAX_CHAIN:
        raise ChainRefused(ChainFault.UNREADABLE)
    return found


def _der_certificates(chain: bytes) -> list[x509.Certificate]:
    return [x509.load_der_x509_certificate(element.der) for element in read_elements(chain)]


def _revocation_lists(pem: bytes) -> list[x509.CertificateRevocationList]:
    blocks = _CRL.findall(pem)
    if not blocks:
        raise ValueError("there is no revocation list in PEM")
    return [x509.load_pem_x509_crl(block) for block in blocks]
