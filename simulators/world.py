"""A small city on a virtual clock: terminals, their disks, the network, the service's processes and their database, one process.

Everything but the wire, the power supply and the clocks is the real thing: `validators.terminal.Terminal` over outbox files,
signed bytes, `Receipt` and `Application` over an SQLite file. Nothing sleeps, no thread runs, no socket opens, and every chance
comes from the seed: a run can be had again, step by step. What goes wrong and how often is `simulators.faults`; whether all was
right in the end is `simulators.proof`."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import event as sqlalchemy_event

from fare_engine import answers
from fare_engine.answers import BatchAnswer
from fare_engine.application import Application
from fare_engine.booking import Record
from fare_engine.errors import EnvelopeError, MottheError
from fare_engine.ids import DeviceId, RouteId, StopId
from fare_engine.jobs import Jobs
from fare_engine.pricing.state import NEVER
from fare_engine.receipt import Receipt
from fare_engine.service.problems import body_of, status_of
from fare_engine.store import registry, travellers
from fare_engine.store.database import Database, sqlite_url
from fare_engine.store.registry import DeviceKey
from fare_engine.store.travellers import Account, NewToken, Traveller
from fare_engine.tap_format import TapKind
from fare_engine.tariff.compile import CompiledTariff
from fare_engine.tokens import stored_token
from fare_engine.windows import Ages
from simulators.city import City, Validator
from validators.clock import ClockEstimate
from validators.outbox import EpochState, Outbox, RandomBytes
from validators.terminal import Asking, Decided, Presented, Sending, TapResult, Terminal, TerminalConfig
from validators.uplink import Backoff, Reply, Unreachable, read_reply

SECOND, MINUTE, HOUR, DAY = 1_000, 60_000, 3_600_000, 86_400_000
SHORT = Ages(open_ms=3 * DAY, kept_ms=50 * HOUR, longest_ms=2 * DAY, every=2)
"""Windows of travellers' records are closed after days, not weeks; what is late opens them again."""
SERVER_KEY = hashlib.sha256(b"the simulated service").digest()
AT_REST_KEY = hashlib.sha256(b"the simulated database").digest()
SLOT_MS = 10
"""What reaches a process within so many milliseconds goes into one commit, as in the tap lane."""
TICK_MS = 10 * MINUTE
"""Riders come in waves, as trains do."""
FLUSH_TIMEOUT_MS = 5 * SECOND
SETTLE_ROUNDS = 60
KEPT_LINES = 40


class ViolationError(MottheError):
    """A promise was broken, or something raised that must not."""


class ProcessKilledError(BaseException):
    """An API process ended in the middle of what it did: nothing in it can catch that."""


class PowerCutError(MottheError):
    """A terminal went off in the middle of what it did."""


@dataclass(frozen=True, slots=True, order=True)
class Visit:
    """A rider holds a card to a device, in truth."""

    at: int
    rider: str
    kind: TapKind
    device_id: str
    stop_id: str | None
    route_id: str | None


@dataclass(frozen=True, slots=True)
class Card:
    """A rider's card and how it is paid; `balance` is what a prepaid account begins with, minor units."""

    rider: str
    token: bytes
    medium: str
    kind: str
    balance: int
    known: bool
    """Whether it was ever issued: some cards are nobody's."""


@dataclass(frozen=True, slots=True)
class Loss:
    """Taps that an injected fault took from a terminal's disk: of each epoch, from one sequence to another."""

    device_id: str
    kind: str
    at: int
    taps: dict[str, tuple[int, int]]

    def covers(self, epoch: str, sequence: int) -> bool:
        """Whether a tap is one of them."""
        first, last = self.taps.get(epoch, (1, 0))
        return first <= sequence <= last


class Ledger:
    """What was really written and really acknowledged, kept outside of everything that may fail."""

    def __init__(self) -> None:
        self.written: dict[tuple[str, str], list[bytes]] = {}
        """(device, epoch) → its taps. A terminal that forgot some begins another epoch, so that none is written twice."""
        self.acknowledged: dict[tuple[str, str], int] = {}
        """(device, epoch) → through which sequence its terminal was told that the server has it."""
        self.losses: list[Loss] = []

    def ends(self, device_id: str) -> dict[str, int]:
        """The last sequence of each epoch of a device so far."""
        return {epoch: len(taps) for (device, epoch), taps in self.written.items() if device == device_id}


