"""Legs priced as one: what a leg pays is what its group is worth with it, less what the group was worth without it.

Acts on list fares, before discounts, so that a concession is a part of the whole fare. The group's worth is, by the rule,
one ride from the first entry to the last exit, the legs' distances added, the longest line between an entry and an exit, a
price by position, or each leg for itself with one base for all."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import msgspec

from fare_engine.pricing import joins
from fare_engine.pricing.groups import EARLIER
from fare_engine.pricing.lines import Leg
from fare_engine.pricing.state import Group
from fare_engine.tariff.compile import Join, LegPrice, NoPrice, Terms
from fare_engine.tariff.model import AS_ONE, FareTransferRule
from fare_engine.tariff.prices import straight_line_m

if TYPE_CHECKING:
    from fare_engine.pricing.fold import Fold


class Adjustment(msgspec.Struct, frozen=True):
    """What a rule changes on a leg's list fare."""

    join: Join
    amount: int
    version_id: str


def adjust(fold: Fold, leg: Leg, terms: Terms) -> list[Adjustment] | NoPrice:
    """Join a leg, whose list fare is known, to the groups it fits, and bring its net to what it pays as a part of them.

    Where a group's worth cannot be told, the leg's price is unknown."""
    found: list[Adjustment] = []
    own = {join.rule.rule_id: join for join in terms.as_one}
    transferred = False
    for rule_id in joins.running_rules(fold, own, AS_ONE):
        fitting = joins.latest_group(fold, rule_id, leg)
        if fitting is None:
            if rule_id in own:
                joins.begin_group(fold, own[rule_id], leg, leg.net)
            continue
        group, join = fitting
        if join.transfer is not None:
            if transferred:
                continue
            transferred = True
        pays = _pays(fold, group, join, leg)
        if isinstance(pays, NoPrice):
            return pays
        joins.extend_group(fold, group, leg)
        if pays != leg.net:
            owner = group.version_id if join.rule.owner == "first_leg" else leg.version_id
            found.append(Adjustment(join, pays - leg.net, owner))
            leg.net = pays
    return found


def follow_unpriced(fold: Fold, leg: Leg, terms: Terms) -> None:
    """A leg whose own price is unknown still takes its place: what later legs cost as a part of its groups may be unknown,
    too, or (by position) not depend on it."""
    taken = [group for group in fold.state.groups if group.last is leg]  # before it turned out to have no price
    for group in taken:
        group.worth = None
    for join in (*terms.as_one, *terms.transfers):
        if any(group.rule_id == join.rule.rule_id for group in taken):
            continue
        fitting = joins.latest_group(fold, join.rule.rule_id, leg)
        if fitting is None:
            joins.begin_group(fold, join, leg, None)
        else:
            joins.extend_group(fold, fitting[0], leg)
            fitting[0].worth = None


def _pays(fold: Fold, group: Group, join: Join, leg: Leg) -> int | NoPrice:
    rule = join.rule
    if join.transfer is not None:
        return _pays_transfer(fold, group, join.transfer, leg)
    if rule.worth == "position":
        return min(leg.net, rule.transfer_amounts[min(group.transfers, len(rule.transfer_amounts) - 1)])
    if rule.worth == "base_once":
        return max(0, leg.net - leg.base)
    if group.worth is None:
        return NoPrice(EARLIER)
    whole = leg.net if leg.status == "missing_exit" else _worth(fold, group, join, leg)
    if isinstance(whole, NoPrice):
        return whole
    difference = whole - group.worth
    group.worth = whole if rule.below_zero == "paid_back" else max(whole, group.worth)
    return difference if rule.below_zero == "paid_back" else max(0, difference)


def _pays_transfer(fold: Fold, group: Group, transfer: FareTransferRule, leg: Leg) -> int | NoPrice:
    """GTFS `fare_transfer_type`, for legs A and B with the product AB: A + AB, A + AB + B, or AB alone."""
    amount: int | None = 0
    if transfer.fare_product_id is not None:
        prices = fold.tariff.versions[group.version_id].prices
        amount = prices.product_price(transfer.fare_product_id, leg.media, leg.rider_category)
    if amount is None:
        return NoPrice()
    if transfer.fare_transfer_type == 0:
        return amount
    if transfer.fare_transfer_type == 1:
        return leg.net + amount
    if group.worth is None:
        return NoPrice(EARLIER)
    pays = max(0, amount - group.worth)
    group.worth = max(amount, group.worth)
    return pays


def _worth(fold: Fold, group: Group, join: Join, leg: Leg) -> int | NoPrice:
    """What a group's legs and this one cost as one."""
    prices = fold.tariff.versions[group.version_id].prices
    legs = [*group.legs, leg]
    chain = next((given.chain_distance_m for given in (leg.exit_given, leg.given) if given is not None), None)
    price: LegPrice | NoPrice
    if join.rule.worth == "through":
        price = prices.through(group.legs[0], leg, chain)
        if isinstance(price, NoPrice) and price.missing == "distance_km":
            price = NoPrice("chain_distance_km")
    elif join.rule.worth == "zones":
        price = prices.spanning([*legs])
    elif join.rule.worth == "distance":
        if chain is None:
            parts = [prices.counted_m(one) for one in legs]
            chain = sum(part for part in parts if part is not None) if None not in parts else None
        price = prices.joined([*legs], chain)
    else:
        if chain is None:
            chain = _longest_line(fold, group, legs)
        if chain is None:
            return NoPrice("chain_distance_km")
        price = prices.joined([*legs], chain)
    return price if isinstance(price, NoPrice) else price.amount


def _longest_line(fold: Fold, group: Group, legs: list[Leg]) -> int | None:
    """The longest straight line, in metres, between any entry and any exit of some legs; None where a place is not known."""
    prices = fold.tariff.versions[group.version_id].prices
    entries = [prices.position(leg.from_stop_id, leg.given) for leg in legs]
    exits = [prices.position(leg.to_stop_id, leg.exit_given) for leg in legs]
    lines = [straight_line_m(here, there) if here and there else None for here, there in product(entries, exits)]
    return max((line for line in lines if line is not None), default=None) if None not in lines else None
