"""A little city, days as text in, bills as text out.

The little city has a metro (route M with the stations A, B, C and X), buses (10 and 11, of two companies), a boat (F) and a
charter route (P) that no tariff prices. X is also a stop of bus 10, so a tap at X alone does not tell its network. Between
neighbouring stations the metro costs 6,000, otherwise 9,000, and 1,000 more for cash; a bus costs 5,000, the boat 15,000.
Tests add rules to it: `write_city(folder, row("caps", rule_id="day", period="service_day", amount=12_000))`."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import text as sql

from clearing.agreements import Known
from clearing.audit import AuditReport, audit_store
from clearing.close import Closed
from clearing.commands import clear_date, end_of
from fare_engine.answers import BatchAnswer, TapAnswer
from fare_engine.application import Application
from fare_engine.booking import Entitlement, Record
from fare_engine.commands import Opened
from fare_engine.facts import Cancellation, Fact, Purchase, Tap
from fare_engine.ids import DeviceId, RouteId, StopId
from fare_engine.pricing.fold import Folded, fold
from fare_engine.pricing.lines import Line
from fare_engine.pricing.state import NEVER
from fare_engine.receipt import Receipt
from fare_engine.service_day import parse_instant
from fare_engine.settings import secret_file
from fare_engine.store import registry, travellers
from fare_engine.store.database import Database, sqlite_url
from fare_engine.store.registry import Device
from fare_engine.store.travellers import Account, NewToken, Traveller
from fare_engine.tap_format import (
    Decision,
    Outcome,
    TapEvent,
    TapKind,
    TapPlace,
    encode_tap,
    genesis_head,
    header_for,
    heads_after,
    seal,
)
from fare_engine.tariff.compile import CompiledTariff, load_compiled
from fare_engine.tokens import stored_token

TOWN = Known(
    parties=frozenset(("RAIL", "BUSCO", "COOP", "BOATS", "CITY", "SPONSOR")),
    currency="VND",
    networks=frozenset(("metro", "bus", "boat", "charter")),
    rules=frozenset(("day", "joint")),
    products=frozenset(("DAY", "WEEK", "BOOK")),
    categories=frozenset(("adult", "student", "elderly")),
    routes=frozenset(("M", "10", "11", "F", "P")),
)
"""What a clearing.toml of the little city may name."""
ROOT = Path(__file__).parent.parent
HCMC = ROOT / "tariffs" / "hcmc"
TUESDAY = "2026-03-03"

# ---- a little city

NETWORK = {
    "network/agency.txt": """\
agency_id,agency_name,agency_url,agency_timezone,agency_lang
RAIL,Little Metro,https://example.org/rail,Asia/Ho_Chi_Minh,en
BUSCO,Little Buses,https://example.org/bus,Asia/Ho_Chi_Minh,en
COOP,Bus Cooperative,https://example.org/coop,Asia/Ho_Chi_Minh,en
BOATS,Little Boats,https://example.org/boats,Asia/Ho_Chi_Minh,en
""",
    "network/stops.txt": """\
stop_id,stop_name,stop_lat,stop_lon
A,Alder,10.770,106.690
B,Birch,10.780,106.700
C,Cedar,10.790,106.710
X,Interchange,10.800,106.720
S1,Market,10.810,106.730
Q,Quay,10.760,106.700
""",
    "network/routes.txt": """\
route_id,agency_id,route_short_name,route_long_name,route_type
M,RAIL,M,Alder - Interchange,1
10,BUSCO,10,Interchange - Market,3
11,COOP,11,Market ring,3
F,BOATS,F,Quay round trip,4
P,BUSCO,P,Charter,3
LOST,BUSCO,L,A route of no network,3
""",
    "network/networks.txt": """\
network_id,network_name
metro,Metro
bus,Buses
boat,Boats
charter,Charter
""",
    "network/route_networks.txt": """\
network_id,route_id
metro,M
bus,10
bus,11
boat,F
charter,P
""",
    "network/areas.txt": """\
area_id,area_name
A,Alder
B,Birch
C,Cedar
""",
    "network/stop_areas.txt": """\
area_id,stop_id
A,A
B,B
C,C
""",
    "network/calendar.txt": """\
service_id,monday,tuesday,wednesday,thursday,friday,saturday,sunday,start_date,end_date
WORK,1,1,1,1,1,0,0,20260101,20261231
DAILY,1,1,1,1,1,1,1,20260101,20261231
""",
    "network/calendar_dates.txt": """\
