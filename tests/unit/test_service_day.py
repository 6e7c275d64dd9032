"""Service days turn at their own hour, weeks on Monday, and local time is the zone's, summer and winter."""

from __future__ import annotations

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fare_engine.service_day import (
    DAY_MS,
    MINUTE_MS,
    day_starts_at,
    format_instant,
    local_ms,
    monday_of,
    month_of,
    parse_instant,
    service_day,
    to_date,
    to_datetime,
    to_day,
    weekday_of,
)

HCMC, BERLIN = "Asia/Ho_Chi_Minh", "Europe/Berlin"
TURN = 150 * MINUTE_MS
"""02:30"""
INSTANTS = st.integers(parse_instant("2019-01-01T00:00:00Z"), parse_instant("2035-01-01T00:00:00Z"))


def day_of(moment: str, zone: str = HCMC, turn: int = TURN) -> str:
    return to_date(service_day(parse_instant(moment), zone, turn)).isoformat()


@pytest.mark.parametrize(
    ("moment", "day"),
    [
        ("2026-03-03T00:20:00+07:00", "2026-03-02"),
        ("2026-03-03T02:29:59.999+07:00", "2026-03-02"),
        ("2026-03-03T02:30:00+07:00", "2026-03-03"),
        ("2026-03-02T19:30:00Z", "2026-03-03"),
        ("2026-01-01T02:29:00+07:00", "2025-12-31"),
        ("2028-03-01T01:00:00+07:00", "2028-02-29"),
    ],
)
def test_a_tap_after_midnight_belongs_to_the_day_before_until_the_day_turns(moment: str, day: str) -> None:
    assert day_of(moment) == day


@pytest.mark.parametrize(
    ("moment", "day"),
    [
        ("2026-03-29T02:29:59.999+01:00", "2026-03-29"),  # 03:29:59.999 in summer time: 02:30 did not exist that night
        ("2026-03-29T01:59:59.999+01:00", "2026-03-28"),
        ("2026-03-29T02:00:00+01:00", "2026-03-29"),
        ("2026-10-25T02:15:00+02:00", "2026-10-24"),
        ("2026-10-25T02:15:00+01:00", "2026-10-24"),
        ("2026-10-25T02:30:00+01:00", "2026-10-25"),
    ],
)
def test_in_a_zone_with_summer_time_the_day_turns_by_the_wall_clock(moment: str, day: str) -> None:
    assert day_of(moment, BERLIN) == day


def test_between_the_two_half_past_twos_of_an_autumn_night_the_first_has_turned_the_day_for_its_half_hour() -> None:
    """The wall clock shows 02:30 twice; a service day that turns inside the repeated hour turns twice. Cities avoid it."""
    assert day_of("2026-10-25T02:30:00+02:00", BERLIN) == "2026-10-25"


def test_the_wall_clock_goes_forward_an_hour_in_spring_and_back_in_autumn() -> None:
    before, after = (parse_instant(f"2026-03-29T0{hour}:00:00Z") for hour in (0, 1))
    assert local_ms(after, BERLIN) - local_ms(before, BERLIN) == 2 * 60 * MINUTE_MS
    before, after = (parse_instant(f"2026-10-25T0{hour}:00:00Z") for hour in (0, 1))
    assert local_ms(after, BERLIN) == local_ms(before, BERLIN)


@given(at=INSTANTS, turn=st.integers(0, 23 * 60))
def test_an_instant_lies_in_the_service_day_that_the_day_s_own_start_says(at: int, turn: int) -> None:
    day = service_day(at, HCMC, turn * MINUTE_MS)
    begins = day_starts_at(day, HCMC, turn * MINUTE_MS)
    assert begins <= at < begins + DAY_MS
    assert service_day(begins, HCMC, turn * MINUTE_MS) == day
    assert service_day(begins - 1, HCMC, turn * MINUTE_MS) == day - 1


@given(day=st.dates(date(1970, 1, 1), date(2100, 12, 31)))
def test_days_weeks_and_months_are_the_calendar_s(day: date) -> None:
    number = to_day(day)
    assert to_date(number) == day
    assert weekday_of(number) == day.weekday()
    assert to_date(monday_of(number)).weekday() == 0
    assert 0 <= number - monday_of(number) < 7
    assert to_date(month_of(number)) == day.replace(day=1)


def test_the_week_of_new_year_begins_in_the_old_year() -> None:
    assert to_date(monday_of(to_day(date(2026, 1, 1)))) == date(2025, 12, 29)
    assert monday_of(to_day(date(2025, 12, 31))) == monday_of(to_day(date(2026, 1, 4)))
    assert monday_of(to_day(date(2026, 1, 5))) == to_day(date(2026, 1, 5))


@given(at=INSTANTS, zone=st.sampled_from([HCMC, BERLIN, "UTC", "Asia/Kathmandu"]))
def test_an_instant_that_is_written_out_is_read_back(at: int, zone: str) -> None:
    assert parse_instant(format_instant(at, zone)) == at
    assert parse_instant(to_datetime(at, zone).isoformat()) == at


def test_instants_show_milliseconds_only_where_there_are_some() -> None:
    at = parse_instant("2026-03-02T07:58:00+07:00")
    assert format_instant(at, HCMC) == "2026-03-02T07:58:00+07:00"
    assert format_instant(at + 5, HCMC) == "2026-03-02T07:58:00.005+07:00"
    assert format_instant(at) == "2026-03-02T00:58:00+00:00"


def test_a_time_without_its_offset_is_refused() -> None:
    with pytest.raises(ValueError, match="needs its offset"):
        parse_instant("2026-03-02T07:58:00")


@pytest.mark.parametrize("day", ["2026-03-28", "2026-03-29", "2026-10-24", "2026-10-25"])
def test_a_service_day_starts_where_it_turns_also_when_clocks_are_changed(day: str) -> None:
    number, turn = to_day(date.fromisoformat(day)), 4 * 60 * MINUTE_MS
    begins = day_starts_at(number, BERLIN, turn)
    assert (service_day(begins - 1, BERLIN, turn), service_day(begins, BERLIN, turn)) == (number - 1, number)
