"""What clearing keeps, and every query it makes. The tables of lines and postings are the engine's; clearing reads them and
adds its settlement transactions through `fare_engine.store.books`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

import msgspec
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Index,
    LargeBinary,
    PrimaryKeyConstraint,
    Row,
    Select,
    String,
    Table,
    case,
    cast,
    func,
    select,
)

from clearing.bags import Pool
from clearing.payments import Payment
from clearing.pools import PoolState
from fare_engine.ledger import Code
from fare_engine.money import PARTS
from fare_engine.store.database import bytewise
from fare_engine.store.schema import batches, closes, devices, lines, metadata, postings, quarantine

pool_shares = Table(  # what each party has had of a pool up to an accounting date: exact, and published
    "pool_shares",
    metadata,
    Column("accounting_date", String(10), nullable=False),
    Column("pool", String, nullable=False),
    Column("party", String, nullable=False),
    Column("exact_numerator", String, nullable=False),
    Column("exact_denominator", String, nullable=False),
    Column("published", BigInteger, nullable=False),
    PrimaryKeyConstraint("pool", "party", "accounting_date"),
)

settlements = Table(  # what each closing gave each party out of each pool
    "settlements",
    metadata,
    Column("accounting_date", String(10), nullable=False),
    Column("pool", String, nullable=False),
    Column("agreement_id", String, nullable=False),
    Column("party", String, nullable=False),
    Column("amount", BigInteger, nullable=False),
    PrimaryKeyConstraint("accounting_date", "pool", "agreement_id", "party"),
)

statements = Table(  # published documents, which never change; each names the one before it
    "statements",
    metadata,
    Column("accounting_date", String(10), nullable=False),
    Column("name", String, nullable=False),
    Column("content", LargeBinary, nullable=False),
    Column("sha256", String, nullable=False),
    Column("previous_sha256", String),
    PrimaryKeyConstraint("accounting_date", "name"),
)

payments = Table(  # what each closing asks the bank to pay, or parties to pay in
    "payments",
    metadata,
    Column("payment_id", String, primary_key=True),
    Column("accounting_date", String(10), nullable=False),
    Column("party_id", String, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Index("payments_accounting_date", "accounting_date"),
)

closing_balances = Table(  # what each date left to the next: debits less credits since the books began
    "closing_balances",
    metadata,
    Column("accounting_date", String(10), nullable=False),
    Column("account", String, nullable=False),
    Column("balance", BigInteger, nullable=False),
    PrimaryKeyConstraint("accounting_date", "account"),
)

OF_THE_CLOSE = (Code.SETTLED.value, Code.COMMISSION.value, Code.NETTED.value)
"""Codes of the postings that a close makes."""

CHARGED = ("list_fare", "surcharge", "companions", "product", "discount", "transfer", "reward", "cap")
"""Line kinds that make up what a leg costs its rider."""


class PoolRow(msgspec.Struct, frozen=True):
    """The sum of some lines' money: rider's and bearer's parts go to pools of their own."""

    kind: str
    rule_id: str
    bearer: str
    operator_id: str | None
    network_id: str | None
    service_date: str
    payer_kind: str
    """`rider` or `collector`."""
    payer: str
    """The collector's operator, or empty."""
    amount: int
    funded: int
    legs: int
    """Lines booked less lines reversed."""


AT_ONCE = 10_000
STREAM = {"yield_per": AT_ONCE}
"""For rows that are read as they come."""


def rows_of(connection: Connection, statement: Select[Any]) -> Iterator[tuple[Any, ...]]:
    """A statement's rows as plain tuples, as they come."""
    for some in blocks_of(connection, statement):
        yield from some


def blocks_of(connection: Connection, statement: Select[Any]) -> Iterator[Sequence[tuple[Any, ...]]]:
    """The same, some thousand at a time. SQLite's own cursor gives them in a third of the time."""
    if connection.dialect.name != "sqlite":
        with connection.execute(statement, execution_options=STREAM) as found:
            for rows in found.partitions():
                yield [tuple(row) for row in rows]
        return
    compiled = statement.compile(dialect=connection.dialect, compile_kwargs={"render_postcompile": True})
    names = compiled.positiontup or []
    cursor = connection.connection.cursor()
    try:
        cursor.execute(str(compiled), tuple(compiled.params[name] for name in names))
        while some := cursor.fetchmany(AT_ONCE):
            yield some
    finally:
        cursor.close()


