"""Rows as columns: what a query gives, as Arrow record batches.

A close and its exports look at millions of rows. Python would make an object of every value of them; the drivers of ADBC (Arrow
Database Connectivity) fill columns instead, in a third of the time. ADBC brings a SQLite of its own, and two SQLites in one
process undo each other's locks on a file (sqlite.org/howtocorrupt.html, 2.2): so it reads in processes where nothing else has
the database open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import adbc_driver_postgresql.dbapi as adbc_postgresql
import adbc_driver_sqlite.dbapi as adbc_sqlite
import pyarrow as pa
from sqlalchemy import Connection, Select, make_url

from clearing.store import blocks_of

ROWS = 65_536
"""So many rows of SQLite are a batch."""


class Reader(Protocol):
    """Gives what a query finds."""

    def batches(self, statement: Select[Any]) -> Iterator[pa.RecordBatch]:
        """What a query gives, some thousand rows at a time."""
        ...


class OfConnection:
    """Reads through an open connection, within its transaction."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def batches(self, statement: Select[Any]) -> Iterator[pa.RecordBatch]:
        """What a query gives, some thousand rows at a time."""
        schema = schema_of(statement)
        for some in blocks_of(self.connection, statement):
            columns = [pa.array(values, field.type) for values, field in zip(zip(*some, strict=True), schema, strict=True)]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)


@contextmanager
def alone(url: str) -> Iterator[Reader]:
    """Reads by ADBC, in a process that has the database open in no other way."""
    address = make_url(url)
    if address.get_backend_name() == "sqlite":
        with adbc_sqlite.connect(address.database) as connection:
            yield _Sqlite(connection, address.get_dialect()())
    else:
        plain = address.set(drivername="postgresql").render_as_string(hide_password=False)
        with adbc_postgresql.connect(plain) as connection:
            yield _Postgres(connection, address.get_dialect()())


class _Adbc:
    def __init__(self, connection: Any, dialect: Any) -> None:
        self._connection = connection
        self._dialect = dialect

    def _text(self, statement: Select[Any]) -> str:
        return str(statement.compile(dialect=self._dialect, compile_kwargs={"literal_binds": True})).replace("%%", "%")


class _Postgres(_Adbc):
    def batches(self, statement: Select[Any]) -> Iterator[pa.RecordBatch]:
        """What a query gives, as the driver parts it."""
        schema = schema_of(statement)
        with self._connection.cursor() as cursor:
            cursor.execute(self._text(statement))
            for batch in cursor.fetch_record_batch():
                yield batch.cast(schema)


class _Sqlite(_Adbc):
    def batches(self, statement: Select[Any]) -> Iterator[pa.RecordBatch]:
        """What a query gives. SQLite has no types, and the driver goes by the first rows: one of ours stands before them."""
        schema = schema_of(statement)
        typed = ", ".join(_FIRST[field.type] for field in schema)
        with self._connection.cursor() as cursor:
            cursor.adbc_statement.set_options(**{"adbc.sqlite.query.batch_rows": f"{ROWS}"})
            cursor.execute(f"SELECT {typed} UNION ALL SELECT * FROM ({self._text(statement)})")
            for number, batch in enumerate(cursor.fetch_record_batch()):
                found = batch.rename_columns(schema.names).cast(schema)
                yield found if number else found.slice(1)


_FIRST = {pa.string(): "'-'", pa.int64(): "0", pa.binary(): "x'00'"}


def schema_of(statement: Select[Any]) -> pa.Schema:
    """The columns of a query: texts, whole numbers and bytes."""
    types = {str: pa.string(), int: pa.int64(), bytes: pa.binary()}
    return pa.schema([pa.field(column.name, types[column.type.python_type]) for column in statement.selected_columns])


def table_of(reader: Reader, statement: Select[Any]) -> pa.Table:
    """All that a query gives, as one table."""
    return pa.Table.from_batches(reader.batches(statement), schema_of(statement))
