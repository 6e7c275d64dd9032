"""Netting: from the date's postings to one position each. Pure.

Every account but the clearing accounts of fares is somebody's: a party's, or the clearing house's own. So the positions are the
books themselves, and they sum to zero because debits equal credits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from fare_engine.errors import BooksError

RIDERS = "riders"
"""What cards were charged and not yet collected, less what riders have put on them: the clearing house's own account."""
PRODUCTS = "products"
"""What was paid for passes and books, released as they are used."""
OWN = {
    "rider": RIDERS,
    "holds": RIDERS,
    "top-ups": RIDERS,
    "deposits": RIDERS,
    "deferred": PRODUCTS,
    "bank": "bank",
    "held": "held",
    "net": "paid",
}
"""Accounts of the clearing house, by their first word."""
OWN_POSITIONS = frozenset(OWN.values())
PARTIES = ("operator", "collector", "party", "waivers", "losses", "fees")
"""Accounts of a party, by their first word: the rest of the name is the party."""


def positions(balances: Mapping[str, int]) -> dict[str, int]:
    """Net positions from balances (debits less credits, by account): positive receives, negative pays. BooksError for an account
    that nobody answers for, or positions that do not sum to zero."""
    net: dict[str, int] = defaultdict(int)
    for account, balance in balances.items():
        owner = owner_of(account)
        if owner is None:
            if balance:
                raise BooksError(f"the account {account} is not zero: {balance}")
            continue
        net[owner] -= balance
    if sum(net.values()):
        raise BooksError(f"net positions sum to {sum(net.values())}, not to zero")
    return {party: amount for party, amount in sorted(net.items()) if amount}


def owner_of(account: str) -> str | None:
    """Whose an account is: a party, or one of the clearing house's own positions; None for what must be zero at a close."""
    word, _, name = account.partition(":")
    if word in PARTIES:
        return name
    return OWN.get(word)


def party_accounts(balances: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Party → account → what the clearing house owes him on it (with a minus: he owes it). Zeros are left out."""
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for account, balance in sorted(balances.items()):
        word, _, name = account.partition(":")
        if word in PARTIES and balance:
            found[name][account] = -balance
    return dict(found)
