"""What two officers decide together: every act that creates, moves, changes or ends a key, or an officer's rights.

An action is data: it is proposed, shown, signed, kept in the store and carried out exactly as it stands. It
carries no secret; wrapped keys are ciphertext.
"""

from __future__ import annotations

import enum
from typing import Annotated, Final

from msgspec import Meta, Struct

from keyd.crypto.algorithms import Algorithm
from keyd.crypto.secret import KCV_BYTES
from keyd.custody.officers import OfficerCode, OfficerRole, PublicPoint
from keyd.keys.block import KEY_ID_BYTES, Export, Mode, Seconds, Tier, Use
from keyd.registry.psam import PsamAct, PsamSpec, TerminalOrNone
from keyd.registry.terminal import TerminalCode, TerminalSpec, Words

# Two people who collude must not be enough where nine are named, and nobody gathers more for one key.
MAX_COMPONENTS: Final = 9
MAX_SHARES: Final = 15

# An SM2 ciphertext of 16 bytes has 113, a key block some 300.
MAX_WRAPPED_BYTES: Final = 4096

# How long a destroyed key can be brought back, at most.
MAX_WAITING_DAYS: Final = 365

# Terminals of one proposal: they and an officer's signature fit into one command.
MAX_TERMINALS: Final = 100

# The same for PSAMs.
MAX_PSAMS: Final = 100

MAX_ENROLMENT_DAYS: Final = 30

TerminalCodes = Annotated[tuple[TerminalCode, ...], Meta(min_length=1, max_length=MAX_TERMINALS)]
PsamNumber = Annotated[str, Meta(pattern=r"\A[0-9]{12}\Z")]
PsamNumbers = Annotated[tuple[PsamNumber, ...], Meta(min_length=1, max_length=MAX_PSAMS)]
KeyId = Annotated[bytes, Meta(min_length=KEY_ID_BYTES, max_length=KEY_ID_BYTES)]
Kcv = Annotated[bytes, Meta(min_length=KCV_BYTES, max_length=KCV_BYTES)]
Wrapped = Annotated[bytes, Meta(min_length=8, max_length=MAX_WRAPPED_BYTES)]
RegionDigits = Annotated[str, Meta(pattern=r"\A[0-9]{6}\Z")]


class TransportFormat(enum.StrEnum):
    """How a key travels under a key-transport key; docs/key-blocks.md has the bytes."""

    BLOCK = "keyd-block"
    """A key block: AEAD (SM4-GCM), header and key bound together."""
    ECB_MAC = "ecb-mac"
    """The key in ECB, and a CBC-MAC over header and ciphertext; the transport key is SM4 or 3DES."""


class KeySpec(Struct, frozen=True, forbid_unknown_fields=True):
    """What a key is to be: its header without what keyd itself sets."""

    tier: Tier
    name: Annotated[str, Meta(min_length=1, max_length=32)]
    algorithm: Algorithm
    use: Use
    addresses: Annotated[
        tuple[Annotated[int, Meta(ge=0, le=0xFFFF)], ...], Meta(max_length=16)
    ] = ()
    levels: Annotated[int, Meta(ge=0, le=3)] = 0
    set: Annotated[int, Meta(ge=1, le=3)] = 1
    modes: Annotated[tuple[Mode, ...], Meta(max_length=4)] = ()
    psam_type: Annotated[int, Meta(ge=0, le=0xFF)] = 0
    psam_id: Annotated[int, Meta(ge=0, le=0xFF)] = 0
    valid_from: Seconds = 0
    valid_until: Seconds = 0
    ceiling: Seconds = 0
    warn_at: Seconds = 0
    export: Export = Export.NEVER


class _Action(Struct, frozen=True, forbid_unknown_fields=True, tag_field="action"):
    pass


class GenerateKey(_Action, frozen=True, tag="generate"):
    """Make a key at random. At an address that has one already, it is the next version: rotation."""

    key: KeySpec


class ImportKey(_Action, frozen=True, tag="import-components"):
    """Take a key in as components (XOR), each from another custodian. `kcv` is the whole key's, if it is known."""

    key: KeySpec
    components: Annotated[int, Meta(ge=2, le=MAX_COMPONENTS)]
    kcv: Kcv | None = None


class GiveComponents(_Action, frozen=True, tag="give-components"):
    """Make a key at random and give each of these custodians one component of it."""

    key: KeySpec
    custodians: Annotated[tuple[OfficerCode, ...], Meta(min_length=2, max_length=MAX_COMPONENTS)]


class ImportWrapped(_Action, frozen=True, tag="import-wrapped"):
    """Take a key in that travelled under a key-transport key of this domain."""

    key: KeySpec
    transport_key: KeyId
    format: TransportFormat
    wrapped: Wrapped
    kcv: Kcv


class ImportEnvelope(_Action, frozen=True, tag="import-envelope"):
    """Take a key in that was encrypted to keyd's SM2 public key (digital envelope, C1C3C2)."""

    key: KeySpec
    envelope: Wrapped
    kcv: Kcv


class ExportKey(_Action, frozen=True, tag="export"):
    """Give a key out under a key-transport key of its domain; its header must allow it."""

    key_id: KeyId
    transport_key: KeyId
    format: TransportFormat


class ExportChild(_Action, frozen=True, tag="export-child"):
    """Diversify a root one level down for a region and give that out (母卡)."""

    key_id: KeyId
    region: RegionDigits
    transport_key: KeyId
    format: TransportFormat


