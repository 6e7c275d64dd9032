"""What became of a charge, by what the provider told of it, and where an account that owes stands. Pure.

A charge is written down before the provider is asked, and everything the provider tells (in an answer, in a webhook, twice, in
any order) is an event. What is booked is a function of the events as they came in, and only ever grows: one capture; then
refunds that we asked for and chargebacks, each once and never above what was captured; and what of a chargeback was won back.
An event that does not fit is kept, waits for one that makes it fit, moves no money meanwhile, and is named by the
reconciliation."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from datetime import date, timedelta
from typing import Literal

import msgspec

from clearing.collection.rules import Rules

Purpose = Literal["fares", "debt", "top_up", "auto_top_up", "till"]
"""A charge at a `till` was paid to whoever keeps it before we heard of it: its source is the party."""
State = Literal["begun", "pending", "captured", "declined"]
Kind = Literal["pending", "captured", "declined", "refunded", "refund_failed", "charged_back", "won_back"]

OWED = ("fares", "debt")
"""Purposes of charges for what was ridden already."""
TOP_UPS = ("top_up", "auto_top_up")
"""Purposes of charges for stored value."""
UNDECIDED = ("begun", "pending")
TAKES = ("captured", "won_back")
"""Kinds of effects by which the provider has more of a rider's money; by the others it has less."""


class Charge(msgspec.Struct, frozen=True, kw_only=True):
    """What we ask a provider to take. `charge_id` comes from its cause and is the key under which it is asked again."""

    charge_id: str
    account_id: str
    purpose: Purpose
    service_date: str
    amount: int
    recovers: int = 0
    """The part that pays debts that were written off before."""
    source: str
    made_at: int
    state: State = "begun"


class Refund(msgspec.Struct, frozen=True, kw_only=True):
    """What is given back of a booked line: to the source that paid (`charge_id`), or to the account where no source did."""

    refund_id: str
    charge_id: str | None
    account_id: str
    line_transaction: str
    leg_id: str
    amount: int
    bearer: str
    reason: str
    service_date: str
    made_at: int
    state: Literal["asked", "refunded", "failed", "credited"] = "asked"


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """What the provider told of a charge; `reference` names a refund or chargeback, also one that was won back."""

    event_id: str
    charge_id: str
    kind: Kind
    reference: str = ""
    amount: int = 0
    reason: str = ""
    at: int
    received_at: int = 0

    def says_as(self, other: Event) -> bool:
        """Whether it tells the same, whenever it came in."""
        return msgspec.structs.replace(self, received_at=0) == msgspec.structs.replace(other, received_at=0)


class Effect(msgspec.Struct, frozen=True):
    """Money that moves because of an event."""

    kind: Literal["captured", "refunded", "charged_back", "won_back"]
    reference: str
    amount: int

    @property
    def taken(self) -> int:
        """What it adds to what the provider holds of the rider's money."""
        return self.amount if self.kind in TAKES else -self.amount


class Misfit(msgspec.Struct, frozen=True):
    """An event that moves nothing, and why not."""

    event: Event
    why: str


class Folded(msgspec.Struct, frozen=True):
    """A charge as its events leave it."""

    state: State
    effects: tuple[Effect, ...]
    misfits: tuple[Misfit, ...]

    @property
    def left(self) -> int:
        """What of the capture was neither refunded nor charged back, or was won back."""
        return sum(effect.taken for effect in self.effects)


def digest(*parts: str) -> str:
    """An id made of its cause: charges, refunds and transactions."""
    return hashlib.sha256("/".join(("collection", *parts)).encode()).hexdigest()[:32]


def fold(charge: Charge, refunds: Mapping[str, Refund], events: Sequence[Event]) -> Folded:
    """What a charge's events come to, in the order in which they came in. More events never take an effect back."""
    misfits: list[Misfit] = []
    captures = [event for event in events if event.kind == "captured"]
    capture = next((event for event in captures if event.amount > 0), None)
    declined = next((event for event in events if event.kind == "declined"), None)
    misfits += [Misfit(event, "captured_otherwise") for event in captures if _differs(event, charge, capture)]
    moving = [event for event in events if event.kind in ("refunded", "charged_back", "won_back")]
    if capture is None:
        misfits += [Misfit(event, _TOO_EARLY[event.kind]) for event in moving]
        undecided: State = "pending" if any(event.kind == "pending" for event in events) else "begun"
        return Folded("declined" if declined else undecided, (), tuple(misfits))
    if declined is not None:
        misfits.append(Misfit(declined, "declined_and_captured"))
    effects = [Effect("captured", "", capture.amount)]
    waiting: list[Event] = []
    for event in moving:
        waiting.append(event)
        while (fitting := next((one for one in waiting if _why_not(one, refunds, effects, waiting) is None), None)) is not None:
            waiting.remove(fitting)
            effects.append(Effect(fitting.kind, fitting.reference, fitting.amount))  # type: ignore[arg-type]  # one of the three
    misfits += [Misfit(event, why) for event in waiting if (why := _why_not(event, refunds, effects, waiting))]
    return Folded("captured", tuple(effects), tuple(misfits))


