"""A file is read and written by whoever proved the key that guards it, in the way that the file demands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from keyd.iso7816 import Aid
from keyd.simulator import fields
from keyd.simulator.profile import GENERATIONS, KEYS, Messaging, Structure, file_rows

if TYPE_CHECKING:
    from tests.simulator.conftest import Bench, Issue

EF05, EF06, EF07, EF08 = (f"00A4020002EF0{digit}" for digit in "5678")
PUBLIC_FCI = "6F1C840F7378312E73682EC9E7BBE1B1A3D5CFA50988011E9F0C038601"


def test_the_environment_says_what_algorithm_it_has(bench: Bench) -> None:
    assert bench.select() == f"{PUBLIC_FCI}{bench.algorithm:02X}"


@pytest.mark.parametrize("application", [Aid.DF01, Aid.DF02, Aid.DF03, Aid.DF04, Aid.DF07])
def test_every_application_can_be_selected(bench: Bench, application: Aid) -> None:
    assert bench.select(application) == f"6F0A8406{application.hex().upper()}A500"


def test_the_bank_is_behind_its_firewall(bench: Bench) -> None:
    assert bench.sw(f"00A404000E{Aid.PSE.hex()}") == "6A82"
    assert bench.sw(f"00A4040006{Aid.PSAM_DF01.hex()}") == "6A82"


def test_the_identifier_carries_the_serial_of_the_atr(bench: Bench) -> None:
    bench.ok(EF05)
    record = bench.ok("00B2010000")
    assert record == "0110510100D156000005000001ACFFFFFFFF"
    assert record[20:28] == bench.card.atr[-4:].hex().upper()
    assert bench.card.atr.hex().upper().startswith("3B6D0000")


@pytest.mark.parametrize(
    ("generation", "version"), [("1.0", "312E3030"), ("2.0", "322E3030"), ("3.0", "332E3030")]
)
def test_the_version_is_free_to_read(issue: Issue, generation: str, version: str) -> None:
    card = issue(generation=generation)
    card.select()
    card.ok(EF05)
    assert card.ok("00B2030000") == f"0304{version}"


@pytest.mark.parametrize(("generation", "sw"), [("1.0", "9000"), ("2.0", "9000"), ("3.0", "6982")])
def test_only_a_3_0_card_hides_its_holder(issue: Issue, generation: str, sw: str) -> None:
    card = issue(generation=generation, algorithm=0x01)
    card.select()
    card.ok(EF06)
    assert card.sw("00B2090000") == sw


def test_the_holder_is_read_once_rksssse_is_proved(bench: Bench) -> None:
    assert bench.prove(0x0A, 0x004C) == "9000"
    bench.ok(EF06)
    name = bytes.fromhex(bench.ok("00B2090000"))
    assert name[:2] == b"\x09\x1e"
    assert name[2:].rstrip(b"\x00").decode("gbk") == "测试428"
    assert bench.ok("00B20C0000") == "0C03510100"


def test_a_right_ends_with_power_and_with_selecting_afresh(bench: Bench) -> None:
    for end in (bench.card.reset, bench.select):
        bench.select()
        assert bench.prove(0x0A, 0x004C) == "9000"
        end()
        bench.select()
        bench.ok(EF06)
        assert bench.sw("00B2090000") == "6982"


def test_the_ddfs_right_lasts_while_its_applications_come_and_go(bench: Bench) -> None:
    assert bench.prove(0x04, 0x0094) == "9000"
    bench.select(Aid.DF01)
    assert bench.prove(0x83, 0x0097) == "9000"
    bench.ok(EF05)
    assert bench.sw("00D600000155") == "9000"
    bench.select(Aid.DF02)
    bench.select(Aid.DF01)
    bench.ok(EF05)
    assert bench.sw("00D600000155") == "6982"


def test_a_plain_update_after_uksssse(bench: Bench) -> None:
    bench.ok(EF06)
    record = "0A0131"
    assert bench.sw(f"00DC0A0003{record}") == "6982"
    assert bench.prove(0x04, 0x0094) == "9000"
    assert bench.sw(f"00DC0A0003{record}") == "9000"
    assert bench.prove(0x0A, 0x004C) == "9000"
    assert bench.ok("00B20A0000") == record


def test_an_update_under_a_mac(bench: Bench) -> None:
    bench.ok(EF06)
    assert bench.prove(0x04, 0x0094) == "9000"
    assert bench.prove(0x0A, 0x004C) == "9000"
    assert bench.sw(bench.secured("04DC0A00", bytes.fromhex("0A0132"))) == "9000"
    assert bench.ok("00B20A0000") == "0A0132"


def test_an_encrypted_update(bench: Bench) -> None:
    bench.ok(EF07)
    assert bench.prove(0x04, 0x0094) == "9000"
    content = bytes(range(40))
    assert bench.sw(b"\x00\xd6\x00\x00\x28" + content) == "6987"
    assert bench.sw(bench.secured("04D60000", content)) == "6988"
    assert bench.sw(bench.secured("04D60002", content[:17], encrypt=True)) == "9000"
    assert bench.prove(0x0A, 0x004C) == "9000"
    assert bench.ok("00B0000000") == (bytes(2) + content[:17] + bytes(45)).hex().upper()


def test_a_file_that_insists_on_a_mac(bench: Bench) -> None:
    bench.select(Aid.DF04)
    bench.ok(EF05)
    assert bench.prove(0x85, 0x00AC) == "9000"
    assert bench.sw("00D600000155") == "6987"
    assert bench.sw(bench.secured("04D60000", b"\x55", stk=0x0173)) == "6988"
    assert bench.sw(bench.secured("04D60000", b"\x55", stk=0x0175)) == "9000"
    assert bench.sw("00B0000001") == "6982"
    assert bench.prove(0x84, 0x0182) == "9000"
    assert bench.ok("00B0000001") == "55"


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_file_obeys_its_row(issue: Issue, generation: str) -> None:
    """The tables, walked: without its key no file is read or written, with it every file is."""
    card = issue(generation=generation)
    for (application, file_id), row in file_rows(GENERATIONS[generation]).items():
        is_binary = row.structure is Structure.BINARY
        read = "00B0000001" if is_binary else f"00B2{0x03 if file_id == 0xEF05 else 0x0A:02X}0000"
        header = "D60000" if is_binary else f"DC{0x03 if file_id == 0xEF05 else 0x0A:02X}00"
        value = b"\x55"
        if not is_binary:
            value = b"\x03\x043.00" if file_id == 0xEF05 else b"\x0a\x01\x39"
        stk = next(
            key.addresses[0]
            for key in KEYS.values()
            if key.application is application and key.name.startswith("STK")
        )

        def update(
            header: str = header,
            value: bytes = value,
            stk: int = stk,
            mode: Messaging = row.messaging,
        ) -> str:
            if mode is Messaging.OPTIONAL:
                return card.sw(bytes.fromhex(f"00{header}") + bytes((len(value),)) + value)
            is_encrypted = mode is Messaging.ENCRYPTED
            return card.sw(card.secured(f"04{header}", value, stk=stk, encrypt=is_encrypted))

        card.select()
        card.select(application)
        card.ok(f"00A4020002{file_id:04X}")
        assert card.sw(read) == ("9000" if row.read is None else "6982")
        assert update() == "6982"
        for key_id in filter(None, (row.read, row.write)):
            scope = application if key_id & 0x80 else Aid.SSSE
            assert card.prove(key_id, KEYS[scope, key_id].addresses[0]) == "9000"
        assert card.sw(read) == "9000"
        assert update() == "9000"


@pytest.mark.parametrize(
    ("command", "sw"),
    [
        ("00A4020002EF99", "6A82"),
        ("00A40200 01 EF", "6700"),
        ("00A40000023F00", "9000"),
        ("00A4040006D15600000599", "6A82"),
        ("00A40100023F00", "6A86"),
        ("00B2010000", "6986"),
        ("00B0000000", "6986"),
        ("00D600000155", "6986"),
        ("00DC0100020100", "6986"),
    ],
)
def test_without_a_file(bench: Bench, command: str, sw: str) -> None:
    assert bench.sw(command) == sw


@pytest.mark.parametrize(
    ("command", "sw"),
    [
        ("00B2990000", "6A83"),
        ("00B2010100", "6A86"),
        ("00B2010001", "6C12"),
        ("00B0000000", "6981"),
        ("00D600000155", "6981"),
        ("00DC0200 01 02", "6A80"),
        ("00DC02000303 01 55", "6A80"),
        ("00DC02000202 01", "6A80"),
        ("00DC020004 0202 5555", "6A80"),
        ("00DC9900039901 55", "6A83"),
        ("00DC020003 0201 32", "9000"),
    ],
)
def test_inside_ef05(bench: Bench, command: str, sw: str) -> None:
    assert bench.prove(0x04, 0x0094) == "9000"
    bench.ok(EF05)
    assert bench.sw(command) == sw


@pytest.mark.parametrize(
    ("command", "sw"),
    [
        ("00B0003F01", "9000"),
        ("00B0003F02", "6C01"),
        ("00B0004001", "6B00"),
        ("00B0880001", "6A82"),
        ("00B2010000", "6981"),
        ("00D6003F0155", "9000"),
        ("00D6003F025555", "6A84"),
        ("00D600400155", "6B00"),
        ("00D688000155", "6A82"),
    ],
)
def test_inside_ef08(bench: Bench, command: str, sw: str) -> None:
    assert bench.prove(0x04, 0x0094) == "9000"
    assert bench.prove(0x0A, 0x004C) == "9000"
    bench.ok(EF08)
    assert bench.sw(command) == sw


@pytest.mark.parametrize(
    ("tag", "text"),
    [
        (fields.NAME, "测试"),
        (fields.SEX, "1"),
        (fields.BIRTH_DATE, "19000101"),
        (fields.ETHNIC_GROUP, "1"),
        (fields.IDENTIFIER, "519900D15600000510000B26FFFFFFFF"),
    ],
)
def test_a_field_survives(tag: int, text: str) -> None:
    assert fields.decode_field_untrusted(tag, fields.encode_field(tag, text)) == text


@pytest.mark.parametrize(("tag", "text"), [(fields.SEX, "12"), (fields.BIRTH_DATE, "190001011")])
def test_a_field_that_is_too_long_is_not_cut(tag: int, text: str) -> None:
    with pytest.raises(ValueError, match=r"field|hexadecimal"):
        fields.encode_field(tag, text)
