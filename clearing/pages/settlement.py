"""The settlement of a closed date: every section with its rows, what each row sums down to signed taps, and the files.

What a row of shared money sums has parts of riders who rode with others too; of these a visitor sees the exact part and the taps
of his own devices, under a name that means something on this statement only."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterable
from datetime import date
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from sqlalchemy import Connection

from clearing import store, tracing
from clearing.disputes import desk
from clearing.disputes.claims import MOST_TEXT, Claim
from clearing.pages.operator import totals
from clearing.pages.store import document_names
from clearing.pages.visitors import HOME, Day, Visitor, attachment, not_found, part_of, shown, visitor_of
from clearing.statements import GIVEN, OPEN, SECTIONS, digest
from clearing.tracing import Trace, Traced
from fare_engine.errors import CloseError, DisputeError, NotFoundError
from fare_engine.store import registry

router = APIRouter(prefix=HOME)
FILES = {
    "csv": (".csv", "text/csv; charset=utf-8"),
    "devices": (".devices.csv", "text/csv; charset=utf-8"),
    "xlsx": (".xlsx", "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"),
    "pdf": (".pdf", "application/pdf"),
}
"""What can be downloaded of a date, where it was published: word in the address → end of the document's name."""
TOTALS = ("opening", "settled", "cash_held", "borne", "net", "paid", "closing")
RIDER, TAP = re.compile(r"rider:\S+"), re.compile(r"(\S+)/[0-9a-f]{16}/\d+")


@router.get("/settlement/{day}", response_class=HTMLResponse)
def settlement(request: Request, day: Day) -> Response:
    """One closed day of the operator who is logged in."""
    visitor = visitor_of(request)
    if isinstance(visitor, Response):
        return visitor
    with visitor.database.read() as connection:
        content = store.find_document(connection, day, f"{visitor.operator_id}.csv")
        proof = store.find_document(connection, day, "proof.json")
        names = document_names(connection, day)
    if content is None or proof is None:
        return not_found(request, visitor)
    rows = list(csv.DictReader(content.decode().splitlines()))
    listed = [_row(row, visitor) for row in rows if row["line"]]
    sections = [(name, [row for row in listed if row["section"] == name]) for name in SECTIONS]
    capped = sum(row["amount"] for row in listed if row["what_id"] == "cap" and row["section"] in GIVEN)
    values = {
        "day": day,
        "title": _title(day),
        "files": [word for word, (end, _) in FILES.items() if visitor.operator_id + end in names],
        "sections": [
            {"name": name, "groups": _groups(found), "amount": sum(row["amount"] for row in found), "is_open": name in OPEN}
            for name, found in sections
            if found
        ],
        "total_names": TOTALS,
        "totals": totals(content),
        "without_caps": totals(content)["settled"] - capped if capped < 0 else None,
        "proof": json.loads(proof),
        "hash": digest(content),
        "agreement": rows[0]["agreement_id"],
        "traceable_until": rows[1]["service_date"],
    }
    return shown(request, visitor, "settlement.html", values)


@router.get("/settlement/{day}/{word}")
def download(request: Request, day: Day, word: str) -> Response:
    """A document of the operator who is logged in as published, byte for byte."""
    visitor = visitor_of(request)
    if isinstance(visitor, Response):
        return visitor
    end, media_type = FILES.get(word, ("", ""))
    with visitor.database.read() as connection:
        content = store.find_document(connection, day, visitor.operator_id + end) if end else None
    if content is None:
        return not_found(request, visitor)
    return attachment(f"{visitor.operator_id}-{day}{end}", media_type, content)


# ---- one row


@router.get("/settlement/{day}/line/{line}", response_class=HTMLResponse)
def line_page(request: Request, day: Day, line: int, number: int = 1) -> Response:
    """What a row of one's own statement sums, down to the signed taps."""
    visitor = visitor_of(request)
    if isinstance(visitor, Response):
        return visitor
    return _line_page(request, visitor, day, line, number)


@router.post("/settlement/{day}/line/{line}/dispute", response_class=HTMLResponse)
def dispute_line(
    request: Request,
    day: Day,
    line: int,
    text: Annotated[str, Form(max_length=MOST_TEXT)] = "",
    amount: Annotated[str, Form(max_length=20)] = "",
    leg: Annotated[list[str] | None, Form()] = None,
) -> Response:
    """Dispute a row of one's own statement, or legs that it sums."""
    visitor = visitor_of(request)
    if isinstance(visitor, Response):
        return visitor
    if not text.strip():
        return _line_page(request, visitor, day, line, error="text")
    if amount.strip() and not amount.strip().isdecimal():
        return _line_page(request, visitor, day, line, error="above_row")
    claim = Claim(
        claimant=visitor.operator_id,
        accounting_date=day,
        party_id=visitor.operator_id,
        line=line,
        leg_ids=tuple(leg or ()),
        amount=int(amount) if amount.strip() else None,
        text=text,
    )
    at, rules = visitor.service.clock(), visitor.rules

    def work(connection: Connection) -> str:
        if claim.leg_ids:
            row = tracing.trace(connection, rules, day, visitor.operator_id, line)
            if not set(claim.leg_ids) <= _own_legs(row):
                raise DisputeError("legs", "legs that the row does not sum")
        return desk.open_dispute(connection, rules, claim, at).dispute_id

    try:
        name = visitor.database.transact(work)
    except NotFoundError:
        return not_found(request, visitor)
    except CloseError:
        return _line_page(request, visitor, day, line, error="legs")
    except DisputeError as error:
        return _line_page(request, visitor, day, line, error=error.cause)
    return RedirectResponse(f"{HOME}/disputes/{name}", status_code=303)


