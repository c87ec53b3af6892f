"""`keyd demo`: a real daemon, simulated card-making machines, and what they did to each other.

The daemon is a process of its own, on loopback ports, with public synthetic keys. Every machine is a trio task
with its own TCP connection; the cards are the simulator's, which has its own arithmetic, so that what passes
here is agreement and not an echo.
"""

from __future__ import annotations

import json
import math
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Annotated, Any, Final

import trio
import typer
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from keyd.cli.common import JsonOption
from keyd.client import AsyncClient, Enrolment
from keyd.config import ConfigError
from keyd.errors import Refusal
from keyd.keys.synthetic import synthetic_terminal_key
from keyd.simulator import Asking, CardMakingMachine, forge_card, issue_card

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

# Cities of four provinces; 330102 takes the Zhejiang rule.
REGIONS: Final = ("510100", "410100", "330102", "639900")

START_SECONDS: Final = 20

STEP_TERMINAL: Final = "terminal authentication"
STEP_FORGED: Final = "forged card"

# Each machine is one of the terminals that a development keyd enrols.
MAX_MACHINES: Final = 64
MAX_CARDS: Final = 1_000_000


@dataclass
class Record:
    """What the demo saw."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    refusals: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    names: list[str] = field(default_factory=list)
    forged_refusal: str = ""
    wall_seconds: float = 0.0


@dataclass(frozen=True)
class Daemon:
    """The daemon's process and where it listens."""

    process: subprocess.Popen[bytes]
    address: str
    operations: str


def demo(
    cards: Annotated[int, typer.Option(min=1, max=MAX_CARDS, help="How many cards.")] = 200,
    machines: Annotated[
        int, typer.Option(min=1, max=MAX_MACHINES, help="How many machines at once.")
    ] = 8,
    as_json: JsonOption = False,
) -> None:
    """Start a real daemon, run card-making machines against it over TCP, and show what happened.

    Per card: the card is proved genuine, its data read and written under MAC, its PIN reset, its medical
    account loaded, and a purchase made. At the end comes a forged card, which must be refused.
    """
    console = Console(stderr=as_json)
    with running_daemon() as daemon:
        console.print(
            f"keyd runs as process {daemon.process.pid} on {daemon.address}, with public keys"
        )
        record = trio.run(_run, daemon, cards, machines, console)
        metrics = read_metrics(daemon.operations)
        daemon.process.send_signal(signal.SIGTERM)
        exit_status = daemon.process.wait(START_SECONDS)
    if as_json:
        typer.echo(json.dumps(_report(record, metrics, cards, machines, exit_status)))
    else:
        _show(console, record, metrics, cards, machines, exit_status)
    if not record.forged_refusal or record.refusals.keys() - {STEP_FORGED} or exit_status:
        raise typer.Exit(1)


@contextmanager
def running_daemon() -> Iterator[Daemon]:
    """Run `keyd serve --dev` as a process on free loopback ports.

    Raises:
        ConfigError: it does not start; the sentence has its own words.
    """
    command = [sys.executable, "-P", "-m", "keyd.daemon", "--dev"]
    command += ["--tcp", "127.0.0.1:0", "--operations", "127.0.0.1:0"]
    # A file, not a pipe: nobody has to keep reading it.
    with tempfile.TemporaryFile("w+b") as log:
        process = subprocess.Popen(command, stderr=log)  # noqa: S603 - our own daemon
        try:
            ready = _wait_until_ready(process, log)
            yield Daemon(process, ready["listen"][0], ready["operations"])
        finally:
            process.kill()
            process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], log: IO[bytes]) -> dict[str, Any]:
    give_up_at = time.monotonic() + START_SECONDS
    while time.monotonic() < give_up_at:
        log.seek(0)
        lines = log.read().decode().splitlines()
        if process.poll() is not None:
            raise ConfigError(f"the daemon did not start: {lines[-1] if lines else 'no word'}")
        for line in lines:
            if line.startswith('{"event": "ready"') and line.endswith("}"):
                ready: dict[str, Any] = json.loads(line)
                return ready
        time.sleep(0.02)  # a start takes some tenths of a second
    raise ConfigError(f"the daemon was not ready within {START_SECONDS} seconds")


async def _run(daemon: Daemon, cards: int, machines: int, console: Console) -> Record:
    record = Record()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(f"{machines} machines, cards", total=cards)
        serials = iter(range(1, cards + 1))
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in range(1, machines + 1):
                nursery.start_soon(_machine, daemon, number, serials, record, progress, bar)
        record.wall_seconds = trio.current_time() - started
    await _forged_card(daemon, record)
    return record


async def _machine(
    daemon: Daemon,
    number: int,
    serials: Iterator[int],
    record: Record,
    progress: Progress,
    bar: Any,
) -> None:
    async with await _authenticated(daemon, number, record) as client:
        for serial in serials:
            card = issue_card(region=REGIONS[serial % len(REGIONS)], serial=serial)
            machine = CardMakingMachine(
                card.transmit,
                card.atr,
                terminal=f"5101{number:08}",
                time=_now(),
                random_bytes=secrets.token_bytes,
            )
            made = await _play(
                client, machine.make(name=f"合成持卡人{serial}", new_pin=f"{serial:06}"), record
            )
            if made is not None:
                record.names.append(made.name)
            progress.advance(bar)


