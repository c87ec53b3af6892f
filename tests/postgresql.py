"""A real PostgreSQL server for tests: data of its own, a Unix socket and no port, gone when the tests end.

PostgreSQL refuses to run as root, so root starts it as the user `postgres`, whom Debian's package makes.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psycopg
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

# A start costs under a second, after a crash a little more; a machine that is busy may need several.
START_SECONDS: Final = 30.0

USER: Final = "keyd"
# The server trusts whoever reaches its socket. A password in the URL is there to be searched for where it must not be.
PASSWORD: Final = "canary-of-a-password"

INSTALL: Final = "this needs PostgreSQL's server: apt install postgresql"

# Nothing survives the folder, so nothing has to reach the disk.
SETTINGS: Final = ("fsync=off", "listen_addresses=", "max_connections=40", "log_statement=none")


def programs() -> Path | None:
    """Return the folder of the newest server that is installed, wherever Debian or others put it."""
    found = [
        *Path("/usr/lib/postgresql").glob("*/bin/initdb"),
        *Path("/usr").glob("pgsql-*/bin/initdb"),
    ]
    on_path = shutil.which("initdb")
    if on_path is not None:
        found.append(Path(on_path))
    versions = {path.parent.parent.name.removeprefix("pgsql-"): path.parent for path in found}
    newest = max(versions, key=lambda name: int(name) if name.isdigit() else 0, default=None)
    return None if newest is None else versions[newest]


class PostgresServer:
    """A server that can be stopped, frozen and started again."""

    def __init__(self, folder: Path, binaries: Path) -> None:
        self._folder = folder
        self._data = folder / "data"
        self._binaries = binaries
        self._process: subprocess.Popen[bytes] | None = None
        self._names = count()
        # Whatever ends the tests ends the server too.
        self._prefix = ["setpriv", "--pdeathsig", "QUIT"]
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(folder, user.pw_uid, user.pw_gid)
            self._prefix += [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        self._run("initdb", "--no-sync", "--auth=trust", f"--username={USER}", "--encoding=UTF8")

    def start(self) -> None:
        """Start the server and return when it lets somebody in."""
        settings = [*SETTINGS, f"unix_socket_directories={self._folder}"]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(*self._prefix, str(self._binaries / "postgres"), "-D", str(self._data)),
                    *(word for setting in settings for word in ("-c", setting)),
                ],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.admin().close()
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return

    def stop(self, number: int = signal.SIGINT) -> None:
        """Stop the server: with SIGINT at once but in order, with SIGQUIT as if the power had failed."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(START_SECONDS)
            self._process = None

    def admin(self, database: str = "postgres") -> psycopg.Connection:
        """Connect as an administrator, past everything that is tested."""
        return psycopg.connect(
            host=str(self._folder), user=USER, dbname=database, autocommit=True, connect_timeout=5
        )

    def new_database(self) -> str:
        """Make an empty database and return its name."""
        name = f"test_{next(self._names)}"
        with contextlib.closing(self.admin()) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return name

    def url(self, database: str) -> str:
        """Return the store URL of a database."""
        return f"postgresql+psycopg://{USER}:{PASSWORD}@/{database}?host={self._folder}"

    @contextlib.contextmanager
    def largest_file(self, size: int) -> Iterator[None]:
        """Let the server's processes write no file beyond this size, as on a full disk."""
        with contextlib.closing(self.admin()) as connection:
            found = connection.execute("SELECT pid FROM pg_stat_activity").fetchall()
        assert self._process is not None
        pids = [self._process.pid, *(pid for (pid,) in found)]
        self._limit(pids, str(size))
        try:
            yield
        finally:
            self._limit(pids, "unlimited")

    def _limit(self, pids: list[int], size: str) -> None:
        for pid in pids:
            # As the server's own user, who may always do that. A session may have ended by now.
            limit = [*self._prefix, "prlimit", f"--pid={pid}", f"--fsize={size}:unlimited"]
            done = subprocess.run(limit, capture_output=True, text=True, check=False)
            assert done.returncode == 0 or not Path(f"/proc/{pid}").exists(), done.stderr

    def log(self) -> str:
        """Return what the server has written."""
        return (self._folder / "log").read_text(encoding="utf-8", errors="replace")

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [*self._prefix, str(self._binaries / program), "-D", str(self._data), *arguments],
            cwd=self._folder,
            env={**os.environ, "LC_ALL": "C"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def running_server() -> Iterator[PostgresServer]:
    """Start a server, or skip the test where none is installed."""
    binaries = programs()
    if binaries is None or shutil.which("setpriv") is None:
        pytest.skip(INSTALL)
    # Not pytest's folder: nobody else may enter that one, and the path of a socket has to be short.
    folder = Path(tempfile.mkdtemp(prefix="keyd-postgresql-"))
    try:
        server = PostgresServer(folder, binaries)
        try:
            server.start()
            yield server
        finally:
            # Nobody will need its data again, so it need not write them.
            server.stop(signal.SIGQUIT)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
