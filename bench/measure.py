"""Measure one server at one point: warm up, load, and set what came out beside the CPU time it took."""

from __future__ import annotations

import csv
import io
import resource
import subprocess
import time
from typing import TYPE_CHECKING, Final

import msgspec

from bench.cpus import LEAST_CPU_SECONDS, cpu_seconds
from bench.errors import BenchError
from bench.loadgen import generate
from bench.servers import connections
from bench.workload import CARDS

if TYPE_CHECKING:
    from bench.points import Point
    from bench.servers import Server
    from bench.workload import Pool

# It takes a number of requests and not of seconds; it is never asked for less than this many.
_MIN_REDIS_BENCHMARK: Final = 1_000


class Run(msgspec.Struct, frozen=True):
    """One server at one point, once. Latencies and CPU per request in µs; busy as a share, 0 to 1."""

    point: str
    server: str
    repetition: int
    rate: float
    p50_us: float
    p99_us: float
    answered: int
    server_cpu_us: float
    server_busy: float
    generator_busy: float
    # In µs, by the names of `loadgen.PERCENTILES`; redis-benchmark does not say enough.
    latencies_us: dict[str, float] = {}


def measure(
    name: str,
    server: Server,
    pool: Pool,
    point: Point,
    repetition: int,
    seconds: float,
    warm: float,
) -> Run:
    """Load a server with our own generator."""
    with connections(server, point.connections) as socks:
        generate(socks, pool, point, warm)
        before = cpu_seconds(server.pid)
        load = generate(socks, pool, point, seconds)
        used = max(cpu_seconds(server.pid) - before, LEAST_CPU_SECONDS)
    return Run(
        point=str(point),
        server=name,
        repetition=repetition,
        rate=load.rate,
        p50_us=load.p50 * 1e6,
        p99_us=load.p99 * 1e6,
        answered=load.answered,
        server_cpu_us=used / load.answered * 1e6,
        server_busy=used / load.elapsed,
        generator_busy=load.busy,
        latencies_us={name: seconds * 1e6 for name, seconds in load.latencies.items()},
    )


def measure_with_redis_benchmark(
    name: str, server: Server, point: Point, repetition: int, seconds: float, expected_rate: float
) -> Run:
    """Load redis with its own benchmark, for about so many seconds at the rate that is expected."""
    count = max(_MIN_REDIS_BENCHMARK, int(expected_rate * seconds))
    command = (
        *("redis-benchmark", "-h", "127.0.0.1", "-p", str(server.port), "--csv"),
        *("-c", str(point.connections), "-P", str(point.depth)),
        *("-n", str(count), "-r", str(CARDS), "GET", "key:__rand_int__"),
    )
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    before, started = cpu_seconds(server.pid), time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    elapsed = time.monotonic() - started
    used = max(cpu_seconds(server.pid) - before, LEAST_CPU_SECONDS)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise BenchError(f"redis-benchmark failed: {done.stderr.strip() or done.stdout.strip()}")
    row = list(csv.DictReader(io.StringIO(done.stdout)))[-1]
    own = after.ru_utime + after.ru_stime - children.ru_utime - children.ru_stime
    return Run(
        point=str(point),
        server=name,
        repetition=repetition,
        rate=float(row["rps"]),
        p50_us=float(row["p50_latency_ms"]) * 1e3,
        p99_us=float(row["p99_latency_ms"]) * 1e3,
        answered=count,
        server_cpu_us=used / count * 1e6,
        server_busy=used / elapsed,
        generator_busy=own / elapsed,
    )
