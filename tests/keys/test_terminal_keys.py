"""The proofs between a terminal and keyd are the card arithmetic; each proves one side, one key and both challenges.

The simulator computes them a second time, from its own arithmetic.
"""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from keyd.crypto.algorithms import Algorithm
from keyd.crypto.secret import SecretKey
from keyd.errors import BadParameter
from keyd.keys.hierarchy import (
    Side,
    TerminalKey,
    TerminalMasterKey,
    terminal_factor_by_code,
    terminal_factor_by_psam,
)
from keyd.simulator import arithmetic

MATERIAL: Final = bytes.fromhex("F1E2D3C4B5A697887766554433221100")

blocks = st.binary(min_size=16, max_size=16)
codes = st.text("0123456789ABCXYZabcxyz._-", min_size=1, max_size=32)


def secret() -> SecretKey:
    return SecretKey.load(Algorithm.SM4, MATERIAL)


def proof(side: Side, challenge: bytes, own: bytes) -> bytes:
    return TerminalKey(secret()).diversify(side).proof(challenge, own)


@given(code=codes, number=st.binary(min_size=6, max_size=6), challenge=blocks, own=blocks)
def test_the_simulator_agrees(code: str, number: bytes, challenge: bytes, own: bytes) -> None:
    master = TerminalMasterKey(secret())
    for factor, theirs in (
        (terminal_factor_by_code(code), arithmetic.terminal_key_by_code(secret(), code)),
        (terminal_factor_by_psam(number), arithmetic.terminal_key_by_psam(secret(), number)),
    ):
        for side in Side:
            expected = arithmetic.terminal_proof(theirs, side.value, challenge, own)
            assert master.diversify(factor).diversify(side).proof(challenge, own) == expected
            assert len(expected) == 8


@given(challenge=blocks, own=blocks)
def test_a_proof_of_one_side_is_none_of_the_other(challenge: bytes, own: bytes) -> None:
    mine = proof(Side.TERMINAL, challenge, own)
    assert mine != proof(Side.KEYD, challenge, own)
    assert mine != proof(Side.KEYD, own, challenge)


@given(challenge=blocks, own=blocks, other=blocks)
def test_a_proof_is_of_both_challenges_in_their_places(
    challenge: bytes, own: bytes, other: bytes
) -> None:
    assume(other not in (challenge, own))
    assume(challenge != own)
    mine = proof(Side.TERMINAL, challenge, own)
    assert mine != proof(Side.TERMINAL, other, own)
    assert mine != proof(Side.TERMINAL, challenge, other)
    assert mine != proof(Side.TERMINAL, own, challenge)


def test_a_code_and_a_psam_never_share_a_diversifier_by_accident() -> None:
    assert terminal_factor_by_psam(bytes(range(6))) == bytes(2) + bytes(range(6))
    assert terminal_factor_by_code("T-0001") != terminal_factor_by_code("T-0002")
    assert all(len(terminal_factor_by_code(f"T-{number}")) == 8 for number in range(20))


@pytest.mark.parametrize("length", [0, 5, 7, 12])
def test_a_number_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(BadParameter):
        terminal_factor_by_psam(bytes(length))


@pytest.mark.parametrize("lengths", [(8, 16), (16, 8), (16, 0), (32, 16), (0, 0)])
def test_a_challenge_of_another_length_is_refused(lengths: tuple[int, int]) -> None:
    with pytest.raises(BadParameter):
        proof(Side.TERMINAL, bytes(lengths[0]), bytes(lengths[1]))


def test_no_level_shows_its_key() -> None:
    master = TerminalMasterKey(secret())
    terminal = master.diversify(bytes(8))
    levels = (master, terminal, terminal.diversify(Side.KEYD))
    assert [repr(level) for level in levels] == [
        "<TerminalMasterKey SM4>",
        "<TerminalKey SM4>",
        "<SideKey SM4>",
    ]
