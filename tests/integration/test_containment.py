"""What goes wrong with one message, tap, traveller or sender stays with it; everybody else is answered and priced."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import pytest
from sqlalchemy import text
from starlette.types import Message

from fare_engine import application, booking, jobs
from fare_engine.answers import BatchAnswer
from fare_engine.booking import Record
from fare_engine.errors import EnvelopeError, LinkError
from fare_engine.facts import Completion
from fare_engine.linking import link_token
from fare_engine.service import tap_lane
from fare_engine.service.tap_lane import TapLane
from fare_engine.service_day import DAY_MS, MINUTE_MS
from fare_engine.store import receipts, registry, travellers
from fare_engine.store.registry import LOCK_MS, MAX_FAILURES, Correction
from fare_engine.store.travellers import NewToken
from fare_engine.tap_format import Decision, Outcome, TapKind, TapPlace
from fare_engine.tokens import stored_token
from tests.integration.desk import (
    BEN_THANH,
    BUS_CASH,
    BUS_FARE,
    SERVER_KEY,
    SUOI_TIEN,
    TAN_CANG,
    Desk,
    Stream,
    at,
    terminal_token,
)

YEAR_10000 = 253_402_300_800_000


def token(card: str) -> str:
    return stored_token(SERVER_KEY, terminal_token(card))


def record(desk: Desk, traveller_id: str) -> Record:
    with desk.database.read() as connection:
        found = travellers.find_traveller(connection, traveller_id)
    assert found is not None
    return found.record


def release_all(desk: Desk, reason: str) -> int:
    with desk.database.read() as connection:
        events = [
            receipts.find_tap(connection, tap.device_id, tap.epoch, tap.sequence)
            for tap in receipts.list_quarantined(connection)
            if tap.reason == reason
        ]
    found = [event for event in events if event is not None]
    return desk.database.transact(lambda connection: desk.application.release(connection, found, at("13:00")))


# ---- one message, one traveller


@pytest.mark.parametrize("reason", ["revoked_device", "impossible_time"])
def test_a_tap_of_the_year_ten_thousand_holds_nobody_up(desk: Desk, reason: str) -> None:
    if reason == "revoked_device":
        with desk.database.write() as connection:
            registry.revoke_device(connection, "bus-2", at("07:00"))
    bus, broken = Stream("bus-1"), Stream("bus-2")
    bus.board("08:00")
    broken.add(TapKind.BOARD, YEAR_10000, "binh", route_id="1")
    good, aside = desk.send(bus.new(), broken.new())
    assert isinstance(good, BatchAnswer)
    assert good.answers[0].fare == BUS_FARE
    assert isinstance(aside, BatchAnswer)
    assert (aside.answers[0].result, aside.answers[0].reason) == ("QUARANTINED", reason)


@pytest.mark.parametrize("how", ["gone", "unreadable"])
@pytest.mark.parametrize("together", [True, False], ids=["in one message", "in one group"])
def test_a_traveller_whose_record_is_damaged_costs_nobody_else_an_answer(desk: Desk, how: str, together: bool) -> None:
    change = "delete from travellers" if how == "gone" else "update travellers set next_due = 0, record = "
    value = "" if how == "gone" else ("x'c1'" if desk.database.is_sqlite else "'\\xc1'::bytea")
    with desk.database.write() as connection:
        connection.execute(text(f"{change}{value} where traveller_id = 'binh'".replace(":", "\\:")))
    bus, other = Stream("bus-1"), Stream("bus-2")
    bus.board("08:00", "anna")
    (bus if together else other).board("08:01", "binh")
    found = desk.send(*[stream.new() for stream in (bus, other) if stream.taps])
    given = [answer for item in found if isinstance(item, BatchAnswer) for answer in item.answers]
    assert [(answer.result, answer.reason, answer.fare) for answer in given] == [
        ("ACCEPTED", None, BUS_FARE),
        ("QUARANTINED", "unreadable_record", None),
    ]
    worker = jobs.Jobs(desk.database, desk.application)
    assert sum(worker.run_turn(at("12:00") + number) for number in range(20)) <= 2, "there is an end to what is due"


@pytest.mark.parametrize("together", [True, False], ids=["in one message", "in one group"])
def test_what_nobody_thought_of_sets_one_tap_aside_until_it_is_mended(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    def break_for_binh(network: object, tap: object, recent: object) -> None:
        if getattr(tap, "token_id", "") == token("binh"):
            raise ZeroDivisionError("nobody thought of it")

    bus, other = Stream("bus-1"), Stream("bus-2")
    bus.board("08:00", "anna")
    (bus if together else other).board("08:01", "binh")
    bus.outcome("08:03", bus.board("08:02", "chi"), Outcome.GATE_NOT_OPENED)
    bus.board("08:04", "chi")
    with monkeypatch.context() as patched:
        patched.setattr(application, "impossible_pair", break_for_binh)
        found = desk.send(*[stream.new() for stream in (bus, other) if stream.taps])
    given = {answer.reason: answer.result for item in found if isinstance(item, BatchAnswer) for answer in item.answers}
    assert given == {None: "ACCEPTED", "internal_error": "QUARANTINED"}
    assert [desk.balance(name) for name in ("anna", "binh", "chi")] == [-BUS_FARE, 0, -BUS_FARE]
    assert "nobody thought of it" in str(desk.rows("select detail from quarantine"))
    assert release_all(desk, "internal_error") == 1
    assert desk.balance("binh") == -BUS_FARE
    desk.check_books()


def test_failed_folds_are_tried_again_ever_more_rarely_and_nobody_behind_them_waits(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []
    price = booking.price

    def failing(tariff: object, record: Record, as_of: int, **more: bool) -> object:
        if any(getattr(fact, "token_id", "") == token("anna") for fact in record.facts):
            tried.append(as_of)
            raise ZeroDivisionError
        return price(tariff, record, as_of, **more)  # type: ignore[arg-type]

    bus, gate = Stream("bus-1"), Stream("gate-1")
    bus.board("08:00", "anna")
    gate.enter("08:00", "binh")
    with monkeypatch.context() as patched:
        patched.setattr(booking, "price", failing)
        desk.send(bus.new(), gate.new(), now="08:05")
        tried.clear()
        worker = jobs.Jobs(desk.database, desk.application)
        while desk.database.transact(lambda connection: desk.application.advance(connection, at("23:00"))):
            pass
        assert record(desk, "binh").as_of == at("23:00")
        for second in range(600):
            worker.run_turn(at("23:00") + second * 1000)
        assert 10 <= len(tried) <= 20, "at first every second, then once a minute"
    for second in range(600, 700):
        worker.run_turn(at("23:00") + second * 1000)
    assert desk.balance("anna") == -BUS_FARE
    desk.check_books()


# ---- slow and greedy senders


def lane_post(lane: TapLane, parts: list[bytes], *, ends: bool = True) -> asyncio.Task[list[Message]]:
    """A request whose body comes in parts, and of which the rest never comes where it does not end."""

    async def run() -> list[Message]:
        sent: list[Message] = []
        left = list(parts)

        async def receive() -> Message:
            if not left:
                await asyncio.sleep(3600)
            part = left.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(left) or not ends}

        async def send(event: Message) -> None:
            sent.append(event)

        await lane({"type": "http", "method": "POST", "headers": [(b"content-length", b"1000000")]}, receive, send)
        return sent

    return asyncio.create_task(run())


def live_messages(count: int) -> list[bytes]:
    """Of so many streams one tap each."""
    found = []
    for number in range(count):
        bus = Stream(f"bus-{1 + number % 2}", epoch=1 + number)
        bus.board("08:00")
        found.append(bus.new())
    return found


def watch_commits(desk: Desk, monkeypatch: pytest.MonkeyPatch, see: Callable[[list[bytes]], None]) -> None:
    """Show each group of messages before it is committed."""
    accept_group = desk.receipt.accept_group

    def seen(group: list[bytes], now: int) -> list[BatchAnswer | EnvelopeError]:
        see(group)
        return accept_group(group, now)

    monkeypatch.setattr(desk.receipt, "accept_group", seen)


def test_only_a_commit_that_was_half_full_makes_the_next_wait_to_be_fuller(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    lane = TapLane(desk.receipt, lambda: at("12:00"))
    monkeypatch.setattr(tap_lane, "MAX_GROUP", 3)
    monkeypatch.setattr(tap_lane, "GATHERS_FROM", 3)
    monkeypatch.setattr(tap_lane, "GATHER_SECONDS", 3600)
    messages = iter(live_messages(12))
    commits: list[int] = []
    watch_commits(desk, monkeypatch, lambda group: commits.append(len(group)))

    async def come(count: int) -> asyncio.Future[list[BatchAnswer | EnvelopeError]]:
        """Some messages at once; the loop turns until those are answered that do not wait for more."""
        coming = asyncio.gather(*(lane.submit(next(messages)) for _ in range(count)))
        for _ in range(500):
            await asyncio.sleep(0)
        return coming

    async def run() -> None:
        for few in (1, 2, 2, 1, 3):
            assert (await come(few)).done()
        waits = await come(1)
        assert not waits.done()
        await asyncio.gather(waits, await come(2))

    asyncio.run(run())
    assert commits == [1, 2, 2, 1, 3, 3]


def test_new_connections_are_let_in_between_the_commits_of_a_crowd(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event loop may let in one connection a turn."""
    lane = TapLane(desk.receipt, lambda: at("12:00"))
    monkeypatch.setattr(tap_lane, "MAX_GROUP", 2)
    messages = live_messages(7)
    turns = 0
    commits: list[int] = []
    watch_commits(desk, monkeypatch, lambda _: commits.append(turns))

    async def run() -> None:
        def turn() -> None:
            nonlocal turns
            turns += 1
            loop.call_soon(turn)

        loop = asyncio.get_running_loop()
        loop.call_soon(turn)
        await asyncio.gather(*(lane.submit(message) for message in messages))

    asyncio.run(run())
    assert len(commits) == 4
    assert min(later - earlier for earlier, later in pairwise(commits)) >= 50


