"""What clearing keeps, and every query it makes. The tables of lines and postings are the engine's; clearing reads them and
adds its settlement transactions through `fare_engine.store.books`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

import msgspec
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    LargeBinary,
    PrimaryKeyConstraint,
    Select,
    String,
    Table,
    case,
    func,
    literal_column,
    select,
)

from clearing.pools import PoolState
from fare_engine.ledger import Code
from fare_engine.store.schema import closes, devices, lines, metadata, postings, quarantine
from fare_engine.tariff.compile import CapScope

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


def open_dates(connection: Connection, through: str) -> list[str]:
    """Accounting dates up to `through` that have bookings and are not closed, oldest first."""
    closed = connection.execute(select(func.max(closes.c.accounting_date))).scalar_one()
    found = select(lines.c.accounting_date).where(lines.c.accounting_date <= through).distinct()
    if closed is not None:
        found = found.where(lines.c.accounting_date > closed)
    return sorted({row.accounting_date for row in connection.execute(found)} | {through})


def is_closed(connection: Connection, accounting_date: str) -> bool:
    """Whether a date is closed: by itself, or by a later closing."""
    closed = connection.execute(select(func.max(closes.c.accounting_date))).scalar_one()
    return closed is not None and accounting_date <= closed


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
    """From now on no booking gets this date."""
    connection.execute(closes.insert(), {"accounting_date": accounting_date, "frozen_at": frozen_at, "head": None})


def set_head(connection: Connection, accounting_date: str, head: str) -> None:
    """The hash that seals the date's lines and postings."""
    connection.execute(closes.update().where(closes.c.accounting_date == accounting_date).values(head=head))


def pool_rows(connection: Connection, accounting_date: str) -> list[PoolRow]:
    """The date's movements, summed by all that a statement distinguishes."""
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
        .where(lines.c.accounting_date == accounting_date)
        .group_by(*columns)
        .order_by(*columns)
    )
    return [PoolRow(*row[:8], int(row[8]), int(row[9]), int(row[10])) for row in connection.execute(statement)]


class CapShare(msgspec.Struct, frozen=True):
    """What a cap took off one traveller's service day, and what that day's legs cost by operator."""

    rule_id: str
    traveller_id: str
    service_date: str
    amount: int
    funded: int
    """What the cap's bearer pays of it; 0 where the operators bear it."""
    bearer: str
    weights: dict[str, int]


def moved_dates(connection: Connection, accounting_date: str) -> list[str]:
    """The service dates of what moved under an accounting date."""
    rows = connection.execute(select(lines.c.service_date).where(lines.c.accounting_date == accounting_date).distinct())
    return sorted(row.service_date for row in rows)


def cap_shares(connection: Connection, dates: list[str], through: str | None, scopes: Mapping[str, CapScope]) -> list[CapShare]:
    """Every capped traveller's day of some service dates, as booked up to an accounting date (None: nothing was yet).
    `scopes` say which legs and lines a cap counts: only their operators bear it.

    A day that did not move is the same at both ends of a difference, so it does no harm that it is in it."""
    if through is None or not dates:
        return []
    booked = lines.c.accounting_date.between(dates[0], through) & lines.c.service_date.in_(dates)
    capped = select(lines.c.traveller_id).where(booked, lines.c.kind == "cap").distinct()
    columns = (
        lines.c.traveller_id,
        lines.c.service_date,
        lines.c.kind,
        lines.c.rule_id,
        lines.c.bearer,
        lines.c.operator_id,
        lines.c.network_id,
    )
    rows = connection.execute(
        select(*columns, func.sum(lines.c.amount).label("amount"), func.sum(lines.c.funded).label("funded"))
        .where(booked, lines.c.traveller_id.in_(capped), lines.c.kind.in_(CHARGED), lines.c.kind != "companions")
        .group_by(*columns)
    )
    charged: dict[tuple[str, str], list[tuple[str, str, str, int]]] = {}
    caps: dict[tuple[str, str, str, str], tuple[int, int]] = {}
    for row in rows:
        day = (row.traveller_id, row.service_date)
        if row.kind == "cap":
            key = (row.rule_id, row.bearer, *day)
            before = caps.get(key, (0, 0))
            caps[key] = (before[0] + int(row.amount), before[1] + int(row.funded))
        elif row.operator_id is not None:
            charged.setdefault(day, []).append((row.operator_id, row.network_id, row.kind, int(row.amount)))
    return [
        CapShare(
            rule,
            traveller,
            day,
            amount,
            funded,
            bearer,
            _weights(charged.get((traveller, day), []), scopes.get(rule.partition("/")[0])),
        )
        for (rule, bearer, traveller, day), (amount, funded) in sorted(caps.items())
        if amount
    ]


