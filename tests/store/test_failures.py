"""A database that fails is StoreUnavailable in bounded time; nothing is changed, and the store recovers by itself."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from sqlalchemy import event, text

from keyd.errors import ChangedMeanwhile, StoreUnavailable
from keyd.store import engine as engine_module
from keyd.store.database import OutcomeUnknown, Store
from keyd.store.engine import CONNECTIONS
from keyd.store.rows import MAX_BODY_BYTES, Anchor, Drop, Kind, Put, Snapshot
from tests.postgresql import PASSWORD, PostgresServer
from tests.store.writers import row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Nothing that a row holds, and no password, may stand in an error.
CANARY: Final = b"CANARY-OF-A-ROW"

LARGE: Final = os.urandom(MAX_BODY_BYTES)


def everything(store: Store) -> list[Callable[[], object]]:
    """Return a call of every method that reaches the database."""
    return [
        store.load,
        store.change_number,
        lambda: store.commit([Put(row(CANARY, body=CANARY))], [CANARY], "i"),
        lambda: store.commit([Drop(Kind.KEY, CANARY, 1)]),
        lambda: store.fill(Snapshot(3, (row(CANARY, body=CANARY),))),
        lambda: store.outbox("i"),
        lambda: store.sent([1, 2]),
        lambda: store.put_anchor(Anchor("i", 0, 0, CANARY + b"." * 17, 0)),
        lambda: store.anchors("i"),
    ]


def assert_refused(call: Callable[[], object], match: str = ".+") -> StoreUnavailable:
    with pytest.raises(StoreUnavailable, match=match) as refused:
        call()
    said = str(refused.value)
    assert PASSWORD not in said
    assert CANARY.decode() not in said
    assert CANARY.hex() not in said
    # A traceback in the log shows what was raised before unless that is suppressed.
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__
    return refused.value


@pytest.fixture(autouse=True)
def _is_quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Check that whatever fails is said once, in the refusal: no library writes a traceback of its own."""
    yield
    assert not caplog.get_records("call")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    # The same limits, a tenth as long, so that the tests wait less.
    monkeypatch.setattr(engine_module, "LOCK_SECONDS", 1)
    monkeypatch.setattr(engine_module, "STATEMENT_SECONDS", 2)


# --- no room


def fill_the_disk(store: Store) -> str:
    """Commit until there is no room, check that the refused commit left nothing, and return what it said."""
    for n in range(1000):
        was = store.load()
        try:
            store.commit([Put(row(b"%d.%d" % (n, m), body=LARGE)) for m in range(4)], [LARGE], "i")
        except StoreUnavailable as refused:
            said = str(refused)
            break
    else:
        pytest.fail("the disk never was full")
    assert "nothing was changed" in said
    assert not said.count("\\x")
    assert store.load() == was
    assert len(store.outbox("i")) == was.number
    return said


def there_is_room(store: Store) -> None:
    """The same store commits again, and all that it ever acknowledged is there."""
    was = store.load()
    assert store.commit([Put(row(b"after", body=LARGE))]) == was.number + 1
    assert len(store.load().rows) == len(was.rows) + 1


def test_a_database_at_its_largest_size(sqlite_url: str) -> None:
    """SQLite's own limit of pages ends as a full disk does."""
    store = Store.create(sqlite_url)
    limits = {"pages": 300}

    @event.listens_for(store._engine, "checkout")
    def _limit(connection: Any, *_: object) -> None:
        connection.execute(f"PRAGMA max_page_count = {limits['pages']}")

    assert "no more room" in fill_the_disk(store)
    limits["pages"] = 100_000
    there_is_room(store)
    store.close()


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let this process write no file beyond this size; what it tries fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_that_may_not_grow(sqlite_url: str) -> None:
    """A write that the kernel refuses changes nothing, and the next one after that works."""
    store = Store.create(sqlite_url)
    with largest_file(2 * 1024 * 1024):
        fill_the_disk(store)
    there_is_room(store)
    store.close()


