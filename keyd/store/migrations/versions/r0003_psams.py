"""PSAMs that keyd plays, and what each has to remember."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0003"
down_revision: Final = "0002"


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "psam_rows",
        sa.Column("id", sa.LargeBinary(64), nullable=False),
        sa.Column("domain", sa.String(32), nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("nonce", sa.LargeBinary(12), nullable=False),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_psam_rows"),
        sa.CheckConstraint("revision >= 1", "ck_psam_rows_revision"),
        sa.CheckConstraint("length(nonce) = 12", "ck_psam_rows_nonce"),
    )
    op.create_index("ix_psam_rows_domain", "psam_rows", ["domain"])
    op.create_table(
        "psam_counters",
        sa.Column("psam", sa.LargeBinary(64), nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("nonce", sa.LargeBinary(12), nullable=False),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
        sa.Column("restored", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("psam", name="pk_psam_counters"),
        sa.CheckConstraint("revision >= 1", "ck_psam_counters_revision"),
        sa.CheckConstraint("length(nonce) = 12", "ck_psam_counters_nonce"),
    )
