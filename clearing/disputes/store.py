"""What disputes keep, and every query they make. A dispute's evidence is only added; what changes of a dispute and its items is
the decision, once."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator
from datetime import date
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
    Select,
    String,
    Table,
    or_,
    select,
    update,
)
from sqlalchemy import Row as SqlRow

from clearing import store
from clearing.disputes.claims import Dispute, Item, LegLine
from clearing.frozen import OpenItems
from fare_engine.ledger import Code
from fare_engine.row_hash import Hasher
from fare_engine.store.schema import lines, metadata, postings

disputes = Table(  # who claims what, and how it was decided
    "disputes",
    metadata,
    Column("dispute_id", String, primary_key=True),
    Column("claimant", String, nullable=False),
    Column("accounting_date", String(10), nullable=False),
    Column("party_id", String, nullable=False),
    Column("line", Integer, nullable=False),  # 0: legs of any row
    Column("amount", BigInteger, nullable=False),
    Column("text", String, nullable=False),
    Column("opened_at", BigInteger, nullable=False),
    Column("held_under", String(10), nullable=False),
    Column("evidence_sha256", String, nullable=False),
    Column("state", String, nullable=False),
    Column("granted", BigInteger),
    Column("granted_to", String),
    Column("decided_at", BigInteger),
    Column("decided_by", String),
    Column("decided_under", String(10)),
    Column("reason", String),
    Column("row_hash", LargeBinary, nullable=False),
    Index("disputes_state", "state"),
)

dispute_items = Table(  # what is held of which row, and for which leg
    "dispute_items",
    metadata,
    Column("dispute_id", String, nullable=False),
    Column("number", Integer, nullable=False),
    Column("accounting_date", String(10), nullable=False),
    Column("party_id", String, nullable=False),
    Column("line", Integer, nullable=False),
    Column("leg_id", String, nullable=False),  # empty: the row
    Column("legs", BigInteger, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("granted", BigInteger),
    Column("row_hash", LargeBinary, nullable=False),
    PrimaryKeyConstraint("dispute_id", "number"),
    Index("dispute_items_party", "accounting_date", "party_id"),
)

dispute_evidence = Table(  # what was known when a dispute was opened
    "dispute_evidence",
    metadata,
    Column("dispute_id", String, nullable=False),
    Column("number", Integer, nullable=False),
    Column("kind", String, nullable=False),
    Column("key", String, nullable=False),
    Column("content", String, nullable=False),  # JSON
    Column("row_hash", LargeBinary, nullable=False),
    PrimaryKeyConstraint("dispute_id", "number"),
)

TABLES = (disputes, dispute_items, dispute_evidence)
HASHERS = {
    table.name: Hasher("".join(table.name), ["".join(c.name) for c in table.c if c.name != "row_hash"]) for table in TABLES
}
OLD_DAYS = 30
"""What is held for more days than this is named."""


class Evidence(msgspec.Struct, frozen=True, order=True):
    """One thing that was known when a dispute was opened. `content` by the names of docs/disputes.md."""

    kind: str
    key: str
    content: dict[str, Any]


def _hashed(table: Table, row: dict[str, Any]) -> dict[str, Any]:
    return row | {"row_hash": HASHERS[table.name].of(row)}


def _dispute(row: SqlRow[Any]) -> Dispute:
    return Dispute(**{name: row._mapping[name] for name in Dispute.__struct_fields__})


def _item(row: SqlRow[Any]) -> Item:
    return Item(**{name: row._mapping[name] for name in Item.__struct_fields__})


# ---- disputes


def digest(evidence: Iterable[Evidence]) -> str:
    """The hash of what was known, which stands in the dispute."""
    return _digest((one.kind, one.key, _json(one.content)) for one in evidence)


def evidence_digest(connection: Connection, name: str) -> str:
    """The same of what is kept, whatever it says now."""
    return _digest((row.kind, row.key, row.content) for row in connection.execute(_evidence(name)))


def _digest(rows: Iterable[tuple[str, str, str]]) -> str:
    return hashlib.sha256(msgspec.json.encode(list(rows))).hexdigest()


def _json(content: dict[str, Any]) -> str:
    return msgspec.json.encode(content, order="sorted").decode()


def _evidence(name: str) -> Select[Any]:
    return select(dispute_evidence).where(dispute_evidence.c.dispute_id == name).order_by(dispute_evidence.c.number)


def add(connection: Connection, dispute: Dispute, items: Iterable[Item], evidence: Iterable[Evidence]) -> None:
    """Write down a dispute with what it holds and what is known."""
    connection.execute(disputes.insert(), _hashed(disputes, msgspec.structs.asdict(dispute)))
    connection.execute(dispute_items.insert(), [_hashed(dispute_items, msgspec.structs.asdict(item)) for item in items])
    rows = [
        {"dispute_id": dispute.dispute_id, "number": number, "kind": one.kind, "key": one.key, "content": _json(one.content)}
        for number, one in enumerate(evidence)
    ]
    connection.execute(dispute_evidence.insert(), [_hashed(dispute_evidence, row) for row in rows])


def save_decided(connection: Connection, dispute: Dispute, items: Iterable[Item]) -> None:
    """Write down a decision."""
    row = _hashed(disputes, msgspec.structs.asdict(dispute))
    connection.execute(update(disputes).where(disputes.c.dispute_id == dispute.dispute_id).values(row))
    for item in items:
        this = (dispute_items.c.dispute_id == item.dispute_id) & (dispute_items.c.number == item.number)
        connection.execute(update(dispute_items).where(this).values(_hashed(dispute_items, msgspec.structs.asdict(item))))


def find(connection: Connection, name: str, *, alone: bool = False) -> Dispute | None:
    """One dispute, or None; with `alone` nobody else decides it meanwhile."""
    statement = select(disputes).where(disputes.c.dispute_id == name)
    row = connection.execute(statement.with_for_update() if alone else statement).first()
    return _dispute(row) if row else None


def list_disputes(connection: Connection, party_id: str | None = None) -> list[Dispute]:
    """Every dispute, or those that a party claims or is claimed from; the newest first."""
    statement = select(disputes)
    if party_id is not None:
        holds = select(dispute_items.c.dispute_id).where(dispute_items.c.party_id == party_id)
        statement = statement.where(or_(disputes.c.claimant == party_id, disputes.c.dispute_id.in_(holds)))
    newest = (disputes.c.opened_at.desc(), disputes.c.dispute_id)
    return [_dispute(row) for row in connection.execute(statement.order_by(*newest))]


def items_of(connection: Connection, name: str) -> tuple[Item, ...]:
    """What a dispute holds, in its order."""
    these = select(dispute_items).where(dispute_items.c.dispute_id == name).order_by(dispute_items.c.number)
    return tuple(_item(row) for row in connection.execute(these))


def evidence_of(connection: Connection, name: str) -> list[Evidence]:
    """What was known when a dispute was opened."""
    return [Evidence(row.kind, row.key, msgspec.json.decode(row.content)) for row in connection.execute(_evidence(name))]


def taken_under(connection: Connection, accounting_date: str, parties: Collection[str]) -> list[Item]:
    """What disputes hold or were granted of some parties' statements of a date."""
    these = (dispute_items.c.accounting_date == accounting_date) & dispute_items.c.party_id.in_(parties)
    return [_item(row) for row in connection.execute(select(dispute_items).where(these))]


