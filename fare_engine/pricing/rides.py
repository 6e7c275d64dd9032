"""Rides as people write them down (docs/cases.md), made into the facts that taps would have given.

A ride names its mode, route and operator, its taps with stop, zone or position, and what was measured. What the tariff does
not know, and without which the ride has no price, is named as a missing fact."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any
from zoneinfo import ZoneInfo

import msgspec

from fare_engine.errors import Fault, InputError, MissingFactError
from fare_engine.facts import Fact, Given, Purchase, Tap
from fare_engine.service_day import MINUTE_MS, to_instant
from fare_engine.tariff.compile import CompiledTariff, CompiledVersion
from fare_engine.tariff.files import LARGEST

ACCOUNT_WORDS = frozenset(("products", "passes", "credit", "balance", "note", "notes"))
"""What of a rider's account is read, or changes no price."""
_TAP_WORDS = frozenset(("t", "stop", "zone", "lat", "lon", "refund_tap", "platform", "note", "why"))
_METRES = {"distance_km": "distance_m", "chain_distance_km": "chain_distance_m", "route_length_km": "route_length_m"}
_STOPS = ("stops_travelled", "stations_used")
_CARDS = re.compile(r"\s+x\d+$")


class Ridden(msgspec.Struct):
    """The facts of some rides, and which ride each tap belongs to."""

    facts: dict[str, list[Fact]]
    """By token: each is a traveller of its own."""
    ride_of: dict[str, str]
    """Fact id → the ride's id."""
    first_tap: dict[str, str]
    """The ride's id → its first tap."""


def read_rides(
    tariff: CompiledTariff, rides: Sequence[Mapping[str, Any]], rider: Mapping[str, Any], media: str, account: Mapping[str, Any]
) -> Ridden:
    """The facts of a rider's rides. MissingFactError names what the tariff does not know; InputError what is not a ride."""
    faults = [*_misshapen("rider", rider, ()), *_misshapen("account", account, ())]
    for number, ride in enumerate(rides, start=1):
        faults += _misshapen_ride(number, ride)
    if faults:
        raise InputError(faults)
    reader = _Reader(tariff, rides, rider, media)
    unread = [name for name, value in account.items() if value and name not in ACCOUNT_WORDS]
    if unread:
        raise MissingFactError(f"what the account's {', '.join(sorted(unread))} means")
    for product in (*account.get("products", ()), *account.get("passes", ())):
        reader.buy(product if isinstance(product, Mapping) else {"id": str(product)})
    for credit in account.get("credit", ()):
        reader.load(credit)
    for number, ride in enumerate(rides, start=1):
        reader.read(str(ride.get("id", f"r{number}")), ride)
    return reader.ridden


