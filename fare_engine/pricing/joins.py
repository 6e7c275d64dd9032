"""When one leg may follow another: what all joining rules share (docs/tariff.md, "joining_rules").

What the legs are then worth together is decided elsewhere: on list fares in `as_one`, after discounts in `groups`."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from fare_engine.pricing.lines import Leg, began, ended
from fare_engine.pricing.state import Group
from fare_engine.service_day import MINUTE_MS
from fare_engine.tariff.compile import Join, Link
from fare_engine.tariff.conditions import names_route, static_failing

if TYPE_CHECKING:
    from fare_engine.pricing.fold import Fold

_FIELDS = {"service_day": "service_day", "network": "network_id", "route": "route_id", "operator": "operator_id"}


def latest_group(fold: Fold, rule_id: str, leg: Leg) -> tuple[Group, Join] | None:
    """The group of a rule, the one joined last first, that a leg may join, with the rule in the owner's version."""
    for group in reversed(fold.state.groups):
        if group.rule_id != rule_id:
            continue
        join = _owners_rule(fold, group, leg)
        if join is None:
            continue
        reason = _group_failing(fold, group, join, leg)
        if reason is None:
            return group, join
        fold.passed(leg, rule_id, reason)
    return None


def running_rules(fold: Fold, own: Collection[str], worths: Collection[str]) -> list[str]:
    """The rules of the leg's version, and before them those of running groups of such worths that it does not know any more."""
    versions = fold.tariff.versions
    older = {
        group.rule_id: None
        for group in fold.state.groups
        if group.rule_id not in own and versions[group.version_id].joins[group.rule_id].rule.worth in worths
    }
    return [*older, *own]


def begin_group(fold: Fold, join: Join, leg: Leg, worth: int | None) -> None:
    """A leg that joined no group of a rule begins one, if the rule lets it be a first leg. None: its worth is not known."""
    if any(_may_be_first(link, leg) for link in join.links) and fold.holds(leg, join.ready, join.rule.rule_id):
        fold.state.groups.append(Group(join.rule.rule_id, leg.version_id, [leg], worth))


def extend_group(fold: Fold, group: Group, leg: Leg) -> None:
    """A leg becomes the last of a group."""
    leg.follows = (*leg.follows, (group.rule_id, group.last.leg_id))
    group.legs.append(leg)
    fold.state.groups.remove(group)
    fold.state.groups.append(group)


def forget_groups(fold: Fold, now: int) -> None:
    """Drop the groups whose windows have passed for rides that begin now, and for those that are still under way."""
    groups = fold.state.groups
    if not groups:
        return
    since = running_since(fold, now)
    kept = [group for group in groups if since - ended(group.last) <= _longest(fold, group)]
    if len(kept) < len(groups):
        fold.state.groups = kept


def failing(fold: Fold, join: Join, earlier: Leg, leg: Leg, anchor: Leg, first: Leg) -> str | None:
    """Why `leg` may not follow `earlier` under a rule, or None. `anchor` is the leg from which a window of the first runs."""
    rule = join.rule
    if leg.network_id is None:
        return "networks"
    reason = static_failing(rule, leg.network_id, leg.route_id, leg.media, leg.rider_category)
    if reason is not None:
        return reason
    if not join.ready.always:
        version = fold.version_of(leg)
        reason = join.ready.failing(leg, version.network, version.prices.groups)
        if reason is not None:
            return reason
    if not rule.skips and fold.state.last_leg_id != earlier.leg_id:
        return "skips"
    for name in rule.same:
        if getattr(leg, _FIELDS[name]) != getattr(earlier, _FIELDS[name]) or getattr(leg, _FIELDS[name]) is None:
            return f"same {name}"
    if rule.span_minutes and began(leg) - began(first) > rule.span_minutes * MINUTE_MS:
        return "span_minutes"
    reasons = [_link_failing(fold, link, earlier, leg, anchor) for link in join.links]
    return None if None in reasons else reasons[0]


def _may_be_first(link: Link, leg: Leg) -> bool:
    groups = link.fields.from_leg_groups
    return (not link.from_networks or leg.network_id in link.from_networks) and (not groups or leg.leg_group_id in groups)


def _owners_rule(fold: Fold, group: Group, leg: Leg) -> Join | None:
    join = fold.tariff.versions[group.version_id].joins.get(group.rule_id)
    if join is not None and join.rule.owner == "leg":
        return fold.version_of(leg).joins.get(group.rule_id)
    return join


def running_since(fold: Fold, now: int) -> int:
    """The earliest instant at which a ride may have begun that is not yet complete."""
    return min([now, *(began(leg) for leg in fold.state.open_legs)])


def _group_failing(fold: Fold, group: Group, join: Join, leg: Leg) -> str | None:
    if group.transfers >= join.rule.max_transfers:
        return "max_transfers"
    return failing(fold, join, group.last, leg, group.legs[group.opened_by], group.legs[0])


def _link_failing(fold: Fold, link: Link, earlier: Leg, leg: Leg, anchor: Leg) -> str | None:
    fields = link.fields
    for name in fields.differs:
        if not _differs(name, earlier, leg):
            return f"differs {name}"
    if link.from_networks and earlier.network_id not in link.from_networks:
        return "from_networks"
    if link.to_networks and leg.network_id not in link.to_networks:
        return "to_networks"
    if fields.from_leg_groups and earlier.leg_group_id not in fields.from_leg_groups:
        return "from_leg_groups"
    if fields.to_leg_groups and leg.leg_group_id not in fields.to_leg_groups:
        return "to_leg_groups"
    if fields.from_routes and not names_route(fields.from_routes, earlier.route_id):
        return "from_routes"
    if fields.to_routes and not names_route(fields.to_routes, leg.route_id):
        return "to_routes"
    if (link.from_places or link.to_places or link.stop_pairs) and not _places_fit(fold, link, earlier, leg):
        return "from_areas" if link.from_places else "to_areas" if link.to_places else "stop_pairs"
    opener = anchor if fields.window_of == "first" else earlier
    opened = opener.entry_at if fields.window_from == "entry" else opener.exit_at
    if opened is None:
        return "window_from" if link.window_ms else None
    if link.timeframes and link.timeframes.isdisjoint(fold.version_of(earlier).prices.groups(opened)):
        return "timeframes"
    until = began(leg) if fields.window_to == "entry" else ended(leg)
    return None if link.reaches(opened, until) else "window_minutes"


def _places_fit(fold: Fold, link: Link, earlier: Leg, leg: Leg) -> bool:
    version = fold.version_of(leg)
    left = earlier.to_stop_id, version.areas_of(earlier.to_stop_id, earlier.exit_given)
    entered = leg.from_stop_id, version.areas_of(leg.from_stop_id, leg.given)
    if link.from_places is not None and not link.from_places.holds(*left):
        return False
    if link.to_places is not None and not link.to_places.holds(*entered):
        return False
    return not link.stop_pairs or any(one.holds(*left) and other.holds(*entered) for one, other in link.stop_pairs)


def _differs(name: str, earlier: Leg, leg: Leg) -> bool:
    """Whether two legs differ in something; what is not known differs."""
    if name == "stop":
        return leg.from_stop_id is None or leg.from_stop_id != earlier.to_stop_id
    value = getattr(leg, _FIELDS[name])
    return value is None or value != getattr(earlier, _FIELDS[name])


def _longest(fold: Fold, group: Group) -> int:
    join = fold.tariff.versions[group.version_id].joins.get(group.rule_id)
    return join.longest_ms if join is not None else 0
