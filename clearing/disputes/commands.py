"""`motthe dispute`: claims against published statements, what they hold, and how they are decided."""

from __future__ import annotations

import json
from typing import Annotated

import msgspec
import typer

from clearing.commands import now, parse_date, rules_of
from clearing.disputes import desk, store
from clearing.disputes.claims import CLEARING_HOUSE, Claim, Dispute
from fare_engine.commands import Opened, Store, open_store
from fare_engine.errors import NotFoundError
from fare_engine.money import format_amount
from fare_engine.service_day import DAY_MS, format_instant

app = typer.Typer()
dispute_app = typer.Typer(help="Claims against published statements, held until decided.", no_args_is_help=True)
app.add_typer(dispute_app, name="dispute")

DisputeId = Annotated[str, typer.Argument(metavar="DISPUTE", help="The id of the dispute.")]


@dispute_app.command("open")
def open_command(
    statement: Annotated[str, typer.Argument(help="DATE/PARTY, as 2026-03-02/OP-HURC1.")],
    text: Annotated[str, typer.Option(help="What is claimed, and why.")],
    line: Annotated[int, typer.Option(min=0, help="The number of the disputed row; none: legs of any row.")] = 0,
    leg: Annotated[list[str] | None, typer.Option(help="Only this leg; repeatable.")] = None,
    against: Annotated[list[str] | None, typer.Option(help="Only what this party was given; repeatable.")] = None,
    amount: Annotated[int | None, typer.Option(help="In minor units. Default: all that is left of it.")] = None,
    by: Annotated[str, typer.Option(help="The party that claims it.")] = CLEARING_HOUSE,
    data: Store = None,
) -> None:
    """Dispute a row of a published statement, or single legs. The amount is held until somebody decides.

    A row of another's statement is claimed from that party; a row of one's own, from those who were given what it took."""
    day, _, party = statement.partition("/")
    if not party:
        raise typer.BadParameter(f"{statement!r}: a statement is named DATE/PARTY")
    opened = open_store(data)
    claim = Claim(
        claimant=by,
        accounting_date=parse_date(day),
        party_id=party,
        line=line,
        leg_ids=tuple(leg or ()),
        against=tuple(against or ()),
        amount=amount,
        text=text,
    )
    rules = rules_of(opened.tariff, opened.tariff_folder)
    at = now()
    found = opened.database.transact(lambda connection: desk.open_dispute(connection, rules, claim, at))
    typer.echo(_line(opened, found, at))


@dispute_app.command("list")
def list_command(
    party: Annotated[str | None, typer.Option(help="Only those that this party claims or is claimed from.")] = None,
    state: Annotated[str | None, typer.Option(help="Only open, accepted, partly or declined ones.")] = None,
    data: Store = None,
) -> None:
    """Every dispute, the newest first; what has been held for long is named."""
    opened = open_store(data)
    at = now()
    with opened.database.read() as connection:
        found = [one for one in store.list_disputes(connection, party) if state in (None, one.state)]
    for dispute in found:
        typer.echo(_line(opened, dispute, at))
    held = sum(dispute.amount for dispute in found if dispute.state == "open")
    typer.echo(f"{len(found):,} disputes, {_money(opened, held)} held")


@dispute_app.command("show")
def show_command(
    name: DisputeId,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
    data: Store = None,
) -> None:
    """A dispute with what it holds, its evidence and its decision."""
    opened = open_store(data)
    with opened.database.read() as connection:
        dispute = store.find(connection, name)
        if dispute is None:
            raise NotFoundError(f"no dispute {name}")
        items, evidence = store.items_of(connection, name), store.evidence_of(connection, name)
    if as_json:
        told = {**msgspec.to_builtins(dispute), "items": msgspec.to_builtins(items), "evidence": msgspec.to_builtins(evidence)}
        typer.echo(json.dumps(told, ensure_ascii=False))
        return
    typer.echo(_line(opened, dispute, now()))
    typer.echo(f"  {dispute.text}")
    for item in items:
        granted = f", {_money(opened, item.granted)} granted" if item.granted is not None else ""
        place = f"{item.party_id} line {item.line} {item.leg_id}".rstrip()
        typer.echo(f"  held of {place}: {_money(opened, item.amount)}{granted}")
    for one in evidence:
        typer.echo(f"  {one.kind} {one.key} {json.dumps(one.content, ensure_ascii=False)}")
    if dispute.decided_at is not None:
        at = format_instant(dispute.decided_at, opened.tariff.zone)
        typer.echo(f"  decided {at} by {dispute.decided_by}, booked under {dispute.decided_under}: {dispute.reason}")


@dispute_app.command("decide")
def decide_command(
    name: DisputeId,
    reason: Annotated[str, typer.Option(help="Why.")],
    by: Annotated[str, typer.Option(help="Who decides.")],
    accept: Annotated[bool | None, typer.Option("--accept/--decline", help="All of it, or nothing.")] = None,
    grant: Annotated[int | None, typer.Option(min=0, help="So much of it, in minor units.")] = None,
    to: Annotated[str | None, typer.Option(help="Who gets it, where nobody claimed it for himself.")] = None,
    data: Store = None,
) -> None:
    """Decide a dispute, once. What is granted goes to the claimant, the rest back, under the first open date."""
    if (accept is None) == (grant is None):
        raise typer.BadParameter("say --accept, --decline, or --grant AMOUNT")
    opened = open_store(data)
    rules = rules_of(opened.tariff, opened.tariff_folder)
    granted, at = (0 if accept is False else grant), now()
    found = opened.database.transact(lambda connection: desk.decide(connection, rules, name, granted, by, reason, at, to))
    typer.echo(_line(opened, found, at))


def _line(opened: Opened, dispute: Dispute, at: int) -> str:
    line = f" line {dispute.line}" if dispute.line else ""
    days = (at - dispute.opened_at) // DAY_MS
    state: str = dispute.state
    if dispute.state == "open":
        state = f"open, held for {days} days, TOO LONG" if days > store.OLD_DAYS else f"open, held under {dispute.held_under}"
    elif dispute.granted:
        state = f"{dispute.state}, {_money(opened, dispute.granted)} to {dispute.granted_to}"
    place = f"{dispute.accounting_date}/{dispute.party_id}{line}"
    return f"{dispute.dispute_id} {dispute.claimant} {_money(opened, dispute.amount)} of {place}: {state}"


def _money(opened: Opened, amount: int) -> str:
    return format_amount(amount, opened.tariff.currency, minor_digits=opened.tariff.minor_digits)