def test_senders_that_announce_much_and_send_nothing_keep_nobody_out(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    lane = TapLane(desk.receipt, lambda: at("12:00"))
    bus = Stream("bus-1")
    bus.board("08:00")
    message = bus.new()
    monkeypatch.setattr(tap_lane, "BODY_SECONDS", 0.3)

    async def run() -> tuple[list[Message], list[list[Message]]]:
        silent = [lane_post(lane, [b"\xd2"], ends=False) for _ in range(500)]
        await asyncio.sleep(0.05)
        answered = await lane_post(lane, [message[:50], message[50:]])
        return answered, await asyncio.gather(*silent)

    answered, silent = asyncio.run(run())
    assert answered[0]["status"] == 200
    assert {sent[0]["status"] for sent in silent} == {408}
    assert lane._bytes == 0


def test_what_has_come_in_and_waits_is_bounded_but_a_live_tap_is_read(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    lane = TapLane(desk.receipt, lambda: at("12:00"))
    bus = Stream("bus-1")
    bus.board("08:00")
    message = bus.new()
    monkeypatch.setattr(tap_lane, "BODY_SECONDS", 0.3)
    monkeypatch.setattr(tap_lane, "MAX_BYTES", 50_000)

    async def run() -> tuple[list[Message], list[list[Message]]]:
        greedy = [lane_post(lane, [b"x" * 20_000], ends=False) for _ in range(5)]
        await asyncio.sleep(0.05)
        answered = await lane_post(lane, [message])
        return answered, await asyncio.gather(*greedy)

    answered, greedy = asyncio.run(run())
    assert answered[0]["status"] == 200
    assert [sent[0]["status"] for sent in greedy].count(429) == 3
    assert lane._bytes == 0


@pytest.mark.parametrize("at_once", [20])
def test_of_many_wrong_logins_at_once_no_more_are_looked_at_than_one_after_the_other(desk: Desk, at_once: int) -> None:
    def attempt(_: int) -> bool:
        return desk.database.transact(lambda connection: registry.begin_attempt(connection, "card:x", at("12:00")))

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(at_once))) == MAX_FAILURES
    with desk.database.write() as connection:
        assert not registry.begin_attempt(connection, "card:x", at("12:00") + LOCK_MS - 1)
        assert registry.begin_attempt(connection, "card:x", at("12:00") + LOCK_MS)
        registry.forget_attempts(connection, "card:x")
    assert desk.rows("select * from attempts") == []


