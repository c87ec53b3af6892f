"""The library's strings are bit-exact, a genuine card and an honest back end succeed, and nobody else does.

The back end here is the arithmetic of the simulator and the synthetic roots: it reads nothing but the strings.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from keyd.errors import AlgorithmNotSupported, LocalProtocolError, RemoteProtocolError
from keyd.iso7816 import SW
from keyd.simulator import (
    BasicData,
    CardNotGenuine,
    CardRefused,
    Holder,
    TerminalLibrary,
    arithmetic,
    forge_card,
    issue_card,
    synthetic_holder,
)

if TYPE_CHECKING:
    from tests.simulator.conftest import Bench, Issue

BAS_3 = re.compile(r"\A\d{6}\|[0-9A-F]{26}\|0[13]\|[0-9A-F]{32}(\|[0-9A-F]{16}){4}\|\Z")
BAS_1 = re.compile(r"\A\d{6}\|[0-9A-F]{26}\|0[13]\|[0-9A-F]{32}(\|[0-9A-F]{16}){2}\|\|\|\Z")
EXTERNAL = re.compile(r"\A0[13]\|[0-9A-F]{4}\|[0-9A-F]{16}\|[0-9A-F]{16}\|\Z")
DEBIT = re.compile(
    r"\A0[13]\|017F\|[0-9A-F]{8}\|0001\|00000064000000C8\|01\|510100000001\|20240102030405\|\Z"
)
TIME = "20240102030405"


class BackEnd:
    """What stands behind the terminal: it sees strings and answers strings."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def proof(self, address: int, session_factor: str, challenge: str) -> str:
        session = arithmetic.session_key(self._bench.key(address), bytes.fromhex(session_factor))
        cryptogram = arithmetic.cryptogram(session, bytes.fromhex(challenge))
        return cryptogram.hex().upper() + challenge

    def basic(self, line: str) -> str:
        _, _, _, _, factor, challenge, ext_factor, ext_challenge, end = line.split("|")
        assert not end
        external = self.proof(0x004C, ext_factor, ext_challenge) if ext_factor else ""
        return f"{self.proof(0x0170, factor, challenge)}|{external}|"

    def external(self, line: str) -> str:
        assert EXTERNAL.match(line)
        _, address, factor, challenge, _ = line.split("|")
        return self.proof(int(address, 16), factor, challenge)

    def message(self, line: str) -> str:
        _, address, factor, header, pin, end = line.split("|")
        assert not end
        session = arithmetic.session_key(self._bench.key(int(address, 16)), bytes.fromhex(factor))
        head = bytes.fromhex(header)[:4]
        payload = b""
        if pin:
            payload = arithmetic.encrypt_payload(session, bytes.fromhex(pin + "F" * (len(pin) % 2)))
        mac = arithmetic.command_mac(session, head, payload)
        assert bytes.fromhex(header)[4] == len(payload + mac)
        return header + (payload + mac).hex().upper()

    def debit(self, line: str) -> str:
        _, address, random, number, amounts, kind, terminal, time, _ = line.split("|")
        factor = arithmetic.debit_session_factor(
            bytes.fromhex(random), bytes.fromhex(number), bytes.fromhex("0000000A")
        )
        session = arithmetic.session_key(self._bench.key(int(address, 16)), factor)
        three = bytes(4) + bytes.fromhex(amounts)
        fields = (bytes.fromhex(field) for field in (kind, terminal, time))
        mac1 = arithmetic.debit_mac1(session, three, *fields)
        return f"0000000A|{time}|{mac1.hex().upper()}|"


@pytest.fixture
def library(bench: Bench) -> TerminalLibrary:
    return TerminalLibrary(bench.card.transmit, bench.card.atr)


@pytest.fixture
def back_end(bench: Bench) -> BackEnd:
    return BackEnd(bench)


# iReadCardBas.


def test_the_strings_have_the_shape_of_the_public_trace() -> None:
    trace = (
        "519900|00814A444686605199000001AC|03|519900D15600000510000B26FFFFFFFF|32D9E876ADB31BBF|"
        "DBF7A936D0D18C9E|98B4D293D091C331|E603E2CAADAF02B6|"
    )
    assert BAS_3.match(trace)


