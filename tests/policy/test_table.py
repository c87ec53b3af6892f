"""The compiled policy decides as a naive interpreter of the file does; its answers stand as long as it says."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from keyd.cards.profile import Use
from keyd.crypto.algorithms import CardAlgorithm
from keyd.errors import NotAllowed
from keyd.policy import (
    FOREVER,
    NO_KEY,
    Allowed,
    Business,
    Catalogue,
    Policy,
    PolicyError,
    Shape,
    explain,
)
from keyd.policy.table import MAX_ROLE_SETS
from tests.policy.conftest import CATALOGUE, policy_of
from tests.policy.naive import Naive

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES: Final = {address: CATALOGUE.name_of(address) for address in CATALOGUE.keys}

MONDAY: Final = 1_763_913_600  # 2025-11-24 00:00 in China
MINUTE: Final = 60
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR

# Few of everything, so that rules meet each other and questions meet rules.
KEYED: Final = [
    "card.internal_authenticate",
    "card.mutual_authenticate",
    "card.external_authenticate",
]
PATTERNS: Final = [*KEYED, "card.*_authenticate", "card.mutual_*"]
KEYS: Final = ["IRK", "0170", "0171-0172", "RKSSSE", "RK*", "PUK", "*", "004D-004F", "0094"]
REGIONS: Final = ["5", "51", "5101", "510100", "11", "3301"]
HOURS: Final = [
    *("08:00-17:30", "22:00-06:00", "00:00-24:00", "Mon-Fri 09:00-12:00", "Sun 20:00-04:00"),
    *("Sat,Sun 00:00-24:00", "Mon 00:00-00:01", "23:59-24:00"),
]
ADDRESSES: Final = [0x0170, 0x0171, 0x0172, 0x004C, 0x004D, 0x004F, 0x0090, 0x0094, 0x0001]


def some(values: list[str], most: int = 3) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(values), min_size=1, max_size=most, unique=True)


rules = st.fixed_dictionaries(
    {"methods": some(PATTERNS), "keys": some(KEYS)},
    optional={
        "algorithms": some(["DES", "SSF33", "SM4"]),
        "regions": some(REGIONS),
        "hours": some(HOURS),
    },
) | st.fixed_dictionaries(
    {"methods": some(["daemon.random", "daemon.status", "daemon.*"], 1)},
    optional={"hours": some(HOURS)},
)
policies = st.dictionaries(
    st.sampled_from(["clerk", "night", "far"]), st.lists(rules, min_size=1, max_size=4), min_size=1
)


def written(roles: dict[str, list[dict[str, list[str]]]], offset: str = "+08:00") -> str:
    """Write roles as a policy file."""
    lines = [f'utc_offset = "{offset}"']
    for role, its_rules in roles.items():
        lines += [f"[roles.{role}]", 'what = "a test"']
        for rule in its_rules:
            lines += [f"[[roles.{role}.rules]]", 'why = "a test"']
            lines += [f"{field} = {values!r}" for field, values in rule.items()]
    return "\n".join(lines) + "\n"


@st.composite
def accepted(draw: Callable[[Any], Any]) -> tuple[Policy, Naive]:
    """A policy that is accepted, read twice. Rules that the reader refuses are left out one by one."""
    offset = draw(st.sampled_from(["+08:00", "+00:00", "-11:30"]))
    kept: dict[str, list[dict[str, list[str]]]] = {}
    for role, its_rules in draw(policies).items():
        for rule in its_rules:
            tried = kept | {role: [*kept.get(role, []), rule]}
            try:
                policy_of(written(tried, offset))
            except PolicyError:
                continue
            kept = tried
    assume(kept)
    text = written(kept, offset)
    return policy_of(text), Naive(text, NAMES)


def decided(policy: Policy, roles: frozenset[str], *ask: Any) -> tuple[Allowed | None, int]:
    """Return the answer, None for a denial, and the line that made it."""
    try:
        allowed = policy.may(roles, *ask)
    except NotAllowed as denied:
        return None, denied.line
    return allowed, allowed.line


@given(
    both=accepted(),
    roles=st.sets(st.sampled_from(["clerk", "night", "far", "unknown"])),
    method=st.sampled_from([*KEYED, "daemon.random", "card.pin_reload"]),
    address=st.sampled_from(ADDRESSES),
    algorithm=st.sampled_from(list(CardAlgorithm)),
    region=st.sampled_from(["510100", "510107", "519900", "110000", "330106", "000000", ""]),
    now=st.integers(0, 2 * 7 * DAY).map(lambda seconds: MONDAY + seconds) | st.integers(0, 2**33),
    more=st.lists(st.integers(0, 8 * DAY), max_size=4),
)
@settings(max_examples=150, deadline=None)
def test_it_decides_as_the_naive_interpreter(
    both: tuple[Policy, Naive],
    roles: set[str],
    method: str,
    address: int,
    algorithm: CardAlgorithm,
    region: str,
    now: int,
    more: list[int],
) -> None:
    policy, naive = both
    asked = frozenset(roles)
    has_key = CATALOGUE.methods[method].has_key

    def compiled(at: int) -> Allowed | None:
        place = (address, int(algorithm), region) if has_key else (NO_KEY, 0, "")
        words = explain(policy, asked, method, *place, at)
        allowed, line = decided(policy, asked, method, *place, at)
        assert (words.is_allowed, words.line) == (allowed is not None, line)
        return allowed

    def by_hand(at: int) -> int:
        return naive.allows(roles, method, address if has_key else None, algorithm.name, region, at)

    # Several moments with one policy: what it remembers of the last one must not answer for the next.
    for at in (now, *(now + step for step in more), now):
        answer = compiled(at)
        assert (answer.line if answer else 0) == by_hand(at)
        if answer is None:
            continue
        assert answer.until > at
        # The same answer stands until then, and not a second longer than it says.
        last = min(answer.until, at + 8 * DAY) - 1
        for within in (last, (at + last) // 2):
            assert by_hand(within) == answer.line
        if answer.until != FOREVER:
            assert answer.until <= at + 7 * DAY
            assert by_hand(answer.until) != answer.line


@given(both=accepted(), at=st.integers(MONDAY, MONDAY + 7 * DAY))
@settings(max_examples=40, deadline=None)
def test_every_key_and_region_is_decided_as_by_the_naive_interpreter(
    both: tuple[Policy, Naive], at: int
) -> None:
    # One moment, and everywhere that the rules can tell apart.
    policy, naive = both
    roles = frozenset({"clerk", "night", "far"})
    for method in KEYED:
        for address in ADDRESSES:
            for region in ("510100", "510107", "519900", "110000", "330106", "000000"):
                allowed, line = decided(policy, roles, method, address, 3, region, at)
                wanted = naive.allows(set(roles), method, address, "SM4", region, at)
                assert (line if allowed else 0) == wanted


def test_regions_are_prefixes_and_the_first_line_that_fits_decides() -> None:
    clerk = {"methods": ["card.internal_authenticate"], "keys": ["IRK"]}
    policy = policy_of(
        written({"clerk": [clerk | {"regions": ["5101", "11"]}, clerk | {"regions": ["51"]}]})
    )

    def line(region: str) -> int:
        ask = ("card.internal_authenticate", 0x0170, 3, region, 0)
        allowed, by = decided(policy, frozenset({"clerk"}), *ask)
        return by if allowed else 0

    # The second rule holds where the first does not, and within the first's city both hold.
    regions = ("510100", "510199", "510200", "110000", "120000", "051010", "5", "")
    assert [line(region) for region in regions] == [4, 4, 9, 4, 0, 0, 0, 0]


def test_hours_open_and_close_on_the_minute() -> None:
    # Written by hand, in Beijing's time, for the reader who trusts no generator.
    policy = policy_of(
        written({"clerk": [{"methods": ["daemon.random"], "hours": ["Mon-Fri 08:00-17:30"]}]})
    )

    def may(at: int) -> int:
        try:
            return policy.may(frozenset({"clerk"}), "daemon.random", NO_KEY, 0, "", at).until
        except NotAllowed:
            return 0

    opens, closes = MONDAY + 8 * HOUR, MONDAY + 17 * HOUR + 30 * MINUTE
    assert [may(opens - 1), may(opens), may(closes - 1), may(closes)] == [0, closes, closes, 0]
    assert may(MONDAY + 5 * DAY + 10 * HOUR) == 0  # Saturday
    assert may(opens + 7 * DAY) == closes + 7 * DAY


def test_a_night_belongs_to_the_day_on_which_it_begins() -> None:
    policy = policy_of(
        written({"night": [{"methods": ["daemon.random"], "hours": ["Sun 22:00-06:00"]}]})
    )

    def is_open(at: int) -> bool:
        try:
            policy.may(frozenset({"night"}), "daemon.random", NO_KEY, 0, "", at)
        except NotAllowed:
            return False
        return True

    # Over the end of the week: Sunday 22:00 to Monday 06:00.
    assert [is_open(MONDAY + hours * HOUR) for hours in (-2, 0, 5, 6, 22)] == [1, 1, 1, 0, 0]


BUSINESS: Final = Catalogue(
    {
        "issue.card": Shape(frozenset({Use.INTERNAL}), has_business=True),
        "card.check": Shape(frozenset({Use.INTERNAL})),
    },
    [key for keys in CATALOGUE.keys.values() for key in keys],
)


def test_a_business_is_a_restriction_where_methods_carry_one() -> None:
    rule = {"methods": ["issue.card"], "keys": ["IRK"]}
    policy = policy_of(
        written(
            {
                "lost": [rule | {"business": ["05"]}],
                "every": [rule],
                "free": [rule | {"methods": ["card.check"]}],
            }
        ),
        BUSINESS,
    )

    def is_open(role: str, business: int, method: str = "issue.card") -> bool:
        roles = frozenset({role})
        words = explain(policy, roles, method, 0x0170, 3, "510100", 0, business)
        try:
            policy.may(roles, method, 0x0170, 3, "510100", 0, business)
        except NotAllowed:
            assert not words.is_allowed
            return False
        assert words.is_allowed
        return True

    assert [is_open("lost", business) for business in (0, *Business)] == [0, 0, 1, 0, 0, 0]
    assert all(is_open("every", business) for business in (0, *Business))
    with pytest.raises(PolicyError, match=r"line 8: .*card\.check carry none"):
        policy_of(
            written({"x": [{"methods": ["card.check"], "keys": ["IRK"], "business": ["05"]}]}),
            BUSINESS,
        )


def test_every_key_of_a_request_must_be_allowed_and_the_shortest_answer_counts() -> None:
    policy = policy_of(
        written(
            {
                "clerk": [
                    {"methods": ["card.mutual_authenticate"], "keys": ["IRK"]},
                    {
                        "methods": ["card.mutual_authenticate"],
                        "keys": ["RKSSSE"],
                        "hours": ["08:00-09:00"],
                    },
                ]
            }
        )
    )
    clerk, method = frozenset({"clerk"}), "card.mutual_authenticate"
    both = (0x0170, 0x004C)
    at = MONDAY + 8 * HOUR
    assert policy.may_all(clerk, method, both, 3, "510100", at).until == at + HOUR
    assert policy.may_all(clerk, method, both[:1], 3, "510100", at).until == FOREVER
    for order in (both, both[::-1]):
        with pytest.raises(NotAllowed):
            policy.may_all(clerk, method, order, 3, "510100", at + HOUR)
    # Naming no key at all is no way around naming one.
    with pytest.raises(NotAllowed):
        policy.may_all(clerk, method, (), 3, "510100", at)


def test_a_method_without_a_rule_is_refused_before_its_parameters_are_read() -> None:
    policy = policy_of(written({"clerk": [{"methods": ["daemon.random"]}]}))
    policy.require_method(frozenset({"clerk"}), "daemon.random")
    with pytest.raises(NotAllowed) as denied:
        policy.require_method(frozenset({"clerk"}), "card.pin_reload")
    assert denied.value.line == 2
    with pytest.raises(NotAllowed):
        policy.require_method(frozenset(), "daemon.random")


def test_no_question_makes_the_policy_grow() -> None:
    # Addresses, regions and methods are a peer's to choose.
    policy = policy_of(
        written({"clerk": [{"methods": ["card.*_authenticate"], "keys": ["*"], "regions": ["51"]}]})
    )
    clerk = frozenset({"clerk"})

    def ask(number: int) -> None:
        method = ("card.internal_authenticate", f"card.{number}")[number % 2]
        try:
            policy.may(clerk, method, number % 0x10000, number % 5, f"{number:06d}"[-6:], number)
        except NotAllowed:
            return

    for number in range(2000):
        ask(number)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(20_000):
        ask(number)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 16 * 1024


def test_sets_of_roles_are_bounded_and_forgetting_them_changes_nothing() -> None:
    policy = policy_of(written({"clerk": [{"methods": ["daemon.random"]}]}))
    for number in range(3 * MAX_ROLE_SETS):
        roles = frozenset({"clerk", f"retired-{number}"})
        assert policy.may(roles, "daemon.random", NO_KEY, 0, "", 0).line == 4
        assert len(policy._views) <= MAX_ROLE_SETS
        assert len(policy._tables) <= MAX_ROLE_SETS
