"""`motthe taps`: an untouched store is clean, and whatever bit of it is changed is named; proofs, gaps and the quarantine."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import BigInteger, Integer, LargeBinary, Table, func, select, text, update
from sqlalchemy.exc import IntegrityError
from typer.testing import CliRunner

import clearing.seal_store
from clearing import tap_commands
from clearing.bank import booking
from clearing.bank.accounts import Accounts
from clearing.close import close_through, verify
from clearing.collection import cards
from clearing.collection.collector import Collector
from clearing.collection.rules import find_rules
from clearing.commands import end_of, rules_of
from clearing.disputes import desk as disputes
from clearing.disputes.claims import Claim
from clearing.tap_commands import verify_opened
from fare_engine import ledger, linking, publishing
from fare_engine.application import Application
from fare_engine.commands import Opened
from fare_engine.facts import Purchase
from fare_engine.publications import TerminalRules
from fare_engine.refold import Change
from fare_engine.store import books, receipts, registry, travellers
from fare_engine.store.registry import Correction, DeviceKey
from fare_engine.store.schema import metadata
from fare_engine.store.travellers import Account, NewToken
from fare_engine.store.verify import Finding
from fare_engine.tap_format import Decision, Outcome, TapKind
from fare_engine.tokens import stored_token
from fare_engine.windows import Ages
from tests.builders import HCMC, ROOT
from tests.camt import ACCOUNTS, camt, entry
from tests.collecting import FakeProvider
from tests.demos import motthe
from tests.integration.desk import (
    ADOPTED,
    AT_REST_KEY,
    BEN_THANH,
    DAY,
    SERVER_KEY,
    SUOI_TIEN,
    TAN_CANG,
    Desk,
    Stream,
    at,
    equip,
    key_of,
    terminal_token,
)

NEXT_DAY = "2026-03-03"
LATER = at("12:00", NEXT_DAY)

# ---- a store in which every table has a row


def lived_in(desk: Desk, data: Path) -> Opened:
    """Two days of a city in which everything happened that leaves a row."""
    people = [f"rider {number}" for number in range(15)]
    desk.issue(*people)
    top_up(desk, "prepaid rider", 200_000)
    equip_more(desk, data)
    opened = Opened(data, desk.database, desk.tariff, _city(data), ADOPTED, SERVER_KEY)
    busy_day(desk, [*people, "anna", "binh", "prepaid rider"])
    trouble(desk)
    decide(desk, data)
    collect_money(opened)
    for number, card in enumerate(people[:5]):
        late = Stream("bus-2", epoch=60 + number)
        late.board("13:00", card)
        desk.taken(late.new(), "13:01")
    close(opened, DAY)
    pay(opened)
    close(opened, NEXT_DAY)
    dispute(opened)
    after = Stream("gate-2", epoch=70)
    after.enter("23:10", "anna")
    desk.taken(after.new(), at("10:00", "2026-03-04"))
    put_away(desk, people[5:8])
    return opened


def put_away(desk: Desk, people: list[str]) -> None:
    """Weeks later the rides of some are old, and their windows are closed."""
    weeks_later = at("12:00", "2026-03-20")
    application = Application(desk.tariff, SERVER_KEY, Ages(every=1))
    changes = {name: Change() for name in people}
    desk.database.transact(lambda connection: application.change(connection, changes, weeks_later))


def _city(data: Path) -> Path:
    """The city with an agreement over a week, so that every table of clearing has a row."""
    city = data / "city"
    shutil.copytree(HCMC, city, ignore=shutil.ignore_patterns("sources", "cases.json"))
    path = city / "clearing.toml"
    over_a_week = 'covers = "fares"\nmethod = "paid_fares"\nscope = "week"\n'
    agreed = path.read_text(encoding="utf-8")
    changed = agreed.replace('covers = "caps"\nmethod = "paid_fares"\nscope = "week"\nrules = ["week-cap"]\n', over_a_week)
    assert changed != agreed
    path.write_text(changed, encoding="utf-8")
    return city


def pay(opened: Opened) -> None:
    """The bank tells of a payment, and of something that nobody knows."""
    accounts = Accounts(currency="VND", own=ACCOUNTS.own, parties={})
    with opened.database.write() as connection:
        paid = next(one for one in clearing.store.list_payments(connection, DAY) if one.amount > 0)
        known = entry(-paid.amount, f"<Refs><EndToEndId>{paid.payment_id}</EndToEndId></Refs>", ref="1")
        file = camt(known, entry(700, ref="2", text="?"), moved=700 - paid.amount)
        found = booking.import_file(connection, file, accounts, 0, LATER)
        assert (found.matched, found.waiting) == (1, 1)


def collect_money(opened: Opened) -> None:
    """A day's charges, one of them given back, a debt that blocks a card and is given up, a card with its term."""
    provider = FakeProvider()
    provider.states["src-rider 2"] = "declined"
    rules = find_rules(HCMC, opened.tariff.network.parties.keys(), opened.tariff.currency)
    assert rules is not None
    collector = Collector(opened.database, opened.tariff, rules, provider)
    for rider in ("rider 1", "rider 2"):
        collector.set_source(rider, f"src-{rider}", at("12:00"))
    for day in (DAY, NEXT_DAY, "2026-06-01"):
        collector.collect(day, LATER)
    with opened.database.write() as connection:
        paid = "select transaction_id from lines where traveller_id = 'rider 1' and amount > 1000 and kind = 'list_fare' limit 1"
        line = connection.execute(text(paid)).scalar_one()
        cards.issue(collector, connection, "rider 1", "cd" * 16, "4321", None, DAY)
    collector.refund(line, 1000, "late", LATER)


