"""Collection on a real store: days are charged once, debts lead to the deny list and off it, and the books balance throughout."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from clearing.collection import cards, store
from clearing.collection.charges import Event
from clearing.collection.collector import AT_ONCE, AWAY_AFTER
from fare_engine import publishing
from fare_engine.errors import CollectionError
from fare_engine.service_day import DAY_MS
from fare_engine.store import deny, travellers
from fare_engine.tokens import stored_card_number
from tests.builders import SERVER_KEY
from tests.collecting import MONDAY, THURSDAY, TUESDAY, WEDNESDAY, CollectingTown, collecting, refunded

FRIDAY, SATURDAY = "2026-03-06", "2026-03-07"
OLD, NEW = "9704 0000 0000 0001", "9704 0000 0000 0002"


def denied(town: CollectingTown) -> list[bytes]:
    with town.database.read() as connection:
        return deny.denied_at(connection, deny.newest_version(connection))


def know_media(town: CollectingTown, *names: str) -> None:
    """What terminals send for these cards is known, so that the deny list can name them."""
    with town.database.write() as connection:
        for name in names:
            connection.exec_driver_sql(f"delete from tokens where token_id = '{town.token_id(name)}'")
            token = travellers.NewToken(town.token_id(name), name, f"account-{name}", town._token(name))
            travellers.add_tokens(connection, [token])


def default(town: CollectingTown, *cards_of: str) -> None:
    """Their sources decline on Tuesday and Wednesday, which is once more than is borne."""
    for card in cards_of:
        town.fake.states[f"src-{card}"] = "declined"
    town.ride(TUESDAY, *cards_of)
    town.collect(TUESDAY)
    town.collect(WEDNESDAY)


def positions(documents: dict[str, bytes]) -> dict[str, int]:
    """Net positions of a close."""
    rows = csv.DictReader(documents["positions.csv"].decode().splitlines())
    return {row["party_id"]: int(row["net"]) for row in rows}


# ---- days


def test_a_day_is_charged_once_and_the_provider_holds_the_money(tmp_path: Path) -> None:
    town = collecting(tmp_path, "ana", "ben", "chi")
    town.ride(TUESDAY, "ana", "ben", "chi")
    town.ride(TUESDAY, "ana")
    town.fake.states["src-chi"] = "declined"
    found = town.collect(TUESDAY)
    assert (found.charged, found.amount, found.declined) == (2, 15_000, 1)
    assert [town.balance(card) for card in ("ana", "ben", "chi")] == [0, 0, -5000]
    assert town.booked("collector:ACQ") == 15_000
    assert town.booked("fees:CITY") == -town.booked("fees:ACQ") == 250 + 175
    again = town.collect(TUESDAY)
    assert (again.charged, again.declined) == (0, 0)
    assert len(town.fake.asked) == 3
    assert town.kinds(town.after(TUESDAY)) == []
    town.assert_sound()


def test_what_is_ridden_after_the_date_waits_for_its_own(tmp_path: Path) -> None:
    town = collecting(tmp_path, "ana")
    town.ride(TUESDAY, "ana")
    town.ride(WEDNESDAY, "ana")
    assert town.collect(TUESDAY).amount == 5000
    assert town.collect(WEDNESDAY).amount == 5000
    assert [charge.service_date for charge in town.charges("ana")] == [TUESDAY, WEDNESDAY]
    assert town.balance("ana") == 0


def test_a_late_ride_is_charged_with_the_next_date_and_small_totals_wait(tmp_path: Path) -> None:
    town = collecting(tmp_path, "ana")
    town.ride(TUESDAY, "ana")
    town.collect(TUESDAY)
    town.take(f"{TUESDAY} 06:00 board 11 card=ana", now=f"{WEDNESDAY} 09:00")
    assert town.collect(TUESDAY).amount == 0
    assert town.collect(WEDNESDAY).amount == 5000


def test_who_has_no_source_is_counted_and_not_charged(tmp_path: Path) -> None:
    town = CollectingTown(tmp_path)
    town.issue("ana")
    town.ride(TUESDAY, "ana")
    assert town.collect(TUESDAY).without_source == 1
    assert town.charges("ana") == []


def test_what_was_collected_under_a_closed_date_is_booked_under_the_next_open_one(tmp_path: Path) -> None:
    town = collecting(tmp_path, "ana")
    town.ride(TUESDAY, "ana")
    town.close(TUESDAY)
    town.collect(TUESDAY)
    dates = town.rows("select distinct service_date, accounting_date from postings where code = 'COLLECTED'")
    assert dates == [(TUESDAY, WEDNESDAY)]


def test_what_the_provider_and_a_till_hold_enters_netting_as_their_debt(tmp_path: Path) -> None:
    town = collecting(tmp_path, "ana", "ben")
    town.issue("chi", kind="prepaid")
    town.ride(TUESDAY, "ana", "ben")
    town.collect(TUESDAY)
    card_of(town, "chi", value=40_000)
    assert positions(town.close(TUESDAY)) == {"ACQ": -9650, "BUSCO": 10_000, "CITY": -350, "RAIL": -40_000, "riders": 40_000}
    town.collector.refund(town.line_of("ana"), 2000, "late", town.after(TUESDAY))
    assert positions(town.close(WEDNESDAY)) == {"ACQ": 2000, "BUSCO": -2000}
    town.assert_sound()


def test_without_an_answer_the_same_charge_is_asked_for_again(tmp_path: Path) -> None:
    town = collecting(tmp_path, "ana")
    town.ride(TUESDAY, "ana")
    town.fake.states["src-ana"] = None
    assert town.collect(TUESDAY).undecided == 1
    town.ride(WEDNESDAY, "ana")
    assert town.collect(WEDNESDAY).waiting == 1
    town.fake.states["src-ana"] = "captured"
    found = town.collect(THURSDAY)
    assert (found.resumed, found.charged, found.amount) == (1, 1, 5000)
    assert town.fake.asked[0] == town.fake.asked[1] == town.fake.asked[2]
    assert len(set(town.fake.asked)) == 2
    assert town.balance("ana") == 0
    town.assert_sound()


def test_a_pending_charge_is_decided_by_a_webhook_before_or_after_it_is_asked_again(tmp_path: Path) -> None:
    town = collecting(tmp_path, "ana", "ben")
    town.ride(TUESDAY, "ana", "ben")
    town.fake.states |= {"src-ana": "pending", "src-ben": "pending"}
    town.collect(TUESDAY)
    (ana,), (ben,) = town.charges("ana"), town.charges("ben")
    assert (ana.state, ben.state) == ("pending", "pending")
    now = town.after(TUESDAY)
    for charge, kind in ((ana, "captured"), (ben, "declined")):
        told = Event(event_id=f"evt-{kind}", charge_id=charge.charge_id, kind=kind, amount=5000, at=now, received_at=now)  # type: ignore[arg-type]
        assert town.collector.take(told, now)
        assert not town.collector.take(told, now + 5)
    town.fake.states |= {"src-ana": "captured", "src-ben": "declined"}
    town.collector.resume(now + DAY_MS)
    assert (town.balance("ana"), town.balance("ben")) == (0, -5000)
    town.assert_sound()


def test_a_provider_that_is_away_holds_nobody_up_and_a_later_run_charges_everybody(tmp_path: Path) -> None:
    riders = [f"rider{number}" for number in range(30)]
    town = collecting(tmp_path, *riders)
    town.ride(TUESDAY, *riders)
    town.fake.states |= dict.fromkeys((f"src-{rider}" for rider in riders), None)
    found = town.collect(TUESDAY)
    assert found.undecided + found.left == 30
    assert len(town.fake.asked) <= AWAY_AFTER + AT_ONCE
    town.fake.states.clear()
    found = town.collect(TUESDAY)
    assert found.resumed + found.charged == 30
    assert {town.balance(rider) for rider in riders} == {0}
    town.assert_sound()


def test_what_stays_undecided_is_asked_for_less_and_less_often(tmp_path: Path) -> None:
    town = collecting(tmp_path, "ana")
    town.ride(TUESDAY, "ana")
    town.fake.states["src-ana"] = "pending"
    town.collect(TUESDAY)
    town.fake.asked.clear()
    now = town.after(TUESDAY)
    for second in range(600):
        town.collector.run_turn(now + second * 1000)
    assert len(town.fake.asked) == 5  # after 30, 60, 120, 240 and 480 s


# ---- debts


def test_declines_lead_to_the_deny_list_and_a_payment_off_it(tmp_path: Path) -> None:
    town = collecting(tmp_path, "ana")
    know_media(town, "ana")
    town.fake.states["src-ana"] = "declined"
    town.ride(TUESDAY, "ana")
    town.collect(TUESDAY)
    assert not town.is_blocked("ana")
    town.collect(WEDNESDAY)
    assert town.is_blocked("ana")
    assert denied(town) == [town._token("ana")[:8]]
    assert town.collect(THURSDAY).waiting == 1, "three days after the second decline, not one"
    assert town.kinds(town.after(THURSDAY)) == []
    town.fake.states["src-ana"] = "captured"
    assert town.collect(SATURDAY).charged == 1
    assert not town.is_blocked("ana")
    assert denied(town) == []
    assert town.kinds(town.after(SATURDAY)) == []
    town.assert_sound()


def test_a_rider_pays_his_debt_himself_and_rides_at_once(tmp_path: Path) -> None:
    town = collecting(tmp_path, "ana")
    default(town, "ana")
    assert town.is_blocked("ana")
    town.fake.states["src-ana"] = "captured"
    paid = town.collector.pay_debt("account-ana", "key", town.after(WEDNESDAY) + 1)
    assert (paid.state, paid.amount) == ("captured", 5000)
    assert town.collector.pay_debt("account-ana", "key", town.after(THURSDAY)) == paid
    assert not town.is_blocked("ana")
    with pytest.raises(CollectionError, match="nothing_owed"):
        town.collector.pay_debt("account-ana", "another", town.after(THURSDAY))


def test_a_debt_is_given_up_at_its_bearers_expense_and_still_paid_before_the_card_is_good_again(tmp_path: Path) -> None:
    town = collecting(tmp_path, "ana")
    town.fake.states["src-ana"] = "declined"
    for day in (TUESDAY, WEDNESDAY):
        for clock in ("07:00", "08:00"):
            town.take(f"{day} {clock} board 10 card=ana")
        town.collect(day)
    end = "2026-04-02"
    assert town.collect("2026-04-01").written_off == 0
    assert town.collect(end).written_off == 20_000
    assert (town.balance("ana"), town.booked("losses:CITY"), town.booked("losses:SPONSOR")) == (0, 8000, 12_000)
    assert town.collect("2026-04-03").written_off == 0
    assert town.is_blocked("ana")
    town.assert_sound()
    town.fake.states["src-ana"] = "captured"
    assert town.collector.pay_debt("account-ana", "key", town.after("2026-04-03") + 1).state == "captured"
    assert (town.booked("losses:CITY"), town.booked("losses:SPONSOR"), town.booked("collector:ACQ")) == (0, 0, 20_000)
    assert not town.is_blocked("ana")
    assert town.kinds(town.after("2026-04-03")) == []
    town.assert_sound()


def test_a_chargeback_makes_the_debt_anew_and_denies_at_once(tmp_path: Path) -> None:
    town = collecting(tmp_path, "ana")
    town.ride(TUESDAY, "ana")
    town.collect(TUESDAY)
    (charge,) = town.charges("ana")
    now = town.after(THURSDAY)
    town.collector.take(
        Event(event_id="e", charge_id=charge.charge_id, kind="charged_back", reference="b", amount=5000, at=now, received_at=now),
        now,
    )
    assert (town.balance("ana"), town.booked("collector:ACQ"), town.booked("fees:CITY")) == (-5000, 0, 20_175)
    assert town.is_blocked("ana")
    assert town.collect(FRIDAY).waiting == 1
    town.collector.pay_debt("account-ana", "key", now + DAY_MS)
    assert not town.is_blocked("ana")
    town.assert_sound()


def of_chargeback(town: CollectingTown, kind: str, amount: int, now: int, reference: str = "b") -> None:
    """The provider tells of a chargeback of Ana's first charge, or that it was won back."""
    charge_id = town.charges("ana")[0].charge_id
    told = Event(
        event_id=f"{kind}-{reference}", charge_id=charge_id, kind=kind, reference=reference, amount=amount, at=now  # type: ignore[arg-type]
    )  # fmt: skip
    assert town.collector.take(told, now)


