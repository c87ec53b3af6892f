"""Money moves exactly when a MAC under the right key says so, once; everything else leaves the account alone."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest

from keyd.iso7816 import Aid
from keyd.simulator import arithmetic

if TYPE_CHECKING:
    from tests.simulator.conftest import Bench

TERMINAL = bytes.fromhex("510100000001")
TIME = bytes.fromhex("20240102030405")
NUMBER = bytes.fromhex("0000000A")
AMOUNTS = bytes.fromhex("000003E800000064000000C8")
DEBIT, LOAD = b"\x01", b"\x02"
INIT_DEBIT = bytes.fromhex("B028010113") + b"\x01" + AMOUNTS + TERMINAL
AMOUNT = bytes.fromhex("000001F4")
INIT_LOAD = bytes.fromhex("B02800010B") + b"\x01" + AMOUNT + TERMINAL


@pytest.fixture
def medical(bench: Bench) -> Bench:
    bench.select(Aid.DF04)
    return bench


def debit_command(bench: Bench, answer: str, *, time: bytes = TIME, key: int = 0x017F) -> bytes:
    """Make DEBIT FOR PURCHASE for what INITIALIZE answered."""
    opened = bytes.fromhex(answer)
    factor = arithmetic.debit_session_factor(opened[18:22], opened[14:16], NUMBER)
    session = arithmetic.session_key(bench.key(key), factor)
    mac1 = arithmetic.debit_mac1(session, AMOUNTS, DEBIT, TERMINAL, time)
    return bytes.fromhex("B02C01000F") + NUMBER + time + mac1


def load_command(bench: Bench, answer: str) -> bytes:
    """Make CREDIT FOR LOAD for what INITIALIZE answered."""
    opened = bytes.fromhex(answer)
    factor = arithmetic.load_session_factor(opened[8:12], opened[4:6])
    session = arithmetic.session_key(bench.key(0x00B2), factor)
    assert opened[12:] == arithmetic.load_mac1(session, opened[:4], AMOUNT, LOAD, TERMINAL)
    return (
        bytes.fromhex("B02A00000B")
        + TIME
        + arithmetic.load_mac2(session, AMOUNT, LOAD, TERMINAL, TIME)
    )


def test_a_debit(medical: Bench) -> None:
    answer = medical.ok(INIT_DEBIT)
    algorithm = f"{medical.algorithm:02X}"
    assert answer[:36] == "0000271000000000000000000000000101" + algorithm
    command = debit_command(medical, answer)
    reply = bytes.fromhex(medical.ok(command))
    dtk = medical.key(0x00B5)
    assert reply[:4] == arithmetic.debit_tac(dtk, AMOUNTS, DEBIT, TERMINAL, NUMBER, TIME)
    opened = bytes.fromhex(answer)
    factor = arithmetic.debit_session_factor(opened[18:22], opened[14:16], NUMBER)
    session = arithmetic.session_key(medical.key(0x017F), factor)
    assert reply[4:] == arithmetic.debit_mac2(session, AMOUNTS)
    assert medical.ok("B026000104") == "00002328"
    assert medical.ok("B026000206") == "000000642024"
    assert medical.ok("B026000306") == "000000C82024"
    # The proof is the pair again, the other way round, and survives power off.
    medical.card.reset()
    medical.select(Aid.DF04)
    assert bytes.fromhex(medical.ok("B02E00010200 01 08")) == reply[4:] + reply[:4]
    assert medical.sw("B02E00010200 02 08") == "9406"
    assert medical.sw("B02E00020200 01 08") == "9406"


def test_a_load(medical: Bench) -> None:
    answer = medical.ok(INIT_LOAD)
    assert answer[:16] == "00002710000101" + f"{medical.algorithm:02X}"
    tac = bytes.fromhex(medical.ok(load_command(medical, answer)))
    dtk = medical.key(0x00B5)
    balance, number = bytes.fromhex(answer[:8]), bytes.fromhex(answer[8:12])
    assert tac == arithmetic.load_tac(dtk, balance, number, AMOUNT, LOAD, TERMINAL, TIME)
    assert medical.ok("B026000100") == "00002904"
    assert medical.ok("B02E000202000108") == answer[24:] + tac.hex().upper()
    assert medical.ok(INIT_LOAD)[:12] == "000029040002"


@pytest.mark.parametrize(("index", "key"), [("01", 0x017F), ("02", 0x0199), ("03", 0x019C)])
def test_each_debit_key(medical: Bench, index: str, key: int) -> None:
    answer = medical.ok(INIT_DEBIT[:5] + bytes.fromhex(index) + INIT_DEBIT[6:])
    assert medical.sw(debit_command(medical, answer, key=key)) == "9000"


@pytest.mark.parametrize("kind", ["debit", "load"])
def test_every_wrong_bit_is_9302_and_changes_nothing(medical: Bench, kind: str) -> None:
    initialize = INIT_DEBIT if kind == "debit" else INIT_LOAD
    complete = debit_command if kind == "debit" else load_command
    before = copy.deepcopy(medical.card.state.medical)
    for bit in range(32):
        command = complete(medical, medical.ok(initialize))
        wrong = command[:-4] + (int.from_bytes(command[-4:], "big") ^ 1 << bit).to_bytes(4, "big")
        assert medical.sw(wrong) == "9302"
        # The transaction is gone with the attempt: there is no second guess at one MAC.
        assert medical.sw(command) == "6985"
    assert medical.card.state.medical == before
    assert medical.sw(complete(medical, medical.ok(initialize))) == "9000"


@pytest.mark.parametrize("kind", ["debit", "load"])
def test_no_other_bit_may_change_either(medical: Bench, kind: str) -> None:
    initialize = INIT_DEBIT if kind == "debit" else INIT_LOAD
    complete = debit_command if kind == "debit" else load_command
    before = copy.deepcopy(medical.card.state.medical)
    size = 8 * (len(complete(medical, medical.ok(initialize))) - 5)
    for bit in range(32, size):
        command = complete(medical, medical.ok(initialize))
        wrong = (int.from_bytes(command, "big") ^ 1 << bit).to_bytes(len(command), "big")
        # What is no time at all is declined for that; the left half of the terminal's number, which the
        # session does not cover, is in the TAC and so caught there.
        expected = {"9302", "6A80"} | ({"9000"} if kind == "debit" and bit >= size - 16 else set())
        assert medical.sw(wrong) in expected
        if medical.card.state.medical != before:
            medical.card.state.medical = copy.deepcopy(before)


def test_a_transaction_serves_once(medical: Bench) -> None:
    command = debit_command(medical, medical.ok(INIT_DEBIT))
    assert medical.sw(command) == "9000"
    assert medical.sw(command) == "6985"
    medical.ok(INIT_DEBIT)
    assert medical.sw(command) == "9302"


@pytest.mark.parametrize(
    "between", ["0084000008", "B026000100", "00FF0000", "00A4020002EF05", "00"]
)
def test_anything_in_between_forgets_it(medical: Bench, between: str) -> None:
    command = debit_command(medical, medical.ok(INIT_DEBIT))
    medical.say(between)
    assert medical.sw(command) == "6985"


def test_a_wrong_le_does_not_spend_the_transaction(medical: Bench) -> None:
    command = debit_command(medical, medical.ok(INIT_DEBIT))
    assert medical.sw(command + b"\x04") == "6C08"
    assert medical.sw(command + b"\x08") == "9000"


def test_a_load_is_not_completed_by_a_debit(medical: Bench) -> None:
    answer = medical.ok(INIT_DEBIT)
    medical.ok(INIT_LOAD)
    assert medical.sw(debit_command(medical, answer)) == "6985"


def test_the_year_begins_anew_on_the_starting_day(medical: Bench) -> None:
    assert medical.ok("B056010002") == "0101"
    assert medical.sw("B056000002 0701") == "6982"
    assert medical.prove(0x87, 0x00AF) == "9000"
    assert medical.sw("B056000002 1301") == "6A80"
    assert medical.sw("B056000002 0701") == "9000"
    assert medical.ok("B056010002") == "0701"
    paid = []
    for time in ("20240630235959", "20240701000000", "20250101000000", "20250701000000"):
        command = debit_command(medical, medical.ok(INIT_DEBIT), time=bytes.fromhex(time))
        medical.ok(command)
        paid.append(medical.ok("B026000206"))
    assert paid == ["000000642023", "000000642024", "000000C82024", "000000642025"]


@pytest.mark.parametrize(
    ("command", "sw"),
    [
        ("B028010113 01 00002711 00000000 00000000 510100000001", "9401"),
        ("B028010113 04 00000000 00000000 00000000 510100000001", "9403"),
        ("B02801010B 01 00000000 510100000001", "6700"),
        ("B02800010B 02 00000000 510100000001", "9403"),
        ("B02800010B 01 FFFFFFFF 510100000001", "6985"),
        ("B028000113 01 00000000 00000000 00000000 510100000001", "6700"),
        ("B02802010B 01 00000000 510100000001", "6A86"),
        ("B02800020B 01 00000000 510100000001", "6A86"),
        ("B02C01000F" + "00" * 15, "6985"),
        ("B02A00000B" + "00" * 11, "6985"),
        ("B026000000", "6A86"),
        ("B026000400", "6A86"),
        ("B026000103", "6C04"),
        ("B02E000102000108", "9406"),
        ("B02E000302000108", "6A86"),
        ("B02E0001010108", "6700"),
        ("B056000001 01", "6700"),
        ("B0560000", "6700"),
        ("B056010002 0101", "6700"),
    ],
)
def test_what_the_medical_application_declines(medical: Bench, command: str, sw: str) -> None:
    assert medical.sw(command) == sw


def test_a_time_that_never_was(medical: Bench) -> None:
    for time in ("20241302030405", "20240100030405", "20240102240405", "2024010203040A"):
        medical.ok(INIT_DEBIT)
        assert medical.sw(f"B02C01000F0000000A{time}00000000") == "6A80"


@pytest.mark.parametrize(
    "command", [INIT_DEBIT.hex(), "B026000100", "B02E0001020001", "B056010002"]
)
def test_outside_df04_there_is_no_medical_account(bench: Bench, command: str) -> None:
    assert bench.sw(command) == "6985"