class WatchedOutbox(Outbox):
    """A terminal's outbox that tells the ledger, and during which the power may fail."""

    def __init__(self, path: Path, device_id: DeviceId, ledger: Ledger) -> None:
        self.ledger = ledger
        self.cut: tuple[str, str] | None = None
        """Where the power fails next: before or after which deed."""
        super().__init__(path, device_id)

    def _may_fail(self, deed: str, when: str) -> None:
        if self.cut == (deed, when):
            self.cut = None
            raise PowerCutError(f"{self.device_id}: {when} {deed}")

    def append(self, tap: bytes) -> int:
        self._may_fail("append", "before")
        sequence = super().append(tap)
        written = self.ledger.written.setdefault((self.device_id, self.live.epoch.hex()), [])
        if len(written) != sequence - 1:
            raise ViolationError(
                f"{self.device_id}: tap {sequence} is written after {len(written)} of epoch {self.live.epoch.hex()}"
            )
        written.append(tap)
        self._may_fail("append", "after")
        return sequence

    def begin_epoch(self, random_bytes: RandomBytes) -> EpochState:
        self._may_fail("begin_epoch", "before")
        begun = super().begin_epoch(random_bytes)
        self._may_fail("begin_epoch", "after")
        return begun

    def acknowledged(self, epoch: bytes, through: int, at: int) -> None:
        self._may_fail("acknowledged", "before")
        super().acknowledged(epoch, through, at)
        place = (self.device_id, epoch.hex())
        self.ledger.acknowledged[place] = max(through, self.ledger.acknowledged.get(place, 0))
        self._may_fail("acknowledged", "after")


@dataclass(slots=True)
class Exchange:
    """A message on its way, and the tap that waits for its answer; None: it was sent by a flush."""

    sending: Sending
    asked: Asking | None
    visit: Visit | None
    sent_at: int
    settled: bool = False


@dataclass(slots=True)
class Device:
    """A terminal with its disk, its clock and who stands before it."""

    validator: Validator
    path: Path
    key: Ed25519PrivateKey
    chance: Random
    offset_ms: int = 0
    drift_ppm: int = 0
    drifting_since: int = 0
    terminal: Terminal | None = None
    """None while it is off."""
    outbox: WatchedOutbox | None = None
    exchange: Exchange | None = None
    waiting: deque[Visit] = field(default_factory=deque)
    clock: ClockEstimate | None = None
    flush_planned: bool = False
    cut_off_until: int = 0
    cut_off_from: frozenset[int] | None = None
    """Processes that cannot be reached until then; None: none of them."""
    given_up: dict[str, str] = field(default_factory=dict)
    """Epochs that its terminal gave up at some time, and why."""

    @property
    def device_id(self) -> DeviceId:
        """Its name."""
        return DeviceId(self.validator.device_id)

    def time(self, at: int) -> int:
        """What its clock shows at a true instant."""
        return at + self.offset_ms + (at - self.drifting_since) * self.drift_ppm // 1_000_000

    def set_clock(self, at: int, offset_ms: int, drift_ppm: int) -> None:
        """Somebody sets the clock, so far off and so fast."""
        self.offset_ms, self.drift_ppm, self.drifting_since = offset_ms, drift_ppm, at

    def image(self) -> dict[str, bytes]:
        """The files of its disk as they are."""
        paths = [self.path.with_name(self.path.name + ending) for ending in ("", "-wal")]
        return {path.name: path.read_bytes() for path in paths if path.exists()}

    def write_image(self, image: dict[str, bytes]) -> None:
        """These files and no others."""
        for ending in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + ending).unlink(missing_ok=True)
        for name, content in image.items():
            self.path.with_name(name).write_bytes(content)


