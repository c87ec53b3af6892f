"""A service says of every key whether what it computes will be given away or only compared.

A deactivated key is refused for the one and not for the other, so a wrong word here would either stop cards that
are still good, or go on making what no key may make any more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest

from keyd.cards import authentication, medical, messaging
from keyd.cards.authentication import Exchange
from keyd.cards.medical import Load, Purchase
from keyd.crypto.algorithms import CardAlgorithm
from keyd.keys.block import Use
from keyd.keys.sam import purpose_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyd.cards.identity import Card
    from keyd.keys.sam import Steps
    from tests.cards.conftest import Bench

INTERNAL: Final = Exchange(0x0170, bytes(8), bytes(8))
EXTERNAL: Final = Exchange(0x004C, bytes(8), bytes(8))
DPK, DLK, DTK, STK = 0x017F, 0x00B2, 0x00B5, 0x0173

PURCHASE: Final = Purchase(bytes(4), bytes(2), bytes(4), 1, 2, 3, 1, bytes(6), bytes(7))
LOAD: Final = Load(bytes(4), bytes(2), 1, 2, 2, bytes(6), bytes(7))

GIVEN, COMPARED = False, True

# What each service asks of which key, in its one step.
SERVICES: Final[dict[str, tuple[Callable[[Card], Steps[Any]], list[tuple[Use, bool]]]]] = {
    "internal_cryptogram": (
        lambda card: authentication.internal_cryptogram(card, INTERNAL),
        [(Use.INTERNAL, GIVEN)],
    ),
    "internal_authenticate": (
        lambda card: authentication.internal_authenticate(card, INTERNAL, bytes(8)),
        [(Use.INTERNAL, COMPARED)],
    ),
    "external_authenticate": (
        lambda card: authentication.external_authenticate(card, EXTERNAL),
        [(Use.EXTERNAL, GIVEN)],
    ),
    "mutual_cryptograms": (
        lambda card: authentication.mutual_cryptograms(card, INTERNAL, EXTERNAL),
        [(Use.INTERNAL, GIVEN), (Use.EXTERNAL, GIVEN)],
    ),
    "mutual_authenticate": (
        lambda card: authentication.mutual_authenticate(card, INTERNAL, bytes(8), EXTERNAL),
        [(Use.INTERNAL, COMPARED), (Use.EXTERNAL, GIVEN)],
    ),
    "pin_unblock": (
        lambda card: messaging.pin_unblock(card, bytes(8)),
        [(Use.MESSAGING, GIVEN)],
    ),
    "pin_reload": (
        lambda card: messaging.pin_reload(card, bytes(8), "123456"),
        [(Use.MESSAGING, GIVEN)],
    ),
    "protect": (
        lambda card: messaging.protect(
            card, STK, bytes(8), bytes.fromhex("04D60000"), b"1", encrypt=False
        ),
        [(Use.MESSAGING, GIVEN)],
    ),
    "make_purchase": (
        lambda card: medical.make_purchase(card, DPK, PURCHASE),
        [(Use.DEBIT, GIVEN)],
    ),
    "confirm_purchase": (
        lambda card: medical.confirm_purchase(card, DPK, DTK, PURCHASE, bytes(4), bytes(4)),
        [(Use.DEBIT, COMPARED), (Use.TAC, COMPARED)],
    ),
    "make_load": (
        lambda card: medical.make_load(card, DLK, LOAD, bytes(4)),
        [(Use.LOAD, COMPARED), (Use.LOAD, GIVEN)],
    ),
    "confirm_load": (
        lambda card: medical.confirm_load(card, DTK, LOAD, bytes(4)),
        [(Use.TAC, COMPARED)],
    ),
}


@pytest.mark.parametrize("name", SERVICES)
@pytest.mark.parametrize("version", [0, 7])
def test_a_service_says_what_it_wants_each_key_for(bench: Bench, name: str, version: int) -> None:
    start, wanted = SERVICES[name]
    card = bench.card(CardAlgorithm.SM4, key_version=version)
    asked = [purpose_of(task.key.purpose) for task in next(start(card))]
    assert asked == [(use, is_verifying, version) for use, is_verifying in wanted]
