"""A daemon with the pump and one without it cannot be told apart, except by the order of answers.

Every conversation goes through both, as real processes over real sockets; its answers (by msgid, raw), how the line
ended and what the metrics counted have to be the same. The order of answers is the protocol's to choose, and is the
proof that the pump served: it answers the good requests of a read before Python refuses the forged ones between them.
"""

from __future__ import annotations

import itertools
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.request import urlopen

import msgpack
import pytest
import trio

from keyd.crypto.selftest import SelftestResult
from keyd.dispatch import Dispatch
from keyd.hub import Hub, Limits
from keyd.keys.block import Use
from keyd.keys.synthetic import synthetic_terminal_key
from keyd.pump import METHODS
from keyd.pump._pump import Pump
from keyd.registry.synthetic import synthetic_terminal
from keyd.routes import Routes
from keyd.telemetry import Events, Meter
from keyd.terminals import Session
from tests.conftest import _NOT_INHERITED, START_SECONDS, RunningDaemon
from tests.daemon.conftest import RawPeer
from tests.daemon.journals import named_uses
from tests.proofs import terminal_proof
from tests.pump.conftest import (
    CARD,
    CHALLENGE,
    DES,
    EXTERNAL_AUTHENTICATE,
    FACTOR,
    INTERNAL_AUTHENTICATE,
    INTERNAL_CRYPTOGRAM,
    IRK,
    REGIONS,
    RKSSSE,
    SM4,
    SSF33,
    HolderCard,
    cold,
    cryptogram,
    forged,
    hot,
    identity,
    label,
    make_services,
    messages,
    msgid_of,
    numbered,
    packed,
    ring,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import StartDaemon
    from tests.daemon.conftest import WriteConfig
    from tests.daemon.journals import NamedUse

TICKS: Final = ("native", "python")

# What has to be the same. Durations are not, but how many there are is; ticks are not, but what they decided is.
COUNTED: Final = re.compile(
    r"^(keyd_(?:requests_total|connections_closed_total|connections_opened_total|connections_refused_total"
    r"|request_duration_seconds_count|request_compute_seconds_count|tick_requests_sum)\S*) (\S+)$",
    re.MULTILINE,
)

SECONDS: Final = 10.0


class Talker:
    """A peer of one conversation, and a record of all that it was answered."""

    def __init__(self, address: str, *, authenticates: bool = True) -> None:
        self.peer = RawPeer(address)
        self.sock = self.peer.sock
        self.sock.settimeout(SECONDS)
        if self.sock.family != socket.AF_UNIX:
            # What is sent by itself is to arrive by itself.
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.heard = b""
        self.end = "open"
        self.hears = 0
        if authenticates:
            self.peer.authenticate()

    def say(self, *requests: bytes, answers: int | None = None) -> list[bytes]:
        """Send all at once and wait for an answer to each; return these, as they came."""
        self.sock.sendall(b"".join(requests))
        return self.hear(len(requests) if answers is None else answers)

    def hear(self, count: int) -> list[bytes]:
        """Wait for so many more answers."""
        self.hears += count
        unpacker = msgpack.Unpacker()
        unpacker.feed(self.heard)
        whole = 0
        while whole < self.hears:
            try:
                unpacker.skip()
                whole += 1
            except msgpack.OutOfData:
                data = self.sock.recv(1 << 16)
                assert data, f"keyd closed after {whole} of {self.hears} answers: {self.heard!r}"
                self.heard += data
                unpacker.feed(data)
        return messages(self.heard[: unpacker.tell()])[-count:] if count else []

    def finish(self, *, half_close: bool = True) -> None:
        """Read until keyd closes the line."""
        if half_close:
            self.sock.shutdown(socket.SHUT_WR)
        try:
            while data := self.sock.recv(1 << 16):
                self.heard += data
            self.end = "closed"
        except ConnectionResetError:
            self.end = "reset"
        self.peer.close()


class Outcome(NamedTuple):
    """All that two daemons are compared by."""

    answers: list[bytes]
    end: str
    counted: dict[str, float]
    # What the journal has of it. Its order is that of the answers, and so the protocol's to choose.
    uses: Counter[NamedUse]


def counted(daemon: RunningDaemon) -> dict[str, float]:
    """Read the metrics that have to be the same."""
    with urlopen(f"http://{daemon.operations}/metrics", timeout=SECONDS) as page:
        return {name: float(value) for name, value in COUNTED.findall(page.read().decode())}


def closed(counts: dict[str, float]) -> float:
    return sum(value for name, value in counts.items() if "connections_closed" in name)


def outcome(
    daemon: RunningDaemon, converse: Callable[[Talker], object], *, authenticates: bool = True
) -> Outcome:
    before = counted(daemon)
    recorded = len(uses_of(daemon))
    talker = Talker(daemon.address, authenticates=authenticates)
    try:
        converse(talker)
        if talker.end == "open":
            talker.finish()
    finally:
        talker.peer.close()
    give_up_at = time.monotonic() + SECONDS
    while closed(after := counted(daemon)) == closed(before):
        assert time.monotonic() < give_up_at, "the daemon did not see the end of the line"
    changed = {
        name: value - before.get(name, 0)
        for name, value in after.items()
        if value != before.get(name, 0)
    }
    uses = Counter(uses_of(daemon)[recorded:])
    return Outcome(sorted(messages(talker.heard)), talker.end, changed, uses)


def uses_of(daemon: RunningDaemon) -> list[NamedUse]:
    """What a daemon has recorded until now; nothing, if it keeps no journal."""
    arguments = daemon.process.args
    assert isinstance(arguments, list)
    if "--journal" not in arguments:
        return []
    return named_uses(Path(arguments[arguments.index("--journal") + 1]))


@pytest.fixture(scope="module")
def daemons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, RunningDaemon]]:
    """A development keyd with the pump and one without, and their journals; what they learn, they keep."""
    with ExitStack() as started:
        running = {}
        inherited = {
            name: value for name, value in os.environ.items() if name not in _NOT_INHERITED
        }
        for tick in TICKS:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "keyd.daemon", "--dev"),
                    *("--tcp", "127.0.0.1:0", "--operations", "127.0.0.1:0"),
                    *("--journal", str(tmp_path_factory.mktemp(tick))),
                ],
                env=inherited | {"KEYD_TICK": tick},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            running[tick] = RunningDaemon(process)
            started.callback(running[tick].close)
        for daemon in running.values():
            daemon.ready = daemon.wait_for("ready", START_SECONDS)
        # Everything that `hot` asks by default is learnt.
        for daemon in running.values():
            talker = Talker(daemon.address)
            for method in METHODS:
                talker.say(hot(method))
            talker.finish()
            assert is_native(daemon) is (daemon is running["native"])
        yield running


