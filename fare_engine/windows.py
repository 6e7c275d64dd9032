"""The open window of a traveller's record: what is old is closed and put away, so that a tap costs what a week holds, not a life.

A closed window is a record like any other: its facts, what is booked of them, and the state before them. The record goes on from
the state after it. Closed windows are opened again when a fact comes that may touch them: a price depends on facts alone, and
never on what is put away. A window is only closed where nothing is pending at its end, and where both parts, folded one after the
other, give what the whole gave; if that is not so, an earlier end is tried, and else it stays open. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from fare_engine import booking
from fare_engine.booking import Record, Ridden
from fare_engine.facts import Cancellation, Completion, Correction, Fact
from fare_engine.pricing.fold import Folded
from fare_engine.pricing.lines import Leg, line_id
from fare_engine.rides import book_rides
from fare_engine.service_day import DAY_MS, day_starts_at
from fare_engine.tariff.compile import CompiledTariff


class Ages(NamedTuple):
    """When windows are closed, in milliseconds."""

    open_ms: int = 7 * DAY_MS
    """A window is closed when its first fact is older than this."""
    kept_ms: int = 3 * DAY_MS
    """So much is left open."""
    longest_ms: int = 10 * DAY_MS
    """No closed window is longer, so that opening the last one again does not cost a life either."""
    every: int = 8
    """Only every so many facts it is tried: a window that cannot be closed is folded in vain no more often."""


USUAL = Ages()
REACH_MS = 2 * DAY_MS
"""A fact may touch rides up to this long before it: overdue exits, joined rides, taps over the turn of the day."""
HABIT_MS = 30 * DAY_MS
"""Rides this long ago still make a habit (`mending`): they are remembered beside the open window."""
ENDS_TRIED = 4


def reaches(record: Record, at: int) -> bool:
    """Whether a record's open window holds all that a fact of this time may touch. The release before keeps a record's base
    and forgets where its window begins: then it is not known."""
    return record.base is None or (record.since > 0 and at >= record.since + REACH_MS)


def begins_to_act(fact: Fact) -> int:
    """The earliest time that a fact may concern, but for REACH_MS and for what it speaks of."""
    return min(fact.begins, fact.begins + fact.shift_ms) if isinstance(fact, Correction) else fact.at


def is_due(record: Record, now: int, ages: Ages = USUAL) -> bool:
    """Whether a window should be closed: asked at every tap, so it looks at little."""
    facts = record.facts
    return bool(facts) and len(facts) % ages.every == 0 and facts[0].at < now - ages.open_ms


def close(tariff: CompiledTariff, traveller_id: str, record: Record, now: int, ages: Ages = USUAL) -> list[Record]:
    """Take what is old out of a record that was just priced, as closed windows, the oldest first."""
    closed = []
    while (part := _close_first(tariff, traveller_id, record, now, ages)) is not None:
        closed.append(part)
    return closed


def open_again(closed: Sequence[Record], record: Record) -> Record:
    """The record as if these windows, the oldest first and the last of them just before it, had never been closed.

    It has the oldest revision among them: what another revision would price otherwise is drift, as it was before."""
    first = closed[0]
    parts = (*closed, record)
    facts = {fact.fact_id: fact for part in parts for fact in part.facts}
    revisions = [part.revision for part in parts if part.revision != record.revision]
    return msgspec.structs.replace(
        record,
        facts=list(facts.values()),
        refused=[tap for part in parts for tap in part.refused],
        booked={name: booked for part in parts for name, booked in part.booked.items()},
        rides={leg_id: ride for part in parts for leg_id, ride in part.rides.items()},
        base=first.base,
        since=first.since,
        earlier=first.earlier,
        revision=revisions[0] if revisions else record.revision,
    )


def ridden(legs: Iterable[Leg], earlier: Iterable[Ridden]) -> list[Ridden]:
    """The complete rides among some legs, and those that a record remembers: each once."""
    found = {ride.leg_id: ride for ride in earlier}
    for leg in legs:
        if leg.status == "complete" and leg.entry_at is not None and leg.exit_at is not None:
            ride = Ridden(leg.leg_id, leg.network_id, leg.from_stop_id, leg.to_stop_id, leg.entry_at, leg.exit_at)
            found[leg.leg_id] = ride
    return list(found.values())


def _close_first(tariff: CompiledTariff, traveller_id: str, record: Record, now: int, ages: Ages) -> Record | None:
    """The first window of a record, taken out of it; None where nothing is old enough, or no end can be found."""
    oldest = min((fact.at for fact in record.facts), default=now)
    if oldest >= now - ages.open_ms:
        return None
    whole = booking.price(tariff, record, record.as_of)
    for end in _ends(tariff, oldest, min(oldest + ages.longest_ms, now - ages.kept_ms)):
        parts = _parted(tariff, record, end)
        if parts is not None and _are_equal(tariff, traveller_id, parts, whole, record.as_of, end):
            closed, rest = parts
            for name in Record.__struct_fields__:
                setattr(record, name, getattr(rest, name))
            return closed
    return None


def _ends(tariff: CompiledTariff, oldest: int, latest: int) -> Iterator[int]:
    """Where a window may end: at the turn of a service day, the latest first."""
    version = tariff.version_at(latest)
    day_start_ms = version.day_start_ms if version is not None else 0
    day = tariff.service_day(latest)
    for back in range(ENDS_TRIED):
        end = day_starts_at(day - back, tariff.zone, day_start_ms)
        if end > oldest:
            yield end


def _parted(tariff: CompiledTariff, record: Record, end: int) -> tuple[Record, Record] | None:
    """A record's two parts; None where a clock correction concerns both."""
    if any(_straddles(fact, end) for fact in record.facts if isinstance(fact, Correction)):
        return None
    held = {fact.fact_id for fact in (*record.facts, *record.refused)}
    apart = [fact for fact in record.facts if _spoken_of(fact) not in held]
    early = {fact.fact_id for fact in (*apart, *record.refused) if begins_to_act(fact) < end}
    early |= {fact.fact_id for fact in record.facts if _spoken_of(fact) in early}
    if not early:
        return None
    closed = msgspec.structs.replace(
        record,
        facts=[fact for fact in record.facts if fact.fact_id in early],
        refused=[tap for tap in record.refused if tap.fact_id in early],
    )
    folded = booking.price(tariff, closed, end)
    if _is_pending(folded):
        return None
    lines = {line_id(line) for line in folded.lines}
    legs = {line.leg_id for line in folded.lines if line.kind == "list_fare"}
    closed.as_of, closed.waived = end, {}
    closed.booked = {
        name: booked
        for name, booked in record.booked.items()
        if (name in lines if booking.stands(booked) else booked.line.cause.removesuffix("/overdue") in early)
    }
    closed.rides = {
        leg_id: ride for leg_id, ride in record.rides.items() if (leg_id in legs if ride.generation % 2 == 0 else leg_id in early)
    }
    rest = msgspec.structs.replace(
        record,
        facts=[fact for fact in record.facts if fact.fact_id not in early],
        refused=[tap for tap in record.refused if tap.fact_id not in early],
        booked={name: booked for name, booked in record.booked.items() if name not in closed.booked},
        rides={leg_id: ride for leg_id, ride in record.rides.items() if leg_id not in closed.rides},
        base=folded.state,
        since=end,
        earlier=[ride for ride in ridden(folded.legs.values(), record.earlier) if ride.entry_at >= end - HABIT_MS],
    )
    return closed, rest


def _are_equal(
    tariff: CompiledTariff, traveller_id: str, parts: tuple[Record, Record], whole: Folded, as_of: int, end: int
) -> bool:
    """Whether a record's parts, folded one after the other, move nothing and come to the same state as the whole."""
    for part, through in zip(parts, (end, as_of), strict=True):
        copy = booking.decode(booking.encode(part))
        folded = booking.price(tariff, copy, through)
        if booking.book(traveller_id, copy, folded) or book_rides(traveller_id, copy.rides, folded, tariff, None):
            return False
    return folded.state == whole.state


def _is_pending(folded: Folded) -> bool:
    """Whether something of it is still open, or has no price yet."""
    state = folded.state
    return bool(state.open_legs or state.overdue) or any(leg.status == "unknown" for leg in folded.legs.values())


def _straddles(correction: Correction, end: int) -> bool:
    first, last = correction.begins, correction.ends
    return min(first, first + correction.shift_ms) < end < max(last, last + correction.shift_ms)


def _spoken_of(fact: Fact) -> str:
    """The tap that a fact speaks of, whose part it goes with."""
    if isinstance(fact, Cancellation):
        return fact.tap_id
    return fact.leg_id if isinstance(fact, Completion) else ""
