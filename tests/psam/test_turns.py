"""Sessions that take turns on one chip get the same answers as if each had a channel of its own.

The chip is one `Applet`; beside it, every session has its own over a second PSAM with the same keys, random numbers and
counters, which count together on both sides. So every byte has to agree, challenges and transaction numbers too.
"""

from __future__ import annotations

from itertools import product
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyd.crypto.algorithms import CardAlgorithm
from keyd.psam import Applet, Counters, Psam, PsamIdentity, TransientMemory
from keyd.psam.turns import Turns
from tests.psam.bench import (
    ALGORITHMS,
    PROFILES,
    SERIAL,
    TERMINAL,
    key_set,
    make_applet,
    random_source,
    synthetic_keys,
)
from tests.psam.commands import L1, apdu, created, deliver, every_command, load, prove, purchase

BOTH_PROFILES: Final = pytest.mark.parametrize("profile", ["social-security", "pboc"])
BOTH_ENVIRONMENTS: Final = pytest.mark.parametrize("environment", ["SM4", "DES"])

OK: Final = b"\x90\x00"


def make_psam(profile: str, environment: str) -> Psam:
    kind = PROFILES[profile]
    identity = PsamIdentity(SERIAL, TERMINAL, environment=ALGORITHMS[environment])
    counters = Counters(TransientMemory(), kind.purchase.numbers_reserved)
    return Psam(kind, identity, key_set(synthetic_keys()), counters, random_source())


class OneChip:
    """Sessions on one chip by turns, and each on an applet of its own."""

    def __init__(
        self,
        profile: str = "social-security",
        environment: str = "SM4",
        *,
        sessions: int = 2,
        is_shared: bool = False,
        wakes_in: CardAlgorithm | None = None,
    ) -> None:
        self.chip = Applet(make_psam(profile, environment))
        psam = make_psam(profile, environment)
        self.own = [Applet(psam) for _ in range(sessions)]
        self.turns = [
            Turns(PROFILES[profile], is_shared=is_shared, wakes_in=wakes_in) for _ in self.own
        ]
        self.holder: int | None = None
        # Who used the chip last; None: it was reset since.
        self.last: int | None = None
        self.resets = 0

    def transmit(self, session: int, command: bytes) -> bytes:
        """What the lender does with a command, and the same on the session's own applet."""
        turns = self.turns[session]
        sw = turns.refuses(command)
        if sw is not None:
            return sw.to_bytes(2, "big")
        assert self.holder in (None, session), "the chip is another's"
        if self.holder is None and self.last != session:
            self._come_back(session)
        self.last = session
        answer = self.chip.transmit(command)
        assert answer == self.own[session].transmit(command), command.hex().upper()
        goes_on = turns.took(command, answer)
        assert goes_on is turns.goes_on
        self.holder = session if goes_on else None
        if not goes_on and not turns.is_clean:
            self._reset()
        return answer

    def ask(self, session: int, command: str) -> str:
        """Hex in, hex out."""
        return self.transmit(session, bytes.fromhex(command)).hex().upper()

    def run_out(self) -> None:
        """The holder's turn is taken away; of its own applet, too, only what was selected is left."""
        assert self.holder is not None
        turns, own = self.turns[self.holder], self.own[self.holder]
        turns.lost()
        assert turns.take_loss()
        assert not turns.take_loss()
        own.reset()
        for command in turns.replay():
            assert turns.is_replayed(own.transmit(command))
        self.holder = None
        self._reset()

    def _come_back(self, session: int) -> None:
        turns = self.turns[session]
        if self.last is not None and turns.needs_reset:
            self._reset()
        for command in turns.replay():
            assert turns.is_replayed(self.chip.transmit(command)), command.hex().upper()

    def _reset(self) -> None:
        self.chip.reset()
        self.last = None
        self.resets += 1


def test_a_turn_lasts_from_delivery_to_the_last_block() -> None:
    both = OneChip()
    commands = every_command("social-security", "SM4")
    both.transmit(0, commands["SELECT DF01"])
    assert both.holder == 0, "610C: the FCI waits"
    both.ask(0, "00C000000C")
    assert both.holder is None
    both.transmit(1, commands["SELECT SM4"])
    both.ask(1, "00C0000000")
    assert both.transmit(0, commands["DELIVER 48 41"]) == OK
    assert both.holder == 0
    both.transmit(0, commands["CIPHER 02"])
    assert both.holder == 0
    both.ask(0, "00C0000000")
    assert both.holder == 0
    assert len(both.transmit(0, commands["CIPHER 00"])) == 16 + 2
    assert both.holder is None


