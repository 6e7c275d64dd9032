"""Whether the store still says what was written: every row against its own hash, and what is derived from messages and
lines against these. Whatever does not hold is a finding that names its table and row; nothing raises over what it reads.

Decides what can be known to have changed from the database alone, without the code that wrote it: messages by their
signatures and chains, streams and facts by the messages, what is booked by the lines, postings and balances by the lines.
Leaves to clearing the seals of closed dates, settlements and statements. What no copy, hash or sum covers is listed in
docs/operations.md. It reads everything once, in streams, and keeps a few words for each tap."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from itertools import groupby
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy import Column, ColumnElement, Connection, Row, Table, func, select

from fare_engine import answers, booking, ledger
from fare_engine.answers import TapAnswer
from fare_engine.booking import Booked, Record
from fare_engine.facts import Cancellation, Fact, Tap
from fare_engine.ids import tap_id
from fare_engine.pricing.lines import Line, line_id
from fare_engine.publications import Publisher, open_publication
from fare_engine.rides import Ride
from fare_engine.service_day import to_day
from fare_engine.store import receipts, registry, schema, travellers
from fare_engine.store.database import bytewise
from fare_engine.store.hashes import HASHERS, batch_hash
from fare_engine.store.receipts import StreamRow
from fare_engine.store.registry import DeviceKey
from fare_engine.store.travellers import CASH, Token
from fare_engine.tap_format import (
    Batch,
    Decision,
    Outcome,
    Predecessor,
    TapEvent,
    TapFormatError,
    TapKind,
    genesis_head,
    open_message,
)
from fare_engine.tokens import stored_token
from fare_engine.windows import open_again

KINDS = ("prepaid", "postpaid", "collector")
"""Kinds of account."""
_ACTIONS = {TapKind.ENTRY: "entry", TapKind.EXIT: "exit", TapKind.BOARD: "board"}
_CANCELLED = {Outcome.GATE_NOT_OPENED: "gate not opened", Outcome.CANCELLED: "cancelled"}
_STREAM = {"yield_per": 2000}
_WITH_LINES = frozenset(code.value for code in ledger.CODES.values())
"""Codes of postings that a line made."""


class Finding(msgspec.Struct, frozen=True):
    """Something that does not hold: in which table, at which row (its primary key), and what is wrong."""

    table: str
    key: str
    what: str

    def __str__(self) -> str:
        return f"{self.table} {self.key}: {self.what}"


class Verified(msgspec.Struct, frozen=True):
    """What was looked at (rows by table, taps) and what does not hold."""

    rows: dict[str, int]
    taps: int
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Known:
    """What is not in the database and is needed to check it."""

    server_key: bytes
    default_category: str
    """The tariff's rider category of whoever has no other."""
    publishers: Mapping[bytes, Publisher]
    """Whose publications are right, by key id."""


def verify(connection: Connection, known: Known) -> Verified:
    """Check everything that the database itself allows to check, as of one instant."""
    check = _Check(connection, known)
    with _readable_text(connection):
        check.run()
    return Verified(check.rows, check.taps, tuple(check.findings))


@dataclass(slots=True)
class _Expected:
    """A fact that the messages tell: whose record it is in, what it says (hashed), and whether the service refused it."""

    owner: str
    digest: bytes
    refused: bool = False


@dataclass(slots=True)
class _Position:
    """How far the messages of a stream lead, and the chain's value there; None after one that could not be read."""

    through: int
    head: bytes | None


