"""What rides cost, by little tariffs written for one question each and by those of Ho Chi Minh City."""

from __future__ import annotations

import random
from datetime import date, timedelta
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fare_engine.errors import TariffError
from fare_engine.facts import Fact, Purchase, Tap
from fare_engine.pricing.fold import Folded, fold
from fare_engine.pricing.lines import line_id
from fare_engine.service_day import to_date
from fare_engine.tariff.compile import CompiledTariff, load_compiled
from tests.builders import bill, costs, dedent, facts, little_tariff, priced, row, version, write_city

HOLD = 'hold = "highest_fare"\n'
DAY_CAP = row("caps", rule_id="day", period="service_day", amount=12_000)
BUS_THEN_METRO = row(
    "joining_rules",
    rule_id="joint",
    from_networks=("bus",),
    to_networks=("metro",),
    window_minutes=120,
    window_from="entry",
    off_first=1000,
    off_second=2000,
    bearer="CITY",
)


# ---- one leg


def test_boarding_a_bus_is_a_whole_leg_and_its_exit_tap_means_nothing(tmp_path: Path) -> None:
    found = priced(little_tariff(tmp_path), "07:00 board 10\n07:20 leave 10@S1")
    assert bill(found) == "1 complete 5000 | list_fare bus/bus 5000"
    assert found.ignored == {"2": "the network bus has no exit taps"}


def test_entry_and_exit_make_a_leg_whose_price_is_that_of_its_two_ends(tmp_path: Path) -> None:
    day = """07:00 enter A
             07:04 leave C
             08:00 enter B
             08:02 leave A"""
    assert costs(priced(little_tariff(tmp_path), day)) == ["complete 9000", "complete 6000"]


def test_cash_pays_its_own_price_and_every_other_medium_the_general_one(tmp_path: Path) -> None:
    day = """07:00 enter A cash
             07:04 leave C cash
             08:00 enter A wallet:zalopay
             08:04 leave C wallet:zalopay"""
    assert costs(priced(little_tariff(tmp_path), day)) == ["complete 10000", "complete 9000"]


def test_further_persons_on_one_tap_pay_the_list_fare_without_discount_or_cap(tmp_path: Path) -> None:
    half = row("discounts", rule_id="half", kind="percent", value=50, bearer="CITY")
    tariff = little_tariff(tmp_path, half, row("caps", rule_id="day", period="service_day", amount=1000))
    assert bill(priced(tariff, "07:00 board 10 emv adult x3")) == (
        "1 complete 11000 | list_fare bus/bus 5000 | companions bus/bus 10000 | discount half -2500 CITY 2500 | cap day -1500"
    )


def test_the_operator_owed_is_the_one_that_ran_the_vehicle_else_the_agency_of_the_route(tmp_path: Path) -> None:
    day = """07:00 board 10
             08:00 board 10 by=COOP
             09:00 enter A
             10:00 board -"""
    legs = priced(little_tariff(tmp_path), day).legs
    assert [leg.operator_id for leg in legs.values()] == ["BUSCO", "COOP", "RAIL", None]


# ---- unknown prices


@pytest.mark.parametrize(
    ("day", "reason"),
    [
        ("07:00 board P", "now has no fares for the network charter"),
        ("07:00 board LOST", "the network of the route and stop is not known"),
        ("07:00 board nowhere", "the network of the route and stop is not known"),
        ("07:00 board -", "the network of the route and stop is not known"),
        ("07:00 enter X", "the network of the route and stop is not known"),
        ("07:00 enter no-such-stop", "the network of the route and stop is not known"),
        ("07:00 enter M@A\n07:10 leave M@no-such-stop", "no rule of now gives a fare on metro from A to no-such-stop"),
        ("07:00 enter M@X\n07:10 leave A", "no rule of now gives a fare on metro from X to A"),
        ("2025-12-31 07:00 board 10", "no tariff version is in force"),
    ],
)
def test_an_unknown_price_is_unknown_with_its_reason_and_never_zero(tmp_path: Path, day: str, reason: str) -> None:
    found = priced(little_tariff(tmp_path), day)
    (leg,) = found.legs.values()
    assert (leg.status, leg.reason) == ("unknown", reason)
    assert not [line for line in found.lines if line.kind == "list_fare"]


def test_a_leg_of_unknown_price_gives_its_hold_back(tmp_path: Path) -> None:
    found = priced(little_tariff(tmp_path, metro=HOLD), "07:00 enter A\n07:10 leave M@X")
    assert bill(found) == "1 unknown ? | hold gates/hold 9000 | hold gates/hold -9000"


def test_where_no_end_of_a_ride_has_a_price_a_missing_tap_has_none_and_nothing_is_held(tmp_path: Path) -> None:
    found = priced(little_tariff(tmp_path, metro=HOLD), "07:00 enter M@X\n12:00 leave M@X\n13:00 leave M@X")
    assert {leg.status for leg in found.legs.values()} == {"unknown"}
    assert found.lines == []


def test_a_city_without_any_version_in_force_prices_nothing(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path, state="proposed")
    assert (tariff.currency, tariff.default_category) == ("", "")
    assert costs(priced(tariff, "07:00 board 10")) == ["unknown ?"]


# ---- holds and missing taps


def test_a_hold_of_the_dearest_fare_is_taken_at_entry_and_given_back_at_exit(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path, metro=HOLD)
    assert bill(priced(tariff, "07:00 enter A")) == "1 open 9000 | hold gates/hold 9000"
    assert bill(priced(tariff, "07:00 enter A\n07:10 leave B")) == dedent(
        "1 complete 6000 | hold gates/hold 9000 | hold gates/hold -9000 | list_fare metro/short 6000"
    )


