"""What went wrong with collection elsewhere, planted here: each fault moves no money that it should not, and has a name."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from sqlalchemy import Connection
from starlette.testclient import TestClient

from clearing.collection import pages, store
from clearing.collection.charges import Charge, Event, digest
from clearing.collection.opening import provider_secret
from clearing.collection.provider import EVENTS_PATH, SIGNATURE, TIMESTAMP, Notice, sign, webhook_key
from fare_engine import publishing
from fare_engine.errors import CollectionError
from fare_engine.ledger import Code, Posting
from fare_engine.service.app import Service, create_app, open_service
from fare_engine.service_day import DAY_MS
from fare_engine.settings import Settings
from fare_engine.store import travellers
from tests.builders import SERVER_KEY
from tests.collecting import TUESDAY, WEDNESDAY, CollectingTown, collecting, provider_process, refunded

HEAD = "kind,charge_id,reference,amount,at\n"


def charged(folder: Path, *cards: str) -> CollectingTown:
    """Each has ridden for 5,000 on Tuesday and was charged."""
    town = collecting(folder, *cards)
    town.ride(TUESDAY, *cards)
    town.collect(TUESDAY)
    return town


def tell(town: CollectingTown, card: str, kind: str, amount: int, reference: str = "", number: int = 0) -> bool:
    """The provider tells something of a card's first charge, a day later."""
    now = town.after(WEDNESDAY) + number
    charge_id = town.charges(card)[0].charge_id
    told = Event(
        event_id=f"evt-{card}-{kind}-{reference}-{number}", charge_id=charge_id, kind=kind, reference=reference,  # type: ignore[arg-type]
        amount=amount, at=now, received_at=now,
    )  # fmt: skip
    return town.collector.take(told, now)


def report_of(town: CollectingTown, *more: str, leave_out: str = "") -> str:
    """What an honest provider would settle by our own books, and some rows besides."""
    with town.database.read() as connection:
        events = [event for told in store.list_events(connection).values() for event in told]
    rows = {
        f"{event.kind},{event.charge_id},{event.reference},{event.amount},{event.at}"
        for event in events
        if event.kind in ("captured", "refunded", "charged_back", "won_back") and event.charge_id != leave_out
    }
    return HEAD + "".join(f"{row}\n" for row in [*sorted(rows), *more])


def names(town: CollectingTown, report: str | None = None, days: int = 2) -> list[str]:
    return town.kinds(town.after(TUESDAY, days), report)


def test_classic_faults_nothing_is_named_where_nothing_is_wrong(tmp_path: Path) -> None:
    town = charged(tmp_path, "ana")
    town.collector.refund(town.line_of("ana"), 2000, "", town.after(WEDNESDAY))
    assert names(town, report_of(town)) == []
    town.assert_sound()


# ---- refunds


def test_classic_faults_refund_twice(tmp_path: Path) -> None:
    town = charged(tmp_path, "ana")
    line = town.line_of("ana")
    first = town.collector.refund(line, 3000, "", town.after(WEDNESDAY))
    assert town.collector.refund(line, 3000, "", town.after(WEDNESDAY) + 1) == first, "the same request again"
    with pytest.raises(CollectionError, match="refund_twice"):
        town.collector.refund(line, 1000, "", town.after(WEDNESDAY) + 2)
    with pytest.raises(CollectionError, match="above_line"):
        town.collector.refund(line, 3000, "", town.after(WEDNESDAY) + 3, key="another")
    assert town.booked("losses:BUSCO") == 3000
    assert not town.collector.take(refunded(first), town.after(WEDNESDAY) + 4), "the same answer again"
    assert town.collector.take(refunded(first, "evt-again"), town.after(WEDNESDAY) + 4), "as a webhook"
    assert names(town) == []
    tell(town, "ana", "refunded", 2000, first.refund_id, 5)
    assert names(town) == ["refund_twice"]
    assert (town.booked("collector:ACQ"), town.booked("losses:BUSCO")) == (2000, 3000)
    town.assert_sound()


