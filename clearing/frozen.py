"""What a freeze writes down, so that a close says the same however often it is begun: how many taps there are, what is open
without a price or a decision, and how far each device was heard of.

All of it is taken in the transaction of the freeze. Whether the date may be published is decided from it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from fractions import Fraction

import msgspec
from sqlalchemy import BigInteger, Column, Connection, PrimaryKeyConstraint, String, Table, func, select

from fare_engine import booking
from fare_engine.errors import CloseError
from fare_engine.gaps import find_gaps
from fare_engine.pricing.lines import began
from fare_engine.service_day import to_date
from fare_engine.store import receipts, registry, travellers
from fare_engine.store.schema import batches, closes, drifts, metadata, quarantine
from fare_engine.store.schema import travellers as travellers_table
from fare_engine.tariff.compile import CompiledTariff

open_items = Table(  # what had no price or no decision when a date was frozen
    "open_items",
    metadata,
    Column("accounting_date", String(10), nullable=False),
    Column("kind", String, nullable=False),
    Column("party_id", String, nullable=False),
    Column("reason", String, nullable=False),
    Column("owner", String, nullable=False),
    Column("count", BigInteger, nullable=False),
    Column("of_date", BigInteger, nullable=False),  # how many of them came up under this date
    Column("since", BigInteger, nullable=False),  # of the oldest, milliseconds UTC
    PrimaryKeyConstraint("accounting_date", "kind", "party_id", "reason"),
)

device_positions = Table(  # how far each device was heard of when a date was frozen
    "device_positions",
    metadata,
    Column("accounting_date", String(10), nullable=False),
    Column("device_id", String, nullable=False),
    Column("operator_id", String, nullable=False),
    Column("epoch", String, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("last_contact", BigInteger, nullable=False),
    Column("missing", BigInteger, nullable=False),  # taps known to exist and not held
    PrimaryKeyConstraint("accounting_date", "device_id"),
)

AGAINST_PUBLISHING = ("unknown_price", "quarantined", "drift", "failed", "disputed")
"""Kinds that count against the share above which a date is not published. Missing taps have their own section: nobody knows
yet what they are worth, and their number is the device's word."""


class OpenItems(msgspec.Struct, frozen=True, order=True):
    """Items of one kind and reason, `of_date` of them new under the date. `owner` is who must do something about them."""

    kind: str
    party_id: str
    reason: str
    owner: str
    count: int
    of_date: int
    since: int


class DevicePosition(msgspec.Struct, frozen=True):
    """The last tap that is held of a device, when it was heard of last, and how many of its taps are known to be missing."""

    device_id: str
    operator_id: str
    epoch: str
    sequence: int
    last_contact: int
    missing: int


def freeze(connection: Connection, accounting_date: str, tariff: CompiledTariff, disputed: Iterable[OpenItems]) -> None:
    """Write down what is open and how far devices were heard of. Part of the freeze's transaction."""
    devices = {device.device_id: device.operator_id for device in registry.list_devices(connection)}
    streams = receipts.all_streams(connection)
    gaps: dict[str, list[int]] = {}
    for gap in find_gaps(streams):
        gaps.setdefault(gap.device_id, []).append(gap.taps)
    latest = {stream.device_id: stream for stream in sorted(streams, key=lambda one: (one.last_contact, one.begun_at, one.epoch))}
    positions = [
        {
            "accounting_date": accounting_date,
            "device_id": device_id,
            "operator_id": devices[device_id],
            "epoch": stream.epoch,
            "sequence": stream.acknowledged_through,
            "last_contact": stream.last_contact,
            "missing": sum(gaps.get(device_id, ())),
        }
        for device_id, stream in sorted(latest.items())
        if device_id in devices
    ]
    if positions:
        connection.execute(device_positions.insert(), positions)
    found = [
        *_quarantined(connection, devices, accounting_date),
        *_unpriced(connection, tariff, accounting_date),
        *_stuck(connection),
        *disputed,
    ]
    for gap in find_gaps(streams):
        operator_id = devices.get(gap.device_id, "")
        place = f"{gap.device_id}/{gap.epoch}"
        found.append(OpenItems("missing", operator_id, place, operator_id, gap.taps, gap.taps, gap.known_since))
    rows = [{"accounting_date": accounting_date, **msgspec.structs.asdict(item)} for item in sorted(found)]
    if rows:
        connection.execute(open_items.insert(), rows)


