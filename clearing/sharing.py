"""Who gets what of a frozen date's money, exactly.

Reads the date's rows and gives, per pool and agreement, by how much each party's exact share has moved since the close before.
What one leg's operator receives is summed in the database; what several share is looked at traveller by traveller, and only for
those who rode with several. A late item counts with the difference that it makes in its traveller's record: what is published so
far is always the share of today's lines as they stood at that close."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

import msgspec
from sqlalchemy import Connection

from clearing import pools, share_store, store
from clearing.agreements import LEG_KINDS, LONG, RIDERS, Agreement, Agreements, period_of, product_of
from clearing.bags import BagLine, BagRide, Pool, alone, corrections
from clearing.pools import Shares
from clearing.scan import Scan, shared_days
from clearing.share_store import DayUse, RideRow
from clearing.store import PoolRow
from fare_engine.booking import Record
from fare_engine.errors import CloseError
from fare_engine.money import PARTS
from fare_engine.tariff.compile import CapScope

CapScopes = Mapping[str, CapScope]
"""cap → the networks whose legs it counts (none: all)."""


class Sharing(msgspec.Struct):
    """By how much exact shares move at a close, and what later closes need to know of it."""

    changes: dict[Pool, Shares]
    used: list[DayUse]
    """What products released and paid under this date."""
    long_travellers: set[tuple[str, str]]
    """(last date of a week or month, traveller) whose money is shared anew when that period ends."""


def share(
    connection: Connection, scanned: Scan, agreements: Agreements, caps: CapScopes, date: str, before: str | None
) -> Sharing:
    """The movement of all exact shares at the close of `date`; `before` is the close before it."""
    changes: dict[Pool, Shares] = defaultdict(dict)
    add_own(changes, scanned.rows, agreements)
    long_travellers = _add_corrections(changes, connection, scanned, agreements, caps, date, before)
    add_rides(changes, scanned.rides, agreements)
    used = _uses(scanned.rows, date)
    _add_products(changes, connection, used, agreements, date, before)
    return Sharing(dict(changes), used, long_travellers)


def share_of_date(
    connection: Connection, agreements: Agreements, caps: CapScopes, service_date: str, through: str
) -> tuple[list[PoolRow], list[RideRow], dict[Pool, Shares]]:
    """Everything that is for one service date, as known when `through` was closed: its rows, rides and exact shares. The sum over
    all service dates is what was published by then; any agreements may be asked, not only those in force."""
    rows = store.rows_of_service_date(connection, service_date, through)
    rides = share_store.rides_of_service_date(connection, service_date, through)
    changes: dict[Pool, Shares] = defaultdict(dict)
    add_own(changes, rows, agreements)
    weighing = [row for row in agreements.agreements if row.weighs and row.holds_on(service_date)]
    if weighing:
        apart = share_store.moved_after(connection, service_date, through)
        apart |= share_store.journeys_begun_before(connection, service_date)
        apart |= share_store.journeys_gone_on(connection, service_date)
        for row in weighing:
            if row.scope in LONG:
                apart |= {name for name, _ in share_store.travellers_of(connection, service_date, row)}
        several = share_store.several(connection, service_date)
        days = shared_days(connection, service_date, several - apart, with_rides=needs_rides(weighing))
        for lines, ridden in days:
            _add(changes, corrections(lines, ridden, agreements, caps, through, service_date))
        for record in share_store.records(connection, apart):
            _add(changes, corrections(*bag_of(record, through), agreements, caps, through, service_date))
    add_rides(changes, rides, agreements)
    for product in sorted({use.product_id for use in share_store.uses_of_date(connection, service_date, through)}):
        first, last = _period(agreements, product, service_date)
        held = share_store.list_uses(connection, product, first, last, f"{through}~")
        _add(changes, product_shares(held, agreements, through, service_date))
    return rows, rides, dict(changes)


# ---- legs and caps


def add_own(changes: dict[Pool, Shares], rows: Iterable[PoolRow], agreements: Agreements) -> None:
    """Each leg's money as if nobody else had carried its rider: its operator's, or agreed shares of it."""
    for row in rows:
        if row.kind not in LEG_KINDS and row.kind != "cap":
            continue
        if row.operator_id is None:
            raise CloseError(f"{row.legs} lines {row.kind} {row.rule_id} of {row.service_date} name no operator")
        product = product_of(row.kind, row.rule_id)
        for paid_by, amount in ((RIDERS, row.amount), (row.bearer, row.funded)):
            if not amount:
                continue
            agreement = agreements.find(row.kind, row.rule_id, row.network_id, paid_by, row.service_date, (row.operator_id,))
            debtor = "rider" if paid_by == RIDERS else paid_by
            where = f"cap:{row.rule_id}" if row.kind == "cap" else row.network_id
            pools.add(
                changes[f"{debtor}|{where}|{product}", agreement.agreement_id],
                alone(agreement, row.operator_id, amount),
            )


def _add_corrections(
    changes: dict[Pool, Shares],
    connection: Connection,
    scanned: Scan,
    agreements: Agreements,
    caps: CapScopes,
    date: str,
    before: str | None,
) -> set[tuple[str, str]]:
    """What journeys, days, weeks and months of several operators move; the travellers whose longer periods are still open."""
    weighing = agreements.weighing(date)
    if not weighing:
        return set()
    anew = scanned.late | share_store.long_travellers(connection, date)
    if any(row.scope == "journey" for row in weighing):
        anew |= share_store.journeys_begun_before(connection, date)
    for lines, rides in shared_days(connection, date, scanned.several - anew, with_rides=needs_rides(weighing)):
        _add(changes, corrections(lines, rides, agreements, caps, date))
    for record in share_store.records(connection, anew):
        now = bag_of(record, date)
        _add(changes, corrections(*now, agreements, caps, date))
        if before is not None:
            _add(changes, corrections(*bag_of(record, before), agreements, caps, before), sign=-1)
    return _still_open(connection, weighing, date)


def needs_rides(weighing: Iterable[Agreement]) -> bool:
    """Whether fares alone do not tell the weights."""
    return any(row.scope == "journey" or row.method in ("tariff_km", "passenger_km", "boardings") for row in weighing)


def _add(changes: dict[Pool, Shares], more: Mapping[Pool, Shares], sign: int = 1) -> None:
    for key, shares in more.items():
        pools.add(changes[key], shares, sign)


def bag_of(record: Record, through: str) -> tuple[list[BagLine], dict[str, BagRide]]:
    """A traveller's lines and rides as they stood when a date was closed."""
    lines = []
    for booked in record.booked.values():
        line = booked.as_of(through)
        if line is not None and line.kind not in ("hold", "sale", "release", "expiry"):
            lines.append(
                BagLine(
                    line.leg_id,
                    line.kind,
                    line.rule_id,
                    line.bearer,
                    booked.operator_id,
                    booked.network_id,
                    booked.service_date,
                    line.amount,
                    line.funded,
                )
            )
    rides = {}
    for leg_id, held in record.rides.items():
        ride = held.as_of(through)
        if ride is not None:
            rides[leg_id] = BagRide(ride.journey, ride.persons, ride.distance_m)
    return lines, rides


