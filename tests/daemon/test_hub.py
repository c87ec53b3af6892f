"""Whatever one peer does, it is answered or cut off within bounds, and every other peer is served.

All against the real daemon process, over real sockets.
"""

from __future__ import annotations

import contextlib
import resource
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgpack
import pytest

from keyd.hub import MAX_SLOW_PER_CONNECTION
from keyd.protocol.connection import MAX_MESSAGE

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import RunningDaemon, StartDaemon
    from tests.daemon.conftest import RawPeer, WriteConfig

    Connect = Callable[[str], RawPeer]

RANDOM = ("daemon.random", 8)


# Framing ------------------------------------------------------------------------------------------------


def test_a_request_in_single_bytes_is_answered_once(daemon: RunningDaemon, raw: Connect) -> None:
    peer = raw(daemon.address)
    peer.authenticate()
    for byte in peer.encode(*RANDOM, msgid=7):
        peer.sock.sendall(bytes([byte]))
        time.sleep(0.001)
    assert peer.answer()[:3] == [1, 7, None]


def test_thousands_of_pipelined_requests_are_answered_in_order(
    daemon: RunningDaemon, raw: Connect
) -> None:
    peer = raw(daemon.address)
    peer.authenticate()
    count = 3000
    peer.sock.sendall(b"".join(peer.encode(*RANDOM, msgid=n) for n in range(count)))
    answers = peer.answers()
    assert [next(answers)[1] for _ in range(count)] == list(range(count))


def test_slow_work_does_not_hold_up_what_comes_after_it(
    daemon: RunningDaemon, raw: Connect
) -> None:
    peer = raw(daemon.address)
    peer.authenticate()
    slow, quick = peer.encode("daemon.selftest", msgid=1), peer.encode(*RANDOM, msgid=2)
    peer.sock.sendall(slow + quick)
    answers = peer.answers()
    assert [next(answers)[1], next(answers)[1]] == [2, 1]


def test_slow_work_in_flight_is_bounded_per_connection(daemon: RunningDaemon, raw: Connect) -> None:
    peer = raw(daemon.address)
    peer.authenticate()
    count = MAX_SLOW_PER_CONNECTION + 2
    peer.sock.sendall(b"".join(peer.encode("daemon.selftest", msgid=n) for n in range(count)))
    answers = peer.answers()
    errors = [next(answers)[2] for _ in range(count)]
    assert [error[1] for error in errors if error] == ["TOO_MANY_IN_FLIGHT"] * 2


# Malformed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "junk",
    [
        b"\xc1",
        b"GET / HTTP/1.1\r\n\r\n",
        msgpack.packb({"method": "daemon.status"}),
        msgpack.packb([0, -1, "daemon.status", []]),
        msgpack.packb([0, 1, "daemon.status", {}]),
        msgpack.packb([1, 1, None, None]),
        b"\xdd\xff\xff\xff\xff",
        b"\x91" * 100_000,
        b"\xc6\x7f\xff\xff\xff" + bytes(200_000),
        b"\xc4\xff" * (MAX_MESSAGE // 2) + bytes(MAX_MESSAGE),
    ],
)
def test_malformed_bytes_get_one_error_and_then_the_end(
    daemon: RunningDaemon, raw: Connect, junk: bytes
) -> None:
    bystander, peer = raw(daemon.address), raw(daemon.address)
    bystander.authenticate()
    peer.sock.sendall(junk)
    (answer,) = peer.answers()
    assert answer[:2] == [1, None]
    assert answer[2][:2] == [100, "MALFORMED"]
    assert bystander.ask(*RANDOM)[2] is None


def test_requests_before_the_malformed_bytes_are_answered(
    daemon: RunningDaemon, raw: Connect
) -> None:
    peer = raw(daemon.address)
    peer.authenticate()
    peer.sock.sendall(peer.encode(*RANDOM, msgid=5) + b"\xc1" + peer.encode(*RANDOM, msgid=6))
    first, last = peer.answers()
    assert first[1:3] == [5, None]
    assert last[2][1] == "MALFORMED"


def test_an_answer_never_holds_a_traceback(daemon: RunningDaemon, raw: Connect) -> None:
    peer = raw(daemon.address)
    peer.authenticate()
    junk: list[list[Any]] = [[], [1], [[]], [None] * 4, ["x" * 1000], [[b"", b""], b"", b""]]
    for params in junk:
        error = peer.ask("card.internal_cryptogram", *params)[2]
        assert error[1] == "BAD_PARAMETER"
        assert "Traceback" not in error[2]
        assert "File" not in error[2]


