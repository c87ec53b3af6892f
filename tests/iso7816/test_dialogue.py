"""A dialogue says the same thing over any transport, and goes on only after status word 9000."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from keyd.errors import RemoteProtocolError
from keyd.iso7816 import (
    SW,
    CommandApdu,
    Dialogue,
    UnexpectedStatusWord,
    converse,
    status_word_name,
    transmit,
    tries_left,
)

if TYPE_CHECKING:
    from collections.abc import Callable

CHALLENGE = CommandApdu(0x00, 0x84, 0, 0, le=8)


def two_challenges() -> Dialogue[tuple[bytes, bytes]]:
    first = yield from transmit(CHALLENGE)
    second = yield from transmit(CHALLENGE)
    return first, second


def scripted(*exchanges: tuple[str, str]) -> Callable[[bytes], bytes]:
    """Make a chip that expects these commands and gives these answers."""
    left = iter(exchanges)

    def transceive(command: bytes) -> bytes:
        expected, answer = next(left)
        assert command.hex().upper() == expected
        return bytes.fromhex(answer)

    return transceive


def test_a_dialogue_returns_what_it_found() -> None:
    chip = scripted(("0084000008", "0102 9000"), ("0084000008", "0304 9000"))
    assert converse(two_challenges(), chip) == (b"\x01\x02", b"\x03\x04")


def test_another_status_word_ends_it_and_tells_no_data() -> None:
    chip = scripted(("0084000008", "C0FFEE 6985"))
    with pytest.raises(UnexpectedStatusWord) as caught:
        converse(two_challenges(), chip)
    assert (caught.value.sw, caught.value.ins) == (SW.CONDITIONS_NOT_SATISFIED, 0x84)
    assert str(caught.value) == "INS 84 was answered 6985 (conditions not satisfied)"


def test_a_dialogue_may_catch_it_and_go_on() -> None:
    def patient() -> Dialogue[bytes]:
        try:
            return (yield from transmit(CHALLENGE))
        except UnexpectedStatusWord:
            return (yield from transmit(CHALLENGE))

    chip = scripted(("0084000008", "6985"), ("0084000008", "01 9000"))
    assert converse(patient(), chip) == b"\x01"


def test_t0_wants_another_le() -> None:
    chip = scripted(("0084000008", "6C04"), ("0084000004", "01020304 9000"))
    assert converse(transmit(CHALLENGE), chip) == bytes.fromhex("01020304")


def test_t0_wants_another_le_once() -> None:
    chip = scripted(("0084000008", "6C04"), ("0084000004", "6C08"))
    with pytest.raises(UnexpectedStatusWord):
        converse(transmit(CHALLENGE), chip)


def test_t0_keeps_data_for_get_response() -> None:
    chip = scripted(("0084000008", "6102"), ("00C0000002", "01026101"), ("00C0000001", "039000"))
    assert converse(transmit(CHALLENGE), chip) == b"\x01\x02\x03"


@pytest.mark.parametrize("answer", [b"\x61\x00", bytes(255) + b"\x61\x00"])
def test_a_chip_that_never_stops_is_stopped(answer: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        converse(transmit(CHALLENGE), lambda _: answer)


def test_no_status_word_at_all() -> None:
    with pytest.raises(RemoteProtocolError):
        converse(transmit(CHALLENGE), lambda _: b"\x90")


def test_a_failing_transport_lets_the_dialogue_clean_up() -> None:
    cleaned = []

    def careful() -> Dialogue[bytes]:
        try:
            return (yield from transmit(CHALLENGE))
        finally:
            cleaned.append(True)

    def unplugged(_: bytes) -> bytes:
        raise StopIteration  # Not even this one is taken for the dialogue's end.

    with pytest.raises(StopIteration):
        converse(careful(), unplugged)
    assert cleaned == [True]


@pytest.mark.parametrize(
    ("sw", "name"),
    [
        (0x9000, "9000 (ok)"),
        (0x63C1, "63C1 (1 try left)"),
        (0x63C0, "63C0 (0 tries left)"),
        (0x6110, "6110 (16 bytes more)"),
        (0x6C00, "6C00 (wrong Le, 256 is right)"),
        (0x6A88, "6A88 (key not found)"),
        (0x9406, "9406 (proof not available)"),
        (0x1234, "1234 (unknown)"),
    ],
)
def test_every_status_word_has_a_name(sw: int, name: str) -> None:
    assert status_word_name(sw) == name


def test_tries_left_is_only_in_63cx() -> None:
    assert [tries_left(sw) for sw in (0x63C0, 0x63CF, 0x6300, 0x9000)] == [0, 15, None, None]
