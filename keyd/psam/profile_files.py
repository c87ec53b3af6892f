"""Profiles of PSAMs, read from a folder: TOML files, which may extend each other, and what is checked of each."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Final

import msgspec

from keyd.errors import BadParameter, RemoteProtocolError
from keyd.folders import load_folder, read_merged
from keyd.iso7816 import Atr
from keyd.psam.profile import PsamProfile, PsamProfileFile

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

# What the keys of an environment may be.
_ALGORITHMS: Final = {"DES": {"3DES", "DES"}, "SSF33": {"SSF33"}, "SM4": {"SM4"}}


def load_psam_profiles(folder: Traversable | None = None) -> dict[str, PsamProfile]:
    """Load every `*.toml` profile of a folder, by its name; keyd's own folder unless told.

    Raises:
        BadParameter: a profile is wrong; the sentence says which and where.
    """
    profiles: dict[str, PsamProfile] = {}
    folder = folder or resources.files("keyd.psam") / "profiles"
    for name, profile in load_folder(folder, _load_profile).items():
        if profile.name in profiles:
            raise BadParameter(f"{name}: profile {profile.name} is there twice")
        profiles[profile.name] = profile
    return profiles


def _load_profile(folder: Traversable, name: str) -> PsamProfile:
    file = msgspec.convert(read_merged(folder, name), PsamProfileFile)
    _check_environments(file)
    _check_files(file)
    _check_keys(file)
    try:
        Atr.parse_untrusted(bytes.fromhex(file.atr))
    except RemoteProtocolError as error:
        raise ValueError(str(error)) from None
    return PsamProfile(file)


def _check_environments(file: PsamProfileFile) -> None:
    rows = file.environments.values()
    if not rows:
        raise ValueError("there is no environment")
    _require_single("file id", [row.file_id for row in rows] + [file.application.file_id])
    _require_single("AID", [row.aid for row in rows] + [file.application.aid])
    for name, row in file.environments.items():
        if not row.key_algorithms or not set(row.key_algorithms.values()) <= _ALGORITHMS[name]:
            raise ValueError(f"environment {name} has no algorithm, or one of another environment")
    if "default" not in file.provinces:
        raise ValueError("provinces say no default")
    for province in file.provinces.keys() - {"default"}:
        if len(province) != 2 or not (province.isascii() and province.isdecimal()):
            raise ValueError(f"{province!r} is no province: two digits")


def _check_files(file: PsamProfileFile) -> None:
    _require_single("content", [row.content for row in file.files.values()])
    taken = {row.file_id for row in file.environments.values()} | {file.application.file_id}
    for file_id in file.files:
        if file_id in taken:
            raise ValueError(f"file {file_id} is a folder as well")


def _check_keys(file: PsamProfileFile) -> None:
    if any(int(kind, 16) > 0x1F for kind in file.kinds):
        raise ValueError("a type of keys has five bits")
    for kind, row in file.kinds.items():
        if row.is_own and (row.operations or row.is_by_version):
            raise ValueError(f"type {kind} is the PSAM's own: it has an id and is not delivered")
    if file.loading.permission is not None and not any(k.is_own for k in file.kinds.values()):
        raise ValueError("there is no type of own keys, and loading needs one")


def _require_single(what: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{what} {name} is there twice")
