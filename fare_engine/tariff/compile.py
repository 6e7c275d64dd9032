"""A checked tariff as lookups: what the fold asks at every tap is answered by one dictionary each.

A lookup's first question is answered from the tables and remembered; a tariff never changes, so neither does the answer."""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import combinations
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from fare_engine.errors import Fault, TariffError
from fare_engine.facts import Given
from fare_engine.service_day import DAY_MS, MINUTE_MS, local_ms, service_day, to_day
from fare_engine.tariff.checks import check
from fare_engine.tariff.conditions import FOREVER, Places, Ready, Ride, areas_of, names_route, places, ready, static_failing
from fare_engine.tariff.files import load
from fare_engine.tariff.model import (
    AFTER_DISCOUNTS,
    AS_ONE,
    BestOf,
    Candidate,
    Cap,
    Conditions,
    Discount,
    FareTransferRule,
    JoiningRule,
    LinkFields,
    Name,
    Network,
    Rebate,
    Reward,
    Surcharge,
    TapRule,
    Tariff,
    Version,
)
from fare_engine.tariff.prices import LegPrice, NoPrice, Prices, make_room

__all__ = ["CompiledTariff", "CompiledVersion", "LegPrice", "NoPrice", "Terms", "load_compiled"]


class ReadyDiscount(msgspec.Struct, frozen=True):
    """A discount, ready to be asked. `percent` is its per cent where plain whole numbers do."""

    rule: Discount
    ready: Ready
    percent: int | None


class ReadySurcharge(msgspec.Struct, frozen=True):
    """A surcharge, ready to be asked."""

    rule: Surcharge
    ready: Ready


class Link(msgspec.Struct, frozen=True):
    """When a leg may follow another, with its window in milliseconds."""

    fields: LinkFields
    from_networks: frozenset[str]
    to_networks: frozenset[str]
    from_places: Places | None
    to_places: Places | None
    stop_pairs: tuple[tuple[Places, Places], ...]
    timeframes: frozenset[str]
    window_ms: int
    tick_ms: int

    def reaches(self, anchor: int, entry_at: int) -> bool:
        """Whether an entry lies inside the window that the anchor opened, at the link's resolution."""
        if not self.window_ms:
            return True
        waited = entry_at // self.tick_ms * self.tick_ms - anchor // self.tick_ms * self.tick_ms
        return 0 <= waited <= self.window_ms if self.fields.end == "at" else 0 <= waited < self.window_ms


class Join(msgspec.Struct, frozen=True):
    """A joining rule, ready to be asked."""

    rule: JoiningRule
    ready: Ready
    links: tuple[Link, ...]
    longest_ms: int
    """How long after an earlier leg another may still begin, at most."""
    transfer: FareTransferRule | None = None
    """The row of `fare_transfer_rules.txt` that it stands for."""


class ReadyCap(msgspec.Struct, frozen=True):
    """A cap, ready to be asked."""

    rule: Cap
    ready: Ready
    plain: bool
    """It counts every such leg by service day or week, with the amount of the leg's own version."""


class CapScope(msgspec.Struct, frozen=True):
    """Which legs a cap counts (no networks: all), and whether it counts their fares or their surcharges."""

    networks: frozenset[str]
    counts: str


class ReadyBest(msgspec.Struct, frozen=True):
    """A window with candidates, ready to be asked: every choice of candidates, with what the choice itself costs."""

    rule: BestOf
    ready: Ready
    candidates: tuple[tuple[Candidate, Ready], ...]
    by_place_only: bool
    """No candidate looks at the time, day or operator of a leg."""
    choices: tuple[tuple[int, ...], ...]
    """Indexes of the candidates taken; the first choice takes none."""
    prices: tuple[int, ...]


class ReadyReward(msgspec.Struct, frozen=True):
    """A reward, ready to be asked."""

    rule: Reward
    ready: Ready


class ReadyRebate(msgspec.Struct, frozen=True):
    """A rebate, ready to be asked."""

    rule: Rebate
    ready: Ready


Coverage: TypeAlias = Literal["whole", "part", "none"]


