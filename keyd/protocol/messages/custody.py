"""Messages of custody: the seal, and what officers do. They exist on the administration's socket alone.

Two families need no signature, because there is nobody yet to sign: `seal` (its state, and shares) and
`officer` (the challenge, and the envelope of a signed command). Everything else is inside such an envelope:
`officer.command` carries the MessagePack bytes of [method, params] and the officer's SM2 signature over them, the
connection's challenge and the store's id. Its answer carries the inner answer, encoded.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

from keyd.protocol.fields import HIDE, SHOW, Message, Request, Response

# Ten thousand keys and proposals take some ten million bytes: no backup comes near this.
MAX_BACKUP_BYTES: Final = 1 << 32

# Fields ---------------------------------------------------------------------------------------------------

DomainName = Annotated[
    str,
    Meta(
        pattern=r"\A(SOCIAL|FINANCE|ACSE|LOCAL)\Z",
        extra=SHOW,
        description="SOCIAL, FINANCE, ACSE or LOCAL",
    ),
]
OfficerName = Annotated[
    str,
    Meta(
        pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,31}\Z",
        extra=SHOW,
        description="officer's code, 1 to 32 of A-Z a-z 0-9 . _ -",
    ),
]
ProposalId = Annotated[
    bytes, Meta(min_length=8, max_length=8, extra=SHOW, description="the proposal's id, 8 bytes")
]
KeyIdBytes = Annotated[
    bytes, Meta(min_length=16, max_length=16, extra=SHOW, description="the key's id, 16 bytes")
]
KcvBytes = Annotated[
    bytes, Meta(min_length=3, max_length=3, extra=SHOW, description="key check value, 3 bytes")
]
Challenge16 = Annotated[
    bytes, Meta(min_length=16, max_length=16, extra=HIDE, description="16 random bytes")
]
Seconds = Annotated[int, Meta(ge=0, extra=SHOW, description="seconds since 1970, UTC; 0: not set")]
Offset = Annotated[
    int, Meta(ge=0, le=1 << 32, extra=SHOW, description="how many to leave out: a page's begin")
]
Total = Annotated[int, Meta(extra=SHOW, description="how many there are on all pages")]
Envelope = Annotated[
    bytes,
    # A hundred enrolment codes, each with its terminal's code.
    Meta(max_length=8192, extra=HIDE, description="SM2 ciphertext, C1C3C2, C1 with its 04"),
]

# The seal -------------------------------------------------------------------------------------------------


class SealState(Response, frozen=True):
    """Whether keyd is sealed, and how far unsealing is."""

    sealed: Annotated[bool, Meta(extra=SHOW, description="whether no key is held")]
    store_id: Annotated[bytes, Meta(extra=SHOW, description="the store's id, 16 bytes")]
    tier: Annotated[str, Meta(extra=SHOW, description="national, provincial or city")]
    generation: Annotated[int, Meta(extra=SHOW, description="which seal: 1 is the first")]
    threshold: Annotated[int, Meta(extra=SHOW, description="how many shares are needed")]
    given: Annotated[tuple[int, ...], Meta(extra=SHOW, description="numbers of the shares given")]
    public_key: Annotated[
        bytes, Meta(extra=SHOW, description="keyd's SM2 key, 65 bytes; empty while sealed")
    ]
    keepers: Annotated[
        tuple[str, ...], Meta(extra=SHOW, description="what else than shares can open it")
    ]


class AskSeal(Request[SealState], frozen=True):
    """Tell whether keyd is sealed."""


class GiveShare(Request[SealState], frozen=True):
    """Give one share; with the last that is needed, keyd is unsealed.

    Refuses with SHARE_REFUSED, which names the share and never says what about it is wrong.
    """

    share: Annotated[
        str, Meta(max_length=256, extra=HIDE, description="the share as it is printed")
    ]


class ForgetShares(Request[SealState], frozen=True):
    """Forget the shares that were given for an unsealing that is not complete."""


# Officers' envelopes --------------------------------------------------------------------------------------


class OfficerChallenge(Response, frozen=True):
    """What the next command's signature is made over: single use, for this connection."""

    challenge: Challenge16
    store_id: Annotated[bytes, Meta(extra=SHOW, description="the store's id, 16 bytes")]
    seconds: Annotated[int, Meta(extra=SHOW, description="seconds until it expires")]


