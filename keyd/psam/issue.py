"""Issue PSAMs with public synthetic keys, for development, demonstrations and tests: never for a real terminal."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

from keyd.cards.profile import newest
from keyd.cards.profile_files import load_profiles
from keyd.crypto.algorithms import Algorithm, CardAlgorithm
from keyd.crypto.secret import SecretKey
from keyd.keys.ring import KeyRing
from keyd.keys.roots import synthetic
from keyd.keys.synthetic import synthetic_psam_master_key
from keyd.psam.counters import Counters
from keyd.psam.keys import KeyAttributes, KeySet
from keyd.psam.ring import RingKeys
from keyd.psam.state import Psam

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyd.psam.counters import PsamMemory
    from keyd.psam.profile import PsamIdentity, PsamProfile

_CIPHERS: Final = {CardAlgorithm.DES: Algorithm.TDES, CardAlgorithm.SM4: Algorithm.SM4}


def synthetic_psam(
    profile: PsamProfile,
    identity: PsamIdentity,
    memory: PsamMemory,
    random_bytes: Callable[[int], bytes] = secrets.token_bytes,
) -> Psam:
    """Issue a PSAM with the synthetic roots of all cards and a synthetic master key for each environment.

    Raises:
        StoreUnavailable: its memory cannot be read.
    """
    cards = newest(load_profiles())
    ring = KeyRing(synthetic(cards.key_places(tuple(_CIPHERS))))
    own = KeySet()
    for algorithm, cipher in _CIPHERS.items():
        master = SecretKey.load(cipher, synthetic_psam_master_key(cipher))
        own.put(KeyAttributes(0x00, 0x00, cipher), algorithm, master)
    keys = RingKeys(ring, cards.keys.values(), own)
    counters = Counters(memory, profile.purchase.numbers_reserved)
    return Psam(profile, identity, keys, counters, random_bytes)
