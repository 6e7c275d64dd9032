"""Taps, links, payers, claims, purchases, clocks put right and the jobs at once, through several processes' worth of objects on
PostgreSQL: it ends as it does one after the other."""

from __future__ import annotations

import random
import threading

import pytest

from fare_engine import jobs
from fare_engine.store.database import Database
from fare_engine.tariff.compile import CompiledTariff
from tests.integration.desk import AT_REST_KEY
from tests.property.test_arrival_orders import NOW, Deed, World, arrive, week

PROCESSES = 4


class Process(threading.Thread):
    """Takes sequences of deeds from the pile, with its own connections and caches, until there are none."""

    def __init__(self, world: World, pile: list[list[Deed]]) -> None:
        super().__init__()
        self.world, self.pile = world, pile
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            while self.pile:
                try:
                    sequence = self.pile.pop()
                except IndexError:
                    return
                for deed in sequence:
                    deed(self.world)
                jobs.Jobs(self.world.database, self.world.application).run_turn(NOW)
        except Exception as error:
            self.error = error


@pytest.mark.parametrize("seed", range(3))
def test_what_happens_at_once_ends_as_what_happens_in_order(empty_postgres: str, hcmc_adopted: CompiledTariff, seed: int) -> None:
    weeks = week(seed)
    expected = arrive(hcmc_adopted, weeks, None)
    first = World.new(hcmc_adopted, empty_postgres)
    pile = [*weeks, *weeks]
    random.Random(seed).shuffle(pile)
    processes = [Process(World(hcmc_adopted, Database(empty_postgres, AT_REST_KEY)), pile) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.error for process in processes] == [None] * PROCESSES
    assert first.outcome() == expected
    for world in (first, *(process.world for process in processes)):
        world.database.dispose()
