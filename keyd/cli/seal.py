"""`keyd unseal`, `seal`, `rekey`, `share`: opening and closing the store, and making its shares anew."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from keyd.cli.common import (
    DEFAULT_ADMIN,
    AdminOption,
    Desk,
    JsonOption,
    Printer,
    admin_client,
    groups_of_4,
    officers_desk,
    using,
)
from keyd.cli.component import no_core_dump, opened, require_place
from keyd.cli.files import read_hidden
from keyd.cli.keyboard import ask_hidden, is_interactive
from keyd.cli.papers import hand_over, share_envelope, share_line
from keyd.cli.proposals import IdArgument, proposal_id
from keyd.cli.proposing import About, about_proposal, propose
from keyd.cli.words import action_of, fingerprint_of, plain_outcome, progress_lines
from keyd.crypto.shares import decode_share, share_commitment
from keyd.custody import actions as act
from keyd.custody.rekeying import KIND_SHARE
from keyd.errors import NotSealed, Refusal, ShareRefused
from keyd.protocol.messages.custody import (
    AskSeal,
    ConfirmShare,
    ForgetShares,
    GiveShare,
    SealNow,
    ShowProposal,
    Take,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keyd.client import Client
    from keyd.protocol.messages.custody import SealState

share_app = typer.Typer(help="The new share of a rekey, as its custodian.", no_args_is_help=True)

ToOption = Annotated[
    Path | None,
    typer.Option(
        "--to",
        metavar="FILE",
        help="Write the envelope there, mode 0600; else the terminal shows it.",
    ),
]

# Somebody who mistypes 72 characters this often has another envelope in hand.
_MAX_WRONG: Final = 5


def unseal(
    share_file: Annotated[
        list[Path] | None,
        typer.Option(
            "--share-file", metavar="FILE", help="A share's envelope, mode 0600; may be repeated."
        ),
    ] = None,
    forget: Annotated[
        bool, typer.Option("--forget", help="Let keyd forget the shares that it was given so far.")
    ] = False,
    show: Annotated[
        bool, typer.Option("--status", help="Only tell whether keyd is sealed, and how far it is.")
    ] = False,
    admin: AdminOption = DEFAULT_ADMIN,
    as_json: JsonOption = False,
) -> None:
    """Give keyd shares until it is unsealed. Each custodian types their own; nothing is shown.

    Enter alone leaves the rest to somebody else. keyd keeps shares for 15 minutes.
    """
    printer = Printer(as_json=as_json)
    no_core_dump()
    with admin_client(admin) as client:
        state = client.ask(ForgetShares() if forget else AskSeal())
        if not show and not forget:
            if not state.sealed:
                raise NotSealed
            state = (
                _give_files(client, share_file, printer)
                if share_file
                else _give_typed(client, printer)
            )
    printer.tell(_plain(state), _lines(state))


@using(officers_desk)
def seal(
    desk: Desk,
    reason: Annotated[str, typer.Option("--reason", help="Why, for the journal.")] = "",
) -> None:
    """Seal keyd: every key in its memory is wiped, and nothing is served until it is unsealed."""
    desk.ask(SealNow(reason))
    desk.tell({"sealed": True}, ("keyd is sealed: it holds no key.",))


@using(officers_desk, about_proposal)
def rekey(
    desk: Desk,
    about: About,
    threshold: Annotated[
        int, typer.Option("--threshold", min=2, max=act.MAX_SHARES, help="How many shares open it.")
    ],
    custodian: Annotated[
        list[str], typer.Option("--custodian", metavar="CODE", help="Who gets a share; repeated.")
    ],
) -> None:
    """Propose a new seal: new shares, new wrapping keys. LOCAL decides it.

    When it is approved, every custodian takes a share (keyd share take) and proves to have it (keyd share confirm).
    """
    propose(desk, about, act.Rekey(threshold, tuple(custodian)))


@share_app.command()
@using(officers_desk)
def take(desk: Desk, proposal: IdArgument, to: ToOption = None) -> None:
    """Take the share that an approved rekey made for you: an envelope's text."""
    wanted = proposal_id(proposal)
    require_place(desk, to)
    no_core_dump()
    action = action_of(desk.ask(ShowProposal(wanted)).proposal)
    if not isinstance(action, act.Rekey):
        raise ShareRefused("the proposal is no rekey")
    plaintext = opened(desk, desk.ask(Take(wanted)).envelope)
    try:
        share = decode_share(plaintext.removeprefix(KIND_SHARE).decode("ascii"))
    except UnicodeDecodeError:
        raise ShareRefused("what keyd gave is no share") from None
    with admin_client(desk.admin) as client:
        store_id = client.ask(AskSeal()).store_id
    of = len(action.custodians)
    hand_over(share_envelope(share, of, store_id, desk.title), to, f"share {share.number} of {of}")
    where = f"is in {to}" if to else "was shown"
    plain = {"number": share.number, "of": of, "threshold": share.threshold}
    desk.tell(
        plain | ({"file": str(to)} if to else {}),
        (
            f"share {share.number} of {of} {where}.",
            f"Confirm that you have it: keyd share confirm {wanted.hex()}",
        ),
    )


