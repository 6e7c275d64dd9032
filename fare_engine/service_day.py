"""Times and days: the only module that knows local time.

Inside, a time is an instant: whole milliseconds of UTC since 1970. A day is a number, days since 1970-01-01, so that the
fold compares and counts without calendar objects. A **service day** turns at an hour of its own (a tap at 00:20 belongs
to the day before); a **local date** is the calendar's."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

MINUTE_MS = 60_000
DAY_MS = 86_400_000
_QUARTER_MS = 15 * MINUTE_MS  # every zone in use changes its offset on a quarter of an hour
_EPOCH = date(1970, 1, 1)


@lru_cache(maxsize=65_536)
def _offset_ms(zone: str, quarter: int) -> int:
    moment = datetime.fromtimestamp(quarter * 900, tz=UTC).astimezone(ZoneInfo(zone))
    offset = moment.utcoffset()
    assert offset is not None
    return int(offset.total_seconds() * 1000)


def is_zone(name: str) -> bool:
    """Whether the time zone database has it."""
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


def local_ms(at: int, zone: str) -> int:
    """The wall clock's reading at the instant `at`, in milliseconds since 1970-01-01 00:00 on that wall clock."""
    return at + _offset_ms(zone, at // _QUARTER_MS)


def service_day(at: int, zone: str, day_start_ms: int) -> int:
    """The service day of an instant, for days that turn `day_start_ms` after local midnight."""
    return (at + _offset_ms(zone, at // _QUARTER_MS) - day_start_ms) // DAY_MS


def monday_of(day: int) -> int:
    """The Monday that begins the week of a day (1970-01-01 was a Thursday)."""
    return day - (day + 3) % 7


def weekday_of(day: int) -> int:
    """0 for Monday to 6 for Sunday, as GTFS calendars count."""
    return (day + 3) % 7


def month_of(day: int) -> int:
    """The first day of the calendar month of a day."""
    return to_day(to_date(day).replace(day=1))


def to_day(value: date) -> int:
    """A calendar date as a day number."""
    return (value - _EPOCH).days


def to_date(day: int) -> date:
    """A day number as a calendar date."""
    return _EPOCH + timedelta(days=day)


def day_starts_at(day: int, zone: str, day_start_ms: int) -> int:
    """The instant at which a service day begins: when the wall clock shows its turn."""
    turn = datetime.combine(to_date(day), datetime.min.time()) + timedelta(milliseconds=day_start_ms)
    return int(turn.replace(tzinfo=ZoneInfo(zone)).timestamp()) * 1000


def parse_instant(text: str) -> int:
    """An RFC 3339 time with its offset, as an instant. ValueError where the offset is missing: local time is ambiguous."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time needs its offset, as in 2026-03-02T07:58:00+07:00")
    return to_instant(moment)


def to_instant(moment: datetime) -> int:
    """An aware datetime as an instant."""
    return int((moment - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(milliseconds=1))


def format_instant(at: int, zone: str = "UTC") -> str:
    """An instant as RFC 3339 with the zone's offset; milliseconds only where there are some."""
    moment = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=at)).astimezone(ZoneInfo(zone))
    return moment.isoformat(timespec="milliseconds" if at % 1000 else "seconds")


def to_datetime(at: int, zone: str = "UTC") -> datetime:
    """An instant as a datetime of the zone."""
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=at)).astimezone(ZoneInfo(zone))
