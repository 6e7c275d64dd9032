"""The demo as a visitor runs it: a day that is the same to the byte, its close, its late taps, its audit and what it finds."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fare_engine.answers import BatchAnswer
from fare_engine.application import Application
from fare_engine.commands import open_store
from fare_engine.ids import DeviceId, RouteId
from fare_engine.receipt import Receipt
from fare_engine.service_day import parse_instant
from fare_engine.tap_format import Decision, TapEvent, TapKind, encode_tap, genesis_head, header_for, seal
from tests.demos import DAY, PlayedDemo, motthe, statements
from tests.integration.desk import check_books, issue, terminal_token

NEXT_DAY = "2026-03-03"


def everything(data: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table of a store."""
    with sqlite3.connect(data / "motthe.db") as connection:
        tables = [name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")]
        found = {name: sorted(connection.execute(f'select * from "{name}"'), key=repr) for name in tables}
    connection.close()
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ---- one seed is one day


def test_the_demo_proves_its_day(demo: PlayedDemo) -> None:
    assert demo.exit_code == 0, demo.output
    assert "Traceback" not in demo.output
    said = " ".join(demo.output.split())
    assert re.search(rf"PROOF {DAY}: charged [^:]* net positions sum to 0;", said)
    assert re.search(r"AUDIT: [\d,]+ recorded taps [^:]*: 0 differences", said)
    assert re.search(r"TAPS: .* 0 waiting, .* 0 answered differently", said)


def test_the_same_seed_gives_the_same_statements_to_the_byte(demo: PlayedDemo, same_demo: PlayedDemo) -> None:
    assert same_demo.exit_code == 0, same_demo.output
    assert len(demo.statements()) > 10
    assert demo.statements() == same_demo.statements()


def test_the_same_seed_gives_the_same_books(demo: PlayedDemo, same_demo: PlayedDemo) -> None:
    for table in ("accounts", "tokens", "settlements", "pool_shares", "quarantine"):
        assert everything(demo.data)[table] == everything(same_demo.data)[table], table
    for table in ("lines", "postings"):  # all but the number by which the database stores a row
        rows, same = (sorted(tuple(map(str, row[1:])) for row in everything(found.data)[table]) for found in (demo, same_demo))
        assert rows == same, table


def test_another_seed_gives_another_day(demo: PlayedDemo, other_demo: PlayedDemo) -> None:
    assert other_demo.exit_code == 0, other_demo.output
    assert demo.statements()["positions.csv"] != other_demo.statements()["positions.csv"]


def test_the_statements_are_those_of_the_books_and_add_up(demo: PlayedDemo) -> None:
    published = everything(demo.data)["statements"]
    assert {name: content for _, name, content, *_ in published} == demo.statements()
    proof = json.loads(demo.statements()["proof.json"])
    assert proof["charged"] + proof["borne"] + proof["products"] == proof["settled"] > 0
    assert proof["net_sum"] == 0
    positions = list(csv.DictReader(demo.statements()["positions.csv"].decode().splitlines()))
    assert sum(int(row["net"]) for row in positions) == 0
    for row in positions:
        name = f"{row['party_id']}.csv"
        if name not in demo.statements():
            continue
        own = list(csv.DictReader(demo.statements()[name].decode().splitlines()))
        totals = {found["what"]: int(found["amount"]) for found in own if found["section"] == "total"}
        rows_of_money = [int(found["amount"]) for found in own if found["section"] in ("legs", "late", "shared")]
        assert sum(rows_of_money) == totals["settled"] == int(row["settled"]), name
        assert totals["net"] == int(row["net"]), name


def test_the_books_of_the_demo_hold_together(demo: PlayedDemo, tmp_path: Path) -> None:
    opened = open_store(demo.copy(tmp_path / "demo"))
    check_books(opened.database)
    opened.database.dispose()


# ---- the close, again and late


def test_closing_a_closed_day_changes_nothing(demo: PlayedDemo, tmp_path: Path) -> None:
    data = demo.copy(tmp_path / "demo")
    before, published = everything(data), files(data / "statements")
    done = motthe("clear", DAY, "--data", f"{data}")
    assert done.returncode == 0, done.stderr
    assert "closed before; the same bytes" in done.stdout
    assert files(data / "statements") == published
    assert everything(data) == before


def late_board(data: Path, seed: int, clock: str) -> None:
    """A bus tap of the closed day that comes in the next morning, of a card that is issued for it."""
    opened = open_store(data)
    issue(opened.database, opened.server_key, "late rider")
    device, at = DeviceId("V-1-1"), parse_instant(f"{DAY}T{clock}:00+07:00")
    epoch = b"\xff" * 8
    event = TapEvent(
        device_id=device,
        epoch=epoch,
        sequence=1,
        kind=TapKind.BOARD,
        token=terminal_token("late rider"),
        token_key_version=1,
        medium="emv",
        route_id=RouteId("1"),
        device_time=at,
        decision=Decision.ADMITTED_ALONE,
    )
    taps = [encode_tap(event)]
    previous = genesis_head(device, epoch, None)
    header = header_for(device_id=device, epoch=epoch, first_sequence=1, previous_head=previous, taps=taps, sent_at=at)
    key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"{seed}/{device}".encode()).digest())
    receipt = Receipt(opened.database, Application(opened.tariff, opened.server_key))
    (answer,) = receipt.accept_group([seal(key, header, taps)], parse_instant(f"{NEXT_DAY}T08:00:00+07:00"))
    assert isinstance(answer, BatchAnswer), answer
    assert answer.answers[0].result == "ACCEPTED"
    opened.database.dispose()


