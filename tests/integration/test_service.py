"""The service over HTTP: what a terminal reads there, also when many speak at once and when nobody answers."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from starlette.testclient import TestClient
from starlette.types import Message

from fare_engine.answers import BatchAnswer, TapAnswer
from fare_engine.errors import EnvelopeError
from fare_engine.ids import DeviceId, RouteId, StopId
from fare_engine.pages import live
from fare_engine.service.app import Service, create_app, open_service
from fare_engine.service.tap_lane import MAX_GROUP, MAX_WAITING
from fare_engine.settings import Settings
from fare_engine.store import receipts
from fare_engine.store.database import Database
from fare_engine.tap_format import MAX_MESSAGE_BYTES, TapEvent, TapKind, reopen_message
from tests.builders import HCMC
from tests.integration.desk import (
    ADOPTED,
    BEN_THANH,
    BUS_FARE,
    METRO_LONG,
    METRO_SHORT,
    SERVER_KEY,
    TAN_CANG,
    Stream,
    at,
    check_books,
    issue,
    key_of,
    rows,
    serving,
    terminal_token,
)
from validators.outbox import Outbox
from validators.terminal import Decided, Presented, Terminal, TerminalConfig
from validators.uplink import Backoff, HttpUplink

COSE = {"content-type": "application/cose"}
PROBLEM = "application/problem+json"


@dataclass
class Clock:
    """The service's clock, set by the test."""

    now: int

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock(at("12:00"))


@pytest.fixture
def service(tmp_path: Path, equipped: Path, clock: Clock) -> Iterator[Service]:
    """An open service over a store with four devices and three cards."""
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "server.key").write_bytes(SERVER_KEY)
    shutil.copy(equipped, tmp_path / "motthe.db")
    found = open_service(Settings(data=tmp_path, tariff=HCMC, adopt=ADOPTED), clock)
    yield found
    found.database.dispose()
    gc.unfreeze()


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service), raise_server_exceptions=False) as found:
        yield found


# ---- POST /v1/taps


def test_a_tap_is_answered_as_the_protocol_says(client: TestClient) -> None:
    bus = Stream("bus-1")
    bus.board("11:59")
    heard = client.post("/v1/taps", content=bus.new(), headers=COSE)
    assert (heard.status_code, heard.headers["content-type"]) == (200, "application/json")
    assert heard.json() == {
        "device_id": "bus-1",
        "epoch": bus.epoch.hex(),
        "acknowledged_through": 1,
        "server_time": at("12:00"),
        "deny_list_version": 0,
        "rules_version": 0,
        "wanted": [],
        "answers": [
            {
                "sequence": 1,
                "result": "ACCEPTED",
                "reason": None,
                "decision": "admitted",
                "fare": BUS_FARE,
                "lines": [{"kind": "list_fare", "rule_id": "bus-s5/bus-s5", "amount": BUS_FARE}],
                "caps": [
                    {"rule_id": "day-cap", "spent": BUS_FARE, "amount": 50_000},
                    {"rule_id": "week-cap", "spent": BUS_FARE, "amount": 225_000},
                ],
                "balance": -BUS_FARE,
                "post_paid_total": BUS_FARE,
                "exit_fare": None,
                "provisional": False,
            }
        ],
    }


def test_a_repeat_over_http_says_that_it_was_there(client: TestClient) -> None:
    bus = Stream("bus-1")
    bus.board("11:59")
    first = client.post("/v1/taps", content=bus.message(), headers=COSE).json()
    again = client.post("/v1/taps", content=bus.message(), headers=COSE).json()
    assert again["answers"] == [{**first["answers"][0], "result": "EXISTS"}]


def test_a_gap_is_a_problem_that_names_where_to_go_on(client: TestClient) -> None:
    bus = Stream("bus-1")
    bus.board("11:58")
    bus.board("11:59", "binh")
    heard = client.post("/v1/taps", content=bus.message(2), headers=COSE)
    assert (heard.status_code, heard.headers["content-type"]) == (409, PROBLEM)
    problem = heard.json()
    assert problem["detail"]
    assert problem["title"]
    assert {name: problem[name] for name in ("type", "status", "cause", "resume_from")} == {
        "type": "urn:motthe:problem:gap",
        "status": 409,
        "cause": "gap",
        "resume_from": 1,
    }


