"""The web application: `create_app` builds everything; nothing connects when a module is imported."""

from __future__ import annotations

import asyncio
import gc
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError
from starlette.middleware.sessions import SessionMiddleware

from fare_engine import jobs
from fare_engine.application import Application
from fare_engine.receipt import Receipt
from fare_engine.service.signals import Shaper, Signals
from fare_engine.service.tap_lane import TapLane, TapsFirst
from fare_engine.settings import Settings, secret_file
from fare_engine.store import receipts
from fare_engine.store.database import Database
from fare_engine.tariff.compile import CompiledTariff, load_compiled

logger = logging.getLogger(__name__)
Clock = Callable[[], int]
WORKER_SECONDS = 1.0
ASK_SECONDS = 1.0
CHECKPOINT_SECONDS = 0.5
PUBLISHED = "published"
MESSAGES_A_SECOND = 50
"""A device that sends more messages than this in a second is told to come back later."""


@dataclass(slots=True)
class Service:
    """What a running service consists of; routes find it as `request.app.state.service`."""

    settings: Settings
    database: Database
    tariff: CompiledTariff
    application: Application
    receipt: Receipt
    lane: TapLane
    clock: Clock
    server_key: bytes
    signals: Signals
    works: bool = True
    """Whether this process does the jobs, too; where several serve, one of its own may (`motthe worker`)."""


def system_clock() -> int:
    """Now, in milliseconds UTC."""
    return time.time_ns() // 1_000_000


def open_service(settings: Settings, clock: Clock = system_clock) -> Service:
    """Load the tariff, open the database, make what is missing."""
    settings.data.mkdir(parents=True, exist_ok=True)
    tariff = load_compiled(settings.tariff, settings.adopt)
    database = Database(settings.url, settings.at_rest_key)
    database.create()
    key = settings.server_key
    application = Application(tariff, key)
    receipt = Receipt(database, application)
    signals = Signals(settings.redis_url)
    receipt.shaper = Shaper(signals, MESSAGES_A_SECOND)
    receipt.published.refresh()
    jobs.use_what_waits(database, application, clock())
    return Service(settings, database, tariff, application, receipt, TapLane(receipt, clock), clock, key, signals)


def create_app(service: Service, routers: tuple[APIRouter, ...] = ()) -> FastAPI:
    """The application over an open service, with the pages that other packages bring."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        gc.collect()
        gc.freeze()  # what is loaded by now lives as long as the process: keep collections short
        gc.set_threshold(20_000, 20, 50)  # taps leave hardly any cycles: look for them less often
        tasks = [asyncio.create_task(work) for work in (service.signals.run(), _ask(service), _checkpoint(service))]
        tasks += [asyncio.create_task(_work(service))] if service.works else []
        yield
        await service.lane.drain()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        service.database.dispose()

    app = TapsFirst(service.lane, title="Một Thẻ", version="0.1.0", lifespan=lifespan)
    app.state.service = service
    app.add_middleware(
        SessionMiddleware,
        secret_key=secret_file(service.settings.data / "keys" / "session.key").hex(),
        session_cookie="motthe",
        max_age=8 * 3600,
        same_site="strict",
        https_only=False,
    )
    app.include_router(api)
    for router in routers:
        app.include_router(router)
    return app


async def _work(service: Service) -> None:
    """Let time pass for travellers for whom something is due, and try failed folds again, a part at a time so that no tap
    waits long."""
    turns = jobs.Jobs(service.database, service.application)
    while True:
        try:
            done = turns.run_turn(service.clock())
        except SQLAlchemyError as error:  # the database is away or busy for long; the next turn tries again
            logger.warning("the worker's turn failed: %s", error)
            done = 0
        except Exception:  # what it was must be mended, but time goes on for everybody else
            logger.exception("the worker's turn failed")
            done = 0
        await asyncio.sleep(0.01 if done else WORKER_SECONDS)


async def _checkpoint(service: Service) -> None:
    """Keep SQLite's log short in a thread of its own: a commit that had to do it would keep a hundred taps waiting."""
    while True:
        await asyncio.sleep(CHECKPOINT_SECONDS)
        try:
            await asyncio.to_thread(service.database.checkpoint)
        except sqlite3.Error as error:  # somebody else holds the file; the next turn tries again
            logger.warning("the log could not be checkpointed: %s", error)


async def _ask(service: Service) -> None:
    """Every second, and when another process says so: what is the newest deny list, the newest rules?"""
    changed = asyncio.Event()
    service.signals.listen(PUBLISHED, lambda _: changed.set())
    while True:
        try:
            if service.receipt.published.refresh():
                service.receipt.published.wake()
        except Exception as error:
            logger.warning("what is newest could not be asked: %s", error)
        with suppress(TimeoutError):
            await asyncio.wait_for(changed.wait(), ASK_SECONDS)
        changed.clear()


api = APIRouter()


def get_service(request: Request) -> Service:
    """The running service of a request."""
    found: Service = request.app.state.service
    return found


@api.get("/healthz")
def healthz(request: Request) -> JSONResponse:
    """Alive, and the database answers."""
    service = get_service(request)
    with service.database.read() as connection:
        connection.exec_driver_sql("SELECT 1")
    return JSONResponse({"status": "ok", "server_time": service.clock()})


@api.get("/v1/streams/{device_id}/{epoch}")
def stream_state(request: Request, device_id: str, epoch: str) -> JSONResponse:
    """How far one epoch of a device is acknowledged: what a terminal or a load test compares with its own outbox."""
    service = get_service(request)
    with service.database.read() as connection:
        stream = receipts.find_streams(connection, [(device_id, epoch)]).get((device_id, epoch))
        if stream is None:
            raise HTTPException(404, f"no stream {device_id}/{epoch}")
        held = receipts.count_held(connection, device_id, epoch)
    return JSONResponse(
        {
            "device_id": device_id,
            "epoch": epoch,
            "acknowledged_through": stream.acknowledged_through,
            "head": stream.head.hex(),
            "taps_held": held,
        }
    )
