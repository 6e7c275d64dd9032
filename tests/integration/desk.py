"""A store of Ho Chi Minh City under the proposal of March 2026, and devices whose messages are built by hand.

`Desk` is the server's side: a real SQLite file, devices that are enrolled and cards with an account each. `Stream` is one
epoch of one device: taps are written into it and any part of it can be sealed into a message, also a wrong one."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fastapi import FastAPI
from sqlalchemy import text

from fare_engine.answers import BatchAnswer, TapAnswer
from fare_engine.application import Application
from fare_engine.booking import Entitlement, Record
from fare_engine.errors import EnvelopeError
from fare_engine.ids import DeviceId, RouteId, StopId
from fare_engine.pricing.state import NEVER
from fare_engine.receipt import Receipt
from fare_engine.service_day import parse_instant
from fare_engine.store import registry, travellers
from fare_engine.store.database import Database
from fare_engine.store.registry import Device
from fare_engine.store.schema import metadata
from fare_engine.store.travellers import Account, NewToken, Traveller
from fare_engine.tap_format import (
    BatchHeader,
    Decision,
    Outcome,
    Predecessor,
    TapEvent,
    TapKind,
    TapPlace,
    encode_tap,
    genesis_head,
    header_for,
    heads_after,
    seal,
)
from fare_engine.tariff.compile import CompiledTariff
from fare_engine.tokens import stored_token

ADOPTED = ("proposal-2026-03",)
DAY = "2026-03-02"
SERVER_KEY = b"k" * 32
AT_REST_KEY = b"r" * 32
DEVICES = {"gate-1": "OP-HURC1", "gate-2": "OP-HURC1", "bus-1": "OP-FUTA", "bus-2": "OP-SAIGONBUS"}
BEN_THANH, TAN_CANG, SUOI_TIEN = "L1-01", "L1-05", "L1-14"
BUS_FARE, METRO_SHORT, METRO_LONG = 6000, 6000, 19000
"""Route 1, Bến Thành – Tân Cảng, Bến Thành – Suối Tiên, for an adult with a bank card."""
BUS_CASH = 7000
"""Route 1 for cash."""


def at(clock: str, day: str = DAY) -> int:
    """An instant of a day, local time, in milliseconds UTC."""
    return parse_instant(f"{day}T{clock if clock.count(':') == 2 else clock + ':00'}+07:00")


def key_of(device_id: str) -> Ed25519PrivateKey:
    """A device's key."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(device_id.encode()).digest())


def terminal_token(card: str) -> bytes:
    """What a terminal makes of a card."""
    return hashlib.sha256(card.encode()).digest()[:16]