def dispute(opened: Opened) -> None:
    """Two rows are disputed; one of them is decided."""
    rules = rules_of(opened.tariff, opened.tariff_folder)
    with opened.database.write() as connection:
        for text in ("open", "decided"):
            claim = Claim(claimant="OP-HURC1", accounting_date=DAY, party_id="OP-FUTA", line=1, amount=1000, text=text)
            found = disputes.open_dispute(connection, rules, claim, LATER)
        disputes.decide(connection, rules, found.dispute_id, 400, "lan", "the taps say so", LATER)


def close(opened: Opened, date: str) -> dict[str, bytes]:
    """The documents of a date's close."""
    rules = rules_of(opened.tariff, opened.tariff_folder)
    found = close_through(opened.database, rules, date, lambda on: end_of(opened.tariff, on), despite="a test")
    return found[-1].documents


def top_up(desk: Desk, card: str, amount: int) -> None:
    """A prepaid card with money on it that is in the books."""
    entries = books.Booking(None)
    entries.add_posting("f" * 32, 0, ledger.Code.TOPPED_UP, ledger.Posting(ledger.TOP_UPS, ledger.rider(card), amount), DAY, DAY)
    with desk.database.write() as connection:
        entries.write(connection)
    desk.issue(card, kind="prepaid", balance=amount)


def equip_more(desk: Desk, data: Path) -> None:
    """Vehicles, a corrected clock, people, a card with a printed number."""
    with desk.database.write() as connection:
        registry.assign_vehicles(connection, [("51B-1", at("00:00"), "OP-FUTA"), ("51B-1", at("09:00"), "OP-SAIGONBUS")])
        registry.add_correction(connection, Correction("c1", "bus-2", at("07:00"), at("07:10"), 1000, at("00:00"), "somebody"))
        registry.add_user(connection, "hurc1", "OP-HURC1", "password")
        registry.add_code(connection, "00" * 32, "bus-9", "OP-FUTA", None, at("23:00"))
        registry.save_settings(connection, {"tariff": str(data / "city"), "adopt": ",".join(ADOPTED)})
        registry.begin_attempt(connection, "card/1", at("08:00"))
        travellers.add_accounts(connection, [Account("family", "postpaid", 0, "ab" * 16, "4321")])