def is_native(daemon: RunningDaemon, *good: bytes) -> bool:
    """Whether the pump answers these (by default all hot methods): it does so before Python refuses a forged card."""
    requests = good or tuple(hot(method) for method in METHODS)
    talker = Talker(daemon.address)
    answers = talker.say(numbered([forged(), *requests]), answers=len(requests) + 1)
    talker.finish()
    numbers = [msgid_of(answer) for answer in answers]
    in_order = list(range(len(requests) + 1))
    assert numbers in (in_order, [*in_order[1:], 0])
    return numbers != in_order


def require_same(
    daemons: dict[str, RunningDaemon],
    converse: Callable[[Talker], object],
    *,
    authenticates: bool = True,
) -> Outcome:
    """Have the conversation with both daemons and compare all that came of it."""
    native, python = (
        outcome(daemons[tick], converse, authenticates=authenticates) for tick in TICKS
    )
    assert native.answers == python.answers
    assert native.end == python.end
    assert native.counted == python.counted
    assert native.uses == python.uses
    return native


def test_both_ticks_record_every_answer_in_the_order_of_the_answers(
    daemons: dict[str, RunningDaemon],
) -> None:
    # Each asks with a card of its own region, which is what a masked record shows of it.
    requests = [
        request
        for region in REGIONS
        for request in (
            forged(card=HolderCard(region)),
            *(hot(method, card=HolderCard(region)) for method in METHODS),
            packed([0, 1, "card.pin_unblock", [identity(HolderCard(region)), FACTOR]]),
        )
    ]
    regions = [region for region in REGIONS for _ in range(5)]

    def converse(talker: Talker) -> None:
        for _ in range(3):
            talker.say(numbered(requests), answers=len(requests))

    for daemon in daemons.values():
        before = len(uses_of(daemon))
        talker = Talker(daemon.address)
        converse(talker)
        talker.finish()
        authentication, *uses = uses_of(daemon)[before:]
        assert (authentication.method, authentication.terminal) == (
            "terminal.authenticate",
            "DEV-0001",
        )
        answers = [msgpack.unpackb(answer) for answer in messages(talker.heard)]
        assert [(use.status, use.card) for use in uses] == [
            (answer[2][0] if answer[2] else 0, bytes.fromhex(regions[answer[1]]) + bytes(13))
            for answer in answers
        ]
        assert {use.connection for use in uses} == {authentication.connection}
        assert {use.terminal for use in uses} == {"DEV-0001"}
        assert {use.key for use in uses} == {
            label(IRK),
            label(RKSSSE, Use.EXTERNAL),
            label(0x0173, Use.MESSAGING),
        }
    assert require_same(daemons, converse).uses.total() == 3 * len(requests) + 1


