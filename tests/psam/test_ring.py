"""The ring is a PSAM's keys: it decides each time what answers, and each time counts as one use."""

from __future__ import annotations

from typing import Final

import pytest
from msgspec.structs import replace

from keyd.cards.profile import newest
from keyd.cards.profile_files import load_profiles
from keyd.crypto.algorithms import Algorithm, CardAlgorithm
from keyd.crypto.secret import SecretKey
from keyd.errors import AlgorithmNotSupported, BadParameter, KeyExhausted, KeyStateRefused
from keyd.keys.block import KeyHeader, KeyState, Mode
from keyd.keys.hierarchy import CityKey, NationalKey, ProvincialKey, RootKey, card_key, levels_of
from keyd.keys.ring import KeyRing
from keyd.keys.roots import synthetic
from keyd.psam import (
    Applet,
    Counters,
    KeyAttributes,
    KeySet,
    OwnKey,
    Psam,
    PsamIdentity,
    RingKeys,
    TransientMemory,
)
from tests.psam.bench import PROFILES, SERIAL, TERMINAL, random_source
from tests.psam.commands import NEW_KEY, deliver

CARDS: Final = newest(load_profiles())
BOTH: Final = (CardAlgorithm.DES, CardAlgorithm.SM4)
RKSSSE: Final = 0x004C

Entries = list[tuple[KeyHeader, SecretKey]]


class Quota:
    """So many uses."""

    def __init__(self, left: int) -> None:
        self.left = left

    def take(self) -> bool:
        self.left -= 1
        return self.left >= 0


def entries(**changes: object) -> Entries:
    """The synthetic roots, with RKSSSE changed."""
    made = synthetic(CARDS.key_places(BOTH))
    return [
        (replace(header, **changes) if header.addresses == (RKSSSE,) else header, key)
        for header, key in made
    ]


def keys_of(ring: KeyRing, own: KeySet | None = None) -> RingKeys:
    return RingKeys(ring, CARDS.keys.values(), own or KeySet())


def applet_of(ring: KeyRing) -> Applet:
    identity = PsamIdentity(SERIAL, TERMINAL, environment=CardAlgorithm.SM4)
    counters = Counters(TransientMemory(), 1)
    psam = Psam(PROFILES["social-security"], identity, keys_of(ring), counters, random_source())
    applet = Applet(psam)
    applet.transmit(bytes.fromhex("00A4040006D15600000590"))
    return applet


DELIVER: Final = deliver("social-security", "SM4", 0x67, 0x0A)


@pytest.mark.parametrize("algorithm", BOTH)
def test_every_key_of_the_first_set_is_found_by_what_a_psam_calls_it(
    algorithm: CardAlgorithm,
) -> None:
    made = entries()
    kcvs = {(header.addresses[0], header.algorithm): header.kcv for header, _ in made}
    keys = keys_of(KeyRing(made))
    first = [place for place in CARDS.keys.values() if place.set == 1]
    assert len(first) == len({(place.psam_type, place.psam_id) for place in first})
    for place in first:
        found = keys.find(place.psam_type, place.psam_id, algorithm)
        assert isinstance(found, NationalKey)
        assert found.kcv() == kcvs[place.address, place.algorithm(algorithm)]
    assert keys.find(0x07, 0xC0, algorithm) is None
    with pytest.raises(AlgorithmNotSupported):
        keys.find(0x07, 0x0A, CardAlgorithm.SSF33)


def test_each_delivery_is_one_use() -> None:
    made = entries(ceiling=10)
    quotas = {header.key_id: Quota(3) for header, _ in made if header.ceiling}
    ring = KeyRing()
    ring.load(made, quotas)
    applet = applet_of(ring)
    answers = [applet.transmit(DELIVER).hex() for _ in range(5)]
    assert answers == ["9000"] * 3 + ["6985"] * 2
    with pytest.raises(KeyExhausted):
        keys_of(ring).find(0x07, 0x0A, CardAlgorithm.SM4)
    # Others are not counted.
    assert applet.transmit(deliver("social-security", "SM4", 0x67, 0x08)).hex() == "9000"


