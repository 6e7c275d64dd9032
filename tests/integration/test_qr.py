"""A QR ticket from the service to the terminal and back into the books."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fare_engine.errors import QrError
from fare_engine.qr_desk import VALID_MS, QrDesk
from fare_engine.qr_tickets import present
from fare_engine.store import travellers
from fare_engine.tap_format import Decision, TapKind
from fare_engine.tokens import stored_token
from tests.integration.desk import BUS_FARE, SERVER_KEY, Desk, Stream, at
from validators.qr import SAME_CODE_MS, QrReader

WINDOW = 30_000


@pytest.fixture
def issuer(tmp_path: Path, desk: Desk) -> QrDesk:
    """The issuer of a store, with anna's token opened."""
    found = QrDesk(tmp_path / "issuer", SERVER_KEY)
    with desk.database.write() as connection:
        traveller = travellers.find_traveller(connection, "anna")
        assert traveller is not None
        found.open_token(connection, traveller)
        found.open_token(connection, traveller)
    return found


def reader(issuer: QrDesk) -> QrReader:
    return QrReader(issuer.issuers, at("06:00"))


def test_a_code_that_the_page_shows_is_a_ride_of_its_rider(desk: Desk, issuer: QrDesk) -> None:
    presented = reader(issuer).read(issuer.code("anna", at("08:00")), TapKind.BOARD, at("08:00:05"))
    bus = Stream("bus-1")
    bus.add(TapKind.BOARD, at("08:00:05"), "", token=presented.token, medium=presented.medium, route_id="1")
    answer = desk.tapped(bus)
    assert (answer.decision, answer.fare, desk.balance("anna")) == ("admitted", BUS_FARE, -BUS_FARE)
    desk.check_books()


def test_a_screenshot_is_refused_at_the_same_terminal_and_after_the_window_everywhere(issuer: QrDesk) -> None:
    code = issuer.code("anna", at("08:00"))
    here = reader(issuer)
    first = here.read(code, TapKind.BOARD, at("08:00:05"))
    assert here.read(code, TapKind.BOARD, at("08:00:06")) == first, "the reader still sees the same phone"
    with pytest.raises(QrError, match="replayed"):
        here.read(code, TapKind.BOARD, at("08:00:06") + SAME_CODE_MS)
    with pytest.raises(QrError, match="stale"):
        reader(issuer).read(code, TapKind.BOARD, at("08:00") + WINDOW + 1)
    assert here.read(issuer.code("anna", at("08:00:20")), TapKind.BOARD, at("08:00:21")).token == first.token


def test_a_phone_makes_its_own_codes_without_a_connection_until_its_ticket_ends(issuer: QrDesk) -> None:
    phone = Ed25519PrivateKey.generate()
    public = phone.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    ticket = issuer.ticket("anna", public, at("08:00"))
    later = at("08:00") + VALID_MS
    assert reader(issuer).read(present(ticket, phone, later - 1), TapKind.BOARD, later - 1).medium == "qr"
    with pytest.raises(QrError, match="expired"):
        reader(issuer).read(present(ticket, phone, later), TapKind.BOARD, later)
    with pytest.raises(QrError, match="bad_signature"):
        reader(issuer).read(present(ticket, Ed25519PrivateKey.generate(), at("09:00")), TapKind.BOARD, at("09:00"))
    with pytest.raises(ValueError, match="32 bytes, not 3"):
        issuer.ticket("anna", b"key", at("08:00"))


def test_a_blocked_qr_ticket_is_refused_like_a_card(desk: Desk, issuer: QrDesk) -> None:
    token = issuer.token_of("anna")
    with desk.database.write() as connection:
        travellers.block_token(connection, stored_token(SERVER_KEY, token), at("07:00"))
    bus = Stream("bus-1")
    bus.add(TapKind.BOARD, at("08:00"), "", token=token, medium="qr", route_id="1", decision=Decision.ASKED_ONLINE)
    answer = desk.tapped(bus)
    assert (answer.decision, answer.reason) == ("refused", "blocked")
