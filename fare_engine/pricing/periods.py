"""What a period's legs cost together: caps, and windows that are worth the cheapest of several candidates.

A cap's counter holds what its counted legs cost before it; the charge above its amount is taken off on the leg that brought
it, and given back when an earlier leg of the period becomes cheaper. A window with candidates keeps, for every choice of
candidates, what the window would cost under it: each leg adds to each choice by itself, so the least of them is exact and
costs one addition a choice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fare_engine.pricing.lines import Leg, began
from fare_engine.pricing.state import State
from fare_engine.service_day import DAY_MS, MINUTE_MS, monday_of, month_of
from fare_engine.tariff.compile import NoPrice, ReadyBest, ReadyCap, Terms
from fare_engine.tariff.model import BestOf, Cap, Reward

if TYPE_CHECKING:
    from fare_engine.pricing.fold import Fold

KEPT_DAYS = 40
"""Counters of periods that began longer ago are dropped: no leg can belong to them any more."""
MANY = 32
"""Only then is it worth looking for old ones."""
KEPT_MS = 2 * DAY_MS
"""Of windows that begin with a tap, likewise."""


def counts(leg: Leg, terms: Terms) -> bool:
    """Whether a leg counts for the limits of its periods: one without an exit or entry only where its tap rule says so."""
    return leg.status == "complete" or terms.tap_rule.missing_counts_toward_caps


def count(fold: Fold, leg: Leg, change: int, terms: Terms) -> int:
    """The leg's charge has changed by `change`: keep every cap's promise. What the rider is left to pay of the change."""
    day = leg.service_day
    for limit in terms.limits:
        if isinstance(limit, ReadyBest):
            change = _count_best(fold, leg, change, limit)
        elif limit.plain:
            period = day if limit.rule.period == "service_day" else monday_of(day)
            after = add_to_counter(fold.state, limit.rule.rule_id, period, change)
            change = _take_off(fold, leg, change, after, limit.rule, limit.rule.amount)
        else:
            change = _count_cap(fold, leg, change, limit)
    return change


def count_surcharge(fold: Fold, leg: Leg, amount: int, terms: Terms) -> None:
    """A surcharge counts for the caps that are on surcharges."""
    for limit in terms.surcharge_caps:
        amount = _count_cap(fold, leg, amount, limit)


def period_of(state: State, rule: Cap | BestOf | Reward, leg: Leg) -> int:
    """The period of a leg: its first day, or the instant at which a window began. Periods that begin with a leg begin here."""
    day = leg.service_day
    if rule.period == "service_day":
        return day
    if rule.period == "week":
        return monday_of(day)
    if rule.period == "month":
        return month_of(day)
    if leg.periods is None:
        leg.periods = {}
    if rule.rule_id in leg.periods:
        return leg.periods[rule.rule_id]
    begun = state.anchors.get(rule.rule_id)
    if rule.period == "days":
        if begun is None or not runs_on(rule, begun, day):
            begun = day
    else:
        begun = _window_of(rule, leg, begun)
    state.anchors[rule.rule_id] = begun
    leg.periods[rule.rule_id] = begun
    return begun


def runs_on(rule: Cap | BestOf | Reward, begun: int, day: int) -> bool:
    """Whether a period of days is running on a day. A leg that began before the one that was settled first belongs to it."""
    return begun - rule.period_days < day < begun + rule.period_days


def spent(state: State, cap: Cap, leg: Leg) -> int:
    """What a cap's counter holds in the period of a leg."""
    if cap.period in ("days", "window"):
        period = (leg.periods or {}).get(cap.rule_id, state.anchors.get(cap.rule_id, 0))
    else:
        period = period_of(state, cap, leg)
    return min(state.counters.get((cap.rule_id, period), 0), cap.amount)


def add_to_counter(state: State, rule_id: str, period: int, change: int, kept: int = KEPT_DAYS) -> int:
    """Add to a counter, begin it if need be, and give its new value."""
    key = (rule_id, period)
    before = state.counters.get(key)
    if before is None:
        if len(state.counters) >= MANY:
            oldest = period - kept
            state.counters = {old: value for old, value in state.counters.items() if old[0] != rule_id or old[1] > oldest}
        before = 0
    state.counters[key] = before + change
    return before + change


