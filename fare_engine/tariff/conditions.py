"""When a row holds for a leg: the conditions that every pricing row may have (docs/tariff.md), made ready to be asked.

Networks, routes, medium and category of a leg never change, so rows are chosen by them once (`is_for`). What depends on the
leg's places, times and day is asked leg by leg (`failing`), and answered with the name of the condition that fails."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import lru_cache
from typing import Protocol

import msgspec

from fare_engine.facts import Given
from fare_engine.service_day import to_day, weekday_of
from fare_engine.tariff.model import Calendar, Conditions, Network

FOREVER = 10**9
WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


class Ride(Protocol):
    """A leg, as far as a tariff looks at it."""

    network_id: str | None
    route_id: str | None
    operator_id: str | None
    media: str
    rider_category: str
    from_stop_id: str | None
    to_stop_id: str | None
    entry_at: int | None
    exit_at: int | None
    service_day: int
    given: Given | None
    exit_given: Given | None


Groups = Callable[[int], frozenset[str]]
"""Gives the timeframe groups of an instant."""


class Places(msgspec.Struct, frozen=True):
    """A list of areas and stops. A name that is an area's means the area, also where a stop is named so."""

    areas: frozenset[str]
    stops: frozenset[str]

    def holds(self, stop: str | None, areas: Collection[str]) -> bool:
        """Whether a place is one of them, or lies in one."""
        return stop in self.stops or not self.areas.isdisjoint(areas)


class Ready(msgspec.Struct, frozen=True):
    """A row's conditions that depend on the leg."""

    always: bool
    """Nothing depends on the leg."""
    by_day_only: bool
    """Nothing but its service day matters."""
    by_place_only: bool
    """Nothing but where it begins and ends matters."""
    first_day: int
    last_day: int
    weekdays: frozenset[int]
    calendars: tuple[Calendar, ...]
    except_calendars: tuple[Calendar, ...]
    operators: frozenset[str]
    timeframes: frozenset[str]
    exit_timeframes: frozenset[str]
    from_places: Places | None
    to_places: Places | None
    either_places: Places | None
    within_places: Places | None
    except_places: Places | None

    def failing(self, ride: Ride, network: Network, groups: Groups, *, whole: bool = True) -> str | None:
        """The first condition that the leg does not meet, or None. With `whole` false `within_areas` is not asked."""
        return (
            self.failing_day(ride.service_day)
            or (self.operators and ride.operator_id not in self.operators and "operators")
            or self._failing_time(ride, groups)
            or self._failing_place(ride, network, whole)
            or None
        )

    def failing_day(self, day: int) -> str | None:
        """The first condition that a service day does not meet, or None."""
        if not self.first_day <= day <= self.last_day:
            return "valid_from" if day < self.first_day else "valid_to"
        if self.weekdays and weekday_of(day) not in self.weekdays:
            return "weekdays"
        if self.calendars and not any(calendar.runs_on(day) for calendar in self.calendars):
            return "service_ids"
        if self.except_calendars and any(calendar.runs_on(day) for calendar in self.except_calendars):
            return "except_service_ids"
        return None

    def _failing_time(self, ride: Ride, groups: Groups) -> str | None:
        first = ride.entry_at if ride.entry_at is not None else ride.exit_at
        last = ride.exit_at if ride.exit_at is not None else first
        if self.timeframes and (first is None or self.timeframes.isdisjoint(groups(first))):
            return "timeframes"
        if self.exit_timeframes and (last is None or self.exit_timeframes.isdisjoint(groups(last))):
            return "exit_timeframes"
        return None

    def _failing_place(self, ride: Ride, network: Network, whole: bool) -> str | None:
        wanted = (self.from_places, self.to_places, self.either_places, self.within_places, self.except_places)
        if wanted == _NOWHERE:
            return None
        start, end = ride.from_stop_id, ride.to_stop_id
        from_areas = areas_of(network, start, ride.given)
        to_areas = areas_of(network, end, ride.exit_given)
        if self.from_places is not None and not self.from_places.holds(start, from_areas):
            return "from_areas"
        if self.to_places is not None and not self.to_places.holds(end, to_areas):
            return "to_areas"
        either, never, within = self.either_places, self.except_places, self.within_places
        if either is not None and not (either.holds(start, from_areas) or either.holds(end, to_areas)):
            return "either_areas"
        if never is not None and (never.holds(start, from_areas) or never.holds(end, to_areas)):
            return "except_areas"
        if whole and within is not None and not (_inside(within, start, from_areas) and _inside(within, end, to_areas)):
            return "within_areas"
        return None