def charged_back(folder: Path, amount: int = 5000, rides: int = 0) -> CollectingTown:
    """Ana paid Tuesday's 5,000, and rides on Thursday; then her bank takes so much of it back."""
    town = collecting(folder, "ana")
    town.ride(TUESDAY, "ana")
    town.collect(TUESDAY)
    if rides:
        town.ride(THURSDAY, *rides * ["ana"])
    of_chargeback(town, "charged_back", amount, town.after(THURSDAY))
    assert (town.balance("ana"), town.is_blocked("ana")) == (-amount - 5000 * rides, True)
    return town


def test_a_chargeback_that_is_won_back_leaves_nothing_owed_and_nobody_denied(tmp_path: Path) -> None:
    town = charged_back(tmp_path)
    of_chargeback(town, "won_back", 5000, town.after(FRIDAY))
    assert (town.balance("ana"), town.booked("collector:ACQ"), town.booked("fees:CITY")) == (0, 5000, 20_175)
    assert not town.is_blocked("ana")
    assert town.kinds(town.after(FRIDAY)) == []
    town.ride("2026-03-09", "ana")
    assert town.collect("2026-03-09").amount == 5000
    town.assert_sound()


def test_what_was_won_back_may_be_known_before_its_chargeback(tmp_path: Path) -> None:
    town = collecting(tmp_path, "ana")
    town.ride(TUESDAY, "ana")
    town.collect(TUESDAY)
    of_chargeback(town, "won_back", 5000, town.after(WEDNESDAY))
    assert town.kinds(town.after(WEDNESDAY)) == ["won_back_before_chargeback"]
    assert town.booked("collector:ACQ") == 5000
    of_chargeback(town, "charged_back", 5000, town.after(THURSDAY))
    assert (town.balance("ana"), town.booked("collector:ACQ"), town.is_blocked("ana")) == (0, 5000, False)
    assert town.kinds(town.after(THURSDAY)) == []
    town.assert_sound()


