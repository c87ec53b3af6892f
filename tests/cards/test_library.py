"""The library's strings are answered bit for bit or refused by field number, and no refusal repeats a field."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyd.cards import library
from keyd.cards.identity import Warned
from keyd.crypto.algorithms import CardAlgorithm
from keyd.errors import (
    AlgorithmNotSupported,
    BadParameter,
    CardDataInconsistent,
    CommandNotAllowed,
    KeyNotFound,
    KeyUsageRefused,
    MacNotAuthentic,
    Refusal,
    TacNotAuthentic,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyd.cards.identity import Card
    from tests.cards.conftest import Bench

unhex: Final = bytes.fromhex

# The trace of the interface documents. Its keys are unknown, so that only its shape can be checked; its reset
# information is not public, and this one agrees with the identifier.
TRACE: Final = (
    "519900|00814A44468605519910000B26|03|519900D15600000510000B26FFFFFFFF|"
    "32D9E876ADB31BBF|DBF7A936D0D18C9E|98B4D293D091C331|E603E2CAADAF02B6|"
)
TRACE_REPLY: Final = "F4A0CF965BDCEA30DBF7A936D0D18C9E|774A08EDF447A1DEE603E2CAADAF02B6|"

BAS: Final = (
    "510100",
    "00814A44468649510130000BEE",
    "03",
    "510100D15600000530000BEE00000000",
    "32D9E876ADB31BBF",
    "DBF7A936D0D18C9E",
    "98B4D293D091C331",
    "E603E2CAADAF02B6",
)
FACTOR: Final = "0102030405060708"
CHALLENGE: Final = "A1A2A3A4A5A6A7A8"
PIN: Final = "918273"


def ended(*fields: str) -> str:
    return "".join(f"{field}|" for field in fields)


def with_field(fields: tuple[str, ...], number: int, value: str) -> tuple[str, ...]:
    return (*fields[: number - 1], value, *fields[number:])


def of(card: Card, *fields: str) -> str:
    """Return a string whose first field is the card's algorithm."""
    return ended(f"{card.algorithm:02X}", *fields)


def upper(octets: bytes) -> str:
    return octets.hex().upper()


# --- iReadCardBas


def test_a_3_0_cards_opening_is_answered_bit_for_bit(bench: Bench) -> None:
    text, card = bench.run(library.read_card_bas(bench.profiles, ended(*BAS)))
    internal = bench.key(card, 0x0170).derive(unhex(BAS[4])).cryptogram(unhex(BAS[5]))
    external = bench.key(card, 0x004C).derive(unhex(BAS[6])).cryptogram(unhex(BAS[7]))
    assert text == f"{upper(internal)}{BAS[5]}|{upper(external)}{BAS[7]}|"
    assert card.profile.generation == 3
    assert card.region == "510100"
    assert not card.warnings


def test_the_traces_shape_holds(bench: Bench) -> None:
    text, card = bench.run(library.read_card_bas(bench.profiles, TRACE))
    assert len(text) == len(TRACE_REPLY)
    assert [len(field) for field in text.split("|")] == [32, 32, 0]
    # Each reply ends in the challenge it is for; the cryptograms differ, for the keys do.
    theirs, ours = TRACE_REPLY.split("|"), text.split("|")
    assert [field[16:] for field in ours] == [field[16:] for field in theirs]
    assert card.algorithm is CardAlgorithm.SM4
    assert card.region == "519900"


def test_an_older_card_has_no_external_fields_and_gets_none(bench: Bench) -> None:
    fields = with_field((*BAS[:6], "", ""), 3, "01")
    text, card = bench.run(library.read_card_bas(bench.profiles, ended(*fields)))
    internal = bench.key(card, 0x0170).derive(unhex(BAS[4])).cryptogram(unhex(BAS[5]))
    assert text == f"{upper(internal)}{BAS[5]}||"
    assert card.profile.generation == 2


@pytest.mark.parametrize("ninth", ["", "T-0001", "510100000001", "终端"])
def test_some_builds_append_the_terminals_code(bench: Bench, ninth: str) -> None:
    eight = bench.run(library.read_card_bas(bench.profiles, ended(*BAS)))[0]
    nine = bench.run(library.read_card_bas(bench.profiles, ended(*BAS, ninth)))[0]
    assert nine == eight


