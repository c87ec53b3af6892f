"""Nothing that a field hides is in any text made of its message; what it masks shows at most three bytes."""

from __future__ import annotations

import dataclasses
import traceback
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import pytest
from msgspec import Meta, Struct
from msgspec import inspect as types

from keyd.crypto.sm3 import sm3
from keyd.protocol.commands import TABLE
from keyd.protocol.fields import HIDE, MASK, SHOW, Message
from keyd.protocol.redaction import describe, log_rules

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# A PIN, and texts that a log could repeat.
TEXTS: Final = {
    "pin": "9173640258",
    "text": "03|0090|CANARY-TEXT|",
    "step1": "CANARY-1",
    "step2": "C2-RY",
    "name": "CANARY-NAME",
    "share": "CANARY-SHARE",
    "enrolment_code": "CANARY-CODE",
}

# How much of a value must be in a text before it counts as shown. Masks may show three bytes.
WINDOW: Final = 4


@dataclasses.dataclass
class Canary:
    """One hidden or masked value of a message: its dotted name and the ways to write it."""

    name: str
    spellings: tuple[str, ...]


def bare(kind: types.Type) -> types.Type:
    while isinstance(kind, types.Metadata):
        kind = kind.type
    return kind


def rule_of(kind: types.Type) -> str:
    assert isinstance(kind, types.Metadata)
    return str((kind.extra or {}).get("log"))


def spellings(value: Any) -> Iterator[str]:
    """Yield the ways in which a value, or a part of it, gets into a text."""
    if isinstance(value, bytes):
        size = min(WINDOW, len(value))
        for start in range(len(value) - size + 1):
            part = value[start : start + size]
            yield part.hex()
            yield part.hex().upper()
            yield repr(part)[2:-1]
            yield repr(list(part))[1:-1]
    else:
        yield str(value)
        if isinstance(value, int):
            yield f"{value:x}"
            yield f"{value:X}"


def planted(message: type[Struct], prefix: str = "") -> tuple[Any, list[Canary]]:
    """Make a message whose every value differs from all others; return it and what must not show."""
    info = types.type_info(message)
    assert isinstance(info, types.StructType)
    fields: dict[str, Any] = {}
    canaries: list[Canary] = []
    for field in info.fields:
        name, kind = prefix + field.name, bare(field.type)
        digest = sm3(f"{message.__name__}.{name}".encode())
        value: Any
        match kind:
            case types.StructType(cls=inner):
                fields[field.name], more = planted(inner, f"{name}.")
                canaries += more
                continue
            case types.BytesType(min_length=shortest):
                value = (digest * 10)[: 16 if shortest is None else shortest]
            case types.IntType(le=most):
                value = int.from_bytes(digest[:4], "big") % ((most or 2**32) + 1)
            case types.StrType():
                value = TEXTS.get(field.name, "plain")
            case types.BoolType():
                value = True
            case types.EnumType(cls=enumeration):
                value = list(enumeration)[-1]
            case types.VarTupleType(item_type=item) if isinstance(bare(item), types.StructType):
                inner_type = bare(item)
                assert isinstance(inner_type, types.StructType)
                inner_value, more = planted(inner_type.cls, f"{name}.")
                value = (inner_value,)
                canaries += more
            case types.VarTupleType():
                value = ("REGION_MISMATCH",)
            case _:
                value = {f"requests of {name}": 1}
        fields[field.name] = value
        if rule_of(field.type) != "show":
            canaries.append(Canary(name, tuple(spellings(value))))
    return message(**fields), canaries


MESSAGES: Final = sorted(
    {side for row in TABLE.values() for side in (row.request, row.response)},
    key=lambda message: message.__name__,
)
every_message = pytest.mark.parametrize("message", MESSAGES, ids=lambda m: m.__name__)


def require_silent(text: str, canaries: list[Canary]) -> None:
    told = [canary.name for canary in canaries if any(s in text for s in canary.spellings)]
    assert not told, f"{told} can be read in: {text}"


def hidden_names(message: type[Struct]) -> set[str]:
    return {name for name, rule in log_rules(message).items() if rule == "hide"}


