"""`keyd key`: the keys of the store, by everything but themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from keyd.cli.common import Desk, officers_desk, using
from keyd.cli.proposing import find_key
from keyd.cli.words import label, moment
from keyd.client.officer import all_keys
from keyd.errors import KeyNotFound

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from keyd.protocol.messages.custody import StoredKey

app = typer.Typer(help="The keys of the store.", no_args_is_help=True)

_TIMES: Final = frozenset(
    {"valid_from", "valid_until", "created_at", "changed_at", "destroy_after"}
)


@app.command(name="list")
@using(officers_desk)
def list_keys(desk: Desk) -> None:
    """List the domain's keys by check value, whatever their state."""
    keys = all_keys(desk)
    desk.tell([_plain(key) for key in keys], _table(keys) if keys else ("there is no key",))


@app.command()
@using(officers_desk)
def show(
    desk: Desk,
    key: Annotated[
        str,
        typer.Argument(metavar="KEY", help="The key: its id, the beginning of it, or its label."),
    ],
) -> None:
    """Show all that is known of one key."""
    wanted = find_key(desk, key)
    found = [stored for stored in all_keys(desk) if stored.key_id == wanted]
    if not found:
        raise KeyNotFound(f"{desk.domain} has no key {key}")
    desk.tell(_plain(found[0]), _lines(found[0]))


def _plain(key: StoredKey) -> dict[str, Any]:
    return {
        **key.header,
        "key_id": key.key_id.hex(),
        "label": label(key.key_id, key.header),
        "is_gone": key.is_gone,
    }


def _lines(key: StoredKey) -> Iterator[str]:
    yield label(key.key_id, key.header)
    for name, value in _plain(key).items():
        if name == "label":
            continue
        shown = moment(int(value)) if name in _TIMES else value
        yield f"  {name.replace('_', ' '):16} {shown if shown != '' else '-'}"


def _table(keys: Iterable[StoredKey]) -> Iterator[str]:
    heading = ("key", "address", "name", "set", "ver", "alg", "tier", "state", "KCV")
    rows = [_row(key) for key in keys]
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    for row in (heading, *rows):
        cells = (f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def _row(key: StoredKey) -> tuple[str, ...]:
    header = key.header
    first, *more = header["addresses"].split() or ["-"]
    return (
        key.key_id[:4].hex(),
        f"{first}+{len(more)}" if more else first,
        header["name"],
        header["set"],
        header["version"],
        header["algorithm"],
        header["tier"],
        "gone" if key.is_gone else header["state"],
        header["kcv"],
    )
