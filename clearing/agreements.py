"""Agreements between operators, as dated data: who gets what of which money, who pays fees, subsidies and taxes.

`clearing.toml` stands in the city's folder; docs/clearing.md says what each field means. Loaded and checked whole: every fault is
named with its place and value, and nothing of a faulty file is used. Pure but for the reading of the file."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import date, timedelta
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from fare_engine.errors import CloseError, Fault, InputError
from fare_engine.ledger import SINGLE

Method: TypeAlias = Literal[
    "own_leg",  # whoever carries a leg receives its money
    "standalone_fares",  # in proportion to what each leg alone would cost
    "paid_fares",  # in proportion to what each leg costs after discounts and transfers, before caps
    "tariff_km",  # to the distance of each leg
    "passenger_km",  # to distance times persons
    "boardings",  # to persons
    "fixed",  # by agreed shares
    "per_ride",  # an amount for each ride to its operator, the rest to one party
    "gross_cost",  # all to the authority that pays its operators otherwise
    "use",  # of passes and books: by the rides that they paid
]
Covers: TypeAlias = Literal["legs", "fares", "surcharges", "coupons", "discounts", "transfers", "rewards", "caps", "products"]
Scope: TypeAlias = Literal["leg", "journey", "service_day", "week", "month"]
Base: TypeAlias = Literal["settled", "cash_held", "sales", "rides"]

KINDS: Mapping[str, tuple[str, ...]] = {
    "fares": ("list_fare", "companions"),
    "surcharges": ("surcharge",),
    "coupons": ("product",),
    "discounts": ("discount",),
    "transfers": ("transfer",),
    "rewards": ("reward", "rebate"),
    "caps": ("cap",),
    "products": ("release", "expiry"),
}
"""What each word covers, in kinds of line; `legs` is all of them but caps and products."""
LEG_KINDS = tuple(kind for word, kinds in KINDS.items() if word not in ("caps", "products") for kind in kinds)
RIDERS = "riders"
"""Who pays what no bearer pays."""
WEIGHED = ("standalone_fares", "paid_fares", "tariff_km", "passenger_km", "boardings")
"""Methods that look at all legs of a scope."""
ALL_KINDS = {"legs": LEG_KINDS} | dict(KINDS)
LONG = ("week", "month")
OPEN_ITEMS = "0.1%"
KEPT_DAYS = 1095


class Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A row of the file: a field that is not known is an error."""


class Name(Strict, frozen=True, kw_only=True):
    """What accountants read, in two languages."""

    vi: str
    en: str


class Dated(Strict, frozen=True, kw_only=True):
    """A row that holds between two service dates, both included."""

    name: Name
    valid_from: date
    valid_to: date | None = None
    note: str = ""

    def holds_on(self, service_date: str) -> bool:
        """Whether the row is for a service date."""
        until = self.valid_to.isoformat() if self.valid_to else "9999-12-31"
        return self.valid_from.isoformat() <= service_date <= until


class Agreement(Dated, frozen=True, kw_only=True):
    """How some money is shared. An empty filter fits everything."""

    agreement_id: str
    covers: Covers
    method: Method
    scope: Scope | None = None
    """Over what a method that weighs looks; of `products`: over which period use is counted."""
    networks: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    """Only lines of these rules of the tariff, as one of several caps."""
    operators: tuple[str, ...] = ()
    """Only where all operators of the scope are among these: an agreement of a pair, or of a few."""
    products: tuple[str, ...] = ()
    paid_by: tuple[str, ...] = ()
    """Whose money: `riders`, a bearer, or `product:<id>`."""
    shares: Mapping[str, int] = {}
    """Method `fixed`: party → weight."""
    amount: int | None = None
    """Method `per_ride`: minor units for each person's ride."""
    residual: str | None = None
    """Method `per_ride`: who has the rest; method `gross_cost`: the authority."""
    weigh_by: Literal["standalone_fares", "boardings"] = "standalone_fares"
    """Method `use`: what of the rides counts."""
    unknown_m: Mapping[str, int] = {}
    """Methods by distance: network → metres of a leg whose distance is not known, as where nobody taps out."""
    without_use: Mapping[str, int] = {}
    """The weights where there is nothing to weigh: a day on which nobody rode with the product."""

    @property
    def weighs(self) -> bool:
        """Whether more than one leg must be looked at."""
        return self.method in WEIGHED and self.scope != "leg"

    def fits(self, kind: str, rule_id: str, network_id: str | None, paid_by: str, service_date: str) -> bool:
        """Whether a line is covered; which operators there are is asked apart."""
        return (
            kind in ALL_KINDS[self.covers]
            and self.holds_on(service_date)
            and (not self.networks or network_id in self.networks)
            and (not self.rules or rule_id.partition("/")[0] in self.rules)
            and (not self.products or product_of(kind, rule_id) in self.products)
            and (not self.paid_by or paid_by in self.paid_by)
        )


