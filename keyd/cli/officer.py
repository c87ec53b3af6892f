"""`keyd officer`: officers' keys, and who is enrolled."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keyd.cli.common import COLUMNS, Desk, JsonOption, Printer, groups_of_4, officers_desk, using
from keyd.cli.files import (
    is_private_key,
    make_officer_key,
    new_passphrase,
    open_officer_key,
    public_beside,
    public_key,
)
from keyd.cli.proposing import About, about_proposal, propose
from keyd.cli.words import fingerprint_of
from keyd.crypto.sm2.files import fingerprint
from keyd.custody import actions as act
from keyd.custody.officers import OfficerRole
from keyd.protocol.messages.custody import ListOfficers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keyd.crypto.sm2 import Sm2PublicKey
    from keyd.protocol.messages.custody import OfficerReport

app = typer.Typer(help="Officers' keys, and who is enrolled.", no_args_is_help=True)

CodeArgument = Annotated[str, typer.Argument(metavar="CODE", help="The officer's code.")]
PassphraseOption = Annotated[
    Path | None,
    typer.Option("--passphrase-file", metavar="FILE", help="File with the key's passphrase."),
]


@app.command()
def new(
    file: Annotated[Path, typer.Argument(help="The key file to write. Never overwritten.")],
    name: Annotated[
        str, typer.Option("--name", help="Whose key it is, to be repeated in what is printed.")
    ] = "",
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make an officer's SM2 key: FILE under a passphrase, and FILE.pub to be enrolled.

    The passphrase is typed twice, or read from a file; it has 12 bytes at least. Nobody else ever needs FILE.
    """
    public = make_officer_key(file, new_passphrase(passphrase_file))
    plain: dict[str, Any] = {"name": name} if name else {}
    plain |= {"file": str(file), "public_key_file": str(public_beside(file))}
    heading = f"{name}: " if name else ""
    _tell_key(
        Printer(as_json=as_json),
        public,
        plain,
        f"{heading}the private key is in {file}, the public one in {public_beside(file)}.",
    )


@app.command()
def show(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="FILE.pub, or the key file, whose passphrase it takes."
        ),
    ],
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the public key in a file, and its fingerprint, which people compare."""
    path = Path(file)
    if path.is_file() and is_private_key(path):
        public = open_officer_key(path, passphrase_file).public
    else:
        public = public_key(file)
    _tell_key(Printer(as_json=as_json), public, {"file": file}, f"{file}:")


@app.command(name="list")
@using(officers_desk)
def list_officers(desk: Desk) -> None:
    """List the officers of the domain."""
    officers = desk.ask(ListOfficers()).officers
    desk.tell([_plain(officer) for officer in officers], _lines(officers))


@app.command()
@using(officers_desk, about_proposal)
def enrol(
    desk: Desk,
    about: About,
    code: CodeArgument,
    name: Annotated[str, typer.Option("--name", help="The officer's name.")],
    role: Annotated[
        list[OfficerRole], typer.Option("--role", help="What the officer may do; may be repeated.")
    ],
    key: Annotated[
        str,
        typer.Option(
            "--public-key", metavar="HEX|FILE", help="The officer's FILE.pub, or 130 hex digits."
        ),
    ],
) -> None:
    """Propose to enrol an officer, or to give one other roles or another key."""
    point = public_key(key).encode()
    propose(desk, about, act.EnrolOfficer(code, name, tuple(role), point))


@app.command()
@using(officers_desk, about_proposal)
def retire(desk: Desk, about: About, code: CodeArgument) -> None:
    """Propose that an officer signs nothing any more."""
    propose(desk, about, act.RetireOfficer(code))


def _tell_key(printer: Printer, public: Sm2PublicKey, plain: dict[str, Any], heading: str) -> None:
    point = public.encode().hex().upper()
    digits = groups_of_4(point[2:]).split(" ")
    rows = [" ".join(digits[at : at + 8]) for at in range(0, len(digits), 8)]
    printer.tell(
        plain | {"public_key": point, "fingerprint": fingerprint(public)},
        (
            heading,
            f"public key   {point[:2]} {rows[0]}",
            *(f"{'':16}{row}" for row in rows[1:]),
            f"fingerprint  {fingerprint(public)}",
        ),
    )


def _plain(officer: OfficerReport) -> dict[str, Any]:
    return {
        "domain": officer.domain,
        "code": officer.officer,
        "name": officer.name,
        "roles": list(officer.roles),
        "public_key": officer.public_key.hex().upper(),
        "fingerprint": fingerprint_of(officer.public_key),
        "is_retired": officer.is_retired,
    }


def _lines(officers: tuple[OfficerReport, ...]) -> Iterator[str]:
    for officer in officers:
        retired = "  RETIRED" if officer.is_retired else ""
        yield f"{officer.domain}/{officer.officer}  {officer.name}{retired}"[:COLUMNS]
        yield f"    {', '.join(officer.roles)}"
        yield f"    fingerprint {fingerprint_of(officer.public_key)}"
