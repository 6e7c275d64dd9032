"""What a date's seal covers, each row as the hash of its content, and the seals themselves (clearing/seals.py)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import Column, ColumnElement, Connection, Select, Table, func, select

from clearing.columns import Reader
from clearing.store import OF_THE_CLOSE, STREAM, rows_of
from fare_engine.ledger import Code
from fare_engine.row_hash import row_hash
from fare_engine.store.database import bytewise
from fare_engine.store.hashes import HASHERS, batch_hash
from fare_engine.store.receipts import opened_message
from fare_engine.store.schema import batches, closes, legs, lines, postings, quarantine


class SealedBatch(msgspec.Struct, frozen=True):
    """A message under a date's seal: where it stands, and its row's hash."""

    device_id: str
    epoch: str
    first_sequence: int
    last_sequence: int
    leaf: bytes


def sealed_batches(connection: Connection, accounting_date: str) -> Iterator[SealedBatch]:
    """The messages that were received between the freeze before and this one; AtRestError for one that does not open.

    By device, epoch and sequence: the order of receipt is not the same on every run of one day, the messages are."""
    statement = select(batches).where(*_received(accounting_date)).order_by(*_batch_order(connection))
    with connection.execute(statement, execution_options=STREAM) as rows:
        for row in rows:
            leaf = batch_hash(row._asdict(), opened_message(connection, row))
            yield SealedBatch(row.device_id, row.epoch, row.first_sequence, row.last_sequence, leaf)


def _received(accounting_date: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    through = select(closes.c.batches_through).where(closes.c.accounting_date == accounting_date).scalar_subquery()
    before = select(func.coalesce(func.max(closes.c.batches_through), 0)).where(closes.c.accounting_date < accounting_date)
    return batches.c.batch_id > before.scalar_subquery(), batches.c.batch_id <= through


def _batch_order(connection: Connection) -> tuple[ColumnElement[Any], ...]:
    return (bytewise(connection, batches.c.device_id), batches.c.epoch, batches.c.first_sequence)


class Sealed(msgspec.Struct, frozen=True):
    """Some rows under a date's seal. Without an order they are one leaf together."""

    table: Table
    these: tuple[ColumnElement[bool], ...]
    order: tuple[ColumnElement[Any], ...] = ()
    once: Column[str] | None = None
    """Of which no value stands twice."""


def sealed_before_the_close(accounting_date: str) -> list[Sealed]:
    """What a close finds, after the messages: the date's lines, its legs, its postings."""
    return [
        Sealed(lines, (lines.c.accounting_date == accounting_date,), once=lines.c.transaction_id),
        Sealed(legs, (legs.c.accounting_date == accounting_date,), once=legs.c.movement_id),
        _postings(accounting_date, postings.c.code.not_in(OF_THE_CLOSE)),
    ]


def sealed_of_the_close(accounting_date: str) -> Sealed:
    """The postings that the close itself made."""
    return _postings(accounting_date, postings.c.code.in_(OF_THE_CLOSE))


def _postings(accounting_date: str, which: ColumnElement[bool]) -> Sealed:
    return Sealed(postings, (postings.c.accounting_date == accounting_date, which))


def sealed_quarantine(connection: Connection, accounting_date: str) -> Sealed:
    """What was set aside under the date, by device, epoch and sequence."""
    order = (bytewise(connection, quarantine.c.device_id), quarantine.c.epoch, quarantine.c.sequence)
    return Sealed(quarantine, (quarantine.c.accounting_date == accounting_date,), order)


def sealed_close(connection: Connection, accounting_date: str) -> bytes:
    """The close itself: when it was, up to which message it goes, and the seal before it, which so is under this one too."""
    row = connection.execute(select(closes).where(closes.c.accounting_date == accounting_date)).one()
    earlier = closes.c.accounting_date < accounting_date
    before = connection.execute(
        select(closes.c.head).where(earlier).order_by(closes.c.accounting_date.desc()).limit(1)
    ).scalar_one_or_none()
    content = {
        "accounting_date": row.accounting_date,
        "frozen_at": row.frozen_at,
        "batches_through": row.batches_through,
        "head_before": before,
    }
    return row_hash("closes", content)


def made_hashes(connection: Connection, sealed: Sealed) -> Iterator[bytes]:
    """The hashes of some rows, from what stands in their columns now."""
    hasher = HASHERS[sealed.table.name]
    columns = [sealed.table.c[name] for name in hasher.columns]
    return map(hasher.of_values, rows_of(connection, select(*columns).where(*sealed.these).order_by(*sealed.order)))


