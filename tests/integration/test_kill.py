"""The service is killed in the middle of its work, again and again: what it acknowledged is held, once, and booked right."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from fare_engine.commands import open_store
from tests.demos import motthe
from tests.drivers import FLUSH_S, Driver, check_drivers, check_store, stream
from tests.served import free_port, start

DEVICES, RIDERS, KILLS = 6, 30, 3


@pytest.mark.long(50)
@pytest.mark.parametrize("how", ["killed", "told to end"])
def test_what_was_acknowledged_is_held_once_and_booked_right_although_the_service_was(tmp_path: Path, how: str) -> None:
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
            if how == "killed":
                process.kill()
                process.wait()
            else:
                process.terminate()
                assert process.wait(30) in (0, -15), "it finishes what it has begun and ends"
            process = start(data, port)
        time.sleep(0.5)
        for driver in drivers:
            driver.stop.set()
        for driver in drivers:
            driver.join(FLUSH_S + 20)
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
    check_drivers(drivers)
    assert sum(driver.online for driver in drivers) > 50, "the service was up for a while"
    assert sum(driver.alone for driver in drivers) > 5, "and the kills were felt"
    for driver in drivers:
        for epoch, acknowledged in driver.acknowledged.items():
            if acknowledged:
                found = held[f"L{driver.number}", epoch]
                assert found["acknowledged_through"] == found["taps_held"] == acknowledged
    check_store(open_store(data), drivers)
