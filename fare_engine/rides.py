"""What is known of each priced leg beside its price: what agreements weigh by, and what exports say of it.

Booked as lines are: a leg that turns out otherwise is reversed and booked anew, under the open accounting date. It moves no money
by itself, so a ride that joins another's journey leaves its lines alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import msgspec

from fare_engine.ledger import accounting_date
from fare_engine.pricing.fold import Folded
from fare_engine.pricing.lines import Leg, began, ended, journey_of
from fare_engine.service_day import to_date
from fare_engine.tariff.compile import CompiledTariff


class Ride(msgspec.Struct, frozen=True, array_like=True):
    """A priced leg."""

    token_id: str
    media: str
    rider_category: str
    network_id: str | None
    route_id: str | None
    operator_id: str | None
    vehicle_id: str | None
    from_stop_id: str | None
    to_stop_id: str | None
    began_at: int
    """Milliseconds UTC."""
    ended_at: int
    persons: int
    distance_m: int | None
    """By the network's table, else in a straight line; None: not known, as where nobody taps out."""
    journey: str
    """The leg that began the journey, as the tariff's joining rules see it; its own id where it follows none."""
    status: str
    service_date: str


class BookedRide(msgspec.Struct, array_like=True):
    """A leg with its latest movement: an even generation stands, an odd one is reversed."""

    ride: Ride
    generation: int = -1
    booked_on: str = ""
    """The accounting date of its latest booking."""
    was: list[tuple[str, str, Ride]] = []
    """What it was before: booked under one accounting date, reversed under another."""

    def as_of(self, through: str) -> Ride | None:
        """The leg as it stood when an accounting date was closed, or None."""
        if self.generation % 2 == 0 and self.booked_on <= through:
            return self.ride
        return next((ride for begun, ended, ride in self.was if begun <= through < ended), None)


class RideMovement(msgspec.Struct, frozen=True):
    """One movement of one leg: booked (an even generation) or reversed."""

    movement_id: str
    leg_id: str
    generation: int
    ride: Ride
    accounting_date: str


def book_rides(
    traveller_id: str,
    rides: dict[str, BookedRide],
    folded: Folded,
    tariff: CompiledTariff,
    closed_through: str | None,
) -> list[RideMovement]:
    """Bring the booked legs to what the fold says; `rides` is brought up to date and the movements are given."""
    priced = {line.leg_id: None for line in folded.lines if line.kind == "list_fare"}
    movements = []
    for leg_id, booked in sorted(rides.items()):
        if booked.generation % 2 == 0 and not (leg_id in priced and _is_same(booked.ride, folded.legs[leg_id], folded.legs)):
            movements.append(_move(traveller_id, leg_id, booked, closed_through))
    for leg_id in priced:
        known = rides.get(leg_id)
        if known is not None and known.generation % 2 == 0:
            continue
        generation, was = (known.generation, known.was) if known is not None else (-1, [])
        rides[leg_id] = booked = BookedRide(_ride(folded.legs[leg_id], folded.legs, tariff), generation, "", was)
        movements.append(_move(traveller_id, leg_id, booked, closed_through))
    return movements


def _move(traveller_id: str, leg_id: str, booked: BookedRide, closed_through: str | None) -> RideMovement:
    booked.generation += 1
    on = accounting_date(booked.ride.service_date, closed_through)
    if booked.generation % 2:
        booked.was.append((booked.booked_on, on, booked.ride))
    else:
        booked.booked_on = on
    digest = hashlib.sha256(f"ride/{traveller_id}/{leg_id}/{booked.generation}".encode()).hexdigest()[:32]
    return RideMovement(digest, leg_id, booked.generation, booked.ride, on)


def _is_same(ride: Ride, leg: Leg, legs: Mapping[str, Leg]) -> bool:
    """Whether a booked leg is still what it was; asked for every leg at every tap, so only what can change is looked at."""
    return (
        ride.to_stop_id == leg.to_stop_id
        and ride.ended_at == ended(leg)
        and ride.status == leg.status
        and ride.rider_category == leg.rider_category
        and ride.began_at == began(leg)
        and ride.journey == (journey_of(leg, legs) if leg.follows else leg.leg_id)
    )


def _ride(leg: Leg, legs: Mapping[str, Leg], tariff: CompiledTariff) -> Ride:
    prices = tariff.versions[leg.version_id].prices
    distance = prices.distance_m(leg)
    return Ride(
        leg.token_id,
        leg.media,
        leg.rider_category,
        leg.network_id,
        leg.route_id,
        leg.operator_id,
        leg.vehicle_id,
        leg.from_stop_id,
        leg.to_stop_id,
        began(leg),
        ended(leg),
        leg.persons,
        prices.distance_m(leg, "straight_line") if distance is None else distance,
        journey_of(leg, legs),
        leg.status,
        to_date(leg.service_day).isoformat(),
    )
