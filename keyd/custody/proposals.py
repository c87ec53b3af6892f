"""Dual control: what one officer proposes, another of the same domain approves, or it does not happen."""

from __future__ import annotations

import enum
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from keyd.custody.actions import Action
from keyd.custody.officers import Officer, OfficerRole, require_role
from keyd.errors import DomainCrossed, OwnProposal, ProposalClosed
from keyd.keys.block import Domain, Seconds

PROPOSAL_ID_BYTES: Final = 8

# Two people in one building need minutes, two cities a few days. Later, nobody remembers why.
DEFAULT_LIFETIME_SECONDS: Final = 72 * 3600
MAX_LIFETIME_SECONDS: Final = 30 * 24 * 3600

# More than a team can read is a flood, and each is held in memory.
MAX_OPEN_PROPOSALS: Final = 256

# How many that are decided are kept to be looked at; the journal has them all.
MAX_CLOSED_PROPOSALS: Final = 1000


class ProposalState(enum.StrEnum):
    """What became of a proposal."""

    OPEN = "open"
    STAGED = "staged"
    """Approved, and waiting for the people who must confirm that they hold their part."""
    DONE = "done"
    REJECTED = "rejected"


# How a result names what is encrypted to one officer, before the officer's code.
FOR_COMPONENT: Final = "component for "
FOR_SHARE: Final = "share for "
FOR_CODES: Final = "enrolment codes for "
FOR_KEYS: Final = "terminal keys for "

# By what the journal calls each.
ENVELOPES: Final = {
    "component": FOR_COMPONENT,
    "share": FOR_SHARE,
    "enrolment_codes": FOR_CODES,
    "terminal_keys": FOR_KEYS,
}


def is_envelope(name: str) -> bool:
    """Whether a part of a result is for one officer alone."""
    return name.startswith(tuple(ENVELOPES.values()))


class Proposal(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """One proposal. `result` is what carrying it out gave to the public: wrapped keys, ciphertext by custodian."""

    proposal_id: Annotated[bytes, Meta(min_length=PROPOSAL_ID_BYTES, max_length=PROPOSAL_ID_BYTES)]
    domain: Domain
    action: Action
    note: Annotated[str, Meta(max_length=200)]
    proposed_by: str
    proposed_at: Seconds
    expires_at: Seconds
    state: ProposalState = ProposalState.OPEN
    decided_by: str = ""
    decided_at: Seconds = 0
    result: dict[str, bytes] = {}
    revision: Annotated[int, Meta(ge=1)] = 1

    @property
    def has_envelopes(self) -> bool:
        """Whether it still holds what one officer alone may take."""
        return any(map(is_envelope, self.result))

    def without_envelopes(self) -> Proposal:
        """Return it without what officers were to take."""
        left = {name: value for name, value in self.result.items() if not is_envelope(name)}
        return msgspec.structs.replace(self, result=left, revision=self.revision + 1)

    @property
    def is_closed(self) -> bool:
        """Whether nothing more can become of it."""
        return self.state in (ProposalState.DONE, ProposalState.REJECTED)


def require_open(proposal: Proposal, now: float) -> None:
    """Refuse to decide twice, or too late.

    Raises:
        ProposalClosed: it is decided, or has expired.
    """
    if proposal.state is not ProposalState.OPEN:
        raise ProposalClosed(f"the proposal is {proposal.state} already")
    if now >= proposal.expires_at:
        raise ProposalClosed("the proposal has expired")


def require_approver(proposal: Proposal, officer: Officer, proposer: Officer | None) -> None:
    """Refuse an approval that would not be a second person's.

    Raises:
        DomainCrossed: the officer is of another domain.
        RoleMissing: the officer is no security officer.
        OwnProposal: the officer proposed it.
        ProposalClosed: who proposed it has left since; then it is one person's word.
    """
    if officer.domain is not proposal.domain:
        raise DomainCrossed(f"the proposal is {proposal.domain}'s")
    require_role(officer, OfficerRole.SECURITY_OFFICER)
    if officer.code == proposal.proposed_by:
        raise OwnProposal
    if (
        proposer is None
        or proposer.is_retired
        or OfficerRole.SECURITY_OFFICER not in proposer.roles
        or proposer.public_key == officer.public_key
    ):
        raise ProposalClosed("who proposed it is no security officer any more")
