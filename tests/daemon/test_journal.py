"""Nothing is answered without a record: whatever happens to the disk or the daemon, and whoever looks on."""

from __future__ import annotations

import itertools
import resource
import secrets
import shutil
import signal
import socket
import subprocess
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.error import HTTPError
from urllib.request import urlopen

import msgpack
import pytest

from keyd.audit.journal import Journal
from keyd.audit.verify import verify
from keyd.errors import Status
from keyd.keys.block import Use
from keyd.keys.synthetic import synthetic_terminal_key
from keyd.protocol.commands import BATCHES
from tests.conftest import DaemonFailed
from tests.daemon.conftest import RawPeer
from tests.daemon.journals import NamedUse, named_uses
from tests.proofs import terminal_proof
from tests.pump.conftest import (
    CARD,
    CHALLENGE,
    FACTOR,
    INTERNAL_AUTHENTICATE,
    INTERNAL_CRYPTOGRAM,
    HolderCard,
    cryptogram,
    forged,
    hot,
    identity,
    label,
    packed,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import RunningDaemon, StartDaemon
    from tests.daemon.conftest import WriteConfig

    Connect = Callable[[str], RawPeer]

TICKS: Final = ("native", "python")
DURABILITIES: Final = ("written", "fsync")

SECONDS: Final = 10.0

UNAVAILABLE: Final = int(Status.AUDIT_UNAVAILABLE)

# The most that one may ask for.
RANDOM_BYTES: Final = 256

every_tick = pytest.mark.parametrize("tick", TICKS)


class Recorded:
    """A daemon with a journal, and one authenticated peer."""

    def __init__(self, daemon: RunningDaemon, folder: Path, raw: Connect) -> None:
        self.daemon = daemon
        self.folder = folder
        self.peer = raw(daemon.address)
        self.peer.authenticate()

    def ask(self, request: bytes) -> Any:
        self.peer.sock.sendall(request)
        return self.peer.answer()

    def status_of(self, request: bytes) -> int:
        error = self.ask(request)[2]
        return int(error[0]) if error else 0

    def uses(self) -> list[NamedUse]:
        return named_uses(self.folder)

    def readyz(self) -> tuple[int, str]:
        return readyz(self.daemon)

    def metric(self, name: str) -> float:
        with urlopen(f"http://{self.daemon.operations}/metrics", timeout=SECONDS) as page:
            for line in page.read().decode().splitlines():
                if line.startswith(f"{name} "):
                    return float(line.rpartition(" ")[2])
        raise AssertionError(f"there is no {name}")


def readyz(daemon: RunningDaemon) -> tuple[int, str]:
    try:
        with urlopen(f"http://{daemon.operations}/readyz", timeout=SECONDS) as page:
            return page.status, page.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def require_good(folder: Path) -> None:
    """The journal verifies, from its beginning to its end."""
    report = verify(folder)
    assert report.is_good, report


def wait_until(is_so: Callable[[], bool], seconds: float = SECONDS) -> None:
    give_up_at = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < give_up_at, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture
def recorded(
    start_daemon: StartDaemon, write_config: WriteConfig, raw: Connect, tmp_path: Path
) -> Callable[..., Recorded]:
    """Start a daemon with a journal; `lines` belong to [audit]."""

    def start(tick: str, *lines: str, env: dict[str, str] | None = None) -> Recorded:
        args = write_config(*lines)
        daemon = start_daemon(*args, env={"KEYD_TICK": tick} | (env or {}))
        return Recorded(daemon, tmp_path / "journal", raw)

    return start


# An honest observer ---------------------------------------------------------------------------------------


@every_tick
@pytest.mark.parametrize("durability", DURABILITIES)
def test_when_an_answer_is_there_its_record_is(
    recorded: Callable[..., Recorded], tick: str, durability: str
) -> None:
    keyd = recorded(tick, f'durability = "{durability}"')
    (first,) = keyd.uses()
    assert first == NamedUse("terminal.authenticate", 0, 1, "DEV-0001", None, bytes(16))
    masked = CARD.card_id[:3] + bytes(13)

    def use(method: str, status: int, key: str | None, card: bytes = masked) -> NamedUse:
        return NamedUse(method, status, 1, "DEV-0001", key, card)

    item = [identity(), FACTOR, CHALLENGE]
    batch = INTERNAL_CRYPTOGRAM + "_batch"
    assert batch in BATCHES
    good = use(INTERNAL_CRYPTOGRAM, 0, label())
    steps: list[tuple[bytes, list[NamedUse]]] = [
        (hot(INTERNAL_CRYPTOGRAM), [good]),
        (hot(INTERNAL_CRYPTOGRAM), [good]),
        (hot(INTERNAL_AUTHENTICATE), [use(INTERNAL_AUTHENTICATE, 0, label())]),
        (hot(INTERNAL_AUTHENTICATE), [use(INTERNAL_AUTHENTICATE, 0, label())]),
        (forged(), [use(INTERNAL_AUTHENTICATE, 400, label())]),
        (packed([0, 1, INTERNAL_CRYPTOGRAM, []]), [use(INTERNAL_CRYPTOGRAM, 102, None, bytes(16))]),
        (
            packed([0, 1, INTERNAL_CRYPTOGRAM, [*item, 0xFFFF]]),
            [use(INTERNAL_CRYPTOGRAM, 205, None)],
        ),
        (packed([0, 1, "card.pin_unblock", item[:2]]), [use("card.pin_unblock", 0, label(0x0173, Use.MESSAGING))]),
        (
            packed([0, 1, batch, [[item, [], item]]]),
            [good, use(INTERNAL_CRYPTOGRAM, 102, None, bytes(16)), good],
        ),
        (packed([0, 1, batch, []]), [use(INTERNAL_CRYPTOGRAM, 102, None, bytes(16))]),
        (packed([0, 1, "daemon.selftest", []]), [use("daemon.selftest", 0, None, bytes(16))]),
        (packed([0, 1, "daemon.selftest", [1]]), [use("daemon.selftest", 102, None, bytes(16))]),
        # What uses no key and changes nobody's rights leaves none.
        (packed([0, 1, "daemon.random", [8]]), []),
        (packed([0, 1, "daemon.status", []]), []),
        (packed([0, 1, "no.such", []]), []),
        (packed([0, 1, "terminal.authenticate", [bytes(8)]]), [
            NamedUse("terminal.authenticate", 202, 1, None, None, bytes(16))
        ]),
        (hot(INTERNAL_CRYPTOGRAM), [
            NamedUse(INTERNAL_CRYPTOGRAM, 200, 1, None, None, bytes(16))
        ]),
    ]  # fmt: skip
    seen = 1
    for request, expected in steps:
        keyd.ask(request)
        assert keyd.uses()[seen:] == expected, msgpack.unpackb(request)
        seen += len(expected)
    assert keyd.metric("keyd_journal_records_total") == seen
    assert keyd.metric("keyd_journal_available") == 1
    assert keyd.metric("keyd_answers_held") == 0
    assert keyd.daemon.terminate() == 0
    require_good(keyd.folder)


@every_tick
@pytest.mark.parametrize("durability", DURABILITIES)
def test_of_many_answers_on_their_way_none_is_ahead_of_its_record(
    recorded: Callable[..., Recorded], tick: str, durability: str
) -> None:
    keyd = recorded(tick, f'durability = "{durability}"', 'card_ids = "whole"')
    keyd.ask(hot(INTERNAL_CRYPTOGRAM))
    count = 3000
    requests = b"".join(
        hot(INTERNAL_CRYPTOGRAM, 0x1_0000 + at, numbered_card(at)) for at in range(count)
    )
    sender = threading.Thread(target=keyd.peer.sock.sendall, args=(requests,))
    sender.start()
    answered: list[int] = []
    looks = 0
    while len(answered) < count:
        answer = keyd.peer.answer()
        assert answer[2] is None
        answered.append(answer[1] - 0x1_0000)
        if len(answered) % 250 == 1:
            # Who has this answer finds its record.
            cards = {use.card for use in keyd.uses()}
            assert all(numbered_card(at).card_id in cards for at in answered)
            looks += 1
    sender.join()
    assert looks >= 10
    # In the order of the answers.
    assert [use.card for use in keyd.uses()[2:]] == [numbered_card(at).card_id for at in answered]


def numbered_card(number: int) -> HolderCard:
    return HolderCard(serial=number.to_bytes(4, "big"))


@pytest.mark.parametrize(
    ("card_ids", "shown"),
    [("whole", CARD.card_id), ("masked", CARD.card_id[:3] + bytes(13)), ("none", bytes(16))],
)
@every_tick
def test_the_journal_has_as_much_of_a_card_as_it_is_told(
    recorded: Callable[..., Recorded], tick: str, card_ids: str, shown: bytes
) -> None:
    keyd = recorded(tick, f'card_ids = "{card_ids}"')
    for _ in range(3):
        keyd.ask(hot(INTERNAL_CRYPTOGRAM))
    assert [use.card for use in keyd.uses()[1:]] == [shown] * 3


def test_a_development_keyd_records_where_it_is_told_and_nowhere_else(
    start_daemon: StartDaemon, raw: Connect, tmp_path: Path
) -> None:
    folder = tmp_path / "j"
    keyd = Recorded(start_daemon("--journal", str(folder)), folder, raw)
    keyd.ask(hot(INTERNAL_CRYPTOGRAM))
    assert [use.method for use in keyd.uses()] == ["terminal.authenticate", INTERNAL_CRYPTOGRAM]
    silent = start_daemon()
    peer = raw(silent.address)
    peer.authenticate()
    assert Recorded(silent, folder, raw).metric("keyd_journal_available") == -1


# A full disk ----------------------------------------------------------------------------------------------


class Disk:
    """Something that can run full, and have room again."""

    def fill(self, _keyd: Recorded) -> None:
        raise NotImplementedError

    def clear(self, _keyd: Recorded) -> None:
        raise NotImplementedError


class SmallDisk(Disk):
    """A filesystem of its own, of one megabyte."""

    def __init__(self, mounted: Path) -> None:
        self._filler = mounted / "filler"

    def fill(self, _keyd: Recorded) -> None:
        with suppress(OSError), self._filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def clear(self, _keyd: Recorded) -> None:
        self._filler.unlink()


class LimitedProcess(Disk):
    """A limit on the size of the files that the daemon may write."""

    def fill(self, keyd: Recorded) -> None:
        size = max(path.stat().st_size for path in keyd.folder.glob("*.keyd-journal"))
        self._limit(keyd, size + 500)

    def clear(self, keyd: Recorded) -> None:
        self._limit(keyd, resource.RLIM_INFINITY)

    def _limit(self, keyd: Recorded, size: int) -> None:
        pid = keyd.daemon.process.pid
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.fixture(params=["small disk", "limited process"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    with ExitStack() as stack:
        if request.param == "limited process":
            yield LimitedProcess()
            return
        folder = tmp_path / "journal"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=1m", "keyd-test", str(folder)]
        if subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("this machine cannot run it: only root may mount")
        stack.callback(subprocess.run, ["umount", "-l", str(folder)], check=True)
        yield SmallDisk(folder)


@every_tick
@pytest.mark.parametrize("durability", DURABILITIES)
def test_a_full_disk_refuses_and_room_answers_again(
    disk: Disk,
    recorded: Callable[..., Recorded],
    raw: Connect,
    tick: str,
    durability: str,
) -> None:
    keyd = recorded(tick, f'durability = "{durability}"')
    good = hot(INTERNAL_AUTHENTICATE)
    answered = 1
    for _ in range(3):
        assert keyd.status_of(good) == 0
        answered += 1
    assert keyd.readyz() == (200, "ready\n")
    disk.fill(keyd)
    for _ in range(200):
        status = keyd.status_of(good)
        if status:
            break
        answered += 1
    assert status == UNAVAILABLE
    # It stays so, for whatever is audited; a new terminal cannot become one; the rest goes on.
    for request in (good, forged(), packed([0, 1, "card.pin_unblock", [identity(), FACTOR]])):
        assert keyd.status_of(request) == UNAVAILABLE
    newcomer = raw(keyd.daemon.address)
    with pytest.raises(AssertionError, match="AUDIT_UNAVAILABLE"):
        newcomer.authenticate()
    assert keyd.ask(packed([0, 1, "daemon.selftest", []]))[2][0] == UNAVAILABLE
    assert keyd.ask(packed([0, 1, "daemon.random", [8]]))[2] is None
    assert keyd.ask(packed([0, 1, "daemon.status", []]))[2] is None
    code, reason = keyd.readyz()
    assert code == 503
    assert reason.startswith("the journal cannot be written: ")
    assert keyd.metric("keyd_journal_available") == 0
    assert keyd.metric("keyd_journal_failures_total") >= 1
    keyd.daemon.wait_for("journal_unavailable")
    # Nothing was answered meanwhile, and nothing recorded.
    assert [use.method for use in keyd.uses()].count(INTERNAL_AUTHENTICATE) == answered - 1
    disk.clear(keyd)
    wait_until(lambda: keyd.readyz()[0] == 200, 3.0)
    keyd.daemon.wait_for("journal_available")
    for _ in range(3):
        assert keyd.status_of(good) == 0
    newcomer.authenticate()
    assert keyd.metric("keyd_journal_available") == 1
    assert [use.method for use in keyd.uses()].count(INTERNAL_AUTHENTICATE) == answered + 2
    assert keyd.daemon.terminate() == 0
    require_good(keyd.folder)


@every_tick
def test_a_journal_that_is_removed_is_noticed_and_begun_anew(
    recorded: Callable[..., Recorded], tick: str
) -> None:
    keyd = recorded(tick)
    keyd.ask(hot(INTERNAL_CRYPTOGRAM))
    for path in keyd.folder.glob("*.keyd-journal"):
        path.unlink()
    wait_until(lambda: any(keyd.folder.glob("*.keyd-journal")))
    wait_until(lambda: keyd.status_of(hot(INTERNAL_CRYPTOGRAM)) == 0)
    assert keyd.uses()[-1].method == INTERNAL_CRYPTOGRAM


# A disk that does not answer ------------------------------------------------------------------------------

SHIM: Final = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>
int fdatasync(int fd) {
    int (*really)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    const char *hang = getenv("TEST_DISK_HANGS"), *slow = getenv("TEST_DISK_IS_SLOW");
    while (hang && access(hang, F_OK) == 0) usleep(10000);
    if (slow) usleep((unsigned)atoi(slow));
    return really(fd);
}
"""


@pytest.fixture
def slow_disk(tmp_path: Path) -> dict[str, str]:
    """Return an environment in which fdatasync hangs while the file that it names is there."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("a disk that hangs needs gcc")
    source, library = tmp_path / "shim.c", tmp_path / "shim.so"
    source.write_text(SHIM)
    subprocess.run([compiler, "-shared", "-fPIC", source, "-o", library, "-ldl"], check=True)
    return {"LD_PRELOAD": str(library), "TEST_DISK_HANGS": str(tmp_path / "hang")}


@every_tick
def test_a_disk_that_hangs_is_waited_for_and_not_longer(
    recorded: Callable[..., Recorded],
    slow_disk: dict[str, str],
    raw: Connect,
    tick: str,
) -> None:
    keyd = recorded(tick, 'durability = "fsync"', "wait_seconds = 0.6", env=slow_disk)
    good = hot(INTERNAL_AUTHENTICATE)
    for _ in range(3):
        assert keyd.status_of(good) == 0
    operator, other = raw(keyd.daemon.unix), raw(keyd.daemon.address)
    challenge = other.ask("terminal.challenge", "DEV-0001", bytes(16))[3][0]
    hang = Path(slow_disk["TEST_DISK_HANGS"])
    hang.touch()
    began = time.monotonic()
    # Held: audited ones, one that is not audited behind them, and one more.
    held = [hot(INTERNAL_AUTHENTICATE, 7), forged(8), packed([0, 9, "daemon.random", [8]])]
    keyd.peer.sock.sendall(b"".join([*held, hot(INTERNAL_AUTHENTICATE, 10)]))
    proof = terminal_proof(synthetic_terminal_key("DEV-0001"), bytes(16), challenge)
    other.send("terminal.authenticate", proof)
    # Nobody else waits.
    for _ in range(5):
        at = time.monotonic()
        assert operator.ask("daemon.status")[2] is None
        assert keyd.metric("keyd_answers_held") >= 0
        assert time.monotonic() - at < 0.3
    answers = {answer[1]: answer for answer in (keyd.peer.answer() for _ in range(4))}
    assert 0.5 < time.monotonic() - began < 2.5
    assert set(answers) == {7, 8, 9, 10}
    assert [answers[at][2] and answers[at][2][0] for at in (7, 8, 9, 10)] == [
        *(UNAVAILABLE, UNAVAILABLE, None, UNAVAILABLE)
    ]
    assert other.answer()[2][0] == UNAVAILABLE
    assert keyd.readyz() == (
        503,
        "the journal cannot be written: the disk has not answered for 0.6 s\n",
    )
    assert keyd.metric("keyd_answers_withheld_total") == 4
    # From now on they are refused at once.
    at = time.monotonic()
    assert [keyd.status_of(good) for _ in range(3)] == [UNAVAILABLE] * 3
    assert time.monotonic() - at < 0.3
    hang.unlink()
    wait_until(lambda: keyd.readyz()[0] == 200, 3.0)
    assert [keyd.status_of(good) for _ in range(3)] == [0] * 3
    # Whose authentication was taken back is nobody.
    other.sock.sendall(good)
    assert other.answer()[2][0] == Status.NOT_AUTHENTICATED
    assert keyd.metric("keyd_answers_held") == 0
    assert keyd.daemon.terminate() == 0
    require_good(keyd.folder)


@every_tick
def test_a_daemon_whose_disk_hangs_still_ends(
    recorded: Callable[..., Recorded], slow_disk: dict[str, str], tick: str
) -> None:
    keyd = recorded(tick, 'durability = "fsync"', "wait_seconds = 0.5", env=slow_disk)
    Path(slow_disk["TEST_DISK_HANGS"]).touch()
    keyd.peer.sock.sendall(hot(INTERNAL_CRYPTOGRAM))
    time.sleep(0.1)
    began = time.monotonic()
    keyd.daemon.process.send_signal(signal.SIGTERM)
    # It was accepted, so it is answered, though with a no.
    assert keyd.peer.answer()[2][0] == UNAVAILABLE
    keyd.peer.close()
    assert keyd.daemon.process.wait(SECONDS) == 0
    assert time.monotonic() - began < 5


@every_tick
def test_who_waits_for_the_disk_is_read_no_further_than_there_is_room(
    recorded: Callable[..., Recorded], slow_disk: dict[str, str], tick: str
) -> None:
    keyd = recorded(tick, 'durability = "fsync"', "wait_seconds = 30", env=slow_disk)
    keyd.ask(hot(INTERNAL_CRYPTOGRAM))
    hang = Path(slow_disk["TEST_DISK_HANGS"])
    hang.touch()
    # Behind one that waits, many with long answers, which have to wait as well.
    count = 20_000
    requests = hot(INTERNAL_CRYPTOGRAM) + packed([0, 2, "daemon.random", [RANDOM_BYTES]]) * count
    sender = threading.Thread(target=keyd.peer.sock.sendall, args=(requests,))
    sender.start()
    held = -1.0
    while (now := keyd.metric("keyd_answers_held")) != held or held < 2:
        held = now
        time.sleep(0.5)
    # Between half of what one peer may make keyd keep, and all of it.
    assert 1_000_000 < held * RANDOM_BYTES < 2_200_000
    assert held < count
    hang.unlink()
    answers = [keyd.peer.answer() for _ in range(count + 1)]
    sender.join()
    assert [answer[1] for answer in answers] == [1, *([2] * count)]
    assert all(answer[2] is None for answer in answers)
    assert keyd.metric("keyd_answers_held") == 0
    assert keyd.daemon.terminate() == 0


@every_tick
@pytest.mark.parametrize("end", ["half-close", "nonsense", "SIGTERM"])
def test_a_line_that_ends_gets_first_what_waits_for_the_disk(
    recorded: Callable[..., Recorded], slow_disk: dict[str, str], tick: str, end: str
) -> None:
    keyd = recorded(tick, 'durability = "fsync"', env=slow_disk | {"TEST_DISK_IS_SLOW": "300000"})
    keyd.ask(hot(INTERNAL_CRYPTOGRAM))
    mixed = (hot(INTERNAL_CRYPTOGRAM, 1), forged(2), packed([0, 3, "daemon.random", [8]]))
    keyd.peer.sock.sendall(b"".join(mixed))
    time.sleep(0.1)
    began = time.monotonic()
    if end == "half-close":
        keyd.peer.sock.shutdown(socket.SHUT_WR)
    elif end == "nonsense":
        keyd.peer.sock.sendall(b"\xc1")
    else:
        keyd.daemon.process.send_signal(signal.SIGTERM)
    answers = list(keyd.peer.answers())
    assert time.monotonic() - began > 0.1, "nothing had to wait"
    last = [None] if end == "nonsense" else []
    assert [answer[1] for answer in answers] == [1, 2, 3, *last]
    assert [answer[2] and answer[2][0] for answer in answers[:3]] == [None, 400, None]
    keyd.peer.close()
    assert keyd.daemon.terminate() == 0 if end != "SIGTERM" else keyd.daemon.process.wait(20) == 0


# The end --------------------------------------------------------------------------------------------------


def talk(
    address: str,
    number: int,
    requests: Iterator[int],
    answered: dict[int, int],
    stop: threading.Event,
) -> None:
    """Ask about one card after another, 32 at a time, and note the status of each answer."""
    peer = RawPeer(address)
    with suppress(OSError, StopIteration, AssertionError):
        peer.authenticate()
        while not stop.is_set():
            cards = list(itertools.islice(requests, 32))
            peer.sock.sendall(
                b"".join(hot(INTERNAL_CRYPTOGRAM, card, numbered_card(card)) for card in cards)
            )
            for _ in cards:
                answer = peer.answer()
                answered[answer[1]] = answer[2][0] if answer[2] else 0
    with suppress(OSError):
        for answer in peer.answers():
            answered[answer[1]] = answer[2][0] if answer[2] else 0
    peer.close()


def load(
    daemon: RunningDaemon, base: int
) -> tuple[dict[int, int], list[threading.Thread], threading.Event]:
    answered: dict[int, int] = {}
    stop = threading.Event()
    threads = [
        threading.Thread(
            target=talk,
            args=(
                daemon.address,
                number,
                iter(range(base + (number << 20), base + ((number + 1) << 20))),
                answered,
                stop,
            ),
        )
        for number in range(3)
    ]
    for thread in threads:
        thread.start()
    return answered, threads, stop


@every_tick
@pytest.mark.parametrize("durability", DURABILITIES)
def test_after_a_sudden_death_every_answer_is_in_the_journal(
    start_daemon: StartDaemon,
    write_config: WriteConfig,
    tmp_path: Path,
    tick: str,
    durability: str,
) -> None:
    args = write_config(f'durability = "{durability}"', 'card_ids = "whole"')
    folder = tmp_path / "journal"
    total = 0
    for round_ in range(8):
        daemon = start_daemon(*args, env={"KEYD_TICK": tick})
        base = 0x1000_0000 * round_ + 0x1_0000
        answered, threads, stop = load(daemon, base)
        time.sleep(0.05 + secrets.randbelow(150) / 1000)
        daemon.process.kill()
        stop.set()
        for thread in threads:
            thread.join()
        daemon.process.wait()
        # As the next start does.
        Journal(folder, "keyd", clock_ns=time.time_ns).close()
        require_good(folder)
        cards = {use.card for use in named_uses(folder) if not use.status}
        good = [number for number, status in answered.items() if status == 0 and number >= base]
        missing = [number for number in good if numbered_card(number).card_id not in cards]
        assert missing == []
        total += len(good)
    assert total > 500


@every_tick
@pytest.mark.parametrize("durability", DURABILITIES)
def test_an_end_under_load_answers_and_records_everything(
    recorded: Callable[..., Recorded], tick: str, durability: str
) -> None:
    keyd = recorded(tick, f'durability = "{durability}"', 'card_ids = "whole"')
    answered, threads, stop = load(keyd.daemon, 0x1_0000)
    wait_until(lambda: len(answered) > 500)
    keyd.peer.sock.sendall(
        b"".join(hot(INTERNAL_CRYPTOGRAM, at, numbered_card(at)) for at in range(1, 301))
    )
    keyd.peer.sock.sendall(packed([0, 301, "daemon.selftest", []]))
    keyd.daemon.process.send_signal(signal.SIGTERM)
    stop.set()
    own = list(keyd.peer.answers())
    keyd.peer.close()
    for thread in threads:
        thread.join()
    assert keyd.daemon.process.wait(20) == 0
    assert sorted(answer[1] for answer in own) == list(range(1, 302))
    assert all(answer[2] is None for answer in own)
    answered |= dict.fromkeys(range(1, 301), 0)
    require_good(keyd.folder)
    assert [use.status for use in keyd.uses() if use.method == "daemon.selftest"] == [0]
    cards = [use.card for use in keyd.uses() if use.method == INTERNAL_CRYPTOGRAM]
    assert sorted(cards) == sorted(
        numbered_card(number).card_id for number in answered if number is not None
    )


# What is not in it ----------------------------------------------------------------------------------------


@every_tick
def test_no_secret_of_a_request_is_in_the_journal(
    recorded: Callable[..., Recorded], tick: str
) -> None:
    keyd = recorded(tick, 'card_ids = "whole"')
    pin, plaintext = "864209", secrets.token_bytes(16)
    factor, challenge = secrets.token_bytes(8), secrets.token_bytes(8)
    right = cryptogram(CARD, challenge=CHALLENGE)
    exchange = [identity(), factor, challenge]
    answers = [
        keyd.ask(packed([0, 1, INTERNAL_CRYPTOGRAM, exchange])),
        keyd.ask(packed([0, 1, INTERNAL_CRYPTOGRAM, exchange])),
        keyd.ask(packed([0, 1, INTERNAL_AUTHENTICATE, [*exchange, secrets.token_bytes(8)]])),
        keyd.ask(hot(INTERNAL_AUTHENTICATE)),
        keyd.ask(hot(INTERNAL_AUTHENTICATE)),
        keyd.ask(packed([0, 1, "card.pin_reload", [identity(), factor, pin]])),
        keyd.ask(packed([0, 1, "card.secure_message", [identity(), 0x0170, factor, plaintext]])),
    ]
    canaries = [factor, challenge, right, plaintext, pin.encode(), bytes.fromhex(pin)]
    for answer in answers:
        canaries += binaries(answer[3])
    assert len([answer for answer in answers if answer[2] is None]) >= 5
    assert keyd.daemon.terminate() == 0
    written = b"".join(path.read_bytes() for path in keyd.folder.iterdir())
    # The search finds what is there.
    assert CARD.card_id in written
    assert b"DEV-0001" in written
    assert [canary for canary in canaries if canary in written] == []
    hexed = [canary.hex().encode() for canary in canaries]
    assert [canary for canary in hexed if canary in written or canary.upper() in written] == []


def binaries(result: Any) -> list[bytes]:
    """Return the byte strings of an answer, at least 4 bytes long."""
    if isinstance(result, bytes):
        return [result[at : at + 8] for at in range(0, len(result), 8) if len(result) - at >= 4]
    if isinstance(result, list):
        return [found for part in result for found in binaries(part)]
    return []


def test_only_one_keyd_writes_a_journal(
    start_daemon: StartDaemon, tmp_path: Path, raw: Connect
) -> None:
    folder = tmp_path / "journal"
    start_daemon("--journal", str(folder))
    with pytest.raises(DaemonFailed) as failed:
        start_daemon("--journal", str(folder))
    assert failed.value.returncode == 1
    assert "another process writes the journal" in failed.value.output
