"""What is kept of the bank's statements, and every query of it: lines, which payment each is, and what waits for somebody.

A line is kept once and never changed but for its `reason`, which says why it waits; one without a reason has its matches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    String,
    Table,
    func,
    select,
    text,
)

from clearing.bank.camt053 import BankLine
from clearing.bank.matching import Match, OpenPayment, Reason
from clearing.payments import Payment
from clearing.store import payments
from fare_engine import ledger
from fare_engine.row_hash import Hasher
from fare_engine.store.schema import metadata, postings

AT_ONCE = 500
WAITING = text("reason IS NOT NULL")

bank_files = Table(
    "bank_files",
    metadata,
    Column("sha256", String, primary_key=True),
    Column("imported_at", BigInteger, nullable=False),
    Column("row_hash", LargeBinary, nullable=False),
)

bank_lines = Table(
    "bank_lines",
    metadata,
    Column("line_id", String, primary_key=True),
    Column("sha256", String, nullable=False),  # the file that it came with first
    Column("account", String, nullable=False),
    Column("statement_id", String, nullable=False),
    Column("booked_on", String(10), nullable=False),
    Column("amount", BigInteger, nullable=False),  # positive came in, negative went out
    Column("other_account", String, nullable=False),
    Column("other_name", String, nullable=False),
    Column("is_return", Integer, nullable=False),  # 1 or 0
    Column("texts", String, nullable=False),  # JSON: [element, text]
    Column("reason", String),  # why it waits; None: it is matched
    Column("row_hash", LargeBinary, nullable=False),  # over all but `reason`
    Index(
        "bank_lines_waiting", "booked_on", sqlite_where=text("reason IS NOT NULL"), postgresql_where=text("reason IS NOT NULL")
    ),
)

bank_matches = Table(
    "bank_matches",
    metadata,
    Column("line_id", String, nullable=False),
    Column("payment_id", String, nullable=False),
    Column("amount", BigInteger, nullable=False),  # positive was paid out, negative came in
    Column("matched_at", BigInteger, nullable=False),
    Column("matched_by", String, nullable=False),
    Column("row_hash", LargeBinary, nullable=False),
    PrimaryKeyConstraint("line_id", "payment_id"),
)


TABLES = (bank_files, bank_lines, bank_matches)
HASHERS = {
    table.name: Hasher("".join(table.name), ["".join(c.name) for c in table.c if c.name not in ("row_hash", "reason")])
    for table in TABLES
}


class WaitingLine(msgspec.Struct, frozen=True):
    """A line that somebody must look at, and why."""

    line: BankLine
    reason: str


def add_file(connection: Connection, sha256: str, imported_at: int) -> bool:
    """Keep that a file came in; False: it did before."""
    known = connection.execute(select(bank_files.c.sha256).where(bank_files.c.sha256 == sha256)).first()
    if known is None:
        connection.execute(bank_files.insert(), _hashed(bank_files, {"sha256": sha256, "imported_at": imported_at}))
    return known is None


def add_lines(connection: Connection, sha256: str, lines: Sequence[BankLine]) -> int:
    """Keep the lines that are not here yet, to be matched; how many they are."""
    added = 0
    for first in range(0, len(lines), AT_ONCE):
        some = lines[first : first + AT_ONCE]
        ids = [line.line_id for line in some]
        known = {row.line_id for row in connection.execute(select(bank_lines.c.line_id).where(bank_lines.c.line_id.in_(ids)))}
        new = {line.line_id: line for line in some if line.line_id not in known}
        rows = [_hashed(bank_lines, _row(line, sha256)) for line in new.values()]
        if rows:
            connection.execute(bank_lines.insert(), rows)
        added += len(rows)
    return added


def list_waiting(connection: Connection) -> list[WaitingLine]:
    """The lines without a payment, oldest first."""
    waiting = select(bank_lines).where(bank_lines.c.reason.is_not(None)).order_by(bank_lines.c.booked_on, bank_lines.c.line_id)
    return [
        WaitingLine(
            BankLine(
                line_id=row.line_id,
                account=row.account,
                statement_id=row.statement_id,
                booked_on=row.booked_on,
                amount=row.amount,
                other_account=row.other_account,
                other_name=row.other_name,
                is_return=bool(row.is_return),
                texts=msgspec.json.decode(row.texts, type=tuple[tuple[str, str], ...]),
            ),
            row.reason,
        )
        for row in connection.execute(waiting)
    ]


def set_reason(connection: Connection, line_id: str, reason: Reason) -> None:
    """Why a line waits."""
    connection.execute(bank_lines.update().where(bank_lines.c.line_id == line_id).values(reason=reason.value))


def add_matches(connection: Connection, matches: Iterable[Match], matched_at: int, matched_by: str) -> None:
    """These lines wait no longer."""
    by = {"matched_at": matched_at, "matched_by": matched_by}
    rows = [_hashed(bank_matches, msgspec.structs.asdict(match) | by) for match in matches]
    for row in rows:
        connection.execute(bank_lines.update().where(bank_lines.c.line_id == row["line_id"]).values(reason=None))
    if rows:
        connection.execute(bank_matches.insert(), rows)


def list_payments(connection: Connection) -> list[OpenPayment]:
    """Every payment, with what of it was moved so far, oldest first."""
    moved = (
        select(bank_matches.c.payment_id, func.sum(bank_matches.c.amount).label("amount"))
        .group_by(bank_matches.c.payment_id)
        .subquery()
    )
    rows = connection.execute(
        select(payments, moved.c.amount.label("moved"))
        .join(moved, moved.c.payment_id == payments.c.payment_id, isouter=True)
        .order_by(payments.c.accounting_date, payments.c.party_id)
    )
    return [
        OpenPayment(Payment(row.accounting_date, row.party_id, row.payment_id, row.amount), int(row.moved or 0)) for row in rows
    ]


def transaction_of(line_id: str, payment_id: str) -> str:
    """The transaction that books a match."""
    return hashlib.sha256(f"paid/{line_id}/{payment_id}".encode()).hexdigest()[:32]


def changed_rows(connection: Connection) -> list[tuple[str, str, str]]:
    """(table, key, what) of each row that is not what was written, of lines that wait though they are matched or the other way
    round, and of matches that are not in the books as they say."""
    found = []
    matched = {row.line_id for row in connection.execute(select(bank_matches.c.line_id))}
    for table in TABLES:
        for row in connection.execute(select(table)):
            values = dict(row._mapping)
            key = "/".join(str(values[column.name]) for column in table.primary_key)
            if HASHERS[table.name].of(values) != values["row_hash"]:
                found.append((table.name, key, "is not the row that was written: its hash is another one"))
            if table is bank_lines and not _waits_rightly(values, matched):
                found.append((table.name, key, f"waits because of {values['reason']!r}, which does not fit its matches"))
    booked = {
        row.transaction_id: row.amount if row.credit == ledger.BANK else -row.amount
        for row in connection.execute(select(postings).where(postings.c.code == ledger.Code.PAID.value))
    }
    for row in connection.execute(select(bank_matches)):
        if booked.pop(transaction_of(row.line_id, row.payment_id), None) != row.amount:
            found.append((bank_matches.name, f"{row.line_id}/{row.payment_id}", "is not in the books as it says"))
    found += [(postings.name, name, "is paid by no line of the bank") for name in sorted(booked)]
    return found


def _waits_rightly(line: dict[str, Any], matched: set[str]) -> bool:
    if line["reason"] is None:
        return line["line_id"] in matched
    return line["line_id"] not in matched and line["reason"] in {reason.value for reason in Reason}


def _hashed(table: Table, row: dict[str, Any]) -> dict[str, Any]:
    return row | {"row_hash": HASHERS[table.name].of(row)}


def _row(line: BankLine, sha256: str) -> dict[str, Any]:
    texts = msgspec.json.encode(line.texts).decode()
    told = {"is_return": int(line.is_return), "sha256": sha256, "texts": texts, "reason": Reason.NO_KEY.value}
    return msgspec.structs.asdict(line) | told
