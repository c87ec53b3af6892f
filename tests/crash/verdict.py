"""What must hold after a kill: looked at from outside first, then by a new daemon on the same files.

What is looked at from outside is a copy, so that the new daemon finds the files as the dead one left them.
"""

from __future__ import annotations

import shutil
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from keyd.audit.query import EventRecord, UseRecord, query
from keyd.audit.records import Anchor
from keyd.audit.verify import verify
from keyd.crypto.shares import encode_share
from keyd.custody import actions as act
from keyd.custody.backup import verify_backup
from keyd.custody.bodies import SealBody, decode
from keyd.custody.contents import open_contents
from keyd.custody.seal import open_seal, unwrap_from_keeper
from keyd.errors import ShareRefused
from keyd.protocol.messages.custody import GiveShare
from keyd.store.database import Store
from keyd.store.rows import Kind
from tests.crash.scenario import CEILING, LEASE, METHOD, state_of, stored_keys

if TYPE_CHECKING:
    from pathlib import Path

    from tests.crash.grounds import Daemon, Grounds
    from tests.crash.scenario import Facts, Run, State

INSTANCE: Final = "keyd"


class Happening(NamedTuple):
    """A change that the outbox has carried: its number there, and what it says."""

    outbox: int
    name: str
    by: str
    action: str


class Sight(NamedTuple):
    """What is in the files, without any daemon."""

    happenings: list[Happening]
    """Those in the journal and those that wait for it, each once."""
    written: int
    """How many of them are in the journal."""
    twice: int
    """How many the journal has more than once; they bear their number."""
    good: int
    """Uses of the counted key that the journal has."""
    uses: int
    """Uses of it that the store has handed out."""
    waiting: int
    anchors: list[Anchor]


def _happening(outbox: int, name: str, fields: dict[str, Any]) -> Happening:
    by = fields.get("officer") or fields.get("by") or fields.get("reason") or ""
    return Happening(outbox, name, str(by), str(fields.get("action", "")))


def look(grounds: Grounds, aside: Path) -> Sight:
    """Look at the files of a daemon that is dead."""
    url = grounds.url
    if grounds.database is None:
        aside.mkdir()
        for path in grounds.store.parent.glob("keyd.db*"):
            shutil.copy(path, aside / path.name)
        url = f"sqlite:///{aside}/keyd.db"
    store = Store.open(url)
    try:
        snapshot = store.load()
        waiting = store.outbox(INSTANCE)
        anchors = [Anchor(one.sequence, one.link) for one in store.anchors(INSTANCE)]
    finally:
        store.close()
        shutil.rmtree(aside, ignore_errors=True)
    body = next(decode(row, SealBody) for row in snapshot.rows if row.kind is Kind.SEAL)
    seal_key = unwrap_from_keeper(body.keepers[0], grounds.keeper_key())
    contents = open_contents(snapshot, open_seal(seal_key, snapshot.rows))
    for proposal in contents.proposals.values():
        _require_whole(proposal, contents.keys)
    uses = [
        held.header.uses
        for held in contents.keys.values()
        if held.header.ceiling and held.header.levels
    ]
    happenings: dict[int, Happening] = {}
    twice = good = 0
    for record in query(grounds.journal) if grounds.journal.exists() else ():
        if isinstance(record, UseRecord):
            is_counted = record.key is not None and record.key == label(contents.keys)
            good += record.method == METHOD and record.status == 0 and is_counted
        elif isinstance(record, EventRecord) and "outbox" in record.fields:
            number = record.fields["outbox"]
            one = _happening(number, record.name, record.fields)
            assert happenings.setdefault(number, one) == one, "one number, two records"
            twice += 1
    twice -= len(happenings)
    written = len(happenings)
    for number, encoded in waiting:
        event = msgspec.msgpack.decode(encoded, type=dict[str, Any])
        one = _happening(number, event.pop("event"), event)
        assert happenings.setdefault(number, one) == one
    in_order = [happenings[number] for number in sorted(happenings)]
    return Sight(in_order, written, twice, good, uses[0] if uses else 0, len(waiting), anchors)


def label(keys: Any) -> str | None:
    """Return the counted key's name in the journal."""
    for held in keys.values():
        if held.header.ceiling and held.header.levels:
            found: str = held.header.label
            return found
    return None


def _require_whole(proposal: Any, keys: Any) -> None:
    """A proposal is done if and only if its effect is there: both are one commit."""
    is_done = proposal.state == "done"
    action = proposal.action
    if isinstance(action, act.NewKey):
        made = [one for one in keys if one == proposal.result.get("key_id")]
        assert len(made) == is_done, f"{proposal.note} is {proposal.state}, and half done"
    elif isinstance(action, act.Destroy):
        assert (keys[action.key_id].header.state == "destroyed") is is_done


def require_journal(grounds: Grounds, anchors: list[Anchor], *, may_be_torn: bool) -> None:
    """The journal is good, through every anchor; a torn tail is a note. It may not have been begun."""
    if not grounds.journal.exists() or not any(grounds.journal.glob("*.keyd-journal")):
        assert may_be_torn
        assert not anchors
        return
    report = verify(grounds.journal, expected=anchors)
    assert report.is_good, report.bad
    assert may_be_torn or report.torn is None