def test_from_the_middle_station_the_dearest_fare_is_the_short_one(tmp_path: Path) -> None:
    assert costs(priced(little_tariff(tmp_path, metro=HOLD), "07:00 enter B cash")) == ["open 7000"]


def test_a_hold_counts_the_discounts_that_hold_and_none_is_taken_for_a_free_ride(tmp_path: Path) -> None:
    free = row("discounts", rule_id="free", kind="percent", value=100, bearer="CITY", rider_categories=("elderly",))
    off = row("discounts", rule_id="off", kind="amount", value=500, bearer="CITY", weekdays=("tue",))
    tariff = little_tariff(tmp_path, free, off, metro=HOLD)
    assert bill(priced(tariff, "07:00 enter A")) == "1 open 8500 | hold gates/hold 8500"
    assert bill(priced(tariff, "07:00 enter A emv elderly")) == "1 open 0"


@pytest.mark.parametrize("which", ["highest", "lowest"])
def test_a_missing_exit_costs_what_its_tap_rule_says_once_the_longest_stay_has_passed(tmp_path: Path, which: str) -> None:
    tariff = little_tariff(tmp_path, metro=HOLD + f'missing_exit = "{which}_fare"\n')
    fare = {"highest": 9000, "lowest": 6000}[which]
    product = "gates/missing_exit"
    assert costs(priced(tariff, "07:00 enter A", f"{'2026-03-03'} 10:00")) == ["open 9000"]
    found = priced(tariff, "07:00 enter A", "2026-03-03 10:00:00.001")
    assert bill(found) == (f"1 missing_exit {fare} | hold gates/hold 9000 | hold gates/hold -9000 | list_fare {product} {fare}")
    assert [line.cause for line in found.lines] == ["1", "1/overdue", "1/overdue"]


def test_an_exit_exactly_at_the_longest_stay_is_in_time_and_a_millisecond_later_it_is_not(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path)
    assert costs(priced(tariff, "07:00 enter A\n10:00 leave B")) == ["complete 6000"]
    assert costs(priced(tariff, "07:00 enter A\n10:00:00.001 leave B")) == ["late_exit 9000"]


def test_a_second_entry_of_the_same_card_charges_the_first_at_once_and_that_of_another_card_does_not(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path)
    again = priced(tariff, "07:00 enter A\n07:30 enter B")
    assert costs(again) == ["missing_exit 9000", "open 0"]
    assert again.lines[0].cause == "2"
    assert costs(priced(tariff, "07:00 enter A\n07:30 enter B card=other")) == ["open 0", "open 0"]


def test_an_exit_closes_the_ride_of_its_own_card_and_otherwise_the_oldest_of_the_traveller(tmp_path: Path) -> None:
    inside = "07:00 enter A card=one\n07:01 enter B card=two\n"
    tariff = little_tariff(tmp_path)
    assert costs(priced(tariff, inside + "07:30 leave C card=two")) == ["open 0", "complete 6000"]
    assert costs(priced(tariff, inside + "07:30 leave C card=three")) == ["complete 9000", "open 0"]


@pytest.mark.parametrize(("which", "fare"), [("highest", 9000), ("lowest", 6000)])
def test_an_exit_without_an_entry_costs_the_fare_towards_it(tmp_path: Path, which: str, fare: int) -> None:
    found = priced(little_tariff(tmp_path, metro=f'missing_entry = "{which}_fare"\n'), "07:00 leave C")
    assert bill(found) == f"1 missing_entry {fare} | list_fare gates/missing_entry {fare}"
    (leg,) = found.legs.values()
    assert (leg.from_stop_id, leg.entry_at, leg.to_stop_id) == (None, None, "C")


@pytest.mark.parametrize(
    ("setting", "expected"),
    [("closes_leg", ["late_exit 9000"]), ("missing_entry", ["missing_exit 9000", "missing_entry 6000"])],
)
def test_a_late_exit_closes_the_charged_leg_or_is_charged_itself(tmp_path: Path, setting: str, expected: list[str]) -> None:
    tariff = little_tariff(tmp_path, metro=f'late_exit = "{setting}"\n')
    assert costs(priced(tariff, "07:00 enter A\n11:00 leave B")) == expected


def test_a_late_exit_closes_a_leg_once_and_only_with_its_own_card_and_within_a_day(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path)
    twice = "07:00 enter A\n11:00 leave B\n11:01 leave B"
    assert costs(priced(tariff, twice)) == ["late_exit 9000", "missing_entry 6000"]
    other = "07:00 enter A\n11:00 leave B card=other"
    assert costs(priced(tariff, other)) == ["missing_exit 9000", "missing_entry 6000"]
    in_time = "07:00 enter A\n2026-03-04 06:59:59.999 leave B"
    assert costs(priced(tariff, in_time)) == ["late_exit 9000"]
    too_late = "07:00 enter A\n2026-03-04 07:00 leave B"
    assert costs(priced(tariff, too_late)) == ["missing_exit 9000", "missing_entry 6000"]


def test_leaving_where_one_entered_costs_the_table_s_price_unless_there_is_a_grace(tmp_path: Path) -> None:
    turn_back = "07:00 enter A\n07:05 leave A"
    assert costs(priced(little_tariff(tmp_path / "strict"), turn_back)) == ["complete 6000"]
    kind = little_tariff(tmp_path / "kind", metro=HOLD + "same_stop_grace_minutes = 5\n")
    assert bill(priced(kind, turn_back)) == "1 cancelled 0 | hold gates/hold 9000 | hold gates/hold -9000"
    assert costs(priced(kind, "07:00 enter A\n07:05:00.001 leave A")) == ["complete 6000"]
    assert costs(priced(kind, "07:00 enter A\n07:05 leave B")) == ["complete 6000"]