class Process:
    """One API process: its own connection, caches and inbox over the common database."""

    def __init__(self, number: int, url: str, tariff: CompiledTariff) -> None:
        self.number = number
        self.up = True
        self.inbox: list[tuple[bytes, Exchange | None, Device | None]] = []
        self.dies_after_commit = False
        self.at_work = False
        self.statements_left: int | None = None
        """After how many more statements it is killed."""
        self.database = Database(url, AT_REST_KEY)
        sqlalchemy_event.listen(self.database.engine, "connect", _without_sync)
        sqlalchemy_event.listen(self.database.engine, "before_cursor_execute", self._count)
        sqlalchemy_event.listen(self.database.engine, "commit", self._count)
        self.application = Application(tariff, SERVER_KEY, SHORT)
        self.receipt = Receipt(self.database, self.application)

    def _count(self, *_: object) -> None:
        if self.statements_left is None or not self.at_work:
            return
        self.statements_left -= 1
        if self.statements_left < 0:
            self.statements_left = None
            raise ProcessKilledError(f"process {self.number}")


def _without_sync(connection: Any, _record: object) -> None:
    """Kills are simulated: the disk of this machine needs to keep nothing."""
    connection.execute("PRAGMA synchronous=OFF")


class Service:
    """Some API processes over one database file, which may be set back to an earlier state."""

    def __init__(self, path: Path, tariff: CompiledTariff, processes: int) -> None:
        self.path = path
        self.tariff = tariff
        database = Database(sqlite_url(path), AT_REST_KEY)
        sqlalchemy_event.listen(database.engine, "connect", _without_sync)
        database.create()
        database.dispose()
        self.processes = [self._new(number) for number in range(processes)]
        self.deeds: list[Callable[[Any], None]] = []
        """What people changed in the register: a restored backup has it not, so they do it again."""

    def _new(self, number: int) -> Process:
        return Process(number, sqlite_url(self.path), self.tariff)

    @property
    def any(self) -> Process:
        """A process to look through."""
        return self.processes[0]

    def replace(self, number: int) -> None:
        """Another process in the place of one that ended, with nothing in its caches."""
        self.processes[number].database.dispose()
        self.processes[number] = self._new(number)

    def register(self, deed: Callable[[Any], None]) -> None:
        """Somebody changes the register."""
        with self.any.database.write() as connection:
            deed(connection)
        self.deeds.append(deed)

    def back_up(self) -> dict[str, bytes]:
        """The files of the database as they are: nobody is writing."""
        paths = [self.path.with_name(self.path.name + ending) for ending in ("", "-wal")]
        return {path.name: path.read_bytes() for path in paths if path.exists()}

    def restore(self, backup: dict[str, bytes]) -> None:
        """The database as it was; every process begins anew, and people repeat what they registered since."""
        for process in self.processes:
            process.database.dispose()
        for ending in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + ending).unlink(missing_ok=True)
        for name, content in backup.items():
            self.path.with_name(name).write_bytes(content)
        self.processes = [self._new(process.number) for process in self.processes]
        for deed in self.deeds:
            with self.any.database.write() as connection:
                deed(connection)

    def dispose(self) -> None:
        """Close every connection."""
        for process in self.processes:
            process.database.dispose()


class Wire:
    """Carries messages without any fault; `simulators.faults` has a worse one."""

    def send(self, world: World, device: Device, message: bytes, exchange: Exchange) -> None:
        """A message leaves a device."""
        world.deliver_after(20, world.chance.randrange(len(world.service.processes)), message, exchange, device)

    def answer(self, world: World, device: Device, exchange: Exchange, status: int, body: bytes) -> None:
        """An answer leaves a process."""
        world.reply_after(20, device, exchange, status, body)