@pytest.mark.parametrize(
    ("cause", "status"),
    [("not_cbor", 400), ("unknown_device", 401), ("forked_chain", 409), ("too_large", 413)],
)
def test_every_refusal_is_a_problem_with_its_cause(client: TestClient, cause: str, status: int) -> None:
    bus, other = Stream("bus-1"), Stream("bus-1")
    bus.board("11:58", "anna")
    other.board("11:58", "binh")
    assert client.post("/v1/taps", content=bus.message()).status_code == 200
    message = {
        "not_cbor": b"hello",
        "unknown_device": Stream("stranger").message(),
        "forked_chain": other.message(),
        "too_large": bytes(MAX_MESSAGE_BYTES + 1),
    }[cause]
    heard = client.post("/v1/taps", content=message, headers=COSE)
    assert (heard.status_code, heard.headers["content-type"]) == (status, PROBLEM)
    assert (heard.json()["cause"], heard.json()["status"]) == (cause, status)
    assert "resume_from" not in heard.json()


def test_a_body_at_the_limit_is_read_and_one_byte_more_is_not(client: TestClient) -> None:
    assert client.post("/v1/taps", content=bytes(MAX_MESSAGE_BYTES)).json()["cause"] != "too_large"
    assert client.post("/v1/taps", content=bytes(MAX_MESSAGE_BYTES + 1)).json()["cause"] == "too_large"


def test_a_body_over_the_limit_is_noted_as_every_refusal_is(client: TestClient, service: Service) -> None:
    client.post("/v1/taps", content=bytes(MAX_MESSAGE_BYTES + 1))
    assert rows(service.database, "select cause from refused_messages") == [("too_large",)]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_the_lane_takes_nothing_but_post(client: TestClient, method: str) -> None:
    heard = client.request(method, "/v1/taps")
    assert (heard.status_code, heard.headers["allow"]) == (405, "POST")


def test_a_wrong_method_is_a_problem_too(client: TestClient) -> None:
    assert client.get("/v1/taps").headers["content-type"] == PROBLEM


def test_a_group_that_could_not_be_committed_is_a_problem_too(client: TestClient, service: Service) -> None:
    with service.database.write() as connection:
        connection.exec_driver_sql("drop table quarantine")
    bus = Stream("bus-1")
    bus.board("11:58", "nobody's")
    heard = client.post("/v1/taps", content=bus.message())
    assert (heard.status_code, heard.headers["content-type"]) == (503, PROBLEM)
    assert heard.json()["cause"] == "unavailable"
    assert int(heard.headers["retry-after"]) > 0


def test_nothing_of_a_group_that_could_not_be_committed_is_held(client: TestClient, service: Service) -> None:
    with service.database.write() as connection:
        connection.exec_driver_sql("alter table quarantine rename to elsewhere")
    bus = Stream("bus-1")
    bus.board("11:57", "anna")
    bus.board("11:58", "nobody's")
    assert client.post("/v1/taps", content=bus.message()).status_code >= 500
    assert rows(service.database, "select * from streams") == []
    assert rows(service.database, "select * from lines") == []
    with service.database.write() as connection:
        connection.exec_driver_sql("alter table elsewhere rename to quarantine")
    assert client.post("/v1/taps", content=bus.message()).json()["acknowledged_through"] == 2


# ---- what else is asked


