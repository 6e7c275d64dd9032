"""Legs that cost less because they belong together: transfers, reckoned on what each costs after discounts.

A pair takes an amount off each of two legs when the second is ridden. A group is worth its dearest leg, or each leg a per
cent of its own fare by position. A leg that costs its rider something takes part; nothing becomes cheaper than free."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fare_engine.money import rate_of, rounded_to
from fare_engine.pricing import joins, rewards
from fare_engine.pricing.lines import Leg, ended
from fare_engine.pricing.state import Group
from fare_engine.tariff.compile import Join, NoPrice, Terms
from fare_engine.tariff.model import AFTER_DISCOUNTS

if TYPE_CHECKING:
    from fare_engine.pricing.fold import Fold

EARLIER = "the price of an earlier ride"


def join(fold: Fold, leg: Leg, terms: Terms) -> None:
    """Join the leg, just completed and not free, to what it fits, and offer it to later ones."""
    state = fold.state
    if terms.transfers or state.groups:
        _join_groups(fold, leg, terms)
    if not state.joinable and not terms.pairs:
        return
    transfers = 0
    for first in reversed(state.joinable):
        rule = _fitting(fold, first, leg)
        if rule is not None:
            transfers = state.transfers.pop(first.leg_id, 0) + 1
            state.joinable.remove(first)
            _adjust_pair(fold, first, leg, rule)
            break
    _offer(fold, leg, terms, transfers)


def _join_groups(fold: Fold, leg: Leg, terms: Terms) -> None:
    own = {join.rule.rule_id: join for join in terms.transfers}
    for rule_id in joins.running_rules(fold, own, AFTER_DISCOUNTS):
        fitting = joins.latest_group(fold, rule_id, leg)
        if fitting is None:
            if rule_id in own:
                joins.begin_group(fold, own[rule_id], leg, leg.net)
            continue
        group, join = fitting
        pays = _pays(group, join, leg)
        joins.extend_group(fold, group, leg)
        if join.rule.restarts == "on_payment" and pays:
            group.opened_by = group.transfers
        group.worth = max(group.worth or 0, leg.net)
        if pays != leg.net:
            owner = group.version_id if join.rule.owner == "first_leg" else leg.version_id
            fold.add_line(leg, "transfer", rule_id, pays - leg.net, join.rule.bearer, owner)
            leg.net = pays


def lacking(fold: Fold, leg: Leg, terms: Terms) -> NoPrice | None:
    """Where a leg belongs to a group whose worth hangs on a leg without a price, its own price is not known either."""
    for join in terms.transfers:
        if join.rule.worth == "dearest":
            fitting = joins.latest_group(fold, join.rule.rule_id, leg)
            if fitting is not None and fitting[0].worth is None:
                return NoPrice(EARLIER)
    return None


def _pays(group: Group, join: Join, leg: Leg) -> int:
    """What the group is worth with the leg, less what it was worth without it."""
    if join.rule.worth == "dearest":
        return max(0, leg.net - (group.worth or 0))
    percents = join.rule.percents
    position = len(group.legs)
    return rounded_to(rate_of(leg.net, percents[min(position, len(percents) - 1)]), "half_up")


def _fitting(fold: Fold, first: Leg, second: Leg) -> Join | None:
    """The rule, if any, by which `second` may follow `first` as a pair; the first leg's version owns it."""
    first_terms = fold.terms_of(first)
    if first_terms is None:
        return None
    for candidate in first_terms.pairs:
        if fold.state.transfers.get(first.leg_id, 0) >= candidate.rule.max_transfers:
            fold.passed(second, candidate.rule.rule_id, "max_transfers")
            continue
        reason = joins.failing(fold, candidate, first, second, first, first)
        if reason is None:
            if candidate.rule.owner == "leg":
                return fold.version_of(second).joins.get(candidate.rule.rule_id)
            return candidate
        fold.passed(second, candidate.rule.rule_id, reason)
    return None


def _adjust_pair(fold: Fold, first: Leg, second: Leg, join: Join) -> None:
    rule = join.rule
    second.follows = (*second.follows, (rule.rule_id, first.leg_id))
    owner = first.version_id if rule.owner == "first_leg" else second.version_id
    first_terms = fold.terms_of(first)
    assert first_terms is not None
    off_first = min(rule.off_first, max(0, first.net))
    off_second = rule.off_second
    if rule.percent_off_second:
        off_second += rounded_to(rate_of(second.net, rule.percent_off_second), "half_up")
    off_second = min(off_second, second.net)
    if off_first:
        first.net -= off_first
        fold.add_line(first, "transfer", rule.rule_id, -off_first, rule.bearer, owner)
        rewards.change(fold, first, -off_first, first_terms)
    if off_second:
        second.net -= off_second
        fold.add_line(second, "transfer", rule.rule_id, -off_second, rule.bearer, owner)


def _offer(fold: Fold, leg: Leg, terms: Terms, transfers: int) -> None:
    """Keep the leg while it may be the first of a pair, and forget those whose windows have closed."""
    state = fold.state
    if state.joinable:
        _forget_closed(fold, joins.running_since(fold, ended(leg)))
    if transfers < terms.most_pairs:
        state.joinable.append(leg)
        if transfers:
            state.transfers[leg.leg_id] = transfers


def _forget_closed(fold: Fold, since: int) -> None:
    state = fold.state
    for old in [old for old in state.joinable if not _still_joinable(fold, old, since)]:
        state.joinable.remove(old)
        state.transfers.pop(old.leg_id, None)


def _still_joinable(fold: Fold, leg: Leg, since: int) -> bool:
    """A leg stays until its windows have passed for every ride that begins now, or is under way since an earlier instant."""
    terms = fold.terms_of(leg)
    return terms is not None and since - ended(leg) <= terms.longest_pair_ms