def test_a_tap_that_did_not_let_its_rider_through_costs_nothing(tmp_path: Path) -> None:
    found = priced(little_tariff(tmp_path), "07:00 board 10\n07:00:05 cancel 1\n07:01 board 10")
    assert bill(found) == "3 complete 5000 | list_fare bus/bus 5000"


# ---- discounts


def test_discounts_act_in_file_order_each_on_what_the_one_before_left(tmp_path: Path) -> None:
    half = row("discounts", rule_id="half", kind="percent", value=50, bearer="CITY")
    thousand = row("discounts", rule_id="thousand", kind="amount", value=1000, bearer="operators")
    first = "1 complete 1500 | list_fare bus/bus 5000 | discount half -2500 CITY 2500 | discount thousand -1000"
    assert bill(priced(little_tariff(tmp_path / "a", half, thousand), "07:00 board 10")) == first
    second = "1 complete 2000 | list_fare bus/bus 5000 | discount thousand -1000 | discount half -2000 CITY 2000"
    assert bill(priced(little_tariff(tmp_path / "b", thousand, half), "07:00 board 10")) == second


def test_no_discount_takes_a_leg_below_zero_or_raises_its_price(tmp_path: Path) -> None:
    tariff = little_tariff(
        tmp_path,
        row("discounts", rule_id="dear", kind="price", value=8000, bearer="CITY"),
        row("discounts", rule_id="much", kind="amount", value=9999, bearer="CITY"),
        row("discounts", rule_id="more", kind="percent", value=10, bearer="SPONSOR"),
    )
    assert bill(priced(tariff, "07:00 board 10")) == "1 complete 0 | list_fare bus/bus 5000 | discount much -5000 CITY 5000"


@pytest.mark.parametrize(
    ("condition", "tap", "holds"),
    [
        ({"networks": ("bus",)}, "board 10", True),
        ({"networks": ("boat",)}, "board 10", False),
        ({"routes": ("10",)}, "board 10", True),
        ({"routes": ("10",)}, "board 11", False),
        ({"rider_categories": ("student",)}, "board 10 emv student", True),
        ({"rider_categories": ("student",)}, "board 10", False),
        ({"media": ("wallet",)}, "board 10 wallet:zalopay", True),
        ({"media": ("wallet:zalopay",)}, "board 10 wallet:zalopay", True),
        ({"media": ("wallet:zalopay",)}, "board 10 wallet:momo", False),
        ({"media": ("wallet",), "except_media": ("wallet:momo",)}, "board 10 wallet:momo", False),
        ({"media": ("wallet",), "except_media": ("wallet:momo",)}, "board 10 wallet", True),
        ({"weekdays": ("tue",)}, "board 10", True),
        ({"weekdays": ("mon", "wed")}, "board 10", False),
        ({"valid_from": date(2026, 3, 3)}, "board 10", True),
        ({"valid_from": date(2026, 3, 4)}, "board 10", False),
        ({"valid_to": date(2026, 3, 3)}, "board 10", True),
        ({"valid_to": date(2026, 3, 2)}, "board 10", False),
    ],
)
def test_a_discount_holds_only_under_its_conditions(tmp_path: Path, condition: dict, tap: str, holds: bool) -> None:
    tariff = little_tariff(tmp_path, row("discounts", rule_id="d", kind="amount", value=1, bearer="CITY", **condition))
    assert costs(priced(tariff, f"07:00 {tap}")) == ["complete 4999" if holds else "complete 5000"]


def test_a_discount_s_last_day_ends_when_the_service_day_turns(tmp_path: Path) -> None:
    rule = row("discounts", rule_id="d", kind="percent", value=100, bearer="CITY", valid_to=date(2026, 3, 3))
    night = "2026-03-04 02:29:59.999 board 10\n02:30 board 10"
    assert costs(priced(little_tariff(tmp_path, rule), night)) == ["complete 0", "complete 5000"]


def test_a_quota_is_used_only_by_legs_that_it_makes_cheaper_and_begins_anew_every_service_day(tmp_path: Path) -> None:
    tariff = little_tariff(
        tmp_path,
        row("discounts", rule_id="free", kind="percent", value=100, bearer="CITY", rider_categories=("elderly",)),
        row("discounts", rule_id="twice", kind="amount", value=1000, bearer="SPONSOR", quota_per_day=2),
    )
    day = """07:00 board 10 emv elderly
             07:10 board 10
             07:20 board 10
             07:30 board 10
             2026-03-04 07:00 board 10"""
    found = costs(priced(tariff, day))
    assert found == ["complete 0", "complete 4000", "complete 4000", "complete 5000", "complete 4000"]


def test_a_discount_given_in_a_hold_does_not_use_its_quota_up(tmp_path: Path) -> None:
    once = row("discounts", rule_id="once", kind="amount", value=1000, bearer="CITY", quota_per_day=1)
    tariff = little_tariff(tmp_path, once, metro=HOLD)
    day = "07:00 enter A\n07:10 leave B\n07:20 enter B"
    assert costs(priced(tariff, day)) == ["complete 5000", "open 6000"]


def test_discounts_apply_to_a_missing_exit_too(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path, row("discounts", rule_id="half", kind="percent", value=50, bearer="CITY"))
    found = priced(tariff, "07:00 enter A\n08:00 enter A")
    assert (
        bill(found).splitlines()[0] == "1 missing_exit 4500 | list_fare gates/missing_exit 9000 | discount half -4500 CITY 4500"
    )


# ---- groups of legs


def test_a_joint_ticket_takes_its_amounts_off_both_legs_when_the_second_is_complete(tmp_path: Path) -> None:
    found = priced(little_tariff(tmp_path, BUS_THEN_METRO), "07:00 board 10\n07:20 enter A\n07:40 leave C")
    assert bill(found) == dedent(
        """1 complete 4000 | list_fare bus/bus 5000 | transfer joint -1000 CITY 1000
           2 complete 7000 | list_fare metro/long 9000 | transfer joint -2000 CITY 2000"""
    )
    assert [line.cause for line in found.lines if line.kind == "transfer"] == ["3", "3"]


