"""The hash of a row: any change of it is another hash, and its bytes are settled for good."""

from __future__ import annotations

from hashlib import sha256

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fare_engine.row_hash import BATCHES, HASH_BYTES, Hasher, Value, batch_row, row_hash

ROW: dict[str, Value] = {"amount": 6000, "bearer": "rider", "head": b"\x00\xff", "operator_id": None, "open": True}

values = st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.text(), st.binary())
rows = st.dictionaries(st.text(min_size=1), values, min_size=1, max_size=8)


def test_a_row_s_hash_stays_what_it_was_in_the_first_version() -> None:
    assert row_hash("lines", ROW).hex() == "858a0a7bf10d302e5376f6e3c22beb65"


def test_the_hash_is_over_table_names_and_values_in_the_order_of_the_names() -> None:
    names, found = sorted(ROW), [ROW[name] for name in sorted(ROW)]
    expected = sha256(msgspec.msgpack.encode(["lines", names]) + msgspec.msgpack.encode(found)).digest()
    assert row_hash("lines", ROW) == expected[:HASH_BYTES]
    assert row_hash("lines", dict(reversed(ROW.items()))) == expected[:HASH_BYTES]


@pytest.mark.parametrize("other", [True, "1", b"1", None, 0, "", b"", False, 1 << 40, -1, "\x01"])
def test_a_value_of_another_type_is_another_row(other: Value) -> None:
    assert row_hash("lines", {"value": other}) != row_hash("lines", {"value": 1})


def test_values_that_look_alike_all_differ() -> None:
    alike: list[Value] = [None, False, 0, "", b"", "0", b"0", "None", "False", "\x00", b"\x00", b"\xc0", "\xc0"]
    assert len({row_hash("lines", {"value": value}) for value in alike}) == len(alike)


def test_a_column_that_is_not_there_is_not_one_that_is_none() -> None:
    assert row_hash("lines", {"a": 1}) != row_hash("lines", {"a": 1, "b": None})


def test_values_cannot_move_from_one_column_to_the_next() -> None:
    assert row_hash("lines", {"a": "xy", "b": ""}) != row_hash("lines", {"a": "x", "b": "y"})
    assert row_hash("lines", {"a": 1, "b": 2}) != row_hash("lines", {"a": 2, "b": 1})
    assert row_hash("lines", {"a": 1}) != row_hash("lines", {"b": 1})


def test_the_same_values_in_another_table_are_another_row() -> None:
    assert row_hash("lines", ROW) != row_hash("postings", ROW)


@given(one=rows, other=rows)
def test_two_rows_have_one_hash_only_if_they_are_equal_to_the_type(one: dict[str, Value], other: dict[str, Value]) -> None:
    def exact(row: dict[str, Value]) -> dict[str, tuple[type, Value]]:
        return {name: (type(value), value) for name, value in row.items()}

    assert (row_hash("t", one) == row_hash("t", other)) == (exact(one) == exact(other))


def test_columns_that_are_not_hashed_may_change() -> None:
    hasher = Hasher("lines", list(ROW))
    assert hasher.of(ROW | {"row_number": 7}) == hasher.of(ROW | {"row_number": 8}) == row_hash("lines", ROW)


def test_a_column_that_is_missing_is_named() -> None:
    with pytest.raises(KeyError, match="bearer"):
        Hasher("lines", list(ROW)).of({name: value for name, value in ROW.items() if name != "bearer"})


@pytest.mark.parametrize("columns", [[], ["a", "a"]])
def test_a_table_without_columns_or_with_one_twice_is_refused(columns: list[str]) -> None:
    with pytest.raises(ValueError, match="columns of lines"):
        Hasher("lines", columns)


def test_a_batch_is_hashed_by_what_was_received_not_by_how_it_is_stored() -> None:
    batch = batch_row(
        device_id="gate-7",
        epoch="0102030405060708",
        first_sequence=1,
        last_sequence=3,
        received_at=1_767_243_600_123,
        message=b"as received",
        answers=b"[]",
    )
    assert batch["message_sha256"] == sha256(b"as received").digest()
    assert BATCHES.of(batch) == row_hash("batches", batch)
    for name in BATCHES.columns:
        changed = batch | {name: b"another" if isinstance(batch[name], bytes) else "another"}
        assert BATCHES.of(changed) != BATCHES.of(batch), name
