"""The psam suite: the same commands through every way to a PSAM, and what each way takes beside the bare applet.

All ways take turns in every repetition, so that a machine that slows down slows them all; ratios are taken within a
repetition. In-process ways are compared by the CPU time of this process, ways over a line by the time that passed.
"""

from __future__ import annotations

import functools
import itertools
import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from bench import psam_readers, psam_ways, psam_wire, servers
from bench.card_reading import exchanges
from bench.cpus import choose_cpus, on_cpu
from bench.errors import BenchError
from bench.findings import Finding, Findings, Sample, add_out, finish
from bench.psam_ways import (
    BARE,
    DIALOGUE,
    MEMBER,
    PCSC,
    POOL,
    POOL_MANY,
    RACK,
    RACK_MANY,
    READER,
    RING,
)
from bench.psam_wire import MANY, ONCE, READINGS, RING_SERVICE, SCRIPT, SERVICE, SERVICES, SINGLE

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable

    from bench.card_reading import Exchange
    from bench.psam_ways import CardTasks, Speak, Spent
    from keyd.lending.lender import Lender

    # How a way says an exchange, for so many seconds.
    Say = Callable[[Exchange, float], Awaitable[Spent]]

HELP: Final = (
    "commands to a PSAM through each way in, scripts beside single commands, what the pool adds"
)

NAME: Final = "psam"

RATE: Final = "commands, {}"
COST: Final = "this process's CPU a command, {}"
TASKS: Final = "card tasks, {} a call"
TASK_COST: Final = "this process's CPU a card task, {} a call"
READING: Final = "card reading"
SERVED: Final = "internal authentication"
WIRE_COST: Final = "keyd's CPU for each {}, {}"
SLOW: Final = "time for a card reading over a slow line"

# As a line through a mobile network has.
ONE_WAY_MILLISECONDS: Final = 20

# Who shares one PSAM of keyd's own, and one chip: a hall full of machines, and a counter's.
_MANY: Final = 64
_FEW: Final = 8
_TASKS_A_CALL: Final = (1, 64)
_CONNECTIONS: Final = (1, 64)


class _Setting(NamedTuple):
    """Everything that is asked and runs in a process of its own. No reader: the sentence says why."""

    keyd: servers.Server
    slow_keyd: servers.Server
    rack_port: int
    no_reader: str


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this suite's options."""
    parser.add_argument("--seconds", type=float, default=1.0, help="each measurement (default 1)")
    parser.add_argument("--repetitions", type=int, default=5, help="of all that (default 5)")
    add_out(parser)


def run(options: argparse.Namespace) -> None:
    """Run the suite: print the tables, write the results."""
    findings = Findings.begin(
        NAME,
        f"{options.repetitions} repetitions of {options.seconds:g} s of each; {choose_cpus()}",
    )
    measure(findings, options.seconds, options.repetitions)
    finish(findings, options.out)


def measure(findings: Findings, seconds: float, repetitions: int) -> None:
    """Measure every way in turn, again and again."""
    cpus = choose_cpus()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="keyd-bench-")))
        keyd = stack.enter_context(
            servers.run_python_server("keyd", servers.KEYD, scratch, cpus, authenticates=True)
        )
        psam_wire.wait_for_pool(keyd)
        started = functools.partial(
            servers.run_python_server, scratch=scratch, cpus=cpus, authenticates=False
        )
        python = (sys.executable, "-m")
        line = (*python, "bench.slow_line", str(keyd.port), str(ONE_WAY_MILLISECONDS))
        slow = stack.enter_context(started("slow line", line))
        rack = stack.enter_context(started("rack", (*python, "bench.rack")))
        no_reader = psam_readers.missing()
        if not no_reader:
            stack.enter_context(psam_readers.readers(scratch, cpus))
        stack.enter_context(on_cpu(cpus.generator))
        slow_keyd = servers.Server(keyd.pid, slow.port, keyd.prepare)
        setting = _Setting(keyd, slow_keyd, rack.port, no_reader)
        try:
            trio.run(_measure, findings, setting, seconds, repetitions)
        except BaseExceptionGroup as group:
            # What ends a run comes out of nurseries, and whoever called says it in a sentence.
            failed = group.subgroup(BenchError)
            if failed is None:
                raise
            raise BenchError(str(failed.exceptions[0])) from group
    _sum_up(findings, no_reader)