def test_the_canaries_are_planted() -> None:
    from keyd.protocol.messages.card import PinReload

    message, canaries = planted(PinReload)
    assert {canary.name for canary in canaries} == {
        "card.card_id",
        "card.historical",
        "session_factor",
        "pin",
    }
    with pytest.raises(AssertionError, match="pin"):
        require_silent(f"a careless text: {message.pin}", canaries)


@every_message
@pytest.mark.parametrize(
    "show",
    [repr, str, "{}".format, "{!r}".format, "%s".__mod__, lambda message: repr([{"m": message}])],
    ids=["repr", "str", "format", "format!r", "%", "nested"],
)
def test_no_text_of_a_message_tells_a_hidden_field(
    message: type[Struct], show: Callable[[object], str]
) -> None:
    instance, canaries = planted(message)
    text = show(instance)
    assert message.__name__ in text
    require_silent(text, canaries)


@every_message
def test_what_is_logged_of_a_message_tells_no_hidden_field(message: type[Struct]) -> None:
    instance, canaries = planted(message)
    described = describe(instance)
    require_silent(repr(described), canaries)
    assert hidden_names(message).isdisjoint(described)


@every_message
def test_a_traceback_with_a_message_in_it_tells_no_hidden_field(message: type[Struct]) -> None:
    instance, canaries = planted(message)
    try:
        raise ValueError(instance)  # noqa: TRY301 - as a careless handler would
    except ValueError as error:
        told = traceback.TracebackException.from_exception(error, capture_locals=True)
    text = "".join(told.format()).replace(repr(canaries), "")
    require_silent(text, canaries)


@every_message
def test_what_refuses_a_message_does_not_quote_it(message: type[Struct]) -> None:
    # The sentence goes to the peer and into the log.
    instance, canaries = planted(message)
    params = msgspec.to_builtins(instance, builtin_types=(bytes,))
    for wrong in (
        [*params, b"x"],
        params[:-1],
        [str(part) for part in params],
        [[part] for part in params],
        [part * 40 if isinstance(part, bytes | str) else part for part in params],
        [part[:1] if isinstance(part, bytes | str) else part for part in params],
        {str(part): part for part in params},
    ):
        try:
            msgspec.convert(wrong, message, builtin_types=(bytes,))
        except msgspec.ValidationError as error:
            require_silent(str(error), canaries)


class Sample(Message, frozen=True):
    """Every rule, and the ways to forget one."""

    shown: Annotated[bytes, Meta(extra=SHOW)]
    shown_text: Annotated[str, Meta(extra=SHOW)]
    masked: Annotated[bytes, Meta(extra=MASK)]
    masked_text: Annotated[str, Meta(extra=MASK)]
    hidden: Annotated[bytes, Meta(extra=HIDE)]
    forgotten: Annotated[bytes, Meta(min_length=1)]
    misspelt: Annotated[bytes, Meta(extra={"log": "shwo"})]
    plain: bytes


SAMPLE: Final = Sample(b"\1\2\3\4", "text", b"\xa1\xa2\xa3\xa4", "name", *([b"secret"] * 4))


def test_a_field_that_does_not_say_is_hidden() -> None:
    rules = dict(log_rules(Sample))
    rules["misspelt"] = "hide" if rules["misspelt"] not in {"show", "mask"} else "shown"
    assert rules == {
        "shown": "show",
        "shown_text": "show",
        "masked": "mask",
        "masked_text": "mask",
        "hidden": "hide",
        "forgotten": "hide",
        "misspelt": "hide",
        "plain": "hide",
    }
    described = describe(SAMPLE)
    assert {name: value for name, value in described.items() if name != "masked_text"} == {
        "shown": "01020304",
        "shown_text": "text",
        "masked": "A1A2A3…",
    }
    # Three bytes of a text would be three letters; nobody has needed that yet.
    assert "name" not in str(described)


@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 16])
def test_a_mask_shows_at_most_three_bytes(length: int) -> None:
    value = sm3(b"masked")[:length]
    sample = msgspec.structs.replace(SAMPLE, masked=value)
    shown = describe(sample)["masked"]
    assert shown.endswith("…")
    assert bytes.fromhex(shown.removesuffix("…")) == value[:3]


def test_a_repr_is_what_a_log_may_say() -> None:
    assert repr(SAMPLE) == "<Sample shown=01020304 shown_text=text masked=A1A2A3…>"