# ---- completions follow from the other facts


def completions(desk: Desk) -> list[tuple[str, str, int]]:
    return sorted((f.leg_id[:6], f.stop_id, f.at) for f in record(desk, "anna").facts if isinstance(f, Completion))


def test_a_completion_gives_way_to_what_a_late_tap_tells(desk: Desk) -> None:
    gate, other, late = Stream("gate-1"), Stream("gate-2"), Stream("gate-2", 2)
    gate.enter("08:00", stop=BEN_THANH)
    desk.taken(gate.new(), at("08:00"))
    other.enter("10:30", stop=SUOI_TIEN)
    answer = desk.tapped(other, at("10:30"))
    assert completions(desk) == [("gate-1", SUOI_TIEN, at("10:29"))]
    assert answer.balance == desk.balance("anna"), "the answer counts what the completion gave back"
    late.enter("09:30", stop=TAN_CANG, decision=Decision.ADMITTED_ALONE)
    desk.taken(late.new(), at("10:40"))
    assert completions(desk) == [("gate-1", TAN_CANG, at("09:29")), ("gate-2", SUOI_TIEN, at("10:29"))]
    cancelled = Stream("gate-2", 3)
    cancelled.outcome("10:41", TapPlace(late.epoch, 1), Outcome.CANCELLED)
    desk.taken(cancelled.new(), at("10:41"))
    assert completions(desk) == [("gate-1", SUOI_TIEN, at("10:29"))]
    desk.check_books()


