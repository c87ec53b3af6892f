"""`keyd component`: entering and taking the parts of a key, each of which says nothing alone.

A component that is typed goes from the terminal into a bytearray, from there into locked memory for its check value
and, encrypted to keyd's public key, to keyd. Both bytearrays are wiped. What cannot be wiped from here: libcrypto frees
its key stream unwiped, the guarded fallback copies, and the kernel's terminal buffer is the kernel's. The process
writes no core dump and ends when the command does; tests/cli/test_memory.py searches it just before.
A component that is taken becomes text, since it is to be printed: there its secrecy is the sheet's.
"""

from __future__ import annotations

import contextlib
import resource
import secrets
from hmac import compare_digest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keyd.cli.common import (
    Desk,
    JsonOption,
    Printer,
    admin_client,
    officers_desk,
    using,
)
from keyd.cli.files import read_hidden, require_new
from keyd.cli.key_spec import KeyAlgorithm
from keyd.cli.keyboard import ask_hidden, ask_open, is_interactive
from keyd.cli.papers import Sheet, component_sheet, hand_over, sheet_kcv, sheet_value
from keyd.cli.proposals import IdArgument, proposal_id
from keyd.cli.words import action_of, plain_outcome, progress_lines
from keyd.crypto.algorithms import KEY_BYTES, Algorithm
from keyd.crypto.native import _core
from keyd.crypto.secret import SecretKey
from keyd.crypto.sm2 import CiphertextNotAuthentic, Sm2PublicKey
from keyd.custody import actions as act
from keyd.custody.ceremony import KIND_COMPONENT
from keyd.errors import BadParameter, ComponentRefused, Sealed
from keyd.protocol.messages.custody import AskSeal, EnterComponent, ShowProposal, Take

if TYPE_CHECKING:
    from collections.abc import Iterator

app = typer.Typer(help="The parts in which a key enters or leaves.", no_args_is_help=True)

ToOption = Annotated[
    Path | None,
    typer.Option(
        "--to", metavar="FILE", help="Write the sheet there, mode 0600; else the terminal shows it."
    ),
]
NumberArgument = Annotated[
    int, typer.Argument(min=1, max=act.MAX_COMPONENTS, help="Which component.")
]


@app.command()
@using(officers_desk)
def enter(
    desk: Desk,
    proposal: IdArgument,
    number: NumberArgument,
    sheet: Annotated[
        Path | None,
        typer.Option(
            "--sheet", metavar="FILE", help="A component sheet, mode 0600; else it is typed twice."
        ),
    ] = None,
) -> None:
    """Enter one component of a key.

    It is typed twice without echo; its check value is shown, to be compared with the sheet, before anything is sent.
    """
    wanted = proposal_id(proposal)
    no_core_dump()
    outcome = desk.ask(ShowProposal(wanted))
    action = action_of(outcome.proposal)
    if not isinstance(action, act.ImportKey):
        raise ComponentRefused("the proposal takes no components")
    algorithm = action.key.algorithm
    keyd_key = _keyd_public_key(desk)
    with _component(algorithm, number, sheet) as (component, expected):
        kcv = _check_value(algorithm, component)
        _require_expected(kcv, expected, number)
        desk.remark(f"component {number}: check value {kcv.hex().upper()}")
        if (
            sheet is None
            and ask_open("Is that on the sheet? Type yes: ", "say --sheet").lower() != "yes"
        ):
            raise ComponentRefused(f"component {number} was not sent")
        envelope = keyd_key.encrypt(component)
    entered = desk.ask(EnterComponent(wanted, number, envelope, kcv))
    desk.tell(
        plain_outcome(entered) | {"number": number, "kcv": kcv.hex().upper()},
        progress_lines(entered.proposal, action),
    )


@app.command()
@using(officers_desk)
def take(desk: Desk, proposal: IdArgument, to: ToOption = None) -> None:
    """Take the component that a proposal made for you: a sheet with its check value, for an envelope."""
    wanted = proposal_id(proposal)
    require_place(desk, to)
    no_core_dump()
    action = action_of(desk.ask(ShowProposal(wanted)).proposal)
    if not isinstance(action, act.GiveComponents):
        raise ComponentRefused("the proposal gives no components")
    plaintext = opened(desk, desk.ask(Take(wanted)).envelope)
    component = bytearray(plaintext.removeprefix(KIND_COMPONENT))
    algorithm = action.key.algorithm
    if not plaintext.startswith(KIND_COMPONENT) or len(component) != KEY_BYTES[algorithm]:
        raise ComponentRefused("what keyd gave is no component of this key")
    number = action.custodians.index(desk.officer) + 1
    paper = Sheet(
        name=action.key.name,
        algorithm=algorithm,
        number=number,
        of=len(action.custodians),
        custodian=desk.title,
        kcv=_check_value(algorithm, component),
        proposal=wanted.hex(),
    )
    _give(desk, paper, component, to)