def busy_day(desk: Desk, riders: list[str]) -> None:
    """Metro and bus rides of many, some of them cancelled, refused or decided alone."""
    gate, out, bus = Stream("gate-1"), Stream("gate-2"), Stream("bus-1")
    token_id = stored_token(SERVER_KEY, terminal_token("rider 3"))
    bought = Purchase("shop/1", at("06:00"), "shop", "-", 1, token_id, "emv", "adult", "ML1-1D")
    with desk.database.write() as connection:
        desk.application.purchase(connection, "rider 3", bought, at("06:00"))
    for number, card in enumerate(riders):
        minute = f"{number:02d}"
        gate.enter(f"07:{minute}", card)
        out.leave(f"08:{minute}", card, (TAN_CANG, SUOI_TIEN)[number % 2])
        bus.board(f"09:{minute}", card, vehicle_id="51B-1", persons=2 if number % 7 == 0 else 1)
    gate.add(TapKind.INSPECTION, at("07:50"), "anna", stop_id=BEN_THANH)
    paper = bus.add(TapKind.BOARD, at("09:50"), "a paper ticket", route_id="1", medium="cash")
    bus.outcome("09:51", paper, Outcome.CANCELLED)
    asked = bus.board("09:52", "chi")
    bus.outcome("09:53", asked, Outcome.GATE_NOT_OPENED)
    alone = bus.add(TapKind.BOARD, at("09:54"), "chi", route_id="1", decision=Decision.REFUSED_ALONE, reason="deny_list")
    bus.outcome("09:55", alone, Outcome.TIMED_OUT, Decision.ADMITTED_ALONE)
    bus.add(TapKind.BOARD, at("09:56"), "chi", route_id="1", decision=Decision.REFUSED_ALONE, reason="deny_list")
    for stream in (gate, out, bus):
        desk.taken(stream.message(1, 20), "10:00")
        desk.taken(stream.message(15), "10:01")


def trouble(desk: Desk) -> None:
    """Taps that cannot be used, an epoch that is missing, a device that was rolled back."""
    lost = Stream("bus-2", epoch=8)
    lost.board("06:00", "binh")
    strange = Stream("bus-2", epoch=9, predecessor=lost.as_predecessor())
    strange.board("07:05", "nobody")
    strange.board("07:06", "anna", route="no such route")
    strange.raw(b"\xff no tap")
    strange.board("07:07", "binh")
    strange.board("03:00", "late comer")
    desk.taken(strange.new(), "10:05")
    other = Stream("bus-2", epoch=9, predecessor=lost.as_predecessor())
    other.board("07:05", "anna")
    desk.refused(other.message(), "10:06")
    desk.taken(Stream("gate-2", epoch=4).message(), "10:07")


def decide(desk: Desk, data: Path) -> None:
    """What people do: a late registration, a link, a lost card, another key, rules for terminals."""
    with desk.database.write() as connection:
        travellers.add_accounts(connection, [Account("late comer", "postpaid", 0)])
        travellers.add_tokens(connection, [NewToken(token_id("late comer"), "chi", "chi", terminal_token("late comer"))])
        waiting = receipts.find_waiting(connection, [f"token:{token_id('late comer')}"])
        assert desk.application.release(connection, waiting, at("10:08")) == 1
        linking.link_token(connection, desk.application, token_id("rider 3"), "rider 4", at("08:30"), at("10:09"), "somebody")
        publishing.block(connection, token_id("rider 9"), at("10:10"), "lost")
        publishing.confirm(connection, at("10:11"))
        signers = publishing.signers_of(data, [])
        publishing.publish_rules(connection, TerminalRules(), at("12:00"), signers, at("10:12"))
        publishing.publish_whole_list(connection, signers, at("10:12"))
        registry.save_key(connection, DeviceKey("gate-1", key_of("gate-1").public_key().public_bytes_raw(), 0, at("11:00")))
        registry.save_key(connection, DeviceKey("gate-1", key_of("new").public_key().public_bytes_raw(), at("10:30"), None, b"c"))
        travellers.add_drift(connection, "anna", at("10:13"), "r", ["+ a line"])
        for table, row in SAID.items():
            connection.execute(metadata.tables[table].insert(), row)


SAID: dict[str, dict[str, Any]] = {
    "claims": {
        "claim_id": "c", "traveller_id": "anna", "leg_id": "l", "stop_id": "s", "at": 1, "text": "t", "made_at": 2,
        "state": "open", "decided_at": 3, "decided_by": "b", "reason": "r",
    },
    "proposals": {"token_id": "a", "other_token_id": "b", "made_at": 1, "evidence": "e", "state": "open"},
}  # fmt: skip


