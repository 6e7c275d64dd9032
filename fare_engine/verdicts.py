"""Whether a tap can be used, and whether its rider is let in: questions asked of one tap, each with a stable word as answer.

A tap that cannot be used is quarantined with its reason and may become usable later: when its token is registered, when the
network arrives that has its stop, when the tap it speaks of comes in, or when somebody decides so."""

from __future__ import annotations

from dataclasses import dataclass

from fare_engine.certificates import DeviceLimits
from fare_engine.service_day import DAY_MS, MINUTE_MS
from fare_engine.store.travellers import Token
from fare_engine.tap_format import Decision, TapEvent, TapKind
from fare_engine.tariff.compile import CompiledTariff

AHEAD_MS = 10 * MINUTE_MS
"""A tap this far in the future is impossible."""
BEHIND_MS = 45 * DAY_MS
"""A tap older than this is impossible: terminals keep theirs for 30 days after the acknowledgement."""
NETWORK = "network"
"""What a tap waits for that speaks of a stop, route or medium that is unknown yet."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A tap that cannot be used: a stable word, and a sentence with the value."""

    reason: str
    detail: str
    waits_for: str | None = None
    """What would make it usable: a tap's id, `token:<id>` or `network`."""


def check_time(event: TapEvent, now: int, *, however_old: bool = False) -> Rejected | None:
    """Why a tap's time cannot be right, or None."""
    at = event.event_time_ms
    if at > now + AHEAD_MS or (at < now - BEHIND_MS and not however_old):
        return Rejected("impossible_time", f"{at} ms is not near {now} ms, when it was received")
    return None


def check_content(tariff: CompiledTariff, event: TapEvent) -> Rejected | None:
    """Why a tap's place or medium cannot be right, or None."""
    if event.kind is TapKind.OUTCOME:
        return None
    network = tariff.network
    if event.stop_id is not None and event.stop_id not in network.stops:
        return Rejected("unknown_stop", repr(event.stop_id), NETWORK)
    if event.route_id is not None and event.route_id not in network.routes:
        return Rejected("unknown_route", repr(event.route_id), NETWORK)
    if tariff.network_of(event.route_id, event.stop_id) is None:
        return Rejected("unknown_place", f"route {event.route_id!r} and stop {event.stop_id!r} name no network", NETWORK)
    if (event.medium or "").split(":")[0] not in tariff.media:
        return Rejected("unknown_medium", repr(event.medium), NETWORK)
    return None


def check_token(event: TapEvent, token: Token | None, token_id: str) -> Rejected | None:
    """Why a presentation's token cannot be charged, or None."""
    if token is None:
        return Rejected("unknown_token", "the token belongs to no traveller", f"token:{token_id}")
    if is_blocked(token, event) and event.decision is Decision.ADMITTED_ALONE:
        return blocked(token, event)
    return None


def check_limits(event: TapEvent, limits: DeviceLimits) -> Rejected | None:
    """Why a device may not speak of this place, or None."""
    breach = limits.breach(route_id=event.route_id, stop_id=event.stop_id)
    place = f"route {event.route_id!r}, stop {event.stop_id!r}"
    return None if breach is None else Rejected(breach, f"{event.device_id} was not enrolled for {place}")


def is_blocked(token: Token, event: TapEvent) -> bool:
    """Whether the token was reported lost by the time of the tap."""
    return token.blocked_at is not None and event.event_time_ms >= token.blocked_at


def blocked(token: Token, event: TapEvent) -> Rejected:
    """A blocked token that was let in all the same: somebody decides who bears that."""
    return Rejected("blocked_token", f"blocked since {token.blocked_at} ms, let in by the terminal at {event.event_time_ms} ms")
