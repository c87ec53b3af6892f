"""The historical bytes are found in any ATR, and no bytes raise anything but RemoteProtocolError."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyd.errors import LocalProtocolError, RemoteProtocolError
from keyd.iso7816 import Atr, historical_bytes

CARD_ATR = bytes.fromhex("3B6D000000814A444686605199000001AC")
HISTORICAL = bytes.fromhex("00814A444686605199000001AC")


def test_the_card_of_the_specification() -> None:
    assert Atr.of_card(HISTORICAL) == Atr.parse_untrusted(CARD_ATR)
    assert Atr.of_card(HISTORICAL).raw == CARD_ATR


def test_terminals_send_the_historical_bytes_or_the_atr() -> None:
    assert historical_bytes(HISTORICAL) == historical_bytes(CARD_ATR) == HISTORICAL


@pytest.mark.parametrize(
    ("atr", "historical"),
    [
        ("3B00", ""),
        ("3F65250822046C9000", "22046C9000"),
        ("3F65250822046C90004D", None),  # Five historical bytes are announced; six stand there.
        ("3B8001 81", ""),  # T=1 alone, as contactless readers make it up: TCK follows.
        ("3B800180", None),
        ("3B8D8001" + "00814A444686605199000001AC" + "46", "00814A444686605199000001AC"),
        ("3B9F958131FE9F006646530510003171DF000000000002", None),
        ("3A00", None),
        ("3B", None),
        ("", None),
        ("3B80", None),
        ("3BF0", None),
        ("3B80" + "80" * 31, None),
        ("3B6D0000" + "00" * 12, None),
        ("3B6D0000" + "00" * 14, None),
    ],
)
def test_other_atrs(atr: str, historical: str | None) -> None:
    raw = bytes.fromhex(atr)
    if historical is None:
        with pytest.raises(RemoteProtocolError):
            Atr.parse_untrusted(raw)
    else:
        assert Atr.parse_untrusted(raw).historical.hex().upper() == historical


@given(st.binary(max_size=40) | st.binary(max_size=32).map(lambda rest: b"\x3b" + rest))
def test_any_bytes_parse_or_are_the_peers_fault(raw: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        atr = Atr.parse_untrusted(raw)
        assert atr.raw == raw
        assert atr.historical in raw
    with contextlib.suppress(RemoteProtocolError):
        assert len(historical_bytes(raw)) == 13


@given(st.binary(min_size=13, max_size=13))
def test_every_cards_atr_gives_its_historical_bytes(historical: bytes) -> None:
    assert historical_bytes(Atr.of_card(historical).raw) == historical


@pytest.mark.parametrize("length", [0, 12, 14, 17])
def test_a_card_has_13_historical_bytes(length: int) -> None:
    with pytest.raises(LocalProtocolError):
        Atr.of_card(bytes(length))


def test_an_atr_of_another_kind_of_card_is_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        historical_bytes(bytes.fromhex("3B00"))