# Hot requests ---------------------------------------------------------------------------------------------


def forms() -> Iterator[bytes]:
    """Every form of a hot request."""
    msgids = itertools.cycle((0, 0x7F, 0x80, 0xFF, 0x100, 0xFFFF, 0x1_0000, 0xFFFF_FFFF))
    for region, has_own_region, is_atr in itertools.product(REGIONS, (True, False), (True, False)):
        card = HolderCard(region, has_own_region=has_own_region)
        for method, optional in itertools.product(
            METHODS, ((), (SM4,), (SM4, 3), (DES,), (DES, 3))
        ):
            address = RKSSSE if method == EXTERNAL_AUTHENTICATE else IRK
            for named in {None, address} if method != EXTERNAL_AUTHENTICATE else {address}:
                yield hot(method, next(msgids), card, optional, named, is_atr=is_atr)


def test_every_form_of_a_hot_request_first_and_again(daemons: dict[str, RunningDaemon]) -> None:
    requests = list(forms())

    def converse(talker: Talker) -> None:
        for request in requests:
            talker.say(request)
        for _ in range(2):
            talker.say(*requests)

    result = require_same(daemons, converse)
    assert len(result.answers) == 3 * len(requests)
    # And the second time it was the pump.
    good = [request[:2] + b"\1" + request[3:] for request in requests if request[2:3] == b"\0"]
    assert len(good) > 30
    assert is_native(daemons["native"], *good)
    assert not is_native(daemons["python"], *good)


def refused_requests() -> list[bytes]:
    """Near misses: each is refused by one rule or another."""
    who, right = identity(), cryptogram()
    other_serial = [CARD.card_id, HolderCard(serial=b"\0\0\0\1").historical]
    params: dict[str, list[list[Any]]] = {
        INTERNAL_CRYPTOGRAM: [
            [other_serial, FACTOR, CHALLENGE],
            [[CARD.card_id[:15], CARD.historical], FACTOR, CHALLENGE],
            [[CARD.card_id, CARD.historical[1:]], FACTOR, CHALLENGE],
            [[CARD.card_id, b"\x3b\x6e" + CARD.atr[2:]], FACTOR, CHALLENGE],
            [identity(HolderCard("51010A")), FACTOR, CHALLENGE],
            [who, FACTOR[:4], CHALLENGE],
            [who, FACTOR, CHALLENGE * 2],
            [who, FACTOR, CHALLENGE, 0xFFFF],
            [who, FACTOR, CHALLENGE, RKSSSE],
            [who, FACTOR, CHALLENGE, 0x1_0000 + IRK],
            [[*who, SSF33], FACTOR, CHALLENGE],
            [[*who, SM4, 2], FACTOR, CHALLENGE],
            [[*who, SM4, 9], FACTOR, CHALLENGE],
            [[*who, 0x103], FACTOR, CHALLENGE],
            [who, FACTOR, CHALLENGE, IRK, IRK],
        ],
        INTERNAL_AUTHENTICATE: [
            [who, FACTOR, CHALLENGE],
            [who, FACTOR, CHALLENGE, right[:7]],
            [who, FACTOR, CHALLENGE, right[::-1]],
            [[*who, DES], FACTOR, CHALLENGE, right],
        ],
        EXTERNAL_AUTHENTICATE: [
            [who, IRK, FACTOR, CHALLENGE],
            [who, 0x004F, FACTOR, CHALLENGE],  # good, but of an unknown key id: no APDU
            [who, RKSSSE, FACTOR, CHALLENGE[:7]],
        ],
    }
    return [packed([0, 1, method, each]) for method, all_ in params.items() for each in all_]


