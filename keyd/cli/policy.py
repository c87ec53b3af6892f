"""`keyd policy`: check a policy file, and ask it who may do what, without a daemon."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer

from keyd.cards.profile_files import load_profiles
from keyd.cli.common import JsonOption
from keyd.cli.files import read_large
from keyd.config import ConfigError, read_policy_file
from keyd.crypto.algorithms import CardAlgorithm
from keyd.errors import BadParameter
from keyd.needs import catalogue
from keyd.policy import NO_KEY, Policy, PolicyFile, explain
from keyd.registry.listing import MAX_BYTES, read_csv
from keyd.registry.terminal import RoleName, TerminalCode

DEFAULT_FILE: Final = Path("/etc/keyd/policy.toml")

_HEX: Final = re.compile(r"\A(0x)?[0-9A-Fa-f]{1,4}\Z")
_REGION: Final = re.compile(r"\A([0-9]{6})?\Z")

FileOption = Annotated[Path, typer.Option("--policy", metavar="FILE", help="The policy file.")]
ProfilesOption = Annotated[
    Path | None, typer.Option("--profiles", help="A folder of card profiles, as [cards] has it.")
]


class _Listed(msgspec.Struct):
    """What is read of a terminal in a JSON list; all else is not looked at."""

    code: TerminalCode
    roles: tuple[RoleName, ...]


_decode_json: Final = msgspec.json.Decoder(list[_Listed]).decode

policy = typer.Typer(help="Check a policy file, and ask it who may do what.", no_args_is_help=True)


@policy.command("check")
def check(file: FileOption = DEFAULT_FILE, profiles: ProfilesOption = None) -> None:
    """Check a policy file as a whole; every fault names its line."""
    read = _read(file, profiles)
    roles = read.policy.role_lines
    rules = sum(len(read.policy.rules_of(frozenset((role,)))) for role in roles)
    typer.echo(f"{file}: {len(roles)} roles with {rules} rules")


@policy.command("explain")
def explain_command(
    terminal: Annotated[str, typer.Argument(metavar="TERMINAL", help="The terminal's code.")],
    method: Annotated[str, typer.Argument(metavar="METHOD", help="e.g. card.pin_reload")],
    address: Annotated[
        str,
        typer.Argument(metavar="ADDRESS", help="0090, or a key's name; - where no key is used."),
    ],
    roles: Annotated[
        list[str] | None, typer.Option("--role", help="A role of the terminal; more than once.")
    ] = None,
    terminals: Annotated[
        Path | None,
        typer.Option("--terminals", metavar="FILE", help="Its roles from a list, CSV or JSON."),
    ] = None,
    algorithm: Annotated[str, typer.Option(help="The card's: DES, SSF33 or SM4.")] = "SM4",
    region: Annotated[
        str, typer.Option(help="The card's six digits, where rules ask for it.")
    ] = "",
    at: Annotated[
        str | None, typer.Option("--at", help='Local time, "2026-11-23 10:00"; now unless said.')
    ] = None,
    file: FileOption = DEFAULT_FILE,
    profiles: ProfilesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say whether a terminal may do something, and which line decides; exit 1 if it may not.

    Its roles are those of --role, or what a list says of it that keyd terminal export wrote.
    """
    decides = _read(file, profiles).policy
    method = method.removesuffix("_batch")
    if method not in decides.catalogue.methods:
        raise ConfigError(f"there is no method {method} that terminals need a right for")
    if algorithm not in CardAlgorithm.__members__:
        raise ConfigError(f"{algorithm} is none of {', '.join(CardAlgorithm.__members__)}")
    if not _REGION.match(region):
        raise ConfigError("a region is six decimal digits")
    place = _address(decides, method, address)
    explained = explain(
        decides,
        frozenset(roles or ()) if terminals is None else _roles_in(terminals, terminal, roles),
        method,
        place,
        CardAlgorithm[algorithm] if place != NO_KEY else 0,
        region,
        _moment(at, decides.utc_offset_minutes),
    )
    if as_json:
        answer = {"terminal": terminal, "allowed": explained.is_allowed, "line": explained.line}
        typer.echo(json.dumps({**answer, "why": explained.words}, ensure_ascii=False))
    else:
        typer.echo(f"{terminal}: {explained.words} [{file}:{explained.line}]")
    if not explained.is_allowed:
        raise typer.Exit(1)


def _read(file: Path, profiles: Path | None) -> PolicyFile:
    return read_policy_file(file, catalogue(load_profiles(profiles)))


def _roles_in(file: Path, code: str, roles: list[str] | None) -> frozenset[str]:
    """Find a terminal's roles in a list.

    Raises:
        ConfigError: roles are said as well, the list cannot be read, or the terminal is not in it.
    """
    if roles:
        raise ConfigError("say --role or --terminals, not both")
    data = read_large(file, MAX_BYTES)
    try:
        listed = _decode_json(data) if file.suffix == ".json" else read_csv(data).specs
    except (msgspec.MsgspecError, ValueError, BadParameter) as error:
        raise ConfigError(f"{file}: {error}") from None
    found = [terminal for terminal in listed if terminal.code == code]
    if len(found) != 1:
        raise ConfigError(f"{file} has no good terminal {code}")
    return frozenset(found[0].roles)


def _address(decides: Policy, method: str, text: str) -> int:
    has_key = decides.catalogue.methods[method].has_key
    if (text == "-") is has_key:
        raise ConfigError(f"{method} uses {'a key: name it' if has_key else 'no key: write -'}")
    if not has_key:
        return NO_KEY
    if text in decides.catalogue.names:
        return min(decides.catalogue.addresses_named(text))
    if not _HEX.match(text):
        raise ConfigError(f"{text} is neither an address nor a key's name")
    return int(text, 16)


def _moment(text: str | None, offset_minutes: int) -> int:
    if text is None:
        return int(datetime.now(UTC).timestamp())
    try:
        local = datetime.strptime(text, "%Y-%m-%d %H:%M").replace(
            tzinfo=timezone(timedelta(minutes=offset_minutes))
        )
    except ValueError:
        raise ConfigError(f'{text!r} is no time: write "2026-11-23 10:00"') from None
    return int(local.timestamp())
