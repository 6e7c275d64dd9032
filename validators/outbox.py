"""What a terminal has seen and not yet got rid of: its epochs, their taps and how far the server acknowledged each.

A tap is on the disk before `append` returns, so whatever a rider was told can be sent again after any crash. Taps
stay for weeks after their acknowledgement: a server restored from a backup may ask for them again. Decides nothing
about when to send.

Disks of terminals go bad. What was stored is checked by its chain when it is read: a changed bit ends the sending of its
own epoch at that place and of nothing else, and what cannot be sent is named. A file that cannot be read at all is moved
aside as evidence, and what can be saved from it goes on in a new one."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fare_engine.errors import MottheError
from fare_engine.ids import DeviceId
from fare_engine.tap_format import EPOCH_BYTES, HEAD_BYTES, Predecessor, extend, genesis_head, header_for, seal

KEEP_MS: Final = 30 * 24 * 3600 * 1000
"""How long a tap is kept after its acknowledgement."""
BATCH_TAPS: Final = 200
"""Most taps in one message: as many as the server takes up in one transaction."""

_SCHEMA: Final = """
CREATE TABLE device (device_id TEXT NOT NULL);
CREATE TABLE epochs (
    number INTEGER PRIMARY KEY,
    epoch BLOB NOT NULL UNIQUE,
    before_epoch BLOB,
    before_last INTEGER,
    before_head BLOB,
    last_sequence INTEGER NOT NULL DEFAULT 0,
    head BLOB NOT NULL,
    acknowledged_through INTEGER NOT NULL DEFAULT 0,
    pruned_through INTEGER NOT NULL DEFAULT 0,
    pruned_head BLOB,
    damaged_from INTEGER
);
CREATE TABLE taps (
    number INTEGER NOT NULL REFERENCES epochs (number),
    sequence INTEGER NOT NULL,
    tap BLOB NOT NULL,
    head BLOB NOT NULL,
    PRIMARY KEY (number, sequence)
) WITHOUT ROWID;
CREATE TABLE acknowledgements (number INTEGER NOT NULL, through INTEGER NOT NULL, at INTEGER NOT NULL)
"""
# Each epoch names the one before it in its own row, so that damage there leaves this one's chain whole.
_FROM_FORM_1: Final = """
ALTER TABLE epochs ADD COLUMN before_epoch BLOB;
ALTER TABLE epochs ADD COLUMN before_last INTEGER;
ALTER TABLE epochs ADD COLUMN before_head BLOB;
ALTER TABLE epochs ADD COLUMN damaged_from INTEGER;
UPDATE epochs SET (before_epoch, before_last, before_head) =
    (SELECT b.epoch, b.last_sequence, b.head FROM epochs AS b WHERE b.number = epochs.predecessor)
"""

RandomBytes = Callable[[int], bytes]
"""A source of random bytes: os.urandom on a device, a seeded one in a simulation."""


class OutboxError(MottheError):
    """The outbox cannot do what it is asked: another's file, a file in use, a full disk, taps it no longer has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochState:
    """One epoch and how far it has got."""

    number: int
    """Order in which the outbox began its epochs; not known outside of it."""
    epoch: bytes
    last_sequence: int
    head: bytes
    acknowledged_through: int
    damaged_from: int | None = None
    """First sequence that cannot be sent any more, because what was stored there has changed."""

    @property
    def sendable_through(self) -> int:
        """The last tap that can be sent."""
        return self.last_sequence if self.damaged_from is None else min(self.last_sequence, self.damaged_from - 1)

    @property
    def pending(self) -> int:
        """How many taps wait for their acknowledgement and can be sent."""
        return max(0, self.sendable_through - self.acknowledged_through)


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """Taps that were stored and cannot be sent any more; the operator is told."""

    epoch: str
    """Hexadecimal; empty where not even that is known."""
    from_sequence: int
    last_sequence: int
    """As far as is known."""
    detail: str = ""