def legs_disputed_by(connection: Connection, claimant: str) -> set[tuple[str, str]]:
    """(date, leg) of everything that somebody ever disputed leg by leg."""
    joined = select(dispute_items.c.accounting_date, dispute_items.c.leg_id).join(
        disputes, disputes.c.dispute_id == dispute_items.c.dispute_id
    )
    return {(row[0], row[1]) for row in connection.execute(joined.where(disputes.c.claimant == claimant))}


def open_items(connection: Connection, accounting_date: str) -> Iterator[OpenItems]:
    """What is held and not decided when a date is frozen, by dispute and holder; what was held longer than `OLD_DAYS` is named
    so."""
    joined = select(dispute_items, disputes.c.opened_at, disputes.c.held_under).join(
        disputes, disputes.c.dispute_id == dispute_items.c.dispute_id
    )
    found: dict[tuple[str, str], tuple[int, str, int]] = {}
    for row in connection.execute(joined.where(disputes.c.state == "open", disputes.c.held_under <= accounting_date)):
        key = (row.dispute_id, row.party_id)
        legs = found[key][0] if key in found else 0
        found[key] = (legs + row.legs, row.held_under, row.opened_at)
    for (name, party), (legs, under, since) in found.items():
        days = (date.fromisoformat(accounting_date) - date.fromisoformat(under)).days
        reason = f"dispute {name}, held for more than {OLD_DAYS} days" if days > OLD_DAYS else f"dispute {name}"
        yield OpenItems("disputed", party, reason, "clearing house", legs, legs if under == accounting_date else 0, since)


