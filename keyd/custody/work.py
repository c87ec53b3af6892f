"""What a decision is carried out with, and what carrying it out comes to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from msgspec import Struct, field

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyd.crypto.secret import SecretKey
    from keyd.custody.catalogue import Catalogue
    from keyd.custody.contents import Contents, HeldKey
    from keyd.custody.officers import Officer
    from keyd.custody.proposals import Proposal
    from keyd.keys.block import Domain, KeyHeader
    from keyd.store.rows import Change

Event: TypeAlias = dict[str, Any]


class Outcome(Struct):
    """What carrying out a decision comes to."""

    changes: list[Change] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    result: dict[str, bytes] = field(default_factory=dict)


class Work(Struct, frozen=True):
    """What a decision is carried out with. `combined` is the key of a ceremony of components, if it is one."""

    contents: Contents
    proposal: Proposal
    approver: Officer
    now: int
    random_bytes: Callable[[int], bytes]
    catalogue: Catalogue
    combined: SecretKey | None = None

    @property
    def domain(self) -> Domain:
        """The domain whose officers decide."""
        return self.proposal.domain

    @property
    def lmk(self) -> SecretKey:
        """The domain's wrapping key."""
        return self.contents.seal.wrapping_keys[self.domain]

    @property
    def decided_by(self) -> str:
        """Both officers, for headers."""
        return f"{self.proposal.proposed_by}+{self.approver.code}"[:64]

    def key(self, key_id: bytes) -> HeldKey:
        """Return a key of the deciding domain that is not gone.

        Raises:
            KeyNotFound, DomainCrossed: as `Contents.key`.
        """
        return self.contents.key(key_id, self.domain)


def event_of(work: Work, name: str, header: KeyHeader | None = None) -> Event:
    """Return a journal's event: what was done, by whom, and to which key."""
    event: Event = {
        "event": name,
        "domain": work.domain.value,
        "officer": work.approver.title,
        "proposed_by": f"{work.domain}/{work.proposal.proposed_by}",
        "proposal": work.proposal.proposal_id.hex(),
    }
    if header is not None:
        event |= {
            "key": header.label,
            "key_id": header.key_id.hex(),
            "kcv": header.kcv.hex().upper(),
        }
    return event