def test_of_a_chargeback_that_is_won_back_in_part_the_rest_is_owed_and_denies(tmp_path: Path) -> None:
    town = charged_back(tmp_path, 3000)
    of_chargeback(town, "won_back", 2000, town.after(FRIDAY))
    assert (town.balance("ana"), town.booked("collector:ACQ"), town.is_blocked("ana")) == (-1000, 4000, True)
    assert town.collect(FRIDAY).waiting == 1
    town.collector.pay_debt("account-ana", "key", town.after(FRIDAY) + 1)
    assert not town.is_blocked("ana")
    assert town.kinds(town.after(FRIDAY)) == []
    town.assert_sound()


def test_what_is_owed_besides_a_chargeback_is_charged_as_ever_once_it_is_won_back(tmp_path: Path) -> None:
    town = charged_back(tmp_path, rides=1)
    assert town.collect(FRIDAY).waiting == 1
    of_chargeback(town, "won_back", 5000, town.after("2026-03-07"))
    assert (town.balance("ana"), town.is_blocked("ana")) == (-5000, False)
    assert town.collect("2026-03-07").amount == 5000
    town.assert_sound()


def test_who_has_paid_a_chargeback_meanwhile_has_it_as_credit_when_it_is_won_back(tmp_path: Path) -> None:
    town = charged_back(tmp_path)
    town.collector.pay_debt("account-ana", "key", town.after(FRIDAY))
    of_chargeback(town, "won_back", 5000, town.after("2026-03-09"))
    assert (town.balance("ana"), town.booked("collector:ACQ")) == (5000, 10_000)
    assert town.kinds(town.after("2026-03-09")) == []
    town.assert_sound()


