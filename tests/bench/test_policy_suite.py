"""The policy suite measures every sort of decision, each beside an empty call."""

from __future__ import annotations

from bench import policy
from bench.findings import Findings


def test_every_sort_of_decision_is_measured() -> None:
    findings = Findings.begin(policy.NAME, "a smoke test")
    policy.measure(findings, calls=20, repetitions=2)
    # Eight in Python, each beside an empty call, and what is added in the pump.
    assert len(findings.findings) == 8 + 1
    assert len(findings.samples) == 2 * (2 * 8 + 2)
    # Whatever the machine does meanwhile, nothing is cheaper than doing nothing.
    assert all(sample.value > 0 for sample in findings.samples)
