"""A closed date as a TIDES package (Transit Integrated Data Exchange Specification 1.0), with our own tables beside it.

`fare_transactions` has a row for each leg that was priced or changed under the date, and for each sale: what the rider paid for
it in sum. What TIDES has no column for (operator, journey, lines with their bearers, settlements) stands in tables of our own,
with schemas. Rows are streamed and sorted by leg, in several processes where there are many; the bytes are the same for any
number of them. No card and no traveller is in it but as a pseudonym of this export."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from datetime import date
from decimal import Decimal
from itertools import groupby
from multiprocessing import get_context
from operator import attrgetter
from pathlib import Path
from typing import TextIO

import msgspec

from clearing import store
from clearing.documents import harmless
from clearing.exports import rows
from clearing.exports.pseudonyms import Pseudonyms
from clearing.exports.rows import LegRow, LineRow, Span
from fare_engine.commands import Opened
from fare_engine.service_day import day_starts_at, to_datetime, to_day
from fare_engine.store.database import Database
from fare_engine.tariff.model import Network

SCHEMAS = Path(__file__).parents[1] / "schemas"
TIDES = ("fare_transactions", "devices", "operators", "vehicles")
OWN = ("rides", "lines", "settlements", "positions", "parties", "stops", "routes")
STREAMED = ("fare_transactions", "rides", "lines")
MANY = 20_000
"""From so many legs on, two processes are quicker than one."""
REMEMBERED = 200_000
"""So many tokens' names are kept; each is asked for again with the token's next leg."""
MINUTE_MS = 60_000
NOWHERE = ("", "")
MEDIA = {
    "cash": "Cash or coins",
    "emv": "Bank card",
    "ic_card": "Smart card or ticket",
    "cccd": "Smart card or ticket",
    "qr": "Optical scan",
    "wallet": "Mobile NFC",
}
"""Our media as TIDES has them; the exact one stands in `rides`."""
CODE = "-code"
"""A wallet that shows a code to be read."""


class Part(msgspec.Struct):
    """What a part of the rows named, and how many they were."""

    transactions: int = 0
    lines: int = 0
    charged: int = 0
    devices: dict[str, tuple[str, str]] = {}
    """Device → the vehicle and the stop that it was at; empty: none, or several."""
    stops: set[str] = set()
    routes: set[str] = set()
    operators: set[str] = set()
    vehicles: set[str] = set()


class Task(msgspec.Struct, frozen=True):
    """A part of the rows for a process to write."""

    url: str
    accounting_date: str
    span: Span
    folder: str
    number: int
    key: bytes
    currency: str
    minor_digits: int
    zone: str


def write_package(opened: Opened, accounting_date: str, folder: Path, key: bytes, processes: int = 2) -> Part:
    """Write the package of a closed date into an empty folder."""
    with opened.database.read() as connection:
        count = rows.count_legs(connection, accounting_date)
        spans = rows.spans(connection, accounting_date, processes if count >= MANY else 1)
    tariff = opened.tariff
    tasks = [
        Task(
            opened.database.url,
            accounting_date,
            span,
            str(folder),
            number,
            key,
            tariff.currency,
            tariff.minor_digits,
            tariff.zone,
        )
        for number, span in enumerate(spans)
    ]
    if len(tasks) == 1:
        parts = [write_part(tasks[0])]
    else:
        with ProcessPoolExecutor(len(tasks), mp_context=get_context("spawn")) as pool:
            parts = list(pool.map(write_part, tasks))
    for name in STREAMED:
        _join(folder, name, len(tasks))
    found = _sum(parts)
    _write_small_tables(opened, accounting_date, folder, found)
    _describe(opened, accounting_date, folder)
    return found


def write_part(task: Task) -> Part:
    """Write a part's rows: those of legs with movements, in `<table>.<number>`; others in `<table>.<number>.rest`."""
    database = Database(task.url, bytes(32))  # nothing that is read here is encrypted
    found = Part()
    with ExitStack() as stack:
        connection = stack.enter_context(database.read())
        rows.no_time_limit(connection)
        lines_connection = stack.enter_context(database.read())
        rows.no_time_limit(lines_connection)
        writer = _Writer(task, found, {name: stack.enter_context(_part_file(task, name, "")) for name in STREAMED})
        rest: list[tuple[str, list[LineRow]]] = []
        legs = rows.stream_legs(connection, task.accounting_date, task.span)
        lines = rows.stream_lines(lines_connection, task.accounting_date, task.span)
        for leg_id, movements, booked in _merged(legs, lines):
            if movements:
                writer.leg(movements, booked)
            else:
                rest.append((leg_id, booked))
    with ExitStack() as stack:
        writer = _Writer(task, found, {name: stack.enter_context(_part_file(task, name, ".rest")) for name in STREAMED})
        connection = stack.enter_context(database.read())
        wanted = {leg_id: min(line.service_date for line in booked) for leg_id, booked in rest}
        earlier = rows.earlier_legs(connection, task.accounting_date, wanted)
        for leg_id, booked in rest:
            if leg_id in earlier:
                writer.changed(earlier[leg_id], booked)
            else:
                writer.other(leg_id, booked)
    database.dispose()
    return found


