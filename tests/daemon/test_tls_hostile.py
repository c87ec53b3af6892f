"""Invariant: whatever is done at an encrypted port by those who have no certificate, it costs bounded memory, honest
terminals get their lines and their answers, and open lines are served first.

All against the real daemon process. Bounds are generous, since machines are busy; what was measured is printed.
"""

from __future__ import annotations

import contextlib
import resource
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import msgpack
import pytest

from keyd.hub.limits import MAX_ENROLLING
from keyd.protocol.messages.daemon import AskRandom
from keyd.tls import TlsKind
from tests.daemon.encrypted import Keyd, client_context
from tests.daemon.test_hub import open_descriptors, resident_kilobytes
from tests.daemon.test_operations import eventually, samples
from tests.daemon.test_tls_lines import RANDOM, counted, every_kind, start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Start = Callable[..., Keyd]

__all__ = ["start"]  # a fixture

# As many as this process and keyd may have, with room for everything else.
HALF_OPEN = min(10_000, resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 500)


@pytest.fixture
def sockets() -> Iterator[list[socket.socket]]:
    """Sockets that are closed after the test."""
    opened: list[socket.socket] = []
    yield opened
    for sock in opened:
        sock.close()


def connect_to(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), 20)


def connect_without_waiting(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    sock = socket.socket()
    sock.setblocking(False)
    sock.connect_ex((host, int(port)))
    return sock


def half_open(keyd: Keyd) -> float:
    ((_, count),) = samples(keyd.daemon, "keyd_tls_half_open").items()
    return count


def hello(keyd: Keyd) -> bytes:
    """Return the first flight of an honest client."""
    return keyd.context().connect("127.0.0.1", int(time.time())).data_to_send()


def slowest(ask: Callable[[], Any], seconds: float) -> tuple[int, float]:
    """Ask again and again for so long; return how often, and what the slowest took."""
    count, worst = 0, 0.0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.monotonic()
        ask()
        worst = max(worst, time.monotonic() - began)
        count += 1
    return count, worst


# Half-open lines. --------------------------------------------------------------------------------------------


def test_ten_thousand_half_open_lines_stop_nobody(
    start: Start, sockets: list[socket.socket]
) -> None:
    keyd = start()
    honest = keyd.peer()
    honest.authenticate()
    before = resident_kilobytes(keyd.daemon)
    for _ in range(HALF_OPEN):
        sockets.append(connect_without_waiting(keyd.address))
        if len(sockets) % 500 == 0:
            assert honest.ask(*RANDOM)[2] is None
            assert half_open(keyd) <= 256
            with keyd.client("DEV-0002") as newcomer:
                newcomer.ask(AskRandom(8))
    grown = resident_kilobytes(keyd.daemon) - before
    print(f"\n{HALF_OPEN} half-open lines: {grown} KiB more")  # noqa: T201 - what was measured
    assert grown < 24 * 1024
    assert open_descriptors(keyd.daemon) < 256 + 60
    assert counted(keyd.daemon, "keyd_tls_faults")["dropped"] > HALF_OPEN / 2


def test_a_half_open_line_costs_little(start: Start, sockets: list[socket.socket]) -> None:
    """Where the operator allows thousands of them, each has its bound."""
    count = 2000
    keyd = start(
        TlsKind.GUOMI,
        f"handshakes = {count}",
        f"connections = {count + 10}",
        "handshake_seconds = 60",
    )
    before = resident_kilobytes(keyd.daemon)
    first_flight = hello(keyd)
    for _ in range(count):
        sock = connect_to(keyd.address)
        sockets.append(sock)
        sock.sendall(first_flight)
    assert eventually(lambda: half_open(keyd) == count, 30)
    assert eventually(lambda: not any(unread(sock) == 0 for sock in sockets[-50:]), 60)
    each = (resident_kilobytes(keyd.daemon) - before) / count
    print(f"\na half-open line that was answered: {each:.0f} KiB")  # noqa: T201 - what was measured
    assert each < 100
    # Somebody else still gets in.
    with keyd.client() as client:
        client.ask(AskRandom(8))


def unread(sock: socket.socket) -> int:
    with contextlib.suppress(BlockingIOError):
        return len(sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    return 0


@every_kind
def test_a_flood_of_handshakes_leaves_time_for_honest_ones(
    start: Start, sockets: list[socket.socket], kind: TlsKind
) -> None:
    """Every hello of the flood costs keyd a signature, and is left at that."""
    keyd = start(kind, "handshakes = 64")
    honest = keyd.peer()
    honest.authenticate()
    _, alone = slowest(lambda: honest.ask(*RANDOM), 0.5)
    first_flight = hello(keyd)
    has_ended = threading.Event()

    def flood() -> None:
        mine: list[socket.socket] = []
        while not has_ended.is_set():
            with contextlib.suppress(OSError):
                sock = connect_to(keyd.address)
                mine.append(sock)
                sock.sendall(first_flight)
            if len(mine) > 200:
                mine.pop(0).close()
        for sock in mine:
            sock.close()

    threads = [threading.Thread(target=flood) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        asked, worst = slowest(lambda: honest.ask(*RANDOM), 3.0)
        newcomers, slowest_newcomer = slowest(lambda: come_and_go(keyd), 3.0)
    finally:
        has_ended.set()
        for thread in threads:
            thread.join()
    print(  # noqa: T201 - what was measured
        f"\n{kind.value}, flooded: an open line had {asked} answers in 3 s, the slowest after"
        f" {worst * 1000:.0f} ms (alone {alone * 1000:.0f} ms); {newcomers} newcomers, the slowest"
        f" after {slowest_newcomer * 1000:.0f} ms"
    )
    assert asked > 30
    assert newcomers >= 1


def come_and_go(keyd: Keyd) -> None:
    with keyd.client("DEV-0002") as client:
        client.ask(AskRandom(8))


@pytest.mark.parametrize("trickle", [b"", b"\x16"], ids=["silence", "a byte at a time"])
def test_a_slow_handshake_is_cut_at_the_deadline(start: Start, trickle: bytes) -> None:
    keyd = start(TlsKind.STANDARD, "handshake_seconds = 1.0")
    flight = iter(hello(keyd))
    began = time.monotonic()
    with connect_to(keyd.address) as sock:
        sock.settimeout(0.1)
        while time.monotonic() < began + 15:
            with contextlib.suppress(BrokenPipeError):
                if trickle:
                    sock.sendall(bytes([next(flight)]))
            try:
                assert sock.recv(100) == b""
                break
            except TimeoutError:
                continue
            except ConnectionResetError:
                break
    assert 0.9 < time.monotonic() - began < 10
    assert keyd.daemon.wait_for("connection_closed")["reason"] == "handshake_timeout"
    assert counted(keyd.daemon, "keyd_tls_faults") == {"timeout": 1}


def test_open_lines_that_fill_keyd_leave_no_room_and_are_kept(start: Start) -> None:
    keyd = start(TlsKind.STANDARD, "connections = 3")
    inside = [keyd.peer() for _ in range(3)]
    for peer in inside:
        peer.authenticate()
    with connect_to(keyd.address) as late:
        assert late.recv(100) == b""  # refused, without a plain word
    assert all(peer.ask(*RANDOM)[2] is None for peer in inside)


def test_lines_for_enrolment_do_not_fill_keyd(start: Start) -> None:
    """Anybody gets one: the oldest that does nothing makes room."""
    keyd = start(TlsKind.STANDARD)
    bare = keyd.context(certificate=None, private_key=None)
    peers = [keyd.peer_at(keyd.enrolment_address, bare) for _ in range(MAX_ENROLLING + 3)]
    for peer in peers[:3]:
        (answer,) = peer.answers()
        assert answer[2][1] == "OVERLOADED"
    assert all(peer.ask("daemon.status")[2][1] == "ROLE_MISSING" for peer in peers[3:])


# Open lines. -------------------------------------------------------------------------------------------------


def test_a_peer_that_never_reads_costs_little_and_is_cut_off(start: Start) -> None:
    keyd = start(TlsKind.GUOMI, "write_seconds = 1.0")
    honest, greedy = keyd.peer(), keyd.peer("DEV-0002")
    honest.authenticate()
    greedy.authenticate("DEV-0002")
    before = resident_kilobytes(keyd.daemon)
    greedy.plain.setblocking(False)
    status = greedy.encode("daemon.status") * 500
    waiting = b""
    give_up_at = time.monotonic() + 15
    was_cut = False
    while not was_cut and time.monotonic() < give_up_at:
        waiting = waiting or greedy.line.send(status)
        try:
            waiting = waiting[greedy.plain.send(waiting) :]
        except BlockingIOError:
            assert honest.ask(*RANDOM)[2] is None
            time.sleep(0.05)
        except OSError:
            was_cut = True
    assert was_cut
    assert keyd.daemon.wait_for("connection_closed")["reason"] == "slow_reader"
    assert resident_kilobytes(keyd.daemon) - before < 20 * 1024
    assert honest.ask(*RANDOM)[2] is None


def test_a_slow_reader_that_goes_on_gets_every_byte_once(start: Start) -> None:
    """What did not leave is kept as it was encrypted: another encryption of it would end the line."""
    keyd = start()
    peer = keyd.peer()
    peer.authenticate()
    peer.plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    # More than the kernel keeps on both sides.
    count = 600
    peer.sock.sendall(b"".join(peer.encode("daemon.status", msgid=n) for n in range(count)))
    time.sleep(0.5)
    unpacker = msgpack.Unpacker(max_buffer_size=1 << 24)
    seen: list[int] = []
    while len(seen) < count:
        data = peer.plain.recv(65536)
        assert data
        unpacker.feed(peer.line.receive_data_untrusted(data))
        seen += [answer[1] for answer in unpacker]
    assert seen == list(range(count))


@every_kind
def test_a_flood_of_messages_does_not_starve_an_honest_peer(start: Start, kind: TlsKind) -> None:
    keyd = start(kind)
    honest, flood = keyd.peer(), keyd.peer("DEV-0002")
    honest.authenticate()
    flood.authenticate("DEV-0002")
    count = 10_000
    data = b"".join(
        flood.line.send(flood.encode(*RANDOM, msgid=n)) for n in range(count)
    )  # a record each
    flood.plain.setblocking(False)
    at, served, answered = 0, 0, 0
    unpacker = msgpack.Unpacker()
    while answered < count:
        with contextlib.suppress(BlockingIOError):
            at += flood.plain.send(data[at : at + 65536])
        assert honest.ask(*RANDOM)[2] is None
        served += 1
        with contextlib.suppress(BlockingIOError):
            unpacker.feed(flood.line.receive_data_untrusted(flood.plain.recv(65536)))
            answered += sum(1 for _ in unpacker)
    assert served > 20


def test_thousands_of_lines_one_after_the_other_leave_nothing_behind(start: Start) -> None:
    keyd = start()
    context = client_context(keyd.kind)
    with keyd.client(context=context) as client:

        def many(count: int) -> None:
            for _ in range(count):
                client.ask(AskRandom(8))
                client.close()

        many(200)
        before = resident_kilobytes(keyd.daemon)
        many(2000)
        grown = resident_kilobytes(keyd.daemon) - before
    print(f"\n2000 lines: {grown} KiB more")  # noqa: T201 - what was measured
    assert grown < 3 * 1024
    assert counted(keyd.daemon, "keyd_tls_handshakes") == {"full": 1, "resumed": 2199}
    assert eventually(lambda: open_descriptors(keyd.daemon) < 40)


def test_peers_that_vanish_leave_nothing_behind(start: Start) -> None:
    keyd = start(TlsKind.STANDARD)
    for number in range(60):
        peer = keyd.peer()
        if number % 2:
            peer.authenticate()
            peer.sock.sendall(peer.encode(*RANDOM) * 100)
        # Linger 0: close sends a reset, whatever is unread or unsent.
        peer.plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.close()
    assert eventually(lambda: open_descriptors(keyd.daemon) < 40)
    come_and_go(keyd)
