"""`motthe payments` and `motthe bank`: the order to the bank, its statements, and what of them waits for somebody."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from clearing import store as clearing_store
from clearing.bank import booking, pain001
from clearing.bank import store as bank_store
from clearing.bank.accounts import FILE, Accounts, load_accounts
from clearing.commands import now, parse_date
from clearing.payments import Payment
from fare_engine.commands import Opened, Store, open_store
from fare_engine.errors import CloseError, Fault, InputError
from fare_engine.money import format_amount

app = typer.Typer()
bank_app = typer.Typer(help="The bank's statements: import, what waits, matching by hand.", no_args_is_help=True)
app.add_typer(bank_app, name="bank")


@app.command()
def payments(
    service_date: Annotated[str, typer.Argument(help="The closed date whose net positions are paid, as 2026-03-02.")],
    out: Annotated[Path | None, typer.Option(help="The order's file. Default: in payments/ of the store's folder.")] = None,
    data: Store = None,
) -> None:
    """What a closed date's positions ask the bank to pay, as a table, and as ISO 20022 pain.001."""
    opened = open_store(data)
    day = parse_date(service_date)
    with opened.database.read() as connection:
        published = clearing_store.published(connection, day)
        found = clearing_store.list_payments(connection, day)
    if not published:
        raise CloseError(f"{day} is not closed: motthe clear {day} closes it")
    _print_payments(opened, day, found)
    order = pain001.order_of(day, found)
    if not order.payments:
        typer.echo(f"nobody is paid for {day}: no order is written")
        return
    content = pain001.pain001(order, accounts_of(opened), opened.tariff.minor_digits)
    path = out or opened.data / "payments" / f"{day}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    total = format_amount(order.total, opened.tariff.currency, "en", opened.tariff.minor_digits)
    typer.echo(f"{order.message_id}: {len(order.payments)} payments, {total}, in {path}")


@bank_app.command("import")
def import_statement(
    file: Annotated[Path, typer.Argument(help="A statement of the bank, ISO 20022 camt.053.")],
    data: Store = None,
) -> None:
    """Take a bank statement: its lines are matched with payments and booked; the same line twice has one effect."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InputError([Fault(str(file), error.strerror, "cannot be read")]) from None
    opened = open_store(data)
    accounts = accounts_of(opened)
    with opened.database.write(alone=True) as connection:
        found = booking.import_file(connection, content, accounts, opened.tariff.minor_digits, now())
    again = "" if found.is_new else " (the file was imported before)"
    typer.echo(f"{found.lines} lines, {found.added} new, {found.matched} matched, {found.waiting} waiting{again}")


@bank_app.command("queue")
def queue(data: Store = None) -> None:
    """Bank lines without a payment, and payments without a bank line, each with its age in days."""
    opened = open_store(data)
    with opened.database.read() as connection:
        waiting = bank_store.list_waiting(connection)
        unpaid = booking.list_open(connection)
    today = datetime.fromtimestamp(now() / 1000, UTC).date()
    console = Console()
    lines = _table("Bank lines that wait", ("line", "booked on", "days", "amount", "other side", "reason", "text"))
    for found in waiting:
        line = found.line
        said = " · ".join(text for name, text in line.texts if name in ("Ustrd", "AddtlNtryInf", "AddtlTxInf", "EndToEndId"))
        cells = (line.line_id, line.booked_on, _age(line.booked_on, today), _money(opened, line.amount))
        lines.add_row(*cells, line.other_account or line.other_name, found.reason, said[:80])
    console.print(lines)
    left = _table("Payments that the bank has not made", ("payment", "of", "days", "amount", "party"))
    for one in unpaid:
        payment = one.payment
        amount = _money(opened, payment.amount)
        left.add_row(payment.payment_id, payment.accounting_date, _age(payment.accounting_date, today), amount, payment.party_id)
    console.print(left)
    typer.echo(f"{len(waiting)} lines and {len(unpaid)} payments wait")


@bank_app.command("match")
def match(
    line: Annotated[str, typer.Argument(help="The line, as the queue names it.")],
    payment: Annotated[str, typer.Argument(help="The payment that it is.")],
    data: Store = None,
) -> None:
    """Say which payment a waiting line is. Both must be open, and amount and direction must fit."""
    opened = open_store(data)
    accounts = accounts_of(opened)
    with opened.database.write(alone=True) as connection:
        found = booking.match_by_hand(connection, accounts, line, payment, now())
    typer.echo(f"line {found.line_id} is payment {found.payment_id}: {_money(opened, found.amount)}")


def accounts_of(opened: Opened) -> Accounts:
    """The bank accounts in the city's folder."""
    folder = opened.tariff_folder
    path = folder if (folder / FILE).exists() else folder.parent
    return load_accounts(path / FILE, opened.tariff.network.parties, opened.tariff.currency)


def _print_payments(opened: Opened, day: str, found: list[Payment]) -> None:
    table = _table(f"Payments {day} ({opened.tariff.currency})", ("party", "payment", "amount", ""))
    for payment in found:
        known = opened.tariff.network.parties.get(payment.party_id)
        whose = known.name_en if known else payment.party_id
        table.add_row(whose, payment.payment_id, _money(opened, payment.amount), "is paid" if payment.amount > 0 else "owes")
    Console().print(table)


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(title=title)
    for name in columns:
        table.add_column(name, justify="right" if name in ("amount", "days") else "left")
    return table


def _money(opened: Opened, amount: int) -> str:
    return format_amount(amount, opened.tariff.currency, "en", opened.tariff.minor_digits)


def _age(day: str, today: date) -> str:
    return str((today - date.fromisoformat(day)).days)
