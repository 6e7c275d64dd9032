"""What one leg costs by itself: entry-only and entry-and-exit taps, taps that never came, products and discounts.

Pairing: an exit closes its own token's open leg on the network first, then the traveller's oldest. What a missing tap costs
is the tariff's tap rule."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fare_engine.facts import Given, Tap
from fare_engine.money import percent_of, rate_of, rounded_to
from fare_engine.pricing import as_one, groups, joins, periods, products, rewards
from fare_engine.pricing.lines import Leg, LegStatus, ended
from fare_engine.service_day import DAY_MS
from fare_engine.tariff.compile import CompiledTariff, CompiledVersion, LegPrice, NoPrice, ReadyDiscount, Terms

if TYPE_CHECKING:
    from fare_engine.pricing.fold import Fold


def take_tap(fold: Fold, tap: Tap) -> None:
    """A tap begins a leg, ends one, or both."""
    mode = tap.given.mode if tap.given is not None else None
    network = fold.tariff.network_of(tap.route_id, tap.stop_id, mode, tap.operator_id)
    if tap.action == "exit" and network is not None:
        leg = _open_leg(fold, tap, network)
        if leg is not None:
            _complete(fold, leg, tap)
            return
    if fold.state.open_legs and tap.action != "exit":
        _close_left_open(fold, tap, network)
    version = products.version_for(fold, tap) if fold.state.lots else fold.tariff.version_at(tap.at)
    terms = version.terms(network, tap.route_id, tap.media, tap.rider_category) if version and network else None
    if version is None or network is None or terms is None:
        leg = _begin(fold, tap, network, version, "unknown")
        leg.reason = _why_unknown(version, network)
        fold.state.last_leg_id = leg.leg_id
    elif terms.tap_rule.taps == "entry":
        if tap.action == "exit":
            fold.ignored[tap.fact_id] = f"the network {network} has no exit taps"
            return
        leg = _begin(fold, tap, network, version, "complete")
        settle(fold, leg, version.prices.ride(leg), terms)
    elif tap.action == "exit":
        _exit_without_entry(fold, tap, network, version, terms)
    else:
        _enter(fold, tap, network, version, terms)


def dearest_exit(tariff: CompiledTariff, leg: Leg) -> int | None:
    """What an open leg costs at most when its rider leaves, by the fares from where he entered; None: no rule says."""
    version = tariff.versions.get(leg.version_id)
    price = version.prices.extreme("highest_fare", leg, "from") if version is not None else NoPrice()
    return None if isinstance(price, NoPrice) else price.amount * leg.persons


def close_overdue(fold: Fold, leg: Leg) -> None:
    """The longest stay has passed: the leg is charged by its tap rule, caused by the passing of time."""
    fold.cause = f"{leg.leg_id}/overdue"
    fold.state.overdue.append(leg)
    _close_without_exit(fold, leg)


def settle(fold: Fold, leg: Leg, price: LegPrice | NoPrice, terms: Terms) -> None:
    """The leg's price is known: list fare, surcharges, product, legs priced as one, discounts, transfers, rewards, limits."""
    state = fold.state
    complete = leg.status == "complete"
    joins_in = complete or (terms.tap_rule.missing_joins and leg.status == "missing_exit")
    if isinstance(price, NoPrice):
        _leave_unknown(fold, leg, terms, price, joins_in=joins_in)
        return
    begun = len(fold.lines)
    leg.net, leg.base, leg.leg_group_id = price.amount, price.base, price.leg_group_id
    payer = products.find(fold, leg) if state.lots and leg.net else None
    adjusted: list[as_one.Adjustment] = []
    if (terms.as_one or state.groups) and leg.net and payer is None and joins_in:
        priced = groups.lacking(fold, leg, terms) or as_one.adjust(fold, leg, terms)
        if isinstance(priced, NoPrice):
            _leave_unknown(fold, leg, terms, priced, joins_in=joins_in)
            return
        adjusted = priced
    fold.add_line(leg, "list_fare", price.rule_id, price.amount)
    if leg.persons > 1:
        fold.add_line(leg, "companions", price.rule_id, price.amount * (leg.persons - 1))
    if terms.has_extras:
        _add_surcharges(fold, leg, terms)
    for change in adjusted:
        fold.add_line(leg, "transfer", change.join.rule.rule_id, change.amount, change.join.rule.bearer, change.version_id)
    takes_part = joins_in and price.amount > 0 and leg.net >= 0
    if payer is not None:
        products.pay(fold, leg, payer)
        takes_part = takes_part and leg.net > 0
    elif leg.net > 0:
        for discount in _discounts(fold, leg, terms):
            if complete or discount.rule.missing:
                _take_discount(fold, leg, discount)
            else:
                fold.passed(leg, discount.rule.rule_id, "missing tap")
        takes_part = takes_part and leg.net > 0
    if takes_part:
        groups.join(fold, leg, terms)
    if terms.rewards and complete:
        rewards.take(fold, leg, terms)
    left = leg.net
    if left and periods.counts(leg, terms):
        left = periods.count(fold, leg, left, terms)
    if (terms.rewards or terms.rebates) and complete:
        rewards.count(fold, leg, terms, left)
    if state.lots:
        products.use_credit(fold, leg, begun)
    if state.groups:
        joins.forget_groups(fold, ended(leg))
    state.last_leg_id = leg.leg_id


