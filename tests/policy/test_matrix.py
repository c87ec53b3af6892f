"""The policy as shipped allows exactly what `expectations.toml` says: every method, role and key, proven or not."""

from __future__ import annotations

import itertools
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from keyd.crypto.algorithms import CardAlgorithm
from keyd.errors import NotAllowed
from keyd.needs import GOVERNED
from keyd.policy import FOREVER, NO_KEY, Policy, PolicyFile, explain
from keyd.protocol.commands import TABLE, Role
from tests.policy.conftest import CATALOGUE

if TYPE_CHECKING:
    from collections.abc import Iterator

EXPECTED: Final[dict[str, Any]] = tomllib.loads(
    Path(__file__).with_name("expectations.toml").read_text(encoding="utf-8")
)
ROLES: Final[list[str]] = EXPECTED["roles"]

# Unknown to every profile, below and above the table, and what 16 bits can still say.
STRANGERS: Final = (0x0000, 0x0001, 0x1234, 0xFFFF, NO_KEY)

NOW: Final = 1_764_000_000
REGION: Final = "510100"


def expected() -> Iterator[tuple[str, str, str]]:
    """Yield (role, method, key's name or -) for everything that is allowed."""
    for method, by_key in EXPECTED["may"].items():
        for key, who in by_key.items():
            roles = EXPECTED["who"][who] if isinstance(who, str) else who
            names = EXPECTED["keys"].get(key, [key])
            yield from itertools.product(roles, [method], names)


ALLOWED: Final = frozenset(expected())

every_method = pytest.mark.parametrize("method", sorted(CATALOGUE.methods))


def is_allowed(
    policy: Policy, roles: frozenset[str], method: str, address: int, algorithm: int
) -> bool:
    """Ask the compiled policy, and insist that the words say the same."""
    region = "" if address == NO_KEY else REGION
    explained = explain(policy, roles, method, address, algorithm, region, NOW)
    try:
        allowed = policy.may(roles, method, address, algorithm, region, NOW)
    except NotAllowed as denied:
        said = (False, denied.line)
    else:
        said = (True, allowed.line)
        # As shipped nothing depends on hours, so a short cut may keep what it has learnt.
        assert allowed.until == FOREVER
    assert (explained.is_allowed, explained.line) == said, explained
    return said[0]


def test_the_expectations_speak_of_what_there_is() -> None:
    # A misspelt name would expect a denial, and find one.
    names = CATALOGUE.names | {"-"}
    assert set(EXPECTED["may"]) <= set(CATALOGUE.methods)
    assert {name for _role, _method, name in ALLOWED} <= names
    assert {role for role, _method, _name in ALLOWED} == set(ROLES)


def test_the_roles_are_the_ones_that_were_thought_about(shipped: PolicyFile) -> None:
    assert set(shipped.policy.role_lines) == set(ROLES)


def test_what_needs_no_right_is_what_proves_who_one_is() -> None:
    # A role of the table that is new here is neither governed nor open until somebody says which.
    # What officers do has rules of its own, and the policy is not asked (keyd.custody).
    # So has who asks for a certificate: a code, or a terminal's proof.
    custody = {Role.ADMINISTRATION, Role.OFFICER, Role.ENROLMENT, Role.SELF}
    assert {row.role for row in TABLE.values()} <= GOVERNED | {Role.ANYONE} | custody
    assert [row.method for row in TABLE.values() if row.role is Role.ANYONE] == EXPECTED["anyone"]
    asked = {row.method for row in TABLE.values() if row.role not in custody}
    assert set(CATALOGUE.methods) == asked - set(EXPECTED["anyone"])


@every_method
@pytest.mark.parametrize("role", ROLES)
def test_a_role_may_exactly_what_it_needs(shipped: PolicyFile, role: str, method: str) -> None:
    roles = frozenset({role})
    has_key = CATALOGUE.methods[method].has_key
    for address in (*sorted(CATALOGUE.keys), *STRANGERS):
        name = "-" if address == NO_KEY else CATALOGUE.name_of(address)
        for algorithm in CardAlgorithm if has_key and address != NO_KEY else (0,):
            allowed = is_allowed(shipped.policy, roles, method, address, algorithm)
            assert allowed is ((role, method, name) in ALLOWED), (role, method, name, algorithm)


@every_method
def test_who_has_not_proven_themselves_has_no_role_and_may_nothing(
    shipped: PolicyFile, method: str
) -> None:
    for roles in (frozenset[str](), frozenset({"no-such-role"})):
        for address in (*CATALOGUE.keys, *STRANGERS):
            assert not is_allowed(shipped.policy, roles, method, address, 3)


@every_method
def test_several_roles_may_what_one_of_them_may(shipped: PolicyFile, method: str) -> None:
    for pair in itertools.combinations(ROLES, 2):
        for address in (*sorted(CATALOGUE.keys)[::7], 0x0090, 0x0094, 0x0173, NO_KEY):
            algorithm = 0 if address == NO_KEY else 3
            alone = [
                is_allowed(shipped.policy, frozenset({role}), method, address, algorithm)
                for role in pair
            ]
            both = is_allowed(shipped.policy, frozenset(pair), method, address, algorithm)
            assert both is any(alone)


@pytest.mark.parametrize(("address", "name"), [(0x0090, "PUK"), (0x0094, "UKSSSE")])
def test_the_two_dangerous_keys_are_for_card_making_and_counters_alone(
    shipped: PolicyFile, address: int, name: str
) -> None:
    # The domain's own sentence, without the file of expectations in between.
    assert CATALOGUE.name_of(address) == name
    for role, method in itertools.product(ROLES, CATALOGUE.methods):
        if is_allowed(shipped.policy, frozenset({role}), method, address, 3):
            assert role in {"counter", "card-making"}
