"""Does a tariff hold together? One function per rule of the data, each giving its faults; all are reported together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator

from fare_engine.errors import Fault, TariffError
from fare_engine.tariff.model import OPERATORS, Discount, Tariff, Version


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
        for network in row.networks:  # type: ignore[attr-defined]
            if network in seen:
                yield Fault(place, network, f"the network has a tap rule already: {seen[network]}")
            seen[network] = place
        if row.taps == "entry_exit" and row.longest_stay_minutes <= 0:  # type: ignore[attr-defined]
            yield Fault(f"{place} longest_stay_minutes", row.longest_stay_minutes, "entry_exit needs a longest stay")  # type: ignore[attr-defined]
    priced = {rule.network_id for rule in version.leg_rules if rule.network_id}
    for network in sorted(priced - seen.keys()):
        yield Fault(f"{version.folder}/tariff.toml: tap_rules", network, "the network has fares but no tap rule")


def rows_refer_to_what_exists(version: Version, tariff: Tariff) -> Iterator[Fault]:
    """Networks, routes, media, categories and bearers of all rows of tariff.toml."""
    network = tariff.network
    known: dict[str, Collection[str]] = {
        "networks": network.networks,
        "from_networks": network.networks,
        "to_networks": network.networks,
        "routes": network.routes,
        "rider_categories": version.categories,
    }
    for kind in ("tap_rules", "discounts", "joining_rules", "caps", "products"):
        for place, row in _rows(version, kind):
            for field, existing in known.items():
                yield from _unknown(place, field, getattr(row, field, ()), existing)
            for medium in (*getattr(row, "media", ()), *getattr(row, "except_media", ())):
                if medium.split(":")[0] not in version.media:
                    yield Fault(f"{place} media", medium, "media names nothing that exists")
            bearer = getattr(row, "bearer", OPERATORS)
            if bearer != OPERATORS and bearer not in network.parties:
                yield Fault(f"{place} bearer", bearer, f"neither {OPERATORS!r} nor a party of agency.txt or parties.csv")


def amounts_make_sense(version: Version, tariff: Tariff) -> Iterator[Fault]:
    """Discounts, adjustments, caps and prices are not below zero, and per cents not above a hundred."""
    for place, row in _rows(version, "discounts"):
        assert isinstance(row, Discount)
        if row.value < 0 or (row.kind == "percent" and row.value > 100):
            yield Fault(f"{place} value", row.value, f"not a possible {row.kind}")
        if row.valid_from and row.valid_to and row.valid_to < row.valid_from:
            yield Fault(f"{place} valid_to", str(row.valid_to), f"before valid_from {row.valid_from}")
    positive = {"joining_rules": ("window_minutes", "max_transfers"), "caps": ("amount",), "products": ()}
    not_negative = {
        "joining_rules": ("off_first", "off_second"),
        "products": ("price", "trips", "days", "covers_up_to"),
    }
    for kind in ("joining_rules", "caps", "products"):
        for place, row in _rows(version, kind):
            for field in positive.get(kind, ()):
                if getattr(row, field) <= 0:
                    yield Fault(f"{place} {field}", getattr(row, field), "must be above zero")
            for field in not_negative.get(kind, ()):
                if getattr(row, field) < 0:
                    yield Fault(f"{place} {field}", getattr(row, field), "must not be below zero")
    for place, row in _rows(version, "discounts"):
        if row.quota_per_day < 0:  # type: ignore[attr-defined]
            yield Fault(f"{place} quota_per_day", row.quota_per_day, "must not be below zero")  # type: ignore[attr-defined]
    for place, row in _rows(version, "products"):
        if not row.networks:  # type: ignore[attr-defined]
            yield Fault(f"{place} networks", row.networks, "must name a network")  # type: ignore[attr-defined]
        needed = "days" if row.kind == "pass" else "trips"  # type: ignore[attr-defined]
        if getattr(row, needed) <= 0:
            yield Fault(f"{place} {needed}", getattr(row, needed), f"a {row.kind} needs {needed}")  # type: ignore[attr-defined]


def groups_can_form(version: Version, tariff: Tariff) -> Iterator[Fault]:
    """A window that runs from an exit needs networks with exits."""
    entry_only = {network for rule in version.file.tap_rules if rule.taps == "entry" for network in rule.networks}
    for place, row in _rows(version, "joining_rules"):
        without = sorted(entry_only.intersection(row.from_networks))  # type: ignore[attr-defined]
        if row.window_from == "exit" and without:  # type: ignore[attr-defined]
            yield Fault(f"{place} window_from", "exit", f"there are no exit taps on {', '.join(without)}")


def ids_stand_once(version: Version, tariff: Tariff) -> Iterator[Fault]:
    """A rule id names one row of a version; what fare_products.txt sells is not sold again by tariff.toml."""
    seen: dict[str, str] = {}
    for kind in ("tap_rules", "discounts", "joining_rules", "caps"):
        for place, row in _rows(version, kind):
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


def _versions_fit_together(tariff: Tariff) -> Iterator[Fault]:
    seen: dict[object, str] = {}
    for version in tariff.versions:
        head = version.file.tariff
        if head.currency != tariff.versions[0].file.tariff.currency:
            place = f"{version.folder}/tariff.toml: tariff.currency"
            yield Fault(place, head.currency, f"{tariff.versions[0].version_id} has {tariff.versions[0].file.tariff.currency}")
        if head.state != "in_force":
            continue
        if head.valid_from in seen:
            place = f"{version.folder}/tariff.toml: tariff.valid_from"
            yield Fault(place, str(head.valid_from), f"{seen[head.valid_from]} is in force from the same day")
        seen[head.valid_from] = version.version_id


Rule = Callable[[Version, Tariff], Iterator[Fault]]
RULES: tuple[Rule, ...] = (
    head_makes_sense,
    leg_rules_refer_to_what_exists,
    timeframes_refer_to_calendars,
    products_have_one_price,
    every_priced_network_has_one_tap_rule,
    rows_refer_to_what_exists,
    amounts_make_sense,
    groups_can_form,
    ids_stand_once,
)
