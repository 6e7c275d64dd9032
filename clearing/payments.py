"""Payments: what a published net position asks the bank to pay, or its party to pay in.

Pure. One payment a party and closing; its id is a function of both, so that a rerun asks for the same payment, and a bank that
sees an id twice pays once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import msgspec

from clearing.netting import OWN_POSITIONS


class Payment(msgspec.Struct, frozen=True, order=True):
    """`amount` in minor units: positive is paid to the party, negative is due from it."""

    accounting_date: str
    party_id: str
    payment_id: str
    """At most 35 upper-case letters and digits: the end-to-end id and the reference on the bank's lines."""
    amount: int


def payment_id(accounting_date: str, party_id: str) -> str:
    """`MT` + date + 16 hexadecimal digits of a hash over date and party, in upper case."""
    digest = hashlib.sha256(f"payment/{accounting_date}/{party_id}".encode()).hexdigest()[:16]
    return f"MT{accounting_date.replace('-', '')}{digest.upper()}"


def payments_of(accounting_date: str, positions: Mapping[str, int]) -> list[Payment]:
    """The payments of a closing's net positions, by party."""
    return [
        Payment(accounting_date, party, payment_id(accounting_date, party), amount)
        for party, amount in sorted(positions.items())
        if amount and party not in OWN_POSITIONS
    ]