service_id,date,exception_type
WORK,20260307,1
WORK,20260304,2
""",
    "network/trips.txt": """\
route_id,service_id,trip_id
M,DAILY,M-0
10,DAILY,10-0
F,DAILY,F-0
""",
    "network/stop_times.txt": """\
trip_id,arrival_time,departure_time,stop_id,stop_sequence
M-0,05:00:00,05:00:00,A,1
M-0,05:02:00,05:02:00,B,2
M-0,05:04:00,05:04:00,C,3
M-0,05:06:00,05:06:00,X,4
10-0,05:00:00,05:00:00,X,1
10-0,05:09:00,05:09:00,S1,2
F-0,06:00:00,06:00:00,Q,1
""",
    "parties.csv": """\
party_id,name_vi,name_en,kind
RAIL,Metro nhỏ,Little Metro,operator
CITY,Thành phố,The city,funder
SPONSOR,Nhà tài trợ,A sponsor,sponsor
""",
    "clearing.toml": """\
[clearing]
agreement_version = "1"
currency = "VND"
open_items_share = "100%"

[[agreements]]
agreement_id = "own-legs"
name = { vi = "Chặng", en = "Legs" }
covers = "legs"
method = "own_leg"
valid_from = 2026-01-01

[[agreements]]
agreement_id = "caps-by-day"
name = { vi = "Trần", en = "Caps" }
covers = "caps"
method = "paid_fares"
scope = "service_day"
valid_from = 2026-01-01

[[agreements]]
agreement_id = "passes"
name = { vi = "Vé", en = "Passes" }
covers = "products"
method = "use"
without_use = { RAIL = 2, BUSCO = 1 }
valid_from = 2026-01-01
""",
}

FARES = {
    "fare_media.txt": """\
fare_media_id,fare_media_name,fare_media_type
cash,Cash,0
emv,Bank card,3
wallet,Wallet,4
""",
    "rider_categories.txt": """\
rider_category_id,rider_category_name,is_default_fare_category
adult,Adult,1
student,Student,0
elderly,Elderly,0
""",
    "fare_products.txt": """\
fare_product_id,fare_product_name,rider_category_id,fare_media_id,amount,currency
short,Short ride,,,6000,VND
short,Short ride,,cash,7000,VND
long,Long ride,,,9000,VND
long,Long ride,,cash,10000,VND
bus,Bus ride,,,5000,VND
boat,Boat ride,,,15000,VND
""",
    "fare_leg_rules.txt": """\
leg_group_id,network_id,from_area_id,to_area_id,fare_product_id
metro,metro,A,A,short
metro,metro,A,B,short
metro,metro,B,A,short
metro,metro,B,B,short
metro,metro,B,C,short
metro,metro,C,B,short
metro,metro,C,C,short
metro,metro,A,C,long
metro,metro,C,A,long
bus,bus,,,bus
boat,boat,,,boat
""",
}


def row(table: str, **fields: object) -> str:
    """A row of tariff.toml; the name that riders read is made of its id."""
    label = str(fields.get("rule_id") or fields.get("product_id"))
    rows = [f"[[{table}]]", f'name = {{ vi = "{label}", en = "{label}" }}']
    return "\n".join([*rows, *(f"{key} = {_toml(value)}" for key, value in fields.items())]) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, date):
        return value.isoformat()
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def head(version: str, **fields: object) -> str:
    """The head of a tariff.toml; what is not said is as in the little city's first version."""
    found = {
        "version": version,
        "state": "in_force",
        "valid_from": date(2026, 1, 1),
        "currency": "VND",
        "service_day_start": "02:30",
        **fields,
    }
    lines = [f"{key} = {_toml(value)}" for key, value in found.items()]
    return "\n".join(["[tariff]", f'name = {{ vi = "{version}", en = "{version}" }}', *lines]) + "\n"


def version(name: str, *rules: str, metro: str = "", begins: str = "", **heads: object) -> dict[str, str]:
    """A version's files. `metro` adds fields to the metro's tap rule, `begins` to the buses' and boats'."""
    taps = [
        row("tap_rules", rule_id="gates", networks=("metro",), taps="entry_exit", longest_stay_minutes=180) + metro,
        row("tap_rules", rule_id="boarding", networks=("bus", "boat"), taps="entry") + begins,
    ]
    toml = "\n".join([head(name, **heads), *taps, *rules])
    return {f"{name}/tariff.toml": toml, **{f"{name}/{file}": text for file, text in FARES.items()}}


