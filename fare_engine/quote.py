"""What some rides would cost, and why: `motthe quote`. The same fold that prices taps, for a rider who asks beforehand."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from difflib import get_close_matches
from typing import Any

from fare_engine.errors import Fault, InputError
from fare_engine.pages.names import Names
from fare_engine.pricing.batch import leg_out
from fare_engine.pricing.fold import Folded, fold
from fare_engine.pricing.lines import Leg, Line
from fare_engine.pricing.rides import read_rides
from fare_engine.pricing.why import others
from fare_engine.service_day import DAY_MS
from fare_engine.tariff.compile import CompiledTariff


def one_ride(
    start: str | None,
    end: str | None,
    when: str,
    minutes: int,
    *,
    mode: str | None,
    route: str | None,
    operator: str | None,
    km: float | None,
) -> dict[str, Any]:
    """A ride as docs/cases.md writes it. InputError where the time is none."""
    try:
        begins = datetime.fromisoformat(when)
    except ValueError:
        raise InputError([Fault("--at", when, "not an ISO time, as 2026-03-02T07:58")]) from None
    if minutes < 0:
        raise InputError([Fault("--minutes", minutes, "a ride does not end before it begins")])
    try:
        ends = begins + timedelta(minutes=minutes)
    except OverflowError:
        raise InputError([Fault("--at, --minutes", f"{when}, {minutes}", "not a time at which anybody rides")]) from None
    ride: dict[str, Any] = {"on": {"t": begins.isoformat(), "stop": start}, "off": {"t": ends.isoformat(), "stop": end}}
    said = {"mode": mode, "route": route, "operator": operator, "distance_km": km}
    return ride | {field: value for field, value in said.items() if value is not None}


def unknown_stops(tariff: CompiledTariff, named: Iterable[str | None]) -> Iterator[str]:
    """What to say of stops that the network does not list, with those that may be meant. A tariff may price them all the same."""
    stops = tariff.network.stops
    known = {stop.name for stop in stops.values()} | stops.keys()
    for said in named:
        if said is not None and said not in known and said.split(",")[0].strip() not in known:
            yield f"no stop {said!r} is listed{_meant(tariff, said)}"


def missed_end(tariff: CompiledTariff, end: str | None, priced: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """What to say where a ride was to end at a stop and did not, because that stop is on no line of its network."""
    if end is not None and any(leg.get("status") == "missing_exit" for leg in priced):
        yield f"no ride of that network ends at {end!r}{_meant(tariff, end)}"


def _meant(tariff: CompiledTariff, said: str) -> str:
    known = {stop.name for stop in tariff.network.stops.values()} - {said}
    likely = [name for name in known if said.casefold() in name.casefold()] or get_close_matches(said, known, 3)
    return f"; is it {' or '.join(sorted(likely)[:3])}?" if likely else ""


def read_rides_file(text: str, name: str) -> list[dict[str, Any]]:
    """A JSON list of rides, or an object with `rides`. InputError otherwise."""
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError([Fault(f"{name} line {error.lineno}", error.msg, "not JSON")]) from None
    except RecursionError:
        raise InputError([Fault(name, "[[[…", "nested too deeply")]) from None
    rides = data.get("rides") if isinstance(data, dict) else data
    if not isinstance(rides, list) or not all(isinstance(ride, dict) for ride in rides):
        raise InputError([Fault(name, type(rides).__name__, "must be a list of rides")])
    return rides


def quote(
    tariff: CompiledTariff,
    rides: Sequence[Mapping[str, Any]],
    rider: Mapping[str, Any],
    media: str,
    account: Mapping[str, Any],
    *,
    why: bool,
) -> Iterator[dict[str, Any]]:
    """The priced legs of some rides, each with its lines named in both languages; with `why` the rules that did not act.

    MissingFactError names what the tariff does not know; InputError what is not a ride."""
    ridden = read_rides(tariff, rides, rider, media, account)
    until = max((fact.at for facts in ridden.facts.values() for fact in facts), default=0) + DAY_MS
    for facts in ridden.facts.values():
        folded = fold(tariff, facts, until, explain=why)
        lines: dict[str, list[Line]] = defaultdict(list)
        for line in folded.lines:
            lines[line.leg_id].append(line)
        for leg in folded.legs.values():
            yield _priced(tariff, folded, leg, ridden.ride_of[leg.leg_id], lines[leg.leg_id], why=why)


def _priced(tariff: CompiledTariff, folded: Folded, leg: Leg, ride: str, lines: list[Line], *, why: bool) -> dict[str, Any]:
    vi, en = Names(tariff, "vi"), Names(tariff, "en")
    priced = {"ride": ride, **leg_out(tariff, leg, lines)}
    priced["lines"] = [
        {**shown, "vi": vi.rule(line, leg), "en": en.rule(line, leg)} for shown, line in zip(priced["lines"], lines, strict=True)
    ]
    if why:
        priced["others"] = [
            {
                "rule_id": other.rule_id,
                "reason": other.reason,
                "vi": _sentence(other.name.vi, other.vi),
                "en": _sentence(other.name.en, other.en),
            }
            for other in others(tariff, folded, leg)
        ]
    return priced


def as_text(tariff: CompiledTariff, priced: Mapping[str, Any], language: str) -> Iterator[str]:
    """A priced leg as lines to read."""
    names = Names(tariff, language)
    places = " → ".join(names.place(priced[end]) for end in ("from_stop_id", "to_stop_id") if priced[end])
    times = " – ".join(priced[tap][11:16] for tap in ("entry_time", "exit_time") if priced[tap])
    charge = names.money(priced["charge"]) if priced["charge"] is not None else names.words["unknown_price"]
    yield f"{priced['ride']}  {priced['network_id'] or '–'}  {places}  {priced['service_date']} {times}  {charge}"
    if priced["reason"]:
        yield f"    {priced['reason']}"
    for line in priced["lines"]:
        yield f"    {names.money(line['amount']):>14}  {line[language]}  [{line['rule_id']}]"
    for other in priced.get("others", ()):
        yield f"    {'·':>14}  {other[language]}  [{other['rule_id']}]"


def _sentence(name: str, reason: str) -> str:
    return f"{name}: {reason}"
