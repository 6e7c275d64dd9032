"""What a tariff says, as frozen values: the rows of the GTFS Fares v2 tables and of `tariff.toml` (docs/tariff.md).

Nothing here prices anything or knows a file. Amounts are whole minor units; a `networks`, `media` or `rider_categories`
list that is empty means any."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from decimal import Decimal
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


class Conditions(Row, frozen=True, kw_only=True):
    """What a leg must be for a row to hold; an empty list means any (docs/tariff.md, "Conditions")."""

    networks: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    """Route ids, or ranges of route numbers: `500-599`."""
    operators: tuple[str, ...] = ()
    rider_categories: tuple[str, ...] = ()
    media: tuple[str, ...] = ()
    """`wallet` means every wallet; `wallet:zalopay` only that one."""
    except_media: tuple[str, ...] = ()
    from_areas: tuple[str, ...] = ()
    to_areas: tuple[str, ...] = ()
    either_areas: tuple[str, ...] = ()
    within_areas: tuple[str, ...] = ()
    except_areas: tuple[str, ...] = ()
    timeframes: tuple[str, ...] = ()
    exit_timeframes: tuple[str, ...] = ()
    service_ids: tuple[str, ...] = ()
    except_service_ids: tuple[str, ...] = ()
    weekdays: tuple[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"], ...] = ()
    valid_from: date | None = None
    valid_to: date | None = None


class Head(Row, frozen=True, kw_only=True):
    """Which version this is, from when, and the few facts that hold for all of it."""

    version: str
    name: Name
    state: State
    valid_from: date
    valid_to: date | None = None
    """The last service day, or None."""
    currency: str
    minor_digits: int = 0
    """How many decimals of the currency's unit riders read."""
    service_day_start: str = "00:00"
    """When the service day turns, local time HH:MM."""
    media: tuple[str, ...] = ()
    rider_categories: tuple[str, ...] = ()
    """The first is the default. Both stand here where there are no GTFS tables for them."""
    case_policies: tuple[str, ...] = ()
    """The policies of priced cases that this version prices (docs/cases.md)."""


