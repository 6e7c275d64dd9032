"""One look at everything that is booked under an accounting date.

A close asks several questions of the same millions of rows. They are read once, and the questions are answered beside each
other: it costs a fraction of what as many sorted groups cost in the database."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import ARRAY, Column, ColumnElement, Connection, String, any_, cast, func, select

from clearing.agreements import LEG_KINDS, RIDERS, Agreement
from clearing.bags import BagLine, BagRide
from clearing.columns import Reader, alone
from clearing.share_store import RideRow
from clearing.store import OF_THE_CLOSE, PoolRow, rows_of
from fare_engine.errors import BooksError
from fare_engine.store.schema import legs, lines, postings

SHARED_KINDS = frozenset((*LEG_KINDS, "cap"))
COLLECTOR, RIDER = "collector:", "rider:"
SEPARATOR = "\x1f"
"""Stands between the texts of a key."""


class Moved(msgspec.Struct):
    """What moved on an account for one reason: its debits and its credits."""

    debits: int = 0
    credits: int = 0


class Scan(msgspec.Struct):
    """What a date's lines, legs and postings tell."""

    rows: list[PoolRow]
    """Sums by all that a statement distinguishes, in their order."""
    rides: list[RideRow]
    late: set[str]
    """Travellers of whom something moved for an earlier service date."""
    several: set[str]
    """Travellers who rode with several operators on the date itself and have lines that an agreement weighs."""
    movements: dict[tuple[str, str], Moved]
    """(account, code) → what moved, without the postings of the date's own close. Riders' accounts are one: `rider`."""


def scan(reader: Reader, date: str, weighing: Iterable[Agreement]) -> Scan:
    """Everything that is booked under a date. `weighing`: the agreements that look at more than one leg."""
    found = Scan([], [], set(), set(), {})
    _scan_lines(reader, date, found, list(weighing))
    _scan_legs(reader, date, found)
    _scan_postings(reader, date, found)
    return found


class ToScan(msgspec.Struct, frozen=True):
    """What a process needs to know for `scan_in_process`."""

    url: str
    date: str
    weighing: list[Agreement]


def scan_in_process(told: ToScan) -> Scan:
    """`scan`, in a process that does nothing else."""
    with alone(told.url) as reader:
        return scan(reader, told.date, told.weighing)


def _scan_lines(reader: Reader, date: str, found: Scan, weighing: Sequence[Agreement]) -> None:
    key = (lines.c.kind, lines.c.rule_id, lines.c.bearer, lines.c.operator_id, lines.c.network_id, lines.c.service_date)
    columns = (lines.c.traveller_id, lines.c.generation, lines.c.amount, lines.c.funded, lines.c.payer, *key)
    sums = _Sums(len(key) + 1, lambda parts: _is_weighed(parts, weighing))
    rode, weighed = [], set()
    for batch in reader.batches(select(*columns).where(lines.c.accounting_date == date)):
        collector = pc.if_else(pc.starts_with(batch["payer"], COLLECTOR), batch["payer"], "")
        keys = _joined(*(batch[column.name] for column in key), collector)
        sums.add(keys, batch["amount"], batch["funded"], _sign(batch["generation"]))
        is_late = pc.not_equal(batch["service_date"], date)
        found.late.update(batch["traveller_id"].filter(is_late).unique().to_pylist())
        weighed.update(batch["traveller_id"].filter(sums.flags(keys)).unique().to_pylist())
        shared = pc.is_in(batch["kind"], value_set=pa.array(sorted(SHARED_KINDS)))
        on_the_day = pc.and_(pc.and_(shared, pc.invert(is_late)), pc.is_valid(batch["operator_id"]))
        rode.append(_different(pa.table([batch["traveller_id"], batch["operator_id"]], _RODE).filter(on_the_day)))
    if rode:
        operators = _different(pa.concat_tables(rode)).group_by("traveller_id").aggregate([("operator_id", "count")])
        several = operators.filter(pc.greater(operators["operator_id_count"], 1))
        found.several |= weighed.intersection(several["traveller_id"].to_pylist())
    rows = [PoolRow(*_as_pool_row(parts), *numbers) for parts, numbers in sums.items()]
    found.rows += sorted(rows, key=lambda row: tuple("" if part is None else part for part in msgspec.structs.astuple(row)))