class World:
    """The city and its clock. `run` goes through the events in their order."""

    def __init__(self, *, seed: str, folder: Path, tariff: CompiledTariff, begins: int, processes: int, wire: Wire) -> None:
        self.seed = seed
        self.chance = Random(f"world/{seed}")
        self.folder = folder
        self.now = begins
        self.step = 0
        self.until: int | None = None
        self.wire = wire
        self.ledger = Ledger()
        self.service = Service(folder / "service.db", tariff, processes)
        self.devices: dict[str, Device] = {}
        self.cards: dict[str, Card] = {}
        self.injected: Counter[str] = Counter()
        """What went wrong, and how often."""
        self.counts: Counter[str] = Counter()
        """What came of it."""
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._digest = hashlib.sha256()
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._planned = 0
        self._kept_out: set[str] = set()

    # ---- the clock

    def after(self, delay: int, deed: Callable[[], None]) -> None:
        """Something happens so many milliseconds from now; what is planned first happens first."""
        self.plan(self.now + delay, deed)

    def plan(self, at: int, deed: Callable[[], None]) -> None:
        """Something happens at an instant."""
        self._planned += 1
        heapq.heappush(self._queue, (at, self._planned, deed))

    def run(self, until: int) -> None:
        """Everything that is planned before an instant. ViolationError if anything raises that must not."""
        while self._queue and self._queue[0][0] < until:
            self.now, _, deed = heapq.heappop(self._queue)
            self.step += 1
            if self.until is not None and self.step > self.until:
                raise ViolationError(f"stopped at step {self.until}, as asked for")
            try:
                deed()
            except ViolationError:
                raise
            except Exception as error:
                raise ViolationError(f"{type(error).__name__}: {error}") from error
        self.now = until

    def log(self, what: str) -> None:
        """A line of the event log: the run's hash is over all of them."""
        line = f"{self.step} {self.now} {what}"
        self._digest.update(line.encode() + b"\n")
        self.lines.append(line)

    @property
    def hash(self) -> str:
        """Over everything that happened so far: two runs are the same if theirs are."""
        return self._digest.hexdigest()[:16]

    # ---- what there is

    def install(self, validator: Validator) -> Device:
        """A device with a key and a place, enrolled and switched on."""
        key = key_of(self.seed, validator.device_id, 0)
        path = self.folder / f"{validator.device_id}.db"
        device = Device(validator, path, key, Random(f"{self.seed}/{validator.device_id}"))
        self.devices[validator.device_id] = device
        return device

    def enrol(self) -> None:
        """Every installed device and every known card into the register."""
        known = [card for card in self.cards.values() if card.known]
        devices = [
            registry.Device(name, device.validator.operator_id, device.key.public_key().public_bytes_raw(), None)
            for name, device in self.devices.items()
        ]
        with self.service.any.database.write() as connection:
            registry.enrol_devices(connection, devices, self.now)
            travellers.add_accounts(connection, [Account(card.rider, card.kind, card.balance) for card in known])
            tokens = [NewToken(stored_token(SERVER_KEY, card.token), card.rider, card.rider, card.token) for card in known]
            travellers.add_tokens(connection, tokens)
            travellers.add_travellers(connection, [Traveller(card.rider, card.rider, Record(), NEVER) for card in known])

    def boot(self, device: Device) -> None:
        """The terminal comes up over whatever its disk holds."""
        if device.terminal is not None:
            return
        outbox = WatchedOutbox(device.path, device.device_id, self.ledger)
        config = TerminalConfig(
            device_id=device.device_id,
            key=device.key,
            kinds=device.validator.kinds,
            stop_id=StopId(device.validator.stop_id) if device.validator.stop_id else None,
            route_id=RouteId(device.validator.route_id) if device.validator.route_id else None,
        )
        device.outbox = outbox
        device.terminal = Terminal(
            config,
            outbox,
            _Direct(self, device),
            random_bytes=device.chance.randbytes,
            backoff=Backoff(device.chance.random),
            clock=device.clock,
        )
        self.log(f"boot {device.device_id} {outbox.live.epoch.hex()} pending {len(outbox.list_pending())}")
        self._go_on(device)

    def switch_off(self, device: Device) -> None:
        """The power fails: what is on the disk stays as it is, everything else is gone."""
        if device.terminal is None or device.outbox is None:
            return
        self._note_given_up(device)
        device.clock = device.terminal.clock
        image = device.image()
        device.outbox.close()
        device.write_image(image)  # as after a power cut: nobody closed the file
        device.terminal = device.outbox = device.exchange = None

    def crash(self, device: Device, off_for: int) -> None:
        """The power fails and comes back."""
        self.log(f"power cut {device.device_id}")
        self.switch_off(device)
        self.after(off_for, lambda: self.boot(device))

    def change_key(self, device: Device, number: int) -> None:
        """The device's key changes; the old one goes on for an hour, for what is on its way."""
        old, new = device.key, key_of(self.seed, device.device_id, number)
        at = self.now
        before = DeviceKey(device.device_id, old.public_key().public_bytes_raw(), 0, at + HOUR)
        after = DeviceKey(device.device_id, new.public_key().public_bytes_raw(), at)

        def deed(connection: Any) -> None:
            registry.save_key(connection, before)
            registry.save_key(connection, after)

        self.service.register(deed)
        device.key = new
        if device.terminal is not None:
            device.terminal.config = replace(device.terminal.config, key=new)

    # ---- at the devices

    def visit(self, visit: Visit) -> None:
        """A rider comes to a device; whoever is before him is served first."""
        if visit.kind is TapKind.EXIT and visit.rider in self._kept_out:
            self._kept_out.discard(visit.rider)
            return
        device = self.devices[visit.device_id]
        device.waiting.append(visit)
        self._go_on(device)

    def _go_on(self, device: Device) -> None:
        """The next rider, if the terminal is free; else what waits, a little later."""
        while device.waiting and device.terminal is not None and device.exchange is None:
            self._guarded(device, lambda: self._present(device, device.waiting.popleft()))
        if device.terminal is not None and device.exchange is None and not device.flush_planned:
            device.flush_planned = True
            self.after(device.chance.randrange(5, 60) * SECOND, lambda: self._flush(device))

    def _guarded(self, device: Device, deed: Callable[[], None]) -> None:
        """What a terminal does: the power may fail in the middle."""
        try:
            deed()
        except PowerCutError as cut:
            self.injected["power cuts in the middle of a deed"] += 1
            self.log(f"{cut}")
            self.crash(device, device.chance.randrange(5, 300) * SECOND)

    def _present(self, device: Device, visit: Visit) -> None:
        assert device.terminal is not None
        card = self.cards[visit.rider]
        if visit.stop_id is not None or visit.route_id is not None:
            stop = StopId(visit.stop_id) if visit.stop_id else None
            device.terminal.move(stop_id=stop, route_id=RouteId(visit.route_id) if visit.route_id else None)
        presented = Presented(kind=visit.kind, token=card.token, medium=card.medium)
        asked = device.terminal.present(presented, device.time(self.now))
        if isinstance(asked, Asking):
            self._send(device, asked.sending, asked, visit)
        else:
            self._told(device, visit, asked)

    def _told(self, device: Device, visit: Visit, result: TapResult) -> None:
        """The rider is told something, and goes through or not."""
        assert device.terminal is not None
        self.counts[f"riders told: {result.decided.value}"] += 1
        self.counts["riders refused"] += not result.admitted
        self.log(f"told {visit.rider} {result.tap_id} {result.decided.value} {result.admitted} {result.reason}")
        shut = result.admitted and result.decided is not Decided.BEFORE and device.chance.random() < 0.01
        if shut:
            self.injected["gates that did not open"] += 1
            device.terminal.gate_not_opened(result.place, device.time(self.now) + 1500)
        if visit.kind is TapKind.ENTRY and (shut or not result.admitted):
            self._kept_out.add(visit.rider)

    def _flush(self, device: Device) -> None:
        device.flush_planned = False
        if device.terminal is None or device.exchange is not None:
            return
        self._guarded(device, lambda: self._send_waiting(device, heartbeat=False))

    def heartbeat(self, device: Device) -> None:
        """The terminal says that it is there, if it is not busy."""
        if device.terminal is not None and device.exchange is None:
            self._guarded(device, lambda: self._send_waiting(device, heartbeat=True))

    def _send_waiting(self, device: Device, *, heartbeat: bool) -> None:
        assert device.terminal is not None
        assert device.outbox is not None
        sending = device.terminal.next_sending(device.time(self.now), heartbeat=heartbeat)
        if sending is not None:
            self._send(device, sending, None, None)
        elif device.outbox.list_pending() and not device.terminal.stopped:
            device.flush_planned = True
            self.after(device.chance.randrange(20, 120) * SECOND, lambda: self._flush(device))

    def _send(self, device: Device, sending: Sending, asked: Asking | None, visit: Visit | None) -> None:
        exchange = Exchange(sending, asked, visit, self.now)
        device.exchange = exchange
        patience = FLUSH_TIMEOUT_MS if asked is None else int(asked.timeout_s * 1000) + device.chance.choice((0, 60))
        self.counts["messages"] += 1
        self.wire.send(self, device, sending.message, exchange)
        self.after(patience, lambda: self._settle(device, exchange, Unreachable(detail="nobody", elapsed_ms=patience)))

    def _settle(self, device: Device, exchange: Exchange, heard: Reply | Unreachable) -> None:
        """An answer, or that there is none, reaches the terminal; only the first does, and only if it still waits."""
        if exchange.settled or device.exchange is not exchange or device.terminal is None:
            return
        exchange.settled, device.exchange = True, None
        self._guarded(device, lambda: self._hear(device, exchange, heard))
        self._go_on(device)

    def _hear(self, device: Device, exchange: Exchange, heard: Reply | Unreachable) -> None:
        assert device.terminal is not None
        said = type(heard.content).__name__ if isinstance(heard, Reply) else heard.detail
        self.log(f"heard {device.device_id} {exchange.sending.first_sequence}+{exchange.sending.count} {said} {heard.elapsed_ms}")
        if exchange.asked is not None and exchange.visit is not None:
            self._told(device, exchange.visit, device.terminal.conclude(exchange.asked, heard))
        else:
            device.terminal.hear(exchange.sending, heard)
        self._note_given_up(device)

    def _note_given_up(self, device: Device) -> None:
        if device.terminal is not None:
            device.given_up |= {epoch.hex(): cause for epoch, cause in device.terminal.stuck.items()}

    # ---- on the way

    def deliver_after(self, delay: int, number: int, message: bytes, exchange: Exchange | None, device: Device | None) -> None:
        """A message reaches a process."""
        self.after(delay, lambda: self._deliver(number, message, exchange, device))

    def reply_after(self, delay: int, device: Device, exchange: Exchange, status: int, body: bytes) -> None:
        """An answer reaches a device."""

        def deed() -> None:
            elapsed = self.now - exchange.sent_at
            self._settle(device, exchange, read_reply(status, body, elapsed, "3" if status in (429, 503) else None))

        self.after(delay, deed)

    def fail_after(self, delay: int, device: Device, exchange: Exchange, detail: str) -> None:
        """The device notices that its connection is gone."""
        self.after(
            delay,
            lambda: self._settle(device, exchange, Unreachable(detail=detail, elapsed_ms=self.now - exchange.sent_at)),
        )

    def _deliver(self, number: int, message: bytes, exchange: Exchange | None, device: Device | None) -> None:
        process = self.service.processes[number]
        if not process.up:
            if exchange is not None and device is not None:
                self.fail_after(5, device, exchange, "connection refused")
            return
        process.inbox.append((message, exchange, device))
        if len(process.inbox) == 1:
            self.after(SLOT_MS - self.now % SLOT_MS, lambda: self._commit(process))

    def _commit(self, process: Process) -> None:
        """One turn of a process: everything in its inbox in one commit, answers after it."""
        group, process.inbox = process.inbox, []
        if not process.up or not group:
            return
        process.at_work = True
        try:
            outcomes = process.receipt.accept_group([message for message, _, _ in group], self.now)
            if process.dies_after_commit:
                raise ProcessKilledError(f"process {process.number} after its commit")
        except ProcessKilledError as killed:
            self._process_died(process, f"{killed}", group)
            return
        finally:
            process.at_work = False
        self.counts["commits"] += 1
        self.log(f"commit {process.number} {[_said(outcome) for outcome in outcomes]}")
        for (_, exchange, device), outcome in zip(group, outcomes, strict=True):
            self.counts[f"answers of the service: {_cause(outcome)}"] += 1
            if exchange is not None and device is not None:
                self.wire.answer(self, device, exchange, *_response(outcome))

    def _process_died(self, process: Process, how: str, group: list[tuple[bytes, Exchange | None, Device | None]]) -> None:
        self.log(f"killed: {how}")
        self.injected["processes killed"] += 1
        process.up = False
        for _, exchange, device in group:
            if exchange is not None and device is not None:
                self.fail_after(1, device, exchange, "connection reset")
        self.after(self.chance.randrange(1, 20) * SECOND, lambda: self._restart(process))

    def _restart(self, process: Process) -> None:
        if self.service.processes[process.number] is process:
            self.service.replace(process.number)
            self.log(f"process {process.number} is back")

    def work(self, number: int) -> None:
        """The jobs of a process, one turn after the other until nothing is due."""
        process = self.service.processes[number]
        if not process.up:
            return
        process.at_work = True
        try:
            done = Jobs(process.database, process.application).run_turn(self.now)
        except ProcessKilledError as killed:
            self._process_died(process, f"{killed} at its jobs", [])
            return
        finally:
            process.at_work = False
        if done:
            self.log(f"jobs {number} {done}")
            self.after(SLOT_MS, lambda: self.work(number))

    def exchange_now(self, device: Device, message: bytes) -> Reply | Unreachable:
        """A message and its answer at once, without anything going wrong: for the time after all faults."""
        process = self.service.processes[self.chance.randrange(len(self.service.processes))]
        (outcome,) = process.receipt.accept_group([message], self.now)
        self.log(f"settling {device.device_id} {_said(outcome)}")
        return read_reply(*_response(outcome), 20)

    # ---- the end

    def settle(self) -> None:
        """All faults are over: everything that is alive sends until nothing waits, boots once more, as every terminal does some
        time, and sends again. ViolationError if that takes for ever."""
        self._mend()
        self._send_all()
        for device in self.devices.values():
            self.switch_off(device)
            self.boot(device)
        self._send_all()

    def _send_all(self) -> None:
        for _ in range(SETTLE_ROUNDS):
            self.run(self.now + 10 * MINUTE)
            restless = [device for device in self.devices.values() if self._is_restless(device)]
            if not restless:
                return
        names = "; ".join(_state(device) for device in restless[:3])
        raise ViolationError(f"something still waits after {SETTLE_ROUNDS} rounds: {names}")

    def _mend(self) -> None:
        for number, process in enumerate(self.service.processes):
            process.statements_left, process.dies_after_commit = None, False
            if not process.up:
                self.service.replace(number)
        for device in self.devices.values():
            device.cut_off_until = 0
            if device.outbox is not None:
                device.outbox.cut = None
            self.boot(device)
        self.wire = Wire()

    def _is_restless(self, device: Device) -> bool:
        """Let a terminal send all it has; whether there was anything. One that stopped is set up anew by its operator."""
        assert device.terminal is not None
        if device.terminal.stopped:
            self.counts["terminals set up anew in the end"] += 1
            self.log(f"operator boots {device.device_id}, stopped by {device.terminal.stopped}")
            self.switch_off(device)
            self.boot(device)
            return True
        report = device.terminal.flush(device.time(self.now), heartbeat=True)
        self._note_given_up(device)
        more = device.terminal.next_sending(device.time(self.now))
        return bool(report.acknowledged or report.pending or report.stopped or more)

    def let_time_pass(self, days: int) -> None:
        """Whatever is due in the next days happens."""
        process = self.service.any
        for _ in range(days):
            self.now += DAY
            while Jobs(process.database, process.application).run_turn(self.now):
                pass

    def close(self) -> None:
        """Let go of every file."""
        for device in self.devices.values():
            if device.outbox is not None:
                device.outbox.close()
        self.service.dispose()


