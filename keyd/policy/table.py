"""The compiled policy: a few lookups in dictionaries, whatever the file looks like.

For a set of roles and a method there is a dictionary from (address, algorithm, 业务类型) to a cell. A cell is the
rules that are left when only region and hours are open; it knows its answer for each region that a rule names, and
for each stretch of the week in between two edges. Nothing grows with what peers say: an address or a region that no
rule names finds nothing and leaves nothing behind.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from keyd.crypto.algorithms import CardAlgorithm
from keyd.errors import NotAllowed
from keyd.policy.catalogue import NO_BUSINESS, NO_KEY, Business, Catalogue
from keyd.policy.rules import Reach, Rule, nearest
from keyd.policy.week import WEEK_MINUTES, edges, is_open, minute_of_week

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

# An answer that hours do not change. Seconds of Unix time, and what fits into 64 bits with a sign.
FOREVER: Final = 2**63 - 1

# Sets of roles come from the registry, where a province has a dozen. Each costs about a megabyte at most, and is
# compiled in milliseconds, so that forgetting all of them when there are more is no catastrophe.
MAX_ROLE_SETS: Final = 64

_Key = tuple[int, int, int]


class Allowed(Struct, frozen=True, gc=False):
    """Yes, by the rule in this line. The same answer stands until then (seconds of Unix time, not included)."""

    line: int
    until: int = FOREVER


class _Span:
    """One region's answers through the week: from each start, the line that allows, or 0."""

    __slots__ = ("_answer", "_from", "_lines", "_offset", "_starts", "_until")

    def __init__(self, starts: Sequence[int], lines: Sequence[int], offset: int) -> None:
        self._starts = starts
        self._lines = lines
        self._offset = offset
        # The stretch that was asked for last, because the next question is about the same: from, until, answer.
        # Nothing to begin with, and for ever where hours do not matter.
        is_constant = len(lines) == 1
        self._from, self._until = (-FOREVER, FOREVER) if is_constant else (0, 0)
        self._answer = Allowed(lines[0]) if is_constant and lines[0] else None

    def at(self, now: int) -> Allowed | None:
        if not self._from <= now < self._until:
            self._find(now)
        return self._answer

    def _find(self, now: int) -> None:
        minute = minute_of_week(now, self._offset)
        monday = now // 60 - minute
        after = bisect_right(self._starts, minute)
        # Before the first edge it is still the last stretch of the week before.
        begin = self._starts[after - 1] - (0 if after else WEEK_MINUTES)
        is_last = after == len(self._starts)
        end = self._starts[0] + WEEK_MINUTES if is_last else self._starts[after]
        line = self._lines[after - 1]
        self._from, self._until = (monday + begin) * 60, (monday + end) * 60
        self._answer = Allowed(line, self._until) if line else None


class _Cell:
    """The rules for one key and algorithm, by region and hours."""

    __slots__ = ("_lengths", "_spans", "always")

    def __init__(self, rules: Sequence[Rule], offset: int) -> None:
        first = rules[0]
        # Most rules know neither region nor hours: then there is nothing to look up.
        self.always = Allowed(first.line) if first.is_unconditional else None
        prefixes = {prefix for rule in rules for prefix in rule.regions}
        self._lengths = tuple(sorted({len(prefix) for prefix in prefixes}, reverse=True))
        self._spans = {
            # Every rule for a wider region holds here as well.
            prefix: _span([rule for rule in rules if prefix.startswith(rule.regions)], offset)
            for prefix in prefixes
        }

    def at(self, region: str, now: int) -> Allowed | None:
        for length in self._lengths:
            # A region that is shorter than the prefix is not within it.
            span = self._spans.get(region[:length])
            if span is not None:
                return span.at(now)
        return None


