"""A command's params from the words of a command line, and a response as what prints: hex for bytes, on both sides.

card.card_id=51…  address=0x0173  encrypt=yes       one value each, dots for the message inside
keys=0x0170,0x004C                                  several, with commas
steps=[{"header": "00840000", "le": 8}]             messages, as JSON with the same values
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from keyd.errors import BadParameter
from keyd.protocol.reference import fields_of, flat_fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from keyd.protocol.commands import Command
    from keyd.protocol.reference import FieldReference

_TRUE: Final = frozenset({"true", "yes", "1"})
_FALSE: Final = frozenset({"false", "no", "0"})


def params_from_words(command: Command, words: Iterable[str]) -> list[Any]:
    """Build a command's params from `name=value` words. A value that cannot be read is not repeated: it may be a PIN.

    Raises:
        BadParameter: a word is not of that form, unknown, missing, or its value cannot be read.
    """
    given: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise BadParameter(f"{word!r} is not of the form name=value")
        if name in given:
            raise BadParameter(f"{name} is given twice")
        given[name] = value
    params = _params(command.request, given, "")
    if given:
        known = ", ".join(name for name, _field in flat_fields(command.request)) or "none"
        raise BadParameter(f"{command.method} has no field {min(given)}; it has: {known}")
    return params


def plain_result(value: Any) -> Any:
    """Turn a response into what prints: dictionaries, lists and upper-case hex."""
    if isinstance(value, Struct):
        return {name: plain_result(getattr(value, name)) for name in type(value).__struct_fields__}
    if isinstance(value, bytes):
        return value.hex().upper()
    if isinstance(value, (list, tuple)):
        return [plain_result(item) for item in value]
    return value


def _params(message: type[Struct], given: dict[str, str], prefix: str) -> list[Any]:
    params: list[Any] = []
    for field in fields_of(message):
        name = prefix + field.name
        if field.nested is not None:
            params.append(_params(field.nested, given, f"{name}."))
        elif name in given:
            params.append(_value(name, field, given.pop(name)))
        else:
            params.append(_default(name, field))
    return params


def _default(name: str, field: FieldReference) -> Any:
    if field.is_required:
        raise BadParameter(f"{name} is missing: {field.description or field.wire}")
    return field.default


def _value(name: str, field: FieldReference, text: str) -> Any:
    item = field.item
    if item is None:
        return _scalar(name, field, text)
    if item.nested is None:
        return [_scalar(name, item, part) for part in text.split(",")] if text else []
    try:
        return _plain(name, field, json.loads(text))
    except json.JSONDecodeError as error:
        raise BadParameter(f"{name} is no JSON: {error.msg} in line {error.lineno}") from None


def _plain(name: str, field: FieldReference, value: Any) -> Any:
    """Read what was written as JSON."""
    if field.nested is not None:
        return _message(name, field.nested, value)
    item = field.item
    if item is None:
        return _scalar(name, field, value)
    if not isinstance(value, list):
        raise BadParameter(f"{name} is not a list")
    return [_plain(f"{name}[{number}]", item, one) for number, one in enumerate(value)]


def _message(name: str, message: type[Struct], value: Any) -> list[Any]:
    if not isinstance(value, dict):
        raise BadParameter(f"{name} is not an object")
    fields = {field.name: field for field in fields_of(message)}
    for other in value.keys() - fields.keys():
        raise BadParameter(f"{name} has no field {other}; it has: {', '.join(fields)}")
    return [
        _plain(f"{name}.{inside}", field, value[inside])
        if inside in value
        else _default(f"{name}.{inside}", field)
        for inside, field in fields.items()
    ]


def _scalar(name: str, field: FieldReference, plain: Any) -> Any:
    read, what = _READERS.get(field.wire, (str, "text"))
    try:
        return read(plain)
    except (TypeError, ValueError):
        raise BadParameter(f"{name} is not {what}: {field.description}") from None


def _bool(plain: Any) -> bool:
    text = str(plain).lower()
    if text not in _TRUE | _FALSE:
        raise ValueError
    return text in _TRUE


def _int(plain: Any) -> int:
    return plain if type(plain) is int else int(plain, 0)


_READERS: Final[dict[str, tuple[Callable[[Any], Any], str]]] = {
    "bin": (bytes.fromhex, "hex"),
    "uint": (_int, "a number"),
    "bool": (_bool, "true or false"),
}
