"""`keyd selftest`: the known-answer tests, here and now, without a daemon."""

from __future__ import annotations

import json

import typer

from keyd.cli.common import JsonOption
from keyd.crypto.selftest import run_selftest
from keyd.crypto.sm2 import backend_name


def selftest(as_json: JsonOption = False) -> None:
    """Run every known-answer test of every algorithm; exit 1 if one fails.

    A running keyd runs its own on `keyd call daemon.selftest`.
    """
    results = run_selftest()
    if as_json:
        typer.echo(json.dumps([result._asdict() for result in results], ensure_ascii=False))
    else:
        for result in results:
            typer.echo(f"{'ok  ' if result.passed else 'FAIL'}  {result.name}: {result.detail}")
        typer.echo(f"SM2 is computed by {backend_name()}")
    if not all(result.passed for result in results):
        raise typer.Exit(1)
