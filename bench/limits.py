"""The limits suite: how late answers come at a load that is offered and not negotiated, and what idle peers weigh.

The offered load is an open loop: requests are sent when they are due, whether or not the last were answered, and a
latency counts from when its request was due. A server that stalls is charged for everybody who would have come.
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.progress import Progress

from bench import servers
from bench.configured import write_config
from bench.cpus import choose_cpus, on_cpu, waiting_seconds
from bench.errors import BenchError
from bench.findings import Finding, Findings, Sample, Target, add_out, finish
from bench.loadgen import generate, offer
from bench.points import Point
from bench.server import KEYD, running
from bench.tables import console_for_tables

if TYPE_CHECKING:
    import argparse
    import socket
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from bench.cpus import Cpus

HELP: Final = "latency at an offered rate, and memory with many idle connections"

NAME: Final = "limits"

P99_TARGET_MS: Final = 3.0
MEMORY_TARGET_MIB: Final = 150.0

MEMORY: Final = "resident memory of keyd"

# Beside the idle ones: who asks for health, and room to look around.
_SPARE_CONNECTIONS: Final = 100
# Beside the sockets, in this process.
_SPARE_DESCRIPTORS: Final = 100

_KIB_PER_MIB: Final = 1024

# Ten thousand farewells, each with its line in the log, on a machine that may be busy.
_LEAVE_SECONDS: Final = 30.0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this suite's options."""
    parser.add_argument(
        "--rate", type=float, default=5000.0, help="requests a second (default 5000)"
    )
    parser.add_argument("--connections", type=int, default=256, help="that share it (default 256)")
    parser.add_argument("--seconds", type=float, default=5.0, help="each measurement (default 5)")
    parser.add_argument("--repetitions", type=int, default=5, help="of each server (default 5)")
    parser.add_argument("--idle", type=int, default=10_000, help="idle connections (default 10000)")
    add_out(parser)


def run(options: argparse.Namespace) -> None:
    """Run the suite: print the tables, write the results."""
    cpus = choose_cpus()
    findings = Findings.begin(
        NAME, f"{options.repetitions} repetitions of {options.seconds:g} s; {cpus}"
    )
    console = console_for_tables()
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("starting", total=options.repetitions + 1)

        def show(what: str) -> None:
            progress.update(task, description=what, advance=1)

        measure_latency(
            *(findings, cpus, options.rate, options.connections),
            *(options.seconds, options.repetitions, show),
        )
        show(f"{options.idle} idle connections")
        measure_memory(findings, cpus, options.idle)
    finish(findings, options.out)


def measure_latency(
    findings: Findings,
    cpus: Cpus,
    rate: float,
    connections: int,
    seconds: float,
    repetitions: int,
    show: Callable[[str], None],
) -> None:
    """Offer every server the same load, in turn."""
    offered = f"{rate:,.0f} requests/s offered on {connections} connections"
    late = "of these, how late they were sent"
    _allow_descriptors(connections)
    with running(cpus) as contestants, on_cpu(cpus.generator):
        for repetition in range(1, repetitions + 1):
            show(f"offered load, repetition {repetition}")
            for name, (server, pool) in contestants.items():
                with servers.connections(server, connections) as socks:
                    generate(socks, pool, Point(connections, 1), min(seconds / 10, 0.5))
                    before = waiting_seconds(server.pid), waiting_seconds(os.getpid())
                    load = offer(socks, pool, rate, seconds)
                    after = waiting_seconds(server.pid), waiting_seconds(os.getpid())
                findings.samples.extend(
                    Sample(f"{offered}: {percentile}", name, "ms", repetition, latency * 1e3)
                    for percentile, latency in load.latencies.items()
                )
                findings.samples.append(
                    Sample(f"{late}: p99", name, "ms", repetition, load.lateness["p99"] * 1e3)
                )
                for who, start, end in zip(("server", "generator"), before, after, strict=True):
                    waited = (end - start) / seconds * 100
                    findings.samples.append(
                        Sample(f"{who} kept from its CPU", name, "%", repetition, waited)
                    )
    what = f"{offered}: p99"
    findings.findings.append(
        Finding(what, " ms", findings.values(what, KEYD), Target(P99_TARGET_MS))
    )
    findings.notes.extend(
        (
            "Requests come at random, with exponential gaps, the same in every run; latency counts from the moment "
            "when a request was due. echo answers without thinking: what it takes is the kernel's, the "
            "generator's and the hypervisor's share of everybody's latency.",
            "'Kept from its CPU' is the share of the time in which server or generator was ready to run and somebody "
            "else ran in its place, beside the two themselves. On a quiet machine it is next to nothing; where it is "
            "per cents, the upper percentiles hold a stranger's time slices too, and prove neither that a target is "
            "met nor that it is missed.",
            "'How late they were sent' is the generator's own lateness, which is part of the latencies above it.",
        )
    )


def measure_memory(findings: Findings, cpus: Cpus, idle: int) -> None:
    """Let so many terminals connect, authenticate and then say nothing."""
    _allow_descriptors(idle)
    with (
        tempfile.TemporaryDirectory(prefix="keyd-bench-") as scratch,
        _limited_keyd(Path(scratch), cpus, idle + _SPARE_CONNECTIONS) as server,
    ):
        before = _descriptors(server)
        findings.samples.append(_resident(server, "without connections"))
        with servers.connections(server, idle) as socks:
            sample = _resident(server, f"with {idle:,} idle connections")
            _require_open(socks)
        findings.samples.append(sample)
        _wait_until_left(server, before)
        findings.samples.append(_resident(server, "after they left"))
    findings.findings.append(
        Finding(
            f"{MEMORY} with {idle:,} idle connections",
            " MiB",
            [sample.value],
            Target(MEMORY_TARGET_MIB),
        )
    )
    findings.notes.append(
        "Idle connections are authenticated terminals that then say nothing. Resident memory is VmRSS of the daemon; "
        "what the kernel keeps for a socket is not in it."
    )


def _limited_keyd(
    scratch: Path, cpus: Cpus, connections: int
) -> AbstractContextManager[servers.Server]:
    command = write_config(scratch, connections)
    return servers.run_python_server("limited", command, scratch, cpus, authenticates=True)


def _resident(server: servers.Server, who: str) -> Sample:
    for line in Path(f"/proc/{server.pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "VmRSS":
            return Sample(MEMORY, who, "MiB", 1, int(value.split()[0]) / _KIB_PER_MIB)
    raise BenchError("keyd is gone")


def _descriptors(server: servers.Server) -> int:
    return sum(1 for _ in Path(f"/proc/{server.pid}/fd").iterdir())


def _wait_until_left(server: servers.Server, before: int) -> None:
    """Wait until keyd has closed what its peers closed; it has a limit to what it does in a tick."""
    deadline = time.monotonic() + _LEAVE_SECONDS
    while _descriptors(server) > before:
        if time.monotonic() > deadline:
            raise BenchError(f"keyd did not close its side within {_LEAVE_SECONDS:g} seconds")
        time.sleep(0.05)


def _require_open(socks: list[socket.socket]) -> None:
    """Make sure that they were counted: an idle connection that was closed weighs nothing."""
    closed = sum(_is_closed(sock) for sock in socks)
    if closed:
        raise BenchError(f"keyd closed {closed} of {len(socks)} idle connections")


def _is_closed(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        sock.recv(1)
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
    # keyd does not speak first: whatever it said is a farewell.
    return True


def _allow_descriptors(connections: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + _SPARE_DESCRIPTORS
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise BenchError(
            f"{connections} connections need {needed} file descriptors, and the limit is {hard}: "
            "ulimit -n"
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
