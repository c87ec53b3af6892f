"""The store: rows that are read all at once and changed one commit at a time, and never half.

A commit is one transaction: every change with the revision that it expects, the journal's records of it, and the
number of changes, which other instances poll. Commits take turns, in both databases, by who holds the one row of
`changes` (PostgreSQL) or the file's write lock (SQLite). The store refuses to know what is in a row, what time it
is, and who asks; whoever calls it does so in a worker thread, because everything here waits for a disk.

Every failure of a database is `StoreUnavailable`. It says in a sentence what is wrong, and repeats neither a password
nor anything of a row. A store that failed works again, without a restart, when its database does.
"""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
from sqlalchemy import delete, func, insert, inspect, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from keyd.errors import ChangedMeanwhile, StoreUnavailable
from keyd.store import migrations
from keyd.store.engine import (
    MIGRATION_SECONDS,
    PRIVATE,
    connected,
    make_engine,
    parsed,
    reader,
    shown,
    why,
    writer,
)
from keyd.store.rows import (
    MAX_CHANGES,
    MAX_RECORD_BYTES,
    MAX_RECORDS,
    Activity,
    Anchor,
    Begin,
    CounterRow,
    Drop,
    Kind,
    Put,
    Row,
    Snapshot,
    check_instance,
)
from keyd.store.tables import ACTIVITY, ANCHORS, CHANGES, COUNTERS, OUTBOX, ROWS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from sqlalchemy import URL, Connection, RowMapping, Table

    from keyd.store.rows import Change

T = TypeVar("T")

# Some 64 MiB at most in memory; whoever has more waiting asks again.
OUTBOX_BATCH: Final = 1024

# Enough to check a journal against; older ones are found by asking for more.
ANCHORS_BATCH: Final = 100

# A week of them, at one a minute. Every link depends on all before it, so what is older tells nothing that these do
# not.
KEPT_ANCHORS: Final = 10_000

# How many numbers or rows one statement holds: SQLite allows 32 766 variables, and a row has six.
STATEMENT_BATCH: Final = 500

# "keyd" in ASCII: the advisory lock of PostgreSQL under which schemas are made.
SCHEMA_LOCK: Final = 0x6B657964


class OutcomeUnknown(StoreUnavailable):
    """The database was lost while it committed: the change was made, or nothing was. Look before asking again."""