def test_a_turn_lasts_from_the_purchase_to_its_credit() -> None:
    both = OneChip()
    both.ask(0, "00A4040006D1560000059000")
    assert both.holder is None
    both.transmit(0, purchase("social-security", "SM4"))
    assert both.holder == 0
    # A form that the chip does not look at leaves the purchase as it is.
    assert both.ask(0, "8072000003000000") == "6700"
    assert both.holder == 0
    assert both.ask(0, "807200000400000000") == "9302"
    assert both.holder is None
    both.transmit(0, purchase("social-security", "SM4"))
    assert both.holder == 0
    both.ask(0, "00B0990004")
    assert both.holder is None, "any other command ends a purchase"


def test_a_challenge_and_what_it_proved_hold_the_chip() -> None:
    both = OneChip()
    challenge = both.ask(0, "0084000008")
    assert both.holder == 0
    assert both.transmit(0, prove("SM4", 0, bytes.fromhex(challenge[:-4]))) == OK
    assert both.holder == 0
    # Which environment the chip woke up in is not known, so one SELECT does not show that another is left.
    both.ask(0, "00A40000023F0000")
    assert both.holder == 0
    both.ask(0, "00A4000002DDF200")
    assert both.holder is None


def test_a_wrong_proof_uses_the_challenge_up() -> None:
    both = OneChip()
    both.ask(0, "0084000008")
    assert both.transmit(0, apdu("00820000", bytes(16))) == b"\x63\xc2"
    assert both.holder is None


def test_a_challenge_of_a_shared_psam_is_a_random_number() -> None:
    both = OneChip(is_shared=True)
    both.ask(0, "0084000008")
    assert both.holder is None
    assert both.transmit(0, apdu("00820000", bytes(16))) == b"\x69\x82"
    assert both.transmit(0, load("SM4", "84D40011", created("SM4", 0x67, 0x0A), L1)) == b"\x69\x82"


def test_nobody_fetches_what_waits_for_somebody_else() -> None:
    both = OneChip()
    both.ask(0, "00A4040006D15600000590")
    assert both.holder == 0
    # Without the refusal this would be the FCI that the other's SELECT left.
    assert both.ask(1, "00C0000000") == "6985"
    assert both.ask(0, "00C000000B")[-4:] == "6101"
    assert both.holder == 0
    assert both.ask(0, "00C0000009") == "6C01"
    assert both.holder == 0
    both.ask(0, "00C0000001")
    assert both.holder is None


def test_get_response_with_nothing_to_fetch_is_refused_as_the_applet_would() -> None:
    turns = Turns(PROFILES["social-security"], is_shared=False)
    for command in (
        "00C0000000",
        "00C0000004",
        "00C00000",
        "00C0000100",
        "00C00100",
        "00C000000155",
    ):
        sw = turns.refuses(bytes.fromhex(command))
        assert sw is not None
        assert make_applet().transmit(bytes.fromhex(command)) == sw.to_bytes(2, "big"), command


def test_what_was_begun_in_a_turn_that_ran_out_is_not_continued() -> None:
    both = OneChip()
    both.ask(0, "00A4040006D1560000059000")
    both.transmit(0, deliver("social-security", "SM4", 0x48, 0x41))
    both.run_out()
    both.ask(1, "00B0960006")
    assert both.transmit(0, apdu("80FA0000", bytes(16), 16)) == b"\x69\x01"
    # What was selected is there still: the application's number.
    assert both.ask(0, "00B0990004")[-4:] == "9000"


def test_a_file_selected_by_reading_it_is_selected_again() -> None:
    both = OneChip()
    both.ask(0, "00B0950000")
    both.ask(1, "00B0960006")
    assert both.ask(0, "00B0000000")[-4:] == "9000"
    both.ask(1, "00B0000000")
    # 6B00, and the file is selected nevertheless.
    assert both.ask(0, "00B096FF00") == "6B00"
    both.ask(1, "00B0950000")
    assert both.ask(0, "00B0000006") == TERMINAL.hex() + "9000"