class Terms(msgspec.Struct, frozen=True):
    """What holds for the legs of one network, route, medium and rider category."""

    tap_rule: TapRule
    longest_stay_ms: int
    grace_ms: int
    surcharges: tuple[ReadySurcharge, ...]
    as_one: tuple[Join, ...]
    """Rules by which such a leg may begin, or join, legs priced as one."""
    discounts: tuple[ReadyDiscount, ...]
    transfers: tuple[Join, ...]
    """Rules with a group's worth after discounts by which such a leg may begin, or join, a group."""
    pairs: tuple[Join, ...]
    """Rules for which such a leg may be the first of a pair."""
    most_pairs: int
    """How many transfers a chain of pairs that such a leg goes on may have, at most."""
    longest_pair_ms: int
    """How long after such a leg another may begin that makes a pair with it, at most."""
    rewards: tuple[ReadyReward, ...]
    limits: tuple[ReadyCap | ReadyBest, ...]
    """Caps on fares and windows with candidates, in the order in which they act."""
    surcharge_caps: tuple[ReadyCap, ...]
    has_extras: bool
    """A leg may cost something on top of its fare."""
    caps: tuple[Cap, ...]
    rebates: tuple[ReadyRebate, ...]
    by_day: dict[int, tuple[ReadyDiscount, ...]] = {}
    """Service day → the discounts whose days it is; filled as it is asked."""

    def discounts_on(self, day: int) -> tuple[ReadyDiscount, ...]:
        """The discounts that may be given on a service day."""
        found = self.by_day.get(day)
        if found is None:
            make_room(self.by_day)
            found = tuple(discount for discount in self.discounts if discount.ready.failing_day(day) is None)
            self.by_day[day] = found
        return found


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
        self.prices = Prices(version, network)
        self.products = {product.product_id: product for product in version.file.products}
        self.default_category = version.default_category
        self.joins = {row.rule_id: _join(row, network) for row in version.file.joining_rules}
        self.joins |= {join.rule.rule_id: join for join in _gtfs_joins(version, network)}
        self.product_conditions = {row.product_id: ready(row, network) for row in version.file.products}
        self.caps = {row.rule_id: _cap(row, network) for row in version.file.caps}
        self.best = {row.rule_id: _best(row, network) for row in version.file.best_of}
        self.rewards = {row.rule_id: row for row in version.file.rewards}
        self.rebates = {row.rule_id: row for row in version.file.rebates}
        self._tap_rules = {name: rule for rule in version.file.tap_rules for name in rule.networks}
        self._coverage: dict[tuple[object, ...], tuple[Coverage, ...]] = {}
        self._terms: dict[tuple[str, str | None, str, str], Terms | None] = {}

    def service_day(self, at: int) -> int:
        """The service day of an instant under this version."""
        return service_day(at, self.zone, self.day_start_ms)

    def terms(self, network: str, route: str | None, media: str, category: str) -> Terms | None:
        """What holds for such a leg; None where the version says nothing of the network."""
        key = (network, route, media, category)
        if key not in self._terms:
            make_room(self._terms)
            self._terms[key] = self._find_terms(*key)
        return self._terms[key]

    def covers(self, row: Conditions, conditions: Ready, ride: Ride, *, whole: bool = True) -> bool:
        """Whether a candidate is for a leg; with `whole` false also where the leg leaves its areas."""
        if ride.network_id is None or static_failing(row, ride.network_id, ride.route_id, ride.media, ride.rider_category):
            return False
        return conditions.failing(ride, self.network, self.prices.groups, whole=whole) is None

    def coverage(self, best: ReadyBest, ride: Ride) -> tuple[Coverage, ...]:
        """How far each candidate of a window covers a leg. Remembered where only the leg's places matter; by the window itself,
        for one that an earlier version began has other candidates under the same id."""
        if not best.by_place_only:
            return self._find_coverage(best, ride)
        key = (
            id(best), ride.network_id, ride.route_id, ride.media, ride.rider_category, ride.from_stop_id,
            ride.to_stop_id, ride.given and ride.given.areas, ride.exit_given and ride.exit_given.areas,
        )  # fmt: skip
        if key not in self._coverage:
            make_room(self._coverage)
            self._coverage[key] = self._find_coverage(best, ride)
        return self._coverage[key]

    def _find_coverage(self, best: ReadyBest, ride: Ride) -> tuple[Coverage, ...]:
        found: list[Coverage] = []
        for candidate, conditions in best.candidates:
            if self.covers(candidate, conditions, ride):
                found.append("whole")
            elif conditions.within_places is not None and self.covers(candidate, conditions, ride, whole=False):
                found.append("part")
            else:
                found.append("none")
        return tuple(found)

    def areas_of(self, stop: str | None, given: Given | None) -> Collection[str]:
        """The areas of a leg's end."""
        return areas_of(self.network, stop, given)

    def _find_terms(self, network: str, route: str | None, media: str, category: str) -> Terms | None:
        tap_rule = self._tap_rules.get(network)
        if tap_rule is None:
            return None
        file = self.version.file

        def for_leg(row: Conditions) -> bool:
            return static_failing(row, network, route, media, category) is None

        joins = [join for join in self.joins.values() if for_leg(join.rule) and _may_take_part(join, network)]
        pairs = tuple(join for join in joins if join.rule.worth == "pair" and _may_begin(join, network))
        return Terms(
            tap_rule=tap_rule,
            longest_stay_ms=tap_rule.longest_stay_minutes * MINUTE_MS,
            grace_ms=tap_rule.same_stop_grace_minutes * MINUTE_MS,
            surcharges=tuple(ReadySurcharge(row, ready(row, self.network)) for row in file.surcharges if for_leg(row)),
            as_one=tuple(join for join in joins if join.rule.worth in AS_ONE),
            discounts=tuple(_discount(row, self.network) for row in file.discounts if for_leg(row)),
            transfers=tuple(join for join in joins if join.rule.worth in AFTER_DISCOUNTS),
            pairs=pairs,
            most_pairs=max((join.rule.max_transfers for join in pairs), default=0),
            longest_pair_ms=max((join.longest_ms for join in pairs), default=0),
            rewards=tuple(ReadyReward(row, ready(row, self.network)) for row in file.rewards if for_leg(row)),
            limits=self._limits(for_leg),
            surcharge_caps=tuple(self.caps[row.rule_id] for row in file.caps if row.counts == "surcharge" and for_leg(row)),
            has_extras=tap_rule.overstay == "surcharge" or any(for_leg(row) for row in file.surcharges),
            caps=tuple(row for row in file.caps if for_leg(row)),
            rebates=tuple(ReadyRebate(row, ready(row, self.network)) for row in file.rebates if for_leg(row)),
        )

    def _limits(self, for_leg: Callable[[Conditions], bool]) -> tuple[ReadyCap | ReadyBest, ...]:
        """Caps in file order; a window with candidates after the last cap whose period is not longer than its own."""
        limits: list[ReadyCap | ReadyBest] = [
            self.caps[row.rule_id] for row in self.version.file.caps if row.counts == "fare" and for_leg(row)
        ]
        for row in self.version.file.best_of:
            if not for_leg(row):
                continue
            own = PERIODS.index(row.period)
            before = [number for number, limit in enumerate(limits, 1) if PERIODS.index(limit.rule.period) <= own]
            limits.insert(max(before, default=0), self.best[row.rule_id])
        return tuple(limits)


