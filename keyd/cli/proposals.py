"""`keyd proposals`, `proposal show`, `approve`, `reject`: reading what is proposed, and deciding on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from keyd.cli.common import Desk, hex_bytes, officers_desk, using
from keyd.cli.files import require_new, write_new
from keyd.cli.keyboard import ask_open, is_interactive
from keyd.cli.words import (
    action_of,
    headers_of,
    moment,
    one_line,
    plain_outcome,
    plain_proposal,
    progress_lines,
    proposal_lines,
    result_lines,
)
from keyd.client.officer import all_keys, all_proposals
from keyd.custody.proposals import PROPOSAL_ID_BYTES
from keyd.errors import BadParameter
from keyd.protocol.messages.custody import (
    Approve,
    Reject,
    ShowProposal,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keyd.protocol.messages.custody import ProposalOutcome, ProposalReport

app = typer.Typer(help="Look at one proposal.", no_args_is_help=True)

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The proposal, 16 hex digits.")]
IdArguments = Annotated[
    list[str], typer.Argument(metavar="ID", help="Proposals, 16 hex digits each.")
]
ToOption = Annotated[
    Path | None,
    typer.Option("--to", metavar="FILE", help="Write the wrapped key there. Never overwritten."),
]

# What is written to a file as it is, because another keyd takes it in.
_WRAPPED: Final = "wrapped"


@using(officers_desk)
def proposals(
    desk: Desk,
    everything: Annotated[
        bool, typer.Option("--all", help="Those that are decided as well.")
    ] = False,
) -> None:
    """List the domain's proposals, newest first."""
    found = all_proposals(desk, closed=everything)
    keys = all_keys(desk) if found and not desk.as_json else ()
    headers = headers_of(keys)
    desk.tell(
        [plain_proposal(report) for report in found],
        (
            f"{report.proposal_id.hex()}  {report.state:8}  {report.proposed_by:12}  "
            f"{one_line(report, headers)}"
            for report in found
        )
        if found
        else ("nothing is proposed",),
    )


@app.command()
@using(officers_desk)
def show(desk: Desk, proposal: IdArgument, to: ToOption = None) -> None:
    """Say in words what a proposal does, what it waits for and what came of it."""
    outcome = desk.ask(ShowProposal(proposal_id(proposal)))
    _write_wrapped(outcome, to)
    _tell(desk, outcome)


@using(officers_desk)
def approve(
    desk: Desk,
    proposal: IdArguments,
    yes: Annotated[bool, typer.Option("--yes", help="Do not show it and ask first.")] = False,
    to: ToOption = None,
) -> None:
    """Approve what another officer proposed: it is carried out at once.

    At a terminal each proposal is shown first, and one has to say yes. With --json it is not.
    """
    ids = [proposal_id(text) for text in proposal]
    if to is not None:
        if len(ids) != 1:
            raise typer.BadParameter(
                "one file holds one key: approve one proposal", param_hint="--to"
            )
        require_new(to)
    done: list[ProposalOutcome] = []
    for wanted in ids:
        if not yes and not desk.as_json and is_interactive():
            _tell(desk, desk.ask(ShowProposal(wanted)))
            if ask_open("Approve it? Type yes: ", "say --yes").lower() != "yes":
                raise BadParameter(f"{wanted.hex()} was not approved")
        outcome = desk.ask(Approve(wanted))
        _write_wrapped(outcome, to)
        done.append(outcome)
        if not desk.as_json:
            for line in _approved_lines(outcome, to):
                typer.echo(line)
    if desk.as_json:
        plain = [plain_outcome(outcome) for outcome in done]
        desk.tell(plain[0] if len(plain) == 1 else plain, ())


@using(officers_desk)
def reject(desk: Desk, proposal: IdArguments) -> None:
    """Reject a proposal, or take one's own back."""
    done = [desk.ask(Reject(proposal_id(text))) for text in proposal]
    plain = [plain_outcome(outcome) for outcome in done]
    desk.tell(
        plain[0] if len(plain) == 1 else plain,
        (f"{outcome.proposal.proposal_id.hex()} is rejected" for outcome in done),
    )


def proposal_id(text: str) -> bytes:
    """Read a proposal's id, whole: whoever approves the beginning of one may approve another.

    Raises:
        typer.BadParameter: it is none.
    """
    return hex_bytes(text, PROPOSAL_ID_BYTES, "a proposal's id")


def _tell(desk: Desk, outcome: ProposalOutcome) -> None:
    keys = () if desk.as_json else all_keys(desk)
    desk.tell(plain_outcome(outcome), proposal_lines(outcome, headers_of(keys)))


def _write_wrapped(outcome: ProposalOutcome, to: Path | None) -> None:
    if to is None:
        return
    wrapped = outcome.result.get(_WRAPPED)
    if wrapped is None:
        raise BadParameter("this proposal gave no wrapped key")
    write_new(to, wrapped)


def _approved_lines(outcome: ProposalOutcome, to: Path | None) -> Iterator[str]:
    report: ProposalReport = outcome.proposal
    action = action_of(report)
    yield f"{report.proposal_id.hex()} is {report.state} since {moment(report.decided_at)}: {one_line(report)}"
    yield from progress_lines(report, action)
    if to is None:
        yield from result_lines(outcome)
    else:
        yield f"the wrapped key is in {to}, check value {outcome.result['kcv'].hex().upper()}"