PLACE_FIELDS = ("from_places", "to_places", "either_places", "within_places", "except_places")
_NOWHERE = (None, None, None, None, None)
_NO_AREAS: frozenset[str] = frozenset()


def ready(row: Conditions, network: Network) -> Ready:
    """The conditions of a row that depend on the leg."""
    found = Ready(
        always=False,
        by_day_only=False,
        by_place_only=False,
        first_day=to_day(row.valid_from) if row.valid_from else -FOREVER,
        last_day=to_day(row.valid_to) if row.valid_to else FOREVER,
        weekdays=frozenset(WEEKDAYS.index(name) for name in row.weekdays),
        calendars=tuple(network.calendars[name] for name in row.service_ids),
        except_calendars=tuple(network.calendars[name] for name in row.except_service_ids),
        operators=frozenset(row.operators),
        timeframes=frozenset(row.timeframes),
        exit_timeframes=frozenset(row.exit_timeframes),
        from_places=places(row.from_areas, network),
        to_places=places(row.to_areas, network),
        either_places=places(row.either_areas, network),
        within_places=places(row.within_areas, network),
        except_places=places(row.except_areas, network),
    )
    days = {name: getattr(found, name) for name in ("first_day", "last_day", "weekdays", "calendars", "except_calendars")}
    places_given = {name: getattr(found, name) for name in PLACE_FIELDS}
    by_place_only = found == msgspec.structs.replace(_ALWAYS, **places_given)
    by_day_only = found == msgspec.structs.replace(_ALWAYS, **days)
    return msgspec.structs.replace(found, always=found == _ALWAYS, by_day_only=by_day_only, by_place_only=by_place_only)


def places(names: Iterable[str], network: Network) -> Places | None:
    """A row's list of areas and stops; None where it is empty."""
    listed = frozenset(names)
    stops = listed & network.stops.keys() - network.areas
    return Places(listed - stops, stops) if listed else None


def static_failing(row: Conditions, network: str, route: str | None, media: str, category: str) -> str | None:
    """The first of the conditions that never change for a leg which it does not meet, or None."""
    if row.networks and network not in row.networks:
        return "networks"
    if row.routes and not names_route(row.routes, route):
        return "routes"
    if row.rider_categories and category not in row.rider_categories:
        return "rider_categories"
    if (row.media and media not in row.media and media.split(":")[0] not in row.media) or media in row.except_media:
        return "media"
    return None


def names_route(listed: tuple[str, ...], route: str | None) -> bool:
    """Whether a list of routes and of ranges of route numbers (`500-599`) names a route."""
    if route is None:
        return False
    if route in listed:
        return True
    number = int(route) if route.isascii() and route.isdigit() else None
    return number is not None and any(first <= number <= last for first, last in _ranges(listed))


@lru_cache(maxsize=1024)
def _ranges(listed: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    halves = [name.partition("-") for name in listed]
    return tuple((int(first), int(last)) for first, _, last in halves if first.isdigit() and last.isdigit())


def areas_of(network: Network, stop: str | None, given: Given | None) -> Collection[str]:
    """The areas of a leg's end: those that the tap brought along, and those of its stop."""
    listed = network.areas_of_stop.get(stop, _NO_AREAS) if stop is not None else _NO_AREAS
    if given is None or not given.areas:
        return listed
    return (*given.areas, *listed)


def _inside(places: Places, stop: str | None, areas: Collection[str]) -> bool:
    return not areas or places.holds(stop, areas)


_ALWAYS = Ready(
    always=False,
    by_day_only=False,
    by_place_only=False,
    first_day=-FOREVER,
    last_day=FOREVER,
    weekdays=frozenset(),
    calendars=(),
    except_calendars=(),
    operators=frozenset(),
    timeframes=frozenset(),
    exit_timeframes=frozenset(),
    from_places=None,
    to_places=None,
    either_places=None,
    within_places=None,
    except_places=None,
)
