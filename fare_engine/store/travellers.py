"""Accounts, tokens and travellers: who pays, what is tapped, who rides."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, bindparam, select, update

from fare_engine.booking import Record, decode, encode
from fare_engine.store import schema

CASH = "cash"
"""The account of every paper ticket: whoever runs the leg holds its money, so he owes it."""


@dataclass(frozen=True, slots=True)
class Token:
    """What a token stands for."""

    token_id: str
    traveller_id: str
    account_id: str
    blocked_at: int | None


@dataclass(frozen=True, slots=True)
class Account:
    """Who pays. `balance` is the stored value, or minus what a post-paid account owes."""

    account_id: str
    kind: str
    balance: int
    card_number_hash: str | None = None
    card_label: str | None = None


@dataclass(slots=True)
class Traveller:
    """A traveller's row with its record."""

    traveller_id: str
    account_id: str
    record: Record
    next_due: int
    dirty_since: int | None = None
    dirty_reason: str | None = None


_tokens, _accounts, _travellers = schema.tokens, schema.accounts, schema.travellers
_FIND_TOKENS = select(_tokens.c.token_id, _tokens.c.traveller_id, _tokens.c.account_id, _tokens.c.blocked_at).where(
    _tokens.c.token_id.in_(bindparam("ids", expanding=True))
)
_FIND_ACCOUNTS = (
    select(_accounts)
    .where(_accounts.c.account_id.in_(bindparam("ids", expanding=True)))
    .order_by(_accounts.c.account_id)
    .with_for_update()
)
_GET_TRAVELLERS = (
    select(_travellers)
    .where(_travellers.c.traveller_id.in_(bindparam("ids", expanding=True)))
    .order_by(_travellers.c.traveller_id)
    .with_for_update()
)
_SAVE_TRAVELLER = (
    update(_travellers)
    .where(_travellers.c.traveller_id == bindparam("key"))
    .values({name: bindparam(name) for name in ("record", "next_due", "dirty_since", "dirty_reason")})
)
_CHANGE_BALANCE = (
    update(_accounts).where(_accounts.c.account_id == bindparam("key")).values(balance=_accounts.c.balance + bindparam("change"))
)
# Statements of the tap path are built once: building one costs as much as running it.


def add_accounts(connection: Connection, accounts: Iterable[Account]) -> None:
    """New accounts."""
    rows = [
        {
            "account_id": account.account_id,
            "kind": account.kind,
            "balance": account.balance,
            "card_number_hash": account.card_number_hash,
            "card_label": account.card_label,
        }
        for account in accounts
    ]
    if rows:
        connection.execute(schema.accounts.insert(), rows)


def add_tokens(connection: Connection, tokens: Iterable[Token]) -> None:
    """New links from a token to a traveller and an account."""
    rows = [
        {
            "token_id": token.token_id,
            "traveller_id": token.traveller_id,
            "account_id": token.account_id,
            "blocked_at": token.blocked_at,
        }
        for token in tokens
    ]
    if rows:
        connection.execute(schema.tokens.insert(), rows)


def add_travellers(connection: Connection, travellers: Iterable[Traveller]) -> None:
    """New travellers."""
    rows = [_row(traveller) for traveller in travellers]
    if rows:
        connection.execute(schema.travellers.insert(), rows)


def find_tokens(connection: Connection, token_ids: Collection[str]) -> dict[str, Token]:
    """The tokens that are known."""
    rows = connection.execute(_FIND_TOKENS, {"ids": list(token_ids)})
    return {row.token_id: Token(*row) for row in rows}


def all_tokens(connection: Connection) -> Iterable[Token]:
    """Every token."""
    table = schema.tokens
    for row in connection.execute(select(table.c.token_id, table.c.traveller_id, table.c.account_id, table.c.blocked_at)):
        yield Token(*row)


def block_token(connection: Connection, token_id: str, at: int) -> None:
    """A lost card: nothing that is tapped with it from now on is let through."""
    connection.execute(update(schema.tokens).where(schema.tokens.c.token_id == token_id).values(blocked_at=at))


def get_travellers(connection: Connection, traveller_ids: Collection[str]) -> dict[str, Traveller]:
    """Some travellers, locked in the order of their ids where the database locks rows."""
    return {row.traveller_id: _traveller(row) for row in connection.execute(_GET_TRAVELLERS, {"ids": sorted(traveller_ids)})}


def list_due(connection: Connection, as_of: int, most: int) -> list[str]:
    """Travellers for whom something happens before `as_of` without a tap."""
    table = schema.travellers
    rows = connection.execute(
        select(table.c.traveller_id).where(table.c.next_due < as_of).order_by(table.c.next_due, table.c.traveller_id).limit(most)
    )
    return [row.traveller_id for row in rows]


def list_dirty(connection: Connection, most: int) -> list[str]:
    """Travellers whose last fold failed and is to be tried again."""
    table = schema.travellers
    rows = connection.execute(
        select(table.c.traveller_id).where(table.c.dirty_since.is_not(None)).order_by(table.c.traveller_id).limit(most)
    )
    return [row.traveller_id for row in rows]


def save_travellers(connection: Connection, travellers: Iterable[Traveller]) -> None:
    """Write travellers' rows back."""
    rows = [{"key": traveller.traveller_id, **_row(traveller)} for traveller in travellers]
    for row in rows:
        del row["traveller_id"], row["account_id"]
    if rows:
        connection.execute(_SAVE_TRAVELLER, rows)


def all_travellers(connection: Connection) -> Iterable[Traveller]:
    """Every traveller, by id: for the auditor and the what-if."""
    rows = connection.execution_options(yield_per=1000).execute(
        select(schema.travellers).order_by(schema.travellers.c.traveller_id)
    )
    for row in rows:
        yield _traveller(row)


def find_accounts(connection: Connection, account_ids: Collection[str]) -> dict[str, Account]:
    """Some accounts."""
    rows = connection.execute(_FIND_ACCOUNTS, {"ids": sorted(account_ids)})
    return {row.account_id: Account(*row) for row in rows}


def find_account_by_card(connection: Connection, card_number_hash: str) -> Account | None:
    """The account whose card has this printed number."""
    row = connection.execute(select(schema.accounts).where(schema.accounts.c.card_number_hash == card_number_hash)).first()
    return Account(*row) if row else None


def travellers_of_account(connection: Connection, account_id: str) -> list[Traveller]:
    """The travellers whose rides an account pays."""
    tokens = schema.tokens
    ids = select(tokens.c.traveller_id).where(tokens.c.account_id == account_id).distinct()
    rows = connection.execute(
        select(schema.travellers).where(schema.travellers.c.traveller_id.in_(ids)).order_by(schema.travellers.c.traveller_id)
    )
    return [_traveller(row) for row in rows]


def change_balances(connection: Connection, changes: Mapping[str, int]) -> None:
    """Add to accounts' balances, in the order of their ids."""
    rows = [{"key": account_id, "change": change} for account_id, change in sorted(changes.items()) if change]
    if rows:
        connection.execute(_CHANGE_BALANCE, rows)


def _row(traveller: Traveller) -> dict[str, object]:
    return {
        "traveller_id": traveller.traveller_id,
        "account_id": traveller.account_id,
        "record": encode(traveller.record),
        "next_due": traveller.next_due,
        "dirty_since": traveller.dirty_since,
        "dirty_reason": traveller.dirty_reason,
    }


def _traveller(row: Row[Any]) -> Traveller:
    return Traveller(row.traveller_id, row.account_id, decode(row.record), row.next_due, row.dirty_since, row.dirty_reason)
