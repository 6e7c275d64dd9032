"""Checks of a written TIDES package that its schemas do not make: what refers to what, what stands once, ranges and sums.

The files are read as they were written, by another reader than they were written with; nothing of the store is asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from fare_engine.errors import BooksError

INSTANT = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(Z|[+-]\d\d:\d\d)$"
DAY = r"^\d{4}-\d\d-\d\d$"
TIDES_REFERENCES = (
    ("fare_transactions", "device_id", "devices", "device_id"),
    ("fare_transactions", "vehicle_id", "vehicles", "vehicle_id"),
    ("fare_transactions", "stop_id", "stops", "stop_id"),
    ("devices", "vehicle_id", "vehicles", "vehicle_id"),
    ("devices", "stop_id", "stops", "stop_id"),
    ("rides", "operator_id", "parties", "party_id"),
)
"""What TIDES calls `foreignReferences`, which no schema checker follows, and one of ours across both."""
MATCHING = {
    ("fare_transactions", "event_timestamp"): INSTANT,
    ("fare_transactions", "service_date"): DAY,
    ("fare_transactions", "token_id"): r"^([0-9a-f]{32})?$",
    ("rides", "ended_at"): INSTANT,
    ("lines", "service_date"): DAY,
}


MONEY = (
    ("fare_transactions", "amount"),
    ("lines", "amount"),
    ("lines", "funded"),
    ("settlements", "amount"),
    ("positions", "net"),
)
FEW = frozenset({"service_date", "currency_type", "vehicle_id", "device_id", "stop_id", "to_stop_id", "operator_id", "route_id"})
"""Columns with few different values, which are kept once."""


class Counted(Protocol):
    """What the writer says that it wrote."""

    transactions: int
    lines: int
    charged: int


def check_package(folder: Path, currency: str, minor_digits: int, counted: Counted) -> None:
    """BooksError with the faults of the package, or nothing."""
    faults = list(find_faults(folder, currency, minor_digits, counted))
    if faults:
        raise BooksError("the package does not hold together: " + "; ".join(faults[:20]))


class Package:
    """A package's files, each read once: the columns that are checked, as texts."""

    def __init__(self, folder: Path) -> None:
        descriptor = json.loads((folder / "datapackage.json").read_bytes())
        self.folder = folder
        self.schemas = {found["name"]: json.loads((folder / found["schema"]).read_bytes()) for found in descriptor["resources"]}
        foreign = [(name, key) for name, schema in self.schemas.items() for key in schema.get("foreignKeys", ())]
        own = [(name, key["fields"], key["reference"]["resource"], key["reference"]["fields"]) for name, key in foreign]
        self.references = sorted({*TIDES_REFERENCES, *own})
        self.keys = {name: _names(schema["primaryKey"]) for name, schema in self.schemas.items()}
        self.tables: dict[str, Any] = {}

    def table(self, name: str) -> Any:
        """A table's columns that are checked."""
        if name not in self.tables:
            wanted = {column for place, column in (*MATCHING, *MONEY) if place == name} | set(self.keys[name])
            wanted |= {column for place, column, _, _ in self.references if place == name}
            wanted |= {"currency_type"} & {field["name"] for field in self.schemas[name]["fields"]}
            few = pa.dictionary(pa.int32(), pa.string())
            types = {column: few if column in FEW else pa.string() for column in wanted}
            options = csv.ConvertOptions(include_columns=sorted(wanted), column_types=types, strings_can_be_null=False)
            self.tables[name] = csv.read_csv(self.folder / f"{name}.csv", convert_options=options)
        return self.tables[name]

    def different(self, name: str, column: str) -> pa.ChunkedArray:
        """The different values of a column, without the empty one."""
        found = pc.cast(pc.unique(self.table(name)[column]), pa.string())
        return found.filter(pc.not_equal(found, ""))


def find_faults(folder: Path, currency: str, minor_digits: int, counted: Counted | None = None) -> Iterator[str]:
    """What does not hold together in a package, in words."""
    package = Package(folder)
    for name, columns in package.keys.items():
        keys = package.table(name).select(columns)
        again = keys.num_rows - keys.group_by(columns).aggregate([]).num_rows
        if again:
            yield f"{name}: {again} rows have a {'/'.join(columns)} that stands before"
    for name, column, to, to_column in package.references:
        found = package.different(name, column)
        missing = found.filter(pc.invert(pc.is_in(found, value_set=package.different(to, to_column))))
        if len(missing):
            yield f"{name}.{column} {missing[0]} is not in {to} ({len(missing)} such)"
    decimals = rf"(\.\d{{{minor_digits}}})" if minor_digits else ""
    amounts = dict.fromkeys(MONEY, rf"^-?\d+{decimals}$")
    for (name, column), pattern in {**MATCHING, **amounts}.items():
        found = pc.cast(pc.unique(package.table(name)[column]), pa.string())
        wrong = found.filter(pc.invert(pc.match_substring_regex(found, pattern)))
        if len(wrong):
            yield f"{name}.{column} {wrong[0]} is not as it must be ({len(wrong)} such)"
    others = set(package.different("fare_transactions", "currency_type").to_pylist()) - {currency}
    if others:
        yield f"fare_transactions.currency_type {sorted(others)} is not {currency}"
    yield from _sum_faults(package, minor_digits, counted)


def _sum_faults(package: Package, minor_digits: int, counted: Counted | None) -> Iterator[str]:
    try:
        transactions, lines = (_costs(package.table(name), minor_digits) for name in ("fare_transactions", "lines"))
        net = pc.sum(_minor(package.table("positions")["net"], minor_digits)).as_py() or 0
    except pa.ArrowInvalid:  # an amount that is none, which is told already
        return
    if net:
        yield f"positions sum to {net}, not to zero"
    own = pc.index_in(transactions["transaction_id"], value_set=lines["transaction_id"])
    differing = pc.not_equal(transactions["amount"], pc.fill_null(lines["amount"].take(own), 0))
    wrong = transactions["transaction_id"].filter(differing)
    if len(wrong):
        yield f"fare_transactions {wrong[0]} is not the sum of its lines ({len(wrong)} such)"
    charged = pc.sum(transactions["amount"]).as_py() or 0
    found = (len(package.table("fare_transactions")), len(package.table("lines")), charged)
    if counted and found != (counted.transactions, counted.lines, counted.charged):
        yield f"{found} transactions, lines and money stand in the files, others were read from the books: {counted}"


def _costs(table: pa.Table, minor_digits: int) -> pa.Table:
    """Amounts by transaction."""
    columns = {"transaction_id": table["transaction_id"], "amount": _minor(table["amount"], minor_digits)}
    found = pa.table(columns).group_by("transaction_id").aggregate([("amount", "sum")])
    return found.rename_columns(list(columns))


def _minor(amounts: pa.ChunkedArray, minor_digits: int) -> pa.ChunkedArray:
    return pc.cast(pc.replace_substring(amounts, ".", "") if minor_digits else amounts, pa.int64())


def _names(key: str | list[str]) -> list[str]:
    return [key] if isinstance(key, str) else key
