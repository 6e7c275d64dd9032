"""The database: SQLite embedded by default (WAL, synchronous=FULL), PostgreSQL (15 or later) where several processes serve.

On SQLite writers take the write lock when they begin, so that two of them wait for each other instead of failing; readers
see a snapshot and hold nobody up. On PostgreSQL rows are locked in one order by everyone (devices, travellers, accounts, each
by id), every writer holds a shared lock against the freeze of a date, and whoever meets a deadlock or a conflict all the same
begins again."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import stamina
from sqlalchemy import ColumnElement, Connection, Engine, collate, create_engine, event, inspect
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from fare_engine.at_rest import Cipher
from fare_engine.store.schema import FORM, metadata

BUSY_MS = 30_000
CHECKPOINT_BYTES = 4 << 20
CHECKPOINT_PASSES = 3
"""The log begins anew only where a checkpoint has all of it; a later pass has little left to do, and finds a pause."""
ATTEMPTS = 8
CONFLICTS = frozenset({"40001", "40P01", "23505", "55P03"})
"""SQLSTATE of a serialisation failure, a deadlock, a key that another process inserted first, and a lock not available."""
FREEZE_LOCK = 0x6D6F7474
STATEMENT_MS = 20_000
"""On PostgreSQL nothing of the service may run longer: a stuck statement would hold its locks."""

Result = TypeVar("Result")


class Database:
    """An open database. `write` and `read` give a connection inside one transaction; `transact` also begins again."""

    def __init__(self, url: str, at_rest_key: bytes) -> None:
        """`at_rest_key`: 32 secret bytes under which messages and tokens are encrypted; older ones may not be needed yet."""
        self.url = url
        self.at_rest_key = at_rest_key
        options: dict[str, Any] = {"execution_options": {"cipher": Cipher(at_rest_key)}}
        if not url.startswith("sqlite"):
            options |= {"pool_pre_ping": True, "pool_size": 8, "max_overflow": 8, "pool_timeout": 10}
            options["connect_args"] = {"options": f"-c statement_timeout={STATEMENT_MS}", "connect_timeout": 5}
        self.engine = create_engine(url, **options)
        self.is_sqlite = self.engine.dialect.name == "sqlite"
        if self.is_sqlite:
            event.listen(self.engine, "connect", _prepare_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)

    def create(self) -> None:
        """Make the tables of an empty database; bring those of an earlier release to this one's form."""
        with self.engine.begin() as connection:
            if not self.is_sqlite:
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({FREEZE_LOCK + 1})")
            there = inspect(connection).get_table_names()
            if there and _form(connection, there) == FORM:
                metadata.create_all(connection)  # tables of packages that were not loaded when the store was begun
                return
            from fare_engine.store import migrate  # Alembic takes long to load, and hardly any process needs it

            if not there:
                metadata.create_all(connection)
                migrate.stamp(connection)
            else:
                migrate.upgrade(connection)
                metadata.create_all(connection)  # tables of packages that were not loaded when the store was begun

    @contextmanager
    def write(self, *, alone: bool = False) -> Iterator[Connection]:
        """A transaction that may write; committed at the end, rolled back when an exception leaves it.

        With `alone` it waits until no other writer is at work, and keeps them out: the freeze of a date."""
        afterwards: list[Callable[[], None]] = []
        with self.engine.connect().execution_options(writes=True, afterwards=afterwards) as connection, connection.begin():
            if not self.is_sqlite:
                name = "pg_advisory_xact_lock" if alone else "pg_advisory_xact_lock_shared"
                connection.exec_driver_sql(f"SELECT {name}({FREEZE_LOCK})")
            yield connection
        for remember in afterwards:
            remember()

    def transact(self, work: Callable[[Connection], Result], *, alone: bool = False) -> Result:
        """Do `work` in one transaction, and again from its beginning if another process was in the way.

        `work` must leave nothing behind outside the database but its result, and what it asks for `after_commit`."""
        for attempt in stamina.retry_context(
            on=is_conflict, attempts=ATTEMPTS, timeout=10, wait_initial=0.002, wait_max=0.2, wait_jitter=0.01
        ):
            with attempt, self.write(alone=alone) as connection:
                return work(connection)
        raise AssertionError("stamina gives a result or raises")

    @contextmanager
    def read(self, *, long: bool = False) -> Iterator[Connection]:
        """A transaction that only reads, and sees one instant. `long`: its statements may take as long as they need, for
        nothing of the service waits for them."""
        level = {} if self.is_sqlite else {"isolation_level": "REPEATABLE READ"}
        with self.engine.connect().execution_options(**level) as connection, connection.begin():
            if long and not self.is_sqlite:
                connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
            yield connection

    def checkpoint(self) -> None:
        """Bring what is committed from SQLite's log into its file, beside whoever writes, so that no commit has to. It is not
        waited for: what is written meanwhile goes in the next time. May run in a thread of its own."""
        if not self.is_sqlite or not self.engine.url.database:
            return
        log = Path(f"{self.engine.url.database}-wal")
        if not log.exists() or log.stat().st_size < CHECKPOINT_BYTES:
            return
        with closing(sqlite3.connect(self.engine.url.database, timeout=0)) as connection:
            for _ in range(CHECKPOINT_PASSES):
                _, pages, done = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                if pages == done:
                    return

    def dispose(self) -> None:
        """Close every connection."""
        self.engine.dispose()


def _form(connection: Connection, there: Collection[str]) -> str | None:
    """The number of the form that a database says it has, given its tables."""
    if "alembic_version" not in there:
        return None
    form: str | None = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    return form


def cipher_of(connection: Connection) -> Cipher:
    """What encrypts and opens messages and tokens of this database."""
    found: Cipher = connection.get_execution_options()["cipher"]
    return found


def after_commit(connection: Connection, remember: Callable[[], None]) -> None:
    """Do something in the process's memory once the writer's transaction has been committed, and only then."""
    afterwards: list[Callable[[], None]] = connection.get_execution_options()["afterwards"]
    afterwards.append(remember)


def sqlite_url(path: Path) -> str:
    """The URL of an embedded database file."""
    return f"sqlite:///{path}"


def is_away(error: Exception) -> bool:
    """Whether the database could not be asked: whatever it was asked, nothing is wrong with that."""
    if isinstance(error, OperationalError | InterfaceError | PoolTimeoutError):
        return True
    return isinstance(error, DBAPIError) and error.connection_invalidated


def is_conflict(error: Exception) -> bool:
    """Whether another process was in the way, so that beginning again may help."""
    if not isinstance(error, DBAPIError):
        return False
    state = getattr(error.orig, "sqlstate", None)
    if state is None:  # SQLite has none; two of its writers wait for each other, and only a key can be there twice
        return isinstance(error, IntegrityError)
    return state in CONFLICTS


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # we begin transactions ourselves
    pragmas = (
        "journal_mode=WAL",
        "synchronous=FULL",
        f"busy_timeout={BUSY_MS}",
        "cache_size=-65536",
        "wal_autocheckpoint=16000",  # 64 MB: a page that many taps touch is written back once; a service does it before that
    )
    for pragma in pragmas:
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


__all__ = ["Database", "Engine", "after_commit", "cipher_of", "is_away", "is_conflict", "sqlite_url"]


def bytewise(connection: Connection, column: ColumnElement[Any]) -> ColumnElement[Any]:
    """A text column in the order of its bytes, in which Python compares, too. It is SQLite's own; PostgreSQL's depends on the
    country it was made in."""
    return column if connection.dialect.name == "sqlite" else collate(column, "C")
