"""The server suite: keyd, redis and the naive alternative, one after the other, again and again.

Repetitions are the outermost loop, and all servers run throughout: whatever the machine is doing besides falls
on all of them alike, and a ratio is always taken between neighbours in time.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
from rich.progress import Progress

from bench import servers
from bench.cpus import Cpus, choose_cpus, on_cpu
from bench.draw import write_charts
from bench.findings import add_out
from bench.measure import Run, measure, measure_with_redis_benchmark
from bench.points import DEFAULT_POINTS, Point, parse_points
from bench.report import (
    BASELINE,
    CEILING,
    Report,
    Settings,
    print_report,
    write_report,
)
from bench.tables import console_for_tables
from bench.workload import card_requests, echoed, redis_requests
from keyd.client import Client, Enrolment
from keyd.daemon import DEV_TERMINALS
from keyd.keys.synthetic import synthetic_terminal_key

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from bench.servers import Server
    from bench.workload import Pool

HELP: Final = "keyd beside redis and the naive alternative, under the same load"

NAME: Final = "server"
KEYD: Final = BASELINE
# The same keyd with a journal, by its durability: what a record costs is the ratio to keyd.
JOURNALS: Final = {"keyd+written": "written", "keyd+fsync": "fsync"}
NAIVE: Final = "naive"
# Both are GET on one redis-server: asked by our generator, and by redis's own.
REDIS: Final = "redis"
REDIS_BENCHMARK: Final = "redis-benchmark"
ECHO: Final = CEILING


class Contestant(NamedTuple):
    """A server in the run, and what it is asked."""

    server: Server
    pool: Pool


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this suite's options."""
    parser.add_argument(
        "--points",
        type=parse_points,
        default=DEFAULT_POINTS,
        metavar="CxD,…",
        help="connections x requests outstanding on each, e.g. 64x1,16x16",
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="each measurement (default 2)")
    parser.add_argument("--warm-up", type=float, default=0.4, help="before each (default 0.4)")
    parser.add_argument("--repetitions", type=int, default=3, help="of each point (default 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the JSON there as well")
    add_out(parser)


def run(options: argparse.Namespace) -> None:
    """Measure, print and write."""
    cpus = choose_cpus()
    settings = Settings(
        points=[str(point) for point in options.points],
        seconds=options.seconds,
        warm_up_seconds=options.warm_up,
        repetitions=options.repetitions,
        pinning=str(cpus),
    )
    report = Report.begin(NAME, settings)
    console = console_for_tables()
    if not servers.has_redis():
        console.print("Without redis: apt install redis-server redis-tools to see it beside keyd.")
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("starting", total=len(options.points) * options.repetitions)

        def show(point: Point, repetition: int) -> None:
            progress.update(task, description=f"{point}, repetition {repetition}")

        for measured in measure_all(options.points, settings, cpus, show):
            report.runs.extend(measured)
            progress.advance(task)
    print_report(console, report)
    for path in (*write_report(report, options.out), *write_charts(report, options.out)):
        console.print(f"written: {path}", soft_wrap=True)
    if options.json:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(report)))


def measure_all(
    points: tuple[Point, ...],
    settings: Settings,
    cpus: Cpus,
    show: Callable[[Point, int], None],
) -> Iterator[list[Run]]:
    """Yield the runs of each point in each repetition: every server once, in turn."""
    with running(cpus) as contestants, on_cpu(cpus.generator):
        for repetition in range(1, settings.repetitions + 1):
            for point in points:
                show(point, repetition)
                yield list(_measure_point(contestants, point, repetition, settings))


@contextlib.contextmanager
def running(cpus: Cpus) -> Iterator[dict[str, Contestant]]:
    """Start every server that there is, and prepare what each will be asked."""
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="keyd-bench-")))

        def start(name: str, command: tuple[str, ...], *, authenticates: bool) -> Server:
            manager = servers.run_python_server(
                name, command, scratch, cpus, authenticates=authenticates
            )
            return stack.enter_context(manager)

        keyd = start(KEYD, servers.KEYD, authenticates=True)
        code = DEV_TERMINALS[0]
        enrolment = Enrolment(code, synthetic_terminal_key(code))
        with Client(f"127.0.0.1:{keyd.port}", enrolment) as client:
            pool = card_requests(client)
        contestants = {
            KEYD: Contestant(keyd, pool),
            NAIVE: Contestant(start(NAIVE, servers.NAIVE, authenticates=True), pool),
        }
        for name, durability in JOURNALS.items():
            journal = ("--journal", str(scratch / name), "--durability", durability)
            server = start(name, (*servers.KEYD, *journal), authenticates=True)
            contestants[name] = Contestant(server, pool)
        if servers.has_redis():
            redis = stack.enter_context(servers.run_redis(scratch, cpus))
            contestants[REDIS] = Contestant(redis, redis_requests())
        contestants[ECHO] = Contestant(start(ECHO, servers.ECHO, authenticates=False), echoed(pool))
        yield contestants


def _measure_point(
    contestants: dict[str, Contestant], point: Point, repetition: int, settings: Settings
) -> Iterator[Run]:
    seconds, warm = settings.seconds, settings.warm_up_seconds
    for name, (server, pool) in contestants.items():
        # Only how far away the ceiling is matters, and that needs less time.
        time = seconds / 2 if name == ECHO else seconds
        result = measure(name, server, pool, point, repetition, time, warm)
        yield result
        if name == REDIS:
            yield measure_with_redis_benchmark(
                REDIS_BENCHMARK, server, point, repetition, seconds, result.rate
            )