def test_near_misses_are_refused_in_the_same_words(daemons: dict[str, RunningDaemon]) -> None:
    def converse(talker: Talker) -> None:
        for request in refused_requests():
            talker.say(request)
        talker.say(numbered(refused_requests()), answers=len(refused_requests()))

    require_same(daemons, converse)


def test_other_forms_of_numbers_are_the_same_numbers(daemons: dict[str, RunningDaemon]) -> None:
    request = hot(INTERNAL_CRYPTOGRAM)
    widths = [b"\xcc\5", b"\xcd\0\5", b"\xce\0\0\0\5", b"\xcf" + bytes(7) + b"\5", b"\xd0\5"]
    require_same(
        daemons, lambda talker: [talker.say(request[:2] + width + request[3:]) for width in widths]
    )


def test_a_wrong_cryptogram_is_refused_once_and_logged_once(
    daemons: dict[str, RunningDaemon],
) -> None:
    def refusals(daemon: RunningDaemon) -> list[dict[str, Any]]:
        return [line for line in daemon.log_lines() if line["event"] == "refused"]

    def closings(daemon: RunningDaemon) -> int:
        return sum(line["event"] == "connection_closed" for line in daemon.log_lines())

    time.sleep(1.1)  # log lines that peers cause are bounded per second
    before = {tick: (len(refusals(daemon)), closings(daemon)) for tick, daemon in daemons.items()}
    result = require_same(
        daemons, lambda talker: talker.say(numbered([forged(), hot(METHODS[0])]), answers=2)
    )
    assert len(result.answers) == 2
    new = {}
    for tick, daemon in daemons.items():
        lines_before, closed_before = before[tick]
        give_up_at = time.monotonic() + SECONDS
        while closings(daemon) == closed_before and time.monotonic() < give_up_at:
            time.sleep(0.01)
        new[tick] = refusals(daemon)[lines_before:]
    for lines in new.values():
        (line,) = lines
        assert line["status"] == "CARD_NOT_AUTHENTIC"
        del line["timestamp"], line["connection"]
    assert new["native"] == new["python"]


# Streams --------------------------------------------------------------------------------------------------


def mix(count: int) -> list[bytes]:
    """Hot, cold, forged, refused and batched requests in turn."""
    batch = packed([0, 1, INTERNAL_CRYPTOGRAM + "_batch", [[[identity(), FACTOR, CHALLENGE]] * 3]])
    unknown = packed([0, 1, "card.unknown", []])
    kinds = itertools.cycle(
        (
            *(*(hot(method) for method in METHODS), forged(), hot(METHODS[1]), cold()),
            *(hot(METHODS[0]), *refused_requests()[:2], hot(METHODS[2]), batch, unknown),
        )
    )
    return list(itertools.islice(kinds, count))


@pytest.mark.parametrize("count", [1, 5, 63, 64, 65, 200, 900])
def test_pipelined_mixes(daemons: dict[str, RunningDaemon], count: int) -> None:
    result = require_same(daemons, lambda talker: talker.say(numbered(mix(count)), answers=count))
    assert len({msgid_of(answer) for answer in result.answers}) == count


@pytest.mark.parametrize(
    "junk", [b"\xc1", b"\x93\x01", b"\x94\x00\x01\xa1x\x90" + b"GET /", b"\x00"]
)
@pytest.mark.parametrize("good", [(), (hot(METHODS[0]),), (hot(METHODS[1]), forged(), cold())])
def test_malformed_bytes_behind_good_ones(
    daemons: dict[str, RunningDaemon], good: tuple[bytes, ...], junk: bytes
) -> None:
    def converse(talker: Talker) -> None:
        talker.sock.sendall(numbered(good) + junk + hot(METHODS[0], 99))
        talker.finish()

    result = require_same(daemons, converse)
    numbers = [msgid_of(answer) for answer in result.answers]
    assert numbers.count(None) == 1
    assert 99 not in numbers


