"""A store is made where nothing is, opened only by the program that its schema is for, and read by its owner only."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text

from keyd.errors import StoreUnavailable
from keyd.store import migrations
from keyd.store.database import Store
from keyd.store.rows import Kind, Put, Snapshot
from keyd.store.tables import METADATA, ROWS
from tests.postgresql import PASSWORD
from tests.store.writers import row

LATER = '''
"""A revision of the future."""
import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

def upgrade():
    op.create_table("terminals", sa.Column("id", sa.Integer, primary_key=True))
    op.execute("DELETE FROM changes")
    op.execute("INSERT INTO changes (id, number) VALUES (1, 41)")
    {last}
'''


def file_of(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///"))


# --- the schema


def test_models_and_migrations_agree(store: Store) -> None:
    """What the migrations make is what the program expects: tables, columns, types, indexes."""
    with store._engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, METADATA) == []
        # Alembic does not look at these.
        inspector = inspect(connection)
        for table in METADATA.sorted_tables:
            wanted = {str(c.name) for c in table.constraints if c.name and "ck_" in str(c.name)}
            assert {c["name"] for c in inspector.get_check_constraints(table.name)} == wanted
            key = inspector.get_pk_constraint(table.name)
            assert key["constrained_columns"] == [c.name for c in table.primary_key]
    assert set(ROWS) == set(Kind)


def test_the_comparison_would_notice(store: Store) -> None:
    """A column more or less is seen; otherwise the test above would show nothing."""
    with store._writer.begin() as connection:
        connection.execute(text("ALTER TABLE changes ADD COLUMN extra INTEGER"))
        context = MigrationContext.configure(connection)
        assert len(compare_metadata(context, METADATA)) == 1


def test_upgrading_again_changes_nothing(store: Store, store_url: str) -> None:
    """An upgrade of what is new already does nothing to it."""
    store.commit([Put(row(b"a"))], [b"record"], "i")
    was = store.load()
    Store.upgrade(store_url)
    Store.upgrade(store_url)
    assert store.load() == was
    with store._engine.connect() as connection:
        assert migrations.current(connection) == migrations.newest()


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let this program be one that has a second revision, which ends with the given statement."""

    def make(last: str) -> None:
        folder = tmp_path / "migrations"
        shutil.copytree(migrations.SCRIPTS, folder, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "versions" / "r0004_later.py").write_text(LATER.format(last=last))
        for function in (migrations.newest, migrations.known, migrations.upgrade):
            monkeypatch.setattr(function, "__defaults__", (folder,))

    return make


def test_an_older_store_is_refused_until_it_is_upgraded(
    store: Store, store_url: str, scripts: Any
) -> None:
    """A newer program changes a schema only when it is told to, and says how."""
    scripts("pass")
    with pytest.raises(StoreUnavailable, match=r"older than this keyd.*keyd store upgrade"):
        Store.open(store_url)
    Store.upgrade(store_url)
    again = Store.open(store_url)
    assert again.change_number() == 41
    again.close()


def test_a_newer_store_is_refused(
    store: Store, store_url: str, scripts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program does not touch a schema that it does not know, neither to open nor to upgrade it."""
    with monkeypatch.context():
        scripts("pass")
        Store.upgrade(store_url)
        monkeypatch.undo()
    for call in (Store.open, Store.upgrade):
        with pytest.raises(StoreUnavailable, match="newer than this keyd"):
            call(store_url)


def test_an_upgrade_that_fails_leaves_the_store_as_it_was(
    store: Store, store_url: str, scripts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A migration is one transaction: the old program goes on with the old schema."""
    store.commit([Put(row(b"a"))])
    was = store.load()
    with monkeypatch.context():
        scripts('op.execute("SELECT * FROM no_such_table")')
        with pytest.raises(StoreUnavailable):
            Store.upgrade(store_url)
        monkeypatch.undo()
    again = Store.open(store_url)
    assert again.load() == was
    with again._engine.connect() as connection:
        assert "terminals" not in inspect(connection).get_table_names()
    again.close()


# --- making and finding


def test_a_store_is_made_only_where_nothing_is(store: Store, store_url: str) -> None:
    """Making a store never touches one that is there."""
    store.commit([Put(row(b"a"))])
    was = store.load()
    with pytest.raises(StoreUnavailable, match="not empty"):
        Store.create(store_url)
    assert store.load() == was


def test_what_is_no_store_is_not_opened(store_url: str) -> None:
    """An empty database, or no file, is no store: opening makes none."""
    for call in (Store.open, Store.upgrade):
        with pytest.raises(StoreUnavailable):
            call(store_url)
    made = Store.create(store_url)
    assert made.load() == Snapshot(0, ())
    made.close()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "nonsense",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///relative.db",
        "sqlite:////tmp/x.db?mode=memory",
        f"mysql://keyd:{PASSWORD}@host/db",
        f"postgresql://keyd:{PASSWORD}@host/db",
        f"postgresql+psycopg2://keyd:{PASSWORD}@host/db",
        f"postgresql+psycopg://keyd:{PASSWORD}@host:port/db",
        f"sqlite://keyd:{PASSWORD}@/tmp/x.db",
    ],
)
def test_another_url_is_refused_and_not_repeated(url: str) -> None:
    """There are two kinds of URL, and a wrong one may have a password anywhere."""
    for call in (Store.create, Store.open, Store.upgrade):
        with pytest.raises(StoreUnavailable, match="neither") as refused:
            call(url)
        assert PASSWORD not in str(refused.value)


