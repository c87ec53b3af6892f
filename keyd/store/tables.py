"""The tables, as this version of the program expects them. How they came to be is in `migrations/`.

One table per kind of row, all with the same columns: `body` and `sealed` are opaque here, and whoever reads a row
authenticates them. `terminal_activity` is nobody's secret and nobody's proof: counts that help an operator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
)

from keyd.store.rows import (
    LINK_BYTES,
    MAX_DOMAIN_CHARACTERS,
    MAX_ID_BYTES,
    MAX_INSTANCE_CHARACTERS,
    MAX_SOURCE_CHARACTERS,
    NONCE_BYTES,
    Kind,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

# Names that a migration can rely on; otherwise each database would invent its own.
METADATA: Final = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)


def _rows_of(kind: Kind) -> Table:
    return Table(
        f"{kind}_rows",
        METADATA,
        Column("id", LargeBinary(MAX_ID_BYTES), primary_key=True),
        Column("domain", String(MAX_DOMAIN_CHARACTERS), nullable=False, index=True),
        Column("revision", BigInteger, nullable=False),
        Column("body", LargeBinary, nullable=False),
        Column("nonce", LargeBinary(NONCE_BYTES), nullable=False),
        Column("sealed", LargeBinary, nullable=False),
        CheckConstraint("revision >= 1", "revision"),
        CheckConstraint(f"length(nonce) = {NONCE_BYTES}", "nonce"),
    )


ROWS: Final[Mapping[Kind, Table]] = {kind: _rows_of(kind) for kind in Kind}

# One row, whose number grows by one with each commit. Whoever commits holds its lock until the end.
CHANGES: Final = Table(
    "changes",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("number", BigInteger, nullable=False),
    CheckConstraint("id = 1", "one_row"),
)

# Journal records that were committed with a change and wait until the journal has them.
OUTBOX: Final = Table(
    "outbox",
    METADATA,
    # SQLite counts by itself in a column of exactly the type INTEGER only.
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("instance", String(MAX_INSTANCE_CHARACTERS), nullable=False, index=True),
    Column("record", LargeBinary, nullable=False),
    # A number is never given twice: otherwise a late sent() could take away another record.
    sqlite_autoincrement=True,
)

ANCHORS: Final = Table(
    "anchors",
    METADATA,
    Column("instance", String(MAX_INSTANCE_CHARACTERS), primary_key=True),
    Column("segment", BigInteger, primary_key=True, autoincrement=False),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("link", LargeBinary(LINK_BYTES), nullable=False),
    Column("made_ns", BigInteger, nullable=False),
)

# What each instance has seen of each terminal.
ACTIVITY: Final = Table(
    "terminal_activity",
    METADATA,
    Column("instance", String(MAX_INSTANCE_CHARACTERS), primary_key=True),
    Column("code", String(MAX_DOMAIN_CHARACTERS), primary_key=True),
    Column("last_seen", BigInteger, nullable=False),
    Column("last_source", String(MAX_SOURCE_CHARACTERS), nullable=False),
    Column("authentications", BigInteger, nullable=False),
    Column("failures", BigInteger, nullable=False),
)

# What each PSAM that keyd plays has to remember. Not among the rows: it changes while nothing else does.
COUNTERS: Final = Table(
    "psam_counters",
    METADATA,
    Column("psam", LargeBinary(MAX_ID_BYTES), primary_key=True),
    Column("revision", BigInteger, nullable=False),
    Column("nonce", LargeBinary(NONCE_BYTES), nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Column("restored", BigInteger, nullable=False),
    CheckConstraint("revision >= 1", "revision"),
    CheckConstraint(f"length(nonce) = {NONCE_BYTES}", "nonce"),
)
