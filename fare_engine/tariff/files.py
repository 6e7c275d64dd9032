"""Reading a city's folder into the model. Every fault of every file is collected and reported together, each with its
file, row and value; a tariff with a fault is not loaded at all."""

from __future__ import annotations

import csv
import math
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import date
from decimal import Decimal, InvalidOperation
from pathlib import Path

import msgspec

from fare_engine.errors import Fault, TariffError
from fare_engine.service_day import is_zone, to_day
from fare_engine.tariff.model import (
    Calendar,
    FareLegRule,
    FareProductRow,
    FareTransferRule,
    Head,
    Network,
    Party,
    Route,
    Service,
    Stop,
    Tariff,
    TariffFile,
    Timeframe,
    Version,
)

NOT_YET = ("fare_attributes.txt", "fare_rules.txt", "fare_leg_join_rules.txt")
"""Fare tables that this release does not price by; a tariff with one is refused rather than priced without it."""
_PARTY_COLUMNS = ("party_id", "name_vi", "name_en", "kind")
LARGEST = 10**15
"""No amount, distance or time of a tariff is as large: sums of such numbers fit into a database's 64 bits."""
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


class Table:
    """A CSV file's rows with their places, for messages; an absent optional file is an empty table."""

    def __init__(
        self, path: Path, base: Path, faults: list[Fault], *, required: Sequence[str] = (), optional: bool = False
    ) -> None:
        self.file = str(path.relative_to(base))
        self.faults = faults
        self.columns: tuple[str, ...] = ()
        self.rows: list[dict[str, str]] = []
        if path.exists():
            self._read(path)
        elif not optional:
            faults.append(Fault(self.file, None, "the file is missing"))
        missing = [column for column in required if column not in self.columns]
        for column in missing if path.exists() else ():
            faults.append(Fault(f"{self.file} row 1", list(self.columns), f"the column {column} is missing"))
        if missing:
            self.rows = []

    def _read(self, path: Path) -> None:
        try:
            with path.open(encoding="utf-8-sig", newline="") as stream:
                reader = csv.DictReader(stream, strict=True)
                self.columns = tuple(reader.fieldnames or ())
                for column in sorted({name for name in self.columns if self.columns.count(name) > 1}):
                    self.fault(1, column, "the column stands twice")
                for row in reader:
                    if None in row or None in row.values():
                        self.fault(len(self.rows) + 2, list(row.values()), "the row does not have as many cells as columns")
                        continue
                    self.rows.append({key: value.strip() for key, value in row.items()})
        except (csv.Error, UnicodeDecodeError, OSError) as error:
            self.faults.append(Fault(self.file, _reason(error), "not a CSV file in UTF-8"))

    def __iter__(self) -> Iterator[tuple[int, dict[str, str]]]:
        return ((number, row) for number, row in enumerate(self.rows, start=2))

    def place(self, row: int) -> str:
        """Where a row stands, as messages say it."""
        return f"{self.file} row {row}"

    def fault(self, row: int, value: object, problem: str) -> None:
        """Note that a row is wrong."""
        self.faults.append(Fault(self.place(row), value, problem))

    def whole(self, row: int, text: str, column: str, default: int = 0) -> int:
        """A whole number of a cell; anything else is a fault."""
        if text == "":
            return default
        try:
            found = int(text)
        except ValueError:
            self.fault(row, text, f"{column} is not a whole number")
            return default
        if abs(found) > LARGEST:
            self.fault(row, text, f"{column} is larger than {LARGEST}")
            return default
        return found

    def decimal(self, row: int, text: str, column: str) -> Decimal | None:
        """A number of a cell; anything else is a fault, and so is what is no number to reckon with (NaN, 1e999)."""
        try:
            found = Decimal(text)
        except InvalidOperation:
            self.fault(row, text, f"{column} is not a number")
            return None
        problem = _impossible(found)
        if problem:
            self.fault(row, text, f"{column} {problem}")
            return None
        return found

    def unique(self, column: str) -> dict[str, int]:
        """The values of a key column with their rows; a value that stands twice is a fault."""
        seen: dict[str, int] = {}
        for number, row in self:
            value = row[column]
            if not value:
                self.fault(number, value, f"{column} is empty")
            elif value in seen:
                self.fault(number, value, f"{column} stands already in row {seen[value]}")
            else:
                seen[value] = number
        return seen


