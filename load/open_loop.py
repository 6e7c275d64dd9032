"""Online single taps at a fixed rate, whether the service keeps up or not: the honest tail.

Terminals boot first. Taps are signed beforehand, so that the client costs little; each is sent at its own moment, and its time
counts from that moment, also when the connection before it was slow (no coordinated omission). At the end every stream is asked
how far it is held.

    python load/open_loop.py --url http://127.0.0.1:8000 --city motthe-load/load-city.json --rate 1000 --seconds 20
    python load/open_loop.py … --rate 0        # as fast as it is answered: what the service can do at most"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import aiohttp
import httptools
import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fare_engine.cose import Signature
from fare_engine.ids import DeviceId, RouteId
from fare_engine.tap_format import (
    Decision,
    TapEvent,
    TapKind,
    encode_tap,
    genesis_head,
    header_for,
    seal,
    terminal_token,
)

CONNECTIONS = 64


class Device:
    """A terminal that writes its stream beforehand: one tap a message."""

    def __init__(self, number: int, city: dict[str, Any]) -> None:
        self.device_id = DeviceId(f"L{number}")
        self.key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"{city['seed']}/{self.device_id}".encode()).digest())
        self.route = RouteId(city["routes"][number % len(city["routes"])])
        self.epoch = os.urandom(8)
        self.head = genesis_head(self.device_id, self.epoch, None)
        self.sequence = 0

    def boot(self, at: int) -> bytes:
        """The message that announces the stream, as a terminal does when it boots."""
        return self._message([], 1, at)

    def tap(self, token: bytes, at: int) -> bytes:
        """The message with the next tap."""
        self.sequence += 1
        event = TapEvent(
            device_id=self.device_id,
            epoch=self.epoch,
            sequence=self.sequence,
            kind=TapKind.BOARD,
            token=token,
            token_key_version=1,
            medium="emv",
            route_id=self.route,
            device_time=at,
            decision=Decision.ASKED_ONLINE,
        )
        return self._message([encode_tap(event)], self.sequence, at)

    def _message(self, taps: list[bytes], first_sequence: int, at: int) -> bytes:
        header = header_for(
            device_id=self.device_id,
            epoch=self.epoch,
            first_sequence=first_sequence,
            previous_head=self.head,
            taps=taps,
            sent_at=at,
        )
        self.head = header.head
        return seal(self.key, header, taps)


def messages(city: dict[str, Any], count: int, seed: int) -> tuple[list[Device], list[bytes], list[bytes]]:
    """The terminals, the messages with which they boot, and those of so many taps, spread evenly: no terminal is asked twice at
    once, and riders keep to their own bus: a card that is everywhere at once would raise an alarm with every tap."""
    chance = random.Random(seed)
    devices = [Device(number, city) for number in range(city["devices"])]
    domain_key = bytes.fromhex(city["domain_key"])
    now = time.time_ns() // 1_000_000
    boots = [device.boot(now) for device in devices[:count]]
    found = []
    for number in range(count):
        device = number % len(devices)
        rider = device + len(devices) * chance.randrange(max(1, city["riders"] // len(devices)))
        token = terminal_token(domain_key, f"{rider}".encode())
        found.append(devices[device].tap(token, now + number // 10))
    return devices, boots, found


class Line(asyncio.Protocol):
    """A connection that asks one thing at a time. A client with all that a library does beside would take more of its core than
    the service takes of the other, and would measure itself."""

    def __init__(self, answered: Callable[[Line, str, bytes, float], None]) -> None:
        self.is_lost = False
        self._answered = answered
        self._due: float | None = None
        self._body = b""
        self._parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The line stands."""
        self._transport = cast(asyncio.Transport, transport)

    def ask(self, request: bytes, due: float) -> None:
        """Send a request that should have been sent at an instant."""
        self._due, self._body = due, b""
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Some of an answer."""
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        """Some of an answer's body."""
        self._body += body

    def on_message_complete(self) -> None:
        """A whole answer."""
        self._say(str(self._parser.get_status_code()))

    def connection_lost(self, exc: Exception | None) -> None:
        """The service hung up."""
        self.is_lost = True
        self._say(type(exc or ConnectionError()).__name__)

    def close(self) -> None:
        """No more is asked."""
        self._transport.close()

    def _say(self, status: str) -> None:
        if self._due is not None:
            due, self._due = self._due, None
            self._answered(self, status, self._body, time.perf_counter() - due)


