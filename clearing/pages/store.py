"""What operators' pages ask of the store beside what clearing asks itself. Nothing is written."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from sqlalchemy import Connection, func, select

from clearing.agreements import LEG_KINDS
from clearing.bank.store import bank_lines, bank_matches
from clearing.store import statements
from fare_engine.store.schema import batches, closes, legs, lines, quarantine


class LateLine(msgspec.Struct, frozen=True):
    """What a leg of an earlier date brought its operator under a closed date, by the fact that moved it."""

    accounting_date: str
    service_date: str
    leg_id: str
    booked_for: str
    amount: int
    """Of riders and of others, in minor units; caps are shared, and no part of it."""
    reversed: bool
    """Whether all that moved was taken back."""


def document_names(connection: Connection, accounting_date: str) -> set[str]:
    """Which documents of a date were published."""
    return set(connection.execute(select(statements.c.name).where(statements.c.accounting_date == accounting_date)).scalars())


def frozen_at(connection: Connection, accounting_date: str) -> int:
    """The end of a closed date."""
    return int(connection.execute(select(closes.c.frozen_at).where(closes.c.accounting_date == accounting_date)).scalar_one())


def closed_at(connection: Connection, service_date: str) -> int | None:
    """The end of the first closed date at or after a service date: what comes in later is late."""
    this = closes.c.accounting_date >= service_date
    found: int | None = connection.execute(
        select(closes.c.frozen_at).where(this).order_by(closes.c.accounting_date).limit(1)
    ).scalar_one_or_none()
    return found


def moved_by(connection: Connection, payment_id: str) -> list[tuple[str, int, str]]:
    """(booked on, amount, line) of the bank's lines that are a payment; positive was paid out."""
    joined = select(bank_lines.c.booked_on, bank_matches.c.amount, bank_matches.c.line_id).join(
        bank_lines, bank_lines.c.line_id == bank_matches.c.line_id
    )
    these = joined.where(bank_matches.c.payment_id == payment_id).order_by(bank_lines.c.booked_on, bank_matches.c.line_id)
    return [(row[0], int(row[1]), row[2]) for row in connection.execute(these)]


def late_lines(connection: Connection, operator_id: str, accounting_date: str) -> Iterator[LateLine]:
    """What legs of earlier dates brought an operator under a date."""
    columns = (lines.c.service_date, lines.c.leg_id, lines.c.booked_for)
    these = (lines.c.accounting_date == accounting_date) & (lines.c.service_date < accounting_date)
    rows = connection.execute(
        select(*columns, func.sum(lines.c.amount + lines.c.funded), func.min(lines.c.generation % 2))
        .where(these, lines.c.operator_id == operator_id, lines.c.kind.in_(LEG_KINDS))
        .group_by(*columns)
        .order_by(*columns)
    )
    for service_date, leg_id, booked_for, amount, reversed_ in rows:
        yield LateLine(accounting_date, service_date, leg_id, booked_for, int(amount), bool(reversed_))


def began_at(connection: Connection, leg_id: str) -> int | None:
    """When a leg began, as it is booked now."""
    latest = select(legs.c.began_at).where(legs.c.leg_id == leg_id).order_by(legs.c.generation.desc()).limit(1)
    found: int | None = connection.execute(latest).scalar_one_or_none()
    return found


def received_at(connection: Connection, device_id: str, epoch: str, sequence: int) -> int | None:
    """When a tap came in; None: it is not held."""
    held = (batches.c.device_id == device_id) & (batches.c.epoch == epoch)
    within = (batches.c.first_sequence <= sequence) & (batches.c.last_sequence >= sequence)
    found: int | None = connection.execute(select(batches.c.received_at).where(held, within).limit(1)).scalar_one_or_none()
    return found


def was_released(connection: Connection, device_id: str, epoch: str, sequence: int) -> bool:
    """Whether a tap was set aside first."""
    same = (quarantine.c.device_id == device_id) & (quarantine.c.epoch == epoch) & (quarantine.c.sequence == sequence)
    return connection.execute(select(quarantine.c.reason).where(same, quarantine.c.released_at.is_not(None))).first() is not None
