"""A card-making machine: everything that one does with a card and a keyd, as a script.

A `Play` yields what it wants to ask keyd, each with the name of its step, and receives the answers; it talks
to its card by itself. Whoever drives it brings the line to keyd: the demo, a test, or an integrator's own
client. It checks what a machine can see, so that a keyd that computes wrongly is noticed by the card.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from keyd.crypto.algorithms import CardAlgorithm
from keyd.iso7816 import Aid, CommandApdu, Record, converse, historical_bytes, transmit
from keyd.protocol.fields import CardIdentity, Generation
from keyd.protocol.messages.card import (
    ExternalAuthenticate,
    MutualAuthenticate,
    PinReload,
    SecureMessage,
)
from keyd.protocol.messages.medical import (
    ConfirmLoad,
    ConfirmPurchase,
    Load,
    MakeLoad,
    MakePurchase,
    Purchase,
)
from keyd.simulator import dialogues, fields
from keyd.simulator.profile import DEBIT_TYPE, LOAD_TYPE

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from keyd.iso7816 import Dialogue
    from keyd.protocol.fields import Request

T = TypeVar("T")

# Logical key addresses, first sets.
PUK: Final = 0x0090
UKSSSE: Final = 0x0094
STKSSSE: Final = 0x0173

# Key ids on the card: index 1 of the load and the debit key.
KEY_INDEX: Final = 0x01

LOAD_AMOUNT: Final = 10_000
PURCHASE_AMOUNT: Final = 2_550


class Asking(NamedTuple):
    """Something to ask keyd, and the step of the machine's work that it belongs to."""

    step: str
    request: Request[Any]


class MadeCard(NamedTuple):
    """What the machine knows of a card that went through."""

    card_id: str
    name: str
    social_security_number: str


class CardDisagrees(Exception):  # noqa: N818 - says what happened
    """The card does not hold what was written, or does not accept what keyd computed."""


