"""Threats that no other test holds off by itself, and that docs/threats.md names a test for each."""

from __future__ import annotations

import gc
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pypdf import PdfReader
from starlette.testclient import TestClient

from clearing.close import close_through
from clearing.commands import end_of, rules_of
from fare_engine import enrolment, publications, publishing
from fare_engine.certificates import DeviceLimits, make_request
from fare_engine.ids import DeviceId, StopId
from fare_engine.publications import Kind, TerminalRules
from fare_engine.service import devices
from fare_engine.service.app import create_app, open_service
from fare_engine.settings import Settings
from fare_engine.store import deny, registry
from fare_engine.tap_format import Decision, TapKind, seal, terminal_token
from fare_engine.tokens import stored_token
from tests.builders import HCMC, ROOT
from tests.integration.desk import (
    ADOPTED,
    AT_REST_KEY,
    BEN_THANH,
    BUS_FARE,
    SERVER_KEY,
    Desk,
    Stream,
    at,
    key_of,
)
from tests.integration.desk import terminal_token as token_of
from validators.deny_list import EMPTY, Limits, deny_list_of
from validators.outbox import Outbox
from validators.published import Published
from validators.rules import RuleBook
from validators.state import StateFolder
from validators.terminal import Presented, Terminal, TerminalConfig
from validators.uplink import Backoff, HttpUplink

DOMAIN_KEY = b"\x5a" * 32
MEDIA = [f"payment account reference {number}".encode() for number in range(40)]

# ---- a stolen terminal


@pytest.fixture
def stolen(tmp_path: Path) -> Path:
    """The disk of a terminal that was in use: its key, the domain key, its taps, its deny list."""
    disk = tmp_path / "disk"
    disk.mkdir()
    (disk / "domain.key").write_text(DOMAIN_KEY.hex())
    (disk / "device.key").write_bytes(key_of("gate-1").private_bytes_raw())
    config = TerminalConfig(device_id=DeviceId("gate-1"), key=key_of("gate-1"), stop_id=StopId(BEN_THANH))
    denied = deny_list_of(1, at("06:00"), [terminal_token(DOMAIN_KEY, b"a lost card")])
    with closing(Outbox(disk / "outbox", config.device_id)) as outbox, closing(HttpUplink("http://127.0.0.1:9")) as nobody:
        terminal = Terminal(config, outbox, nobody, random_bytes=os.urandom, backoff=Backoff(lambda: 0.5), deny_list=denied)
        for number, medium in enumerate(MEDIA):
            shown = Presented(kind=TapKind.ENTRY, token=terminal_token(DOMAIN_KEY, medium), medium="emv")
            terminal.tap(shown, at("07:00") + number * 4000)
        StateFolder(disk).keep(terminal.published.deny_list, terminal.published.rules, terminal.clock)
    return disk


def everything_on(disk: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(disk.rglob("*")) if path.is_file())


def test_whoever_has_a_stolen_terminals_disk_has_no_taps_accepted_in_another_devices_name(desk: Desk, stolen: Path) -> None:
    key = Ed25519PrivateKey.from_private_bytes((stolen / "device.key").read_bytes())
    for device in ("gate-2", "bus-1", "bus-2"):
        forged = Stream(device, epoch=99)
        forged.board("08:00", "anna")
        desk.refused(seal(key, forged.header(1, 1), forged.taps))
    assert desk.rows("select count(*) from batches") == [(0,)]


def test_after_its_revocation_a_stolen_terminal_moves_nobodys_money(desk: Desk, stolen: Path) -> None:
    key = Ed25519PrivateKey.from_private_bytes((stolen / "device.key").read_bytes())
    before = Stream("gate-1")
    before.add(TapKind.BOARD, at("08:00"), "anna", route_id="1")
    desk.taken(before.new(), "08:01")
    with desk.database.write() as connection:
        registry.revoke_device(connection, "gate-1", at("08:30"))
    after = Stream("gate-1", epoch=2, predecessor=before.as_predecessor())
    for number, card in enumerate(("anna", "binh", "chi") * 5):
        after.add(TapKind.BOARD, at("08:00") + number * 1000, card, route_id="1")
    answer = desk.taken(seal(key, after.header(1, 15), after.taps), "08:31")
    assert {(one.result, one.reason) for one in answer.answers} == {("QUARANTINED", "revoked_device")}
    assert desk.rows("select sum(amount) from lines") == [(BUS_FARE,)], "what was acknowledged before stays"


