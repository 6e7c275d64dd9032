"""The audit of a store: hand the recorded facts to the auditor, and compare with what is booked, leg by leg.

Taps are read from the messages as received; what the terminal and the service decided about each is part of what was
recorded. Entitlements and purchases are recorded facts of the traveller."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import msgspec
from sqlalchemy import Connection

from clearing import store
from clearing.auditor import (
    AuditedLeg,
    AuditTariff,
    RecordedCancellation,
    RecordedFact,
    RecordedPurchase,
    RecordedTap,
    audit_traveller,
)
from clearing.auditor_shares import Released, share
from clearing.store import BookedLeg
from fare_engine import answers
from fare_engine.booking import Entitlement
from fare_engine.errors import CloseError
from fare_engine.facts import Completion, Purchase
from fare_engine.store import receipts, registry, travellers
from fare_engine.store.receipts import StoredBatch
from fare_engine.tap_format import Decision, Outcome, TapEvent, TapFormatError, TapKind, reopen_message
from fare_engine.tariff.compile import CompiledTariff
from fare_engine.tokens import stored_token

ACTIONS = {TapKind.ENTRY: "entry", TapKind.EXIT: "exit", TapKind.BOARD: "board"}


class Difference(msgspec.Struct, frozen=True):
    """A leg on which the auditor and the books disagree."""

    traveller_id: str
    leg_id: str
    what: str
    audited: object
    booked: object


class AuditReport(msgspec.Struct, frozen=True):
    """What an audit found."""

    taps: int
    travellers: int
    legs: int
    charged: int
    differences: tuple[Difference, ...]
    shared: tuple[ShareDifference, ...] = ()
    notes: tuple[str, ...] = ()
    """What was not looked at, and why."""


class ShareDifference(msgspec.Struct, frozen=True):
    """A party that was given another sum, up to a date, than the audited rides and agreements give it."""

    party_id: str
    audited: int
    """To the nearest unit."""
    published: int


class Audited(msgspec.Struct):
    """Every ride as the auditor prices it, by traveller, and what differs from the books."""

    taps: int
    travellers: int
    rides: dict[str, list[AuditedLeg]]
    differences: list[Difference]


def audit_store(
    connection: Connection,
    folder: Path,
    adopt: tuple[str, ...],
    tariff: CompiledTariff,
    server_key: bytes,
    as_of: int,
    date: str | None = None,
) -> AuditReport:
    """Price every recorded fact from scratch and compare with the books; with a closed `date`, also who was given what up to
    it, by the agreements. Nothing is written."""
    audited = _price(connection, AuditTariff.load(folder, adopt), tariff, server_key, as_of)
    legs = [leg for found in audited.rides.values() for leg in found]
    charged = sum(leg.charge or 0 for leg in legs)
    shared: list[ShareDifference] = []
    notes: list[str] = []
    if date is not None:
        shared, notes = _share_differences(connection, folder, adopt, audited.rides, date)
    report = (audited.taps, audited.travellers, len(legs), charged, tuple(audited.differences))
    return AuditReport(*report, tuple(shared), tuple(notes))


def _share_differences(
    connection: Connection, folder: Path, adopt: tuple[str, ...], rides: dict[str, list[AuditedLeg]], date: str
) -> tuple[list[ShareDifference], list[str]]:
    """Where more than rounding lies between what was published up to a date and what the auditor gives everybody."""
    if store.is_moved_since(connection, date):
        return [], [f"shares: rides up to {date} moved since its close; they are audited with the close that says so"]
    city = folder if (folder / "clearing.toml").exists() else folder.parent
    released = [Released(product_id=name, service_date=on, amount=amount) for name, on, amount in store.released(connection)]
    networks = AuditTariff.load(folder, adopt).cap_networks()
    try:
        sums = share(city / "clearing.toml", rides, released, networks, date)
    except CloseError as error:
        return [], [f"shares: {error}"]
    published, pools = store.given_through(connection, date)
    differences = []
    for party in sorted(sums.keys() | published.keys()):
        audited = sums.get(party, Fraction(0))
        if abs(audited - published.get(party, 0)) >= max(1, pools.get(party, 0)):
            differences.append(ShareDifference(party, round(audited), published.get(party, 0)))
    return differences, []


def _price(connection: Connection, audit_tariff: AuditTariff, tariff: CompiledTariff, server_key: bytes, as_of: int) -> Audited:
    """Every traveller's rides, each as of when the service priced them last, and at least as of `as_of`."""
    recorded, taps = _recorded_taps(connection, tariff, server_key)
    categories: dict[str, list[Entitlement]] = {}
    priced_to: dict[str, int] = {}
    corrections = registry.all_corrections(connection)
    for traveller in travellers.all_travellers(connection):
        name = traveller.traveller_id
        categories[name] = traveller.record.entitlements
        priced_to[name] = max(as_of, traveller.record.as_of)
        recorded[name] = [_corrected(fact, corrections) for fact in recorded[name]]
        for fact in traveller.record.facts:
            if isinstance(fact, Purchase):
                recorded[name].append(_purchase(fact))
        completions = [fact for fact in traveller.record.facts if isinstance(fact, Completion)]
        recorded[name] += _exits(recorded[name], completions)
        if not recorded[name]:
            del recorded[name]
    booked = store.booked_legs(connection)
    found = Audited(taps, len(recorded), {}, [])
    differences = found.differences
    for traveller_id in sorted(recorded):
        facts = [_in_category(fact, categories.get(traveller_id, []), tariff) for fact in recorded[traveller_id]]
        audit = audit_traveller(audit_tariff, facts, priced_to.get(traveller_id, as_of))
        own = booked.pop(traveller_id, {})
        found.rides[traveller_id] = list(audit.legs.values())
        for leg_id, leg in audit.legs.items():
            differences += _compare(traveller_id, leg, own.pop(leg_id, None))
        differences += _unaudited(traveller_id, own)
    for traveller_id, own in booked.items():
        differences += _unaudited(traveller_id, own)
    return found