class Outbox:
    """A device's durable queue. One process at a time: a second one that opens the same file gets an OutboxError."""

    def __init__(self, path: str | Path, device_id: DeviceId) -> None:
        self.device_id = device_id
        self.moved_to: Path | None = None
        """Where an unreadable file was moved to, if this one had to take its place."""
        self._live: EpochState | None = None
        try:
            self._boot(path)
        except _UnreadableError:
            self.moved_to = _move_aside(Path(path))
            self._boot(path)

    def _boot(self, path: str | Path) -> None:
        """Open the file and see what of it is whole; raises _UnreadableError if too little is."""
        self._connection = _connect(path)
        try:
            self._prepare()
            if self.moved_to is not None:
                _salvage(self.moved_to, self._connection)
            self._check_all()
            self._live = self._find_last_epoch()
        except OutboxError:
            self.close()
            raise
        except (sqlite3.Error, ValueError) as fault:  # ValueError: names that are no text any more
            self.close()
            raise _UnreadableError(f"{path}: {fault}") from fault

    def close(self) -> None:
        self._connection.close()

    @property
    def live(self) -> EpochState:
        """The epoch that takes new taps; raises OutboxError before the first was begun."""
        if self._live is None:
            raise OutboxError("no epoch has begun yet")
        return self._live

    def begin_epoch(self, random_bytes: RandomBytes) -> EpochState:
        """Begin a stream that names the one before it; from now on taps go into it. At every boot, and when a backlog
        is set aside."""
        epoch = random_bytes(EPOCH_BYTES)
        before = self._live
        genesis = genesis_head(self.device_id, epoch, _as_predecessor(before))
        named = (before.epoch, before.last_sequence, before.head) if before else (None, None, None)
        with self._transaction():
            number = self._connection.execute(
                "INSERT INTO epochs (epoch, before_epoch, before_last, before_head, head) VALUES (?, ?, ?, ?, ?)",
                (epoch, *named, genesis),
            ).lastrowid
        assert number is not None
        self._live = EpochState(number=number, epoch=epoch, last_sequence=0, head=genesis, acknowledged_through=0)
        return self._live

    def set_aside_backlog(self, random_bytes: RandomBytes) -> EpochState:
        """Begin a new epoch if taps wait in the live one, so that later taps go before them; give the live one."""
        return self.begin_epoch(random_bytes) if self.live.pending else self.live

    def append(self, tap: bytes) -> int:
        """Store the tap at the end of the live epoch and give its sequence. It is on the disk when this returns."""
        live = self.live
        if live.damaged_from is not None:
            raise OutboxError(f"epoch {live.epoch.hex()} is damaged; another must begin")
        sequence, head = live.last_sequence + 1, extend(live.head, tap)
        with self._transaction():
            self._connection.execute("INSERT INTO taps VALUES (?, ?, ?, ?)", (live.number, sequence, tap, head))
            self._connection.execute(
                "UPDATE epochs SET last_sequence = ?, head = ? WHERE number = ?", (sequence, head, live.number)
            )
        self._live = replace(live, last_sequence=sequence, head=head)
        return sequence

    def list_pending(self) -> list[EpochState]:
        """Epochs with taps that wait for their acknowledgement: the live one first, then the oldest first."""
        rows = self._connection.execute(
            f"{_SELECT_EPOCH} AND last_sequence > acknowledged_through ORDER BY number < ?, number",
            (self.live.number,),
        )
        return [state for state in map(_as_state, rows) if state.pending]

    def list_taps(self, epoch: bytes, first_sequence: int, most: int = BATCH_TAPS) -> list[bytes]:
        """The taps of an epoch from a sequence on, as far as they are whole; raises OutboxError where they are kept no
        longer."""
        state = self.get_epoch(epoch)
        taps = self._find_whole(state, first_sequence, most)
        if taps is None:
            taps = self._find_whole(self._examine(state), first_sequence, most)
        if taps is None:
            raise OutboxError(f"taps of {epoch.hex()} from {first_sequence} on are kept no longer")
        return taps

    def _find_whole(self, state: EpochState, first_sequence: int, most: int) -> list[bytes] | None:
        """Taps that lead from one stored head to the next; None if some do not, or are not there."""
        wanted = max(0, min(most, state.sendable_through - first_sequence + 1))
        if wanted == 0:
            return []
        try:
            rows = self._rows(state.number, first_sequence, wanted)
            head = self._head_after(state, first_sequence - 1)
        except (sqlite3.Error, OutboxError):
            return None
        for expected, (sequence, tap, stored) in enumerate(rows, start=first_sequence):
            head = extend(head, tap) if isinstance(tap, bytes) else b""
            if sequence != expected or stored != head:
                return None
        return [tap for _, tap, _ in rows] if len(rows) == wanted else None

    def _rows(self, number: int, first_sequence: int, most: int = -1) -> list[tuple[int, bytes, bytes]]:
        return self._connection.execute(
            "SELECT sequence, tap, head FROM taps WHERE number = ? AND sequence >= ? ORDER BY sequence LIMIT ?",
            (number, first_sequence, most),
        ).fetchall()

    def message(self, key: Ed25519PrivateKey, epoch: bytes, first_sequence: int, sent_at: int, most: int = BATCH_TAPS) -> bytes:
        """The signed message with the taps of an epoch from `first_sequence` on, acknowledged before or not.

        With `most` 0, or after the last tap, it carries none and only announces how far the epoch has got. `sent_at` is
        milliseconds UTC by the device's clock. Raises OutboxError for taps that the outbox does not have, and gives fewer
        where what follows is damaged."""
        taps = self.list_taps(epoch, first_sequence, most)
        header = header_for(
            device_id=self.device_id,
            epoch=epoch,
            first_sequence=first_sequence,
            previous_head=self._head_after(self.get_epoch(epoch), first_sequence - 1),
            taps=taps,
            sent_at=sent_at,
            predecessor=self.find_predecessor(epoch) if first_sequence == 1 else None,
        )
        return seal(key, header, taps)

    def acknowledged(self, epoch: bytes, through: int, at: int) -> None:
        """The server has the taps of an epoch up to `through`, heard at `at` (ms UTC). Less than known before changes
        nothing; more than there is raises OutboxError, for then the server speaks of another device's taps."""
        state = self.get_epoch(epoch)
        if through > state.last_sequence:
            raise OutboxError(f"{through} acknowledged of {epoch.hex()}, which ends at {state.last_sequence}")
        if through <= state.acknowledged_through:
            return
        with self._transaction():
            self._connection.execute("UPDATE epochs SET acknowledged_through = ? WHERE number = ?", (through, state.number))
            self._connection.execute("INSERT INTO acknowledgements VALUES (?, ?, ?)", (state.number, through, at))
        if state.number == self.live.number:
            self._live = self.get_epoch(epoch)

    def prune(self, at: int, keep_ms: int = KEEP_MS) -> int:
        """Drop the taps that were acknowledged more than `keep_ms` before `at`; how many. Others are never dropped."""
        old = at - keep_ms
        with self._transaction():
            ends = self._connection.execute(
                "SELECT number, max(through) FROM acknowledgements WHERE at < ? GROUP BY number", (old,)
            ).fetchall()
            dropped = sum(self._drop(number, through) for number, through in ends)
            self._connection.execute("DELETE FROM acknowledgements WHERE at < ?", (old,))
        return dropped

    def _drop(self, number: int, through: int) -> int:
        """Drop an epoch's taps up to `through`; the chain's value there stays, for the taps after it."""
        self._connection.execute(
            "UPDATE epochs SET pruned_through = ?1, pruned_head ="
            " (SELECT head FROM taps WHERE number = ?2 AND sequence = ?1) WHERE number = ?2",
            (through, number),
        )
        end = (number, through)
        return self._connection.execute("DELETE FROM taps WHERE number = ? AND sequence <= ?", end).rowcount

    def list_epochs(self) -> list[EpochState]:
        """All epochs, oldest first."""
        return [_as_state(row) for row in self._connection.execute(f"{_SELECT_EPOCH} ORDER BY number")]

    def list_damage(self) -> list[Damage]:
        """All that was stored and cannot be sent any more."""
        found = []
        if self.moved_to is not None:
            found.append(Damage(epoch="", from_sequence=0, last_sequence=0, detail=f"unreadable, moved to {self.moved_to.name}"))
        for number in self._malformed():
            found.append(Damage(epoch="", from_sequence=1, last_sequence=0, detail=f"the row of epoch number {number}"))
        for state in self.list_epochs():
            if state.damaged_from is not None and state.damaged_from > state.acknowledged_through:
                found.append(Damage(epoch=state.epoch.hex(), from_sequence=state.damaged_from, last_sequence=state.last_sequence))
        return found

    def get_epoch(self, epoch: bytes) -> EpochState:
        """One epoch; raises OutboxError for one that this device never began."""
        row = self._connection.execute(f"{_SELECT_EPOCH} AND epoch = ?", (epoch,)).fetchone()
        if row is None:
            raise OutboxError(f"no epoch {epoch.hex()}")
        return _as_state(row)

    def find_predecessor(self, epoch: bytes) -> Predecessor | None:
        """How the epoch before this one ended, as it was when this one began."""
        row = self._connection.execute(
            "SELECT before_epoch, before_last, before_head FROM epochs WHERE epoch = ?", (epoch,)
        ).fetchone()
        return Predecessor(*row) if row and row[0] is not None else None

    def _head_after(self, state: EpochState, sequence: int) -> bytes:
        """The chain's value after a tap of an epoch, or before its first."""
        if sequence == 0:
            return genesis_head(self.device_id, state.epoch, self.find_predecessor(state.epoch))
        if sequence == state.last_sequence:
            return state.head
        row = self._connection.execute(
            "SELECT head FROM taps WHERE number = ?1 AND sequence = ?2"
            " UNION ALL SELECT pruned_head FROM epochs WHERE number = ?1 AND pruned_through = ?2",
            (state.number, sequence),
        ).fetchone()
        if row is None:
            raise OutboxError(f"tap {sequence} of {state.epoch.hex()} is kept no longer, or not yet there")
        return bytes(row[0])

    def _find_last_epoch(self) -> EpochState | None:
        row = self._connection.execute(f"{_SELECT_EPOCH} ORDER BY number DESC LIMIT 1").fetchone()
        return _as_state(row) if row else None

    # ---- damage

    def _check_all(self) -> None:
        """At boot: whatever still waits must be whole, and nothing counts as acknowledged that never was."""
        self._connection.execute("REINDEX")  # a changed id is looked for as what it is now
        through = "(SELECT max(a.through) FROM acknowledgements AS a WHERE a.number = epochs.number)"
        self._connection.execute(
            f"UPDATE epochs SET acknowledged_through = max(pruned_through, ifnull({through}, 0))"
            f" WHERE acknowledged_through > max(pruned_through, ifnull({through}, 0))"
        )
        last = "(SELECT ifnull(max(sequence), pruned_through) FROM taps AS t WHERE t.number = epochs.number)"
        waiting = f"{_SELECT_EPOCH} AND (last_sequence > acknowledged_through OR last_sequence <> {last})"
        for row in self._connection.execute(waiting).fetchall():
            state = _as_state(row)
            if self._find_whole(state, state.acknowledged_through + 1, state.last_sequence) is None or self._ends_elsewhere(
                state
            ):
                self._examine(state)

    def _ends_elsewhere(self, state: EpochState) -> bool:
        """Whether an epoch's row speaks of another end than its last tap does."""
        rows = self._rows(state.number, state.last_sequence)
        return bool(state.last_sequence) and (len(rows) != 1 or rows[0][2] != state.head)

    def _examine(self, state: EpochState) -> EpochState:
        """Find out from its beginning how far an epoch is whole, mend what the chain can mend, note where damage begins.

        A stored head that the taps lead to proves all taps before it. So a head that was changed is put right, and a
        changed tap makes all after it unprovable: none of them can be sent in this epoch."""
        begin, head = self._beginning(state)
        good, heads = begin, {begin: head}
        for sequence, tap, stored in self._readable_rows(state.number, begin + 1):
            if sequence != begin + len(heads) or not isinstance(tap, bytes):
                break
            heads[sequence] = head = extend(head, tap)
            if head == stored or (sequence, head) == (state.last_sequence, state.head):
                good = sequence
        last = max(good, state.last_sequence)
        whole = good == last
        with self._transaction():
            self._connection.executemany(
                "UPDATE taps SET head = ?3 WHERE number = ?1 AND sequence = ?2",
                [(state.number, sequence, head) for sequence, head in heads.items() if begin < sequence <= good],
            )
            self._connection.execute(
                "UPDATE epochs SET last_sequence = ?, head = ?, damaged_from = ? WHERE number = ?",
                (last, heads[good] if whole else state.head, None if whole else good + 1, state.number),
            )
        found = self.get_epoch(state.epoch)
        if self._live is not None and self._live.number == found.number:
            self._live = found
        return found

    def _beginning(self, state: EpochState) -> tuple[int, bytes]:
        """The place before the first tap that is kept, and the chain's value there."""
        row = self._connection.execute(
            "SELECT pruned_through, pruned_head FROM epochs WHERE number = ?", (state.number,)
        ).fetchone()
        if row[0] and isinstance(row[1], bytes):
            return int(row[0]), row[1]
        return 0, genesis_head(self.device_id, state.epoch, self.find_predecessor(state.epoch))

    def _readable_rows(self, number: int, first_sequence: int) -> list[tuple[int, bytes, bytes]]:
        """The rows of an epoch, up to one that the database cannot read."""
        found: list[tuple[int, bytes, bytes]] = []
        with suppress(sqlite3.Error):
            found.extend(
                self._connection.execute(
                    "SELECT sequence, tap, head FROM taps WHERE number = ? AND sequence >= ? ORDER BY sequence",
                    (number, first_sequence),
                )
            )
        return found

    def _malformed(self) -> list[int]:
        """Numbers of rows that are no epoch any more."""
        rows = self._connection.execute(f"SELECT number FROM epochs WHERE NOT {_WELL_FORMED}")
        return [number for (number,) in rows]

    def _prepare(self) -> None:
        """Make the tables of a new file, or of an older one; raise OutboxError for a file of another device."""
        columns = {row[1] for row in self._connection.execute("PRAGMA table_info(epochs)")}
        if not columns:
            self._run(_SCHEMA)
        elif "damaged_from" not in columns:
            self._run(_FROM_FORM_1)
        for table, names in _TABLES.items():  # a name may have changed, too
            self._connection.execute(f"SELECT {names} FROM {table} LIMIT 0")
        if self._connection.execute("SELECT 1 FROM epochs WHERE typeof(number) <> 'integer'").fetchone():
            raise _UnreadableError("the table of epochs has lost its numbers")
        owner = self._connection.execute("SELECT device_id FROM device").fetchone()
        if owner is None:
            self._connection.execute("INSERT INTO device VALUES (?)", (self.device_id,))
        elif owner[0] != self.device_id:
            raise OutboxError(f"the outbox of {owner[0]!r}, not of {self.device_id!r}")

    def _run(self, statements: str) -> None:
        """All of the statements or nothing."""
        with self._connection:
            for statement in ("BEGIN IMMEDIATE", *statements.split(";")):
                self._connection.execute(statement)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of the block on the disk, or nothing of it and OutboxError."""
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            yield
            self._connection.execute("COMMIT")
        except BaseException as fault:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            if isinstance(fault, sqlite3.Error):
                raise OutboxError(f"not stored: {fault}") from fault
            raise


_WELL_FORMED: Final = (
    f"(typeof(epoch) = 'blob' AND length(epoch) = {EPOCH_BYTES} AND typeof(head) = 'blob' AND length(head) = {HEAD_BYTES}"
    " AND typeof(last_sequence) = 'integer' AND last_sequence >= 0"
    " AND typeof(damaged_from) IN ('null', 'integer')"
    " AND typeof(acknowledged_through) = 'integer' AND acknowledged_through BETWEEN 0 AND last_sequence)"
)
_SELECT_EPOCH: Final = (
    f"SELECT number, epoch, last_sequence, head, acknowledged_through, damaged_from FROM epochs WHERE {_WELL_FORMED}"
)
_NOT_ITS_FAULT: Final = frozenset(
    {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}
)
"""The file is in use, or the disk does not do: another file would fare no better."""


class _UnreadableError(OutboxError):
    """The file is not what a database is any more."""


def _connect(path: str | Path) -> sqlite3.Connection:
    """A connection that holds the file for itself and whose commits are on the disk when they return."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=1)
    connection.text_factory = lambda data: data.decode("utf-8", "replace")
    in_memory = str(path) == ":memory:"
    try:
        if in_memory:
            connection.execute("PRAGMA page_size = 1024")  # thousands of them live in one simulation
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("COMMIT")
        if not in_memory and connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            raise _UnreadableError(f"{path}: the file is damaged")
    except (sqlite3.Error, ValueError, _UnreadableError) as fault:
        connection.close()
        if isinstance(fault, _UnreadableError):
            raise
        known = isinstance(fault, sqlite3.Error) and fault.sqlite_errorcode & 0xFF in _NOT_ITS_FAULT
        raise (OutboxError if known else _UnreadableError)(f"{path}: {fault}") from fault
    return connection


