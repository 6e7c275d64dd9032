"""A bank file's way in: its lines are kept once, matched, and what was paid is booked against the party's net position."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import msgspec
from sqlalchemy import Connection

from clearing.bank import store
from clearing.bank.accounts import Accounts
from clearing.bank.camt053 import OwnAccount, read_camt053
from clearing.bank.matching import Match, OpenPayment, Payments, Reason
from clearing.bank.pain001 import order_of
from clearing.payments import Payment
from fare_engine import ledger
from fare_engine.errors import NotFoundError, PaymentError
from fare_engine.store import books

BY_RULE, BY_HAND = "rule", "hand"


class Imported(msgspec.Struct, frozen=True):
    """What came of a file."""

    is_new: bool
    lines: int
    added: int
    matched: int
    """Also of lines that waited before."""
    waiting: int


def import_file(connection: Connection, content: bytes, accounts: Accounts, minor_digits: int, now: int) -> Imported:
    """Take a bank statement's file: all of it, or InputError and nothing. What was here before has no effect again."""
    statements = read_camt053(content, OwnAccount(accounts.own.number, accounts.currency, minor_digits))
    sha256 = hashlib.sha256(content).hexdigest()
    lines = [line for statement in statements for line in statement.lines]
    is_new = store.add_file(connection, sha256, now)
    added = store.add_lines(connection, sha256, lines)
    matched = match_waiting(connection, accounts, now)
    return Imported(is_new, len(lines), added, matched, len(store.list_waiting(connection)))


def match_waiting(connection: Connection, accounts: Accounts, now: int) -> int:
    """Match what waits, oldest first, until nothing more fits: a line may only make sense after another one."""
    payments = _payments(connection, accounts)
    waiting = [(found.line, found.reason) for found in store.list_waiting(connection)]
    done: list[Match] = []
    while True:
        left = []
        for line, before in waiting:
            found = payments.match(line)
            if isinstance(found, Reason):
                left.append((line, before, found))
            else:
                done += found
        if len(left) == len(waiting):
            break
        waiting = [(line, before) for line, before, _ in left]
    for line, before, reason in left:
        if reason.value != before:
            store.set_reason(connection, line.line_id, reason)
    _book(connection, done, payments, now, BY_RULE)
    return len({match.line_id for match in done})


def match_by_hand(connection: Connection, accounts: Accounts, line_id: str, payment_id: str, now: int) -> Match:
    """Somebody says which payment a waiting line is. PaymentError unless both are open and amount and direction fit."""
    waiting = {found.line.line_id: found.line for found in store.list_waiting(connection)}
    line = waiting.get(line_id)
    if line is None:
        raise NotFoundError(f"no line {line_id} waits for a payment")
    payments = _payments(connection, accounts)
    if payment_id not in payments.by_id:
        raise NotFoundError(f"there is no payment {payment_id}")
    reason = payments.fits(line, payment_id)
    if reason is not None:
        due = payments.by_id[payment_id]
        raise PaymentError(
            f"line {line_id} of {line.amount} is not payment {payment_id} of {due.payment.amount}, "
            f"of which {due.moved} was moved: {reason}"
        )
    match = Match(line_id, payment_id, -line.amount)
    _book(connection, [match], payments, now, BY_HAND)
    return match


def list_open(connection: Connection) -> list[OpenPayment]:
    """Payments that the bank has not moved, or has given back, oldest first."""
    return [found for found in store.list_payments(connection) if not found.is_paid]


def _payments(connection: Connection, accounts: Accounts) -> Payments:
    found = store.list_payments(connection)
    by_date: dict[str, list[Payment]] = {}
    for one in found:
        by_date.setdefault(one.payment.accounting_date, []).append(one.payment)
    batches = {order_of(date, payments).batch_id: date for date, payments in by_date.items()}
    return Payments(found, {account.number: party for party, account in accounts.parties.items()}, batches)


def _book(connection: Connection, matches: Iterable[Match], payments: Payments, now: int, by: str) -> None:
    """Paid out: the party's position is debited, the bank credited; what comes in, the other way round."""
    closed_through = books.last_closed(connection)
    entries = books.Booking(closed_through)
    found = list(matches)
    for match in found:
        payment = payments.by_id[match.payment_id].payment
        transaction = store.transaction_of(match.line_id, match.payment_id)
        on = ledger.accounting_date(payment.accounting_date, closed_through)
        for posting in ledger.signed(ledger.net(payment.party_id), ledger.BANK, match.amount):
            entries.add_posting(transaction, 0, ledger.Code.PAID, posting, payment.accounting_date, on)
    entries.write(connection)
    store.add_matches(connection, found, now, by)
