"""The medical application (DF04): load, debit, balances, proofs and the starting day of the year.

A transaction is two commands. The first says what is to happen and draws the card's random; the second brings
the other side's MAC and makes it happen. Anything in between forgets the first.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from keyd.iso7816 import SW, CommandApdu
from keyd.simulator import arithmetic
from keyd.simulator.profile import (
    DEBIT_KEYS,
    DEBIT_TYPE,
    DSK,
    LOAD_KEYS,
    LOAD_TYPE,
    MEDICAL_APPLICATION,
    MEDICAL_KEY_VERSION,
    TAC_KEY,
)
from keyd.simulator.state import CardState, Declined, Proof, Transaction, require_equal

if TYPE_CHECKING:
    from keyd.crypto.secret import SecretKey
    from keyd.simulator.state import MedicalAccount

PSEUDO_RANDOM_BYTES: Final = 4

# Amounts have four bytes and transaction numbers two; a card that reaches the end of either is used up.
MAX_AMOUNT: Final = 0xFFFF_FFFF
MAX_NUMBER: Final = 0xFFFF

_TIME: Final = re.compile(
    r"\A\d{4}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])([01]\d|2[0-3])[0-5]\d[0-5]\d\Z", re.ASCII
)
_DAY: Final = re.compile(r"\A(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])\Z", re.ASCII)


def initialize(card: CardState, apdu: CommandApdu) -> bytes:
    """INITIALIZE FOR LOAD (P1 00) or FOR PURCHASE (P1 01)."""
    _require_medical(card)
    return _initialize_purchase(card, apdu.data) if apdu.p1 else _initialize_load(card, apdu.data)


def _initialize_load(card: CardState, data: bytes) -> bytes:
    _require_length(data, 11)
    index, amount, terminal = data[0], data[1:5], data[5:11]
    key = _key(LOAD_KEYS, index)
    account = card.medical
    if account.balance + _int(amount) > MAX_AMOUNT or account.load_number >= MAX_NUMBER:
        raise Declined(SW.CONDITIONS_NOT_SATISFIED)
    number = account.load_number.to_bytes(2, "big")
    transaction = _begin(card, LOAD_TYPE, key, number, amount, terminal)
    session = _load_session(transaction)
    balance = account.balance.to_bytes(4, "big")
    mac1 = arithmetic.load_mac1(session, balance, amount, bytes((LOAD_TYPE,)), terminal)
    return balance + number + _key_bytes(card) + transaction.pseudo_random + mac1


def _initialize_purchase(card: CardState, data: bytes) -> bytes:
    _require_length(data, 19)
    index, amounts, terminal = data[0], data[1:13], data[13:19]
    key = _key(DEBIT_KEYS, index)
    account = card.medical
    if _int(amounts[:4]) > account.balance:
        raise Declined(SW.INSUFFICIENT_FUNDS)
    if account.purchase_number >= MAX_NUMBER:
        raise Declined(SW.CONDITIONS_NOT_SATISFIED)
    number = account.purchase_number.to_bytes(2, "big")
    transaction = _begin(card, DEBIT_TYPE, key, number, amounts, terminal)
    return (
        account.balance.to_bytes(4, "big")
        + account.own_paid.to_bytes(4, "big")
        + account.pooled_paid.to_bytes(4, "big")
        + _bcd_year(account)
        + number
        + _key_bytes(card)
        + transaction.pseudo_random
    )


def credit_load(card: CardState, apdu: CommandApdu) -> bytes:
    """CREDIT FOR LOAD: add the amount if the issuer's MAC2 says so, and give the TAC."""
    transaction = _taken(card, LOAD_TYPE)
    time, mac2 = _time(apdu.data[:7]), apdu.data[7:]
    kind, amount, terminal = bytes((LOAD_TYPE,)), transaction.amounts, transaction.terminal
    session = _load_session(transaction)
    expected = arithmetic.load_mac2(session, amount, kind, terminal, time)
    require_equal(mac2, expected, SW.MAC_INVALID)
    account = card.medical
    # The balance in the TAC is the one before the load, the same as in MAC1.
    balance = account.balance.to_bytes(4, "big")
    mac1 = arithmetic.load_mac1(session, balance, amount, kind, terminal)
    dtk = card.keys(TAC_KEY)
    tac = arithmetic.load_tac(dtk, balance, transaction.number, amount, kind, terminal, time)
    account.balance += _int(amount)
    account.load_number += 1
    account.proofs[LOAD_TYPE] = Proof(transaction.number, mac1, tac)
    return tac


