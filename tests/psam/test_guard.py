"""An open PSAM computes with the keys that it was opened for, whatever is said to it and however."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyd.cards.profile import newest
from keyd.cards.profile_files import load_profiles
from keyd.crypto.algorithms import CardAlgorithm
from keyd.errors import NotAllowed, RemoteProtocolError
from keyd.iso7816 import CommandApdu
from keyd.keys.hierarchy import Region, city_diversifier, province_diversifier
from keyd.psam import (
    Applet,
    Dialects,
    Guard,
    KeySet,
    PsamIdentity,
    TransientMemory,
    load_psam_profiles,
    synthetic_psam,
)
from keyd.psam.level_index import Place
from keyd.psam.state import Psam
from tests.psam.commands import apdu, purchase

DES, SM4 = CardAlgorithm.DES, CardAlgorithm.SM4
PROFILES: Final = load_psam_profiles()
DIALECTS: Final = Dialects(PROFILES.values())
IDENTITY: Final = PsamIdentity(bytes(10), bytes.fromhex("510100000001"))

RKSSSE: Final = Place(0x07, 0x0A, SM4)
PUK: Final = Place(0x08, 0x10, SM4)
DPK: Final = Place(0x02, 0x01, SM4)

SELECT_SM4: Final = apdu("00A40000", bytes.fromhex("DDF2"))
SELECT_DES: Final = apdu("00A40000", bytes.fromhex("3F00"))
SELECT_DF01: Final = apdu("00A40400", bytes.fromhex("D15600000590"))
CHENGDU: Final = Region("510100")


def factors(region: str = CHENGDU, levels: int = 3) -> bytes:
    where = Region(region)
    return (bytes(8) + city_diversifier(where) + province_diversifier(where))[: 8 * levels]


def delivery(place: Place = RKSSSE, region: str = CHENGDU, levels: int = 3) -> bytes:
    block = 8 if place.algorithm is DES else 16
    header = f"BFDE{levels << 5 | place.kind:02X}{place.key_id:02X}"
    return apdu(header, factors(region, levels) + bytes(block))


class Slot:
    """An applet behind a guard, as an open PSAM is."""

    def __init__(self, *places: Place, region: str = "", profile: str = "social-security") -> None:
        self.guard = Guard(DIALECTS, frozenset(places), region)
        self.applet = Applet(synthetic_psam(PROFILES[profile], IDENTITY, TransientMemory()))

    def say(self, command: bytes) -> str:
        parsed = CommandApdu.parse_untrusted(command)
        self.guard.require_allowed(parsed)
        answer = self.applet.transmit(command)
        self.guard.note(parsed, int.from_bytes(answer[-2:], "big"))
        return answer[-2:].hex()

    def is_refused(self, command: bytes) -> bool:
        try:
            self.say(command)
        except NotAllowed:
            return True
        return False


def test_the_key_that_was_asked_for_is_delivered_and_no_other() -> None:
    slot = Slot(RKSSSE)
    assert slot.say(SELECT_SM4)[:2] == "61"
    assert slot.say(delivery(RKSSSE)) == "9000"
    for other in newest(load_profiles()).keys.values():
        place = Place(other.psam_type, other.psam_id, SM4)
        assert slot.is_refused(delivery(place)) is (place != RKSSSE)


def test_no_key_is_named_before_the_environment_is_known() -> None:
    slot = Slot(RKSSSE)
    assert slot.is_refused(delivery())
    assert slot.say(apdu("00A40000", b"\xff\xff")) == "6a82"
    assert slot.is_refused(delivery())
    slot.say(SELECT_DF01)
    assert slot.is_refused(delivery())


@pytest.mark.parametrize(
    "leave", [SELECT_DES, apdu("00A40400", bytes.fromhex("7378312E73682EC9E7BBE1B1A3D5CF"))]
)
def test_the_same_id_in_another_environment_is_another_key(leave: bytes) -> None:
    slot = Slot(RKSSSE)
    slot.say(SELECT_SM4)
    slot.say(leave)
    assert slot.is_refused(delivery(RKSSSE._replace(algorithm=DES)))
    slot.say(apdu("00A40400", bytes.fromhex("7378332E73682EC9E7BBE1B1A3D5CF")))
    assert slot.say(delivery()) == "9000"


def test_the_application_and_files_change_no_environment() -> None:
    slot = Slot(RKSSSE)
    slot.say(SELECT_SM4)
    for inner in (SELECT_DF01, apdu("00A40000", b"\x00\x1a"), apdu("00B00000", le=4)):
        slot.say(inner)
        assert slot.say(delivery()) == "9000"


def test_initialize_environment_takes_another_one() -> None:
    slot = Slot(RKSSSE, RKSSSE._replace(algorithm=DES))
    slot.say(SELECT_SM4)
    # It has no SSF33, and stays where it was.
    assert slot.say(apdu("BFEC0000", b"\x51")) == "9000"
    assert slot.guard.environment is DES
    assert slot.say(delivery(RKSSSE._replace(algorithm=DES))) == "9000"


def test_an_unknown_environment_names_no_key() -> None:
    # A PSAM of a kind that keyd does not know has entered a folder of its own.
    slot = Slot(RKSSSE)
    slot.say(SELECT_SM4)
    for name in (b"\xdd\xf7", b"7378"):
        parsed = CommandApdu.parse_untrusted(apdu("00A40400", name))
        slot.guard.environment = SM4
        slot.guard.note(parsed, 0x9000)
        assert slot.guard.environment is None
    slot.guard.environment = SM4
    slot.guard.note(CommandApdu.parse_untrusted(apdu("00A40000", b"\xdd")), 0x9000)
    assert slot.guard.environment is None


@pytest.mark.parametrize("sw", [0x6283, 0x6300])
def test_a_warning_leaves_the_environment_unknown(sw: int) -> None:
    for command in (SELECT_DF01, SELECT_DES, apdu("BFEC0000", b"\x51")):
        guard = Guard(DIALECTS, frozenset({RKSSSE}))
        guard.environment = SM4
        guard.note(CommandApdu.parse_untrusted(command), sw)
        assert guard.environment is None


@pytest.mark.parametrize("opened", ["5", "51", "510", "5101", "51010", "510100"])
def test_diversifiers_name_the_region_of_the_opening(opened: str) -> None:
    slot = Slot(RKSSSE, region=opened)
    slot.say(SELECT_SM4)
    assert slot.say(delivery()) == "9000"
    for other in ("520100", "510200", "110101"):
        assert slot.is_refused(delivery(region=other)) is not other.startswith(opened)
    # Of a provincial root there is the city's alone; a city's own has neither.
    assert not slot.is_refused(delivery(levels=2))
    assert slot.is_refused(delivery(region="620100", levels=2))
    assert not slot.is_refused(delivery(region="620100", levels=1))


def test_the_provinces_diversifier_is_looked_at_too() -> None:
    slot = Slot(RKSSSE, region="5101")
    slot.say(SELECT_SM4)
    mixed = bytes(8) + city_diversifier(CHENGDU) + province_diversifier(Region("110000"))
    assert slot.is_refused(apdu("BFDE670A", mixed + bytes(16)))


def test_zhejiang_is_by_city() -> None:
    slot = Slot(RKSSSE, region="330102")
    slot.say(SELECT_SM4)
    assert not slot.is_refused(delivery(region="330102"))
    assert not slot.is_refused(delivery(region="330106"))
    assert slot.is_refused(delivery(region="330206"))


def test_a_purchase_is_of_the_key_and_region_of_the_opening() -> None:
    slot = Slot(DPK, region="51")
    slot.say(SELECT_SM4)
    slot.say(SELECT_DF01)
    made = bytearray(purchase("social-security", "SM4"))
    made[5 + 28 : 5 + 28 + 24] = factors()
    assert slot.say(bytes(made)) == "9000"
    assert slot.say(apdu("80720000", bytes(4))) == "9302"
    for at, value in ((5 + 26, 2), (5 + 27, 0), (5 + 28 + 8, ord("4"))):
        other = bytearray(made)
        other[at] = value
        assert slot.is_refused(bytes(other)), at
    assert slot.is_refused(apdu("80700100", bytes(27)))
    assert slot.is_refused(apdu("80700700", bytes(52)))


def test_a_purchase_key_is_never_delivered() -> None:
    # Whoever had it for CIPHER DATA could make MAC1 without a transaction number.
    slot = Slot(DPK)
    slot.say(SELECT_SM4)
    assert slot.is_refused(delivery(DPK))


def test_the_other_dialect_is_held_to_the_same() -> None:
    slot = Slot(RKSSSE, profile="pboc", region="51")
    slot.say(SELECT_SM4)
    assert slot.say(apdu("801A670A", factors())) == "9000"
    assert slot.is_refused(apdu("801A6810", factors()))
    assert slot.is_refused(apdu("801A670A", factors("110101")))


@pytest.mark.parametrize(
    "command",
    [
        apdu("84D40011", bytes(36)),
        apdu("84D40111", bytes(36)),
        apdu("00820000", bytes(16)),
        apdu("00700000", le=1),
        # Another logical channel, by the class.
        apdu("01A40000", bytes.fromhex("DDF2")),
        apdu("BEDE670A", factors() + bytes(16)),
        apdu("81FA0000", bytes(16)),
        apdu("80E60000"),
        bytes.fromhex("BFDE670A000028") + bytes(40),
    ],
    ids=lambda command: command[:4].hex(),
)
def test_what_could_be_another_way_in_is_not_sent(command: bytes) -> None:
    slot = Slot(RKSSSE)
    slot.say(SELECT_SM4)
    try:
        CommandApdu.parse_untrusted(command)
    except RemoteProtocolError:
        pytest.fail("the case is meant to be a command")
    assert slot.is_refused(command)


class NotingKeys(KeySet):
    """Takes note of every key that a PSAM looks for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[tuple[int, int, CardAlgorithm]] = set()

    def find(self, kind: int, key_id: int, algorithm: CardAlgorithm) -> None:
        self.found.add((kind, key_id, algorithm))


