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


class Counted(Protocol):
    """What the writer says that it wrote."""

    transactions: int
    lines: int
    charged: int


def check_package(folder: Path, currency: str, minor_digits: int, counted: Counted) -> None:
    """BooksError with every fault of the package, or nothing."""
    faults = [*find_faults(folder, currency, minor_digits), *_count_faults(folder, minor_digits, counted)]
    if faults:
        raise BooksError("the package does not hold together: " + "; ".join(faults[:20]))


def find_faults(folder: Path, currency: str, minor_digits: int) -> Iterator[str]:
    """What does not hold together in a package, in words."""
    package = json.loads((folder / "datapackage.json").read_bytes())
    schemas = {found["name"]: json.loads((folder / found["schema"]).read_bytes()) for found in package["resources"]}
    references = list(TIDES_REFERENCES)
    for name, schema in schemas.items():
        for foreign in schema.get("foreignKeys", ()):
            references.append((name, foreign["fields"], foreign["reference"]["resource"], foreign["reference"]["fields"]))
        yield from _key_faults(folder, name, schema["primaryKey"])
    for name, column, to, to_column in references:
        left = set_of(folder, name, column)
        missing = left.filter(pc.invert(pc.is_in(left, value_set=set_of(folder, to, to_column))))
        if len(missing):
            yield f"{name}.{column} {missing[0]} is not in {to} ({len(missing)} such)"
    for (name, column), pattern in MATCHING.items():
        found = _column(folder, name, column)
        wrong = found.filter(pc.invert(pc.match_substring_regex(found, pattern)))
        if len(wrong):
            yield f"{name}.{column} {wrong[0]} is not as it must be ({len(wrong)} such)"
    yield from _money_faults(folder, currency, minor_digits)


def set_of(folder: Path, name: str, column: str) -> pa.ChunkedArray:
    """The different values of a column, without the empty one."""
    found = pc.unique(_column(folder, name, column))
    return found.filter(pc.not_equal(found, ""))


def _key_faults(folder: Path, name: str, key: str | list[str]) -> Iterator[str]:
    columns = [key] if isinstance(key, str) else key
    table = _read(folder, name, columns)
    once = table.group_by(columns).aggregate([]).num_rows
    if once != table.num_rows:
        yield f"{name}: {table.num_rows - once} rows have a {'/'.join(columns)} that stands before"


def _money_faults(folder: Path, currency: str, minor_digits: int) -> Iterator[str]:
    decimals = rf"(\.\d{{{minor_digits}}})" if minor_digits else ""
    for name, column in (
        ("fare_transactions", "amount"),
        ("lines", "amount"),
        ("lines", "funded"),
        ("settlements", "amount"),
        ("positions", "net"),
    ):
        found = _column(folder, name, column)
        wrong = found.filter(pc.invert(pc.match_substring_regex(found, rf"^-?\d+{decimals}$")))
        if len(wrong):
            yield f"{name}.{column} {wrong[0]} is no amount of {currency}"
    other = pc.unique(_column(folder, "fare_transactions", "currency_type"))
    if len(other) > 1 or (len(other) and other[0].as_py() != currency):
        yield f"fare_transactions.currency_type {other.to_pylist()} is not {currency} alone"
    net = _sum(_column(folder, "positions", "net"), minor_digits)
    if net:
        yield f"positions sum to {net}, not to zero"
    lines = _read(folder, "lines", ["transaction_id", "amount"])
    parts = _sums(lines.filter(pc.not_equal(lines["transaction_id"], "")), minor_digits)
    wholes = _sums(_read(folder, "fare_transactions", ["transaction_id", "amount"]), minor_digits)
    both = wholes.join(parts, "transaction_id", join_type="left outer", right_suffix="_of_lines")
    differing = both.filter(pc.not_equal(both["amount_sum"], pc.fill_null(both["amount_sum_of_lines"], 0)))
    if differing.num_rows:
        yield f"fare_transactions {differing['transaction_id'][0]} is not the sum of its lines ({differing.num_rows} such)"


def _count_faults(folder: Path, minor_digits: int, counted: Counted) -> Iterator[str]:
    amounts = _column(folder, "fare_transactions", "amount")
    found = (len(amounts), len(_column(folder, "lines", "line_id")), _sum(amounts, minor_digits))
    wanted = (counted.transactions, counted.lines, counted.charged)
    if found != wanted:
        yield f"{found} transactions, lines and money stand in the files, {wanted} were read from the books"


def _sums(table: pa.Table, minor_digits: int) -> pa.Table:
    amounts = _minor(table["amount"], minor_digits)
    return (
        pa.table({"transaction_id": table["transaction_id"], "amount": amounts})
        .group_by("transaction_id")
        .aggregate([("amount", "sum")])
    )


def _sum(amounts: pa.ChunkedArray, minor_digits: int) -> int:
    return pc.sum(_minor(amounts, minor_digits)).as_py() or 0


def _minor(amounts: pa.ChunkedArray, minor_digits: int) -> pa.ChunkedArray:
    return pc.cast(pc.replace_substring(amounts, ".", "") if minor_digits else amounts, pa.int64())


def _column(folder: Path, name: str, column: str) -> pa.ChunkedArray:
    return _read(folder, name, [column])[column]


def _read(folder: Path, name: str, columns: list[str]) -> Any:
    """Some columns of a table, as texts."""
    options = csv.ConvertOptions(
        include_columns=columns, column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False
    )
    return csv.read_csv(folder / f"{name}.csv", convert_options=options)
