"""Messages of the terminal family: a terminal proves itself and keyd proves itself in turn.

The design is ours; the ministry's message format is not public. Under a terminal key the proofs are cryptograms
as cards make them, under a key of one side and over both challenges. With SM2 both sides sign a label that names
the side, both challenges, the line, the time and the terminal's code (`keyd.protocol.proof`). So neither side's proof
ever serves as the other's and no proof serves twice. docs/terminals.md has the bytes and an example.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from keyd.protocol.fields import (
    SHOW,
    CertificateChain,
    Request,
    Response,
    Signature,
    TerminalChallenge,
    TerminalCode,
    TerminalProof,
    UnixTime,
)


class Challenge(Response, frozen=True):
    """keyd's challenge: single use, for this connection only, and short-lived."""

    challenge: TerminalChallenge
    seconds: Annotated[int, Meta(extra=SHOW, description="seconds until it expires")]


class KeydAuthentic(Response, frozen=True):
    """keyd's own proof. A terminal checks it before it trusts an answer."""

    proof: TerminalProof


class KeydSigned(Response, frozen=True):
    """keyd's own signature. A terminal checks it, with keyd's public key, before it trusts an answer."""

    signature: Signature


class RequestChallenge(Request[Challenge], frozen=True):
    """Name a terminal, bring its challenge and get keyd's. An unknown code gets one as well."""

    code: TerminalCode
    challenge: TerminalChallenge


class AuthenticateTerminal(Request[KeydAuthentic], frozen=True):
    """Prove the terminal. The connection is the terminal's from then on.

    It is proven with the terminal key that belongs to its code, or to its PSAM's 终端机编号: keyd tries both.
    Refuses with CHALLENGE_EXPIRED, TERMINAL_NOT_AUTHENTIC or QUOTA_EXCEEDED; whatever is wrong, an unknown code, a
    wrong proof, the hour or the place, it looks the same.
    """

    proof: TerminalProof


class AuthenticateSignature(Request[KeydSigned], frozen=True):
    """Prove the terminal with an SM2 signature. The connection is the terminal's from the answer on.

    With a certificate chain, the terminal's certificate first; without one, with the public key on record. Refuses as
    `terminal.authenticate` does.
    """

    signature: Signature
    time: UnixTime
    chain: CertificateChain = b""