@pytest.mark.parametrize(
    ("selected", "is_known"),
    [
        ([], False),
        (["00A4040006D1560000059000"], False),
        (["BFEC00000151"], False),
        (["BFEC00000151", "00A4040006D1560000059000"], True),
        (["00A40000023F0000"], True),
        (["00A4000002DDF200", "00A4000002DF0100"], True),
    ],
)
def test_a_reset_is_needed_unless_the_session_said_where_it_is(
    selected: list[str], is_known: bool
) -> None:
    both = OneChip()
    both.ask(1, "00A4000002DDF200")
    for command in selected:
        both.ask(0, command)
    assert both.turns[0].needs_reset is not is_known
    both.ask(1, "00B0960006")
    resets = both.resets
    both.ask(0, "00B0960006")
    assert both.resets == resets + (not is_known)


def test_where_the_chip_wakes_up_saves_the_reset() -> None:
    both = OneChip(environment="SM4", wakes_in=CardAlgorithm.SM4)
    both.ask(1, "00A40000023F0000")
    both.ask(0, "00B0960006")
    both.ask(1, "00B0960006")
    assert both.resets == 0


@pytest.mark.parametrize(
    "command", ["", "00", "00A404", "00A4040006D156", "00B0000000000000", "0" * 600]
)
def test_what_is_no_short_apdu_never_reaches_a_chip(command: str) -> None:
    turns = Turns(PROFILES["social-security"], is_shared=False)
    assert turns.refuses(bytes.fromhex(command)) == 0x6700


def test_a_session_has_no_channels() -> None:
    for is_shared, profile in product((False, True), ("social-security", "pboc")):
        turns = Turns(PROFILES[profile], is_shared=is_shared)
        for name, command in every_command(profile, "SM4").items():
            is_refused = "channel" in name or name in ("OPEN", "CLOSE")
            assert (turns.refuses(command) == 0x6881) is is_refused, name
    owner = Turns(PROFILES["social-security"], is_shared=False)
    assert owner.refuses(bytes.fromhex("0120000004 31323334")) == 0x6881
    assert owner.refuses(bytes.fromhex("4020000004 31323334")) == 0x6881
    assert owner.refuses(bytes.fromhex("0020000004 31323334")) is None


@BOTH_PROFILES
def test_what_a_shared_psam_does_not_know_is_answered_as_the_applet_would(profile: str) -> None:
    turns = Turns(PROFILES[profile], is_shared=True)
    applet = make_applet(profile)
    words = {0x6E00, 0x6D00, 0x6882, 0x6881}
    for cla, ins in product(range(256), range(256)):
        command = bytes((cla, ins, 0, 0))
        sw, answer = turns.refuses(command), int.from_bytes(applet.transmit(command), "big")
        if (cla, ins) == (0x00, 0x70):
            assert sw == 0x6881, "the applet has channels"
        elif sw in words:
            assert answer == sw, command.hex()
        else:
            assert answer not in words, command.hex()


def test_what_keyd_does_not_know_holds_the_chip_until_an_environment_is_selected() -> None:
    # A real PSAM may have more commands and files than any profile.
    turns = Turns(PROFILES["social-security"], is_shared=False)
    assert turns.took(bytes.fromhex("0020000002 1234"), OK)
    assert turns.took(bytes.fromhex("00A4040006D1560000059000"), OK)
    assert not turns.took(bytes.fromhex("00A40000023F0000"), OK)
    assert turns.took(bytes.fromhex("00A4040005A00000000100"), OK)
    assert turns.took(bytes.fromhex("00B0960006"), bytes(6) + OK)
    assert not turns.took(bytes.fromhex("00A40000023F0000"), OK)


def test_a_chip_may_answer_as_no_applet_does() -> None:
    turns = Turns(PROFILES["social-security"], is_shared=False)
    for name, command in every_command("social-security", "SM4").items():
        for sw in ("9000", "6100", "6200", "6283", "63C0", "6C00", "6F00", "6985", "9302", "0000"):
            turns.took(command, bytes.fromhex(sw))
            assert isinstance(turns.is_clean, bool), name
    turns.took(bytes.fromhex("BFEC0000"), OK)


