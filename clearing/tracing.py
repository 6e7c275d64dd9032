"""From any figure of a published statement down to the signed taps that it sums.

A statement's row is found again by its number in the published bytes; what it sums is asked of the frozen rows under its date,
and must give the row's amount to the unit. Shared rows are followed traveller by traveller, with the exact part of each. Nothing
is written."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from fractions import Fraction

import msgspec
from sqlalchemy import ColumnElement, Connection, Row, and_, or_, select

from clearing import seals, share_store, statements, store
from clearing.agreements import LEG_KINDS, RIDERS
from clearing.bags import corrections
from clearing.close import Rules
from clearing.sharing import bag_of
from fare_engine.errors import CloseError, NotFoundError
from fare_engine.money import PARTS, nearest
from fare_engine.store import receipts, registry
from fare_engine.store.schema import legs, lines, postings, quarantine


class Traced(msgspec.Struct, frozen=True):
    """One thing that a figure sums: a line, a leg, a posting, or one traveller's part of something shared."""

    what: str
    key: str
    """A line's transaction, a leg's id, a posting's transaction, or a traveller."""
    amount: int
    """In minor units; of a part, to the nearest."""
    detail: str = ""
    legs: tuple[str, ...] = ()
    taps: tuple[str, ...] = ()


class Trace(msgspec.Struct, frozen=True):
    """A row of a statement and what it sums."""

    accounting_date: str
    party_id: str
    row: dict[str, str]
    found: list[Traced]
    total: int
    """What they sum to, in minor units."""
    sha256: str
    """Of the statement as published."""


class SignedTap(msgspec.Struct, frozen=True):
    """A tap with the message that brought it: which of its device's keys signed it, and when it was received."""

    tap_id: str
    message: str
    """device/epoch/first–last sequence."""
    received_at: int
    public_key: str
    """In hexadecimal; empty: no key of the device signed it."""


def trace(connection: Connection, rules: Rules, accounting_date: str, party_id: str, number: int) -> Trace:
    """What a row of a published statement sums. NotFoundError for a statement or row that there is not; CloseError where its
    rows do not give its amount any more."""
    content = store.find_document(connection, accounting_date, f"{party_id}.csv")
    if content is None:
        raise NotFoundError(f"no statement {accounting_date}/{party_id}")
    rows = csv.DictReader(io.StringIO(content.decode()))
    row = next((row for row in rows if row["line"] == str(number)), None)
    if row is None:
        raise NotFoundError(f"the statement {accounting_date}/{party_id} has no line {number}")
    found = list(_sources(connection, rules, accounting_date, party_id, row))
    amount = int(row["amount"] or 0)
    total = sum(one.amount for one in found)
    if row["section"] == "shared":  # parts to the nearest unit; the exact sum is checked where they are made
        total = amount
    if row["section"] not in statements.OPEN and total != amount:
        raise CloseError(f"line {number} of {accounting_date}/{party_id} is {amount}, and its rows sum to {total}")
    return Trace(accounting_date, party_id, row, found, total, statements.digest(content))


def signed_taps(connection: Connection, tap_ids: Iterable[str]) -> Iterator[SignedTap]:
    """The messages that brought some taps, each checked against its device's keys."""
    for tap_id in tap_ids:
        device_id, epoch, sequence = tap_id.rsplit("/", 2)
        for stored in receipts.list_batches(connection, device_id, epoch, int(sequence), int(sequence)):
            message = f"{device_id}/{epoch}/{stored.first_sequence}-{stored.last_sequence}"
            key = seals.signing_key(connection, stored)
            yield SignedTap(tap_id, message, stored.received_at, key.hex() if key is not None else "")


# ---- what each section sums


def _sources(connection: Connection, rules: Rules, date: str, party: str, row: dict[str, str]) -> Iterator[Traced]:
    section = row["section"]
    if section in ("legs", "late", "borne"):
        yield from _lines(connection, date, party, row)
    elif section == "shared":
        yield from _shared(connection, rules, date, party, row)
    elif section in ("rides", "subsidies"):
        yield from _rides(connection, rules, date, party, row)
    elif section == "not_settled":
        yield from _quarantined(connection, date, party, row)
    elif section == "missing":
        yield Traced("missing taps", row["what"], 0, f"{row['count']} taps, known since {row['service_date']}")
    elif section == "opening":
        before = store.date_before(connection, date)
        yield Traced("closing balance", f"{before}/{party}", int(row["amount"]), "of the statement before")
    elif section in ("commissions", "rounding"):
        yield from _settled(connection, date, party, row)
    else:
        yield from _postings(connection, date, party, row)


