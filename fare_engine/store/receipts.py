"""Streams, batches and quarantine: what terminals sent, as received, and how far it is acknowledged."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, bindparam, func, insert, select, tuple_, update

from fare_engine.ids import tap_id
from fare_engine.store import schema
from fare_engine.store.database import cipher_of
from fare_engine.store.hashes import batch_hash, hashed
from fare_engine.store.many import execute_many, find_many
from fare_engine.tap_format import TapEvent, TapFormatError, reopen_message


@dataclass(frozen=True, slots=True)
class Stream:
    """How far one epoch of one device is acknowledged, and the chain's head there."""

    device_id: str
    epoch: str
    acknowledged_through: int
    head: bytes


@dataclass(frozen=True, slots=True)
class StreamRow:
    """All that is held of an epoch. The predecessor is as the device says it ended."""

    device_id: str
    epoch: str
    acknowledged_through: int
    head: bytes
    predecessor: str | None
    predecessor_last: int | None
    predecessor_head: bytes | None
    begun_at: int
    last_contact: int


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """A message as received, with the sequences that were new in it and the answers given. At rest it is encrypted."""

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


_CBOR_PAIR = b"\x82"
_EVIDENCE = b"evidence"
_streams = schema.streams
_FIND_STREAMS = (
    select(_streams.c.device_id, _streams.c.epoch, _streams.c.acknowledged_through, _streams.c.head)
    .where(
        _streams.c.device_id.in_(bindparam("devices", expanding=True)),
        tuple_(_streams.c.device_id, _streams.c.epoch).in_(bindparam("keys", expanding=True)),
    )
    .order_by(_streams.c.device_id, _streams.c.epoch)
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
_STREAMS_OF_DEVICES = (
    select(_streams)
    .where(_streams.c.device_id.in_(bindparam("ids", expanding=True)))
    .order_by(_streams.c.device_id, _streams.c.epoch)
)
_alarms = schema.alarms
_ALARM = (_alarms.c.device_id, _alarms.c.kind, _alarms.c.detail)
_SAME_ALARMS = select(*_ALARM).where(
    _alarms.c.device_id.in_(bindparam("devices", expanding=True)), tuple_(*_ALARM).in_(bindparam("keys", expanding=True))
)
_ADD_ALARM = insert(_alarms)
# Statements of the tap path are built once: building one costs as much as running it.


def find_streams(connection: Connection, keys: Collection[tuple[str, str]]) -> dict[tuple[str, str], Stream]:
    """The streams of some (device, epoch) pairs that are known. Whoever writes them holds their devices' locks."""
    rows = find_many(connection, _FIND_STREAMS, **_keyed(keys))
    return {(device_id, epoch): Stream(device_id, epoch, through, head) for device_id, epoch, through, head in rows}


def _keyed(keys: Collection[tuple[str, ...]]) -> dict[str, list[Any]]:
    """Rows by several columns, the first of them the device. SQLite finds no pair by an index; devices it does."""
    return {"keys": sorted(keys), "devices": sorted({key[0] for key in keys})}


def begin_streams(connection: Connection, rows: Iterable[dict[str, object]]) -> None:
    """New epochs."""
    found = list(rows)
    execute_many(connection, _BEGIN_STREAM, found)


def advance_streams(connection: Connection, streams: Iterable[Stream], at: int) -> None:
    """Streams are acknowledged further."""
    rows = [{"d": s.device_id, "e": s.epoch, "through": s.acknowledged_through, "new_head": s.head, "at": at} for s in streams]
    execute_many(connection, _ADVANCE_STREAM, rows)


def add_batches(connection: Connection, batches: Iterable[StoredBatch]) -> None:
    """Messages with new taps in them."""
    cipher = cipher_of(connection)
    rows = []
    for batch in batches:
        row: dict[str, object] = {
            "device_id": batch.device_id,
            "epoch": batch.epoch,
            "first_sequence": batch.first_sequence,
            "last_sequence": batch.last_sequence,
            "received_at": batch.received_at,
            "answers": batch.answers,
        }
        row["row_hash"] = batch_hash(row, batch.message)
        row["message"] = cipher.seal(batch.message, message_place(batch.device_id, batch.epoch, batch.first_sequence))
        rows.append(row)
    execute_many(connection, _ADD_BATCH, rows)


def message_place(device_id: str, epoch: str, first_sequence: int) -> bytes:
    """Where a message stands: it opens only there."""
    return f"batches/{device_id}/{epoch}/{first_sequence}".encode()


def opened_message(connection: Connection, row: Row[Any]) -> bytes:
    """The message of a row of `batches`, as received; AtRestError if the stored bytes were changed. The first release did
    not encrypt: a message itself begins with a CBOR array, encrypted bytes never do."""
    stored: bytes = row.message
    if stored[:1] == _CBOR_PAIR:
        return stored
    return cipher_of(connection).open(stored, message_place(row.device_id, row.epoch, row.first_sequence))


def _stored(connection: Connection, row: Row[Any]) -> StoredBatch:
    return StoredBatch(
        row.device_id,
        row.epoch,
        row.first_sequence,
        row.last_sequence,
        row.received_at,
        opened_message(connection, row),
        row.answers,
    )


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
    return [_stored(connection, row) for row in rows.all()]


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
        yield _stored(connection, row)


def taps_of_device(connection: Connection, device_id: str, received_from: int) -> Iterator[TapEvent]:
    """Every tap of a device that came in from then on and can be read, epoch by epoch."""
    table = schema.batches
    mine = (table.c.device_id == device_id) & (table.c.received_at >= received_from)
    rows = connection.execute(select(table).where(mine).order_by(table.c.epoch, table.c.first_sequence))
    for row in rows.all():
        stored = _stored(connection, row)
        message = reopen_message(stored.message)
        for sequence in range(stored.first_sequence, stored.last_sequence + 1):
            with suppress(TapFormatError):
                yield message.decode(sequence)


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
        connection.execute(schema.quarantine.insert(), hashed(schema.quarantine, rows))


def find_waiting(connection: Connection, awaited: Collection[str]) -> list[TapEvent]:
    """Taps in quarantine that wait for something that is there now (see `quarantine.waits_for`), read from their messages."""
    rows = find_many(connection, _FIND_WAITING, ids=sorted(awaited))
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
    return [QuarantinedTap(*tuple(row)[:-2]) for row in rows]


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


@dataclass(frozen=True, slots=True)
class Refusal:
    """A message that was refused whole; `evidence` is the message itself where it proves something."""

    received_at: int
    cause: str
    detail: str
    message_hash: str
    device_id: str | None = None
    evidence: bytes | None = None


def add_refused(connection: Connection, refusals: Iterable[Refusal]) -> None:
    """Messages that were refused whole."""
    rows = [
        {
            "received_at": refusal.received_at,
            "cause": refusal.cause,
            "detail": refusal.detail,
            "message_hash": refusal.message_hash,
            "message": _sealed_evidence(connection, refusal.evidence),
            "device_id": refusal.device_id,
        }
        for refusal in refusals
    ]
    if rows:
        connection.execute(schema.refused.insert(), hashed(schema.refused, rows))


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that somebody must look at. `evidence` is what came, `held` what speaks against it."""

    raised_at: int
    kind: str
    device_id: str
    detail: str
    evidence: bytes | None = None
    held: bytes | None = None


def add_alarms(connection: Connection, alarms: Iterable[Alarm]) -> None:
    """Alarms, once each: one that says the same of the same device as one before is not raised again."""
    found = {(alarm.device_id, alarm.kind, alarm.detail): alarm for alarm in alarms}
    if not found:
        return
    raised = {tuple(row) for row in find_many(connection, _SAME_ALARMS, **_keyed(found))}
    rows = [
        {
            "raised_at": alarm.raised_at,
            "kind": alarm.kind,
            "device_id": alarm.device_id,
            "detail": alarm.detail,
            "evidence": _sealed_evidence(connection, alarm.evidence),
            "held": _sealed_evidence(connection, alarm.held),
        }
        for key, alarm in found.items()
        if key not in raised
    ]
    execute_many(connection, _ADD_ALARM, hashed(_alarms, rows))


def list_alarms(connection: Connection) -> list[Alarm]:
    """Every alarm, the oldest first, with its evidence as it was received."""
    table = schema.alarms
    return [
        Alarm(
            row.raised_at,
            row.kind,
            row.device_id,
            row.detail,
            _opened_evidence(connection, row.evidence),
            _opened_evidence(connection, row.held),
        )
        for row in connection.execute(select(table).order_by(table.c.alarm_id)).all()
    ]


def _sealed_evidence(connection: Connection, evidence: bytes | None) -> bytes | None:
    return None if evidence is None else cipher_of(connection).seal(evidence, _EVIDENCE)


def _opened_evidence(connection: Connection, sealed: bytes | None) -> bytes | None:
    return None if sealed is None else cipher_of(connection).open(sealed, _EVIDENCE)


def streams_of_devices(connection: Connection, device_ids: Collection[str]) -> dict[str, list[StreamRow]]:
    """Every stream of some devices, by device."""
    found: dict[str, list[StreamRow]] = {}
    for row in find_many(connection, _STREAMS_OF_DEVICES, ids=sorted(device_ids)):
        found.setdefault(row.device_id, []).append(StreamRow(*row))
    return found


def all_streams(connection: Connection) -> list[StreamRow]:
    """Every stream, by device and in the order in which they began."""
    table = schema.streams
    rows = connection.execute(select(table).order_by(table.c.device_id, table.c.begun_at, table.c.epoch))
    return [StreamRow(*row) for row in rows]


def count_acknowledged(connection: Connection) -> int:
    """How many taps are acknowledged, over all streams."""
    return int(connection.execute(select(func.coalesce(func.sum(schema.streams.c.acknowledged_through), 0))).scalar_one())
