"""What a tariff says, as frozen values: the rows of the GTFS Fares v2 tables and of `tariff.toml` (docs/tariff.md).

Nothing here prices anything or knows a file. Amounts are whole minor units; a `networks`, `media` or `rider_categories`
list that is empty means any."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Literal, TypeAlias

import msgspec

OPERATORS = "operators"
"""The bearer of what nobody refunds: the operators of the pool simply receive less."""

State: TypeAlias = Literal["in_force", "proposed", "draft", "withdrawn"]


class Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A row of `tariff.toml`. `status` says whether its figures are published or assumed, `source` where they stand."""

    status: Literal["published", "assumed"] = "published"
    source: str = ""
    note: str = ""


class Name(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What riders read, in Vietnamese and English."""

    vi: str
    en: str


class Head(Row, frozen=True, kw_only=True):
    """Which version this is, from when, and the few facts that hold for all of it."""

    version: str
    name: Name
    state: State
    valid_from: date
    valid_to: date | None = None
    """The last service day, or None."""
    currency: str
    service_day_start: str = "00:00"
    """When the service day turns, local time HH:MM."""


class TapRule(Row, frozen=True, kw_only=True):
    """How riders tap on some networks, and what a tap that never came costs."""

    rule_id: str
    name: Name
    networks: tuple[str, ...]
    taps: Literal["entry", "entry_exit"]
    hold: Literal["none", "highest_fare"] = "none"
    longest_stay_minutes: int = 0
    """An exit later than this after the entry is overdue. Needed with entry_exit."""
    same_stop_grace_minutes: int = 0
    """Leaving where one entered costs nothing up to this many minutes (change of mind); 0: the table's price."""
    missing_exit: Literal["highest_fare", "lowest_fare"] = "highest_fare"
    missing_entry: Literal["highest_fare", "lowest_fare"] = "highest_fare"
    late_exit: Literal["closes_leg", "missing_entry"] = "closes_leg"
    """An exit after the longest stay: it closes the leg already charged, or counts as one without an entry."""
    missing_counts_toward_caps: bool = False


class Discount(Row, frozen=True, kw_only=True):
    """A concession or campaign: less than the list fare, and who pays the difference."""

    rule_id: str
    name: Name
    kind: Literal["percent", "amount", "price"]
    """`percent` off, `amount` off, or the `price` that is left to pay."""
    value: int
    bearer: str
    networks: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    rider_categories: tuple[str, ...] = ()
    media: tuple[str, ...] = ()
    """`wallet` means every wallet; `wallet:zalopay` only that one."""
    except_media: tuple[str, ...] = ()
    valid_from: date | None = None
    valid_to: date | None = None
    weekdays: tuple[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"], ...] = ()
    quota_per_day: int = 0
    """At most this many legs a traveller and service day; 0: no limit."""


class JoiningRule(Row, frozen=True, kw_only=True):
    """Two consecutive legs that are priced as a group: an amount off each when the second is ridden."""

    rule_id: str
    name: Name
    from_networks: tuple[str, ...]
    to_networks: tuple[str, ...]
    window_minutes: int
    window_from: Literal["entry", "exit"]
    """The tap of the first leg from which the window runs, up to the first tap of the second."""
    end: Literal["before", "at"] = "at"
    resolution: Literal["second", "minute"] = "second"
    max_transfers: int = 1
    rider_categories: tuple[str, ...] = ()
    media: tuple[str, ...] = ()
    off_first: int = 0
    off_second: int = 0
    bearer: str


class Cap(Row, frozen=True, kw_only=True):
    """The most that the counted legs of one period cost together; what is above it is taken off."""

    rule_id: str
    name: Name
    period: Literal["service_day", "week"]
    amount: int
    networks: tuple[str, ...] = ()
    rider_categories: tuple[str, ...] = ()
    media: tuple[str, ...] = ()
    bearer: str = OPERATORS


class Product(Row, frozen=True, kw_only=True):
    """A pass (unlimited legs for some days) or a book (a number of legs), sold apart from the legs."""

    product_id: str
    name: Name
    kind: Literal["pass", "book"]
    price: int
    networks: tuple[str, ...]
    rider_categories: tuple[str, ...] = ()
    days: int = 0
    """A pass: how many service days it is valid, from `starts`."""
    starts: Literal["first_tap", "purchase"] = "first_tap"
    trips: int = 0
    """A book: how many legs it covers, until the end of the calendar year of its sale."""
    covers_up_to: int = 0
    """A book: the dearest list fare a coupon is taken for; 0: any."""


class TariffFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole `tariff.toml`."""

    tariff: Head
    tap_rules: tuple[TapRule, ...] = ()
    discounts: tuple[Discount, ...] = ()
    joining_rules: tuple[JoiningRule, ...] = ()
    caps: tuple[Cap, ...] = ()
    products: tuple[Product, ...] = ()


class FareProductRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `fare_products.txt`: what a product costs with a medium and for a rider category (None: any)."""

    row: int
    fare_product_id: str
    name: str
    rider_category_id: str | None
    fare_media_id: str | None
    amount: int


class FareLegRule(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `fare_leg_rules.txt`; None is an empty field."""

    row: int
    leg_group_id: str | None
    network_id: str | None
    from_area_id: str | None
    to_area_id: str | None
    from_timeframe_group_id: str | None
    to_timeframe_group_id: str | None
    fare_product_id: str
    rule_priority: int


class Timeframe(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `timeframes.txt`: seconds of the local day, `start <= t < end` (GTFS), on the days of a service."""

    row: int
    group_id: str
    start: int
    end: int
    service_id: str


class Calendar(msgspec.Struct, frozen=True, kw_only=True):
    """When a service runs: `calendar.txt` and the exceptions of `calendar_dates.txt`, as day numbers."""

    weekdays: tuple[bool, ...]
    first_day: int
    last_day: int
    added: frozenset[int]
    removed: frozenset[int]

    def runs_on(self, day: int) -> bool:
        """Whether the service runs on a local date."""
        if day in self.added:
            return True
        regular = self.first_day <= day <= self.last_day and self.weekdays[(day + 3) % 7]
        return regular and day not in self.removed


class Stop(msgspec.Struct, frozen=True, kw_only=True):
    """A place where riders tap."""

    stop_id: str
    name: str
    lat: float
    lon: float


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """A line, its agency (the operator owed unless the tap names another) and its mode."""

    route_id: str
    short_name: str
    long_name: str
    agency_id: str
    route_type: int


class Party(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who can owe or be owed money: an operator (from `agency.txt`) or a row of `parties.csv`."""

    party_id: str
    name_vi: str
    name_en: str
    kind: str


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """The city's GTFS feed, as far as fares and pages need it."""

    timezone: str
    parties: Mapping[str, Party]
    stops: Mapping[str, Stop]
    routes: Mapping[str, Route]
    network_of_route: Mapping[str, str]
    networks: Mapping[str, str]
    """network_id → its name."""
    areas_of_stop: Mapping[str, tuple[str, ...]]
    areas: frozenset[str]
    routes_of_stop: Mapping[str, tuple[str, ...]]
    stops_of_route: Mapping[str, tuple[str, ...]]
    """Stops in the order of one trip; empty where the route has no trip."""
    calendars: Mapping[str, Calendar]


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """One tariff version: its `tariff.toml` and its Fares v2 tables."""

    folder: str
    file: TariffFile
    media: frozenset[str]
    categories: frozenset[str]
    default_category: str
    products: tuple[FareProductRow, ...]
    leg_rules: tuple[FareLegRule, ...]
    has_priority: bool
    timeframes: tuple[Timeframe, ...]

    @property
    def version_id(self) -> str:
        """The version's name, which is its folder's."""
        return self.file.tariff.version


class Tariff(msgspec.Struct, frozen=True, kw_only=True):
    """A city: its network and every version of its fares, by first day."""

    name: str
    network: Network
    versions: tuple[Version, ...]
    forced: bool = False
    """True where the caller named one version's folder: it prices everything, whatever its dates and state."""
