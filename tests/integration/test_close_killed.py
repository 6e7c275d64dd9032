"""The close killed at any step: the next run publishes what this one would have, byte for byte, and pays once."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text

from clearing import seals
from fare_engine.commands import open_store
from fare_engine.store import registry
from tests.builders import NETWORK, SERVER_KEY, Town, row, write_city

TUESDAY, WEDNESDAY = "2026-03-03", "2026-03-04"
JOURNEYS = """[[agreements]]
agreement_id = "journeys"
name = { vi = "x", en = "x" }
covers = "legs"
method = "boardings"
scope = "journey"
valid_from = 2026-01-01
"""
RULES = (
    row("caps", rule_id="day", period="service_day", amount=12_000, bearer="operators"),
    row("products", product_id="DAY", kind="pass", price=10_000, networks=("metro", "bus"), days=1),
    row(
        "joining_rules",
        rule_id="joint",
        from_networks=("bus",),
        to_networks=("metro",),
        window_minutes=120,
        window_from="entry",
        off_second=2000,
        bearer="CITY",
    ),
)
A_DAY = """07:00 board 10 card=ana
           07:20 enter A card=ana
           07:40 leave C card=ana
           08:00 board 11 card=ben
           08:10 board 10 cash card=paper
           09:00 board F card=ben"""

RUN = """
import os, signal, sys
from pathlib import Path
from sqlalchemy import event
from clearing.commands import clear_date, write_documents
from fare_engine.commands import open_store

at = int(sys.argv[2])
passed = 0

def step(*_):
    global passed
    passed += 1
    if passed == at:
        os.kill(os.getpid(), signal.SIGKILL)

def opened_file(name, args):
    if name == "open" and "statements" in str(args[0]) and args[1] and "w" in str(args[1]):
        step()

opened = open_store(Path(sys.argv[1]))
event.listen(opened.database.engine, "before_cursor_execute", step)
event.listen(opened.database.engine, "commit", step)
sys.addaudithook(opened_file)
found = clear_date(opened, sys.argv[3])
write_documents(opened.data, found)
step()
print(passed)
"""


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a closed day, a day to be closed, and something that came late."""
    folder = tmp_path_factory.mktemp("killed")
    head = NETWORK["clearing.toml"].index("[[agreements]]")
    clearing = NETWORK["clearing.toml"][:head] + JOURNEYS + NETWORK["clearing.toml"][head:]
    found = Town(folder / "data", write_city(folder / "city", *RULES, files={"clearing.toml": clearing}))
    (folder / "data" / "keys" / "server.key").write_bytes(SERVER_KEY)
    with found.database.write() as connection:
        registry.save_settings(connection, {"tariff": str(folder / "city")})
    found.issue("ana", "ben")
    found.take(A_DAY)
    found.close(TUESDAY)
    found.take(f"{WEDNESDAY} 06:00 buy DAY card=ben\n" + A_DAY.replace("07:00", f"{WEDNESDAY} 07:00", 1))
    found.take(f"{TUESDAY} 09:30 board 11 card=ana", now=f"{WEDNESDAY} 12:00")
    found.database.dispose()
    return folder


def run(data: Path, at: int) -> subprocess.CompletedProcess[str]:
    """The close in a process of its own, killed at its `at`-th step; 0: not at all."""
    return subprocess.run([sys.executable, "-c", RUN, str(data), str(at), WEDNESDAY], capture_output=True, text=True, check=False)


def what_stands(data: Path) -> tuple[object, ...]:
    """What the close made: its rows and files. Numbers that the database gives are left out."""
    database = open_store(data).database
    with database.read() as connection:
        rows = {
            table: sorted(repr(tuple(found)) for found in connection.execute(text(f"select {columns} from {table}")))
            for table, columns in {
                "payments": "*",
                "settlements": "*",
                "pool_shares": "*",
                "statements": "*",
                "closing_balances": "*",
                "open_items": "*",
                "postings": "transaction_id, number, code, debit, credit, amount, accounting_date",
            }.items()
        }
        assert list(seals.check(connection)) == []
    database.dispose()
    files = {path.name: path.read_bytes() for path in sorted((data / "statements" / WEDNESDAY).iterdir())}
    return rows, files


def killed_at(before: Path, folder: Path, steps: list[int]) -> int:
    """Kill the close at each of these steps, run it again, and compare; how many there are in all."""
    whole = folder / "whole"
    shutil.copytree(before / "data", whole)
    ran = run(whole, 0)
    assert ran.returncode == 0, ran.stderr
    expected, all_steps = what_stands(whole), int(ran.stdout)
    for at in steps or range(1, all_steps + 1):
        data = folder / f"killed at {at}"
        shutil.copytree(before / "data", data)
        assert run(data, at).returncode == -signal.SIGKILL, at
        again = run(data, 0)
        assert again.returncode == 0, again.stderr
        assert what_stands(data) == expected, at
        shutil.rmtree(data)
    return all_steps


@pytest.mark.long(20)
def test_a_close_that_is_killed_goes_on_to_the_same_bytes(before: Path, tmp_path: Path) -> None:
    assert killed_at(before, tmp_path, [2, 30, 55]) >= 56


@pytest.mark.prove
def test_a_close_that_is_killed_at_every_step_goes_on_to_the_same_bytes(before: Path, tmp_path: Path) -> None:
    assert killed_at(before, tmp_path, []) >= 50
