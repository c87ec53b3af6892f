"""Handlers of the library family: the terminal library's strings, forwarded verbatim."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyd.cards import library
from keyd.handlers.card import card_of
from keyd.handlers.registry import handles
from keyd.protocol.messages.library import (
    DoDebit1,
    DoDebit2,
    LibraryReply,
    ReadCard,
    ReadCardBas,
    ReloadPin1,
    ReloadPin2,
    UnblockPin1,
    UnblockPin2,
    WriteCard,
)

if TYPE_CHECKING:
    from keyd.handlers.services import Services
    from keyd.keys.sam import Steps
    from keyd.terminals import Session

    Reply = Steps[LibraryReply]


@handles(ReadCardBas)
def read_card_bas(ask: ReadCardBas, _session: Session, services: Services) -> Reply:
    text, card = yield from library.read_card_bas(services.profiles, ask.text)
    return LibraryReply(text, card.warnings)


@handles(ReadCard)
def read_card(ask: ReadCard, _session: Session, services: Services) -> Reply:
    card = card_of(ask.card, services)
    text = yield from library.external_step(card, ask.text, "RK")
    return LibraryReply(text, card.warnings)


@handles(WriteCard)
def write_card(ask: WriteCard, _session: Session, services: Services) -> Reply:
    card = card_of(ask.card, services)
    text = yield from library.external_step(card, ask.text, "UK")
    return LibraryReply(text, card.warnings)


@handles(ReloadPin1)
def reload_pin_1(ask: ReloadPin1, _session: Session, services: Services) -> Reply:
    card = card_of(ask.card, services)
    text = yield from library.external_step(card, ask.text, library.PUK)
    return LibraryReply(text, card.warnings)


@handles(UnblockPin1)
def unblock_pin_1(ask: UnblockPin1, _session: Session, services: Services) -> Reply:
    card = card_of(ask.card, services)
    text = yield from library.external_step(card, ask.text, library.PUK)
    return LibraryReply(text, card.warnings)


@handles(ReloadPin2)
def reload_pin_2(ask: ReloadPin2, _session: Session, services: Services) -> Reply:
    card = card_of(ask.card, services)
    text = yield from library.reload_pin_2(card, ask.text)
    return LibraryReply(text, card.warnings)


@handles(UnblockPin2)
def unblock_pin_2(ask: UnblockPin2, _session: Session, services: Services) -> Reply:
    card = card_of(ask.card, services)
    text = yield from library.unblock_pin_2(card, ask.text)
    return LibraryReply(text, card.warnings)


@handles(DoDebit1)
def do_debit_1(ask: DoDebit1, _session: Session, services: Services) -> Reply:
    card = card_of(ask.card, services)
    text = yield from library.do_debit_1(card, ask.text, ask.terminal_transaction_number)
    return LibraryReply(text, card.warnings)


@handles(DoDebit2)
def do_debit_2(ask: DoDebit2, _session: Session, services: Services) -> Reply:
    card = card_of(ask.card, services)
    yield from library.do_debit_2(card, ask.step1, ask.step2)
    return LibraryReply("", card.warnings)