def write_city(folder: Path, *rules: str, files: Mapping[str, str] | None = None, metro: str = "", **heads: object) -> Path:
    """The little city with one version `now`, these rules in it, and these files besides or instead."""
    for name, text in {**NETWORK, **version("now", *rules, metro=metro, **heads), **(files or {})}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def little_tariff(folder: Path, *rules: str, adopt: Sequence[str] = (), **options: object) -> CompiledTariff:
    """The little city's tariff, ready to price."""
    return load_compiled(write_city(folder, *rules, **options), adopt)  # type: ignore[arg-type]


# ---- days and bills


@dataclass(frozen=True)
class Deed:
    """A line of a day."""

    number: int
    at: int
    action: str
    what: str
    media: str
    category: str
    persons: int
    card: str
    by: str | None
    """Who ran the vehicle, where that is not the route's agency."""


def deeds(day: str, zone: str = "+07:00") -> list[Deed]:
    """The lines of a day: `[date] time action where [medium] [category] [x3] [card=…] [by=…]`.

    `board` names a route, `enter` and `leave` a stop, `buy` a product, `cancel` the number of a line. A date holds for the
    lines after it too; without one it is a Tuesday, 3 March 2026."""
    found: list[Deed] = []
    on = TUESDAY
    for number, line in enumerate(filter(None, map(str.strip, day.splitlines())), start=1):
        words = line.split()
        if words[0].count("-") == 2:
            on = words.pop(0)
        clock, action, what, *rest = words
        named = dict(word.split("=") for word in rest if "=" in word)
        plain = [word for word in rest if "=" not in word and word[0] != "x"]
        persons = [int(word[1:]) for word in rest if word[0] == "x"]
        media, category = [*plain, "emv", "adult"][:1] + [*plain[1:], "adult"][:1]
        at = parse_instant(f"{on}T{clock if clock.count(':') == 2 else clock + ':00'}{zone}")
        found.append(
            Deed(
                number,
                at,
                action,
                what,
                media,
                category,
                persons[0] if persons else 1,
                named.get("card", "card"),
                named.get("by"),
            )
        )
    return found


def facts(day: str, zone: str = "+07:00") -> list[Fact]:
    """A day as facts of one traveller, each named by the number of its line."""
    return [_fact(deed) for deed in deeds(day, zone)]


def _fact(deed: Deed) -> Fact:
    place = (str(deed.number), deed.at, "device", "epoch", deed.number)
    if deed.action == "cancel":
        return Cancellation(*place, deed.what, "gate not opened")
    if deed.action == "buy":
        return Purchase(*place, deed.card, deed.media, deed.category, deed.what)
    action, stop, route = _where(deed)
    return Tap(
        *place,
        action,  # type: ignore[arg-type]  # one of the three
        deed.card,
        deed.media,
        deed.category,
        stop,
        route,
        deed.by,
        deed.persons,
    )


def _where(deed: Deed) -> tuple[str, str | None, str | None]:
    """The tap's action, stop and route; `M@A` is a route at a stop, `-` says neither."""
    action = {"enter": "entry", "leave": "exit", "board": "board"}[deed.action]
    if deed.what == "-":
        return action, None, None
    if "@" in deed.what:
        route, _, stop = deed.what.partition("@")
        return action, stop, route
    return (action, None, deed.what) if deed.action == "board" else (action, deed.what, None)


def priced(tariff: CompiledTariff, day: str, until: str = "", zone: str = "+07:00") -> Folded:
    """The fold of a day, as of its last line or `until` (`[date] time`)."""
    found = facts(day, zone)
    as_of = _instant(until, zone) if until else max(fact.at for fact in found)
    return fold(tariff, found, as_of)


def _instant(moment: str, zone: str) -> int:
    return deeds(f"{moment} board -", zone)[0].at


def bill(folded: Folded) -> str:
    """A leg or sale a paragraph-free line: what it costs, then every line with rule, amount and what another bearer pays."""
    lines: dict[str, list[Line]] = defaultdict(list)
    for line in folded.lines:
        lines[line.leg_id].append(line)
    return "\n".join(
        f"{number} {status} {_charge(status, lines[number])}" + "".join(f" | {_in_words(line)}" for line in lines[number])
        for number, status in sorted(
            [
                *((leg.leg_id, leg.status) for leg in folded.legs.values()),
                *((sale.sale_id, "sold") for sale in folded.sales.values()),
            ],
            key=lambda item: int(item[0]),
        )
    )


