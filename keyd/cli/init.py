"""`keyd init`: new random roots in a sealed file.

The ceremony by which an organisation's own roots enter comes with the key store; until then a sealed file
holds roots that nobody has seen.
"""

from __future__ import annotations

import getpass
import json
import secrets
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from keyd.cards.profile import newest
from keyd.cards.profile_files import load_profiles
from keyd.cli.common import JsonOption
from keyd.config import ConfigError, read_passphrase
from keyd.crypto.algorithms import CardAlgorithm
from keyd.keys import sealed
from keyd.keys.roots import generate

# Whoever takes the file can try passphrases at leisure; scrypt makes each one dear, length makes them many.
MIN_PASSPHRASE_BYTES: Final = 12


class AlgorithmChoice(StrEnum):
    """Which cards the roots are for."""

    SM4 = "sm4"
    DES = "des"


def init(
    out: Annotated[
        Path, typer.Option("--out", help="The sealed key file to write. Never overwritten.")
    ],
    passphrase_file: Annotated[
        Path | None,
        typer.Option("--passphrase-file", help="File with the passphrase; asked for without it."),
    ] = None,
    algorithm: Annotated[
        list[AlgorithmChoice] | None,
        typer.Option("--algorithm", help="Which cards the roots are for; both unless told."),
    ] = None,
    levels: Annotated[
        int,
        typer.Option(min=1, max=3, help="3: national roots; 2: provincial; 1: city."),
    ] = 3,
    as_json: JsonOption = False,
) -> None:
    """Make a sealed key file: a random root for every key address, shown by check value only."""
    passphrase = read_passphrase(passphrase_file) if passphrase_file else _ask_passphrase()
    if len(passphrase) < MIN_PASSPHRASE_BYTES:
        raise ConfigError(f"the passphrase has less than {MIN_PASSPHRASE_BYTES} bytes")
    chosen = algorithm or list(AlgorithmChoice)
    places = newest(load_profiles()).key_places([CardAlgorithm[choice.name] for choice in chosen])
    keys = generate(places, levels, secrets.token_bytes)
    sealed.write_new(out, sealed.seal(keys, passphrase, secrets.token_bytes))
    if as_json:
        rows = [
            {
                "address": f"{header.address:04X}",
                "name": header.name,
                "set": header.set,
                "algorithm": header.algorithm.value,
                "levels": header.levels,
                "kcv": header.kcv.hex().upper(),
            }
            for header, _key in keys
        ]
        typer.echo(json.dumps(rows, ensure_ascii=False))
    else:
        for header, _key in keys:
            typer.echo(
                f"{header.address:04X} {header.name:8} set {header.set} {header.algorithm.value:4} "
                f"KCV {header.kcv.hex().upper()}"
            )
        typer.echo(f"{len(keys)} keys are in {out}. Without its passphrase they are lost.")


def _ask_passphrase() -> bytes:
    first = getpass.getpass("Passphrase for the sealed key file: ")
    if getpass.getpass("Once more: ") != first:
        raise ConfigError("the two passphrases differ")
    return first.encode()
