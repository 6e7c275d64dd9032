"""Closed dates for other programs: what stands in them, that others confirm it, and that a rerun gives the same bytes."""

from __future__ import annotations

import csv
import json
from collections import Counter
from fractions import Fraction
from pathlib import Path

import msgspec
import pyarrow.parquet as pq
import pytest
from sqlalchemy.exc import DBAPIError

from clearing import store
from clearing.exports import checks, invoices, parquet, rows, tides
from clearing.exports.commands import journal_of
from clearing.exports.journals import PROGRAMS
from clearing.exports.pseudonyms import Pseudonyms
from clearing.exports.views import VIEWS
from clearing.store import published
from fare_engine.errors import BooksError
from fare_engine.money import rounded_to
from fare_engine.store.database import Database
from tests.builders import Town
from tests.demos import DAY, PlayedDemo, motthe
from tests.integration.desk import AT_REST_KEY
from tests.integration.test_close import A_DAY, BOOK, CAP, DAY_PASS, HOLD, JOINT, TUESDAY, WEDNESDAY, town
from tests.tools import run_tool
from tests.unit.test_journals import CHECKS

KEY = b"k" * 32


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Town:
    """Two closed dates: on Wednesday a ride of Tuesday comes in late, another turns out to be none."""
    found = town(tmp_path_factory.mktemp("closed"), JOINT, CAP, DAY_PASS, BOOK, metro=HOLD)
    found.take("06:00 buy DAY card=ana\n06:01 buy BOOK card=ana\n" + A_DAY)
    found.close(TUESDAY)
    found.take("07:10 board 10 card=ben", now="2026-03-04 09:00")
    found.tell("dev-COOP", 1, "2026-03-04 08:00")
    found.take("2026-03-04 08:00 board 10 card=ana x2\n2026-03-04 09:00 board F cash card=slip")
    found.close(WEDNESDAY)
    return found


def package(found: Town, day: str, folder: Path, key: bytes = KEY) -> Path:
    folder.mkdir()
    counted = tides.write_package(found.opened, day, folder, key)
    checks.check_package(folder, "VND", 0, counted)
    return folder


def table(folder: Path, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / f"{name}.csv").read_text(encoding="utf-8").splitlines()))


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def charged(found: Town, day: str) -> int:
    ((amount,),) = found.rows(f"select sum(amount) from lines where accounting_date = '{day}' and kind != 'hold'")
    return int(amount)  # type: ignore[call-overload]


# ---- TIDES


def test_a_package_has_a_transaction_for_each_leg_and_sale_with_what_its_rider_paid(closed: Town, tmp_path: Path) -> None:
    found = table(package(closed, TUESDAY, tmp_path / "out"), "fare_transactions")
    shown = Counter((row["fare_action"], row["fare_media_id"], row["fare_product"], row["amount"]) for row in found)
    assert sum(int(row["amount"]) for row in found) == charged(closed, TUESDAY)
    assert shown[("Purchase", "", "DAY", "10000")] == 1
    assert shown[("Enter", "Cash or coins", "Single ride", "5000")] == 1
    assert {row["currency_type"] for row in found} == {"VND"}
    assert {row["event_timestamp"][-1] for row in found} == {"Z"}
    assert [row["amount"] for row in found if row["fare_capped"] == "true"] == ["7000"]


def test_what_changed_of_an_earlier_date_is_an_adjustment_and_what_turned_out_to_be_none_is_void(
    closed: Town, tmp_path: Path
) -> None:
    folder = package(closed, WEDNESDAY, tmp_path / "out")
    found = {row["transaction_id"]: row for row in table(folder, "fare_transactions")}
    void = [row for row in found.values() if row["fare_action"] == "Void"]
    assert [(row["device_id"], row["service_date"], row["amount"]) for row in void] == [("dev-COOP", TUESDAY, void[0]["amount"])]
    late = [row for row in found.values() if row["fare_action"] == "Enter" and row["service_date"] == TUESDAY]
    assert [row["device_id"] for row in late] == ["dev-BUSCO"]
    assert {row["num_riders"] for row in found.values()} >= {"2"}
    assert sum(int(row["amount"]) for row in found.values()) == charged(closed, WEDNESDAY)
    rides = {row["transaction_id"]: row for row in table(folder, "rides")}
    assert [rides[row["transaction_id"]]["stands"] for row in void] == ["false"]


