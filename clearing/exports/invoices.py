"""E-invoice data: one JSON object for each leg and each sale of a closed date that its rider paid something for.

It is what an invoice provider needs to issue the invoice, not the invoice: the seller is the operator of the leg's vehicle or
station at the time; a change of an earlier date's leg is an adjustment that names it. Amounts include VAT, if there is any."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import msgspec
import pyarrow.compute as pc

from clearing.agreements import Agreements, Tax
from clearing.commands import rules_of
from clearing.exports import tides
from fare_engine.commands import Opened
from fare_engine.ledger import SINGLE
from fare_engine.money import included_tax
from fare_engine.tariff.model import Party

SCHEMA = tides.SCHEMAS / "own" / "invoice.schema.json"
AT_ONCE = 20_000


class Seller(msgspec.Struct, frozen=True):
    """Who issues the invoice."""

    party_id: str
    name: str


class Item(msgspec.Struct, frozen=True):
    """What a rule of the tariff made of the price."""

    kind: str
    rule_id: str
    amount: int


class Invoice(msgspec.Struct, frozen=True, kw_only=True):
    """The data of one invoice; amounts in minor units of the currency."""

    number: str
    """Seller, date and a running number: the same on every rerun."""
    type: Literal["leg", "sale", "adjustment"]
    transaction_id: str
    """As in the TIDES package of the date, if that was made under the same key."""
    adjusts: str | None
    """The leg whose invoice is adjusted."""
    issued_for: str
    """The service date."""
    accounting_date: str
    seller: Seller | None
    """None: what is sold has no owner in the tariff's data."""
    product: str
    persons: int
    items: tuple[Item, ...]
    amount: int
    currency: str
    minor_digits: int
    vat: str
    """`exempt`, or the rate as `8%`, by the city's agreements."""
    vat_amount: int
    """The tax that is included."""


def write_invoices(opened: Opened, accounting_date: str, folder: Path, key: bytes) -> int:
    """Write `invoices.jsonl` with its schema; how many they are."""
    numbers: Counter[str] = Counter()
    parties = opened.tariff.network.parties
    agreements = rules_of(opened.tariff, opened.tariff_folder).agreements
    tasks = tides.tasks_of(opened, accounting_date, folder, key)
    for task in tasks:
        tides.read_part(task)
    count = 0
    with (folder / "invoices.jsonl").open("wb") as out:
        for task in tasks:
            for invoice in _invoices(task, tides.rows_of(task), parties, agreements, numbers):
                out.write(msgspec.json.encode(invoice) + b"\n")
                count += 1
    shutil.copyfile(SCHEMA, folder / SCHEMA.name)
    return count


def _invoices(
    task: tides.Task, found: tides.Rows, parties: Mapping[str, Party], agreements: Agreements, numbers: Counter[str]
) -> Iterator[Invoice]:
    networks = dict(zip(found.legs["leg_id"].to_pylist(), found.legs["network_id"].to_pylist(), strict=True))
    sellers = dict(zip(found.legs["leg_id"].to_pylist(), found.legs["operator_id"].to_pylist(), strict=True))
    lines = found.lines.filter(pc.not_equal(found.lines["amount"], 0)).select(["leg_id", "kind", "rule_id", "amount"])
    booked = _grouped(lines.to_reader(AT_ONCE))
    ahead: tuple[str, list[Item]] = ("", [])
    for batch in found.transactions.to_reader(AT_ONCE):
        for row in batch.to_pylist():
            if not row["amount"]:
                continue
            while ahead[0] < row["cause"]:
                ahead = next(booked)
            party = parties.get(sellers.get(row["cause"]) or "")
            tax = agreements.tax(networks.get(row["cause"]), _product_of(row), row["service_date"])
            yield _invoice(task, row, ahead[1], party, tax, numbers)


def _product_of(row: dict[str, Any]) -> str:
    return row["fare_product"] if row["fare_action"] == "Purchase" and row["fare_product"] else SINGLE


def _invoice(
    task: tides.Task, row: dict[str, Any], items: list[Item], party: Party | None, tax: Tax | None, numbers: Counter[str]
) -> Invoice:
    seller = Seller(party.party_id, party.name_vi) if party else None
    series = f"{seller.party_id if seller else 'PRODUCTS'}/{task.accounting_date}"
    numbers[series] += 1
    action = row["fare_action"]
    kind: Literal["leg", "sale", "adjustment"] = (
        "sale" if action == "Purchase" else "adjustment" if action in ("Adjust", "Void") else "leg"
    )
    return Invoice(
        number=f"{series}/{numbers[series]:07}",
        type=kind,
        transaction_id=row["transaction_id"],
        adjusts=row["cause"] if kind == "adjustment" and row["is_leg"] else None,
        issued_for=row["service_date"],
        accounting_date=task.accounting_date,
        seller=seller,
        product=row["fare_product"] or "",
        persons=row["num_riders"] or 1,
        items=tuple(items),
        amount=row["amount"],
        currency=task.currency,
        minor_digits=task.minor_digits,
        vat="exempt" if tax is None or tax.state == "exempt" else f"{tax.percent}%",
        vat_amount=included_tax(row["amount"], Decimal(tax.percent)) if tax is not None else 0,
    )


def _grouped(batches: Any) -> Iterator[tuple[str, list[Item]]]:
    """Each cause's lines, summed by kind and rule, of rows that are sorted by cause."""
    cause, sums = "", Counter[tuple[str, str]]()
    for batch in batches:
        for leg_id, kind, rule_id, amount in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            if leg_id != cause:
                if cause:
                    yield cause, _items(sums)
                cause, sums = leg_id, Counter()
            sums[kind, rule_id] += amount
    if cause:
        yield cause, _items(sums)


def _items(sums: Counter[tuple[str, str]]) -> list[Item]:
    return [Item(kind, rule_id, amount) for (kind, rule_id), amount in sorted(sums.items()) if amount]


def schema() -> bytes:
    """The JSON Schema of one line."""
    described, parts = msgspec.json.schema_components([Invoice], ref_template="#/$defs/{name}")
    content = {"$schema": "https://json-schema.org/draft/2020-12/schema", **described[0], "$defs": parts}
    return (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode()
