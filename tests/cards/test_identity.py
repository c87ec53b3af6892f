"""A card is who its identifier and its reset information together say, or it is refused."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyd.cards.identity import Warned, historical_of, identify
from keyd.crypto.algorithms import CardAlgorithm
from keyd.errors import AlgorithmNotSupported, BadParameter, CardDataInconsistent, Refusal
from keyd.keys.block import Use
from keyd.keys.sam import purpose_of

if TYPE_CHECKING:
    from keyd.cards.identity import Card
    from tests.cards.conftest import Bench

unhex: Final = bytes.fromhex

# The specification's own sample.
SAMPLE_ID: Final = unhex("639900D15600000500BF7C7A48FB4966")
SAMPLE_HISTORICAL: Final = unhex("00814E43238697159900BF7C7A")

ATR: Final = unhex("3B6D000000814A444686605199000001AC")


def identified(
    bench: Bench,
    card_id: bytes = SAMPLE_ID,
    reset: bytes = SAMPLE_HISTORICAL,
    algorithm: CardAlgorithm = CardAlgorithm.SM4,
    generation: int = 3,
) -> Card:
    return identify(bench.profiles, card_id, reset, algorithm, generation)


def test_the_specifications_sample_passes_with_a_warning(bench: Bench) -> None:
    card = identified(bench)
    assert card.region == "639900"
    assert card.diversifier.hex().upper() == "8697159900BF7C7A"
    # Its historical bytes have 1599 where its region has 6399.
    assert card.warnings == (Warned.REGION_MISMATCH,)
    assert card.warnings == ("REGION_MISMATCH",)


def test_a_card_that_agrees_in_everything_has_no_warning(bench: Bench) -> None:
    card = bench.card()
    assert card.warnings == ()
    assert card.region == "510100"


def test_historical_bytes_and_whole_atr_name_the_same_card(bench: Bench) -> None:
    whole = identified(bench, reset=unhex("3B6D0000") + SAMPLE_HISTORICAL)
    assert whole == identified(bench)


def test_the_atrs_of_the_traces_are_read() -> None:
    historical = historical_of(ATR)
    assert historical == ATR[4:]
    assert historical.hex().upper() == "00814A444686605199000001AC"
    assert historical_of(historical) == historical


@given(length=st.integers(0, 40).filter(lambda length: length not in (13, 17)))
def test_reset_information_has_13_or_17_bytes(length: int) -> None:
    with pytest.raises(BadParameter, match="reset information"):
        historical_of((unhex("3B6D0000") + bytes(40))[:length])


@pytest.mark.parametrize(
    "atr",
    [
        unhex("3A6D0000") + SAMPLE_HISTORICAL,
        unhex("3B6C0000") + SAMPLE_HISTORICAL,
        unhex("3B6E0000") + SAMPLE_HISTORICAL,
        unhex("3BFD0000") + SAMPLE_HISTORICAL,
        unhex("00000000") + SAMPLE_HISTORICAL,
    ],
)
def test_seventeen_bytes_that_are_no_atr_are_refused(bench: Bench, atr: bytes) -> None:
    with pytest.raises(BadParameter, match="reset information"):
        identified(bench, reset=atr)


@given(bit=st.integers(0, 31))
def test_another_serial_is_another_card(bench: Bench, bit: int) -> None:
    serial = (int.from_bytes(SAMPLE_HISTORICAL[9:], "big") ^ 1 << bit).to_bytes(4, "big")
    with pytest.raises(CardDataInconsistent, match="serial"):
        identified(bench, reset=SAMPLE_HISTORICAL[:9] + serial)
    with pytest.raises(CardDataInconsistent, match="serial"):
        identified(bench, card_id=SAMPLE_ID[:8] + serial + SAMPLE_ID[12:])


@given(rest=st.binary(min_size=4, max_size=4))
def test_the_identifiers_authentication_code_is_opaque(bench: Bench, rest: bytes) -> None:
    # Its key and truncation are not public.
    assert identified(bench, card_id=SAMPLE_ID[:12] + rest) == identified(bench)


@pytest.mark.parametrize("length", [0, 3, 15, 17])
def test_an_identifier_has_sixteen_bytes(bench: Bench, length: int) -> None:
    with pytest.raises(BadParameter, match="card identifier"):
        identified(bench, card_id=(SAMPLE_ID + bytes(1))[:length])


@given(at=st.integers(3, 7), octet=st.integers(0, 255))
def test_an_identifier_is_of_this_scheme(bench: Bench, at: int, octet: int) -> None:
    card_id = SAMPLE_ID[:at] + bytes([octet]) + SAMPLE_ID[at + 1 :]
    if card_id == SAMPLE_ID:
        identified(bench, card_id=card_id)
        return
    with pytest.raises(BadParameter, match="card identifier"):
        identified(bench, card_id=card_id)


@pytest.mark.parametrize("region", ["6399A0", "FFFFFF", "51010F", "A10100"])
def test_a_region_is_decimal(bench: Bench, region: str) -> None:
    with pytest.raises(BadParameter, match="six decimal digits"):
        identified(bench, card_id=unhex(region) + SAMPLE_ID[3:])


@pytest.mark.parametrize(
    ("generation", "allowed"),
    [
        (1, {CardAlgorithm.DES, CardAlgorithm.SSF33}),
        (2, {CardAlgorithm.DES, CardAlgorithm.SSF33}),
        (3, {CardAlgorithm.DES, CardAlgorithm.SSF33, CardAlgorithm.SM4}),
    ],
)
def test_a_generation_has_its_own_algorithms(
    bench: Bench, generation: int, allowed: set[CardAlgorithm]
) -> None:
    for algorithm in CardAlgorithm:
        if algorithm in allowed:
            card = identified(bench, algorithm=algorithm, generation=generation)
            assert card.algorithm is algorithm
            continue
        with pytest.raises(AlgorithmNotSupported, match=algorithm.name):
            identified(bench, algorithm=algorithm, generation=generation)


@pytest.mark.parametrize("generation", [0, 4, -1])
def test_an_unknown_generation_is_refused(bench: Bench, generation: int) -> None:
    with pytest.raises(BadParameter, match=f"generation {generation}"):
        identified(bench, generation=generation)


@given(card_id=st.binary(max_size=20), reset=st.binary(max_size=40))
def test_no_bytes_raise_anything_but_a_refusal(bench: Bench, card_id: bytes, reset: bytes) -> None:
    for given_id, given_reset in (
        (card_id, reset),
        (SAMPLE_ID, reset),
        (card_id, SAMPLE_HISTORICAL),
    ):
        with contextlib.suppress(Refusal):
            identified(bench, given_id, given_reset)


def test_no_refusal_repeats_whose_card_it_is(bench: Bench) -> None:
    for card_id, reset in (
        (SAMPLE_ID[:8] + bytes(4) + SAMPLE_ID[12:], SAMPLE_HISTORICAL),
        (SAMPLE_ID[:-1], SAMPLE_HISTORICAL),
        (bytes(3) + b"\1" + SAMPLE_ID[4:], SAMPLE_HISTORICAL),
        (SAMPLE_ID, SAMPLE_HISTORICAL[:-1]),
    ):
        with pytest.raises(Refusal) as refused:
            identified(bench, card_id, reset)
        for part in (card_id[8:], reset[5:], SAMPLE_ID[8:12]):
            assert part.hex() not in str(refused.value).lower()


def test_a_card_names_its_keys_for_a_sam(bench: Bench) -> None:
    card = bench.card(CardAlgorithm.DES)
    ref = card.key(0x0173, Use.MESSAGING)
    assert (ref.address, ref.algorithm, ref.region) == (0x0173, CardAlgorithm.DES, "510100")
    assert ref.diversifier == bench.historical[5:]
    assert purpose_of(ref.purpose) == (Use.MESSAGING, False, 0)


@pytest.mark.parametrize("version", [0, 1, 2, 0xFFFF])
@pytest.mark.parametrize("use", list(Use))
def test_a_card_asks_for_the_version_that_it_was_made_with(
    bench: Bench, use: Use, version: int
) -> None:
    card = identify(
        bench.profiles, SAMPLE_ID, SAMPLE_HISTORICAL, CardAlgorithm.SM4, 3, key_version=version
    )
    for is_verifying in (False, True):
        ref = card.key(0x0170, use, is_verifying=is_verifying)
        assert purpose_of(ref.purpose) == (use, is_verifying, version)
        assert 0 <= ref.purpose < 1 << 24
