"""Many rows written or found at once.

SQLAlchemy looks at each parameter of each row, which costs more than what the database does with the row. Here a statement is
compiled once, and values go to the driver as they are: for columns of texts, whole numbers and bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

from sqlalchemy import Connection, Dialect, Insert, Select, Update

SHORT = 1024


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


def find_many(connection: Connection, statement: Select[Any], **lists: Sequence[Any]) -> Sequence[Any]:
    """What a statement finds, which must be one that is kept and whose parameters are all lists (`expanding`), of texts or of
    tuples of texts. Empty lists find nothing."""
    if not all(lists.values()):
        return []
    if connection.dialect.name != "sqlite":
        return connection.execute(statement, lists).all()
    text, places = _expanded(statement, connection.dialect, tuple(_shape(name, values) for name, values in lists.items()))
    return connection.exec_driver_sql(text, tuple(place.value(lists[place.name]) for place in places)).all()


class _Shape(NamedTuple):
    """A list of a statement: how many values it has room for, and of how many texts each is (0: a text)."""

    name: str
    length: int
    width: int


def _shape(name: str, values: Sequence[Any]) -> _Shape:
    """Room for a power of two, so that there are few different ones, which the last value fills; a long list is rare."""
    length = 1 << (len(values) - 1).bit_length() if len(values) <= SHORT else len(values)
    return _Shape(name, length, len(values[0]) if isinstance(values[0], tuple) else 0)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a parameter's value stands: in which list, at which place, and which text of it where it is a tuple."""

    name: str
    number: int
    part: int | None = None

    def value(self, values: Sequence[Any]) -> Any:
        """It, or the last one of the list."""
        found = values[min(self.number, len(values) - 1)]
        return found if self.part is None else found[self.part]


@lru_cache(256)
def _expanded(statement: Select[Any], dialect: Dialect, shapes: tuple[_Shape, ...]) -> tuple[str, list[_Place]]:
    """The statement with room for lists of some shapes, and what stands in each place."""
    places = {
        name: [
            tuple(_Place(name, number, part) for part in range(width)) if width else _Place(name, number)
            for number in range(length)
        ]
        for name, length, width in shapes
    }
    expanded = statement.compile(dialect=dialect).construct_expanded_state(places)
    return expanded.statement, list(expanded.positional_parameters)
