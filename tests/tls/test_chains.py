"""A chain beside a line is good if it leads from a client that signs to an authority, at that moment, and unrevoked."""

from __future__ import annotations

import base64
import datetime
import functools
from typing import Final

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from keyd.tls.chains import (
    MAX_CHAIN_BYTES,
    Anchor,
    Anchors,
    ChainEnd,
    ChainFault,
    ChainRefused,
    _end_untrusted,
)
from keyd.tls.kinds import TlsKind
from keyd.tls.pki import (
    SyntheticPki,
    Validity,
    _certificate,
    _name,
    load_key,
    make_revocation_list,
    synthetic_pki,
)

BEGIN: Final = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
END: Final = datetime.datetime(2027, 1, 1, tzinfo=datetime.UTC)
USAGES: Final = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
    *("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)

NOW: Final = int(datetime.datetime(2026, 6, 1, tzinfo=datetime.UTC).timestamp())

kinds = pytest.mark.parametrize("kind", TlsKind)


def pki(kind: TlsKind, number: int = 0) -> SyntheticPki:
    """Return a synthetic PKI; those of different numbers have nothing to do with each other."""
    return made(kind, number)


@functools.cache
def made(kind: TlsKind, number: int) -> SyntheticPki:
    return synthetic_pki(kind, Validity(BEGIN, END), ["keyd.test"], [f"T-{number}"])


def leaf(kind: TlsKind = TlsKind.GUOMI, number: int = 0) -> bytes:
    return pki(kind, number).terminals[f"T-{number}"].certificate


def der_of(pem: bytes) -> bytes:
    return base64.b64decode(b"".join(pem.split(b"-----")[2].split()))


def trusting(kind: TlsKind = TlsKind.GUOMI, revoked: bytes | None = None) -> Anchors:
    return Anchors([Anchor(pki(kind).authority.certificate, revoked)])


def fault(anchors: Anchors, chain: bytes, now: int = NOW) -> ChainFault:
    with pytest.raises(ChainRefused) as raised:
        anchors.verify_untrusted(chain, now)
    assert str(raised.value) == f"the certificate chain is refused: {raised.value.fault}"
    return raised.value.fault


def good(kind: TlsKind) -> ChainEnd:
    return trusting(kind).verify_untrusted(leaf(kind), NOW)


def crl(kind: TlsKind, *serials: int, end: datetime.datetime = END) -> bytes:
    return make_revocation_list(
        pki(kind).authority, dict.fromkeys(serials, BEGIN), BEGIN, end, number=1
    )


@kinds
def test_a_good_chain_says_whose_it_is(kind: TlsKind) -> None:
    end = good(kind)
    key = load_key(pki(kind).terminals["T-0"].private_key)
    assert end == ChainEnd("T-0", end.serial, int(END.timestamp()), key.public)
    with_authority = leaf(kind) + pki(kind).authority.certificate
    for chain in (
        der_of(leaf(kind)),
        with_authority,
        der_of(leaf(kind)) + der_of(pki(kind).authority.certificate),
    ):
        assert trusting(kind).verify_untrusted(chain, NOW) == end


@kinds
def test_it_is_good_between_its_dates(kind: TlsKind) -> None:
    for now in (int(BEGIN.timestamp()), int(END.timestamp())):
        trusting(kind).verify_untrusted(leaf(kind), now)
    for now in (0, int(BEGIN.timestamp()) - 1, int(END.timestamp()) + 1, 2**32):
        assert fault(trusting(kind), leaf(kind), now) is ChainFault.NOT_VALID


@kinds
def test_another_authority_is_none(kind: TlsKind) -> None:
    assert fault(trusting(kind), leaf(kind, 1)) is ChainFault.NOT_TRUSTED
    # Not even with its authority beside it: what a peer brings is not trusted.
    chain = leaf(kind, 1) + pki(kind, 1).authority.certificate
    assert fault(trusting(kind), chain) is ChainFault.NOT_TRUSTED
    assert fault(Anchors(), leaf(kind)) is ChainFault.NOT_TRUSTED
    both = Anchors(
        [Anchor(pki(kind, 1).authority.certificate), Anchor(pki(kind).authority.certificate)]
    )
    assert both.verify_untrusted(leaf(kind), NOW) == good(kind)
    assert fault(both, leaf(kind), 0) is ChainFault.NOT_VALID


@kinds
def test_a_revoked_certificate_is_refused(kind: TlsKind) -> None:
    serial = good(kind).serial
    assert fault(trusting(kind, crl(kind, serial)), leaf(kind)) is ChainFault.REVOKED
    assert trusting(kind, crl(kind, serial + 1)).verify_untrusted(leaf(kind), NOW) == good(kind)


@kinds
def test_a_list_that_is_out_of_date_or_anothers_lets_nobody_in(kind: TlsKind) -> None:
    yesterday = datetime.datetime.fromtimestamp(NOW, datetime.UTC) - datetime.timedelta(days=1)
    assert fault(trusting(kind, crl(kind, end=yesterday)), leaf(kind)) is ChainFault.NOT_TRUSTED
    others = make_revocation_list(pki(kind, 1).authority, {}, BEGIN, END, number=1)
    assert fault(trusting(kind, others), leaf(kind)) is ChainFault.NOT_TRUSTED


@kinds
def test_a_servers_and_an_authoritys_certificate_prove_no_terminal(kind: TlsKind) -> None:
    for other in (pki(kind).server.certificate, pki(kind).authority.certificate):
        assert fault(trusting(kind), other) is ChainFault.WRONG_USE


@kinds
def test_an_authority_that_also_signs_proves_no_terminal(kind: TlsKind) -> None:
    key = load_key(pki(kind).terminals["T-0"].private_key)
    usage = {name: name == "digital_signature" for name in USAGES} | {"key_cert_sign": True}
    extensions: list[tuple[x509.ExtensionType, bool]] = [
        (x509.BasicConstraints(ca=True, path_length=0), True),
        (x509.KeyUsage(**usage), True),
    ]
    made = _certificate(
        _name("T-0"), key, _name("T-0"), key.public, Validity(BEGIN, END), 5, extensions
    )
    with pytest.raises(ChainRefused) as raised:
        _end_untrusted(x509.load_pem_x509_certificate(made))
    assert raised.value.fault is ChainFault.WRONG_USE


@kinds
def test_a_changed_byte_is_refused(kind: TlsKind) -> None:
    der = der_of(leaf(kind))
    for at in range(0, len(der), 7):
        fault(trusting(kind), der[:at] + bytes([der[at] ^ 1]) + der[at + 1 :])


@pytest.mark.parametrize(
    "chain",
    [
        b"",
        b"\x30",
        b"\x30\x80\x00\x00",
        b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n",
        b"x" * MAX_CHAIN_BYTES,
        leaf() * 5,
        leaf() + b" " * MAX_CHAIN_BYTES,
        der_of(leaf()) + b"\0",
        der_of(leaf())[:-1],
    ],
    ids=range(9),
)
def test_what_is_no_chain_is_unreadable(chain: bytes) -> None:
    assert fault(trusting(), chain) is ChainFault.UNREADABLE


@given(
    st.one_of(
        st.binary(max_size=200),
        st.binary(max_size=60).map(lambda tail: der_of(leaf())[:300] + tail),
    )
)
def test_no_bytes_raise_anything_else(chain: bytes) -> None:
    with pytest.raises(ChainRefused):
        trusting().verify_untrusted(chain, NOW)


@pytest.mark.parametrize(
    "anchor",
    [
        Anchor(b"no PEM"),
        Anchor(pki(TlsKind.GUOMI).authority.certificate, b"no list"),
        Anchor(
            pki(TlsKind.GUOMI).authority.certificate,
            b"-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n",
        ),
    ],
)
def test_anchors_that_are_none_are_refused(anchor: Anchor) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Anchors([anchor])