def test_the_whole_atr_is_as_good_as_the_historical_bytes(bench: Bench) -> None:
    historical = bench.run(library.read_card_bas(bench.profiles, ended(*BAS)))
    fields = with_field(BAS, 2, "3B6D0000" + BAS[1])
    assert bench.run(library.read_card_bas(bench.profiles, ended(*fields))) == historical


def test_a_region_beside_the_cards_own_is_noticed_and_not_used(bench: Bench) -> None:
    text, _ = bench.run(library.read_card_bas(bench.profiles, ended(*BAS)))
    other = with_field(BAS, 1, "330100")
    other_text, card = bench.run(library.read_card_bas(bench.profiles, ended(*other)))
    assert other_text == text
    assert card.region == "510100"
    assert card.warnings == (Warned.REGION_MISMATCH,)


def test_another_cards_serial_is_refused(bench: Bench) -> None:
    fields = with_field(BAS, 2, BAS[1][:-1] + "F")
    with pytest.raises(CardDataInconsistent):
        bench.run(library.read_card_bas(bench.profiles, ended(*fields)))


@pytest.mark.parametrize(("algorithm", "generation"), [("02", 3), ("02", 2), ("03", 2)])
def test_an_algorithm_that_is_not_there_is_refused(
    bench: Bench, algorithm: str, generation: int
) -> None:
    fields = with_field(BAS, 3, algorithm)
    if generation == 2:
        fields = (*fields[:6], "", "")
    with pytest.raises(AlgorithmNotSupported):
        bench.run(library.read_card_bas(bench.profiles, ended(*fields)))


# Every way to be wrong, by the number of the field that is.
BAD_HEX: Final = (
    "",
    "0",
    "GG" * 8,
    "32d9e876adb31bbf",
    " 32D9E876ADB31BB",
    "３" * 16,
    FACTOR + "00",
)
BAS_MALFORMED: Final = {
    1: ("", "51010", "5101000", "51010A", "51010\n", "５１０１００", "-10100"),
    2: (
        *(
            "",
            "00",
            "00814A44468649510130000BE",
            "00814a44468649510130000bee",
            "3B6D0000" + "G" * 26,
        ),
        *("3B6D000000814A44468649510130000B", "006D000000814A44468649510130000BEE"),
        "3B6C000000814A44468649510130000BEE",
    ),
    3: ("", "3", "00", "04", "FF", "0x", "SM4", "３３"),
    4: (
        *("", "51", "510100D15600000530000BEE000000", "510100d15600000530000bee00000000"),
        *("510100D15600000630000BEE00000000", "51010FD15600000530000BEE00000000"),
    ),
    5: BAD_HEX,
    6: BAD_HEX,
    7: BAD_HEX,
    8: BAD_HEX,
}


@pytest.mark.parametrize(
    ("number", "value"),
    [(number, value) for number, values in BAS_MALFORMED.items() for value in values],
)
def test_a_malformed_opening_is_refused_by_field_number(
    bench: Bench, number: int, value: str
) -> None:
    fields = with_field(BAS, number, value)
    with pytest.raises(BadParameter, match=f"field {number}\\b") as refused:
        bench.run(library.read_card_bas(bench.profiles, ended(*fields)))
    assert not value or len(value) < 4 or value not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "|",
        ended(*BAS)[:-1],
        ended(*BAS[:7]),
        ended(*BAS, "T-1", "x"),
        ended(*BAS) + "\n",
        ended(*BAS) + "x",
        " " + ended(*BAS[:7]),
        ended(*BAS).replace("|", "｜"),
    ],
)
def test_another_number_of_fields_is_refused(bench: Bench, text: str) -> None:
    with pytest.raises(BadParameter, match="8 or 9 fields"):
        bench.run(library.read_card_bas(bench.profiles, text))


# --- iReadCard, iWriteCard and the first step of the PIN functions


def addresses(bench: Bench, prefix: str) -> list[int]:
    return [key.address for key in bench.profile().keys.values() if key.name.startswith(prefix)]


