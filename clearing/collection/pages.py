"""Where riders pay, and where the payment provider tells what happened.

A rider's page and API charge the rider's own account only. The provider's events are signed; each acts once, whichever of several
processes it reaches. Automatic top-ups and unanswered questions are seen to beside the taps, in a thread of their own."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, FastAPI, Form, Header, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool

from clearing.collection import store
from clearing.collection.charges import Charge, fold
from clearing.collection.collector import Collector
from clearing.collection.opening import open_collector, provider_secret
from clearing.collection.provider import EVENTS_PATH, MAX_BODY, Notice, check_signature, webhook_key
from clearing.collection.words import WORDS
from fare_engine.errors import CollectionError
from fare_engine.pages.base import HERE, environment, language_of, page
from fare_engine.pages.names import LANGUAGES, Names
from fare_engine.store import travellers
from fare_engine.store.travellers import Account

logger = logging.getLogger(__name__)
templates = environment(HERE.parents[1] / "clearing" / "collection" / "templates")
PROBLEM = "application/problem+json"
TURN_SECONDS = 1.0
SHOWN = 30
STATUS = {
    "malformed": 400,
    "bad_signature": 401,
    "stale": 401,
    "not_logged_in": 401,
    "no_key": 400,
    "too_large": 413,
    "different_content": 409,
    "undecided": 409,
    "no_rules": 404,
    "no_provider": 503,
}
TITLES = {
    "malformed": "The body is not what it should be",
    "bad_signature": "The signature does not hold",
    "stale": "The signature is too old, or of a time to come",
    "not_logged_in": "A card's number and PIN are needed",
    "no_key": "An Idempotency-Key is needed",
    "too_large": "The body is larger than allowed",
    "different_content": "The same key or id came with another content",
    "undecided": "A charge is waiting for the provider",
    "no_rules": "Nothing is collected in this city",
    "no_provider": "Nobody can be charged at present",
}


class TopUpIn(BaseModel):
    """A rider's top-up, in minor units."""

    model_config = ConfigDict(extra="forbid", strict=True)
    amount: int = Field(gt=0, lt=1 << 53)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Do collection's jobs while the application runs, where it does jobs at all."""
    service = app.state.service
    collector = collector_of(app)
    working = collector is not None and collector.provider is not None and service.works
    task = asyncio.create_task(_work(collector, service.clock)) if collector is not None and working else None
    yield
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


router = APIRouter(lifespan=_lifespan)


async def _work(collector: Collector, clock: Callable[[], int]) -> None:
    while True:
        await run_in_threadpool(_turn, collector, clock())
        await asyncio.sleep(TURN_SECONDS)


def _turn(collector: Collector, now: int) -> None:
    try:
        collector.run_turn(now)
    except Exception:  # one account's or the database's: the next turn tries again
        logger.exception("a turn of collection failed")


def collector_of(app: FastAPI) -> Collector | None:
    """The running service's collection, opened when it is first asked for; None in a city without."""
    if not hasattr(app.state, "collector"):
        service = app.state.service
        settings = service.settings
        app.state.collector = open_collector(
            service.database, service.tariff, settings.tariff, settings.data, settings.provider_url, service.clock
        )
    found: Collector | None = app.state.collector
    return found


# ---- the provider


@router.post(EVENTS_PATH)
async def provider_event(
    request: Request,
    timestamp: Annotated[str, Header(alias="Motthe-Timestamp", max_length=32)] = "",
    signature: Annotated[str, Header(alias="Motthe-Signature", max_length=128)] = "",
) -> Response:
    """One event of the provider. 200: it is taken, or was before."""

    def work(body: bytes) -> dict[str, object]:
        collector, service = _collector(request), request.app.state.service
        now = service.clock()
        key = webhook_key(provider_secret(service.settings.data))
        check_signature(key, timestamp, signature, request.url.path, body, now)
        return {"new": collector.take(msgspec.json.decode(body, type=Notice).as_event(now), now)}

    return await _answered(request, work)


# ---- riders: the API


@router.post("/v1/card/top-ups")
async def post_top_up(
    request: Request, key: Annotated[str | None, Header(alias="Idempotency-Key", max_length=100)] = None
) -> Response:
    """Top up the card of who is logged in, once for a key; the answer says what became of the charge."""

    def work(body: bytes) -> dict[str, object]:
        asked = TopUpIn.model_validate_json(body)
        account = _account(request)
        if account is None:
            raise CollectionError("not_logged_in", "no card is logged in")
        if not key:
            raise CollectionError("no_key", "the header Idempotency-Key is missing")
        collector = _asking(request)
        charge = collector.top_up(account.account_id, asked.amount, key, request.app.state.service.clock())
        with collector.database.read() as connection:
            after = travellers.find_accounts(connection, [account.account_id])[account.account_id]
        return {"charge_id": charge.charge_id, "state": charge.state, "amount": charge.amount, "balance": after.balance}

    return await _answered(request, work)


