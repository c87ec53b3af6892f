"""Making a proposal: what every command that proposes has in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import msgspec
import typer

from keyd.cli.words import describe, headers_of, moment, plain_outcome
from keyd.client.officer import all_keys
from keyd.custody.actions import Rekey
from keyd.errors import BadParameter, KeyNotFound
from keyd.protocol.messages.custody import Propose

if TYPE_CHECKING:
    from keyd.cli.common import Desk
    from keyd.custody import actions as act
    from keyd.protocol.messages.custody import ProposalOutcome

_SECONDS_PER_HOUR: Final = 3600

# A prefix of a key id that is shorter fits too many.
_MIN_PREFIX: Final = 4
_ID_DIGITS: Final = 32


class About(NamedTuple):
    """What a proposal says beside what it proposes."""

    note: str
    lifetime: int


def about_proposal(
    note: Annotated[str, typer.Option("--note", help="A sentence for whoever approves.")] = "",
    hours: Annotated[
        int, typer.Option("--hours", min=0, max=720, help="Hours to decide in; 0: three days.")
    ] = 0,
) -> About:
    """Read what every proposal may say."""
    if len(note) > 200:
        raise typer.BadParameter("a note has at most 200 characters", param_hint="--note")
    return About(note, hours * _SECONDS_PER_HOUR)


def send(desk: Desk, about: About, action: act.Action) -> ProposalOutcome:
    """Propose an action."""
    encoded = msgspec.msgpack.encode(action)
    return desk.ask(Propose(encoded, about.note, about.lifetime))


def propose(desk: Desk, about: About, action: act.Action) -> None:
    """Propose an action, and say what comes next."""
    outcome = send(desk, about, action)
    report = outcome.proposal
    proposal_id = report.proposal_id.hex()
    keys = all_keys(desk) if hasattr(action, "key_id") else ()
    then = " Then every custodian takes and confirms a share." if isinstance(action, Rekey) else ""
    desk.tell(
        plain_outcome(outcome),
        (
            f"Proposal {proposal_id}, to be decided until {moment(report.expires_at)}",
            *describe(action, headers_of(keys)),
            f"Another security officer of {report.domain} reads it (keyd proposal show {proposal_id})",
            f"and approves it (keyd approve {proposal_id}).{then}",
        ),
    )


def find_key(desk: Desk, text: str) -> bytes:
    """Return the id of the key that somebody named: by its id, the beginning of it, or its label.

    Raises:
        KeyNotFound: no key of the domain is called so.
        BadParameter: several are, or it is no name of a key.
    """
    wanted = text.rpartition("/")[2].lower()
    if not set(wanted) <= set("0123456789abcdef") or not _MIN_PREFIX <= len(wanted) <= _ID_DIGITS:
        raise BadParameter(
            f"a key is named by its id in hex, {_MIN_PREFIX} digits of it at least, or by its label"
        )
    if len(wanted) == _ID_DIGITS:
        return bytes.fromhex(wanted)
    found = [key.key_id for key in all_keys(desk) if key.key_id.hex().startswith(wanted)]
    if not found:
        raise KeyNotFound(f"{desk.domain} has no key {text}")
    if len(found) > 1:
        raise BadParameter(f"{len(found)} keys begin with {wanted}: write more digits")
    return found[0]
