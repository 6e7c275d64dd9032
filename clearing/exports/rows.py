"""What exports read, and every query of it. Rows are streamed: a day may have millions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import NamedTuple

import pyarrow as pa
from sqlalchemy import ColumnElement, Connection, Table, case, func, literal_column, select

from clearing.columns import OfConnection, Reader, schema_of, table_of
from clearing.exports.journals import Entry
from fare_engine.store.schema import devices, legs, lines, postings, vehicles

SAMPLE = 2000
"""How many rows are looked at to part a date."""
AT_ONCE = 500

PEOPLE = {"rider:": "riders", "held:": "held", "deposits:": "deposits"}
"""Accounts of persons and of their disputes, which leave the house as one account each."""


def journal_entries(connection: Connection, accounting_date: str) -> list[Entry]:
    """A date's postings, summed by code, service date and pair of accounts."""
    debit, credit = _account(postings.c.debit), _account(postings.c.credit)
    key = (postings.c.code, postings.c.service_date, debit, credit)
    rows = connection.execute(
        select(*key, func.sum(postings.c.amount), func.count())
        .where(postings.c.accounting_date == accounting_date)
        .group_by(*key)
    )
    return sorted(Entry(row[0], row[1], row[2], row[3], int(row[4]), int(row[5])) for row in rows)


def journal_balances(connection: Connection, accounting_date: str) -> dict[str, int]:
    """Debits less credits of a date by account, each side summed by itself; zeros too."""
    found: dict[str, int] = {}
    for column, sign in ((postings.c.debit, 1), (postings.c.credit, -1)):
        account = _account(column)
        rows = connection.execute(
            select(account, func.sum(postings.c.amount)).where(postings.c.accounting_date == accounting_date).group_by(account)
        )
        for name, amount in rows:
            found[name] = found.get(name, 0) + sign * int(amount)
    return dict(sorted(found.items()))


LEG_COLUMNS = (
    legs.c.leg_id,
    legs.c.generation,
    legs.c.token_id,
    legs.c.media,
    legs.c.rider_category,
    legs.c.network_id,
    legs.c.route_id,
    legs.c.operator_id,
    legs.c.vehicle_id,
    legs.c.from_stop_id,
    legs.c.to_stop_id,
    legs.c.began_at,
    legs.c.ended_at,
    legs.c.persons,
    legs.c.distance_m,
    legs.c.journey,
    legs.c.status,
    legs.c.service_date,
)
LINE_COLUMNS = (
    lines.c.leg_id,
    lines.c.transaction_id,
    lines.c.generation,
    lines.c.kind,
    lines.c.rule_id,
    lines.c.version_id,
    lines.c.amount,
    lines.c.bearer,
    lines.c.funded,
    lines.c.operator_id,
    lines.c.network_id,
    lines.c.service_date,
)


LEG_SCHEMA, LINE_SCHEMA = schema_of(select(*LEG_COLUMNS)), schema_of(select(*LINE_COLUMNS))


class Range(NamedTuple):
    """Rows as the database has numbered them, both ends included."""

    first: int
    last: int


def ranges(connection: Connection, table: Table, accounting_date: str, parts: int) -> list[Range]:
    """Where a date's rows stand in `legs` or `lines`, in about equal parts."""
    number, this = table.c.row_number, table.c.accounting_date == accounting_date
    first = connection.execute(select(func.min(number)).where(this)).scalar_one()
    last = connection.execute(select(func.max(number)).where(this)).scalar_one()
    if first is None:
        return [Range(0, 0)] * parts
    ends = [first + (last + 1 - first) * part // parts for part in range(parts + 1)]
    return [Range(begin, end - 1) for begin, end in pairwise(ends)]


def cuts(connection: Connection, accounting_date: str, parts: int) -> list[str]:
    """Ids between which a date's legs are about equally many, found by looking at some of them."""
    (whole,) = ranges(connection, legs, accounting_date, 1)
    places = sorted({whole.first + (whole.last - whole.first) * step // SAMPLE for step in range(SAMPLE + 1)})
    found = select(legs.c.leg_id).where(legs.c.row_number.in_(places), legs.c.accounting_date == accounting_date)
    ids = sorted(row.leg_id for row in connection.execute(found))
    return sorted({ids[len(ids) * part // parts] for part in range(1, parts)}) if ids else []


def count_legs(connection: Connection, accounting_date: str) -> int:
    """How many movements of legs a date has."""
    found: int = connection.execute(
        select(func.count()).select_from(legs).where(legs.c.accounting_date == accounting_date)
    ).scalar_one()
    return found


def read_legs(reader: Reader, accounting_date: str, part: Range) -> Iterator[pa.RecordBatch]:
    """A date's movements of legs in a range."""
    return reader.batches(select(*LEG_COLUMNS).where(*_within(legs, accounting_date, part)))


def read_lines(reader: Reader, accounting_date: str, part: Range) -> Iterator[pa.RecordBatch]:
    """A date's movements of lines in a range, but holds."""
    return reader.batches(select(*LINE_COLUMNS).where(*_within(lines, accounting_date, part), lines.c.kind != "hold"))


def read_earlier_legs(connection: Connection, accounting_date: str, leg_ids: Mapping[str, str]) -> pa.Table:
    """The movements of legs that were booked before a date; `leg_ids`: each with its service date."""
    wanted = sorted(leg for leg, service_date in leg_ids.items() if service_date < accounting_date)
    since = min((leg_ids[leg] for leg in wanted), default=accounting_date)
    before = select(*LEG_COLUMNS).where(legs.c.accounting_date >= since, legs.c.accounting_date < accounting_date)
    found = [
        table_of(OfConnection(connection), before.where(legs.c.leg_id.in_(wanted[first : first + AT_ONCE])))
        for first in range(0, max(len(wanted), 1), AT_ONCE)
    ]
    return pa.concat_tables(found)


def all_devices(connection: Connection) -> list[str]:
    """Every device of the register."""
    return sorted(row.device_id for row in connection.execute(select(devices.c.device_id)))


def all_vehicles(connection: Connection) -> list[str]:
    """Every vehicle of the register."""
    return sorted({row.vehicle_id for row in connection.execute(select(vehicles.c.vehicle_id))})


def no_time_limit(connection: Connection) -> None:
    """An export may take longer than what the service may ask of PostgreSQL."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")


def _within(table: Table, accounting_date: str, part: Range) -> list[ColumnElement[bool]]:
    """By number, in whose order the rows stand: the date's index would look each of them up."""
    return [table.c.row_number.between(*part), table.c.accounting_date.concat("") == accounting_date]


def _account(column: ColumnElement[str]) -> ColumnElement[str]:
    return case(*((column.like(f"{prefix}%"), literal_column(f"'{name}'")) for prefix, name in PEOPLE.items()), else_=column)