class Compared(msgspec.Struct, frozen=True, gc=False):
    """A row's hash as it was written with it, and as its columns give it now."""

    key: str
    written: bytes | None
    made: bytes


def compared(connection: Connection, sealed: Sealed) -> Iterator[Compared]:
    """Some rows' hashes as they were written and as the rows give them now."""
    table, hasher = sealed.table, HASHERS[sealed.table.name]
    key = list(table.primary_key)
    first = len(key) + 1
    columns = [*key, table.c.row_hash, *(table.c[name] for name in hasher.columns)]
    for row in rows_of(connection, select(*columns).where(*sealed.these)):
        yield Compared("/".join(map(str, row[: first - 1])), row[first - 1], hasher.of_values(row[first:]))


class Written(msgspec.Struct, frozen=True):
    """Some rows' hashes as they were written with them, and ids among them that stand twice and should once."""

    hashes: list[bytes]
    repeated: list[str]


def written(reader: Reader, sealed: Sealed) -> Written:
    """The hashes of some rows as they were written with them; of a row without one, from its columns. A row that was changed
    since has another hash than its content: then neither the row nor the seal holds, and `motthe taps verify` names both."""
    table, hasher = sealed.table, HASHERS[sealed.table.name]
    once = [] if sealed.once is None else [sealed.once]
    hashes: list[bytes] = []
    ids: list[pa.Array] = []
    is_without = False
    for batch in reader.batches(select(table.c.row_hash, *once).where(*sealed.these)):
        is_without = is_without or batch["row_hash"].null_count > 0
        hashes += batch["row_hash"].drop_null().to_pylist()
        ids += batch.columns[1:]
    if is_without:
        columns = [table.c[name] for name in hasher.columns]
        for batch in reader.batches(select(*columns).where(*sealed.these, table.c.row_hash.is_(None))):
            hashes += map(hasher.of_values, zip(*(column.to_pylist() for column in batch.columns), strict=True))
    counts = pa.chunked_array(ids, pa.string()).value_counts()
    return Written(hashes, sorted(counts.filter(pc.greater(counts.field("counts"), 1)).field("values").to_pylist()))


def written_batch_hashes(connection: Connection, accounting_date: str) -> Iterator[bytes | None]:
    """The same of the messages of `sealed_batches`, in the same order; None where a message has none yet."""
    statement = select(batches.c.row_hash).where(*_received(accounting_date)).order_by(*_batch_order(connection))
    yield from connection.execute(statement, execution_options=STREAM).scalars()


def rows_sealed_before(connection: Connection, accounting_date: str) -> Iterable[bytes]:
    """What the seals of the first release were made of: the date's lines, postings and last its settlements as bytes."""
    settled = postings.c.code == Code.SETTLED.value
    in_order = (
        _sealed_before(lines, accounting_date).order_by(lines.c.transaction_id),
        _sealed_before(postings, accounting_date).order_by(settled, postings.c.transaction_id, postings.c.number),
    )
    for statement in in_order:
        with connection.execute(statement, execution_options=STREAM) as rows:
            for row in rows:
                yield msgspec.msgpack.encode(tuple(row))


def _sealed_before(table: Table, accounting_date: str) -> Select[Any]:
    """A date's rows with the columns that the first release had, but the number that the database gave them."""
    columns = [column for column in table.c if column.name not in ("row_number", "revision", "row_hash")]
    return select(*columns).where(table.c.accounting_date == accounting_date)


class Seal(msgspec.Struct, frozen=True):
    """What seals a published date: the root over so many rows. `tree_size` None: a hash of the first release."""

    accounting_date: str
    head: str
    tree_size: int | None


def list_seals(connection: Connection) -> list[Seal]:
    """The seals of the published dates, oldest first."""
    columns = (closes.c.accounting_date, closes.c.head, closes.c.tree_size)
    rows = connection.execute(select(*columns).where(closes.c.head.is_not(None)).order_by(closes.c.accounting_date))
    return [Seal(*row) for row in rows.all()]


def sealing_date(connection: Connection, device_id: str, epoch: str, sequence: int) -> str | None:
    """The date under whose seal the message with a tap is; None where it is not held, or no date since then is closed."""
    held = select(batches.c.batch_id).where(
        batches.c.device_id == device_id,
        batches.c.epoch == epoch,
        batches.c.first_sequence <= sequence,
        batches.c.last_sequence >= sequence,
    )
    found: str | None = connection.execute(
        select(func.min(closes.c.accounting_date)).where(closes.c.batches_through >= held.scalar_subquery())
    ).scalar_one()
    return found
