"""Travellers' days and weeks for property tests: facts over the real routes, stations, piers and stops of the city.

A traveller does one thing after another; what is drawn is what he does and how long he waits. Waits sit on the edges
that fares are made of: the 120 minutes of a joint ticket, the longest stay, the turn of the service day."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import NamedTuple
from zoneinfo import ZoneInfo

from hypothesis import strategies as st

from fare_engine.facts import Cancellation, Fact, Purchase, Tap

CITY = Path(__file__).parent.parent / "tariffs" / "hcmc"
ZONE = ZoneInfo("Asia/Ho_Chi_Minh")
SECOND, MINUTE, HOUR = 1000, 60_000, 3_600_000


def _stops_of(route: str) -> list[str]:
    with (CITY / "network" / "stop_times.txt").open(encoding="utf-8") as file:
        return [row["stop_id"] for row in csv.DictReader(file) if row["trip_id"] == f"{route}-0"]


METRO, PIERS, BRT = _stops_of("ML1"), _stops_of("SWB1"), _stops_of("BRT1")
BUSES = ["1", "3", "4", "9", "79", "153", "156D", "5", "60-1", "HS-01", "DL03"]
"""Of every fare class: subsidised by length, feeders of the metro, routes with prices of their own, pupils' buses."""
ODD_ROUTES = ["DL01", "no-such-route"]
"""A network without a fare rule, and a route that does not exist: their price is unknown."""

CATEGORIES = ["adult", "student", "elderly", "merit", "disabled", "child_under_6"]
MEDIA = [
    "emv", "emv:mastercard", "qr", "qr:special", "cccd", "ic_card", "cash",
    "wallet", "wallet:momo", "wallet:zalopay", "wallet:zalopay-code",
]  # fmt: skip
PRODUCTS = [
    "ML1-1D", "ML1-3D", "ML1-M", "ML1-MS", "BUS-B30-5", "BUS-B30-6", "BUS-B30-7",
    "P26-BUS-1D", "P26-BUS-3D", "P26-BUS-M", "P26-BUS-MS", "JNT-1D", "JNT-3D", "JNT-M", "JNT-MS",
]  # fmt: skip

DAYS = [
    date(2025, 1, 20),  # the last day of the 30 free ones
    date(2025, 4, 30),
    date(2025, 9, 1),
    date(2025, 12, 31),  # a book's last day, and a free day after it
    date(2026, 2, 6),  # the first Cashless Friday
    date(2026, 2, 15),  # Tet begins tomorrow
    date(2026, 2, 27),  # a Friday, two days before the proposal would hold
    date(2026, 2, 28),
    date(2026, 3, 2),
    date(2026, 3, 3),
    date(2026, 3, 6),
    date(2026, 3, 14),  # the day before the election
    date(2026, 7, 3),
]
BEFORE_ANY_TARIFF = date(2019, 4, 30)

UNSETTLED: frozenset[str] = frozenset()
"""What engine and auditor read differently; empty this when it is settled, and days are made of these too."""

_edges = [edge + by for edge in (120 * MINUTE, 180 * MINUTE, 24 * HOUR) for by in (-1, 0, 1, 999, SECOND)]
_SHORT = [0, 1, SECOND, 90 * SECOND, 5 * MINUTE, 12 * MINUTE, 20 * MINUTE, 35 * MINUTE]
_WAITS = [*_SHORT, *_SHORT, 55 * MINUTE, 119 * MINUTE, *_edges, 4 * HOUR, 9 * HOUR, 20 * HOUR, 3 * 24 * HOUR]
_STAYS = [*_SHORT, *_SHORT, *_SHORT, 55 * MINUTE, 119 * MINUTE, *_edges, 5 * HOUR]


class Deed(NamedTuple):
    """One thing a traveller does. Which of the fields matter depends on `what`."""

    what: str
    wait: int
    stay: int
    start: int
    end: int
    token: int
    device: int
    oddity: str = ""


def waits() -> st.SearchStrategy[int]:
    return st.sampled_from(_WAITS)


def deeds(
    kinds: Sequence[str] = ("metro", "metro", "bus", "bus", "brt", "pier", "buy"), oddities: bool = True
) -> st.SearchStrategy[Deed]:
    odd = [
        "no exit", "no entry", "same stop", "other token exits", "other medium", "other category", "two persons",
        "three persons", "unknown stop", "unknown first stop", "no stop", "with route", "no route",
        "exit on board", "odd route", "operator",
        "cancel first", "cancel last", "until the day turns", "overlap", "same stop", "no exit", "no entry",
    ]  # fmt: skip
    odd = [oddity for oddity in odd if oddity not in UNSETTLED]
    return st.builds(
        Deed,
        what=st.sampled_from(list(kinds)),
        wait=waits(),
        stay=st.sampled_from(_STAYS),
        start=st.integers(0, 13),
        end=st.integers(0, 13),
        token=st.sampled_from([0, 0, 0, 1]),
        device=st.integers(0, 2),
        oddity=st.sampled_from([""] * len(odd) + odd) if oddities else st.just(""),
    )


@st.composite
def days_of_facts(draw: st.DrawFn, max_deeds: int = 12) -> list[Fact]:
    """A traveller's facts of a day or some, in the order of his deeds, which is not always that of their times."""
    old = [] if "before any tariff" in UNSETTLED else [BEFORE_ANY_TARIFF]
    day = draw(st.sampled_from([*DAYS, *DAYS, *old]))
    category = draw(st.sampled_from(["adult"] * 5 + CATEGORIES))
    media = draw(st.tuples(*[st.sampled_from(MEDIA)] * 2))
    begin = draw(st.sampled_from([2 * HOUR, 2 * HOUR + 30 * MINUTE, 5 * HOUR, 7 * HOUR, 21 * HOUR]))
    return recorded(day, category, media, begin, draw(st.lists(deeds(), min_size=1, max_size=max_deeds)))