@pytest.mark.parametrize("prefix", ["RK", "UK", library.PUK])
def test_an_external_step_is_answered_with_32_hex_digits(
    bench: Bench, card: Card, prefix: str
) -> None:
    found = addresses(bench, prefix)
    assert found
    for address in found:
        text = of(card, f"{address:04X}", FACTOR, CHALLENGE)
        reply = bench.run(library.external_step(card, text, prefix))
        cryptogram = bench.key(card, address).derive(unhex(FACTOR)).cryptogram(unhex(CHALLENGE))
        assert reply == upper(cryptogram) + CHALLENGE
        assert len(reply) == 32


@pytest.mark.parametrize(
    ("prefix", "other"),
    [("RK", "UK"), ("RK", "PUK"), ("UK", "RK"), ("UK", "PUK"), ("PUK", "RK"), ("PUK", "BK")],
)
def test_a_step_is_for_its_own_kind_of_key(
    bench: Bench, card: Card, prefix: str, other: str
) -> None:
    for address in addresses(bench, other):
        text = of(card, f"{address:04X}", FACTOR, CHALLENGE)
        with pytest.raises(CommandNotAllowed, match=f"for {prefix} keys"):
            bench.run(library.external_step(card, text, prefix))


@pytest.mark.parametrize("address", ["0000", "FFFF", "004B"])
def test_an_unknown_address_is_refused(bench: Bench, card: Card, address: str) -> None:
    text = of(card, address, FACTOR, CHALLENGE)
    with pytest.raises((CommandNotAllowed, KeyNotFound)):
        bench.run(library.external_step(card, text, "RK"))


def test_an_older_card_has_no_reading_key_for_its_data(bench: Bench) -> None:
    old = bench.card(CardAlgorithm.DES, generation=2)
    with pytest.raises((CommandNotAllowed, KeyNotFound)):
        bench.run(library.external_step(old, of(old, "004C", FACTOR, CHALLENGE), "RK"))


@pytest.mark.parametrize("number", [2, 3, 4])
@pytest.mark.parametrize("value", ["", "0", "00ff", "004c", "GGGG", "123456789012345", FACTOR * 2])
def test_a_malformed_step_is_refused_by_field_number(
    bench: Bench, card: Card, number: int, value: str
) -> None:
    fields = (f"{card.algorithm:02X}", "004C", FACTOR, CHALLENGE)
    text = ended(*with_field(fields, number, value))
    with pytest.raises(BadParameter, match=f"field {number}\\b"):
        bench.run(library.external_step(card, text, "RK"))


@pytest.mark.parametrize("value", ["", "1", "00", "02", "04", "0G", "003"])
def test_a_step_of_another_algorithm_is_refused(bench: Bench, card: Card, value: str) -> None:
    text = ended(value, "004C", FACTOR, CHALLENGE)
    with pytest.raises(BadParameter, match="field 1"):
        bench.run(library.external_step(card, text, "RK"))


# --- PIN


def reload_header(card: Card) -> str:
    return "842400010C" if card.algorithm is CardAlgorithm.DES else "8424000114"


def test_a_pin_is_reloaded_in_three_steps(bench: Bench, card: Card) -> None:
    proof = bench.run(library.external_step(card, of(card, "0090", FACTOR, CHALLENGE), "PUK"))
    assert len(proof) == 32
    header = reload_header(card)
    reply = bench.run(library.reload_pin_2(card, of(card, "0173", FACTOR, header, PIN)))
    assert len(reply) == (34 if card.algorithm is CardAlgorithm.DES else 50)
    assert reply.startswith(header)
    session = bench.key(card, 0x0173).derive(unhex(FACTOR))
    expected = session.protect(unhex("84240001"), unhex(PIN), encrypt=True)
    assert reply == upper(expected)


def test_a_pin_is_unblocked_in_three_steps(bench: Bench, card: Card) -> None:
    reply = bench.run(library.unblock_pin_2(card, of(card, "0173", FACTOR, "8424000004", "")))
    assert len(reply) == 18
    session = bench.key(card, 0x0173).derive(unhex(FACTOR))
    assert reply == upper(session.protect(unhex("84240000"), b"", encrypt=False))


