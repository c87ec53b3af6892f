"""The policy file: TOML, read and checked as a whole. A wrong file is refused whole, with every fault in it.

The reader of a fault is an officer with an editor, so each names its line. TOML parsers keep no lines; the
headers are found again in the text, and if they do not tally with what was parsed, the file is refused.
"""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import msgspec
from msgspec import Meta, Struct

from keyd.crypto.algorithms import CardAlgorithm
from keyd.policy.catalogue import Business, Catalogue, Shape
from keyd.policy.limits import Limits
from keyd.policy.rules import EVERYWHERE, Rule
from keyd.policy.table import Policy
from keyd.policy.week import ALWAYS, offset_of, week_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# The file as shipped has about 20 KB. A parser is not handed more than an officer can have written.
MAX_BYTES: Final = 256 * 1024

# Each rule is compared with every earlier one of its role; so many are compared in well under a second.
MAX_RULES_PER_ROLE: Final = 100
MAX_ROLES: Final = 100

# What is told at once. Whoever has more faults than these has one, many times over.
MAX_FAULTS: Final = 50

_ROLE: Final = re.compile(r"\A[a-z][a-z0-9-]{0,31}\Z")
# A pattern names its family: what a new keyd brings in another family is never allowed by accident.
_METHOD: Final = re.compile(r"\A[a-z0-9_]+\.[a-z0-9_*]+\Z")
_HEX: Final = re.compile(r"\A[0-9A-F]{4}\Z")
_RANGE: Final = re.compile(r"\A([0-9A-F]{4})-([0-9A-F]{4})\Z")
_NAME: Final = re.compile(r"\A[A-Z0-9]+\*?\Z|\A\*\Z")
_REGION: Final = re.compile(r"\A[0-9]{1,6}\Z")
# Zhejiang issues by city: the last two digits are blanked before keys are diversified.
_ZHEJIANG: Final = "33"
_CITY_DIGITS: Final = 4
_HEADER: Final = re.compile(r"\A\s*(\[{1,2})\s*([A-Za-z0-9_.\s-]+?)\s*\]{1,2}\s*(?:#.*)?\Z")
_BROKEN_FIELD: Final = re.compile(r"`\$\.?([A-Za-z_]*)")
_BROKEN_PATH: Final = re.compile(r"`\$\.([A-Za-z_.]+)`")
_UNKNOWN_FIELD: Final = re.compile(r"unknown field `(\w+)`")
_TOML_LINE: Final = re.compile(r" \(at line (\d+), column \d+\)")


class Fault(NamedTuple):
    """Something wrong with the file: where, and what. Line 0 is the file as a whole."""

    line: int
    place: str
    what: str

    def __str__(self) -> str:
        return ": ".join(
            part for part in (f"line {self.line}" * bool(self.line), self.place, self.what) if part
        )


