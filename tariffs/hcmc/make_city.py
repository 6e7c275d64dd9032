"""Derive the city's GTFS feed and its fare tables from `sources/` and `assumed/`.

`sources/` says what was published, `assumed/` what we had to fill in; this script decides nothing about prices and only
puts both into the columns of the GTFS reference. Run it again after a change: the same input gives the same bytes.
`tariff.toml` in each version folder is written by hand and never touched here.
"""

from __future__ import annotations

import csv
import itertools
import math
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

Row = dict[str, str]

HERE = Path(__file__).resolve().parent
NETWORK = HERE / "network"
FIRST_DAY, LAST_DAY, BRT_FIRST_DAY = "20241222", "20261231", "20260301"
MCPT = "AU-MCPT"  # the authority stands in where a route has no known operator
BUS, METRO, FERRY = "3", "1", "4"  # route_type

MEDIA: tuple[tuple[str, str, str], ...] = (  # id, name, fare_media_type of the GTFS reference
    ("cash", "Tiền mặt", "0"),
    ("ic_card", "Thẻ IC nạp tiền của HURC1", "2"),
    ("emv", "Thẻ ngân hàng không tiếp xúc", "3"),
    ("qr", "Mã QR", "4"),
    ("cccd", "Căn cước công dân gắn chip", "2"),
    ("wallet", "Ví điện tử", "4"),
)
METRO_CASH_MEDIA = ("cash", "ic_card")  # the stored-value card pays the cash table (S18)
ANY_MEDIUM = ""

RIDERS: tuple[tuple[str, str, str], ...] = (  # id, name, concession in concessions.csv
    ("adult", "Người lớn", ""),
    ("student", "Học sinh, sinh viên", "STUDENT-BUS"),
    ("elderly", "Người cao tuổi (từ 60 tuổi)", "ELDER"),
    ("merit", "Người có công với cách mạng", "MERIT"),
    ("disabled", "Người khuyết tật", "DISAB"),
    ("child_under_6", "Trẻ em dưới 6 tuổi", "CHILD6"),
)

NETWORK_NAMES = {
    "bus-s5": "Xe buýt trợ giá, cự ly đến 15 km",
    "bus-s6": "Xe buýt trợ giá, cự ly trên 15 km đến dưới 25 km",
    "bus-s7": "Xe buýt trợ giá, cự ly từ 25 km",
    "bus-school": "Xe buýt học sinh",
    "bus-tourist": "Xe buýt du lịch chưa rõ giá",
    "metro": "Metro số 1",
    "river-bus": "Buýt đường sông số 1",
    "brt": "BRT số 1",
    "bus": "Xe buýt trợ giá, tuyến không có trong dữ liệu",
}
ANY_ROUTE = "bus"  # a subsidised bus whose route is not listed, priced by the length of its route

# The fare rules of bus_fares.csv that each version of the tariff takes for subsidised buses, by medium.
TODAY = {ANY_MEDIUM: "BUS-{}-ADULT"}
PROPOSAL = {medium: "P26-{}-CASH" if medium == "cash" else "P26-{}-CASHLESS" for medium, _, _ in MEDIA}
IN_ROUTE_SHEET = {"policy": "in_force", "status": "published", "source": "S06", "note": ""}
VERSIONS = {"2019-now": TODAY, "proposal-2026-03": PROPOSAL, "free-bus-draft": TODAY}


@dataclass(frozen=True, slots=True)
class Line:
    """A route as the feed needs it: who runs it, which fare class it is in, when and where it runs."""

    route_id: str
    name: str
    route_type: str
    operators: tuple[str, ...]
    operators_status: str
    network_id: str
    service_id: str
    stops: tuple[str, ...]  # stop_ids of direction 0
    runs_back: bool  # a loop runs in one direction only
    first: int  # seconds of the day
    last: int
    trips_per_day: int  # both directions together
    seconds: int  # run time from end to end


# --- reading -----------------------------------------------------------------------------------------------------


def read(path: str) -> list[Row]:
    """The rows of one input file, letters composed (NFC) and without spaces at the ends."""
    with (HERE / path).open(encoding="utf-8", newline="") as file:
        return [{key: clean(value) for key, value in row.items()} for row in csv.DictReader(file)]


