"""A closed date as a TIDES package (Transit Integrated Data Exchange Specification 1.0), with our own tables beside it.

`fare_transactions` has a row for each leg that was priced or changed under the date, and for each sale: what the rider paid for
it in sum. What TIDES has no column for (operator, journey, lines with their bearers, settlements) stands in tables of our own,
with schemas. Rows are sorted by leg and worked on column by column, in several processes where there are many; the bytes are
the same for any number of them. No card and no traveller is in it but as a pseudonym of this export."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from datetime import date
from decimal import Decimal
from multiprocessing import get_context
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow_csv

from clearing import store
from clearing.columns import OfConnection, Reader, alone
from clearing.documents import harmless
from clearing.exports import rows
from clearing.exports.pseudonyms import Pseudonyms
from clearing.exports.rows import Range
from fare_engine.commands import Opened
from fare_engine.service_day import day_starts_at, to_day
from fare_engine.store import schema
from fare_engine.store.database import Database
from fare_engine.tariff.model import Network

SCHEMAS = Path(__file__).parents[1] / "schemas"
TIDES = ("fare_transactions", "devices", "operators", "vehicles")
OWN = ("rides", "lines", "settlements", "positions", "parties", "stops", "routes")
STREAMED = ("fare_transactions", "rides", "lines")
MANY, PART = 20_000, 300_000
"""From so many legs on, two processes are quicker than one; so many at most are worked on at once by each."""
PROCESSES = 2
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
NOWHERE = ("", "")


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
    """What a process needs to know to read a part of the date's rows, or to write a part of the package."""

    url: str
    accounting_date: str
    folder: str
    number: int
    legs: Range
    lines: Range
    cuts: tuple[str, ...]
    """Each part of the package has the legs from one of these ids up to before the next."""
    key: bytes
    currency: str
    minor_digits: int
    zone: str


def write_package(opened: Opened, accounting_date: str, folder: Path, key: bytes) -> Part:
    """Write the package of a closed date into an empty folder: read its rows in parts and sort them into parts by leg, then
    write those, each by itself."""
    tasks = tasks_of(opened, accounting_date, folder, key)
    if len(tasks) == 1:
        with opened.database.read(long=True) as connection:
            _read_part(tasks[0], OfConnection(connection))
        parts = [write_part(tasks[0])]
    else:
        with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
            list(pool.map(read_part, tasks))
            parts = list(pool.map(write_part, tasks))
    for name in STREAMED:
        _join(folder, name, len(tasks))
    found = _sum(parts)
    _write_small_tables(opened, accounting_date, folder, found)
    _describe(opened, accounting_date, folder)
    return found


