"""The table rendered for people: the protocol manual, and what its fields are called.

Everything here is read off the table and the messages' own types and docstrings, so that it cannot be out of
date. `python -m keyd.protocol.reference` prints docs/protocol.md; a test keeps the file current.
"""

from __future__ import annotations

import enum
import inspect
import sys
import types
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    NamedTuple,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec
from msgspec import NODEFAULT, Meta, Struct

from keyd.errors import REFUSALS
from keyd.protocol import proof
from keyd.protocol.commands import BATCH_SUFFIX, MAX_BATCH, TABLE, Command, Role
from keyd.protocol.connection import MAX_ANSWER, MAX_MESSAGE, MAX_METHOD

if TYPE_CHECKING:
    from collections.abc import Iterable


class FieldReference(NamedTuple):
    """One field: what it is called, what it is on the wire, what it means, and its default if it has one."""

    name: str
    type: Any
    wire: str
    description: str
    default: Any

    @property
    def is_required(self) -> bool:
        """Whether it must be given."""
        return self.default is NODEFAULT

    @property
    def item(self) -> FieldReference | None:
        """What it is a list of, if it is one."""
        if get_origin(self.type) is not tuple:
            return None
        plain = _without_meta(get_args(self.type)[0])
        return FieldReference(self.name, plain, _wire_name(plain), self.description, NODEFAULT)

    @property
    def nested(self) -> type[Struct] | None:
        """The message inside, if it is one."""
        is_struct = isinstance(self.type, type) and issubclass(self.type, Struct)
        return self.type if is_struct else None


def fields_of(message: type[Struct]) -> list[FieldReference]:
    """Return a message's fields in the order of the wire."""
    hints = get_type_hints(message, include_extras=True)
    fields = []
    for field in msgspec.structs.fields(message):
        hint = hints[field.name]
        description = ""
        for meta in getattr(hint, "__metadata__", ()):
            if isinstance(meta, Meta) and meta.description:
                description = meta.description
        plain = _without_meta(hint)
        fields.append(
            FieldReference(field.name, plain, _wire_name(plain), description, field.default)
        )
    return fields


def flat_fields(message: type[Struct], prefix: str = "") -> list[tuple[str, FieldReference]]:
    """Return a message's fields with dotted names for those of messages inside it."""
    flat = []
    for field in fields_of(message):
        name = prefix + field.name
        flat += flat_fields(field.nested, f"{name}.") if field.nested else [(name, field)]
    return flat


def summary(command: Command) -> str:
    """Return the first line of what a command does."""
    return _doc(command.request)[0]


def _doc(message: type) -> list[str]:
    return inspect.cleandoc(message.__doc__ or "").split("\n")


def _without_meta(hint: Any) -> Any:
    return get_args(hint)[0] if hasattr(hint, "__metadata__") else hint


def _wire_name(plain: Any) -> str:
    if plain is bytes:
        return "bin"
    if plain is str:
        return "str"
    if plain is bool:
        return "bool"
    if isinstance(plain, type) and issubclass(plain, (int, enum.IntEnum)):
        return "uint"
    origin = get_origin(plain)
    if origin in (Union, types.UnionType):
        return " or ".join(_wire_name(_without_meta(part)) for part in get_args(plain))
    if origin is tuple:
        return f"array of {_wire_name(_without_meta(get_args(plain)[0]))}"
    if origin is dict:
        return "map"
    if isinstance(plain, type) and issubclass(plain, Struct):
        return f"array ({plain.__name__})"
    return "nil"


# The manual ---------------------------------------------------------------------------------------------


def manual() -> str:
    """Return docs/protocol.md."""
    parts = [_INTRODUCTION, _statuses(), "## Commands\n"]
    families: dict[str, list[Command]] = {}
    for command in TABLE.values():
        families.setdefault(command.family, []).append(command)
    introduced: set[str] = set()
    for family, commands in families.items():
        module = sys.modules[commands[0].request.__module__]
        parts.append(f"### {family}\n")
        if module.__name__ not in introduced:
            # Several families of custody are one module.
            introduced.add(module.__name__)
            parts.append(f"{inspect.cleandoc(module.__doc__ or '')}\n")
        if family == "terminal":
            parts.append(_proofs())
        parts += [_command(command) for command in commands]
    parts.append(_nested_messages())
    return "\n".join(parts)


def _command(command: Command) -> str:
    lines = [f"#### `{command.method}`\n", *_doc(command.request), ""]
    lines.append(f"Who may ask: {command.role.value}. Work: {command.cost.value}.")
    if command.has_batch:
        lines.append(f"Batch form: `{command.method}{BATCH_SUFFIX}`.")
    lines += ["", "Params:", "", _field_table(command.request)]
    lines += [f"Result ({_doc(command.response)[0]}):", "", _field_table(command.response)]
    return "\n".join(lines)


def _field_table(message: type[Struct]) -> str:
    fields = fields_of(message)
    if not fields:
        return "none.\n"
    lines = ["| # | field | type | meaning | default |", "| - | - | - | - | - |"]
    for number, field in enumerate(fields):
        default = "" if field.is_required else f"`{_shown_default(field)}`"
        description = field.description.replace("|", "\\|")
        lines.append(f"| {number} | {field.name} | {field.wire} | {description} | {default} |")
    return "\n".join(lines) + "\n"


