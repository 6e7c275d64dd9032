"""The queries of sharing: rides, days of several operators, late items, and what products were used for.

Every query names one accounting date, or travellers: it costs what the date holds, however long the books are."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from datetime import date, timedelta

import msgspec
from sqlalchemy import BigInteger, Column, Connection, PrimaryKeyConstraint, String, Table, func, or_, select

from clearing.agreements import ALL_KINDS, LEG_KINDS, Agreement
from fare_engine.booking import Record
from fare_engine.store import travellers
from fare_engine.store.schema import legs, lines, metadata

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


def rides_of_service_date(connection: Connection, service_date: str, through: str) -> list[RideRow]:
    """A service date's rides as booked up to an accounting date, summed by all that amounts for rides distinguish."""
    these = legs.c.accounting_date.between(service_date, through) & (legs.c.service_date == service_date)
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


def several(connection: Connection, date: str) -> set[str]:
    """The travellers who rode with several operators on a service date, as booked under that date."""
    this = (lines.c.accounting_date == date) & (lines.c.service_date == date) & lines.c.kind.in_((*LEG_KINDS, "cap"))
    statement = (
        select(lines.c.traveller_id)
        .where(this, lines.c.operator_id.is_not(None))
        .group_by(lines.c.traveller_id)
        .having(func.min(lines.c.operator_id) != func.max(lines.c.operator_id))
    )
    return set(connection.execute(statement).scalars())


def records(connection: Connection, names: Collection[str]) -> Iterator[Record]:
    """The records of some travellers, in the order of their ids."""
    return (record for _, record in named_records(connection, names))


def named_records(connection: Connection, names: Collection[str]) -> Iterator[tuple[str, Record]]:
    """The same, each with its traveller."""
    listed = sorted(names)
    for start in range(0, len(listed), PART):
        part = listed[start : start + PART]
        yield from sorted(travellers.read_records(connection, part).items())


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