def _lines(connection: Connection, date: str, party: str, row: dict[str, str]) -> Iterator[Traced]:
    """The lines that a row of own legs, or of what a bearer pays, sums."""
    this = (
        (lines.c.accounting_date == date)
        & (lines.c.service_date == row["service_date"])
        & (lines.c.kind == row["what"])
        & (lines.c.rule_id == row["rule_id"].removeprefix("'"))
        & (lines.c.network_id == (row["network_id"] or None))
    )
    sign = 1
    if row["section"] == "borne":
        this &= (lines.c.bearer == party) & (lines.c.funded != 0)
        column, sign = lines.c.funded, -1
    elif row["paid_by"] in (RIDERS, "cash"):
        cash = lines.c.payer.like("collector:%")
        this &= (lines.c.operator_id == party) & (cash if row["paid_by"] == "cash" else ~cash)
        column = lines.c.amount
    else:
        this &= (lines.c.operator_id == party) & (lines.c.bearer == row["paid_by"]) & (lines.c.funded != 0)
        column = lines.c.funded
    statement = select(lines, column.label("part")).where(this).order_by(lines.c.transaction_id)
    for found in connection.execute(statement):
        yield _traced_line(found, sign * found.part)


def _traced_line(found: Row[tuple[object, ...]], amount: int) -> Traced:
    word = "reversed" if found.generation % 2 else "booked"
    detail = f"{found.kind} {found.rule_id} {word} by {found.booked_for}, tariff {found.version_id}"
    return Traced("line", found.transaction_id, amount, detail, (found.leg_id,), _taps_of(found.leg_id, found.cause))


def _taps_of(*names: str) -> tuple[str, ...]:
    """Which of some names are taps' (device/epoch/sequence)."""
    taps = dict.fromkeys(name for name in names if name.count("/") >= 2 and name.rpartition("/")[2].isdigit())
    return tuple(taps)


def _shared(connection: Connection, rules: Rules, date: str, party: str, row: dict[str, str]) -> Iterator[Traced]:
    """Each traveller's exact part, or each day's of a product, of something that several share."""
    if row["what"] in ("release", "expiry"):
        yield from _product_days(connection, rules, date, party, row)
        return
    cap = row["what"] == "cap"
    which = (
        and_(lines.c.kind == "cap", lines.c.rule_id == row["rule_id"].removeprefix("'"))
        if cap
        else and_(lines.c.kind.in_(LEG_KINDS), lines.c.network_id == row["network_id"])
    )
    statement = select(lines.c.traveller_id).where(lines.c.accounting_date == date, which).distinct()
    names = set(connection.execute(statement).scalars())
    names |= share_store.moved_late(connection, date) | share_store.long_travellers(connection, date)
    before = store.date_before(connection, date)
    exact = Fraction(0)
    for name, parts, involved in _parts_by_traveller(connection, rules, names, date, before, party, row):
        exact += parts
        if parts:
            yield Traced("part", name, nearest(parts), f"exactly {Fraction(parts, PARTS)}", involved, _taps_of(*involved))
    if nearest(int(exact)) != int(row["amount"]):
        raise CloseError(f"line {row['line']} of {date}/{party} is {row['amount']}, and its parts sum to {exact / PARTS}")


def _parts_by_traveller(
    connection: Connection, rules: Rules, names: Iterable[str], date: str, before: str | None, party: str, row: dict[str, str]
) -> Iterator[tuple[str, int, tuple[str, ...]]]:
    agreements, caps = rules.agreements, rules.caps
    for name, record in share_store.named_records(connection, set(names)):
        parts = 0
        involved: dict[str, None] = {}
        for through, sign in ((date, 1), (before, -1)):
            if through is None:
                continue
            held, rides = bag_of(record, through)
            for (pool, agreement), shares in corrections(held, rides, agreements, caps, through).items():
                if agreement == row["agreement_id"] and _is_of(pool, row):
                    parts += sign * shares.get(party, 0)
            for line in held:
                if row["what"] == "cap" and line.kind == "cap" and line.rule_id == row["rule_id"] and line.operator_id == party:
                    parts += sign * PARTS * (line.amount if row["paid_by"] == RIDERS else line.funded)
                involved[line.leg_id] = None
        yield name, parts, tuple(involved)


