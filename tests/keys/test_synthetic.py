"""Synthetic roots are the same everywhere and for ever, each differs from all others, and they say what they are."""

from __future__ import annotations

from typing import Final

import pytest

from keyd.crypto.algorithms import IN_SOFTWARE, Algorithm
from keyd.crypto.secret import SecretKey
from keyd.crypto.sm3 import sm3
from keyd.keys.block import KeyPlace, KeyState, Tier, Use
from keyd.keys.hierarchy import (
    TerminalMasterKey,
    terminal_factor_by_code,
    terminal_factor_by_psam,
)
from keyd.keys.roots import synthetic, synthetic_terminals_master
from keyd.keys.synthetic import (
    SYNTHETIC_LEVELS,
    synthetic_psam_key,
    synthetic_root,
    synthetic_terminal_key,
    synthetic_terminal_master,
)

# Simulators in the field were made with these: they never change.
FROZEN: Final = {
    (0x0170, Algorithm.SM4): "AF5BC53123E1FAB0E34224578253D03E",
    (0x0170, Algorithm.TDES): "EBD85BB461A011B2344BF29EB2D2D3E2",
    (0x0173, Algorithm.DES): "F942777F5754AD41",
}


@pytest.mark.parametrize(("address", "algorithm"), FROZEN)
def test_a_root_is_the_frozen_one(address: int, algorithm: Algorithm) -> None:
    frozen = FROZEN[address, algorithm]
    assert synthetic_root(address, algorithm).hex().upper() == frozen


def test_a_root_is_the_documented_digest() -> None:
    label = b"keyd synthetic root: public, never for a real card"
    assert synthetic_root(0x0170, Algorithm.SM4) == sm3(label + b"\x01\x70" + b"SM4")[:16]
    assert synthetic_terminal_master() == sm3(label + b"\xfe\x00" + b"SM4")[:16]


def test_a_terminals_key_is_diversified_from_the_synthetic_terminal_master_key() -> None:
    _header, master = synthetic_terminals_master()
    assert master.kcv() == SecretKey.load(Algorithm.SM4, synthetic_terminal_master()).kcv()
    for key, factor in (
        (synthetic_terminal_key("T-0001"), terminal_factor_by_code("T-0001")),
        (synthetic_psam_key(bytes(range(6))), terminal_factor_by_psam(bytes(range(6)))),
    ):
        above = TerminalMasterKey(master).diversify(factor)
        assert above.kcv() == SecretKey.load(Algorithm.SM4, key).kcv()


def test_every_root_is_another() -> None:
    roots = {
        synthetic_root(address, algorithm)[:8]
        for address in range(0x200)
        for algorithm in IN_SOFTWARE
    }
    assert len(roots) == 0x200 * len(IN_SOFTWARE)


def test_every_terminal_key_is_another() -> None:
    keys = {synthetic_terminal_key(f"T-{number}") for number in range(100)}
    assert len(keys) == 100
    assert {len(key) for key in keys} == {16}


def places() -> list[KeyPlace]:
    return [
        KeyPlace(0x0170, "IRK", 1, Algorithm.SM4, Use.INTERNAL),
        KeyPlace(0x0171, "IRK", 2, Algorithm.TDES, Use.INTERNAL),
        KeyPlace(0x0173, "STKSSSE", 1, Algorithm.DES, Use.MESSAGING),
    ]


def test_synthetic_keys_stand_where_they_were_wanted() -> None:
    keys = synthetic(places())
    for place, (header, key) in zip(places(), keys, strict=True):
        assert header.addresses == (place.address,)
        assert (header.name, header.set, header.use) == (place.name, place.set, place.use)
        assert (header.state, header.tier) == (KeyState.ACTIVE, Tier.NATIONAL)
        assert not header.ceiling
        assert header.algorithm is key.algorithm is place.algorithm
        assert header.levels == SYNTHETIC_LEVELS == 3
        assert header.kcv == key.kcv()
