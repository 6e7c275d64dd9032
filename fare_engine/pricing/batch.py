"""Pricing a file of taps: `motthe price`. Parse everything, refuse all of it if a line is bad, then fold each token.

Here a token is its own traveller. Two different taps with the same device and sequence contradict each other: neither is
priced, both are named."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any

import msgspec

from fare_engine.errors import Fault, InputError
from fare_engine.facts import Fact, Given, Purchase, Tap, order_key
from fare_engine.ids import tap_id
from fare_engine.pricing.fold import fold
from fare_engine.pricing.lines import Leg, Line, Sale
from fare_engine.pricing.rides import given_facts
from fare_engine.service_day import DAY_MS, format_instant, parse_instant, to_date
from fare_engine.tariff.compile import CompiledTariff

NO_EPOCH = "-"


class TapIn(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A line of the input, as docs/cli.md gives it."""

    token: str
    media: str
    rider_category: str | None = None
    time: str
    stop_id: str | None = None
    route_id: str | None = None
    action: str
    device: str
    sequence: int
    persons: int = 1
    operator_id: str | None = None
    product_id: str | None = None
    mode: str | None = None
    zone: str | None = None
    lat: float | None = None
    lon: float | None = None
    distance_km: Decimal | None = None
    chain_distance_km: Decimal | None = None
    stops_travelled: int | None = None
    route_length_km: Decimal | None = None
    single_fare: int | None = None


def parse_taps(text: str, name: str, tariff: CompiledTariff) -> list[Fact]:
    """The facts of a file of JSON lines. InputError names every bad line, its field and the value found."""
    facts: list[Fact] = []
    faults: list[Fault] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        place = f"{name} line {number}"
        try:
            facts.append(_fact(msgspec.json.decode(line, type=TapIn), tariff))
        except msgspec.MsgspecError as error:
            faults.append(Fault(place, line if len(line) <= 120 else line[:120] + "…", str(error)))
        except InputError as error:
            faults += [Fault(f"{place}: {fault.place}", fault.value, fault.problem) for fault in error.faults]
    if faults:
        raise InputError(faults)
    return facts


def price(tariff: CompiledTariff, facts: Iterable[Fact], as_of: int | None = None) -> Iterator[str]:
    """The priced legs and sales, one JSON text each, by token and time; then the taps that gave no leg."""
    facts = sorted(facts, key=order_key)
    once = {fact.fact_id: fact for fact in facts}
    by_id: dict[str, set[bytes]] = defaultdict(set)
    by_token: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts:
        by_id[fact.fact_id].add(msgspec.json.encode(fact))
    contradicting = {fact_id for fact_id, contents in by_id.items() if len(contents) > 1}
    for fact_id, fact in once.items():
        if fact_id not in contradicting and isinstance(fact, Tap | Purchase):
            by_token[fact.token_id].append(fact)
    until = as_of if as_of is not None else max((fact.at for fact in once.values()), default=0) + DAY_MS
    for token in sorted(by_token):
        yield from _price_token(tariff, token, by_token[token], until)
    for fact_id in sorted(contradicting):
        reason = "the same device and sequence with different content: none of them is priced"
        yield _dump({"type": "quarantined", "tap": fact_id, "reason": reason, "contents": len(by_id[fact_id])})


def _price_token(tariff: CompiledTariff, token: str, facts: list[Fact], as_of: int) -> Iterator[str]:
    folded = fold(tariff, facts, as_of)
    lines: dict[str, list[Line]] = defaultdict(list)
    for line in folded.lines:
        lines[line.leg_id].append(line)
    for leg in folded.legs.values():
        yield _dump(leg_out(tariff, leg, lines[leg.leg_id]))
    for sale in folded.sales.values():
        yield _dump(_sale_out(tariff, sale, lines[sale.sale_id]))
    for fact_id, reason in folded.ignored.items():
        yield _dump({"type": "ignored", "tap": fact_id, "token": token, "reason": reason})


