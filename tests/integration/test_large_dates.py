"""Dates of many lines are read by ADBC in processes of their own, and sealed and checked beside the rest: they give the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pyarrow as pa
import pytest
from sqlalchemy import select, text

from clearing import apart, audit, close, commands, seals
from clearing.agreements import Agreement
from clearing.close import Closed
from clearing.columns import OfConnection, Reader, alone, table_of
from clearing.commands import ToCheck, audit_date, changed_in_process, clear_date, rules_of
from clearing.scan import ToScan, scan_in_process
from clearing.seals import ToBegin
from fare_engine.commands import Opened, open_store
from fare_engine.errors import CloseError
from fare_engine.store.schema import legs, lines, postings
from simulators.full_day import make_day

DAY = "2026-03-02"


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opened]:
    """A small city day that is not closed yet, with a ride that became another one."""
    url = None
    if request.param == "postgresql":
        url = request.getfixturevalue("empty_postgres")
        monkeypatch.setenv("MOTTHE_DATABASE_URL", url)
    make_day(tmp_path / "day", DAY, 150, 7, url, slot_hours=6.0)
    opened = open_store(tmp_path / "day")
    yield opened
    opened.database.dispose()


def test_both_ways_to_read_give_the_same_columns(store: Opened) -> None:
    for table in (lines, legs, postings):
        statement = select(*table.c)
        with store.database.read() as connection:
            read = table_of(OfConnection(connection), statement).sort_by("row_number").combine_chunks()
        with alone_of(store) as reader:
            assert table_of(reader, statement).sort_by("row_number").combine_chunks().equals(read)
            assert table_of(reader, statement.where(table.c.accounting_date == "1999-12-31")).num_rows == 0
        assert read.num_rows > 100
        assert read.schema.field("row_hash").type == pa.binary()


def alone_of(store: Opened) -> AbstractContextManager[Reader]:
    """As in a process of its own: nothing else has the store open."""
    store.database.dispose()
    return alone(store.database.url)


def test_a_date_is_closed_to_the_same_bytes_whether_it_is_large_or_not(store: Opened) -> None:
    rules = rules_of(store.tariff, store.tariff_folder)
    commands.let_time_pass(store, DAY)
    with store.database.write(alone=True) as connection:
        close.freeze(connection, DAY, commands.end_of(store.tariff, DAY), store.tariff)
    weighing = rules.agreements.weighing(DAY)
    with store.database.read() as connection:
        here = close.scan_of(connection, rules, DAY)
        begun = seals.begin(connection, DAY)
        assert apart.begin(scan_in_process, ToScan(store.database.url, DAY, weighing))() == here
        assert apart.begin(seals.begin_in_process, ToBegin(store.database.url, store.database.at_rest_key, DAY))() == begun
    assert len(here.rows) > 20
    assert any(isinstance(row, Agreement) for row in weighing)
    assert {account for account, _ in here.movements} > {"rider"}


def test_a_large_date_is_closed_audited_and_each_change_named(store: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(close, "APART", -1)
    (closed,) = clear_date(store, DAY)
    assert isinstance(closed, Closed)
    assert changed_in_process(ToCheck(str(store.data), DAY)) == []
    with store.database.write() as connection:
        connection.execute(text("update postings set amount = amount + 1 where row_number = 7"))
    found = apart.begin(changed_in_process, ToCheck(str(store.data), DAY))()
    assert ("postings", "7") in [(one.table, one.key) for one in found]
    assert ("closes", DAY) in [(one.table, one.key) for one in found]


def test_a_large_store_is_audited_in_processes_and_the_same_is_found(store: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    clear_date(store, DAY)
    with store.database.write() as connection:
        connection.execute(text("update lines set amount = amount + 1 where row_number = 9"))
        connection.execute(text("update lines set traveller_id = 'nobody' where row_number = 12"))
        connection.execute(text("update settlements set amount = amount + 1000 where party = 'OP-HURC1'"))
    here = audit_date(store, DAY)
    monkeypatch.setattr(audit, "LARGE", 1)
    monkeypatch.setattr(audit, "TOGETHER", 7)
    assert audit_date(store, DAY) == here
    assert len({found.leg_id for found in here.differences}) == 2
    assert "nobody" in {found.traveller_id for found in here.differences}
    assert [party.party_id for party in here.shared] == ["OP-HURC1"]
    assert (here.taps, here.legs) > (150, 150)


def test_a_transaction_that_stands_twice_and_rows_without_a_hash_are_seen(store: Opened) -> None:
    with store.database.read() as connection:
        before = seals.begin(connection, DAY)
    with store.database.write() as connection:
        connection.execute(text("update lines set row_hash = null where row_number in (2, 3)"))
        connection.execute(text("update legs set row_hash = null where row_number = 5"))
    with store.database.read() as connection:
        assert seals.begin(connection, DAY) == before
    with store.database.write() as connection:
        names = ", ".join(column.name for column in lines.c if column.name != "row_number")
        connection.execute(text(f"insert into lines ({names}) select {names} from lines where row_number = 4"))
        twice = connection.execute(text("select transaction_id from lines where row_number = 4")).scalar_one()
    with store.database.read() as connection:
        assert seals.begin(connection, DAY).repeated == [twice]
    assert apart.begin(seals.begin_in_process, ToBegin(store.database.url, store.database.at_rest_key, DAY))().repeated == [twice]


def test_a_process_that_dies_is_an_error_and_nothing_is_closed(store: Opened) -> None:
    with pytest.raises(CloseError, match="scan_in_process ended with 1"):
        apart.begin(scan_in_process, ToScan("sqlite:////nowhere/at/all.db", DAY, []))()


def test_a_process_of_an_audit_that_dies_is_an_error() -> None:
    with pytest.raises(CloseError, match="a process of the audit ended"):
        list(audit.in_processes(audit.Rules(Path("/nowhere/at/all"), (), "adult", None), [audit.Told("ana")]))
