"""A checked tariff as lookups: what the fold asks at every tap is answered by one dictionary each.

A lookup's first question is answered from the tables and remembered; a tariff never changes, so neither does the answer."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec

from fare_engine.errors import Fault, TariffError
from fare_engine.service_day import DAY_MS, MINUTE_MS, local_ms, service_day, to_day, weekday_of
from fare_engine.tariff.checks import check
from fare_engine.tariff.files import load
from fare_engine.tariff.model import (
    Cap,
    Discount,
    FareLegRule,
    JoiningRule,
    Network,
    TapRule,
    Tariff,
    Version,
)

FOREVER = 10**9
REMEMBERED = 100_000
End: TypeAlias = Literal["from", "to"]
WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


class LegPrice(msgspec.Struct, frozen=True):
    """The list fare of a leg: the product, its amount, and the rule that led to it (`leg_group_id/fare_product_id`)."""

    amount: int
    product_id: str
    rule_id: str


class DatedDiscount(msgspec.Struct, frozen=True):
    """A discount with its dates as day numbers."""

    rule: Discount
    first_day: int
    last_day: int
    weekdays: frozenset[int]

    def holds_on(self, day: int) -> bool:
        """Whether the discount is given on a service day."""
        return self.first_day <= day <= self.last_day and (not self.weekdays or weekday_of(day) in self.weekdays)


class Join(msgspec.Struct, frozen=True):
    """A joining rule with its window in milliseconds and its networks as sets."""

    rule: JoiningRule
    to_networks: frozenset[str]
    fits_rider: Callable[[str, str], bool]
    """Whether the rule is for a medium and a rider category."""
    window_ms: int
    tick_ms: int

    def reaches(self, anchor: int, entry_at: int) -> bool:
        """Whether an entry lies inside the window that the anchor opened, at the rule's resolution."""
        waited = entry_at // self.tick_ms * self.tick_ms - anchor // self.tick_ms * self.tick_ms
        return 0 <= waited <= self.window_ms if self.rule.end == "at" else 0 <= waited < self.window_ms


class Terms(msgspec.Struct, frozen=True):
    """What holds for the legs of one network, route, medium and rider category."""

    tap_rule: TapRule
    longest_stay_ms: int
    grace_ms: int
    discounts: tuple[DatedDiscount, ...]
    joins: tuple[Join, ...]
    """Rules for which such a leg may be the first."""
    caps: tuple[Cap, ...]


