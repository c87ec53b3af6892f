"""`keyd status`: what a running keyd is and how it does."""

from __future__ import annotations

import json

import typer
from rich.console import Console
from rich.table import Table

from keyd.cli.common import (
    DEFAULT_ADDRESS,
    ConnectOption,
    DevOption,
    JsonOption,
    TerminalKeyOption,
    TerminalOption,
    open_client,
)
from keyd.protocol.messages.daemon import AskStatus, DaemonState
from keyd.protocol.reference import plain_result


def status(
    connect: ConnectOption = DEFAULT_ADDRESS,
    terminal: TerminalOption = None,
    terminal_key_file: TerminalKeyOption = None,
    dev: DevOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show version, state, self-test, keys with check values, and counters of a running keyd.

    On the Unix socket, root and keyd's own user need no terminal.
    """
    with open_client(connect, terminal, terminal_key_file, dev=dev) as client:
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
    table = Table("address", "name", "set", "algorithm", "levels", "KCV", title="keys")
    for key in state.keys:
        kcv = key.kcv.hex().upper()
        table.add_row(
            f"{key.address:04X}", key.name, str(key.set), key.algorithm, str(key.levels), kcv
        )
    console.print(table)