def load(folder: Path) -> Tariff:
    """The tariff of a city's folder, or of one version's folder, which then prices everything. TariffError otherwise."""
    folder = folder.resolve()
    if not folder.is_dir():
        raise TariffError([Fault(str(folder), None, "no such folder")])
    single = (folder / "tariff.toml").exists()
    base = folder.parent if single else folder
    faults: list[Fault] = []
    if not (base / "network").is_dir():
        raise TariffError([Fault(f"{base.name}/network", None, "the network's folder is missing")])
    network = _network(base, faults)
    folders = [folder] if single else sorted(path.parent for path in base.glob("*/tariff.toml"))
    if not folders:
        faults.append(Fault(base.name, None, "no version folder with a tariff.toml"))
    versions = [version for path in folders if (version := _version(path, base, faults)) is not None]
    if faults:
        raise TariffError(faults)
    versions.sort(key=lambda version: (version.file.tariff.valid_from, version.version_id))
    return Tariff(name=base.name, network=network, versions=tuple(versions), forced=single)


def _network(base: Path, faults: list[Fault]) -> Network:
    folder = base / "network"

    def table(name: str, *required: str) -> Table:
        return Table(folder / name, base, faults, required=required)

    def perhaps(name: str, *required: str) -> Table:
        return Table(folder / name, base, faults, required=required, optional=True)

    agencies = table("agency.txt", "agency_id", "agency_name", "agency_timezone")
    agencies.unique("agency_id")
    stops = perhaps("stops.txt", "stop_id", "stop_name")
    stops.unique("stop_id")
    positions = [column for column in ("stop_lat", "stop_lon") if column not in stops.columns]
    if len(positions) == 1:
        faults.append(Fault(f"{stops.file} row 1", list(stops.columns), f"the column {positions[0]} is missing"))
    routes = perhaps("routes.txt", "route_id", "route_type")
    routes.unique("route_id")
    networks = table("networks.txt", "network_id", "network_name")
    networks.unique("network_id")
    route_networks = perhaps("route_networks.txt", "network_id", "route_id")
    route_networks.unique("route_id")
    areas = perhaps("areas.txt", "area_id")
    stop_areas = perhaps("stop_areas.txt", "area_id", "stop_id")
    parties = _parties(base, agencies, faults)
    zones = sorted({row["agency_timezone"] for _, row in agencies})
    if len(zones) != 1 and agencies.rows:
        faults.append(Fault(agencies.file, zones, "all agencies must share one agency_timezone"))
    for zone in zones:
        if not is_zone(zone):
            faults.append(Fault(agencies.file, zone, "agency_timezone is no time zone"))
    route_ids = {row["route_id"] for _, row in routes}
    stop_ids = {row["stop_id"] for _, row in stops}
    network_ids = {row["network_id"] for _, row in networks}
    for number, row in routes:
        if len(agencies.rows) == 1:  # GTFS routes.txt: with one agency it need not be said
            row["agency_id"] = row.get("agency_id") or agencies.rows[0]["agency_id"]
        _refer(routes, number, row.get("agency_id", ""), "agency_id", parties)
    for number, row in route_networks:
        _refer(route_networks, number, row["network_id"], "network_id", network_ids)
        _refer(route_networks, number, row["route_id"], "route_id", route_ids)
    areas_of_stop: dict[str, list[str]] = defaultdict(list)
    area_ids = frozenset(row["area_id"] for _, row in areas)
    for number, row in stop_areas:
        _refer(stop_areas, number, row["area_id"], "area_id", area_ids)
        _refer(stop_areas, number, row["stop_id"], "stop_id", stop_ids)
        areas_of_stop[row["stop_id"]].append(row["area_id"])
    routes_of_stop, stops_of_route = _stop_order(perhaps, route_ids, stop_ids)
    return Network(
        timezone=zones[0] if zones else "UTC",
        parties=parties,
        stops={row["stop_id"]: _stop(stops, number, row) for number, row in stops},
        routes={row["route_id"]: _route(routes, number, row) for number, row in routes},
        network_of_route={row["route_id"]: row["network_id"] for _, row in route_networks},
        networks={row["network_id"]: row["network_name"] for _, row in networks},
        areas_of_stop={stop: tuple(found) for stop, found in areas_of_stop.items()},
        areas=area_ids,
        routes_of_stop=routes_of_stop,
        stops_of_route=stops_of_route,
        calendars=_calendars(
            perhaps("calendar.txt", "service_id", "start_date", "end_date", *WEEKDAYS),
            perhaps("calendar_dates.txt", "service_id", "date", "exception_type"),
        ),
        services=_services(perhaps("services.csv", "network_id", "mode", "operator", "routes"), network_ids),
        distances=_distances(perhaps("distances.csv", "from_stop_id", "to_stop_id", "km"), stop_ids),
    )