def test_health_says_the_services_time(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok", "server_time": at("12:00")}


def test_a_stream_tells_how_far_it_is_held(client: TestClient) -> None:
    bus = Stream("bus-1")
    for minute in range(3):
        bus.board(f"11:5{minute}")
    client.post("/v1/taps", content=bus.message(1, 2))
    client.post("/v1/taps", content=bus.message(2, 3))
    assert client.get(f"/v1/streams/bus-1/{bus.epoch.hex()}").json() == {
        "device_id": "bus-1",
        "epoch": bus.epoch.hex(),
        "acknowledged_through": 3,
        "head": bus.head(3).hex(),
        "taps_held": 3,
    }
    assert client.get("/v1/streams/bus-1/0000000000000009").status_code == 404
    assert client.get(f"/v1/streams/bus-2/{bus.epoch.hex()}").status_code == 404


def test_the_openapi_document_loads_and_names_what_is_served(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert document["info"]["title"] == "Một Thẻ"
    assert {"/healthz", "/v1/streams/{device_id}/{epoch}"} <= document["paths"].keys()


def test_the_public_page_tells_of_a_tap_only_after_some_minutes(service: Service, clock: Clock) -> None:
    app = create_app(service, (live.router,))
    app.state.live = live.LiveFigures(service)
    service.receipt.listener = app.state.live.listen
    bus = Stream("bus-1")
    bus.board("12:01")
    with TestClient(app) as client:
        clock.now = at("12:01")
        client.post("/v1/taps", content=bus.message())
        shown = []
        for minute in ("12:01", "12:05", "12:06"):
            clock.now = at(minute)
            shown.append('<b id="taps">1</b>' in client.get("/live/figures").text)
    assert shown == [False, False, True]


# ---- many at once


def message_of_one(number: int) -> bytes:
    """A message of its own stream, with one tap of a rider of its own."""
    bus = Stream("bus-1", epoch=number + 1)
    bus.board("11:59", f"rider {number}")
    return bus.message()


def test_messages_that_wait_together_are_committed_together_and_each_hears_of_itself(service: Service) -> None:
    count = MAX_GROUP + 6
    issue(service.database, SERVER_KEY, *(f"rider {number}" for number in range(count)))
    commits: list[list[tuple[TapEvent, TapAnswer]]] = []
    service.receipt.listener = commits.append
    service.receipt.shaper = None  # all of them are one device's

    async def send() -> list[BatchAnswer | EnvelopeError]:
        return await asyncio.gather(*(service.lane.submit(message_of_one(number)) for number in range(count)))

    found = asyncio.run(send())
    assert [len(taps) for taps in commits] == [MAX_GROUP, 6]
    assert [item.epoch for item in found if isinstance(item, BatchAnswer)] == [f"{number + 1:016x}" for number in range(count)]
    assert all(item.answers[0].balance == -BUS_FARE for item in found if isinstance(item, BatchAnswer))
    check_books(service.database)


def test_one_traveller_in_many_messages_of_a_group_is_charged_for_each(service: Service) -> None:
    def message(number: int) -> bytes:
        bus = Stream("bus-1", epoch=number + 1)
        bus.board(f"11:{10 + number}", "anna")
        return bus.message()

    async def send() -> list[BatchAnswer | EnvelopeError]:
        return await asyncio.gather(*(service.lane.submit(message(number)) for number in range(5)))

    assert all(isinstance(item, BatchAnswer) for item in asyncio.run(send()))
    assert rows(service.database, "select balance from accounts where account_id = 'anna'") == [(-5 * BUS_FARE,)]


def test_beyond_what_may_wait_a_sender_is_told_to_come_back(service: Service) -> None:
    async def post(message: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": message, "more_body": False}

        async def send(event: Message) -> None:
            sent.append(event)

        length = str(len(message)).encode()
        await service.lane({"type": "http", "method": "POST", "headers": [(b"content-length", length)]}, receive, send)
        return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]

    async def flood() -> list[tuple[int, dict[bytes, bytes], bytes]]:
        return await asyncio.gather(*(post(b"junk") for _ in range(MAX_WAITING + 3)))

    *served, first, second, third = asyncio.run(flood())
    assert {status for status, _, _ in served} == {400}
    for status, headers, body in (first, second, third):
        assert status == 429
        assert 1 <= int(headers[b"retry-after"]) <= 10
        assert msgspec.json.decode(body)["cause"] == "overloaded"


def test_real_senders_at_once_each_get_their_own_answer(service: Service) -> None:
    senders, each = 8, 5
    issue(service.database, SERVER_KEY, *(f"rider {number}" for number in range(senders)))
    wrong: list[str] = []

    def send(url: str, number: int) -> None:
        bus = Stream("bus-1", epoch=number + 1)
        with closing(HttpUplink(url)) as uplink:
            for ride in range(1, each + 1):
                bus.board(f"11:{ride}0", f"rider {number}")
                heard = uplink.send(bus.new(), 20.0)
                answer = getattr(getattr(heard, "content", None), "answers", (None,))[0]
                if answer is None or (answer.sequence, answer.balance) != (ride, -ride * BUS_FARE):
                    wrong.append(f"{number}/{ride}: {heard}")

    with serving(create_app(service)) as port:
        threads = [threading.Thread(target=send, args=(f"http://127.0.0.1:{port}", number)) for number in range(senders)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert rows(service.database, "select count(*) from lines") == [(senders * each,)]
    check_books(service.database)


# ---- a real terminal against the real lane


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    """Booted, at Bến Thành; its uplink is put in by the test."""
    config = TerminalConfig(device_id=DeviceId("gate-1"), key=key_of("gate-1"), stop_id=StopId(BEN_THANH), online_ms=10_000)
    outbox = Outbox(tmp_path / "outbox.db", config.device_id)
    with closing(outbox), closing(HttpUplink("http://127.0.0.1:9")) as nobody:
        yield Terminal(config, outbox, nobody, random_bytes=os.urandom, backoff=Backoff(random.Random(1).random))


def connect(terminal: Terminal, port: int, stack: ExitStack) -> None:
    terminal._uplink = stack.enter_context(closing(HttpUplink(f"http://127.0.0.1:{port}")))


def presented(kind: TapKind, card: str = "anna") -> Presented:
    return Presented(kind=kind, token=terminal_token(card), medium="emv")


def test_a_rider_at_a_real_terminal_hears_fare_caps_and_balance(service: Service, terminal: Terminal, clock: Clock) -> None:
    with ExitStack() as stack:
        connect(terminal, stack.enter_context(serving(create_app(service))), stack)
        clock.now = at("11:00")
        assert terminal.flush(at("11:00")).batches == 1, "the boot announces its epoch"
        clock.now = at("11:30")
        entered = terminal.tap(presented(TapKind.ENTRY), at("11:30"))
        terminal.move(stop_id=StopId(TAN_CANG), route_id=None)
        clock.now = at("11:45")
        left = terminal.tap(presented(TapKind.EXIT), at("11:45"))
        unknown = terminal.tap(presented(TapKind.ENTRY, "nobody's"), at("11:46"))
    assert (entered.decided, entered.admitted) == (Decided.ONLINE, True)
    assert entered.answer is not None
    assert (entered.answer.fare, entered.answer.balance) == (METRO_LONG, -METRO_LONG)
    assert (left.decided, left.admitted) == (Decided.ONLINE, True)
    assert left.answer is not None
    assert (left.answer.fare, left.answer.balance) == (METRO_SHORT, -METRO_SHORT)
    assert ("day-cap", METRO_SHORT, 50_000) in [(cap.rule_id, cap.spent, cap.amount) for cap in left.answer.caps]
    assert sum(line.amount for line in left.answer.lines) == METRO_SHORT
    assert (unknown.decided, unknown.answer.result if unknown.answer else None) == (Decided.ALONE, "QUARANTINED")
    assert terminal.clock is not None, "and it learnt the server's time"


def test_while_the_server_is_away_the_terminal_decides_and_each_tap_arrives_once(
    service: Service, terminal: Terminal, clock: Clock
) -> None:
    terminal.move(stop_id=None, route_id=RouteId("1"))
    with ExitStack() as stack:
        port = stack.enter_context(serving(create_app(service)))
        connect(terminal, port, stack)
        clock.now = at("11:00")
        assert terminal.tap(presented(TapKind.BOARD), at("11:00")).decided is Decided.ONLINE
    service.database = Database(service.database.url, service.settings.at_rest_key)
    service.receipt.database = service.database
    away = [terminal.tap(presented(TapKind.BOARD, card), at("11:10") + n) for n, card in enumerate(("anna", "binh", "chi"))]
    assert [result.decided for result in away] == [Decided.ALONE] * 3
    assert all(result.admitted and result.answer is None for result in away), "the fare follows"
    waiting = sum(state.pending for state in terminal.outbox.list_pending())
    assert waiting == 4, "three taps and the record that the first was decided alone"
    with ExitStack() as stack:
        connect(terminal, stack.enter_context(serving(create_app(service), port)), stack)
        clock.now = at("11:30")
        report = terminal.flush(at("11:30"))
        back = terminal.tap(presented(TapKind.BOARD, "binh"), at("11:31"))
    assert (report.acknowledged, report.pending, report.stuck) == (4, 0, {})
    assert back.decided is Decided.ONLINE
    epoch = terminal.outbox.live.epoch
    written = terminal.outbox.list_taps(epoch, 1)
    with service.database.read() as connection:
        held = [tap for stored in receipts.all_batches(connection) for tap in reopen_message(stored.message).taps]
    assert sorted(held) == sorted(written)
    assert len(set(written)) == 6
    balances = dict(rows(service.database, "select account_id, balance from accounts"))
    assert balances == {"anna": -2 * BUS_FARE, "binh": -2 * BUS_FARE, "chi": -BUS_FARE}
    check_books(service.database)


@pytest.mark.parametrize(
    ("said", "adopted"), [("2026", ("2026",)), ("2026, 2027", ("2026", "2027")), ('["2026"]', ("2026",)), ("", ())]
)
def test_versions_are_adopted_by_the_environment(monkeypatch: pytest.MonkeyPatch, said: str, adopted: tuple[str, ...]) -> None:
    monkeypatch.setenv("MOTTHE_ADOPT", said)
    assert Settings().adopt == adopted