def _window_of(rule: Cap | BestOf | Reward, leg: Leg, begun: int | None) -> int:
    assert isinstance(rule, Cap | BestOf)
    at = began(leg)
    if begun is None:
        return at
    waited, longest = abs(at - begun), rule.window_minutes * MINUTE_MS
    return begun if waited < longest or (waited == longest and rule.end == "at") else at


def _count_cap(fold: Fold, leg: Leg, change: int, limit: ReadyCap) -> int:
    rule = limit.rule
    if not fold.holds(leg, limit.ready, rule.rule_id):
        return change
    period = period_of(fold.state, rule, leg)
    after = add_to_counter(fold.state, rule.rule_id, period, change, KEPT_MS if rule.period == "window" else KEPT_DAYS)
    amount = rule.amount if rule.owner == "leg" else _owners_amount(fold, rule, period, leg)
    return _take_off(fold, leg, change, after, rule, amount)


def _take_off(fold: Fold, leg: Leg, change: int, after: int, rule: Cap, amount: int) -> int:
    """Take off what the counter now has above the cap and had not before. What is left of the change."""
    before = after - change
    if after > amount or before > amount:
        off = max(0, after - amount) - max(0, before - amount)
        if off:
            fold.add_line(leg, "cap", rule.rule_id, -off, rule.bearer)
            return change - off
    if fold.trace is not None:
        fold.passed(leg, rule.rule_id, "not reached")
    return change


def _owners_amount(fold: Fold, rule: Cap, period: int, leg: Leg) -> int:
    """The amount in the version of the period's first counted leg."""
    version_id = owner_of(fold, (rule.rule_id, period), leg)
    owned = fold.tariff.versions[version_id].caps.get(rule.rule_id)
    return owned.rule.amount if owned is not None else rule.amount


def owner_of(fold: Fold, key: tuple[str, int], leg: Leg) -> str:
    """The version of a period's first counted leg."""
    owners = fold.state.owners
    if key not in owners:
        oldest = key[1] - KEPT_DAYS
        fold.state.owners = owners = {old: owner for old, owner in owners.items() if old[0] != key[0] or old[1] > oldest}
        owners[key] = leg.version_id
    return owners[key]


def _count_best(fold: Fold, leg: Leg, change: int, best: ReadyBest) -> int:
    """The candidates of a window are those of the version of its first leg."""
    if not fold.holds(leg, best.ready, best.rule.rule_id):
        return change
    state = fold.state
    key = (best.rule.rule_id, period_of(state, best.rule, leg))
    best = fold.tariff.versions[owner_of(fold, key, leg)].best[best.rule.rule_id]
    rule = best.rule
    if key not in state.windows:
        kept = KEPT_MS if rule.period == "window" else KEPT_DAYS
        state.windows = {old: totals for old, totals in state.windows.items() if old[0] != key[0] or old[1] > key[1] - kept}
        state.windows[key] = list(best.prices)
    totals = state.windows[key]
    worth_before = min(totals)
    if leg.counted is None:
        leg.counted = {}
    cost_before = leg.counted.get(rule.rule_id, 0)
    cost = leg.counted[rule.rule_id] = cost_before + change
    left = _left_to_pay(fold, leg, best)
    for number, choice in enumerate(best.choices):
        bound = min([left[chosen] for chosen in choice]) if choice else NO_BOUND
        totals[number] += min(cost, bound) - min(cost_before, bound)
    worth = min(totals)
    off = change - (worth - worth_before)
    if off:
        taken = "+".join(rule.candidates[chosen].candidate_id for chosen in best.choices[totals.index(worth)])
        fold.add_line(leg, "cap", f"{rule.rule_id}/{taken}" if taken else rule.rule_id, -off, rule.bearer)
    else:
        fold.passed(leg, rule.rule_id, "not cheaper")
    return change - off


NO_BOUND = 1 << 62


def _left_to_pay(fold: Fold, leg: Leg, best: ReadyBest) -> list[int]:
    """The most that is left to pay for a leg under each candidate: nothing, the extension fare, or no bound."""
    version = fold.version_of(leg)
    found = []
    for (candidate, _), covered in zip(best.candidates, version.coverage(best, leg), strict=True):
        bound = 0 if covered == "whole" else NO_BOUND
        if covered == "part":
            extension = version.prices.ride(leg, "extension", candidate=candidate.candidate_id)
            bound = NO_BOUND if isinstance(extension, NoPrice) else extension.amount
        found.append(bound)
    return found