def test_a_joint_ticket_in_the_other_direction_needs_a_rule_of_its_own(tmp_path: Path) -> None:
    back = row(
        "joining_rules",
        rule_id="back",
        from_networks=("metro",),
        to_networks=("bus",),
        window_minutes=60,
        window_from="exit",
        off_second=5000,
        bearer="operators",
    )
    day = "07:00 enter A\n07:40 leave C\n08:40 board 10"
    assert costs(priced(little_tariff(tmp_path / "one", BUS_THEN_METRO), day)) == ["complete 9000", "complete 5000"]
    both = little_tariff(tmp_path / "two", BUS_THEN_METRO, back)
    assert costs(priced(both, day)) == ["complete 9000", "complete 0"]
    assert costs(priced(both, day.replace("08:40 board", "08:40:01 board"))) == ["complete 9000", "complete 5000"]


@pytest.mark.parametrize(
    ("end", "resolution", "entered", "joined"),
    [
        ("at", "second", "09:00:00", True),
        ("at", "second", "09:00:00.999", True),
        ("at", "second", "09:00:01", False),
        ("before", "second", "08:59:59.999", True),
        ("before", "second", "09:00:00", False),
        ("at", "minute", "09:00:59.999", True),
        ("at", "minute", "09:01:00", False),
        ("before", "minute", "08:59:59", True),
        ("before", "minute", "09:00:00", False),
    ],
)
def test_the_window_of_120_minutes_ends_as_its_rule_says(
    tmp_path: Path, end: str, resolution: str, entered: str, joined: bool
) -> None:
    rule = BUS_THEN_METRO + f'end = "{end}"\nresolution = "{resolution}"\n'
    found = costs(priced(little_tariff(tmp_path, rule), f"07:00 board 10\n{entered} enter A\n09:20 leave C"))
    assert found == (["complete 4000", "complete 7000"] if joined else ["complete 5000", "complete 9000"])


def test_a_group_needs_riders_and_media_of_its_rule_on_both_legs(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path, BUS_THEN_METRO + 'rider_categories = ["adult"]\nmedia = ["emv"]\n')
    day = "07:00 board 10 {}\n07:20 enter A {}\n07:40 leave C {}"
    assert costs(priced(tariff, day.format("emv", "emv", "emv"))) == ["complete 4000", "complete 7000"]
    for first, second in (("cash", "emv"), ("emv", "cash"), ("emv student", "emv"), ("emv", "emv student")):
        assert "transfer" not in bill(priced(tariff, day.format(first, second, second)))


def test_a_free_leg_joins_nothing_and_no_leg_becomes_cheaper_than_free(tmp_path: Path) -> None:
    free = row("discounts", rule_id="free", kind="percent", value=100, bearer="CITY", networks=("bus",))
    day = "07:00 board 10\n07:20 enter A\n07:40 leave C"
    assert "transfer" not in bill(priced(little_tariff(tmp_path / "free", BUS_THEN_METRO, free), day))
    much = BUS_THEN_METRO.replace("1000", "7000").replace("2000", "99000")
    assert bill(priced(little_tariff(tmp_path / "much", much), day)) == dedent(
        """1 complete 0 | list_fare bus/bus 5000 | transfer joint -5000 CITY 5000
           2 complete 0 | list_fare metro/long 9000 | transfer joint -9000 CITY 9000"""
    )


def test_each_leg_is_first_of_one_group_at_most_and_the_latest_that_fits_is_taken(tmp_path: Path) -> None:
    day = """07:00 board 10
             07:10 board 11
             07:20 enter A
             07:40 leave C
             07:50 enter C
             08:00 leave A
             08:10 enter A
             08:20 leave B"""
    found = costs(priced(little_tariff(tmp_path, BUS_THEN_METRO), day))
    assert found == ["complete 4000", "complete 4000", "complete 7000", "complete 7000", "complete 6000"]


@pytest.mark.parametrize(
    ("transfers", "expected"),
    [
        (1, ["complete 5000", "complete 3000", "complete 5000", "complete 3000"]),
        (2, ["complete 5000", "complete 3000", "complete 3000", "complete 5000"]),
        (9, ["complete 5000", "complete 3000", "complete 3000", "complete 3000"]),
    ],
)
def test_max_transfers_bounds_the_chain(tmp_path: Path, transfers: int, expected: list[str]) -> None:
    rule = row(
        "joining_rules",
        rule_id="buses",
        from_networks=("bus",),
        to_networks=("bus",),
        window_minutes=30,
        window_from="entry",
        max_transfers=transfers,
        off_second=2000,
        bearer="operators",
    )
    day = "07:00 board 10\n07:10 board 10\n07:20 board 10\n07:30 board 10"
    assert costs(priced(little_tariff(tmp_path, rule), day)) == expected


def test_each_rule_bounds_the_chain_by_its_own_number_of_transfers(tmp_path: Path) -> None:
    buses = BUS_THEN_METRO.replace("joint", "buses").replace('to_networks = ["metro"]', 'to_networks = ["bus"]')
    tariff = little_tariff(tmp_path, buses + "max_transfers = 3\n", BUS_THEN_METRO)
    day = "07:00 board 10\n07:10 board 10\n07:20 enter A\n07:40 leave C"
    assert costs(priced(tariff, day)) == ["complete 4000", "complete 3000", "complete 9000"]


def test_a_leg_with_a_missing_tap_joins_no_group(tmp_path: Path) -> None:
    found = priced(little_tariff(tmp_path, BUS_THEN_METRO), "07:00 board 10\n07:20 enter A\n07:50 enter A")
    assert costs(found) == ["complete 5000", "missing_exit 9000", "open 0"]


