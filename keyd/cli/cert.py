"""`keyd cert`: certificates of the line. What is in one, a PKI for tests, a server's certificate, keyd's own CAs.

A terminal's certificate is no part of this: keyd's own CA issues it (`keyd terminal enrol-here`).
"""

from __future__ import annotations

import ipaddress
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from keyd.cli.common import (
    Desk,
    JsonOption,
    Printer,
    groups_of_4,
    officers_desk,
    terminal_code,
    using,
)
from keyd.cli.files import (
    PUBLIC,
    private_folder,
    read_large,
    read_small,
    require_new,
    write_new,
    write_over,
)
from keyd.cli.proposing import About, about_proposal, propose
from keyd.cli.words import count
from keyd.config import require_private
from keyd.custody import actions as act
from keyd.errors import BadParameter, KeyFileUnusable, RemoteProtocolError
from keyd.protocol.messages.registry import ListAuthorities
from keyd.tls.inspection import MAX_FILE, Shown, read_pem_untrusted
from keyd.tls.kinds import TlsKind
from keyd.tls.pki import (
    Authority,
    RequestRefused,
    Validity,
    generate_key,
    issue_server,
    load_key,
    make_request,
    random_serial,
    read_request_untrusted,
    synthetic_pki,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from keyd.tls.pki import CertificateKey

app = typer.Typer(
    help="Certificates of the line: what is in one, a PKI for tests, keyd's own CA.",
    no_args_is_help=True,
)

_KINDS: Final = frozenset(kind.value for kind in TlsKind)

# Other machines' clocks are a little behind.
_BEFORE: Final = timedelta(hours=1)

# A revocation list of thousands is read in --json.
_MAX_SHOWN: Final = 10

# A DNS name (RFC 1123), perhaps with a wildcard as its first label. What ends in digits would be an address.
_LABEL: Final = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DNS_NAME: Final = re.compile(rf"\A(\*\.)?({_LABEL}\.)*(?![0-9]+\Z){_LABEL}\Z")
_MAX_SERVER_NAME: Final = 64

KindOption = Annotated[
    TlsKind,
    typer.Option("--kind", help="guomi: SM2 and SM3. standard: ECDSA P-256 and SHA-256."),
]
ServerOption = Annotated[
    list[str],
    typer.Option(
        "--server", metavar="NAME", help="DNS name or IP address that clients connect to; repeated."
    ),
]
FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="PEM; a file may hold several.")]


@app.command()
def show(file: FileArgument, as_json: JsonOption = False) -> None:
    """Show what keyd reads of certificates, certificate requests and revocation lists.

    A private key is named by its public half and never shown.
    """
    try:
        found = read_pem_untrusted(read_large(file, MAX_FILE))
    except ValueError as error:
        raise BadParameter(f"{file}: {error}") from None
    Printer(as_json=as_json).tell([_plain(shown) for shown in found], _lines(found))


@app.command(name="test-pki")
def synthetic(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Where to write it; made if it is not there.")
    ],
    server: ServerOption,
    kind: KindOption = TlsKind.GUOMI,
    terminal: Annotated[
        list[str] | None,
        typer.Option("--terminal", metavar="CODE", help="A terminal's code; repeated."),
    ] = None,
    days: Annotated[int, typer.Option("--days", min=1, max=3650, help="Valid for so long.")] = 30,
    as_json: JsonOption = False,
) -> None:
    """Make a whole PKI for tests: a CA, a server's certificate, and one for each terminal.

    Every private key is unencrypted in a file of its own, the CA's as well: never use it for real terminals.
    """
    names, codes = _server_names(server), [terminal_code(code) for code in terminal or ()]
    if len(set(codes)) != len(codes):
        raise typer.BadParameter("a terminal is named twice", param_hint="--terminal")
    private_folder(folder)
    files = ["ca", "server", *(f"terminal-{code}" for code in codes)]
    require_new(*(folder / f"{name}{suffix}" for name in files for suffix in (".key", ".crt")))
    made = synthetic_pki(kind, _validity(days), names, codes)
    _write_pair(folder / "ca", made.authority_key, made.authority.certificate)
    _write_pair(folder / "server", made.server.private_key, made.server.certificate)
    for code, credentials in made.terminals.items():
        pair = credentials.private_key, credentials.certificate
        _write_pair(folder / f"terminal-{code}", *pair)
    plain = {"folder": str(folder), "kind": kind.value, "server": names, "terminals": codes}
    Printer(as_json=as_json).tell(
        plain | {"is_synthetic": True},
        (
            f"A {kind.value} PKI is in {folder}: a CA, a server for {', '.join(names)}, "
            f"{count(codes)}.",
            "IT IS FOR TESTS: its CA's key lies there unencrypted.",
            "Each name has a .key (mode 0600) and a .crt; keyd trusts ca.crt.",
        ),
    )


