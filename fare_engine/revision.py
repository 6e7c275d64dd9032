"""Which engine and tariff priced something: a short hash of the code that prices and of the tariff's rows.

A refold under another revision that changes lines which no new fact explains is drift: it is held and shown, not booked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import msgspec
from msgspec.structs import replace

from fare_engine.tariff.compile import CompiledTariff

_PRICING = (
    "pricing/*.py",
    "tariff/compile.py",
    "tariff/conditions.py",
    "tariff/prices.py",
    "facts.py",
    "money.py",
    "service_day.py",
)


@cache
def engine_revision() -> str:
    """The revision of the code that prices: 12 hexadecimal digits."""
    folder = Path(__file__).parent
    return _digest(path.read_bytes() for pattern in _PRICING for path in sorted(folder.glob(pattern)))


def revision_of(tariff: CompiledTariff) -> str:
    """The revision of engine and tariff together, as it stands on every line: `engine.tariff`."""
    network = tariff.tariff.network
    without_distances = replace(tariff.tariff, network=replace(network, distances={}))
    parts = [_encoder.encode(without_distances), " ".join(sorted(tariff.versions)).encode()]
    if network.distances:  # by pairs of stops, and an ordered map has texts for keys only
        parts.append(_encoder.encode(sorted(network.distances.items())))
    return f"{engine_revision()}.{_digest(parts)}"


_encoder = msgspec.msgpack.Encoder(enc_hook=str, order="deterministic")  # sets come in another order in every process


def _digest(parts: Iterable[bytes]) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(hashlib.sha256(part).digest())
    return total.hexdigest()[:12]
