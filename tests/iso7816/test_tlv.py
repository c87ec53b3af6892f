"""What is written is read again the same, and no bytes raise anything but RemoteProtocolError."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyd.errors import LocalProtocolError, RemoteProtocolError
from keyd.iso7816 import Aid, Fci, Record, Tlv

FCI = "6F1C840F7378312E73682EC9E7BBE1B1A3D5CFA50988011E9F0C038601"

ONE_BYTE_TAGS = st.integers(0, 0xFF).filter(lambda tag: tag & 0x1F != 0x1F)
TWO_BYTE_TAGS = st.builds(
    lambda first, second: (first | 0x1F) << 8 | second, st.integers(1, 0xFF), st.integers(0, 0x7F)
)
OBJECTS = st.builds(Tlv, ONE_BYTE_TAGS | TWO_BYTE_TAGS, st.binary(max_size=300))


def test_the_names_are_what_they_say() -> None:
    assert Aid.SSSE.decode("gbk") == "sx1.sh.社会保障"
    assert Aid.PSE.decode("ascii") == "1PAY.SYS.DDF01"


@pytest.mark.parametrize("algorithm", [0x01, 0x02, 0x03])
def test_the_fci_of_the_ddf(algorithm: int) -> None:
    fci = Fci(bytes(Aid.SSSE), sfi=0x1E, algorithm_id=algorithm)
    assert bytes(fci).hex().upper() == f"{FCI}{algorithm:02X}"
    assert Fci.parse_untrusted(bytes(fci)) == fci


def test_an_early_card_names_no_algorithm() -> None:
    fci = Fci(bytes(Aid.SSSE), sfi=0x1E)
    assert Fci.parse_untrusted(bytes(fci)).algorithm_id is None


@pytest.mark.parametrize("length", [0, 1, 0x7F, 0x80, 0xFF, 0x100, 0xFFFF])
def test_lengths_in_all_their_forms(length: int) -> None:
    tlv = Tlv(0x84, bytes(length))
    assert Tlv.parse_untrusted(bytes(tlv)) == (tlv,)


def test_a_longer_form_than_needed_is_read() -> None:
    assert Tlv.parse_untrusted(bytes.fromhex("84810155")) == (Tlv(0x84, b"\x55"),)
    assert Tlv.parse_untrusted(bytes.fromhex("8482000155")) == (Tlv(0x84, b"\x55"),)


@given(st.lists(OBJECTS, max_size=5))
def test_objects_survive(objects: list[Tlv]) -> None:
    assert Tlv.parse_untrusted(b"".join(map(bytes, objects))) == tuple(objects)


@pytest.mark.parametrize(
    "data", ["84", "9F", "9F81 01 00", "8402 55", "8480 55", "8483 000001 55", "8481", "8482 00"]
)
def test_what_is_cut_off_is_the_peers_fault(data: str) -> None:
    with pytest.raises(RemoteProtocolError):
        Tlv.parse_untrusted(bytes.fromhex(data))


@given(st.binary(max_size=64) | st.binary(max_size=40).map(lambda rest: b"\x6f" + rest))
def test_any_bytes_parse_or_are_the_peers_fault(data: bytes) -> None:
    for parse in (Tlv.parse_untrusted, Record.parse_untrusted, Fci.parse_untrusted):
        with contextlib.suppress(RemoteProtocolError):
            parse(data)


@given(st.integers(0, 0xFF), st.binary(max_size=255))
def test_a_record_survives_whatever_ber_thinks_of_its_tag(tag: int, value: bytes) -> None:
    assert Record.parse_untrusted(bytes(Record(tag, value))) == Record(tag, value)


@pytest.mark.parametrize("data", ["", "08", "080155AA", "0802 55"])
def test_a_record_has_the_length_it_says(data: str) -> None:
    with pytest.raises(RemoteProtocolError):
        Record.parse_untrusted(bytes.fromhex(data))


@pytest.mark.parametrize(
    "wrong",
    [
        Tlv(0x1F, b""),
        Tlv(0x84, bytes(0x10000)),
        Tlv(0x8401, b""),
        Record(0x100, b""),
        Record(1, bytes(256)),
    ],
)
def test_what_cannot_be_written_is_our_fault(wrong: Tlv | Record) -> None:
    with pytest.raises(LocalProtocolError):
        bytes(wrong)


@pytest.mark.parametrize("data", ["", "8400", "6F00", "6F028400", "6F0A 840155 A505 9F0C028600"])
def test_what_is_no_fci(data: str) -> None:
    with pytest.raises(RemoteProtocolError):
        Fci.parse_untrusted(bytes.fromhex(data))


def test_no_repr_shows_values() -> None:
    assert "55" not in repr(Tlv(0x84, b"\x55")) + repr(Record(0x09, b"\x55"))
