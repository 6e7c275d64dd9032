"""Commands about travellers: whose a token is, who pays, what riders claim, what drifted."""

from __future__ import annotations

import time
from datetime import date
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy import Connection

from fare_engine import booking, claims, linking
from fare_engine.application import Application
from fare_engine.commands import Opened, Store, open_store, parse_instant_option
from fare_engine.errors import NotFoundError
from fare_engine.service_day import format_instant, to_date, to_day
from fare_engine.store import travellers
from fare_engine.store.registry import Correction
from fare_engine.tokens import stored_card_number

app = typer.Typer()
travellers_app = typer.Typer(help="Whose a token is, and who pays.", no_args_is_help=True)
claims_app = typer.Typer(help="What riders say of rides whose exit is missing.", no_args_is_help=True)
drift_app = typer.Typer(help="Prices that changed though no fact explains it.", no_args_is_help=True)
app.add_typer(travellers_app, name="travellers")
app.add_typer(claims_app, name="claims")
app.add_typer(drift_app, name="drift")


@travellers_app.command("show")
def show(card: Annotated[str, typer.Argument(help="The number printed on a card.")], data: Store = None) -> None:
    """The travellers whose rides a card's account pays, each with its tokens."""
    opened = open_store(data)
    with opened.database.read() as connection:
        account = travellers.find_account_by_card(connection, stored_card_number(opened.server_key, card))
        if account is None:
            raise NotFoundError(f"no account with the card {card}")
        for traveller in travellers.travellers_of_account(connection, account.account_id):
            typer.echo(f"{traveller.traveller_id}  account {traveller.account_id}  {traveller.dirty_reason or ''}".rstrip())
            for token in travellers.tokens_of_traveller(connection, traveller.traveller_id):
                since = [f"{owner} from {format_instant(begins)}" for begins, owner in token.links]
                typer.echo(f"  token {token.token_id}  {'; '.join(since) or token.traveller_id}")


@travellers_app.command("link")
def link(
    token_id: Annotated[str, typer.Argument(help="The token.")],
    traveller_id: Annotated[str, typer.Argument(help="Whose it is from then on.")],
    since: Annotated[str, typer.Option("--from", help="RFC 3339; at the earliest the first day that is not closed.")],
    data: Store = None,
) -> None:
    """From an instant on a token is a traveller's. What was tapped with it since is priced anew as theirs."""
    opened, application = _open(data)
    begins = parse_instant_option(since)
    effective = opened.database.transact(
        lambda connection: linking.link_token(connection, application, token_id, traveller_id, begins, _now(), "command"),
        alone=True,
    )
    typer.echo(f"{token_id} is {traveller_id}'s from {format_instant(effective, opened.tariff.zone)}")


@travellers_app.command("payer")
def payer(
    traveller_id: Annotated[str, typer.Argument(help="The traveller.")],
    account_id: Annotated[str, typer.Argument(help="The account that pays.")],
    since: Annotated[str, typer.Option("--from", help="The first service day, as 2026-03-02.")],
    data: Store = None,
) -> None:
    """From a service day on an account pays for a traveller: a family is several travellers of one account."""
    opened, application = _open(data)
    day = to_day(date.fromisoformat(since))
    effective = opened.database.transact(
        lambda connection: linking.change_payer(connection, application, traveller_id, account_id, day, _now()), alone=True
    )
    typer.echo(f"{account_id} pays for {traveller_id} from service day {to_date(effective)}")


@travellers_app.command("propose")
def propose(data: Store = None) -> None:
    """Find tokens that seem to be one person's: where one's exit was missing, the other's came, twice or more."""
    opened, application = _open(data)
    now = _now()

    def work(connection: Connection) -> None:
        names = travellers.list_with_missing_taps(connection)
        rows = travellers.get_travellers(connection, names)
        folded = [booking.price(application.tariff, row.record, max(now, row.record.as_of)) for row in rows.values()]
        for found in linking.propose_links(application.tariff, folded):
            travellers.save_proposal(connection, found.token_id, found.other_token_id, now, "; ".join(found.occasions))

    opened.database.transact(work)
    with opened.database.read() as connection:
        for token_id, other, evidence in travellers.list_proposals(connection):
            typer.echo(f"{token_id} and {other}: {evidence}")