def _move_aside(path: Path) -> Path:
    """Give an unreadable file another name, with what belongs to it; nothing is ever overwritten."""
    number = 1
    while (target := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    for ending in ("", "-wal", "-shm"):
        try:
            path.with_name(path.name + ending).rename(target.with_name(target.name + ending))
        except FileNotFoundError:
            continue
        except OSError as fault:
            raise OutboxError(f"{path} is unreadable and cannot be moved aside: {fault}") from fault
    return target


_TABLES: Final = {
    "epochs": "number, epoch, before_epoch, before_last, before_head, last_sequence, head, acknowledged_through,"
    " pruned_through, pruned_head, damaged_from",
    "taps": "number, sequence, tap, head",
    "acknowledgements": "number, through, at",
}


def _salvage(damaged: Path, into: sqlite3.Connection) -> None:
    """Copy what can be read of a damaged file. What is missing of an epoch is found out as damage of that epoch."""
    with closing(sqlite3.connect(f"file:{damaged}?mode=ro", uri=True, isolation_level=None)) as source:
        for table, columns in _TABLES.items():
            insert = f"INSERT OR IGNORE INTO {table} ({columns}) VALUES ({', '.join('?' * len(columns.split(',')))})"
            into.execute("BEGIN IMMEDIATE")
            for row in _readable(source, f"SELECT {columns} FROM {table}"):
                with suppress(sqlite3.Error):
                    into.execute(insert, row)
            into.execute("COMMIT")


def _readable(source: sqlite3.Connection, query: str) -> Iterator[tuple[object, ...]]:
    """Rows from both ends of a table, up to those that the database cannot read."""
    for order in ("ASC", "DESC"):
        with suppress(sqlite3.Error, ValueError):
            yield from source.execute(f"{query} ORDER BY 1 {order}, 2 {order}")


def _as_state(row: Sequence[object]) -> EpochState:
    number, epoch, last_sequence, head, acknowledged_through, damaged_from = row
    assert isinstance(number, int)
    assert isinstance(epoch, bytes)
    assert isinstance(last_sequence, int)
    assert isinstance(head, bytes)
    assert isinstance(acknowledged_through, int)
    assert damaged_from is None or isinstance(damaged_from, int)
    return EpochState(
        number=number,
        epoch=epoch,
        last_sequence=last_sequence,
        head=head,
        acknowledged_through=acknowledged_through,
        damaged_from=damaged_from,
    )


def _as_predecessor(state: EpochState | None) -> Predecessor | None:
    return Predecessor(state.epoch, state.last_sequence, state.head) if state else None