@app.command()
def request(
    key: Annotated[
        Path, typer.Argument(metavar="KEYFILE", help="The key file to write. Never overwritten.")
    ],
    name: Annotated[
        str, typer.Option("--name", help="What the request calls the server, 1 to 32 characters.")
    ] = "keyd",
    kind: KindOption = TlsKind.GUOMI,
    as_json: JsonOption = False,
) -> None:
    """Make a server's private key and a certificate request: KEYFILE, mode 0600, and KEYFILE.csr.

    Which names the certificate is for is said by whoever signs it (keyd cert sign-server, or a province's CA).
    """
    made = make_key_and_request(key, name, kind)
    Printer(as_json=as_json).tell(
        {"private_key": str(key), "request": str(made), "kind": kind.value},
        (f"the private key is in {key}, the request for it in {made}",),
    )


@app.command()
def sign_server(
    request_file: Annotated[
        Path, typer.Argument(metavar="REQUEST", help="The certificate request, PEM.")
    ],
    server: ServerOption,
    authority: Annotated[
        Path, typer.Option("--ca", metavar="FILE", help="The CA's certificate, PEM.")
    ],
    authority_key: Annotated[
        Path, typer.Option("--ca-key", metavar="FILE", help="The CA's private key, mode 0600.")
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="The certificate. Never overwritten.")
    ],
    days: Annotated[int, typer.Option("--days", min=1, max=3650, help="Valid for so long.")] = 365,
    as_json: JsonOption = False,
) -> None:
    """Sign a server's certificate with a CA whose key is in a file."""
    names = _server_names(server)
    require_new(out)
    issuer = _authority(authority, authority_key)
    try:
        wanted = read_request_untrusted(read_small(request_file), issuer.key.public.kind)
    except RequestRefused as error:
        raise BadParameter(f"{request_file}: {error}") from None
    validity = _validity(days)
    serial = random_serial()
    write_new(out, issue_server(issuer, names, wanted.public_key, validity, serial), PUBLIC)
    Printer(as_json=as_json).tell(
        {"certificate": str(out), "server": names, "serial": f"{serial:X}"},
        (f"{out} is for {', '.join(names)} until {_moment(validity.not_after)}",),
    )


@app.command()
@using(officers_desk, about_proposal)
def make_authority(
    desk: Desk,
    about: About,
    name: Annotated[str, typer.Option("--name", help="The CA's name, 1 to 64 characters.")],
    kind: KindOption = TlsKind.GUOMI,
    years: Annotated[int, typer.Option("--years", min=1, max=30, help="Valid for so long.")] = 10,
) -> None:
    """Propose that keyd makes its own CA of a kind, whose key never leaves the store."""
    if not 1 <= len(name) <= 64 or not name.isprintable():
        raise typer.BadParameter("a name has 1 to 64 printable characters", param_hint="--name")
    propose(desk, about, act.MakeAuthority(kind.value, name, years))


@app.command()
@using(officers_desk)
def authorities(
    desk: Desk,
    to: Annotated[
        Path | None,
        typer.Option(
            "--to",
            metavar="FOLDER",
            help="Write ca-KIND.crt and ca-KIND.crl there, in the place of earlier ones.",
        ),
    ] = None,
) -> None:
    """Show keyd's own CAs with their revocation lists, and write them for whoever has to trust them."""
    found = desk.ask(ListAuthorities()).authorities
    plain: list[dict[str, Any]] = []
    lines: list[str] = []
    for report in found:
        if report.kind not in _KINDS:
            raise RemoteProtocolError("keyd has a CA of a kind that this program does not know")
        # What keyd sent is written as it is; it is read only to be shown.
        shown = _read_own(report.certificate + report.revocation_list)
        plain.append({"kind": report.kind, "parts": [_plain(part) for part in shown]})
        lines += _lines(shown)
        if to is not None:
            certificate, revoked = (to / f"ca-{report.kind}{suffix}" for suffix in (".crt", ".crl"))
            write_over(certificate, report.certificate)
            write_over(revoked, report.revocation_list)
            lines.append(f"written to {certificate} and {revoked}")
    desk.tell(plain, lines or ("keyd has no CA of its own (keyd cert make-authority)",))


