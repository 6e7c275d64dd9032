"""The live city: what taps are coming in. The public sees counts, some minutes old; the demo shows engineers the rest.

Figures are kept in the process, from what was committed; they may be lost, and nothing else depends on them."""

from __future__ import annotations

import secrets
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from fare_engine.answers import TapAnswer
from fare_engine.pages.base import environment, language_of, page
from fare_engine.pages.names import Names
from fare_engine.service.app import Service, get_service
from fare_engine.service_day import MINUTE_MS
from fare_engine.tap_format import TapEvent, TapKind

KEPT_TAPS = 12
HOT_MINUTES = 30
LEAST_SHOWN = 10
"""The public is shown no stop's count below this: nobody is to be picked out."""
MODES = {"metro": "taps_metro", "brt": "taps_brt", "river-bus": "taps_river"}
templates = environment()
router = APIRouter()


@dataclass(slots=True)
class Snapshot:
    """Counts at one minute."""

    at: int
    taps: int = 0
    set_aside: int = 0
    by_network: Counter[str] = field(default_factory=Counter)
    by_stop: Counter[str] = field(default_factory=Counter)
    devices: int = 0


class Counted(msgspec.Struct, array_like=True):
    """What one commit of one process held, as it tells the others."""

    process: str
    charged: int
    """By this process since it began."""
    networks: dict[str, int] = {}
    stops: dict[str, int] = {}
    devices: list[str] = []
    set_aside: int = 0


class LiveFigures:
    """Counts what is committed, here and in the other processes that say so. `listen` is given to receipt."""

    TOPIC = "live"

    def __init__(self, service: Service) -> None:
        self.service = service
        self.now = Snapshot(service.clock())
        self.history: deque[Snapshot] = deque(maxlen=120)
        self.last: deque[tuple[TapEvent, TapAnswer]] = deque(maxlen=KEPT_TAPS)
        self.seconds: deque[tuple[float, int]] = deque(maxlen=600)
        self._devices: set[str] = set()
        self._process = secrets.token_hex(8)
        self._charged: dict[str, int] = {}
        service.signals.listen(self.TOPIC, self._hear)

    @property
    def charged(self) -> int:
        """What was charged since the processes began."""
        return self.service.application.charged + sum(self._charged.values())

    def listen(self, taps: list[tuple[TapEvent, TapAnswer]]) -> None:
        """Take in what one commit of this process held, and tell the others."""
        counted = Counted(self._process, self.service.application.charged)
        for event, answer in taps:
            if event.kind is not TapKind.OUTCOME:
                self._note(counted, event, answer)
                self.last.append((event, answer))
        self._add(counted)
        self.service.signals.tell(self.TOPIC, msgspec.msgpack.encode(counted))

    def _hear(self, body: bytes) -> None:
        """What a commit of another process held."""
        counted = msgspec.msgpack.decode(body, type=Counted)
        self._charged[counted.process] = counted.charged
        self._add(counted)

    def _add(self, counted: Counted) -> None:
        taps = sum(counted.networks.values())
        clock = self.service.clock()
        if clock // MINUTE_MS > self.now.at // MINUTE_MS:
            self.history.append(self.now)
            self.now = Snapshot(
                clock,
                self.now.taps,
                self.now.set_aside,
                Counter(self.now.by_network),
                Counter(self.now.by_stop),
                self.now.devices,
            )
        self._devices.update(counted.devices)
        self.now.taps += taps
        self.now.set_aside += counted.set_aside
        self.now.by_network.update(counted.networks)
        self.now.by_stop.update(counted.stops)
        self.now.devices = len(self._devices)
        self.seconds.append((time.monotonic(), taps))

    def _note(self, counted: Counted, event: TapEvent, answer: TapAnswer) -> None:
        network = self.service.tariff.network_of(event.route_id, event.stop_id) or "other"
        counted.networks[network] = counted.networks.get(network, 0) + 1
        counted.set_aside += answer.result == "QUARANTINED"
        if event.stop_id is not None and answer.result != "QUARANTINED":
            counted.stops[event.stop_id] = counted.stops.get(event.stop_id, 0) + 1
        counted.devices.append(event.device_id)

    def shown(self, delay_ms: int) -> Snapshot:
        """The newest counts that are at least so old."""
        newest = self.service.clock() - delay_ms
        if not delay_ms or self.now.at <= newest:
            return self.now
        old = [snapshot for snapshot in self.history if snapshot.at <= newest]
        return old[-1] if old else Snapshot(newest)

    def per_second(self) -> int:
        """Taps committed a second, over the last ten."""
        since = time.monotonic() - 10
        return sum(count for at, count in self.seconds if at >= since) // 10


