"""A keyd with a configuration, for what `--dev` does not let anybody choose: how many may connect."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from keyd.cards.profile import newest
from keyd.cards.profile_files import load_profiles
from keyd.crypto.algorithms import CardAlgorithm
from keyd.daemon import DEV_TERMINALS
from keyd.keys.roots import synthetic
from keyd.registry.synthetic import synthetic_terminals
from tests.founded import EVERYTHING, founded_store

if TYPE_CHECKING:
    from pathlib import Path


def write_config(folder: Path, connections: int, *lines: str) -> tuple[str, ...]:
    """Found a store with the synthetic keys, which needs no ceremony, and return the daemon's command.

    `lines` are put at the configuration's end.
    """
    places = newest(load_profiles()).key_places((CardAlgorithm.DES, CardAlgorithm.SM4))
    terminals = synthetic_terminals(DEV_TERMINALS)
    founded = founded_store(folder, synthetic(places), terminals=terminals)
    config = folder / "keyd.toml"
    config.write_text(
        f"""
        [store]
        url = "{founded.url}"
        [seal]
        credential = "{founded.credential}"
        [custody]
        socket = "{folder / "admin.sock"}"
        [policy]
        file = "{EVERYTHING}"
        [audit]
        folder = "{folder / "journal"}"
        [listen]
        tcp = ["127.0.0.1:0"]
        operations = "127.0.0.1:0"
        [limits]
        connections = {connections}
        """
        + "\n".join(lines)
    )
    return (sys.executable, "-m", "keyd.daemon", "--config", str(config))
