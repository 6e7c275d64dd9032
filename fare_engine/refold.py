"""One traveller's books: facts come in, the record is folded again, and the difference is booked.

The same path for a tap in order, a late one, a claim, a link, or nothing but time. What goes wrong in one traveller's fold stays
there: his facts are kept, he is marked dirty, his answer is provisional, and a later try prices him. Lines that change though
no fact explains it (the engine or the tariff changed) are drift: held and shown until somebody decides."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias, TypeVar

from sqlalchemy import Connection

from fare_engine import booking, late, windows
from fare_engine.booking import Movement, Record
from fare_engine.facts import Fact, Tap, order_key
from fare_engine.ledger import transaction_id
from fare_engine.pricing.fold import Folded
from fare_engine.pricing.lines import Line, began, line_id
from fare_engine.revision import revision_of
from fare_engine.rides import RideMovement, book_rides
from fare_engine.store import books, travellers
from fare_engine.store.travellers import CASH, Traveller
from fare_engine.tariff.compile import CompiledTariff

logger = logging.getLogger(__name__)

SomeFact = TypeVar("SomeFact", bound=Fact)

FoldedAnew: TypeAlias = tuple[Folded, list[Movement], list[RideMovement]]
"""A traveller's fold, and what of his lines and legs moves by it."""


class Moment(NamedTuple):
    """When something is folded, and up to which date the books are closed then."""

    now: int
    closed_through: str | None


UNKNOWN_PRICE = "unknown_price"
"""`dirty_reason` of a traveller with a ride that the tariff gives no price for: tried again when the tariff changes."""
DRIFT = "drift"


@dataclass(slots=True)
class Change:
    """What is added to one traveller's record, and what of it asks to be let in."""

    facts: list[Fact] = field(default_factory=list)
    refused: list[Tap] = field(default_factory=list)
    released: set[str] = field(default_factory=set)
    """Refused taps whose terminal let the rider in all the same."""
    withdrawn: set[str] = field(default_factory=set)
    """Facts that are another traveller's from now on."""
    asking: set[str] = field(default_factory=set)
    """Taps that ask to be let in: refused if the account would fall below its floor."""
    turned_away: set[str] = field(default_factory=set)
    """Which of these were refused."""


@dataclass(slots=True)
class Refolded:
    """What became of some travellers: their folds (none for one that failed), and by how much balances changed."""

    folded: dict[str, Folded] = field(default_factory=dict)
    balances: dict[str, int] = field(default_factory=dict)
    charged: int = 0

    def add(self, later: Refolded) -> None:
        """What became of some of them after that."""
        self.folded |= later.folded
        self.charged += later.charged
        for account_id, change in later.balances.items():
            self.balances[account_id] = self.balances.get(account_id, 0) + change


