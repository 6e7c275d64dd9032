"""Enrolment over HTTP: a one-time code for a certificate, another key by the current one, and what is refused."""

from __future__ import annotations

import base64
import gc
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import NameOID
from starlette.testclient import TestClient

from fare_engine import enrolment
from fare_engine.certificates import DeviceLimits, check_certificate, make_request, make_rotation
from fare_engine.errors import EnrolmentError
from fare_engine.ids import DeviceId
from fare_engine.publications import Role, read_publishers
from fare_engine.service import devices
from fare_engine.service.app import Service, create_app, open_service
from fare_engine.settings import Settings
from fare_engine.store import registry
from fare_engine.store.database import Database
from fare_engine.tap_format import seal
from tests.builders import HCMC
from tests.demos import motthe
from tests.integration.desk import ADOPTED, AT_REST_KEY, BUS_FARE, SERVER_KEY, Desk, Stream, at, key_of, rows

NEW = DeviceId("bus-7")
COSE = {"content-type": "application/cose"}
PROBLEM = "application/problem+json"
HOUR_MS = 3_600_000


@dataclass
class Clock:
    now: int

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock(at("12:00"))


@pytest.fixture
def service(tmp_path: Path, equipped: Path, clock: Clock) -> Iterator[Service]:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "server.key").write_bytes(SERVER_KEY)
    (tmp_path / "keys" / "at-rest.key").write_bytes(AT_REST_KEY)
    shutil.copy(equipped, tmp_path / "motthe.db")
    found = open_service(Settings(data=tmp_path, tariff=HCMC, adopt=ADOPTED), clock)
    yield found
    found.database.dispose()
    gc.unfreeze()


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service, (devices.router,)), raise_server_exceptions=False) as found:
        yield found


