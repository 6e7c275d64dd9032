"""The close of a service date: freeze → pools → net → statements → proof → publish, in one transaction.

Closing a date closes every open date up to it, each by itself and in order. A closed date is never computed into again: a
second run publishes the same bytes. What comes later is booked under the next open date and stands in its statement."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable

import msgspec
from sqlalchemy import Connection

from clearing import netting, pools, statements, store
from clearing.agreements import Agreements
from clearing.store import PoolRow
from fare_engine import ledger
from fare_engine.errors import BooksError, CloseError
from fare_engine.store import books

LEGS = "legs"


class Closed(msgspec.Struct, frozen=True):
    """A closed date's documents by name, and whether this run closed it."""

    accounting_date: str
    documents: dict[str, bytes]
    newly: bool


PoolShares = dict[tuple[str, str], list[pools.Shares]]
"""(pool, agreement) → by how much the parties' exact shares have moved."""


def close_through(connection: Connection, agreements: Agreements, date: str, frozen_at: Callable[[str], int]) -> list[Closed]:
    """Close `date` and every open date before it. `frozen_at` gives the instant that a date's end is, for the record."""
    if store.is_closed(connection, date):
        documents = store.published(connection, date)
        if not documents:
            raise CloseError(f"{date} was passed over: a later date is closed and nothing was booked on {date}")
        return [Closed(date, documents, newly=False)]
    return [_close(connection, agreements, open_date, frozen_at(open_date)) for open_date in store.open_dates(connection, date)]


def _close(connection: Connection, agreements: Agreements, date: str, frozen_at: int) -> Closed:
    before = books.last_closed(connection)
    store.freeze(connection, date, frozen_at)
    rows = store.pool_rows(connection, date)
    changes = _leg_shares(rows, agreements)
    _add_cap_shares(changes, connection, agreements, date, before)
    _add_product_shares(changes, connection, agreements, date, before)
    settled = _settle(connection, changes, date)
    documents = _documents(connection, rows, settled, agreements, date)
    for name, content in documents.items():
        store.publish(connection, date, name, content, statements.digest(content))
    return Closed(date, documents, newly=True)


# ---- pools


def _leg_shares(rows: Iterable[PoolRow], agreements: Agreements) -> PoolShares:
    """Own legs: each operator's pool money is his."""
    amounts: dict[tuple[str, str], list[tuple[str, int]]] = defaultdict(list)
    for row in rows:
        if row.kind not in statements.LEG_KINDS:
            continue
        if row.operator_id is None:
            raise CloseError(f"{row.legs} lines {row.kind} {row.rule_id} of {row.service_date} name no operator")
        for debtor, amount in (("rider", row.amount), (row.bearer, row.funded)):
            if amount:
                product = row.rule_id.partition("/")[2] if row.kind == "product" else ledger.SINGLE
                pool = f"{debtor}|{row.network_id}|{product}"
                agreement = agreements.find(pool, row.service_date).agreement_id
                amounts[pool, agreement].append((row.operator_id, amount))
    return {key: [pools.own_leg(found)] for key, found in amounts.items()}


def _add_cap_shares(changes: PoolShares, connection: Connection, agreements: Agreements, date: str, before: str | None) -> None:
    """Caps: what they took off a traveller's day is shared by what that day's legs cost. A day whose weights moved since it
    was published counts with the difference."""
    days = store.capped_days(connection, date)
    for through, sign in ((date, 1), (before, -1)):
        for share in store.cap_shares(connection, days, through):
            for debtor, amount in (("rider", share.amount), (share.bearer, share.funded)):
                if not amount:
                    continue
                pool = f"{debtor}|cap:{share.rule_id}|{ledger.SINGLE}"
                agreement = agreements.find(pool, share.service_date)
                exact = pools.by_weights(amount * sign, share.weights, agreement.without_use)
                changes.setdefault((pool, agreement.agreement_id), []).append(exact)


def _add_product_shares(
    changes: PoolShares, connection: Connection, agreements: Agreements, date: str, before: str | None
) -> None:
    """Passes and ended books: a day's part is shared by that day's rides, weighted by the fares they would have cost."""
    days = store.product_days(connection, date)
    for through, sign in ((date, 1), (before, -1)):
        for share in store.product_shares(connection, days, through):
            pool = f"product:{share.product_id}|{share.kind}|{share.product_id}"
            agreement = agreements.find(pool, share.service_date)
            exact = pools.by_weights(share.amount * sign, share.weights, agreement.without_use)
            changes.setdefault((pool, agreement.agreement_id), []).append(exact)