def test_requests_cut_at_every_byte(daemons: dict[str, RunningDaemon]) -> None:
    def converse(talker: Talker) -> None:
        for method in METHODS:
            data = numbered([hot(method), hot(method)])
            for cut in range(1, len(data)):
                talker.sock.sendall(data[:cut])
                # Not a pause for its own sake: the daemon is to see the first part alone.
                time.sleep(0.0005)
                talker.sock.sendall(data[cut:])
                talker.hear(2)

    require_same(daemons, converse)


def test_a_request_that_arrives_within_another_is_data(daemons: dict[str, RunningDaemon]) -> None:
    inner = hot(INTERNAL_CRYPTOGRAM, 66)
    outer = packed([0, 1, "card.secure_message", [identity(), 0, FACTOR, inner * 3]])
    at = outer.index(inner)

    def converse(talker: Talker) -> None:
        for _ in range(20):
            talker.sock.sendall(hot(INTERNAL_CRYPTOGRAM, 2) + outer[:at])
            time.sleep(0.002)
            talker.sock.sendall(outer[at : at + len(inner)])
            time.sleep(0.002)
            talker.sock.sendall(outer[at + len(inner) :])
            talker.hear(2)

    result = require_same(daemons, converse)
    assert 66 not in [msgid_of(answer) for answer in result.answers]


@pytest.mark.parametrize("tail", [b"", hot(METHODS[0])[:40], b"\xc1", forged(), cold()])
def test_half_closed_behind_pipelined_hot_requests(
    daemons: dict[str, RunningDaemon], tail: bytes
) -> None:
    requests = numbered([hot(METHODS[at % 3]) for at in range(500)]) + tail

    def converse(talker: Talker) -> None:
        talker.sock.sendall(requests)
        talker.finish()

    result = require_same(daemons, converse)
    assert len(result.answers) >= 500
    assert result.end == "closed"


# Who asks -------------------------------------------------------------------------------------------------


def test_nobody_is_served_before_he_is_known(daemons: dict[str, RunningDaemon]) -> None:
    result = require_same(
        daemons,
        lambda talker: [talker.say(*(hot(method) for method in METHODS)) for _ in range(2)],
        authenticates=False,
    )
    assert all(b"NOT_AUTHENTICATED" in answer for answer in result.answers)


def test_nobody_is_served_after_a_failed_authentication(daemons: dict[str, RunningDaemon]) -> None:
    def converse(talker: Talker) -> None:
        talker.peer.ask("terminal.challenge", "DEV-0001", bytes(16))
        talker.say(packed([0, 1, "terminal.authenticate", [bytes(8)]]), hot(METHODS[1], 2))
        talker.say(hot(METHODS[1], 3))

    result = require_same(daemons, converse, authenticates=False)
    assert [b"NOT_AUTHENTIC" in answer for answer in result.answers] == [True] * 3


def test_a_line_that_lost_its_terminal_is_served_no_more(daemons: dict[str, RunningDaemon]) -> None:
    def converse(talker: Talker) -> None:
        talker.say(*(hot(method, 1) for method in METHODS))
        talker.peer.ask("terminal.challenge", "DEV-0002", bytes(16))
        # All in one send: what stands before it is served, what stands behind it is not.
        talker.say(
            hot(METHODS[1], 2),
            packed([0, 3, "terminal.authenticate", [bytes(8)]]),
            hot(METHODS[1], 4),
        )
        for _ in range(3):
            talker.say(*(hot(method, 5) for method in METHODS))

    result = require_same(daemons, converse)
    by_msgid = [(msgid_of(answer), b"NOT_AUTHENTICATED" in answer) for answer in result.answers]
    assert Counter(by_msgid) == {
        (1, False): 3,
        (2, False): 1,
        (3, False): 1,
        (4, True): 1,
        (5, True): 9,
    }


def test_a_terminal_that_proves_itself_again_is_served_again(
    daemons: dict[str, RunningDaemon],
) -> None:
    def converse(talker: Talker) -> None:
        talker.say(hot(METHODS[1]))
        talker.peer.ask("terminal.challenge", "DEV-0002", bytes(16))
        talker.say(packed([0, 3, "terminal.authenticate", [bytes(8)]]))
        talker.peer.authenticate("DEV-0003")
        talker.say(hot(METHODS[1], 4), hot(METHODS[0], 5))

    result = require_same(daemons, converse)
    assert sum(b"NOT_AUTHENTIC" in answer for answer in result.answers) == 1


