"""Commands of collection: the day's charges, refunds, cards, what waits, and the provider's report against our books."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from clearing.collection import cards, reconcile, store
from clearing.collection.collector import Collector
from clearing.collection.opening import open_collector
from clearing.commands import end_of, now, parse_date
from fare_engine.application import Application
from fare_engine.commands import Opened, Store, open_store, read_text, stored_settings
from fare_engine.errors import CollectionError, NotFoundError
from fare_engine.money import format_amount
from fare_engine.store import travellers
from fare_engine.tokens import issued_pin, stored_card_number


class _Dated(TyperGroup):
    """`motthe collect 2026-03-02` is short for `motthe collect day 2026-03-02`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Take a date for the command that wants one."""
        return super().resolve_command(ctx, ["day", *args] if args[0][:1].isdigit() else args)


app = typer.Typer()
collect_app = typer.Typer(cls=_Dated, help="Charges of riders' sources, and what became of them.", no_args_is_help=True)
card_app = typer.Typer(help="Cards: issued, topped up, replaced, ended.", no_args_is_help=True)
app.add_typer(collect_app, name="collect")
app.add_typer(card_app, name="card")

CardNumber = Annotated[str, typer.Argument(metavar="CARD", help="The number printed on the card.")]
Amount = Annotated[int, typer.Option(help="In minor units.")]


@collect_app.command("day")
def collect_day(
    service_date: Annotated[str, typer.Argument(help="The service date, as 2026-03-02.")],
    data: Store = None,
) -> None:
    """Charge what each post-paid account owes up to a date, once for that date; ask again for what is not decided.

    A second run charges nobody again; one that was killed is taken up."""
    opened, collector = _open(data)
    day = parse_date(service_date)
    if end_of(opened.tariff, day) > now():
        raise CollectionError("not_ended", f"{day} has not ended yet")
    if collector.provider is None:
        raise CollectionError("no_provider", "nobody can be asked: MOTTHE_PROVIDER_URL names no provider")
    found = collector.collect(day, now())
    typer.echo(
        f"COLLECTED {day}: {found.resumed} of before decided, {found.charged} charged {_money(opened, found.amount)}, "
        f"{found.declined} declined, "
        f"{found.undecided} undecided, {found.waiting} not to be charged yet, {found.without_source} without a source, "
        f"{found.left} left, for the provider does not answer, "
        f"written off {_money(opened, found.written_off)}"
    )


@collect_app.command("status")
def status(data: Store = None) -> None:
    """What is not decided, who is denied for a debt, what riders are owed, and what does not hold in our books."""
    opened, collector = _open(data)
    at = now()
    with opened.database.read() as connection:
        for charge in store.list_undecided(connection, at + 1):
            hours = (at - charge.made_at) // reconcile.HOUR_MS
            typer.echo(f"{charge.state} {charge.charge_id} {charge.account_id} {charge.purpose} {charge.amount}, {hours} h")
        for block in store.blocks_of(connection):
            typer.echo(f"denied {block.token_id} of {block.account_id} since {collector.day_of(block.blocked_at)}")
        held = store.balances_of(connection, store.ACCOUNTS)
        for name, amount in sorted(held.items()):
            typer.echo(f"{name} {_money(opened, amount)}")
        typer.echo(f"stored value owed to riders {_money(opened, store.stored_value(connection))}")
        breaks = reconcile.own_breaks(reconcile.snapshot(connection), at, collector.rules.charging.pending_hours)
        breaks += reconcile.deny_breaks(collector, connection)
    _tell(breaks, at)


@collect_app.command("reconcile")
def reconcile_report(
    file: Annotated[Path, typer.Argument(help="The provider's settlement report (docs/collection.md).")],
    data: Store = None,
) -> None:
    """Compare the provider's report with our books. Each difference is named with age and reason, and the exit code is 1."""
    opened, collector = _open(data)
    report = reconcile.read_report(read_text(file), file.name)
    at = now()
    with opened.database.read() as connection:
        ours = reconcile.snapshot(connection)
        breaks = reconcile.compare(report, ours, at, collector.rules.charging.pending_hours)
        breaks += reconcile.deny_breaks(collector, connection)
    _tell(breaks, at)
    total = sum(row.taken for row in report)
    typer.echo(f"RECONCILED {len(report)} rows of the provider, {_money(opened, total)} in all: 0 differences")


@collect_app.command("source")
def source(
    card: CardNumber,
    name: Annotated[str, typer.Argument(metavar="SOURCE", help="The provider's name for what is charged.")],
    data: Store = None,
) -> None:
    """Say what an account's money is taken from: the provider's own name for it, never a card's number."""
    opened, collector = _open(data)
    account_id = _account_of(opened, card)
    collector.set_source(account_id, name, now())
    typer.echo(f"{account_id} is charged by {name}")


