"""Handlers of the medical family."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from keyd.cards import medical
from keyd.handlers.card import card_of
from keyd.handlers.registry import handles
from keyd.protocol.messages.medical import (
    Confirmed,
    ConfirmLoad,
    ConfirmPurchase,
    Mac1,
    Mac2,
    MakeLoad,
    MakePurchase,
)

if TYPE_CHECKING:
    from keyd.handlers.services import Services
    from keyd.keys.sam import Steps
    from keyd.protocol.messages import medical as wire
    from keyd.terminals import Session


def _purchase(purchase: wire.Purchase) -> medical.Purchase:
    # The wire's and the domain's purchase have the same fields, but only the domain's has rules.
    return medical.Purchase(**msgspec.structs.asdict(purchase))


def _load(load: wire.Load) -> medical.Load:
    return medical.Load(**msgspec.structs.asdict(load))


@handles(MakePurchase)
def make_purchase(ask: MakePurchase, _session: Session, services: Services) -> Steps[Mac1]:
    card = card_of(ask.card, services)
    mac1 = yield from medical.make_purchase(card, ask.address, _purchase(ask.purchase))
    return Mac1(mac1, card.warnings)


@handles(ConfirmPurchase)
def confirm_purchase(
    ask: ConfirmPurchase, _session: Session, services: Services
) -> Steps[Confirmed]:
    card = card_of(ask.card, services)
    yield from medical.confirm_purchase(
        card, ask.address, ask.tac_address, _purchase(ask.purchase), ask.mac2, ask.tac
    )
    return Confirmed(card.warnings)


@handles(MakeLoad)
def make_load(ask: MakeLoad, _session: Session, services: Services) -> Steps[Mac2]:
    card = card_of(ask.card, services)
    mac2 = yield from medical.make_load(card, ask.address, _load(ask.load), ask.mac1)
    return Mac2(mac2, card.warnings)


@handles(ConfirmLoad)
def confirm_load(ask: ConfirmLoad, _session: Session, services: Services) -> Steps[Confirmed]:
    card = card_of(ask.card, services)
    yield from medical.confirm_load(card, ask.tac_address, _load(ask.load), ask.tac)
    return Confirmed(card.warnings)