def test_a_window_closed_long_ago_leaves_nothing_behind(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path, BUS_THEN_METRO)
    found = priced(tariff, "07:00 board 10\n2026-03-05 07:00 board 10")
    assert [leg.leg_id for leg in found.state.joinable] == ["2"]


# ---- caps


def test_a_daily_cap_takes_off_what_is_above_it_on_the_leg_that_brought_it(tmp_path: Path) -> None:
    day = "07:00 board 10\n08:00 board 10\n09:00 board 10\n10:00 board 10\n2026-03-04 07:00 board 10"
    found = costs(priced(little_tariff(tmp_path, DAY_CAP), day))
    assert found == ["complete 5000", "complete 5000", "complete 2000", "complete 0", "complete 5000"]


def test_a_cap_counts_by_the_service_day_not_by_the_calendar(tmp_path: Path) -> None:
    day = "22:00 board 10\n23:00 board 10\n2026-03-04 02:29 board 10\n02:30 board 10"
    found = costs(priced(little_tariff(tmp_path, DAY_CAP), day))
    assert found == ["complete 5000", "complete 5000", "complete 2000", "complete 5000"]


def test_a_weekly_cap_begins_on_monday(tmp_path: Path) -> None:
    week = row("caps", rule_id="week", period="week", amount=12_000)
    days = """2026-03-06 07:00 board 10
              2026-03-07 07:00 board 10
              2026-03-08 07:00 board 10
              2026-03-09 07:00 board 10"""
    found = costs(priced(little_tariff(tmp_path, week), days))
    assert found == ["complete 5000", "complete 5000", "complete 2000", "complete 5000"]


def test_caps_act_in_file_order_each_on_what_the_one_before_left(tmp_path: Path) -> None:
    week = row("caps", rule_id="week", period="week", amount=14_000, bearer="CITY")
    tariff = little_tariff(tmp_path, DAY_CAP, week)
    days = """07:00 board 10
              08:00 board 10
              09:00 board 10
              2026-03-04 07:00 board 10"""
    assert bill(priced(tariff, days)) == dedent(
        """1 complete 5000 | list_fare bus/bus 5000
           2 complete 5000 | list_fare bus/bus 5000
           3 complete 2000 | list_fare bus/bus 5000 | cap day -3000
           4 complete 2000 | list_fare bus/bus 5000 | cap week -3000 CITY 3000"""
    )


def test_a_cap_is_given_back_where_a_later_joint_ticket_makes_an_earlier_leg_cheaper(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path, BUS_THEN_METRO, DAY_CAP)
    day = """07:00 board 10
             07:10 board 10
             07:20 board 10
             07:30 enter A
             07:40 leave C"""
    # 5,000 + 5,000 + 2,000 is the cap; the joint ticket makes the third ride 1,000 cheaper, which the cap had paid already
    found = priced(tariff, day)
    assert bill(found) == dedent(
        """1 complete 5000 | list_fare bus/bus 5000
           2 complete 5000 | list_fare bus/bus 5000
           3 complete 2000 | list_fare bus/bus 5000 | cap day -3000 | transfer joint -1000 CITY 1000 | cap day 1000
           4 complete 0 | list_fare metro/long 9000 | transfer joint -2000 CITY 2000 | cap day -7000"""
    )


def test_a_cap_counts_only_the_legs_that_it_names(tmp_path: Path) -> None:
    cap = DAY_CAP + 'networks = ["bus"]\nrider_categories = ["adult"]\nmedia = ["emv"]\n'
    day = "07:00 board 10\n07:10 board 10\n{}\n"
    for other in ("07:20 board F", "07:20 board 10 cash", "07:20 board 10 emv student"):
        assert "cap" not in bill(priced(little_tariff(tmp_path / other.replace(" ", "-"), cap), day.format(other)))


@pytest.mark.parametrize(("counts", "expected"), [("false", "complete 9000"), ("true", "complete 3000")])
def test_a_missing_exit_counts_toward_caps_only_where_the_tap_rule_says_so(tmp_path: Path, counts: str, expected: str) -> None:
    tariff = little_tariff(tmp_path, DAY_CAP, metro=f"missing_counts_toward_caps = {counts}\n")
    day = "07:00 enter A\n08:00 enter A\n08:10 leave C"
    assert costs(priced(tariff, day)) == ["missing_exit 9000", expected]


def test_what_a_joint_ticket_takes_off_a_leg_that_no_cap_counts_is_not_counted_either(tmp_path: Path) -> None:
    ends = {"from_networks": ("metro",), "to_networks": ("bus",)}
    joint = row("joining_rules", rule_id="joint", window_minutes=120, window_from="entry", off_first=3000, **ends)
    tariff = little_tariff(tmp_path, joint, DAY_CAP, metro='missing_joins = true\nclosed_by = "any_entry"\n')
    found = costs(priced(tariff, "07:00 enter A\n07:30 board 10\n07:40 board 10\n07:50 board 10"))
    assert found == ["missing_exit 6000", "complete 5000", "complete 5000", "complete 2000"]


def test_the_counter_of_a_cap_goes_on_under_a_new_tariff_with_the_new_amount(tmp_path: Path) -> None:
    cap = {"period": "service_day", "rule_id": "day"}
    later = version("later", row("caps", amount=8000, **cap), valid_from=date(2026, 3, 3), service_day_start="00:00")
    tariff = little_tariff(tmp_path, row("caps", amount=12_000, **cap), files=later)
    night = "2026-03-03 02:00 board 10\n02:10 board 10\n2026-03-02 23:00 board 10"
    # before midnight the old version holds; after it the new one, whose day has 8,000
    assert costs(priced(tariff, night)) == ["complete 5000", "complete 3000", "complete 5000"]