# What sessions do, so that much of it succeeds: most state is behind a few commands that have to come in order.
COMMON: Final = (
    *("SELECT DF01", "SELECT DF01", "SELECT MF", "SELECT SM4", "ENVIRONMENT", "DELIVER 48 41"),
    *("DELIVER 67 08", "CIPHER 00", "CIPHER 07", "CIPHER 01", "CIPHER 02", "PURCHASE", "CREDIT"),
    *("READ", "READ 0016", "READ number", "RESPONSE all", "RESPONSE", "SELECT 0015", "SELECT 0019"),
)


@BOTH_PROFILES
@BOTH_ENVIRONMENTS
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_sessions_by_turns_get_the_answers_of_a_chip_of_their_own(
    profile: str, environment: str, data: Any
) -> None:
    is_known = data.draw(st.booleans())
    both = OneChip(
        profile,
        environment,
        sessions=3,
        is_shared=data.draw(st.booleans()),
        wakes_in=ALGORITHMS[environment] if is_known else None,
    )
    every = every_command(profile, environment)
    names = st.one_of(st.sampled_from(COMMON), st.sampled_from(sorted(every)))
    step = st.tuples(st.integers(0, 2), names, st.integers(0, 9))
    steps = data.draw(st.lists(step, min_size=10, max_size=60))
    challenge = L1
    for session, name, chance in steps:
        if both.holder not in (None, session):
            if chance == 0:
                both.run_out()
            else:
                session = both.holder
        command = every[name]
        if name == "PROVE" and chance < 8:
            command = prove(environment, chance % 2, challenge)
        elif name == "CREATE" and chance < 8:
            said = created(environment, 0x67, 0x0A)
            command = load(environment, "84D40011", said, challenge)
        elif chance == 1:
            command = command[:4] + b"\xff" + command[5:]
        elif chance == 2:
            command = command[:2] + b"\x03" + command[3:]
        answer = both.transmit(session, command)
        if name.startswith("CHALLENGE") and len(answer) == 8 + 2:
            challenge = answer[:-2]


def test_what_is_replayed_is_what_still_matters_in_its_order() -> None:
    turns = Turns(PROFILES["social-security"], is_shared=True)
    province, application, file = "BFEC00000151", "00A4040006D1560000059000", "00A40200020019"
    environment = "00A40000023F0000"
    for command in (application, province, application, file):
        turns.took(bytes.fromhex(command), OK)
    assert replayed(turns) == [province, application, file]
    turns.took(bytes.fromhex(province), OK)
    assert replayed(turns) == [application, province]
    turns.took(bytes.fromhex(environment), OK)
    assert replayed(turns) == [environment]
    # What was refused has selected nothing.
    turns.took(bytes.fromhex(application), b"\x6a\x82")
    assert replayed(turns) == [environment]
    # No session factor, and nothing that is enciphered.
    turns.took(deliver("social-security", "SM4", 0x67, 0x08), OK)
    turns.took(apdu("80FA0000", bytes(16), 16), bytes(16) + OK)
    assert replayed(turns) == [environment]


def test_a_key_that_stays_is_delivered_again_and_leaves_the_chip_unclean() -> None:
    turns = Turns(PROFILES["pboc"], is_shared=True, wakes_in=CardAlgorithm.SM4)
    delivery, last = deliver("pboc", "SM4", 0x67, 0x08), apdu("80FA0000", bytes(16), 16)
    for what_ends_it in ("lost", "6901", "another"):
        assert turns.took(delivery, OK)
        assert not turns.took(last, bytes(16) + OK)
        assert turns.replay()[-1] == delivery
        assert not turns.is_clean
        if what_ends_it == "lost":
            turns.lost()
        elif what_ends_it == "6901":
            turns.took(last, b"\x69\x01")
        else:
            turns.took(delivery, b"\x67\x00")
        assert delivery not in turns.replay()
        assert turns.is_clean


def test_what_could_not_be_replayed() -> None:
    for response, is_replayed in (
        *(("9000", True), ("6110", True), ("6F009000", True), ("6C06", True), ("6B00", True)),
        *(("6A82", False), ("6700", False), ("6985", False), ("6A88", False)),
    ):
        assert Turns.is_replayed(bytes.fromhex(response)) is is_replayed, response


def replayed(turns: Turns) -> list[str]:
    return [command.hex().upper() for command in turns.replay()]
