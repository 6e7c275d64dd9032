"""An operator's pages: the closed days, and the settlement of one. An operator sees his own statements and nobody else's."""

from __future__ import annotations

import csv
import json
from datetime import date
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from clearing import store
from clearing.statements import digest
from fare_engine.pages.base import HERE, Names, environment, language_of, page
from fare_engine.pages.words import WORDS
from fare_engine.store import registry

templates = environment(HERE.parents[1] / "clearing" / "templates")
router = APIRouter(prefix="/operator")
SECTIONS = ("legs", "late", "shared", "not_settled")


@router.get("", response_class=HTMLResponse)
def home(request: Request) -> HTMLResponse:
    """The closed days, newest first; or the login."""
    operator_id = request.session.get("operator")
    if operator_id is None:
        return _login(request, "", None)
    service = request.app.state.service
    names = Names(service.tariff, language_of(request))
    with service.database.read() as connection:
        days = [
            {"date": day, "totals": _totals(content)}
            for day in store.published_dates(connection)
            if (content := store.find_document(connection, day, f"{operator_id}.csv")) is not None
        ]
    return page(request, templates, "operator.html", {"names": names, "operator": operator_id, "days": days})


@router.get("/settlement/{day}", response_class=HTMLResponse)
def settlement(request: Request, day: str) -> Response:
    """One closed day of the operator who is logged in."""
    found = _own_statement(request, day)
    if isinstance(found, Response):
        return found
    operator_id, content, proof = found
    service = request.app.state.service
    names = Names(service.tariff, language_of(request))
    rows = list(csv.DictReader(content.decode().splitlines()))
    sections = [(name, _groups([_row(row, names) for row in rows if row["section"] == name])) for name in SECTIONS]
    values = {
        "names": names,
        "operator": operator_id,
        "day": day,
        "title": date.fromisoformat(day).strftime("%d/%m/%Y"),
        "sections": [(name, groups) for name, groups in sections if groups],
        "totals": _totals(content),
        "proof": json.loads(proof),
        "hash": digest(content),
        "agreement": next((row["agreement_id"] for row in rows if row["section"] == "statement"), ""),
    }
    return page(request, templates, "settlement.html", values)


@router.get("/settlement/{day}/csv")
def settlement_csv(request: Request, day: str) -> Response:
    """The statement as published, byte for byte."""
    found = _own_statement(request, day)
    if isinstance(found, Response):
        return found
    operator_id, content, _ = found
    name = f"{operator_id}-{day}.csv"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(content, media_type="text/csv; charset=utf-8", headers=headers)


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
    return RedirectResponse("/operator", status_code=303)


@router.post("/logout")
def log_out(request: Request) -> RedirectResponse:
    """Forget who it was."""
    request.session.pop("operator", None)
    return RedirectResponse("/operator", status_code=303)


def _own_statement(request: Request, day: str) -> Response | tuple[str, bytes, bytes]:
    operator_id = request.session.get("operator")
    if operator_id is None:
        return RedirectResponse("/operator", status_code=303)
    with request.app.state.service.database.read() as connection:
        content = store.find_document(connection, day, f"{operator_id}.csv")
        proof = store.find_document(connection, day, "proof.json")
    if content is None or proof is None:
        return RedirectResponse("/operator", status_code=303)
    return operator_id, content, proof


def _totals(content: bytes) -> dict[str, int]:
    rows = csv.DictReader(content.decode().splitlines())
    return {row["what"]: int(row["amount"]) for row in rows if row["section"] == "total"}


def _row(row: dict[str, str], names: Names) -> dict[str, Any]:
    what = names.words.get(f"kind_{row['what']}", row["what"])
    network = names.tariff.network.networks.get(row["network_id"], row["network_id"])
    return {
        "date": row["service_date"],
        "what": what,
        "network": network,
        "rule": names.find_rule(row["rule_id"]) or row["rule_id"],
        "rule_id": row["rule_id"],
        "paid_by": names.party(row["paid_by"]) if row["paid_by"] else "",
        "agreement": row["agreement_id"],
        "count": row["count"],
        "amount": int(row["amount"]) if row["amount"] else None,
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
            "count": sum(int(row["count"] or 0) for row in group if row["count"]),
            "amount": sum(row["amount"] or 0 for row in group),
            "rows": group,
        }
        for (date_, what, network), group in found.items()
    ]


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
