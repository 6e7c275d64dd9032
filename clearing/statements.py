"""Statements: what stands on them, and their bytes as CSV.

Pure, and the same bytes on every rerun. A statement's rows sum to what its party is given, bears, holds and owes: that is `net`.
With the opening balance and what was paid meanwhile it gives the closing balance. Every row has a number, by which it can be
followed to the lines, legs and signed taps that it sums (clearing/tracing.py)."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping

import msgspec

from clearing import netting
from clearing.agreements import LEG_KINDS, RIDERS, Agreements, product_of
from clearing.bags import Pool
from clearing.documents import harmless
from clearing.frozen import OpenItems
from clearing.pools import Shares
from clearing.store import PoolRow
from fare_engine.ledger import Code
from fare_engine.money import nearest
from fare_engine.service_day import format_instant

COLUMNS = (
    "line",
    "section",
    "service_date",
    "what",
    "network_id",
    "rule_id",
    "paid_by",
    "agreement_id",
    "vat",
    "count",
    "amount",
)
GIVEN = ("legs", "late", "shared", "rides", "subsidies", "commissions", "rounding")
"""Sections that sum to `settled`: what the agreements give a party."""
OWED = ("borne", "collected", "waived", "losses", "fees", "disputes")
"""Sections of what it bears, holds and owes."""
BALANCES = ("opening", "paid")
OPEN = ("not_settled", "missing")
"""Sections of what is not in the sums yet."""
SECTIONS = ("opening", *GIVEN, *OWED, "paid", *OPEN)
ACCOUNT_SECTIONS = {"collector": "collected", "waivers": "waived", "losses": "losses", "fees": "fees", "operator": "disputes"}
"""The first word of a party's account → where what stands on it, beside its lines and shares, is shown."""
BY_LINES = frozenset((Code.SETTLED, Code.COMMISSION, Code.NETTED))
POOL_SECTIONS = {"ride": "rides", "subsidy": "subsidies", "fee": "commissions"}


class Row(msgspec.Struct, frozen=True, order=True):
    """One row of a statement, in the order in which rows stand. `count` of zero and an amount of an open item are not shown."""

    section: str
    service_date: str
    what: str
    network_id: str
    rule_id: str
    paid_by: str
    agreement_id: str
    vat: str
    count: int
    amount: int


class Statement(msgspec.Struct, frozen=True):
    """What a closing says to one party."""

    accounting_date: str
    party_id: str
    agreement_version: str
    traceable_until: str
    """Until when every figure can be followed to its signed taps."""
    rows: tuple[Row, ...]
    totals: Mapping[str, int]


class Books(msgspec.Struct, frozen=True):
    """Everything of a frozen date that statements are made of."""

    accounting_date: str
    zone: str
    traceable_until: str
    rows: list[PoolRow]
    changes: Mapping[Pool, Shares]
    """By how much exact shares moved."""
    settled: Mapping[Pool, Mapping[str, int]]
    """What each party is given out of each pool, in whole units."""
    movements: Mapping[tuple[str, str], int]
    """(account, code) → debits less credits under the date, the close's own left out."""
    opening: Mapping[str, int]
    """Party → its net positions that were not paid before."""
    open_items: list[OpenItems]


def compose(books: Books, agreements: Agreements) -> list[Statement]:
    """A statement for everybody to whom the date means anything, by party."""
    found: dict[str, list[Row]] = defaultdict(list)
    own = _add_leg_rows(found, books, agreements)
    _add_shared_rows(found, books, own)
    _add_borne_rows(found, books)
    _add_account_rows(found, books)
    for party, amount in books.opening.items():
        if amount:
            found[party].append(_row("opening", books.accounting_date, "balance", amount=amount))
    for item in books.open_items:
        section = "missing" if item.kind == "missing" else "not_settled"
        since = format_instant(item.since, books.zone)
        row = _row(section, since[:10], item.reason, rule_id=item.kind, paid_by=item.owner, count=item.count)
        found[item.party_id].append(row)
    found.pop("", None)
    return [_statement(books, agreements, party, rows) for party, rows in sorted(found.items())]