class RequestOfficerChallenge(Request[OfficerChallenge], frozen=True):
    """Ask for a challenge to sign a command with; the last one is void."""


class CommandDone(Response, frozen=True):
    """What the command inside answered."""

    result: Annotated[bytes, Meta(extra=HIDE, description="MessagePack of the inner result")]


class OfficerCommand(Request[CommandDone], frozen=True):
    """Do what an officer has signed.

    The signature is SM2 with SM3, r‖s, user id 1234567812345678, over "keyd officer command 1\\n" and the
    MessagePack of [store_id, challenge, "DOMAIN/code", command].
    """

    domain: DomainName
    officer: OfficerName
    command: Annotated[
        bytes,
        Meta(max_length=57344, extra=HIDE, description="MessagePack of [method, params]"),
    ]
    signature: Annotated[
        bytes, Meta(min_length=64, max_length=64, extra=HIDE, description="r ‖ s, 64 bytes")
    ]


class Done(Response, frozen=True):
    """It is done, and in the journal."""


class SealNow(Request[Done], frozen=True):
    """Wipe every key in memory. LOCAL's operators, custodians and security officers may."""

    reason: Annotated[str, Meta(max_length=200, extra=SHOW, description="why, for the journal")] = (
        ""
    )


# Proposals ------------------------------------------------------------------------------------------------


class ProposalReport(Message, frozen=True):
    """One proposal."""

    proposal_id: ProposalId
    domain: DomainName
    action: Annotated[bytes, Meta(extra=SHOW, description="MessagePack of the action")]
    note: Annotated[str, Meta(extra=SHOW, description="what its proposer said")]
    state: Annotated[str, Meta(extra=SHOW, description="open, staged, done or rejected")]
    proposed_by: Annotated[str, Meta(extra=SHOW, description="an officer's code")]
    proposed_at: Seconds
    expires_at: Seconds
    decided_by: Annotated[str, Meta(extra=SHOW, description="an officer's code, or nothing yet")]
    decided_at: Seconds
    components: Annotated[
        dict[str, str], Meta(extra=SHOW, description="components that are in, by number: whose")
    ]
    waiting_for: Annotated[
        tuple[str, ...], Meta(extra=SHOW, description="custodians who must still confirm")
    ]


class ProposalOutcome(Response, frozen=True):
    """A proposal, and what carrying it out gave: key_id, kcv, wrapped; no secret."""

    proposal: Annotated[ProposalReport, Meta(extra=SHOW, description="the proposal as it is now")]
    result: Annotated[
        dict[str, bytes], Meta(extra=HIDE, description="by name; ciphertext or public")
    ]


class ProposalList(Response, frozen=True):
    """A page of one domain's proposals, newest first."""

    proposals: Annotated[tuple[ProposalReport, ...], Meta(extra=SHOW, description="the proposals")]
    total: Total


class Propose(Request[ProposalOutcome], frozen=True):
    """Propose an action (docs/ceremony.md lists them); another security officer approves it."""

    action: Annotated[
        # A hundred terminals in full have some 40 KiB.
        bytes,
        Meta(max_length=49152, extra=HIDE, description="MessagePack map of the action"),
    ]
    note: Annotated[
        str, Meta(max_length=200, extra=SHOW, description="a sentence for the others")
    ] = ""
    lifetime: Annotated[
        int, Meta(ge=0, le=2_592_000, extra=SHOW, description="seconds to live; 0: three days")
    ] = 0


class Approve(Request[ProposalOutcome], frozen=True):
    """Approve what another officer proposed: it is carried out now."""

    proposal_id: ProposalId


