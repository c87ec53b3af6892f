"""`keyd psam`: PSAMs that keyd plays. Officers issue, assign and retire them, and report one lost.

What gives rights is proposed and approved by another officer; a loss is reported and done at once.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import msgspec
import typer

from keyd.cli.common import Desk, officers_desk, terminal_code, using
from keyd.cli.files import read_large
from keyd.cli.key_spec import read_time
from keyd.cli.proposing import About, about_proposal, propose, send
from keyd.cli.terminal import batches
from keyd.cli.terminal_lists import next_lines
from keyd.cli.words import count, moment, printable, psam_lines
from keyd.client.officer import all_issued_psams
from keyd.crypto.algorithms import CardAlgorithm
from keyd.custody import actions as act
from keyd.errors import BadParameter, Refusal, RemoteProtocolError
from keyd.protocol.messages.registry import LosePsam, ShowIssuedPsam
from keyd.registry.psam import MAX_KEY_NAMES, KeptPsam, KeyPattern, PsamAct, PsamSpec, PsamState
from keyd.registry.terminal import PSAM_NUMBER_BYTES, PSAM_SERIAL_BYTES, Words

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

app = typer.Typer(help="PSAMs that keyd plays: issued, assigned, lost.", no_args_is_help=True)

# Ten thousand rows of two numbers.
MAX_LIST_BYTES: Final = 1024 * 1024
MAX_ROWS: Final = 10_000
# A person reads this many on a screen.
_MAX_TOLD: Final = 20

_NUMBER_DIGITS: Final = 2 * PSAM_NUMBER_BYTES
_SERIAL_DIGITS: Final = 2 * PSAM_SERIAL_BYTES
_COLUMNS: Final = ["number", "serial"]

_decode_psam: Final = msgspec.msgpack.Decoder(KeptPsam).decode

NumberArgument = Annotated[
    str, typer.Argument(metavar="NUMBER", help="终端机编号, 12 digits, which names the PSAM.")
]
NumbersArgument = Annotated[
    list[str], typer.Argument(metavar="NUMBER...", help="PSAMs by their 终端机编号, at most 100.")
]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why, for the journal.")]


class Kind(NamedTuple):
    """What PSAMs are to be, beside their numbers."""

    profile: str
    environment: CardAlgorithm
    keys: tuple[str, ...]
    valid_from: int
    valid_until: int


def kind_options(
    key: Annotated[
        list[str],
        typer.Option(
            "--may-use",
            metavar="NAME",
            help="A key by its name, IRK, or all that begin so, RK*; may be repeated.",
        ),
    ],
    profile: Annotated[
        str, typer.Option("--profile", help="What kind of PSAM it is: docs/psam.md.")
    ] = "social-security",
    environment: Annotated[
        str, typer.Option("--environment", metavar="SM4|DES", help="What it wakes up with.")
    ] = "SM4",
    valid_from: Annotated[
        str | None, typer.Option("--valid-from", metavar="TIME", help="ISO 8601, UTC.")
    ] = None,
    valid_until: Annotated[
        str | None, typer.Option("--valid-until", metavar="TIME", help="ISO 8601, UTC.")
    ] = None,
) -> Kind:
    """Read what PSAMs are to be."""
    if environment.upper() not in CardAlgorithm.__members__:
        raise typer.BadParameter(
            f"{environment[:32]!r} is none of {', '.join(CardAlgorithm.__members__)}",
            param_hint="--environment",
        )
    if not 1 <= len(profile) <= 32:
        raise typer.BadParameter("a profile's name has 1 to 32 characters", param_hint="--profile")
    if len(key) > MAX_KEY_NAMES:
        raise typer.BadParameter(f"at most {MAX_KEY_NAMES} names of keys", param_hint="--may-use")
    for pattern in key:
        try:
            msgspec.convert(pattern, KeyPattern)
        except msgspec.ValidationError:
            raise typer.BadParameter(
                f"{pattern[:32]!r} is no name of a key: A-Z 0-9, and * at its end",
                param_hint="--may-use",
            ) from None
    return Kind(
        profile,
        CardAlgorithm[environment.upper()],
        tuple(key),
        read_time(valid_from, "--valid-from") or 0,
        read_time(valid_until, "--valid-until") or 0,
    )


# What two officers decide ---------------------------------------------------------------------------------


@app.command()
@using(officers_desk, about_proposal, kind_options)
def issue(
    desk: Desk,
    about: About,
    kind: Kind,
    number: NumberArgument,
    serial: Annotated[
        str, typer.Option("--serial", metavar="DIGITS", help="Its serial number, 20 digits.")
    ],
) -> None:
    """Propose to issue a PSAM (发卡). Number and serial number are given once, for ever."""
    octets = _digits(serial, _SERIAL_DIGITS, "a serial number", "--serial")
    spec = PsamSpec(bytes.fromhex(_number(number)), octets, *kind)
    propose(desk, about, act.IssuePsams((spec,)))


@app.command(name="import")
@using(officers_desk, about_proposal, kind_options)
def import_list(
    desk: Desk,
    about: About,
    kind: Kind,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="CSV in UTF-8 with the columns number and serial, both as text."
        ),
    ],
) -> None:
    """Propose to issue the PSAMs of a list, all of one kind, in as many proposals as it takes.

    If a row is wrong, all wrong rows are told and nothing is proposed.
    """
    specs, faults = read_list(read_large(file, MAX_LIST_BYTES), kind)
    if faults:
        for fault in faults[:_MAX_TOLD]:
            desk.remark(fault)
        first = faults[0] if desk.as_json else "they are told above"
        raise BadParameter(
            f"{count(faults, 'row')} of {file} cannot be read, and nothing was proposed: {first}"
        )
    made: list[str] = []
    try:
        for batch in batches(specs):
            report = send(desk, about, act.IssuePsams(batch)).proposal
            made.append(report.proposal_id.hex())
            ends = f"{batch[0].number.hex()} to {batch[-1].number.hex()}"
            desk.remark(f"{made[-1]}  {count(batch, 'PSAM')}, {ends}")
    except Refusal:
        desk.remark(f"after {count(made, 'proposal')} keyd refused the next")
        raise
    finally:
        # Also where keyd refused one of many: whoever reads this has to know of those that were made.
        desk.tell({"good": len(specs), "proposals": made}, next_lines(made))


@app.command()
@using(officers_desk, about_proposal)
def assign(
    desk: Desk,
    about: About,
    number: NumbersArgument,
    terminal: Annotated[
        str,
        typer.Option("--terminal", metavar="CODE", help="Whose it is to be, and nobody else's."),
    ] = "",
    shared: Annotated[
        bool, typer.Option("--shared", help="Put it into the set that all terminals share.")
    ] = False,
) -> None:
    """Propose to assign PSAMs (领用) that were issued or came back: to one terminal, or to the shared set."""
    if bool(terminal) is shared:
        raise typer.BadParameter("say --terminal CODE or --shared, one of them")
    code = terminal_code(terminal) if terminal else ""
    propose(desk, about, act.ChangePsams(_numbers(number), PsamAct.ASSIGN, code))


@app.command(name="return")
@using(officers_desk, about_proposal)
def give_back(desk: Desk, about: About, number: NumbersArgument, reason: ReasonOption = "") -> None:
    """Propose to take PSAMs back (退回), also lost ones: they answer nobody, and can be assigned again."""
    propose(desk, about, act.ChangePsams(_numbers(number), PsamAct.RETURN, reason=_reason(reason)))


@app.command()
@using(officers_desk, about_proposal)
def retire(desk: Desk, about: About, number: NumbersArgument, reason: ReasonOption = "") -> None:
    """Propose to retire PSAMs (注销), from which there is no way back."""
    propose(desk, about, act.ChangePsams(_numbers(number), PsamAct.RETIRE, reason=_reason(reason)))


# What one officer does ------------------------------------------------------------------------------------


@app.command()
@using(officers_desk)
def lose(desk: Desk, number: NumberArgument, reason: ReasonOption) -> None:
    """Report a PSAM lost (挂失): no keyd plays it any more, at once; one officer is enough."""
    if not reason:
        raise typer.BadParameter("a reason has 1 to 64 characters", param_hint="--reason")
    wanted = _number(number)
    desk.ask(LosePsam(wanted, _reason(reason)))
    desk.tell({"number": wanted, "state": PsamState.LOST}, (f"PSAM {wanted} is lost",))


@app.command(name="list")
@using(officers_desk)
def list_psams(
    desk: Desk,
    search: Annotated[
        str,
        typer.Option("--search", metavar="TEXT", help="A part of number, terminal, profile, keys."),
    ] = "",
    state: Annotated[
        PsamState | None, typer.Option("--state", help="Only those in this state.")
    ] = None,
) -> None:
    """List PSAMs that keyd plays, by number."""
    if len(search) > 64:
        raise typer.BadParameter("at most 64 characters", param_hint="--search")
    reports = all_issued_psams(desk, search=search, state=state or "any")
    found = [_kept(report.psam) for report in reports]
    desk.tell([plain_psam(one) for one in found], table(found) if found else ("there is no PSAM",))


@app.command()
@using(officers_desk)
def show(desk: Desk, number: NumberArgument) -> None:
    """Show one PSAM, and what it remembers."""
    shown = desk.ask(ShowIssuedPsam(_number(number)))
    kept = _kept(shown.psam)
    plain = plain_psam(kept) | {"next_number": shown.next_number, "wrong_mac2": shown.wrong_mac2}
    lines = (
        *_show_lines(kept),
        f"  numbers         none from {shown.next_number} on was given; MAC2 wrong {shown.wrong_mac2} times in a row",
    )
    desk.tell(plain, lines)


# ----------------------------------------------------------------------------------------------------------


def read_list(data: bytes, kind: Kind) -> tuple[list[PsamSpec], list[str]]:
    """Read a list of PSAMs; return them, and what is wrong with which row.

    Raises:
        BadParameter: it is no such list as a whole.
    """
    if len(data) > MAX_LIST_BYTES:
        raise BadParameter(f"a list of PSAMs has at most {MAX_LIST_BYTES} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadParameter("the list is not UTF-8: save it as CSV UTF-8") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        rows = [(number, row) for number, row in enumerate(reader, 1) if any(row)]
    except csv.Error as error:
        raise BadParameter(f"line {reader.line_num} is not CSV: {error}") from None
    if not rows or rows[0][1] != _COLUMNS:
        raise BadParameter("the first row of the list is: number,serial")
    if not 1 < len(rows) <= MAX_ROWS + 1:
        raise BadParameter(f"a list has 1 to {MAX_ROWS} PSAMs")
    specs: list[PsamSpec] = []
    faults: list[str] = []
    seen: set[str] = set()
    for number, row in rows[1:]:
        why = _fault(row) or next((f"{cell} is there twice" for cell in row if cell in seen), "")
        seen.update(row)
        if why:
            faults.append(f"row {number}: {why}")
        else:
            specs.append(PsamSpec(bytes.fromhex(row[0]), bytes.fromhex(row[1]), *kind))
    return specs, faults


def _fault(row: Sequence[str]) -> str:
    if len(row) != len(_COLUMNS):
        return f"the row has {len(row)} cells, and the header {len(_COLUMNS)}"
    if not _are_digits(row[0], _NUMBER_DIGITS):
        return "a 终端机编号 is 12 decimal digits (in a spreadsheet the column has to be text)"
    if not _are_digits(row[1], _SERIAL_DIGITS):
        return "a serial number is 20 decimal digits (in a spreadsheet the column has to be text)"
    return ""


def _are_digits(text: str, digits: int) -> bool:
    return len(text) == digits and text.isascii() and text.isdigit()


def _digits(text: str, digits: int, what: str, hint: str) -> bytes:
    if not _are_digits(text, digits):
        raise typer.BadParameter(
            f"{what} is {digits} decimal digits, not {text[:64]!r}", param_hint=hint
        )
    return bytes.fromhex(text)


def _number(text: str) -> str:
    return _digits(text, _NUMBER_DIGITS, "a 终端机编号", "NUMBER").hex()


def _numbers(texts: Sequence[str]) -> tuple[str, ...]:
    if len(texts) > act.MAX_PSAMS:
        raise typer.BadParameter(f"one proposal takes {act.MAX_PSAMS} PSAMs at most")
    if len(set(texts)) != len(texts):
        raise typer.BadParameter("a PSAM is named twice")
    return tuple(map(_number, texts))


def _reason(text: str) -> str:
    try:
        reason: str = msgspec.convert(text, Words)
    except msgspec.ValidationError:
        raise typer.BadParameter(
            "a reason has at most 64 characters, none of them | or a control character",
            param_hint="--reason",
        ) from None
    return reason


def _kept(encoded: bytes) -> KeptPsam:
    try:
        return _decode_psam(encoded)
    except (msgspec.MsgspecError, ValueError):
        raise RemoteProtocolError(
            "keyd has a PSAM that this program cannot read: use the program of the daemon"
        ) from None


def plain_psam(kept: KeptPsam) -> dict[str, Any]:
    """Return a PSAM for JSON: numbers as digits, times in Unix seconds."""
    spec = kept.spec
    return {
        "number": kept.number,
        "serial": spec.serial.hex(),
        "profile": spec.profile,
        "environment": spec.environment.name,
        "keys": list(spec.keys),
        "valid_from": spec.valid_from,
        "valid_until": spec.valid_until,
        "state": kept.state,
        "terminal": kept.terminal,
        "issued_by": kept.issued_by,
        "issued_at": kept.issued_at,
        "changed_by": kept.changed_by,
        "changed_at": kept.changed_at,
        "reason": kept.reason,
    }


def table(found: Sequence[KeptPsam]) -> Iterator[str]:
    """Yield PSAMs as lines of at most 100 columns, with a heading."""
    yield f"{'number':12}  {'state':8}  {'terminal':20}  {'profile':16}  keys"
    for kept in found:
        keys = ",".join(kept.spec.keys)
        line = f"{kept.number}  {kept.state:8}  {_whose(kept)[:20]:20}  {kept.spec.profile[:16]:16}  {keys}"
        yield printable(line)[:100].rstrip()


def _whose(kept: KeptPsam) -> str:
    return kept.terminal or ("shared" if kept.state is PsamState.ASSIGNED else "-")


def _show_lines(kept: KeptPsam) -> Iterator[str]:
    yield from psam_lines(kept.spec)
    reason = f": {printable(kept.reason)}" if kept.reason else ""
    yield f"  state           {kept.state}{reason}"
    yield f"  terminal        {_whose(kept)}"
    yield f"  issued          {moment(kept.issued_at)} by {printable(kept.issued_by)}"
    if kept.changed_at:
        yield f"  changed         {moment(kept.changed_at)} by {printable(kept.changed_by)}"