class Stream:
    """One epoch of one device."""

    def __init__(self, device_id: str, epoch: int = 1, predecessor: Predecessor | None = None) -> None:
        self.device_id = DeviceId(device_id)
        self.epoch = epoch.to_bytes(8, "big")
        self.predecessor = predecessor
        self.taps: list[bytes] = []
        self.sent = 0

    # ---- what happens at the device

    def board(self, clock: str, card: str = "anna", route: str = "1", **fields: object) -> TapPlace:
        """A card at the door of a bus."""
        return self.add(TapKind.BOARD, at(clock), card, route_id=RouteId(route), **fields)

    def enter(self, clock: str, card: str = "anna", stop: str = BEN_THANH, **fields: object) -> TapPlace:
        """A card at a station's way in."""
        return self.add(TapKind.ENTRY, at(clock), card, stop_id=StopId(stop), **fields)

    def leave(self, clock: str, card: str = "anna", stop: str = SUOI_TIEN, **fields: object) -> TapPlace:
        """A card at a station's way out."""
        return self.add(TapKind.EXIT, at(clock), card, stop_id=StopId(stop), **fields)

    def add(self, kind: TapKind, instant: int, card: str, **fields: object) -> TapPlace:
        """A tap; asked online with a bank card, if nothing else is said."""
        values: dict[str, object] = {
            "token": terminal_token(card),
            "token_key_version": 1,
            "medium": "emv",
            "decision": Decision.ASKED_ONLINE,
            **fields,
        }
        return self._append(TapEvent(**self._place(), kind=kind, device_time=instant, **values))  # type: ignore[arg-type]

    def outcome(self, clock: str, place: TapPlace, outcome: Outcome, decision: Decision | None = None) -> TapPlace:
        """A record of how an earlier tap ended."""
        reason = "deny_list" if decision is Decision.REFUSED_ALONE else None
        return self._append(
            TapEvent(
                **self._place(),
                kind=TapKind.OUTCOME,
                device_time=at(clock),
                spoken_of=place,
                outcome=outcome,
                decision=decision,
                reason=reason,
            )
        )

    def raw(self, data: bytes) -> TapPlace:
        """Bytes that may be no tap."""
        self.taps.append(data)
        return TapPlace(self.epoch, len(self.taps))

    def _place(self) -> dict[str, object]:
        return {"device_id": self.device_id, "epoch": self.epoch, "sequence": len(self.taps) + 1}

    def _append(self, event: TapEvent) -> TapPlace:
        return self.raw(encode_tap(event))

    # ---- messages

    def head(self, sequence: int) -> bytes:
        """The chain's value after a sequence."""
        return heads_after(genesis_head(self.device_id, self.epoch, self.predecessor), self.taps[:sequence])[-1]

    def header(self, first: int, last: int) -> BatchHeader:
        """The header of a part."""
        return header_for(
            device_id=self.device_id,
            epoch=self.epoch,
            first_sequence=first,
            previous_head=self.head(first - 1),
            taps=self.taps[first - 1 : last],
            sent_at=at("12:00"),
            predecessor=self.predecessor if first == 1 else None,
        )

    def message(self, first: int = 1, last: int | None = None) -> bytes:
        """The taps from one sequence to another, signed."""
        last = len(self.taps) if last is None else last
        return seal(key_of(self.device_id), self.header(first, last), self.taps[first - 1 : last])

    def new(self) -> bytes:
        """What was not sent yet, signed."""
        first, self.sent = self.sent + 1, len(self.taps)
        return self.message(first)

    def as_predecessor(self) -> Predecessor:
        """How this epoch ended."""
        return Predecessor(self.epoch, len(self.taps), self.head(len(self.taps)))


class Desk:
    """The server's side without HTTP: a receipt over a real database file."""

    def __init__(self, url: str, tariff: CompiledTariff) -> None:
        """Over a database that `equip` made."""
        self.url = url
        self.tariff = tariff
        self.database = Database(url, AT_REST_KEY)
        self.application = Application(tariff, SERVER_KEY)
        self.receipt = Receipt(self.database, self.application)

    def restart(self) -> None:
        """Everything anew over the same database, as after the process ended."""
        self.database.dispose()
        self.database = Database(self.url, AT_REST_KEY)
        self.application = Application(self.tariff, SERVER_KEY)
        self.receipt = Receipt(self.database, self.application)

    # ---- riders

    def issue(self, *cards: str, kind: str = "postpaid", balance: int = 0, category: str = "") -> None:
        """Cards, each with an account and a traveller of the same name."""
        issue(self.database, SERVER_KEY, *cards, kind=kind, balance=balance, category=category)

    def block(self, card: str, clock: str) -> None:
        """A lost card."""
        with self.database.write() as connection:
            travellers.block_token(connection, stored_token(SERVER_KEY, terminal_token(card)), at(clock))

    def balance(self, card: str) -> int:
        """What an account holds, or minus what it owes."""
        with self.database.read() as connection:
            return travellers.find_accounts(connection, [card])[card].balance

    # ---- messages

    def send(self, *messages: bytes, now: str | int = "12:00") -> list[BatchAnswer | EnvelopeError]:
        """Messages that arrive together."""
        return self.receipt.accept_group(messages, at(now) if isinstance(now, str) else now)

    def taken(self, message: bytes, now: str | int = "12:00") -> BatchAnswer:
        """The answer to one message that must be taken."""
        (found,) = self.send(message, now=now)
        assert isinstance(found, BatchAnswer), found
        return found

    def refused(self, message: bytes, now: str | int = "12:00") -> EnvelopeError:
        """The refusal of one message that must be refused."""
        (found,) = self.send(message, now=now)
        assert isinstance(found, EnvelopeError), found
        return found

    def tapped(self, stream: Stream, now: str | int = "12:00") -> TapAnswer:
        """The answer to the newest tap of a stream."""
        return self.taken(stream.new(), now).answers[-1]

    # ---- what is held

    def rows(self, statement: str) -> list[tuple[object, ...]]:
        """What a query of the store gives."""
        return rows(self.database, statement)

    def everything(self, but: tuple[str, ...] = ()) -> dict[str, list[tuple[object, ...]]]:
        """Every row of every table of the engine."""
        return {name: sorted(self.rows(f"select * from {name}"), key=repr) for name in metadata.tables if name not in but}

    def money(self) -> dict[str, list[tuple[object, ...]]]:
        """Every row in which money stands."""
        return {name: sorted(self.rows(f"select * from {name}"), key=repr) for name in ("lines", "postings", "accounts")}

    def quarantined(self) -> list[tuple[object, ...]]:
        """(device, sequence, reason) of what is set aside."""
        return self.rows("select device_id, sequence, reason from quarantine order by device_id, epoch, sequence")

    def check_books(self) -> None:
        """See `check_books`."""
        check_books(self.database)


