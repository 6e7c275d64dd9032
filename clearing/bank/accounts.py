"""Bank accounts: the clearing house's own and each party's, as data.

`payments.toml` stands in the city's folder; docs/bank-files.md says what each field means. An account has a number and its
bank's BIC; there are countries without IBAN."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from fare_engine.errors import Fault, InputError
from fare_engine.tariff.model import Party

FILE = "payments.toml"
BIC = re.compile(r"[A-Z0-9]{4}[A-Z]{2}[A-Z0-9]{2}([A-Z0-9]{3})?")
NUMBER = re.compile(r"[A-Za-z0-9]{4,34}")
"""An account's number: at most 34 letters and digits (ISO 20022 Max34Text)."""
MAX_NAME = 140


class Account(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One bank account."""

    holder: str
    bank_bic: str
    number: str


class PartyAccount(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a party is paid; `holder` by default is the party's name."""

    party_id: str
    bank_bic: str
    number: str
    holder: str = ""


class Head(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file's own version, and the currency of all its accounts."""

    payments_version: str
    currency: str


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    payments: Head
    clearing_house: Account
    parties: tuple[PartyAccount, ...]


class Accounts(msgspec.Struct, frozen=True, kw_only=True):
    """A whole `payments.toml`, with the names of the parties filled in."""

    currency: str
    own: Account
    parties: Mapping[str, Account]


def load_accounts(path: Path, parties: Mapping[str, Party], currency: str) -> Accounts:
    """The checked accounts of a file. InputError names every fault with its place and value."""
    try:
        found = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8-sig")), _File)
    except FileNotFoundError:
        raise InputError([Fault(str(path), None, "the file is missing")]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise InputError([Fault(path.name, str(error), f"not a {FILE}")]) from None
    faults = _account_faults(found.clearing_house, f"{path.name}: clearing_house")
    if found.payments.currency != currency:
        faults.append(Fault(f"{path.name}: payments.currency", found.payments.currency, f"the tariff's is {currency}"))
    if not found.clearing_house.holder.strip():
        faults.append(Fault(f"{path.name}: clearing_house holder", found.clearing_house.holder, "is empty"))
    taken = {found.clearing_house.number: "clearing_house"}
    accounts: dict[str, Account] = {}
    for number, row in enumerate(found.parties):
        place = f"{path.name}: parties[{number}] {row.party_id}"
        party = parties.get(row.party_id)
        if party is None:
            faults.append(Fault(f"{place} party_id", row.party_id, "names no party"))
            continue
        if row.party_id in accounts:
            faults.append(Fault(f"{place} party_id", row.party_id, "has an account already"))
        if row.number in taken:
            faults.append(Fault(f"{place} number", row.number, f"is the account of {taken[row.number]}"))
        account = Account(holder=row.holder or party.name_vi, bank_bic=row.bank_bic, number=row.number)
        faults += _account_faults(account, place)
        taken[row.number] = row.party_id
        accounts[row.party_id] = account
    if faults:
        raise InputError(faults)
    return Accounts(currency=currency, own=found.clearing_house, parties=accounts)


def _account_faults(account: Account, place: str) -> list[Fault]:
    faults = []
    if not BIC.fullmatch(account.bank_bic):
        faults.append(Fault(f"{place} bank_bic", account.bank_bic, "not a BIC of 8 or 11 letters and digits"))
    if not NUMBER.fullmatch(account.number):
        faults.append(Fault(f"{place} number", account.number, "not 4 to 34 letters and digits"))
    if len(account.holder) > MAX_NAME:
        faults.append(Fault(f"{place} holder", account.holder, f"longer than {MAX_NAME} characters"))
    return faults
