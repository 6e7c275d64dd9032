"""A store of an earlier release: it is brought to this one's form, nothing is lost, and the earlier release can go on with it."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, MetaData, Table, create_engine, insert, inspect, select

import clearing.store  # noqa: F401  # its tables belong to the store
from fare_engine.store import migrate
from fare_engine.store.database import Database, sqlite_url
from fare_engine.store.hashes import HASHERS
from fare_engine.store.schema import FORM, metadata
from fare_engine.tariff.compile import CompiledTariff
from tests.integration.desk import AT_REST_KEY, Desk, Stream, fill


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database."""
    if request.param == "sqlite":
        return sqlite_url(tmp_path / "motthe.db")
    found: str = request.getfixturevalue("empty_postgres")
    return found


def first_release(url: str) -> dict[str, Table]:
    """A database as the first release made it: no number, its tables; these as SQLAlchemy reads them back."""
    engine = create_engine(url)
    with engine.begin() as connection:
        run(connection, "0001")
        connection.exec_driver_sql("drop table alembic_version")
        tables = MetaData()
        tables.reflect(connection)
    engine.dispose()
    return dict(tables.tables)


def run(connection: Connection, to: str) -> None:
    """The migrations up to a number."""
    from alembic.operations import Operations

    script = ScriptDirectory(str(Path(migrate.__file__).with_name("migrations")))

    def steps(revision: object, _context: MigrationContext) -> list[object]:
        return list(script._upgrade_revs(to, revision))  # type: ignore[arg-type]

    context = MigrationContext.configure(connection, opts={"fn": steps})
    with Operations.context(context):
        context.run_migrations()


def a_row(table: Table, number: int) -> dict[str, object]:
    """Some row of a table, with every column that must be there."""
    found: dict[str, object] = {}
    for column in table.c:
        if column.primary_key and column.name in ("batch_id", "refused_id", "row_number"):
            continue
        if column.name.endswith("_date"):
            found[column.name] = f"2026-03-0{number}"
        elif column.type.python_type is bytes:
            found[column.name] = b"\x82row" + bytes([number])
        else:
            found[column.name] = number if column.type.python_type is int else f"value {number}"
    return found


def test_a_store_of_the_first_release_gets_this_release_s_form(empty: str) -> None:
    first_release(empty)
    database = Database(empty, AT_REST_KEY)
    database.create()
    with database.read() as connection:
        assert migrate.current(connection) == migrate.head() == FORM
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        differences = [found for found in compare_metadata(context, metadata) if "alembic_version" not in str(found)]
    assert differences == []
    database.dispose()


def test_what_was_in_a_store_of_the_first_release_is_still_there_and_has_its_hashes(empty: str) -> None:
    old = first_release(empty)
    engine = create_engine(empty)
    with engine.begin() as connection:
        for table in old.values():
            connection.execute(insert(table), [a_row(table, 1), a_row(table, 2)])
        before = {name: sorted(map(repr, connection.execute(select(table)))) for name, table in old.items()}
    engine.dispose()
    database = Database(empty, AT_REST_KEY)
    database.create()
    with database.read() as connection:
        assert {name: sorted(map(repr, connection.execute(select(table)))) for name, table in old.items()} == before
        for name in [*HASHERS, "batches"]:
            if name in old:
                assert None not in [row.row_hash for row in connection.execute(select(metadata.tables[name]))], name
    database.dispose()


def test_the_release_before_goes_on_writing_after_the_migration(empty: str) -> None:
    """What it does to a row, it can still do: add one with the columns it knows, read them, change them."""
    old = first_release(empty)
    database = Database(empty, AT_REST_KEY)
    database.create()
    with database.engine.begin() as connection:
        for name, table in old.items():
            connection.execute(insert(table), [a_row(table, 7)])
            assert len(connection.execute(select(table)).all()) == 1, name
    database.dispose()


def test_a_new_store_has_the_newest_form_at_once(empty: str) -> None:
    database = Database(empty, AT_REST_KEY)
    database.create()
    database.create()
    with database.read() as connection:
        assert migrate.current(connection) == migrate.head()
        assert inspect(connection).has_table("device_keys")
    database.dispose()


def test_a_store_of_the_first_release_takes_taps_after_its_migration(empty: str, hcmc_adopted: CompiledTariff) -> None:
    first_release(empty)
    database = Database(empty, AT_REST_KEY)
    database.create()
    fill(database)
    database.dispose()
    desk = Desk(empty, hcmc_adopted)
    bus = Stream("bus-1")
    bus.board("08:00")
    assert desk.tapped(bus).decision == "admitted"
    desk.check_books()
    desk.database.dispose()
