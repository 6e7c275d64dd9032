"""The engine and the auditor, written apart, price the same facts alike; and what must hold of every price."""

from __future__ import annotations

import random
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clearing.auditor import (
    AuditedLeg,
    AuditTariff,
    RecordedCancellation,
    RecordedFact,
    RecordedPurchase,
    RecordedTap,
    audit_traveller,
)
from fare_engine.facts import Cancellation, Fact, Purchase, Tap, order_key
from fare_engine.pricing.fold import Folded, fold
from fare_engine.pricing.lines import Leg, Line
from fare_engine.rides import BookedRide, book_rides
from fare_engine.service_day import monday_of, parse_instant, to_date
from fare_engine.tariff.compile import CompiledTariff, load_compiled
from tests.strategies import CITY, HOUR, days_of_facts, weeks_of_facts

TARIFFS = {
    "in force": (CITY, ()),
    "proposal adopted": (CITY, ("proposal-2026-03",)),
    "free buses": (CITY / "free-bus-draft", ()),
    "proposal": (CITY / "proposal-2026-03", ()),
}
NAMES = sorted(TARIFFS)


def sample(examples: int) -> Callable[..., Any]:
    """The same examples on every run: what fails, fails for everybody."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def proof(examples: int) -> Callable[..., Any]:
    """New examples on every run; a failure prints its seed."""
    return settings(
        max_examples=examples,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


@cache
def engine_tariff(name: str) -> CompiledTariff:
    return load_compiled(*TARIFFS[name])


@cache
def auditors_tariff(name: str) -> AuditTariff:
    return AuditTariff.load(*TARIFFS[name])


def as_recorded(fact: Fact) -> RecordedFact:
    """A fact as the auditor reads it."""
    fields = msgspec.structs.asdict(fact)
    fields["at_ms"] = fields.pop("at")
    for later in ("given", "amount"):
        assert fields.pop(later, None) is None, "the auditor covers no tariff that looks at it"
    fields.pop("vehicle_id", None)  # who ran it is known already
    if isinstance(fact, Cancellation):
        del fields["reason"]
        return RecordedCancellation(**fields)
    return RecordedTap(**fields) if isinstance(fact, Tap) else RecordedPurchase(**fields)


def as_audited(folded: Folded, tariff: CompiledTariff) -> dict[str, AuditedLeg]:
    """The engine's legs in the auditor's words: every amount is a sum of lines, the rest is what is booked of a priced ride."""
    rides: dict[str, BookedRide] = {}
    book_rides("traveller", rides, folded, tariff, None)
    lines: dict[str, list[Line]] = defaultdict(list)
    for line in folded.lines:
        lines[line.leg_id].append(line)
    return {leg_id: _as_audited(leg, lines[leg_id], rides.get(leg_id)) for leg_id, leg in folded.legs.items()}


def _as_audited(leg: Leg, lines: Sequence[Line], booked: BookedRide | None) -> AuditedLeg:
    of_kind: dict[str, int] = defaultdict(int)
    funded: dict[str, int] = defaultdict(int)
    off: dict[tuple[Any, str, str], int] = defaultdict(int)
    for line in lines:
        of_kind[line.kind] += line.amount
        if line.kind not in ("hold", "sale", "expiry"):
            funded[line.bearer] += line.funded
        if line.kind in ("discount", "transfer", "cap"):
            off[line.kind, line.rule_id, line.bearer] -= line.amount
    covered = [line for line in lines if line.kind == "product"]
    before_caps = sum(of_kind[kind] for kind in ("list_fare", "product", "discount", "transfer"))
    return AuditedLeg(
        leg_id=leg.leg_id,
        service_date=to_date(leg.service_day).isoformat(),
        operator_id=leg.operator_id,
        status=leg.status,
        charge=None if leg.status == "unknown" else sum(line.amount for line in lines if line.kind != "hold"),
        held=of_kind["hold"],
        funded={bearer: amount for bearer, amount in funded.items() if amount},
        version=leg.version_id,
        network_id=leg.network_id,
        fare=of_kind["list_fare"],
        before_caps=before_caps,
        companions=of_kind["companions"],
        off=tuple((*key, amount) for key, amount in sorted(off.items()) if amount),
        product=covered[0].bearer.removeprefix("product:") if covered else None,
        coupon=sum(line.funded for line in covered),
        persons=leg.persons,
        rider_category=leg.rider_category,
        route_id=leg.route_id,
        distance_m=booked.ride.distance_m if booked is not None else None,
        journey=booked.ride.journey if booked is not None else leg.leg_id,
    )


def check_agreement(name: str, facts: Sequence[Fact], wait: int) -> None:
    as_of = max(fact.at for fact in facts) + wait
    folded = fold(engine_tariff(name), facts, as_of)
    audit = audit_traveller(auditors_tariff(name), map(as_recorded, facts), as_of)
    assert as_audited(folded, engine_tariff(name)) == audit.legs
    assert set(folded.ignored) == audit.ignored
    sold = {sale.sale_id: sale.charge for sale in audit.sales.values()}
    assert {line.leg_id: line.amount for line in folded.lines if line.kind == "sale"} == sold


CAPPED_NETWORKS = ("bus-s5", "bus-s6", "bus-s7", "metro", "brt")
WAITS = st.sampled_from([0, 1, HOUR, 3 * HOUR, 3 * HOUR + 1, 30 * 24 * HOUR])


@pytest.mark.parametrize("name", NAMES)
@sample(250)
@given(facts=days_of_facts(), wait=WAITS)
def test_engine_and_auditor_agree_on_every_leg_of_a_day(name: str, facts: list[Fact], wait: int) -> None:
    check_agreement(name, facts, wait)


@pytest.mark.parametrize("name", NAMES)
@sample(40)
@given(facts=weeks_of_facts(), wait=WAITS)
def test_engine_and_auditor_agree_on_every_leg_of_a_week(name: str, facts: list[Fact], wait: int) -> None:
    check_agreement(name, facts, wait)


@pytest.mark.prove
@pytest.mark.parametrize("name", NAMES)
@proof(5_000)
@given(facts=st.one_of(days_of_facts(), days_of_facts(), days_of_facts(), weeks_of_facts()), wait=WAITS)
def test_engine_and_auditor_agree_at_full_size(name: str, facts: list[Fact], wait: int) -> None:
    check_agreement(name, facts, wait)


@pytest.mark.parametrize("name", NAMES)
@sample(100)
@given(facts=days_of_facts(), seed=st.integers(0, 2**32))
def test_late_repeated_and_shuffled_facts_cost_the_same_byte_for_byte(name: str, facts: list[Fact], seed: int) -> None:
    chance = random.Random(seed)
    disturbed = [*facts, *chance.sample(facts, chance.randint(0, len(facts)))]
    chance.shuffle(disturbed)
    as_of = max(fact.at for fact in facts) + HOUR
    tariff = engine_tariff(name)
    assert msgspec.json.encode(fold(tariff, disturbed, as_of).lines) == msgspec.json.encode(fold(tariff, facts, as_of).lines)


@pytest.mark.parametrize("name", NAMES)
@sample(100)
@given(facts=st.one_of(days_of_facts(), weeks_of_facts()), cut=st.integers(0, 100), by=st.sampled_from([0, 0, -1]))
def test_a_fold_that_goes_on_from_a_state_gives_the_lines_of_one_that_starts_anew(
    name: str, facts: list[Fact], cut: int, by: int
) -> None:
    tariff = engine_tariff(name)
    facts = sorted((fact for fact in facts if not isinstance(fact, Cancellation)), key=order_key)
    first_as_of = facts[cut * len(facts) // 101].at + by
    as_of = facts[-1].at + HOUR
    before = fold(tariff, [fact for fact in facts if fact.at < first_as_of], first_as_of)
    after = fold(tariff, [fact for fact in facts if fact.at >= first_as_of], as_of, before.state)
    assert [*before.lines, *after.lines] == fold(tariff, facts, as_of).lines


@pytest.mark.parametrize("name", ["proposal", "proposal adopted"])
@sample(60)
@given(facts=weeks_of_facts())
def test_a_cap_is_never_passed(name: str, facts: list[Fact]) -> None:
    folded = fold(engine_tariff(name), facts, max(fact.at for fact in facts) + HOUR)
    spent: dict[tuple[str, int], int] = defaultdict(int)
    lines: dict[str, list[Line]] = defaultdict(list)
    for line in folded.lines:
        lines[line.leg_id].append(line)
    for leg in folded.legs.values():
        if leg.status != "complete" or leg.network_id not in CAPPED_NETWORKS or leg.media == "cash":
            continue
        if leg.version_id != "proposal-2026-03":
            continue
        own = sum(line.amount for line in lines[leg.leg_id] if line.kind not in ("companions", "hold"))
        spent[f"day of {leg.rider_category}", leg.service_day] += own
        spent[f"week of {leg.rider_category}", monday_of(leg.service_day)] += own
    limits = {"day of adult": 50_000, "day of student": 30_000, "week of adult": 225_000}
    for (what, period), amount in spent.items():
        assert amount <= limits.get(what, amount), (what, to_date(period))


# What the engine and docs/tariff.md say differently: each is to become a plain test, or another sentence of the documentation.


def _tap(number: int, at: str, action: str, stop: str | None, route: str | None = None) -> Tap:
    instant = parse_instant(f"{at}+07:00")
    return Tap(f"d/a/{number}", instant, "d", "a", number, action, "card", "emv", "adult", stop, route)  # type: ignore[arg-type]


DISAGREEMENTS = [
    pytest.param([_tap(1, "2019-04-30T04:30:00", "board", None, "1")], id="a service day before any tariff is local, not UTC's"),
    pytest.param(
        [_tap(1, "2026-03-03T08:00:00", "entry", None, "ML1")],
        id="from an unknown stop there is no dearest fare to hold",
    ),
    pytest.param([_tap(1, "2026-03-03T08:00:00", "exit", None, "ML1")], id="towards an unknown stop there is no dearest fare"),
    pytest.param(
        [
            _tap(1, "2026-03-03T08:00:00", "entry", "no-such-stop", "ML1"),
            _tap(2, "2026-03-03T12:00:00", "exit", "L1-02"),
        ],
        id="a late exit does not turn an unknown price into zero",
    ),
    pytest.param(
        [
            Purchase("d/a/1", parse_instant("2026-03-03T07:00:00+07:00"), "d", "a", 1, "card", "emv", "adult", "ML1-1D"),
            _tap(2, "2026-03-03T08:00:00", "entry", "L1-01"),
            _tap(3, "2026-03-03T08:20:00", "exit", "L1-02"),
            _tap(4, "2026-03-04T02:20:00", "entry", "L1-02"),
            _tap(5, "2026-03-04T02:40:00", "exit", "L1-01"),
        ],
        id="a pass pays a ride that began on its last service day and ends after it",
    ),
]


@pytest.mark.parametrize("facts", DISAGREEMENTS)
def test_engine_and_auditor_agree_on_what_once_differed(facts: list[Fact]) -> None:
    check_agreement("in force", facts, 0)


def _city_with(folder: Path, version: str, old: str, new: str) -> None:
    """A change to a copy of the city, in which the proposal ends on 3 March."""
    for name, before, after in (
        (version, old, new),
        ("proposal-2026-03", "valid_from = 2026-03-01", "valid_from = 2026-03-01\nvalid_to = 2026-03-03"),
    ):
        path = folder / name / "tariff.toml"
        text = path.read_text(encoding="utf-8")
        assert before in text
        path.write_text(text.replace(before, after, 1), encoding="utf-8")


VERSIONS_AND_GRACE = [
    pytest.param(
        "proposal-2026-03",
        "max_transfers = 1",
        "max_transfers = 1",
        [
            _tap(1, "2026-03-04T02:20:00", "board", None, "1"),
            _tap(2, "2026-03-04T02:40:00", "entry", "L1-01"),
            _tap(3, "2026-03-04T02:50:00", "exit", "L1-08"),
        ],
        id="a group's rule is that of its first leg's version, whatever the second leg's version has",
    ),
    pytest.param(
        "2019-now",
        """networks = ["metro"]