class CompiledVersion:
    """One version's lookups. Each method is a pure function of its arguments and the tariff."""

    def __init__(self, version: Version, network: Network) -> None:
        head = version.file.tariff
        hours, minutes = head.service_day_start.split(":")
        self.version_id = version.version_id
        self.currency = head.currency
        self.first_day = to_day(head.valid_from)
        self.last_day = to_day(head.valid_to) if head.valid_to else FOREVER
        self.day_start_ms = (int(hours) * 60 + int(minutes)) * MINUTE_MS
        self.zone = network.timezone
        self.version = version
        self.network = network
        self.products = {product.product_id: product for product in version.file.products}
        self.default_category = version.default_category
        self._tap_rules = {name: rule for rule in version.file.tap_rules for name in rule.networks}
        self._timed = bool(version.timeframes)
        self._prices: dict[tuple[object, ...], LegPrice | None] = {}
        self._extremes: dict[tuple[object, ...], LegPrice | None] = {}
        self._terms: dict[tuple[str, str | None, str, str], Terms | None] = {}
        self._named = {
            field: frozenset(getattr(rule, field) for rule in version.leg_rules) - {None}
            for field in ("network_id", "from_area_id", "to_area_id")
        }
        self._amounts = {(row.fare_product_id, row.rider_category_id, row.fare_media_id): row.amount for row in version.products}

    def service_day(self, at: int) -> int:
        """The service day of an instant under this version."""
        return service_day(at, self.zone, self.day_start_ms)

    def terms(self, network: str, route: str | None, media: str, category: str) -> Terms | None:
        """What holds for such a leg; None where the version says nothing of the network."""
        key = (network, route, media, category)
        if key not in self._terms:
            _make_room(self._terms)
            self._terms[key] = self._find_terms(*key)
        return self._terms[key]

    def leg_price(
        self,
        network: str,
        from_stop: str | None,
        to_stop: str | None,
        media: str,
        category: str,
        times: tuple[int, int],
    ) -> LegPrice | None:
        """The list fare between two stops (None: not known or not asked), or None where no rule gives one.

        `times` are entry and exit; only a tariff with timeframes looks at them."""
        moment = self._timeframe_groups(times[0]), self._timeframe_groups(times[1])
        key = (network, from_stop, to_stop, media, category, moment)
        if key not in self._prices:
            _make_room(self._prices)
            self._prices[key] = self._find_price(network, self._areas(from_stop), self._areas(to_stop), media, category, moment)
        return self._prices[key]

    def extreme_price(
        self, which: str, network: str, stop: str | None, end: End, media: str, category: str, at: int
    ) -> LegPrice | None:
        """The `highest_fare` or `lowest_fare` of a leg of which only one end is known: `stop` is where it begins (`from`) or
        ends (`to`). For missing taps and holds."""
        moment = self._timeframe_groups(at)
        key = (which, network, stop, end, media, category, moment)
        if key not in self._extremes:
            _make_room(self._extremes)
            self._extremes[key] = self._find_extreme(which, network, stop, end, media, category, (moment, moment))
        return self._extremes[key]

    def _find_terms(self, network: str, route: str | None, media: str, category: str) -> Terms | None:
        tap_rule = self._tap_rules.get(network)
        if tap_rule is None:
            return None
        file = self.version.file

        def for_rider(row: Discount | JoiningRule | Cap) -> bool:
            return _is_for(row, media, category)

        return Terms(
            tap_rule=tap_rule,
            longest_stay_ms=tap_rule.longest_stay_minutes * MINUTE_MS,
            grace_ms=tap_rule.same_stop_grace_minutes * MINUTE_MS,
            discounts=tuple(_dated(row) for row in file.discounts if for_rider(row) and _on_leg(row, network, route)),
            joins=tuple(_join(row) for row in file.joining_rules if for_rider(row) and network in row.from_networks),
            caps=tuple(row for row in file.caps if for_rider(row) and _any_or_in(row.networks, network)),
        )

    def _areas(self, stop: str | None) -> tuple[str, ...]:
        return self.network.areas_of_stop.get(stop, ()) if stop is not None else ()

    def _timeframe_groups(self, at: int) -> frozenset[str]:
        """The timeframe groups of an instant: local time of day and local date, `start <= t < end` (GTFS)."""
        if not self._timed:
            return _NO_GROUPS
        day, rest = divmod(local_ms(at, self.zone), DAY_MS)
        return frozenset(
            row.group_id
            for row in self.version.timeframes
            if row.start * 1000 <= rest < row.end * 1000 and self.network.calendars[row.service_id].runs_on(day)
        )

    def _find_price(
        self,
        network: str,
        from_areas: Collection[str],
        to_areas: Collection[str],
        media: str,
        category: str,
        moment: tuple[frozenset[str], frozenset[str]],
    ) -> LegPrice | None:
        fitting = [rule for rule in self.version.leg_rules if self._fits(rule, network, from_areas, to_areas, moment)]
        highest = max((rule.rule_priority for rule in fitting), default=0)
        candidates = [self._priced(rule, media, category) for rule in fitting if rule.rule_priority == highest]
        return min((price for price in candidates if price is not None), key=_amount, default=None)

    def _fits(
        self,
        rule: FareLegRule,
        network: str,
        from_areas: Collection[str],
        to_areas: Collection[str],
        moment: tuple[frozenset[str], frozenset[str]],
    ) -> bool:
        return (
            self._matches("network_id", rule.network_id, (network,))
            and self._matches("from_area_id", rule.from_area_id, from_areas)
            and self._matches("to_area_id", rule.to_area_id, to_areas)
            and (rule.from_timeframe_group_id is None or rule.from_timeframe_group_id in moment[0])
            and (rule.to_timeframe_group_id is None or rule.to_timeframe_group_id in moment[1])
        )

    def _matches(self, field: str, wanted: str | None, found: Collection[str]) -> bool:
        """GTFS: without a rule_priority column an empty field excludes what other rows of the column name."""
        if wanted is not None:
            return wanted in found
        return self.version.has_priority or not any(value in self._named[field] for value in found)

    def _priced(self, rule: FareLegRule, media: str, category: str) -> LegPrice | None:
        medium = media.split(":")[0]
        for key in ((category, medium), (category, None), (None, medium), (None, None)):
            amount = self._amounts.get((rule.fare_product_id, *key))
            if amount is not None:
                group = rule.leg_group_id or rule.network_id or ""
                return LegPrice(amount, rule.fare_product_id, f"{group}/{rule.fare_product_id}")
        return None

    def _find_extreme(
        self,
        which: str,
        network: str,
        stop: str | None,
        end: End,
        media: str,
        category: str,
        moment: tuple[frozenset[str], frozenset[str]],
    ) -> LegPrice | None:
        known = self._areas(stop)
        prices = []
        for other in self._stops_of_network(network):
            ends = (known, self._areas(other)) if end == "from" else (self._areas(other), known)
            price = self._find_price(network, *ends, media, category, moment)
            if price is not None:
                prices.append(price)
        pick = max if which == "highest_fare" else min
        return pick(prices, key=_amount, default=None)

    def _stops_of_network(self, network: str) -> list[str | None]:
        routes = [route for route, owner in self.network.network_of_route.items() if owner == network]
        stops = sorted({stop for route in routes for stop in self.network.stops_of_route.get(route, ())})
        return [*stops] or [None]