async def _measure(findings: Findings, setting: _Setting, seconds: float, repetitions: int) -> None:
    with ExitStack() as stack:
        async with trio.open_nursery() as nursery:
            pool = await psam_ways.lending(nursery, psam_ways.virtual_source())
            ways = await _ways(nursery, pool, setting, stack)
            tasks = psam_ways.CardTasks(pool)
            for repetition in range(repetitions):
                await _measure_ways(findings, ways, seconds, repetition)
                await _measure_tasks(findings, tasks, seconds, repetition)
                _measure_wire(findings, setting, seconds, repetition)
            nursery.cancel_scope.cancel()


async def _ways(
    nursery: trio.Nursery, pool: Lender, setting: _Setting, stack: ExitStack
) -> dict[str, Say]:
    """Return every way, ready to be spoken to."""
    rack = await psam_ways.lending(nursery, psam_ways.rack_source(setting.rack_port))
    ways = {
        BARE: says_at_once(psam_ways.bare()),
        MEMBER: says([await psam_ways.member_alone()]),
        POOL: says(await psam_ways.opened(pool, 1)),
        POOL_MANY.format(_MANY): says(await psam_ways.opened(pool, _MANY)),
        RACK: says(await psam_ways.opened(rack, 1)),
        RACK_MANY.format(_FEW): says(await psam_ways.opened(rack, _FEW)),
    }
    if not setting.no_reader:
        reader = await psam_ways.lending(nursery, psam_ways.reader_source(psam_readers.POOLED))
        ways[READER] = says(await psam_ways.opened(reader, 1))
        alone = stack.enter_context(psam_readers.pyscard_alone())
        ways[PCSC] = says_at_once(alone.transmit)
    return ways


async def _measure_ways(
    findings: Findings, ways: dict[str, Say], seconds: float, repetition: int
) -> None:
    for exchange, (who, way) in itertools.product(exchanges(), ways.items()):
        spent = await way(exchange, seconds)
        commands = spent.done * len(exchange.commands)
        for what, unit, value in (
            (RATE.format(exchange.name), "/s", commands / spent.elapsed),
            (COST.format(exchange.name), "µs", spent.cpu / commands * 1e6),
        ):
            findings.samples.append(Sample(what, who, unit, repetition, value))


async def _measure_tasks(
    findings: Findings, tasks: CardTasks, seconds: float, repetition: int
) -> None:
    for count, who in itertools.product(_TASKS_A_CALL, (RING, DIALOGUE, POOL)):
        spent = await tasks.measure(who, count, seconds)
        for what, unit, value in (
            (TASKS.format(count), "/s", spent.done / spent.elapsed),
            (TASK_COST.format(count), "µs", spent.cpu / spent.done * 1e6),
        ):
            findings.samples.append(Sample(what, who, unit, repetition, value))


def _measure_wire(findings: Findings, setting: _Setting, seconds: float, repetition: int) -> None:
    commands = len(psam_wire.READING.commands)
    for count, how in itertools.product(_CONNECTIONS, (*READINGS, *SERVICES)):
        load = psam_wire.measure(setting.keyd, how, count, seconds)
        kind, on = READING if how in READINGS else SERVED, wire(count)
        rate, cost = load.done / load.elapsed, load.server_cpu / load.done * 1e6
        samples = [
            (f"{kind}s, {on}", "/s", rate),
            (WIRE_COST.format(kind, on), "µs", cost),
        ]
        if how in READINGS:
            samples.append((RATE.format(f"{kind}s, {on}"), "/s", rate * commands))
        findings.samples.extend(
            Sample(what, how, unit, repetition, value) for what, unit, value in samples
        )
    for how in READINGS:
        load = psam_wire.measure(setting.slow_keyd, how, 1, seconds)
        milliseconds = load.elapsed / load.done * 1e3
        findings.samples.append(Sample(SLOW, how, "ms", repetition, milliseconds))


def wire(count: int) -> str:
    """Return how so many connections are called."""
    return f"{count} connection{'s' if count > 1 else ''}"


def says(speakers: list[Speak]) -> Say:
    """Return how an exchange is said to open PSAMs, side by side."""
    return functools.partial(psam_ways.say_to_all, speakers)


def says_at_once(transmit: Callable[[bytes], bytes]) -> Say:
    """Return how an exchange is said to something that does not wait."""

    async def say(exchange: Exchange, seconds: float) -> Spent:
        return psam_ways.say(transmit, exchange, seconds)

    return say


# What comes of it -----------------------------------------------------------------------------------------


