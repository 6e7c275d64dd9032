"""Links and payers, missing exits, claims, late facts, clocks put right, networks that arrive late, prices that drift."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fare_engine import booking, claims, jobs
from fare_engine.application import Application
from fare_engine.booking import Record
from fare_engine.errors import ClaimError, LinkError, NotFoundError
from fare_engine.facts import Cancellation, Tap, in_order
from fare_engine.linking import change_payer, first_open_day, link_token, propose_links
from fare_engine.pricing.lines import Leg
from fare_engine.receipt import Receipt
from fare_engine.service_day import DAY_MS, MINUTE_MS, to_date, to_day
from fare_engine.store import receipts, registry, travellers
from fare_engine.store.registry import Correction
from fare_engine.tap_format import Decision, Outcome, TapKind
from fare_engine.tariff.compile import CompiledTariff, load_compiled
from fare_engine.tokens import stored_token
from tests.builders import HCMC
from tests.integration.desk import (
    BEN_THANH,
    BUS_FARE,
    DAY,
    METRO_LONG,
    METRO_SHORT,
    SERVER_KEY,
    SUOI_TIEN,
    TAN_CANG,
    Desk,
    Stream,
    at,
    terminal_token,
)

TODAY = to_day(to_date(0).fromisoformat(DAY))


def token(card: str) -> str:
    return stored_token(SERVER_KEY, terminal_token(card))


def record(desk: Desk, traveller_id: str) -> Record:
    with desk.database.read() as connection:
        found = travellers.find_traveller(connection, traveller_id)
    assert found is not None
    return found.record


def leg_of(desk: Desk, traveller_id: str, leg_id: str, now: str = "23:00") -> Leg:
    return booking.price(desk.tariff, record(desk, traveller_id), at(now)).legs[leg_id]


def charge_of(desk: Desk, traveller_id: str) -> int:
    return sum(b.line.amount for b in record(desk, traveller_id).booked.values() if booking.stands(b))


def let_time_pass(desk: Desk, now: int) -> None:
    while desk.database.transact(lambda connection: desk.application.advance(connection, now)):
        pass


# ---- links


def test_a_phone_and_a_card_become_one_person_who_enters_with_one_and_leaves_with_the_other(desk: Desk) -> None:
    gate, out = Stream("gate-1"), Stream("gate-2")
    gate.enter("08:00", "anna")
    out.leave("08:30", "binh", TAN_CANG)
    desk.taken(gate.new())
    desk.taken(out.new())
    assert charge_of(desk, "binh") > METRO_SHORT, "an exit without an entry"
    desk.database.transact(
        lambda connection: link_token(connection, desk.application, token("binh"), "anna", at("00:00"), at("12:00"), "anna")
    )
    assert (charge_of(desk, "anna"), charge_of(desk, "binh")) == (METRO_SHORT, 0)
    assert (desk.balance("anna"), desk.balance("binh")) == (-METRO_SHORT, 0)
    desk.check_books()


def test_what_was_tapped_before_a_link_stays_where_it_is(desk: Desk) -> None:
    bus = Stream("bus-1")
    bus.board("08:00", "binh")
    bus.board("09:00", "binh")
    desk.taken(bus.new())
    desk.database.transact(
        lambda connection: link_token(connection, desk.application, token("binh"), "anna", at("08:30"), at("12:00"), "anna")
    )
    assert [len(record(desk, name).facts) for name in ("anna", "binh")] == [1, 1]
    bus.board("08:10", "binh")
    bus.board("10:00", "binh")
    desk.taken(bus.new())
    assert [len(record(desk, name).facts) for name in ("anna", "binh")] == [2, 2]
    desk.check_books()


def test_a_link_begins_with_the_first_day_that_is_not_closed(desk: Desk) -> None:
    with desk.database.write() as connection:
        connection.exec_driver_sql("insert into closes (accounting_date, frozen_at) values ('2026-03-03', 0)")
        assert first_open_day(connection, desk.tariff, at("12:00"))[0] == TODAY + 2
    begins = desk.database.transact(
        lambda connection: link_token(connection, desk.application, token("binh"), "anna", at("08:30"), at("12:00"), "anna")
    )
    assert begins == at("02:30", "2026-03-04")


def test_a_link_of_nothing_is_an_error_that_names_it(desk: Desk) -> None:
    def link(token_id: str, traveller_id: str) -> int:
        return desk.database.transact(
            lambda connection: link_token(connection, desk.application, token_id, traveller_id, 0, at("12:00"), "x")
        )

    with pytest.raises(NotFoundError, match="no token nothing"):
        link("nothing", "anna")
    with pytest.raises(NotFoundError, match="no traveller nobody"):
        link(token("anna"), "nobody")
    assert link(token("anna"), "binh") == link(token("anna"), "binh") == 0
    with pytest.raises(LinkError, match="begins at 0 ms already"):
        link(token("anna"), "chi")


def test_a_family_is_several_travellers_of_one_account(desk: Desk) -> None:
    bus = Stream("bus-1")
    bus.board("08:00", "anna")
    bus.board("08:00:10", "chi")
    desk.taken(bus.new())
    desk.database.transact(lambda connection: change_payer(connection, desk.application, "chi", "anna", TODAY, at("12:00")))
    assert (desk.balance("anna"), desk.balance("chi")) == (-2 * BUS_FARE, 0)
    bus.board("09:00", "chi")
    assert desk.tapped(bus).balance == -3 * BUS_FARE
    assert charge_of(desk, "chi") == 2 * BUS_FARE, "caps stay each traveller's own"
    desk.database.transact(lambda connection: change_payer(connection, desk.application, "chi", "chi", TODAY, at("12:00")))
    assert (desk.balance("anna"), desk.balance("chi")) == (-BUS_FARE, -2 * BUS_FARE)
    desk.check_books()


def test_a_link_is_proposed_where_two_tokens_complete_each_other_twice(desk: Desk) -> None:
    gate, out = Stream("gate-1"), Stream("gate-2")
    for hour in ("07", "17"):
        gate.enter(f"{hour}:00", "anna")
        out.leave(f"{hour}:40", "binh")
    gate.enter("12:00", "chi")
    desk.taken(gate.new(), at("23:00"))
    desk.taken(out.new(), at("23:00"))
    folded = [booking.price(desk.tariff, record(desk, name), at("23:00")) for name in ("anna", "binh", "chi")]
    (found,) = propose_links(desk.tariff, folded)
    assert (found.token_id, found.other_token_id, len(found.occasions)) == (token("anna"), token("binh"), 2)


# ---- missing exits


def test_who_enters_again_came_out_there(desk: Desk) -> None:
    gate, other = Stream("gate-1"), Stream("gate-2")
    gate.enter("08:00", stop=BEN_THANH)
    desk.taken(gate.new(), at("08:00"))
    other.enter("09:30", stop=TAN_CANG)
    desk.taken(other.new(), at("09:30"))
    leg = leg_of(desk, "anna", f"gate-1/{gate.epoch.hex()}/1", "09:30")
    assert (leg.status, leg.to_stop_id, leg.exit_at) == ("complete", TAN_CANG, at("09:29"))
    sources = [fact.source for fact in record(desk, "anna").facts if hasattr(fact, "source")]
    assert sources == ["next_tap"]
    desk.check_books()


def test_who_rides_there_every_day_came_out_there(desk: Desk) -> None:
    gate, out = Stream("gate-1"), Stream("gate-2")
    for day in range(3):
        gate.add(TapKind.ENTRY, at("08:00") + day * DAY_MS, "anna", stop_id=BEN_THANH)
        out.add(TapKind.EXIT, at("08:10") + day * DAY_MS, "anna", stop_id=TAN_CANG)
    gate.add(TapKind.ENTRY, at("08:00") + 3 * DAY_MS, "anna", stop_id=BEN_THANH)
    now = at("23:00") + 3 * DAY_MS
    desk.taken(gate.new(), now)
    desk.taken(out.new(), now)
    let_time_pass(desk, now)
    assert desk.balance("anna") == -4 * METRO_SHORT
    desk.check_books()


def test_what_nothing_tells_costs_the_most_and_a_claim_waits_for_somebody(desk: Desk) -> None:
    gate = Stream("gate-1")
    gate.enter("08:00")
    desk.taken(gate.new())
    let_time_pass(desk, at("20:00"))
    before = desk.balance("anna")
    leg_id = f"gate-1/{gate.epoch.hex()}/1"
    claim = desk.database.transact(
        lambda connection: claims.make_claim(connection, desk.application, "anna", leg_id, TAN_CANG, "ra ở đây", at("20:00"))
    )
    assert (claim.state, desk.balance("anna")) == ("open", before)
    with pytest.raises(ClaimError, match="has a claim already"):
        desk.database.transact(
            lambda connection: claims.make_claim(connection, desk.application, "anna", leg_id, TAN_CANG, "", at("20:00"))
        )
    decided = desk.database.transact(
        lambda connection: claims.decide_claim(
            connection, desk.application, claim.claim_id, "clerk", "seen on camera", at("21:00"), accept=True
        )
    )
    assert (decided.state, desk.balance("anna")) == ("accepted", -METRO_SHORT)
    desk.check_books()


def test_a_claim_that_the_next_tap_confirms_is_taken_at_once(desk: Desk) -> None:
    gate, other = Stream("gate-1"), Stream("gate-2")
    gate.enter("08:00", stop=BEN_THANH, decision=Decision.ADMITTED_ALONE)
    desk.taken(gate.new(), at("08:00"))
    bare = replace_completes(desk)
    let_time_pass(bare, at("11:30"))
    other.enter("10:45", stop=TAN_CANG, decision=Decision.ADMITTED_ALONE)
    bare.taken(other.new(), at("11:31"))
    leg_id = f"gate-1/{gate.epoch.hex()}/1"
    claim = bare.database.transact(
        lambda connection: claims.make_claim(connection, bare.application, "anna", leg_id, TAN_CANG, "", at("11:40"))
    )
    assert (claim.state, claim.reason) == ("accepted", "the next tap")
    assert leg_of(bare, "anna", leg_id, "11:40").to_stop_id == TAN_CANG


def replace_completes(desk: Desk) -> Desk:
    """The same store under a tariff that completes nothing by itself."""
    desk.application.mender._ways = lambda leg: ()  # type: ignore[method-assign]
    return desk


def test_a_real_exit_that_comes_in_later_beats_what_was_taken_for_it(desk: Desk) -> None:
    gate, other, late = Stream("gate-1"), Stream("gate-2"), Stream("gate-2", 2)
    gate.enter("08:00")
    desk.taken(gate.new(), at("08:00"))
    other.enter("09:30", stop=TAN_CANG)
    desk.taken(other.new(), at("09:30"))
    late.leave("08:25", stop=SUOI_TIEN, decision=Decision.ADMITTED_ALONE)
    desk.taken(late.new(), at("10:00"))
    leg = leg_of(desk, "anna", f"gate-1/{gate.epoch.hex()}/1", "10:00")
    assert (leg.status, leg.to_stop_id) == ("complete", SUOI_TIEN)
    acting = [fact.fact_id for fact in in_order(record(desk, "anna").facts) if isinstance(fact, Tap)]
    assert not any(name.startswith("completion/") for name in acting)
    desk.check_books()


def test_a_claim_for_a_ride_that_lacks_nothing_or_of_a_stop_elsewhere_is_refused(desk: Desk) -> None:
    gate, bus = Stream("gate-1"), Stream("bus-1")
    gate.enter("08:00")
    bus.board("12:30")
    desk.taken(gate.new())
    desk.taken(bus.new(), at("12:30"))
    let_time_pass(desk, at("20:00"))

    def claim(leg_id: str, stop_id: str) -> None:
        desk.database.transact(
            lambda connection: claims.make_claim(connection, desk.application, "anna", leg_id, stop_id, "", at("20:00"))
        )

    with pytest.raises(ClaimError, match="lacks no exit"):
        claim(f"bus-1/{bus.epoch.hex()}/1", TAN_CANG)
    with pytest.raises(ClaimError, match="not on the network"):
        claim(f"gate-1/{gate.epoch.hex()}/1", "nowhere")
    with pytest.raises(NotFoundError, match="no ride"):
        claim("gate-9/00/1", TAN_CANG)


# ---- late facts


def test_what_is_charged_too_late_is_waived_and_borne_by_a_party(desk: Desk) -> None:
    bus = Stream("bus-1")
    place = bus.board("08:00", decision=Decision.ADMITTED_ALONE)
    now = at("12:00") + 20 * DAY_MS
    (answer,) = desk.taken(bus.new(), now).answers
    assert (answer.fare, answer.balance) == (BUS_FARE, 0)
    assert charge_of(desk, "anna") == BUS_FARE, "the lines are what they are"
    waived = desk.rows("select debit, credit, amount from postings where code = 'WAIVED'")
    assert waived == [("waivers:AU-MCPT", "rider:anna", BUS_FARE)]
    bus.outcome("08:01", place, Outcome.CANCELLED)
    desk.taken(bus.new(), now)
    assert (charge_of(desk, "anna"), desk.balance("anna")) == (0, 0), "what was never paid is not given back"


def test_what_comes_in_time_is_charged_and_what_is_given_back_too_late_is_kept(desk: Desk) -> None:
    bus = Stream("bus-1")
    place = bus.board("08:00", decision=Decision.ADMITTED_ALONE)
    desk.taken(bus.new(), at("12:00") + 14 * DAY_MS)
    assert desk.balance("anna") == -BUS_FARE
    assert place.sequence == 1
    with desk.database.write() as connection:
        fact = Cancellation("late", at("08:01"), "bus-1", "x", 9, f"bus-1/{bus.epoch.hex()}/1", "cancelled")
        desk.application.add_facts(connection, {"anna": [fact]}, at("12:00") + 200 * DAY_MS)
    assert (charge_of(desk, "anna"), desk.balance("anna")) == (0, -BUS_FARE)


# ---- clocks


def test_a_clock_that_was_wrong_is_put_right_for_taps_that_are_here_and_those_to_come(desk: Desk) -> None:
    gate, out = Stream("gate-1"), Stream("gate-2")
    gate.enter("08:00")
    out.leave("11:20", stop=TAN_CANG)
    desk.taken(gate.new(), at("12:00"))
    desk.taken(out.new(), at("12:00"))
    assert desk.balance("anna") == -METRO_LONG, "longer inside than anybody may be"
    slow = Correction("c", "gate-2", at("09:00"), at("15:00"), -170 * MINUTE_MS, at("13:00"), "engineer")
    count = desk.database.transact(lambda connection: desk.application.correct_clock(connection, slow, at("13:00")))
    assert (count, desk.balance("anna")) == (1, -METRO_SHORT)
    gate.enter("11:00", "binh")
    out.leave("14:20", "binh", TAN_CANG)
    desk.taken(out.new(), at("14:30"))
    desk.taken(gate.new(), at("14:30"))
    assert desk.balance("binh") == -METRO_SHORT
    desk.check_books()


# ---- what waits


def test_a_tap_with_a_card_that_is_registered_later_is_charged_then(desk: Desk) -> None:
    bus = Stream("bus-1")
    bus.board("08:00", "new card", decision=Decision.ADMITTED_ALONE)
    assert desk.taken(bus.new()).answers[0].reason == "unknown_token"
    desk.issue("new card")
    used = desk.database.transact(
        lambda connection: jobs.release(connection, desk.application, [f"token:{token('new card')}"], at("13:00"))
    )
    assert (used, desk.balance("new card")) == (1, -BUS_FARE)
    assert desk.rows("select count(*) from quarantine where released_at is null") == [(0,)]
    desk.check_books()


def test_a_tap_at_a_stop_that_is_unknown_yet_is_priced_when_the_network_arrives(desk: Desk, tmp_path: Path) -> None:
    old = without_stop(tmp_path, TAN_CANG)
    before = Application(old, SERVER_KEY)
    gate, out = Stream("gate-1"), Stream("gate-2")
    gate.enter("08:00")
    out.leave("08:20", stop=TAN_CANG)
    receipt = Receipt(desk.database, before)
    receipt.accept_group([gate.new()], at("12:00"))
    receipt.accept_group([out.new()], at("12:00"))
    assert desk.quarantined() == [("gate-2", 1, "unknown_stop")]
    used, _ = jobs.use_what_waits(desk.database, desk.application, at("13:00"))
    assert (used, desk.balance("anna")) == (1, -METRO_SHORT)
    assert jobs.use_what_waits(desk.database, desk.application, at("13:00")) == (0, 0)
    desk.check_books()


def without_stop(folder: Path, stop: str) -> CompiledTariff:
    """The city's tariff from before a station was opened: the stop has another name."""
    city = Path(shutil.copytree(HCMC, folder / "city"))
    for path in (*city.rglob("*.txt"), *city.rglob("*.csv"), *city.rglob("*.toml")):
        text = path.read_text(encoding="utf-8")
        if stop in text:
            path.write_text(text.replace(stop, "L1-OLD"), encoding="utf-8")
    return load_compiled(city, ["proposal-2026-03"])


