"""The engine's commands: price a file of taps, check a tariff."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from fare_engine.application import Application
from fare_engine.errors import InputError, NotFoundError
from fare_engine.pricing import batch
from fare_engine.service_day import parse_instant
from fare_engine.settings import PROJECT, Settings
from fare_engine.store import registry
from fare_engine.store.database import Database
from fare_engine.tariff.checks import check
from fare_engine.tariff.compile import CompiledTariff, load_compiled
from fare_engine.tariff.files import load

Store = Annotated[Path | None, typer.Option("--data", help="The folder of the store. Default: MOTTHE_DATA or motthe-data.")]


@dataclass(frozen=True, slots=True)
class Opened:
    """A store that a command works on, with the tariff that its taps are priced by."""

    data: Path
    database: Database
    tariff: CompiledTariff
    tariff_folder: Path
    adopted: tuple[str, ...]
    server_key: bytes


app = typer.Typer()
tariff_app = typer.Typer(help="Tariffs as data.", no_args_is_help=True)
app.add_typer(tariff_app, name="tariff")

TariffFolder = Annotated[Path, typer.Option("--tariff", help="A city's folder, or one version's folder.")]


@app.command()
def price(
    tariff: TariffFolder,
    taps: Annotated[Path, typer.Option("--taps", help="A file with one JSON tap a line, in any order; - is standard input.")],
    adopt: Annotated[list[str] | None, typer.Option(help="A proposed version to treat as in force; repeatable.")] = None,
    as_of: Annotated[
        str | None, typer.Option(help="The instant to price as of, RFC 3339. Default: a day after the last tap.")
    ] = None,
) -> None:
    """Price taps: legs with their lines as JSON lines, the same for any order of the taps (docs/cli.md)."""
    compiled = load_compiled(tariff, adopt or [])
    until = parse_instant_option(as_of) if as_of else None
    text = sys.stdin.read() if str(taps) == "-" else read_text(taps)
    facts = batch.parse_taps(text, str(taps), compiled)
    for line in batch.price(compiled, facts, until):
        typer.echo(line)
    passed_over = [version.version_id for version in compiled.tariff.versions if version.version_id not in compiled.versions]
    if passed_over:
        typer.echo(f"note: not in force and not used: {', '.join(passed_over)} (--adopt uses one)", err=True)


@app.command()
def advance(
    as_of: Annotated[str, typer.Argument(help="The instant to let time pass to, RFC 3339.")],
    data: Store = None,
) -> None:
    """Let time pass: overdue exits are charged, days of passes released, books and passes ended."""
    until = parse_instant_option(as_of)
    opened = open_store(data)
    application = Application(opened.tariff, opened.server_key)
    moved = 0
    while True:
        with opened.database.write() as connection:
            due = application.advance(connection, until)
        moved += due
        if not due:
            break
    typer.echo(f"time passed to {as_of} for {moved} travellers")


@tariff_app.command("check")
def tariff_check(folder: Annotated[Path, typer.Argument(help="A city's folder, or one version's.")]) -> None:
    """Check a tariff. Every fault is printed with its file, row and value, and the exit code is 1."""
    tariff = load(folder)
    check(tariff)
    network = tariff.network
    typer.echo(f"{tariff.name}: {len(network.routes)} routes, {len(network.stops)} stops, {len(network.networks)} networks")
    for version in tariff.versions:
        head, file = version.file.tariff, version.file
        typer.echo(
            f"  {version.version_id} ({head.state} from {head.valid_from}): {len(version.leg_rules)} leg rules, "
            f"{len(file.discounts)} discounts, {len(file.joining_rules)} joining rules, {len(file.caps)} caps, "
            f"{len(file.products)} products"
        )
    typer.echo("no fault found")


def open_store(data: Path | None) -> Opened:
    """The store in a folder, under the tariff that it was begun with."""
    settings = stored_settings(data)
    if settings.database_url is None and not (settings.data / "motthe.db").exists():
        raise NotFoundError(
            f"there is no store in {settings.data}: motthe demo or motthe serve begins one (--data names another)"
        )
    tariff = load_compiled(settings.tariff, settings.adopt)
    database = Database(settings.url)
    database.create()
    return Opened(settings.data, database, tariff, settings.tariff, settings.adopt, settings.server_key)


def stored_settings(data: Path | None) -> Settings:
    """The settings of a store: those of the environment, then those it was begun with, which its database keeps."""
    settings = Settings() if data is None else Settings(data=data)
    if settings.database_url is None and not (settings.data / "motthe.db").exists():
        return settings
    database = Database(settings.url)
    database.create()
    with database.read() as connection:
        kept = registry.load_settings(connection)
    database.dispose()
    changes: dict[str, object] = {}
    if "tariff" in kept:
        changes["tariff"] = PROJECT / kept["tariff"]
    if "adopt" in kept:
        changes["adopt"] = tuple(name for name in kept["adopt"].split(",") if name)
    return settings.model_copy(update=changes)


def parse_instant_option(text: str) -> int:
    """An instant given on the command line; exit code 2 with the reason otherwise."""
    try:
        return parse_instant(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r}: {error}") from None


def read_text(path: Path) -> str:
    """A file's text; a file that cannot be read is bad input, not a crash."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{path}: {error}") from None


def report(error: InputError) -> None:
    """Every fault on its own line on standard error."""
    for fault in error.faults:
        typer.echo(f"error: {fault}", err=True)
