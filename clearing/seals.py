"""What seals a closed date: one root over every row that belongs to it, so that no bit of them changes unseen.

Decides which rows are under a date's seal and in which order, whether they still give it, and makes the proof that one tap is
under it. Rows are hashed from their content, whatever hash they carry themselves. The leaves are, in this order: the messages
received since the freeze before, by device, epoch and sequence, one each; the date's lines together; its legs together; its
postings together, and those of the close; what was set aside under it, one each; and the close itself, which names the seal
before it. Rows that are a leaf together are the hash of all their hashes, sorted: nobody asks for the proof of one of them, and
a tree over millions would cost more than all the rest of a close. docs/keys.md says how an operator checks a proof alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from clearing import seal_store, statements, store
from clearing.columns import OfConnection, Reader, alone
from clearing.seal_store import Seal
from fare_engine.errors import CloseError, EnvelopeError, InclusionError, MottheError, NotFoundError
from fare_engine.merkle import Builder, inclusion, inclusion_document
from fare_engine.row_hash import batch_row
from fare_engine.store import receipts, registry
from fare_engine.store.books import Booking
from fare_engine.store.database import Database
from fare_engine.store.hashes import HASHERS
from fare_engine.store.receipts import StoredBatch
from fare_engine.store.verify import Finding
from fare_engine.tap_format import open_message

SHOWN = 5
"""So many transactions that stand twice are named."""
ALWAYS = ("open-items.csv", "payments.csv", "positions.csv", "proof.json", "ridership.csv")
"""Documents that every published date has."""
TABLES = {
    ".xlsx": b"PK",
    ".pdf": b"%PDF",
    "positions.csv": b"party_id,",
    "payments.csv": b"payment_id,",
    "open-items.csv": b"kind,",
    "ridership.csv": b"operator_id,",
    ".devices.csv": b"device_id,",
}
"""How documents begin that do not say of which date they are: their hashes do."""


def seal(connection: Connection, date: str) -> tuple[str, int]:
    """The root over a closed date's rows as they stand now, in hexadecimal, and the number of leaves. AtRestError where a message
    does not open."""
    builder = Builder()
    _add_all(builder, _leaves(connection, date))
    return builder.root().hex(), builder.size


def seal_new(connection: Connection, date: str, begun: Begun, entries: Booking) -> tuple[str, int]:
    """The root over a frozen date's rows. `begun` holds what the close finds, `entries` are the postings that it is about to
    write."""
    hasher = HASHERS["postings"]
    builder = Builder(begun.size, begun.peaks)
    builder.add(together(hasher.of(row) for row in entries.postings))
    return _finished(connection, date, builder)


def together(hashes: Iterable[bytes]) -> bytes:
    """The leaf of many rows, whatever their order."""
    return hashlib.sha256(b"".join(sorted(hashes))).digest()


class Begun(msgspec.Struct, frozen=True):
    """The tree of what a close finds of a date, and ids of transactions that stand twice."""

    size: int
    peaks: tuple[bytes, ...]
    repeated: list[str]


class ToBegin(msgspec.Struct, frozen=True):
    """What a process needs to know for `begin_in_process`."""

    url: str
    at_rest_key: bytes
    date: str


def begin(connection: Connection, date: str) -> Begun:
    """What a close finds of a date, by the hashes that its rows were written with."""
    return _with_rows(_with_messages(connection, date), OfConnection(connection), date)


def begin_in_process(told: ToBegin) -> Begun:
    """The same, in a process that does nothing else."""
    database = Database(told.url, told.at_rest_key)
    with database.read(long=True) as connection:
        builder = _with_messages(connection, told.date)
    database.dispose()
    with alone(told.url) as reader:
        return _with_rows(builder, reader, told.date)


def _with_messages(connection: Connection, date: str) -> Builder:
    builder = Builder()
    if None in (hashes := list(seal_store.written_batch_hashes(connection, date))):
        hashes = [batch.leaf for batch in seal_store.sealed_batches(connection, date)]
    _add_all(builder, hashes)  # type: ignore[arg-type]  # none of them is None
    return builder


def _with_rows(builder: Builder, reader: Reader, date: str) -> Begun:
    repeated: list[str] = []
    for sealed in seal_store.sealed_before_the_close(date):
        found = seal_store.written(reader, sealed)
        builder.add(together(found.hashes))
        repeated += found.repeated[:SHOWN]
    return Begun(builder.size, builder.peaks, repeated)


def _finished(connection: Connection, date: str, builder: Builder) -> tuple[str, int]:
    _add_all(builder, _last_leaves(connection, date))
    return builder.root().hex(), builder.size


def _leaves(connection: Connection, date: str) -> Iterator[bytes]:
    yield from (batch.leaf for batch in seal_store.sealed_batches(connection, date))
    for sealed in (*seal_store.sealed_before_the_close(date), seal_store.sealed_of_the_close(date)):
        yield together(seal_store.made_hashes(connection, sealed))
    yield from _last_leaves(connection, date)


def _last_leaves(connection: Connection, date: str) -> Iterator[bytes]:
    yield from seal_store.made_hashes(connection, seal_store.sealed_quarantine(connection, date))
    yield seal_store.sealed_close(connection, date)


def _add_all(builder: Builder, leaves: Iterable[bytes]) -> None:
    for leaf in leaves:
        builder.add(leaf)


def check(connection: Connection) -> list[Finding]:
    """What of the published dates was changed since: dates whose rows do not give their seal, documents that are not those
    that were published. Empty: nothing."""
    return [*_check_seals(connection), *check_documents(connection)]


def prove(connection: Connection, device_id: str, epoch: str, sequence: int) -> dict[str, object]:
    """The proof for one tap (docs/keys.md), ready for JSON. NotFoundError: it is not held. CloseError: no published date
    covers it yet. InclusionError: the rows do not give the seal any more."""
    held = receipts.list_batches(connection, device_id, epoch, sequence, sequence)
    if not held:
        raise NotFoundError(f"no tap {device_id}/{epoch}/{sequence}")
    date = seal_store.sealing_date(connection, device_id, epoch, sequence)
    sealed = next((found for found in seal_store.list_seals(connection) if found.accounting_date == date), None)
    if date is None or sealed is None:
        raise CloseError(f"{device_id}/{epoch}/{sequence} was received after the last close: a proof comes with the next one")
    stored = held[0]
    index = _index_of(connection, date, stored)
    proof = inclusion(_leaves(connection, date), index)
    if (proof.root.hex(), proof.tree_size) != (sealed.head, sealed.tree_size):
        raise InclusionError(f"the rows of {date} do not give its seal: `motthe taps verify` names what was changed")
    public_key = signing_key(connection, stored)
    if public_key is None:
        raise InclusionError(f"no key of {stored.device_id} signed its message of {stored.epoch}/{stored.first_sequence}")
    row = batch_row(
        device_id=stored.device_id,
        epoch=stored.epoch,
        first_sequence=stored.first_sequence,
        last_sequence=stored.last_sequence,
        received_at=stored.received_at,
        message=stored.message,
        answers=stored.answers,
    )
    return inclusion_document(
        accounting_date=date,
        proof=proof,
        row=row,
        message=stored.message,
        public_key=public_key,
        tap_sequence=sequence,
    )


def _index_of(connection: Connection, date: str, stored: StoredBatch) -> int:
    """Which leaf a message is: messages come first."""
    place = (stored.device_id, stored.epoch, stored.first_sequence)
    for index, batch in enumerate(seal_store.sealed_batches(connection, date)):
        if (batch.device_id, batch.epoch, batch.first_sequence) == place:
            return index
    raise InclusionError(f"the message {place} is not among those sealed with {date}")


def signing_key(connection: Connection, stored: StoredBatch) -> bytes | None:
    """Which of its device's keys signed a message; None: none did."""
    for key in registry.list_keys(connection, stored.device_id):
        public = Ed25519PublicKey.from_public_bytes(key.public_key)
        try:
            open_message(stored.message, lambda _, found=public: [found])  # type: ignore[misc]
        except EnvelopeError:
            continue
        return key.public_key
    return None