def _leave_unknown(fold: Fold, leg: Leg, terms: Terms, price: NoPrice, *, joins_in: bool) -> None:
    """No rule gives a price, or a fact is missing: the leg waits for whoever mends the tariff. It is not zero."""
    leg.status = "unknown"
    leg.net = 0
    if price.missing:
        leg.reason = f"missing fact: {price.missing}"
    else:
        start, end = _place(leg.from_stop_id, leg.given), _place(leg.to_stop_id, leg.exit_given)
        leg.reason = f"no rule of {leg.version_id} gives a fare on {leg.network_id} from {start} to {end}"
    if joins_in and (terms.as_one or terms.transfers):
        as_one.follow_unpriced(fold, leg, terms)
    fold.state.last_leg_id = leg.leg_id


def _place(stop_id: str | None, given: Given | None) -> str | None:
    """A stop, or the areas that its tap named."""
    return stop_id or ("/".join(given.areas) if given is not None else "") or None


def _add_surcharges(fold: Fold, leg: Leg, terms: Terms) -> None:
    """What the leg costs on top of its fare; together it counts for the caps on surcharges."""
    surcharges = [
        (surcharge.rule.rule_id, surcharge.rule.amount)
        for surcharge in terms.surcharges
        if fold.holds(leg, surcharge.ready, surcharge.rule.rule_id)
    ]
    if _overstayed(leg, terms):
        extra = fold.version_of(leg).prices.ride(leg, "overstay")
        if isinstance(extra, LegPrice) and extra.amount:
            surcharges.append((extra.rule_id, extra.amount))
    for rule_id, amount in surcharges:
        fold.add_line(leg, "surcharge", rule_id, amount)
    if surcharges:
        periods.count_surcharge(fold, leg, sum(amount for _, amount in surcharges), terms)


def _overstayed(leg: Leg, terms: Terms) -> bool:
    if terms.tap_rule.overstay != "surcharge" or leg.entry_at is None or leg.exit_at is None:
        return False
    return leg.exit_at - leg.entry_at > terms.longest_stay_ms


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
        given=tap.given,
        vehicle_id=tap.vehicle_id,
    )
    fold.legs[leg.leg_id] = leg
    return leg


def _close_left_open(fold: Fold, tap: Tap, network: str | None) -> None:
    """An entry that finds its own token still inside means that the exit before it is missing."""
    for leg in [leg for leg in fold.state.open_legs if leg.token_id == tap.token_id]:
        terms = fold.terms_of(leg)
        if leg.network_id == network or (terms is not None and terms.tap_rule.closed_by == "any_entry"):
            _close_without_exit(fold, leg)


def _enter(fold: Fold, tap: Tap, network: str, version: CompiledVersion, terms: Terms) -> None:
    leg = _begin(fold, tap, network, version, "open")
    if terms.tap_rule.hold != "none":
        _hold(fold, leg, version, terms)
    stay = DAY_MS if terms.tap_rule.overstay == "surcharge" else terms.longest_stay_ms
    leg.due = tap.at + stay
    fold.state.open_legs.append(leg)
    fold.state.next_due = min(fold.state.next_due, leg.due)


def _hold(fold: Fold, leg: Leg, version: CompiledVersion, terms: Terms) -> None:
    """Take a deposit, or reserve what the leg can cost at most after what is already certain to be taken off."""
    if terms.tap_rule.hold == "priced":
        price = version.prices.ride(leg, "hold")
    else:
        price = version.prices.extreme("highest_fare", leg, "from")
    if isinstance(price, NoPrice):
        return
    leg.net = amount = price.amount
    if fold.state.lots and products.find(fold, leg) is not None:
        amount = 0
    elif terms.tap_rule.hold == "highest_fare":
        for discount in _discounts(fold, leg, terms):
            amount -= _discount(fold, leg, discount, amount)
    leg.net = 0
    if amount:
        leg.hold = amount
        fold.add_line(leg, "hold", f"{terms.tap_rule.rule_id}/hold", amount)


def _release_hold(fold: Fold, leg: Leg, terms: Terms) -> None:
    if leg.hold:
        fold.add_line(leg, "hold", f"{terms.tap_rule.rule_id}/hold", -leg.hold)
        leg.hold = 0


