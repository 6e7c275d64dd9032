"""The collecting process dies, the provider fails and repeats, several processes collect at once: no money twice, none lost."""

from __future__ import annotations

import csv
import io
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from clearing.collection import store
from clearing.collection.charges import Charge, Event
from clearing.collection.collector import Collector
from clearing.collection.opening import provider_secret
from fare_engine.store.database import Database
from tests.builders import SERVER_KEY
from tests.collecting import TUESDAY, WEDNESDAY, CollectingTown, ProviderProcess, collecting, provider_process, start_collecting
from tests.served import free_port, start

RIDERS = [f"rider{number}" for number in range(12)]


def theirs(provider: ProviderProcess) -> Counter[str]:
    """What the provider's own books say was taken of each source, net."""
    with closing(sqlite3.connect(provider.books)) as database:
        moved = database.execute(
            "select source, sum(case when kind in ('captured', 'won_back') then moves.amount else -moves.amount end)"
            " from moves join charges using (charge_id) group by source"
        )
        return Counter({source: int(amount) for source, amount in moved if amount})


def ours(town: CollectingTown) -> Counter[str]:
    """What our books say was taken of each account's source, net."""
    found: Counter[str] = Counter()
    for debit, credit, amount in town.rows("select debit, credit, amount from postings where code in ('COLLECTED', 'TOPPED_UP')"):
        if str(debit) == "collector:ACQ":
            found[str(credit).replace("rider:account-", "src-")] += int(amount)  # type: ignore[call-overload]
    return found


def settle(town: CollectingTown, *dates: str) -> None:
    """Run the days to their end, however often that takes."""
    for date in dates:
        town.collector.collect(date, now())


def now() -> int:
    """The machine's clock, by which processes of their own go."""
    return time.time_ns() // 1_000_000


PLAIN = ("--delay", "0.15")
FAILING = (*PLAIN, "--fail", "0.5", "--decline", "0.2")


@pytest.mark.parametrize(("after", "options"), [(0, PLAIN), (1, PLAIN), (9, PLAIN), (4, FAILING)])
def test_a_run_that_is_killed_is_taken_up_and_nobody_is_charged_twice(
    tmp_path: Path, after: int, options: tuple[str, ...]
) -> None:
    town = collecting(tmp_path, *RIDERS)
    town.ride(TUESDAY, *RIDERS)
    with provider_process(town, "--seed", f"{after}", *options) as provider:
        process = start_collecting(town, TUESDAY, provider.url)
        while provider.captured() < after and process.poll() is None:
            time.sleep(0.002)
        if after == 0:  # before anybody is asked: when the first intent is there
            while not town.charges(RIDERS[0]) and process.poll() is None:
                time.sleep(0.002)
        process.kill()
        process.wait()
        settle(town, TUESDAY, TUESDAY)
        assert theirs(provider) == ours(town)
        assert all(amount == 5000 for amount in theirs(provider).values())
        assert town.kinds(town.after(TUESDAY), provider.settlement()) == []
        declined = [card for card in RIDERS if town.charges(card)[0].state == "declined"]
        assert sorted(theirs(provider)) == sorted(f"src-{card}" for card in RIDERS if card not in declined)
    assert {town.charges(card)[0].state for card in RIDERS} <= {"captured", "declined"}
    town.assert_sound()


def test_a_top_up_that_is_killed_gives_money_and_value_or_neither(tmp_path: Path) -> None:
    town = collecting(tmp_path, "ana", kind="prepaid")
    with provider_process(town, "--decline", "0") as provider:
        provider.tell("behave", source="src-ana", behaviour="loses")
        at = now()
        assert town.collector.top_up("account-ana", 50_000, "k", at).state == "begun"
        assert (town.balance("ana"), theirs(provider)["src-ana"]) == (0, 50_000)
        assert town.kinds(at, provider.settlement()) == ["missing_in_our_feed"]
        town.collector.run_turn(at + 60_000)
        assert town.balance("ana") == 50_000
        assert town.kinds(at, provider.settlement()) == []


def test_a_refund_whose_answer_is_lost_is_asked_for_again_and_given_once(tmp_path: Path) -> None:
    town = collecting(tmp_path, "ana")
    town.ride(TUESDAY, "ana")
    with provider_process(town, "--decline", "0", "--fail", "1") as provider:
        settle(town, TUESDAY, TUESDAY)
        asked = town.collector.refund(town.line_of("ana"), 2000, "late", now())
        assert (asked.state, theirs(provider)["src-ana"]) == ("asked", 3000)
        assert town.kinds(now(), provider.settlement()) == ["missing_in_our_feed"]
        town.collector.run_turn(now() + 60_000)
        assert town.kinds(now(), provider.settlement()) == []
        assert theirs(provider)["src-ana"] == town.booked("collector:ACQ") == 3000
    town.assert_sound()


@contextmanager
def served(town: CollectingTown, *options: str) -> Iterator[ProviderProcess]:
    """The town's service as a process that hears a provider's webhooks."""
    provider_secret(town.data)
    (town.data / "keys" / "server.key").write_bytes(SERVER_KEY)
    port, provider_port = free_port(), free_port()
    hook = f"http://127.0.0.1:{port}/v1/provider/events"
    provider = ProviderProcess(town.data, town.data / "keys" / "provider.key", "--webhook", hook, *options, port=provider_port)
    environment = {"MOTTHE_PROVIDER_URL": provider.url, "MOTTHE_TARIFF": f"{town.opened.tariff_folder}"}
    service = start(town.data, port, environment, "--no-jobs")
    try:
        town.collector = town.open(provider.url)
        yield provider
    finally:
        service.terminate()
        service.wait(20)
        provider.stop()