def test_what_is_won_back_of_a_debt_that_was_given_up_goes_to_who_bore_it(tmp_path: Path) -> None:
    town = charged_back(tmp_path, rides=3)
    end = "2026-04-07"
    assert town.collect(end).written_off == 20_000
    assert (town.booked("losses:CITY"), town.booked("losses:SPONSOR")) == (5000, 15_000)
    of_chargeback(town, "won_back", 4000, town.after(end) + 1)
    assert (town.booked("losses:CITY"), town.booked("losses:SPONSOR")) == (4000, 12_000)
    assert (town.balance("ana"), town.booked("collector:ACQ"), town.is_blocked("ana")) == (0, 4000, True)
    assert town.kinds(town.after(end)) == []
    town.assert_sound()
    assert town.collector.pay_debt("account-ana", "key", town.after(end) + 2).amount == 16_000
    assert (town.booked("losses:CITY"), town.booked("losses:SPONSOR"), town.is_blocked("ana")) == (0, 0, False)
    assert town.kinds(town.after(end)) == []
    town.assert_sound()


def test_a_debt_that_is_won_back_while_its_rider_pays_it_is_his_credit(tmp_path: Path) -> None:
    town = charged_back(tmp_path)
    end = "2026-04-07"
    assert town.collect(end).written_off == 5000
    town.fake.states["src-ana"] = "pending"
    assert town.collector.pay_debt("account-ana", "key", town.after(end) + 1).state == "pending"
    of_chargeback(town, "won_back", 5000, town.after(end) + 2)
    assert (town.booked("losses:CITY"), town.is_blocked("ana")) == (0, False)
    town.fake.states["src-ana"] = "captured"
    town.collector.resume(town.after(end) + 3)
    assert (town.balance("ana"), town.booked("collector:ACQ"), town.booked("losses:CITY")) == (5000, 10_000, 0)
    assert town.kinds(town.after(end)) == []
    town.assert_sound()


