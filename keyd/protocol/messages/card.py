"""Messages of the card family: authentication, secure messages, PINs."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from keyd.protocol.fields import (
    SHOW,
    Address,
    Apdu,
    Block,
    Card,
    Cryptogram,
    Header,
    Pin,
    Plaintext,
    Reply,
    Request,
    Response,
    SessionFactor,
    Warnings,
)

# The first sets of the keys that every card has (DOMAIN: 0170 IRK, 004C RKSSSE).
IRK = 0x0170
RKSSSE = 0x004C


class InternalReply(Response, frozen=True):
    """The cryptogram that a genuine card answers, and the challenge it is for."""

    reply: Reply
    warnings: Warnings = ()


class CardAuthentic(Response, frozen=True):
    """The card is genuine: its cryptogram is the one that its key makes."""

    warnings: Warnings = ()


class ExternalReply(Response, frozen=True):
    """What convinces the card, alone and as the APDU that carries it."""

    reply: Reply
    apdu: Apdu
    warnings: Warnings = ()


class MutualReply(Response, frozen=True):
    """Both replies of a 3.0 card's opening: the card's expected one and ours."""

    internal: Reply
    external: Reply
    warnings: Warnings = ()


class ReadyApdu(Response, frozen=True):
    """A command APDU under secure messaging: header ‖ Lc ‖ data ‖ MAC."""

    apdu: Apdu
    warnings: Warnings = ()


class InternalCryptogram(Request[InternalReply], frozen=True):
    """Compute the reply that a genuine card gives to INTERNAL AUTHENTICATE.

    The caller compares it with the card's own. Prefer `card.internal_authenticate`, where keyd compares.
    """

    card: Card
    session_factor: Block
    challenge: Block
    address: Address = IRK


class InternalAuthenticate(Request[CardAuthentic], frozen=True):
    """Check the cryptogram that a card returned to INTERNAL AUTHENTICATE.

    Refuses with CARD_NOT_AUTHENTIC; compares in constant time and never shows the expected value.
    """

    card: Card
    session_factor: Block
    challenge: Block
    cryptogram: Cryptogram
    address: Address = IRK


class ExternalAuthenticate(Request[ExternalReply], frozen=True):
    """Compute what EXTERNAL AUTHENTICATE needs to prove us to the card under a permission key.

    The session factor is the card's last challenge; the challenge is the one before it.
    """

    card: Card
    address: Address
    session_factor: Block
    challenge: Block


class MutualCryptograms(Request[MutualReply], frozen=True):
    """Compute the internal and the external reply of a 3.0 card's opening in one exchange."""

    card: Card
    internal_factor: Block
    internal_challenge: Block
    external_factor: Block
    external_challenge: Block
    internal_address: Address = IRK
    external_address: Address = RKSSSE


class MutualAuthenticate(Request[ExternalReply], frozen=True):
    """Check the card's cryptogram first and only then compute the external reply.

    A forged card learns nothing: it is refused with CARD_NOT_AUTHENTIC.
    """

    card: Card
    internal_factor: Block
    internal_challenge: Block
    cryptogram: Cryptogram
    external_factor: Block
    external_challenge: Block
    internal_address: Address = IRK
    external_address: Address = RKSSSE


class SecureMessage(Request[ReadyApdu], frozen=True):
    """Protect a command with a MAC, and encryption if asked, under a secure-messaging key (STK).

    keyd computes Lc. PIN commands have methods of their own and are refused here.
    """

    card: Card
    address: Address
    session_factor: SessionFactor
    header: Header
    plaintext: Plaintext
    encrypt: Annotated[bool, Meta(extra=SHOW, description="encrypt the data")] = False


class PinUnblock(Request[ReadyApdu], frozen=True):
    """Make the PIN UNBLOCK command, which gives back the PIN's tries."""

    card: Card
    session_factor: SessionFactor


class PinReload(Request[ReadyApdu], frozen=True):
    """Make the command that unblocks the PIN and sets a new one, encrypted for the card."""

    card: Card
    session_factor: SessionFactor
    pin: Pin
