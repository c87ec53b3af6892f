"""Whatever parses marshals back to the same bytes, and no bytes raise anything but RemoteProtocolError."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyd.errors import LocalProtocolError, RemoteProtocolError
from keyd.iso7816 import CommandApdu, ResponseApdu

BYTE = st.integers(0, 0xFF)
COMMANDS = st.builds(
    CommandApdu,
    BYTE,
    BYTE,
    BYTE,
    BYTE,
    st.binary(max_size=600),
    st.none() | st.integers(1, 0x10000),
)


@pytest.mark.parametrize(
    ("message", "apdu"),
    [
        ("80CA0102", CommandApdu(0x80, 0xCA, 1, 2)),
        ("0084000008", CommandApdu(0x00, 0x84, 0, 0, le=8)),
        ("00B2010000", CommandApdu(0x00, 0xB2, 1, 0, le=256)),
        ("00A4020002EF05", CommandApdu(0x00, 0xA4, 2, 0, b"\xef\x05")),
        ("00A4020002EF0500", CommandApdu(0x00, 0xA4, 2, 0, b"\xef\x05", 256)),
        ("00B00000000102", CommandApdu(0x00, 0xB0, 0, 0, le=0x102)),
        ("00B00000000000", CommandApdu(0x00, 0xB0, 0, 0, le=0x10000)),
        ("00D6000000000155", CommandApdu(0x00, 0xD6, 0, 0, b"\x55", extended=True)),
        ("00D60000000001550000", CommandApdu(0x00, 0xD6, 0, 0, b"\x55", 0x10000)),
    ],
)
def test_each_case_of_iso_7816_3(message: str, apdu: CommandApdu) -> None:
    assert CommandApdu.parse_untrusted(bytes.fromhex(message)) == apdu
    assert bytes(apdu).hex().upper() == message


@given(COMMANDS)
def test_a_command_survives_the_wire(apdu: CommandApdu) -> None:
    assert CommandApdu.parse_untrusted(bytes(apdu)) == apdu


@given(st.binary(max_size=300))
def test_any_bytes_parse_faithfully_or_are_the_peers_fault(message: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        assert bytes(CommandApdu.parse_untrusted(message)) == message


@given(COMMANDS, st.data())
def test_a_command_cut_short_is_never_longer_than_it_is(
    apdu: CommandApdu, data: st.DataObject
) -> None:
    message = bytes(apdu)
    cut = message[: data.draw(st.integers(0, len(message) - 1))]
    with contextlib.suppress(RemoteProtocolError):
        assert bytes(CommandApdu.parse_untrusted(cut)) == cut


@given(st.binary(max_size=300))
def test_a_response_is_data_and_a_status_word(message: bytes) -> None:
    if len(message) < 2:
        with pytest.raises(RemoteProtocolError):
            ResponseApdu.parse_untrusted(message)
    else:
        assert bytes(ResponseApdu.parse_untrusted(message)) == message


@pytest.mark.parametrize("le", [0, -1, 0x10001])
def test_a_wrong_le_is_our_fault(le: int) -> None:
    with pytest.raises(LocalProtocolError):
        CommandApdu(0, 0, 0, 0, le=le)


def test_other_faults_of_ours() -> None:
    with pytest.raises(LocalProtocolError):
        CommandApdu(0x100, 0, 0, 0)
    with pytest.raises(LocalProtocolError):
        CommandApdu(0, 0, 0, 0, bytes(0x10000))
    with pytest.raises(LocalProtocolError):
        CommandApdu(0, 0, 0, 0, extended=True)
    with pytest.raises(LocalProtocolError):
        ResponseApdu(b"", 0x10000)


def test_no_repr_shows_data() -> None:
    assert "123456" not in repr(CommandApdu(0x00, 0x20, 0, 0, bytes.fromhex("123456")))
    assert "C0FFEE" not in repr(ResponseApdu(bytes.fromhex("C0FFEE"), 0x9000)).upper()
