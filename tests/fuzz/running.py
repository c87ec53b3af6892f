"""One fuzzing process from outside: started, waited for, and what it said put into a result."""

from __future__ import annotations

import itertools
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from tests.fuzz.engines import Order, available, words_of

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT: Final = Path(__file__).parents[2]

# Stores and journals are written by the thousand; what is asked of them does not depend on a disk.
_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - only as a place for temporary folders

# Starting, and measuring the seeds, on a busy machine; and an engine looks at the clock only between two inputs.
GRACE_SECONDS: Final = 120

_EXECUTED: Final = re.compile(r"^stat::number_of_executed_units:\s*(\d+)$", re.MULTILINE)
_RATE: Final = re.compile(r"^stat::average_exec_per_sec:\s*(\d+)$", re.MULTILINE)
_EXCEPTION: Final = re.compile(r"[A-Za-z_][\w.]*(?:Error|Exception|[a-z])(?::|$)")
_COVERAGE: Final = re.compile(r"cov: (\d+) ft: (\d+) corp: (\d+)")

# libFuzzer's own largest number of runs.
_ENDLESS: Final = 2**31 - 1

# What is kept of what a process says; the end of it is what matters.
_MAX_SAID: Final = 200_000


class Result(Struct, frozen=True):
    """What came of one process. What atheris alone knows is 0 elsewhere."""

    target: str
    engine: str
    seed: int
    runs: int
    seconds: float
    runs_per_second: int
    covered_edges: int
    features: int
    corpus: int
    finding: str = ""
    """The last line of the traceback, or what libFuzzer says; empty if nothing was found."""
    said: str = ""
    """All that the process said, if something was found."""

    @property
    def is_clean(self) -> bool:
        """Whether nothing was found."""
        return not self.finding


def run(
    target: str,
    *,
    runs: int,
    seconds: int = 0,
    seed: int = 1,
    engine: str = "",
    artifacts: Path,
    corpus: Path | None = None,
    patience: float | None = None,
) -> Result:
    """Run one target in a process of its own, bounded by runs and seconds (0 is without that bound).

    What was worth keeping goes into `corpus`, what was a finding into `artifacts`. A process that takes `patience`
    seconds longer than it should has a finding.
    """
    memory = _MEMORY if _MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="keyd-fuzz-", dir=memory) as folder:
        order = Order(
            target=target,
            engine="plain" if engine == "plain" else available(),
            runs=runs or _ENDLESS,
            seconds=seconds,
            seed=seed,
            corpus=str(corpus or Path(folder) / "corpus"),
            artifacts=str(artifacts),
        )
        for path in (order.corpus, order.artifacts):
            Path(path).mkdir(parents=True, exist_ok=True)
        wait = seconds + GRACE_SECONDS if seconds else patience
        return _result(order, *_ended(order, Path(folder), wait))


def _ended(order: Order, scratch: Path, wait: float | None) -> tuple[int | None, str, float]:
    """Start a process and wait for its end: the status (None if it had to be ended), what it said, and seconds."""
    started = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tests.fuzz.engines", words_of(order)],
            cwd=ROOT,
            # libFuzzer ends a process without tidying up: what targets leave behind goes with this folder.
            env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(scratch)},
            # libFuzzer speaks on the one, and Python's tracebacks come on the other.
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=wait,
            check=False,
        )
        status, said = done.returncode, done.stdout
    except subprocess.TimeoutExpired as expired:
        status, said = None, (expired.stdout or b"") + b"\nit did not end in time\n"
    return status, said[-_MAX_SAID:].decode(errors="replace"), time.monotonic() - started


def _result(order: Order, status: int | None, said: str, took: float) -> Result:
    coverage = [(0, 0, 0), *(tuple(map(int, found)) for found in _COVERAGE.findall(said))][-1]
    executed = _number(_EXECUTED, said)
    return Result(
        target=order.target,
        engine=order.engine,
        seed=order.seed,
        runs=executed,
        seconds=round(took, 1),
        # libFuzzer counts whole seconds, and says 0 of what took less than one.
        runs_per_second=_number(_RATE, said) or int(executed / took),
        covered_edges=coverage[0],
        features=coverage[1],
        corpus=coverage[2],
        finding=_finding(said) if status != 0 else "",
        said=said if status != 0 else "",
    )


def _number(pattern: re.Pattern[str], said: str) -> int:
    found = pattern.findall(said)
    return int(found[-1]) if found else 0


def _finding(said: str) -> str:
    """Return the line that names what was found: an exception, or what libFuzzer calls it."""
    lines = said.splitlines()
    for line, following in itertools.pairwise(lines):
        if "Uncaught Python exception" in line:
            return following
    for line in lines:
        if "ERROR: libFuzzer" in line:
            return line
    named = [line for line in lines if _EXCEPTION.match(line)]
    return (named or lines or ["the process ended without a word"])[-1]


def machine() -> dict[str, str]:
    """Say on what it ran: no names of hosts or people."""
    model = "unknown"
    with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return {
        "processor": model,
        "processors": str(os.cpu_count()),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def commit() -> str:
    """Return the commit that ran, with a + if the tree had changes."""
    head = _git("rev-parse", "--short", "HEAD")
    return head + "+" * bool(_git("status", "--porcelain", "--", "keyd"))


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def table(results: Iterable[Result]) -> str:
    """Show results to people."""
    lines = ["| target | engine | runs | per second | edges | features | corpus | found |"]
    lines.append("| - | - | -: | -: | -: | -: | -: | - |")
    lines += [
        f"| {one.target} | {one.engine} | {one.runs:,} | {one.runs_per_second:,} | {one.covered_edges}"
        f" | {one.features} | {one.corpus} | {one.finding or 'nothing'} |"
        for one in results
    ]
    return "\n".join(lines)