@dataclass(slots=True)
class _Check:
    connection: Connection
    known: Known
    findings: list[Finding] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)
    taps: int = 0
    facts: dict[str, _Expected] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    """Tap → whose it is."""
    outcomes: list[TapEvent] = field(default_factory=list)
    quarantined: dict[str, tuple[str, bool]] = field(default_factory=dict)
    """Tap in quarantine → (why, whether it was released)."""

    def run(self) -> None:
        """Every check, each by itself: one that cannot go on is a finding and the next one begins."""
        steps: tuple[tuple[str, Callable[[], None]], ...] = (
            ("database", self._check_file),
            *((name, self._hash_check(name)) for name in sorted(HASHERS)),
            ("batches", self._check_messages),
            ("travellers", self._check_records),
            ("postings", self._check_postings),
            ("accounts", self._check_accounts),
            ("publications", self._check_publications),
        )
        for table, step in steps:
            with self._guarded(table, "-"), _apart(self.connection):
                step()

    def _find(self, table: str, key: object, what: str) -> None:
        self.findings.append(Finding(table, str(key), what))

    @contextmanager
    def _guarded(self, table: str, key: object) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a changed row breaks: that it breaks is what was asked for
            self._find(table, key, f"cannot be read: {type(error).__name__}: {' '.join(str(error).split())[:300]}")

    def _stream(self, table: Table, *order: ColumnElement[Any]) -> Iterator[Row[Any]]:
        with self.connection.execute(select(table).order_by(*order), execution_options=_STREAM) as rows:
            yield from rows

    def _counted(self, table: Table, *order: ColumnElement[Any]) -> Iterator[Row[Any]]:
        """All rows of a table, counted: once for each table."""
        self.rows[table.name] = 0
        for row in self._stream(table, *order):
            self.rows[table.name] += 1
            yield row

    def _bytewise(self, column: Column[Any]) -> ColumnElement[Any]:
        return bytewise(self.connection, column)

    # ---- the file, and each row by its own hash

    def _check_file(self) -> None:
        if self.connection.dialect.name != "sqlite":
            return
        for (found,) in self.connection.exec_driver_sql("PRAGMA integrity_check").all():
            if found != "ok":
                self._find("database", "file", " ".join(str(found).split()))

    def _hash_check(self, name: str) -> Callable[[], None]:
        table = schema.metadata.tables[name]
        hasher = HASHERS[name]

        def check() -> None:
            for row in self._counted(table, *table.primary_key.columns):
                key = "/".join(_shown(row._mapping[column.name]) for column in table.primary_key)
                with self._guarded(name, key):
                    self._compare_hash(name, key, row.row_hash, hasher.of(row._asdict()))

        return check

    def _compare_hash(self, table: str, key: object, held: bytes | None, made: bytes) -> None:
        if held is None:
            self._find(table, key, "has no hash")
        elif held != made:
            self._find(table, key, "is not the row that was written: its hash is another one")

    # ---- messages, streams, answers

    def _check_messages(self) -> None:
        """Each message by its signature, its place in its stream, and its answers; and what facts they tell."""
        streams = {(stream.device_id, stream.epoch): stream for stream in receipts.all_streams(self.connection)}
        self._read_quarantine()
        reader = _Reader(self.connection, self.known)
        positions: dict[tuple[str, str], _Position] = {}
        answered: set[str] = set()
        table = schema.batches
        order = (self._bytewise(table.c.device_id), self._bytewise(table.c.epoch), table.c.first_sequence)
        for row in self._counted(table, *order):
            place = (row.device_id, row.epoch)
            position = positions.setdefault(place, _Position(0, None if row.first_sequence != 1 else b""))
            with self._guarded("batches", row.batch_id):
                self._check_message(row, reader, position, streams.get(place), answered)
        self.rows["streams"] = len(streams)
        for place, stream in streams.items():
            self._check_stream(stream, positions.get(place))
        for name in sorted(self.quarantined.keys() - answered):
            self._find("quarantine", name, "no message has this tap with such an answer")
        self._tell_outcomes()

    def _check_message(
        self, row: Row[Any], reader: _Reader, position: _Position, stream: StreamRow | None, answered: set[str]
    ) -> None:
        through, head = position.through, position.head
        position.through, position.head = row.last_sequence, None  # if this one cannot be read, those after it still are
        message = receipts.opened_message(self.connection, row)
        self._compare_hash("batches", row.batch_id, row.row_hash, batch_hash(row._asdict(), message))
        batch = reader.open(row, message)
        header = batch.header
        if (header.device_id, header.epoch_hex) != (row.device_id, row.epoch):
            self._find("batches", row.batch_id, f"holds a message of {header.device_id}/{header.epoch_hex}")
        if not header.first_sequence <= row.first_sequence <= row.last_sequence == header.last_sequence:
            self._find("batches", row.batch_id, "its sequences are not those of its message")
            return
        if row.first_sequence != through + 1:
            self._find("batches", row.batch_id, f"begins at {row.first_sequence}, where {through + 1} follows")
        elif head and batch.head_after(through) != head:
            self._find("batches", row.batch_id, "does not continue the chain of the message before it")
        position.head = header.head
        if stream is None:
            self._find("batches", row.batch_id, f"no stream {row.device_id}/{row.epoch}")
        elif header.first_sequence == 1 and header.predecessor != _predecessor(stream):
            self._find("streams", f"{row.device_id}/{row.epoch}", "its predecessor is not the one that the device named")
        self._check_answers(row, batch, reader, answered)

    def _check_stream(self, stream: StreamRow, position: _Position | None) -> None:
        key = f"{stream.device_id}/{stream.epoch}"
        through = position.through if position is not None else 0
        with self._guarded("streams", key):
            if stream.acknowledged_through != through:
                self._find("streams", key, f"acknowledged through {stream.acknowledged_through}, messages lead to {through}")
            if position is None:
                head: bytes | None = genesis_head(stream.device_id, bytes.fromhex(stream.epoch), _predecessor(stream))
            else:
                head = position.head
            if head is not None and stream.head != head:
                self._find("streams", key, "its head is not where its messages lead")

    def _check_answers(self, row: Row[Any], batch: Batch, reader: _Reader, answered: set[str]) -> None:
        given = answers.decode_stored(row.answers)
        if [answer.sequence for answer in given] != list(range(row.first_sequence, row.last_sequence + 1)):
            self._find("batches", row.batch_id, "has not one answer for each of its taps")
            return
        for answer in given:
            self.taps += 1
            name = tap_id(row.device_id, row.epoch, answer.sequence)
            set_aside = self.quarantined.get(name)
            if (answer.result == "QUARANTINED") != (set_aside is not None):
                self._find(
                    "batches", row.batch_id, f"{name} was answered {answer.result}, which the quarantine does not bear out"
                )
            elif set_aside is not None and answer.reason != set_aside[0]:
                self._find("quarantine", name, f"set aside for {set_aside[0]}, but answered {answer.reason}")
            if set_aside is not None:
                answered.add(name)
            self._tell(batch, answer, reader, set_aside)

    def _read_quarantine(self) -> None:
        for row in self.connection.execute(select(schema.quarantine)):
            name = tap_id(row.device_id, row.epoch, row.sequence)
            self.quarantined[name] = (row.reason, row.released_at is not None)

    # ---- what the messages tell of travellers

    def _tell(self, batch: Batch, answer: TapAnswer, reader: _Reader, set_aside: tuple[str, bool] | None) -> None:
        """Note the fact that a tap is, if it acts, and whose it is in any case: a record may speak of it later."""
        try:
            event = batch.decode(answer.sequence)
        except TapFormatError:
            return  # it must be in quarantine, which was checked
        acts = set_aside is None or set_aside[1]
        if event.kind is TapKind.OUTCOME:
            self.outcomes += [event] if acts else []
            return
        owner = reader.owner_of(event)
        if owner is None:
            if acts:
                self._find("tokens", event.tap_id, "a tap that was taken, but its token is not known")
            return
        self.owners[event.tap_id] = owner
        if acts and event.kind in _ACTIONS:
            refused = event.decision is Decision.REFUSED_ALONE or (set_aside is None and answer.decision == "refused")
            self.facts[event.tap_id] = _Expected(owner, _digest(reader.fact_of(event)), refused)

    def _tell_outcomes(self) -> None:
        """Records of how taps ended: one lets a refused tap act, any other is a fact by itself."""
        for event in self.outcomes:
            spoken_of = event.spoken_of_id or ""
            if event.outcome is Outcome.TIMED_OUT and event.decision is Decision.ADMITTED_ALONE:
                if spoken_of in self.facts:
                    self.facts[spoken_of].refused = False
            elif spoken_of in self.owners:
                reason = _CANCELLED.get(event.outcome or Outcome.TIMED_OUT, "kept out by the terminal")
                place = (event.device_id, event.epoch.hex(), event.sequence)
                told = Cancellation(event.tap_id, event.event_time_ms, *place, spoken_of, reason)
                self.facts[event.tap_id] = _Expected(self.owners[spoken_of], _digest(told))
            else:
                self._find("batches", event.tap_id, f"speaks of {spoken_of}, which is not held")

    # ---- travellers' records: their facts by the messages, what is booked by the lines

    def _check_records(self) -> None:
        table = schema.travellers
        lines = _Groups(self._stream(schema.lines, *self._line_order()), "traveller_id")
        legs = _Groups(self._stream(schema.legs, *self._leg_order()), "traveller_id")
        shut = schema.closed_windows
        windows = _Groups(self._stream(shut, self._bytewise(shut.c.traveller_id), shut.c.ends), "traveller_id")
        for row in self._stream(table, self._bytewise(table.c.traveller_id)):
            for traveller_id in windows.before(row.traveller_id):
                self._find("closed_windows", traveller_id, "windows of a traveller that there is not")
            for traveller_id in lines.before(row.traveller_id):
                self._find("lines", traveller_id, "lines of a traveller that there is not")
            for traveller_id in legs.before(row.traveller_id):
                self._find("legs", traveller_id, "legs of a traveller that there is not")
            with self._guarded("travellers", row.traveller_id):
                record = booking.decode(row.record)
                closed = [booking.decode(window.record) for window in windows.of(row.traveller_id)]
                if [one.as_of for one in closed] != [one.since for one in (*closed[1:], record)][: len(closed)]:
                    self._find("closed_windows", row.traveller_id, "are not one after the other up to the record")
                record = open_again(closed, record) if closed else record
                self._check_facts(row.traveller_id, record)
                self._check_lines(row.traveller_id, record, lines.of(row.traveller_id))
                self._check_legs(row.traveller_id, record, legs.of(row.traveller_id))
        for traveller_id in windows.before(None):
            self._find("closed_windows", traveller_id, "windows of a traveller that there is not")
        for traveller_id in lines.before(None):
            self._find("lines", traveller_id, "lines of a traveller that there is not")
        for traveller_id in legs.before(None):
            self._find("legs", traveller_id, "legs of a traveller that there is not")
        for name, expected in sorted(self.facts.items()):
            self._find("travellers", expected.owner, f"{name} was received and is not in the record")

    def _line_order(self) -> tuple[ColumnElement[Any], ...]:
        table = schema.lines
        return (self._bytewise(table.c.traveller_id), self._bytewise(table.c.line_id), table.c.generation, table.c.row_number)

    def _leg_order(self) -> tuple[ColumnElement[Any], ...]:
        table = schema.legs
        return (self._bytewise(table.c.traveller_id), self._bytewise(table.c.leg_id), table.c.generation, table.c.row_number)

    def _check_facts(self, traveller_id: str, record: Record) -> None:
        for fact, refused in [*((fact, False) for fact in record.facts), *((fact, True) for fact in record.refused)]:
            if not isinstance(fact, Tap | Cancellation):
                continue
            expected = self.facts.pop(fact.fact_id, None)
            if expected is None:
                self._find("travellers", traveller_id, f"{fact.fact_id} is in the record, but no message tells it")
            elif expected != _Expected(traveller_id, _digest(fact), refused):
                self._find("travellers", traveller_id, f"{fact.fact_id} is in the record otherwise than the messages tell it")

    def _check_lines(self, traveller_id: str, record: Record, rows: Iterable[Row[Any]]) -> None:
        """Each line's movements are booked, reversed, booked, … and the last is what the record has."""
        left = dict(record.booked)
        for name, moved in groupby(rows, key=lambda row: row.line_id):
            movements = list(moved)
            fault = _fault_of(traveller_id, name, movements)
            booked = left.pop(name, None)
            if fault is None and (booked is None or not _same(booked, movements[-1])):
                fault = "is not what the traveller's record has booked"
            if fault is not None:
                self._find("lines", f"{movements[-1].row_number} ({traveller_id}, line {name})", fault)
        for name in sorted(left):
            self._find("travellers", traveller_id, f"has the line {name} booked, which is not among the lines")

    def _check_legs(self, traveller_id: str, record: Record, rows: Iterable[Row[Any]]) -> None:
        """Each leg is booked, reversed, booked, … and the last is what the record has."""
        left = dict(record.rides)
        for leg_id, moved in groupby(rows, key=lambda row: row.leg_id):
            movements = list(moved)
            booked = left.pop(leg_id, None)
            last = movements[-1]
            if [row.generation for row in movements] != list(range(len(movements))):
                self._find("legs", f"{last.row_number} ({leg_id})", "is not booked and reversed by turns")
            elif booked is None or booked.generation != last.generation or booked.ride != _ride_of(last):
                self._find("legs", f"{last.row_number} ({leg_id})", "is not what the traveller's record has booked")
        for leg_id in sorted(left):
            self._find("travellers", traveller_id, f"has the leg {leg_id} booked, which is not among the legs")

    # ---- postings by the lines, balances by the postings

    def _check_postings(self) -> None:
        lines, postings = schema.lines, schema.postings
        of_lines = self._stream(lines, self._bytewise(lines.c.transaction_id))
        groups = _Groups(self._stream(postings, self._bytewise(postings.c.transaction_id), postings.c.number), "transaction_id")
        before = None
        for row in of_lines:
            for transaction_id, rows in groups.before_with_rows(row.transaction_id):
                self._check_without_line(transaction_id, rows)
            if row.transaction_id == before:
                self._find("lines", row.row_number, f"the transaction {before} stands twice")
                continue
            before = row.transaction_id
            with self._guarded("lines", row.row_number):
                found = [_posted(posting) for posting in groups.of(row.transaction_id)]
                if found != _wanted(row):
                    self._find("postings", row.transaction_id, f"are not what the line {row.row_number} posts")
        for transaction_id, rows in groups.before_with_rows(None):
            self._check_without_line(transaction_id, rows)

    def _check_without_line(self, transaction_id: str, rows: Iterable[Row[Any]]) -> None:
        if any(row.code in _WITH_LINES for row in rows):
            self._find("postings", transaction_id, "no line makes this transaction")

    def _check_accounts(self) -> None:
        """A balance is what was put on the account less what it was charged; accounts that are named are there."""
        owed: dict[str, int] = {}
        table = schema.postings
        for column, sign in ((table.c.debit, 1), (table.c.credit, -1)):
            statement = select(column, func.sum(table.c.amount)).where(column.like("rider:%")).group_by(column)
            for name, amount in self.connection.execute(statement):
                account = name.removeprefix("rider:")
                owed[account] = owed.get(account, 0) + sign * int(amount)
        for row in self._counted(schema.accounts):
            expected = -owed.pop(row.account_id, 0)
            if row.balance != expected:
                self._find("accounts", row.account_id, f"has a balance of {row.balance}, its postings give {expected}")
            if row.kind not in KINDS or (row.kind == "collector") != (row.account_id == CASH):
                self._find("accounts", row.account_id, f"is of no kind that it may be: {row.kind!r}")
        for account in sorted(owed):
            self._find("accounts", account, "there are postings of it, but no such account")
        for table_name, column in (("travellers", schema.travellers.c.account_id), ("tokens", schema.tokens.c.account_id)):
            missing = select(column).where(column.not_in(select(schema.accounts.c.account_id))).distinct()
            for (account,) in self.connection.execute(missing).all():
                self._find("accounts", account, f"is named in {table_name}, but there is no such account")

    # ---- what was signed for terminals

    def _check_publications(self) -> None:
        for row in self._counted(schema.publications):
            key = f"{row.kind}/{row.serial}"
            with self._guarded("publications", key):
                found = open_publication(row.message, self.known.publishers)
                if (found.kind.value, found.serial, found.made_at) != (row.kind, row.serial, row.made_at):
                    self._find("publications", key, "is not what was signed under it")