# ---- checks


def check_date(connection: Connection, date: str) -> Iterator[Finding]:
    """What of one published date was changed since: each line, leg and posting that is not as it was written, and the seal."""
    sealed = next((found for found in seal_store.list_seals(connection) if found.accounting_date == date), None)
    if sealed is None:
        yield Finding("closes", date, "is not closed")
        return
    builder = Builder()
    _add_all(builder, (batch.leaf for batch in seal_store.sealed_batches(connection, date)))
    for rows in (*seal_store.sealed_before_the_close(date), seal_store.sealed_of_the_close(date)):
        made = []
        for row in seal_store.compared(connection, rows):
            if row.written != row.made:
                yield Finding(str(rows.table.name), row.key, "is not the row that was written: its hash is another one")
            made.append(row.made)
        builder.add(together(made))
    if sealed.tree_size is not None and _finished(connection, date, builder) != (sealed.head, sealed.tree_size):
        yield Finding("closes", date, "its rows are not those that were sealed")


def _check_seals(connection: Connection) -> Iterator[Finding]:
    for sealed in seal_store.list_seals(connection):
        try:
            fault = _fault(connection, sealed)
        except (MottheError, SQLAlchemyError, ValueError, TypeError) as error:
            fault = f"its rows cannot be read: {type(error).__name__}: {error}"
        if fault:
            yield Finding("closes", sealed.accounting_date, fault)


