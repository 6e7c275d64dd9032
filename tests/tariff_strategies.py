"""Random tariffs of every kind of rule, and travellers who meet them.

The city has a metro and a tram with gates, buses, a ferry known only by its mode, and a coach that no tariff prices. Numbers
are small, so that roundings, limits and ties come up often. What is drawn is drawn from a `Random`: Hypothesis gives one that
shrinks towards the first of every list and towards rules that are not there."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any, NamedTuple, TypeVar
from zoneinfo import ZoneInfo

import msgspec
from hypothesis import strategies as st

from fare_engine.facts import Cancellation, Fact, Given, Purchase, Tap
from fare_engine.service_day import to_day
from fare_engine.tariff.checks import check
from fare_engine.tariff.compile import CompiledTariff
from fare_engine.tariff.model import (
    AS_ONE,
    Band,
    BestOf,
    Calendar,
    Candidate,
    Cap,
    Discount,
    FareLegRule,
    FareProductRow,
    Head,
    JoiningRule,
    LegPriceRow,
    LinkFields,
    Name,
    Network,
    Party,
    Product,
    Rebate,
    Reward,
    RewardStep,
    Route,
    Service,
    Step,
    Stop,
    Surcharge,
    TapRule,
    Tariff,
    TariffFile,
    Tier,
    Timeframe,
    Version,
)

T = TypeVar("T")
SECOND, MINUTE, HOUR, DAY = 1000, 60_000, 3_600_000, 86_400_000

# ---- the city

GATED = {"metro": ("A", "B", "C", "D"), "tram": ("C", "E", "F")}
"""C is a station of both: a tap there alone does not tell its network."""
ROUTES = {"metro": ("M",), "tram": ("T",), "bus": ("10", "510", "599"), "coach": ("X",)}
PRICED = ("metro", "tram", "bus", "ferry")
STOPS = {
    "A": (0.0, 0.0), "B": (0.0, 0.02), "C": (0.01, 0.04), "D": (0.0, 0.09), "E": (0.03, 0.04), "F": (0.06, 0.04),
    "G": (0.02, 0.02), "H": (None, None),
}  # fmt: skip
AREAS = {"A": ("1", "centre"), "B": ("1", "2"), "C": ("2",), "D": ("3", "airport"), "E": ("2",), "F": ("3",), "G": ("1",)}
AREA_IDS = ("1", "2", "3", "centre", "airport")
PARTIES = ("RAIL", "BUSCO", "COOP", "BOATS", "CITY")
BEARERS = ("operators", "operators", "CITY", "BUSCO")
CATEGORIES = ("adult", "student", "elderly")
MEDIA = ("emv", "wallet", "cash")
TAPPED_MEDIA = ("emv", "emv", "emv", "wallet:zalopay", "wallet:momo", "cash")
CALENDARS = {
    "WORK": Calendar(
        weekdays=(True,) * 5 + (False,) * 2,
        first_day=to_day(date(2025, 1, 1)),
        last_day=to_day(date(2027, 12, 31)),
        added=frozenset({to_day(date(2026, 3, 7))}),
        removed=frozenset({to_day(date(2026, 3, 4))}),
    ),
    "WEEKEND": Calendar(
        weekdays=(False,) * 5 + (True,) * 2,
        first_day=to_day(date(2025, 1, 1)),
        last_day=to_day(date(2027, 12, 31)),
        added=frozenset(),
        removed=frozenset(),
    ),
    "FEAST": Calendar(
        weekdays=(False,) * 7,
        first_day=to_day(date(2025, 1, 1)),
        last_day=to_day(date(2025, 1, 1)),
        added=frozenset(to_day(date(2026, 3, day)) for day in (3, 4, 31)),
        removed=frozenset(),
    ),
}
ZONES = ("Asia/Ho_Chi_Minh", "Europe/London")
"""One without summer time and one with it."""
DAYS = (
    date(2026, 3, 2),
    date(2026, 3, 3),
    date(2026, 3, 6),
    date(2026, 3, 8),
    date(2026, 2, 27),
    date(2026, 3, 28),
    date(2025, 12, 30),
)
"""Where travellers begin; the versions change on 4 March. Sundays, the end of a month and of a year, and summer time lie near."""
FIRST_DAYS = (date(2025, 6, 1), date(2026, 3, 4), date(2026, 3, 9))


def network(zone: str, measured: bool = True) -> Network:
    """The city, with or without its table of distances."""
    agencies = {"metro": "RAIL", "tram": "RAIL", "bus": "BUSCO", "coach": "COOP"}
    network_of = {route: name for name, routes in ROUTES.items() for route in routes}
    calls = {ROUTES[name][0]: stops for name, stops in GATED.items()} | {"10": ("G", "H")}
    km = {("A", "B"): 2_200, ("B", "C"): 2_600, ("A", "C"): 4_700, ("C", "E"): 2_200, ("A", "D"): 10_050, ("E", "F"): 3_300}
    return Network(
        timezone=zone,
        parties={name: Party(party_id=name, name_vi=name, name_en=name, kind="operator") for name in PARTIES},
        stops={name: Stop(stop_id=name, name=name, lat=at[0], lon=at[1]) for name, at in STOPS.items()},
        routes={
            route: Route(route_id=route, short_name=route, long_name=route, agency_id=agencies[name], route_type=3)
            for route, name in network_of.items()
        },
        network_of_route=network_of,
        networks={name: name for name in (*ROUTES, "ferry")},
        areas_of_stop=AREAS,
        areas=frozenset(AREA_IDS),
        routes_of_stop={stop: tuple(route for route, stops in calls.items() if stop in stops) for stop in STOPS},
        stops_of_route=calls,
        calendars=CALENDARS,
        services=(
            Service(network_id="bus", mode="", operator="", routes=("500-599",)),
            Service(network_id="ferry", mode="boat", operator="", routes=()),
            Service(network_id="ferry", mode="", operator="BOATS", routes=()),
        ),
        distances={pair: metres for (one, two), metres in km.items() for pair in ((one, two), (two, one))} if measured else {},
    )


class World(NamedTuple):
    """A tariff and what a traveller did under it."""

    tariff: Tariff
    facts: list[Fact]

    @property
    def compiled(self) -> CompiledTariff:
        """The tariff, ready to price."""
        return CompiledTariff(self.tariff)

    def __repr__(self) -> str:
        rows = [
            f"{version.version_id}: {_shown(row)}"
            for version in self.tariff.versions
            for table in TariffFile.__struct_fields__
            for row in (getattr(version.file, table) if isinstance(getattr(version.file, table), tuple) else ())
        ]
        heads = [
            f"{version.version_id}: {_shown(version.file.tariff)} table={bool(version.leg_rules)}"
            for version in self.tariff.versions
        ]
        return "\n".join([self.tariff.network.timezone, *heads, *rows, *(_shown(fact) for fact in self.facts)])


def _shown(value: Any) -> str:
    """A row without what it does not say."""
    kind = type(value)
    fields = msgspec.structs.fields(kind)
    said = {
        field.name: getattr(value, field.name)
        for field in fields
        if field.name not in ("name", "device_id", "epoch") and getattr(value, field.name) != field.default
    }
    shown = ", ".join(
        f"{name}={_shown(found) if isinstance(found, msgspec.Struct) else repr(found)}"
        for name, found in said.items()
        if found != ()
    )
    return f"{kind.__name__}({shown})"


# ---- a version's rows

NAME = Name("x", "x")
_FIELDS = (
    "networks", "rider_categories", "media", "routes", "operators", "except_media", "from_areas", "to_areas", "either_areas",
    "within_areas", "except_areas", "timeframes", "exit_timeframes", "service_ids", "except_service_ids", "weekdays",
    "valid_from", "valid_to",
)  # fmt: skip
"""The conditions that a row may have."""


class Kinds(NamedTuple):
    """Which tables a tariff has, and how they may differ from version to version."""

    versions: int = 3
    surcharges: int = 2
    joining_rules: int = 3
    discounts: int = 2
    products: int = 2
    caps: int = 2
    best_of: int = 1
    rewards: int = 1
    rebates: int = 1
    credits: bool = True
    changes: frozenset[str] = frozenset(
        (
            "leg_prices",
            "tap_rules",
            "surcharges",
            "joining_rules",
            "discounts",
            "products",
            "caps",
            "rewards",
            "rebates",
            "best_of",
        )
    )
    """Tables whose rows may change under the same id from one version to the next."""


EVERYTHING = Kinds()


class Rows:
    """Draws the rows of tables."""

    def __init__(self, random: Random, kinds: Kinds) -> None:
        self.random, self.kinds = random, kinds

    # ---- what is drawn

    def of(self, choices: Sequence[T]) -> T:
        """One of them; the first is the simplest."""
        return choices[self.random.randint(0, len(choices) - 1)]

    def some(self, choices: Sequence[T], most: int = 2) -> tuple[T, ...]:
        """One or more of them."""
        found = {self.random.randint(0, len(choices) - 1) for _ in range(self.random.randint(1, most))}
        return tuple(choices[number] for number in sorted(found))

    def chance(self, percent: int) -> bool:
        """So often true; simplest is false."""
        return self.random.randint(0, 99) >= 100 - percent

    def amount(self, most: int = 60, least: int = 1) -> int:
        """An amount, often a round one."""
        return self.random.randint(least, most)

    def percent(self) -> Decimal:
        """A per cent."""
        return self.of((Decimal(50), Decimal(100), Decimal(25), Decimal("33.3"), Decimal(10), Decimal(0)))

    def rounded(self, often: int = 30) -> dict[str, Any]:
        """How an amount is rounded."""
        if not self.chance(often):
            return {}
        return {"rounding": self.of(("half_up", "half_even", "up", "down")), "round_to": self.of((1, 5, 10))}

    def conditions(self, often: int = 40, networks: bool = True, whole: bool = True) -> dict[str, Any]:
        """Conditions of a row: mostly none or one. `whole` false leaves out those on the exit."""
        found: dict[str, Any] = {}
        while self.chance(often):
            field = self.of(_FIELDS)
            if (field == "networks" and not networks) or (not whole and field in ("to_areas", "exit_timeframes")):
                continue
            found[field] = self._condition(field)
            often = min(often, 30)
        if found.get("valid_from") and found.get("valid_to") and found["valid_to"] < found["valid_from"]:
            del found["valid_to"]
        return found

    def _condition(self, field: str) -> Any:
        if field in ("valid_from", "valid_to"):
            return self.of((date(2026, 3, 3), date(2026, 3, 5), date(2026, 2, 28)))
        choices: Sequence[Any] = {
            "networks": PRICED,
            "rider_categories": CATEGORIES,
            "media": ("emv", "wallet", "wallet:momo"),
            "except_media": ("cash", "wallet:zalopay"),
            "routes": ("10", "500-599", "M", "boat-1"),
            "operators": ("BUSCO", "RAIL", "BOATS"),
            "timeframes": ("peak", "late"),
            "exit_timeframes": ("peak", "late"),
            "service_ids": tuple(CALENDARS),
            "except_service_ids": tuple(CALENDARS),
            "weekdays": ("mon", "tue", "wed", "sat", "sun"),
        }.get(field, (*AREA_IDS, "A", "C", "G"))
        return self.some(choices, 3)

    # ---- leg prices

    def price(self, rule_id: str, use: str, networks: tuple[str, ...], by: str = "", **fields: Any) -> LegPriceRow:
        """A row of leg_prices."""
        gates = set(networks) <= set(GATED)
        told = (
            ("distance", "stops", "zones", "zone_count", "pairs")
            if gates or self.chance(10)
            else ("flat", "route_length", "distance")
        )
        by = by or self.of(("flat", *told))
        found: dict[str, Any] = {"rule_id": rule_id, "use": use, "by": by, "networks": networks, **fields}
        if by == "flat":
            found["amount"] = self.amount(40, 0)
        elif by == "zones":
            keys = ("1", "2", "3", "1-2", "2-3", "1-3")
            found["amounts"] = {key: self.amount() for key in (self.some(keys, 8) if self.chance(20) else keys)}
        elif by == "pairs":
            places = (*AREA_IDS, "A", "B", "C", "E")
            drawn = [(self.of(places), self.of(places), self.amount()) for _ in range(self.random.randint(0, 5))]
            zones = [(one, other, self.amount()) for one in AREA_IDS[:3] for other in AREA_IDS[:3] if self.chance(70)]
            found["pairs"] = (*drawn, ("1", "2", self.amount()), *zones)
            found["symmetric"] = self.chance(50)
        elif self.chance(50):
            found["bands"] = self._bands()
        else:
            found |= {
                "base": self.of((Decimal(10), Decimal("7.5"), Decimal(0))),
                "per_unit": self.of((Decimal(2), Decimal("1.25"))),
            }
            if self.chance(30):
                found["steps"] = (Step(start=Decimal(1), step=Decimal(2), amount=self.amount(9), to=self.of((None, Decimal(5)))),)
        if by == "distance":
            found["measure"] = self.of(("straight_line", "table"))
            if self.chance(30):
                found |= {"unit": self.of((Decimal("0.5"), Decimal(1))), "unit_rounding": self.of(("nearest", "up", "down"))}
            if self.chance(20):
                found["counts_at_most"] = Decimal("4.5")
        if by != "flat":
            found |= self.rounded(20)
            if self.chance(15):
                found |= {"minimum": 5, "maximum": 40}
        return LegPriceRow(**found)

    def _bands(self) -> tuple[Band, ...]:
        ends = [Decimal(1), Decimal("2.2"), Decimal(5)][: self.random.randint(0, 3)]
        inside = self.chance(50)
        bands = [Band(up_to=end if inside else None, below=None if inside else end, amount=self.amount()) for end in ends]
        return tuple(bands) if bands and self.chance(15) else (*bands, Band(amount=self.of((45, 30, 50, None))))

    def leg_prices(self, table: bool) -> list[LegPriceRow]:
        """What legs cost, where the GTFS tables do not say."""
        rows = [
            self.price(f"ride-{name}", "ride", (name,), "" if self.chance(35 if name in GATED else 10) else "flat")
            for name in PRICED
            if not table or name == "ferry"
        ]
        for number in range(self.of((0, 0, 1, 2))):
            rows.append(
                self.price(
                    f"more-{number}", "ride", self.some(PRICED), priority=self.of((0, 1)), **self.conditions(60, networks=False)
                )
            )
        for use in ("hold", "missing_exit", "missing_entry", "same_stop", "overstay", "joined", "extension"):
            while self.chance(60):
                fields: dict[str, Any] = self.conditions(15, networks=False, whole=use not in ("hold", "missing_exit"))
                if use in ("same_stop", "overstay") and self.chance(40):
                    fields |= {"stay_over_minutes": self.of((0, 5, 20)), "stay_up_to_minutes": self.of((0, 30, 100))}
                networks = self.of((PRICED, ("metro",), ("tram",), ("bus",)))
                by = self.of(("", "distance")) if use == "joined" else "flat"
                rows.append(self.price(f"for-{use}-{len(rows)}", use, networks, by, **fields))
        return rows

    # ---- the other tables

    def tap_rules(self) -> list[TapRule]:
        """How riders tap on each network."""
        gates = [self._gates(name) for name in ("metro", "tram")]
        ferry = (
            self._gates("ferry")
            if self.chance(40)
            else TapRule(rule_id="taps-ferry", name=NAME, networks=("ferry",), taps="entry")
        )
        return [*gates, ferry, TapRule(rule_id="taps-bus", name=NAME, networks=("bus",), taps="entry")]

    def _gates(self, name: str) -> TapRule:
        return TapRule(
            rule_id=f"taps-{name}",
            name=NAME,
            networks=(name,),
            taps="entry_exit",
            hold=self.of(("none", "highest_fare", "priced")),
            longest_stay_minutes=self.of((180, 60, 120)),
            overstay=self.of(("missing_exit", "surcharge")),
            same_stop_grace_minutes=self.of((0, 5, 20)),
            missing_exit=self.of(("highest_fare", "lowest_fare", "priced")),
            missing_entry=self.of(("highest_fare", "lowest_fare", "priced")),
            late_exit=self.of(("closes_leg", "missing_entry")),
            missing_counts_toward_caps=self.chance(30),
            missing_joins=self.chance(30),
            closed_by=self.of(("entry_here", "any_entry")),
            owner=self.of(("entry", "entry", "exit")),
        )

    def surcharge(self, rule_id: str) -> Surcharge:
        """A surcharge."""
        return Surcharge(rule_id=rule_id, name=NAME, amount=self.amount(9), **self.conditions())

    def discount(self, rule_id: str) -> Discount:
        """A discount."""
        kind = self.of(("percent", "amount", "price"))
        return Discount(
            rule_id=rule_id,
            name=NAME,
            kind=kind,
            value=self.percent() if kind == "percent" else Decimal(self.amount(30, 0)),
            bearer=self.of(BEARERS),
            quota_per_day=self.of((0, 0, 1, 2)),
            missing=not self.chance(20),
            round=self.of(("off", "left")),
            **self.rounded(40),
            **self.conditions(60),
        )

    def joining_rule(self, rule_id: str, worth: str = "", owner: str = "") -> JoiningRule:
        """A joining rule."""
        worth = worth or self.of(("pair", "pair", "pair", "dearest", "dearest", "percents", *sorted(AS_ONE)))
        fields: dict[str, Any] = {"max_transfers": self.of((1, 2, 3)), "skips": not self.chance(25), "bearer": self.of(BEARERS)}
        if self.chance(40):
            fields["links"] = tuple(self.link() for _ in range(self.random.randint(1, 2)))
        else:
            link = msgspec.structs.asdict(self.link())
            del link["networks"], link["timeframes"], link["differs"]
            fields |= link
        windows = [link.window_minutes for link in fields.get("links", ())] or [fields["window_minutes"]]
        if not all(windows):
            fields["same"] = ("service_day",)
        elif self.chance(20):
            fields["same"] = self.some(("service_day", "network", "route", "operator"))
        if self.chance(15):
            fields["differs"] = self.some(("network", "route", "operator", "stop"))
        if self.chance(15):
            fields["span_minutes"] = self.of((30, 90, 200))
        if worth == "pair":
            fields |= {
                "off_first": self.of((0, 3, 10)),
                "off_second": self.of((0, 4, 15)),
                "percent_off_second": self.of((Decimal(0), Decimal(50))),
            }
        elif worth == "percents":
            fields["percents"] = self.of(((Decimal(100), Decimal(0)), (Decimal(100), Decimal("33.3"), Decimal(50))))
        elif worth == "position":
            fields["transfer_amounts"] = self.of(((0,), (12, 7), (30, 0, 5)))
        if worth in AS_ONE:
            fields["below_zero"] = self.of(("kept", "kept", "paid_back"))
        conditions = self.conditions(20, networks=not fields.get("links"))
        return JoiningRule(
            rule_id=rule_id,
            name=NAME,
            worth=worth,  # type: ignore[arg-type]
            owner=owner or self.of(("first_leg", "leg")),  # type: ignore[arg-type]
            restarts=self.of(("never", "on_payment")),
            **{**conditions, **fields},
        )

    def link(self) -> LinkFields:
        """When a leg may follow another."""
        found: dict[str, Any] = {"window_minutes": self.of((60, 120, 30, 0)), "window_from": self.of(("entry", "exit"))}
        while self.chance(20):
            field = self.of(("from_networks", "to_networks", "from_routes", "to_routes", "from_areas", "to_areas", "stop_pairs"))
            if field.endswith("networks"):
                found[field] = self.some(PRICED, 3)
            elif field.endswith("routes"):
                found[field] = self.some(("10", "500-599", "M"))
            elif field.endswith("areas"):
                found[field] = self.some((*AREA_IDS, "B", "C"))
            else:
                found[field] = ((self.of(("C", "B")), self.of(("C", "E", "2"))),)
        found |= {
            "window_of": self.of(("previous", "first")),
            "end": self.of(("at", "before")),
            "resolution": self.of(("second", "minute")),
        }
        if found["window_from"] == "exit" and {"bus", "ferry"}.intersection(found.get("from_networks", ())):
            found["window_from"] = "entry"
        if self.chance(5):
            found["timeframes"] = ("peak",)
        if self.chance(10):
            found["differs"] = self.some(("network", "route", "operator", "stop"))
        return LinkFields(**found)

    def product(self, product_id: str) -> Product:
        """Something that is sold."""
        kinds = ("pass", "book", "credit") if self.kinds.credits else ("pass", "book")
        kind = self.of(kinds)
        lasts = self.of(("days", "days", "week", "month")) if kind == "pass" else "days"
        return Product(
            product_id=product_id,
            name=NAME,
            kind=kind,
            price=self.amount(100),
            days=self.of((1, 3, 40)) if kind == "pass" else 0,
            lasts=lasts,
            starts="purchase" if lasts != "days" else self.of(("first_tap", "purchase")),
            trips=self.of((2, 5)) if kind == "book" else 0,
            covers_up_to=self.of((0, 0, 20)) if kind == "book" else 0,
            keeps_price=kind == "credit" and not self.chance(20),
            **{
                **self.conditions(25, networks=False),
                "networks": self.of((PRICED, ("metro", "tram"), ("bus",), ("metro",))),
                **({"within_areas": self.some(AREA_IDS)} if self.chance(40) else {}),
            },
        )

    def cap(self, rule_id: str) -> Cap:
        """A cap."""
        return Cap(rule_id=rule_id, name=NAME, amount=self.amount(120), **self._period(), **self._capped(), **self.conditions(40))

    def _capped(self) -> dict[str, Any]:
        return {
            "counts": self.of(("fare", "fare", "fare", "surcharge")),
            "owner": self.of(("leg", "period")),
            "bearer": self.of(BEARERS),
        }

    def _period(self, window: bool = True) -> dict[str, Any]:
        period = self.of(("service_day", "week", "month", "days", *(("window",) if window else ())))
        if period == "days":
            return {"period": period, "period_days": self.of((2, 3, 30))}
        if period == "window":
            return {"period": period, "window_minutes": self.of((60, 240, 1440)), "end": self.of(("at", "before"))}
        return {"period": period}

    def best_of(self, rule_id: str) -> BestOf:
        """A window with candidates."""
        candidates = tuple(self.candidate(number) for number in range(self.random.randint(1, 4)))
        return BestOf(
            rule_id=rule_id,
            name=NAME,
            at_most=self.of((1, 2)),
            candidates=candidates,
            bearer=self.of(BEARERS),
            **self._period(),
            **self.conditions(20),
        )

    def candidate(self, number: int) -> Candidate:
        """One of its candidates."""
        within = {"within_areas": self.some(AREA_IDS)} if self.chance(40) else {}
        found = {**self.conditions(40), **within}
        return Candidate(candidate_id=f"candidate-{number}", name=NAME, amount=self.amount(90, 0), **found)

    def reward(self, rule_id: str, journeys: Sequence[str], counts: str = "") -> Reward:
        """A reward."""
        counts = counts or self.of(("legs", "spending", *(("journeys",) if journeys else ())))
        steps = sorted({self.random.randint(0, 40 if counts == "spending" else 5) for _ in range(self.random.randint(1, 3))})
        return Reward(
            rule_id=rule_id,
            name=NAME,
            counts=counts,  # type: ignore[arg-type]
            journeys_of=tuple(journeys) if counts == "journeys" else (),
            paid_only=not self.chance(30),
            steps=tuple(RewardStep(after=after, percent=self.percent(), until=self.of((0, 0, after + 3))) for after in steps),
            bearer=self.of(BEARERS),
            **self._period(window=False),
            **self.rounded(),
            **self.conditions(25),
        )

    def rebate(self, rule_id: str) -> Rebate:
        """A rebate."""
        by = self.of(("spending", "spending", "legs"))
        above = sorted({self.random.randint(0, 60 if by == "spending" else 4) for _ in range(self.random.randint(1, 3))})
        each = self.amount(5, 0) if by == "legs" and self.chance(50) else 0
        return Rebate(
            rule_id=rule_id,
            name=NAME,
            by=by,
            period=self.of(("week", "month")),
            tiers=tuple(Tier(above=limit, amount=each) if each else Tier(above=limit, percent=self.percent()) for limit in above),
            at_least=self.of((0, 0, 2)),
            maximum=self.of((0, 0, 10)),
            bearer=self.of(BEARERS),
            **self.rounded(),
            **self.conditions(25),
        )

    # ---- a whole version

    def tables(self) -> dict[str, list[Any]]:
        """All tables of a version but the prices."""
        kinds = self.kinds
        joining = [self.joining_rule(f"joined-{n}") for n in range(self._rows(kinds.joining_rules))]
        return {
            "surcharges": [self.surcharge(f"surcharge-{n}") for n in range(self._rows(kinds.surcharges))],
            "joining_rules": joining,
            "discounts": [self.discount(f"discount-{n}") for n in range(self._rows(kinds.discounts))],
            "products": [self.product(f"product-{n}") for n in range(self._rows(kinds.products))],
            "caps": [self.cap(f"cap-{n}") for n in range(self._rows(kinds.caps))],
            "best_of": [self.best_of(f"best-{n}") for n in range(self._rows(kinds.best_of))],
            "rewards": [self.reward(f"reward-{n}", [row.rule_id for row in joining]) for n in range(self._rows(kinds.rewards))],
            "rebates": [self.rebate(f"rebate-{n}") for n in range(self._rows(kinds.rebates))],
        }

    def _rows(self, most: int) -> int:
        """How many rows of a table: often none, else as often one as more."""
        return self.random.randint(1, most) if most and self.chance(60) else 0

    def changed(self, tables: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """The tables of the next version: rows stay, go, or change under their own id."""
        found: dict[str, list[Any]] = {}
        for table, rows in tables.items():
            kept = [row for row in rows if not self.chance(15)]
            found[table] = [
                self._changed(table, row, found) if table in self.kinds.changes and self.chance(35) else row for row in kept
            ]
        known = {row.rule_id for row in found["joining_rules"]}
        found["rewards"] = [row for row in found["rewards"] if known.issuperset(row.journeys_of)]
        return found

    def _changed(self, table: str, row: Any, found: dict[str, list[Any]]) -> Any:
        if table == "joining_rules":
            return self.joining_rule(row.rule_id, row.worth, row.owner)
        if table == "products":
            return self.product(row.product_id)
        if table == "rewards":
            journeys = [joined.rule_id for joined in found["joining_rules"]]
            if row.counts == "journeys" and not journeys:
                return row
            new = self.reward(row.rule_id, journeys, row.counts)
            return msgspec.structs.replace(new, period=row.period, period_days=row.period_days)
        if table == "surcharges":
            return self.surcharge(row.rule_id)
        if table == "discounts":
            return self.discount(row.rule_id)
        new: Any = {"caps": self.cap, "best_of": self.best_of, "rebates": self.rebate}[table](row.rule_id)  # type: ignore[operator]
        kept = ("period", "period_days", "window_minutes", "end", "counts")
        return msgspec.structs.replace(new, **{name: getattr(row, name) for name in kept if hasattr(row, name)})

    def version(
        self, number: int, table: bool, tables: dict[str, list[Any]], prices: list[LegPriceRow], taps: list[TapRule]
    ) -> Version:
        """A version of these rows."""
        offered = {candidate.candidate_id for best in tables["best_of"] for candidate in best.candidates}
        offered |= {product.product_id for product in tables["products"]}
        if offered:
            prices = [
                msgspec.structs.replace(row, candidates=(self.of(sorted(offered)),))
                if row.use == "extension" and self.chance(40)
                else row
                for row in prices
            ]
        entry_only = {name for rule in taps if rule.taps == "entry" for name in rule.networks}
        tables = {**tables, "joining_rules": [_with_taps_to_run_from(row, entry_only) for row in tables["joining_rules"]]}
        head = Head(
            version=f"v{number}",
            name=NAME,
            state="in_force",
            valid_from=FIRST_DAYS[number],
            valid_to=date(2026, 3, 10) if self.chance(5) else None,
            currency="VND",
            service_day_start=self.of(("02:30", "00:00", "01:30")),
            media=MEDIA,
            rider_categories=CATEGORIES,
        )
        rows: dict[str, Any] = {name: tuple(found) for name, found in tables.items()}
        return Version(
            folder=f"v{number}",
            file=TariffFile(tariff=head, leg_prices=tuple(prices), tap_rules=tuple(taps), **rows),
            media=frozenset(MEDIA),
            categories=frozenset(CATEGORIES),
            default_category="adult",
            default_medium="emv",
            products=self._fares() if table else (),
            leg_rules=_LEG_RULES if table else (),
            has_priority=False,
            timeframes=_TIMEFRAMES,
        )

    def _fares(self) -> tuple[FareProductRow, ...]:
        keys: list[tuple[str, str | None, str | None]] = [(name, None, None) for name in ("short", "long", "tram", "bus", "peak")]
        keys += [("short", "student", None), ("long", None, "cash"), ("bus", "elderly", "wallet")]
        return tuple(
            FareProductRow(
                row=row,
                fare_product_id=name,
                name=name,
                rider_category_id=category,
                fare_media_id=medium,
                amount=self.amount(50, 0),
            )
            for row, (name, category, medium) in enumerate(keys)
        )

    def tariff(self) -> Tariff:
        """A city with its versions."""
        table = self.chance(40)
        versions = self.random.randint(1, self.kinds.versions)
        tables, prices, taps = self.tables(), self.leg_prices(table), self.tap_rules()
        found = [self.version(0, table, tables, prices, taps)]
        for number in range(1, versions):
            tables = self.changed(tables)
            prices = self.leg_prices(table) if self.chance(50) and "leg_prices" in self.kinds.changes else prices
            taps = self.tap_rules() if self.chance(30) and "tap_rules" in self.kinds.changes else taps
            found.append(self.version(number, table, tables, prices, taps))
        city = network(self.of(ZONES), not self.chance(30))
        tariff = Tariff(name="random", network=city, versions=tuple(found))
        check(tariff)
        return tariff


def _with_taps_to_run_from(row: JoiningRule, entry_only: set[str]) -> JoiningRule:
    """A window that would run from an exit tap which nobody makes runs from the entry."""

    def mended(link: Any) -> Any:
        named = link.from_networks or link.networks or row.networks
        return msgspec.structs.replace(link, window_from="entry") if entry_only.intersection(named) else link

    return msgspec.structs.replace(row, links=tuple(map(mended, row.links))) if row.links else mended(row)


def _leg_rule(
    row: int, network_id: str, start: str | None, end: str | None, product: str, timeframe: str | None = None
) -> FareLegRule:
    return FareLegRule(
        row=row,
        leg_group_id=network_id,
        network_id=network_id,
        from_area_id=start,
        to_area_id=end,
        from_timeframe_group_id=timeframe,
        to_timeframe_group_id=None,
        fare_product_id=product,
        rule_priority=0,
    )


_LEG_RULES = (
    *(
        _leg_rule(n, "metro", a, b, "short")
        for n, (a, b) in enumerate([("1", "1"), ("1", "2"), ("2", "1"), ("2", "2"), ("3", "3")])
    ),
    *(_leg_rule(10 + n, "metro", a, b, "long") for n, (a, b) in enumerate([("1", "3"), ("3", "1"), ("3", "2")])),
    _leg_rule(20, "metro", "1", "2", "peak", "peak"),
    *(_leg_rule(30 + n, "tram", a, b, "tram") for n, (a, b) in enumerate([("2", "3"), ("3", "2"), ("2", "2"), ("3", "3")])),
    _leg_rule(40, "bus", None, None, "bus"),
)
_TIMEFRAMES = (
    Timeframe(row=1, group_id="peak", start=7 * 3600, end=9 * 3600, service_id="WORK"),
    Timeframe(row=2, group_id="late", start=22 * 3600, end=86_400, service_id="WORK"),
    Timeframe(row=3, group_id="late", start=0, end=5 * 3600, service_id="WEEKEND"),
)

# ---- travellers

_edges = [edge + by for edge in (30 * MINUTE, 60 * MINUTE, 2 * HOUR, 3 * HOUR, DAY) for by in (0, -1, 1, SECOND)]
_SHORT = [5 * MINUTE, 12 * MINUTE, 0, 1, 25 * MINUTE, 40 * MINUTE, 90 * SECOND, 10 * MINUTE]
_WAITS = [*_SHORT, *_SHORT, *_SHORT, 4 * HOUR, 11 * HOUR, 20 * HOUR, 2 * DAY, *_edges]
_STAYS = [*_SHORT, *_SHORT, *_SHORT, 61 * MINUTE, *_edges]
_ODDITIES = (
    *("",) * 20, "no exit", "no exit", "no entry", "same stop", "other token exits", "other medium", "other category",
    "two persons", "unknown stop", "no stop", "exit on board", "unknown network", "coach", "operator",
    "cancelled", "overlap", "overlap", "until the day turns", "until the day turns", "given", "given", "given",
)  # fmt: skip


class _Traveller:
    """What a traveller does, one thing after another; facts are named by their number."""

    def __init__(self, rows: Rows, tariff: Tariff) -> None:
        self.rows, self.tariff = rows, tariff
        day = rows.of(DAYS)
        zone = ZoneInfo(tariff.network.timezone)
        start = datetime.combine(day, datetime.min.time(), zone) + timedelta(hours=rows.of((7, 9, 1, 21)))
        self.now = int(start.astimezone(UTC).timestamp()) * 1000
        medium = rows.of(TAPPED_MEDIA)
        self.media = (medium, rows.of(TAPPED_MEDIA) if rows.chance(40) else medium)
        self.category = rows.of(CATEGORIES)
        self.products = sorted({row.product_id for version in tariff.versions for row in version.file.products})
        self.facts: list[Fact] = []

    def do(self) -> None:
        rows = self.rows
        before = self.now
        self.now += rows.of(_WAITS)
        odd = rows.of(_ODDITIES)
        if odd == "until the day turns":
            self._wait_for_the_turn()
        if self.products and rows.chance(18):
            loaded = rows.of((None, 5, 40))
            place, token = self._place(), rows.of((0, 1))
            product = rows.of([*self.products, *self.products, "no-such-product"])
            self.facts.append(Purchase(*place, f"token-{token}", self.media[token], self.category, product, loaded))
            return
        self._ride(rows.of(("bus", "metro", "tram", "metro", "bus", "ferry")), rows.of((0, 0, 0, 1)), odd)
        if odd == "overlap":
            self.now = before

    def _ride(self, name: str, token: int, odd: str) -> None:
        rows = self.rows
        if name in GATED:
            route = ROUTES[name][0] if odd in ("no stop", "unknown stop") or rows.chance(30) else None
            start, end = rows.of(GATED[name]), rows.of(GATED[name])
            end = start if odd == "same stop" else end
            if "C" in (start, end) and rows.chance(85):
                route = ROUTES[name][0]
            if odd != "no entry":
                self._tap("entry", start, route, token, odd, name)
            if odd != "no exit":
                self.now += rows.of(_STAYS)
                self._tap("exit", end, route, 1 - token if odd == "other token exits" else token, odd, name)
            return
        stop = rows.of((None, None, None, "G", "H", "B"))
        route = rows.of(("10", "510", "599", "555")) if name == "bus" else rows.of((None, "boat-1"))
        self._tap("exit" if odd == "exit on board" else rows.of(("board", "entry")), stop, route, token, odd, name)
        if name == "ferry" and rows.chance(60):
            self.now += rows.of(_STAYS)
            self._tap("exit", rows.of((None, "G", "H")), route, token, odd, name)

    def _tap(self, action: str, stop: str | None, route: str | None, token: int, odd: str, name: str) -> None:
        rows = self.rows
        if odd == "coach":
            route = "X"
        elif odd == "unknown network":
            stop, route = None, "no-such-route"
        elif odd == "unknown stop" and rows.chance(60):
            stop = "no-such-stop"
        elif odd == "no stop" and rows.chance(60):
            stop = None
        given = self._given(odd) if odd == "given" or (name == "ferry" and odd != "unknown network") else None
        if name == "ferry" and odd != "unknown network":
            given = msgspec.structs.replace(given or Given(), mode="boat")
        tap = Tap(
            *self._place(),
            action=action,  # type: ignore[arg-type]
            token_id=f"token-{token}",
            media=rows.of(TAPPED_MEDIA) if odd == "other medium" else self.media[token],
            rider_category=rows.of(CATEGORIES) if odd == "other category" else self.category,
            stop_id=stop,
            route_id=route,
            operator_id=rows.of(("COOP", "BUSCO")) if odd == "operator" else None,
            persons=2 if odd == "two persons" else 1,
            given=given,
        )
        self.facts.append(tap)
        if odd == "cancelled" and rows.chance(60):
            self.facts.append(Cancellation(*self._place(), tap_id=tap.fact_id, reason="gate not opened"))

    def _given(self, odd: str) -> Given | None:
        rows = self.rows
        if odd != "given":
            return None
        found: dict[str, Any] = {}
        while rows.chance(60):
            found |= rows.of(
                (
                    {"distance_m": rows.of((2_200, 900, 12_345))},
                    {"areas": rows.some(("1", "2", "3"))},
                    {"position": (0.0, rows.of((0.01, 0.05)))},
                    {"chain_distance_m": rows.of((5_000, 1_000, 20_000))},
                    {"stops": rows.of((1, 4))},
                    {"route_length_m": rows.of((4_000, 25_000))},
                    {"list_fare": rows.of((7, 0, 33))},
                )
            )
        return Given(**found)

    def _wait_for_the_turn(self) -> None:
        """To about the turn of the service day, where that is at half past two without summer time."""
        turn = 19 * HOUR + 30 * MINUTE if self.tariff.network.timezone == ZONES[0] else 2 * HOUR + 30 * MINUTE
        self.now += (turn - self.now) % DAY + self.rows.of((-10 * MINUTE, 0, -1))

    def _place(self) -> tuple[str, int, str, str, int]:
        number = len(self.facts) + 1
        return (str(number), self.now, self.rows.of(("d1", "d2")), "e", number)


def a_world(random: Random, kinds: Kinds = EVERYTHING, deeds: int = 12) -> World:
    """A tariff and a traveller, drawn from `random`."""
    rows = Rows(random, kinds)
    tariff = rows.tariff()
    traveller = _Traveller(rows, tariff)
    for _ in range(random.randint(1, deeds)):
        traveller.do()
    return World(tariff, traveller.facts)


def worlds(kinds: Kinds = EVERYTHING, deeds: int = 12) -> st.SearchStrategy[World]:
    """Tariffs of every kind of rule, and a traveller's facts."""
    return st.randoms(use_true_random=False).map(lambda random: a_world(random, kinds, deeds))