def _still_open(connection: Connection, weighing: Iterable[Agreement], date: str) -> set[tuple[str, str]]:
    """Who rode under an agreement over a week or month that ends later: then all of it is looked at once more."""
    found = set()
    for row in weighing:
        if row.scope in LONG:
            travellers = share_store.travellers_of(connection, date, row)
            found |= {(last, name) for name, on in travellers if (last := period_of(row.scope, on)[1]) > date}
    return found


# ---- amounts for rides


def add_rides(changes: dict[Pool, Shares], rides: Iterable[RideRow], agreements: Agreements) -> None:
    """What is paid for each ride: by agreements of an amount a ride, and by subsidies."""
    for row in rides:
        if row.operator_id is None:
            continue
        for word, name, payer, amount in agreements.amounts_for(
            row.network_id, row.route_id, row.rider_category, row.service_date
        ):
            _pay(changes[f"{word}|{name}|{row.operator_id}", name], payer, row.operator_id, amount * row.persons)


def _pay(shares: Shares, payer: str, payee: str, amount: int) -> None:
    pools.add(shares, {payee: amount * PARTS})
    pools.add(shares, {payer: amount * PARTS}, -1)


# ---- passes and books


def _uses(rows: Iterable[PoolRow], date: str) -> list[DayUse]:
    """What each product released, and whose rides it paid, by service date."""
    found: dict[tuple[str, str, str, str], list[int]] = {}
    for row in rows:
        if not row.bearer.startswith("product:"):
            continue
        product = row.bearer.partition(":")[2]
        if row.kind in ("release", "expiry"):
            found.setdefault((product, row.service_date, row.kind, ""), [0, 0])[0] += row.funded
        elif row.kind == "product" and row.operator_id is not None:
            use = found.setdefault((product, row.service_date, "use", row.operator_id), [0, 0])
            use[0] -= row.amount
            use[1] += row.legs
    return [DayUse(date, *key, amount, legs) for key, (amount, legs) in sorted(found.items()) if amount or legs]


