"""The edges of what rides cost: where each condition, window, period and price begins and ends, and what is said of a rule that
does not act. A little tariff for each question."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from pathlib import Path

import msgspec
import pytest

from fare_engine.facts import Given, Tap
from fare_engine.money import format_amount, rounded_to
from fare_engine.pricing.fold import Fold, Folded, fold
from fare_engine.pricing.lines import Leg
from fare_engine.pricing.periods import spent
from fare_engine.pricing.state import State
from fare_engine.service_day import to_date, to_day
from fare_engine.tariff.compile import CompiledTariff
from tests.builders import bill, costs, dedent, facts, little_tariff, priced, row, version

HOURS = {
    "network/timeframes.txt": """\
timeframe_group_id,start_time,end_time,service_id
early,00:00:00,07:00:00,DAILY
peak,07:00:00,07:20:00,DAILY
late,07:20:00,24:00:00,DAILY
work,00:00:00,24:00:00,WORK
"""
}
ZONES = {
    "network/areas.txt": "area_id,area_name\nA,A\nB,B\nC,C\n1,Inner\n2,Middle\n3,Outer\n",
    "network/stop_areas.txt": "area_id,stop_id\nA,A\nB,B\nC,C\n1,A\n1,B\n2,B\n3,C\n",
}
FARES_WITHOUT_METRO = {
    "now/fare_leg_rules.txt": "leg_group_id,network_id,from_area_id,to_area_id,fare_product_id\nbus,bus,,,bus\n",
}
WEDNESDAY = date(2026, 3, 4)
FROM_ENTRY = {"window_minutes": 60, "window_from": "entry"}
MINUS = row("discounts", rule_id="less", kind="amount", value=1000, bearer="CITY")


def fare(networks: tuple[str, ...] = ("metro",), **fields: object) -> str:
    """A price that stands before those of the tables."""
    return row("leg_prices", rule_id="fare", networks=networks, priority=1, **fields)


def price_for(use: str, amount: int, **fields: object) -> str:
    return row("leg_prices", rule_id=f"for-{use}", use=use, by="flat", amount=amount, **fields)


def joint(**fields: object) -> str:
    """Rides within an hour of the one before; the second is free, where nothing else is said."""
    free = {} if "worth" in fields else {"worth": "percents", "percents": (100, 0)}
    return row("joining_rules", rule_id="joint", **{**FROM_ENTRY, **free, **fields})


def best_of(*candidates: str, period: str = "week", **fields: object) -> str:
    return row("best_of", rule_id="best", period=period, **fields) + "".join(candidates)


def candidate(name: str, amount: int, more: str = "") -> str:
    names = "name = { vi = '', en = '' }"
    return f"[[best_of.candidates]]\ncandidate_id = '{name}'\n{names}\namount = {amount}\n{more}\n"


def reward(steps: str, **fields: object) -> str:
    return row("rewards", rule_id="more", **{"period": "service_day", "counts": "legs", **fields}) + f"steps = {steps}\n"


def rebate(tiers: str, **fields: object) -> str:
    return row("rebates", rule_id="back", **{"period": "week", "bearer": "CITY", **fields}) + f"tiers = {tiers}\n"


def bringing(tariff: CompiledTariff, day: str, *given: Given | None) -> Folded:
    """A day whose taps bring along what their devices measured."""
    found = facts(day)
    taps = [msgspec.structs.replace(fact, given=one) for fact, one in zip(found, given, strict=True) if isinstance(fact, Tap)]
    return fold(tariff, taps, max(tap.at for tap in taps))


def why_not(tariff: CompiledTariff, day: str, leg: int, rule: str) -> str:
    """Why a rule did not act on the leg of a line of a day; empty: nothing is said."""
    found = facts(day)
    said = fold(tariff, found, max(fact.at for fact in found), explain=True).passed
    return next((one.reason for one in reversed(said) if (one.leg_id, one.rule_id) == (str(leg), rule)), "")


def last_charge(found: Folded) -> str:
    return costs(found)[-1].split()[-1]


# ---- conditions

RIDE = "07:00 enter M@A\n07:20 leave M@B"


@pytest.mark.parametrize(
    ("condition", "day", "reason"),
    [
        ({"valid_from": date(2026, 3, 3)}, RIDE, ""),
        ({"valid_from": date(2026, 3, 4)}, RIDE, "valid_from"),
        ({"valid_to": date(2026, 3, 3)}, RIDE, ""),
        ({"valid_to": date(2026, 3, 2)}, RIDE, "valid_to"),
        ({"weekdays": ("tue",)}, RIDE, ""),
        ({"weekdays": ("mon", "wed", "thu", "fri", "sat", "sun")}, RIDE, "weekdays"),
        ({"weekdays": ("sun",)}, f"2026-03-08 {RIDE}", ""),
        ({"weekdays": ("mon",)}, f"2026-03-09 {RIDE}", ""),
        ({"service_ids": ("WORK",)}, RIDE, ""),
        ({"service_ids": ("WORK",)}, f"2026-03-04 {RIDE}", "service_ids"),  # a holiday by calendar_dates.txt
        ({"service_ids": ("WORK",)}, f"2026-03-07 {RIDE}", ""),  # a Saturday that is a working day
        ({"service_ids": ("WORK",)}, f"2026-03-08 {RIDE}", "service_ids"),
        ({"service_ids": ("WORK", "DAILY")}, f"2026-03-08 {RIDE}", ""),
        ({"except_service_ids": ("WORK",)}, RIDE, "except_service_ids"),
        ({"except_service_ids": ("WORK",)}, f"2026-03-04 {RIDE}", ""),
        ({"except_service_ids": ("WORK", "DAILY")}, f"2026-03-04 {RIDE}", "except_service_ids"),
        ({"operators": ("RAIL", "COOP")}, RIDE, ""),
        ({"operators": ("COOP",)}, RIDE, "operators"),
        ({"timeframes": ("peak",)}, RIDE, ""),
        ({"timeframes": ("peak",)}, "06:59:59.999 enter M@A\n07:05 leave M@B", "timeframes"),
        ({"timeframes": ("peak", "early")}, "06:59:59.999 enter M@A\n07:05 leave M@B", ""),
        ({"timeframes": ("peak",)}, "07:20 enter M@A\n07:30 leave M@B", "timeframes"),
        ({"exit_timeframes": ("late",)}, RIDE, ""),
        ({"exit_timeframes": ("peak",)}, RIDE, "exit_timeframes"),
        ({"exit_timeframes": ("peak",)}, "07:00 enter M@A\n07:19:59.999 leave M@B", ""),
        ({"timeframes": ("work",)}, f"2026-03-04 {RIDE}", "timeframes"),
        ({"timeframes": ("peak",)}, "07:10 leave M@B", ""),  # the only tap is the first and the last one
        ({"exit_timeframes": ("peak",)}, "07:10 enter M@A\n08:00 enter M@A", ""),
        ({"from_areas": ("A",)}, RIDE, ""),
        ({"from_areas": ("B", "X")}, RIDE, "from_areas"),
        ({"from_areas": ("X",)}, "07:00 enter M@X\n07:20 leave M@A", ""),
        ({"to_areas": ("B", "C")}, RIDE, ""),
        ({"to_areas": ("A",)}, RIDE, "to_areas"),
        ({"either_areas": ("A",)}, RIDE, ""),
        ({"either_areas": ("B",)}, RIDE, ""),
        ({"either_areas": ("C", "X")}, RIDE, "either_areas"),
        ({"within_areas": ("A", "B")}, RIDE, ""),
        ({"within_areas": ("A",)}, RIDE, "within_areas"),
        ({"within_areas": ("B",)}, RIDE, "within_areas"),
        ({"within_areas": ("A",)}, "07:00 enter M@A\n07:20 leave M@X", ""),  # X lies in no area
        ({"within_areas": ("A",)}, "07:00 enter M@X\n07:20 leave M@A", ""),
        ({"except_areas": ("C", "X")}, RIDE, ""),
        ({"except_areas": ("A",)}, RIDE, "except_areas"),
        ({"except_areas": ("B",)}, RIDE, "except_areas"),
    ],
)
def test_a_rule_whose_conditions_a_ride_does_not_meet_does_not_act_and_the_first_of_them_is_named(
    tmp_path: Path, condition: dict, day: str, reason: str
) -> None:
    rule = row("discounts", rule_id="some", kind="amount", value=1000, bearer="CITY", **condition)
    tariff = little_tariff(tmp_path, fare(by="flat", amount=6000), rule, files=HOURS, metro='missing_entry = "lowest_fare"\n')
    acts = "discount some -1000 CITY 1000" in bill(priced(tariff, day))
    assert (acts, why_not(tariff, day, 1, "some")) == (not reason, reason)


@pytest.mark.parametrize(
    ("routes", "route", "holds"),
    [
        (("10-10",), "10", True),
        (("11-99",), "10", False),
        (("1-10",), "10", True),
        (("1-9",), "10", False),
        (("20-30", "10"), "10", True),
        (("1-99",), "F", False),
        (("1-99",), "-", False),  # no route is known
        (("1-5", "9-12"), "11", True),
    ],
)
def test_routes_may_be_ranges_of_numbers_with_both_their_ends(
    tmp_path: Path, routes: tuple[str, ...], route: str, holds: bool
) -> None:
    tariff = little_tariff(tmp_path, MINUS.replace("less", "some") + f"routes = {list(routes)}\n")
    assert ("discount some" in bill(priced(tariff, f"07:00 board {route}"))) is holds


def test_without_being_asked_the_fold_says_nothing_of_rules_that_did_not_act(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path, MINUS + 'weekdays = ["wed"]\n')
    assert priced(tariff, "07:00 board 10").passed == []


def test_what_a_tap_brings_along_is_used_beside_the_areas_of_its_stop(tmp_path: Path) -> None:
    there = row("discounts", rule_id="some", kind="amount", value=1000, bearer="CITY", from_areas=("C",))
    tariff = little_tariff(tmp_path, there, fare(("bus",), by="flat", amount=5000))
    assert costs(bringing(tariff, "07:00 board 10", Given(areas=("C",)))) == ["complete 4000"]
    assert costs(bringing(tariff, "07:00 board 10", Given(areas=("B",)))) == ["complete 5000"]
    assert costs(bringing(tariff, "07:00 board 10@A", Given(areas=("C",)))) == ["complete 4000"]


# ---- when rides belong together

BUSES = "08:00 board 10\n{} board 10"


@pytest.mark.parametrize("worth", [{}, {"worth": "pair", "off_second": 5000}, {"worth": "position", "transfer_amounts": (0,)}])
@pytest.mark.parametrize(
    ("fields", "day", "reason"),
    [
        ({}, BUSES.format("09:00"), ""),
        ({}, BUSES.format("09:00:01"), "window_minutes"),
        ({"end": "before"}, BUSES.format("09:00"), "window_minutes"),
        ({"end": "before"}, BUSES.format("08:59:59"), ""),
        ({"resolution": "minute"}, BUSES.format("09:00:59"), ""),
        ({"window_of": "first"}, BUSES.format("09:00"), ""),
        ({"window_of": "first"}, BUSES.format("09:00:01"), "window_minutes"),
        ({"window_from": "exit"}, BUSES.format("08:10"), "window_from"),
        ({"window_from": "exit"}, "08:00 enter A\n08:30 leave B\n09:30 board 10", ""),
        ({"window_from": "exit"}, "08:00 enter A\n08:30 leave B\n09:30:01 board 10", "window_minutes"),
        ({"window_minutes": 0, "same": ("service_day",)}, "08:00 board 10\n2026-03-04 02:29 board 10", ""),
        ({"window_minutes": 0, "same": ("service_day",)}, "08:00 board 10\n2026-03-04 02:30 board 10", "same service_day"),
        ({"same": ("route",)}, BUSES.format("08:10"), ""),
        ({"same": ("route",)}, "08:00 board 10\n08:10 board 11", "same route"),
        ({"same": ("operator",)}, BUSES.format("08:10"), ""),
        ({"same": ("operator",)}, "08:00 board 10\n08:10 board 11 by=BOATS", "same operator"),
        ({"same": ("network",)}, "08:00 board 10\n08:10 board 11", ""),
        ({"same": ("network",)}, "08:00 board 10\n08:10 board F", "same network"),
        ({"differs": ("route",)}, "08:00 board 10\n08:10 board 11", ""),
        ({"differs": ("route",)}, BUSES.format("08:10"), "differs route"),
        ({"differs": ("network",)}, "08:00 board 10\n08:10 board F", ""),
        ({"differs": ("network",)}, BUSES.format("08:10"), "differs network"),
        ({"differs": ("operator",)}, "08:00 board 10\n08:10 board 10 by=COOP", ""),
        ({"differs": ("operator",)}, BUSES.format("08:10"), "differs operator"),
        ({"differs": ("stop",)}, "08:00 enter A\n08:10 leave B\n08:20 board 10@B", "differs stop"),
        ({"differs": ("stop",)}, "08:00 enter A\n08:10 leave B\n08:20 board 10@A", ""),
        ({"differs": ("stop",)}, "08:00 enter A\n08:10 leave B\n08:20 board 10", ""),  # what is not known differs
        ({"from_networks": ("metro",)}, "08:00 enter A\n08:10 leave B\n08:20 board 10", ""),
        ({"to_networks": ("metro",)}, BUSES.format("08:10"), "to_networks"),
        ({"to_networks": ("bus", "metro")}, BUSES.format("08:10"), ""),
        ({"from_routes": ("10",)}, BUSES.format("08:10"), ""),
        ({"from_routes": ("11-20",)}, BUSES.format("08:10"), "from_routes"),
        ({"to_routes": ("10",)}, BUSES.format("08:10"), ""),
        ({"to_routes": ("11",)}, BUSES.format("08:10"), "to_routes"),
        ({"from_areas": ("B",)}, "08:00 enter A\n08:10 leave B\n08:20 board 10", ""),
        ({"from_areas": ("A",)}, "08:00 enter A\n08:10 leave B\n08:20 board 10", "from_areas"),
        ({"to_areas": ("C",)}, "08:00 board 10\n08:10 board 10@C", ""),
        ({"to_areas": ("B",)}, "08:00 board 10\n08:10 board 10@C", "to_areas"),
        ({"to_areas": ("B",)}, "08:00 board 10\n08:10 board 10", "to_areas"),
        ({"stop_pairs": (("B", "S1"),)}, "08:00 enter A\n08:10 leave B\n08:20 board 10@S1", ""),
        ({"stop_pairs": (("S1", "B"),)}, "08:00 enter A\n08:10 leave B\n08:20 board 10@S1", ""),
        ({"stop_pairs": (("A", "S1"), ("B", "C"))}, "08:00 enter A\n08:10 leave B\n08:20 board 10@S1", "stop_pairs"),
        ({"stop_pairs": (("B", "S1"),)}, "08:00 enter A\n08:10 leave B\n08:20 board 10@B", "stop_pairs"),
        ({"skips": False}, BUSES.format("08:10"), ""),
        ({"skips": False, "networks": ("bus",)}, "08:00 board 10\n08:10 board F\n08:20 board 10", "skips"),
        ({"networks": ("bus",)}, "08:00 board 10\n08:10 board F\n08:20 board 10", ""),
        ({"valid_to": date(2026, 3, 3)}, "08:00 board 10\n08:10 board 10", ""),
        ({"valid_to": date(2026, 3, 3)}, "2026-03-04 02:20 board 10\n02:40 board 10", "valid_to"),
        ({"networks": ("bus",)}, "08:00 board 10\n08:10 board F", "networks"),
        ({"media": ("emv",)}, "08:00 board 10\n08:10 board 10 cash", "media"),
        ({"rider_categories": ("adult",)}, "08:00 board 10\n08:10 board 10 emv student", "rider_categories"),
    ],
)
def test_a_ride_follows_another_where_its_rule_says_so_and_else_the_reason_is_named(
    tmp_path: Path, worth: dict, fields: dict, day: str, reason: str
) -> None:
    same_fare = fare(("metro", "bus", "boat"), by="flat", amount=5000)
    tariff = little_tariff(tmp_path, same_fare, joint(**{**worth, **fields}))
    last = 1 + max(number for number, line in enumerate(day.splitlines()) if "leave" not in line)
    assert why_not(tariff, day, last, "joint") == reason
    assert last_charge(priced(tariff, day)) == ("5000" if reason else "0")


def test_in_a_chain_the_ride_before_must_be_on_a_network_that_the_rule_names(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path, joint(from_networks=("boat",), to_networks=("bus",), max_transfers=2))
    day = "08:00 board F\n08:10 board 10\n08:20 board 10"
    assert costs(priced(tariff, day)) == ["complete 15000", "complete 0", "complete 5000"]
    assert why_not(tariff, day, 3, "joint") == "from_networks"


@pytest.mark.parametrize("worth", [{}, {"worth": "pair", "off_second": 5000}])
def test_a_chain_ends_after_its_transfers_and_its_span(tmp_path: Path, worth: dict) -> None:
    day = "08:00 board 10\n08:30 board 10\n08:59 board 10"
    short = little_tariff(tmp_path / "short", joint(**worth))
    assert costs(priced(short, day))[2] == "complete 5000"
    assert worth or why_not(short, day, 3, "joint") == "max_transfers"
    brief = little_tariff(tmp_path / "brief", joint(**worth, max_transfers=9, span_minutes=29))
    assert why_not(brief, day, 2, "joint") == "span_minutes"
    exact = little_tariff(tmp_path / "exact", joint(**worth, max_transfers=1, span_minutes=30))
    assert costs(priced(exact, day))[1] == "complete 0"


def test_each_rule_of_pairs_bounds_the_chain_by_its_own_transfers_and_says_so(tmp_path: Path) -> None:
    buses = joint(worth="pair", to_networks=("bus",), off_second=1000, max_transfers=3).replace('"joint"', '"buses"')
    tariff = little_tariff(tmp_path, buses, joint(worth="pair", to_networks=("metro",), off_second=1000))
    day = "08:00 board 10\n08:10 board 10\n08:20 enter A\n08:30 leave B"
    assert costs(priced(tariff, day)) == ["complete 5000", "complete 4000", "complete 6000"]
    assert why_not(tariff, day, 3, "joint") == "max_transfers"


@pytest.mark.parametrize("worth", [{}, {"worth": "position", "transfer_amounts": (0,)}])
def test_a_rule_that_does_not_fit_does_not_hide_the_next_one(tmp_path: Path, worth: dict) -> None:
    other = joint(**worth, networks=("bus",), same=("route",)).replace('"joint"', '"same-route"')
    tariff = little_tariff(tmp_path, other, joint(**worth))
    assert costs(priced(tariff, "08:00 board 10\n08:10 board 11")) == ["complete 5000", "complete 0"]


def test_a_ride_whose_list_fare_is_zero_begins_nothing(tmp_path: Path) -> None:
    free = fare(("bus",), by="flat", amount=0, routes=("11",))
    tariff = little_tariff(tmp_path, free, joint())
    assert costs(priced(tariff, "08:00 board 11\n08:10 board 10")) == ["complete 0", "complete 5000"]


def test_a_rule_whose_day_has_passed_begins_nothing_and_says_why(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path, joint(valid_to=date(2026, 3, 3)))
    assert why_not(tariff, "2026-03-04 08:00 board 10", 1, "joint") == "valid_to"


def test_the_place_where_a_ride_begins_may_be_what_its_tap_brings_along(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path, fare(("bus",), by="flat", amount=5000), joint(to_areas=("C",)))
    day = "08:00 board 10\n08:10 board 10"
    assert costs(bringing(tariff, day, None, Given(areas=("C",)))) == ["complete 5000", "complete 0"]
    assert costs(bringing(tariff, day, None, Given(areas=("B",)))) == ["complete 5000", "complete 5000"]


def test_the_hours_of_a_link_are_those_in_which_its_window_begins(tmp_path: Path) -> None:
    link = "[[joining_rules.links]]\nwindow_minutes = 60\nwindow_from = 'entry'\ntimeframes = ['peak']\n"
    rule = row("joining_rules", rule_id="joint", worth="percents", percents=(100, 0)) + link
    tariff = little_tariff(tmp_path, rule, files=HOURS)
    assert costs(priced(tariff, "07:10 board 10\n08:00 board 10")) == ["complete 5000", "complete 0"]
    late = "07:20 board 10\n08:00 board 10"
    assert (last_charge(priced(tariff, late)), why_not(tariff, late, 2, "joint")) == ("5000", "timeframes")


def test_one_link_that_fits_is_enough(tmp_path: Path) -> None:
    links = "".join(
        f"[[joining_rules.links]]\nfrom_routes = ['{route}']\nwindow_minutes = {minutes}\nwindow_from = 'entry'\n"
        for route, minutes in (("11", 60), ("10", 10))
    )
    tariff = little_tariff(tmp_path, row("joining_rules", rule_id="joint", worth="percents", percents=(100, 0)) + links)
    assert last_charge(priced(tariff, "08:00 board 10\n08:10 board 10")) == "0"
    assert last_charge(priced(tariff, "08:00 board 10\n08:11 board 10")) == "5000"
    assert last_charge(priced(tariff, "08:00 board 11\n08:11 board 10")) == "0"


@pytest.mark.parametrize(("of", "third"), [("previous", "0"), ("first", "5000")])
def test_the_window_runs_from_the_ride_before_or_from_the_first_one(tmp_path: Path, of: str, third: str) -> None:
    tariff = little_tariff(tmp_path, joint(window_of=of, max_transfers=2))
    assert last_charge(priced(tariff, "08:00 board 10\n08:50 board 10\n09:10 board 10")) == third


def test_a_ride_that_had_to_pay_opens_the_window_of_the_first_again(tmp_path: Path) -> None:
    dearest = {"worth": "dearest", "window_of": "first", "max_transfers": 9}
    day = """08:00 board 10
             08:30 enter A
             08:40 leave C
             09:20 board 10
             09:31 board 10"""
    again = little_tariff(tmp_path / "again", joint(**dearest, restarts="on_payment"))
    assert costs(priced(again, day)) == ["complete 5000", "complete 4000", "complete 0", "complete 5000"]
    never = little_tariff(tmp_path / "never", joint(**dearest))
    assert costs(priced(never, day))[2] == "complete 5000"


def test_rides_worth_their_dearest_pay_the_difference_to_it(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path, joint(worth="dearest", max_transfers=9, bearer="CITY"))
    day = "08:00 board 10\n08:10 board F\n08:20 enter A\n08:30 leave C\n08:40 board 10"
    assert bill(priced(tariff, day)) == dedent(
        """1 complete 5000 | list_fare bus/bus 5000
           2 complete 10000 | list_fare boat/boat 15000 | transfer joint -5000 CITY 5000
           3 complete 0 | list_fare metro/long 9000 | transfer joint -9000 CITY 9000
           5 complete 0 | list_fare bus/bus 5000 | transfer joint -5000 CITY 5000"""
    )


def test_what_a_ride_pays_beside_one_without_a_price_is_unknown_unless_it_does_not_depend_on_it(tmp_path: Path) -> None:
    day = "08:00 enter M@A\n08:10 leave M@X\n08:30 board 10"
    unknown = {"worth": "dearest"}, {"worth": "through"}
    for number, worth in enumerate(unknown):
        found = priced(little_tariff(tmp_path / str(number), joint(**worth)), day)
        assert found.legs["3"].reason == "missing fact: the price of an earlier ride"
        assert costs(found) == ["unknown ?", "unknown ?"]
    known = ({}, "0"), ({"worth": "position", "transfer_amounts": (2000,)}, "2000")
    for number, (worth, charge) in enumerate(known, len(unknown)):
        assert last_charge(priced(little_tariff(tmp_path / str(number), joint(**worth)), day)) == charge


@pytest.mark.parametrize(("owner", "version_id", "charge"), [("first_leg", "now", "4000"), ("leg", "later", "3000")])
def test_a_pair_over_the_change_of_a_tariff_is_of_the_version_that_its_owner_says(
    tmp_path: Path, owner: str, version_id: str, charge: str
) -> None:
    def pair(off: int) -> str:
        return joint(worth="pair", off_first=off, off_second=off, owner=owner)

    later = version("later", pair(2000), valid_from=WEDNESDAY)
    found = priced(little_tariff(tmp_path, pair(1000), files=later), "2026-03-04 02:20 board 10\n02:40 board 10")
    assert costs(found) == [f"complete {charge}"] * 2
    assert [line.version_id for line in found.lines if line.kind == "transfer"] == [version_id] * 2


@pytest.mark.parametrize(("owner", "version_id"), [("first_leg", "now"), ("leg", "later")])
@pytest.mark.parametrize("worth", [{}, {"worth": "position", "transfer_amounts": (0,)}])
def test_a_transfer_names_the_version_of_its_owner(tmp_path: Path, worth: dict, owner: str, version_id: str) -> None:
    later = version("later", joint(owner=owner, **worth), valid_from=WEDNESDAY)
    tariff = little_tariff(tmp_path, joint(owner=owner, **worth), files=later)
    found = priced(tariff, "2026-03-04 02:20 board 10\n02:40 board 10")
    assert [line.version_id for line in found.lines] == ["now", "later", version_id]


@pytest.mark.parametrize(
    ("worth", "charge"),
    [({}, "0"), ({"worth": "dearest"}, "0"), ({"worth": "position", "transfer_amounts": (0,)}, "0"), ({"owner": "leg"}, "5000")],
)
def test_a_group_begun_under_a_rule_goes_on_though_the_next_version_has_none(tmp_path: Path, worth: dict, charge: str) -> None:
    tariff = little_tariff(tmp_path, joint(**worth), files=version("later", valid_from=WEDNESDAY))
    assert last_charge(priced(tariff, "2026-03-04 02:20 board 10\n02:40 board 10")) == charge


def test_what_comes_off_the_second_ride_is_an_amount_and_a_per_cent_with_halves_rounded_up(tmp_path: Path) -> None:
    odd = fare(("bus",), by="flat", amount=5001)
    pair = {"worth": "pair", "percent_off_second": 50}
    day = "08:00 board 10\n08:10 board 10"
    assert last_charge(priced(little_tariff(tmp_path / "half", odd, joint(**pair)), day)) == "2500"
    assert last_charge(priced(little_tariff(tmp_path / "more", odd, joint(**pair, off_second=1000)), day)) == "1500"
    assert last_charge(priced(little_tariff(tmp_path / "all", odd, joint(**pair, off_second=4000)), day)) == "0"


def test_per_cents_go_by_position_with_halves_rounded_up_and_the_last_for_all_further_rides(tmp_path: Path) -> None:
    odd = fare(("bus",), by="flat", amount=5001)
    tariff = little_tariff(tmp_path, odd, joint(worth="percents", percents=(100, 50, 10), max_transfers=9))
    day = "08:00 board 10\n08:10 board 10\n08:20 board 10\n08:30 board 10"
    assert costs(priced(tariff, day)) == ["complete 5001", "complete 2501", "complete 500", "complete 500"]


def test_prices_by_position_never_raise_a_fare_and_the_last_is_for_all_further_rides(tmp_path: Path) -> None:
    rule = joint(worth="position", transfer_amounts=(7000, 4000), max_transfers=9)
    day = "08:00 board 10\n08:10 board 10\n08:20 board 10\n08:30 board 10"
    assert costs(priced(little_tariff(tmp_path, rule), day)) == [
        "complete 5000", "complete 5000", "complete 4000", "complete 4000"
    ]  # fmt: skip


@pytest.mark.parametrize(("below_zero", "charges"), [("kept", ["9000", "0", "0"]), ("paid_back", ["9000", "-3000", "3000"])])
def test_one_ride_from_the_first_entry_to_the_last_exit_is_paid_back_only_where_the_rule_says_so(
    tmp_path: Path, below_zero: str, charges: list[str]
) -> None:
    rule = joint(worth="through", below_zero=below_zero, max_transfers=9)
    day = """08:00 enter A
             08:10 leave C
             08:20 enter C
             08:30 leave B
             08:40 enter B
             08:50 leave C"""
    found = priced(little_tariff(tmp_path, rule), day)
    assert [charge.split()[1] for charge in costs(found)] == charges


def test_a_ride_under_way_keeps_its_group_open_for_it(tmp_path: Path) -> None:
    rule = joint(networks=("bus", "metro"))
    day = """08:00 board 10
             08:30 enter A
             09:10 board F
             09:20 leave C"""
    assert costs(priced(little_tariff(tmp_path, rule), day)) == ["complete 5000", "complete 0", "complete 15000"]


@pytest.mark.parametrize("worth", [{"worth": "pair", "off_second": 5000}, {}])
def test_what_can_no_longer_be_joined_is_forgotten(tmp_path: Path, worth: dict) -> None:
    tariff = little_tariff(tmp_path, joint(networks=("bus",), max_transfers=9, **worth))
    state = priced(tariff, "08:00 board 10\n08:10 board 10\n2026-03-05 08:00 board 10").state
    assert [leg.leg_id for leg in state.joinable] == (["3"] if worth else [])
    assert [group.last.leg_id for group in state.groups] == ([] if worth else ["3"])
    assert state.transfers == {}
    on_the_dot = priced(tariff, "08:00 board 10\n09:00 board F\n09:00:00.500 board 10")
    assert costs(on_the_dot) == ["complete 5000", "complete 15000", "complete 0"]


# ---- prices of rides as one, by distance


def km(metres: int | None = None, chain: int | None = None, **more: object) -> Given:
    return Given(distance_m=metres, chain_distance_m=chain, **more)  # type: ignore[arg-type]


BY_KM = fare(("metro", "bus"), by="distance", base=1000, per_unit=1000)
TWO_RIDES = "08:00 board 10\n08:30 board 10"


def test_distances_of_joined_rides_are_added_and_a_chain_s_own_distance_is_used_first(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path, BY_KM, joint(worth="distance"))
    assert costs(bringing(tariff, TWO_RIDES, km(2000), km(3000))) == ["complete 3000", "complete 3000"]
    assert costs(bringing(tariff, TWO_RIDES, km(2000), km(3000, chain=4000))) == ["complete 3000", "complete 2000"]
    without = bringing(tariff, TWO_RIDES, km(2000), None)
    assert without.legs["2"].reason == "missing fact: distance_km"


def test_each_ride_counts_at_most_its_own_row_s_distance(tmp_path: Path) -> None:
    rows = fare(("bus",), by="distance", base=1000, per_unit=1000, counts_at_most=2)
    tariff = little_tariff(tmp_path, rows, joint(worth="distance"))
    found = bringing(tariff, TWO_RIDES, km(9000), km(1000))
    assert costs(found) == ["complete 3000", "complete 0"]
    joined = row("leg_prices", rule_id="joined", networks=("bus",), use="joined", by="distance", base=1000, per_unit=1000)
    free = little_tariff(tmp_path / "joined", rows, joined, joint(worth="distance"))
    assert costs(bringing(free, TWO_RIDES, km(9000), km(1000))) == ["complete 3000", "complete 1000"]


def test_of_several_networks_prices_for_one_distance_the_dearest_counts(tmp_path: Path) -> None:
    metro = BY_KM.replace('"metro", ', "").replace('"fare"', '"bus-km"')
    dear = row("leg_prices", rule_id="boat-km", networks=("boat",), priority=1, by="distance", base=0, per_unit=3000)
    tariff = little_tariff(tmp_path, metro, dear, joint(worth="distance"))
    assert costs(bringing(tariff, "08:00 board 10\n08:30 board F", km(2000), km(1000))) == ["complete 3000", "complete 6000"]
    assert costs(bringing(tariff, "08:00 board F\n08:30 board 10", km(1000), km(2000))) == ["complete 3000", "complete 6000"]


def test_the_longest_line_between_any_entry_and_any_exit_is_priced(tmp_path: Path) -> None:
    by_line = fare(("metro",), by="distance", base=0, per_unit=1000, measure="straight_line", unit=1)
    tariff = little_tariff(tmp_path, by_line, joint(worth="longest_pair", networks=("metro",)))
    day = "08:00 enter M@A\n08:10 leave M@B\n08:20 enter M@B\n08:30 leave M@X"
    # 1.6 km from A to B, 3.1 km from B to X and 4.7 km from A to X
    assert costs(priced(tariff, day)) == ["complete 2000", "complete 3000"]
    back = "08:00 enter M@A\n08:10 leave M@X\n08:20 enter M@X\n08:30 leave M@B"
    assert costs(priced(tariff, back)) == ["complete 5000", "complete 0"]


def test_without_a_place_the_longest_line_is_a_missing_fact(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path, BY_KM, joint(worth="longest_pair"))
    found = bringing(tariff, TWO_RIDES, km(2000), km(3000))
    assert found.legs["2"].reason == "missing fact: chain_distance_km"
    assert costs(bringing(tariff, TWO_RIDES, km(2000), km(3000, chain=4000))) == ["complete 3000", "complete 2000"]


def test_one_place_that_is_not_known_leaves_the_longest_line_unknown(tmp_path: Path) -> None:
    by_line = fare(("metro",), by="distance", base=0, per_unit=1000, measure="straight_line")
    flat = fare(("bus",), by="flat", amount=5000).replace('"fare"', '"bus-fare"')
    tariff = little_tariff(tmp_path, by_line, flat, joint(worth="longest_pair"))
    found = priced(tariff, "08:00 enter M@A\n08:10 leave M@B\n08:20 board 10@B")
    assert found.legs["3"].reason == "missing fact: chain_distance_km"


def test_one_ride_through_needs_the_chain_s_distance(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path, BY_KM, joint(worth="through"))
    assert bringing(tariff, TWO_RIDES, km(2000), km(3000)).legs["2"].reason == "missing fact: chain_distance_km"
    assert costs(bringing(tariff, TWO_RIDES, km(2000), km(3000, chain=4000))) == ["complete 3000", "complete 2000"]


# ---- periods


def test_a_cap_that_is_not_reached_says_so(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path, row("caps", rule_id="day", period="service_day", amount=5000))
    assert why_not(tariff, "08:00 board 10", 1, "day") == "not reached"
    assert why_not(tariff, "08:00 board 10\n09:00 board 10", 2, "day") == ""


DAY_A = candidate("buses", 8000, 'networks = ["bus"]')
DAY_B = candidate("metro", 10_000, 'networks = ["metro"]')


def test_a_window_is_worth_the_least_over_every_choice_of_its_candidates(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path, best_of(DAY_A, DAY_B, at_most=2, bearer="CITY"))
    day = """08:00 board 10
             09:00 board 10
             10:00 enter A
             10:10 leave C
             11:00 enter A
             11:10 leave C"""
    # 5,000; 8,000 by the buses' ticket; 17,000 with the fare of the metro; 18,000 by both tickets
    assert bill(priced(tariff, day)) == dedent(
        """1 complete 5000 | list_fare bus/bus 5000
           2 complete 3000 | list_fare bus/bus 5000 | cap best/buses -2000 CITY 2000
           3 complete 9000 | list_fare metro/long 9000
           5 complete 1000 | list_fare metro/long 9000 | cap best/buses+metro -8000 CITY 8000"""
    )
    assert [why_not(tariff, day, leg, "best") for leg in (1, 2, 3, 5)] == ["not cheaper", "", "not cheaper", ""]


def test_where_one_candidate_may_be_taken_both_are_not(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path, best_of(DAY_A, DAY_B))
    day = "08:00 board 10\n09:00 board 10\n10:00 enter A\n10:10 leave C\n11:00 enter A\n11:10 leave C"
    # the buses' ticket and two metro fares are 26,000, the metro's and two bus fares 20,000
    assert costs(priced(tariff, day))[-2:] == ["complete 9000", "complete 3000"]


@pytest.mark.parametrize(("extension", "charge"), [(4000, "5000"), (8999, "9000"), (20_000, "9000")])
def test_a_ride_that_leaves_a_candidate_s_areas_costs_its_extension_if_that_is_less(
    tmp_path: Path, extension: int, charge: str
) -> None:
    inner = candidate("inner", 7000, 'networks = ["metro"]\nwithin_areas = ["A", "B"]')
    outer = candidate("outer", 99_000, 'networks = ["bus"]')
    other = price_for("extension", 1, candidates=("outer",)).replace("for-extension", "for-outer")
    tariff = little_tariff(tmp_path, best_of(inner, outer), other, price_for("extension", extension, candidates=("inner",)))
    assert last_charge(priced(tariff, "08:00 enter A\n08:10 leave B\n09:00 enter A\n09:10 leave C")) == charge


def test_a_window_s_rides_are_those_of_its_conditions_and_of_its_period(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path, best_of(candidate("day", 6000), period="service_day", networks=("bus",)))
    day = """08:00 board 10
             09:00 board F
             10:00 board 10
             2026-03-04 02:29 board 10
             02:30 board 10"""
    assert [charge.split()[1] for charge in costs(priced(tariff, day))] == ["5000", "15000", "1000", "0", "5000"]


def test_a_ride_that_becomes_cheaper_later_makes_its_window_cheaper_too(tmp_path: Path) -> None:
    pair = joint(worth="pair", from_networks=("bus",), to_networks=("metro",), off_first=4000)
    bus = best_of(candidate("buses", 8000), networks=("bus",))
    day = "08:00 board 10\n08:10 board 10\n08:20 enter A\n08:30 leave C"
    # two rides cost the ticket's 8,000; when the second costs 1,000, both cost less without the ticket
    assert bill(priced(little_tariff(tmp_path, pair, bus), day)) == dedent(
        """1 complete 5000 | list_fare bus/bus 5000
           2 complete 1000 | list_fare bus/bus 5000 | cap best/buses -2000 | transfer joint -4000 | cap best 2000
           3 complete 9000 | list_fare metro/long 9000"""
    )


def test_a_best_of_acts_after_the_caps_of_shorter_periods(tmp_path: Path) -> None:
    day_cap = row("caps", rule_id="day", period="service_day", amount=6000)
    month_cap = row("caps", rule_id="month", period="month", amount=7500)
    tariff = little_tariff(tmp_path, day_cap, month_cap, best_of(candidate("week", 8000)))
    found = priced(tariff, "08:00 board 10\n09:00 board 10\n2026-03-04 08:00 board 10")
    assert costs(found) == ["complete 5000", "complete 1000", "complete 1500"]
    assert [line.rule_id for line in found.lines if line.kind == "cap"] == ["day", "best/week", "month"]


@pytest.mark.parametrize("period", ["window", "days"])
def test_windows_that_begin_with_a_ride_are_each_reckoned_by_themselves(tmp_path: Path, period: str) -> None:
    fields = {"window_minutes": 60} if period == "window" else {"period_days": 1}
    tariff = little_tariff(tmp_path, best_of(candidate("all", 6000), period=period, **fields))
    day = """2026-03-03 08:00 board 10
             08:30 board 10
             2026-03-06 08:00 board 10
             08:30 board 10"""
    found = priced(tariff, day)
    assert [charge.split()[1] for charge in costs(found)] == ["5000", "1000", "5000", "1000"]
    assert len(found.state.windows) == (1 if period == "window" else 2)


def test_a_transfer_in_the_next_week_counts_for_the_week_of_its_ride(tmp_path: Path) -> None:
    pair = joint(worth="pair", off_first=1000)
    week = row("caps", rule_id="three", period="days", period_days=3, amount=4500)
    day = "2026-03-08 08:00 board 10\n2026-03-11 02:20 board 10\n02:40 board 10"
    # the cap took 500 off each; of the first ride's 1,000 it gives 500 back, to its own days
    assert [charge.split()[1] for charge in costs(priced(little_tariff(tmp_path, pair, week), day))] == ["4500", "0", "4500"]


def test_a_cap_whose_conditions_a_ride_does_not_meet_says_so(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path, row("caps", rule_id="day", period="service_day", amount=1000, weekdays=("wed",)))
    assert why_not(tariff, "08:00 board 10", 1, "day") == "weekdays"


def test_after_many_days_a_ride_over_the_turn_of_a_day_still_counts_for_its_own(tmp_path: Path) -> None:
    cap = row("caps", rule_id="day", period="service_day", amount=9000)
    month = row("caps", rule_id="month", period="month", amount=300_000)
    days = [date(2026, 1, 1) + timedelta(days=number) for number in range(30)]
    last = """2026-01-31 08:00 board 10
              09:00 board 10
              2026-02-01 02:20 enter A
              02:31 board 10
              02:40 leave B"""
    tariff = little_tariff(tmp_path, cap, month)
    found = priced(tariff, "\n".join([*(f"{day} 08:00 board 10" for day in days), last]))
    assert [charge.split()[1] for charge in costs(found)[-4:]] == ["5000", "4000", "0", "5000"]
    assert found.state.counters["month", to_day(date(2026, 1, 1))] == 30 * 5000 + 9000


def test_counters_of_caps_with_conditions_are_forgotten_too(tmp_path: Path) -> None:
    cap = row("caps", rule_id="day", period="service_day", amount=9000, service_ids=("DAILY",))
    days = [date(2026, 1, 1) + timedelta(days=number) for number in range(100)]
    found = priced(little_tariff(tmp_path, cap), "\n".join(f"{day} 08:00 board 10" for day in days))
    assert len(found.state.counters) <= 40


def test_after_many_windows_a_transfer_still_counts_for_the_window_of_its_ride(tmp_path: Path) -> None:
    rule = row("caps", rule_id="hour", period="window", window_minutes=60, amount=4500)
    pair = joint(worth="pair", from_networks=("bus",), to_networks=("metro",), window_minutes=120, off_first=1000)
    begins = [datetime(2026, 3, 1, 8, tzinfo=UTC) + timedelta(minutes=90 * number) for number in range(33)]
    rides = [f"{at:%Y-%m-%d %H:%M} board {'F' if at == begins[-1] else '10'}" for at in begins]
    end = begins[-1] + timedelta(minutes=10), begins[-1] + timedelta(minutes=20)
    day = "\n".join([*rides, f"{end[0]:%Y-%m-%d %H:%M} enter A", f"{end[1]:%Y-%m-%d %H:%M} leave B"])
    found = priced(little_tariff(tmp_path, pair, rule), day)
    assert [charge.split()[1] for charge in costs(found)[-4:]] == ["4500", "4000", "4500", "0"]


@pytest.mark.parametrize(("owner", "fare"), [("period", "3000"), ("leg", "1000")])
def test_a_month_s_cap_over_the_change_of_a_tariff_has_the_amount_that_its_owner_says(
    tmp_path: Path, owner: str, fare: str
) -> None:
    old, new = (row("caps", rule_id="month", period="month", amount=amount, owner=owner) for amount in (8000, 6000))
    tariff = little_tariff(tmp_path, old, files=version("later", new, valid_from=WEDNESDAY))
    assert last_charge(priced(tariff, "08:00 board 10\n2026-03-04 08:00 board 10")) == fare


def test_a_ride_that_a_window_is_not_for_is_not_in_it_and_says_why(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path, best_of(candidate("all", 6000), weekdays=("tue",)))
    day = "08:00 board 10\n2026-03-04 08:00 board 10\n2026-03-10 08:00 board 10\n09:00 board 10"
    assert [charge.split()[1] for charge in costs(priced(tariff, day))] == ["5000", "5000", "5000", "1000"]
    assert why_not(tariff, day, 2, "best") == "weekdays"


@pytest.mark.parametrize(
    ("period", "fields", "counted"),
    [
        ("service_day", {}, [5000, 10_000, 12_000, 5000, 5000]),
        ("week", {}, [5000, 10_000, 12_000, 12_000, 12_000]),
        ("month", {}, [5000, 10_000, 12_000, 12_000, 12_000]),
        ("days", {"period_days": 2}, [5000, 10_000, 12_000, 12_000, 5000]),
        ("window", {"window_minutes": 60}, [5000, 10_000, 5000, 5000, 5000]),
    ],
)
def test_a_cap_has_counted_what_its_period_s_rides_cost_and_never_more_than_its_amount(
    tmp_path: Path, period: str, fields: dict, counted: list[int]
) -> None:
    tariff = little_tariff(tmp_path, row("caps", rule_id="cap", period=period, amount=12_000, networks=("bus",), **fields))
    cap = tariff.versions["now"].caps["cap"].rule
    day = ["08:00 board 10", "08:30 board 10", "10:00 board 10", "2026-03-04 08:00 board 10", "2026-03-05 08:00 board 10"]
    for number, expected in enumerate(counted, 1):
        found = priced(tariff, "\n".join(day[:number]))
        assert spent(found.state, cap, found.legs[str(number)]) == expected
    boat = priced(tariff, "08:00 board F")
    assert spent(boat.state, cap, boat.legs["1"]) == 0


@pytest.mark.parametrize("table", ["caps", "best_of"])
def test_windows_of_long_ago_are_forgotten(tmp_path: Path, table: str) -> None:
    rule = row("caps", rule_id="best", period="window", window_minutes=60, amount=6000)
    if table == "best_of":
        rule = best_of(candidate("all", 6000), period="window", window_minutes=60)
    days = [date(2026, 1, 1) + timedelta(days=number) for number in range(60)]
    rides = "\n".join(f"{day} 08:00 board 10\n08:30 board 10" for day in days)
    found = priced(little_tariff(tmp_path, rule), rides)
    assert [charge.split()[1] for charge in costs(found)] == ["5000", "1000"] * 60
    assert len(found.state.counters) <= 32
    assert len(found.state.windows) <= 3


def test_days_with_candidates_of_long_ago_are_forgotten(tmp_path: Path) -> None:
    days = [date(2026, 1, 1) + timedelta(days=number) for number in range(60)]
    tariff = little_tariff(tmp_path, best_of(candidate("all", 6000), period="service_day"))
    found = priced(tariff, "\n".join(f"{day} 08:00 board 10" for day in days))
    assert len(found.state.windows) <= 41


@pytest.mark.parametrize("table", ["caps", "best_of"])
def test_a_transfer_counts_for_the_window_of_its_ride_though_another_has_begun(tmp_path: Path, table: str) -> None:
    rule = row("caps", rule_id="best", period="window", window_minutes=60, amount=4500)
    if table == "best_of":
        rule = best_of(candidate("all", 4500), period="window", window_minutes=60)
    pair = joint(worth="pair", from_networks=("bus",), to_networks=("metro",), window_minutes=120, off_first=1000)
    day = "08:00 board 10\n09:30 board F\n09:40 enter A\n09:50 leave B"
    # the first ride costs 4,500 by its window, and 4,000 without it when the transfer comes
    found = priced(little_tariff(tmp_path, pair, rule), day)
    assert [charge.split()[1] for charge in costs(found)] == ["4000", "4500", "0"]


# ---- rewards


@pytest.mark.parametrize(
    ("steps", "charges"),
    [
        ("[{ after = 1, percent = 50 }, { after = 3, percent = 100 }]", ["5000", "2500", "2500", "0"]),
        ("[{ after = 1, percent = 50, until = 2 }]", ["5000", "2500", "5000", "5000"]),
        ("[{ after = 0, percent = 10 }]", ["4500"] * 4),
    ],
)
def test_the_last_step_reached_holds_until_its_end(tmp_path: Path, steps: str, charges: list[str]) -> None:
    tariff = little_tariff(tmp_path, reward(steps))
    day = "08:00 board 10\n09:00 board 10\n10:00 board 10\n11:00 board 10"
    assert [charge.split()[1] for charge in costs(priced(tariff, day))] == charges
    assert why_not(little_tariff(tmp_path, reward("[{ after = 1, percent = 50, until = 2 }]")), day, 3, "more") == "not reached"


@pytest.mark.parametrize(("paid_only", "second"), [(True, "5000"), (False, "2500")])
def test_a_free_ride_counts_only_where_the_reward_says_so(tmp_path: Path, paid_only: bool, second: str) -> None:
    free = row("discounts", rule_id="free", kind="percent", value=100, bearer="CITY", routes=("11",))
    tariff = little_tariff(tmp_path, free, reward("[{ after = 1, percent = 50 }]", paid_only=paid_only))
    assert last_charge(priced(tariff, "08:00 board 11\n09:00 board 10")) == second


def test_a_reward_is_rounded_borne_and_named_as_its_rule_says(tmp_path: Path) -> None:
    half = reward("[{ after = 0, percent = 50 }]", rounding="down", round_to=1000, bearer="CITY", networks=("bus",))
    assert bill(priced(little_tariff(tmp_path, half), "08:00 board 10\n09:00 board F")) == dedent(
        """1 complete 3000 | list_fare bus/bus 5000 | reward more -2000 CITY 2000
           2 complete 15000 | list_fare boat/boat 15000"""
    )
    up = reward("[{ after = 0, percent = 50 }]", rounding="up", round_to=9000)
    assert last_charge(priced(little_tariff(tmp_path / "up", up), "08:00 board 10")) == "0"


def test_a_missing_exit_earns_and_gets_no_reward(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path, reward("[{ after = 1, percent = 100 }]"))
    assert costs(priced(tariff, "07:00 enter A\n08:00 enter A\n08:10 leave C")) == ["missing_exit 9000", "complete 9000"]
    assert costs(priced(tariff, "06:00 board 10\n07:00 enter A\n08:00 enter A"))[1] == "missing_exit 9000"


def test_a_journey_over_the_turn_of_the_period_begins_anew(tmp_path: Path) -> None:
    both = joint(worth="percents", percents=(100, 100))
    rule = reward("[{ after = 1, percent = 50 }]", counts="journeys", journeys_of=("joint",))
    tariff = little_tariff(tmp_path, both, rule)
    night = """2026-03-03 08:00 board 10
               2026-03-04 02:20 board 10
               02:40 board 10
               08:00 board 10"""
    assert [charge.split()[1] for charge in costs(priced(tariff, night))] == ["5000", "2500", "5000", "2500"]


def test_a_journey_whose_first_ride_was_free_counts_with_the_ride_that_is_paid(tmp_path: Path) -> None:
    both = joint(worth="percents", percents=(0, 100))
    rule = reward("[{ after = 1, percent = 50 }]", counts="journeys", journeys_of=("joint",))
    day = "08:00 board 10\n08:10 board 10\n10:00 board F\n12:00 board F"
    found = priced(little_tariff(tmp_path, both, rule), day)
    assert [charge.split()[1] for charge in costs(found)] == ["5000", "5000", "7500", "7500"]


def test_a_journey_counts_once_however_many_rides_it_has(tmp_path: Path) -> None:
    both = joint(worth="percents", percents=(100, 100), max_transfers=9)
    rule = reward("[{ after = 2, percent = 50 }]", counts="journeys", journeys_of=("joint",))
    day = "08:00 board 10\n08:30 board 10\n09:00 board 10\n11:00 board 10\n13:00 board 10"
    found = priced(little_tariff(tmp_path, both, rule), day)
    assert [charge.split()[1] for charge in costs(found)] == ["5000", "5000", "5000", "5000", "2500"]


def test_rides_that_another_rule_joins_are_no_journey(tmp_path: Path) -> None:
    rules = [joint(worth="percents", percents=(100, 100), networks=(name,)) for name in ("bus", "boat")]
    rules[1] = rules[1].replace('"joint"', '"boats"')
    rule = reward("[{ after = 2, percent = 50 }]", counts="journeys", journeys_of=("boats",))
    found = priced(little_tariff(tmp_path, *rules, rule), "08:00 board 10\n08:30 board 10\n09:00 board 10")
    assert last_charge(found) == "2500"


def test_spending_is_counted_to_the_last_unit(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path, reward("[{ after = 10001, percent = 50 }]", counts="spending"))
    assert last_charge(priced(tariff, "08:00 board 10\n09:00 board 10\n10:00 board 10")) == "5000"


def test_a_ride_that_a_reward_is_not_for_does_not_count(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path, reward("[{ after = 1, percent = 50 }]", period="week", weekdays=("tue",)))
    day = "2026-03-02 08:00 board 10\n2026-03-03 08:00 board 10\n09:00 board 10\n2026-03-04 08:00 board 10"
    assert [charge.split()[1] for charge in costs(priced(tariff, day))] == ["5000", "5000", "2500", "5000"]
    assert why_not(tariff, day, 4, "more") == "weekdays"


# ---- rebates

MARCH = """2026-03-02 08:00 board 10
           2026-03-10 08:00 board F
           2026-03-30 08:00 board 10"""
MUCH_LATER = "2026-06-01 00:00"


def paid_back(tariff: CompiledTariff, day: str, until: str = MUCH_LATER) -> list[tuple[str, int, int, str, str, str]]:
    lines = [line for line in priced(tariff, day, until).lines if line.kind == "rebate"]
    return [
        (one.leg_id, one.amount, one.funded, one.cause, one.version_id, to_date(one.service_day).isoformat()) for one in lines
    ]


@pytest.mark.parametrize(
    ("tiers", "fields", "amount"),
    [
        ("[{ above = 2, percent = 10 }, { above = 3, percent = 50 }]", {}, -2500),
        ("[{ above = 3, percent = 10 }]", {}, 0),
        ("[{ above = 1, amount = 700 }, { above = 2, amount = 800 }]", {}, -2400),
        ("[{ above = 0, percent = 10, amount = 100 }]", {}, -2800),
        ("[{ above = 0, percent = 1 }]", {"round_to": 100}, -300),
        ("[{ above = 0, percent = 1 }]", {"round_to": 100, "rounding": "down"}, -200),
        ("[{ above = 0, percent = 50 }]", {"maximum": 1000}, -1000),
        ("[{ above = 0, percent = 50 }]", {"at_least": 3}, -12_500),
        ("[{ above = 0, percent = 50 }]", {"at_least": 4}, 0),
    ],
)
def test_a_month_s_rebate_by_rides_goes_by_the_last_tier_reached(tmp_path: Path, tiers: str, fields: dict, amount: int) -> None:
    tariff = little_tariff(tmp_path, rebate(tiers, period="month", by="legs", **fields))
    expected = [("3", amount, -amount, "back/2026-03-01", "now", "2026-04-02")] if amount else []
    assert paid_back(tariff, MARCH) == expected


def test_a_month_s_rebate_is_paid_a_day_after_its_month(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path, rebate("[{ above = 5000, percent = 10 }]", period="month", bearer="operators"))
    assert paid_back(tariff, MARCH, "2026-04-02 02:30") == []
    assert paid_back(tariff, MARCH, "2026-04-02 02:30:00.001") == [("3", -2000, 0, "back/2026-03-01", "now", "2026-04-02")]


def test_a_week_s_rebate_is_paid_a_day_after_its_sunday(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path, rebate("[{ above = 0, percent = 10 }]"))
    assert paid_back(tariff, "2026-03-04 08:00 board 10", "2026-03-10 02:30") == []
    (line,) = paid_back(tariff, "2026-03-04 08:00 board 10", "2026-03-10 02:30:00.001")
    assert line[:2] == ("1", -500)


def test_after_december_comes_january(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path, rebate("[{ above = 0, percent = 10 }]", period="month"))
    december = "2026-12-31 08:00 board 10"
    assert paid_back(tariff, december, "2027-01-02 02:30") == []
    assert [line[:2] for line in paid_back(tariff, december, "2027-01-03 00:00")] == [("1", -500)]


def test_each_week_s_spending_earns_its_own_rebate(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path, rebate("[{ above = 4000, percent = 100 }]", networks=("bus",)))
    weeks = "2026-03-08 08:00 board 10\n2026-03-09 08:00 board 10\n09:00 board F"
    assert [line[:4] for line in paid_back(tariff, weeks)] == [
        ("1", -1000, 1000, "back/2026-03-02"),
        ("2", -1000, 1000, "back/2026-03-09"),
    ]


def test_what_a_later_transfer_takes_off_is_not_spent_and_no_ride_more(tmp_path: Path) -> None:
    pair = joint(worth="pair", off_first=2000)
    by_spending = little_tariff(tmp_path / "a", pair, rebate("[{ above = 0, percent = 50 }]"))
    assert [line[1] for line in paid_back(by_spending, "08:00 board 10\n08:10 board 10")] == [-4000]
    by_rides = little_tariff(tmp_path / "b", pair, rebate("[{ above = 2, percent = 50 }]", by="legs"))
    assert paid_back(by_rides, "08:00 board 10\n08:10 board 10") == []


def test_a_rebate_of_a_traveller_who_comes_back_after_its_week_hangs_on_the_ride_of_then(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path, rebate("[{ above = 0, percent = 10 }]"))
    taps = facts("2026-03-03 08:00 board 10\n2026-03-20 08:00 board F")
    before = fold(tariff, taps[:1], taps[0].at)
    after = fold(tariff, taps[1:], taps[1].at, before.state)
    assert bill(after) == "1 complete -500 | rebate back -500 CITY 500\n2 complete 15000 | list_fare boat/boat 15000"


# ---- passes, books and credit

PASS = {"product_id": "PASS", "kind": "pass", "price": 9001, "networks": ("bus",)}


@pytest.mark.parametrize(
    ("lasts", "last_ride", "days"),
    [
        ("week", "2026-03-08 12:00", 6),
        ("week", "2026-03-09 12:00", 6),
        ("month", "2026-03-31 12:00", 29),
        ("month", "2026-04-01 12:00", 29),
    ],
)
def test_a_pass_for_the_week_or_month_of_its_sale_ends_with_it(tmp_path: Path, lasts: str, last_ride: str, days: int) -> None:
    tariff = little_tariff(tmp_path, row("products", **PASS, lasts=lasts, starts="purchase"))
    found = priced(tariff, f"2026-03-03 08:00 buy PASS\n{last_ride} board 10", "2026-04-20 00:00")
    inside = last_ride.startswith(("2026-03-08", "2026-03-31"))
    assert costs(found)[-1] == ("complete 0" if inside else "complete 5000")
    releases = [line for line in found.lines if line.kind == "release"]
    assert (len(releases), sum(line.funded for line in releases)) == (days, 9001)
    assert {line.bearer for line in releases} == {"product:PASS"}


def test_a_month_s_pass_bought_in_december_or_on_the_last_day_ends_on_the_31st(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path, row("products", **PASS, lasts="month", starts="purchase"))
    rides = "2026-12-31 08:00 buy PASS\n09:00 board 10\n2027-01-01 09:00 board 10"
    assert costs(priced(tariff, rides))[1:] == ["complete 0", "complete 5000"]


def test_a_sale_is_of_its_day_and_version_and_so_is_what_it_pays(tmp_path: Path) -> None:
    later = version("later", row("products", **PASS, days=2), valid_from=WEDNESDAY)
    tariff = little_tariff(tmp_path, row("products", **PASS, days=2), files=later)
    found = priced(tariff, "08:00 buy PASS card=mine wallet:momo\n2026-03-04 08:00 board 10", "2026-03-20 00:00")
    assert [(line.kind, to_date(line.service_day).day, line.version_id, line.amount, line.funded) for line in found.lines] == [
        ("sale", 3, "now", 9001, 0),
        ("list_fare", 4, "later", 5000, 0),
        ("release", 4, "now", 0, 4500),
        ("product", 4, "later", -5000, 0),
        ("release", 5, "now", 0, 4501),
    ]
    sale = found.sales["1"]
    assert (sale.product_id, sale.token_id, sale.media, to_date(sale.service_day).day, sale.version_id) == (
        "PASS", "mine", "wallet:momo", 3, "now"
    )  # fmt: skip


def test_a_sale_that_no_version_of_its_day_knows_is_ignored_and_named(tmp_path: Path) -> None:
    found = priced(little_tariff(tmp_path), "08:00 buy MOON")
    assert found.ignored == {"1": "no version in force sells the product MOON"}


INNER_PASS = {"kind": "pass", "price": 10_000, "networks": ("metro",), "days": 1}


def test_of_several_passes_the_one_that_leaves_least_to_pay_is_used(tmp_path: Path) -> None:
    inner = row("products", product_id="INNER", within_areas=("A", "B"), **INNER_PASS)
    outer = row("products", product_id="OUTER", within_areas=("B", "C"), **INNER_PASS)
    prices = [
        price_for("extension", amount, candidates=(name,)).replace("for-extension", f"for-{name}")
        for name, amount in (("INNER", 4000), ("OUTER", 3000))
    ]
    tariff = little_tariff(tmp_path, inner, outer, *prices)
    found = priced(tariff, "07:00 buy INNER\n07:01 buy OUTER\n08:00 enter A\n08:10 leave C")
    assert bill(found).splitlines()[-1] == "3 complete 3000 | list_fare metro/long 9000 | product product/OUTER -6000"
    swapped = priced(tariff, "07:00 buy OUTER\n07:01 buy INNER\n08:00 enter A\n08:10 leave C")
    assert last_charge(swapped) == "3000"
    assert last_charge(priced(tariff, "07:00 buy INNER\n07:01 buy OUTER\n08:00 enter B\n08:10 leave C")) == "0"


def test_a_coupon_is_taken_before_a_pass_that_leaves_something_to_pay(tmp_path: Path) -> None:
    inner = row("products", product_id="INNER", within_areas=("A", "B"), **INNER_PASS)
    book = row("products", product_id="BOOK", kind="book", price=9000, trips=2, networks=("metro",))
    tariff = little_tariff(tmp_path, inner, book, price_for("extension", 4000))
    rides = "08:00 enter A\n08:10 leave C\n09:00 enter A\n09:10 leave B"
    found = bill(priced(tariff, f"07:00 buy INNER\n07:01 buy BOOK\n{rides}")).splitlines()
    assert [line.rpartition("product/")[2].split()[0] for line in found[-2:]] == ["BOOK", "INNER"]


def test_a_ride_that_no_product_fits_does_not_hide_those_behind_it(tmp_path: Path) -> None:
    metro = row("products", product_id="METRO", **INNER_PASS)
    book = row("products", product_id="BOOK", kind="book", price=9000, trips=1, networks=("bus",))
    tariff = little_tariff(tmp_path, metro, book, row("products", **PASS, days=1))
    day = "07:00 buy METRO\n07:01 buy BOOK\n07:02 buy PASS\n08:00 board 10\n2026-03-04 08:00 board 10\n09:00 board 10"
    assert [charge.split()[1] for charge in costs(priced(tariff, day))] == ["10000", "9000", "9001", "0", "0", "5000"]


def test_of_a_ride_of_three_persons_a_pass_pays_one(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path, row("products", **PASS, days=1))
    found = bill(priced(tariff, "07:00 buy PASS\n08:00 board 10 emv adult x3")).splitlines()[1]
    assert found == "2 complete 10000 | list_fare bus/bus 5000 | companions bus/bus 10000 | product product/PASS -5000"


def test_a_book_ends_with_its_year_even_if_coupons_are_left(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path, row("products", product_id="BOOK", kind="book", price=9000, trips=9, networks=("bus",)))
    days = "2026-03-03 08:00 buy BOOK\n2026-12-31 08:00 board 10\n2027-01-01 02:29 board 10\n02:30 board 10"
    assert costs(priced(tariff, days)) == ["sold 9000", "complete 0", "complete 0", "complete 5000"]


# ---- taps


def test_an_unknown_leg_belongs_to_no_version_where_none_is_in_force(tmp_path: Path) -> None:
    (leg,) = priced(little_tariff(tmp_path), "2025-12-31 07:00 board 10").legs.values()
    assert (leg.version_id, leg.net, to_date(leg.service_day).isoformat()) == ("", 0, "2025-12-31")


def test_an_unknown_leg_belongs_to_the_version_of_its_day(tmp_path: Path) -> None:
    (leg,) = priced(little_tariff(tmp_path), "2026-03-04 02:29 board LOST").legs.values()
    assert (leg.version_id, leg.network_id, to_date(leg.service_day).isoformat()) == ("now", None, "2026-03-03")


def test_an_open_leg_has_cost_nothing_yet_and_a_settled_one_holds_nothing(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path, metro='hold = "highest_fare"\n')
    (leg,) = priced(tariff, "08:00 enter A").legs.values()
    assert (leg.net, leg.hold) == (0, 9000)
    (leg,) = priced(tariff, "08:00 enter A\n08:10 leave B").legs.values()
    assert (leg.net, leg.hold) == (6000, 0)


def test_a_rule_of_a_route_holds_for_rides_that_end_with_an_exit_too(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path, MINUS + 'routes = ["M"]\n')
    assert costs(priced(tariff, "08:00 enter M@A\n08:10 leave B")) == ["complete 5000"]
    assert costs(priced(tariff, "08:00 enter A\n08:10 leave M@B")) == ["complete 6000"]


def test_an_exit_without_entry_may_have_a_price_of_its_own_and_so_may_a_missing_exit_and_a_hold(tmp_path: Path) -> None:
    prices = [price_for(use, amount) for use, amount in (("missing_entry", 7000), ("missing_exit", 8000), ("hold", 2000))]
    rules = "".join(f'{field} = "priced"\n' for field in ("missing_entry", "missing_exit", "hold"))
    tariff = little_tariff(tmp_path, *prices, metro=rules)
    assert bill(priced(tariff, "06:00 leave A\n07:00 enter A\n08:00 enter A\n08:10 leave B")) == dedent(
        """1 missing_entry 7000 | list_fare gates/missing_entry 7000
           2 missing_exit 8000 | hold gates/hold 2000 | hold gates/hold -2000 | list_fare gates/missing_exit 8000
           3 complete 6000 | hold gates/hold 2000 | hold gates/hold -2000 | list_fare metro/short 6000"""
    )


def test_a_deposit_is_taken_whole_whatever_discounts_hold_and_none_where_a_pass_pays(tmp_path: Path) -> None:
    product = row("products", product_id="METRO", **INNER_PASS)
    tariff = little_tariff(tmp_path, MINUS, product, price_for("hold", 2000), metro='hold = "priced"\n')
    assert costs(priced(tariff, "07:00 enter A")) == ["open 2000"]
    assert costs(priced(tariff, "06:00 buy METRO\n07:00 enter A")) == ["sold 10000", "open 0"]


def test_leaving_where_one_entered_may_have_a_price_by_the_length_of_the_stay(tmp_path: Path) -> None:
    rows = [
        price_for("same_stop", 500, stay_up_to_minutes=10).replace("for-same_stop", "short-stay"),
        price_for("same_stop", 800, stay_over_minutes=10, stay_up_to_minutes=20).replace("for-same_stop", "longer-stay"),
    ]
    tariff = little_tariff(tmp_path, *rows)
    stays = {"07:10": "500", "07:10:00.001": "800", "07:20": "800", "07:20:00.001": "6000"}
    for left, charge in stays.items():
        assert last_charge(priced(tariff, f"07:00 enter A\n{left} leave A")) == charge
    assert last_charge(priced(tariff, "07:00 enter A\n07:05 leave B")) == "6000"


def test_a_late_exit_of_another_ride_does_not_hide_the_one_it_closes(tmp_path: Path) -> None:
    two = "07:00 enter A card=one\n07:01 enter A card=two\n11:00 leave B card=two\n11:01 leave B card=one"
    found = priced(little_tariff(tmp_path), two)
    assert [leg.status for leg in found.legs.values()] == ["late_exit", "late_exit"]
    assert [leg.to_stop_id for leg in found.legs.values()] == ["B", "B"]


def test_a_late_exit_leaves_an_unknown_ride_unknown(tmp_path: Path) -> None:
    found = priced(little_tariff(tmp_path), "07:00 enter M@X\n11:00 leave M@A")
    (leg,) = found.legs.values()
    assert (leg.status, leg.to_stop_id) == ("unknown", "A")


def test_of_several_overdue_rides_the_oldest_is_closed(tmp_path: Path) -> None:
    found = priced(little_tariff(tmp_path), "07:00 enter A\n10:30 enter A\n14:00 leave B")
    assert [leg.status for leg in found.legs.values()] == ["late_exit", "missing_exit"]


def test_a_discount_may_be_not_for_rides_with_a_missing_tap(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path, MINUS + "missing = false\n")
    assert costs(priced(tariff, "07:00 enter A\n08:00 enter A\n08:10 leave B")) == ["missing_exit 9000", "complete 5000"]


@pytest.mark.parametrize(
    ("fields", "charge"),
    [
        ({"value": 17.9}, "4105"),
        ({"value": 17.9, "round_to": 100}, "4100"),
        ({"value": 17.9, "round_to": 100, "rounding": "down"}, "4200"),
        ({"value": 17.9, "round_to": 100, "round": "left"}, "4100"),
        ({"value": 17.9, "round_to": 100, "round": "left", "rounding": "up"}, "4200"),
        ({"value": 10, "round_to": 1000, "rounding": "up"}, "4000"),
        ({"value": 90, "round_to": 3000, "rounding": "up"}, "0"),
        ({"value": 10, "round_to": 9000, "round": "left", "rounding": "up"}, "5000"),
    ],
)
def test_a_per_cent_is_exact_until_what_comes_off_or_what_is_left_is_rounded(tmp_path: Path, fields: dict, charge: str) -> None:
    rule = row("discounts", rule_id="less", kind="percent", bearer="CITY", **fields)
    assert last_charge(priced(little_tariff(tmp_path, rule), "08:00 board 10")) == charge


def test_a_quota_that_is_used_up_is_named(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path, MINUS + "quota_per_day = 1\n")
    assert why_not(tariff, "08:00 board 10\n09:00 board 10", 2, "less") == "quota_per_day"


def test_a_surcharge_stands_outside_discounts_passes_and_caps_on_fares(tmp_path: Path) -> None:
    fee = row("surcharges", rule_id="fee", amount=700, networks=("bus",), weekdays=("tue",))
    cap = row("caps", rule_id="day", period="service_day", amount=4000)
    tariff = little_tariff(tmp_path, fee, MINUS, cap, row("products", **PASS, days=1))
    assert bill(priced(tariff, "08:00 board 10\n09:00 board 10")) == dedent(
        """1 complete 4700 | list_fare bus/bus 5000 | surcharge fee 700 | discount less -1000 CITY 1000
           2 complete 700 | list_fare bus/bus 5000 | surcharge fee 700 | discount less -1000 CITY 1000 | cap day -4000"""
    )
    assert last_charge(priced(tariff, "08:00 buy PASS\n09:00 board 10")) == "700"
    assert last_charge(priced(tariff, "2026-03-04 09:00 board 10")) == "4000"


def test_surcharges_have_caps_of_their_own(tmp_path: Path) -> None:
    fees = [row("surcharges", rule_id=f"fee-{amount}", amount=amount) for amount in (700, 500)]
    cap = row("caps", rule_id="fees", period="service_day", amount=2000, counts="surcharge", networks=("bus",))
    tariff = little_tariff(tmp_path, *fees, cap)
    assert [charge.split()[1] for charge in costs(priced(tariff, "08:00 board 10\n09:00 board 10\n10:00 board F"))] == [
        "6200", "5800", "16200"
    ]  # fmt: skip


@pytest.mark.parametrize(("joins", "charge"), [("true", "2000"), ("false", "8000")])
def test_a_ride_without_exit_continues_rides_priced_as_one_where_its_rule_says_so(
    tmp_path: Path, joins: str, charge: str
) -> None:
    metro = f'missing_joins = {joins}\nmissing_exit = "priced"\n'
    tariff = little_tariff(tmp_path, joint(worth="through", networks=("metro",)), price_for("missing_exit", 8000), metro=metro)
    found = priced(tariff, "07:00 enter A\n07:10 leave B\n07:20 enter B\n12:00 board 10")
    # two rides as one cost at least the 8,000 of the second, of which the first has paid 6,000
    assert costs(found)[1] == f"missing_exit {charge}"


def test_a_surcharge_that_does_not_act_says_why(tmp_path: Path) -> None:
    fee = row("surcharges", rule_id="fee", amount=700, weekdays=("wed",))
    also = row("surcharges", rule_id="also", amount=300)
    assert why_not(little_tariff(tmp_path, fee, also), "08:00 board 10", 1, "fee") == "weekdays"


# ---- prices

METRO_RIDE = "08:00 enter M@{}\n08:30 leave M@{}"


def metro_charge(tariff: CompiledTariff, start: str, end: str, given: Given | None = None) -> str:
    found = bringing(tariff, METRO_RIDE.format(start, end), None, given)
    (leg,) = found.legs.values()
    return leg.reason or last_charge(found)


BANDS = "bands = [{ up_to = 3.2, amount = 100 }, { below = 8, amount = 200 }, { amount = 300 }]\n"


@pytest.mark.parametrize(
    ("metres", "charge"), [(0, "100"), (3200, "100"), (3201, "200"), (7999, "200"), (8000, "300"), (99_000, "300")]
)
def test_up_to_includes_its_end_and_below_does_not(tmp_path: Path, metres: int, charge: str) -> None:
    assert metro_charge(little_tariff(tmp_path, fare(by="distance") + BANDS), "A", "B", km(metres)) == charge


def test_beyond_the_last_band_and_in_one_without_an_amount_the_price_is_unknown(tmp_path: Path) -> None:
    plain = FARES_WITHOUT_METRO
    short = fare(by="distance") + "bands = [{ up_to = 2, amount = 100 }, { up_to = 3 }]\n"
    tariff = little_tariff(tmp_path, short, files=plain)
    reason = "no rule of now gives a fare on metro from A to B"
    assert [metro_charge(tariff, "A", "B", km(metres)) for metres in (2000, 2001, 3001)] == ["100", reason, reason]


@pytest.mark.parametrize(
    ("fields", "metres", "charge"),
    [
        ({"base": 500, "per_unit": 100}, 2250, "725"),
        ({"base": 500, "per_unit": 100, "round_to": 10}, 2250, "730"),
        ({"base": 500, "per_unit": 100, "round_to": 10, "rounding": "down"}, 2259, "720"),
        ({"base": 500, "per_unit": 100, "unit": 1}, 2500, "800"),
        ({"base": 500, "per_unit": 100, "unit": 1, "unit_rounding": "down"}, 2999, "700"),
        ({"base": 500, "per_unit": 100, "unit": 1, "unit_rounding": "up"}, 2001, "800"),
        ({"base": 500, "per_unit": 100, "counts_at_most": 2}, 9000, "700"),
        ({"base": 500, "per_unit": 100, "minimum": 900}, 2000, "900"),
        ({"base": 500, "per_unit": 100, "maximum": 650}, 2000, "650"),
        ({"base": 500, "per_unit": 100, "minimum": 600, "maximum": 900}, 2000, "700"),
    ],
)
def test_a_base_and_so_much_a_kilometre_are_counted_rounded_and_bounded(
    tmp_path: Path, fields: dict, metres: int, charge: str
) -> None:
    assert metro_charge(little_tariff(tmp_path, fare(by="distance", **fields)), "A", "B", km(metres)) == charge


@pytest.mark.parametrize(
    ("metres", "charge"),
    [
        (10_000, "1250"),
        (10_001, "1350"),
        (15_000, "1350"),
        (15_001, "1450"),
        (50_000, "2050"),
        (50_001, "2150"),
        (58_001, "2250"),
    ],
)
def test_each_step_begun_beyond_a_distance_costs_its_amount(tmp_path: Path, metres: int, charge: str) -> None:
    steps = "steps = [{ from = 10, step = 5, amount = 100, to = 50 }, { from = 50, step = 8, amount = 100 }]\n"
    assert metro_charge(little_tariff(tmp_path, fare(by="distance", base=1250) + steps), "A", "B", km(metres)) == charge


@pytest.mark.parametrize(
    ("start", "end", "given", "charge"),
    [
        ("A", "C", None, "3000"),
        ("X", "A", None, "4000"),
        ("A", "A", None, "1000"),
        ("A", "C", Given(stops=5), "6000"),
        ("A", "S1", None, "missing fact: stops_travelled"),
        ("S1", "A", None, "missing fact: stops_travelled"),
    ],
)
def test_stops_are_counted_along_the_route_unless_the_tap_says_how_many(
    tmp_path: Path, start: str, end: str, given: Given | None, charge: str
) -> None:
    assert metro_charge(little_tariff(tmp_path, fare(by="stops", base=1000, per_unit=1000)), start, end, given) == charge


def test_the_length_of_the_route_is_what_the_tap_says(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path, fare(by="route_length") + BANDS)
    assert metro_charge(tariff, "A", "B", Given(route_length_m=5000)) == "200"
    assert metro_charge(tariff, "A", "B") == "missing fact: route_length_km"


DISTANCES = {"network/distances.csv": "from_stop_id,to_stop_id,km\nA,B,2\n"}


def test_a_distance_is_the_tap_s_or_the_table_s_in_both_directions_or_a_straight_line(tmp_path: Path) -> None:
    by_km = {"by": "distance", "base": 0, "per_unit": 1000}
    table = little_tariff(tmp_path / "table", fare(**by_km), files=DISTANCES)
    charges = [metro_charge(table, *ride) for ride in (("A", "B"), ("B", "A"), ("A", "C"), ("A", "B", km(7000)))]
    assert charges == ["2000", "2000", "missing fact: distance_km", "7000"]
    line = little_tariff(tmp_path / "line", fare(**by_km, measure="straight_line"), files=DISTANCES)
    assert [metro_charge(line, *ride) for ride in (("A", "B"), ("B", "C"), ("C", "B"))] == ["2000", "1559", "1559"]
    assert metro_charge(line, "B", "C", Given(position=(10.780, 106.700))) == "0"
    assert metro_charge(line, "B", "nowhere") == "missing fact: distance_km"


@pytest.mark.parametrize(("start", "end", "charge"), [("A", "A", "100"), ("B", "A", "100"), ("B", "C", "250"), ("A", "C", "400")])
def test_a_price_between_zones_goes_by_the_lower_and_the_higher_and_a_boundary_by_the_cheaper(
    tmp_path: Path, start: str, end: str, charge: str
) -> None:
    amounts = '[leg_prices.amounts]\n"1" = 100\n"2" = 120\n"1-2" = 200\n"2-3" = 250\n"1-3" = 400\n'
    assert metro_charge(little_tariff(tmp_path, fare(by="zones") + amounts, files=ZONES), start, end) == charge


def test_without_a_zone_or_a_stop_a_price_by_them_is_a_missing_fact(tmp_path: Path) -> None:
    by_zone = little_tariff(tmp_path / "zones", fare(by="zones") + '[leg_prices.amounts]\n"1" = 100\n', files=ZONES)
    assert [metro_charge(by_zone, *ride) for ride in (("A", "X"), ("X", "A"))] == ["missing fact: zone"] * 2
    counted = little_tariff(tmp_path / "count", fare(by="zone_count") + BANDS, files=ZONES)
    assert metro_charge(counted, "A", "X") == "missing fact: zone"
    pairs = little_tariff(tmp_path / "pairs", fare(("bus",), by="pairs", pairs=(("X", "S1", 300),)))
    assert priced(pairs, "08:00 board 10").legs["1"].reason == "missing fact: stop"


@pytest.mark.parametrize(("symmetric", "back"), [(True, "490"), (False, "6000")])
def test_a_pair_s_price_holds_in_both_directions_where_it_says_so(tmp_path: Path, symmetric: bool, back: str) -> None:
    rule = fare(by="pairs", pairs=(("C", "A", 700), ("A", "B", 490)), symmetric=symmetric)
    tariff = little_tariff(tmp_path, rule)
    assert [metro_charge(tariff, *ride) for ride in (("A", "B"), ("B", "A"), ("C", "A"))] == ["490", back, "700"]


def test_a_list_fare_that_the_tap_brings_along_is_the_fare(tmp_path: Path) -> None:
    assert bill(bringing(little_tariff(tmp_path), "08:00 board 10", Given(list_fare=1234))) == (
        "1 complete 1234 | list_fare given/list_fare 1234"
    )


def test_of_rows_that_fit_the_highest_priority_counts_and_then_the_cheapest_and_the_first(tmp_path: Path) -> None:
    def priced_by(*rows: tuple[str, int, int]) -> str:
        found = [
            row("leg_prices", rule_id=name, networks=("bus",), by="flat", amount=amount, priority=priority)
            for name, amount, priority in rows
        ]
        return bill(priced(little_tariff(tmp_path, *found), "08:00 board 10")).rpartition("list_fare ")[2]

    assert priced_by(("low", 1, 1), ("high", 900, 2)) == "high 900"
    assert priced_by(("dear", 900, 1), ("cheap", 800, 1)) == "cheap 800"
    assert priced_by(("first", 800, 1), ("second", 800, 1)) == "first 800"
    assert priced_by(("dearer-than-the-table", 9000, 0)) == "bus/bus 5000"
    assert priced_by(("cheaper", 4000, 0)) == "cheaper 4000"
    assert priced_by(("lower-than-the-table", 1, -1)) == "bus/bus 5000"


def test_a_row_that_lacks_a_fact_leaves_the_price_unknown_unless_a_higher_one_gives_it(tmp_path: Path) -> None:
    lacking = row("leg_prices", rule_id="by-km", networks=("bus",), by="distance", base=1, priority=2)
    for priority, charge in ((1, "?"), (2, "?"), (3, "700")):
        flat = fare(("bus",), by="flat", amount=700).replace("priority = 1", f"priority = {priority}")
        assert last_charge(priced(little_tariff(tmp_path / str(priority), lacking, flat), "08:00 board 10")) == charge


TIMED = {
    **HOURS,
    "now/fare_products.txt": (
        "fare_product_id,fare_product_name,rider_category_id,fare_media_id,amount,currency\n"
        "peak,P,,,6000,VND\npeak,P,student,,3000,VND\npeak,P,,cash,7000,VND\npeak,P,student,cash,3500,VND\noff,O,,,4000,VND\n"
    ),
    "now/fare_leg_rules.txt": (
        "leg_group_id,network_id,from_area_id,to_area_id,from_timeframe_group_id,to_timeframe_group_id,fare_product_id,rule_priority\n"
        "m,metro,,,peak,,peak,1\nm,metro,,,,early,off,2\nm,metro,,,,,off,0\n"
    ),
}


@pytest.mark.parametrize(
    ("enters", "leaves", "rider", "charge"),
    [
        ("07:00", "07:30", "emv adult", "6000"),
        ("07:19:59.999", "07:30", "emv adult", "6000"),
        ("07:20", "07:30", "emv adult", "4000"),
        ("06:50", "07:10", "emv adult", "4000"),
        ("06:50", "06:59", "emv adult", "4000"),
        ("07:00", "07:30", "emv student", "3000"),
        ("07:00", "07:30", "cash adult", "7000"),
        ("07:00", "07:30", "cash student", "3500"),
        ("07:00", "07:30", "wallet:momo student", "3000"),
    ],
)
def test_gtfs_fares_go_by_the_hours_of_both_taps_and_the_most_specific_product(
    tmp_path: Path, enters: str, leaves: str, rider: str, charge: str
) -> None:
    tariff = little_tariff(tmp_path, files=TIMED)
    assert last_charge(priced(tariff, f"{enters} enter A {rider}\n{leaves} leave B {rider}")) == charge


@pytest.mark.parametrize(
    ("rule", "highest", "lowest"),
    [
        (fare(by="flat", amount=700), "700", "700"),
        (fare(by="pairs", pairs=(("A", "B", 400), ("A", "C", 900), ("C", "B", 1200))), "900", "400"),
        (fare(by="pairs", pairs=(("A", "B", 400), ("C", "A", 900), ("C", "B", 1200)), symmetric=True), "900", "400"),
        (fare(by="distance") + BANDS, "300", "100"),
        (fare(by="distance", minimum=150, maximum=250) + BANDS, "250", "150"),
        (fare(by="zones") + '[leg_prices.amounts]\n"1" = 100\n"2" = 50\n"1-3" = 400\n"2-3" = 900\n', "400", "100"),
        (
            fare(by="flat", amount=700, from_areas=("A",))
            + fare(by="flat", amount=900, from_areas=("B",)).replace('"fare"', '"b"'),
            "700",
            "700",
        ),
        (fare(by="flat", amount=700) + fare(by="flat", amount=900, weekdays=("wed",)).replace('"fare"', '"b"'), "700", "700"),
        (fare(by="flat", amount=700) + fare(by="flat", amount=900, timeframes=("peak",)).replace('"fare"', '"b"'), "900", "700"),
        (fare(by="flat", amount=700) + fare(by="flat", amount=900, timeframes=("late",)).replace('"fare"', '"b"'), "700", "700"),
    ],
)
def test_a_missing_exit_costs_the_dearest_or_cheapest_that_any_row_gives_from_there(
    tmp_path: Path, rule: str, highest: str, lowest: str
) -> None:
    for which, charge in (("highest", highest), ("lowest", lowest)):
        files = {**ZONES, **HOURS, **FARES_WITHOUT_METRO}
        tariff = little_tariff(tmp_path / which, rule, files=files, metro=f'missing_exit = "{which}_fare"\n')
        assert costs(priced(tariff, "07:10 enter A", "2026-03-03 20:00")) == [f"missing_exit {charge}"]


@pytest.mark.parametrize(
    ("rule", "highest", "lowest"),
    [
        (fare(by="pairs", pairs=(("A", "B", 400), ("C", "B", 900), ("B", "C", 1200))), "900", "400"),
        (fare(by="pairs", pairs=(("A", "B", 400), ("B", "C", 1200)), symmetric=True), "1200", "400"),
        (
            fare(by="flat", amount=700, to_areas=("B",)) + fare(by="flat", amount=900, to_areas=("A",)).replace('"fare"', '"b"'),
            "700",
            "700",
        ),
        (
            fare(by="flat", amount=700) + fare(by="flat", amount=900, exit_timeframes=("peak",)).replace('"fare"', '"b"'),
            "900",
            "700",
        ),
        (
            fare(by="flat", amount=700) + fare(by="flat", amount=900, exit_timeframes=("late",)).replace('"fare"', '"b"'),
            "700",
            "700",
        ),
    ],
)
def test_a_missing_entry_costs_the_dearest_or_cheapest_that_any_row_gives_to_there(
    tmp_path: Path, rule: str, highest: str, lowest: str
) -> None:
    for which, charge in (("highest", highest), ("lowest", lowest)):
        files = {**HOURS, **FARES_WITHOUT_METRO}
        tariff = little_tariff(tmp_path / which, rule, files=files, metro=f'missing_entry = "{which}_fare"\n')
        assert costs(priced(tariff, "07:10 leave B")) == [f"missing_entry {charge}"]


def test_rides_over_zones_cost_the_cheapest_span_that_every_end_lies_in(tmp_path: Path) -> None:
    zones = fare(by="zone_count") + "bands = [{ up_to = 1, amount = 2000 }, { up_to = 2, amount = 3500 }, { amount = 4800 }]\n"
    tariff = little_tariff(tmp_path, zones, joint(worth="zones", max_transfers=9), files=ZONES)
    day = """08:00 enter A
             08:10 leave B
             08:20 enter B
             08:30 leave A
             08:40 enter B
             08:50 leave C"""
    assert costs(priced(tariff, day)) == ["complete 2000", "complete 0", "complete 2800"]
    short = "08:00 enter B\n08:10 leave C\n08:20 enter B\n08:30 leave B"
    assert costs(priced(tariff, short)) == ["complete 3500", "complete 0"]
    # from zone 3 to the boundary of 1 and 2, though the first entry and the last exit are one place
    apart = "08:00 enter B\n08:10 leave B\n08:20 enter C\n08:30 leave B"
    assert costs(priced(tariff, apart)) == ["complete 2000", "complete 1500"]
    lost = "08:00 enter A\n08:10 leave B\n08:20 enter M@B\n08:30 leave M@X"
    assert costs(priced(tariff, lost))[1] == "unknown ?"


GTFS = "leg_group_id,network_id,from_area_id,to_area_id,fare_product_id"


def test_without_priorities_an_empty_field_leaves_out_what_other_rows_name(tmp_path: Path) -> None:
    rows = "\n".join([GTFS, ",metro,A,,short", ",metro,,B,long", ",metro,,,boat", "rest,,,,bus", "bus,bus,,,boat", ""])
    tariff = little_tariff(tmp_path / "without", files={"now/fare_leg_rules.txt": rows})
    unknown = "no rule of now gives a fare on metro from A to B"
    charges = [metro_charge(tariff, *ride) for ride in (("A", "C"), ("C", "B"), ("C", "C"), ("A", "B"))]
    assert charges == ["6000", "9000", "15000", unknown]
    assert bill(priced(tariff, "08:00 board 10\n09:00 board F")) == dedent(
        """1 complete 15000 | list_fare bus/boat 15000
           2 complete 5000 | list_fare rest/bus 5000"""
    )
    ranked = "".join(f"{line},{'rule_priority' if line == GTFS else 0}\n" for line in rows.splitlines())
    with_them = little_tariff(tmp_path / "with", files={"now/fare_leg_rules.txt": ranked})
    assert [metro_charge(with_them, *ride) for ride in (("A", "C"), ("C", "C"), ("A", "B"))] == ["5000", "5000", "5000"]


def test_the_dearest_fare_goes_in_the_direction_of_the_ride(tmp_path: Path) -> None:
    rows = "\n".join([GTFS, "m,metro,A,B,short", "m,metro,C,B,long", "m,metro,B,C,boat", "bus,bus,,,bus", ""])
    tariff = little_tariff(tmp_path, files={"now/fare_leg_rules.txt": rows})
    assert costs(priced(tariff, "08:00 leave B")) == ["missing_entry 9000"]
    assert costs(priced(tariff, "08:00 enter B", "2026-03-03 20:00")) == ["missing_exit 15000"]


def test_the_dearest_fare_from_a_stop_that_a_row_names(tmp_path: Path) -> None:
    rows = [
        fare(by="flat", amount=700, from_areas=("X",)),
        fare(by="flat", amount=900, from_areas=("S1",)).replace('"fare"', '"b"'),
    ]
    tariff = little_tariff(tmp_path, *rows, files=FARES_WITHOUT_METRO)
    assert costs(priced(tariff, "08:00 enter M@X", "2026-03-03 20:00")) == ["missing_exit 700"]


def test_zones_that_taps_bring_along_are_those_of_a_chain_too(tmp_path: Path) -> None:
    zones = fare(("bus",), by="zone_count") + "bands = [{ up_to = 1, amount = 2000 }, { up_to = 2, amount = 3500 }]\n"
    exits = row("tap_rules", rule_id="doors", networks=("charter",), taps="entry_exit", longest_stay_minutes=90)
    tariff = little_tariff(tmp_path, zones.replace('"bus"', '"charter"'), exits, joint(worth="zones"))
    places = [Given(areas=(name,)) for name in ("7", "7", "7", "8")]
    day = "08:00 enter P@A\n08:10 leave P@A\n08:20 enter P@A\n08:30 leave P@A"
    assert costs(bringing(tariff, day, *places)) == ["complete 2000", "complete 1500"]


def test_zones_that_no_row_prices_leave_rides_over_them_unknown(tmp_path: Path) -> None:
    rows = fare(by="zones") + '[leg_prices.amounts]\n"1" = 100\n"2-3" = 900\n'
    tariff = little_tariff(tmp_path, rows, joint(worth="zones"), files=ZONES | FARES_WITHOUT_METRO)
    near, far = (f"08:00 enter A\n08:10 leave B\n08:20 enter B\n08:30 leave {end}" for end in "BC")
    assert costs(priced(tariff, near)) == ["complete 100", "complete 0"]
    assert costs(priced(tariff, far)) == ["complete 100", "unknown ?"]


STOPS_IN_ONE_AREA = {
    "network/areas.txt": "area_id,area_name\nZ,Everything\n",
    "network/stop_areas.txt": "area_id,stop_id\nZ,A\nZ,B\nZ,C\n",
    **FARES_WITHOUT_METRO,
}


@pytest.mark.parametrize(
    ("condition", "start", "end", "acts"),
    [
        ({"within_areas": ("A", "B")}, "A", "B", True),
        ({"within_areas": ("A", "B")}, "A", "C", False),
        ({"within_areas": ("A", "B")}, "C", "A", False),
        ({"within_areas": ("Z",)}, "C", "A", True),
        ({"except_areas": ("A",)}, "A", "B", False),
        ({"except_areas": ("A",)}, "B", "A", False),
        ({"except_areas": ("A",)}, "B", "C", True),
        ({"either_areas": ("A",)}, "A", "B", True),
        ({"either_areas": ("A",)}, "B", "A", True),
        ({"either_areas": ("A",)}, "B", "C", False),
        ({"from_areas": ("A",)}, "A", "B", True),
        ({"from_areas": ("A",)}, "B", "A", False),
        ({"to_areas": ("A",)}, "B", "A", True),
        ({"to_areas": ("A",)}, "A", "B", False),
    ],
)
def test_a_place_of_a_rule_may_be_a_stop_of_an_area(tmp_path: Path, condition: dict, start: str, end: str, acts: bool) -> None:
    rule = row("discounts", rule_id="some", kind="amount", value=1000, bearer="CITY", **condition)
    tariff = little_tariff(tmp_path, fare(by="flat", amount=6000), rule, files=STOPS_IN_ONE_AREA)
    assert metro_charge(tariff, start, end) == ("5000" if acts else "6000")


# ---- amounts


@pytest.mark.parametrize(
    ("exact", "rounding", "to", "amount"),
    [
        ("1/2", "half_up", 1, 1),
        ("-1/2", "half_up", 1, -1),
        ("1/2", "half_even", 1, 0),
        ("3/2", "half_even", 1, 2),
        ("5/2", "half_even", 1, 2),
        ("3/4", "half_even", 1, 1),
        ("1/4", "half_even", 1, 0),
        ("1/10", "up", 1, 1),
        ("-1/10", "up", 1, -1),
        ("9/10", "down", 1, 0),
        ("-9/10", "down", 1, 0),
        ("250", "half_up", 100, 300),
        ("250", "half_even", 100, 200),
        ("249", "half_up", 100, 200),
        ("300", "up", 100, 300),
    ],
)
def test_an_amount_is_rounded_to_multiples_as_its_rule_says(exact: str, rounding: str, to: int, amount: int) -> None:
    assert rounded_to(Fraction(exact), rounding, to) == amount


@pytest.mark.parametrize(
    ("amount", "currency", "language", "digits", "text"),
    [
        (1_234_567, "GBP", "en", 2, "12,345.67 GBP"),
        (1_234_567, "GBP", "vi", 2, "12.345,67 GBP"),
        (-5, "GBP", "en", 2, "−0.05 GBP"),
        (5, "GBP", "vi", 2, "0,05 GBP"),
        (1_234_567, "KRW", "en", 0, "1,234,567 KRW"),
        (1_234_567, "KRW", "vi", 0, "1.234.567 KRW"),
    ],
)
def test_riders_read_the_decimals_of_their_currency(amount: int, currency: str, language: str, digits: int, text: str) -> None:
    assert format_amount(amount, currency, language, digits) == text


def test_what_one_fact_does_twice_to_a_leg_by_one_rule_is_one_line(hcmc_adopted: CompiledTariff) -> None:
    work = Fold(hcmc_adopted, State())
    leg = Leg("leg", "token", "emv", "adult", "bus", "1", None, None, None, 0, None, 20514, "proposal-2026-03", "complete")
    work.cause = "first"
    work.add_line(leg, "cap", "daily", -4, "operators")
    work.add_line(leg, "cap", "other", -1, "operators")
    work.add_line(leg, "cap", "daily", 3, "operators")
    work.cause = "second"
    work.add_line(leg, "cap", "daily", -2, "city")
    work.add_line(leg, "cap", "other", -5, "city")
    work.add_line(leg, "cap", "other", 5, "city")
    assert [(line.cause, line.rule_id, line.amount, line.funded) for line in work.lines] == [
        ("first", "daily", -1, 0),
        ("first", "other", -1, 0),
        ("second", "daily", -2, 2),
    ]
