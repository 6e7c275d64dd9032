"""The `motthe` command and the web application, composed from the packages' own. Nothing imports this module."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

from fare_engine import commands as fare_commands
from fare_engine.errors import InputError, MottheError
from fare_engine.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI
    from typer._click import Command, Context

    from fare_engine.service.app import Service

# A command loads what it needs and no more: whoever types one waits for it. So the packages are imported where they are used.
COMMANDS = {
    "fare_engine.commands": ("price", "advance", "quote", "tariff"),
    "fare_engine.traveller_commands": ("travellers", "claims", "drift", "correct-clock"),
    "clearing.commands": ("clear", "audit"),
    "clearing.collection.commands": ("collect", "card", "refund"),
    "clearing.statement_commands": ("trace", "statement"),
    "clearing.bank.commands": ("payments", "bank"),
    "clearing.exports.commands": ("export",),
    "clearing.disputes.commands": ("dispute",),
    "clearing.tap_commands": ("taps",),
    "fare_engine.device_commands": ("devices",),
    "validators.commands": ("terminal",),
    "simulators.demo": ("demo",),
}
SIMULATIONS = {
    "simulators.faults": ("faults",),
    "simulators.load_city": ("load-city",),
    "simulators.provider": ("provider",),
    "simulators.full_day": ("day",),
}
SERVED, WORKS = "MOTTHE_SERVED", "MOTTHE_WORKS"
"""Where `motthe serve --workers` leaves its settings for the processes that it starts."""
GRACE_S = 20
"""How long a service that is told to end finishes what it has begun."""
KEPT_OPEN_S = 120
"""How long a silent terminal keeps its connection: longer than it takes the next rider to come."""


def _loading(modules: Mapping[str, tuple[str, ...]]) -> type[TyperGroup]:
    """A group of commands whose modules are loaded once they are asked for."""
    module_of = {name: module for module, names in modules.items() for name in names}

    class Loading(TyperGroup):
        def list_commands(self, ctx: Context) -> list[str]:
            return [*super().list_commands(ctx), *module_of]

        def get_command(self, ctx: Context, cmd_name: str) -> Command | None:
            if cmd_name not in module_of:
                return super().get_command(ctx, cmd_name)
            return get_group(import_module(module_of[cmd_name]).app).commands[cmd_name]

    return Loading


app = typer.Typer(
    name="motthe", cls=_loading(COMMANDS), no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
app.add_typer(typer.Typer(cls=_loading(SIMULATIONS), help="Simulations beside the demo.", no_args_is_help=True), name="simulate")


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on.")] = 8000,
    data: fare_commands.Store = None,
    adopt: Annotated[list[str] | None, typer.Option(help="A proposed tariff version to treat as in force.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="How many processes serve; more than one wants PostgreSQL.")] = 1,
    jobs: Annotated[bool, typer.Option(help="Do the jobs, too; --no-jobs leaves them to `motthe worker`.")] = True,
    demo: Annotated[bool, typer.Option(hidden=True, help="With the simulation's clock and buttons.")] = False,
) -> None:
    """Serve taps and pages."""
    import uvicorn

    settings = fare_commands.stored_settings(data)
    if adopt:
        settings = settings.model_copy(update={"adopt": tuple(adopt)})
    options: dict[str, Any] = {
        "host": host,
        "port": port,
        "log_level": "warning",
        "access_log": False,
        "timeout_keep_alive": KEPT_OPEN_S,
        "timeout_graceful_shutdown": GRACE_S,
    }
    if workers == 1:
        uvicorn.run(web_application(settings, demo=demo, works=jobs), **options)
        return
    os.environ[SERVED] = settings.model_dump_json()
    os.environ[WORKS] = str(int(jobs))
    uvicorn.run("motthe:served_application", factory=True, workers=workers, **options)


def served_application() -> FastAPI:
    """The web application of one of several processes, as `motthe serve` was told."""
    return web_application(Settings.model_validate_json(os.environ[SERVED]), demo=False, works=os.environ[WORKS] == "1")


@app.command()
def worker(data: fare_commands.Store = None) -> None:
    """Do the jobs of a service that runs in other processes, until this one is told to end."""
    from fare_engine.jobs import Jobs
    from fare_engine.service.app import WORKER_SECONDS, open_service

    service = open_service(fare_commands.stored_settings(data))
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    jobs = Jobs(service.database, service.application)
    collecting = threading.Thread(target=_collect, args=(service, ended))  # a provider that is slow holds up nothing else
    collecting.start()
    while not ended.is_set():
        try:
            done = jobs.run_turn(service.clock())
        except Exception as error:  # one traveller's or the database's: the next turn tries again
            typer.echo(f"the turn failed and is tried again: {error!r}", err=True)
            done = 0
        if not done:
            ended.wait(WORKER_SECONDS)
    collecting.join()
    service.database.dispose()


def _collect(service: Service, ended: threading.Event) -> None:
    """Collection's jobs, until told to end; none in a city that collects nothing."""
    from clearing.collection.opening import open_collector
    from fare_engine.service.app import WORKER_SECONDS

    settings = service.settings
    url, clock = settings.provider_url, service.clock
    collector = open_collector(service.database, service.tariff, settings.tariff, settings.data, url, clock)
    while collector is not None and not ended.is_set():
        try:
            collector.run_turn(clock())
        except Exception as error:  # one account's or the database's: the next turn tries again
            typer.echo(f"the turn of collection failed and is tried again: {error!r}", err=True)
        ended.wait(WORKER_SECONDS)


def web_application(settings: Settings, *, demo: bool, works: bool = True) -> FastAPI:
    """The service with every package's pages; the demo's clock and buttons only where asked for."""
    from fastapi import APIRouter
    from fastapi.staticfiles import StaticFiles

    from clearing.collection import pages as collection_pages
    from clearing.pages import disputes, operator, reconciliation, settlement
    from fare_engine.pages import live, qr, rider
    from fare_engine.pages.base import STATIC
    from fare_engine.service import devices
    from fare_engine.service.app import create_app, open_service, system_clock
    from simulators.control import VirtualClock, control_key, control_routes, end_with_parent

    routers: tuple[APIRouter, ...] = (
        live.router,
        rider.router,
        qr.router,
        devices.router,
        operator.router,
        settlement.router,
        reconciliation.router,
        disputes.router,
        collection_pages.router,
    )
    if demo:
        end_with_parent()
        clock = VirtualClock(system_clock())
        service = open_service(settings.model_copy(update={"demo": True}), clock)
        routers = (*routers, control_routes(clock, control_key(settings.data)))
    else:
        service = open_service(settings)
    service.works = works
    application = create_app(service, routers)
    application.state.live = live.LiveFigures(service)
    application.state.pays = collection_pages.collector_of(application) is not None
    service.receipt.listener = application.state.live.listen
    application.mount("/static", StaticFiles(directory=STATIC), name="static")
    return application


def main() -> None:
    """Run the command; what is wrong with somebody's input is printed, one fault a line, and ends with exit code 1."""
    try:
        app()
    except InputError as error:
        fare_commands.report(error)
        sys.exit(1)
    except MottheError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
