"""`keyd`: the commands, and the one place where an error becomes a sentence and an exit status."""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

import typer

from keyd import __version__
from keyd.cli import (
    audit,
    backup,
    cert,
    component,
    key,
    officer,
    policy,
    propose,
    psam,
    seal,
    store,
    terminal,
)
from keyd.cli import proposals as proposals_module
from keyd.cli.call import call
from keyd.cli.demo import demo
from keyd.cli.init import init
from keyd.cli.pool import pool
from keyd.cli.proposals import approve, proposals, reject
from keyd.cli.selftest import selftest
from keyd.cli.slot import slot
from keyd.cli.status import status
from keyd.cli.vpcd import vpcd
from keyd.client import ConnectionLost
from keyd.config import ConfigError
from keyd.errors import LocalProtocolError, Refusal, RemoteProtocolError

# Arguments that belong to somebody else's parser pass through ours untouched.
_PASS_THROUGH = {"ignore_unknown_options": True, "allow_extra_args": True}

app = typer.Typer(
    help="Key management and terminal authentication for China's social security cards (社会保障卡).",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"keyd {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


@app.command(context_settings=_PASS_THROUGH, add_help_option=False)
def serve(context: typer.Context) -> None:
    """Run the daemon: keyd serve --config FILE, or keyd serve --dev with public synthetic keys."""
    become_daemon(context.args)


def become_daemon(arguments: list[str]) -> NoReturn:
    """Turn this process into the daemon: same process id, nothing of the command line left in it."""
    # -P: the folder that keyd is started in is no place to import from.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "keyd.daemon", *arguments])  # noqa: S606


app.command()(demo)
app.command()(status)
app.command()(pool)
app.command(context_settings=_PASS_THROUGH, add_help_option=False)(call)
app.command()(selftest)
app.command()(vpcd)
app.command()(slot)
app.add_typer(audit.app, name="audit")
app.add_typer(policy.policy, name="policy")

# Who may ask.
app.add_typer(terminal.app, name="terminal")
app.add_typer(cert.app, name="cert")
app.add_typer(psam.app, name="psam")

# Custody, in the order of a ceremony.
app.add_typer(officer.app, name="officer")
app.command()(init)
app.command()(seal.unseal)
app.command()(seal.seal)
app.command()(seal.rekey)
app.add_typer(seal.share_app, name="share")
app.add_typer(propose.app, name="propose")
app.command()(proposals)
app.add_typer(proposals_module.app, name="proposal")
app.command()(approve)
app.command()(reject)
app.add_typer(component.app, name="component")
app.add_typer(key.app, name="key")
app.command()(backup.backup)
app.command(name="verify-backup")(backup.verify)
app.command()(backup.restore)
app.add_typer(store.app, name="store")


def main() -> None:
    """Run the command line; errors are sentences on standard error, and the exit status is 1."""
    try:
        app(prog_name="keyd")
    except (Refusal, ConnectionLost, ConfigError, RemoteProtocolError, LocalProtocolError) as error:
        name = error.status.name + ": " if isinstance(error, Refusal) else ""
        typer.echo(f"keyd: {name}{error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
