"""What a terminal has seen and not yet got rid of: its epochs, their taps and how far the server acknowledged each.

A tap is on the disk before `append` returns, so whatever a rider was told can be sent again after any crash. Taps
stay for weeks after their acknowledgement: a server restored from a backup may ask for them again. Decides nothing
about when to send."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fare_engine.errors import MottheError
from fare_engine.ids import DeviceId
from fare_engine.tap_format import EPOCH_BYTES, Predecessor, extend, genesis_head, header_for, seal

KEEP_MS: Final = 30 * 24 * 3600 * 1000
"""How long a tap is kept after its acknowledgement."""
BATCH_TAPS: Final = 200
"""Most taps in one message: as many as the server takes up in one transaction."""

_SCHEMA_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE device (device_id TEXT NOT NULL);
CREATE TABLE epochs (
    number INTEGER PRIMARY KEY,
    epoch BLOB NOT NULL UNIQUE,
    predecessor INTEGER REFERENCES epochs (number),
    last_sequence INTEGER NOT NULL DEFAULT 0,
    head BLOB NOT NULL,
    acknowledged_through INTEGER NOT NULL DEFAULT 0,
    pruned_through INTEGER NOT NULL DEFAULT 0,
    pruned_head BLOB
);
CREATE TABLE taps (
    number INTEGER NOT NULL REFERENCES epochs (number),
    sequence INTEGER NOT NULL,
    tap BLOB NOT NULL,
    head BLOB NOT NULL,
    PRIMARY KEY (number, sequence)
) WITHOUT ROWID;
CREATE TABLE acknowledgements (number INTEGER NOT NULL, through INTEGER NOT NULL, at INTEGER NOT NULL);
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

    @property
    def pending(self) -> int:
        """How many taps wait for their acknowledgement."""
        return self.last_sequence - self.acknowledged_through


class Outbox:
    """A device's durable queue. One process at a time: a second one that opens the same file gets an OutboxError."""

    def __init__(self, path: str | Path, device_id: DeviceId) -> None:
        self.device_id = device_id
        self._connection = _connect(path)
        self._prepare()
        self._live = self._find_last_epoch()

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
        with self._transaction():
            number = self._connection.execute(
                "INSERT INTO epochs (epoch, predecessor, head) VALUES (?, ?, ?)",
                (epoch, before.number if before else None, genesis),
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
            f"{_SELECT_EPOCH} WHERE last_sequence > acknowledged_through ORDER BY number < ?, number",
            (self.live.number,),
        )
        return [_as_state(row) for row in rows]

    def list_taps(self, epoch: bytes, first_sequence: int, most: int = BATCH_TAPS) -> list[bytes]:
        """The taps of an epoch from a sequence on; raises OutboxError where they are kept no longer."""
        state = self.get_epoch(epoch)
        rows = self._connection.execute(
            "SELECT sequence, tap FROM taps WHERE number = ? AND sequence >= ? ORDER BY sequence LIMIT ?",
            (state.number, first_sequence, most),
        ).fetchall()
        wanted = min(most, state.last_sequence - first_sequence + 1)
        if wanted > 0 and (len(rows) < wanted or rows[0][0] != first_sequence):
            raise OutboxError(f"taps of {epoch.hex()} from {first_sequence} on are kept no longer")
        return [tap for _, tap in rows]

    def message(self, key: Ed25519PrivateKey, epoch: bytes, first_sequence: int, sent_at: int, most: int = BATCH_TAPS) -> bytes:
        """The signed message with the taps of an epoch from `first_sequence` on, acknowledged before or not.

        With `most` 0, or after the last tap, it carries none and only announces how far the epoch has got. `sent_at` is
        milliseconds UTC by the device's clock. Raises OutboxError for taps that the outbox does not have."""
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

    def get_epoch(self, epoch: bytes) -> EpochState:
        """One epoch; raises OutboxError for one that this device never began."""
        row = self._connection.execute(f"{_SELECT_EPOCH} WHERE epoch = ?", (epoch,)).fetchone()
        if row is None:
            raise OutboxError(f"no epoch {epoch.hex()}")
        return _as_state(row)

    def find_predecessor(self, epoch: bytes) -> Predecessor | None:
        """How the epoch before this one ended."""
        row = self._connection.execute(
            "SELECT b.epoch, b.last_sequence, b.head FROM epochs AS a JOIN epochs AS b ON b.number = a.predecessor"
            " WHERE a.epoch = ?",
            (epoch,),
        ).fetchone()
        return Predecessor(*row) if row else None

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

    def _prepare(self) -> None:
        """Make the tables of a new file; raise OutboxError for a file of another device or another form."""
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            statements = [*_SCHEMA.split(";"), f"PRAGMA user_version = {_SCHEMA_VERSION}"]
            with self._transaction():
                for statement in statements:
                    self._connection.execute(statement)
                self._connection.execute("INSERT INTO device VALUES (?)", (self.device_id,))
        elif version != _SCHEMA_VERSION:
            raise OutboxError(f"an outbox of form {version}, this program reads form {_SCHEMA_VERSION}")
        (owner,) = self._connection.execute("SELECT device_id FROM device").fetchone()
        if owner != self.device_id:
            raise OutboxError(f"the outbox of {owner!r}, not of {self.device_id!r}")

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


_SELECT_EPOCH: Final = "SELECT number, epoch, last_sequence, head, acknowledged_through FROM epochs"


def _connect(path: str | Path) -> sqlite3.Connection:
    """A connection that holds the file for itself and whose commits are on the disk when they return."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=1)
    try:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("COMMIT")
    except sqlite3.Error as fault:
        connection.close()
        raise OutboxError(f"{path}: {fault}") from fault
    return connection


def _as_state(row: Sequence[object]) -> EpochState:
    number, epoch, last_sequence, head, acknowledged_through = row
    assert isinstance(number, int)
    assert isinstance(epoch, bytes)
    assert isinstance(last_sequence, int)
    assert isinstance(head, bytes)
    assert isinstance(acknowledged_through, int)
    return EpochState(
        number=number,
        epoch=epoch,
        last_sequence=last_sequence,
        head=head,
        acknowledged_through=acknowledged_through,
    )


def _as_predecessor(state: EpochState | None) -> Predecessor | None:
    return Predecessor(state.epoch, state.last_sequence, state.head) if state else None