def test_a_stolen_terminal_is_of_little_use_elsewhere_and_in_no_great_number(desk: Desk) -> None:
    limits = '{"routes":["1"],"stops":null,"taps_a_minute":3,"taps_a_day":null}'
    with desk.database.write() as connection:
        registry.limit_device(connection, "bus-1", limits)
    thief = Stream("bus-1")
    for second in range(6):
        thief.add(TapKind.BOARD, at("08:00") + second * 1000, "anna", route_id="1")
    thief.add(TapKind.BOARD, at("09:00"), "binh", route_id="152")
    found = [one.reason if one.result == "QUARANTINED" else one.result for one in desk.taken(thief.new()).answers]
    assert found == ["ACCEPTED"] * 3 + ["too_many_taps"] * 3 + ["wrong_route"]


def test_no_token_on_a_stolen_disk_leads_to_its_medium_without_the_domain_key(stolen: Path) -> None:
    disk = everything_on(stolen)
    assert not any(medium in disk for medium in MEDIA), "what was read of a medium is nowhere"
    tokens = [terminal_token(DOMAIN_KEY, medium) for medium in MEDIA]
    assert all(token in disk for token in tokens), "tokens are"
    guesses = [terminal_token(other, medium) for medium in MEDIA for other in (bytes(32), b"\x5b" * 32, SERVER_KEY)]
    assert not set(tokens) & set(guesses)


def test_the_domain_key_on_a_stolen_disk_lets_a_thief_try_media_and_nothing_more(desk: Desk, stolen: Path) -> None:
    """This is what docs/threats.md admits: who guesses a medium's bytes can say whether it was here."""
    key = bytes.fromhex((stolen / "domain.key").read_text())
    assert terminal_token(key, MEDIA[3]) in everything_on(stolen)
    assert terminal_token(key, b"somebody who was not here") not in everything_on(stolen)
    stored = [str(row[0]) for row in desk.rows("select token_id from tokens")]
    assert stored_token(SERVER_KEY, token_of("anna")) in stored
    assert token_of("anna").hex() not in stored, "nor do tokens lead into the server's database: it has a key of its own"


# ---- taps that lie about time


@pytest.mark.parametrize(
    ("clock", "result"),
    [(at("12:00") - 46 * 86_400_000, "QUARANTINED"), (at("12:00") + 11 * 60_000, "QUARANTINED"), (at("11:00"), "ACCEPTED")],
)
def test_a_tap_far_back_or_ahead_of_its_receipt_is_set_aside(desk: Desk, clock: int, result: str) -> None:
    bus = Stream("bus-1")
    bus.add(TapKind.BOARD, clock, "anna", route_id="1")
    assert desk.tapped(bus).result == result


def test_a_tap_cannot_be_put_before_those_that_are_held(desk: Desk) -> None:
    bus = Stream("bus-1")
    bus.board("08:00", "anna")
    bus.board("08:10", "binh")
    desk.taken(bus.new())
    other = Stream("bus-1")
    other.taps = [bus.taps[0]]
    other.board("08:05", "chi")
    other.taps.append(bus.taps[1])
    assert desk.refused(other.message()).cause == "forked_chain"


# ---- a list or rules that would shut out a city


@pytest.fixture
def data(tmp_path: Path, equipped: Path) -> Path:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "server.key").write_bytes(SERVER_KEY)
    (tmp_path / "keys" / "at-rest.key").write_bytes(AT_REST_KEY)
    shutil.copy(equipped, tmp_path / "motthe.db")
    return tmp_path