class Band(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A price up to a measure: `up_to` includes its end, `below` does not, neither is all the rest."""

    up_to: Decimal | None = None
    below: Decimal | None = None
    amount: int | None = None
    """None: the price of such a ride is not known."""


class Step(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`amount` for every `step` begun beyond `from`, up to `to`."""

    start: Decimal = msgspec.field(name="from")
    step: Decimal
    amount: int
    to: Decimal | None = None


Rounding: TypeAlias = Literal["half_up", "half_even", "up", "down"]
Use: TypeAlias = Literal["ride", "hold", "missing_exit", "missing_entry", "same_stop", "overstay", "joined", "extension"]


class LegPriceRow(Conditions, frozen=True, kw_only=True):
    """What a leg costs, where GTFS has no words: by distance, stops, zones, pairs, or for another use than a ride."""

    rule_id: str
    name: Name | None = None
    priority: int = 0
    use: Use = "ride"
    by: Literal["flat", "distance", "stops", "route_length", "zones", "zone_count", "pairs"] = "flat"
    amount: int | None = None
    bands: tuple[Band, ...] = ()
    base: Decimal | None = None
    per_unit: Decimal = Decimal(0)
    steps: tuple[Step, ...] = ()
    amounts: dict[str, int] = {}
    pairs: tuple[tuple[str, str, int], ...] = ()
    symmetric: bool = False
    unit: Decimal = Decimal(0)
    unit_rounding: Literal["nearest", "up", "down"] = "nearest"
    counts_at_most: Decimal = Decimal(0)
    measure: Literal["table", "straight_line"] = "table"
    minimum: int = 0
    maximum: int = 0
    rounding: Rounding = "half_up"
    round_to: int = 1
    stay_over_minutes: int = 0
    stay_up_to_minutes: int = 0
    candidates: tuple[str, ...] = ()


class TapRule(Row, frozen=True, kw_only=True):
    """How riders tap on some networks, and what a tap that never came costs."""

    rule_id: str
    name: Name
    networks: tuple[str, ...]
    taps: Literal["entry", "entry_exit"]
    hold: Literal["none", "highest_fare", "priced"] = "none"
    longest_stay_minutes: int = 0
    """An exit later than this after the entry is overdue. Needed with entry_exit."""
    overstay: Literal["missing_exit", "surcharge"] = "missing_exit"
    """An overdue leg is charged at once as a missing exit, or stays open and pays a surcharge at its exit."""
    same_stop_grace_minutes: int = 0
    """Leaving where one entered costs nothing up to this many minutes (change of mind); 0: the table's price."""
    missing_exit: Literal["highest_fare", "lowest_fare", "priced"] = "highest_fare"
    missing_entry: Literal["highest_fare", "lowest_fare", "priced"] = "highest_fare"
    late_exit: Literal["closes_leg", "missing_entry"] = "closes_leg"
    """An exit after the longest stay: it closes the leg already charged, or counts as one without an entry."""
    completes: tuple[Literal["next_tap", "habit"], ...] = ()
    """How a missing exit is completed by itself, tried in this order; a leg that nothing completes costs its `missing_exit`."""
    missing_counts_toward_caps: bool = False
    missing_joins: bool = False
    """Whether a leg without exit still continues legs priced as one."""
    closed_by: Literal["entry_here", "any_entry"] = "entry_here"
    """Which next entry of the token shows that the exit is missing: one on the same network, or any."""
    owner: Literal["entry", "exit"] = "entry"
    """The tap whose version owns the leg."""


class Accounts(Row, frozen=True, kw_only=True):
    """What holds for accounts: when a prepaid one lets a rider in, and what comes too late to be collected or given back."""

    prepaid_above: int = 0
    """A ride may be begun with more than this."""
    prepaid_floor: int | None = None
    """No ride may be begun that leaves less than this, by what is taken when it begins; None: any may."""
    charge_within_days: int | None = None
    """What is charged for a service day longer ago than this is waived; None: never."""
    refund_within_days: int | None = None
    """What would be given back for a service day longer ago than this is kept; None: never."""
    waivers_borne_by: str = ""
    """The party that bears what is waived, and has what is kept."""


class Surcharge(Conditions, frozen=True, kw_only=True):
    """Something on top of the fare: outside discounts and products, and outside caps that do not count surcharges."""

    rule_id: str
    name: Name
    amount: int


class Discount(Conditions, frozen=True, kw_only=True):
    """A concession or campaign: less than the list fare, and who pays the difference."""

    rule_id: str
    name: Name
    kind: Literal["percent", "amount", "price"]
    """`percent` off, `amount` off, or the `price` that is left to pay."""
    value: Decimal
    bearer: str
    quota_per_day: int = 0
    """At most this many legs a traveller and service day; 0: no limit."""
    missing: bool = True
    """Whether it is given on a leg with a missing tap, too."""
    rounding: Rounding = "half_up"
    round_to: int = 1
    round: Literal["off", "left"] = "off"
    """What is rounded: what comes off, or what is left to pay."""


class LinkFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a leg may follow another."""

    from_networks: tuple[str, ...] = ()
    to_networks: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    """Short for both."""
    from_routes: tuple[str, ...] = ()
    to_routes: tuple[str, ...] = ()
    from_areas: tuple[str, ...] = ()
    to_areas: tuple[str, ...] = ()
    stop_pairs: tuple[tuple[str, str], ...] = ()
    window_minutes: int = 0
    window_from: Literal["entry", "exit"] = "exit"
    """The tap of the earlier leg from which the window runs."""
    window_to: Literal["entry", "exit"] = "entry"
    """The tap of the later leg that must lie in it."""
    from_leg_groups: tuple[str, ...] = ()
    to_leg_groups: tuple[str, ...] = ()
    """Leg groups of `fare_leg_rules.txt`."""
    window_of: Literal["previous", "first"] = "previous"
    end: Literal["before", "at"] = "at"
    resolution: Literal["second", "minute"] = "second"
    differs: tuple[Literal["network", "route", "operator", "stop"], ...] = ()
    timeframes: tuple[str, ...] = ()


Worth: TypeAlias = Literal["pair", "dearest", "percents", "position", "through", "distance", "longest_pair", "zones", "base_once"]
AS_ONE: frozenset[str] = frozenset(("position", "through", "distance", "longest_pair", "zones", "base_once"))
"""Kinds of worth that act on list fares, before discounts: legs priced as one."""
AFTER_DISCOUNTS: frozenset[str] = frozenset(("dearest", "percents"))
"""Kinds of worth of groups that act on what legs cost after discounts."""


class JoiningRule(Conditions, frozen=True, kw_only=True):
    """Legs that belong together, and what they are worth together."""

    rule_id: str
    name: Name
    worth: Worth = "pair"
    links: tuple[LinkFields, ...] = ()
    from_networks: tuple[str, ...] = ()
    to_networks: tuple[str, ...] = ()
    from_routes: tuple[str, ...] = ()
    to_routes: tuple[str, ...] = ()
    from_areas: tuple[str, ...] = ()
    to_areas: tuple[str, ...] = ()
    stop_pairs: tuple[tuple[str, str], ...] = ()
    window_minutes: int = 0
    window_from: Literal["entry", "exit"] = "exit"
    window_to: Literal["entry", "exit"] = "entry"
    from_leg_groups: tuple[str, ...] = ()
    to_leg_groups: tuple[str, ...] = ()
    window_of: Literal["previous", "first"] = "previous"
    end: Literal["before", "at"] = "at"
    resolution: Literal["second", "minute"] = "second"
    restarts: Literal["never", "on_payment"] = "never"
    span_minutes: int = 0
    max_transfers: int = 1
    skips: bool = True
    same: tuple[Literal["service_day", "network", "route", "operator"], ...] = ()
    differs: tuple[Literal["network", "route", "operator", "stop"], ...] = ()
    owner: Literal["first_leg", "leg"] = "first_leg"
    off_first: int = 0
    off_second: int = 0
    percent_off_second: Decimal = Decimal(0)
    percents: tuple[Decimal, ...] = ()
    transfer_amounts: tuple[int, ...] = ()
    below_zero: Literal["kept", "paid_back"] = "kept"
    bearer: str = OPERATORS


Period: TypeAlias = Literal["service_day", "week", "month", "days", "window"]


class Cap(Conditions, frozen=True, kw_only=True):
    """The most that the counted legs of one period cost together; what is above it is taken off."""

    rule_id: str
    name: Name
    period: Period
    amount: int
    period_days: int = 0
    window_minutes: int = 0
    end: Literal["before", "at"] = "at"
    counts: Literal["fare", "surcharge"] = "fare"
    owner: Literal["leg", "period"] = "leg"
    bearer: str = OPERATORS


class Candidate(Conditions, frozen=True, kw_only=True):
    """Something a window may be priced with: an amount, and the legs that cost nothing more under it."""

    candidate_id: str
    name: Name
    amount: int


class BestOf(Conditions, frozen=True, kw_only=True):
    """A window of legs that is worth the least over every choice of its candidates."""

    rule_id: str
    name: Name
    period: Period
    period_days: int = 0
    window_minutes: int = 0
    end: Literal["before", "at"] = "at"
    at_most: int = 1
    candidates: tuple[Candidate, ...]
    bearer: str = OPERATORS


class RewardStep(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Once `after` have been counted (and not more than `until`), the next leg costs `percent` less."""

    after: int
    percent: Decimal
    until: int = 0


class Reward(Conditions, frozen=True, kw_only=True):
    """The n-th ride of a period costs less."""

    rule_id: str
    name: Name
    period: Literal["service_day", "week", "month", "days"]
    period_days: int = 0
    counts: Literal["legs", "journeys", "spending"] = "legs"
    journeys_of: tuple[str, ...] = ()
    paid_only: bool = True
    steps: tuple[RewardStep, ...]
    owner: Literal["leg", "period"] = "leg"
    """Whose version's steps hold: the leg's, or that of the period's first leg."""
    rounding: Rounding = "half_up"
    round_to: int = 1
    bearer: str = OPERATORS


class Tier(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """By spending: `percent` of what was spent above `above`, up to the next tier. By legs: `percent` of everything spent, or
    `amount` a leg, once more than `above` were ridden."""

    above: int = 0
    percent: Decimal = Decimal(0)
    amount: int = 0


class Rebate(Conditions, frozen=True, kw_only=True):
    """Money back after a period, by what was spent in it."""

    rule_id: str
    name: Name
    period: Literal["week", "month"]
    by: Literal["spending", "legs"] = "spending"
    tiers: tuple[Tier, ...]
    at_least: int = 0
    """How many legs must have been counted."""
    maximum: int = 0
    owner: Literal["first_leg", "last_leg"] = "first_leg"
    """Whose version's tiers hold: that of the period's first counted leg, or of its last."""
    rounding: Rounding = "half_up"
    round_to: int = 1
    bearer: str


class Product(Conditions, frozen=True, kw_only=True):
    """A pass (unlimited legs for some days), a book (a number of legs) or credit, sold apart from the legs."""

    product_id: str
    name: Name
    kind: Literal["pass", "book", "credit"]
    price: int
    days: int = 0
    """A pass: how many service days it is valid, from `starts`."""
    minutes: int = 0
    """A pass: instead of days, so long after its first tap or its purchase."""
    lasts: Literal["days", "week", "month"] = "days"
    """A pass: so many days, or to the end of the week or month of its sale."""
    starts: Literal["first_tap", "purchase"] = "first_tap"
    trips: int = 0
    """A book: how many legs it covers, until the end of the calendar year of its sale."""
    covers_up_to: int = 0
    """A book: the dearest list fare a coupon is taken for; 0: any."""
    owner: Literal["sale", "leg"] = "sale"
    """Whose version says which legs it covers: that of its sale, or the leg's own where that knows the product."""
    keeps_price: bool = False
    """Credit: legs are priced by the version under which the oldest credit not yet used up was bought."""


class CaseNames(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How priced cases call this version's media and rider categories."""

    media: dict[str, str] = {}
    categories: dict[str, str] = {}


class TariffFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole `tariff.toml`."""

    tariff: Head
    leg_prices: tuple[LegPriceRow, ...] = ()
    accounts: Accounts = Accounts()
    tap_rules: tuple[TapRule, ...] = ()
    surcharges: tuple[Surcharge, ...] = ()
    joining_rules: tuple[JoiningRule, ...] = ()
    discounts: tuple[Discount, ...] = ()
    products: tuple[Product, ...] = ()
    caps: tuple[Cap, ...] = ()
    best_of: tuple[BestOf, ...] = ()
    rewards: tuple[Reward, ...] = ()
    rebates: tuple[Rebate, ...] = ()
    cases: CaseNames = CaseNames()


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


class FareTransferRule(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `fare_transfer_rules.txt`; None is an empty field."""

    row: int
    from_leg_group_id: str | None
    to_leg_group_id: str | None
    transfer_count: int | None
    """How many transfers in a row; -1: no limit. Only where both groups are the same."""
    duration_limit: int | None
    """Seconds."""
    duration_limit_type: int
    """0: first tap of the earlier leg to last tap of the later one; 1: first to first; 2: last to first; 3: last to last."""
    fare_transfer_type: int
    """0: the first leg and the transfer product; 1: both legs and the product; 2: the product alone."""
    fare_product_id: str | None


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
    lat: float | None
    lon: float | None


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """A line, its agency (the operator owed unless the tap names another) and its mode."""

    route_id: str
    short_name: str
    long_name: str
    agency_id: str
    route_type: int


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `services.csv`: the network of taps whose route the feed does not list; an empty field means any."""

    network_id: str
    mode: str
    operator: str
    routes: tuple[str, ...]


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
    services: tuple[Service, ...] = ()
    distances: Mapping[tuple[str, str], int] = {}
    """Metres between two stops, by `distances.csv`, in both directions."""


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """One tariff version: its `tariff.toml` and its Fares v2 tables."""

    folder: str
    file: TariffFile
    media: frozenset[str]
    default_medium: str
    """Whom nothing is known of is quoted for this one: the first that is not cash."""
    categories: frozenset[str]
    default_category: str
    products: tuple[FareProductRow, ...]
    leg_rules: tuple[FareLegRule, ...]
    transfer_rules: tuple[FareTransferRule, ...] = ()
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
