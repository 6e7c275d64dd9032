"""The n-th ride of a period costs less, and money comes back after a period.

A reward looks at what was counted before the leg: rides, journeys (legs that its joining rules put together are one) or
money spent. A rebate is reckoned when its period has ended, and hangs on the last leg that was counted."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

from fare_engine.money import rate_of, rounded_to
from fare_engine.pricing import periods
from fare_engine.pricing.lines import Leg, Line
from fare_engine.pricing.state import Owed
from fare_engine.service_day import day_starts_at, monday_of, month_of, to_date, to_day
from fare_engine.tariff.compile import ReadyReward, Terms
from fare_engine.tariff.model import OPERATORS, Rebate, Reward, RewardStep

if TYPE_CHECKING:
    from fare_engine.pricing.fold import Fold


def take(fold: Fold, leg: Leg, terms: Terms) -> None:
    """Take off what the leg's number gives, before caps."""
    for reward in terms.rewards:
        rule = reward.rule
        if not fold.holds(leg, reward.ready, rule.rule_id):
            continue
        number = _number(fold, leg, rule)
        counted = leg.counted = leg.counted or {}
        counted[rule.rule_id] = number
        step = next((step for step in reversed(_steps(fold, leg, rule)) if number >= step.after), None)
        if step is None or (step.until and number >= step.until):
            fold.passed(leg, rule.rule_id, "not reached")
            continue
        off = min(rounded_to(rate_of(leg.net, step.percent), rule.rounding, rule.round_to), leg.net)
        if off > 0:
            leg.net -= off
            fold.add_line(leg, "reward", rule.rule_id, -off, rule.bearer)


def change(fold: Fold, leg: Leg, amount: int, terms: Terms) -> None:
    """The charge of a settled leg has changed: as far as it was counted, keep the limits' promises, and count what is left."""
    if periods.counts(leg, terms):
        amount = periods.count(fold, leg, amount, terms)
    if leg.status == "complete":
        count_spending(fold, leg, terms, amount)


def count(fold: Fold, leg: Leg, terms: Terms, left: int) -> None:
    """Count a leg of which its rider is left to pay `left`, after caps."""
    for reward in terms.rewards:
        rule = reward.rule
        counted = leg.counted
        if counted is None or rule.rule_id not in counted or rule.counts == "spending":
            continue
        if (left > 0 or not rule.paid_only) and not _counted_already(fold, leg, rule):
            periods.add_to_counter(fold.state, rule.rule_id, periods.period_of(fold.state, rule, leg), 1)
            counted[_mark(rule)] = 1
    count_spending(fold, leg, terms, left, legs=1)


def count_spending(fold: Fold, leg: Leg, terms: Terms, left: int, legs: int = 0) -> None:
    """What a rider is left to pay for a leg has changed: it counts for rewards by spending, and for rebates."""
    for reward in terms.rewards:
        _count_spending(fold, leg, reward, left)
    for rebate in terms.rebates:
        if fold.holds(leg, rebate.ready, rebate.rule.rule_id):
            _owe(fold, leg, rebate.rule, left, legs)


def pay_rebates(fold: Fold, at: int) -> None:
    """Give back what the periods that end at an instant have earned."""
    for owed in [owed for owed in fold.state.owed if owed.due == at]:
        fold.state.owed.remove(owed)
        rule = fold.tariff.versions[owed.version_id].rebates[owed.rule_id]
        amount = _rebate(rule, owed)
        if amount:
            fold.cause = f"{owed.rule_id}/{to_date(owed.period).isoformat()}"
            funded = 0 if rule.bearer == OPERATORS else amount
            day = fold.tariff.versions[owed.version_id].service_day(at)
            leg_id = owed.last.leg_id
            fold.legs.setdefault(leg_id, owed.last)
            fold.lines.append(
                Line(leg_id, "rebate", rule.rule_id, -amount, rule.bearer, funded, fold.cause, owed.version_id, day)
            )


