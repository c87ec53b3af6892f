"""Terminals as officers see them: read from keyd's answers, as a table, whole, and what became of a list of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from rich.cells import cell_len, set_cell_size

from keyd.cli.common import COLUMNS
from keyd.cli.words import count, moment, printable, terminal_lines
from keyd.client.officer import all_terminals
from keyd.errors import RemoteProtocolError
from keyd.registry.listing import Listed
from keyd.registry.terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from keyd.client.officer import Asks
    from keyd.protocol.messages.registry import TerminalReport
    from keyd.registry.listing import Reading
    from keyd.registry.terminal import TerminalState

# A person reads this many on a screen; the rest is in the file.
_MAX_TOLD: Final = 20

_decode_terminal: Final = msgspec.msgpack.Decoder(Terminal).decode


def listed_terminals(
    officer: Asks, search: str = "", state: TerminalState | None = None
) -> list[Listed]:
    """Ask for all terminals, or those that fit.

    Raises:
        RemoteProtocolError: a newer keyd has one that this program does not know.
    """
    reports = all_terminals(officer, search=search, state=state or "any")
    return [listed(report) for report in reports]


def listed(report: TerminalReport) -> Listed:
    """Read one terminal from keyd's answer.

    Raises:
        RemoteProtocolError: a newer keyd has one that this program does not know.
    """
    try:
        terminal = _decode_terminal(report.terminal)
    except (msgspec.MsgspecError, ValueError):
        raise RemoteProtocolError(
            "keyd has a terminal that this program cannot read: use the program of the daemon"
        ) from None
    return Listed(
        terminal, report.last_seen, report.last_source, report.authentications, report.failures
    )


def reading_lines(file: Path, reading: Reading, refused: Path | None) -> Iterator[str]:
    """Say what a list held: how many terminals, and which rows are refused and why."""
    yield f"{file}: {count(reading.specs, 'good terminal')}, {count(reading.refused, 'refused row')}"
    if reading.skipped:
        yield f"not read, because keyd keeps them itself: {', '.join(reading.skipped)}"
    faults = [f"row {row.number}: {fault}" for row in reading.refused for fault in row.faults]
    yield from faults[:_MAX_TOLD]
    if len(faults) > _MAX_TOLD:
        yield f"and {len(faults) - _MAX_TOLD} more"
    if refused is not None and reading.refused:
        yield f"the refused rows are in {refused}: mend them there and import that file"


def plain_reading(reading: Reading) -> dict[str, Any]:
    """Return what a list held, for JSON."""
    return {
        "good": len(reading.specs),
        "refused": [
            {"row": row.number, "faults": [fault._asdict() for fault in row.faults]}
            for row in reading.refused
        ],
        "skipped_columns": list(reading.skipped),
    }


def next_lines(made: Sequence[str]) -> Iterable[str]:
    """Say what comes after these proposals."""
    if not made:
        return ("nothing was proposed",)
    return (f"Another security officer reads and approves: keyd approve {' '.join(made)}",)


_HEADING: Final = ("code", "organisation", "region", "state", "roles", "last seen")

# Together with the others, which have a known width, they fill a line of 100 columns.
_WIDEST: Final = {"code": 20, "organisation": 22, "roles": 14}


def table(found: Sequence[Listed]) -> Iterator[str]:
    """Yield terminals as lines of at most 100 columns, with a heading."""
    rows = [_HEADING, *map(_row, found)]
    widths = [
        min(max(map(cell_len, column)), _WIDEST.get(heading, COLUMNS))
        for heading, column in zip(_HEADING, zip(*rows, strict=True), strict=True)
    ]
    for row in rows:
        # In cells: a Chinese character is two of them.
        cells = (set_cell_size(cell, width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def _row(one: Listed) -> tuple[str, ...]:
    terminal = one.terminal
    return (
        terminal.code,
        printable(terminal.spec.organisation),
        terminal.spec.region,
        terminal.state,
        ",".join(terminal.spec.roles),
        moment(one.last_seen).removesuffix(" UTC"),
    )


def show_lines(one: Listed) -> Iterator[str]:
    """Say all that is known of one terminal."""
    terminal = one.terminal
    yield from terminal_lines(terminal.spec)
    stopped = f": {printable(terminal.reason)}" if terminal.reason else ""
    yield f"  state           {terminal.state}{stopped}"
    yield f"  enrolled        {moment(terminal.enrolled_at)} by {printable(terminal.enrolled_by)}"
    if terminal.changed_at:
        yield f"  changed         {moment(terminal.changed_at)} by {printable(terminal.changed_by)}"
    if terminal.certificate:
        until = moment(terminal.certificate_until)
        yield f"  certificate     {terminal.certificate.hex().upper()}, valid until {until}"
    if terminal.enrolment_until:
        yield f"  enrolment code  given, holds until {moment(terminal.enrolment_until)}"
    seen = (
        f"{moment(one.last_seen)} from {printable(one.last_source)}" if one.last_seen else "never"
    )
    yield f"  last seen       {seen}"
    yield f"  proofs          {one.authentications} good, {one.failures} failed"
