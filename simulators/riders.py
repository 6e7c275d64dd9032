"""Riders with homes, habits and media, and what they truly do on one day.

A day is a list of presentations: who holds which token to which kind of device, when and where, by true time. What terminals
make of it (wrong clocks, lost taps, outages) is `troubles`' business; what it should have cost follows from this list alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

from fare_engine.tap_format import TapKind, terminal_token
from simulators.city import City

HOUR = 3_600_000
MINUTE = 60_000
DOMAIN_KEY = hashlib.sha256(b"the simulated city's domain key").digest()


@dataclass(frozen=True, slots=True)
class Presentation:
    """A token held to a device, in truth."""

    at: int
    """True time, ms UTC."""
    rider_id: str
    token: bytes
    medium: str
    kind: TapKind
    device_id: str
    stop_id: str
    route_id: str | None


@dataclass(frozen=True, slots=True)
class Purchase:
    """A pass or book bought before the day's rides."""

    at: int
    product_id: str


@dataclass(slots=True)
class Rider:
    """One person with one card, or with a paper ticket a ride."""

    rider_id: str
    profile: str
    medium: str
    category: str
    card: bytes | None
    """Terminal token of the card; None for a rider who pays cash."""
    purchases: list[Purchase] = field(default_factory=list)
    day: list[Presentation] = field(default_factory=list)

    @property
    def prepaid(self) -> bool:
        """Whether money is put on the card first."""
        return self.medium == "ic_card"


PROFILES = {
    "rail commuter": 17,
    "bus and rail commuter": 20,
    "bus commuter": 27,
    "student": 14,
    "elderly": 6,
    "tourist": 6,
    "busway commuter": 4,
    "casual": 6,
}
MEDIA = {
    "emv": 44,
    "wallet": 11,
    "wallet:zalopay": 6,
    "wallet:zalopay-code": 3,
    "wallet:momo": 5,
    "qr": 8,
    "cccd": 6,
    "ic_card": 5,
    "cash": 12,
}
RETURNS = 0.37
"""How many come back the same day by the same way."""


