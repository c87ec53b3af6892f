"""A command is protected only by a key that may protect it, and a PIN is in no text but the ciphertext."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyd.cards import messaging
from keyd.crypto.algorithms import CardAlgorithm
from keyd.errors import BadParameter, CommandNotAllowed, KeyNotFound, KeyUsageRefused, TooLarge
from keyd.keys.block import Use

if TYPE_CHECKING:
    from keyd.cards.identity import Card
    from keyd.keys.sam import Steps
    from tests.cards.conftest import Bench, Worked

STKSSSE: Final = 0x0173
STKDF01: Final = 0x0174
STKDF03: Final = 0x0186
STKDF04: Final = 0x0175

FACTOR: Final = bytes.fromhex("0102030405060708")

unhex: Final = bytes.fromhex


def protect(
    card: Card, header: str, plaintext: str = "", address: int = STKSSSE, *, encrypt: bool = False
) -> Steps[bytes]:
    return messaging.protect(
        card, address, FACTOR, unhex(header), unhex(plaintext), encrypt=encrypt
    )


# --- the worked examples


def test_the_commands_are_the_worked_ones(worked: Worked) -> None:
    example, card = worked.example, worked.card
    assert unhex(example["session_factor"]) == FACTOR

    def upper(steps: Steps[bytes]) -> str:
        return worked.run(steps).hex().upper()

    assert upper(messaging.pin_unblock(card, FACTOR)) == example["pin_unblock"]
    assert upper(messaging.pin_reload(card, FACTOR, example["pin"])) == example["pin_reload"]
    assert upper(protect(card, "04D60000", "A1A2A3A4")) == example["update_binary"]
    assert upper(protect(card, "841E0001")) == example["application_block"]
    assert upper(protect(card, "84160000")) == example["card_block"]


def test_a_single_length_key_gives_the_worked_commands(single_length: Worked) -> None:
    example, card = single_length.example, single_length.card
    unblock = single_length.run(messaging.pin_unblock(card, FACTOR))
    assert unblock.hex().upper() == example["pin_unblock"]
    reload = single_length.run(messaging.pin_reload(card, FACTOR, example["pin"]))
    assert reload.hex().upper() == example["pin_reload"]


def test_a_des_cards_stk_is_single_length(bench: Bench) -> None:
    card = bench.card(CardAlgorithm.DES)
    session = bench.key(card, STKSSSE).derive(FACTOR)
    assert bench.key(card, STKSSSE).algorithm.value == "DES"
    assert bench.run(messaging.pin_unblock(card, FACTOR)) == session.protect(
        unhex("84240000"), b"", encrypt=False
    )


# --- which key for which command


def stk_addresses(card: Card) -> dict[str, int]:
    return {key.name: key.address for key in card.profile.keys.values() if key.use is Use.MESSAGING}


ALLOWED: Final = {
    "04D60000": None,
    "04D68100": None,
    "04DC0104": None,
    "04E20000": None,
    "84160000": {"STKSSSE"},
    "841E0001": {"STKSSSE", "STKDF03", "STKDF04"},
    "841E0000": {"STKSSSE", "STKDF03", "STKDF04"},
}


@pytest.mark.parametrize("header", ALLOWED)
def test_a_command_is_protected_by_its_own_keys_alone(
    bench: Bench, card: Card, header: str
) -> None:
    every = stk_addresses(card)
    assert len(every) == 7
    allowed = ALLOWED[header] or set(every)
    for name, address in every.items():
        if name not in allowed:
            with pytest.raises(CommandNotAllowed, match=f"not protected by {name}"):
                bench.run(protect(card, header, address=address))
            continue
        apdu = bench.run(protect(card, header, "A1A2", address))
        session = bench.key(card, address).derive(FACTOR)
        assert apdu == session.protect(unhex(header), unhex("A1A2"), encrypt=False)


@pytest.mark.parametrize("header", ["84240000", "84240001", "84240002", "84240100", "8424FFFF"])
def test_a_pin_command_is_made_by_its_own_method_alone(
    bench: Bench, card: Card, header: str
) -> None:
    for address in stk_addresses(card).values():
        for plaintext, encrypt in (("", False), ("123456", True), ("0312345600000000", False)):
            with pytest.raises(CommandNotAllowed, match="PIN"):
                bench.run(protect(card, header, plaintext, address, encrypt=encrypt))


@pytest.mark.parametrize(
    "header", ["00D60000", "00A40400", "00000000", "80240000", "0C D60000", "94160000", "FFFFFFFF"]
)
def test_a_header_without_secure_messaging_is_refused(
    bench: Bench, card: Card, header: str
) -> None:
    with pytest.raises(CommandNotAllowed, match="no command under secure messaging"):
        bench.run(protect(card, header, "A1A2"))


@pytest.mark.parametrize("p1p2", ["0001", "0100", "FFFF"])
def test_card_block_has_one_form_for_any_key(bench: Bench, card: Card, p1p2: str) -> None:
    # CARD BLOCK ends a card's life: a variant of it must not pass as "some command with a MAC".
    for name, address in stk_addresses(card).items():
        if name != "STKSSSE":
            with pytest.raises(CommandNotAllowed):
                bench.run(protect(card, "8416" + p1p2, address=address))


def test_only_a_messaging_key_protects(bench: Bench, card: Card) -> None:
    for key in card.profile.keys.values():
        if key.use is Use.MESSAGING:
            continue
        with pytest.raises(KeyUsageRefused, match=f"{key.name}.*not messaging"):
            bench.run(protect(card, "04D60000", "A1", key.address))
    with pytest.raises(KeyNotFound, match="FFFF"):
        bench.run(protect(card, "04D60000", "A1", 0xFFFF))


def test_an_older_card_has_fewer_keys(bench: Bench) -> None:
    old = bench.card(CardAlgorithm.DES, generation=1)
    assert set(stk_addresses(old)) == {f"STK{a}" for a in ("SSSE", "DF01", "DF02", "DF03", "DF04")}
    with pytest.raises(KeyNotFound, match="008C"):
        bench.run(protect(old, "04D60000", "A1", 0x008C))


# --- what is protected


def test_there_must_be_something_to_encrypt(bench: Bench, card: Card) -> None:
    with pytest.raises(BadParameter, match="nothing to encrypt"):
        bench.run(protect(card, "04D60000", encrypt=True))


@pytest.mark.parametrize("factor", [b"", bytes(3), bytes(5), bytes(7), bytes(9), bytes(17)])
def test_a_session_factor_has_the_cards_length(bench: Bench, card: Card, factor: bytes) -> None:
    for steps in (
        messaging.pin_unblock(card, factor),
        messaging.pin_reload(card, factor, "123456"),
        messaging.protect(card, STKSSSE, factor, unhex("04D60000"), b"", encrypt=False),
    ):
        with pytest.raises(BadParameter, match="session factor"):
            bench.run(steps)


@given(plaintext=st.binary(max_size=255), encrypt=st.booleans())
def test_what_is_too_long_for_a_short_apdu_is_refused(
    bench: Bench, plaintext: bytes, encrypt: bool
) -> None:
    for algorithm in (CardAlgorithm.SM4, CardAlgorithm.DES):
        card = bench.card(algorithm)
        block = 16 if algorithm is CardAlgorithm.SM4 else 8
        length = -(-(1 + len(plaintext)) // block) * block if encrypt else len(plaintext)
        steps = messaging.protect(
            card, STKSSSE, FACTOR, unhex("04D60000"), plaintext, encrypt=encrypt
        )
        if encrypt and not plaintext:
            with pytest.raises(BadParameter):
                bench.run(steps)
        elif max(length, len(plaintext)) > 251:
            with pytest.raises(TooLarge):
                bench.run(steps)
        else:
            assert len(bench.run(steps)) == 5 + length + 4


# --- PINs


@given(pin=st.text("0123456789", min_size=4, max_size=16))
def test_a_pin_is_bcd_filled_with_f(pin: str) -> None:
    block = messaging.pin_block(pin)
    assert block.hex().upper().rstrip("F") == pin
    assert 2 <= len(block) == -(-len(pin) // 2) <= 8


@given(pin=st.text("0123456789", min_size=4, max_size=16))
def test_a_reloaded_pin_is_what_the_card_deciphers(bench: Bench, pin: str) -> None:
    for algorithm in (CardAlgorithm.SM4, CardAlgorithm.DES):
        card = bench.card(algorithm)
        apdu = bench.run(messaging.pin_reload(card, FACTOR, pin))
        session = bench.key(card, STKSSSE).derive(FACTOR)
        clear = session._key.decrypt(apdu[5:-4])
        assert clear[1 : 1 + clear[0]] == messaging.pin_block(pin)
        assert apdu[-4:] == session.mac(apdu[:-4])


@pytest.mark.parametrize(
    "pin",
    [
        "",
        "123",
        "12345678901234567",
        "12345A",
        "1234F",
        "-12345",
        "123456\n",
        "１２３４５６",
        "1²345",
    ],
)
def test_what_is_no_pin_is_refused_and_not_repeated(bench: Bench, card: Card, pin: str) -> None:
    with pytest.raises(BadParameter, match="a PIN has 4 to 16 decimal digits") as refused:
        bench.run(messaging.pin_reload(card, FACTOR, pin))
    assert not pin or pin not in str(refused.value)
    assert refused.value.__context__ is None


def test_no_task_for_a_sam_shows_the_pin(bench: Bench, card: Card) -> None:
    # Who computes may print what it was asked, in an exception say.
    (task,) = next(messaging.pin_reload(card, FACTOR, "91827364"))
    text = repr(task) + repr([task])
    for spelling in ("91827364", repr(unhex("91827364"))[2:-1], "182736"):
        assert spelling not in text
