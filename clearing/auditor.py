"""The auditor: what each ride should have cost, from the recorded facts and docs/tariff.md alone.

It is a second pricing, written apart from the engine and on purpose in another way. It has no running state and no
counters: it pairs a traveller's taps into rides, and then asks one question after the other of the whole list: what is
the fare of each ride, which product pays it, what do discounts take off, which rides join, what do caps give back.
It reads the tariff's files itself. Where it and the engine differ, the documentation says which of them is wrong.

It decides amounts and who bears them; it leaves to the close what to do about a difference."""

from __future__ import annotations

import csv
import math
import tomllib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, TypeAlias
from zoneinfo import ZoneInfo

import msgspec

from fare_engine.errors import Fault, TariffError

# -------------------------------------------------------------------------------- what goes in and out


class RecordedTap(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="tap", gc=False):
    fact_id: str
    at_ms: int
    device_id: str
    epoch: str
    sequence: int
    action: Literal["entry", "exit", "board"]
    token_id: str
    media: str
    rider_category: str
    stop_id: str | None
    route_id: str | None
    operator_id: str | None = None
    persons: int = 1


class RecordedPurchase(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="purchase", gc=False):
    fact_id: str
    at_ms: int
    device_id: str
    epoch: str
    sequence: int
    token_id: str
    media: str
    rider_category: str
    product_id: str


class RecordedCancellation(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="cancellation", gc=False):
    fact_id: str
    at_ms: int
    device_id: str
    epoch: str
    sequence: int
    tap_id: str


RecordedFact: TypeAlias = RecordedTap | RecordedPurchase | RecordedCancellation

TakenOff: TypeAlias = tuple[Literal["discount", "transfer", "cap"], str, str, int]
"""What a rule took off a ride: (of which kind it is, the rule, its bearer, how much)."""

Status: TypeAlias = Literal[
    "open", "complete", "cancelled", "missing_exit", "missing_entry", "late_exit", "unknown"
]  # fmt: skip


class AuditedLeg(msgspec.Struct, frozen=True, kw_only=True):
    """What one ride should have cost its rider, and what others should have paid towards it."""

    leg_id: str
    service_date: str
    operator_id: str | None
    status: Status
    charge: int | None
    """None: the price is unknown, which is not zero. An open leg's is 0."""
    held: int
    funded: Mapping[str, int]
    """Bearer to amount: parties for discounts, transfers and caps, `product:<id>` for coupons. Never a zero."""
    version: str
    network_id: str | None = None
    fare: int = 0
    """What the ride alone would cost one person."""
    before_caps: int = 0
    """What it costs one person after products, discounts and transfers."""
    companions: int = 0
    off: tuple[TakenOff, ...] = ()
    """Sorted, one a rule and bearer, never of zero."""
    product: str | None = None
    """The pass or book that paid it, with its `coupon`."""
    coupon: int = 0
    persons: int = 1
    rider_category: str = ""
    route_id: str | None = None
    distance_m: int | None = None
    """How far a priced ride went; None: not known, as where nobody taps out."""
    journey: str = ""
    """The ride that began its journey: its own id where it follows none."""


class AuditedSale(msgspec.Struct, frozen=True, kw_only=True):
    sale_id: str
    service_date: str
    product_id: str
    charge: int


class Audit(msgspec.Struct, frozen=True, kw_only=True):
    legs: Mapping[str, AuditedLeg]
    sales: Mapping[str, AuditedSale]
    ignored: frozenset[str]
    """Exit taps where boarding is a whole leg, and purchases of what no tariff sold on that day."""


# ------------------------------------------------------------------------------ the tariff, as written

_Place: TypeAlias = tuple[int, int, str, str, int]
"""Where something happens in a traveller's day: its time, whether it happens by time passing (then after all facts of
that instant), and the device, epoch and sequence that order facts of one instant."""

_Frames: TypeAlias = frozenset[str] | None
"""Timeframe groups that hold at a tap; None where the tap is missing."""

_MINUTE_MS = 60_000
_DAY_MS = 86_400_000
_EARTH_M = 6_371_009
_WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_GTFS_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_NO_MINOR_UNITS = frozenset({"VND", "JPY", "KRW", "CLP", "ISK", "PYG", "UGX", "XAF", "XOF", "XPF"})


@dataclass(frozen=True, slots=True)
class _LegRule:
    network: str
    from_area: str
    to_area: str
    from_frame: str
    to_frame: str
    product: str
    priority: int


@dataclass(frozen=True, slots=True)
class _TapRule:
    networks: tuple[str, ...]
    taps: str
    hold: str
    longest_stay_ms: int | None
    missing_exit: str
    missing_entry: str
    late_exit: str
    missing_counts: bool
    grace_ms: int


@dataclass(frozen=True, slots=True)
class _Discount:
    rule_id: str
    kind: str
    value: Fraction
    bearer: str
    networks: tuple[str, ...]
    routes: tuple[str, ...]
    categories: tuple[str, ...]
    media: tuple[str, ...]
    except_media: tuple[str, ...]
    valid_from: date
    valid_to: date
    weekdays: tuple[str, ...]
    quota: int | None


@dataclass(frozen=True, slots=True)
class _Product:
    product_id: str
    kind: str
    price: int
    networks: tuple[str, ...]
    categories: tuple[str, ...]
    days: int
    starts: str
    trips: int
    covers_up_to: int | None