def _settle(connection: Connection, changes: PoolShares, date: str) -> list[tuple[str, str, str, int]]:
    """Round each pool, keep its state, and move its money from the fares accounts to the operators."""
    settled: list[tuple[str, str, str, int]] = []
    entries = books.Booking(None)
    for (pool, agreement), parts in sorted(changes.items()):
        key = f"{pool}@{agreement}"
        state, paid = pools.settle(key, store.load_pool(connection, key), pools.total_of(parts))
        store.save_pool(connection, date, key, state)
        for party, amount in paid.items():
            settled.append((pool, agreement, party, amount))
            moved = ledger.signed(ledger.fares(date, pool), ledger.operator(party), amount)
            transaction = hashlib.sha256(f"settle/{date}/{key}/{party}".encode()).hexdigest()[:32]
            for number, posting in enumerate(moved):
                entries.add_posting(transaction, number, ledger.Code.SETTLED, posting, date, date)
    entries.write(connection)
    store.add_settlements(connection, [(date, *row) for row in settled])
    return settled


# ---- documents


def _documents(
    connection: Connection,
    rows: list[PoolRow],
    settled: list[tuple[str, str, str, int]],
    agreements: Agreements,
    date: str,
) -> dict[str, bytes]:
    per_operator: dict[str, int] = defaultdict(int)
    for _, _, party, amount in settled:
        per_operator[party] += amount
    collected: dict[str, int] = defaultdict(int)
    borne: dict[str, int] = defaultdict(int)
    riders = released = 0
    for row in rows:
        if row.kind in ("hold", "sale"):
            continue
        if row.payer_kind == "collector":
            collected[row.payer] += row.amount
        else:
            riders += row.amount
        if row.bearer.startswith("product:"):
            released += row.funded
        elif row.funded:
            borne[row.bearer] += row.funded
    net = netting.positions(per_operator.items(), collected, borne, riders, released)
    versions = agreements.clearing.agreement_version
    documents = _operator_documents(connection, rows, settled, agreements, date, collected)
    documents["positions.csv"] = statements.positions_csv(net, dict(per_operator), dict(collected))
    head = _seal(connection, date)
    proof = {
        "accounting_date": date,
        "agreement_version": versions,
        "charged": riders + sum(collected.values()),
        "borne": sum(borne.values()),
        "products": released,
        "settled": sum(per_operator.values()),
        "net_sum": sum(net.values()),
        "seal": head,
    }
    debits, credits = store.totals(connection, date)
    proof["debits"], proof["credits"] = debits, credits
    _prove(connection, proof, date)
    documents["proof.json"] = statements.proof_json(proof)
    return dict(sorted(documents.items()))


def _operator_documents(
    connection: Connection,
    rows: list[PoolRow],
    settled: list[tuple[str, str, str, int]],
    agreements: Agreements,
    date: str,
    collected: dict[str, int],
) -> dict[str, bytes]:
    own = statements.leg_rows(rows, agreements, date)
    for pool, agreement, party, amount in settled:
        if agreements.covers(agreement) != LEGS:
            own.setdefault(party, []).append(statements.shared_row(pool, agreement, amount, date))
    for operator_id, reason, count in store.quarantined(connection, date):
        row = statements.Row("not_settled", date, reason, "", "", "", "", count, 0)
        own.setdefault(operator_id, []).append(row)
    versions = agreements.clearing.agreement_version
    return {
        f"{operator_id}.csv": statements.operator_csv(
            operator_id, date, versions, own.get(operator_id, []), collected.get(operator_id, 0)
        )
        for operator_id in sorted(own.keys() | collected.keys())
    }


def _seal(connection: Connection, date: str) -> str:
    """A hash over the date's lines and postings, so that any change of any row is found."""
    total = hashlib.sha256()
    for row in store.hashed_rows(connection, date):
        total.update(hashlib.sha256(row).digest())
    store.set_head(connection, date, total.hexdigest())
    return total.hexdigest()


def _prove(connection: Connection, proof: dict[str, object], date: str) -> None:
    """Money in equals money out, or nothing is published."""
    left = store.account_balances(connection, date, "fares:")
    if left:
        raise BooksError(f"fares accounts of {date} are not zero after the close: {left}")
    if proof["debits"] != proof["credits"]:
        raise BooksError(f"debits {proof['debits']} and credits {proof['credits']} of {date} differ")
    paid_in = sum(int(str(proof[name])) for name in ("charged", "borne", "products"))
    if paid_in != proof["settled"]:
        raise BooksError(f"{paid_in} was paid into the pools of {date} and {proof['settled']} shared out")
