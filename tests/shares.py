"""A few rides in two ways of telling: by lines, as the close sees them, and as the auditor audits them; and who is given what
of them by either."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from clearing.agreements import Agreements
from clearing.auditor import AuditedLeg, TakenOff
from clearing.auditor_shares import Released, SharedRides, Sharing
from clearing.bags import BagLine, BagRide, Pool, corrections
from clearing.pools import Shares, add
from clearing.share_store import DayUse, RideRow
from clearing.sharing import add_own, add_rides, product_shares
from clearing.store import PoolRow
from fare_engine.money import PARTS
from fare_engine.tariff.compile import CapScope

CAPS: Mapping[str, CapScope] = {"day": CapScope(frozenset(), "fare"), "joint": CapScope(frozenset(("metro",)), "fare")}
"""The caps of these rides: `day` counts all networks, `joint` the metro."""


@dataclass(frozen=True, kw_only=True)
class Trip:
    """A priced ride."""

    leg_id: str
    operator: str
    network: str
    on: str
    fare: int
    companions: int = 0
    persons: int = 1
    metres: int | None = None
    journey: str
    traveller: str = "ana"
    category: str = "adult"
    route: str | None = None
    off: tuple[TakenOff, ...] = ()
    product: str | None = None
    coupon: int = 0

    def audited(self) -> AuditedLeg:
        """The ride as the auditor has it."""
        taken = [amount for kind, _, _, amount in self.off if kind != "cap"]
        return AuditedLeg(
            leg_id=self.leg_id,
            service_date=self.on,
            operator_id=self.operator,
            status="complete",
            charge=None,  # no word of the agreements is about it
            held=0,
            funded={},
            version="now",
            network_id=self.network,
            fare=self.fare,
            before_caps=0 if self.product else self.fare - sum(taken),
            companions=self.companions,
            off=self.off,
            product=self.product,
            coupon=self.coupon,
            persons=self.persons,
            rider_category=self.category,
            route_id=self.route,
            distance_m=self.metres,
            journey=self.journey,
        )

    def lines(self) -> Iterator[BagLine]:
        """The ride as it is booked."""
        place = (self.operator, self.network, self.on)
        yield BagLine(self.leg_id, "list_fare", f"{self.network}/x", "rider", *place, self.fare, 0)
        if self.companions:
            yield BagLine(self.leg_id, "companions", f"{self.network}/x", "rider", *place, self.companions, 0)
        if self.product:
            rule, bearer = f"product/{self.product}", f"product:{self.product}"
            yield BagLine(self.leg_id, "product", rule, bearer, *place, -self.fare, self.coupon)
        for kind, rule, bearer, amount in self.off:
            yield BagLine(self.leg_id, kind, rule, bearer, *place, -amount, 0 if bearer == "operators" else amount)

    def row(self) -> RideRow:
        """The ride as amounts for rides see it."""
        return RideRow(self.operator, self.network, self.route, self.category, self.on, self.persons, 1, 0)


@dataclass
class Told:
    """Some travellers' rides, and what passes and books released."""

    trips: list[Trip] = field(default_factory=list)
    released: list[Released] = field(default_factory=list)

    def by_traveller(self) -> dict[str, list[Trip]]:
        """The rides of each."""
        found: dict[str, list[Trip]] = defaultdict(list)
        for trip in self.trips:
            found[trip.traveller].append(trip)
        return found