def test_classic_faults_refund_before_capture(tmp_path: Path) -> None:
    town = collecting(tmp_path, "ana")
    town.ride(TUESDAY, "ana")
    town.fake.states["src-ana"] = "pending"
    town.collect(TUESDAY)
    early = town.collector.refund(town.line_of("ana"), 2000, "", town.after(TUESDAY))
    assert early.state == "credited", "nothing was captured: it is taken off what is owed, not sent to a source"
    tell(town, "ana", "refunded", 4, "a refund of theirs")
    assert names(town) == ["pending_too_long", "refund_before_capture"]
    assert town.booked("collector:ACQ") == 0, "not the 4 of a refund of something that was never taken"
    tell(town, "ana", "captured", 5000, number=1)
    assert names(town) == ["refund_not_asked"]
    assert (town.booked("collector:ACQ"), town.balance("ana")) == (5000, 2000)
    town.assert_sound()


def test_classic_faults_refund_above_the_line(tmp_path: Path) -> None:
    town = charged(tmp_path, "ana")
    line = town.line_of("ana")
    for amount in (5001, 0, -5000):
        with pytest.raises(CollectionError, match="above_line"):
            town.collector.refund(line, amount, "", town.after(WEDNESDAY))
    for number, amount in enumerate((3000, 2000)):
        town.collector.refund(line, amount, "", town.after(WEDNESDAY), key=f"{number}")
    with pytest.raises(CollectionError, match="above_line"):
        town.collector.refund(line, 1, "", town.after(WEDNESDAY), key="one more")
    assert (town.booked("collector:ACQ"), town.booked("losses:BUSCO")) == (0, 5000)
    town.assert_sound()


def test_classic_faults_refund_of_a_ride_that_turns_out_to_be_none(tmp_path: Path) -> None:
    town = charged(tmp_path, "ana")
    town.collector.refund(town.line_of("ana"), 2000, "", town.after(WEDNESDAY))
    town.tell("dev-BUSCO", 1, f"{WEDNESDAY} 08:00")
    assert town.balance("ana") == 5000
    found = town.breaks(town.after(TUESDAY, 2))
    assert [(one.kind, one.theirs, one.ours) for one in found] == [("refund_above_line", 2000, 0)]


# ---- what is told, and what is not


def test_classic_faults_pending_that_stays_pending(tmp_path: Path) -> None:
    town = collecting(tmp_path, "ana", "ben")
    town.ride(TUESDAY, "ana", "ben")
    town.fake.states |= {"src-ana": "pending", "src-ben": None}
    town.collect(TUESDAY)
    assert names(town, days=0) == []
    assert names(town) == ["pending_too_long", "unanswered"]
    now = town.after(TUESDAY, 2)
    (text,) = [found.text(now) for found in town.breaks(now) if found.kind == "pending_too_long"]
    assert "age 2 d 0 h" in text
    assert town.charges("ana")[0].charge_id in text


def test_classic_faults_settled_at_the_provider_but_missing_in_our_feed(tmp_path: Path) -> None:
    town = collecting(tmp_path, "ana")
    town.ride(TUESDAY, "ana")
    with provider_process(town) as provider:
        provider.tell("behave", source="src-ana", behaviour="loses")
        town.collect(TUESDAY)
        assert town.balance("ana") == -5000
        found = town.breaks(town.after(TUESDAY), provider.settlement())
        assert [(one.kind, one.theirs, one.ours) for one in found] == [("missing_in_our_feed", 5000, 0)]
        town.collector.collect(WEDNESDAY, town.after(WEDNESDAY))
        assert names(town, provider.settlement()) == []
        assert names(town, HEAD + "captured,no-such-charge,,9000,1\n" + provider.settlement().removeprefix(HEAD)) == [
            "unknown_charge"
        ]
    town.assert_sound()


def test_classic_faults_a_charge_that_was_lost_with_a_disk(tmp_path: Path) -> None:
    town = collecting(tmp_path, "ana")
    town.ride(TUESDAY, "ana")
    charge_id, now = digest("fares", "account-ana", TUESDAY), town.after(TUESDAY)
    told = Event(event_id="e", charge_id=charge_id, kind="captured", amount=5000, at=now)
    assert town.collector.take(told, now)
    assert names(town) == ["unknown_charge"]
    assert town.balance("ana") == -5000
    assert town.collect(TUESDAY).amount == 5000
    assert (town.balance("ana"), town.booked("collector:ACQ")) == (0, 5000)
    assert names(town, report_of(town)) == []
    town.assert_sound()