def test_counters_of_periods_that_are_over_are_forgotten(tmp_path: Path) -> None:
    days = [date(2026, 1, 1) + timedelta(days=number) for number in range(100)]
    found = priced(little_tariff(tmp_path, DAY_CAP), "\n".join(f"{day} 07:00 board 10" for day in days))
    assert set(found.state.counters.values()) == {5000}
    assert len(found.state.counters) <= 40


# ---- passes and books

DAY_PASS = row("products", product_id="DAY", kind="pass", price=10_000, networks=("metro", "bus"), days=1)
THREE_DAYS = row("products", product_id="WEEK", kind="pass", price=10_000, networks=("bus",), days=3, starts="purchase")
BOOK = row("products", product_id="BOOK", kind="book", price=13_000, networks=("bus",), trips=3, covers_up_to=5000)


def test_a_pass_from_its_first_tap_covers_that_service_day_and_no_other(tmp_path: Path) -> None:
    days = """2026-03-03 07:00 buy DAY
              2026-03-05 07:00 board 10
              2026-03-05 08:00 enter A
              2026-03-05 08:10 leave C
              2026-03-05 09:00 board F
              2026-03-06 02:29 board 10
              2026-03-06 02:30 board 10"""
    assert bill(priced(little_tariff(tmp_path, DAY_PASS, metro=HOLD), days)) == dedent(
        """1 sold 10000 | sale sale/DAY 10000 | release release/DAY 0 product:DAY 10000
           2 complete 0 | list_fare bus/bus 5000 | product product/DAY -5000
           3 complete 0 | list_fare metro/long 9000 | product product/DAY -9000
           5 complete 15000 | list_fare boat/boat 15000
           6 complete 0 | list_fare bus/bus 5000 | product product/DAY -5000
           7 complete 5000 | list_fare bus/bus 5000"""
    )


def test_a_pass_from_its_purchase_releases_a_part_every_day_and_the_parts_sum_to_its_price(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path, THREE_DAYS)
    found = priced(tariff, "07:00 buy WEEK\n2026-03-05 07:00 board 10\n2026-03-06 07:00 board 10", "2026-03-09 00:00")
    releases = [line for line in found.lines if line.kind == "release"]
    assert [(to_date(line.service_day).isoformat(), line.funded, line.cause) for line in releases] == [
        ("2026-03-03", 3333, "1"),
        ("2026-03-04", 3333, "1/day/2"),
        ("2026-03-05", 3334, "1/day/3"),
    ]
    assert costs(found) == ["sold 10000", "complete 0", "complete 5000"]
    assert found.state.lots == []


def test_a_pass_that_was_never_used_waits_for_its_first_tap(tmp_path: Path) -> None:
    found = priced(little_tariff(tmp_path, DAY_PASS), "07:00 buy DAY", "2026-12-31 00:00")
    assert bill(found) == "1 sold 10000 | sale sale/DAY 10000"
    assert len(found.state.lots) == 1


def test_a_book_s_coupons_sum_to_its_price_and_then_legs_cost_their_fare_again(tmp_path: Path) -> None:
    day = "06:00 buy BOOK\n07:00 board 10\n08:00 board 11\n09:00 board 10\n10:00 board 10"
    assert bill(priced(little_tariff(tmp_path, BOOK), day)) == dedent(
        """1 sold 13000 | sale sale/BOOK 13000
           2 complete 0 | list_fare bus/bus 5000 | product product/BOOK -5000 product:BOOK 4333
           3 complete 0 | list_fare bus/bus 5000 | product product/BOOK -5000 product:BOOK 4333
           4 complete 0 | list_fare bus/bus 5000 | product product/BOOK -5000 product:BOOK 4334
           5 complete 5000 | list_fare bus/bus 5000"""
    )


@pytest.mark.parametrize(("used", "left"), [(0, 13_000), (1, 8667), (3, 0)])
def test_after_the_end_of_the_year_the_rest_of_a_book_is_released_for_sharing(tmp_path: Path, used: int, left: int) -> None:
    rides = "".join(f"\n{hour:02}:00 board 10" for hour in range(7, 7 + used))
    found = priced(little_tariff(tmp_path, BOOK), f"06:00 buy BOOK{rides}", "2027-01-03 02:30:00.001")
    expiries = [line for line in found.lines if line.kind == "expiry"]
    assert [(line.funded, line.cause, to_date(line.service_day).isoformat()) for line in expiries] == (
        [(left, "1/expiry", "2026-12-31")] if left else []
    )
    assert sum(line.funded for line in found.lines) == 13_000
    assert found.state.lots == []


def test_a_book_does_not_pay_a_leg_dearer_than_it_covers(tmp_path: Path) -> None:
    dear = little_tariff(tmp_path, BOOK.replace('["bus"]', '["bus", "boat"]'))
    found = costs(priced(dear, "06:00 buy BOOK\n07:00 board F\n08:00 board 10"))
    assert found == ["sold 13000", "complete 15000", "complete 0"]


def test_a_pass_is_used_before_a_book_and_an_older_book_before_a_newer_one(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path, DAY_PASS, BOOK)
    day = "06:00 buy BOOK\n06:01 buy BOOK\n06:02 buy DAY\n07:00 board 10\n2026-03-04 07:00 board 10"
    found = priced(tariff, day)
    assert [line.bearer for line in found.lines if line.kind == "product"] == ["product:DAY", "product:BOOK"]
    assert [lot.used for lot in found.state.lots if lot.product_id == "BOOK"] == [1, 0]