# ---- drift


def test_prices_that_change_without_a_fact_are_held_and_shown_and_booked_only_when_accepted(desk: Desk, tmp_path: Path) -> None:
    bus = Stream("bus-1")
    bus.board("08:00")
    desk.taken(bus.new())
    city = Path(shutil.copytree(HCMC, tmp_path / "city"))
    fares = city / "proposal-2026-03" / "fare_products.txt"
    text = fares.read_text(encoding="utf-8")
    assert f",{BUS_FARE}," in text
    fares.write_text(text.replace(f",{BUS_FARE},", f",{BUS_FARE + 500},"), encoding="utf-8")
    dearer = Application(load_compiled(city, ["proposal-2026-03"]), SERVER_KEY)
    receipt = Receipt(desk.database, dearer)
    bus.board("09:00")
    (answer,) = receipt.accept_group([bus.new()], at("12:00"))[0].answers  # type: ignore[union-attr]
    assert (answer.decision, answer.fare, answer.reason, answer.provisional) == ("admitted", None, "held", True)
    assert desk.balance("anna") == -BUS_FARE
    with desk.database.read() as connection:
        ((traveller_id, _, _, detail),) = travellers.list_drifts(connection)
    assert traveller_id == "anna"
    assert any(line.startswith("- ") and f" {BUS_FARE} " in line for line in detail.splitlines())
    assert any(line.startswith("+ ") and f" {BUS_FARE + 500} " in line for line in detail.splitlines())
    with desk.database.write() as connection:
        dearer.accept_drift(connection, "anna", at("13:00"))
        assert travellers.list_drifts(connection) == []
    assert desk.balance("anna") == -2 * (BUS_FARE + 500)
    desk.check_books()


