"""Clearing's commands: close a service date and publish its statements."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from clearing import apart, seals, store
from clearing.agreements import Known, load_agreements
from clearing.audit import AuditReport, audit_store
from clearing.close import APART, Closed, Rules, check_date, close_through
from clearing.disputes.desk import hold_legs
from clearing.what_if import compare
from fare_engine.application import Application
from fare_engine.commands import Opened, Store, open_store
from fare_engine.errors import CloseError, MottheError
from fare_engine.money import format_amount
from fare_engine.service_day import day_starts_at, to_date, to_day
from fare_engine.store.verify import Finding
from fare_engine.tariff.compile import CompiledTariff
from fare_engine.tariff.model import Version

app = typer.Typer()


class DateOrCommand(TyperGroup):
    """`motthe clear DATE` closes a date; any other first word is one of the group's commands."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """A word that names no command is the date to close."""
        if args and args[0] not in self.commands:
            args = ["date", *args]
        return super().resolve_command(ctx, args)


clear_app = typer.Typer(
    cls=DateOrCommand, no_args_is_help=True, help="Close service dates: motthe clear DATE; what if it had been agreed otherwise."
)
app.add_typer(clear_app, name="clear")


@clear_app.command("date")
def clear(
    service_date: Annotated[str, typer.Argument(help="The service date to close, as 2026-03-02; or `yesterday`.")],
    despite: Annotated[
        str, typer.Option(help="Publish although too much is open, for this reason, which is published too.")
    ] = "",
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on standard error.")] = False,
    data: Store = None,
) -> None:
    """Close a service date: share its money, net, publish one statement per party, prove the day.

    A second run changes nothing and writes the same bytes."""
    opened = open_store(data)
    day = _yesterday(opened.tariff) if service_date == "yesterday" else parse_date(service_date)
    if end_of(opened.tariff, day) > now():
        raise CloseError(f"{day} has not ended yet")
    found = clear_date(opened, day, despite=despite, step=_silent if quiet else _progress())
    folder = write_documents(opened.data, found)
    print_close(Console(), found[-1], opened.tariff)
    typer.echo(f"statements in {folder}" + ("" if found[-1].newly else " (closed before; the same bytes)"))