ON_A_SMALL_DISK: Final = """
import pathlib, sys
sys.path.insert(0, sys.argv[2])
from tests.store.test_failures import fill_the_disk, there_is_room
from keyd.store.database import Store
folder = pathlib.Path(sys.argv[1])
ballast = folder / "ballast"
ballast.write_bytes(bytes(2 * 1024 * 1024))
store = Store.create(f"sqlite:///{folder}/store.db")
fill_the_disk(store)
ballast.unlink()
there_is_room(store)
store.close()
Store.open(f"sqlite:///{folder}/store.db").load()
print("worked")
"""


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """On a real file system without room nothing is changed, and when there is room it goes on."""
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    mount = 'mount -t tmpfs -o size=6m tmpfs "$1" && exec "$2" -c "$3" "$1" "$4"'
    probe = [*unshare, "sh", "-c", 'mount -t tmpfs tmpfs "$1"', "sh", str(tmp_path)]
    if not shutil.which("unshare") or subprocess.run(probe, check=False).returncode:
        # The two tests above fill a disk everywhere.
        pytest.skip("this machine cannot run mount without privileges")
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [*unshare, "sh", "-c", mount, "sh", str(tmp_path), sys.executable, ON_A_SMALL_DISK, root],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "worked\n", done.stderr


def test_a_server_whose_files_may_not_grow(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    """A server that cannot extend its files refuses the commit and keeps what it has."""
    store = Store.create(postgres_url)
    # Larger than the server's log files of 16 MiB, which are made at their full size.
    for n in range(12):
        store.commit([Put(row(b"%d.%d" % (n, m), body=os.urandom(65536))) for m in range(20)])
    was = store.load()
    with postgres_server.largest_file(17 * 1024 * 1024):
        for n in range(100):
            try:
                store.commit([Put(row(b"more%d" % n, body=os.urandom(65536)))])
            except StoreUnavailable:
                break
        else:
            pytest.fail("the files grew")
        seen = store.load()
        assert set(was.rows) <= set(seen.rows)
        assert seen.number == was.number + n
    there_is_room(store)
    store.close()


# --- not to be written


AS_NOBODY: Final = """
import os, pathlib, sys
sys.path.insert(0, sys.argv[2])
from keyd.errors import StoreUnavailable
from keyd.store.database import Store
from keyd.store.rows import Put
from tests.store.writers import row
# While the libraries may be read: whoever is nobody may not enter every folder that holds them.
warm = Store.create(f"sqlite:///{sys.argv[1]}/warm.db")
warm.commit([Put(row(b"a"))])
warm.close()
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
file = pathlib.Path(sys.argv[1]) / "store.db"
store = Store.create(f"sqlite:///{file}")
store.commit([Put(row(b"a"))])
store._engine.dispose()
file.chmod(0o400)
for _ in range(2):
    try:
        store.commit([Put(row(b"b"))])
    except StoreUnavailable as refused:
        assert "nothing was changed" in str(refused), refused
    else:
        raise AssertionError("it was written")
# What SQLite puts beside the file takes the file's mode.
for path in file.parent.glob("store.db*"):
    path.chmod(0o600)
assert store.commit([Put(row(b"b"))]) == 2
assert [r.id for r in store.load().rows] == [b"a", b"b"]
print("worked")
"""


def test_a_file_that_may_not_be_written(tmp_path: Path) -> None:
    """A file of mode 0400 is refused to whoever is not root, and as soon as it is 0600 again the store goes on."""
    checkout = Path(__file__).parents[2]
    is_searchable = all(place.stat().st_mode & 0o001 for place in (checkout, *checkout.parents))
    if os.geteuid() == 0 and not is_searchable:
        pytest.skip("this machine cannot run it as nobody, who may not read the checkout")
    folder = Path("/tmp") / f"keyd-read-only-{os.getpid()}"  # noqa: S108 - pytest's may be root's alone
    folder.mkdir(mode=0o700)
    try:
        if os.geteuid() == 0:
            os.chown(folder, 65534, 65534)
        done = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, str(folder), str(Path(__file__).parents[2])],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout == "worked\n", done.stderr
    finally:
        shutil.rmtree(folder)


