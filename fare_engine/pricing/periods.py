"""What a period's legs cost together: caps of a service day or a week.

A cap's counter holds what its counted legs cost before it; the charge above its amount is taken off on the leg that brought
it, and given back when an earlier leg of the period becomes cheaper. Caps act in file order, each on what the one before
left. The counter goes on under the cap's id when the tariff changes; its amount is that of the leg's version."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fare_engine.pricing.lines import Leg
from fare_engine.pricing.state import State
from fare_engine.service_day import monday_of
from fare_engine.tariff.compile import Terms
from fare_engine.tariff.model import Cap

if TYPE_CHECKING:
    from fare_engine.pricing.fold import Fold

KEPT_DAYS = 40
"""Counters of periods that began longer ago are dropped: no leg can belong to them any more."""


def count(fold: Fold, leg: Leg, change: int, terms: Terms) -> None:
    """The leg's charge has changed by `change`: keep every cap's promise."""
    state, day = fold.state, leg.service_day
    for cap in terms.caps:
        period = day if cap.period == "service_day" else monday_of(day)
        after = add_to_counter(state, cap.rule_id, period, change)
        before, amount = after - change, cap.amount
        if after > amount or before > amount:
            off = max(0, after - amount) - max(0, before - amount)
            fold.add_line(leg, "cap", cap.rule_id, -off, cap.bearer)
            change -= off


def period_of(cap: Cap, day: int) -> int:
    """The first day of the period in which a service day lies; weeks begin on Monday."""
    return day if cap.period == "service_day" else monday_of(day)


def add_to_counter(state: State, rule_id: str, period: int, change: int) -> int:
    """Add to a counter, begin it if need be, and give its new value."""
    key = (rule_id, period)
    before = state.counters.get(key)
    if before is None:
        state.counters = {old: value for old, value in state.counters.items() if old[1] > period - KEPT_DAYS}
        before = 0
    state.counters[key] = before + change
    return before + change
