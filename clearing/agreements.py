"""Agreements between operators, as dated data: which one shares a pool's money of a service date, and by which method.

`clearing.toml` stands in the city's folder; docs/clearing.md says what each field means."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from datetime import date
from pathlib import Path
from typing import Literal

import msgspec

from fare_engine.errors import CloseError, Fault, InputError


class Name(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What accountants read, in two languages."""

    vi: str
    en: str


class Agreement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One row: what it covers, how it shares, and between which dates (service dates, both included)."""

    agreement_id: str
    name: Name
    covers: Literal["legs", "caps", "products"]
    method: Literal["own_leg", "day_fares", "use"]
    products: tuple[str, ...] = ()
    without_use: Mapping[str, int] = {}
    """Method `use`: the weights for a day on which nobody rode with the product."""
    valid_from: date
    valid_to: date | None = None
    note: str = ""

    def holds_on(self, service_date: str) -> bool:
        """Whether the agreement shares what is for a service date."""
        until = self.valid_to.isoformat() if self.valid_to else "9999-12-31"
        return self.valid_from.isoformat() <= service_date <= until


class Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file's own version, which statements name."""

    agreement_version: str
    currency: str


class Agreements(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole `clearing.toml`."""

    clearing: Head
    agreements: tuple[Agreement, ...]

    def find(self, pool: str, service_date: str) -> Agreement:
        """The agreement for a pool's money of a service date; the first that fits. CloseError where there is none."""
        covers, product = _what(pool)
        for agreement in self.agreements:
            if agreement.covers == covers and agreement.holds_on(service_date):
                if covers == "products" and product not in agreement.products:
                    continue
                return agreement
        raise CloseError(f"no agreement covers the pool {pool} on {service_date}")

    def covers(self, agreement_id: str) -> str:
        """What an agreement covers."""
        return next(row.covers for row in self.agreements if row.agreement_id == agreement_id)


METHODS = {"legs": "own_leg", "caps": "day_fares", "products": "use"}


def load_agreements(path: Path, parties: Collection[str], currency: str) -> Agreements:
    """The checked agreements of a file. InputError names every fault with its place and value."""
    try:
        found = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Agreements)
    except FileNotFoundError:
        raise InputError([Fault(str(path), None, "the file is missing")]) from None
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise InputError([Fault(path.name, str(error), "not a clearing.toml")]) from None
    faults = []
    if found.clearing.currency != currency:
        faults.append(Fault(f"{path.name}: clearing.currency", found.clearing.currency, f"the tariff's is {currency}"))
    for number, row in enumerate(found.agreements):
        faults += _faults(row, f"{path.name}: agreements[{number}] {row.agreement_id}", parties)
    if faults:
        raise InputError(faults)
    return found


def _faults(row: Agreement, place: str, parties: Collection[str]) -> list[Fault]:
    faults = []
    if METHODS[row.covers] != row.method:
        faults.append(Fault(f"{place} method", row.method, f"{row.covers} are shared by {METHODS[row.covers]}"))
    if row.valid_to and row.valid_to < row.valid_from:
        faults.append(Fault(f"{place} valid_to", str(row.valid_to), "before valid_from"))
    for party, weight in row.without_use.items():
        if party not in parties:
            faults.append(Fault(f"{place} without_use", party, "names no party"))
        if weight < 0:
            faults.append(Fault(f"{place} without_use", weight, "a weight is below zero"))
    if row.method == "use" and not sum(row.without_use.values()):
        faults.append(Fault(f"{place} without_use", dict(row.without_use), "a day without rides would pay nobody"))
    return faults


def _what(pool: str) -> tuple[str, str]:
    """What kind of pool it is, and the product in it (ledger.pool_of makes the name)."""
    _, where, product = pool.split("|")
    if where.startswith("cap:"):
        return "caps", product
    return ("products", product) if where in ("release", "expiry") else ("legs", product)
