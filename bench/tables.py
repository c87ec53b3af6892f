"""Tables, for the console and as Markdown: rows of text under columns, some of which are words and not numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

# The widest table, which a narrower console would fold beyond reading.
_WIDTH: Final = 132

_WORDS: Final = frozenset({"point", "server", "ratio of", "what", "who", "unit"})


def console_for_tables() -> Console:
    """Return a console that is wide enough, whatever the terminal or the pipe says."""
    return Console(width=max(Console().width, _WIDTH))


def console_table(columns: Sequence[str], rows: Sequence[tuple[str, ...]]) -> Table:
    """Return a table for a console; rows that begin alike belong together."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, justify="left" if column in _WORDS else "right", no_wrap=True)
    are_grouped = len({row[0] for row in rows}) < len(rows)
    for row, following in zip(rows, (*rows[1:], None), strict=True):
        ends = are_grouped and following is not None and following[0] != row[0]
        table.add_row(*row, end_section=ends)
    return table


def markdown_table(columns: Sequence[str], rows: Sequence[tuple[str, ...]]) -> str:
    """Return a table for a page."""
    rule = ["---" if column in _WORDS else "---:" for column in columns]
    return "\n".join(f"| {' | '.join(row)} |" for row in (columns, rule, *rows))