def test_a_completion_is_made_from_corrected_times(desk: Desk) -> None:
    gate, other = Stream("gate-1"), Stream("gate-2")
    gate.enter("08:00", stop=BEN_THANH)
    desk.taken(gate.new(), at("08:00"))
    other.enter("11:30", stop=TAN_CANG, decision=Decision.ADMITTED_ALONE)
    desk.taken(other.new(), at("11:31"))
    shift = Correction("c1", "gate-2", at("11:00"), at("12:00"), -120 * MINUTE_MS, at("11:40"), "test")
    desk.database.transact(lambda connection: desk.application.correct_clock(connection, shift, at("11:40")))
    assert completions(desk) == [("gate-1", TAN_CANG, at("09:29"))]
    desk.check_books()


# ---- what waits


def test_a_record_of_a_tap_in_quarantine_waits_with_it_wherever_the_token_goes(desk: Desk) -> None:
    with desk.database.write() as connection:
        registry.limit_device(connection, "bus-1", '{"routes": ["150"]}')
    bus = Stream("bus-1")
    place = bus.board("08:00", "anna", decision=Decision.ADMITTED_ALONE)
    bus.outcome("08:01", place, Outcome.GATE_NOT_OPENED)
    assert [answer.reason for answer in desk.taken(bus.new()).answers] == ["wrong_route", "unused_tap"]
    desk.database.transact(
        lambda connection: link_token(connection, desk.application, token("anna"), "chi", at("00:00"), at("12:00"), "test")
    )
    assert release_all(desk, "wrong_route") == 1
    assert desk.rows("select count(*) from quarantine where released_at is null") == [(0,)]
    assert (desk.balance("anna"), desk.balance("chi")) == (0, 0)
    desk.check_books()


