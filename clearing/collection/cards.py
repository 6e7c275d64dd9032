"""Cards: issued for a term, replaced with all that is on them, and ended.

What is on a card is its account's, so a replacement moves no money: the old medium is blocked, the new one is the same
traveller's. At the end of its term a card is blocked; its stored value waits for another card, and goes to whom the rules name
only long after. Deposits are riders' money until then."""

from __future__ import annotations

from datetime import date

import msgspec
from sqlalchemy import Connection

from clearing.collection import booking, store
from clearing.collection.charges import days_after, digest
from clearing.collection.collector import Collector, locked, tokens_of
from clearing.collection.store import Card
from fare_engine import jobs, publishing
from fare_engine.application import Application
from fare_engine.errors import CollectionError, NotFoundError
from fare_engine.ledger import Code
from fare_engine.store import travellers
from fare_engine.store.travellers import NewToken
from fare_engine.tokens import stored_card_number, stored_token

REPLACED, EXPIRED = "replaced", "expired"


class Ended(msgspec.Struct):
    """What a run over ended terms came to."""

    expired: int = 0
    swept: int = 0
    residual: int = 0


def issue(
    collector: Collector, connection: Connection, account_id: str, number_hash: str, label: str, token_id: str | None, on: str
) -> Card:
    """An account's card from now on, its deposit taken from the stored value. CollectionError where it has one, or too little."""
    account = locked(connection, account_id)
    if store.find_card(connection, number_hash) is not None:
        raise CollectionError("card_known", "this card was issued before")
    if account.card_number_hash not in (None, number_hash):
        raise CollectionError("card_known", f"the account {account_id} has a card; it can be replaced")
    deposit = collector.rules.cards.deposit
    if account.kind != "prepaid":
        deposit = 0
    if deposit > max(account.balance, 0):
        raise CollectionError("amount", f"the deposit is {deposit}, the account {account_id} has {account.balance}")
    card = Card(
        card_number_hash=number_hash,
        account_id=account_id,
        issued_on=on,
        expires_on=months_after(on, collector.rules.cards.valid_months),
        deposit=deposit,
        token_id=token_id,
    )
    store.save_card(connection, card)
    travellers.change_card(connection, account_id, number_hash, label)
    if deposit:
        collector.book(connection, [booking.deposited(card, digest("deposit", number_hash), deposit, Code.COLLECTED)], on)
    return card


def replace(
    collector: Collector,
    connection: Connection,
    application: Application,
    old_number: str,
    new_number: str,
    new_medium: bytes | None,
    now: int,
) -> Card:
    """Another card for an account, with all that is on the old one, which is good for nothing from now on. To be run `alone`.

    `new_medium` is what terminals send for the new one. NotFoundError for an unknown number; CollectionError for a known new one,
    or where it cannot be told which medium the old card is."""
    key, on = application.server_key, collector.day_of(now)
    old_hash, new_hash = stored_card_number(key, old_number), stored_card_number(key, new_number)
    account = travellers.find_account_by_card(connection, old_hash)
    if account is None:
        raise NotFoundError("no account has a card with this number")
    if store.find_card(connection, new_hash) or travellers.find_account_by_card(connection, new_hash):
        raise CollectionError("card_known", "the new card was issued before")
    locked(connection, account.account_id)
    old = store.find_card(connection, old_hash) or _unwritten(old_hash, account.account_id, on)
    old_token = _medium_of(connection, old)
    store.save_card(connection, msgspec.structs.replace(old, ended_on=old.ended_on or on, ended_by=REPLACED, swept_on=on))
    token = travellers.find_tokens(connection, [old_token])[old_token]
    owner = token.traveller_at(now)
    publishing.block(connection, old_token, now, REPLACED)
    new_token = None
    if new_medium is not None:
        new_token = stored_token(key, new_medium)
        jobs.register(connection, application, [NewToken(new_token, owner, account.account_id, new_medium)], now)
    card = Card(
        card_number_hash=new_hash,
        account_id=account.account_id,
        issued_on=on,
        expires_on=months_after(on, collector.rules.cards.valid_months),
        deposit=old.deposit,
        token_id=new_token,
    )
    store.save_card(connection, card)
    digits = [character for character in new_number if character.isalnum()]
    travellers.change_card(connection, account.account_id, new_hash, "".join(digits[-4:]))
    collector.enforce(connection, account.account_id, now)
    return card


def expire(collector: Collector, on: str, now: int) -> Ended:
    """End the cards whose term was over before a date, and sweep what is left on those that ended long ago."""
    found = Ended()
    with collector.database.read() as connection:
        ending = store.list_ending(connection, on)
    for card in ending:
        expired, rest = collector.database.transact(lambda connection, card=card: _end(collector, connection, card, on, now))  # type: ignore[misc]
        found.expired += expired
        found.swept += rest is not None
        found.residual += rest or 0
    return found


def _end(collector: Collector, connection: Connection, card: Card, on: str, now: int) -> tuple[bool, int | None]:
    """End one card, or sweep it; whether it ended now, and what was swept."""
    account = locked(connection, card.account_id)
    held = store.find_card(connection, card.card_number_hash) or card
    if held.ended_on is None:
        tokens = [held.token_id] if held.token_id is not None else sorted(tokens_of(connection, held.account_id))
        for token_id in tokens:
            publishing.block(connection, token_id, now, EXPIRED)
        store.save_card(connection, msgspec.structs.replace(held, ended_on=on, ended_by=EXPIRED))
        return True, None
    over = days_after(held.ended_on, collector.rules.cards.keeps_days) <= on
    if held.ended_by != EXPIRED or held.swept_on is not None or not over:
        return False, None
    rest = max(account.balance + held.deposit, 0) if account.kind == "prepaid" else 0
    if held.deposit:
        back = booking.deposited(held, digest("deposit_back", held.card_number_hash), -held.deposit, Code.REFUNDED)
        collector.book(connection, [back], on)
    if rest:
        residual_to = collector.rules.cards.residual_to
        collector.book(connection, [booking.swept(held, digest("swept", held.card_number_hash), rest, residual_to)], on)
    store.save_card(connection, msgspec.structs.replace(held, swept_on=on))
    return False, rest


def months_after(day: str, months: int) -> str:
    """The same day so many months later; the last one of a shorter month."""
    begun = date.fromisoformat(day)
    year, month = divmod(begun.year * 12 + begun.month - 1 + months, 12)
    for last in range(begun.day, 27, -1):
        try:
            return date(year, month + 1, last).isoformat()
        except ValueError:
            continue
    return date(year, month + 1, begun.day).isoformat()


def _unwritten(number_hash: str, account_id: str, on: str) -> Card:
    """A card that was issued before cards were written down."""
    return Card(card_number_hash=number_hash, account_id=account_id, issued_on=on, expires_on=on)


def _medium_of(connection: Connection, card: Card) -> str:
    """The token of a card. CollectionError where its account has several and the card does not say which."""
    tokens = [card.token_id] if card.token_id is not None else sorted(tokens_of(connection, card.account_id))
    if len(tokens) != 1:
        raise CollectionError("which_token", f"the card's account has {len(tokens)} tokens: {', '.join(tokens)}")
    return tokens[0]