def token_id(card: str) -> str:
    return stored_token(SERVER_KEY, terminal_token(card))


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, hcmc_adopted: Any) -> Iterator[Opened]:
    """A store that was lived in. A test that changes it puts it back, which is looked at in the end."""
    data = tmp_path_factory.mktemp("lived-in")
    if request.param == "sqlite":
        url = f"sqlite:///{data / 'motthe.db'}"
    else:
        server = request.getfixturevalue("postgres")
        server.execute("create database lived_in")
        url = server.url("lived_in")
    keys = data / "keys"
    keys.mkdir()
    (keys / "server.key").write_bytes(SERVER_KEY)
    (keys / "at-rest.key").write_bytes(AT_REST_KEY)
    equip(url)
    desk = Desk(url, hcmc_adopted)
    opened = lived_in(desk, data)
    yield opened
    assert findings(opened) == []
    desk.database.dispose()
    if request.param == "postgresql":
        server.execute("drop database lived_in with (force)")


def findings(opened: Opened) -> list[Finding]:
    return list(verify_opened(opened).findings)


# ---- untouched, and one bit changed


def test_a_store_that_nobody_touched_is_clean_and_what_was_looked_at_is_counted(store: Opened) -> None:
    found = verify_opened(store)
    assert found.findings == ()
    assert found.taps == count(store, "streams", func.sum(metadata.tables["streams"].c.acknowledged_through)) > 50
    for table in ("batches", "lines", "postings", "travellers", "tokens", "quarantine", "refused_messages", "links"):
        assert found.rows[table] == count(store, table) > 0, table


def count(store: Opened, table: str, what: Any = None) -> int:
    with store.database.read() as connection:
        found = connection.execute(select(func.count() if what is None else what).select_from(metadata.tables[table]))
        return int(found.scalar_one())


def test_every_table_has_a_row_to_be_changed(store: Opened) -> None:
    assert [name for name in metadata.tables if count(store, name) == 0] == []


EXCUSED = {
    "settings": "what the service was told, not what happened: whoever runs it sets it",
    "attempts": "counts of failed logins, which are forgotten",
    "enrolment_codes": "good for some hours; what came of one is a device",
    "claims": "what riders say and clerks decide, until it becomes a fact; the fact is covered",
    "proposals": "what may be linked; a link is covered",
    "drifts": "what would be booked; what is booked is covered",
    "accounts.card_number_hash": "the only copy; a changed one leads to no account",
    "accounts.card_label": "four digits that are shown, nothing more",
    "streams.begun_at": "when an epoch was heard of: heartbeats leave no message",
    "streams.last_contact": "the same",
    "quarantine.released_at": "that it was released is checked, not when",
    "refused_messages.refused_id": "a number that the database gave",
    "alarms.alarm_id": "the same",
    "lines.row_number": "the same",
    "legs.row_number": "the same",
    "postings.row_number": "the same",
    "deny_changes.version": "the same",
}
"""Tables and columns that nothing covers, and why; docs/operations.md says the same."""
COVERED = sorted(name for name in metadata.tables if name not in EXCUSED)
NAMED_AS = {"batches.batch_id": "closes"}


@pytest.mark.parametrize("name", COVERED)
def test_one_bit_changed_in_any_column_of_any_table_is_named(store: Opened, name: str) -> None:
    table = metadata.tables[name]
    unseen = []
    for column in table.columns:
        if f"{name}.{column.name}" in EXCUSED:
            continue
        with changed(store, table, column.name) as key:
            found = findings(store)
        table_named = NAMED_AS.get(f"{name}.{column.name}", name)
        by_key = not column.primary_key and "row_hash" in table.c
        if not any(one.table == table_named and (not by_key or one.key.startswith(key)) for one in found):
            unseen.append((column.name, key, [str(one) for one in found]))
    assert unseen == []