class PolicyError(Exception):
    """The policy file cannot be used. It says every fault that was found, a line each."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults: Final = tuple(sorted(faults))[:MAX_FAULTS]
        super().__init__("\n".join(map(str, self.faults)))


class PolicyFile(Struct, frozen=True):
    """A whole policy file, found right."""

    policy: Policy
    limits: Limits


class _RuleRow(Struct, frozen=True, forbid_unknown_fields=True):
    """A rule as the file has it. What is left out does not restrict, except keys, which have to be said."""

    why: Annotated[str, Meta(min_length=1)]
    methods: Annotated[tuple[str, ...], Meta(min_length=1)]
    keys: Annotated[tuple[str, ...], Meta(min_length=1)] | None = None
    algorithms: Annotated[tuple[str, ...], Meta(min_length=1)] | None = None
    regions: Annotated[tuple[str, ...], Meta(min_length=1)] | None = None
    hours: Annotated[tuple[str, ...], Meta(min_length=1)] | None = None
    business: Annotated[tuple[str, ...], Meta(min_length=1)] | None = None


class _RoleRow(Struct, frozen=True, forbid_unknown_fields=True):
    what: Annotated[str, Meta(min_length=1)]
    rules: Annotated[list[Any], Meta(min_length=1, max_length=MAX_RULES_PER_ROLE)]


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    roles: Annotated[dict[str, Any], Meta(min_length=1, max_length=MAX_ROLES)]
    limits: Any
    utc_offset: str = "+08:00"


def read_policy(data: bytes, catalogue: Catalogue) -> PolicyFile:
    """Read and check a policy file.

    Raises:
        PolicyError: it is no TOML, or anything in it is wrong.
    """
    if len(data) > MAX_BYTES:
        raise PolicyError([Fault(0, "", f"the file has more than {MAX_BYTES} bytes")])
    return _Reader(*_parsed(data), catalogue).read()


def _parsed(data: bytes) -> tuple[str, dict[str, Any]]:
    try:
        text = data.decode("utf-8")
        return text, tomllib.loads(text)
    except UnicodeDecodeError as error:
        fault = Fault(data.count(b"\n", 0, error.start) + 1, "", "this is not UTF-8")
    except tomllib.TOMLDecodeError as error:
        found = _TOML_LINE.search(str(error))
        line = int(found[1]) if found else 0
        fault = Fault(line, "", f"no TOML: {_TOML_LINE.sub('', str(error))}")
    except (ValueError, RecursionError):
        # A number with thousands of digits, or brackets in brackets in brackets.
        fault = Fault(
            0, "", "no TOML that a policy needs: a value is too large or nested too deeply"
        )
    raise PolicyError([fault])


class _Wrong(Exception):  # noqa: N818 - never leaves this module; what leaves it is PolicyError
    """A value of a rule is wrong; says which field, and why."""

    def __init__(self, field: str, what: str) -> None:
        super().__init__(what)
        self.field = field


class _Reader:
    """One file on its way to a policy. Faults are collected, so that all of them are told at once."""

    def __init__(self, text: str, content: dict[str, Any], catalogue: Catalogue) -> None:
        self._lines = text.split("\n")
        self._content = content
        self._catalogue = catalogue
        self._faults: list[Fault] = []
        self._headers: dict[str, list[int]] = {}
        for number, line in enumerate(self._lines, 1):
            header = _HEADER.match(line)
            if header is not None:
                self._headers.setdefault("".join(header[2].split()), []).append(number)

    def read(self) -> PolicyFile:
        try:
            file = msgspec.convert(self._content, _File)
        except msgspec.ValidationError as error:
            raise PolicyError([Fault(0, "", str(error))]) from None
        offset = self._offset(file.utc_offset)
        roles = {name: self._role(name, row) for name, row in file.roles.items()}
        limits = self._limits(file.limits)
        if self._faults or limits is None:
            raise PolicyError(self._faults)
        return PolicyFile(Policy(roles, self._catalogue, offset), limits)

    def _offset(self, text: str) -> int:
        try:
            return offset_of(text)
        except ValueError as error:
            self._fault(self._field_line(0, "utc_offset"), "", f"utc_offset: {error}")
            return 0

    def _limits(self, content: Any) -> Limits | None:
        try:
            limits = msgspec.convert(content, Limits)
        except msgspec.ValidationError as error:
            self._fault(self._limit_line(str(error)), "limits", str(error))
            return None
        for method in limits.rates.methods:
            if method not in self._catalogue.methods:
                line = self._limit_line(f"`$.rates.methods.{method}`")
                self._fault(line, "limits", f"rates.methods: {self._no_method(method)}")
        return limits

    def _role(self, name: str, content: Any) -> tuple[int, list[Rule]]:
        place = f"role {name!r}"
        line = next(iter(self._headers.get(f"roles.{name}", ())), 0)
        if not _ROLE.match(name):
            self._fault(
                line, place, "a role's name is lower-case letters, digits and -, at most 32"
            )
            return line, []
        place = f"role {name}"
        try:
            row = msgspec.convert(content, _RoleRow)
        except msgspec.ValidationError as error:
            self._fault(line, place, str(error))
            return line, []
        lines = self._headers.get(f"roles.{name}.rules", [])
        if not line or len(lines) != len(row.rules):
            self._fault(
                line,
                place,
                f"begin it with [roles.{name}] and each rule with [[roles.{name}.rules]]",
            )
            return line, []
        rules: list[Rule] = []
        for number, (at, rule) in enumerate(zip(lines, row.rules, strict=True), 1):
            self._rule(rules, at, name, number, rule)
        return line, rules

    def _rule(self, rules: list[Rule], line: int, role: str, number: int, content: Any) -> None:
        place = f"role {role}, rule {number}"
        try:
            rule = self._checked(line, role, number, msgspec.convert(content, _RuleRow))
        except msgspec.ValidationError as error:
            found = _UNKNOWN_FIELD.search(str(error)) or _BROKEN_FIELD.search(str(error))
            self._fault(self._field_line(line, found[1] if found else ""), place, str(error))
        except _Wrong as wrong:
            self._fault(self._field_line(line, wrong.field), place, f"{wrong.field}: {wrong}")
        else:
            for earlier in rules:
                if earlier.covers(rule):
                    # It would decide nothing, and whoever wrote it believes otherwise.
                    self._fault(
                        line, place, f"rule {earlier.number} (line {earlier.line}) allows all of it"
                    )
                    return
            rules.append(rule)

    def _checked(self, line: int, role: str, number: int, row: _RuleRow) -> Rule:
        methods = self._methods(row.methods)
        shapes = {method: self._catalogue.methods[method] for method in sorted(methods)}
        if len({shape.has_key for shape in shapes.values()}) > 1:
            raise _Wrong(
                "methods", f"{_list(shapes, lambda s: not s.has_key)} use no key: say them apart"
            )
        has_key = next(iter(shapes.values())).has_key
        if not has_key:
            for field in ("keys", "algorithms", "regions"):
                if getattr(row, field) is not None:
                    raise _Wrong(field, f"{', '.join(shapes)} use no key and no card")
        elif row.keys is None:
            raise _Wrong("keys", 'say which keys; all of them are ["*"]')
        if row.business is not None and not all(shape.has_business for shape in shapes.values()):
            raise _Wrong("business", f"{_list(shapes, lambda s: not s.has_business)} carry none")
        addresses = self._addresses(row.keys or ())
        self._require_use(row.keys or (), addresses, shapes)
        return Rule(
            line=line,
            role=role,
            number=number,
            why=row.why,
            methods=methods,
            addresses=frozenset[int]().union(*addresses),
            algorithms=_members("algorithms", row.algorithms, _ALGORITHMS),
            business=_members("business", row.business, _BUSINESS) if row.business else frozenset(),
            regions=_regions(row.regions),
            week=_week(row.hours),
        )

    def _methods(self, patterns: tuple[str, ...]) -> frozenset[str]:
        methods: set[str] = set()
        for pattern in patterns:
            if not _METHOD.match(pattern):
                raise _Wrong("methods", f"{pattern!r} is no method: write family.verb or family.*")
            regex = re.compile(re.escape(pattern).replace(r"\*", ".*"))
            found = {method for method in self._catalogue.methods if regex.fullmatch(method)}
            if not found:
                raise _Wrong("methods", self._no_method(pattern))
            if found <= methods:
                raise _Wrong("methods", f"{pattern} adds nothing to those before it")
            methods |= found
        return frozenset(methods)

    def _no_method(self, name: str) -> str:
        return f"there is no method {name} that terminals need a right for"

    def _addresses(self, entries: tuple[str, ...]) -> list[frozenset[int]]:
        """Return what each entry adds, in their order."""
        known: set[int] = set()
        added = []
        for entry in entries:
            named = self._named(entry)
            if named <= known:
                raise _Wrong("keys", f"{entry} adds nothing to those before it")
            added.append(named)
            known |= named
        return added

    def _named(self, entry: str) -> frozenset[int]:
        keys = self._catalogue.keys
        span = _RANGE.match(entry)
        if span is not None:
            first, last = int(span[1], 16), int(span[2], 16)
            if first >= last:
                raise _Wrong("keys", f"{entry} runs backwards or names one address: write it alone")
            for end in (first, last):
                self._require_known(end)
            return frozenset(address for address in keys if first <= address <= last)
        if _HEX.match(entry):
            if entry in self._catalogue.names:
                raise _Wrong(
                    "keys", f"{entry} is an address and a name: write its address as a range"
                )
            address = int(entry, 16)
            self._require_known(address)
            return frozenset((address,))
        if not _NAME.match(entry):
            raise _Wrong("keys", f"{entry!r} is no key: write 0090, 0170-0172, PUK, RK* or *")
        named = self._catalogue.addresses_named(entry)
        if not named:
            raise _Wrong("keys", f"no profile knows a key {entry}")
        return named

    def _require_known(self, address: int) -> None:
        if address not in self._catalogue.keys:
            raise _Wrong("keys", f"no profile knows the address {address:04X}")

    def _require_use(
        self, entries: tuple[str, ...], added: list[frozenset[int]], shapes: dict[str, Shape]
    ) -> None:
        """Insist that each key is of use to one of the methods, and each method has one of the keys."""
        can_use = self._catalogue.can_use
        for entry, addresses in zip(entries, added, strict=True):
            if not any(can_use(method, address) for method in shapes for address in addresses):
                raise _Wrong("keys", f"{entry} is of no use to {', '.join(shapes)}")
        every = frozenset[int]().union(*added)
        for method, shape in shapes.items():
            if shape.has_key and not any(can_use(method, address) for address in every):
                raise _Wrong("keys", f"none of them is of use to {method}")

    def _field_line(self, header: int, field: str) -> int:
        """Return the line in which a field of the table with that header stands, or else the header's."""
        begin = re.compile(rf"\A\s*{re.escape(field)}\s*=")
        for number in range(header + 1, len(self._lines) + 1):
            line = self._lines[number - 1]
            if _HEADER.match(line):
                break
            if field and begin.match(line):
                return number
        return header

    def _limit_line(self, error: str) -> int:
        """Return the line of the value that an error is about, or else of the nearest table around it."""
        found = _BROKEN_PATH.search(error)
        path = ["limits", *(found[1].split(".") if found else [])]
        unknown = _UNKNOWN_FIELD.search(error)
        path += [unknown[1]] if unknown else []
        for end in range(len(path), 0, -1):
            headers = self._headers.get(".".join(path[:end]))
            if headers:
                return self._field_line(headers[0], path[end] if end < len(path) else "")
        return min((at for at, line in enumerate(self._lines, 1) if "limits" in line), default=0)

    def _fault(self, line: int, place: str, what: str) -> None:
        self._faults.append(Fault(line, place, what))


