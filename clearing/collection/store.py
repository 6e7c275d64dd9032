"""What collection keeps, and every query it makes. Charges, refunds and events are only added; what changes of a row is its
state, which follows from the events. Money is in the engine's postings and balances, and moves in the same transaction."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar

import msgspec
from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    Row,
    String,
    Table,
    UniqueConstraint,
    and_,
    func,
    or_,
    select,
    text,
    update,
)

from clearing.collection.charges import OWED, UNDECIDED, Charge, Event, Mark, Refund
from fare_engine import ledger
from fare_engine.row_hash import Hasher
from fare_engine.store.deny import CUT_BYTES
from fare_engine.store.schema import accounts, deny_changes, lines, metadata, postings, tokens
from fare_engine.store.travellers import CASH

payment_sources = Table(  # what an account's money is taken from, and whether it tops itself up
    "payment_sources",
    metadata,
    Column("account_id", String, primary_key=True),
    Column("source", String, nullable=False),  # the provider's own name for it: no card number enters the system
    Column("added_at", BigInteger, nullable=False),
    Column("auto_below", BigInteger),
    Column("auto_amount", BigInteger),
    Column("row_hash", LargeBinary, nullable=False),
)

charges = Table(  # written before the provider is asked
    "charges",
    metadata,
    Column("charge_id", String, primary_key=True),
    Column("account_id", String, nullable=False),
    Column("purpose", String, nullable=False),
    Column("service_date", String(10), nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("recovers", BigInteger, nullable=False),
    Column("source", String, nullable=False),
    Column("made_at", BigInteger, nullable=False),
    Column("state", String, nullable=False),
    Column("row_hash", LargeBinary, nullable=False),
    Index("charges_account", "account_id"),
    Index(
        "charges_undecided",
        "made_at",
        sqlite_where=text("state IN ('begun', 'pending')"),
        postgresql_where=text("state IN ('begun', 'pending')"),
    ),
)

charge_events = Table(  # what the provider told, each event once, numbered as they came in
    "charge_events",
    metadata,
    Column("event_id", String, primary_key=True),
    Column("charge_id", String, nullable=False),
    Column("number", Integer, nullable=False),
    Column("kind", String, nullable=False),
    Column("reference", String, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("reason", String, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("received_at", BigInteger, nullable=False),
    Column("row_hash", LargeBinary, nullable=False),
    UniqueConstraint("charge_id", "number"),
)

refunds = Table(  # written before the provider is asked
    "refunds",
    metadata,
    Column("refund_id", String, primary_key=True),
    Column("charge_id", String),
    Column("account_id", String, nullable=False),
    Column("line_transaction", String, nullable=False),
    Column("leg_id", String, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("bearer", String, nullable=False),
    Column("reason", String, nullable=False),
    Column("service_date", String(10), nullable=False),
    Column("made_at", BigInteger, nullable=False),
    Column("state", String, nullable=False),
    Column("row_hash", LargeBinary, nullable=False),
    Index("refunds_leg", "leg_id"),
    Index("refunds_charge", "charge_id"),
    Index("refunds_asked", "made_at", sqlite_where=text("state = 'asked'"), postgresql_where=text("state = 'asked'")),
)

write_offs = Table(  # debts that were given up: who bore them, and which charge brought them in after all
    "write_offs",
    metadata,
    Column("transaction_id", String, nullable=False),
    Column("bearer", String, nullable=False),
    Column("account_id", String, nullable=False),
    Column("service_date", String(10), nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("recovered_by", String),
    Column("row_hash", LargeBinary, nullable=False),
    PrimaryKeyConstraint("transaction_id", "bearer"),
    Index("write_offs_account", "account_id"),
)

debt_blocks = Table(  # tokens that a debt put on the deny list: only these may a payment take off it
    "debt_blocks",
    metadata,
    Column("token_id", String, nullable=False),
    Column("blocked_at", BigInteger, nullable=False),
    Column("account_id", String, nullable=False),
    Column("lifted_at", BigInteger),
    Column("row_hash", LargeBinary, nullable=False),
    PrimaryKeyConstraint("token_id", "blocked_at"),
    Index("debt_blocks_account", "account_id"),
)

cards = Table(  # cards by the hash of their number, how long they are good, and what became of them
    "cards",
    metadata,
    Column("card_number_hash", String, primary_key=True),
    Column("account_id", String, nullable=False),
    Column("issued_on", String(10), nullable=False),
    Column("expires_on", String(10), nullable=False),
    Column("deposit", BigInteger, nullable=False),
    Column("token_id", String),  # what is tapped with it; None: whatever its account has
    Column("ended_on", String(10)),
    Column("ended_by", String),  # replaced, expired
    Column("swept_on", String(10)),  # when what was left on it went to whom the rules name
    Column("row_hash", LargeBinary, nullable=False),
    Index("cards_account", "account_id"),
)

TABLES = (payment_sources, charges, charge_events, refunds, write_offs, debt_blocks, cards)
HASHERS = {
    table.name: Hasher("".join(table.name), ["".join(c.name) for c in table.c if c.name != "row_hash"]) for table in TABLES
}
DEBT = "unpaid"
"""The reason with which a debt blocks a token."""
PAID = "paid"
"""The reason with which a payment takes such a block back."""
_Found = TypeVar("_Found", Charge, Refund, Event)


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """What an account's money is taken from. `auto_amount` is put on it whenever less than `auto_below` is left."""

    account_id: str
    source: str
    added_at: int
    auto_below: int | None = None
    auto_amount: int | None = None


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """A card with its term. `ended_by` says why it is good no more."""

    card_number_hash: str
    account_id: str
    issued_on: str
    expires_on: str
    deposit: int = 0
    token_id: str | None = None
    ended_on: str | None = None
    ended_by: str | None = None
    swept_on: str | None = None