class _Writer:
    """Writes one part's rows of `fare_transactions`, `rides` and `lines`."""

    def __init__(self, task: Task, found: Part, files: Mapping[str, TextIO]) -> None:
        self.found = found
        self.date = task.accounting_date
        self.currency = task.currency
        self.minor_digits = task.minor_digits
        self.zone = task.zone
        self.midnights: dict[str, str] = {}
        self.names = Pseudonyms(task.key)
        self.minutes: dict[int, str] = {}
        self.tokens: dict[str, str] = {}
        self.transactions, self.rides, self.lines = (csv.writer(files[name], lineterminator="\n").writerow for name in STREAMED)

    def leg(self, movements: list[LegRow], booked: list[LineRow]) -> None:
        """A leg that was booked, reversed or booked anew under the date."""
        leg = movements[-1]
        stands = leg.generation % 2 == 0
        amount = sum([line.amount for line in booked])
        if not stands:
            action = "Void"
        elif movements[0].generation:
            action = "Adjust"
        else:
            action = "Enter" if amount or leg.journey == leg.leg_id else "Transfer entrance"
        self._of_leg(leg, action, amount, booked, stands=stands)

    def changed(self, leg: LegRow, booked: list[LineRow]) -> None:
        """A leg of an earlier date whose price changed."""
        amount = sum([line.amount for line in booked])
        self._of_leg(leg, "Adjust", amount, booked, stands=leg.generation % 2 == 0)

    def other(self, cause: str, booked: list[LineRow]) -> None:
        """What is no leg: a sale; else a pass's day or end, a rebate: a transaction only if it costs its rider something."""
        sold = [line for line in booked if line.kind == "sale"]
        amount = sum([line.amount for line in booked])
        transaction_id = ""
        if sold or amount:
            transaction_id = f"{self.names.of('cause', cause)}/{self.date}"
            product = sold[0].rule_id.partition("/")[2] if sold else ""
            shown = ("Purchase" if sold else "Adjust", *[""] * 12, product, "", "false", "", "")
            when = (booked[0].service_date, self._midnight(booked[0].service_date), "", self._money(amount), self.currency)
            self.transactions((transaction_id, *when, *shown))
            self.found.transactions += 1
            self.found.charged += amount
        self._lines(transaction_id, booked)

    def _of_leg(self, leg: LegRow, action: str, amount: int, booked: list[LineRow], *, stands: bool) -> None:
        found = self.found
        transaction_id = f"{leg.leg_id}/{self.date}"
        device_id = leg.leg_id.partition("/")[0]
        vehicle_id, stop_id, route_id = leg.vehicle_id or "", leg.from_stop_id or "", leg.route_id or ""
        product, capped = "Single ride", "false"
        for line in booked:
            if line.kind == "product":
                product = line.rule_id.partition("/")[2]
            elif line.kind == "cap":
                capped = "true"
        self.transactions(
            (
                transaction_id,
                leg.service_date,
                self._time(leg.began_at),
                "",
                self._money(amount),
                self.currency,
                action,
                "",
                "",
                "",
                "",
                "",
                vehicle_id,
                device_id,
                "",
                stop_id,
                leg.persons,
                _medium(leg.media),
                leg.rider_category,
                product,
                "",
                capped,
                self._token(leg.token_id),
                "",
            )
        )
        operator_id, to_stop_id = leg.operator_id or "", leg.to_stop_id or ""
        self.rides(
            (
                transaction_id,
                leg.leg_id,
                leg.journey,
                operator_id,
                leg.network_id or "",
                route_id,
                to_stop_id,
                self._time(leg.ended_at),
                leg.media,
                "" if leg.distance_m is None else leg.distance_m,
                leg.status,
                "true" if stands else "false",
            )
        )
        self._lines(transaction_id, booked)
        found.transactions += 1
        found.charged += amount
        place = (vehicle_id, "" if vehicle_id else stop_id)
        if found.devices.setdefault(device_id, place) != place:
            found.devices[device_id] = NOWHERE
        found.stops.update((stop_id, to_stop_id))
        found.routes.add(route_id)
        found.operators.add(operator_id)
        found.vehicles.add(vehicle_id)

    def _lines(self, transaction_id: str, booked: list[LineRow]) -> None:
        for line in booked:
            operator_id = line.operator_id or ""
            self.found.operators.add(operator_id)
            self.lines(
                (
                    line.transaction_id,
                    transaction_id,
                    line.service_date,
                    line.kind,
                    line.rule_id,
                    line.version_id,
                    self._money(line.amount),
                    line.bearer,
                    self._money(line.funded),
                    operator_id,
                    line.network_id or "",
                    "true" if line.generation % 2 else "false",
                )
            )
        self.found.lines += len(booked)

    def _money(self, amount: int) -> int | Decimal:
        return Decimal(amount).scaleb(-self.minor_digits) if self.minor_digits else amount

    def _time(self, at: int) -> str:
        minute, rest = divmod(at, MINUTE_MS)
        text = self.minutes.get(minute)
        if text is None:
            text = self.minutes[minute] = f"{to_datetime(minute * MINUTE_MS):%Y-%m-%dT%H:%M}"
        return f"{text}:{rest // 1000:02}Z"

    def _midnight(self, service_date: str) -> str:
        """For what has a date only."""
        if service_date not in self.midnights:
            at = day_starts_at(to_day(date.fromisoformat(service_date)), self.zone, 0)
            self.midnights[service_date] = self._time(at)
        return self.midnights[service_date]

    def _token(self, token_id: str) -> str:
        name = self.tokens.get(token_id)
        if name is None:
            if len(self.tokens) >= REMEMBERED:
                self.tokens.clear()
            name = self.tokens[token_id] = self.names.of("token", token_id)
        return name