def _services(table: Table, network_ids: set[str]) -> tuple[Service, ...]:
    for number, row in table:
        _refer(table, number, row["network_id"], "network_id", network_ids)
        if not (row["mode"] or row["operator"] or row["routes"]):
            table.fault(number, list(row.values()), "a service needs a mode, an operator or routes")
    return tuple(
        Service(
            network_id=row["network_id"],
            mode=row["mode"],
            operator=row["operator"],
            routes=tuple(name.strip() for name in row["routes"].split(";") if name.strip()),
        )
        for _, row in table
    )


def _distances(table: Table, stop_ids: set[str]) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    for number, row in table:
        start, end = row["from_stop_id"], row["to_stop_id"]
        _refer(table, number, start, "from_stop_id", stop_ids)
        _refer(table, number, end, "to_stop_id", stop_ids)
        km = table.decimal(number, row["km"], "km")
        if km is None:
            continue
        metres = int((km * 1000).to_integral_value())
        if metres < 0:
            table.fault(number, row["km"], "km is below zero")
        found[start, end] = metres
        found.setdefault((end, start), metres)
    return found


def _refer(table: Table, row: int, value: str, column: str, known: object) -> None:
    if value not in known:  # type: ignore[operator]
        table.fault(row, value, f"{column} names nothing that exists")


def _parties(base: Path, agencies: Table, faults: list[Fault]) -> dict[str, Party]:
    found = {
        row["agency_id"]: Party(
            party_id=row["agency_id"], name_vi=row["agency_name"], name_en=row["agency_name"], kind="operator"
        )
        for _, row in agencies
    }
    others = Table(base / "parties.csv", base, faults, required=_PARTY_COLUMNS, optional=True)
    for _, row in others:
        party = row["party_id"]
        found[party] = Party(party_id=party, name_vi=row["name_vi"], name_en=row["name_en"], kind=row["kind"])
    return found


def _stop(table: Table, number: int, row: dict[str, str]) -> Stop:
    lat: float | None = None
    lon: float | None = None
    if "stop_lat" in row and "stop_lon" in row and (row["stop_lat"] or row["stop_lon"]):
        try:
            lat, lon = float(row["stop_lat"]), float(row["stop_lon"])
        except ValueError:
            table.fault(number, (row["stop_lat"], row["stop_lon"]), "stop_lat and stop_lon are not a position")
        else:
            if not (math.fabs(lat) <= 90 and math.fabs(lon) <= 180):
                table.fault(number, (row["stop_lat"], row["stop_lon"]), "stop_lat and stop_lon are not a position")
    return Stop(stop_id=row["stop_id"], name=row["stop_name"], lat=lat, lon=lon)


def _route(table: Table, number: int, row: dict[str, str]) -> Route:
    return Route(
        route_id=row["route_id"],
        short_name=row.get("route_short_name", ""),
        long_name=row.get("route_long_name", ""),
        agency_id=row.get("agency_id", ""),
        route_type=table.whole(number, row["route_type"], "route_type"),
    )


