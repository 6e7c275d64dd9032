"""`fare_transfer_rules.txt`: what GTFS Fares v2 says about changing, in the little city (metro 9,000 or 6,000, bus 5,000)."""

from __future__ import annotations

from pathlib import Path

import pytest

from fare_engine.tariff.compile import load_compiled
from tests.builders import costs, priced, write_city

HEADER = "from_leg_group_id,to_leg_group_id,transfer_count,duration_limit,duration_limit_type,fare_transfer_type,fare_product_id"
LEG_RULES = "leg_group_id,network_id,from_area_id,to_area_id,fare_product_id\nm,metro,,,long\nb,bus,,,bus\nf,boat,,,boat\n"


def ride(tmp_path: Path, rules: str, day: str) -> list[str]:
    files = {"now/fare_leg_rules.txt": LEG_RULES, "now/fare_transfer_rules.txt": f"{HEADER}\n{rules}\n"}
    return costs(priced(load_compiled(write_city(tmp_path, files=files)), day))


def test_a_transfer_without_a_product_is_free(tmp_path: Path) -> None:
    assert ride(tmp_path, "b,m,,,,0,", "07:00 board 10\n07:10 enter A\n07:20 leave C") == ["complete 5000", "complete 0"]


def test_the_other_way_round_no_rule_holds(tmp_path: Path) -> None:
    assert ride(tmp_path, "b,m,,,,0,", "07:00 enter A\n07:10 leave C\n07:20 board 10") == ["complete 9000", "complete 5000"]


@pytest.mark.parametrize(("kind", "second"), [(0, 6000), (1, 15_000), (2, 1000)])
def test_the_first_leg_and_the_product_both_legs_and_the_product_or_the_product_alone(
    tmp_path: Path, kind: int, second: int
) -> None:
    day = "07:00 board 10\n07:10 enter A\n07:20 leave C"
    assert ride(tmp_path, f"b,m,,,,{kind},short", day) == ["complete 5000", f"complete {second}"]


def test_a_product_that_is_cheaper_than_what_was_paid_costs_nothing_more(tmp_path: Path) -> None:
    day = "07:00 enter A\n07:10 leave C\n07:20 board 10"
    assert ride(tmp_path, "m,b,,,,2,short", day) == ["complete 9000", "complete 0"]


@pytest.mark.parametrize(("count", "last"), [("1", 5000), ("2", 0), ("-1", 0)])
def test_so_many_transfers_in_a_row_and_no_more(tmp_path: Path, count: str, last: int) -> None:
    day = "07:00 board 10\n07:10 board 11\n07:20 board 10"
    assert ride(tmp_path, f"b,b,{count},,,0,", day) == ["complete 5000", "complete 0", f"complete {last}"]


@pytest.mark.parametrize(
    ("kind", "seconds", "free"),
    [
        (0, 2400, True), (0, 2399, False),  # first tap 07:00 to last tap 07:40
        (1, 1800, True), (1, 1799, False),  # first tap to first tap 07:30
        (2, 600, True), (2, 599, False),  # last tap 07:20 to first tap
        (3, 1200, True), (3, 1199, False),  # last tap to last tap
    ],
)  # fmt: skip
def test_the_time_to_change_runs_between_the_taps_that_the_rule_names(
    tmp_path: Path, kind: int, seconds: int, free: bool
) -> None:
    day = "07:00 enter A\n07:20 leave B\n07:30 enter B\n07:40 leave C"
    expected = ["complete 9000", "complete 0" if free else "complete 9000"]
    assert ride(tmp_path, f"m,m,1,{seconds},{kind},0,", day) == expected


def test_an_empty_group_means_every_one_that_no_row_names_there(tmp_path: Path) -> None:
    rules = "b,m,,,,0,\n,f,,,,0,"  # to the boat from everywhere but the bus
    assert ride(tmp_path, rules, "07:00 board 10\n07:10 board F") == ["complete 5000", "complete 15000"]
    assert ride(tmp_path, rules, "07:00 enter A\n07:05 leave C\n07:10 board F") == ["complete 9000", "complete 0"]


def test_only_the_leg_just_before_counts(tmp_path: Path) -> None:
    day = "07:00 board 10\n07:10 board F\n07:20 enter A\n07:30 leave C"
    assert ride(tmp_path, "b,m,,,,0,", day) == ["complete 5000", "complete 15000", "complete 9000"]


def test_a_ride_is_changed_to_by_one_rule(tmp_path: Path) -> None:
    day = "07:00 board 10\n07:10 enter A\n07:20 leave C"
    assert ride(tmp_path, "b,m,,,,1,short\nb,m,,,,1,short", day) == ["complete 5000", "complete 15000"]