def _steps(fold: Fold, leg: Leg, rule: Reward) -> tuple[RewardStep, ...]:
    """The steps of the version that owns them."""
    begun = fold.state.anchors.get(rule.rule_id)
    first = rule.period == "days" and (begun is None or not periods.runs_on(rule, begun, leg.service_day))
    if rule.owner == "leg" or first:
        return rule.steps
    version_id = periods.owner_of(fold, (rule.rule_id, periods.period_of(fold.state, rule, leg)), leg)
    owned = fold.tariff.versions[version_id].rewards.get(rule.rule_id)
    return owned.steps if owned is not None else rule.steps


def _number(fold: Fold, leg: Leg, rule: Reward) -> int:
    """How much was counted before the leg, or before the journey that it continues."""
    if rule.counts == "journeys":
        earlier = _continued(fold, leg, rule)
        if earlier is not None:
            return earlier[rule.rule_id]
    if rule.period == "days":
        begun = fold.state.anchors.get(rule.rule_id)
        running = begun is not None and periods.runs_on(rule, begun, leg.service_day)
        return fold.state.counters.get((rule.rule_id, begun or 0), 0) if running else 0
    return fold.state.counters.get((rule.rule_id, periods.period_of(fold.state, rule, leg)), 0)


def _continued(fold: Fold, leg: Leg, rule: Reward) -> dict[str, int] | None:
    """What the leg before it in its journey remembers, if it was counted in the same period."""
    for rule_id, leg_id in leg.follows:
        earlier = fold.legs.get(leg_id)
        if rule_id in rule.journeys_of and earlier is not None and earlier.counted and rule.rule_id in earlier.counted:
            same = periods.period_of(fold.state, rule, earlier) == periods.period_of(fold.state, rule, leg)
            return earlier.counted if same else None
    return None


def _counted_already(fold: Fold, leg: Leg, rule: Reward) -> bool:
    if rule.counts != "journeys":
        return False
    earlier = _continued(fold, leg, rule)
    if earlier is None or leg.counted is None or _mark(rule) not in earlier:
        return False
    leg.counted[_mark(rule)] = 1
    return True


def _mark(rule: Reward) -> str:
    """Under this name a leg remembers that its journey is counted."""
    return f"{rule.rule_id}/counted"


def _count_spending(fold: Fold, leg: Leg, reward: ReadyReward, left: int) -> None:
    rule = reward.rule
    if rule.counts == "spending" and leg.counted and rule.rule_id in leg.counted:
        periods.add_to_counter(fold.state, rule.rule_id, periods.period_of(fold.state, rule, leg), left)


def _owe(fold: Fold, leg: Leg, rule: Rebate, left: int, legs: int) -> None:
    day = leg.service_day
    period = monday_of(day) if rule.period == "week" else month_of(day)
    for owed in fold.state.owed:
        if owed.rule_id == rule.rule_id and owed.period == period:
            owed.spent += left
            owed.legs += legs
            if legs:
                owed.last = leg
                if rule.owner == "last_leg":
                    owed.version_id = leg.version_id
            return
    version = fold.version_of(leg)
    after = period + 7 if rule.period == "week" else _next_month(period)
    due = day_starts_at(after + 1, version.zone, version.day_start_ms)
    fold.state.owed.append(Owed(rule.rule_id, leg.version_id, period, due, left, legs, leg))
    fold.state.reckon_next_due()


def _next_month(first: int) -> int:
    date = to_date(first)
    return to_day(date.replace(year=date.year + date.month // 12, month=date.month % 12 + 1))


def _rebate(rule: Rebate, owed: Owed) -> int:
    if owed.legs < rule.at_least:
        return 0
    if rule.by == "legs":
        reached = [tier for tier in rule.tiers if owed.legs > tier.above]
        exact = rate_of(owed.spent, reached[-1].percent) + reached[-1].amount * owed.legs if reached else Fraction(0)
        return _bounded(rule, owed, exact)
    exact = Fraction(0)
    ends = [tier.above for tier in rule.tiers[1:]]
    for tier, end in zip(rule.tiers, [*ends, owed.spent], strict=True):
        exact += rate_of(max(0, min(owed.spent, max(end, tier.above)) - tier.above), tier.percent)
    return _bounded(rule, owed, exact)


def _bounded(rule: Rebate, owed: Owed, exact: Fraction) -> int:
    """Never more than was spent."""
    amount = max(0, min(rounded_to(exact, rule.rounding, rule.round_to), owed.spent))
    return min(amount, rule.maximum) if rule.maximum else amount
