"""`make bench`: how fast the parts are, as ratios to a limit measured in the same run. Prints one JSON object.

Absolute figures swing with the machine; ratios hold. The limits: Ed25519 verification for messages, a bare append of a tuple
for the fold, SHA-256 for the chain."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from random import Random
from statistics import mean
from tempfile import TemporaryDirectory

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from clearing.commands import rules_of
from clearing.pools import by_weights
from clearing.share_store import DayUse
from clearing.sharing import product_shares
from fare_engine import windows
from fare_engine.booking import Record, book, decode, encode, price
from fare_engine.cose import Signature
from fare_engine.facts import Fact, Tap
from fare_engine.ids import DeviceId, tap_id
from fare_engine.pricing.fold import fold
from fare_engine.pricing.rides import read_rides
from fare_engine.rides import book_rides
from fare_engine.service_day import DAY_MS, day_starts_at, parse_instant
from fare_engine.tap_format import Decision, TapEvent, TapKind, encode_tap, genesis_head, header_for, open_message, seal
from fare_engine.tariff.compile import CompiledTariff, load_compiled
from simulators.city import build_city
from simulators.full_day import prepare_day, presented
from simulators.riders import Day, Presentation

TARIFFS = Path(__file__).resolve().parents[1] / "tariffs"
TARIFF = TARIFFS / "hcmc"
BENCH_DAY = "2026-03-02"
ACTIONS = {TapKind.ENTRY: "entry", TapKind.EXIT: "exit", TapKind.BOARD: "board"}


def rate(count: int, work: Callable[[], object], rounds: int = 5) -> int:
    """The best of some rounds, in units per second."""
    best = min(_seconds(work) for _ in range(rounds))
    return int(count / best)


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def bench_load() -> dict[str, object]:
    """Loading, checking and compiling each city that is shipped."""
    cities = sorted(path.parent for path in TARIFFS.glob("*/NOTES.md"))
    return {
        city.name: round(min(_seconds(lambda city=city: load_compiled(city)) for _ in range(3)), 3)  # type: ignore[misc]
        for city in cities
    }


def bench_fold() -> dict[str, object]:
    """The fold with lines over a simulated day's riders, all modes and media, under the proposal."""
    tariff = load_compiled(TARIFF, ["proposal-2026-03"])
    midnight = day_starts_at(20_514, tariff.zone, 0)
    city = build_city(tariff, TARIFF, midnight + 43_200_000, Random("bench"))
    travellers = []
    for rider in Day(city, midnight, 7).riders(5_000):
        taps = [
            Tap(
                tap_id(p.device_id, "e", n),
                p.at,
                p.device_id,
                "e",
                n,
                ACTIONS[p.kind],
                "t",
                p.medium,
                rider.category,
                p.stop_id,
                p.route_id,
            )
            for n, p in enumerate(rider.day)
        ]
        travellers.append(taps)
    return _speed(tariff, travellers, midnight + 26 * 3_600_000)


def bench_weeks(version: str, ride: Callable[[Random, datetime], dict[str, object]], media: Sequence[str]) -> dict[str, object]:
    """The fold with lines over whole weeks of 400 riders, four rides a day, under one version of a city."""
    tariff = load_compiled(TARIFFS / version)
    random = Random(version)
    travellers: list[list[Fact]] = []
    first = datetime.combine(tariff.tariff.versions[0].file.tariff.valid_from, datetime.min.time())
    monday = first + timedelta(days=35 - first.weekday())
    for number in range(400):
        rides = []
        for day in range(7):
            for hour in (7, 10, 17, 21):
                rides.append(ride(random, monday + timedelta(days=day, hours=hour, minutes=random.randrange(59))))
        category = tariff.default_category
        read = read_rides(tariff, rides, {"category": category}, media[number % len(media)], {})
        travellers += list(read.facts.values())
    return _speed(tariff, travellers, max(fact.at for facts in travellers for fact in facts) + 86_400_000)


def zone_ride(random: Random, at: datetime) -> dict[str, object]:
    """A bus, or the tube between zone 1 and another."""
    if random.random() < 0.4:
        return {"mode": "bus", "on": {"t": at.isoformat()}, "off": None}
    zones = ["1", str(random.randrange(1, 7))]
    random.shuffle(zones)
    start, end = (
        {"t": moment.isoformat(), "zone": zone} for moment, zone in zip((at, at + timedelta(minutes=25)), zones, strict=True)
    )
    return {"mode": "tube", "on": start, "off": end}


def distance_ride(random: Random, at: datetime) -> dict[str, object]:
    """A train by distance, or a bus by straight lines."""
    start, end = {"t": at.isoformat()}, {"t": (at + timedelta(minutes=25)).isoformat()}
    if random.random() < 0.5:
        return {"mode": "train", "distance_km": random.randrange(1, 80), "on": start, "off": end}
    places = [{"lat": -33.8 - random.random() / 9, "lon": 151.0 + random.random() / 9} for _ in "ab"]
    return {"mode": "bus", "route": str(random.randrange(99)), "on": start | places[0], "off": end | places[1]}


