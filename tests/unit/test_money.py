"""Amounts are divided in one place, and what is divided always adds up again."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fare_engine.money import (
    PARTS,
    apportion,
    format_amount,
    included_tax,
    nearest,
    part_of,
    percent_of,
    rounded,
    split,
    tie_break,
    whole_parts,
)

PARTIES = st.text("abcdef", min_size=1, max_size=4)
WEIGHTS = st.dictionaries(PARTIES, st.integers(0, 10**12), min_size=1, max_size=12).filter(lambda w: any(w.values()))
AMOUNTS = st.integers(-(10**15), 10**15)


@given(total=AMOUNTS, weights=WEIGHTS, salt=st.text(max_size=5))
def test_shares_sum_to_the_amount_and_each_is_less_than_one_unit_from_exact(
    total: int, weights: dict[str, int], salt: str
) -> None:
    found = apportion(total, weights, salt)
    parts = split(total, weights)
    whole = sum(weights.values())
    assert sum(found.values()) == total
    assert sum(parts.values()) == total * PARTS
    assert list(found) == list(parts) == sorted(weights)
    assert all(abs(found[party] * PARTS - parts[party]) < PARTS for party in weights)
    assert all(abs(parts[party] - Fraction(total * PARTS * weights[party], whole)) < 1 for party in weights)


@given(total=AMOUNTS, weights=WEIGHTS, seed=st.randoms(use_true_random=False))
def test_the_order_in_which_parties_are_named_gives_nobody_a_dong(total: int, weights: dict[str, int], seed: object) -> None:
    names = list(weights)
    seed.shuffle(names)  # type: ignore[attr-defined]
    assert apportion(total, {name: weights[name] for name in names}, "pool") == apportion(total, weights, "pool")


@given(total=st.integers(0, 10**9), weights=WEIGHTS)
def test_who_has_no_weight_receives_nothing(total: int, weights: dict[str, int]) -> None:
    found = apportion(total, weights)
    assert all(found[party] == 0 for party, weight in weights.items() if weight == 0)


def test_the_example_of_the_style_guide() -> None:
    assert apportion(1000, {"metro": 2, "bus": 1}) == {"bus": 333, "metro": 667}


def test_a_tie_goes_by_the_hash_of_pool_and_party_and_so_not_always_to_the_same_party() -> None:
    winners = {next(party for party, share in apportion(1, {"a": 1, "b": 1}, f"pool {n}").items() if share) for n in range(20)}
    assert winners == {"a", "b"}
    assert apportion(1, {"a": 1, "b": 1}, "pool 1") == apportion(1, {"b": 1, "a": 1}, "pool 1")
    first = min("ab", key=lambda party: tie_break("pool 1", party))
    assert apportion(1, {"a": 1, "b": 1}, "pool 1")[first] == 1


def test_parts_left_over_by_many_splits_win_nobody_the_ties() -> None:
    thirds = split(1, {"a": 1, "b": 1, "c": 1})
    assert len(set(thirds.values())) == 2  # one of them has a part more
    winners = {next(party for party, share in rounded(thirds, f"pool {n}").items() if share) for n in range(40)}
    assert winners == {"a", "b", "c"}


def test_a_fraction_of_an_amount_is_cut_to_parts_and_read_to_the_nearest_unit() -> None:
    assert part_of(1, Fraction(1, 3)) == 333_333_333_333_333_333
    assert part_of(-1, Fraction(1, 3)) == -333_333_333_333_333_333
    assert [nearest(PARTS * n // 2) for n in (-3, -1, 0, 1, 3)] == [-2, -1, 0, 1, 2]
    assert nearest(PARTS // 2 - 1) == 0


def test_the_tax_inside_an_amount() -> None:
    assert included_tax(108, Decimal(8)) == 8
    assert included_tax(-108, Decimal(8)) == -8
    assert included_tax(6000, Decimal(0)) == 0


def test_a_negative_amount_is_shared_like_a_positive_one() -> None:
    assert apportion(-10_000, {"metro": 40_000, "bus": 20_000}) == {"bus": -3333, "metro": -6667}


def test_shares_without_any_weight_are_refused_with_the_amount() -> None:
    with pytest.raises(ValueError, match=r"no weight to share 5 by.*'a': 0"):
        apportion(5, {"a": 0})


def test_exact_shares_that_are_no_whole_amount_together_are_refused() -> None:
    with pytest.raises(ValueError, match="sum to 1 and 500000000000000000 parts, which is not a whole amount"):
        rounded({"a": PARTS, "b": PARTS // 2}, "pool")
    assert rounded({}, "pool") == {}


@pytest.mark.parametrize(
    ("amount", "percent", "off"),
    [(7001, 50, 3501), (7000, 50, 3500), (1, 50, 1), (1, 49, 0), (0, 50, 0), (-7001, 50, -3501), (333, 100, 333), (5, 10, 1)],
)
def test_per_cents_are_rounded_to_whole_units_halves_away_from_zero(amount: int, percent: int, off: int) -> None:
    assert percent_of(amount, percent) == off


@given(amount=st.integers(0, 10**12), percent=st.integers(0, 100))
def test_a_per_cent_is_within_half_a_unit(amount: int, percent: int) -> None:
    assert abs(percent_of(amount, percent) - Fraction(amount * percent, 100)) <= Fraction(1, 2)
    assert 0 <= percent_of(amount, percent) <= amount


@given(price=st.integers(0, 10**9), parts=st.integers(1, 366))
def test_the_parts_of_a_price_never_fall_and_are_the_price_in_the_end(price: int, parts: int) -> None:
    found = [whole_parts(price, parts, count) for count in range(parts + 1)]
    assert (found[0], found[-1]) == (0, price)
    steps = {after - before for before, after in pairwise(found)}
    assert steps <= {price // parts, price // parts + 1}


@pytest.mark.parametrize(
    ("amount", "currency", "language", "text"),
    [
        (20_000, "VND", "vi", "20.000 ₫"),
        (20_000, "VND", "en", "₫20,000"),
        (-3000, "VND", "vi", "−3.000 ₫"),
        (-3000, "VND", "en", "−₫3,000"),
        (0, "VND", "vi", "0 ₫"),
        (1050, "EUR", "en", "1,050 EUR"),
    ],
)
def test_riders_read_amounts_in_their_language(amount: int, currency: str, language: str, text: str) -> None:
    assert format_amount(amount, currency, language) == text
