"""Statements over lists, which are compiled once for each shape, against the same without that."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, bindparam, column, create_engine, select, table, text, tuple_

from fare_engine.store.many import SHORT, find_many

ROWS = [(f"d{number}", f"e{number % 7}") for number in range(50)]
PAIRS = table("pairs", column("device"), column("epoch"))
BY_DEVICE = select(PAIRS).where(PAIRS.c.device.in_(bindparam("ids", expanding=True))).order_by(PAIRS.c.device)
BY_BOTH = (
    select(PAIRS)
    .where(
        PAIRS.c.epoch.in_(bindparam("epochs", expanding=True)),
        tuple_(PAIRS.c.device, PAIRS.c.epoch).in_(bindparam("keys", expanding=True)),
    )
    .order_by(PAIRS.c.device)
)


@pytest.fixture(scope="module")
def pairs() -> Iterator[Connection]:
    """A table of pairs."""
    with create_engine("sqlite://").connect() as connection:
        connection.execute(text("create table pairs (device text, epoch text)"))
        connection.execute(text("insert into pairs values (:device, :epoch)"), [{"device": d, "epoch": e} for d, e in ROWS])
        yield connection


@given(ids=st.lists(st.sampled_from([*(device for device, _ in ROWS), "nobody", "d1'"]), max_size=70))
def test_what_is_in_a_list_is_found_once(pairs: Connection, ids: list[str]) -> None:
    found = find_many(pairs, BY_DEVICE, ids=ids)
    assert [(row.device, row.epoch) for row in found] == sorted({(d, e) for d, e in ROWS if d in ids})


@given(keys=st.lists(st.tuples(st.sampled_from([d for d, _ in ROWS]), st.sampled_from(["e1", "e2", "e3"])), max_size=20))
def test_pairs_are_found_beside_a_list_of_another_length(pairs: Connection, keys: list[tuple[str, str]]) -> None:
    found = find_many(pairs, BY_BOTH, keys=keys, epochs=["e3", "e1", "e9"])
    assert [tuple(row) for row in found] == sorted({key for key in keys if key in ROWS and key[1] != "e2"})


def test_a_long_list_is_as_long_as_it_is(pairs: Connection) -> None:
    ids = [f"x{number}" for number in range(SHORT * 20)] + ["d7"]
    assert [tuple(row) for row in find_many(pairs, BY_DEVICE, ids=ids)] == [("d7", "e0")]
