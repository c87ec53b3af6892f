"""The terminal's half of a purchase: INIT SAM FOR PURCHASE makes MAC1, CREDIT SAM checks the card's MAC2.

Between the two nothing else may come but GET RESPONSE. A terminal transaction number is kept as spent before it is
answered; whatever becomes of the purchase, it does not come again.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Final

from keyd.iso7816 import SW
from keyd.keys.hierarchy import DIVERSIFIER_BYTES
from keyd.psam.keys import KeyName
from keyd.psam.profile import NUMBER_BYTES
from keyd.psam.session_keys import diversified
from keyd.psam.state import MAC2, Declined, Transaction

if TYPE_CHECKING:
    from keyd.iso7816 import CommandApdu
    from keyd.psam.state import Channel, Psam

PURCHASE_KIND: Final = 0x02

# Of the data of INIT SAM FOR PURCHASE: the card's random and purchase number before the amounts; type, date and time
# after them; then version and algorithm of the key.
BEFORE_BYTES, AMOUNT_BYTES, AFTER_BYTES, KEY_BYTES = 6, 4, 8, 2

LEVELS: Final = range(1, 4)


def initialize_purchase(psam: Psam, channel: Channel, apdu: CommandApdu) -> bytes:
    """INIT SAM FOR PURCHASE: the terminal transaction number, 4 bytes, and MAC1, 4 bytes."""
    psam.require_unlocked()
    if not channel.is_in_application:
        raise Declined(SW.CONDITIONS_NOT_SATISFIED)
    terms, factors, levels = _split(psam, apdu.data)
    card_part, amounts, when = terms[:6], terms[6 : -AFTER_BYTES - KEY_BYTES], terms[-10:-2]
    version, algorithm = terms[-KEY_BYTES:]
    missing = int(psam.profile.purchase.no_such_key, 16)
    if algorithm not in channel.environment.purchase_algorithms:
        raise Declined(missing)
    wanted = KeyName(levels << 5 | PURCHASE_KIND, version)
    card = diversified(psam, channel, wanted, factors, missing)
    number = psam.take_number().to_bytes(NUMBER_BYTES, "big")
    session = card.derive(card_part + number[2:])
    kind, time = when[:1], when[1:]
    mac1 = session.mac(amounts + kind + psam.identity.terminal + time)
    channel.transaction = Transaction(session, amounts)
    return number + mac1


def _split(psam: Psam, data: bytes) -> tuple[bytes, bytes, int]:
    """Return the terms of the purchase, the diversifiers, and how many those are."""
    amounts = psam.profile.purchase.amounts * AMOUNT_BYTES
    length = BEFORE_BYTES + amounts + AFTER_BYTES + KEY_BYTES
    levels, rest = divmod(len(data) - length, DIVERSIFIER_BYTES)
    if rest or levels not in LEVELS:
        raise Declined(SW.WRONG_LENGTH)
    return data[:length], data[length:], levels


def credit(psam: Psam, channel: Channel, apdu: CommandApdu) -> bytes:
    """CREDIT SAM: whether the card was debited. MAC2 can be tried once for each purchase."""
    psam.require_unlocked()
    transaction, channel.transaction = channel.transaction, None
    if transaction is None:
        raise Declined(SW.COMMAND_NOT_ACCEPTED)
    if not hmac.compare_digest(apdu.data, transaction.key.mac(transaction.amounts)):
        psam.count_wrong(MAC2)
        raise Declined(int(psam.profile.purchase.wrong_mac2, 16))
    psam.forget_wrong(MAC2, psam.profile.purchase.mac2_tries)
    return b""
