"""The rounds: a phase played once to the end, and then again and again to a named step, in each manner of dying."""

from __future__ import annotations

import contextlib
import itertools
import queue
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, NamedTuple

from keyd.errors import Refusal
from tests.crash.grounds import Arm, Grounds, Zygote, remove, start_program
from tests.crash.scenario import PHASES, Facts, State, run_phase, state_of
from tests.crash.verdict import Expected, judge, judge_restarted, look

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from tests.crash.grounds import Daemon, Database

# Two cores; the client and the daemon of one round take turns.
WORKERS: Final = 3

MANNERS: Final = ("before", "half", "after")
_HALVES: Final = frozenset({"write", "pwrite", "send"})

_NUMBERS: Final = re.compile(r"[0-9]+")


class NamedStep(NamedTuple):
    """The n-th change of a phase: the call, the file's name without numbers, and the client's step it belongs to."""

    number: int
    call: str
    file: str
    during: int


class Kill(NamedTuple):
    """A round: which phase dies at which step, and how."""

    phase: str
    step: NamedStep
    when: str


class Result(NamedTuple):
    """What became of a round."""

    kill: Kill
    was_killed: bool
    twice: int
    """Changes that are in the journal more than once, each time with their number."""


class Phase(NamedTuple):
    """A phase as it was played once."""

    name: str
    grounds: Grounds
    facts: Facts
    expected: Expected
    steps: list[NamedStep]


class Stage:
    """All phases, and who plays them again."""

    def __init__(self, shim: Path, place: Path, others: tuple[Path, ...]) -> None:
        self.shim = shim
        self.others = others
        self.phases: dict[str, Phase] = {}
        self._place = place
        self._numbers = itertools.count()
        self._zygotes: queue.SimpleQueue[Zygote] = queue.SimpleQueue()
        self._all: list[Zygote] = []

    @classmethod
    @contextlib.contextmanager
    def played(
        cls,
        shim: Path,
        place: Path,
        phases: Iterable[str] = PHASES,
        database: Database | None = None,
    ) -> Iterator[Stage]:
        """Play every phase once; with a database, on that."""
        stage = cls(shim, place, (database.folder,) if database is not None else ())
        try:
            for _ in range(WORKERS):
                stage._all.append(Zygote(shim))
                stage._zygotes.put(stage._all[-1])
            grounds = Grounds.found(place / "founded", (), database)
            facts = Facts(shares=list(grounds.shares))
            for phase in phases:
                grounds, facts = stage._play(phase, grounds, facts)
            yield stage
        finally:
            for zygote in stage._all:
                zygote.close()

    def folder(self) -> Path:
        """Return a folder that nobody has used."""
        return self._place / f"round-{next(self._numbers)}"

    @contextlib.contextmanager
    def zygote(self) -> Iterator[Zygote]:
        """Lend a zygote."""
        lent = self._zygotes.get()
        try:
            yield lent
        finally:
            self._zygotes.put(lent)

    def _play(self, phase: str, before: Grounds, facts: Facts) -> tuple[Grounds, Facts]:
        grounds = before.copy(self.folder())
        first = look(before, self.folder()) if before.journal.exists() else None
        counts: list[int] = []
        states: list[State] = []

        def after_step(_place: int) -> None:
            sight = look(grounds, self.folder())
            counts.append(len(sight.happenings))
            try:
                states.append(state_of(daemon))
            except Refusal:  # sealed
                states.append(states[-1])

        with self.zygote() as zygote:
            daemon = zygote.start(grounds, configured(grounds, phase))
            try:
                run, acknowledged = run_phase(daemon, phase, facts, after_step)
            finally:
                daemon.kill()
        assert acknowledged == len(PHASES[phase]) + 2, daemon.said()
        last = look(grounds, self.folder())
        # Nobody was killed: every use is handed out and recorded once.
        assert last.good == last.uses, "an orderly end costs uses, or gives some away"
        assert not last.twice, "records are there twice although nobody was killed"
        counts.append(len(last.happenings))
        states.append(states[-1])
        base = first or last._replace(happenings=[], written=0, good=0, uses=0)
        begun = len(base.happenings)
        expected = Expected(base, last.happenings, [count - begun for count in counts], states)
        steps = self._count(phase, before, facts)
        self.phases[phase] = Phase(phase, before, facts, expected, steps)
        return grounds, run.facts

    def _count(self, phase: str, before: Grounds, facts: Facts) -> list[NamedStep]:
        """Play a phase once more, without questions in between, which leave records of their own."""
        grounds = before.copy(self.folder())
        trace = grounds.folder.with_suffix(".trace")
        bounds: list[int] = []

        def after_step(_place: int) -> None:
            bounds.append(len(trace.read_text().splitlines()))

        with self.zygote() as zygote:
            daemon = zygote.start(
                grounds, configured(grounds, phase), Arm(0, "before", trace, self.others)
            )
            try:
                run_phase(daemon, phase, facts, after_step)
            finally:
                daemon.kill()
        steps = _steps(trace, bounds, grounds)
        trace.unlink()
        remove(grounds)
        return steps

    def play(self, kill: Kill, *, as_program: bool = False, seconds: float | None = None) -> Result:
        """Play a phase until its daemon is killed, start another, and judge both.

        With `seconds`, it is killed then, wherever it is, instead of at a step.
        """
        phase = self.phases[kill.phase]
        grounds = phase.grounds.copy(self.folder())
        by_shares = kill.phase in ("rekey", "seal")
        with self.zygote() as zygote:

            def start(arguments: list[str], arm: Arm | None = None) -> Daemon:
                if as_program:
                    return start_program(grounds, arguments, self.shim, arm)
                return zygote.start(grounds, arguments, arm)

            arm = Arm(kill.step.number, kill.when, None, self.others)
            daemon = start(configured(grounds, kill.phase), arm)
            assassin = None
            if seconds is not None:
                assassin = threading.Timer(seconds, daemon.shoot)
                assassin.start()
            run, acknowledged = run_phase(daemon, kill.phase, phase.facts)
            if assassin is not None:
                assassin.cancel()
                assassin.join()
            daemon.hang_up()
            was_killed = acknowledged < len(PHASES[kill.phase]) + 2
            made, sight = judge(grounds, run, acknowledged, phase.expected, self.folder())
            again = start(configured(grounds, kill.phase, has_credential=not by_shares))
            try:
                last = judge_restarted(
                    again,
                    run,
                    made,
                    acknowledged,
                    phase.expected,
                    self.folder(),
                    by_shares=by_shares,
                    before=sight,
                )
            finally:
                again.kill()
        remove(grounds)
        return Result(kill, was_killed, last.twice)


