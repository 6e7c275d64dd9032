"""Netting: from what everybody is owed and owes to one position each. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from fare_engine.errors import BooksError

RIDERS = "riders"
"""Where riders' card money is collected: the clearing house's own account."""
PRODUCTS = "products"
"""What was paid for passes and books, released as they are used."""


def positions(
    settled: Iterable[tuple[str, int]],
    collected: Mapping[str, int],
    borne: Mapping[str, int],
    riders: int,
    released: int,
) -> dict[str, int]:
    """Net positions: positive receives, negative pays. They sum to zero, or BooksError.

    `settled` are operators' shares, `collected` the cash that operators hold already, `borne` what bearers of discounts owe,
    `riders` what cards were charged, `released` what passes and books gave."""
    net: dict[str, int] = defaultdict(int)
    for operator_id, amount in settled:
        net[operator_id] += amount
    for operator_id, amount in collected.items():
        net[operator_id] -= amount
    for party, amount in borne.items():
        net[party] -= amount
    net[RIDERS] -= riders
    net[PRODUCTS] -= released
    if sum(net.values()):
        raise BooksError(f"net positions sum to {sum(net.values())}, not to zero")
    return {party: amount for party, amount in sorted(net.items()) if amount}
