"""Receipt: a terminal's message becomes durable, once, and its taps are handed to application.

Decides whether a message continues what is held of its stream, which of its taps are new, and what is answered to those
that are not. A valid envelope is always stored and acknowledged; a tap in it that cannot be read or used is quarantined and
holds nobody up. Receipt and application share one transaction, so that what is acknowledged is booked or marked dirty."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy import Connection

from fare_engine import answers, application
from fare_engine.answers import BatchAnswer, TapAnswer
from fare_engine.application import Application, ReceivedTap
from fare_engine.errors import EnvelopeError
from fare_engine.ids import DeviceId, FactId, tap_id
from fare_engine.store import receipts, registry
from fare_engine.store.database import Database
from fare_engine.store.receipts import StoredBatch, Stream
from fare_engine.tap_format import Batch, TapEvent, TapFormatError, open_message, reopen_message


@dataclass(frozen=True, slots=True)
class Continuation:
    """Where a message goes on: the first sequence that is new in it, and the stream as it was (None: it begins)."""

    batch: Batch
    stream: Stream | None
    first_new: int


Listener = Callable[[list[tuple[TapEvent, TapAnswer]]], None]
"""Told of the taps of a commit, after it."""


class Receipt:
    """Takes groups of messages, each group in one transaction."""

    def __init__(self, database: Database, apply: Application) -> None:
        self.database = database
        self.application = apply
        self.listener: Listener | None = None
        self._keys: dict[str, Ed25519PublicKey] = {}

    def accept_group(self, messages: Sequence[bytes], now: int) -> list[BatchAnswer | EnvelopeError]:
        """Store, apply and answer some messages in one commit. What is refused whole comes back as its EnvelopeError."""
        opened = [self._open(message) for message in messages]
        found: dict[int, BatchAnswer | EnvelopeError] = {
            index: item for index, item in enumerate(opened) if isinstance(item, EnvelopeError)
        }
        waiting = {index: item for index, item in enumerate(opened) if isinstance(item, Batch)}
        seen: list[tuple[TapEvent, TapAnswer]] = []
        with self.database.write() as connection:
            while waiting:
                turn = _one_a_device(waiting)
                found.update(self._accept_turn(connection, turn, now, seen))
                waiting = {index: batch for index, batch in waiting.items() if index not in turn}
            for index, item in found.items():
                if isinstance(item, EnvelopeError):
                    digest = hashlib.sha256(messages[index]).hexdigest()
                    evidence = messages[index] if item.cause == "forked_chain" else None
                    receipts.add_refused(connection, now, item.cause, item.detail[:500], digest, evidence)
        if self.listener is not None:
            self.listener(seen)
        return [found[index] for index in range(len(messages))]

    def note_refused(self, error: EnvelopeError, now: int) -> None:
        """Keep that a message was refused before it was read."""
        with self.database.write() as connection:
            receipts.add_refused(connection, now, error.cause, error.detail, "", None)

    def _open(self, message: bytes) -> Batch | EnvelopeError:
        try:
            return open_message(message, self._find_key)
        except EnvelopeError as error:
            return error

    def _find_key(self, device_id: DeviceId) -> Ed25519PublicKey | None:
        """A device's key: remembered, for a device never changes its key; its revocation is asked of the database."""
        if device_id not in self._keys:
            with self.database.read() as connection:
                device = registry.find_device(connection, device_id)
            if device is None:
                return None
            self._keys[device_id] = Ed25519PublicKey.from_public_bytes(device.public_key)
        return self._keys[device_id]

    def _accept_turn(
        self, connection: Connection, turn: dict[int, Batch], now: int, seen: list[tuple[TapEvent, TapAnswer]]
    ) -> dict[int, BatchAnswer | EnvelopeError]:
        """At most one message of each device; `seen` is given its taps with their answers."""
        found: dict[int, BatchAnswer | EnvelopeError] = {}
        accepted: dict[int, Continuation] = {}
        streams = receipts.find_streams(connection, {_key(batch) for batch in turn.values()})
        devices = registry.find_devices(connection, {batch.header.device_id for batch in turn.values()})
        for index, batch in turn.items():
            try:
                revoked_at = devices[batch.header.device_id].revoked_at
                if revoked_at is not None and revoked_at <= now:
                    raise EnvelopeError("revoked_device", f"{batch.header.device_id} is revoked")
                accepted[index] = _continuation(connection, batch, streams.get(_key(batch)))
            except EnvelopeError as error:
                found[index] = error
        taps, unreadable = _new_taps(accepted, devices, now)
        given = self.application.apply(connection, taps, now)
        seen += [(tap.event, given[tap.event.tap_id]) for tap in taps]
        given.update(application.quarantine(connection, unreadable, self.application.tariff, now))
        _store(connection, accepted, given, now)
        for index, continuation in accepted.items():
            found[index] = self._answer(connection, continuation, given, now)
        return found

    def _answer(
        self, connection: Connection, continuation: Continuation, given: dict[FactId, TapAnswer], now: int
    ) -> BatchAnswer:
        header = continuation.batch.header
        repeated = _repeated_answers(connection, continuation)
        new = [given[_tap_id(continuation.batch, n)] for n in range(continuation.first_new, header.last_sequence + 1)]
        return BatchAnswer(
            device_id=header.device_id,
            epoch=header.epoch_hex,
            acknowledged_through=max(header.last_sequence, continuation.first_new - 1),
            server_time=now,
            deny_list_version=self.application.deny_list_version,
            answers=(*repeated, *new),
        )


