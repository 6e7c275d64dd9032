"""Every line of a priced leg becomes postings that name both sides."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clearing.statements import LEG_KINDS
from fare_engine.errors import BooksError
from fare_engine.ledger import (
    CODES,
    Posting,
    accounting_date,
    balances,
    deferred,
    fares,
    operator,
    party,
    pool_of,
    postings,
    rider,
    signed,
    transaction_id,
)
from fare_engine.pricing.lines import Line, LineKind, line_id

DAY = "2026-03-03"


def line(kind: str, amount: int, rule: str = "rule", bearer: str = "rider", funded: int = 0, cause: str = "tap") -> Line:
    return Line("leg", kind, rule, amount, bearer, funded, cause, "now", 20_515)  # type: ignore[arg-type]


def booked(found: Line, payer: str = "rider:ana", network: str | None = "bus") -> list[str]:
    """Postings as text: debit > credit amount."""
    return [f"{p.debit} > {p.credit} {p.amount}" for p in postings(found, payer, DAY, network)]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        pytest.param(
            line("list_fare", 5000, "bus/bus"),
            [f"rider:ana > fares:{DAY}:rider|bus|single 5000"],
            id="a fare is owed by the rider",
        ),
        pytest.param(
            line("discount", -2000, "student", "CITY", 2000),
            [
                f"fares:{DAY}:rider|bus|single > rider:ana 2000",
                f"party:CITY > fares:{DAY}:CITY|bus|single 2000",
            ],
            id="a concession is owed by its bearer instead",
        ),
        pytest.param(
            line("discount", -2000, "campaign", "operators"),
            [f"fares:{DAY}:rider|bus|single > rider:ana 2000"],
            id="what operators bear nobody owes",
        ),
        pytest.param(
            line("cap", -3000, "day", "operators"),
            [f"fares:{DAY}:rider|cap:day|single > rider:ana 3000"],
            id="a cap's place is the cap, not the leg's network",
        ),
        pytest.param(
            line("product", -5000, "product/BOOK", "product:BOOK", 4333),
            [
                f"fares:{DAY}:rider|bus|BOOK > rider:ana 5000",
                f"deferred:BOOK > fares:{DAY}:product:BOOK|bus|BOOK 4333",
            ],
            id="a coupon is paid out of what the book was sold for",
        ),
        pytest.param(
            line("release", 0, "release/DAY", "product:DAY", 10_000),
            [f"deferred:DAY > fares:{DAY}:product:DAY|release|DAY 10000"],
            id="a day of a pass moves no rider's money",
        ),
        pytest.param(
            line("expiry", 0, "expiry/BOOK", "product:BOOK", 700),
            [f"deferred:BOOK > fares:{DAY}:product:BOOK|expiry|BOOK 700"],
            id="nor does the rest of a book",
        ),
        pytest.param(line("sale", 10_000, "sale/DAY"), ["rider:ana > deferred:DAY 10000"], id="a sale is deferred"),
        pytest.param(line("hold", 9000, "gates/hold"), ["rider:ana > holds 9000"], id="a hold is taken"),
        pytest.param(line("hold", -9000, "gates/hold"), ["holds > rider:ana 9000"], id="and given back"),
        pytest.param(line("list_fare", 0, "bus/bus"), [], id="nothing is posted of nothing"),
    ],
)
def test_a_line_is_booked_against_its_payer_and_its_bearer(found: Line, expected: list[str]) -> None:
    assert booked(found) == expected


def test_cash_is_owed_by_the_operator_whose_till_holds_it() -> None:
    assert booked(line("list_fare", 5000), "collector:BUSCO") == [f"collector:BUSCO > fares:{DAY}:rider|bus|single 5000"]


def test_accounts_are_named_by_what_they_are() -> None:
    names = (fares(DAY, "p"), deferred("DAY"), operator("RAIL"), rider("ana"), party("CITY"))
    assert names == (f"fares:{DAY}:p", "deferred:DAY", "operator:RAIL", "rider:ana", "party:CITY")
    assert pool_of("CITY", line("transfer", -1, "joint"), "metro") == "CITY|metro|single"


@given(amounts=st.lists(st.integers(-(10**9), 10**9), max_size=20))
def test_debits_equal_credits_whatever_is_posted(amounts: list[int]) -> None:
    rows = [posting for number, amount in enumerate(amounts) for posting in signed(f"a{number % 3}", f"b{number % 2}", amount)]
    assert all(posting.amount > 0 for posting in rows)
    found = balances(rows)
    assert sum(found.values()) == 0
    assert sum(amount for account, amount in found.items() if account[0] == "a") == sum(amounts)


@pytest.mark.parametrize("amount", [0, -1])
def test_a_posting_without_a_positive_amount_stops_the_books(amount: int) -> None:
    with pytest.raises(BooksError, match="must have a positive amount"):
        balances([Posting("a", "b", amount)])


def test_ids_come_from_causes_so_that_a_rerun_makes_the_same_ones() -> None:
    first = line_id(line("cap", -1, cause="tap"))
    assert first == line_id(line("cap", -2, cause="tap"))
    assert first != line_id(line("cap", -1, cause="other"))
    assert first != line_id(line("transfer", -1, cause="tap"))
    assert transaction_id("anna", first, 0) == transaction_id("anna", first, 0) != transaction_id("anna", first, 1)


def test_every_kind_of_line_has_its_code_and_its_place_in_the_clearing() -> None:
    kinds = set(get_args(LineKind))
    assert kinds == CODES.keys()
    assert kinds == {*LEG_KINDS, "cap", "hold", "sale", "release", "expiry"}


@pytest.mark.parametrize(
    ("closed_through", "expected"),
    [(None, DAY), ("2026-03-02", DAY), (DAY, "2026-03-04"), ("2026-03-31", "2026-04-01"), ("2026-12-31", "2027-01-01")],
)
def test_what_is_for_a_closed_date_is_booked_under_the_day_after_the_last_closed_one(
    closed_through: str | None, expected: str
) -> None:
    assert accounting_date(DAY, closed_through) == expected


def test_one_unit_is_a_posting_and_nothing_is_none() -> None:
    assert signed("a", "b", 1) == [Posting("a", "b", 1)]
    assert signed("a", "b", -1) == [Posting("b", "a", 1)]
    assert signed("a", "b", 0) == []
    assert balances([Posting("a", "b", 1)]) == {"a": 1, "b": -1}


def test_a_transaction_s_id_is_half_of_a_sha_256() -> None:
    assert len(transaction_id("ana", "line", 0)) == 32


def test_a_product_s_name_may_have_a_stroke_in_it() -> None:
    assert pool_of("rider", line("product", 0, "book/A/B"), "bus") == "rider|bus|A/B"
    assert pool_of("product:A/B", line("release", 0, "pass/A/B"), None) == "product:A/B|release|A/B"
    assert booked(line("sale", 5, "sale/A/B")) == ["rider:ana > deferred:A/B 5"]
    coupon = line("product", -5, "book/A:B", bearer="product:A:B", funded=5)
    assert booked(coupon)[1] == f"deferred:A:B > fares:{DAY}:product:A:B|bus|A:B 5"
