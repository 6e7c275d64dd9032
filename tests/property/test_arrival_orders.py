"""A week of two people with three tokens, in any order of arrival: taps, cancelled taps, passes, links, payers, claims and clock
corrections come in as they like, some of them twice. What everybody pays in the end is the same to the byte."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import msgspec
import pytest

from fare_engine import booking
from fare_engine.application import Application
from fare_engine.facts import Completion, Purchase, in_order
from fare_engine.linking import change_payer, link_token, open_traveller
from fare_engine.mending import completion
from fare_engine.pricing.lines import line_id
from fare_engine.receipt import Receipt
from fare_engine.service_day import DAY_MS, MINUTE_MS
from fare_engine.store import travellers
from fare_engine.store.database import Database
from fare_engine.store.registry import Correction
from fare_engine.store.travellers import Account
from fare_engine.tap_format import Decision, Outcome, TapKind
from fare_engine.tariff.compile import CompiledTariff, load_compiled
from fare_engine.tokens import stored_token
from tests.builders import HCMC
from tests.integration.desk import (
    ADOPTED,
    AT_REST_KEY,
    BEN_THANH,
    SERVER_KEY,
    SUOI_TIEN,
    TAN_CANG,
    Stream,
    at,
    check_books,
    fill,
    terminal_token,
)

Deed = Callable[["World"], None]
NOW = at("12:00") + 9 * DAY_MS
FIRST = at("06:00")
STATIONS = (BEN_THANH, TAN_CANG, SUOI_TIEN, "L1-08")


class World:
    """One process over a store."""

    def __init__(self, tariff: CompiledTariff, database: Database) -> None:
        self.database = database
        self.application = Application(tariff, SERVER_KEY)
        self.receipt = Receipt(self.database, self.application)

    @classmethod
    def new(cls, tariff: CompiledTariff, url: str = "sqlite://") -> World:
        """A store with the desk's devices and cards, an account for a family and a child in it; in memory if nothing is said."""
        database = Database(url, AT_REST_KEY)
        database.create()
        fill(database)
        with database.write() as connection:
            travellers.add_accounts(connection, [Account("family", "postpaid", 0)])
            open_traveller(connection, "child", "family")
        return cls(tariff, database)

    def send(self, message: bytes) -> None:
        """A message arrives."""
        self.receipt.accept_group([message], NOW)

    def outcome(self) -> bytes:
        """What everybody pays in the end, and why."""
        found: dict[str, object] = {}
        with self.database.read() as connection:
            for traveller in travellers.all_travellers(connection):
                record = traveller.record
                folded = booking.price(self.application.tariff, record, NOW)
                standing = {key: booked for key, booked in record.booked.items() if booking.stands(booked)}
                assert {line_id(line): line for line in folded.lines} == {key: b.line for key, b in standing.items()}
                paid_by = {key: booking.payer_on(record, booked.line.service_day) for key, booked in standing.items()}
                found[traveller.traveller_id] = (
                    in_order(record.facts),
                    folded.lines,
                    sorted(paid_by.items()),
                    traveller.account_id,
                )
            accounts = travellers.find_accounts(connection, ["anna", "binh", "chi", "family"])
        found["balances"] = sorted((account.account_id, account.balance) for account in accounts.values())
        check_books(self.database)
        return msgspec.json.encode(found, order="deterministic")


def week(seed: int) -> list[list[Deed]]:
    """What happens, as sequences: the deeds of one sequence arrive in its order, sequences in any."""
    chance = random.Random(seed)
    found: list[list[Deed]] = []
    epoch = 0
    for token in ("anna", "binh", "chi"):
        instant = FIRST + chance.randrange(6) * MINUTE_MS
        for _ in range(chance.randint(2, 5)):
            epoch += 1
            instant += chance.randrange(20, 2000) * MINUTE_MS
            found += _ride(chance, token, epoch * 10, instant)
    found += [[deed] for deed in _changes(chance)]
    return found