def _add_products(
    changes: dict[Pool, Shares],
    connection: Connection,
    used: Iterable[DayUse],
    agreements: Agreements,
    date: str,
    before: str | None,
) -> None:
    """Passes and ended books: what a day, week or month released is shared by the rides that the product paid in it."""
    moved = {(use.product_id, use.service_date) for use in used}
    long_rows = [row for row in agreements.agreements if row.covers == "products" and row.scope in LONG]
    for row in long_rows:
        first, last = period_of(row.scope, date)
        if last == date:
            moved |= share_store.uses_between(connection, first, last, row.products)
    periods = {(product, *_period(agreements, product, on)) for product, on in moved}
    for product, first, last in sorted(periods):
        held = share_store.list_uses(connection, product, first, last, date)
        _add(changes, product_shares([*held, *_between(used, product, first, last)], agreements, date))
        if before is not None:
            _add(changes, product_shares(held, agreements, before), sign=-1)


def _period(agreements: Agreements, product: str, on: str) -> tuple[str, str]:
    for row in agreements.agreements:
        if row.fits("release", f"/{product}", None, f"product:{product}", on):
            return period_of(row.scope, on)
    return on, on


def _between(uses: Iterable[DayUse], product: str, first: str, last: str) -> Iterator[DayUse]:
    return (use for use in uses if use.product_id == product and first <= use.service_date <= last)


def product_shares(uses: Iterable[DayUse], agreements: Agreements, through: str, only: str | None = None) -> dict[Pool, Shares]:
    """The exact shares of what one product released (for `only` one service date), as known when `through` is closed: a period
    that has not ended by then is shared day by day."""
    released: dict[tuple[str, str, str], int] = defaultdict(int)
    weights: dict[str, list[tuple[str, int, int]]] = defaultdict(list)
    for use in uses:
        if use.kind == "use":
            weights[use.service_date].append((use.operator_id, use.amount, use.legs))
        else:
            released[use.kind, use.product_id, use.service_date] += use.amount
    found: dict[Pool, Shares] = defaultdict(dict)
    for (kind, product, on), amount in sorted(released.items()):
        if only not in (None, on):
            continue
        agreement = agreements.find(kind, f"/{product}", None, f"product:{product}", on)
        first, last = period_of(agreement.scope, on)
        if last > through:
            first = last = on
        if agreement.method == "use":
            rode: dict[str, int] = defaultdict(int)
            for day in weights:
                if first <= day <= last:
                    for operator_id, fares, legs in weights[day]:
                        rode[operator_id] += legs if agreement.weigh_by == "boardings" else fares
            shares = pools.by_weights(amount, rode, agreement.without_use)
        else:
            shares = alone(agreement, "", amount)
        pools.add(found[f"product:{product}|{kind}|{product}", agreement.agreement_id], shares)
    return dict(found)
