"""How a database is reached: its URL, its settings, how long it may take, and what its errors mean.

Both databases are made to behave alike here, so that nobody else has to ask which one it is. What is stored, and
what a transaction does, this module refuses to know.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from sqlalchemy import URL, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, TimeoutError  # noqa: A004 - of the pool

from keyd.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine, ExceptionContext

# A database that is there accepts at once; an officer does not want to wait longer to learn that it is not.
CONNECT_SECONDS: Final = 5

# Commits take turns and each takes milliseconds: whoever waits longer waits for something that hangs.
LOCK_SECONDS: Final = 5

# The longest statement is one table of a full load, which takes about a second for 100 000 rows.
STATEMENT_SECONDS: Final = 20

# When the server itself hangs, as with its disk, its own limits do not help, and the connection is cut from here.
ANSWER_SECONDS: Final = 30

# A new column on a large table; nobody else waits, because every keyd is stopped for it.
MIGRATION_SECONDS: Final = 600

# Worker threads are bounded to a handful; one for the poll, the rest for officers' commands.
CONNECTIONS: Final = 8

# libpq tells everything that it has tried; the first of it says what is wrong.
MAX_REASON_CHARACTERS: Final = 300

PRIVATE: Final = 0o600

_WRITES: Final = "keyd_writes"

_SQLITE_REASONS: Final = {
    "SQLITE_FULL": "has no more room on its disk",
    "SQLITE_READONLY": "may not be written",
    "SQLITE_PERM": "may not be written",
    "SQLITE_BUSY": "is being written by somebody else for too long",
    "SQLITE_LOCKED": "is being written by somebody else for too long",
    "SQLITE_CANTOPEN": "cannot be opened",
    "SQLITE_IOERR": "cannot be read or written by its disk",
    "SQLITE_CORRUPT": "is damaged",
    "SQLITE_NOTADB": "is no database",
}

# After these an open file is not to be trusted: it may have been moved, replaced or opened for reading only.
_SQLITE_REOPEN: Final = frozenset(
    {"SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_IOERR", "SQLITE_CORRUPT", "SQLITE_NOTADB"}
)

# By SQLSTATE, or by its class, the first two characters.
_POSTGRESQL_REASONS: Final = {
    "08": "has lost the connection",
    "22": "refuses a value",
    "25006": "may not be written",
    "28": "does not let this user in",
    "42501": "does not let this user do that",
    "42": "does not have the tables that it should have",
    "53100": "has no more room on its disk",
    "53300": "has too many connections",
    "53": "has too little of something",
    "55P03": "is being written by somebody else for too long",
    "57014": "took too long",
    "57": "is going down or starting",
    "58": "cannot read or write its files",
    "XX": "is damaged, or its disk is full",
}


def parsed(text: str) -> URL:
    """Parse the URL of a store: `sqlite:////absolute/path` or `postgresql+psycopg://…`.

    Raises:
        StoreUnavailable: it is neither. The URL is not repeated, because a password may be anywhere in it.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        url = None
    if url is not None and url.drivername == "postgresql+psycopg":
        return url
    if url is not None and url.drivername == "sqlite":
        # In memory, each connection would have a database of its own; a relative path depends on who starts keyd.
        is_file = url.database is not None and os.path.isabs(url.database)  # noqa: PTH117 - it is text
        if is_file and not url.query and url.host is None:
            return url
    raise StoreUnavailable(
        "the store's URL is neither sqlite:////absolute/path nor postgresql+psycopg://…"
    )


def shown(url: URL) -> str:
    """Return the URL as people may see it: without password, and without the parameters, which can hold one."""
    return URL.create(
        url.drivername, url.username, None, url.host, url.port, url.database
    ).render_as_string()


def make_engine(url: URL) -> Engine:
    """Make the engine for a URL that `parsed` has returned. It connects when it is used.

    Raises:
        StoreUnavailable: the driver for this database is not installed.
    """
    if url.drivername == "sqlite":
        return _sqlite(url)
    try:
        return _postgresql(url)
    except ImportError:
        raise StoreUnavailable(
            "PostgreSQL needs a driver: pip install 'keyd[postgresql]'"
        ) from None


def reader(engine: Engine) -> Engine:
    """Return the engine whose transactions read one moment's state and write nothing."""
    if engine.dialect.name == "sqlite":
        return engine  # in WAL mode, what BEGIN begins reads one state
    return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)


def writer(engine: Engine) -> Engine:
    """Return the engine whose transactions write.

    In PostgreSQL they see what is committed when each statement begins, not when the transaction does: after they
    have waited for a row's lock, they see what the others have made of it.
    """
    if engine.dialect.name == "sqlite":
        return engine.execution_options(**{_WRITES: True})
    return engine.execution_options(isolation_level="READ COMMITTED")


def _sqlite(url: URL) -> Engine:
    # mode=rw: a file that has gone is an error, and not a new and empty store.
    file = URL.create("sqlite", database=f"file:{quote(url.database or '')}").update_query_dict(
        {"mode": "rw", "uri": "true"}
    )
    engine = create_engine(
        file,
        connect_args={"timeout": LOCK_SECONDS},
        hide_parameters=True,
        pool_size=CONNECTIONS,
        max_overflow=0,
        pool_timeout=LOCK_SECONDS,
    )

    @event.listens_for(engine, "connect")
    def _settings(connection: Any, _: object) -> None:
        # Python's driver would begin transactions by itself, too late and of the wrong kind.
        connection.isolation_level = None
        [(mode,)] = connection.execute("PRAGMA journal_mode = WAL").fetchall()
        if mode != "wal":
            raise StoreUnavailable(
                f"the store {shown(url)} is on a file system that cannot keep it safe"
            )
        # FULL: a commit is on disk before it is acknowledged. With WAL, NORMAL would not do that.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        # The file's schema is data, too: nothing in it may call functions.
        connection.execute("PRAGMA trusted_schema = OFF")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # Whoever will write takes the lock at once. Otherwise two could read first, and then one of them fails.
        does_write = connection.get_execution_options().get(_WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if does_write else "BEGIN")

    @event.listens_for(engine, "handle_error")
    def _reopen(context: ExceptionContext) -> None:
        if _sqlite_name(context.original_exception) in _SQLITE_REOPEN:
            context.is_disconnect = True

    return engine


