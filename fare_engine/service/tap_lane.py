"""The tap lane: POST /v1/taps as a raw ASGI application in front of the FastAPI app's routes.

Messages that wait together are committed together: the lane hands what has arrived to receipt in one transaction, and each
is answered after the commit. A commit costs as much as several taps, so the more there is to do, the longer the lane waits for
more to share it with: a lone message goes on the event loop's next turn, a few wait some turns, and only where the last commit
was half full do they wait milliseconds. Somebody stands before a live tap, nobody before a backlog: live messages go first, and
after an outage backlogs use what time is left, but never none. What waits is bounded in number and in bytes; whoever comes
beyond that is told when to come again (429)."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import Receive, Scope, Send

from fare_engine import answers
from fare_engine.answers import BatchAnswer
from fare_engine.errors import EnvelopeError
from fare_engine.receipt import Receipt
from fare_engine.service.problems import MEDIA_TYPE, body_of, status_of
from fare_engine.tap_format import MAX_MESSAGE_BYTES

logger = logging.getLogger(__name__)

MAX_WAITING = 2000
"""Live messages that wait."""
MAX_BACKLOGS = 100
"""Backlogs that wait."""
MAX_BYTES = 64 << 20
"""Bytes of all messages that are being read or wait, as they have come in; live messages are always read."""
BODY_SECONDS = 30
"""A message that takes longer to come in is given up: its sender has it and sends it again."""
LIVE_BYTES = 4096
"""A message up to this long is live: twenty taps or fewer."""
MAX_GROUP = 64
"""Live messages of one commit."""
TURNS_FOR_LIVE = 8
"""So many commits of live messages go before a backlog that waits."""
GATHER_SECONDS = 0.01
GATHERS_FROM = MAX_GROUP // 2
"""After a commit of so many messages the next waits `GATHER_SECONDS`, to be fuller. Below, waiting would be all that a rider
gets of it."""
TURNS = 64
"""So many turns of the event loop lie between the commits of a crowd: who is at the door comes in meanwhile. uvloop accepts one
connection a turn: without them a fleet that comes back after an outage would stand there, a terminal a commit."""
KEPT_LATENCIES = 20_000


TAPS_PATH = "/v1/taps"


class TapsFirst(FastAPI):
    """An application that hands taps to their lane before anything else looks at the request: neither sessions nor routes are
    for terminals."""

    def __init__(self, lane: TapLane, **options: Any) -> None:
        super().__init__(**options)
        self.lane = lane

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Taps to the lane, all else on."""
        if scope["type"] == "http" and scope["path"] == TAPS_PATH:
            await self.lane(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


Waiting = deque[tuple[bytes, asyncio.Future[BatchAnswer | EnvelopeError]]]


@dataclass(slots=True)
class LaneFigures:
    """What the lane has done since it started; latencies are whole microseconds from the message's first byte to its answer."""

    messages: int
    taps: int
    refused: int
    turned_back: int
    latencies: deque[int]


class TapLane:
    """An ASGI application that takes messages and answers them."""

    def __init__(self, receipt: Receipt, clock: Callable[[], int]) -> None:
        self.receipt = receipt
        self.clock = clock
        self.figures = LaneFigures(0, 0, 0, 0, deque(maxlen=KEPT_LATENCIES))
        self._live: Waiting = deque()
        self._backlogs: Waiting = deque()
        self._bytes = 0
        self._turns = 0
        """Commits of live messages since the last backlog."""
        self._timer: asyncio.Handle | None = None
        self._last = 0
        """Messages of the last commit."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["method"] != "POST":
            error = EnvelopeError("wrong_method", f"{scope['method']}, only POST is taken")
            await _respond(send, status_of(error), body_of(error), [(b"allow", b"POST")], MEDIA_TYPE)
            return
        started = time.perf_counter_ns()
        try:
            outcome = await self._take(receive)
        except ConnectionResetError:
            return
        self.figures.latencies.append((time.perf_counter_ns() - started) // 1000)
        if isinstance(outcome, EnvelopeError):
            await self._refuse(send, outcome)
            return
        self.figures.messages += 1
        self.figures.taps += len(outcome.answers)
        await _respond(send, 200, answers.encode(outcome), [])

    async def _take(self, receive: Receive) -> BatchAnswer | EnvelopeError:
        message = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                await self._read(receive, message)
            return await self.submit(bytes(message))
        except TimeoutError:
            return EnvelopeError("too_slow", f"{len(message)} bytes of the message came in within {BODY_SECONDS} s")
        except EnvelopeError as error:
            if error.cause == "too_large":
                self._note(error)
            return error
        finally:
            self._bytes -= len(message)

    async def _read(self, receive: Receive, message: bytearray) -> None:
        """The request's body into `message`. EnvelopeError as soon as it is larger than any message may be, or too much waits;
        ConnectionResetError if it broke off."""
        more = True
        while more:
            event = await receive()
            if event["type"] == "http.disconnect":
                raise ConnectionResetError
            part: bytes = event.get("body", b"")
            message += part
            self._bytes += len(part)
            if len(message) > MAX_MESSAGE_BYTES:
                raise EnvelopeError("too_large", f"more than {MAX_MESSAGE_BYTES} bytes")
            if self._bytes > MAX_BYTES and len(message) > LIVE_BYTES:
                raise EnvelopeError("overloaded", f"{self._bytes} bytes wait already")
            more = event.get("more_body", False)

    def _note(self, error: EnvelopeError) -> None:
        try:
            self.receipt.note_refused(error, self.clock())
        except SQLAlchemyError:
            logger.exception("a refusal could not be noted")

    async def _refuse(self, send: Send, error: EnvelopeError) -> None:
        self.figures.refused += 1
        extra = []
        if error.cause in ("overloaded", "unavailable", "too_fast"):
            self.figures.turned_back += 1
            extra = [(b"retry-after", str(self._retry_after_s()).encode())]
        await _respond(send, status_of(error), body_of(error), extra, MEDIA_TYPE)

    async def submit(self, message: bytes) -> BatchAnswer | EnvelopeError:
        """Wait for the message's commit and give its answer."""
        lane, most = (self._live, MAX_WAITING) if len(message) <= LIVE_BYTES else (self._backlogs, MAX_BACKLOGS)
        if len(lane) >= most:
            return EnvelopeError("overloaded", f"{most} messages wait already")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[BatchAnswer | EnvelopeError] = loop.create_future()
        lane.append((message, future))
        if self._timer is None:
            if self._last >= GATHERS_FROM:
                self._timer = loop.call_later(GATHER_SECONDS, self._commit)
            else:
                self._turn(TURNS if self._last > 1 else 0)
        elif len(self._live) == MAX_GROUP:
            self._timer.cancel()
            self._turn(TURNS)
        return await future

    async def drain(self) -> None:
        """Until nothing waits: before the service stops."""
        while self._live or self._backlogs:
            await asyncio.sleep(0.01)

    def _retry_after_s(self) -> int:
        """Later the more is waiting, and not everybody at once."""
        return 1 + (len(self._live) + 20 * len(self._backlogs)) // 500 + random.randrange(3)

    def _next_group(self) -> list[tuple[bytes, asyncio.Future[BatchAnswer | EnvelopeError]]]:
        """Live messages, as many as go into one commit; or one backlog if it is its turn."""
        if self._backlogs and (not self._live or self._turns >= TURNS_FOR_LIVE):
            self._turns = 0
            return [self._backlogs.popleft()]
        self._turns += 1
        return [self._live.popleft() for _ in range(min(len(self._live), MAX_GROUP))]

    def _turn(self, left: int) -> None:
        """Commit after so many turns of the event loop."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_soon(self._turn, left - 1) if left else loop.call_soon(self._commit)

    def _commit(self) -> None:
        group = self._next_group()
        self._timer = None
        if self._live or self._backlogs:
            self._turn(TURNS)
        self._last = len(group)
        try:
            outcomes = self.receipt.accept_group([message for message, _ in group], self.clock())
        except Exception:  # nothing of the group was committed: each of its senders keeps its taps and sends them again
            logger.exception("a group of %d messages could not be committed", len(group))
            outcomes = [EnvelopeError("unavailable", "nothing of this message was taken")] * len(group)
        for (_, future), outcome in zip(group, outcomes, strict=True):
            if not future.done():
                future.set_result(outcome)


async def _respond(
    send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]], media_type: str = "application/json"
) -> None:
    found = [(b"content-type", media_type.encode()), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": found})
    await send({"type": "http.response.body", "body": body})
