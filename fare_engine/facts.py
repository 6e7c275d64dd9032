"""A traveller's facts and their order.

A price is a function of facts, never of the order in which they arrived: whatever comes in, in whatever order and however
often, `in_order` gives the same sequence. Each fact carries its own effective time; a tap's is the terminal's clock with
the offset that the terminal itself wrote into it."""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter
from typing import Literal, TypeAlias

import msgspec

TapAction: TypeAlias = Literal["entry", "exit", "board"]


class Given(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What a tap's device or the back office measured: it is used instead of what the network's files say."""

    mode: str | None = None
    areas: tuple[str, ...] = ()
    """The areas of the place; a boundary station is in several."""
    position: tuple[float, float] | None = None
    """Latitude and longitude of the place."""
    distance_m: int | None = None
    """How far the ride went, in metres."""
    chain_distance_m: int | None = None
    """How far the legs priced as one went, up to this one."""
    stops: int | None = None
    """How many stops the ride went."""
    route_length_m: int | None = None
    list_fare: int | None = None
    """The list fare, in minor units: the section that a conductor sold."""


class Tap(msgspec.Struct, frozen=True, gc=False, tag="tap", array_like=True):
    """One presentation of a token at a device, as the fold sees it (EMV transit: a tap; TIDES: `fare_action`)."""

    fact_id: str
    at: int
    """Effective time, milliseconds UTC."""
    device_id: str
    epoch: str
    sequence: int
    action: TapAction
    token_id: str
    media: str
    rider_category: str
    """The category that the traveller's entitlements give at `at`."""
    stop_id: str | None
    route_id: str | None
    operator_id: str | None = None
    """Who ran the vehicle or station at `at`; None: the route's agency."""
    persons: int = 1
    given: Given | None = None


class Purchase(msgspec.Struct, frozen=True, gc=False, tag="purchase", array_like=True):
    """A pass or a book that the traveller bought."""

    fact_id: str
    at: int
    device_id: str
    epoch: str
    sequence: int
    token_id: str
    media: str
    rider_category: str
    product_id: str
    amount: int | None = None
    """Money loaded, of a credit; None: the product's price."""


class Cancellation(msgspec.Struct, frozen=True, gc=False, tag="cancellation", array_like=True):
    """A terminal's OUTCOME record: the named tap did not let its rider through, so it has no effect."""

    fact_id: str
    at: int
    device_id: str
    epoch: str
    sequence: int
    tap_id: str
    reason: str


Fact: TypeAlias = Tap | Purchase | Cancellation


def order_key(fact: Fact) -> tuple[int, str, str, int]:
    """Facts stand in the order of (effective time, device, epoch, sequence)."""
    return (fact.at, fact.device_id, fact.epoch, fact.sequence)


_PLACE = attrgetter("at", "device_id", "epoch", "sequence")


def in_order(facts: Iterable[Fact]) -> list[Tap | Purchase]:
    """The facts that act, each once, in their order; a tap that an OUTCOME record cancels does not act."""
    once = {fact.fact_id: fact for fact in facts}
    for cancellation in [fact for fact in once.values() if isinstance(fact, Cancellation)]:
        once.pop(cancellation.tap_id, None)
        once.pop(cancellation.fact_id, None)
    acting = [*once.values()]
    acting.sort(key=_PLACE)
    return acting  # type: ignore[return-value]  # no cancellation is left
