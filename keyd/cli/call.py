"""`keyd call`: any method of the table from the shell, hex in and out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

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
from keyd.errors import BadParameter, MethodUnknown
from keyd.protocol.commands import BATCH_SUFFIX, TABLE, Command
from keyd.protocol.reference import flat_fields, summary
from keyd.protocol.words import params_from_words, plain_result

if TYPE_CHECKING:
    from collections.abc import Iterator

    from msgspec import Struct

    from keyd.protocol.reference import FieldReference


@using(encryption)
def call(
    line: Encryption,
    context: typer.Context,
    method: Annotated[
        str | None, typer.Argument(help="A method of the table, e.g. card.pin_unblock.")
    ] = None,
    connect: ConnectOption = DEFAULT_ADDRESS,
    terminal: TerminalOption = None,
    terminal_key_file: TerminalKeyOption = None,
    dev: DevOption = False,
    as_json: JsonOption = False,
    wants_help: Annotated[
        bool, typer.Option("--help", help="Show this, or a method's fields.")
    ] = False,
) -> None:
    """Call a method: keyd call METHOD name=value … Bytes are hex; a card is card.card_id=… and so on.

    Several values are written with commas, a list of messages as JSON: steps='[{"header": "00840000", "le": 8}]'.

    Without a method it lists them; keyd call METHOD --help shows a method's fields. A PIN does not belong
    on a command line: name=@FILE reads a value from a file, name=@- from standard input.
    """
    if method is None:
        typer.echo(context.get_help() if wants_help else "\n".join(_list_methods()))
        return
    command = _command(method)
    if wants_help:
        typer.echo("\n".join(_describe(command)))
        return
    params = params_from_words(command, map(_with_file, context.args))
    try:
        request = msgspec.convert(params, command.request, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise BadParameter(str(error)) from None
    with open_client(connect, terminal, terminal_key_file, dev=dev, line=line) as client:
        result = plain_result(client.ask(request))
    if as_json:
        typer.echo(json.dumps(result, ensure_ascii=False))
    else:
        for shown in _lines(result):
            typer.echo(shown)


def _command(method: str) -> Command:
    command = TABLE.get(method)
    if command is None:
        if method.endswith(BATCH_SUFFIX):
            raise MethodUnknown("batch methods are for programs; call the single one")
        raise MethodUnknown(f"there is no method {method!r}: keyd call lists them")
    return command


def _with_file(word: str) -> str:
    name, equals, value = word.partition("=")
    if not value.startswith("@"):
        return word
    try:
        text = sys.stdin.readline() if value == "@-" else Path(value[1:]).read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        raise BadParameter(f"the file for {name} cannot be read") from None
    return name + equals + text.rstrip("\r\n")


def _list_methods() -> Iterator[str]:
    width = max(map(len, TABLE))
    for command in TABLE.values():
        yield f"{command.method:{width}}  {summary(command)}"


def _describe(command: Command) -> Iterator[str]:
    yield f"keyd call {command.method} name=value …"
    yield ""
    yield summary(command)
    yield f"Who may ask: {command.role.value}."
    fields = list(_fields(command.request))
    if not fields:
        yield "It has no fields."
        return
    yield ""
    width = max(len(name) for name, _field in fields)
    wire = max(len(_wire(field)) for _name, field in fields)
    for name, field in fields:
        default = "" if field.is_required else f" (default {_plain_default(name, field.default)})"
        yield f"  {name:{width}}  {_wire(field):{wire}}  {field.description}{default}"


def _fields(message: type[Struct], prefix: str = "") -> Iterator[tuple[str, FieldReference]]:
    """What can be said, also of each message in a list of them."""
    for name, field in flat_fields(message, prefix):
        yield name, field
        if field.item is not None and field.item.nested is not None:
            yield from _fields(field.item.nested, f"{name}[].")


def _wire(field: FieldReference) -> str:
    is_messages = field.item is not None and field.item.nested is not None
    return "JSON" if is_messages else field.wire


def _plain_default(name: str, default: Any) -> str:
    if default in ((), b""):
        return "none"
    if isinstance(default, tuple):
        return ",".join(_plain_default(name, one) for one in default)
    if name.endswith(("address", "expected")):
        return f"0x{default:04X}"
    return str(default).lower() if isinstance(default, bool) else str(default)


def _lines(result: Any, prefix: str = "") -> Iterator[str]:
    for name, value in result.items():
        if isinstance(value, dict):
            yield from _lines(value, f"{prefix}{name}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for number, item in enumerate(value):
                yield from _lines(item, f"{prefix}{name}[{number}].")
        elif value != []:
            yield f"{prefix}{name}={' '.join(map(str, value)) if isinstance(value, list) else value}"
