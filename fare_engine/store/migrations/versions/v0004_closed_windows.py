"""Closed windows of travellers' records in a table of their own."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Make it so."""
    op.create_table(
        "closed_windows",
        sa.Column("traveller_id", sa.String(), nullable=False),
        sa.Column("ends", sa.BigInteger(), nullable=False),
        sa.Column("record", sa.LargeBinary(), nullable=False),
        sa.Column("row_hash", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("traveller_id", "ends"),
    )
