"""Online single taps at a fixed rate, whether the service keeps up or not: the honest tail.

Taps are signed beforehand, so that the client costs little; each is sent at its own moment, and its time counts from that moment,
also when the connection before it was slow (no coordinated omission). At the end every stream is asked how far it is held.

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
from pathlib import Path
from typing import Any

import aiohttp
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
        tap = encode_tap(event)
        header = header_for(
            device_id=self.device_id,
            epoch=self.epoch,
            first_sequence=self.sequence,
            previous_head=self.head,
            taps=[tap],
            sent_at=at,
        )
        self.head = header.head
        return seal(self.key, header, [tap])


def messages(city: dict[str, Any], count: int, seed: int) -> tuple[list[Device], list[tuple[int, bytes]]]:
    """The terminals, and (terminal, message) of so many taps, spread evenly: no terminal is asked twice at once, and riders keep
    to their own bus: a card that is everywhere at once would raise an alarm with every tap."""
    chance = random.Random(seed)
    devices = [Device(number, city) for number in range(city["devices"])]
    domain_key = bytes.fromhex(city["domain_key"])
    now = time.time_ns() // 1_000_000
    found = []
    for number in range(count):
        device = number % len(devices)
        rider = device + len(devices) * chance.randrange(max(1, city["riders"] // len(devices)))
        token = terminal_token(domain_key, f"{rider}".encode())
        found.append((device, devices[device].tap(token, now + number // 10)))
    return devices, found


async def run(url: str, taps: list[tuple[int, bytes]], rate: float) -> tuple[list[float], Counter[str], float]:
    """Send everything; latencies in seconds from each tap's moment, what was answered, and how long it took."""
    latencies: list[float] = []
    outcomes: Counter[str] = Counter()
    connector = aiohttp.TCPConnector(limit=CONNECTIONS if rate == 0 else 2000)
    async with aiohttp.ClientSession(connector=connector, headers={"Content-Type": "application/cose"}) as session:

        async def send(message: bytes, due: float) -> None:
            try:
                async with session.post(f"{url}/v1/taps", data=message) as response:
                    body = await response.read()
                    outcomes[str(response.status) if response.status != 200 else _result(body)] += 1
            except (aiohttp.ClientError, TimeoutError) as error:
                outcomes[type(error).__name__] += 1
            latencies.append(time.perf_counter() - due)

        begun = time.perf_counter()
        if rate == 0:
            await _closed(taps, send)
        else:
            await _open(taps, send, rate, begun)
        return latencies, outcomes, time.perf_counter() - begun


async def _open(taps: list[tuple[int, bytes]], send: Any, rate: float, begun: float) -> None:
    tasks = []
    for number, (_, message) in enumerate(taps):
        due = begun + number / rate
        wait = due - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(send(message, due)))
    await asyncio.gather(*tasks)


async def _closed(taps: list[tuple[int, bytes]], send: Any) -> None:
    waiting = iter(taps)

    async def line() -> None:
        for _, message in waiting:
            await send(message, time.perf_counter())

    await asyncio.gather(*(line() for _ in range(CONNECTIONS)))


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
    devices, taps = messages(city, count, options.seed)
    limit = verifications()
    loop = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    with loop:
        latencies, outcomes, seconds = loop.run(run(options.url, taps, options.rate))
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
