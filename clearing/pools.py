"""Pools: whose money a pool's is, exactly, and in whole units.

Pure. Exact shares are rationals; what is paid out of a pool so far is their sum over all time, rounded by largest remainder,
less what was published before. So every closing's shares sum to its money for any input, the error of each party stays
below one unit for ever, and no operator is favoured: ties go by a hash."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from fractions import Fraction

import msgspec

from fare_engine.money import rounded, shares

Shares = dict[str, Fraction]
"""Party → exact amount."""


class PoolState(msgspec.Struct, frozen=True):
    """What a pool has given so far: exactly, and in the whole units that were published."""

    exact: Mapping[str, Fraction]
    published: Mapping[str, int]


EMPTY = PoolState({}, {})


def own_leg(amounts: Iterable[tuple[str, int]]) -> Shares:
    """(operator, amount) rows: each operator's are his."""
    found: dict[str, Fraction] = defaultdict(Fraction)
    for operator_id, amount in amounts:
        found[operator_id] += amount
    return dict(found)


def by_weights(total: int, weights: Mapping[str, int], without: Mapping[str, int]) -> Shares:
    """A total by the weights of one day, by the agreed ones where that day has none, else in equal parts to who was there."""
    positive = {party: weight for party, weight in weights.items() if weight > 0}
    return shares(total, positive or without or dict.fromkeys(weights, 1)) if total else {}


def total_of(parts: Iterable[Mapping[str, Fraction]]) -> Shares:
    """The sum of several shares, by party; parties whose sum is zero are left out."""
    found: dict[str, Fraction] = defaultdict(Fraction)
    for part in parts:
        for party, amount in part.items():
            found[party] += amount
    return {party: amount for party, amount in sorted(found.items()) if amount}


def settle(pool: str, before: PoolState, change: Mapping[str, Fraction]) -> tuple[PoolState, dict[str, int]]:
    """What each party receives at this closing, and the pool's state after it.

    `change` is by how much the exact shares have moved since the last closing; it must sum to a whole amount."""
    exact = total_of([before.exact, change])
    published = rounded(exact, pool)
    parties = sorted(published.keys() | before.published.keys())
    paid = {party: published.get(party, 0) - before.published.get(party, 0) for party in parties}
    return PoolState(exact, published), {party: amount for party, amount in paid.items() if amount}
