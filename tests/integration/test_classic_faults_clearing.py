"""Classic faults of fare clearing, each planted by its test: every one is caught, and named."""

from __future__ import annotations

import csv
import io
from datetime import date, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from clearing import seals, store
from clearing.commands import changed_under, rules_of
from clearing.tracing import trace
from fare_engine.errors import BooksError, CloseError, InputError
from fare_engine.store import registry
from fare_engine.tariff.compile import load_compiled
from tests.builders import NETWORK, Town, row, write_city

TUESDAY, WEDNESDAY = "2026-03-03", "2026-03-04"
DAY_CAP = row("caps", rule_id="day", period="service_day", amount=12_000, bearer="operators")
WEEK_CAP = row("caps", rule_id="week", period="week", amount=20_000, bearer="operators")
PASS = row("products", product_id="DAY", kind="pass", price=10_000, networks=("metro", "bus"), days=3, starts="purchase")
A_DAY = """07:00 board 10 card=ana
           07:20 enter A card=ana
           07:40 leave C card=ana
           08:00 board 11 card=ben
           08:10 board 10 cash card=paper"""


def town(folder: Path, *rules: str, **options: object) -> Town:
    found = Town(folder / "data", write_city(folder / "city", *rules, **options))  # type: ignore[arg-type]
    found.issue("ana", "ben")
    return found


def rows_of(document: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(document.decode())))


def total(documents: dict[str, bytes], party: str, what: str = "settled") -> int:
    rows = rows_of(documents[f"{party}.csv"]) if f"{party}.csv" in documents else []
    return next((int(one["amount"]) for one in rows if one["section"] == "total" and one["what"] == what), 0)


def named(found: Town, on: str = TUESDAY) -> list[str]:
    """What the audit of a date names as changed."""
    return [f"{one.table} {one.key}" for one in changed_under(found.opened, on)]


# ---- stored amounts that change behind everybody's back


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("update lines set amount = amount + 1 where row_number = 1", "lines 1"),
        ("update postings set amount = amount + 1 where row_number = 1", "postings 1"),
        ("update postings set amount = amount + 1 where code = 'SETTLED' and amount = 9000", "postings "),
        ("update settlements set amount = amount + 1 where party = 'RAIL'", f"settlements {TUESDAY}/rider|metro|single/own-legs"),
        ("update pool_shares set published = published + 1 where party = 'RAIL'", f"pool_shares {TUESDAY}/rider|metro|single"),
        ("update payments set amount = amount + 1 where party_id = 'RAIL'", "payments MT20260303"),
        ("update closing_balances set balance = balance + 1 where account = 'net:RAIL'", f"closing_balances {TUESDAY}/net:RAIL"),
        ("update statements set content = content || ' ' where name = 'RAIL.csv'", f"statements {TUESDAY}/RAIL.csv"),
        ("update legs set persons = 2 where row_number = 1", "legs 1"),
    ],
)
def test_classic_faults_one_dong_changed_anywhere_names_its_row(tmp_path: Path, change: str, says: str) -> None:
    found = town(tmp_path)
    found.take(A_DAY)
    found.close(TUESDAY)
    assert named(found) == []
    found.change(change)
    assert any(one.startswith(says) for one in named(found)), named(found)


@pytest.mark.parametrize("table", ["lines", "postings", "legs", "batches"])
def test_classic_faults_a_row_taken_out_breaks_the_seal(tmp_path: Path, table: str) -> None:
    found = town(tmp_path)
    found.take(A_DAY)
    found.close(TUESDAY)
    key = "batch_id" if table == "batches" else "row_number"
    found.change(f"delete from {table} where {key} = (select min({key}) from {table})")
    assert f"closes {TUESDAY}" in named(found)


def test_classic_faults_booked_twice_stops_the_close(tmp_path: Path) -> None:
    found = town(tmp_path)
    found.take(A_DAY)
    for table in ("lines", "postings"):
        names = found.rows(f"select name from pragma_table_info('{table}') where name != 'row_number'")
        listed = ", ".join(str(name) for (name,) in names)
        found.change(f"insert into {table} ({listed}) select {listed} from {table} where row_number = 1")
    with pytest.raises(BooksError, match="booked twice under 2026-03-03"):
        found.close(TUESDAY)


