"""Everybody's position: what he is owed less what he holds or owes, from the books alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clearing.netting import PRODUCTS, RIDERS, owner_of, party_accounts, positions
from fare_engine.errors import BooksError

AMOUNTS = st.integers(-(10**9), 10**9)
ACCOUNTS = st.sampled_from(
    [f"{word}:RAIL" for word in ("operator", "collector", "waivers", "losses", "fees", "net")]
    + ["operator:BUSCO", "collector:BUSCO", "party:CITY", "rider", "holds", "top-ups", "deferred:DAY", "bank", "held:d1"]
)


def test_an_operator_receives_his_shares_less_the_cash_in_his_till() -> None:
    books = {"operator:BUSCO": -6000, "operator:RAIL": -9000, "collector:BUSCO": 4000, "party:CITY": 3000, "rider": 8000}
    assert positions(books) == {"BUSCO": 2000, "CITY": -3000, "RAIL": 9000, RIDERS: -8000}


def test_passes_and_books_pay_what_was_released_of_them() -> None:
    assert positions({"operator:RAIL": -10_000, "deferred:DAY": 10_000}) == {"RAIL": 10_000, PRODUCTS: -10_000}


def test_who_receives_as_much_as_he_pays_has_no_position() -> None:
    assert positions({"operator:COOP": -5000, "collector:COOP": 5000}) == {}


def test_a_party_may_be_operator_and_bearer_at_once() -> None:
    assert positions({"operator:RAIL": -9000, "party:RAIL": 2000, "rider": 7000}) == {"RAIL": 7000, RIDERS: -7000}


def test_what_is_waived_lost_or_charged_as_a_fee_is_its_bearer_s() -> None:
    books = {"waivers:CITY": 1000, "losses:RAIL": 300, "fees:RAIL": 20, "rider": -1320}
    assert positions(books) == {"CITY": -1000, "RAIL": -320, RIDERS: 1320}


def test_a_clearing_account_that_is_not_empty_stops_the_close_and_is_named() -> None:
    with pytest.raises(BooksError, match=r"the account fares:2026-03-03:rider\|bus\|single is not zero: 5"):
        positions({"fares:2026-03-03:rider|bus|single": 5, "rider": -5})
    with pytest.raises(BooksError, match="nobody is not zero"):
        positions({"nobody": 1, "rider": -1})


@given(books=st.dictionaries(ACCOUNTS, AMOUNTS))
def test_positions_sum_to_zero_as_the_books_do(books: dict[str, int]) -> None:
    balanced = books | {"rider": -sum(amount for account, amount in books.items() if account != "rider")}
    found = positions(balanced)
    assert sum(found.values()) == 0
    assert 0 not in found.values()


@given(off=AMOUNTS.filter(bool))
def test_positions_that_do_not_sum_to_zero_stop_the_close(off: int) -> None:
    with pytest.raises(BooksError, match=f"net positions sum to {off}, not to zero"):
        positions({"operator:RAIL": -9000 - off, "rider": 9000})


def test_whose_an_account_is() -> None:
    assert [owner_of(name) for name in ("operator:A:B", "collector:A", "rider", "held:x", "fares:2026-03-03:x|y|z", "odd")] == [
        "A:B", "A", RIDERS, "held", None, None,
    ]  # fmt: skip
    assert party_accounts({"operator:A": -5, "collector:A": 2, "rider": 3, "fees:B": 0}) == {
        "A": {"collector:A": -2, "operator:A": 5}
    }