PERIODS = ("window", "service_day", "days", "week", "month")
"""Periods from the shortest to the longest."""


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
        self._by_operator = any(row.operator for row in tariff.network.services)
        self.versions = {version.version_id: CompiledVersion(version, tariff.network) for version in pricing}
        self._by_date = sorted(self.versions.values(), key=lambda version: version.first_day, reverse=True)
        self._by_minute: dict[int, CompiledVersion | None] = {}
        self._network_of: dict[tuple[str | None, str | None, str | None, str | None], str | None] = {}
        self._operator_of: dict[tuple[str | None, str | None], str | None] = {}
        self.categories = frozenset(name for version in pricing for name in version.categories)
        self.media = frozenset(name for version in pricing for name in version.media)
        self.default_category = pricing[-1].default_category if pricing else ""

    @property
    def currency(self) -> str:
        """The currency of the versions that price."""
        return self._by_date[0].currency if self._by_date else ""

    @property
    def minor_digits(self) -> int:
        """How many decimals riders read."""
        return self._by_date[0].version.file.tariff.minor_digits if self._by_date else 0

    @property
    def zone(self) -> str:
        """The city's time zone."""
        return self.network.timezone

    def version_at(self, at: int) -> CompiledVersion | None:
        """The version in force at an instant, by its own service day; None before the first."""
        minute = at // MINUTE_MS
        if minute not in self._by_minute:
            make_room(self._by_minute)
            self._by_minute[minute] = self._find_version(at)
        return self._by_minute[minute]

    def _find_version(self, at: int) -> CompiledVersion | None:
        for version in self._by_date:
            day = version.service_day(at)
            if self.tariff.forced or version.first_day <= day <= version.last_day:
                return version
        return None

    def scopes_of_caps(self) -> dict[str, CapScope]:
        """What each cap, and each window with candidates, counts in any version."""
        found: dict[str, CapScope] = {}
        for version in self.versions.values():
            file = version.version.file
            rows = [(cap.rule_id, cap.networks, str(cap.counts)) for cap in file.caps]
            rows += [(best.rule_id, best.networks, "fare") for best in file.best_of]
            for rule_id, listed, counts in rows:
                counted = frozenset(listed)
                before = found.get(rule_id)
                either = before is None or (bool(before.networks) and bool(counted))
                networks = counted | (before.networks if before else frozenset()) if either else frozenset()
                found[rule_id] = CapScope(networks, counts)
        return found

    def service_day(self, at: int) -> int:
        """The service day of an instant: under the version in force, else as under the first one."""
        version = self.version_at(at) or (self._by_date[-1] if self._by_date else None)
        return version.service_day(at) if version else local_ms(at, self.zone) // DAY_MS

    def network_of(self, route: str | None, stop: str | None, mode: str | None = None, operator: str | None = None) -> str | None:
        """The network tapped on (docs/tariff.md, "The network of a tap"). None: not to be told."""
        key = (route, stop, mode, operator if self._by_operator else None)
        if key not in self._network_of:
            make_room(self._network_of)
            self._network_of[key] = self._find_network(*key)
        return self._network_of[key]

    def operator_of(self, route: str | None, stop: str | None) -> str | None:
        """The agency owed where the tap does not say who ran the vehicle."""
        key = (route, stop)
        if key not in self._operator_of:
            make_room(self._operator_of)
            self._operator_of[key] = self._find_operator(route, stop)
        return self._operator_of[key]

    def _find_operator(self, route: str | None, stop: str | None) -> str | None:
        routes = (route,) if route is not None else self.network.routes_of_stop.get(stop or "", ())
        found = {self.network.routes[name].agency_id for name in routes if name in self.network.routes}
        return found.pop() if len(found) == 1 else None

    def _find_network(self, route: str | None, stop: str | None, mode: str | None, operator: str | None) -> str | None:
        network = self.network
        if route is not None and route in network.network_of_route:
            return network.network_of_route[route]
        party = network.parties.get(operator or "")
        name = party.name_en if party is not None else operator
        for row in network.services:
            if (
                (not row.mode or row.mode == mode)
                and (not row.operator or row.operator in (operator, name))
                and (not row.routes or names_route(row.routes, route))
            ):
                return row.network_id
        if route is None:
            found = {network.network_of_route.get(name) for name in network.routes_of_stop.get(stop or "", ())}
            if len(found) == 1:
                return found.pop()
        return mode if mode in network.networks else None