def test_classic_faults_money_left_in_a_clearing_account_stops_the_close(tmp_path: Path) -> None:
    found = town(tmp_path)
    found.take(A_DAY)
    found.change("delete from lines where network_id = 'metro'")
    with pytest.raises(BooksError, match=r"fares:2026-03-03:rider\|metro\|single is not zero"):
        found.close(TUESDAY)


# ---- who is owed


def test_classic_faults_the_vehicle_s_operator_is_owed_not_the_route_s_and_as_of_the_tap(tmp_path: Path) -> None:
    found = town(tmp_path)
    noon = 1_772_514_000_000  # 12:00 on the Tuesday
    with found.database.write() as connection:
        registry.assign_vehicles(connection, [("bus-7", 0, "BUSCO"), ("bus-7", noon, "COOP")])
    found.take("07:00 board 10 card=ana by=BUSCO\n13:00 board 10 card=ana by=COOP")
    documents = found.close(TUESDAY)
    assert (total(documents, "BUSCO"), total(documents, "COOP")) == (5000, 5000)


def test_classic_faults_cash_in_a_till_is_its_holder_s_debt(tmp_path: Path) -> None:
    found = town(tmp_path)
    found.take("08:10 board 10 cash card=paper")
    documents = found.close(TUESDAY)
    assert (total(documents, "BUSCO"), total(documents, "BUSCO", "net")) == (5000, 0)
    assert store_payments(found) == {}


def test_classic_faults_a_pass_that_nobody_rides_with_is_shared_by_the_agreement_not_kept(tmp_path: Path) -> None:
    found = town(tmp_path, PASS)
    found.take("06:00 buy DAY card=ana\n07:00 board 11 card=ben")
    given = []
    for offset in range(3):
        documents = found.close((date.fromisoformat(TUESDAY) + timedelta(days=offset)).isoformat())
        given.append(total(documents, "RAIL") + total(documents, "BUSCO"))
    assert sum(given) == 10_000
    assert found.rows("select sum(amount) from postings where debit = 'deferred:DAY'") == [(10_000,)]


def test_classic_faults_a_month_of_thirds_never_drifts(tmp_path: Path) -> None:
    third = NETWORK["clearing.toml"].replace("RAIL = 2, BUSCO = 1", "RAIL = 1, BUSCO = 1, COOP = 1")
    month = row("products", product_id="DAY", kind="pass", price=10_000, networks=("bus",), days=31, starts="purchase")
    found = town(tmp_path, month, files={"clearing.toml": third})
    found.take("06:00 buy DAY card=ana")
    last = (date.fromisoformat(TUESDAY) + timedelta(days=31)).isoformat()
    found.close(last)
    rows = dict(found.rows("select party, sum(amount) from settlements group by 1"))
    assert sum(rows.values()) == 10_000  # type: ignore[arg-type]
    assert all(abs(amount - 10_000 / 3) < 1 for amount in rows.values())  # type: ignore[operator]


def test_classic_faults_a_leg_in_two_caps_is_capped_once_by_each_and_shares_sum(tmp_path: Path) -> None:
    found = town(tmp_path, DAY_CAP, WEEK_CAP)
    for on in ("2026-03-02", TUESDAY):
        found.take(f"{on} 07:00 enter A card=ana\n07:20 leave C card=ana\n08:00 board 10 card=ana\n09:00 board 11 card=ana")
    documents = found.close(TUESDAY)
    assert -found.balance("ana") == 20_000
    given = sum(total(one.documents, party) for one in found.close_all(TUESDAY) for party in ("RAIL", "BUSCO", "COOP"))
    assert given == total(documents, "RAIL") + total(documents, "BUSCO") + total(documents, "COOP")
    assert found.rows("select sum(amount) from settlements") == [(20_000,)]


def test_classic_faults_a_campaign_that_nobody_pays_is_no_tariff(tmp_path: Path) -> None:
    campaign = row("discounts", rule_id="sale", percent=50, rider_categories=("adult",), bearer="NOBODY")
    with pytest.raises(InputError, match="bearer"):
        load_compiled(write_city(tmp_path / "city", campaign))


# ---- when


def test_classic_faults_a_ride_over_the_turn_of_the_day_is_of_the_day_it_began(tmp_path: Path) -> None:
    found = town(tmp_path)
    found.take(f"{TUESDAY} 23:50 enter A card=ana\n{WEDNESDAY} 00:10 leave C card=ana")
    assert total(found.close(TUESDAY), "RAIL") == 9000
    assert total(found.close(WEDNESDAY), "RAIL") == 0


