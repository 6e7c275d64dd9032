"""What the fold gives: legs, and the lines that say why each costs what it costs.

A leg's charge is the sum of its lines. A line is never changed: a later fact may add one to an earlier leg. Lines hang on
a leg, or on the sale of a product; both are named by the fact that began them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Literal, TypeAlias

import msgspec

from fare_engine.facts import Given
from fare_engine.ids import LineId

LineKind: TypeAlias = Literal[
    "list_fare",  # what the tariff's table says
    "surcharge",  # on top of the fare: an access fee, an overstay
    "companions",  # further persons on the same tap, at the list fare
    "product",  # covered by a pass or by a book's coupon
    "discount",  # a concession or campaign
    "transfer",  # an adjustment because legs form a group
    "reward",  # the n-th ride costs less
    "cap",  # what a cap takes off, or gives back when an earlier leg became cheaper
    "rebate",  # given back after a period
    "hold",  # taken at entry and given back at settlement
    "sale",  # the price of a pass or book
    "release",  # one day's part of a pass's price, for sharing: no rider's money moves
    "expiry",  # what is left of a book at its end, likewise
]
LegStatus: TypeAlias = Literal[
    "open",  # entered, not yet left
    "complete",
    "cancelled",  # left where entered, within the grace
    "missing_exit",
    "missing_entry",
    "late_exit",  # the exit came after the longest stay; the maximum stands
    "unknown",  # no rule gives a price: it is in a queue, and not zero
]


class Line(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One reason for one amount. The rider's charge is the sum of `amount`; the operators' pool receives
    `amount + funded` of it all, where `funded` is what the bearer pays for what the rider does not."""

    leg_id: str
    kind: LineKind
    rule_id: str
    amount: int
    bearer: str
    """Who bears it: `rider`, `operators`, `product:<id>`, or a party."""
    funded: int
    cause: str
    """The fact that made this line, or `<leg>/overdue`, `<sale>/day/2`, `<sale>/expiry` where only time passed."""
    version_id: str
    service_day: int
    """The service day that the line is for: its leg's, its sale's, or the day that is released."""


class Leg(msgspec.Struct, gc=False):
    """One ride. Its first tap names it; it fills up while the rider travels."""

    leg_id: str
    token_id: str
    media: str
    rider_category: str
    network_id: str | None
    route_id: str | None
    operator_id: str | None
    from_stop_id: str | None
    to_stop_id: str | None
    entry_at: int | None
    exit_at: int | None
    service_day: int
    version_id: str
    status: LegStatus
    persons: int = 1
    hold: int = 0
    net: int = 0
    """What the holder pays for it so far, before caps."""
    reason: str = ""
    given: Given | None = None
    """What the first tap brought along; of the last tap: `exit_given`."""
    exit_given: Given | None = None
    leg_group_id: str = ""
    """Of the rule of `fare_leg_rules.txt` that priced it."""
    due: int = 0
    """While open: the last instant at which its exit is in time."""
    base: int = 0
    """The part of its list fare that is paid once where legs share a base."""
    follows: tuple[tuple[str, str], ...] = ()
    """(joining rule, the earlier leg): what it was joined to."""
    counted: dict[str, int] | None = None
    """Of rules that must know it again: what it cost when a window with candidates counted it; its number for a reward."""
    periods: dict[str, int] | None = None
    """Rule id → the period it was counted in, of rules whose periods begin with a leg."""
    vehicle_id: str | None = None


def began(leg: Leg) -> int:
    """The instant of a leg's first tap."""
    at = leg.entry_at if leg.entry_at is not None else leg.exit_at
    assert at is not None
    return at


def ended(leg: Leg) -> int:
    """The instant of a leg's last tap."""
    at = leg.exit_at if leg.exit_at is not None else leg.entry_at
    assert at is not None
    return at


def journey_of(leg: Leg, legs: Mapping[str, Leg]) -> str:
    """The leg that began the journey: the earliest of those that joining rules put this one together with."""
    while leg.follows:
        earlier = [legs[leg_id] for _, leg_id in leg.follows if leg_id in legs]
        if not earlier:
            return min(leg_id for _, leg_id in leg.follows)
        leg = min(earlier, key=lambda found: (began(found), found.leg_id))
    return leg.leg_id


class Sale(msgspec.Struct, frozen=True, gc=False):
    """A pass or book that was bought."""

    sale_id: str
    product_id: str
    token_id: str
    media: str
    at: int
    service_day: int
    version_id: str


def line_id(line: Line) -> LineId:
    """Ids come from causes: the same fact acting on the same leg by the same rule is the same line, on every rerun."""
    text = "\x1f".join((line.cause, line.leg_id, line.kind, line.rule_id))
    return LineId(hashlib.sha256(text.encode()).hexdigest()[:32])