@router.get("/", response_class=HTMLResponse)
def live(request: Request) -> HTMLResponse:
    """The public page."""
    service = get_service(request)
    values = _values(request) | {"delay": service.settings.public_delay_minutes}
    return page(request, templates, "live.html", values)


@router.get("/live/figures", response_class=HTMLResponse)
def figures(request: Request) -> HTMLResponse:
    """The part of the page that is fetched again."""
    return page(request, templates, "figures.html", _values(request))


def _values(request: Request) -> dict[str, Any]:
    service = get_service(request)
    live_figures: LiveFigures = request.app.state.live
    demo = service.settings.demo
    names = Names(service.tariff, language_of(request))
    shown = live_figures.shown(0 if demo else service.settings.public_delay_minutes * MINUTE_MS)
    before = live_figures.history[-HOT_MINUTES] if len(live_figures.history) >= HOT_MINUTES else Snapshot(0)
    values: dict[str, Any] = {"demo": demo, "money": names.money, "figures": _counts(shown, names)}
    least = 1 if demo else LEAST_SHOWN
    values["lines"] = [_line(network, shown, before, names, least) for network in _rail(service)]
    values["charged"] = live_figures.charged
    values["now"] = names.clock(service.clock())
    values["latency"] = _latency(service, live_figures)
    values["last"] = [_tap(event, answer, names) for event, answer in reversed(live_figures.last)] if demo else []
    return values


def _counts(shown: Snapshot, names: Names) -> dict[str, Any]:
    by_mode: Counter[str] = Counter()
    for network, count in shown.by_network.items():
        by_mode[MODES.get(network) or ("taps_bus" if network.startswith("bus") else "taps_other")] += count
    return {
        "taps": names.number(shown.taps),
        "by_mode": [(key, names.number(by_mode[key])) for key in sorted(by_mode)],
        "devices": names.number(shown.devices),
        "set_aside": names.number(shown.set_aside),
    }


def _rail(service: Service) -> list[str]:
    """Networks whose stops stand on one line: those with gates."""
    found = []
    version = service.tariff.version_at(service.clock())
    for network in sorted(service.tariff.network.networks):
        terms = version.terms(network, None, "emv", version.default_category) if version else None
        if terms is not None and terms.tap_rule.taps == "entry_exit":
            found.append(network)
    return found


def _line(network: str, shown: Snapshot, before: Snapshot, names: Names, least: int) -> dict[str, Any]:
    tariff = names.tariff.network
    route = next(route for route, owner in tariff.network_of_route.items() if owner == network)
    stops = tariff.stops_of_route.get(route, ())
    step = 74
    counts = {stop: shown.by_stop[stop] if shown.by_stop[stop] >= least else 0 for stop in stops}
    most = max(counts.values(), default=0) or 1
    return {
        "label": tariff.routes[route].long_name,
        "width": 40 + step * max(1, len(stops) - 1),
        "stops": [
            {
                "x": 20 + step * index,
                "name": names.stop(stop)[:18],
                "count": counts[stop],
                "r": 6 + 22 * counts[stop] // most,
                "hot": counts[stop] > before.by_stop[stop],
            }
            for index, stop in enumerate(stops)
        ],
    }


def _latency(service: Service, live_figures: LiveFigures) -> dict[str, Any]:
    times = sorted(service.lane.figures.latencies) or [0]

    def at(share: float) -> str:
        return f"{times[min(len(times) - 1, int(share * len(times)))] / 1000:.0f}"

    return {"rate": live_figures.per_second(), "p50": at(0.5), "p95": at(0.95), "p99": at(0.99)}


def _tap(event: TapEvent, answer: TapAnswer, names: Names) -> dict[str, str]:
    said = answer.reason or answer.decision if answer.result != "QUARANTINED" else f"{answer.result}: {answer.reason}"
    return {
        "time": names.clock(event.event_time_ms),
        "where": " · ".join(part for part in (event.route_id or "", names.stop(event.stop_id)) if part),
        "answer": f"{event.kind.name.lower()}: {said}",
        "fare": names.money(answer.fare) if answer.fare is not None else "–",
    }
