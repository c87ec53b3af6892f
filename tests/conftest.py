"""What tests share: real daemons over real sockets, and the rule that in CI nothing may be skipped.

A test takes `daemon` for a development keyd, `dev_client` for a terminal that has proved itself to it, or
`start_daemon` to say itself how keyd starts.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import pytest

from keyd.client import Client, Enrolment
from keyd.crypto.algorithms import KEY_BYTES, Algorithm
from keyd.crypto.native._core import KeyGone, arena_info
from keyd.crypto.secret import SecretKey
from keyd.keys.synthetic import synthetic_terminal_key

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

ReportT = TypeVar("ReportT", pytest.TestReport, pytest.CollectReport)

# A start costs under a second; a machine that is busy with other tests may need several.
START_SECONDS: Final = 30.0

# Longer than the drain of 10 s that a daemon allows itself.
END_SECONDS: Final = 20.0

# What an outer systemd or CI may have set for itself is not meant for the daemons that tests start.
_NOT_INHERITED: Final = (
    *("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"),
    *("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "CREDENTIALS_DIRECTORY"),
)


class DaemonFailed(AssertionError):  # noqa: N818 - says what happened
    """The daemon ended, or did not do what was waited for; the text is all that it wrote."""

    def __init__(self, what: str, returncode: int | None, output: str) -> None:
        super().__init__(f"{what} (exit status {returncode}); it wrote:\n{output}")
        self.returncode = returncode
        self.output = output


class RunningDaemon:
    """A daemon process that has said that it is ready, and everything that it has written."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._has_ended = False
        # A pipe that nobody empties would block the daemon.
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.ready: dict[str, Any] = {}

    @property
    def address(self) -> str:
        """The first TCP listener, HOST:PORT."""
        return next(name for name in self._listeners if not name.startswith("unix:"))

    @property
    def unix(self) -> str:
        """The first Unix listener, unix:PATH."""
        return next(name for name in self._listeners if name.startswith("unix:"))

    @property
    def operations(self) -> str:
        """The operations port, HOST:PORT."""
        return str(self.ready["operations"])

    @property
    def _listeners(self) -> list[str]:
        return list(self.ready["listen"])

    @property
    def output(self) -> str:
        """Everything that the daemon has written so far, on standard output and standard error."""
        with self._changed:
            return "".join(self._lines)

    def log_lines(self) -> list[dict[str, Any]]:
        """Return the log so far. A line that is no JSON object fails the test."""
        with self._changed:
            return [self._parsed(line) for line in self._lines]

    def wait_for(self, event: str, timeout: float = 10.0, nth: int = 1) -> dict[str, Any]:
        """Return the first log line of this event, or the nth, waiting until it has come."""
        deadline = time.monotonic() + timeout
        with self._changed:
            seen = found = 0
            while True:
                while seen < len(self._lines):
                    if self._lines[seen].startswith("{"):
                        line = self._parsed(self._lines[seen])
                        found += line["event"] == event
                        if found == nth:
                            return line
                    seen += 1
                if self._has_ended or not self._changed.wait(deadline - time.monotonic()):
                    break
        raise self._failed(f"the daemon did not log {event!r}")

    def terminate(self, number: int = signal.SIGTERM, timeout: float = END_SECONDS) -> int:
        """Send a signal, wait for the end and return the exit status."""
        self.process.send_signal(number)
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise self._failed(f"the daemon did not end within {timeout} s") from None
        self._reader.join(END_SECONDS)
        return code

    def close(self) -> None:
        """End the process, however it is."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join(END_SECONDS)

    def _failed(self, what: str) -> DaemonFailed:
        if self._has_ended:
            self.process.wait()
        return DaemonFailed(what, self.process.poll(), self.output)

    def _read(self) -> None:
        pipe = self.process.stdout
        assert pipe is not None
        with pipe:
            for line in pipe:
                with self._changed:
                    self._lines.append(line.decode())
                    self._changed.notify_all()
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    @staticmethod
    def _parsed(line: str) -> dict[str, Any]:
        parsed = json.loads(line)
        assert isinstance(parsed, dict)
        return parsed


class StartDaemon(Protocol):
    """Start `python -m keyd.daemon` and return once it is ready.

    Without "--config" among the arguments it is a development keyd on ports that the kernel chooses. `env` is
    added to the environment, `wrapper` is put before the command, and `pass_fds` stay open in it. Cleaned up
    after the test.

    Raises:
        DaemonFailed: the process ended instead, or did not become ready in time.
    """

    def __call__(
        self,
        *args: str,
        env: Mapping[str, str] | None = None,
        wrapper: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
    ) -> RunningDaemon: ...


@pytest.fixture
def start_daemon() -> Iterator[StartDaemon]:
    """The factory of daemons, see `StartDaemon`."""
    with ExitStack() as started:

        def start(
            *args: str,
            env: Mapping[str, str] | None = None,
            wrapper: Sequence[str] = (),
            pass_fds: Sequence[int] = (),
        ) -> RunningDaemon:
            if "--config" not in args:
                args = ("--dev", "--tcp", "127.0.0.1:0", "--operations", "127.0.0.1:0", *args)
            inherited = {
                name: value for name, value in os.environ.items() if name not in _NOT_INHERITED
            }
            process = subprocess.Popen(
                [*wrapper, sys.executable, "-m", "keyd.daemon", *args],
                env=inherited | dict(env or {}),
                pass_fds=pass_fds,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            daemon = RunningDaemon(process)
            started.callback(daemon.close)
            daemon.ready = daemon.wait_for("ready", START_SECONDS)
            return daemon

        yield start


@pytest.fixture
def daemon(start_daemon: StartDaemon) -> RunningDaemon:
    """A development keyd."""
    return start_daemon()


@pytest.fixture
def dev_client(daemon: RunningDaemon) -> Iterator[Client]:
    """A client of `daemon` that is authenticated as the terminal DEV-0001."""
    code = "DEV-0001"
    with Client(daemon.address, Enrolment(code, synthetic_terminal_key(code))) as client:
        client.connect()
        yield client


@pytest.fixture(autouse=True)
def _room_for_keys() -> None:
    """Free keys of earlier tests that only a cycle of Python objects holds, before they fill locked memory."""
    info = arena_info()
    if info.used > info.capacity // 2:
        gc.collect()


@pytest.fixture(scope="session")
def _witness() -> SecretKey:
    return SecretKey.load(Algorithm.SM4, bytes(KEY_BYTES[Algorithm.SM4]))


@pytest.fixture(autouse=True)
def _keys_stay(_witness: SecretKey, request: pytest.FixtureRequest) -> Iterator[None]:
    """Blame the test that wipes every key of this process, not those after it that find theirs gone."""
    yield
    try:
        _witness.kcv()
    except KeyGone:
        pytest.exit(f"{request.node.nodeid} wiped all keys: it needs a process of its own", 1)


# In CI nothing may be skipped: a machine that lacks a tool must say so in red. ------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    return _without_skips(report)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    return _without_skips(report)


def _without_skips(report: ReportT) -> ReportT:
    # An expected failure is reported as skipped too, but it has run.
    # What a processor cannot do, no installation mends: such a skip says "this machine cannot run".
    is_missing = report.skipped and "this machine cannot run" not in _reason(report.longrepr)
    if os.environ.get("CI") == "true" and is_missing and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"In CI nothing may be skipped: {_reason(report.longrepr)}"
    return report


def _reason(longrepr: object) -> str:
    return str(longrepr[2]) if isinstance(longrepr, tuple) else str(longrepr)
