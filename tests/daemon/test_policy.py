"""A policy file in force in a running keyd: over real sockets, through the pump, and after a reload."""

from __future__ import annotations

import signal
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from keyd.errors import Status
from tests.daemon.test_journal import wait_until
from tests.daemon.test_lifecycle import start_and_fail
from tests.policy.conftest import LIMITS
from tests.pump.conftest import INTERNAL_CRYPTOGRAM, forged, hot
from tests.test_gate import READER, with_rates

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import RunningDaemon, StartDaemon
    from tests.daemon.conftest import RawPeer, WriteConfig

    Connect = Callable[[str], RawPeer]

every_tick = pytest.mark.parametrize("tick", ["native", "python"])


class Ruled:
    """A keyd whose policy can be written anew."""

    def __init__(self, folder: Path, start: StartDaemon, tick: str = "native") -> None:
        self.file = folder / "policy.toml"
        self._start = start
        self._tick = tick
        self.daemon: RunningDaemon

    def start(self, limits: str = LIMITS, *roles: str, text: str = READER) -> RunningDaemon:
        self.write(text, limits)
        of_roles = [part for role in roles or ("reader",) for part in ("--role", role)]
        self.daemon = self._start(
            "--policy", str(self.file), *of_roles, env={"KEYD_TICK": self._tick}
        )
        return self.daemon

    def write(self, text: str = READER, limits: str = LIMITS) -> None:
        # Replaced in one go: a reload must not read half of it.
        new = self.file.with_suffix(".new")
        new.write_text(text + limits)
        new.replace(self.file)

    def reload(self) -> None:
        self.daemon.process.send_signal(signal.SIGHUP)


@pytest.fixture
def ruled(tmp_path: Path, start_daemon: StartDaemon) -> Ruled:
    return Ruled(tmp_path, start_daemon)


def said(peer: RawPeer, *requests: bytes) -> list[str]:
    """Send requests at once; return their statuses."""
    peer.sock.sendall(b"".join(requests))
    answers = [peer.answer() for _ in requests]
    return [Status.OK.name if error is None else error[1] for _, _, error, _ in answers]


PUK = hot("card.external_authenticate", address=0x0090)


@every_tick
def test_a_terminal_gets_what_its_role_may(
    tmp_path: Path, start_daemon: StartDaemon, raw: Connect, tick: str
) -> None:
    daemon = Ruled(tmp_path, start_daemon, tick).start()
    peer = raw(daemon.address)
    assert said(peer, hot(INTERNAL_CRYPTOGRAM)) == ["NOT_AUTHENTICATED"]
    peer.authenticate()
    for _ in range(3):
        # The first goes the long way, and the others are like it.
        assert said(peer, hot(INTERNAL_CRYPTOGRAM), PUK, hot(INTERNAL_CRYPTOGRAM)) == [
            "OK",
            "NOT_ALLOWED",
            "OK",
        ]
    assert daemon.wait_for("refused")["status"] == "NOT_AUTHENTICATED"
    assert daemon.wait_for("refused", nth=2)["policy_line"] > 0


@every_tick
def test_a_rate_holds_whatever_answers(
    tmp_path: Path, start_daemon: StartDaemon, raw: Connect, tick: str
) -> None:
    """The pump answers first and is charged; in the end nobody has got more than the rate gives."""
    ruled = Ruled(tmp_path, start_daemon, tick)
    daemon = ruled.start(with_rates("terminal = { requests = 20, seconds = 1, burst = 100 }"))
    peers = [raw(daemon.address) for _ in range(2)]
    for peer in peers:
        peer.authenticate()
    began = time.monotonic()
    counts: Counter[str] = Counter()
    for _ in range(4):
        for peer in peers:
            counts.update(said(peer, *(hot(INTERNAL_CRYPTOGRAM, n) for n in range(50))))
    seconds = time.monotonic() - began
    # Each of two connections may have had the room of both, once.
    assert counts["RATE_LIMITED"] == 400 - counts["OK"]
    assert 100 <= counts["OK"] <= 200 + 20 * seconds + 1
    # What went over is owed.
    assert said(peers[0], hot(INTERNAL_CRYPTOGRAM)) == ["RATE_LIMITED"]


@every_tick
def test_a_reload_takes_and_gives_at_once(
    tmp_path: Path, start_daemon: StartDaemon, raw: Connect, tick: str
) -> None:
    ruled = Ruled(tmp_path, start_daemon, tick)
    peer = raw(ruled.start().address)
    peer.authenticate()
    assert said(peer, *[hot(INTERNAL_CRYPTOGRAM)] * 3) == ["OK"] * 3
    ruled.write(READER.replace('"card.internal_cryptogram"', '"card.mutual_cryptograms"', 1))
    ruled.reload()
    ruled.daemon.wait_for("reloaded")
    assert said(peer, *[hot(INTERNAL_CRYPTOGRAM)] * 3) == ["NOT_ALLOWED"] * 3
    ruled.write()
    ruled.reload()
    ruled.daemon.wait_for("reloaded", nth=2)
    assert said(peer, *[hot(INTERNAL_CRYPTOGRAM)] * 3) == ["OK"] * 3


