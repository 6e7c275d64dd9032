"""Everybody's position: what he is owed less what he holds or owes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clearing.netting import PRODUCTS, RIDERS, positions
from fare_engine.errors import BooksError

AMOUNTS = st.integers(-(10**9), 10**9)


def test_an_operator_receives_his_shares_less_the_cash_in_his_till() -> None:
    found = positions([("BUSCO", 5000), ("RAIL", 9000), ("BUSCO", 1000)], {"BUSCO": 4000}, {"CITY": 3000}, 8000, 0)
    assert found == {"BUSCO": 2000, "CITY": -3000, "RAIL": 9000, RIDERS: -8000}


def test_passes_and_books_pay_what_was_released_of_them() -> None:
    assert positions([("RAIL", 10_000)], {}, {}, 0, 10_000) == {"RAIL": 10_000, PRODUCTS: -10_000}


def test_who_receives_as_much_as_he_pays_has_no_position() -> None:
    assert positions([("COOP", 5000)], {"COOP": 5000}, {}, 0, 0) == {}


def test_a_party_may_be_operator_and_bearer_at_once() -> None:
    assert positions([("RAIL", 9000)], {}, {"RAIL": 2000}, 7000, 0) == {"RAIL": 7000, RIDERS: -7000}


@given(shares=st.lists(st.tuples(st.sampled_from("ABC"), AMOUNTS)), cash=AMOUNTS, borne=AMOUNTS, released=AMOUNTS)
def test_positions_sum_to_zero(shares: list[tuple[str, int]], cash: int, borne: int, released: int) -> None:
    riders = sum(amount for _, amount in shares) - cash - borne - released
    found = positions(shares, {"A": cash}, {"CITY": borne}, riders, released)
    assert sum(found.values()) == 0
    assert 0 not in found.values()


@given(off=AMOUNTS.filter(bool))
def test_positions_that_do_not_sum_to_zero_stop_the_close(off: int) -> None:
    with pytest.raises(BooksError, match=f"net positions sum to {off}, not to zero"):
        positions([("RAIL", 9000 + off)], {}, {}, 9000, 0)
