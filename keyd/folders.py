"""A folder of TOML files, which may extend each other: what cards and PSAMs are is read from such.

A folder is checked as a whole when it is loaded, so that a wrong file is one sentence at the start and never a wrong
answer later.
"""

from __future__ import annotations

import csv
import tomllib
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec

from keyd.errors import BadParameter

if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.resources.abc import Traversable

LoadedT = TypeVar("LoadedT")


def load_folder(
    folder: Traversable, load: Callable[[Traversable, str], LoadedT]
) -> dict[str, LoadedT]:
    """Load every `*.toml` of a folder; return what `load` makes of folder and name, by file name in its order.

    Raises:
        BadParameter: a file is wrong; the sentence says which and where.
    """
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".toml"))
    except OSError as error:
        raise BadParameter(f"the profiles in {folder} cannot be read: {error.strerror}") from None
    if not names:
        raise BadParameter(f"there is no profile in {folder}")
    loaded = {}
    for name in names:
        try:
            loaded[name] = load(folder, name)
        except (ValueError, OSError, RecursionError, csv.Error, msgspec.ValidationError) as error:
            raise BadParameter(f"{name}: {error}") from None
    return loaded


def read_merged(folder: Traversable, name: str, extending: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read a TOML file and those that it extends, as one table.

    Raises:
        ValueError: it is no TOML, or the files extend each other in a circle.
        RecursionError: it is nested too deeply.
        OSError: one cannot be read.
    """
    if name in extending:
        raise ValueError(f"{' extends '.join((*extending, name))}")
    own = tomllib.loads((folder / name).read_text(encoding="utf-8"))
    base_name = own.pop("extends", None)
    if base_name is None:
        return own
    if not isinstance(base_name, str):
        raise ValueError("extends names a file")  # noqa: TRY004 - of the user's, not of ours
    return _merge(read_merged(folder, base_name, (*extending, name)), own)


def _merge(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    # Tables are joined, everything else replaces: an extending file says only what differs.
    merged = dict(base)
    for key, value in own.items():
        old = merged.get(key)
        joined = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = _merge(cast("dict[str, Any]", old), value) if joined else value
    return merged
