"""The demo: a service, a city in motion, a day's close, its proof, and pages to look at.

The service is a process of its own, reached over HTTP like any other; the player moves its clock, minute by minute."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from random import Random

import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from clearing.audit import AuditReport
from clearing.commands import audit_date, clear_date, end_of, let_time_pass, print_close, write_documents
from fare_engine import publishing
from fare_engine.application import Application
from fare_engine.commands import Opened, open_store
from fare_engine.errors import MottheError
from fare_engine.money import format_amount
from fare_engine.service_day import MINUTE_MS, day_starts_at, to_day
from fare_engine.settings import PROJECT, secret_file
from fare_engine.store import registry
from fare_engine.store.database import Database, sqlite_url
from fare_engine.tokens import stored_token
from simulators import harm, seeding
from simulators.city import City, build_city
from simulators.control import control_key
from simulators.fleet import Fleet, FleetReport
from simulators.riders import HOUR, Day, Presentation, Rider
from simulators.troubles import Outage, Troubles, plan

DAY = "2026-03-02"
ADOPTED = "proposal-2026-03"
TARIFF = "tariffs/hcmc"
STEP_MS = 5 * MINUTE_MS
MARK = "demo.json"


class DemoError(MottheError):
    """The demo cannot run here, or what it ran does not hold."""


@dataclass(slots=True)
class Played:
    """A day that was played."""

    city: City
    riders: list[Rider]
    troubles: Troubles
    fleet: FleetReport
    lost: list[Presentation]
    kept_out: list[Presentation]
    seconds: float


def run(*, data: Path, riders: int, seed: int, port: int, serve: bool) -> int:
    """Play the day; the exit code is 0 only if every proof holds."""
    console = Console()
    prepare(data, seed, riders)
    with Server(data, port) as server:
        console.print(f"[bold]Một Thẻ[/bold] is up: {server.url}/  (seed {seed}, {riders:,} riders, service date {DAY})")
        played = play(data, server, riders, seed, console)
        holds = finish(data, played, seed, console)
        print_links(console, data, server.url, played, seed)
        if serve:
            console.print("[dim]Serving until Ctrl-C.[/dim]")
            with contextlib.suppress(KeyboardInterrupt):
                server.wait()
    return 0 if holds else 1


def prepare(data: Path, seed: int, riders: int) -> None:
    """An empty store for the demo. A folder that holds anything but an earlier demo is left alone."""
    if data.exists() and any(data.iterdir()):
        if not (data / MARK).exists():
            raise DemoError(f"{data} holds a store that is no demo's; --data names another folder")
        shutil.rmtree(data)
    data.mkdir(parents=True, exist_ok=True)
    (data / MARK).write_text(json.dumps({"seed": seed, "riders": riders, "service_date": DAY}) + "\n", encoding="utf-8")
    seeding.write_keys(data, seed)
    secret_file(data / "keys" / "demo.key")
    database = Database(sqlite_url(data / "motthe.db"), secret_file(data / "keys" / "at-rest.key"))
    database.create()
    with database.write() as connection:
        registry.save_settings(connection, {"tariff": TARIFF, "adopt": ADOPTED})
    database.dispose()


# ---- the service as a process


class Server:
    """`motthe serve` with the demo's clock, as a child process."""

    def __init__(self, data: Path, port: int) -> None:
        self.data = data
        self.port = port or _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.key = control_key(data)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        if not _is_free(self.port):
            raise DemoError(f"port {self.port} of 127.0.0.1 is in use; --port names another, 0 picks a free one")
        arguments = ["serve", "--demo", "--port", str(self.port), "--data", str(self.data.resolve())]
        command = [sys.executable, "-m", "motthe", *arguments]
        self._process = subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE)  # it ends when this pipe does
        deadline = time.monotonic() + 30
        while not self._answers():
            if self._process.poll() is not None:
                raise DemoError(f"the service ended with exit code {self._process.returncode}; is port {self.port} free?")
            if time.monotonic() > deadline:
                raise DemoError("the service did not come up within 30 s")
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()

    def wait(self) -> None:
        """Until the service ends."""
        assert self._process is not None
        self._process.wait()

    def set_clock(self, now: int) -> list[str]:
        """Move the service's clock; what visitors asked to break meanwhile."""
        body = json.dumps({"now": now}).encode()
        request = urllib.request.Request(
            f"{self.url}/demo/clock", data=body, headers={"Authorization": f"Bearer {self.key}"}, method="POST"
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            found: list[str] = json.loads(response.read())["breaks"]
        return found

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/healthz", timeout=2) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# ---- the day


def play(data: Path, server: Server, count: int, seed: int, console: Console) -> Played:
    """Make the city and its riders, and let the day pass."""
    begun = time.monotonic()
    opened = open_store(data)
    zone = opened.tariff.zone
    midnight = day_starts_at(to_day(date.fromisoformat(DAY)), zone, 0)
    server.set_clock(midnight + 3 * HOUR)
    city = build_city(opened.tariff, opened.tariff_folder, midnight + 43_200_000, Random(f"city/{seed}"))
    riders = list(Day(city, midnight, seed).riders(count))
    troubles = plan(city, riders, midnight, seed)
    seeding.seed_equipment(opened.database, city, seed, midnight)
    seeding.seed_riders(opened.database, riders, opened.server_key, seed, DAY)
    application = Application(opened.tariff, opened.server_key)
    sold = seeding.sell_products(opened.database, application, riders)
    console.print(
        f"{len(city.validators):,} validators, {len(riders):,} riders, {sold:,} passes sold ({time.monotonic() - begun:.1f} s)"
    )
    fleet = Fleet(city, troubles, server.url, ADOPTED)
    gc.freeze()  # the riders and their day live as long as the play: no collection needs to look at them
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_play(fleet, server, opened, riders, troubles, midnight, console))
    opened.database.dispose()
    return Played(city, riders, troubles, fleet.report, fleet.lost_taps, fleet.kept_out, time.monotonic() - begun)


