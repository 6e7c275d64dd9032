"""What goes wrong on the simulated day, all of it from the seed: an outage, a fast clock, a dead validator, forgotten
tap-outs, repeated messages, a lost card."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from random import Random

from fare_engine.tap_format import TapKind
from simulators.city import City
from simulators.riders import HOUR, MINUTE, Presentation, Rider

MISSING_EXITS = 0.005
REPEATED = 0.005
FAST_MS = 180_000


@dataclass(frozen=True, slots=True)
class Outage:
    """A device without connection between two instants; `dies` loses what it then holds."""

    device_id: str
    begins: int
    ends: int
    dies: bool


@dataclass(frozen=True, slots=True)
class LostCard:
    """A card that somebody else finds: lost, first misused, reported, and tried again."""

    rider_id: str
    token: bytes
    reported_at: int
    stolen_rides: tuple[Presentation, ...]


@dataclass(frozen=True, slots=True)
class Troubles:
    """The day's troubles."""

    outages: tuple[Outage, ...]
    fast_device: str
    lost_card: LostCard | None
    forgotten: frozenset[tuple[str, int]]
    """(rider, true time) of exits that were never tapped."""
    seed: int

    def clock_error(self, device_id: str) -> int:
        """By how much a device's clock is ahead of the truth, ms."""
        return FAST_MS if device_id == self.fast_device else 0

    def outage(self, device_id: str, at: int) -> Outage | None:
        """The outage a device is in at an instant."""
        for outage in self.outages:
            if outage.device_id == device_id and outage.begins <= at < outage.ends:
                return outage
        return None


def plan(city: City, riders: list[Rider], midnight: int, seed: int) -> Troubles:
    """The troubles of a day: they hit the devices that are busiest then."""
    random = Random(f"troubles/{seed}")
    morning = midnight + 7 * HOUR + 10 * MINUTE
    evening = midnight + 17 * HOUR
    offline = _busiest(riders, morning, morning + 40 * MINUTE, exclude=())
    dead = _busiest(riders, evening, evening + 25 * MINUTE, exclude=(offline,))
    fast = _busiest(riders, morning - 2 * HOUR, morning + 2 * HOUR, exclude=(offline, dead))
    exits = [p for rider in riders for p in rider.day if p.kind is TapKind.EXIT]
    forgotten = frozenset((p.rider_id, p.at) for p in exits if random.random() < MISSING_EXITS)
    return Troubles(
        outages=(
            Outage(offline, morning, morning + 40 * MINUTE, dies=False),
            Outage(dead, evening, evening + 25 * MINUTE, dies=True),
        ),
        fast_device=fast,
        lost_card=_lost_card(city, riders, midnight, random),
        forgotten=forgotten,
        seed=seed,
    )


def _busiest(riders: list[Rider], begins: int, ends: int, exclude: tuple[str, ...]) -> str:
    taps = Counter(
        p.device_id
        for rider in riders
        for p in rider.day
        if begins <= p.at < ends and p.kind is TapKind.BOARD and p.device_id not in exclude
    )
    if not taps:
        return ""
    most = max(taps.values())
    return min(device for device, count in taps.items() if count == most)


def _lost_card(city: City, riders: list[Rider], midnight: int, random: Random) -> LostCard | None:
    """A commuter loses the card after the morning's ride; the finder rides a bus, and tries again after the report."""
    able = [r for r in riders if r.profile == "rail commuter" and r.medium == "emv" and len(r.day) == 2 and not r.purchases]
    if not able:
        return None
    rider = random.choice(able)
    assert rider.card is not None
    lost_at = max(rider.day[-1].at, midnight + 9 * HOUR)
    route = random.choice(city.buses)
    device, stop = city.vehicles[route][0], city.tariff.network.stops_of_route[route][0]

    def ride(after: int) -> Presentation:
        at = lost_at + after * MINUTE
        return Presentation(at, rider.rider_id, rider.card or b"", rider.medium, TapKind.BOARD, device, stop, route)

    return LostCard(rider.rider_id, rider.card, lost_at + 45 * MINUTE, (ride(20), ride(70)))
