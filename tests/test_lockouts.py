"""Nobody guesses on and on, and nobody locks an honest terminal out from where it has lately proven itself."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyd.terminals import lockouts as module
from keyd.terminals.lockouts import (
    FORGOTTEN_AFTER,
    FREE_FOR_PAIR,
    FREE_FOR_SITE,
    FREE_FOR_TERMINAL,
    LONGEST_LOCKOUT,
    MAX_SITES,
    TRUSTED_FOR,
    Lockouts,
    site_of,
)

HERE: Final = "10.1.2.3"
THERE: Final = "10.9.9.9"


def fail(lockouts: Lockouts, times: int, now: float = 0.0, code: str = "T", at: str = HERE) -> None:
    for _ in range(times):
        lockouts.failed(code, at, now)


# --- the naive model: the list of everything that ever happened


class Model:
    """What the docstring promises, read off the whole history."""

    def __init__(self) -> None:
        self._failures: list[tuple[str, str, float]] = []
        self._successes: list[tuple[str, str, float]] = []

    def failed(self, code: str, source: str, now: float) -> None:
        self._failures.append((code, site_of(source), now))

    def succeeded(self, code: str, source: str, now: float) -> None:
        site = site_of(source)
        self._successes.append((code, site, now))

    def is_locked(self, code: str, source: str, now: float) -> bool:
        site = site_of(source)
        at = [moment for c, s, moment in self._successes if (c, s) == (code, site)]
        if any(now - moment < TRUSTED_FOR for moment in at):
            return False
        since = max(at, default=-1.0)
        pair = [m for c, s, m in self._failures if (c, s) == (code, site) and m > since]
        return (
            self._is_locked(pair, FREE_FOR_PAIR, now)
            or self._is_locked([m for _, s, m in self._failures if s == site], FREE_FOR_SITE, now)
            or self._is_locked(
                [m for c, _, m in self._failures if c == code], FREE_FOR_TERMINAL, now
            )
        )

    @staticmethod
    def _is_locked(moments: list[float], free: int, now: float) -> bool:
        count, last = 0, None
        for moment in moments:
            count = 1 if last is not None and moment - last >= FORGOTTEN_AFTER else count + 1
            last = moment
        if last is None or count <= free:
            return False
        return now < last + min(2.0 ** (count - free - 1), LONGEST_LOCKOUT)


SOURCES: Final = ("10.0.0.1", "10.0.0.2", "2001:db8::1", "2001:db8::2", "unix")
steps = st.lists(
    st.tuples(
        st.sampled_from(["try", "try", "try", "succeed", "storm"]),
        st.sampled_from(["A", "B", "C"]),
        st.sampled_from(SOURCES),
        st.sampled_from([0.001, 0.5, 1.0, 3.0, 100.0, 901.0, FORGOTTEN_AFTER, TRUSTED_FOR]),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(steps)
def test_it_does_what_the_naive_model_does(what: list[tuple[str, str, str, float]]) -> None:
    lockouts, model, now = Lockouts(), Model(), 0.0
    for kind, code, source, seconds in what:
        now += seconds
        for number in range(15 if kind == "storm" else 1):
            at = now + number / 1000
            is_locked = lockouts.is_locked(code, source, at)
            assert is_locked == model.is_locked(code, source, at)
            if is_locked:
                continue
            for one in (lockouts, model):
                if kind == "succeed":
                    one.succeeded(code, source, at)
                else:
                    one.failed(code, source, at)
        now += 0.015
    for code in ("A", "B", "C"):
        for source in SOURCES:
            assert lockouts.is_locked(code, source, now) == model.is_locked(code, source, now)


@settings(max_examples=100, deadline=None)
@given(steps)
def test_whatever_attackers_do_a_trusted_pair_is_not_locked(
    what: list[tuple[str, str, str, float]],
) -> None:
    lockouts, now = Lockouts(), 0.0
    lockouts.succeeded("A", "10.0.0.1", now)
    for _kind, code, source, seconds in what:
        now += min(seconds, TRUSTED_FOR / 100)
        fail(lockouts, 20, now, code, source)
        assert not lockouts.is_locked("A", "10.0.0.1", now)


# --- by hand


def test_the_first_tries_are_free_and_then_it_doubles() -> None:
    lockouts, now = Lockouts(), 0.0
    fail(lockouts, FREE_FOR_PAIR, now)
    assert not lockouts.is_locked("T", HERE, now)
    for seconds in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900):
        fail(lockouts, 1, now)
        assert lockouts.is_locked("T", HERE, now + seconds - 0.01)
        now += seconds
        assert not lockouts.is_locked("T", HERE, now)


def test_an_hour_later_it_begins_anew() -> None:
    lockouts = Lockouts()
    fail(lockouts, FREE_FOR_PAIR + 8)
    fail(lockouts, FREE_FOR_PAIR, FORGOTTEN_AFTER)
    assert not lockouts.is_locked("T", HERE, FORGOTTEN_AFTER)


def test_a_pairs_failures_are_not_another_pairs() -> None:
    lockouts = Lockouts()
    fail(lockouts, FREE_FOR_PAIR + 1)
    assert lockouts.is_locked("T", HERE, 0)
    assert not lockouts.is_locked("U", HERE, 0)
    assert not lockouts.is_locked("T", THERE, 0)


def test_a_terminal_that_is_guessed_at_from_everywhere_is_locked_where_it_is_new() -> None:
    lockouts = Lockouts()
    lockouts.succeeded("T", HERE, 0)
    for number in range(FREE_FOR_TERMINAL + 1):
        fail(lockouts, 1, 0, "T", f"172.16.0.{number}")
    assert lockouts.is_locked("T", THERE, 0)
    assert not lockouts.is_locked("T", HERE, 0)


def test_a_site_that_guesses_is_locked_for_who_is_new_there() -> None:
    lockouts = Lockouts()
    lockouts.succeeded("T", HERE, 0)
    for number in range(FREE_FOR_SITE + 1):
        fail(lockouts, 1, 0, f"X-{number}")
    assert lockouts.is_locked("NEW", HERE, 0)
    assert not lockouts.is_locked("NEW", THERE, 0)
    assert not lockouts.is_locked("T", HERE, 0)
    # One good terminal is no cover for guessing beside it.
    lockouts.succeeded("T", HERE, 0)
    assert lockouts.is_locked("NEW", HERE, 0)


def test_trust_ends_a_month_later() -> None:
    lockouts = Lockouts()
    lockouts.succeeded("T", HERE, 0)
    fail(lockouts, FREE_FOR_PAIR + 20, TRUSTED_FOR - 1)
    assert not lockouts.is_locked("T", HERE, TRUSTED_FOR - 1)
    assert lockouts.is_locked("T", HERE, TRUSTED_FOR)


def test_what_was_known_before_a_restart_can_be_told() -> None:
    lockouts = Lockouts()
    lockouts.trust("T", HERE, -1000)
    fail(lockouts, 100)
    assert not lockouts.is_locked("T", HERE, 0)


@pytest.mark.parametrize(
    ("one", "other", "is_one_site"),
    [
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("10.0.0.1", "::ffff:10.0.0.1", True),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.2", False),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff:ffff:ffff:ffff", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("fe80::1%eth0", "fe80::1%eth1", True),
        ("unix", "unix", True),
        ("unix", "gone", False),
    ],
)
def test_a_site_is_an_address_or_a_64(one: str, other: str, is_one_site: bool) -> None:
    assert (site_of(one) == site_of(other)) is is_one_site


def test_memory_is_bounded_and_strangers_drive_no_trust_out() -> None:
    lockouts = Lockouts(most=100)
    lockouts.succeeded("T", HERE, 0)
    for number in range(10_000):
        fail(lockouts, 1, number / 1000, f"X-{number}", f"10.{number % 250}.{number // 250}.1")
    for counts in (lockouts._pairs, lockouts._sites, lockouts._terminals):
        assert len(counts._counts) == 100
    fail(lockouts, 100, 10)
    assert not lockouts.is_locked("T", HERE, 10)


def test_a_terminal_that_roams_keeps_its_last_sites() -> None:
    lockouts = Lockouts()
    for number in range(MAX_SITES + 1):
        lockouts.succeeded("T", f"10.0.0.{number}", number)
    lockouts.succeeded("T", "10.0.0.1", 10)
    fail(lockouts, FREE_FOR_TERMINAL * 3, 11, at=THERE)
    locked = [n for n in range(MAX_SITES + 1) if lockouts.is_locked("T", f"10.0.0.{n}", 11)]
    assert locked == [0]


def test_the_terminals_with_trust_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TRUSTED", 10)
    lockouts = Lockouts()
    for number in range(50):
        lockouts.succeeded(f"T-{number}", HERE, number)
    assert len(lockouts._trusted) == 10


def test_how_much_is_locked() -> None:
    lockouts = Lockouts()
    assert lockouts.locked(0) == 0
    fail(lockouts, FREE_FOR_PAIR + 1)
    assert lockouts.locked(0) == 1
    fail(lockouts, FREE_FOR_SITE)
    assert lockouts.locked(0) == 3
    lockouts.succeeded("T", HERE, 0)
    assert lockouts.locked(0) == 2
    assert lockouts.locked(LONGEST_LOCKOUT) == 0
