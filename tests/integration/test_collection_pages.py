"""Riders top up and pay on their page and over the API, and nobody else's; the commands say what they did."""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import update
from starlette.testclient import TestClient
from typer.testing import CliRunner

import motthe
from clearing.collection import pages
from clearing.collection.charges import Event
from clearing.collection.opening import provider_secret
from fare_engine.pages import live, rider
from fare_engine.service.app import create_app, open_service
from fare_engine.settings import Settings
from fare_engine.store import schema
from fare_engine.tokens import issued_pin, stored_card_number
from tests.builders import SERVER_KEY, write_city
from tests.collecting import MONDAY, TUESDAY, WEDNESDAY, CollectingTown, ProviderProcess, collecting

NUMBERS = {"ana": "9704 1111 2222 3333", "ben": "9704 1111 2222 4444"}


def with_numbers(town: CollectingTown) -> CollectingTown:
    """Its cards have numbers, and its service the key that made them."""
    (town.data / "keys" / "server.key").write_bytes(SERVER_KEY)
    with town.database.write() as connection:
        for card, number in NUMBERS.items():
            values = {"card_number_hash": stored_card_number(SERVER_KEY, number), "card_label": number[-4:]}
            connection.execute(update(schema.accounts).where(schema.accounts.c.account_id == f"account-{card}").values(**values))
    return town


@pytest.fixture
def town(tmp_path: Path) -> CollectingTown:
    """Ana has a card with value on it, Ben pays afterwards."""
    found = collecting(tmp_path, "ana", kind="prepaid")
    found.issue("ben")
    found.sources("ben")
    return with_numbers(found)


@pytest.fixture
def client(town: CollectingTown) -> Iterator[TestClient]:
    """The town's service, with a provider that answers at once."""
    service = open_service(Settings(data=town.data, tariff=town.opened.tariff_folder), lambda: town.after(TUESDAY))
    application = create_app(service, (live.router, rider.router, pages.router))
    application.state.live = live.LiveFigures(service)
    application.state.collector = town.collector
    application.state.pays = True
    with TestClient(application, base_url="http://127.0.0.1") as found:
        yield found
    service.database.dispose()
    gc.unfreeze()


def log_in(client: TestClient, card: str) -> None:
    number = NUMBERS[card]
    assert client.post("/card/login", data={"name": number, "secret": issued_pin(SERVER_KEY, number)}).status_code == 200


def key_in(text: str) -> str:
    found = re.search(r'name="key" value="([0-9a-f]{32})"', text)
    assert found is not None
    return found[1]


@pytest.mark.parametrize(("language", "heading"), [("vi", "Nạp tiền và thanh toán"), ("en", "Top up and pay")])
def test_a_rider_tops_up_on_the_page_once_for_a_form(
    client: TestClient, town: CollectingTown, language: str, heading: str
) -> None:
    log_in(client, "ana")
    assert heading in client.get(f"/card?lang={language}").text
    shown = client.get("/card/pay")
    assert f"<h1>{heading}</h1>" in shown.text
    form = {"amount": "50000", "key": key_in(shown.text)}
    for _ in range(2):
        after = client.post("/card/pay/top-up", data=form)
        assert after.status_code == 200
        assert ("✓ đã thu" if language == "vi" else "✓ paid") in after.text
    assert town.balance("ana") == 50_000
    assert client.post("/card/pay/top-up", data=form | {"amount": "60000"}).status_code == 409
    assert client.post("/card/pay/top-up", data={"amount": "1", "key": "k"}).status_code == 409
    assert town.balance("ana") == 50_000


def test_a_rider_pays_a_debt_on_the_page_and_the_card_is_good_again(client: TestClient, town: CollectingTown) -> None:
    town.fake.states["src-ben"] = "declined"
    town.ride(MONDAY, "ben")
    town.collect(MONDAY)
    town.collect(TUESDAY)
    log_in(client, "ben")
    shown = client.get("/card/pay?lang=en")
    assert "The card is blocked" in shown.text
    assert "! declined, nothing was taken" in client.post("/card/pay/debt", data={"key": "first"}).text
    assert town.is_blocked("ben")
    town.fake.states["src-ben"] = "captured"
    assert "✓ paid" in client.post("/card/pay/debt", data={"key": key_in(shown.text)}).text
    assert not town.is_blocked("ben")
    assert client.post("/card/pay/debt", data={"key": "more"}).status_code == 409


def test_a_rider_says_when_the_card_tops_itself_up(client: TestClient, town: CollectingTown) -> None:
    log_in(client, "ana")
    assert "Đang bật" in client.post("/card/pay/auto", data={"below": "20000", "amount": "50000", "on": "1"}).text
    town.collector.run_turn(town.after(TUESDAY))
    assert town.balance("ana") == 50_000
    assert "Đang tắt" in client.post("/card/pay/auto", data={"below": "20000", "amount": "50000", "on": "0"}).text
    assert client.post("/card/pay/auto", data={"below": "-1", "amount": "50000"}).status_code == 409
    assert client.post("/card/pay/auto", data={"below": "20000", "amount": "1"}).status_code == 409


def test_the_api_tops_up_once_for_a_key(client: TestClient, town: CollectingTown) -> None:
    def post(body: object, **headers: str) -> tuple[int, dict[str, object]]:
        answer = client.post("/v1/card/top-ups", json=body, headers=headers)
        return answer.status_code, answer.json()

    key = {"Idempotency-Key": "one"}
    assert post({"amount": 50_000}, **key)[1]["cause"] == "not_logged_in"
    log_in(client, "ana")
    assert post({"amount": 50_000})[1]["cause"] == "no_key"
    first = post({"amount": 50_000}, **key)
    assert first == post({"amount": 50_000}, **key)
    assert (first[0], first[1]["state"], first[1]["balance"]) == (200, "captured", 50_000)
    assert post({"amount": 60_000}, **key)[0] == 409
    assert post({"amount": 9}, **{"Idempotency-Key": "two"})[0] == 422
    for body in ({"amount": "50000"}, {"amount": 50_000, "account_id": "account-ben"}, {"amount": -1}, [], {"amount": 1.5}):
        status, problem = post(body, **{"Idempotency-Key": "three"})
        assert (status, problem["cause"]) == (400, "malformed"), body
    assert town.balance("ana") == 50_000