def _sum_up(findings: Findings, no_reader: str) -> None:
    pair, _read, reading = (exchange.name for exchange in exchanges())
    many, shared = POOL_MANY.format(_MANY), RACK_MANY.format(_FEW)
    for name in (pair, reading):
        cost = COST.format(name)
        _ratio(findings, f"{name}, CPU:", cost, POOL, BARE)
        _ratio(findings, f"{name}, CPU:", cost, many, BARE)
        _added(findings, f"{name}, CPU a command: what the pool adds to the applet", cost, POOL)
        _added(findings, f"{name}, CPU a command: of this, the virtual member", cost, MEMBER)
    for count in _TASKS_A_CALL:
        for other in (RING, DIALOGUE):
            what = f"card tasks, {count} a call, CPU:"
            _ratio(findings, what, TASK_COST.format(count), POOL, other)
    for count in _CONNECTIONS:
        what, cost = f"{READING}s, {wire(count)}", WIRE_COST.format(READING, wire(count))
        for how in (MANY, SCRIPT, ONCE):
            _ratio(findings, f"{what}, rate:", what, how, SINGLE)
            _ratio(findings, f"{what}, keyd's CPU:", cost, how, SINGLE)
        cost = WIRE_COST.format(SERVED, wire(count))
        _ratio(
            findings,
            f"{SERVED}s by pool or ring, {wire(count)}, keyd's CPU:",
            cost,
            SERVICE,
            RING_SERVICE,
        )
    _ratio(findings, f"{SLOW}:", SLOW, SINGLE, SCRIPT)
    rate = RATE.format(pair)
    _ratio(findings, f"{pair}, rate:", rate, shared, RACK)
    if not no_reader:
        _ratio(findings, f"{pair}, rate:", rate, READER, PCSC)
    findings.notes.append(
        "Load average after: {:.2f} {:.2f} {:.2f}; this suite itself is 1 to 2 of it. Where more ran beside it, rates "
        "are lower bounds, and CPU times and ratios are what can be quoted.".format(
            *os.getloadavg()
        )
    )
    findings.notes.extend(note for note in (no_reader, *_NOTES) if note)


def _ratio(findings: Findings, says: str, what: str, one: str, other: str) -> None:
    values = [a / b for a, b in _pairs(findings, what, one, other)]
    findings.findings.append(Finding(f"{says} {one} / {other}", " ×", values))


def _added(findings: Findings, says: str, what: str, who: str) -> None:
    values = [a - b for a, b in _pairs(findings, what, who, BARE)]
    findings.findings.append(Finding(says, " µs", values))


def _pairs(findings: Findings, what: str, one: str, other: str) -> list[tuple[float, float]]:
    return list(zip(findings.values(what, one), findings.values(what, other), strict=True))


_NOTES: Final = (
    "A command is what the terminal says. What the pool says besides (GET RESPONSE for what a SELECT left waiting, "
    "and SELECT again, where another had the chip meanwhile) is in the cost of the commands and not in their number.",
    "The bare applet, a member and the pool are compared by CPU time of one process with one thread at work; each open "
    "PSAM of the pool is asked by a task of its own. DELIVERY + CIPHER DATA is one turn of the pool for two commands, "
    "READ BINARY one for each.",
    "The rack is another process of keyd on loopback, the reader is `keyd vpcd` behind the real pcscd with the driver "
    "of vsmartcard-vpcd: both chips compute in microseconds. Their rates say what the lines and the software on them "
    "take. A real PSAM takes tens of milliseconds for a command, and none was measured.",
    "The pool's reader and pyscard's are two slots of one virtual reader, behind one pcscd and driver: their ratio "
    "is what keyd's thread and the pool's turns take beside those.",
    "Over the wire every connection has one PSAM open and one request outstanding; the two services and "
    "psam.run_once open none before. A card reading is five commands: SELECT, and DELIVERY and CIPHER DATA for IRK "
    "and for RKSSSE. The client is one Python process on the other CPU.",
    "psam.transmit_many cannot make a command of an earlier answer, so it does not replace psam.run where "
    "an earlier answer is needed; here none is. The card itself takes part in nothing that was measured.",
    f"The slow line takes {ONE_WAY_MILLISECONDS} ms one way and loses nothing; its time is that of one terminal, and "
    "says nothing of a line that is narrow or loses packets.",
    "The counters of all these PSAMs are in memory, and no purchase was made: what a durable transaction number costs "
    "cannot be seen here.",
)
