"""What terminals are given of the deny list and the rules, over real HTTP, and how soon a thousand of them hear of a change."""

from __future__ import annotations

import asyncio
import gc
import math
import random
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from starlette.testclient import TestClient

from fare_engine import publications, publishing
from fare_engine.booking import Record
from fare_engine.errors import NotFoundError, PublicationError
from fare_engine.pricing.state import NEVER
from fare_engine.publications import Delta, Kind, Publication, Snapshot, TerminalRules, open_publication
from fare_engine.service import devices
from fare_engine.service.app import Service, create_app, open_service
from fare_engine.settings import Settings
from fare_engine.store import deny, registry, travellers
from fare_engine.store.database import Database
from fare_engine.store.travellers import Account, NewToken, Traveller
from fare_engine.tokens import stored_card_number, stored_token
from tests.builders import HCMC
from tests.demos import motthe
from tests.integration.desk import ADOPTED, AT_REST_KEY, SERVER_KEY, Desk, at, equip, rows, serving, terminal_token
from tests.served import serving_process
from validators.deny_list import EMPTY, Limits
from validators.published import Published
from validators.rules import RuleBook
from validators.uplink import HttpUplink

DENY_LIST, RULES = "/v1/publications/deny-list", "/v1/publications/rules"
MOST_S = 5.0
"""No terminal that waits hears of a change later than this."""


@dataclass
class Clock:
    now: int

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def service(tmp_path: Path, equipped: Path) -> Iterator[Service]:
    write_keys(tmp_path)
    shutil.copy(equipped, tmp_path / "motthe.db")
    found = open_service(Settings(data=tmp_path, tariff=HCMC, adopt=ADOPTED), Clock(at("12:00")))
    yield found
    found.database.dispose()
    gc.unfreeze()


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service, (devices.router,)), raise_server_exceptions=False) as found:
        yield found


def write_keys(data: Path) -> None:
    (data / "keys").mkdir()
    (data / "keys" / "server.key").write_bytes(SERVER_KEY)
    (data / "keys" / "at-rest.key").write_bytes(AT_REST_KEY)


def change(service: Service, *tokens: bytes, added: bool = True) -> None:
    with service.database.write() as connection:
        deny.add_changes(connection, tokens, at("12:00"), "test", added=added)


def heard(client: TestClient, service: Service, path: str) -> Publication | None:
    """What a terminal is given under a path."""
    answer = client.get(path)
    if answer.status_code == 204:
        return None
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/cose"), answer.text
    return open_publication(answer.content, publishing.trusted(service.settings.data))


def token(number: int) -> bytes:
    return terminal_token(f"token {number}")


def cut(*numbers: int) -> bytes:
    return publications.join_cut(token(number) for number in numbers)


def persons(data: Path, *names: str) -> list[Path]:
    """Persons with a key each."""
    paths = [data / f"{name}.pem" for name in names]
    for name, path in zip(names, paths, strict=True):
        publishing.add_person(data, name, path, f"{name}-1")
    return paths


# ---- the deny list


def test_who_holds_nothing_gets_the_whole_list_and_who_holds_it_gets_nothing(client: TestClient, service: Service) -> None:
    assert heard(client, service, f"{DENY_LIST}?from=0") is None
    change(service, token(1), token(2))
    found = heard(client, service, f"{DENY_LIST}?from=0")
    assert found is not None
    assert (found.kind, found.serial, found.base, found.made_at) == (Kind.DENY_LIST, 2, None, at("12:00"))
    assert found.content == Snapshot(cut(1, 2))
    assert found.publishers == {"service"}
    assert heard(client, service, f"{DENY_LIST}?from=2") is None
    assert heard(client, service, f"{DENY_LIST}?from=9") is None, "a list that is newer than ours is left alone"


def test_who_holds_a_version_gets_what_changed_since_if_that_is_shorter(client: TestClient, service: Service) -> None:
    change(service, *(token(number) for number in range(10)))
    change(service, token(10), token(11))
    change(service, token(0), token(3), token(11), added=False)
    found = heard(client, service, f"{DENY_LIST}?from=10")
    assert found is not None
    assert (found.serial, found.base) == (15, 10)
    assert found.content == Delta(cut(10), cut(0, 3)), "a token that came and went is not spoken of"
    found = heard(client, service, f"{DENY_LIST}?from=1")
    assert found is not None
    assert found.content == Snapshot(cut(1, 2, 4, 5, 6, 7, 8, 9, 10)), "nearly everything is new: the whole list is shorter"


