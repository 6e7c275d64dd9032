"""Terminals that tap as fast as they are answered, and what must be true of a store whatever was killed meanwhile."""

from __future__ import annotations

import hashlib
import json
import os
import random
import threading
import time
import urllib.request
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from clearing.audit import audit_store
from fare_engine.commands import Opened
from fare_engine.ids import DeviceId, RouteId
from fare_engine.store import receipts
from fare_engine.tap_format import TapKind, reopen_message, terminal_token
from tests.integration.desk import check_books, rows
from validators.outbox import Outbox
from validators.terminal import Presented, Terminal, TerminalConfig
from validators.uplink import Backoff, HttpUplink

FLUSH_S = 60
"""How long a driver tries at its end to get rid of what waits."""


def now() -> int:
    return time.time_ns() // 1_000_000


class Driver(threading.Thread):
    """One terminal that taps as fast as it is answered until it is told to stop, and then sends what waits."""

    def __init__(self, number: int, city: dict[str, Any], folder: Path, url: str) -> None:
        super().__init__()
        self.number, self.city, self.folder, self.url = number, city, folder, url
        self.riders = city["riders"]
        self.stop = threading.Event()
        self.acknowledged: dict[str, int] = {}
        self.written: dict[str, list[bytes]] = {}
        self.waiting = self.online = self.alone = 0
        self.stopped: str | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self.error = error
            raise

    def _run(self) -> None:
        device_id = DeviceId(f"L{self.number}")
        key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"{self.city['seed']}/{device_id}".encode()).digest())
        route = RouteId(self.city["routes"][self.number % len(self.city["routes"])])
        config = TerminalConfig(
            device_id=device_id, key=key, kinds=frozenset({TapKind.BOARD}), route_id=route, online_ms=2000, double_tap_ms=1
        )
        chance = random.Random(self.number)
        outbox = Outbox(self.folder / f"{device_id}.db", device_id)
        backoff = Backoff(chance.random, first_s=0.05, ceiling_s=0.2)
        with closing(outbox), closing(HttpUplink(self.url)) as uplink:
            terminal = Terminal(config, outbox, uplink, random_bytes=os.urandom, backoff=backoff)
            while not self.stop.is_set():
                rider = f"{chance.randrange(self.riders)}".encode()
                token = terminal_token(bytes.fromhex(self.city["domain_key"]), rider)
                result = terminal.tap(Presented(kind=TapKind.BOARD, token=token, medium="emv"), now())
                self.online += result.answer is not None
                self.alone += result.answer is None
                terminal.flush(now(), most_batches=1)
                time.sleep(0.01)
            deadline = time.monotonic() + FLUSH_S
            settled = 0
            while settled < 2 and not terminal.stopped and time.monotonic() < deadline:
                report = terminal.flush(now(), heartbeat=True)  # the server may want old taps again
                settled = settled + 1 if report.batches and not report.pending and terminal.next_sending(now()) is None else 0
                time.sleep(0.05)
            self.stopped = terminal.stopped
            for epoch in outbox.list_epochs():
                self.acknowledged[epoch.epoch.hex()] = epoch.acknowledged_through
                self.written[epoch.epoch.hex()] = outbox.list_taps(epoch.epoch, 1, 10**6)
                self.waiting += epoch.pending


def stream(url: str, device: str, epoch: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/v1/streams/{device}/{epoch}", timeout=30) as response:
        found: dict[str, Any] = json.loads(response.read())
    return found


def check_drivers(drivers: list[Driver]) -> None:
    """No driver failed, and nothing waits any more."""
    assert [driver.error for driver in drivers] == [None] * len(drivers)
    assert [(driver.waiting, driver.stopped) for driver in drivers] == [(0, None)] * len(drivers)


def check_store(opened: Opened, drivers: list[Driver]) -> None:
    """Every written tap stands in exactly one message; the books hold together and the auditor finds the same."""
    held: Counter[tuple[str, str, int, bytes]] = Counter()
    with opened.database.read() as connection:
        for stored in receipts.all_batches(connection):
            message = reopen_message(stored.message)
            for sequence in range(stored.first_sequence, stored.last_sequence + 1):
                held[stored.device_id, stored.epoch, sequence, message.taps[sequence - message.header.first_sequence]] += 1
        report = audit_store(connection, opened.tariff_folder, opened.adopted, opened.tariff, opened.server_key, now() + 60_000)
    written = Counter(
        (f"L{driver.number}", epoch, sequence, tap)
        for driver in drivers
        for epoch, taps in driver.written.items()
        for sequence, tap in enumerate(taps, start=1)
    )
    assert held == written
    assert report.differences == ()
    assert report.taps == held.total()
    assert rows(opened.database, "select * from quarantine") == []
    assert rows(opened.database, "select * from travellers where dirty_since is not null") == []
    if opened.database.is_sqlite:
        assert rows(opened.database, "pragma integrity_check") == [("ok",)]
    check_books(opened.database)
    opened.database.dispose()
