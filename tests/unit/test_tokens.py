"""What the server keeps of a card leads back to no card."""

from __future__ import annotations

from fare_engine.tokens import issued_pin, password_hash, stored_card_number, stored_token

KEY, OTHER = b"a" * 32, b"b" * 32


def test_a_token_is_the_same_every_time_and_another_under_another_key_or_medium() -> None:
    token = stored_token(KEY, b"medium")
    assert token == stored_token(KEY, b"medium")
    assert token not in (stored_token(OTHER, b"medium"), stored_token(KEY, b"Medium"))
    assert len(token) == 32
    assert "medium" not in token


def test_a_card_number_is_found_however_it_is_spaced() -> None:
    number = stored_card_number(KEY, "9704 0000 1111 2222")
    assert number == stored_card_number(KEY, "9704-0000-1111-2222") == stored_card_number(KEY, "9704000011112222")
    assert number != stored_card_number(OTHER, "9704000011112222")


def test_a_token_a_card_number_and_a_pin_of_the_same_digits_have_nothing_in_common() -> None:
    assert stored_token(KEY, b"9704") != stored_card_number(KEY, "9704")
    assert issued_pin(KEY, "9704") not in (stored_token(KEY, b"9704"), stored_card_number(KEY, "9704"))


def test_a_pin_has_six_digits_and_differs_from_card_to_card() -> None:
    pins = {issued_pin(KEY, str(number)) for number in range(200)}
    assert all(len(pin) == 6 and pin.isdigit() for pin in pins)
    assert len(pins) > 195
    assert issued_pin(KEY, "97 04") == issued_pin(KEY, "9704") != issued_pin(OTHER, "9704")


def test_a_password_s_hash_depends_on_its_salt() -> None:
    assert password_hash("secret", b"1") == password_hash("secret", b"1")
    assert len({password_hash("secret", b"1"), password_hash("secret", b"2"), password_hash("Secret", b"1")}) == 3
