"""Priced cases of the format `fare-cases/1` (docs/cases.md): rides in, charges out, compared with what was published."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import msgspec

from fare_engine.errors import Fault, InputError, MissingFactError
from fare_engine.pricing.batch import line_out
from fare_engine.pricing.fold import Folded, fold
from fare_engine.pricing.lines import Leg, Line
from fare_engine.pricing.rides import Ridden, read_rides
from fare_engine.service_day import DAY_MS, local_ms, monday_of, month_of, to_date
from fare_engine.tariff.compile import CompiledTariff, compile_for_policy
from fare_engine.tariff.model import AS_ONE, Tariff

FORMAT = "fare-cases/1"
Result: TypeAlias = Literal["PASS", "FAIL", "UNSUPPORTED"]
LATER_MS = 45 * DAY_MS
"""How long after the last tap a case is looked at: missing exits are charged and the month's rebates paid."""


class Difference(msgspec.Struct, frozen=True):
    """One expected figure that came out otherwise."""

    what: str
    expected: object
    got: object


class Outcome(msgspec.Struct, frozen=True):
    """What became of a case."""

    case_id: str
    confidence: str
    result: Result
    differences: tuple[Difference, ...] = ()
    missing: str = ""
    charges: dict[str, int | None] = {}
    lines: dict[str, list[dict[str, Any]]] = {}

    def text(self) -> str:
        """The case's line of the report."""
        if self.result == "UNSUPPORTED":
            return f"UNSUPPORTED {self.case_id} missing fact: {self.missing}"
        if self.result == "PASS":
            return f"PASS {self.case_id}"
        expected = ", ".join(f"{found.what} {found.expected}" for found in self.differences)
        got = ", ".join(f"{found.what} {found.got}" for found in self.differences)
        return f"FAIL {self.case_id} expected {expected} got {got}"


def read_cases(text: str, name: str) -> list[dict[str, Any]]:
    """The cases of a file. InputError where it is not one."""
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError([Fault(f"{name} line {error.lineno}", error.msg, "not JSON")]) from None
    except RecursionError:
        raise InputError([Fault(name, "[[[…", "nested too deeply")]) from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise InputError([Fault(f"{name}: format", found, f"must be {FORMAT}")])
    cases = data.get("cases")
    if not isinstance(cases, list):
        raise InputError([Fault(f"{name}: cases", type(cases).__name__, "must be a list")])
    faults = []
    for number, case in enumerate(cases):
        place = f"{name}: cases[{number}]"
        needed = [field for field in ("id", "policy", "rides") if not isinstance(case, dict) or field not in case]
        faults += [Fault(place, field, "is missing") for field in needed]
        if not needed:
            faults += _misshapen(place, case)
    if faults:
        raise InputError(faults)
    return cases


def _misshapen(place: str, case: dict[str, Any]) -> Iterator[Fault]:
    """What keeps a case from being read: fields of another kind, and charges of rides that it does not have."""
    kinds: tuple[tuple[str, type], ...] = (("rides", list), ("rider", dict), ("account", dict), ("expect", dict))
    wrong = [field for field, kind in kinds if case.get(field) is not None and not isinstance(case[field], kind)]
    yield from (Fault(f"{place} {field}", case[field], "is of another kind") for field in wrong)
    if wrong:
        return
    rides = {str(ride.get("id", f"r{number}")) for number, ride in enumerate(case["rides"], 1) if isinstance(ride, dict)}
    for charge in (case.get("expect") or {}).get("charges", ()):
        ride = charge.get("ride") if isinstance(charge, dict) else charge
        if ride not in rides:
            yield Fault(f"{place} expect.charges", ride, "names no ride of the case")


def run_cases(tariff: Tariff, cases: list[dict[str, Any]]) -> Iterator[Outcome]:
    """The outcome of every case, each priced by the version that its policy names."""
    compiled = lru_cache(lambda policy: compile_for_policy(tariff, policy))
    for case in cases:
        try:
            yield _run(compiled, case)
        except MissingFactError as error:
            yield _outcome(case, "UNSUPPORTED", missing=str(error))
        except InputError as error:
            places = [Fault(f"{case['id']}: {fault.place}", fault.value, fault.problem) for fault in error.faults]
            raise InputError(places) from None


def _outcome(case: Mapping[str, Any], result: Result, **found: Any) -> Outcome:
    return Outcome(str(case["id"]), str(case.get("confidence", "high")), result, **found)


def _run(compiled: Callable[[str], CompiledTariff | None], case: dict[str, Any]) -> Outcome:
    policy = str(case["policy"])
    tariff = compiled(policy)
    if tariff is None:
        raise MissingFactError(f"the policy {policy}")
    ridden = read_rides(tariff, case["rides"], case.get("rider") or {}, str(case.get("media", "")), case.get("account") or {})
    priced = _Priced(tariff, case, ridden)
    charges = {ride: priced.charge(ride) for ride in priced.rides}
    lines = {ride: [line_out(line) for line in priced.lines[ride]] for ride in priced.rides}
    unknown = [ride for ride in priced.asked() if charges[ride] is None]
    if unknown:
        reasons = {priced.unknown[ride].removeprefix("missing fact: ") for ride in unknown}
        missing = f"{'; '.join(sorted(reasons))} ({', '.join(unknown)})"
        return _outcome(case, "UNSUPPORTED", missing=missing, charges=charges, lines=lines)
    differences = tuple(priced.differences())
    return _outcome(case, "FAIL" if differences else "PASS", differences=differences, charges=charges, lines=lines)