def _stop_order(
    table: object, route_ids: set[str], stop_ids: set[str]
) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """Which routes call at a stop, and the stops of each route in the order of its first trip."""
    trips: Table = table("trips.txt", "route_id", "trip_id")  # type: ignore[operator]
    times: Table = table("stop_times.txt", "trip_id", "stop_id", "stop_sequence")  # type: ignore[operator]
    route_of_trip: dict[str, str] = {}
    for number, row in trips:
        _refer(trips, number, row["route_id"], "route_id", route_ids)
        route_of_trip[row["trip_id"]] = row["route_id"]
    calls: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for number, row in times:
        _refer(times, number, row["trip_id"], "trip_id", route_of_trip)
        _refer(times, number, row["stop_id"], "stop_id", stop_ids)
        calls[row["trip_id"]].append((times.whole(number, row["stop_sequence"], "stop_sequence"), row["stop_id"]))
    routes_of_stop: dict[str, set[str]] = defaultdict(set)
    stops_of_route: dict[str, tuple[str, ...]] = {}
    for trip, visits in calls.items():
        route = route_of_trip.get(trip, "")
        for _, stop in visits:
            routes_of_stop[stop].add(route)
        stops_of_route.setdefault(route, tuple(stop for _, stop in sorted(visits)))
    return {stop: tuple(sorted(found)) for stop, found in routes_of_stop.items()}, stops_of_route


def _calendars(regular: Table, exceptions: Table) -> dict[str, Calendar]:
    added: dict[str, set[int]] = defaultdict(set)
    removed: dict[str, set[int]] = defaultdict(set)
    for number, row in exceptions:
        if row["exception_type"] not in ("1", "2"):
            exceptions.fault(number, row["exception_type"], "exception_type is neither 1 nor 2")
        target = added if row["exception_type"] == "1" else removed
        target[row["service_id"]].add(_gtfs_day(exceptions, number, row["date"]))
    regular.unique("service_id")
    for number, row in regular:
        for day in WEEKDAYS:
            if row[day] not in ("0", "1"):
                regular.fault(number, row[day], f"{day} is neither 0 nor 1")
    rows = {row["service_id"]: (number, row) for number, row in regular}
    found = {}
    for service in sorted(rows.keys() | added.keys() | removed.keys()):
        number, row = rows.get(service, (0, {}))
        found[service] = Calendar(
            weekdays=tuple(row.get(day) == "1" for day in WEEKDAYS),
            first_day=_gtfs_day(regular, number, row["start_date"]) if row else 0,
            last_day=_gtfs_day(regular, number, row["end_date"]) if row else -1,
            added=frozenset(added[service]),
            removed=frozenset(removed[service]),
        )
    return found


def _gtfs_day(table: Table, number: int, text: str) -> int:
    try:
        if len(text) != 8:
            raise ValueError(text)
        return to_day(date(int(text[:4]), int(text[4:6]), int(text[6:8])))
    except ValueError:
        table.fault(number, text, "not a date YYYYMMDD")
        return 0


def _version(folder: Path, base: Path, faults: list[Fault]) -> Version | None:
    def table(name: str, *required: str) -> Table:
        """A fare table of the version's folder, else the network's; absent in both, it is empty."""
        own = folder / name
        return Table(own if own.exists() else base / "network" / name, base, faults, required=required, optional=True)

    for name in NOT_YET:
        for place in (folder, base / "network"):
            if (place / name).exists():
                faults.append(Fault(f"{place.name}/{name}", name, "this release does not price by this table"))
    parsed = _tariff_toml(folder / "tariff.toml", base, faults)
    media = table("fare_media.txt", "fare_media_id", "fare_media_type")
    categories = table("rider_categories.txt", "rider_category_id", "is_default_fare_category")
    products = table("fare_products.txt", "fare_product_id", "amount", "currency")
    rules = table("fare_leg_rules.txt", "fare_product_id")
    transfers = table("fare_transfer_rules.txt", "fare_transfer_type")
    timeframes = table("timeframes.txt", "timeframe_group_id", "service_id")
    if parsed is None:
        return None
    head = parsed.tariff
    if head.version != folder.name:
        faults.append(Fault(f"{folder.name}/tariff.toml: tariff.version", head.version, "must be the folder's name"))
    known_categories, default = _categories(categories, head, folder, faults)
    return Version(
        folder=folder.name,
        file=parsed,
        media=_said_once(folder, "media", head.media, frozenset(media.unique("fare_media_id")), media, faults),
        default_medium=(*head.media, *_not_cash(media), "")[0],
        categories=known_categories,
        default_category=default,
        products=tuple(_product(products, number, row, parsed) for number, row in products),
        leg_rules=tuple(_leg_rule(rules, number, row) for number, row in rules),
        transfer_rules=tuple(_transfer_rule(transfers, number, row) for number, row in transfers),
        has_priority="rule_priority" in rules.columns,
        timeframes=tuple(_timeframe(timeframes, number, row) for number, row in timeframes),
    )