# Time, and peers that do not read -------------------------------------------------------------------------


def test_a_slow_reader_gets_every_answer_once(start_daemon: StartDaemon, tmp_path: Path) -> None:
    # As many requests as it takes until nothing moves any more, and no answer read until then.
    sent = {}
    for tick in TICKS:
        path = tmp_path / f"{tick}.sock"
        daemon = start_daemon("--unix", str(path), env={"KEYD_TICK": tick})
        talker = Talker(f"unix:{path}")
        talker.say(hot(EXTERNAL_AUTHENTICATE))
        talker.sock.setblocking(False)
        count, waiting = 0, b""
        while select.select([], [talker.sock], [], 0.3)[1]:
            if not waiting:
                waiting = b"".join(
                    hot(EXTERNAL_AUTHENTICATE, 0x1_0000 + count + at) for at in range(64)
                )
                count += 64
            with suppress(BlockingIOError):
                waiting = waiting[talker.sock.send(waiting) :]
        talker.sock.setblocking(True)
        # Reading must begin before the last bytes can be sent.
        with select.epoll() as epoll:
            epoll.register(talker.sock, select.EPOLLIN | select.EPOLLOUT)
            while waiting:
                ((_, mask),) = epoll.poll(SECONDS)
                if mask & select.EPOLLIN:
                    talker.heard += talker.sock.recv(1 << 16)
                if mask & select.EPOLLOUT:
                    waiting = waiting[talker.sock.send(waiting, socket.MSG_DONTWAIT) :]
        talker.finish()
        answers = messages(talker.heard)[1:]
        assert [msgid_of(answer) for answer in answers] == list(range(0x1_0000, 0x1_0000 + count))
        bodies = {answer[7:] for answer in answers}
        assert count > 1000
        sent[tick] = bodies
        assert daemon.terminate() == 0
    assert sent["native"] == sent["python"]
    assert len(sent["native"]) == 1


def test_a_slow_reader_is_cut_off(start_daemon: StartDaemon, write_config: WriteConfig) -> None:
    for tick in TICKS:
        daemon = start_daemon(
            *write_config("[limits]", "write_seconds = 0.5"), env={"KEYD_TICK": tick}
        )
        talker = Talker(daemon.address)
        talker.say(hot(EXTERNAL_AUTHENTICATE))
        talker.sock.setblocking(False)
        flood = hot(EXTERNAL_AUTHENTICATE) * 200
        give_up_at = time.monotonic() + SECONDS
        is_cut = False
        while not is_cut and time.monotonic() < give_up_at:
            try:
                select.select([], [talker.sock], [], 0.2)
                talker.sock.send(flood)
            except BlockingIOError:
                continue
            except (ConnectionResetError, BrokenPipeError):
                is_cut = True
        assert is_cut
        assert daemon.wait_for("connection_closed")["reason"] == "slow_reader"
        talker.peer.close()
        assert daemon.terminate() == 0


@pytest.mark.parametrize("tick", TICKS)
def test_who_is_served_is_not_idle_and_who_is_not_any_more_is(
    start_daemon: StartDaemon, write_config: WriteConfig, tick: str
) -> None:
    daemon = start_daemon(*write_config("[limits]", "idle_seconds = 1.0"), env={"KEYD_TICK": tick})
    talker = Talker(daemon.address)
    for _ in range(10):
        talker.say(hot(METHODS[0]))
        time.sleep(0.2)
    since = time.monotonic()
    talker.finish(half_close=False)
    assert msgpack.unpackb(messages(talker.heard)[-1])[2][1] == "TIMED_OUT"
    # What is left of the second, and a sweep's half.
    assert 0.5 < time.monotonic() - since < 1.6
    assert daemon.terminate() == 0


