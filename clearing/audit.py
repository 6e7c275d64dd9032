"""The audit of a store: hand the recorded facts to the auditor, and compare with what is booked, leg by leg.

Taps are read from the messages as received (`recorded`); entitlements and purchases are recorded facts of the traveller. All is
read in one transaction, so that it belongs together while taps go on being taken; travellers are audited one by one, and those
of a large store in several processes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from fractions import Fraction
from functools import cached_property
from heapq import merge
from itertools import groupby, islice
from multiprocessing import get_context
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace
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
from clearing.auditor_shares import Released, SharedRides, Sharing
from clearing.recorded import Recorded, unpacked
from clearing.store import BookedSum
from fare_engine.booking import Entitlement
from fare_engine.errors import CloseError
from fare_engine.facts import Completion, Fact, Purchase
from fare_engine.store import travellers
from fare_engine.tariff.compile import CompiledTariff

TOGETHER = 500
"""So many travellers are audited at once."""
AHEAD = 4
"""So many times as many wait for each process."""
LARGE = 50_000
"""From so many taps on, processes share the work."""


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
    """What was found of some travellers."""

    travellers: int = 0
    legs: int = 0
    charged: int = 0
    differences: list[Difference] = []
    shared: SharedRides = msgspec.field(default_factory=SharedRides)
    unshared: str = ""
    """Why their rides could not be shared out."""

    def add(self, other: Audited) -> None:
        """What was found of others, too."""
        self.travellers += other.travellers
        self.legs += other.legs
        self.charged += other.charged
        self.differences += other.differences
        self.shared.add(other.shared)
        self.unshared = self.unshared or other.unshared


class Told(msgspec.Struct, array_like=True):
    """All that the auditor is told of one traveller: what was recorded, and what is booked."""

    traveller_id: str
    as_of: int = 0
    """To when the audit is; his rides to when the service priced them last, if that is later."""
    facts: list[bytes] = []
    """Packed (`recorded`)."""
    records: list[bytes] = []
    """As stored; of the last one entitlements hold."""
    booked: list[BookedSum] = []


class Noted(msgspec.Struct):
    """What the auditor reads of a traveller's record (`booking.Record`): facts that are no taps, and who he was."""

    facts: list[Fact] = []
    entitlements: list[Entitlement] = []
    as_of: int = 0


class Rules(NamedTuple):
    """What an audit goes by: a tariff's folder with the versions adopted, and up to which date it shares rides out."""

    folder: Path
    adopt: tuple[str, ...]
    default_category: str
    shared_through: str | None


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
    it, by the agreements. Nothing is written. CloseError if a process of the audit dies."""
    notes = []
    if date is not None and store.is_moved_since(connection, date):
        notes.append(f"shares: rides up to {date} moved since its close; they are audited with the close that says so")
        date = None
    rules = Rules(folder, adopt, tariff.default_category, date)
    recorded = Recorded(connection, tariff.default_category, server_key)
    told = _told(connection, recorded, as_of)
    auditor = Auditor(rules)
    every = Audited()
    for some in in_processes(rules, told) if recorded.taps >= LARGE else map(auditor.audit, _parts(told)):
        every.add(some)
    shared: list[ShareDifference] = []
    if date is not None:
        try:
            shared = _share_differences(connection, auditor, every, date)
        except CloseError as error:
            notes.append(f"shares: {error}")
    found = (recorded.taps, every.travellers, every.legs, every.charged, tuple(every.differences))
    return AuditReport(*found, tuple(shared), tuple(notes))


def _share_differences(connection: Connection, auditor: Auditor, every: Audited, date: str) -> list[ShareDifference]:
    """Where more than rounding lies between what was published up to a date and what the auditor gives everybody."""
    if every.unshared:
        raise CloseError(every.unshared)
    released = [Released(product_id=name, service_date=on, amount=amount) for name, on, amount in store.released(connection)]
    sums = auditor.sharing.totals(every.shared, released)
    published, pools = store.given_through(connection, date)
    differences = []
    for party in sorted(sums.keys() | published.keys()):
        audited = sums.get(party, Fraction(0))
        if abs(audited - published.get(party, 0)) >= max(1, pools.get(party, 0)):
            differences.append(ShareDifference(party, round(audited), published.get(party, 0)))
    return differences


# ---- what the auditor is told


def _told(connection: Connection, recorded: Recorded, as_of: int) -> Iterator[Told]:
    """Everybody of whom something was recorded or is booked, by id."""
    streams: tuple[Iterable[tuple[str, str, Any]], ...] = (
        ((name, "facts", recorded.facts[name]) for name in sorted(recorded.facts)),
        ((name, "records", records) for name, records in travellers.all_records(connection)),
        ((name, "booked", sums) for name, sums in store.booked_sums(connection)),
    )
    for name, found in groupby(merge(*streams, key=itemgetter(0)), itemgetter(0)):
        yield Told(name, as_of, **{what: part for _, what, part in found})


def _parts(told: Iterable[Told]) -> Iterator[list[Told]]:
    every = iter(told)
    return iter(lambda: list(islice(every, TOGETHER)), [])


# ---- the processes of a large audit


def in_processes(rules: Rules, told: Iterable[Told]) -> Iterator[Audited]:
    """The same as `Auditor.audit` of each part. New processes, not forks: they must not share an open database."""
    count = os.cpu_count() or 1
    with ProcessPoolExecutor(count, get_context("spawn"), _begin, (rules,)) as pool:
        waiting: deque[Future[Audited]] = deque()
        try:
            for part in _parts(told):
                waiting.append(pool.submit(_audit, msgspec.msgpack.encode(part)))
                if len(waiting) >= AHEAD * count:
                    yield waiting.popleft().result()
            for future in waiting:
                yield future.result()
        except BrokenProcessPool as error:
            raise CloseError("a process of the audit ended before it was done") from error


_NOTED = msgspec.msgpack.Decoder(Noted)
_auditors: list[Auditor] = []
"""A process's own one."""


