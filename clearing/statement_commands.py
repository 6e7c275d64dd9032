"""Commands about published statements: what a figure sums, and what a date looks like as known later."""

from __future__ import annotations

import json
from typing import Annotated

import msgspec
import typer
from sqlalchemy import Connection

from clearing import statements, store, tracing, what_if
from clearing.commands import parse_date, rules_of
from clearing.tracing import SignedTap, Trace
from fare_engine.commands import Opened, Store, open_store
from fare_engine.errors import NotFoundError
from fare_engine.money import format_amount
from fare_engine.service_day import format_instant

app = typer.Typer()
MOST = 20


@app.command("trace")
def trace_command(
    statement: Annotated[str, typer.Argument(help="DATE/PARTY, as 2026-03-02/OP-HURC1.")],
    line: Annotated[int, typer.Argument(min=1, help="The number of its row, in the first column.")],
    most: Annotated[int, typer.Option(min=0, help="So many of what it sums are shown, each with its signed taps.")] = MOST,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
    data: Store = None,
) -> None:
    """Follow a figure of a published statement to the lines, legs and signed taps that it sums.

    Exit code 1 if they do not give the figure, or a tap's message is not signed by its device any more."""
    day, _, party = statement.partition("/")
    if not party:
        raise typer.BadParameter(f"{statement!r}: a statement is named DATE/PARTY")
    opened = open_store(data)
    with opened.database.read() as connection:
        found = tracing.trace(connection, rules_of(opened.tariff, opened.tariff_folder), parse_date(day), party, line)
        shown = found.found if as_json else found.found[:most]
        signed = {tap.tap_id: tap for one in shown for tap in tracing.signed_taps(connection, one.taps)}
    if as_json:
        told = {**msgspec.to_builtins(found), "signed_taps": msgspec.to_builtins(list(signed.values()))}
        typer.echo(json.dumps(told, ensure_ascii=False))
    else:
        _print_trace(opened, found, shown, signed)
    if any(not tap.public_key for tap in signed.values()):
        raise typer.Exit(1)


def _print_trace(opened: Opened, found: Trace, shown: list[tracing.Traced], signed: dict[str, SignedTap]) -> None:
    row = found.row
    named = ("section", "service_date", "what", "network_id", "rule_id", "paid_by", "agreement_id")
    what = " ".join(row[name] for name in named if row[name])
    currency = opened.tariff.currency
    typer.echo(f"{found.accounting_date}/{found.party_id} line {row['line']}: {what}")
    typer.echo(f"= {format_amount(found.total, currency)} from {len(found.found)} (statement {found.sha256[:16]})")
    for one in shown:
        typer.echo(f"  {one.what} {one.key} {format_amount(one.amount, currency)} {one.detail}".rstrip())
        for tap_id in one.taps:
            tap = signed.get(tap_id)
            if tap is None:
                typer.echo(f"    tap {tap_id}: not held")
                continue
            by = f"signed by {tap.public_key[:16]}" if tap.public_key else "NOT SIGNED by any key of its device"
            received = format_instant(tap.received_at, opened.tariff.zone)
            typer.echo(f"    tap {tap_id} in message {tap.message}, received {received}, {by}")
    if len(shown) < len(found.found):
        typer.echo(f"  … and {len(found.found) - len(shown)} more (--most, --json)")


@app.command("statement")
def statement_command(
    service_date: Annotated[str, typer.Argument(help="The service date, as 2026-03-02.")],
    party: Annotated[str, typer.Argument(help="The party's id.")],
    known_on: Annotated[str | None, typer.Option("--as-known-on", help="As known when this later date was closed.")] = None,
    data: Store = None,
) -> None:
    """Print a party's statement as CSV: as published, or for the same service date with everything that was known later."""
    opened = open_store(data)
    day = parse_date(service_date)
    with opened.database.read() as connection:
        content = _statement(connection, opened, day, party, known_on)
    typer.echo(content.decode(), nl=False)


def _statement(connection: Connection, opened: Opened, day: str, party: str, known_on: str | None) -> bytes:
    if known_on is None:
        published = store.find_document(connection, day, f"{party}.csv")
        if published is None:
            raise NotFoundError(f"no statement {day}/{party}")
        return published
    rules = rules_of(opened.tariff, opened.tariff_folder)
    for found in what_if.as_known(connection, rules, day, parse_date(known_on)):
        if found.party_id == party:
            return statements.statement_csv(found)
    raise NotFoundError(f"{day} means nothing to {party}, as known on {known_on}")