class _Priced:
    """A case's rides with their lines, and the comparisons that its `expect` asks for."""

    def __init__(self, tariff: CompiledTariff, case: Mapping[str, Any], ridden: Ridden) -> None:
        self.tariff = tariff
        self.expect: Mapping[str, Any] = case.get("expect") or {}
        self.rides = [str(ride.get("id", f"r{number}")) for number, ride in enumerate(case["rides"], start=1)]
        self.ridden = ridden
        self.lines: dict[str, list[Line]] = defaultdict(list)
        self.rebates: dict[str, int] = defaultdict(int)
        self.unknown: dict[str, str] = {}
        self.legs: dict[str, list[Leg]] = defaultdict(list)
        until = max((fact.at for facts in ridden.facts.values() for fact in facts), default=0) + LATER_MS
        for facts in ridden.facts.values():
            self._take(fold(tariff, facts, until))

    def _take(self, folded: Folded) -> None:
        for leg in folded.legs.values():
            ride = self.ridden.ride_of[leg.leg_id]
            self.legs[ride].append(leg)
            if leg.status == "unknown":
                self.unknown[ride] = leg.reason
        for line in folded.lines:
            ride = self.ridden.ride_of.get(line.leg_id, "")
            if line.kind == "rebate":
                self.rebates[line.cause.rpartition("/")[2]] -= line.amount
            elif ride:
                self.lines[ride].append(line)

    def charge(self, ride: str) -> int | None:
        """What a ride costs in the end; None: unknown."""
        return None if ride in self.unknown else sum(line.amount for line in self.lines[ride])

    def asked(self) -> list[str]:
        """The rides whose price the case asks for."""
        if self.expect.get("totals"):
            return self.rides
        return [str(charge["ride"]) for charge in self.expect.get("charges", ())]

    def differences(self) -> Iterator[Difference]:
        """Everything expected that came out otherwise."""
        for charge in self.expect.get("charges", ()):
            yield from self._charge_differs(charge)
        for total in self.expect.get("totals", ()):
            got = self._total(str(total["scope"]), total.get("key")) - self._allowed_more()
            if got != total["amount"]:
                yield Difference(f"{total['scope']} {total.get('key', '')}".strip(), total["amount"], got)
        for rebate in self.expect.get("rebates", ()):
            period = str(rebate["period"])
            got = sum(amount for first, amount in self.rebates.items() if first.startswith(period))
            if got != rebate["amount"]:
                yield Difference(f"rebate {period}", rebate["amount"], got)
        wanted = self.expect.get("journeys")
        if wanted is not None:
            found = [self.journeys(only_as_one=True), self.journeys(only_as_one=False)]
            if _as_sets(wanted) not in [_as_sets(journeys) for journeys in found]:
                yield Difference("journeys", wanted, found[1])

    def journeys(self, *, only_as_one: bool) -> list[list[str]]:
        """The rides that joining rules put together: all rules, or only those by which legs are priced as one."""
        together: list[list[str]] = []
        for ride in self.rides:
            before = {
                self.ridden.ride_of[leg_id]
                for leg in self.legs[ride]
                for rule_id, leg_id in leg.follows
                if not only_as_one or self._is_as_one(leg, rule_id)
            }
            joined = next((journey for journey in together if before & set(journey)), None)
            if joined is None:
                together.append([ride])
            else:
                joined.append(ride)
        return together

    def _is_as_one(self, leg: Leg, rule_id: str) -> bool:
        join = self.tariff.versions[leg.version_id].joins.get(rule_id)
        return join is not None and join.rule.worth in AS_ONE

    def _charge_differs(self, charge: Mapping[str, Any]) -> Iterator[Difference]:
        ride = str(charge["ride"])
        lines = self.lines[ride]
        entry = self.ridden.first_tap.get(ride)
        surcharges = sum(line.amount for line in lines if line.kind == "surcharge")
        total = self.charge(ride)
        found = {
            "amount": total,
            "at_on": sum(line.amount for line in lines if line.cause == entry),
            "at_off": sum(line.amount for line in lines if line.cause != entry),
            "fare": (total or 0) - surcharges,
            "access_fee": surcharges,
            "recognised": sum(line.funded for line in lines if line.kind == "product"),
        }
        allowed = charge.get("amount_any_of")
        if allowed is not None and total in allowed:
            return
        for field, got in found.items():
            if field in charge and charge[field] != got:
                yield Difference(ride if field == "amount" else f"{ride} {field}", charge[field], got)

    def _allowed_more(self) -> int:
        """By how much rides came out otherwise than the totals assume, where the case allows several amounts."""
        several = [charge for charge in self.expect.get("charges", ()) if "amount_any_of" in charge and "amount" in charge]
        charged = {str(charge["ride"]): self.charge(str(charge["ride"])) for charge in several}
        return sum(
            (charged[str(charge["ride"])] or 0) - charge["amount"]
            for charge in several
            if charged[str(charge["ride"])] in charge["amount_any_of"]
        )

    def _total(self, scope: str, key: str | None) -> int:
        keys = {ride: self._key(scope, ride) for ride in self.rides}
        return sum(self.charge(ride) or 0 for ride in self.rides if key is None or keys[ride] == key)

    def _key(self, scope: str, ride: str) -> str | None:
        """Which day, week or month a ride belongs to."""
        legs = self.legs[ride]
        if not legs:
            return None
        leg = legs[0]
        if scope == "day":
            at = leg.entry_at if leg.entry_at is not None else leg.exit_at
            return to_date(local_ms(at or 0, self.tariff.zone) // DAY_MS).isoformat()
        if scope == "week":
            return to_date(monday_of(leg.service_day)).isoformat()
        if scope == "month":
            return to_date(month_of(leg.service_day)).isoformat()[:7]
        return to_date(leg.service_day).isoformat()


def _as_sets(journeys: list[list[str]]) -> frozenset[frozenset[str]]:
    return frozenset(frozenset(map(str, journey)) for journey in journeys)
