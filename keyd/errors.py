"""What can go wrong, in one table: the wire status, the Refusal class and the two protocol errors.

A `Refusal` is a foreseen "no". It crosses the wire as `[status, name, detail]` and the client raises the
same class again. Everything that is not a Refusal or a protocol error is a bug, and the peer learns only
`INTERNAL`. The detail is a sentence for people; programs look at the status. No detail ever carries a key,
a PIN or a personal datum.

Numbers are part of the wire: they are never reused and never change.
"""

from __future__ import annotations

import enum
import re
from typing import ClassVar, Final

_RETRY: Final = re.compile(r"ask again in ([0-9]{1,9}) ms\Z")


class Status(enum.IntEnum):
    """The status of an answer on the wire. 0 is success; the hundreds say who can mend it."""

    OK = 0

    # 1xx: the message. The peer's program is wrong.
    MALFORMED = 100
    METHOD_UNKNOWN = 101
    BAD_PARAMETER = 102
    TOO_MANY_IN_FLIGHT = 103
    TOO_LARGE = 104
    TIMED_OUT = 105

    # 2xx: the asker. The terminal, its enrolment or its rights.
    NOT_AUTHENTICATED = 200
    TERMINAL_NOT_AUTHENTIC = 201
    CHALLENGE_EXPIRED = 202
    OFFICER_NOT_AUTHENTIC = 203
    ROLE_MISSING = 204
    NOT_ALLOWED = 205
    RATE_LIMITED = 206
    QUOTA_EXCEEDED = 207
    CARD_LIMIT = 208
    ENROLMENT_REFUSED = 209

    # 3xx: the keys.
    KEY_NOT_FOUND = 300
    KEY_USAGE = 301
    ALGORITHM_NOT_SUPPORTED = 302
    KEY_STATE = 303
    KEY_EXHAUSTED = 304
    KEY_NOT_VALID_NOW = 305
    KEY_VERSION = 306
    DOMAIN_CROSSED = 307
    EXPORT_REFUSED = 308
    KEY_BLOCK_REFUSED = 309

    # 4xx: the card and what it said.
    CARD_NOT_AUTHENTIC = 400
    CARD_DATA_INCONSISTENT = 401
    MAC_NOT_AUTHENTIC = 402
    TAC_NOT_AUTHENTIC = 403
    COMMAND_NOT_ALLOWED = 404

    # 5xx: keyd itself. Trying again later, or elsewhere, may help.
    INTERNAL = 500
    DRAINING = 501
    OVERLOADED = 502
    KEY_FILE_UNUSABLE = 503
    SELFTEST_FAILED = 504
    AUDIT_UNAVAILABLE = 505
    SEALED = 506
    STORE_UNAVAILABLE = 507

    # 6xx: custody. What officers do, and in which order.
    PROPOSAL_NOT_FOUND = 600
    PROPOSAL_CLOSED = 601
    OWN_PROPOSAL = 602
    SHARE_REFUSED = 603
    COMPONENT_REFUSED = 604
    CHANGED_MEANWHILE = 605
    NOT_SEALED = 606
    TERMINAL_NOT_FOUND = 607
    TERMINAL_STATE = 608
    PSAM_NOT_FOUND = 609
    PSAM_STATE = 610

    # 7xx: PSAMs that are lent.
    POOL_EXHAUSTED = 700
    PSAM_GONE = 701
    PSAM_NOT_OPEN = 702
    PSAM_DECLINED = 703


class Refusal(Exception):  # noqa: N818 - the field's word; what is raised says what happened
    """A foreseen no. `str(refusal)` is the detail that the peer reads."""

    status: ClassVar[Status]

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail or type(self).__doc__ or self.status.name)

    @property
    def detail(self) -> str:
        """The sentence for people."""
        return str(self.args[0])


class Malformed(Refusal):
    """The bytes are not a MessagePack-RPC message within keyd's limits."""

    status = Status.MALFORMED


class MethodUnknown(Refusal):
    """There is no such method."""

    status = Status.METHOD_UNKNOWN


class BadParameter(Refusal):
    """A parameter has the wrong type, length or value."""

    status = Status.BAD_PARAMETER


