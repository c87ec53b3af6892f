"""A keyd with a configuration, for what `--dev` does not let anybody choose: how many may connect."""

from __future__ import annotations

import os
import secrets
import sys
from typing import TYPE_CHECKING, Final

from keyd.cards.profile import newest
from keyd.cards.profile_files import load_profiles
from keyd.crypto.algorithms import CardAlgorithm
from keyd.daemon import DEV_TERMINALS
from keyd.keys import sealed
from keyd.keys.roots import synthetic
from keyd.keys.synthetic import synthetic_terminal_key

if TYPE_CHECKING:
    from pathlib import Path

# The keys under it are public.
_PASSPHRASE: Final = b"public"


def write_config(folder: Path, connections: int) -> tuple[str, ...]:
    """Write a configuration with the synthetic keys and terminals; return the daemon's command."""
    places = newest(load_profiles()).key_places((CardAlgorithm.DES, CardAlgorithm.SM4))
    key_file = folder / "roots.sealed"
    sealed.write_new(key_file, sealed.seal(synthetic(places), _PASSPHRASE, secrets.token_bytes))
    _write_private(folder / "passphrase", _PASSPHRASE.decode())
    terminals = (
        f'[terminals.{code}]\nkey = "{synthetic_terminal_key(code).hex()}"\n'
        for code in DEV_TERMINALS
    )
    _write_private(folder / "terminals.toml", "".join(terminals))
    config = folder / "keyd.toml"
    config.write_text(
        f"""
        [keys]
        sealed_file = "{key_file}"
        passphrase_file = "{folder / "passphrase"}"
        [terminals]
        file = "{folder / "terminals.toml"}"
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