taps = "entry_exit"
hold = "highest_fare"
longest_stay_minutes = 180
missing_exit = "highest_fare"
missing_entry = "highest_fare"
late_exit = "closes_leg"
""",
        'networks = ["metro"]\ntaps = "entry"\n',
        [_tap(1, "2026-03-04T02:20:00", "entry", "L1-01"), _tap(2, "2026-03-04T02:50:00", "exit", "L1-08")],
        id="an exit closes a leg by the tap rule of the leg's version",
    ),
    pytest.param(
        "2019-now",
        'late_exit = "closes_leg"',
        'late_exit = "closes_leg"\nsame_stop_grace_minutes = 10',
        [_tap(1, "2026-02-03T08:00:00", "entry", None, "ML1"), _tap(2, "2026-02-03T08:05:00", "exit", None, "ML1")],
        id="two stops that are not known are not the same stop",
    ),
]


@pytest.mark.parametrize(("version", "old", "new", "facts"), VERSIONS_AND_GRACE)
def test_engine_and_auditor_agree_on_what_once_differed_in_another_city(
    tmp_path: Path, version: str, old: str, new: str, facts: list[Fact]
) -> None:
    city = tmp_path / "city"
    shutil.copytree(CITY, city)
    _city_with(city, version, old, new)
    adopt = ("proposal-2026-03",)
    as_of = facts[-1].at
    expected = audit_traveller(AuditTariff.load(city, adopt), map(as_recorded, facts), as_of).legs
    tariff = load_compiled(city, adopt)
    assert as_audited(fold(tariff, facts, as_of), tariff) == expected