class Sender:
    """Sends requests over as many lines as it takes, and keeps what was answered."""

    def __init__(self, url: str, requests: list[bytes]) -> None:
        self._address = urlsplit(url)
        self._requests = requests
        self._waiting = iter(requests)
        self._lines: list[Line] = []
        self._free: list[Line] = []
        self._done = asyncio.Event()
        self.latencies: list[float] = []
        """Seconds from each one's moment."""
        self.answers: list[tuple[str, bytes]] = []

    async def at_rate(self, rate: float) -> None:
        """Each at its own moment."""
        begun = time.perf_counter()
        for number, request in enumerate(self._requests):
            due = begun + number / rate
            wait = due - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            line = next(self._standing(), None) or await self._line(self._free.append)
            line.ask(request, due)
        await self._end()

    async def at_once(self) -> None:
        """On some lines, each as soon as the one before it is answered."""
        for line in [await self._line(self._ask_next) for _ in range(CONNECTIONS)]:
            self._ask_next(line)
        await self._end()

    async def _line(self, answered: Callable[[Line], None]) -> Line:
        def said(line: Line, status: str, body: bytes, latency: float) -> None:
            self.latencies.append(latency)
            self.answers.append((status, body))
            if not line.is_lost:
                answered(line)
            if len(self.answers) == len(self._requests) or all(line.is_lost for line in self._lines):
                self._done.set()

        host, port = self._address.hostname or "127.0.0.1", self._address.port or 80
        _, line = await asyncio.get_running_loop().create_connection(lambda: Line(said), host, port)
        self._lines.append(line)
        return line

    def _standing(self) -> Iterator[Line]:
        """Free lines that the service did not give up meanwhile."""
        while self._free:
            line = self._free.pop()
            if not line.is_lost:
                yield line

    def _ask_next(self, line: Line) -> None:
        request = next(self._waiting, None)
        if request is not None:
            line.ask(request, time.perf_counter())

    async def _end(self) -> None:
        await self._done.wait()
        for line in self._lines:
            line.close()


def request_of(url: str, message: bytes) -> bytes:
    """An HTTP request with one message."""
    head = f"POST /v1/taps HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nContent-Type: application/cose\r\n"
    return f"{head}Content-Length: {len(message)}\r\n\r\n".encode() + message


async def run(url: str, boots: list[bytes], taps: list[bytes], rate: float) -> tuple[list[float], Counter[str], float]:
    """Boot the terminals, and then send all taps; latencies in seconds from each tap's moment, what was answered, and how long
    it took."""
    booting, sender = (Sender(url, [request_of(url, message) for message in some]) for some in (boots, taps))
    await booting.at_once()
    begun = time.perf_counter()
    await (sender.at_rate(rate) if rate else sender.at_once())
    seconds = time.perf_counter() - begun
    outcomes = Counter(status if status != "200" else _result(body) for status, body in sender.answers)
    outcomes.update(f"boot {status}" for status, _ in booting.answers if status != "200")
    return sender.latencies, outcomes, seconds


def verifications() -> float:
    """How many Ed25519 signatures this core verifies in a second: the limit of any service that checks one with each tap. The
    best of some rounds."""
    key = Ed25519PrivateKey.generate()
    signature, public = Signature(b"", key.sign(bytes(200)), bytes(200)), key.public_key()
    best = 0.0
    for _ in range(5):
        begun = time.perf_counter()
        for _ in range(500):
            signature.holds(public)
        best = max(best, 500 / (time.perf_counter() - begun))
    return best


def _result(body: bytes) -> str:
    return str(json.loads(body)["answers"][0]["result"])


async def held(url: str, devices: list[Device]) -> int:
    """How many streams are not held exactly as they were written."""
    wrong = 0
    async with aiohttp.ClientSession() as session:
        for device in devices:
            if device.sequence:
                async with session.get(f"{url}/v1/streams/{device.device_id}/{device.epoch.hex()}") as response:
                    found = await response.json()
                    wrong += (found.get("acknowledged_through"), found.get("taps_held")) != (device.sequence, device.sequence)
    return wrong


def main() -> int:
    """Run, print, and check; the exit code is 1 if a tap was refused or is not held once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--city", type=Path, default=Path("motthe-load/load-city.json"))
    parser.add_argument("--rate", type=float, default=1000, help="taps a second; 0: as fast as they are answered")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--taps", type=int, default=20_000, help="with --rate 0: how many")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    city = json.loads(options.city.read_text(encoding="utf-8"))
    count = int(options.rate * options.seconds) or options.taps
    devices, boots, taps = messages(city, count, options.seed)
    limit = verifications()
    loop = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    with loop:
        latencies, outcomes, seconds = loop.run(run(options.url, boots, taps, options.rate))
        wrong = loop.run(held(options.url, devices))
    latencies.sort()
    result = {
        "offered_per_second": options.rate or None,
        "done_per_second": round(len(latencies) / seconds),
        "verifications_per_second": round(limit),
        "ratio_to_verify": round(len(latencies) / seconds / limit, 3),
        "taps": count,
        "outcomes": dict(outcomes),
        "p50_ms": round(latencies[len(latencies) // 2] * 1000, 1),
        "p95_ms": round(latencies[int(len(latencies) * 0.95)] * 1000, 1),
        "p99_ms": round(latencies[int(len(latencies) * 0.99)] * 1000, 1),
        "max_ms": round(latencies[-1] * 1000, 1),
        "streams_not_held_once": wrong,
    }
    sys.stdout.write(json.dumps(result) + "\n")
    return 1 if wrong or set(outcomes) - {"ACCEPTED"} else 0


if __name__ == "__main__":
    sys.exit(main())