class Refolder:
    """Folds records under one tariff, and books the difference."""

    def __init__(self, tariff: CompiledTariff, ages: windows.Ages = windows.USUAL) -> None:
        self.tariff = tariff
        self.ages = ages
        self.revision = revision_of(tariff)

    def refold(
        self,
        connection: Connection,
        rows: Mapping[str, Traveller],
        changes: Mapping[str, Change],
        now: int,
        booked_for: str = "",
        floors: Mapping[str, int] | None = None,
    ) -> Refolded:
        """Add to records, fold them to `now`, book the difference. `rows` are locked. `floors`: account → how much may be
        taken from it now for who asks to be let in; it is counted down as it is used."""
        found = Refolded()
        if not rows:
            return found
        entries = books.Booking(books.last_closed(connection), self.revision)
        moment = Moment(now, entries.closed_through)
        left = dict(floors or {})
        for traveller_id, traveller in rows.items():
            change = changes[traveller_id]
            result = self._one(connection, traveller, change, moment, left)
            if result is None:
                continue
            folded, movements, rides = result
            found.folded[traveller_id] = folded
            cause = change.facts[-1].fact_id if change.facts else booked_for
            entries.add(traveller_id, traveller.account_id, cause, movements)
            entries.add_rides(traveller_id, rides)
            self._waive(entries, traveller, movements, now)
            found.charged += sum(m.line.amount for m in movements if m.line.kind not in ("hold", "sale"))
        entries.write(connection)
        travellers.save_travellers(connection, rows.values())
        travellers.change_balances(connection, entries.balance_changes)
        found.balances = entries.balance_changes
        return found

    def close_windows(self, connection: Connection, rows: Iterable[Traveller], now: int) -> None:
        """Put away what is old of records that were just priced and saved. What goes wrong leaves a record as it is."""
        closing = []
        for traveller in rows:
            if not (traveller.reopened or windows.is_due(traveller.record, now, self.ages)):
                continue
            try:
                traveller.closed = windows.close(self.tariff, traveller.traveller_id, traveller.record, now, self.ages)
            except Exception:
                logger.exception("a window of a traveller could not be closed")
            if traveller.closed:
                closing.append(traveller)
        if closing:
            travellers.save_travellers(connection, closing)

    def _one(
        self, connection: Connection, traveller: Traveller, change: Change, moment: Moment, left: dict[str, int]
    ) -> FoldedAnew | None:
        if self._has_drifted(connection, traveller, moment.now):
            _add(traveller.record, change)
            return None
        account = traveller.account_id
        if account not in left:
            _add(traveller.record, change)
            return self._fold(traveller, change, moment)
        before = booking.encode(traveller.record)
        _add(traveller.record, change)
        result = self._fold(traveller, change, moment)
        if result is not None and change.asking and booking.charge(result[1]) > left[account]:
            result = self._ask_one_by_one(traveller, before, change, moment, left[account])
        if result is not None:
            left[account] -= booking.charge(result[1])
        return result

    def _ask_one_by_one(
        self, traveller: Traveller, before: bytes, change: Change, moment: Moment, left: int
    ) -> FoldedAnew | None:
        """Let in who asks in the order of the taps, as long as what is left is enough for all up to him."""
        asking = sorted((fact for fact in change.facts if fact.fact_id in change.asking), key=order_key)
        change.facts = [fact for fact in change.facts if fact.fact_id not in change.asking]
        for fact in asking:
            traveller.record = booking.decode(before)
            change.facts.append(fact)
            _add(traveller.record, change)
            result = self._fold(traveller, change, moment)
            if result is not None and booking.charge(result[1]) > left:
                change.facts.pop()
                change.turned_away.add(fact.fact_id)
                change.refused += [fact] if isinstance(fact, Tap) else []
        traveller.record = booking.decode(before)
        _add(traveller.record, change)
        return self._fold(traveller, change, moment)

    def _fold(self, traveller: Traveller, change: Change, moment: Moment) -> FoldedAnew | None:
        """The fold and what it moves; None where it failed, with the record as it was but for its facts."""
        record = traveller.record
        now, closed_through = moment
        untouched = booking.encode(record)
        try:
            folded = booking.price(self.tariff, record, max(now, record.as_of))
            movements = booking.book(traveller.traveller_id, record, folded, closed_through)
            rides = book_rides(traveller.traveller_id, record.rides, folded, self.tariff, closed_through)
        except Exception as error:  # whatever it is, it must not leave this traveller: the tap is kept and tried again
            logger.exception("the fold of a traveller failed")
            traveller.record = booking.decode(untouched)
            _mark(traveller, min((fact.at for fact in change.facts), default=now), type(error).__name__)
            return None
        record.revision, record.as_of = self.revision, max(now, record.as_of)
        traveller.next_due = folded.state.next_due
        traveller.dirty_since = None
        unknown = any(leg.status == "unknown" for leg in folded.legs.values())
        traveller.dirty_reason = UNKNOWN_PRICE if unknown else None
        return folded, movements, rides

    def _waive(self, entries: books.Booking, traveller: Traveller, movements: list[Movement], now: int) -> None:
        if traveller.account_id == CASH or not movements:
            return
        waived = traveller.record.waived
        for waiver in late.waivers(self.tariff, movements, traveller.account_id, waived, now):
            waived[waiver.service_date] = waived.get(waiver.service_date, 0) + waiver.amount
            made_by = "/".join(sorted(movement.transaction_id for movement in movements))
            cause = f"waiver/{waiver.service_date}/{waiver.account_id}/{made_by}"
            waiver_id = transaction_id(traveller.traveller_id, cause, 0)
            entries.waive(waiver_id, waiver.account_id, waiver.bearer, waiver.amount, waiver.service_date)

    def _has_drifted(self, connection: Connection, traveller: Traveller, now: int) -> bool:
        """Whether the same facts, to the same instant, now give other lines than are booked. Asked once after a change of
        engine or tariff; a rider whose lines drifted is held until `accept_drift`."""
        record = traveller.record
        if record.revision in ("", self.revision) or not record.booked:
            return False
        if traveller.dirty_reason == DRIFT:
            return True
        try:
            changed = drift_of(self.tariff, record)
        except Exception:  # what fails here fails again in the fold proper, and is dealt with there
            return False
        if not changed:
            return False
        _mark(traveller, now, DRIFT)
        travellers.add_drift(connection, traveller.traveller_id, now, self.revision, changed)
        return True


