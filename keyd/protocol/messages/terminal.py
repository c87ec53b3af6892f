"""Messages of the terminal family: a terminal proves itself and keyd proves itself in turn.

The design is ours; the ministry's message format is not public. Both proofs are HMAC-SM3 under the terminal
key over a label that names the side, the terminal's code and both challenges, so that neither side's proof
ever serves as the other's and no proof serves twice (`keyd.protocol.proof`).
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from keyd.protocol.fields import (
    SHOW,
    Digest,
    Request,
    Response,
    TerminalChallenge,
    TerminalCode,
)


class Challenge(Response, frozen=True):
    """keyd's challenge: single use, for this connection only, and short-lived."""

    challenge: TerminalChallenge
    seconds: Annotated[int, Meta(extra=SHOW, description="seconds until it expires")]


class KeydAuthentic(Response, frozen=True):
    """keyd's own proof. A terminal checks it before it trusts an answer."""

    proof: Digest


class RequestChallenge(Request[Challenge], frozen=True):
    """Name a terminal, bring its challenge and get keyd's. An unknown code gets one as well."""

    code: TerminalCode
    challenge: TerminalChallenge


class AuthenticateTerminal(Request[KeydAuthentic], frozen=True):
    """Prove the terminal. The connection is the terminal's from then on.

    Refuses with CHALLENGE_EXPIRED or TERMINAL_NOT_AUTHENTIC; an unknown code looks like a wrong proof.
    """

    proof: Digest