class CardMakingMachine:
    """A machine with one card in its slot. `terminal` is the 终端机编号, 12 digits."""

    def __init__(
        self,
        card_transmit: Callable[[bytes], bytes],
        atr: bytes,
        *,
        terminal: str,
        time: str,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._transmit = card_transmit
        self._historical = historical_bytes(atr)
        self._terminal = bytes.fromhex(terminal)
        self._time = bytes.fromhex(time)
        self._random_bytes = random_bytes
        self._numbers = 0

    def make(self, *, name: str, new_pin: str) -> Generator[Asking, Any, MadeCard]:
        """Take a card through everything: prove, read, write, reset its PIN, load it and buy with it."""
        card, number = yield from self.prove_and_read()
        yield from self.write_name(card, name)
        yield from self.reset_pin(card, new_pin)
        yield from self.load(card, LOAD_AMOUNT)
        yield from self.buy(card, PURCHASE_AMOUNT)
        return MadeCard(card.card_id.hex().upper(), name, number)

    def prove_and_read(self) -> Generator[Asking, Any, tuple[CardIdentity, str]]:
        """Have keyd check the card and prove us to it, then read the personal data."""
        opened = self._talk(dialogues.open_card())
        card = CardIdentity(
            bytes.fromhex(opened.identifier),
            self._historical,
            CardAlgorithm(opened.algorithm),
            Generation(int(opened.generation[0])),
        )
        factor, challenge = self._random_bytes(8), self._random_bytes(8)
        cryptogram = self._talk(dialogues.internal_authenticate(factor, challenge))
        external_factor, external_challenge = self._talk(dialogues.get_two_challenges())
        answer = yield Asking(
            "mutual authentication",
            MutualAuthenticate(
                card, factor, challenge, cryptogram, external_factor, external_challenge
            ),
        )
        self._send(answer.apdu)
        self._talk(dialogues.select_file(0xEF06))
        (number,) = self._talk(dialogues.read_fields([fields.SOCIAL_SECURITY_NUMBER]))
        return card, number

    def write_name(self, card: CardIdentity, name: str) -> Generator[Asking, Any, None]:
        """Prove the right to write, write the holder's name under MAC, and read it again."""
        yield from self._prove(card, UKSSSE, "permission to write, UKSSSE")
        self._talk(dialogues.select_file(0xEF06))
        record = bytes(Record(fields.NAME, fields.encode_field(fields.NAME, name)))
        factor = self._talk(dialogues.get_challenge())
        header = bytes((0x04, 0xDC, fields.NAME, 0x00))
        answer = yield Asking(
            "record written under MAC", SecureMessage(card, STKSSSE, factor, header, record)
        )
        self._send(answer.apdu)
        (written,) = self._talk(dialogues.read_fields([fields.NAME]))
        if written != name:
            raise CardDisagrees("the card does not hold the name that was written")

    def reset_pin(self, card: CardIdentity, new_pin: str) -> Generator[Asking, Any, None]:
        """Prove the PUK, set a new PIN, and verify it on the card."""
        yield from self._prove(card, PUK, "permission for the PIN, PUK")
        factor = self._talk(dialogues.get_challenge())
        answer = yield Asking("PIN reload", PinReload(card, factor, new_pin))
        self._send(answer.apdu)
        pin = bytes.fromhex(new_pin + "F" * (len(new_pin) % 2))
        self._talk(transmit(CommandApdu(0x00, 0x20, 0x00, 0x00, pin)))

    def load(self, card: CardIdentity, amount: int) -> Generator[Asking, Any, None]:
        """Load the medical account (划入)."""
        self._talk(dialogues.select(Aid.DF04))
        data = bytes((KEY_INDEX,)) + amount.to_bytes(4, "big") + self._terminal
        begun = self._talk(transmit(CommandApdu(0xB0, 0x28, 0x00, 0x01, data, le=16)))
        load = Load(
            pseudo_random=begun[8:12],
            load_number=begun[4:6],
            balance=int.from_bytes(begun[:4], "big"),
            amount=amount,
            type=LOAD_TYPE,
            terminal=self._terminal,
            time=self._time,
        )
        answer = yield Asking("load, MAC1 and MAC2", MakeLoad(card, load, begun[12:16]))
        credit = CommandApdu(0xB0, 0x2A, 0x00, 0x00, self._time + answer.mac2, le=4)
        tac = self._talk(transmit(credit))
        yield Asking("load confirmed, TAC", ConfirmLoad(card, load, tac))

    def buy(self, card: CardIdentity, amount: int) -> Generator[Asking, Any, None]:
        """Pay from the medical account (医疗消费)."""
        self._talk(dialogues.select(Aid.DF04))
        amounts = amount.to_bytes(4, "big") + bytes(8)
        data = bytes((KEY_INDEX,)) + amounts + self._terminal
        begun = self._talk(transmit(CommandApdu(0xB0, 0x28, 0x01, 0x01, data, le=22)))
        self._numbers += 1
        purchase = Purchase(
            pseudo_random=begun[18:22],
            purchase_number=begun[14:16],
            terminal_transaction_number=self._numbers.to_bytes(4, "big"),
            personal_account=amount,
            personal_paid=0,
            pooled_fund=0,
            type=DEBIT_TYPE,
            terminal=self._terminal,
            time=self._time,
        )
        answer = yield Asking("purchase, MAC1", MakePurchase(card, purchase))
        data = purchase.terminal_transaction_number + self._time + answer.mac1
        proof = self._talk(transmit(CommandApdu(0xB0, 0x2C, 0x01, 0x00, data, le=8)))
        tac, mac2 = proof[:4], proof[4:]
        yield Asking("purchase confirmed, MAC2", ConfirmPurchase(card, purchase, mac2, tac))

    def _prove(self, card: CardIdentity, address: int, step: str) -> Generator[Asking, Any, None]:
        factor, challenge = self._talk(dialogues.get_two_challenges())
        answer = yield Asking(step, ExternalAuthenticate(card, address, factor, challenge))
        self._send(answer.apdu)

    def _send(self, apdu: bytes) -> None:
        self._talk(transmit(CommandApdu.parse_untrusted(apdu)))

    def _talk(self, dialogue: Dialogue[T]) -> T:
        return converse(dialogue, self._transmit)