SOME: Final = st.sampled_from(
    [
        *(SELECT_SM4, SELECT_DES, SELECT_DF01, delivery(), delivery(PUK), delivery(DPK)),
        *(apdu("BFEC0000", b"\x51"), apdu("BFEC0000", b"\x11"), purchase("social-security", "SM4")),
        *(delivery(RKSSSE._replace(algorithm=DES)), purchase("social-security", "DES")),
        *(apdu("00700000", le=1), apdu("80FA0000", bytes(16)), apdu("00820000", bytes(16))),
    ]
)


@given(
    opened=st.sets(st.sampled_from([RKSSSE, PUK, DPK, RKSSSE._replace(algorithm=DES)])),
    commands=st.lists(
        SOME | st.tuples(SOME, st.integers(0, 60), st.integers(0, 255)) | st.binary(max_size=40),
        max_size=12,
    ),
    profile=st.sampled_from(sorted(PROFILES)),
)
@settings(max_examples=400, deadline=None)
def test_whatever_is_said_the_psam_looks_for_no_other_key(
    opened: set[Place], commands: list[bytes | tuple[bytes, int, int]], profile: str
) -> None:
    """No sequence of commands, well made or not, makes the PSAM look for a key that it was not opened for."""
    slot = Slot(*opened, profile=profile)
    keys = NotingKeys()
    made = synthetic_psam(PROFILES[profile], IDENTITY, TransientMemory())
    slot.applet = Applet(Psam(made.profile, made.identity, keys, made.counters, bytes))
    for one in commands:
        command = one if isinstance(one, bytes) else _changed(*one)
        try:
            slot.is_refused(command)
        except RemoteProtocolError:
            continue
    assert keys.found <= set(opened)


def _changed(command: bytes, at: int, value: int) -> bytes:
    changed = bytearray(command)
    changed[at % len(changed)] = value
    return bytes(changed)
