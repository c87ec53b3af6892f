"""`keyd slot`: PSAMs of a keyd's pool in a reader of pcscd, for machines whose own slot is empty or broken."""

from __future__ import annotations

import re
from contextlib import ExitStack
from typing import Annotated, Final

import trio
import typer

from keyd.cards.profile import newest
from keyd.cards.profile_files import load_profiles
from keyd.cli.common import (
    DEFAULT_ADDRESS,
    ConnectOption,
    DevOption,
    TerminalKeyOption,
    TerminalOption,
    open_client,
    using,
)
from keyd.cli.encryption import Encryption, encryption
from keyd.cli.vpcd import MAX_SLOTS, driver_address, serve_until_told
from keyd.client.chip import LentChip
from keyd.config import ConfigError
from keyd.crypto.algorithms import CardAlgorithm
from keyd.vpcd import DEFAULT_PORT

_NUMBER: Final = re.compile(r"\A([0-9]{12}|any)\Z", re.ASCII)
_ADDRESS: Final = re.compile(r"\A[0-9A-Fa-f]{4}\Z", re.ASCII)


@using(encryption)
def slot(
    line: Encryption,
    keys: Annotated[
        list[str],
        typer.Argument(
            metavar="KEY...",
            help="The keys that the PSAM is for: names or addresses of 4 hex digits.",
        ),
    ],
    connect: ConnectOption = DEFAULT_ADDRESS,
    terminal: TerminalOption = None,
    terminal_key_file: TerminalKeyOption = None,
    dev: DevOption = False,
    driver: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where the driver has its first slot.")
    ] = f"127.0.0.1:{DEFAULT_PORT}",
    slots: Annotated[int, typer.Option(help="How many slots, each with a PSAM of its own.")] = 1,
    algorithm: Annotated[str, typer.Option(help="DES, SSF33 or SM4.")] = "SM4",
    number: Annotated[
        str, typer.Option(metavar="NUMBER", help="终端机编号 of a certain PSAM, 12 digits, or any.")
    ] = "any",
) -> None:
    """Put PSAMs of a keyd's pool into "Virtual PCD", the reader of vsmartcard-vpcd, until it is told to end."""
    if not 1 <= slots <= MAX_SLOTS:
        raise ConfigError(f"a virtual reader has 1 to {MAX_SLOTS} slots")
    if algorithm not in CardAlgorithm.__members__:
        raise ConfigError(f"{algorithm} is none of {', '.join(CardAlgorithm.__members__)}")
    if not _NUMBER.match(number):
        raise ConfigError("a PSAM's number (终端机编号) is 12 digits, or any")
    host, port = driver_address(driver)
    addresses = [_address(key) for key in keys]
    with ExitStack() as held:
        chips = []
        for _ in range(slots):
            # One line for each slot: what one waits for does not hold up another.
            client = open_client(connect, terminal, terminal_key_file, dev=dev, line=line)
            held.enter_context(client)
            # A wrong key or address is told now, and not by a chip that says nothing.
            client.connect()
            chip = LentChip(client, addresses, CardAlgorithm[algorithm], number)
            held.callback(chip.close)
            chips.append(chip)
        trio.run(serve_until_told, chips, host, port, _tell)


def _address(key: str) -> int:
    if _ADDRESS.match(key):
        return int(key, 16)
    return newest(load_profiles()).address_of(key)


def _tell(number: int, is_attached: bool) -> None:
    typer.echo(f"slot {number}: {'in' if is_attached else 'out'}", err=True)