def debit_purchase(card: CardState, apdu: CommandApdu) -> bytes:
    """DEBIT FOR PURCHASE: book the amounts if the terminal's MAC1 is right, and give TAC and MAC2."""
    transaction = _taken(card, DEBIT_TYPE)
    terminal_number, time, mac1 = apdu.data[:4], _time(apdu.data[4:11]), apdu.data[11:]
    factor = arithmetic.debit_session_factor(
        transaction.pseudo_random, transaction.number, terminal_number
    )
    session = arithmetic.session_key(transaction.key, factor)
    amounts, kind, terminal = transaction.amounts, bytes((DEBIT_TYPE,)), transaction.terminal
    expected = arithmetic.debit_mac1(session, amounts, kind, terminal, time)
    require_equal(mac1, expected, SW.MAC_INVALID)
    booked = _booked(card.medical, amounts, time)
    mac2 = arithmetic.debit_mac2(session, amounts)
    tac = arithmetic.debit_tac(card.keys(TAC_KEY), amounts, kind, terminal, terminal_number, time)
    booked.proofs[DEBIT_TYPE] = Proof(transaction.number, mac2, tac)
    card.medical = booked
    return tac + mac2


def _booked(account: MedicalAccount, amounts: bytes, time: bytes) -> MedicalAccount:
    """Return the account after a debit. What was paid this year begins anew on the starting day."""
    own, pooled = _int(amounts[4:8]), _int(amounts[8:12])
    year = int(time[:2].hex()) - (time[2:4] < account.starting_day)
    if year > account.year:
        account = replace(account, year=year, own_paid=0, pooled_paid=0)
    if max(account.own_paid + own, account.pooled_paid + pooled) > MAX_AMOUNT:
        raise Declined(SW.CONDITIONS_NOT_SATISFIED)
    return replace(
        account,
        balance=account.balance - _int(amounts[:4]),
        own_paid=account.own_paid + own,
        pooled_paid=account.pooled_paid + pooled,
        purchase_number=account.purchase_number + 1,
        proofs=dict(account.proofs),
    )


def get_balance(card: CardState, apdu: CommandApdu) -> bytes:
    """GET BALANCE: 01 the account (4 bytes), 02 and 03 what was paid this year, and the year (6 bytes)."""
    _require_medical(card)
    account = card.medical
    by_p2 = {
        0x01: account.balance.to_bytes(4, "big"),
        0x02: account.own_paid.to_bytes(4, "big") + _bcd_year(account),
        0x03: account.pooled_paid.to_bytes(4, "big") + _bcd_year(account),
    }
    return by_p2[apdu.p2]


def get_transaction_proof(card: CardState, apdu: CommandApdu) -> bytes:
    """GET TRANSACTION PROOF: MAC and TAC of the last completed transaction of a type, by its number."""
    _require_medical(card)
    proof = card.medical.proofs.get(apdu.p2)
    if proof is None or proof.number != apdu.data:
        raise Declined(SW.PROOF_NOT_AVAILABLE)
    return proof.mac + proof.tac


def starting_day(card: CardState, apdu: CommandApdu) -> bytes:
    """UPDATE STARTING DAY (P1 00, after the DSK was proved) and GET STARTING DAY (P1 01): mmdd."""
    _require_medical(card)
    if apdu.p1:
        _require_length(apdu.data, 0)
        return card.medical.starting_day
    _require_length(apdu.data, 2)
    card.require_right(DSK)
    if not _DAY.match(apdu.data.hex()):
        raise Declined(SW.WRONG_DATA)
    card.medical.starting_day = apdu.data
    return b""


def _begin(
    card: CardState, kind: int, key_address: int, number: bytes, amounts: bytes, terminal: bytes
) -> Transaction:
    random = card.random_bytes(PSEUDO_RANDOM_BYTES)
    transaction = Transaction(kind, card.keys(key_address), random, number, amounts, terminal)
    card.session.transaction = transaction
    return transaction


def _taken(card: CardState, kind: int) -> Transaction:
    """Take the transaction that waits. It is gone then, whatever comes of it."""
    transaction, card.session.transaction = card.session.transaction, None
    if transaction is None or transaction.kind != kind:
        raise Declined(SW.CONDITIONS_NOT_SATISFIED)
    return transaction


def _load_session(transaction: Transaction) -> SecretKey:
    factor = arithmetic.load_session_factor(transaction.pseudo_random, transaction.number)
    return arithmetic.session_key(transaction.key, factor)


def _key(addresses: dict[int, int], index: int) -> int:
    if index not in addresses:
        raise Declined(SW.KEY_INDEX_NOT_FOUND)
    return addresses[index]


def _key_bytes(card: CardState) -> bytes:
    return bytes((MEDICAL_KEY_VERSION, card.algorithm.id))


def _require_medical(card: CardState) -> None:
    if card.session.application is not MEDICAL_APPLICATION:
        raise Declined(SW.CONDITIONS_NOT_SATISFIED)


def _require_length(data: bytes, length: int) -> None:
    if len(data) != length:
        raise Declined(SW.WRONG_LENGTH)


def _time(time: bytes) -> bytes:
    if not _TIME.match(time.hex()):
        raise Declined(SW.WRONG_DATA)
    return time


def _bcd_year(account: MedicalAccount) -> bytes:
    return bytes.fromhex(f"{account.year:04}")


def _int(amount: bytes) -> int:
    return int.from_bytes(amount, "big")
