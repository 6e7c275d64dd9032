"""A date's postings for accountants' own programs: hledger, Ledger and Beancount, as plain text.

Pure. One transaction for each pair of accounts, code and service date. At the end every account's balance is asserted, as the
books have it, so that a program that was written by others confirms our sums. A rider's account is no name in it: all riders
are one account."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date, timedelta

import msgspec

from fare_engine.errors import BooksError

ROOTS = {
    "riders": "Assets:Riders",
    "collector": "Assets:Collectors",
    "party": "Assets:Parties",
    "bank": "Assets:Bank",
    "top-ups": "Assets:TopUps",
    "holds": "Liabilities:Holds",
    "deposits": "Liabilities:Deposits",
    "fares": "Liabilities:Fares",
    "deferred": "Liabilities:Deferred",
    "operator": "Liabilities:Operators",
    "net": "Liabilities:Net",
    "held": "Liabilities:Held",
    "waivers": "Expenses:Waivers",
    "losses": "Expenses:Losses",
    "fees": "Income:Fees",
}
"""Kind of account in our books → its name in a plain-text journal; whatever is not here stands under `Equity:Other`."""
UPPER = re.compile(r"[A-Z0-9][A-Z0-9-]*")
LOWER = re.compile(r"[a-z][a-z0-9-]*[a-z][a-z0-9-]*")


class Entry(msgspec.Struct, frozen=True, order=True):
    """The sum of the postings of one code and service date between two accounts of our books."""

    code: str
    service_date: str
    debit: str
    credit: str
    amount: int
    count: int


class Journal(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in a date's journal. `balances`: debits less credits by account, summed apart from the entries."""

    accounting_date: str
    currency: str
    minor_digits: int
    entries: Sequence[Entry]
    balances: Mapping[str, int]


def journal(
    accounting_date: str, currency: str, minor_digits: int, entries: Sequence[Entry], balances: Mapping[str, int], total: int
) -> Journal:
    """A date's journal. BooksError if its entries do not sum to the debits of its proof, `total`."""
    summed = sum(entry.amount for entry in entries)
    if summed != total:
        raise BooksError(f"the journal of {accounting_date} sums to {summed}, its proof to {total}")
    return Journal(
        accounting_date=accounting_date,
        currency=currency,
        minor_digits=minor_digits,
        entries=sorted(entries),
        balances=dict(sorted(balances.items())),
    )


def hledger(found: Journal) -> bytes:
    """For hledger, with its accounts and commodity declared (`hledger check --strict`)."""
    head = [f"commodity 1000.{'0' * found.minor_digits} {found.currency}", ""]
    head += [f"account {account_name(account)}" for account in found.balances]
    return _double_entry(found, head)


def ledger(found: Journal) -> bytes:
    """For Ledger, with its accounts and commodity declared (`ledger --pedantic`)."""
    head = [f"commodity {found.currency}", "tag service_date", "tag postings", ""]
    head += [f"account {account_name(account)}" for account in found.balances]
    return _double_entry(found, head)


def beancount(found: Journal) -> bytes:
    """For Beancount; the balances are asserted at the beginning of the next day, as it does."""
    lines = [f'option "title" "{found.accounting_date}"', f'option "operating_currency" "{found.currency}"', ""]
    lines += [f"{found.accounting_date} open {account_name(account)} {found.currency}" for account in found.balances]
    for entry in found.entries:
        lines += [
            "",
            f'{found.accounting_date} * "{entry.code}"',
            f"  service_date: {entry.service_date}",
            f"  postings: {entry.count}",
            f"  {account_name(entry.debit)}  {_amount(entry.amount, found)}",
            f"  {account_name(entry.credit)}  {_amount(-entry.amount, found)}",
        ]
    after = date.fromisoformat(found.accounting_date) + timedelta(days=1)
    lines += [
        "",
        *(f"{after} balance {account_name(account)}  {_amount(sum_, found, ' ~ 0')}" for account, sum_ in found.balances.items()),
    ]
    return _text(lines)


PROGRAMS: dict[str, Callable[[Journal], bytes]] = {"hledger": hledger, "ledger": ledger, "beancount": beancount}


def account_name(account: str) -> str:
    """An account of our books under a name that all three programs take; two accounts never get the same one."""
    kind, _, rest = account.partition(":")
    if kind == "fares":
        rest = rest.partition(":")[2]
    root = ROOTS.get(kind)
    parts = re.split(r"[|:]", rest) if rest else []
    return ":".join([root, *map(_part, parts)] if root else ["Equity", "Other", _part(kind), *map(_part, parts)])


def _part(text: str) -> str:
    """A capital letter or digit, then letters, digits and hyphens: texts that are not so get a hash, to stay different."""
    if UPPER.fullmatch(text):
        return text
    if LOWER.fullmatch(text):
        return text[0].upper() + text[1:]
    bare = re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-") or "X"
    return f"{bare[0].upper()}{bare[1:]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _double_entry(found: Journal, head: list[str]) -> bytes:
    lines = [f"; {found.accounting_date}", *head]
    for entry in found.entries:
        lines += [
            "",
            f"{found.accounting_date} * {entry.code}",
            f"    ; service_date: {entry.service_date}",
            f"    ; postings: {entry.count}",
            f"    {account_name(entry.debit)}  {_amount(entry.amount, found)}",
            f"    {account_name(entry.credit)}  {_amount(-entry.amount, found)}",
        ]
    lines += ["", f"{found.accounting_date} * balances"]
    lines += [
        f"    {account_name(account)}  {_amount(0, found)} = {_amount(balance, found)}"
        for account, balance in found.balances.items()
    ]
    return _text(lines)


def _amount(amount: int, found: Journal, tolerance: str = "") -> str:
    whole, minor = divmod(abs(amount), 10**found.minor_digits)
    digits = f"{whole}.{minor:0{found.minor_digits}}" if found.minor_digits else f"{whole}"
    return f"{'-' if amount < 0 else ''}{digits}{tolerance} {found.currency}"


def _text(lines: Sequence[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode()