async def _play(
    fleet: Fleet, server: Server, opened: Opened, riders: list[Rider], troubles: Troubles, midnight: int, console: Console
) -> None:
    presentations = _presentations(riders, troubles)
    card = troubles.lost_card
    reported = card is None
    last = max((p.at for p in presentations), default=midnight)
    with _progress(console) as progress:
        task = progress.add_task("taps", total=len(presentations), clock="03:00")
        async with fleet:
            index = 0
            for step in range(midnight + 3 * HOUR, last + STEP_MS, STEP_MS):
                until = step + STEP_MS
                for what in await asyncio.to_thread(server.set_clock, until):
                    _break(what, fleet, step)
                if card is not None and not reported and card.reported_at < until:
                    _report_lost(opened, card.token, card.reported_at)
                    reported = True
                first = index
                while index < len(presentations) and presentations[index].at < until:
                    index += 1
                await fleet.present(presentations[first:index])
                await fleet.forward(until)
                progress.update(task, completed=index, clock=_wall_clock(until - midnight))
                if not console.is_terminal and (until - midnight) % HOUR == 0:
                    console.print(f"{_wall_clock(until - midnight)} {index:,} of {len(presentations):,} taps")
            await fleet.drain(last + STEP_MS)
            fleet.count()


def _presentations(riders: list[Rider], troubles: Troubles) -> list[Presentation]:
    """What is held to devices, in true time: the riders' days without the forgotten exits, and the finder of the lost card."""
    found = [p for rider in riders for p in rider.day if (p.rider_id, p.at) not in troubles.forgotten]
    if troubles.lost_card is not None:
        found += troubles.lost_card.stolen_rides
    return sorted(found, key=lambda p: (p.at, p.device_id, p.token))


def _report_lost(opened: Opened, token: bytes, at: int) -> None:
    with opened.database.write() as connection:
        publishing.block(connection, stored_token(opened.server_key, token), at, "lost")