class _Count(msgspec.Struct):
    count: int = 0
    of_date: int = 0
    since: int = 1 << 62

    def add(self, count: int, since: int, *, new: bool) -> None:
        self.count += count
        self.of_date += count if new else 0
        self.since = min(self.since, since)


def _quarantined(connection: Connection, devices: dict[str, str], date: str) -> Iterator[OpenItems]:
    columns = (quarantine.c.device_id, quarantine.c.reason, quarantine.c.accounting_date)
    rows = connection.execute(
        select(*columns, func.count(), func.min(quarantine.c.received_at))
        .where(quarantine.c.released_at.is_(None), quarantine.c.accounting_date <= date)
        .group_by(*columns)
    )
    found: dict[tuple[str, str], _Count] = defaultdict(_Count)
    for device_id, reason, on, count, since in rows:
        found[devices.get(device_id, ""), reason].add(count, since, new=on == date)
    for (operator_id, reason), of in found.items():
        yield OpenItems("quarantined", operator_id, reason, "clearing house", of.count, of.of_date, of.since)


def _unpriced(connection: Connection, tariff: CompiledTariff, date: str) -> Iterator[OpenItems]:
    found: dict[tuple[str, str], _Count] = defaultdict(_Count)
    for name in travellers.list_unpriced(connection):
        row = travellers.find_traveller(connection, name)
        for leg in booking.price(tariff, row.record, row.record.as_of).legs.values() if row is not None else ():
            on = to_date(leg.service_day).isoformat()
            if leg.status == "unknown" and on <= date:
                found[leg.operator_id or "", leg.reason].add(1, began(leg), new=on == date)
    for (operator_id, reason), of in found.items():
        yield OpenItems("unknown_price", operator_id, reason[:200], "fare planners", of.count, of.of_date, of.since)


def _stuck(connection: Connection) -> Iterator[OpenItems]:
    held = select(func.count(), func.min(drifts.c.found_at)).where(drifts.c.decided_at.is_(None))
    failing = travellers_table.c.dirty_since.is_not(None) & (travellers_table.c.dirty_reason != "drift")
    failed = select(func.count(), func.min(travellers_table.c.dirty_since)).where(failing)
    for kind, reason, statement in (
        ("drift", "prices changed though no fact explains it", held),
        ("failed", "the fold of a traveller failed", failed),
    ):
        count, since = connection.execute(statement).one()
        if count:
            yield OpenItems(kind, "", reason, "clearing house", count, count, since)


def list_open(connection: Connection, accounting_date: str) -> list[OpenItems]:
    """What was open when a date was frozen."""
    rows = connection.execute(select(open_items).where(open_items.c.accounting_date == accounting_date))
    return sorted(OpenItems(*row[1:]) for row in rows)


def list_positions(connection: Connection, accounting_date: str) -> list[DevicePosition]:
    """How far each device was heard of when a date was frozen, by device."""
    rows = connection.execute(
        select(device_positions)
        .where(device_positions.c.accounting_date == accounting_date)
        .order_by(device_positions.c.device_id)
    )
    return [DevicePosition(*row[1:]) for row in rows]


def taps_under(connection: Connection, accounting_date: str) -> int:
    """How many taps were received between the freeze before and this one."""
    through = select(closes.c.batches_through).where(closes.c.accounting_date == accounting_date).scalar_subquery()
    before = select(func.coalesce(func.max(closes.c.batches_through), 0)).where(closes.c.accounting_date < accounting_date)
    statement = select(func.coalesce(func.sum(batches.c.last_sequence - batches.c.first_sequence + 1), 0)).where(
        batches.c.batch_id > before.scalar_subquery(), batches.c.batch_id <= through
    )
    return int(connection.execute(statement).scalar_one())


def check_open(items: Iterable[OpenItems], taps: int, most: Fraction) -> None:
    """CloseError, which names them, where more is open than may be when a date is published."""
    against = [item for item in items if item.kind in AGAINST_PUBLISHING and item.of_date]
    count = sum(item.of_date for item in against)
    if count > most * taps:
        named = "; ".join(
            f"{item.of_date} {item.kind} {item.reason} ({item.party_id or 'all'}, for {item.owner})" for item in against[:20]
        )
        raise CloseError(
            f"not published: {count} items of {taps} taps are open, more than {float(most):.2%}: {named}. "
            "Decide them, or publish all the same with --despite and a reason"
        )
