"""Closing the windows of travellers' records changes nothing: neither what anybody pays nor what is told of it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fare_engine import booking, windows
from fare_engine.booking import Record
from fare_engine.facts import Fact
from fare_engine.rides import book_rides
from fare_engine.service_day import DAY_MS
from fare_engine.store import travellers
from fare_engine.tariff.compile import CompiledTariff, load_compiled
from tests.builders import HCMC
from tests.integration.desk import ADOPTED
from tests.property.test_arrival_orders import arrive, week
from tests.property.test_random_tariffs import sample
from tests.tariff_strategies import World, worlds

AT_ONCE = windows.Ages(open_ms=DAY_MS, kept_ms=DAY_MS, longest_ms=3 * DAY_MS, every=1)


def close_at_once(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """From now on windows are closed with every fact, as soon as they are a day old; how many were closed and opened again."""
    done: Counter[str] = Counter()
    close, open_again = windows.close, travellers.open_again

    def closing(tariff: CompiledTariff, traveller_id: str, record: Record, now: int, _: object = None) -> list[Record]:
        found = close(tariff, traveller_id, record, now, AT_ONCE)
        done["closed"] += len(found)
        return found

    def opening(closed: Sequence[Record], record: Record) -> Record:
        done["opened"] += len(closed)
        return open_again(closed, record)

    monkeypatch.setattr(windows, "is_due", lambda *_: True)
    monkeypatch.setattr(windows, "close", closing)
    monkeypatch.setattr(travellers, "open_again", opening)
    return done


@pytest.mark.parametrize("seed", range(100, 116))
def test_a_week_whose_windows_are_closed_at_once_costs_the_same_in_any_order(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tariff = load_compiled(HCMC, ADOPTED)
    sequences = week(seed)
    expected = arrive(tariff, sequences, None)
    done = close_at_once(monkeypatch)
    assert arrive(tariff, sequences, None) == expected
    for number in range(3):
        assert arrive(tariff, sequences, random.Random(f"{seed}/{number}")) == expected, f"order {number}"
    assert done["closed"] > 0
    assert done["opened"] > 0


def booked_one_by_one(tariff: CompiledTariff, facts: Sequence[Fact], *, closing: bool) -> tuple[Record, int]:
    """The record of a traveller whose facts come in one by one, in this order, and how many windows were closed."""
    record, put_away, count = Record(), list[Record](), 0
    now = max(fact.at for fact in facts)
    for fact in facts:
        if not windows.reaches(record, windows.begins_to_act(fact)):
            needed = [one for one in put_away if one.as_of > windows.begins_to_act(fact) - windows.REACH_MS]
            put_away = put_away[: len(put_away) - len(needed)]
            record = windows.open_again(needed, record)
        record.facts.append(fact)
        folded = booking.price(tariff, record, now)
        booking.book("t", record, folded)
        book_rides("t", record.rides, folded, tariff, None)
        record.as_of = now
        if closing:
            put_away += windows.close(tariff, "t", record, now)
            count = max(count, len(put_away))
    return (windows.open_again(put_away, record) if put_away else record), count


CLOSED: Counter[str] = Counter()


@sample(200)
@given(world=worlds(deeds=24), chance=st.randoms(use_true_random=False), shuffled=st.booleans())
def test_windows_change_nothing_under_any_tariff(world: World, chance: random.Random, shuffled: bool) -> None:
    if not world.facts:
        return
    facts = sorted(world.facts, key=lambda fact: fact.at)
    if shuffled:
        chance.shuffle(facts)
    plain, _ = booked_one_by_one(world.compiled, facts, closing=False)
    with pytest.MonkeyPatch.context() as patch:
        close_at_once(patch)
        record, count = booked_one_by_one(world.compiled, facts, closing=True)
    CLOSED["windows"] += count
    assert sorted(record.facts, key=lambda fact: fact.fact_id) == sorted(plain.facts, key=lambda fact: fact.fact_id)
    assert record.booked == plain.booked
    assert record.rides == plain.rides


def test_of_these_tariffs_windows_were_closed() -> None:
    assert not CLOSED or CLOSED["windows"] > 100
