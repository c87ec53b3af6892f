"""Dual control: what one officer proposes, another of the same domain approves, or it does not happen."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta, Struct

from keyd.custody.actions import Action
from keyd.custody.bodies import seal_row
from keyd.custody.officers import Officer, OfficerRole, require_role
from keyd.errors import DomainCrossed, Overloaded, OwnProposal, ProposalClosed
from keyd.keys.block import Domain, Seconds
from keyd.store.rows import Kind, Put

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyd.custody.contents import Contents

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

    def is_over(self, now: int) -> bool:
        """Whether nobody need decide on it any more: it is closed, or has expired."""
        return self.is_closed or now >= self.expires_at

    def decided(
        self, state: ProposalState, officer: Officer, now: int, result: dict[str, bytes]
    ) -> Proposal:
        """Return it as an officer has decided."""
        return msgspec.structs.replace(
            self,
            state=state,
            decided_by=officer.code,
            decided_at=now,
            result=result,
            revision=self.revision + 1,
        )


def make_proposal(
    contents: Contents,
    officer: Officer,
    action: Action,
    note: str,
    lifetime: int,
    now: int,
    random_bytes: Callable[[int], bytes],
) -> Proposal:
    """Return a new proposal of an officer's, which lives for so many seconds, or with 0 as long as is usual.

    Raises:
        Overloaded: too many are open.
    """
    # Another domain's flood is none of this one's business, and what has expired waits for nobody.
    open_now = [
        p for p in contents.proposals.values() if p.domain is officer.domain and not p.is_over(now)
    ]
    if len(open_now) >= MAX_OPEN_PROPOSALS:
        raise Overloaded("there are as many open proposals as there may be: decide on some")
    lifetime = lifetime or DEFAULT_LIFETIME_SECONDS
    return Proposal(
        proposal_id=random_bytes(PROPOSAL_ID_BYTES),
        domain=officer.domain,
        action=action,
        note=note,
        proposed_by=officer.code,
        proposed_at=now,
        expires_at=now + min(lifetime, MAX_LIFETIME_SECONDS),
    )


def put_proposal(
    contents: Contents, proposal: Proposal, random_bytes: Callable[[int], bytes]
) -> Put:
    """Return what writes a proposal, under its domain's wrapping key."""
    lmk = contents.seal.wrapping_keys[proposal.domain]
    domain = proposal.domain.value
    return Put(seal_row(lmk, Kind.PROPOSAL, proposal.proposal_id, domain, proposal, random_bytes))


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