def test_a_new_version_for_a_later_day_drifts_nothing(desk: Desk, tmp_path: Path) -> None:
    bus = Stream("bus-1")
    bus.board("08:00")
    desk.taken(bus.new())
    city = Path(shutil.copytree(HCMC, tmp_path / "city"))
    later = Path(shutil.copytree(city / "proposal-2026-03", city / "later"))
    path = later / "tariff.toml"
    text = path.read_text(encoding="utf-8").replace('version = "proposal-2026-03"', 'version = "later"')
    path.write_text(text.replace("valid_from = 2026-03-01", "valid_from = 2027-01-01", 1), encoding="utf-8")
    after = Application(load_compiled(city, ["proposal-2026-03", "later"]), SERVER_KEY)
    bus.board("09:00")
    (answer,) = Receipt(desk.database, after).accept_group([bus.new()], at("12:00"))[0].answers  # type: ignore[union-attr]
    assert (answer.fare, answer.provisional, desk.balance("anna")) == (BUS_FARE, False, -2 * BUS_FARE)


# ---- prepaid


def test_a_ride_that_would_leave_too_little_is_refused_and_costs_nothing(desk: Desk) -> None:
    desk.issue("poor", kind="prepaid", balance=1000)
    bus, gate = Stream("bus-1"), Stream("gate-1")
    bus.board("08:00", "poor")
    answer = desk.tapped(bus)
    assert (answer.decision, answer.balance) == ("admitted", 1000 - BUS_FARE)
    gate.enter("09:00", "poor")
    answer = desk.tapped(gate)
    assert (answer.decision, answer.reason) == ("refused", "insufficient_balance")
    assert desk.balance("poor") == 1000 - BUS_FARE


