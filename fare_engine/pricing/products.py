"""Passes and books: bought, used, and at their end.

A pass covers legs without limit for its days; what it cost is shared by its use, at clearing. A book's coupon covers one
leg, and its own part of the book's price goes to that leg's operator. A pass is used before a book, an older lot before a
newer one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fare_engine.facts import Purchase
from fare_engine.pricing.lines import Leg, Line, Sale
from fare_engine.pricing.state import NEVER, Lot
from fare_engine.service_day import day_starts_at, to_date, to_day
from fare_engine.tariff.compile import Terms
from fare_engine.tariff.model import Product

if TYPE_CHECKING:
    from fare_engine.pricing.fold import Fold


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
    rule = f"sale/{product.product_id}"
    fold.add_line(purchase.fact_id, "sale", rule, product.price, "rider", version.version_id)
    lot = Lot(purchase.fact_id, product.product_id, version.version_id, day, None, None, 0, NEVER)
    if product.kind == "book":
        _start(fold, lot, day, to_day(to_date(day).replace(month=12, day=31)))
    elif product.starts == "purchase":
        _start(fold, lot, day, day + product.days - 1)
    fold.state.lots.append(lot)
    fold.reckon_next_due()


def cover(fold: Fold, leg: Leg, terms: Terms) -> bool:
    """Pay the leg from a pass or a coupon, if the traveller has one that fits."""
    lot = find_lot(fold, leg, leg.net, terms)
    if lot is None:
        return False
    product = product_of(fold, lot)
    if lot.first_day is None:
        _start(fold, lot, leg.service_day, leg.service_day + product.days - 1)
        fold.reckon_next_due()
    funded = 0
    if product.kind == "book":
        funded = _coupons_worth(product, lot.trips_used + 1) - _coupons_worth(product, lot.trips_used)
        lot.trips_used += 1
    bearer = f"product:{product.product_id}"
    line = Line(leg.leg_id, "product", f"product/{product.product_id}", -leg.net, bearer, funded, fold.cause, leg.version_id)
    fold.lines.append(line)
    leg.net = 0
    return True


def find_lot(fold: Fold, leg: Leg, list_fare: int, terms: Terms) -> Lot | None:
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


def expire(fold: Fold, at: int) -> None:
    """Ends of products: an ended pass is dropped; what is left of a book is released for sharing."""
    for lot in [lot for lot in fold.state.lots if lot.expires_at == at]:
        product = product_of(fold, lot)
        fold.state.lots.remove(lot)
        left = product.price - _coupons_worth(product, lot.trips_used) if product.kind == "book" else 0
        if left:
            fold.cause = f"{lot.lot_id}/expiry"
            bearer = f"product:{product.product_id}"
            rule = f"expiry/{product.product_id}"
            fold.lines.append(Line(lot.lot_id, "expiry", rule, 0, bearer, left, fold.cause, lot.version_id))


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
        return lot.trips_used < product.trips and (not product.covers_up_to or list_fare <= product.covers_up_to)
    return True


def _start(fold: Fold, lot: Lot, first_day: int, last_day: int) -> None:
    version = fold.tariff.versions[lot.version_id]
    lot.first_day, lot.last_day = first_day, last_day
    lot.expires_at = day_starts_at(last_day + 1, version.zone, version.day_start_ms)


def _coupons_worth(product: Product, coupons: int) -> int:
    """What the first so many coupons of a book are worth together: whole amounts that sum to the book's price."""
    return product.price * coupons // product.trips