def test_reading_a_3_0_card(bench: Bench, library: TerminalLibrary, back_end: BackEnd) -> None:
    line = library.read_card_bas_step1()
    assert BAS_3.match(line)
    assert line.startswith(
        f"510100|{bench.card.atr[4:].hex().upper()}|{bench.algorithm:02X}|510100D1"
    )
    assert library.read_card_bas_step2(back_end.basic(line)) == BasicData(
        region="510100",
        algorithm=bench.algorithm,
        historical=bench.card.atr[4:].hex().upper(),
        identifier="510100D156000005000001ACFFFFFFFF",
        version="3.00",
        issued="20240101",
        expires="20340101",
        card_number="00000428X",
        social_security_number=synthetic_holder("510100", 428).social_security_number,
        name="测试428",
    )


@pytest.mark.parametrize("generation", ["1.0", "2.0"])
@pytest.mark.parametrize("algorithm", [0x01, 0x03])
def test_an_older_card_asks_for_no_proof(issue: Issue, generation: str, algorithm: int) -> None:
    bench = issue(generation=generation, algorithm=algorithm)
    library = TerminalLibrary(bench.card.transmit, bench.card.atr)
    line = library.read_card_bas_step1()
    assert BAS_1.match(line)
    answer = BackEnd(bench).basic(line)
    assert answer.endswith("||")
    assert library.read_card_bas_step2(answer).name == "测试428"


def test_a_card_that_names_no_algorithm_is_des() -> None:
    card = issue_card(generation="1.0", algorithm=0x01, names_algorithm=False)
    line = TerminalLibrary(card.transmit, card.atr).read_card_bas_step1()
    assert line.split("|")[2] == "01"


def test_unless_it_is_beijings() -> None:
    card = issue_card(region="110100", generation="1.0", algorithm=0x01, names_algorithm=False)
    line = TerminalLibrary(card.transmit, card.atr).read_card_bas_step1()
    assert line.split("|")[2] == "02"


def test_a_forged_card_is_found_out(bench: Bench, back_end: BackEnd) -> None:
    library = TerminalLibrary(forge_card(bench.card).transmit, bench.card.atr)
    line = library.read_card_bas_step1()
    with pytest.raises(CardNotGenuine):
        library.read_card_bas_step2(back_end.basic(line))


def test_a_back_end_with_other_keys_learns_nothing_of_the_holder(
    bench: Bench, library: TerminalLibrary, back_end: BackEnd
) -> None:
    line = library.read_card_bas_step1()
    internal, external, _ = back_end.basic(line).split("|")
    wrong = f"{int(external[:16], 16) ^ 1:016X}{external[16:]}"
    with pytest.raises(CardRefused) as caught:
        library.read_card_bas_step2(f"{internal}|{wrong}|")
    assert caught.value.code == -0x63C4
    assert "4 tries left" in str(caught.value)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda answer: answer[:-1],
        lambda answer: answer.lower(),
        lambda answer: answer + "\n",
        lambda answer: answer.split("|")[0] + "||",
        lambda answer: answer[:16] + "0000000000000000" + answer[32:],
        lambda _: "",
    ],
    ids=["no end", "lower case", "new line", "no external", "another challenge", "nothing"],
)
def test_an_answer_that_is_not_of_the_form(
    library: TerminalLibrary, back_end: BackEnd, spoil: object
) -> None:
    answer = back_end.basic(library.read_card_bas_step1())
    assert callable(spoil)
    with pytest.raises(RemoteProtocolError):
        library.read_card_bas_step2(spoil(answer))


def test_steps_are_taken_in_order(library: TerminalLibrary, back_end: BackEnd) -> None:
    with pytest.raises(LocalProtocolError):
        library.read_card_bas_step2("")
    line = library.read_card_bas_step1()
    with pytest.raises(LocalProtocolError):
        library.write_card_step2("")
    # The step that was taken wrongly used up what the first had begun.
    with pytest.raises(LocalProtocolError):
        library.read_card_bas_step2(back_end.basic(line))
    library.reload_pin_step1()
    with pytest.raises(LocalProtocolError):
        library.unblock_pin_step2("")