class _Reader:
    """Opens messages and says what their taps are facts of, by what the store knows of devices, vehicles and tokens."""

    def __init__(self, connection: Connection, known: Known) -> None:
        self.connection = connection
        self.known = known
        self.tokens: dict[str, Token] = {token.token_id: token for token in travellers.all_tokens(connection)}
        self.vehicles = registry.list_vehicles(connection)
        self.operators = {device.device_id: device.operator_id for device in registry.list_devices(connection)}
        self._keys: dict[str, list[DeviceKey]] = {}

    def open(self, row: Row[Any], message: bytes) -> Batch:
        """The batch, if a key of its device signed it that held when it was received: EnvelopeError otherwise. That a key was
        known by then is not asked, for two processes' clocks may differ."""
        if row.device_id not in self._keys:
            self._keys[row.device_id] = registry.list_keys(self.connection, row.device_id)
        held = [key for key in self._keys[row.device_id] if key.valid_to is None or row.received_at < key.valid_to]
        return open_message(message, lambda _: [Ed25519PublicKey.from_public_bytes(key.public_key) for key in held])

    def owner_of(self, event: TapEvent) -> str | None:
        """Whose a tap is; None for a token that is not known."""
        token = self.tokens.get(self._token_id(event))
        return token.traveller_at(event.event_time_ms) if token is not None else None

    def fact_of(self, event: TapEvent) -> Tap:
        """The tap as a traveller's record holds it."""
        ran = [operator for since, operator in self.vehicles.get(event.vehicle_id or "", ()) if since <= event.event_time_ms]
        return Tap(
            event.tap_id,
            event.event_time_ms,
            event.device_id,
            event.epoch.hex(),
            event.sequence,
            _ACTIONS[event.kind],  # type: ignore[arg-type]  # one of the three
            self._token_id(event),
            event.medium or "",
            self.known.default_category,
            event.stop_id,
            event.route_id,
            ran[-1] if ran else self.operators[event.device_id],
            event.persons,
            None,
            event.vehicle_id,
        )

    def _token_id(self, event: TapEvent) -> str:
        return stored_token(self.known.server_key, event.token) if event.token is not None else ""


