"""The close of a service date: freeze → pools → net → statements → payments → proof → publish.

The freeze is a short transaction: from then on no booking gets the date, and what is open and how far devices were heard of is
written down with it. What follows is computed from rows that cannot change any more, while taps go on being taken, and published
in a second short transaction, or nothing of it. A run that died in between is taken up by the next one and gives the same bytes;
a date that is published is never computed again. Closing a date closes every open date before it, each by itself and in order.
What comes later is booked under the next open date and stands in its statement."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, timedelta
from fractions import Fraction
from functools import partial

import msgspec
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from clearing import apart, frozen, netting, pools, seal_store, seals, share_store, statements, store
from clearing.agreements import LONG, Agreements, Fee, period_of
from clearing.bags import Pool
from clearing.columns import OfConnection
from clearing.disputes.store import open_items
from clearing.documents import harmless, pdf, xlsx
from clearing.frozen import OpenItems
from clearing.payments import Payment, payments_of
from clearing.pools import PoolState, Shares
from clearing.printing import Printer
from clearing.scan import Moved, Scan, ToScan, scan, scan_in_process
from clearing.seals import Begun, ToBegin
from clearing.share_store import RideRow
from clearing.sharing import CapScopes, Sharing, share
from clearing.statements import Books
from clearing.store import PoolRow
from fare_engine import ledger
from fare_engine.errors import BooksError, CloseError, MottheError
from fare_engine.ledger import Code
from fare_engine.money import part_of
from fare_engine.service_day import format_instant
from fare_engine.store import books
from fare_engine.store.database import Database
from fare_engine.store.verify import Finding
from fare_engine.tariff.compile import CompiledTariff

Movements = Mapping[tuple[str, str], Moved]
"""(account, code) → what moved under the date before its close."""

APART = 100_000
"""A date of more lines than this is scanned and sealed in processes of their own, beside each other."""

Step = Callable[[str], None]
"""Is told what the run is at."""


class Rules(msgspec.Struct, frozen=True):
    """What a close goes by."""

    agreements: Agreements
    tariff: CompiledTariff

    @property
    def caps(self) -> CapScopes:
        """What each cap counts."""
        return self.tariff.scopes_of_caps()


class Closed(msgspec.Struct, frozen=True):
    """A closed date's documents by name, and whether this run published them."""

    accounting_date: str
    documents: dict[str, bytes]
    newly: bool


class Computed(msgspec.Struct):
    """All that a closing publishes, not yet written."""

    sharing: Sharing
    pools: dict[str, PoolState]
    settled: dict[Pool, dict[str, int]]
    entries: books.Booking
    net: dict[str, int] = {}
    balances: dict[str, int] = {}
    payments: list[Payment] = []
    documents: dict[str, bytes] = {}
    seal: str = ""
    """The root over the date's rows, in hexadecimal."""
    tree_size: int = 0


def close_through(
    database: Database,
    rules: Rules,
    date: str,
    frozen_at: Callable[[str], int],
    *,
    despite: str = "",
    step: Step = lambda _: None,
) -> list[Closed]:
    """Close `date` and every open date before it. `frozen_at` gives the instant that a date's end is, for the record.

    CloseError where more is open than may be; `despite` is the reason for publishing all the same, and is published too."""
    with database.write(alone=True) as connection:
        if not store.is_closed(connection, date):
            for open_date in _to_close(connection, rules.agreements, date):
                step(f"freeze {open_date}")
                freeze(connection, open_date, frozen_at(open_date), rules.tariff)
    with database.read() as connection:
        waiting = [found for found in store.unpublished(connection) if found <= date]
        documents = store.published(connection, date)
    if not waiting and not documents:
        raise CloseError(f"{date} was passed over: a later date is closed and nothing was booked on {date}")
    if not waiting:
        return [Closed(date, documents, newly=False)]
    return [_publish(database, rules, found, despite, step) for found in waiting]


def _to_close(connection: Connection, agreements: Agreements, date: str) -> list[str]:
    """The open dates up to one, oldest first: those with bookings, and the last dates of weeks and months that agreements share
    once over then, be anything booked on them or not."""
    dates = set(store.open_dates(connection, date))
    closed = store.last_closed(connection)
    begun = dates if closed is None else {*dates, closed}
    scopes = {row.scope for row in agreements.agreements if row.scope in LONG}
    ends = {period_of(scope, on)[1] for scope in scopes for on in begun}
    return sorted(dates | {end for end in ends if (closed or "") < end <= date})


