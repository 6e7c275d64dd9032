"""The close and the auditor, written apart, give the same exact shares by any agreements."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from clearing.agreements import WEIGHED, load_agreements
from clearing.auditor import TakenOff
from clearing.auditor_shares import Released
from fare_engine.errors import CloseError, InputError
from tests.builders import TOWN
from tests.shares import (
    REST,
    Told,
    Trip,
    a_subsidy,
    an_agreement,
    by_the_auditor,
    by_the_close,
    clearing_toml,
    differences,
    sums_of,
)

OPERATORS = ("RAIL", "BUSCO", "COOP")
NETWORKS = ("metro", "bus")
DATES = ("2026-02-28", "2026-03-01", "2026-03-02", "2026-03-03", "2026-03-07", "2026-03-08")
"""Two months and two weeks: Saturday to Tuesday, and the next Saturday and Sunday."""
RIDDEN = (*DATES, *("2026-03-02", "2026-03-03") * 3)
"""Mostly on the same two days, so that several operators share."""
THROUGH = (*DATES[3:], "2026-03-31")
PRODUCTS = ("DAY", "WEEK")
COVERS = ("legs", "legs", "fares", "coupons", "discounts", "transfers", "caps", "caps", "products", "products")
AMOUNTS = st.integers(1, 9) | st.sampled_from((1000, 2500, 7000, 12_000))
WEIGHTS = st.dictionaries(st.sampled_from((*OPERATORS, "CITY")), st.integers(1, 3), min_size=1)


def some(values: tuple[str, ...]) -> st.SearchStrategy[list[str]]:
    """A filter of an agreement: mostly none."""
    named = st.lists(st.sampled_from(values), min_size=1, max_size=2, unique=True)
    return st.integers(0, 5).flatmap(lambda number: st.just([]) if number else named)


def toml(value: object) -> str:
    """A value of a row."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {weight}" for key, weight in value.items()) + " }"
    return str(value) if isinstance(value, int | list) else f'"{value}"'


@st.composite
def agreements(draw: st.DrawFn) -> str:
    """The fields of a row that the checks let pass, but for what it says of other rows."""
    covers = draw(st.sampled_from(COVERS))
    of_products, of_legs = ("use", "use", "fixed", "gross_cost"), (*WEIGHED, *WEIGHED, "own_leg", "fixed", "gross_cost")
    method = draw(st.sampled_from(of_products if covers == "products" else of_legs))
    if covers == "legs" and draw(st.integers(0, 3)) == 0:
        method = "per_ride"
    row: dict[str, Any] = {"covers": covers, "method": method}
    scopes = ("journey", "service_day", "week", "month", *(() if covers == "caps" else ("leg",)))
    if method in WEIGHED:
        row["scope"] = draw(st.sampled_from(scopes))
        if row["scope"] != "leg":
            row["operators"] = draw(st.sampled_from(([], ["RAIL"], ["RAIL", "BUSCO"], ["BUSCO", "COOP"])))
        row["without_use"] = draw(st.just({}) | WEIGHTS)
    if method in ("tariff_km", "passenger_km"):
        row["unknown_m"] = draw(st.sampled_from(({"metro": 1000, "bus": 0}, {"metro": 1000, "bus": 300}, {})))
    if method == "use":
        row["scope"] = draw(st.sampled_from(("service_day", "week", "month")))
        row["weigh_by"] = draw(st.sampled_from(("standalone_fares", "boardings")))
        row["without_use"] = draw(WEIGHTS)
    if method == "fixed":
        row["shares"] = draw(WEIGHTS)
    if method in ("gross_cost", "per_ride"):
        row["residual"] = draw(st.sampled_from(("CITY", "RAIL")))
    if method == "per_ride":
        row["amount"] = draw(st.integers(0, 5000))
    if covers != "products":
        row["networks"] = draw(some(NETWORKS))
        row["rules"] = draw(some(("day", "joint")))
    row["products"] = draw(some(PRODUCTS))
    row["paid_by"] = draw(some(("riders", "CITY", "product:DAY")))
    fields = [f"{name} = {toml(value)}" for name, value in row.items() if value not in ([], {})]
    fields += [f"valid_from = {draw(st.sampled_from(('2026-01-01', '2026-01-01', '2026-03-02')))}"]
    return "\n".join([*fields, draw(st.sampled_from(("", "", "valid_to = 2026-03-02")))])


