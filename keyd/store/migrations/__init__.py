"""Bringing a database to the schema that this program expects, with Alembic and without a file to configure it.

Revisions are in `versions/`. There is no way down: whoever has to go back restores the backup that was made before.
It refuses to know what the tables are for.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

if TYPE_CHECKING:
    from sqlalchemy import Connection

SCRIPTS: Final = Path(__file__).parent

# What Alembic calls `op` is one per process.
_ONE_AT_A_TIME: Final = threading.Lock()


def current(connection: Connection) -> str | None:
    """Return the revision that the database has, or None if nothing was ever made in it."""
    return MigrationContext.configure(connection).get_current_revision()


def newest(scripts: Path = SCRIPTS) -> str:
    """Return the revision that this program expects."""
    head = ScriptDirectory(str(scripts)).get_current_head()
    if head is None:
        raise RuntimeError("this installation of keyd has lost its migrations")
    return head


def known(scripts: Path = SCRIPTS) -> frozenset[str]:
    """Return all revisions that this program could upgrade from."""
    return frozenset(script.revision for script in ScriptDirectory(str(scripts)).walk_revisions())


def upgrade(connection: Connection, scripts: Path = SCRIPTS) -> None:
    """Run what is missing, within the transaction that the connection is in: all of it or nothing happens."""
    directory = ScriptDirectory(str(scripts))
    # upgrade_revs is not among Alembic's public names, but command.upgrade is nothing else, with a file around it.
    with (
        _ONE_AT_A_TIME,
        EnvironmentContext(
            Config(),
            directory,
            fn=lambda revision, _: directory._upgrade_revs("head", revision),  # noqa: SLF001 - see above
        ) as environment,
    ):
        # Alembic takes SQLite for a database without transactional DDL, because of what Python's driver does unless
        # it is told not to. The caller has told it.
        environment.configure(connection=connection, transactional_ddl=True)
        environment.run_migrations()
