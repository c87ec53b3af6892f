"""A run by hand says what it did, and says in one line what it found."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Final

import pytest

from tests.fuzz import __main__ as by_hand
from tests.fuzz import running
from tests.fuzz.engines import Order
from tests.fuzz.running import ROOT, Result

if TYPE_CHECKING:
    from pathlib import Path

GOOD: Final = Result("texts", "atheris", 7, 1000, 10.0, 100, 64, 96, 26)
BAD: Final = Result("journal", "plain", 7, 10, 1.0, 10, 0, 0, 0, "TypeError: no", "all of it")

ATHERIS: Final = """INFO: Seed: 7
#512\tpulse  cov: 12 ft: 34 corp: 5/60b lim: 70 exec/s: 80 rss: 90Mb

 === Uncaught Python exception: ===
TypeError: unhashable type: 'dict'
Traceback (most recent call last):
  File "x.py", line 7, in one_input
ValueError: of another time

==1== ERROR: libFuzzer: fuzz target exited
stat::number_of_executed_units: 512
stat::average_exec_per_sec:     80
"""
SLOW: Final = "INFO: x\nALARM: working\n==1== ERROR: libFuzzer: timeout after 25 seconds\n"
PLAIN: Final = 'Traceback (most recent call last):\n  File "x.py"\nkeyd.errors.Refusal: a no\n'


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (ATHERIS, "TypeError: unhashable type: 'dict'"),
        (SLOW, "==1== ERROR: libFuzzer: timeout after 25 seconds"),
        (PLAIN, "keyd.errors.Refusal: a no"),
        ("it did not end in time\n", "it did not end in time"),
        ("", "the process ended without a word"),
    ],
)
def test_what_was_found_is_one_line(said: str, found: str) -> None:
    assert running._finding(said) == found


def test_a_result_has_what_the_engine_counted() -> None:
    order = Order("journal", "atheris", 0, 0, 7, "", "")
    bad = running._result(order, 77, ATHERIS, 6.4)
    assert (bad.runs, bad.runs_per_second, bad.covered_edges, bad.features) == (512, 80, 12, 34)
    assert (bad.corpus, bad.seconds, bad.said) == (5, 6.4, ATHERIS)
    good = running._result(order, 0, ATHERIS, 6.4)
    assert good.is_clean
    assert good.said == ""
    # One that had to be ended has no status.
    assert not running._result(order, None, "", 1.0).is_clean


def test_results_are_kept_with_commit_and_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_hand, "RESULTS", tmp_path)
    path = by_hand._write([GOOD, BAD])
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["commit"].rstrip("+") in path.name
    assert {"processor", "kernel", "python"} <= set(content["machine"])
    assert [one["finding"] for one in content["results"]] == ["", "TypeError: no"]
    # What a process said may hold the input, and that is kept elsewhere.
    assert "all of it" not in path.read_text(encoding="utf-8")
    table = path.with_suffix(".md").read_text(encoding="utf-8")
    assert "| texts | atheris | 1,000 | 100 | 64 | 96 | 26 | nothing |" in table
    assert "| journal | plain | 10 | 10 | 0 | 0 | 0 | TypeError: no |" in table


def test_by_hand_it_ends_well_and_leaves_nothing_if_it_is_told_to() -> None:
    before = set((by_hand.HERE).rglob("*"))
    arguments = ["--target", "texts", "--runs", "50", "--engine", "plain", "--seed", "7", "--dry"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("| texts | plain | 50 |")
    assert {path for path in by_hand.HERE.rglob("*") if "__pycache__" not in path.parts} <= before
