"""Statements: rows that sum to what a party is given and owes, and bytes that never change."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from clearing.agreements import Agreements, load_agreements
from clearing.documents import harmless
from clearing.frozen import OpenItems
from clearing.statements import Books, Row, Statement, compose, digest, positions_csv, proof_json, statement_csv
from clearing.store import PoolRow
from fare_engine.money import PARTS
from tests.builders import NETWORK, TOWN

DAY = "2026-03-03"
LINE_BREAK = "\r-x"


@pytest.fixture
def agreements(tmp_path: Path) -> Agreements:
    """Those of the little city."""
    path = tmp_path / "clearing.toml"
    path.write_text(NETWORK["clearing.toml"], encoding="utf-8")
    return load_agreements(path, TOWN)


def pool_row(**changes: object) -> PoolRow:
    fields = {
        "kind": "list_fare",
        "rule_id": "bus/bus",
        "bearer": "rider",
        "operator_id": "BUSCO",
        "network_id": "bus",
        "service_date": DAY,
        "payer_kind": "rider",
        "payer": "",
        "amount": 5000,
        "funded": 0,
        "legs": 1,
    }
    return PoolRow(**{**fields, **changes})  # type: ignore[arg-type]


def books(rows: list[PoolRow], **changes: object) -> Books:
    """A date's books; each row's money is its own operator's unless said otherwise."""
    exact: dict[tuple[str, str], dict[str, int]] = {}
    for row in rows:
        for debtor, amount in (("rider", row.amount), (row.bearer, row.funded)):
            if amount and row.kind != "cap":
                shares = exact.setdefault((f"{debtor}|{row.network_id}|single", "own-legs"), {})
                shares[row.operator_id or ""] = shares.get(row.operator_id or "", 0) + amount * PARTS
    settled = {pool: {party: parts // PARTS for party, parts in shares.items()} for pool, shares in exact.items()}
    fields: dict[str, object] = {
        "accounting_date": DAY,
        "zone": "Asia/Ho_Chi_Minh",
        "traceable_until": "2029-03-02",
        "rows": rows,
        "changes": exact,
        "settled": settled,
        "movements": {},
        "opening": {},
        "open_items": [],
    }
    return Books(**{**fields, **changes})  # type: ignore[arg-type]


def of(made: list[Statement], party: str) -> Statement:
    return next(statement for statement in made if statement.party_id == party)


def test_an_operator_s_rows_tell_who_paid_and_for_which_day(agreements: Agreements) -> None:
    rows = [
        pool_row(),
        pool_row(amount=10_000, legs=2),
        pool_row(payer_kind="collector", payer="BUSCO"),
        pool_row(service_date="2026-03-01"),
        pool_row(kind="discount", rule_id="student", bearer="CITY", amount=-2000, funded=2000),
        pool_row(operator_id="RAIL", network_id="metro", rule_id="metro/long", amount=9000),
    ]
    made = compose(books(rows), agreements)
    assert [statement.party_id for statement in made] == ["BUSCO", "CITY", "RAIL"]
    found = of(made, "BUSCO")
    assert [(row.section, row.service_date, row.what, row.paid_by, row.count, row.amount) for row in found.rows] == [
        ("legs", DAY, "discount", "CITY", 1, 2000),
        ("legs", DAY, "discount", "riders", 1, -2000),
        ("legs", DAY, "list_fare", "cash", 1, 5000),
        ("legs", DAY, "list_fare", "riders", 3, 15_000),
        ("late", "2026-03-01", "list_fare", "riders", 1, 5000),
    ]
    assert {row.vat for row in found.rows} == {"exempt"}
    assert found.totals["settled"] == found.totals["net"] == 25_000


def test_a_bearer_s_statement_tells_what_he_pays_and_for_which_rule(agreements: Agreements) -> None:
    rows = [pool_row(kind="discount", rule_id="student", bearer="CITY", amount=-2000, funded=2000, legs=3)]
    found = of(compose(books(rows), agreements), "CITY")
    assert [(row.section, row.what, row.rule_id, row.count, row.amount) for row in found.rows] == [
        ("borne", "discount", "student", 3, -2000)
    ]
    assert (found.totals["borne"], found.totals["net"], found.totals["closing"]) == (-2000, -2000, -2000)


def test_what_was_booked_and_reversed_under_one_date_is_no_row(agreements: Agreements) -> None:
    assert compose(books([pool_row(), pool_row(amount=-5000, legs=-1)]), agreements)[0].rows == ()


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        ("rider|cap:day|single", ("shared", "cap", "day", "riders")),
        ("CITY|cap:week|single", ("shared", "cap", "week", "CITY")),
        ("product:DAY|release|DAY", ("shared", "release", "DAY", "products")),
        ("product:BOOK|expiry|BOOK", ("shared", "expiry", "BOOK", "products")),
        ("rider|bus|single", ("shared", "journeys", "", "riders")),
        ("ride|gross|BUSCO", ("rides", "ride", "gross", "BUSCO")),
        ("subsidy|free-bus|BUSCO", ("subsidies", "subsidy", "free-bus", "BUSCO")),
        ("fee|house|BUSCO", ("commissions", "fee", "house", "BUSCO")),
    ],
)
def test_a_shared_pool_s_row_names_what_it_is_and_who_pays(
    agreements: Agreements, pool: str, expected: tuple[str, str, str, str]
) -> None:
    key = (pool, "agreement")
    made = compose(books([], changes={key: {"BUSCO": -3333 * PARTS}}, settled={key: {"BUSCO": -3333}}), agreements)
    (row,) = of(made, "BUSCO").rows
    assert (row.section, row.what, row.rule_id, row.paid_by) == expected
    assert (row.agreement_id, row.amount) == ("agreement", -3333)


