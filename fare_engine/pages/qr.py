"""The rider's QR ticket: a page that shows a new code every ten seconds, and the ticket for a phone that makes its own."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated

from fastapi import APIRouter, Body, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from sqlalchemy import Connection

from fare_engine.pages.base import environment, language_of, page
from fare_engine.pages.rider import account_of
from fare_engine.pages.words import WORDS
from fare_engine.qr_desk import VALID_MS, QrDesk
from fare_engine.qr_tickets import draw
from fare_engine.service.app import Service, get_service
from fare_engine.store import travellers
from fare_engine.store.travellers import Account, Traveller

templates = environment()
router = APIRouter()


Rider = Annotated[int, Query(ge=1, le=99)]
"""Which of the account's travellers: a family's parent may show one for each child."""


@router.get("/card/qr", response_class=HTMLResponse)
def show(request: Request, rider: Rider = 1) -> Response:
    """The page with the rotating code."""
    service = get_service(request)
    account = account_of(request, service)
    if account is None:
        return RedirectResponse("/card", status_code=303)
    with service.database.read() as connection:
        number = len(travellers.travellers_of_account(connection, account.account_id))
    return page(request, templates, "qr.html", {"rider": rider, "riders": range(1, number + 1)})


@router.get("/card/qr/code", response_class=HTMLResponse)
def code(request: Request, rider: Rider = 1) -> Response:
    """The code of this moment as SVG."""
    service = get_service(request)
    account = account_of(request, service)
    if account is None:
        return HTMLResponse("", 403)
    traveller = _opened(service, account, rider)
    if traveller is None:
        return HTMLResponse(WORDS["no_journeys"][0 if language_of(request) == "vi" else 1], 404)
    drawn = draw(_desk(service).code(traveller.traveller_id, service.clock()), "svg", 6)
    return HTMLResponse(drawn.decode(), headers={"Cache-Control": "no-store"})


@router.post("/v1/qr/tickets")
def ticket(request: Request, holder_key: Annotated[str, Body(embed=True, max_length=100)], rider: Rider = 1) -> JSONResponse:
    """A day's ticket for the phone that holds this key; it makes the codes itself, also without a connection."""
    service = get_service(request)
    account = account_of(request, service)
    if account is None:
        raise HTTPException(401, "log in with card number and PIN")
    traveller = _opened(service, account, rider)
    if traveller is None:
        raise HTTPException(404, "no traveller")
    now = service.clock()
    try:
        issued = _desk(service).ticket(traveller.traveller_id, base64.b64decode(holder_key, validate=True), now)
    except (ValueError, binascii.Error) as error:
        raise HTTPException(422, f"holder_key: {error}") from None
    return JSONResponse({"ticket": base64.b64encode(issued).decode(), "valid_from": now, "valid_to": now + VALID_MS})


def _desk(service: Service) -> QrDesk:
    return QrDesk(service.settings.data, service.server_key)


def _opened(service: Service, account: Account, rider: int) -> Traveller | None:
    """One of the account's travellers, whose QR token is known from now on; None where there are not so many."""

    def work(connection: Connection) -> Traveller | None:
        found = next(iter(travellers.travellers_of_account(connection, account.account_id)[rider - 1 :]), None)
        if found is not None:
            _desk(service).open_token(connection, found)
        return found

    return service.database.transact(work)