def compile_for_policy(tariff: Tariff, policy: str) -> CompiledTariff | None:
    """The versions that answer to a policy of priced cases, whatever their state; None where none does. A single one prices
    everything, several each their own dates."""
    if tariff.forced:
        return CompiledTariff(tariff)
    named = [version for version in tariff.versions if version.version_id == policy]
    listed = [version for version in tariff.versions if policy in version.file.tariff.case_policies]
    versions = tuple(named or listed)
    if not versions:
        return None
    chosen = msgspec.structs.replace(tariff, versions=versions, forced=len(versions) == 1)
    return CompiledTariff(chosen, [version.version_id for version in versions])


def load_compiled(folder: Path, adopt: Collection[str] = ()) -> CompiledTariff:
    """Load, check and compile a city's folder. TariffError names every fault."""
    tariff = load(folder)
    check(tariff)
    return CompiledTariff(tariff, adopt)


def _may_begin(join: Join, network: str) -> bool:
    return any(not link.from_networks or network in link.from_networks for link in join.links)


def _may_take_part(join: Join, network: str) -> bool:
    return _may_begin(join, network) or any(not link.to_networks or network in link.to_networks for link in join.links)


def _discount(row: Discount, network: Network) -> ReadyDiscount:
    plain = (
        row.kind == "percent" and row.value == int(row.value) and (row.rounding, row.round_to, row.round) == ("half_up", 1, "off")
    )
    return ReadyDiscount(row, ready(row, network), int(row.value) if plain else None)