def test_a_wrong_file_keeps_the_old_policy_and_says_where_it_is_wrong(
    ruled: Ruled, raw: Connect
) -> None:
    peer = raw(ruled.start().address)
    peer.authenticate()
    ruled.write(READER.replace('"IRK"', '"IRQ"', 1).replace("08:00-17:30", "8-17"))
    ruled.reload()
    detail = ruled.daemon.wait_for("reload_refused")["detail"]
    assert "line 7: role reader, rule 1: keys: no profile knows a key IRQ" in detail
    assert "'8-17' is no hours" in detail
    assert said(peer, hot(INTERNAL_CRYPTOGRAM), PUK) == ["OK", "NOT_ALLOWED"]


def test_no_keyd_starts_with_a_wrong_policy(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(READER.replace('"IRK"', '"IRQ"', 1) + LIMITS)
    assert "line 7" in start_and_fail("--dev", "--tcp", "127.0.0.1:0", "--policy", str(file))
    missing = str(tmp_path / "none.toml")
    assert "cannot be read" in start_and_fail("--dev", "--tcp", "127.0.0.1:0", "--policy", missing)


def test_the_metrics_tell_of_a_strange_card(ruled: Ruled, raw: Connect) -> None:
    ruled.start()
    peer = raw(ruled.daemon.address)
    peer.authenticate()
    assert said(peer, *map(forged, range(4))) == ["CARD_NOT_AUTHENTIC"] * 4
    seen = ruled.daemon.wait_for("card_strange")
    assert (seen["what"], seen["terminal"]) == ("many_failures", "DEV-0001")


@every_tick
def test_a_rate_that_a_reload_brings_holds_for_who_is_connected(
    tmp_path: Path, start_daemon: StartDaemon, raw: Connect, tick: str
) -> None:
    ruled = Ruled(tmp_path, start_daemon, tick)
    daemon = ruled.start()
    peer, other = raw(daemon.address), raw(daemon.address)
    peer.authenticate("DEV-0001")
    other.authenticate("DEV-0002")
    assert said(peer, *[hot(INTERNAL_CRYPTOGRAM)] * 50) == ["OK"] * 50
    ruled.write(limits=with_rates("terminal = { requests = 1, seconds = 60, burst = 5 }"))
    ruled.reload()
    daemon.wait_for("reloaded")
    # The other's request lets the pump answer everybody's, if they have room.
    assert said(other, hot(INTERNAL_CRYPTOGRAM)) == ["OK"]
    counts = Counter(said(peer, *[hot(INTERNAL_CRYPTOGRAM)] * 50))
    assert counts == {"OK": 5, "RATE_LIMITED": 45}


@every_tick
def test_two_terminals_have_each_their_own_rights(
    tmp_path: Path, start_daemon: StartDaemon, write_config: WriteConfig, raw: Connect, tick: str
) -> None:
    """What the pump has learnt from the one, it does not give to the other."""
    file = tmp_path / "policy.toml"
    file.write_text(READER + LIMITS)
    roles = {"DEV-0001": ("reader",), "DEV-0002": ("counter",)}
    arguments = write_config(terminals=roles, policy=file)
    daemon = start_daemon(*arguments, env={"KEYD_TICK": tick})
    reader, counter = raw(daemon.address), raw(daemon.address)
    reader.authenticate("DEV-0001")
    counter.authenticate("DEV-0002")
    for _ in range(3):
        assert said(reader, *[hot(INTERNAL_CRYPTOGRAM)] * 3) == ["OK"] * 3
        assert said(counter, *[hot(INTERNAL_CRYPTOGRAM)] * 3) == ["NOT_ALLOWED"] * 3


def test_a_terminal_has_as_many_connections_as_it_may(ruled: Ruled, raw: Connect) -> None:
    address = ruled.start().address  # LIMITS: two of a terminal, three of an organisation
    first, second, third = raw(address), raw(address), raw(address)
    first.authenticate()
    second.authenticate()
    assert third.prove() == "QUOTA_EXCEEDED"
    assert said(third, hot(INTERNAL_CRYPTOGRAM)) == ["NOT_AUTHENTICATED"]
    # Another terminal of the organisation is the third and last.
    raw(address).authenticate("DEV-0002")
    assert raw(address).prove("DEV-0003") == "QUOTA_EXCEEDED"
    # Whoever proves itself anew on its own line takes no more room, and whoever leaves makes some.
    first.authenticate()
    second.close()
    wait_until(lambda: raw(address).prove() == "OK")
