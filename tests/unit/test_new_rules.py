"""What the rules of other cities cost, each by a little tariff written for one question, and what random tariffs once found."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from fare_engine.errors import TariffError
from fare_engine.pricing.fold import Folded, fold
from fare_engine.pricing.lines import line_id
from fare_engine.service_day import to_day
from tests.builders import bill, costs, dedent, facts, little_tariff, priced, row, version

WEDNESDAY = date(2026, 3, 4)


def instead(networks: tuple[str, ...], **fields: object) -> str:
    """A price of rides that stands before those of the tables."""
    return row("leg_prices", rule_id=f"price-{'-'.join(networks)}", networks=networks, priority=1, **fields)


def price_for(use: str, amount: int, **fields: object) -> str:
    return row("leg_prices", rule_id=f"for-{use}", use=use, by="flat", amount=amount, **fields)


def best_of(period: str, *candidates: tuple[str, int], **fields: object) -> str:
    found = row("best_of", rule_id="best", period=period, **fields)
    for name, amount in candidates:
        found += f"[[best_of.candidates]]\ncandidate_id = '{name}'\nname = {{ vi = '', en = '' }}\namount = {amount}\n"
    return found


def rebate(tiers: str, **fields: object) -> str:
    return row("rebates", rule_id="back", period="week", bearer="CITY", **fields) + f"tiers = {tiers}\n"


def reward(counts: str, steps: str, **fields: object) -> str:
    return row("rewards", rule_id="more", period="service_day", counts=counts, **fields) + f"steps = {steps}\n"


# ---- credit and versions


def test_money_loaded_before_fares_rise_buys_rides_at_the_old_price_as_long_as_it_lasts(tmp_path: Path) -> None:
    money = row("products", product_id="MONEY", kind="credit", price=12_000, keeps_price=True, networks=("bus",))
    dear = version("dear", money, instead(("bus",), by="flat", amount=9000), valid_from=WEDNESDAY)
    rides = "\n".join(f"2026-03-04 {hour}:00 board 10" for hour in ("08", "09", "10", "11"))
    # 12,000 pay two rides and a part of the third, which is priced by what is left before it
    found = priced(little_tariff(tmp_path, money, files=dear), f"2026-03-03 08:00 buy MONEY\n{rides}")
    assert costs(found) == ["sold 0", "complete 5000", "complete 5000", "complete 5000", "complete 9000"]


def test_credit_that_does_not_keep_its_price_changes_no_fare(tmp_path: Path) -> None:
    money = row("products", product_id="MONEY", kind="credit", price=12_000, networks=("bus",))
    dear = version("dear", money, instead(("bus",), by="flat", amount=9000), valid_from=WEDNESDAY)
    found = priced(little_tariff(tmp_path, money, files=dear), "08:00 buy MONEY\n09:00 board 10\n2026-03-04 09:00 board 10")
    assert costs(found) == ["sold 0", "complete 5000", "complete 9000"]


def test_credit_on_a_card_is_not_used_up_by_rides_with_another(tmp_path: Path) -> None:
    money = row("products", product_id="MONEY", kind="credit", price=5000, keeps_price=True, networks=("bus",))
    dear = version("dear", money, instead(("bus",), by="flat", amount=9000), valid_from=WEDNESDAY)
    day = """08:00 buy MONEY card=loaded
             09:00 board 10 card=other
             2026-03-04 09:00 board 10 card=loaded"""
    assert costs(priced(little_tariff(tmp_path, money, files=dear), day)) == ["sold 0", "complete 5000", "complete 5000"]


@pytest.mark.parametrize(("owner", "fare"), [("entry", 6000), ("exit", 8000)])
def test_a_ride_over_the_change_of_a_tariff_belongs_to_the_tap_that_the_rule_names(tmp_path: Path, owner: str, fare: int) -> None:
    metro = f'owner = "{owner}"\n'
    dear = version("dear", instead(("metro",), by="flat", amount=8000), metro=metro, valid_from=WEDNESDAY)
    found = priced(little_tariff(tmp_path, metro=metro, files=dear), "2026-03-04 02:20 enter A\n02:40 leave B")
    assert costs(found) == [f"complete {fare}"]


@pytest.mark.parametrize(("owner", "fare"), [("first_leg", 2500), ("leg", 1000)])
def test_a_group_over_the_change_of_a_tariff_costs_by_the_leg_that_the_rule_names(tmp_path: Path, owner: str, fare: int) -> None:
    def joint(second: int) -> str:
        window = {"window_minutes": 60, "window_from": "entry"}
        return row("joining_rules", rule_id="joint", worth="percents", percents=(100, second), owner=owner, **window)

    later = version("later", joint(20), valid_from=WEDNESDAY)
    found = priced(little_tariff(tmp_path, joint(50), files=later), "2026-03-04 02:20 board 10\n02:40 board 10")
    assert costs(found) == ["complete 5000", f"complete {fare}"]


@pytest.mark.parametrize(("owner", "fare"), [("period", 3000), ("leg", 1000)])
def test_a_week_s_cap_over_the_change_of_a_tariff_has_the_amount_that_its_owner_says(
    tmp_path: Path, owner: str, fare: int
) -> None:
    def cap(amount: int) -> str:
        return row("caps", rule_id="week", period="week", amount=amount, owner=owner)

    later = version("later", cap(6000), valid_from=WEDNESDAY)
    found = priced(little_tariff(tmp_path, cap(8000), files=later), "08:00 board 10\n2026-03-04 08:00 board 10")
    assert costs(found) == ["complete 5000", f"complete {fare}"]


# ---- periods


def charges(found: Folded) -> list[int]:
    """What each leg costs, by its instant."""
    legs = sorted(found.legs.values(), key=lambda leg: leg.entry_at or 0)
    return [sum(line.amount for line in found.lines if line.leg_id == leg.leg_id) for leg in legs]


TWO_DAYS = row("caps", rule_id="two", period="days", period_days=2, amount=12_000)


def test_a_cap_of_some_days_begins_with_the_first_ride_and_another_after_it(tmp_path: Path) -> None:
    days = """2026-03-03 08:00 board 10
              09:00 board 10
              2026-03-05 02:29 board 10
              02:30 board 10"""
    assert charges(priced(little_tariff(tmp_path, TWO_DAYS), days)) == [5000, 5000, 2000, 5000]


def test_a_tap_that_comes_in_late_moves_the_first_day_of_a_cap_of_some_days(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path, TWO_DAYS)
    known = """2026-03-04 08:00 board 10
               09:00 board 10
               10:00 board 10
               2026-03-05 08:00 board 10"""
    assert charges(priced(tariff, known)) == [5000, 5000, 2000, 0]
    assert charges(priced(tariff, f"{known}\n2026-03-03 22:00 board 10")) == [5000, 5000, 2000, 0, 5000]


def test_a_month_s_cap_ends_when_the_last_service_day_of_the_month_turns(tmp_path: Path) -> None:
    days = """2026-03-01 08:00 board 10
              09:00 board 10
              2026-03-31 08:00 board 10
              2026-04-01 02:29 board 10
              02:30 board 10"""
    cap = row("caps", rule_id="month", period="month", amount=12_000)
    assert charges(priced(little_tariff(tmp_path, cap), days)) == [5000, 5000, 2000, 0, 5000]


@pytest.mark.parametrize(("end", "last"), [("at", 3000), ("before", 5000)])
def test_a_cap_of_an_hour_runs_from_the_first_ride_s_entry_and_ends_as_its_rule_says(tmp_path: Path, end: str, last: int) -> None:
    cap = row("caps", rule_id="hour", period="window", window_minutes=60, end=end, amount=8000)
    assert charges(priced(little_tariff(tmp_path, cap), "08:00 board 10\n09:00 board 10")) == [5000, last]


def test_after_a_window_s_end_the_next_ride_opens_another(tmp_path: Path) -> None:
    cap = row("caps", rule_id="hour", period="window", window_minutes=60, amount=8000)
    day = "08:00 board 10\n08:59 board 10\n09:00:01 board 10\n09:59 board 10"
    assert charges(priced(little_tariff(tmp_path, cap), day)) == [5000, 3000, 5000, 3000]


def test_a_ride_that_began_before_the_first_one_settled_belongs_to_its_window(tmp_path: Path) -> None:
    cap = row("caps", rule_id="hour", period="window", window_minutes=60, amount=8000)
    day = """08:00 enter A card=one
             08:10 board 10 card=two
             08:50 leave C card=one
             08:55 board 10 card=two"""
    assert sum(charges(priced(little_tariff(tmp_path, cap), day))) == 8000


# ---- rewards and rebates


def test_after_so_much_spent_the_next_rides_of_the_day_cost_less(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path, reward("spending", "[{ after = 10000, percent = 50 }, { after = 15000, percent = 100 }]"))
    day = "\n".join([*(f"{hour}:00 board 10" for hour in ("08", "09", "10", "11", "12")), "2026-03-04 08:00 board 10"])
    # 5,000 and 10,000 are reached after the second ride, 15,000 after the fourth
    assert charges(priced(tariff, day)) == [5000, 5000, 2500, 2500, 0, 5000]


def test_what_a_cap_takes_off_is_not_spent(tmp_path: Path) -> None:
    cap = row("caps", rule_id="day", period="service_day", amount=9000)
    tariff = little_tariff(tmp_path, cap, reward("spending", "[{ after = 10000, percent = 100 }]"))
    found = priced(tariff, "08:00 board 10\n09:00 board 10\n10:00 board 10")
    assert bill(found).splitlines()[2] == "3 complete 0 | list_fare bus/bus 5000 | cap day -5000"


def test_a_ride_that_does_not_count_for_a_reward_does_not_begin_its_days(tmp_path: Path) -> None:
    free = row("discounts", rule_id="free", kind="percent", value=100, bearer="CITY", weekdays=("tue",))
    two_days = row("rewards", rule_id="more", period="days", period_days=2, counts="legs")
    tariff = little_tariff(tmp_path, free, two_days + "steps = [{ after = 1, percent = 100 }]\n")
    days = "\n".join(f"2026-03-{day:02} 08:00 board 10" for day in (3, 4, 5))
    assert charges(priced(tariff, days)) == [0, 5000, 0]


def test_a_journey_of_joined_rides_counts_as_one_for_a_reward(tmp_path: Path) -> None:
    joint = row("joining_rules", rule_id="joint", worth="percents", percents=(100, 100), window_minutes=60, window_from="entry")
    tariff = little_tariff(tmp_path, joint, reward("journeys", "[{ after = 1, percent = 50 }]", journeys_of=("joint",)))
    day = "08:00 board 10\n08:30 board 10\n10:00 board 10\n10:30 board 10"
    assert charges(priced(tariff, day)) == [5000, 5000, 2500, 2500]


WEEK_OF_RIDES = "\n".join(f"2026-03-{day:02} 08:00 board 10" for day in (2, 3, 5, 6, 8))


def test_a_week_s_rebate_is_reckoned_tier_by_tier_and_hangs_on_its_last_ride(tmp_path: Path) -> None:
    tiers = "[{ above = 8000, percent = 25 }, { above = 20000, percent = 50 }]"
    found = priced(little_tariff(tmp_path, rebate(tiers)), WEEK_OF_RIDES, "2026-03-20 00:00")
    # 25% of the 12,000 above 8,000, and 50% of the 5,000 above 20,000
    (line,) = [line for line in found.lines if line.kind == "rebate"]
    assert (line.leg_id, line.amount, line.bearer, line.funded, line.cause) == ("5", -5500, "CITY", 5500, "back/2026-03-02")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({"at_least": 5}, -4250), ({"at_least": 6}, 0), ({"maximum": 4000}, -4000), ({"round_to": 500}, -4500)],
)
def test_a_rebate_needs_its_rides_and_has_its_maximum_and_rounding(tmp_path: Path, fields: dict, expected: int) -> None:
    found = priced(
        little_tariff(tmp_path, rebate("[{ above = 8000, percent = 25 }]", **fields)), WEEK_OF_RIDES, "2026-03-20 00:00"
    )
    assert sum(line.amount for line in found.lines if line.kind == "rebate") == expected


def test_there_is_no_rebate_before_its_week_has_ended(tmp_path: Path) -> None:
    found = priced(little_tariff(tmp_path, rebate("[{ above = 0, percent = 10 }]")), WEEK_OF_RIDES, "2026-03-09 02:29")
    assert "rebate" not in bill(found)


def test_a_ride_that_ends_after_its_week_counts_for_the_week_s_one_rebate(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path, rebate("[{ above = 5000, percent = 50 }]"))
    found = priced(tariff, "2026-03-08 12:00 board 10\n2026-03-09 02:20 enter A\n02:40 leave C", "2026-03-12 00:00")
    # 14,000 were spent: half of what is above 5,000, once
    assert [line.amount for line in found.lines if line.kind == "rebate"] == [-4500]


def test_a_rebate_gives_back_no_more_than_was_spent(tmp_path: Path) -> None:
    found = priced(
        little_tariff(tmp_path, rebate("[{ above = 0, amount = 6000 }]", by="legs")), WEEK_OF_RIDES, "2026-03-20 00:00"
    )
    assert sum(line.amount for line in found.lines) == 0


# ---- taps

STAYS = 'overstay = "surcharge"\n'


@pytest.mark.parametrize(
    ("leaves", "expected"),
    [
        ("10:00", "1 complete 9000 | list_fare metro/long 9000"),
        ("10:00:01", "1 complete 13000 | list_fare metro/long 9000 | surcharge for-overstay 4000"),
    ],
)
def test_staying_too_long_costs_the_fare_and_a_surcharge(tmp_path: Path, leaves: str, expected: str) -> None:
    tariff = little_tariff(tmp_path, price_for("overstay", 4000), metro=STAYS)
    assert bill(priced(tariff, f"07:00 enter A\n{leaves} leave C")) == expected


def test_where_staying_too_long_costs_a_surcharge_an_exit_is_missing_after_24_hours(tmp_path: Path) -> None:
    tariff = little_tariff(tmp_path, price_for("overstay", 4000), metro=STAYS)
    assert costs(priced(tariff, "07:00 enter A", "2026-03-04 07:00")) == ["open 0"]
    assert costs(priced(tariff, "07:00 enter A", "2026-03-04 07:01")) == ["missing_exit 9000"]


@pytest.mark.parametrize(("closed_by", "expected"), [("entry_here", "open 0"), ("any_entry", "missing_exit 9000")])
def test_boarding_a_bus_may_show_that_the_metro_was_left_without_a_tap(tmp_path: Path, closed_by: str, expected: str) -> None:
    tariff = little_tariff(tmp_path, metro=f'closed_by = "{closed_by}"\n')
    assert costs(priced(tariff, "07:00 enter A\n07:30 board 10")) == [expected, "complete 5000"]
    assert costs(priced(tariff, "07:00 enter A card=one\n07:30 board 10 card=two")) == ["open 0", "complete 5000"]


# ---- prices

INNER = row("products", product_id="INNER", kind="pass", price=10_000, networks=("metro",), within_areas=("A", "B"), days=1)


@pytest.mark.parametrize(
    ("extension", "expected"),
    [
        (4000, "3 complete 4000 | list_fare metro/long 9000 | product product/INNER -5000"),
        (9000, "3 complete 9000 | list_fare metro/long 9000"),
    ],
)
def test_a_ride_out_of_the_areas_of_a_pass_costs_the_extension_fare_if_that_is_less(
    tmp_path: Path, extension: int, expected: str
) -> None:
    day = """07:00 buy INNER
             07:10 enter B
             07:20 leave A
             08:00 enter A
             08:20 leave C"""
    found = bill(priced(little_tariff(tmp_path, INNER, price_for("extension", extension)), day)).splitlines()
    assert found[1] == "2 complete 0 | list_fare metro/short 6000 | product product/INNER -6000"
    assert found[2].replace("4 ", "3 ", 1) == expected


def test_legs_that_share_a_base_pay_it_once_as_it_was_rounded(tmp_path: Path) -> None:
    by_stops = instead(("metro",), by="stops", base=5500, per_unit=1250, round_to=1000)
    shared = row("joining_rules", rule_id="shared", worth="base_once", networks=("metro",), window_minutes=30)
    day = """07:00 enter M@A
             07:10 leave M@B
             07:30 enter M@A
             07:45 leave M@C"""
    # 6,750 is 7,000, of which the base of 5,500 is 6,000; 8,000 less that
    assert bill(priced(little_tariff(tmp_path, by_stops, shared), day)) == dedent(
        """1 complete 7000 | list_fare price-metro 7000
           3 complete 2000 | list_fare price-metro 8000 | transfer shared -6000"""
    )


THROUGH = {"rule_id": "walk", "worth": "through", "networks": ("metro",), "window_minutes": 30, "stop_pairs": (("B", "C"),)}


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        (("B", "C", "C", "B"), 0),  # from A out at B, on foot to C, and to B again: one ride from A to B
        (("B", "B", "B", "C"), 6000),  # B is not B's other station
        (("C", "B", "B", "A"), 0),
    ],
)
def test_two_rides_over_a_named_interchange_cost_one_ride_from_the_first_entry_to_the_last_exit(
    tmp_path: Path, second: tuple[str, str, str, str], expected: int
) -> None:
    left, entered, entered_too, end = second
    assert entered in (entered_too, left)
    day = f"07:00 enter A\n07:10 leave {left}\n07:30 enter {entered}\n07:40 leave {end}"
    found = priced(little_tariff(tmp_path, row("joining_rules", **THROUGH)), day)
    first = 9000 if left == "C" else 6000
    assert costs(found) == [f"complete {first}", f"complete {expected}"]


def test_rides_priced_as_one_may_have_a_price_of_their_own(tmp_path: Path) -> None:
    joined = row("leg_prices", rule_id="both", use="joined", by="pairs", networks=("metro",), pairs=(("A", "B", 7500),))
    day = "07:00 enter A\n07:10 leave B\n07:30 enter C\n07:40 leave B"
    found = priced(little_tariff(tmp_path, row("joining_rules", **THROUGH), joined), day)
    assert bill(found).splitlines()[1] == "3 complete 1500 | list_fare metro/short 6000 | transfer walk -4500"


AREAS = {
    "network/areas.txt": "area_id,area_name\nA,A\nB,B\nC,C\n1,Inner\n2,Middle\n3,Outer\n",
    "network/stop_areas.txt": "area_id,stop_id\nA,A\nB,B\nC,C\n1,A\n1,B\n2,B\n3,C\n",
}


@pytest.mark.parametrize(("start", "end", "fare"), [("A", "B", 2000), ("B", "B", 2000), ("B", "C", 3500), ("A", "C", 4800)])
def test_zones_are_counted_and_a_station_between_two_lies_in_the_cheaper_one(
    tmp_path: Path, start: str, end: str, fare: int
) -> None:
    zones = instead(("metro",), by="zone_count")
    zones += "bands = [{ up_to = 1, amount = 2000 }, { up_to = 2, amount = 3500 }, { amount = 4800 }]\n"
    assert costs(priced(little_tariff(tmp_path, zones, files=AREAS), f"07:00 enter {start}\n07:20 leave {end}")) == [
        f"complete {fare}"
    ]


# ---- what random tariffs and a close reading found


def test_two_surcharges_of_one_leg_under_a_cap_make_one_line_of_it(tmp_path: Path) -> None:
    fees = [row("surcharges", rule_id=f"fee-{amount}", amount=amount) for amount in (1000, 2000)]
    cap = row("caps", rule_id="fees", period="service_day", amount=500, counts="surcharge")
    found = priced(little_tariff(tmp_path, *fees, cap), "08:00 board 10")
    assert costs(found) == ["complete 5500"]
    assert len(set(map(line_id, found.lines))) == len(found.lines)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ((("one", 8000),), (("one", 8000), ("two", 9000)), [5000, 3000, 0]),
        ((("one", 8000), ("two", 3000)), (("one", 8000),), [3000, 0, 0]),
        ((("one", 8000),), (("one", 2000),), [5000, 3000, 0]),
    ],
)
def test_a_window_keeps_the_candidates_of_the_version_in_which_it_began(
    tmp_path: Path, old: tuple[tuple[str, int]], new: tuple[tuple[str, int]], expected: list[int]
) -> None:
    later = version("later", best_of("week", *new), valid_from=WEDNESDAY)
    days = "08:00 board 10\n2026-03-04 08:00 board 10\n09:00 board 10"
    assert charges(priced(little_tariff(tmp_path, best_of("week", *old), files=later), days)) == expected


@pytest.mark.parametrize("worth", [{"worth": "percents", "percents": (100, 0)}, {"worth": "position", "transfer_amounts": (0,)}])
def test_a_leg_that_a_joining_rule_is_not_for_does_not_begin_a_group_of_it(tmp_path: Path, worth: dict) -> None:
    rule = row("joining_rules", rule_id="emv", media=("emv",), window_minutes=30, window_from="entry", **worth)
    day = "08:00 board 10 emv\n08:10 board 10 cash\n08:35 board 10 emv"
    assert charges(priced(little_tariff(tmp_path, rule), day)) == [5000, 5000, 5000]


@pytest.mark.parametrize(
    "also",
    [
        row("discounts", rule_id="less", kind="amount", value=2000, bearer="CITY"),
        reward("legs", "[{ after = 1, percent = 50 }]"),
    ],
)
def test_what_is_paid_back_is_not_discounted(tmp_path: Path, also: str) -> None:
    window = {"window_minutes": 60, "window_from": "entry", "networks": ("bus",)}
    chain = row("joining_rules", rule_id="chain", worth="through", below_zero="paid_back", **window)
    tariff = little_tariff(tmp_path, chain, instead(("bus",), by="flat", amount=5000), price_for("joined", 1000), also)
    # the rides' list fare is 1,000 together, and the first one's alone was 5,000
    assert charges(priced(tariff, "08:00 board 10\n08:20 board 10"))[1] == -4000


@pytest.mark.parametrize("worth", [{"off_first": 1000}, {"worth": "dearest"}])
def test_what_is_paid_back_is_not_taken_by_another_joining_rule(tmp_path: Path, worth: dict) -> None:
    window = {"window_minutes": 60, "window_from": "entry", "max_transfers": 3}
    rules = [
        row("joining_rules", rule_id="chain", worth="through", below_zero="paid_back", networks=("bus",), **window),
        row("joining_rules", rule_id="other", from_networks=("bus",), to_networks=("bus", "boat"), **window, **worth),
    ]
    tariff = little_tariff(tmp_path, *rules, instead(("bus",), by="flat", amount=5000), price_for("joined", 1000))
    day = "08:00 board 10\n08:20 board 10\n08:40 board F"
    assert charges(priced(tariff, day))[1] == -4000


def test_a_rule_cannot_change_what_its_groups_are_worth_from_one_version_to_the_next(tmp_path: Path) -> None:
    window = {"rule_id": "joint", "window_minutes": 60, "window_from": "entry"}
    later = version("later", row("joining_rules", off_second=100, **window), valid_from=WEDNESDAY)
    with pytest.raises(TariffError, match="percents"):
        little_tariff(tmp_path, row("joining_rules", worth="percents", percents=(100, 0), **window), files=later)


def test_a_leg_that_stands_in_two_groups_is_one_leg_when_its_traveller_comes_back(tmp_path: Path) -> None:
    pair = row("joining_rules", rule_id="pair", window_minutes=120, window_from="entry", off_first=3000)
    half = {"worth": "percents", "percents": (100, 50), "window_minutes": 60, "window_from": "entry", "networks": ("bus",)}
    tariff = little_tariff(tmp_path, pair, row("joining_rules", rule_id="half", **half))
    taps = facts("08:00 board 10\n08:30 board F\n20:00 enter A")
    first = fold(tariff, taps[:1], taps[1].at)
    second = fold(tariff, taps[1:2], taps[2].at, first.state)
    third = fold(tariff, taps[2:], taps[2].at, second.state)
    assert {**first.legs, **second.legs, **third.legs}["1"].net == 2000


# ---- from a planner's first hour

DAY_OF_HOURS = row("products", product_id="H24", kind="pass", price=20_000, minutes=1440, networks=("bus",))


@pytest.mark.parametrize(("at", "fare"), [("2026-03-04 15:00", "0"), ("2026-03-04 15:01", "5000")])
def test_a_pass_of_24_hours_pays_rides_that_begin_within_them_of_its_first_tap(tmp_path: Path, at: str, fare: str) -> None:
    day = f"08:00 buy H24\n15:00 board 10\n{at} board 10"
    assert costs(priced(little_tariff(tmp_path, DAY_OF_HOURS), day))[-1] == f"complete {fare}"


def test_the_price_of_a_pass_of_hours_is_shared_by_its_first_day(tmp_path: Path) -> None:
    found = priced(little_tariff(tmp_path, DAY_OF_HOURS), "08:00 buy H24\n15:00 board 10", "2026-03-20 12:00")
    assert [(line.funded, line.service_day) for line in found.lines if line.kind == "release"] == [
        (20_000, to_day(date(2026, 3, 3)))
    ]
    assert not found.state.lots


def test_a_ride_with_one_tap_has_the_zone_of_that_tap(tmp_path: Path) -> None:
    price = '[[leg_prices]]\nrule_id = "z"\nnetworks = ["bus"]\npriority = 1\nby = "zones"\namounts = { "1" = 700 }\n'
    areas = {"network/areas.txt": "area_id,area_name\n1,One\n", "network/stop_areas.txt": "area_id,stop_id\n1,S1\n"}
    tariff = little_tariff(tmp_path, price, files=areas | {"now/fare_leg_rules.txt": "network_id,fare_product_id\nmetro,long\n"})
    assert costs(priced(tariff, "08:00 board 10@S1")) == ["complete 700"]


def test_a_forgotten_exit_may_still_open_the_time_to_change(tmp_path: Path) -> None:
    window = row("joining_rules", rule_id="h", worth="percents", percents=(100, 0), window_minutes=120, window_from="entry")
    day = "08:00 enter A\n09:00 board 10"
    kept = 'missing_joins = true\nclosed_by = "any_entry"\n'
    assert costs(priced(little_tariff(tmp_path / "a", window, metro=kept), day)) == ["missing_exit 9000", "complete 0"]
    assert costs(priced(little_tariff(tmp_path / "b", window), day))[1] == "complete 5000"


# ---- who owns what when the tariff changes

NEXT_DAY = date(2026, 3, 4)


@pytest.mark.parametrize(("owner", "fare"), [("leg", 5000), ("period", 2500)])
def test_a_reward_s_steps_are_those_of_the_leg_s_or_of_the_period_s_version(tmp_path: Path, owner: str, fare: int) -> None:
    def reward(percent: int) -> str:
        head = '[[rewards]]\nrule_id = "w"\nname = { vi = "w", en = "w" }\nperiod = "week"\n'
        return f'{head}owner = "{owner}"\nsteps = [{{ after = 1, percent = {percent} }}]\n'

    tariff = little_tariff(tmp_path, reward(50), files=version("then", reward(0), valid_from=NEXT_DAY))
    assert costs(priced(tariff, "08:00 board 10\n2026-03-04 08:00 board 10"))[-1] == f"complete {fare}"


@pytest.mark.parametrize(("owner", "back"), [("first_leg", 1000), ("last_leg", 5000)])
def test_a_rebate_s_tiers_are_those_of_its_first_or_last_leg_s_version(tmp_path: Path, owner: str, back: int) -> None:
    def rebate(percent: int) -> str:
        head = '[[rebates]]\nrule_id = "r"\nname = { vi = "r", en = "r" }\nperiod = "week"\nbearer = "CITY"\n'
        return f'{head}owner = "{owner}"\ntiers = [{{ percent = {percent} }}]\n'

    tariff = little_tariff(tmp_path, rebate(10), files=version("then", rebate(50), valid_from=NEXT_DAY))
    found = priced(tariff, "08:00 board 10\n2026-03-04 08:00 board 10", "2026-03-20 12:00")
    assert -sum(line.amount for line in found.lines if line.kind == "rebate") == back


@pytest.mark.parametrize(("owner", "fare"), [("sale", 15_000), ("leg", 0)])
def test_which_legs_a_pass_covers_goes_by_its_sale_or_by_the_leg_s_version(tmp_path: Path, owner: str, fare: int) -> None:
    def product(*networks: str) -> str:
        return row("products", product_id="P", kind="pass", price=9000, days=7, networks=networks, owner=owner)

    tariff = little_tariff(tmp_path, product("bus"), files=version("then", product("bus", "boat"), valid_from=NEXT_DAY))
    assert costs(priced(tariff, "07:00 buy P\n08:00 board 10\n2026-03-04 08:00 board F"))[-1] == f"complete {fare}"


def test_a_ride_that_turns_out_to_have_no_price_follows_others_and_never_itself(tmp_path: Path) -> None:
    window = {"window_minutes": 60, "window_from": "entry", "max_transfers": 9}
    rules = [
        row("joining_rules", rule_id="first", worth="position", transfer_amounts=(1000,), networks=("bus",), **window),
        row("joining_rules", rule_id="then", worth="distance", networks=("bus",), **window),
    ]
    found = priced(little_tariff(tmp_path, *rules), "08:00 board 10\n08:10 board 11\n08:20 board 10")
    assert costs(found) == ["complete 5000", "unknown ?", "unknown ?"]
    assert all(leg_id != earlier for leg_id, leg in found.legs.items() for _, earlier in leg.follows)
    assert all(len({leg.leg_id for leg in group.legs}) == len(group.legs) for group in found.state.groups)