@given(pin=st.text("0123456789", min_size=4, max_size=16))
def test_the_answer_begins_with_the_header_that_the_library_gave(bench: Bench, pin: str) -> None:
    # Under DES, a PIN of 15 or 16 digits would make a longer command than the library announced.
    for algorithm in (CardAlgorithm.SM4, CardAlgorithm.DES):
        card = bench.card(algorithm)
        header = reload_header(card)
        text = of(card, "0173", FACTOR, header, pin)
        if algorithm is CardAlgorithm.DES and len(pin) > 14:
            with pytest.raises(BadParameter, match="field 5") as refused:
                bench.run(library.reload_pin_2(card, text))
            assert pin not in str(refused.value)
            continue
        reply = bench.run(library.reload_pin_2(card, text))
        assert reply.startswith(header)
        assert len(reply) == len(header) + 2 * int(header[-2:], 16)


BAD_PINS: Final = ("", "123", "1" * 17, "12345A", "１２３４５６", "123456\n", " 123456", "12²456")


@pytest.mark.parametrize("pin", BAD_PINS)
def test_what_is_no_pin_is_refused_and_never_repeated(bench: Bench, card: Card, pin: str) -> None:
    text = of(card, "0173", FACTOR, reload_header(card), pin)
    with pytest.raises(BadParameter, match="field 5") as refused:
        bench.run(library.reload_pin_2(card, text))
    assert not pin or pin.strip() not in str(refused.value)


def other_headers(card: Card) -> list[str]:
    every = ["842400010C", "8424000114", "8424000004", "8424000214", "84240001", "8424000110", ""]
    return [header for header in every if header != reload_header(card)]


def test_only_the_cards_own_header_reloads(bench: Bench, card: Card) -> None:
    for header in other_headers(card):
        with pytest.raises(BadParameter, match="field 4") as refused:
            bench.run(library.reload_pin_2(card, of(card, "0173", FACTOR, header, PIN)))
        assert PIN not in str(refused.value)


@pytest.mark.parametrize("header", ["842400010C", "8424000114", "8424000005", "84240000", ""])
def test_only_the_unblock_header_unblocks(bench: Bench, card: Card, header: str) -> None:
    with pytest.raises(BadParameter, match="field 4"):
        bench.run(library.unblock_pin_2(card, of(card, "0173", FACTOR, header, "")))


def test_a_pin_is_not_unblocked_with_a_pin(bench: Bench, card: Card) -> None:
    with pytest.raises(BadParameter, match="field 5") as refused:
        bench.run(library.unblock_pin_2(card, of(card, "0173", FACTOR, "8424000004", PIN)))
    assert PIN not in str(refused.value)


@pytest.mark.parametrize("address", ["0174", "0090", "0172", "173", "", "0173 "])
def test_a_pin_step_is_protected_by_stkssse_alone(bench: Bench, card: Card, address: str) -> None:
    for step, last in ((library.reload_pin_2, PIN), (library.unblock_pin_2, "")):
        header = reload_header(card) if last else "8424000004"
        with pytest.raises(BadParameter, match="field 2") as refused:
            bench.run(step(card, of(card, address, FACTOR, header, last)))
        assert PIN not in str(refused.value)


@pytest.mark.parametrize("factor", ["", "01020304", FACTOR * 2, "0102030405060g08", FACTOR + " "])
def test_a_pin_steps_factor_has_eight_bytes(bench: Bench, card: Card, factor: str) -> None:
    with pytest.raises(BadParameter, match="field 3") as refused:
        bench.run(library.reload_pin_2(card, of(card, "0173", factor, reload_header(card), PIN)))
    assert PIN not in str(refused.value)


# --- iDoDebit

NUMBER: Final = "0000000A"
DEBIT: Final = (
    *("017F", "01020304", "0005", "0000271000000064", "01", "510100000001"),
    "20240102030405",
)


def debit_1(card: Card) -> tuple[str, ...]:
    return (f"{card.algorithm:02X}", *DEBIT)


def proofs(bench: Bench, card: Card, amounts: str, address: int = 0x017F) -> tuple[str, str, str]:
    """Compute MAC1, MAC2 and TAC from the typed levels, past the services."""
    session = bench.key(card, address).derive(unhex(DEBIT[1] + DEBIT[2] + NUMBER[4:]))
    kind, terminal, time = DEBIT[4:]
    return (
        upper(session.mac(unhex(amounts + kind + terminal + time))),
        upper(session.mac(unhex(amounts))),
        upper(bench.key(card, 0x00B5).tac(unhex(amounts + kind + terminal + NUMBER + time))),
    )


