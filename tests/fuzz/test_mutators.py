"""Changes come from the `Random` alone, change something, and mostly leave what the parser would take."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Final

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyd.tls import der
from tests.fuzz.mutators import (
    messages_of,
    mutate_bytes,
    mutate_der,
    mutate_message,
    mutate_text,
)

if TYPE_CHECKING:
    from collections.abc import Callable

MESSAGE: Final[bytes] = msgpack.packb(
    [0, 1, "card.pin_reload", [[b"\1" * 16, b"\2" * 13], {"a": 1.5}]]
)
DER: Final = der.sequence(der.integer(5), der.sequence(der.element(der.OCTET_STRING, b"abc")))
TEXT: Final = b'[a]\nb = "c"\n'

Mutate = "Callable[[bytes, Random], bytes]"


def words(data: bytes, random: Random) -> bytes:
    return mutate_text(data, random, ["word", "[x]"])


ALL: Final = [mutate_bytes, mutate_message, mutate_der, words]


@pytest.mark.parametrize("mutate", ALL, ids=lambda mutate: mutate.__name__)
@given(data=st.binary(max_size=200), seed=st.integers(0, 2**32))
def test_any_bytes_can_be_changed_and_the_same_seed_changes_the_same(
    mutate: Callable[[bytes, Random], bytes], data: bytes, seed: int
) -> None:
    changed = mutate(data, Random(seed))
    assert type(changed) is bytes
    assert mutate(data, Random(seed)) == changed


@pytest.mark.parametrize(
    ("mutate", "data", "is_whole"),
    [
        (
            mutate_message,
            MESSAGE,
            lambda changed: messages_of(changed) and msgpack.unpackb(changed),
        ),
        (mutate_der, DER, der.read_elements),
        (words, TEXT, bytes.decode),
    ],
    ids=["message", "der", "text"],
)
def test_most_changes_leave_something_that_parses_and_is_not_the_same(
    mutate: Callable[[bytes, Random], bytes], data: bytes, is_whole: Callable[[bytes], object]
) -> None:
    parsed, different = 0, set()
    for seed in range(400):
        changed = mutate(data, Random(seed))
        different.add(changed)
        try:
            parsed += bool(is_whole(changed))
        except (ValueError, TypeError):
            continue
    assert parsed > 250
    assert len(different) > 100


def test_what_is_nested_too_deeply_is_changed_as_bytes() -> None:
    deep = b"\x91" * 5000 + b"\x90"
    for seed in range(50):
        mutate_message(deep, Random(seed))
        mutate_der(b"\x30\x80" * 300, Random(seed))
