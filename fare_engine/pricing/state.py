"""What a traveller's past leaves behind for the future: open legs, joinable legs, counters and what was bought.

With this state a fold goes on where another stopped, and gives the same lines as one that starts from the first fact."""

from __future__ import annotations

import msgspec

from fare_engine.pricing.lines import Leg

NEVER = 1 << 62


class Lot(msgspec.Struct, gc=False):
    """A pass or book in a traveller's hands."""

    lot_id: str
    product_id: str
    version_id: str
    """The version it was bought under: it keeps that version's terms."""
    bought_day: int
    first_day: int | None
    """None: a pass that starts with its first tap, not yet ridden."""
    last_day: int | None
    used: int
    """Of a book: coupons; of a pass: days whose part of the price is released."""
    next_due: int
    """When its next day begins, or after its last day."""
    until: int | None = None
    """A pass by minutes: the last instant at which a ride that it pays may begin; None: not begun, or by days."""
    loaded: int = 0
    """Credit: the money loaded."""
    token_id: str = ""
    """Credit: the token that holds it."""


class Group(msgspec.Struct, gc=False):
    """Legs that a joining rule has put together so far."""

    rule_id: str
    version_id: str
    legs: list[Leg]
    worth: int | None
    """None: one of the legs has no price yet."""
    opened_by: int = 0
    """Which of them is the one from which a window of the first leg runs."""

    @property
    def last(self) -> Leg:
        """The leg that joined last."""
        return self.legs[-1]

    @property
    def transfers(self) -> int:
        """How many legs followed the first."""
        return len(self.legs) - 1


class Owed(msgspec.Struct, gc=False):
    """What a rebate's period holds so far."""

    rule_id: str
    version_id: str
    period: int
    due: int
    """The instant at which it is paid: a day after the period, so that a ride across the turn has ended."""
    spent: int
    legs: int
    last: Leg


class State(msgspec.Struct):
    """Everything the fold remembers of one traveller."""

    open_legs: list[Leg] = []
    overdue: list[Leg] = []
    """Legs charged for a missing exit that may still come late."""
    joinable: list[Leg] = []
    """Complete legs that may be the first of a group, oldest first."""
    transfers: dict[str, int] = {}
    """Of a joinable leg: how many transfers its group has had."""
    counters: dict[tuple[str, int], int] = {}
    """(cap or discount id, first day of its period) → amount or number so far."""
    groups: list[Group] = []
    """Of joining rules other than pairs; the one joined last stands last."""
    last_leg_id: str = ""
    """The leg settled last."""
    anchors: dict[str, int] = {}
    """Rule id → where its running period began, of periods that begin with a leg."""
    owners: dict[tuple[str, int], str] = {}
    """(rule, period) → the version of the period's first leg, of rules that it owns."""
    windows: dict[tuple[str, int], list[int]] = {}
    """(window with candidates, period) → what each choice would cost so far."""
    owed: list[Owed] = []
    lots: list[Lot] = []
    next_due: int = NEVER
    """The next instant at which something happens without a tap."""

    def reckon_next_due(self) -> None:
        """Call after an open leg, a lot or a rebate's period came or went."""
        due = NEVER
        for leg in self.open_legs:
            due = min(due, leg.due)
        for lot in self.lots:
            due = min(due, lot.next_due)
        for owed in self.owed:
            due = min(due, owed.due)
        self.next_due = due