class _Reader:
    def __init__(self, tariff: CompiledTariff, rides: Sequence[Mapping[str, Any]], rider: Mapping[str, Any], media: str) -> None:
        self.tariff = tariff
        self.zone = ZoneInfo(tariff.zone)
        self.ridden = Ridden({}, {}, {})
        self.sequence = 0
        self.begins = min((self._instant(tap, "t") for ride in rides for tap in _taps(ride)), default=0)
        version = tariff.version_at(self.begins)
        if version is None:
            raise MissingFactError(f"a version in force on {datetime.fromtimestamp(self.begins / 1000, self.zone).date()}")
        self.version = version
        self.category = _category(version, rider)
        self.media = _media(version, media)
        self._stops = {stop.name: stop.stop_id for stop in reversed([*tariff.network.stops.values()])}

    def read(self, ride_id: str, ride: Mapping[str, Any]) -> None:
        """Take one ride down as its taps."""
        operator = self._operator(ride.get("operator"))
        route = self._route(ride.get("route"), operator, ride.get("mode"))
        on, off = ride.get("on"), ride.get("off")
        if off is not None and off.get("refund_tap") is False:
            off = None
        if on is None and off is None:
            raise InputError([Fault(f"ride {ride_id}", None, "has neither a first nor a last tap")])
        first = on if on is not None else off
        assert first is not None
        stop = self._stop(first.get("stop"))
        network = self.tariff.network_of(route, stop, ride.get("mode"), operator)
        if network is None:
            raise MissingFactError(f"the network of {ride_id} ({_said(ride, 'mode', 'operator', 'route')})")
        at = self._instant(first, "t")
        version = self.tariff.version_at(at)
        terms = version.terms(network, route, self.media, self.category) if version is not None else None
        two_taps = terms is not None and terms.tap_rule.taps == "entry_exit"
        place = (route, operator, str(ride.get("card", "")))
        if on is not None:
            whole = off is None or not two_taps
            self._tap(ride_id, ride, on, "entry" if two_taps else "board", place, whole=whole)
        if off is not None and two_taps:
            self._tap(ride_id, ride, off, "exit", place, whole=True)

    def buy(self, product: Mapping[str, Any]) -> None:
        """Something the rider holds was bought just before the first ride."""
        wanted, price = product.get("id"), product.get("price")
        rows = self.version.version.file.products
        named = [row.product_id for row in rows if row.product_id == wanted]
        priced = [
            row.product_id for row in rows if row.price == price and self.category in (row.rider_categories or (self.category,))
        ]
        if not named and not priced:
            raise MissingFactError(f"the product {wanted}")
        self._purchase((named or priced)[0], self._bought(product), None)

    def _bought(self, product: Mapping[str, Any]) -> int:
        """When it was bought: on the day that it says, else just before the first ride."""
        said = product.get("bought") or product.get("valid_from") or product.get("valid")
        before = self.begins - MINUTE_MS
        return min(self._instant({"t": said}, "t") + self.version.day_start_ms, before) if said is not None else before

    def load(self, credit: Mapping[str, Any]) -> None:
        """Money that was loaded on a date."""
        kinds = [row.product_id for row in self.version.version.file.products if row.kind == "credit"]
        if not kinds:
            raise MissingFactError("credit as a product")
        bought = credit.get("bought") or credit.get("date")
        if bought is None:
            raise MissingFactError("when the credit was bought")
        self._purchase(kinds[0], self._instant({"t": bought}, "t"), int(credit.get("amount", 0)))

    def _purchase(self, product_id: str, at: int, amount: int | None) -> None:
        self.sequence += 1
        fact_id = f"bought/-/{self.sequence}"
        rider = (self._token(""), self.media, self.category)
        self._add("", Purchase(fact_id, at, "bought", "-", self.sequence, *rider, product_id, amount))

    def _tap(
        self,
        ride_id: str,
        ride: Mapping[str, Any],
        tap: Mapping[str, Any],
        action: str,
        place: tuple[str | None, str | None, str],
        *,
        whole: bool,
    ) -> None:
        """One tap; with `whole` it brings along what is known of the whole ride."""
        route, operator, card = place
        self.sequence += 1
        fact_id = f"ride/-/{self.sequence}"
        self.ridden.ride_of[fact_id] = ride_id
        self.ridden.first_tap.setdefault(ride_id, fact_id)
        fact = Tap(
            fact_id,
            self._instant(tap, "t"),
            "ride",
            "-",
            self.sequence,
            action,  # type: ignore[arg-type]  # entry, exit or board
            self._token(card),
            self.media,
            self.category,
            self._stop(tap.get("stop")),
            route,
            operator,
            1,
            given_facts(ride, tap, whole=whole),
        )
        self._add(card, fact)

    def _add(self, card: str, fact: Fact) -> None:
        self.ridden.facts.setdefault(self._token(card), []).append(fact)

    def _token(self, card: str) -> str:
        return f"card {card}".strip()

    def _instant(self, tap: Mapping[str, Any], field: str) -> int:
        text = tap.get(field)
        try:
            moment = datetime.fromisoformat(str(text))
        except ValueError:
            raise InputError([Fault(field, text, "not an ISO time")]) from None
        if not 1970 < moment.year < 9999:
            raise InputError([Fault(field, text, "not a time at which anybody rides")])
        return to_instant(moment if moment.tzinfo is not None else moment.replace(tzinfo=ZoneInfo(self.tariff.zone)))

    def _stop(self, said: str | None) -> str | None:
        """A stop by id, by name, or by its name before a comma; one that nobody knows is taken as it is."""
        if said is None:
            return None
        known = self.tariff.network.stops
        for name in (said, said.split(",")[0].strip()):
            if name in known:
                return name
            if name in self._stops:
                return self._stops[name]
        return said

    def _operator(self, said: str | None) -> str | None:
        if said is None or said in self.tariff.network.parties:
            return said
        return next((party.party_id for party in self.tariff.network.parties.values() if party.name_en == said), said)

    def _route(self, said: str | None, operator: str | None, mode: str | None) -> str | None:
        """A route by id, or by its number and operator; one that the feed does not list is taken as it is."""
        routes = self.tariff.network.routes
        if said is None or said in routes:
            return said
        named = [route for route in routes.values() if route.short_name == said and operator in (None, route.agency_id)]
        return named[0].route_id if len(named) == 1 else said


