"""What a PSAM that keyd plays can be issued as: which kinds of PSAM there are, and which keys cards have."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from msgspec import Struct

from keyd.cards.profile import newest
from keyd.cards.profile_files import load_profiles
from keyd.psam.profile_files import load_psam_profiles

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyd.cards.profile import ProfileKey
    from keyd.psam.profile import PsamProfile


class Catalogue(Struct, frozen=True):
    """Profiles of PSAMs by name, and the cards' keys."""

    profiles: Mapping[str, PsamProfile]
    places: tuple[ProfileKey, ...]


@functools.cache
def shipped_catalogue() -> Catalogue:
    """Return what keyd ships: its PSAM profiles, and the keys of the newest generation of cards."""
    return Catalogue(load_psam_profiles(), tuple(newest(load_profiles()).keys.values()))