# ---- refunds


def test_a_refund_goes_to_the_source_that_paid_and_its_operator_bears_it(tmp_path: Path) -> None:
    town = collecting(tmp_path, "ana")
    town.ride(TUESDAY, "ana")
    town.collect(TUESDAY)
    found = town.collector.refund(town.line_of("ana"), 2000, "late bus", town.after(WEDNESDAY))
    assert (found.state, found.charge_id) == ("refunded", town.charges("ana")[0].charge_id)
    assert (town.balance("ana"), town.booked("collector:ACQ"), town.booked("losses:BUSCO")) == (0, 3000, 2000)
    assert town.kinds(town.after(WEDNESDAY)) == []
    town.assert_sound()


def test_a_refund_of_what_no_source_has_paid_is_taken_off_what_is_owed(tmp_path: Path) -> None:
    town = collecting(tmp_path, "ana")
    town.ride(TUESDAY, "ana")
    found = town.collector.refund(town.line_of("ana"), 2000, "", town.after(TUESDAY))
    assert (found.state, found.charge_id, town.balance("ana")) == ("credited", None, -3000)
    assert town.collect(TUESDAY).amount == 3000
    town.assert_sound()


def test_a_refund_needs_a_line_that_stands(tmp_path: Path) -> None:
    town = collecting(tmp_path, "ana")
    town.ride(TUESDAY, "ana")
    line = town.line_of("ana")
    town.tell("dev-BUSCO", 1, f"{TUESDAY} 08:00")
    for transaction in (line, "0" * 32):
        with pytest.raises(CollectionError, match="no_line"):
            town.collector.refund(transaction, 1000, "", town.after(TUESDAY))


# ---- stored value


def test_a_top_up_gives_its_value_when_the_money_was_taken(tmp_path: Path) -> None:
    town = collecting(tmp_path, "ana", kind="prepaid")
    now = town.after(MONDAY)
    town.fake.states["src-ana"] = None
    assert town.collector.top_up("account-ana", 50_000, "k", now).state == "begun"
    assert town.balance("ana") == 0
    town.fake.states["src-ana"] = "captured"
    assert town.collector.top_up("account-ana", 50_000, "k", now + 1).state == "captured"
    assert town.collector.top_up("account-ana", 50_000, "k", now + 2).state == "captured"
    assert (town.balance("ana"), town.booked("collector:ACQ")) == (50_000, 50_000)
    with database_of(town) as connection:
        assert store.stored_value(connection) == 50_000
    with pytest.raises(CollectionError, match="different_content"):
        town.collector.top_up("account-ana", 60_000, "k", now)
    town.assert_sound()


def database_of(town: CollectingTown):  # type: ignore[no-untyped-def]
    return town.database.read()


@pytest.mark.parametrize(("amount", "cause"), [(9_999, "amount"), (500_001, "amount"), (-50_000, "amount")])
def test_a_top_up_keeps_to_its_limits(tmp_path: Path, amount: int, cause: str) -> None:
    town = collecting(tmp_path, "ana", kind="prepaid")
    with pytest.raises(CollectionError, match=cause):
        town.collector.top_up("account-ana", amount, "k", town.after(MONDAY))


