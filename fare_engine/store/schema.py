"""Every table of the engine. Truth is here; whatever else remembers something may be empty and answers stay right.

Facts live in their traveller's row, so the hot path needs no index by traveller. Batches are kept as received. Lines and
postings are only ever added. A table has one owner: the module named in its comment is the only one that writes it."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    UniqueConstraint,
    text,
)

metadata = MetaData()
_Key = BigInteger().with_variant(Integer, "sqlite")

settings = Table(  # store.registry
    "settings", metadata, Column("name", String, primary_key=True), Column("value", String, nullable=False)
)

devices = Table(  # store.registry
    "devices",
    metadata,
    Column("device_id", String, primary_key=True),
    Column("operator_id", String, nullable=False),
    Column("public_key", LargeBinary, nullable=False),
    Column("enrolled_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger),
)

vehicles = Table(  # store.registry: who ran a vehicle from when; its operator at the tap's time is owed
    "vehicles",
    metadata,
    Column("vehicle_id", String, nullable=False),
    Column("valid_from", BigInteger, nullable=False),
    Column("operator_id", String, nullable=False),
    PrimaryKeyConstraint("vehicle_id", "valid_from"),
)

streams = Table(  # store.receipts
    "streams",
    metadata,
    Column("device_id", String, nullable=False),
    Column("epoch", String, nullable=False),
    Column("acknowledged_through", BigInteger, nullable=False),
    Column("head", LargeBinary, nullable=False),
    Column("predecessor", String),
    Column("predecessor_last", BigInteger),
    Column("predecessor_head", LargeBinary),
    Column("begun_at", BigInteger, nullable=False),
    Column("last_contact", BigInteger, nullable=False),
    PrimaryKeyConstraint("device_id", "epoch"),
)

batches = Table(  # store.receipts: messages as received, only the taps that were new, with the answers given
    "batches",
    metadata,
    Column("batch_id", _Key, primary_key=True, autoincrement=True),
    Column("device_id", String, nullable=False),
    Column("epoch", String, nullable=False),
    Column("first_sequence", BigInteger, nullable=False),
    Column("last_sequence", BigInteger, nullable=False),
    Column("received_at", BigInteger, nullable=False),
    Column("message", LargeBinary, nullable=False),
    Column("answers", LargeBinary, nullable=False),
    UniqueConstraint("device_id", "epoch", "first_sequence"),
)

refused = Table(  # store.receipts: what was refused whole, for whoever looks after the devices
    "refused_messages",
    metadata,
    Column("refused_id", _Key, primary_key=True, autoincrement=True),
    Column("received_at", BigInteger, nullable=False),
    Column("cause", String, nullable=False),
    Column("detail", String, nullable=False),
    Column("message_hash", String, nullable=False),
    Column("message", LargeBinary),  # evidence: kept where the device's own signature holds and the story differs
)

quarantine = Table(  # store.receipts: taps in good envelopes that cannot be used, each with its reason
    "quarantine",
    metadata,
    Column("device_id", String, nullable=False),
    Column("epoch", String, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("received_at", BigInteger, nullable=False),
    Column("reason", String, nullable=False),
    Column("detail", String, nullable=False),
    Column("service_date", String(10), nullable=False),
    Column("accounting_date", String(10), nullable=False),
    Column("waits_for", String),  # an OUTCOME record that came before the tap it speaks of: that tap's id
    Column("released_at", BigInteger),  # it could be used after all
    PrimaryKeyConstraint("device_id", "epoch", "sequence"),
    Index(
        "quarantine_waits_for",
        "waits_for",
        sqlite_where=text("waits_for IS NOT NULL"),
        postgresql_where=text("waits_for IS NOT NULL"),
    ),
)

accounts = Table(  # store.travellers: who pays
    "accounts",
    metadata,
    Column("account_id", String, primary_key=True),
    Column("kind", String, nullable=False),  # prepaid or postpaid
    Column("balance", BigInteger, nullable=False),  # stored value, or minus what is owed
    Column("card_number_hash", String, unique=True),
    Column("card_label", String),  # the last four digits, for the page's head
)

tokens = Table(  # store.travellers: dated links token -> traveller -> account
    "tokens",
    metadata,
    Column("token_id", String, primary_key=True),
    Column("traveller_id", String, nullable=False),
    Column("account_id", String, nullable=False),
    Column("blocked_at", BigInteger),
)

travellers = Table(  # store.travellers: who rides; the open window's facts, what is booked, and the state before them
    "travellers",
    metadata,
    Column("traveller_id", String, primary_key=True),
    Column("account_id", String, nullable=False),
    Column("record", LargeBinary, nullable=False),
    Column("next_due", BigInteger, nullable=False),
    Column("dirty_since", BigInteger),
    Column("dirty_reason", String),
    Index("travellers_next_due", "next_due"),
    Index(
        "travellers_dirty",
        "dirty_since",
        sqlite_where=text("dirty_since IS NOT NULL"),
        postgresql_where=text("dirty_since IS NOT NULL"),
    ),
)

lines = Table(  # store.books: every movement of every line
    "lines",
    metadata,
    Column("row_number", _Key, primary_key=True, autoincrement=True),
    Column("transaction_id", String, nullable=False),  # stands once; the close checks it, for an index costs a page a line
    Column("line_id", String, nullable=False),
    Column("generation", Integer, nullable=False),  # even: booked; odd: reversed
    Column("booked_for", String, nullable=False),  # the fact whose coming made this movement
    Column("traveller_id", String, nullable=False),
    Column("payer", String, nullable=False),
    Column("leg_id", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("rule_id", String, nullable=False),
    Column("cause", String, nullable=False),
    Column("version_id", String, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("bearer", String, nullable=False),
    Column("funded", BigInteger, nullable=False),
    Column("operator_id", String),
    Column("network_id", String),
    Column("service_date", String(10), nullable=False),
    Column("accounting_date", String(10), nullable=False),
    Index("lines_accounting_date", "accounting_date"),
)

postings = Table(  # store.books
    "postings",
    metadata,
    Column("row_number", _Key, primary_key=True, autoincrement=True),
    Column("transaction_id", String, nullable=False),
    Column("number", Integer, nullable=False),
    Column("code", String, nullable=False),
    Column("debit", String, nullable=False),
    Column("credit", String, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("service_date", String(10), nullable=False),
    Column("accounting_date", String(10), nullable=False),
    Index("postings_accounting_date", "accounting_date"),
)

closes = Table(  # store.books: the dates that are closed; the first open date follows
    "closes",
    metadata,
    Column("accounting_date", String(10), primary_key=True),
    Column("frozen_at", BigInteger, nullable=False),
    Column("head", String),
)

users = Table(  # store.registry: operators' people
    "users",
    metadata,
    Column("username", String, primary_key=True),
    Column("operator_id", String, nullable=False),
    Column("salt", LargeBinary, nullable=False),
    Column("password_hash", String, nullable=False),
)

attempts = Table(  # store.registry: failed logins, so that a PIN cannot be guessed
    "attempts",
    metadata,
    Column("subject", String, primary_key=True),
    Column("failures", Integer, nullable=False),
    Column("since", BigInteger, nullable=False),
)
