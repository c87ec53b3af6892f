"""The strings of the terminal's dynamic library: read strictly, answered bit for bit.

Every field is ended by |, the last one too; hex is in upper case. A string that is not exactly what the
library prints is refused with the number of the field that is wrong; the field itself is never repeated,
because one of them is a PIN. The shapes are those of public interface documents and traces.
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from keyd.cards import authentication, medical, messaging
from keyd.cards.authentication import Exchange
from keyd.cards.identity import Warned, historical_of, identify
from keyd.cards.medical import Purchase
from keyd.crypto.algorithms import CardAlgorithm
from keyd.errors import BadParameter, CommandNotAllowed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from keyd.cards.identity import Card
    from keyd.cards.profile import AmountName, Profile
    from keyd.keys.sam import Steps

_PIN: Final = re.compile(r"\A[0-9]{4,16}\Z")
_HEX: Final = frozenset("0123456789ABCDEF")

IRK: Final = "IRK"
RKSSSE: Final = "RKSSSE"
PUK: Final = "PUK"

# iReadCardBas prints 8 fields; some builds append the terminal's code as a ninth.
_BAS_FIELDS: Final = (8, 9)

_RELOAD_HEADERS: Final = {
    CardAlgorithm.DES: "842400010C",
    CardAlgorithm.SSF33: "8424000114",
    CardAlgorithm.SM4: "8424000114",
}
_UNBLOCK_HEADER: Final = "8424000004"


class _Fields:
    """The fields of one library string, by number from 1, as people count them."""

    def __init__(self, text: str, *counts: int) -> None:
        parts = text.split("|")
        # The last field is ended by | too, so what follows it is empty.
        if parts.pop() or len(parts) not in counts:
            wanted = " or ".join(map(str, counts))
            raise BadParameter(f"the string has {wanted} fields, each ended by |")
        self._parts = parts

    def text(self, number: int) -> str:
        return self._parts[number - 1]

    def hex(self, number: int, length: int) -> bytes:
        """Return a field of that many bytes in upper-case hex."""
        text = self.text(number)
        if len(text) != 2 * length or not _HEX.issuperset(text):
            raise BadParameter(f"field {number} is {2 * length} hex digits in upper case")
        return bytes.fromhex(text)

    def bcd(self, number: int, length: int) -> bytes:
        """Return a field of that many bytes in decimal digits."""
        text = self.text(number)
        if len(text) != 2 * length or not text.isascii() or not text.isdigit():
            raise BadParameter(f"field {number} is {2 * length} decimal digits")
        return bytes.fromhex(text)

    def address(self, number: int) -> int:
        return int.from_bytes(self.hex(number, 2), "big")

    def algorithm(self, number: int) -> CardAlgorithm:
        value = self.hex(number, 1)[0]
        try:
            return CardAlgorithm(value)
        except ValueError:
            raise BadParameter(f"field {number} is an algorithm: 01, 02 or 03") from None

    def is_empty(self, number: int) -> bool:
        return not self.text(number)


def read_card_bas(profiles: Mapping[int, Profile], text: str) -> Steps[tuple[str, Card]]:
    """Answer iReadCardBas_HSM_Step1; return the pKey of its step 2 and the card it names.

    The string does not tell the card's generation. The external fields are there exactly for 3.0 cards.

    Raises:
        BadParameter, CardDataInconsistent and what `mutual_cryptograms` raises.
    """
    fields = _Fields(text, *_BAS_FIELDS)
    region = fields.bcd(1, 3).hex()
    reset_information = fields.hex(2, 17 if len(fields.text(2)) == 34 else 13)
    algorithm = fields.algorithm(3)
    card_id = fields.hex(4, 16)
    internal_factor, internal_challenge = fields.hex(5, 8), fields.hex(6, 8)
    is_third = not (fields.is_empty(7) and fields.is_empty(8))
    # Below 3.0 the profiles differ in keys that this string does not use: the newest of them serves.
    generation = 3 if is_third else 2
    with _naming_field(2):
        historical = historical_of(reset_information)
    with _naming_field(4):
        card = identify(profiles, card_id, historical, algorithm, generation)
    if card.region != region:
        # Keys are diversified by the card's own region; the field beside it is information only.
        card = replace(card, warnings=(Warned.REGION_MISMATCH,))
    internal = Exchange(card.profile.address_of(IRK), internal_factor, internal_challenge)
    if not is_third:
        reply = yield from authentication.internal_cryptogram(card, internal)
        return _ended(_upper(reply), ""), card
    external = Exchange(card.profile.address_of(RKSSSE), fields.hex(7, 8), fields.hex(8, 8))
    ours, theirs = yield from authentication.mutual_cryptograms(card, internal, external)
    return _ended(_upper(ours), _upper(theirs)), card


def external_step(card: Card, text: str, *prefixes: str) -> Steps[str]:
    """Answer 算法|密钥地址|过程因子|原信息| with 32 hex digits.

    Serves iReadCard (keys RK…), iWriteCard (UK…) and the first steps of iReloadPIN and iUnblockPIN (PUK).

    Raises:
        CommandNotAllowed: the address is a key of another kind than `prefixes` name.
    """
    fields = _Fields(text, 4)
    _require_algorithm(card, fields.algorithm(1))
    exchange = Exchange(fields.address(2), fields.hex(3, 8), fields.hex(4, 8))
    name = _key_name(card, exchange.address)
    if not name.startswith(prefixes):
        raise CommandNotAllowed(f"this step is for {' or '.join(prefixes)} keys, not {name}")
    proof = yield from authentication.external_authenticate(card, exchange)
    return _upper(proof.reply)


def reload_pin_2(card: Card, text: str) -> Steps[str]:
    """Answer 算法|0173|过程因子|header|new PIN| with header ‖ ciphertext ‖ MAC in hex."""
    fields = _Fields(text, 5)
    session_factor = _pin_step(card, fields)
    if fields.text(4) != _RELOAD_HEADERS[card.algorithm]:
        raise BadParameter("field 4 is 842400010C (DES) or 8424000114 (16-byte blocks)")
    pin = fields.text(5)
    if not _PIN.match(pin):
        raise BadParameter("field 5 is a PIN, 4 to 16 decimal digits")
    apdu = _upper((yield from messaging.pin_reload(card, session_factor, pin)))
    if not apdu.startswith(fields.text(4)):
        # Under DES, LD and 16 digits make two blocks, and the step's header announces one.
        raise BadParameter("field 5, the PIN, has more digits than the header has room for")
    return apdu


def unblock_pin_2(card: Card, text: str) -> Steps[str]:
    """Answer 算法|0173|过程因子|8424000004|| with header ‖ MAC in hex."""
    fields = _Fields(text, 5)
    session_factor = _pin_step(card, fields)
    if fields.text(4) != _UNBLOCK_HEADER:
        raise BadParameter(f"field 4 is {_UNBLOCK_HEADER}")
    if not fields.is_empty(5):
        raise BadParameter("field 5, the PIN, is empty when a PIN is unblocked")
    apdu = yield from messaging.pin_unblock(card, session_factor)
    return _upper(apdu)


def do_debit_1(card: Card, text: str, terminal_transaction_number: bytes) -> Steps[str]:
    """Answer iDoDebit_HSM_Step1 with 终端交易序号|时间|MAC1|."""
    address, purchase = _debit(card, text, terminal_transaction_number)
    mac1 = yield from medical.make_purchase(card, address, purchase)
    return _ended(_upper(terminal_transaction_number), purchase.time.hex(), _upper(mac1))


def do_debit_2(card: Card, step1: str, step2: str) -> Steps[None]:
    """Check MAC2|算法|地址|金额|类型|终端机编号|终端交易序号|时间|TAC| against what step 1 said.

    Raises:
        BadParameter: the two steps are not of one transaction.
        MacNotAuthentic, TacNotAuthentic: the card did not make them.
    """
    fields = _Fields(step2, 9)
    mac2, number, tac = fields.hex(1, 4), fields.hex(7, 4), fields.hex(9, 4)
    address, purchase = _debit(card, step1, number)
    first = _Fields(step1, 8)
    # Step 2 repeats these fields of step 1; another transaction's would check the wrong thing.
    for in_second, in_first in ((2, 1), (4, 5), (5, 6), (6, 7), (8, 8)):
        if fields.text(in_second) != first.text(in_first):
            raise BadParameter(f"field {in_second} is not field {in_first} of step 1")
    # Which key the address in step 2 names is not public: we take step 1's, or else the TAC key's.
    tac_address = fields.address(3)
    if tac_address == address:
        tac_address = card.profile.address_of(medical.DTK)
    yield from medical.confirm_purchase(card, address, tac_address, purchase, mac2, tac)


def _debit(card: Card, text: str, number: bytes) -> tuple[int, Purchase]:
    fields = _Fields(text, 8)
    _require_algorithm(card, fields.algorithm(1))
    names = card.profile.library_amounts
    packed = fields.hex(5, 4 * len(names))
    amounts: dict[AmountName, int] = {
        name: int.from_bytes(packed[4 * i : 4 * i + 4], "big") for i, name in enumerate(names)
    }
    return fields.address(2), Purchase(
        pseudo_random=fields.hex(3, 4),
        purchase_number=fields.hex(4, 2),
        terminal_transaction_number=number,
        personal_account=amounts.get("personal_account", 0),
        personal_paid=amounts.get("personal_paid", 0),
        pooled_fund=amounts.get("pooled_fund", 0),
        type=fields.hex(6, 1)[0],
        terminal=fields.bcd(7, 6),
        time=fields.bcd(8, 7),
    )


def _pin_step(card: Card, fields: _Fields) -> bytes:
    _require_algorithm(card, fields.algorithm(1))
    if fields.address(2) != card.profile.address_of(messaging.STK):
        raise BadParameter("field 2 is the address of STKSSSE, 0173")
    return fields.hex(3, 8)


def _require_algorithm(card: Card, algorithm: CardAlgorithm) -> None:
    if algorithm is not card.algorithm:
        raise BadParameter("field 1, the algorithm, is not the card's")


def _key_name(card: Card, address: int) -> str:
    key = card.profile.keys.get(address)
    return key.name if key is not None else f"address {address:04X}"


@contextlib.contextmanager
def _naming_field(number: int) -> Iterator[None]:
    try:
        yield
    except BadParameter as refusal:
        raise BadParameter(f"field {number}: {refusal.detail}") from None


def _upper(data: bytes) -> str:
    return data.hex().upper()


def _ended(*fields: str) -> str:
    return "".join(f"{field}|" for field in fields)