class Fee(Dated, frozen=True, kw_only=True):
    """A fee or commission: a per cent of an amount, or an amount for each ride."""

    fee_id: str
    paid_by: str
    """A party, or `operators`: each of them on his own base."""
    paid_to: str
    base: Base
    """`settled`: what he is given; `cash_held`: what his till holds; `sales`: passes and books sold; `rides`: their number."""
    percent: str | None = None
    amount: int | None = None
    networks: tuple[str, ...] = ()


class Subsidy(Dated, frozen=True, kw_only=True):
    """An amount that a funder pays for each recorded ride, to its operator."""

    subsidy_id: str
    paid_by: str
    amount: int
    networks: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    rider_categories: tuple[str, ...] = ()


class Tax(Dated, frozen=True, kw_only=True):
    """The VAT state of what is sold on some networks, or of some products."""

    state: Literal["exempt", "taxed"]
    percent: str = "0"
    networks: tuple[str, ...] = ()
    products: tuple[str, ...] = ()


class Head(Strict, frozen=True, kw_only=True):
    """The file's own version, which statements name, and the rules of the run."""

    agreement_version: str
    currency: str
    open_items_share: str = OPEN_ITEMS
    """Above this share of the taps, items without a price or a decision stop the publishing."""
    raw_taps_kept_days: int = KEPT_DAYS
    """How long every figure can be followed to its signed taps."""


class Agreements(Strict, frozen=True, kw_only=True):
    """A whole `clearing.toml`."""

    clearing: Head
    agreements: tuple[Agreement, ...]
    fees: tuple[Fee, ...] = ()
    subsidies: tuple[Subsidy, ...] = ()
    vat: tuple[Tax, ...] = ()

    def find(
        self,
        kind: str,
        rule_id: str,
        network_id: str | None,
        paid_by: str,
        service_date: str,
        operators: Collection[str] | None = None,
    ) -> Agreement:
        """The first agreement that covers a line. `operators`: those of the journey or day; none for products, which no agreement
        between some operators shares. CloseError where none is left."""
        for row in self.agreements:
            if not row.fits(kind, rule_id, network_id, paid_by, service_date):
                continue
            if row.operators and (operators is None or not set(operators) <= set(row.operators)):
                continue
            return row
        raise CloseError(
            f"no agreement covers {kind} {rule_id} paid by {paid_by} on {network_id or 'no network'} of {service_date}"
        )

    def weighing(self, through: str) -> list[Agreement]:
        """Those that look at more than one leg and hold on a date, or held before it."""
        return [row for row in self.agreements if row.weighs and row.valid_from.isoformat() <= through]

    def amounts_for(
        self, network_id: str | None, route_id: str | None, category: str, service_date: str
    ) -> Iterator[tuple[str, str, str, int]]:
        """What is paid for each person's ride: (`ride` or `subsidy`, its id, who pays it, how much)."""
        for row in self.agreements:
            if row.fits("list_fare", "", network_id, RIDERS, service_date):
                if row.method == "per_ride" and row.amount and row.residual:
                    yield "ride", row.agreement_id, row.residual, row.amount
                break
        for subsidy in self.subsidies:
            if (
                subsidy.holds_on(service_date)
                and (not subsidy.networks or network_id in subsidy.networks)
                and (not subsidy.routes or route_id in subsidy.routes)
                and (not subsidy.rider_categories or category in subsidy.rider_categories)
            ):
                yield "subsidy", subsidy.subsidy_id, subsidy.paid_by, subsidy.amount

    def row(self, agreement_id: str) -> Agreement:
        """An agreement by its id."""
        return next(row for row in self.agreements if row.agreement_id == agreement_id)

    def tax(self, network_id: str | None, product: str, service_date: str) -> Tax | None:
        """The VAT row for a sale; None: nothing is said, so it is exempt."""
        for row in self.vat:
            fits = (not row.networks or network_id in row.networks) and (not row.products or product in row.products)
            if fits and row.holds_on(service_date):
                return row
        return None

    @property
    def most_open(self) -> Fraction:
        """The share of the taps above which open items stop the publishing."""
        return _share(self.clearing.open_items_share)


