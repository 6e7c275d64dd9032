"""What is kept of the bank's statements, and every query of it: lines, which payment each is, and what waits for somebody.

A line is kept once and never changed but for its `reason`, which says why it waits; one without a reason has its matches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
from sqlalchemy import BigInteger, Boolean, Column, Connection, Index, PrimaryKeyConstraint, String, Table, func, select, text

from clearing.bank.camt053 import BankLine
from clearing.bank.matching import Match, OpenPayment, Reason
from clearing.payments import Payment
from clearing.store import payments
from fare_engine.store.schema import metadata

AT_ONCE = 500
WAITING = text("reason IS NOT NULL")

bank_files = Table(
    "bank_files",
    metadata,
    Column("sha256", String, primary_key=True),
    Column("imported_at", BigInteger, nullable=False),
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
    Column("is_return", Boolean, nullable=False),
    Column("texts", String, nullable=False),  # JSON: [element, text]
    Column("reason", String),  # why it waits; None: it is matched
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
    PrimaryKeyConstraint("line_id", "payment_id"),
)


class WaitingLine(msgspec.Struct, frozen=True):
    """A line that somebody must look at, and why."""

    line: BankLine
    reason: str


def add_file(connection: Connection, sha256: str, imported_at: int) -> bool:
    """Keep that a file came in; False: it did before."""
    known = connection.execute(select(bank_files.c.sha256).where(bank_files.c.sha256 == sha256)).first()
    if known is None:
        connection.execute(bank_files.insert(), {"sha256": sha256, "imported_at": imported_at})
    return known is None


def add_lines(connection: Connection, sha256: str, lines: Sequence[BankLine]) -> int:
    """Keep the lines that are not here yet, to be matched; how many they are."""
    added = 0
    for first in range(0, len(lines), AT_ONCE):
        some = lines[first : first + AT_ONCE]
        ids = [line.line_id for line in some]
        known = {row.line_id for row in connection.execute(select(bank_lines.c.line_id).where(bank_lines.c.line_id.in_(ids)))}
        new = {line.line_id: line for line in some if line.line_id not in known}
        rows = [_row(line, sha256) for line in new.values()]
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
                is_return=row.is_return,
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
    rows = [msgspec.structs.asdict(match) | {"matched_at": matched_at, "matched_by": matched_by} for match in matches]
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


def _row(line: BankLine, sha256: str) -> dict[str, object]:
    texts = msgspec.json.encode(line.texts).decode()
    return msgspec.structs.asdict(line) | {"sha256": sha256, "texts": texts, "reason": Reason.NO_KEY.value}