def configured(grounds: Grounds, phase: str, *, has_credential: bool = True) -> list[str]:
    """Write a phase's configuration: every other one waits for the disk before it answers."""
    durability = "fsync" if list(PHASES).index(phase) % 2 else "written"
    return grounds.configure(f'durability = "{durability}"', has_credential=has_credential)


def _steps(trace: Path, bounds: Sequence[int], grounds: Grounds) -> list[NamedStep]:
    steps = []
    for line in trace.read_text().splitlines():
        number, call, path = line.split(" ", 2)
        during = sum(int(number) > bound for bound in bounds)
        file = path.removesuffix(" (deleted)").removeprefix(str(grounds.folder) + "/")
        if call == "send":
            file = "database"
        steps.append(NamedStep(int(number), call, _NUMBERS.sub("N", file), during))
    return sorted(steps)


def every_kill(phase: Phase) -> list[Kill]:
    """Return every step in every manner."""
    return [
        Kill(phase.name, step, when)
        for step in phase.steps
        for when in MANNERS
        if when != "half" or step.call in _HALVES
    ]


def some_kills(phase: Phase, stride: int) -> list[Kill]:
    """Return kills that cover every kind of call on every file during every step of a client, and every n-th."""
    kills: list[Kill] = []
    seen: set[tuple[str, str, int]] = set()
    for place, step in enumerate(phase.steps):
        kind = (step.call, step.file, step.during)
        # Every phase starts alike: one is enough.
        is_known = kind in seen or (step.during == 0 and phase.name != next(iter(PHASES)))
        if is_known and place % stride:
            continue
        seen.add(kind)
        manners = MANNERS if step.call in _HALVES else ("before", "after")
        # In turn, so that over all phases each kind of call meets each manner.
        kills.append(Kill(phase.name, step, manners[len(kills) % len(manners)]))
    return kills


def play_all(stage: Stage, kills: Sequence[Kill]) -> tuple[list[Result], list[tuple[Kill, str]]]:
    """Play all rounds, some at once; return what became of them, and what was wrong."""
    wrong: list[tuple[Kill, str]] = []

    def play(kill: Kill) -> Result | None:
        try:
            return stage.play(kill)
        except Exception as error:  # noqa: BLE001 - all that is wrong is told, not only the first
            wrong.append((kill, f"{type(error).__name__}: {error}"[:2000]))
            return None

    with ThreadPoolExecutor(WORKERS) as pool:
        results = [result for result in pool.map(play, kills) if result is not None]
    return results, wrong