class Policy:
    """Who may do what. Made once from a file that was found right as a whole, and never changed."""

    def __init__(
        self,
        roles: Mapping[str, tuple[int, Sequence[Rule]]],
        catalogue: Catalogue,
        utc_offset_minutes: int,
    ) -> None:
        self.catalogue: Final = catalogue
        self.utc_offset_minutes: Final = utc_offset_minutes
        self.role_lines: Final = {role: line for role, (line, _rules) in roles.items()}
        self._rules = {role: tuple(rules) for role, (_line, rules) in roles.items()}
        self._views: dict[frozenset[str], dict[str, dict[_Key, _Cell]]] = {}
        self._tables: dict[tuple[bool, tuple[Rule, ...]], dict[_Key, _Cell]] = {}
        # The rules for each method, to find which of them came nearest.
        self._concerned: dict[frozenset[str], dict[str, tuple[Rule, ...]]] = {}

    def may(
        self,
        roles: frozenset[str],
        method: str,
        address: int,
        algorithm: int,
        region: str,
        now: int,
        business: int = NO_BUSINESS,
    ) -> Allowed:
        """Allow a request, or refuse it.

        Roles that this policy does not have allow nothing. `address` is NO_KEY and `algorithm` 0 where no key is
        used, `region` the card's six digits, `now` seconds of Unix time.

        Raises:
            NotAllowed: no rule of these roles allows it; it has the line that came nearest.
        """
        view = self._views.get(roles)
        if view is None:
            view = self._compile(roles)
        cells = view.get(method)
        if cells is not None:
            cell = cells.get((address, algorithm, business))
            if cell is not None:
                allowed = cell.always or cell.at(region, now)
                if allowed is not None:
                    return allowed
        raise NotAllowed(
            line=self._denying_line(roles, method, address, algorithm, region, now, business)
        )

    def may_all(
        self,
        roles: frozenset[str],
        method: str,
        addresses: Iterable[int],
        algorithm: int,
        region: str,
        now: int,
        business: int = NO_BUSINESS,
    ) -> Allowed:
        """Allow a request that uses several keys: each must be allowed. The answer stands as long as all do.

        Raises:
            NotAllowed: one of them is not.
        """
        answer: Allowed | None = None
        for address in addresses:
            one = self.may(roles, method, address, algorithm, region, now, business)
            if answer is None or one.until < answer.until:
                answer = one
        if answer is None:
            raise NotAllowed  # a request without keys names NO_KEY; naming nothing is a fault, and no yes
        return answer

    def require_method(self, roles: frozenset[str], method: str) -> None:
        """Refuse a method that these roles have no rule for at all, before its parameters are looked at.

        Raises:
            NotAllowed: there is no rule for it.
        """
        view = self._views.get(roles)
        if view is None:
            view = self._compile(roles)
        if method not in view:
            raise NotAllowed(line=self._header_line(roles))

    def rules_of(self, roles: frozenset[str]) -> tuple[Rule, ...]:
        """Return the rules of these roles in the order of the file, which is the order in which they decide."""
        rules = [rule for role in roles for rule in self._rules.get(role, ())]
        return tuple(sorted(rules, key=lambda rule: rule.line))

    def prepare(self, role_sets: Iterable[frozenset[str]]) -> None:
        """Compile these sets of roles now, so that the first request of each need not wait for it."""
        for roles in role_sets:
            if roles not in self._views:
                self._compile(roles)

    def _compile(self, roles: frozenset[str]) -> dict[str, dict[_Key, _Cell]]:
        if len(self._views) >= MAX_ROLE_SETS:
            self._views.clear()
            self._tables.clear()
            self._concerned.clear()
        rules = self.rules_of(roles)
        cells: dict[tuple[Rule, ...], _Cell] = {}
        view = {}
        by_method = self._concerned[roles] = {}
        for method in {method for rule in rules for method in rule.methods}:
            concerned = tuple(rule for rule in rules if method in rule.methods)
            # Methods and sets of roles with the same rules share one table.
            shared = self.catalogue.methods[method].has_business, concerned
            table = self._tables.get(shared)
            if table is None:
                table = self._tables[shared] = self._table(method, concerned, cells)
            view[method] = table
            by_method[method] = concerned
        self._views[roles] = view
        return view

    def _table(
        self, method: str, rules: tuple[Rule, ...], cells: dict[tuple[Rule, ...], _Cell]
    ) -> dict[_Key, _Cell]:
        addresses = frozenset[int]().union(*(rule.addresses for rule in rules)) or {NO_KEY}
        has_business = self.catalogue.methods[method].has_business
        carried = (NO_BUSINESS, *Business) if has_business else (NO_BUSINESS,)
        table = {}
        for address in addresses:
            for algorithm in (0,) if address == NO_KEY else CardAlgorithm:
                for business in carried:
                    fitting = tuple(
                        rule
                        for rule in rules
                        if rule.reach_of_key(method, address, algorithm, business) is Reach.MATCH
                    )
                    if not fitting:
                        continue
                    cell = cells.get(fitting)
                    if cell is None:
                        cell = cells[fitting] = _Cell(fitting, self.utc_offset_minutes)
                    table[address, int(algorithm), int(business)] = cell
        return table

    def _denying_line(
        self,
        roles: frozenset[str],
        method: str,
        address: int,
        algorithm: int,
        region: str,
        now: int,
        business: int,
    ) -> int:
        # Compiled a moment ago, so it is there.
        rules = self._concerned[roles].get(method)
        if rules is None:
            return self._header_line(roles)
        for rule in rules:
            if address in rule.addresses:
                break
        else:
            # No rule names the key: the first of them came as near as any. A flood of these is cheap.
            return rules[0].line
        minute = minute_of_week(now, self.utc_offset_minutes)
        nearest_rule, _reach = nearest(rules, method, address, algorithm, region, minute, business)
        return nearest_rule.line if nearest_rule is not None else rules[0].line

    def _header_line(self, roles: frozenset[str]) -> int:
        # 0 is no line: these roles, or the lack of any, are not in the file.
        return min((self.role_lines[role] for role in roles if role in self.role_lines), default=0)


def _span(rules: Sequence[Rule], offset: int) -> _Span:
    starts = sorted(set[int]().union(*(edges(rule.week) for rule in rules))) or [0]
    lines = [
        next((rule.line for rule in rules if is_open(rule.week, start)), 0) for start in starts
    ]
    if len(set(lines)) == 1:
        return _Span((0,), (lines[0],), offset)
    # Where the same line goes on deciding, nothing changes.
    kept = [i for i in range(len(starts)) if lines[i] != lines[i - 1]]
    return _Span([starts[i] for i in kept], [lines[i] for i in kept], offset)
