"""The minutes for which a week stays open, counted one by one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyd.policy.week import ALWAYS, WEEK_MINUTES, is_open, minutes_left, week_of


@given(st.integers(0, ALWAYS), st.integers(0, WEEK_MINUTES - 1))
def test_minutes_left_are_counted_one_by_one(week: int, minute: int) -> None:
    left = 0
    while left < WEEK_MINUTES and is_open(week, (minute + left) % WEEK_MINUTES):
        left += 1
    assert minutes_left(week, minute) == (None if left == WEEK_MINUTES else left)


@pytest.mark.parametrize(
    ("hours", "minute", "left"),
    [
        ("Mon 00:00-24:00", 0, 1440),
        ("Mon 00:00-24:00", 1440, 0),
        ("Sun 22:00-06:00", WEEK_MINUTES - 120, 480),
        ("Sun 22:00-06:00", 359, 1),
        ("00:00-24:00", 77, None),
    ],
)
def test_minutes_left_run_over_midnight(hours: str, minute: int, left: int | None) -> None:
    assert minutes_left(week_of(hours), minute) == left