def _ride(chance: random.Random, token: str, epoch: int, instant: int) -> Iterator[list[Deed]]:
    """A bus, or a metro ride whose exit may be missing, cancelled or completed."""
    alone = {"decision": Decision.ADMITTED_ALONE}
    if chance.random() < 0.4:
        bus = Stream("bus-1", epoch)
        place = bus.add(TapKind.BOARD, instant, token, route_id="1", **alone)
        if chance.random() < 0.3:
            bus.outcome("12:00", place, Outcome.GATE_NOT_OPENED)
        yield _messages(bus)
        return
    start, end = chance.sample(STATIONS, 2)
    entry = Stream("gate-1", epoch)
    entry.add(TapKind.ENTRY, instant, token, stop_id=start, **alone)
    found = [_messages(entry)]
    if chance.random() < 0.6:
        leave = Stream("gate-2", epoch + 1)
        leave.add(TapKind.EXIT, instant + chance.randrange(5, 60) * MINUTE_MS, token, stop_id=end, **alone)
        found.append(_messages(leave))
    if chance.random() < 0.4:
        leg_id = f"gate-1/{entry.epoch.hex()}/1"
        fact = completion(leg_id, end, instant + 20 * MINUTE_MS, "claim", NOW)
        found[0].append(_complete(fact))
    yield from found


def _messages(stream: Stream) -> list[Deed]:
    return [_message(stream, number) for number in range(1, len(stream.taps) + 1)]


def _message(stream: Stream, number: int) -> Deed:
    message = stream.message(number, number)
    return lambda world: world.send(message)


def _complete(fact: Completion) -> Deed:
    def deed(world: World) -> None:
        world.database.transact(lambda connection: world.application.complete_leg(connection, fact, NOW))

    return deed


def _changes(chance: random.Random) -> Iterator[Deed]:
    token_id = stored_token(SERVER_KEY, terminal_token(chance.choice(("anna", "binh", "chi"))))
    since = FIRST + chance.randrange(5) * DAY_MS
    day = 20_514 + chance.randrange(5)
    purchase = Purchase("shop/1", since, "shop", "shop", 1, token_id, "emv", "adult", "JNT-1D")
    correction = Correction("c1", "gate-2", FIRST, FIRST + 3 * DAY_MS, -7 * MINUTE_MS, NOW, "test")

    def link(world: World) -> None:
        world.database.transact(
            lambda connection: link_token(connection, world.application, token_id, "child", since, NOW, "test"), alone=True
        )

    def pay(world: World) -> None:
        world.database.transact(
            lambda connection: change_payer(connection, world.application, "binh", "family", day, NOW), alone=True
        )

    def correct(world: World) -> None:
        world.database.transact(lambda connection: world.application.correct_clock(connection, correction, NOW), alone=True)

    def buy(world: World) -> None:
        world.database.transact(lambda connection: world.application.sell(connection, purchase, NOW))

    yield from (link, pay, correct, buy)


def arrive(tariff: CompiledTariff, sequences: list[list[Deed]], chance: random.Random | None) -> bytes:
    """Let everything happen in some order (None: as listed), some of it twice; what everybody pays."""
    world = World.new(tariff)
    waiting = [list(sequence) for sequence in sequences]
    while waiting:
        number = chance.randrange(len(waiting)) if chance is not None else 0
        deed = waiting[number].pop(0)
        deed(world)
        if chance is not None and chance.random() < 0.1:
            deed(world)
        if not waiting[number]:
            del waiting[number]
    found = world.outcome()
    world.database.dispose()
    return found


def check_orders(seed: int, orders: int) -> int:
    """Some orders of one week against the order as listed; how many."""
    tariff = load_compiled(HCMC, ADOPTED)
    sequences = week(seed)
    expected = arrive(tariff, sequences, None)
    for number in range(orders):
        assert arrive(tariff, sequences, random.Random(f"{seed}/{number}")) == expected, f"week {seed}, order {number}"
    return orders


@pytest.mark.parametrize("seed", range(12))
def test_a_week_costs_the_same_in_any_order_of_arrival(seed: int) -> None:
    assert check_orders(seed, 4) == 4


@pytest.mark.prove
@pytest.mark.timeout(7200)
def test_ten_thousand_orders_of_arrival_cost_the_same() -> None:
    first = int(os.environ.get("MOTTHE_SEED", "1000"))
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        counts = pool.map(check_orders, range(first, first + 500), [20] * 500)
        assert sum(counts) == 10_000
