"""Purchases and loads have the specification's MACs, and no altered amount, number, time or proof passes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from keyd.cards import medical
from keyd.cards.medical import Load, Purchase, verify_mac, verify_tac
from keyd.crypto.algorithms import CardAlgorithm
from keyd.errors import (
    BadParameter,
    KeyNotFound,
    KeyUsageRefused,
    MacNotAuthentic,
    Refusal,
    TacNotAuthentic,
)
from keyd.keys.block import Use

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyd.cards.identity import Card
    from keyd.cards.profile import ProfileKey
    from tests.cards.conftest import Bench, Worked

DPK: Final = 0x017F
DLK: Final = 0x00B2
DTK: Final = 0x00B5

unhex: Final = bytes.fromhex

PURCHASE: Final = Purchase(
    pseudo_random=unhex("01020304"),
    purchase_number=unhex("0005"),
    terminal_transaction_number=unhex("0000000A"),
    personal_account=1,
    personal_paid=10_000,
    pooled_fund=0xFFFF_FFFF,
    type=1,
    terminal=unhex("510100000001"),
    time=unhex("20240102030405"),
)
LOAD: Final = Load(
    pseudo_random=unhex("01020304"),
    load_number=unhex("0003"),
    balance=5000,
    amount=1000,
    type=2,
    terminal=unhex("510100000001"),
    time=unhex("20240102030405"),
)


def purchase_of(debit: dict[str, Any]) -> Purchase:
    amounts = unhex(debit["amounts"])
    return Purchase(
        pseudo_random=unhex(debit["pseudo_random"]),
        purchase_number=unhex(debit["purchase_number"]),
        terminal_transaction_number=unhex(debit["terminal_transaction_number"]),
        personal_account=int.from_bytes(amounts[:4], "big"),
        personal_paid=int.from_bytes(amounts[4:8], "big"),
        pooled_fund=int.from_bytes(amounts[8:], "big"),
        type=int(debit["type"], 16),
        terminal=unhex(debit["terminal"]),
        time=unhex(debit["time"]),
    )


def load_of(load: dict[str, Any]) -> Load:
    return Load(
        pseudo_random=unhex(load["pseudo_random"]),
        load_number=unhex(load["load_number"]),
        balance=int(load["balance"], 16),
        amount=int(load["amount"], 16),
        type=int(load["type"], 16),
        terminal=unhex(load["terminal"]),
        time=unhex(load["time"]),
    )


# --- the worked examples


def test_the_purchase_is_the_worked_one(worked: Worked) -> None:
    debit = worked.example["debit"]
    purchase = purchase_of(debit)
    mac1 = worked.run(medical.make_purchase(worked.card, DPK, purchase))
    assert mac1.hex().upper() == debit["mac1"]
    mac2, tac = unhex(debit["mac2"]), unhex(debit["tac"])
    worked.run(medical.confirm_purchase(worked.card, DPK, DTK, purchase, mac2, tac))


def test_the_load_is_the_worked_one(worked: Worked) -> None:
    example = worked.example["load"]
    load = load_of(example)
    mac2 = worked.run(medical.make_load(worked.card, DLK, load, unhex(example["mac1"])))
    assert mac2.hex().upper() == example["mac2"]
    worked.run(medical.confirm_load(worked.card, DTK, load, unhex(example["tac"])))


# --- every byte counts


def purchase_proofs(bench: Bench, card: Card, purchase: Purchase) -> tuple[bytes, bytes, bytes]:
    amounts = b"".join(
        amount.to_bytes(4, "big")
        for amount in (purchase.personal_account, purchase.personal_paid, purchase.pooled_fund)
    )
    number, kind = purchase.terminal_transaction_number, bytes([purchase.type])
    session = bench.key(card, DPK).derive(
        purchase.pseudo_random + purchase.purchase_number + number[2:]
    )
    return (
        session.mac(amounts + kind + purchase.terminal + purchase.time),
        session.mac(amounts),
        bench.key(card, DTK).tac(amounts + kind + purchase.terminal + number + purchase.time),
    )


def load_proofs(bench: Bench, card: Card, load: Load) -> tuple[bytes, bytes, bytes]:
    balance, amount = load.balance.to_bytes(4, "big"), load.amount.to_bytes(4, "big")
    kind = bytes([load.type])
    session = bench.key(card, DLK).derive(load.pseudo_random + load.load_number + b"\x80\0")
    return (
        session.mac(balance + amount + kind + load.terminal),
        session.mac(amount + kind + load.terminal + load.time),
        bench.key(card, DTK).tac(
            balance + load.load_number + amount + kind + load.terminal + load.time
        ),
    )


amounts = st.integers(0, 2**32 - 1)
terminals = st.integers(0, 10**12 - 1).map(lambda number: unhex(f"{number:012}"))
times = st.integers(0, 10**14 - 1).map(lambda number: unhex(f"{number:014}"))
purchases = st.builds(
    Purchase,
    pseudo_random=st.binary(min_size=4, max_size=4),
    purchase_number=st.binary(min_size=2, max_size=2),
    terminal_transaction_number=st.binary(min_size=4, max_size=4),
    personal_account=amounts,
    personal_paid=amounts,
    pooled_fund=amounts,
    type=st.integers(0, 255),
    terminal=terminals,
    time=times,
)
loads = st.builds(
    Load,
    pseudo_random=st.binary(min_size=4, max_size=4),
    load_number=st.binary(min_size=2, max_size=2),
    balance=amounts,
    amount=amounts,
    type=st.integers(0, 255),
    terminal=terminals,
    time=times,
)


@given(purchase=purchases)
def test_any_purchase_is_made_and_confirmed(bench: Bench, purchase: Purchase) -> None:
    for algorithm in (CardAlgorithm.SM4, CardAlgorithm.DES):
        card = bench.card(algorithm)
        mac1, mac2, tac = purchase_proofs(bench, card, purchase)
        assert bench.run(medical.make_purchase(card, DPK, purchase)) == mac1
        bench.run(medical.confirm_purchase(card, DPK, DTK, purchase, mac2, tac))


@given(load=loads)
def test_any_load_is_made_and_confirmed(bench: Bench, load: Load) -> None:
    for algorithm in (CardAlgorithm.SM4, CardAlgorithm.DES):
        card = bench.card(algorithm)
        mac1, mac2, tac = load_proofs(bench, card, load)
        assert bench.run(medical.make_load(card, DLK, load, mac1)) == mac2
        bench.run(medical.confirm_load(card, DTK, load, tac))


@given(one=purchases, other=purchases, data=st.data())
def test_no_other_purchase_is_confirmed(
    bench: Bench, one: Purchase, other: Purchase, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(Purchase.__struct_fields__))
    changed = msgspec.structs.replace(one, **{name: getattr(other, name)})
    assume(changed != one)
    card = bench.card()
    _, mac2, tac = purchase_proofs(bench, card, one)
    with pytest.raises((MacNotAuthentic, TacNotAuthentic)):
        bench.run(medical.confirm_purchase(card, DPK, DTK, changed, mac2, tac))


def flips(octets: bytes) -> list[bytes]:
    whole = int.from_bytes(octets, "big")
    return [(whole ^ 1 << bit).to_bytes(len(octets), "big") for bit in range(8 * len(octets))]


def test_any_flipped_bit_of_a_proof_is_refused(bench: Bench, card: Card) -> None:
    _, mac2, tac = purchase_proofs(bench, card, PURCHASE)
    for forged in flips(mac2):
        with pytest.raises(MacNotAuthentic):
            bench.run(medical.confirm_purchase(card, DPK, DTK, PURCHASE, forged, tac))
    for forged in flips(tac):
        with pytest.raises(TacNotAuthentic):
            bench.run(medical.confirm_purchase(card, DPK, DTK, PURCHASE, mac2, forged))
    mac1, _, tac = load_proofs(bench, card, LOAD)
    for forged in flips(mac1):
        with pytest.raises(MacNotAuthentic):
            bench.run(medical.make_load(card, DLK, LOAD, forged))
    for forged in flips(tac):
        with pytest.raises(TacNotAuthentic):
            bench.run(medical.confirm_load(card, DTK, LOAD, forged))


@pytest.mark.parametrize(
    ("verify", "refusal"), [(verify_mac, MacNotAuthentic), (verify_tac, TacNotAuthentic)]
)
@pytest.mark.parametrize("proof", [b"", bytes(3), bytes(5), b"\0\0\0\1"])
def test_another_length_or_value_is_refused_without_the_right_one(
    verify: Callable[[bytes, bytes], None], refusal: type[Refusal], proof: bytes
) -> None:
    with pytest.raises(refusal) as refused:
        verify(bytes(4), proof)
    assert str(refused.value) == refusal.__doc__
    verify(bytes(4), bytes(4))


# --- rules


NOT_BCD: Final = ["51010000000A", "FFFFFFFFFFFF", "5A0100000001"]


@pytest.mark.parametrize("terminal", NOT_BCD)
def test_a_terminals_number_is_decimal(bench: Bench, card: Card, terminal: str) -> None:
    purchase = msgspec.structs.replace(PURCHASE, terminal=unhex(terminal))
    load = msgspec.structs.replace(LOAD, terminal=unhex(terminal))
    for service in (
        medical.make_purchase(card, DPK, purchase),
        medical.confirm_purchase(card, DPK, DTK, purchase, bytes(4), bytes(4)),
        medical.make_load(card, DLK, load, bytes(4)),
        medical.confirm_load(card, DTK, load, bytes(4)),
    ):
        with pytest.raises(BadParameter, match="终端机编号"):
            bench.run(service)


@pytest.mark.parametrize("time", ["2024010203040A", "FFFFFFFFFFFFFF"])
def test_a_time_is_decimal(bench: Bench, card: Card, time: str) -> None:
    purchase = msgspec.structs.replace(PURCHASE, time=unhex(time))
    load = msgspec.structs.replace(LOAD, time=unhex(time))
    for service in (
        medical.make_purchase(card, DPK, purchase),
        medical.confirm_purchase(card, DPK, DTK, purchase, bytes(4), bytes(4)),
        medical.make_load(card, DLK, load, bytes(4)),
        medical.confirm_load(card, DTK, load, bytes(4)),
    ):
        with pytest.raises(BadParameter, match="time"):
            bench.run(service)


def test_each_step_takes_its_own_kind_of_key(bench: Bench, card: Card) -> None:
    def services(address: int) -> list[tuple[Use, Callable[[], object]]]:
        _, mac2, _ = purchase_proofs(bench, card, PURCHASE)
        mac1 = load_proofs(bench, card, LOAD)[0]
        return [
            (Use.DEBIT, lambda: bench.run(medical.make_purchase(card, address, PURCHASE))),
            (
                Use.DEBIT,
                lambda: bench.run(
                    medical.confirm_purchase(card, address, DTK, PURCHASE, mac2, bytes(4))
                ),
            ),
            (
                Use.TAC,
                lambda: bench.run(
                    medical.confirm_purchase(card, DPK, address, PURCHASE, mac2, bytes(4))
                ),
            ),
            (Use.LOAD, lambda: bench.run(medical.make_load(card, address, LOAD, mac1))),
            (Use.TAC, lambda: bench.run(medical.confirm_load(card, address, LOAD, bytes(4)))),
        ]

    def require_refused(key: ProfileKey, use: Use, service: Callable[[], object]) -> None:
        with pytest.raises(KeyUsageRefused, match=f"{key.name}.*not {use}"):
            service()

    one_of_each = {key.use: key for key in card.profile.keys.values()}
    assert set(one_of_each) == set(Use) - {Use.TRANSPORT, Use.TERMINAL}
    for key in one_of_each.values():
        for use, service in services(key.address):
            if use is not key.use:
                require_refused(key, use, service)
    for _, service in services(0xFFFF):
        with pytest.raises(KeyNotFound, match="FFFF"):
            service()


def test_a_load_with_a_wrong_mac1_gives_no_mac2(bench: Bench, card: Card) -> None:
    steps = medical.make_load(card, DLK, LOAD, bytes(4))
    tasks = next(steps)
    results = bench.ring.compute(tasks)
    with pytest.raises(MacNotAuthentic) as refused:
        steps.send([result for result in results if isinstance(result, bytes)])
    mac2 = results[1]
    assert isinstance(mac2, bytes)
    assert mac2.hex() not in repr(refused.value).lower()


def test_the_amounts_are_in_the_specifications_order() -> None:
    assert PURCHASE.amounts.hex().upper() == "0000000100002710FFFFFFFF"
    assert PURCHASE.session_factor.hex().upper() == "010203040005000A"
    assert LOAD.session_factor.hex().upper() == "0102030400038000"
