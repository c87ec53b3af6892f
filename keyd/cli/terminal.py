"""`keyd terminal`: who may ask. Officers enrol, activate and stop terminals; a machine gets its certificate.

What gives rights is proposed and approved by another officer; what takes them away is done at once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeVar, get_type_hints

import msgspec
import typer

from keyd.cli import machine
from keyd.cli.common import Desk, officers_desk, terminal_code, using
from keyd.cli.component import no_core_dump, opened, require_place
from keyd.cli.files import private_folder, public_key, read_large, require_new, write_new
from keyd.cli.keyboard import ask_open, is_interactive
from keyd.cli.papers import hand_over, terminal_sheets
from keyd.cli.proposals import IdArgument, proposal_id
from keyd.cli.proposing import About, about_proposal, propose, send
from keyd.cli.terminal_lists import (
    listed,
    listed_terminals,
    next_lines,
    plain_reading,
    reading_lines,
    show_lines,
    table,
)
from keyd.cli.words import action_of, count
from keyd.crypto.algorithms import KEY_BYTES, Algorithm
from keyd.custody import actions as act
from keyd.custody.enrolling import KIND_CODES, KIND_KEYS
from keyd.custody.officers import OfficerCode
from keyd.errors import BadParameter, ComponentRefused, Refusal
from keyd.protocol.messages.custody import OfficerCommand, Propose, ShowProposal, Take
from keyd.protocol.messages.registry import ShowTerminal, StopTerminal
from keyd.registry.listing import (
    MAX_BYTES,
    read_csv,
    read_spec,
    refused_csv,
    to_csv,
    to_plain,
)
from keyd.registry.terminal import Form, Interface, Proof, TerminalState

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from keyd.registry.psam import PsamSpec
    from keyd.registry.terminal import TerminalSpec

SpecT = TypeVar("SpecT", bound="TerminalSpec | PsamSpec")

app = typer.Typer(help="Terminals: who may ask, and what for.", no_args_is_help=True)

# Rows of a list were refused, and all others were proposed: not the 1 of an error, after which nothing is done.
EXIT_REFUSED: Final = 3

# What a signed command has around its action: method, note, lifetime, and MessagePack's own bytes.
_AROUND: Final = 1024

_decode_codes: Final = msgspec.msgpack.Decoder(dict[str, str]).decode
_decode_keys: Final = msgspec.msgpack.Decoder(dict[str, bytes]).decode

CodeArgument = Annotated[str, typer.Argument(metavar="CODE", help="The terminal's code.")]
CodesArgument = Annotated[
    list[str], typer.Argument(metavar="CODE...", help="Terminals by their codes, at most 100.")
]
ForOption = Annotated[
    str,
    typer.Option("--for", metavar="OFFICER", help="The officer whose envelope it comes in."),
]
SearchOption = Annotated[
    str,
    typer.Option("--search", metavar="TEXT", help="A part of code, organisation or region."),
]
StateOption = Annotated[
    TerminalState | None, typer.Option("--state", help="Only those in this state.")
]


# What two officers decide ---------------------------------------------------------------------------------


@app.command()
@using(officers_desk, about_proposal)
def enrol(
    desk: Desk,
    about: About,
    code: CodeArgument,
    organisation: Annotated[str, typer.Option("--organisation", help="Where it stands.")],
    region: Annotated[str, typer.Option("--region", metavar="DIGITS", help="Six digits.")],
    role: Annotated[
        list[str], typer.Option("--role", help="A role of the policy; may be repeated.")
    ],
    proof: Annotated[
        list[Proof], typer.Option("--proof", help="What it may prove itself with; repeated.")
    ],
    form: Annotated[
        Form, typer.Option("--form", help="What kind of machine it is.")
    ] = Form.DESKTOP,
    vendor: Annotated[str, typer.Option("--vendor", help="Who made it.")] = "",
    model: Annotated[str, typer.Option("--model", help="Its model.")] = "",
    serial: Annotated[str, typer.Option("--serial", help="Its serial number.")] = "",
    driver_version: Annotated[str, typer.Option("--driver-version", help="Of its driver.")] = "",
    psam_number: Annotated[
        str, typer.Option("--psam-number", metavar="DIGITS", help="终端机编号, 12 digits.")
    ] = "",
    psam_serial: Annotated[
        str, typer.Option("--psam-serial", metavar="HEX", help="The PSAM's serial number.")
    ] = "",
    generation: Annotated[
        list[int] | None,
        typer.Option("--generation", min=1, max=3, help="Of cards that it reads; 2 and 3."),
    ] = None,
    interface: Annotated[
        list[Interface] | None, typer.Option("--interface", help="How it reads cards; contact.")
    ] = None,
    network: Annotated[
        list[str] | None,
        typer.Option("--network", metavar="CIDR", help="Where it may come from; everywhere."),
    ] = None,
    open_hours: Annotated[
        list[str] | None,
        typer.Option("--open-hours", metavar="TIMES", help='"Mon-Fri 08:00-17:30"; always.'),
    ] = None,
    valid_from: Annotated[
        str, typer.Option("--valid-from", metavar="TIME", help="ISO 8601, UTC.")
    ] = "",
    valid_until: Annotated[
        str, typer.Option("--valid-until", metavar="TIME", help="ISO 8601, UTC.")
    ] = "",
    key: Annotated[
        str,
        typer.Option(
            "--public-key", metavar="HEX|FILE", help="Its SM2 key, FILE.pub or 130 digits."
        ),
    ] = "",
    activate: Annotated[
        bool, typer.Option("--activate", help="Let it get answers from the approval on.")
    ] = False,
) -> None:
    """Propose to enrol a terminal, or to give one that is there other particulars: all of them, not only those named.

    Roles are the policy's (keyd policy check names them). A terminal that is there already keeps its state.
    """
    # Read as a row of a list is, so that whatever is enrolled can be listed and read again.
    spec = read_spec(
        {
            "code": code,
            "organisation": organisation,
            "region": region,
            "roles": ";".join(role),
            "proofs": ";".join(proof),
            "form": form,
            "vendor": vendor,
            "model": model,
            "serial": serial,
            "psam_number": psam_number,
            "psam_serial": psam_serial,
            "driver_version": driver_version,
            "generations": ";".join(map(str, generation or ())),
            "interfaces": ";".join(interface or ()),
            "networks": ";".join(network or ()),
            "hours": ";".join(open_hours or ()),
            "valid_from": valid_from,
            "valid_until": valid_until,
            "public_key": public_key(key).encode().hex() if key else "",
        }
    )
    propose(desk, about, act.EnrolTerminals((spec,), activate=activate))


@app.command(name="import")
@using(officers_desk, about_proposal)
def import_list(
    desk: Desk,
    about: About,
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="CSV in UTF-8; docs/terminals.md has its columns."),
    ],
    refused: Annotated[
        Path | None,
        typer.Option(
            "--refused",
            metavar="FILE",
            help="Write the refused rows there, to be mended. Never overwritten.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read and check the list, and propose nothing.")
    ] = False,
    activate: Annotated[
        bool, typer.Option("--activate", help="Let them get answers from the approval on.")
    ] = False,
) -> None:
    """Propose to enrol the terminals of a list, in as many proposals as it takes.

    A row with a wrong cell is refused and all others are proposed; the exit status is 3 then. Two rows with one code
    are both refused.
    """
    if refused is not None:
        require_new(refused)
    reading = read_csv(read_large(file, MAX_BYTES))
    if refused is not None and reading.refused:
        write_new(refused, refused_csv(reading))
    for line in reading_lines(file, reading, refused):
        desk.remark(line)
    made: list[str] = []
    try:
        for batch in () if dry_run else batches(reading.specs):
            report = send(desk, about, act.EnrolTerminals(batch, activate=activate)).proposal
            made.append(report.proposal_id.hex())
            desk.remark(f"{made[-1]}  {count(batch)}, {batch[0].code} to {batch[-1].code}")
    except Refusal:
        desk.remark(f"after {count(made, 'proposal')} keyd refused the next")
        raise
    finally:
        # Also where keyd refused one of many: whoever reads this has to know of those that were made.
        desk.tell(plain_reading(reading) | {"proposals": made}, next_lines(made))
    if reading.refused:
        raise typer.Exit(EXIT_REFUSED)


@app.command()
@using(officers_desk, about_proposal)
def activate(desk: Desk, about: About, code: CodesArgument) -> None:
    """Propose that terminals get answers: those that are enrolled, suspended or lost."""
    propose(desk, about, act.ActivateTerminals(_codes(code)))


@app.command()
@using(officers_desk, about_proposal)
def codes(
    desk: Desk,
    about: About,
    code: CodesArgument,
    recipient: ForOption,
    days: Annotated[int, typer.Option("--days", min=1, max=30, help="How long they hold.")] = 7,
) -> None:
    """Propose a one-time enrolment code for each terminal, with which it gets its certificate.

    Once approved, the officer takes them (keyd terminal take) and gives each to whoever sets that terminal up.
    """
    propose(desk, about, act.GiveEnrolmentCodes(_codes(code), _officer(recipient), days))


@app.command()
@using(officers_desk, about_proposal)
def keys(desk: Desk, about: About, code: CodesArgument, recipient: ForOption) -> None:
    """Propose to give terminals' keys out, diversified from the terminal master key.

    Once approved, the officer takes them (keyd terminal take). Whoever has a terminal's key can pass for it.
    """
    propose(desk, about, act.GiveTerminalKeys(_codes(code), _officer(recipient)))


@app.command()
@using(officers_desk)
def take(
    desk: Desk,
    proposal: IdArgument,
    to: Annotated[
        Path | None,
        typer.Option(
            "--to",
            metavar="FILE",
            help="Write sheets there, mode 0600; else the terminal shows them.",
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--folder", metavar="FOLDER", help="Write a file for each terminal there, mode 0600."
        ),
    ] = None,
) -> None:
    """Take the enrolment codes or the terminal keys that a proposal gave to you.

    They are shown once, on a terminal and never in a pipe, or written to files that you alone may read. A file of
    --folder is what keyd terminal enrol-here --code-file, or --terminal-key-file, reads.
    """
    if to is not None and folder is not None:
        raise typer.BadParameter("say --to or --folder, not both")
    if folder is None:
        require_place(desk, to)
    wanted = proposal_id(proposal)
    no_core_dump()
    action = action_of(desk.ask(ShowProposal(wanted)).proposal)
    if not isinstance(action, act.GiveEnrolmentCodes | act.GiveTerminalKeys):
        raise ComponentRefused("the proposal gives neither enrolment codes nor terminal keys")
    what, ending = _WHAT[type(action)]
    paths = {code: folder / f"{code}.{ending}" for code in action.codes} if folder else {}
    if folder is not None:
        private_folder(folder)
        require_new(*paths.values())
    secrets = _secrets(opened(desk, desk.ask(Take(wanted)).envelope), action)
    for code, path in paths.items():
        write_new(path, f"{secrets[code]}\n".encode())
    if folder is None:
        sheets = terminal_sheets(what, desk.title, wanted.hex(), secrets)
        for text in sheets if to is None else ["".join(sheets)]:
            hand_over(text, to, what)
    place = folder or to
    desk.tell(
        {"what": what, "terminals": list(secrets)} | ({"place": str(place)} if place else {}),
        (f"{what} of {count(action.codes)} {f'are in {place}' if place else 'were shown'}",),
    )


# What is given out, and how its files end.
_WHAT: Final[dict[type, tuple[str, str]]] = {
    act.GiveEnrolmentCodes: ("enrolment codes", "code"),
    act.GiveTerminalKeys: ("terminal keys", "key"),
}


# What one officer does ------------------------------------------------------------------------------------


@app.command(name="list")
@using(officers_desk)
def list_terminals(desk: Desk, search: SearchOption = "", state: StateOption = None) -> None:
    """List terminals by code."""
    found = listed_terminals(desk, search, state)
    desk.tell(
        [to_plain(one) for one in found], table(found) if found else ("there is no terminal",)
    )


@app.command()
@using(officers_desk)
def show(desk: Desk, code: CodeArgument) -> None:
    """Show all that is known of one terminal."""
    one = listed(desk.ask(ShowTerminal(terminal_code(code))))
    desk.tell(to_plain(one), show_lines(one))


@app.command()
@using(officers_desk)
def stop(
    desk: Desk,
    code: CodeArgument,
    state: Annotated[
        str,
        typer.Argument(
            metavar="STATE", help="suspended, lost, or retired, from which there is no way back."
        ),
    ],
    reason: Annotated[str, typer.Option("--reason", help="Why, for the journal.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before retiring one.")] = False,
) -> None:
    """Stop a terminal at once, on every keyd: one officer is enough, because it only takes rights away."""
    if state not in _STOPPED:
        raise typer.BadParameter(
            f"{state[:32]!r} is none of {', '.join(_STOPPED)}", param_hint="STATE"
        )
    if not 1 <= len(reason) <= 128:
        raise typer.BadParameter("a reason has 1 to 128 characters", param_hint="--reason")
    wanted = terminal_code(code)
    if state == TerminalState.RETIRED and not (yes or desk.as_json) and is_interactive():
        question = f"{wanted} never gets answers again. Type yes: "
        if ask_open(question, "say --yes").lower() != "yes":
            raise BadParameter(f"{wanted} was not retired")
    desk.ask(StopTerminal(wanted, state, reason))
    desk.tell({"code": wanted, "state": state}, (f"{wanted} is {state}",))


_STOPPED: Final = (TerminalState.SUSPENDED, TerminalState.LOST, TerminalState.RETIRED)


@app.command()
@using(officers_desk)
def export(
    desk: Desk,
    file_format: Annotated[
        str, typer.Option("--format", metavar="csv|json", help="What another system reads.")
    ] = "csv",
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="FILE", help="Write it there. Never overwritten."),
    ] = None,
    search: SearchOption = "",
    state: StateOption = None,
) -> None:
    """Write terminals for a card system, with what keyd knows of each; docs/terminals.md has the columns.

    A cell that a spreadsheet would compute stands behind an apostrophe.
    """
    if file_format not in {"csv", "json"}:
        raise typer.BadParameter("a list is csv or json", param_hint="--format")
    if to is not None:
        require_new(to)
    found = listed_terminals(desk, search, state)
    if file_format == "csv":
        data = to_csv(found)
    else:
        data = (json.dumps([to_plain(one) for one in found], ensure_ascii=False) + "\n").encode()
    if to is None:
        sys.stdout.buffer.write(data)
        return
    write_new(to, data)
    desk.tell({"file": str(to), "terminals": len(found)}, (f"{count(found)} in {to}",))


app.command()(machine.request)
app.command(name="enrol-here")(machine.enrol_here)


def batches(specs: Sequence[SpecT]) -> Iterator[tuple[SpecT, ...]]:
    """Split terminals, or PSAMs, into as many as one proposal takes, by their number and by the bytes of a message."""
    room = _room()
    batch: list[SpecT] = []
    taken = 0
    for spec in specs:
        size = len(msgspec.msgpack.encode(spec))
        if batch and (len(batch) == act.MAX_TERMINALS or taken + size > room):
            yield tuple(batch)
            batch, taken = [], 0
        batch.append(spec)
        taken += size
    if batch:
        yield tuple(batch)


def _room() -> int:
    """Return how many bytes of terminals a proposal takes, as its messages have it."""
    bounds = (
        get_type_hints(Propose, include_extras=True)["action"],
        get_type_hints(OfficerCommand, include_extras=True)["command"],
    )
    return int(min(bound.__metadata__[0].max_length for bound in bounds)) - _AROUND


def _codes(codes: Sequence[str]) -> tuple[str, ...]:
    if len(codes) > act.MAX_TERMINALS:
        raise typer.BadParameter(f"one proposal takes {act.MAX_TERMINALS} terminals at most")
    if len(set(codes)) != len(codes):
        raise typer.BadParameter("a terminal is named twice")
    return tuple(terminal_code(code) for code in codes)


def _officer(text: str) -> str:
    try:
        code: str = msgspec.convert(text, OfficerCode)
    except msgspec.ValidationError:
        raise typer.BadParameter(
            f"{text[:32]!r} is no officer's code", param_hint="--for"
        ) from None
    return code


def _secrets(
    plaintext: bytes, action: act.GiveEnrolmentCodes | act.GiveTerminalKeys
) -> dict[str, str]:
    """Read what an envelope held: a code or a key for each terminal of the proposal, and for no other."""
    secrets: Mapping[str, str]
    are_codes = isinstance(action, act.GiveEnrolmentCodes)
    kind = KIND_CODES if are_codes else KIND_KEYS
    if not plaintext.startswith(kind):
        raise ComponentRefused("what keyd gave is not what the proposal says")
    try:
        if are_codes:
            secrets = _decode_codes(plaintext.removeprefix(kind))
        else:
            given = _decode_keys(plaintext.removeprefix(kind))
            secrets = {
                code: key.hex().upper()
                for code, key in given.items()
                if len(key) == KEY_BYTES[Algorithm.SM4]
            }
    except (msgspec.MsgspecError, ValueError):
        # Without the cause: its words could quote what is inside.
        raise ComponentRefused("what keyd gave is not what the proposal says") from None
    if set(secrets) != set(action.codes):
        raise ComponentRefused("what keyd gave is not for the terminals of the proposal")
    return {code: secrets[code] for code in action.codes}
