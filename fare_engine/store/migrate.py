"""Migrations of the database's form, by Alembic. `upgrade` brings a store of any earlier release to this one's form.

A migration only adds: tables, columns that may be empty, indexes. So the release before can go on reading and writing while
the new one is rolled out; what is no longer used goes in the release after (docs/operations.md)."""

from __future__ import annotations

from pathlib import Path

from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

FIRST = "0001"


def stamp(connection: Connection) -> None:
    """Say of a database whose tables were just made that it has this release's form."""
    script = _script()
    _context(connection, script).stamp(script, "head")


def upgrade(connection: Connection) -> None:
    """Run the migrations that are missing, in the caller's transaction; a store of the first release has no number yet."""
    script = _script()
    context = _context(connection, script)
    if context.get_current_revision() == script.get_current_head():
        return
    if not inspect(connection).has_table("alembic_version"):
        context.stamp(script, FIRST)
    context = _context(connection, script)
    with Operations.context(context):
        context.run_migrations()


def current(connection: Connection) -> str | None:
    """The number of the form that a database has."""
    return MigrationContext.configure(connection).get_current_revision()


def head() -> str:
    """The number of this release's form."""
    found = _script().get_current_head()
    assert found is not None
    return found


def _script() -> ScriptDirectory:
    return ScriptDirectory(str(Path(__file__).with_name("migrations")))


def _context(connection: Connection, script: ScriptDirectory) -> MigrationContext:
    def steps(revision: object, _context: MigrationContext) -> list[object]:
        return list(script._upgrade_revs("head", revision))  # type: ignore[arg-type]  # as alembic.command.upgrade does

    return MigrationContext.configure(connection, opts={"fn": steps, "transactional_ddl": False, "as_sql": False})
