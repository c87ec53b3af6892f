"""Handlers of the terminal family: a terminal and keyd prove themselves to each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyd.handlers.registry import handles
from keyd.protocol.messages.terminal import (
    AuthenticateTerminal,
    Challenge,
    KeydAuthentic,
    RequestChallenge,
)
from keyd.terminals import CHALLENGE_SECONDS

if TYPE_CHECKING:
    from keyd.handlers.services import Services
    from keyd.terminals import Session


@handles(RequestChallenge)
def challenge(ask: RequestChallenge, session: Session, services: Services) -> Challenge:
    now = services.clock()
    ours = services.terminals.open_challenge(session, ask.code, ask.challenge, now)
    return Challenge(ours, CHALLENGE_SECONDS)


@handles(AuthenticateTerminal)
def authenticate(ask: AuthenticateTerminal, session: Session, services: Services) -> KeydAuthentic:
    return KeydAuthentic(services.terminals.authenticate(session, ask.proof, services.clock()))
