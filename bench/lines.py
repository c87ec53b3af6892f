"""The lines suite: one keyd, asked over plain TCP and over encrypted lines of both kinds, and its handshakes.

The client is Python, and with TLS it works as hard as keyd does: what it reaches is a lower bound. What a request or a
handshake costs *keyd* is measured apart from that, as CPU time. Plain lines are asked by the same client, for the
ratio; they go through the native tick, and encrypted ones do not.
"""

from __future__ import annotations

import datetime
import json
import os
import select
import socket
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from bench import servers
from bench.configured import write_config
from bench.cpus import LEAST_CPU_SECONDS, choose_cpus, cpu_seconds, on_cpu
from bench.errors import BenchError
from bench.findings import Finding, Findings, Sample, add_out, finish
from bench.points import Point, parse_points
from bench.workload import card_requests
from keyd.client import Client, Enrolment
from keyd.daemon import DEV_TERMINALS
from keyd.keys.synthetic import synthetic_terminal_key
from keyd.tls import MAX_CHUNK, TlsClientContext, TlsKind
from keyd.tls.pki import Validity, synthetic_pki

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from bench.workload import Pool
    from keyd.tls import ClientSession, TlsClientConnection

HELP: Final = "what encrypted lines cost a keyd that serves: requests and handshakes"

NAME: Final = "lines"

PLAIN: Final = "plain"
_CODE: Final = DEV_TERMINALS[0]
_SERVER: Final = "127.0.0.1"
_POINTS: Final = (Point(64, 1), Point(256, 1), Point(16, 16))

# More connections than any point has, and room.
_CONNECTIONS: Final = 1024


class _Place(NamedTuple):
    """Where keyd is asked, and with what."""

    name: str
    port: int
    context: TlsClientContext | None


class _Setting(NamedTuple):
    """A running keyd."""

    pid: int
    places: list[_Place]
    pool: Pool


class _Asker:
    """One connection that always has the same number of requests outstanding."""

    def __init__(self, place: _Place) -> None:
        self.client = Client(
            f"{_SERVER}:{place.port}",
            Enrolment(_CODE, synthetic_terminal_key(_CODE)),
            tls=place.context,
        )
        self.client.connect()
        sock, line = taken_from(self.client)
        self.sock = sock
        self.sock.settimeout(30)
        self._line = line
        self._unfinished = 0

    def send(self, data: bytes) -> None:
        self.sock.sendall(data if self._line is None else self._line.send(data))

    def answers(self, length: int) -> int:
        """Read once; return how many answers of this length are whole now."""
        data = self.sock.recv(MAX_CHUNK)
        if not data:
            raise BenchError("keyd hung up")
        if self._line is not None:
            data = self._line.receive_data_untrusted(data)
        count, self._unfinished = divmod(self._unfinished + len(data), length)
        return count


def taken_from(client: Client) -> tuple[socket.socket, TlsClientConnection | None]:
    """Return what a connected client speaks on: it has proved its terminal, and the load takes over from here."""
    sock, lines = client._sock, client._lines  # noqa: SLF001 - nothing but a benchmark wants this
    if sock is None:
        raise BenchError("the client is not connected")
    return sock, None if lines is None else lines._line  # noqa: SLF001 - as above


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this suite's options."""
    parser.add_argument("--points", type=parse_points, default=_POINTS, metavar="CxD,…")
    parser.add_argument("--seconds", type=float, default=2.0, help="each measurement (default 2)")
    parser.add_argument("--handshakes", type=int, default=200, help="of each sort (default 200)")
    parser.add_argument("--repetitions", type=int, default=3, help="of all that (default 3)")
    add_out(parser)


def run(options: argparse.Namespace) -> None:
    """Run the suite: print the tables, write the results."""
    findings = Findings.begin(
        NAME,
        f"{options.repetitions} repetitions of {options.seconds:g} s a point and {options.handshakes} handshakes",
    )
    measure(findings, options.points, options.seconds, options.handshakes, options.repetitions)
    finish(findings, options.out)


def measure(
    findings: Findings,
    points: tuple[Point, ...],
    seconds: float,
    handshakes: int,
    repetitions: int,
) -> None:
    """Take every figure of every sort of line."""
    with ExitStack() as stack:
        setting = _start(stack)
        for repetition in range(repetitions):
            for place in setting.places:
                for what, unit, value in _figures(setting, place, points, seconds, handshakes):
                    findings.samples.append(Sample(what, place.name, unit, repetition, value))
    for what, who, unit in dict.fromkeys((s.what, s.who, s.unit) for s in findings.samples):
        findings.findings.append(Finding(f"{what}, {who}", unit, findings.values(what, who)))
    findings.notes.append(
        "The client is one Python process on the other CPU: rates are lower bounds, CPU times are keyd's alone."
    )


