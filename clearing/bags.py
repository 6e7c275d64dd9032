"""What several operators share of one traveller's rides: journeys, days, weeks and months, and what caps took off them.

Pure. A **bag** is what an agreement looks at together. Its money is split by the weights of all its legs. `corrections` gives by
how much that differs from giving each leg's money as if nobody else had carried its rider, so that bags of one operator, which
are nearly all, need never be looked at: they differ by nothing. The differences of a bag sum to zero in every pool."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import msgspec

from clearing import pools
from clearing.agreements import LONG, RIDERS, Agreement, Agreements, period_of, product_of
from clearing.pools import Shares
from fare_engine import ledger
from fare_engine.errors import CloseError
from fare_engine.money import PARTS
from fare_engine.tariff.compile import CapScope

_STANDALONE = frozenset(("list_fare", "companions"))


class BagLine(msgspec.Struct, frozen=True, gc=False):
    """A booked line, or the sum of its movements."""

    leg_id: str
    kind: str
    rule_id: str
    bearer: str
    operator_id: str | None
    network_id: str | None
    service_date: str
    amount: int
    funded: int


class BagRide(msgspec.Struct, frozen=True, gc=False):
    """What of a leg agreements weigh."""

    journey: str
    persons: int
    distance_m: int | None


Pool = tuple[str, str]
"""(pool, agreement)."""


class _Leg(msgspec.Struct, gc=False):
    """A leg's weights, as its lines and its ride give them."""

    leg_id: str
    operator_id: str
    network_id: str | None
    service_date: str
    journey: str
    persons: int = 1
    distance_m: int | None = None
    standalone_fares: int = 0
    paid_fares: int = 0
    surcharges: int = 0


def corrections(
    lines: Iterable[BagLine],
    rides: Mapping[str, BagRide],
    agreements: Agreements,
    caps: Mapping[str, CapScope],
    through: str,
    only: str | None = None,
) -> dict[Pool, Shares]:
    """By how much one traveller's shares differ from what each leg's operator alone would get, as known when the accounting
    date `through` is closed: a week or month that has not ended by then is shared day by day. `only` leaves out the money of all
    service dates but one; all legs are weighed."""
    listed = list(lines)
    legs = _legs(listed, rides)
    found: dict[Pool, Shares] = defaultdict(dict)
    taking_part: dict[tuple[str, str, str], list[_Leg]] = {}
    for line in listed:
        if line.operator_id is None or only not in (None, line.service_date):
            continue
        for paid_by, amount in ((RIDERS, line.amount), (line.bearer, line.funded)):
            if not amount:
                continue
            choice = _choose(line, paid_by, legs, agreements, taking_part, through)
            if choice is None:
                continue
            agreement, bag = choice
            shares = _shares(agreement, bag, line, amount, caps.get(line.rule_id.partition("/")[0]))
            pools.add(shares, alone(_without_others(line, paid_by, agreements), line.operator_id, amount), -1)
            if any(shares.values()):
                pools.add(found[pool_of(line, paid_by), agreement.agreement_id], shares)
    return dict(found)


def alone(agreement: Agreement, operator_id: str, amount: int) -> Shares:
    """The shares of a leg's money before other legs are looked at."""
    if agreement.method == "fixed":
        return pools.by_weights(amount, agreement.shares, {})
    return {agreement.residual or operator_id: amount * PARTS}


def _without_others(line: BagLine, paid_by: str, agreements: Agreements) -> Agreement:
    """The agreement by which the line's money was given before other legs were looked at."""
    alone_there = () if line.operator_id is None else (line.operator_id,)
    return agreements.find(line.kind, line.rule_id, line.network_id, paid_by, line.service_date, alone_there)


def pool_of(line: BagLine, paid_by: str) -> str:
    """The pool of a line's money, as it was booked (`ledger.pool_of`)."""
    debtor = "rider" if paid_by == RIDERS else paid_by
    if line.kind == "cap":
        return f"{debtor}|cap:{line.rule_id}|{ledger.SINGLE}"
    return f"{debtor}|{line.network_id}|{product_of(line.kind, line.rule_id)}"