@pytest.mark.parametrize("seed", range(5))
def test_any_terminal_that_follows_holds_the_servers_list(service: Service, client: TestClient, seed: int) -> None:
    chance = random.Random(seed)
    trusted = publishing.trusted(service.settings.data)
    terminals = [Published(EMPTY, RuleBook(TerminalRules()), trusted, Limits()) for _ in range(3)]
    for _ in range(60):
        change(service, token(chance.randrange(30)), added=chance.random() < 0.6)
        for terminal in terminals:
            if chance.random() < 0.4:
                answer = client.get(terminal.path(Kind.DENY_LIST))
                if answer.status_code == 200:
                    assert terminal.take(Kind.DENY_LIST, answer.content, at("12:00"), at("12:00")) is None
        with service.database.read() as connection:
            version = deny.newest_version(connection)
            wanted = deny.denied_at(connection, version)
        for terminal in terminals:
            if terminal.deny_list.version == version:
                assert [number.to_bytes(8, "big") for number in terminal.deny_list.tokens] == wanted


def test_a_list_that_is_confirmed_is_a_newer_version_of_the_same(client: TestClient, service: Service) -> None:
    change(service, token(1))
    with service.database.write() as connection:
        assert publishing.confirm(connection, at("12:00")) == 2
    found = heard(client, service, f"{DENY_LIST}?from=1")
    assert found is not None
    assert (found.serial, found.content) == (2, Delta(b"", b""))


def test_a_whole_list_that_two_persons_signed_goes_before_any_change(client: TestClient, service: Service) -> None:
    data = service.settings.data
    keys = persons(data, "Lan", "Minh")
    change(service, *(token(number) for number in range(5)))
    with service.database.write() as connection:
        assert publishing.publish_whole_list(connection, publishing.signers_of(data, keys), at("12:00")) == 6
    change(service, token(7))
    for held in (0, 1, 5):
        found = heard(client, service, f"{DENY_LIST}?from={held}")
        assert found is not None
        assert (found.serial, found.content, found.persons) == (6, Snapshot(cut(0, 1, 2, 3, 4)), {"Lan", "Minh"})
    found = heard(client, service, f"{DENY_LIST}?from=6")
    assert found is not None
    assert (found.serial, found.content, found.persons) == (7, Delta(cut(7), b""), frozenset())


def test_blocking_a_token_denies_it_to_terminals_too_and_unblocking_takes_it_back(desk: Desk) -> None:
    anna = stored_token(SERVER_KEY, terminal_token("anna"))
    with desk.database.write() as connection:
        assert publishing.block(connection, anna, at("09:00"), "lost")
        assert deny.denied_at(connection, deny.newest_version(connection)) == [terminal_token("anna")[:8]]
    assert desk.rows(f"select blocked_at from tokens where token_id = '{anna}'") == [(at("09:00"),)]
    with desk.database.write() as connection:
        assert publishing.unblock(connection, anna, at("10:00"), "found")
        assert deny.denied_at(connection, deny.newest_version(connection)) == []
        with pytest.raises(NotFoundError):
            publishing.block(connection, "nobody", at("10:00"), "lost")
    assert desk.rows(f"select blocked_at from tokens where token_id = '{anna}'") == [(None,)]


