"""A rider's pages: journeys by service day, and why each costs what it costs. They need the card's number and PIN.

What is shown is the fold of the rider's own facts, so it is what the next tap would be priced by."""

from __future__ import annotations

import secrets
from collections import defaultdict
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from sqlalchemy import Connection

from fare_engine import booking, claims
from fare_engine.errors import ClaimError
from fare_engine.facts import Completion, Tap, in_order
from fare_engine.pages.base import environment, language_of, page
from fare_engine.pages.names import Names
from fare_engine.pages.words import WORDS
from fare_engine.pricing.fold import Folded
from fare_engine.pricing.lines import Leg, Line, Sale
from fare_engine.pricing.periods import spent
from fare_engine.pricing.why import others
from fare_engine.service.app import Service, get_service
from fare_engine.service_day import to_date
from fare_engine.store import registry, travellers
from fare_engine.store.travellers import Account, Claim, Traveller
from fare_engine.tokens import issued_pin, stored_card_number

templates = environment()
router = APIRouter()
SIGNS = {
    "complete": ("✓", "ok"),
    "cancelled": ("✓", "ok"),
    "open": ("●", "warn"),
    "missing_exit": ("!", "bad"),
    "missing_entry": ("!", "bad"),
    "late_exit": ("!", "warn"),
    "unknown": ("?", "warn"),
}


@router.get("/card", response_class=HTMLResponse)
def journeys(request: Request) -> HTMLResponse:
    """The rider's journeys, newest day first; or the login."""
    service = get_service(request)
    account = account_of(request, service)
    if account is None:
        return _login(request, "", None)
    names = Names(service.tariff, language_of(request))
    with service.database.read() as connection:
        found = travellers.travellers_of_account(connection, account.account_id)
    days: dict[int, list[dict[str, Any]]] = defaultdict(list)
    totals: dict[int, int] = defaultdict(int)
    caps: list[dict[str, Any]] = []
    for traveller in found:
        folded = booking.price(service.tariff, traveller.record, service.clock())
        lines = _by_leg(folded)
        for leg in folded.legs.values():
            item = _item(leg, lines[leg.leg_id], names, service)
            item["mended"] = _mended(leg, traveller, names)
            days[leg.service_day].append(item)
            totals[leg.service_day] += sum(line.amount for line in lines[leg.leg_id])
        for sale in folded.sales.values():
            days[sale.service_day].append(_sale_item(sale, lines[sale.sale_id], names))
            totals[sale.service_day] += sum(line.amount for line in lines[sale.sale_id])
        caps += _caps(folded, names, service)
    shown = [
        {
            "date": to_date(day).isoformat(),
            "title": to_date(day).strftime("%d/%m/%Y"),
            "total": totals[day],
            "entries": sorted(days[day], key=lambda item: item["at"], reverse=True),
        }
        for day in sorted(days, reverse=True)
    ]
    pays = getattr(request.app.state, "pays", False)
    values = {"account": account, "names": names, "days": shown, "caps": caps, "pays": pays}
    return page(request, templates, "journeys.html", values)


@router.get("/card/why", response_class=HTMLResponse)
def why(request: Request, leg: str) -> Response:
    """Each rule that acted on one leg, in order. A leg of somebody else is not found."""
    service = get_service(request)
    account = account_of(request, service)
    if account is None:
        return RedirectResponse("/card", status_code=303)
    names = Names(service.tariff, language_of(request))
    with service.database.read() as connection:
        found = travellers.travellers_of_account(connection, account.account_id)
    for traveller in found:
        folded = booking.price(service.tariff, traveller.record, service.clock(), explain=True)
        if leg in folded.legs or leg in folded.sales:
            return page(request, templates, "why.html", _why(leg, folded, traveller, names, service))
    return page(request, templates, "login.html", _login_values(request, "", None), 404)


@router.get("/card/mend", response_class=HTMLResponse)
def mend(request: Request, leg: str) -> Response:
    """A ride whose exit is missing: where the rider most likely left, and a form to say so."""
    service = get_service(request)
    account = account_of(request, service)
    if account is None:
        return RedirectResponse("/card", status_code=303)
    with service.database.read() as connection:
        traveller = _traveller_of(connection, account, leg, service)
        known = travellers.list_claims(connection, traveller_id=traveller.traveller_id) if traveller else []
    if traveller is None:
        return page(request, templates, "login.html", _login_values(request, "", None), 404)
    claim = next((claim for claim in known if claim.leg_id == leg), None)
    return _mend_page(request, service, traveller, leg, claim, None)