def _legs(lines: Iterable[BagLine], rides: Mapping[str, BagRide]) -> dict[str, _Leg]:
    legs: dict[str, _Leg] = {}
    for line in lines:
        if line.operator_id is None or line.kind == "cap":
            continue
        leg = legs.get(line.leg_id)
        if leg is None:
            ride = rides.get(line.leg_id)
            leg = legs[line.leg_id] = _Leg(line.leg_id, line.operator_id, line.network_id, line.service_date, line.leg_id)
            if ride is not None:
                leg.journey, leg.persons, leg.distance_m = ride.journey, ride.persons, ride.distance_m
        if line.kind in _STANDALONE:
            leg.standalone_fares += line.amount
        if line.kind == "surcharge":
            leg.surcharges += line.amount
        elif line.kind != "companions":
            leg.paid_fares += line.amount
    return legs


def _choose(
    line: BagLine,
    paid_by: str,
    legs: Mapping[str, _Leg],
    agreements: Agreements,
    taking_part: dict[tuple[str, str, str], list[_Leg]],
    through: str,
) -> tuple[Agreement, list[_Leg]] | None:
    """The agreement for a line and the legs it looks at; None where other legs change nothing."""
    passed_over = False
    for row in agreements.agreements:
        if not row.fits(line.kind, line.rule_id, line.network_id, paid_by, line.service_date):
            continue
        if not row.weighs:
            return (row, []) if passed_over else None
        bag = _bag(row, line, legs, taking_part, through)
        if row.operators and not {leg.operator_id for leg in bag} <= set(row.operators):
            passed_over = True
            continue
        return row, bag
    return None


def _bag(
    row: Agreement,
    line: BagLine,
    legs: Mapping[str, _Leg],
    taking_part: dict[tuple[str, str, str], list[_Leg]],
    through: str,
) -> list[_Leg]:
    """The legs that an agreement looks at for a line: of its journey, of its service day, or of its week or month once over."""
    if row.scope == "journey":
        journey = legs[line.leg_id].journey if line.leg_id in legs else line.leg_id
        key = ("journey", journey, "")
        if key not in taking_part:
            taking_part[key] = [leg for leg in legs.values() if leg.journey == journey]
        return taking_part[key]
    first, last = period_of(row.scope, line.service_date)
    if row.scope in LONG and last > through:
        first = last = line.service_date
    key = ("dates", first, last)
    if key not in taking_part:
        taking_part[key] = [leg for leg in legs.values() if first <= leg.service_date <= last]
    return taking_part[key]


def _shares(row: Agreement, bag: Iterable[_Leg], line: BagLine, amount: int, scope: CapScope | None) -> Shares:
    """A line's money by the weights of a bag; all of it is its operator's where nobody else was there. For a cap only the
    networks count that it counts, and surcharges only where it caps them."""
    assert line.operator_id is not None
    surcharges = line.kind == "cap" and scope is not None and scope.counts == "surcharge"
    networks = scope.networks if scope is not None and line.kind == "cap" else row.networks
    counted = [leg for leg in bag if not networks or leg.network_id in networks]
    if all(leg.operator_id == line.operator_id for leg in counted):
        return alone(row, line.operator_id, amount)
    weights: dict[str, int] = {}
    for leg in counted:
        weights[leg.operator_id] = weights.get(leg.operator_id, 0) + (leg.surcharges if surcharges else _weight(row, leg))
    return pools.by_weights(amount, weights, row.without_use)


def _weight(row: Agreement, leg: _Leg) -> int:
    if row.method == "standalone_fares":
        return leg.standalone_fares
    if row.method == "paid_fares":
        return leg.paid_fares
    if row.method == "boardings":
        return leg.persons
    metres = leg.distance_m if leg.distance_m is not None else row.unknown_m.get(leg.network_id or "")
    if metres is None:
        raise CloseError(
            f"how far the leg {leg.leg_id} went is not known, and {row.agreement_id} has no unknown_m for {leg.network_id}"
        )
    return metres * leg.persons if row.method == "passenger_km" else metres
