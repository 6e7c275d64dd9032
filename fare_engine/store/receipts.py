"""Streams, batches and quarantine: what terminals sent, as received, and how far it is acknowledged."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, func, insert, select, tuple_, update

from fare_engine.ids import tap_id
from fare_engine.store import schema
from fare_engine.tap_format import TapEvent, TapFormatError, reopen_message


@dataclass(frozen=True, slots=True)
class Stream:
    """How far one epoch of one device is acknowledged, and the chain's head there."""

    device_id: str
    epoch: str
    acknowledged_through: int
    head: bytes


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """A message as received, with the sequences that were new in it and the answers given."""

    device_id: str
    epoch: str
    first_sequence: int
    last_sequence: int
    received_at: int
    message: bytes
    answers: bytes


@dataclass(frozen=True, slots=True)
class QuarantinedTap:
    """A tap that cannot be used, with its reason: a stable word and a sentence."""

    device_id: str
    epoch: str
    sequence: int
    received_at: int
    reason: str
    detail: str
    service_date: str
    accounting_date: str
    waits_for: str | None = None


_streams = schema.streams
_FIND_STREAMS = (
    select(_streams.c.device_id, _streams.c.epoch, _streams.c.acknowledged_through, _streams.c.head)
    .where(tuple_(_streams.c.device_id, _streams.c.epoch).in_(bindparam("keys", expanding=True)))
    .order_by(_streams.c.device_id, _streams.c.epoch)
    .with_for_update()
)
_BEGIN_STREAM = insert(_streams)
_ADVANCE_STREAM = (
    update(_streams)
    .where(_streams.c.device_id == bindparam("d"), _streams.c.epoch == bindparam("e"))
    .values(acknowledged_through=bindparam("through"), head=bindparam("new_head"), last_contact=bindparam("at"))
)
_ADD_BATCH = insert(schema.batches)
_quarantine = schema.quarantine
_FIND_WAITING = select(_quarantine.c.device_id, _quarantine.c.epoch, _quarantine.c.sequence).where(
    _quarantine.c.waits_for.in_(bindparam("ids", expanding=True)), _quarantine.c.released_at.is_(None)
)
_SUCCESSORS = select(_streams.c.epoch).where(
    _streams.c.device_id == bindparam("device"), _streams.c.predecessor == bindparam("before")
)
# Statements of the tap path are built once: building one costs as much as running it.


def find_streams(connection: Connection, keys: Collection[tuple[str, str]]) -> dict[tuple[str, str], Stream]:
    """The streams of some (device, epoch) pairs that are known, locked in order where the database locks rows."""
    rows = connection.execute(_FIND_STREAMS, {"keys": sorted(keys)})
    return {(row.device_id, row.epoch): Stream(*row) for row in rows}


def find_successor(connection: Connection, device_id: str, predecessor: str) -> str | None:
    """The epoch that a device began after another one, or None."""
    found: str | None = connection.execute(_SUCCESSORS, {"device": device_id, "before": predecessor}).scalar()
    return found


def begin_streams(connection: Connection, rows: Iterable[dict[str, object]]) -> None:
    """New epochs."""
    found = list(rows)
    if found:
        connection.execute(_BEGIN_STREAM, found)


def advance_streams(connection: Connection, streams: Iterable[Stream], at: int) -> None:
    """Streams are acknowledged further."""
    rows = [{"d": s.device_id, "e": s.epoch, "through": s.acknowledged_through, "new_head": s.head, "at": at} for s in streams]
    if rows:
        connection.execute(_ADVANCE_STREAM, rows)


def add_batches(connection: Connection, batches: Iterable[StoredBatch]) -> None:
    """Messages with new taps in them."""
    rows = [
        {
            "device_id": batch.device_id,
            "epoch": batch.epoch,
            "first_sequence": batch.first_sequence,
            "last_sequence": batch.last_sequence,
            "received_at": batch.received_at,
            "message": batch.message,
            "answers": batch.answers,
        }
        for batch in batches
    ]
    if rows:
        connection.execute(_ADD_BATCH, rows)