def make_key_and_request(key_file: Path, name: str, kind: TlsKind) -> Path:
    """Make a private key in a new file, mode 0600, and a request beside it; return where that is.

    Raises:
        KeyFileUnusable: one of them is there already, or cannot be written.
        BadParameter: nothing can be called that.
    """
    request_file = key_file.with_name(key_file.name + ".csr")
    require_new(key_file, request_file)
    pem = generate_key(kind)
    try:
        asked = make_request(load_key(pem), name)
    except ValueError as error:
        raise BadParameter(str(error)) from None
    write_new(key_file, pem)
    try:
        write_new(request_file, asked, PUBLIC)
    except KeyFileUnusable:
        key_file.unlink()
        raise
    return request_file


def open_key(file: Path) -> CertificateKey:
    """Open a certificate's private key: unencrypted PKCS #8 in PEM, in a file that nobody else may read.

    Raises:
        ConfigError: others than its owner may read it.
        KeyFileUnusable: it is no such key.
    """
    require_private(file)
    try:
        return load_key(read_small(file))
    except ValueError as error:
        raise KeyFileUnusable(f"{file}: {error}") from None


def _authority(certificate: Path, key: Path) -> Authority:
    try:
        return Authority.load(read_small(certificate), open_key(key))
    except ValueError as error:
        raise KeyFileUnusable(f"{certificate}: {error}") from None


def _read_own(pem: bytes) -> list[Shown]:
    try:
        return read_pem_untrusted(pem)
    except ValueError as error:
        raise RemoteProtocolError(f"what keyd gave cannot be read: {error}") from None


def _write_pair(path: Path, key: bytes, certificate: bytes) -> None:
    # Not with_suffix: a code may have a dot.
    write_new(path.with_name(path.name + ".key"), key)
    write_new(path.with_name(path.name + ".crt"), certificate)


def _validity(days: int) -> Validity:
    now = datetime.now(UTC).replace(microsecond=0)
    return Validity(now - _BEFORE, now + timedelta(days=days))


def _server_names(names: Sequence[str]) -> list[str]:
    for name in names:
        if len(name) > _MAX_SERVER_NAME or not (_DNS_NAME.match(name) or _is_address(name)):
            raise typer.BadParameter(
                f"{name[:64]!r} is neither a DNS name nor an IP address", param_hint="--server"
            )
    return list(names)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    # A scope is this machine's own word for one of its networks.
    return "%" not in name


# Showing --------------------------------------------------------------------------------------------------


def _plain(shown: Shown) -> dict[str, Any]:
    plain: dict[str, Any] = {"what": shown.what, "kind": shown.kind}
    for name in ("common_name", "issuer"):
        if getattr(shown, name):
            plain[name] = getattr(shown, name)
    for name in ("names", "use"):
        if getattr(shown, name):
            plain[name] = list(getattr(shown, name))
    if shown.serial is not None:
        plain["serial"] = f"{shown.serial:X}"
    for name in ("not_before", "not_after"):
        if getattr(shown, name) is not None:
            plain[name] = int(getattr(shown, name).timestamp())
    for name in ("fingerprint", "public_key"):
        if getattr(shown, name):
            plain[name] = getattr(shown, name).hex().upper()
    if shown.what == "revocation list":
        plain["number"] = shown.number
        plain["revoked"] = {f"{serial:X}": int(at.timestamp()) for serial, at in shown.revoked}
    return plain


def _lines(found: Sequence[Shown]) -> Iterator[str]:
    for shown in found:
        yield f"{shown.what} ({shown.kind})"
        for name, value in _rows(shown):
            yield f"  {name:14} {value}"


def _rows(shown: Shown) -> Iterator[tuple[str, str]]:
    if shown.common_name:
        yield "name", shown.common_name
    if shown.issuer:
        yield "issued by", shown.issuer
    for name in shown.names:
        yield "server name", name
    for use in shown.use:
        yield "good for", use
    if shown.serial is not None:
        yield "serial", f"{shown.serial:X}"
    if shown.not_before and shown.not_after:
        yield "valid", f"{_moment(shown.not_before)} until {_moment(shown.not_after)}"
    if shown.fingerprint:
        digits = groups_of_4(shown.fingerprint.hex().upper()).split(" ")
        yield "fingerprint", " ".join(digits[:8])
        yield "", " ".join(digits[8:])
    if shown.what == "revocation list":
        yield from _revoked_rows(shown)


def _revoked_rows(shown: Shown) -> Iterator[tuple[str, str]]:
    yield "number", "-" if shown.number is None else str(shown.number)
    yield "revoked", count(shown.revoked, "certificate") if shown.revoked else "nothing"
    for serial, since in shown.revoked[:_MAX_SHOWN]:
        yield "", f"{serial:X} since {_moment(since)}"
    if len(shown.revoked) > _MAX_SHOWN:
        yield "", "and more: --json shows all"


def _moment(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M UTC")
