"""Checks of a written TIDES package that its schemas do not make: what refers to what, what stands once, ranges and sums.

The files are read as they were written, by another reader than they were written with; nothing of the store is asked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
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
        self.tables = {name: self._read(name) for name in self.schemas}
        """The columns that are checked."""
        self._different: dict[tuple[str, str], pa.ChunkedArray] = {}

    def _read(self, name: str) -> Any:
        wanted = {column for place, column in (*MATCHING, *MONEY) if place == name} | set(self.keys[name])
        wanted |= {column for place, column, _, _ in self.references if place == name}
        wanted |= {column for _, _, place, column in self.references if place == name}
        wanted |= {"currency_type"} & {field["name"] for field in self.schemas[name]["fields"]}
        few = pa.dictionary(pa.int32(), pa.string())
        types = {column: few if column in FEW else pa.string() for column in wanted}
        options = csv.ConvertOptions(include_columns=sorted(wanted), column_types=types, strings_can_be_null=False)
        return csv.read_csv(self.folder / f"{name}.csv", convert_options=options)

    def different(self, name: str, column: str) -> pa.ChunkedArray:
        """The different values of a column, without the empty one."""
        if (name, column) not in self._different:
            found = pc.cast(pc.unique(self.tables[name][column]), pa.string())
            self._different[name, column] = found.filter(pc.not_equal(found, ""))
        return self._different[name, column]


def find_faults(folder: Path, currency: str, minor_digits: int, counted: Counted | None = None) -> Iterator[str]:
    """What does not hold together in a package, in words."""
    package = Package(folder)
    decimals = rf"(\.\d{{{minor_digits}}})" if minor_digits else ""
    patterns = MATCHING | dict.fromkeys(MONEY, rf"^-?\d+{decimals}$")
    checks: list[Callable[[], Iterator[str]]] = [
        *(partial(_repeated, package, name) for name in package.keys),
        *(partial(_dangling, package, *reference) for reference in package.references),
        *(partial(_malformed, package, *place, pattern) for place, pattern in patterns.items()),
        partial(_foreign_money, package, currency),
        partial(_sum_faults, package, minor_digits, counted),
    ]
    with ThreadPoolExecutor() as pool:  # columns are looked at without Python
        for faults in pool.map(lambda check: list(check()), checks):
            yield from faults


def _repeated(package: Package, name: str) -> Iterator[str]:
    columns = package.keys[name]
    keys = package.tables[name].select(columns)
    again = keys.num_rows - keys.group_by(columns).aggregate([]).num_rows
    if again:
        yield f"{name}: {again} rows have a {'/'.join(columns)} that stands before"


def _dangling(package: Package, name: str, column: str, to: str, to_column: str) -> Iterator[str]:
    found = package.different(name, column)
    missing = found.filter(pc.invert(pc.is_in(found, value_set=package.different(to, to_column))))
    if len(missing):
        yield f"{name}.{column} {missing[0]} is not in {to} ({len(missing)} such)"


def _malformed(package: Package, name: str, column: str, pattern: str) -> Iterator[str]:
    found = pc.cast(pc.unique(package.tables[name][column]), pa.string())
    wrong = found.filter(pc.invert(pc.match_substring_regex(found, pattern)))
    if len(wrong):
        yield f"{name}.{column} {wrong[0]} is not as it must be ({len(wrong)} such)"


def _foreign_money(package: Package, currency: str) -> Iterator[str]:
    others = set(package.different("fare_transactions", "currency_type").to_pylist()) - {currency}
    if others:
        yield f"fare_transactions.currency_type {sorted(others)} is not {currency}"


def _sum_faults(package: Package, minor_digits: int, counted: Counted | None) -> Iterator[str]:
    try:
        transactions, lines = (_costs(package.tables[name], minor_digits) for name in ("fare_transactions", "lines"))
        net = pc.sum(_minor(package.tables["positions"]["net"], minor_digits)).as_py() or 0
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
    found = (len(package.tables["fare_transactions"]), len(package.tables["lines"]), charged)
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
