"""Fixtures of the integration tests: a receipt over a real file, and a demo's store that was played once."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import motthe
from fare_engine.store.database import sqlite_url
from fare_engine.store.schema import metadata
from fare_engine.tariff.compile import CompiledTariff
from tests.demos import PlayedDemo, played
from tests.integration.desk import Desk, equip, fill
from tests.servers import Postgres, Valkey


@pytest.fixture(scope="session")
def equipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store's file with four devices and the cards anna, binh and chi, to be copied."""
    path = tmp_path_factory.mktemp("equipped") / "motthe.db"
    equip(sqlite_url(path))
    return path


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server for all tests that only read and write it; its database `desk` has the tables."""
    server = Postgres(durable=False).start()
    try:
        server.execute("create database desk")
        equip(server.url("desk"))
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def valkey() -> Iterator[Valkey]:
    """A Valkey server."""
    server = Valkey().start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def empty_postgres(postgres: Postgres) -> Iterator[str]:
    """The URL of an empty database on PostgreSQL."""
    name = f"empty_{secrets.token_hex(6)}"
    postgres.execute(f"create database {name}")
    yield postgres.url(name)
    postgres.execute(f"drop database {name} with (force)")


@pytest.fixture(params=["sqlite", "postgresql"])
def desk(request: pytest.FixtureRequest, tmp_path: Path, equipped: Path, hcmc_adopted: CompiledTariff) -> Iterator[Desk]:
    """A store of its own, as `equipped`: once on SQLite, once on PostgreSQL."""
    if request.param == "sqlite":
        shutil.copy(equipped, tmp_path / "motthe.db")
        found = Desk(sqlite_url(tmp_path / "motthe.db"), hcmc_adopted)
        yield found
        found.database.dispose()
        return
    server: Postgres = request.getfixturevalue("postgres")
    found = Desk(server.url("desk"), hcmc_adopted)
    with found.database.write() as connection:
        connection.exec_driver_sql(f"truncate {', '.join(metadata.tables)} restart identity")
    fill(found.database)
    yield found
    found.database.dispose()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`motthe` with some arguments: exit code, output and errors."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["motthe", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            motthe.main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return call


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> PlayedDemo:
    """The demo of seed 7. Only read it, or work on a copy."""
    return played(tmp_path_factory, "first", 7)
