"""The simulated city's equipment: gates at stations, a validator in every vehicle, each with its key from the seed.

Everything about places, lines and operators comes from the tariff's network; nothing here knows a city's name."""

from __future__ import annotations

import csv
import hashlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fare_engine.tap_format import TapKind
from fare_engine.tariff.compile import CompiledTariff

WALK_METRES = 400
"""A stop this near a station is where riders change."""
VEHICLES = (2, 5)
GATES = 4


@dataclass(frozen=True, slots=True)
class Validator:
    """A terminal as installed: at a station's gate, or in a vehicle."""

    device_id: str
    operator_id: str
    kinds: frozenset[TapKind]
    stop_id: str | None
    route_id: str | None
    vehicle_id: str | None

    def key(self, seed: int) -> Ed25519PrivateKey:
        """Its signing key, the same for the same seed."""
        return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"{seed}/{self.device_id}".encode()).digest())


@dataclass(slots=True)
class City:
    """What riders travel on."""

    tariff: CompiledTariff
    validators: dict[str, Validator] = field(default_factory=dict)
    gates: dict[str, list[str]] = field(default_factory=dict)
    """stop_id of a station → its gates' device ids."""
    vehicles: dict[str, list[str]] = field(default_factory=dict)
    """route_id → device ids of its vehicles."""
    lines: dict[str, list[str]] = field(default_factory=dict)
    """Network with gates → its stations in order."""
    feeders: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    """stop_id of a station → (route_id, stop_id) of boarding stops near it."""
    boats: list[str] = field(default_factory=list)
    buses: list[str] = field(default_factory=list)


def build_city(tariff: CompiledTariff, folder: Path, at: int, random: Random) -> City:
    """The equipment for the version in force at an instant."""
    city = City(tariff)
    version = tariff.version_at(at)
    assert version is not None
    operators = _route_operators(folder)
    for route_id, network_id in sorted(tariff.network.network_of_route.items()):
        terms = version.terms(network_id, route_id, "emv", version.default_category)
        if terms is None or not tariff.network.stops_of_route.get(route_id):
            continue
        owners = operators.get(route_id) or [tariff.network.routes[route_id].agency_id]
        if terms.tap_rule.taps == "entry_exit":
            _add_gates(city, route_id, network_id, owners[0])
        else:
            _add_vehicles(city, route_id, owners, random)
    city.feeders = _feeders(city)
    return city


def _route_operators(folder: Path) -> dict[str, list[str]]:
    """All operators of shared routes, where the city says them."""
    path = folder / "network" / "route_operators.csv"
    found: dict[str, list[str]] = {}
    if path.exists():
        with path.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                found.setdefault(row["route_id"], []).append(row["operator_id"])
    return found


def _add_gates(city: City, route_id: str, network_id: str, operator_id: str) -> None:
    stations = list(city.tariff.network.stops_of_route[route_id])
    city.lines[network_id] = stations
    for stop_id in stations:
        for number in range(1, GATES + 1):
            device_id = f"G-{stop_id}-{number}"
            kinds = frozenset({TapKind.ENTRY, TapKind.EXIT})
            city.validators[device_id] = Validator(device_id, operator_id, kinds, stop_id, None, None)
            city.gates.setdefault(stop_id, []).append(device_id)


def _add_vehicles(city: City, route_id: str, owners: list[str], random: Random) -> None:
    route = city.tariff.network.routes[route_id]
    (city.boats if route.route_type == 4 else city.buses).append(route_id)
    for number in range(1, random.randint(*VEHICLES) + 1):
        device_id = f"V-{route_id}-{number}"
        owner = owners[number % len(owners)]
        kinds = frozenset({TapKind.BOARD})
        city.validators[device_id] = Validator(device_id, owner, kinds, None, route_id, f"B-{route_id}-{number}")
        city.vehicles.setdefault(route_id, []).append(device_id)


def _feeders(city: City) -> dict[str, list[tuple[str, str]]]:
    stops = city.tariff.network.stops
    found: dict[str, list[tuple[str, str]]] = {}
    boarding = [(route, stop) for route in city.buses for stop in city.tariff.network.stops_of_route[route]]
    for stations in city.lines.values():
        for station in stations:
            near = [(route, stop) for route, stop in boarding if _metres(city, station, stop) <= WALK_METRES]
            if near and station in stops:
                found[station] = near
    return found


def _metres(city: City, one: str, other: str) -> float:
    a, b = city.tariff.network.stops[one], city.tariff.network.stops[other]
    if a.lat is None or a.lon is None or b.lat is None or b.lon is None:
        return math.inf
    x = math.radians(b.lon - a.lon) * math.cos(math.radians((a.lat + b.lat) / 2))
    return 6_371_000 * math.hypot(x, math.radians(b.lat - a.lat))
