"""The `motthe` command and the web application, composed from the packages' own. Nothing imports this module."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
import uvicorn
from fastapi import APIRouter, FastAPI
from fastapi.staticfiles import StaticFiles

from clearing import commands as clearing_commands
from clearing import pages as clearing_pages
from fare_engine import commands as fare_commands
from fare_engine.errors import InputError, MottheError
from fare_engine.pages import live, rider
from fare_engine.pages.base import STATIC
from fare_engine.service.app import create_app, open_service, system_clock
from fare_engine.settings import Settings
from simulators import demo as demo_commands
from simulators import load_city
from simulators.control import VirtualClock, control_key, control_routes, end_with_parent
from validators import commands as terminal_commands

KEPT_OPEN_S = 120
"""How long a silent terminal keeps its connection: longer than it takes the next rider to come."""

app = typer.Typer(name="motthe", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on.")] = 8000,
    data: fare_commands.Store = None,
    adopt: Annotated[list[str] | None, typer.Option(help="A proposed tariff version to treat as in force.")] = None,
    demo: Annotated[bool, typer.Option(hidden=True, help="With the simulation's clock and buttons.")] = False,
) -> None:
    """Serve taps and pages."""
    settings = fare_commands.stored_settings(data)
    if adopt:
        settings = settings.model_copy(update={"adopt": tuple(adopt)})
    uvicorn.run(
        web_application(settings, demo=demo),
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=KEPT_OPEN_S,
    )


def web_application(settings: Settings, *, demo: bool) -> FastAPI:
    """The service with every package's pages; the demo's clock and buttons only where asked for."""
    routers: tuple[APIRouter, ...] = (live.router, rider.router, clearing_pages.router)
    if demo:
        end_with_parent()
        clock = VirtualClock(system_clock())
        service = open_service(settings.model_copy(update={"demo": True}), clock)
        routers = (*routers, control_routes(clock, control_key(settings.data)))
    else:
        service = open_service(settings)
    application = create_app(service, routers)
    application.state.live = live.LiveFigures(service)
    service.receipt.listener = application.state.live.listen
    application.mount("/static", StaticFiles(directory=STATIC), name="static")
    return application


for part in (fare_commands.app, clearing_commands.app, terminal_commands.app, demo_commands.app):
    app.registered_commands += part.registered_commands
    app.registered_groups += part.registered_groups

app.add_typer(load_city.app, name="simulate")


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