def _corrected(fact: RecordedFact, corrections: list[registry.Correction]) -> RecordedFact:
    """A tap at the time at which it happened, by the last correction of its device's clock that names its time."""
    if not isinstance(fact, RecordedTap):
        return fact
    mine = [c for c in corrections if c.device_id == fact.device_id and c.begins <= fact.at_ms and fact.at_ms < c.ends]
    return replace(fact, at_ms=fact.at_ms + mine[-1].shift_ms) if mine else fact


def _exits(recorded: list[RecordedFact], completions: list[Completion]) -> list[RecordedTap]:
    """The exits that are taken to have happened: of an entry after which the same token was not tapped at an exit within a
    day. A rider's claim counts before the next tap, and that before habit."""
    cancelled = {fact.tap_id for fact in recorded if isinstance(fact, RecordedCancellation)}
    taps = [fact for fact in recorded if isinstance(fact, RecordedTap) and fact.fact_id not in cancelled]
    found = []
    for leg_id in {completion.leg_id for completion in completions}:
        told = [completion for completion in completions if completion.leg_id == leg_id]
        best = max(told, key=lambda one: ({"claim": 2, "next_tap": 1, "habit": 0}[one.source], one.recorded_at, one.fact_id))
        entry = next((tap for tap in taps if tap.fact_id == leg_id and tap.action == "entry"), None)
        if entry is None:
            continue
        later = [tap for tap in taps if tap.token_id == entry.token_id and tap.action != "board" and _place(tap) > _place(entry)]
        after = min(later, key=_place, default=None)
        if after is not None and after.action == "exit" and after.at_ms - entry.at_ms <= 86_400_000:
            continue
        at = best.at if after is None else min(best.at, after.at_ms - 1)
        found.append(
            replace(
                entry,
                fact_id=best.fact_id,
                at_ms=max(at, entry.at_ms + 1),
                device_id=best.device_id,
                epoch=best.epoch,
                sequence=best.sequence,
                action="exit",
                stop_id=best.stop_id,
                operator_id=None,
                persons=1,
            )
        )
    return found


def _place(tap: RecordedTap) -> tuple[int, str, str, int]:
    return (tap.at_ms, tap.device_id, tap.epoch, tap.sequence)


def _compare(traveller_id: str, leg: AuditedLeg, booked: BookedLeg | None) -> Iterator[Difference]:
    """A leg's rider's charge, what each bearer pays and who is owed, against its booked lines."""
    expected = {"rider": leg.charge or 0, "held": leg.held, **leg.funded}
    found = booked.sums if booked else {}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name, 0) != found.get(name, 0):
            yield Difference(traveller_id, leg.leg_id, name, expected.get(name, 0), found.get(name, 0))
    if booked and booked.operators - {leg.operator_id}:
        yield Difference(traveller_id, leg.leg_id, "operator", leg.operator_id, sorted(map(str, booked.operators)))


def _unaudited(traveller_id: str, legs: dict[str, BookedLeg]) -> list[Difference]:
    """Legs in the books for which there is no ride."""
    return [Difference(traveller_id, leg_id, "leg", None, leg.sums) for leg_id, leg in legs.items() if any(leg.sums.values())]