def _charge(status: str, lines: Iterable[Line]) -> str:
    return "?" if status == "unknown" else str(sum(line.amount for line in lines))


def _in_words(line: Line) -> str:
    paid = f" {line.bearer} {line.funded}" if line.funded else ""
    return f"{line.kind} {line.rule_id} {line.amount}{paid}"


def costs(folded: Folded) -> list[str]:
    """The bill's first words only: `complete 6000` for each leg and sale."""
    return [" ".join(line.split(" | ")[0].split()[1:]) for line in bill(folded).splitlines()]


def dedent(text: str) -> str:
    """An expected bill as tests write it."""
    return "\n".join(filter(None, map(str.strip, text.splitlines())))


# ---- a store of the little city

SERVER_KEY = b"k" * 32
EPOCH = b"\x01" * 8


class Town:
    """A store of a city: its devices sign and send, its riders have cards, its days are closed."""

    def __init__(self, data: Path, city: Path, adopt: Sequence[str] = (), url: str = "") -> None:
        self.data = data
        data.mkdir(parents=True, exist_ok=True)
        self.tariff = load_compiled(city, adopt)
        database = Database(url or sqlite_url(data / "motthe.db"), secret_file(data / "keys" / "at-rest.key"))
        database.create()
        self.opened = Opened(data, database, self.tariff, city, tuple(adopt), SERVER_KEY)
        self.database = database
        self.application = Application(self.tariff, SERVER_KEY)
        self.receipt = Receipt(database, self.application)
        self.epochs: dict[str, tuple[int, bytes]] = {}
        self.sold = 0
        with database.write() as connection:
            registry.enrol_devices(connection, [self._device(name) for name in sorted(self.tariff.network.parties)], 0)

    def let_commands_open_it(self) -> None:
        """Commands find the store's tariff and its key by themselves."""
        (self.data / "keys").mkdir(exist_ok=True)
        (self.data / "keys" / "server.key").write_bytes(SERVER_KEY)
        settings = {"tariff": str(self.opened.tariff_folder), "adopt": ",".join(self.opened.adopted)}
        with self.database.write() as connection:
            registry.save_settings(connection, settings)

    # ---- riders

    def issue(self, *cards: str, category: str = "", kind: str = "postpaid", balance: int = 0) -> None:
        """Cards with an account and a traveller each."""
        record = Record(entitlements=[Entitlement(category, 0, None)] if category else [])
        with self.database.write() as connection:
            travellers.add_accounts(connection, [Account(f"account-{card}", kind, balance) for card in cards])
            travellers.add_tokens(connection, [NewToken(self._token_id(card), card, f"account-{card}") for card in cards])
            travellers.add_travellers(connection, [Traveller(card, f"account-{card}", record, NEVER) for card in cards])

    def take(self, day: str, now: str = "", decision: Decision = Decision.ADMITTED_ALONE) -> list[TapAnswer]:
        """A day's taps arrive, all at once, at `now` (else just after the last of them); purchases are booked before."""
        found = deeds(day)
        arrived = _instant(now, "+07:00") if now else max(deed.at for deed in found) + 1000
        for deed in found:
            if deed.action == "buy":
                self._sell(deed)
        events: dict[str, list[TapEvent]] = defaultdict(list)
        for deed in found:
            if deed.action != "buy":
                device = self._device_of(deed)
                events[device].append(self._event(deed, device, len(events[device]), decision))
        answers: list[TapAnswer] = []
        for outcome in self.receipt.accept_group([self._message(device, sent) for device, sent in events.items()], arrived):
            assert isinstance(outcome, BatchAnswer), outcome
            answers += outcome.answers
        return answers

    def tell(
        self, device: str, sequence: int, now: str, outcome: Outcome = Outcome.GATE_NOT_OPENED, decision: Decision | None = None
    ) -> None:
        """The device tells, at `now`, what came of one of its taps: by default, that it did not let the rider through."""
        at = _instant(now, "+07:00")
        before, _ = self.epochs[device]
        event = TapEvent(
            device_id=DeviceId(device),
            epoch=EPOCH,
            sequence=before + 1,
            kind=TapKind.OUTCOME,
            device_time=at,
            spoken_of=TapPlace(EPOCH, sequence),
            outcome=outcome,
            decision=decision,
            reason="closed" if decision is Decision.REFUSED_ALONE else None,
        )
        (accepted,) = self.receipt.accept_group([self._message(device, [event])], at)
        assert isinstance(accepted, BatchAnswer), accepted
        assert [answer.result for answer in accepted.answers] == ["ACCEPTED"]

    def balance(self, card: str) -> int:
        """What an account holds, or minus what it owes."""
        with self.database.read() as connection:
            return travellers.find_accounts(connection, [f"account-{card}"])[f"account-{card}"].balance

    # ---- days

    def close(self, on: str, despite: str = "") -> dict[str, bytes]:
        """The documents of a date's close, which closes what is open before it too."""
        return self.close_all(on, despite)[-1].documents

    def close_all(self, on: str, despite: str = "") -> list[Closed]:
        """Every close that a close makes."""
        return clear_date(self.opened, on, despite=despite)

    def audit(self, on: str) -> AuditReport:
        """What the auditor says of the books at a date's end."""
        with self.database.read() as connection:
            return audit_store(
                connection, self.opened.tariff_folder, self.opened.adopted, self.tariff, SERVER_KEY, end_of(self.tariff, on)
            )

    def rows(self, statement: str) -> list[tuple[object, ...]]:
        """What a query of the store gives."""
        with self.database.read() as connection:
            return [tuple(found) for found in connection.execute(sql(statement))]

    def change(self, statement: str) -> None:
        """Change the store behind everybody's back."""
        with self.database.write() as connection:
            connection.execute(sql(statement))

    def everything(self) -> dict[str, list[tuple[object, ...]]]:
        """Every row of every table that money is in."""
        tables = ("lines", "postings", "closes", "pool_shares", "settlements", "statements", "accounts", "travellers")
        return {table: sorted(self.rows(f"select * from {table}"), key=repr) for table in tables}

    # ---- devices

    def _device(self, operator: str) -> Device:
        public = self._key(operator).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return Device(f"dev-{operator}", operator, public, None)

    def _key(self, operator: str) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(operator.encode().ljust(32, b"."))

    def _token(self, card: str) -> bytes:
        return card.encode().ljust(16, b".")

    def _token_id(self, card: str) -> str:
        return stored_token(SERVER_KEY, self._token(card))

    def _device_of(self, deed: Deed) -> str:
        _, stop, route = _where(deed)
        return f"dev-{deed.by or self.tariff.operator_of(route, stop) or 'BUSCO'}"

    def _event(self, deed: Deed, device: str, ahead: int, decision: Decision) -> TapEvent:
        action, stop, route = _where(deed)
        sequence, _ = self.epochs.get(device, (0, b""))
        return TapEvent(
            device_id=DeviceId(device),
            epoch=EPOCH,
            sequence=sequence + ahead + 1,
            kind={"entry": TapKind.ENTRY, "exit": TapKind.EXIT, "board": TapKind.BOARD}[action],
            token=self._token(deed.card),
            token_key_version=1,
            medium=deed.media,
            stop_id=StopId(stop) if stop else None,
            route_id=RouteId(route) if route else None,
            persons=deed.persons,
            device_time=deed.at,
            decision=decision,
        )

    def _message(self, device: str, events: list[TapEvent]) -> bytes:
        epoch = events[0].epoch
        sequence, before = self.epochs.get(device, (0, genesis_head(device, epoch, None)))
        taps = [encode_tap(event) for event in events]
        header = header_for(
            device_id=DeviceId(device),
            epoch=epoch,
            first_sequence=sequence + 1,
            previous_head=before,
            taps=taps,
            sent_at=events[-1].device_time,
        )
        self.epochs[device] = (sequence + len(taps), heads_after(before, taps)[-1])
        return seal(self._key(device.removeprefix("dev-")), header, taps)

    def _sell(self, deed: Deed) -> None:
        self.sold += 1
        fact = Purchase(
            f"shop/{self.sold}", deed.at, "shop", "-", self.sold, self._token_id(deed.card), deed.media, deed.category, deed.what
        )
        with self.database.write() as connection:
            self.application.purchase(connection, deed.card, fact, deed.at)
