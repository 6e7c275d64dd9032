"""How a simulation steers the service it runs against: a clock that it sets, and what visitors ask to break.

These routes exist in the demo's service and nowhere else. They listen to whoever holds the demo's key."""

from __future__ import annotations

import hmac
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated

import msgspec
from fastapi import APIRouter, Header, HTTPException, Request
from fastapi.responses import RedirectResponse

from fare_engine.settings import secret_file

BREAKS = ("outage", "lost_card")


class VirtualClock:
    """A clock that stands still until it is set; milliseconds UTC."""

    def __init__(self, now: int) -> None:
        self.now = now

    def __call__(self) -> int:
        """The instant it shows."""
        return self.now


class SetClock(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a clock call."""

    now: int


def end_with_parent() -> None:
    """End this process when standard input does: the demo's service must not outlive the demo, however that ends."""

    def wait() -> None:
        sys.stdin.buffer.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def control_key(data: Path) -> str:
    """The key that the demo's player and its service share."""
    return secret_file(data / "keys" / "demo.key").hex()


def control_routes(clock: VirtualClock, key: str) -> APIRouter:
    """The demo's own routes."""
    router = APIRouter(prefix="/demo")
    asked: list[str] = []

    @router.post("/clock")
    async def set_clock(request: Request, authorization: Annotated[str, Header()] = "") -> dict[str, list[str]]:
        """Set the clock; the answer says what visitors asked to break since the last call."""
        if not hmac.compare_digest(authorization, f"Bearer {key}"):
            raise HTTPException(403, "the demo's key is needed")
        clock.now = msgspec.json.decode(await request.body(), type=SetClock).now
        found, asked[:] = list(asked), []
        return {"breaks": found}

    @router.post("/break/{what}")
    def break_something(what: str) -> RedirectResponse:
        """A visitor's wish: the next minute of the simulated day grants it."""
        if what not in BREAKS:
            raise HTTPException(404, f"{what!r} cannot be broken; these can: {', '.join(BREAKS)}")
        if len(asked) < 20:
            asked.append(what)
        return RedirectResponse("/", status_code=303)

    return router