def open_dates(connection: Connection, through: str) -> list[str]:
    """Accounting dates up to `through` that have bookings and are not closed, oldest first."""
    closed = last_closed(connection)
    found = {through}
    for table in (lines, postings):  # a day on which nobody rode may have top-ups
        dates = select(table.c.accounting_date).where(table.c.accounting_date <= through).distinct()
        if closed is not None:
            dates = dates.where(table.c.accounting_date > closed)
        found |= set(connection.execute(dates).scalars())
    return sorted(found)


def is_closed(connection: Connection, accounting_date: str) -> bool:
    """Whether a date is closed: by itself, or by a later closing."""
    closed = last_closed(connection)
    return closed is not None and accounting_date <= closed


def last_closed(connection: Connection) -> str | None:
    """The latest date that is closed, or None."""
    found: str | None = connection.execute(select(func.max(closes.c.accounting_date))).scalar_one()
    return found


def unpublished(connection: Connection) -> list[str]:
    """Dates that are frozen and not yet published, oldest first."""
    rows = connection.execute(select(closes.c.accounting_date).where(closes.c.head.is_(None)))
    return sorted(row.accounting_date for row in rows)


def date_before(connection: Connection, accounting_date: str) -> str | None:
    """The closed date before another one."""
    statement = select(func.max(closes.c.accounting_date)).where(closes.c.accounting_date < accounting_date)
    found: str | None = connection.execute(statement).scalar_one()
    return found


def freeze(connection: Connection, accounting_date: str, frozen_at: int) -> None:
    """From now on no booking gets this date, and what was received so far is sealed with it or with a date before it. No
    other writer is at work meanwhile, so no message with a lower number is still on its way."""
    through = connection.execute(select(func.coalesce(func.max(batches.c.batch_id), 0))).scalar_one()
    row = {"accounting_date": accounting_date, "frozen_at": frozen_at, "head": None, "batches_through": through}
    connection.execute(closes.insert(), row)


def set_head(connection: Connection, accounting_date: str, head: str, tree_size: int) -> None:
    """The root over the date's rows, and how many they are."""
    this = closes.c.accounting_date == accounting_date
    connection.execute(closes.update().where(this).values(head=head, tree_size=tree_size))


def rows_of_service_date(connection: Connection, service_date: str, through: str) -> list[PoolRow]:
    """Everything that is for a service date, as it was booked up to an accounting date, summed by all that a statement
    distinguishes."""
    these = lines.c.accounting_date.between(service_date, through) & (lines.c.service_date == service_date)
    is_collector = lines.c.payer.like("collector:%")
    payer_kind = case((is_collector, "collector"), else_="rider")
    payer = case((is_collector, func.substr(lines.c.payer, 11)), else_="")
    columns = (
        lines.c.kind,
        lines.c.rule_id,
        lines.c.bearer,
        lines.c.operator_id,
        lines.c.network_id,
        lines.c.service_date,
        payer_kind,
        payer,
    )
    sign = 1 - 2 * (lines.c.generation % 2)
    statement = (
        select(*columns, func.sum(lines.c.amount), func.sum(lines.c.funded), func.sum(sign))
        .where(these)
        .group_by(*columns)
        .order_by(*columns)
    )
    return [PoolRow(*row[:8], int(row[8]), int(row[9]), int(row[10])) for row in connection.execute(statement)]


def load_pools(connection: Connection, names: Iterable[str], before: str) -> dict[str, PoolState]:
    """Some pools' states at their latest closings before a date."""
    latest = (
        select(pool_shares.c.pool, func.max(pool_shares.c.accounting_date).label("latest"))
        .where(pool_shares.c.accounting_date < before)
        .group_by(pool_shares.c.pool)
        .subquery()
    )
    same = (pool_shares.c.pool == latest.c.pool) & (pool_shares.c.accounting_date == latest.c.latest)
    wanted = frozenset(names)
    rows = [row for row in connection.execute(select(pool_shares).join(latest, same)) if row.pool in wanted]
    return _states(rows)