@claims_app.command("list")
def list_claims(data: Store = None) -> None:
    """Open claims, the oldest first."""
    opened = open_store(data)
    with opened.database.read() as connection:
        for claim in travellers.list_claims(connection, state="open"):
            made = format_instant(claim.made_at, opened.tariff.zone)
            typer.echo(f"{claim.claim_id}  {made}  {claim.traveller_id}  {claim.leg_id} → {claim.stop_id}  {claim.text}")


@claims_app.command("decide")
def decide(
    claim_id: Annotated[str, typer.Argument(help="The claim.")],
    reason: Annotated[str, typer.Option(help="Why; the rider reads it.")],
    accept: Annotated[bool, typer.Option("--accept/--decline", help="Take it, or not.")],
    by: Annotated[str, typer.Option(help="Who decides.")] = "clerk",
    data: Store = None,
) -> None:
    """Decide an open claim. An accepted one is a fact: the ride is priced anew at once."""
    opened, application = _open(data)
    claim = opened.database.transact(
        lambda connection: claims.decide_claim(connection, application, claim_id, by, reason, _now(), accept=accept)
    )
    typer.echo(f"{claim.claim_id} {claim.state}: {claim.reason}")


@drift_app.command("list")
def list_drift(data: Store = None) -> None:
    """Travellers whose prices would change though no fact came; nothing of it is booked."""
    opened = open_store(data)
    with opened.database.read() as connection:
        for traveller_id, found_at, revision, detail in travellers.list_drifts(connection):
            typer.echo(f"{traveller_id}  found {format_instant(found_at, opened.tariff.zone)} under {revision}")
            for line in detail.splitlines():
                typer.echo(f"  {line}")


@drift_app.command("accept")
def accept_drift(
    traveller_id: Annotated[str | None, typer.Argument(help="One traveller; without: all of them.")] = None, data: Store = None
) -> None:
    """Book what drifted: the new prices are meant."""
    opened, application = _open(data)
    with opened.database.read() as connection:
        names = sorted({name for name, *_ in travellers.list_drifts(connection) if traveller_id in (None, name)})
    if not names:
        raise NotFoundError(f"no drift of {traveller_id or 'anybody'}")
    for name in names:
        opened.database.transact(lambda connection, name=name: application.accept_drift(connection, name, _now()))  # type: ignore[misc]
    typer.echo(f"{len(names)} travellers booked anew")


@app.command("correct-clock")
def correct_clock(
    device_id: Annotated[str, typer.Argument(help="The device.")],
    begins: Annotated[str, typer.Option("--from", help="The first time that is wrong, as its taps carry it; RFC 3339.")],
    ends: Annotated[str, typer.Option("--to", help="The first time that is right again.")],
    shift_ms: Annotated[int, typer.Option(help="Milliseconds to add to its times in between; less than zero: it was fast.")],
    data: Store = None,
) -> None:
    """A device's clock was off: its taps are priced anew at the times at which they happened."""
    opened, application = _open(data)
    first, after, now = parse_instant_option(begins), parse_instant_option(ends), _now()
    correction = Correction(f"{device_id}/{first}/{after}/{shift_ms}", device_id, first, after, shift_ms, now, "command")
    count = opened.database.transact(lambda connection: application.correct_clock(connection, correction, now), alone=True)
    typer.echo(f"{device_id}: taps of {count} travellers were shifted by {shift_ms} ms")


def _open(data: Path | None) -> tuple[Opened, Application]:
    opened = open_store(data)
    return opened, Application(opened.tariff, opened.server_key)


def _now() -> int:
    return time.time_ns() // 1_000_000