@pytest.mark.parametrize("day", [TUESDAY, WEDNESDAY])
def test_a_package_is_valid_by_frictionless_without_a_network(closed: Town, tmp_path: Path, day: str) -> None:
    folder = package(closed, day, tmp_path / "out")
    done = run_tool("frictionless", "validate", "datapackage.json", "--json", cwd=folder)
    report = json.loads(done.stdout)
    assert (done.returncode, report["valid"], report["errors"]) == (0, True, [])
    assert {task["name"] for task in report["tasks"]} == {*tides.TIDES, *tides.OWN}
    assert {task["type"] for task in report["tasks"]} == {"table"}


def test_frictionless_finds_what_is_wrong_with_a_package(closed: Town, tmp_path: Path) -> None:
    folder = package(closed, TUESDAY, tmp_path / "out")
    path = folder / "fare_transactions.csv"
    path.write_text(path.read_text(encoding="utf-8").replace('"Enter"', '"Came in"'), encoding="utf-8")
    assert run_tool("frictionless", "validate", "datapackage.json", cwd=folder).returncode != 0


@pytest.mark.parametrize(
    ("name", "was", "is_now", "said"),
    [
        ("devices", "dev-RAIL,", "dev-XXXX,", "fare_transactions.device_id dev-RAIL is not in devices"),
        ("stops", "A,", "Z,", "is not in stops"),
        ("operators", "RAIL\n", "\n", "operator_id RAIL is not in operators"),
        ("fare_transactions", 'Z",,5000,', '",,5000,', "event_timestamp"),
        ("fare_transactions", '"VND"', '"dong"', "currency_type ['dong'] is not VND"),
        ("fare_transactions", ",5000,", ",5000.50,", "amount 5000.50 is not as it must be"),
        ("fare_transactions", ",5000,", ",4000,", "is not the sum of its lines"),
        ("lines", '"list_fare","bus/bus","now",5000', '"list_fare","bus/bus","now",5001', "is not the sum of its lines"),
        ("positions", ",9000", ",9001", "positions sum to 1"),
    ],
)
def test_our_own_checks_find_what_no_schema_forbids(
    closed: Town, tmp_path: Path, name: str, was: str, is_now: str, said: str
) -> None:
    folder = package(closed, TUESDAY, tmp_path / "out")
    path = folder / f"{name}.csv"
    text = path.read_text(encoding="utf-8")
    assert was in text
    path.write_text(text.replace(was, is_now), encoding="utf-8")
    assert any(said in fault for fault in checks.find_faults(folder, "VND", 0)), list(checks.find_faults(folder, "VND", 0))


def test_a_row_that_stands_twice_and_a_count_that_differs_are_found(closed: Town, tmp_path: Path) -> None:
    folder = package(closed, TUESDAY, tmp_path / "out")
    path = folder / "rides.csv"
    path.write_bytes(path.read_bytes() + path.read_bytes().splitlines(keepends=True)[-1])
    assert "rides: 1 rows have a transaction_id that stands before" in list(checks.find_faults(folder, "VND", 0))
    with pytest.raises(BooksError, match="others were read from the books"):
        checks.check_package(folder, "VND", 0, tides.Part(1, 1, 1))


@pytest.mark.parametrize("day", [TUESDAY, WEDNESDAY])
def test_the_bytes_are_the_same_on_a_rerun_and_for_any_number_of_parts(
    closed: Town, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, day: str
) -> None:
    first = files(package(closed, day, tmp_path / "one"))
    assert files(package(closed, day, tmp_path / "again")) == first
    monkeypatch.setattr(tides, "MANY", 1)
    monkeypatch.setattr(tides, "PART", 2)
    with closed.database.read() as connection:
        assert len(rows.cuts(connection, day, 3)) == 2
    assert files(package(closed, day, tmp_path / "parts")) == first


def test_no_card_and_no_traveller_is_named_and_another_key_names_others(closed: Town, tmp_path: Path) -> None:
    one, other = package(closed, TUESDAY, tmp_path / "one"), package(closed, TUESDAY, tmp_path / "other", b"o" * 32)
    secret = {str(value) for row in closed.rows("select token_id, traveller_id, account_id from tokens") for value in row}
    secret |= {str(value) for (value,) in closed.rows("select transaction_id from lines")}
    for folder in (one, other):
        text = b"\n".join(files(folder).values()).decode()
        assert [name for name in secret if len(name) > 4 and name in text] == []
        assert "shop/" not in text
    tokens = [{row["token_id"] for row in table(folder, "fare_transactions")} - {""} for folder in (one, other)]
    assert len(tokens[0]) == len(tokens[1]) == 3
    assert tokens[0].isdisjoint(tokens[1])