class Reject(Request[ProposalOutcome], frozen=True):
    """Reject a proposal, or take one's own back."""

    proposal_id: ProposalId


class ListProposals(Request[ProposalList], frozen=True):
    """List the domain's proposals."""

    all: Annotated[bool, Meta(extra=SHOW, description="those that are closed as well")] = False
    offset: Offset = 0


class ShowProposal(Request[ProposalOutcome], frozen=True):
    """Show one proposal with its result."""

    proposal_id: ProposalId


class EnterComponent(Request[ProposalOutcome], frozen=True):
    """Enter a component, encrypted to keyd's public key, with the check value on its sheet."""

    proposal_id: ProposalId
    number: Annotated[int, Meta(ge=1, le=9, extra=SHOW, description="which component")]
    envelope: Envelope
    kcv: KcvBytes


class Taken(Response, frozen=True):
    """A component, a share, enrolment codes or terminal keys, encrypted to the officer's public key.

    Inside is "keyd component 1\\n" and the component, "keyd share 1\\n" and the printed share, or "keyd enrolment
    codes 1\\n" or "keyd terminal keys 1\\n" and a MessagePack map of terminals' codes to enrolment codes (text) or to
    terminal keys (16 bytes).
    """

    envelope: Envelope
    salt: Annotated[
        bytes, Meta(extra=SHOW, description="what a share is confirmed with; empty for a component")
    ]


class Take(Request[Taken], frozen=True):
    """Take what a proposal made for the asking officer alone."""

    proposal_id: ProposalId


class ConfirmShare(Request[ProposalOutcome], frozen=True):
    """Prove that the new share is in hand; with the last custodian's, the new seal takes effect."""

    proposal_id: ProposalId
    commitment: Annotated[
        bytes, Meta(min_length=16, max_length=16, extra=HIDE, description="of the share, 16 bytes")
    ]


# Keys and officers ----------------------------------------------------------------------------------------


class StoredKey(Message, frozen=True):
    """One key of the store: its header in the words of docs/key-blocks.md, never the key."""

    key_id: KeyIdBytes
    header: Annotated[dict[str, str], Meta(extra=SHOW, description="the header's fields, as text")]
    is_gone: Annotated[bool, Meta(extra=SHOW, description="whether the key itself is deleted")]


class StoredKeys(Response, frozen=True):
    """A page of one domain's keys, by address, name and version."""

    keys: Annotated[tuple[StoredKey, ...], Meta(extra=SHOW, description="the keys")]
    total: Total


class ListKeys(Request[StoredKeys], frozen=True):
    """List the domain's keys, whatever their state."""

    offset: Offset = 0


class OfficerReport(Message, frozen=True):
    """One officer."""

    domain: DomainName
    officer: OfficerName
    name: Annotated[str, Meta(extra=HIDE, description="the person's name")]
    roles: Annotated[tuple[str, ...], Meta(extra=SHOW, description="what the officer may do")]
    public_key: Annotated[bytes, Meta(extra=SHOW, description="SM2 public key, 65 bytes")]
    is_retired: Annotated[bool, Meta(extra=SHOW, description="whether the officer has left")]


class Officers(Response, frozen=True):
    """The officers of one domain."""

    officers: Annotated[tuple[OfficerReport, ...], Meta(extra=SHOW, description="the officers")]


class ListOfficers(Request[Officers], frozen=True):
    """List the domain's officers."""


class BackupPart(Response, frozen=True):
    """A part of the backup; the last is shorter than the part size, or empty."""

    part: Annotated[bytes, Meta(extra=HIDE, description="bytes of the backup file")]
    total: Annotated[int, Meta(extra=SHOW, description="length of the whole, in bytes")]


class TakeBackup(Request[BackupPart], frozen=True):
    """Make a backup at offset 0, and give it in parts. LOCAL's operators may."""

    offset: Annotated[
        int, Meta(ge=0, le=MAX_BACKUP_BYTES, extra=SHOW, description="where the part begins")
    ] = 0