def clean(text: str) -> str:
    """The sources spell a few names with combining letters, which would not equal the same name composed."""
    return unicodedata.normalize("NFC", text).strip()


def by(key: str, rows: Iterable[Row]) -> dict[str, Row]:
    """Rows by the value of one column."""
    return {row[key]: row for row in rows}


def write(path: Path, header: str, rows: Iterable[Sequence[str]]) -> None:
    """One CSV file, the same bytes for the same rows."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header.split(","))
        writer.writerows(rows)


# --- places ------------------------------------------------------------------------------------------------------


def plain(text: str) -> str:
    """Letters and digits of ASCII with hyphens between words, as an id wants them."""
    letters = unicodedata.normalize("NFD", text.replace("Đ", "D").replace("đ", "d"))
    ascii_only = "".join(letter if letter.isascii() else "" for letter in letters)
    return "-".join("".join(letter if letter.isalnum() else " " for letter in ascii_only).split())


def stop_row(stop_id: str, code: str, name: str, position: tuple[str, str], status: str) -> Row:
    """A plain stop and the label of its position."""
    lat, lon = position
    return {
        "stop_id": stop_id,
        "stop_code": code,
        "stop_name": name,
        "stop_lat": lat,
        "stop_lon": lon,
        "location_type": "0",
        "position_status": status,
    }


def station_stops() -> list[Row]:
    """Metro stations, open piers and BRT stations, under their own ids."""
    files = ("metro_line1_stations", "waterbus_stations", "brt_line1")
    stations = [station for file in files for station in read(f"sources/{file}.csv")]
    return [
        stop_row(s["station_id"], s.get("code", ""), s["name_vi"], (s["lat"], s["lon"]), s["status"])
        for s in stations
        if s["lat"]
    ]


def published_bus_stops() -> list[Row]:
    """The bus stops near the metro."""
    links = by("stop_code", (link for link in read("sources/metro_bus_links.csv") if link["stop_code"]))
    return [
        stop_row(plain(code), code, link["stop_name_vi"], (link["stop_lat"], link["stop_lon"]), link["status"])
        for code, link in sorted(links.items())
    ]


def assumed_places() -> list[Row]:
    """Terminals and turning points of bus routes; nobody publishes where they are."""
    return [
        stop_row(f"T-{plain(place['name_vi']).upper()}", "", place["name_vi"], (place["lat"], place["lon"]), "assumed")
        for place in read("assumed/places.csv")
    ]


def stop_ids_by_place(stops: Iterable[Row]) -> dict[str, str]:
    """How the sources name a bus stop (stop code, else name) and its stop_id. A published bus station (code BX…) also
    goes by its name: three terminals are such a station."""
    found: dict[str, str] = {}
    for stop in stops:
        found[stop["stop_code"] or stop["stop_name"]] = stop["stop_id"]
        if stop["stop_code"].startswith("BX"):
            found[stop["stop_name"]] = stop["stop_id"]
    return found


def metres(a: Row, b: Row) -> float:
    """Straight distance of two stops; a flat earth is good enough for one city."""
    lat_a, lat_b = float(a["stop_lat"]), float(b["stop_lat"])
    east = (float(b["stop_lon"]) - float(a["stop_lon"])) * math.cos(math.radians((lat_a + lat_b) / 2))
    return math.hypot(lat_b - lat_a, east) * 111_195


def distances_along(stop_ids: Sequence[str], stops: dict[str, Row]) -> list[float]:
    """Metres from the first stop to each stop, straight from stop to stop."""
    reached = [0.0]
    for here, there in itertools.pairwise(stop_ids):
        reached.append(reached[-1] + metres(stops[here], stops[there]))
    return reached


# --- routes ------------------------------------------------------------------------------------------------------


def seconds_of(clock: str) -> int:
    """Seconds of the day of a time like 05:15."""
    hours, minutes = clock.split(":")
    return int(hours) * 3600 + int(minutes) * 60


def clock_of(seconds: int) -> str:
    """GTFS time of seconds of the day; it may pass 24:00:00."""
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def network_of_bus(route: Row) -> str:
    """The fare class of a bus route, which is its network."""
    match route["fare_category"]:
        case "S5" | "S6" | "S7" as category:
            return f"bus-{category.lower()}"
        case "SCHOOL":
            return "bus-school"
        case "TOURIST" if not route["adult_vnd"]:
            return "bus-tourist"
        case "UNSUB" | "TOURIST":
            return f"bus-own-{route['adult_vnd']}"
        case unknown:
            raise ValueError(f"route {route['route_id']}: fare category {unknown!r} is not known")


def middle_stops(
    route: Row,
    ends: tuple[str, str],
    links: Iterable[Row],
    loops: dict[str, Row],
    ids: dict[str, str],
    stops: dict[str, Row],
) -> list[str]:
    """The known stops between the ends of a bus route: for a loop as `assumed/loops.csv` says, else its stops near the
    metro in the order of the stations, from the end that makes the shorter way."""
    if route["route_id"] in loops:
        return [ids[place] for place in loops[route["route_id"]]["via"].split(";")]
    near = [ids[link["stop_code"]] for link in links if link["stop_code"]]
    there = [stop for stop in dict.fromkeys(near) if stop not in ends]
    back = there[::-1]
    return min(there, back, key=lambda middle: distances_along([ends[0], *middle, ends[1]], stops)[-1])


def bus_lines(stops: dict[str, Row]) -> list[Line]:
    """Every route of bus_routes.csv."""
    ids = stop_ids_by_place(stops.values())
    loops, assumed = by("route_id", read("assumed/loops.csv")), by("route_id", read("assumed/running.csv"))
    links: dict[str, list[Row]] = defaultdict(list)
    for link in sorted(read("sources/metro_bus_links.csv"), key=lambda row: row["station_id"]):
        links[link["route_id"]].append(link)
    lines = []
    for route in read("sources/bus_routes.csv"):
        ends = ids[route["start_stop_vi"]], ids[route["end_stop_vi"]]
        middle = middle_stops(route, ends, links[route["route_id"]], loops, ids, stops)
        running = route if route["hours"] else assumed[route["route_id"]]
        first, last = running["hours"].split(" - ")
        lines.append(
            Line(
                route_id=route["route_id"],
                name=route["name_vi"],
                route_type=BUS,
                operators=tuple(route["operator_ids"].split(";")) if route["operator_ids"] else (MCPT,),
                operators_status=route["status"] if route["operator_ids"] else "assumed",
                network_id=network_of_bus(route),
                service_id="SCHOOL-DAYS" if route["fare_category"] == "SCHOOL" else "DAILY",
                stops=(ends[0], *middle, ends[1]),
                runs_back=ends[0] != ends[1],
                first=seconds_of(first),
                last=seconds_of(last),
                trips_per_day=int(running["trips_per_day"]),
                seconds=int(route["running_min"]) * 60,
            )
        )
    return lines


def fixed_line(
    route_id: str,
    name: str,
    route_type: str,
    operator: str,
    status: str,
    network_id: str,
    service_id: str,
    stops: dict[str, Row],
) -> Line:
    """A line that calls at all its own stations: those whose id begins with the line's prefix."""
    running = by("route_id", read("assumed/running.csv"))[route_id]
    first, last = running["hours"].split(" - ")
    prefix = "L1-" if route_id == "ML1" else f"{route_id}-"
    return Line(
        route_id=route_id,
        name=name,
        route_type=route_type,
        operators=(operator,),
        operators_status=status,
        network_id=network_id,
        service_id=service_id,
        stops=tuple(stop for stop in stops if stop.startswith(prefix)),
        runs_back=True,
        first=seconds_of(first),
        last=seconds_of(last),
        trips_per_day=int(running["trips_per_day"]),
        seconds=int(running["running_min"]) * 60,
    )


