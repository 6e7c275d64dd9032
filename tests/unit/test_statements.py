"""Statements: rows that sum to what is settled, and bytes that never change."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from clearing.agreements import Agreements, load_agreements
from clearing.statements import Row, digest, harmless, leg_rows, operator_csv, positions_csv, proof_json, shared_row
from clearing.store import PoolRow
from tests.builders import NETWORK

DAY = "2026-03-03"
LINE_BREAK = "\rx"


@pytest.fixture
def agreements(tmp_path: Path) -> Agreements:
    """Those of the little city."""
    path = tmp_path / "clearing.toml"
    path.write_text(NETWORK["clearing.toml"], encoding="utf-8")
    return load_agreements(path, ("RAIL", "BUSCO"), "VND")


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


def test_an_operator_s_rows_tell_who_paid_and_for_which_day(agreements: Agreements) -> None:
    rows = [
        pool_row(),
        pool_row(amount=10_000, legs=2),
        pool_row(payer_kind="collector", payer="BUSCO"),
        pool_row(service_date="2026-03-01"),
        pool_row(kind="discount", rule_id="student", bearer="CITY", amount=-2000, funded=2000),
        pool_row(kind="cap", rule_id="day", amount=-1000),
        pool_row(operator_id="RAIL", network_id="metro", rule_id="metro/long", amount=9000),
    ]
    found = leg_rows(rows, agreements, DAY)
    assert sorted(found) == ["BUSCO", "RAIL"]
    assert [(row.section, row.service_date, row.what, row.paid_by, row.count, row.amount) for row in found["BUSCO"]] == [
        ("late", "2026-03-01", "list_fare", "riders", 1, 5000),
        ("legs", DAY, "discount", "CITY", 1, 2000),
        ("legs", DAY, "discount", "riders", 1, -2000),
        ("legs", DAY, "list_fare", "cash", 1, 5000),
        ("legs", DAY, "list_fare", "riders", 3, 15_000),
    ]


def test_what_was_booked_and_reversed_under_one_date_is_no_row(agreements: Agreements) -> None:
    assert leg_rows([pool_row(), pool_row(amount=-5000, legs=-1)], agreements, DAY) == {"BUSCO": []}


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        ("rider|cap:day|single", ("cap", "day", "riders")),
        ("CITY|cap:week|single", ("cap", "week", "CITY")),
        ("product:DAY|release|DAY", ("release", "DAY", "products")),
        ("product:BOOK|expiry|BOOK", ("expiry", "BOOK", "products")),
    ],
)
def test_a_shared_pool_s_row_names_what_it_is_and_who_pays(pool: str, expected: tuple[str, str, str]) -> None:
    row = shared_row(pool, "agreement", -3333, DAY)
    assert (row.what, row.rule_id, row.paid_by) == expected
    assert (row.section, row.agreement_id, row.amount) == ("shared", "agreement", -3333)


def test_a_statement_s_rows_sum_to_settled_and_less_the_cash_to_net() -> None:
    rows = [
        Row("shared", DAY, "cap", "", "day", "riders", "caps", 0, -1000),
        Row("not_settled", DAY, "unknown_token", "", "", "", "", 3, 0),
        Row("legs", DAY, "list_fare", "bus", "bus/bus", "cash", "own-legs", 2, 10_000),
    ]
    assert (
        operator_csv("BUSCO", DAY, "1", rows, 4000).decode()
        == f"""\
section,service_date,what,network_id,rule_id,paid_by,agreement_id,count,amount
statement,{DAY},BUSCO,,,,1,,
legs,{DAY},list_fare,bus,bus/bus,cash,own-legs,2,10000
not_settled,{DAY},unknown_token,,,,,3,
shared,{DAY},cap,,day,riders,caps,,-1000
total,{DAY},settled,,,,,,9000
total,{DAY},cash_held,,,,,,-4000
total,{DAY},net,,,,,,5000
"""
    )


def test_the_order_in_which_rows_are_found_does_not_show() -> None:
    rows = [Row("legs", DAY, "list_fare", "bus", rule, "riders", "own-legs", 1, 1) for rule in "cab"]
    assert operator_csv("BUSCO", DAY, "1", rows, 0) == operator_csv("BUSCO", DAY, "1", rows[::-1], 0)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@cell", "\tx", LINE_BREAK])
def test_no_cell_is_a_spreadsheet_s_formula(text: str) -> None:
    row = Row("legs", DAY, "list_fare", "bus", text, text, "own-legs", 1, 1)
    assert harmless(text) == f"'{text}".replace("\r", " ")
    cells = list(csv.DictReader(io.StringIO(operator_csv("BUSCO", DAY, "1", [row], 0).decode(), newline="")))[1]
    assert [cells["rule_id"], cells["paid_by"]] == [harmless(text)] * 2
    assert harmless("bus/bus") == "bus/bus"


def test_positions_show_what_is_settled_the_cash_and_the_net() -> None:
    found = positions_csv({"BUSCO": 1000, "riders": -1000}, {"BUSCO": 5000}, {"BUSCO": 4000}).decode()
    assert found == "party_id,settled,cash_held,net\nBUSCO,5000,-4000,1000\nriders,0,0,-1000\n"


def test_a_proof_is_the_same_text_however_it_was_put_together() -> None:
    proof = proof_json({"b": 1, "a": "đồng"})
    assert proof == proof_json({"a": "đồng", "b": 1})
    assert json.loads(proof) == {"a": "đồng", "b": 1}
    assert digest(proof) != digest(proof + b" ")
