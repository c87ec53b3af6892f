"""`keyd pool`: the PSAMs that a running keyd lends, and how each of them does."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from keyd.cli.common import (
    DEFAULT_ADDRESS,
    ConnectOption,
    DevOption,
    JsonOption,
    TerminalKeyOption,
    TerminalOption,
    open_client,
    using,
)
from keyd.cli.encryption import Encryption, encryption
from keyd.protocol.messages.psam import ListMembers
from keyd.protocol.words import plain_result

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keyd.protocol.messages.psam import PsamMember

_STYLES: Final = {"ready": "green", "quarantined": "bold red"}


@using(encryption)
def pool(
    line: Encryption,
    connect: ConnectOption = DEFAULT_ADDRESS,
    terminal: TerminalOption = None,
    terminal_key_file: TerminalKeyOption = None,
    dev: DevOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show the PSAMs that a running keyd lends: whether each serves, who waits for it, how often it failed.

    On the Unix socket, root and keyd's own user need no terminal.
    """
    with open_client(connect, terminal, terminal_key_file, dev=dev, line=line) as client:
        state = client.ask(ListMembers())
    if as_json:
        typer.echo(json.dumps(plain_result(state), ensure_ascii=False))
    elif state.members:
        Console().print(_table(state.members))
    else:
        typer.echo("no PSAM is there to be lent")


def _table(members: Iterable[PsamMember]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    # As wide as "virtual" and a number; the names of readers fold.
    table.add_column("PSAM", overflow="fold", min_width=20)
    for heading in ("终端机编号", "state"):
        table.add_column(heading, no_wrap=True)
    for heading in ("keys", "open", "waiting", "turns", "failed"):
        table.add_column(heading, no_wrap=True, justify="right")
    for member in members:
        table.add_row(
            Text(member.name),
            member.number or "not read",
            Text(member.state, _STYLES.get(member.state, "")),
            *(
                str(count)
                for count in (
                    member.keys,
                    member.sessions,
                    member.waiting,
                    member.turns,
                    member.failures,
                )
            ),
        )
    return table