# Ends ---------------------------------------------------------------------------------------------------


def test_a_half_closed_peer_gets_every_answer(daemon: RunningDaemon, raw: Connect) -> None:
    peer = raw(daemon.address)
    peer.authenticate()
    count = 500
    messages = [peer.encode(*RANDOM, msgid=n) for n in range(count)]
    messages.append(peer.encode("daemon.selftest", msgid=count))
    peer.sock.sendall(b"".join(messages))
    peer.sock.shutdown(socket.SHUT_WR)
    assert sorted(answer[1] for answer in peer.answers()) == list(range(count + 1))


def test_a_peer_that_closes_within_a_message_is_told(daemon: RunningDaemon, raw: Connect) -> None:
    peer = raw(daemon.address)
    peer.sock.sendall(peer.encode(*RANDOM)[:-1])
    peer.sock.shutdown(socket.SHUT_WR)
    (answer,) = peer.answers()
    assert answer[2][1] == "MALFORMED"
    assert "within a message" in answer[2][2]


def test_a_peer_that_vanishes_leaves_nothing_behind(daemon: RunningDaemon, raw: Connect) -> None:
    for _ in range(50):
        peer = raw(daemon.address)
        peer.authenticate()
        peer.sock.sendall(peer.encode(*RANDOM) * 100)
        # Linger 0: close sends a reset, whatever is unread or unsent.
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.close()
    last = raw(daemon.address)
    last.authenticate()
    assert last.ask(*RANDOM)[2] is None
    descriptors = open_descriptors(daemon)
    assert descriptors < 40, descriptors


def open_descriptors(daemon: RunningDaemon) -> int:
    """Count the daemon's open file descriptors."""
    return len(list(Path(f"/proc/{daemon.process.pid}/fd").iterdir()))


# Greed and sloth ----------------------------------------------------------------------------------------


def test_a_peer_that_never_reads_costs_little_and_is_cut_off(
    start_daemon: StartDaemon, write_config: WriteConfig, raw: Connect
) -> None:
    daemon = start_daemon(*write_config("[limits]", "write_seconds = 1.0"))
    honest, greedy = raw(daemon.address), raw(daemon.address)
    honest.authenticate()
    greedy.authenticate()
    before = resident_kilobytes(daemon)
    greedy.sock.setblocking(False)
    status = greedy.encode("daemon.status") * 500
    give_up_at = time.monotonic() + 15
    was_cut = False
    while not was_cut and time.monotonic() < give_up_at:
        try:
            greedy.sock.send(status)
        except BlockingIOError:
            assert honest.ask(*RANDOM)[2] is None
            time.sleep(0.05)
        except OSError:
            was_cut = True
    assert was_cut
    closed = daemon.wait_for("connection_closed")
    assert closed["reason"] == "slow_reader"
    assert resident_kilobytes(daemon) - before < 16 * 1024
    assert honest.ask(*RANDOM)[2] is None