def freeze(connection: Connection, date: str, frozen_at: int, tariff: CompiledTariff) -> None:
    """From now on no booking gets the date; what is open and how far devices were heard of is written down with it. To be run
    while no other writer is at work."""
    store.freeze(connection, date, frozen_at)
    frozen.freeze(connection, date, tariff, open_items(connection, date))


def _publish(database: Database, rules: Rules, date: str, despite: str, step: Step) -> Closed:
    with database.read(long=True) as connection:
        computed = compute(database, connection, rules, date, despite, step)
    step(f"publish {date}")
    with database.write() as connection:
        documents = store.published(connection, date)
        if documents:  # another run was quicker, and gave the same
            return Closed(date, documents, newly=False)
        store.save_pools(connection, date, computed.pools)
        store.add_settlements(connection, date, computed.settled)
        share_store.add_uses(connection, computed.sharing.used)
        share_store.add_long_travellers(connection, computed.sharing.long_travellers)
        computed.entries.write(connection)
        store.add_payments(connection, computed.payments)
        store.add_balances(connection, date, computed.balances)
        store.set_head(connection, date, computed.seal, computed.tree_size)
        for name, content in computed.documents.items():
            store.publish(connection, date, name, content, statements.digest(content))
    return Closed(date, computed.documents, newly=True)


def begin(database: Database, connection: Connection, rules: Rules, date: str) -> tuple[Callable[[], Scan], Callable[[], Begun]]:
    """What gives what is booked under a date, and the seal over it; of a large date both are begun at once."""
    if store.count_lines(connection, date) > APART:
        begun = apart.begin(seals.begin_in_process, ToBegin(database.url, database.at_rest_key, date))
        return apart.begin(scan_in_process, ToScan(database.url, date, rules.agreements.weighing(date))), begun
    return partial(scan_of, connection, rules, date), partial(seals.begin, connection, date)


def scan_of(connection: Connection, rules: Rules, date: str) -> Scan:
    """What is booked under a date, read in this process."""
    return scan(OfConnection(connection), date, rules.agreements.weighing(date))


def compute(
    database: Database, connection: Connection, rules: Rules, date: str, despite: str = "", step: Step = lambda _: None
) -> Computed:
    """Everything that the close of a frozen date publishes; nothing is written. CloseError where more is open than may be,
    BooksError if the proof does not hold."""
    agreements = rules.agreements
    items, taps = frozen.list_open(connection, date), frozen.taps_under(connection, date)
    if not despite:
        frozen.check_open(items, taps, agreements.most_open)
    look, begun = begin(database, connection, rules, date)
    step(f"pools {date}")
    scanned = look()
    rows, movements = scanned.rows, scanned.movements
    found = _shared(connection, scanned, rules, date)
    step(f"net {date}")
    balances = _balances(movements, found.entries)
    found.net = netting.positions(balances)
    found.payments = payments_of(date, found.net)
    opening = store.balances_before(connection, date)
    _move_to_net(found.entries, balances, date)
    found.balances = _closing(opening, _balances(movements, found.entries))
    step(f"prove {date}")
    proof = _proof(rows, found, movements, agreements, date)
    _prove(proof, movements, found.entries, date)
    step(f"seal {date}")
    sealed = begun()
    if sealed.repeated:
        raise BooksError(f"booked twice under {date}: {sealed.repeated}")
    found.seal, found.tree_size = seals.seal_new(connection, date, sealed, found.entries)
    step(f"statements {date}")
    facts = Books(
        date,
        rules.tariff.zone,
        _traceable_until(agreements, date),
        rows,
        found.sharing.changes,
        found.settled,
        {key: moved.debits - moved.credits for key, moved in movements.items()},
        {name.partition(":")[2]: -amount for name, amount in opening.items() if name.startswith("net:")},
        items,
    )
    proof |= {"seal": found.seal, "tree_size": found.tree_size, "taps": taps, "despite": despite}
    found.documents = _documents(connection, facts, found, rules, proof, scanned.rides)
    return found


# ---- pools


def _shared(connection: Connection, scanned: Scan, rules: Rules, date: str) -> Computed:
    """Who gets what of a frozen date's money: each pool is rounded, and moved from the fares accounts to the parties."""
    before = store.date_before(connection, date)
    sharing = share(connection, scanned, rules.agreements, rules.caps, date, before)
    found = Computed(sharing, {}, {}, books.Booking(None))
    _settle(connection, sharing.changes, date, found, Code.SETTLED)
    held = {
        account.partition(":")[2]: amount
        for account, amount in _by_account(scanned.movements).items()
        if account.startswith("collector:")
    }
    fees = fees_of(rules.agreements, date, scanned.rows, scanned.rides, held, found.settled)
    sharing.changes.update(fees)
    _settle(connection, fees, date, found, Code.COMMISSION)
    return found


