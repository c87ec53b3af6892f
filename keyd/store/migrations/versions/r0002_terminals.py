"""Terminals, keyd's own certification authorities, and what was seen of terminals."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0002"
down_revision: Final = "0001"

KINDS: Final = ("terminal", "authority")


def upgrade() -> None:
    """Make the tables."""
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
    op.create_table(
        "terminal_activity",
        sa.Column("instance", sa.String(64), nullable=False),
        sa.Column("code", sa.String(32), nullable=False),
        sa.Column("last_seen", sa.BigInteger, nullable=False),
        sa.Column("last_source", sa.String(64), nullable=False),
        sa.Column("authentications", sa.BigInteger, nullable=False),
        sa.Column("failures", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("instance", "code", name="pk_terminal_activity"),
    )