def test_the_floor_counts_what_is_held(desk: Desk, tmp_path: Path) -> None:
    city = Path(shutil.copytree(HCMC, tmp_path / "city"))
    path = city / "proposal-2026-03" / "tariff.toml"
    path.write_text(path.read_text(encoding="utf-8").replace("prepaid_floor = -30000", "prepaid_floor = 0"), encoding="utf-8")
    strict = Receipt(desk.database, Application(load_compiled(city, ["proposal-2026-03"]), SERVER_KEY))
    desk.issue("poor", kind="prepaid", balance=10_000)
    gate, bus = Stream("gate-1"), Stream("bus-1")
    gate.enter("09:00", "poor")
    (answer,) = strict.accept_group([gate.new()], at("12:00"))[0].answers  # type: ignore[union-attr]
    assert (answer.decision, answer.reason) == ("refused", "insufficient_balance")
    assert desk.balance("poor") == 10_000
    bus.board("09:10", "poor")
    (answer,) = strict.accept_group([bus.new()], at("12:00"))[0].answers  # type: ignore[union-attr]
    assert (answer.decision, answer.balance) == ("admitted", 10_000 - BUS_FARE)


# ---- keys of tokens


def test_a_token_made_with_a_new_key_is_known_by_its_token_of_before(desk: Desk) -> None:
    bus = Stream("bus-1")
    new = terminal_token("anna under the new key")
    bus.add(TapKind.BOARD, at("08:00"), "", route_id="1", token=new, token_key_version=2, former_token=terminal_token("anna"))
    bus.add(TapKind.BOARD, at("09:00"), "", route_id="1", token=new, token_key_version=2)
    first, second = desk.taken(bus.new()).answers
    assert (first.result, second.result) == ("ACCEPTED", "ACCEPTED")
    assert desk.balance("anna") == -2 * BUS_FARE
    desk.check_books()


