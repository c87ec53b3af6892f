"""keyd.toml is taken whole or refused with `ConfigError`, in a sentence that names the file."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from keyd.config import Config, ConfigError, load_config
from tests.fuzz.mutators import mutate_text
from tests.fuzz.target import Target

if TYPE_CHECKING:
    from random import Random

SHIPPED: Final = Path(__file__).parents[3] / "conf" / "keyd.toml"

_folder: Final = tempfile.TemporaryDirectory(prefix="keyd-fuzz-")
_PATH: Final = Path(_folder.name) / "keyd.toml"

# A default as the file shows it: commented out at its value.
_SHOWN: Final = re.compile(rb"^#\s?(\[|[a-z_0-9]+ = )", re.MULTILINE)


def one_input(data: bytes) -> None:
    _PATH.write_bytes(data)
    try:
        config = load_config(_PATH)
    except ConfigError as error:
        assert str(error).startswith(str(_PATH))
        return
    assert isinstance(config, Config)
    # What is read twice is the same: nothing of it is left to chance.
    assert load_config(_PATH) == config


_WORDS: Final = (
    *("[listen]", "[[listen.tls]]", "[store]", "[audit]", "[limits]", "[policy]", "[terminals]"),
    *("[seal.pkcs11]", "[custody]", "[log]", "[a.b.c]", "url =", "folder =", "tcp =", "address ="),
    *(
        "kind =",
        "certificate =",
        "idle_seconds =",
        "connections =",
        "level =",
        "file =",
        "module =",
    ),
    *('"guomi"', '"x"', '""', "true", "-1", "0", "1e9", "nan", "inf", "[]", '["a"]', "{}", "'''"),
    *("1979-05-27T07:32:00Z", "07:32:00", "[" * 3000, "9" * 5000, '"\\u0000"', "0x10", "1_000"),
)


def mutate(data: bytes, random: Random) -> bytes:
    return mutate_text(data, random, _WORDS)


def seeds() -> list[bytes]:
    shipped = SHIPPED.read_bytes()
    return [shipped, _SHOWN.sub(rb"\1", shipped)]


TARGET = Target(one_input, seeds, mutate, max_bytes=16 * 1024)
