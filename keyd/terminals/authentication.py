"""How a terminal and keyd prove themselves to each other on a connection, and who may be whom on it.

A terminal names itself and brings a challenge, gets keyd's, and proves itself once: with its terminal key, diversified
by its code or by its PSAM's 终端机编号, or with an SM2 signature. docs/terminals.md has the bytes.

Whoever fails learns that it failed, and nothing more: a code that nobody has, a wrong proof, a terminal that was
suspended, the wrong hour and the wrong network look the same, after the same work. The journal is told which it was.

The old identity of a connection stays until the new proof is judged, and is gone then, whatever came of it.
"""

from __future__ import annotations

from functools import partial
from hmac import compare_digest
from typing import TYPE_CHECKING, Final, Protocol

from msgspec import Struct

from keyd.errors import ChallengeExpired, QuotaExceeded, Refusal, TerminalNotAuthentic
from keyd.keys.hierarchy import (
    TERMINAL_CHALLENGE_BYTES,
    Side,
    terminal_factor_by_code,
    terminal_factor_by_psam,
)
from keyd.keys.sam import ProofTask, TerminalKeyRef
from keyd.protocol.proof import NO_BINDING
from keyd.registry.terminal import Proof, TerminalState
from keyd.terminals.known import KnownTerminal, Proven
from keyd.terminals.lockouts import Lockouts
from keyd.terminals.notes import Notes
from keyd.terminals.signatures import CLOCK_SECONDS, Attempt
from keyd.tls.chains import Anchors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from keyd.keys.sam import Sam
    from keyd.policy.limits import Quotas
    from keyd.registry.terminal import Terminal
    from keyd.terminals.known import Moment
    from keyd.terminals.session import Line, Session
    from keyd.terminals.signatures import Judged, Presented

# Long enough for a terminal on a slow line, too short to be worth collecting.
CHALLENGE_SECONDS: Final = 30

# A working day. After it the terminal proves itself again, on the same line if it likes.
SESSION_SECONDS: Final = 28_800

# A terminal that knows its key does not fail; after this many failures the line is cut.
MAX_FAILURES: Final = 3

# China's one time, in minutes ahead of UTC.
UTC_OFFSET: Final = 480

# What is no guess, because the proof was right or nobody looked at it: it is not counted against a terminal or a site.
_NO_GUESSES: Final = frozenset(
    {"key", "locked", "line", "time", "network", "hours", "not-valid", "proof-not-allowed"}
    | {str(state) for state in TerminalState}
)


class OpenChallenge(Struct, frozen=True):
    """A challenge that waits for its proof: on one connection, once, until the deadline."""

    code: str
    theirs: bytes
    ours: bytes
    deadline: float


class Activity(Protocol):
    """Who is told what registered terminals do; moments are seconds since 1970."""

    def authenticated(self, code: str, source: str, now: float) -> None:
        """Note that a terminal has proven itself."""

    def failed(self, code: str, source: str, now: float) -> None:
        """Note that somebody failed to prove to be a registered terminal."""