def _not_cash(media: Table) -> tuple[str, ...]:
    """The media of a table; those of GTFS's type 0, which are none (cash), last."""
    return tuple(row["fare_media_id"] for _, row in sorted(media, key=lambda found: found[1]["fare_media_type"] == "0"))


def _said_once(
    folder: Path, field: str, listed: tuple[str, ...], found: frozenset[str], table: Table, faults: list[Fault]
) -> frozenset[str]:
    """What tariff.toml lists or a GTFS table has: one of the two must, and not both."""
    place = f"{folder.name}/tariff.toml: tariff.{field}"
    if listed and found:
        faults.append(Fault(place, list(listed), f"stands already in {table.file} row 2"))
    if not listed and not found:
        faults.append(Fault(place, None, f"neither here nor in {table.file}"))
    return frozenset(listed) or found


def _categories(table: Table, head: Head, folder: Path, faults: list[Fault]) -> tuple[frozenset[str], str]:
    """The rider categories, and the default among them."""
    found = frozenset(table.unique("rider_category_id"))
    known = _said_once(folder, "rider_categories", head.rider_categories, found, table, faults)
    if head.rider_categories:
        return known, head.rider_categories[0]
    defaults = [row["rider_category_id"] for _, row in table if row["is_default_fare_category"] == "1"]
    if len(defaults) != 1 and found:
        faults.append(Fault(table.file, defaults, "exactly one rider category must be the default"))
    return known, defaults[0] if defaults else ""


def _tariff_toml(path: Path, base: Path, faults: list[Fault]) -> TariffFile | None:
    place = str(path.relative_to(base))
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"), parse_float=Decimal)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError, RecursionError, InvalidOperation) as error:
        faults.append(Fault(place, _reason(error), "not a TOML file"))
        return None
    impossible = [Fault(f"{place}: {where}", str(value), problem) for where, value, problem in _impossible_numbers(data, "")]
    if impossible:
        faults += impossible
        return None
    try:
        return msgspec.convert(data, TariffFile)
    except msgspec.ValidationError as error:
        where, value = _toml_place(str(error), data)
        faults.append(Fault(f"{place}: {where}", value, str(error).split(" - at ")[0]))
        return None


def _reason(error: Exception) -> str:
    if isinstance(error, InvalidOperation):
        return "a number with too large an exponent"
    return str(error.strerror) if isinstance(error, OSError) else str(error)


def _impossible(number: int | Decimal) -> str:
    """Why a number is none that a tariff can say; empty: it is one."""
    if isinstance(number, Decimal) and not number.is_finite():
        return "is not a number"
    size = Decimal(number).copy_abs()
    if size and not 1 / Decimal(LARGEST) <= size <= LARGEST:
        return f"is larger than {LARGEST}, or smaller than one part of it"
    return ""