def test_who_is_not_logged_in_is_sent_to_the_login(client: TestClient, town: CollectingTown) -> None:
    for path, form in (
        ("top-up", {"amount": "50000", "key": "k"}),
        ("debt", {"key": "k"}),
        ("auto", {"below": "1", "amount": "1"}),
    ):
        answer = client.post(f"/card/pay/{path}", data=form, follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, "/card")
    assert client.get("/card/pay", follow_redirects=False).status_code == 303
    assert town.fake.asked == []


def test_the_page_says_what_a_bank_took_back_until_it_is_won_back(client: TestClient, town: CollectingTown) -> None:
    charge = town.collector.top_up("account-ana", 50_000, "k", town.after(MONDAY))
    log_in(client, "ana")
    assert "given back" not in client.get("/card/pay?lang=en").text
    for kind, amount, shown in (("charged_back", 50_000, "given back ₫50,000"), ("won_back", 20_000, "given back ₫30,000")):
        now = town.after(TUESDAY)
        told = Event(event_id=kind, charge_id=charge.charge_id, kind=kind, reference="b", amount=amount, at=now)  # type: ignore[arg-type]
        town.collector.take(told, now)
        assert shown in client.get("/card/pay?lang=en").text


def test_somebody_elses_charges_are_not_shown(client: TestClient, town: CollectingTown) -> None:
    town.collector.top_up("account-ana", 50_000, "k", town.after(TUESDAY))
    (charge,) = town.charges("ana")
    log_in(client, "ben")
    assert charge.charge_id not in client.get(f"/card/pay?charge={charge.charge_id}").text
    assert "50.000" not in client.get(f"/card/pay?charge={charge.charge_id}").text


def test_a_city_without_rules_collects_nothing_and_all_else_is_as_it_was(tmp_path: Path) -> None:
    city = write_city(tmp_path / "city")
    settings = Settings(data=tmp_path / "data", tariff=city)
    application = motthe.web_application(settings, demo=False, works=False)
    with TestClient(application, base_url="http://127.0.0.1") as client:
        assert client.get("/healthz").status_code == 200
        answer = client.post("/v1/provider/events", content=b"{}")
        assert (answer.status_code, answer.json()["cause"]) == (404, "no_rules")
        assert client.get("/card/pay", follow_redirects=False).status_code == 303
    gc.unfreeze()
    assert not application.state.pays


def test_the_service_tops_up_by_itself_and_asks_again(town: CollectingTown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "TURN_SECONDS", 0.02)
    town.collector.set_auto("account-ana", 20_000, 50_000)
    service = open_service(Settings(data=town.data, tariff=town.opened.tariff_folder), lambda: town.after(TUESDAY))
    application = create_app(service, (pages.router,))
    application.state.collector = town.collector
    with TestClient(application, base_url="http://127.0.0.1"):
        deadline = time.monotonic() + 10
        while town.balance("ana") == 0:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    gc.unfreeze()
    assert town.balance("ana") == 50_000


# ---- commands


def test_the_commands_of_collection_from_charge_to_reconciliation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    town = collecting(tmp_path, "ana")
    town.issue("ben", kind="prepaid")
    with_numbers(town)
    provider_secret(town.data)
    town.ride(TUESDAY, "ana")
    provider = ProviderProcess(town.data, town.data / "keys" / "provider.key", "--decline", "0")
    monkeypatch.setenv("MOTTHE_PROVIDER_URL", provider.url)
    monkeypatch.setenv("MOTTHE_TARIFF", str(town.opened.tariff_folder))

    def run(*words: str, code: int = 0) -> str:
        done = CliRunner().invoke(motthe.app, [*words, "--data", str(town.data)])
        assert done.exit_code == code, (done.output, done.exception)
        return done.output

    try:
        assert "1 charged 5.000" in run("collect", TUESDAY)
        assert "0 charged" in run("collect", TUESDAY)
        assert "collector:ACQ 5.000" in run("collect", "status")
        assert "refunded" in run("refund", town.line_of("ana"), "--amount", "2000", "--reason", "late")
        report = tmp_path / "report.csv"
        report.write_text(provider.settlement(), encoding="utf-8")
        assert "RECONCILED 2 rows of the provider, 3.000" in run("collect", "reconcile", str(report))
        report.write_text(provider.settlement() + "captured,nobody's,,700,1\n", encoding="utf-8")
        assert "BREAK unknown_charge captured nobody's: theirs 700, ours 0" in run("collect", "reconcile", str(report), code=1)
        assert "src-new" in run("collect", "source", NUMBERS["ben"], "src-new")
        assert "owed by RAIL" in run("card", "top-up", NUMBERS["ben"], "--amount", "40000", "--at", "RAIL", "--receipt", "r1")
        assert "good until" in run("card", "issue", "account-ben", NUMBERS["ben"])
        assert "good until" in run("card", "replace", NUMBERS["ben"], "9704 9", "--medium", "ab" * 16)
        assert town.balance("ben") == 25_000
        assert "0 cards ended" in run("card", "expire", WEDNESDAY)
    finally:
        provider.stop()
    town.assert_sound()