def _taps(ride: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [tap for tap in (ride.get("on"), ride.get("off")) if tap is not None]


def _said(ride: Mapping[str, Any], *fields: str) -> str:
    return ", ".join(f"{field} {ride[field]}" for field in fields if ride.get(field) is not None)


def _category(version: CompiledVersion, rider: Mapping[str, Any]) -> str:
    """The rider category: as named, with what else is true of the rider."""
    renamed = version.version.file.cases.categories
    said = str(rider.get("category") or version.default_category)
    category = renamed.get(said, said)
    for attribute, value in rider.items():
        if attribute == "category" or value in (None, False) or (isinstance(value, int | float) and value is not True):
            continue
        word = attribute if value is True else str(value)
        names = [f"{category}+{word}", f"{said}+{word}", word, f"{category}+{attribute}"]
        found = [renamed.get(name, name) for name in names if renamed.get(name, name) in version.version.categories]
        if not found and value is True:
            raise MissingFactError(f"rider {attribute}")
        category = found[0] if found else category
    if category not in version.version.categories:
        raise MissingFactError(f"the rider category {said}")
    return category


def _media(version: CompiledVersion, said: str) -> str:
    """The medium: as named, renamed, or its part before a colon; none named is the version's default."""
    if not said:
        return version.version.default_medium
    renamed = version.version.file.cases.media
    for name in (said, _CARDS.sub("", said)):
        head, _, tail = name.partition(":")
        if name in renamed:
            return renamed[name]
        if head in renamed:
            return f"{renamed[head]}:{tail}" if tail else renamed[head]
        if head in version.version.media:
            return name
    raise MissingFactError(f"the medium {said}")


def given_facts(ride: Mapping[str, Any], tap: Mapping[str, Any], *, whole: bool) -> Given:
    """What a tap brings along: its place, and with `whole` what is known of the whole ride."""
    areas = [part.strip() for part in str(tap["zone"]).split("/")] if tap.get("zone") is not None else []
    areas += [name for name, value in tap.items() if value is True and name not in _TAP_WORDS]
    facts: dict[str, Any] = {"mode": ride.get("mode"), "areas": tuple(areas)}
    if tap.get("lat") is not None and tap.get("lon") is not None:
        facts["position"] = (_number("lat", tap["lat"]), _number("lon", tap["lon"]))
    if whole:
        facts |= {field: _metres(name, ride[name]) for name, field in _METRES.items() if ride.get(name) is not None}
        stops = next((ride[name] for name in _STOPS if ride.get(name) is not None), None)
        facts["stops"] = int(_number("stops", stops)) if stops is not None else None
        single = ride.get("single_fare")
        if single is not None:
            amount = single.get("amount", single.get("at_least")) if isinstance(single, dict) else single
            facts["list_fare"] = int(_number("single_fare", amount)) if amount is not None else None
    return Given(**facts)


def _metres(field: str, value: object) -> int:
    metres = _number(field, value) * 1000
    if metres < 0:
        raise InputError([Fault(field, value, "below zero")])
    return int(metres.to_integral_value())


def _number(field: str, value: object) -> Decimal:
    """A number that money or distance can be."""
    try:
        found = Decimal(str(value))
    except InvalidOperation:
        raise InputError([Fault(field, value, "not a number")]) from None
    if not found.is_finite() or abs(found) > LARGEST:
        raise InputError([Fault(field, value, f"not a number up to {LARGEST}")])
    return found


def _misshapen_ride(number: int, ride: object) -> Iterator[Fault]:
    """What keeps a ride from being read at all."""
    yield from _misshapen(f"ride {number}", ride, ("mode", "route", "operator"))
    if isinstance(ride, Mapping):
        for end in ("on", "off"):
            if ride.get(end) is not None:
                yield from _misshapen(f"ride {number} {end}", ride[end], ("stop",))


def _misshapen(place: str, value: object, texts: Sequence[str]) -> Iterator[Fault]:
    if not isinstance(value, Mapping):
        yield Fault(place, value, "is no object")
        return
    for field in texts:
        if not isinstance(value.get(field), str | None):
            yield Fault(f"{place} {field}", value[field], "is no text")
