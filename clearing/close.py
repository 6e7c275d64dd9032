"""The close of a service date: freeze → pools → net → statements → proof → publish.

The freeze is a short transaction: from then on no booking gets the date. What follows is computed from rows that cannot
change any more, while taps go on being taken, and published in a second short transaction. A run that died in between is
taken up by the next one; a date that is published is never computed again. Closing a date closes every open date before it,
each by itself and in order. What comes later is booked under the next open date and stands in its statement."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from clearing import netting, pools, seals, statements, store
from clearing.agreements import Agreements
from clearing.pools import PoolState
from clearing.store import PoolRow
from fare_engine import ledger
from fare_engine.errors import BooksError, CloseError, MottheError
from fare_engine.store import books
from fare_engine.store.database import Database
from fare_engine.store.verify import Finding
from fare_engine.tariff.compile import CapScope

LEGS = "legs"


class Closed(msgspec.Struct, frozen=True):
    """A closed date's documents by name, and whether this run published them."""

    accounting_date: str
    documents: dict[str, bytes]
    newly: bool


class Settlement(msgspec.Struct, frozen=True):
    """What a party receives out of a pool, by an agreement."""

    pool: str
    agreement_id: str
    party: str
    amount: int


class Computed(msgspec.Struct):
    """All that a closing publishes, not yet written."""

    settlements: list[Settlement]
    pools: dict[str, PoolState]
    entries: books.Booking
    documents: dict[str, bytes]
    seal: str = ""
    """The root over the date's rows, in hexadecimal."""
    tree_size: int = 0


PoolShares = dict[tuple[str, str], list[pools.Shares]]
"""(pool, agreement) → by how much the parties' exact shares have moved."""


CapScopes = Mapping[str, CapScope]
"""cap → the networks whose legs it counts (none: all)."""


def close_through(
    database: Database, agreements: Agreements, caps: CapScopes, date: str, frozen_at: Callable[[str], int]
) -> list[Closed]:
    """Close `date` and every open date before it. `frozen_at` gives the instant that a date's end is, for the record."""
    with database.write(alone=True) as connection:
        if not store.is_closed(connection, date):
            for open_date in store.open_dates(connection, date):
                store.freeze(connection, open_date, frozen_at(open_date))
    with database.read() as connection:
        waiting = [found for found in store.unpublished(connection) if found <= date]
        documents = store.published(connection, date)
    if not waiting and not documents:
        raise CloseError(f"{date} was passed over: a later date is closed and nothing was booked on {date}")
    return [_publish(database, agreements, caps, found) for found in waiting] or [Closed(date, documents, newly=False)]


def _publish(database: Database, agreements: Agreements, caps: CapScopes, date: str) -> Closed:
    with database.read() as connection:
        computed = _compute(connection, agreements, caps, date)
    with database.write() as connection:
        documents = store.published(connection, date)
        if documents:  # another run was quicker, and gave the same
            return Closed(date, documents, newly=False)
        for pool, state in computed.pools.items():
            store.save_pool(connection, date, pool, state)
        store.add_settlements(connection, date, [(s.pool, s.agreement_id, s.party, s.amount) for s in computed.settlements])
        computed.entries.write(connection)
        store.set_head(connection, date, computed.seal, computed.tree_size)
        for name, content in computed.documents.items():
            store.publish(connection, date, name, content, statements.digest(content))
    return Closed(date, computed.documents, newly=True)


def _compute(connection: Connection, agreements: Agreements, caps: CapScopes, date: str) -> Computed:
    """Everything that the close of a frozen date publishes; nothing is written. BooksError if the proof does not hold."""
    rows = store.pool_rows(connection, date)
    found = _shared(connection, rows, agreements, caps, date)
    found.seal, found.tree_size = seals.seal(connection, date, found.entries)
    found.documents = _documents(connection, rows, found, agreements, date)
    return found


def _shared(connection: Connection, rows: Iterable[PoolRow], agreements: Agreements, caps: CapScopes, date: str) -> Computed:
    """Who gets what of a frozen date's money."""
    before = store.date_before(connection, date)
    changes = _leg_shares(rows, agreements)
    _add_cap_shares(changes, connection, agreements, caps, date, before)
    _add_product_shares(changes, connection, agreements, date, before)
    found = Computed([], {}, books.Booking(None), {})
    _settle(connection, changes, date, found)
    return found


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


def _add_cap_shares(
    changes: PoolShares,
    connection: Connection,
    agreements: Agreements,
    caps: CapScopes,
    date: str,
    before: str | None,
) -> None:
    """Caps: what they took off a traveller's day is shared by what that day's counted legs cost. A day whose weights moved
    since it was published counts with the difference."""
    dates = store.moved_dates(connection, date)
    for through, sign in ((date, 1), (before, -1)):
        for share in store.cap_shares(connection, dates, through, caps):
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
    dates = store.moved_dates(connection, date)
    for through, sign in ((date, 1), (before, -1)):
        for share in store.product_shares(connection, dates, through):
            pool = f"product:{share.product_id}|{share.kind}|{share.product_id}"
            agreement = agreements.find(pool, share.service_date)
            exact = pools.by_weights(share.amount * sign, share.weights, agreement.without_use)
            changes.setdefault((pool, agreement.agreement_id), []).append(exact)


