"""Receipt: a terminal's message becomes durable, once, and its taps are handed to application.

Decides whether a message continues what is held of its stream, which of its taps are new, and what is answered to those
that are not. A valid envelope is always stored and acknowledged; a tap in it that cannot be read or used is quarantined and
holds nobody up. Receipt and application share one transaction, so that what is acknowledged is booked or marked dirty."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy import Connection

from fare_engine import answers, application
from fare_engine.answers import BatchAnswer, TapAnswer, Wanted
from fare_engine.application import Application, ReceivedTap
from fare_engine.certificates import DeviceLimits
from fare_engine.errors import EnvelopeError
from fare_engine.gaps import find_gaps
from fare_engine.ids import DeviceId, FactId, tap_id
from fare_engine.store import deny, receipts, registry
from fare_engine.store.database import Database, is_away
from fare_engine.store.receipts import Alarm, Refusal, StoredBatch, Stream, StreamRow
from fare_engine.store.registry import Device, DeviceKey
from fare_engine.tap_format import Batch, ReadMessage, TapEvent, TapFormatError, read_message, reopen_message, verified
from fare_engine.verdicts import Rejected

logger = logging.getLogger(__name__)

KEYS_KEPT_MS = 10 * 60_000
"""How long a process may not know that a device changed its key: the old one ends a day later."""
NOTED_A_MINUTE = 300
"""Of messages without a good signature so many a minute are noted by each process."""
_MINUTE_MS, _DAY_MS = 60_000, 86_400_000


@dataclass(frozen=True, slots=True)
class Continuation:
    """Where a message goes on: the first sequence that is new in it, and the stream as it was (None: it begins)."""

    batch: Batch
    stream: Stream | None
    first_new: int
    streams: Sequence[StreamRow] = ()
    """All of the device as they were, where this one begins or only beats."""


@dataclass(slots=True)
class _Taken:
    """What one transaction did, for whoever is told after its commit."""

    outcomes: dict[int, BatchAnswer | EnvelopeError] = field(default_factory=dict)
    seen: list[tuple[TapEvent, TapAnswer]] = field(default_factory=list)
    alarms: list[Alarm] = field(default_factory=list)
    noted: int = 0
    """Refusals of messages that nobody signed."""
    rates: Counter[tuple[str, str, int]] = field(default_factory=Counter)


Listener = Callable[[list[tuple[TapEvent, TapAnswer]]], None]
"""Told of the taps of a commit, after it."""


class Shaping(Protocol):
    """Who says that a device sends too much."""

    def is_too_fast(self, device_id: str, now: int) -> bool:
        """Count a message of a device, and say whether it is one too many."""
        ...


class Receipt:
    """Takes groups of messages, each group in one transaction."""

    def __init__(self, database: Database, apply: Application) -> None:
        self.database = database
        self.application = apply
        self.listener: Listener | None = None
        self.published = Published(database)
        self.shaper: Shaping | None = None
        self._keys: dict[str, tuple[int, list[tuple[DeviceKey, Ed25519PublicKey]]]] = {}
        """By device: when they were read, and its keys."""
        self._rates: Counter[tuple[str, str, int]] = Counter()
        self._noted: Counter[int] = Counter()

    def accept_group(self, messages: Sequence[bytes], now: int) -> list[BatchAnswer | EnvelopeError]:
        """Store, apply and answer some messages in one commit. What is refused whole comes back as its EnvelopeError."""
        opened = self._open(messages, now)
        for index, item in enumerate(opened):
            if isinstance(item, Batch) and self.shaper is not None and self.shaper.is_too_fast(item.header.device_id, now):
                opened[index] = EnvelopeError("too_fast", f"{item.header.device_id} sends too many messages a second")
        return self._commit(messages, opened, now)

    def _commit(
        self, messages: Sequence[bytes], opened: Sequence[Batch | EnvelopeError], now: int, *, one_by_one: bool = False
    ) -> list[BatchAnswer | EnvelopeError]:
        """Store and answer opened messages in one commit. What goes wrong with one of them stays with it: then each has a
        commit of its own, and in the message that fails alone, too, each tap is applied by itself."""
        try:
            taken = self.database.transact(
                lambda connection: self._accept(connection, messages, opened, now, one_by_one=one_by_one)
            )
        except Exception as error:
            if one_by_one or is_away(error):
                raise
            logger.exception("a group of %d messages could not be applied at once", len(messages))
            if len(messages) == 1:
                return self._commit(messages, opened, now, one_by_one=True)
            return [self._alone(message, item, now) for message, item in zip(messages, opened, strict=True)]
        self._remember(taken, now)
        if self.listener is not None:
            self.listener(taken.seen)
        return [taken.outcomes[index] for index in range(len(messages))]

    def _alone(self, message: bytes, item: Batch | EnvelopeError, now: int) -> BatchAnswer | EnvelopeError:
        """One message of a group that could not be committed; others of it may be committed already, so nothing is raised."""
        try:
            (outcome,) = self._commit([message], [item], now)
        except Exception:
            logger.exception("a message could not be committed")
            return EnvelopeError("unavailable", "nothing of this message was taken")
        return outcome

    def _remember(self, taken: _Taken, now: int) -> None:
        """What a commit adds to the counts of this process."""
        minute = now // _MINUTE_MS
        self._noted = Counter({minute: self._noted[minute] + taken.noted})
        if len(self._rates) > 100_000:
            self._rates.clear()
        self._rates.update(taken.rates)

    def note_refused(self, error: EnvelopeError, now: int) -> None:
        """Keep that a message was refused before it was read."""
        self._noted[now // _MINUTE_MS] += 1
        if self._noted[now // _MINUTE_MS] > NOTED_A_MINUTE:
            return
        with self.database.write() as connection:
            receipts.add_refused(connection, [Refusal(now, error.cause, error.detail, "")])

    # ---- opening

    def _open(self, messages: Sequence[bytes], now: int) -> list[Batch | EnvelopeError]:
        """The batch in each message, or why it is refused. A signature that does not hold is checked again with the device's
        keys read anew: another process may have taken a new one in."""
        read = [_read(message) for message in messages]
        self._read_keys({one.device_id for one in read if isinstance(one, ReadMessage)}, now)
        opened = [self._verified(one, now) for one in read]
        doubtful = [n for n, one in enumerate(opened) if isinstance(one, EnvelopeError) and one.cause == "bad_signature"]
        if doubtful:
            devices = {one.device_id for n in doubtful if isinstance(one := read[n], ReadMessage)}
            for device_id in devices:
                self._keys.pop(device_id, None)
            self._read_keys(devices, now)
            for n in doubtful:
                opened[n] = self._verified(read[n], now)
        return opened

    def _verified(self, read: ReadMessage | EnvelopeError, now: int) -> Batch | EnvelopeError:
        """The batch of a message that was read, if one of its device's keys signed it."""
        if isinstance(read, EnvelopeError):
            return read
        _, keys = self._keys.get(read.device_id, (0, []))
        try:
            return verified(read, [public for key, public in keys if key.valid_to is None or now < key.valid_to])
        except EnvelopeError as error:
            return error

    def _read_keys(self, device_ids: Collection[DeviceId], now: int) -> None:
        """Read the keys with which some devices may sign, unless they were read a while ago. Whether a device was revoked is
        asked of the database with each message."""
        unread = [device_id for device_id in device_ids if not self._has_read(device_id, now)]
        if not unread:
            return
        with self.database.read() as connection:
            found = registry.find_keys(connection, unread)
        for device_id in unread:
            keys = [(key, Ed25519PublicKey.from_public_bytes(key.public_key)) for key in found.get(device_id, ())]
            if keys:
                self._keys[device_id] = (now, keys)
            else:
                self._keys.pop(device_id, None)

    def _has_read(self, device_id: DeviceId, now: int) -> bool:
        held = self._keys.get(device_id)
        return held is not None and held[0] <= now < held[0] + KEYS_KEPT_MS

    # ---- one transaction

    def _accept(
        self,
        connection: Connection,
        messages: Sequence[bytes],
        opened: Sequence[Batch | EnvelopeError],
        now: int,
        *,
        one_by_one: bool = False,
    ) -> _Taken:
        taken = _Taken({index: item for index, item in enumerate(opened) if isinstance(item, EnvelopeError)})
        waiting = {index: item for index, item in enumerate(opened) if isinstance(item, Batch)}
        devices = registry.lock_devices(connection, {batch.header.device_id for batch in waiting.values()})
        while waiting:
            turn = _one_a_device(waiting)
            self._accept_turn(connection, turn, devices, now, taken, one_by_one=one_by_one)
            waiting = {index: batch for index, batch in waiting.items() if index not in turn}
        receipts.add_refused(connection, self._refusals(messages, opened, taken, now))
        receipts.add_alarms(connection, taken.alarms)
        return taken

    def _refusals(
        self, messages: Sequence[bytes], opened: Sequence[Batch | EnvelopeError], taken: _Taken, now: int
    ) -> list[Refusal]:
        """What is noted of refused messages. Of those that nobody signed only some a minute are: a flood fills no disk."""
        found = []
        for index, error in taken.outcomes.items():
            if not isinstance(error, EnvelopeError) or error.cause == "too_fast":
                continue
            if isinstance(opened[index], EnvelopeError):
                taken.noted += 1
                if self._noted[now // _MINUTE_MS] + taken.noted > NOTED_A_MINUTE:
                    continue
            found.append(_refusal(messages[index], error, opened[index], now))
        return found

    def _accept_turn(
        self,
        connection: Connection,
        turn: dict[int, Batch],
        devices: dict[str, Device],
        now: int,
        taken: _Taken,
        *,
        one_by_one: bool,
    ) -> None:
        """At most one message of each device; what becomes of them goes into `taken`."""
        accepted: dict[int, Continuation] = {}
        streams = receipts.find_streams(connection, {_key(batch) for batch in turn.values()})
        beginning = {batch.header.device_id for batch in turn.values() if _key(batch) not in streams or not batch.header.count}
        others = receipts.streams_of_devices(connection, beginning) if beginning else {}
        for index, batch in turn.items():
            own = others.get(batch.header.device_id, [])
            try:
                accepted[index] = _continuation(connection, batch, streams.get(_key(batch)), own, now, taken.alarms)
            except EnvelopeError as error:
                taken.outcomes[index] = error
        taps, unreadable = self._new_taps(accepted, devices, now, taken.rates)
        apply = self.application.apply_one_by_one if one_by_one else self.application.apply
        given = apply(connection, taps, now)
        taken.seen += [(tap.event, given[tap.event.tap_id]) for tap in taps]
        given.update(application.quarantine(connection, unreadable, self.application.tariff, now))
        _store(connection, accepted, given, now)
        for index, continuation in accepted.items():
            taken.outcomes[index] = self._answer(connection, continuation, given, now)

    def _new_taps(
        self, accepted: dict[int, Continuation], devices: dict[str, Device], now: int, rates: Counter[tuple[str, str, int]]
    ) -> tuple[list[ReceivedTap], list[application.Unreadable]]:
        taps: list[ReceivedTap] = []
        unreadable: list[application.Unreadable] = []
        for continuation in accepted.values():
            header = continuation.batch.header
            device = devices[header.device_id]
            limits = msgspec.json.decode(device.limits, type=DeviceLimits) if device.limits else None
            for sequence in range(continuation.first_new, header.last_sequence + 1):
                try:
                    event: TapEvent = continuation.batch.decode(sequence)
                except TapFormatError as error:
                    unreadable.append(application.Unreadable(header.device_id, header.epoch_hex, sequence, str(error)))
                else:
                    aside = self._set_aside(event, device, limits, now, rates)
                    taps.append(ReceivedTap(event, device.operator_id, limits, aside, device.is_corrected))
        return taps, unreadable

    def _set_aside(
        self, event: TapEvent, device: Device, limits: DeviceLimits | None, now: int, rates: Counter[tuple[str, str, int]]
    ) -> Rejected | None:
        """Why a tap is set aside because of who sent it: the device was revoked, or reports more than it may."""
        if device.revoked_at is not None and device.revoked_at <= now:
            return Rejected("revoked_device", f"{device.device_id} was revoked at {device.revoked_at} ms, before this came in")
        if limits is None:
            return None
        for most, name, length in ((limits.taps_a_minute, "minute", _MINUTE_MS), (limits.taps_a_day, "day", _DAY_MS)):
            if most is None:
                continue
            key = (device.device_id, name, event.event_time_ms // length)
            rates[key] += 1
            if self._rates[key] + rates[key] > most:
                return Rejected("too_many_taps", f"{device.device_id} reports more than {most} taps a {name}")
        return None

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
            deny_list_version=self.published.deny_list_version,
            rules_version=self.published.rules_version,
            wanted=_wanted(continuation, now),
            answers=(*repeated, *new),
        )


class Published:
    """The newest versions that terminals are told of; `refresh` asks the database."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.deny_list_version = 0
        self.rules_version = 0
        self._waiting: set[asyncio.Event] = set()

    async def changed(self, seconds: float) -> None:
        """Wait until something new is published, or so long."""
        event = asyncio.Event()
        self._waiting.add(event)
        try:
            await asyncio.wait_for(event.wait(), seconds)
        except TimeoutError:
            pass
        finally:
            self._waiting.discard(event)

    def wake(self) -> None:
        """Tell whoever waits in this process."""
        for event in self._waiting:
            event.set()

    def refresh(self) -> bool:
        """Ask what is newest; whether anything changed."""
        with self.database.read() as connection:
            versions = (deny.newest_version(connection), deny.newest_serial(connection, deny.RULES))
        changed = versions != (self.deny_list_version, self.rules_version)
        self.deny_list_version, self.rules_version = versions
        return changed


def _read(message: bytes) -> ReadMessage | EnvelopeError:
    try:
        return read_message(message)
    except EnvelopeError as error:
        return error


def _wanted(continuation: Continuation, now: int) -> tuple[Wanted, ...]:
    """What is missing of the device's earlier epochs; looked up when an epoch begins and at heartbeats only. An epoch without
    taps that is not known is wanted as well: only its header says what was before it."""
    if continuation.stream is not None and continuation.batch.header.count:
        return ()
    begun = [StreamRow(**_begun(continuation.batch, now))] if continuation.stream is None else []
    streams = [*continuation.streams, *begun]
    known = {stream.epoch for stream in streams}
    empty = [s.predecessor for s in streams if s.predecessor and s.predecessor not in known and not s.predecessor_last]
    return tuple(Wanted(gap.epoch, gap.first) for gap in find_gaps(streams)) + tuple(Wanted(epoch, 1) for epoch in empty)


def _refusal(message: bytes, error: EnvelopeError, opened: Batch | EnvelopeError, now: int) -> Refusal:
    """The record of a refused message; of one that its device did sign and that tells another story, with the message."""
    digest = hashlib.sha256(message).hexdigest()
    device_id = opened.header.device_id if isinstance(opened, Batch) else None
    evidence = message if error.cause == "forked_chain" else None
    return Refusal(now, error.cause, error.detail[:500], digest, device_id, evidence)


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


def _continuation(
    connection: Connection, batch: Batch, stream: Stream | None, others: Sequence[StreamRow], now: int, alarms: list[Alarm]
) -> Continuation:
    """Where a message goes on; `others` are the device's streams where it begins one. EnvelopeError `gap` where something before
    it is missing, `forked_chain` where it tells another story of what is held already: a device that was rolled back or cloned,
    which raises an alarm with both sides."""
    header = batch.header
    if stream is None:
        if header.first_sequence != 1:
            raise EnvelopeError("gap", f"epoch {header.epoch_hex} is not known yet", resume_from=1)
        _check_beginning(connection, batch, others, now, alarms)
        return Continuation(batch, None, 1, others)
    held = stream.acknowledged_through
    if header.first_sequence > held + 1:
        raise EnvelopeError("gap", f"taps from {held + 1} on are missing", resume_from=held + 1)
    if header.last_sequence >= held:
        same = batch.head_after(held) == stream.head
    else:
        same = _held_taps(connection, batch) == list(batch.taps)
    if not same:
        detail = f"epoch {header.epoch_hex}: taps up to {held} are held with other content"
        other = receipts.list_batches(connection, header.device_id, header.epoch_hex, header.first_sequence, held)
        alarms.append(Alarm(now, "forked_chain", header.device_id, detail, batch.message, other[0].message if other else None))
        raise EnvelopeError("forked_chain", f"taps up to {held} are held with other content")
    return Continuation(batch, stream, held + 1, others)


def _check_beginning(connection: Connection, batch: Batch, others: Sequence[StreamRow], now: int, alarms: list[Alarm]) -> None:
    """A new epoch fits what is held of its device. EnvelopeError `forked_chain` where another one continues the same epoch."""
    header = batch.header
    device_id, before = header.device_id, header.predecessor
    if before is None:
        if others:
            latest = min(others, key=lambda stream: (-stream.begun_at, stream.epoch))
            detail = f"epoch {header.epoch_hex} names no predecessor, but {latest.epoch} is held: the device lost its memory"
            alarms.append(Alarm(now, "lost_memory", device_id, detail, batch.message))
        return
    epoch = before.epoch.hex()
    other = next((stream.epoch for stream in others if stream.predecessor == epoch), None)
    if other is not None:
        held = receipts.list_batches(connection, device_id, other, 1, 1)
        detail = f"epochs {other} and {header.epoch_hex} both continue {epoch}"
        alarms.append(Alarm(now, "two_successors", device_id, detail, batch.message, held[0].message if held else None))
        raise EnvelopeError("forked_chain", f"epoch {other} continues the same one: a device rolled back or cloned")
    stream = next((stream for stream in others if stream.epoch == epoch), None)
    if stream is None or stream.acknowledged_through < before.last_sequence:
        return
    if stream.acknowledged_through > before.last_sequence or stream.head != before.head:
        last = receipts.list_batches(connection, device_id, epoch, stream.acknowledged_through, stream.acknowledged_through)
        detail = f"epoch {epoch} ended at {before.last_sequence} as the device remembers, {stream.acknowledged_through} is held"
        alarms.append(Alarm(now, "rolled_back", device_id, detail, batch.message, last[0].message if last else None))


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


def _begun(batch: Batch, now: int) -> dict[str, Any]:
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