@pytest.fixture
def client(data: Path) -> Iterator[TestClient]:
    service = open_service(Settings(data=data, tariff=HCMC, adopt=ADOPTED), lambda: at("12:00"))
    with TestClient(create_app(service, (devices.router,)), raise_server_exceptions=False) as found:
        yield found
    service.database.dispose()
    gc.unfreeze()


def service_of(client: TestClient) -> Any:
    return client.app.state.service  # type: ignore[attr-defined]


def test_a_bad_overnight_list_is_not_taken_until_two_persons_signed_it(client: TestClient, data: Path) -> None:
    service = service_of(client)
    keys = [data / name for name in ("lan.pem", "minh.pem")]
    for name, path in zip(("Lan", "Minh"), keys, strict=True):
        publishing.add_person(data, name, path, f"{name}-1")
    terminal = Published(EMPTY, RuleBook(TerminalRules()), publishing.trusted(data), Limits())
    with service.database.write() as connection:
        tokens = [number.to_bytes(8, "big") for number in range(1, 25_001)]
        deny.add_changes(connection, tokens, at("12:00"), "by mistake", added=True)
    for signers in (0, 1):
        refused = terminal.take(Kind.DENY_LIST, fetch(client, terminal), at("12:00"), at("12:00"))
        assert refused is not None
        assert (refused.cause, len(terminal.deny_list)) == ("needs_persons", 0), f"signed by {signers} persons"
        with service.database.write() as connection:
            publishing.publish_whole_list(connection, publishing.signers_of(data, keys[:1]), at("12:00"))
    with service.database.write() as connection:
        publishing.publish_whole_list(connection, publishing.signers_of(data, keys), at("12:00"))
    assert terminal.take(Kind.DENY_LIST, fetch(client, terminal), at("12:00"), at("12:00")) is None
    assert len(terminal.deny_list) == 25_000


def fetch(client: TestClient, terminal: Published) -> bytes:
    service_of(client).receipt.published.refresh()  # as it does every second
    return client.get(terminal.path(Kind.DENY_LIST)).content


def test_a_publication_of_another_services_key_is_not_taken(data: Path) -> None:
    stranger = Ed25519PrivateKey.from_private_bytes(bytes(32))
    payload = publications.make_snapshot(1, at("12:00"), [token_of("anna")])
    forged = publications.sign(payload, {publishing.SERVICE_KEY_ID: stranger})
    terminal = Published(EMPTY, RuleBook(TerminalRules()), publishing.trusted(data), Limits())
    refused = terminal.take(Kind.DENY_LIST, forged, at("12:00"), at("12:00"))
    assert refused is not None
    assert refused.cause == "bad_signature"


# ---- what should stay among us