@app.command()
def new(
    algorithm: Annotated[KeyAlgorithm, typer.Option("--algorithm", help="Of the key.")],
    number: Annotated[
        int, typer.Option("--number", min=1, max=act.MAX_COMPONENTS, help="Which component.")
    ],
    of: Annotated[int, typer.Option("--of", min=2, max=act.MAX_COMPONENTS, help="Of how many.")],
    name: Annotated[str, typer.Option("--name", help="The key's name.")],
    custodian: Annotated[str, typer.Option("--custodian", help="Whose it is.")] = "",
    to: ToOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw a component at random, without any keyd: for a key that custodians make together."""
    if number > of:
        raise typer.BadParameter("there are not so many components", param_hint="--number")
    printer = Printer(as_json=as_json)
    require_place(printer, to)
    no_core_dump()
    cipher = Algorithm(algorithm.value)
    component = bytearray(secrets.token_bytes(KEY_BYTES[cipher]))
    paper = Sheet(name, cipher, number, of, custodian, _check_value(cipher, component))
    _give(printer, paper, component, to)


def no_core_dump() -> None:
    """Let this process leave no core dump, whatever becomes of it: it is about to hold a secret."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def opened(desk: Desk, envelope: bytes) -> bytes:
    """Decrypt what keyd encrypted to this officer.

    Raises:
        ComponentRefused: it is for another key than the officer's.
    """
    try:
        return desk.private_key.decrypt(envelope)
    except CiphertextNotAuthentic:
        raise ComponentRefused(
            "what keyd gave was encrypted to another key than this one"
        ) from None


def require_place(printer: Printer, to: Path | None) -> None:
    """Refuse, before anything is taken, what could not be handed over.

    Raises:
        typer.BadParameter: there is neither a file nor a terminal.
        KeyFileUnusable: the file is there already.
    """
    if to is not None:
        require_new(to)
    elif printer.as_json or not is_interactive():
        raise typer.BadParameter("a secret goes to a terminal or a file: say --to FILE")


def _give(printer: Printer, sheet: Sheet, component: bytearray, to: Path | None) -> None:
    try:
        hand_over(component_sheet(sheet, component), to, f"component {sheet.number} of {sheet.of}")
    finally:
        _core.wipe(component)
    kcv = sheet.kcv.hex().upper()
    where = f" is in {to}" if to else " was shown"
    plain = {"number": sheet.number, "of": sheet.of, "kcv": kcv, "name": sheet.name}
    printer.tell(
        plain | ({"file": str(to)} if to else {}),
        (f"component {sheet.number} of {sheet.of} of {sheet.name}{where}, check value {kcv}",),
    )


@contextlib.contextmanager
def _component(
    algorithm: Algorithm, number: int, sheet: Path | None
) -> Iterator[tuple[bytearray, bytes | None]]:
    """Lend a component, and the check value that its sheet says; wipe it afterwards."""
    length = KEY_BYTES[algorithm]
    expected: bytes | None = None
    if sheet is not None:
        with read_hidden(sheet) as hidden:
            component, expected = sheet_value(hidden, length), sheet_kcv(hidden)
    else:
        component = _typed_twice(length, number)
    try:
        yield component, expected
    finally:
        _core.wipe(component)


def _typed_twice(length: int, number: int) -> bytearray:
    instead = "say --sheet FILE"
    with ask_hidden(f"Component {number}, {2 * length} hex digits: ", instead) as typed:
        first = typed.key(length, f"component {number}")
    try:
        with ask_hidden("Once more: ", instead) as typed:
            second = typed.key(length, f"component {number}")
        is_same = compare_digest(first, second)
        _core.wipe(second)
    except BaseException:
        _core.wipe(first)
        raise
    if not is_same:
        _core.wipe(first)
        raise BadParameter("what was typed differs")
    return first


def _check_value(algorithm: Algorithm, component: bytearray) -> bytes:
    # Loading wipes what it is given.
    key = SecretKey.load(algorithm, bytearray(component))
    try:
        return key.kcv()
    finally:
        key.handle.free()


def _require_expected(kcv: bytes, expected: bytes | None, number: int) -> None:
    if expected is not None and not compare_digest(kcv, expected):
        raise ComponentRefused(f"component {number} does not have the check value on its sheet")


def _keyd_public_key(desk: Desk) -> Sm2PublicKey:
    with admin_client(desk.admin) as client:
        state = client.ask(AskSeal())
    if state.sealed:
        raise Sealed
    return Sm2PublicKey.load(state.public_key)