def _merged(legs: Iterator[LegRow], lines: Iterator[LineRow]) -> Iterator[tuple[str, list[LegRow], list[LineRow]]]:
    """Each leg's movements and lines, of two streams in the same order."""
    by_leg = groupby(lines, attrgetter("leg_id"))
    ahead = next(by_leg, None)
    for leg_id, movements in groupby(legs, attrgetter("leg_id")):
        while ahead is not None and ahead[0] < leg_id:
            yield ahead[0], [], list(ahead[1])
            ahead = next(by_leg, None)
        booked: list[LineRow] = []
        if ahead is not None and ahead[0] == leg_id:
            booked = list(ahead[1])
            ahead = next(by_leg, None)
        yield leg_id, list(movements), booked
    while ahead is not None:
        yield ahead[0], [], list(ahead[1])
        ahead = next(by_leg, None)


def _medium(media: str) -> str:
    if media.endswith(CODE):
        return MEDIA["qr"]
    return MEDIA.get(media.partition(":")[0], "Other type")


def _part_file(task: Task, name: str, ending: str) -> TextIO:
    return (Path(task.folder) / f"{name}.{task.number}{ending}").open("w", encoding="utf-8", newline="")


def _sum(parts: Sequence[Part]) -> Part:
    found = Part()
    for part in parts:
        found.transactions += part.transactions
        found.lines += part.lines
        found.charged += part.charged
        for device_id, place in part.devices.items():
            if found.devices.setdefault(device_id, place) != place:
                found.devices[device_id] = NOWHERE
        found.stops |= part.stops
        found.routes |= part.routes
        found.operators |= part.operators
        found.vehicles |= part.vehicles
    return found


