"""The soak: many terminals and few members, two of which fail now and then; nothing may be lost, swapped or unfair.

    python -m tests.lending.soak --seconds 300

runs it in real time; the result is a dated pair of files in tests/lending/results/. The tests run an hour of a mock
clock, where limits of time are exact, and a few real seconds. The seed settles what the terminals want and when members
fail; the order in which trio wakes tasks is another each time.
"""

from __future__ import annotations

import argparse
import math
import random
import secrets
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio
import trio.testing
from msgspec import Struct

from keyd.handlers.desk import Wanted
from keyd.keys.ring import KeyRing
from keyd.keys.roots import synthetic
from keyd.lending.lender import Lender, Times
from keyd.psam import Applet
from keyd.psam.pool import PoolLimits, Strategy
from tests.lending.members import ALGORITHMS, CARDS, PLACES, PROFILE, Chip, Fixed, psam
from tests.lending.soak_members import Flaky, misfortune, played
from tests.lending.soak_result import Result, summary, write
from tests.lending.soak_terminal import TRIES, GaveUp, Site, Terminal
from tests.lending.soak_watch import Watch, WatchedPool, check_books, check_cleaning, is_quiet

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyd.lending.member import Member

# Members by number: two chips that fail, three that do not, and three PSAMs that keyd plays, of two slots each so that
# there is a queue for them too.
FLAKY, SOUND, VIRTUAL = (1, 2), (3, 4, 5), (6, 7, 8)
MEMBERS: Final = len(FLAKY + SOUND + VIRTUAL)
SLOTS: Final = 2

# In the first part of every quarter of the run everybody is in a hurry.
RUSHES: Final = 4
RUSH_SHARE: Final = 0.1
RUSH_HASTE: Final = 6.0

HOUR: Final = 3600.0


class Plan(Struct, frozen=True, kw_only=True):
    """How long, how many and how fast, in seconds. `is_exact`: with a mock clock."""

    seconds: float
    terminals: int = 500
    think_seconds: float
    round_trip: float
    longest_pause: float
    limits: PoolLimits
    times: Times
    strategy: Strategy = Strategy.LEAST_USED
    seed: int = 0
    is_exact: bool = False


def hour(seed: int, terminals: int = 500) -> Plan:
    """Return the plan of an hour with a mock clock and chips of a tenth of a second."""
    return Plan(
        seconds=HOUR,
        terminals=terminals,
        think_seconds=240.0,
        round_trip=0.1,
        longest_pause=1.0,
        limits=PoolLimits(wait_seconds=20.0, longest_probe_seconds=30.0),
        times=Times(open_seconds=300.0),
        seed=seed,
        is_exact=True,
    )


def real(seconds: float, seed: int, strategy: Strategy = Strategy.LEAST_USED) -> Plan:
    """Return the plan of real seconds, at which everything happens as much faster as they are fewer than an hour's, but
    not without bound: the processor computes with all chips."""
    haste = max(seconds / HOUR, 1 / 600)
    return Plan(
        seconds=seconds,
        think_seconds=max(240.0 * haste, 4.0),
        round_trip=max(0.1 * haste, 0.002),
        longest_pause=max(1.0 * haste, 0.02),
        limits=PoolLimits(
            wait_seconds=max(20.0 * haste, 1.0),
            turn_seconds=max(10.0 * haste, 1.0),
            idle_seconds=max(3.0 * haste, 0.3),
            first_probe_seconds=max(1.0 * haste, 0.1),
            longest_probe_seconds=max(30.0 * haste, 0.5),
        ),
        times=Times(answer_seconds=max(3.0 * haste, 0.3), open_seconds=max(300.0 * haste, 3.0)),
        strategy=strategy,
        seed=seed,
    )


