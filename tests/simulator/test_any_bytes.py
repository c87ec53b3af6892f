"""Any bytes get an answer of at least a status word, and without a key they change neither file, PIN nor money."""

from __future__ import annotations

import copy

from hypothesis import given
from hypothesis import strategies as st

from keyd.iso7816 import Aid
from keyd.simulator import issue_card
from keyd.simulator.card import COMMANDS
from keyd.simulator.profile import KEYS

BYTE = st.integers(0, 0xFF)
SMALL = st.sampled_from([0x00, 0x01, 0x02, 0x04, 0x0A, 0x85]) | BYTE


def framed(header: tuple[int, int], p1: int, p2: int, data: bytes, le: bytes) -> bytes:
    lc = bytes((len(data),)) if data else b""
    return bytes((*header, p1, p2)) + lc + data + le


NAMES = st.sampled_from([b"\xef\x05", b"\xef\x06", b"\xef\x08", *map(bytes, Aid)])
LIKELY = st.builds(
    framed,
    st.sampled_from(sorted(COMMANDS)),
    SMALL,
    SMALL,
    # A PIN of three bytes could be guessed, and CHANGE PIN would then be obeyed, as it should.
    st.sampled_from([0, 2, 4, 11, 12, 15, 16, 17, 19, 20]).flatmap(
        lambda size: st.binary(min_size=size, max_size=size)
    )
    | NAMES,
    st.sampled_from([b"", b"\x00", b"\x08"]),
)
COMMAND_LISTS = st.lists(
    st.binary(max_size=40)
    | LIKELY
    | NAMES.map(lambda name: framed((0x00, 0xA4), 4 if len(name) > 2 else 2, 0, name, b"")),
    max_size=12,
)


@given(COMMAND_LISTS, st.sampled_from([0x01, 0x03]), st.sampled_from(["1.0", "3.0"]))
def test_any_bytes_are_answered_and_change_nothing(
    commands: list[bytes], algorithm: int, generation: str
) -> None:
    card = issue_card(
        algorithm=algorithm,
        generation=generation,
        balance=10_000,
        pin="8642097531864209",
        random_bytes=lambda size: b"\xc5" * size,
    )
    state = card.state
    before = copy.deepcopy((state.files, state.pin, state.medical))
    for command in commands:
        assert 2 <= len(card.transmit(command)) <= 258
    assert (state.files, state.pin, state.medical) == before
    assert not state.blocked
    assert not state.is_blocked
    assert card.reset() == card.atr


@given(st.binary(max_size=300))
def test_one_command_out_of_the_blue(command: bytes) -> None:
    answer = issue_card(random_bytes=bytes).transmit(command)
    assert len(answer) >= 2


def test_the_tables_hang_together() -> None:
    """Every guarded file's keys exist, so that no row can ask for what cannot be proved."""
    card = issue_card(random_bytes=bytes)
    for (application, _), file in card.state.files.items():
        for key_id in (file.row.read, file.row.write):
            scope = application if key_id is not None and key_id & 0x80 else Aid.SSSE
            assert key_id is None or (scope, key_id) in KEYS