def _begin(rules: Rules) -> None:
    _auditors[:] = [Auditor(rules)]


def _audit(part: bytes) -> Audited:
    return _auditors[0].audit(msgspec.msgpack.decode(part, type=list[Told]))


# ---- one traveller after the other


class Auditor:
    """Audits travellers by a tariff and, up to a date, by agreements."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._tariff = AuditTariff.load(rules.folder, rules.adopt)

    @cached_property
    def sharing(self) -> Sharing:
        """Who is given what, by the city's agreements."""
        folder = self._rules.folder
        city = folder if (folder / "clearing.toml").exists() else folder.parent
        return Sharing(city / "clearing.toml", self._tariff.cap_networks(), self._rules.shared_through or "")

    def audit(self, part: Sequence[Told]) -> Audited:
        """What is found of some travellers."""
        found = Audited()
        rides = []
        for told in part:
            legs = self._legs(told)
            found.travellers += legs is not None
            found.legs += len(legs or ())
            found.charged += sum(leg.charge or 0 for leg in legs or ())
            found.differences += _compare(told, legs or [])
            rides.append(legs or [])
        if self._rules.shared_through is not None:
            try:
                found.shared = self.sharing.rides(rides)
            except CloseError as error:
                found.unshared = str(error)
        return found

    def _legs(self, told: Told) -> list[AuditedLeg] | None:
        """A traveller's rides; None where nothing was recorded of him."""
        noted = [_NOTED.decode(record) for record in told.records] or [Noted()]
        other = [fact for one in noted for fact in one.facts]
        facts: list[RecordedFact] = unpacked(told.facts)
        facts += [_purchase(fact) for fact in other if isinstance(fact, Purchase)]
        facts += _exits(facts, [fact for fact in other if isinstance(fact, Completion)])
        if not facts:
            return None
        in_category = [self._in_category(fact, noted[-1].entitlements) for fact in facts]
        return list(audit_traveller(self._tariff, in_category, max(told.as_of, noted[-1].as_of)).legs.values())

    def _in_category(self, fact: RecordedFact, entitlements: Sequence[Entitlement]) -> RecordedFact:
        """With the rider category of the latest entitlement that held then."""
        if isinstance(fact, RecordedCancellation):
            return fact
        held = [e for e in entitlements if e.valid_from <= fact.at_ms and (e.valid_to is None or fact.at_ms < e.valid_to)]
        if not held:
            return fact
        category = max(held, key=lambda entitlement: entitlement.valid_from).category
        return replace(fact, rider_category=category)


def _exits(recorded: Sequence[RecordedFact], completions: Iterable[Completion]) -> list[RecordedTap]:
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


def _compare(told: Told, legs: Iterable[AuditedLeg]) -> Iterator[Difference]:
    """Each ride against what is booked of it; then what is booked without a ride."""
    booked: dict[str, list[BookedSum]] = {}
    for some in told.booked:
        booked.setdefault(some.leg_id, []).append(some)
    for leg in legs:
        yield from _compare_leg(told.traveller_id, leg, booked.pop(leg.leg_id, []))
    for leg_id, unaudited in booked.items():
        sums = _sums(unaudited)
        if any(sums.values()):
            yield Difference(told.traveller_id, leg_id, "leg", None, sums)


def _compare_leg(traveller_id: str, leg: AuditedLeg, booked: Sequence[BookedSum]) -> Iterator[Difference]:
    """A leg's rider's charge, what each bearer pays and who is owed, against its booked lines."""
    expected = {"rider": leg.charge or 0, "held": leg.held, **leg.funded}
    found = _sums(booked)
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name, 0) != found.get(name, 0):
            yield Difference(traveller_id, leg.leg_id, name, expected.get(name, 0), found.get(name, 0))
    operators = {some.operator_id for some in booked if some.standing}
    if operators - {leg.operator_id}:
        yield Difference(traveller_id, leg.leg_id, "operator", leg.operator_id, sorted(map(str, operators)))


def _sums(booked: Iterable[BookedSum]) -> dict[str, int]:
    """What the rider is charged, what is `held`, and what each bearer pays."""
    sums: dict[str, int] = {}
    for some in booked:
        whose = "held" if some.kind == "hold" else "rider"
        sums[whose] = sums.get(whose, 0) + some.amount
        if some.funded:
            sums[some.bearer] = sums.get(some.bearer, 0) + some.funded
    return sums


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
