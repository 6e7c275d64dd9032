"""The fold: a traveller's facts in their order become legs and lines.

Worth is built upward, from leg prices (`legs`) over groups of legs (`as_one` on list fares, `groups` after discounts) to
periods (`rewards`, `periods`). A fact moves money by
what it changes in the worth of its window: it adds lines, and never changes one. The same fold prices one tap at the gate
and a month of taps in a batch. Pure: no clock, database or randomness; time passes because `as_of` says so."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from fare_engine.facts import Fact, Purchase, Tap, in_order
from fare_engine.pricing import legs, products, rewards
from fare_engine.pricing.lines import Leg, Line, LineKind, Sale
from fare_engine.pricing.state import State
from fare_engine.service_day import DAY_MS
from fare_engine.tariff.compile import CompiledTariff, CompiledVersion, Terms
from fare_engine.tariff.conditions import Ready
from fare_engine.tariff.model import OPERATORS


class Passed(msgspec.Struct, frozen=True):
    """A rule that was looked at for a leg and did not act: the condition that failed."""

    leg_id: str
    rule_id: str
    reason: str


class Folded(msgspec.Struct):
    """What became of some facts. `ignored` names the taps that mean nothing on their network, with the reason."""

    legs: dict[str, Leg]
    sales: dict[str, Sale]
    lines: list[Line]
    ignored: dict[str, str]
    state: State
    passed: list[Passed] = []
    """Where it was asked for: the rules that did not act."""


class Fold:
    """One traveller's fold under way. `cause` is the fact being taken, or the passing of time."""

    def __init__(self, tariff: CompiledTariff, state: State) -> None:
        self.tariff = tariff
        self.state = state
        self.legs: dict[str, Leg] = _reunited(state) if state.last_leg_id or state.open_legs else {}
        self.sales: dict[str, Sale] = {}
        self.lines: list[Line] = []
        self.ignored: dict[str, str] = {}
        self.cause = ""
        self.trace: list[Passed] | None = None
        """Where it is asked for: which rules were looked at for a leg and did not act, and why."""

    def take(self, fact: Tap | Purchase) -> None:
        """One fact, after everything that was due before it."""
        if self.state.next_due < fact.at:
            self.advance(fact.at)
        self.cause = fact.fact_id
        if isinstance(fact, Tap):
            legs.take_tap(self, fact)
        else:
            products.take_purchase(self, fact)

    def advance(self, to: int) -> None:
        """Let time pass to just before `to`: overdue exits and ends of products, each at its own instant and in order."""
        state = self.state
        while state.next_due < to:
            at = state.next_due
            overdue = [leg for leg in state.open_legs if leg.due == at]
            for leg in overdue:
                legs.close_overdue(self, leg)
            products.pass_time(self, at)
            rewards.pay_rebates(self, at)
            state.reckon_next_due()
        state.overdue = [leg for leg in state.overdue if leg.entry_at is not None and to - leg.entry_at < DAY_MS]

    def version_of(self, leg: Leg) -> CompiledVersion:
        """The version that owns a leg: the one in force at its first tap."""
        return self.tariff.versions[leg.version_id]

    def terms_of(self, leg: Leg) -> Terms | None:
        """What holds for a leg."""
        if leg.network_id is None or not leg.version_id:
            return None
        return self.version_of(leg).terms(leg.network_id, leg.route_id, leg.media, leg.rider_category)

    def holds(self, leg: Leg, conditions: Ready, rule_id: str) -> bool:
        """Whether a leg meets a row's conditions, by the version that owns the leg."""
        if conditions.always:
            return True
        version = self.version_of(leg)
        failing = conditions.failing(leg, version.network, version.prices.groups)
        if failing is None:
            return True
        self.passed(leg, rule_id, failing)
        return False

    def passed(self, leg: Leg, rule_id: str, reason: str) -> None:
        """Note, where it is asked for, that a rule does not act."""
        if self.trace is not None:
            self.trace.append(Passed(leg.leg_id, rule_id, reason))

    def add_line(self, leg: Leg, kind: LineKind, rule_id: str, amount: int, bearer: str = "rider", version_id: str = "") -> None:
        """A line of a leg: a bearer who is neither the rider nor the operators pays what he takes off.

        A fact that makes the same rule act on the same leg more than once makes one line of it all (`line_id`); none where that
        comes to nothing. `version_id` is given where another version than the leg's owns the rule."""
        funded = 0 if bearer in ("rider", OPERATORS) else -amount
        version_id = version_id or leg.version_id
        line = Line(leg.leg_id, kind, rule_id, amount, bearer, funded, self.cause, version_id, leg.service_day)
        for number in range(len(self.lines) - 1, -1, -1):
            other = self.lines[number]
            if other.cause != self.cause:
                break
            if other.leg_id == leg.leg_id and other.kind == kind and other.rule_id == rule_id:
                self._add_to_line(number, line)
                return
        self.lines.append(line)

    def _add_to_line(self, number: int, more: Line) -> None:
        known = self.lines[number]
        amount, funded = known.amount + more.amount, known.funded + more.funded
        if amount or funded:
            self.lines[number] = msgspec.structs.replace(known, amount=amount, funded=funded)
        else:
            del self.lines[number]


def fold(
    tariff: CompiledTariff, facts: Iterable[Fact], as_of: int, state: State | None = None, *, explain: bool = False
) -> Folded:
    """The legs and lines of a traveller's facts, as known at the instant `as_of`; the same for any order of the facts.

    `state` is what an earlier fold of older facts left. It is not changed. `explain` also gives the rules that did not act."""
    work = Fold(tariff, copy_state(state) if state is not None else State())
    work.trace = [] if explain else None
    for fact in in_order(facts):
        work.take(fact)
    work.advance(as_of)
    return Folded(work.legs, work.sales, work.lines, work.ignored, work.state, work.trace or [])


def _reunited(state: State) -> dict[str, Leg]:
    """The legs that a state remembers. One that stands in several places of it is made the same leg everywhere: a state that
    was written down and read again holds copies."""
    legs: dict[str, Leg] = {}

    def one(leg: Leg) -> Leg:
        return legs.setdefault(leg.leg_id, leg)

    state.joinable = [one(leg) for leg in state.joinable]
    state.open_legs = [one(leg) for leg in state.open_legs]
    state.overdue = [one(leg) for leg in state.overdue]
    for group in state.groups:
        group.legs = [one(leg) for leg in group.legs]
    for owed in state.owed:
        owed.last = one(owed.last)
    return legs


def copy_state(state: State) -> State:
    """A state that shares nothing with the given one."""
    return _decoder.decode(_encoder.encode(state))


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(State)
