"""Closing the windows of travellers' records changes nothing: neither what anybody pays nor what is told of it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest

from fare_engine import windows
from fare_engine.booking import Record
from fare_engine.service_day import DAY_MS
from fare_engine.store import travellers
from fare_engine.tariff.compile import CompiledTariff, load_compiled
from tests.builders import HCMC
from tests.integration.desk import ADOPTED
from tests.property.test_arrival_orders import arrive, week


def close_at_once(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """From now on windows are closed with every fact, as soon as they are a day old; how many were closed and opened again."""
    for name, value in {"OPEN_MS": DAY_MS, "KEPT_MS": DAY_MS, "LONGEST_MS": 3 * DAY_MS, "EVERY": 1}.items():
        monkeypatch.setattr(windows, name, value)
    done: Counter[str] = Counter()
    close, open_again = windows.close, travellers.open_again

    def closing(tariff: CompiledTariff, traveller_id: str, record: Record, now: int) -> list[Record]:
        found = close(tariff, traveller_id, record, now)
        done["closed"] += len(found)
        return found

    def opening(closed: Sequence[Record], record: Record) -> Record:
        done["opened"] += len(closed)
        return open_again(closed, record)

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