class Day:
    """Makes riders for one day that begins at the instant `midnight`."""

    def __init__(self, city: City, midnight: int, seed: int) -> None:
        self.city = city
        self.midnight = midnight
        self.seed = seed
        self.random = Random(f"riders/{seed}")
        sizes = sorted(city.lines, key=lambda network: len(city.lines[network]))
        self.rail = "metro" if "metro" in city.lines else sizes[0]
        self.busway = next((network for network in sizes if network != self.rail), self.rail)

    def riders(self, count: int) -> Iterator[Rider]:
        """So many riders, each with a day."""
        profiles, weights = list(PROFILES), list(PROFILES.values())
        for number in range(count):
            profile = self.random.choices(profiles, weights)[0]
            yield self._rider(f"R{number:06d}", profile)

    def _rider(self, rider_id: str, profile: str) -> Rider:
        medium = self.random.choices(list(MEDIA), list(MEDIA.values()))[0]
        category = {"student": "student", "elderly": "elderly"}.get(profile, "adult")
        if category != "adult" and medium in ("cash", "qr"):
            medium = "cccd" if category == "elderly" else "emv"
        if profile == "tourist" and medium == "cccd":
            medium = "emv"
        card = None if medium == "cash" else self._token(rider_id)
        rider = Rider(rider_id, profile, medium, category, card)
        getattr(self, "_" + profile.replace(" ", "_"))(rider)
        rider.day.sort(key=lambda presentation: presentation.at)
        return rider

    # ---- profiles

    def _rail_commuter(self, rider: Rider) -> None:
        start, end = self.random.sample(self.city.lines[self.rail], 2)
        if rider.card and self.random.random() < 0.12:
            rider.purchases.append(Purchase(self._early(), self.random.choice(("ML1-M", "ML1-1D", "ML1-3D"))))
        self._rail_ride(rider, self.rail, start, end, self._peak(7.6, 0.8))
        if self._returns():
            self._rail_ride(rider, self.rail, end, start, self._peak(17.6, 1.1))

    def _bus_and_rail_commuter(self, rider: Rider) -> None:
        station = self.random.choice(sorted(set(self.city.feeders) & set(self.city.lines[self.rail])))
        end = self.random.choice([stop for stop in self.city.lines[self.rail] if stop != station])
        route, stop = self.random.choice(self.city.feeders[station])
        start = self._peak(7.3, 0.8)
        self._bus_ride(rider, route, start)
        arrived = start + self._minutes(8, 40)
        self._rail_ride(rider, self.rail, station, end, arrived)
        if self._returns():
            left = self._rail_ride(rider, self.rail, end, station, self._peak(17.5, 1.1))
            self._bus_ride(rider, route, left + self._minutes(3, 25), stop)

    def _bus_commuter(self, rider: Rider) -> None:
        route = self.random.choice(self.city.buses)
        start = self._peak(7.2, 0.9)
        self._bus_ride(rider, route, start)
        if self.random.random() < 0.25:
            self._bus_ride(rider, self.random.choice(self.city.buses), start + self._minutes(15, 60))
        if self._returns():
            self._bus_ride(rider, route, self._peak(17.2, 1.2))

    def _student(self, rider: Rider) -> None:
        if rider.card and self.random.random() < 0.1:
            rider.purchases.append(Purchase(self._early(), "ML1-MS"))
        if self.random.random() < 0.35:
            self._bus_and_rail_commuter(rider)
        else:
            self._bus_commuter(rider)

    def _elderly(self, rider: Rider) -> None:
        start = self._time(8.5, 15)
        if self.random.random() < 0.5:
            self._bus_ride(rider, self.random.choice(self.city.buses), start)
        else:
            first, last = self.random.sample(self.city.lines[self.rail], 2)
            self._rail_ride(rider, self.rail, first, last, start)

    def _tourist(self, rider: Rider) -> None:
        boat = self.random.choice(self.city.boats)
        self._bus_ride(rider, boat, self._time(9.5, 19.5))
        if rider.card and self.random.random() < 0.3:
            rider.purchases.append(Purchase(self._early(), "ML1-1D"))
        if self.random.random() < 0.6:
            first, last = self.random.sample(self.city.lines[self.rail], 2)
            left = self._rail_ride(rider, self.rail, first, last, self._time(9, 19))
            if self.random.random() < 0.5:
                self._rail_ride(rider, self.rail, last, first, left + self._minutes(60, 180))

    def _busway_commuter(self, rider: Rider) -> None:
        start, end = self.random.sample(self.city.lines[self.busway], 2)
        self._rail_ride(rider, self.busway, start, end, self._peak(7.5, 0.8))
        if self._returns():
            self._rail_ride(rider, self.busway, end, start, self._peak(17.5, 1.0))

    def _casual(self, rider: Rider) -> None:
        for _ in range(self.random.choice((1, 1, 2))):
            self._bus_ride(rider, self.random.choice(self.city.buses), self._time(6, 21))

    # ---- rides

    def _bus_ride(self, rider: Rider, route: str, at: int, stop: str | None = None) -> None:
        vehicles = self.city.vehicles[route]
        stops = self.city.tariff.network.stops_of_route[route]
        boarded = stop if stop is not None else self.random.choice(stops[:-1] or stops)
        device = self.random.choice(vehicles)
        token = rider.card or self._token(f"{rider.rider_id}/ticket/{len(rider.day)}")
        rider.day.append(Presentation(at, rider.rider_id, token, rider.medium, TapKind.BOARD, device, boarded, route))

    def _rail_ride(self, rider: Rider, network: str, start: str, end: str, at: int) -> int:
        stations = self.city.lines[network]
        between = abs(stations.index(start) - stations.index(end))
        left = at + between * 135_000 + self._minutes(2, 9)
        token = rider.card or self._token(f"{rider.rider_id}/ticket/{len(rider.day)}")
        for kind, stop, when in ((TapKind.ENTRY, start, at), (TapKind.EXIT, end, left)):
            gate = self.random.choice(self.city.gates[stop])
            rider.day.append(Presentation(when, rider.rider_id, token, rider.medium, kind, gate, stop, None))
        return left

    # ---- times and tokens

    def _returns(self) -> bool:
        return self.random.random() < RETURNS

    def _peak(self, hour: float, spread: float) -> int:
        found = self.random.gauss(hour, spread)
        return self.midnight + int(min(max(found, 5.0), 21.0) * HOUR)

    def _time(self, earliest: float, latest: float) -> int:
        return self.midnight + int(self.random.uniform(earliest, latest) * HOUR)

    def _early(self) -> int:
        return self._time(4.0, 4.9)

    def _minutes(self, least: int, most: int) -> int:
        return self.random.randint(least * MINUTE, most * MINUTE)

    def _token(self, medium: str) -> bytes:
        return terminal_token(DOMAIN_KEY, f"{self.seed}/{medium}".encode())
