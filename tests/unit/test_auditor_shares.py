"""Who should have been given what, worked out by hand from the words of docs/clearing.md: by the auditor, and by the close."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from clearing.agreements import load_agreements
from clearing.auditor import AuditedLeg
from clearing.auditor_shares import Released, Sharing
from fare_engine.errors import CloseError
from tests.builders import TOWN
from tests.shares import REST, Told, Trip, a_subsidy, an_agreement, by_the_auditor, by_the_close, clearing_toml, sums_of

MONDAY, TUESDAY, SATURDAY, SUNDAY = "2026-03-02", "2026-03-03", "2026-03-07", "2026-03-08"
RAIL = Trip(leg_id="1", operator="RAIL", network="metro", on=TUESDAY, fare=9000, journey="1", metres=3000)
BUS = Trip(leg_id="2", operator="BUSCO", network="bus", on=TUESDAY, fare=6000, journey="1")
COOP = Trip(leg_id="3", operator="COOP", network="bus", on=TUESDAY, fare=5000, journey="1")


def given(
    folder: Path, rows: list[str], *trips: Trip, through: str = TUESDAY, released: tuple[Released, ...] = ()
) -> dict[str, int]:
    """What both give everybody, which is the same and whole."""
    named = [an_agreement(f"a{number}", row) for number, row in enumerate(rows)]
    path = clearing_toml(folder / "clearing.toml", *named, *REST)
    told = Told(list(trips), list(released))
    audited = by_the_auditor(told, path, through)
    closed = {
        party: amount for party, amount in sums_of(by_the_close(told, load_agreements(path, TOWN), through)).items() if amount
    }
    assert audited == closed
    assert all(amount.denominator == 1 for amount in audited.values()), audited
    return {party: int(amount) for party, amount in audited.items()}


PAIR = 'covers = "legs"\nmethod = "boardings"\nscope = "journey"\noperators = ["RAIL", "BUSCO"]'
GROSS = 'covers = "legs"\nmethod = "gross_cost"\nresidual = "CITY"'


def test_a_pair_s_agreement_holds_for_both_and_for_each_alone_and_else_the_next_one_does(tmp_path: Path) -> None:
    assert given(tmp_path, [PAIR, GROSS], RAIL, BUS) == {"RAIL": 7500, "BUSCO": 7500}
    assert given(tmp_path, [PAIR, GROSS], BUS) == {"BUSCO": 6000}
    assert given(tmp_path, [PAIR, GROSS], RAIL, BUS, COOP) == {"CITY": 20_000}
    assert given(tmp_path, [PAIR, GROSS], RAIL, BUS, replace(COOP, journey="3")) == {"RAIL": 7500, "BUSCO": 7500, "CITY": 5000}


def test_a_cap_is_weighed_by_the_networks_that_it_counts_whatever_the_agreement_names(tmp_path: Path) -> None:
    caps = 'covers = "caps"\nmethod = "boardings"\nscope = "service_day"'
    of_metro = replace(COOP, network="metro", off=(("cap", "joint", "operators", 3000),))
    assert given(tmp_path, [caps], RAIL, BUS, of_metro) == {"RAIL": 9000 - 1500, "BUSCO": 6000, "COOP": 5000 - 1500}
    of_all = replace(of_metro, off=(("cap", "day", "operators", 3000),))
    for row in (caps, caps + '\nnetworks = ["metro"]'):
        assert given(tmp_path, [row], RAIL, BUS, of_all) == {"RAIL": 8000, "BUSCO": 5000, "COOP": 4000}


def test_how_far_is_unknown_only_where_nobody_knows_it(tmp_path: Path) -> None:
    row = 'covers = "legs"\nmethod = "tariff_km"\nscope = "journey"\n'
    unknown = row + "unknown_m = { metro = 500, bus = 1000 }"
    assert given(tmp_path, [unknown], RAIL, replace(BUS, fare=3000)) == {"RAIL": 9000, "BUSCO": 3000}
    assert given(tmp_path, [unknown], replace(RAIL, metres=0), BUS) == {"BUSCO": 15_000}
    assert given(tmp_path, [row], BUS) == {"BUSCO": 6000}, "what is not weighed need not be known"
    path = clearing_toml(tmp_path / "clearing.toml", an_agreement("far", row), *REST)
    with pytest.raises(CloseError, match="the auditor does not know how far 2 went, which far weighs"):
        by_the_auditor(Told([RAIL, BUS]), path, TUESDAY)


def test_what_a_product_released_is_shared_by_all_rides_of_its_week_when_that_has_ended(tmp_path: Path) -> None:
    week = 'covers = "products"\nmethod = "use"\nscope = "week"\nweigh_by = "{}"\nwithout_use = {{ CITY = 1 }}'
    trips = (
        replace(RAIL, on=MONDAY, product="DAY"),
        replace(BUS, product="DAY", fare=3000, companions=6000, persons=3, traveller="ben"),
        replace(COOP, product="WEEK", traveller="ben"),
    )
    released = tuple(Released(product_id="DAY", service_date=on, amount=4000) for on in (MONDAY, TUESDAY, "2026-03-04"))
    fares, number = week.format("standalone_fares"), week.format("boardings")
    for on in ("2026-03-04", SATURDAY):
        assert given(tmp_path, [fares], *trips, through=on, released=released) == {
            "RAIL": 4000,
            "BUSCO": 4000 + 6000,
            "CITY": 4000,
        }
    assert given(tmp_path, [fares], *trips, through=SUNDAY, released=released) == {"RAIL": 9000, "BUSCO": 3000 + 6000}
    assert given(tmp_path, [number], *trips, through=SUNDAY, released=released) == {"RAIL": 6000, "BUSCO": 6000 + 6000}


def test_rides_that_are_none_are_not_weighed_and_not_paid_for(tmp_path: Path) -> None:
    day = 'covers = "legs"\nmethod = "boardings"\nscope = "service_day"'
    path = clearing_toml(tmp_path / "clearing.toml", an_agreement("day", day), a_subsidy("amount = 10"), *REST)

    def of(leg: AuditedLeg) -> dict[str, int]:
        sharing = Sharing(path, {}, TUESDAY)
        found = sharing.totals(sharing.rides([[RAIL.audited(), leg]]), [])
        return {party: int(amount) for party, amount in found.items() if amount}

    free = replace(BUS, fare=0).audited()
    assert of(free) == {"RAIL": 4510, "BUSCO": 4510, "CITY": -20}
    for leg in (
        structs.replace(free, status="open"),
        structs.replace(free, status="cancelled"),
        structs.replace(free, status="unknown", charge=None),
        structs.replace(free, operator_id=None),
        structs.replace(free, service_date="2026-03-04"),
    ):
        assert of(leg) == {"RAIL": 9010, "CITY": -10}
    assert of(structs.replace(free, status="missing_exit")) == {"RAIL": 4510, "BUSCO": 4510, "CITY": -20}


def test_money_that_no_row_covers_is_named_and_a_free_ride_needs_none(tmp_path: Path) -> None:
    path = clearing_toml(
        tmp_path / "clearing.toml", an_agreement("metro", 'covers = "legs"\nmethod = "own_leg"\nnetworks = ["metro"]')
    )
    assert by_the_auditor(Told([RAIL, replace(BUS, fare=0)]), path, TUESDAY) == {"RAIL": 9000}
    with pytest.raises(
        CloseError, match=r"the auditor finds no agreement for .*covers='fares', paid_by='riders', network_id='bus'"
    ):
        by_the_auditor(Told([RAIL, BUS]), path, TUESDAY)
    with pytest.raises(CloseError, match=r"the auditor finds no agreement for .*covers='products', paid_by='product:DAY'"):
        by_the_auditor(Told([], [Released(product_id="DAY", service_date=TUESDAY, amount=1)]), path, TUESDAY)
