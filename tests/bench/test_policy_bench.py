"""The benchmark of the policy measures every kind of decision, each against an empty call."""

from __future__ import annotations

from bench.policy import measure


def test_it_measures_every_kind_of_decision() -> None:
    costs = measure(calls=20, repetitions=2)
    assert len(costs) == 7
    # Whatever the machine does meanwhile, nothing is cheaper than doing nothing.
    assert all(cost.nanoseconds > 0 and cost.empty_calls > 0 for cost in costs)