# The string carries the last two of three amounts; the first is zero.
AMOUNTS: Final = "00000000" + DEBIT[3]


def debit_2(bench: Bench, card: Card) -> tuple[str, ...]:
    _, mac2, tac = proofs(bench, card, AMOUNTS)
    return (
        *(mac2, f"{card.algorithm:02X}", DEBIT[0], DEBIT[3], DEBIT[4], DEBIT[5]),
        *(NUMBER, DEBIT[6], tac),
    )


def test_a_debit_is_made_and_confirmed_in_two_steps(bench: Bench, card: Card) -> None:
    step1 = ended(*debit_1(card))
    reply = bench.run(library.do_debit_1(card, step1, unhex(NUMBER)))
    assert reply == f"{NUMBER}|{DEBIT[6]}|{proofs(bench, card, AMOUNTS)[0]}|"
    bench.run(library.do_debit_2(card, step1, ended(*debit_2(bench, card))))


@pytest.mark.parametrize("address", ["0180", "0181", "0199", "019C", "019E"])
def test_every_debit_key_debits(bench: Bench, card: Card, address: str) -> None:
    step1 = ended(*with_field(debit_1(card), 2, address))
    reply = bench.run(library.do_debit_1(card, step1, unhex(NUMBER)))
    assert reply.split("|")[2] == proofs(bench, card, AMOUNTS, int(address, 16))[0]


@pytest.mark.parametrize(
    ("number", "value", "refusal"),
    [
        (2, "0170", KeyUsageRefused),
        (2, "00B2", KeyUsageRefused),
        (2, "00B5", KeyUsageRefused),
        (2, "FFFF", KeyNotFound),
    ],
)
def test_another_key_does_not_debit(
    bench: Bench, card: Card, number: int, value: str, refusal: type[Refusal]
) -> None:
    step1 = ended(*with_field(debit_1(card), number, value))
    with pytest.raises(refusal):
        bench.run(library.do_debit_1(card, step1, unhex(NUMBER)))


DEBIT_1_MALFORMED: Final = {
    1: ("", "02", "0", "XX"),
    2: ("", "17F", "017f", "0x17"),
    3: ("", "0102030", "0102030405", "0102030g"),
    4: ("", "5", "000005", "00 5"),
    5: ("", "00002710", "000027100000006400000000", "000027100000006g"),
    6: ("", "1", "0001", "0x"),
    7: ("", "51010000000", "5101000000011", "51010000000A"),
    8: ("", "2024010203040", "20240102030405 ", "2024010203040A", "2024-01-02"),
}


@pytest.mark.parametrize(
    ("number", "value"),
    [(number, value) for number, values in DEBIT_1_MALFORMED.items() for value in values],
)
def test_a_malformed_debit_is_refused_by_field_number(
    bench: Bench, card: Card, number: int, value: str
) -> None:
    step1 = ended(*with_field(debit_1(card), number, value))
    with pytest.raises(BadParameter, match=f"field {number}\\b"):
        bench.run(library.do_debit_1(card, step1, unhex(NUMBER)))


@pytest.mark.parametrize(
    ("number", "value"),
    [
        (2, "02"),
        (4, "0000271000000065"),
        (4, "0000271000000064FF"),
        (5, "02"),
        (6, "510100000002"),
        (8, "20240102030406"),
    ],
)
def test_the_two_steps_are_of_one_transaction(
    bench: Bench, card: Card, number: int, value: str
) -> None:
    step2 = ended(*with_field(debit_2(bench, card), number, value))
    with pytest.raises(BadParameter, match=f"field {number}\\b"):
        bench.run(library.do_debit_2(card, ended(*debit_1(card)), step2))


@pytest.mark.parametrize("number", [1, 7, 9])
@pytest.mark.parametrize("value", ["", "1234567", "123456789", "1234567g", "a1b2c3d4"])
def test_a_malformed_second_step_is_refused_by_field_number(
    bench: Bench, card: Card, number: int, value: str
) -> None:
    step2 = ended(*with_field(debit_2(bench, card), number, value))
    with pytest.raises(BadParameter, match=f"field {number}\\b"):
        bench.run(library.do_debit_2(card, ended(*debit_1(card)), step2))


