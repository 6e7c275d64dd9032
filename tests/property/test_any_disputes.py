"""Any sequence of claims and decisions: debits are credits, what is held is what is open, and no row gives more than it gave."""

from __future__ import annotations

import copy
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fare_engine.errors import DisputeError, NotFoundError
from fare_engine.store.database import Database, sqlite_url
from tests.disputing import TUESDAY, WEDNESDAY, DisputingTown, disputing

PARTIES = ("BUSCO", "COOP", "RAIL", "CITY")
CLAIMANTS = (*PARTIES, "clearing house", "auditor")


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DisputingTown]:
    town = disputing(tmp_path_factory.mktemp("disputed"))
    yield town
    town.database.dispose()


CLAIM = st.tuples(
    st.just("claim"),
    st.sampled_from(CLAIMANTS),
    st.sampled_from(PARTIES),
    st.integers(0, 6),
    st.sets(st.integers(0, 4), max_size=3),
    st.none() | st.integers(-1, 6000),
)
DECISION = st.tuples(
    st.just("decision"), st.integers(0, 9), st.none() | st.integers(-1, 6000), st.none() | st.sampled_from(CLAIMANTS)
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(steps=st.lists(st.one_of(CLAIM, CLAIM, DECISION, st.tuples(st.just("close"))), max_size=12))
def test_whatever_is_claimed_and_decided_the_books_hold(
    closed: DisputingTown, tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[object, ...]]
) -> None:
    town = copied(closed, tmp_path_factory.mktemp("copy"))
    legs = [str(leg) for (leg,) in town.rows("select leg_id from legs order by leg_id")]
    opened = []
    for step in steps:
        before = town.everything()
        try:
            if step[0] == "claim":
                _, claimant, party, line, chosen, amount = step
                named = [legs[number] for number in sorted(chosen)]  # type: ignore[call-overload]
                opened.append(town.dispute(str(claimant), str(party), line, *named, amount=amount))  # type: ignore[arg-type]
            elif step[0] == "decision" and opened:
                _, number, granted, to = step
                town.decide(opened[int(str(number)) % len(opened)], granted, to)  # type: ignore[arg-type]
            elif step[0] == "close":
                town.close(WEDNESDAY, despite="disputed")
        except (DisputeError, NotFoundError):
            assert town.everything() == before, "what is refused moves nothing"
        town.assert_sound()
    for dispute in opened:
        if town.found(dispute).state == "open":
            town.decide(dispute, None, "SPONSOR")
    town.assert_sound()
    assert not any(name.startswith("held:") for name in town.balances())
    assert sum(town.balances().values()) == 0
    town.close("2026-03-05", despite="disputed")
    assert town.close(TUESDAY) == closed.close(TUESDAY)
    town.database.dispose()


def copied(town: DisputingTown, folder: Path) -> DisputingTown:
    """The same store once more, in a file of its own."""
    with closing(sqlite3.connect(town.data / "motthe.db")) as connection:
        connection.execute("vacuum into ?", (str(folder / "motthe.db"),))
    found = copy.copy(town)
    found.database = Database(sqlite_url(folder / "motthe.db"), town.database.at_rest_key)
    found.opened = replace(town.opened, data=folder, database=found.database)
    return found