def test_rounding_is_one_row_however_many_pools_there_are(agreements: Agreements) -> None:
    half = PARTS // 2
    changes = {(f"rider|cap:{n}|single", "caps"): {"BUSCO": 3 * PARTS + half, "RAIL": 2 * PARTS + half} for n in "ab"}
    settled = {pool: {"BUSCO": 3, "RAIL": 3} for pool in changes}
    made = compose(books([], changes=changes, settled=settled), agreements)
    assert [(row.section, row.amount) for row in of(made, "BUSCO").rows] == [("shared", 4), ("shared", 4), ("rounding", -2)]
    assert [(row.section, row.amount) for row in of(made, "RAIL").rows] == [("shared", 3), ("shared", 3)]
    assert of(made, "BUSCO").totals["settled"] == 6


def test_cash_waivers_losses_fees_and_payments_lead_from_the_opening_to_the_closing_balance(agreements: Agreements) -> None:
    movements = {
        ("collector:BUSCO", "JOURNEY_CHARGED"): 4000,
        ("waivers:BUSCO", "WAIVED"): 300,
        ("losses:BUSCO", "WRITTEN_OFF"): 20,
        ("fees:BUSCO", "PROVIDER_FEE"): -1,
        ("operator:BUSCO", "HELD"): 500,
        ("operator:BUSCO", "SETTLED"): -5000,
        ("net:BUSCO", "PAID"): 7000,
    }
    found = of(compose(books([pool_row()], movements=movements, opening={"BUSCO": 7000}), agreements), "BUSCO")
    assert [(row.section, row.what, row.amount) for row in found.rows] == [
        ("opening", "balance", 7000),
        ("legs", "list_fare", 5000),
        ("collected", "journey_charged", -4000),
        ("waived", "waived", -300),
        ("losses", "written_off", -20),
        ("fees", "provider_fee", 1),
        ("disputes", "held", -500),
        ("paid", "paid", -7000),
    ]
    assert found.totals == {
        "opening": 7000,
        "settled": 5000,
        "cash_held": -4000,
        "borne": -819,
        "net": 181,
        "paid": -7000,
        "closing": 181,
    }


def test_what_is_open_stands_apart_with_number_age_and_owner(agreements: Agreements) -> None:
    items = [
        OpenItems("quarantined", "BUSCO", "unknown_token", "clearing house", 3, 1, 1_772_496_000_000),
        OpenItems("missing", "BUSCO", "dev/01", "BUSCO", 12, 12, 1_772_496_000_000),
        OpenItems("drift", "", "prices changed", "clearing house", 1, 1, 0),
    ]
    (found,) = compose(books([], open_items=items), agreements)
    assert statement_csv(found).decode().splitlines()[3:5] == [
        "1,not_settled,2026-03-03,unknown_token,,quarantined,clearing house,,,3,",
        "2,missing,2026-03-03,dev/01,,missing,BUSCO,,,12,",
    ]


def test_a_statement_s_bytes() -> None:
    row = Row("legs", DAY, "list_fare", "bus", "bus/bus", "cash", "own-legs", "exempt", 2, 10_000)
    statement = Statement(DAY, "BUSCO", "1", "2029-03-02", (row,), {"settled": 10_000, "net": 6000})
    assert (
        statement_csv(statement).decode()
        == f"""\
line,section,service_date,what,network_id,rule_id,paid_by,agreement_id,vat,count,amount
,statement,{DAY},BUSCO,,,,1,,,
,traceable_until,2029-03-02,,,,,,,,
1,legs,{DAY},list_fare,bus,bus/bus,cash,own-legs,exempt,2,10000
,total,{DAY},settled,,,,,,,10000
,total,{DAY},net,,,,,,,6000
"""
    )


def test_the_order_in_which_rows_are_found_does_not_show(agreements: Agreements) -> None:
    rows = [pool_row(rule_id=f"bus/{rule}") for rule in "cab"]
    one, other = (compose(books(listed), agreements)[0] for listed in (rows, rows[::-1]))
    assert statement_csv(one) == statement_csv(other)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@cell", "\t=x", LINE_BREAK])
def test_no_cell_is_a_spreadsheet_s_formula(text: str) -> None:
    row = Row("legs", DAY, text, "bus", text, text, "own-legs", "exempt", 1, 1)
    assert harmless(text) == f"'{text.strip()}"
    statement = Statement(DAY, "BUSCO", "1", DAY, (row,), {})
    cells = list(csv.DictReader(io.StringIO(statement_csv(statement).decode(), newline="")))[2]
    assert [cells["what"], cells["rule_id"], cells["paid_by"]] == [harmless(text)] * 3
    assert harmless("bus/bus") == "bus/bus"


def test_positions_show_what_is_settled_the_cash_and_the_net() -> None:
    statement = Statement(DAY, "BUSCO", "1", DAY, (), {"settled": 5000, "cash_held": -4000})
    found = positions_csv({"BUSCO": 1000, "riders": -1000}, [statement]).decode()
    assert found == "party_id,settled,cash_held,net\nBUSCO,5000,-4000,1000\nriders,0,0,-1000\n"


def test_a_proof_is_the_same_text_however_it_was_put_together() -> None:
    proof = proof_json({"b": 1, "a": "đồng"})
    assert proof == proof_json({"a": "đồng", "b": 1})
    assert json.loads(proof) == {"a": "đồng", "b": 1}
    assert digest(proof) != digest(proof + b" ")
