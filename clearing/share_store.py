"""The queries of sharing: rides, days of several operators, late items, and what products were used for.

Every query names one accounting date, or travellers: it costs what the date holds, however long the books are."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from datetime import date, timedelta
from itertools import groupby

import msgspec
from sqlalchemy import BigInteger, Column, ColumnElement, Connection, PrimaryKeyConstraint, String, Table, func, or_, select

from clearing.agreements import ALL_KINDS, LEG_KINDS, Agreement
from clearing.bags import BagLine, BagRide
from fare_engine.booking import Record, decode
from fare_engine.store.schema import legs, lines, metadata, travellers

product_uses = Table(  # what products released and paid, by the accounting date under which it came in
    "product_uses",
    metadata,
    Column("accounting_date", String(10), nullable=False),
    Column("product_id", String, nullable=False),
    Column("service_date", String(10), nullable=False),
    Column("kind", String, nullable=False),  # use, release or expiry
    Column("operator_id", String, nullable=False),  # of use; else empty
    Column("amount", BigInteger, nullable=False),
    Column("legs", BigInteger, nullable=False),
    PrimaryKeyConstraint("product_id", "service_date", "accounting_date", "kind", "operator_id"),
)

long_periods = Table(  # whose money is shared anew when a week or month ends
    "long_periods",
    metadata,
    Column("last_date", String(10), nullable=False),
    Column("traveller_id", String, nullable=False),
    PrimaryKeyConstraint("last_date", "traveller_id"),
)

PART = 1000
_STREAM = {"yield_per": 5000}


class DayUse(msgspec.Struct, frozen=True, order=True):
    """What a product released on a service date (kind `release` or `expiry`), or paid of an operator's rides (`use`)."""

    accounting_date: str
    product_id: str
    service_date: str
    kind: str
    operator_id: str
    amount: int
    legs: int


class RideRow(msgspec.Struct, frozen=True):
    """How many persons rode, booked less reversed."""

    operator_id: str | None
    network_id: str | None
    route_id: str | None
    rider_category: str
    service_date: str
    persons: int
    rides: int
    metres: int


def ride_rows(connection: Connection, accounting_date: str) -> list[RideRow]:
    """The date's rides, summed by all that amounts for rides distinguish."""
    return _ride_rows(connection, legs.c.accounting_date == accounting_date)


def rides_of_service_date(connection: Connection, service_date: str, through: str) -> list[RideRow]:
    """The same of a service date, as booked up to an accounting date."""
    return _ride_rows(connection, legs.c.accounting_date.between(service_date, through) & (legs.c.service_date == service_date))


def _ride_rows(connection: Connection, these: ColumnElement[bool]) -> list[RideRow]:
    columns = (legs.c.operator_id, legs.c.network_id, legs.c.route_id, legs.c.rider_category, legs.c.service_date)
    sign = 1 - 2 * (legs.c.generation % 2)
    metres = func.coalesce(legs.c.distance_m, 0) * legs.c.persons
    statement = (
        select(*columns, func.sum(legs.c.persons * sign), func.sum(sign), func.sum(metres * sign))
        .where(these)
        .group_by(*columns)
        .order_by(*columns)
    )
    return [RideRow(*row[:5], int(row[5]), int(row[6]), int(row[7])) for row in connection.execute(statement)]


def moved_late(connection: Connection, accounting_date: str) -> set[str]:
    """The travellers of whom something moved under an accounting date for an earlier service date."""
    found: set[str] = set()
    for table in (lines, legs):
        late = (table.c.accounting_date == accounting_date) & (table.c.service_date != accounting_date)
        found |= set(connection.execute(select(table.c.traveller_id).where(late).distinct()).scalars())
    return found


def moved_after(connection: Connection, service_date: str, through: str) -> set[str]:
    """The travellers of whom something of a service date moved after its own close, up to another one."""
    found: set[str] = set()
    for table in (lines, legs):
        late = (
            (table.c.accounting_date > service_date)
            & (table.c.accounting_date <= through)
            & (table.c.service_date == service_date)
        )
        found |= set(connection.execute(select(table.c.traveller_id).where(late).distinct()).scalars())
    return found


def journeys_gone_on(connection: Connection, service_date: str) -> set[str]:
    """The travellers who went on with a journey of a service date after its turn."""
    following = (date.fromisoformat(service_date) + timedelta(days=1)).isoformat()
    return journeys_begun_before(connection, following)


def journeys_begun_before(connection: Connection, accounting_date: str) -> set[str]:
    """The travellers who went on, on a service date, with a journey that they had begun before it."""
    this = (legs.c.accounting_date == accounting_date) & (legs.c.service_date == accounting_date)
    begun = select(legs.c.leg_id).where(this)
    statement = select(legs.c.traveller_id).where(this, legs.c.journey != legs.c.leg_id, legs.c.journey.not_in(begun)).distinct()
    return set(connection.execute(statement).scalars())


def long_travellers(connection: Connection, last_date: str) -> set[str]:
    """Whose week or month ends on a date."""
    return set(connection.execute(select(long_periods.c.traveller_id).where(long_periods.c.last_date == last_date)).scalars())


def add_long_travellers(connection: Connection, found: Iterable[tuple[str, str]]) -> None:
    """(last date, traveller): to be looked at once more then."""
    listed = sorted(found)
    for start in range(0, len(listed), PART):
        part = listed[start : start + PART]
        held = select(long_periods).where(long_periods.c.traveller_id.in_([name for _, name in part]))
        known = {(row.last_date, row.traveller_id) for row in connection.execute(held)}
        rows = [{"last_date": last, "traveller_id": name} for last, name in part if (last, name) not in known]
        if rows:
            connection.execute(long_periods.insert(), rows)