@st.composite
def weeks_of_facts(draw: st.DrawFn) -> list[Fact]:
    """A traveller who does much the same every day of a week, so that weekly caps, quotas and books come into play."""
    monday = draw(st.sampled_from([date(2026, 2, 23), date(2026, 3, 2), date(2026, 3, 9), date(2025, 12, 29)]))
    category = draw(st.sampled_from(["adult"] * 5 + ["student", "elderly"]))
    media = draw(st.tuples(*[st.sampled_from(MEDIA)] * 2))
    kinds = ("metro", "metro", "bus", "brt")
    usual = draw(st.lists(deeds(kinds, oddities=False), min_size=3, max_size=7))
    usual = [deed._replace(wait=min(deed.wait, HOUR), stay=min(deed.stay, HOUR)) for deed in usual]
    facts: list[Fact] = []
    for number in range(draw(st.integers(2, 9))):
        deeds_today = usual
        if draw(st.booleans()):
            deeds_today = [*usual, draw(deeds())]
        facts += recorded(monday + timedelta(days=number), category, media, 6 * HOUR, deeds_today, first=1000 * number)
    return facts


def recorded(day: date, category: str, media: Sequence[str], begin: int, done: Sequence[Deed], first: int = 0) -> list[Fact]:
    """The facts that a day of deeds leaves behind."""
    midnight = int(datetime.combine(day, datetime.min.time(), ZONE).astimezone(UTC).timestamp()) * 1000
    book = _Book(category, media, midnight + begin, first)
    for deed in done:
        book.do(deed)
    return book.facts


class _Book:
    def __init__(self, category: str, media: Sequence[str], now: int, first: int) -> None:
        self.category, self.media, self.now, self.sequence = category, media, now, first
        self.facts: list[Fact] = []

    def do(self, deed: Deed) -> None:
        self.now += deed.wait
        if deed.oddity == "until the day turns":  # 02:30 at UTC+7 is 19:30 UTC
            turn = 19 * HOUR + 30 * MINUTE
            self.now += (turn - self.now) % (24 * HOUR) + (deed.stay % 3 - 1)
        before = self.now
        if deed.what == "buy":
            self._buy(deed)
        elif deed.what == "bus":
            self._board(deed, None, BUSES[deed.start % len(BUSES)])
        elif deed.what == "pier":
            self._board(deed, PIERS[deed.start % len(PIERS)], None)
        else:
            self._ride(deed, METRO if deed.what == "metro" else BRT, "ML1" if deed.what == "metro" else "BRT1")
        if deed.oddity == "overlap":
            self.now = before

    def _ride(self, deed: Deed, stops: Sequence[str], route: str) -> None:
        start = stops[deed.start % len(stops)]
        end = start if deed.oddity == "same stop" else stops[deed.end % len(stops)]
        # a stop outside the network tells nothing without its route
        named = route if deed.oddity in ("with route", "unknown stop", "unknown first stop", "no stop") else None
        if deed.oddity != "no entry":
            self._tap(deed, "entry", start, named)
        self.now += deed.stay
        if deed.oddity == "other token exits":
            deed = deed._replace(token=1 - deed.token)
        if deed.oddity != "no exit":
            self._tap(deed, "exit", end, named)

    def _board(self, deed: Deed, stop: str | None, route: str | None) -> None:
        if deed.oddity == "odd route":
            route = ODD_ROUTES[deed.end % 2]
        if deed.oddity == "no route":
            stop, route = stop or METRO[deed.end], None
        if deed.oddity == "same stop":
            stop = stop or METRO[deed.end]  # a bus that stops at a station, if the terminal says so
        self._tap(deed, "exit" if deed.oddity == "exit on board" else "entry" if deed.end % 5 == 0 else "board", stop, route)

    def _tap(self, deed: Deed, action: str, stop: str | None, route: str | None) -> None:
        odd = deed.oddity
        if odd == ("unknown first stop" if action == "entry" else "unknown stop"):
            stop = "no-such-stop"
        tap = Tap(
            *self._stamp(deed),
            action=action,  # type: ignore[arg-type]
            token_id=f"token-{deed.token}",
            media=MEDIA[deed.end % len(MEDIA)] if odd == "other medium" else self.media[deed.token],
            rider_category=CATEGORIES[deed.end % len(CATEGORIES)] if odd == "other category" else self.category,
            stop_id=None if odd == "no stop" else stop,
            route_id=route,
            operator_id="OP-SAIGONBUS" if odd == "operator" else None,
            persons={"two persons": 2, "three persons": 3}.get(odd, 1),
        )
        self.facts.append(tap)
        if odd == "cancel last" or (odd == "cancel first" and action != "exit"):
            self.facts.append(Cancellation(*self._stamp(deed), tap_id=tap.fact_id, reason="gate not opened"))

    def _buy(self, deed: Deed) -> None:
        product = PRODUCTS[(deed.start * 14 + deed.end) % len(PRODUCTS)]
        token = f"token-{deed.token}"
        self.facts.append(Purchase(*self._stamp(deed), token, self.media[deed.token], self.category, product))

    def _stamp(self, deed: Deed) -> tuple[str, int, str, str, int]:
        self.sequence += 1
        device = ("d2", "d10", "d1")[deed.device]
        return (f"{device}/a/{self.sequence}", self.now, device, "a", self.sequence)