def test_a_card_holds_so_much_and_is_topped_up_so_often_a_day(tmp_path: Path) -> None:
    town = collecting(tmp_path, "ana", kind="prepaid")
    now = town.after(MONDAY)
    for key in ("1", "2"):
        town.collector.top_up("account-ana", 500_000, key, now)
    with pytest.raises(CollectionError, match="balance_limit"):
        town.collector.top_up("account-ana", 10_000, "3", now)
    town.take(f"{TUESDAY} 07:00 board F card=ana\n{TUESDAY} 08:00 board F card=ana")
    town.collector.top_up("account-ana", 10_000, "3", now)
    with pytest.raises(CollectionError, match="too_many"):
        town.collector.top_up("account-ana", 10_000, "4", now)
    town.issue("ben")
    with pytest.raises(CollectionError, match="not_prepaid"):
        town.collector.top_up("account-ben", 10_000, "5", now)


def test_a_card_tops_itself_up_when_little_is_left(tmp_path: Path) -> None:
    town = collecting(tmp_path, "ana", kind="prepaid")
    town.collector.set_auto("account-ana", 20_000, 50_000)
    now = town.after(MONDAY)
    assert town.collector.run_turn(now) == 1
    assert town.balance("ana") == 50_000
    assert town.collector.run_turn(now + 1) == 0
    town.take(f"{TUESDAY} 07:00 board F card=ana\n{TUESDAY} 08:00 board F card=ana\n{TUESDAY} 09:00 board 10 card=ana")
    assert town.collector.run_turn(now + 2) == 1
    assert town.balance("ana") == 65_000
    town.collector.set_auto("account-ana", None, None)
    town.assert_sound()


def test_after_a_decline_a_card_waits_a_day_before_it_tops_itself_up_again(tmp_path: Path) -> None:
    town = collecting(tmp_path, "ana", kind="prepaid")
    town.collector.set_auto("account-ana", 20_000, 50_000)
    town.fake.states["src-ana"] = "declined"
    now = town.after(MONDAY)
    assert [town.collector.run_turn(now + wait) for wait in (0, 1000, DAY_MS)] == [1, 0, 1]
    assert not town.is_blocked("ana")


def test_what_a_till_took_is_on_the_card_and_its_keeper_owes_it(tmp_path: Path) -> None:
    town = collecting(tmp_path, "ana", kind="prepaid")
    for _ in range(2):
        town.collector.take_at_till("account-ana", 30_000, "RAIL", "receipt 1", town.after(MONDAY))
    assert (town.balance("ana"), town.booked("collector:RAIL"), town.booked("fees:CITY")) == (30_000, 30_000, 0)
    with pytest.raises(CollectionError, match="different_content"):
        town.collector.take_at_till("account-ana", 40_000, "RAIL", "receipt 1", town.after(MONDAY))
    with pytest.raises(CollectionError, match="no_party"):
        town.collector.take_at_till("account-ana", 40_000, "NOBODY", "receipt 2", town.after(MONDAY))
    assert town.kinds(town.after(MONDAY), "kind,charge_id,reference,amount,at\n") == []
    town.assert_sound()


# ---- cards


def card_of(town: CollectingTown, card: str, number: str = OLD, value: int = 100_000) -> None:
    """A card that was issued on Monday, with so much on it before its deposit."""
    town.collector.take_at_till(f"account-{card}", value, "RAIL", f"first {card}", town.after(MONDAY) - 1)
    with town.database.write() as connection:
        number_hash = stored_card_number(SERVER_KEY, number)
        cards.issue(town.collector, connection, f"account-{card}", number_hash, "0001", None, MONDAY)


def replace(town: CollectingTown, medium: bytes | None = None, now: int = 0) -> None:
    at = now or town.after(TUESDAY)
    town.database.transact(
        lambda connection: cards.replace(town.collector, connection, town.application, OLD, NEW, medium, at), alone=True
    )


def test_a_card_is_replaced_with_all_that_is_on_it(tmp_path: Path) -> None:
    town = collecting(tmp_path, "ana", kind="prepaid")
    card_of(town, "ana")
    assert (town.balance("ana"), town.booked("deposits:account-ana")) == (85_000, -15_000)
    replace(town, town._token("ana2"))
    assert town.is_blocked("ana")
    assert not town.is_blocked("ana2")
    town.take(f"{THURSDAY} 07:00 board 10 card=ana2")
    assert (town.balance("ana"), town.booked("deposits:account-ana")) == (80_000, -15_000)
    with town.database.read() as connection:
        assert travellers.find_account_by_card(connection, stored_card_number(SERVER_KEY, OLD)) is None
        found = travellers.find_account_by_card(connection, stored_card_number(SERVER_KEY, NEW))
    assert found is not None
    assert (found.account_id, found.card_label) == ("account-ana", "0002")
    with pytest.raises(CollectionError, match="card_known"):
        town.database.transact(
            lambda connection: cards.replace(town.collector, connection, town.application, NEW, OLD, None, town.after(FRIDAY)),
            alone=True,
        )
    assert town.close(THURSDAY)
    town.assert_sound()


