"""A keyd with a configuration, for what `--dev` does not let anybody choose: how many may connect."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from keyd.cards.profile import newest
from keyd.cards.profile_files import load_profiles
from keyd.crypto.algorithms import CardAlgorithm
from keyd.daemon import DEV_TERMINALS
from keyd.keys.roots import synthetic
from keyd.keys.synthetic import synthetic_terminal_key
from tests.founded import founded_store

if TYPE_CHECKING:
    from pathlib import Path


def write_config(folder: Path, connections: int) -> tuple[str, ...]:
    """Found a store with the synthetic keys, which needs no ceremony, and return the daemon's command."""
    places = newest(load_profiles()).key_places((CardAlgorithm.DES, CardAlgorithm.SM4))
    founded = founded_store(folder, synthetic(places))
    terminals = (
        f'[terminals.{code}]\nkey = "{synthetic_terminal_key(code).hex()}"\n'
        for code in DEV_TERMINALS
    )
    _write_private(folder / "terminals.toml", "".join(terminals))
    config = folder / "keyd.toml"
    config.write_text(
        f"""
        [store]
        url = "{founded.url}"
        [seal]
        credential = "{founded.credential}"
        [custody]
        socket = "{folder / "admin.sock"}"
        [terminals]
        file = "{folder / "terminals.toml"}"
        [audit]
        folder = "{folder / "journal"}"
        [listen]
        tcp = ["127.0.0.1:0"]
        operations = "127.0.0.1:0"
        [limits]
        connections = {connections}
        """
    )
    return (sys.executable, "-m", "keyd.daemon", "--config", str(config))


def _write_private(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
