"""The second half of the auditor: who should have been given what, from audited rides and `clearing.toml` alone.

Written apart from the close and on purpose in another way: it knows no pools, no close before and no sums of the database, only
rides, what products released and the words of docs/clearing.md. Each piece of a ride's money is given by the weights of whoever
its agreement names. It gives each party's exact sum for all service dates up to one, as a fraction. Fees are taken of what was
published, in whole units, so they are left to the close."""

from __future__ import annotations

import tomllib
from calendar import monthrange
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, timedelta
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import msgspec

from clearing.auditor import AuditedLeg
from fare_engine.errors import CloseError


class Released(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a pass or book that is given to those whose rides it paid: for a service date."""

    product_id: str
    service_date: str
    amount: int


class Sharing:
    """Shares rides out by a `clearing.toml`, for the service dates up to one. `cap_networks` are the networks whose rides each
    cap counts; none: all."""

    def __init__(self, path: Path, cap_networks: Mapping[str, frozenset[str]], through: str) -> None:
        self._agreed = _Agreed(tomllib.loads(path.read_text(encoding="utf-8-sig")))
        self._cap_networks = cap_networks
        self._through = through

    def rides(self, travellers: Iterable[Iterable[AuditedLeg]]) -> SharedRides:
        """What some travellers' rides give: each one's rides together, for agreements may look at them so. CloseError for money
        that no row covers, and for a ride that is weighed by a distance which nobody knows."""
        shared = SharedRides()
        for legs in travellers:
            ridden = [leg for leg in legs if leg.service_date <= self._through and _is_priced(leg)]
            near = _Near(ridden, self._through)
            for leg in ridden:
                _share_leg(shared.sums, self._agreed, leg, near, self._cap_networks)
                if leg.product is not None and leg.operator_id is not None:
                    shared.used.add("boardings", leg, 1)
                    shared.used.add("standalone_fares", leg, leg.fare)
        return shared

    def totals(self, shared: SharedRides, released: Iterable[Released]) -> dict[str, Fraction]:
        """What everybody should have been given, of all rides and of what products released. CloseError as above."""
        sums = _Sums()
        sums.add(shared.sums)
        for part in released:
            if part.service_date <= self._through:
                _share_product(sums, self._agreed, part, shared.used, self._through)
        return sums.totals()


class SharedRides:
    """What some rides give everybody, and which products paid them."""

    def __init__(self) -> None:
        self.sums = _Sums()
        self.used = _Used()

    def add(self, other: SharedRides) -> None:
        """Other travellers' rides, too."""
        self.sums.add(other.sums)
        self.used.add_all(other.used)


def _is_priced(leg: AuditedLeg) -> bool:
    return leg.operator_id is not None and leg.status not in ("open", "cancelled", "unknown")


# ---- the agreements, as written

_Row: TypeAlias = Mapping[str, Any]
_ONE_PARTY = ("own_leg", "gross_cost", "per_ride")
_WORDS = {"discount": "discounts", "transfer": "transfers", "cap": "caps"}


class _What(NamedTuple):
    """What of a ride's money something is, in the words of the agreements."""

    covers: str
    """The word beside `legs` that covers it."""
    paid_by: str
    network_id: str | None
    on: str
    rule: str = ""
    product: str = ""


class _Agreed:
    """A `clearing.toml`, with a memory of which rows fit what."""

    def __init__(self, toml: Mapping[str, Any]) -> None:
        self._rows: list[_Row] = toml["agreements"]
        self._subsidies: list[_Row] = toml.get("subsidies", [])
        self._fitting: dict[_What, list[_Row]] = {}

    def fitting(self, what: _What) -> list[_Row]:
        """The rows for some money, in file order; who took part is not looked at."""
        if what not in self._fitting:
            self._fitting[what] = [row for row in self._rows if _fits(row, what)]
        return self._fitting[what]

    def subsidies(self, leg: AuditedLeg) -> Iterator[_Row]:
        """Those for a ride."""
        for row in self._subsidies:
            conditions = {"networks": leg.network_id, "routes": leg.route_id, "rider_categories": leg.rider_category}
            if _holds_on(row, leg.service_date) and _names(row, conditions):
                yield row


def _fits(row: _Row, what: _What) -> bool:
    conditions = {"networks": what.network_id, "rules": what.rule, "products": what.product, "paid_by": what.paid_by}
    covered = (what.covers,) if what.covers in ("caps", "products") else (what.covers, "legs")
    return row["covers"] in covered and _holds_on(row, what.on) and _names(row, conditions)


def _holds_on(row: _Row, on: str) -> bool:
    return str(row["valid_from"]) <= on <= str(row.get("valid_to", "9999"))


def _names(row: _Row, conditions: Mapping[str, str | None]) -> bool:
    """Whether every list of the row has its value in it; a list that is empty or left out names everything."""
    return all(not row.get(field) or value in row[field] for field, value in conditions.items())


# ---- rides


class _Near:
    """One traveller's rides, by what agreements look at together."""

    def __init__(self, legs: Iterable[AuditedLeg], through: str) -> None:
        self._legs = list(legs)
        self._through = through
        self._together: dict[str, dict[str, list[AuditedLeg]]] = {}

    def of(self, scope: str, leg: AuditedLeg) -> list[AuditedLeg]:
        """The rides of the same journey, day, week or month as a ride, itself among them."""
        if scope not in self._together:
            found = self._together[scope] = defaultdict(list)
            for other in self._legs:
                found[self._of_which(scope, other)].append(other)
        return self._together[scope][self._of_which(scope, leg)]

    def _of_which(self, scope: str, leg: AuditedLeg) -> str:
        if scope == "leg":
            return leg.leg_id
        return leg.journey if scope == "journey" else _days_together(scope, leg.service_date, self._through)[0]


@cache
def _days_together(scope: str, on: str, through: str) -> tuple[str, ...]:
    """The days that are shared as one with a day: all of its week or month once that has ended, else the day alone."""
    first = day = date.fromisoformat(on)
    length = 1
    if scope == "week":
        first, length = day - timedelta(days=day.weekday()), 7
    elif scope == "month":
        first, length = day.replace(day=1), monthrange(day.year, day.month)[1]
    days = tuple((first + timedelta(days=number)).isoformat() for number in range(length))
    return days if days[-1] <= through else (on,)


def _share_leg(sums: _Sums, agreed: _Agreed, leg: AuditedLeg, near: _Near, cap_networks: Mapping[str, frozenset[str]]) -> None:
    """All of a ride's money: what its rider and others pay for it, and amounts for the ride itself."""
    for what, amount in _money(leg):
        row = _find_row(agreed, what, leg, near)
        if amount:
            if row is None:
                raise CloseError(f"the auditor finds no agreement for {what}")
            sums.give(amount, _parties(row, what, leg, near, cap_networks))
        if what.covers == "fares" and row is not None and row["method"] == "per_ride":
            sums.pay(row["residual"], leg, row["amount"])
    for subsidy in agreed.subsidies(leg):
        sums.pay(subsidy["paid_by"], leg, subsidy["amount"])


def _money(leg: AuditedLeg) -> Iterator[tuple[_What, int]]:
    """A ride's money in pieces: its fares, even where they are zero, and what was taken off or paid instead."""
    place = (leg.network_id, leg.service_date)
    yield _What("fares", "riders", *place), leg.fare + leg.companions
    if leg.product is not None:
        yield _What("coupons", "riders", *place, product=leg.product), -leg.fare
        yield _What("coupons", f"product:{leg.product}", *place, product=leg.product), leg.coupon
    for kind, rule, bearer, amount in leg.off:
        yield _What(_WORDS[kind], "riders", *place, rule), -amount
        if bearer != "operators":
            yield _What(_WORDS[kind], bearer, *place, rule), amount


def _find_row(agreed: _Agreed, what: _What, leg: AuditedLeg, near: _Near) -> _Row | None:
    """The first row that covers some money, also by who took part."""
    for row in agreed.fitting(what):
        pair = row.get("operators")
        if not pair or all(other.operator_id in pair for other in near.of(row["scope"], leg)):
            return row
    return None


def _parties(
    row: _Row, what: _What, leg: AuditedLeg, near: _Near, cap_networks: Mapping[str, frozenset[str]]
) -> Mapping[str, int]:
    """Who is given a ride's money, each with his weight."""
    operator = leg.operator_id or ""
    if row["method"] == "fixed":
        return row["shares"]  # type: ignore[no-any-return]  # party → weight, as the file has it
    if row["method"] in _ONE_PARTY:
        return {row.get("residual", operator): 1}
    networks = cap_networks.get(what.rule) if what.covers == "caps" else row.get("networks")
    counted = [other for other in near.of(row["scope"], leg) if not networks or other.network_id in networks]
    if all(other.operator_id == operator for other in counted):
        return {operator: 1}
    weights: dict[str, int] = defaultdict(int)
    for other in counted:
        weights[other.operator_id or ""] += _weight(row, other)
    return _positive(weights, row)


def _weight(row: _Row, leg: AuditedLeg) -> int:
    if row["method"] == "standalone_fares":
        return leg.fare + leg.companions
    if row["method"] == "paid_fares":
        return leg.before_caps
    if row["method"] == "boardings":
        return leg.persons
    metres = row.get("unknown_m", {}).get(leg.network_id) if leg.distance_m is None else leg.distance_m
    if metres is None:
        raise CloseError(f"the auditor does not know how far {leg.leg_id} went, which {row['agreement_id']} weighs")
    return int(metres) * (leg.persons if row["method"] == "passenger_km" else 1)


def _positive(weights: Mapping[str, int], row: _Row) -> Mapping[str, int]:
    """Weights above zero; without any the agreed ones, else equal ones for all who were there."""
    found = {party: weight for party, weight in weights.items() if weight > 0}
    return found or row.get("without_use") or dict.fromkeys(weights, 1)


# ---- passes and books


class _Used:
    """Of the rides that products paid, each operator's weight."""

    def __init__(self) -> None:
        self._weights: defaultdict[tuple[str, str, str], Counter[str]] = defaultdict(Counter)

    def add(self, weighed_by: str, leg: AuditedLeg, weight: int) -> None:
        """One ride, by one way of weighing."""
        key = (weighed_by, leg.product or "", leg.service_date)
        self._weights[key][leg.operator_id or ""] += weight

    def add_all(self, other: _Used) -> None:
        """Other travellers' rides, too."""
        for key, weights in other._weights.items():
            self._weights[key].update(weights)

    def of(self, weighed_by: str, product_id: str, on: str) -> Mapping[str, int]:
        """Operator → weight of the rides that a product paid on a day."""
        return self._weights.get((weighed_by, product_id, on), {})


def _share_product(sums: _Sums, agreed: _Agreed, part: Released, used: _Used, through: str) -> None:
    """What a product released for a day, by the rides of everybody that it paid then, or in that week or month."""
    what = _What("products", f"product:{part.product_id}", None, part.service_date, product=part.product_id)
    row = next(iter(agreed.fitting(what)), None)
    if row is None:
        raise CloseError(f"the auditor finds no agreement for {what}")
    if row["method"] != "use":
        sums.give(part.amount, row.get("shares") or {row["residual"]: 1})
        return
    weights: dict[str, int] = defaultdict(int)
    for on in _days_together(row.get("scope", "service_day"), part.service_date, through):
        for operator, weight in used.of(row.get("weigh_by", "standalone_fares"), part.product_id, on).items():
            weights[operator] += weight
    sums.give(part.amount, _positive(weights, row))


# ---- sums


class _Sums:
    """Each party's sum, kept by denominators: thousands of different ones are added at the end only."""

    def __init__(self) -> None:
        self._sums: defaultdict[str, Counter[int]] = defaultdict(Counter)

    def give(self, amount: int, weights: Mapping[str, int]) -> None:
        """Give an amount to some parties by their weights."""
        whole = sum(weights.values())
        for party, weight in weights.items():
            self._sums[party][whole] += amount * weight

    def pay(self, payer: str, leg: AuditedLeg, amount: int) -> None:
        """Pay a ride's operator an amount for each person."""
        self.give(amount * leg.persons, {leg.operator_id or "": 1})
        self.give(-amount * leg.persons, {payer: 1})

    def add(self, other: _Sums) -> None:
        """What was given of other rides, too."""
        for party, parts in other._sums.items():
            self._sums[party].update(parts)

    def totals(self) -> dict[str, Fraction]:
        """The sums as fractions."""
        return {party: _total(parts) for party, parts in self._sums.items()}


def _total(parts: Mapping[int, int]) -> Fraction:
    """The sum of numerators by denominator, two and two, so that most numbers stay small."""
    found = [Fraction(numerator, denominator) for denominator, numerator in parts.items()]
    while len(found) > 1:
        found = [sum(found[start : start + 2], Fraction(0)) for start in range(0, len(found), 2)]
    return found[0]
