"""A genuine card is believed, anything else is refused, and a key proves only what it is for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyd.cards import authentication
from keyd.cards.authentication import Exchange, verify_cryptogram
from keyd.crypto.algorithms import CardAlgorithm
from keyd.errors import AlgorithmNotSupported, CardNotAuthentic, KeyNotFound, KeyUsageRefused
from keyd.keys.block import Use
from tests.psam.sams import Divided

if TYPE_CHECKING:
    from keyd.cards.identity import Card
    from tests.cards.conftest import Bench, Worked

IRK: Final = 0x0170
RKSSSE: Final = 0x004C
PUK: Final = 0x0090

FACTOR: Final = bytes.fromhex("0102030405060708")
CHALLENGE: Final = bytes.fromhex("1112131415161718")

INTERNAL: Final = Exchange(IRK, FACTOR, CHALLENGE)
EXTERNAL: Final = Exchange(RKSSSE, CHALLENGE, FACTOR)

blocks = st.binary(min_size=8, max_size=8)


def cryptogram_of(bench: Bench, card: Card, exchange: Exchange) -> bytes:
    session = bench.key(card, exchange.address).derive(exchange.session_factor)
    return session.cryptogram(exchange.challenge)


def flips(octets: bytes) -> list[bytes]:
    whole = int.from_bytes(octets, "big")
    return [(whole ^ 1 << bit).to_bytes(len(octets), "big") for bit in range(8 * len(octets))]


# --- the worked examples


def test_the_replies_are_the_worked_ones(worked: Worked) -> None:
    example = worked.example
    factor, challenge = (bytes.fromhex(example[n]) for n in ("session_factor", "challenge"))
    internal = Exchange(IRK, factor, challenge)
    reply = worked.run(authentication.internal_cryptogram(worked.card, internal))
    assert reply.hex().upper() == example["reply"]
    worked.run(
        authentication.internal_authenticate(
            worked.card, internal, bytes.fromhex(example["cryptogram"])
        )
    )
    external = Exchange(RKSSSE, factor, challenge)
    proof = worked.run(authentication.external_authenticate(worked.card, external))
    assert proof.reply.hex().upper() == example["reply"]
    assert proof.apdu.hex().upper() == example["external_authenticate"]


# --- internal


@given(factor=blocks, challenge=blocks)
def test_a_genuine_card_is_believed(bench: Bench, factor: bytes, challenge: bytes) -> None:
    for algorithm in (CardAlgorithm.SM4, CardAlgorithm.DES):
        card, exchange = bench.card(algorithm), Exchange(IRK, factor, challenge)
        cryptogram = cryptogram_of(bench, card, exchange)
        bench.run(authentication.internal_authenticate(card, exchange, cryptogram))
        reply = bench.run(authentication.internal_cryptogram(card, exchange))
        assert reply == cryptogram + challenge


def test_any_flipped_bit_is_a_forgery(bench: Bench, card: Card) -> None:
    for forged in flips(cryptogram_of(bench, card, INTERNAL)):
        with pytest.raises(CardNotAuthentic):
            bench.run(authentication.internal_authenticate(card, INTERNAL, forged))


def test_another_cards_cryptogram_is_a_forgery(bench: Bench) -> None:
    card = bench.card()
    theirs = cryptogram_of(bench, card, INTERNAL)
    serial = bytes.fromhex("30000BEF")
    other = bench.card(
        card_id=bench.card_id[:8] + serial + bench.card_id[12:],
        historical=bench.historical[:9] + serial,
    )
    elsewhere = bench.card(card_id=bytes.fromhex("510101") + bench.card_id[3:])
    des = bench.card(CardAlgorithm.DES)
    for card in (other, elsewhere, des):
        with pytest.raises(CardNotAuthentic):
            bench.run(authentication.internal_authenticate(card, INTERNAL, theirs))


@pytest.mark.parametrize("cryptogram", [b"", b"1", bytes(7), bytes(9), bytes(16)])
def test_a_cryptogram_of_another_length_is_a_forgery(cryptogram: bytes) -> None:
    with pytest.raises(CardNotAuthentic) as refused:
        verify_cryptogram(bytes(8), cryptogram)
    assert str(refused.value) == CardNotAuthentic.__doc__


def test_every_set_of_the_key_is_another_key(bench: Bench, card: Card) -> None:
    replies = {
        bench.run(authentication.internal_cryptogram(card, Exchange(address, FACTOR, CHALLENGE)))
        for address in (0x0170, 0x0171, 0x0172)
    }
    assert len(replies) == 3


# --- external


def test_what_proves_us_is_given_for_every_permission_key(bench: Bench, card: Card) -> None:
    for key in card.profile.keys.values():
        exchange = Exchange(key.address, FACTOR, CHALLENGE)
        if key.use is not Use.EXTERNAL:
            with pytest.raises(KeyUsageRefused, match=f"{key.name}.*not external"):
                bench.run(authentication.external_authenticate(card, exchange))
            continue
        proof = bench.run(authentication.external_authenticate(card, exchange))
        assert proof.reply == cryptogram_of(bench, card, exchange) + CHALLENGE
        if key.card_key_id is None:
            # Without the card's key id there is no command to give, only what it would carry.
            assert proof.apdu == b""
        else:
            assert proof.apdu == bytes((0, 0x82, 0, key.card_key_id, 16)) + proof.reply


def test_only_an_internal_key_checks_a_card(bench: Bench, card: Card) -> None:
    for key in card.profile.keys.values():
        exchange = Exchange(key.address, FACTOR, CHALLENGE)
        if key.use is Use.INTERNAL:
            bench.run(authentication.internal_cryptogram(card, exchange))
            continue
        # The expected cryptogram of a permission key would open the card to whoever asks.
        for service in (
            authentication.internal_cryptogram(card, exchange),
            authentication.internal_authenticate(card, exchange, bytes(8)),
            authentication.mutual_cryptograms(card, exchange, EXTERNAL),
            authentication.mutual_authenticate(card, exchange, bytes(8), EXTERNAL),
        ):
            with pytest.raises(KeyUsageRefused, match=f"{key.name}.*not internal"):
                bench.run(service)


@pytest.mark.parametrize("address", [0x0000, 0x004B, 0xFFFF])
def test_an_address_without_a_key_is_refused(bench: Bench, card: Card, address: int) -> None:
    exchange = Exchange(address, FACTOR, CHALLENGE)
    with pytest.raises(KeyNotFound, match=f"{address:04X}"):
        bench.run(authentication.internal_cryptogram(card, exchange))
    with pytest.raises(KeyNotFound, match=f"{address:04X}"):
        bench.run(authentication.external_authenticate(card, exchange))


@pytest.mark.parametrize("generation", [1, 2])
def test_older_cards_have_no_rkssse(bench: Bench, generation: int) -> None:
    old = bench.card(CardAlgorithm.DES, generation)
    with pytest.raises(KeyNotFound, match="004C"):
        bench.run(authentication.external_authenticate(old, EXTERNAL))


def test_ssf33_needs_hardware(bench: Bench) -> None:
    card = bench.card(CardAlgorithm.SSF33)
    with pytest.raises(AlgorithmNotSupported, match="SSF33"):
        bench.run(authentication.internal_cryptogram(card, INTERNAL))


# --- both in one


def test_the_opening_of_a_3_0_card_is_both_replies(bench: Bench, card: Card) -> None:
    internal, external = bench.run(authentication.mutual_cryptograms(card, INTERNAL, EXTERNAL))
    assert internal == cryptogram_of(bench, card, INTERNAL) + INTERNAL.challenge
    assert external == cryptogram_of(bench, card, EXTERNAL) + EXTERNAL.challenge


def test_a_genuine_card_is_given_the_proof(bench: Bench, card: Card) -> None:
    cryptogram = cryptogram_of(bench, card, INTERNAL)
    proof = bench.run(authentication.mutual_authenticate(card, INTERNAL, cryptogram, EXTERNAL))
    assert proof == bench.run(authentication.external_authenticate(card, EXTERNAL))


def test_a_forged_card_learns_nothing(bench: Bench, card: Card) -> None:
    for forged in flips(cryptogram_of(bench, card, INTERNAL)):
        with pytest.raises(CardNotAuthentic) as refused:
            bench.run(authentication.mutual_authenticate(card, INTERNAL, forged, EXTERNAL))
        assert str(refused.value) == CardNotAuthentic.__doc__


def test_a_puk_is_no_reading_key_but_opens_a_mutual_exchange_as_one(
    bench: Bench, card: Card
) -> None:
    # Which permission a terminal may ask for is policy, not profile: here any permission key will do.
    exchange = Exchange(PUK, FACTOR, CHALLENGE)
    reply = bench.run(authentication.mutual_cryptograms(card, INTERNAL, exchange))[1]
    assert reply == cryptogram_of(bench, card, exchange) + CHALLENGE


# --- who computes


def test_where_there_is_a_psam_it_is_asked(bench: Bench, card: Card) -> None:
    """Otherwise every test here would run on the ring twice."""
    before = bench.sam.psam.asked if isinstance(bench.sam, Divided) else -1
    bench.run(authentication.mutual_cryptograms(card, INTERNAL, EXTERNAL))
    if isinstance(bench.sam, Divided):
        assert bench.sam.psam.asked == before + 2
    else:
        assert bench.sam is bench.ring
