"""What a log may say of a message: decided by the schema, field by field, once.

Fields marked `show` stand as they are, `mask` keep their first bytes, and everything else is left out, so
that a field nobody thought about is silent. Every message's repr is made here as well: a traceback or a debugger
says no more than a log line does.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final, get_type_hints

import msgspec
from msgspec import Meta, Struct

if TYPE_CHECKING:
    from collections.abc import Mapping

# Region and RID of a card identifier: enough to see whose card, not which.
_MASK_BYTES: Final = 3


@cache
def log_rules(message: type[Struct]) -> Mapping[str, str]:
    """Return for each field name how a log treats it: "show", "mask" or "hide"."""
    hints = get_type_hints(message, include_extras=True)
    return {name: _rule(hints[name]) for name in message.__struct_fields__}


def describe(message: Struct) -> dict[str, Any]:
    """Return what may be logged of a message, by field name; nested messages by dotted names."""
    described: dict[str, Any] = {}
    for name, rule in log_rules(type(message)).items():
        value = getattr(message, name)
        if rule == "mask" and isinstance(value, bytes):
            described[name] = value[:_MASK_BYTES].hex().upper() + "…"
        elif rule == "show" and isinstance(value, Struct):
            described |= {f"{name}.{key}": part for key, part in describe(value).items()}
        elif rule == "show" and isinstance(value, bytes):
            described[name] = value.hex().upper()
        elif rule == "show":
            described[name] = value
    return described


def _rule(hint: Any) -> str:
    for meta in getattr(hint, "__metadata__", ()):
        if isinstance(meta, Meta) and meta.extra is not None:
            return str(meta.extra.get("log", "hide"))
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return "show"  # its own fields decide
    return "hide"