_ALGORITHMS: Final = {algorithm.name: int(algorithm) for algorithm in CardAlgorithm}
_BUSINESS: Final = {f"{business:02d}": int(business) for business in Business}


def _members(field: str, names: tuple[str, ...] | None, known: dict[str, int]) -> frozenset[int]:
    found: set[int] = set()
    for name in names if names is not None else known:
        if name not in known:
            raise _Wrong(field, f"{name!r} is none of {', '.join(known)}")
        if known[name] in found:
            raise _Wrong(field, f"{name} is there twice")
        found.add(known[name])
    return frozenset(found)


def _regions(prefixes: tuple[str, ...] | None) -> tuple[str, ...]:
    if prefixes is None:
        return EVERYWHERE
    for i, prefix in enumerate(prefixes):
        if not _REGION.match(prefix):
            raise _Wrong("regions", f"{prefix!r} is not the first one to six digits of a region")
        if prefix.startswith(_ZHEJIANG) and len(prefix) > _CITY_DIGITS:
            # A county would be no restriction: a card of one passes for a card of another with the same keys.
            raise _Wrong("regions", f"{prefix}: Zhejiang's keys are by city, so say four digits")
        for other in prefixes[:i]:
            if prefix.startswith(other) or other.startswith(prefix):
                raise _Wrong("regions", f"{prefix} and {other} are one within the other")
    return prefixes


def _week(hours: tuple[str, ...] | None) -> int:
    if hours is None:
        return ALWAYS
    week = 0
    for text in hours:
        try:
            added = week_of(text)
        except ValueError as error:
            raise _Wrong("hours", str(error)) from None
        if not added & ~week:
            raise _Wrong("hours", f"{text} adds nothing to those before it")
        week |= added
    return week


def _list(shapes: dict[str, Shape], is_meant: Callable[[Shape], bool]) -> str:
    return ", ".join(method for method, shape in shapes.items() if is_meant(shape))