_RODE = ("traveller_id", "operator_id")


def _different(table: pa.Table) -> pa.Table:
    return table.group_by(table.column_names).aggregate([])


def _as_pool_row(parts: Sequence[str | None]) -> tuple[Any, ...]:
    """What a sum is of, in the order of a row; whose till it is in stands last in its key."""
    *same, collector = parts
    return (*same, "collector", collector.removeprefix(COLLECTOR)) if collector else (*same, "rider", "")


def _is_weighed(parts: Sequence[str | None], weighing: Iterable[Agreement]) -> bool:
    """Whether an agreement may look at more legs than its own for a line."""
    kind, rule_id, bearer, _, network_id, service_date, _ = parts
    assert kind is not None
    assert rule_id is not None
    assert bearer is not None
    assert service_date is not None
    return kind in SHARED_KINDS and any(
        agreement.fits(kind, rule_id, network_id, paid_by, service_date) for agreement in weighing for paid_by in (RIDERS, bearer)
    )


def _scan_legs(reader: Reader, date: str, found: Scan) -> None:
    key = (legs.c.operator_id, legs.c.network_id, legs.c.route_id, legs.c.rider_category, legs.c.service_date)
    columns = (legs.c.traveller_id, legs.c.generation, legs.c.persons, legs.c.distance_m, *key)
    sums = _Sums(len(key))
    for batch in reader.batches(select(*columns).where(legs.c.accounting_date == date)):
        sign = _sign(batch["generation"])
        persons = pc.multiply(sign, batch["persons"])
        metres = pc.multiply(persons, pc.fill_null(batch["distance_m"], 0))
        sums.add(_joined(*(batch[column.name] for column in key)), persons, sign, metres)
        found.late.update(batch["traveller_id"].filter(pc.not_equal(batch["service_date"], date)).unique().to_pylist())
    in_order = sorted(sums.items(), key=lambda item: tuple(part or "" for part in item[0]))
    found.rides += [RideRow(*parts, *numbers) for parts, numbers in in_order]  # type: ignore[arg-type]  # a key's columns


def _scan_postings(reader: Reader, date: str, found: Scan) -> None:
    columns = (postings.c.debit, postings.c.credit, postings.c.code, postings.c.amount)
    these = (postings.c.accounting_date == date) & postings.c.code.not_in(OF_THE_CLOSE)
    sums = _Sums(3)
    for batch in reader.batches(select(*columns).where(these)):
        sums.add(_joined(_account(batch["debit"]), _account(batch["credit"]), batch["code"]), batch["amount"])
    moved = found.movements
    for (debit, credit, code), (amount,) in sums.items():
        assert debit is not None
        assert credit is not None
        assert code is not None
        moved.setdefault((debit, code), Moved()).debits += amount
        moved.setdefault((credit, code), Moved()).credits += amount


def _account(names: pa.Array) -> pa.Array:
    return pc.if_else(pc.starts_with(names, RIDER), "rider", names)


# ---- sums by keys


def _joined(*columns: pa.Array) -> pa.DictionaryArray:
    """Several columns of texts as one of keys, in which nothing is empty text."""
    return pc.binary_join_element_wise(*columns, SEPARATOR, null_handling="replace", null_replacement="").dictionary_encode()


def _sign(generations: pa.Array) -> pa.Array:
    """1 for what was booked, -1 for what was reversed."""
    return pc.subtract(1, pc.multiply(2, pc.bit_wise_and(generations, 1)))


