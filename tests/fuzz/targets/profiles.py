"""A folder of card profiles is taken or refused with `BadParameter`, in a sentence that names the file.

The first byte says which file of the shipped folder the others stand in for.
"""

from __future__ import annotations

import shutil
import tempfile
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final

from keyd.cards.profile_files import load_profiles
from keyd.crypto.algorithms import CardAlgorithm
from keyd.errors import BadParameter
from tests.fuzz.mutators import mutate_bytes, mutate_text
from tests.fuzz.target import Target

if TYPE_CHECKING:
    from random import Random

SHIPPED: Final = Path(str(resources.files("keyd.cards") / "profiles"))
FILES: Final = sorted(path.name for path in SHIPPED.iterdir() if path.is_file())

_folder: Final = tempfile.TemporaryDirectory(prefix="keyd-fuzz-")
_HERE: Final = Path(_folder.name) / "profiles"
shutil.copytree(SHIPPED, _HERE, ignore=shutil.ignore_patterns("__pycache__"))


def one_input(data: bytes) -> None:
    if not data:
        return
    name = FILES[data[0] % len(FILES)]
    (_HERE / name).write_bytes(data[1:])
    try:
        profiles = load_profiles(_HERE)
    except BadParameter as refused:
        assert ".toml" in str(refused)
        return
    finally:
        shutil.copy(SHIPPED / name, _HERE / name)
    for generation, profile in profiles.items():
        assert profile.generation == generation
        profile.key_places(tuple(CardAlgorithm))


_WORDS: Final = (
    *("[keys.SSSE]", "[[a]]", "extends =", "generation =", "addresses =", "card_diversifier ="),
    *(
        '"generation-1.toml"',
        '"../x"',
        '"key_addresses.csv"',
        '"\\u0000"',
        '""',
        "[]",
        "{}",
        "true",
    ),
    *(
        "0",
        "-1",
        "4",
        "0x10",
        "1e9",
        "inf",
        "1979-05-27",
        "[" * 3000,
        "9" * 5000,
        ",",
        ",,,",
        '"',
        "\0",
    ),
    *("FFFF", "0170", "008", "IRK", "address_hex", "\r", "a" * 140_000),
)


def mutate(data: bytes, random: Random) -> bytes:
    if not data or random.random() < 0.05:
        return mutate_bytes(data, random)
    return data[:1] + mutate_text(data[1:], random, _WORDS)


def seeds() -> list[bytes]:
    return [bytes([n]) + (SHIPPED / name).read_bytes() for n, name in enumerate(FILES)]


TARGET = Target(one_input, seeds, mutate, max_bytes=256 * 1024)
