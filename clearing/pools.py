"""Pools: whose money a pool's is, exactly, and in whole units.

Pure. Exact shares are whole numbers of parts of a unit (`fare_engine.money.PARTS`); what is paid out of a pool so far is their
sum over all time, rounded by largest remainder, less what was published before. So every closing's shares sum to its money for
any input, the error of each party stays below one unit for ever, and no operator is favoured: ties go by a hash."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from fare_engine.money import PARTS, rounded, split

Shares = dict[str, int]
"""Party → exact amount, in parts."""


class PoolState(msgspec.Struct, frozen=True):
    """What a pool has given so far: exactly, and in the whole units that were published."""

    exact: Mapping[str, int]
    published: Mapping[str, int]


EMPTY = PoolState({}, {})


def own(amounts: Iterable[tuple[str, int]]) -> Shares:
    """(party, units) rows: each party's are his."""
    found: Shares = {}
    for party, amount in amounts:
        found[party] = found.get(party, 0) + amount * PARTS
    return found


def by_weights(total: int, weights: Mapping[str, int], without: Mapping[str, int]) -> Shares:
    """Units by the weights of what was ridden, by the agreed ones where there are none, else in equal parts to who was there."""
    if not total:
        return {}
    positive = {party: weight for party, weight in weights.items() if weight > 0}
    return split(total, positive or without or dict.fromkeys(weights, 1))


def add(to: Shares, more: Mapping[str, int], sign: int = 1) -> None:
    """Add (or with -1 take away) shares."""
    for party, parts in more.items():
        to[party] = to.get(party, 0) + sign * parts


def settle(pool: str, before: PoolState, change: Mapping[str, int]) -> tuple[PoolState, dict[str, int]]:
    """What each party receives at this closing, and the pool's state after it.

    `change` is by how much the exact shares have moved since the last closing; it must sum to a whole number of units."""
    exact = dict(before.exact)
    add(exact, change)
    exact = {party: parts for party, parts in sorted(exact.items()) if parts}
    published = rounded(exact, pool)
    parties = sorted(published.keys() | before.published.keys())
    paid = {party: published.get(party, 0) - before.published.get(party, 0) for party in parties}
    return PoolState(exact, published), {party: amount for party, amount in paid.items() if amount}
