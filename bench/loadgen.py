"""The load generator, from Python: compile `loadgen.c` on first use, hand it sockets and a pool, read back.

Python opens and authenticates the connections; from then on C has them, in this thread, without the GIL.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from bench.errors import BenchError

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from bench.points import Point
    from bench.workload import Pool

_SOURCE: Final = Path(__file__).with_name("loadgen.c")
_BUILD: Final = Path(__file__).with_name("build")

COMPILER: Final = "gcc"
FLAGS: Final = ("-O2", "-std=c11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")

# As in loadgen.c: 128 steps to every doubling of nanoseconds, up to half a minute.
_STEP_BITS: Final = 7
_BUCKETS: Final = (36 - _STEP_BITS) << _STEP_BITS

_FAULTS: Final = {
    1: "the server gave a wrong answer",
    2: "the server hung up",
    3: "the server fell silent",
    4: "a system call failed",
}


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
    )


class _Result(ctypes.Structure):
    _fields_ = (
        ("answered_in_time", ctypes.c_uint64),
        ("answered", ctypes.c_uint64),
        ("elapsed_ns", ctypes.c_uint64),
        ("cpu_ns", ctypes.c_uint64),
        ("error_number", ctypes.c_int64),
    )


def is_available() -> bool:
    """Whether there is a compiler."""
    return shutil.which(COMPILER) is not None


def generate(
    connections: Sequence[socket.socket], pool: Pool, point: Point, seconds: float
) -> Load:
    """Load a server for so many seconds. The connections are ready, and quiet again afterwards.

    Raises:
        BenchError: an answer was wrong, or did not come. There is no such thing as a few errors.
    """
    fds = (ctypes.c_int32 * len(connections))(*(sock.fileno() for sock in connections))
    histogram = (ctypes.c_uint64 * _BUCKETS)()
    plan = _Plan(
        fds=ctypes.addressof(fds),
        requests=_table(pool.requests, point.depth),
        answers=_table(pool.answers, point.depth),
        histogram=ctypes.addressof(histogram),
        request_bytes=len(pool.requests[0]),
        answer_bytes=len(pool.answers[0]),
        pool=len(pool.requests),
        connections=len(connections),
        depth=point.depth,
        duration_ns=int(seconds * 1e9),
        buckets=_BUCKETS,
    )
    result = _Result()
    outcome = _library().bench_run(ctypes.byref(plan), ctypes.byref(result))
    if outcome:
        reason = f": {os.strerror(result.error_number)}" if result.error_number else ""
        raise BenchError(f"{_FAULTS[outcome]}{reason}, after {result.answered} right answers")
    if not result.answered_in_time:
        raise BenchError(f"nothing was answered within {seconds} seconds")
    counts = list(histogram)
    return Load(
        rate=result.answered_in_time / seconds,
        p50=quantile(counts, 0.50),
        p99=quantile(counts, 0.99),
        answered=result.answered,
        elapsed=result.elapsed_ns / 1e9,
        busy=result.cpu_ns / result.elapsed_ns,
    )


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
    return b"".join(entries + entries[:depth])


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(_built()))
    library.bench_run.argtypes = (ctypes.POINTER(_Plan), ctypes.POINTER(_Result))
    library.bench_run.restype = ctypes.c_int
    library.bench_echo.argtypes = (ctypes.c_int,)
    library.bench_echo.restype = ctypes.c_int
    return library


def _built() -> Path:
    if not is_available():
        raise BenchError(f"the load generator is C, and there is no {COMPILER}: apt install gcc")
    digest = hashlib.sha256(_SOURCE.read_bytes() + " ".join(FLAGS).encode()).hexdigest()[:16]
    target = _BUILD / f"loadgen-{digest}.so"
    if not target.exists():
        _BUILD.mkdir(exist_ok=True)
        # Under another name first: somebody else may be compiling, or loading, at this moment.
        fresh = target.with_suffix(f".{os.getpid()}")
        done = subprocess.run(
            [COMPILER, *FLAGS, "-o", fresh, _SOURCE], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise BenchError(f"{COMPILER} refused loadgen.c:\n{done.stderr}")
        fresh.replace(target)
    return target