def test_classic_faults_in_our_feed_but_missing_at_the_provider(tmp_path: Path) -> None:
    town = charged(tmp_path, "ana", "ben")
    lost = town.charges("ana")[0].charge_id
    found = town.breaks(town.after(TUESDAY, 2), report_of(town, leave_out=lost))
    assert [(one.kind, one.subject, one.theirs, one.ours) for one in found] == [
        ("missing_at_provider", f"captured {lost}", 0, 5000)
    ]
    assert "age 1 d" in found[0].text(town.after(TUESDAY, 1))


def test_classic_faults_settled_with_another_amount(tmp_path: Path) -> None:
    town = charged(tmp_path, "ana")
    report = report_of(town).replace(",5000,", ",4999,")
    assert names(town, report) == ["amount_differs"]


# ---- chargebacks


def test_classic_faults_chargeback_twice(tmp_path: Path) -> None:
    town = charged(tmp_path, "ana")
    assert tell(town, "ana", "charged_back", 5000, "cb-1")
    assert not tell(town, "ana", "charged_back", 5000, "cb-1"), "the same event"
    assert tell(town, "ana", "charged_back", 5000, "cb-1", 1), "the same chargeback under another event"
    assert names(town) == []
    tell(town, "ana", "charged_back", 5000, "cb-2", 2)
    assert names(town) == ["chargeback_twice"]
    assert (town.booked("collector:ACQ"), town.balance("ana")) == (0, -5000)
    assert town.booked("fees:CITY") == 175 + 20_000
    town.assert_sound()


def test_classic_faults_chargeback_won_back_is_booked_twice(tmp_path: Path) -> None:
    town = charged(tmp_path, "ana")
    tell(town, "ana", "charged_back", 5000, "cb-1")
    assert tell(town, "ana", "won_back", 5000, "cb-1")
    report = report_of(town)
    row = next(row for row in report.splitlines() if row.startswith("won_back"))
    assert not tell(town, "ana", "won_back", 5000, "cb-1"), "the same event"
    assert tell(town, "ana", "won_back", 5000, "cb-1", 1), "the same under another event"
    assert names(town, report) == []
    assert names(town, f"{report}{row}\n") == ["settled_twice"]
    tell(town, "ana", "won_back", 4000, "cb-1", 2)
    tell(town, "ana", "won_back", 5000, "cb-2", 3)
    assert names(town) == ["won_back_before_chargeback", "won_back_twice"]
    assert (town.booked("collector:ACQ"), town.balance("ana")) == (5000, 0)
    town.assert_sound()
    again = [Posting("collector:ACQ", "rider:account-ana", 5000)]
    with town.database.write() as connection:
        town.collector.book(connection, [("another", Code.WON_BACK, again)], WEDNESDAY)
    assert "value_without_money" in names(town)


def test_classic_faults_chargeback_won_back_is_never_booked(tmp_path: Path) -> None:
    town = charged(tmp_path, "ana")
    with provider_process(town, "--decline", "0") as provider:
        town.ride(WEDNESDAY, "ana")
        town.collect(WEDNESDAY)
        charge_id = town.charges("ana")[1].charge_id
        tell(town, "ana", "charged_back", 3000, "cb-1")
        for kind, amount in (("charged_back", 3000), ("won_back", 2000)):
            provider.tell("move", kind=kind, charge_id=charge_id, amount=amount, reference="cb-1")
        told = [Event(event_id=kind, charge_id=charge_id, kind=kind, reference="cb-1", amount=amount, at=1)
                for kind, amount in (("charged_back", 3000), ("won_back", 2000))]  # fmt: skip
        town.collector.take(told[0], town.after(WEDNESDAY))
        found = [one for one in town.breaks(town.after(WEDNESDAY), provider.settlement()) if one.kind == "missing_in_our_feed"]
        assert [(one.subject, one.theirs) for one in found] == [(f"won_back {charge_id} cb-1", 2000)]
        town.collector.take(told[1], town.after(WEDNESDAY))
        assert "missing_in_our_feed" not in names(town, provider.settlement())
    assert names(town) == []
    town.change("delete from postings where code = 'WON_BACK'")
    assert names(town) == ["money_without_value"]