def resident_kilobytes(daemon: RunningDaemon) -> int:
    """Return the daemon's resident memory."""
    for line in Path(f"/proc/{daemon.process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError


def test_a_flood_does_not_starve_an_honest_peer(daemon: RunningDaemon, raw: Connect) -> None:
    honest, flood = raw(daemon.address), raw(daemon.address)
    honest.authenticate()
    flood.authenticate()
    flood.sock.settimeout(20)
    sent = b"".join(flood.encode(*RANDOM, msgid=n) for n in range(20_000))
    flood.sock.setblocking(False)
    at = 0
    served = 0
    answers: list[Any] = []
    unpacker = msgpack.Unpacker()
    while len(answers) < 20_000:
        with contextlib.suppress(BlockingIOError):
            at += flood.sock.send(sent[at : at + 65536])
        assert honest.ask(*RANDOM)[2] is None
        served += 1
        with contextlib.suppress(BlockingIOError):
            unpacker.feed(flood.sock.recv(1 << 20))
            answers += unpacker
    assert served > 20


def test_a_peer_that_says_nothing_is_told_and_closed(
    start_daemon: StartDaemon, write_config: WriteConfig, raw: Connect
) -> None:
    daemon = start_daemon(*write_config("[limits]", "first_message_seconds = 0.5"))
    (answer,) = raw(daemon.address).answers()
    assert answer[2][1] == "TIMED_OUT"
    assert daemon.wait_for("connection_closed")["reason"] == "no_first_message"


def test_a_slow_loris_is_closed_however_it_trickles(
    start_daemon: StartDaemon, write_config: WriteConfig, raw: Connect
) -> None:
    daemon = start_daemon(*write_config("[limits]", "first_message_seconds = 0.7"))
    peer = raw(daemon.address)
    give_up_at = time.monotonic() + 10
    message = iter(peer.encode("terminal.challenge", "x" * 30, bytes(16)))
    peer.sock.settimeout(0.1)
    data = b""
    while time.monotonic() < give_up_at and not data:
        try:
            peer.sock.send(bytes([next(message)]))
            data = peer.sock.recv(1000)
        except TimeoutError:
            continue
        except OSError:
            break
    assert msgpack.unpackb(data)[2][1] == "TIMED_OUT"


def test_an_idle_peer_is_told_and_closed_and_a_busy_one_is_not(
    start_daemon: StartDaemon, write_config: WriteConfig, raw: Connect
) -> None:
    daemon = start_daemon(*write_config("[limits]", "idle_seconds = 1.0"))
    idle, busy = raw(daemon.address), raw(daemon.address)
    idle.authenticate()
    busy.authenticate()
    for _ in range(15):
        time.sleep(0.2)
        assert busy.ask(*RANDOM)[2] is None
    (answer,) = idle.answers()
    assert answer[2][1] == "TIMED_OUT"


# Many ---------------------------------------------------------------------------------------------------


def test_connections_beyond_the_limit_are_told_and_closed(
    start_daemon: StartDaemon, write_config: WriteConfig, raw: Connect
) -> None:
    daemon = start_daemon(*write_config("[limits]", "connections = 3"))
    inside = [raw(daemon.address) for _ in range(3)]
    for peer in inside:
        peer.authenticate()
    (answer,) = raw(daemon.address).answers()
    assert answer[2][1] == "OVERLOADED"
    inside.pop().close()
    daemon.wait_for("connection_closed")
    raw(daemon.address).authenticate()
    assert all(peer.ask(*RANDOM)[2] is None for peer in inside)


def test_three_hundred_connections_are_all_served(daemon: RunningDaemon, raw: Connect) -> None:
    peers = [raw(daemon.address) for _ in range(300)]
    for number, peer in enumerate(peers):
        peer.authenticate(f"DEV-{number % 64 + 1:04}")
    msgids = [peer.send(*RANDOM) for peer in peers]
    assert [peer.answer()[1] for peer in peers] == msgids


def test_running_out_of_file_descriptors_is_survived(daemon: RunningDaemon, raw: Connect) -> None:
    honest = raw(daemon.address)
    honest.authenticate()
    pid = daemon.process.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (open_descriptors(daemon) + 2, limits[1]))
    late = [raw(daemon.address) for _ in range(10)]
    paused = daemon.wait_for("accept_paused")
    assert paused["reason"] == "EMFILE"
    assert honest.ask(*RANDOM)[2] is None
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    newcomer = raw(daemon.address)
    newcomer.authenticate()
    assert newcomer.ask(*RANDOM)[2] is None
    # Some of the late ones were told; none of the rest is left hanging for ever.
    outcomes = [first_word(peer) for peer in late]
    assert set(outcomes) <= {"OVERLOADED", "served"}, outcomes
    assert "OVERLOADED" in outcomes


def first_word(peer: RawPeer) -> str:
    """Ask; say whether the peer was served or refused at the door."""
    try:
        peer.send("terminal.challenge", "DEV-0001", bytes(16))
        answer = peer.answer()
    except OSError:
        return "OVERLOADED"
    return answer[2][1] if answer[2] else "served"


# The Unix socket ----------------------------------------------------------------------------------------


def test_the_unix_socket_serves_the_operator_without_a_terminal(
    start_daemon: StartDaemon, tmp_path: Path, raw: Connect
) -> None:
    path = tmp_path / "keyd.sock"
    daemon = start_daemon("--unix", str(path))
    assert path.stat().st_mode & 0o777 == 0o660
    local, remote = raw(daemon.unix), raw(daemon.address)
    assert local.ask("daemon.status")[2] is None
    # The operator may look; keys are for terminals.
    assert local.ask(*RANDOM)[2][1] == "NOT_AUTHENTICATED"
    assert remote.ask("daemon.status")[2][1] == "NOT_AUTHENTICATED"
    local.authenticate()
    assert local.ask(*RANDOM)[2] is None
