"""The judging of a terminal's SM2 signature: a pure piece of work of some milliseconds, for a worker thread.

It sees what was presented and the one public key on record, and neither the registry nor the session.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec import Struct

from keyd.crypto.sm2 import PointNotOnCurve, SignatureNotAuthentic, Sm2PublicKey
from keyd.protocol.proof import signed_by_keyd, signed_by_terminal
from keyd.registry.terminal import Proof
from keyd.terminals.known import Proven
from keyd.tls.chains import Anchors, ChainRefused
from keyd.tls.kinds import TlsKind

if TYPE_CHECKING:
    from collections.abc import Callable

# How far a terminal's clock may be from keyd's, in seconds.
CLOCK_SECONDS: Final = 300

# A point whose key nobody uses, the curve's generator: whoever has no key on record gets the same work done.
_NOBODYS_POINT: Final = bytes.fromhex(
    "0432C4AE2C1F1981195F9904466A39C9948FE30BBFF2660BE1715A4589334C74C7"
    "BC3736A2F4F6779C59BDCEE36B692153D0A9877CC62A474002DF32E52139F0A0"
)


class Presented(NamedTuple):
    """What a terminal presents: signature r‖s (64 bytes), time (Unix seconds), certificate chain or nothing."""

    signature: bytes
    time: int
    chain: bytes = b""


class Judged(Struct, frozen=True):
    """Why a signature was refused, or how its terminal has proven itself and keyd's own signature (64 bytes)."""

    reason: str
    proven: Proven | None = None
    signature: bytes = b""


class Attempt(Struct, frozen=True):
    """One signature that waits to be judged. Its challenge is used up."""

    code: str
    terminal_challenge: bytes
    keyd_challenge: bytes
    binding: bytes
    presented: Presented
    # Of the record; empty if there is none. Not used if a chain was presented.
    public_key: bytes
    anchors: Anchors
    # Seconds since 1970, for the chain.
    now: int

    def judge(self, sign: Callable[[bytes], bytes]) -> Judged:
        """Check the chain and the signature; `sign` makes keyd's own. It takes some milliseconds."""
        point, proven = self.public_key or _NOBODYS_POINT, Proven(Proof.SIGNATURE)
        if self.presented.chain:
            try:
                end = self.anchors.verify_untrusted(self.presented.chain, self.now)
            except ChainRefused as refused:
                return Judged(f"certificate-{refused.fault}")
            if end.common_name != self.code:
                return Judged("certificate-code")
            if end.public_key.kind is not TlsKind.GUOMI:
                return Judged("certificate-kind")
            point, proven = (
                end.public_key.point,
                Proven(Proof.SIGNATURE, end.serial, end.not_after),
            )
        what = (
            *(self.code, self.terminal_challenge, self.keyd_challenge),
            *(self.binding, self.presented.time),
        )
        try:
            Sm2PublicKey.load(point).verify(signed_by_terminal(*what), self.presented.signature)
        except (SignatureNotAuthentic, PointNotOnCurve):
            return Judged("wrong-proof")
        return Judged("", proven, sign(signed_by_keyd(*what)))

    def __repr__(self) -> str:
        return f"<Attempt {self.code}>"
