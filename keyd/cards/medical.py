"""Medical transactions (医疗消费, 划入): MAC1, MAC2 and TAC of purchases and loads.

Field orders and session factors are those of the card specification; the layout of the three amounts is
explicit because the terminal interface carries only two of them.
"""

from __future__ import annotations

from hmac import compare_digest
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from keyd.errors import BadParameter, MacNotAuthentic, TacNotAuthentic
from keyd.keys.block import Use
from keyd.keys.sam import MacTask, TacTask

if TYPE_CHECKING:
    from keyd.cards.identity import Card
    from keyd.keys.sam import Steps

DTK: Final = "DTK"

# A load has no terminal transaction number; the specification puts this in its place.
_LOAD_FILL: Final = bytes.fromhex("8000")


class Purchase(Struct, frozen=True):
    """One purchase. Amounts in 分, 4 bytes each; numbers as they stand in the APDUs."""

    pseudo_random: bytes
    purchase_number: bytes
    terminal_transaction_number: bytes
    personal_account: int
    personal_paid: int
    pooled_fund: int
    type: int
    terminal: bytes
    time: bytes

    @property
    def session_factor(self) -> bytes:
        """Pseudo-random 4 ‖ purchase number 2 ‖ right half of the terminal transaction number."""
        return self.pseudo_random + self.purchase_number + self.terminal_transaction_number[2:]

    @property
    def amounts(self) -> bytes:
        """个人帐户 4 ‖ 个人自付 4 ‖ 统筹基金 4."""
        return (
            self.personal_account.to_bytes(4, "big")
            + self.personal_paid.to_bytes(4, "big")
            + self.pooled_fund.to_bytes(4, "big")
        )

    @property
    def _type(self) -> bytes:
        return self.type.to_bytes(1, "big")

    @property
    def mac1_data(self) -> bytes:
        """What MAC1 is over."""
        return self.amounts + self._type + self.terminal + self.time

    @property
    def mac2_data(self) -> bytes:
        """What MAC2 is over."""
        return self.amounts

    @property
    def tac_data(self) -> bytes:
        """What the TAC is over."""
        number = self.terminal_transaction_number
        return self.amounts + self._type + self.terminal + number + self.time


class Load(Struct, frozen=True):
    """One load. The load number is the one before the card increments it."""

    pseudo_random: bytes
    load_number: bytes
    balance: int
    amount: int
    type: int
    terminal: bytes
    time: bytes

    @property
    def session_factor(self) -> bytes:
        """Pseudo-random 4 ‖ load number 2 ‖ 8000."""
        return self.pseudo_random + self.load_number + _LOAD_FILL

    @property
    def _head(self) -> bytes:
        return self.amount.to_bytes(4, "big") + self.type.to_bytes(1, "big") + self.terminal

    @property
    def mac1_data(self) -> bytes:
        """What MAC1 is over."""
        return self.balance.to_bytes(4, "big") + self._head

    @property
    def mac2_data(self) -> bytes:
        """What MAC2 is over."""
        return self._head + self.time

    @property
    def tac_data(self) -> bytes:
        """What the TAC is over."""
        return self.balance.to_bytes(4, "big") + self.load_number + self._head + self.time


def make_purchase(card: Card, address: int, purchase: Purchase) -> Steps[bytes]:
    """Compute MAC1, 4 bytes, for DEBIT FOR PURCHASE.

    Raises:
        BadParameter: terminal or time is not BCD.
        KeyNotFound, KeyUsageRefused: the address is not a debit key (DPK).
    """
    _require_bcd(purchase.terminal, purchase.time)
    card.profile.key(address, Use.DEBIT)
    (mac1,) = yield (
        MacTask(card.key(address, Use.DEBIT), purchase.session_factor, purchase.mac1_data),
    )
    return mac1


def confirm_purchase(
    card: Card, address: int, tac_address: int, purchase: Purchase, mac2: bytes, tac: bytes
) -> Steps[None]:
    """Check MAC2 and TAC.

    Raises:
        MacNotAuthentic, TacNotAuthentic: the card did not make them.
        BadParameter, KeyNotFound, KeyUsageRefused: as `make_purchase`, and for the TAC key (DTK).
    """
    _require_bcd(purchase.terminal, purchase.time)
    card.profile.key(address, Use.DEBIT)
    card.profile.key(tac_address, Use.TAC)
    expected_mac2, expected_tac = yield (
        MacTask(
            card.key(address, Use.DEBIT, is_verifying=True),
            purchase.session_factor,
            purchase.mac2_data,
        ),
        TacTask(card.key(tac_address, Use.TAC, is_verifying=True), purchase.tac_data),
    )
    verify_mac(expected_mac2, mac2)
    verify_tac(expected_tac, tac)


def make_load(card: Card, address: int, load: Load, mac1: bytes) -> Steps[bytes]:
    """Check the card's MAC1 and compute MAC2, 4 bytes, for CREDIT FOR LOAD.

    Raises:
        MacNotAuthentic: the card did not make MAC1.
        BadParameter, KeyNotFound, KeyUsageRefused: as `make_purchase`, for the load key (DLK).
    """
    _require_bcd(load.terminal, load.time)
    card.profile.key(address, Use.LOAD)
    expected_mac1, mac2 = yield (
        MacTask(
            card.key(address, Use.LOAD, is_verifying=True), load.session_factor, load.mac1_data
        ),
        MacTask(card.key(address, Use.LOAD), load.session_factor, load.mac2_data),
    )
    verify_mac(expected_mac1, mac1)
    return mac2


def confirm_load(card: Card, tac_address: int, load: Load, tac: bytes) -> Steps[None]:
    """Check the TAC of a load.

    Raises:
        TacNotAuthentic: the card did not make it.
        BadParameter, KeyNotFound, KeyUsageRefused: as `make_purchase`, for the TAC key (DTK).
    """
    _require_bcd(load.terminal, load.time)
    card.profile.key(tac_address, Use.TAC)
    (expected,) = yield (TacTask(card.key(tac_address, Use.TAC, is_verifying=True), load.tac_data),)
    verify_tac(expected, tac)


def verify_mac(expected: bytes, mac: bytes) -> None:
    """Compare in constant time.

    Raises:
        MacNotAuthentic: they differ.
    """
    if not compare_digest(expected, mac):
        raise MacNotAuthentic


def verify_tac(expected: bytes, tac: bytes) -> None:
    """Compare in constant time.

    Raises:
        TacNotAuthentic: they differ.
    """
    if not compare_digest(expected, tac):
        raise TacNotAuthentic


def _require_bcd(terminal: bytes, time: bytes) -> None:
    if not terminal.hex().isdigit():
        raise BadParameter("终端机编号 is 12 decimal digits (BCD)")
    if not time.hex().isdigit():
        raise BadParameter("the time is YYYYMMDDhhmmss in decimal digits (BCD)")
