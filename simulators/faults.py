"""What goes wrong in the simulated world, how often, and the command that lets it go wrong: `motthe simulate faults`.

Every fault comes from the seed and is counted; those that may cost taps say beforehand which. docs/faults.md lists them."""

from __future__ import annotations

import logging
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Annotated, Any

import typer

from fare_engine.errors import MottheError
from fare_engine.service_day import parse_instant
from fare_engine.store import registry
from fare_engine.tap_format import header_for, seal
from fare_engine.tariff.compile import CompiledTariff, load_compiled
from simulators.city import build_city
from simulators.proof import Proof, check_now, prove
from simulators.world import (
    DAY,
    FLUSH_TIMEOUT_MS,
    HOUR,
    MINUTE,
    SECOND,
    Device,
    Exchange,
    Loss,
    ViolationError,
    Wire,
    World,
    cards_of,
    key_of,
    visits_of,
)

FOLDER = Path(__file__).parents[1] / "tariffs" / "hcmc"
ADOPTED = ("proposal-2026-03",)
FIRST_DAY = "2026-03-09T00:00+07:00"
DAYS = 4
TAPS_A_RIDER = 11
DAYS_AFTER = 4
"""After the last tap: until nothing is due any more."""
WORLD_TAPS = 10_000
"""A longer run is made of worlds of this size, so that it needs no more memory and a failure is had again in seconds."""
PROCESSES = 2
MEMORY = Path("/dev/shm")
"""Where files are in memory: kills are simulated, so nothing needs a disk."""
GARBAGE = (b"<html>Welcome to the hotel's network</html>", b"{}", b'{"device_id": 7}', b"\xff\xfe\x00", b"")


@dataclass(frozen=True, slots=True)
class Rates:
    """How often what goes wrong. Of messages and answers: which part of them; of everything else: how often in 10,000 taps."""

    request_lost: float = 0.012
    answer_lost: float = 0.012
    repeated: float = 0.01
    repeated_late: float = 0.01
    delayed: float = 0.02
    slow: float = 0.01
    garbage: float = 0.004
    server_error: float = 0.004
    busy: float = 0.004
    splits: float = 14
    process_kills: float = 20
    commit_kills: float = 10
    job_kills: float = 5
    power_cuts: float = 25
    cuts_in_a_deed: float = 25
    disks_rolled_back: float = 4
    disks_dead: float = 2
    rows_damaged: float = 4
    clocks_set: float = 8
    keys_changed: float = 4
    devices_revoked: float = 0.5
    strangers: float = 25
    restores: float = 1


EVERYTHING = Rates()


class FaultyWire(Wire):
    """A network that loses, delays, repeats and answers for others."""

    def __init__(self, rates: Rates, chance: Random) -> None:
        self.rates = rates
        self.chance = chance

    def send(self, world: World, device: Device, message: bytes, exchange: Exchange) -> None:
        """See Wire."""
        number = self.chance.randrange(len(world.service.processes))
        if self._is_cut_off(world, device, number):
            world.injected["messages into a split"] += 1
            return
        delay = self._delay(world)
        if self._happens(world, "requests lost", self.rates.request_lost):
            return
        world.deliver_after(delay, number, message, exchange, device)
        if self._happens(world, "messages repeated at once", self.rates.repeated):
            world.deliver_after(delay, self._another(world, number), message, None, None)
        if self._happens(world, "messages repeated late", self.rates.repeated_late):
            late = self.chance.choice((SECOND, MINUTE, HOUR, DAY))
            world.deliver_after(self.chance.randrange(1, late), self._another(world, number), message, None, None)

    def answer(self, world: World, device: Device, exchange: Exchange, status: int, body: bytes) -> None:
        """See Wire."""
        if self._happens(world, "answers lost", self.rates.answer_lost):
            return
        delay = self._delay(world)
        if self._happens(world, "answers later than 300 ms", self.rates.slow):
            delay = self.chance.randrange(280, 420)
        if self._happens(world, "answers of garbage", self.rates.garbage):
            status, body = self.chance.choice((200, 200, 502)), self.chance.choice(GARBAGE)
        elif self._happens(world, "answers 500", self.rates.server_error):
            status, body = 500, b"Internal Server Error"
        elif self._happens(world, "answers busy", self.rates.busy):
            status, body = self.chance.choice(((429, b'{"cause": "overloaded"}'), (503, b'{"cause": "unavailable"}')))
        world.reply_after(delay, device, exchange, status, body)

    def _happens(self, world: World, name: str, rate: float) -> bool:
        happens = self.chance.random() < rate
        world.injected[name] += happens
        return happens

    def _delay(self, world: World) -> int:
        if self._happens(world, "messages delayed", self.rates.delayed):
            return self.chance.randrange(50, FLUSH_TIMEOUT_MS)
        return self.chance.choice((10, 10, 10, 10, 10, 10, 20, 30))

    def _another(self, world: World, number: int) -> int:
        return (number + self.chance.randrange(1, len(world.service.processes))) % len(world.service.processes)

    def _is_cut_off(self, world: World, device: Device, number: int) -> bool:
        return world.now < device.cut_off_until and (device.cut_off_from is None or number in device.cut_off_from)


