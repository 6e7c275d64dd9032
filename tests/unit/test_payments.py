"""What a net position asks the bank to pay."""

from __future__ import annotations

from clearing.payments import Payment, payment_id, payments_of


def test_a_payment_s_id_follows_from_date_and_party_and_fits_a_bank_s_field() -> None:
    assert payment_id("2026-03-02", "RAIL") == "MT20260302239E5987784FED56"
    assert payment_id("2026-03-02", "RAIL") != payment_id("2026-03-03", "RAIL")
    assert payment_id("2026-03-02", "RAIL") != payment_id("2026-03-02", "BUS")


def test_every_party_with_a_position_has_a_payment_and_the_clearing_house_s_own_positions_have_none() -> None:
    own = {"riders": -5, "products": 7, "bank": 1, "held": 2, "paid": 3}
    found = payments_of("2026-03-02", {"RAIL": 9000, "CITY": -9008, "COOP": 0, **own})
    assert found == [
        Payment("2026-03-02", "CITY", payment_id("2026-03-02", "CITY"), -9008),
        Payment("2026-03-02", "RAIL", payment_id("2026-03-02", "RAIL"), 9000),
    ]