class WriteOff(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a debt that was given up, and who bore it; below zero, what of it was won back with a chargeback."""

    transaction_id: str
    bearer: str
    account_id: str
    service_date: str
    amount: int
    recovered_by: str | None = None


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """A token that a debt blocked at an instant."""

    token_id: str
    blocked_at: int
    account_id: str
    lifted_at: int | None = None


class PaidLine(msgspec.Struct, frozen=True):
    """A line that stands in the books, with what its leg was charged in all."""

    transaction_id: str
    account_id: str
    leg_id: str
    operator_id: str | None
    service_date: str
    amount: int
    leg_amount: int


def hashed(table: Table, row: dict[str, Any]) -> dict[str, Any]:
    """A row with its hash over everything else in it."""
    return row | {"row_hash": HASHERS[table.name].of(row)}


def _save(connection: Connection, table: Table, found: msgspec.Struct, **more: object) -> None:
    """Add a row, or write it anew."""
    row = hashed(table, msgspec.structs.asdict(found) | more)
    key = and_(*(c == row[c.name] for c in table.primary_key))
    if connection.execute(update(table).where(key).values(row)).rowcount == 0:
        connection.execute(table.insert(), row)


def _read(kind: type[_Found], rows: Iterable[Row[Any]]) -> list[_Found]:
    return [kind(**{name: row._mapping[name] for name in kind.__struct_fields__}) for row in rows]


# ---- sources


def save_source(connection: Connection, source: Source) -> None:
    """From now on an account's money is taken from this source."""
    _save(connection, payment_sources, source)


def find_source(connection: Connection, account_id: str) -> Source | None:
    """What an account's money is taken from."""
    row = connection.execute(select(payment_sources).where(payment_sources.c.account_id == account_id)).first()
    return Source(**{name: row._mapping[name] for name in Source.__struct_fields__}) if row else None


def list_low(connection: Connection) -> list[str]:
    """Accounts with less stored value than their holder lets it sink to."""
    low = and_(accounts.c.kind == "prepaid", accounts.c.balance < payment_sources.c.auto_below)
    joined = select(accounts.c.account_id).join(payment_sources, payment_sources.c.account_id == accounts.c.account_id)
    return list(connection.execute(joined.where(low).order_by(accounts.c.account_id)).scalars())


# ---- charges and their events


def add_charge(connection: Connection, charge: Charge) -> None:
    """Write down what the provider will be asked for."""
    connection.execute(charges.insert(), hashed(charges, msgspec.structs.asdict(charge)))


def save_charge(connection: Connection, charge: Charge) -> None:
    """A charge's state has changed."""
    _save(connection, charges, charge)


def find_charge(connection: Connection, charge_id: str) -> Charge | None:
    """One charge, or None."""
    return next(iter(_read(Charge, connection.execute(select(charges).where(charges.c.charge_id == charge_id)))), None)


def list_charges(connection: Connection) -> list[Charge]:
    """Every charge, by id."""
    return _read(Charge, connection.execute(select(charges).order_by(charges.c.charge_id)))


def charges_of(connection: Connection, account_id: str) -> list[Charge]:
    """An account's charges, the oldest first."""
    mine = select(charges).where(charges.c.account_id == account_id)
    return _read(Charge, connection.execute(mine.order_by(charges.c.made_at, charges.c.charge_id)))


def list_undecided(connection: Connection, made_before: int) -> list[Charge]:
    """Charges that the provider has not decided, the oldest first."""
    waiting = and_(charges.c.state.in_(UNDECIDED), charges.c.made_at < made_before)
    return _read(Charge, connection.execute(select(charges).where(waiting).order_by(charges.c.made_at, charges.c.charge_id)))


def add_event(connection: Connection, event: Event) -> None:
    """One more event of a charge."""
    number = select(func.count()).select_from(charge_events).where(charge_events.c.charge_id == event.charge_id)
    row = msgspec.structs.asdict(event) | {"number": connection.execute(number).scalar_one()}
    connection.execute(charge_events.insert(), hashed(charge_events, row))


def find_event(connection: Connection, event_id: str) -> Event | None:
    """An event that was told before."""
    found = connection.execute(select(charge_events).where(charge_events.c.event_id == event_id))
    return next(iter(_read(Event, found)), None)


def events_of(connection: Connection, charge_id: str) -> list[Event]:
    """A charge's events, as they came in."""
    mine = select(charge_events).where(charge_events.c.charge_id == charge_id)
    return _read(Event, connection.execute(mine.order_by(charge_events.c.number)))


def list_events(connection: Connection) -> dict[str, list[Event]]:
    """Every event by charge, as they came in."""
    found: dict[str, list[Event]] = {}
    in_order = select(charge_events).order_by(charge_events.c.charge_id, charge_events.c.number)
    for event in _read(Event, connection.execute(in_order)):
        found.setdefault(event.charge_id, []).append(event)
    return found


def marks_of(connection: Connection, account_id: str, day_of: Callable[[int], str]) -> list[Mark]:
    """What became of an account's charges, as it became known. Of top-ups only what was taken back counts, for a top-up that is
    declined is no debt; of a chargeback what was not won back."""
    joined = (
        select(charge_events, charges.c.purpose, charges.c.service_date, charges.c.state)
        .join(charges, charges.c.charge_id == charge_events.c.charge_id)
        .where(charges.c.account_id == account_id, charge_events.c.kind.in_(("captured", "declined", "charged_back", "won_back")))
        .order_by(charge_events.c.received_at, charges.c.service_date, charge_events.c.charge_id, charge_events.c.number)
    )
    found: list[Mark] = []
    seen: set[tuple[str, str, str]] = set()
    rows = connection.execute(joined).all()
    won = [(row.charge_id, row.reference, row.amount) for row in rows if row.kind == "won_back"]
    for row in rows:
        told = (row.charge_id, row.kind, row.reference)
        undone = row.kind == "declined" and row.state == "captured"
        if told in seen or undone or row.kind == "won_back" or (row.kind != "charged_back" and row.purpose not in OWED):
            continue
        seen.add(told)
        if row.kind == "charged_back":
            of_it = (amount for *which, amount in won if which == [row.charge_id, row.reference] and 0 < amount <= row.amount)
            left = row.amount - next(of_it, 0)
            found += [Mark("charged_back", day_of(row.received_at), left)] if left else []
        else:
            found.append(Mark(row.kind, row.service_date, row.amount))
    return found


# ---- who owes


def list_owing(connection: Connection, on: str) -> dict[str, int]:
    """What post-paid accounts owe of the dates up to one: their balance without what was ridden later."""
    wanted = and_(accounts.c.kind == "postpaid", accounts.c.balance < 0, accounts.c.account_id != CASH)
    owed = {
        row.account_id: -int(row.balance)
        for row in connection.execute(select(accounts.c.account_id, accounts.c.balance).where(wanted))
    }
    for column, sign in ((postings.c.debit, -1), (postings.c.credit, 1)):
        later = and_(postings.c.accounting_date > on, postings.c.service_date > on, column.like("rider:%"))
        for name, amount in connection.execute(select(column, func.sum(postings.c.amount)).where(later).group_by(column)):
            account_id = name.removeprefix("rider:")
            if account_id in owed:
                owed[account_id] += sign * int(amount)
    return {account_id: amount for account_id, amount in sorted(owed.items()) if amount > 0}


def list_blamed(connection: Connection) -> list[str]:
    """Accounts for which something may have to be put right: they have tokens that a debt blocks, or owe and were declined."""
    blocked = select(debt_blocks.c.account_id).where(debt_blocks.c.lifted_at.is_(None))
    owing = select(accounts.c.account_id).where(accounts.c.balance < 0, accounts.c.account_id != CASH)
    failed = select(charges.c.account_id).where(
        charges.c.account_id.in_(owing),
        or_(
            charges.c.state == "declined",
            charges.c.charge_id.in_(select(charge_events.c.charge_id).where(charge_events.c.kind == "charged_back")),
        ),
    )
    return sorted({*connection.execute(blocked).scalars(), *connection.execute(failed).scalars()})


# ---- refunds


def save_refund(connection: Connection, refund: Refund) -> None:
    """Write down a refund that is asked for, or what became of it."""
    _save(connection, refunds, refund)


def find_refund(connection: Connection, refund_id: str) -> Refund | None:
    """One refund, or None."""
    return next(iter(_read(Refund, connection.execute(select(refunds).where(refunds.c.refund_id == refund_id)))), None)


def refunds_of_leg(connection: Connection, leg_id: str) -> list[Refund]:
    """What was or is to be given back of a leg."""
    standing = and_(refunds.c.leg_id == leg_id, refunds.c.state != "failed")
    return _read(Refund, connection.execute(select(refunds).where(standing).order_by(refunds.c.made_at)))


def refunds_of_charge(connection: Connection, charge_id: str) -> dict[str, Refund]:
    """What was or is to be given back of a charge, by refund."""
    rows = connection.execute(select(refunds).where(refunds.c.charge_id == charge_id))
    return {refund.refund_id: refund for refund in _read(Refund, rows)}


def list_refunds(connection: Connection) -> dict[str, Refund]:
    """Every refund, by id."""
    return {refund.refund_id: refund for refund in _read(Refund, connection.execute(select(refunds)))}


def list_asked(connection: Connection, made_before: int) -> list[Refund]:
    """Refunds that the provider has not answered, the oldest first."""
    waiting = and_(refunds.c.state == "asked", refunds.c.made_at < made_before)
    return _read(Refund, connection.execute(select(refunds).where(waiting).order_by(refunds.c.made_at, refunds.c.refund_id)))


def find_paid_line(connection: Connection, transaction_id: str) -> PaidLine | None:
    """A line that stands in the books and cost its rider something, or None."""
    row = connection.execute(select(lines).where(lines.c.transaction_id == transaction_id)).first()
    if row is None or row.amount <= 0 or row.generation % 2 or not row.payer.startswith("rider:"):
        return None
    whole = and_(lines.c.traveller_id == row.traveller_id, lines.c.leg_id == row.leg_id, lines.c.payer == row.payer)
    of_leg = connection.execute(select(lines).where(whole)).all()
    if any(other.line_id == row.line_id and other.generation > row.generation for other in of_leg):
        return None
    paid = sum(int(other.amount) for other in of_leg if other.kind != "hold")
    payer = row.payer.removeprefix("rider:")
    return PaidLine(transaction_id, payer, row.leg_id, row.operator_id, row.service_date, row.amount, paid)


def paid_for_legs(connection: Connection, leg_ids: Collection[str]) -> dict[str, int]:
    """What each of some legs costs its rider by now."""
    these = select(lines.c.leg_id, func.sum(lines.c.amount).label("amount")).where(
        lines.c.leg_id.in_(leg_ids), lines.c.kind != "hold", lines.c.payer.like("rider:%")
    )
    return {row.leg_id: int(row.amount) for row in connection.execute(these.group_by(lines.c.leg_id))}


# ---- debts that were given up


def save_write_off(connection: Connection, found: WriteOff) -> None:
    """A debt is given up, or came in after all."""
    _save(connection, write_offs, found)


def write_offs_of(connection: Connection, account_id: str) -> list[WriteOff]:
    """What of an account's debts was given up and has not come in since."""
    missing = and_(write_offs.c.account_id == account_id, write_offs.c.recovered_by.is_(None))
    rows = connection.execute(select(write_offs).where(missing).order_by(write_offs.c.transaction_id, write_offs.c.bearer))
    return [WriteOff(**{name: row._mapping[name] for name in WriteOff.__struct_fields__}) for row in rows]


def list_write_offs(connection: Connection) -> list[WriteOff]:
    """Every debt that was given up."""
    rows = connection.execute(select(write_offs))
    return [WriteOff(**{name: row._mapping[name] for name in WriteOff.__struct_fields__}) for row in rows]


# ---- tokens that a debt blocks


def save_block(connection: Connection, block: Block) -> None:
    """A debt blocks a token, or does so no longer."""
    _save(connection, debt_blocks, block)


def blocks_of(connection: Connection, account_id: str | None = None) -> list[Block]:
    """The blocks of an account's debts that stand; of everybody's."""
    standing: ColumnElement[bool] = debt_blocks.c.lifted_at.is_(None)
    if account_id is not None:
        standing = and_(standing, debt_blocks.c.account_id == account_id)
    rows = connection.execute(select(debt_blocks).where(standing).order_by(debt_blocks.c.token_id))
    return [Block(**{name: row._mapping[name] for name in Block.__struct_fields__}) for row in rows]


def tokens_ever_blocked(connection: Connection) -> list[str]:
    """Every token that a debt has ever blocked."""
    return sorted(connection.execute(select(debt_blocks.c.token_id).distinct()).scalars())


def list_denials(connection: Connection, terminal_token: bytes) -> list[tuple[bool, str]]:
    """(added, reason) of a token's changes on the deny list, the oldest first."""
    same = deny_changes.c.token == terminal_token[:CUT_BYTES]
    rows = connection.execute(select(deny_changes).where(same).order_by(deny_changes.c.version))
    return [(bool(row.added), row.reason) for row in rows]


def blocked_tokens(connection: Connection, token_ids: Collection[str]) -> dict[str, int | None]:
    """When each of some tokens was blocked."""
    rows = connection.execute(select(tokens.c.token_id, tokens.c.blocked_at).where(tokens.c.token_id.in_(token_ids)))
    return {row.token_id: row.blocked_at for row in rows}


# ---- cards


def save_card(connection: Connection, card: Card) -> None:
    """A card is issued, or its end has come."""
    _save(connection, cards, card)


def find_card(connection: Connection, card_number_hash: str) -> Card | None:
    """One card, or None."""
    row = connection.execute(select(cards).where(cards.c.card_number_hash == card_number_hash)).first()
    return Card(**{name: row._mapping[name] for name in Card.__struct_fields__}) if row else None


def list_ending(connection: Connection, on: str) -> list[Card]:
    """Cards whose term was over before a date and that did not end yet, or on which something may be left."""
    over = or_(
        and_(cards.c.ended_on.is_(None), cards.c.expires_on < on),
        and_(cards.c.ended_by == "expired", cards.c.swept_on.is_(None)),
    )
    rows = connection.execute(select(cards).where(over).order_by(cards.c.card_number_hash))
    return [Card(**{name: row._mapping[name] for name in Card.__struct_fields__}) for row in rows]


# ---- the books


def collected_postings(connection: Connection, codes: Iterable[str]) -> dict[str, list[tuple[str, str, str, int]]]:
    """transaction → (code, debit, credit, amount) of the postings with some codes."""
    found: dict[str, list[tuple[str, str, str, int]]] = {}
    these = select(postings).where(postings.c.code.in_(list(codes))).order_by(postings.c.transaction_id, postings.c.number)
    for row in connection.execute(these):
        found.setdefault(row.transaction_id, []).append((row.code, row.debit, row.credit, row.amount))
    return found


def balances_of(connection: Connection, prefixes: Iterable[str]) -> Mapping[str, int]:
    """Debits less credits of the accounts that begin so."""
    found: dict[str, int] = {}
    for column, sign in ((postings.c.debit, 1), (postings.c.credit, -1)):
        these = or_(*(column.like(f"{prefix}%") for prefix in prefixes))
        for name, amount in connection.execute(select(column, func.sum(postings.c.amount)).where(these).group_by(column)):
            found[name] = found.get(name, 0) + sign * int(amount)
    return found


def stored_value(connection: Connection) -> int:
    """What riders have put on their cards and not used: the clearing house owes it to them."""
    held = select(func.coalesce(func.sum(accounts.c.balance), 0)).where(accounts.c.kind == "prepaid", accounts.c.balance > 0)
    return int(connection.execute(held).scalar_one())


DEPOSITS = "deposits:"
"""What riders left for their cards, by account: the clearing house owes it to them."""
ACCOUNTS = (ledger.collector(""), ledger.losses(""), ledger.fees(""), DEPOSITS)
"""The books that collection moves besides riders' accounts."""


def changed_rows(connection: Connection) -> list[tuple[str, str]]:
    """(table, key) of every row that is not what was written."""
    found = []
    for table in TABLES:
        for row in connection.execute(select(table)):
            if HASHERS[table.name].of(dict(row._mapping)) != row.row_hash:
                found.append((table.name, "/".join(str(row._mapping[c.name]) for c in table.primary_key)))
    return found