# iReadCard and iWriteCard.


def test_reading_fields(library: TerminalLibrary, back_end: BackEnd) -> None:
    line = library.read_card_step1("SSSEEF06|09|0C|0D|$")
    assert line.split("|")[1] == "004C"
    assert library.read_card_step2(back_end.external(line)) == "测试428|510100|19000101|"


def test_reading_what_is_free(bench: Bench, library: TerminalLibrary) -> None:
    assert library.read_card_step1("SSSEEF05|03|07|$") == f"{bench.algorithm:02X}||||"
    assert library.read_card_step2() == "3.00|00000428X|"


def test_writing_fields(library: TerminalLibrary, back_end: BackEnd) -> None:
    line = library.write_card_step1("SSSEEF06|09|0A|$", ["李测试", "2"])
    assert line.split("|")[1] == "0094"
    library.write_card_step2(back_end.external(line))
    line = library.read_card_step1("SSSEEF06|0A|09|$")
    assert library.read_card_step2(back_end.external(line)) == "2|李测试|"


def test_a_plain_file_of_an_application(library: TerminalLibrary, back_end: BackEnd) -> None:
    line = library.write_card_step1("DF01EF06|$", ["A1A2A3"])
    assert line.split("|")[1] == "009A"
    library.write_card_step2(back_end.external(line))
    assert library.read_card_step1("DF01EF06|$").endswith("||||")
    assert library.read_card_step2() == "A1A2A3" + "00" * 61 + "|"


def test_a_file_that_wants_a_mac_cannot_be_written_in_two_steps(
    library: TerminalLibrary, back_end: BackEnd
) -> None:
    line = library.write_card_step1("DF04EF05|$", ["A1A2A3"])
    assert line.split("|")[1] == "00AC"
    with pytest.raises(CardRefused) as caught:
        library.write_card_step2(back_end.external(line))
    assert caught.value.sw == SW.SECURE_MESSAGING_MISSING
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    "file_address",
    [
        "",
        "SSSEEF06",
        "SSSEEF06|08|",
        "SSSEEF06|$",
        "SSSEEF06|99|$",
        "SSSEEF99|08|$",
        "DF01EF06|08|$",
    ],
)
def test_what_is_no_file_address(library: TerminalLibrary, file_address: str) -> None:
    with pytest.raises(ValueError, match="file"):
        library.read_card_step1(file_address)


# The PIN.


def test_reloading_the_pin(bench: Bench, library: TerminalLibrary, back_end: BackEnd) -> None:
    line = library.reload_pin_step1()
    assert line.split("|")[1] == "0090"
    line = library.reload_pin_step2(back_end.external(line), "24681")
    header = {0x01: "842400010C", 0x03: "8424000114"}[bench.algorithm]
    assert re.match(rf"\A0[13]\|0173\|[0-9A-F]{{16}}\|{header}\|24681\|\Z", line)
    pkey = back_end.message(line)
    assert len(pkey) == {0x01: 34, 0x03: 50}[bench.algorithm]
    library.reload_pin_step3(pkey)
    library.verify_pin("24681")
    library.change_pin("24681", "1357")
    library.verify_pin("1357")


def test_unblocking_the_pin(bench: Bench, library: TerminalLibrary, back_end: BackEnd) -> None:
    for _ in range(6):
        with pytest.raises(CardRefused):
            library.verify_pin("0000")
    with pytest.raises(CardRefused) as caught:
        library.verify_pin("123456")
    assert caught.value.sw == SW.AUTHENTICATION_BLOCKED
    line = library.unblock_pin_step2(back_end.external(library.unblock_pin_step1()))
    assert re.match(r"\A0[13]\|0173\|[0-9A-F]{16}\|8424000004\|\|\Z", line)
    pkey = back_end.message(line)
    assert len(pkey) == 18
    library.unblock_pin_step3(pkey)
    library.verify_pin("123456")