def by_the_close(told: Told, agreements: Agreements, through: str) -> dict[Pool, Shares]:
    """Exact shares by pool and agreement, as known when `through` is closed. As in a close, a traveller is only looked at who
    rode with several operators."""
    changes: dict[Pool, Shares] = defaultdict(dict)
    known = Told([trip for trip in told.trips if trip.on <= through], told.released)
    add_own(changes, [_pool_row(line) for trip in known.trips for line in trip.lines()], agreements)
    add_rides(changes, [trip.row() for trip in known.trips], agreements)
    uses = list(_uses(known, through))
    products = sorted({use.product_id for use in uses})
    found = [product_shares([use for use in uses if use.product_id == one], agreements, through) for one in products]
    for trips in known.by_traveller().values():
        if len({trip.operator for trip in trips}) > 1:
            rides = {trip.leg_id: BagRide(trip.journey, trip.persons, trip.metres) for trip in trips}
            found.append(corrections([line for trip in trips for line in trip.lines()], rides, agreements, CAPS, through))
    for shares_by_pool in found:
        for key, shares in shares_by_pool.items():
            add(changes[key], shares)
    return dict(changes)


def by_the_auditor(told: Told, path: Path, through: str) -> dict[str, Fraction]:
    """Each party's exact sum by `clearing.toml`, zeros left out."""
    sharing = Sharing(path, {cap: scope.networks for cap, scope in CAPS.items()}, through)
    shared = SharedRides()
    for trips in told.by_traveller().values():
        shared.add(sharing.rides([[trip.audited() for trip in trips]]))
    found = sharing.totals(shared, told.released)
    return {party: amount for party, amount in found.items() if amount}


def sums_of(changes: Mapping[Pool, Shares]) -> dict[str, Fraction]:
    """Each party's exact sum of all pools."""
    found: Shares = {}
    for shares in changes.values():
        add(found, shares)
    return {party: Fraction(parts, PARTS) for party, parts in found.items()}


def differences(one: Mapping[str, Fraction], other: Mapping[str, Fraction], splits: int) -> dict[str, Fraction]:
    """Where two ways of sharing differ: the close gives whole parts of a unit, so each of its splits may be one part off."""
    apart = {party: one.get(party, Fraction(0)) - other.get(party, Fraction(0)) for party in one.keys() | other.keys()}
    return {party: amount for party, amount in apart.items() if abs(amount) * PARTS > splits}


def _pool_row(line: BagLine) -> PoolRow:
    place = (line.operator_id, line.network_id, line.service_date)
    return PoolRow(line.kind, line.rule_id, line.bearer, *place, "rider", "", line.amount, line.funded, 1)


def _uses(told: Told, through: str) -> Iterator[DayUse]:
    for part in told.released:
        if part.service_date <= through:
            yield DayUse(part.service_date, part.product_id, part.service_date, "release", "", part.amount, 1)
    for trip in told.trips:
        if trip.product:
            yield DayUse(trip.on, trip.product, trip.on, "use", trip.operator, trip.fare, 1)


def clearing_toml(path: Path, *tables: str, rest: Sequence[str] = ()) -> Path:
    """A `clearing.toml` of the little city with these tables, and behind them the rest."""
    head = '[clearing]\nagreement_version = "1"\ncurrency = "VND"\n'
    path.write_text("\n".join([head, *tables, *rest]), encoding="utf-8")
    return path


def an_agreement(name: str, fields: str) -> str:
    """A row of `agreements`."""
    dated = "" if "valid_from" in fields else "valid_from = 2026-01-01\n"
    return f'[[agreements]]\nagreement_id = "{name}"\nname = {{ vi = "x", en = "x" }}\n{dated}{fields}\n'


def a_subsidy(fields: str) -> str:
    """A row of `subsidies`, which the city pays."""
    dated = "" if "valid_from" in fields else "valid_from = 2026-01-01\n"
    return f'[[subsidies]]\nsubsidy_id = "city-s"\nname = {{ vi = "x", en = "x" }}\n{dated}paid_by = "CITY"\n{fields}\n'


REST: Iterable[str] = (
    an_agreement("rest", 'covers = "legs"\nmethod = "own_leg"'),
    an_agreement("rest-of-caps", 'covers = "caps"\nmethod = "paid_fares"\nscope = "service_day"'),
    an_agreement("rest-of-products", 'covers = "products"\nmethod = "use"\nwithout_use = { RAIL = 2, BUSCO = 1 }'),
)
"""What covers all that other rows leave."""
