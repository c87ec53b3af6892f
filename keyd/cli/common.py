"""What the commands share: how to reach a keyd, and how to print."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final

import typer

from keyd.client import Backoff, Client, Enrolment, parse_address
from keyd.config import ConfigError, Listen, require_private
from keyd.keys.synthetic import synthetic_terminal_key
from keyd.protocol.proof import TERMINAL_KEY_BYTES

DEFAULT_ADDRESS: Final = Listen().tcp[0]

# The terminal that --dev stands for; `keyd serve --dev` enrols it.
DEV_TERMINAL: Final = "DEV-0001"

ConnectOption = Annotated[
    str, typer.Option("--connect", metavar="ADDRESS", help="HOST:PORT, or unix:PATH.")
]
TerminalOption = Annotated[
    str | None, typer.Option("--terminal", metavar="CODE", help="Authenticate as this terminal.")
]
TerminalKeyOption = Annotated[
    Path | None,
    typer.Option("--terminal-key-file", help="File with the terminal's key, 32 hex digits."),
]
DevOption = Annotated[
    bool, typer.Option("--dev", help="Authenticate as DEV-0001 with its public synthetic key.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def open_client(
    connect: str, terminal: str | None, terminal_key_file: Path | None, *, dev: bool
) -> Client:
    """Return a client as the options say.

    Raises:
        ConfigError: an option is wrong or they contradict each other.
    """
    try:
        parse_address(connect)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    # A person waits: tell soon that nobody is there, rather than try for long.
    return Client(
        connect, _enrolment(terminal, terminal_key_file, dev=dev), backoff=Backoff(attempts=1)
    )


def _enrolment(terminal: str | None, key_file: Path | None, *, dev: bool) -> Enrolment | None:
    if dev:
        if terminal or key_file:
            raise ConfigError("--dev is a terminal of its own: leave out the other options")
        return Enrolment(DEV_TERMINAL, synthetic_terminal_key(DEV_TERMINAL))
    if terminal is None and key_file is None:
        return None
    if terminal is None or key_file is None:
        raise ConfigError("--terminal and --terminal-key-file go together")
    require_private(key_file)
    text = key_file.read_text(encoding="ascii", errors="replace").strip()
    if not re.fullmatch(rf"[0-9A-Fa-f]{{{2 * TERMINAL_KEY_BYTES}}}", text):
        raise ConfigError(f"{key_file} does not hold {2 * TERMINAL_KEY_BYTES} hex digits")
    return Enrolment(terminal, bytes.fromhex(text))
