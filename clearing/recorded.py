"""What was recorded, for the auditor: each traveller's taps, out of the messages as received.

What the terminal and the service decided about a tap is part of what was recorded. The taps of a city are many, so they are kept
packed until their traveller is audited."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

import msgspec
from sqlalchemy import Connection

from clearing.auditor import RecordedCancellation, RecordedFact, RecordedTap
from fare_engine import answers
from fare_engine.store import receipts, registry, travellers
from fare_engine.store.receipts import StoredBatch
from fare_engine.tap_format import Decision, Outcome, TapEvent, TapFormatError, TapKind, reopen_message
from fare_engine.tokens import stored_token

ACTIONS = {TapKind.ENTRY: "entry", TapKind.EXIT: "exit", TapKind.BOARD: "board"}

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(RecordedFact).decode


def unpacked(facts: Iterable[bytes]) -> list[RecordedFact]:
    """Facts as they were before they were packed."""
    return [_unpack(fact) for fact in facts]


class Recorded:
    """The taps of a store that act, and what cancels some, by traveller."""

    def __init__(self, connection: Connection, default_category: str, server_key: bytes) -> None:
        self.taps = 0
        """How many taps there are in all."""
        self.facts: dict[str, list[bytes]] = defaultdict(list)
        """Packed, by traveller."""
        self._connection = connection
        self._default_category = default_category
        self._server_key = server_key
        self._devices = {device.device_id: device.operator_id for device in registry.list_devices(connection)}
        self._vehicles = registry.list_vehicles(connection)
        self._tokens = {token.token_id: token for token in travellers.all_tokens(connection)}
        self._corrections: dict[str, list[registry.Correction]] = defaultdict(list)
        for correction in registry.all_corrections(connection):
            self._corrections[correction.device_id].append(correction)
        self._released = receipts.list_released(connection)
        self._set_aside: set[str] = set()
        self._refused: dict[str, RecordedTap] = {}
        self._read()

    def _read(self) -> None:
        outcomes = []
        for event, decided in _events(receipts.all_batches(self._connection)):
            self.taps += 1
            if event is None:
                continue
            if decided.result == "QUARANTINED" and event.tap_id not in self._released:
                self._set_aside.add(event.tap_id)
            elif event.kind is TapKind.OUTCOME:
                outcomes.append(event)
            elif event.kind in ACTIONS and event.token is not None:
                tap = self._tap(event, event.token)
                if decided.decision == "refused" or event.decision is Decision.REFUSED_ALONE:
                    self._refused[tap.fact_id] = tap
                else:
                    self._add(self._owner(event, tap.token_id), tap)
        for event in outcomes:
            self._add_outcome(event)

    def _add(self, traveller_id: str, fact: RecordedFact) -> None:
        self.facts[traveller_id].append(_pack(fact))

    def _add_outcome(self, outcome: TapEvent) -> None:
        """A tap that the service refused and the terminal let through acts after all; any other that is spoken of is void."""
        tap = self._spoken_of(outcome)
        if tap is None or tap.token is None:
            return
        owner = self._owner(tap, stored_token(self._server_key, tap.token))
        if outcome.outcome is Outcome.TIMED_OUT and outcome.decision is Decision.ADMITTED_ALONE:
            if tap.tap_id in self._refused:
                self._add(owner, self._refused.pop(tap.tap_id))
            return
        cancellation = RecordedCancellation(
            fact_id=outcome.tap_id,
            at_ms=outcome.event_time_ms,
            device_id=outcome.device_id,
            epoch=outcome.epoch.hex(),
            sequence=outcome.sequence,
            tap_id=tap.tap_id,
        )
        self._add(owner, cancellation)

    def _spoken_of(self, outcome: TapEvent) -> TapEvent | None:
        """The tap that an OUTCOME is about, if it is held, can be read and was not set aside."""
        place = outcome.spoken_of
        if place is None:
            return None
        tap = receipts.find_tap(self._connection, outcome.device_id, place.epoch.hex(), place.sequence)
        return None if tap is None or tap.kind not in ACTIONS or tap.tap_id in self._set_aside else tap

    def _owner(self, event: TapEvent, token_id: str) -> str:
        return self._tokens[token_id].traveller_at(event.event_time_ms)

    def _tap(self, event: TapEvent, token: bytes) -> RecordedTap:
        return RecordedTap(
            fact_id=event.tap_id,
            at_ms=self._corrected(event),
            device_id=event.device_id,
            epoch=event.epoch.hex(),
            sequence=event.sequence,
            action=ACTIONS[event.kind],  # type: ignore[arg-type]  # one of the three
            token_id=stored_token(self._server_key, token),
            media=event.medium or "",
            rider_category=self._default_category,
            stop_id=event.stop_id,
            route_id=event.route_id,
            operator_id=self._operator(event),
            persons=event.persons,
        )

    def _corrected(self, event: TapEvent) -> int:
        """When a tap happened, by the last correction of its device's clock that names its time."""
        at = event.event_time_ms
        mine = [one.shift_ms for one in self._corrections.get(event.device_id, ()) if one.begins <= at < one.ends]
        return at + mine[-1] if mine else at

    def _operator(self, event: TapEvent) -> str:
        ran = [operator for since, operator in self._vehicles.get(event.vehicle_id or "", ()) if since <= event.event_time_ms]
        return ran[-1] if ran else self._devices[event.device_id]


def _events(batches: Iterable[StoredBatch]) -> Iterator[tuple[TapEvent | None, answers.TapAnswer]]:
    """Every tap (None where it cannot be read) with what was decided about it."""
    for stored in batches:
        message = reopen_message(stored.message)
        decided = {answer.sequence: answer for answer in answers.decode_stored(stored.answers)}
        for sequence in range(stored.first_sequence, stored.last_sequence + 1):
            try:
                yield message.decode(sequence), decided[sequence]
            except TapFormatError:
                yield None, decided[sequence]
