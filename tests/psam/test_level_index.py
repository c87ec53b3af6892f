"""The level index says what a PSAM has: every key that it lets be used, at its level, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from keyd.cards.profile import newest
from keyd.cards.profile_files import load_profiles
from keyd.crypto.algorithms import CardAlgorithm
from keyd.errors import RemoteProtocolError
from keyd.iso7816 import SW, CommandApdu, UnexpectedStatusWord, converse
from keyd.psam.level_index import Place, every_place, identify_and_probe
from tests.psam.bench import ALGORITHMS, PROFILES, SERIAL, SYNTHETIC, TERMINAL, make_applet

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyd.psam import Applet
    from keyd.psam.level_index import MemberFacts

CARDS: Final = newest(load_profiles())

# Every type and every id that there could be.
EVERYTHING: Final = [
    Place(kind, key_id, algorithm)
    for algorithm in CardAlgorithm
    for kind in range(0x20)
    for key_id in (*range(0x20), 0x41, 0x4B, 0xC0)
]

# Of the bench's keys, those that serve a terminal; type 09 is delivered to nobody.
EXPECTED: Final = {
    Place(kind, key_id, algorithm): levels
    for kind, key_id, levels, _ in SYNTHETIC
    for algorithm in ALGORITHMS.values()
    if kind in (0x02, 0x06, 0x07, 0x08)
}

dialects = pytest.mark.parametrize("profile", ["social-security", "pboc"])


class Wire:
    """The way to an applet: it counts, and may answer some commands itself."""

    def __init__(
        self, applet: Applet, answer: Callable[[CommandApdu], int | None] = lambda _: None
    ) -> None:
        self.applet = applet
        self.answer = answer
        self.commands: list[CommandApdu] = []

    def transmit(self, message: bytes) -> bytes:
        command = CommandApdu.parse_untrusted(message)
        self.commands.append(command)
        sw = self.answer(command)
        return self.applet.transmit(message) if sw is None else sw.to_bytes(2, "big")


def probed(wire: Wire, profile: str = "social-security") -> MemberFacts:
    places = EVERYTHING
    return converse(identify_and_probe(places, PROFILES[profile], b"ATR"), wire.transmit)


@dialects
@pytest.mark.parametrize("environment", ["DES", "SM4"])
def test_every_key_is_found_at_its_level_and_nothing_else(profile: str, environment: str) -> None:
    facts = probed(Wire(make_applet(profile, environment)), profile)

    assert facts.levels == EXPECTED
    assert (facts.serial, facts.terminal, facts.atr) == (SERIAL, TERMINAL, b"ATR")
    assert facts.number == TERMINAL.hex()


@dialects
def test_no_terminal_transaction_number_is_spent(profile: str) -> None:
    applet = make_applet(profile)
    before = applet.next_number

    probed(Wire(applet), profile)

    assert applet.next_number == before


def test_a_purchase_key_at_an_unlikely_level_is_found_for_one_number() -> None:
    applet = make_applet()
    before = applet.next_number
    purchase = Place(0x02, 0x01, CardAlgorithm.SM4)
    # The only other key stands at one level, so three are thought unlikely.
    places = [Place(0x06, 0x19, CardAlgorithm.SM4), purchase]

    dialogue = identify_and_probe(places, PROFILES["social-security"])
    facts = converse(dialogue, applet.transmit)

    assert facts.levels[purchase] == 3
    assert applet.next_number == before + 1


def test_keys_of_one_level_take_one_command_each() -> None:
    wire = Wire(make_applet())
    places = [
        Place(kind, key_id, CardAlgorithm.SM4) for kind, key_id in ((7, 8), (7, 0x0A), (8, 9))
    ]

    converse(identify_and_probe(places, PROFILES["social-security"]), wire.transmit)

    assert sum(command.ins == 0xDE for command in wire.commands) == len(places)


@pytest.mark.parametrize("sw", [SW.FILE_NOT_FOUND, SW.FUNCTION_NOT_SUPPORTED])
@pytest.mark.parametrize("missing", ["DES", "SM4"])
def test_a_psam_without_an_environment_has_no_keys_of_its_algorithm(missing: str, sw: int) -> None:
    aid = PROFILES["social-security"].environments[ALGORITHMS[missing]].aid
    wire = Wire(make_applet(), lambda command: sw if command.data == aid else None)

    facts = probed(wire)

    here = {place: n for place, n in EXPECTED.items() if place.algorithm != ALGORITHMS[missing]}
    assert facts.levels == here
    assert facts.terminal == TERMINAL


def test_a_chip_without_any_environment_is_no_psam() -> None:
    wire = Wire(make_applet(), lambda command: 0x6A82 if command.ins == 0xA4 else None)

    with pytest.raises(UnexpectedStatusWord) as caught:
        probed(wire)
    assert caught.value.sw == SW.FILE_NOT_FOUND


@pytest.mark.parametrize("ins", [0xA4, 0xB0, 0xDE, 0x70])
@pytest.mark.parametrize("sw", [0x6F00, 0x6D00, 0x6981, 0x9303])
def test_any_other_status_word_is_the_psams_misbehaviour(ins: int, sw: int) -> None:
    wire = Wire(make_applet(), lambda command: sw if command.ins == ins else None)

    with pytest.raises(UnexpectedStatusWord) as caught:
        probed(wire)
    assert (caught.value.sw, caught.value.ins) == (sw, ins)


@pytest.mark.parametrize("sw", [0x6A88, 0x9403, 0x6985, 0x6A81])
def test_a_key_that_is_not_there_or_not_to_be_used_is_not_in_the_index(sw: int) -> None:
    def answer(command: CommandApdu) -> int | None:
        return sw if (command.ins, command.p2) == (0xDE, 0x08) else None

    facts = probed(Wire(make_applet(), answer))

    assert facts.levels == {place: n for place, n in EXPECTED.items() if place.key_id != 0x08}


def test_numbers_that_are_too_short_are_no_psams() -> None:
    def answer(command: CommandApdu) -> int | None:
        return SW.OK if command.ins == 0xB0 else None

    with pytest.raises(RemoteProtocolError, match="too short"):
        probed(Wire(make_applet(), answer))


def test_places_are_those_of_the_first_set() -> None:
    places = every_place(CARDS.keys.values(), [CardAlgorithm.DES, CardAlgorithm.SM4])

    assert len(places) == len(set(places)) == 2 * sum(k.set == 1 for k in CARDS.keys.values())
    assert Place(0x07, 0x0A, CardAlgorithm.SM4) in places