def test_forged_proofs_are_refused(bench: Bench, card: Card) -> None:
    step1, step2 = ended(*debit_1(card)), debit_2(bench, card)

    def flipped(field: str, bit: int) -> str:
        return f"{int(field, 16) ^ 1 << bit:08X}"

    for bit in range(32):
        forged = with_field(step2, 1, flipped(step2[0], bit))
        with pytest.raises(MacNotAuthentic):
            bench.run(library.do_debit_2(card, step1, ended(*forged)))
        forged = with_field(step2, 9, flipped(step2[8], bit))
        with pytest.raises(TacNotAuthentic):
            bench.run(library.do_debit_2(card, step1, ended(*forged)))
    # Another terminal transaction number is another transaction: its MAC2 is another.
    with pytest.raises((MacNotAuthentic, TacNotAuthentic)):
        bench.run(library.do_debit_2(card, step1, ended(*with_field(step2, 7, "0000000B"))))


def test_the_tac_may_name_its_own_key(bench: Bench, card: Card) -> None:
    step1 = ended(*debit_1(card))
    named = with_field(debit_2(bench, card), 3, "00B5")
    bench.run(library.do_debit_2(card, step1, ended(*named)))
    for address in ("00B6", "00B7"):
        other = with_field(debit_2(bench, card), 3, address)
        with pytest.raises(TacNotAuthentic):
            bench.run(library.do_debit_2(card, step1, ended(*other)))
    for address in ("0170", "0180", "00B2"):
        other = with_field(debit_2(bench, card), 3, address)
        with pytest.raises((KeyUsageRefused, BadParameter)):
            bench.run(library.do_debit_2(card, step1, ended(*other)))


# --- whatever arrives

CANARY: Final = "CANARY"

texts = st.one_of(
    st.text(max_size=80),
    st.lists(st.text("0123456789ABCDEFabcdef ", max_size=34), max_size=10).map(
        lambda fields: ended(*fields)
    ),
)


@given(text=texts)
def test_no_string_raises_anything_but_a_refusal(bench: Bench, text: str) -> None:
    card = bench.card()
    steps: list[Callable[[], object]] = [
        lambda: bench.run(library.read_card_bas(bench.profiles, text)),
        lambda: bench.run(library.external_step(card, text, "RK")),
        lambda: bench.run(library.reload_pin_2(card, text)),
        lambda: bench.run(library.unblock_pin_2(card, text)),
        lambda: bench.run(library.do_debit_1(card, text, bytes(4))),
        lambda: bench.run(library.do_debit_2(card, text, text)),
        lambda: bench.run(library.do_debit_2(card, ended(*debit_1(card)), text)),
    ]
    for step in steps:
        with pytest.raises(Refusal):
            step()


@given(number=st.integers(1, 9), data=st.data())
def test_no_refusal_repeats_a_field(bench: Bench, number: int, data: st.DataObject) -> None:
    card = bench.card()
    cases: list[tuple[tuple[str, ...], Callable[[str], object]]] = [
        (BAS, lambda text: bench.run(library.read_card_bas(bench.profiles, text))),
        (
            ("03", "004C", FACTOR, CHALLENGE),
            lambda text: bench.run(library.external_step(card, text, "RK")),
        ),
        (
            ("03", "0173", FACTOR, "8424000114", PIN),
            lambda text: bench.run(library.reload_pin_2(card, text)),
        ),
        (
            ("03", "0173", FACTOR, "8424000004", ""),
            lambda text: bench.run(library.unblock_pin_2(card, text)),
        ),
        (
            debit_1(card),
            lambda text: bench.run(library.do_debit_1(card, text, bytes(4))),
        ),
        (
            debit_2(bench, card),
            lambda text: bench.run(library.do_debit_2(card, ended(*debit_1(card)), text)),
        ),
    ]
    fields, step = data.draw(st.sampled_from(cases))
    place = min(number, len(fields))
    with pytest.raises(Refusal) as refused:
        step(ended(*with_field(fields, place, CANARY)))
    assert CANARY not in str(refused.value)
    assert refused.value.__cause__ is None
