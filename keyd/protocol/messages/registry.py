"""Messages of the registry: what officers ask about terminals and issued PSAMs, and what a machine asks to become one.

Officers' commands come signed, inside `officer.command`. A machine that has no certificate yet has a line of its own,
on which `terminal.enrol` is all that there is.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

from keyd.protocol.fields import HIDE, SHOW, Message, Request, Response, TerminalCode
from keyd.protocol.messages.custody import Offset, Seconds, Total

MAX_REQUEST_BYTES: Final = 16 * 1024

StateName = Annotated[
    str,
    Meta(
        pattern=r"\A(any|enrolled|active|suspended|lost|retired)\Z",
        extra=SHOW,
        description="any, enrolled, active, suspended, lost or retired",
    ),
]
StoppedState = Annotated[
    str,
    Meta(
        pattern=r"\A(suspended|lost|retired)\Z",
        extra=SHOW,
        description="suspended, lost or retired",
    ),
]
PsamNumber = Annotated[
    str,
    Meta(pattern=r"\A[0-9]{12}\Z", extra=SHOW, description="终端机编号, 12 digits"),
]
PsamStateName = Annotated[
    str,
    Meta(
        pattern=r"\A(any|issued|assigned|lost|returned|retired)\Z",
        extra=SHOW,
        description="any, issued, assigned, lost, returned or retired",
    ),
]
Pem = Annotated[bytes, Meta(extra=HIDE, description="PEM")]
CertificateRequest = Annotated[
    bytes,
    Meta(
        max_length=MAX_REQUEST_BYTES,
        extra=HIDE,
        description="PKCS #10 in PEM; its one common name is the terminal's code",
    ),
]


class TerminalReport(Response, frozen=True):
    """A terminal, and what all keyds of this store have seen of it."""

    terminal: Annotated[
        bytes, Meta(extra=HIDE, description="MessagePack of the terminal: docs/terminals.md")
    ]
    last_seen: Seconds = 0
    last_source: Annotated[
        str, Meta(extra=SHOW, description="the address that it came from; empty: never seen")
    ] = ""
    authentications: Annotated[int, Meta(extra=SHOW, description="how often it proved itself")] = 0
    failures: Annotated[
        int, Meta(extra=SHOW, description="how often somebody failed to, in its name")
    ] = 0


class TerminalList(Response, frozen=True):
    """Terminals, a page of them, by code."""

    terminals: Annotated[tuple[TerminalReport, ...], Meta(extra=HIDE, description="the terminals")]
    total: Total


class ListTerminals(Request[TerminalList], frozen=True):
    """List terminals whose code, organisation, region, vendor, model or serial number contains the words."""

    offset: Offset = 0
    search: Annotated[
        str, Meta(max_length=64, extra=SHOW, description="words; empty: all of them")
    ] = ""
    state: StateName = "any"


class ShowTerminal(Request[TerminalReport], frozen=True):
    """Show one terminal."""

    code: TerminalCode


class StopTerminal(Request[TerminalReport], frozen=True):
    """Stop a terminal at once, on every keyd of this store; one officer is enough. To activate it takes two.

    Refuses with TERMINAL_NOT_FOUND or TERMINAL_STATE.
    """

    code: TerminalCode
    state: StoppedState
    reason: Annotated[
        str, Meta(max_length=128, extra=SHOW, description="for who reads it later; printable")
    ] = ""


class AuthorityReport(Message, frozen=True):
    """One of keyd's own certification authorities."""

    kind: Annotated[str, Meta(extra=SHOW, description="guomi or standard")]
    certificate: Pem
    revocation_list: Pem


class AuthorityList(Response, frozen=True):
    """keyd's own certification authorities."""

    authorities: Annotated[
        tuple[AuthorityReport, ...], Meta(extra=HIDE, description="one of each kind at most")
    ]


class ListAuthorities(Request[AuthorityList], frozen=True):
    """Give the certificates of keyd's own certification authorities, and their revocation lists as of now."""


class Enrolled(Response, frozen=True):
    """The certificate of a terminal, with its CA's after it."""

    chain: Pem


class EnrolWithCode(Request[Enrolled], frozen=True):
    """Ask for a terminal's first certificate with its one-time enrolment code.

    Refuses with ENROLMENT_REFUSED, whatever is wrong but a code that was mistyped (BAD_PARAMETER).
    """

    code: TerminalCode
    enrolment_code: Annotated[
        str, Meta(max_length=32, extra=HIDE, description="as it was handed out")
    ]
    request: CertificateRequest


class RenewCertificate(Request[Enrolled], frozen=True):
    """Ask for the terminal's next certificate. The one before counts no more.

    Refuses with ENROLMENT_REFUSED.
    """

    request: CertificateRequest


class IssuedPsam(Response, frozen=True):
    """A PSAM that keyd plays."""

    psam: Annotated[
        bytes, Meta(extra=HIDE, description="MessagePack of the PSAM: docs/psam.md, Issuing")
    ]


class IssuedPsams(Response, frozen=True):
    """PSAMs that keyd plays, a page of them, by number."""

    psams: Annotated[tuple[IssuedPsam, ...], Meta(extra=HIDE, description="the PSAMs")]
    total: Total


class ListIssuedPsams(Request[IssuedPsams], frozen=True):
    """List PSAMs that keyd plays whose number, serial number, profile, keys or terminal contains the words."""

    offset: Offset = 0
    search: Annotated[
        str, Meta(max_length=64, extra=SHOW, description="words; empty: all of them")
    ] = ""
    state: PsamStateName = "any"


class ShownPsam(Response, frozen=True):
    """A PSAM that keyd plays, and what it remembers."""

    psam: Annotated[
        bytes, Meta(extra=HIDE, description="MessagePack of the PSAM: docs/psam.md, Issuing")
    ]
    next_number: Annotated[
        int, Meta(extra=SHOW, description="no transaction number from this one on was given")
    ]
    wrong_mac2: Annotated[int, Meta(extra=SHOW, description="how many MAC2 in a row were wrong")]


class ShowIssuedPsam(Request[ShownPsam], frozen=True):
    """Show one PSAM that keyd plays. Refuses with PSAM_NOT_FOUND."""

    number: PsamNumber


class LosePsam(Request[IssuedPsam], frozen=True):
    """Report a PSAM lost: no keyd of this store plays it any more; one officer is enough. To give it back takes two.

    Refuses with PSAM_NOT_FOUND or PSAM_STATE.
    """

    number: PsamNumber
    reason: Annotated[
        str,
        Meta(max_length=64, extra=SHOW, description="for who reads it later; printable, without |"),
    ] = ""