@dataclass(frozen=True, slots=True)
class _JoiningRule:
    rule_id: str
    from_networks: tuple[str, ...]
    to_networks: tuple[str, ...]
    window_ms: int
    window_from: str
    end: str
    resolution_ms: int
    max_transfers: int | None
    categories: tuple[str, ...]
    media: tuple[str, ...]
    off_first: int
    off_second: int
    bearer: str


@dataclass(frozen=True, slots=True)
class _Cap:
    rule_id: str
    period: str
    amount: int
    networks: tuple[str, ...]
    categories: tuple[str, ...]
    media: tuple[str, ...]
    bearer: str


@dataclass(frozen=True, slots=True)
class _Timeframe:
    group: str
    start_s: int
    end_s: int
    service_id: str


def _allows(wanted: Collection[str], value: str | None) -> bool:
    """An empty list means any."""
    return not wanted or value in wanted


def _names_medium(wanted: Collection[str], medium: str) -> bool:
    """`wallet` means every wallet, `wallet:zalopay` only that one."""
    return medium in wanted or medium.partition(":")[0] in wanted


def _only(found: set[str | None]) -> str | None:
    """The one thing found; None where there is none or several."""
    known = found - {None}
    return known.pop() if len(known) == 1 else None


@dataclass(eq=False, slots=True)
class _Version:
    version_id: str
    valid_from: date
    valid_to: date
    day_start: timedelta
    leg_rules: tuple[_LegRule, ...]
    has_priorities: bool
    prices: Mapping[tuple[str, str, str], int]
    tap_rules: tuple[_TapRule, ...]
    discounts: tuple[_Discount, ...]
    products: Mapping[str, _Product]
    joining: tuple[_JoiningRule, ...]
    caps: tuple[_Cap, ...]
    timeframes: tuple[_Timeframe, ...]
    named_networks: frozenset[str]
    named_from: frozenset[str]
    named_to: frozenset[str]
    named_from_frames: frozenset[str]
    named_to_frames: frozenset[str]

    def find_tap_rule(self, network: str) -> _TapRule | None:
        return next((rule for rule in self.tap_rules if _allows(rule.networks, network)), None)

    def find_price(self, product: str, category: str, medium: str) -> int | None:
        """The most specific row: category and medium, category, medium, neither."""
        base = medium.partition(":")[0]
        for key in ((category, medium), (category, base), (category, ""), ("", medium), ("", base), ("", "")):
            amount = self.prices.get((product, *key))
            if amount is not None:
                return amount
        return None


_Key: TypeAlias = tuple[Any, ...]


