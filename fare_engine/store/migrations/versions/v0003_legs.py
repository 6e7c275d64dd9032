"""Priced legs in a table of their own."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make it so."""
    op.create_table(
        "legs",
        sa.Column("row_number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("movement_id", sa.String(), nullable=False),
        sa.Column("leg_id", sa.String(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("traveller_id", sa.String(), nullable=False),
        sa.Column("token_id", sa.String(), nullable=False),
        sa.Column("media", sa.String(), nullable=False),
        sa.Column("rider_category", sa.String(), nullable=False),
        sa.Column("network_id", sa.String(), nullable=True),
        sa.Column("route_id", sa.String(), nullable=True),
        sa.Column("operator_id", sa.String(), nullable=True),
        sa.Column("vehicle_id", sa.String(), nullable=True),
        sa.Column("from_stop_id", sa.String(), nullable=True),
        sa.Column("to_stop_id", sa.String(), nullable=True),
        sa.Column("began_at", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=False),
        sa.Column("persons", sa.Integer(), nullable=False),
        sa.Column("distance_m", sa.Integer(), nullable=True),
        sa.Column("journey", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("service_date", sa.String(10), nullable=False),
        sa.Column("accounting_date", sa.String(10), nullable=False),
        sa.Column("row_hash", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("row_number"),
    )
    op.create_index("legs_accounting_date", "legs", ["accounting_date"])
