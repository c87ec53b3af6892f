"""Five hundred terminals, eight members of which two fail: nothing is lost, nothing is another's, and all is fair.

What is insisted on all the time is in `soak_watch` and `soak_terminal`; here is how it must have come out.
"""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Final

import trio
import trio.testing

from keyd.psam.pool import Strategy
from tests.lending.soak import FLAKY, MEMBERS, hour, real, soak
from tests.lending.soak_result import Result, summary, write

if TYPE_CHECKING:
    from pathlib import Path

SEED: Final = 20261124

# All terminals want the same things equally often. How long they think, and whether they get a PSAM that fails, is
# chance: of some seventeen things that each gets done, the luckiest does 23 and the unluckiest 11. Whoever was passed
# over would be far below.
MOST_TO_LEAST: Final = 3.0

# In a rush some wait too long, on average one in thirty. They are other ones each time.
LEAST_SHARE: Final = 0.6

RESULT: Final = Result(
    seconds=300.0,
    is_exact=False,
    terminals=500,
    strategy="least-used",
    seed=7,
    done={"close_waiting": 1234},
    refused={"a command: PsamGone": 5},
    turns={"reader 1": 17, "virtual 6": 2000},
    failures={"reader 1": 3, "virtual 6": 0},
    ran_out=4,
    transaction_numbers=1000,
    least_served=5,
    most_served=9,
    least_granted_share=0.9,
    tickets=2020,
    expired=3,
    mean_wait=0.1,
    wait_of_99_percent=0.5,
    longest_wait=0.7,
    most_overtaken=8,
    faults=[],
)


# Not a trio test: the clock is the run's own, and the command runs it the same way.
def test_an_hour_of_a_mock_clock() -> None:
    clock = trio.testing.MockClock(autojump_threshold=0)
    result = trio.run(soak, hour(SEED), clock=clock)
    assert not result.faults, summary(result)
    assert (result.terminals, len(result.turns)) == (500, MEMBERS)
    # All that may happen has happened, often.
    assert len(result.done) == 9
    assert min(result.done.values()) > 100
    assert min(result.turns.values()) > 100
    assert all(result.failures[f"reader {number}"] > 5 for number in FLAKY)
    assert result.ran_out > 100
    assert result.expired > 10
    assert result.transaction_numbers > 1000
    # Nobody starves. No wait is longer than the limit; who is refused was overtaken by nobody twice.
    assert result.longest_wait <= hour(SEED).limits.wait_seconds
    assert 1 < result.most_overtaken < result.terminals
    assert result.most_served <= MOST_TO_LEAST * result.least_served, summary(result)
    assert result.least_granted_share >= LEAST_SHARE, summary(result)


def test_a_few_real_seconds() -> None:
    seed = random.randrange(2**31)  # noqa: S311 - another each time; the summary has it
    result = trio.run(soak, real(5.0, seed, Strategy.AFFINITY))
    assert not result.faults, summary(result)
    assert sum(result.turns.values()) > 0


def test_a_result_is_kept_with_commit_and_machine(tmp_path: Path) -> None:
    path = write(RESULT, tmp_path)
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["commit"].rstrip("+") in path.name
    assert {"processor", "kernel", "python"} <= set(content["machine"])
    assert content["result"]["turns"] == RESULT.turns
    shown = path.with_suffix(".md").read_text(encoding="utf-8")
    assert "| close waiting | 1,234 |" in shown
    assert "| virtual 6 | 2,000 | 0 |" in shown
    assert "- Faults: none." in shown