def _complete(fold: Fold, leg: Leg, tap: Tap) -> None:
    """An exit ends an open leg, by the version that owns the leg."""
    fold.state.open_legs.remove(leg)
    fold.state.reckon_next_due()
    terms = fold.terms_of(leg)
    assert terms is not None
    assert leg.entry_at is not None
    _release_hold(fold, leg, terms)
    leg.to_stop_id = tap.stop_id
    leg.exit_at = tap.at
    leg.exit_given = tap.given
    if terms.tap_rule.owner == "exit":
        terms = _by_the_exit(fold, leg, tap) or terms
    same_stop = leg.from_stop_id is not None and leg.from_stop_id == tap.stop_id
    if same_stop and terms.grace_ms and tap.at - leg.entry_at <= terms.grace_ms:
        leg.status = "cancelled"
        fold.state.last_leg_id = leg.leg_id
        return
    leg.status = "complete"
    prices = fold.version_of(leg).prices
    price = prices.ride(leg, "same_stop") if same_stop else NoPrice()
    settle(fold, leg, prices.ride(leg) if isinstance(price, NoPrice) else price, terms)


def _by_the_exit(fold: Fold, leg: Leg, tap: Tap) -> Terms | None:
    """Where the tariff says so, a leg belongs to the version in force at its exit."""
    version = fold.tariff.version_at(tap.at)
    if version is None or leg.network_id is None:
        return None
    terms = version.terms(leg.network_id, leg.route_id, leg.media, leg.rider_category)
    if terms is not None:
        leg.version_id = version.version_id
    return terms


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
            overdue.to_stop_id, overdue.exit_at, overdue.exit_given = tap.stop_id, tap.at, tap.given
            if overdue.status != "unknown":
                overdue.status = "late_exit"
            return
    leg = _begin(fold, tap, network, version, "missing_entry")
    leg.entry_at, leg.exit_at = None, tap.at
    leg.from_stop_id, leg.to_stop_id = None, tap.stop_id
    leg.given, leg.exit_given = None, tap.given
    _settle_incomplete(fold, leg, terms, version)


def _close_without_exit(fold: Fold, leg: Leg) -> None:
    terms = fold.terms_of(leg)
    assert terms is not None
    fold.state.open_legs.remove(leg)
    _release_hold(fold, leg, terms)
    leg.status = "missing_exit"
    _settle_incomplete(fold, leg, terms, fold.version_of(leg))


def _settle_incomplete(fold: Fold, leg: Leg, terms: Terms, version: CompiledVersion) -> None:
    """What a leg costs of which one tap is missing: its tap rule says the dearest or cheapest fare, or a price of its own."""
    price: LegPrice | NoPrice
    if leg.status == "missing_exit":
        which, what = terms.tap_rule.missing_exit, "missing_exit"
        price = version.prices.ride(leg, "missing_exit") if which == "priced" else version.prices.extreme(which, leg, "from")
    else:
        which, what = terms.tap_rule.missing_entry, "missing_entry"
        price = version.prices.ride(leg, "missing_entry") if which == "priced" else version.prices.extreme(which, leg, "to")
    if isinstance(price, LegPrice):
        price = LegPrice(price.amount, price.product_id, f"{terms.tap_rule.rule_id}/{what}")
    settle(fold, leg, price, terms)


def _discounts(fold: Fold, leg: Leg, terms: Terms) -> tuple[ReadyDiscount, ...]:
    """The discounts to look at: those of the day, or all where it is asked why they do not act."""
    return terms.discounts if fold.trace is not None else terms.discounts_on(leg.service_day)


def _discount(fold: Fold, leg: Leg, discount: ReadyDiscount, amount: int) -> int:
    """What a discount would take off an amount of this leg now."""
    rule = discount.rule
    if not amount:
        return 0
    if (not discount.ready.by_day_only or fold.trace is not None) and not fold.holds(leg, discount.ready, rule.rule_id):
        return 0
    if rule.quota_per_day and fold.state.counters.get((rule.rule_id, leg.service_day), 0) >= rule.quota_per_day:
        fold.passed(leg, rule.rule_id, "quota_per_day")
        return 0
    if rule.kind != "percent":
        value = int(rule.value)
        return min(value, amount) if rule.kind == "amount" else max(0, amount - value)
    if discount.percent is not None:
        return percent_of(amount, discount.percent)
    off = rate_of(amount, rule.value)
    if rule.round == "left":
        return max(0, amount - rounded_to(amount - off, rule.rounding, rule.round_to))
    return min(amount, rounded_to(off, rule.rounding, rule.round_to))


def _take_discount(fold: Fold, leg: Leg, discount: ReadyDiscount) -> None:
    off = _discount(fold, leg, discount, leg.net)
    if not off:
        return
    rule = discount.rule
    leg.net -= off
    fold.add_line(leg, "discount", rule.rule_id, -off, rule.bearer)
    if rule.quota_per_day:
        periods.add_to_counter(fold.state, rule.rule_id, leg.service_day, 1)