@pytest.mark.parametrize("tick", TICKS)
def test_a_drain_answers_every_accepted_hot_request(start_daemon: StartDaemon, tick: str) -> None:
    daemon = start_daemon(env={"KEYD_TICK": tick})
    talkers = [Talker(daemon.address) for _ in range(20)]
    for talker in talkers:
        talker.say(hot(METHODS[0]))
    count = 400
    for talker in talkers:
        talker.sock.sendall(numbered([hot(METHODS[at % 3]) for at in range(count)]))
    daemon.process.send_signal(signal.SIGTERM)
    for talker in talkers:
        talker.finish(half_close=False)
        assert talker.end == "closed"
        answers = messages(talker.heard)[1:]
        assert sorted(msgid_of(answer) for answer in answers) == list(range(count))
        assert all(
            answer[5 if answer[2] == 0xCD else 4 if answer[2] == 0xCC else 3] == 0xC0
            for answer in answers
        )
    assert daemon.process.wait(SECONDS) == 0


def test_one_in_so_many_is_logged(start_daemon: StartDaemon, write_config: WriteConfig) -> None:
    lines: dict[str, list[dict[str, Any]]] = {}
    for tick in TICKS:
        daemon = start_daemon(*write_config("[log]", "sample_every = 5"), env={"KEYD_TICK": tick})
        talker = Talker(daemon.address)
        for number in range(40):
            talker.say(hot(METHODS[number % 3], number))
        talker.finish()
        assert daemon.terminate() == 0
        lines[tick] = [line for line in daemon.log_lines() if line["event"] == "answered"]
        for line in lines[tick]:
            del line["timestamp"]
    assert lines["native"] == lines["python"]
    assert len(lines["native"]) >= 8


# A hub in hand --------------------------------------------------------------------------------------------


class HubInHand:
    """A hub with the pump, whose ticks the test makes, and one line to it."""

    def __init__(self) -> None:
        self.services = make_services()
        self.meter = Meter()
        # The pump's clock is the real one; the hub's can be put forward.
        self.ahead = 0.0
        events = Events(time.monotonic)
        dispatch = Dispatch(self.services, self.meter, events)
        self.hub = Hub(dispatch, self.meter, events, Limits(), self._now, Pump)
        assert self.hub.pump is not None
        dispatch.short_cut = Routes(self.hub.pump, ring(), self.services)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self._listener.getsockname())
        self.hub.listen([self._listener])

    def _now(self) -> float:
        return time.monotonic() + self.ahead

    def step(self) -> None:
        """What `Hub.run` does once."""
        events = self.hub._poll()
        if events is not None or self.hub._connections.backlog:
            self.hub._tick(events or [])

    def ask(self, peer: RawPeer, method: str, *params: Any) -> Any:
        """Send a request, and make ticks until it is answered."""
        peer.send(method, *params)
        peer.sock.settimeout(0.02)
        give_up_at = time.monotonic() + SECONDS
        while time.monotonic() < give_up_at:
            self.step()
            with suppress(TimeoutError):
                return peer.answer()
        raise AssertionError("no answer came")

    def open(self) -> RawPeer:
        """Return a peer that is authenticated, and served by the pump."""
        peer = RawPeer(self.address)
        peer.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        challenge = self.ask(peer, "terminal.challenge", "DEV-0001", bytes(16))[3][0]
        key = synthetic_terminal_key("DEV-0001")
        proof = terminal_proof(key, bytes(16), challenge)
        assert self.ask(peer, "terminal.authenticate", proof)[2] is None
        for _ in range(2):
            assert self.ask(peer, *HOT)[2] is None
        return peer


HOT: Final = (INTERNAL_CRYPTOGRAM, identity(), FACTOR, CHALLENGE)


@pytest.fixture
def hand() -> Iterator[HubInHand]:
    made = HubInHand()
    yield made
    with suppress(OSError):  # a hub that has run has closed all
        made.hub._close_all()


def test_the_hub_in_hand_is_served_by_the_pump(hand: HubInHand) -> None:
    peer = hand.open()
    assert hand.hub.pump is not None
    peer.sock.sendall(hot(INTERNAL_CRYPTOGRAM))
    time.sleep(0.02)
    assert hand.hub.pump.tick() == ([], (0, 1, 0))
    peer.close()


def session_of(hand: HubInHand) -> Session:
    (peer,) = hand.hub._connections.peers.values()
    return peer.session


