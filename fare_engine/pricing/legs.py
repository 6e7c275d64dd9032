"""What one leg costs by itself: entry-only and entry-and-exit taps, taps that never came, products and discounts.

Pairing: an exit closes its own token's open leg on the network first, then the traveller's oldest. What a missing tap costs
is the tariff's tap rule."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fare_engine.facts import Tap
from fare_engine.money import percent_of
from fare_engine.pricing import groups, periods, products
from fare_engine.pricing.lines import Leg, LegStatus
from fare_engine.pricing.state import NEVER
from fare_engine.service_day import DAY_MS
from fare_engine.tariff.compile import CompiledVersion, DatedDiscount, LegPrice, Terms

if TYPE_CHECKING:
    from fare_engine.pricing.fold import Fold


def take_tap(fold: Fold, tap: Tap) -> None:
    """A tap begins a leg, ends one, or both."""
    network = fold.tariff.network_of(tap.route_id, tap.stop_id)
    if tap.action == "exit" and network is not None:
        leg = _open_leg(fold, tap, network)
        if leg is not None:
            _complete(fold, leg, tap, network)
            return
    version = fold.tariff.version_at(tap.at)
    terms = version.terms(network, tap.route_id, tap.media, tap.rider_category) if version and network else None
    if version is None or network is None or terms is None:
        leg = _begin(fold, tap, network, version, "unknown")
        leg.reason = _why_unknown(version, network)
    elif terms.tap_rule.taps == "entry":
        if tap.action == "exit":
            fold.ignored[tap.fact_id] = f"the network {network} has no exit taps"
            return
        leg = _begin(fold, tap, network, version, "complete")
        price = version.leg_price(network, leg.from_stop_id, None, leg.media, leg.rider_category, (tap.at, tap.at))
        settle(fold, leg, price, terms)
    elif tap.action == "exit":
        _exit_without_entry(fold, tap, network, version, terms)
    else:
        _enter(fold, tap, network, version, terms)


def last_instant(fold: Fold, leg: Leg) -> int:
    """The last instant at which an open leg's exit is in time."""
    terms = fold.terms_of(leg)
    return NEVER if terms is None or leg.entry_at is None else leg.entry_at + terms.longest_stay_ms


def close_overdue(fold: Fold, leg: Leg) -> None:
    """The longest stay has passed: the leg is charged by its tap rule, caused by the passing of time."""
    fold.cause = f"{leg.leg_id}/overdue"
    fold.state.overdue.append(leg)
    _close_without_exit(fold, leg)


def settle(fold: Fold, leg: Leg, price: LegPrice | None, terms: Terms, *, joins: bool = True, capped: bool = True) -> None:
    """The leg's price is known: list fare, product, discounts, then its group and its periods."""
    if price is None:
        leg.status = "unknown"
        leg.reason = f"no rule of {leg.version_id} gives a fare on {leg.network_id} from {leg.from_stop_id} to {leg.to_stop_id}"
        return
    fold.add_line(leg, "list_fare", price.rule_id, price.amount)
    if leg.persons > 1:
        amount = price.amount * (leg.persons - 1)
        fold.add_line(leg, "companions", price.rule_id, amount)
    leg.net = price.amount
    if leg.net and not (fold.state.lots and products.cover(fold, leg)):
        for discount in terms.discounts:
            _take_discount(fold, leg, discount)
    if joins and leg.net:
        groups.join(fold, leg, terms)
    if capped and leg.net:
        periods.count(fold, leg, leg.net, terms)


def _why_unknown(version: CompiledVersion | None, network: str | None) -> str:
    if network is None:
        return "the network of the route and stop is not known"
    return "no tariff version is in force" if version is None else f"{version.version_id} has no fares for the network {network}"


def _begin(fold: Fold, tap: Tap, network: str | None, version: CompiledVersion | None, status: LegStatus) -> Leg:
    leg = Leg(
        leg_id=tap.fact_id,
        token_id=tap.token_id,
        media=tap.media,
        rider_category=tap.rider_category,
        network_id=network,
        route_id=tap.route_id,
        operator_id=tap.operator_id or fold.tariff.operator_of(tap.route_id, tap.stop_id),
        from_stop_id=tap.stop_id,
        to_stop_id=None,
        entry_at=tap.at,
        exit_at=None,
        service_day=version.service_day(tap.at) if version else fold.tariff.service_day(tap.at),
        version_id=version.version_id if version else "",
        status=status,
        persons=tap.persons,
    )
    fold.legs[leg.leg_id] = leg
    return leg


def _enter(fold: Fold, tap: Tap, network: str, version: CompiledVersion, terms: Terms) -> None:
    """An entry that finds its own token still inside means that the exit before it is missing."""
    for left_open in fold.state.open_legs:
        if left_open.token_id == tap.token_id and left_open.network_id == network:
            _close_without_exit(fold, left_open)
            break
    leg = _begin(fold, tap, network, version, "open")
    if terms.tap_rule.hold == "highest_fare":
        _hold(fold, leg, version, terms)
    fold.state.open_legs.append(leg)
    fold.reckon_next_due()