def test_a_leg_paid_by_a_product_gets_no_discount_no_transfer_and_counts_for_no_cap(tmp_path: Path) -> None:
    half = row("discounts", rule_id="half", kind="percent", value=50, bearer="CITY")
    tariff = little_tariff(tmp_path, half, BUS_THEN_METRO, DAY_CAP, BOOK)
    found = priced(tariff, "06:00 buy BOOK\n07:00 board 10\n07:20 enter A\n07:40 leave C")
    assert costs(found) == ["sold 13000", "complete 0", "complete 4500"]
    assert {line.kind for line in found.lines} == {"sale", "list_fare", "product", "discount"}


def test_a_product_is_for_its_rider_categories_and_a_free_leg_takes_no_coupon(tmp_path: Path) -> None:
    for_students = BOOK + 'rider_categories = ["student"]\n'
    day = "06:00 buy BOOK\n07:00 board 10\n08:00 board 10 emv student"
    assert costs(priced(little_tariff(tmp_path, for_students), day)) == ["sold 13000", "complete 5000", "complete 0"]


def test_what_no_version_sells_on_that_day_is_not_sold(tmp_path: Path) -> None:
    found = priced(little_tariff(tmp_path), "07:00 buy NOTHING\n2025-01-01 07:00 buy DAY")
    assert set(found.ignored) == {"1", "2"}
    assert found.lines == []


def test_a_pass_keeps_the_terms_of_the_version_it_was_bought_under(tmp_path: Path) -> None:
    later = version("later", THREE_DAYS.replace("days = 3", "days = 1"), valid_from=date(2026, 3, 4))
    tariff = little_tariff(tmp_path, THREE_DAYS, files=later)
    found = priced(tariff, "07:00 buy WEEK\n2026-03-05 07:00 board 10", "2026-03-09 00:00")
    assert [line.version_id for line in found.lines if line.kind == "release"] == ["now"] * 3
    assert costs(found) == ["sold 10000", "complete 0"]


def test_a_missing_exit_can_be_paid_by_a_pass(tmp_path: Path) -> None:
    found = priced(little_tariff(tmp_path, DAY_PASS, metro=HOLD), "06:00 buy DAY\n07:00 enter A\n08:00 enter A")
    assert costs(found) == ["sold 10000", "missing_exit 0", "open 0"]


# ---- versions


def dearer_buses(name: str, **heads: object) -> dict[str, str]:
    files = version(name, **heads)
    products = f"{name}/fare_products.txt"
    return {**files, products: files[products].replace("bus,Bus ride,,,5000", "bus,Bus ride,,,8000")}


def test_a_tap_is_priced_by_the_version_of_its_own_time_however_late_it_comes_in(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path, files=dearer_buses("later", valid_from=date(2026, 3, 4)))
    day = "2026-03-04 02:30 board 10\n2026-03-04 02:29:59.999 board 10"
    found = priced(tariff, day, "2026-04-01 00:00")
    assert {leg.leg_id: leg.version_id for leg in found.legs.values()} == {"1": "later", "2": "now"}
    assert costs(found) == ["complete 8000", "complete 5000"]


def test_a_proposal_prices_nothing_until_it_is_adopted_or_its_folder_is_named(tmp_path: Path) -> None:
    city = write_city(tmp_path, files=dearer_buses("plan", state="proposed", valid_from=date(2026, 3, 4)))
    day = "07:00 board 10\n2026-03-04 07:00 board 10"
    assert costs(priced(load_compiled(city), day)) == ["complete 5000", "complete 5000"]
    assert costs(priced(load_compiled(city, ["plan"]), day)) == ["complete 5000", "complete 8000"]
    assert costs(priced(load_compiled(city / "plan"), day)) == ["complete 8000", "complete 8000"]


def test_a_version_that_has_ended_prices_no_more_and_an_earlier_one_holds_again(tmp_path: Path) -> None:
    summer = dearer_buses("summer", valid_from=date(2026, 3, 3), valid_to=date(2026, 3, 3))
    days = "2026-03-02 07:00 board 10\n2026-03-03 07:00 board 10\n2026-03-04 07:00 board 10"
    found = costs(priced(little_tariff(tmp_path, files=summer), days))
    assert found == ["complete 5000", "complete 8000", "complete 5000"]


def test_a_version_that_is_not_there_cannot_be_adopted(tmp_path: Path) -> None:
    with pytest.raises(TariffError, match=r"no such version.*'x'"):
        little_tariff(tmp_path, adopt=["x"])


# ---- the order of arrival


RULES = (
    row("discounts", rule_id="first-two", kind="percent", value=30, bearer="SPONSOR", quota_per_day=2),
    BUS_THEN_METRO + "max_transfers = 2\n",
    DAY_CAP,
    row("caps", rule_id="week", period="week", amount=30_000, bearer="CITY"),
    DAY_PASS,
    THREE_DAYS,
    BOOK,
)
WORDS = st.sampled_from(
    [
        "board 10", "board 11 cash", "board F", "enter A", "leave C", "enter B card=two", "leave B card=two", "leave A",
        "board 10 emv student x2", "buy DAY", "buy WEEK", "buy BOOK", "board P", "cancel 1", "cancel 3",
    ]
)  # fmt: skip
MOMENTS = st.tuples(st.integers(2, 6), st.integers(0, 23), st.sampled_from([0, 1, 29, 30, 59])).map(
    lambda moment: f"2026-03-{moment[0]:02} {moment[1]:02}:{moment[2]:02}"
)
DAYS = st.lists(st.tuples(MOMENTS, WORDS).map(" ".join), min_size=1, max_size=14).map("\n".join)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> CompiledTariff:
    """The little city with a rule of every kind."""
    return little_tariff(tmp_path_factory.mktemp("city"), *RULES, metro=HOLD + "same_stop_grace_minutes = 5\n")


def check(examples: int) -> settings:
    return settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )


def everything_of(folded: Folded) -> bytes:
    return msgspec.msgpack.encode(folded)