@dataclass(eq=False, slots=True)
class AuditTariff:
    """A city's tariff as its files say it, with a memory of what was looked up before."""

    zone: ZoneInfo
    versions: tuple[_Version, ...]
    always: _Version | None
    """The one version that prices everything, when its own folder was named."""
    network_of_route: Mapping[str, str]
    agency_of_route: Mapping[str, str]
    routes_at_stop: Mapping[str, frozenset[str]]
    stops_of_network: Mapping[str, tuple[str, ...]]
    areas_of_stop: Mapping[str, frozenset[str]]
    positions: Mapping[str, tuple[float, float]]
    """Of stops: latitude and longitude in degrees."""
    distances: Mapping[tuple[str, str], int]
    """Metres from one stop to another, as `distances.csv` has them."""
    services: Mapping[str, tuple[date, date, tuple[bool, ...]]]
    service_exceptions: Mapping[tuple[str, date], bool]
    _fares: dict[_Key, int | None] = field(default_factory=dict)
    _fitting: dict[_Key, tuple[_Discount, ...]] = field(default_factory=dict)
    _days: dict[tuple[int, timedelta], date] = field(default_factory=dict)
    _at: dict[int, tuple[_Version | None, date]] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path, adopt: Collection[str] = ()) -> AuditTariff:
        """A city's folder: its versions in force, and the adopted ones. A version's own folder: that version alone."""
        alone = (folder / "tariff.toml").is_file()
        city = folder.parent if alone else folder
        folders = [folder] if alone else sorted(path.parent for path in city.glob("*/tariff.toml"))
        versions, found = [], set()
        for place in folders:
            state, version = _read_version(place)
            found.add(version.version_id)
            if alone or state == "in_force" or version.version_id in adopt:
                versions.append(version)
        missing = [Fault(str(folder), name, "no such version to adopt") for name in sorted({*adopt} - found)]
        if missing or not versions:
            raise TariffError(missing or [Fault(str(folder), [*found], "no version in force here")])
        return _with_network(cls, city / "network", tuple(versions), versions[0] if alone else None)

    def cap_networks(self) -> dict[str, frozenset[str]]:
        """Cap → the networks whose rides it counts in any version; none: all."""
        found: dict[str, list[tuple[str, ...]]] = {}
        for version in self.versions:
            for cap in version.caps:
                found.setdefault(cap.rule_id, []).append(cap.networks)
        return {cap: frozenset().union(*lists) if all(lists) else frozenset() for cap, lists in found.items()}

    # -- when

    def _service_day(self, at_ms: int, day_start: timedelta) -> date:
        key = (at_ms // 1000, day_start)
        if key not in self._days:
            clock = datetime.fromtimestamp(at_ms // 1000, self.zone).replace(tzinfo=None)
            self._days[key] = (clock - day_start).date()
        return self._days[key]

    def version_at(self, at_ms: int) -> tuple[_Version | None, date]:
        """The version that prices a tap, and the tap's service day."""
        second = at_ms // 1000
        if second not in self._at:
            self._at[second] = self._version_at(at_ms)
        return self._at[second]

    def _version_at(self, at_ms: int) -> tuple[_Version | None, date]:
        if self.always is not None:
            return self.always, self._service_day(at_ms, self.always.day_start)
        best: tuple[_Version, date] | None = None
        for version in self.versions:
            day = self._service_day(at_ms, version.day_start)
            holds = version.valid_from <= day <= version.valid_to
            if holds and (best is None or version.valid_from > best[0].valid_from):
                best = (version, day)
        return best or (None, self._service_day(at_ms, self.versions[0].day_start))

    def _frames_at(self, version: _Version, at_ms: int) -> frozenset[str]:
        """Timeframes hold while `start <= t < end` on the calendar's local date."""
        if not version.timeframes:
            return frozenset()
        moment = datetime.fromtimestamp(at_ms // 1000, self.zone)
        second = moment.hour * 3600 + moment.minute * 60 + moment.second
        return frozenset(
            frame.group
            for frame in version.timeframes
            if frame.start_s <= second < frame.end_s and self._runs(frame.service_id, moment.date())
        )

    def _runs(self, service_id: str, day: date) -> bool:
        exception = self.service_exceptions.get((service_id, day))
        if exception is not None or service_id not in self.services:
            return bool(exception)
        start, end, weekdays = self.services[service_id]
        return start <= day <= end and weekdays[day.weekday()]

    # -- where

    def network_of(self, tap: RecordedTap) -> str | None:
        """That of its route; without a route, the one network whose routes call at the stop."""
        if tap.route_id is not None:
            return self.network_of_route.get(tap.route_id)
        return _only({self.network_of_route.get(route) for route in self.routes_at_stop.get(tap.stop_id or "", ())})

    def operator_of(self, tap: RecordedTap) -> str | None:
        if tap.operator_id is not None:
            return tap.operator_id
        if tap.route_id is not None:
            return self.agency_of_route.get(tap.route_id)
        return _only({self.agency_of_route.get(route) for route in self.routes_at_stop.get(tap.stop_id or "", ())})

    def metres(self, start: str | None, end: str | None) -> int | None:
        """How far it is from one stop to another: by `distances.csv` in either direction, else the great circle between them.
        None where it cannot be told."""
        if start is None or end is None:
            return None
        listed = self.distances.get((start, end), self.distances.get((end, start)))
        if listed is not None or start not in self.positions or end not in self.positions:
            return listed
        chord = math.dist(_on_the_unit_sphere(*self.positions[start]), _on_the_unit_sphere(*self.positions[end]))
        return round(2 * _EARTH_M * math.asin(min(1.0, chord / 2)))

    # -- how much

    def list_fare(self, version: _Version, network: str, start: RecordedTap, end: RecordedTap | None) -> int | None:
        """The table's fare from one tap to another; where boarding is a whole leg there is no other."""
        return self._fare(
            version, network, start.stop_id, end.stop_id if end else None, start.rider_category, start.media,
            self._frames_at(version, start.at_ms), self._frames_at(version, end.at_ms) if end else frozenset(),
        )  # fmt: skip

    def extreme_fare(self, version: _Version, network: str, word: str, known: RecordedTap, towards: bool) -> int | None:
        """The `highest_fare` or `lowest_fare` between the stop of the one known tap and any stop of the network."""
        frames = self._frames_at(version, known.at_ms)
        key = (version, network, word, known.stop_id, towards, known.rider_category, known.media, frames)
        if key not in self._fares:
            here = known.stop_id
            fares = [
                self._fare(version, network, other, here, known.rider_category, known.media, None, frames)
                if towards
                else self._fare(version, network, here, other, known.rider_category, known.media, frames, None)
                for other in self.stops_of_network.get(network, ())
            ]
            choose: Callable[[list[int]], int] = max if word == "highest_fare" else min
            priced = [fare for fare in fares if fare is not None]
            self._fares[key] = choose(priced) if priced else None
        return self._fares[key]

    def _fare(
        self, version: _Version, network: str, start: str | None, end: str | None, category: str, medium: str,
        from_frames: _Frames, to_frames: _Frames,
    ) -> int | None:  # fmt: skip
        key = (version, network, start, end, category, medium, from_frames, to_frames)
        if key not in self._fares:
            from_areas = self.areas_of_stop.get(start or "", frozenset())
            to_areas = self.areas_of_stop.get(end or "", frozenset())
            plain = not version.has_priorities

            def fits(written: str, here: _Frames, named: frozenset[str]) -> bool:
                """Without priorities an empty field excludes what other rows of that column name; else it means any."""
                if here is None:
                    return True
                return written in here if written else not (plain and here & named)

            fitting = [
                rule
                for rule in version.leg_rules
                if fits(rule.network, frozenset({network}), version.named_networks)
                and fits(rule.from_area, from_areas, version.named_from)
                and fits(rule.to_area, to_areas, version.named_to)
                and fits(rule.from_frame, from_frames, version.named_from_frames)
                and fits(rule.to_frame, to_frames, version.named_to_frames)
            ]
            top = max((rule.priority for rule in fitting), default=0)
            amounts = [version.find_price(rule.product, category, medium) for rule in fitting if rule.priority == top]
            self._fares[key] = min((amount for amount in amounts if amount is not None), default=None)
        return self._fares[key]

    def fitting_discounts(self, version: _Version, network: str, tap: RecordedTap, day: date) -> tuple[_Discount, ...]:
        """Those whose conditions hold for a ride that begins with this tap, in file order; quotas are not looked at."""
        key = (version, network, tap.route_id, tap.rider_category, tap.media, day)
        if key not in self._fitting:
            self._fitting[key] = tuple(
                rule
                for rule in version.discounts
                if _allows(rule.networks, network)
                and _allows(rule.routes, tap.route_id)
                and _allows(rule.categories, tap.rider_category)
                and (not rule.media or _names_medium(rule.media, tap.media))
                and not _names_medium(rule.except_media, tap.media)
                and rule.valid_from <= day <= rule.valid_to
                and _allows(rule.weekdays, _WEEKDAYS[day.weekday()])
            )
        return self._fitting[key]


# --------------------------------------------------------------------------------- a traveller's rides


@dataclass(eq=False, slots=True)
class _Ride:
    """One ride, filled in question by question."""

    first: RecordedTap
    version: _Version | None
    network: str | None
    rule: _TapRule | None
    day: date
    last: RecordedTap | None = None
    status: Status = "open"
    settled: _Place | None = None
    """Where in the day its fare was decided."""
    fare: int | None = None
    paid_by: _Bought | None = None
    coupon: int = 0
    off: list[tuple[_Discount, int]] = field(default_factory=list)
    transfers: list[tuple[_JoiningRule, int]] = field(default_factory=list)
    follows: _Ride | None = None
    """The ride that a joining rule put it together with."""
    depth: int = 0
    """How many transfers stand before it in its chain."""
    is_first_of_a_group: bool = False
    capped: list[tuple[str, str, int]] = field(default_factory=list)
    """(cap, bearer, amount)."""

    @property
    def limit_ms(self) -> int | None:
        stay = None if self.rule is None else self.rule.longest_stay_ms
        return None if stay is None else self.first.at_ms + stay

    def is_open_at(self, at_ms: int) -> bool:
        return self.status == "open" and (self.limit_ms is None or at_ms <= self.limit_ms)

    def is_overdue_at(self, at_ms: int) -> bool:
        return self.status == "open" and not self.is_open_at(at_ms)

    def settle(self, status: Status, place: _Place, last: RecordedTap | None = None) -> None:
        self.status, self.settled, self.last = status, place, last

    def settle_overdue(self, status: Status, last: RecordedTap | None = None) -> None:
        """The passing of time decided it, after every fact of its last good instant."""
        assert self.limit_ms is not None
        self.settle(status, (self.limit_ms, 1, *_place(self.first)[2:]), last)

    @property
    def lacks_a_tap(self) -> bool:
        return self.status in ("missing_exit", "missing_entry", "late_exit")

    @property
    def before_transfers(self) -> int:
        """What the traveller's own ride costs after products and discounts; companions are apart."""
        if self.fare is None or self.paid_by is not None:
            return 0
        return self.fare - sum(amount for _, amount in self.off)

    @property
    def before_caps(self) -> int:
        return self.before_transfers - sum(amount for _, amount in self.transfers)

    @property
    def companions(self) -> int:
        return (self.fare or 0) * (self.first.persons - 1)

    @property
    def began_its_journey(self) -> _Ride:
        return self if self.follows is None else self.follows.began_its_journey


@dataclass(frozen=True, eq=False, slots=True)
class _Bought:
    purchase: RecordedPurchase
    product: _Product
    day: date


def _place(fact: RecordedFact) -> _Place:
    return (fact.at_ms, 0, fact.device_id, fact.epoch, fact.sequence)


def audit_traveller(tariff: AuditTariff, facts: Iterable[RecordedFact], as_of_ms: int) -> Audit:
    """What one traveller's recorded facts should have cost, when time has passed to `as_of_ms` or the last of them."""
    acting = _acting(facts)
    as_of_ms = max([as_of_ms, *(fact.at_ms for fact in acting)])
    taps = [fact for fact in acting if isinstance(fact, RecordedTap)]
    purchases = [fact for fact in acting if isinstance(fact, RecordedPurchase)]
    bought = _bought(tariff, purchases)
    rides, ignored = _pair(tariff, taps, as_of_ms)
    settled = sorted((ride for ride in rides if ride.settled), key=lambda ride: ride.settled or ())
    for ride in settled:
        ride.fare = _list_fare(tariff, ride)
    for index, ride in enumerate(settled):
        if ride.status != "cancelled" and ride.fare and ride.settled is not None:
            _pay_by_product(ride, bought, settled[:index])
    for index, ride in enumerate(settled):
        if ride.status != "cancelled" and ride.fare is not None and ride.paid_by is None:
            ride.off = _discounts(tariff, ride, ride.fare, settled[:index])
    changes = _join(settled)
    _cap(changes)
    legs = {ride.first.fact_id: _audited(tariff, ride, _held(tariff, ride, bought, settled)) for ride in rides}
    sales = {one.purchase.fact_id: _sale(one) for one in bought}
    unsold = {purchase.fact_id for purchase in purchases if purchase.fact_id not in sales}
    return Audit(legs=legs, sales=sales, ignored=frozenset(ignored | unsold))


def _acting(facts: Iterable[RecordedFact]) -> list[RecordedFact]:
    """Each fact once, in their order, without the taps that an OUTCOME record voids."""
    once = {fact.fact_id: fact for fact in facts}
    void = {fact.tap_id for fact in once.values() if isinstance(fact, RecordedCancellation)}
    return sorted((fact for fact in once.values() if fact.fact_id not in void), key=_place)


def _bought(tariff: AuditTariff, purchases: Sequence[RecordedPurchase]) -> list[_Bought]:
    """The products bought, on the terms of the version in force at the sale."""
    bought = []
    for purchase in purchases:
        version, day = tariff.version_at(purchase.at_ms)
        product = version.products.get(purchase.product_id) if version else None
        if product:
            bought.append(_Bought(purchase, product, day))
    return bought


def _pair(tariff: AuditTariff, taps: Sequence[RecordedTap], as_of_ms: int) -> tuple[list[_Ride], set[str]]:
    """The rides of these taps, by their first taps, and the exit taps that mean nothing."""
    rides: list[_Ride] = []
    ignored: set[str] = set()
    for tap in taps:
        network = tariff.network_of(tap)
        here = [ride for ride in rides if network is not None and ride.network == network]
        own = [ride for ride in here if ride.first.token_id == tap.token_id]
        if tap.action == "exit" and _end_a_ride(tap, here, own):
            continue
        version, day = tariff.version_at(tap.at_ms)
        rule = version.find_tap_rule(network) if version and network is not None else None
        ride = _Ride(tap, version, network, rule, day)
        if rule is None:
            ride.settle("unknown", _place(tap))
        elif tap.action == "exit" and rule.taps == "entry":
            ignored.add(tap.fact_id)
            continue
        elif tap.action == "exit":
            ride.settle("missing_entry", _place(tap))
        elif rule.taps == "entry":
            ride.settle("complete", _place(tap))
        else:
            for left_open in own:
                if left_open.is_open_at(tap.at_ms):
                    left_open.settle("missing_exit", _place(tap))
        rides.append(ride)
    for ride in rides:
        if ride.is_overdue_at(as_of_ms):
            ride.settle_overdue("missing_exit")
    return rides, ignored


def _end_a_ride(tap: RecordedTap, here: Sequence[_Ride], own: Sequence[_Ride]) -> bool:
    """Whether the exit tap closes a ride: its own token's open one, else the traveller's oldest open one on the
    network, else its own token's oldest overdue one, where late exits close."""
    for ride in (*own, *here):
        if ride.is_open_at(tap.at_ms):
            assert ride.rule is not None
            same_stop = tap.stop_id is not None and tap.stop_id == ride.first.stop_id
            regretted = same_stop and 0 < ride.rule.grace_ms >= tap.at_ms - ride.first.at_ms
            ride.settle("cancelled" if regretted else "complete", _place(tap), tap)
            return True
    for ride in own:
        if ride.is_overdue_at(tap.at_ms) and tap.at_ms < ride.first.at_ms + _DAY_MS:
            assert ride.rule is not None
            if ride.rule.late_exit == "closes_leg":
                ride.settle_overdue("late_exit", tap)
                return True
    return False


def _list_fare(tariff: AuditTariff, ride: _Ride) -> int | None:
    if ride.version is None or ride.network is None or ride.rule is None:
        return None
    if ride.status == "cancelled":
        return 0
    if ride.status == "missing_entry":
        return tariff.extreme_fare(ride.version, ride.network, ride.rule.missing_entry, ride.first, towards=True)
    if ride.lacks_a_tap:
        return tariff.extreme_fare(ride.version, ride.network, ride.rule.missing_exit, ride.first, towards=False)
    return tariff.list_fare(ride.version, ride.network, ride.first, ride.last)


# ------------------------------------------------------------------------------ products and discounts


def _pay_by_product(ride: _Ride, bought: Sequence[_Bought], earlier: Sequence[_Ride]) -> None:
    assert ride.fare is not None
    assert ride.settled is not None
    paying = _find_product(ride, ride.fare, ride.settled, bought, earlier)
    if paying is None:
        return
    ride.paid_by = paying
    if paying.product.kind == "book":
        number = 1 + sum(other.paid_by is paying for other in earlier)
        price, trips = paying.product.price, paying.product.trips
        ride.coupon = price * number // trips - price * (number - 1) // trips


def _find_product(
    ride: _Ride, fare: int, place: _Place, bought: Sequence[_Bought], earlier: Sequence[_Ride]
) -> _Bought | None:  # fmt: skip
    """A pass before a book, an older one before a newer one; only what was bought before this place in the day."""
    passes_first = sorted(bought, key=lambda one: one.product.kind != "pass")
    for one in passes_first:
        product = one.product
        if (
            _place(one.purchase) < place
            and _allows(product.networks, ride.network)
            and _allows(product.categories, ride.first.rider_category)
            and _is_valid(one, ride, fare, earlier)
        ):
            return one
    return None


def _is_valid(one: _Bought, ride: _Ride, fare: int, earlier: Sequence[_Ride]) -> bool:
    product = one.product
    uses = [other for other in earlier if other.paid_by is one]
    if product.kind == "book":
        covered = product.covers_up_to is None or fare <= product.covers_up_to
        return covered and len(uses) < product.trips and ride.day <= date(one.day.year, 12, 31)
    first_day = one.day
    if product.starts == "first_tap":
        first_day = uses[0].day if uses else ride.day
    return first_day <= ride.day < first_day + timedelta(days=product.days)


def _discounts(tariff: AuditTariff, ride: _Ride, fare: int, earlier: Sequence[_Ride]) -> list[tuple[_Discount, int]]:
    """What each discount takes off, in file order, each off what the one before left."""
    assert ride.version is not None
    assert ride.network is not None
    left = fare
    taken = []
    for rule in tariff.fitting_discounts(ride.version, ride.network, ride.first, ride.day):
        amount = min(left, _worth(rule, left))
        if amount <= 0 or (rule.quota is not None and _uses_of(rule, ride.day, earlier) >= rule.quota):
            continue
        taken.append((rule, amount))
        left -= amount
    return taken


def _worth(rule: _Discount, left: int) -> int:
    if rule.kind == "percent":
        return int((rule.value * left / 100 + Fraction(1, 2)) // 1)  # halves up
    return int(rule.value) if rule.kind == "amount" else left - int(rule.value)


def _uses_of(rule: _Discount, day: date, earlier: Sequence[_Ride]) -> int:
    return sum(ride.day == day and any(used.rule_id == rule.rule_id for used, _ in ride.off) for ride in earlier)


def _held(tariff: AuditTariff, ride: _Ride, bought: Sequence[_Bought], settled: Sequence[_Ride]) -> int:
    """What was held when an open ride began, by what was known then."""
    if ride.status != "open" or ride.version is None or ride.network is None or ride.rule is None or not ride.rule.hold:
        return 0
    dearest = tariff.extreme_fare(ride.version, ride.network, ride.rule.hold, ride.first, towards=False)
    if not dearest:
        return 0
    # a re-entry settles the ride before it with the same tap, so that one is known too
    earlier = [other for other in settled if other.settled is not None and other.settled <= _place(ride.first)]
    if _find_product(ride, dearest, _place(ride.first), bought, earlier) is not None:
        return 0
    return dearest - sum(amount for _, amount in _discounts(tariff, ride, dearest, earlier))


# ------------------------------------------------------------------------------------- groups and caps

_Change: TypeAlias = tuple[_Ride, int]
"""A ride became so much dearer (or cheaper, by a transfer), before caps."""


def _join(settled: Sequence[_Ride]) -> list[_Change]:
    """Gives joined rides their transfers. What rides cost then, as a list of changes in their order."""
    changes: list[_Change] = []
    for index, ride in enumerate(settled):
        if ride.status == "complete" and ride.before_transfers > 0:
            first, rule = _find_first(ride, settled[:index])
            if first is not None and rule is not None:
                off_first = min(rule.off_first, first.before_caps)
                first.transfers.append((rule, off_first))
                first.is_first_of_a_group = True
                ride.transfers.append((rule, min(rule.off_second, ride.before_transfers)))
                ride.follows, ride.depth = first, first.depth + 1
                changes.append((first, -off_first))
        changes.append((ride, ride.before_caps))
    return changes


def _find_first(ride: _Ride, earlier: Sequence[_Ride]) -> tuple[_Ride, _JoiningRule] | tuple[None, None]:
    """The ride completed last before this one that costs something, may still be a first one, and whose window holds this
    ride's entry tap."""
    for first in reversed(earlier):
        if first.status == "complete" and first.before_caps > 0 and not first.is_first_of_a_group and first.version:
            for rule in first.version.joining:
                if _joins(rule, first, ride):
                    return first, rule
    return None, None


def _joins(rule: _JoiningRule, first: _Ride, second: _Ride) -> bool:
    opening = first.last if rule.window_from == "exit" and first.last is not None else first.first
    start, entry = (tap.at_ms // rule.resolution_ms * rule.resolution_ms for tap in (opening, second.first))
    end = start + rule.window_ms
    return (
        _allows(rule.from_networks, first.network)
        and _allows(rule.to_networks, second.network)
        and all(_allows(rule.categories, ride.first.rider_category) for ride in (first, second))
        and all(not rule.media or _names_medium(rule.media, ride.first.media) for ride in (first, second))
        and (rule.max_transfers is None or first.depth + 1 <= rule.max_transfers)
        and (start <= entry < end or (entry == end and rule.end == "at"))
    )


def _cap(changes: Sequence[_Change]) -> None:
    """Gives rides the lines of the caps: above the amount on the ride that brought it, given back on the one that
    became cheaper. Each cap counts what the caps above it in the file left."""
    remaining = list(changes)
    rule_ids = [cap.rule_id for ride, _ in changes if ride.version for cap in ride.version.caps]
    for rule_id in dict.fromkeys(rule_ids):
        counted: dict[date, int] = {}
        for index, (ride, change) in enumerate(remaining):
            cap = _find_cap(ride, rule_id)
            if cap is None or change == 0:
                continue
            period = ride.day - timedelta(days=ride.day.weekday()) if cap.period == "week" else ride.day
            before = counted.get(period, 0)
            counted[period] = before + change
            above = max(0, before + change - cap.amount) - max(0, before - cap.amount)
            ride.capped.append((rule_id, cap.bearer, above))
            remaining[index] = (ride, change - above)


def _find_cap(ride: _Ride, rule_id: str) -> _Cap | None:
    """The cap of that id in the ride's version, if the ride counts for it."""
    if ride.version is None or ride.rule is None or (ride.lacks_a_tap and not ride.rule.missing_counts):
        return None
    for cap in ride.version.caps:
        if (
            cap.rule_id == rule_id
            and _allows(cap.networks, ride.network)
            and _allows(cap.categories, ride.first.rider_category)
            and (not cap.media or _names_medium(cap.media, ride.first.media))
        ):
            return cap
    return None


def _sale(one: _Bought) -> AuditedSale:
    return AuditedSale(
        sale_id=one.purchase.fact_id,
        service_date=one.day.isoformat(),
        product_id=one.product.product_id,
        charge=one.product.price,
    )


def _audited(tariff: AuditTariff, ride: _Ride, held: int) -> AuditedLeg:
    is_known = ride.fare is not None
    charge = ride.before_caps - sum(amount for _, _, amount in ride.capped) + ride.companions
    funded: dict[str, int] = {}
    off = _summed(ride)
    borne = [(bearer, amount) for _, _, bearer, amount in off]
    if ride.paid_by is not None:
        borne.append((f"product:{ride.paid_by.product.product_id}", ride.coupon))
    for bearer, amount in borne:
        if bearer != "operators":  # they receive less, nobody pays
            funded[bearer] = funded.get(bearer, 0) + amount
    return AuditedLeg(
        leg_id=ride.first.fact_id,
        service_date=ride.day.isoformat(),
        operator_id=tariff.operator_of(ride.first),
        status=ride.status if is_known or ride.status == "open" else "unknown",
        charge=0 if ride.status == "open" else charge if is_known else None,
        held=held,
        funded={bearer: amount for bearer, amount in funded.items() if amount},
        version=ride.version.version_id if ride.version else "",
        network_id=ride.network,
        fare=ride.fare or 0,
        before_caps=ride.before_caps,
        companions=ride.companions,
        off=off,
        product=ride.paid_by.product.product_id if ride.paid_by is not None else None,
        coupon=ride.coupon,
        persons=ride.first.persons,
        rider_category=ride.first.rider_category,
        route_id=ride.first.route_id,
        distance_m=tariff.metres(ride.first.stop_id, ride.last.stop_id) if is_known and ride.last is not None else None,
        journey=ride.began_its_journey.first.fact_id,
    )


def _summed(ride: _Ride) -> tuple[TakenOff, ...]:
    sums: dict[tuple[Literal["discount", "transfer", "cap"], str, str], int] = defaultdict(int)
    for discount, amount in ride.off:
        sums["discount", discount.rule_id, discount.bearer] += amount
    for joining, amount in ride.transfers:
        sums["transfer", joining.rule_id, joining.bearer] += amount
    for cap, bearer, amount in ride.capped:
        sums["cap", cap, bearer] += amount
    return tuple((*key, amount) for key, amount in sorted(sums.items()) if amount)


# ----------------------------------------------------------------------------------- reading the files


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8-sig", newline="") as file:
        return [{key: (value or "").strip() for key, value in row.items() if key} for row in csv.DictReader(file)]


def _with_network(
    make: type[AuditTariff], folder: Path, versions: tuple[_Version, ...], always: _Version | None
) -> AuditTariff:  # fmt: skip
    network_of_route = {row["route_id"]: row["network_id"] for row in _rows(folder / "route_networks.txt")}
    route_of_trip = {row["trip_id"]: row["route_id"] for row in _rows(folder / "trips.txt")}
    routes_at_stop: dict[str, set[str]] = {}
    for row in _rows(folder / "stop_times.txt"):
        routes_at_stop.setdefault(row["stop_id"], set()).add(route_of_trip[row["trip_id"]])
    stops_of_network: dict[str, set[str]] = {}
    for stop, routes in routes_at_stop.items():
        for route in routes & network_of_route.keys():
            stops_of_network.setdefault(network_of_route[route], set()).add(stop)
    agencies = _rows(folder / "agency.txt")
    return make(
        zone=ZoneInfo(agencies[0]["agency_timezone"]),
        versions=versions,
        always=always,
        network_of_route=network_of_route,
        agency_of_route={
            row["route_id"]: row.get("agency_id") or agencies[0].get("agency_id", "") for row in _rows(folder / "routes.txt")
        },
        routes_at_stop={stop: frozenset(routes) for stop, routes in routes_at_stop.items()},
        stops_of_network={network: tuple(sorted(stops)) for network, stops in stops_of_network.items()},
        areas_of_stop=_areas_of_stop(folder),
        positions={
            row["stop_id"]: (float(row["stop_lat"]), float(row["stop_lon"]))
            for row in _rows(folder / "stops.txt")
            if row.get("stop_lat") and row.get("stop_lon")
        },
        distances={
            (row["from_stop_id"], row["to_stop_id"]): int((Decimal(row["km"]) * 1000).to_integral_value())
            for row in _rows(folder / "distances.csv")
        },
        services={
            row["service_id"]: (
                datetime.strptime(row["start_date"], "%Y%m%d").replace(tzinfo=UTC).date(),
                datetime.strptime(row["end_date"], "%Y%m%d").replace(tzinfo=UTC).date(),
                tuple(row[name] == "1" for name in _GTFS_WEEKDAYS),
            )
            for row in _rows(folder / "calendar.txt")
        },
        service_exceptions={
            (row["service_id"], datetime.strptime(row["date"], "%Y%m%d").replace(tzinfo=UTC).date()): (
                row["exception_type"] == "1"
            )
            for row in _rows(folder / "calendar_dates.txt")
        },
    )


def _on_the_unit_sphere(latitude: float, longitude: float) -> tuple[float, float, float]:
    lat, lon = math.radians(latitude), math.radians(longitude)
    return math.cos(lat) * math.cos(lon), math.cos(lat) * math.sin(lon), math.sin(lat)


def _areas_of_stop(folder: Path) -> dict[str, frozenset[str]]:
    """A station's areas are its platforms' areas too (GTFS, `stop_areas.txt`)."""
    areas: dict[str, set[str]] = {}
    for row in _rows(folder / "stop_areas.txt"):
        areas.setdefault(row["stop_id"], set()).add(row["area_id"])
    for row in _rows(folder / "stops.txt"):
        above = areas.get(row.get("parent_station", ""), set())
        if above:
            areas.setdefault(row["stop_id"], set()).update(above)
    return {stop: frozenset(found) for stop, found in areas.items()}


def _read_version(folder: Path) -> tuple[str, _Version]:
    """A version and its state."""
    toml = tomllib.loads((folder / "tariff.toml").read_text(encoding="utf-8-sig"))
    head = toml["tariff"]
    rules = _rows(folder / "fare_leg_rules.txt")
    leg_rules = tuple(
        _LegRule(
            network=row.get("network_id", ""),
            from_area=row.get("from_area_id", ""),
            to_area=row.get("to_area_id", ""),
            from_frame=row.get("from_timeframe_group_id", ""),
            to_frame=row.get("to_timeframe_group_id", ""),
            product=row["fare_product_id"],
            priority=int(row.get("rule_priority") or 0),
        )
        for row in rules
    )
    hours, minutes = map(int, head["service_day_start"].split(":"))
    version = _Version(
        version_id=head["version"],
        valid_from=head["valid_from"],
        valid_to=head.get("valid_to", date.max),
        day_start=timedelta(hours=hours, minutes=minutes),
        leg_rules=leg_rules,
        has_priorities=any("rule_priority" in row for row in rules),
        prices={
            (row["fare_product_id"], row.get("rider_category_id", ""), row.get("fare_media_id", "")): _minor_units(row)
            for row in _rows(folder / "fare_products.txt")
        },
        tap_rules=tuple(map(_tap_rule, toml.get("tap_rules", ()))),
        discounts=tuple(map(_discount, toml.get("discounts", ()))),
        products={row["product_id"]: _product(row) for row in toml.get("products", ())},
        joining=tuple(map(_joining_rule, toml.get("joining_rules", ()))),
        caps=tuple(map(_cap_row, toml.get("caps", ()))),
        timeframes=tuple(map(_timeframe, _rows(folder / "timeframes.txt"))),
        named_networks=frozenset(rule.network for rule in leg_rules) - {""},
        named_from=frozenset(rule.from_area for rule in leg_rules) - {""},
        named_to=frozenset(rule.to_area for rule in leg_rules) - {""},
        named_from_frames=frozenset(rule.from_frame for rule in leg_rules) - {""},
        named_to_frames=frozenset(rule.to_frame for rule in leg_rules) - {""},
    )
    return head["state"], version


def _minor_units(row: Mapping[str, str]) -> int:
    return int(Decimal(row["amount"]) * (1 if row["currency"] in _NO_MINOR_UNITS else 100))


def _words(row: Mapping[str, Any], name: str) -> tuple[str, ...]:
    return tuple(row.get(name) or ())


def _tap_rule(row: Mapping[str, Any]) -> _TapRule:
    stay = row.get("longest_stay_minutes")
    return _TapRule(
        networks=_words(row, "networks"),
        taps=row["taps"],
        hold=row.get("hold", ""),
        longest_stay_ms=stay * _MINUTE_MS if stay else None,
        missing_exit=row.get("missing_exit", "highest_fare"),
        missing_entry=row.get("missing_entry", "highest_fare"),
        late_exit=row.get("late_exit", "closes_leg"),
        missing_counts=row.get("missing_counts_toward_caps", False),
        grace_ms=row.get("same_stop_grace_minutes", 0) * _MINUTE_MS,
    )


def _discount(row: Mapping[str, Any]) -> _Discount:
    return _Discount(
        rule_id=row["rule_id"],
        kind=row["kind"],
        value=Fraction(str(row["value"])),
        bearer=row["bearer"],
        networks=_words(row, "networks"),
        routes=_words(row, "routes"),
        categories=_words(row, "rider_categories"),
        media=_words(row, "media"),
        except_media=_words(row, "except_media"),
        valid_from=row.get("valid_from", date.min),
        valid_to=row.get("valid_to", date.max),
        weekdays=_words(row, "weekdays"),
        quota=row.get("quota_per_day"),
    )


def _product(row: Mapping[str, Any]) -> _Product:
    return _Product(
        product_id=row["product_id"],
        kind=row["kind"],
        price=row["price"],
        networks=_words(row, "networks"),
        categories=_words(row, "rider_categories"),
        days=row.get("days", 0),
        starts=row.get("starts", "purchase"),
        trips=row.get("trips", 0),
        covers_up_to=row.get("covers_up_to"),
    )


def _joining_rule(row: Mapping[str, Any]) -> _JoiningRule:
    return _JoiningRule(
        rule_id=row["rule_id"],
        from_networks=_words(row, "from_networks"),
        to_networks=_words(row, "to_networks"),
        window_ms=row["window_minutes"] * _MINUTE_MS,
        window_from=row.get("window_from", "entry"),
        end=row.get("end", "at"),
        resolution_ms=_MINUTE_MS if row.get("resolution") == "minute" else 1000,
        max_transfers=row.get("max_transfers"),
        categories=_words(row, "rider_categories"),
        media=_words(row, "media"),
        off_first=row.get("off_first", 0),
        off_second=row.get("off_second", 0),
        bearer=row["bearer"],
    )


def _cap_row(row: Mapping[str, Any]) -> _Cap:
    return _Cap(
        rule_id=row["rule_id"],
        period=row["period"],
        amount=row["amount"],
        networks=_words(row, "networks"),
        categories=_words(row, "rider_categories"),
        media=_words(row, "media"),
        bearer=row.get("bearer", "operators"),
    )


def _timeframe(row: Mapping[str, str]) -> _Timeframe:
    def seconds(name: str, otherwise: int) -> int:
        if not row.get(name):
            return otherwise
        hours, minutes, rest = map(int, row[name].split(":"))
        return hours * 3600 + minutes * 60 + rest

    return _Timeframe(row["timeframe_group_id"], seconds("start_time", 0), seconds("end_time", 86_400), row["service_id"])