@pytest.mark.parametrize(
    "change",
    [
        {"state": KeyState.DEACTIVATED},
        {"state": KeyState.COMPROMISED},
        {"state": KeyState.PRE_ACTIVE},
        {"valid_until": 1},
        {"valid_from": 2**40},
        {"modes": (Mode.VERIFY,)},
    ],
)
def test_a_key_that_must_not_be_used_is_not_delivered(change: dict[str, object]) -> None:
    assert applet_of(KeyRing(entries(**change))).transmit(DELIVER).hex() == "6985"


def test_a_key_that_is_not_there_is_not_found() -> None:
    rest = [entry for entry in entries() if entry[0].addresses != (RKSSSE,)]
    assert applet_of(KeyRing(rest)).transmit(DELIVER).hex() == "6a88"


def test_when_the_officers_change_a_key_the_psam_has_the_new_one() -> None:
    ring = KeyRing(entries())
    applet = applet_of(ring)
    cipher = bytes.fromhex("80FA000010") + bytes(16) + b"\x10"
    assert applet.transmit(DELIVER).hex() == "9000"
    before = applet.transmit(cipher)
    other = SecretKey.load(Algorithm.SM4, NEW_KEY)
    ring.load(
        (header, other if header.algorithm is Algorithm.SM4 else key)
        for header, key in entries(kcv=other.kcv())
    )
    assert applet.transmit(DELIVER).hex() == "9000"
    after = applet.transmit(cipher)
    assert before[-2:] == after[-2:] == b"\x90\x00"
    assert before != after
    ring.load(entries(state=KeyState.COMPROMISED))
    assert applet.transmit(DELIVER).hex() == "6985"


def test_the_current_version_is_what_the_psam_has() -> None:
    newer = SecretKey.load(Algorithm.SM4, NEW_KEY)
    made = entries()
    (header,) = (
        header
        for header, _ in made
        if header.addresses == (RKSSSE,) and header.algorithm is Algorithm.SM4
    )
    second = replace(header, version=2, key_id=bytes(16), kcv=newer.kcv())
    found = keys_of(KeyRing([*made, (second, newer)])).find(0x07, 0x0A, CardAlgorithm.SM4)
    assert isinstance(found, NationalKey)
    assert found.kcv() == newer.kcv()


def test_what_was_loaded_into_the_psam_comes_first() -> None:
    own, ring = KeySet(), KeyRing(entries(state=KeyState.COMPROMISED))
    keys = keys_of(ring, own)
    with pytest.raises(KeyStateRefused):
        keys.find(0x07, 0x0A, CardAlgorithm.SM4)
    assert keys.attributes(0x07, 0x0A, CardAlgorithm.SM4) is None
    attributes = KeyAttributes(0x47, 0x0A, Algorithm.SM4)
    keys.put(attributes, CardAlgorithm.SM4, SecretKey.load(Algorithm.SM4, NEW_KEY))
    assert keys.attributes(0x07, 0x0A, CardAlgorithm.SM4) == attributes
    found = keys.find(0x07, 0x0A, CardAlgorithm.SM4)
    assert isinstance(found, ProvincialKey)
    # The own master key is no root.
    keys.put(
        KeyAttributes(0, 0, Algorithm.SM4),
        CardAlgorithm.SM4,
        SecretKey.load(Algorithm.SM4, NEW_KEY),
    )
    assert isinstance(keys.find(0, 0, CardAlgorithm.SM4), OwnKey)


@pytest.mark.parametrize(("level", "levels"), [(NationalKey, 3), (ProvincialKey, 2), (CityKey, 1)])
def test_a_root_takes_as_many_diversifiers_as_it_has_levels(
    level: type[RootKey], levels: int
) -> None:
    root = level(SecretKey.load(Algorithm.SM4, NEW_KEY))
    assert levels_of(root) == levels
    assert card_key(root, [bytes(8)] * levels).algorithm is Algorithm.SM4
    for wrong in (levels - 1, levels + 1):
        with pytest.raises(BadParameter, match="one diversifier for each"):
            card_key(root, [bytes(8)] * wrong)


def test_no_key_is_in_a_repr() -> None:
    applet = applet_of(KeyRing(entries()))
    applet.transmit(DELIVER)
    psam, channel = applet._psam, applet._channels[0]
    shown = repr(psam) + repr(channel) + repr(channel.working)
    assert "<CipherKey SM4>" in shown
    for entry_header, _ in entries()[:20]:
        assert entry_header.kcv.hex() not in shown