def _break(what: str, fleet: Fleet, at: int) -> None:
    """A visitor's wish: the validators of one busy line lose their connection for 20 minutes."""
    if what == "outage":
        route = fleet.city.buses[(at // MINUTE_MS) % len(fleet.city.buses)]
        fleet.extra_outages += [Outage(d, at, at + 20 * MINUTE_MS, dies=False) for d in fleet.city.vehicles[route]]


def _wall_clock(since_midnight: int) -> str:
    minutes = since_midnight // MINUTE_MS
    return f"{minutes // 60 % 24:02d}:{minutes % 60:02d}"


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("[bold]{task.fields[clock]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("taps"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )


# ---- the close


def finish(data: Path, played: Played, seed: int, console: Console) -> bool:
    """Close the day, audit it, measure the harm; whether every proof holds."""
    opened = open_store(data)
    begun = time.monotonic()
    let_time_pass(opened, DAY)
    with ProcessPoolExecutor(1, get_context("spawn")) as auditor:  # apart from the close, and at the same time
        audited = auditor.submit(audit_folder, data)
        closed = clear_date(opened, DAY)
        write_documents(opened.data, closed)
        harms = _measure_harm(opened, played)
        report = audited.result()
    seconds = time.monotonic() - begun
    seeding.seed_users(opened.database, sorted({v.operator_id for v in played.city.validators.values()}), seed)
    opened.database.dispose()
    print_close(console, closed[-1], opened.tariff)
    _print_audit(console, report)
    _print_fleet(console, played)
    _print_harm(console, harms, opened.tariff.currency)
    console.print(f"[dim]played in {played.seconds:.0f} s, closed and audited in {seconds:.0f} s[/dim]")
    fleet = played.fleet
    untouched = harms.get("none", harm.Harm())
    return (
        not report.differences
        and fleet.waiting == 0
        and fleet.repeated_differently == 0
        and untouched.overcharged == untouched.undercharged == 0
    )


def audit_folder(data: Path) -> AuditReport:
    """The audit of the demo's day, for a process of its own."""
    opened = open_store(data)
    try:
        return audit_date(opened, DAY)
    finally:
        opened.database.dispose()


def _measure_harm(opened: Opened, played: Played) -> dict[str, harm.Harm]:
    return harm.measure(
        opened.database,
        played.city,
        played.riders,
        played.troubles,
        played.lost,
        played.kept_out,
        opened.server_key,
        end_of(opened.tariff, DAY),
    )


def _print_audit(console: Console, report: AuditReport) -> None:
    console.print(
        f"AUDIT: {report.taps:,} recorded taps of {report.travellers:,} travellers priced again from scratch, "
        f"{report.legs:,} legs: {len(report.differences)} differences"
    )
    for difference in report.differences[:10]:
        console.print(f"  {difference}")


def _print_fleet(console: Console, played: Played) -> None:
    fleet = played.fleet
    times = sorted(fleet.latencies) or [0]

    def at(share: float) -> str:
        return f"{times[min(len(times) - 1, int(share * len(times)))] / 1000:.1f} ms"

    console.print(
        f"TAPS: {fleet.presented:,} presented, {fleet.online:,} answered online, {fleet.alone:,} decided alone, "
        f"{fleet.acknowledged:,} records acknowledged, {fleet.waiting} waiting, {fleet.lost} lost with a dead validator; "
        f"{fleet.refused} refused {dict(fleet.refused_reasons)}; {fleet.repeated} messages repeated, "
        f"{fleet.repeated_differently} answered differently"
    )
    console.print(f"ANSWERS over HTTP: p50 {at(0.5)}, p95 {at(0.95)}, p99 {at(0.99)}")


def _print_harm(console: Console, harms: dict[str, harm.Harm], currency: str) -> None:
    table = Table(title="What trouble cost whom: riders' truth against what was charged")
    for name in ("trouble", "tokens touched", "riders paid too much", "operators lost"):
        table.add_column(name, justify="left" if name == "trouble" else "right")
    for cause, found in harms.items():
        cells = (found.overcharged, found.undercharged)
        table.add_row(cause, f"{found.tokens:,}", *(format_amount(cell, currency) for cell in cells))
    console.print(table)


def print_links(console: Console, data: Path, url: str, played: Played, seed: int) -> None:
    """Where to look, and with what to log in."""
    key = (data / "keys" / "server.key").read_bytes()
    shown = next((r for r in played.riders if r.profile == "bus and rail commuter" and r.card and len(r.day) >= 4), None)
    shown = shown or next((r for r in played.riders if r.card), None)
    lines = [f"Live city     {url}/"]
    if shown is not None:
        number, pin = seeding.card_number(shown.rider_id, seed), seeding.pin_of(shown.rider_id, seed, key)
        lines.append(f"A rider       {url}/card      card {number}  PIN {pin}")
    password = seeding.password_of("OP-HURC1", seed)
    lines.append(f"An operator   {url}/operator  user hurc1  password {password}")
    lines.append(f"Statements    {data / 'statements' / DAY}")
    console.print("\n".join(lines), soft_wrap=True, highlight=False)


app = typer.Typer()


@app.command()
def demo(
    seed: int = typer.Option(7, help="The same seed gives the same day, to the byte."),
    riders: int = typer.Option(50_000, min=50, help="How many riders."),
    port: int = typer.Option(8000, help="The port to serve on; 0 picks a free one."),
    data: Path = typer.Option(Path("motthe-data"), help="The folder of the demo's store; an earlier demo in it is replaced."),
    serve: bool = typer.Option(True, help="Keep serving afterwards, until Ctrl-C."),
) -> None:
    """A simulated city day: signed taps over HTTP, priced, cleared, audited, with pages to look at."""
    raise typer.Exit(run(data=data, riders=riders, seed=seed, port=port, serve=serve))