# ---- journals


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("day", [TUESDAY, WEDNESDAY])
def test_another_program_confirms_a_date_s_sums(closed: Town, tmp_path: Path, program: str, day: str) -> None:
    with closed.database.read() as connection:
        found = journal_of(connection, closed.opened, day)
        proof = json.loads(published(connection, day)["proof.json"])
    assert sum(entry.amount for entry in found.entries) == proof["debits"] == proof["credits"]
    assert sum(found.balances.values()) == 0
    path = tmp_path / f"{day}.{program}"
    path.write_bytes(PROGRAMS[program](found))
    name, *arguments = CHECKS[program]
    done = run_tool(name, *arguments, f"{path}")
    assert (done.returncode, done.stderr) == (0, "")
    text = path.read_text(encoding="utf-8")
    assert "account-ana" not in text
    assert text.count("JOURNEY_CHARGED") == sum(entry.code == "JOURNEY_CHARGED" for entry in found.entries)


# ---- Parquet and invoices


def test_parquet_has_every_row_under_pseudonyms_and_the_same_bytes_on_a_rerun(closed: Town, tmp_path: Path) -> None:
    contents = []
    for name in ("one", "again"):
        (tmp_path / name).mkdir()
        with closed.database.read() as connection:
            counts = parquet.write_files(connection, TUESDAY, WEDNESDAY, tmp_path / name, Pseudonyms(KEY))
        contents.append(files(tmp_path / name))
    assert contents[0] == contents[1]
    read = {name: pq.read_table(tmp_path / "one" / f"{name}.parquet").to_pylist() for name in parquet.TABLES}
    assert counts == {name: len(found) for name, found in read.items()}
    for name, column in (("lines", "amount"), ("postings", "amount"), ("settlements", "amount"), ("legs", "persons")):
        assert [(sum(row[column] for row in read[name]), len(read[name]))] == closed.rows(
            f"select sum({column}), count(*) from {name}"
        )
    text = repr(read)
    assert [name for name in ("ana", "ben", "slip", "shop/") if name in text.replace("balance", "")] == []
    assert {row["payer"].partition(":")[0] for row in read["lines"]} == {"rider", "collector"}