def test_no_token_card_number_or_key_stands_in_the_logs(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    service = service_of(client)
    caplog.set_level(logging.DEBUG)
    bus = Stream("bus-1")
    bus.board("11:50", "anna")
    bus.board("11:51", "nobody")
    bus.raw(b"\xff no tap")
    service.application.refolder.tariff = None  # every fold fails, and is logged
    assert client.post("/v1/taps", content=bus.message()).status_code == 200
    client.post("/v1/taps", content=b"junk " + token_of("anna"))
    with service.database.write() as connection:
        code = enrolment.make_code(connection, "bus-7", "OP-FUTA", DeviceLimits(), at("13:00"), os.urandom)
    client.post("/v1/devices/enrol", json={"code": code, "request": "AAAA"})
    request = make_request(Ed25519PrivateKey.generate(), DeviceId("bus-7"))
    client.post("/v1/devices/enrol", json={"code": "AAAA", "request": request.hex()})
    assert "the fold of a traveller failed" in caplog.text
    for secret in (token_of("anna").hex(), repr(token_of("anna"))[2:-1], stored_token(SERVER_KEY, token_of("anna")), code):
        assert secret not in caplog.text


def text_of(name: str, content: bytes) -> str:
    """What a document says, whatever kind of file it is."""
    if name.endswith(".xlsx"):
        with ZipFile(BytesIO(content)) as book:
            return "\n".join(book.read(part).decode() for part in book.namelist())
    if name.endswith(".pdf"):
        return "\n".join(page.extract_text() for page in PdfReader(BytesIO(content)).pages)
    return content.decode()


def test_no_statement_names_a_traveller_or_a_token(desk: Desk) -> None:
    bus = Stream("bus-1")
    bus.board("08:00", "anna")
    bus.board("08:01", "nobody", medium="emv")
    desk.taken(bus.new())
    rules = rules_of(desk.tariff, HCMC)
    found = close_through(desk.database, rules, "2026-03-02", lambda on: end_of(desk.tariff, on), despite="a test")
    published = "\n".join(text_of(name, content) for name, content in found[-1].documents.items())
    assert "OP-FUTA" in published
    for name in ("anna", stored_token(SERVER_KEY, token_of("anna")), "bus-1/"):
        assert name not in published


def test_what_is_stored_cannot_be_read_without_the_keys(desk: Desk) -> None:
    bus = Stream("bus-1")
    bus.board("08:00", "anna", decision=Decision.ADMITTED_ALONE)
    desk.taken(bus.new())
    rows = repr(desk.everything()).encode()
    assert token_of("anna") not in rows
    assert repr(token_of("anna"))[2:-1].encode() not in rows
    assert token_of("anna").hex().encode() not in rows


# ---- what comes from outside


def test_every_dependency_is_locked_to_its_hash_and_installed_by_it() -> None:
    for name in ("requirements.lock", "requirements-dev.lock"):
        locked = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
        packages = [line for line in locked.splitlines() if re.match(r"[a-z0-9]", line)]
        assert len(packages) > 20
        assert [line for line in packages if "==" not in line or "--hash=sha256:" not in line] == []
    installs = [line for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines() if "-r requirements" in line]
    assert installs
    assert all("--require-hashes --only-binary :all:" in line for line in installs)


def test_what_is_tested_is_what_is_run() -> None:
    run, tested = (
        dict(re.findall(r"^([a-z0-9._-]+)(?:\[[^]]*\])?==([^ ]+)", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE))
        for name in ("requirements.lock", "requirements-dev.lock")
    )
    assert {name: tested.get(name) for name in run} == run


def test_the_bill_of_materials_names_what_is_installed_with_its_hashes(tmp_path: Path) -> None:
    (recipe,) = re.findall(r"^sbom:.*\n\t\$\(BIN\)/(.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    command = recipe.replace("sbom.json", str(tmp_path / "sbom.json")).split()
    subprocess.run([Path(sys.executable).parent / command[0], *command[1:]], cwd=ROOT, check=True, capture_output=True)
    locked = (ROOT / "requirements.lock").read_text(encoding="utf-8").replace("\\\n", " ")
    packages = dict(re.findall(r"^([a-z0-9._-]+)(?:\[[^]]*\])?==([^ ]+)", locked, re.MULTILINE))
    hashes = set(re.findall(r"--hash=sha256:([0-9a-f]{64})", locked))
    bill = msgspec.json.decode((tmp_path / "sbom.json").read_bytes())
    assert {part["name"]: part["version"] for part in bill["components"]} == packages
    named = [digest["content"] for part in bill["components"] for digest in _hashes(part)]
    assert set(named) == hashes


def _hashes(part: dict[str, Any]) -> list[dict[str, str]]:
    sources = part.get("externalReferences", [])
    return [digest for source in (part, *sources) for digest in source.get("hashes", [])]


# ---- the handbook


def test_each_threat_of_the_handbook_names_tests_that_there_are() -> None:
    handbook = (ROOT / "docs" / "threats.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", handbook)
    assert len(named) > 40
    missing = [f"{path}::{name}" for path, name in named if f"def {name}(" not in (ROOT / path).read_text(encoding="utf-8")]
    assert missing == []
    rows = [line for line in handbook.splitlines() if line.startswith("| ") and not line.startswith(("| threat", "| ---"))]
    assert len(rows) >= 24
    assert [row for row in rows if "::test_" not in row and "**open**" not in row and "**accepted**" not in row] == []