def test_classic_faults_the_day_the_clocks_change_has_every_ride_once(tmp_path: Path) -> None:
    agency = NETWORK["network/agency.txt"].replace("Asia/Ho_Chi_Minh", "Europe/London")
    found = town(tmp_path, files={"network/agency.txt": agency})
    utc = ["00:30", "01:30", "02:30"]  # 01:30 twice and 02:30, by the clock on the wall
    for clock in utc:
        answers = found.take(f"2026-10-25 {int(clock[:2]) + 7:02d}:{clock[3:]} board 10 card=ana")
        assert [answer.result for answer in answers] == ["ACCEPTED"], answers
    closed = found.close_all("2026-10-25")  # the service day turns at two, after the hour that there is twice
    assert [total(one.documents, "BUSCO") for one in closed] == [10_000, 5000]
    assert found.rows("select service_date, count(*) from legs group by 1") == [("2026-10-24", 2), ("2026-10-25", 1)]


def test_classic_faults_a_late_tap_changes_no_published_statement_and_names_its_day(tmp_path: Path) -> None:
    found = town(tmp_path)
    found.take("07:00 board 10 card=ana")
    first = found.close(TUESDAY)
    found.take(f"{TUESDAY} 09:00 board 10 card=ben", now=f"{WEDNESDAY} 12:00")
    second = found.close(WEDNESDAY)
    assert found.close(TUESDAY) == first
    late = [one for one in rows_of(second["BUSCO.csv"]) if one["section"] == "late"]
    assert [(one["service_date"], one["amount"]) for one in late] == [(TUESDAY, "5000")]


def test_classic_faults_a_day_closed_twice_pays_once(tmp_path: Path) -> None:
    found = town(tmp_path)
    found.take(A_DAY)
    first = found.close(TUESDAY)
    before = found.rows("select * from payments")
    assert found.close(TUESDAY) == first
    assert found.rows("select * from payments") == before
    assert len({payment for payment, *_ in before}) == len(before) > 0


# ---- what is open


def test_classic_faults_a_ride_without_a_price_is_no_free_ride(tmp_path: Path) -> None:
    found = town(tmp_path, files={"clearing.toml": NETWORK["clearing.toml"].replace('"100%"', '"10%"')})
    found.take("07:00 board P card=ana\n08:00 board 10 card=ben")
    with pytest.raises(CloseError, match=r"1 unknown_price .*fare planners"):
        found.close(TUESDAY)


def test_classic_faults_taps_known_to_be_missing_are_named_with_device_and_owner(tmp_path: Path) -> None:
    found = town(tmp_path)
    found.take("07:00 board 10 card=ana")
    found.change("update streams set predecessor = '0202020202020202', predecessor_last = 9 where device_id = 'dev-BUSCO'")
    documents = found.close(TUESDAY)
    missing = [one for one in rows_of(documents["BUSCO.csv"]) if one["section"] == "missing"]
    assert [(one["what"], one["paid_by"], one["count"]) for one in missing] == [("dev-BUSCO/0202020202020202", "BUSCO", "9")]


def test_classic_faults_money_that_no_agreement_covers_stops_the_close(tmp_path: Path) -> None:
    later = NETWORK["clearing.toml"].replace("valid_from = 2026-01-01", "valid_from = 2026-03-04", 1)
    found = town(tmp_path, files={"clearing.toml": later})
    found.take("07:00 board 10 card=ana")
    with pytest.raises(CloseError, match=r"no agreement covers list_fare bus/.* paid by riders on bus of 2026-03-03"):
        found.close(TUESDAY)


def test_classic_faults_a_figure_whose_rows_do_not_give_it_is_not_followed_but_named(tmp_path: Path) -> None:
    found = town(tmp_path)
    found.take(A_DAY)
    found.close(TUESDAY)
    with found.database.write() as connection:
        connection.execute(text("delete from lines where network_id = 'metro'"))
    with found.database.read() as connection, pytest.raises(CloseError, match=r"line 1 of 2026-03-03/RAIL is 9000"):
        trace(connection, rules_of(found.tariff, found.opened.tariff_folder), TUESDAY, "RAIL", 1)


def store_payments(found: Town) -> dict[str, int]:
    with found.database.read() as connection:
        assert list(seals.check(connection)) == []
        return {one.party_id: one.amount for one in store.list_payments(connection, TUESDAY)}
