"""The first schema: rows by kind, the number of changes, the journal's outbox and its anchors.

It says everything itself and imports nothing of keyd: it has to make the same tables for ever, whatever
`keyd.store.tables` says by then.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0001"
down_revision: Final = None

KINDS: Final = ("seal", "lmk", "key", "officer", "proposal", "identity")


def upgrade() -> None:
    """Make all tables."""
    for kind in KINDS:
        op.create_table(
            f"{kind}_rows",
            sa.Column("id", sa.LargeBinary(64), nullable=False),
            sa.Column("domain", sa.String(32), nullable=False),
            sa.Column("revision", sa.BigInteger, nullable=False),
            sa.Column("body", sa.LargeBinary, nullable=False),
            sa.Column("nonce", sa.LargeBinary(12), nullable=False),
            sa.Column("sealed", sa.LargeBinary, nullable=False),
            sa.PrimaryKeyConstraint("id", name=f"pk_{kind}_rows"),
            sa.CheckConstraint("revision >= 1", f"ck_{kind}_rows_revision"),
            sa.CheckConstraint("length(nonce) = 12", f"ck_{kind}_rows_nonce"),
        )
        op.create_index(f"ix_{kind}_rows_domain", f"{kind}_rows", ["domain"])
    changes = op.create_table(
        "changes",
        sa.Column("id", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_changes"),
        sa.CheckConstraint("id = 1", "ck_changes_one_row"),
    )
    op.bulk_insert(changes, [{"id": 1, "number": 0}])
    op.create_table(
        "outbox",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), nullable=False),
        sa.Column("instance", sa.String(64), nullable=False),
        sa.Column("record", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_outbox"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_outbox_instance", "outbox", ["instance"])
    op.create_table(
        "anchors",
        sa.Column("instance", sa.String(64), nullable=False),
        sa.Column("segment", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("sequence", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("link", sa.LargeBinary(32), nullable=False),
        sa.Column("made_ns", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("instance", "segment", "sequence", name="pk_anchors"),
    )
