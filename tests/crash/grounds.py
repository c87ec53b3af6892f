"""Grounds that daemons are killed on: a folder with all that one needs, and daemons that start on it and die.

A daemon is forked by the zygote (fast, the mass of the rounds) or started as `python -m keyd.daemon` (the rest).
Either may be armed: killed at a named step by what shim.c puts before libc.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from keyd.client import Backoff, Client, ConnectionLost, Enrolment
from keyd.client.officer import Identity, OfficerClient
from keyd.keepers import credential_keeper
from keyd.keys.block import Domain
from keyd.keys.synthetic import synthetic_terminal_key
from keyd.protocol.messages.custody import AskSeal
from keyd.registry.synthetic import synthetic_terminals
from tests.founded import EVERYTHING, founded_store

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from keyd.crypto.secret import SecretKey
    from keyd.crypto.shares import Share
    from keyd.crypto.sm2 import Sm2PrivateKey
    from keyd.keys.block import KeyHeader
    from keyd.protocol.messages.custody import SealState

ROOT: Final = Path(__file__).parent.parent.parent

TERMINAL: Final = "DEV-0001"

# A start takes a tenth of a second forked and under a second otherwise; a busy machine may need much longer.
START_SECONDS: Final = 60.0
END_SECONDS: Final = 30.0
LOOK_SECONDS: Final = 0.003

INSTALL: Final = "this needs gcc: apt install gcc"


class Arm(NamedTuple):
    """At which step to die: the n-th, "before", "half" way through or "after" it; 0 only counts."""

    at: int
    when: str
    trace: Path | None = None
    folders: tuple[Path, ...] = ()
    """What counts besides the grounds, such as where a database's socket is."""


class Process(Protocol):
    """A daemon, however it was started."""

    pid: int

    def status(self) -> int | None:
        """Return its exit status, negative for a signal; None while it runs."""

    def wait(self) -> int:
        """Wait for it to end and return its exit status."""


class Daemon:
    """A daemon on its grounds, and those who talk to it."""

    def __init__(self, process: Process, grounds: Grounds, log: Path) -> None:
        self.process = process
        self.grounds = grounds
        self.log = log
        self._officers: dict[tuple[Domain, str], OfficerClient] = {}
        self._terminal: Client | None = None
        self._seal = Client(
            f"unix:{grounds.administration}", timeout=END_SECONDS, backoff=Backoff(attempts=1)
        )

    def ready(self) -> SealState:
        """Wait until it answers, and return what it says of its seal.

        Raises:
            ConnectionLost: it has died.
        """
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                return self._seal.ask(AskSeal())
            except ConnectionLost:
                if self.process.status() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(LOOK_SECONDS)

    @property
    def seal(self) -> Client:
        """Whoever gives shares."""
        return self._seal

    def officer(self, domain: Domain, code: str) -> OfficerClient:
        """Return an officer's client."""
        known = self._officers.get((domain, code))
        if known is None:
            identity = Identity(domain.value, code, self.grounds.officers[domain, code])
            known = OfficerClient(str(self.grounds.administration), identity)
            self._officers[domain, code] = known
        return known

    @property
    def terminal(self) -> Client:
        """Return the terminal, which has proved itself."""
        if self._terminal is None:
            key = synthetic_terminal_key(TERMINAL)
            self._terminal = Client(
                f"unix:{self.grounds.socket}",
                Enrolment(TERMINAL, key),
                timeout=END_SECONDS,
                backoff=Backoff(attempts=1),
            )
        return self._terminal

    def hang_up(self) -> None:
        """Close every line."""
        for client in (*self._officers.values(), self._seal, self._terminal):
            if client is not None:
                client.close()
        self._officers.clear()
        self._terminal = None

    def shoot(self) -> None:
        """Kill it now, from whatever thread, while its people are still talking to it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)

    def kill(self) -> None:
        """Kill it now, and wait until it is dead."""
        if self.process.status() is None:
            os.kill(self.process.pid, signal.SIGKILL)
            self.wait()
        self.hang_up()

    def end(self) -> int:
        """Let it end in order, and return its exit status."""
        self.hang_up()
        if (status := self.process.status()) is None:
            os.kill(self.process.pid, signal.SIGTERM)
            status = self.wait()
        return status

    def wait(self) -> int:
        """Wait until it is dead, and until a database's server has noticed; return its exit status."""
        status = self.process.wait()
        if self.grounds.database is not None:
            self.grounds.database.settle(self.grounds.url)
        return status

    def said(self) -> str:
        """Return its log."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


class Database(Protocol):
    """A server that keeps the store instead of a file."""

    folder: Path
    """Where its socket is."""

    def empty(self) -> str:
        """Return the URL of an empty database."""

    def clone(self, url: str) -> str:
        """Return the URL of a copy."""

    def settle(self, url: str) -> None:
        """Wait until the server has noticed that its clients are dead."""


class Grounds:
    """A folder with a founded store, a configuration and a place for the journal."""

    def __init__(
        self,
        folder: Path,
        url: str | None,
        shares: list[Share],
        officers: dict[tuple[Domain, str], Sm2PrivateKey],
        database: Database | None = None,
    ) -> None:
        self.folder = folder
        self.database = database
        self.url = url or f"sqlite:///{folder}/keyd.db"
        self.shares = shares
        self.officers = officers
        self.journal = folder / "journal"
        self.administration = folder / "admin.sock"
        self.socket = folder / "keyd.sock"

    @classmethod
    def found(
        cls,
        folder: Path,
        keys: Iterable[tuple[KeyHeader, SecretKey]],
        database: Database | None = None,
    ) -> Grounds:
        """Found a store and write what a daemon needs. LOCAL and SOCIAL have officers of every role."""
        folder.mkdir(parents=True)
        url = database.empty() if database is not None else None
        founded = founded_store(folder, keys, url=url, terminals=synthetic_terminals([TERMINAL]))
        return cls(folder, url, founded.shares, founded.officers, database)

    def copy(self, folder: Path) -> Grounds:
        """Copy everything but the sockets to another folder. No daemon may run here."""
        shutil.copytree(self.folder, folder, ignore=shutil.ignore_patterns("*.sock", "*.log"))
        url = self.database.clone(self.url) if self.database is not None else None
        return Grounds(folder, url, self.shares, self.officers, self.database)

    def configure(
        self, *audit: str, has_credential: bool = True, operations: str = ""
    ) -> list[str]:
        """Write the configuration and return a daemon's arguments. `audit` are lines for [audit]."""
        seal = f'[seal]\ncredential = "{self.folder}/seal.credential"' if has_credential else ""
        path = self.folder / "keyd.toml"
        path.write_text(
            f"""
            [store]
            url = "{self.url}"
            {seal}
            [custody]
            socket = "{self.administration}"
            [listen]
            tcp = []
            unix = "{self.socket}"
            operations = "{operations}"
            [policy]
            file = "{EVERYTHING}"
            [audit]
            folder = "{self.journal}"
            """
            + "\n".join(audit)
        )
        return ["--config", str(path)]

    @property
    def store(self) -> Path:
        """Where SQLite's file is."""
        return Path(self.url.removeprefix("sqlite:///"))

    def keeper_key(self) -> SecretKey:
        """Return the key of the credential."""
        return credential_keeper(self.folder / "seal.credential").key

    def clear_sockets(self) -> None:
        """Take away what a killed daemon has left, so that whoever waits does not connect to nobody."""
        for path in (self.administration, self.socket):
            path.unlink(missing_ok=True)