class Activate(_Action, frozen=True, tag="activate"):
    """Let a key be used."""

    key_id: KeyId


class Deactivate(_Action, frozen=True, tag="deactivate"):
    """Let a key verify and make nothing new."""

    key_id: KeyId


class Compromise(_Action, frozen=True, tag="compromise"):
    """Stop a key because somebody may know it. There is no way back."""

    key_id: KeyId


class Destroy(_Action, frozen=True, tag="destroy"):
    """Stop a key now and delete it after so many days; until then it can be restored. 0 deletes at once."""

    key_id: KeyId
    waiting_days: Annotated[int, Meta(ge=0, le=MAX_WAITING_DAYS)] = 30


class Restore(_Action, frozen=True, tag="restore"):
    """Bring a key back whose waiting period is not over: deactivated, until somebody activates it."""

    key_id: KeyId


class Permit(_Action, frozen=True, tag="permit"):
    """Change what a key is allowed; what is None stays."""

    key_id: KeyId
    valid_from: Seconds | None = None
    valid_until: Seconds | None = None
    ceiling: Seconds | None = None
    warn_at: Seconds | None = None
    minimum_version: Annotated[int, Meta(ge=1, le=0xFFFF)] | None = None
    export: Export | None = None


class EnrolOfficer(_Action, frozen=True, tag="enrol-officer"):
    """Enrol an officer of this domain, or give one other roles or another key."""

    code: OfficerCode
    name: Annotated[str, Meta(min_length=1, max_length=64)]
    roles: Annotated[tuple[OfficerRole, ...], Meta(min_length=1, max_length=4)]
    public_key: PublicPoint


class RetireOfficer(_Action, frozen=True, tag="retire-officer"):
    """Let an officer sign nothing any more."""

    code: OfficerCode


class Rekey(_Action, frozen=True, tag="rekey"):
    """Make a new seal: new shares for these custodians, new wrapping keys for everything. LOCAL decides it."""

    threshold: Annotated[int, Meta(ge=2, le=MAX_SHARES)]
    custodians: Annotated[tuple[OfficerCode, ...], Meta(min_length=2, max_length=MAX_SHARES)]


class EnrolTerminals(_Action, frozen=True, tag="enrol-terminals"):
    """Enrol terminals (登记), or decide otherwise about ones that are; `activate` lets new ones be used at once."""

    terminals: Annotated[tuple[TerminalSpec, ...], Meta(min_length=1, max_length=MAX_TERMINALS)]
    activate: bool = False


class ActivateTerminals(_Action, frozen=True, tag="activate-terminals"):
    """Let terminals be used (启用): new ones, and ones that were stopped."""

    codes: TerminalCodes


class GiveEnrolmentCodes(_Action, frozen=True, tag="give-enrolment-codes"):
    """Make a one-time enrolment code for each of these terminals, and give them to an officer."""

    codes: TerminalCodes
    officer: OfficerCode
    days: Annotated[int, Meta(ge=1, le=MAX_ENROLMENT_DAYS)] = 7


class GiveTerminalKeys(_Action, frozen=True, tag="give-terminal-keys"):
    """Give the terminal keys of these terminals, diversified from the terminal master key, to an officer."""

    codes: TerminalCodes
    officer: OfficerCode


class MakeAuthority(_Action, frozen=True, tag="make-authority"):
    """Make keyd's own certification authority of a kind, for terminals' certificates. The one before counts no more."""

    kind: Annotated[str, Meta(pattern=r"\A(guomi|standard)\Z")]
    common_name: Annotated[str, Meta(min_length=1, max_length=64)]
    years: Annotated[int, Meta(ge=1, le=30)]


class IssuePsams(_Action, frozen=True, tag="issue-psams"):
    """Issue PSAMs that keyd plays (发卡). Nobody has one before it is assigned."""

    psams: Annotated[tuple[PsamSpec, ...], Meta(min_length=1, max_length=MAX_PSAMS)]


class ChangePsams(_Action, frozen=True, tag="change-psams"):
    """Assign PSAMs (领用), take them back (退回) or retire them (注销).

    They are assigned to a terminal or, where none is named, to the shared set. A loss is no proposal: one officer
    reports it, and it is done.
    """

    numbers: PsamNumbers
    act: PsamAct
    terminal: TerminalOrNone = ""
    reason: Words = ""


Action = (
    GenerateKey
    | ImportKey
    | GiveComponents
    | ImportWrapped
    | ImportEnvelope
    | ExportKey
    | ExportChild
    | Activate
    | Deactivate
    | Compromise
    | Destroy
    | Restore
    | Permit
    | EnrolOfficer
    | RetireOfficer
    | Rekey
    | EnrolTerminals
    | ActivateTerminals
    | GiveEnrolmentCodes
    | GiveTerminalKeys
    | MakeAuthority
    | IssuePsams
    | ChangePsams
)

# Those that bring a new key in, and so name what it is to be.
NewKey = GenerateKey | ImportKey | GiveComponents | ImportWrapped | ImportEnvelope
# Those about terminals: LOCAL decides them.
AboutTerminals = (
    EnrolTerminals | ActivateTerminals | GiveEnrolmentCodes | GiveTerminalKeys | MakeAuthority
)
# Those about PSAMs that keyd plays: LOCAL decides them too.
AboutPsams = IssuePsams | ChangePsams
NEW_KEY: Final = (GenerateKey, ImportKey, GiveComponents, ImportWrapped, ImportEnvelope)