class _Groups:
    """Rows in the ascending order of one column, taken group by group beside another stream in the same order."""

    def __init__(self, rows: Iterable[Row[Any]], column: str) -> None:
        self._groups = ((str(key), list(found)) for key, found in groupby(rows, key=lambda row: row._mapping[column]))
        self._next = next(self._groups, None)

    def before_with_rows(self, key: str | None) -> Iterator[tuple[str, list[Row[Any]]]]:
        """The groups that stand before a key; None: all that are left."""
        while self._next is not None and (key is None or self._next[0].encode() < key.encode()):
            found, self._next = self._next, next(self._groups, None)
            yield found

    def before(self, key: str | None) -> Iterator[str]:
        """Their keys only."""
        return (name for name, _ in self.before_with_rows(key))

    def of(self, key: str) -> list[Row[Any]]:
        """The rows of a key."""
        if self._next is None or self._next[0] != key:
            return []
        found, self._next = self._next[1], next(self._groups, None)
        return found


# ---- lines


def _fault_of(traveller_id: str, name: str, movements: list[Row[Any]]) -> str | None:
    """Why some rows are not one line's movements in their order, or None."""
    for generation, row in enumerate(movements):
        if row.generation != generation:
            return f"its movement {generation} is {row.generation}"
        if row.transaction_id != ledger.transaction_id(traveller_id, name, generation):
            return f"its movement {generation} has the id of another one"
        if row.line_id != line_id(_line(row)):
            return "its id is not made of what it says"
        before = movements[generation - 1] if generation % 2 else None
        if before is not None and (row.amount, row.funded, row.payer) != (-before.amount, -before.funded, before.payer):
            return f"its movement {generation} does not take back the one before it"
    return None


