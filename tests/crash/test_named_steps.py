"""Killed before, in the midst of or after any call that changes a file: what was answered holds, nothing is half done.

Each round plays a phase of a custody's life on the files that the phase before has left, with a daemon that dies at a
named step. Then the files are judged, a new daemon starts on them, unseals, serves what was acknowledged and works.
Most rounds fork the daemon from a process that has imported it; one per phase and manner starts it as a program.
KEYD_CRASH_ROUNDS=all plays every step in every manner, which takes thousands of rounds.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.crash.rounds import MANNERS, every_kill, play_all, some_kills
from tests.crash.scenario import PHASES

if TYPE_CHECKING:
    from tests.crash.rounds import Stage

IS_WHOLE = os.environ.get("KEYD_CRASH_ROUNDS") == "all"

# How many steps of one kind during one question of a client are passed over, in CI.
STRIDE = 100


@pytest.mark.parametrize("phase", PHASES)
def test_a_kill_at_a_named_step_loses_nothing_and_leaves_nothing_half_done(
    stage: Stage, phase: str
) -> None:
    played = stage.phases[phase]
    kills = every_kill(played) if IS_WHOLE else some_kills(played, STRIDE)
    results, wrong = play_all(stage, kills)
    assert not wrong, f"{len(wrong)} of {len(kills)}: {wrong[:3]}"
    killed = sum(result.was_killed for result in results)
    # Threads do not take the same turns each time, so the last steps of some rounds do not come.
    assert killed >= 0.9 * len(kills), f"only {killed} of {len(kills)} were killed"


def test_every_kind_of_step_is_among_them(stage: Stage) -> None:
    """What is killed in CI covers each kind of call on each file, and each manner of dying."""
    everything = {
        (kill.step.call, kill.step.file)
        for phase in stage.phases.values()
        for kill in every_kill(phase)
    }
    chosen = [kill for phase in stage.phases.values() for kill in some_kills(phase, STRIDE)]
    assert {(kill.step.call, kill.step.file) for kill in chosen} == everything
    assert {kill.when for kill in chosen} == set(MANNERS)
    # The shim sees both: SQLite's files and the journal's.
    assert {"keyd.db-wal", "journal/N.keyd-journal"} <= {file for _, file in everything}


@pytest.mark.parametrize("when", MANNERS)
@pytest.mark.parametrize("phase", ["import", "rekey"])
def test_the_program_itself_dies_no_worse(stage: Stage, phase: str, when: str) -> None:
    """As above, with `python -m keyd.daemon` as an operator starts it."""
    kills = [kill for kill in every_kill(stage.phases[phase]) if kill.when == when]
    middle = [kill for kill in kills if kill.step.during == len(PHASES[phase])]
    assert stage.play(middle[len(middle) // 2], as_program=True).was_killed