@pytest.mark.parametrize("path", [f"{DENY_LIST}?from=-1", f"{DENY_LIST}?from=x", f"{RULES}?from={1 << 50}", f"{RULES}?wait=-1"])
def test_what_is_no_version_is_refused(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 422


# ---- rules


def test_rules_are_given_with_the_signatures_of_those_who_approved_them(client: TestClient, service: Service) -> None:
    data = service.settings.data
    keys = persons(data, "Lan", "Minh")
    rules = TerminalRules(pass_back_ms=60_000)
    with service.database.write() as connection:
        signers = publishing.signers_of(data, keys)
        assert publishing.publish_rules(connection, rules, at("13:00"), signers, at("12:00")) == 1
        assert publishing.publish_rules(connection, TerminalRules(), at("14:00"), signers, at("12:00")) == 2
    found = heard(client, service, f"{RULES}?from=1")
    assert found is not None
    assert (found.serial, found.activates_at, found.content) == (2, at("14:00"), TerminalRules())
    assert found.persons == {"Lan", "Minh"}
    assert heard(client, service, f"{RULES}?from=2") is None
    assert service.receipt.published.rules_version == 2


def test_rules_come_from_a_file_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text('pass_back_ms = 60000\nmedia_offline = ["emv", "qr"]\n', encoding="utf-8")
    assert publishing.read_rules_file(path) == TerminalRules(pass_back_ms=60_000, media_offline=("emv", "qr"))
    for wrong in ("pass_back = 1", 'pass_back_ms = "x"', "= 1", "pass_back_ms = 1.5"):
        path.write_text(wrong, encoding="utf-8")
        with pytest.raises(PublicationError, match="bad_content"):
            publishing.read_rules_file(path)


def test_a_key_that_terminals_do_not_know_signs_nothing(tmp_path: Path) -> None:
    (lan,) = persons(tmp_path, "Lan")
    assert lan.stat().st_mode & 0o777 == 0o600
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    persons(stranger, "Minh")
    with pytest.raises(PublicationError, match="not_trusted"):
        publishing.signers_of(tmp_path, [stranger / "Minh.pem"])
    with pytest.raises(PublicationError, match="not_trusted"):
        publishing.add_person(tmp_path, "Lan again", lan, "lan-2")
    (tmp_path / "no key").write_text("nothing")
    with pytest.raises(PublicationError, match="unsupported_algorithm"):
        publishing.signers_of(tmp_path, [tmp_path / "no key"])


def test_what_is_published_is_a_command(service: Service, client: TestClient, tmp_path: Path) -> None:
    with service.database.write() as connection:
        registry.save_settings(connection, {"tariff": "tariffs/hcmc", "adopt": ",".join(ADOPTED)})

    def run(*arguments: str) -> str:
        done = motthe("devices", *arguments, "--data", f"{tmp_path}")
        assert done.returncode == 0, done.stderr
        return done.stdout

    keys = [f"{tmp_path / name}.pem" for name in ("lan", "minh")]
    for name, path in zip(("Lan", "Minh"), keys, strict=True):
        run("person", name, path)
    signed = [argument for path in keys for argument in ("--signed-by", path)]
    anna = stored_token(SERVER_KEY, terminal_token("anna"))
    assert f"{anna} is blocked\n" in run("deny", anna, *signed)
    found = heard(client, service, f"{DENY_LIST}?from=0")
    assert found is not None
    assert (found.content, found.persons) == (Snapshot(terminal_token("anna")[:8]), {"Lan", "Minh"})
    assert "is good again" in run("allow", anna)
    assert "confirmed as version 4" in run("publish-deny-list")
    (tmp_path / "rules.toml").write_text("double_tap_ms = 2000\n", encoding="utf-8")
    said = run("publish-rules", f"{tmp_path / 'rules.toml'}", "--activates-at", "2026-03-04T03:00:00+07:00", *signed)
    assert said == "rules 1 act from 2026-03-04T03:00:00+07:00 on; signed by the service, Lan, Minh\n"
    found = heard(client, service, f"{RULES}?from=0")
    assert found is not None
    assert found.content == TerminalRules(double_tap_ms=2000)
    trust = run("trust").encode()
    assert {one.name for one in publications.read_publishers(trust).values()} == {"service", "Lan", "Minh"}


def test_a_lost_card_is_named_by_its_number_if_its_account_has_no_other(service: Service, tmp_path: Path) -> None:
    with service.database.write() as connection:
        registry.save_settings(connection, {"tariff": "tariffs/hcmc", "adopt": ",".join(ADOPTED)})
        for number, cards in (("9704 0001", ("dana",)), ("9704 0002", ("ebba", "finn"))):
            account = f"account {number}"
            travellers.add_accounts(connection, [Account(account, "postpaid", 0, stored_card_number(SERVER_KEY, number), "0001")])
            travellers.add_travellers(connection, [Traveller(card, account, Record(), NEVER) for card in cards])
            tokens = [
                NewToken(stored_token(SERVER_KEY, terminal_token(card)), card, account, terminal_token(card)) for card in cards
            ]
            travellers.add_tokens(connection, tokens)
    one, several, none = (
        motthe("devices", "deny", "--card", number, "--data", f"{tmp_path}") for number in ("9704-0001", "9704 0002", "9704 0003")
    )
    assert one.stdout == f"{stored_token(SERVER_KEY, terminal_token('dana'))} is blocked\n"
    assert several.returncode == none.returncode == 1
    assert "the card's account has 2 tokens, name one: " in several.stderr
    assert none.stderr == "error: no card has this number\n"
    assert rows(service.database, "select count(*) from tokens where blocked_at is not null") == [(1,)]


def test_a_list_that_nothing_changes_is_confirmed_twice_a_day(service: Service) -> None:
    with service.database.write() as connection:
        assert publishing.confirm_if_old(connection, at("12:00")) == 0, "there is none yet"
        deny.add_changes(connection, [token(1)], at("00:00"), "lost", added=True)
        assert [publishing.confirm_if_old(connection, at(clock)) for clock in ("11:59", "12:00", "12:01")] == [0, 1, 0]
        assert deny.newest_version(connection) == 2
        assert deny.denied_at(connection, 2) == [token(1)[:8]]


# ---- waiting for something new


def test_who_waits_hears_of_a_change_at_once_and_of_nothing_after_a_while(service: Service) -> None:
    with serving(create_app(service, (devices.router,))) as port, closing(HttpUplink(f"http://127.0.0.1:{port}")) as uplink:
        begun = time.monotonic()
        assert uplink.fetch(f"{DENY_LIST}?from=0&wait=1") is None
        assert 0.9 < time.monotonic() - begun < 3
        change(service, token(1))
        begun = time.monotonic()
        assert uplink.fetch(f"{DENY_LIST}?from=0&wait=25") is not None
        assert time.monotonic() - begun < 3


def test_a_hundred_terminals_that_wait_hear_of_a_change_within_seconds(tmp_path: Path) -> None:
    waits, signatures = changes_heard(tmp_path, terminals=100, changes=2)
    assert len(waits) == 200
    assert max(waits) <= MOST_S
    assert signatures == 2, "all who wait get the same bytes, signed once"


@pytest.mark.prove
def test_a_thousand_terminals_that_wait_hear_of_a_change_within_seconds(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    waits, signatures = changes_heard(tmp_path, terminals=1000, changes=5)
    waits.sort()
    assert len(waits) == 5000
    for name, share in (("p50_s", 0.5), ("p99_s", 0.99), ("max_s", 1.0)):
        record_property(name, round(waits[math.ceil(share * len(waits)) - 1], 3))
    assert waits[math.ceil(0.99 * len(waits)) - 1] <= MOST_S
    assert signatures == 5


def changes_heard(data: Path, terminals: int, changes: int) -> tuple[list[float], int]:
    """How long after each change's commit each of some terminals heard of it (seconds), and how many answers differed."""
    write_keys(data)
    equip(f"sqlite:///{data / 'motthe.db'}")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8192)), hard))
    with serving_process(data) as url:
        return asyncio.run(_changes_heard(url, data, terminals, changes))