def all_long_travellers(connection: Connection) -> set[tuple[str, str]]:
    """(last date, traveller), of all weeks and months."""
    return {(row.last_date, row.traveller_id) for row in connection.execute(select(long_periods))}


def travellers_of(connection: Connection, accounting_date: str, row: Agreement) -> set[tuple[str, str]]:
    """(traveller, service date) with money that an agreement over a longer period covers."""
    statement = select(lines.c.traveller_id, lines.c.service_date).where(
        lines.c.accounting_date == accounting_date, lines.c.kind.in_(ALL_KINDS[row.covers])
    )
    if row.networks:
        statement = statement.where(lines.c.network_id.in_(row.networks))
    if row.rules:
        statement = statement.where(or_(*(lines.c.rule_id.startswith(rule, autoescape=True) for rule in row.rules)))
    return {(name, on) for name, on in connection.execute(statement.distinct())}


def shared_days(
    connection: Connection, on: str, apart: Collection[str], *, with_rides: bool
) -> Iterator[tuple[list[BagLine], dict[str, BagRide]]]:
    """The lines (and rides) of each traveller who rode with several operators on a service date, as booked under that date;
    those of `apart` are left out."""
    this = (lines.c.accounting_date == on) & (lines.c.service_date == on) & lines.c.kind.in_((*LEG_KINDS, "cap"))
    several = (
        select(lines.c.traveller_id)
        .where(this, lines.c.operator_id.is_not(None))
        .group_by(lines.c.traveller_id)
        .having(func.min(lines.c.operator_id) != func.max(lines.c.operator_id))
    )
    columns = (
        lines.c.traveller_id,
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
    statement = select(*columns).where(this, lines.c.traveller_id.in_(several)).order_by(lines.c.traveller_id)
    rides = _rides_of(connection, on, several) if with_rides else iter(())
    held = next(rides, None)
    with connection.execute(statement, execution_options=_STREAM) as rows:
        for name, moved in groupby(rows, key=_first):
            while held is not None and held[0] < name:
                held = next(rides, None)
            own = held[1] if held is not None and held[0] == name else {}
            if name not in apart:
                yield [BagLine(*list(row)[1:]) for row in moved], own


def _rides_of(connection: Connection, on: str, several: object) -> Iterator[tuple[str, dict[str, BagRide]]]:
    columns = (legs.c.traveller_id, legs.c.leg_id, legs.c.generation, legs.c.journey, legs.c.persons, legs.c.distance_m)
    this = (legs.c.accounting_date == on) & (legs.c.service_date == on)
    statement = (
        select(*columns)
        .where(this, legs.c.traveller_id.in_(several))  # type: ignore[arg-type]  # a select of names
        .order_by(legs.c.traveller_id, legs.c.leg_id, legs.c.generation)
    )
    with connection.execute(statement, execution_options=_STREAM) as rows:
        for name, moved in groupby(rows, key=_first):
            found: dict[str, BagRide] = {}
            for _, leg_id, generation, journey, persons, distance_m in moved:
                if generation % 2:
                    found.pop(leg_id, None)
                else:
                    found[leg_id] = BagRide(journey, persons, distance_m)
            yield name, found


def _first(row: tuple[str, ...]) -> str:
    return row[0]


def records(connection: Connection, names: Collection[str]) -> Iterator[Record]:
    """The records of some travellers, in the order of their ids."""
    return (record for _, record in named_records(connection, names))


def named_records(connection: Connection, names: Collection[str]) -> Iterator[tuple[str, Record]]:
    """The same, each with its traveller."""
    listed = sorted(names)
    for start in range(0, len(listed), PART):
        part = listed[start : start + PART]
        rows = connection.execute(
            select(travellers.c.traveller_id, travellers.c.record)
            .where(travellers.c.traveller_id.in_(part))
            .order_by(travellers.c.traveller_id)
        )
        for row in rows:
            yield row.traveller_id, decode(row.record)


def add_uses(connection: Connection, uses: Iterable[DayUse]) -> None:
    """What products released and paid under an accounting date."""
    rows = [msgspec.structs.asdict(use) for use in uses]
    if rows:
        connection.execute(product_uses.insert(), rows)


def list_uses(connection: Connection, product_id: str, first: str, last: str, before: str) -> list[DayUse]:
    """What a product released and paid for some service dates, as known before an accounting date."""
    rows = connection.execute(
        select(product_uses)
        .where(
            product_uses.c.product_id == product_id,
            product_uses.c.service_date.between(first, last),
            product_uses.c.accounting_date < before,
        )
        .order_by(product_uses.c.service_date, product_uses.c.accounting_date, product_uses.c.kind, product_uses.c.operator_id)
    )
    return [DayUse(**row._mapping) for row in rows]


def uses_under(connection: Connection, accounting_date: str) -> set[DayUse]:
    """What products released and paid under an accounting date."""
    rows = connection.execute(select(product_uses).where(product_uses.c.accounting_date == accounting_date))
    return {DayUse(**row._mapping) for row in rows}


def uses_of_date(connection: Connection, service_date: str, through: str) -> list[DayUse]:
    """What products released and paid for a service date, as known when another date was closed."""
    rows = connection.execute(
        select(product_uses).where(
            product_uses.c.service_date == service_date, product_uses.c.accounting_date.between(service_date, through)
        )
    )
    return [DayUse(**row._mapping) for row in rows]


def uses_between(connection: Connection, first: str, last: str, products: Collection[str]) -> set[tuple[str, str]]:
    """(product, service date) with anything released or paid."""
    statement = select(product_uses.c.product_id, product_uses.c.service_date).where(
        product_uses.c.service_date.between(first, last)
    )
    if products:
        statement = statement.where(product_uses.c.product_id.in_(products))
    return {(product, on) for product, on in connection.execute(statement.distinct())}
