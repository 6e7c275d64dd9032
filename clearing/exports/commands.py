"""`motthe export`: a closed date for other programs, in a folder that is whole or is not there (docs/exports.md)."""

from __future__ import annotations

import json
import re
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy import Connection

from clearing import store
from clearing.commands import parse_date
from clearing.exports import checks, invoices, journals, parquet, rows, tides, views
from clearing.exports.folder import written
from clearing.exports.pseudonyms import Pseudonyms, key_of
from fare_engine.commands import Opened, Store, open_store
from fare_engine.errors import CloseError

MONTH = re.compile(r"\d{4}-\d{2}")

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
    """A closed date's journal, which sums to what its proof says."""
    entries = rows.journal_entries(connection, day)
    balances = rows.journal_balances(connection, day)
    proof = json.loads(store.published(connection, day)["proof.json"])
    return journals.journal(day, opened.tariff.currency, opened.tariff.minor_digits, entries, balances, proof["debits"])


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


@export_app.command("parquet")
def parquet_files(
    period: Annotated[str, typer.Argument(metavar="DATE|MONTH", help="A closed date, or a closed month as 2026-03.")],
    folder: Target,
    key: Key = None,
    data: Store = None,
) -> None:
    """Legs, lines, postings and settlements of a day or a month as Parquet."""
    opened = open_store(data)
    first, last = _period(period)
    names = Pseudonyms(key_of(opened.data, "parquet", period, key))
    with opened.database.read() as connection:
        if first == last:
            check_closed(connection, first)
        elif not store.is_closed(connection, last) or store.unpublished(connection):
            raise CloseError(f"{period} is not closed: motthe clear {last} closes it")
        with written(folder, "parquet", period) as target:
            counts = parquet.write_files(connection, first, last, target, names)
    typer.echo(f"{', '.join(f'{count:,} {name}' for name, count in counts.items())} of {period} in {folder}")


@export_app.command("invoices")
def invoice_data(service_date: Day, folder: Target, key: Key = None, data: Store = None) -> None:
    """E-invoice data of the date: one JSON object a line for each leg and sale that was paid for."""
    opened = open_store(data)
    day = parse_date(service_date)
    with opened.database.read() as connection:
        check_closed(connection, day)
    with written(folder, "invoices", day) as target:
        count = invoices.write_invoices(opened, day, target, key_of(opened.data, "tides", day, key))
    typer.echo(f"{count:,} invoices of {day} in {folder}")


@export_app.command("views")
def list_views(data: Store = None) -> None:
    """The views of the store for SQL, which are made if they are not there (docs/sql.md)."""
    opened = open_store(data)
    with opened.database.write() as connection:
        views.create_views(connection)
    typer.echo("\n".join(views.VIEWS))


def _period(text: str) -> tuple[str, str]:
    """The first and last date of a day or a month."""
    if not MONTH.fullmatch(text):
        day = parse_date(text)
        return day, day
    first = date.fromisoformat(parse_date(f"{text}-01"))
    return first.isoformat(), ((first + timedelta(days=31)).replace(day=1) - timedelta(days=1)).isoformat()