def _start(stack: ExitStack) -> _Setting:
    cpus = choose_cpus()
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="keyd-bench-")))
    moment = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    entries: list[str] = []
    contexts = []
    for kind in TlsKind:
        made = synthetic_pki(kind, Validity(moment - day, moment + day), [_SERVER], [_CODE])
        terminal = made.terminals[_CODE]
        folder = scratch / kind.value
        folder.mkdir()
        (folder / "ca.pem").write_bytes(made.authority.certificate)
        (folder / "server.pem").write_bytes(made.server.certificate)
        with os.fdopen(
            os.open(folder / "server.key", os.O_WRONLY | os.O_CREAT, 0o600), "wb"
        ) as key:
            key.write(made.server.private_key)
        entries += [
            "[[listen.tls]]",
            'address = "127.0.0.1:0"',
            f'kind = "{kind.value}"',
            f'certificate = "{folder / "server.pem"}"',
            f'private_key = "{folder / "server.key"}"',
            f'client_authorities = "{folder / "ca.pem"}"',
        ]
        contexts.append(
            TlsClientContext(
                kind,
                certificate=terminal.certificate,
                private_key=terminal.private_key,
                server_authorities=made.authority.certificate,
            )
        )
    command = write_config(scratch, _CONNECTIONS, *entries)
    server = stack.enter_context(
        servers.run_python_server(PLAIN, command, scratch, cpus, authenticates=True)
    )
    stack.enter_context(on_cpu(cpus.generator))
    places = [_Place(PLAIN, server.port, None)]
    for kind, context, port in zip(TlsKind, contexts, _encrypted_ports(scratch), strict=True):
        places.append(_Place(kind.value, port, context))
    with Client(
        f"{_SERVER}:{server.port}", Enrolment(_CODE, synthetic_terminal_key(_CODE))
    ) as client:
        pool = card_requests(client)
    return _Setting(server.pid, places, pool)


def _encrypted_ports(scratch: Path) -> list[int]:
    lines = (scratch / f"{PLAIN}.log").read_text().splitlines()
    ready = next(line for line in map(json.loads, lines) if line["event"] == "ready")
    return [int(address.rpartition(":")[2]) for address in ready["encrypted"]]


def _figures(
    setting: _Setting, place: _Place, points: tuple[Point, ...], seconds: float, handshakes: int
) -> Iterator[tuple[str, str, float]]:
    for point in points:
        rate, cpu = _load(setting, place, point, seconds)
        yield f"requests {point}", "/s", rate
        yield f"keyd's CPU a request {point}", " µs", cpu * 1e6
    for form in ("connections", "full handshakes", "resumed handshakes"):
        if (form == "connections") is not (place.context is None):
            continue
        rate, cpu = _shake_hands(setting, place, handshakes, resumes=form == "resumed handshakes")
        yield form, "/s", rate
        yield f"keyd's CPU for {form}", " µs", cpu * 1e6


def _load(setting: _Setting, place: _Place, point: Point, seconds: float) -> tuple[float, float]:
    """Keep a number of requests outstanding on each connection. Return the rate, and keyd's CPU for each."""
    requests, length = setting.pool.requests, len(setting.pool.answers[0])
    with ExitStack() as stack:
        askers: dict[int, _Asker] = {}
        poll = stack.enter_context(select.epoll())
        for _ in range(point.connections):
            asker = _Asker(place)
            stack.callback(asker.client.close)
            askers[asker.sock.fileno()] = asker
            poll.register(asker.sock.fileno(), select.EPOLLIN)
        at = answered = 0
        before, began = cpu_seconds(setting.pid), time.monotonic()
        for asker in askers.values():
            asker.send(b"".join(requests[: point.depth]))
        while time.monotonic() < began + seconds:
            for fd, _mask in poll.poll(1):
                count = askers[fd].answers(length)
                if count:
                    answered += count
                    at = (at + count) % (len(requests) - point.depth)
                    askers[fd].send(b"".join(requests[at : at + count]))
        elapsed = time.monotonic() - began
        used = max(cpu_seconds(setting.pid) - before, LEAST_CPU_SECONDS)
    return answered / elapsed, used / max(answered, 1)


def _shake_hands(
    setting: _Setting, place: _Place, count: int, *, resumes: bool
) -> tuple[float, float]:
    """Open lines one after the other, without a word on them. Return the rate, and keyd's CPU for each."""
    session = _one_line(place, None) if resumes else None
    before, began = cpu_seconds(setting.pid), time.monotonic()
    for _ in range(count):
        _one_line(place, session)
    elapsed = time.monotonic() - began
    used = max(cpu_seconds(setting.pid) - before, LEAST_CPU_SECONDS)
    return count / elapsed, used / count


def _one_line(place: _Place, session: ClientSession | None) -> ClientSession | None:
    with socket.create_connection((_SERVER, place.port), 30) as sock:
        if place.context is None:
            return None
        line = place.context.connect(_SERVER, int(time.time()), session)
        sock.sendall(line.data_to_send())
        while line.is_handshaking:
            line.receive_data_untrusted(sock.recv(MAX_CHUNK))
        sock.sendall(line.data_to_send())
        # The tickets: by then keyd has done its part.
        line.receive_data_untrusted(sock.recv(MAX_CHUNK))
        if line.is_resumed is not (session is not None):
            raise BenchError("this was not the handshake that was to be measured")
        sock.sendall(line.close())
        return line.session