def leg_out(tariff: CompiledTariff, leg: Leg, lines: list[Line]) -> dict[str, Any]:
    """A priced leg as docs/cli.md describes it. An unknown price is null, never zero."""
    zone = tariff.zone
    return {
        "type": "leg",
        "leg_id": leg.leg_id,
        "token": leg.token_id,
        "media": leg.media,
        "rider_category": leg.rider_category,
        "status": leg.status,
        "reason": leg.reason or None,
        "network_id": leg.network_id,
        "route_id": leg.route_id,
        "operator_id": leg.operator_id,
        "from_stop_id": leg.from_stop_id,
        "to_stop_id": leg.to_stop_id,
        "entry_time": format_instant(leg.entry_at, zone) if leg.entry_at is not None else None,
        "exit_time": format_instant(leg.exit_at, zone) if leg.exit_at is not None else None,
        "service_date": to_date(leg.service_day).isoformat(),
        "version": leg.version_id or None,
        "currency": tariff.currency,
        "charge": None if leg.status == "unknown" else sum(line.amount for line in lines),
        "lines": [line_out(line) for line in lines],
    }


def line_out(line: Line) -> dict[str, Any]:
    """A line as docs/cli.md describes it."""
    return {
        "kind": line.kind,
        "rule_id": line.rule_id,
        "amount": line.amount,
        "bearer": line.bearer,
        "funded": line.funded,
        "cause": line.cause,
    }


def _sale_out(tariff: CompiledTariff, sale: Sale, lines: list[Line]) -> dict[str, Any]:
    return {
        "type": "sale",
        "sale_id": sale.sale_id,
        "token": sale.token_id,
        "product_id": sale.product_id,
        "time": format_instant(sale.at, tariff.zone),
        "service_date": to_date(sale.service_day).isoformat(),
        "version": sale.version_id,
        "currency": tariff.currency,
        "charge": sum(line.amount for line in lines),
        "lines": [line_out(line) for line in lines],
    }


def _fact(tap: TapIn, tariff: CompiledTariff) -> Fact:
    """A checked fact. What is wrong with the text is an error; a stop nobody knows is only a price nobody knows."""
    faults = []
    at = 0
    try:
        at = parse_instant(tap.time)
    except ValueError as error:
        faults.append(Fault("time", tap.time, str(error)))
    if tap.action not in ("entry", "exit", "board", "purchase"):
        faults.append(Fault("action", tap.action, "must be entry, exit, board or purchase"))
    if tap.media.split(":")[0] not in tariff.media:
        faults.append(Fault("media", tap.media, f"must be one of {', '.join(sorted(tariff.media))}"))
    if tap.rider_category is not None and tap.rider_category not in tariff.categories:
        faults.append(Fault("rider_category", tap.rider_category, f"must be one of {', '.join(sorted(tariff.categories))}"))
    if tap.persons < 1:
        faults.append(Fault("persons", tap.persons, "must be at least 1"))
    if (tap.action == "purchase") != (tap.product_id is not None):
        faults.append(Fault("product_id", tap.product_id, "goes with the action purchase, and only with it"))
    if faults:
        raise InputError(faults)
    fact_id = tap_id(tap.device, NO_EPOCH, tap.sequence)
    category = tap.rider_category or tariff.default_category
    place = (fact_id, at, tap.device, NO_EPOCH, tap.sequence)
    if tap.product_id is not None:
        return Purchase(*place, tap.token, tap.media, category, tap.product_id)
    return Tap(
        *place,
        tap.action,  # type: ignore[arg-type]  # checked above
        tap.token,
        tap.media,
        category,
        tap.stop_id,
        tap.route_id,
        tap.operator_id,
        tap.persons,
        _given(tap),
    )


MEASURED = (
    "mode", "zone", "lat", "lon", "distance_km", "chain_distance_km", "stops_travelled", "route_length_km", "single_fare",
)  # fmt: skip
"""Fields of a tap that say what its device measured."""


def _given(tap: TapIn) -> Given | None:
    said = {field: getattr(tap, field) for field in MEASURED if getattr(tap, field) is not None}
    return given_facts(said, said, whole=True) if said else None


def _dump(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"))