# --- files


def modes(file: Path) -> set[int]:
    return {path.stat().st_mode & 0o777 for path in file.parent.glob(file.name + "*")}


def test_an_sqlite_store_is_its_owners_alone(sqlite_url: str) -> None:
    """Whatever the umask, the file and all that SQLite puts beside it have mode 0600."""
    was = os.umask(0)
    try:
        store = Store.create(sqlite_url)
        store.commit([Put(row(b"a"))])
    finally:
        os.umask(was)
    file = file_of(sqlite_url)
    assert file.with_name("store.db-wal").exists()
    assert modes(file) == {0o600}
    with store._engine.connect() as connection:
        found = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        ]
    assert found == ["wal", 2, 1, 5000]
    store.close()


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o700])
def test_a_file_that_others_may_read_is_refused(sqlite_url: str, suffix: str, mode: int) -> None:
    """The refusal names the file and the remedy, and the remedy works."""
    store = Store.create(sqlite_url)
    store.commit([Put(row(b"a"))])
    file = Path(str(file_of(sqlite_url)) + suffix)
    file.chmod(mode)
    for call in (Store.open, Store.upgrade):
        with pytest.raises(StoreUnavailable, match=f"chmod 600 {file}"):
            call(sqlite_url)
    file.chmod(0o600)
    Store.open(sqlite_url).close()
    store.close()


def test_an_empty_file_becomes_a_store_and_another_one_does_not(sqlite_url: str) -> None:
    """A file that somebody made is used if it is private and empty, and never overwritten."""
    file = file_of(sqlite_url)
    file.touch(0o644)
    with pytest.raises(StoreUnavailable, match="chmod 600"):
        Store.create(sqlite_url)
    file.chmod(0o600)
    Store.create(sqlite_url).close()
    file.write_bytes(b"something else " * 100)
    for call in (Store.create, Store.open):
        with pytest.raises(StoreUnavailable, match="is no database"):
            call(sqlite_url)
    assert file.read_bytes() == b"something else " * 100


@pytest.mark.parametrize("what", ["no folder", "a folder", "a socket's kind of file"])
def test_where_no_file_can_be_there_is_a_sentence(tmp_path: Path, what: str) -> None:
    """A path that leads nowhere, or to no file, is refused by name."""
    path = tmp_path / "missing" / "x.db"
    if what == "a folder":
        path.mkdir(parents=True)
    elif what != "no folder":
        path.parent.mkdir()
        os.mkfifo(path)
    for call in (Store.create, Store.open):
        with pytest.raises(StoreUnavailable, match=str(path)):
            call(f"sqlite:///{path}")


def test_paths_with_odd_characters_are_paths(tmp_path: Path) -> None:
    """A file is where the URL says, whatever is in its name."""
    url = f"sqlite:///{tmp_path}/密 钥&a=b.db"
    Store.create(url).close()
    assert (tmp_path / "密 钥&a=b.db").stat().st_size > 0


def test_a_file_that_has_gone_is_not_made_anew(sqlite_url: str) -> None:
    """An open store whose file was taken away fails, and leaves nothing in its place."""
    store = Store.create(sqlite_url)
    store._engine.dispose()
    file_of(sqlite_url).rename(file_of(sqlite_url).with_name("elsewhere"))
    with pytest.raises(StoreUnavailable, match="cannot be opened"):
        store.load()
    assert not file_of(sqlite_url).exists()
    file_of(sqlite_url).with_name("elsewhere").rename(file_of(sqlite_url))
    assert store.load() == Snapshot(0, ())
    store.close()


def test_without_the_driver_the_sentence_says_what_to_install() -> None:
    """PostgreSQL's driver is an extra."""
    program = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from keyd.store.database import Store\n"
        "Store.open('postgresql+psycopg://keyd@/keyd')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert "pip install 'keyd[postgresql]'" in done.stderr.splitlines()[-1]
