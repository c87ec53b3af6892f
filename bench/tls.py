"""The tls suite: what a line costs. Handshakes per second, full and resumed, and megabytes per second, of both kinds.

Both sides are in this process and over memory, and only what the server does is timed: the client's share, a socket
and the hub are other costs. Times are CPU times of one thread, in a Python loop. Kinds take turns in every
repetition, so that a machine that slows down slows them all.
"""

from __future__ import annotations

import datetime
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from bench.cpus import choose_cpus, on_cpu
from bench.findings import Finding, Findings, Sample, add_out, finish
from keyd.tls import MAX_CHUNK, TlsClientContext, TlsKind, TlsServerContext, TlsState, version
from keyd.tls.pki import Validity, synthetic_pki

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from OpenSSL import SSL

    from keyd.tls import TlsClientConnection, TlsConnection

HELP: Final = "what TLS costs: handshakes and megabytes per second and CPU, of both kinds"

NAME: Final = "tls"

# A request of the hottest command and its answer have about this much; and a whole record, where cost is per byte.
SMALL: Final = 120
LARGE: Final = 16 * 1024

_SERVER: Final = "keyd.bench"
_CODE: Final = "bench"


class _Contestant(NamedTuple):
    """One kind with one group."""

    name: str
    server: TlsServerContext
    client: TlsClientContext


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this suite's options."""
    parser.add_argument(
        "--handshakes", type=int, default=200, help="of each sort a repetition (default 200)"
    )
    parser.add_argument(
        "--megabytes", type=int, default=16, help="each way a repetition (default 16)"
    )
    parser.add_argument("--repetitions", type=int, default=5, help="of all that (default 5)")
    add_out(parser)


def run(options: argparse.Namespace) -> None:
    """Run the suite: print the tables, write the results."""
    findings = Findings.begin(
        NAME,
        f"{options.repetitions} repetitions of {options.handshakes} handshakes and {options.megabytes} MB",
    )
    measure(findings, options.handshakes, options.megabytes, options.repetitions)
    finish(findings, options.out)


def measure(findings: Findings, handshakes: int, megabytes: int, repetitions: int) -> None:
    """Take every figure of every kind and group."""
    now = int(time.time())
    contestants = list(_contestants(now))
    with on_cpu(choose_cpus().generator):
        for repetition in range(repetitions):
            for contestant in contestants:
                for what, unit, value in _figures(contestant, now, handshakes, megabytes):
                    findings.samples.append(Sample(what, contestant.name, unit, repetition, value))
    for what, who, unit in dict.fromkeys((s.what, s.who, s.unit) for s in findings.samples):
        findings.findings.append(Finding(f"{what}, {who}", unit, findings.values(what, who)))
    findings.notes.append(f"{version()}; the server's side only, one CPU, over memory.")


def _contestants(now: int) -> Iterator[_Contestant]:
    moment = datetime.datetime.fromtimestamp(now, datetime.UTC)
    day = datetime.timedelta(days=1)
    for kind in TlsKind:
        made = synthetic_pki(kind, Validity(moment - day, moment + day), [_SERVER], [_CODE])
        terminal = made.terminals[_CODE]
        for group in kind.groups:
            server = TlsServerContext(
                kind,
                certificate=made.server.certificate,
                private_key=made.server.private_key,
                client_authorities=made.authority.certificate,
                groups=[group],
            )
            client = TlsClientContext(
                kind,
                certificate=terminal.certificate,
                private_key=terminal.private_key,
                server_authorities=made.authority.certificate,
                groups=[group],
            )
            yield _Contestant(f"{kind.value} {group}", server, client)


def _figures(
    contestant: _Contestant, now: int, handshakes: int, megabytes: int
) -> Iterator[tuple[str, str, float]]:
    first, _, _ = _shake_hands(contestant, now, None)
    for what, session in (("full handshakes", None), ("resumed handshakes", first.session)):
        seconds = 0.0
        for _ in range(handshakes):
            _, server, spent = _shake_hands(contestant, now, session)
            if server.state is not TlsState.OPEN or server.is_resumed != (session is not None):
                raise AssertionError("this was not the handshake that was to be measured")
            seconds += spent
        yield what, "/s", handshakes / seconds
    client, server, _ = _shake_hands(contestant, now, None)
    for size in (LARGE, SMALL):
        # Small ones cost by the message, so fewer bytes take as long.
        messages = megabytes * 1_000_000 // size // (1 if size == LARGE else 20) + 1
        yield f"encrypting {size} bytes", " MB/s", _encrypting(server, size, messages)
        yield f"decrypting {size} bytes", " MB/s", _decrypting(client, server, size, messages)


def _shake_hands(
    contestant: _Contestant, now: int, session: SSL.Session | None
) -> tuple[TlsClientConnection, TlsConnection, float]:
    """Return both ends and how long the server took."""
    client = contestant.client.connect(_SERVER, now, session)
    hello = client.data_to_send()
    started = time.thread_time()
    server = contestant.server.accept(now)
    server.receive_data_untrusted(hello)
    flight = server.data_to_send()
    seconds = time.thread_time() - started
    client.receive_data_untrusted(flight)
    last = client.data_to_send()
    started = time.thread_time()
    server.receive_data_untrusted(last)
    tickets = server.data_to_send()
    seconds += time.thread_time() - started
    client.receive_data_untrusted(tickets)
    return client, server, seconds


def _encrypting(server: TlsConnection, size: int, messages: int) -> float:
    message = bytes(size)
    started = time.thread_time()
    for _ in range(messages):
        server.send(message)
    return size * messages / (time.thread_time() - started) / 1e6


def _decrypting(
    client: TlsClientConnection, server: TlsConnection, size: int, messages: int
) -> float:
    """As a hub receives: what came at once, at most a chunk, is one call."""
    message = bytes(size)
    at_once = MAX_CHUNK // (size + 64)
    seconds, received = 0.0, 0
    for _ in range(messages // at_once + 1):
        data = b"".join(client.send(message) for _ in range(at_once))
        started = time.thread_time()
        received += len(server.receive_data_untrusted(data))
        seconds += time.thread_time() - started
    return received / seconds / 1e6
