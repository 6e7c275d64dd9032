"""The hash that seals one row of an append-only table: 16 bytes that no other content of the row would give.

Decides which bytes are hashed: the table's name, the columns' names in sorted order, and their values in that order, as
MessagePack, in which None, 1, True, "1" and b"1" are all different and each value says where it ends. Leaves to others
which columns a table has, where the hash is kept, and what is built on it (fare_engine/merkle.py).

    row hash = first 16 bytes of SHA-256( msgpack([table, [name, …]]) ‖ msgpack([value, …]) )

A column that the database itself fills (an autoincremented key) and the hash's own column stay out. Half of SHA-256 is
enough against whoever changes a row that stands; see docs/keys.md for who could do more."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from hashlib import sha256
from operator import itemgetter
from typing import Final

import msgspec

HASH_BYTES: Final = 16

Value = int | bool | str | bytes | None

_encode: Final = msgspec.msgpack.Encoder().encode


class Hasher:
    """Hashes the rows of one table; made once, for it is used on every row that is written."""

    __slots__ = ("_prefix", "_values", "columns", "table")

    def __init__(self, table: str, columns: Collection[str]) -> None:
        """`columns` in any order. Raises ValueError where there are none or one stands twice."""
        self.table: Final = table
        self.columns: Final = tuple(sorted(columns))
        if not columns or len(set(columns)) != len(columns):
            raise ValueError(f"columns of {table}: {self.columns!r}")
        self._prefix: Final = _encode([table, self.columns])
        self._values: Final = _values_of(self.columns)

    def of(self, row: Mapping[str, object]) -> bytes:
        """The row's hash, 16 bytes. Other columns of the row are passed over; one that is missing raises KeyError.

        Values are as the database gives them back, or the hash would not be found again."""
        return self.of_values(self._values(row))

    def of_values(self, values: object) -> bytes:
        """The same of the columns' values alone, as a tuple in the order of `columns`."""
        return sha256(self._prefix + _encode(values)).digest()[:HASH_BYTES]


def row_hash(table: str, values: Mapping[str, object]) -> bytes:
    """The hash of a row that has these columns and no others, 16 bytes. For many rows of one table: `Hasher`."""
    return Hasher(table, values.keys()).of(values)


def _values_of(columns: tuple[str, ...]) -> Callable[[Mapping[str, object]], object]:
    """Takes the columns' values, in order, from a row."""
    if len(columns) == 1:  # itemgetter would give the value itself instead of a tuple
        (only,) = columns
        return lambda row: (row[only],)
    return itemgetter(*columns)


# ---- batches
# The message is encrypted where it is stored, and encrypted anew when the key changes. What was received stays the same, so
# the hash of the message as received stands for it. Answers go in as they were sent.

BATCHES: Final = Hasher(
    "batches", ("device_id", "epoch", "first_sequence", "last_sequence", "received_at", "message_sha256", "answers")
)


def batch_row(
    *, device_id: str, epoch: str, first_sequence: int, last_sequence: int, received_at: int, message: bytes, answers: bytes
) -> dict[str, Value]:
    """What is hashed of a row of `batches`: its columns, with message and answers as they were before they were sealed.

    `epoch` is in hexadecimal, `received_at` in milliseconds UTC."""
    return {
        "device_id": device_id,
        "epoch": epoch,
        "first_sequence": first_sequence,
        "last_sequence": last_sequence,
        "received_at": received_at,
        "message_sha256": sha256(message).digest(),
        "answers": answers,
    }
