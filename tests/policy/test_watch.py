"""The PIN ceiling never lets one through, however many cards there are; what is strange is seen, in bounded memory."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyd.errors import CardLimit
from keyd.policy import Strange, Watch
from keyd.policy.limits import CardLimits
from keyd.policy.watch import COLUMNS, MAX_WATCHED, ROWS, DailyCeiling, SeenCards
from keyd.pump._pump import SeenCards as NativeSeenCards

SECRET: Final = bytes(range(16))
MINUTE: Final = 60
DAY: Final = 86_400
OFFSET: Final = 8 * 60
MIDNIGHT: Final = 1_763_913_600  # 2025-11-24 00:00 in China

LIMITS: Final = CardLimits(
    pin_resets_per_day=3, region_minutes=10, region_digits=4, failures=3, failure_minutes=10
)
DENYING: Final = CardLimits(
    pin_resets_per_day=3,
    region_minutes=10,
    region_digits=4,
    failures=3,
    failure_minutes=10,
    deny_two_regions=True,
    deny_failures=True,
)


def may(ceiling: DailyCeiling, card: bytes, now: int) -> bool:
    try:
        ceiling.count(card, now)
    except CardLimit:
        return False
    return True


@given(
    st.lists(
        st.tuples(st.sampled_from([b"a" * 8, b"b" * 8, b"c" * 8]), st.integers(0, DAY // 3)),
        max_size=60,
    )
)
@settings(deadline=None, max_examples=60)
def test_with_few_cards_the_ceiling_is_exact(steps: list[tuple[bytes, int]]) -> None:
    ceiling, counts, now = DailyCeiling(3, SECRET, OFFSET), Counter[tuple[bytes, int]](), MIDNIGHT
    for card, gap in steps:
        now += gap
        day = (now - MIDNIGHT) // DAY
        wanted = counts[card, day] < 3
        assert may(ceiling, card, now) is wanted
        counts[card, day] += wanted


def test_a_day_is_a_local_day() -> None:
    ceiling = DailyCeiling(1, SECRET, OFFSET)
    assert may(ceiling, b"card", MIDNIGHT - 1)
    assert may(ceiling, b"card", MIDNIGHT)
    assert not may(ceiling, b"card", MIDNIGHT + DAY - 1)
    assert may(ceiling, b"card", MIDNIGHT + DAY)


def test_a_clock_that_is_put_back_gives_nothing_twice() -> None:
    ceiling = DailyCeiling(1, SECRET, OFFSET)
    assert may(ceiling, b"card", MIDNIGHT + 1)
    # Midnight a second time: the day that has begun goes on.
    assert not may(ceiling, b"card", MIDNIGHT - 1)
    assert not may(ceiling, b"card", MIDNIGHT + 2)
    # A year ahead and back: one day was skipped to, but the way back gives nothing, and the next day is a day again.
    assert may(ceiling, b"card", MIDNIGHT + 365 * DAY)
    assert not may(ceiling, b"card", MIDNIGHT + 3)
    assert not may(ceiling, b"card", MIDNIGHT + DAY - 1)
    assert may(ceiling, b"card", MIDNIGHT + DAY)


def test_a_million_cards_make_nobody_forgotten_and_hurt_few() -> None:
    """Nobody gets past the ceiling by asking for a million other cards first, in memory that does not grow.

    At a 64th of the size and with a 64th of the cards, which fills the table as much.
    """
    columns, cards = COLUMNS // 64, 1_000_000 // 64
    ceiling = DailyCeiling(3, SECRET, OFFSET, columns)
    victim = b"\xff" * 8
    for _ in range(3):
        ceiling.count(victim, MIDNIGHT)
    hurt = 0
    for number in range(cards):
        hurt += not may(ceiling, number.to_bytes(8, "big"), MIDNIGHT)
        if number % 1000 == 0:
            assert not may(ceiling, victim, MIDNIGHT)
    assert not may(ceiling, victim, MIDNIGHT)
    assert len(ceiling._counters) == ROWS * columns
    # A card that is refused at its first reset shares all of its counters with others that had three.
    assert hurt == 0
    # On top of a million others, a card that needs all of its three resets rarely misses one.
    missed = sum(
        not may(ceiling, b"new" + number.to_bytes(5, "big"), MIDNIGHT)
        for number in range(200)
        for _ in range(3)
    )
    assert missed <= 60


def test_the_ceilings_memory_is_what_it_says() -> None:
    ceiling = DailyCeiling(3, SECRET, OFFSET)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(5000):
        ceiling.count(number.to_bytes(8, "big"), MIDNIGHT)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert 4 * 2**20 <= grown < 4 * 2**20 + 16 * 1024


def test_nobody_can_choose_cards_that_share_a_victims_counters() -> None:
    # The places depend on a secret: what collides under one secret does not under the next.
    one, other = (DailyCeiling(3, secret, OFFSET) for secret in (SECRET, SECRET[::-1]))
    assert one._places(b"card") != other._places(b"card")
    with pytest.raises(ValueError, match="16 bytes"):
        DailyCeiling(3, b"short", OFFSET)


class NaiveRegions:
    """Where each card was last, for ever."""

    def __init__(self) -> None:
        self.last: dict[bytes, tuple[str, int]] = {}

    def is_strange(self, card: bytes, region: str, now: int) -> bool:
        was = self.last.get(card)
        self.last[card] = (region[:4], now)
        return was is not None and was[0] != region[:4] and now - was[1] < 10 * MINUTE


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"a" * 8, b"b" * 8, b"c" * 8]),
            st.sampled_from(["510100", "510107", "519900", "110000"]),
            st.integers(0, 11 * MINUTE),
        ),
        max_size=50,
    )
)
def test_a_card_in_two_regions_within_minutes_is_strange(
    steps: list[tuple[bytes, str, int]],
) -> None:
    watch, naive, now = Watch(LIMITS), NaiveRegions(), 10**9
    native = Watch(LIMITS, NativeSeenCards(SECRET[:8]))
    for card, region, gap in steps:
        now += gap
        wanted = Strange.TWO_REGIONS if naive.is_strange(card, region, now) else None
        assert watch.notice(card, region, now) is wanted
        assert native.notice(card, region, now) is wanted


def test_a_clock_that_is_put_back_hides_no_copy() -> None:
    watch = Watch(LIMITS)
    assert watch.notice(b"card", "510100", 10**9) is None
    assert watch.notice(b"card", "110000", 10**9 - DAY) is Strange.TWO_REGIONS


def test_where_it_is_denied_the_copy_is_and_the_card_at_home_is_not() -> None:
    watch = Watch(DENYING)
    assert watch.notice(b"card", "510100", 0) is None
    for second in range(1, 600, 50):
        with pytest.raises(CardLimit):
            watch.notice(b"card", "110000", second)
    # Asking on and on from elsewhere neither wears the denial out nor locks the card out at home.
    assert watch.notice(b"card", "510107", 599) is None
    with pytest.raises(CardLimit):
        watch.notice(b"card", "110000", 600)
    assert watch.notice(b"card", "110000", 599 + 10 * MINUTE) is None


@given(st.lists(st.integers(0, 12 * MINUTE), max_size=40))
def test_many_failures_are_counted_over_one_to_two_windows(gaps: list[int]) -> None:
    watch, times, now = Watch(LIMITS), list[int](), 10**9
    for gap in gaps:
        now += gap
        said = watch.notice_failure(b"card", now)
        window = now // 600
        # By hand: everything in this window of ten minutes and in the one before.
        times.append(now)
        counted = sum(at // 600 in (window, window - 1) for at in times)
        assert (said is Strange.MANY_FAILURES) is (counted == 3)
        seen = watch.notice(b"card", "510100", now)
        assert (seen is Strange.MANY_FAILURES) is (counted >= 3)


def test_where_failures_are_denied_they_are_until_the_windows_have_gone() -> None:
    watch = Watch(DENYING)
    for _ in range(3):
        watch.notice_failure(b"card", 10**9)
    with pytest.raises(CardLimit):
        watch.notice(b"card", "510100", 10**9)
    assert watch.notice(b"other", "510100", 10**9) is None
    assert watch.notice(b"card", "510100", 10**9 + 20 * MINUTE) is None


def test_a_flood_of_cards_is_bounded_and_what_it_made_forgotten_is_counted() -> None:
    seen = SeenCards(100)
    watch = Watch(LIMITS, seen, most=100)
    for number in range(10_000):
        watch.notice(str(number).encode(), "510100", 10**9)
        watch.notice_failure(str(number).encode(), 10**9)
        assert len(seen) <= 100
        assert len(watch._failed) <= 100
    assert watch.forgotten == 2 * (10_000 - 100)
    # What has expired is not missed.
    seen = SeenCards(100)
    watch = Watch(LIMITS, seen)
    for number in range(10_000):
        watch.notice(str(number).encode(), "510100", number * 10 * MINUTE)
    assert watch.forgotten == 0
    assert len(seen) <= 2


def test_the_native_table_forgets_as_well_and_counts_it() -> None:
    """Some four of a set are remembered: with as many cards as there is room, most are; with more, all is counted."""
    seen = NativeSeenCards(SECRET[:8])
    for number in range(MAX_WATCHED // 2):
        seen.put(number.to_bytes(8, "big"), 5101, 10**9, 600)
    known = sum(
        seen.find(number.to_bytes(8, "big")) is not None for number in range(MAX_WATCHED // 2)
    )
    assert known + seen.forgotten == MAX_WATCHED // 2
    assert known > 0.9 * MAX_WATCHED // 2
    for number in range(MAX_WATCHED):
        seen.put(number.to_bytes(8, "little"), 5101, 10**9 + 600, 600)
    assert seen.find((1).to_bytes(8, "little")) == (5101, 10**9 + 600)
    # What has expired makes room for nothing.
    assert seen.forgotten < MAX_WATCHED
    with pytest.raises(ValueError, match="8 bytes"):
        seen.find(b"card")
    with pytest.raises(ValueError, match="8 bytes"):
        NativeSeenCards(b"short")


def test_who_stands_nowhere_is_not_watched() -> None:
    watch = Watch(LIMITS)
    assert watch.notice(b"card", "510100", 0) is None
    assert watch.notice(b"card", "", 1) is None
    assert watch.notice(b"card", "110000", 2) is Strange.TWO_REGIONS
