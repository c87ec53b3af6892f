"""Housekeeping: what the store should keep no longer, from what is held of it and the time.

Keys whose waiting period is over become headers; old proposals go, and what officers were to take of the others.
These are pure decisions, as those of `keyd.custody.carrying_out`, but nobody's: time decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyd.custody import lifecycle
from keyd.custody.bodies import seal_key_row
from keyd.custody.proposals import MAX_CLOSED_PROPOSALS, put_proposal
from keyd.custody.work import Outcome
from keyd.keys.block import KeyState
from keyd.store.rows import Drop, Kind, Put

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyd.custody.contents import Contents
    from keyd.store.rows import Change


def sweep(contents: Contents, now: int, random_bytes: Callable[[int], bytes]) -> Outcome:
    """Return what is to be written, and the events; no changes, if there is nothing to do."""
    outcome = _gone_keys(contents, now, random_bytes)
    outcome.changes += _tidied_proposals(contents, now, random_bytes)
    return outcome


def _gone_keys(contents: Contents, now: int, random_bytes: Callable[[int], bytes]) -> Outcome:
    outcome = Outcome()
    for held in contents.keys.values():
        header = held.header
        is_over = header.state is KeyState.DESTROYED and now >= header.destroy_after
        if held.key is None or not is_over:
            continue
        lmk = contents.seal.wrapping_keys[header.domain]
        gone = seal_key_row(lmk, lifecycle.changed(header), None, random_bytes)
        outcome.changes.append(Put(gone))
        outcome.events.append(
            {
                "event": "key.gone",
                "domain": header.domain.value,
                "key": header.label,
                "key_id": header.key_id.hex(),
            }
        )
    return outcome


def _tidied_proposals(
    contents: Contents, now: int, random_bytes: Callable[[int], bytes]
) -> list[Change]:
    over = [p for p in contents.proposals.values() if p.is_over(now)]
    over.sort(key=lambda p: p.expires_at)
    too_many = max(0, len(over) - MAX_CLOSED_PROPOSALS)
    changes: list[Change] = [
        Drop(Kind.PROPOSAL, p.proposal_id, p.revision) for p in over[:too_many]
    ]
    # Whoever was to have a component or a share has it by then; backups need no copy of it.
    changes += [
        put_proposal(contents, p.without_envelopes(), random_bytes)
        for p in over[too_many:]
        if now >= p.expires_at and p.has_envelopes
    ]
    return changes