def test_a_tap_after_the_close_stands_in_the_next_days_statement_and_names_its_day(demo: PlayedDemo, tmp_path: Path) -> None:
    data = demo.copy(tmp_path / "demo")
    late_board(data, demo.seed, "18:00")
    done = motthe("clear", NEXT_DAY, "--data", f"{data}")
    assert done.returncode == 0, done.stderr
    late = [
        row
        for name, content in statements(data, NEXT_DAY).items()
        if name.startswith(("OP-", "AU-")) and name.endswith(".csv") and "devices" not in name
        for row in csv.DictReader(content.decode().splitlines())
        if row["section"] == "late"
    ]
    assert [(row["service_date"], row["what"], row["count"], row["amount"]) for row in late] == [(DAY, "list_fare", "1", "6000")]
    assert statements(data) == demo.statements(), "what was published stays as it was"
    proof = json.loads(statements(data, NEXT_DAY)["proof.json"])
    assert proof["charged"] == 6000
    audited = motthe("audit", NEXT_DAY, "--data", f"{data}")
    assert audited.returncode == 0, audited.stdout


# ---- the audit


def test_the_audit_of_an_honest_store_finds_nothing(demo: PlayedDemo, tmp_path: Path) -> None:
    data = demo.copy(tmp_path / "demo")
    before = everything(data)
    done = motthe("audit", DAY, "--data", f"{data}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith(": 0 differences")
    assert everything(data) == before, "an audit writes nothing"


@pytest.mark.parametrize("column", ["amount", "funded"])
def test_one_dong_that_was_changed_is_found_and_its_leg_is_named(demo: PlayedDemo, tmp_path: Path, column: str) -> None:
    data = demo.copy(tmp_path / "demo")
    with sqlite3.connect(data / "motthe.db") as connection:
        transaction, leg = connection.execute(
            f"select transaction_id, leg_id from lines where kind in ('list_fare', 'discount') and {column} != 0 "
            "order by transaction_id limit 1"
        ).fetchone()
        connection.execute(f"update lines set {column} = {column} + 1 where transaction_id = ?", (transaction,))
    connection.close()
    done = motthe("audit", DAY, "--data", f"{data}")
    assert done.returncode == 1
    assert f"CHANGED closes {DAY}" in done.stdout, "the day's seal is broken"
    named = [line for line in done.stdout.splitlines() if line.startswith("traveller ")]
    assert len(named) == 1
    assert leg in named[0]
    assert ": 1 differences\nheld until decided: " in done.stdout


# ---- where the demo may not go


def test_a_folder_that_is_no_demos_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    done = motthe("demo", "--no-serve", "--seed", "7", "--riders", "50", "--port", "0", "--data", f"{tmp_path}")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert str(tmp_path) in done.stderr
    assert "Traceback" not in done.stderr
    assert files(tmp_path) == {"thesis.txt": b"years of work"}


def test_a_command_on_a_folder_without_a_store_says_so_and_makes_none(tmp_path: Path) -> None:
    done = motthe("clear", DAY, "--data", f"{tmp_path / 'nowhere'}")
    assert done.returncode == 1
    assert "there is no store" in done.stderr
    assert not (tmp_path / "nowhere").exists()


def test_a_date_that_is_none_is_an_error_of_the_command_line(tmp_path: Path) -> None:
    done = motthe("clear", "2026-02-30", "--data", f"{tmp_path}")
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert files(tmp_path) == {}
