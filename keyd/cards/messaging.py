"""Commands under secure messaging: a MAC, and encryption where it is asked for, under an STK key.

Which key may protect which command is the profile's to say. PINs pass through here and nowhere else; they are
never part of an exception, a log line or a repr.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyd.errors import BadParameter
from keyd.keys.block import Use
from keyd.keys.sam import ProtectTask

if TYPE_CHECKING:
    from keyd.cards.identity import Card
    from keyd.keys.sam import Steps

PIN_UNBLOCK: Final = bytes.fromhex("84240000")
PIN_RELOAD: Final = bytes.fromhex("84240001")

STK: Final = "STKSSSE"


def protect(
    card: Card,
    address: int,
    session_factor: bytes,
    header: bytes,
    plaintext: bytes,
    *,
    encrypt: bool,
) -> Steps[bytes]:
    """Protect any command that has no service of its own; return the ready APDU.

    Raises:
        CommandNotAllowed, KeyUsageRefused, KeyNotFound: the profile does not allow header with key.
        BadParameter: there is nothing to encrypt.
    """
    card.profile.require_messaging(header, address, "card.secure_message")
    if encrypt and not plaintext:
        raise BadParameter("there is nothing to encrypt")
    task = ProtectTask(card.key(address, Use.MESSAGING), session_factor, header, plaintext, encrypt)
    (apdu,) = yield (task,)
    return apdu


def pin_unblock(card: Card, session_factor: bytes) -> Steps[bytes]:
    """Make the APDU that gives the PIN its tries back."""
    address = card.profile.address_of(STK)
    card.profile.require_messaging(PIN_UNBLOCK, address, "card.pin_unblock")
    task = ProtectTask(
        card.key(address, Use.MESSAGING), session_factor, PIN_UNBLOCK, b"", encrypt=False
    )
    (apdu,) = yield (task,)
    return apdu


def pin_reload(card: Card, session_factor: bytes, pin: str) -> Steps[bytes]:
    """Make the APDU that unblocks the PIN and sets a new one."""
    address = card.profile.address_of(STK)
    card.profile.require_messaging(PIN_RELOAD, address, "card.pin_reload")
    block = pin_block(pin)
    task = ProtectTask(
        card.key(address, Use.MESSAGING), session_factor, PIN_RELOAD, block, encrypt=True
    )
    (apdu,) = yield (task,)
    return apdu


def pin_block(pin: str) -> bytes:
    """Return a PIN of 4 to 16 digits as the card wants it: cn, right-padded with F; 2 to 8 bytes.

    Raises:
        BadParameter: it is something else. The sentence does not repeat it.
    """
    if not 4 <= len(pin) <= 16 or not pin.isascii() or not pin.isdigit():
        raise BadParameter("a PIN has 4 to 16 decimal digits")
    return bytes.fromhex(pin + "F" * (len(pin) % 2))