class Expected(NamedTuple):
    """What a phase does when nobody is killed: after each step, the happenings so far and the state."""

    before: Sight
    happenings: list[Happening]
    counts: list[int]
    """Happenings after each step: the start, the phase's own, the end."""
    states: list[State]


def judge(
    grounds: Grounds, run: Run, acknowledged: int, expected: Expected, aside: Path
) -> tuple[int, Sight]:
    """Judge what a killed daemon has left, before anybody else opens it.

    Returns how many of the phase's changes were made.
    """
    sight = look(grounds, aside)
    require_journal(grounds, sight.anchors, may_be_torn=True)
    base = len(expected.before.happenings)
    assert sight.happenings[:base] == expected.before.happenings
    made = _nameless(sight.happenings[base:])
    ours = _nameless(expected.happenings[base:])
    counts = expected.counts
    least = counts[acknowledged - 1] if acknowledged else 0
    most = counts[min(acknowledged, len(counts) - 1)]
    # Everything that was answered is made, and recorded before it was answered; of what was under way, a beginning.
    assert least <= len(made) <= most, (acknowledged, least, len(made), most)
    assert made == ours[: len(made)], "other changes than were asked for"
    assert sight.written - base >= least, "an answer has left before its record"
    # Uses: recorded before they were answered, and handed out before they were made.
    phase_good = run.facts.good
    assert sight.good >= phase_good, "an answer has left before its use was recorded"
    assert sight.good <= phase_good + 1
    assert sight.good <= sight.uses <= CEILING, (sight.good, sight.uses)
    assert sight.uses <= sight.good + 3 * LEASE, "a crash costs more than its lease"
    return len(made), sight


def _nameless(happenings: list[Happening]) -> list[tuple[str, str, str]]:
    return [happening[1:] for happening in happenings]


def judge_restarted(
    daemon: Daemon,
    run: Run,
    made: int,
    acknowledged: int,
    expected: Expected,
    aside: Path,
    *,
    by_shares: bool,
    before: Sight,
) -> Sight:
    """Judge what a new daemon serves, end it, and judge what that has left."""
    facts = run.facts
    seal = daemon.ready()
    if by_shares:
        assert seal.sealed
        _unseal(daemon, facts, seal.generation)
    else:
        assert not seal.sealed, daemon.said()
    _require_state(daemon, made, acknowledged, expected)
    keys = stored_keys(daemon)
    for note, (key_id, kcv) in facts.keys.items():
        assert keys[key_id].header["kcv"] == kcv.hex().upper(), note
    if facts.backup:
        verify_backup(facts.backup)
    current = _current(keys)
    good = facts.good
    if current is not None:
        # The same key as before: `use` compares what it says.
        run.daemon = daemon
        run.use(current)
    # Work goes on.
    any_key = next(iter(keys), None)
    if any_key is not None:
        run.daemon = daemon
        run.propose("afterwards", act.Destroy(any_key))
        run.reject("afterwards")
    assert daemon.end() == 0, daemon.said()
    sight = look(daemon.grounds, aside)
    require_journal(daemon.grounds, sight.anchors, may_be_torn=False)
    assert not sight.waiting, "records stay in the outbox"
    later = sight.happenings[len(before.happenings) :]
    assert sight.happenings[: len(before.happenings)] == before.happenings
    names = ["unsealed", *(["proposal.made", "proposal.rejected"] if any_key is not None else [])]
    assert [one.name for one in later] == names, "records are lost or too many"
    assert later[0].by == ("shares" if by_shares else "credential")
    numbers = [one.outbox for one in sight.happenings]
    assert all(a < b for a, b in pairwise(numbers))
    # An orderly end costs no use: what was leased and not used has gone back.
    spent = (sight.uses - before.uses, facts.good - good, sight.good - before.good)
    assert len(set(spent)) == 1, spent
    # What was on its way from the outbox is there again at most: what one question of a client has made.
    assert sight.twice <= 2
    return sight


def _unseal(daemon: Daemon, facts: Facts, generation: int) -> None:
    known = [*daemon.grounds.shares, *facts.new_shares.values()]
    for share in [share for share in known if share.generation != generation][:2]:
        try:
            daemon.seal.ask(GiveShare(encode_share(share)))
        except ShareRefused:
            continue
        raise AssertionError("a share of a seal that does not hold was taken")
    # The seal that holds is one whose shares are in hand: nobody is locked out.
    held = [share for share in known if share.generation == generation]
    daemon.seal.ask(GiveShare(encode_share(held[0])))
    assert not daemon.seal.ask(GiveShare(encode_share(held[2]))).sealed


def _require_state(daemon: Daemon, made: int, acknowledged: int, expected: Expected) -> None:
    counts, states = expected.counts, expected.states
    under_way = min(acknowledged, len(counts) - 1)
    before = states[max(acknowledged - 1, 0)]
    # A step's last record is of the commit that changes what is held.
    is_done = made == counts[under_way] and acknowledged < len(states)
    wanted = states[under_way] if is_done else before
    assert state_of(daemon) == wanted, f"half done, or done without a record: {made} of {counts}"


def _current(keys: dict[bytes, Any]) -> str | None:
    active = [
        key.header["version"]
        for key in keys.values()
        if key.header["state"] == "active" and key.header["name"] == "IRK"
    ]
    return max(active, default=None)