@router.post("/card/mend", response_class=HTMLResponse)
def send_claim(
    request: Request,
    leg: Annotated[str, Form(max_length=200)],
    stop: Annotated[str, Form(max_length=100)],
    text: Annotated[str, Form(max_length=300)] = "",
) -> Response:
    """Take a rider's claim: at once where the taps speak for it, else it waits for somebody."""
    service = get_service(request)
    account = account_of(request, service)
    if account is None:
        return RedirectResponse("/card", status_code=303)
    with service.database.read() as connection:
        traveller = _traveller_of(connection, account, leg, service)
    if traveller is None:
        return page(request, templates, "login.html", _login_values(request, "", None), 404)
    now, name = service.clock(), traveller.traveller_id
    try:
        claim = service.database.transact(
            lambda connection: claims.make_claim(connection, service.application, name, leg, stop, text, now)
        )
    except ClaimError as error:
        return _mend_page(request, service, traveller, leg, None, str(error))
    with service.database.read() as connection:
        traveller = travellers.find_traveller(connection, name) or traveller
    return _mend_page(request, service, traveller, leg, claim, None)


def _traveller_of(connection: Connection, account: Account, leg: str, service: Service) -> Traveller | None:
    """The account's traveller who made a ride; a ride of somebody else is not found."""
    for traveller in travellers.travellers_of_account(connection, account.account_id):
        if leg in booking.price(service.tariff, traveller.record, service.clock()).legs:
            return traveller
    return None


def _mend_page(
    request: Request, service: Service, traveller: Traveller, leg_id: str, claim: Claim | None, error: str | None
) -> HTMLResponse:
    names = Names(service.tariff, language_of(request))
    folded = booking.price(service.tariff, traveller.record, service.clock())
    leg = folded.legs[leg_id]
    item = _item(leg, [line for line in folded.lines if line.leg_id == leg_id], names, service)
    values: dict[str, Any] = {"item": item, "names": names, "error": error, "claim": None, "likely": None, "stops": []}
    if claim is not None:
        charge = item["charge"] if claim.state == "accepted" else ""
        values["claim"] = {"title": names.words[f"claim_{claim.state}"], "reason": claim.reason or "", "charge": charge}
        return page(request, templates, "mend.html", values)
    try:
        _, likely = claims.proposed_exit(service.application, traveller, leg_id, service.clock())
    except ClaimError:
        values["error"] = names.words["claim_not_possible"]
        return page(request, templates, "mend.html", values, 409)
    if likely is not None:
        source = names.words[f"source_{likely.source}"]
        values["likely"] = {"id": likely.stop_id, "name": names.stop(likely.stop_id), "source": source}
    stops = claims.stops_of(service.application, leg)
    values["stops"] = [{"id": stop, "name": names.stop(stop)} for stop in stops]
    return page(request, templates, "mend.html", values, 200 if error is None else 409)


def _mended(leg: Leg, traveller: Traveller, names: Names) -> str:
    """How an exit that nobody tapped is known."""
    if leg.status != "complete":
        return ""
    found = [fact for fact in traveller.record.facts if isinstance(fact, Completion) and fact.leg_id == leg.leg_id]
    acting = [tap for tap in in_order(traveller.record.facts) if isinstance(tap, Tap) and tap.fact_id.startswith("completion/")]
    used = {tap.fact_id for tap in acting}
    return next((names.words[f"mended_{fact.source}"] for fact in found if fact.fact_id in used), "")


@router.post("/card/login", response_class=HTMLResponse)
def log_in(request: Request, name: Annotated[str, Form(max_length=40)], secret: Annotated[str, Form(max_length=64)]) -> Response:
    """Card number and PIN. After five wrong ones in a quarter of an hour nothing more is tried."""
    service = get_service(request)
    number = stored_card_number(service.server_key, name)
    subject = f"card:{number}"
    if not service.database.transact(lambda connection: registry.begin_attempt(connection, subject, service.clock())):
        return _login(request, name, "locked")
    with service.database.read() as connection:
        account = travellers.find_account_by_card(connection, number)
    expected = issued_pin(service.server_key, name)
    if account is None or not secrets.compare_digest(expected.encode(), secret.strip().encode()):
        return _login(request, name, "card_wrong")
    service.database.transact(lambda connection: registry.forget_attempts(connection, subject))
    request.session["account"] = account.account_id
    return RedirectResponse("/card", status_code=303)


@router.post("/card/logout")
def log_out(request: Request) -> RedirectResponse:
    """Forget who it was."""
    request.session.pop("account", None)
    return RedirectResponse("/card", status_code=303)


def account_of(request: Request, service: Service) -> Account | None:
    """Who is logged in, or None."""
    account_id = request.session.get("account")
    if account_id is None:
        return None
    with service.database.read() as connection:
        return travellers.find_accounts(connection, [account_id]).get(account_id)


def _login(request: Request, name: str, error: str | None) -> HTMLResponse:
    return page(request, templates, "login.html", _login_values(request, name, error), 200 if error is None else 401)