class Store:
    """An open store. Its methods may be called from several threads at once.

    All of them raise `StoreUnavailable` when the database cannot be reached, read or written, or holds what keyd did
    not write; then nothing was changed, except as `OutcomeUnknown` says.
    """

    def __init__(self, url: URL) -> None:
        """Not for callers: `create` and `open` make stores."""
        self._url = url
        self._engine = make_engine(url)
        self._reader = reader(self._engine)
        self._writer = writer(self._engine)
        self._is_closed = False
        # The rows of the last load, by the columns that they were made of: most are the same at the next one, and a
        # province has many terminals.
        self._loaded: Mapping[tuple[object, ...], Row] = {}

    # --- making and opening

    @classmethod
    def create(cls, url: str) -> Store:
        """Make a store in a new file, or in an empty database, and open it.

        Raises:
            StoreUnavailable: something is there already, or it cannot be made.
        """
        store = cls(parsed(url))
        try:
            store._make_file()
            store._write(store._make_tables, MIGRATION_SECONDS)
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def open(cls, url: str) -> Store:
        """Open a store that is there.

        Raises:
            StoreUnavailable: there is none, its schema is not the one of this program, or its file is not private.
        """
        store = cls(parsed(url))
        try:
            store._check_file()
            store._check_schema(store._read(migrations.current))
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def upgrade(cls, url: str) -> None:
        """Bring a store to the schema of this program, in one transaction. Doing it again does nothing.

        Raises:
            StoreUnavailable: there is none, it is newer than this program, or it cannot be changed.
        """
        store = cls(parsed(url))
        try:
            store._check_file()
            store._write(store._upgrade_tables, MIGRATION_SECONDS)
        finally:
            store.close()

    def close(self) -> None:
        """Close all connections. The store cannot be used after that; closing it again does nothing."""
        self._is_closed = True
        self._engine.dispose()

    # --- rows

    def load(self, *, with_counters: bool = False) -> Snapshot:
        """Read all rows, and PSAMs' counters if asked to, at one moment. A row that is as it was is the same object."""

        def work(
            connection: Connection,
        ) -> tuple[int, list[tuple[object, ...]], list[CounterRow]]:
            return (*_load(connection), _counters(connection) if with_counters else [])

        number, columns, counters = self._read(work)
        before, loaded = self._loaded, dict[tuple[object, ...], Row]()
        with self._guarded():
            for values in columns:
                row = before.get(values)
                loaded[values] = _row(values) if row is None else row
        self._loaded = loaded
        return Snapshot(number, tuple(loaded.values()), tuple(counters))

    def change_number(self) -> int:
        """Return the number of the last commit. It reads one number, so it may be asked every second."""
        return self._read(_number)

    def commit(
        self,
        changes: Sequence[Change],
        records: Sequence[bytes] = (),
        instance: str = "",
        expected_number: int | None = None,
    ) -> int:
        """Make all changes, in their order, or none, and return the number of this commit.

        The records go to the outbox of the instance in the same transaction. With `expected_number`, nobody may have
        committed anything since that number.

        Raises:
            ChangedMeanwhile: a revision, or the number, is not the one that was expected. Nothing was changed.
            ValueError: there are more changes or records than one commit may have, or records of no instance.
        """
        if len(changes) > MAX_CHANGES or len(records) > MAX_RECORDS:
            raise ValueError(f"a commit has at most {MAX_CHANGES} changes, {MAX_RECORDS} records")
        if any(len(record) > MAX_RECORD_BYTES for record in records):
            raise ValueError(f"a record has at most {MAX_RECORD_BYTES} bytes")
        if records:
            check_instance(instance)
        number = 0

        def work(connection: Connection) -> int:
            nonlocal number
            # First, because it is the lock: from here to the end nobody else commits.
            number = _next_number(connection)
            if expected_number is not None and number != expected_number + 1:
                raise ChangedMeanwhile
            for change in changes:
                _make(connection, change)
            if records:
                held = [{"instance": instance, "record": record} for record in records]
                connection.execute(insert(OUTBOX), held)
            return number

        try:
            return self._write(work)
        except OutcomeUnknown:
            if self._was_committed(number, changes):
                return number
            raise

    def fill(self, snapshot: Snapshot) -> None:
        """Put a snapshot into a store that holds nothing, revisions and number as they were: a restore.

        Counters were restored once more then: what was counted since the snapshot was taken is not known.

        Raises:
            StoreUnavailable: the store holds something already.
        """

        def work(connection: Connection) -> None:
            number = _next_number(connection) - 1
            holds = (*ROWS.values(), COUNTERS, OUTBOX, ANCHORS)
            if number or any(connection.scalar(select(select(t).exists())) for t in holds):
                raise StoreUnavailable(
                    f"the store {shown(self._url)} holds something already: restore into an empty one"
                )
            for kind, table in ROWS.items():
                rows = [_columns(row) for row in snapshot.rows if row.kind == kind]
                for batch in _batches(rows):
                    connection.execute(insert(table), batch)
            for counted in _batches([*map(_restored, snapshot.counters)]):
                connection.execute(insert(COUNTERS), counted)
            connection.execute(update(CHANGES).values(number=snapshot.number))

        self._write(work)

    # --- what PSAMs have to remember

    def counters(self, psam: bytes) -> CounterRow | None:
        """Return the counters of one PSAM, by the id of its row; None if there are none."""
        return self._read(lambda connection: next(iter(_counters(connection, psam)), None))

    def swap_counters(self, row: CounterRow) -> None:
        """Let counters of revision n replace exactly those of revision n - 1. No number of changes grows.

        Raises:
            ChangedMeanwhile: somebody else was quicker, or there are none. Nothing was changed.
        """
        before = (COUNTERS.c.psam == row.psam) & (COUNTERS.c.revision == row.revision - 1)
        swap = update(COUNTERS).where(before).values(msgspec.structs.asdict(row))

        def work(connection: Connection) -> None:
            if connection.execute(swap).rowcount != 1:
                raise ChangedMeanwhile

        self._write(work)

    # --- the journal's outbox and anchors

    def outbox(self, instance: str) -> list[tuple[int, bytes]]:
        """Return the oldest records that wait for the journal of an instance, at most 1024, with their numbers."""
        check_instance(instance)
        wanted = select(OUTBOX.c.number, OUTBOX.c.record).where(OUTBOX.c.instance == instance)
        wanted = wanted.order_by(OUTBOX.c.number).limit(OUTBOX_BATCH)
        return self._read(
            lambda connection: [
                (number, bytes(record)) for number, record in connection.execute(wanted)
            ]
        )

    def sent(self, numbers: Sequence[int]) -> None:
        """Take records out of the outbox, now that the journal has them. Those that are gone already do not matter."""

        def work(connection: Connection) -> None:
            for batch in _batches(numbers):
                connection.execute(delete(OUTBOX).where(OUTBOX.c.number.in_(batch)))

        self._write(work)

    def put_anchor(self, anchor: Anchor) -> None:
        """Keep an anchor, and of the older ones KEPT_ANCHORS - 1. Keeping the same one again does nothing.

        Raises:
            ChangedMeanwhile: another link stands at that place: there are two journals of one instance.
        """
        values = msgspec.structs.asdict(anchor)
        place = (
            (ANCHORS.c.instance == anchor.instance)
            & (ANCHORS.c.segment == anchor.segment)
            & (ANCHORS.c.sequence == anchor.sequence)
        )

        def work(connection: Connection) -> None:
            link = connection.scalar(select(ANCHORS.c.link).where(place))
            if link is None:
                _insert(connection, ANCHORS, values)
                _forget_old_anchors(connection, anchor.instance)
            elif bytes(link) != anchor.link:
                raise ChangedMeanwhile("another anchor stands at that place of the journal already")

        self._write(work)

    def anchors(self, instance: str, limit: int = ANCHORS_BATCH) -> list[Anchor]:
        """Return the newest anchors of an instance's journal, newest first."""
        check_instance(instance)
        wanted = select(ANCHORS).where(ANCHORS.c.instance == instance)
        wanted = wanted.order_by(ANCHORS.c.segment.desc(), ANCHORS.c.sequence.desc()).limit(limit)
        return self._read(
            lambda connection: [
                _converted(values, Anchor) for values in connection.execute(wanted).mappings()
            ]
        )

    # --- what was seen of terminals

    def add_activity(self, instance: str, seen: Sequence[Activity]) -> None:
        """Add what an instance has seen of terminals since it last said: counts grow, and the last is the newest."""
        check_instance(instance)

        def work(connection: Connection) -> None:
            for one in seen:
                place = (ACTIVITY.c.instance == instance) & (ACTIVITY.c.code == one.code)
                grown = {
                    "last_seen": one.last_seen,
                    "last_source": one.last_source,
                    "authentications": ACTIVITY.c.authentications + one.authentications,
                    "failures": ACTIVITY.c.failures + one.failures,
                }
                if connection.execute(update(ACTIVITY).where(place).values(grown)).rowcount:
                    continue
                values = {"instance": instance, **msgspec.structs.asdict(one)}
                connection.execute(insert(ACTIVITY).values(values))

        if seen:
            self._write(work)

    def activity(self) -> dict[str, Activity]:
        """Return what all instances together have seen of each terminal, by its code."""

        def work(connection: Connection) -> dict[str, Activity]:
            found: dict[str, Activity] = {}
            by_time = select(ACTIVITY).order_by(ACTIVITY.c.last_seen)
            for values in connection.execute(by_time).mappings():
                one = _converted(values, Activity)
                before = found.get(one.code)
                if before is not None:
                    one = msgspec.structs.replace(
                        one,
                        authentications=one.authentications + before.authentications,
                        failures=one.failures + before.failures,
                    )
                found[one.code] = one
            return found

        return self._read(work)

    # --- transactions

    def _read(self, work: Callable[[Connection], T]) -> T:
        with self._guarded(), connected(self._reader) as connection, connection.begin():
            return work(connection)

    def _write(self, work: Callable[[Connection], T], seconds: float | None = None) -> T:
        is_committing = False
        open_writer = (
            connected(self._writer) if seconds is None else connected(self._writer, seconds)
        )
        with self._guarded():
            try:
                with open_writer as connection, connection.begin():
                    done = work(connection)
                    is_committing = True
            except DBAPIError as error:
                if is_committing and error.connection_invalidated:
                    raise OutcomeUnknown(
                        f"{why(self._url, error)}, while it committed: "
                        "the change was made, or nothing was; look before asking again"
                    ) from None
                raise
            return done

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        if self._is_closed:
            raise StoreUnavailable(f"the store {shown(self._url)} is closed")
        try:
            yield
        except (SQLAlchemyError, OSError) as error:
            raise StoreUnavailable(f"{why(self._url, error)}; nothing was changed") from None
        except msgspec.ValidationError:
            raise StoreUnavailable(
                f"the store {shown(self._url)} holds something that keyd did not write"
            ) from None

    def _was_committed(self, number: int, changes: Sequence[Change]) -> bool:
        """Find out what became of a commit whose connection was lost: made (True), not made (raises), or unknown.

        Raises:
            StoreUnavailable: it was not made.
        """
        try:
            with self._guarded(), connected(self._writer) as connection:
                transaction = connection.begin()
                # Whoever has the lock knows that the lost transaction is over, made or not.
                is_past = _next_number(connection) - 1 >= number
                last = {
                    _place(change): change for change in changes if not isinstance(change, Begin)
                }
                puts = [change.row for change in last.values() if isinstance(change, Put)]
                found = [_find(connection, row.kind, row.id) for row in puts]
                transaction.rollback()
        except StoreUnavailable:
            return False
        if not is_past:
            raise StoreUnavailable(
                f"the store {shown(self._url)} was lost while it committed; nothing was changed"
            )
        # Nobody else writes the same nonce and ciphertext: finding all rows is finding our commit. Rows that are
        # gone prove nothing, and a row that is another one now may have been ours before.
        return bool(puts) and found == puts

    # --- files and schemas

    @property
    def _file(self) -> Path | None:
        return Path(self._url.database or "") if self._url.drivername == "sqlite" else None

    def _make_file(self) -> None:
        if self._file is None:
            return
        with self._guarded():
            try:
                os.close(os.open(self._file, os.O_CREAT | os.O_EXCL | os.O_RDWR, PRIVATE))
            except FileExistsError:
                self._check_file()
            folder = os.open(self._file.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def _check_file(self) -> None:
        """Check that the file is there and that nobody but its owner may read it.

        It is never opened for that: closing it again would take away the locks that SQLite, in this same process,
        may have on it.
        """
        if self._file is None:
            return
        with self._guarded():
            mode = self._file.stat().st_mode
            if not stat.S_ISREG(mode):
                raise StoreUnavailable(f"the store {shown(self._url)} is no file")
            for suffix in ("", "-wal", "-shm"):
                file = self._file.with_name(self._file.name + suffix)
                if file.exists() and stat.S_IMODE(file.stat().st_mode) & ~PRIVATE:
                    raise StoreUnavailable(f"others may read the store: chmod 600 {file}")

    def _make_tables(self, connection: Connection) -> None:
        _lock_schema(connection)
        if inspect(connection).get_table_names():
            raise StoreUnavailable(
                f"the store {shown(self._url)} is not empty: "
                "a new one needs a new file or an empty database"
            )
        migrations.upgrade(connection)

    def _upgrade_tables(self, connection: Connection) -> None:
        _lock_schema(connection)
        revision = migrations.current(connection)
        self._check_schema(revision, is_upgrading=True)
        migrations.upgrade(connection)

    def _check_schema(self, revision: str | None, *, is_upgrading: bool = False) -> None:
        name = shown(self._url)
        if revision is None:
            raise StoreUnavailable(f"{name} is no store of keyd: nothing was ever made in it")
        if revision not in migrations.known():
            raise StoreUnavailable(
                f"the store {name} is newer than this keyd (schema {revision}): use a newer keyd"
            )
        if revision != migrations.newest() and not is_upgrading:
            raise StoreUnavailable(
                f"the store {name} is older than this keyd (schema {revision}): stop every keyd that uses it, "
                "back it up, and run keyd store upgrade"
            )


def _lock_schema(connection: Connection) -> None:
    # SQLite has locked the whole file with BEGIN IMMEDIATE.
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SET LOCAL statement_timeout = '{MIGRATION_SECONDS}s'"))
        connection.execute(select(func.pg_advisory_xact_lock(SCHEMA_LOCK)))


def _batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (
        items[start : start + STATEMENT_BATCH] for start in range(0, len(items), STATEMENT_BATCH)
    )


def _number(connection: Connection) -> int:
    return int(connection.execute(select(CHANGES.c.number)).scalar_one())


def _next_number(connection: Connection) -> int:
    counted = update(CHANGES).values(number=CHANGES.c.number + 1).returning(CHANGES.c.number)
    return int(connection.execute(counted).scalar_one())


def _load(connection: Connection) -> tuple[int, list[tuple[object, ...]]]:
    number = _number(connection)
    return number, [
        (kind, *values)
        for kind, table in ROWS.items()
        for values in connection.execute(select(table).order_by(table.c.id))
    ]


def _find(connection: Connection, kind: Kind, row_id: bytes) -> Row | None:
    table = ROWS[kind]
    values = connection.execute(select(table).where(table.c.id == row_id)).one_or_none()
    return None if values is None else _row((kind, *values))


def _make(connection: Connection, change: Change) -> None:
    if isinstance(change, Begin):
        _insert(connection, COUNTERS, msgspec.structs.asdict(change.row))
        return
    kind, row_id, revision = _expected(change)
    table = ROWS[kind]
    if isinstance(change, Put) and revision == 0:
        _insert(connection, table, _columns(change.row))
        return
    exactly = (table.c.id == row_id) & (table.c.revision == revision)
    if isinstance(change, Put):
        done = connection.execute(update(table).where(exactly).values(_columns(change.row)))
    else:
        done = connection.execute(delete(table).where(exactly))
    if done.rowcount != 1:
        raise ChangedMeanwhile


def _insert(connection: Connection, table: Table, values: Mapping[str, object]) -> None:
    # Not by catching the error: PostgreSQL would write the row's id into its log.
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(table).on_conflict_do_nothing().values(values)
    # Not by counting: for an INSERT, not every driver's count reaches us.
    if connection.execute(statement.returning(*table.primary_key)).first() is None:
        raise ChangedMeanwhile


def _counters(connection: Connection, psam: bytes | None = None) -> list[CounterRow]:
    wanted = select(COUNTERS).order_by(COUNTERS.c.psam)
    if psam is not None:
        wanted = wanted.where(COUNTERS.c.psam == psam)
    return [_converted(values, CounterRow) for values in connection.execute(wanted).mappings()]


def _restored(row: CounterRow) -> dict[str, object]:
    return msgspec.structs.asdict(row) | {"restored": row.restored + 1}


def _forget_old_anchors(connection: Connection, instance: str) -> None:
    ours = ANCHORS.c.instance == instance
    newest_first = (ANCHORS.c.segment.desc(), ANCHORS.c.sequence.desc())
    last = select(ANCHORS.c.segment, ANCHORS.c.sequence).where(ours).order_by(*newest_first)
    oldest = connection.execute(last.offset(KEPT_ANCHORS).limit(1)).first()
    if oldest is not None:
        is_before = (ANCHORS.c.segment < oldest.segment) | (
            (ANCHORS.c.segment == oldest.segment) & (ANCHORS.c.sequence <= oldest.sequence)
        )
        connection.execute(delete(ANCHORS).where(ours & is_before))


def _expected(change: Put | Drop) -> tuple[Kind, bytes, int]:
    """Return which row a change is about, and which revision it expects; 0 says that there is none."""
    if isinstance(change, Put):
        return change.row.kind, change.row.id, change.row.revision - 1
    return change.kind, change.id, change.revision


def _place(change: Put | Drop) -> tuple[Kind, bytes]:
    kind, row_id, _ = _expected(change)
    return kind, row_id


def _columns(row: Row) -> dict[str, object]:
    values = msgspec.structs.asdict(row)
    del values["kind"]
    return values


# The columns of every kind of row, in the order of its table.
_COLUMNS: Final = ("kind", "id", "domain", "revision", "body", "nonce", "sealed")


def _row(values: tuple[object, ...]) -> Row:
    # By itself msgspec would take a text for bytes, in base64; whoever can write the database can have written a text.
    named = dict(zip(_COLUMNS, values, strict=True))
    return msgspec.convert(named, Row, builtin_types=(bytes,))


def _converted(values: RowMapping, wanted: type[T]) -> T:
    # SQLAlchemy's names are a subclass of str, which msgspec does not take for names.
    named = {str(name): value for name, value in values.items()}
    return msgspec.convert(named, wanted, builtin_types=(bytes,))