def drift_of(tariff: CompiledTariff, record: Record) -> list[str]:
    """What would change of the booked lines though no fact came: `- line` and `+ line`, sorted; none is the normal case.

    A ride that had no price and now has one is no drift, nor is what follows from it: the tariff was mended."""
    folded = booking.price(tariff, record, record.as_of)
    wanted: dict[str, Line] = {line_id(line): line for line in folded.lines}
    standing = {key: booked.line for key, booked in record.booked.items() if booking.stands(booked)}
    gone = [("-", line) for key, line in standing.items() if wanted.get(key) != line]
    come = [("+", line) for key, line in wanted.items() if standing.get(key) != line]
    priced, priced_before = ({line.leg_id for line in lines.values()} for lines in (wanted, standing))
    mended = [began(leg) for leg in folded.legs.values() if leg.leg_id in priced - priced_before]
    if mended:
        explained = {leg.leg_id for leg in folded.legs.values() if began(leg) >= min(mended)}
        gone, come = ([pair for pair in pairs if pair[1].leg_id not in explained] for pairs in (gone, come))
    return sorted(f"{sign} {_shown(line)}" for sign, line in gone + come)


def _shown(line: Line) -> str:
    return f"{line.leg_id} {line.kind} {line.rule_id} {line.amount} {line.version_id}"


def _mark(traveller: Traveller, since: int, reason: str) -> None:
    traveller.dirty_since = since if traveller.dirty_since is None else min(traveller.dirty_since, since)
    traveller.dirty_reason = reason


def _add(record: Record, change: Change) -> None:
    """The change's facts into the record, each once."""
    known = {fact.fact_id for fact in record.facts} | {fact.fact_id for fact in record.refused}
    record.facts += _new(change.facts, known)
    record.refused += _new(change.refused, known)
    if change.released:
        record.facts += [fact for fact in record.refused if fact.fact_id in change.released]
        record.refused = [fact for fact in record.refused if fact.fact_id not in change.released]
    if change.withdrawn:
        record.facts = [fact for fact in record.facts if fact.fact_id not in change.withdrawn]
        record.refused = [fact for fact in record.refused if fact.fact_id not in change.withdrawn]


def _new(facts: Iterable[SomeFact], known: set[str]) -> list[SomeFact]:
    found = []
    for fact in facts:
        if fact.fact_id not in known:
            known.add(fact.fact_id)
            found.append(fact)
    return found