def key(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(name.encode().ljust(32, b"."))


def code_for(service: Service, device: str = NEW, limits: DeviceLimits | None = None, hours: int = 24) -> str:
    with service.database.write() as connection:
        expires = service.clock() + hours * HOUR_MS
        return enrolment.make_code(connection, device, "OP-FUTA", limits, expires, os.urandom)


def enrol(client: TestClient, code: str, private: Ed25519PrivateKey, device: DeviceId = NEW) -> Any:
    return client.post("/v1/devices/enrol", json={"code": code, "request": text(make_request(private, device))})


def rotate(client: TestClient, current: Ed25519PrivateKey, new: Ed25519PrivateKey, device: DeviceId = NEW) -> Any:
    request = make_request(new, device)
    body = {"request": text(request), "signature": text(make_rotation(current, device, request))}
    return client.post(f"/v1/devices/{device}/rotate", json=body)


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def tap_signed_by(private: Ed25519PrivateKey, stream: Stream) -> bytes:
    return seal(private, stream.header(stream.sent + 1, len(stream.taps)), stream.taps[stream.sent :])


def is_taken(client: TestClient, private: Ed25519PrivateKey, epoch: int) -> bool:
    bus = Stream(NEW, epoch=epoch)
    bus.board("11:59")
    heard = client.post("/v1/taps", content=tap_signed_by(private, bus), headers=COSE)
    return bool(heard.status_code == 200 and heard.json()["answers"][0]["result"] == "ACCEPTED")


def assert_problem(heard: Any, status: int, cause: str) -> None:
    assert (heard.status_code, heard.headers["content-type"], heard.json()["cause"]) == (status, PROBLEM, cause)
    assert heard.json()["type"] == f"urn:motthe:problem:{cause}"
    assert heard.json()["title"] != cause


# ---- the first key


def test_with_a_code_a_device_gets_a_certificate_and_its_taps_are_taken(client: TestClient, service: Service) -> None:
    assert not is_taken(client, key("new"), 1)
    heard = enrol(client, code_for(service), key("new"))
    assert heard.status_code == 200, heard.text
    given = heard.json()
    assert (given["device_id"], given["operator_id"], given["server_time"]) == (NEW, "OP-FUTA", at("12:00"))
    authority = x509.load_der_x509_certificate(base64.b64decode(given["authority"]))
    certificate = check_certificate(base64.b64decode(given["certificate"]), authority, at("12:00"))
    assert (certificate.device_id, certificate.operator_id) == (NEW, "OP-FUTA")
    assert certificate.public_key == key("new").public_key()
    assert is_taken(client, key("new"), 1)
    assert not is_taken(client, key("another"), 2)


def test_a_device_is_told_whose_publications_it_may_believe(client: TestClient, service: Service) -> None:
    given = enrol(client, code_for(service), key("new")).json()["publishers"]
    found = read_publishers(str(given).replace("'", '"').encode())
    assert {key_id: (one.name, one.role) for key_id, one in found.items()} == {b"service-1": ("service", Role.SERVICE)}


def test_an_operators_authority_is_made_once_and_nobody_else_can_read_its_key(client: TestClient, service: Service) -> None:
    first = enrol(client, code_for(service), key("new")).json()
    second = enrol(client, code_for(service, "bus-8"), key("other"), DeviceId("bus-8")).json()
    assert first["authority"] == second["authority"]
    path = service.settings.data / "keys" / "ca-OP-FUTA.pem"
    assert path.stat().st_mode & 0o777 == 0o600
    assert isinstance(load_pem_private_key(path.read_bytes(), None), Ed25519PrivateKey)


def test_the_limits_of_the_code_are_the_devices(client: TestClient, service: Service) -> None:
    enrol(client, code_for(service, limits=DeviceLimits(routes=frozenset({"2"}))), key("new"))
    assert not is_taken(client, key("new"), 1)
    assert rows(service.database, "select reason from quarantine") == [("wrong_route",)]


def test_a_code_is_good_once(client: TestClient, service: Service) -> None:
    code = code_for(service)
    assert enrol(client, code, key("new")).status_code == 200
    assert_problem(enrol(client, code, key("another")), 403, "wrong_code")
    assert not is_taken(client, key("another"), 1)


def test_a_device_that_did_not_hear_the_answer_asks_again_and_gets_the_same(client: TestClient, service: Service) -> None:
    code = code_for(service)
    first, again = (enrol(client, code, key("new")).json() for _ in range(2))
    assert first["certificate"] == again["certificate"]
    assert rows(service.database, "select count(*) from device_keys") == [(1,)]


def test_a_code_ends(client: TestClient, service: Service, clock: Clock) -> None:
    code = code_for(service, hours=1)
    clock.now += HOUR_MS
    assert_problem(enrol(client, code, key("new")), 403, "wrong_code")


@pytest.mark.parametrize("revoked", [False, True])
def test_a_device_id_is_enrolled_once_whatever_became_of_it(client: TestClient, service: Service, revoked: bool) -> None:
    code = code_for(service)
    other = code_for(service)
    enrol(client, code, key("new"))
    if revoked:
        with service.database.write() as connection:
            registry.revoke_device(connection, NEW, at("12:00"))
    assert_problem(enrol(client, other, key("another")), 409, "known_device")
    with pytest.raises(EnrolmentError, match="known_device"):
        code_for(service)


def test_a_key_belongs_to_one_device(client: TestClient, service: Service) -> None:
    enrol(client, code_for(service), key("new"))
    other = DeviceId("bus-8")
    assert_problem(enrol(client, code_for(service, other), key("new"), other), 409, "key_in_use")


def test_a_request_that_is_refused_leaves_the_code_good(client: TestClient, service: Service) -> None:
    code = code_for(service)
    assert_problem(enrol(client, code, key("new"), DeviceId("bus-8")), 403, "wrong_name")
    elliptic = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NEW)])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(elliptic, SHA256()).public_bytes(Encoding.DER)
    heard = client.post("/v1/devices/enrol", json={"code": code, "request": text(request)})
    assert_problem(heard, 400, "unsupported_algorithm")
    assert enrol(client, code, key("new")).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"{", b"null", b'{"code": "x"}', b'{"code": 1, "request": ""}', b"[" * 5000, b"\xff",
        b'{"code": "AAAA", "request": "AAAA", "operator_id": "OP-HURC1"}', b'{"code": "AAAA", "request": "%%%"}',
    ],
)  # fmt: skip
def test_a_body_that_is_none_is_a_problem(client: TestClient, body: bytes) -> None:
    heard = client.post("/v1/devices/enrol", content=body)
    assert_problem(heard, 400, "malformed")


def test_a_body_that_is_too_long_is_not_read_to_its_end(client: TestClient) -> None:
    assert_problem(client.post("/v1/devices/enrol", content=b" " * 20_000), 413, "too_large")


def test_whoever_tries_codes_is_kept_out_for_a_while(client: TestClient, service: Service, clock: Clock) -> None:
    code = code_for(service)
    for number in range(registry.MAX_FAILURES):
        assert_problem(enrol(client, f"AAAA-AAAA-AAAA-AAA{'ABCDEFG'[number]}", key("new")), 403, "wrong_code")
    heard = enrol(client, code, key("new"))
    assert_problem(heard, 429, "locked")
    assert int(heard.headers["retry-after"]) > 0
    clock.now += registry.LOCK_MS
    assert enrol(client, code, key("new")).status_code == 200