def test_classic_faults_chargeback_after_refund(tmp_path: Path) -> None:
    town = charged(tmp_path, "ana")
    town.collector.refund(town.line_of("ana"), 5000, "", town.after(WEDNESDAY))
    tell(town, "ana", "charged_back", 5000, "cb-1", 1)
    assert names(town, report_of(town)) == ["chargeback_after_refund"]
    assert (town.booked("collector:ACQ"), town.balance("ana")) == (0, 0), "the rider has his money back once"
    town.assert_sound()


# ---- webhooks


@pytest.fixture
def town(tmp_path: Path) -> CollectingTown:
    """One who was asked for Tuesday's 5,000; the provider has not decided."""
    found = collecting(tmp_path, "ana")
    found.ride(TUESDAY, "ana")
    found.fake.states["src-ana"] = "pending"
    found.collect(TUESDAY)
    return found


def service_of(town: CollectingTown) -> Service:
    """A service over a town's store, on Wednesday."""
    (town.data / "keys" / "server.key").write_bytes(SERVER_KEY)
    return open_service(Settings(data=town.data, tariff=town.opened.tariff_folder), lambda: town.after(WEDNESDAY))


def send(client: TestClient, town: CollectingTown, body: bytes, **changed: str) -> tuple[int, dict[str, object]]:
    timestamp = changed.get("timestamp", str(town.after(WEDNESDAY)))
    key = webhook_key(provider_secret(town.data))
    signature = changed.get("signature") or sign(key, changed.get("signed_at", timestamp), "POST", EVENTS_PATH, body)
    answer = client.post(EVENTS_PATH, content=body, headers={TIMESTAMP: timestamp, SIGNATURE: signature})
    return answer.status_code, answer.json()


def notice(town: CollectingTown, event_id: str = "evt-1", amount: int = 5000) -> bytes:
    charge_id = town.charges("ana")[0].charge_id
    return msgspec.json.encode(Notice(event_id, charge_id, "captured", amount, town.after(WEDNESDAY)))


def test_classic_faults_duplicate_webhook(town: CollectingTown) -> None:
    services = [service_of(town), service_of(town)]
    for number, service in enumerate((*services, *services)):
        client = TestClient(create_app(service, (pages.router,)))
        assert send(client, town, notice(town)) == (200, {"new": number == 0})
    assert (town.balance("ana"), town.booked("collector:ACQ")) == (0, 5000)
    status, problem = send(client, town, notice(town, amount=4000))
    assert (status, problem["cause"]) == (409, "different_content")
    assert send(client, town, notice(town, "evt-2")) == (200, {"new": True})
    assert (town.balance("ana"), town.booked("collector:ACQ")) == (0, 5000)
    town.assert_sound()
    for service in services:
        service.database.dispose()


def test_classic_faults_webhook_forged_or_replayed(town: CollectingTown) -> None:
    service = service_of(town)
    client, body = TestClient(create_app(service, (pages.router,))), notice(town)
    old = str(town.after(WEDNESDAY) - 600_000)
    later = str(town.after(WEDNESDAY) + 600_000)
    refused = [
        ({"signature": "0" * 64}, 401, "bad_signature"),
        ({"timestamp": old}, 401, "stale"),
        ({"timestamp": later}, 401, "stale"),
        ({"signed_at": old}, 401, "bad_signature"),
    ]
    for changed, status, cause in refused:
        answered, problem = send(client, town, body, **changed)
        assert (answered, problem["cause"]) == (status, cause), changed
    assert client.post(EVENTS_PATH, content=body).json()["cause"] == "bad_signature"
    assert send(client, town, b"{}")[1]["cause"] == "malformed"
    assert send(client, town, b"\xff")[1]["cause"] == "malformed"
    assert send(client, town, body.replace(b"}", b',"more":1}'))[1]["cause"] == "malformed"
    answer = client.post(EVENTS_PATH, content=b"x" * 20_000)
    assert (answer.status_code, answer.headers["content-type"]) == (413, "application/problem+json")
    assert town.balance("ana") == -5000
    service.database.dispose()


# ---- value and money


def test_classic_faults_a_top_up_that_took_money_without_giving_value(tmp_path: Path) -> None:
    town = collecting(tmp_path, "ana", kind="prepaid")
    with provider_process(town) as provider:
        provider.tell("behave", source="src-ana", behaviour="loses")
        town.collector.top_up("account-ana", 50_000, "k", town.after(TUESDAY))
        assert names(town, provider.settlement(), 0) == ["missing_in_our_feed"]
        town.collector.run_turn(town.after(TUESDAY) + 60_000)
        assert town.balance("ana") == 50_000
        assert names(town, provider.settlement()) == []
    taken = town.rows("select transaction_id from postings where code = 'TOPPED_UP'")[0][0]
    town.change(f"delete from postings where transaction_id = '{taken}'")
    assert names(town) == ["money_without_value"]


