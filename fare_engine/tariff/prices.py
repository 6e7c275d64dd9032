"""What a leg costs by itself: the GTFS leg rules and the rows of `[[leg_prices]]` of one version.

The rows that fit are candidates; of those with the highest priority the cheapest counts. A price that no row gives is
unknown, and where a row could not tell for want of a fact (how far the ride went), the answer names the fact."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal, TypeAlias

import msgspec

from fare_engine.facts import Given
from fare_engine.money import rounded_to
from fare_engine.service_day import DAY_MS, MINUTE_MS, local_ms
from fare_engine.tariff.conditions import Places, Ready, Ride, areas_of, places, ready, static_failing
from fare_engine.tariff.model import FareLegRule, LegPriceRow, Network, Use, Version

REMEMBERED = 100_000
End: TypeAlias = Literal["from", "to"]
EARTH_M = 6_371_009
"""The mean radius of the earth (IUGG), for straight lines between two positions."""


class LegPrice(msgspec.Struct, frozen=True):
    """The list fare of a leg: its amount, and the rule that led to it (`leg_group_id/fare_product_id`, or a row's id)."""

    amount: int
    product_id: str
    rule_id: str
    base: int = 0
    """The part of it that is paid once where legs share a base."""
    leg_group_id: str = ""


class NoPrice(msgspec.Struct, frozen=True):
    """No rule gives a price. `missing` names the fact for want of which one could not tell; empty: no rule fits."""

    missing: str = ""


class PriceRow(msgspec.Struct, frozen=True):
    """A row of `[[leg_prices]]`, ready to be asked."""

    row: LegPriceRow
    ready: Ready
    pairs: tuple[tuple[Places, Places, int], ...]
    bands: tuple[tuple[Fraction | int | None, bool, int | None], ...]
    """Where each band ends (in thousandths of its unit), whether the end belongs to it, and its amount."""


class Prices:
    """The prices of one version. Answers are remembered: a tariff never changes."""

    def __init__(self, version: Version, network: Network) -> None:
        self.version = version
        self.network = network
        self.rows = tuple(_price_row(row, network) for row in version.file.leg_prices)
        self._timed = bool(version.timeframes)
        listed = [row.row.networks for row in self.rows]
        self._row_networks = frozenset(name for names in listed for name in names) if all(listed) else None
        """The networks that rows of `leg_prices` are for; None: any."""
        self._groups: dict[int, frozenset[str]] = {}
        self._found: dict[tuple[object, ...], LegPrice | NoPrice] = {}
        self._extremes: dict[tuple[object, ...], LegPrice | NoPrice] = {}
        self._rows: dict[tuple[object, ...], tuple[PriceRow, ...]] = {}
        self._rules: dict[tuple[object, ...], tuple[FareLegRule, ...]] = {}
        self._named = {
            field: frozenset(getattr(rule, field) for rule in version.leg_rules) - {None}
            for field in ("network_id", "from_area_id", "to_area_id")
        }
        self._amounts = {(row.fare_product_id, row.rider_category_id, row.fare_media_id): row.amount for row in version.products}

    # ---- what is asked

    def ride(self, ride: Ride, use: Use = "ride", *, candidate: str = "") -> LegPrice | NoPrice:
        """The price of a leg for a use; `candidate` names the product or candidate that covers it in part."""
        if use != "ride":
            return self._cheapest(self.rows_for(ride, use), ride, candidate=candidate)
        if ride.given is not None or ride.exit_given is not None:
            given = _given(ride, "list_fare")
            if given is not None:
                return LegPrice(given, "", "given/list_fare")
        rows = self.rows_for(ride, use) if self._row_networks is None or ride.network_id in self._row_networks else ()
        return self._cheapest(rows, ride, table=self._table_candidates(ride)) if rows else self._table_price(ride)

    def joined(self, rides: list[Ride], distance_m: int | None) -> LegPrice | NoPrice:
        """The price of some legs ridden as one, by a distance, at the first one's time: of several networks' the dearest."""
        found: list[LegPrice] = []
        seen = set()
        for ride in rides:
            if ride.network_id in seen:
                continue
            seen.add(ride.network_id)
            whole = _OneRide(rides[0], ride, rides[-1], distance_m)
            price = self._cheapest(self.rows_for(whole, "joined") or self.rows_for(whole, "ride"), whole)
            if isinstance(price, NoPrice):
                return price
            found.append(price)
        return max(found, key=_amount)

    def through(self, first: Ride, last: Ride, distance_m: int | None) -> LegPrice | NoPrice:
        """The price of one ride from the first leg's entry to the last one's exit."""
        whole = _OneRide(first, first, last, distance_m)
        joined = self.rows_for(whole, "joined")
        if joined:
            return self._cheapest(joined, whole)
        return self._cheapest(self.rows_for(whole, "ride"), whole, table=self._table_candidates(whole))

    def spanning(self, rides: list[Ride]) -> LegPrice | NoPrice:
        """The price of some legs ridden as one by the zones they touch: the cheapest span that every end lies in."""
        ends = [
            {int(area) for area in areas_of(self.network, stop, given) if area.isdigit()}
            for ride in rides
            for stop, given, at in (
                (ride.from_stop_id, ride.given, ride.entry_at),
                (ride.to_stop_id, ride.exit_given, ride.exit_at),
            )
            if at is not None
        ]
        if not all(ends):
            return NoPrice("zone")
        zones = sorted(set().union(*ends))
        spans = [(low, high) for low in zones for high in zones if all(any(low <= zone <= high for zone in end) for end in ends)]
        found = [self._between_zones(rides, low, high) for low, high in spans]
        priced = [price for price in found if isinstance(price, LegPrice)]
        return min(priced, key=_amount, default=NoPrice())

    def _between_zones(self, rides: list[Ride], low: int, high: int) -> LegPrice | NoPrice:
        """The price of some legs as one ride between two zones: of several networks' the dearest."""
        found: list[LegPrice] = []
        for network in dict.fromkeys(ride.network_id for ride in rides):
            ride = next(ride for ride in rides if ride.network_id == network)
            whole = _OneRide(rides[0], ride, rides[-1], None)
            whole.from_stop_id = whole.to_stop_id = None
            whole.given, whole.exit_given = Given(areas=(str(low),)), Given(areas=(str(high),))
            price = self._cheapest(self.rows_for(whole, "joined") or self.rows_for(whole, "ride"), whole)
            if isinstance(price, NoPrice):
                return price
            found.append(price)
        return max(found, key=_amount)

    def extreme(self, which: str, ride: Ride, end: End) -> LegPrice | NoPrice:
        """The `highest_fare` or `lowest_fare` of a leg of which only one end is known: where it begins (`from`) or ends
        (`to`). For missing taps and holds."""
        at = ride.entry_at if end == "from" else ride.exit_at
        assert at is not None
        stop, given = (ride.from_stop_id, ride.given) if end == "from" else (ride.to_stop_id, ride.exit_given)
        key = (
            which, ride.network_id, ride.route_id, ride.operator_id, stop, given, end, ride.media, ride.rider_category,
            self.groups(at), ride.service_day if self.rows else 0,
        )  # fmt: skip
        if key not in self._extremes:
            make_room(self._extremes)
            self._extremes[key] = self._find_extreme(which, ride, end, stop, at)
        return self._extremes[key]

    def groups(self, at: int) -> frozenset[str]:
        """The timeframe groups of an instant: local time of day and local date, `start <= t < end` (GTFS)."""
        if not self._timed:
            return _NO_GROUPS
        second = at // 1000
        if second not in self._groups:
            make_room(self._groups)
            day, rest = divmod(local_ms(at, self.network.timezone), DAY_MS)
            self._groups[second] = frozenset(
                row.group_id
                for row in self.version.timeframes
                if row.start * 1000 <= rest < row.end * 1000 and self.network.calendars[row.service_id].runs_on(day)
            )
        return self._groups[second]

    def rows_for(self, ride: Ride, use: Use) -> tuple[PriceRow, ...]:
        """The rows for a use whose unchanging conditions a leg meets."""
        if not self.rows or ride.network_id is None:
            return ()
        key = (use, ride.network_id, ride.route_id, ride.media, ride.rider_category)
        if key not in self._rows:
            make_room(self._rows)
            self._rows[key] = tuple(
                found
                for found in self.rows
                if found.row.use == use
                and not static_failing(found.row, ride.network_id, ride.route_id, ride.media, ride.rider_category)
            )
        return self._rows[key]

    # ---- rows of tariff.toml

    def _cheapest(
        self, rows: Iterable[PriceRow], ride: Ride, *, candidate: str = "", table: Collection[tuple[int, LegPrice]] = ()
    ) -> LegPrice | NoPrice:
        """The cheapest of the candidates with the highest priority. A row that lacks a fact leaves the price unknown, unless
        one of a higher priority gives it."""
        found: list[tuple[int, LegPrice]] = list(table)
        lacking: list[tuple[int, NoPrice]] = []
        for price_row in rows:
            row = price_row.row
            if row.candidates and candidate not in row.candidates:
                continue
            if price_row.ready.always is False and price_row.ready.failing(ride, self.network, self.groups):
                continue
            if not _stay_fits(row, ride):
                continue
            price = self._amount_of(price_row, ride)
            if isinstance(price, LegPrice):
                found.append((row.priority, price))
            elif price.missing:
                lacking.append((row.priority, price))
        highest = max((priority for priority, _ in found), default=None)
        for priority, price in lacking:
            if highest is None or priority >= highest:
                return price
        return min((price for priority, price in found if priority == highest), key=_amount, default=NoPrice())

    def _amount_of(self, price_row: PriceRow, ride: Ride) -> LegPrice | NoPrice:
        row = price_row.row
        if row.by == "flat":
            return LegPrice(row.amount or 0, "", row.rule_id)
        if row.by == "pairs":
            return self._pair_price(price_row, ride)
        if row.by == "zones":
            return self._zones_price(row, ride)
        thousandths = self._thousandths(row, ride)
        if isinstance(thousandths, NoPrice):
            return thousandths
        if row.base is None:
            for end, belongs, amount in price_row.bands:
                if end is None or thousandths < end or (belongs and thousandths == end):
                    return NoPrice() if amount is None else LegPrice(_whole(row, amount), "", row.rule_id)
            return NoPrice()
        units, base = Fraction(thousandths, 1000), Fraction(row.base)
        exact = base + Fraction(row.per_unit) * units
        for step in row.steps:
            start = Fraction(step.start)
            end = min(units, Fraction(step.to)) if step.to is not None else units
            if end > start:
                exact += math.ceil((end - start) / Fraction(step.step)) * step.amount
        return LegPrice(_finished(row, exact), "", row.rule_id, rounded_to(base, row.rounding, row.round_to))

    def _thousandths(self, row: LegPriceRow, ride: Ride) -> int | NoPrice:
        """What a leg's price counts by, in thousandths: metres, or stops and zones times a thousand."""
        if row.by == "stops":
            stops = _given(ride, "stops")
            if stops is None:
                stops = self._stops_between(ride)
            return stops * 1000 if stops is not None else NoPrice("stops_travelled")
        if row.by == "zone_count":
            spans = self._spans(ride)
            return min(high - low + 1 for low, high in spans) * 1000 if spans else NoPrice("zone")
        if row.by == "route_length":
            length = _given(ride, "route_length_m")
            return length if length is not None else NoPrice("route_length_km")
        metres = self.distance_m(ride, row.measure)
        if metres is None:
            return NoPrice("distance_km")
        if row.counts_at_most:
            metres = min(metres, int(row.counts_at_most * 1000))
        if row.unit:
            rounding = "half_up" if row.unit_rounding == "nearest" else row.unit_rounding
            metres = rounded_to(Fraction(metres), rounding, int(row.unit * 1000))
        return metres

    def distance_m(self, ride: Ride, measure: str = "table") -> int | None:
        """How far a leg went: as given, by `distances.csv`, or (if the row says so) in a straight line."""
        metres = _given(ride, "distance_m")
        if metres is not None:
            return metres
        start, end = ride.from_stop_id, ride.to_stop_id
        if start is not None and end is not None and (start, end) in self.network.distances:
            return self.network.distances[start, end]
        if measure == "straight_line":
            here, there = self.position(start, ride.given), self.position(end, ride.exit_given)
            return straight_line_m(here, there) if here and there else None
        return None

    def counted_m(self, ride: Ride) -> int | None:
        """How far a leg counts where distances are added: at most what its network's row says."""
        metres = self.distance_m(ride)
        rows = (*self.rows_for(ride, "joined"), *self.rows_for(ride, "ride"))
        bound = min((int(found.row.counts_at_most * 1000) for found in rows if found.row.counts_at_most), default=None)
        return min(metres, bound) if metres is not None and bound is not None else metres

    def position(self, stop: str | None, given: object) -> tuple[float, float] | None:
        """Where a tap was: as given, else its stop's position."""
        found = getattr(given, "position", None)
        if found is not None:
            return found  # type: ignore[no-any-return]  # a Given's position
        known = self.network.stops.get(stop) if stop is not None else None
        return (known.lat, known.lon) if known and known.lat is not None and known.lon is not None else None

    def _stops_between(self, ride: Ride) -> int | None:
        order = self.network.stops_of_route.get(ride.route_id or "", ())
        if ride.from_stop_id in order and ride.to_stop_id in order:
            return abs(order.index(ride.to_stop_id) - order.index(ride.from_stop_id))
        return None

    def _pair_price(self, price_row: PriceRow, ride: Ride) -> LegPrice | NoPrice:
        row = price_row.row
        start, end = self._ends(ride)
        for one, other, amount in price_row.pairs:
            if (one.holds(*start) and other.holds(*end)) or (row.symmetric and other.holds(*start) and one.holds(*end)):
                return LegPrice(_whole(row, amount), "", row.rule_id)
        return NoPrice() if ride.from_stop_id and ride.to_stop_id else NoPrice("stop")

    def _zones_price(self, row: LegPriceRow, ride: Ride) -> LegPrice | NoPrice:
        spans = self._spans(ride)
        if not spans:
            return NoPrice("zone")
        keys = [str(low) if low == high else f"{low}-{high}" for low, high in spans]
        amounts = [row.amounts[key] for key in keys if key in row.amounts]
        return LegPrice(_whole(row, min(amounts)), "", row.rule_id) if amounts else NoPrice()

    def _spans(self, ride: Ride) -> list[tuple[int, int]]:
        """The lowest and highest numbered zone of the two ends, for every choice at a boundary station."""
        (_, from_areas), (_, to_areas) = self._ends(ride)
        starts = [int(area) for area in from_areas if area.isdigit()]
        if not to_areas and ride.exit_at is None:
            return [(zone, zone) for zone in starts]  # one tap is all that there is of such a ride
        ends = [int(area) for area in to_areas if area.isdigit()]
        return [(min(one, other), max(one, other)) for one in starts for other in ends]

    def _ends(self, ride: Ride) -> tuple[tuple[str | None, Collection[str]], tuple[str | None, Collection[str]]]:
        start = ride.from_stop_id, areas_of(self.network, ride.from_stop_id, ride.given)
        end = ride.to_stop_id, areas_of(self.network, ride.to_stop_id, ride.exit_given)
        return start, end

    # ---- GTFS Fares v2

    def _table_price(self, ride: Ride) -> LegPrice | NoPrice:
        place = (ride.network_id, ride.from_stop_id, ride.to_stop_id, ride.media, ride.rider_category)
        key: tuple[object, ...] = place
        if self._timed or ride.given is not None or ride.exit_given is not None:
            entry, leaving = _times(ride)
            key = (*place, self.groups(entry), self.groups(leaving), ride.given, ride.exit_given)
        if key not in self._found:
            make_room(self._found)
            candidates = [price for _, price in self._table_candidates(ride)]
            self._found[key] = min(candidates, key=_amount, default=NoPrice())
        return self._found[key]

    def _table_candidates(self, ride: Ride) -> list[tuple[int, LegPrice]]:
        """The prices of the rules of the highest priority, with that priority."""
        if ride.network_id is None or not self.version.leg_rules:
            return []
        entry, leaving = _times(ride)
        (_, from_areas), (_, to_areas) = self._ends(ride)
        moment = self.groups(entry), self.groups(leaving)
        return self._candidates_between(ride, from_areas, to_areas, moment)

    def _candidates_between(
        self,
        ride: Ride,
        from_areas: Collection[str],
        to_areas: Collection[str],
        moment: tuple[frozenset[str], frozenset[str]],
    ) -> list[tuple[int, LegPrice]]:
        assert ride.network_id is not None
        fitting = self._fitting(ride.network_id, tuple(from_areas), tuple(to_areas), moment)
        highest = max((rule.rule_priority for rule in fitting), default=0)
        prices = [self._priced(rule, ride.media, ride.rider_category) for rule in fitting if rule.rule_priority == highest]
        return [(highest, price) for price in prices if price is not None]

    def _fitting(
        self,
        network: str,
        from_areas: tuple[str, ...],
        to_areas: tuple[str, ...],
        moment: tuple[frozenset[str], frozenset[str]],
    ) -> tuple[FareLegRule, ...]:
        """The rules of `fare_leg_rules.txt` for legs between some areas."""
        key = (network, from_areas, to_areas, moment)
        if key not in self._rules:
            make_room(self._rules)
            self._rules[key] = tuple(
                rule for rule in self.version.leg_rules if self._fits(rule, network, from_areas, to_areas, moment)
            )
        return self._rules[key]

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
        amount = self.product_price(rule.fare_product_id, media, category)
        if amount is None:
            return None
        rule_id = f"{rule.leg_group_id or rule.network_id or ''}/{rule.fare_product_id}"
        return LegPrice(amount, rule.fare_product_id, rule_id, leg_group_id=rule.leg_group_id or "")

    def product_price(self, product_id: str, media: str, category: str) -> int | None:
        """What a product of `fare_products.txt` costs a rider: the most specific row wins."""
        medium = media.split(":")[0]
        for key in ((category, medium), (category, None), (None, medium), (None, None)):
            amount = self._amounts.get((product_id, *key))
            if amount is not None:
                return amount
        return None

    # ---- one end known

    def _find_extreme(self, which: str, ride: Ride, end: End, stop: str | None, at: int) -> LegPrice | NoPrice:
        moment = self.groups(at), self.groups(at)
        given = ride.given if end == "from" else ride.exit_given
        known = areas_of(self.network, stop, given)
        prices: list[LegPrice] = []
        if self.version.leg_rules:
            for other in self._stops_of_network(ride.network_id or ""):
                there = self.network.areas_of_stop.get(other, ()) if other is not None else ()
                here, last = (known, there) if end == "from" else (there, known)
                found = self._candidates_between(ride, here, last, moment)
                prices += [min((price for _, price in found), key=_amount)] if found else []
        for price_row in self.rows_for(ride, "ride"):
            if price_row.ready.failing_day(ride.service_day) or not self._could_begin(price_row, end, stop, known, moment[0]):
                continue
            prices += self._possible(price_row, end, stop, known)
        pick = max if which == "highest_fare" else min
        return pick(prices, key=_amount, default=NoPrice())

    def _could_begin(
        self, price_row: PriceRow, end: End, stop: str | None, areas: Collection[str], groups: frozenset[str]
    ) -> bool:
        wanted = price_row.ready.from_places if end == "from" else price_row.ready.to_places
        timed = price_row.ready.timeframes if end == "from" else price_row.ready.exit_timeframes
        return (wanted is None or wanted.holds(stop, areas)) and (not timed or not timed.isdisjoint(groups))

    def _possible(self, price_row: PriceRow, end: End, stop: str | None, areas: Collection[str]) -> list[LegPrice]:
        """Every price that a row can give for a leg of which one end is known."""
        row = price_row.row
        amounts: list[int] = []
        if row.by == "flat":
            amounts = [row.amount or 0]
        elif row.by == "pairs":
            for one, other, amount in price_row.pairs:
                mine, theirs = (one, other) if end == "from" else (other, one)
                if mine.holds(stop, areas) or (row.symmetric and theirs.holds(stop, areas)):
                    amounts.append(amount)
        elif row.by == "zones":
            zones = {int(area) for area in areas if area.isdigit()}
            for key, amount in row.amounts.items():
                low, _, high = key.partition("-")
                if not zones or any(int(low) <= zone <= int(high or low) for zone in zones):
                    amounts.append(amount)
        elif row.base is None:
            amounts = [band.amount for band in row.bands if band.amount is not None]
        return [LegPrice(_whole(row, amount), "", row.rule_id) for amount in amounts]

    def _stops_of_network(self, network: str) -> list[str | None]:
        routes = [route for route, owner in self.network.network_of_route.items() if owner == network]
        stops = sorted({stop for route in routes for stop in self.network.stops_of_route.get(route, ())})
        return [*stops] or [None]


class _OneRide:
    """Some legs seen as one: the first one's entry and time, one's network and rider, the last one's exit, a distance."""

    def __init__(self, first: Ride, middle: Ride, last: Ride, distance_m: int | None) -> None:
        self.network_id, self.route_id, self.operator_id = middle.network_id, middle.route_id, middle.operator_id
        self.media, self.rider_category = middle.media, middle.rider_category
        self.from_stop_id, self.to_stop_id = first.from_stop_id, last.to_stop_id
        self.entry_at, self.exit_at = first.entry_at, last.exit_at
        self.service_day = first.service_day
        given = first.given
        self.given = msgspec.structs.replace(given, distance_m=None, list_fare=None, stops=None) if given is not None else None
        exit_given = last.exit_given
        if exit_given is not None:
            exit_given = msgspec.structs.replace(exit_given, distance_m=distance_m, list_fare=None, stops=None)
        elif distance_m is not None:
            exit_given = Given(distance_m=distance_m)
        self.exit_given = exit_given


def straight_line_m(one: tuple[float, float], other: tuple[float, float]) -> int:
    """The great-circle distance of two positions (latitude, longitude in degrees), in whole metres."""
    lat, lon, there_lat, there_lon = (math.radians(value) for value in (*one, *other))
    half = math.sin((there_lat - lat) / 2) ** 2 + math.cos(lat) * math.cos(there_lat) * math.sin((there_lon - lon) / 2) ** 2
    return round(2 * EARTH_M * math.asin(math.sqrt(half)))


def make_room(remembered: dict[Any, Any]) -> None:
    """Answers are remembered up to a limit, so that odd input cannot fill the memory."""
    if len(remembered) >= REMEMBERED:
        remembered.clear()


_NO_GROUPS: frozenset[str] = frozenset()


def _price_row(row: LegPriceRow, network: Network) -> PriceRow:
    pairs = []
    for one, other, amount in row.pairs:
        here, there = places((one,), network), places((other,), network)
        assert here is not None
        assert there is not None
        pairs.append((here, there, amount))
    ends = [band.up_to if band.up_to is not None else band.below for band in row.bands]
    bands = tuple((_thousand(end), band.up_to is not None, band.amount) for band, end in zip(row.bands, ends, strict=True))
    return PriceRow(row, ready(row, network), tuple(pairs), bands)


def _thousand(value: Decimal | None) -> Fraction | int | None:
    """A measure in thousandths; whole numbers where they do, which compare faster."""
    if value is None:
        return None
    exact = Fraction(value) * 1000
    return exact.numerator if exact.denominator == 1 else exact


def _stay_fits(row: LegPriceRow, ride: Ride) -> bool:
    if not row.stay_over_minutes and not row.stay_up_to_minutes:
        return True
    if ride.entry_at is None or ride.exit_at is None:
        return False
    stay = ride.exit_at - ride.entry_at
    return stay > row.stay_over_minutes * MINUTE_MS and (not row.stay_up_to_minutes or stay <= row.stay_up_to_minutes * MINUTE_MS)


def _whole(row: LegPriceRow, amount: int) -> int:
    """A printed amount, within the row's bounds."""
    return amount if row.round_to == 1 and not row.minimum and not row.maximum else _finished(row, Fraction(amount))


def _finished(row: LegPriceRow, exact: Fraction) -> int:
    amount = rounded_to(exact, row.rounding, row.round_to)
    amount = max(amount, row.minimum)
    return min(amount, row.maximum) if row.maximum else amount


def _given(ride: Ride, field: str) -> int | None:
    """A fact that one of the leg's taps brought along; the last tap knows best."""
    for given in (ride.exit_given, ride.given):
        if given is not None and getattr(given, field) is not None:
            return getattr(given, field)  # type: ignore[no-any-return]  # all these are whole numbers
    return None


def _times(ride: Ride) -> tuple[int, int]:
    entry = ride.entry_at if ride.entry_at is not None else ride.exit_at
    assert entry is not None
    return entry, ride.exit_at if ride.exit_at is not None else entry


def _amount(price: LegPrice) -> int:
    return price.amount
