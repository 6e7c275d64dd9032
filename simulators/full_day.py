"""A day of any size in a store, without a service: signed messages of the simulated city's terminals go straight into receipt.

For trying the close, the audit and exports at full size. Every tap is signed, received, priced and booked as it is in the
service; only the wire and the waiting are left out. The same seed gives the same day."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from random import Random
from typing import Annotated

import typer
from rich.console import Console

from fare_engine.answers import BatchAnswer
from fare_engine.application import Application
from fare_engine.errors import MottheError
from fare_engine.ids import DeviceId, RouteId, StopId
from fare_engine.receipt import Receipt
from fare_engine.service_day import day_starts_at, to_day
from fare_engine.settings import PROJECT, Settings, secret_file
from fare_engine.store import registry
from fare_engine.store.database import Database, sqlite_url
from fare_engine.tap_format import Decision, TapEvent, encode_tap, genesis_head, header_for, heads_after, seal
from fare_engine.tariff.compile import load_compiled
from simulators import seeding
from simulators.city import City, build_city
from simulators.riders import HOUR, Day, Presentation, Rider

TARIFF, ADOPTED = "tariffs/hcmc", "proposal-2026-03"
LEGS_A_RIDER = 1.8
A_MESSAGE = 200
"""So many taps go into one message at most."""
AT_ONCE = 2000
"""So many taps are committed together."""
EPOCH = b"\x01" * 8


class FullDayError(MottheError):
    """The day cannot be made here."""


@dataclass(frozen=True, slots=True)
class PreparedDay:
    """A store whose terminals and riders are known, and the taps that are to come."""

    receipt: Receipt
    riders: list[Rider]
    fleet: Fleet
    midnight: int


def prepare_day(data: Path, day: str, legs: int, seed: int, url: str | None = None) -> PreparedDay:
    """Begin an empty store for a service date of about so many legs."""
    if data.exists() and any(data.iterdir()):
        raise FullDayError(f"{data} is not empty")
    data.mkdir(parents=True, exist_ok=True)
    seeding.write_keys(data, seed)
    tariff = load_compiled(PROJECT / TARIFF, [ADOPTED])
    database = Database(url or sqlite_url(data / "motthe.db"), secret_file(data / "keys" / "at-rest.key"))
    database.create()
    midnight = day_starts_at(to_day(date.fromisoformat(day)), tariff.zone, 0)
    city = build_city(tariff, PROJECT / TARIFF, midnight + 12 * HOUR, Random(f"city/{seed}"))
    with database.write() as connection:
        registry.save_settings(connection, {"tariff": TARIFF, "adopt": ADOPTED})
    seeding.seed_equipment(database, city, seed, midnight)
    server_key = secret_file(data / "keys" / "server.key")
    application = Application(tariff, server_key)
    riders = list(Day(city, midnight, seed).riders(int(legs / LEGS_A_RIDER)))
    seeding.seed_riders(database, riders, server_key, seed, day)
    seeding.sell_products(database, application, riders)
    return PreparedDay(Receipt(database, application), riders, Fleet(city, seed), midnight)


def make_day(data: Path, day: str, legs: int, seed: int, url: str | None = None, slot_hours: float = 1.0) -> int:
    """Fill an empty store with a service date of about so many legs; how many taps it has. Terminals send once every
    `slot_hours`, all that they saw since."""
    prepared = prepare_day(data, day, legs, seed, url)
    taps = 0
    for until, part in _slots(presented(prepared.riders), prepared.midnight, int(slot_hours * HOUR)):
        taps += len(part)
        for messages in prepared.fleet.messages(part, until):
            for outcome in prepared.receipt.accept_group(messages, until):
                if not isinstance(outcome, BatchAnswer):
                    raise FullDayError(f"a message was refused: {outcome}")
    prepared.receipt.database.dispose()
    return taps


def presented(riders: Iterable[Rider]) -> list[Presentation]:
    """What riders hold to terminals, in the order of time."""
    return sorted((p for rider in riders for p in rider.day), key=lambda p: (p.at, p.device_id, p.token))


def _slots(part: Iterable[Presentation], midnight: int, slot_ms: int) -> Iterator[tuple[int, list[Presentation]]]:
    found: dict[int, list[Presentation]] = defaultdict(list)
    for presentation in part:
        found[(presentation.at - midnight) // slot_ms].append(presentation)
    for slot in sorted(found):
        yield midnight + (slot + 1) * slot_ms, found[slot]


class Fleet:
    """The terminals' keys and the heads of their chains."""

    def __init__(self, city: City, seed: int) -> None:
        self._city = city
        self._seed = seed
        self._heads: dict[str, tuple[int, bytes]] = {}

    def messages(self, part: Iterable[Presentation], sent_at: int) -> Iterator[list[bytes]]:
        """One message a device, in groups that are committed together."""
        by_device: dict[str, list[Presentation]] = defaultdict(list)
        for presentation in part:
            by_device[presentation.device_id].append(presentation)
        group: list[bytes] = []
        count = 0
        for device_id, presented in sorted(by_device.items()):
            for start in range(0, len(presented), A_MESSAGE):
                sent = presented[start : start + A_MESSAGE]
                group.append(self.message(device_id, sent, sent_at))
                count += len(sent)
            if count >= AT_ONCE:
                yield group
                group, count = [], 0
        if group:
            yield group

    def message(self, device_id: str, presented: Sequence[Presentation], sent_at: int) -> bytes:
        """A message with a terminal's next taps."""
        sequence, head = self._heads.get(device_id) or (0, genesis_head(device_id, EPOCH, None))
        vehicle_id = self._city.validators[device_id].vehicle_id
        taps = [encode_tap(_event(p, sequence + n, vehicle_id)) for n, p in enumerate(presented, start=1)]
        header = header_for(
            device_id=DeviceId(device_id),
            epoch=EPOCH,
            first_sequence=sequence + 1,
            previous_head=head,
            taps=taps,
            sent_at=sent_at,
        )
        self._heads[device_id] = (sequence + len(taps), heads_after(head, taps)[-1])
        return seal(self._city.validators[device_id].key(self._seed), header, taps)


def _event(presentation: Presentation, sequence: int, vehicle_id: str | None) -> TapEvent:
    return TapEvent(
        device_id=DeviceId(presentation.device_id),
        epoch=EPOCH,
        sequence=sequence,
        kind=presentation.kind,
        device_time=presentation.at,
        token=presentation.token,
        token_key_version=1,
        medium=presentation.medium,
        stop_id=StopId(presentation.stop_id),
        route_id=RouteId(presentation.route_id) if presentation.route_id else None,
        vehicle_id=vehicle_id,
        decision=Decision.ADMITTED_ALONE,
    )


app = typer.Typer()


@app.command("day")
def day_command(
    data: Annotated[Path, typer.Option(help="The folder of the store; it must be empty or new.")] = Path("motthe-day"),
    day: Annotated[str, typer.Option(help="The service date.")] = "2026-03-02",
    legs: Annotated[int, typer.Option(min=10, help="About how many legs.")] = 100_000,
    seed: Annotated[int, typer.Option(help="Riders, keys and times come from it.")] = 7,
    slot: Annotated[float, typer.Option(min=0.01, help="Terminals send once every so many hours.")] = 1.0,
) -> None:
    """Fill an empty store with a whole service date, to try the close, the audit and exports at full size."""
    settings = Settings(data=data)
    taps = make_day(data, day, legs, seed, settings.database_url, slot)
    Console().print(f"{taps:,} taps of {day} in {data}; close it with: motthe clear {day} --data {data}")
