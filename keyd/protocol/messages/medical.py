"""Messages of the medical family: purchases and loads on the card's medical accounts."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from keyd.protocol.fields import (
    SHOW,
    Address,
    Amount,
    Card,
    Mac,
    Message,
    Number2,
    Number4,
    PsamTerminal,
    Request,
    Response,
    Tac,
    Time,
    TransactionType,
    Warnings,
)

# First sets (DOMAIN: 017F DPK, 00B2 DLK, 00B5 DTK).
DPK = 0x017F
DLK = 0x00B2
DTK = 0x00B5


class Purchase(Message, frozen=True, forbid_unknown_fields=True):
    """One purchase as card and terminal see it. Numbers are as they stand in the APDUs."""

    pseudo_random: Number4
    purchase_number: Number2
    terminal_transaction_number: Number4
    personal_account: Amount
    personal_paid: Amount
    pooled_fund: Amount
    type: TransactionType
    terminal: PsamTerminal
    time: Time


class Load(Message, frozen=True, forbid_unknown_fields=True):
    """One load (划入) as card and terminal see it. The load number is the one before the increment."""

    pseudo_random: Number4
    load_number: Number2
    balance: Amount
    amount: Amount
    type: TransactionType
    terminal: PsamTerminal
    time: Time


class Mac1(Response, frozen=True):
    """MAC1 for DEBIT FOR PURCHASE."""

    mac1: Mac
    warnings: Warnings = ()


class Mac2(Response, frozen=True):
    """MAC2 for CREDIT FOR LOAD."""

    mac2: Mac
    warnings: Warnings = ()


class Confirmed(Response, frozen=True):
    """The transaction's proofs are the card's."""

    warnings: Warnings = ()


class MakePurchase(Request[Mac1], frozen=True):
    """Compute MAC1, which lets the card debit itself."""

    card: Card
    purchase: Annotated[Purchase, Meta(extra=SHOW, description="the purchase")]
    address: Address = DPK


class ConfirmPurchase(Request[Confirmed], frozen=True):
    """Check MAC2 and TAC, with which the card proves that it debited itself.

    Refuses with MAC_NOT_AUTHENTIC or TAC_NOT_AUTHENTIC.
    """

    card: Card
    purchase: Annotated[Purchase, Meta(extra=SHOW, description="the purchase")]
    mac2: Mac
    tac: Tac
    address: Address = DPK
    tac_address: Address = DTK


class MakeLoad(Request[Mac2], frozen=True):
    """Check the card's MAC1 and compute MAC2, which lets the card credit itself.

    Refuses with MAC_NOT_AUTHENTIC before anything else is computed.
    """

    card: Card
    load: Annotated[Load, Meta(extra=SHOW, description="the load")]
    mac1: Mac
    address: Address = DLK


class ConfirmLoad(Request[Confirmed], frozen=True):
    """Check the TAC, with which the card proves that it credited itself."""

    card: Card
    load: Annotated[Load, Meta(extra=SHOW, description="the load")]
    tac: Tac
    tac_address: Address = DTK
