"""Reconciliation: what each close asked the bank to pay and whether it did, what is open, and late taps as one file with a reason
each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import date
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from fastapi.responses import HTMLResponse, Response
from sqlalchemy import Connection

from clearing import frozen
from clearing import store as clearing_store
from clearing.bank import store as bank_store
from clearing.bank.accounts import FILE, load_accounts
from clearing.bank.matching import OpenPayment
from clearing.bank.store import WaitingLine
from clearing.documents import harmless
from clearing.pages import store
from clearing.pages.store import LateLine
from clearing.pages.visitors import HOME, Day, Visitor, attachment, not_found, shown, visitor_of
from clearing.statements import table_csv
from fare_engine.service_day import DAY_MS, format_instant
from fare_engine.store import registry

router = APIRouter(prefix=HOME)
SHOWN_DATES = 31
LATE_COLUMNS = (
    "accounting_date",
    "service_date",
    "leg_id",
    "device_id",
    "began_at",
    "received_at",
    "caused_by",
    "fare",
    "days_late",
    "reason",
)


@router.get("/reconciliation", response_class=HTMLResponse)
def reconciliation(request: Request) -> Response:
    """Payments, late taps and open items of the operator who is logged in."""
    visitor = visitor_of(request)
    if isinstance(visitor, Response):
        return visitor
    party = visitor.operator_id
    with visitor.database.read() as connection:
        days = clearing_store.published_dates(connection)
        items = [item for item in frozen.list_open(connection, days[0]) if item.party_id == party] if days else []
        late = [
            {"date": day, "count": len(found), "amount": sum(line.amount for line in found)}
            for day in days[:SHOWN_DATES]
            if (found := list(store.late_lines(connection, party, day)))
        ]
        listed = _payments(connection, party)
        waiting = waiting_lines(connection, visitor)
        end = store.frozen_at(connection, days[0]) if days else 0
    values = {
        "payments": listed,
        "waiting": [{"line": one.line, "reason": one.reason, "days": _days(one.line.booked_on, days[0])} for one in waiting],
        "late": late,
        "items": [{"item": item, "days": max(0, (end - item.since) // DAY_MS)} for item in items],
        "day": days[0] if days else None,
    }
    return shown(request, visitor, "reconciliation.html", values)


@router.get("/payments/{payment_id}", response_class=HTMLResponse)
def payment(request: Request, payment_id: Annotated[str, Path(pattern=r"^[A-Z0-9]{1,35}$")]) -> Response:
    """One of one's own payments."""
    visitor = visitor_of(request)
    if isinstance(visitor, Response):
        return visitor
    with visitor.database.read() as connection:
        found = [one for one in _payments(connection, visitor.operator_id) if one["payment"].payment_id == payment_id]
    if not found:
        return not_found(request, visitor)
    return shown(request, visitor, "payment.html", {"one": found[0]})


@router.get("/reconciliation/late.csv")
def all_late(request: Request) -> Response:
    """Every late tap of the operator who is logged in, as one file."""
    visitor = visitor_of(request)
    if isinstance(visitor, Response):
        return visitor
    with visitor.database.read() as connection:
        days = sorted(clearing_store.published_dates(connection))
        return _late_file(connection, visitor, days, "late")


@router.get("/reconciliation/late-{day}.csv")
def late_of_day(request: Request, day: Day) -> Response:
    """The same of one closed date."""
    visitor = visitor_of(request)
    if isinstance(visitor, Response):
        return visitor
    with visitor.database.read() as connection:
        if day not in clearing_store.published_dates(connection):
            return not_found(request, visitor)
        return _late_file(connection, visitor, [day], f"late-{day}")


# ---- payments


def _payments(connection: Connection, party: str) -> list[dict[str, Any]]:
    """A party's payments, the newest first, each with what the bank has moved of it."""
    last = next(iter(clearing_store.published_dates(connection)), "")
    own = [one for one in bank_store.list_payments(connection) if one.payment.party_id == party]
    return [
        {
            "payment": one.payment,
            "paid": one.moved,
            "state": _state(one),
            "days": _days(one.payment.accounting_date, last),
            "lines": store.moved_by(connection, one.payment.payment_id),
        }
        for one in reversed(own)
    ]


def _state(found: OpenPayment) -> str:
    if found.is_paid:
        return "paid"
    if found.moved:
        return "partly"
    return "waiting" if found.payment.amount > 0 else "due"


def waiting_lines(connection: Connection, visitor: Visitor) -> list[WaitingLine]:
    """The bank's lines from or to a visitor's own account that are no payment yet; none in a city without accounts."""
    folder: FilePath = visitor.service.settings.tariff
    file = next((one / FILE for one in (folder, folder.parent) if (one / FILE).exists()), None)
    if file is None:
        return []
    tariff = visitor.names.tariff
    account = load_accounts(file, tariff.network.parties, tariff.currency).parties.get(visitor.operator_id)
    found = bank_store.list_waiting(connection) if account is not None else []
    return [one for one in found if account is not None and one.line.other_account == account.number]


def _days(first: str, last: str) -> int:
    return (date.fromisoformat(last) - date.fromisoformat(first)).days


# ---- late taps


def _late_file(connection: Connection, visitor: Visitor, days: Iterable[str], name: str) -> Response:
    own = {one.device_id for one in registry.list_devices(connection) if one.operator_id == visitor.operator_id}
    rows = [
        cells
        for day in days
        for line in store.late_lines(connection, visitor.operator_id, day)
        for cells in _late_row(connection, visitor, line, own)
    ]
    content = table_csv(LATE_COLUMNS, rows)
    return attachment(f"{visitor.operator_id}-{name}.csv", "text/csv; charset=utf-8", content)


def _late_row(connection: Connection, visitor: Visitor, line: LateLine, own: set[str]) -> Iterator[tuple[object, ...]]:
    """A late leg with its device, its time and its reason. What somebody else's device brought late is not named."""
    zone = visitor.names.tariff.zone
    leg, cause = _place(line.leg_id), _place(line.booked_for)
    began = store.began_at(connection, line.leg_id)
    received = store.received_at(connection, *cause) if cause is not None else None
    device = leg[0] if leg is not None and leg[0] in own else ""
    yield (
        line.accounting_date,
        line.service_date,
        harmless(line.leg_id) if device else "",
        harmless(device),
        format_instant(began, zone) if began is not None else "",
        format_instant(received, zone) if received is not None else "",
        harmless(line.booked_for) if cause is not None and cause[0] in own else "",
        line.amount,
        _days(line.service_date, line.accounting_date),
        visitor.words[_reason(connection, line, cause, received)],
    )


def _reason(connection: Connection, line: LateLine, cause: tuple[str, str, int] | None, received: int | None) -> str:
    if line.reversed:
        return "late_reversed"
    if cause is None:
        return "late_changed"
    if store.was_released(connection, *cause):
        return "late_released"
    closed = store.closed_at(connection, line.service_date)
    return "late_tap_came" if received is not None and closed is not None and received > closed else "late_changed"


def _place(name: str) -> tuple[str, str, int] | None:
    """A tap's device, epoch and sequence; None for a fact that is no tap."""
    device_id, _, rest = name.rpartition("/")
    device_id, _, epoch = device_id.rpartition("/")
    return (device_id, epoch, int(rest)) if device_id and rest.isdecimal() else None