def equip(url: str, server_key: bytes = SERVER_KEY, at_rest_key: bytes = AT_REST_KEY) -> None:
    """A store with the devices and the cards anna, binh and chi."""
    database = Database(url, at_rest_key)
    database.create()
    fill(database, server_key)
    database.dispose()


def fill(database: Database, server_key: bytes = SERVER_KEY) -> None:
    """The devices and cards into an empty store."""
    with database.write() as connection:
        registry.enrol_devices(connection, [_device(name, owner) for name, owner in DEVICES.items()], at("00:00"))
    issue(database, server_key, "anna", "binh", "chi")


def _device(device_id: str, operator_id: str) -> Device:
    public = key_of(device_id).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return Device(device_id, operator_id, public, None)


def issue(
    database: Database, server_key: bytes, *cards: str, kind: str = "postpaid", balance: int = 0, category: str = ""
) -> None:
    """Cards in a store, each with an account and a traveller of the same name."""
    entitlements = [Entitlement(category, 0, None)] if category else []
    with database.write() as connection:
        travellers.add_accounts(connection, [Account(card, kind, balance) for card in cards])
        travellers.add_tokens(
            connection,
            [NewToken(stored_token(server_key, terminal_token(card)), card, card, terminal_token(card)) for card in cards],
        )
        travellers.add_travellers(connection, [Traveller(card, card, Record(entitlements=entitlements), NEVER) for card in cards])


def rows(database: Database, statement: str) -> list[tuple[object, ...]]:
    """What a query of a store gives."""
    with database.read() as connection:
        return [tuple(row) for row in connection.execute(text(statement))]


def check_books(database: Database, opening: dict[str, int] | None = None) -> None:
    """The books hold together: each line's money is posted once, nothing is posted that no line or close made, and each
    account's balance is what was put on it less its lines. `opening` names accounts that began with money outside the books."""
    ours = "code not in ('SETTLED', 'COMMISSION', 'NETTED', 'TOPPED_UP', 'WAIVED')"
    posted = dict(rows(database, f"select transaction_id, sum(amount) from postings where {ours} group by 1"))
    lines = dict(rows(database, "select transaction_id, abs(amount) + abs(funded) from lines"))
    assert {key: amount for key, amount in lines.items() if amount} == posted
    twice = rows(
        database,
        "select traveller_id, line_id from lines group by traveller_id, line_id "
        "having sum(1 - 2 * (generation % 2)) not in (0, 1) or max(generation) + 1 != count(*)",
    )
    assert twice == []
    spent: dict[object, int] = dict(rows(database, "select payer, sum(amount) from lines group by 1"))
    owed: dict[object, int] = dict(
        rows(
            database,
            "select account, sum(amount) from (select debit account, amount from postings "
            "union all select credit, -amount from postings) group by 1",
        )
    )
    put_on: dict[object, int] = dict(
        rows(database, "select credit, sum(amount) from postings where code = 'TOPPED_UP' group by 1")
    )
    balances = dict(rows(database, "select account_id, balance from accounts"))
    for account, balance in balances.items():
        payer = account if str(account).startswith("collector:") else f"rider:{account}"
        assert balance == (opening or {}).get(str(account), 0) - owed.get(payer, 0), account
        assert owed.get(payer, 0) == spent.get(payer, 0) - put_on.get(payer, 0), account


@contextmanager
def serving(app: FastAPI, port: int = 0) -> Iterator[int]:
    """An application behind a real port of this machine, in a thread; the port."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", access_log=False, ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while not server.started:
            assert thread.is_alive(), "the server ended while it started"
            assert time.monotonic() < deadline, "the server did not start within 20 s"
            time.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)
