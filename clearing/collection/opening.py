"""Opens collection for a store: the city's rules, and the provider that the service was told of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from clearing.collection.collector import Collector
from clearing.collection.provider import HttpProvider
from clearing.collection.rules import find_rules
from fare_engine.settings import secret_file
from fare_engine.store.database import Database
from fare_engine.tariff.compile import CompiledTariff


def open_collector(
    database: Database, tariff: CompiledTariff, folder: Path, data: Path, provider_url: str | None, clock: Callable[[], int]
) -> Collector | None:
    """What collects in a city; None where it has no rules for it. Without a provider's address nobody is charged."""
    rules = find_rules(folder, tariff.network.parties.keys(), tariff.currency)
    if rules is None:
        return None
    provider = HttpProvider(provider_url, provider_secret(data), tariff.currency, clock) if provider_url else None
    return Collector(database, tariff, rules, provider)


def provider_secret(data: Path) -> bytes:
    """The secret that the service and the provider share; made on first use."""
    return secret_file(data / "keys" / "provider.key")
