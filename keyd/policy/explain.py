"""A decision in words, for people: allow or deny, which line decided, and what was missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from keyd.crypto.algorithms import CardAlgorithm
from keyd.policy.catalogue import NO_BUSINESS, NO_KEY
from keyd.policy.rules import Reach, Rule, nearest
from keyd.policy.week import DAY_MINUTES, DAYS, minute_of_week

if TYPE_CHECKING:
    from keyd.policy.table import Policy


class Explanation(Struct, frozen=True):
    """A decision, the line that made it (0: none, these roles are not in the file), and why."""

    is_allowed: bool
    line: int
    words: str


def explain(
    policy: Policy,
    roles: frozenset[str],
    method: str,
    address: int,
    algorithm: int,
    region: str,
    now: int,
    business: int = NO_BUSINESS,
) -> Explanation:
    """Decide as `Policy.may` does, by looking at every rule instead of a table, and say why."""
    minute = minute_of_week(now, policy.utc_offset_minutes)
    rules = policy.rules_of(roles)
    rule, reach = nearest(rules, method, address, algorithm, region, minute, business)
    asked = _asked(policy, method, address)
    if rule is None:
        lines = [policy.role_lines[role] for role in roles if role in policy.role_lines]
        return Explanation(
            False, min(lines, default=0), f"denied: {_nothing(policy, roles, asked)}"
        )
    decided = f"line {rule.line} ({rule.place}: {rule.why})"
    if reach is Reach.MATCH:
        return Explanation(True, rule.line, f"allowed: {asked}, by {decided}")
    missing = _missing(rule, reach, algorithm, region, minute)
    return Explanation(False, rule.line, f"denied: {asked}; nearest is {decided}, but {missing}")


def _asked(policy: Policy, method: str, address: int) -> str:
    if address == NO_KEY:
        return method
    return f"{method} with {address:04X} ({policy.catalogue.name_of(address)})"


def _nothing(policy: Policy, roles: frozenset[str], asked: str) -> str:
    unknown = sorted(role for role in roles if role not in policy.role_lines)
    if not roles:
        return f"{asked}; without a role, nothing is allowed"
    if len(unknown) == len(roles):
        return f"{asked}; the policy has no role {', '.join(unknown)}"
    known = ", ".join(sorted(roles - set(unknown)))
    return f"{asked}; no rule of {known} names this method"


def _missing(rule: Rule, reach: Reach, algorithm: int, region: str, minute: int) -> str:
    if reach is Reach.KEY:
        return "it does not name this key"
    if reach is Reach.ALGORITHM:
        names = ", ".join(CardAlgorithm(one).name for one in sorted(rule.algorithms))
        return f"it is for {names}, not algorithm {algorithm}"
    if reach is Reach.BUSINESS:
        names = ", ".join(f"{one:02d}" for one in sorted(rule.business))
        return f"it is for 业务类型 {names}"
    if reach is Reach.REGION:
        wanted = ", ".join(rule.regions)
        return f"it is for regions {wanted}, and {region or 'no region was said'}"
    day, of_day = divmod(minute, DAY_MINUTES)
    return f"its hours do not have {DAYS[day]} {of_day // 60:02d}:{of_day % 60:02d}"