def _state(device: Device) -> str:
    """What a terminal still has to do."""
    if device.terminal is None or device.outbox is None:
        return f"{device.device_id} is off"
    pending = [(state.epoch.hex(), state.acknowledged_through, state.last_sequence) for state in device.outbox.list_pending()]
    return f"{device.device_id}: stopped {device.terminal.stopped}, given up {device.terminal.stuck}, pending {pending}"


class _Direct:
    """The uplink of a terminal: used after all faults only, before that the world carries its messages."""

    def __init__(self, world: World, device: Device) -> None:
        self.world = world
        self.device = device

    def send(self, message: bytes, timeout_s: float) -> Reply | Unreachable:
        """See Uplink."""
        return self.world.exchange_now(self.device, message)


def key_of(seed: str, device_id: str, number: int) -> Ed25519PrivateKey:
    """A device's key with that number; it changes its key to the next one."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"{seed}/{device_id}/{number}".encode()).digest())


def _response(outcome: BatchAnswer | EnvelopeError) -> tuple[int, bytes]:
    """Status and body, as the service sends them."""
    if isinstance(outcome, EnvelopeError):
        return status_of(outcome), body_of(outcome)
    return 200, answers.encode(outcome)


def _cause(outcome: BatchAnswer | EnvelopeError) -> str:
    return outcome.cause if isinstance(outcome, EnvelopeError) else "200"


def _said(outcome: BatchAnswer | EnvelopeError) -> str:
    """An outcome for the event log."""
    if isinstance(outcome, EnvelopeError):
        return f"{outcome.cause} {outcome.resume_from}"
    taps = " ".join(f"{tap.sequence}{tap.result[0]}{tap.decision[0]}{tap.fare}" for tap in outcome.answers)
    return f"{outcome.device_id}/{outcome.epoch} {outcome.acknowledged_through} {taps}"


# ---- riders


def cards_of(count: int, chance: Random) -> dict[str, Card]:
    """Riders' cards by the rider's name: two thirds are billed, the others hold money, and a few are nobody's."""
    found = {}
    for number in range(count):
        rider = f"R{number:05d}"
        prepaid = chance.random() < 0.35
        balance = chance.choice((15_000, 60_000, 400_000, 2_000_000)) if prepaid else 0
        medium, kind = ("ic_card", "prepaid") if prepaid else ("emv", "postpaid")
        found[rider] = Card(rider, chance.randbytes(16), medium, kind, balance, chance.random() < 0.99)
    return found


