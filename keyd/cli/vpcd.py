"""`keyd vpcd`: virtual PSAMs and simulated cards in a reader of pcscd, for any reader software."""

from __future__ import annotations

import os
import re
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import trio
import typer

from keyd.client import parse_address
from keyd.config import ConfigError
from keyd.crypto.algorithms import CardAlgorithm
from keyd.psam import FileMemory, PsamIdentity, load_psam_profiles, synthetic_psam
from keyd.psam.applet import Applet
from keyd.psam.profile import TERMINAL_BYTES
from keyd.simulator import issue_card
from keyd.vpcd import DEFAULT_PORT, serve

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from keyd.iso7816.chip_line import Chip
    from keyd.psam import PsamProfile

# As many readers as pcscd has room for.
MAX_SLOTS: Final = 16

_TERMINAL: Final = re.compile(rf"\A[0-9]{{{2 * TERMINAL_BYTES}}}\Z", re.ASCII)


def vpcd(
    slots: Annotated[
        list[str],
        typer.Argument(
            metavar="CHIP...",
            help="What is in each slot: psam, psam:PROFILE, or card (a simulated one).",
        ),
    ],
    dev: Annotated[
        bool, typer.Option("--dev", help="With public synthetic keys; there are no others yet.")
    ] = False,
    connect: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where the driver has its first slot.")
    ] = f"127.0.0.1:{DEFAULT_PORT}",
    environment: Annotated[
        str, typer.Option(help="What PSAMs wake up in, and cards compute: DES or SM4.")
    ] = "SM4",
    terminal: Annotated[
        str, typer.Option(help="The first PSAM's 终端机编号, 12 digits; the next have the next.")
    ] = "510100000001",
    state: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Where transaction numbers are kept; $XDG_STATE_HOME/keyd/vpcd unless said.",
        ),
    ] = None,
) -> None:
    """Put PSAMs that keyd plays, or simulated cards, into "Virtual PCD", the reader of vsmartcard-vpcd."""
    if not dev:
        raise ConfigError("keyd vpcd has public synthetic keys only, for development: say --dev")
    if len(slots) > MAX_SLOTS:
        raise ConfigError(f"a virtual reader has at most {MAX_SLOTS} slots")
    if environment not in ("DES", "SM4"):
        raise ConfigError(f"{environment} is neither DES nor SM4: software has no others")
    if not _TERMINAL.match(terminal):
        raise ConfigError("a terminal's number (终端机编号) is 12 digits")
    host, port = driver_address(connect)
    folder = state or _state_folder()
    algorithm = CardAlgorithm[environment]
    with ExitStack() as held:
        chips = [
            _chip(name, algorithm, int(terminal) + slot, folder, held)
            for slot, name in enumerate(slots)
        ]
        trio.run(serve_until_told, chips, host, port, _tell(slots))


async def serve_until_told(
    chips: Sequence[Chip], host: str, port: int, tell: Callable[[int, bool], None]
) -> None:
    """Put chips into slots until SIGINT or SIGTERM."""
    async with trio.open_nursery() as nursery:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as told:
            nursery.start_soon(serve, chips, host, port, tell)
            await anext(told)
        nursery.cancel_scope.cancel()


def driver_address(connect: str) -> tuple[str, int]:
    """Return where the driver listens.

    Raises:
        ConfigError: it is no HOST:PORT.
    """
    try:
        address = parse_address(connect)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if isinstance(address, str):
        raise ConfigError("the driver listens on a TCP port: HOST:PORT")
    return address


def _state_folder() -> Path:
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "keyd" / "vpcd"


def _chip(name: str, algorithm: CardAlgorithm, number: int, folder: Path, held: ExitStack) -> Chip:
    if name == "card":
        return issue_card(serial=number % 2**32, algorithm=algorithm)
    profile = _profile(name)
    digits = f"{number:012}"[-12:]
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made: {error.strerror}") from None
    memory = FileMemory(folder / f"{profile.name}-{digits}.json")
    held.callback(memory.close)
    identity = PsamIdentity(
        bytes.fromhex(digits.zfill(20)), bytes.fromhex(digits), environment=algorithm
    )
    return Applet(synthetic_psam(profile, identity, memory))


def _profile(name: str) -> PsamProfile:
    kind, _, profile_name = name.partition(":")
    profiles = load_psam_profiles()
    profile = profiles.get(profile_name or "social-security")
    if kind != "psam" or profile is None:
        raise ConfigError(f"{name!r} is no chip: card, psam, or psam: with {', '.join(profiles)}")
    return profile


def _tell(names: list[str]) -> Callable[[int, bool], None]:
    def tell(slot: int, is_attached: bool) -> None:
        typer.echo(f"slot {slot}, {names[slot]}: {'in' if is_attached else 'out'}", err=True)

    return tell