def test_a_new_card_does_not_leave_a_debt_behind(tmp_path: Path) -> None:
    town = collecting(tmp_path, "ana")
    with town.database.write() as connection:
        cards.issue(town.collector, connection, "account-ana", stored_card_number(SERVER_KEY, OLD), "0001", None, MONDAY)
    default(town, "ana")
    replace(town, town._token("ana2"), town.after(THURSDAY))
    assert town.is_blocked("ana2")
    town.fake.states["src-ana"] = "captured"
    town.collector.pay_debt("account-ana", "k", town.after(THURSDAY) + 1)
    assert (town.is_blocked("ana"), town.is_blocked("ana2")) == (True, False)
    assert town.kinds(town.after(THURSDAY)) == []


def test_a_card_ends_and_what_is_left_waits_before_it_goes_where_the_rules_say(tmp_path: Path) -> None:
    town = collecting(tmp_path, "ana", kind="prepaid")
    card_of(town, "ana")
    end = "2031-03-03"
    assert cards.expire(town.collector, "2031-03-02", town.after("2031-03-01")).expired == 0
    assert cards.expire(town.collector, end, town.after(end)).expired == 1
    assert town.is_blocked("ana")
    assert cards.expire(town.collector, "2032-03-01", town.after("2032-03-01")).swept == 0
    assert town.balance("ana") == 85_000
    found = cards.expire(town.collector, "2032-03-02", town.after("2032-03-02"))
    assert (found.swept, found.residual) == (1, 100_000)
    assert (town.balance("ana"), town.booked("deposits:account-ana"), town.booked("fees:CITY")) == (0, 0, -100_000)
    assert cards.expire(town.collector, "2032-03-03", town.after("2032-03-03")).swept == 0
    town.assert_sound()


def test_the_value_of_a_card_that_ended_goes_to_another_one_while_it_is_kept(tmp_path: Path) -> None:
    town = collecting(tmp_path, "ana", kind="prepaid")
    card_of(town, "ana")
    cards.expire(town.collector, "2031-03-03", town.after("2031-03-03"))
    replace(town, town._token("ana2"), town.after("2031-06-01"))
    assert cards.expire(town.collector, "2033-01-01", town.after("2033-01-01")).swept == 0
    assert town.balance("ana") == 85_000
    assert not town.is_blocked("ana2")


def test_a_lost_card_stays_blocked_whatever_is_paid(tmp_path: Path) -> None:
    town = collecting(tmp_path, "ana", "ben")
    know_media(town, "ana", "ben")
    default(town, "ana")
    town.fake.states["src-ben"] = "declined"
    town.ride(TUESDAY, "ben")
    with town.database.write() as connection:
        publishing.block(connection, town.token_id("ben"), town.after(TUESDAY), "lost")
    town.collect(TUESDAY)
    town.collect(WEDNESDAY)
    with town.database.write() as connection:
        publishing.block(connection, town.token_id("ana"), town.after(WEDNESDAY), "lost")
    for card in ("ana", "ben"):
        town.fake.states[f"src-{card}"] = "captured"
        town.collector.pay_debt(f"account-{card}", "k", town.after(THURSDAY))
    assert (town.is_blocked("ana"), town.is_blocked("ben")) == (True, True)
    assert len(denied(town)) == 2
    assert town.kinds(town.after(THURSDAY)) == []


def test_a_refund_that_is_answered_twice_moves_once(tmp_path: Path) -> None:
    town = collecting(tmp_path, "ana")
    town.ride(TUESDAY, "ana")
    town.collect(TUESDAY)
    found = town.collector.refund(town.line_of("ana"), 2000, "", town.after(WEDNESDAY))
    assert town.collector.take(refunded(found, "evt-1"), town.after(WEDNESDAY))
    assert town.booked("collector:ACQ") == 3000
    town.assert_sound()
