"""The first row that names a key decides where it is computed; what none names is the ring's."""

from __future__ import annotations

import itertools
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyd.cards.profile import names_match
from keyd.cards.profile_files import load_profiles
from keyd.crypto.algorithms import CardAlgorithm
from keyd.errors import BadParameter
from keyd.keys.block import Use
from keyd.keys.hierarchy import Region
from keyd.keys.sam import CardKeyRef, CryptogramTask, purpose
from keyd.routing import RouteRow, Routing

PROFILES: Final = load_profiles()
NAMES: Final = {
    address: {p.keys[address].name for p in PROFILES.values() if address in p.keys}
    for address in sorted({a for p in PROFILES.values() for a in p.keys})
}

IRK, SECOND_IRK, RKSSSE, PUK = 0x0170, 0x0171, 0x004C, 0x0090


def row(*keys: str, to: Any = "pool", algorithm: Any = None) -> RouteRow:
    return RouteRow(keys, to, algorithm)


def ref(address: int, algorithm: CardAlgorithm = CardAlgorithm.SM4) -> CardKeyRef:
    return CardKeyRef(address, algorithm, Region("510100"), bytes(8), purpose(Use.INTERNAL))


def pooled(*rows: RouteRow) -> set[tuple[int, CardAlgorithm]]:
    """Every place that goes to the pool, asked one by one."""
    routing = Routing.of(rows, PROFILES)
    if routing is None:
        return set()
    places = set(itertools.product([*NAMES, 0xFFFF, 0xFE00], CardAlgorithm))
    found = {place for place in places if routing.is_pooled(ref(*place))}
    assert found == {place for place in places if routing.is_pooled_at(*place)}
    return found


def test_without_rows_nothing_has_to_be_asked() -> None:
    assert Routing.of([], PROFILES) is None
    assert Routing.of([row("*", to="ring")], PROFILES) is None


def test_a_name_is_all_sets_of_the_key_and_an_address_is_one() -> None:
    assert {address for address, _ in pooled(row("IRK"))} == {0x0170, 0x0171, 0x0172}
    assert {address for address, _ in pooled(row("0171"))} == {SECOND_IRK}
    reading = {address for address, _ in pooled(row("RK*"))}
    assert reading == {a for a, names in NAMES.items() if any(n.startswith("RK") for n in names)}
    assert {address for address, _ in pooled(row("*"))} == set(NAMES)


def test_a_row_without_an_algorithm_is_for_all() -> None:
    assert pooled(row("0170")) == {(IRK, algorithm) for algorithm in CardAlgorithm}
    assert pooled(row("0170", algorithm="SSF33")) == {(IRK, CardAlgorithm.SSF33)}


def test_the_first_row_decides() -> None:
    rows = (row("RKSSSE", to="ring"), row("0170", to="ring", algorithm="DES"), row("*"))
    found = pooled(*rows)
    assert not {address for address, _ in found} & {0x004C, 0x004D, 0x004E}
    assert {algorithm for address, algorithm in found if address == IRK} == {
        CardAlgorithm.SM4,
        CardAlgorithm.SSF33,
    }
    assert (PUK, CardAlgorithm.DES) in found


entries = st.sampled_from(["*", "IRK", "RK*", "UK*", "PUK", "STK*", "0170", "0171", "004C", "017F"])
rows = st.builds(
    RouteRow,
    st.lists(entries, min_size=1, max_size=3).map(tuple),
    st.sampled_from(["ring", "pool"]),
    st.sampled_from([None, "DES", "SSF33", "SM4"]),
)


def naive(given_rows: list[RouteRow], address: int, algorithm: CardAlgorithm) -> str:
    for each in given_rows:
        if each.algorithm not in (None, algorithm.name):
            continue
        by_name = any(names_match(each.keys, name) for name in NAMES[address])
        if by_name or f"{address:04X}" in each.keys:
            return each.to
    return "ring"


@given(given_rows=st.lists(rows, max_size=5))
def test_any_rows_mean_what_they_say_read_one_by_one(given_rows: list[RouteRow]) -> None:
    try:
        found = pooled(*given_rows)
    except BadParameter as refusal:
        assert "decided already" in str(refusal)  # noqa: PT017 - one of two outcomes
        return
    places = itertools.product(NAMES, CardAlgorithm)
    assert found == {place for place in places if naive(given_rows, *place) == "pool"}


def test_any_task_of_a_step_is_enough() -> None:
    routing = Routing.of([row("004C")], PROFILES)
    assert routing is not None
    ring, pool = (CryptogramTask(ref(a), bytes(8), bytes(8)) for a in (IRK, RKSSSE))
    assert routing.has_pooled((ring, pool))
    assert not routing.has_pooled((ring, ring))
    assert not routing.has_pooled(())


@pytest.mark.parametrize(
    ("given_rows", "sentence"),
    [
        ([row("IRK", to="hardware")], "route 1: there is no hardware module yet"),
        ([row("IRK"), row("NOKEY")], "route 2: no profile knows a key 'NOKEY'"),
        ([row("NO*")], "no profile knows a key 'NO[*]'"),
        ([row("FFFF")], "no profile knows a key 'FFFF'"),
        ([row("FE00")], "no profile knows a key 'FE00'"),
        ([row("irk")], "no profile knows a key 'irk'"),
        ([row("")], "no profile knows a key ''"),
        ([row("0170\n")], "no profile knows a key"),
        ([row("*"), row("IRK", to="ring")], "route 2: IRK is decided already"),
        ([row("RK*", "RKSSSE")], "route 1: RKSSSE is decided already"),
        ([row("IRK", algorithm="SM4"), row("0170", algorithm="SM4")], "route 2: 0170 is decided"),
    ],
)
def test_a_wrong_row_is_a_sentence(given_rows: list[RouteRow], sentence: str) -> None:
    with pytest.raises(BadParameter, match=sentence):
        Routing.of(given_rows, PROFILES)


def test_rows_are_read_strictly() -> None:
    read = msgspec.convert({"keys": ["RK*"], "algorithm": "SM4", "to": "pool"}, RouteRow)
    assert read == row("RK*", algorithm="SM4")
    for wrong in (
        {"keys": ["RK*"]},
        {"keys": [], "to": "pool"},
        {"keys": ["RK*"] * 65, "to": "pool"},
        {"keys": ["RK*"], "to": "psam"},
        {"keys": ["RK*"], "to": "pool", "algorithm": "SM1"},
        {"keys": ["RK*"], "to": "pool", "algorithms": ["SM4"]},
    ):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(wrong, RouteRow)
