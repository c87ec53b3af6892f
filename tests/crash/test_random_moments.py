"""Killed at any moment, under load and through many restarts: nothing answered is lost and no ceiling is exceeded."""

from __future__ import annotations

import random
import secrets
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from keyd.audit.query import UseRecord, query
from keyd.client import Backoff, Client, ConnectionLost, Enrolment
from keyd.crypto.algorithms import Algorithm
from keyd.crypto.secret import SecretKey
from keyd.errors import KeyExhausted, Overloaded, Refusal
from keyd.keys.block import Domain, KeyPlace, Use
from keyd.keys.roots import active_root
from keyd.keys.synthetic import synthetic_terminal_key
from keyd.protocol.messages.custody import Propose, Reject
from tests.crash.grounds import END_SECONDS, TERMINAL, Arm, Grounds
from tests.crash.rounds import Kill, NamedStep
from tests.crash.scenario import IRK, METHOD, PHASES, QUESTION, some_action
from tests.crash.verdict import look, require_journal

if TYPE_CHECKING:
    from keyd.keys.block import KeyHeader
    from tests.crash.grounds import Daemon
    from tests.crash.rounds import Stage

NOWHERE = NamedStep(0, "", "", 0)

KILLS = 3
LONGEST_LIFE = 0.6

RESTARTS = 25
CEILING = 300
LEASE = 3

LOADS = 6
PEERS = 3
PIPELINED = 40
DECISIONS = 2


@pytest.mark.parametrize("phase", PHASES)
def test_a_kill_at_any_moment(stage: Stage, phase: str) -> None:
    """The same holds as at named steps, wherever the program is just then; once each as an operator starts it."""
    seed = secrets.randbelow(1_000_000)
    chance = random.Random(seed)  # noqa: S311 - moments, not secrets
    kill = Kill(phase, NOWHERE, "before")
    try:
        for _ in range(KILLS):
            stage.play(kill, seconds=0.05 + chance.random() * LONGEST_LIFE)
        stage.play(kill, seconds=0.5 + chance.random(), as_program=True)
    except AssertionError as error:
        raise AssertionError(f"seed {seed}: {error}") from error


def key_at(address: int, ceiling: int = 0) -> tuple[KeyHeader, SecretKey]:
    """A random root of SOCIAL that is active."""
    key = SecretKey.generate(Algorithm.SM4)
    place = KeyPlace(address, "IRK", 1, Algorithm.SM4, Use.INTERNAL)
    header = active_root(place, 3, key, secrets.token_bytes(16), "a test")
    fields = {name: getattr(header, name) for name in header.__struct_fields__}
    return type(header)(**(fields | {"ceiling": ceiling})), key


def good_uses(grounds: Grounds) -> int:
    """How many good answers the journal has."""
    return sum(
        isinstance(record, UseRecord) and record.method == METHOD and record.status == 0
        for record in query(grounds.journal)
    )


def exhaust(daemon: Daemon) -> int:
    """Use the key until it has been refused for a second, or the daemon dies; return how often it was answered."""
    good = 0
    refused_since = None
    try:
        daemon.ready()
        while refused_since is None or time.monotonic() - refused_since < 1.0:
            try:
                daemon.terminal.ask(QUESTION)
            except (KeyExhausted, Overloaded):
                refused_since = refused_since or time.monotonic()
                time.sleep(0.002)
            else:
                good += 1
                refused_since = None
    except ConnectionLost:
        pass
    return good