def test_taps_of_a_token_that_becomes_known_by_another_tap_are_used_then(desk: Desk) -> None:
    bus = Stream("bus-1")
    new = terminal_token("anna under the new key")
    fields = {"route_id": "1", "token": new, "token_key_version": 2}
    bus.add(TapKind.BOARD, at("08:00"), "", **fields)
    place = bus.add(TapKind.BOARD, at("08:10"), "", **fields)
    bus.outcome("08:11", place, Outcome.CANCELLED)
    assert {answer.result for answer in desk.taken(bus.new()).answers} == {"QUARANTINED"}
    bus.add(TapKind.BOARD, at("08:20"), "", former_token=terminal_token("anna"), **fields)
    assert desk.tapped(bus).result == "ACCEPTED"
    assert desk.balance("anna") == -2 * BUS_FARE
    assert desk.rows("select count(*) from quarantine where released_at is null") == [(0,)]
    desk.check_books()


def test_what_is_said_of_a_token_holds_under_every_key_it_was_made_with(desk: Desk) -> None:
    bus = Stream("bus-1")
    new = terminal_token("anna under the new key")
    fields = {"route_id": "1", "token": new, "token_key_version": 2}
    bus.add(TapKind.BOARD, at("08:00"), "", former_token=terminal_token("anna"), **fields)
    desk.taken(bus.new())
    desk.database.transact(
        lambda connection: link_token(connection, desk.application, token("anna"), "chi", at("00:00"), at("12:00"), "test")
    )
    assert (desk.balance("anna"), desk.balance("chi")) == (0, -BUS_FARE)
    desk.block("anna", "09:00")
    bus.add(TapKind.BOARD, at("09:10"), "", **fields)
    assert desk.tapped(bus).reason == "blocked"
    third = terminal_token("anna under the third key")
    again = {"route_id": "1", "token": third, "token_key_version": 3, "former_token": new}
    bus.add(TapKind.BOARD, at("09:20"), "", **again)
    assert desk.tapped(bus).reason == "blocked"
    desk.check_books()


def test_what_is_released_by_hand_is_still_looked_at(desk: Desk) -> None:
    bus = Stream("bus-1")
    bus.add(TapKind.BOARD, at("08:00") + 40 * DAY_MS, "anna", route_id="1")
    bus.add(TapKind.BOARD, at("08:00") - 60 * DAY_MS, "anna", route_id="no such route")
    bus.add(TapKind.BOARD, at("08:00") - 60 * DAY_MS, "anna", route_id="1")
    assert {answer.reason for answer in desk.taken(bus.new()).answers} == {"impossible_time"}
    assert release_all(desk, "impossible_time") == 1
    assert desk.rows("select count(*) from quarantine where released_at is null") == [(2,)]
    desk.check_books()


# ---- prepaid, tickets


def test_of_two_who_ask_at_once_the_first_is_let_in_as_far_as_the_money_goes(desk: Desk) -> None:
    desk.issue("poor", kind="prepaid", balance=1000)
    version = desk.tariff.version_at(at("12:00"))
    assert version is not None
    floor = version.version.file.accounts.prepaid_floor
    assert floor is not None
    rides = (1000 - floor) // BUS_FARE
    bus = Stream("bus-1")
    for number in reversed(range(rides + 2)):
        bus.board(f"08:{10 + number}", "poor")
    given = [answer.decision for answer in desk.taken(bus.new()).answers]
    assert given == ["refused"] * 2 + ["admitted"] * rides
    assert desk.balance("poor") == 1000 - rides * BUS_FARE


def test_a_card_that_was_taken_for_a_paper_ticket_can_still_be_registered(desk: Desk) -> None:
    bus = Stream("bus-1")
    bus.board("08:00", "new card", medium="cash")
    desk.taken(bus.new())
    mine = NewToken(token("new card"), "chi", "chi", terminal_token("new card"))
    for _ in range(2):
        desk.database.transact(lambda connection: jobs.register(connection, desk.application, [mine], at("12:00")), alone=True)
    bus.board("12:05", "new card")
    desk.taken(bus.new(), at("12:05"))
    assert desk.balance("chi") == -BUS_FARE
    assert desk.rows("select sum(amount) from lines where payer like 'collector:%'") == [(BUS_CASH,)]
    with pytest.raises(LinkError, match="somebody else's"):
        desk.database.transact(
            lambda connection: jobs.register(
                connection, desk.application, [replace(mine, traveller_id="anna", account_id="anna")], at("12:10")
            ),
            alone=True,
        )
    desk.check_books()