class _Forked:
    def __init__(self, zygote: Zygote, pid: int) -> None:
        self.pid = pid
        self._zygote = zygote
        self._status: int | None = None

    def status(self) -> int | None:
        return self._ask(hangs=False)

    def wait(self) -> int:
        status = self._ask(hangs=True)
        assert status is not None
        return status

    def _ask(self, *, hangs: bool) -> int | None:
        if self._status is None:
            self._status = self._zygote.ask({"wait": self.pid, "hangs": hangs})["status"]
        return self._status


class Zygote:
    """What forks daemons; one per thread of tests."""

    def __init__(self, shim: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.zygote"],
            cwd=ROOT,
            env=os.environ | {"LD_PRELOAD": str(shim)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Ask, and return the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def start(self, grounds: Grounds, arguments: list[str], arm: Arm | None = None) -> Daemon:
        """Fork a daemon."""
        grounds.clear_sockets()
        answer = self.ask(
            {
                "arguments": arguments,
                # Beside the grounds, so that what it logs is no step.
                "log": str(log_of(grounds)),
                "arm": None if arm is None else [folders_of(grounds, arm), *spelled(arm)],
            }
        )
        return Daemon(_Forked(self, answer["pid"]), grounds, log_of(grounds))

    def close(self) -> None:
        """End it; its daemons die with it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(END_SECONDS)
        self._process.stdout.close()


class _Started:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.pid = process.pid
        self._process = process

    def status(self) -> int | None:
        return self._process.poll()

    def wait(self) -> int:
        return self._process.wait(END_SECONDS)


def start_program(
    grounds: Grounds,
    arguments: list[str],
    shim: Path | None = None,
    arm: Arm | None = None,
    program: Sequence[str] = (sys.executable, "-m", "keyd.daemon"),
) -> Daemon:
    """Start `python -m keyd.daemon`, as an operator would, or another program that becomes it."""
    grounds.clear_sockets()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    if shim is not None and arm is not None:
        at, when, trace = spelled(arm)
        environment |= {
            "LD_PRELOAD": str(shim),
            "KEYD_CRASH_FOLDER": folders_of(grounds, arm),
            "KEYD_CRASH_AT": str(at),
            "KEYD_CRASH_WHEN": when,
            "KEYD_CRASH_TRACE": trace,
        }
    with log_of(grounds).open("ab") as log:
        process = subprocess.Popen(
            [*program, *arguments],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    return Daemon(_Started(process), grounds, log_of(grounds))


def log_of(grounds: Grounds) -> Path:
    """Return where a daemon's log is: beside the grounds."""
    return grounds.folder.with_name(grounds.folder.name + ".log")


def folders_of(grounds: Grounds, arm: Arm) -> str:
    """Return the folders whose changes are steps, as the shim reads them."""
    return ":".join(str(folder) for folder in (grounds.folder, *arm.folders))


def spelled(arm: Arm) -> tuple[int, str, str]:
    """Return step, manner and trace as the shim takes them."""
    return arm.at, arm.when, str(arm.trace or "")


def compile_shim(folder: Path) -> Path | None:
    """Compile shim.c; None without a compiler."""
    if shutil.which("gcc") is None:
        return None
    made = folder / "shim.so"
    source = Path(__file__).with_name("shim.c")
    subprocess.run(
        [
            "gcc",
            "-shared",
            "-fPIC",
            "-O1",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-o",
            made,
            source,
            "-ldl",
        ],
        check=True,
    )
    return made


def remove(grounds: Grounds) -> None:
    """Take the grounds away."""
    shutil.rmtree(grounds.folder, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        log_of(grounds).unlink()