def _weights(charged: list[tuple[str, str, str, int]], scope: CapScope | None) -> dict[str, int]:
    found: dict[str, int] = {}
    networks = scope.networks if scope is not None else ()
    surcharges = scope is not None and scope.counts == "surcharge"
    for operator_id, network_id, kind, amount in charged:
        if (not networks or network_id in networks) and (kind == "surcharge") == surcharges:
            found[operator_id] = found.get(operator_id, 0) + amount
    return found


class ProductShare(msgspec.Struct, frozen=True):
    """What a product released for one service date, and the list fares it covered that day by operator."""

    kind: str
    product_id: str
    service_date: str
    amount: int
    weights: dict[str, int]


def product_shares(connection: Connection, dates: list[str], through: str | None) -> list[ProductShare]:
    """Every product and day of some service dates, as booked up to an accounting date (None: nothing was yet)."""
    if through is None or not dates:
        return []
    columns = (lines.c.bearer, lines.c.service_date, lines.c.kind, lines.c.operator_id)
    rows = connection.execute(
        select(*columns, func.sum(lines.c.amount).label("amount"), func.sum(lines.c.funded).label("funded"))
        .where(
            lines.c.accounting_date.between(dates[0], through),
            lines.c.service_date.in_(dates),
            lines.c.kind.in_(("release", "expiry", "product")),
        )
        .group_by(*columns)
    )
    weights: dict[tuple[str, str], dict[str, int]] = {}
    released: dict[tuple[str, str, str], int] = {}
    for row in rows:
        day = (row.bearer.partition(":")[2], row.service_date)
        if row.kind == "product":
            found = weights.setdefault(day, {})
            found[row.operator_id] = found.get(row.operator_id, 0) - int(row.amount)
        else:
            key = (row.kind, *day)
            released[key] = released.get(key, 0) + int(row.funded)
    return [
        ProductShare(kind, product, day, amount, weights.get((product, day), {}))
        for (kind, product, day), amount in sorted(released.items())
        if amount
    ]


def load_pool(connection: Connection, pool: str, before: str) -> PoolState:
    """A pool's state at its latest closing before a date."""
    earlier = (pool_shares.c.pool == pool) & (pool_shares.c.accounting_date < before)
    latest = select(func.max(pool_shares.c.accounting_date)).where(earlier).scalar_subquery()
    rows = connection.execute(
        select(pool_shares).where(pool_shares.c.pool == pool, pool_shares.c.accounting_date == latest)
    ).all()
    exact = {row.party: Fraction(int(row.exact_numerator), int(row.exact_denominator)) for row in rows}
    return PoolState(exact, {row.party: row.published for row in rows})


def save_pool(connection: Connection, accounting_date: str, pool: str, state: PoolState) -> None:
    """A pool's state after this closing."""
    rows = [
        {
            "accounting_date": accounting_date,
            "pool": pool,
            "party": party,
            "exact_numerator": str(exact.numerator),
            "exact_denominator": str(exact.denominator),
            "published": state.published.get(party, 0),
        }
        for party, exact in state.exact.items()
    ]
    if rows:
        connection.execute(pool_shares.insert(), rows)


def add_settlements(connection: Connection, accounting_date: str, rows: Iterable[tuple[str, str, str, int]]) -> None:
    """(pool, agreement, party, amount) of a closing."""
    names = ("pool", "agreement_id", "party", "amount")
    found = [{"accounting_date": accounting_date, **dict(zip(names, row, strict=True))} for row in rows]
    if found:
        connection.execute(settlements.insert(), found)