@app.command("refund")
def refund(
    line: Annotated[str, typer.Argument(metavar="LINE_TRANSACTION", help="The transaction of the booked line.")],
    amount: Amount,
    reason: Annotated[str, typer.Option(help="Why.")] = "goodwill",
    key: Annotated[str, typer.Option(help="Another refund of the same line needs another key.")] = "",
    data: Store = None,
) -> None:
    """Give back of a booked line, never more than was paid, to the source that paid it."""
    opened, collector = _open(data)
    found = collector.refund(line, amount, reason, now(), key)
    where = f"the source of {found.charge_id}" if found.charge_id is not None else f"the account {found.account_id}"
    typer.echo(f"refund {found.refund_id} of {_money(opened, found.amount)} to {where}: {found.state}")
    if found.state == "failed":
        raise typer.Exit(1)


@card_app.command("issue")
def issue(
    account_id: Annotated[str, typer.Argument(help="The account.")],
    number: CardNumber,
    token: Annotated[str | None, typer.Option(help="The id of the token that is tapped with it.")] = None,
    data: Store = None,
) -> None:
    """Write down an account's card, with its term and deposit."""
    opened, collector = _open(data)
    digits = "".join(character for character in number if character.isalnum())
    number_hash, on = stored_card_number(opened.server_key, number), collector.day_of(now())
    found = opened.database.transact(
        lambda connection: cards.issue(collector, connection, account_id, number_hash, digits[-4:], token, on)
    )
    typer.echo(f"the card of {account_id} is good until {found.expires_on}; PIN {issued_pin(opened.server_key, number)}")


@card_app.command("top-up")
def top_up(
    card: CardNumber,
    amount: Amount,
    at: Annotated[str, typer.Option(help="The party whose till took the money.")],
    receipt: Annotated[str, typer.Option(help="The till's receipt: it counts once.")],
    data: Store = None,
) -> None:
    """Put money on a card that a party took at its till; the party owes it from now on."""
    opened, collector = _open(data)
    found = collector.take_at_till(_account_of(opened, card), amount, at, receipt, now())
    typer.echo(f"{_money(opened, found.amount)} on {found.account_id}, owed by {found.source}")


@card_app.command("replace")
def replace(
    old: Annotated[str, typer.Argument(metavar="OLD", help="The number of the card that is good no more.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The number of the new one.")],
    medium: Annotated[str | None, typer.Option(help="What terminals send for the new card, in hexadecimal.")] = None,
    data: Store = None,
) -> None:
    """Another card with all that is on the old one, which is blocked."""
    opened, collector = _open(data)
    application = Application(opened.tariff, opened.server_key)
    new_medium = _bytes(medium) if medium is not None else None
    found = opened.database.transact(
        lambda connection: cards.replace(collector, connection, application, old, new, new_medium, now()), alone=True
    )
    typer.echo(f"the new card of {found.account_id} is good until {found.expires_on}; PIN {issued_pin(opened.server_key, new)}")


@card_app.command("expire")
def expire(
    service_date: Annotated[str, typer.Argument(help="Cards whose term was over before this date.")],
    data: Store = None,
) -> None:
    """Block cards whose term is over, and sweep what was left on those that ended long ago."""
    opened, collector = _open(data)
    found = cards.expire(collector, parse_date(service_date), now())
    typer.echo(f"{found.expired} cards ended, {found.swept} swept, residual {_money(opened, found.residual)}")


def _open(data: Path | None) -> tuple[Opened, Collector]:
    opened = open_store(data)
    url = stored_settings(data).provider_url
    collector = open_collector(opened.database, opened.tariff, opened.tariff_folder, opened.data, url, now)
    if collector is None:
        raise CollectionError("no_rules", f"{opened.tariff_folder} has no collection.toml")
    return opened, collector


def _account_of(opened: Opened, card: str) -> str:
    with opened.database.read() as connection:
        account = travellers.find_account_by_card(connection, stored_card_number(opened.server_key, card))
    if account is None:
        raise NotFoundError("no account has a card with this number")
    return account.account_id


def _money(opened: Opened, amount: int) -> str:
    return format_amount(amount, opened.tariff.currency, minor_digits=opened.tariff.minor_digits)


def _bytes(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r}: {error}") from None


def _tell(breaks: list[reconcile.Break], at: int) -> None:
    """Name every break, and end with exit code 1 if there is one."""
    for broken in breaks:
        typer.echo(f"BREAK {broken.text(at)}")
    if breaks:
        raise typer.Exit(1)
