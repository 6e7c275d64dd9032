"""What of published statements can be disputed, how much is left of it, and what a decision gives."""

from __future__ import annotations

import msgspec
import pytest

from clearing.disputes import claims
from clearing.disputes.claims import Claim, Dispute, Holding, Item, LegLine
from clearing.disputes.holdings import Rows, holdings
from clearing.statements import COLUMNS
from fare_engine.errors import DisputeError, NotFoundError
from fare_engine.ledger import Posting

ON = "2026-03-03"


def rows(**statements: list[str]) -> Rows:
    """Statements, a row a text: section what network rule paid_by agreement count amount; `-` is empty."""
    found: dict[str, dict[int, dict[str, str]]] = {}
    for party, lines in statements.items():
        found[party] = {}
        for number, text in enumerate(lines, start=1):
            cells = [cell.replace("-", "") if cell == "-" else cell for cell in text.split()]
            section, what, network, rule, paid_by, agreement, count, amount = cells
            values = (str(number), section, ON, what, network, rule, paid_by, agreement, "exempt", count, amount)
            found[party][number] = dict(zip(COLUMNS, values, strict=True))
    return found


STATEMENTS = rows(
    BUSCO=[
        "legs list_fare bus bus/bus riders own 2 10000",
        "legs transfer bus joint CITY own 1 1000",
        "legs transfer bus joint riders own 1 -1000",
        "commissions fee - levy BUSCO levy - -300",
        "missing - - missing BUSCO - 3 -",
    ],
    RAIL=["legs transfer metro joint CITY own 1 2000", "shared cap - day riders caps - 800"],
    CITY=["commissions fee - levy BUSCO levy - 300", "borne transfer bus joint - - 1 -1000"],
    COOP=["shared cap - day riders caps - -500"],
)


def claim(claimant: str, party: str, line: int = 0, *legs: str, **more: object) -> Claim:
    return Claim(claimant=claimant, accounting_date=ON, party_id=party, line=line, leg_ids=legs, **more)  # type: ignore[arg-type]


def a_line(leg_id: str, kind: str, amount: int, funded: int = 0, bearer: str = "rider", operator: str = "BUSCO") -> LegLine:
    rule = {"list_fare": "bus/bus", "transfer": "joint"}[kind]
    return LegLine(leg_id, operator, ON, kind, "bus", rule, bearer, False, amount, funded, "v", leg_id)


@pytest.mark.parametrize(
    ("claimant", "party", "line", "expected"),
    [
        ("COOP", "BUSCO", 1, [("BUSCO", 1, 10_000)]),
        ("COOP", "BUSCO", 3, []),  # gave nothing
        ("COOP", "BUSCO", 5, []),  # is in no sum
        ("BUSCO", "BUSCO", 1, []),  # nobody else was given his own legs
        ("BUSCO", "BUSCO", 4, [("CITY", 1, 300)]),  # who got the fee that he paid
        ("CITY", "CITY", 2, [("BUSCO", 2, 1000)]),  # the operator whose legs he paid for, on that network
        ("COOP", "COOP", 1, [("RAIL", 2, 800)]),  # the other side of a share
        ("RAIL", "RAIL", 2, []),  # took nothing from him
    ],
)
def test_a_row_is_claimed_from_who_was_given_it(
    claimant: str, party: str, line: int, expected: list[tuple[str, int, int]]
) -> None:
    found = holdings(claim(claimant, party, line), STATEMENTS, [])
    assert [(one.party_id, one.line, one.amount) for one in found] == expected


def test_a_leg_is_claimed_from_the_rows_that_sum_it_and_never_above_what_it_gave_in_all() -> None:
    booked = [a_line("a", "list_fare", 5000), a_line("a", "transfer", -1000, 400, "CITY")]
    assert holdings(claim("RAIL", "BUSCO", 0, "a"), STATEMENTS, booked) == [Holding("BUSCO", 1, "a", 1, 4400)]
    assert holdings(claim("RAIL", "BUSCO", 1, "a"), STATEMENTS, booked) == [Holding("BUSCO", 1, "a", 1, 5000)]
    assert holdings(claim("CITY", "CITY", 2, "a"), STATEMENTS, booked) == [Holding("BUSCO", 2, "a", 1, 400)]
    assert holdings(claim("RAIL", "BUSCO", 0, "a", against=("COOP",)), STATEMENTS, booked) == []
    with pytest.raises(NotFoundError, match="nothing was booked of c"):
        holdings(claim("RAIL", "BUSCO", 0, "a", "c"), STATEMENTS, booked)


