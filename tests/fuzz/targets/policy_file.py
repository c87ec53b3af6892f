"""A policy file is taken or refused with `PolicyError`, and what was taken decides as the naive interpreter does."""

from __future__ import annotations

import functools
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

from keyd.crypto.algorithms import CardAlgorithm
from keyd.errors import NotAllowed
from keyd.policy import NO_KEY, PolicyError, read_policy
from tests.fuzz.mutators import mutate_text
from tests.fuzz.target import Target
from tests.policy.conftest import CATALOGUE, LIMITS, SHIPPED
from tests.policy.naive import Naive

if TYPE_CHECKING:
    from random import Random

    from keyd.policy import Policy

NAMES: Final = {address: CATALOGUE.name_of(address) for address in CATALOGUE.keys}

REGIONS: Final = ("510100", "510107", "110000", "330106", "")
ADDRESSES: Final = (0x0170, 0x004C, 0x004D, 0x0090)

# 2025-11-24, a Monday, and some moments of its week and of other years.
MOMENTS: Final = (1_763_913_600, 1_763_913_600 + 9 * 3600, 1_764_400_000, 0, 4_000_000_000)

# So many roles and methods are asked about; the shipped file has more rules than one input needs to be asked of.
_MAX_ROLES: Final = 4
_MAX_METHODS: Final = 6

_SMALL: Final = """utc_offset = "+08:00"
[roles.clerk]
what = "a clerk"
[[roles.clerk.rules]]
why = "to check cards"
methods = ["card.internal_*", "card.mutual_authenticate"]
keys = ["IRK", "0171-0172"]
algorithms = ["SM4", "DES"]
regions = ["5101", "11"]
hours = ["Mon-Fri 08:00-17:30", "Sat 22:00-06:00"]
[[roles.clerk.rules]]
why = "to draw numbers"
methods = ["daemon.random"]
[roles.night]
what = "the night"
[[roles.night.rules]]
why = "at night"
methods = ["card.external_authenticate"]
keys = ["RK*"]
hours = ["22:00-06:00"]
"""


class _AnyLine(defaultdict[tuple[str, int], int]):
    """Lines of rules: here it only counts whether a rule allows, so all have the first."""

    def __init__(self) -> None:
        super().__init__(lambda: 1)


def one_input(data: bytes) -> None:
    try:
        file = read_policy(data, CATALOGUE)
    except PolicyError as error:
        assert error.faults
        assert all(fault.line <= data.count(b"\n") + 1 for fault in error.faults)
        assert str(error)
        return
    naive = Naive(data.decode(), NAMES)
    naive.lines = _AnyLine()
    roles = sorted(naive.content["roles"])[:_MAX_ROLES]
    assert set(file.policy.role_lines) == set(naive.content["roles"])
    for role in roles:
        for method in _methods(naive, role):
            _compare(file.policy, naive, role, method)


def _methods(naive: Naive, role: str) -> list[str]:
    """Return the methods to ask about: those that the role's rules name, and one more."""
    named = [
        method
        for rule in naive.content["roles"][role]["rules"]
        if "business" not in rule
        for pattern in rule["methods"]
        for method in _matching(pattern)
        if not CATALOGUE.methods[method].has_business
    ]
    return [*list(dict.fromkeys(named))[:_MAX_METHODS], "card.internal_authenticate"]


@functools.cache
def _matching(pattern: str) -> tuple[str, ...]:
    family, _, verb = pattern.partition(".")
    begin = verb.partition("*")[0]
    return tuple(name for name in CATALOGUE.methods if name.startswith(f"{family}.{begin}"))


def _compare(policy: Policy, naive: Naive, role: str, method: str) -> None:
    has_key = CATALOGUE.methods[method].has_key
    for address in ADDRESSES if has_key else (None,):
        for algorithm in CardAlgorithm:
            for region in REGIONS if has_key else ("",):
                for at in MOMENTS:
                    wanted = naive.allows({role}, method, address, algorithm.name, region, at)
                    place: tuple[Any, ...] = (NO_KEY, 0, "")
                    if address is not None:
                        place = (address, int(algorithm), region)
                    assert _allows(policy, role, method, *place, at) == bool(wanted), (method, at)


def _allows(policy: Policy, role: str, method: str, *question: Any) -> bool:
    try:
        answer = policy.may(frozenset({role}), method, *question)
    except NotAllowed:
        return False
    assert answer.until > question[-1]
    return True


_WORDS: Final = (
    *("[roles.clerk]", "[[roles.clerk.rules]]", "[limits.cards]", "[limits.rates.methods]"),
    *('why = "x"', 'what = "x"', "methods =", "keys =", "hours =", "regions =", "algorithms ="),
    *(
        '["*"]',
        '["IRK"]',
        '["card.*"]',
        '"card.internal_*",',
        '"daemon.*"',
        '["RK*"]',
        '"0170-0FFF"',
    ),
    *('["Mon-Sun 00:00-24:00"]', '"22:00-06:00"', '["Sat,Sun 23:59-24:00"]', '["51", "11"]', '""'),
    *("utc_offset =", '"-11:30"', '"+00:00"', '"+19:59"', "[", "]", "{a=1}", "'''", "#", "inf"),
    *(
        "1979-05-27",
        "07:32:00",
        "1e400",
        "[" * 60,
        "9" * 5000,
        "business =",
        '["01"]',
        "per_second",
    ),
)


def mutate(data: bytes, random: Random) -> bytes:
    return mutate_text(data, random, _WORDS)


def seeds() -> list[bytes]:
    return [(_SMALL + LIMITS).encode(), LIMITS.encode(), SHIPPED.read_bytes()]


TARGET = Target(one_input, seeds, mutate, max_bytes=64 * 1024)