def all_lines(stops: dict[str, Row]) -> list[Line]:
    """Metro, river bus and BRT, then the buses."""
    return [
        fixed_line("ML1", "Metro số 1 Bến Thành - Suối Tiên", METRO, "OP-HURC1", "published", "metro", "DAILY", stops),
        fixed_line(
            "SWB1",
            "Buýt đường sông số 1 Bạch Đằng - Linh Đông",
            FERRY,
            "OP-THUONGNHAT",
            "published",
            "river-bus",
            "DAILY",
            stops,
        ),
        fixed_line("BRT1", "BRT số 1 Võ Văn Kiệt - Mai Chí Thọ", BUS, "OP-BRT1", "assumed", "brt", "BRT", stops),
        *bus_lines(stops),
    ]


# --- the network feed --------------------------------------------------------------------------------------------


def write_agencies(lines: Sequence[Line]) -> None:
    """Every operator that runs a route, also one that only shares it, and the authority for routes without operator."""
    running = {operator for line in lines for operator in line.operators}
    write(
        NETWORK / "agency.txt",
        "agency_id,agency_name,agency_url,agency_timezone,agency_lang",
        (
            (
                o["operator_id"],
                o["name_vi"],
                f"https://example.org/{o['operator_id'].lower()}",
                "Asia/Ho_Chi_Minh",
                "vi",
            )
            for o in read("sources/operators.csv")
            if o["operator_id"] in running
        ),
    )