class CompiledTariff:
    """The versions that price: those in force, each from its first day, and those the caller adopts or forces."""

    def __init__(self, tariff: Tariff, adopt: Collection[str] = ()) -> None:
        known = {version.version_id for version in tariff.versions}
        unknown = [Fault(f"{tariff.name}: version", name, "no such version") for name in adopt if name not in known]
        if unknown:
            raise TariffError(unknown)
        pricing = [
            version
            for version in tariff.versions
            if tariff.forced or version.file.tariff.state == "in_force" or version.version_id in adopt
        ]
        self.tariff = tariff
        self.network = tariff.network
        self.versions = {version.version_id: CompiledVersion(version, tariff.network) for version in pricing}
        self._by_date = sorted(self.versions.values(), key=lambda version: version.first_day, reverse=True)
        self._by_minute: dict[int, CompiledVersion | None] = {}
        self._network_of: dict[tuple[str | None, str | None], str | None] = {}
        self._operator_of: dict[tuple[str | None, str | None], str | None] = {}
        self.categories = frozenset(name for version in pricing for name in version.categories)
        self.media = frozenset(name for version in pricing for name in version.media)
        self.default_category = pricing[-1].default_category if pricing else ""

    @property
    def currency(self) -> str:
        """The currency of the versions that price."""
        return self._by_date[0].currency if self._by_date else ""

    @property
    def zone(self) -> str:
        """The city's time zone."""
        return self.network.timezone

    def version_at(self, at: int) -> CompiledVersion | None:
        """The version in force at an instant, by its own service day; None before the first."""
        minute = at // MINUTE_MS
        if minute not in self._by_minute:
            _make_room(self._by_minute)
            self._by_minute[minute] = self._find_version(at)
        return self._by_minute[minute]

    def _find_version(self, at: int) -> CompiledVersion | None:
        for version in self._by_date:
            day = version.service_day(at)
            if self.tariff.forced or version.first_day <= day <= version.last_day:
                return version
        return None

    def networks_of_caps(self) -> dict[str, frozenset[str]]:
        """The networks whose legs each cap counts, in any version; none: all."""
        found: dict[str, frozenset[str]] = {}
        for version in self.versions.values():
            for cap in version.version.file.caps:
                counted = frozenset(cap.networks)
                before = found.get(cap.rule_id)
                either = before is None or (bool(before) and bool(counted))
                found[cap.rule_id] = counted | (before or frozenset()) if either else frozenset()
        return found

    def service_day(self, at: int) -> int:
        """The service day of an instant: under the version in force, else as under the first one."""
        version = self.version_at(at) or (self._by_date[-1] if self._by_date else None)
        return version.service_day(at) if version else local_ms(at, self.zone) // DAY_MS

    def network_of(self, route: str | None, stop: str | None) -> str | None:
        """The network tapped on: its route's, or the one network whose routes call at the stop. None: not to be told."""
        key = (route, stop)
        if key not in self._network_of:
            _make_room(self._network_of)
            self._network_of[key] = self._find_network(route, stop)
        return self._network_of[key]

    def operator_of(self, route: str | None, stop: str | None) -> str | None:
        """The agency owed where the tap does not say who ran the vehicle."""
        key = (route, stop)
        if key not in self._operator_of:
            _make_room(self._operator_of)
            self._operator_of[key] = self._find_operator(route, stop)
        return self._operator_of[key]

    def _find_operator(self, route: str | None, stop: str | None) -> str | None:
        routes = (route,) if route is not None else self.network.routes_of_stop.get(stop or "", ())
        found = {self.network.routes[name].agency_id for name in routes if name in self.network.routes}
        return found.pop() if len(found) == 1 else None

    def _find_network(self, route: str | None, stop: str | None) -> str | None:
        if route is not None:
            return self.network.network_of_route.get(route)
        found = {self.network.network_of_route.get(name) for name in self.network.routes_of_stop.get(stop or "", ())}
        return found.pop() if len(found) == 1 else None


