"""What a terminal proves itself with, and how it makes sure that it is keyd that answers. No I/O.

Three kinds: a terminal key (`Enrolment`), a PSAM that holds it and makes the proofs itself (`PsamEnrolment`), and an
SM2 key (`SignatureEnrolment`). Each answers a challenge with a request, and checks what keyd answers to that.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from hmac import compare_digest
from typing import TYPE_CHECKING, Generic, TypeVar

from keyd.crypto.algorithms import Algorithm
from keyd.crypto.secret import SecretKey
from keyd.crypto.sm2 import SignatureNotAuthentic, Sm2PublicKey
from keyd.errors import TerminalNotAuthentic
from keyd.keys.hierarchy import Side, TerminalKey
from keyd.protocol.messages.terminal import (
    AuthenticateSignature,
    AuthenticateTerminal,
    KeydAuthentic,
    KeydSigned,
)
from keyd.protocol.proof import NO_BINDING, signed_by_keyd, signed_by_terminal

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyd.crypto.sm2 import Sm2PrivateKey
    from keyd.protocol.fields import Request, Response

ResponseT = TypeVar("ResponseT", bound="Response")

_NOT_OURS = "the other end did not prove that it is our keyd"


class Proof(Generic[ResponseT]):
    """One proof: what to ask keyd with, and how to check its answer."""

    __slots__ = ("_verify", "request")

    def __init__(self, request: Request[ResponseT], verify: Callable[[ResponseT], None]) -> None:
        self.request = request
        self._verify = verify

    def verify_keyd(self, answer: ResponseT) -> None:
        """Check keyd's answer.

        Raises:
            TerminalNotAuthentic: the other end is not the keyd that this terminal is registered with.
        """
        self._verify(answer)


class Enrolled(ABC):
    """A terminal with something to prove itself with. It is shown as its code and no more."""

    def __init__(self, code: str) -> None:
        self.code = code

    @abstractmethod
    def prove(
        self, ours: bytes, theirs: bytes, binding: bytes = NO_BINDING
    ) -> Proof[KeydAuthentic] | Proof[KeydSigned]:
        """Prove the terminal over its own challenge and keyd's (16 bytes each), on a line with this binding (32)."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.code}>"


class PsamEnrolment(Enrolled):
    """A terminal whose PSAM, or whatever else, holds its key.

    `compute` makes the proof of a side: from the side's diversifier (8 bytes), the other side's challenge and the
    side's own (16 bytes each) it returns 8 bytes. A PSAM does so with the diversifier and the first challenge as
    session factor in DELIVERY SESSION KEY, the second in CIPHER DATA, and both halves of its answer XORed.
    """

    def __init__(self, code: str, compute: Callable[[bytes, bytes, bytes], bytes]) -> None:
        super().__init__(code)
        self._compute = compute

    def prove(
        self,
        ours: bytes,
        theirs: bytes,
        binding: bytes = NO_BINDING,  # noqa: ARG002 - a cryptogram has no room for it
    ) -> Proof[KeydAuthentic]:
        """Prove the terminal under its key. The line is not in it."""
        proof = self._compute(Side.TERMINAL.value, theirs, ours)

        def verify(answer: KeydAuthentic) -> None:
            if not compare_digest(self._compute(Side.KEYD.value, ours, theirs), answer.proof):
                raise TerminalNotAuthentic(_NOT_OURS)

        return Proof(AuthenticateTerminal(proof), verify)


class Enrolment(PsamEnrolment):
    """A terminal with its 16-byte terminal key, which goes into locked memory."""

    def __init__(self, code: str, key: bytes | bytearray) -> None:
        """Take the key; a bytearray is wiped."""
        terminal = TerminalKey(SecretKey.load(Algorithm.SM4, key))

        def compute(side: bytes, challenge: bytes, own: bytes) -> bytes:
            return terminal.diversify(Side(side)).proof(challenge, own)

        super().__init__(code, compute)


class SignatureEnrolment(Enrolled):
    """A terminal with an SM2 key, and keyd's public key (65 bytes, 04‖x‖y).

    `chain` is its certificate with intermediates, in PEM; without one, keyd has its public key on record.
    """

    def __init__(
        self,
        code: str,
        key: Sm2PrivateKey,
        keyd_public_key: bytes,
        chain: bytes = b"",
        now: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(code)
        self._key = key
        self._keyd = Sm2PublicKey.load(keyd_public_key)
        self._chain = chain
        self._now = now

    def prove(self, ours: bytes, theirs: bytes, binding: bytes = NO_BINDING) -> Proof[KeydSigned]:
        """Prove the terminal with a signature for this line."""
        moment = int(self._now())
        signature = self._key.sign(signed_by_terminal(self.code, ours, theirs, binding, moment))

        def verify(answer: KeydSigned) -> None:
            signed = signed_by_keyd(self.code, ours, theirs, binding, moment)
            try:
                self._keyd.verify(signed, answer.signature)
            except SignatureNotAuthentic:
                raise TerminalNotAuthentic(_NOT_OURS) from None

        return Proof(AuthenticateSignature(signature, moment, self._chain), verify)
