"""`keyd terminal request` and `keyd terminal enrol-here`: how a machine gets its certificate, with a one-time code.

These run on the terminal itself. Its private key is made there and never leaves it; keyd's own CA signs what the
terminal asks for, over a line on which a machine without a certificate can ask for nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from keyd.cli.cert import make_key_and_request, open_key
from keyd.cli.common import JsonOption, Printer, terminal_code
from keyd.cli.files import PUBLIC, read_small, require_new, write_new
from keyd.cli.keyboard import ask_hidden
from keyd.cli.words import moment
from keyd.client import Backoff, Client, parse_address
from keyd.config import ConfigError, read_passphrase
from keyd.errors import BadParameter, RemoteProtocolError
from keyd.protocol.messages.registry import EnrolWithCode
from keyd.tls import TlsClientContext, TlsKind, TlsUnusable
from keyd.tls.inspection import CLIENT_USE, read_pem_untrusted
from keyd.tls.pki import make_request

if TYPE_CHECKING:
    from keyd.tls.inspection import Shown
    from keyd.tls.pki import CertificateKey

# A signature of keyd's CA and a commit; and the person who waits has just typed a code.
_SECONDS: Final = 30.0

# With spaces everywhere; as EnrolWithCode has it.
MAX_ENROLMENT_CODE: Final = 64

CodeOption = Annotated[str, typer.Option("--code", metavar="CODE", help="The terminal's code.")]


def request(
    code: CodeOption,
    out: Annotated[
        Path, typer.Option("--out", metavar="KEYFILE", help="The key file. Never overwritten.")
    ],
    kind: Annotated[
        TlsKind, typer.Option("--kind", help="guomi: SM2. standard: ECDSA P-256.")
    ] = TlsKind.GUOMI,
    as_json: JsonOption = False,
) -> None:
    """Make this terminal's private key, and a certificate request: KEYFILE, mode 0600, and KEYFILE.csr.

    enrol-here needs KEYFILE alone. KEYFILE.csr is for a CA that is not keyd's own.
    """
    wanted = make_key_and_request(out, terminal_code(code), kind)
    Printer(as_json=as_json).tell(
        {"code": code, "kind": kind.value, "private_key": str(out), "request": str(wanted)},
        (
            f"The private key of {code} is in {out}, unencrypted: it never leaves this machine.",
            f"The request for its certificate is in {wanted}.",
        ),
    )


def enrol_here(
    address: Annotated[
        str,
        typer.Argument(
            metavar="HOST:PORT", help="keyd's enrolment line, as its certificate has it."
        ),
    ],
    code: CodeOption,
    key: Annotated[
        Path, typer.Option("--key", metavar="KEYFILE", help="What keyd terminal request made.")
    ],
    authorities: Annotated[
        Path,
        typer.Option("--ca", metavar="FILE", help="The CA that keyd's own certificate is from."),
    ],
    code_file: Annotated[
        Path | None,
        typer.Option(
            "--code-file", metavar="FILE", help="The enrolment code, mode 0600; else it is typed."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Get this terminal's certificate from keyd with a one-time enrolment code: it goes to KEYFILE.crt.

    The code is typed without echo and serves once. An officer gives it out (keyd terminal codes).
    """
    wanted = terminal_code(code)
    certificate_file = key.with_name(key.name + ".crt")
    require_new(certificate_file)
    own = open_key(key)
    with _line(address, own.public.kind, read_small(authorities)) as client:
        enrolled = client.ask(EnrolWithCode(wanted, _code(code_file), make_request(own, wanted)))
    shown = _own_certificate(enrolled.chain, wanted, own)
    write_new(certificate_file, enrolled.chain, PUBLIC)
    until = int(shown.not_after.timestamp()) if shown.not_after else 0
    Printer(as_json=as_json).tell(
        {"code": wanted, "certificate": str(certificate_file), "not_after": until},
        (f"The certificate of {wanted} is in {certificate_file}, valid until {moment(until)}.",),
    )


def _line(address: str, kind: TlsKind, authorities: bytes) -> Client:
    try:
        if isinstance(parse_address(address), str):
            raise ValueError(f"{address!r} is no address: write HOST:PORT")  # noqa: TRY301, TRY004 - one sentence
        tls = TlsClientContext(kind, server_authorities=authorities)
    except (ValueError, TlsUnusable) as error:
        raise ConfigError(str(error)) from None
    return Client(address, tls=tls, timeout=_SECONDS, backoff=Backoff(attempts=1))


def _code(file: Path | None) -> str:
    if file is not None:
        typed = read_passphrase(file)
    else:
        with ask_hidden("Enrolment code: ", "say --code-file FILE") as hidden:
            typed = hidden.octets()
    try:
        code = typed.decode().strip()
    except UnicodeDecodeError:
        raise BadParameter("the enrolment code is no text") from None
    if not 1 <= len(code) <= MAX_ENROLMENT_CODE:
        raise BadParameter(f"an enrolment code has 1 to {MAX_ENROLMENT_CODE} characters")
    # However somebody typed it, with spaces, hyphens or in full width: keyd reads it.
    return code


def _own_certificate(pem: bytes, code: str, key: CertificateKey) -> Shown:
    """Read the certificate that keyd gave: this terminal's and for this key, or it is thrown away.

    Raises:
        RemoteProtocolError: it is not.
    """
    try:
        own = read_pem_untrusted(pem)[0]
    except ValueError:
        raise RemoteProtocolError("what keyd gave is no certificate") from None
    is_own = own.what == "certificate" and own.common_name == code and CLIENT_USE in own.use
    if not is_own or own.public_key != key.public.point:
        raise RemoteProtocolError("what keyd gave is not this terminal's certificate")
    return own