@share_app.command()
@using(officers_desk)
def confirm(
    desk: Desk,
    proposal: IdArgument,
    share_file: Annotated[
        Path | None,
        typer.Option(
            "--share-file", metavar="FILE", help="The envelope, mode 0600; else it is typed."
        ),
    ] = None,
) -> None:
    """Prove that you have the new share, from its envelope; with the last custodian's, the new seal takes effect."""
    wanted = proposal_id(proposal)
    no_core_dump()
    outcome = desk.ask(ShowProposal(wanted))
    salt = outcome.result.get("salt")
    if salt is None:
        raise ShareRefused("there is no seal that waits to be confirmed")
    text = _share_in(share_file) if share_file else _typed_share("The new share, as printed: ")
    commitment = share_commitment(decode_share(text), salt)
    confirmed = desk.ask(ConfirmShare(wanted, commitment))
    report = confirmed.proposal
    desk.tell(
        plain_outcome(confirmed),
        progress_lines(report, action_of(report))
        if report.waiting_for
        else ("The new seal holds: old shares open nothing any more. Destroy them.",),
    )


def _give_files(client: Client, files: list[Path], printer: Printer) -> SealState:
    state = client.ask(AskSeal())
    for file in files:
        try:
            state = client.ask(GiveShare(_share_in(file)))
        except Refusal as refusal:
            raise type(refusal)(f"{file}: {refusal.detail}") from None
        if not state.sealed:
            break
        printer.remark(_progress(state))
    return state


def _give_typed(client: Client, printer: Printer) -> SealState:
    if printer.as_json or not is_interactive():
        raise typer.BadParameter("a share is typed at a terminal: say --share-file FILE")
    state = client.ask(AskSeal())
    wrong = 0
    typer.echo(_progress(state))
    while state.sealed:
        text = _typed_share("Next share, as printed (not shown; Enter alone ends): ")
        if not text:
            break
        try:
            state = client.ask(GiveShare(text))
        except ShareRefused as refusal:
            wrong += 1
            if wrong == _MAX_WRONG:
                raise
            typer.echo(f"keyd: {refusal.status.name}: {refusal}", err=True)
        else:
            typer.echo(_progress(state))
    return state


def _typed_share(prompt: str) -> str:
    with ask_hidden(prompt, "say --share-file FILE") as typed:
        # A share travels as text and ends in this process, which lives for this one command.
        return typed.text().strip()


def _share_in(file: Path) -> str:
    with read_hidden(file) as hidden:
        return share_line(hidden.text())


def _progress(state: SealState) -> str:
    if not state.sealed:
        return "keyd is unsealed."
    given = f" (shares {', '.join(map(str, state.given))})" if state.given else ""
    return f"{len(state.given)} of {state.threshold} shares are in{given}."


def _plain(state: SealState) -> dict[str, Any]:
    return {
        "sealed": state.sealed,
        "store_id": state.store_id.hex(),
        "tier": state.tier,
        "generation": state.generation,
        "threshold": state.threshold,
        "given": list(state.given),
        "keepers": list(state.keepers),
        "public_key": state.public_key.hex().upper(),
        "fingerprint": fingerprint_of(state.public_key) if state.public_key else "",
    }


def _lines(state: SealState) -> Iterator[str]:
    yield f"store        {groups_of_4(state.store_id.hex().upper())}, {state.tier}"
    others = f"; also by {', '.join(state.keepers)}" if state.keepers else ""
    yield f"seal         {state.generation}, opened by {state.threshold} shares{others}"
    yield _progress(state)
    if not state.sealed:
        yield f"public key   {state.public_key.hex().upper()[:66]}"
        yield f"             {state.public_key.hex().upper()[66:]}"
        yield f"fingerprint  {fingerprint_of(state.public_key)}"
