"""What is signed says one side, one terminal, both challenges, one line and one moment, and reads in one way only."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyd.protocol.proof import NO_BINDING, signed_by_keyd, signed_by_terminal

challenges = st.binary(min_size=16, max_size=16)
bindings = st.binary(min_size=32, max_size=32)
codes = st.text("0123456789ABCXYZabcxyz._-", min_size=1, max_size=32)
times = st.integers(0, 2**53)
signed = st.tuples(codes, challenges, challenges, bindings, times)


@given(signed)
def test_what_is_signed_is_the_documented_bytes(what: tuple[str, bytes, bytes, bytes, int]) -> None:
    code, theirs, ours, binding, time = what
    after = theirs + ours + binding + time.to_bytes(8, "big") + code.encode()
    assert signed_by_terminal(*what) == b"keyd-terminal-v2" + after
    assert signed_by_keyd(*what) == b"keyd-daemon---v2" + after


@given(signed, signed)
def test_no_two_meanings_have_the_same_bytes(
    one: tuple[str, bytes, bytes, bytes, int], other: tuple[str, bytes, bytes, bytes, int]
) -> None:
    assert (signed_by_terminal(*one) == signed_by_terminal(*other)) == (one == other)
    assert signed_by_terminal(*one) != signed_by_keyd(*other)


@pytest.mark.parametrize(
    "what",
    [
        ("T", bytes(15), bytes(16), NO_BINDING, 0),
        ("T", bytes(16), bytes(17), NO_BINDING, 0),
        ("T", bytes(16), bytes(16), bytes(31), 0),
        ("T", bytes(16), bytes(16), b"", 0),
        ("T", bytes(16), bytes(16), NO_BINDING, -1),
        ("T", bytes(16), bytes(16), NO_BINDING, 2**64),
        ("终端", bytes(16), bytes(16), NO_BINDING, 0),
    ],
)
def test_what_would_have_another_length_is_refused(
    what: tuple[str, bytes, bytes, bytes, int],
) -> None:
    with pytest.raises(ValueError, match=r"challenge|binding|ascii"):
        signed_by_terminal(*what)