class TooManyInFlight(Refusal):
    """This connection already has as many unanswered requests as it may."""

    status = Status.TOO_MANY_IN_FLIGHT


class TooLarge(Refusal):
    """The data do not fit into one short APDU."""

    status = Status.TOO_LARGE


class TimedOut(Refusal):
    """The peer was silent for too long."""

    status = Status.TIMED_OUT


class NotAuthenticated(Refusal):
    """This connection has no authenticated terminal."""

    status = Status.NOT_AUTHENTICATED


class TerminalNotAuthentic(Refusal):
    """The terminal did not prove itself."""

    status = Status.TERMINAL_NOT_AUTHENTIC


class ChallengeExpired(Refusal):
    """There is no open challenge on this connection: ask for one first, use it once and soon."""

    status = Status.CHALLENGE_EXPIRED


class KeyNotFound(Refusal):
    """No key is loaded for this address and algorithm."""

    status = Status.KEY_NOT_FOUND


class KeyUsageRefused(Refusal):
    """The key at this address is for another use."""

    status = Status.KEY_USAGE


class AlgorithmNotSupported(Refusal):
    """Only hardware has this algorithm, and none is attached."""

    status = Status.ALGORITHM_NOT_SUPPORTED


class CardNotAuthentic(Refusal):
    """The card's cryptogram is not the one that its key makes."""

    status = Status.CARD_NOT_AUTHENTIC


class CardDataInconsistent(Refusal):
    """The card identifier and the historical bytes are not of one card."""

    status = Status.CARD_DATA_INCONSISTENT


class MacNotAuthentic(Refusal):
    """The MAC is not the one that the card's key makes."""

    status = Status.MAC_NOT_AUTHENTIC


class TacNotAuthentic(Refusal):
    """The TAC is not the one that the card's key makes."""

    status = Status.TAC_NOT_AUTHENTIC


class CommandNotAllowed(Refusal):
    """The card's profile does not allow this command with this key."""

    status = Status.COMMAND_NOT_ALLOWED


class Internal(Refusal):
    """keyd has a fault; its log has the whole of it."""

    status = Status.INTERNAL


class Draining(Refusal):
    """keyd is shutting down and takes no new work."""

    status = Status.DRAINING


class Overloaded(Refusal):
    """keyd has as much work or as many connections as it may."""

    status = Status.OVERLOADED


class KeyFileUnusable(Refusal):
    """The sealed key file cannot be opened."""

    status = Status.KEY_FILE_UNUSABLE


class SelftestFailed(Refusal):
    """A known-answer test failed; no cryptographic answer can be trusted."""

    status = Status.SELFTEST_FAILED


class OfficerNotAuthentic(Refusal):
    """The officer is not known, or did not sign this command with this connection's challenge."""

    status = Status.OFFICER_NOT_AUTHENTIC


class RoleMissing(Refusal):
    """Whoever asks does not have the role for this."""

    status = Status.ROLE_MISSING


class NotAllowed(Refusal):
    """The policy does not allow this."""

    status = Status.NOT_ALLOWED

    def __init__(self, detail: str = "", *, line: int = 0) -> None:
        super().__init__(detail)
        # The line of the policy that decided, for log and journal. It does not cross the wire: whoever holds
        # a stolen terminal need not learn where the policy is open.
        self.line = line


class RateLimited(Refusal):
    """There were too many requests in a short time; wait before asking again."""

    status = Status.RATE_LIMITED


class QuotaExceeded(Refusal):
    """There are as many connections already as there may be."""

    status = Status.QUOTA_EXCEEDED


class CardLimit(Refusal):
    """As much was done for this card as may be for now, or it behaves strangely."""

    status = Status.CARD_LIMIT


class KeyStateRefused(Refusal):
    """The key's state does not allow this use."""

    status = Status.KEY_STATE


class KeyExhausted(Refusal):
    """The key has been used as often as it may be."""

    status = Status.KEY_EXHAUSTED


class KeyNotValidNow(Refusal):
    """The key is not valid yet, or not any more."""

    status = Status.KEY_NOT_VALID_NOW


class KeyVersionRefused(Refusal):
    """There is no such version of the key, or it is older than what is accepted."""

    status = Status.KEY_VERSION