def test_classic_faults_value_without_money(tmp_path: Path) -> None:
    town = collecting(tmp_path, "ana", kind="prepaid")
    town.collector.top_up("account-ana", 50_000, "k", town.after(TUESDAY))
    town.change("delete from charge_events")
    town.change("update charges set state = 'begun'")
    assert "value_without_money" in names(town)


def test_classic_faults_an_account_charged_twice_for_one_day(tmp_path: Path) -> None:
    town = charged(tmp_path, "ana")
    row = report_of(town).splitlines()[1]
    assert names(town, report_of(town, row)) == ["settled_twice"]
    (first,) = town.charges("ana")
    again = Charge(
        charge_id="another", account_id="account-ana", purpose="fares", service_date=TUESDAY, amount=5000, source="src-ana",
        made_at=first.made_at,
    )  # fmt: skip
    with town.database.write() as connection:
        store.add_charge(connection, again)
    town.collector.ask(again, town.after(WEDNESDAY))
    assert names(town, report_of(town)) == ["charged_twice"]


# ---- the deny list


def defaulted(folder: Path) -> CollectingTown:
    """One who was declined twice and is on the deny list."""
    town = collecting(folder, "ana")
    with town.database.write() as connection:
        connection.exec_driver_sql("delete from tokens")
        store_token(town, connection)
    town.fake.states["src-ana"] = "declined"
    town.ride(TUESDAY, "ana")
    town.collect(TUESDAY)
    town.collect(WEDNESDAY)
    assert town.is_blocked("ana")
    town.fake.states["src-ana"] = "captured"
    return town


def store_token(town: CollectingTown, connection: Connection) -> None:
    """What terminals send for the card is known, so that the deny list can name it."""
    token = travellers.NewToken(town.token_id("ana"), "ana", "account-ana", town._token("ana"))
    travellers.add_tokens(connection, [token])


def test_classic_faults_a_deny_list_entry_that_stays_after_payment(tmp_path: Path) -> None:
    town = defaulted(tmp_path)
    kept = town.collector.enforce
    town.collector.enforce = lambda *_: None  # type: ignore[method-assign]  # the payment forgets the list
    town.collector.pay_debt("account-ana", "k", town.after(WEDNESDAY) + 1)
    assert town.is_blocked("ana")
    assert names(town) == ["denied_though_paid"]
    town.collector.enforce = kept  # type: ignore[method-assign]
    town.collector.collect(WEDNESDAY, town.after(WEDNESDAY, 1))
    assert not town.is_blocked("ana")
    assert names(town) == []


def test_classic_faults_good_though_denied(tmp_path: Path) -> None:
    town = defaulted(tmp_path)
    with town.database.write() as connection:
        publishing.unblock(connection, town.token_id("ana"), town.after(WEDNESDAY) + 1, "found")
    assert names(town) == ["rides_though_denied"]
    town.fake.states["src-ana"] = "declined"
    town.collector.collect(WEDNESDAY, town.after(WEDNESDAY, 1))
    assert town.is_blocked("ana")
    town.fake.states["src-ana"] = "captured"
    town.collector.pay_debt("account-ana", "k", town.after(WEDNESDAY, 2))
    assert not town.is_blocked("ana")
    assert names(town) == []


def test_classic_faults_unblocked_although_lost(tmp_path: Path) -> None:
    town = defaulted(tmp_path)
    at = town.after(WEDNESDAY) + 1
    with town.database.write() as connection:
        publishing.block(connection, town.token_id("ana"), at, "lost")
    town.collector.pay_debt("account-ana", "k", at + 1)
    assert town.is_blocked("ana"), "a payment does not find a lost card"
    assert names(town) == []
    with town.database.write() as connection:
        publishing.unblock(connection, town.token_id("ana"), at + 2, store.PAID)
    assert names(town) == ["unblocked_though_lost"]
    with town.database.write() as connection:
        publishing.unblock(connection, town.token_id("ana"), at + DAY_MS, "found")
    assert names(town) == []
