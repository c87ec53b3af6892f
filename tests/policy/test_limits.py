"""Buckets give exactly what their rate says, by whatever clock; nothing is taken by halves; memory is bounded."""

from __future__ import annotations

from fractions import Fraction
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from keyd.errors import QuotaExceeded, RateLimited
from keyd.policy import Asker, Limiter, Quotas
from keyd.policy.limits import Buckets, ConnectionLimits, Rate, Rates

SECOND: Final = 1_000_000_000

ASKER: Final = Asker("T-0001", "hospital 1")

rates = st.builds(
    Rate, requests=st.integers(1, 1000), seconds=st.integers(1, 600), burst=st.integers(1, 50)
)


class NaiveBucket:
    """Tokens as a fraction, filled up by the time that went by. What is below nothing is owed."""

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self.tokens = Fraction(rate.burst)
        self.at: int | None = None

    def pass_time(self, now: int) -> None:
        if self.at is not None and now > self.at:
            gained = Fraction((now - self.at) * self.rate.requests, self.rate.seconds * SECOND)
            self.tokens = min(Fraction(self.rate.burst), self.tokens + gained)
        self.at = now

    def admit(self, tokens: int, now: int) -> bool:
        self.pass_time(now)
        if self.tokens < tokens:
            return False
        self.tokens -= tokens
        return True


@given(
    rate=rates,
    gaps=st.lists(st.integers(0, 20 * SECOND), max_size=60),
)
def test_a_bucket_is_the_naive_bucket_exactly(rate: Rate, gaps: list[int]) -> None:
    # Fractions against integers, and no tolerance: a drift of one nanosecond in a lifetime would show.
    limiter, naive, now = Limiter(Rates(terminal=rate)), NaiveBucket(rate), 0
    for gap in gaps:
        now += gap
        wanted = naive.admit(1, now)
        try:
            limiter.admit(ASKER, "m", (), now)
        except RateLimited:
            assert not wanted
        else:
            assert wanted


@given(
    rate=rates,
    steps=st.lists(st.tuples(st.integers(-(10**13), 10**13), st.integers(1, 5)), max_size=40),
)
def test_a_clock_that_jumps_gives_at_most_a_burst_and_locks_out_at_most_a_refill(
    rate: Rate, steps: list[tuple[int, int]]
) -> None:
    buckets, now = Buckets(rate), 10**15
    for jump, items in steps:
        now += jump
        full_at = buckets.without_one("x", now)
        assert (full_at is None) == (buckets.room("x", now) == 0)
        if full_at is not None:
            buckets.put("x", full_at, now)
        if buckets.room("x", now) >= items:
            buckets.take("x", items, now)
        # However far the clock went back, what is full after a whole refill of debt and burst is full.
        assert buckets.room("x", now + 2 * rate.burst * rate.seconds * SECOND) == rate.burst
        # However far it went forward, never more than the burst.
        assert buckets.room("x", now) <= rate.burst


def test_a_bucket_is_not_empty_for_as_long_as_the_clock_went_back() -> None:
    buckets = Buckets(Rate(requests=1, seconds=1, burst=2))
    buckets.take("x", 1, 10**15)
    assert buckets.without_one("x", 0) is None
    assert buckets.without_one("x", SECOND) is not None


@given(rate=rates, owed=st.integers(0, 5), now=st.integers(0, 10**13))
def test_taking_one_is_the_same_in_either_way(rate: Rate, owed: int, now: int) -> None:
    one_way, other_way = Buckets(rate), Buckets(rate)
    for buckets in (one_way, other_way):
        buckets.take("x", owed, 0)
    full_at = one_way.without_one("x", now)
    if full_at is None:
        assert other_way.room("x", now) == 0
        return
    one_way.put("x", full_at, now)
    other_way.take("x", 1, now)
    for later in (now, now + SECOND, now + 1000 * SECOND):
        assert one_way.room("x", later) == other_way.room("x", later)
        assert one_way.wait("x", later) == other_way.wait("x", later)


def test_years_of_an_uneven_rate_give_what_the_rate_says() -> None:
    # 7 in 3 seconds is no whole number of nanoseconds each. Three years, asked at bad moments.
    rate = Rate(requests=7, seconds=3, burst=7)
    limiter, admitted, now = Limiter(Rates(terminal=rate)), 0, 0
    for step in range(20_000):
        now += 428_571_428 + step % 3
        try:
            limiter.admit(ASKER, "m", (), now)
        except RateLimited:
            continue
        admitted += 1
    may_have = 7 + now * 7 // (3 * SECOND)
    assert admitted <= may_have
    assert admitted >= 19_990


@given(rate=rates, taken=st.integers(1, 50))
def test_the_wait_that_is_told_is_the_wait(rate: Rate, taken: int) -> None:
    buckets = Buckets(rate)
    buckets.take("x", taken, 0)
    wait = buckets.wait("x", 0)
    assert buckets.without_one("x", wait) is not None
    assert wait == 0 or buckets.without_one("x", wait - 1) is None


ONE: Final = Rate(requests=1, seconds=60, burst=1)
MANY: Final = Rate(requests=1000, seconds=1, burst=1000)


