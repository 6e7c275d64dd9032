"""What is booked of a traveller, against what should be: the difference is what a new fact moves.

The fold says which lines there should be; the record says which are booked. A line that is no longer there, or has another
amount, is reversed; a new one is booked. Whatever the order in which facts came, the sums end up the same."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from fare_engine.facts import Fact, Purchase, Tap
from fare_engine.ledger import accounting_date, transaction_id
from fare_engine.pricing.fold import Folded, fold
from fare_engine.pricing.lines import Line, line_id
from fare_engine.pricing.state import State
from fare_engine.rides import BookedRide
from fare_engine.service_day import to_date
from fare_engine.tariff.compile import CompiledTariff


class Entitlement(msgspec.Struct, frozen=True, array_like=True):
    """A rider category that a traveller has from an instant on, up to before another (None: without end)."""

    category: str
    valid_from: int
    valid_to: int | None


class Payer(msgspec.Struct, frozen=True, array_like=True):
    """The account that pays from a service day on."""

    account_id: str
    first_day: int


class Booked(msgspec.Struct, array_like=True):
    """A line with its latest movement: an even generation stands, an odd one is reversed."""

    line: Line
    generation: int
    service_date: str
    operator_id: str | None
    network_id: str | None
    account_id: str = ""
    """Who pays it, where that has ever changed; empty: whoever paid from the beginning."""
    booked_on: str = ""
    """The accounting date of its latest booking."""
    was: list[tuple[str, str, Line]] = []
    """What it was before: booked under one accounting date, reversed under another."""

    def as_of(self, through: str) -> Line | None:
        """The line as it stood when an accounting date was closed, or None."""
        if stands(self) and self.booked_on <= through:
            return self.line
        return next((line for begun, ended, line in self.was if begun <= through < ended), None)


class Ridden(msgspec.Struct, frozen=True, array_like=True):
    """A complete ride, as far as it tells where a rider usually goes."""

    leg_id: str
    network_id: str | None
    from_stop_id: str | None
    to_stop_id: str | None
    entry_at: int
    exit_at: int


class Record(msgspec.Struct):
    """What a traveller's row holds: the open window, and the state before it (`windows`)."""

    facts: list[Fact] = []
    refused: list[Tap] = []
    """Taps that the service did not let through: they act only if the terminal opened all the same."""
    entitlements: list[Entitlement] = []
    booked: dict[str, Booked] = {}
    base: State | None = None
    """The state before the open window's facts; None: there is no closed window."""
    payers: list[Payer] = []
    """Where the account changed: who pays from which day on, oldest first; the first of them from the beginning."""
    waived: dict[str, int] = {}
    """Service date → what was charged too late and so was not collected; less than zero: given back too late, and kept."""
    revision: str = ""
    """Of engine and tariff, when it was priced last."""
    as_of: int = 0
    """To when it was priced last."""
    rides: dict[str, BookedRide] = {}
    """Leg → what is booked of it beside its lines."""
    since: int = 0
    """Where the open window begins, where there are closed ones: the end of the last of them."""
    earlier: list[Ridden] = []
    """The complete rides of the last weeks before the open window."""


class Movement(msgspec.Struct, frozen=True):
    """One movement of one line: booked (amounts as they are) or reversed (amounts negated). `account_id` pays; empty: the
    traveller's only account."""

    transaction_id: str
    line_id: str
    generation: int
    line: Line
    service_date: str
    operator_id: str | None
    network_id: str | None
    account_id: str
    accounting_date: str


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Record)


def encode(record: Record) -> bytes:
    """A record as its row keeps it."""
    return _encoder.encode(record)


def decode(data: bytes) -> Record:
    """A record from its row."""
    return _decoder.decode(data)


def price(tariff: CompiledTariff, record: Record, as_of: int, *, explain: bool = False) -> Folded:
    """The fold of a record's facts, each tap with the category that the traveller had at its time."""
    return fold(tariff, with_categories(record, tariff.default_category), as_of, record.base, explain=explain)


