"""The tap lane: POST /v1/taps as a raw ASGI application in front of the FastAPI app's routes.

Messages that wait together are committed together: the lane hands what has arrived to receipt in one transaction, and each
is answered after the commit. A lone message goes on the event loop's next turn; where several come at once, the lane waits a
few milliseconds for more, because a commit costs as much as several taps. What waits is bounded; beyond it, 503."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from fare_engine import answers
from fare_engine.answers import BatchAnswer
from fare_engine.errors import EnvelopeError
from fare_engine.receipt import Receipt
from fare_engine.service.problems import MEDIA_TYPE, body_of, status_of
from fare_engine.tap_format import MAX_MESSAGE_BYTES

logger = logging.getLogger(__name__)

MAX_WAITING = 2000
MAX_GROUP = 64
GATHER_SECONDS = 0.01
KEPT_LATENCIES = 20_000


TAPS_PATH = "/v1/taps"


class TapLaneFirst:
    """Middleware that hands taps to their lane before anything else looks at the request: sessions are not for terminals."""

    def __init__(self, app: ASGIApp, lane: TapLane) -> None:
        self.app = app
        self.lane = lane

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Taps to the lane, all else on."""
        is_tap = scope["type"] == "http" and scope["path"] == TAPS_PATH
        await (self.lane if is_tap else self.app)(scope, receive, send)


@dataclass(slots=True)
class LaneFigures:
    """What the lane has done since it started; latencies are whole microseconds from the message's last byte to its answer."""

    messages: int
    taps: int
    refused: int
    latencies: deque[int]


class TapLane:
    """An ASGI application that takes messages and answers them."""

    def __init__(self, receipt: Receipt, clock: Callable[[], int]) -> None:
        self.receipt = receipt
        self.clock = clock
        self.figures = LaneFigures(0, 0, 0, deque(maxlen=KEPT_LATENCIES))
        self._waiting: list[tuple[bytes, asyncio.Future[BatchAnswer | EnvelopeError]]] = []
        self._timer: asyncio.Handle | None = None
        self._crowded = False
        """Whether the last commit held more than one message."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["method"] != "POST":
            error = EnvelopeError("wrong_method", f"{scope['method']}, only POST is taken")
            await _respond(send, status_of(error), body_of(error), [(b"allow", b"POST")], MEDIA_TYPE)
            return
        try:
            message = await _body(receive)
        except ConnectionResetError:
            return
        started = time.perf_counter_ns()
        outcome = self._too_large() if message is None else await self.submit(message)
        self.figures.latencies.append((time.perf_counter_ns() - started) // 1000)
        if isinstance(outcome, EnvelopeError):
            self.figures.refused += 1
            extra = [(b"retry-after", b"2")] if outcome.cause in ("overloaded", "unavailable") else []
            await _respond(send, status_of(outcome), body_of(outcome), extra, MEDIA_TYPE)
            return
        self.figures.messages += 1
        self.figures.taps += len(outcome.answers)
        await _respond(send, 200, answers.encode(outcome), [])

    async def submit(self, message: bytes) -> BatchAnswer | EnvelopeError:
        """Wait for the message's commit and give its answer."""
        if len(self._waiting) >= MAX_WAITING:
            return EnvelopeError("overloaded", f"{MAX_WAITING} messages wait already")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[BatchAnswer | EnvelopeError] = loop.create_future()
        self._waiting.append((message, future))
        if self._timer is None:
            self._timer = loop.call_later(GATHER_SECONDS, self._commit) if self._crowded else loop.call_soon(self._commit)
        elif len(self._waiting) == MAX_GROUP:
            self._timer.cancel()
            self._timer = loop.call_soon(self._commit)
        return await future

    def _too_large(self) -> EnvelopeError:
        error = EnvelopeError("too_large", f"more than {MAX_MESSAGE_BYTES} bytes")
        self.receipt.note_refused(error, self.clock())
        return error

    def _commit(self) -> None:
        group, self._waiting = self._waiting[:MAX_GROUP], self._waiting[MAX_GROUP:]
        self._timer = asyncio.get_running_loop().call_soon(self._commit) if self._waiting else None
        self._crowded = len(group) > 1
        try:
            outcomes = self.receipt.accept_group([message for message, _ in group], self.clock())
        except Exception:  # nothing of the group was committed: each of its senders keeps its taps and sends them again
            logger.exception("a group of %d messages could not be committed", len(group))
            outcomes = [EnvelopeError("unavailable", "nothing of this message was taken")] * len(group)
        for (_, future), outcome in zip(group, outcomes, strict=True):
            if not future.done():
                future.set_result(outcome)


async def _body(receive: Receive) -> bytes | None:
    """The request's body; None as soon as it is larger than any message may be. ConnectionResetError if it broke off."""
    parts: list[bytes] = []
    size = 0
    more = True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise ConnectionResetError
        part: bytes = event.get("body", b"")
        size += len(part)
        if size > MAX_MESSAGE_BYTES:
            return None
        parts.append(part)
        more = event.get("more_body", False)
    return b"".join(parts)


async def _respond(
    send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]], media_type: str = "application/json"
) -> None:
    found = [(b"content-type", media_type.encode()), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": found})
    await send({"type": "http.response.body", "body": body})
