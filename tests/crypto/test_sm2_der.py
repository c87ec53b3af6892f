"""What encodes to DER decodes to the same bytes, and no second spelling of it decodes at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyd.crypto.sm2.backend import Ciphertext
from keyd.crypto.sm2.der import (
    MAX_SIGNATURE_BYTES,
    ciphertext_from_der,
    ciphertext_to_der,
    max_ciphertext_bytes,
    signature_from_der,
    signature_to_der,
)

# Short numbers on purpose: leading zeros are where DER goes wrong.
scalars = st.integers(0, 32).flatmap(
    lambda n: st.binary(min_size=n, max_size=n).map(lambda octets: octets.rjust(32, b"\0"))
)
ciphertexts = st.builds(
    lambda x, y, c3, c2: Ciphertext(b"\x04" + x + y, c2, c3),
    scalars,
    scalars,
    st.binary(min_size=32, max_size=32),
    st.one_of(st.binary(min_size=1, max_size=300), st.just(bytes(70_000))),
)


@given(r=scalars, s=scalars)
def test_signatures_survive_the_way_there_and_back(r: bytes, s: bytes) -> None:
    der = signature_to_der(r + s)
    assert len(der) <= MAX_SIGNATURE_BYTES
    assert signature_from_der(der) == r + s


@given(ciphertext=ciphertexts)
def test_ciphertexts_survive_the_way_there_and_back(ciphertext: Ciphertext) -> None:
    der = ciphertext_to_der(ciphertext)
    assert len(der) <= max_ciphertext_bytes(len(ciphertext.c2))
    assert ciphertext_from_der(der) == ciphertext


def test_the_longest_ciphertext_is_as_long_as_announced() -> None:
    longest = Ciphertext(b"\x04" + b"\xff" * 64, bytes(500), bytes(32))
    assert len(ciphertext_to_der(longest)) == max_ciphertext_bytes(500)


def test_small_numbers_are_written_short() -> None:
    assert signature_to_der(bytes(31) + b"\x7f" + bytes(31) + b"\x80").hex() == "300702017f02020080"


@pytest.mark.parametrize(
    "der",
    [
        "",
        "30",
        "3006",
        "30060201010201",
        "3006020101020101" + "00",
        "3007020101020101" + "00",
        "3003020101",
        "3009020101020101020101",
        "3106020101020101",
        "3006030101020101",
        "30810602010102010100",
        "308106020101020101",
        "3080020101020101" + "0000",
        "30070202000102" + "0101",
        "3006020181020101",
        "3005020002" + "0101",
        "30820006020101020101",
        "3084",
        "30ff",
        "302602210100000000000000000000000000000000000000000000000000000000000000000201" + "01",
    ],
)
def test_every_other_spelling_is_refused(der: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        signature_from_der(bytes.fromhex(der))


def test_a_c3_of_another_length_is_refused() -> None:
    der = ciphertext_to_der(Ciphertext(b"\x04" + bytes(64), b"c2", bytes(31)))
    with pytest.raises(ValueError, match="C3 has 32 bytes"):
        ciphertext_from_der(der)


@given(der=st.binary(max_size=200))
def test_whatever_decodes_encodes_to_the_same_bytes(der: bytes) -> None:
    try:
        signature = signature_from_der(der)
    except ValueError:
        return
    assert signature_to_der(signature) == der


@given(r=scalars, s=scalars, at=st.integers(0, 80), to=st.integers(0, 255))
def test_whatever_still_decodes_after_a_change_is_its_own_spelling(
    r: bytes, s: bytes, at: int, to: int
) -> None:
    der = bytearray(signature_to_der(r + s))
    der[at % len(der)] = to
    try:
        signature = signature_from_der(bytes(der))
    except ValueError:
        return
    assert signature_to_der(signature) == der
