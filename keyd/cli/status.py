"""`keyd status`: what a running keyd is and how it does."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

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
from keyd.protocol.messages.daemon import AskStatus, DaemonState
from keyd.protocol.words import plain_result

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keyd.protocol.messages.daemon import KeyReport


@using(encryption)
def status(
    line: Encryption,
    connect: ConnectOption = DEFAULT_ADDRESS,
    terminal: TerminalOption = None,
    terminal_key_file: TerminalKeyOption = None,
    dev: DevOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show version, state, self-test, keys with check values, and counters of a running keyd.

    On the Unix socket, root and keyd's own user need no terminal.
    """
    with open_client(connect, terminal, terminal_key_file, dev=dev, line=line) as client:
        state = client.ask(AskStatus())
    if as_json:
        typer.echo(json.dumps(plain_result(state), ensure_ascii=False))
    else:
        _show(state)


def _show(state: DaemonState) -> None:
    console = Console()
    passed = sum(test.passed for test in state.selftest)
    synthetic = (
        " [bold red]public synthetic keys, for development only[/]" if state.synthetic_keys else ""
    )
    console.print(f"keyd {state.version}: {state.state}{synthetic}")
    console.print(f"algorithms {', '.join(state.algorithms)}; SM2 by {state.sm2}")
    console.print(f"self-test {passed} of {len(state.selftest)} passed")
    for test in state.selftest:
        if not test.passed:
            console.print(f"  [bold red]{test.name} failed[/]: {test.detail}")
    counters = ", ".join(f"{name} {count}" for name, count in state.counters.items())
    console.print(f"since the start: {counters}")
    if state.keys:
        console.print(_key_table(state.keys))


def _key_table(keys: Iterable[KeyReport]) -> Table:
    table = Table(title="keys", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    # As labels in logs and metrics have it: the domain, and the start of the key's id.
    table.add_column("key", no_wrap=True)
    # Only these two can be long. They fold, so that at 100 columns nothing else has to give way.
    table.add_column("address", overflow="fold", min_width=7)
    table.add_column("name", overflow="fold", min_width=6)
    for heading in ("set", "ver"):
        table.add_column(heading, no_wrap=True, justify="right")
    for heading in ("alg", "tier", "use", "state", "KCV"):
        table.add_column(heading, no_wrap=True)
    for key in keys:
        table.add_row(
            f"{key.domain}/{key.key_id[:4].hex()}",
            " ".join(f"{address:04X}" for address in key.addresses),
            Text(key.name),
            str(key.set),
            str(key.version),
            key.algorithm,
            key.tier,
            key.use,
            key.state,
            key.kcv.hex().upper(),
        )
    return table
