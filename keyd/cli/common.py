"""What the commands share: how to reach a keyd, as a terminal or as an officer, and how to print.

A command takes common options in groups: a group is a function whose parameters are options and which makes one thing
of them, and `using` gives its options to a command. So an option that thirty commands have is written once.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import msgspec
import typer

from keyd.cli.files import open_officer_key
from keyd.client import Backoff, Client, Enrolment
from keyd.client.officer import Identity, OfficerClient
from keyd.config import ConfigError, Listen, require_private
from keyd.custody.officers import OfficerCode
from keyd.keys.block import Domain
from keyd.keys.synthetic import synthetic_terminal_key
from keyd.registry.terminal import TerminalCode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from keyd.cli.encryption import Encryption
    from keyd.crypto.sm2 import Sm2PrivateKey
    from keyd.protocol.fields import Request, Response

ResponseT = TypeVar("ResponseT", bound="Response")

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

DEFAULT_ADMIN: Final = Path("/run/keyd/admin.sock")

AdminOption = Annotated[
    Path,
    typer.Option(
        "--admin", metavar="SOCKET", envvar="KEYD_ADMIN", help="keyd's administration socket."
    ),
]
ConfigOption = Annotated[
    Path, typer.Option("--config", metavar="FILE", help="The configuration, keyd.toml.")
]

# A person waits, but a rekey seals every row anew, and a backup reads the whole store.
_ADMIN_SECONDS: Final = 60.0

# Shared by all that list things; the house's outputs are readable at this width.
COLUMNS: Final = 100


def open_client(
    connect: str,
    terminal: str | None,
    terminal_key_file: Path | None,
    *,
    dev: bool,
    line: Encryption,
) -> Client:
    """Return a client as the options say.

    Raises:
        ConfigError: an option is wrong or they contradict each other.
    """
    enrolment = _enrolment(terminal, terminal_key_file, dev=dev)
    try:
        # A person waits: tell soon that nobody is there, rather than try for long.
        return Client(
            connect,
            enrolment,
            backoff=Backoff(attempts=1),
            tls=line.context,
            server_name=line.server_name,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None


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
    if not re.fullmatch(r"[0-9A-Fa-f]{32}", text):
        raise ConfigError(f"{key_file} does not hold 32 hex digits")
    return Enrolment(terminal, bytes.fromhex(text))


# Officers -------------------------------------------------------------------------------------------------


def using(*groups: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of some groups; what the groups make of them are its first arguments."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        options = [_parameters(group) for group in groups]
        own = _parameters(command)[len(groups) :]

        @functools.wraps(command)
        def run(**values: Any) -> None:
            made = [
                group(**{option.name: values.pop(option.name) for option in its_options})
                for group, its_options in zip(groups, options, strict=True)
            ]
            with contextlib.ExitStack() as open_things:
                for thing in made:
                    if isinstance(thing, Desk):
                        open_things.callback(thing.close)
                command(*made, **values)

        # By keyword only: then an option without a default may follow one with a default.
        everything = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in (*own, *(option for group in options for option in group))
        ]
        run.__signature__ = inspect.Signature(everything)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in everything}
        return run

    return decorate


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function, eval_str=True).parameters.values())


class Printer:
    """Prints one answer: as JSON for programs, or as lines for people."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def tell(self, plain: Any, lines: Iterable[str]) -> None:
        """Print what a command has to say."""
        if self.as_json:
            typer.echo(json.dumps(plain, ensure_ascii=False))
        else:
            for line in lines:
                typer.echo(line)

    def remark(self, line: str) -> None:
        """Say something by the way, which is no part of the answer."""
        if not self.as_json:
            typer.echo(line)


class Desk(Printer):
    """Where an officer sits: who it is, the line to keyd, and how answers are printed."""

    def __init__(
        self,
        admin: Path,
        domain: Domain,
        officer: str,
        key: Path,
        passphrase_file: Path | None,
        *,
        as_json: bool,
    ) -> None:
        super().__init__(as_json=as_json)
        self.admin = admin
        self.domain = domain
        self.officer = officer
        self._key_file = key
        self._passphrase_file = passphrase_file

    @functools.cached_property
    def private_key(self) -> Sm2PrivateKey:
        """The officer's private key; the passphrase is asked for once."""
        return open_officer_key(self._key_file, self._passphrase_file)

    @functools.cached_property
    def _client(self) -> OfficerClient:
        identity = Identity(self.domain.value, self.officer, self.private_key)
        return OfficerClient(str(self.admin), identity, timeout=_ADMIN_SECONDS)

    def ask(self, request: Request[ResponseT]) -> ResponseT:
        """Sign one command and have it done.

        Raises:
            Refusal, ConnectionLost: as `OfficerClient.ask`.
        """
        return self._client.ask(request)

    def close(self) -> None:
        """Hang up, if there ever was a line."""
        if "_client" in vars(self):
            self._client.close()

    @property
    def title(self) -> str:
        """The officer's name in the journal."""
        return f"{self.domain}/{self.officer}"


def officers_desk(
    domain: Annotated[
        Domain,
        typer.Option("--domain", envvar="KEYD_DOMAIN", case_sensitive=False, help="Whose officer."),
    ],
    officer: Annotated[
        str, typer.Option("--officer", metavar="CODE", envvar="KEYD_OFFICER", help="Who signs.")
    ],
    officer_key: Annotated[
        Path,
        typer.Option(
            "--key", metavar="FILE", envvar="KEYD_OFFICER_KEY", help="The officer's key file."
        ),
    ],
    passphrase_file: Annotated[
        Path | None,
        typer.Option(
            "--passphrase-file",
            metavar="FILE",
            envvar="KEYD_OFFICER_PASSPHRASE_FILE",
            help="File with its passphrase; asked for without it.",
        ),
    ] = None,
    admin: AdminOption = DEFAULT_ADMIN,
    as_json: JsonOption = False,
) -> Desk:
    """Make an officer's desk of the options that every officer's command has."""
    try:
        code = msgspec.convert(officer, OfficerCode)
    except msgspec.ValidationError:
        raise typer.BadParameter(
            f"{officer!r} is no officer's code", param_hint="--officer"
        ) from None
    return Desk(admin, domain, code, officer_key, passphrase_file, as_json=as_json)


def admin_client(admin: Path) -> Client:
    """Return a client on the administration's socket, for what needs no officer."""
    return Client(f"unix:{admin}", timeout=_ADMIN_SECONDS, backoff=Backoff(attempts=1))


def hex_bytes(text: str, length: int, what: str) -> bytes:
    """Read so many bytes in hex from the command line.

    Raises:
        typer.BadParameter: they are none.
    """
    if not re.fullmatch(rf"[0-9A-Fa-f]{{{2 * length}}}", text):
        raise typer.BadParameter(f"{what} is {2 * length} hex digits, not {text[:64]!r}")
    return bytes.fromhex(text)


def terminal_code(text: str) -> str:
    """Read a terminal's code from the command line.

    Raises:
        typer.BadParameter: it is none.
    """
    try:
        code: str = msgspec.convert(text, TerminalCode)
    except msgspec.ValidationError:
        raise typer.BadParameter(
            f"{text[:64]!r} is no terminal's code: 1 to 32 of A-Z a-z 0-9 . _ -"
        ) from None
    return code


def groups_of_4(text: str) -> str:
    """Return a text in groups of four, as people compare it."""
    return " ".join(text[at : at + 4] for at in range(0, len(text), 4))
