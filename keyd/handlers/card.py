"""Handlers of the card family."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyd.cards import authentication, messaging
from keyd.cards.authentication import Exchange
from keyd.cards.identity import Card, identify
from keyd.handlers.registry import handles
from keyd.protocol.messages.card import (
    CardAuthentic,
    ExternalAuthenticate,
    ExternalReply,
    InternalAuthenticate,
    InternalCryptogram,
    InternalReply,
    MutualAuthenticate,
    MutualCryptograms,
    MutualReply,
    PinReload,
    PinUnblock,
    ReadyApdu,
    SecureMessage,
)

if TYPE_CHECKING:
    from keyd.handlers.services import Services
    from keyd.keys.sam import Steps
    from keyd.protocol.fields import CardIdentity
    from keyd.terminals import Session


def card_of(identity: CardIdentity, services: Services) -> Card:
    """Return the domain's card for the wire's."""
    return identify(
        services.profiles,
        identity.card_id,
        identity.historical,
        identity.algorithm,
        identity.generation,
        identity.key_version,
    )


@handles(InternalCryptogram)
def internal_cryptogram(
    ask: InternalCryptogram, _session: Session, services: Services
) -> Steps[InternalReply]:
    card = card_of(ask.card, services)
    exchange = Exchange(ask.address, ask.session_factor, ask.challenge)
    reply = yield from authentication.internal_cryptogram(card, exchange)
    return InternalReply(reply, card.warnings)


@handles(InternalAuthenticate)
def internal_authenticate(
    ask: InternalAuthenticate, _session: Session, services: Services
) -> Steps[CardAuthentic]:
    card = card_of(ask.card, services)
    exchange = Exchange(ask.address, ask.session_factor, ask.challenge)
    yield from authentication.internal_authenticate(card, exchange, ask.cryptogram)
    return CardAuthentic(card.warnings)


@handles(ExternalAuthenticate)
def external_authenticate(
    ask: ExternalAuthenticate, _session: Session, services: Services
) -> Steps[ExternalReply]:
    card = card_of(ask.card, services)
    exchange = Exchange(ask.address, ask.session_factor, ask.challenge)
    proof = yield from authentication.external_authenticate(card, exchange)
    return ExternalReply(proof.reply, proof.apdu, card.warnings)


@handles(MutualCryptograms)
def mutual_cryptograms(
    ask: MutualCryptograms, _session: Session, services: Services
) -> Steps[MutualReply]:
    card = card_of(ask.card, services)
    internal = Exchange(ask.internal_address, ask.internal_factor, ask.internal_challenge)
    external = Exchange(ask.external_address, ask.external_factor, ask.external_challenge)
    ours, theirs = yield from authentication.mutual_cryptograms(card, internal, external)
    return MutualReply(ours, theirs, card.warnings)


@handles(MutualAuthenticate)
def mutual_authenticate(
    ask: MutualAuthenticate, _session: Session, services: Services
) -> Steps[ExternalReply]:
    card = card_of(ask.card, services)
    internal = Exchange(ask.internal_address, ask.internal_factor, ask.internal_challenge)
    external = Exchange(ask.external_address, ask.external_factor, ask.external_challenge)
    proof = yield from authentication.mutual_authenticate(card, internal, ask.cryptogram, external)
    return ExternalReply(proof.reply, proof.apdu, card.warnings)


@handles(SecureMessage)
def secure_message(ask: SecureMessage, _session: Session, services: Services) -> Steps[ReadyApdu]:
    card = card_of(ask.card, services)
    apdu = yield from messaging.protect(
        card, ask.address, ask.session_factor, ask.header, ask.plaintext, encrypt=ask.encrypt
    )
    return ReadyApdu(apdu, card.warnings)


@handles(PinUnblock)
def pin_unblock(ask: PinUnblock, _session: Session, services: Services) -> Steps[ReadyApdu]:
    card = card_of(ask.card, services)
    apdu = yield from messaging.pin_unblock(card, ask.session_factor)
    return ReadyApdu(apdu, card.warnings)


@handles(PinReload)
def pin_reload(ask: PinReload, _session: Session, services: Services) -> Steps[ReadyApdu]:
    card = card_of(ask.card, services)
    apdu = yield from messaging.pin_reload(card, ask.session_factor, ask.pin)
    return ReadyApdu(apdu, card.warnings)