def _recorded_taps(
    connection: Connection, tariff: CompiledTariff, server_key: bytes
) -> tuple[dict[str, list[RecordedFact]], int]:
    """Each traveller's taps that act, from the stored messages, and how many taps there are in all."""
    devices = {device.device_id: device.operator_id for device in registry.list_devices(connection)}
    vehicles = registry.list_vehicles(connection)
    tokens = {token.token_id: token for token in travellers.all_tokens(connection)}
    recorded: dict[str, list[RecordedFact]] = defaultdict(list)
    owner_of_tap: dict[str, str] = {}
    refused: dict[str, RecordedTap] = {}
    outcomes: list[TapEvent] = []
    released = receipts.list_released(connection)
    count = 0
    for event, decided in _events(receipts.all_batches(connection)):
        count += 1
        if event is None or (decided.result == "QUARANTINED" and event.tap_id not in released):
            continue
        if event.kind is TapKind.OUTCOME:
            outcomes.append(event)
        elif event.kind in ACTIONS and event.token is not None:
            token_id = stored_token(server_key, event.token)
            tap = _tap(event, token_id, _operator(event, devices, vehicles), tariff)
            owner_of_tap[tap.fact_id] = owner = tokens[token_id].traveller_at(tap.at_ms)
            if decided.decision == "refused" or event.decision is Decision.REFUSED_ALONE:
                refused[tap.fact_id] = tap
            else:
                recorded[owner].append(tap)
    for event in outcomes:
        _add_outcome(event, recorded, owner_of_tap, refused)
    return recorded, count


def _events(batches: Iterable[StoredBatch]) -> Iterator[tuple[TapEvent | None, answers.TapAnswer]]:
    for stored in batches:
        message = reopen_message(stored.message)
        decided = {answer.sequence: answer for answer in answers.decode_stored(stored.answers)}
        for sequence in range(stored.first_sequence, stored.last_sequence + 1):
            try:
                yield message.decode(sequence), decided[sequence]
            except TapFormatError:
                yield None, decided[sequence]


def _add_outcome(
    event: TapEvent, recorded: dict[str, list[RecordedFact]], owners: dict[str, str], refused: dict[str, RecordedTap]
) -> None:
    spoken_of = event.spoken_of_id
    if spoken_of is None or spoken_of not in owners:
        return
    traveller_id = owners[spoken_of]
    if event.outcome is Outcome.TIMED_OUT and event.decision is Decision.ADMITTED_ALONE:
        if spoken_of in refused:
            recorded[traveller_id].append(refused.pop(spoken_of))
        return
    recorded[traveller_id].append(
        RecordedCancellation(
            fact_id=event.tap_id,
            at_ms=event.event_time_ms,
            device_id=event.device_id,
            epoch=event.epoch.hex(),
            sequence=event.sequence,
            tap_id=spoken_of,
        )
    )


def _tap(event: TapEvent, token_id: str, operator_id: str, tariff: CompiledTariff) -> RecordedTap:
    return RecordedTap(
        fact_id=event.tap_id,
        at_ms=event.event_time_ms,
        device_id=event.device_id,
        epoch=event.epoch.hex(),
        sequence=event.sequence,
        action=ACTIONS[event.kind],  # type: ignore[arg-type]  # one of the three
        token_id=token_id,
        media=event.medium or "",
        rider_category=tariff.default_category,
        stop_id=event.stop_id,
        route_id=event.route_id,
        operator_id=operator_id,
        persons=event.persons,
    )


def _purchase(fact: Purchase) -> RecordedPurchase:
    return RecordedPurchase(
        fact_id=fact.fact_id,
        at_ms=fact.at,
        device_id=fact.device_id,
        epoch=fact.epoch,
        sequence=fact.sequence,
        token_id=fact.token_id,
        media=fact.media,
        rider_category=fact.rider_category,
        product_id=fact.product_id,
    )


def _operator(event: TapEvent, devices: dict[str, str], vehicles: dict[str, list[tuple[int, str]]]) -> str:
    ran = [operator for since, operator in vehicles.get(event.vehicle_id or "", ()) if since <= event.event_time_ms]
    return ran[-1] if ran else devices[event.device_id]


def _in_category(fact: RecordedFact, entitlements: list[Entitlement], tariff: CompiledTariff) -> RecordedFact:
    if isinstance(fact, RecordedCancellation):
        return fact
    held = [e for e in entitlements if e.valid_from <= fact.at_ms and (e.valid_to is None or fact.at_ms < e.valid_to)]
    if not held:
        return fact
    category = max(held, key=lambda entitlement: entitlement.valid_from).category
    return replace(fact, rider_category=category)