def _impossible_numbers(value: object, where: str) -> Iterator[tuple[str, int | Decimal, str]]:
    """The numbers of a TOML document that no tariff can say, with where they stand and why."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _impossible_numbers(inner, f"{where}.{key}" if where else key)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            label = inner.get("rule_id") or inner.get("product_id") if isinstance(inner, dict) else None
            yield from _impossible_numbers(inner, f"{where}[{number}]{f' {label}' if isinstance(label, str) else ''}")
    elif isinstance(value, int | Decimal) and (problem := _impossible(value)):
        yield where, value, problem


def _toml_place(message: str, data: object) -> tuple[str, object]:
    """The place and value that a msgspec message names, with the row's own rule_id or product_id where it has one."""
    path = message.rsplit("`$", 1)[1].rstrip("`") if "`$" in message else ""
    value: object = data
    label = ""
    for step in path.replace("[", ".[").split("."):
        if not step:
            continue
        try:
            value = value[int(step[1:-1])] if step.startswith("[") else value[step]  # type: ignore[index]
        except (KeyError, IndexError, TypeError, ValueError):
            break
        if isinstance(value, dict):
            label = value.get("rule_id") or value.get("product_id") or value.get("candidate_id") or label
    return (f"{path.lstrip('.')} {label}".strip() or "the file", value if not isinstance(value, dict) else dict(value))


def _product(table: Table, number: int, row: dict[str, str], parsed: TariffFile) -> FareProductRow:
    if row["currency"] != parsed.tariff.currency:
        table.fault(number, row["currency"], f"the currency is not the tariff's, {parsed.tariff.currency}")
    amount = _minor_units(table, number, row["amount"], parsed.tariff.minor_digits)
    if amount < 0:
        table.fault(number, amount, "amount is below zero")
    return FareProductRow(
        row=number,
        fare_product_id=row["fare_product_id"],
        name=row.get("fare_product_name", ""),
        rider_category_id=row.get("rider_category_id") or None,
        fare_media_id=row.get("fare_media_id") or None,
        amount=amount,
    )


def _minor_units(table: Table, number: int, text: str, digits: int) -> int:
    """An amount as GTFS writes it (2.75) in whole minor units (275)."""
    found = table.decimal(number, text, "amount")
    if found is None:
        return 0
    exact = found.scaleb(digits)
    if exact != exact.to_integral_value():
        table.fault(number, text, f"amount has more than {digits} decimals" if digits else "amount is not a whole number")
        return 0
    return int(exact)


def _leg_rule(table: Table, number: int, row: dict[str, str]) -> FareLegRule:
    return FareLegRule(
        row=number,
        leg_group_id=row.get("leg_group_id") or None,
        network_id=row.get("network_id") or None,
        from_area_id=row.get("from_area_id") or None,
        to_area_id=row.get("to_area_id") or None,
        from_timeframe_group_id=row.get("from_timeframe_group_id") or None,
        to_timeframe_group_id=row.get("to_timeframe_group_id") or None,
        fare_product_id=row["fare_product_id"],
        rule_priority=table.whole(number, row.get("rule_priority", ""), "rule_priority"),
    )


def _transfer_rule(table: Table, number: int, row: dict[str, str]) -> FareTransferRule:
    def perhaps(column: str) -> int | None:
        return table.whole(number, row[column], column) if row.get(column) else None

    return FareTransferRule(
        row=number,
        from_leg_group_id=row.get("from_leg_group_id") or None,
        to_leg_group_id=row.get("to_leg_group_id") or None,
        transfer_count=perhaps("transfer_count"),
        duration_limit=perhaps("duration_limit"),
        duration_limit_type=perhaps("duration_limit_type") or 0,
        fare_transfer_type=perhaps("fare_transfer_type") or 0,
        fare_product_id=row.get("fare_product_id") or None,
    )


def _timeframe(table: Table, number: int, row: dict[str, str]) -> Timeframe:
    return Timeframe(
        row=number,
        group_id=row["timeframe_group_id"],
        start=_seconds(table, number, row.get("start_time", ""), 0),
        end=_seconds(table, number, row.get("end_time", ""), 86_400),
        service_id=row["service_id"],
    )


def _seconds(table: Table, number: int, text: str, default: int) -> int:
    if not text:
        return default
    try:
        hours, minutes, seconds = (int(part) for part in text.split(":"))
    except ValueError:
        table.fault(number, text, "not a time HH:MM:SS")
        return default
    return hours * 3600 + minutes * 60 + seconds
