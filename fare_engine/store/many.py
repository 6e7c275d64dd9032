"""Many rows written at once.

SQLAlchemy looks at each parameter of each row, which costs more than what the database does with the row. Here a statement is
compiled once, and the rows go to the driver as they are: for columns of texts, whole numbers and bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection, Dialect, Insert, Update


def execute_many(connection: Connection, statement: Insert | Update, rows: Sequence[Mapping[str, Any]]) -> None:
    """Execute a statement, which must be one that is kept, for each row. Every row names the same columns or parameters."""
    if not rows:
        return
    text, parameters = _compiled(statement, connection.dialect, tuple(rows[0]))
    connection.exec_driver_sql(text, [parameters(row) for row in rows])


@lru_cache(64)
def _compiled(statement: Insert | Update, dialect: Dialect, names: tuple[str, ...]) -> tuple[str, Callable[[Any], Any]]:
    """The statement as a driver takes it, and what makes a row its parameters."""
    compiled = statement.compile(dialect=dialect, column_keys=names if isinstance(statement, Insert) else None)
    in_order = compiled.positiontup
    if in_order is None:  # a driver that takes them by name
        return str(compiled), dict
    if len(in_order) == 1:
        return str(compiled), lambda row: (row[in_order[0]],)
    return str(compiled), itemgetter(*in_order)