def test_another_command_than_was_asked_for_does_not_reach_the_card(
    library: TerminalLibrary, back_end: BackEnd
) -> None:
    line = library.unblock_pin_step2(back_end.external(library.unblock_pin_step1()))
    pkey = back_end.message(line)
    with pytest.raises(RemoteProtocolError):
        library.unblock_pin_step3("84160000" + pkey[8:])


# iDoDebit.


def test_a_debit(bench: Bench, library: TerminalLibrary, back_end: BackEnd) -> None:
    line = library.do_debit_step1(own=100, pooled=200, terminal="510100000001", time=TIME)
    assert DEBIT.match(line)
    done = library.do_debit_step2(back_end.debit(line))
    mac2, *middle, tac, end = done.split("|")
    assert not end
    algorithm = f"{bench.algorithm:02X}"
    assert middle == [algorithm, "017F", "00000064000000C8", "01", "510100000001", "0000000A", TIME]
    amounts = bytes(4) + bytes.fromhex("00000064000000C8")
    kind, terminal, number, time = map(bytes.fromhex, ("01", "510100000001", "0000000A", TIME))
    expected = arithmetic.debit_tac(bench.key(0x00B5), amounts, kind, terminal, number, time)
    assert tac == expected.hex().upper()
    assert bench.ok("B02E000102000108") == mac2 + tac


def test_the_interface_does_not_tell_of_the_personal_account(
    library: TerminalLibrary, back_end: BackEnd
) -> None:
    line = library.do_debit_step1(
        account=1, own=100, pooled=200, terminal="510100000001", time=TIME
    )
    assert DEBIT.match(line)
    with pytest.raises(CardRefused) as caught:
        library.do_debit_step2(back_end.debit(line))
    assert caught.value.sw == SW.MAC_INVALID


# Issuing.


@pytest.mark.parametrize(
    "wrong",
    [
        {"region": "5101"},
        {"region": "510100\n"},
        {"serial": -1},
        {"serial": 1 << 32},
        {"generation": "4.0"},
        {"algorithm": 4},
        {"levels": 0},
        {"pin": "123"},
        {"balance": -1},
    ],
)
def test_a_card_that_cannot_be(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"there is no|six digits|four bytes"):
        issue_card(**wrong)  # type: ignore[arg-type]  # wrong on purpose


def test_ssf33_needs_hardware() -> None:
    with pytest.raises(AlgorithmNotSupported):
        issue_card(algorithm=0x02)


def test_two_cards_differ_in_everything_that_names_them() -> None:
    one, other = issue_card(serial=1), issue_card(serial=2)
    assert one.atr != other.atr
    select, read_file, read = (
        "00A404000F7378312E73682EC9E7BBE1B1A3D5CF",
        "00A4020002EF05",
        "00B2010000",
    )
    for command in (select, read_file):
        assert one.transmit(bytes.fromhex(command))[-2:] == b"\x90\x00"
        other.transmit(bytes.fromhex(command))
    assert one.transmit(bytes.fromhex(read)) != other.transmit(bytes.fromhex(read))


def test_a_holder_of_ones_own() -> None:
    holder = Holder("欧阳测试", "510100190001010014", birthplace="510100")
    card = issue_card(generation="2.0", algorithm=0x01, holder=holder)
    library = TerminalLibrary(card.transmit, card.atr)
    library.read_card_step1("SSSEEF06|08|09|$")
    assert library.read_card_step2() == "510100190001010014|欧阳测试|"


def test_the_synthetic_holder_cannot_exist_but_adds_up() -> None:
    number = synthetic_holder("510100", 428).social_security_number
    weights = [pow(2, 17 - place, 11) for place in range(18)]
    digits = [10 if digit == "X" else int(digit) for digit in number]
    assert sum(w * d for w, d in zip(weights, digits, strict=True)) % 11 == 1
    assert number[6:14] == "19000101"


def test_no_repr_shows_the_holder(
    bench: Bench, library: TerminalLibrary, back_end: BackEnd
) -> None:
    data = library.read_card_bas_step2(back_end.basic(library.read_card_bas_step1()))
    assert data.name not in repr(data)
    assert data.social_security_number not in repr(data)
