"""Thousands of real terminals against a running service; see load/README.md.

Each Locust user is one terminal: its taps are signed, chained and stored in its outbox before they are sent. When the test
stops, every terminal asks the service how far its streams are held: each acknowledged tap must be there exactly once, or the
exit code is 1. Locust waits for answers, so its percentiles hide stalls (load/README.md)."""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import gevent
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from locust import constant_pacing, events, task
from locust.contrib.fasthttp import FastHttpUser

from fare_engine.ids import DeviceId, RouteId
from fare_engine.tap_format import TapKind, terminal_token
from validators.outbox import Outbox
from validators.terminal import Asking, Presented, Terminal, TerminalConfig
from validators.uplink import CONTENT_TYPE, TAPS_PATH, Backoff, Reply, Unreachable, read_reply

CITY: dict[str, Any] = json.loads(
    Path(os.environ.get("MOTTHE_LOAD_CITY", "motthe-load/load-city.json")).read_text(encoding="utf-8")
)
BACKLOG = float(os.environ.get("MOTTHE_LOAD_BACKLOG", "0.05"))
"""The share of taps that a terminal stores instead of asking, and forwards in a batch later."""

_numbers = iter(range(CITY["devices"]))
_terminals: list[Terminal] = []
_problems: list[str] = []


def now() -> int:
    """Milliseconds UTC."""
    return time.time_ns() // 1_000_000


class NoWire:
    """Locust carries the messages."""

    def send(self, message: bytes, timeout_s: float) -> Reply | Unreachable:
        """Never used."""
        return Unreachable(detail="Locust carries the messages", elapsed_ms=0)


class TerminalUser(FastHttpUser):
    """One terminal on one bus: a tap every five seconds."""

    wait_time = constant_pacing(5.0)
    connection_timeout = 10.0
    network_timeout = 10.0

    def on_start(self) -> None:
        """Boot: a new outbox and a new epoch."""
        self.number = number = next(_numbers, None)
        if number is None:
            raise RuntimeError(
                f"only {CITY['devices']} terminals are enrolled; motthe simulate load-city --devices N enrols more"
            )
        device_id = DeviceId(f"L{number}")
        key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"{CITY['seed']}/{device_id}".encode()).digest())
        route = RouteId(CITY["routes"][number % len(CITY["routes"])])
        config = TerminalConfig(device_id=device_id, key=key, kinds=frozenset({TapKind.BOARD}), route_id=route, online_ms=10_000)
        outbox = Outbox(":memory:", device_id)
        self.terminal = Terminal(config, outbox, NoWire(), random_bytes=os.urandom, backoff=Backoff(random.random, ceiling_s=5.0))
        _terminals.append(self.terminal)

    @task
    def tap(self) -> None:
        """A rider's card; most taps ask the service, some are stored and go in a batch."""
        rider = self.number + CITY["devices"] * random.randrange(max(1, CITY["riders"] // CITY["devices"]))  # keeps to his bus
        token = terminal_token(bytes.fromhex(CITY["domain_key"]), f"{rider}".encode())
        asked = self.terminal.present(Presented(kind=TapKind.BOARD, token=token, medium="emv"), now())
        if isinstance(asked, Asking) and random.random() >= BACKLOG:
            heard = self._post(asked.sending.message, "tap online")
            self.terminal.conclude(asked, heard)
        else:
            self._flush()

    def on_stop(self) -> None:
        """Send what waits before the check."""
        self._flush()

    def _flush(self) -> None:
        while (sending := self.terminal.next_sending(now())) is not None:
            heard = self._post(sending.message, "batch")
            self.terminal.hear(sending, heard)
            if isinstance(heard, Unreachable):
                break

    def _post(self, message: bytes, name: str) -> Reply | Unreachable:
        begun = time.perf_counter()
        with self.client.post(
            TAPS_PATH, data=message, headers={"Content-Type": CONTENT_TYPE}, name=name, catch_response=True
        ) as response:
            elapsed_ms = int((time.perf_counter() - begun) * 1000)
            if response.status_code == 0:
                return Unreachable(detail="no answer", elapsed_ms=elapsed_ms)
            heard = read_reply(response.status_code, response.content or b"", elapsed_ms, response.headers.get("Retry-After"))
            if response.status_code == 200:
                response.success()
            return heard


@events.test_stopping.add_listener
def _settle(environment: Any, **_: Any) -> None:
    gevent.sleep(0.5)


@events.quitting.add_listener
def check(environment: Any, **_: Any) -> None:
    """Every acknowledged tap is held exactly once, by the service's own word."""
    acknowledged = waiting = 0
    for terminal in _terminals:
        for epoch in terminal.outbox.list_epochs():
            acknowledged += epoch.acknowledged_through
            waiting += epoch.pending
            if not epoch.acknowledged_through:
                continue
            url = f"{environment.host}/v1/streams/{terminal.config.device_id}/{epoch.epoch.hex()}"
            with urllib.request.urlopen(url, timeout=30) as response:
                held = json.loads(response.read())
            if held["taps_held"] != held["acknowledged_through"] or held["acknowledged_through"] < epoch.acknowledged_through:
                _problems.append(f"{url}: acknowledged {epoch.acknowledged_through}, held {held}")
    said = [
        f"CHECK: {len(_terminals)} terminals, {acknowledged} taps acknowledged, "
        f"{waiting} not (counted and kept by their terminals), {len(_problems)} streams that do not agree",
        *_problems[:20],
    ]
    sys.stdout.write("\n".join(said) + "\n")
    if _problems or not acknowledged:
        environment.process_exit_code = 1