def test_parquet_groups_do_not_depend_on_how_rows_come(closed: Town, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = []
    monkeypatch.setattr(parquet, "GROUP", 3)
    for size in (1, 2, 100):
        monkeypatch.setattr(store, "AT_ONCE", size)
        (tmp_path / f"{size}").mkdir()
        with closed.database.read() as connection:
            parquet.write_files(connection, TUESDAY, WEDNESDAY, tmp_path / f"{size}", Pseudonyms(KEY))
        contents.append(files(tmp_path / f"{size}"))
    assert contents[0] == contents[1] == contents[2]


@pytest.mark.parametrize("day", [TUESDAY, WEDNESDAY])
def test_invoices_sum_to_what_riders_paid_and_are_issued_by_each_leg_s_operator(closed: Town, tmp_path: Path, day: str) -> None:
    count = invoices.write_invoices(closed.opened, day, tmp_path, KEY)
    lines = (tmp_path / "invoices.jsonl").read_bytes().splitlines()
    found = [msgspec.json.decode(line, type=invoices.Invoice) for line in lines]
    assert len(found) == count > 0
    assert sum(invoice.amount for invoice in found) == charged(closed, day)
    assert all(invoice.amount == sum(item.amount for item in invoice.items) for invoice in found)
    assert len({invoice.number for invoice in found}) == count
    assert {invoice.vat for invoice in found} == {"exempt"}
    if day == TUESDAY:
        owners = dict(closed.rows(f"select leg_id || '/{day}', operator_id from legs where accounting_date = '{day}'"))
        assert all(
            invoice.seller and owners[invoice.transaction_id] == invoice.seller.party_id
            for invoice in found
            if invoice.type == "leg"
        )
        assert Counter(invoice.type for invoice in found)["sale"] == 2
    else:
        assert [invoice.adjusts for invoice in found if invoice.type == "adjustment" and invoice.adjusts] != []


def test_invoices_tell_the_vat_that_the_agreements_say_is_included(closed: Town, tmp_path: Path) -> None:
    path = closed.opened.tariff_folder / "clearing.toml"
    before = path.read_text(encoding="utf-8")
    name = 'name = { vi = "x", en = "x" }'
    taxed = f'\n[[vat]]\n{name}\nvalid_from = 2026-01-01\nstate = "taxed"\npercent = "8"\nnetworks = ["boat"]\n'
    path.write_text(before + taxed, encoding="utf-8")
    try:
        invoices.write_invoices(closed.opened, TUESDAY, tmp_path, KEY)
    finally:
        path.write_text(before, encoding="utf-8")
    found = [msgspec.json.decode(line, type=invoices.Invoice) for line in (tmp_path / "invoices.jsonl").read_bytes().splitlines()]
    assert {(one.seller.party_id if one.seller else "", one.vat) for one in found} >= {("BOATS", "8%"), ("BUSCO", "exempt")}
    for one in found:
        assert one.vat_amount == (rounded_to(Fraction(one.amount * 8, 108), "half_up") if one.vat == "8%" else 0)


def test_the_published_schema_of_invoices_is_that_of_the_code() -> None:
    assert invoices.SCHEMA.read_bytes() == invoices.schema()


# ---- SQL


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_views_can_be_read_and_not_written_through(request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> None:
    url = f"sqlite:///{tmp_path / 'motthe.db'}" if kind == "sqlite" else request.getfixturevalue("empty_postgres")
    database = Database(url, AT_REST_KEY)
    database.create()
    database.create()
    for name, (_, columns) in VIEWS.items():
        with database.read() as connection:
            found = connection.exec_driver_sql(f"select * from {name}")
            assert len(list(found.keys())) == columns.count(",") + 1
            assert found.all() == []
        for change in (f"delete from {name}", f"insert into {name} select * from {name}"):
            with pytest.raises(DBAPIError), database.write() as connection:
                connection.exec_driver_sql(change)
    database.dispose()


def test_views_give_the_rows_of_the_books(closed: Town) -> None:
    for view, table_name in (
        ("v1_legs", "legs"),
        ("v1_lines", "lines"),
        ("v1_postings", "postings"),
        ("v1_settlements", "settlements"),
    ):
        assert closed.rows(f"select count(*) from {view}") == closed.rows(f"select count(*) from {table_name}")
    assert closed.rows("select sum(sign * persons) from v1_legs") == closed.rows(
        "select sum(persons * (1 - 2 * (generation % 2))) from legs"
    )
    assert closed.rows("select count(*) from v1_closes where seal is not null") == [(2,)]


# ---- commands


@pytest.mark.long(38)
def test_a_demo_s_day_goes_out_by_commands_and_others_confirm_it(demo: PlayedDemo, tmp_path: Path) -> None:
    data = demo.copy(tmp_path / "data")
    for kind in ("tides", "hledger", "ledger", "beancount", "parquet", "invoices"):
        first = motthe("export", kind, DAY, f"{tmp_path / kind}", "--data", f"{data}")
        assert first.returncode == 0, first.stderr
        before = files(tmp_path / kind)
        assert motthe("export", kind, DAY, f"{tmp_path / kind}", "--data", f"{data}").returncode == 0
        assert files(tmp_path / kind) == before
    assert run_tool("frictionless", "validate", "datapackage.json", cwd=tmp_path / "tides").returncode == 0
    for program, (name, *arguments) in CHECKS.items():
        done = run_tool(name, *arguments, f"{tmp_path / program / f'{DAY}.{program}'}")
        assert (done.returncode, done.stderr) == (0, "")
    assert motthe("export", "views", "--data", f"{data}").stdout.split() == list(VIEWS)


def test_a_date_or_month_that_is_not_closed_is_refused_and_nothing_is_written(demo: PlayedDemo, tmp_path: Path) -> None:
    data = demo.copy(tmp_path / "data")
    for kind, period in (("tides", "2026-03-03"), ("hledger", "2026-03-03"), ("parquet", "2026-03"), ("invoices", "2026-03-03")):
        done = motthe("export", kind, period, f"{tmp_path / 'out'}", "--data", f"{data}")
        assert done.returncode == 1
        assert f"{period} is not closed" in done.stderr
    assert motthe("export", "tides", "yesterday", f"{tmp_path / 'out'}", "--data", f"{data}").returncode == 2
    assert not (tmp_path / "out").exists()