def product_of(kind: str, rule_id: str) -> str:
    """The product whose money a line is; `single` for fares."""
    return rule_id.partition("/")[2] if kind in ("product", "release", "expiry") else SINGLE


def period_of(scope: str | None, service_date: str) -> tuple[str, str]:
    """The first and last service date of the period that a scope puts a date in: Monday to Sunday, a calendar month, the day."""
    day = date.fromisoformat(service_date)
    if scope == "week":
        first = day - timedelta(days=day.weekday())
        return first.isoformat(), (first + timedelta(days=6)).isoformat()
    if scope == "month":
        following = (day.replace(day=28) + timedelta(days=4)).replace(day=1)
        return day.replace(day=1).isoformat(), (following - timedelta(days=1)).isoformat()
    return service_date, service_date


# ---- loading


class Known(msgspec.Struct, frozen=True):
    """What the names in a file may name."""

    parties: frozenset[str]
    currency: str
    networks: frozenset[str] = frozenset()
    rules: frozenset[str] = frozenset()
    products: frozenset[str] = frozenset()
    categories: frozenset[str] = frozenset()
    routes: frozenset[str] = frozenset()


def load_agreements(path: Path, known: Known) -> Agreements:
    """The checked agreements of a file. InputError names every fault with its place and value."""
    try:
        found = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8-sig")), Agreements)
    except FileNotFoundError:
        raise InputError([Fault(str(path), None, "the file is missing")]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError([Fault(str(path), str(error), "cannot be read")]) from None
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise InputError([Fault(path.name, str(error), "not a clearing.toml")]) from None
    faults = list(_faults(found, path.name, known))
    if faults:
        raise InputError(faults)
    return found


def _faults(found: Agreements, file: str, known: Known) -> Iterator[Fault]:
    head = found.clearing
    if head.currency != known.currency:
        yield Fault(f"{file}: clearing.currency", head.currency, f"the tariff's is {known.currency}")
    try:
        _share(head.open_items_share)
    except ValueError as error:
        yield Fault(f"{file}: clearing.open_items_share", head.open_items_share, str(error))
    if head.raw_taps_kept_days < 1:
        yield Fault(f"{file}: clearing.raw_taps_kept_days", head.raw_taps_kept_days, "less than a day")
    for table, field, rows in (
        ("agreements", "agreement_id", found.agreements),
        ("fees", "fee_id", found.fees),
        ("subsidies", "subsidy_id", found.subsidies),
    ):
        yield from _repeated(file, table, field, rows)
    for number, row in enumerate(found.agreements):
        place = f"{file}: agreements[{number}] {row.agreement_id}"
        yield from _dates(place, row)
        yield from _method_faults(place, row)
        yield from _order_faults(place, row, found.agreements[:number])
        yield from _name_faults(place, row, known)
    for number, fee in enumerate(found.fees):
        place = f"{file}: fees[{number}] {fee.fee_id}"
        yield from _dates(place, fee)
        yield from _fee_faults(place, fee, known)
    for number, subsidy in enumerate(found.subsidies):
        place = f"{file}: subsidies[{number}] {subsidy.subsidy_id}"
        yield from _dates(place, subsidy)
        yield from _unknown(place, "paid_by", [subsidy.paid_by], known.parties, "party")
        yield from _unknown(place, "networks", subsidy.networks, known.networks, "network")
        yield from _unknown(place, "routes", subsidy.routes, known.routes, "route")
        yield from _unknown(place, "rider_categories", subsidy.rider_categories, known.categories, "rider category")
        if subsidy.amount <= 0:
            yield Fault(f"{place} amount", subsidy.amount, "a subsidy is above zero")
    for number, tax in enumerate(found.vat):
        place = f"{file}: vat[{number}]"
        yield from _dates(place, tax)
        yield from _unknown(place, "networks", tax.networks, known.networks, "network")
        yield from _unknown(place, "products", tax.products, known.products, "product")
        yield from _percent_faults(place, tax.percent)
        if tax.state == "exempt" and tax.percent != "0":
            yield Fault(f"{place} percent", tax.percent, "what is exempt has no rate")


def _method_faults(place: str, row: Agreement) -> Iterator[Fault]:
    if row.covers == "products" and row.method not in ("use", "fixed", "gross_cost"):
        yield Fault(f"{place} method", row.method, "passes and books are shared by use, fixed shares or gross_cost")
    if row.covers != "products" and row.method == "use":
        yield Fault(f"{place} method", row.method, "use is for products")
    if row.covers == "products" and row.operators:
        yield Fault(f"{place} operators", list(row.operators), "products are not shared by pairs of operators")
    if row.method == "per_ride" and row.covers != "legs":
        yield Fault(f"{place} covers", row.covers, "an amount for each ride needs the whole legs")
    if row.method in WEIGHED and row.scope is None:
        yield Fault(f"{place} scope", None, "a method that weighs needs one: leg, journey, service_day, week or month")
    if row.method == "use" and row.scope not in (None, "service_day", *LONG):
        yield Fault(f"{place} scope", row.scope, "use is counted by service_day, week or month")
    if row.method not in WEIGHED and row.method != "use" and row.scope is not None:
        yield Fault(f"{place} scope", row.scope, f"{row.method} has none")
    if row.operators and not row.weighs:
        yield Fault(
            f"{place} operators", list(row.operators), "only a method that weighs journeys or periods knows who took part"
        )
    if row.covers == "caps" and row.method in WEIGHED and row.scope == "leg":
        yield Fault(f"{place} scope", row.scope, "a cap stands for several legs")
    if (row.method == "fixed") != bool(row.shares) or (row.shares and not sum(row.shares.values())):
        yield Fault(f"{place} shares", dict(row.shares), "method fixed needs shares that are not all zero, and no other has them")
    if (row.method == "per_ride") != (row.amount is not None):
        yield Fault(f"{place} amount", row.amount, "method per_ride needs an amount, and no other has one")
    if row.amount is not None and row.amount < 0:
        yield Fault(f"{place} amount", row.amount, "below zero")
    if (row.method in ("per_ride", "gross_cost")) != (row.residual is not None):
        yield Fault(f"{place} residual", row.residual, "methods per_ride and gross_cost name who has the rest, and no other does")
    if row.unknown_m and row.method not in ("tariff_km", "passenger_km"):
        yield Fault(f"{place} unknown_m", dict(row.unknown_m), "only methods by distance have it")
    for name, weights in (("shares", row.shares), ("without_use", row.without_use), ("unknown_m", row.unknown_m)):
        for weight in weights.values():
            if weight < 0:
                yield Fault(f"{place} {name}", weight, "a weight is below zero")
    if row.method == "use" and not sum(row.without_use.values()):
        yield Fault(f"{place} without_use", dict(row.without_use), "a day without rides would pay nobody")


def _order_faults(place: str, row: Agreement, before: Iterable[Agreement]) -> Iterator[Fault]:
    """Amounts for rides are paid by what a ride itself tells, so its money must not hang on who else carried its rider."""
    for pair in before:
        apart = bool(row.networks) and bool(pair.networks) and not set(row.networks) & set(pair.networks)
        if row.method == "per_ride" and pair.operators and pair.covers in ("legs", "fares") and not apart:
            yield Fault(f"{place} method", row.method, f"stands behind {pair.agreement_id}, which is of some operators only")


def _name_faults(place: str, row: Agreement, known: Known) -> Iterator[Fault]:
    for field, names in (("without_use", row.without_use), ("shares", row.shares), ("operators", row.operators)):
        yield from _unknown(place, field, names, known.parties, "party")
    yield from _unknown(place, "residual", [row.residual] if row.residual else [], known.parties, "party")
    for field, names in (("networks", row.networks), ("unknown_m", row.unknown_m)):
        yield from _unknown(place, field, names, known.networks, "network")
    yield from _unknown(place, "rules", row.rules, known.rules, "rule")
    yield from _unknown(place, "products", row.products, known.products, "product")
    payers = known.parties | {"riders"} | {f"product:{name}" for name in known.products}
    yield from _unknown(place, "paid_by", row.paid_by, payers, "payer")


def _fee_faults(place: str, fee: Fee, known: Known) -> Iterator[Fault]:
    yield from _unknown(place, "paid_by", [fee.paid_by], known.parties | {"operators"}, "party")
    yield from _unknown(place, "paid_to", [fee.paid_to], known.parties, "party")
    yield from _unknown(place, "networks", fee.networks, known.networks, "network")
    if (fee.percent is None) == (fee.amount is None):
        yield Fault(f"{place} percent", fee.percent, "a fee is either a percent or an amount")
    if (fee.base == "rides") != (fee.amount is not None):
        yield Fault(f"{place} base", fee.base, "an amount is for each ride, a per cent of money")
    if fee.base == "sales" and fee.paid_by == "operators":
        yield Fault(f"{place} paid_by", fee.paid_by, "sales are not one operator's: name who pays")
    if fee.networks and fee.base in ("cash_held", "sales"):
        yield Fault(f"{place} networks", list(fee.networks), f"{fee.base} is not known by network")
    if fee.amount is not None and fee.amount <= 0:
        yield Fault(f"{place} amount", fee.amount, "a fee is above zero")
    if fee.percent is not None:
        yield from _percent_faults(place, fee.percent)


def _percent_faults(place: str, percent: str) -> Iterator[Fault]:
    try:
        value = Decimal(percent)
    except InvalidOperation:
        yield Fault(f"{place} percent", percent, 'no number: a per cent is written as "2.5"')
        return
    if not value.is_finite() or not 0 <= value <= 100:
        yield Fault(f"{place} percent", percent, "not between 0 and 100")


def _dates(place: str, row: Dated) -> Iterator[Fault]:
    if row.valid_to and row.valid_to < row.valid_from:
        yield Fault(f"{place} valid_to", str(row.valid_to), "before valid_from")


def _unknown(place: str, field: str, names: Iterable[str], known: Collection[str], what: str) -> Iterator[Fault]:
    for name in names:
        if name not in known:
            yield Fault(f"{place} {field}", name, f"names no {what}")


def _repeated(file: str, table: str, field: str, rows: Iterable[Dated]) -> Iterator[Fault]:
    seen: set[str] = set()
    for number, row in enumerate(rows):
        name = getattr(row, field)
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
            yield Fault(f"{file}: {table}[{number}] {field}", name, "letters, digits, - _ and . only")
        if name in seen:
            yield Fault(f"{file}: {table}[{number}] {field}", name, "stands twice")
        seen.add(name)


def _share(text: str) -> Fraction:
    """`0.1%` as a fraction; ValueError for what is none."""
    if not re.fullmatch(r"\d+(\.\d+)?%", text):
        raise ValueError('a share is written as "0.1%"')
    found = Fraction(text[:-1]) / 100
    if found > 1:
        raise ValueError("more than all")
    return found
