"""What goes wrong with disputes elsewhere, planted here: no money moves that should not, and each fault has a name."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import msgspec
import pytest

from clearing.disputes import store
from fare_engine.errors import CloseError, DisputeError, NotFoundError
from tests.builders import NETWORK
from tests.disputing import THURSDAY, TUESDAY, WEDNESDAY, DisputingTown, disputing


def total(town: DisputingTown, party: str, on: str, what: str) -> int:
    return next(int(row["amount"]) for row in town.statement(party, on) if row["section"] == "total" and row["what"] == what)


def test_classic_faults_dispute_decided_twice(tmp_path: Path) -> None:
    town = disputing(tmp_path)
    dispute = town.dispute("COOP", "BUSCO", town.line("BUSCO", "list_fare"), amount=5000)
    town.decide(dispute, 2000)
    before = town.everything()
    for granted in (2000, None, 0):
        with pytest.raises(DisputeError, match="decided"):
            town.decide(dispute, granted)
    assert town.everything() == before
    assert town.balances() == {"operator:BUSCO": 2000, "operator:COOP": -2000}
    town.assert_sound()


def test_classic_faults_dispute_claimed_above_the_row(tmp_path: Path) -> None:
    town = disputing(tmp_path)
    line = town.line("BUSCO", "list_fare")
    for amount in (10_001, 0, -5000):
        with pytest.raises(DisputeError, match="above_row"):
            town.dispute("COOP", "BUSCO", line, amount=amount)
    open_ = town.dispute("COOP", "BUSCO", line, amount=6000)
    with pytest.raises(DisputeError, match="above_row"):
        town.dispute("RAIL", "BUSCO", line, amount=4001)
    town.decide(open_, 6000)
    with pytest.raises(DisputeError, match="above_row"):
        town.dispute("RAIL", "BUSCO", line, amount=4001)
    with pytest.raises(DisputeError, match="nothing_held"):
        town.dispute("COOP", "BUSCO", town.line("BUSCO", "transfer"))
    assert town.dispute("RAIL", "BUSCO", line).amount == 4000, "what is left"
    town.assert_sound()


def test_classic_faults_dispute_declined_leaves_its_row_to_others(tmp_path: Path) -> None:
    town = disputing(tmp_path)
    line = town.line("BUSCO", "list_fare")
    town.decide(town.dispute("COOP", "BUSCO", line), 0)
    assert town.balances() == {}
    assert town.dispute("RAIL", "BUSCO", line).amount == 10_000
    town.assert_sound()


def test_classic_faults_the_same_leg_in_two_disputes(tmp_path: Path) -> None:
    town = disputing(tmp_path)
    first, *_ = town.legs("BUSCO")
    one = town.dispute("COOP", "BUSCO", 0, first)
    assert one.amount == 5000, "of riders and of the city, as far as the leg gave it in all"
    with pytest.raises(DisputeError, match="above_row"):
        town.dispute("RAIL", "BUSCO", 0, first)
    with pytest.raises(DisputeError, match="above_row"):
        town.dispute("RAIL", "BUSCO", town.line("BUSCO", "list_fare"), first, amount=5000)
    left = town.dispute("RAIL", "BUSCO", town.line("BUSCO", "list_fare"))
    assert left.amount == 5000, "the row without what is held of the leg"
    town.assert_sound()


def test_classic_faults_the_same_claim_sent_twice_is_one_dispute(tmp_path: Path) -> None:
    town = disputing(tmp_path)
    line = town.line("BUSCO", "list_fare")
    one = town.dispute("COOP", "BUSCO", line, amount=3000, text="again")
    assert town.dispute("COOP", "BUSCO", line, amount=3000, text=" again ") == one
    decided = town.decide(one, 3000)
    assert town.dispute("COOP", "BUSCO", line, amount=3000, text="again") == decided
    assert town.balances() == {"operator:BUSCO": 3000, "operator:COOP": -3000}


def test_classic_faults_dispute_of_a_row_that_does_not_exist(tmp_path: Path) -> None:
    town = disputing(tmp_path)
    for party, line, legs in (
        ("BUSCO", 99, ()),
        ("BUSCO", 0, ()),
        ("NOBODY", 1, ()),
        ("BUSCO", 0, ("no/such/1",)),
        ("BUSCO", 1, ("no/such/1",)),
    ):
        with pytest.raises(NotFoundError):
            town.dispute("COOP", party, line, *legs)
    with pytest.raises(NotFoundError):
        town.dispute("COOP", "BUSCO", 1, accounting_date=WEDNESDAY)
    with pytest.raises(NotFoundError):
        town.dispute("STRANGER", "BUSCO", 1)
    assert town.balances() == {}
    unknown = msgspec.structs.replace(town.dispute("COOP", "BUSCO", 1), dispute_id="none")
    with pytest.raises(NotFoundError):
        town.decide(unknown, 0)
    town.assert_sound()


def test_classic_faults_a_dispute_of_one_s_own_money(tmp_path: Path) -> None:
    town = disputing(tmp_path)
    with pytest.raises(DisputeError, match="nothing_held"):
        town.dispute("BUSCO", "BUSCO", town.line("BUSCO", "list_fare"))
    dispute = town.dispute("clearing house", "BUSCO", town.line("BUSCO", "list_fare"))
    for to in (None, "BUSCO", "STRANGER"):
        with pytest.raises(DisputeError, match="no_receiver"):
            town.decide(dispute, 100, to)
    assert town.decide(dispute, 100, "CITY").granted_to == "CITY"
    town.assert_sound()


def test_classic_faults_held_amount_that_stays(tmp_path: Path) -> None:
    town = disputing(tmp_path)
    dispute = town.dispute("COOP", "BUSCO", town.line("BUSCO", "list_fare"), amount=4000)
    with pytest.raises(CloseError, match=f"2 disputed dispute {dispute.dispute_id} \\(BUSCO, for clearing house\\)"):
        town.close(WEDNESDAY)
    documents = town.close(WEDNESDAY, despite="it is held")
    assert named(documents) == [f"disputed,BUSCO,dispute {dispute.dispute_id},clearing house,2,2"]
    assert total(town, "BUSCO", WEDNESDAY, "net") == -4000
    assert named(town.close(THURSDAY)) == [f"disputed,BUSCO,dispute {dispute.dispute_id},clearing house,2,0"]
    late = named(town.close("2026-04-10"))
    assert late == [f'disputed,BUSCO,"dispute {dispute.dispute_id}, held for more than {store.OLD_DAYS} days",clearing house,2,0']
    town.decide(dispute, 0)
    documents = town.close("2026-04-11")
    assert named(documents) == []
    assert total(town, "BUSCO", "2026-04-11", "net") == 4000
    assert town.rows("select * from closing_balances where accounting_date = '2026-04-11' and account like 'held:%'") == []
    town.assert_sound()


def named(documents: dict[str, bytes]) -> list[str]:
    """The open items of a close, as text, without when they began."""
    rows = csv.reader(io.StringIO(documents["open-items.csv"].decode()))
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(row[:-1] for row in list(rows)[1:])
    return out.getvalue().splitlines()


def test_classic_faults_decision_after_the_agreement_changed(tmp_path: Path) -> None:
    town = disputing(tmp_path)
    dispute = town.dispute("CITY", "CITY", town.line("CITY", "transfer", ""), against=("BUSCO",))
    changed = (
        NETWORK["clearing.toml"]
        .replace('agreement_version = "1"', 'agreement_version = "2"')
        .replace('covers = "legs"\nmethod = "own_leg"', 'covers = "legs"\nmethod = "fixed"\nshares = { RAIL = 1, COOP = 1 }')
    )
    (town.opened.tariff_folder / "clearing.toml").write_text(changed, encoding="utf-8")
    assert town.rules.agreements.clearing.agreement_version == "2"
    decided = town.decide(dispute, None)
    assert (decided.granted, decided.granted_to) == (dispute.amount, "CITY")
    assert town.balances() == {"operator:BUSCO": dispute.amount, "operator:CITY": -dispute.amount}
    with town.database.read() as connection:
        statements = [one.content for one in store.evidence_of(connection, dispute.dispute_id) if one.kind == "statement"]
    assert {content["agreement_version"] for content in statements} == {"1"}
    town.assert_sound()


def test_classic_faults_a_published_statement_that_changes_by_a_dispute(tmp_path: Path) -> None:
    town = disputing(tmp_path)
    before = town.close(TUESDAY)
    dispute = town.dispute("COOP", "BUSCO", town.line("BUSCO", "list_fare"))
    wednesday = town.close(WEDNESDAY, despite="it is held")
    town.decide(dispute, 1000)
    assert town.close(TUESDAY) == before
    assert town.close(WEDNESDAY) == wednesday
    town.close(THURSDAY)
    assert total(town, "COOP", THURSDAY, "net") == 1000
    assert total(town, "BUSCO", THURSDAY, "net") == 9000
    town.assert_sound()