def _login_values(request: Request, name: str, error: str | None) -> dict[str, Any]:
    index = 0 if language_of(request) == "vi" else 1
    return {
        "heading": WORDS["nav_card"][index],
        "action": "/card/login",
        "name": name,
        "name_label": WORDS["card_number"][index],
        "secret_label": WORDS["pin"][index],
        "help": WORDS["card_help"][index],
        "numeric": True,
        "error": WORDS[error][index] if error else None,
    }


def _by_leg(folded: Folded) -> dict[str, list[Line]]:
    found: dict[str, list[Line]] = defaultdict(list)
    for line in folded.lines:
        found[line.leg_id].append(line)
    return found


def _item(leg: Leg, lines: list[Line], names: Names, service: Service) -> dict[str, Any]:
    sign, colour = SIGNS[leg.status]
    known = leg.status != "unknown"
    ends = names.clock(leg.exit_at) if leg.exit_at is not None else ""
    begins = names.clock(leg.entry_at) if leg.entry_at is not None else ""
    places = [names.stop(stop) for stop in (leg.from_stop_id, leg.to_stop_id) if stop is not None]
    deadline = ""
    if leg.status == "open" and leg.entry_at is not None and leg.network_id is not None:
        terms = service.tariff.versions[leg.version_id].terms(leg.network_id, leg.route_id, leg.media, leg.rider_category)
        deadline = names.clock(leg.entry_at + terms.longest_stay_ms) if terms else ""
    return {
        "id": leg.leg_id,
        "at": leg.entry_at if leg.entry_at is not None else leg.exit_at,
        "icon": names.icon_of(leg),
        "line": names.line_of(leg),
        "times": "–".join(part for part in (begins, ends) if part),
        "places": " → ".join(places) or names.party(leg.operator_id or ""),
        "charge": names.money(sum(line.amount for line in lines)) if known else names.words["unknown_price"],
        "status": names.words[f"status_{leg.status}"],
        "sign": sign,
        "colour": colour,
        "deadline": deadline,
        "reason": leg.reason,
        "mendable": leg.status == "missing_exit",
    }


def _sale_item(sale: Sale, lines: list[Line], names: Names) -> dict[str, Any]:
    product = names.tariff.versions[sale.version_id].products[sale.product_id]
    return {
        "id": sale.sale_id,
        "at": sale.at,
        "icon": "ticket",
        "line": f"{names.words['bought']}: {names.text(product.name)}",
        "times": names.clock(sale.at),
        "places": "",
        "charge": names.money(sum(line.amount for line in lines)),
        "status": names.words["status_complete"],
        "sign": "✓",
        "colour": "ok",
        "deadline": "",
        "reason": "",
    }


def _why(leg_id: str, folded: Folded, traveller: Traveller, names: Names, service: Service) -> dict[str, Any]:
    lines = [line for line in folded.lines if line.leg_id == leg_id]
    leg = folded.legs.get(leg_id)
    item = _item(leg, lines, names, service) if leg else _sale_item(folded.sales[leg_id], lines, names)
    gone = [
        booked.line for booked in traveller.record.booked.values() if booked.line.leg_id == leg_id and booked.generation % 2 == 1
    ]
    version_id = leg.version_id if leg else folded.sales[leg_id].version_id
    version = service.tariff.versions.get(version_id)
    return {
        "item": item,
        "names": names,
        "lines": [_line_out(line, leg, names) for line in lines if line.kind not in ("release", "expiry")],
        "others": [
            {"name": names.text(other.name), "reason": other.vi if names.language == "vi" else other.en, "rule_id": other.rule_id}
            for other in (others(service.tariff, folded, leg) if leg else ())
        ],
        "withdrawn": [_line_out(line, leg, names) for line in gone],
        "version": names.text(version.version.file.tariff.name) if version else "–",
    }


def _line_out(line: Line, leg: Leg | None, names: Names) -> dict[str, Any]:
    return {
        "kind": line.kind,
        "name": names.rule(line, leg),
        "rule_id": line.rule_id,
        "bearer": names.bearer(line),
        "amount": line.amount,
    }


def _caps(folded: Folded, names: Names, service: Service) -> list[dict[str, Any]]:
    """How far the caps of today's and this week's legs are used."""
    latest = max(folded.legs.values(), key=lambda leg: leg.service_day, default=None)
    version = service.tariff.versions.get(latest.version_id) if latest else None
    if latest is None or version is None or latest.network_id is None:
        return []
    terms = version.terms(latest.network_id, latest.route_id, latest.media, latest.rider_category)
    found = []
    for cap in terms.caps if terms else ():
        used = spent(folded.state, cap, latest)
        found.append({"name": names.text(cap.name), "spent": used, "amount": cap.amount, "percent": 100 * used // cap.amount})
    return found