def _fault(connection: Connection, sealed: Seal) -> str | None:
    """Why a date's rows are not what was sealed, or None."""
    if sealed.tree_size is None:
        same = _seal_before(connection, sealed.accounting_date) == sealed.head
        return None if same else "its lines or postings are not those that were sealed"
    if seal(connection, sealed.accounting_date) == (sealed.head, sealed.tree_size):
        return None
    return "its messages, lines, postings, what was set aside or the close itself are not those that were sealed"


def _seal_before(connection: Connection, date: str) -> str:
    """The seal as the first release made it: over lines and postings only."""
    total = hashlib.sha256()
    for row in seal_store.rows_sealed_before(connection, date):
        total.update(hashlib.sha256(row).digest())
    return total.hexdigest()


def check_documents(connection: Connection) -> Iterator[Finding]:
    """Each document is the one whose hash was published, names the one before it, and is of its date and operator."""
    before: dict[str, str] = {}
    seals = {sealed.accounting_date: sealed for sealed in seal_store.list_seals(connection)}
    held: set[tuple[str, str]] = set()
    for date, name, content, sha256, previous in store.all_statements(connection):
        is_changed = not isinstance(content, bytes) or statements.digest(content) != sha256
        if is_changed or previous != before.get(name) or not _is_named(content, name, date, seals):
            yield Finding("statements", f"{date}/{name}", "is not the document that was published")
        before[name] = sha256
        held.add((date, name))
    for date, name in sorted({(date, name) for date in seals for name in ALWAYS} - held):
        yield Finding("statements", f"{date}/{name}", "is missing")


def _is_named(content: bytes, name: str, date: str, seals: dict[str, Seal]) -> bool:
    """Whether a document says of itself what its row says of it."""
    if date not in seals:
        return False
    if name == "proof.json":
        return _proves(content, seals[date])
    for ending, columns in TABLES.items():
        if name.endswith(ending):
            return content.startswith(columns)
    head = content.decode(errors="replace").splitlines()[1:2]
    return head == [] or head[0].startswith(f",statement,{date},{name.removesuffix('.csv')},")


def _proves(content: bytes, sealed: Seal) -> bool:
    try:
        proof = json.loads(content)
    except ValueError:
        return False
    said = (proof.get("accounting_date"), proof.get("seal"), proof.get("tree_size"))
    return said == (sealed.accounting_date, sealed.head, sealed.tree_size)
