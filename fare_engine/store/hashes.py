"""Row hashes: which columns of which tables are sealed, so that a changed row can be named.

A row is hashed as it is written. Columns that change afterwards by design, and numbers that the database gives, stay out;
what changes as a whole (a traveller's record) is hashed anew. Balances and streams have no hash: they are recomputed from
postings and messages (store.verify)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sqlalchemy import Connection, Table, bindparam, inspect, select, update

from fare_engine.row_hash import BATCHES, Hasher, batch_row
from fare_engine.store import schema

CHANGING = {"quarantine": {"released_at"}}
"""Columns that are written after the row, with nothing that depends on their history."""


def _columns(table: Table) -> list[str]:
    given = {column.name for column in table.primary_key if column.autoincrement is True}
    left_out = given | {"row_hash"} | CHANGING.get(table.name, set())
    return ["".join(column.name) for column in table.c if column.name not in left_out]  # SQLAlchemy's names are no plain str


HASHERS = {
    table.name: Hasher("".join(table.name), _columns(table))
    for table in schema.metadata.tables.values()
    if "row_hash" in table.c and table.name != BATCHES.table
}
"""Every table with row hashes but `batches`, whose messages are hashed as received, not as stored."""


def hashed(table: Table, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with their hashes; columns that a row leaves out are empty."""
    hasher = HASHERS[table.name]
    absent = dict.fromkeys(hasher.columns)
    found = list(rows)
    for row in found:
        row["row_hash"] = hasher.of(row if len(row) >= len(absent) else absent | row)
    return found


def batch_hash(row: Mapping[str, Any], message: bytes) -> bytes:
    """The hash of a row of `batches` with its message as received."""
    return BATCHES.of(
        batch_row(
            device_id=row["device_id"],
            epoch=row["epoch"],
            first_sequence=row["first_sequence"],
            last_sequence=row["last_sequence"],
            received_at=row["received_at"],
            message=message,
            answers=row["answers"],
        )
    )


def fill_hashes(connection: Connection) -> None:
    """Give every row that was written by a release without them its hash, in the migration that adds them."""
    fill_missing(connection)


def fill_missing(connection: Connection) -> int:
    """The same for rows that the release before wrote while this one was rolled out; how many they were."""
    filled = 0
    there = set(inspect(connection).get_table_names())  # tables of later releases are made later
    for name, hasher in HASHERS.items():
        if name not in there:
            continue
        table = schema.metadata.tables[name]
        filled += _fill(connection, table, hasher.of)
    return filled + _fill(connection, schema.batches, lambda row: batch_hash(row, row["message"]))


def _fill(connection: Connection, table: Table, hash_of: Callable[[Mapping[str, Any]], bytes]) -> int:
    key = list(table.primary_key)
    missing = connection.execute(select(table).where(table.c.row_hash.is_(None))).mappings().all()
    rows = [{f"key_{c.name}": row[c.name] for c in key} | {"new_hash": hash_of(dict(row))} for row in missing]
    if rows:
        named = [c == bindparam(f"key_{c.name}") for c in key]
        connection.execute(update(table).where(*named).values(row_hash=bindparam("new_hash")), rows)
    return len(rows)