def _join(row: JoiningRule, network: Network) -> Join:
    fields = tuple(msgspec.structs.replace(link, differs=(*link.differs, *row.differs)) for link in row.links)
    fields = fields or (LinkFields(**{name: getattr(row, name) for name in _LINK_FIELDS}),)
    links = tuple(_link(link, row, network) for link in fields)
    span = row.span_minutes * MINUTE_MS
    windows = [link.window_ms or span or 2 * DAY_MS for link in links]
    return Join(rule=row, ready=ready(_without_places(row), network), links=links, longest_ms=max(windows))


def _gtfs_joins(version: Version, network: Network) -> list[Join]:
    """The rows of `fare_transfer_rules.txt` as joining rules. An empty leg group means every one that no row names there."""
    every = {rule.leg_group_id for rule in version.leg_rules if rule.leg_group_id}
    others = {
        "from": tuple(sorted(every - {row.from_leg_group_id for row in version.transfer_rules})),
        "to": tuple(sorted(every - {row.to_leg_group_id for row in version.transfer_rules})),
    }
    found = []
    for row in version.transfer_rules:
        # GTFS, duration_limit_type: from departure (0, 1) or arrival (2, 3), to arrival (0, 3) or departure (1, 2)
        fields = LinkFields(
            from_leg_groups=(row.from_leg_group_id,) if row.from_leg_group_id else others["from"],
            to_leg_groups=(row.to_leg_group_id,) if row.to_leg_group_id else others["to"],
            window_from="entry" if row.duration_limit_type in (0, 1) else "exit",
            window_to="exit" if row.duration_limit_type in (0, 3) else "entry",
            window_of="first",
        )
        link = msgspec.structs.replace(_link(fields, _NO_RULE, network), window_ms=(row.duration_limit or 0) * 1000)
        count = row.transfer_count if row.transfer_count is not None else 1
        rule = msgspec.structs.replace(
            _NO_RULE,
            rule_id=f"fare_transfer_rules/{row.row}",
            max_transfers=count if count > 0 else FOREVER,
        )
        found.append(Join(rule, ready(rule, network), (link,), link.window_ms or 2 * DAY_MS, row))
    return found


_TRANSFER = Name(vi="Chuyển tuyến", en="Transfer")
_NO_RULE = JoiningRule(rule_id="", name=_TRANSFER, worth="position", skips=False)
_LINK_FIELDS = tuple(name for name in LinkFields.__struct_fields__ if name != "timeframes")


def _without_places(row: JoiningRule) -> JoiningRule:
    """The places of a rule without links are its one link's, and not conditions on each leg."""
    return msgspec.structs.replace(row, from_areas=(), to_areas=())


def _link(fields: LinkFields, row: JoiningRule, network: Network) -> Link:
    pairs = []
    for one, other in fields.stop_pairs:
        here, there = places((one,), network), places((other,), network)
        assert here is not None
        assert there is not None
        pairs += [(here, there), (there, here)]
    both = fields.networks or (row.networks if not row.links else ())
    return Link(
        fields=fields,
        from_networks=frozenset(fields.from_networks or both),
        to_networks=frozenset(fields.to_networks or both),
        from_places=places(fields.from_areas, network),
        to_places=places(fields.to_areas, network),
        stop_pairs=tuple(pairs),
        timeframes=frozenset(fields.timeframes),
        window_ms=fields.window_minutes * MINUTE_MS,
        tick_ms=MINUTE_MS if fields.resolution == "minute" else 1000,
    )


def _cap(row: Cap, network: Network) -> ReadyCap:
    conditions = ready(row, network)
    plain = conditions.always and row.period in ("service_day", "week") and row.owner == "leg"
    return ReadyCap(row, conditions, plain)


def _best(row: BestOf, network: Network) -> ReadyBest:
    numbers = range(len(row.candidates))
    candidates = tuple((candidate, ready(candidate, network)) for candidate in row.candidates)
    choices = [chosen for size in range(row.at_most + 1) for chosen in combinations(numbers, size)]
    return ReadyBest(
        rule=row,
        ready=ready(row, network),
        candidates=candidates,
        by_place_only=all(conditions.by_place_only for _, conditions in candidates),
        choices=tuple(choices),
        prices=tuple(sum(row.candidates[number].amount for number in chosen) for chosen in choices),
    )
