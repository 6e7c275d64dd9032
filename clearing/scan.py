"""One look at everything that is booked under an accounting date.

A close asks several questions of the same millions of rows. They are read once, and the questions are answered beside each
other: it costs a fraction of what as many sorted groups cost in the database."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import msgspec
from sqlalchemy import ARRAY, Column, ColumnElement, Connection, String, any_, cast, func, select

from clearing.agreements import LEG_KINDS, RIDERS, Agreement
from clearing.bags import BagLine, BagRide
from clearing.share_store import RideRow
from clearing.store import OF_THE_CLOSE, Moved, PoolRow, rows_of
from fare_engine.store.schema import legs, lines, postings

SHARED_KINDS = frozenset((*LEG_KINDS, "cap"))
_COLLECTOR = "collector:"


class Scan(msgspec.Struct):
    """What a date's lines and legs tell."""

    rows: list[PoolRow]
    """Sums by all that a statement distinguishes, in their order."""
    rides: list[RideRow]
    late: set[str]
    """Travellers of whom something moved for an earlier service date."""
    several: set[str]
    """Travellers who rode with several operators on the date itself and have lines that an agreement weighs."""


def scan(connection: Connection, date: str, weighing: Iterable[Agreement]) -> Scan:
    """Everything but the postings of an accounting date. `weighing`: the agreements that look at more than one leg."""
    found = Scan([], [], set(), set())
    _scan_lines(connection, date, found, list(weighing))
    _scan_legs(connection, date, found)
    return found


def _scan_lines(connection: Connection, date: str, found: Scan, weighing: list[Agreement]) -> None:
    columns = (
        lines.c.traveller_id,
        lines.c.generation,
        lines.c.amount,
        lines.c.funded,
        lines.c.payer,
        lines.c.kind,
        lines.c.rule_id,
        lines.c.bearer,
        lines.c.operator_id,
        lines.c.network_id,
        lines.c.service_date,
    )
    sums: dict[tuple[Any, ...], list[int]] = {}
    first_operator: dict[str, str] = {}
    late, several, weighed = found.late, found.several, set()
    statement = select(*columns).where(lines.c.accounting_date == date)
    for row in rows_of(connection, statement):
        collected = row[4].startswith(_COLLECTOR)
        key = row[4:] if collected else row[5:]
        sum_of = sums.get(key)
        if sum_of is None:
            sum_of = sums[key] = [0, 0, 0, _is_weighed(row, weighing)]
        sum_of[0] += row[2]
        sum_of[1] += row[3]
        sum_of[2] += -1 if row[1] % 2 else 1
        if row[10] != date:
            late.add(row[0])
        elif row[8] is not None and first_operator.setdefault(row[0], row[8]) != row[8] and row[5] in SHARED_KINDS:
            several.add(row[0])
        if sum_of[3]:
            weighed.add(row[0])
    several &= weighed
    rows = [PoolRow(*_as_pool_row(key), *numbers[:3]) for key, numbers in sums.items()]
    found.rows += sorted(rows, key=lambda row: tuple("" if part is None else part for part in msgspec.structs.astuple(row)))


def _is_weighed(row: tuple[Any, ...], weighing: list[Agreement]) -> bool:
    """Whether an agreement may look at more legs than its own for a line."""
    _, _, _, _, _, kind, rule_id, bearer, _, network_id, service_date = row
    return kind in SHARED_KINDS and any(
        agreement.fits(kind, rule_id, network_id, paid_by, service_date) for agreement in weighing for paid_by in (RIDERS, bearer)
    )


def _as_pool_row(key: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a sum is of, in the order of a row; who collected it stands first in the key of what somebody's till holds."""
    if len(key) == 6:
        return (*key, "rider", "")
    return (*key[1:], "collector", key[0][len(_COLLECTOR) :])


def _scan_legs(connection: Connection, date: str, found: Scan) -> None:
    columns = (
        legs.c.traveller_id,
        legs.c.generation,
        legs.c.persons,
        legs.c.distance_m,
        legs.c.operator_id,
        legs.c.network_id,
        legs.c.route_id,
        legs.c.rider_category,
        legs.c.service_date,
    )
    sums: dict[tuple[Any, ...], list[int]] = {}
    statement = select(*columns).where(legs.c.accounting_date == date)
    for row in rows_of(connection, statement):
        sum_of = sums.get(row[4:])
        if sum_of is None:
            sum_of = sums[row[4:]] = [0, 0, 0]
        sign = -1 if row[1] % 2 else 1
        sum_of[0] += sign * row[2]
        sum_of[1] += sign
        sum_of[2] += sign * (row[3] or 0) * row[2]
        if row[8] != date:
            found.late.add(row[0])
    in_order = sorted(sums.items(), key=lambda item: tuple("" if part is None else part for part in item[0]))
    found.rides += [RideRow(*key, *numbers) for key, numbers in in_order]


def shared_days(
    connection: Connection, date: str, names: set[str], *, with_rides: bool
) -> Iterator[tuple[list[BagLine], dict[str, BagRide]]]:
    """The lines (and rides) of some travellers on a service date, as booked under that date, by traveller."""
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
    if not names:
        return
    booked: dict[str, list[BagLine]] = {}
    this = (lines.c.accounting_date == date) & (lines.c.service_date == date)
    these = this & _among(connection, lines.c.traveller_id, names) & lines.c.kind.in_(SHARED_KINDS)
    for row in rows_of(connection, select(*columns).where(these)):
        booked.setdefault(row[0], []).append(BagLine(*row[1:]))
    rides = _rides(connection, date, names) if with_rides else {}
    for traveller in sorted(booked):
        yield booked[traveller], rides.get(traveller, {})


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


def movements(connection: Connection, accounting_date: str) -> dict[tuple[str, str], Moved]:
    """(account, code) → what moved under a date, without the postings of its own close. Riders' accounts are one: `rider`."""
    found: dict[tuple[str, str], Moved] = {}
    columns = (postings.c.debit, postings.c.credit, postings.c.code, postings.c.amount)
    these = (postings.c.accounting_date == accounting_date) & postings.c.code.not_in(OF_THE_CLOSE)
    for debit, credit, code, amount in rows_of(connection, select(*columns).where(these)):
        debited = ("rider" if debit.startswith("rider:") else debit, code)
        credited = ("rider" if credit.startswith("rider:") else credit, code)
        if debited not in found:
            found[debited] = Moved()
        if credited not in found:
            found[credited] = Moved()
        found[debited].debits += amount
        found[credited].credits += amount
    return found