def _statement(books: Books, agreements: Agreements, party: str, rows: list[Row]) -> Statement:
    def total(sections: Iterable[str]) -> int:
        wanted = frozenset(sections)
        return sum(row.amount for row in rows if row.section in wanted)

    settled, collected, owed = total(GIVEN), total(["collected"]), total(OWED)
    opening, paid = total(["opening"]), total(["paid"])
    totals = {
        "opening": opening,
        "settled": settled,
        "cash_held": collected,
        "borne": owed - collected,
        "net": settled + owed,
        "paid": paid,
        "closing": opening + settled + owed + paid,
    }
    in_order = sorted(rows, key=lambda row: (SECTIONS.index(row.section), row))
    version = agreements.clearing.agreement_version
    return Statement(books.accounting_date, party, version, books.traceable_until, tuple(in_order), totals)


def _row(
    section: str, service_date: str, what: str, *, rule_id: str = "", paid_by: str = "", agreement: str = "", network: str = "",
    count: int = 0, amount: int = 0,
) -> Row:  # fmt: skip
    return Row(section, service_date, what, network, rule_id, paid_by, agreement, "", count, amount)


# ---- where rows come from


def _add_leg_rows(found: dict[str, list[Row]], books: Books, agreements: Agreements) -> dict[Pool, dict[str, int]]:
    """Each operator's rows that come from his own legs: what riders paid, and what others paid for them. Gives what of each pool
    stands in them."""
    own: dict[Pool, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    sums: dict[str, dict[tuple[str, str, str, str, str, str, str, str], list[int]]] = defaultdict(dict)
    for row in books.rows:
        if row.kind not in LEG_KINDS or row.operator_id is None:
            continue
        product = product_of(row.kind, row.rule_id)
        section = "legs" if row.service_date == books.accounting_date else "late"
        cash = "cash" if row.payer_kind == "collector" else RIDERS
        for paid_by, shown, amount in ((RIDERS, cash, row.amount), (row.bearer, row.bearer, row.funded)):
            if not amount and paid_by != RIDERS:
                continue
            agreement = agreements.find(row.kind, row.rule_id, row.network_id, paid_by, row.service_date, (row.operator_id,))
            if agreement.shares or agreement.residual:
                continue
            debtor = "rider" if paid_by == RIDERS else paid_by
            own[f"{debtor}|{row.network_id}|{product}", agreement.agreement_id][row.operator_id] += amount
            vat = _vat(agreements, row.network_id, product, row.service_date)
            key = (section, row.service_date, row.kind, row.network_id or "", row.rule_id, shown, agreement.agreement_id, vat)
            sum_of = sums[row.operator_id].setdefault(key, [0, 0])
            sum_of[0] += row.legs
            sum_of[1] += amount
    for operator_id, rows in sums.items():
        found[operator_id] += [Row(*key, count, amount) for key, (count, amount) in rows.items() if count or amount]
    return own


def _add_shared_rows(found: dict[str, list[Row]], books: Books, own: Mapping[Pool, Mapping[str, int]]) -> None:
    """What parties are given beside their own legs: the exact amount to the nearest unit, and one row of rounding."""
    rounding: dict[str, int] = defaultdict(int)
    for pool, shares in sorted(books.changes.items()):
        held = own.get(pool, {})
        paid = books.settled.get(pool, {})
        for party in sorted(shares.keys() | paid.keys() | held.keys()):
            exact = nearest(shares.get(party, 0))
            rounding[party] += paid.get(party, 0) - exact
            if exact != held.get(party, 0):
                found[party].append(_shared_row(books.accounting_date, pool, exact - held.get(party, 0)))
    for party, amount in rounding.items():
        if amount:
            found[party].append(_row("rounding", books.accounting_date, "rounding", amount=amount))


def _shared_row(accounting_date: str, pool: Pool, amount: int) -> Row:
    debtor, where, product = pool[0].split("|")
    if debtor in POOL_SECTIONS:
        return _row(
            POOL_SECTIONS[debtor], accounting_date, debtor, rule_id=where, paid_by=product, agreement=pool[1], amount=amount
        )
    paid_by = "products" if debtor.startswith("product:") else RIDERS if debtor == "rider" else debtor
    what, _, rule = where.partition(":")
    if what in ("cap", "release", "expiry"):
        return _row("shared", accounting_date, what, rule_id=rule or product, paid_by=paid_by, agreement=pool[1], amount=amount)
    rule = "" if product == "single" else product
    return _row(
        "shared", accounting_date, "journeys", rule_id=rule, paid_by=paid_by, agreement=pool[1], network=where, amount=amount
    )


def _add_borne_rows(found: dict[str, list[Row]], books: Books) -> None:
    """What each bearer pays for what riders do not, by rule."""
    sums: dict[tuple[str, str, str, str, str], list[int]] = {}
    for row in books.rows:
        if row.funded and not row.bearer.startswith("product:"):
            key = (row.bearer, row.service_date, row.kind, row.network_id or "", row.rule_id)
            sum_of = sums.setdefault(key, [0, 0])
            sum_of[0] += row.legs
            sum_of[1] -= row.funded
    for (bearer, on, kind, network, rule), (count, amount) in sums.items():
        found[bearer].append(_row("borne", on, kind, rule_id=rule, network=network, count=count, amount=amount))


def _add_account_rows(found: dict[str, list[Row]], books: Books) -> None:
    """What stands on a party's accounts beside lines and shares: cash in its till, waivers, losses, fees, disputes, payments."""
    for (account, code), balance in sorted(books.movements.items()):
        word, _, party = account.partition(":")
        section = "paid" if word == "net" else ACCOUNT_SECTIONS.get(word)
        if section is not None and balance and not (word == "operator" and code in BY_LINES):
            found[party].append(_row(section, books.accounting_date, code.lower(), amount=-balance))


def _vat(agreements: Agreements, network_id: str | None, product: str, service_date: str) -> str:
    tax = agreements.tax(network_id, product, service_date)
    return "exempt" if tax is None or tax.state == "exempt" else f"{tax.percent}%"


# ---- documents


def numbered(statement: Statement) -> list[tuple[object, ...]]:
    """The rows of a statement as they are shown, with their numbers."""
    return [(number, *_cells(row)) for number, row in enumerate(statement.rows, start=1)]


def statement_csv(statement: Statement) -> bytes:
    """A statement: its head, its rows, and the sums."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    on, party = statement.accounting_date, statement.party_id
    writer.writerow(("", "statement", on, party, "", "", "", statement.agreement_version, "", "", ""))
    writer.writerow(("", "traceable_until", statement.traceable_until, "", "", "", "", "", "", "", ""))
    writer.writerows(numbered(statement))
    writer.writerows(("", "total", on, name, "", "", "", "", "", "", amount) for name, amount in statement.totals.items())
    return out.getvalue().encode()


def _cells(row: Row) -> tuple[object, ...]:
    return (
        row.section,
        row.service_date,
        harmless(row.what),
        row.network_id,
        harmless(row.rule_id),
        harmless(row.paid_by),
        row.agreement_id,
        row.vat,
        row.count or "",
        row.amount if row.section not in OPEN else "",
    )


def positions_csv(net: Mapping[str, int], statements: Iterable[Statement]) -> bytes:
    """Everybody's net position: positive receives, negative pays."""
    totals = {statement.party_id: statement.totals for statement in statements}
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("party_id", "settled", "cash_held", "net"))
    for party, amount in net.items():
        own = totals.get(party, {}) if party not in netting.OWN_POSITIONS else {}
        writer.writerow((party, own.get("settled", 0), own.get("cash_held", 0), amount))
    return out.getvalue().encode()


def table_csv(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> bytes:
    """A table as CSV."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return out.getvalue().encode()


def proof_json(proof: dict[str, object]) -> bytes:
    """The day's proof, as a file."""
    return (json.dumps(proof, ensure_ascii=False, indent=2, sort_keys=True) + "\n").encode()


def digest(content: bytes) -> str:
    """The hash under which a document is published."""
    return hashlib.sha256(content).hexdigest()