def test_of_two_processes_that_get_one_code_at_once_one_enrols_the_device(desk: Desk, tmp_path: Path) -> None:
    for attempt in range(5):
        device = DeviceId(f"bus-{100 + attempt}")
        with desk.database.write() as connection:
            code = enrolment.make_code(connection, device, "OP-FUTA", None, at("13:00"), os.urandom)
        outcomes = at_once([(desk.url, tmp_path, code, device, f"{attempt}-{number}") for number in range(4)])
        assert sorted(outcomes) == ["enrolled", "wrong_code", "wrong_code", "wrong_code"]
        assert desk.rows(f"select count(*) from devices where device_id = '{device}'") == [(1,)]


def at_once(tries: list[tuple[str, Path, str, DeviceId, str]]) -> list[str]:
    """What becomes of some attempts that begin together, each over a database of its own."""
    barrier, outcomes = threading.Barrier(len(tries)), []

    def attempt(url: str, data: Path, code: str, device: DeviceId, name: str) -> None:
        database = Database(url, AT_REST_KEY)
        request = make_request(key(name), device)
        barrier.wait()
        try:
            enrolment.enrol(database, data, code, request, name, at("12:00"), os.urandom)
            outcomes.append("enrolled")
        except EnrolmentError as error:
            outcomes.append(error.cause)
        finally:
            database.dispose()

    threads = [threading.Thread(target=attempt, args=each) for each in tries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


# ---- another key


def test_a_device_changes_its_key_and_both_are_good_for_a_day(client: TestClient, service: Service, clock: Clock) -> None:
    enrol(client, code_for(service), key("new"))
    heard = rotate(client, key("new"), key("newer"))
    assert heard.status_code == 200, heard.text
    assert is_taken(client, key("newer"), 1)
    assert is_taken(client, key("new"), 2)
    clock.now += enrolment.OVERLAP_MS
    assert not is_taken(client, key("new"), 3)
    heard = client.post("/v1/taps", content=tap_signed_by(key("newer"), Stream(NEW, epoch=4)), headers=COSE)
    assert heard.status_code == 200
    assert rows(service.database, "select payer, sum(amount) from lines group by 1") == [("rider:anna", 2 * BUS_FARE)]


def test_a_change_whose_answer_was_lost_is_answered_again(client: TestClient, service: Service) -> None:
    enrol(client, code_for(service), key("new"))
    first, again = (rotate(client, key("new"), key("newer")).json() for _ in range(2))
    assert first["certificate"] == again["certificate"]
    assert rotate(client, key("newer"), key("newest")).status_code == 200


def test_who_has_only_the_old_key_or_none_changes_nothing(client: TestClient, service: Service) -> None:
    enrol(client, code_for(service), key("new"))
    assert_problem(rotate(client, key("thief"), key("thief's next")), 403, "bad_signature")
    rotate(client, key("new"), key("newer"))
    assert_problem(rotate(client, key("new"), key("thief's next")), 403, "bad_signature")
    assert_problem(rotate(client, key("newer"), key("new")), 409, "key_in_use")
    assert_problem(rotate(client, key("newer"), key("newer")), 403, "bad_signature")
    assert rows(service.database, "select count(*) from device_keys") == [(2,)]


def test_a_revoked_or_unknown_device_gets_no_key(client: TestClient, service: Service) -> None:
    assert_problem(rotate(client, key("new"), key("newer")), 404, "unknown_device")
    enrol(client, code_for(service), key("new"))
    with service.database.write() as connection:
        registry.revoke_device(connection, NEW, at("11:00"))
    assert_problem(rotate(client, key("new"), key("newer")), 403, "revoked_device")


def test_a_device_that_was_there_before_there_were_codes_changes_its_key_too(client: TestClient) -> None:
    assert rotate(client, key_of("bus-1"), key("newer"), DeviceId("bus-1")).status_code == 200


# ---- as commands


def test_codes_limits_and_revocation_are_commands(service: Service, tmp_path: Path) -> None:
    with service.database.write() as connection:
        registry.save_settings(connection, {"tariff": "tariffs/hcmc", "adopt": ",".join(ADOPTED)})

    def run(*arguments: str) -> Any:
        return motthe("devices", *arguments, "--data", f"{tmp_path}")

    made = run("code", "bus-7", "--operator", "OP-FUTA", "--route", "1", "--taps-a-minute", "30")
    assert made.returncode == 0, made.stderr
    assert len(made.stdout.strip()) == 19
    assert run("code", "bus-1", "--operator", "OP-FUTA").returncode == 1
    assert run("code", "bus-7", "--operator", "OP-NOBODY").returncode == 2
    enrolment.enrol(service.database, tmp_path, made.stdout, make_request(key("new"), NEW), "", service.clock(), os.urandom)
    assert run("limit", "bus-7", "--stop", "L1-01").returncode == 0
    assert run("revoke", "bus-7").returncode == 0
    listed = run("list", "--operator", "OP-FUTA").stdout
    assert "bus-7 OP-FUTA revoked at " in listed
    assert '"stops":["L1-01"]' in listed
    assert run("revoke", "nobody").returncode == 1