def _settle(connection: Connection, changes: Mapping[Pool, Shares], date: str, found: Computed, code: Code) -> None:
    states = store.load_pools(connection, [f"{pool}@{agreement}" for pool, agreement in changes], date)
    for (pool, agreement), change in sorted(changes.items()):
        key = f"{pool}@{agreement}"
        found.pools[key], paid = pools.settle(key, states.get(key, pools.EMPTY), change)
        found.settled[pool, agreement] = paid
        for party, amount in paid.items():
            moved = ledger.signed(ledger.fares(date, pool), ledger.operator(party), amount)
            transaction = hashlib.sha256(f"settle/{date}/{key}/{party}".encode()).hexdigest()[:32]
            for number, posting in enumerate(moved):
                found.entries.add_posting(transaction, number, code, posting, date, date)


def fees_of(
    agreements: Agreements,
    date: str,
    rows: Iterable[PoolRow],
    rides: Iterable[RideRow],
    held: Mapping[str, int],
    settled: Mapping[Pool, Mapping[str, int]],
) -> dict[Pool, Shares]:
    """What fees and commissions move, by fee and who pays it. `held` is what tills hold."""
    found: dict[Pool, Shares] = {}
    sold = sum(row.amount for row in rows if row.kind == "sale")
    listed = list(rides)
    for fee in agreements.fees:
        if not fee.holds_on(date):
            continue
        if fee.base == "sales":
            bases = {fee.paid_by: sold}
        elif fee.base == "cash_held":
            bases = dict(held)
        else:
            bases = _settled_base(fee, settled) if fee.base == "settled" else _rides_base(fee, listed)
        rate = Fraction(fee.percent) / 100 if fee.percent is not None else Fraction(fee.amount or 0)
        for payer in sorted(bases) if fee.paid_by == "operators" else [fee.paid_by]:
            parts = part_of(bases.get(payer, 0), rate)
            if parts and payer != fee.paid_to:
                found[f"fee|{fee.fee_id}|{payer}", fee.fee_id] = {fee.paid_to: parts, payer: -parts}
    return found


def _settled_base(fee: Fee, settled: Mapping[Pool, Mapping[str, int]]) -> dict[str, int]:
    bases: dict[str, int] = defaultdict(int)
    for (pool, _), paid in settled.items():
        if not pool.startswith("subsidy|") and (not fee.networks or pool.split("|")[1] in fee.networks):
            for party, amount in paid.items():
                bases[party] += amount
    return bases


def _rides_base(fee: Fee, rides: Iterable[RideRow]) -> dict[str, int]:
    bases: dict[str, int] = defaultdict(int)
    for row in rides:
        if row.operator_id and (not fee.networks or row.network_id in fee.networks):
            bases[row.operator_id] += row.persons
    return bases


# ---- net


def _by_account(movements: Movements) -> dict[str, int]:
    found: dict[str, int] = defaultdict(int)
    for (account, _), moved in movements.items():
        found[account] += moved.debits - moved.credits
    return found


def _balances(movements: Movements, entries: books.Booking) -> dict[str, int]:
    """Debits less credits of the date by account, the close's own postings included."""
    found = _by_account(movements)
    for posting in entries.postings:
        found[str(posting["debit"])] += int(str(posting["amount"]))
        found[str(posting["credit"])] -= int(str(posting["amount"]))
    return dict(found)


def _move_to_net(entries: books.Booking, balances: Mapping[str, int], date: str) -> None:
    """Everything that a party is owed and owes under the date, onto its account of net positions: its others are zero then."""
    for party, accounts in netting.party_accounts(balances).items():
        transaction = hashlib.sha256(f"net/{date}/{party}".encode()).hexdigest()[:32]
        for number, (account, amount) in enumerate(accounts.items()):
            for posting in ledger.signed(account, ledger.net(party), amount):
                entries.add_posting(transaction, number, Code.NETTED, posting, date, date)


def _closing(opening: Mapping[str, int], balances: Mapping[str, int]) -> dict[str, int]:
    """The balances that go on to the next date: what is to be paid, and the clearing house's own accounts."""
    found = dict(opening)
    for account, amount in balances.items():
        word = account.partition(":")[0]
        if word in netting.OWN:
            found[account] = found.get(account, 0) + amount
    return {account: amount for account, amount in sorted(found.items()) if amount}


