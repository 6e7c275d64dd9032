"""Closed dates as Parquet: legs, lines, postings and settlements of a day or a month, for whoever computes with them.

Rows are streamed in a fixed order and in groups of fixed size, and no time is written, so the bytes are the same on a rerun.
Cards, travellers and their accounts are pseudonyms of this export; so are ids of transactions, which are hashes over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from sqlalchemy import Column, Connection, Select, Table, select

from clearing.columns import OfConnection, schema_of
from clearing.exports import rows
from clearing.exports.pseudonyms import Pseudonyms
from clearing.store import settlements
from fare_engine.store.database import bytewise
from fare_engine.store.schema import legs, lines, postings

GROUP = 100_000
LEFT_OUT = frozenset({"row_number", "row_hash", "movement_id", "booked_for", "cause", "revision"})
"""What the database numbers, what checks a row, and ids that name persons."""
TABLES: dict[str, tuple[Table, tuple[Column[Any], ...]]] = {
    "legs": (legs, (legs.c.accounting_date, legs.c.leg_id, legs.c.generation)),
    "lines": (lines, (lines.c.accounting_date, lines.c.transaction_id)),
    "postings": (postings, (postings.c.accounting_date, postings.c.transaction_id, postings.c.number)),
    "settlements": (
        settlements,
        (settlements.c.accounting_date, settlements.c.pool, settlements.c.agreement_id, settlements.c.party),
    ),
}
"""Each table with the order of its rows."""
PERSONAL = {"token_id": "token", "traveller_id": "traveller", "transaction_id": "transaction"}
ACCOUNTS = frozenset({"payer", "debit", "credit"})
PEOPLES = tuple(rows.PEOPLE)


def write_files(connection: Connection, first: str, last: str, folder: Path, names: Pseudonyms) -> dict[str, int]:
    """Write the rows of the accounting dates from `first` to `last`; how many they are, by table."""
    rows.no_time_limit(connection)
    counts = {}
    for name in TABLES:
        statement = _statement(connection, name, first, last)
        schema = schema_of(statement)
        counts[name] = 0
        with pq.ParquetWriter(folder / f"{name}.parquet", schema, compression="zstd") as out:
            for group in _groups(OfConnection(connection).batches(statement), schema):
                out.write_table(_named(name, group, names), row_group_size=GROUP)
                counts[name] += len(group)
    return counts


def _statement(connection: Connection, name: str, first: str, last: str) -> Select[Any]:
    table, order = TABLES[name]
    columns = [column for column in table.c if column.name not in LEFT_OUT]
    in_order = [bytewise(connection, column) if column.type.python_type is str else column for column in order]
    return select(*columns).where(table.c.accounting_date.between(first, last)).order_by(*in_order)


def _groups(batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    """The rows in groups of one size, whatever the batches are."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(map(len, held)) >= GROUP:
            table = pa.Table.from_batches(held, schema)
            yield table.slice(0, GROUP)
            held = table.slice(GROUP).to_batches()
    if held:
        yield pa.Table.from_batches(held, schema)


def _named(name: str, group: pa.Table, names: Pseudonyms) -> pa.Table:
    """The rows with pseudonyms where persons could be told."""
    found = group
    for column in group.column_names:
        if column in PERSONAL:
            found = _changed(found, column, partial(names.of, PERSONAL[column]))
        elif column in ACCOUNTS:
            found = _changed(found, column, partial(_account, names))
    if name == "lines":  # what is no leg is named after its buyer
        ids = found["leg_id"]
        hidden = _each(ids, partial(names.of, "cause"))
        found = found.set_column(found.column_names.index("leg_id"), "leg_id", pc.if_else(_is_leg(found), ids, hidden))
    return found


def _is_leg(lines_of: pa.Table) -> pa.ChunkedArray:
    return pc.and_(pc.is_valid(lines_of["operator_id"]), pc.is_valid(lines_of["network_id"]))


def _account(names: Pseudonyms, account: str) -> str:
    for prefix in PEOPLES:
        if account.startswith(prefix):
            return f"{prefix}{names.of('account', account)}"
    return account


def _changed(table: pa.Table, column: str, change: Callable[[str], str]) -> pa.Table:
    return table.set_column(table.column_names.index(column), column, _each(table[column], change))


def _each(texts: pa.ChunkedArray, change: Callable[[str], str]) -> pa.ChunkedArray:
    known = pc.unique(texts)
    changed = pa.array([None if text is None else change(text) for text in known.to_pylist()], pa.string())
    return pa.chunked_array([changed.take(pc.index_in(texts.combine_chunks(), value_set=known))], pa.string())