def test_webhooks_late_twice_and_in_any_order_beside_answers_that_are_lost(tmp_path: Path) -> None:
    town = collecting(tmp_path, *RIDERS)
    town.ride(TUESDAY, *RIDERS)
    manners = ("--decline", "0.2", "--fail", "0.6", "--pending", "0.3", "--delay", "0.2", "--repeat", "0.8")
    with served(town, *manners) as provider:
        town.collector.collect(TUESDAY, now())
        deadline = time.monotonic() + 30
        while any(charge.state in ("begun", "pending") for card in RIDERS for charge in town.charges(card)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        (one, *_) = [card for card in RIDERS if town.charges(card)[0].state == "captured"]
        charge_id = town.charges(one)[0].charge_id
        provider.tell("move", kind="charged_back", charge_id=charge_id, amount=5000, reference="cb-1")
        while town.balance(one) == 0:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(1)  # what is repeated comes in
        assert town.kinds(town.after(TUESDAY), provider.settlement()) == []
        assert town.is_blocked(one)
        provider.tell("move", kind="won_back", charge_id=charge_id, amount=5000, reference="cb-1")
        while town.balance(one) != 0:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(1)
        assert town.kinds(town.after(TUESDAY), provider.settlement()) == []
        assert not town.is_blocked(one)
    town.assert_sound()


def test_several_processes_that_collect_one_date_at_once_charge_everybody_once(tmp_path: Path) -> None:
    town = collecting(tmp_path, *RIDERS)
    town.ride(TUESDAY, *RIDERS)
    with provider_process(town, "--decline", "0", "--delay", "0.05") as provider:
        running = [start_collecting(town, TUESDAY, provider.url) for _ in range(2)]
        assert [process.wait(60) for process in running] == [0, 0]
        assert theirs(provider) == ours(town) == Counter({f"src-{card}": 5000 for card in RIDERS})
    town.assert_sound()


def test_on_postgresql_runs_and_webhooks_at_once_take_and_book_everything_once(tmp_path: Path, empty_postgres: str) -> None:
    town = collecting(tmp_path, *RIDERS)
    town.ride(TUESDAY, *RIDERS)
    town.ride(WEDNESDAY, *RIDERS)
    copied = copy_of(town, empty_postgres)
    with provider_process(town, "--decline", "0.1", "--delay", "0.02", "--fail", "0.3") as provider:
        collectors = [Collector(copied, town.tariff, town.collector.rules, town.collector.provider) for _ in range(3)]
        faults: list[BaseException] = []

        def run(collector: Collector, date: str) -> None:
            try:
                collector.collect(date, town.after(date))
            except BaseException as fault:
                faults.append(fault)

        for date in (TUESDAY, WEDNESDAY):
            threads = [threading.Thread(target=run, args=(collector, date)) for collector in collectors]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        run(collectors[0], WEDNESDAY)
        charge = next(charge for charge in charges_in(copied) if charge.state == "captured")
        back = Event(
            event_id="cb", charge_id=charge.charge_id, kind="charged_back", reference="cb", amount=charge.amount, at=1
        )  # fmt: skip
        with ThreadPoolExecutor(6) as pool:
            news = list(pool.map(lambda number: collectors[number % 3].take(back, now()), range(12)))
        assert sorted(news) == [False] * 11 + [True]
        provider.tell("move", kind="charged_back", charge_id=charge.charge_id, amount=charge.amount, reference="cb")
        assert faults == []
        town.database, town.collector = copied, collectors[0]
        assert theirs(provider) + Counter({charge.source: charge.amount}) == ours(town)
        assert town.kinds(town.after(WEDNESDAY), provider.settlement()) == []
    town.assert_sound()
    copied.dispose()


def charges_in(database: Database) -> list[Charge]:
    """Every charge of a store."""
    with database.read() as connection:
        return store.list_charges(connection)


def copy_of(town: CollectingTown, url: str) -> Database:
    """The town's store on another database."""
    found = Database(url, (town.data / "keys" / "at-rest.key").read_bytes())
    found.create()
    with town.database.read() as source, found.write() as target:
        for table in store.metadata.sorted_tables:
            rows = [dict(row._mapping) for row in source.execute(table.select())]
            if rows:
                target.execute(table.insert(), rows)
    with found.write() as connection:
        for table, column in (
            ("lines", "row_number"),
            ("postings", "row_number"),
            ("batches", "batch_id"),
            ("deny_changes", "version"),
        ):
            newest = f"(select coalesce(max({column}), 0) + 1 from {table})"
            connection.exec_driver_sql(f"select setval(pg_get_serial_sequence('{table}', '{column}'), {newest})")
    return found


def test_the_provider_s_report_is_what_its_books_say(tmp_path: Path) -> None:
    town = collecting(tmp_path, "ana")
    town.ride(TUESDAY, "ana")
    with provider_process(town, "--decline", "0") as provider:
        settle(town, TUESDAY)
        rows = list(csv.DictReader(io.StringIO(provider.settlement())))
        assert [(row["kind"], row["amount"]) for row in rows] == [("captured", "5000")]