async def _changes_heard(url: str, data: Path, terminals: int, changes: int) -> tuple[list[float], int]:
    database = Database(f"sqlite:///{data / 'motthe.db'}", AT_REST_KEY)
    waits: list[float] = []
    bodies: set[bytes] = set()
    committed = [0.0] * (changes + 1)

    async def terminal(session: aiohttp.ClientSession) -> None:
        held = 0
        while held < changes:
            async with session.get(f"{url}{DENY_LIST}?from={held}&wait=25") as response:
                body = await response.read()
            if response.status == 204:
                continue
            heard_at = time.monotonic()
            assert response.status == 200
            found = open_publication(body, publishing.trusted(data)) if body not in known else known[body]
            known[body] = found
            held = found.serial
            waits.append(heard_at - committed[held])
            bodies.add(body)

    known: dict[bytes, Publication] = {}

    def deny_one(number: int) -> None:
        with database.write() as connection:
            now = time.time_ns() // 1_000_000  # of an older list the service would make a confirmed version of its own
            deny.add_changes(connection, [token(number)], now, "test", added=True)
            committed[number] = time.monotonic()

    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        tasks = [asyncio.create_task(terminal(session)) for _ in range(terminals)]
        for number in range(1, changes + 1):
            await asyncio.sleep(4.3)  # all wait again by then, and no turn of the service's own clock is met
            await asyncio.to_thread(deny_one, number)
        await asyncio.gather(*tasks)
    database.dispose()
    return waits, len(bodies)
