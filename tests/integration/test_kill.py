"""The service is killed in the middle of its work, again and again: what it acknowledged is held, once, and booked right."""

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
from fare_engine.commands import open_store
from fare_engine.ids import DeviceId, RouteId
from fare_engine.store import receipts
from fare_engine.tap_format import TapKind, reopen_message, terminal_token
from tests.demos import motthe
from tests.integration.desk import check_books, rows
from tests.served import free_port, start
from validators.outbox import Outbox
from validators.terminal import Presented, Terminal, TerminalConfig
from validators.uplink import Backoff, HttpUplink

DEVICES, RIDERS, KILLS = 6, 30, 3


def now() -> int:
    return time.time_ns() // 1_000_000


class Driver(threading.Thread):
    """One terminal that taps as fast as it is answered until it is told to stop, and then sends what waits."""

    def __init__(self, number: int, city: dict[str, Any], folder: Path, url: str) -> None:
        super().__init__()
        self.number, self.city, self.folder, self.url = number, city, folder, url
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
                rider = f"{chance.randrange(RIDERS)}".encode()
                token = terminal_token(bytes.fromhex(self.city["domain_key"]), rider)
                result = terminal.tap(Presented(kind=TapKind.BOARD, token=token, medium="emv"), now())
                self.online += result.answer is not None
                self.alone += result.answer is None
                terminal.flush(now(), most_batches=1)
                time.sleep(0.01)
            deadline = time.monotonic() + 20
            while terminal.outbox.list_pending() and not terminal.stopped and time.monotonic() < deadline:
                terminal.flush(now())
                time.sleep(0.05)
            self.stopped = terminal.stopped
            for epoch in outbox.list_epochs():
                self.acknowledged[epoch.epoch.hex()] = epoch.acknowledged_through
                self.written[epoch.epoch.hex()] = outbox.list_taps(epoch.epoch, 1, 10**6)
                self.waiting += epoch.pending


def test_what_was_acknowledged_is_held_once_and_booked_right_although_the_service_was_killed(tmp_path: Path) -> None:
    data = tmp_path / "store"
    equipped = motthe("simulate", "load-city", "--data", f"{data}", "--devices", f"{DEVICES}", "--riders", f"{RIDERS}")
    assert equipped.returncode == 0, equipped.stderr
    city = json.loads((data / "load-city.json").read_text(encoding="utf-8"))
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    drivers = [Driver(number, city, tmp_path, url) for number in range(DEVICES)]
    process = start(data, port)
    try:
        for driver in drivers:
            driver.start()
        for _ in range(KILLS):
            time.sleep(0.8)
            process.kill()
            process.wait()
            process = start(data, port)
        time.sleep(0.5)
        for driver in drivers:
            driver.stop.set()
        for driver in drivers:
            driver.join(40)
        held = {
            (device, epoch): stream(url, device, epoch)
            for driver in drivers
            for device, epoch in ((f"L{driver.number}", epoch) for epoch in driver.acknowledged if driver.acknowledged[epoch])
        }
    finally:
        for driver in drivers:
            driver.stop.set()
        process.kill()
        process.wait()
    assert [driver.error for driver in drivers] == [None] * DEVICES
    assert [(driver.waiting, driver.stopped) for driver in drivers] == [(0, None)] * DEVICES
    assert sum(driver.online for driver in drivers) > 50, "the service was up for a while"
    assert sum(driver.alone for driver in drivers) > 5, "and the kills were felt"
    for driver in drivers:
        for epoch, acknowledged in driver.acknowledged.items():
            if acknowledged:
                found = held[f"L{driver.number}", epoch]
                assert found["acknowledged_through"] == found["taps_held"] == acknowledged
    check_store(data, drivers)


def stream(url: str, device: str, epoch: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/v1/streams/{device}/{epoch}", timeout=30) as response:
        found: dict[str, Any] = json.loads(response.read())
    return found


def check_store(data: Path, drivers: list[Driver]) -> None:
    """Every written tap stands in exactly one message; the books hold together and the auditor finds the same."""
    opened = open_store(data)
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
    assert rows(opened.database, "pragma integrity_check") == [("ok",)]
    check_books(opened.database)
    opened.database.dispose()
