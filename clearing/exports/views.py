"""The store's rows for whoever asks SQL: views with names and columns that stay (docs/sql.md).

They are made with the tables, on SQLite and PostgreSQL alike. None of them can be written through, and what is secret or
names a person's medium is in none. A view that must change becomes one with a higher number beside it."""

from __future__ import annotations

from sqlalchemy import Connection, MetaData, event, inspect, text

from clearing.bank import store as bank_store
from clearing.store import payments, settlements
from fare_engine.store.schema import closes, legs, lines, metadata, postings

SIGN = "1 - 2 * (generation % 2) AS sign"
VIEWS = {
    "v1_legs": (
        legs,
        "leg_id, generation, traveller_id, media, rider_category, network_id, route_id, operator_id, vehicle_id, from_stop_id, "
        f"to_stop_id, began_at, ended_at, persons, distance_m, journey, status, service_date, accounting_date, {SIGN}",
    ),
    "v1_lines": (
        lines,
        "transaction_id, line_id, generation, traveller_id, payer, leg_id, kind, rule_id, cause, version_id, amount, bearer, "
        f"funded, operator_id, network_id, service_date, accounting_date, {SIGN}",
    ),
    "v1_postings": (postings, "transaction_id, number, code, debit, credit, amount, service_date, accounting_date"),
    "v1_settlements": (settlements, "accounting_date, pool, agreement_id, party AS party_id, amount"),
    "v1_payments": (payments, "payment_id, accounting_date, party_id, amount"),
    "v1_closes": (closes, "accounting_date, frozen_at, head AS seal, tree_size"),
    "v1_bank_lines": (
        bank_store.bank_lines,
        "line_id, account, statement_id, booked_on, amount, other_account, other_name, is_return, reason",
    ),
    "v1_bank_matches": (bank_store.bank_matches, "line_id, payment_id, amount, matched_at, matched_by"),
}
"""View → (table, columns)."""


def create_views(connection: Connection) -> None:
    """Make the views that are not there yet."""
    found = inspect(connection)
    known, tables = set(found.get_view_names()), set(found.get_table_names())
    for name, (table, columns) in VIEWS.items():
        if name not in known and table.name in tables:  # WITH: PostgreSQL lets nobody write through such a view
            rows = f"WITH found AS (SELECT {columns} FROM {table.name}) SELECT * FROM found"
            connection.execute(text(f"CREATE VIEW {name} AS {rows}"))


@event.listens_for(metadata, "after_create")
def _made(_: MetaData, connection: Connection, **__: object) -> None:
    create_views(connection)
