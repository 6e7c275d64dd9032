"""Equips a store for a load test: so many devices and riders, and the file from which the load makes their keys and tokens."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fare_engine.booking import Record
from fare_engine.commands import stored_settings
from fare_engine.pricing.state import NEVER
from fare_engine.service.app import Service, open_service
from fare_engine.store import registry, travellers
from fare_engine.store.registry import Device
from fare_engine.store.travellers import Account, NewToken, Traveller
from fare_engine.tap_format import terminal_token
from fare_engine.tokens import stored_token

CHUNK = 5_000

app = typer.Typer()


@app.command("load-city")
def load_city(
    data: Annotated[Path, typer.Option(help="The folder of the store; it must be empty or new.")] = Path("motthe-load"),
    devices: Annotated[int, typer.Option(min=1, help="How many terminals.")] = 3000,
    riders: Annotated[int, typer.Option(min=1, help="How many riders with a card.")] = 20_000,
    seed: Annotated[int, typer.Option(help="Keys and tokens come from it.")] = 7,
) -> None:
    """Enrol terminals and cards for load/locustfile.py, and write load-city.json beside the store."""
    service = open_service(stored_settings(data))
    network = service.tariff.network
    routes = [route for route, name in network.network_of_route.items() if name.startswith("bus-s")]
    domain_key = hashlib.sha256(f"load {seed}".encode()).digest()
    with service.database.write() as connection:
        registry.enrol_devices(connection, [_device(number, seed, routes, service) for number in range(devices)], service.clock())
    for start in range(0, riders, CHUNK):
        numbers = range(start, min(riders, start + CHUNK))
        with service.database.write() as connection:
            travellers.add_accounts(connection, [Account(f"A{n}", "postpaid", 0) for n in numbers])
            tokens = {n: terminal_token(domain_key, f"{n}".encode()) for n in numbers}
            travellers.add_tokens(
                connection,
                [NewToken(stored_token(service.server_key, token), f"R{n}", f"A{n}", token) for n, token in tokens.items()],
            )
            travellers.add_travellers(connection, [Traveller(f"R{n}", f"A{n}", Record(), NEVER) for n in numbers])
    service.database.dispose()
    described = {"seed": seed, "devices": devices, "riders": riders, "routes": routes, "domain_key": domain_key.hex()}
    path = data / "load-city.json"
    path.write_text(json.dumps(described) + "\n", encoding="utf-8")
    typer.echo(f"{devices} terminals and {riders} riders in {data}; the load reads {path}")


def _device(number: int, seed: int, routes: list[str], service: Service) -> Device:
    key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"{seed}/L{number}".encode()).digest())
    operator_id = service.tariff.network.routes[routes[number % len(routes)]].agency_id
    return Device(f"L{number}", operator_id, key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw), None)
