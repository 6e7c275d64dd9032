"""A token in two places too soon: a copied card, or a reader that is not where it says. Pure.

Decides whether one rider can have made two taps, by the least distance between the places where they may have been. A tap
that names only a route may have been at any of its stops. What it means is for whoever gets the alarm; nothing is refused."""

from __future__ import annotations

import math
from collections.abc import Iterable

from fare_engine.facts import Tap
from fare_engine.tariff.model import Network, Stop

FASTEST_KM_H = 120
SLACK_MS = 120_000
"""Clocks differ, and stations are large."""
NEAR_MS = 3 * 3_600_000
"""Taps further apart than this are not compared: one crosses any city in that time."""


def impossible_pair(network: Network, tap: Tap, others: Iterable[Tap]) -> tuple[Tap, float] | None:
    """Another tap of the same token that the same rider cannot have made, with the least distance in km; None: there is none."""
    mine = _places(network, tap)
    for other in others:
        apart = abs(other.at - tap.at)
        if other.fact_id == tap.fact_id or other.token_id != tap.token_id or apart > NEAR_MS:
            continue
        if (other.stop_id, other.route_id) == (tap.stop_id, tap.route_id):
            continue
        distance = min((_km(one, another) for one in mine for another in _places(network, other)), default=0.0)
        if distance * 3_600_000 > FASTEST_KM_H * (apart + SLACK_MS):
            return other, distance
    return None


def _places(network: Network, tap: Tap) -> list[Stop]:
    names = [tap.stop_id] if tap.stop_id is not None else network.stops_of_route.get(tap.route_id or "", ())
    return [stop for name in names if (stop := network.stops.get(name or "")) is not None and stop.lat is not None]


def _km(one: Stop, other: Stop) -> float:
    """On a plane that touches the earth there, which is near enough."""
    assert one.lat is not None
    assert other.lat is not None
    north = (one.lat - other.lat) * 111.32
    east = ((one.lon or 0.0) - (other.lon or 0.0)) * 111.32 * math.cos(math.radians(one.lat))
    return math.hypot(north, east)