def _settle(connection: Connection, changes: PoolShares, date: str, found: Computed) -> None:
    """Round each pool, and move its money from the fares accounts to the operators."""
    for (pool, agreement), parts in sorted(changes.items()):
        key = f"{pool}@{agreement}"
        found.pools[key], paid = pools.settle(key, store.load_pool(connection, key, date), pools.total_of(parts))
        for party, amount in paid.items():
            found.settlements.append(Settlement(pool, agreement, party, amount))
            moved = ledger.signed(ledger.fares(date, pool), ledger.operator(party), amount)
            transaction = hashlib.sha256(f"settle/{date}/{key}/{party}".encode()).hexdigest()[:32]
            for number, posting in enumerate(moved):
                found.entries.add_posting(transaction, number, ledger.Code.SETTLED, posting, date, date)


# ---- documents


def _documents(
    connection: Connection, rows: list[PoolRow], found: Computed, agreements: Agreements, date: str
) -> dict[str, bytes]:
    settled: dict[str, int] = defaultdict(int)
    for settlement in found.settlements:
        settled[settlement.party] += settlement.amount
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
    net = netting.positions(settled.items(), collected, borne, riders, released)
    debits, credits = store.totals(connection, date)
    moved = sum(int(str(posting["amount"])) for posting in found.entries.postings)
    proof: dict[str, object] = {
        "accounting_date": date,
        "agreement_version": agreements.clearing.agreement_version,
        "charged": riders + sum(collected.values()),
        "borne": sum(borne.values()),
        "products": released,
        "settled": sum(settled.values()),
        "net_sum": sum(net.values()),
        "debits": debits + moved,
        "credits": credits + moved,
        "seal": found.seal,
        "tree_size": found.tree_size,
    }
    _prove(connection, proof, found.entries, date)
    documents = _operator_documents(connection, rows, found.settlements, agreements, date, collected)
    documents["positions.csv"] = statements.positions_csv(net, dict(settled), dict(collected))
    documents["proof.json"] = statements.proof_json(proof)
    return dict(sorted(documents.items()))


def _operator_documents(
    connection: Connection,
    rows: list[PoolRow],
    settlements: list[Settlement],
    agreements: Agreements,
    date: str,
    collected: dict[str, int],
) -> dict[str, bytes]:
    own = statements.leg_rows(rows, agreements, date)
    for settlement in settlements:
        if agreements.covers(settlement.agreement_id) != LEGS:
            row = statements.shared_row(settlement.pool, settlement.agreement_id, settlement.amount, date)
            own.setdefault(settlement.party, []).append(row)
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


def verify(connection: Connection) -> list[str]:
    """What of the published dates was changed afterwards: each date whose rows no longer give its seal, each document whose
    hash or chain is broken. Empty: nothing."""
    return [f"{found.key}: {found.what}" for found in seals.check(connection)]


def check_shares(connection: Connection, agreements: Agreements, caps: CapScopes) -> list[Finding]:
    """What of the published dates' settlements and pools is not what their lines and agreements give. Empty: nothing."""
    found: list[Finding] = []
    for sealed in store.list_seals(connection):
        date = sealed.accounting_date
        try:
            found += _check_date(connection, agreements, caps, date)
        except (MottheError, SQLAlchemyError, ValueError, TypeError, KeyError, ZeroDivisionError) as error:
            found.append(Finding("pool_shares", date, f"cannot be computed again: {type(error).__name__}: {error}"))
    return found


def _check_date(connection: Connection, agreements: Agreements, caps: CapScopes, date: str) -> Iterator[Finding]:
    computed = _shared(connection, store.pool_rows(connection, date), agreements, caps, date)
    wanted = {(s.pool, s.agreement_id, s.party, s.amount) for s in computed.settlements}
    for pool, agreement, party, amount in sorted(wanted ^ set(store.list_settlements(connection, date))):
        yield Finding("settlements", f"{date}/{pool}/{agreement}/{party}", f"{amount} is not what the date's lines give")
    held = store.list_pools(connection, date)
    for pool in sorted(held.keys() | computed.pools.keys()):
        if held.get(pool, pools.EMPTY) != _as_kept(computed.pools.get(pool, pools.EMPTY)):
            yield Finding("pool_shares", f"{date}/{pool}", "is not what the date's lines give")


def _as_kept(state: PoolState) -> PoolState:
    """A pool's state as it is read back: every party with both its numbers."""
    return PoolState(dict(state.exact), {party: state.published.get(party, 0) for party in state.exact})


def _prove(connection: Connection, proof: dict[str, object], entries: books.Booking, date: str) -> None:
    """Money in equals money out and nothing is booked twice, or nothing is published."""
    repeated = store.repeated_transactions(connection, date)
    if repeated:
        raise BooksError(f"booked twice under {date}: {repeated[:5]}")
    left = store.account_balances(connection, date, "fares:")
    for posting in entries.postings:
        for account, sign in ((str(posting["debit"]), 1), (str(posting["credit"]), -1)):
            if account.startswith("fares:"):
                left[account] = left.get(account, 0) + sign * int(str(posting["amount"]))
    not_zero = {account: amount for account, amount in left.items() if amount}
    if not_zero:
        raise BooksError(f"fares accounts of {date} would not be zero after the close: {not_zero}")
    if proof["debits"] != proof["credits"]:
        raise BooksError(f"debits {proof['debits']} and credits {proof['credits']} of {date} differ")
    paid_in = sum(int(str(proof[name])) for name in ("charged", "borne", "products"))
    if paid_in != proof["settled"]:
        raise BooksError(f"{paid_in} was paid into the pools of {date} and {proof['settled']} shared out")