def test_a_session_that_is_over_is_served_by_nobody(hand: HubInHand) -> None:
    peer = hand.open()
    session = session_of(hand)
    session.until = time.monotonic() + 60
    hand.ahead = 50
    hand.hub._sweeper.sweep()
    assert hand.ask(peer, *HOT)[2] is None
    hand.ahead = 61
    hand.hub._sweeper.sweep()
    assert session.terminal is None
    assert hand.ask(peer, *HOT)[2][1] == "NOT_AUTHENTICATED"
    peer.close()


def test_whoever_is_somebody_else_is_told_to_the_pump_anew(hand: HubInHand) -> None:
    peer = hand.open()
    (ours,) = hand.hub._connections.peers.values()
    assert ours.is_admitted
    registry = {"DEV-0001": synthetic_terminal("DEV-0001", roles=("another",))}
    assert hand.services.terminals.load(registry)
    was = ours.pumped_as
    hand.hub.review(hand.services.terminals, hand.services.moment())
    assert ours.is_admitted
    assert was is not ours.pumped_as is ours.session.terminal
    assert hand.ask(peer, *HOT)[2] is None
    peer.close()


def test_whoever_may_no_longer_be_there_loses_the_line(hand: HubInHand) -> None:
    peer = hand.open()
    hand.services.terminals.load({})
    hand.hub.review(hand.services.terminals, hand.services.moment())
    assert list(peer.answers()) == []
    peer.close()


async def test_a_failed_selftest_stops_the_pump(hand: HubInHand) -> None:
    hand.services.run_selftest = lambda: (SelftestResult("sm4", False, "it is not"),)
    peer = hand.open()
    peer.sock.settimeout(SECONDS)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hand.hub.run)

        def converse() -> list[Any]:
            assert peer.ask(*HOT)[2] is None
            peer.ask("daemon.selftest")
            return [peer.ask(*HOT)[2][1] for _ in range(3)]

        assert await trio.to_thread.run_sync(converse) == ["SELFTEST_FAILED"] * 3
        nursery.cancel_scope.cancel()
    peer.close()


def test_what_a_drain_has_read_is_not_overtaken_by_the_pump(hand: HubInHand) -> None:
    peer = hand.open()
    inner = hot(INTERNAL_CRYPTOGRAM, 66)
    outer = packed([0, 5, "card.secure_message", [identity(), 0, FACTOR, inner]])
    at = outer.index(inner)
    hand.hub.drain()
    peer.sock.sendall(outer[:at])
    time.sleep(0.02)
    hand.hub._tick([])
    peer.sock.sendall(outer[at:])
    time.sleep(0.02)
    heard = b""
    for _ in range(5):
        hand.step()
        with suppress(TimeoutError):
            heard += peer.sock.recv(4096)
    # What stands within a request is data, and answered by nobody.
    assert [msgid_of(answer) for answer in messages(heard)] == [5]
    peer.close()


def test_who_fell_silent_is_not_kept_by_somebody_who_speaks(hand: HubInHand) -> None:
    silent = hand.open()
    time.sleep(0.2)
    # The last that it says goes to the pump, which is how the hub knows of it.
    assert hand.ask(silent, *HOT)[2] is None
    hand.ahead = 200
    other = hand.open()
    assert hand.ask(other, "daemon.random", 8)[2] is None
    hand.ahead = Limits().idle_seconds - 0.1
    hand.hub._sweeper.sweep()
    with pytest.raises(TimeoutError):
        silent.answer()
    hand.ahead = Limits().idle_seconds + 1
    hand.hub._sweeper.sweep()
    assert silent.answer()[2][1] == "TIMED_OUT"
    assert hand.ask(other, "daemon.random", 8)[2] is None
    silent.close()
    other.close()


def test_who_was_slow_to_read_a_moment_ago_is_not_idle(hand: HubInHand) -> None:
    peer = hand.open()
    (ours,) = hand.hub._connections.peers.values()
    time.sleep(0.2)
    assert hand.ask(peer, *HOT)[2] is None
    # As when answers did not leave: taken from the pump, and given back.
    ours.has_more = True
    hand.hub._admission.review(ours)
    ours.has_more = False
    hand.hub._admission.review(ours)
    hand.ahead = Limits().idle_seconds - 0.1
    hand.hub._sweeper.sweep()
    with pytest.raises(TimeoutError):
        peer.answer()
    peer.close()
