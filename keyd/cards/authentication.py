"""Internal and external authentication, from the card's point of view as ISO 7816 has it.

Internal: the card proves itself and we check. External: we prove ourselves to the card.
"""

from __future__ import annotations

from hmac import compare_digest
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from keyd.errors import CardNotAuthentic
from keyd.keys.block import Use
from keyd.keys.sam import CryptogramTask

if TYPE_CHECKING:
    from keyd.cards.identity import Card
    from keyd.keys.sam import Steps

_EXTERNAL_AUTHENTICATE: Final = bytes.fromhex("008200")


class Exchange(Struct, frozen=True, gc=False):
    """One authentication: the key's logical address, the session factor (8 bytes), the challenge (8)."""

    address: int
    session_factor: bytes
    challenge: bytes


class ExternalProof(Struct, frozen=True, gc=False):
    """Cryptogram ‖ challenge (16 bytes) and the APDU that carries it; empty if the key id is unknown."""

    reply: bytes
    apdu: bytes


def internal_task(card: Card, exchange: Exchange, *, is_verifying: bool) -> CryptogramTask:
    """Return the task whose result a genuine card answers; `is_verifying` if it will not be given away.

    Raises:
        KeyNotFound, KeyUsageRefused: the address is not an internal authentication key.
    """
    card.profile.key(exchange.address, Use.INTERNAL)
    key = card.key(exchange.address, Use.INTERNAL, is_verifying=is_verifying)
    return CryptogramTask(key, exchange.session_factor, exchange.challenge)


def external_task(card: Card, exchange: Exchange) -> CryptogramTask:
    """Return the task whose result convinces the card.

    Raises:
        KeyNotFound, KeyUsageRefused: the address is not a permission key.
    """
    card.profile.key(exchange.address, Use.EXTERNAL)
    key = card.key(exchange.address, Use.EXTERNAL)
    return CryptogramTask(key, exchange.session_factor, exchange.challenge)


def internal_cryptogram(card: Card, exchange: Exchange) -> Steps[bytes]:
    """Compute the reply, cryptogram ‖ challenge, that a genuine card gives."""
    (cryptogram,) = yield (internal_task(card, exchange, is_verifying=False),)
    return cryptogram + exchange.challenge


def internal_authenticate(card: Card, exchange: Exchange, cryptogram: bytes) -> Steps[None]:
    """Check the card's cryptogram.

    Raises:
        CardNotAuthentic: it is not what the card's key makes.
    """
    (expected,) = yield (internal_task(card, exchange, is_verifying=True),)
    verify_cryptogram(expected, cryptogram)


def external_authenticate(card: Card, exchange: Exchange) -> Steps[ExternalProof]:
    """Compute what proves us to the card."""
    (cryptogram,) = yield (external_task(card, exchange),)
    return _external_proof(card, exchange, cryptogram)


def mutual_cryptograms(
    card: Card, internal: Exchange, external: Exchange
) -> Steps[tuple[bytes, bytes]]:
    """Compute both replies of a 3.0 card's opening."""
    ours = (
        internal_task(card, internal, is_verifying=False),
        external_task(card, external),
    )
    internal_cryptogram, external_cryptogram = yield ours
    return internal_cryptogram + internal.challenge, external_cryptogram + external.challenge


def mutual_authenticate(
    card: Card, internal: Exchange, cryptogram: bytes, external: Exchange
) -> Steps[ExternalProof]:
    """Check the card's cryptogram, then give what proves us to it.

    Raises:
        CardNotAuthentic: the card is not genuine; nothing is given.
    """
    ours = (internal_task(card, internal, is_verifying=True), external_task(card, external))
    expected, proof = yield ours
    verify_cryptogram(expected, cryptogram)
    return _external_proof(card, external, proof)


def verify_cryptogram(expected: bytes, cryptogram: bytes) -> None:
    """Compare in constant time.

    Raises:
        CardNotAuthentic: they differ.
    """
    if not compare_digest(expected, cryptogram):
        raise CardNotAuthentic


def _external_proof(card: Card, exchange: Exchange, cryptogram: bytes) -> ExternalProof:
    reply = cryptogram + exchange.challenge
    key_id = card.profile.key(exchange.address, Use.EXTERNAL).card_key_id
    apdu = b"" if key_id is None else _EXTERNAL_AUTHENTICATE + bytes((key_id, len(reply))) + reply
    return ExternalProof(reply, apdu)
