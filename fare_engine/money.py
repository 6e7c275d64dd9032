"""Amounts of money: the one place that divides or rounds.

An amount is a whole number of minor units (VND has none smaller than the đồng) with its currency known from the tariff.
Rates and shares are exact rationals until they are rounded here. No float comes near any of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction


def percent_of(amount: int, percent: int) -> int:
    """`percent` per cent of `amount`, halves rounded away from zero: 50% of 7,001 is 3,501."""
    sign = -1 if amount < 0 else 1
    return sign * ((abs(amount) * percent * 2 + 100) // 200)


def rounded_to(exact: Fraction, rounding: str, to: int = 1) -> int:
    """An exact amount as a multiple of `to` minor units: `up` and `down` are away from and towards zero, `half_up` rounds a
    half away from zero, `half_even` to the even multiple."""
    units = abs(exact) / to
    whole, rest = divmod(units.numerator, units.denominator)
    twice = 2 * rest
    if rest and (
        rounding == "up"
        or (rounding != "down" and twice > units.denominator)
        or (twice == units.denominator and (rounding == "half_up" or (rounding == "half_even" and whole % 2 == 1)))
    ):
        whole += 1
    return (-whole if exact < 0 else whole) * to


def rate_of(amount: int, percent: Decimal) -> Fraction:
    """`percent` per cent of an amount, exactly."""
    return Fraction(amount) * Fraction(percent) / 100


def whole_parts(price: int, parts: int, count: int) -> int:
    """The first `count` of `parts` parts of a price, rounded down: all of them are the price."""
    return price * count // parts


PARTS = 10**18
"""A share is kept in so many parts of a minor unit. They are whole numbers, so a split sums exactly whatever its weights are,
and a party would have to be in 10**18 splits before what it lacks of its exact proportion could reach one unit."""


def split(total: int, weights: Mapping[str, int]) -> dict[str, int]:
    """`total` minor units, in parts, in proportion to `weights` (none below zero, not all zero); parties in sorted order.

    The shares sum to `total` exactly, and each is less than one part from its proportion; parts that are left over go to the
    largest remainders, the first party in order where they are equal."""
    whole = sum(weights.values())
    if whole <= 0:
        raise ValueError(f"no weight to share {total} by: {dict(weights)!r}")
    if total < 0:  # what is taken back is split as it was given
        return {party: -parts for party, parts in split(-total, weights).items()}
    each, rest = divmod(total * PARTS, whole)
    parties = sorted(weights)
    if not rest:
        return {party: each * weights[party] for party in parties}
    found = {}
    remainders = []
    missing = 0
    for party in parties:
        more, remainder = divmod(rest * weights[party], whole)
        found[party] = each * weights[party] + more
        missing += remainder
        remainders.append((-remainder, party))
    for _, party in sorted(remainders)[: missing // whole]:
        found[party] += 1
    return found


def rounded(exact: Mapping[str, int], salt: str) -> dict[str, int]:
    """Shares in parts as whole units by largest remainder, so that they sum to what the shares sum to.

    The shares must sum to a whole number of units. Ties go by a hash of `salt` (the pool) and the party: the same on every
    rerun and no party's favour. Each result is less than one unit from its share."""
    total, rest = divmod(sum(exact.values()), PARTS)
    if rest:
        raise ValueError(f"shares sum to {total} and {rest} parts, which is not a whole amount")
    floors = {party: share // PARTS for party, share in exact.items()}
    missing = total - sum(floors.values())
    by_remainder = sorted(exact, key=lambda party: (-_remainder(exact[party]), tie_break(salt, party)))
    for party in by_remainder[:missing]:
        floors[party] += 1
    return {party: floors[party] for party in sorted(floors)}


def _remainder(parts: int) -> int:
    """What is above whole units, in thousand millionths: what splits left over by single parts is no advantage."""
    return (parts % PARTS + PARTS // 2_000_000_000) // (PARTS // 1_000_000_000)


def apportion(total: int, weights: Mapping[str, int], salt: str = "") -> dict[str, int]:
    """Whole shares of `total` by `weights` that always add up again: 1000 by 2 to 1 is 667 and 333."""
    return rounded(split(total, weights), salt)


def part_of(amount: int, share: Fraction) -> int:
    """A fraction of an amount, in parts, rounded down towards zero."""
    parts = abs(amount) * share.numerator * PARTS // share.denominator
    return -parts if amount < 0 else parts


def nearest(parts: int) -> int:
    """Parts as whole units, halves away from zero: for a figure that is read; what is paid is `rounded`."""
    whole = (abs(parts) * 2 + PARTS) // (2 * PARTS)
    return -whole if parts < 0 else whole


def included_tax(amount: int, percent: Decimal) -> int:
    """The tax inside an amount that includes it, halves rounded away from zero: at 8%, 108 has 8."""
    rate = Fraction(percent)
    return rounded_to(Fraction(amount) * rate / (100 + rate), "half_up")


def tie_break(salt: str, party: str) -> bytes:
    """The order in which parties with equal remainders receive the left-over units of one pool."""
    return hashlib.sha256(f"{salt}\x00{party}".encode()).digest()


def format_amount(amount: int, currency: str, language: str = "vi", minor_digits: int = 0) -> str:
    """An amount as a rider reads it: `20.000 ₫` in Vietnamese, `₫20,000` in English, with a true minus sign; other currencies
    with their code and `minor_digits` decimals."""
    whole, minor = divmod(abs(amount), 10**minor_digits)
    digits = f"{whole:,}"
    sign = "−" if amount < 0 else ""
    if currency != "VND":
        text = f"{digits}.{minor:0{minor_digits}}" if minor_digits else digits
        if language == "vi":
            text = text.translate(str.maketrans(",.", ".,"))
        return f"{sign}{text} {currency}"
    return f"{sign}{digits.replace(',', '.')} ₫" if language == "vi" else f"{sign}₫{digits}"