def test_a_ceiling_holds_over_all_restarts(stage: Stage) -> None:
    """However often keyd dies, a key is used at most as often as it may be, and each death costs a lease at most."""
    seed = secrets.randbelow(1_000_000)
    chance = random.Random(seed)  # noqa: S311 - moments, not secrets
    grounds = Grounds.found(stage.folder(), [key_at(IRK, CEILING)])
    answered = deaths = 0
    with stage.zygote() as zygote:
        for turn in range(RESTARTS):
            # In the midst of leases: a use is one step or so, and a lease has some ten.
            arm = Arm(chance.randrange(20, 120), chance.choice(("before", "half", "after")))
            daemon = zygote.start(grounds, grounds.configure(), arm)
            answered += exhaust(daemon)
            deaths += daemon.end() != 0
            sight = look(grounds, stage.folder())
            require_journal(grounds, sight.anchors, may_be_torn=True)
            recorded = good_uses(grounds)
            assert answered <= recorded <= answered + deaths, f"seed {seed}, turn {turn}"
            assert recorded <= sight.uses <= CEILING, f"seed {seed}, turn {turn}"
            # What it held, and what was on its way.
            assert sight.uses <= recorded + deaths * 3 * LEASE, f"seed {seed}, turn {turn}"
        daemon = zygote.start(grounds, grounds.configure())
        answered += exhaust(daemon)
        assert daemon.end() == 0
    assert look(grounds, stage.folder()).uses == CEILING
    recorded = good_uses(grounds)
    assert answered <= recorded <= CEILING
    assert recorded >= CEILING - deaths * 3 * LEASE
    assert deaths > RESTARTS / 2


@pytest.mark.parametrize("durability", ["written", "fsync"])
def test_under_load_every_answer_has_its_record(stage: Stage, durability: str) -> None:
    """Terminals ask without a pause and officers propose, keyd is killed: what was answered is in the journal."""
    seed = secrets.randbelow(1_000_000)
    chance = random.Random(seed)  # noqa: S311 - moments, not secrets
    grounds = Grounds.found(stage.folder(), [key_at(IRK)])
    seen: Counter[str] = Counter()
    configured = grounds.configure(f'durability = "{durability}"', "segment_bytes = 1048576")
    with stage.zygote() as zygote:
        for turn in range(LOADS):
            daemon = zygote.start(grounds, configured)
            daemon.ready()
            # Each counts for itself: threads that add to one number lose some.
            counts: list[Counter[str]] = [Counter() for _ in range(PEERS + 1)]
            workers = [
                threading.Thread(target=propose_on, args=(daemon, counts[0])),
                *(threading.Thread(target=ask_on, args=(grounds, one)) for one in counts[1:]),
            ]
            for worker in workers:
                worker.start()
            patience = time.monotonic() + END_SECONDS
            while counts[0]["decided"] < DECISIONS and time.monotonic() < patience:
                time.sleep(0.01)
            time.sleep(chance.random() * 0.2)
            daemon.shoot()
            for worker in workers:
                worker.join()
            daemon.kill()
            for one in counts:
                seen.update(one)
            sight = look(grounds, stage.folder())
            require_journal(grounds, sight.anchors, may_be_torn=True)
            recorded = good_uses(grounds)
            assert seen["answered"] <= recorded <= seen["asked"], f"seed {seed}, turn {turn}"
            proposals = sum(one.name.startswith("proposal.") for one in sight.happenings)
            assert seen["decided"] <= proposals <= seen["decided"] + turn + 1
        daemon = zygote.start(grounds, configured)
        daemon.ready()
        assert daemon.end() == 0
    sight = look(grounds, stage.folder())
    require_journal(grounds, sight.anchors, may_be_torn=False)
    assert not sight.waiting
    # Else the kills came too early to show anything.
    assert seen["answered"] > 1000
    assert seen["decided"] >= LOADS * DECISIONS


def ask_on(grounds: Grounds, seen: Counter[str]) -> None:
    enrolment = Enrolment(TERMINAL, synthetic_terminal_key(TERMINAL))
    address = f"unix:{grounds.socket}"
    with Client(address, enrolment, timeout=END_SECONDS, backoff=Backoff(attempts=1)) as client:
        try:
            while True:
                seen["asked"] += PIPELINED
                answers: list[Any] = client.ask_all([QUESTION] * PIPELINED)
                seen["answered"] += sum(not isinstance(one, Refusal) for one in answers)
        except ConnectionLost:
            pass


def propose_on(daemon: Daemon, seen: Counter[str]) -> None:
    try:
        action = some_action(daemon)
        while True:
            made = daemon.officer(Domain.SOCIAL, "proposer").ask(Propose(action))
            seen["decided"] += 1
            daemon.officer(Domain.SOCIAL, "approver").ask(Reject(made.proposal.proposal_id))
            seen["decided"] += 1
    except ConnectionLost:
        pass