def _speed(tariff: CompiledTariff, travellers: Sequence[Sequence[Fact]], as_of: int) -> dict[str, object]:
    count = sum(len(taps) for taps in travellers)

    def price_all() -> None:
        for taps in travellers:
            fold(tariff, taps, as_of)

    speed = rate(count, price_all)
    limit = rate(count, lambda: [[(tap.at, tap.fact_id) for tap in taps] for taps in travellers])
    states = [len(msgspec.msgpack.encode(fold(tariff, taps, as_of).state)) for taps in travellers]
    return {
        "taps_per_second": speed,
        "ratio_to_touching_each_tap": round(speed / limit, 4),
        "bytes_of_state_per_traveller": sum(states) // len(states),
    }


def bench_history() -> dict[str, object]:
    """What a tap costs a rider of four a day after so many days, from his row to his row: reading, folding, booking, writing.
    The limit is what it cost in the second week, when no window had been
    closed yet."""
    tariff = load_compiled(TARIFF, ["proposal-2026-03"])
    routes, first = sorted(tariff.network.routes), parse_instant("2026-03-02T07:00:00+07:00")
    row, put_away, number = encode(Record()), 0, 0
    took: dict[int, list[float]] = {}
    for day in range(366):
        for hour in (0, 1, 9, 10):
            at, number = first + (24 * day + hour) * 3_600_000, number + 1
            tap = Tap(
                tap_id(DeviceId("d"), "e", number), at, "d", "e", number, "board", "t", "emv", tariff.default_category,
                None, routes[number % 5],
            )  # fmt: skip
            begun = time.perf_counter()
            record = decode(row)
            record.facts.append(tap)
            folded = price(tariff, record, at)
            book("t", record, folded)
            book_rides("t", record.rides, folded, tariff, None)
            record.as_of = at
            put_away += len(windows.close(tariff, "t", record, at)) if windows.is_due(record, at) else 0
            row = encode(record)
            took.setdefault(day, []).append(time.perf_counter() - begun)
    mean_of = {name: mean(t for day in days for t in took[day]) for name, days in HISTORY.items()}
    return {
        "microseconds_a_tap": {name: round(seconds * 1e6) for name, seconds in mean_of.items()},
        "ratio_to_the_second_week": {name: round(seconds / mean_of["days 8 to 14"], 2) for name, seconds in mean_of.items()},
        "bytes_of_the_row": len(row),
        "windows_put_away": put_away,
    }


HISTORY = {
    "days 1 to 7": range(7),
    "days 8 to 14": range(7, 14),
    "days 25 to 45": range(24, 45),
    "days 340 to 365": range(339, 365),
}


def bench_messages() -> dict[str, object]:
    """Opening a message of one tap and of 200, against one Ed25519 verification."""
    key = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
    public, signature = key.public_key(), Signature(b"", key.sign(b"x" * 200), b"x" * 200)
    verify = rate(200, lambda: [signature.holds(public) for _ in range(200)])
    found: dict[str, object] = {"ed25519_verify_per_second": verify}
    for size in (1, 200):
        message = _message(key, size)
        speed = rate(100, lambda message=message: [open_message(message, lambda _: [public]) for _ in range(100)])  # type: ignore[misc]
        found[f"open_{size}_per_second"] = speed
        found[f"open_{size}_ratio_to_verify"] = round(speed / verify, 3)
    chain = b"\x00" * 64
    found["sha256_per_second"] = rate(10_000, lambda: [hashlib.sha256(chain).digest() for _ in range(10_000)])
    return found


def bench_receipt() -> dict[str, object]:
    """Single online taps of a city day, from the signed message to the answer after the commit, by how many are committed
    together: the tap path but for HTTP. The limit is verifying their signatures."""
    key = Ed25519PrivateKey.generate()
    public, signature = key.public_key(), Signature(b"", key.sign(b"x" * 200), b"x" * 200)
    found: dict[str, object] = {}
    with TemporaryDirectory() as folder:
        prepared = prepare_day(Path(folder) / "day", BENCH_DAY, 9_000, 7)
        taps = iter(presented(prepared.riders))
        for together, count in ((16, 1_600), (1, 300), (16, 1_600), (64, 6_400)):
            some = list(islice(taps, count))
            messages = [prepared.fleet.message(p.device_id, [p], p.at) for p in some]

            def receive(messages: list[bytes] = messages, some: list[Presentation] = some, together: int = together) -> None:
                for first in range(0, len(messages), together):
                    prepared.receipt.accept_group(messages[first : first + together], some[first].at)

            verify = rate(500, lambda: [signature.holds(public) for _ in range(500)], 2)
            speed = rate(count, receive, 1)
            found[f"{together}_at_once"] = {"taps_per_second": speed, "ratio_to_verify": round(speed / verify, 3)}
        prepared.receipt.database.dispose()
    return found