def _shown_default(field: FieldReference) -> str:
    if field.name.endswith("address"):
        return f"0x{field.default:04X}"
    if isinstance(field.default, enum.IntEnum):
        return str(int(field.default))
    if field.default == ():
        return "[]"
    return str(field.default).lower() if isinstance(field.default, bool) else str(field.default)


def _proofs() -> str:
    return "\n".join(
        [
            "Proofs under a terminal key, and an example, are in [terminals.md](terminals.md#authentication).",
            "",
            inspect.cleandoc(proof.__doc__ or ""),
            "",
        ]
    )


def _nested_messages() -> str:
    nested: dict[str, type[Struct]] = {}
    for command in TABLE.values():
        for message in (command.request, command.response):
            for struct in _structs_in(message):
                nested.setdefault(struct.__name__, struct)
    lines = ["## Messages inside messages\n"]
    for name, struct in sorted(nested.items()):
        lines += [f"### {name}\n", *_doc(struct), "", _field_table(struct)]
    return "\n".join(lines).rstrip() + "\n"


def _structs_in(message: type[Struct]) -> Iterable[type[Struct]]:
    for field in fields_of(message):
        candidates = (field.type, *map(_without_meta, get_args(field.type)))
        for candidate in candidates:
            if isinstance(candidate, type) and issubclass(candidate, Struct):
                yield candidate


def _statuses() -> str:
    lines = [
        "## Statuses\n",
        "| status | name | meaning |",
        "| - | - | - |",
        "| 0 | OK | Success. |",
    ]
    for status, refusal in sorted(REFUSALS.items()):
        meaning = inspect.cleandoc(refusal.__doc__ or "")
        lines.append(f"| {int(status)} | {status.name} | {meaning} |")
    return "\n".join(lines) + "\n"


# What a role is, for the manual: a role without a line here is a KeyError when the manual is made.
_ROLE_MEANINGS: Final = {
    Role.ANYONE: "whoever can connect to a public listener",
    Role.TERMINAL: "a line on which an enrolled terminal has proved itself",
    Role.OPERATOR: "a terminal, or a process of root or keyd's own user on the public Unix socket",
    Role.ADMINISTRATION: "whoever can connect to the administration's socket; there is nobody yet who could sign",
    Role.OFFICER: "never directly: an officer's signed command, carried by `officer.command`",
    Role.ENROLMENT: "whoever can connect to an enrolment line, on which nothing else is answered",
    Role.SELF: "a terminal that has proven itself, whatever the policy gives its roles",
}

_ROLES: Final = "\n".join(
    ["| role | who that is |", "| - | - |"]
    + [f"| {role.value} | {_ROLE_MEANINGS[role]} |" for role in Role]
)

_INTRODUCTION: Final = f"""\
<!-- Generated: python -m keyd.protocol.reference > docs/protocol.md -->

# The protocol

keyd speaks [MessagePack-RPC](https://github.com/msgpack-rpc/msgpack-rpc/blob/master/spec.md) on TLS 1.3, on plain
TCP and on a Unix socket, the same bytes on each. A request is `[0, msgid, method, params]`, its answer
`[1, msgid, error, result]`. `error` is nil or `[status, name, detail]`: programs look at the status, the detail is a
sentence for people. Answers may come in any order; msgids are the client's to keep apart.

- A request has at most {MAX_MESSAGE} bytes, a method name at most {MAX_METHOD} characters; an answer has at most
  {MAX_ANSWER} bytes.
- Params are positional. Fields are only ever appended, with defaults, which may be left out from the end. keyd
  refuses fields that it does not know; a client ignores them in results.
- `bin` is MessagePack's binary type. A string in its place is refused.
- Bytes that are no such message: one answer with msgid nil and status 100, then keyd closes the line. A good
  message that breaks a rule: an error answer, and the line lives on. Notifications are refused with msgid nil.
- On TLS, whoever has said all says close_notify and may go on reading. A line that ends without it was cut: nothing
  that was not answered by then is.
- A batch method takes one param, a list of 1 to {MAX_BATCH} params lists, and answers a list of
  `[error, result]`, item by item.
- A line says `terminal.challenge` and `terminal.authenticate` first. The card commands are refused before.

"Who may ask" is a role:

{_ROLES}

The administration has a Unix socket of its own (`custody.socket` in keyd.toml), with mode 0600: keyd's own user and
root may connect, who are operators there too. It speaks the same protocol. The commands that are asked on it are
refused with ROLE_MISSING on every other listener. An officer's commands are refused with ROLE_MISSING
wherever they are asked directly: they come inside `officer.command`, signed over the connection's last challenge. A
sealed keyd refuses everything with SEALED but what the operator and the administration ask.

The card arithmetic is keyd's reading of the public card specification; what is not public is in
docs/architecture.md, marked as our reading.
"""


if __name__ == "__main__":
    sys.stdout.write(manual())