def _one_a_device(waiting: dict[int, Batch]) -> dict[int, Batch]:
    """The first message of each device, so that each is judged by what those before it left."""
    turn: dict[str, int] = {}
    for index, batch in waiting.items():
        turn.setdefault(batch.header.device_id, index)
    return {index: waiting[index] for index in turn.values()}


def _key(batch: Batch) -> tuple[str, str]:
    return (batch.header.device_id, batch.header.epoch_hex)


def _tap_id(batch: Batch, sequence: int) -> FactId:
    return tap_id(batch.header.device_id, batch.header.epoch_hex, sequence)


def _continuation(connection: Connection, batch: Batch, stream: Stream | None) -> Continuation:
    """Where a message goes on. EnvelopeError `gap` where something before it is missing, `forked_chain` where it tells
    another story of what is held already."""
    header = batch.header
    if stream is None:
        if header.first_sequence != 1:
            raise EnvelopeError("gap", f"epoch {header.epoch_hex} is not known yet", resume_from=1)
        before = header.predecessor
        other = receipts.find_successor(connection, header.device_id, before.epoch.hex()) if before else None
        if other is not None:
            raise EnvelopeError("forked_chain", f"epoch {other} continues the same one: a device rolled back or cloned")
        return Continuation(batch, None, 1)
    held = stream.acknowledged_through
    if header.first_sequence > held + 1:
        raise EnvelopeError("gap", f"taps from {held + 1} on are missing", resume_from=held + 1)
    if header.last_sequence >= held:
        same = batch.head_after(held) == stream.head
    else:
        same = _held_taps(connection, batch) == list(batch.taps)
    if not same:
        raise EnvelopeError("forked_chain", f"taps up to {held} are held with other content")
    return Continuation(batch, stream, held + 1)


def _held_taps(connection: Connection, batch: Batch) -> list[bytes]:
    """The bytes held of the sequences that a message repeats."""
    header = batch.header
    wanted = range(header.first_sequence, header.last_sequence + 1)
    held: dict[int, bytes] = {}
    for stored in receipts.list_batches(
        connection, header.device_id, header.epoch_hex, header.first_sequence, header.last_sequence
    ):
        message = reopen_message(stored.message)
        for sequence in range(stored.first_sequence, stored.last_sequence + 1):
            held[sequence] = message.taps[sequence - message.header.first_sequence]
    return [held[sequence] for sequence in wanted if sequence in held]


def _repeated_answers(connection: Connection, continuation: Continuation) -> list[TapAnswer]:
    header = continuation.batch.header
    last = min(continuation.first_new - 1, header.last_sequence)
    if header.first_sequence > last:
        return []
    found = [
        msgspec.structs.replace(answer, result="EXISTS" if answer.result == "ACCEPTED" else answer.result)
        for stored in receipts.list_batches(connection, header.device_id, header.epoch_hex, header.first_sequence, last)
        for answer in answers.decode_stored(stored.answers)
    ]
    return [answer for answer in found if header.first_sequence <= answer.sequence <= last]


def _new_taps(
    accepted: dict[int, Continuation], devices: dict[str, registry.Device], now: int
) -> tuple[list[ReceivedTap], list[application.Unreadable]]:
    taps: list[ReceivedTap] = []
    unreadable: list[application.Unreadable] = []
    for continuation in accepted.values():
        header = continuation.batch.header
        for sequence in range(continuation.first_new, header.last_sequence + 1):
            try:
                event: TapEvent = continuation.batch.decode(sequence)
            except TapFormatError as error:
                unreadable.append(application.Unreadable(header.device_id, header.epoch_hex, sequence, str(error)))
            else:
                taps.append(ReceivedTap(event, devices[header.device_id].operator_id))
    return taps, unreadable


def _store(connection: Connection, accepted: dict[int, Continuation], given: dict[FactId, TapAnswer], now: int) -> None:
    begun, advanced, batches = [], [], []
    for continuation in accepted.values():
        batch, header = continuation.batch, continuation.batch.header
        if header.last_sequence >= continuation.first_new:
            new = tuple(given[_tap_id(batch, n)] for n in range(continuation.first_new, header.last_sequence + 1))
            batches.append(
                StoredBatch(
                    header.device_id,
                    header.epoch_hex,
                    continuation.first_new,
                    header.last_sequence,
                    now,
                    batch.message,
                    answers.encode(new),
                )
            )
        stream = Stream(header.device_id, header.epoch_hex, header.last_sequence, header.head)
        if continuation.stream is None:
            begun.append(_begun(batch, now))
        elif header.last_sequence > continuation.stream.acknowledged_through:
            advanced.append(stream)
        else:
            advanced.append(continuation.stream)
    receipts.begin_streams(connection, begun)
    receipts.advance_streams(connection, advanced, now)
    receipts.add_batches(connection, batches)


def _begun(batch: Batch, now: int) -> dict[str, object]:
    header = batch.header
    before = header.predecessor
    return {
        "device_id": header.device_id,
        "epoch": header.epoch_hex,
        "acknowledged_through": header.last_sequence,
        "head": header.head,
        "predecessor": before.epoch.hex() if before else None,
        "predecessor_last": before.last_sequence if before else None,
        "predecessor_head": before.head if before else None,
        "begun_at": now,
        "last_contact": now,
    }
