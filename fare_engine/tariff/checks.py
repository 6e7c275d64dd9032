"""Does a tariff hold together? One function per rule of the data, each giving its faults; all are reported together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator
from decimal import Decimal

from fare_engine.errors import Fault, TariffError
from fare_engine.tariff.model import (
    OPERATORS,
    BestOf,
    Conditions,
    Discount,
    JoiningRule,
    LegPriceRow,
    Product,
    Rebate,
    Reward,
    TapRule,
    Tariff,
    Version,
)

KINDS = (
    "leg_prices", "tap_rules", "surcharges", "joining_rules", "discounts", "products", "caps", "best_of", "rewards", "rebates",
)  # fmt: skip
"""The tables of tariff.toml, in the order in which a leg meets them."""
KEPT_FIELDS = (
    ("joining_rules", "worth"), ("caps", "period"), ("caps", "counts"), ("best_of", "period"), ("rewards", "period"),
    ("rewards", "counts"), ("rebates", "period"),
)  # fmt: skip
"""What a rule cannot change from one version to the next under the same id, for its groups and counters go on."""
MOST_CHOICES = 64
"""How many choices of candidates a window may have: each is reckoned at every leg."""


def check(tariff: Tariff) -> None:
    """TariffError with every fault of every version, or nothing."""
    faults = [fault for version in tariff.versions for rule in RULES for fault in rule(version, tariff)]
    faults += _versions_fit_together(tariff)
    if faults:
        raise TariffError(faults)


def _rows(version: Version, kind: str) -> Iterator[tuple[str, object]]:
    """The rows of one table of tariff.toml with the place that messages name."""
    for number, row in enumerate(getattr(version.file, kind)):
        label = getattr(row, "rule_id", None) or getattr(row, "product_id", "")
        yield f"{version.folder}/tariff.toml: {kind}[{number}] {label}", row


def _all_rows(version: Version) -> Iterator[tuple[str, object]]:
    """All rows of tariff.toml, and those inside them (links, candidates)."""
    for kind in KINDS:
        for place, row in _rows(version, kind):
            yield place, row
            for number, link in enumerate(getattr(row, "links", ())):
                yield f"{place} links[{number}]", link
            for candidate in getattr(row, "candidates", ()) if kind == "best_of" else ():
                yield f"{place} {candidate.candidate_id}", candidate


def _is_range(route: str) -> bool:
    low, _, high = route.partition("-")
    return low.isdigit() and high.isdigit()


def _plain(value: object) -> object:
    """A number as the file wrote it."""
    return (
        int(value) if isinstance(value, Decimal) and value == int(value) else str(value) if isinstance(value, Decimal) else value
    )


def _unknown(place: str, field: str, values: Iterable[str | None], known: Collection[str]) -> Iterator[Fault]:
    for value in values:
        if value is not None and value not in known:
            yield Fault(f"{place} {field}", value, f"{field} names nothing that exists")


def _place(version: Version, file: str, row: int) -> str:
    return f"{version.folder}/{file} row {row}"


def leg_rules_refer_to_what_exists(version: Version, tariff: Tariff) -> Iterator[Fault]:
    """Networks, areas, timeframe groups and products of `fare_leg_rules.txt`."""
    products = {row.fare_product_id for row in version.products}
    groups = {row.group_id for row in version.timeframes}
    network = tariff.network
    for rule in version.leg_rules:
        place = _place(version, "fare_leg_rules.txt", rule.row)
        yield from _unknown(place, "network_id", [rule.network_id], network.networks)
        yield from _unknown(place, "from_area_id", [rule.from_area_id], network.areas)
        yield from _unknown(place, "to_area_id", [rule.to_area_id], network.areas)
        yield from _unknown(place, "from_timeframe_group_id", [rule.from_timeframe_group_id], groups)
        yield from _unknown(place, "to_timeframe_group_id", [rule.to_timeframe_group_id], groups)
        yield from _unknown(place, "fare_product_id", [rule.fare_product_id], products)


def _leg_groups(version: Version) -> set[str]:
    return {rule.leg_group_id for rule in version.leg_rules if rule.leg_group_id}


def transfer_rules_hold_together(version: Version, tariff: Tariff) -> Iterator[Fault]:
    """Leg groups and products of `fare_transfer_rules.txt`, and the fields that go together (GTFS)."""
    groups = _leg_groups(version)
    products = {row.fare_product_id for row in version.products}
    for rule in version.transfer_rules:
        place = _place(version, "fare_transfer_rules.txt", rule.row)
        yield from _unknown(place, "from_leg_group_id", [rule.from_leg_group_id], groups)
        yield from _unknown(place, "to_leg_group_id", [rule.to_leg_group_id], groups)
        yield from _unknown(place, "fare_product_id", [rule.fare_product_id], products)
        if rule.fare_transfer_type not in (0, 1, 2):
            yield Fault(place, rule.fare_transfer_type, "fare_transfer_type must be 0, 1 or 2")
        if rule.duration_limit_type not in (0, 1, 2, 3):
            yield Fault(place, rule.duration_limit_type, "duration_limit_type must lie between 0 and 3")
        if rule.duration_limit is not None and rule.duration_limit <= 0:
            yield Fault(place, rule.duration_limit, "duration_limit must be above zero")
        if rule.transfer_count == 0 or (rule.transfer_count is not None and rule.transfer_count < -1):
            yield Fault(place, rule.transfer_count, "transfer_count must be -1 or above zero")


def timeframes_refer_to_calendars(version: Version, tariff: Tariff) -> Iterator[Fault]:
    """Services of `timeframes.txt`, and times that do not run backwards."""
    for row in version.timeframes:
        place = _place(version, "timeframes.txt", row.row)
        yield from _unknown(place, "service_id", [row.service_id], tariff.network.calendars)
        if not 0 <= row.start < row.end <= 86_400:
            yield Fault(place, (row.start, row.end), "the interval must lie inside one local day and not be empty")


def products_have_one_price(version: Version, tariff: Tariff) -> Iterator[Fault]:
    """The same product, category and medium at two prices is an error; so are media and categories that do not exist."""
    seen: dict[tuple[str, str | None, str | None], int] = {}
    for row in version.products:
        place = _place(version, "fare_products.txt", row.row)
        yield from _unknown(place, "fare_media_id", [row.fare_media_id], version.media)
        yield from _unknown(place, "rider_category_id", [row.rider_category_id], version.categories)
        key = (row.fare_product_id, row.rider_category_id, row.fare_media_id)
        if key in seen:
            yield Fault(place, key, f"product, category and medium stand already in row {seen[key]}")
        seen[key] = row.row


def every_priced_network_has_one_tap_rule(version: Version, tariff: Tariff) -> Iterator[Fault]:
    """A network with fares must say how riders tap on it, once."""
    seen: dict[str, str] = {}
    for place, row in _rows(version, "tap_rules"):
        assert isinstance(row, TapRule)
        for network in row.networks:
            if network in seen:
                yield Fault(place, network, f"the network has a tap rule already: {seen[network]}")
            seen[network] = place
        if row.taps == "entry_exit" and row.longest_stay_minutes <= 0:
            yield Fault(f"{place} longest_stay_minutes", row.longest_stay_minutes, "entry_exit needs a longest stay")
    priced_networks = {rule.network_id for rule in version.leg_rules if rule.network_id}
    priced_networks |= {name for price in version.file.leg_prices if price.use == "ride" for name in price.networks}
    for network in sorted(priced_networks - seen.keys()):
        yield Fault(f"{version.folder}/tariff.toml: tap_rules", network, "the network has fares but no tap rule")


def rows_refer_to_what_exists(version: Version, tariff: Tariff) -> Iterator[Fault]:
    """Networks, routes, places, times, days, media, categories and bearers of all rows of tariff.toml."""
    network = tariff.network
    places = network.areas | network.stops.keys()
    groups = {row.group_id for row in version.timeframes}
    known: dict[str, Collection[str]] = {
        "networks": network.networks,
        "from_networks": network.networks,
        "to_networks": network.networks,
        "operators": network.parties,
        "rider_categories": version.categories,
        "timeframes": groups,
        "exit_timeframes": groups,
        "service_ids": network.calendars,
        "except_service_ids": network.calendars,
        "from_leg_groups": _leg_groups(version),
        "to_leg_groups": _leg_groups(version),
        "journeys_of": {row.rule_id for row in version.file.joining_rules},
        **dict.fromkeys(("from_areas", "to_areas", "either_areas", "within_areas", "except_areas"), places),
    }
    for place, row in _all_rows(version):
        for field, existing in known.items():
            yield from _unknown(place, field, getattr(row, field, ()), existing)
        for field in ("routes", "from_routes", "to_routes"):
            listed = [name for name in getattr(row, field, ()) if not _is_range(name)]
            if network.routes and not network.services:
                yield from _unknown(place, field, listed, network.routes)
        for one, other, *_ in (*getattr(row, "pairs", ()), *getattr(row, "stop_pairs", ())):
            yield from _unknown(place, "pairs" if hasattr(row, "pairs") else "stop_pairs", (one, other), places)
        for medium in (*getattr(row, "media", ()), *getattr(row, "except_media", ())):
            if medium.split(":")[0] not in version.media:
                yield Fault(f"{place} media", medium, "media names nothing that exists")
        bearer = getattr(row, "bearer", OPERATORS)
        if bearer != OPERATORS and bearer not in network.parties:
            yield Fault(f"{place} bearer", bearer, f"neither {OPERATORS!r} nor a party of agency.txt or parties.csv")
    wanted = {name for price in version.file.leg_prices for name in price.candidates}
    offered = {candidate.candidate_id for best in version.file.best_of for candidate in best.candidates}
    offered |= {product.product_id for product in version.file.products}
    for name in sorted(wanted - offered):
        yield Fault(f"{version.folder}/tariff.toml: leg_prices candidates", name, "neither a product nor a candidate")


def amounts_make_sense(version: Version, tariff: Tariff) -> Iterator[Fault]:
    """Discounts, adjustments, caps and prices are not below zero, and per cents not above a hundred."""
    for place, row in _rows(version, "discounts"):
        assert isinstance(row, Discount)
        if row.value < 0 or (row.kind == "percent" and row.value > 100):
            yield Fault(f"{place} value", _plain(row.value), f"not a possible {row.kind}")
        if row.kind != "percent" and row.value != int(row.value):
            yield Fault(f"{place} value", _plain(row.value), "must be a whole amount")
        if row.quota_per_day < 0:
            yield Fault(f"{place} quota_per_day", row.quota_per_day, "must not be below zero")
    for place, row in _all_rows(version):
        if isinstance(row, Conditions) and row.valid_from and row.valid_to and row.valid_to < row.valid_from:
            yield Fault(f"{place} valid_to", str(row.valid_to), f"before valid_from {row.valid_from}")
        if getattr(row, "round_to", 1) < 1:
            yield Fault(f"{place} round_to", row.round_to, "must be above zero")  # type: ignore[attr-defined]
        percents = [getattr(row, "percent_off_second", 0), *getattr(row, "percents", ())]
        percents += [
            step.percent for step in (*getattr(row, "steps", ()), *getattr(row, "tiers", ())) if hasattr(step, "percent")
        ]
        for percent in percents:
            if not 0 <= percent <= 100:
                yield Fault(f"{place} percent", _plain(percent), "must lie between 0 and 100")
    positive = {"joining_rules": ("max_transfers",), "caps": ("amount",), "surcharges": ("amount",)}
    not_negative = {
        "joining_rules": ("off_first", "off_second", "window_minutes", "span_minutes"),
        "products": ("price", "trips", "days", "minutes", "covers_up_to"),
        "leg_prices": ("minimum", "maximum", "per_unit", "unit", "counts_at_most", "stay_over_minutes", "stay_up_to_minutes"),
        "rebates": ("at_least", "maximum"),
        "best_of": (),
    }
    for kind in positive.keys() | not_negative.keys():
        for place, row in _rows(version, kind):
            for field in positive.get(kind, ()):
                if getattr(row, field) <= 0:
                    yield Fault(f"{place} {field}", _plain(getattr(row, field)), "must be above zero")
            for field in not_negative.get(kind, ()):
                if getattr(row, field) < 0:
                    yield Fault(f"{place} {field}", _plain(getattr(row, field)), "must not be below zero")


def products_can_be_used(version: Version, tariff: Tariff) -> Iterator[Fault]:
    """A product says where it holds, and a pass or a book how long."""
    for place, row in _rows(version, "products"):
        assert isinstance(row, Product)
        if not row.networks:
            yield Fault(f"{place} networks", row.networks, "must name a network")
        if row.kind == "book" and row.trips <= 0:
            yield Fault(f"{place} trips", row.trips, "a book needs trips")
        if row.kind == "pass" and row.lasts == "days" and row.days <= 0 and row.minutes <= 0:
            yield Fault(f"{place} days", row.days, "a pass needs days")
        if row.minutes and (row.days or row.lasts != "days" or row.kind != "pass"):
            yield Fault(f"{place} minutes", row.minutes, "minutes stand alone, and only on a pass")
        if row.lasts != "days" and row.starts != "purchase":
            yield Fault(f"{place} starts", row.starts, f"a pass that lasts a {row.lasts} starts with its purchase")


def prices_can_be_told(version: Version, tariff: Tariff) -> Iterator[Fault]:
    """A row of leg_prices has what its `by` needs, and nothing that another `by` would."""
    for place, row in _rows(version, "leg_prices"):
        assert isinstance(row, LegPriceRow)
        has = {
            "amount": row.amount is not None,
            "bands": bool(row.bands),
            "base": row.base is not None,
            "amounts": bool(row.amounts),
            "pairs": bool(row.pairs),
        }
        needed = {"flat": ("amount",), "zones": ("amounts",), "pairs": ("pairs",)}.get(row.by, ("bands", "base"))
        given = [field for field, stands in has.items() if stands]
        if len(given) != 1 or given[0] not in needed:
            yield Fault(f"{place} by", row.by, f"needs {' or '.join(needed)}, and nothing else of {', '.join(has)}; has {given}")
        if row.steps and row.base is None:
            yield Fault(f"{place} steps", len(row.steps), "steps are added to a base")
        for number, band in enumerate(row.bands):
            if band.up_to is not None and band.below is not None:
                yield Fault(f"{place} bands[{number}]", f"{band.up_to}, {band.below}", "either up_to or below")
            if band.amount is not None and band.amount < 0:
                yield Fault(f"{place} bands[{number}]", band.amount, "amount is below zero")
            if band.up_to is None and band.below is None and number + 1 < len(row.bands):
                yield Fault(f"{place} bands[{number}]", band.amount, "the rows after a band without an end are never reached")
        ends = [band.up_to if band.up_to is not None else band.below for band in row.bands]
        for number, (one, other) in enumerate(itertools.pairwise(ends), start=1):
            if one is not None and other is not None and other < one:
                yield Fault(f"{place} bands[{number}]", str(other), f"ends before the band above it, {one}")
        for step in row.steps:
            if step.step <= 0:
                yield Fault(f"{place} steps", str(step.step), "must be above zero")
        for key in row.amounts:
            low, _, high = key.partition("-")
            if not low.isdigit() or (high and not high.isdigit()) or (high and int(high) <= int(low)):
                yield Fault(f"{place} amounts", key, "not a zone or a range of zones, as 2 or 1-4")
        for amount in (row.amount or 0, *row.amounts.values(), *(amount for _, _, amount in row.pairs)):
            if amount < 0:
                yield Fault(f"{place} amount", amount, "must not be below zero")
        if row.round_to < 1:
            continue
        if row.candidates and row.use != "extension":
            yield Fault(f"{place} candidates", list(row.candidates), "goes with use = 'extension'")
        if (row.stay_over_minutes or row.stay_up_to_minutes) and row.use not in ("same_stop", "overstay"):
            yield Fault(f"{place} stay_over_minutes", row.use, "goes with use = 'same_stop' or 'overstay'")


def groups_can_form(version: Version, tariff: Tariff) -> Iterator[Fault]:
    """A rule has a window or a day, the amounts that its worth needs, and taps to run from."""
    entry_only = {network for rule in version.file.tap_rules if rule.taps == "entry" for network in rule.networks}
    for place, row in _rows(version, "joining_rules"):
        assert isinstance(row, JoiningRule)
        own = [f"{field}" for field in ("from_networks", "to_networks", "stop_pairs", "window_minutes") if getattr(row, field)]
        if row.links and own:
            yield Fault(f"{place} links", own, "stand beside links; say them in the links")
        for link in row.links or (row,):
            without = sorted(entry_only.intersection(link.from_networks or link.networks or row.networks))
            if link.window_minutes and link.window_from == "exit" and without:
                yield Fault(f"{place} window_from", "exit", f"there are no exit taps on {', '.join(without)}")
            if link.window_minutes < 0:
                yield Fault(f"{place} window_minutes", link.window_minutes, "must not be below zero")
            if not link.window_minutes and "service_day" not in row.same and not row.span_minutes:
                yield Fault(f"{place} window_minutes", 0, "needs a window, span_minutes, or same = ['service_day']")
        needed = {"percents": row.percents, "position": row.transfer_amounts}
        if row.worth in needed and not needed[row.worth]:
            field = "percents" if row.worth == "percents" else "transfer_amounts"
            yield Fault(f"{place} {field}", [], f"worth = {row.worth!r} needs it")


def periods_are_told(version: Version, tariff: Tariff) -> Iterator[Fault]:
    """A period of days says how many, a window how long; the choices of a best-of can all be tried."""
    for kind in ("caps", "best_of", "rewards"):
        for place, row in _rows(version, kind):
            if row.period == "days" and row.period_days <= 0:  # type: ignore[attr-defined]
                yield Fault(f"{place} period_days", row.period_days, "a period of days needs them")  # type: ignore[attr-defined]
            if row.period == "window" and row.window_minutes <= 0:  # type: ignore[attr-defined]
                yield Fault(f"{place} window_minutes", row.window_minutes, "a window needs minutes")  # type: ignore[attr-defined]
    for place, row in _rows(version, "best_of"):
        assert isinstance(row, BestOf)
        choices = sum(math.comb(len(row.candidates), size) for size in range(row.at_most + 1))
        if row.at_most < 1 or not 1 < choices <= MOST_CHOICES:
            yield Fault(f"{place} at_most", row.at_most, f"{choices} choices; there must be some, and at most {MOST_CHOICES}")
        for candidate in row.candidates:
            if candidate.amount < 0:
                yield Fault(f"{place} {candidate.candidate_id}", candidate.amount, "must not be below zero")
    for place, row in _rows(version, "rewards"):
        assert isinstance(row, Reward)
        after = [step.after for step in row.steps]
        if not after or after != sorted(set(after)):
            yield Fault(f"{place} steps", after, "must be some, in rising order of after")
        if row.counts == "journeys" and not row.journeys_of:
            yield Fault(f"{place} journeys_of", [], "counting journeys needs the rules that make them")
    for place, row in _rows(version, "rebates"):
        assert isinstance(row, Rebate)
        above = [tier.above for tier in row.tiers]
        if not above or above != sorted(set(above)):
            yield Fault(f"{place} tiers", above, "must be some, in rising order of above")


def ids_stand_once(version: Version, tariff: Tariff) -> Iterator[Fault]:
    """A rule id names one row of a version; what fare_products.txt sells is not sold again by tariff.toml."""
    seen: dict[str, str] = {}
    for kind in KINDS:
        for place, row in _rows(version, kind) if kind != "products" else ():
            rule_id: str = row.rule_id  # type: ignore[attr-defined]
            if rule_id in seen:
                yield Fault(place, rule_id, f"the rule_id stands already in {seen[rule_id]}")
            seen[rule_id] = place
    places = {row.fare_product_id: _place(version, "fare_products.txt", row.row) for row in version.products}
    for place, row in _rows(version, "products"):
        product_id: str = row.product_id  # type: ignore[attr-defined]
        if product_id in places:
            yield Fault(place, product_id, f"the product stands already in {places[product_id]}")
        places[product_id] = place


def head_makes_sense(version: Version, tariff: Tariff) -> Iterator[Fault]:
    """Dates in order, and a service day that turns at an hour of the day."""
    head = version.file.tariff
    place = f"{version.folder}/tariff.toml: tariff"
    if head.valid_to and head.valid_to < head.valid_from:
        yield Fault(f"{place}.valid_to", str(head.valid_to), f"before valid_from {head.valid_from}")
    hours, _, minutes = head.service_day_start.partition(":")
    if not (hours.isdigit() and minutes.isdigit() and int(hours) < 24 and int(minutes) < 60):
        yield Fault(f"{place}.service_day_start", head.service_day_start, "not a time HH:MM")
    if not 0 <= head.minor_digits <= 4:
        yield Fault(f"{place}.minor_digits", head.minor_digits, "no currency has so many: 0 to 4")
    if not head.currency:
        yield Fault(f"{place}.currency", head.currency, "is empty")


def accounts_make_sense(version: Version, tariff: Tariff) -> Iterator[Fault]:
    """Limits that can be kept, and a bearer for what they waive."""
    accounts = version.file.accounts
    place = f"{version.folder}/tariff.toml: accounts"
    for field in ("charge_within_days", "refund_within_days"):
        days = getattr(accounts, field)
        if days is not None and days < 1:
            yield Fault(f"{place}.{field}", days, "must be a day or more")
        if days is not None and accounts.waivers_borne_by not in tariff.network.parties:
            yield Fault(
                f"{place}.waivers_borne_by", accounts.waivers_borne_by, f"{field} needs a party of agency.txt or parties.csv"
            )
    if accounts.prepaid_floor is not None and accounts.prepaid_floor > accounts.prepaid_above:
        yield Fault(f"{place}.prepaid_floor", accounts.prepaid_floor, f"above prepaid_above {accounts.prepaid_above}")


def _versions_fit_together(tariff: Tariff) -> Iterator[Fault]:
    seen: dict[object, str] = {}
    kept: dict[tuple[str, str], tuple[object, str]] = {}
    for version in tariff.versions:
        head = version.file.tariff
        if head.currency != tariff.versions[0].file.tariff.currency:
            place = f"{version.folder}/tariff.toml: tariff.currency"
            yield Fault(place, head.currency, f"{tariff.versions[0].version_id} has {tariff.versions[0].file.tariff.currency}")
        for kind, field in KEPT_FIELDS:
            for place, row in _rows(version, kind):
                first = kept.setdefault((row.rule_id, field), (getattr(row, field), version.version_id))  # type: ignore[attr-defined]
                if first[0] != getattr(row, field):
                    problem = f"{first[1]} has {first[0]!r}: what runs across a change of version cannot change its kind"
                    yield Fault(f"{place} {field}", getattr(row, field), problem)
        if head.state != "in_force":
            continue
        if head.valid_from in seen:
            place = f"{version.folder}/tariff.toml: tariff.valid_from"
            yield Fault(place, str(head.valid_from), f"{seen[head.valid_from]} is in force from the same day")
        seen[head.valid_from] = version.version_id


Rule = Callable[[Version, Tariff], Iterator[Fault]]
RULES: tuple[Rule, ...] = (
    head_makes_sense,
    accounts_make_sense,
    leg_rules_refer_to_what_exists,
    transfer_rules_hold_together,
    timeframes_refer_to_calendars,
    products_have_one_price,
    every_priced_network_has_one_tap_rule,
    rows_refer_to_what_exists,
    amounts_make_sense,
    products_can_be_used,
    prices_can_be_told,
    groups_can_form,
    periods_are_told,
    ids_stand_once,
)