class _Sums:
    """Sums of several columns by key, batch after batch, and something asked once of each key."""

    def __init__(self, width: int, flag: Callable[[Sequence[str | None]], bool] = lambda _: False) -> None:
        self._width = width
        self._flag = flag
        self._sums: dict[str, list[int]] = {}
        self._flags: dict[str, bool] = {}

    def add(self, keys: pa.DictionaryArray, *columns: pa.Array) -> None:
        """Add columns' numbers to the sums of their rows' keys."""
        table = pa.table([keys.indices, *columns], ["key", *map(str, range(len(columns)))])
        sums = table.group_by("key", use_threads=False).aggregate([(f"{number}", "sum") for number in range(len(columns))])
        texts = keys.dictionary.to_pylist()
        key_of, *numbers = (sums[name].to_pylist() for name in ("key", *(f"{number}_sum" for number in range(len(columns)))))
        for index, *added in zip(key_of, *numbers, strict=True):
            held = self._sums.setdefault(texts[index], [0] * len(columns))
            held[:] = map(int.__add__, held, added)

    def flags(self, keys: pa.DictionaryArray) -> pa.Array:
        """What is asked of each key, for each row."""
        texts = keys.dictionary.to_pylist()
        for text in texts:
            if text not in self._flags:
                self._flags[text] = self._flag(self._parts(text))
        return pa.array([self._flags[text] for text in texts], pa.bool_()).take(keys.indices)

    def items(self) -> Iterator[tuple[list[str | None], list[int]]]:
        """Each key's parts and its sums."""
        return ((self._parts(text), numbers) for text, numbers in self._sums.items())

    def _parts(self, text: str) -> list[str | None]:
        found = text.split(SEPARATOR)
        if len(found) != self._width:
            raise BooksError(f"a control character stands in {text!r}")
        return [part or None for part in found]


# ---- travellers


def shared_days(
    connection: Connection, date: str, names: set[str], *, with_rides: bool
) -> Iterator[tuple[list[BagLine], dict[str, BagRide]]]:
    """The lines (and rides) of some travellers on a service date, as booked under that date, by traveller. A leg of which all
    was reversed is none."""
    columns = (
        lines.c.traveller_id,
        lines.c.generation,
        lines.c.leg_id,
        lines.c.kind,
        lines.c.rule_id,
        lines.c.bearer,
        lines.c.operator_id,
        lines.c.network_id,
        lines.c.service_date,
        lines.c.amount,
        lines.c.funded,
    )
    if not names:
        return
    booked: dict[str, list[BagLine]] = {}
    standing: dict[tuple[str, str], int] = {}
    this = (lines.c.accounting_date == date) & (lines.c.service_date == date)
    these = this & _among(connection, lines.c.traveller_id, names) & lines.c.kind.in_(SHARED_KINDS)
    for traveller, generation, leg_id, *rest in rows_of(connection, select(*columns).where(these)):
        booked.setdefault(traveller, []).append(BagLine(leg_id, *rest))
        standing[traveller, leg_id] = standing.get((traveller, leg_id), 0) + (-1 if generation % 2 else 1)
    rides = _rides(connection, date, names) if with_rides else {}
    for traveller in sorted(booked):
        yield [line for line in booked[traveller] if standing[traveller, line.leg_id]], rides.get(traveller, {})


def _rides(connection: Connection, date: str, names: set[str]) -> dict[str, dict[str, BagRide]]:
    columns = (legs.c.traveller_id, legs.c.leg_id, legs.c.generation, legs.c.journey, legs.c.persons, legs.c.distance_m)
    this = (legs.c.accounting_date == date) & (legs.c.service_date == date)
    these = this & _among(connection, legs.c.traveller_id, names)
    latest: dict[str, dict[str, tuple[int, BagRide]]] = {}
    for traveller, leg_id, generation, *ride in rows_of(connection, select(*columns).where(these)):
        own = latest.setdefault(traveller, {})
        if leg_id not in own or own[leg_id][0] < generation:
            own[leg_id] = (generation, BagRide(*ride))
    return {
        traveller: {leg_id: ride for leg_id, (generation, ride) in own.items() if generation % 2 == 0}
        for traveller, own in latest.items()
    }


def _among(connection: Connection, column: Column[str], names: Collection[str]) -> ColumnElement[bool]:
    """Whether a text is one of thousands, given as one parameter: databases limit how many there may be."""
    if connection.dialect.name == "postgresql":
        return column == any_(cast(list(names), ARRAY(String)))
    return column.in_(select(func.json_each(json.dumps(list(names))).table_valued("value").c.value))
