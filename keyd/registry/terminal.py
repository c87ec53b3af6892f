"""A terminal as it is kept: what officers decide about it, and what became of it.

Bounds are part of the types: a terminal that is read from a list, from the wire or from the store has been held
against them. What goes beyond a type (a network that is none, hours that are none) is `require_good`'s to refuse.
"""

from __future__ import annotations

import enum
import ipaddress
from typing import Annotated, Final

from msgspec import Meta, Struct

from keyd.errors import BadParameter
from keyd.policy.week import week_of

# 终端机编号, cn6 (PSAM file 0016).
PSAM_NUMBER_BYTES: Final = 6
PSAM_SERIAL_BYTES: Final = 10
POINT_BYTES: Final = 65
SM3_BYTES: Final = 32

MAX_ROLES: Final = 8
MAX_NETWORKS: Final = 16
MAX_HOURS: Final = 16

# The last second of the year 9999: what has no date cannot stand in a list.
MAX_MOMENT: Final = 253_402_300_799

TerminalCode = Annotated[str, Meta(pattern=r"\A[0-9A-Za-z._-]{1,32}\Z")]
RoleName = Annotated[str, Meta(pattern=r"\A[a-z][a-z0-9-]{0,31}\Z")]
# No newline, no control character: these stand in lists, logs and on paper.
Words = Annotated[str, Meta(max_length=64, pattern=r"\A[^\x00-\x1f\x7f|]*\Z")]
RegionDigits = Annotated[str, Meta(pattern=r"\A[0-9]{6}\Z")]
Seconds = Annotated[int, Meta(ge=0, le=MAX_MOMENT)]
Point = Annotated[bytes, Meta(max_length=POINT_BYTES)]
Short = Annotated[str, Meta(max_length=43)]


class TerminalState(enum.StrEnum):
    """Where in its life a terminal is. Only an active one gets answers."""

    ENROLLED = "enrolled"
    """登记: known, not in use yet."""
    ACTIVE = "active"
    """启用."""
    SUSPENDED = "suspended"
    """停用: stopped for a while."""
    LOST = "lost"
    """挂失: somebody else may have it."""
    RETIRED = "retired"
    """注销: for good."""


class Form(enum.StrEnum):
    """What kind of machine it is."""

    DESKTOP = "desktop"
    """桌面式."""
    PORTABLE = "portable"
    """便携式."""
    SELF_SERVICE = "self-service"
    """自助式."""
    SERVICE = "service"
    """No machine: an issuance service."""


class Proof(enum.StrEnum):
    """What a terminal may prove itself with."""

    KEY_BY_CODE = "key-by-code"
    """A terminal key, diversified from the terminal master key by the terminal's code."""
    KEY_BY_PSAM = "key-by-psam"
    """The same, diversified by the PSAM's 终端机编号; the PSAM may hold it and make the cryptogram."""
    SIGNATURE = "signature"
    """SM2, with a certificate or a public key on record."""


class Interface(enum.StrEnum):
    """How a terminal reads cards."""

    CONTACT = "contact"
    CONTACTLESS = "contactless"


class TerminalSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """What officers decide about a terminal. Times are Unix seconds, 0 is "not set"."""

    code: TerminalCode
    organisation: Annotated[Words, Meta(min_length=1)]
    region: RegionDigits
    roles: Annotated[tuple[RoleName, ...], Meta(min_length=1, max_length=MAX_ROLES)]
    proofs: Annotated[tuple[Proof, ...], Meta(min_length=1, max_length=3)]
    form: Form = Form.DESKTOP
    vendor: Words = ""
    model: Words = ""
    serial: Words = ""
    # Empty, or 终端机编号 of 6 bytes.
    psam_number: Annotated[bytes, Meta(max_length=PSAM_NUMBER_BYTES)] = b""
    psam_serial: Annotated[bytes, Meta(max_length=PSAM_SERIAL_BYTES)] = b""
    driver_version: Words = ""
    generations: Annotated[tuple[Annotated[int, Meta(ge=1, le=3)], ...], Meta(max_length=3)] = (
        2,
        3,
    )
    interfaces: Annotated[tuple[Interface, ...], Meta(max_length=2)] = (Interface.CONTACT,)
    # Where from and when: CIDR and "Mon-Fri 08:00-17:30"; none is everywhere and always.
    networks: Annotated[tuple[Short, ...], Meta(max_length=MAX_NETWORKS)] = ()
    hours: Annotated[tuple[Short, ...], Meta(max_length=MAX_HOURS)] = ()
    valid_from: Seconds = 0
    valid_until: Seconds = 0
    # An SM2 public key, 04‖x‖y, that officers have put on record; empty if a certificate brings it.
    public_key: Point = b""


class Terminal(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A terminal as the store has it. `certificate` is its newest one from keyd's own CA, by serial number."""

    spec: TerminalSpec
    state: TerminalState
    enrolled_by: Annotated[str, Meta(max_length=64)]
    enrolled_at: Seconds
    changed_by: Annotated[str, Meta(max_length=64)] = ""
    changed_at: Seconds = 0
    # The officer's words when it was stopped.
    reason: Annotated[str, Meta(max_length=128)] = ""
    # The serial number of the certificate from keyd's own CA that counts; earlier ones count no more. Big-endian.
    certificate: Annotated[bytes, Meta(max_length=20)] = b""
    certificate_until: Seconds = 0
    # Certificates before that one which have not expired: serial number, end, and since when they count no more.
    superseded: Annotated[tuple[tuple[bytes, int, int], ...], Meta(max_length=16)] = ()
    # SM3 over the one-time enrolment code, and until when it may be used; empty when there is none.
    enrolment: Annotated[bytes, Meta(max_length=SM3_BYTES)] = b""
    enrolment_until: Seconds = 0
    revision: Annotated[int, Meta(ge=1)] = 1

    @property
    def code(self) -> str:
        """The terminal's code, which names it everywhere."""
        return self.spec.code

    def __repr__(self) -> str:
        return f"<Terminal {self.spec.code} {self.state}>"


def require_good(spec: TerminalSpec) -> None:
    """Refuse a terminal that could never prove itself, or whose networks and hours are none.

    Raises:
        BadParameter: the sentence says what is wrong.
    """
    for name in ("roles", "proofs", "generations", "interfaces", "networks", "hours"):
        values = getattr(spec, name)
        if len(set(values)) != len(values):
            raise BadParameter(f"{spec.code}: {name} name something twice")
    number = spec.psam_number
    if number and not (len(number) == PSAM_NUMBER_BYTES and number.hex().isdigit()):
        raise BadParameter(f"{spec.code}: a 终端机编号 is 12 decimal digits")
    if Proof.KEY_BY_PSAM in spec.proofs and not number:
        raise BadParameter(f"{spec.code}: a key by PSAM needs the PSAM's 终端机编号")
    if spec.public_key and (len(spec.public_key) != POINT_BYTES or spec.public_key[:1] != b"\x04"):
        raise BadParameter(f"{spec.code}: a public key is 65 bytes, 04‖x‖y")
    if spec.valid_until and spec.valid_until <= spec.valid_from:
        raise BadParameter(f"{spec.code}: it would cease to be valid before it begins")
    for network in spec.networks:
        try:
            ipaddress.ip_network(network)
        except ValueError:
            raise BadParameter(
                f"{spec.code}: {network!r} is no network: write 10.1.2.0/24"
            ) from None
    for hours in spec.hours:
        try:
            week_of(hours)
        except ValueError as error:
            raise BadParameter(f"{spec.code}: {error}") from None
