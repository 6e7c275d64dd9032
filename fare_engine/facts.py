"""A traveller's facts and their order.

A price is a function of facts, never of the order in which they arrived: whatever comes in, in whatever order and however
often, `in_order` gives the same sequence. Each fact carries its own effective time; a tap's is the terminal's clock with
the offset that the terminal itself wrote into it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    vehicle_id: str | None = None


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


class Completion(msgspec.Struct, frozen=True, gc=False, tag="completion", array_like=True):
    """Where an exit is missing: the exit that is taken to have happened. A real exit, whenever it comes in, beats it.

    `source` says how it is known: the rider claimed it, or it was the usual journey, or the next tap shows it."""

    fact_id: str
    at: int
    """When the rider is taken to have left."""
    device_id: str
    epoch: str
    sequence: int
    leg_id: str
    """The entry that it completes."""
    stop_id: str
    source: Literal["claim", "next_tap", "habit"]
    recorded_at: int


class Correction(msgspec.Struct, frozen=True, gc=False, tag="correction", array_like=True):
    """A device's clock was off: its taps of `begins <= at < ends`, as they carry their times, happened `shift_ms` later.

    Found out afterwards, by whoever looks after devices; of several for one tap, the one recorded last holds."""

    fact_id: str
    at: int
    """When it was recorded; it acts on the taps it names, whenever they came or come in."""
    device_id: str
    epoch: str
    sequence: int
    begins: int
    ends: int
    shift_ms: int


Fact: TypeAlias = Tap | Purchase | Cancellation | Completion | Correction


def order_key(fact: Fact) -> tuple[int, str, str, int]:
    """Facts stand in the order of (effective time, device, epoch, sequence)."""
    return (fact.at, fact.device_id, fact.epoch, fact.sequence)


_PLACE = attrgetter("at", "device_id", "epoch", "sequence")
_SOURCES = ("habit", "next_tap", "claim")
"""Of several completions of one leg the last of these holds, then the one recorded last."""
_LONGEST_RIDE_MS = 24 * 3600 * 1000
"""An exit later than this is no longer looked upon as the missing one."""


def in_order(facts: Iterable[Fact]) -> list[Tap | Purchase]:
    """The facts that act, each once, in their order: taps at their corrected times, without those that an OUTCOME record
    cancels, and with the exits that complete a ride without one."""
    once = {fact.fact_id: fact for fact in facts}
    acting = [fact for fact in once.values() if isinstance(fact, Tap | Purchase)]
    if len(acting) < len(once):
        acting = _told_by_others(acting, once.values())
    acting.sort(key=_PLACE)
    return acting


def _told_by_others(acting: list[Tap | Purchase], facts: Iterable[Fact]) -> list[Tap | Purchase]:
    """What the facts that speak of taps make of them."""
    cancelled: set[str] = set()
    corrections: list[Correction] = []
    completions: list[Completion] = []
    for fact in facts:
        if isinstance(fact, Cancellation):
            cancelled.add(fact.tap_id)
        elif isinstance(fact, Correction):
            corrections.append(fact)
        elif isinstance(fact, Completion):
            completions.append(fact)
    corrections.sort(key=lambda correction: (correction.at, correction.fact_id))
    found = [_corrected(fact, corrections) for fact in acting if fact.fact_id not in cancelled]
    return [*found, *_completing(found, completions)]


def _corrected(fact: Tap | Purchase, corrections: Sequence[Correction]) -> Tap | Purchase:
    """A tap at the time that the latest correction for it gives."""
    for correction in reversed(corrections):
        if isinstance(fact, Tap) and correction.device_id == fact.device_id and correction.begins <= fact.at < correction.ends:
            return msgspec.structs.replace(fact, at=fact.at + correction.shift_ms)
    return fact


def _completing(acting: Iterable[Tap | Purchase], completions: Iterable[Completion]) -> list[Tap]:
    """The exits that completions stand for: one for each entry whose token was not tapped at an exit next."""
    taps = sorted((fact for fact in acting if isinstance(fact, Tap)), key=_PLACE)
    chosen: dict[str, Completion] = {}
    for told in sorted(completions, key=lambda one: (_SOURCES.index(one.source), one.recorded_at, one.fact_id)):
        chosen[told.leg_id] = told
    found = []
    for number, entry in enumerate(taps):
        completion = chosen.get(entry.fact_id)
        if completion is None or entry.action != "entry":
            continue
        after = next((tap for tap in taps[number + 1 :] if tap.token_id == entry.token_id and tap.action != "board"), None)
        if after is not None and after.action == "exit" and after.at - entry.at <= _LONGEST_RIDE_MS:
            continue  # a real exit beats it
        before_next = after.at - 1 if after is not None else completion.at
        found.append(
            Tap(
                completion.fact_id,
                max(min(completion.at, before_next), entry.at + 1),
                completion.device_id,
                completion.epoch,
                completion.sequence,
                "exit",
                entry.token_id,
                entry.media,
                entry.rider_category,
                completion.stop_id,
                entry.route_id,
            )
        )
    return found