# ---- what is disputed


def statements_of(connection: Connection, accounting_date: str, *, alone: bool = False) -> dict[str, bytes]:
    """Every party's published statement of a date; with `alone` nobody else disputes anything of the date meanwhile."""
    table = store.statements
    these = (table.c.accounting_date == accounting_date) & table.c.name.like("%.csv")
    statement = select(table).where(these).order_by(table.c.name)
    rows = connection.execute(statement.with_for_update() if alone else statement)
    return {row.name.removesuffix(".csv"): row.content for row in rows if row.content.startswith(b"line,section,")}


def lines_of_legs(connection: Connection, leg_ids: Collection[str], accounting_date: str) -> list[LegLine]:
    """What was booked of some legs under a date."""
    found = []
    names = sorted(set(leg_ids))
    for start in range(0, len(names), _PART):
        these = (lines.c.accounting_date == accounting_date) & lines.c.leg_id.in_(names[start : start + _PART])
        for row in connection.execute(select(lines).where(these).order_by(lines.c.transaction_id)):
            found.append(
                LegLine(
                    row.leg_id, row.operator_id or "", row.service_date, row.kind, row.network_id or "", row.rule_id, row.bearer,
                    row.payer.startswith("collector:"), row.amount, row.funded, row.version_id, row.cause,
                )
            )  # fmt: skip
    return found


_PART = 500


def dates_of_legs(connection: Connection, leg_ids: Collection[str]) -> dict[str, set[str]]:
    """Published accounting date → which of some legs were booked or reversed under it."""
    published = set(store.published_dates(connection))
    found: dict[str, set[str]] = {}
    names = sorted(set(leg_ids))
    for start in range(0, len(names), _PART):
        these = select(lines.c.accounting_date, lines.c.leg_id).where(lines.c.leg_id.in_(names[start : start + _PART]))
        for on, leg_id in connection.execute(these.distinct()):
            if on in published:
                found.setdefault(on, set()).add(leg_id)
    return found


# ---- checks


def changed_rows(connection: Connection) -> list[tuple[str, str]]:
    """(table, key) of every row that is not what was written."""
    found = []
    for table in TABLES:
        for row in connection.execute(select(table)):
            if HASHERS[table.name].of(dict(row._mapping)) != row.row_hash:
                found.append((table.name, "/".join(str(row._mapping[c.name]) for c in table.primary_key)))
    return found


def booked(connection: Connection) -> dict[str, list[tuple[str, str, str, int]]]:
    """transaction → (accounting date, debit, credit, amount) of what disputes hold and give."""
    found: dict[str, list[tuple[str, str, str, int]]] = {}
    these = select(postings).where(postings.c.code.in_((Code.HELD.value, Code.DECIDED.value)))
    for row in connection.execute(these.order_by(postings.c.transaction_id, postings.c.number)):
        found.setdefault(row.transaction_id, []).append((row.accounting_date, row.debit, row.credit, row.amount))
    return found
