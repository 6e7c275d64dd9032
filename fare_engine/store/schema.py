"""Every table of the engine. Truth is here; whatever else remembers something may be empty and answers stay right.

Facts live in their traveller's row, so the hot path needs no index by traveller. Batches are kept as received. Lines and
postings are only ever added. A table has one owner: the module named in its comment is the only one that writes it.

Columns that came after a release may be empty, so that the release before can go on writing while a new one is rolled out
(docs/operations.md). `row_hash` is over all other columns of a row but a number that the database gave it: store.hashes."""

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
FORM = "0004"
"""The number of this form: the newest of store/migrations."""
_Key = BigInteger().with_variant(Integer, "sqlite")

settings = Table(  # store.registry
    "settings", metadata, Column("name", String, primary_key=True), Column("value", String, nullable=False)
)

devices = Table(  # store.registry
    "devices",
    metadata,
    Column("device_id", String, primary_key=True),
    Column("operator_id", String, nullable=False),
    Column("public_key", LargeBinary, nullable=False),  # the first; those after it stand in device_keys
    Column("enrolled_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger),
    Column("limits", String),  # JSON: the routes and stops it may speak of, and how many taps (certificates.DeviceLimits)
    Column("row_hash", LargeBinary),
)

device_keys = Table(  # store.registry: keys that a device changed to, each with its time
    "device_keys",
    metadata,
    Column("device_id", String, nullable=False),
    Column("public_key", LargeBinary, nullable=False),
    Column("valid_from", BigInteger, nullable=False),
    Column("valid_to", BigInteger),  # None: until another follows; before this instant
    Column("certificate", LargeBinary),  # DER
    Column("row_hash", LargeBinary),
    PrimaryKeyConstraint("device_id", "public_key"),
)

enrolment_codes = Table(  # store.registry: one-time codes, hashed
    "enrolment_codes",
    metadata,
    Column("code_hash", String, primary_key=True),
    Column("device_id", String, nullable=False),
    Column("operator_id", String, nullable=False),
    Column("limits", String),
    Column("expires_at", BigInteger, nullable=False),
    Column("used_at", BigInteger),
)

corrections = Table(  # store.registry: what a device's clock was off by, found out afterwards
    "corrections",
    metadata,
    Column("correction_id", String, primary_key=True),
    Column("device_id", String, nullable=False),
    Column("begins", BigInteger, nullable=False),  # corrected times as the taps carry them: begins <= t < ends
    Column("ends", BigInteger, nullable=False),
    Column("shift_ms", BigInteger, nullable=False),
    Column("made_at", BigInteger, nullable=False),
    Column("made_by", String, nullable=False),
    Column("row_hash", LargeBinary),
    Index("corrections_device", "device_id"),
)

vehicles = Table(  # store.registry: who ran a vehicle from when; its operator at the tap's time is owed
    "vehicles",
    metadata,
    Column("vehicle_id", String, nullable=False),
    Column("valid_from", BigInteger, nullable=False),
    Column("operator_id", String, nullable=False),
    Column("row_hash", LargeBinary),
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
    Column("message", LargeBinary, nullable=False),  # encrypted at rest
    Column("answers", LargeBinary, nullable=False),
    Column("row_hash", LargeBinary),  # over the SHA-256 of the message as received
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
    Column("device_id", String),
    Column("row_hash", LargeBinary),
)

alarms = Table(  # store.receipts: what somebody must look at, with both pieces of evidence
    "alarms",
    metadata,
    Column("alarm_id", _Key, primary_key=True, autoincrement=True),
    Column("raised_at", BigInteger, nullable=False),
    Column("kind", String, nullable=False),
    Column("device_id", String, nullable=False),
    Column("detail", String, nullable=False),
    Column("evidence", LargeBinary),  # what came now, encrypted as messages are
    Column("held", LargeBinary),  # what is held against it, encrypted as messages are
    Column("row_hash", LargeBinary),
    Index("alarms_device", "device_id"),
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
    Column("waits_for", String),  # what would make it usable: a tap's id, `token:<id>` or `network`
    Column("released_at", BigInteger),  # it could be used after all
    Column("row_hash", LargeBinary),
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

tokens = Table(  # store.travellers: what is tapped, and whose it was first
    "tokens",
    metadata,
    Column("token_id", String, primary_key=True),
    Column("traveller_id", String, nullable=False),
    Column("account_id", String, nullable=False),
    Column("blocked_at", BigInteger),
    Column("terminal_token", LargeBinary),  # encrypted; needed to name the token to terminals in the deny list
    Column("former_token_id", String),  # of the same medium, under the key of before
    Column("row_hash", LargeBinary),
    Index(
        "tokens_former",
        "former_token_id",
        sqlite_where=text("former_token_id IS NOT NULL"),
        postgresql_where=text("former_token_id IS NOT NULL"),
    ),
)

links = Table(  # store.travellers: whose a token is from an instant on, where that changed
    "links",
    metadata,
    Column("token_id", String, nullable=False),
    Column("valid_from", BigInteger, nullable=False),
    Column("traveller_id", String, nullable=False),
    Column("made_at", BigInteger, nullable=False),
    Column("made_by", String, nullable=False),
    Column("row_hash", LargeBinary),
    PrimaryKeyConstraint("token_id", "valid_from"),
)

proposals = Table(  # store.travellers: tokens that seem to be one person's
    "proposals",
    metadata,
    Column("token_id", String, nullable=False),
    Column("other_token_id", String, nullable=False),
    Column("made_at", BigInteger, nullable=False),
    Column("evidence", String, nullable=False),
    Column("state", String, nullable=False),  # open, accepted, declined
    PrimaryKeyConstraint("token_id", "other_token_id"),
)

claims = Table(  # store.travellers: what riders say of their rides, and what was decided
    "claims",
    metadata,
    Column("claim_id", String, primary_key=True),
    Column("traveller_id", String, nullable=False),
    Column("leg_id", String, nullable=False),
    Column("stop_id", String),
    Column("at", BigInteger),
    Column("text", String, nullable=False),
    Column("made_at", BigInteger, nullable=False),
    Column("state", String, nullable=False),  # open, accepted, declined
    Column("decided_at", BigInteger),
    Column("decided_by", String),
    Column("reason", String),
)

drifts = Table(  # store.travellers: lines that changed though no fact explains it; held until somebody decides
    "drifts",
    metadata,
    Column("traveller_id", String, nullable=False),
    Column("found_at", BigInteger, nullable=False),
    Column("revision", String, nullable=False),
    Column("detail", String, nullable=False),
    Column("decided_at", BigInteger),
    PrimaryKeyConstraint("traveller_id", "found_at"),
)

deny_changes = Table(  # store.deny: the deny list is the sum of its changes; its version is the latest one's number
    "deny_changes",
    metadata,
    Column("version", _Key, primary_key=True, autoincrement=True),
    Column("token", LargeBinary, nullable=False),  # cut to 8 bytes, as terminals hold it
    Column("added", Integer, nullable=False),  # 1 or 0
    Column("at", BigInteger, nullable=False),
    Column("reason", String, nullable=False),
    Column("row_hash", LargeBinary),
)

publications = Table(  # store.deny: what was signed for terminals
    "publications",
    metadata,
    Column("kind", String, nullable=False),
    Column("serial", BigInteger, nullable=False),
    Column("made_at", BigInteger, nullable=False),
    Column("message", LargeBinary, nullable=False),
    PrimaryKeyConstraint("kind", "serial"),
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
    Column("row_hash", LargeBinary),
    Index("travellers_next_due", "next_due"),
    Index(
        "travellers_account",
        "account_id",
        sqlite_where=text("account_id != 'cash'"),
        postgresql_where=text("account_id != 'cash'"),
    ),
    Index(
        "travellers_dirty",
        "dirty_since",
        sqlite_where=text("dirty_since IS NOT NULL"),
        postgresql_where=text("dirty_since IS NOT NULL"),
    ),
)

closed_windows = Table(  # store.travellers: what is older than a traveller's open window
    "closed_windows",
    metadata,
    Column("traveller_id", String, nullable=False),
    Column("ends", BigInteger, nullable=False),  # the instant before which its facts are
    Column("record", LargeBinary, nullable=False),
    Column("row_hash", LargeBinary),
    PrimaryKeyConstraint("traveller_id", "ends"),
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
    Column("revision", String),  # of engine and tariff
    Column("row_hash", LargeBinary),
    Index("lines_accounting_date", "accounting_date"),
)

legs = Table(  # store.books: each priced leg, booked (even generation) or reversed (odd)
    "legs",
    metadata,
    Column("row_number", _Key, primary_key=True, autoincrement=True),
    Column("movement_id", String, nullable=False),  # stands once
    Column("leg_id", String, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("traveller_id", String, nullable=False),
    Column("token_id", String, nullable=False),
    Column("media", String, nullable=False),
    Column("rider_category", String, nullable=False),
    Column("network_id", String),
    Column("route_id", String),
    Column("operator_id", String),
    Column("vehicle_id", String),
    Column("from_stop_id", String),
    Column("to_stop_id", String),
    Column("began_at", BigInteger, nullable=False),
    Column("ended_at", BigInteger, nullable=False),
    Column("persons", Integer, nullable=False),
    Column("distance_m", Integer),
    Column("journey", String, nullable=False),  # the leg that began it
    Column("status", String, nullable=False),
    Column("service_date", String(10), nullable=False),
    Column("accounting_date", String(10), nullable=False),
    Column("row_hash", LargeBinary),
    Index("legs_accounting_date", "accounting_date"),
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
    Column("row_hash", LargeBinary),
    Index("postings_accounting_date", "accounting_date"),
)

closes = Table(  # store.books: the dates that are closed; the first open date follows
    "closes",
    metadata,
    Column("accounting_date", String(10), primary_key=True),
    Column("frozen_at", BigInteger, nullable=False),
    Column("head", String),
    Column("batches_through", BigInteger),  # the messages received up to here are sealed with this date or an earlier one
    Column("tree_size", BigInteger),  # how many rows the head covers; None: a head of the release before
)

users = Table(  # store.registry: operators' people
    "users",
    metadata,
    Column("username", String, primary_key=True),
    Column("operator_id", String, nullable=False),
    Column("salt", LargeBinary, nullable=False),
    Column("password_hash", String, nullable=False),
    Column("row_hash", LargeBinary),
)

attempts = Table(  # store.registry: failed logins, so that a PIN cannot be guessed
    "attempts",
    metadata,
    Column("subject", String, primary_key=True),
    Column("failures", Integer, nullable=False),
    Column("since", BigInteger, nullable=False),
)