def tasks_of(opened: Opened, accounting_date: str, folder: Path, key: bytes) -> list[Task]:
    """A date's rows in parts."""
    with opened.database.read() as connection:
        count = rows.count_legs(connection, accounting_date)
        cuts = rows.cuts(connection, accounting_date, max(PROCESSES, -(-count // PART))) if count >= MANY else []
        legs = rows.ranges(connection, schema.legs, accounting_date, len(cuts) + 1)
        lines = rows.ranges(connection, schema.lines, accounting_date, len(cuts) + 1)
    return [
        Task(
            url=opened.database.url,
            accounting_date=accounting_date,
            folder=str(folder),
            number=number,
            legs=legs[number],
            lines=lines[number],
            cuts=tuple(cuts),
            key=key,
            currency=opened.tariff.currency,
            minor_digits=opened.tariff.minor_digits,
            zone=opened.tariff.zone,
        )
        for number in range(len(cuts) + 1)
    ]


def read_part(task: Task) -> None:
    """Read a part of the date's rows and leave them in files, by the part of the package that they belong to."""
    pa.set_cpu_count(1)  # the parts are each other's company
    with alone(task.url) as reader:
        _read_part(task, reader)


def _read_part(task: Task, reader: Reader) -> None:
    _sort_out(task, "legs", rows.LEG_SCHEMA, rows.read_legs(reader, task.accounting_date, task.legs))
    _sort_out(task, "lines", rows.LINE_SCHEMA, rows.read_lines(reader, task.accounting_date, task.lines))


def _sort_out(task: Task, name: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    edges = ["", *task.cuts]
    with ExitStack() as stack:
        files = [
            stack.enter_context(pa.ipc.new_file(str(_read(task, name, task.number, part)), schema)) for part in range(len(edges))
        ]
        for batch in batches:
            ids = batch.column("leg_id")
            for part, file in enumerate(files):
                within = pc.greater_equal(ids, edges[part])
                if part + 1 < len(edges):
                    within = pc.and_(within, pc.less(ids, edges[part + 1]))
                file.write_batch(batch.filter(within))


def _taken(task: Task, name: str) -> pa.Table:
    """What all processes have read for a part of the package."""
    found = []
    for reader in range(len(task.cuts) + 1):
        path = _read(task, name, reader, task.number)
        with pa.memory_map(str(path)) as source:
            found.append(pa.ipc.open_file(source).read_all())
        path.unlink()
    return pa.concat_tables(found)


def _read(task: Task, name: str, reader: int, part: int) -> Path:
    return Path(task.folder) / f".{name}.{reader}.{part}"


class Rows(msgspec.Struct, frozen=True):
    """A part's legs, the lines of them and of what is no leg, and what each cost its rider, all by leg."""

    legs: pa.Table
    lines: pa.Table
    transactions: pa.Table


def write_part(task: Task) -> Part:
    """Write a part's rows of each streamed table, in `<table>.<number>`; what they named is given."""
    pa.set_cpu_count(1)
    found = rows_of(task)
    _write(task, "fare_transactions", found.transactions.filter(_is_transaction(found.transactions)))
    _write(task, "rides", _rides(task, found.legs))
    _write(task, "lines", _booked(found))
    return _named(found)


def rows_of(task: Task) -> Rows:
    """What was read for a part."""
    lines = _taken(task, "lines").sort_by([("leg_id", "ascending"), ("transaction_id", "ascending")])
    costs = _costs(lines)
    moved = _latest(_taken(task, "legs"))
    unmoved = costs.filter(pc.invert(pc.is_in(costs["leg_id"], value_set=moved["leg_id"])))
    wanted = dict(zip(unmoved["leg_id"].to_pylist(), unmoved["service_date"].to_pylist(), strict=True))
    database = Database(task.url, bytes(32))
    with database.read() as connection:
        earlier = _latest(rows.read_earlier_legs(connection, task.accounting_date, wanted))
    database.dispose()
    changed = earlier.drop_columns("begun").append_column("begun", pa.repeat(1, len(earlier)))
    legs = pa.concat_tables([moved, changed]).sort_by("leg_id")
    others = unmoved.filter(pc.invert(pc.is_in(unmoved["leg_id"], value_set=earlier["leg_id"])))
    return Rows(legs, lines, _transactions(task, legs, others, costs))


# ---- columns


def _costs(lines: pa.Table) -> pa.Table:
    """What each leg or sale costs its rider by its lines, in the order of their ids."""
    kind = lines["kind"]
    product = pc.replace_substring_regex(lines["rule_id"], "^[^/]*/", "")
    table = pa.table(
        {
            "leg_id": lines["leg_id"],
            "amount": lines["amount"],
            "capped": pc.equal(kind, "cap"),
            "sold": pc.equal(kind, "sale"),
            "product": pc.if_else(pc.is_in(kind, value_set=pa.array(["product", "sale"])), product, None),
            "service_date": lines["service_date"],
        }
    )
    sums = [("amount", "sum"), ("capped", "any"), ("sold", "any"), ("product", "max"), ("service_date", "min")]
    return table.group_by("leg_id", use_threads=False).aggregate(sums).rename_columns(table.column_names)


def _latest(legs: pa.Table) -> pa.Table:
    """Each leg's last movement, with the generation that it began with (`begun`), in the order of their ids."""
    in_order = legs.sort_by([("leg_id", "ascending"), ("generation", "ascending")])
    ids = in_order["leg_id"].combine_chunks()
    differs = pc.not_equal(ids[1:], ids[:-1])
    edge = pa.array([True]) if len(ids) else pa.array([], pa.bool_())
    first, last = pa.concat_arrays([edge, differs]), pa.concat_arrays([differs, edge])
    return in_order.filter(last).append_column("begun", in_order["generation"].filter(first))


def _transactions(task: Task, legs: pa.Table, others: pa.Table, costs: pa.Table) -> pa.Table:
    """`fare_transactions`, by the id of the leg or sale, which stands in `cause`."""
    own = costs.take(pc.index_in(legs["leg_id"], value_set=costs["leg_id"]))
    amount = pc.fill_null(own["amount"], 0)
    free = pc.and_(pc.equal(amount, 0), pc.not_equal(legs["journey"], legs["leg_id"]))
    entered = pc.if_else(free, "Transfer entrance", "Enter")
    of_legs = pa.table(
        {
            "cause": legs["leg_id"],
            "is_leg": pa.repeat(True, len(legs)),
            "transaction_id": _dated(task, legs["leg_id"]),
            "service_date": legs["service_date"],
            "event_timestamp": _instants(legs["began_at"]),
            "amount": amount,
            "fare_action": pc.if_else(_stands(legs), pc.if_else(pc.equal(legs["begun"], 0), entered, "Adjust"), "Void"),
            "vehicle_id": legs["vehicle_id"],
            "device_id": _device_ids(legs),
            "stop_id": legs["from_stop_id"],
            "num_riders": legs["persons"],
            "fare_media_id": _each(legs["media"], _medium),
            "rider_category": legs["rider_category"],
            "fare_product": pc.fill_null(own["product"], "Single ride"),
            "fare_capped": pc.fill_null(own["capped"], False),
            "token_id": _each(legs["token_id"], lambda token: Pseudonyms(task.key).of("token", token)),
        }
    )
    of_others = pa.table(
        {
            "cause": others["leg_id"],
            "is_leg": pa.repeat(False, len(others)),
            "transaction_id": _dated(task, _each(others["leg_id"], lambda cause: Pseudonyms(task.key).of("cause", cause))),
            "service_date": others["service_date"],
            "event_timestamp": _each(others["service_date"], lambda day: _midnight(day, task.zone)),
            "amount": others["amount"],
            "fare_action": pc.if_else(others["sold"], "Purchase", "Adjust"),
            "fare_product": others["product"],
            "fare_capped": others["capped"],
        }
    )
    found = pa.concat_tables([of_legs, of_others], promote_options="default").sort_by("cause")
    return found.append_column("currency_type", pa.repeat(task.currency, len(found)))


def _rides(task: Task, legs: pa.Table) -> pa.Table:
    """`rides`, by leg."""
    same = ("leg_id", "journey", "operator_id", "network_id", "route_id", "to_stop_id", "media", "distance_m", "status")
    found = legs.select(same).append_column("transaction_id", _dated(task, legs["leg_id"]))
    return found.append_column("ended_at", _instants(legs["ended_at"])).append_column("stands", _stands(legs))


def _booked(found: Rows) -> pa.Table:
    """`lines`, by leg, numbered in what they are a part of: the books' own ids would tell travellers to who tries them all."""
    lines, transactions = found.lines, found.transactions
    at = pc.index_in(lines["leg_id"], value_set=transactions["cause"])
    part_of = transactions["transaction_id"].take(at)
    shown = pc.if_else(_is_transaction(transactions).take(at), part_of, None)
    same = ("service_date", "kind", "rule_id", "version_id", "amount", "bearer", "funded", "operator_id", "network_id")
    line_ids = pc.binary_join_element_wise(part_of, pc.cast(_numbers(lines["leg_id"]), pa.string()), "/")
    table = lines.select(same).append_column("line_id", line_ids).append_column("transaction_id", shown)
    return table.append_column("reversed", pc.invert(_stands(lines)))


def _numbers(sorted_ids: pa.ChunkedArray) -> pa.Array:
    """1, 2, … among the same ids."""
    runs = pc.run_end_encode(sorted_ids.combine_chunks(), run_end_type=pa.int64())
    ends = runs.run_ends
    begins = pa.concat_arrays([pa.array([0] if len(ends) else [], pa.int64()), ends[:-1]])
    before = pc.run_end_decode(pa.RunEndEncodedArray.from_arrays(ends, begins))
    return pc.subtract(pa.array(range(1, len(sorted_ids) + 1), pa.int64()), before)


def _is_transaction(table: pa.Table) -> pa.ChunkedArray:
    """Whatever is no leg is a transaction only if it is a sale or costs its rider something."""
    return pc.or_(pc.not_equal(table["fare_action"], "Adjust"), pc.or_(table["is_leg"], pc.not_equal(table["amount"], 0)))


def _stands(movements: pa.Table) -> pa.ChunkedArray:
    return pc.equal(pc.bit_wise_and(movements["generation"], 1), 0)


def _dated(task: Task, ids: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(ids, task.accounting_date, "/")


def _device_ids(legs: pa.Table) -> pa.ChunkedArray:
    return pc.replace_substring_regex(legs["leg_id"], "/.*$", "")


def _instants(at: pa.ChunkedArray) -> pa.ChunkedArray:
    """RFC 3339, to the second."""
    seconds = pc.cast(pc.cast(pc.divide(at, 1000), pa.timestamp("s")), pa.string())
    return pc.binary_join_element_wise(pc.replace_substring(seconds, " ", "T"), "Z", "")


def _midnight(day: str, zone: str) -> str:
    """When a day begins, for what has a date only."""
    return _instants(pa.array([day_starts_at(to_day(date.fromisoformat(day)), zone, 0)]))[0].as_py()  # type: ignore[no-any-return]


def _medium(media: str) -> str:
    return MEDIA["qr"] if media.endswith(CODE) else MEDIA.get(media.partition(":")[0], "Other type")


def _each(texts: pa.ChunkedArray, change: Callable[[str], str]) -> pa.ChunkedArray:
    """Every text changed; each different one is asked for once."""
    known = pc.unique(texts)
    return pa.array(map(change, known.to_pylist()), pa.string()).take(pc.index_in(texts, value_set=known))


# ---- files


def _write(task: Task, name: str, table: pa.Table) -> None:
    """A part's rows, in the order of the table's columns; what is not known is empty."""
    nothing = pa.nulls(len(table), pa.string())
    columns = [table[column] if column in table.column_names else nothing for column in columns_of(name)]
    names = columns_of(name)
    for money in {"amount", "funded"} & set(names):
        columns[names.index(money)] = _money(columns[names.index(money)], task.minor_digits)
    options = arrow_csv.WriteOptions(include_header=False)
    arrow_csv.write_csv(pa.table(columns, names), str(_piece(Path(task.folder), name, task.number)), options)


def _money(amounts: pa.ChunkedArray, minor_digits: int) -> pa.ChunkedArray:
    if not minor_digits:
        return amounts
    return pa.array([f"{Decimal(amount).scaleb(-minor_digits)}" for amount in amounts.to_pylist()], pa.string())


def _piece(folder: Path, name: str, number: int) -> Path:
    return folder / f"{name}.{number}"


def _named(part: Rows) -> Part:
    """What a part's rows name."""
    legs, lines = part.legs, part.lines
    transactions = part.transactions.filter(_is_transaction(part.transactions))
    found = Part(len(transactions), len(lines), pc.sum(transactions["amount"]).as_py() or 0)
    places = {"device_id": _device_ids(legs), "vehicle_id": legs["vehicle_id"], "stop_id": legs["from_stop_id"]}
    for row in pa.table(places).group_by(list(places)).aggregate([]).to_pylist():
        place = (row["vehicle_id"] or "", "" if row["vehicle_id"] else row["stop_id"] or "")
        _place(found, row["device_id"], place)
    found.stops = _different(legs["from_stop_id"]) | _different(legs["to_stop_id"])
    found.routes = _different(legs["route_id"])
    found.operators = _different(legs["operator_id"]) | _different(lines["operator_id"])
    found.vehicles = _different(legs["vehicle_id"])
    return found


def _different(texts: pa.ChunkedArray) -> set[str]:
    return set(pc.unique(texts).to_pylist()) - {None}


def _place(found: Part, device_id: str, place: tuple[str, str]) -> None:
    if found.devices.setdefault(device_id, place) != place:
        found.devices[device_id] = NOWHERE


def _sum(parts: Sequence[Part]) -> Part:
    found = Part()
    for part in parts:
        found.transactions += part.transactions
        found.lines += part.lines
        found.charged += part.charged
        for device_id, place in part.devices.items():
            _place(found, device_id, place)
        found.stops |= part.stops
        found.routes |= part.routes
        found.operators |= part.operators
        found.vehicles |= part.vehicles
    return found


def _join(folder: Path, name: str, parts: int) -> None:
    """One file with its head of the parts' files, whose rows follow each other."""
    with (folder / f"{name}.csv").open("wb") as out:
        out.write((",".join(columns_of(name)) + "\n").encode())
        for number in range(parts):
            piece = _piece(folder, name, number)
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
    operators = {party.party_id for party in network.parties.values() if party.kind == "operator"} | found.operators
    net = [(row["party_id"], int(row["net"])) for row in csv.DictReader(positions.decode().splitlines())]
    digits = opened.tariff.minor_digits
    tables: dict[str, Iterable[Sequence[object]]] = {
        "devices": devices,
        "operators": [(name,) for name in sorted(operators)],
        "vehicles": [(name,) for name in sorted({*vehicles, *found.vehicles})],
        "settlements": [(*row[:3], Decimal(row[3]).scaleb(-digits)) for row in settled],
        "positions": [(party, Decimal(amount).scaleb(-digits)) for party, amount in net],
        "parties": [
            (party.party_id, harmless(party.name_vi), harmless(party.name_en), party.kind)
            for _, party in sorted(network.parties.items())
        ],
        "stops": [
            (stop_id, harmless(network.stops[stop_id].name if stop_id in network.stops else stop_id))
            for stop_id in sorted(found.stops)
        ],
        "routes": [_route(network, route_id, operators) for route_id in sorted(found.routes)],
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
    schema = SCHEMAS / ("tides" if name in TIDES else "own") / f"{name}.schema.json"
    return [field["name"] for field in json.loads(schema.read_bytes())["fields"]]


def _describe(opened: Opened, accounting_date: str, folder: Path) -> None:
    """`datapackage.json` with the schemas beside it, so that the package can be checked without a network."""
    shutil.copytree(SCHEMAS / "tides", folder / "spec")
    (folder / "schemas").mkdir()
    for name in OWN:
        shutil.copyfile(SCHEMAS / "own" / f"{name}.schema.json", folder / "schemas" / f"{name}.schema.json")
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
