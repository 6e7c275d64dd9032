"""A rider's claim that he left somewhere: taken at once where the taps speak for it, else laid before somebody.

What is taken becomes a fact of its own kind and beats what was completed by itself; a real exit that comes later beats it."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from sqlalchemy import Connection

from fare_engine import booking
from fare_engine.application import Application
from fare_engine.errors import ClaimError, NotFoundError
from fare_engine.facts import Completion, Tap, in_order
from fare_engine.mending import Likely, completion, likely_exit
from fare_engine.pricing.fold import Folded
from fare_engine.pricing.lines import Leg
from fare_engine.service_day import DAY_MS, MINUTE_MS
from fare_engine.store import travellers
from fare_engine.store.travellers import Claim, Traveller
from fare_engine.windows import ridden

AT_ONCE = 5
"""So many claims in 30 days are taken at once; those beyond wait for somebody."""
PERIOD_MS = 30 * DAY_MS
RIDE_MS = 20 * MINUTE_MS
"""How long a ride took of which nothing but the two ends is known."""


def proposed_exit(application: Application, traveller: Traveller, leg_id: str, now: int) -> tuple[Leg, Likely | None]:
    """The leg that a rider wants to mend, and where he most likely left. NotFoundError, or ClaimError for a leg that lacks
    nothing."""
    folded = booking.price(application.tariff, traveller.record, now)
    leg = folded.legs.get(leg_id)
    if leg is None:
        raise NotFoundError(f"no ride {leg_id}")
    if leg.status != "missing_exit" and not _is_completed(traveller, leg_id):
        raise ClaimError(f"the ride {leg_id} lacks no exit: it is {leg.status}")
    return leg, _likely(application, traveller, folded, leg)


def make_claim(
    connection: Connection, application: Application, traveller_id: str, leg_id: str, stop_id: str, text: str, now: int
) -> Claim:
    """A rider says where he left. ClaimError for a stop that is not on the ride's network, or a second claim of a ride."""
    traveller = travellers.get_travellers(connection, [traveller_id])[traveller_id]
    leg, likely = proposed_exit(application, traveller, leg_id, now)
    if stop_id not in stops_of(application, leg):
        raise ClaimError(f"the stop {stop_id!r} is not on the network {leg.network_id}")
    earlier = travellers.list_claims(connection, traveller_id=traveller_id)
    if any(claim.leg_id == leg_id for claim in earlier):
        raise ClaimError(f"the ride {leg_id} has a claim already")
    assert leg.entry_at is not None
    fits = likely is not None and likely.stop_id == stop_id
    lately = sum(claim.made_at > now - PERIOD_MS and claim.state == "accepted" for claim in earlier)
    at = likely.at if likely is not None and fits else min(leg.entry_at + RIDE_MS, leg.due or leg.entry_at + RIDE_MS)
    claim_id = hashlib.sha256(f"{traveller_id}/{leg_id}".encode()).hexdigest()[:16]
    claim = Claim(claim_id, traveller_id, leg_id, stop_id, at, text[:500], now, "open")
    if fits and lately < AT_ONCE:
        reason = "the next tap" if likely is not None and likely.source == "next_tap" else "the usual journey"
        return _accept(connection, application, claim, "by itself", reason, now)
    travellers.save_claim(connection, claim)
    return claim


def decide_claim(
    connection: Connection, application: Application, claim_id: str, decided_by: str, reason: str, now: int, *, accept: bool
) -> Claim:
    """Somebody decides an open claim."""
    claim = travellers.find_claim(connection, claim_id)
    if claim is None:
        raise NotFoundError(f"no claim {claim_id}")
    if claim.state != "open":
        raise ClaimError(f"claim {claim_id} was {claim.state} already")
    if accept:
        return _accept(connection, application, claim, decided_by, reason, now)
    declined = replace(claim, state="declined", decided_at=now, decided_by=decided_by, reason=reason)
    travellers.save_claim(connection, declined)
    return declined


def stops_of(application: Application, leg: Leg) -> list[str]:
    """The stops at which a rider may have left: those of the ride's network, in the order of its routes."""
    network = application.tariff.network
    routes = [route for route, owner in network.network_of_route.items() if owner == leg.network_id]
    found = dict.fromkeys(stop for route in routes for stop in network.stops_of_route.get(route, ()))
    return [stop for stop in found if stop != leg.from_stop_id]


def _accept(connection: Connection, application: Application, claim: Claim, by: str, reason: str, now: int) -> Claim:
    assert claim.stop_id is not None
    assert claim.at is not None
    accepted = replace(claim, state="accepted", decided_at=now, decided_by=by, reason=reason)
    travellers.save_claim(connection, accepted)
    application.complete_leg(connection, completion(claim.leg_id, claim.stop_id, claim.at, "claim", now), now)
    return accepted


def _likely(application: Application, traveller: Traveller, folded: Folded, leg: Leg) -> Likely | None:
    taps = [fact for fact in in_order(traveller.record.facts) if isinstance(fact, Tap)]
    rides = ridden(folded.legs.values(), traveller.record.earlier)
    return likely_exit(application.tariff, leg, rides, taps, ("next_tap", "habit"))


def _is_completed(traveller: Traveller, leg_id: str) -> bool:
    return any(isinstance(fact, Completion) and fact.leg_id == leg_id for fact in traveller.record.facts)
