"""Passes and books: bought, used, and at their end.

A pass covers legs without limit for its days; what it cost is shared by its use, at clearing. A book's coupon covers one
leg, and its own part of the book's price goes to that leg's operator. A pass is used before a book, an older lot before a
newer one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fare_engine.facts import Purchase, Tap
from fare_engine.money import whole_parts
from fare_engine.pricing.lines import Leg, Line, LineKind, Sale, began
from fare_engine.pricing.state import NEVER, Lot
from fare_engine.service_day import DAY_MS, MINUTE_MS, day_starts_at, monday_of, month_of, to_date, to_day
from fare_engine.tariff.compile import CompiledVersion, NoPrice
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
    if product.kind == "credit":
        lot.loaded = product.price if purchase.amount is None else purchase.amount
        lot.token_id = purchase.token_id
        fold.state.lots.append(lot)
        return
    _add_line(fold, lot, "sale", product.price, 0, day)
    fold.state.lots.append(lot)
    if product.kind == "book":
        lot.first_day, lot.last_day = day, to_day(to_date(day).replace(month=12, day=31))
        lot.next_due = _starts_at(fold, lot, lot.last_day + KEPT_DAYS)
    elif product.starts == "purchase":
        _begin_pass(fold, lot, day, purchase.at)
    fold.state.reckon_next_due()


def find(fold: Fold, leg: Leg) -> tuple[Lot, int] | None:
    """The lot that pays for a leg whose list fare is its net, and what is then left to pay: the lot that leaves the least,
    passes before books, then the older one. None where no lot takes anything off."""
    best: tuple[Lot, int] | None = None
    book: Lot | None = None
    for lot in fold.state.lots:
        product = product_of(fold, lot)
        if product.kind == "credit" or not _in_hand(product, lot, leg):
            continue
        version = fold.tariff.versions[lot.version_id]
        if product.owner == "leg" and product.product_id in fold.version_of(leg).products:
            version = fold.version_of(leg)
            product = version.products[product.product_id]
        conditions = version.product_conditions[product.product_id]
        if version.covers(product, conditions, leg):
            if product.kind == "pass":
                return lot, 0
            book = book or lot
            continue
        if (
            product.kind != "pass"
            or conditions.within_places is None
            or not version.covers(product, conditions, leg, whole=False)
        ):
            continue
        extension = fold.version_of(leg).prices.ride(leg, "extension", candidate=product.product_id)
        if not isinstance(extension, NoPrice) and extension.amount < (best[1] if best else leg.net):
            best = lot, extension.amount
    return (book, 0) if book is not None else best


def pay(fold: Fold, leg: Leg, payer: tuple[Lot, int]) -> None:
    """Pay a leg from a pass or a coupon."""
    lot, left = payer
    product = product_of(fold, lot)
    funded = 0
    if product.kind == "book":
        funded = _part(product.price, product.trips, lot.used)
        lot.used += 1
    elif lot.first_day is None:
        _begin_pass(fold, lot, leg.service_day, began(leg))
        fold.state.reckon_next_due()
    bearer, rule = f"product:{product.product_id}", f"product/{product.product_id}"
    off = leg.net - left
    fold.lines.append(Line(leg.leg_id, "product", rule, -off, bearer, funded, fold.cause, leg.version_id, leg.service_day))
    leg.net = left


def version_for(fold: Fold, tap: Tap) -> CompiledVersion | None:
    """The version that prices a leg begun by this tap: the one in force, or the one under which credit that keeps its price
    was bought, while there is some left."""
    for lot in fold.state.lots:
        product = product_of(fold, lot)
        if product.kind == "credit" and product.keeps_price and tap.token_id == lot.token_id:
            return fold.tariff.versions[lot.version_id]
    return fold.tariff.version_at(tap.at)


def use_credit(fold: Fold, leg: Leg, begun: int) -> None:
    """What a leg's lines, from the one numbered `begun`, cost is paid from its token's oldest credit first; a credit that is
    used up keeps no price any more."""
    lots = [lot for lot in fold.state.lots if lot.loaded and lot.token_id == leg.token_id]
    if not lots:
        return
    charge = max(0, sum(line.amount for line in fold.lines[begun:] if line.leg_id == leg.leg_id))
    for lot in lots:
        taken = min(charge, lot.loaded - lot.used)
        lot.used += taken
        charge -= taken
        if lot.used == lot.loaded:
            fold.state.lots.remove(lot)


def pass_time(fold: Fold, at: int) -> None:
    """What lots do at an instant: a pass's next day begins, a pass ends, a book's rest is released for sharing."""
    for lot in [lot for lot in fold.state.lots if lot.next_due == at]:
        product = product_of(fold, lot)
        if product.kind == "pass" and lot.first_day is not None and lot.used < _days(product, lot.first_day):
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


def _in_hand(product: Product, lot: Lot, leg: Leg) -> bool:
    """Whether a lot is valid on the leg's day or at its first tap, and has a coupon for its list fare."""
    if lot.until is not None:
        return began(leg) <= lot.until
    if lot.first_day is not None and lot.last_day is not None and not lot.first_day <= leg.service_day <= lot.last_day:
        return False
    if product.kind == "book":
        return lot.used < product.trips and (not product.covers_up_to or leg.net <= product.covers_up_to)
    return True


def _begin_pass(fold: Fold, lot: Lot, day: int, at: int) -> None:
    minutes = product_of(fold, lot).minutes
    if minutes:
        lot.until = at + minutes * MINUTE_MS
    lot.first_day, lot.last_day = day, day + _days(product_of(fold, lot), day) - 1
    _release_day(fold, lot)


def _days(product: Product, first: int) -> int:
    """How many service days a pass that begins on a day is valid. The price of one by minutes belongs to its first day."""
    if product.minutes:
        return 1
    if product.lasts == "week":
        return monday_of(first) + 7 - first
    if product.lasts == "month":
        return (to_date(month_of(first) + 31).replace(day=1) - to_date(first)).days
    return product.days


def _release_day(fold: Fold, lot: Lot) -> None:
    """The next day's part of a pass's price."""
    product = product_of(fold, lot)
    assert lot.first_day is not None
    day = lot.first_day + lot.used
    days = _days(product, lot.first_day)
    _add_line(fold, lot, "release", 0, _part(product.price, days, lot.used), day)
    lot.used += 1
    lot.next_due = _starts_at(fold, lot, day + (1 if lot.used < days else KEPT_DAYS))
    if lot.until is not None:
        lot.next_due = max(lot.next_due, lot.until + KEPT_DAYS * DAY_MS)


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
