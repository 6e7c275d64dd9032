"""An operator's way in, his overview of the last close, and his devices."""

from __future__ import annotations

import csv
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from sqlalchemy import Connection

from clearing import frozen, store
from clearing.disputes import store as dispute_store
from clearing.frozen import DevicePosition
from clearing.pages import store as page_store
from clearing.pages.reconciliation import waiting_lines
from clearing.pages.visitors import HOME, not_found, shown, templates, visitor_of
from fare_engine.pages.base import language_of, page
from fare_engine.pages.words import WORDS
from fare_engine.service_day import DAY_MS
from fare_engine.store import registry

router = APIRouter(prefix=HOME)
SHOWN_DATES = 31


@router.get("", response_class=HTMLResponse)
def home(request: Request) -> Response:
    """What is to be received, and what needs somebody; or the login."""
    visitor = visitor_of(request)
    if isinstance(visitor, Response):
        return _login(request, "", None)
    party = visitor.operator_id
    with visitor.database.read() as connection:
        days = [
            (day, totals(content))
            for day in store.published_dates(connection)[:SHOWN_DATES]
            if (content := store.find_document(connection, day, f"{party}.csv")) is not None
        ]
        devices = _positions(connection, party)
        unmatched = len(waiting_lines(connection, visitor))
        disputes = [one for one in dispute_store.list_disputes(connection, party) if one.state == "open"]
    month = days[0][0][:7] if days else ""
    values = {
        "days": days,
        "period": month,
        "of_period": sum(sums["net"] for day, sums in days if day[:7] == month),
        "silent": sum(device["silent"] for device in devices),
        "missing": sum(device["position"].missing for device in devices),
        "disputes": len(disputes),
        "unmatched": unmatched,
    }
    return shown(request, visitor, "operator.html", values)


@router.get("/devices", response_class=HTMLResponse)
def devices(request: Request) -> Response:
    """How far each of one's own devices was heard of at the last close."""
    visitor = visitor_of(request)
    if isinstance(visitor, Response):
        return visitor
    with visitor.database.read() as connection:
        found = _positions(connection, visitor.operator_id)
        last = _last_closed(connection)
    return shown(request, visitor, "operator_devices.html", {"devices": found, "day": last, "one": None})


@router.get("/devices/{device_id:path}", response_class=HTMLResponse)
def device(request: Request, device_id: str) -> Response:
    """One of one's own devices at each close."""
    visitor = visitor_of(request)
    if isinstance(visitor, Response):
        return visitor
    with visitor.database.read() as connection:
        found = [
            {"date": day, **one}
            for day in store.published_dates(connection)[:SHOWN_DATES]
            for one in _positions(connection, visitor.operator_id, day)
            if one["position"].device_id == device_id
        ]
    if not found:
        return not_found(request, visitor)
    return shown(request, visitor, "operator_devices.html", {"devices": found, "day": None, "one": device_id})


@router.post("/login", response_class=HTMLResponse)
def log_in(request: Request, name: Annotated[str, Form(max_length=40)], secret: Annotated[str, Form(max_length=64)]) -> Response:
    """User name and password; five wrong ones lock the name for a quarter of an hour."""
    service = request.app.state.service
    subject = f"user:{name}"
    if not service.database.transact(lambda connection: registry.begin_attempt(connection, subject, service.clock())):
        return _login(request, name, "locked")
    with service.database.read() as connection:
        operator_id = registry.check_password(connection, name, secret)
    if operator_id is None:
        return _login(request, name, "login_wrong")
    service.database.transact(lambda connection: registry.forget_attempts(connection, subject))
    request.session["operator"] = operator_id
    return RedirectResponse(HOME, status_code=303)


@router.post("/logout")
def log_out(request: Request) -> RedirectResponse:
    """Forget who it was."""
    request.session.pop("operator", None)
    return RedirectResponse(HOME, status_code=303)


def totals(content: bytes) -> dict[str, int]:
    """The sums of a published statement."""
    rows = csv.DictReader(content.decode().splitlines())
    return {row["what"]: int(row["amount"]) for row in rows if row["section"] == "total"}


def _last_closed(connection: Connection) -> str | None:
    return next(iter(store.published_dates(connection)), None)


def _positions(connection: Connection, party: str, day: str | None = None) -> list[dict[str, Any]]:
    """A party's devices at a close, by default the last one; silent are those not heard of in the day before it."""
    on = day or _last_closed(connection)
    if on is None:
        return []
    frozen_at = page_store.frozen_at(connection, on)

    def is_silent(position: DevicePosition) -> bool:
        return position.last_contact < frozen_at - DAY_MS

    own = [position for position in frozen.list_positions(connection, on) if position.operator_id == party]
    return [{"position": position, "silent": is_silent(position)} for position in own]


def _login(request: Request, name: str, error: str | None) -> HTMLResponse:
    index = 0 if language_of(request) == "vi" else 1
    values = {
        "heading": WORDS["nav_operator"][index],
        "action": "/operator/login",
        "name": name,
        "name_label": WORDS["username"][index],
        "secret_label": WORDS["password"][index],
        "help": None,
        "numeric": False,
        "error": WORDS[error][index] if error else None,
    }
    return page(request, templates, "login.html", values, 200 if error is None else 401)