class changed:  # noqa: N801  # used as a word
    """One bit of one row is changed behind everybody's back, and put back afterwards."""

    def __init__(self, store: Opened, table: Table, column: str) -> None:
        self.store, self.table, self.column = store, table, column

    def __enter__(self) -> str:
        table, column = self.table, self.table.c[self.column]
        key = list(table.primary_key.columns)
        with self.store.database.read() as connection:
            row = connection.execute(select(table).order_by(column.is_(None), *key).limit(1)).one()
        self.before = row._mapping[self.column]
        self.where = [c == row._mapping[c.name] for c in key]
        for bit in range(8):
            self.after = flipped(self.before, column.type, bit)
            try:
                self._set(self.after)
            except IntegrityError:
                continue
            shown = (row._mapping[c.name] for c in key)
            return "/".join(value.hex() if isinstance(value, bytes) else str(value) for value in shown)
        raise AssertionError(f"{self.table}.{self.column} cannot be changed")

    def __exit__(self, *_: object) -> None:
        key = [c == self.after if c.name == self.column else is_as_before for c, is_as_before in self._keys()]
        with self.store.database.write() as connection:
            done = connection.execute(update(self.table).where(*key).values({self.column: self.before}))
            assert done.rowcount == 1

    def _keys(self) -> list[tuple[Any, Any]]:
        return list(zip(self.table.primary_key.columns, self.where, strict=True))

    def _set(self, value: object) -> None:
        with self.store.database.write() as connection:
            assert connection.execute(update(self.table).where(*self.where).values({self.column: value})).rowcount == 1


def flipped(value: Any, kind: object, bit: int) -> Any:
    """The value with one bit changed; where there is none, something."""
    if isinstance(kind, BigInteger | Integer):
        return 1 if value is None else value ^ (1 << 3 * bit)
    if isinstance(kind, LargeBinary):
        if not value:
            return b"x"
        at = len(value) // 2
        return value[:at] + bytes([value[at] ^ (1 << bit)]) + value[at + 1 :]
    if not value:
        return "x"
    middle = len(value) // 2
    return value[:middle] + chr(ord(value[middle]) ^ (1 << bit % 4)) + value[middle + 1 :]


def test_what_is_excused_stands_in_the_handbook() -> None:
    handbook = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert [name for name in EXCUSED if f"`{name}`" not in handbook] == []


def test_a_row_that_was_taken_out_is_missed(store: Opened) -> None:
    for table, where in (
        ("lines", "service_date = '2026-03-02'"),
        ("postings", "code = 'JOURNEY_CHARGED'"),
        ("batches", "device_id = 'bus-1'"),
        ("quarantine", "device_id = 'bus-2'"),
        ("travellers", "traveller_id = 'anna'"),
        ("statements", "name = 'proof.json'"),
        ("settlements", "amount > 0"),
    ):
        with removed(store, table, where):
            assert findings(store), table


@contextmanager
def removed(store: Opened, table: str, where: str) -> Iterator[None]:
    """One row is taken out, and put back afterwards."""
    found = metadata.tables[table]
    with store.database.write() as connection:
        row = connection.execute(select(found).where(text(where)).limit(1)).mappings().one()
        this = [column == row[column.name] for column in found.primary_key.columns]
        connection.execute(found.delete().where(*this))
    yield
    with store.database.write() as connection:
        connection.execute(found.insert(), dict(row))


# ---- as a command