def list_batches(
    connection: Connection, device_id: str, epoch: str, first_sequence: int, last_sequence: int
) -> list[StoredBatch]:
    """The stored messages that hold some sequences of a stream, in order."""
    table = schema.batches
    rows = connection.execute(
        select(table)
        .where(
            table.c.device_id == device_id,
            table.c.epoch == epoch,
            table.c.last_sequence >= first_sequence,
            table.c.first_sequence <= last_sequence,
        )
        .order_by(table.c.first_sequence)
    )
    return [StoredBatch(*tuple(row)[1:]) for row in rows]


def find_tap(connection: Connection, device_id: str, epoch: str, sequence: int) -> TapEvent | None:
    """A tap that is held, read from its message; None where it is not held or cannot be read."""
    for stored in list_batches(connection, device_id, epoch, sequence, sequence):
        try:
            return reopen_message(stored.message).decode(sequence)
        except TapFormatError:
            return None
    return None


def all_batches(connection: Connection) -> Iterable[StoredBatch]:
    """Every stored message, in the order of receipt."""
    rows = connection.execution_options(yield_per=1000).execute(select(schema.batches).order_by(schema.batches.c.batch_id))
    for row in rows:
        yield StoredBatch(*tuple(row)[1:])


def add_quarantined(connection: Connection, taps: Iterable[QuarantinedTap]) -> None:
    """Taps that were stored and acknowledged and cannot be used."""
    rows = [
        {
            "device_id": tap.device_id,
            "epoch": tap.epoch,
            "sequence": tap.sequence,
            "received_at": tap.received_at,
            "reason": tap.reason,
            "detail": tap.detail,
            "service_date": tap.service_date,
            "accounting_date": tap.accounting_date,
            "waits_for": tap.waits_for,
        }
        for tap in taps
    ]
    if rows:
        connection.execute(schema.quarantine.insert(), rows)


def find_waiting(connection: Connection, tap_ids: Collection[str]) -> list[TapEvent]:
    """Records in quarantine that wait for some taps, read from their messages."""
    rows = connection.execute(_FIND_WAITING, {"ids": sorted(tap_ids)}).all()
    found = [find_tap(connection, row.device_id, row.epoch, row.sequence) for row in rows]
    return [event for event in found if event is not None]


def release_quarantined(connection: Connection, events: Iterable[TapEvent], at: int) -> None:
    """Taps that could be used after all."""
    rows = [{"d": e.device_id, "e": e.epoch.hex(), "s": e.sequence, "at": at} for e in events]
    table = schema.quarantine
    if rows:
        connection.execute(
            update(table)
            .where(table.c.device_id == bindparam("d"), table.c.epoch == bindparam("e"), table.c.sequence == bindparam("s"))
            .values(released_at=bindparam("at")),
            rows,
        )


def list_quarantined(connection: Connection) -> list[QuarantinedTap]:
    """Everything in quarantine."""
    table = schema.quarantine
    waiting = select(table).where(table.c.released_at.is_(None))
    rows = connection.execute(waiting.order_by(table.c.device_id, table.c.epoch, table.c.sequence))
    return [QuarantinedTap(*tuple(row)[:-1]) for row in rows]


def list_released(connection: Connection) -> set[str]:
    """The ids of taps that left the quarantine."""
    table = schema.quarantine
    rows = connection.execute(select(table.c.device_id, table.c.epoch, table.c.sequence).where(table.c.released_at.is_not(None)))
    return {tap_id(row.device_id, row.epoch, row.sequence) for row in rows}


def count_held(connection: Connection, device_id: str, epoch: str) -> int:
    """How many taps of a stream the stored messages hold; each is in exactly one, so it equals the last sequence."""
    table = schema.batches
    each = table.c.last_sequence - table.c.first_sequence + 1
    statement = select(func.coalesce(func.sum(each), 0)).where(table.c.device_id == device_id, table.c.epoch == epoch)
    return int(connection.execute(statement).scalar_one())


def add_refused(
    connection: Connection, received_at: int, cause: str, detail: str, message_hash: str, evidence: bytes | None
) -> None:
    """A message that was refused whole; `evidence` is the message itself where it proves something."""
    connection.execute(
        schema.refused.insert(),
        {
            "received_at": received_at,
            "cause": cause,
            "detail": detail,
            "message_hash": message_hash,
            "message": evidence,
        },
    )


def count_acknowledged(connection: Connection) -> int:
    """How many taps are acknowledged, over all streams."""
    return int(connection.execute(select(func.coalesce(func.sum(schema.streams.c.acknowledged_through), 0))).scalar_one())
