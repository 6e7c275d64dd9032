"""Statements: what each operator is told of a closed date, as bytes that never change.

Every amount of an operator's statement is money he receives (or gives, below zero). Rows of another service date than the
statement's own stand in the section `late` and name their date. The rows sum to `settled`; less the cash he holds already,
that is `net`."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable

import msgspec

from clearing.agreements import Agreements
from clearing.store import PoolRow
from fare_engine import ledger

COLUMNS = (
    "section",
    "service_date",
    "what",
    "network_id",
    "rule_id",
    "paid_by",
    "agreement_id",
    "count",
    "amount",
)
LEG_KINDS = ("list_fare", "surcharge", "companions", "product", "discount", "transfer", "reward", "rebate")


class Row(msgspec.Struct, frozen=True, order=True):
    """One row of a statement, in the order in which rows stand."""

    section: str
    service_date: str
    what: str
    network_id: str
    rule_id: str
    paid_by: str
    agreement_id: str
    count: int
    amount: int


def leg_rows(rows: Iterable[PoolRow], agreements: Agreements, accounting_date: str) -> dict[str, list[Row]]:
    """Each operator's rows that come from his own legs: what riders paid, and what others paid for them."""
    found: dict[str, dict[tuple[str, str, str, str, str, str, str], tuple[int, int]]] = {}
    for row in rows:
        if row.kind not in LEG_KINDS:
            continue
        rider = "cash" if row.payer_kind == "collector" else "riders"
        pool = f"rider|{row.network_id}|{ledger.SINGLE}"
        agreement = agreements.find(pool, row.service_date).agreement_id
        section = "legs" if row.service_date == accounting_date else "late"
        for paid_by, amount in ((rider, row.amount), (row.bearer, row.funded)):
            if amount or paid_by == rider:
                key = (section, row.service_date, row.kind, row.network_id or "", row.rule_id, paid_by, agreement)
                own = found.setdefault(row.operator_id or "", {})
                before = own.get(key, (0, 0))
                own[key] = (before[0] + row.legs, before[1] + amount)
    return {
        operator_id: [Row(*key, count, amount) for key, (count, amount) in sorted(own.items()) if count or amount]
        for operator_id, own in found.items()
    }


def shared_row(pool: str, agreement_id: str, amount: int, accounting_date: str) -> Row:
    """An operator's part of a pool that several share."""
    debtor, where, product = pool.split("|")
    what, _, rule = where.partition(":")
    paid_by = "products" if debtor.startswith("product:") else "riders" if debtor == "rider" else debtor
    return Row("shared", accounting_date, what, "", rule or product, paid_by, agreement_id, 0, amount)


def operator_csv(operator_id: str, accounting_date: str, versions: str, rows: list[Row], collected: int) -> bytes:
    """An operator's statement: its head, its rows, and the sums."""
    settled = sum(row.amount for row in rows if row.section != "not_settled")
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerow(("statement", accounting_date, operator_id, "", "", "", versions, "", ""))
    writer.writerows(_cells(row) for row in sorted(rows))
    writer.writerow(("total", accounting_date, "settled", "", "", "", "", "", settled))
    writer.writerow(("total", accounting_date, "cash_held", "", "", "", "", "", -collected))
    writer.writerow(("total", accounting_date, "net", "", "", "", "", "", settled - collected))
    return out.getvalue().encode()


def _cells(row: Row) -> tuple[object, ...]:
    return (
        row.section,
        row.service_date,
        row.what,
        row.network_id,
        harmless(row.rule_id),
        harmless(row.paid_by),
        row.agreement_id,
        row.count or "",
        row.amount if row.section != "not_settled" else "",
    )


def harmless(text: str) -> str:
    """A cell on one line that no spreadsheet takes for a formula."""
    marked = f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
    return " ".join(marked.splitlines())


def positions_csv(positions: dict[str, int], settled: dict[str, int], collected: dict[str, int]) -> bytes:
    """Everybody's net position: positive receives, negative pays."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("party_id", "settled", "cash_held", "net"))
    for party, net in positions.items():
        writer.writerow((party, settled.get(party, 0), -collected.get(party, 0), net))
    return out.getvalue().encode()


def proof_json(proof: dict[str, object]) -> bytes:
    """The day's proof, as a file."""
    return (json.dumps(proof, ensure_ascii=False, indent=2, sort_keys=True) + "\n").encode()


def digest(content: bytes) -> str:
    """The hash under which a document is published."""
    return hashlib.sha256(content).hexdigest()