async def _authenticated(daemon: Daemon, number: int, record: Record) -> AsyncClient:
    code = f"DEV-{number:04}"
    client = AsyncClient(daemon.address, Enrolment(code, synthetic_terminal_key(code)))
    started = trio.current_time()
    await client.connect()
    record.seconds[STEP_TERMINAL].append(trio.current_time() - started)
    return client


async def _play(
    client: AsyncClient, play: Generator[Asking, Any, Any], record: Record, step: str | None = None
) -> Any:
    """Carry a machine's questions to keyd and the answers back; None if keyd refused one."""
    try:
        asking = next(play)
        while True:
            started = trio.current_time()
            name = step or asking.step
            try:
                answer = await client.ask(asking.request)
            except Refusal as refusal:
                record.refusals[name] += 1
                if step == STEP_FORGED:
                    record.forged_refusal = refusal.status.name
                return None
            finally:
                record.seconds[name].append(trio.current_time() - started)
            asking = play.send(answer)
    except StopIteration as stop:
        return stop.value
    finally:
        play.close()


async def _forged_card(daemon: Daemon, record: Record) -> None:
    forged = forge_card(issue_card(serial=88))
    machine = CardMakingMachine(
        forged.transmit,
        forged.atr,
        terminal="510100000001",
        time=_now(),
        random_bytes=secrets.token_bytes,
    )
    async with await _authenticated(daemon, 1, record) as client:
        await _play(client, machine.prove_and_read(), record, STEP_FORGED)


def _now() -> str:
    return f"{datetime.now(UTC):%Y%m%d%H%M%S}"


def read_metrics(operations: str) -> dict[str, float]:
    """Scrape the daemon; return samples by name and labels."""
    with urllib.request.urlopen(f"http://{operations}/metrics", timeout=START_SECONDS) as answer:
        text = answer.read().decode()
    return {
        f"{sample.name}{json.dumps(sample.labels) if sample.labels else ''}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def percentile(seconds: list[float], share: float) -> float:
    """Return the smallest value that at least this share of the values do not exceed."""
    ordered = sorted(seconds)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _rows(record: Record) -> list[dict[str, Any]]:
    return [
        {
            "step": step,
            "count": len(seconds),
            "refusals": record.refusals.get(step, 0),
            "p50_ms": percentile(seconds, 0.50) * 1000,
            "p95_ms": percentile(seconds, 0.95) * 1000,
            "p99_ms": percentile(seconds, 0.99) * 1000,
            "per_second": len(seconds) / record.wall_seconds,
        }
        for step, seconds in record.seconds.items()
    ]


def _summary(metrics: dict[str, float]) -> dict[str, float]:
    requests = {
        name: value for name, value in metrics.items() if name.startswith("keyd_requests_total")
    }
    count = metrics["keyd_request_duration_seconds_count"] or 1
    ticks = metrics["keyd_tick_requests_count"] or 1
    return {
        "requests": sum(requests.values()),
        "refusals": sum(value for name, value in requests.items() if '"OK"' not in name),
        "mean_milliseconds_with_queueing": 1000
        * metrics["keyd_request_duration_seconds_sum"]
        / count,
        "mean_requests_in_a_tick": metrics["keyd_tick_requests_sum"] / ticks,
        "connections_opened": metrics["keyd_connections_opened_total"],
        "keys_loaded": sum(
            value for name, value in metrics.items() if name.startswith("keyd_keys_loaded")
        ),
    }


def _report(
    record: Record, metrics: dict[str, float], cards: int, machines: int, exit_status: int
) -> dict[str, Any]:
    return {
        "cards": cards,
        "machines": machines,
        "made": len(record.names),
        "seconds": record.wall_seconds,
        "steps": _rows(record),
        "metrics": _summary(metrics),
        "forged_card": record.forged_refusal,
        "daemon_exit_status": exit_status,
    }


def _show(
    console: Console,
    record: Record,
    metrics: dict[str, float],
    cards: int,
    machines: int,
    exit_status: int,
) -> None:
    table = Table(
        title=f"{len(record.names)} of {cards} cards made on {machines} machines",
        caption="Milliseconds as the machines saw them; cards and machines share one process.",
    )
    table.add_column("step", no_wrap=True)
    for heading in ("count", "refused", "p50", "p95", "p99", "per s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in _rows(record):
        table.add_row(
            row["step"],
            f"{row['count']:,}",
            str(row["refusals"]),
            *(f"{row[name]:.2f}" for name in ("p50_ms", "p95_ms", "p99_ms")),
            f"{row['per_second']:,.0f}",
        )
    console.print(table)
    facts = _summary(metrics)
    console.print(
        f"keyd's metrics: {facts['requests']:,.0f} requests, {facts['refusals']:.0f} refused, "
        f"{facts['mean_requests_in_a_tick']:.1f} in a tick, "
        f"{facts['mean_milliseconds_with_queueing']:.2f} ms each with queueing; "
        f"{facts['keys_loaded']:.0f} keys loaded, {facts['connections_opened']:.0f} connections."
    )
    if record.forged_refusal:
        console.print(f"The forged card was refused: {record.forged_refusal}.")
    else:
        console.print("[bold red]The forged card was accepted.[/]")
    console.print(f"The daemon drained and ended with status {exit_status}.")