def _is_of(pool: str, row: dict[str, str]) -> bool:
    debtor, where, product = pool.split("|")
    paid_by = "products" if debtor.startswith("product:") else RIDERS if debtor == "rider" else debtor
    if paid_by != row["paid_by"]:
        return False
    if row["what"] == "cap":
        return where == f"cap:{row['rule_id']}"
    return where == row["network_id"] and product == (row["rule_id"] or "single")


def _product_days(connection: Connection, rules: Rules, date: str, party: str, row: dict[str, str]) -> Iterator[Traced]:
    """What a product released and whose rides it paid, as the close kept it; the sale's and rides' lines stand beside."""
    product = row["rule_id"]
    bearer = f"product:{product}"
    this = (lines.c.accounting_date == date) & (lines.c.bearer == bearer)
    statement = (
        select(lines).where(this, or_(lines.c.kind == row["what"], lines.c.kind == "product")).order_by(lines.c.transaction_id)
    )
    for found in connection.execute(statement):
        amount = found.funded if found.kind == row["what"] else 0
        yield _traced_line(found, amount)
    yield Traced("agreement", row["agreement_id"], 0, rules.agreements.row(row["agreement_id"]).name.en)


def _rides(connection: Connection, rules: Rules, date: str, party: str, row: dict[str, str]) -> Iterator[Traced]:
    """The legs for each of which an amount is paid."""
    name, operator_id = row["rule_id"], row["paid_by"]
    this = (legs.c.accounting_date == date) & (legs.c.operator_id == operator_id)
    for found in connection.execute(select(legs).where(this).order_by(legs.c.movement_id)):
        amounts = rules.agreements.amounts_for(found.network_id, found.route_id, found.rider_category, found.service_date)
        for rate in (amount for word, known, _, amount in amounts if (word, known) == (row["what"], name)):
            sign = (-1 if found.generation % 2 else 1) * (1 if party == operator_id else -1)
            detail = f"{found.persons} persons on {found.network_id} {found.route_id or ''}, {rate} each"
            yield Traced("leg", found.leg_id, sign * rate * found.persons, detail, (found.leg_id,), _taps_of(found.leg_id))


def _settled(connection: Connection, date: str, party: str, row: dict[str, str]) -> Iterator[Traced]:
    """Settlements that a row of fees, or of rounding, comes from."""
    if row["section"] == "rounding":
        yield Traced("rounding", party, int(row["amount"]), "what whole units are above the exact shares of all pools")
        return
    for pool, agreement, who, amount in store.list_settlements(connection, date):
        if who == party and agreement == row["agreement_id"] and pool == f"fee|{row['rule_id']}|{row['paid_by']}":
            yield Traced("settlement", pool, amount, agreement)


def _postings(connection: Connection, date: str, party: str, row: dict[str, str]) -> Iterator[Traced]:
    """Postings on a party's account that are neither lines' nor shares."""
    words = [word for word, section in statements.ACCOUNT_SECTIONS.items() if section == row["section"]]
    accounts = [f"{word}:{party}" for word in words] or [f"net:{party}"]
    this: ColumnElement[bool] = (postings.c.accounting_date == date) & (postings.c.code == row["what"].upper())
    sided = or_(postings.c.debit.in_(accounts), postings.c.credit.in_(accounts))
    for found in connection.execute(select(postings).where(this, sided).order_by(postings.c.transaction_id, postings.c.number)):
        amount = found.amount if found.credit in accounts else -found.amount
        yield Traced("posting", found.transaction_id, amount, f"{found.code} {found.debit} → {found.credit}")


def _quarantined(connection: Connection, date: str, party: str, row: dict[str, str]) -> Iterator[Traced]:
    """The taps that were set aside for a reason, up to the date."""
    devices = {one.device_id for one in registry.list_devices(connection) if one.operator_id == party}
    this = (quarantine.c.reason == row["what"]) & (quarantine.c.accounting_date <= date)
    for found in connection.execute(select(quarantine).where(this).order_by(quarantine.c.received_at)):
        if found.device_id in devices:
            tap = f"{found.device_id}/{found.epoch}/{found.sequence}"
            yield Traced("tap", tap, 0, found.detail, (), (tap,))
