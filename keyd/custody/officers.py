"""Officers: who they are, what they may do, and how one of them signs a command.

An officer belongs to one domain; a person who serves in two is enrolled in each. LOCAL's officers also govern the
daemon itself: its seal, its backups. An officer proves every single command with an SM2 signature over the
connection's challenge, so that a command is fresh, meant for this keyd, and nobody else's.
"""

from __future__ import annotations

import enum
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from keyd.crypto.sm2 import PointNotOnCurve, SignatureNotAuthentic, Sm2PublicKey
from keyd.errors import BadParameter, OfficerNotAuthentic, RoleMissing
from keyd.keys.block import Domain

CHALLENGE_BYTES: Final = 16

# A person reads, decides and types a passphrase; a challenge that lies about for longer is somebody else's.
CHALLENGE_SECONDS: Final = 120

_LABEL: Final = b"keyd officer command 1\n"

OfficerCode = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,31}\Z")]
PublicPoint = Annotated[bytes, Meta(min_length=65, max_length=65)]


class OfficerRole(enum.StrEnum):
    """What an officer is there for."""

    SECURITY_OFFICER = "security-officer"
    """Proposes and approves what changes keys and officers."""
    CUSTODIAN = "custodian"
    """Keeps components and shares, and enters them."""
    OPERATOR = "operator"
    """Seals, makes backups, looks at the state."""
    AUDITOR = "auditor"
    """Reads the journal and every list; changes nothing."""


class Officer(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """One enrolled officer. Time is in seconds since 1970, UTC."""

    domain: Domain
    code: OfficerCode
    name: Annotated[str, Meta(min_length=1, max_length=64)]
    roles: Annotated[tuple[OfficerRole, ...], Meta(min_length=1, max_length=4)]
    public_key: PublicPoint
    enrolled_by: Annotated[str, Meta(max_length=64)]
    enrolled_at: Annotated[int, Meta(ge=0)]
    is_retired: bool = False
    revision: Annotated[int, Meta(ge=1)] = 1

    @property
    def title(self) -> str:
        """What the journal calls the officer: the domain and the code."""
        return title(self.domain, self.code)


def title(domain: Domain, code: str) -> str:
    """Name an officer by domain and code."""
    return f"{domain}/{code}"


class SignedCommand(Struct, frozen=True):
    """What an officer sends: who, the command's bytes as they were signed, and the signature, 64 bytes."""

    domain: Domain
    code: str
    command: bytes
    signature: bytes


def command_message(store_id: bytes, challenge: bytes, who: str, command: bytes) -> bytes:
    """Return the bytes that an officer signs: for which keyd, which connection, who, and what."""
    return _LABEL + msgspec.msgpack.encode([store_id, challenge, who, command])


def verify_command(
    officer: Officer | None, signed: SignedCommand, store_id: bytes, challenge: bytes
) -> None:
    """Check that this officer signed this command for this challenge.

    Raises:
        OfficerNotAuthentic: whatever the reason; a stranger looks like a wrong signature.
    """
    if officer is None or officer.is_retired:
        raise OfficerNotAuthentic
    message = command_message(store_id, challenge, officer.title, signed.command)
    try:
        Sm2PublicKey.load(officer.public_key).verify(message, signed.signature)
    except SignatureNotAuthentic:
        raise OfficerNotAuthentic from None


def require_role(officer: Officer, *roles: OfficerRole) -> None:
    """Refuse an officer who has none of these roles.

    Raises:
        RoleMissing: so it is.
    """
    if not set(roles) & set(officer.roles):
        raise RoleMissing(f"{officer.title} is no {' or '.join(roles)}")


def require_public_key(point: bytes) -> Sm2PublicKey:
    """Take a public key that somebody typed or sent.

    Raises:
        BadParameter: it is not a point on the curve.
    """
    try:
        return Sm2PublicKey.load(point)
    except PointNotOnCurve:
        raise BadParameter("the public key is not a point of the SM2 curve") from None
