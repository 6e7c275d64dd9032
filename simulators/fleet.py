"""A fleet of real terminals in one process, speaking to a running service over HTTP.

Every terminal is `validators.terminal.Terminal` with its own outbox and key; only the wire between it and the service is
ours: it may be cut, and its delay is simulated, for the day runs on a virtual clock while the service answers in real time."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from random import Random

import aiohttp
import msgspec

from fare_engine.ids import DeviceId, RouteId, StopId
from fare_engine.tap_format import TapKind
from simulators.city import City, Validator
from simulators.riders import Presentation
from simulators.troubles import REPEATED, Outage, Troubles
from validators.outbox import Outbox
from validators.terminal import Asking, Decided, Presented, Sending, TapResult, Terminal, TerminalConfig
from validators.uplink import CONTENT_TYPE, TAPS_PATH, Answer, Backoff, Reply, Unreachable, read_reply

DELAY_MS = 40
CONNECTIONS = 32


@dataclass(slots=True)
class FleetReport:
    """What the fleet did; `latencies` are real microseconds from first byte out to last byte in."""

    presented: int = 0
    online: int = 0
    alone: int = 0
    double: int = 0
    refused: int = 0
    repeated: int = 0
    repeated_differently: int = 0
    lost: int = 0
    acknowledged: int = 0
    waiting: int = 0
    refused_reasons: Counter[str] = field(default_factory=Counter)
    latencies: list[int] = field(default_factory=list)


class NoWire:
    """The uplink of a terminal whose messages the fleet carries itself."""

    def send(self, message: bytes, timeout_s: float) -> Reply | Unreachable:
        """Never used: the fleet calls `present` and `conclude`."""
        return Unreachable(detail="the fleet carries the messages", elapsed_ms=0)


class Fleet:
    """All terminals of a city. Use inside `async with`."""

    def __init__(self, city: City, troubles: Troubles, url: str, tariff_version: str) -> None:
        self.city = city
        self.troubles = troubles
        self.url = url + TAPS_PATH
        self.tariff_version = tariff_version
        self.report = FleetReport()
        self.extra_outages: list[Outage] = []
        self.lost_taps: list[Presentation] = []
        self.kept_out: list[Presentation] = []
        self._random = Random(f"fleet/{troubles.seed}")
        self._terminals: dict[str, Terminal] = {}
        self._unsent: dict[str, list[Presentation]] = {}
        self._boots: Counter[str] = Counter()
        self._backlog: set[str] = set()
        self._outside: set[bytes] = set()
        """Tokens whose entry was refused: their riders are not at the exit either."""
        self._session: aiohttp.ClientSession | None = None
        self._lines = asyncio.Semaphore(CONNECTIONS)

    async def __aenter__(self) -> Fleet:
        connector = aiohttp.TCPConnector(limit=CONNECTIONS)
        self._session = aiohttp.ClientSession(connector=connector, headers={"Content-Type": CONTENT_TYPE})
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()
        for terminal in self._terminals.values():
            terminal.outbox.close()

    # ---- what happens at the devices

    async def present(self, presentations: list[Presentation]) -> None:
        """Some presentations, at once but for this: each device takes its own in their order, and what one rider does keeps
        its order too."""
        last: dict[str | bytes, asyncio.Task[None]] = {}
        tasks = []
        for presentation in presentations:
            before = [last[key] for key in (presentation.device_id, presentation.token) if key in last]
            task = asyncio.create_task(self._tap_after(before, presentation))
            last[presentation.device_id] = last[presentation.token] = task
            tasks.append(task)
        await asyncio.gather(*tasks)

    async def forward(self, at: int) -> None:
        """Every terminal with a backlog sends what it can."""
        await asyncio.gather(*(self._flush(device_id, at) for device_id in sorted(self._backlog)))

    async def drain(self, at: int) -> None:
        """At the day's end: send until nothing waits anywhere, with time passing for those that pause."""
        while self._backlog:
            await self.forward(at)
            at += 60_000

    def count(self) -> FleetReport:
        """The report, with what is acknowledged and what waits as the outboxes know it."""
        epochs = [epoch for terminal in self._terminals.values() for epoch in terminal.outbox.list_epochs()]
        self.report.acknowledged = sum(epoch.acknowledged_through for epoch in epochs)
        self.report.waiting = sum(epoch.pending for epoch in epochs)
        return self.report

    async def _tap_after(self, before: list[asyncio.Task[None]], presentation: Presentation) -> None:
        for earlier in before:
            await earlier
        await self._tap(self._terminal(presentation.device_id, presentation.at), presentation)

    async def _tap(self, terminal: Terminal, presentation: Presentation) -> None:
        device_id, at = presentation.device_id, presentation.at
        if presentation.kind is TapKind.EXIT and presentation.token in self._outside:
            self._outside.discard(presentation.token)
            return
        stop, route = presentation.stop_id, presentation.route_id
        terminal.move(stop_id=StopId(stop), route_id=RouteId(route) if route else None)
        device_time = at + self.troubles.clock_error(device_id)
        presented = Presented(kind=presentation.kind, token=presentation.token, medium=presentation.medium)
        asked = terminal.present(presented, device_time)
        if isinstance(asked, Asking):
            heard = await self._carry(device_id, asked.sending.message, at)
            result = terminal.conclude(asked, heard)
            await self._maybe_repeat(asked, heard)
        else:
            result = asked
        self._forget_clock(terminal, device_id)
        self._note(terminal, presentation, result)

    def _note(self, terminal: Terminal, presentation: Presentation, result: TapResult) -> None:
        report = self.report
        report.presented += 1
        if result.decided is Decided.ONLINE:
            report.online += 1
        elif result.decided is Decided.ALONE:
            report.alone += 1
        else:
            report.double += 1
        if not result.admitted:
            report.refused += 1
            self.kept_out.append(presentation)
            if presentation.kind is TapKind.ENTRY:
                self._outside.add(presentation.token)
            report.refused_reasons[result.reason or "?"] += 1
        if terminal.outbox.live.pending:
            self._backlog.add(presentation.device_id)
            self._unsent.setdefault(presentation.device_id, []).append(presentation)

    async def _maybe_repeat(self, asked: Asking, heard: Reply | Unreachable) -> None:
        """Now and then a message is sent twice: the second answer must be the first one again."""
        if not isinstance(heard, Reply) or not isinstance(heard.content, Answer) or self._random.random() >= REPEATED:
            return
        again = await self._post(asked.sending.message)
        self.report.repeated += 1
        if not isinstance(again, Reply) or not isinstance(again.content, Answer):
            self.report.repeated_differently += 1
            return
        first, second = heard.content.find(asked.tap.sequence), again.content.find(asked.tap.sequence)
        plain = msgspec.structs.replace(second, result="ACCEPTED") if second and second.result == "EXISTS" else second
        if plain != first:
            self.report.repeated_differently += 1

    async def _flush(self, device_id: str, at: int) -> None:
        terminal = self._terminal(device_id, at)
        while True:
            device_time = at + self.troubles.clock_error(device_id)
            sending: Sending | None = terminal.next_sending(device_time)
            if sending is None:
                break
            heard = await self._carry(device_id, sending.message, at)
            terminal.hear(sending, heard)
            self._forget_clock(terminal, device_id)
            at += DELAY_MS
        if not terminal.outbox.list_pending():
            self._backlog.discard(device_id)
            self._unsent.pop(device_id, None)

    # ---- terminals and the wire

    def _terminal(self, device_id: str, at: int) -> Terminal:
        """The device's terminal, booted if need be; one that died is replaced by a new one without its predecessor's disk."""
        dead = next((o for o in self.troubles.outages if o.dies and o.device_id == device_id and at >= o.ends), None)
        if dead is not None and self._boots[device_id] == 1:
            self._bury(device_id)
        if device_id not in self._terminals:
            self._terminals[device_id] = self._boot(self.city.validators[device_id])
        return self._terminals[device_id]

    def _bury(self, device_id: str) -> None:
        terminal = self._terminals.pop(device_id, None)
        if terminal is None:
            return
        self.report.lost += sum(epoch.pending for epoch in terminal.outbox.list_pending())
        self.lost_taps += self._unsent.pop(device_id, [])
        self._backlog.discard(device_id)
        terminal.outbox.close()

    def _boot(self, validator: Validator) -> Terminal:
        self._boots[validator.device_id] += 1
        random = Random(f"{self.troubles.seed}/{validator.device_id}/{self._boots[validator.device_id]}")
        config = TerminalConfig(
            device_id=DeviceId(validator.device_id),
            key=validator.key(self.troubles.seed),
            kinds=validator.kinds,
            stop_id=StopId(validator.stop_id) if validator.stop_id else None,
            route_id=RouteId(validator.route_id) if validator.route_id else None,
            vehicle_id=validator.vehicle_id,
            tariff_version=self.tariff_version,
        )
        outbox = Outbox(":memory:", DeviceId(validator.device_id))
        return Terminal(config, outbox, NoWire(), random_bytes=random.randbytes, backoff=Backoff(random.random))

    async def _carry(self, device_id: str, message: bytes, at: int) -> Reply | Unreachable:
        """Over the wire, if it is not cut; the delay and the server's instant are those of the virtual clock."""
        outages = [o for o in self.extra_outages if o.device_id == device_id and o.begins <= at < o.ends]
        if outages or self.troubles.outage(device_id, at) is not None:
            return Unreachable(detail="no connection", elapsed_ms=DELAY_MS)
        heard = await self._post(message)
        if isinstance(heard, Reply) and isinstance(heard.content, Answer):
            content = msgspec.structs.replace(heard.content, server_time=at + DELAY_MS // 2)
            return Reply(content=content, elapsed_ms=DELAY_MS)
        return heard

    async def _post(self, message: bytes) -> Reply | Unreachable:
        assert self._session is not None
        async with self._lines:  # the time of an answer counts from when a line is free
            begun = time.perf_counter_ns()
            try:
                async with self._session.post(self.url, data=message) as response:
                    body = await response.read()
                    status, wait = response.status, response.headers.get("Retry-After")
            except (aiohttp.ClientError, TimeoutError) as error:
                return Unreachable(detail=str(error), elapsed_ms=DELAY_MS)
            self.report.latencies.append((time.perf_counter_ns() - begun) // 1000)
        return read_reply(status, body, DELAY_MS, wait)

    def _forget_clock(self, terminal: Terminal, device_id: str) -> None:
        """The device with the wrong clock has a fault that keeps it from learning the server's time."""
        if self.troubles.clock_error(device_id):
            terminal.clock = None
