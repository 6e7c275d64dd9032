"""Passes and books: bought, used, and at their end.

A pass covers legs without limit for its days; what it cost is shared by its use, at clearing. A book's coupon covers one
leg, and its own part of the book's price goes to that leg's operator. A pass is used before a book, an older lot before a
newer one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fare_engine.facts import Purchase
from fare_engine.money import whole_parts
from fare_engine.pricing.lines import Leg, Line, LineKind, Sale
from fare_engine.pricing.state import NEVER, Lot
from fare_engine.service_day import day_starts_at, to_date, to_day
from fare_engine.tariff.model import Product

if TYPE_CHECKING:
    from fare_engine.pricing.fold import Fold

KEPT_DAYS = 3
"""A lot is dropped so many days after its last one: a ride that began on that day may end after the day's turn."""


def take_purchase(fold: Fold, purchase: Purchase) -> None:
    """A sale: one line with the product's price under the version of the day, and the lot that legs then use."""
    version = fold.tariff.version_at(purchase.at)
    product = version.products.get(purchase.product_id) if version else None
    if version is None or product is None:
        fold.ignored[purchase.fact_id] = f"no version in force sells the product {purchase.product_id}"
        return
    day = version.service_day(purchase.at)
    fold.sales[purchase.fact_id] = Sale(
        purchase.fact_id, product.product_id, purchase.token_id, purchase.media, purchase.at, day, version.version_id
    )
    lot = Lot(purchase.fact_id, product.product_id, version.version_id, day, None, None, 0, NEVER)
    _add_line(fold, lot, "sale", product.price, 0, day)
    fold.state.lots.append(lot)
    if product.kind == "book":
        lot.first_day, lot.last_day = day, to_day(to_date(day).replace(month=12, day=31))
        lot.next_due = _starts_at(fold, lot, lot.last_day + KEPT_DAYS)
    elif product.starts == "purchase":
        _begin_pass(fold, lot, day)
    fold.reckon_next_due()


def cover(fold: Fold, leg: Leg) -> bool:
    """Pay the leg from a pass or a coupon, if the traveller has one that fits."""
    lot = find_lot(fold, leg, leg.net)
    if lot is None:
        return False
    product = product_of(fold, lot)
    funded = 0
    if product.kind == "book":
        funded = _part(product.price, product.trips, lot.used)
        lot.used += 1
    elif lot.first_day is None:
        _begin_pass(fold, lot, leg.service_day)
        fold.reckon_next_due()
    bearer, rule = f"product:{product.product_id}", f"product/{product.product_id}"
    fold.lines.append(Line(leg.leg_id, "product", rule, -leg.net, bearer, funded, fold.cause, leg.version_id, leg.service_day))
    leg.net = 0
    return True


def find_lot(fold: Fold, leg: Leg, list_fare: int) -> Lot | None:
    """The lot that pays for a leg of this list fare: passes before books, then the older one."""
    best: Lot | None = None
    for lot in fold.state.lots:
        product = product_of(fold, lot)
        if not _covers(product, lot, leg, list_fare):
            continue
        if product.kind == "pass":
            return lot
        best = best or lot
    return best


def pass_time(fold: Fold, at: int) -> None:
    """What lots do at an instant: a pass's next day begins, a pass ends, a book's rest is released for sharing."""
    for lot in [lot for lot in fold.state.lots if lot.next_due == at]:
        product = product_of(fold, lot)
        if product.kind == "pass" and lot.used < product.days:
            fold.cause = f"{lot.lot_id}/day/{lot.used + 1}"
            _release_day(fold, lot)
            continue
        fold.state.lots.remove(lot)
        left = sum(_part(product.price, product.trips, coupon) for coupon in range(lot.used, product.trips))
        if left and lot.last_day is not None:
            fold.cause = f"{lot.lot_id}/expiry"
            _add_line(fold, lot, "expiry", 0, left, lot.last_day)


def product_of(fold: Fold, lot: Lot) -> Product:
    """A lot's product, by the version it was bought under."""
    return fold.tariff.versions[lot.version_id].products[lot.product_id]


def _covers(product: Product, lot: Lot, leg: Leg, list_fare: int) -> bool:
    if leg.network_id not in product.networks:
        return False
    if product.rider_categories and leg.rider_category not in product.rider_categories:
        return False
    if lot.first_day is not None and lot.last_day is not None and not lot.first_day <= leg.service_day <= lot.last_day:
        return False
    if product.kind == "book":
        return lot.used < product.trips and (not product.covers_up_to or list_fare <= product.covers_up_to)
    return True


def _begin_pass(fold: Fold, lot: Lot, day: int) -> None:
    lot.first_day, lot.last_day = day, day + product_of(fold, lot).days - 1
    _release_day(fold, lot)


def _release_day(fold: Fold, lot: Lot) -> None:
    """The next day's part of a pass's price."""
    product = product_of(fold, lot)
    assert lot.first_day is not None
    day = lot.first_day + lot.used
    _add_line(fold, lot, "release", 0, _part(product.price, product.days, lot.used), day)
    lot.used += 1
    lot.next_due = _starts_at(fold, lot, day + (1 if lot.used < product.days else KEPT_DAYS))


def _add_line(fold: Fold, lot: Lot, kind: LineKind, amount: int, funded: int, day: int) -> None:
    """A line that hangs on a sale."""
    bearer = "rider" if kind == "sale" else f"product:{lot.product_id}"
    rule = f"{kind}/{lot.product_id}"
    fold.lines.append(Line(lot.lot_id, kind, rule, amount, bearer, funded, fold.cause, lot.version_id, day))


def _starts_at(fold: Fold, lot: Lot, day: int) -> int:
    version = fold.tariff.versions[lot.version_id]
    return day_starts_at(day, version.zone, version.day_start_ms)


def _part(price: int, parts: int, number: int) -> int:
    """The part `number` (from 0) of a price in so many whole parts that sum to it."""
    return whole_parts(price, parts, number + 1) - whole_parts(price, parts, number)