def test_a_server_that_only_reads(postgres_server: PostgresServer, postgres_url: str) -> None:
    """A standby, or a database that was set so, is read and not written."""
    store = Store.create(postgres_url)
    database = postgres_url.partition("@/")[2].partition("?")[0]
    with contextlib.closing(postgres_server.admin()) as admin:
        for value in ("on", "off"):
            setting = f"ALTER DATABASE {database} SET default_transaction_read_only = {value}"
            admin.execute(setting.encode())
            store._engine.dispose()
            if value == "on":
                assert_refused(lambda: store.commit([Put(row(CANARY))]), "may not be written")
                assert store.load() == Snapshot(0, ())
    assert store.commit([Put(row(CANARY))]) == 1
    store.close()


# --- others in the way


def test_a_lock_that_is_held_is_waited_for_and_not_for_ever(store: Store, store_url: str) -> None:
    """Somebody else who writes for too long costs a bounded wait; reading goes on meanwhile."""
    other = Store.open(store_url)
    with other._writer.begin() as connection:
        connection.execute(text("UPDATE changes SET number = 7"))
        began = time.monotonic()
        assert_refused(lambda: store.commit([Put(row(CANARY))]), "somebody else for too long")
        assert 0.5 < time.monotonic() - began < 15
        assert store.change_number() == 0
        connection.rollback()
    assert store.commit([Put(row(CANARY))]) == 1
    other.close()


def test_more_threads_than_connections_wait_and_not_for_ever(store: Store) -> None:
    """When every connection is in use for too long, the next one is refused, and afterwards it works."""
    with contextlib.ExitStack() as used:
        for _ in range(CONNECTIONS):
            used.enter_context(store._engine.connect())
        assert_refused(store.change_number, "more to do")
    assert store.change_number() == 0


# --- a damaged database


def test_a_damaged_file_is_refused(sqlite_url: str) -> None:
    """Bytes that are no database are an error with a name."""
    store = Store.create(sqlite_url)
    store.close()
    file = Path(sqlite_url.removeprefix("sqlite:///"))
    data = bytearray(file.read_bytes())
    data[4096 * 1 : 4096 * 30] = b"\xa5" * (4096 * 29)
    file.write_bytes(data)
    assert_refused(lambda: Store.open(sqlite_url).load())


def test_tables_that_are_missing_are_refused(store: Store) -> None:
    """A database that somebody has tidied up is StoreUnavailable everywhere, and names no row."""
    with store._writer.begin() as connection:
        for table in (*(f"{kind}_rows" for kind in Kind), "outbox", "anchors", "changes"):
            connection.execute(text(f"DROP TABLE {table}"))
    for call in everything(store):
        assert_refused(call)
    with store._writer.begin() as connection:
        connection.execute(text("CREATE TABLE changes (id INTEGER, number BIGINT)"))
    assert_refused(store.change_number)


# --- a server that goes away


def test_a_server_that_stops_and_starts_again(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    """While the server is away every call is refused at once; when it is back, the same store works."""
    store = Store.create(postgres_url)
    store.commit([Put(row(b"a"))])
    for number in (signal.SIGINT, signal.SIGQUIT):
        was = store.load()
        postgres_server.stop(number)
        try:
            for call in everything(store):
                began = time.monotonic()
                assert_refused(call)
                assert time.monotonic() - began < 10
            assert_refused(lambda: Store.open(postgres_url), "cannot be reached")
        finally:
            postgres_server.start()
        assert store.load() == was
        revision = was.rows[0].revision + 1
        assert store.commit([Put(row(b"a", revision))]) == was.number + 1
    store.close()


def test_a_connection_that_the_server_cuts_in_the_middle(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    """A commit whose session is ended half way has changed nothing, and the next one works."""
    store = Store.create(postgres_url)
    is_cut: list[bool] = []

    @event.listens_for(store._engine, "before_cursor_execute")
    def _cut(connection: Any, _: object, statement: str, *__: object) -> None:
        if "INSERT INTO officer_rows" in statement and not is_cut:
            is_cut.append(True)
            pid = connection.connection.driver_connection.info.backend_pid
            with contextlib.closing(postgres_server.admin()) as admin:
                admin.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])

    changes = [Put(row(b"a", body=CANARY)), Put(row(b"b", kind=Kind.OFFICER))]
    assert_refused(lambda: store.commit(changes))
    assert is_cut
    assert store.load() == Snapshot(0, ())
    assert store.commit(changes) == 1
    store.close()