def write_routes(lines: Sequence[Line]) -> None:
    """Routes, who shares them, and the fare classes as networks."""
    write(
        NETWORK / "routes.txt",
        "route_id,agency_id,route_short_name,route_long_name,route_type",
        ((line.route_id, line.operators[0], line.route_id, line.name, line.route_type) for line in lines),
    )
    write(
        NETWORK / "route_operators.csv",
        "route_id,operator_id,position,status",
        (
            (line.route_id, operator, str(position), line.operators_status)
            for line in lines
            for position, operator in enumerate(line.operators, start=1)
        ),
    )
    write(
        NETWORK / "networks.txt",
        "network_id,network_name",
        ((network, network_name(network)) for network in (*networks_of(lines), ANY_ROUTE)),
    )
    write(NETWORK / "route_networks.txt", "network_id,route_id", ((line.network_id, line.route_id) for line in lines))
    services = ((ANY_ROUTE, "bus"), ("metro", "metro"), ("river-bus", "river_bus"), ("brt", "brt"))
    write(NETWORK / "services.csv", "network_id,mode,operator,routes", ((network, mode, "", "") for network, mode in services))


def networks_of(lines: Iterable[Line]) -> list[str]:
    """Networks in use: those with a name in their order, then the operators' own prices, cheapest first."""
    used = {line.network_id for line in lines}
    own = sorted((network for network in used if network not in NETWORK_NAMES), key=own_price)
    return [network for network in NETWORK_NAMES if network in used] + own


def own_price(network_id: str) -> int:
    """The price in the id of a network like bus-own-10000."""
    return int(network_id.removeprefix("bus-own-"))


def network_name(network_id: str) -> str:
    """What a rider would call a fare class."""
    return NETWORK_NAMES.get(network_id) or f"Xe buýt không trợ giá từ {own_price(network_id):,} đồng".replace(",", ".")


def write_stops(stops: dict[str, Row]) -> None:
    """Stops with the label of their position, and an area per metro station."""
    header = "stop_id,stop_code,stop_name,stop_lat,stop_lon,location_type,position_status"
    write(NETWORK / "stops.txt", header, (list(stop.values()) for stop in stops.values()))
    stations = [stop for stop in stops.values() if stop["stop_id"].startswith("L1-")]
    write(NETWORK / "areas.txt", "area_id,area_name", ((s["stop_id"], s["stop_name"]) for s in stations))
    write(NETWORK / "stop_areas.txt", "area_id,stop_id", ((s["stop_id"], s["stop_id"]) for s in stations))


def directions(line: Line) -> list[tuple[str, str, tuple[str, ...]]]:
    """(direction_id, trip_id, stops) of the template trips of a line."""
    there = ("0", f"{line.route_id}-0", line.stops)
    return [there, ("1", f"{line.route_id}-1", line.stops[::-1])] if line.runs_back else [there]


def write_trips(lines: Sequence[Line], stops: dict[str, Row]) -> None:
    """One template trip a direction, at an even speed, and how often it runs."""
    trips, times, frequencies = [], [], []
    for line in lines:
        for direction, trip, calls in directions(line):
            trips.append((line.route_id, line.service_id, trip, stops[calls[-1]]["stop_name"], direction))
            times.extend(stop_times(line, trip, calls, stops))
            departures = line.trips_per_day // len(directions(line))
            headway = (line.last - line.first) // departures
            frequencies.append((trip, clock_of(line.first), clock_of(line.last), str(headway), "0"))
    write(NETWORK / "trips.txt", "route_id,service_id,trip_id,trip_headsign,direction_id", trips)
    write(NETWORK / "stop_times.txt", "trip_id,arrival_time,departure_time,stop_id,stop_sequence,timepoint", times)
    write(NETWORK / "frequencies.txt", "trip_id,start_time,end_time,headway_secs,exact_times", frequencies)


