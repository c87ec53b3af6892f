"""The servers under test, as processes on loopback ports of their own, each pinned to the server's CPU."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from bench.cpus import on_cpu
from bench.errors import BenchError
from bench.workload import CARDS, redis_contents
from keyd.client import Enrolment
from keyd.daemon import DEV_TERMINALS
from keyd.keys.synthetic import synthetic_terminal_key
from keyd.protocol.commands import BY_REQUEST
from keyd.protocol.connection import ClientConnection
from keyd.protocol.messages.terminal import KeydAuthentic, RequestChallenge
from keyd.protocol.proof import CHALLENGE_BYTES
from tests.founded import EVERYTHING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bench.cpus import Cpus
    from keyd.protocol.fields import Request

KEYD: Final = (
    *(sys.executable, "-m", "keyd.daemon", "--dev"),
    *("--tcp", "127.0.0.1:0", "--operations", "127.0.0.1:0"),
    # A keyd that enforces a policy, as every one does in production: one that allows what is asked, and counts.
    *("--policy", str(EVERYTHING)),
)
NAIVE: Final = (sys.executable, "-m", "bench.naive")
ECHO: Final = (sys.executable, "-m", "bench.echo")

_ROOT: Final = Path(__file__).parent.parent

# Starting computes self-tests and keys, on a machine that may be busy.
_START_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 15.0
_IO_SECONDS: Final = 10.0


class Server(NamedTuple):
    """A running server, and how a connection to it is made ready."""

    pid: int
    port: int
    prepare: Callable[[socket.socket, int], None]


@contextlib.contextmanager
def run_python_server(
    name: str, command: Sequence[str], scratch: Path, cpus: Cpus, *, authenticates: bool
) -> Iterator[Server]:
    """Run keyd, or something that says `ready` as keyd does."""
    log = scratch / f"{name}.log"
    with _process(command, log, cpus) as process:
        port = _wait_for(process, log, lambda: _port_from(log))
        yield Server(process.pid, port, authenticate if authenticates else _nothing)


@contextlib.contextmanager
def run_redis(scratch: Path, cpus: Cpus) -> Iterator[Server]:
    """Run a redis-server without persistence that holds what will be asked."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]  # redis cannot choose one itself
    command = (
        *("redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", ""),
        *("--appendonly", "no", "--dir", str(scratch)),
    )
    log = scratch / "redis.log"
    with _process(command, log, cpus) as process:
        _wait_for(process, log, lambda: _is_listening(port))
        _fill(port)
        yield Server(process.pid, port, _nothing)


def has_redis() -> bool:
    """Whether Debian's redis-server and redis-tools are installed."""
    return all(shutil.which(program) for program in ("redis-server", "redis-benchmark"))


@contextlib.contextmanager
def connections(server: Server, count: int) -> Iterator[list[socket.socket]]:
    """Open so many connections, each ready for requests."""
    with contextlib.ExitStack() as stack:
        opened = []
        for number in range(count):
            sock = socket.create_connection(("127.0.0.1", server.port), _IO_SECONDS)
            stack.enter_context(sock)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            server.prepare(sock, number)
            opened.append(sock)
        yield opened


def authenticate(sock: socket.socket, number: int) -> None:
    """Prove a development terminal on a connection, and have keyd prove itself."""
    code = DEV_TERMINALS[number % len(DEV_TERMINALS)]
    enrolment = Enrolment(code, synthetic_terminal_key(code))
    connection = ClientConnection()
    ours = number.to_bytes(CHALLENGE_BYTES, "big")
    theirs, _seconds = _ask(sock, connection, RequestChallenge(code, ours))
    proof = enrolment.prove(ours, theirs)
    proof.verify_keyd(KeydAuthentic(*_ask(sock, connection, proof.request)))


def _ask(sock: socket.socket, connection: ClientConnection, request: Request) -> list[bytes]:  # type: ignore[type-arg]  # any response
    _msgid, data = connection.ask(BY_REQUEST[type(request)].method, request)
    sock.sendall(data)
    while True:
        for answer in connection.receive_data_untrusted(sock.recv(4096)):
            if answer.refusal is not None:
                raise answer.refusal
            result: list[bytes] = answer.result
            return result


def _nothing(_sock: socket.socket, _number: int) -> None:
    """Redis and the echo ask for no proof."""


@contextlib.contextmanager
def _process(command: Sequence[str], log: Path, cpus: Cpus) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as sink, on_cpu(cpus.server):
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, cwd=_ROOT
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(process: subprocess.Popen[bytes], log: Path, look: Callable[[], int | None]) -> int:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        found = look()
        if found is not None:
            return found
        if process.poll() is not None:
            break
        time.sleep(0.02)
    said = log.read_text(errors="replace").strip().splitlines()[-3:]
    raise BenchError("a server did not start: " + (" / ".join(said) or "it said nothing"))


def _port_from(log: Path) -> int | None:
    for line in log.read_text().splitlines(keepends=True):
        if not line.endswith("\n"):
            return None  # it is still being written
        try:
            event = json.loads(line)
        except ValueError:
            continue  # not the log, for instance a warning of Python's
        if event.get("event") == "ready":
            return int(event["listen"][0].rpartition(":")[2])
    return None


def _is_listening(port: int) -> int | None:
    try:
        socket.create_connection(("127.0.0.1", port), _IO_SECONDS).close()
    except ConnectionRefusedError:
        return None
    return port


def _fill(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), _IO_SECONDS) as sock:
        sock.sendall(redis_contents())
        answer, expected = b"", b"+OK\r\n" * CARDS
        while len(answer) < len(expected):
            data = sock.recv(65_536)
            if not data:
                raise BenchError("redis hung up while its keys were stored")
            answer += data
        if answer != expected:
            raise BenchError("redis did not store its keys")