async def _answered(request: Request, work: Callable[[bytes], dict[str, object]]) -> Response:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY:
            return _problem(CollectionError("too_large", f"more than {MAX_BODY} bytes"))
    try:
        return JSONResponse(await run_in_threadpool(work, bytes(body)))
    except CollectionError as error:
        return _problem(error)
    except (msgspec.DecodeError, UnicodeDecodeError, ValidationError) as error:
        return _problem(CollectionError("malformed", " ".join(str(error).split())[:300]))


def _problem(error: CollectionError) -> JSONResponse:
    """RFC 9457."""
    status = STATUS.get(error.cause, 422)
    problem = {
        "type": f"urn:motthe:problem:{error.cause}",
        "title": TITLES.get(error.cause, error.cause),
        "status": status,
        "detail": error.detail,
        "cause": error.cause,
    }
    return JSONResponse(problem, status, media_type=PROBLEM)


# ---- riders: the page


@router.get("/card/pay", response_class=HTMLResponse)
def pay(request: Request, charge: str = "") -> Response:
    """Balance or debt, top-up, and what was charged."""
    return _page(request, said_of=charge)


@router.post("/card/pay/top-up", response_class=HTMLResponse)
def pay_top_up(request: Request, amount: Annotated[int, Form()], key: Annotated[str, Form(max_length=100)]) -> Response:
    """Top up the rider's own card, once for the form that was sent."""
    return _done(request, lambda collector, account, now: collector.top_up(account.account_id, amount, key, now))


@router.post("/card/pay/debt", response_class=HTMLResponse)
def pay_debt(request: Request, key: Annotated[str, Form(max_length=100)]) -> Response:
    """Pay all that the rider owes, once for the form that was sent."""
    return _done(request, lambda collector, account, now: collector.pay_debt(account.account_id, key, now))


@router.post("/card/pay/auto", response_class=HTMLResponse)
def set_auto(
    request: Request, below: Annotated[int, Form()], amount: Annotated[int, Form()], on: Annotated[int, Form()] = 1
) -> Response:
    """Top the card up by itself from now on, or no more."""
    wanted = (below, amount) if on else (None, None)
    return _done(request, lambda collector, account, _: collector.set_auto(account.account_id, *wanted))


def _done(request: Request, work: Callable[[Collector, Account, int], Charge | None]) -> Response:
    """Do what a form asks of the account that is logged in, and show the page again."""
    account = _account(request)
    if account is None:
        return RedirectResponse("/card", status_code=303)
    try:
        found = work(_asking(request), account, request.app.state.service.clock())
    except CollectionError as error:
        return _page(request, cause=error.cause)
    return RedirectResponse("/card/pay" + (f"?charge={found.charge_id}" if found is not None else ""), status_code=303)


def _page(request: Request, cause: str = "", said_of: str = "") -> Response:
    account, collector = _account(request), collector_of(request.app)
    if account is None or collector is None:
        return RedirectResponse("/card", status_code=303)
    language = language_of(request)
    words = {key: pair[LANGUAGES.index(language)] for key, pair in WORDS.items()}
    with collector.database.read() as connection:
        source = store.find_source(connection, account.account_id)
        given_up = sum(loss.amount for loss in store.write_offs_of(connection, account.account_id))
        denied = bool(store.blocks_of(connection, account.account_id))
        mine = store.charges_of(connection, account.account_id)[-SHOWN:]
        shown = [_shown(connection, charge, words) for charge in reversed(mine)]
    values = {
        "w": words,
        "names": Names(collector.tariff, language),
        "account": account,
        "owed": max(-account.balance, 0) + given_up,
        "given_up": given_up,
        "denied": denied,
        "source": source,
        "limits": collector.rules.top_up,
        "key": secrets.token_hex(16),
        "charges": shown,
        "error": words.get(f"error_{cause}", words["error_amount"]) if cause else None,
        "said": next((charge["state"] for charge in shown if charge["id"] == said_of), None),
    }
    return page(request, templates, "pay.html", values, 409 if cause else 200)


def _shown(connection: Any, charge: Charge, words: dict[str, str]) -> dict[str, Any]:
    done = fold(charge, store.refunds_of_charge(connection, charge.charge_id), store.events_of(connection, charge.charge_id))
    return {
        "id": charge.charge_id,
        "date": charge.service_date,
        "what": words[f"purpose_{charge.purpose}"],
        "amount": charge.amount,
        "state": words[f"state_{charge.state}"],
        "back": -sum(effect.taken for effect in done.effects if effect.kind != "captured"),
    }


def _account(request: Request) -> Account | None:
    """Who is logged in, or None."""
    account_id = request.session.get("account")
    if account_id is None:
        return None
    with request.app.state.service.database.read() as connection:
        return travellers.find_accounts(connection, [account_id]).get(account_id)


def _collector(request: Request) -> Collector:
    found = collector_of(request.app)
    if found is None:
        raise CollectionError("no_rules", "there is no collection.toml")
    return found


def _asking(request: Request) -> Collector:
    """Collection that can ask a provider."""
    found = _collector(request)
    if found.provider is None:
        raise CollectionError("no_provider", "MOTTHE_PROVIDER_URL names no provider")
    return found
