"""The boxes around certificates. Invariant: what is written reads back; no bytes raise anything but ValueError."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyd.tls import der


@given(st.lists(st.tuples(st.sampled_from([0x02, 0x04, 0x30, 0xA0]), st.binary(max_size=300))))
def test_what_is_written_reads_back(parts: list[tuple[int, bytes]]) -> None:
    elements = der.read_one(
        der.sequence(*(der.element(tag, content) for tag, content in parts)), der.SEQUENCE
    )
    assert [(each.tag, each.content) for each in elements] == parts


@given(st.binary(max_size=64))
def test_any_bytes_are_elements_in_their_one_spelling_or_a_value_error(data: bytes) -> None:
    try:
        elements = der.read_elements(data)
    except ValueError:
        return
    assert b"".join(der.element(each.tag, each.content) for each in elements) == data


@pytest.mark.parametrize("length", [0, 0x7F, 0x80, 0xFF, 0x100, 0xFFFF, 0x10000])
def test_every_form_of_length_reads_back(length: int) -> None:
    (element,) = der.read_elements(der.element(der.OCTET_STRING, bytes(length)))
    assert len(element.content) == length


@pytest.mark.parametrize(
    "spelling",
    ["04", "0401", "048101" + "00", "04820001" + "00", "0480" + "0000", "0485010000000000", "04ff"],
)
def test_a_length_in_another_spelling_is_refused(spelling: str) -> None:
    with pytest.raises(ValueError, match=r"length|longer"):
        der.read_elements(bytes.fromhex(spelling))


def test_an_element_of_another_kind_or_with_something_after_it_is_not_the_one() -> None:
    for data in (b"", der.integer(1), der.sequence() + der.sequence()):
        with pytest.raises(ValueError, match="not the one element"):
            der.read_one(data, der.SEQUENCE)


@pytest.mark.parametrize(
    ("number", "written"),
    [(0, "020100"), (127, "02017f"), (128, "02020080"), (255, "020200ff"), (256, "02020100")],
)
def test_numbers_never_look_negative(number: int, written: str) -> None:
    assert der.integer(number).hex() == written


def test_a_moment_has_the_form_of_its_year() -> None:
    last = datetime.datetime(2049, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
    assert der.time(last) == b"\x17\x0d491231235959Z"
    assert der.time(last + datetime.timedelta(seconds=1)) == b"\x18\x0f20500101000000Z"


def test_only_moments_in_utc_are_written() -> None:
    east = datetime.timezone(datetime.timedelta(hours=8))
    for moment in (
        datetime.datetime(2030, 1, 1, tzinfo=east),
        datetime.datetime(2030, 1, 1),  # noqa: DTZ001 - a moment without a zone is what is refused
    ):
        with pytest.raises(ValueError, match="UTC"):
            der.time(moment)
