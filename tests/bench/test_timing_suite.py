"""The timing suite tells a leak from none: the control that leaks is found out, whatever the machine's mood."""

from __future__ import annotations

import pytest

from bench import building, timing
from bench.findings import Findings

needs_gcc = pytest.mark.skipif(
    not building.is_available(), reason="the benches are partly C, and there is no gcc"
)


@needs_gcc
def test_the_control_is_found_out_and_every_path_is_timed() -> None:
    findings = Findings.begin(timing.NAME, "a smoke test")
    timing.measure(findings, runs=5_000, repetitions=1)
    *paths, control = findings.findings
    assert paths
    assert all(value >= 0 for found in paths for value in found.values)
    assert control.target is not None
    assert control.target.is_met(control.values[0])


@needs_gcc
def test_a_path_that_is_not_there_is_no_measurement() -> None:
    assert timing._library().timing_largest_t(b"no such path", 1000) == -1