def stop_times(line: Line, trip: str, calls: Sequence[str], stops: dict[str, Row]) -> list[tuple[str, ...]]:
    """The calls of one template trip; only the ends are time points, between them the time follows the distance."""
    reached = distances_along(calls, stops)
    rows: list[tuple[str, ...]] = []
    for number, (stop, distance) in enumerate(zip(calls, reached, strict=True), start=1):
        at = clock_of(line.first + round(line.seconds * distance / reached[-1]))
        rows.append((trip, at, at, stop, str(number), "1" if number in (1, len(calls)) else "0"))
    return rows


def write_calendar() -> None:
    """Every day from the metro's opening; pupils' buses Monday to Saturday; BRT from the day of the proposal."""
    write(
        NETWORK / "calendar.txt",
        "service_id,monday,tuesday,wednesday,thursday,friday,saturday,sunday,start_date,end_date",
        (
            ("DAILY", *"1111111", FIRST_DAY, LAST_DAY),
            ("SCHOOL-DAYS", *"1111110", FIRST_DAY, LAST_DAY),
            ("BRT", *"1111111", BRT_FIRST_DAY, LAST_DAY),
        ),
    )
    write(
        NETWORK / "feed_info.txt",
        "feed_publisher_name,feed_publisher_url,feed_lang,feed_start_date,feed_end_date,feed_version,feed_contact_url",
        [
            (
                "motthe",
                "https://example.org/motthe",
                "vi",
                FIRST_DAY,
                LAST_DAY,
                "2026-11-22",
                "https://example.org/motthe/contact",
            )
        ],
    )


# --- fares -------------------------------------------------------------------------------------------------------


def metro_product(pair: Row) -> str:
    """The product of a pair of stations, named by its cash price in thousands."""
    return f"metro-{int(pair['cash_vnd']) // 1000}"


def metro_product_name(product: str) -> str:
    """What a rider would call it."""
    return f"Metro số 1, giá tiền mặt {product.removeprefix('metro-')}.000 đồng"


def metro_prices(pairs: Sequence[Row]) -> list[tuple[str, str, str]]:
    """(product, medium, amount) of every price level."""
    levels = {int(pair["cash_vnd"]): pair for pair in pairs}
    return [
        (metro_product(pair), medium, pair["cash_vnd"] if medium in METRO_CASH_MEDIA else pair["cashless_vnd"])
        for _, pair in sorted(levels.items())
        for medium, _, _ in MEDIA
    ]


def fare_of(network_id: str, rules: dict[str, str], fares: dict[str, Row]) -> list[tuple[str, str, Row]]:
    """(medium, amount, the row of bus_fares.csv it is from) of a network with one flat price."""
    match network_id:
        case "bus-s5" | "bus-s6" | "bus-s7":
            category = network_id.removeprefix("bus-").upper()
            found = [(medium, fares[rule.format(category)]) for medium, rule in rules.items()]
        case "river-bus":
            found = [(ANY_MEDIUM, fares["SWB1-SINGLE"])]
        case "brt":
            found = [(ANY_MEDIUM, fares["BRT1-SINGLE"])]
        case "bus-school":
            found = [(ANY_MEDIUM, IN_ROUTE_SHEET | {"price_vnd": "0"})]
        case _:
            found = [(ANY_MEDIUM, IN_ROUTE_SHEET | {"price_vnd": str(own_price(network_id))} | own_label(network_id))]
    return [(medium, fare["price_vnd"], fare) for medium, fare in found]


def own_label(network_id: str) -> Row:
    """A price that the operator sets by section is taken as flat at its lowest, which is our assumption."""
    routes = [route for route in read("sources/bus_routes.csv") if network_of_bus(route) == network_id]
    by_section = [route["route_id"] for route in routes if ";" in route["fare_tiers_vnd"]]
    if not by_section:
        return {}
    note = "lowest section price taken for every ride, section limits not published; by section on "
    return {"status": "assumed", "note": note + ";".join(by_section)}