class BookedLeg(msgspec.Struct):
    """What is booked of a leg: the rider's charge, what is `held`, what each bearer pays, and to which operators."""

    sums: dict[str, int] = {}
    operators: set[str | None] = set()


def booked_legs(connection: Connection) -> dict[str, dict[str, BookedLeg]]:
    """traveller → leg → what is booked of it; sales left out."""
    columns = (lines.c.traveller_id, lines.c.leg_id, lines.c.kind, lines.c.bearer, lines.c.operator_id)
    sign = 1 - 2 * (lines.c.generation % 2)
    rows = connection.execute(
        select(*columns, func.sum(lines.c.amount), func.sum(lines.c.funded), func.sum(sign))
        .where(lines.c.kind.in_((*CHARGED, "hold")))
        .group_by(*columns)
    )
    found: dict[str, dict[str, BookedLeg]] = {}
    for traveller_id, leg_id, kind, bearer, operator_id, amount, funded, standing in rows:
        leg = found.setdefault(traveller_id, {}).setdefault(leg_id, BookedLeg())
        whose = "held" if kind == "hold" else "rider"
        leg.sums[whose] = leg.sums.get(whose, 0) + int(amount)
        if funded:
            leg.sums[bearer] = leg.sums.get(bearer, 0) + int(funded)
        if standing:
            leg.operators.add(operator_id)
    return found


def account_balances(connection: Connection, accounting_date: str, prefix: str) -> dict[str, int]:
    """Debits less credits of one date's postings, for the accounts that begin with `prefix`; zeros left out."""
    sides = []
    for column, sign in ((postings.c.debit, "1"), (postings.c.credit, "-1")):
        sides.append(
            select(column.label("account"), (postings.c.amount * literal_column(sign)).label("amount")).where(
                postings.c.accounting_date == accounting_date, column.like(prefix + "%")
            )
        )
    both = sides[0].union_all(sides[1]).subquery()
    rows = connection.execute(select(both.c.account, func.sum(both.c.amount)).group_by(both.c.account))
    return {account: int(amount) for account, amount in sorted(tuple(row) for row in rows) if amount}


def totals(connection: Connection, accounting_date: str) -> tuple[int, int]:
    """(sum of all debits, sum of all credits) of a date, each summed by its own side's accounts."""
    found = []
    for column in (postings.c.debit, postings.c.credit):
        per_account = (
            select(column, func.sum(postings.c.amount).label("amount"))
            .where(postings.c.accounting_date == accounting_date)
            .group_by(column)
            .subquery()
        )
        found.append(int(connection.execute(select(func.coalesce(func.sum(per_account.c.amount), 0))).scalar_one()))
    return found[0], found[1]


def hashed_rows(connection: Connection, accounting_date: str) -> Iterable[bytes]:
    """The date's lines, postings and last its settlements as bytes, each in the order of their ids, for the seal."""
    settled = postings.c.code == Code.SETTLED.value
    in_order = (
        _sealed(lines, accounting_date).order_by(lines.c.transaction_id),
        _sealed(postings, accounting_date).order_by(settled, postings.c.transaction_id, postings.c.number),
    )
    for statement in in_order:
        for row in connection.execution_options(yield_per=5000).execute(statement):
            yield msgspec.msgpack.encode(tuple(row))


def _sealed(table: Table, accounting_date: str) -> Select[Any]:
    """A date's rows without the number that the database gave them."""
    columns = [column for column in table.c if column.name != "row_number"]
    return select(*columns).where(table.c.accounting_date == accounting_date)


def repeated_transactions(connection: Connection, accounting_date: str) -> list[str]:
    """Transaction ids that stand on more than one line: there must be none."""
    twice = (
        select(lines.c.transaction_id)
        .where(lines.c.accounting_date == accounting_date)
        .group_by(lines.c.transaction_id)
        .having(func.count() > 1)
    )
    return sorted(row.transaction_id for row in connection.execute(twice))


def seals(connection: Connection) -> dict[str, str]:
    """The hash that sealed each published date."""
    rows = connection.execute(select(closes.c.accounting_date, closes.c.head).where(closes.c.head.is_not(None)))
    return {row.accounting_date: row.head for row in rows.all()}


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
