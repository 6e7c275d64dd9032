"""The engine's commands: price a file of taps, check a tariff."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from fare_engine import quote as quoting
from fare_engine.application import Application
from fare_engine.errors import InputError, MissingFactError, MottheError, NotFoundError
from fare_engine.pricing import batch
from fare_engine.pricing import cases as priced_cases
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


@app.command()
def quote(
    tariff: TariffFolder,
    start: Annotated[str | None, typer.Option("--from", help="The stop of the first tap, by id or name.")] = None,
    end: Annotated[str | None, typer.Option("--to", help="The stop of the last tap.")] = None,
    when: Annotated[str | None, typer.Option("--at", help="When the ride begins; local time unless it has an offset.")] = None,
    minutes: Annotated[int, typer.Option(help="How long the ride takes.")] = 30,
    rider: Annotated[str | None, typer.Option(help="The rider category. Default: the tariff's.")] = None,
    media: Annotated[str | None, typer.Option(help="The medium. Default: the first that is not cash.")] = None,
    mode: Annotated[str | None, typer.Option(help="The mode, or the network's id.")] = None,
    route: Annotated[str | None, typer.Option(help="The route ridden.")] = None,
    operator: Annotated[str | None, typer.Option(help="Who runs it.")] = None,
    km: Annotated[float | None, typer.Option(help="How far the ride goes, where the price depends on it.")] = None,
    rides: Annotated[
        Path | None, typer.Option(help="Instead: a JSON file with a list of rides (docs/cases.md); - reads stdin.")
    ] = None,
    adopt: Annotated[list[str] | None, typer.Option(help="A proposed version to treat as in force; repeatable.")] = None,
    why: Annotated[bool, typer.Option(help="Also why the other rules did not act.")] = False,
    language: Annotated[str, typer.Option(help="vi or en.")] = "vi",
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines, in both languages.")] = False,
) -> None:
    """What a ride, or several, would cost, line by line, and why (docs/cli.md)."""
    if language not in ("vi", "en"):
        raise typer.BadParameter(f"--language {language!r}: vi or en")
    compiled = load_compiled(tariff, adopt or [])
    if rides is not None:
        listed = quoting.read_rides_file(sys.stdin.read() if str(rides) == "-" else read_text(rides), str(rides))
    elif when is None:
        raise typer.BadParameter("a ride needs --at (and --from, --to), or --rides a file")
    else:
        listed = [quoting.one_ride(start, end, when, minutes, mode=mode, route=route, operator=operator, km=km)]
        for said in quoting.unknown_stops(compiled, (start, end)):
            typer.echo(said, err=True)
    found = quoting.quote(compiled, listed, {"category": rider} if rider else {}, media or "", {}, why=why)
    try:
        rides_priced = list(found)
    except MissingFactError as error:
        raise MottheError(f"there is no price without a fact that the tariff does not know: {error}") from None
    for said in quoting.missed_end(compiled, end, rides_priced):
        typer.echo(said, err=True)
    for priced in rides_priced:
        if as_json:
            typer.echo(json.dumps(priced, ensure_ascii=False, separators=(",", ":")))
            continue
        for line in quoting.as_text(compiled, priced, language):
            typer.echo(line)


@tariff_app.command("cases")
def tariff_cases(
    tariff: TariffFolder,
    files: Annotated[list[Path], typer.Argument(help="Files of priced cases, format fare-cases/1.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a case, with charges and lines.")] = False,
) -> None:
    """Price published cases and compare (docs/cases.md). The exit code is 1 if a case of high confidence fails."""
    loaded = load(tariff)
    check(loaded)
    cases = [case for path in files for case in priced_cases.read_cases(read_text(path), str(path))]
    counts: Counter[str] = Counter()
    failed = False
    for outcome in priced_cases.run_cases(loaded, cases):
        typer.echo(msgspec.json.encode(outcome).decode() if as_json else outcome.text())
        counts[outcome.result] += 1
        failed = failed or (outcome.result == "FAIL" and outcome.confidence == "high")
    typer.echo(", ".join(f"{count} {result}" for result, count in sorted(counts.items())) or "no cases", err=True)
    if failed:
        raise typer.Exit(1)


def open_store(data: Path | None) -> Opened:
    """The store in a folder, under the tariff that it was begun with."""
    settings = stored_settings(data)
    if settings.database_url is None and not (settings.data / "motthe.db").exists():
        raise NotFoundError(
            f"there is no store in {settings.data}: motthe demo or motthe serve begins one (--data names another)"
        )
    tariff = load_compiled(settings.tariff, settings.adopt)
    database = Database(settings.url, settings.at_rest_key)
    database.create()
    return Opened(settings.data, database, tariff, settings.tariff, settings.adopt, settings.server_key)


def stored_settings(data: Path | None) -> Settings:
    """The settings of a store: those of the environment, then those it was begun with, which its database keeps."""
    settings = Settings() if data is None else Settings(data=data)
    if settings.database_url is None and not (settings.data / "motthe.db").exists():
        return settings
    database = Database(settings.url, settings.at_rest_key)
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
