"""The same day's taps through two API processes on PostgreSQL, twice and out of order, against SQLite in order."""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from contextlib import closing
from pathlib import Path

import pytest

from fare_engine.store.database import Database, sqlite_url
from fare_engine.tap_format import Decision, Outcome, TapKind
from fare_engine.tariff.compile import CompiledTariff
from tests.integration.desk import (
    ADOPTED,
    AT_REST_KEY,
    BEN_THANH,
    SERVER_KEY,
    SUOI_TIEN,
    TAN_CANG,
    Desk,
    Stream,
    check_books,
    equip,
    issue,
    rows,
)
from tests.served import free_port, start
from validators.uplink import Answer, HttpUplink, Problem, Reply

CARDS = [f"rider {number}" for number in range(24)]
STATIONS = (BEN_THANH, TAN_CANG, SUOI_TIEN)
STANDING = """
    select traveller_id, line_id, kind, rule_id, cause, version_id, amount, bearer, funded, operator_id, network_id, service_date
    from lines where generation % 2 = 0 and not exists (
        select 1 from lines later where later.traveller_id = lines.traveller_id
        and later.line_id = lines.line_id and later.generation > lines.generation)"""


def a_day(seed: int) -> list[tuple[int, bytes]]:
    """(when it is sent, message): the day of some riders, each device's taps in messages of a few."""
    chance = random.Random(seed)
    now = time.time_ns() // 1_000_000
    begins = now - 20 * 3_600_000
    streams = {name: Stream(name, 1) for name in ("bus-1", "bus-2", "gate-1", "gate-2")}
    deeds: list[tuple[int, str, TapKind, str, str | None]] = []
    for card in CARDS:
        at = begins + chance.randrange(3_600_000)
        for _ in range(chance.randint(2, 6)):
            at += chance.randrange(600_000, 7_000_000)
            if chance.random() < 0.5:
                deeds.append((at, chance.choice(("bus-1", "bus-2")), TapKind.BOARD, card, None))
                continue
            one, other = chance.sample(STATIONS, 2)
            deeds.append((at, "gate-1", TapKind.ENTRY, card, one))
            if chance.random() < 0.9:
                at += chance.randrange(300_000, 2_400_000)
                deeds.append((at, "gate-2", TapKind.EXIT, card, other))
    found: list[tuple[int, bytes]] = []
    waiting: dict[str, int] = defaultdict(int)
    for at, device, kind, card, stop in sorted(deeds):
        stream = streams[device]
        place = {"route_id": "1"} if stop is None else {"stop_id": stop}
        tap = stream.add(kind, at, card, decision=Decision.ADMITTED_ALONE, **place)
        if chance.random() < 0.05:
            stream.outcome("12:00", tap, Outcome.CANCELLED)
        waiting[device] += 1
        if waiting[device] >= chance.randint(1, 4):
            waiting[device] = 0
            found.append((at, stream.new()))
    return [*found, *((now, stream.new()) for stream in streams.values() if stream.sent < len(stream.taps))]


def send_all(messages: list[bytes], url: str, wrong: list[str]) -> None:
    """Send until every message is taken; one that comes too early is sent again later."""
    deadline = time.monotonic() + 120
    with closing(HttpUplink(url)) as uplink:
        waiting = list(messages)
        while waiting and time.monotonic() < deadline:
            message = waiting.pop(0)
            heard = uplink.send(message, 30.0)
            if isinstance(heard, Reply) and isinstance(heard.content, Answer):
                continue
            if isinstance(heard, Reply) and isinstance(heard.content, Problem):
                if heard.content.cause not in ("gap", "too_fast", "overloaded", "unavailable"):
                    wrong.append(f"{heard.content}")
                    continue
                time.sleep(0.02)
            waiting.append(message)
    if waiting:
        wrong.append(f"{len(waiting)} messages were never taken")


@pytest.mark.parametrize("seed", [1, 2])
def test_taps_sent_twice_and_shuffled_through_two_processes_cost_what_they_cost_in_order(
    tmp_path: Path, empty_postgres: str, hcmc_adopted: CompiledTariff, seed: int
) -> None:
    day = a_day(seed)
    now = time.time_ns() // 1_000_000
    equip(sqlite_url(tmp_path / "in-order.db"))
    desk = Desk(sqlite_url(tmp_path / "in-order.db"), hcmc_adopted)
    desk.issue(*CARDS)
    for _, message in day:
        desk.taken(message, now)

    data = tmp_path / "served"
    (data / "keys").mkdir(parents=True)
    (data / "keys" / "server.key").write_bytes(SERVER_KEY)
    (data / "keys" / "at-rest.key").write_bytes(AT_REST_KEY)
    equip(empty_postgres)
    database = Database(empty_postgres, AT_REST_KEY)
    issue(database, SERVER_KEY, *CARDS)
    environment = {"MOTTHE_DATABASE_URL": empty_postgres, "MOTTHE_ADOPT": f'["{ADOPTED[0]}"]'}
    ports = [free_port(), free_port()]
    processes = [start(data, port, environment) for port in ports]
    wrong: list[str] = []
    try:
        chance = random.Random(seed)
        parcels: list[list[bytes]] = [[] for _ in range(6)]
        for _, message in day:
            for parcel in chance.sample(parcels, 2):
                parcel.append(message)
        for parcel in parcels:
            chance.shuffle(parcel)
        senders = [
            threading.Thread(target=send_all, args=(parcel, f"http://127.0.0.1:{ports[number % 2]}", wrong))
            for number, parcel in enumerate(parcels)
        ]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join(150)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(30)
    assert wrong == []
    assert sorted(map(repr, rows(database, STANDING))) == sorted(map(repr, desk.rows(STANDING)))
    balances = "select account_id, balance from accounts"
    assert sorted(rows(database, balances)) == sorted(desk.rows(balances))
    taps = "select sum(acknowledged_through) from streams"
    assert rows(database, taps) == desk.rows(taps)
    check_books(database)
    database.dispose()
    desk.database.dispose()
