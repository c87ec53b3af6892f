"""A card does what a proved key or a right MAC allows, once, and after anything else it is as it was."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest

from keyd.iso7816 import Aid
from keyd.simulator import arithmetic, forge_card
from keyd.simulator.profile import KEY_TRIES, PIN_TRIES

if TYPE_CHECKING:
    from tests.simulator.conftest import Bench, Issue

FACTOR = "0102030405060708"
CHALLENGE = "1112131415161718"
PIN = "002000000312 34 56"
WRONG_PIN = "00200000 03 99 99 99"


def lasting(bench: Bench) -> dict[str, Any]:
    """Copy all that survives power off, except how many tries are left."""
    state = bench.card.state
    return copy.deepcopy(
        {
            "files": state.files,
            "pin": state.pin,
            "pin_tries": state.pin_tries,
            "medical": state.medical,
            "blocked": state.blocked,
            "is_blocked": state.is_blocked,
        }
    )


def flipped(command: bytes, bit: int) -> bytes:
    return (int.from_bytes(command, "big") ^ 1 << bit).to_bytes(len(command), "big")


# Internal authentication.


@pytest.mark.parametrize(("version", "address"), [("", 0x0170), ("02", 0x0171), ("03", 0x0172)])
def test_the_card_proves_itself_with_each_set_of_irk(
    bench: Bench, version: str, address: int
) -> None:
    session = arithmetic.session_key(bench.key(address), bytes.fromhex(FACTOR))
    expected = arithmetic.cryptogram(session, bytes.fromhex(CHALLENGE)).hex().upper()
    lc = 16 + len(version) // 2
    assert bench.ok(f"00880000{lc:02X}{FACTOR}{CHALLENGE}{version}08") == expected


@pytest.mark.parametrize(
    ("command", "sw"),
    [
        (f"0088000010{FACTOR}{CHALLENGE}04", "6C08"),
        (f"0088000011{FACTOR}{CHALLENGE}04", "6A88"),
        (f"0088000011{FACTOR}{CHALLENGE}00", "6A88"),
        (f"008800000F{FACTOR}{CHALLENGE[2:]}", "6700"),
        (f"0088010010{FACTOR}{CHALLENGE}", "6A86"),
        (f"0088000A10{FACTOR}{CHALLENGE}", "6A88"),
    ],
)
def test_what_internal_authenticate_declines(bench: Bench, command: str, sw: str) -> None:
    assert bench.sw(command) == sw


def test_outside_the_environment_there_are_no_keys(bench: Bench) -> None:
    bench.card.reset()
    assert bench.sw(f"0088000010{FACTOR}{CHALLENGE}") == "6A88"
    assert bench.sw(f"0082000A10{FACTOR}{CHALLENGE}") == "6A88"
    assert bench.sw(PIN) == "6985"


def test_a_forged_card_has_the_looks_but_not_the_keys(bench: Bench) -> None:
    forged = forge_card(bench.card)
    assert forged.atr == bench.card.atr
    command = bytes.fromhex(f"0088000010{FACTOR}{CHALLENGE}08")
    select = bytes.fromhex(f"00A404000F{Aid.SSSE.hex()}")
    assert forged.transmit(select) == bench.card.transmit(select)
    theirs, ours = forged.transmit(command), bench.card.transmit(command)
    assert theirs[-2:] == ours[-2:] == b"\x90\x00"
    assert theirs != ours


# Challenges and external authentication.


@pytest.mark.parametrize(("algorithm", "longest"), [(0x01, "6700"), (0x03, "9000")])
def test_how_long_a_challenge_may_be(issue: Issue, algorithm: int, longest: str) -> None:
    card = issue(algorithm=algorithm)
    assert [card.sw(f"00840000{le}") for le in ("04", "08", "10", "09", "00")] == [
        "9000",
        "9000",
        longest,
        "6700",
        "6700",
    ]
    assert card.sw("00840000") == "6700"


def test_only_the_last_challenge_counts(bench: Bench) -> None:
    first = bench.challenge()
    bench.challenge()
    assert bench.sw(f"0082000A10{bench.proof(0x004C, first).hex()}") == f"63C{KEY_TRIES - 1}"


def test_a_challenge_serves_once(bench: Bench) -> None:
    proof = bench.proof(0x004C, bench.challenge()).hex()
    assert bench.sw(f"0082000A10{proof}") == "9000"
    assert bench.sw(f"0082000A10{proof}") == "6984"


def test_a_challenge_does_not_survive_power_off(bench: Bench) -> None:
    proof = bench.proof(0x004C, bench.challenge()).hex()
    bench.card.reset()
    bench.select()
    assert bench.sw(f"0082000A10{proof}") == "6984"


def test_each_set_of_a_key_is_proved_by_its_version(bench: Bench) -> None:
    assert bench.prove(0x0A, 0x004D, version="02") == "9000"
    assert bench.prove(0x0A, 0x004C, version="02") == f"63C{KEY_TRIES - 1}"
    assert bench.prove(0x06, 0x0090, version="02") == "6A88"


def test_a_short_challenge_is_a_session_factor_too(bench: Bench) -> None:
    challenge = bytes.fromhex(bench.ok("0084000004"))
    assert bench.sw(f"0082000A10{bench.proof(0x004C, challenge).hex()}") == "9000"


def test_every_wrong_bit_of_a_proof_counts(bench: Bench) -> None:
    for bit in range(128):
        proof = bench.proof(0x004C, bench.challenge())
        assert bench.sw(b"\x00\x82\x00\x0a\x10" + flipped(proof, bit)) == f"63C{KEY_TRIES - 1}"
        assert bench.prove(0x0A, 0x004C) == "9000"


def test_a_wrong_proof_takes_the_right_back(bench: Bench) -> None:
    assert bench.prove(0x0A, 0x004C) == "9000"
    assert bench.prove(0x0A, 0x0094) == f"63C{KEY_TRIES - 1}"
    bench.ok("00A4020002EF06")
    assert bench.sw("00B2090000") == "6982"


def test_guessing_at_a_key_ends(bench: Bench) -> None:
    for left in reversed(range(KEY_TRIES)):
        assert bench.prove(0x0A, 0x0094) == f"63C{left}"
    assert bench.prove(0x0A, 0x004C) == "6983"
    bench.card.reset()
    bench.select()
    assert bench.prove(0x0A, 0x004C) == "6983"
    assert bench.prove(0x04, 0x0094) == "9000"


@pytest.mark.parametrize("key_id", [0x00, 0x02, 0x01, 0x83])
def test_keys_that_are_not_for_proving(bench: Bench, key_id: int) -> None:
    assert bench.prove(key_id, 0x0170) == "6A88"


# The PIN.


def test_the_pin_and_its_tries(bench: Bench) -> None:
    assert bench.sw(WRONG_PIN) == f"63C{PIN_TRIES - 1}"
    assert bench.sw(PIN) == "9000"
    for left in reversed(range(PIN_TRIES)):
        assert bench.sw(WRONG_PIN) == f"63C{left}"
    assert bench.sw(PIN) == "6983"
    bench.card.reset()
    bench.select()
    assert bench.sw(PIN) == "6983"
    assert bench.sw("805E010007 123456 FF 654321") == "6983"


@pytest.mark.parametrize(
    ("command", "sw"),
    [
        ("00200000 01 12", "6700"),
        ("00200000 09 123456789012345678", "6700"),
        ("00200000", "6700"),
        ("00200000 02 12 3F", "6A80"),
        ("00200000 03 12 F4 56", "6A80"),
        ("00200000 03 12 AB 56", "6A80"),
        ("00200001 03 123456", "6A86"),
        ("80200000 03 123456", "6E00"),
        ("00200000 08 123456FFFFFFFFFF", "9000"),
    ],
)
def test_what_is_no_pin_costs_no_try(bench: Bench, command: str, sw: str) -> None:
    assert bench.sw(command) == sw
    assert bench.card.state.pin_tries == PIN_TRIES


@pytest.mark.parametrize("pin", ["1234", "12345", "1234567890123456"])
def test_changing_the_pin(bench: Bench, pin: str) -> None:
    new = pin + "F" * (len(pin) % 2)
    data = f"123456FF{new}"
    assert bench.sw(f"805E0100{len(data) // 2:02X}{data}") == "9000"
    assert bench.sw(f"00200000{len(new) // 2:02X}{new}") == "9000"
    assert bench.sw(PIN) == f"63C{PIN_TRIES - 1}"


@pytest.mark.parametrize(
    ("data", "sw"),
    [
        ("999999FF654321", f"63C{PIN_TRIES - 1}"),
        ("123456654321", "6A80"),
        ("123456FF65", "6700"),
        ("123456FF65432AAA", "6A80"),
        ("123456FF", "6700"),
    ],
)
def test_changing_the_pin_wrongly(bench: Bench, data: str, sw: str) -> None:
    assert bench.sw(f"805E0100{len(data) // 2:02X}{data}") == sw
    assert bench.card.state.pin == "123456"


def test_unblocking_the_pin(bench: Bench) -> None:
    for _ in range(PIN_TRIES):
        bench.sw(WRONG_PIN)
    assert bench.sw(bench.secured("84240000")) == "6982"
    assert bench.prove(0x06, 0x0090) == "9000"
    assert bench.sw(bench.secured("84240000")) == "9000"
    assert bench.sw(PIN) == "9000"


def test_reloading_the_pin(bench: Bench) -> None:
    for _ in range(PIN_TRIES):
        bench.sw(WRONG_PIN)
    assert bench.prove(0x06, 0x0090) == "9000"
    command = bench.secured("84240001", bytes.fromhex("65432F"), encrypt=True)
    assert command[4] == {0x01: 0x0C, 0x03: 0x14}[bench.algorithm]
    assert bench.sw(command) == "9000"
    assert bench.sw("0020000003 65432F") == "9000"
    assert bench.sw(PIN) == f"63C{PIN_TRIES - 1}"


def test_a_reloaded_pin_must_be_one(bench: Bench) -> None:
    assert bench.prove(0x06, 0x0090) == "9000"
    for bad, sw in ((b"\x12\x3f", "6A80"), (b"\x12", "6700"), (b"", "6700")):
        assert bench.sw(bench.secured("84240001", bad, encrypt=True)) == sw
    assert bench.card.state.pin == "123456"


# Secure messaging.


@pytest.mark.parametrize(("header", "payload"), [("84240000", b""), ("84240001", b"\x65\x43\x21")])
def test_every_wrong_bit_after_the_header_is_6988_and_changes_nothing(
    bench: Bench, header: str, payload: bytes
) -> None:
    bench.sw(WRONG_PIN)
    assert bench.prove(0x06, 0x0090) == "9000"
    before = lasting(bench)
    length = len(bench.secured(header, payload, encrypt=bool(payload)))
    for bit in range(8 * (length - 5)):
        command = bench.secured(header, payload, encrypt=bool(payload))
        assert bench.sw(flipped(command, bit)) == "6988"
    assert lasting(bench) == before
    assert bench.sw(bench.secured(header, payload, encrypt=bool(payload))) == "9000"
    assert lasting(bench) != before


def test_no_wrong_bit_of_the_header_is_obeyed(bench: Bench) -> None:
    # A file that insists on the MAC: where it is optional, CLA 04 turned into 00 is a plain update.
    bench.select(Aid.DF04)
    bench.ok("00A4020002EF05")
    assert bench.prove(0x85, 0x00AC) == "9000"
    before = lasting(bench)
    length = len(bench.secured("04D60000", bytes(8), stk=0x0175))
    for bit in range(8 * (length - 5), 8 * length):
        command = flipped(bench.secured("04D60000", b"\x55" * 8, stk=0x0175), bit)
        assert bench.sw(command) != "9000", command.hex()
    assert lasting(bench) == before


def test_a_message_cannot_be_sent_again(bench: Bench) -> None:
    assert bench.prove(0x06, 0x0090) == "9000"
    command = bench.secured("84240000")
    assert bench.sw(command) == "9000"
    assert bench.sw(command) == "6984"
    bench.challenge()
    assert bench.sw(command) == "6988"


def test_a_wrong_mac_uses_the_challenge_up(bench: Bench) -> None:
    assert bench.prove(0x06, 0x0090) == "9000"
    command = bench.secured("84240000")
    assert bench.sw(flipped(command, 0)) == "6988"
    assert bench.sw(command) == "6984"


def test_a_message_for_another_command_is_not_taken(bench: Bench) -> None:
    assert bench.prove(0x06, 0x0090) == "9000"
    assert bench.prove(0x05, 0x0091) == "9000"
    unblock = bench.secured("84240000")
    assert bench.sw(b"\x84\x16" + unblock[2:]) == "6988"


@pytest.mark.parametrize(
    ("command", "sw"),
    [
        ("842400000355AA55", "6700"),
        ("842400000C" + "00" * 12, "6700"),
        ("8424000104" + "00" * 4, "6700"),
        ("8424000204" + "00" * 4, "6A86"),
        ("8424000004" + "00" * 4, "6984"),
    ],
)
def test_what_is_declined_before_the_mac(bench: Bench, command: str, sw: str) -> None:
    assert bench.prove(0x06, 0x0090) == "9000"
    assert bench.sw(command) == sw


# The two blocks.


@pytest.mark.parametrize(
    ("application", "key", "stk"), [(Aid.DF03, 0x0092, 0x0186), (Aid.DF04, 0x0093, 0x0175)]
)
def test_blocking_an_application(bench: Bench, application: Aid, key: int, stk: int) -> None:
    bench.select(application)
    assert bench.sw(bench.secured("841E0001", stk=stk)) == "6982"
    assert bench.prove(0x83, key) == "9000"
    assert bench.sw(bench.secured("841E0001", stk=0x0173)) == "6988"
    assert bench.sw(bench.secured("841E0001", stk=stk)) == "9000"
    assert bench.sw("B026000100") == "9303"
    assert bench.sw("00B0000001") == "9303"
    assert bench.sw(f"00A4040006{application.hex()}") == "9303"
    bench.card.reset()
    bench.select()
    assert bench.sw(f"00A4040006{application.hex()}") == "9303"
    assert bench.prove(0x0A, 0x004C) == "9000"


@pytest.mark.parametrize("application", [Aid.SSSE, Aid.DF01, Aid.DF02, Aid.DF07])
def test_an_application_without_a_blocking_key(bench: Bench, application: Aid) -> None:
    bench.select(application)
    assert bench.sw("841E000104" + "00" * 4) == "6985"


def test_blocking_the_card(bench: Bench) -> None:
    assert bench.sw(bench.secured("84160000")) == "6982"
    assert bench.prove(0x05, 0x0091) == "9000"
    assert bench.sw(bench.secured("84160000")) == "9000"
    bench.card.reset()
    for command in (f"00A404000F{Aid.SSSE.hex()}", "0084000008", PIN, "00FF0000"):
        assert bench.sw(command) == "6A81"


# Headers.


@pytest.mark.parametrize(
    ("command", "sw"),
    [
        ("00840100 08", "6A86"),
        ("00FF0000", "6D00"),
        ("B0FF0000", "6D00"),
        ("A0A40000023F00", "6E00"),
        ("A0FF0000", "6E00"),
        ("B0A40000023F00", "6E00"),
        ("0184000008", "6881"),
        ("0484000008", "6882"),
        ("0C84000008", "6882"),
        ("008400000100", "6700"),
        ("00840000000008", "6700"),
        ("0084", "6700"),
        ("", "6700"),
    ],
)
def test_what_a_header_may_be(bench: Bench, command: str, sw: str) -> None:
    assert bench.sw(command) == sw
