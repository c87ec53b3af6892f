"""The simulator's key table is the specification's, and the simulator stands on the ground floor alone."""

from __future__ import annotations

import ast
import csv
import sys
from pathlib import Path

import pytest

import keyd.iso7816
import keyd.simulator
from keyd.simulator.profile import DEBIT_KEYS, KEYS, LOAD_KEYS, MESSAGING_ADDRESSES, TAC_KEY

CSV = Path(__file__).parents[1] / "vectors/key_addresses.csv"

GROUND = {"errors", "crypto", "iso7816", "simulator", "protocol"}


def specified() -> dict[int, tuple[str, int]]:
    with CSV.open(newline="") as file:
        rows = csv.DictReader(file)
        return {int(row["address_hex"], 16): (row["name"], int(row["set"])) for row in rows}


def test_every_key_has_its_logical_address() -> None:
    table = specified()
    for row in KEYS.values():
        for version, address in enumerate(row.addresses, start=1):
            assert table[address] == (row.name, version)
    assert [table[address] for address in DEBIT_KEYS.values()] == [("DPK", 1)] * 3
    assert [table[address] for address in LOAD_KEYS.values()] == [("DLK", 1)]
    assert table[TAC_KEY] == ("DTK", 1)


def test_the_messaging_keys_are_the_stks() -> None:
    table = specified()
    assert {table[address][0][:3] for address in MESSAGING_ADDRESSES} == {"STK"}


MODULES = [
    path
    for package in (keyd.iso7816, keyd.simulator)
    for path in sorted(Path(package.__path__[0]).glob("*.py"))
]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_nothing_above_the_ground_floor_is_imported(path: Path) -> None:
    tree = ast.parse(path.read_text())
    modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    ]
    for module in modules:
        first, *rest = module.split(".")
        if first == "keyd":
            assert rest[0] in GROUND or module == "keyd.keys.synthetic"
        else:
            assert first in sys.stdlib_module_names
    if path.parent.name == "iso7816":
        assert not {"secrets", "random", "time", "os", "socket", "logging"} & set(modules)