def _postgresql(url: URL) -> Engine:
    settings: dict[str, object] = {
        "connect_timeout": CONNECT_SECONDS,
        # A machine that has vanished does not say so.
        "keepalives_idle": CONNECT_SECONDS,
        "keepalives_interval": CONNECT_SECONDS,
        "keepalives_count": 3,
        "tcp_user_timeout": STATEMENT_SECONDS * 1000,
        "application_name": "keyd",
    }
    engine = create_engine(
        url,
        # What the URL says itself is left to it.
        connect_args={name: value for name, value in settings.items() if name not in url.query},
        hide_parameters=True,
        pool_pre_ping=True,
        pool_size=CONNECTIONS,
        max_overflow=0,
        pool_timeout=LOCK_SECONDS,
    )

    @event.listens_for(engine, "connect")
    def _settings(connection: Any, _: object) -> None:
        for name, seconds in (
            ("statement_timeout", STATEMENT_SECONDS),
            ("lock_timeout", LOCK_SECONDS),
            # An instance that is stopped in the middle of a commit must not keep the others waiting for ever.
            ("idle_in_transaction_session_timeout", STATEMENT_SECONDS),
        ):
            connection.execute(f"SET {name} = '{seconds}s'")
        # Where the cluster does not wait for its disk, this session does. What waits for more is left alone.
        connection.execute(
            "SELECT set_config('synchronous_commit', 'on', false) "
            "WHERE current_setting('synchronous_commit') = 'off'"
        )
        connection.commit()

    @event.listens_for(engine, "handle_error")
    def _lost(context: ExceptionContext) -> None:
        # An error that the server did not send is one of the connection, also where libpq would go on with it.
        error = context.original_exception
        is_operational = isinstance(error, engine.dialect.loaded_dbapi.OperationalError)
        if is_operational and getattr(error, "sqlstate", None) is None:
            context.is_disconnect = True

    return engine


@contextmanager
def connected(engine: Engine, seconds: float = ANSWER_SECONDS) -> Iterator[Connection]:
    """Open a connection for one piece of work, and cut it when the database has not answered in time."""
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            yield connection
            return
        watch = _Watch(connection.connection.driver_connection)
        timer = threading.Timer(seconds, watch.cut)
        timer.daemon = True
        timer.start()
        try:
            yield connection
        finally:
            timer.cancel()
            watch.end()


class _Watch:
    """What cuts a connection whose server does not answer, while another thread waits in the driver for it."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._has_ended = False

    def cut(self) -> None:
        with self._lock:
            if self._has_ended or self._connection.closed:
                return
            # Closing it here would give its number to somebody else's file while the driver still uses it. So the
            # number gets another file: the driver looks at it every tenth of a second, finds no socket there, and
            # says that the connection is lost.
            nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            try:
                os.dup2(nothing, self._connection.fileno(), inheritable=False)
            finally:
                os.close(nothing)

    def end(self) -> None:
        with self._lock:
            self._has_ended = True


def why(url: URL, error: Exception) -> str:
    """Return a sentence for people about an error of a database. It holds no password and nothing of a row."""
    original = error.orig if isinstance(error, DBAPIError) else error
    name = _sqlite_name(original)
    if name is not None:
        reason = _SQLITE_REASONS.get(name, "does not work")
        return f"the store {shown(url)} {reason} ({getattr(original, 'sqlite_errorname', name)})"
    if isinstance(error, OSError):
        return f"the store {shown(url)} cannot be reached: {error.strerror or 'no reason is known'}"
    state = getattr(original, "sqlstate", None)
    if state is not None:
        reason = (
            _POSTGRESQL_REASONS.get(state) or _POSTGRESQL_REASONS.get(state[:2]) or "does not work"
        )
        return f"the store {shown(url)} {reason} ({state})"
    if isinstance(error, DBAPIError) and error.statement is None:
        # There was no statement yet, so the text is of connecting: it names hosts, users, files and certificates.
        return f"the store {shown(url)} cannot be reached: {_connecting(url, str(original))}"
    if isinstance(error, DBAPIError):
        return f"the store {shown(url)} has lost the connection"
    if isinstance(error, TimeoutError):
        return f"the store {shown(url)} has more to do than its {CONNECTIONS} connections can"
    return f"the store {shown(url)} does not work: {type(error).__name__}"


def _connecting(url: URL, text: str) -> str:
    secrets = [url.password, *(url.query.get(name) for name in ("password", "sslpassword"))]
    for secret in secrets:
        if isinstance(secret, str) and secret:
            text = text.replace(secret, "…")
    return " ".join(text.split())[:MAX_REASON_CHARACTERS]


def _sqlite_name(error: BaseException | None) -> str | None:
    """Return the primary name of an SQLite error, SQLITE_IOERR for SQLITE_IOERR_WRITE, or None."""
    name = getattr(error, "sqlite_errorname", None)
    return None if name is None else "_".join(str(name).split("_")[:2])