def test_a_server_that_hangs_is_not_waited_for(
    postgres_server: PostgresServer, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is there and says nothing costs a bounded wait, in reading and in committing."""
    monkeypatch.setattr("keyd.store.engine.connected.__wrapped__.__defaults__", (1.0,))
    store = Store.create(postgres_url)
    pid = store._read(lambda c: c.connection.driver_connection.info.backend_pid)  # type: ignore[union-attr]
    # Past the ping of the pool: the server freezes once the connection was handed out.
    freeze = ["change", "commit"]

    @event.listens_for(store._engine, "before_cursor_execute")
    def _freeze(*_: object) -> None:
        if freeze == ["change"]:
            os.kill(pid, signal.SIGSTOP)

    freeze.pop()
    try:
        began = time.monotonic()
        assert_refused(store.change_number, "lost|reached")
        assert time.monotonic() - began < 15
    finally:
        os.kill(pid, signal.SIGCONT)
    freeze.clear()
    assert store.change_number() == 0
    pid = store._read(lambda c: c.connection.driver_connection.info.backend_pid)  # type: ignore[union-attr]

    @event.listens_for(store._engine, "commit")
    def _freeze_commit(_: object) -> None:
        if not freeze:
            freeze.append("done")
            os.kill(pid, signal.SIGSTOP)

    try:
        with pytest.raises(OutcomeUnknown, match="look before asking again"):
            # The lock is held by the frozen session, so nobody can find out either.
            store.commit([Put(row(CANARY))])
    finally:
        os.kill(pid, signal.SIGCONT)
    with contextlib.suppress(ChangedMeanwhile):
        store.commit([Put(row(CANARY))])
    assert store.load() == Snapshot(1, (row(CANARY),))
    store.close()


def test_an_address_that_answers_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener that accepts and is silent costs the connect timeout and no more."""
    monkeypatch.setattr(engine_module, "CONNECT_SECONDS", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        url = f"postgresql+psycopg://keyd:{PASSWORD}@127.0.0.1:{port}/keyd?sslpassword={PASSWORD}"
        began = time.monotonic()
        refused = assert_refused(lambda: Store.open(url), "cannot be reached")
        assert time.monotonic() - began < 15
        assert f"postgresql+psycopg://keyd@127.0.0.1:{port}/keyd" in str(refused)


def test_whoever_the_server_does_not_know_gets_a_sentence(postgres_server: PostgresServer) -> None:
    """A database that is not there, and a user that is not, are named; the password is not."""
    url = postgres_server.url("no_such_database")
    assert_refused(lambda: Store.open(url), "no_such_database")
    assert_refused(lambda: Store.open(url.replace("keyd:", "nobody:")), "nobody")


def test_the_server_logs_no_row(store: Store, postgres_server: PostgresServer) -> None:
    """What fails in the server is in its log without what the rows hold."""
    store.commit([Put(row(CANARY, body=CANARY))])
    with pytest.raises(ChangedMeanwhile):
        store.commit([Put(row(CANARY, body=CANARY))])
    assert CANARY.hex() not in postgres_server.log().lower()


def test_locks_of_sqlite_survive_another_opening(sqlite_url: str) -> None:
    """Opening a store while another one of this process writes does not take its lock away."""
    store = Store.create(sqlite_url)
    with store._writer.begin() as connection:
        connection.execute(text("UPDATE changes SET number = 1"))
        Store.open(sqlite_url).close()
        with pytest.raises(StoreUnavailable):
            Store.create(sqlite_url)
        path = sqlite_url.removeprefix("sqlite:///")
        program = f"import sqlite3; sqlite3.connect({path!r}, timeout=0).execute('BEGIN IMMEDIATE')"
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False
        )
        assert sqlite3.OperationalError.__name__ in done.stderr
    assert store.change_number() == 1
    store.close()


def test_a_cut_comes_never_after_the_work(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work that is done in time leaves no timer behind that could cut the next one's connection."""
    monkeypatch.setattr("keyd.store.engine.connected.__wrapped__.__defaults__", (0.3,))
    for _ in range(50):
        store.change_number()
    time.sleep(0.5)
    assert store.change_number() == 0
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.join(5)
            assert not thread.is_alive()
