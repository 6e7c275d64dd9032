"""The database file itself: SQLite's log is brought into it beside whoever writes."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from sqlalchemy import text

from fare_engine.store.database import Database, sqlite_url
from tests.integration.desk import AT_REST_KEY


def test_a_checkpoint_goes_beside_an_open_transaction_and_leaves_the_log_to_begin_anew(tmp_path: Path) -> None:
    database = Database(sqlite_url(tmp_path / "motthe.db"), AT_REST_KEY)
    database.create()
    put = text("insert into settings (name, value) values (:name, :value)")
    with database.write() as connection:
        connection.execute(put, [{"name": f"n{number}", "value": "x" * 4000} for number in range(3000)])
    log = tmp_path / "motthe.db-wal"
    assert log.stat().st_size > 8 << 20
    with database.write() as connection:
        connection.execute(put, {"name": "open", "value": "y"})
        database.checkpoint()
    database.checkpoint()
    size = log.stat().st_size
    with database.write() as connection:
        connection.execute(put, [{"name": f"m{number}", "value": "x" * 4000} for number in range(100)])
    assert log.stat().st_size == size  # it is written from its beginning again
    with sqlite3.connect(tmp_path / "motthe.db") as other:
        assert other.execute("select count(*) from settings").fetchone() == (3101,)
        assert other.execute("pragma integrity_check").fetchone() == ("ok",)
    database.dispose()
