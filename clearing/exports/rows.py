"""What exports read, and every query of it. Rows are streamed: a day may have millions."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, case, func, literal_column, select

from clearing.exports.journals import Entry
from fare_engine.store.schema import postings

PEOPLE = {"rider:": "riders", "held:": "held"}
"""Accounts of persons and of their disputes, which leave the house as one account each."""


def journal_entries(connection: Connection, accounting_date: str) -> list[Entry]:
    """A date's postings, summed by code, service date and pair of accounts."""
    debit, credit = _account(postings.c.debit), _account(postings.c.credit)
    key = (postings.c.code, postings.c.service_date, debit, credit)
    rows = connection.execute(
        select(*key, func.sum(postings.c.amount), func.count())
        .where(postings.c.accounting_date == accounting_date)
        .group_by(*key)
    )
    return sorted(Entry(row[0], row[1], row[2], row[3], int(row[4]), int(row[5])) for row in rows)


def journal_balances(connection: Connection, accounting_date: str) -> dict[str, int]:
    """Debits less credits of a date by account, each side summed by itself; zeros too."""
    found: dict[str, int] = {}
    for column, sign in ((postings.c.debit, 1), (postings.c.credit, -1)):
        account = _account(column)
        rows = connection.execute(
            select(account, func.sum(postings.c.amount)).where(postings.c.accounting_date == accounting_date).group_by(account)
        )
        for name, amount in rows:
            found[name] = found.get(name, 0) + sign * int(amount)
    return dict(sorted(found.items()))


def _account(column: ColumnElement[str]) -> ColumnElement[str]:
    return case(*((column.like(f"{prefix}%"), literal_column(f"'{name}'")) for prefix, name in PEOPLE.items()), else_=column)