def last(found: list[Fact]) -> int:
    return max(fact.at for fact in found) + 86_400_000


@check(100)
@given(day=DAYS, seed=st.integers(0, 2**16))
def test_late_repeated_and_shuffled_taps_cost_the_same_byte_for_byte(everything: CompiledTariff, day: str, seed: int) -> None:
    found = facts(day)
    chance = random.Random(seed)
    disturbed = [*found, *chance.sample(found, chance.randint(0, len(found)))]
    chance.shuffle(disturbed)
    assert everything_of(fold(everything, disturbed, last(found))) == everything_of(fold(everything, found, last(found)))


@check(100)
@given(day=DAYS)
def test_no_leg_costs_less_than_nothing_no_line_stands_twice_and_no_fare_is_lost(everything: CompiledTariff, day: str) -> None:
    found = facts(day)
    folded = fold(everything, found, last(found))
    ids = [line_id(line) for line in folded.lines]
    assert len(set(ids)) == len(ids)
    for leg in folded.legs.values():
        assert sum(line.amount for line in folded.lines if line.leg_id == leg.leg_id) >= 0
    acting = {fact.fact_id for fact in found if isinstance(fact, Tap | Purchase)}
    assert set(folded.legs) | set(folded.sales) | set(folded.ignored) <= acting


# ---- Ho Chi Minh City


def test_metro_singles_cost_1000_more_in_cash_or_with_the_station_s_own_card(hcmc: CompiledTariff) -> None:
    ride = "07:00 enter L1-01 {0}\n07:40 leave L1-14 {0}"
    for medium in ("emv", "qr", "cccd", "wallet:momo"):
        assert costs(priced(hcmc, ride.format(medium))) == ["complete 19000"]
    for medium in ("cash", "ic_card"):
        assert costs(priced(hcmc, ride.format(medium))) == ["complete 20000"]


def test_students_pay_3000_on_every_subsidised_bus_and_the_city_the_rest(hcmc: CompiledTariff) -> None:
    day = "07:00 board 1 qr student\n08:00 board 79 qr student"
    assert bill(priced(hcmc, day)) == dedent(
        """1 complete 3000 | list_fare bus-s5/bus-s5 5000 | discount student-bus -2000 AU-BUDGET 2000
           2 complete 3000 | list_fare bus-s7/bus-s7 7000 | discount student-bus -4000 AU-BUDGET 4000"""
    )


def test_the_elderly_ride_free_and_the_city_pays_the_operators_in_full(hcmc: CompiledTariff) -> None:
    found = priced(hcmc, "07:00 board 1 emv elderly\n08:00 enter L1-01 emv elderly\n08:20 leave L1-14 emv elderly")
    assert costs(found) == ["complete 0", "complete 0"]
    assert sum(line.funded for line in found.lines if line.bearer == "AU-BUDGET") == 5000 + 19_000
    assert not [line for line in found.lines if line.kind == "hold"]


def test_the_boat_company_bears_its_own_discounts(hcmc: CompiledTariff) -> None:
    found = priced(hcmc, "09:00 board SWB1\n10:00 board SWB1 emv elderly\n11:00 board SWB1 cash disabled")
    assert costs(found) == ["complete 15000", "complete 12750", "complete 11250"]
    assert {line.funded for line in found.lines} == {0}


def test_the_brt_has_gates_and_one_fare_under_the_proposal(hcmc_adopted: CompiledTariff) -> None:
    stops = hcmc_adopted.network.stops_of_route["BRT1"]
    day = f"07:00 enter {stops[0]}\n07:30 leave {stops[-1]}\n08:00 enter {stops[0]} qr student\n08:30 leave {stops[1]} qr student"
    found = priced(hcmc_adopted, day)
    assert [leg.network_id for leg in found.legs.values()] == ["brt", "brt"]
    assert costs(found)[1] == "complete 3000"


def test_the_joint_ticket_takes_3000_off_each_leg_in_both_directions(hcmc_adopted: CompiledTariff) -> None:
    there = "07:00 board 1\n09:00 enter L1-01\n09:20 leave L1-14"
    assert costs(priced(hcmc_adopted, there)) == ["complete 3000", "complete 16000"]
    assert costs(priced(hcmc_adopted, there.replace("09:00", "09:00:01"))) == ["complete 6000", "complete 19000"]
    back = "07:00 enter L1-01\n07:30 leave L1-14\n09:30 board 1"
    assert costs(priced(hcmc_adopted, back)) == ["complete 16000", "complete 3000"]


def test_the_proposal_holds_from_the_first_service_day_of_march(hcmc_adopted: CompiledTariff) -> None:
    assert costs(priced(hcmc_adopted, "2026-03-01 02:29 board 1\n2026-03-01 02:30 board 1")) == ["complete 5000", "complete 6000"]


def test_the_named_proposal_prices_any_day(hcmc_proposal: CompiledTariff) -> None:
    assert costs(priced(hcmc_proposal, "2019-06-01 07:00 board 1")) == ["complete 6000"]


def test_three_long_metro_rides_reach_the_daily_cap(hcmc_adopted: CompiledTariff) -> None:
    day = "\n".join(f"{hour:02}:00 enter L1-01\n{hour:02}:30 leave L1-14" for hour in (6, 9, 12, 15))
    assert costs(priced(hcmc_adopted, day)) == ["complete 19000", "complete 19000", "complete 12000", "complete 0"]


def test_buses_were_free_at_tet_and_the_metro_only_for_some_media(hcmc: CompiledTariff) -> None:
    day = "2026-02-16 07:00 board 1\n08:00 enter L1-01 emv\n08:20 leave L1-02 emv\n09:00 enter L1-01 cccd\n09:20 leave L1-02 cccd"
    assert costs(priced(hcmc, day)) == ["complete 0", "complete 6000", "complete 0"]