def an_item(line: int, leg: str, amount: int, granted: int | None = None) -> Item:
    return Item(
        dispute_id="before", number=0, accounting_date=ON, party_id="BUSCO", line=line, leg_id=leg, legs=1, amount=amount,
        granted=granted,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("taken", "left"),
    [
        ([], 10_000),
        ([an_item(1, "", 4000)], 6000),
        ([an_item(1, "", 4000, granted=0)], 10_000),
        ([an_item(1, "", 4000, granted=1500)], 8500),
        ([an_item(1, "a", 5000), an_item(1, "", 5000)], 0),
        ([an_item(2, "", 1000)], 10_000),
    ],
)
def test_what_is_held_or_was_granted_of_a_row_cannot_be_claimed_again(taken: list[Item], left: int) -> None:
    held = [Holding("BUSCO", 1, "", 2, 10_000)]
    with pytest.raises(DisputeError, match="above_row"):
        claims.hold(claim("COOP", "BUSCO", 1, amount=left + 1), held, {("BUSCO", 1): 10_000}, taken)
    if left:
        found = claims.hold(claim("COOP", "BUSCO", 1), held, {("BUSCO", 1): 10_000}, taken)
        assert [(item.line, item.leg_id, item.amount) for item in found] == [(1, "", left)]


def test_of_a_row_of_one_s_own_no_more_is_claimed_than_it_took() -> None:
    held = [Holding("RAIL", 2, "", 1, 800)]
    sums = {("COOP", 1): -500, ("RAIL", 2): 800}
    assert [item.amount for item in claims.hold(claim("COOP", "COOP", 1), held, sums, [])] == [500]
    with pytest.raises(DisputeError, match="above_row"):
        claims.hold(claim("COOP", "COOP", 1, amount=501), held, sums, [])


def test_legs_of_one_row_share_what_is_left_of_the_row() -> None:
    held = [Holding("BUSCO", 1, leg, 1, 5000) for leg in ("a", "b")]
    found = claims.hold(claim("COOP", "BUSCO", 1, "a", "b"), held, {("BUSCO", 1): 10_000}, [an_item(1, "", 7000)])
    assert sum(item.amount for item in found) == 3000
    assert all(item.amount <= 5000 for item in found)


def test_a_decision_gives_to_the_claimant_and_back_and_leaves_nothing_held() -> None:
    dispute = Dispute(
        dispute_id="d", claimant="COOP", accounting_date=ON, party_id="BUSCO", line=1, amount=4001, text="", opened_at=0,
        held_under=ON, evidence_sha256="",
    )  # fmt: skip
    items = [msgspec.structs.replace(an_item(1, leg, amount), dispute_id="d", number=n) for n, (leg, amount) in enumerate(PARTS)]
    state, decided = claims.decide(dispute, items, 1000)
    assert (state, sum(item.taken for item in decided)) == ("partly", 1000)
    assert claims.held_postings(items) == [Posting("operator:BUSCO", "held:d", 4001)]
    assert claims.decided_postings(decided, "COOP") == [
        Posting("held:d", "operator:COOP", 1000),
        Posting("held:d", "operator:BUSCO", 3001),
    ]
    assert claims.decide(dispute, items, 4001)[0] == "accepted"
    assert claims.decide(dispute, items, 0)[0] == "declined"
    for granted in (-1, 4002):
        with pytest.raises(DisputeError, match="above_held"):
            claims.decide(dispute, items, granted)
    with pytest.raises(DisputeError, match="decided"):
        claims.decide(msgspec.structs.replace(dispute, state="partly"), items, 0)


PARTS = [("a", 1333), ("b", 2668)]
