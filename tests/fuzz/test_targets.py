"""Every target survives a bounded number of inputs with a fixed seed, and every input that was a finding once."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.fuzz import running
from tests.fuzz.engines import available
from tests.fuzz.target import names

if TYPE_CHECKING:
    from collections.abc import Callable

HERE: Final = Path(__file__).parent
CRASHES: Final = HERE / "crashes"

# How many inputs each target is given here, where it is not 1000: as many as take some seconds.
RUNS: Final = {
    "dispatch": 1500,
    "iso7816": 5000,
    "officers": 60,
    "policy_file": 300,
    "profiles": 300,
    "psam": 1500,
    "texts": 5000,
    "tls_line": 400,
}

SEED: Final = 1

# A target takes some seconds, and many times as long on a machine that is busy.
PATIENCE: Final = 200.0

# The engine is in the name of each test: without atheris it is the plain one, and the report says so.
each = pytest.mark.parametrize(
    "target", [pytest.param(name, id=f"{name}-{available()}") for name in names()]
)


@each
def test_a_target_finds_nothing(target: str, tmp_path: Path) -> None:
    runs = RUNS.get(target, 1000)
    result = running.run(target, runs=runs, seed=SEED, artifacts=tmp_path, patience=PATIENCE)
    assert result.is_clean, result.said
    assert result.runs >= runs


@pytest.mark.parametrize("target", sorted({path.parent.name for path in CRASHES.glob("*/*")}))
def test_what_was_a_finding_is_none_any_more(target: str, tmp_path: Path) -> None:
    # The plain engine begins with the seeds and with what is kept, and here it ends with them.
    result = running.run(
        target, runs=1, engine="plain", artifacts=tmp_path, corpus=CRASHES / target
    )
    assert result.is_clean, result.said
    assert result.runs > len(list((CRASHES / target).iterdir()))


def test_in_ci_coverage_is_followed_wherever_atheris_exists() -> None:
    exists = (sys.platform, platform.machine()) == ("linux", "x86_64") and sys.version_info < (
        3,
        14,
    )
    if os.environ.get("CI") == "true" and exists:
        assert available() == "atheris"
    assert (available() == "atheris") == (importlib.util.find_spec("atheris") is not None)


@pytest.mark.parametrize("engine", dict.fromkeys(["plain", available()]))
def test_an_engine_finds_a_fault_and_keeps_the_input(engine: str, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    result = running.run(
        "tests.fuzz.faulty", runs=200_000, seed=SEED, engine=engine, artifacts=kept
    )
    assert not result.is_clean
    assert "Fell: over a byte" in result.finding
    (path,) = kept.iterdir()
    found = path.read_bytes()
    assert found[:1] == b"k"
    assert found[1] > 0xC0
    again = running.run(
        "tests.fuzz.faulty", runs=1, engine="plain", artifacts=tmp_path / "again", corpus=kept
    )
    assert "Fell: over a byte" in again.finding


def test_an_engine_ends_in_time(tmp_path: Path) -> None:
    result = running.run("iso7816", runs=0, seconds=1, engine="plain", artifacts=tmp_path)
    assert result.is_clean
    assert result.runs > 100
    assert result.seconds < 30


@pytest.mark.parametrize("name", names())
def test_seeds_are_no_larger_than_inputs_may_be(
    name: str, in_own_process: Callable[[str], str]
) -> None:
    said = in_own_process(
        f"""
from tests.fuzz.target import load
target = load({name!r})
seeds = target.seeds()
assert seeds and all(len(seed) <= target.max_bytes for seed in seeds), [*map(len, seeds)]
assert len(set(seeds)) == len(seeds)
print("good")
"""
    )
    assert said.endswith("good\n")
