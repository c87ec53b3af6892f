"""Lists of terminals as CSV and JSON: what officers import, and what a card system is given.

A list that comes in is a stranger's: a cell that is not exactly what its column holds refuses its row, and no other.
Nothing is guessed, so of two rows with one code neither is taken. All refusals are told at once, for whoever has to
mend a thousand rows.

Spreadsheets compute a cell that begins with = + - or @. It is refused on its way in, and quoted on its way out.
"""

from __future__ import annotations

import csv
import io
import ipaddress
import re
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple, get_type_hints

import msgspec

from keyd.crypto.sm2 import PointNotOnCurve, Sm2PublicKey
from keyd.errors import BadParameter
from keyd.policy.week import week_of
from keyd.registry.terminal import (
    MAX_MOMENT,
    POINT_BYTES,
    PSAM_NUMBER_BYTES,
    PSAM_SERIAL_BYTES,
    Form,
    Interface,
    Proof,
    Terminal,
    TerminalSpec,
    require_good,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

# Ten thousand terminals are a province's; a row has some 200 bytes, and 700 with everything in it.
MAX_ROWS: Final = 10_000
MAX_BYTES: Final = 8 * 1024 * 1024

# The longest honest cell holds 16 times of 43 characters.
MAX_CELL: Final = 1024

# Also in the width of Chinese punctuation, which some spreadsheets take for the same.
_FORMULA: Final = tuple("=+-@＝＋－＠")
# What stands before a formula that was quoted, so that it comes back as nothing else.
_QUOTE: Final = "'"

# Within a cell. No role, network or time has one.
# An empty list, in a column where an empty cell means the usual one.
_NONE: Final = "none"

COLUMNS: Final = TerminalSpec.__struct_fields__

KEPT: Final = (
    *("state", "enrolled_by", "enrolled_at", "changed_by", "changed_at", "reason"),
    *("certificate", "certificate_until"),
    *("last_seen", "last_source", "authentications", "failures"),
)
"""What keyd itself says of a terminal: exported, and never read."""

REFUSED: Final = ("refused_row", "refused_because")
"""What stands before the cells of a refused row in the list of them, which can be mended and read again."""

_TIMES: Final = frozenset(
    {"valid_from", "valid_until", "enrolled_at", "changed_at", "certificate_until", "last_seen"}
)
_FIELDS: Final = {field.name: field for field in msgspec.structs.fields(TerminalSpec)}
_TYPES: Final = get_type_hints(TerminalSpec, include_extras=True)

# Two terminals that share one of these could pass for each other.
_UNIQUE: Final = ("code", "psam_number", "public_key")

_TIME: Final = re.compile(
    r"\A[0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9]{2}:[0-9]{2}(:[0-9]{2})?(Z|[+-][0-9]{2}:[0-9]{2})?)?\Z"
)
_HEX: Final = re.compile(r"\A([0-9A-Fa-f]{2})*\Z")
_DIGIT: Final = re.compile(r"\A[0-9]\Z")


class Fault(NamedTuple):
    """What is wrong with a row. The column is empty where it is the row as a whole."""

    column: str
    reason: str

    def __str__(self) -> str:
        return f"{self.column}: {self.reason}" if self.column else self.reason


class RefusedRow(NamedTuple):
    """A row that was not taken. The header is row 1, as a spreadsheet counts."""

    number: int
    cells: tuple[str, ...]
    faults: tuple[Fault, ...]


class Reading(NamedTuple):
    """What a list holds: good terminals, refused rows, and the columns that were not looked at."""

    header: tuple[str, ...]
    specs: tuple[TerminalSpec, ...]
    refused: tuple[RefusedRow, ...]
    skipped: tuple[str, ...]


class Listed(NamedTuple):
    """A terminal as a list shows it. Time is in Unix seconds, 0 is never."""

    terminal: Terminal
    last_seen: int = 0
    last_source: str = ""
    authentications: int = 0
    failures: int = 0


def read_csv(data: bytes) -> Reading:
    """Read a list of terminals from CSV (RFC 4180) in UTF-8, with or without a byte order mark.

    Raises:
        BadParameter: it is no such list as a whole: too long, not UTF-8, not CSV, or its header is not one.
    """
    header, numbered = _rows_of(data)
    columns = _known_columns(header)
    twice = _twice(columns, [row for _, row in numbered])
    specs: list[TerminalSpec] = []
    refused: list[RefusedRow] = []
    for number, row in numbered:
        spec, faults = _read_row(header, columns, row, twice)
        if spec is not None and not faults:
            specs.append(spec)
        else:
            refused.append(RefusedRow(number, tuple(row), tuple(faults)))
    skipped = tuple(name for name in header if name in KEPT)
    return Reading(header, tuple(specs), tuple(refused), skipped)


def read_spec(cells: Mapping[str, str]) -> TerminalSpec:
    """Read one terminal from cells by the names of their columns; one that is missing or empty is not said.

    Raises:
        BadParameter: a cell is not what its column holds, or the terminal could never prove itself. All is told.
    """
    spec, faults = _read_cells(cells)
    if spec is None:
        raise BadParameter("; ".join(map(str, faults)))
    return spec


def refused_csv(reading: Reading) -> bytes:
    """Return the refused rows as CSV, each after its number and what is wrong with it."""
    at = [index for index, name in enumerate(reading.header) if name not in REFUSED]
    kept = [reading.header[index] for index in at]
    rows = [
        [
            str(row.number),
            "; ".join(map(str, row.faults)),
            # What is beyond the header stays, so that a row with too many cells is still one.
            *(row.cells[index] for index in at if index < len(row.cells)),
            *row.cells[len(reading.header) :],
        ]
        for row in reading.refused
    ]
    return _csv([[*REFUSED, *kept], *rows])


def to_csv(listed: Iterable[Listed]) -> bytes:
    """Return terminals as CSV, in UTF-8 with a byte order mark, without which spreadsheets take it for GBK."""
    rows = [
        [_cell(name, value) for name, value in _values(one).items()]
        for one in sorted(listed, key=_code)
    ]
    return _csv([[*COLUMNS, *KEPT], *rows])


def to_plain(one: Listed) -> dict[str, Any]:
    """Return a terminal for JSON: bytes in hex, times in Unix seconds."""
    return {name: _plain(value) for name, value in _values(one).items()}


# Reading --------------------------------------------------------------------------------------------------


def _rows_of(data: bytes) -> tuple[tuple[str, ...], list[tuple[int, list[str]]]]:
    """Split a list into its header and the rows below, with their numbers."""
    if len(data) > MAX_BYTES:
        raise BadParameter(f"a list of terminals has at most {MAX_BYTES} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadParameter("the list is not UTF-8: save it as CSV UTF-8") from None
    # newline="": what is within quotes stays as it is.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[tuple[int, list[str]]] = []
    try:
        header = tuple(next(reader, ()))
        for number, row in enumerate(reader, start=2):
            # Rows without anything, as spreadsheets leave them at the end, are counted and passed over.
            if any(row):
                rows.append((number, row))
            if len(rows) > MAX_ROWS:
                raise BadParameter(f"a list of terminals has at most {MAX_ROWS} rows")
    except csv.Error as error:
        raise BadParameter(f"line {reader.line_num} is not CSV: {error}") from None
    if not header:
        raise BadParameter("the list is empty: its first row names the columns")
    return header, rows


def _known_columns(header: Sequence[str]) -> dict[str, int]:
    """Return where each column of a terminal's spec is."""
    for name, count in Counter(header).items():
        if name not in {*COLUMNS, *KEPT, *REFUSED}:
            raise BadParameter(f"the list has a column {name[:32]!r}, which terminals do not have")
        if count > 1:
            raise BadParameter(f"the list has the column {name} twice")
    missing = [name for name in COLUMNS if _FIELDS[name].required and name not in header]
    if missing:
        raise BadParameter(f"the list has no column {', '.join(missing)}")
    return {name: header.index(name) for name in COLUMNS if name in header}


def _twice(columns: dict[str, int], rows: Sequence[Sequence[str]]) -> dict[str, set[str]]:
    """Return what stands in two rows and may not. Rows with other faults count as well: either may be the right one."""
    found = {}
    for name in _UNIQUE:
        at = columns.get(name, MAX_CELL)
        # Hex digits are the same in either case; codes are not.
        counted = Counter(_same(name, row[at]) for row in rows if at < len(row) and row[at])
        found[name] = {cell for cell, count in counted.items() if count > 1}
    return found


def _same(name: str, cell: str) -> str:
    return cell if name == "code" else cell.upper()


def _read_row(
    header: Sequence[str],
    columns: dict[str, int],
    row: Sequence[str],
    twice: dict[str, set[str]],
) -> tuple[TerminalSpec | None, list[Fault]]:
    if len(row) != len(header):
        return None, [Fault("", f"the row has {len(row)} cells, and the header {len(header)}")]
    cells = {name: row[at] for name, at in columns.items()}
    spec, faults = _read_cells(cells)
    faults += [
        Fault(name, "another row has the same")
        for name in _UNIQUE
        if _same(name, cells.get(name, "")) in twice[name]
    ]
    return spec, faults


def _read_cells(cells: Mapping[str, str]) -> tuple[TerminalSpec | None, list[Fault]]:
    values: dict[str, Any] = {}
    faults: list[Fault] = []
    for name, field in _FIELDS.items():
        cell = cells.get(name, "")
        try:
            if cell:
                values[name] = _read_cell(name, cell)
            elif field.required:
                raise ValueError("it is missing")  # noqa: TRY301 - told as every other fault of a cell
        except ValueError as error:
            faults.append(Fault(name, str(error)))
    if faults:
        return None, faults
    spec = TerminalSpec(**values)
    try:
        require_good(spec)
    except BadParameter as refusal:
        return None, [Fault("", refusal.detail.removeprefix(f"{spec.code}: "))]
    return spec, []


def _read_cell(name: str, cell: str) -> Any:
    """Read one cell.

    Raises:
        ValueError: it is not what the column holds. The sentence does not repeat it: it may be a key in a wrong place.
    """
    if len(cell) > MAX_CELL:
        raise ValueError(f"a cell has at most {MAX_CELL} characters")
    if cell.startswith(_FORMULA):
        raise ValueError(f"a cell does not begin with {cell[0]}: a spreadsheet would compute it")
    if cell.startswith(_QUOTE) and cell[1:].startswith(_FORMULA):
        raise ValueError(
            f"a cell does not begin with {cell[:2]}: it was quoted when it was exported"
        )
    reader = _READERS.get(name, _text)
    try:
        return msgspec.convert(reader(cell), _TYPES[name], builtin_types=(bytes,))
    except (ValueError, msgspec.ValidationError):
        raise ValueError(f"it is not {_WANTED[name]}") from None


def _text(cell: str) -> str:
    return cell


def _list(cell: str) -> list[str]:
    return [] if cell == _NONE else cell.split(";")


def _no_empty_list(cell: str) -> list[str]:
    # An empty cell already means it.
    return cell.split(";")


def _numbers(cell: str) -> list[int]:
    items = _list(cell)
    if not all(map(_DIGIT.match, items)):
        raise ValueError
    return [int(item) for item in items]


def _networks(cell: str) -> list[str]:
    networks = _no_empty_list(cell)
    for network in networks:
        ipaddress.ip_network(network)
    return networks


def _hours(cell: str) -> list[str]:
    hours = _no_empty_list(cell)
    for each in hours:
        week_of(each)
    return hours


def _hex(cell: str) -> bytes:
    if not _HEX.match(cell):
        raise ValueError
    return bytes.fromhex(cell)


def _digits(cell: str) -> bytes:
    if len(cell) != 2 * PSAM_NUMBER_BYTES or not (cell.isascii() and cell.isdigit()):
        raise ValueError
    return bytes.fromhex(cell)


def _point(cell: str) -> bytes:
    point = _hex(cell)
    try:
        Sm2PublicKey.load(point)
    except PointNotOnCurve:
        raise ValueError from None
    return point


def _time(cell: str) -> int:
    if not _TIME.match(cell):
        raise ValueError
    moment = datetime.fromisoformat(cell)
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


_READERS: Final[dict[str, Callable[[str], Any]]] = {
    "roles": _no_empty_list,
    "proofs": _no_empty_list,
    "psam_number": _digits,
    "psam_serial": _hex,
    "generations": _numbers,
    "interfaces": _list,
    "networks": _networks,
    "hours": _hours,
    "valid_from": _time,
    "valid_until": _time,
    "public_key": _point,
}

_WORDS: Final = "at most 64 characters, none of them | or a control character"
_MOMENT: Final = "a time: 2027-01-01 or 2027-01-01T08:00+08:00"

_WANTED: Final = {
    "code": "a terminal's code, 1 to 32 of A-Z a-z 0-9 . _ -",
    "organisation": _WORDS,
    "region": "a region, six decimal digits",
    "roles": "one to eight roles in lower case, separated by ;",
    "proofs": f"{', '.join(Proof)} or several, separated by ;",
    "form": f"one of {', '.join(Form)}",
    "vendor": _WORDS,
    "model": _WORDS,
    "serial": _WORDS,
    "psam_number": "a 终端机编号, 12 decimal digits (in a spreadsheet the column has to be text)",
    "psam_serial": f"hex, at most {2 * PSAM_SERIAL_BYTES} digits and two for each byte",
    "driver_version": _WORDS,
    "generations": f"1, 2, 3 or several, separated by ;, or {_NONE}",
    "interfaces": f"{' or '.join(Interface)} or both, separated by ;, or {_NONE}",
    "networks": "at most 16 networks such as 10.1.2.0/24, separated by ;",
    "hours": "at most 16 times such as Mon-Fri 08:00-17:30, separated by ;",
    "valid_from": _MOMENT,
    "valid_until": _MOMENT,
    "public_key": f"an SM2 public key, {2 * POINT_BYTES} hex digits beginning with 04",
}


# Writing --------------------------------------------------------------------------------------------------


def _code(one: Listed) -> str:
    return one.terminal.code


def _values(one: Listed) -> dict[str, Any]:
    """Return what a list says of a terminal, by column. The trace of its enrolment code is not among it."""
    terminal = one.terminal
    return {name: getattr(terminal.spec, name) for name in COLUMNS} | {
        name: getattr(one, name) if name in Listed._fields else getattr(terminal, name)
        for name in KEPT
    }


def _cell(name: str, value: Any) -> str:
    if name in _TIMES:
        # keyd's own moments come from a clock, and are held to what has a date.
        return (
            datetime.fromtimestamp(min(value, MAX_MOMENT), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            if value
            else ""
        )
    if isinstance(value, tuple):
        usual = _FIELDS[name].default
        return ";".join(map(str, value)) or (_NONE if usual else "")
    return value.hex().upper() if isinstance(value, bytes) else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex().upper()
    return list(value) if isinstance(value, tuple) else value


def _csv(rows: Iterable[Sequence[str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(
        [_QUOTE + cell if cell.startswith(_FORMULA) else cell for cell in row] for row in rows
    )
    return text.getvalue().encode("utf-8-sig")
