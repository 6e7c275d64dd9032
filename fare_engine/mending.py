"""Where an exit is missing: where the rider most likely left, and whether that is certain enough to be taken as a fact.

Two things can tell. The *next tap*: who enters a station again came out there, and who boards a bus came out at the station
beside its stop. And *habit*: who went from here to one place most times in the month before went there again. Which of them
counts, and in which order, is the tariff's (`completes`); what neither tells costs what the tap rule says.

What is taken as known is recorded as a fact. It follows from the rider's other facts alone: when one of them comes in that
tells otherwise, the recorded one is replaced, so that their order of arrival changes nothing. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from fare_engine import booking
from fare_engine.booking import Record, Ridden
from fare_engine.facts import Completion, Tap, in_order
from fare_engine.pricing.fold import Folded
from fare_engine.pricing.lines import Leg, began
from fare_engine.refold import Change
from fare_engine.service_day import MINUTE_MS
from fare_engine.tariff.compile import CompiledTariff
from fare_engine.tariff.model import Stop
from fare_engine.windows import HABIT_MS, ridden

HABIT_RIDES = 3
"""So many rides from a place make a habit …"""
HABIT_SHARE = (2, 3)
"""… if at least this share of them went to one place."""
BESIDE_M = 400
"""A bus stop this near to a station is beside it."""
WALK_MS = MINUTE_MS
"""How long before the next tap the rider is taken to have left."""


class Likely(msgspec.Struct, frozen=True):
    """Where and when a rider most likely left, and what tells so."""

    stop_id: str
    at: int
    source: Literal["next_tap", "habit"]


class Mender:
    """Completes rides without an exit where the tariff says how."""

    def __init__(self, tariff: CompiledTariff) -> None:
        self.tariff = tariff

    def changes(self, record: Record, folded: Folded, now: int) -> Change | None:
        """What is to be recorded of a traveller besides what was, and what no longer holds; None: nothing. `folded` is his
        record's fold."""
        recorded = {fact.fact_id: fact for fact in record.facts if isinstance(fact, Completion) and fact.source != "claim"}
        if recorded:
            told = [fact for fact in record.facts if fact.fact_id not in recorded]
            record = msgspec.structs.replace(record, facts=told)
            folded = booking.price(self.tariff, record, now)
        wanted = {fact.fact_id: fact for fact in self._completions(record, folded, now)}
        new = [fact for fact_id, fact in wanted.items() if fact_id not in recorded]
        gone = recorded.keys() - wanted.keys()
        return Change(facts=list(new), withdrawn=gone) if new or gone else None

    def _completions(self, record: Record, folded: Folded, now: int) -> list[Completion]:
        lacking = [leg for leg in folded.legs.values() if leg.status == "missing_exit" and began(leg) >= record.since]
        if not lacking:
            return []
        taps = [fact for fact in in_order(record.facts) if isinstance(fact, Tap)]
        rides = ridden(folded.legs.values(), record.earlier)
        found = []
        for leg in lacking:
            likely = likely_exit(self.tariff, leg, rides, taps, self._ways(leg))
            if likely is not None:
                found.append(completion(leg.leg_id, likely.stop_id, likely.at, likely.source, now))
        return found

    def _ways(self, leg: Leg) -> Sequence[str]:
        version = self.tariff.versions.get(leg.version_id)
        terms = version.terms(leg.network_id or "", leg.route_id, leg.media, leg.rider_category) if version else None
        return terms.tap_rule.completes if terms is not None else ()


def completion(leg_id: str, stop_id: str, at: int, source: Literal["claim", "next_tap", "habit"], now: int) -> Completion:
    """The fact that a rider left where and when, recorded now; the same one however often it is found."""
    fact_id = f"completion/{source}/{leg_id}/{stop_id}@{at}"
    return Completion(fact_id, at, "completion", source, 0, leg_id, stop_id, source, now)


def likely_exit(
    tariff: CompiledTariff, leg: Leg, rides: Iterable[Ridden], taps: Sequence[Tap], completes: Sequence[str]
) -> Likely | None:
    """The exit of a leg whose exit is missing, by the ways `completes` in their order; None: nothing tells.

    `rides` and `taps` are the traveller's, in any order."""
    ways = {"next_tap": lambda: _by_next_tap(tariff, leg, taps), "habit": lambda: _by_habit(leg, rides)}
    return next((found for way in completes if (found := ways[way]()) is not None), None)


def _by_next_tap(tariff: CompiledTariff, leg: Leg, taps: Iterable[Tap]) -> Likely | None:
    assert leg.entry_at is not None
    later = [tap for tap in taps if tap.token_id == leg.token_id and tap.at > leg.entry_at and tap.action != "exit"]
    after = min(later, key=lambda tap: (tap.at, tap.fact_id), default=None)
    if after is None or after.at > leg.due or after.stop_id is None:
        return None
    network = tariff.network
    stations = {
        stop
        for route, owner in network.network_of_route.items()
        if owner == leg.network_id
        for stop in network.stops_of_route.get(route, ())
    }
    stop_id = after.stop_id if after.stop_id in stations else _beside(network.stops, after.stop_id, stations)
    if stop_id is None or stop_id == leg.from_stop_id:
        return None
    return Likely(stop_id, max(leg.entry_at + 1, after.at - WALK_MS), "next_tap")


def _by_habit(leg: Leg, rides: Iterable[Ridden]) -> Likely | None:
    assert leg.entry_at is not None
    same = [
        other
        for other in rides
        if (other.network_id, other.from_stop_id) == (leg.network_id, leg.from_stop_id)
        and leg.entry_at - HABIT_MS <= other.entry_at < leg.entry_at
    ]
    if len(same) < HABIT_RIDES:
        return None
    usual = Counter(other.to_stop_id for other in same)
    stop_id, count = min(usual.items(), key=lambda item: (-item[1], str(item[0])))
    part, whole = HABIT_SHARE
    if stop_id is None or count * whole < len(same) * part:
        return None
    took = sorted(other.exit_at - other.entry_at for other in same if other.to_stop_id == stop_id)
    return Likely(stop_id, leg.entry_at + took[len(took) // 2], "habit")


def _beside(stops: Mapping[str, Stop], stop_id: str, stations: Iterable[str]) -> str | None:
    """The station nearest to a stop, if it is beside it."""
    here = stops.get(stop_id)
    if here is None:
        return None
    distances = [(_metres(here, stops[station]), station) for station in sorted(stations) if station in stops]
    nearest = min(distances, default=(math.inf, ""))
    return nearest[1] if nearest[0] <= BESIDE_M else None


def _metres(one: Stop, other: Stop) -> float:
    """Distance on a plane that touches the earth there; near enough for neighbours. Without positions: far."""
    if one.lat is None or one.lon is None or other.lat is None or other.lon is None:
        return math.inf
    north = (one.lat - other.lat) * 111_320
    east = (one.lon - other.lon) * 111_320 * math.cos(math.radians(one.lat))
    return math.hypot(north, east)