_NAMES = {"refunded": "refund", "charged_back": "chargeback", "won_back": "won_back"}
_TOO_EARLY = {
    "refunded": "refund_before_capture",
    "charged_back": "chargeback_before_capture",
    "won_back": "won_back_before_chargeback",
}


def _differs(event: Event, charge: Charge, capture: Event | None) -> bool:
    """Whether a capture is of another amount than was asked, or than the one that is booked."""
    return event.amount != charge.amount or (capture is not None and event.amount != capture.amount)


def _why_not(event: Event, refunds: Mapping[str, Refund], effects: Sequence[Effect], waiting: Sequence[Event]) -> str | None:
    """Why an event after the capture moves nothing; None if it does, empty if it was told before."""
    name = _NAMES[event.kind]
    told = next((effect for effect in effects if (effect.kind, effect.reference) == (event.kind, event.reference)), None)
    if told is not None:
        return "" if told.amount == event.amount else f"{name}_twice"
    if event.kind == "refunded":
        asked = refunds.get(event.reference)
        if asked is None:
            return "refund_not_asked"
        if asked.amount != event.amount:
            return "refund_otherwise"
    if event.kind == "won_back":
        taken = sum(effect.amount for effect in effects if (effect.kind, effect.reference) == ("charged_back", event.reference))
        if not taken:
            return _TOO_EARLY[event.kind]
        return None if 0 < event.amount <= taken else "won_back_above_chargeback"
    left = sum(effect.taken for effect in effects)
    if event.kind == "charged_back":
        left += _won_already(event, waiting)
    if 0 < event.amount <= left:
        return None
    return f"{name}_{_after(event.kind, {effect.kind for effect in effects})}"


def _won_already(chargeback: Event, waiting: Sequence[Event]) -> int:
    """What of a chargeback was won back, as was told before it."""
    told = [one for one in waiting if (one.kind, one.reference) == ("won_back", chargeback.reference)]
    return next((one.amount for one in told if 0 < one.amount <= chargeback.amount), 0)


def _after(kind: str, moved: Collection[str]) -> str:
    """What there was before that leaves nothing for a refund or chargeback."""
    if kind == "charged_back" and kind in moved:
        return "twice"
    if kind == "refunded" and "charged_back" in moved:
        return "after_chargeback"
    if kind == "charged_back" and "refunded" in moved:
        return "after_refund"
    return "twice" if kind in moved else "above_capture"


# ---- where an account stands


class Mark(msgspec.Struct, frozen=True):
    """One outcome in an account's history: on which day, of how much."""

    kind: Literal["captured", "declined", "charged_back"]
    on: str
    amount: int


class Standing(msgspec.Struct, frozen=True):
    """Where an account that owes stands."""

    failures: int = 0
    since: str | None = None
    """The first day of what is not paid."""
    first_amount: int = 0
    """What was to be paid on that day."""
    next_try: str | None = None
    write_off_on: str | None = None
    denied: bool = False


CLEAR = Standing()


def standing(rules: Rules, marks: Sequence[Mark], owed: int, written_off: int) -> Standing:
    """Where an account stands by what became of its charges, oldest first. Who owes nothing is clear, whatever was before."""
    if owed <= 0 and written_off <= 0:
        return CLEAR
    paid = [number for number, mark in enumerate(marks) if mark.kind == "captured"]
    open_marks = [mark for mark in marks[paid[-1] + 1 if paid else 0 :] if mark.kind != "captured"]
    if not open_marks:
        return Standing(denied=written_off > 0)
    failures = sum(mark.kind == "declined" for mark in open_marks)
    disputed = any(mark.kind == "charged_back" for mark in open_marks)
    charging = rules.charging
    next_try = None
    if not disputed and failures <= len(charging.retry_days):
        next_try = days_after(open_marks[-1].on, charging.retry_days[failures - 1])
    return Standing(
        failures=failures,
        since=open_marks[0].on,
        first_amount=open_marks[0].amount,
        next_try=next_try,
        write_off_on=days_after(open_marks[0].on, rules.debts.write_off_days),
        denied=disputed or written_off > 0 or failures >= charging.deny_after,
    )


def is_due(rules: Rules, found: Standing, owed: int, on: str) -> bool:
    """Whether an account is charged on a day."""
    if owed < rules.charging.least or (found.denied and found.since is None):
        return False
    return found.since is None or (found.next_try is not None and found.next_try <= on)


def loss_parts(rules: Rules, found: Standing, owed: int) -> dict[str, int]:
    """Who bears how much of a debt that is given up: the first unpaid day up to its limit, and the rest."""
    first = min(found.first_amount, rules.debts.first_ride.limit, owed)
    parts = [(rules.debts.first_ride.bearer, first), (rules.debts.rest_bearer, owed - first)]
    borne: dict[str, int] = {}
    for bearer, amount in parts:
        if amount:
            borne[bearer] = borne.get(bearer, 0) + amount
    return borne


def days_after(day: str, days: int) -> str:
    """The date so many days after another."""
    return (date.fromisoformat(day) + timedelta(days=days)).isoformat()
