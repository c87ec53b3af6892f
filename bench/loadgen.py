"""The load generator, from Python: compile `loadgen.c` on first use, hand it sockets and a pool, read back.

Python opens and authenticates the connections; from then on C has them, in this thread, without the GIL.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from bench.building import shared_library
from bench.errors import BenchError

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from bench.points import Point
    from bench.workload import Pool

_SOURCE: Final = Path(__file__).with_name("loadgen.c")

FLAGS: Final = ("-O2", "-std=c11", "-Wall", "-Wextra", "-Werror")

# As in loadgen.c: 128 steps to every doubling of nanoseconds, up to half a minute.
_STEP_BITS: Final = 7
_BUCKETS: Final = (36 - _STEP_BITS) << _STEP_BITS

_FAULTS: Final = {
    1: "the server gave a wrong answer",
    2: "the server hung up",
    3: "the server fell silent",
    4: "a system call failed",
}


# What is kept of a histogram, besides the medians and 99th percentiles that tables show.
PERCENTILES: Final = {"p50": 0.50, "p90": 0.90, "p99": 0.99, "p99.9": 0.999}

# The schedule of an open loop is drawn anew with every seed, and is the same in every run.
_SEED: Final = 20261123

# Requests that may be outstanding on one connection of an open loop before the run ends: some ten seconds' worth.
_OPEN_DEPTH: Final = 256


class Load(NamedTuple):
    """What the generator saw. Latencies in seconds."""

    rate: float
    p50: float
    p99: float
    # With the answers that were outstanding when the time was up.
    answered: int
    elapsed: float
    # How much of the time the generator itself was computing, 0 to 1.
    busy: float
    # By the names of PERCENTILES.
    latencies: dict[str, float]


class OpenLoad(NamedTuple):
    """What an open loop saw, by the names of PERCENTILES, in seconds."""

    answered: int
    # From the moment when a request was due to its answer.
    latencies: dict[str, float]
    # From the moment when a request was due to its sending: the generator's own share of the latency.
    lateness: dict[str, float]


class _Plan(ctypes.Structure):
    _fields_ = (
        ("fds", ctypes.c_void_p),
        ("requests", ctypes.c_char_p),
        ("answers", ctypes.c_char_p),
        ("histogram", ctypes.c_void_p),
        ("request_bytes", ctypes.c_uint64),
        ("answer_bytes", ctypes.c_uint64),
        ("pool", ctypes.c_uint64),
        ("connections", ctypes.c_uint64),
        ("depth", ctypes.c_uint64),
        ("duration_ns", ctypes.c_uint64),
        ("buckets", ctypes.c_uint64),
        ("due_ns", ctypes.c_void_p),
        ("lateness", ctypes.c_void_p),
        ("due", ctypes.c_uint64),
    )


class _Result(ctypes.Structure):
    _fields_ = (
        ("answered_in_time", ctypes.c_uint64),
        ("answered", ctypes.c_uint64),
        ("elapsed_ns", ctypes.c_uint64),
        ("cpu_ns", ctypes.c_uint64),
        ("error_number", ctypes.c_int64),
    )


def generate(
    connections: Sequence[socket.socket], pool: Pool, point: Point, seconds: float
) -> Load:
    """Load a server for so many seconds. The connections are ready, and quiet again afterwards.

    Raises:
        BenchError: an answer was wrong, or did not come. There is no such thing as a few errors.
    """
    histogram = (ctypes.c_uint64 * _BUCKETS)()
    result = _run(connections, pool, point.depth, histogram, duration_ns=int(seconds * 1e9))
    if not result.answered_in_time:
        raise BenchError(f"nothing was answered within {seconds} seconds")
    latencies = _percentiles(histogram)
    return Load(
        rate=result.answered_in_time / seconds,
        p50=latencies["p50"],
        p99=latencies["p99"],
        answered=result.answered,
        elapsed=result.elapsed_ns / 1e9,
        busy=result.cpu_ns / result.elapsed_ns,
        latencies=latencies,
    )


def offer(
    connections: Sequence[socket.socket], pool: Pool, rate: float, seconds: float
) -> OpenLoad:
    """Offer a server so many requests a second, whether or not it has answered the last ones.

    They come as from many terminals that do not know of each other: at random, with exponential gaps.

    Raises:
        BenchError: an answer was wrong or did not come, or the server is seconds behind.
    """
    chance = random.Random(_SEED)  # noqa: S311 -- a schedule is no secret.
    gaps = (chance.expovariate(rate) * 1e9 for _ in range(int(rate * seconds)))
    due = [int(at) for at in itertools.accumulate(gaps)]
    if not due:
        raise BenchError(f"{rate} requests a second for {seconds} seconds are none")
    histogram = (ctypes.c_uint64 * _BUCKETS)()
    lateness = (ctypes.c_uint64 * _BUCKETS)()
    due_ns = (ctypes.c_uint64 * len(due))(*due)
    result = _run(
        *(connections, pool, _OPEN_DEPTH, histogram),
        due_ns=ctypes.addressof(due_ns),
        lateness=ctypes.addressof(lateness),
        due=len(due),
    )
    return OpenLoad(result.answered, _percentiles(histogram), _percentiles(lateness))


def _run(
    connections: Sequence[socket.socket],
    pool: Pool,
    depth: int,
    histogram: ctypes.Array[ctypes.c_uint64],
    **how: int,
) -> _Result:
    fds = (ctypes.c_int32 * len(connections))(*(sock.fileno() for sock in connections))
    plan = _Plan(
        fds=ctypes.addressof(fds),
        requests=_table(pool.requests, depth),
        answers=_table(pool.answers, depth),
        histogram=ctypes.addressof(histogram),
        request_bytes=len(pool.requests[0]),
        answer_bytes=len(pool.answers[0]),
        pool=len(pool.requests),
        connections=len(connections),
        depth=depth,
        buckets=_BUCKETS,
        **how,
    )
    result = _Result()
    outcome = _library().bench_run(ctypes.byref(plan), ctypes.byref(result))
    if outcome:
        reason = f": {os.strerror(result.error_number)}" if result.error_number else ""
        raise BenchError(f"{_FAULTS[outcome]}{reason}, after {result.answered} right answers")
    return result


def _percentiles(histogram: ctypes.Array[ctypes.c_uint64]) -> dict[str, float]:
    counts = list(histogram)
    return {name: quantile(counts, share) for name, share in PERCENTILES.items()}


def echo(listener: socket.socket) -> None:
    """Serve as the echo that the generator is measured against. Does not return."""
    raise OSError(_library().bench_echo(listener.fileno()), "the echo ended")


def quantile(counts: Sequence[int], share: float) -> float:
    """Return the latency, in seconds, that this share of the answers did not exceed."""
    wanted = share * sum(counts)
    seen = 0
    for bucket, count in enumerate(counts):
        seen += count
        if count and seen >= wanted:
            return _upper_edge(bucket) / 1e9
    raise BenchError("there is no quantile of nothing")


def _upper_edge(bucket: int) -> int:
    steps = 1 << _STEP_BITS
    if bucket < steps:
        return bucket
    doublings, step = (bucket >> _STEP_BITS) - 1, bucket % steps
    return ((steps + step + 1) << doublings) - 1


def _table(entries: tuple[bytes, ...], depth: int) -> bytes:
    # What is outstanding is one run of bytes, also where the pool begins again.
    return b"".join((*entries, *itertools.islice(itertools.cycle(entries), depth)))


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(shared_library("loadgen", {_SOURCE: ()}, FLAGS)))
    library.bench_run.argtypes = (ctypes.POINTER(_Plan), ctypes.POINTER(_Result))
    library.bench_run.restype = ctypes.c_int
    library.bench_echo.argtypes = (ctypes.c_int,)
    library.bench_echo.restype = ctypes.c_int
    return library