def _states(rows: Iterable[Row[Any]]) -> dict[str, PoolState]:
    exact: dict[str, dict[str, int]] = {}
    published: dict[str, dict[str, int]] = {}
    for row in rows:
        exact.setdefault(row.pool, {})[row.party] = int(row.exact_numerator) * (PARTS // int(row.exact_denominator))
        published.setdefault(row.pool, {})[row.party] = row.published
    return {pool: PoolState(found, published[pool]) for pool, found in exact.items()}


def save_pools(connection: Connection, accounting_date: str, states: Mapping[str, PoolState]) -> None:
    """Pools' states after this closing. A pool in which nobody has anything any more is kept with its name."""
    rows = [
        {
            "accounting_date": accounting_date,
            "pool": pool,
            "party": party,
            "exact_numerator": str(parts),
            "exact_denominator": str(PARTS),
            "published": state.published.get(party, 0),
        }
        for pool, state in states.items()
        for party, parts in (state.exact or {"": 0}).items()
    ]
    if rows:
        connection.execute(pool_shares.insert(), rows)


def add_settlements(connection: Connection, accounting_date: str, settled: Mapping[Pool, Mapping[str, int]]) -> None:
    """What a closing gives each party out of each pool."""
    rows = [
        {"accounting_date": accounting_date, "pool": pool, "agreement_id": agreement, "party": party, "amount": amount}
        for (pool, agreement), paid in settled.items()
        for party, amount in paid.items()
    ]
    if rows:
        connection.execute(settlements.insert(), rows)


def add_payments(connection: Connection, found: Iterable[Payment]) -> None:
    """The payments of a closing."""
    rows = [msgspec.structs.asdict(payment) for payment in found]
    if rows:
        connection.execute(payments.insert(), rows)


def list_payments(connection: Connection, accounting_date: str) -> list[Payment]:
    """The payments of a closing, by party."""
    rows = connection.execute(select(payments).where(payments.c.accounting_date == accounting_date))
    return sorted(Payment(row.accounting_date, row.party_id, row.payment_id, row.amount) for row in rows)


def find_payment(connection: Connection, payment_id: str) -> Payment | None:
    """One payment by its id, or None."""
    row = connection.execute(select(payments).where(payments.c.payment_id == payment_id)).first()
    return Payment(row.accounting_date, row.party_id, row.payment_id, row.amount) if row else None


def list_settlements(connection: Connection, accounting_date: str) -> list[tuple[str, str, str, int]]:
    """(pool, agreement, party, amount) of a closing, sorted."""
    rows = connection.execute(select(settlements).where(settlements.c.accounting_date == accounting_date))
    return sorted((row.pool, row.agreement_id, row.party, row.amount) for row in rows)


def list_pools(connection: Connection, accounting_date: str) -> dict[str, PoolState]:
    """The state after a closing of each pool that moved in it; ValueError or ZeroDivisionError for one that is no number."""
    return _states(connection.execute(select(pool_shares).where(pool_shares.c.accounting_date == accounting_date)))


def add_balances(connection: Connection, accounting_date: str, balances: Mapping[str, int]) -> None:
    """What goes on to the next date."""
    rows = [{"accounting_date": accounting_date, "account": name, "balance": amount} for name, amount in balances.items()]
    if rows:
        connection.execute(closing_balances.insert(), rows)


def list_balances(connection: Connection, accounting_date: str) -> dict[str, int]:
    """The balances (debits less credits since the books began) that a date left to the next one."""
    rows = connection.execute(select(closing_balances).where(closing_balances.c.accounting_date == accounting_date))
    return {row.account: row.balance for row in rows}


def balances_before(connection: Connection, accounting_date: str) -> dict[str, int]:
    """The balances that the close before a date left."""
    before = date_before(connection, accounting_date)
    return list_balances(connection, before) if before is not None else {}


class BookedSum(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Of a leg's booked lines, those of one kind, bearer and operator; `standing`: lines booked less lines reversed."""

    leg_id: str
    kind: str
    bearer: str
    operator_id: str | None
    amount: int
    funded: int
    standing: int


def is_moved_since(connection: Connection, accounting_date: str) -> bool:
    """Whether anything for a service date up to an accounting date is booked later than it."""
    late = (lines.c.accounting_date > accounting_date) & (lines.c.service_date <= accounting_date)
    return connection.execute(select(lines.c.row_number).where(late).limit(1)).first() is not None


def released(connection: Connection) -> list[tuple[str, str, int]]:
    """(product, service date, amount) of what passes and books released."""
    columns = (lines.c.bearer, lines.c.service_date)
    rows = connection.execute(
        select(*columns, func.sum(lines.c.funded)).where(lines.c.kind.in_(("release", "expiry"))).group_by(*columns)
    )
    return [(bearer.partition(":")[2], on, int(amount)) for bearer, on, amount in rows]


def given_through(connection: Connection, accounting_date: str) -> tuple[dict[str, int], dict[str, int]]:
    """What each party was given up to a date (fees left out), and out of how many pools that may round: amounts for rides and
    subsidies are whole."""
    words = {word: settlements.c.pool.startswith(f"{word}|") for word in ("ride", "subsidy", "fee")}
    rounded = case((words["ride"] | words["subsidy"], None), else_=settlements.c.pool)
    rows = connection.execute(
        select(settlements.c.party, func.sum(settlements.c.amount), func.count(rounded.distinct()))
        .where(settlements.c.accounting_date <= accounting_date, ~words["fee"])
        .group_by(settlements.c.party)
    ).all()
    return {row[0]: int(row[1]) for row in rows}, {row[0]: int(row[2]) for row in rows}


def booked_sums(connection: Connection) -> Iterator[tuple[str, list[BookedSum]]]:
    """(traveller, what is booked of his legs), in the order of the travellers; sales left out."""
    traveller = bytewise(connection, lines.c.traveller_id)
    columns = (lines.c.leg_id, lines.c.kind, lines.c.bearer, lines.c.operator_id)
    sign = 1 - 2 * (lines.c.generation % 2)
    sums = (func.sum(lines.c.amount), func.sum(lines.c.funded), func.sum(sign))
    statement = (
        select(lines.c.traveller_id, *columns, *(cast(one, BigInteger) for one in sums))
        .where(lines.c.kind.in_((*CHARGED, "hold")))
        .group_by(lines.c.traveller_id, *columns)
        .order_by(traveller)
    )
    for traveller_id, rows in groupby(rows_of(connection, statement), itemgetter(0)):
        yield traveller_id, [BookedSum(*row[1:]) for row in rows]


def count_lines(connection: Connection, accounting_date: str) -> int:
    """How many lines a date has."""
    return int(connection.execute(select(func.count()).where(lines.c.accounting_date == accounting_date)).scalar_one())


def all_statements(connection: Connection) -> list[tuple[str, str, bytes, str, str | None]]:
    """(date, name, content, SHA-256, that of the document of the same name before it), by name and date."""
    rows = connection.execute(select(statements).order_by(statements.c.name, statements.c.accounting_date))
    return [(row.accounting_date, row.name, row.content, row.sha256, row.previous_sha256) for row in rows]


def quarantined(connection: Connection, accounting_date: str) -> list[tuple[str, str, int]]:
    """(operator of the device, reason, taps) set aside under this accounting date."""
    columns = (devices.c.operator_id, quarantine.c.reason)
    rows = connection.execute(
        select(*columns, func.count())
        .join(devices, devices.c.device_id == quarantine.c.device_id)
        .where(quarantine.c.accounting_date == accounting_date, quarantine.c.released_at.is_(None))
        .group_by(*columns)
        .order_by(*columns)
    )
    return [(row[0], row[1], int(row[2])) for row in rows]


def publish(connection: Connection, accounting_date: str, name: str, content: bytes, sha256: str) -> None:
    """Keep a document for ever; it names the latest one of the same name before it."""
    previous = connection.execute(
        select(statements.c.sha256)
        .where(statements.c.name == name, statements.c.accounting_date < accounting_date)
        .order_by(statements.c.accounting_date.desc())
        .limit(1)
    ).scalar()
    connection.execute(
        statements.insert(),
        {
            "accounting_date": accounting_date,
            "name": name,
            "content": content,
            "sha256": sha256,
            "previous_sha256": previous,
        },
    )


def published(connection: Connection, accounting_date: str) -> dict[str, bytes]:
    """The documents of a date, by name."""
    rows = connection.execute(
        select(statements.c.name, statements.c.content)
        .where(statements.c.accounting_date == accounting_date)
        .order_by(statements.c.name)
    )
    return {row.name: row.content for row in rows}


def find_document(connection: Connection, accounting_date: str, name: str) -> bytes | None:
    """One published document, or None."""
    content: bytes | None = connection.execute(
        select(statements.c.content).where(statements.c.accounting_date == accounting_date, statements.c.name == name)
    ).scalar()
    return content


def published_dates(connection: Connection) -> list[str]:
    """The dates with published documents, newest first."""
    rows = connection.execute(select(statements.c.accounting_date).distinct())
    return sorted((row.accounting_date for row in rows), reverse=True)