@dataclass(slots=True)
class Faults:
    """Plans what goes wrong in a world, beside its wire."""

    world: World
    rates: Rates
    chance: Random
    begins: int
    ends: int
    restored_to: list[int] = field(default_factory=list)
    _backup: tuple[int, dict[str, bytes]] | None = None
    _keys: Counter[str] = field(default_factory=Counter)

    def plan(self, taps: int) -> None:
        """All of it, at instants of the service's hours."""
        many = taps / 10_000
        rates = self.rates
        for name, rate, deed in (
            ("networks split", rates.splits, self._split),
            ("processes to be killed at a statement", rates.process_kills, self._kill_at_statement),
            ("processes killed between commit and answer", rates.commit_kills, self._kill_after_commit),
            ("processes killed at their jobs", rates.job_kills, self._kill_at_jobs),
            ("terminals without power", rates.power_cuts, self._cut_power),
            ("terminals without power in a deed", rates.cuts_in_a_deed, self._cut_power_in_a_deed),
            ("disks rolled back", rates.disks_rolled_back, self._take_image),
            ("disks dead", rates.disks_dead, self._kill_disk),
            ("rows damaged", rates.rows_damaged, self._damage_row),
            ("clocks set", rates.clocks_set, self._set_clock),
            ("keys changed", rates.keys_changed, self._change_key),
            ("devices revoked", rates.devices_revoked, self._revoke),
            ("messages of strangers", rates.strangers, self._send_strange),
            ("databases restored", rates.restores, self._back_up),
        ):
            for _ in range(self._count(rate * many)):
                self.world.plan(self._instant(), self._named(name, deed))

    def _count(self, expected: float) -> int:
        """A whole number of that mean."""
        return int(expected) + (self.chance.random() < expected % 1)

    def _instant(self) -> int:
        """At one of the hours when riders are about."""
        day = self.chance.randrange((self.ends - self.begins) // DAY)
        hour = self.chance.choice((6, 7, 7, 8, 8, 9, 12, 16, 17, 17, 18, 18, 19, 21))
        return self.begins + day * DAY + hour * HOUR + self.chance.randrange(HOUR)

    def _named(self, name: str, deed: Callable[[], bool]) -> Callable[[], None]:
        def happens() -> None:
            done = deed()
            self.world.injected[name] += done
            self.world.log(f"fault: {name} {done}")

        return happens

    def _device(self) -> Device:
        return self.world.devices[self.chance.choice(list(self.world.devices))]

    def _laden(self) -> Device:
        """A device, most often one with taps that nobody else holds yet."""
        laden = [device for device in self.world.devices.values() if device.outbox is not None and device.outbox.list_pending()]
        return self.chance.choice(laden) if laden and self.chance.random() < 0.8 else self._device()

    # ---- network and processes

    def _split(self) -> bool:
        """Some terminals reach no process, or one less, for minutes to hours."""
        processes = range(len(self.world.service.processes))
        cut = None if self.chance.random() < 0.6 else frozenset({self.chance.choice(processes)})
        until = self.world.now + self.chance.choice((MINUTE, 10 * MINUTE, HOUR, 5 * HOUR))
        for _ in range(self.chance.randint(1, 6)):
            device = self._device()
            device.cut_off_until, device.cut_off_from = until, cut
        return True

    def _kill_at_statement(self) -> bool:
        process = self.chance.choice(self.world.service.processes)
        process.statements_left = self.chance.randrange(30)
        return process.up

    def _kill_after_commit(self) -> bool:
        process = self.chance.choice(self.world.service.processes)
        process.dies_after_commit = True
        return process.up

    def _kill_at_jobs(self) -> bool:
        process = self.chance.choice(self.world.service.processes)
        process.statements_left = self.chance.randrange(12)
        self.world.work(process.number)
        return True

    def _back_up(self) -> bool:
        """A backup is made, and hours later the database is set back to it."""
        if self._backup is not None:
            return False
        self._backup = (self.world.now, self.world.service.back_up())
        self.world.after(self.chance.randrange(10 * MINUTE, 18 * HOUR), self._restore)
        return True

    def _restore(self) -> None:
        assert self._backup is not None
        (at, backup), self._backup = self._backup, None
        self.restored_to.append(at)
        self.world.service.restore(backup)
        self.world.log(f"the database is as it was at {at}")

    # ---- terminals

    def _cut_power(self) -> bool:
        device = self._device()
        if device.terminal is None:
            return False
        self.world.crash(device, self.chance.choice((5 * SECOND, MINUTE, 30 * MINUTE)))
        if self.chance.random() < 0.3:  # and once more, before anybody comes
            self.world.after(self.chance.choice((6 * SECOND, 70 * SECOND)), lambda: self.world.crash(device, 5 * SECOND))
        return True

    def _cut_power_in_a_deed(self) -> bool:
        device = self._device()
        if device.outbox is None:
            return False
        deed = self.chance.choice(("append", "append", "acknowledged", "begin_epoch"))
        device.outbox.cut = (deed, self.chance.choice(("before", "after")))
        return True

    def _take_image(self) -> bool:
        """Somebody copies the disk, and later puts the copy in the place of the disk."""
        device = self._laden()
        if device.outbox is None:
            return False
        image, ends = device.image(), self.world.ledger.ends(device.device_id)
        self.world.after(self.chance.randrange(MINUTE, 8 * HOUR), lambda: self._roll_back(device, image, ends))
        return True

    def _roll_back(self, device: Device, image: dict[str, bytes], ends: dict[str, int]) -> None:
        now = self.world.ledger.ends(device.device_id)
        lost = {epoch: (ends.get(epoch, 0) + 1, last) for epoch, last in now.items() if last > ends.get(epoch, 0)}
        self.world.log(f"roll back {device.device_id} {sorted(lost.items())}")
        self._lose(device, "disk rolled back", lost)
        self.world.switch_off(device)
        device.write_image(image)
        self.world.boot(device)

    def _kill_disk(self) -> bool:
        device = self._laden()
        now = self.world.ledger.ends(device.device_id)
        self._lose(device, "disk dead", {epoch: (1, last) for epoch, last in now.items()})
        self.world.switch_off(device)
        device.write_image({})
        device.clock = None
        self.world.after(self.chance.randrange(MINUTE, HOUR), lambda: self.world.boot(device))
        return True

    def _lose(self, device: Device, kind: str, taps: dict[str, tuple[int, int]]) -> None:
        self.world.ledger.losses.append(Loss(device.device_id, kind, self.world.now, taps))

    def _damage_row(self) -> bool:
        """A tap, or a chain value beside it, is no longer what was stored."""
        device = self._laden()
        if device.terminal is None:
            return False
        self.world.switch_off(device)
        with closing(sqlite3.connect(device.path, isolation_level=None)) as disk:
            rows = disk.execute(
                "SELECT e.number, e.epoch, t.sequence, e.last_sequence FROM taps t JOIN epochs e USING (number)"
                " ORDER BY t.sequence > e.acknowledged_through DESC, e.number DESC, t.sequence LIMIT 40"
            ).fetchall()
            if rows:
                number, epoch, sequence, last = self.chance.choice(rows)
                self._lose(device, "row damaged", {epoch.hex(): (sequence, last)})
                disk.execute(self._damage(disk, number, sequence), (number, sequence))
        self.world.after(5 * SECOND, lambda: self.world.boot(device))
        return bool(rows)

    def _damage(self, disk: sqlite3.Connection, number: int, sequence: int) -> str:
        place = "WHERE number = ?1 AND sequence = ?2"
        return self.chance.choice(
            (
                f"UPDATE taps SET tap = CAST(substr(tap, 1, 4) || x'00' || substr(tap, 6) AS BLOB) {place}",
                f"UPDATE taps SET head = zeroblob(32) {place}",
                f"UPDATE taps SET tap = zeroblob(length(tap)) {place}",
                f"DELETE FROM taps {place}",
            )
        )

    def _set_clock(self) -> bool:
        offset = self.chance.choice((-DAY, -HOUR, -5 * MINUTE, 0, 0, 5 * MINUTE, HOUR, DAY))
        offset += self.chance.randrange(-30_000, 30_000)
        self._device().set_clock(self.world.now, offset, self.chance.choice((0, 0, 50, -80, 2_000)))
        return True

    def _change_key(self) -> bool:
        device = self._device()
        self._keys[device.device_id] += 1
        self.world.change_key(device, self._keys[device.device_id])
        return True

    def _revoke(self) -> bool:
        device_id, at = self._device().device_id, self.world.now

        def deed(connection: Any) -> None:
            registry.revoke_device(connection, device_id, at)

        self.world.service.register(deed)
        return True

    # ---- strangers

    def _send_strange(self) -> bool:
        """Bytes that are nothing, a stranger's message, a forged one, and a changed one."""
        number = self.chance.randrange(len(self.world.service.processes))
        self.world.deliver_after(1, number, self._strange(), None, None)
        return True

    def _strange(self) -> bytes:
        device = self._device()
        stranger = key_of(f"stranger/{self.chance.random()}", device.device_id, 0)
        kind = self.chance.randrange(4)
        if kind == 0 or device.outbox is None:
            return self.chance.randbytes(self.chance.randrange(1, 2000))
        live = device.outbox.live
        name = "nobody-1" if kind == 1 else device.device_id
        header = header_for(
            device_id=name,  # type: ignore[arg-type]
            epoch=live.epoch,
            first_sequence=live.last_sequence + 1,
            previous_head=live.head,
            taps=[b"\xa0"],
            sent_at=self.world.now,
            predecessor=None if live.last_sequence else device.outbox.find_predecessor(live.epoch),
        )
        if kind < 3:
            return seal(stranger, header, [b"\xa0"])
        message = bytearray(device.outbox.message(device.key, live.epoch, 1, self.world.now))
        message[self.chance.randrange(len(message))] ^= 1 << self.chance.randrange(8)
        return bytes(message)


# ---- a run


@dataclass(frozen=True, slots=True)
class Run:
    """What one world was and what was found."""

    seed: str
    hash: str
    steps: int
    injected: Counter[str]
    counts: Counter[str]
    proof: Proof


class FailedRunError(MottheError):
    """A promise was broken: seed, step, what, and before it the last lines of the event log."""


def run_world(seed: str, taps: int, rates: Rates = EVERYTHING, until: int | None = None) -> Run:
    """One world with so many taps and all that goes wrong in it; raises FailedRunError. `until`: stop at that step."""
    log = logging.getLogger("fare_engine")
    level = log.level
    log.setLevel(logging.CRITICAL)  # what goes wrong here is meant to
    try:
        with tempfile.TemporaryDirectory(prefix="motthe-world-", dir=MEMORY if MEMORY.is_dir() else None) as folder:
            return _run_in(Path(folder), seed, taps, rates, until)
    finally:
        log.setLevel(level)


def _run_in(folder: Path, seed: str, taps: int, rates: Rates, until: int | None) -> Run:
    begins = parse_instant(FIRST_DAY)
    wire = FaultyWire(rates, Random(f"wire/{seed}"))
    world = World(seed=seed, folder=folder, tariff=_tariff(), begins=begins, processes=PROCESSES, wire=wire)
    world.until = until
    faults = Faults(world, rates, Random(f"faults/{seed}"), begins, begins + DAYS * DAY)
    try:
        _equip(world, taps, begins, Random(f"riders/{seed}"))
        faults.plan(taps)
        for day in (DAYS // 2, DAYS):
            world.run(begins + day * DAY)
            check_now(world)
        world.settle()
        world.let_time_pass(DAYS_AFTER)
        proof = prove(world, FOLDER, ADOPTED, faults.restored_to)
    except ViolationError as violation:
        before = "\n".join(world.lines)
        raise FailedRunError(f"{before}\nFAULTS seed {seed}, step {world.step}: {violation}") from violation
    finally:
        world.close()
    return Run(seed, world.hash, world.step, world.injected, world.counts, proof)


@cache
def _tariff() -> CompiledTariff:
    return load_compiled(FOLDER, ADOPTED)


def _equip(world: World, taps: int, begins: int, chance: Random) -> None:
    """Devices, riders, what they are going to do, and the hours of heartbeats and jobs."""
    city = build_city(world.service.tariff, FOLDER, begins, Random(f"city/{world.seed}"))
    stations = city.lines["metro"][: max(4, min(14, taps // 700))]
    routes = [route for route in city.buses if city.vehicles.get(route)][: max(3, min(40, taps // 500))]
    city.vehicles = {route: city.vehicles[route][:2] for route in routes}
    installed = [city.gates[stop] for stop in stations] + [city.vehicles[route] for route in routes]
    for device_id in chain.from_iterable(installed):
        world.install(city.validators[device_id])
    world.cards = cards_of(max(20, taps // TAPS_A_RIDER), chance)
    world.enrol()
    for visit in sorted(visits_of(city, stations, routes, list(world.cards), begins, DAYS, chance))[:taps]:
        world.plan(visit.at, partial(world.visit, visit))
    for device in world.devices.values():
        world.plan(begins + 5 * HOUR + chance.randrange(HOUR), partial(world.boot, device))
        for hours in range(6, DAYS * 24, 6):
            world.plan(begins + hours * HOUR + chance.randrange(2) * MINUTE, partial(world.heartbeat, device))
    for hours in range(1, DAYS * 24):
        world.plan(begins + hours * HOUR, partial(world.work, chance.randrange(PROCESSES)))


def worlds_of(seed: str, taps: int) -> Iterator[tuple[str, int]]:
    """The worlds of a run: each with a seed of its own, which gives it again alone, and so many taps."""
    for number in range(max(1, -(-taps // WORLD_TAPS))):
        yield (seed if number == 0 else f"{seed}.{number}"), min(WORLD_TAPS, taps - number * WORLD_TAPS)


def run_worlds(seed: str, taps: int, processes: int = 1) -> Iterator[Run]:
    """All worlds of a run, in order; raises FailedRunError at the first that fails."""
    worlds = list(worlds_of(seed, taps))
    if processes == 1:
        for world_seed, world_taps in worlds:
            yield run_world(world_seed, world_taps)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        running = [pool.submit(run_world, world_seed, world_taps) for world_seed, world_taps in worlds]
        try:
            for future in running:
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


app = typer.Typer()


@app.command("faults")
def simulate_faults(
    seed: Annotated[str, typer.Option(help="Everything comes from it; the same seed is the same run.")] = "1",
    taps: Annotated[int, typer.Option(min=100, help="How often a card is held to a terminal.")] = 50_000,
    processes: Annotated[int, typer.Option(min=1, help="How many worlds run beside each other.")] = 1,
    until: Annotated[int | None, typer.Option(help="Stop the first world at this step and show what led there.")] = None,
) -> None:
    """Let everything go wrong that can, and check that no acknowledged tap is lost, doubled or mispriced."""
    total = Totals()
    try:
        for run in [run_world(seed, min(taps, WORLD_TAPS), until=until)] if until else run_worlds(seed, taps, processes):
            total.add(run)
            typer.echo(f"{told(run)}; {run.steps} steps, event log {run.hash}")
    except FailedRunError as failed:
        typer.echo(f"{failed}", err=True)
        raise typer.Exit(1) from None
    for line in total.table():
        typer.echo(line)


@dataclass(slots=True)
class Totals:
    """What several worlds come to."""

    injected: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    proof: Proof = field(default_factory=Proof)

    def add(self, run: Run) -> None:
        """One more world."""
        self.injected += run.injected
        self.counts += run.counts
        self.proof.add(run.proof)

    def table(self) -> Iterator[str]:
        """What was injected, what came of it, and every tap that is missing."""
        for head, counts in (("injected", self.injected), ("seen", self.counts), ("alarms", self.proof.alarms)):
            yield f"{head}:"
            yield from (f"{count:>11,}  {name}" for name, count in sorted(counts.items()))
        for missing in self.proof.missing:
            both = f", {missing.acknowledged} of them acknowledged, gone with disk and backup" if missing.acknowledged else ""
            place = f"{missing.device_id}/{missing.epoch}"
            yield f"missing: {place} {missing.taps} taps{both}; {missing.why}; known by {missing.told_by}"


def told(run: Run) -> str:
    """The line that says how a world ended."""
    proof = run.proof
    line = (
        f"FAULTS seed {run.seed}: {proof.written} taps, {proof.acknowledged} acknowledged, 0 lost, 0 doubled, 0 mispriced,"
        f" {proof.never_acknowledged} never acknowledged (named below)"
    )
    return line + (f", {proof.lost_twice} gone with disk and backup (named below)" if proof.lost_twice else "")