def load_compiled(folder: Path, adopt: Collection[str] = ()) -> CompiledTariff:
    """Load, check and compile a city's folder. TariffError names every fault."""
    tariff = load(folder)
    check(tariff)
    return CompiledTariff(tariff, adopt)


_NO_GROUPS: frozenset[str] = frozenset()


def _make_room(remembered: dict[Any, Any]) -> None:
    """Answers are remembered up to a limit, so that odd input cannot fill the memory."""
    if len(remembered) >= REMEMBERED:
        remembered.clear()


def _amount(price: LegPrice) -> int:
    return price.amount


def _any_or_in(allowed: Collection[str], value: str) -> bool:
    return not allowed or value in allowed


def _is_for(row: Discount | JoiningRule | Cap, media: str, category: str) -> bool:
    """Whether a row is for a medium (or for the coarser one it belongs to) and a rider category."""
    named = _any_or_in(row.media, media) or media.split(":")[0] in row.media
    return named and _any_or_in(row.rider_categories, category) and media not in getattr(row, "except_media", ())


def _on_leg(row: Discount, network: str, route: str | None) -> bool:
    return _any_or_in(row.networks, network) and (not row.routes or route in row.routes)


def _dated(row: Discount) -> DatedDiscount:
    return DatedDiscount(
        rule=row,
        first_day=to_day(row.valid_from) if row.valid_from else -FOREVER,
        last_day=to_day(row.valid_to) if row.valid_to else FOREVER,
        weekdays=frozenset(WEEKDAYS.index(name) for name in row.weekdays),
    )


def _join(row: JoiningRule) -> Join:
    return Join(
        rule=row,
        to_networks=frozenset(row.to_networks),
        fits_rider=partial(_is_for, row),
        window_ms=row.window_minutes * MINUTE_MS,
        tick_ms=MINUTE_MS if row.resolution == "minute" else 1000,
    )