def write_version(version: str, rules: dict[str, str], networks: Sequence[str]) -> None:
    """The GTFS Fares v2 tables of one version of the tariff, and the labels of what stands in them."""
    folder = HERE / version
    pairs = read("sources/metro_line1_fares.csv")
    fares = by("rule_id", read("sources/bus_fares.csv"))
    flat = [n for n in networks if n not in ("metro", "bus-tourist")]  # bus-tourist: no price is known, so no rule
    priced = [(network, *fare) for network in flat for fare in fare_of(network, rules, fares)]

    write(folder / "fare_media.txt", "fare_media_id,fare_media_name,fare_media_type", MEDIA)
    write(
        folder / "rider_categories.txt",
        "rider_category_id,rider_category_name,is_default_fare_category",
        ((rider, name, "1" if rider == "adult" else "0") for rider, name, _ in RIDERS),
    )
    write(
        folder / "fare_products.txt",
        "fare_product_id,fare_product_name,rider_category_id,fare_media_id,amount,currency",
        [
            *(
                (product, metro_product_name(product), "", medium, amount, "VND")
                for product, medium, amount in metro_prices(pairs)
            ),
            *((network, network_name(network), "", medium, amount, "VND") for network, medium, amount, _ in priced),
        ],
    )
    write(
        folder / "fare_leg_rules.txt",
        "leg_group_id,network_id,from_area_id,to_area_id,fare_product_id",
        [
            *(("metro", "metro", pair["from_id"], pair["to_id"], metro_product(pair)) for pair in pairs),
            *((network, network, "", "", network) for network in flat),
        ],
    )
    write(
        folder / "labels.csv",
        "file,key,status,source,note",
        [
            *media_labels(),
            *rider_labels(),
            *metro_labels(pairs),
            *flat_labels(priced),
            *leg_rule_labels(pairs),
        ],
    )


def media_labels() -> list[tuple[str, ...]]:
    """Media whose GTFS type is the nearest one, not the exact one."""
    return [
        ("fare_media.txt", "qr", "assumed", "S64", "type 4 (app); HURC1 also prints QR codes on paper (S20)"),
        ("fare_media.txt", "cccd", "assumed", "S64", "type 2 (transit card) is the nearest; it is a citizen ID card"),
    ]


def rider_labels() -> list[tuple[str, ...]]:
    """Where each concession is published."""
    groups = by("group_id", read("sources/concessions.csv"))
    return [
        ("rider_categories.txt", rider, groups[group]["status"], groups[group]["source"], groups[group]["proof"])
        for rider, _, group in RIDERS
        if group
    ]


def metro_labels(pairs: Sequence[Row]) -> list[tuple[str, ...]]:
    """Metro prices by product and medium."""
    notes = {
        "ic_card": ("published", "S18", "the stored-value IC card pays the cash table"),
        "cccd": ("assumed", "S64", "a single ride by citizen ID is taken as cashless"),
    }
    return [
        ("fare_products.txt", f"{product}|{medium}", *notes.get(medium, ("published", "S03;S01", "")))
        for product, medium, _ in metro_prices(pairs)
    ]


def flat_labels(priced: Iterable[tuple[str, str, str, Row]]) -> list[tuple[str, ...]]:
    """Flat prices by product and medium; what is only proposed says so."""
    labels: list[tuple[str, ...]] = []
    for network, medium, _, fare in priced:
        proposed = fare["policy"] == "proposed"
        note = "proposed, not in force by 2026-03-12 (S12)" if proposed else fare["note"]
        labels.append(("fare_products.txt", f"{network}|{medium}", fare["status"], fare["source"], note))
    return labels


def leg_rule_labels(pairs: Iterable[Row]) -> list[tuple[str, ...]]:
    """The pairs of stations whose price is ours: in and out at the same station."""
    return [
        ("fare_leg_rules.txt", f"metro|{pair['from_id']}|{pair['to_id']}", pair["status"], pair["source"], pair["note"])
        for pair in pairs
        if pair["status"] == "assumed"
    ]


def main() -> None:
    """Write network/ and the tables of every version."""
    stops = by("stop_id", station_stops() + published_bus_stops() + assumed_places())
    lines = all_lines(stops)
    write_agencies(lines)
    write_routes(lines)
    write_stops(stops)
    write_trips(lines, stops)
    write_calendar()
    for version, rules in VERSIONS.items():
        write_version(version, rules, networks_of(lines))


if __name__ == "__main__":
    main()