def _hold(fold: Fold, leg: Leg, version: CompiledVersion, terms: Terms) -> None:
    """Reserve what the leg can cost at most, after what is already certain to be taken off."""
    assert leg.network_id is not None
    assert leg.entry_at is not None
    price = version.extreme_price(
        "highest_fare", leg.network_id, leg.from_stop_id, "from", leg.media, leg.rider_category, leg.entry_at
    )
    if price is None or (fold.state.lots and products.find_lot(fold, leg, price.amount) is not None):
        return
    amount = price.amount
    for discount in terms.discounts:
        amount -= _discount(fold, leg, discount, amount)
    if amount:
        leg.hold = amount
        fold.add_line(leg, "hold", f"{terms.tap_rule.rule_id}/hold", amount)


def _release_hold(fold: Fold, leg: Leg, terms: Terms) -> None:
    if leg.hold:
        fold.add_line(leg, "hold", f"{terms.tap_rule.rule_id}/hold", -leg.hold)
        leg.hold = 0


def _complete(fold: Fold, leg: Leg, tap: Tap, network: str) -> None:
    """An exit ends an open leg, by the version that owns the leg."""
    fold.state.open_legs.remove(leg)
    fold.reckon_next_due()
    terms = fold.terms_of(leg)
    assert terms is not None
    assert leg.entry_at is not None
    _release_hold(fold, leg, terms)
    leg.to_stop_id = tap.stop_id
    leg.exit_at = tap.at
    same_stop = leg.from_stop_id is not None and leg.from_stop_id == tap.stop_id
    if same_stop and terms.grace_ms and tap.at - leg.entry_at <= terms.grace_ms:
        leg.status = "cancelled"
        return
    leg.status = "complete"
    price = fold.version_of(leg).leg_price(
        network, leg.from_stop_id, leg.to_stop_id, leg.media, leg.rider_category, (leg.entry_at, tap.at)
    )
    settle(fold, leg, price, terms)


def _open_leg(fold: Fold, tap: Tap, network: str) -> Leg | None:
    candidates = [leg for leg in fold.state.open_legs if leg.network_id == network]
    own = [leg for leg in candidates if leg.token_id == tap.token_id]
    return next(iter(own or candidates), None)


def _exit_without_entry(fold: Fold, tap: Tap, network: str, version: CompiledVersion, terms: Terms) -> None:
    for overdue in fold.state.overdue:
        own_terms = fold.terms_of(overdue)
        if overdue.token_id != tap.token_id or overdue.network_id != network or own_terms is None:
            continue
        if overdue.entry_at is None or tap.at - overdue.entry_at >= DAY_MS:
            continue
        if own_terms.tap_rule.late_exit == "closes_leg":
            fold.state.overdue.remove(overdue)
            overdue.to_stop_id, overdue.exit_at = tap.stop_id, tap.at
            if overdue.status != "unknown":
                overdue.status = "late_exit"
            return
    leg = _begin(fold, tap, network, version, "missing_entry")
    leg.entry_at, leg.exit_at = None, tap.at
    leg.from_stop_id, leg.to_stop_id = None, tap.stop_id
    which = terms.tap_rule.missing_entry
    price = version.extreme_price(which, network, tap.stop_id, "to", leg.media, leg.rider_category, tap.at)
    _settle_incomplete(fold, leg, price, terms, "missing_entry")


def _close_without_exit(fold: Fold, leg: Leg) -> None:
    terms = fold.terms_of(leg)
    assert terms is not None
    assert leg.network_id is not None
    assert leg.entry_at is not None
    fold.state.open_legs.remove(leg)
    _release_hold(fold, leg, terms)
    leg.status = "missing_exit"
    which = terms.tap_rule.missing_exit
    price = fold.version_of(leg).extreme_price(
        which, leg.network_id, leg.from_stop_id, "from", leg.media, leg.rider_category, leg.entry_at
    )
    _settle_incomplete(fold, leg, price, terms, "missing_exit")


def _settle_incomplete(fold: Fold, leg: Leg, price: LegPrice | None, terms: Terms, what: str) -> None:
    if price is not None:
        price = LegPrice(price.amount, price.product_id, f"{terms.tap_rule.rule_id}/{what}")
    settle(fold, leg, price, terms, joins=False, capped=terms.tap_rule.missing_counts_toward_caps)


def _discount(fold: Fold, leg: Leg, discount: DatedDiscount, amount: int) -> int:
    """What a discount would take off an amount of this leg now."""
    rule = discount.rule
    if not amount or not discount.holds_on(leg.service_day):
        return 0
    if rule.quota_per_day and fold.state.counters.get((rule.rule_id, leg.service_day), 0) >= rule.quota_per_day:
        return 0
    if rule.kind == "percent":
        return percent_of(amount, rule.value)
    return min(rule.value, amount) if rule.kind == "amount" else max(0, amount - rule.value)


def _take_discount(fold: Fold, leg: Leg, discount: DatedDiscount) -> None:
    off = _discount(fold, leg, discount, leg.net)
    if not off:
        return
    rule = discount.rule
    leg.net -= off
    fold.add_line(leg, "discount", rule.rule_id, -off, rule.bearer)
    if rule.quota_per_day:
        periods.add_to_counter(fold.state, rule.rule_id, leg.service_day, 1)
