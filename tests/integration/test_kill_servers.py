"""Two API processes, a worker, PostgreSQL and Valkey under load, each killed in turn and started again: every acknowledged tap
is there once, and the service is back soon. Also after PostgreSQL was set back to an earlier state, with terminals resending."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fare_engine.commands import open_store
from tests.builders import ROOT
from tests.demos import motthe
from tests.drivers import FLUSH_S, Driver, check_drivers, check_store
from tests.served import free_port, start
from tests.servers import Postgres, Valkey

DEVICES, RIDERS = 6, 30
RECOVERY_S = 30.0


class Stack:
    """The whole service as separate processes, over a folder with its keys."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "store"
        self.postgres, self.valkey = Postgres().start(), Valkey().start()
        self.environment = {"MOTTHE_DATABASE_URL": self.postgres.url(), "MOTTHE_REDIS_URL": self.valkey.url}
        equipped = motthe(
            *("simulate", "load-city", "--data", f"{self.data}", "--devices", f"{DEVICES}", "--riders", f"{RIDERS}"),
            environment=self.environment,
        )
        assert equipped.returncode == 0, equipped.stderr
        self.city: dict[str, Any] = json.loads((self.data / "load-city.json").read_text(encoding="utf-8"))
        self.ports = [free_port(), free_port()]
        self.served = [self._serve(number) for number in range(2)]
        self.worker = self._work()

    def _serve(self, number: int) -> subprocess.Popen[bytes]:
        return start(self.data, self.ports[number], self.environment, "--no-jobs")

    def _work(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "motthe", "worker", "--data", f"{self.data}"]
        return subprocess.Popen(command, cwd=ROOT, env=os.environ | self.environment, stderr=subprocess.DEVNULL)

    def kill_api(self, number: int) -> None:
        """kill -9 of one API process, and another in its place."""
        self.served[number].kill()
        self.served[number].wait()
        self.served[number] = self._serve(number)

    def kill_worker(self) -> None:
        """kill -9 of the worker, and another in its place."""
        self.worker.kill()
        self.worker.wait()
        self.worker = self._work()

    def kill_postgres(self) -> None:
        """kill -9 of PostgreSQL, which then recovers from its log."""
        self.postgres.kill()
        self.postgres.start()

    def kill_valkey(self) -> None:
        """kill -9 of Valkey, which comes back empty."""
        self.valkey.kill()
        self.valkey.start()

    def close(self) -> None:
        """End everything."""
        for process in (*self.served, self.worker):
            process.kill()
            process.wait()
        self.postgres.stop()
        self.valkey.stop()


@contextmanager
def stack(folder: Path) -> Iterator[Stack]:
    """A running stack."""
    found = Stack(folder)
    try:
        yield found
    finally:
        found.close()


def recovery(drivers: list[Driver], since: float) -> float:
    """Seconds until every driver was answered online again."""
    before = [driver.online for driver in drivers]
    while any(driver.online <= count for driver, count in zip(drivers, before, strict=True)):
        assert time.monotonic() - since < RECOVERY_S, "some terminal is not answered any more"
        assert all(driver.is_alive() for driver in drivers)
        time.sleep(0.02)
    return time.monotonic() - since


def kill_under_load(folder: Path, kills: int, seed: int) -> list[float]:
    """Kill one process after the other; how long each took until all terminals were answered again."""
    chance = random.Random(seed)
    found: list[float] = []
    with stack(folder) as running:
        drivers = [
            Driver(number, running.city, folder, f"http://127.0.0.1:{running.ports[number % 2]}") for number in range(DEVICES)
        ]
        deeds: list[Callable[[], None]] = [
            lambda: running.kill_api(0),
            lambda: running.kill_api(1),
            running.kill_worker,
            running.kill_postgres,
            running.kill_valkey,
        ]
        try:
            for driver in drivers:
                driver.start()
            for number in range(kills):
                time.sleep(0.2 + chance.random())
                begun = time.monotonic()
                deeds[number % len(deeds)]()
                found.append(recovery(drivers, begun))
        finally:
            for driver in drivers:
                driver.stop.set()
            for driver in drivers:
                if driver.ident is not None:
                    driver.join(FLUSH_S + 20)
        check_drivers(drivers)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in running.environment.items():
                patch.setenv(name, value)
            check_store(open_store(running.data), drivers)
    return found


@pytest.mark.long(32)
def test_every_acknowledged_tap_is_there_once_whatever_process_is_killed(tmp_path: Path) -> None:
    assert max(kill_under_load(tmp_path, 5, seed=1)) < RECOVERY_S


@pytest.mark.prove
@pytest.mark.timeout(1800)
def test_every_acknowledged_tap_is_there_once_after_fifty_kills(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    took = kill_under_load(tmp_path, 50, seed=int(os.environ.get("MOTTHE_SEED", "1")))
    record_property("longest_recovery_s", round(max(took), 1))
    assert max(took) < RECOVERY_S


@pytest.mark.long(32)
def test_after_postgresql_was_set_back_the_terminals_send_again_what_it_lost(tmp_path: Path) -> None:
    """A backup is restored: what was acknowledged since is asked for again by its place in each stream."""
    with stack(tmp_path) as running:
        drivers = [
            Driver(number, running.city, tmp_path, f"http://127.0.0.1:{running.ports[number % 2]}") for number in range(DEVICES)
        ]
        try:
            for driver in drivers:
                driver.start()
            time.sleep(1.5)
            running.postgres.kill()
            running.postgres.back_up()
            running.postgres.start()
            recovery(drivers, time.monotonic())
            time.sleep(1.5)
            running.postgres.kill()
            running.postgres.restore()
            running.postgres.start()
            recovery(drivers, time.monotonic())
        finally:
            for driver in drivers:
                driver.stop.set()
            for driver in drivers:
                if driver.ident is not None:
                    driver.join(FLUSH_S + 20)
        check_drivers(drivers)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in running.environment.items():
                patch.setenv(name, value)
            check_store(open_store(running.data), drivers)