# ---- proof


def _proof(
    rows: Iterable[PoolRow], found: Computed, movements: Movements, agreements: Agreements, date: str
) -> dict[str, object]:
    charged = borne = released = 0
    for row in rows:
        if row.kind in ("hold", "sale"):
            continue
        charged += row.amount
        if row.bearer.startswith("product:"):
            released += row.funded
        else:
            borne += row.funded
    return {
        "accounting_date": date,
        "agreement_version": agreements.clearing.agreement_version,
        "charged": charged,
        "borne": borne,
        "products": released,
        "settled": sum(sum(paid.values()) for paid in found.settled.values()),
        "net_sum": sum(found.net.values()),
    }


def _prove(proof: dict[str, object], movements: Movements, entries: books.Booking, date: str) -> None:
    """Money in equals money out, or nothing is published."""
    words = ("fares:", *(f"{word}:" for word in netting.PARTIES))
    balances = _balances(movements, entries)
    not_zero = {account: amount for account, amount in balances.items() if amount and account.startswith(words)}
    if not_zero:
        raise BooksError(f"accounts of {date} would not be zero after the close: {dict(sorted(not_zero.items())[:10])}")
    own = sum(int(str(posting["amount"])) for posting in entries.postings)
    debits = own + sum(moved.debits for moved in movements.values())
    credits = own + sum(moved.credits for moved in movements.values())
    if debits != credits:
        raise BooksError(f"debits {debits} and credits {credits} of {date} differ")
    proof["debits"], proof["credits"] = debits, credits
    paid_in = sum(int(str(proof[name])) for name in ("charged", "borne", "products"))
    if paid_in != proof["settled"]:
        raise BooksError(f"{paid_in} was paid into the pools of {date} and {proof['settled']} shared out")


# ---- documents


def _documents(
    connection: Connection, facts: Books, found: Computed, rules: Rules, proof: dict[str, object], rides: list[RideRow]
) -> dict[str, bytes]:
    made = statements.compose(facts, rules.agreements)
    printer = Printer(rules.tariff)
    documents = {}
    for statement in made:
        content = statements.statement_csv(statement)
        printed = printer.document(statement, statements.digest(content))
        documents[f"{statement.party_id}.csv"] = content
        documents[f"{statement.party_id}.xlsx"] = xlsx(printed)
        documents[f"{statement.party_id}.pdf"] = pdf(printed)
    for operator_id, content in _device_documents(connection, facts.accounting_date, facts.zone).items():
        documents[f"{operator_id}.devices.csv"] = content
    documents["open-items.csv"] = _open_items_document(facts.open_items)
    documents["ridership.csv"] = _ridership_document(rides)
    documents["positions.csv"] = statements.positions_csv(found.net, made)
    documents["payments.csv"] = statements.table_csv(
        ("payment_id", "party_id", "amount"), ((one.payment_id, one.party_id, one.amount) for one in found.payments)
    )
    documents["proof.json"] = statements.proof_json(proof)
    return dict(sorted(documents.items()))


def _open_items_document(items: Iterable[OpenItems]) -> bytes:
    """What is open for anybody; parties' statements show each his own."""
    rows = ((item.kind, item.party_id, harmless(item.reason), item.owner, item.count, item.of_date, item.since) for item in items)
    return statements.table_csv(("kind", "party_id", "reason", "owner", "count", "of_date", "since_ms"), rows)


def _ridership_document(rides: Iterable[RideRow]) -> bytes:
    """How many rode, and how far as far as that is known: what subsidies are paid for. Taken back rides count with a minus."""
    names = ("operator_id", "network_id", "route_id", "rider_category", "service_date", "rides", "persons", "metres")
    rows = [[getattr(ride, name) for name in names] for ride in rides if ride.rides or ride.persons]
    return statements.table_csv(names, rows)


def _device_documents(connection: Connection, date: str, zone: str) -> dict[str, bytes]:
    """Each operator's devices: their last position and contact, and what is known to be missing."""
    rows: dict[str, list[tuple[object, ...]]] = defaultdict(list)
    for device in frozen.list_positions(connection, date):
        contact = format_instant(device.last_contact, zone)
        rows[device.operator_id].append((device.device_id, device.epoch, device.sequence, contact, device.missing))
    columns = ("device_id", "epoch", "sequence", "last_contact", "missing")
    return {operator_id: statements.table_csv(columns, found) for operator_id, found in rows.items()}


