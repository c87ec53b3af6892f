"""The synthetic roots of every address, in a key ring and in a PSAM, the cards they make, and a driver for services."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import pytest

from keyd.cards.identity import Card, identify
from keyd.cards.profile import Profile, newest
from keyd.cards.profile_files import load_profiles
from keyd.crypto.algorithms import Algorithm, CardAlgorithm
from keyd.crypto.secret import SecretKey
from keyd.errors import Refusal
from keyd.keys.block import KEY_ID_BYTES, KeyPlace
from keyd.keys.hierarchy import CardKey, city_key, root_key
from keyd.keys.ring import KeyRing
from keyd.keys.roots import active_root, synthetic
from keyd.keys.synthetic import SYNTHETIC_LEVELS, synthetic_root
from tests.psam.sams import Divided, PsamSam

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keyd.cards.profile import ProfileKey
    from keyd.keys.sam import Sam, Steps

T = TypeVar("T")

# A card of Chengdu whose historical bytes agree with its identifier in everything.
CARD_ID: Final = bytes.fromhex("510100D15600000530000BEE00000000")
HISTORICAL: Final = bytes.fromhex("00814A44468649510130000BEE")


def drive(steps: Steps[T], sam: Sam) -> T:
    """Run a service to its end over a Sam, as the dispatch does."""
    try:
        tasks = next(steps)
        while True:
            results = sam.compute(tasks)
            refusal = next((result for result in results if isinstance(result, Refusal)), None)
            if refusal is None:
                tasks = steps.send([result for result in results if isinstance(result, bytes)])
                continue
            tasks = steps.throw(refusal)
    except StopIteration as finished:
        return cast("T", finished.value)


class Bench:
    """Cards, their keys and a Sam that has all of them."""

    card_id: Final = CARD_ID
    historical: Final = HISTORICAL

    def __init__(self, *, has_psam: bool) -> None:
        self.profiles = load_profiles()
        self._has_psam = has_psam
        places = newest(self.profiles).key_places((CardAlgorithm.DES, CardAlgorithm.SM4))
        self.ring = KeyRing(synthetic(places))
        self.sam = self.sam_of(self.ring)

    def sam_of(self, ring: KeyRing) -> Sam:
        """Return a ring, or a PSAM with its keys for whatever a PSAM does."""
        if not self._has_psam:
            return ring
        keys = newest(self.profiles).keys
        return Divided(PsamSam(ring, keys), ring, keys)

    def run(self, steps: Steps[T], sam: Sam | None = None) -> T:
        """Run a service over the synthetic keys, or over another Sam."""
        return drive(steps, sam or self.sam)

    def card(
        self,
        algorithm: CardAlgorithm = CardAlgorithm.SM4,
        generation: int = 3,
        card_id: bytes = CARD_ID,
        historical: bytes = HISTORICAL,
        key_version: int = 0,
    ) -> Card:
        """Return a card, by default the one of Chengdu with SM4."""
        return identify(self.profiles, card_id, historical, algorithm, generation, key_version)

    def profile(self, generation: int = 3) -> Profile:
        """Return a generation's profile."""
        return self.profiles[generation]

    def key(self, card: Card, address: int) -> CardKey:
        """Return a card's key, diversified step by step and past the ring."""
        algorithm = card.profile.keys[address].algorithm(card.algorithm)
        root = SecretKey.load(algorithm, synthetic_root(address, algorithm))
        city = city_key(root_key(root, SYNTHETIC_LEVELS), card.region)
        return city.diversify(card.diversifier)

    def ring_of(
        self, algorithm: Algorithm, material: bytes, levels: int, keys: Iterable[ProfileKey]
    ) -> KeyRing:
        """Return a ring with one root in all of these roles, as the worked examples have it."""
        return KeyRing(
            (
                active_root(
                    KeyPlace(role.address, "ROOT", role.set, algorithm, role.use),
                    levels,
                    key,
                    role.address.to_bytes(KEY_ID_BYTES, "big"),
                    "a worked example",
                ),
                key,
            )
            for role in keys
            for key in (SecretKey.load(algorithm, material),)
        )


@pytest.fixture(scope="session", params=["ring", "psam"])
def bench(request: pytest.FixtureRequest) -> Bench:
    """Cards and their keys, once in the ring and once in a PSAM: every service answers the same."""
    return Bench(has_psam=request.param == "psam")


@pytest.fixture(scope="session", params=[CardAlgorithm.SM4, CardAlgorithm.DES], ids=["SM4", "DES"])
def card(request: pytest.FixtureRequest, bench: Bench) -> Card:
    """A third-generation card of each algorithm that software computes."""
    return bench.card(cast("CardAlgorithm", request.param))


class Worked:
    """One worked example: its card and a ring that has its root wherever a service looks."""

    def __init__(self, bench: Bench, example: dict[str, Any]) -> None:
        self.example = example
        algorithm = Algorithm(example["algorithm"])
        sixteen = algorithm is Algorithm.SM4
        historical = bytes.fromhex(example["historical"])
        card_id = bytes.fromhex(f"{example['region']}D156000005") + historical[9:] + bytes(4)
        self.card = bench.card(
            CardAlgorithm.SM4 if sixteen else CardAlgorithm.DES, 3, card_id, historical
        )
        self.ring = bench.ring_of(
            algorithm,
            bytes.fromhex(example["root"]),
            example["levels"],
            self.card.profile.keys.values(),
        )
        self.sam = bench.sam_of(self.ring)

    def run(self, steps: Steps[T]) -> T:
        """Run a service over this example's keys."""
        return drive(steps, self.sam)


_VECTORS: Final = Path(__file__).parent.parent / "vectors" / "worked_examples.json"
_WORKED: Final = cast("dict[str, Any]", json.loads(_VECTORS.read_text()))


@pytest.fixture(
    scope="session",
    params=_WORKED["examples"],
    ids=lambda e: f"{e['algorithm']}-{e['levels']}-{e['region']}",
)
def worked(request: pytest.FixtureRequest, bench: Bench) -> Worked:
    """Each of the worked examples in turn."""
    return Worked(bench, cast("dict[str, Any]", request.param))


@pytest.fixture(scope="session")
def single_length(bench: Bench) -> Worked:
    """The worked example of a key of 8 bytes, which an STK is under DES."""
    return Worked(bench, _WORKED["single_length_stk"] | {"algorithm": "DES", "levels": 3})
