"""A service date of full size: closed, exported and audited within the time and memory that a night has."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean

import pytest
from sqlalchemy import text

from fare_engine.store.database import Database, sqlite_url
from fare_engine.store.schema import metadata
from simulators.full_day import make_day
from tests.servers import Postgres

DAY = "2026-03-02"
LEGS = int(os.environ.get("MOTTHE_FULL_LEGS", "1000000"))


def motthe(data: Path, *words: str) -> float:
    """A command in a process of its own; how many seconds it took."""
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "motthe", *words, "--data", str(data)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return time.monotonic() - begun


@pytest.mark.prove
def test_a_day_of_a_million_legs_is_closed_exported_and_audited(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    data = tmp_path / "day"
    make_day(data, DAY, LEGS, 7, slot_hours=3.0)
    record_property("advance_s", round(motthe(data, "advance", "2026-03-03T03:00:00+07:00"), 1))
    record_property("clear_s", round(motthe(data, "clear", DAY, "--quiet"), 1))
    record_property("clear_again_s", round(motthe(data, "clear", DAY, "--quiet"), 1))
    record_property("payments_s", round(motthe(data, "payments", DAY, "--out", str(tmp_path / "pain.xml")), 1))
    record_property("tides_s", round(motthe(data, "export", "tides", DAY, str(tmp_path / "tides")), 1))
    record_property("audit_s", round(motthe(data, "audit", DAY), 1))
    record_property("most_memory_mib", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)


NAMES = {
    "lines": ("transaction_id", "traveller_id", "leg_id"),
    "legs": ("movement_id", "traveller_id", "leg_id", "journey"),
    "postings": ("transaction_id",),
}
"""What must be another one where a date is booked once more."""


def multiply(database: Database, times: int) -> None:
    """Book everything so many times, for other travellers and legs. Hashes stay as they are: a close goes by them unlooked."""
    with database.engine.begin() as connection:
        for table, named in NAMES.items():
            columns = [column.name for column in metadata.tables[table].c if column.name != "row_number"]
            last = connection.execute(text(f"select max(row_number) from {table}")).scalar_one()
            for number in range(1, times):
                values = ", ".join(f"{name} || '~{number}'" if name in named else name for name in columns)
                connection.execute(
                    text(f"insert into {table} ({', '.join(columns)}) select {values} from {table} where row_number <= {last}")
                )


def deviations(seconds: Mapping[int, float]) -> dict[int, float]:
    """How far each time is from the straight line that fits them best, as a part of that line's value."""
    middle_x, middle_y = mean(seconds), mean(seconds.values())
    slope = sum((x - middle_x) * (y - middle_y) for x, y in seconds.items()) / sum((x - middle_x) ** 2 for x in seconds)
    return {x: y / (middle_y + slope * (x - middle_x)) - 1 for x, y in seconds.items()}


@pytest.mark.prove
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_close_takes_as_long_as_its_date_is_large(
    kind: str, tmp_path: Path, record_property: Callable[[str, object], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each size twice, up and down again, and the better time of each: what else the machine does only ever adds."""
    server = Postgres(durable=False).start() if kind == "postgresql" else None
    seconds: dict[int, float] = {}
    try:
        make_day(tmp_path / "base", DAY, LEGS // 4, 7, server.url() if server else None, slot_hours=3.0)
        if server:
            monkeypatch.setenv("MOTTHE_DATABASE_URL", server.url())
        motthe(tmp_path / "base", "advance", "2026-03-03T03:00:00+07:00")
        for times in (1, 2, 4, 8, 8, 4, 2, 1):
            data = tmp_path / "day"
            shutil.copytree(tmp_path / "base", data)
            if server:
                server.execute("create database day template postgres")
                monkeypatch.setenv("MOTTHE_DATABASE_URL", server.url("day"))
            database = Database(server.url("day") if server else sqlite_url(data / "motthe.db"), bytes(32))
            multiply(database, times)
            database.dispose()
            os.sync()  # what was just written is on the disk before time is taken
            took = motthe(data, "clear", DAY, "--quiet", "--despite", "legs stand several times")
            seconds[times * LEGS // 4] = min(took, seconds.get(times * LEGS // 4, took))
            shutil.rmtree(data)
            if server:
                server.execute("drop database day with (force)")
    finally:
        if server:
            server.stop()
    record_property("seconds", {size: round(took, 1) for size, took in seconds.items()})
    found = deviations(seconds)
    record_property("from_a_line", {size: round(off, 3) for size, off in found.items()})
    assert max(map(abs, found.values())) <= 0.15


def test_a_small_day_made_the_same_way_is_closed_and_audited(tmp_path: Path) -> None:
    data = tmp_path / "day"
    assert make_day(data, DAY, 400, 7, slot_hours=6.0) > 400
    motthe(data, "clear", DAY, "--quiet")
    motthe(data, "audit", DAY)