def _join(folder: Path, name: str, parts: int) -> None:
    """One file with its head of the parts' files: first all legs, then the rest, so that their number changes nothing."""
    pieces = [folder / f"{name}.{number}{ending}" for ending in ("", ".rest") for number in range(parts)]
    with (folder / f"{name}.csv").open("wb") as out:
        out.write((",".join(columns_of(name)) + "\n").encode())
        for piece in pieces:
            with piece.open("rb") as found:
                shutil.copyfileobj(found, out, 1 << 20)
            piece.unlink()


def _write_small_tables(opened: Opened, accounting_date: str, folder: Path, found: Part) -> None:
    network = opened.tariff.network
    with opened.database.read() as connection:
        registered = rows.all_devices(connection)
        vehicles = rows.all_vehicles(connection)
        settled = store.list_settlements(connection, accounting_date)
        positions = store.find_document(connection, accounting_date, "positions.csv") or b""
    devices = []
    for device_id in sorted({*registered, *found.devices}):
        vehicle_id, stop_id = found.devices.get(device_id, NOWHERE)
        kind = "Farebox" if vehicle_id else "Fare gate" if stop_id else "Other"
        devices.append((device_id, stop_id, vehicle_id, "", kind))
    operators = {party.party_id for party in network.parties.values() if party.kind == "operator"}
    net = [(row["party_id"], int(row["net"])) for row in csv.DictReader(positions.decode().splitlines())]
    digits = opened.tariff.minor_digits
    tables: dict[str, Iterable[Sequence[object]]] = {
        "devices": devices,
        "operators": [(name,) for name in sorted((operators | found.operators) - {""})],
        "vehicles": [(name,) for name in sorted({*vehicles, *found.vehicles} - {""})],
        "settlements": [(*row[:3], Decimal(row[3]).scaleb(-digits)) for row in settled],
        "positions": [(party, Decimal(amount).scaleb(-digits)) for party, amount in net],
        "parties": [
            (party.party_id, harmless(party.name_vi), harmless(party.name_en), party.kind)
            for _, party in sorted(network.parties.items())
        ],
        "stops": [
            (stop_id, harmless(network.stops[stop_id].name if stop_id in network.stops else stop_id))
            for stop_id in sorted(found.stops - {""})
        ],
        "routes": [_route(network, route_id, operators | found.operators) for route_id in sorted(found.routes - {""})],
    }
    for name, table in tables.items():
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as out:
            writer = csv.writer(out, lineterminator="\n")
            columns = columns_of(name)
            writer.writerow(columns)
            writer.writerows((*row, *[""] * (len(columns) - len(row))) for row in table)


def _route(network: Network, route_id: str, operators: set[str]) -> tuple[str, str, str]:
    route = network.routes.get(route_id)
    if route is None:
        return (route_id, "", "")
    return (route_id, route.agency_id if route.agency_id in operators else "", harmless(route.short_name))


def columns_of(name: str) -> list[str]:
    """A table's columns, in the order of its schema."""
    return [field["name"] for field in json.loads(_schema(name).read_bytes())["fields"]]


def _schema(name: str) -> Path:
    return SCHEMAS / ("tides" if name in TIDES else "own") / f"{name}.schema.json"


def _describe(opened: Opened, accounting_date: str, folder: Path) -> None:
    """`datapackage.json` with the schemas beside it, so that the package can be checked without a network."""
    for source in ("tides", "own"):
        to = folder / ("spec" if source == "tides" else "schemas")
        to.mkdir()
        for path in sorted((SCHEMAS / source).iterdir()):
            if path.name != "invoice.schema.json":
                shutil.copyfile(path, to / path.name)
    content = {
        "name": f"motthe-{accounting_date}",
        "title": f"{opened.tariff.tariff.name} {accounting_date}",
        "profile": "spec/tides-datapackage-profile.json",
        "resources": [
            {
                "name": name,
                "path": f"{name}.csv",
                "profile": "tabular-data-resource",
                "encoding": "utf-8",
                "schema": f"{'spec' if name in TIDES else 'schemas'}/{name}.schema.json",
            }
            for name in (*TIDES, *OWN)
        ],
    }
    (folder / "datapackage.json").write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
