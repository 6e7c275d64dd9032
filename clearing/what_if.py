"""The same service dates again: as known on a later day, or under another `clearing.toml`. Nothing is written.

What was published never changes; this says what it would be if it were published now, or had been agreed otherwise."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import date, timedelta

import msgspec
from sqlalchemy import Connection

from clearing import pools, statements, store
from clearing.bags import Pool
from clearing.close import Rules, fees_of
from clearing.pools import Shares
from clearing.sharing import share_of_date
from clearing.statements import Books, Statement
from clearing.store import PoolRow
from fare_engine.errors import CloseError
from fare_engine.money import nearest, rounded


class Compared(msgspec.Struct, frozen=True):
    """What a party is given for some service dates, as agreed now and otherwise, in minor units."""

    party_id: str
    now: int
    otherwise: int

    @property
    def difference(self) -> int:
        """How much more he would get."""
        return self.otherwise - self.now


def compare(connection: Connection, rules: Rules, other: Rules, first: str, last: str) -> list[Compared]:
    """What each party is given for the service dates `first` to `last`, under the agreements in force and under others; as known
    at the latest close. CloseError where the last of them is not closed."""
    through = _latest(connection, last)
    now, otherwise = (_given(connection, one, first, last, through) for one in (rules, other))
    return [Compared(party, now.get(party, 0), otherwise.get(party, 0)) for party in sorted(now.keys() | otherwise.keys())]


def as_known(connection: Connection, rules: Rules, service_date: str, through: str) -> list[Statement]:
    """The statements of a service date as known when another date was closed: what came late is in its place, and nothing else
    is. CloseError where that date is not closed."""
    if _latest(connection, through) < through or through < service_date:
        raise CloseError(f"{through} is not closed, or before {service_date}")
    rows, changes = _shares(connection, rules, service_date, through)
    settled = {pool: _whole(shares, f"{pool[0]}@{pool[1]}") for pool, shares in changes.items()}
    facts = Books(
        accounting_date=service_date,
        zone=rules.tariff.zone,
        traceable_until=through,
        rows=rows,
        changes=changes,
        settled=settled,
        movements=_cash(rows),
        opening={},
        open_items=[],
    )
    return statements.compose(facts, rules.agreements)


def _latest(connection: Connection, wanted: str) -> str:
    dates = store.published_dates(connection)
    if not dates or dates[0] < wanted:
        raise CloseError(f"{wanted} is not closed")
    return dates[0]


def _given(connection: Connection, rules: Rules, first: str, last: str, through: str) -> dict[str, int]:
    total: Shares = {}
    for on in _dates(first, last):
        for shares in _shares(connection, rules, on, through)[1].values():
            pools.add(total, shares)
    return rounded(total, "what-if")


def _shares(connection: Connection, rules: Rules, on: str, through: str) -> tuple[list[PoolRow], dict[Pool, Shares]]:
    rows, rides, changes = share_of_date(connection, rules.agreements, rules.caps, on, through)
    settled = {pool: {party: nearest(parts) for party, parts in shares.items()} for pool, shares in changes.items()}
    held: dict[str, int] = defaultdict(int)
    for (account, _), amount in _cash(rows).items():
        held[account.partition(":")[2]] += amount
    changes |= fees_of(rules.agreements, on, rows, rides, held, settled)
    return rows, changes


def _whole(shares: Mapping[str, int], salt: str) -> dict[str, int]:
    return {party: amount for party, amount in rounded(shares, salt).items() if amount}


def _cash(rows: Iterable[PoolRow]) -> dict[tuple[str, str], int]:
    """What tills hold of some lines."""
    found: dict[tuple[str, str], int] = defaultdict(int)
    for row in rows:
        if row.payer_kind == "collector":
            found[f"collector:{row.payer}", "CASH" if row.kind != "hold" else "HOLD"] += row.amount
    return dict(found)


def _dates(first: str, last: str) -> list[str]:
    begin, end = date.fromisoformat(first), date.fromisoformat(last)
    if end < begin:
        raise CloseError(f"{last} is before {first}")
    return [(begin + timedelta(days=n)).isoformat() for n in range((end - begin).days + 1)]