def with_categories(record: Record, default: str) -> Iterable[Fact]:
    """The record's facts with the rider category that held at each one's time: the latest entitlement that began by then."""
    if not record.entitlements:
        return [_in_category(fact, default) for fact in record.facts]
    newest_first = sorted(record.entitlements, key=lambda entitlement: entitlement.valid_from, reverse=True)
    return [_in_category(fact, _category_at(newest_first, fact.at, default)) for fact in record.facts]


def book(traveller_id: str, record: Record, folded: Folded, closed_through: str | None = None) -> list[Movement]:
    """Bring what is booked to what should be; the record is brought up to date and the movements are given. What is for a
    service date that is closed, or before one, is booked under the first open date."""
    wanted: dict[str, Line] = {line_id(line): line for line in folded.lines}
    movements = [
        _move(traveller_id, record, booked, known, closed_through, reverse=True)
        for known, booked in sorted(record.booked.items())
        if stands(booked) and not _as_wanted(record, booked, wanted.get(known))
    ]
    for wanted_id, line in wanted.items():
        booked = record.booked.get(wanted_id)
        if booked is not None and stands(booked):
            continue
        record.booked[wanted_id] = _booked(record, line, booked, folded)
        movements.append(_move(traveller_id, record, record.booked[wanted_id], wanted_id, closed_through, reverse=False))
    return movements


def payer_on(record: Record, day: int) -> str:
    """The account that pays for a service day; empty where there was only ever one."""
    found = record.payers[0].account_id if record.payers else ""
    for payer in record.payers:
        if payer.first_day <= day:
            found = payer.account_id
    return found


def _as_wanted(record: Record, booked: Booked, line: Line | None) -> bool:
    if line != booked.line:
        return False
    return _paid_by(record, booked) == payer_on(record, line.service_day)


def _paid_by(record: Record, booked: Booked) -> str:
    """The account that a line was booked to; empty where there was only ever one."""
    return booked.account_id or (record.payers[0].account_id if record.payers else "")


def charge(movements: Iterable[Movement]) -> int:
    """What some movements take from whoever pays."""
    return sum(movement.line.amount for movement in movements)


def _in_category(fact: Fact, category: str) -> Fact:
    if not isinstance(fact, Tap | Purchase) or fact.rider_category == category:
        return fact
    return msgspec.structs.replace(fact, rider_category=category)


def _category_at(newest_first: list[Entitlement], at: int, default: str) -> str:
    for entitlement in newest_first:
        if entitlement.valid_from <= at and (entitlement.valid_to is None or at < entitlement.valid_to):
            return entitlement.category
    return default


def stands(booked: Booked) -> bool:
    """Whether a line is booked and not reversed."""
    return booked.generation % 2 == 0


def _booked(record: Record, line: Line, before: Booked | None, folded: Folded) -> Booked:
    leg = folded.legs.get(line.leg_id)
    day = to_date(line.service_day).isoformat()
    operator, network = (leg.operator_id, leg.network_id) if leg else (None, None)
    generation, was = (before.generation, before.was) if before is not None else (-1, [])
    return Booked(line, generation, day, operator, network, payer_on(record, line.service_day), "", was)


def _move(
    traveller_id: str, record: Record, booked: Booked, booked_id: str, closed_through: str | None, *, reverse: bool
) -> Movement:
    booked.generation += 1
    line = booked.line
    on = accounting_date(booked.service_date, closed_through)
    if reverse:
        booked.was.append((booked.booked_on, on, line))
        line = msgspec.structs.replace(line, amount=-line.amount, funded=-line.funded)
    else:
        booked.booked_on = on
    return Movement(
        transaction_id(traveller_id, booked_id, booked.generation),
        booked_id,
        booked.generation,
        line,
        booked.service_date,
        booked.operator_id,
        booked.network_id,
        _paid_by(record, booked),
        on,
    )