def _ride_of(row: Row[Any]) -> Ride:
    return Ride(*(getattr(row, name) for name in Ride.__struct_fields__))


def _same(booked: Booked, row: Row[Any]) -> bool:
    """Whether a row is the latest movement of a booked line."""
    sign = -1 if row.generation % 2 else 1
    line = msgspec.structs.replace(_line(row), amount=sign * row.amount, funded=sign * row.funded)
    held = msgspec.structs.replace(booked.line, service_day=line.service_day)  # service_date is compared
    return (held, booked.generation, booked.service_date, booked.operator_id, booked.network_id) == (
        line,
        row.generation,
        row.service_date,
        row.operator_id,
        row.network_id,
    )


def _line(row: Row[Any]) -> Line:
    return Line(
        row.leg_id, row.kind, row.rule_id, row.amount, row.bearer, row.funded, row.cause, row.version_id, _day(row.service_date)
    )


def _day(service_date: str) -> int:
    return to_day(date.fromisoformat(service_date))


def _wanted(row: Row[Any]) -> list[tuple[object, ...]]:
    """The postings that a line's movement makes, as `_posted` shows them."""
    made = ledger.postings(_line(row), row.payer, row.accounting_date, row.network_id)
    code = str(ledger.CODES[row.kind])
    return [
        (number, code, posting.debit, posting.credit, posting.amount, row.service_date, row.accounting_date)
        for number, posting in enumerate(made)
    ]


def _posted(row: Row[Any]) -> tuple[object, ...]:
    return (row.number, row.code, row.debit, row.credit, row.amount, row.service_date, row.accounting_date)


# ---- small things


def _predecessor(stream: StreamRow) -> Predecessor | None:
    if stream.predecessor is None:
        return None
    return Predecessor(bytes.fromhex(stream.predecessor), stream.predecessor_last or 0, stream.predecessor_head or b"")


def _digest(fact: Fact) -> bytes:
    return hashlib.sha256(msgspec.msgpack.encode(fact)).digest()[:16]


def _shown(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


@contextmanager
def _apart(connection: Connection) -> Iterator[None]:
    """What fails in here leaves the transaction usable; SQLite's needs no help."""
    if connection.dialect.name == "sqlite":
        yield
        return
    with connection.begin_nested():
        yield


@contextmanager
def _readable_text(connection: Connection) -> Iterator[None]:
    """Text that is no UTF-8 any more is read all the same, so that its row can be named. PostgreSQL keeps none."""
    if connection.dialect.name != "sqlite":
        yield
        return
    driver: Any = connection.connection.driver_connection
    driver.text_factory = lambda data: data.decode("utf-8", "backslashreplace")
    try:
        yield
    finally:
        driver.text_factory = str
