"""Handlers of the terminal family: a terminal and keyd prove themselves to each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from keyd.errors import Sealed
from keyd.handlers.registry import handles
from keyd.protocol.messages.terminal import (
    AuthenticateSignature,
    AuthenticateTerminal,
    Challenge,
    KeydAuthentic,
    KeydSigned,
    RequestChallenge,
)
from keyd.terminals import Presented

if TYPE_CHECKING:
    from keyd.handlers.services import Services
    from keyd.terminals import Session


@handles(RequestChallenge)
def challenge(ask: RequestChallenge, session: Session, services: Services) -> Challenge:
    terminals = services.terminals
    ours = terminals.open_challenge(session, ask.code, ask.challenge, services.clock())
    return Challenge(ours, terminals.challenge_seconds)


# Not as steps that the tick computes with all others: whoever asks next on the connection, in the same tick, is
# already the terminal.
@handles(AuthenticateTerminal)
def authenticate(ask: AuthenticateTerminal, session: Session, services: Services) -> KeydAuthentic:
    proof = services.terminals.authenticate(session, ask.proof, services.moment(), services.sam)
    return KeydAuthentic(proof)


@handles(AuthenticateSignature)
async def authenticate_signature(
    ask: AuthenticateSignature, session: Session, services: Services
) -> KeydSigned:
    terminals, sign = services.terminals, services.sign
    if sign is None:
        raise Sealed
    # The challenge is taken here, before anything waits: it serves once.
    presented = Presented(ask.signature, ask.time, ask.chain)
    attempt = terminals.begin_signature(session, presented, services.moment())
    judged = await trio.to_thread.run_sync(attempt.judge, sign, abandon_on_cancel=True)
    return KeydSigned(terminals.end_signature(session, attempt, judged, services.moment()))