def _line_page(request: Request, visitor: Visitor, day: str, line: int, number: int = 1, error: str = "") -> HTMLResponse:
    with visitor.database.read() as connection:
        content = store.find_document(connection, day, f"{visitor.operator_id}.csv") or b""
        row = next((row for row in csv.DictReader(content.decode().splitlines()) if row["line"] == str(line)), None)
        if row is None:
            return not_found(request, visitor)
        try:
            found = tracing.trace(connection, visitor.rules, day, visitor.operator_id, line)
            explained = True
        except CloseError:
            found, explained = Trace(day, visitor.operator_id, row, [], 0, digest(content)), False
        part, turned = part_of(found.found, number)
        items = _items(connection, visitor, found, part)
        own = Claim(claimant=visitor.operator_id, accounting_date=day, party_id=visitor.operator_id, line=line)
        claimable = _took(row) if _took(row) and desk.can_be_claimed(connection, own) else 0
    values = {
        "day": day,
        "title": _title(day),
        "row": _row(row, visitor),
        "items": items,
        "count": len(found.found),
        "explained": explained,
        **turned,
        "hash": found.sha256,
        "claimable": claimable,
        "legs": sorted(_own_legs(found)) if claimable else [],
        "error": visitor.words.get(f"error_{error}", visitor.words["error_above_row"]) if error else None,
    }
    return shown(request, visitor, "trace.html", values, 409 if error else 200)


def _took(row: dict[str, str]) -> int:
    """What a row took from its party that others may have been given."""
    taken = row["section"] in ("borne", "shared", "rides", "subsidies", "commissions")
    return max(0, -int(row["amount"] or 0)) if taken else 0


def _own_legs(found: Trace) -> set[str]:
    """Legs of a row that its party may name one by one: those it pays for."""
    return {leg for one in found.found for leg in one.legs} if found.row["section"] == "borne" else set()


def _items(connection: Connection, visitor: Visitor, found: Trace, part: Iterable[Traced]) -> list[dict[str, Any]]:
    own = {one.device_id for one in registry.list_devices(connection) if one.operator_id == visitor.operator_id}
    items = []
    for one in part:
        mine = [tap for tap in one.taps if found.row["section"] == "borne" or tap.rsplit("/", 2)[0] in own]
        signed = {tap.tap_id: tap for tap in tracing.signed_taps(connection, mine)}
        items.append(
            {
                "what": visitor.words.get(f"found_{one.what}", one.what),
                "key": _pseudonym(found, one.key) if one.what == "part" else one.key,
                "amount": one.amount,
                "detail": _masked(visitor, one.detail, own if found.row["section"] != "borne" else None),
                "taps": [(tap, signed.get(tap)) for tap in mine],
                "others": len(one.taps) - len(mine),
            }
        )
    return items


def _masked(visitor: Visitor, detail: str, own: set[str] | None) -> str:
    """What is said of an item, without riders' accounts and without taps of others' devices; `own` None: all may be seen."""

    def tap(found: re.Match[str]) -> str:
        return found[0] if own is None or found[1] in own else visitor.words["tap_of_others"]

    return TAP.sub(tap, RIDER.sub("rider", detail))


def _pseudonym(found: Trace, traveller_id: str) -> str:
    """A name for a rider that is good on one published statement only."""
    return hashlib.sha256(f"{found.sha256}/{traveller_id}".encode()).hexdigest()[:12]


# ---- how rows are shown


def _title(day: str) -> str:
    return date.fromisoformat(day).strftime("%d/%m/%Y")


def _row(row: dict[str, str], visitor: Visitor) -> dict[str, Any]:
    names, words = visitor.names, visitor.words
    what = names.words.get(f"kind_{row['what']}") or words.get(f"what_{row['what']}") or row["what"]
    is_open = row["section"] in OPEN
    return {
        "line": int(row["line"]),
        "section": row["section"],
        "date": row["service_date"],
        "what": words.get(f"kind_{row['rule_id']}", what) if is_open else what,
        "what_id": row["what"],
        "network": names.tariff.network.networks.get(row["network_id"], row["network_id"]),
        "rule": row["what"] if is_open else names.find_rule(row["rule_id"]) or row["rule_id"],
        "rule_id": row["rule_id"],
        "paid_by": visitor.who(row["paid_by"]) if row["paid_by"] else "",
        "agreement": row["agreement_id"],
        "vat": row["vat"],
        "count": row["count"],
        "amount": int(row["amount"] or 0),
        "is_open": is_open,
    }


def _groups(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows under one figure each: of one kind, network and date. The figure opens them."""
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["date"], row["what"], row["network"]), []).append(row)
    return [
        {
            "date": date_,
            "what": what,
            "network": network,
            "count": sum(int(row["count"] or 0) for row in group),
            "amount": sum(row["amount"] for row in group),
            "rows": group,
        }
        for (date_, what, network), group in found.items()
    ]
