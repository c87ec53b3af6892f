"""The limits suite is not kind: a late answer counts from when its request was due, and a closed line is no idle one.

Nothing here says how fast.
"""

from __future__ import annotations

import socket
import threading
import time

import pytest

from bench import building, limits, loadgen
from bench.cpus import choose_cpus
from bench.errors import BenchError
from bench.findings import Findings, Target
from bench.server import ECHO, KEYD, NAIVE
from bench.workload import Pool

needs_gcc = pytest.mark.skipif(
    not building.is_available(), reason="the load generator is C, and there is no gcc"
)

POOL = Pool((b"ask!",), (b"said",))


@pytest.fixture
def findings() -> Findings:
    return Findings.begin(limits.NAME, "tiny")


@needs_gcc
def test_all_that_was_offered_is_answered_and_counted(findings: Findings) -> None:
    limits.measure_latency(findings, choose_cpus(), 200.0, 8, 0.2, 1, lambda _what: None)
    for who in (KEYD, NAIVE, ECHO):
        (p99,) = findings.values("200 requests/s offered on 8 connections: p99", who)
        assert p99 > 0
    (found,) = findings.findings
    assert found.target == Target(3.0)


@needs_gcc
def test_idle_connections_are_open_and_weighed(findings: Findings) -> None:
    limits.measure_memory(findings, choose_cpus(), 5)
    before, during, _after = (sample.value for sample in findings.samples)
    assert 0 < before <= during
    (found,) = findings.findings
    assert found.values == [during]


@needs_gcc
def test_a_stall_is_charged_to_all_that_were_due_meanwhile() -> None:
    """A closed loop would see one slow answer; half of these were due while the server slept."""
    seconds, stall = 0.4, 0.2
    ours, theirs = socket.socketpair()

    def serve() -> None:
        time.sleep(stall)
        while data := theirs.recv(4096):
            # The generator writes whole requests, all of one length.
            theirs.sendall(POOL.answers[0] * (len(data) // len(POOL.requests[0])))

    server = threading.Thread(target=serve)
    server.start()
    try:
        load = loadgen.offer([ours], POOL, 200.0, seconds)
    finally:
        ours.close()
        server.join()
        theirs.close()
    assert load.answered == 80
    assert load.latencies["p90"] > stall / 2


@needs_gcc
def test_a_server_that_hangs_up_ends_the_run() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        theirs.close()
        with pytest.raises(BenchError, match="hung up"):
            loadgen.offer([ours], POOL, 100.0, 0.2)


def test_nothing_offered_is_refused() -> None:
    with pytest.raises(BenchError, match="are none"):
        loadgen.offer([], POOL, 1.0, 0.5)