def _message(key: Ed25519PrivateKey, size: int) -> bytes:
    device, epoch = DeviceId("bench"), b"\x01" * 8
    at = parse_instant("2026-03-02T07:58:00+07:00")
    taps = [
        encode_tap(
            TapEvent(
                device_id=device,
                epoch=epoch,
                sequence=n + 1,
                kind=TapKind.BOARD,
                token=n.to_bytes(16),
                token_key_version=1,
                medium="emv",
                device_time=at + n,
                decision=Decision.ASKED_ONLINE,
                deny_list_version=1,
                tariff_version="proposal-2026-03",
            )
        )
        for n in range(size)
    ]
    header = header_for(
        device_id=device, epoch=epoch, first_sequence=1, previous_head=genesis_head(device, epoch, None), taps=taps, sent_at=at
    )
    return seal(key, header, taps)


def bench_late_tap() -> dict[str, object]:
    """One tap of a traveller's week comes in last: fold, book and write the record, as the tap path does; p50 and p99."""
    tariff = load_compiled(TARIFF, ["proposal-2026-03"])
    monday = parse_instant("2026-03-02T06:00:00+07:00")
    random = Random("late")
    times: list[float] = []
    for number in range(400):
        week = _week(random, monday, f"rider {number}")
        late = week.pop(random.randrange(len(week)))
        record = Record(facts=list(week))
        book("rider", record, price(tariff, record, monday + 7 * DAY_MS))
        stored = encode(record)
        begun = time.perf_counter()
        record = decode(stored)
        record.facts.append(late)
        book("rider", record, price(tariff, record, monday + 7 * DAY_MS))
        encode(record)
        times.append((time.perf_counter() - begun) * 1000)
    times.sort()
    return {
        "taps_a_week": 28,
        "p50_ms": round(times[len(times) // 2], 2),
        "p99_ms": round(times[int(len(times) * 0.99)], 2),
        "bytes_of_record": len(stored),
    }


def _week(random: Random, monday: int, token: str) -> list[Fact]:
    """Four taps a day for a week: a bus, the metro there and back, a bus."""
    found: list[Fact] = []
    for day in range(7):
        at = monday + day * DAY_MS + random.randrange(3_600_000)
        for number, (action, stop, route, later) in enumerate(
            (
                ("board", None, "1", 0),
                ("entry", "L1-01", None, 1_200_000),
                ("exit", "L1-14", None, 3_600_000),
                ("board", None, "1", 40_000_000),
            )
        ):
            found.append(
                Tap(
                    f"bench/{day}/{number}",
                    at + later,
                    "bench",
                    "e",
                    10 * day + number,
                    action,
                    token,
                    "emv",
                    "adult",
                    stop,
                    route,
                )  # type: ignore[arg-type]
            )
    return found


PASSES = 300_000


def bench_shares() -> dict[str, object]:
    """The day of 300,000 passes, one in a hundred without a ride, among eight operators: as one pool by use, and pass by pass."""
    random = Random(1)
    operators = [f"operator {n}" for n in range(8)]
    tariff = load_compiled(TARIFF, ["proposal-2026-03"])
    agreements = rules_of(tariff, TARIFF).agreements
    uses, passes = [], []
    for _ in range(PASSES):
        price = random.randrange(1000, 20_000)
        ridden = {} if random.random() < 0.01 else {random.choice(operators): random.randrange(1, 20) * 1000 for _ in range(2)}
        passes.append((price, ridden))
        uses.append(DayUse(BENCH_DAY, "JNT-M", BENCH_DAY, "release", "", price, 1))
        uses += [DayUse(BENCH_DAY, "JNT-M", BENCH_DAY, "use", name, fare, 1) for name, fare in ridden.items()]
    equal = dict.fromkeys(operators, 1)
    bare = rate(PASSES, lambda: sum(price for price, _ in passes))
    pooled = rate(PASSES, lambda: product_shares(uses, agreements, BENCH_DAY), rounds=3)
    single = rate(PASSES, lambda: [by_weights(price, ridden, equal) for price, ridden in passes], rounds=3)
    return {
        "passes": PASSES,
        "seconds_as_one_pool": round(PASSES / pooled, 2),
        "seconds_pass_by_pass": round(PASSES / single, 2),
        "limit_adding_prices": bare,
        "ratio_as_one_pool": round(pooled / bare, 4),
    }


def main() -> None:
    """Run all, print JSON."""
    found = {
        "load_seconds": bench_load(),
        "fold": bench_fold(),
        "fold_zones_and_candidates": bench_weeks("london/2018", zone_ride, ["oyster", "contactless"]),
        "fold_zones_and_weekly_caps": bench_weeks("london/2025", lambda random, at: zone_ride(Random(1), at), ["contactless"]),
        "fold_distances": bench_weeks("sydney/2022-11-25", distance_ride, ["opal"]),
        "messages": bench_messages(),
        "receipt": bench_receipt(),
        "history": bench_history(),
        "late_tap": bench_late_tap(),
        "shares": bench_shares(),
    }
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
