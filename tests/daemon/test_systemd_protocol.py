"""Invariant: what keyd tells systemd is true when it tells it, and sockets that systemd opened are served.

A real daemon talks to a real notification socket, and systemd's own socket activator starts it.
"""

from __future__ import annotations

import gc
import os
import secrets
import shutil
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
import structlog
import trio

from keyd.client import Backoff, Client, Enrolment
from keyd.daemon import _parse, _start
from keyd.keys.synthetic import synthetic_terminal_key
from keyd.protocol.messages.daemon import AskRandom, AskStatus
from tests.conftest import DaemonFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import RunningDaemon, StartDaemon
    from tests.daemon.conftest import RawPeer, WriteConfig

    Connect = Callable[[str], RawPeer]

# Enough for a start on a machine that is busy with other tests.
PATIENCE: Final = 20.0

DEV: Final = Enrolment("DEV-0001", synthetic_terminal_key("DEV-0001"))


class Supervisor:
    """systemd's end of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        # Everything that was heard, in order.
        self.heard: list[dict[str, str]] = []

    def hear(self, seconds: float = PATIENCE) -> dict[str, str] | None:
        """Return the next message as a mapping, or None when none came in time."""
        self._socket.settimeout(seconds)
        try:
            message = self._socket.recv(4096).decode()
        except TimeoutError:
            return None
        self.heard.append(dict(line.split("=", 1) for line in message.splitlines()))
        return self.heard[-1]

    def expect(self, state: str) -> dict[str, str]:
        """Return the next message, which has this state."""
        message = self.hear()
        name, _, value = state.partition("=")
        assert message is not None, f"{state} did not come; heard {self.heard}"
        assert message.get(name) == value, self.heard
        return message

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def supervisor(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Supervisor]:
    """A notification socket: in the file system, or "abstract" by the parameter."""
    is_abstract = getattr(request, "param", None) == "abstract"
    name = f"@keyd-test-{secrets.token_hex(8)}" if is_abstract else str(tmp_path / "notify")
    supervisor = Supervisor(name)
    yield supervisor
    supervisor.close()


either_kind = pytest.mark.parametrize("supervisor", ["abstract", "path"], indirect=True)


# Readiness. --------------------------------------------------------------------------------------------------


@either_kind
def test_ready_is_said_once_and_only_when_it_serves(
    start_daemon: StartDaemon, supervisor: Supervisor, tmp_path: Path
) -> None:
    path = tmp_path / "keyd.sock"
    with ThreadPoolExecutor(1) as pool:
        # The question goes out at the very moment of READY=1, while the test still waits for the log.
        served = pool.submit(ask_when_ready, supervisor, f"unix:{path}")
        daemon = start_daemon("--unix", str(path), env={"NOTIFY_SOCKET": supervisor.address})
        assert served.result(PATIENCE) == "serving"
    assert supervisor.heard == [{"READY": "1", "STATUS": f"serving {daemon.ready['keys']} keys"}]
    assert supervisor.hear(0.3) is None  # no watchdog was asked for


def ask_when_ready(supervisor: Supervisor, address: str) -> str:
    supervisor.expect("READY=1")
    with Client(address, backoff=Backoff(attempts=1)) as client:
        return client.ask(AskStatus()).state


def test_a_start_that_fails_never_says_ready(
    start_daemon: StartDaemon, supervisor: Supervisor
) -> None:
    with pytest.raises(DaemonFailed, match="not a loopback address") as failed:
        start_daemon("--tcp", "0.0.0.0:0", env={"NOTIFY_SOCKET": supervisor.address})
    assert failed.value.returncode == 1
    assert supervisor.hear(0.1) is None


# The end, and reloading. -------------------------------------------------------------------------------------


@either_kind
def test_sigterm_says_stopping_before_the_end(
    start_daemon: StartDaemon, supervisor: Supervisor
) -> None:
    daemon = start_daemon(env={"NOTIFY_SOCKET": supervisor.address})
    supervisor.expect("READY=1")
    assert daemon.terminate() == 0
    assert supervisor.expect("STOPPING=1")["STATUS"] == "draining"
    assert supervisor.hear(0.1) is None


def test_sighup_says_reloading_and_then_ready(
    start_daemon: StartDaemon,
    write_config: WriteConfig,
    supervisor: Supervisor,
) -> None:
    daemon = start_daemon(*write_config(), env={"NOTIFY_SOCKET": supervisor.address})
    supervisor.expect("READY=1")
    before = time.monotonic_ns() // 1000
    daemon.process.send_signal(signal.SIGHUP)
    # Type=notify-reload wants the time; systemd matches it against its own clock, which is the same.
    assert before <= int(supervisor.expect("RELOADING=1")["MONOTONIC_USEC"])
    supervisor.expect("READY=1")
    daemon.wait_for("reloaded")
    # A refused reload is over too: the daemon serves on with what it had.
    write_config("[nonsense]")
    daemon.process.send_signal(signal.SIGHUP)
    supervisor.expect("RELOADING=1")
    supervisor.expect("READY=1")
    daemon.wait_for("reload_refused")
    assert daemon.terminate() == 0
    supervisor.expect("STOPPING=1")


# The watchdog. -----------------------------------------------------------------------------------------------


def test_a_living_daemon_feeds_the_watchdog_until_it_stops(
    start_daemon: StartDaemon, supervisor: Supervisor
) -> None:
    seconds = 0.6
    daemon = start_daemon(
        env={"NOTIFY_SOCKET": supervisor.address, "WATCHDOG_USEC": str(int(seconds * 1_000_000))}
    )
    supervisor.expect("READY=1")
    for _ in range(4):  # it is idle, and alive all the same
        assert supervisor.hear() == {"WATCHDOG": "1"}
    # A daemon that stands still is not alive, and systemd would notice within its time.
    daemon.process.send_signal(signal.SIGSTOP)
    while supervisor.hear(0.05):
        pass
    assert supervisor.hear(seconds) is None
    daemon.process.send_signal(signal.SIGCONT)
    supervisor.expect("WATCHDOG=1")
    assert daemon.terminate() == 0


def test_another_process_s_watchdog_is_not_fed(
    start_daemon: StartDaemon, supervisor: Supervisor
) -> None:
    start_daemon(
        env={
            "NOTIFY_SOCKET": supervisor.address,
            "WATCHDOG_USEC": "30000",
            "WATCHDOG_PID": str(os.getpid()),
        }
    )
    supervisor.expect("READY=1")
    assert supervisor.hear(0.3) is None


def test_a_deaf_supervisor_does_not_stop_keyd(
    start_daemon: StartDaemon, supervisor: Supervisor, tmp_path: Path
) -> None:
    """Neither one that never reads, so that its queue fills up, nor one that is gone."""
    deaf = {"NOTIFY_SOCKET": supervisor.address, "WATCHDOG_USEC": "3000"}
    gone = {"NOTIFY_SOCKET": str(tmp_path / "gone"), "WATCHDOG_USEC": "3000"}
    queue = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text())
    for environment in (deaf, gone):
        daemon = start_daemon(env=environment)
        time.sleep(min(3.0, 0.002 * queue + 0.5))
        with Client(daemon.address, DEV, backoff=Backoff(attempts=1)) as client:
            client.ask(AskRandom(8))
        assert daemon.terminate() == 0


async def test_a_hub_that_does_not_tick_is_not_fed(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """trio lives throughout; only the hub decides."""
    seconds = 0.15
    monkeypatch.setenv("NOTIFY_SOCKET", supervisor.address)
    monkeypatch.setenv("WATCHDOG_USEC", str(int(seconds * 1_000_000)))
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    threshold = gc.get_threshold()
    try:
        daemon = _start(_parse(["--dev", "--tcp", "127.0.0.1:0", "--operations", "127.0.0.1:0"]))
    finally:
        # A start is made for a process of its own.
        gc.unfreeze()
        gc.set_threshold(*threshold)
        structlog.reset_defaults()
    assert daemon._operations_socket is not None
    daemon._operations_socket.close()
    hub = daemon._hub
    hub.listen(daemon._listeners)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(daemon._feed_watchdog)
        await trio.sleep(3 * seconds)
        assert supervisor.hear(0.001) is None, "there is no hub yet"

        nursery.start_soon(hub.run)
        assert await trio.to_thread.run_sync(supervisor.hear) == {"WATCHDOG": "1"}

        hub.drain()  # with no connections it ends at once
        # The hub closes what wakes it, and here, unlike in a daemon, the feeder outlives the hub.
        monkeypatch.setattr(hub, "wake", lambda: None)
        await trio.sleep(2 * seconds)
        while supervisor.hear(0.001):
            pass
        await trio.sleep(3 * seconds)
        assert supervisor.hear(0.001) is None, "the hub is gone"
        nursery.cancel_scope.cancel()


# Socket activation. ------------------------------------------------------------------------------------------


@pytest.fixture
def activator() -> str:
    path = shutil.which("systemd-socket-activate")
    if path is None:
        pytest.skip("systemd-socket-activate is not here: install the Debian package systemd")
    return path


def test_sockets_of_systemd_are_served(
    start_daemon: StartDaemon, activator: str, tmp_path: Path
) -> None:
    """The first client connects before there is a daemon; its connection is what starts it."""
    path = tmp_path / "keyd.sock"
    with socket.create_server(("127.0.0.1", 0)) as probe:
        tcp = f"127.0.0.1:{probe.getsockname()[1]}"  # the activator cannot leave the choice to the kernel
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(knock, path)
        daemon = start_daemon(wrapper=[activator, f"--listen={tcp}", f"--listen={path}"])
        assert first.result(PATIENCE) == "serving"
    assert daemon.ready["listen"] == [tcp, f"unix:{path}"]
    assert daemon.ready["pid"] == daemon.process.pid, "the activator became the daemon"
    with Client(daemon.address, DEV) as client:
        assert len(client.ask(AskRandom(8)).random) == 8
    assert daemon.terminate() == 0


def knock(path: Path) -> str:
    deadline = time.monotonic() + PATIENCE
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    with Client(f"unix:{path}", timeout=PATIENCE) as client:
        return client.ask(AskStatus()).state


def start_as_systemd(start_daemon: StartDaemon, listener: socket.socket) -> RunningDaemon:
    """Start a daemon as systemd does: the listener as descriptor 3, for this very process."""
    become = (
        "import os, sys; os.dup2(int(sys.argv[1]), 3); "
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1'); "
        "os.execv(sys.argv[2], sys.argv[2:])"
    )
    fd = listener.fileno()
    return start_daemon(wrapper=[sys.executable, "-c", become, str(fd)], pass_fds=[fd])


def test_who_connects_during_a_restart_waits_and_is_served(
    start_daemon: StartDaemon, raw: Connect
) -> None:
    """The listening socket outlives the daemon, so nobody is refused in between."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        daemon = start_as_systemd(start_daemon, listener)
        assert daemon.ready["listen"] == [address]
        assert daemon.terminate() == 0
        between = raw(address)
        msgid = between.send("terminal.challenge", "DEV-0001", bytes(16))
        start_as_systemd(start_daemon, listener)
        assert between.answer()[:3] == [1, msgid, None]


def test_sockets_for_another_process_are_not_taken(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(env={"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"})
    with Client(daemon.address, DEV) as client:
        client.connect()


def test_a_socket_of_systemd_beyond_loopback_is_refused(start_daemon: StartDaemon) -> None:
    with (
        socket.create_server(("0.0.0.0", 0)) as listener,  # noqa: S104 - what must be refused
        pytest.raises(DaemonFailed, match="not a loopback address"),
    ):
        start_as_systemd(start_daemon, listener)


def test_a_socket_of_systemd_is_not_for_children(start_daemon: StartDaemon) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        daemon = start_as_systemd(start_daemon, listener)
    fdinfo = Path(f"/proc/{daemon.process.pid}/fdinfo/3").read_text()
    flags = next(line.split()[1] for line in fdinfo.splitlines() if line.startswith("flags:"))
    assert int(flags, 8) & os.O_CLOEXEC
