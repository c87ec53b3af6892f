"""The benchmark measures what it says: every server answers, every answer is right, and all are counted.

Nothing here says how fast.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import msgspec
import pytest

from bench import building, loadgen, server, servers
from bench.cpus import choose_cpus
from bench.errors import BenchError
from bench.measure import Run, measure, measure_with_redis_benchmark
from bench.points import DEFAULT_POINTS, Point, parse_points
from bench.report import Report, Settings, markdown, ratio_rows, server_rows, write_report
from bench.workload import Pool

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

needs_gcc = pytest.mark.skipif(
    not building.is_available(), reason="the load generator is C, and there is no gcc"
)
needs_redis = pytest.mark.skipif(
    not servers.has_redis(), reason="redis-server and redis-tools are not installed"
)

SMALLEST = Point(1, 1)
SECONDS = 0.2


@pytest.fixture(scope="module")
def contestants() -> Iterator[dict[str, server.Contestant]]:
    with server.running(choose_cpus()) as running:
        yield running


def run_at(contestants: dict[str, server.Contestant], name: str, point: Point) -> Run:
    contestant = contestants[name]
    return measure(name, contestant.server, contestant.pool, point, 1, SECONDS, warm=0.05)


@needs_gcc
@pytest.mark.parametrize("name", [server.KEYD, server.NAIVE, *server.JOURNALS, server.ECHO])
@pytest.mark.parametrize("point", [SMALLEST, Point(3, 5)], ids=str)
def test_answers_are_right_and_counted(
    contestants: dict[str, server.Contestant], name: str, point: Point
) -> None:
    run = run_at(contestants, name, point)
    assert run.answered > 0
    assert 0 < run.p50_us <= run.p99_us


@needs_gcc
@needs_redis
def test_redis_is_asked_by_both_generators(contestants: dict[str, server.Contestant]) -> None:
    ours = run_at(contestants, server.REDIS, SMALLEST)
    redis = contestants[server.REDIS].server
    theirs = measure_with_redis_benchmark(
        server.REDIS_BENCHMARK, redis, SMALLEST, 1, SECONDS, ours.rate
    )
    assert ours.answered > 0
    assert theirs.answered > 0
    assert theirs.rate > 0


@needs_gcc
def test_one_wrong_answer_ends_the_run(contestants: dict[str, server.Contestant]) -> None:
    keyd, pool = contestants[server.KEYD]
    spoilt = (*pool.answers[:-1], pool.answers[-1][:-1] + b"!")
    with pytest.raises(BenchError, match="wrong answer"):
        measure(server.KEYD, keyd, Pool(pool.requests, spoilt), SMALLEST, 1, 5.0, warm=5.0)


@needs_gcc
def test_a_server_that_hangs_up_ends_the_run() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        theirs.close()
        with pytest.raises(BenchError, match="hung up"):
            loadgen.generate([ours], Pool((b"ask",), (b"answer",)), SMALLEST, SECONDS)


def test_a_quantile_is_the_latency_that_so_many_did_not_exceed() -> None:
    """Below 128 ns buckets are exact; above, at most one part in 128 wide."""
    counts = [0] * 1000
    counts[10], counts[100] = 99, 1
    assert loadgen.quantile(counts, 0.50) == pytest.approx(10e-9)
    assert loadgen.quantile(counts, 0.99) == pytest.approx(10e-9)
    assert loadgen.quantile(counts, 1.00) == pytest.approx(100e-9)
    counts[128 + 5] = 1000  # 133 ns, the first doubling still has steps of one
    assert loadgen.quantile(counts, 0.50) == pytest.approx(133e-9)


def test_points_are_read_as_they_are_written() -> None:
    assert parse_points("1x1,16x1,64x1,256x1,16x16,16x64") == DEFAULT_POINTS
    assert str(Point(64, 1)) == "64×1"


def test_a_ratio_is_taken_within_each_repetition(tmp_path: Path) -> None:
    """A noisy repetition slows both servers down, and leaves their ratio as it is."""
    settings = Settings(["1×1"], SECONDS, 0.0, 3, "not pinned")
    report = Report.begin("server", settings)
    for repetition, noise in enumerate((1.0, 0.1, 0.5), start=1):
        for name, rate, cpu in (("keyd", 300.0, 30.0), ("naive", 100.0, 105.0)):
            report.runs.append(
                Run("1×1", name, repetition, rate * noise, 1.0, 2.0, 60, cpu, 1.0, 0.1)
            )
    assert ratio_rows(report) == [
        ("1×1", "rate", "3.00 (3.00 – 3.00)"),
        ("1×1", "per CPU second", "3.50 (3.50 – 3.50)"),
    ]
    assert server_rows(report)[0][:4] == ("1×1", "keyd", "150", "30 – 300")
    as_json, as_markdown = write_report(report, tmp_path)
    assert msgspec.json.decode(as_json.read_bytes(), type=Report) == report
    assert as_markdown.read_text() == markdown(report)
