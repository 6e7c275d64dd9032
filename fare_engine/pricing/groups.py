"""Legs that are priced as a group: when the second of two joined legs is ridden, an amount comes off each.

A leg that costs its rider nothing joins nothing; an adjustment never makes a leg cheaper than free. The rule and its amounts
are those of the version that owns the group's first leg."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fare_engine.pricing import periods
from fare_engine.pricing.lines import Leg
from fare_engine.tariff.compile import Join, Terms

if TYPE_CHECKING:
    from fare_engine.pricing.fold import Fold

LONGEST_RIDE_MS = 24 * 3_600_000


def join(fold: Fold, leg: Leg, terms: Terms) -> None:
    """Join the leg, just completed and not free, to the latest earlier leg that it fits, and offer it to later ones."""
    state = fold.state
    if not state.joinable and not terms.joins:
        return
    transfers = 0
    for first in reversed(state.joinable):
        rule = _fitting(fold, first, leg)
        if rule is not None:
            transfers = state.transfers.pop(first.leg_id, 0) + 1
            state.joinable.remove(first)
            _adjust(fold, first, leg, rule)
            break
    _offer(fold, leg, terms, transfers)


def _fitting(fold: Fold, first: Leg, second: Leg) -> Join | None:
    """The rule, if any, by which `second` may follow `first`."""
    assert first.entry_at is not None
    assert second.entry_at is not None
    first_terms = fold.terms_of(first)
    if first_terms is None:
        return None
    for candidate in first_terms.joins:
        rule = candidate.rule
        anchor = first.entry_at if rule.window_from == "entry" else first.exit_at
        if (
            second.network_id in candidate.to_networks
            and anchor is not None
            and fold.state.transfers.get(first.leg_id, 0) < rule.max_transfers
            and candidate.fits_rider(second.media, second.rider_category)
            and candidate.reaches(anchor, second.entry_at)
        ):
            return candidate
    return None


def _adjust(fold: Fold, first: Leg, second: Leg, join: Join) -> None:
    rule = join.rule
    first_terms = fold.terms_of(first)
    assert first_terms is not None
    off_first = min(rule.off_first, first.net)
    off_second = min(rule.off_second, second.net)
    if off_first:
        first.net -= off_first
        fold.add_line(first, "transfer", rule.rule_id, -off_first, rule.bearer)
        periods.count(fold, first, -off_first, first_terms)
    if off_second:
        second.net -= off_second
        fold.add_line(second, "transfer", rule.rule_id, -off_second, rule.bearer, first.version_id)


def _offer(fold: Fold, leg: Leg, terms: Terms, transfers: int) -> None:
    """Keep the leg while it may be the first of a group, and forget those whose windows have closed."""
    state = fold.state
    if state.joinable:
        _forget_closed(fold, _ended(leg))
    if any(transfers < join.rule.max_transfers for join in terms.joins):
        state.joinable.append(leg)
        if transfers:
            state.transfers[leg.leg_id] = transfers


def _forget_closed(fold: Fold, now: int) -> None:
    state = fold.state
    for old in [old for old in state.joinable if not _still_joinable(fold, old, now)]:
        state.joinable.remove(old)
        state.transfers.pop(old.leg_id, None)


def _still_joinable(fold: Fold, leg: Leg, now: int) -> bool:
    """A leg stays until the windows and the longest ride that may end in them have passed."""
    terms = fold.terms_of(leg)
    waited = now - _ended(leg) - LONGEST_RIDE_MS
    return terms is not None and any(waited <= join.window_ms for join in terms.joins)


def _ended(leg: Leg) -> int:
    ended = leg.exit_at if leg.exit_at is not None else leg.entry_at
    assert ended is not None
    return ended
