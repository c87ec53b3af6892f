"""Profiles of cards, read from a folder: TOML files and the table of key addresses (CSV)."""

from __future__ import annotations

import csv
import io
from importlib import resources
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta, Struct

from keyd.cards.profile import KeyRow, Profile, ProfileFile, ProfileKey, names_match
from keyd.errors import BadParameter
from keyd.folders import load_folder, read_merged
from keyd.keys.block import Use
from keyd.keys.hierarchy import CARD_DIVERSIFIERS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from importlib.resources.abc import Traversable


class _AddressRow(Struct, frozen=True):
    """A line of the table of key addresses, as text. Columns that keyd does not use are let be."""

    address_hex: Annotated[str, Meta(pattern=r"\A[0-9A-F]{4}\Z")]
    psam_type_hex: Annotated[str, Meta(pattern=r"\A[0-9A-F]{2}\Z")]
    psam_id_or_version_hex: Annotated[str, Meta(pattern=r"\A[0-9A-F]{2}\Z")]
    len_dec: Annotated[str, Meta(pattern=r"\A0?(8|16)\Z")]
    set: Annotated[str, Meta(pattern=r"\A0?[1-3]\Z")]
    name: Annotated[str, Meta(min_length=1)]


def load_profiles(folder: Traversable | None = None) -> dict[int, Profile]:
    """Load every `*.toml` profile of a folder, by generation; keyd's own folder unless told.

    Raises:
        BadParameter: a profile is wrong; the sentence says which and where.
    """
    profiles: dict[int, Profile] = {}
    folder = folder or resources.files("keyd.cards") / "profiles"
    for name, profile in load_folder(folder, _load_profile).items():
        if profile.generation in profiles:
            raise BadParameter(f"{name}: generation {profile.generation} is there twice")
        profiles[profile.generation] = profile
    return profiles


def _load_profile(folder: Traversable, name: str) -> Profile:
    file = msgspec.convert(read_merged(folder, name), ProfileFile)
    if file.card_diversifier not in CARD_DIVERSIFIERS:
        raise ValueError(f"no card diversifier is called {file.card_diversifier!r}")
    _check_names(file)
    return Profile(file, _read_addresses(folder / file.addresses, file.keys))


def _read_addresses(
    file: Traversable, keys: Mapping[str, Mapping[str, KeyRow]]
) -> dict[int, ProfileKey]:
    places = {
        name: (application, key)
        for application, named in keys.items()
        for name, key in named.items()
    }
    addresses: dict[int, ProfileKey] = {}
    lines = csv.DictReader(io.StringIO(file.read_text(encoding="utf-8")))
    for number, line in enumerate(lines, 2):
        try:
            row = msgspec.convert(line, _AddressRow)
        except msgspec.ValidationError as error:
            raise ValueError(f"{file.name}, line {number}: {error}") from None
        if row.name not in places:
            continue  # another generation's key
        application, key = places[row.name]
        address = int(row.address_hex, 16)
        if address in addresses:
            raise ValueError(f"{file.name}, line {number}: address {address:04X} is there twice")
        addresses[address] = ProfileKey(
            address=address,
            name=row.name,
            set=int(row.set),
            use=key.use,
            application=application,
            card_key_id=key.card_key_id,
            des_bytes=int(row.len_dec),
            psam_type=int(row.psam_type_hex, 16),
            psam_id=int(row.psam_id_or_version_hex, 16),
        )
    missing = places.keys() - {key.name for key in addresses.values()}
    if missing:
        raise ValueError(f"keys without an address: {', '.join(sorted(missing))}")
    return addresses


def _check_names(file: ProfileFile) -> None:
    names = [name for named in file.keys.values() for name in named]
    _require_single("key", names)
    if any(key.use is Use.TRANSPORT for named in file.keys.values() for key in named.values()):
        raise ValueError("no card has a key for transport")
    _require_single("prefix", [rule.prefix for rule in file.commands])
    used = [name for rule in file.commands for name in rule.messaging + rule.permission]
    used += [name for rule in file.files.values() for name in (rule.read, rule.write) if name]
    for name in used:
        if not any(names_match((name,), key) for key in names):
            raise ValueError(f"there is no key {name}")
    for rule in file.files.values():
        if rule.application not in file.applications:
            raise ValueError(f"there is no application {rule.application}")


def _require_single(what: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{what} {name} is there twice")