def visits_of(
    city: City, stations: list[str], routes: list[str], riders: list[str], begins: int, days: int, chance: Random
) -> Iterator[Visit]:
    """What riders do on some days: a way there and often one back, by bus or by rail or both. Some exits are missing, some
    cards are held to the door twice."""
    for day in range(days):
        midnight = begins + day * DAY
        for rider in riders:
            if chance.random() < 0.1:
                continue
            yield from _way(city, stations, routes, rider, midnight + _tick(chance, 6 * HOUR, 9 * HOUR), chance)
            if chance.random() < 0.8:
                yield from _way(city, stations, routes, rider, midnight + _tick(chance, 16 * HOUR, 19 * HOUR), chance)


def _way(city: City, stations: list[str], routes: list[str], rider: str, at: int, chance: Random) -> Iterator[Visit]:
    how = chance.random()
    if how < 0.65:
        route = chance.choice(routes)
        stop = chance.choice(city.tariff.network.stops_of_route[route])
        visit = Visit(at, rider, TapKind.BOARD, chance.choice(city.vehicles[route]), stop, route)
        yield visit
        if chance.random() < 0.03:
            yield replace(visit, at=at + 1200)
    if how > 0.35:
        first, last = chance.sample(stations, 2)
        begins = at + (0 if how > 0.65 else TICK_MS * chance.randint(2, 4))
        yield Visit(begins, rider, TapKind.ENTRY, chance.choice(city.gates[first]), first, None)
        if chance.random() > 0.03:
            ends = begins + TICK_MS * chance.randint(1, 5)
            yield Visit(ends, rider, TapKind.EXIT, chance.choice(city.gates[last]), last, None)


def _tick(chance: Random, begins: int, ends: int) -> int:
    """An instant at which a wave of riders comes."""
    return begins + TICK_MS * chance.randrange((ends - begins) // TICK_MS) + chance.randrange(2) * SLOT_MS