async def soak(plan: Plan) -> Result:
    """Run it. Whatever is wrong with keyd is in the result's faults, or is raised."""
    run = _Run(plan)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run.lender.run)
        await run.until(lambda: sum(r.state == "ready" for r in run.lender.members()) == MEMBERS)
        nursery.start_soon(run.look)
        async with trio.open_nursery() as unlucky:
            for chip in run.flaky:
                chance = random.Random(f"{plan.seed} {chip.name}")  # noqa: S311 - repeatable chance
                unlucky.start_soon(misfortune, run.source, chip, chance, plan.seconds / HOUR)
            async with trio.open_nursery() as terminals:
                for terminal in run.terminals:
                    terminals.start_soon(run.be, terminal)
            unlucky.cancel_scope.cancel()
        await run.close_what_is_open()
        await run.come_to_rest()
        nursery.cancel_scope.cancel()
    return run.result()


class _Run:
    """One run of a plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.watch = Watch()
        self.pool = WatchedPool(plan.limits, plan.strategy, self.watch)
        self.flaky = [
            Flaky(number, plan.round_trip, random.Random(f"{plan.seed} resets {number}"))  # noqa: S311 - as above
            for number in FLAKY
        ]
        members: list[Member] = [*self.flaky]
        members += [Chip(number, round_trip=plan.round_trip) for number in SOUND]
        members += [
            played(n, psam(n), SLOTS, plan.round_trip, has_threads=not plan.is_exact)
            for n in VIRTUAL
        ]
        self.source = Fixed(members)
        self.lender = Lender(
            self.pool, [self.source], CARDS.keys, PLACES, PROFILE, plan.times, self._say
        )
        self.site = Site(
            lender=self.lender,
            ring=KeyRing(synthetic(CARDS.key_places(ALGORITHMS))),
            limits=plan.limits,
            times=plan.times,
            watch=self.watch,
            alone={f"{n:012}": Applet(psam(n)) for n in (*FLAKY, *SOUND, *VIRTUAL)},
            flaky=frozenset(f"{n:012}" for n in FLAKY),
            round_trip=plan.round_trip,
            longest_pause=plan.longest_pause,
            is_exact=plan.is_exact,
        )
        self.terminals = [
            Terminal(n, self.site, random.Random(f"{plan.seed} {n}"))  # noqa: S311 - as above
            for n in range(plan.terminals)
        ]
        # Nothing that is awaited may take longer. Of a real clock no more is asked than that it ends.
        self._patience = 600.0 if plan.is_exact else max(plan.seconds, 120.0)

    async def be(self, terminal: Terminal) -> None:
        """Be a terminal until the time is over, and end what was begun."""
        plan = self.plan
        chance = random.Random(f"{plan.seed} thinks {terminal.code}")  # noqa: S311 - as above
        began = trio.current_time()
        while trio.current_time() - began < plan.seconds:
            with trio.move_on_after(self._patience) as patience:
                await terminal.run_one()
            if patience.cancelled_caught:
                self.watch.fault(f"{terminal.code} waits without end")
            await trio.sleep(self._thinks(trio.current_time() - began, chance))

    def _thinks(self, at: float, chance: random.Random) -> float:
        """Return how long a terminal thinks, for whom it is `at`: whatever it does, it is there when a rush begins."""
        think = self.plan.think_seconds * chance.uniform(0.5, 1.5)
        hasty = think / RUSH_HASTE
        quarter = self.plan.seconds / RUSHES
        since = at % quarter
        return hasty if since < quarter * RUSH_SHARE else min(think, quarter - since + hasty)

    async def look(self) -> None:
        """Look at the books all the time."""
        since: dict[tuple[str, int], float] = {}
        times = self.plan.times
        while True:
            check_books(self.pool, self.watch)
            now = trio.current_time()
            dirty = check_cleaning(self.pool, since, now)
            # What was on its way may have to be over first. Of a real clock that is not asked.
            if self.plan.is_exact and any(
                at < now - 2 * times.answer_seconds for at in since.values()
            ):
                self.watch.fault(f"not reset in time: {', '.join(dirty)}")
            await trio.sleep(self.plan.seconds / HOUR)

    async def close_what_is_open(self) -> None:
        """Close every second of what terminals left open; the others are closed because nobody uses them."""
        left = [lent for terminal in self.terminals for lent, *_ in terminal.left]
        for lent in left[::2]:
            await lent.close()
        await trio.sleep(self.plan.times.open_seconds)

    async def come_to_rest(self) -> None:
        """Wait until nobody has or wants anything and all members serve; then each has to answer rightly."""
        if not await self.until(lambda: is_quiet(self.lender, self.pool)):
            self.watch.fault(f"something is left: {self.pool.standings()}")
            return
        check_books(self.pool, self.watch)
        for number in self.site.alone:
            if not await self._answers(number):
                self.watch.fault(f"{number} does not answer when all is over")
        if not await self.until(lambda: is_quiet(self.lender, self.pool)):
            self.watch.fault("something is left of the last readings")

    async def _answers(self, number: str) -> bool:
        for _ in range(TRIES):
            lent = await self.lender.open(self.terminals[0].code, Wanted(number))
            with suppress(GaveUp):
                await self.terminals[0].read_with(lent)
                return True
        return False

    async def until(self, is_so: Callable[[], bool]) -> bool:
        """Wait until something is so; False: it did not become so."""
        with trio.move_on_after(self._patience):
            while not is_so():  # noqa: ASYNC110 - it has no event of its own
                await trio.sleep(self.plan.seconds / HOUR)
            return True
        return False

    def result(self) -> Result:
        """Sum up, and say what is wrong with the sums."""
        plan, watch = self.plan, self.watch
        served = [terminal.served for terminal in self.terminals]
        shares = [
            granted / max(granted + watch.expired[code], 1)
            for code, granted in ((one.code, watch.granted[one.code]) for one in self.terminals)
        ]
        waits = sorted(watch.waits)
        names = {member.name for member in self.pool._members}
        troubled = {chip.name for chip in self.flaky}
        for name in names:
            failures = watch.failures[name]
            if plan.is_exact and (name in troubled) != (failures > 0):
                watch.fault(f"{name} failed {failures} times")
        return Result(
            seconds=plan.seconds,
            is_exact=plan.is_exact,
            terminals=plan.terminals,
            strategy=plan.strategy.value,
            seed=plan.seed,
            done=dict(sorted(self.site.done.items())),
            refused=dict(sorted(self.site.refused.items())),
            turns={name: watch.turns[name] for name in sorted(names)},
            failures={name: watch.failures[name] for name in sorted(names)},
            ran_out=watch.ran_out,
            transaction_numbers=sum(len(numbers) for numbers in self.site.numbers.values()),
            least_served=min(served),
            most_served=max(served),
            least_granted_share=round(min(shares), 3),
            tickets=sum(watch.asked.values()),
            expired=sum(watch.expired.values()),
            mean_wait=round(sum(waits) / max(len(waits), 1), 3),
            wait_of_99_percent=round(waits[math.ceil(len(waits) * 0.99) - 1], 3) if waits else 0,
            longest_wait=round(waits[-1], 3) if waits else 0,
            most_overtaken=watch.most_overtaken,
            faults=watch.faults,
        )

    def _say(self, event: str, detail: str) -> None:
        """Take no note of what becomes of members: the pool is watched."""


def main() -> int:
    """Run it in real time."""
    parser = argparse.ArgumentParser(prog="python -m tests.lending.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31))
    parser.add_argument("--strategy", choices=list(Strategy), default=Strategy.LEAST_USED)
    parser.add_argument("--mock", action="store_true", help="an hour with a mock clock instead")
    parser.add_argument("--dry", action="store_true", help="write no result")
    chosen = parser.parse_args()
    if chosen.mock:
        clock = trio.testing.MockClock(autojump_threshold=0)
        result = trio.run(soak, hour(chosen.seed), clock=clock)
    else:
        result = trio.run(soak, real(chosen.seconds, chosen.seed, Strategy(chosen.strategy)))
    sys.stdout.write(summary(result) + "\n")
    if not chosen.dry:
        sys.stdout.write(f"written: {write(result)}\n")
    return 1 if result.faults else 0


if __name__ == "__main__":
    sys.exit(main())
