"""`motthe export`: a closed date for other programs, in a folder that is whole or is not there (docs/exports.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy import Connection

from clearing import store
from clearing.commands import parse_date
from clearing.exports import checks, journals, rows, tides
from clearing.exports.folder import written
from clearing.exports.pseudonyms import key_of
from fare_engine.commands import Opened, Store, open_store
from fare_engine.errors import CloseError

app = typer.Typer()
export_app = typer.Typer(help="A closed date for other programs.", no_args_is_help=True)
app.add_typer(export_app, name="export")

Day = Annotated[str, typer.Argument(metavar="DATE", help="The closed date, as 2026-03-02.")]
Target = Annotated[Path, typer.Argument(metavar="DIR", help="An empty or new folder, or one with the same export.")]
Key = Annotated[
    Path | None,
    typer.Option(help="A file with the key of its pseudonyms. Default: one of this export alone, in the store's keys."),
]


@export_app.command("hledger")
def hledger(service_date: Day, folder: Target, data: Store = None) -> None:
    """The date's postings as a journal for hledger, with every balance asserted."""
    _export_journal("hledger", service_date, folder, data)


@export_app.command("ledger")
def ledger(service_date: Day, folder: Target, data: Store = None) -> None:
    """The date's postings as a journal for Ledger, with every balance asserted."""
    _export_journal("ledger", service_date, folder, data)


@export_app.command("beancount")
def beancount(service_date: Day, folder: Target, data: Store = None) -> None:
    """The date's postings as a journal for Beancount, with every balance asserted."""
    _export_journal("beancount", service_date, folder, data)


def journal_of(connection: Connection, opened: Opened, day: str) -> journals.Journal:
    """A closed date's journal, which sums to what the books have."""
    entries = rows.journal_entries(connection, day)
    balances = rows.journal_balances(connection, day)
    total, _ = store.totals(connection, day)
    return journals.journal(day, opened.tariff.currency, opened.tariff.minor_digits, entries, balances, total)


def check_closed(connection: Connection, day: str) -> None:
    """CloseError if a date is not closed: what is open may still change."""
    if not store.published(connection, day):
        raise CloseError(f"{day} is not closed: motthe clear {day} closes it")


def _export_journal(program: str, service_date: str, folder: Path, data: Path | None) -> None:
    opened = open_store(data)
    day = parse_date(service_date)
    with opened.database.read() as connection:
        check_closed(connection, day)
        found = journal_of(connection, opened, day)
    with written(folder, program, day) as target:
        (target / f"{day}.{program}").write_bytes(journals.PROGRAMS[program](found))
    typer.echo(f"{len(found.entries)} transactions and {len(found.balances)} balances of {day} in {folder}")


@export_app.command("tides")
def tides_package(service_date: Day, folder: Target, key: Key = None, data: Store = None) -> None:
    """The date as a TIDES package with our own tables beside it, checked for references, uniqueness, ranges and sums."""
    opened = open_store(data)
    day = parse_date(service_date)
    with opened.database.read() as connection:
        check_closed(connection, day)
    with written(folder, "tides", day) as target:
        found = tides.write_package(opened, day, target, key_of(opened.data, "tides", day, key))
        checks.check_package(target, opened.tariff.currency, opened.tariff.minor_digits, found)
    typer.echo(f"{found.transactions:,} transactions and {found.lines:,} lines of {day} in {folder}, checked")