def test_a_device_s_limits_set_aside_what_it_should_never_see(desk: Desk) -> None:
    with desk.database.write() as connection:
        registry.limit_device(connection, "bus-1", '{"routes": ["1"], "taps_a_minute": 2}')
    bus = Stream("bus-1")
    for second in range(4):
        bus.board(f"08:00:0{second}", ("anna", "binh", "chi", "anna")[second])
    bus.board("08:05", "chi", route="150")
    answers = desk.taken(bus.new()).answers
    assert [answer.reason for answer in answers] == [None, None, "too_many_taps", "too_many_taps", "wrong_route"]


def test_a_card_in_two_places_too_soon_raises_an_alarm(desk: Desk) -> None:
    gate, other, bus = Stream("gate-1"), Stream("gate-2"), Stream("bus-1")
    gate.enter("08:00", stop=BEN_THANH)
    bus.board("08:01", route="1")
    other.leave("08:40", stop=SUOI_TIEN)
    for stream in (gate, bus, other):
        desk.taken(stream.new())
    with desk.database.read() as connection:
        assert receipts.list_alarms(connection) == [], "one rider can do that"
    other.enter("09:00", "binh", stop=SUOI_TIEN)
    gate.enter("09:03", "binh", stop=BEN_THANH)
    desk.taken(other.new())
    desk.taken(gate.new())
    with desk.database.read() as connection:
        (alarm,) = receipts.list_alarms(connection)
    assert (alarm.kind, alarm.device_id) == ("two_places", "gate-1")
    assert f"token {token('binh')} at {BEN_THANH} and {SUOI_TIEN}" in alarm.detail
    assert "within 180 s" in alarm.detail
