"""What a fuzz target is: a function of bytes with an invariant, seeds to begin from, and a way to change an input.

A target is a module of `tests/fuzz/targets/` that ends with `TARGET = Target(...)`. It is imported by name, so that
whoever measures coverage can prepare before keyd is imported.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from tests.fuzz.mutators import mutate_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

_PACKAGE: Final = "tests.fuzz.targets"

# What a target takes at most unless it says otherwise: beyond it, an input is slow and shows nothing new.
MAX_BYTES: Final = 4096


class Target(NamedTuple):
    """One target. Whatever `one_input` raises is a finding."""

    one_input: Callable[[bytes], None]
    seeds: Callable[[], Sequence[bytes]]
    mutate: Callable[[bytes, Random], bytes] = mutate_bytes
    max_bytes: int = MAX_BYTES


def names() -> list[str]:
    """List all targets by name."""
    package = importlib.import_module(_PACKAGE)
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def load(name: str) -> Target:
    """Import a target, and with it what it is about. A name with a dot is a module's whole name."""
    module = name if "." in name else f"{_PACKAGE}.{name}"
    return cast("Target", importlib.import_module(module).TARGET)
