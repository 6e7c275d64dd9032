"""Keys, links, claims, deny list, alarms; a hash in every row. Only adds, so that the release before can go on meanwhile."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from fare_engine.store.hashes import fill_hashes

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make it so."""
    op.create_table(
        "alarms",
        sa.Column("alarm_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("raised_at", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("device_id", sa.String(), nullable=False),
        sa.Column("detail", sa.String(), nullable=False),
        sa.Column("evidence", sa.LargeBinary(), nullable=True),
        sa.Column("held", sa.LargeBinary(), nullable=True),
        sa.Column("row_hash", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("alarm_id"),
    )
    op.create_index("alarms_device", "alarms", ["device_id"], unique=False)
    op.create_table(
        "claims",
        sa.Column("claim_id", sa.String(), nullable=False),
        sa.Column("traveller_id", sa.String(), nullable=False),
        sa.Column("leg_id", sa.String(), nullable=False),
        sa.Column("stop_id", sa.String(), nullable=True),
        sa.Column("at", sa.BigInteger(), nullable=True),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column("made_at", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("decided_at", sa.BigInteger(), nullable=True),
        sa.Column("decided_by", sa.String(), nullable=True),
        sa.Column("reason", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("claim_id"),
    )
    op.create_table(
        "corrections",
        sa.Column("correction_id", sa.String(), nullable=False),
        sa.Column("device_id", sa.String(), nullable=False),
        sa.Column("begins", sa.BigInteger(), nullable=False),
        sa.Column("ends", sa.BigInteger(), nullable=False),
        sa.Column("shift_ms", sa.BigInteger(), nullable=False),
        sa.Column("made_at", sa.BigInteger(), nullable=False),
        sa.Column("made_by", sa.String(), nullable=False),
        sa.Column("row_hash", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("correction_id"),
    )
    op.create_index("corrections_device", "corrections", ["device_id"], unique=False)
    op.create_table(
        "deny_changes",
        sa.Column("version", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("token", sa.LargeBinary(), nullable=False),
        sa.Column("added", sa.Integer(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("row_hash", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("version"),
    )
    op.create_table(
        "device_keys",
        sa.Column("device_id", sa.String(), nullable=False),
        sa.Column("public_key", sa.LargeBinary(), nullable=False),
        sa.Column("valid_from", sa.BigInteger(), nullable=False),
        sa.Column("valid_to", sa.BigInteger(), nullable=True),
        sa.Column("certificate", sa.LargeBinary(), nullable=True),
        sa.Column("row_hash", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("device_id", "public_key"),
    )
    op.create_table(
        "drifts",
        sa.Column("traveller_id", sa.String(), nullable=False),
        sa.Column("found_at", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.String(), nullable=False),
        sa.Column("detail", sa.String(), nullable=False),
        sa.Column("decided_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("traveller_id", "found_at"),
    )
    op.create_table(
        "enrolment_codes",
        sa.Column("code_hash", sa.String(), nullable=False),
        sa.Column("device_id", sa.String(), nullable=False),
        sa.Column("operator_id", sa.String(), nullable=False),
        sa.Column("limits", sa.String(), nullable=True),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("used_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("code_hash"),
    )
    op.create_table(
        "links",
        sa.Column("token_id", sa.String(), nullable=False),
        sa.Column("valid_from", sa.BigInteger(), nullable=False),
        sa.Column("traveller_id", sa.String(), nullable=False),
        sa.Column("made_at", sa.BigInteger(), nullable=False),
        sa.Column("made_by", sa.String(), nullable=False),
        sa.Column("row_hash", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("token_id", "valid_from"),
    )
    op.create_table(
        "proposals",
        sa.Column("token_id", sa.String(), nullable=False),
        sa.Column("other_token_id", sa.String(), nullable=False),
        sa.Column("made_at", sa.BigInteger(), nullable=False),
        sa.Column("evidence", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("token_id", "other_token_id"),
    )
    op.create_table(
        "publications",
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("serial", sa.BigInteger(), nullable=False),
        sa.Column("made_at", sa.BigInteger(), nullable=False),
        sa.Column("message", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "serial"),
    )
    op.add_column("batches", sa.Column("row_hash", sa.LargeBinary(), nullable=True))
    op.add_column("closes", sa.Column("batches_through", sa.BigInteger(), nullable=True))
    op.add_column("closes", sa.Column("tree_size", sa.BigInteger(), nullable=True))
    op.add_column("devices", sa.Column("limits", sa.String(), nullable=True))
    op.add_column("devices", sa.Column("row_hash", sa.LargeBinary(), nullable=True))
    op.add_column("lines", sa.Column("revision", sa.String(), nullable=True))
    op.add_column("lines", sa.Column("row_hash", sa.LargeBinary(), nullable=True))
    op.add_column("postings", sa.Column("row_hash", sa.LargeBinary(), nullable=True))
    op.add_column("quarantine", sa.Column("row_hash", sa.LargeBinary(), nullable=True))
    op.add_column("refused_messages", sa.Column("device_id", sa.String(), nullable=True))
    op.add_column("refused_messages", sa.Column("row_hash", sa.LargeBinary(), nullable=True))
    op.add_column("tokens", sa.Column("terminal_token", sa.LargeBinary(), nullable=True))
    op.add_column("tokens", sa.Column("former_token_id", sa.String(), nullable=True))
    op.add_column("tokens", sa.Column("row_hash", sa.LargeBinary(), nullable=True))
    op.create_index(
        "tokens_former",
        "tokens",
        ["former_token_id"],
        unique=False,
        sqlite_where=sa.text("former_token_id IS NOT NULL"),
        postgresql_where=sa.text("former_token_id IS NOT NULL"),
    )
    op.add_column("travellers", sa.Column("row_hash", sa.LargeBinary(), nullable=True))
    op.create_index(
        "travellers_account",
        "travellers",
        ["account_id"],
        unique=False,
        sqlite_where=sa.text("account_id != 'cash'"),
        postgresql_where=sa.text("account_id != 'cash'"),
    )
    op.add_column("users", sa.Column("row_hash", sa.LargeBinary(), nullable=True))
    op.add_column("vehicles", sa.Column("row_hash", sa.LargeBinary(), nullable=True))
    fill_hashes(op.get_bind())
