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


def shares(total: int, weights: Mapping[str, int]) -> dict[str, Fraction]:
    """`total` split exactly in proportion to `weights`; parties in sorted order. Weights must not sum to zero."""
    whole = sum(weights.values())
    if whole == 0:
        raise ValueError(f"no weight to share {total} by: {dict(weights)!r}")
    return {party: Fraction(total * weights[party], whole) for party in sorted(weights)}


def rounded(exact: Mapping[str, Fraction], salt: str) -> dict[str, int]:
    """Exact shares in whole units by largest remainder, so that they sum to what the exact shares sum to.

    The exact shares must sum to a whole number. Ties go by a hash of `salt` (the pool) and the party: the same on every
    rerun and no party's favour. Each result is less than one unit from its exact share."""
    total = sum(exact.values(), Fraction(0))
    if total.denominator != 1:
        raise ValueError(f"shares sum to {total}, which is not a whole amount")
    floors = {party: share.numerator // share.denominator for party, share in exact.items()}
    missing = total.numerator - sum(floors.values())
    by_remainder = sorted(exact, key=lambda party: (floors[party] - exact[party], tie_break(salt, party)))
    for party in by_remainder[:missing]:
        floors[party] += 1
    return {party: floors[party] for party in sorted(floors)}


def apportion(total: int, weights: Mapping[str, int], salt: str = "") -> dict[str, int]:
    """Whole shares of `total` by `weights` that always add up again: 1000 by 2 to 1 is 667 and 333."""
    return rounded(shares(total, weights), salt)


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