def _traceable_until(agreements: Agreements, on: str) -> str:
    return (date.fromisoformat(on) + timedelta(days=agreements.clearing.raw_taps_kept_days)).isoformat()


# ---- checks of what is published


def verify(connection: Connection) -> list[str]:
    """What of the published dates was changed afterwards: each date whose rows no longer give its seal, each document whose
    hash or chain is broken. Empty: nothing."""
    return [f"{found.key}: {found.what}" for found in seals.check(connection)]


def check_shares(connection: Connection, rules: Rules) -> list[Finding]:
    """What of the published dates' settlements, pools, payments, balances and frozen facts is not what their lines, agreements
    and documents give. Empty: nothing."""
    found: list[Finding] = []
    long_travellers: set[tuple[str, str]] = set()
    for sealed in seal_store.list_seals(connection):
        on = sealed.accounting_date
        try:
            found += check_date(connection, rules, on, long_travellers)
        except (MottheError, SQLAlchemyError, ValueError, TypeError, KeyError, ZeroDivisionError) as error:
            found.append(Finding("pool_shares", on, f"cannot be computed again: {type(error).__name__}: {error}"))
    for last, traveller_id in sorted(long_travellers ^ share_store.all_long_travellers(connection)):
        found.append(Finding("long_periods", f"{last}/{traveller_id}", "is not what the lines of the period give"))
    return found


def check_date(connection: Connection, rules: Rules, on: str, long_travellers: set[tuple[str, str]]) -> Iterator[Finding]:
    """The same for one date; adds the travellers of whom more is shared at the end of a week or month."""
    scanned = scan_of(connection, rules, on)
    movements = scanned.movements
    computed = _shared(connection, scanned, rules, on)
    long_travellers |= computed.sharing.long_travellers
    yield from _check_frozen(connection, rules, on)
    for use in sorted(set(computed.sharing.used) ^ share_store.uses_under(connection, on)):
        key = f"{on}/{use.product_id}/{use.service_date}/{use.kind}/{use.operator_id}"
        yield Finding("product_uses", key, f"{use.amount} of {use.legs} rides is not what the date's lines give")
    wanted = {(*pool, party, amount) for pool, paid in computed.settled.items() for party, amount in paid.items()}
    for pool, agreement, party, amount in sorted(wanted ^ set(store.list_settlements(connection, on))):
        yield Finding("settlements", f"{on}/{pool}/{agreement}/{party}", f"{amount} is not what the date's lines give")
    held = store.list_pools(connection, on)
    for pool in sorted(held.keys() | computed.pools.keys()):
        if held.get(pool) != (_as_kept(computed.pools[pool]) if pool in computed.pools else None):
            yield Finding("pool_shares", f"{on}/{pool}", "is not what the date's lines give")
    balances = _balances(movements, computed.entries)
    payments = set(payments_of(on, netting.positions(balances)))
    for payment in sorted(payments ^ set(store.list_payments(connection, on))):
        yield Finding("payments", payment.payment_id, f"{payment.amount} for {payment.party_id} is not the net position of {on}")
    _move_to_net(computed.entries, balances, on)
    closing = _closing(store.balances_before(connection, on), _balances(movements, computed.entries))
    for account, amount in sorted(set(closing.items()) ^ set(store.list_balances(connection, on).items())):
        yield Finding("closing_balances", f"{on}/{account}", f"{amount} is not what the date's postings give")


def _check_frozen(connection: Connection, rules: Rules, on: str) -> Iterator[Finding]:
    """What was written down at the freeze stands in the documents that were published."""
    held = store.published(connection, on)
    if held.get("open-items.csv") != _open_items_document(frozen.list_open(connection, on)):
        yield Finding("open_items", on, "are not those that were published")
    devices = _device_documents(connection, on, rules.tariff.zone)
    published = {name.removesuffix(".devices.csv"): content for name, content in held.items() if name.endswith(".devices.csv")}
    for operator_id in sorted(devices.keys() | published.keys()):
        if devices.get(operator_id) != published.get(operator_id):
            yield Finding("device_positions", f"{on}/{operator_id}", "are not those that were published")


def _as_kept(state: PoolState) -> PoolState:
    """A pool's state as it is read back: every party with both its numbers; where nobody has anything any more, nobody."""
    exact = dict(state.exact) or {"": 0}
    return PoolState(exact, {party: state.published.get(party, 0) for party in exact})
