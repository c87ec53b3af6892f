"""Proving and maintaining: challenges, internal and external authentication, the PIN, the two blocks.

Maintenance takes two keys: the permission key is proved by EXTERNAL AUTHENTICATE, then the command itself
comes with a MAC under the STK of that level, from a challenge of its own.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Final

from keyd.iso7816 import SW, CommandApdu
from keyd.iso7816.sw import TRIES_LEFT
from keyd.simulator import arithmetic
from keyd.simulator.profile import (
    BK,
    BLOCKING_KEYS,
    KEY_TRIES,
    PIN_TRIES,
    PUK,
    STK_ADF,
    STK_DDF,
    Use,
)
from keyd.simulator.state import CardState, Declined, require_equal

if TYPE_CHECKING:
    from keyd.simulator.profile import KeyRow

CHALLENGE_BYTES: Final = 8

# A PIN is 4 to 16 digits, two to a byte, with an F after an odd one.
PIN_BYTES: Final = range(2, 9)
PIN_DIGITS: Final = range(4, 17)

PIN_SEPARATOR: Final = b"\xff"

# P2 of 84 24.
UNBLOCK_PIN, RELOAD_PIN = 0x00, 0x01


def get_challenge(card: CardState, apdu: CommandApdu) -> bytes:
    """GET CHALLENGE: only the last one counts, and only once."""
    if apdu.le not in card.algorithm.challenge_bytes:
        raise Declined(SW.WRONG_LENGTH)
    card.session.challenge = card.random_bytes(apdu.le)
    return card.session.challenge


def internal_authenticate(card: CardState, apdu: CommandApdu) -> bytes:
    """INTERNAL AUTHENTICATE: the card proves itself under the session factor that the terminal chose."""
    row = card.key_row(apdu.p2, Use.INTERNAL)
    session_factor, challenge, version = _split(apdu.data)
    session = arithmetic.session_key(card.key(row, version), session_factor)
    return arithmetic.cryptogram(session, challenge)


def external_authenticate(card: CardState, apdu: CommandApdu) -> bytes:
    """EXTERNAL AUTHENTICATE: the other side proves the key P2, under the card's last challenge."""
    row = card.key_row(apdu.p2, Use.PERMISSION)
    cryptogram, challenge, version = _split(apdu.data)
    key = card.key(row, version)
    if not card.tries(row):
        raise Declined(SW.AUTHENTICATION_BLOCKED)
    session = arithmetic.session_key(key, card.take_challenge())
    if not hmac.compare_digest(cryptogram, arithmetic.cryptogram(session, challenge)):
        _count_wrong_proof(card, row)
    card.set_tries(row, KEY_TRIES)
    card.session.rights.add((row.application, row.key_id))
    return b""


def _count_wrong_proof(card: CardState, row: KeyRow) -> None:
    # A wrong proof also takes back what an earlier right one gave.
    card.session.rights.discard((row.application, row.key_id))
    card.set_tries(row, card.tries(row) - 1)
    raise Declined(TRIES_LEFT | card.tries(row))


def _split(data: bytes) -> tuple[bytes, bytes, int]:
    # The version byte may be left out, and then means the first set.
    version = data[16] if len(data) > 16 else 1
    return data[:8], data[8:16], version


def verify_pin(card: CardState, apdu: CommandApdu) -> bytes:
    """VERIFY: compare the PIN, counting what is wrong."""
    _require_inside(card)
    _compare_pin(card, _pin(apdu.data))
    return b""


def change_pin(card: CardState, apdu: CommandApdu) -> bytes:
    """CHANGE PIN: old ‖ FF ‖ new, by whoever knows the old one."""
    _require_inside(card)
    old, separator, new = apdu.data.partition(PIN_SEPARATOR)
    if not separator:
        raise Declined(SW.WRONG_DATA)
    old_pin, new_pin = _pin(old), _pin(new)
    _compare_pin(card, old_pin)
    card.pin = new_pin
    return b""


def restore_pin(card: CardState, apdu: CommandApdu) -> bytes:
    """PIN UNBLOCK (P2 00) gives all tries back; PIN RELOAD (P2 01) brings a new PIN besides."""
    _require_inside(card)
    length = card.algorithm.pin_reload_bytes if apdu.p2 == RELOAD_PIN else arithmetic.MAC_BYTES
    if len(apdu.data) != length:
        raise Declined(SW.WRONG_LENGTH)
    card.require_right(PUK)
    payload, session = card.open_message(apdu, STK_DDF)
    if apdu.p2 == RELOAD_PIN:
        card.pin = _pin(card.decrypt(session, payload))
    card.pin_tries = PIN_TRIES
    return b""


def block_application(card: CardState, apdu: CommandApdu) -> bytes:
    """APPLICATION BLOCK, for good, of the current application, if it has an LK."""
    application = card.session.application
    blocking_key = BLOCKING_KEYS.get(application) if application else None
    if application is None or blocking_key is None:
        raise Declined(SW.CONDITIONS_NOT_SATISFIED)
    card.require_right(blocking_key)
    card.open_message(apdu, STK_ADF)
    card.blocked.add(application)
    return b""


def block_card(card: CardState, apdu: CommandApdu) -> bytes:
    """CARD BLOCK: the last command that the card ever obeys."""
    _require_inside(card)
    card.require_right(BK)
    card.open_message(apdu, STK_DDF)
    card.is_blocked = True
    return b""


def _require_inside(card: CardState) -> None:
    # The PIN and the card's own keys belong to the DDF, which its applications are inside of.
    if card.session.application is None:
        raise Declined(SW.CONDITIONS_NOT_SATISFIED)


def _compare_pin(card: CardState, pin: str) -> None:
    if not card.pin_tries:
        raise Declined(SW.AUTHENTICATION_BLOCKED)
    # A card counts down before it compares, so that pulling it in between gains nothing.
    card.pin_tries -= 1
    require_equal(pin.encode(), card.pin.encode(), TRIES_LEFT | card.pin_tries)
    card.pin_tries = PIN_TRIES


def _pin(data: bytes) -> str:
    if len(data) not in PIN_BYTES:
        raise Declined(SW.WRONG_LENGTH)
    digits = data.hex().upper().rstrip("F")
    if not digits.isdecimal() or len(digits) not in PIN_DIGITS:
        raise Declined(SW.WRONG_DATA)
    return digits
