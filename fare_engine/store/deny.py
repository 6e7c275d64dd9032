"""The deny list as a sum of changes, and what was signed for terminals."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from fare_engine.errors import NotFoundError
from fare_engine.store import schema
from fare_engine.store.hashes import hashed

CUT_BYTES = 8
CHANGE_LOCK = 0x6D6F7476
DENY_LIST, RULES = "deny-list", "rules"

_changes = schema.deny_changes
_publications = schema.publications
_NEWEST = select(func.coalesce(func.max(_changes.c.version), 0))


@dataclass(frozen=True, slots=True)
class DenyChange:
    """A token that is denied from a version on, or no longer; cut to 8 bytes, as terminals hold it."""

    version: int
    token: bytes
    added: bool


def newest_version(connection: Connection) -> int:
    """The version of the deny list: the number of its latest change; 0 before the first."""
    return int(connection.execute(_NEWEST).scalar_one())


def newest_at(connection: Connection) -> int | None:
    """When the list changed or was confirmed last; None before the first version."""
    found: int | None = connection.execute(select(_changes.c.at).order_by(_changes.c.version.desc()).limit(1)).scalar()
    return found


def add_changes(connection: Connection, tokens: Iterable[bytes], at: int, reason: str, *, added: bool) -> None:
    """Terminal tokens that are denied from now on, or no longer.

    Changes are committed in the order of their versions: a terminal that was given a version never hears of an older one."""
    rows = [{"token": token[:CUT_BYTES], "added": int(added), "at": at, "reason": reason} for token in tokens]
    if rows and connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({CHANGE_LOCK})")
    if rows:
        connection.execute(_changes.insert(), hashed(_changes, rows))


def list_changes(connection: Connection, after: int, through: int) -> list[DenyChange]:
    """The changes after one version up to another, in their order."""
    rows = connection.execute(
        select(_changes.c.version, _changes.c.token, _changes.c.added)
        .where(_changes.c.version > after, _changes.c.version <= through)
        .order_by(_changes.c.version)
    )
    return [DenyChange(row.version, row.token, bool(row.added)) for row in rows]


def denied_at(connection: Connection, version: int) -> list[bytes]:
    """The tokens on the list as of a version, sorted."""
    denied: set[bytes] = set()
    for change in list_changes(connection, 0, version):
        if change.added:
            denied.add(change.token)
        else:
            denied.discard(change.token)
    return sorted(denied)


def publish(connection: Connection, kind: str, serial: int, made_at: int, message: bytes) -> None:
    """Keep what was signed for terminals."""
    row = {"kind": kind, "serial": serial, "made_at": made_at, "message": message}
    connection.execute(_publications.insert(), row)


def newest_serial(connection: Connection, kind: str) -> int:
    """The serial of the newest publication of a kind; 0: there is none."""
    statement = select(func.coalesce(func.max(_publications.c.serial), 0)).where(_publications.c.kind == kind)
    return int(connection.execute(statement).scalar_one())


def get_publication(connection: Connection, kind: str, serial: int) -> bytes:
    """What was signed under a serial; NotFoundError where nothing was."""
    this = (_publications.c.kind == kind) & (_publications.c.serial == serial)
    found: bytes | None = connection.execute(select(_publications.c.message).where(this)).scalar()
    if found is None:
        raise NotFoundError(f"no publication {kind} {serial}")
    return found