@clear_app.command("what-if")
def what_if(
    agreements: Annotated[Path, typer.Argument(help="Another clearing.toml.")],
    first: Annotated[str, typer.Argument(help="The first service date.")],
    last: Annotated[str | None, typer.Argument(help="The last one; the first by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    data: Store = None,
) -> None:
    """The same days under other agreements: what each party would be given, and the difference. Nothing is changed."""
    opened = open_store(data)
    begin = parse_date(first)
    rules = rules_of(opened.tariff, opened.tariff_folder)
    other = rules_of(opened.tariff, opened.tariff_folder, agreements)
    with opened.database.read(long=True) as connection:
        found = compare(connection, rules, other, begin, parse_date(last) if last else begin)
    if as_json:
        rows = [
            {"party_id": one.party_id, "now": one.now, "otherwise": one.otherwise, "difference": one.difference} for one in found
        ]
        typer.echo(json.dumps(rows))
        return
    table = Table(title=f"{begin} to {last or begin} under {agreements} ({opened.tariff.currency})")
    table.add_column("party")
    for name in ("now", "otherwise", "difference"):
        table.add_column(name, justify="right")
    for one in found:
        amounts = (one.now, one.otherwise, one.difference)
        table.add_row(_party_name(opened.tariff, one.party_id), *(format_amount(n, opened.tariff.currency) for n in amounts))
    Console().print(table)


def _yesterday(tariff: CompiledTariff) -> str:
    """The latest service date that has ended."""
    return to_date(tariff.service_day(now()) - 1).isoformat()


def _progress() -> Callable[[str], None]:
    begun = time.monotonic()
    return lambda step: typer.echo(f"{time.monotonic() - begun:6.1f} s  {step}", err=True)


def _silent(_step: str) -> None:
    """No progress."""


def _party_name(tariff: CompiledTariff, party: str) -> str:
    known = tariff.network.parties.get(party)
    return known.name_en if known else party


@app.command()
def audit(
    service_date: Annotated[str, typer.Argument(help="The service date up to whose end to audit, as 2026-03-02.")],
    hold: Annotated[bool, typer.Option(help="Hold the money of published legs on which the auditor disagrees.")] = True,
    data: Store = None,
) -> None:
    """Price every recorded tap again from scratch, compare with the books, and check the seals of what is published.

    Exit code 1 if anything differs or was changed."""
    opened = open_store(data)
    day = parse_date(service_date)
    looked = _look_for_changes(opened, day)
    report = audit_date(opened, day)
    changed = looked()
    for problem in changed:
        typer.echo(f"CHANGED {problem.table} {problem.key}: {problem.what}")
    for note in report.notes:
        typer.echo(note)
    for given in report.shared:
        typer.echo(f"party {given.party_id} given up to {day}: audited {given.audited}, published {given.published}")
    for difference in report.differences:
        typer.echo(
            f"traveller {difference.traveller_id} leg {difference.leg_id} {difference.what}: "
            f"audited {difference.audited}, booked {difference.booked}"
        )
    typer.echo(
        f"AUDIT {service_date}: {report.taps:,} taps, {report.travellers:,} travellers, {report.legs:,} legs, "
        f"charged {format_amount(report.charged, opened.tariff.currency)}: {len(report.differences)} differences"
    )
    if report.differences and hold:
        rules = rules_of(opened.tariff, opened.tariff_folder)
        held = opened.database.transact(lambda connection: hold_legs(connection, rules, report.differences, now()))
        for dispute in held:
            typer.echo(f"held until decided: {dispute.dispute_id}, {format_amount(dispute.amount, opened.tariff.currency)}")
    if report.differences or report.shared or changed:
        raise typer.Exit(1)


class ToCheck(msgspec.Struct, frozen=True):
    """What a process needs to know for `changed_in_process`."""

    data: str
    date: str


def _look_for_changes(opened: Opened, service_date: str) -> Callable[[], list[Finding]]:
    """`changed_under`, of a large date in a process beside this one."""
    with opened.database.read() as connection:
        large = store.count_lines(connection, service_date) > APART
    told = ToCheck(str(opened.data), service_date)
    return apart.begin(changed_in_process, told) if large else partial(changed_under, opened, service_date)


def changed_in_process(told: ToCheck) -> list[Finding]:
    """`changed_under`, in a process that does nothing else."""
    opened = open_store(Path(told.data))
    try:
        return changed_under(opened, told.date)
    finally:
        opened.database.dispose()


def changed_under(opened: Opened, service_date: str) -> list[Finding]:
    """What of a closed date's rows, sums and documents is not as it was written and published; nothing for an open one."""
    rules = rules_of(opened.tariff, opened.tariff_folder)
    with opened.database.read(long=True) as connection:
        if not store.published(connection, service_date):
            return []
        found = [*seals.check_documents(connection), *seals.check_date(connection, service_date)]
        try:
            return [*found, *check_date(connection, rules, service_date, set())]
        except (MottheError, ValueError, KeyError) as error:
            return [*found, Finding("settlements", service_date, f"cannot be computed again: {error}")]


def now() -> int:
    """Milliseconds UTC, by the machine's clock."""
    return time.time_ns() // 1_000_000


def parse_date(text: str) -> str:
    """A service date given on the command line; exit code 2 with the reason otherwise."""
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError as error:
        raise typer.BadParameter(f"{text!r}: {error}") from None


def clear_date(
    opened: Opened, service_date: str, *, despite: str = "", step: Callable[[str], None] = lambda _: None
) -> list[Closed]:
    """Let time pass to the end of the date, then close it and every open date before it."""
    let_time_pass(opened, service_date)
    rules = rules_of(opened.tariff, opened.tariff_folder)
    ends = partial(end_of, opened.tariff)
    return close_through(opened.database, rules, service_date, ends, despite=despite, step=step)


def let_time_pass(opened: Opened, service_date: str) -> None:
    """Charge overdue exits and release passes up to the end of a date that is not closed yet."""
    application = Application(opened.tariff, opened.server_key)
    with opened.database.read(long=True) as connection:
        waiting = not store.is_closed(connection, service_date)
    while waiting:
        with opened.database.write() as connection:
            waiting = bool(application.advance(connection, end_of(opened.tariff, service_date)))


def audit_date(opened: Opened, service_date: str) -> AuditReport:
    """Price every recorded tap again from scratch, as of the end of a date, and compare with the books."""
    with opened.database.read(long=True) as connection:
        return audit_store(
            connection,
            opened.tariff_folder,
            opened.adopted,
            opened.tariff,
            opened.server_key,
            end_of(opened.tariff, service_date),
            service_date if store.published(connection, service_date) else None,
        )


def end_of(tariff: CompiledTariff, service_date: str) -> int:
    """The instant at which a service date ends: the next one's turn, under the version then in force."""
    day = to_day(date.fromisoformat(service_date))
    noon = day_starts_at(day, tariff.zone, 12 * 3_600_000)
    version = tariff.version_at(noon)
    return day_starts_at(day + 1, tariff.zone, version.day_start_ms if version else 0)


def rules_of(tariff: CompiledTariff, folder: Path, agreements: Path | None = None) -> Rules:
    """What a close goes by: the agreements in the city's folder (or in another file), and the tariff's caps."""
    own = folder if (folder / "clearing.toml").exists() else folder.parent
    network = tariff.network
    known = Known(
        frozenset(network.parties),
        tariff.currency,
        frozenset(network.networks),
        frozenset(rule for version in tariff.tariff.versions for rule in _rule_ids(version)),
        frozenset(row.product_id for version in tariff.tariff.versions for row in version.file.products),
        tariff.categories,
        frozenset(network.routes),
    )
    return Rules(load_agreements(agreements or own / "clearing.toml", known), tariff)


def _rule_ids(version: Version) -> Iterator[str]:
    """The ids of the rules that agreements may name."""
    file = version.file
    for rows in (file.caps, file.best_of, file.discounts, file.joining_rules, file.surcharges, file.rewards, file.rebates):
        yield from (row.rule_id for row in rows)


def write_documents(data: Path, closed: list[Closed]) -> Path:
    """The documents of each date as files, each whole or not at all; one that is there already gets the same bytes."""
    folder = data / "statements"
    for one in closed:
        for name, content in one.documents.items():
            path = folder / one.accounting_date / name
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = path.with_name(f".{name}.new")
            beside.write_bytes(content)
            beside.replace(path)
    return folder / closed[-1].accounting_date


def print_close(console: Console, closed: Closed, tariff: CompiledTariff) -> None:
    """The operators' table and the day's proof line."""
    table = Table(title=f"Net positions {closed.accounting_date} ({tariff.currency})")
    table.add_column("party")
    for name in ("settled", "cash held", "net"):
        table.add_column(name, justify="right")
    lines = closed.documents["positions.csv"].decode().splitlines()[1:]
    for line in lines:
        party, settled, cash, net = line.split(",")
        table.add_row(_party_name(tariff, party), *(format_amount(int(cell), tariff.currency) for cell in (settled, cash, net)))
    console.print(table)
    console.print(proof_line(closed, tariff.currency), soft_wrap=True)


def proof_line(closed: Closed, currency: str) -> str:
    """What came in equals what went out, in one line."""
    proof = json.loads(closed.documents["proof.json"])

    def money(name: str) -> str:
        return format_amount(proof[name], currency)

    return (
        f"PROOF {closed.accounting_date}: charged {money('charged')} + borne by others {money('borne')} "
        f"+ passes and books {money('products')} = shared {money('settled')}; debits {money('debits')} "
        f"= credits {money('credits')}; net positions sum to {proof['net_sum']}; seal {proof['seal'][:16]}"
    )