def run(store: Opened, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`motthe taps …` over a store, as a process of its own."""
    environment = {} if store.database.is_sqlite else {"MOTTHE_DATABASE_URL": store.database.url}
    return motthe("taps", *arguments, "--data", f"{store.data}", environment=environment)


def test_the_command_says_what_it_looked_at_or_names_what_was_changed(store: Opened) -> None:
    clean = run(store, "verify")
    assert (clean.returncode, clean.stderr) == (0, "")
    assert "nothing was changed" in clean.stdout
    with changed(store, metadata.tables["lines"], "amount") as key:
        found = run(store, "verify")
    assert (found.returncode, found.stderr) == (1, "")
    assert [line for line in found.stdout.splitlines() if not line.startswith("CHANGED ")] == []
    assert f"CHANGED lines {key}: is not the row that was written" in found.stdout
    assert f"CHANGED closes {DAY}: " in found.stdout


def test_verifying_no_store_is_an_error_and_makes_none(tmp_path: Path) -> None:
    done = motthe("taps", "verify", "--data", f"{tmp_path / 'nowhere'}")
    assert done.returncode == 1
    assert "there is no store" in done.stderr
    assert not (tmp_path / "nowhere").exists()


@pytest.fixture(scope="module")
def file_of_a_store(tmp_path_factory: pytest.TempPathFactory, hcmc_adopted: Any) -> Path:
    """The folder of a store that was lived in, in one file."""
    data = tmp_path_factory.mktemp("file")
    (data / "keys").mkdir()
    (data / "keys" / "server.key").write_bytes(SERVER_KEY)
    (data / "keys" / "at-rest.key").write_bytes(AT_REST_KEY)
    equip(f"sqlite:///{data / 'motthe.db'}")
    desk = Desk(f"sqlite:///{data / 'motthe.db'}", hcmc_adopted)
    lived_in(desk, data)
    desk.database.dispose()
    with closing(sqlite3.connect(data / "motthe.db")) as connection:
        connection.execute("pragma wal_checkpoint(truncate)")
        connection.execute("pragma journal_mode=delete")
    return data


def content(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """Every row of every table but what is excused."""
    found = {}
    with closing(sqlite3.connect(path)) as connection:
        connection.text_factory = bytes
        for name in COVERED:
            names = [c.name for c in metadata.tables[name].columns if f"{name}.{c.name}" not in EXCUSED]
            rows = connection.execute(f"select {', '.join(names)} from {name}")
            found[name] = sorted(rows, key=repr)
    return found


@pytest.mark.parametrize("seed", [*range(20), *(pytest.param(seed, marks=pytest.mark.prove) for seed in range(20, 1000))])
def test_any_bit_changed_in_the_file_itself_is_found_or_was_no_part_of_any_row(
    file_of_a_store: Path, tmp_path: Path, seed: int
) -> None:
    data = Path(shutil.copytree(file_of_a_store, tmp_path / "copy"))
    path = data / "motthe.db"
    damaged = bytearray(path.read_bytes())
    bit = random.Random(seed).randrange(8 * len(damaged))
    damaged[bit // 8] ^= 1 << bit % 8
    path.write_bytes(damaged)
    done = CliRunner().invoke(tap_commands.app, ["taps", "verify", "--data", f"{data}"])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    if done.exit_code == 0:
        assert content(path) == content(file_of_a_store / "motthe.db")
    else:
        assert done.exit_code == 1
        assert done.output.startswith("CHANGED ")


def test_a_file_that_is_no_database_any_more_is_a_finding(file_of_a_store: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(file_of_a_store, tmp_path / "copy"))
    path = data / "motthe.db"
    whole = path.read_bytes()
    for damaged in (bytes(100) + whole[100:], whole[: len(whole) // 2], b"no database at all"):
        path.write_bytes(damaged)
        done = motthe("taps", "verify", "--data", f"{data}")
        assert (done.returncode, done.stderr) == (1, ""), done.stderr[-500:]
        assert done.stdout.startswith("CHANGED ")


# ---- proofs


def test_the_proof_of_any_tap_of_a_closed_date_is_checked_by_a_program_that_shares_no_code(store: Opened, tmp_path: Path) -> None:
    with store.database.read() as connection:
        documents = clearing.store.published(connection, DAY)
        batches = list(receipts.all_batches(connection))
    seal = json.loads(documents["proof.json"])
    proof = tmp_path / "proof.json"
    for stored in batches[:: len(batches) // 6]:
        if stored.received_at >= LATER:
            continue
        tap = f"{stored.device_id}/{stored.epoch}/{stored.last_sequence}"
        done = run(store, "prove", tap, "--out", f"{proof}")
        assert done.returncode == 0, done.stderr
        assert json.loads(proof.read_text())["tree_size"] == seal["tree_size"]
        key = key_of(stored.device_id).public_key().public_bytes_raw().hex()
        checked = check_inclusion(proof, "--root", seal["seal"], "--public-key", key)
        assert (checked.returncode, "Everything holds." in checked.stdout) == (0, True), checked.stdout
        assert check_inclusion(proof, "--root", "00" * 32, "--public-key", key).returncode == 1


def check_inclusion(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The program that operators check with."""
    command = [sys.executable, str(ROOT / "docs" / "check_inclusion.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("tap", "problem"),
    [
        ("gate-1/0000000000000001/9999", "no tap"),
        ("gate-2/0000000000000046/1", "after the last close"),
        ("what is this", "no tap id"),
    ],
)
def test_there_is_no_proof_of_a_tap_that_is_not_held_or_not_sealed(store: Opened, tap: str, problem: str) -> None:
    done = run(store, "prove", tap)
    assert done.returncode in (1, 2)
    assert problem in " ".join(done.stderr.replace("│", " ").split())


def test_no_proof_is_made_of_rows_that_were_changed(store: Opened) -> None:
    with changed(store, metadata.tables["postings"], "amount"):
        done = run(store, "prove", "gate-1/0000000000000001/3")
    assert done.returncode == 1
    assert "do not give its seal" in done.stderr


# ---- the seal


def test_a_seal_of_the_first_release_is_still_checked(desk: Desk, tmp_path: Path) -> None:
    opened = Opened(tmp_path, desk.database, desk.tariff, HCMC, ADOPTED, SERVER_KEY)
    bus = Stream("bus-1")
    bus.board("08:00", "anna")
    desk.taken(bus.new())
    close(opened, DAY)
    with desk.database.write() as connection:
        total = sha256(b"".join(sha256(row).digest() for row in clearing.seal_store.rows_sealed_before(connection, DAY)))
        clearing.store.set_head(connection, DAY, total.hexdigest(), 0)
        connection.execute(text("update closes set tree_size = null, batches_through = null"))
    with desk.database.read() as connection:
        assert [line for line in verify(connection) if "proof.json" not in line] == []
    with desk.database.write() as connection:
        connection.execute(text("update lines set amount = amount + 1"))
    with desk.database.read() as connection:
        assert verify(connection)[0] == f"{DAY}: its lines or postings are not those that were sealed"


def test_each_seal_holds_the_messages_since_the_one_before_and_names_it(store: Opened) -> None:
    with store.database.read() as connection:
        first, second = ({b.leaf for b in clearing.seal_store.sealed_batches(connection, date)} for date in (DAY, NEXT_DAY))
        received = len(list(receipts.all_batches(connection)))
        seals = clearing.seal_store.list_seals(connection)
        proofs = [json.loads(clearing.store.published(connection, date)["proof.json"]) for date in (DAY, NEXT_DAY)]
    assert len(first) + len(second) == received - 1, "all but what came after the last close"
    assert not first & second
    assert [(seal.head, seal.tree_size) for seal in seals] == [(proof["seal"], proof["tree_size"]) for proof in proofs]
    with changed(store, metadata.tables["closes"], "head"):
        assert {one.key for one in findings(store) if one.table == "closes"} == {DAY, NEXT_DAY}


# ---- what waits for people


def test_gaps_alarms_and_the_quarantine_are_listed(store: Opened) -> None:
    gaps, alarms, waiting = (run(store, command) for command in ("gaps", "alarms", "quarantine"))
    assert "bus-2 OP-SAIGONBUS 0000000000000008 1-1: 1 taps, known for" in gaps.stdout
    assert "1 taps missing in 1 gaps" in gaps.stdout
    assert "forked_chain bus-2: epoch 0000000000000009" in alarms.stdout
    assert "bus-2/0000000000000009/1 unknown_token 2026-03-02" in waiting.stdout
    only = run(store, "quarantine", "--reason", "unreadable")
    assert only.stdout.splitlines()[-1] == "1 taps in quarantine"
    assert only.stdout.startswith("bus-2/0000000000000009/3 unreadable")


def test_a_tap_that_somebody_lets_out_of_the_quarantine_is_booked_once(desk: Desk, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir(exist_ok=True)
    (keys / "server.key").write_bytes(SERVER_KEY)
    (keys / "at-rest.key").write_bytes(AT_REST_KEY)
    with desk.database.write() as connection:
        registry.save_settings(connection, {"tariff": "tariffs/hcmc", "adopt": ",".join(ADOPTED)})
    bus = Stream("bus-1")
    bus.board("08:00", "anna")
    bus.board("08:01", "nobody")
    with desk.database.write() as connection:
        registry.revoke_device(connection, "bus-1", at("09:00"))
    desk.taken(bus.new())
    opened = Opened(tmp_path, desk.database, desk.tariff, HCMC, ADOPTED, SERVER_KEY)
    done = run(opened, "release", "--device", "bus-1")
    assert done.stdout == "1 of 2 taps released; the others still cannot be used\n", done.stderr
    assert desk.rows("select count(*) from lines where leg_id = 'bus-1/0000000000000001/1'") == [(1,)]
    again = run(opened, "release", f"bus-1/{bus.epoch.hex()}/1")
    assert (again.returncode, again.stderr) == (1, f"error: bus-1/{bus.epoch.hex()}/1 is not in quarantine\n")
    assert findings(opened) == []
