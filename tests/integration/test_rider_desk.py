"""What a rider does on the pages without a browser: mend a trip in three steps, show a QR ticket, and nothing of others'."""

from __future__ import annotations

import base64
import gc
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import update
from starlette.testclient import TestClient

from fare_engine import booking
from fare_engine.linking import change_payer
from fare_engine.pages import live, qr, rider
from fare_engine.qr_desk import QrDesk
from fare_engine.qr_tickets import present
from fare_engine.service.app import Service, create_app, open_service
from fare_engine.settings import Settings
from fare_engine.store import schema, travellers
from fare_engine.tap_format import TapKind
from fare_engine.tokens import issued_pin, stored_card_number
from tests.builders import HCMC
from tests.integration.desk import ADOPTED, AT_REST_KEY, METRO_SHORT, SERVER_KEY, TAN_CANG, Stream, at
from validators.qr import QrReader

NUMBER = "9704 1111 2222 3333"


@pytest.fixture
def service(tmp_path: Path, equipped: Path) -> Iterator[Service]:
    """A service at eight in the evening over a store in which anna has a card with a number."""
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "server.key").write_bytes(SERVER_KEY)
    (tmp_path / "keys" / "at-rest.key").write_bytes(AT_REST_KEY)
    shutil.copy(equipped, tmp_path / "motthe.db")
    found = open_service(Settings(data=tmp_path, tariff=HCMC, adopt=ADOPTED), lambda: at("20:00"))
    with found.database.write() as connection:
        number = stored_card_number(SERVER_KEY, NUMBER)
        values = {"card_number_hash": number, "card_label": "3333"}
        connection.execute(update(schema.accounts).where(schema.accounts.c.account_id == "anna").values(**values))
    yield found
    found.database.dispose()
    gc.unfreeze()


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    application = create_app(service, (live.router, rider.router, qr.router))
    application.state.live = live.LiveFigures(service)
    with TestClient(application, base_url="http://127.0.0.1") as found:
        yield found


def log_in(client: TestClient) -> None:
    answer = client.post("/card/login", data={"name": NUMBER, "secret": issued_pin(SERVER_KEY, NUMBER)})
    assert answer.status_code == 200
    assert "3333" in answer.text


def missing_exit(service: Service, card: str = "anna", *, confirmed: bool) -> str:
    """A ride without an exit, whose end the next entry confirms only after it was charged; its id."""
    gate, other = Stream("gate-1", len(card)), Stream("gate-2", len(card))
    gate.enter("08:00", card)
    service.receipt.accept_group([gate.new()], at("08:00"))
    with service.database.write() as connection:
        service.application.advance(connection, at("11:30"))
    if confirmed:
        other.enter("10:30", card, TAN_CANG)
        service.application.mender._ways = lambda leg: ()  # type: ignore[method-assign]  # nothing is completed by itself
        service.receipt.accept_group([other.new()], at("11:31"))
    return f"gate-1/{gate.epoch.hex()}/1"


def test_a_trip_is_mended_in_three_steps(client: TestClient, service: Service) -> None:
    leg = missing_exit(service, confirmed=True)
    log_in(client)
    assert f"/card/mend?leg={leg}".replace("/", "%2F")[-20:] in client.get("/card?lang=en").text.replace("/", "%2F")
    form = client.get("/card/mend", params={"leg": leg})
    assert f'value="{TAN_CANG}" selected' in form.text
    done = client.post("/card/mend", data={"leg": leg, "stop": TAN_CANG})
    assert done.status_code == 200
    assert "Accepted" in done.text
    assert "6.000" in done.text or "6,000" in done.text
    with service.database.read() as connection:
        traveller = travellers.find_traveller(connection, "anna")
    assert traveller is not None
    mended = booking.price(service.tariff, traveller.record, at("12:00"))
    assert sum(line.amount for line in mended.lines if line.leg_id == leg) == METRO_SHORT
    assert "exit as you said" in client.get("/card").text


def test_what_no_tap_confirms_waits_and_the_rider_is_told(client: TestClient, service: Service) -> None:
    leg = missing_exit(service, confirmed=False)
    log_in(client)
    assert "Đang chờ" in client.post("/card/mend", data={"leg": leg, "stop": TAN_CANG}).text
    assert "Đang chờ" in client.get("/card/mend", params={"leg": leg}).text


def test_a_claim_of_nonsense_or_of_another_s_ride_changes_nothing(client: TestClient, service: Service) -> None:
    mine, other = missing_exit(service, confirmed=False), missing_exit(service, "chi", confirmed=False)
    assert mine != other
    assert client.get("/card/mend", params={"leg": mine}, follow_redirects=False).status_code == 303, "not logged in"
    log_in(client)
    assert client.post("/card/mend", data={"leg": mine, "stop": "nowhere"}).status_code == 409
    for leg in (other, "gate-1/ff/1"):
        assert client.get("/card/mend", params={"leg": leg}).status_code == 404
        assert client.post("/card/mend", data={"leg": leg, "stop": TAN_CANG}).status_code == 404
    with service.database.read() as connection:
        assert travellers.list_claims(connection) == []


def test_the_page_s_code_is_believed_by_a_terminal_and_the_phone_s_ticket_too(client: TestClient, service: Service) -> None:
    assert client.get("/card/qr/code").status_code == 403
    assert client.post("/v1/qr/tickets", json={"holder_key": "x"}).status_code == 401
    log_in(client)
    assert 'hx-get="/card/qr/code?rider=1"' in client.get("/card/qr").text
    drawn = client.get("/card/qr/code")
    assert drawn.text.lstrip().startswith(("<svg", "<?xml"))
    assert drawn.headers["cache-control"] == "no-store"
    phone = Ed25519PrivateKey.generate()
    public = phone.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    answer = client.post("/v1/qr/tickets", json={"holder_key": base64.b64encode(public).decode()})
    ticket = base64.b64decode(answer.json()["ticket"])
    desk = QrDesk(service.settings.data, SERVER_KEY)
    reader = QrReader(desk.issuers, at("06:00"))
    assert reader.read(present(ticket, phone, at("20:00")), TapKind.BOARD, at("20:00")).token == desk.token_of("anna")
    assert client.post("/v1/qr/tickets", json={"holder_key": "AAAA"}).status_code == 422


def test_each_rider_of_a_family_s_card_has_a_ticket_of_his_own(client: TestClient, service: Service) -> None:
    log_in(client)
    assert "rider=2" not in client.get("/card/qr").text
    assert client.get("/card/qr/code?rider=2").status_code == 404
    today = service.tariff.service_day(at("20:00"))
    with service.database.write() as connection:
        change_payer(connection, service.application, "chi", "anna", today, at("20:00"))
    assert "rider=2" in client.get("/card/qr").text
    assert client.get("/card/qr/code?rider=2").status_code == 200
    holder = base64.b64encode(bytes(32)).decode()
    tickets = [client.post(f"/v1/qr/tickets?rider={number}", json={"holder_key": holder}) for number in (1, 2, 3)]
    assert [answer.status_code for answer in tickets] == [200, 200, 404]
    desk = QrDesk(service.settings.data, SERVER_KEY)
    issued = [base64.b64decode(answer.json()["ticket"]) for answer in tickets[:2]]
    assert [desk.token_of(name) in ticket for name, ticket in zip(("anna", "chi"), issued, strict=True)] == [True, True]