@st.composite
def trips(draw: st.DrawFn) -> Told:
    """Some rides of two travellers, and what passes release."""
    found = Told()
    for number in range(draw(st.integers(1, 7))):
        traveller = draw(st.sampled_from(("ana", "ana", "ana", "ben")))
        earlier = [trip.journey for trip in found.trips if trip.traveller == traveller]
        persons = draw(st.sampled_from((1, 1, 3)))
        network = draw(st.sampled_from(NETWORKS))
        fare = draw(st.just(0) | AMOUNTS | AMOUNTS | AMOUNTS)
        product = draw(st.sampled_from((None, None, "DAY", "DAY", "WEEK"))) if fare else None
        found.trips.append(
            Trip(
                leg_id=str(number),
                operator=draw(st.sampled_from(OPERATORS)),
                network=network,
                on=draw(st.sampled_from(RIDDEN)),
                fare=fare,
                companions=fare * (persons - 1),
                persons=persons,
                metres=draw(st.sampled_from((None, 0, 700, 3000, 9999))),
                journey=draw(st.sampled_from((str(number), *earlier))),
                traveller=traveller,
                category=draw(st.sampled_from(("adult", "student"))),
                route=draw(st.sampled_from(("M", "10", None))),
                off=draw(taken_off(network, fare, with_product=product is not None)),
                product=product,
                coupon=draw(st.just(0) | AMOUNTS) if product else 0,
            )
        )
    for product in PRODUCTS:
        for on in draw(st.sets(st.sampled_from(DATES))):
            found.released.append(Released(product_id=product, service_date=on, amount=draw(AMOUNTS)))
    return found


@st.composite
def taken_off(draw: st.DrawFn, network: str, fare: int, *, with_product: bool) -> tuple[TakenOff, ...]:
    """What rules take off a ride, one of each kind at most; caps may give back."""
    bearers = st.sampled_from(("operators", "CITY"))
    found: list[TakenOff] = []
    if fare and not with_product:
        if draw(st.booleans()):
            found.append(("discount", draw(st.sampled_from(("student", "day"))), draw(bearers), draw(st.integers(1, fare))))
        if draw(st.booleans()):
            found.append(("transfer", "joint", draw(bearers), draw(st.integers(1, fare))))
    if draw(st.booleans()):
        cap = draw(st.sampled_from(("day", "joint", "joint") if network == "metro" else ("day",)))
        found.append(("cap", cap, draw(bearers), draw(AMOUNTS | AMOUNTS.map(lambda amount: -amount))))
    return tuple(found)


SUBSIDIES = st.sampled_from(
    ("", 'networks = ["bus"]', 'routes = ["10"]', 'rider_categories = ["student"]', "valid_to = 2026-03-02")
).map(lambda fields: a_subsidy(f"amount = 700\nvalid_from = 2026-03-01\n{fields}"))


def outcome(shares: Callable[[], dict[str, Fraction]]) -> dict[str, Fraction] | None:
    """Who is given what; None where it cannot be told."""
    try:
        return shares()
    except CloseError:
        return None


def check(path: Path, told: Told, rows: list[str], subsidy: str, through: str) -> None:
    named = [an_agreement(f"a{number}", row) for number, row in enumerate(rows)]
    clearing_toml(path, *named, subsidy, rest=[*REST])
    try:
        agreed = load_agreements(path, TOWN)
    except InputError:
        assume(False)
    closed = outcome(lambda: sums_of(by_the_close(told, agreed, through)))
    audited = outcome(lambda: by_the_auditor(told, path, through))
    if closed is None or audited is None:
        assert closed == audited
    else:
        assert differences(closed, audited, splits=6 * (len(told.trips) * 12 + len(told.released))) == {}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("agreements") / "clearing.toml"


ROWS = st.lists(agreements(), min_size=1, max_size=4)


@settings(max_examples=400, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(told=trips(), rows=ROWS, subsidy=st.just("") | SUBSIDIES, through=st.sampled_from(THROUGH))
def test_the_close_and_the_auditor_give_the_same_exact_shares(
    path: Path, told: Told, rows: list[str], subsidy: str, through: str
) -> None:
    check(path, told, rows, subsidy, through)


@pytest.mark.prove
@settings(max_examples=5000, database=None, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck))
@given(told=trips(), rows=ROWS, subsidy=st.just("") | SUBSIDIES, through=st.sampled_from(THROUGH))
def test_the_close_and_the_auditor_give_the_same_exact_shares_at_full_size(
    path: Path, told: Told, rows: list[str], subsidy: str, through: str
) -> None:
    check(path, told, rows, subsidy, through)