@pytest.mark.parametrize(
    ("tight", "said"),
    [
        (Rates(terminal=ONE, organisation=MANY, key=MANY, method=MANY), "terminal"),
        (Rates(terminal=MANY, organisation=ONE, key=MANY, method=MANY), "organisation"),
        (Rates(terminal=MANY, organisation=MANY, key=ONE, method=MANY), "key"),
        (Rates(terminal=MANY, organisation=MANY, key=MANY, method=ONE), "method"),
        (Rates(method=MANY, methods={"card.pin_reload": ONE}), "method"),
    ],
)
def test_each_kind_limits_and_the_refused_takes_from_none(tight: Rates, said: str) -> None:
    limiter = Limiter(tight)
    limiter.admit(ASKER, "card.pin_reload", [0x0173], 0)
    for _ in range(2000):
        with pytest.raises(RateLimited, match=f"{said}; there is room in 60000 ms"):
            limiter.admit(ASKER, "card.pin_reload", [0x0173], 0)
    # Another terminal, organisation, key and method has all of its own. Had the refused ones been counted in the wide
    # buckets, these would be empty.
    limiter.admit(Asker("T-0002", "hospital 2"), "card.pin_unblock", [0x0090], 0)
    with pytest.raises(RateLimited):
        limiter.admit(ASKER, "card.pin_reload", [0x0173], 60 * SECOND - 1)
    limiter.admit(ASKER, "card.pin_reload", [0x0173], 60 * SECOND)


def test_a_short_cut_owes_what_it_answered_too_much_and_at_most_a_bucket() -> None:
    limiter = Limiter(Rates(terminal=Rate(requests=10, seconds=1, burst=10)))
    limiter.charge(ASKER, 0, items=10)
    limiter.charge(ASKER, 0, items=1_000_000)
    with pytest.raises(RateLimited):
        limiter.admit(ASKER, "m", (), SECOND)
    limiter.admit(ASKER, "m", (), SECOND + SECOND // 10)


def test_a_short_cut_has_the_room_of_terminal_and_organisation_and_no_more_than_it_asks_for() -> (
    None
):
    rates = Rates(
        terminal=Rate(requests=10, seconds=1, burst=10),
        organisation=Rate(requests=20, seconds=1, burst=15),
    )
    limiter, neighbour = Limiter(rates), Asker("T-0002", ASKER.organisation)
    assert limiter.room(ASKER, 0, most=64) == 10
    assert limiter.room(ASKER, 0, most=3) == 3
    limiter.charge(neighbour, 0, items=9)
    assert limiter.room(ASKER, 0, most=64) == 6
    limiter.charge(ASKER, 0, items=6)
    assert limiter.room(ASKER, 0, most=64) == 0
    assert limiter.room(ASKER, SECOND // 10, most=64) == 2
    with pytest.raises(RateLimited, match="organisation"):
        limiter.admit(ASKER, "m", (), 0)
    assert Limiter(Rates()).room(ASKER, 0, most=64) == 64


def test_who_counts_by_key_or_by_method_is_not_cut_short() -> None:
    rate = Rate(requests=1, seconds=1, burst=1)
    assert not Limiter(Rates(terminal=rate, methods={"a": rate})).counts_by_key_or("b")
    assert Limiter(Rates(methods={"a": rate})).counts_by_key_or("a")
    assert Limiter(Rates(method=rate)).counts_by_key_or("b")
    assert Limiter(Rates(key=rate)).counts_by_key_or("b")


def test_buckets_are_bounded_and_let_go_of_full_ones_first() -> None:
    buckets = Buckets(Rate(requests=1, seconds=1, burst=2), most=100)
    buckets.take("in debt", 4, 0)
    for number in range(1000):
        # One second later each of these is full again, and the debtor is not.
        buckets.take(number, 1, number * SECOND // 1000)
        assert len(buckets) <= 100
    buckets = Buckets(Rate(requests=1, seconds=100, burst=2), most=100)
    buckets.take("in debt", 4, 0)
    for number in range(99):
        buckets.take(number, 1, 0)
    # The debtor is the oldest, and full last: the others go before it.
    for number in range(1000, 1050):
        buckets.take(number, 1, 150 * SECOND)
    assert buckets.without_one("in debt", 150 * SECOND) is None
    assert len(buckets) == 100


class QuotasMachine(RuleBasedStateMachine):
    """Connections come and go; the quotas know as many as there are, and never more than may be."""

    def __init__(self) -> None:
        super().__init__()
        self.quotas = Quotas(ConnectionLimits(per_terminal=2, per_organisation=3))
        self.open: list[Asker] = []

    @rule(terminal=st.sampled_from("abc"), organisation=st.sampled_from("xy"))
    def enter(self, terminal: str, organisation: str) -> None:
        asker = Asker(terminal, organisation)
        of_terminal = [one for one in self.open if one.terminal == terminal]
        of_organisation = [one for one in self.open if one.organisation == organisation]
        is_full = len(of_terminal) >= 2 or len(of_organisation) >= 3
        try:
            self.quotas.enter(asker)
        except QuotaExceeded:
            assert is_full
        else:
            assert not is_full
            self.open.append(asker)

    @rule(which=st.integers(0, 10))
    def leave(self, which: int) -> None:
        if self.open:
            self.quotas.leave(self.open.pop(which % len(self.open)))

    @invariant()
    def counts(self) -> None:
        assert len(self.quotas) == len(self.open)
        assert len(self.quotas._terminals) == len({one.terminal for one in self.open})


TestQuotas = QuotasMachine.TestCase


def test_leaving_more_often_than_coming_is_a_bug_that_shows() -> None:
    quotas = Quotas(ConnectionLimits(per_terminal=2, per_organisation=3))
    quotas.enter(ASKER)
    quotas.leave(ASKER)
    with pytest.raises(ValueError, match="leaves more often"):
        quotas.leave(ASKER)