class DomainCrossed(Refusal):
    """The keys, or the officer and the key, are of different domains."""

    status = Status.DOMAIN_CROSSED


class ExportRefused(Refusal):
    """The key's header does not allow it to leave in this way."""

    status = Status.EXPORT_REFUSED


class KeyBlockRefused(Refusal):
    """The wrapped key does not open, or is not the key that it is said to be."""

    status = Status.KEY_BLOCK_REFUSED


class AuditUnavailable(Refusal):
    """The journal cannot be written, so nothing is answered that it would have to record."""

    status = Status.AUDIT_UNAVAILABLE


class Sealed(Refusal):
    """keyd is sealed: it holds no key until enough shareholders unseal it."""

    status = Status.SEALED


class StoreUnavailable(Refusal):
    """The key store cannot be read or written; nothing was changed."""

    status = Status.STORE_UNAVAILABLE


class EnrolmentRefused(Refusal):
    """The enrolment code is not this terminal's, was used or has expired, or the certificate request is not for it."""

    status = Status.ENROLMENT_REFUSED


class TerminalNotFound(Refusal):
    """No terminal of that code is enrolled."""

    status = Status.TERMINAL_NOT_FOUND


class TerminalStateRefused(Refusal):
    """The terminal's state does not allow this."""

    status = Status.TERMINAL_STATE


class PsamNotFound(Refusal):
    """No PSAM of that number was issued."""

    status = Status.PSAM_NOT_FOUND


class PsamStateRefused(Refusal):
    """The PSAM's state does not allow this."""

    status = Status.PSAM_STATE


class PoolExhausted(Refusal):
    """No PSAM became free in time: ask again in a moment."""

    status = Status.POOL_EXHAUSTED

    @classmethod
    def retry_in(cls, milliseconds: int) -> PoolExhausted:
        """Return the refusal with its hint when to ask again."""
        return cls(f"no PSAM became free in time: ask again in {milliseconds} ms")

    @property
    def retry_milliseconds(self) -> int:
        """When to ask again; 0 if the sentence does not say it."""
        found = _RETRY.search(self.detail)
        return int(found[1]) if found else 0


class PsamGone(Refusal):
    """The PSAM was taken away, failed or was stopped in the middle. What was begun with it is lost: open another."""

    status = Status.PSAM_GONE


class PsamNotOpen(Refusal):
    """There is no open PSAM of this number on this connection."""

    status = Status.PSAM_NOT_OPEN


class PsamDeclined(Refusal):
    """The PSAM answered a command with a status word that says no."""

    status = Status.PSAM_DECLINED


class ProposalNotFound(Refusal):
    """There is no such proposal."""

    status = Status.PROPOSAL_NOT_FOUND


class ProposalClosed(Refusal):
    """The proposal was decided already, or has expired."""

    status = Status.PROPOSAL_CLOSED


class OwnProposal(Refusal):
    """Nobody approves their own proposal."""

    status = Status.OWN_PROPOSAL


class ShareRefused(Refusal):
    """The share is not one of this seal."""

    status = Status.SHARE_REFUSED


class ComponentRefused(Refusal):
    """The component is not the one that was announced, or it is not this officer's to give."""

    status = Status.COMPONENT_REFUSED


class ChangedMeanwhile(Refusal):
    """Somebody else changed it at the same time: look again, and ask again if it is still right."""

    status = Status.CHANGED_MEANWHILE


class NotSealed(Refusal):
    """keyd is unsealed already."""

    status = Status.NOT_SEALED


REFUSALS: Final[dict[Status, type[Refusal]]] = {
    refusal.status: refusal for refusal in Refusal.__subclasses__()
}


def refusal_from_wire(status: int, name: str, detail: str) -> Refusal:
    """Make the Refusal that the other side raised. A status unknown here keeps its name in the detail."""
    try:
        known = REFUSALS[Status(status)]
    except (ValueError, KeyError):
        return Internal(f"{name} ({status}): {detail}")
    return known(detail)


class RemoteProtocolError(Exception):
    """The other side broke the protocol. The connection cannot go on."""


class LocalProtocolError(Exception):
    """This side's program used the protocol wrongly: our bug, not the peer's."""