class Terminals:
    """The registered terminals and how they come in. One for the life of a keyd; its registry is loaded anew."""

    def __init__(
        self,
        registry: Mapping[str, Terminal],
        random_bytes: Callable[[int], bytes],
        *,
        quotas: Quotas | None = None,
    ) -> None:
        # What a reload may change.
        self.challenge_seconds = CHALLENGE_SECONDS
        self.session_seconds = SESSION_SECONDS
        self.utc_offset = UTC_OFFSET
        self.anchors = Anchors()
        # How many connections a terminal and an organisation may have; None for as many as they like.
        self.quotas = quotas
        self.lockouts = Lockouts()
        # Whoever counts what terminals do, if anybody does.
        self.activity: Activity | None = None
        self._notes = Notes()
        self._random_bytes = random_bytes
        self._registry = registry
        # Those that were here since they last changed.
        self._known: dict[str, KnownTerminal] = {}

    def __len__(self) -> int:
        return len(self._registry)

    @property
    def refused(self) -> Mapping[str, int]:
        """How often terminals were refused since the start, by reason."""
        return self._notes.refused

    def take_notes(self, now: float) -> list[dict[str, Any]]:
        """Return the events for the journal that have come since; `now` is monotonic seconds."""
        return self._notes.take(now)

    def load(self, registry: Mapping[str, Terminal]) -> bool:
        """Replace the registry; return whether it is another. Sessions have to be reviewed then."""
        if registry == self._registry:
            return False
        self._registry = registry
        self._known = {
            code: known for code, known in self._known.items() if registry.get(code) == known.record
        }
        return True

    # Proving ------------------------------------------------------------------------------------------------

    def open_challenge(self, session: Session, code: str, theirs: bytes, now: float) -> bytes:
        """Give a connection a challenge of 16 bytes for the terminal it names; the last one is void."""
        ours = self._random_bytes(TERMINAL_CHALLENGE_BYTES)
        session.challenge = OpenChallenge(code, theirs, ours, now + self.challenge_seconds)
        return ours

    def authenticate(self, session: Session, proof: bytes, now: Moment, sam: Sam) -> bytes:
        """Check a proof of 8 bytes under a terminal key, enter the terminal and return keyd's own proof, 8 bytes.

        Raises:
            ChallengeExpired: there is no open challenge.
            TerminalNotAuthentic: everything else that can be wrong.
            QuotaExceeded: it has proven itself, but has as many connections as it may.
        """
        session.leave()
        challenge = self._take_challenge(session, now)
        code = challenge.code
        factors = _factors(code, self._registry.get(code))
        expected = sam.prove(
            [
                ProofTask(
                    TerminalKeyRef(factor, Side.TERMINAL, is_verifying=True),
                    challenge.ours,
                    challenge.theirs,
                )
                for factor in factors.values()
            ]
        )
        by = None
        # Both are compared, always.
        for way, right in zip(factors, expected, strict=True):
            if isinstance(right, Refusal):
                raise self._fail(session, code, "key", now)
            if compare_digest(right, proof) and by is None:
                by = way
        # Only now: a terminal that has not been here yet is compiled, which takes time that a stranger could measure.
        known = None if by is None else self._maybe_known(code)
        if by is None or known is None:
            is_known = code in self._registry
            raise self._fail(session, code, "wrong-proof" if is_known else "unknown", now)
        proven = Proven(by)
        self._require_allowed(session, known, proven, now)
        ref = TerminalKeyRef(factors[by], Side.KEYD, is_verifying=False)
        (own,) = sam.prove([ProofTask(ref, challenge.theirs, challenge.ours)])
        if isinstance(own, Refusal):
            raise self._fail(session, code, "key", now)
        self._enter(session, known, proven, now)
        self._succeed(session, known, now)
        return own

    def begin_signature(self, session: Session, presented: Presented, now: Moment) -> Attempt:
        """Take the challenge for a signature, which is judged elsewhere and comes back to `end_signature`.

        Raises:
            ChallengeExpired: there is no open challenge.
            TerminalNotAuthentic: it is not worth judging.
        """
        challenge = self._take_challenge(session, now)
        if abs(presented.time - now.unix) > CLOCK_SECONDS:
            raise self._fail(session, challenge.code, "time", now)
        record = self._registry.get(challenge.code)
        attempt = Attempt(
            code=challenge.code,
            terminal_challenge=challenge.theirs,
            keyd_challenge=challenge.ours,
            binding=NO_BINDING if session.line is None else session.line.channel_binding,
            presented=presented,
            public_key=b"" if record is None else record.spec.public_key,
            anchors=self.anchors,
            now=now.unix,
        )
        session.attempt = attempt
        return attempt

    def end_signature(
        self, session: Session, attempt: Attempt, judged: Judged, now: Moment
    ) -> bytes:
        """Draw the conclusion from a judged signature: enter the terminal and return keyd's own, 64 bytes.

        Raises:
            ChallengeExpired: the connection has gone on to another proof meanwhile.
            TerminalNotAuthentic, QuotaExceeded: as `authenticate`.
        """
        if session.attempt is not attempt:
            raise ChallengeExpired
        session.attempt = None
        session.leave()
        if session.must_close:
            raise TerminalNotAuthentic  # too late: the line is about to be cut
        if judged.proven is None:
            raise self._fail(session, attempt.code, judged.reason, now)
        # Looked up again: the registry may be another by now.
        known = self._maybe_known(attempt.code)
        if known is None:
            raise self._fail(session, attempt.code, "unknown", now)
        if not judged.proven.serial and known.record.spec.public_key != attempt.public_key:
            raise self._fail(session, attempt.code, "wrong-proof", now)
        self._require_allowed(session, known, judged.proven, now)
        self._enter(session, known, judged.proven, now)
        self._succeed(session, known, now)
        return judged.signature

    # Staying ------------------------------------------------------------------------------------------------

    def review(self, session: Session, now: Moment) -> None:
        """After the registry has changed: keep the session, give it its terminal's new rights, or end it.

        A session whose terminal is no longer active, or has other credentials now, is nobody's, and its line is to be
        closed. One whose terminal may still be there gets the roles, hours and limits that now are the terminal's.
        """
        was = session.terminal
        if was is None:
            return
        known = self._maybe_known(was.code)
        if known is was:
            return
        session_until, proven = session.until, session.proven
        session.leave()
        if (
            known is None
            or proven is None
            or not _has_same_credential(was.record, known.record, proven)
            or self._refused_because(session, known, proven, now) is not None
        ):
            session.must_close = True
            return
        try:
            self._enter(session, known, proven, now, session_until)
        except QuotaExceeded:
            session.must_close = True

    def allows_line(self, line: Line, now: int) -> bool:
        """Whether the terminal whose certificate an encrypted line has may have it; `now` is seconds since 1970.

        Its code is an active terminal's, and where keyd's own CA has issued a certificate to it, it is that one.
        """
        known = self._maybe_known(line.common_name)
        return (
            known is not None
            and known.record.state is TerminalState.ACTIVE
            and known.is_valid(now)
            and now <= line.not_after
            and _is_its_certificate(known.record, line.serial)
        )

    # ------------------------------------------------------------------------------------------------------

    def _maybe_known(self, code: str) -> KnownTerminal | None:
        known = self._known.get(code)
        if known is None:
            record = self._registry.get(code)
            if record is None:
                return None
            known = self._known[code] = KnownTerminal(record)
        return known

    def _take_challenge(self, session: Session, now: Moment) -> OpenChallenge:
        """Use up the connection's challenge: whatever comes of it, it served once."""
        challenge, session.challenge = session.challenge, None
        # What is still being judged is overtaken.
        session.attempt = None
        if session.must_close:
            raise TerminalNotAuthentic  # too late: the line is about to be cut
        if challenge is None or now.monotonic > challenge.deadline:
            code = "" if challenge is None else challenge.code
            self._notes.refuse(code, session.source, "challenge", now.monotonic)
            session.leave()
            raise ChallengeExpired
        if self.lockouts.is_locked(challenge.code, session.source, now.monotonic):
            raise self._fail(session, challenge.code, "locked", now)
        if session.line is not None and session.line.common_name != challenge.code:
            raise self._fail(session, challenge.code, "line", now)
        return challenge

    def _fail(self, session: Session, code: str, reason: str, now: Moment) -> TerminalNotAuthentic:
        """Count a failure and return what to raise. The connection is nobody's."""
        session.leave()
        session.failures += 1
        session.must_close = session.failures >= MAX_FAILURES
        self._notes.refuse(code, session.source, reason, now.monotonic)
        if self.activity is not None and code in self._registry:
            self.activity.failed(code, session.source, now.unix)
        if reason not in _NO_GUESSES:
            self.lockouts.failed(code, session.source, now.monotonic)
        return TerminalNotAuthentic()

    def _require_allowed(
        self, session: Session, known: KnownTerminal, proven: Proven, now: Moment
    ) -> None:
        reason = self._refused_because(session, known, proven, now)
        if reason is not None:
            raise self._fail(session, known.code, reason, now)

    def _refused_because(
        self, session: Session, known: KnownTerminal, proven: Proven, now: Moment
    ) -> str | None:
        record = known.record
        if proven.by not in record.spec.proofs:
            return "proof-not-allowed"
        if proven.serial and not _is_its_certificate(record, proven.serial):
            return "certificate-serial"
        if session.line is not None and not self.allows_line(session.line, now.unix):
            return "line"
        return known.refused_because(session.source, now.unix, self.utc_offset)

    def _enter(
        self,
        session: Session,
        known: KnownTerminal,
        proven: Proven,
        now: Moment,
        until: float | None = None,
    ) -> None:
        """Make the connection the terminal's, until the first of all ends; `until` is one more (monotonic).

        Raises:
            QuotaExceeded: there are as many connections as may be.
        """
        ends = [known.closes_at(now.unix, self.utc_offset), proven.not_after or None]
        if session.line is not None:
            ends.append(session.line.not_after)
        seconds = [float(end - now.unix) for end in ends if end is not None]
        if until is None:
            until = now.monotonic + self.session_seconds
        until = min(until, now.monotonic + min(seconds, default=float("inf")))
        leave = None
        if self.quotas is not None:
            self.quotas.enter(known.asker)
            leave = partial(self.quotas.leave, known.asker)
        session.enter(known, until, leave)
        session.proven = proven

    def _succeed(self, session: Session, known: KnownTerminal, now: Moment) -> None:
        session.failures = 0
        self.lockouts.succeeded(known.code, session.source, now.monotonic)
        if self.activity is not None:
            self.activity.authenticated(known.code, session.source, now.unix)


def _factors(code: str, record: Terminal | None) -> dict[Proof, bytes]:
    """Return the diversifiers of both terminal keys. Who has no PSAM, or is nobody, gets the same work done."""
    by_code = terminal_factor_by_code(code)
    number = b"" if record is None else record.spec.psam_number
    by_psam = terminal_factor_by_psam(number) if number else by_code
    return {Proof.KEY_BY_CODE: by_code, Proof.KEY_BY_PSAM: by_psam}


def _has_same_credential(before: Terminal, after: Terminal, proven: Proven) -> bool:
    """Whether what the terminal has proven itself with still is its own."""
    if proven.by is Proof.KEY_BY_PSAM:
        return before.spec.psam_number == after.spec.psam_number
    if proven.by is Proof.SIGNATURE and not proven.serial:
        return before.spec.public_key == after.spec.public_key
    return True


def _is_its_certificate(record: Terminal, serial: int) -> bool:
    """Whether a certificate's serial number is the one on record, if there is one."""
    return not record.certificate or int.from_bytes(record.certificate, "big") == serial
