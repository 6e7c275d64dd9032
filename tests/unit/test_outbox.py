"""The outbox: what was stored is there after any crash, and can be sent from wherever the server asks."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fare_engine.ids import DeviceId
from fare_engine.tap_format import Batch, Predecessor, genesis_head, heads_after, open_message
from tests.vectors.make_vectors import KEY
from validators.outbox import KEEP_MS, Damage, Outbox, OutboxError

DEVICE = DeviceId("bus-07")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.sqlite"


@pytest.fixture
def outbox(path: Path) -> Iterator[Outbox]:
    box = Outbox(path, DEVICE)
    box.begin_epoch(random.Random(1).randbytes)
    yield box
    box.close()


def tap(number: int) -> bytes:
    return f"tap {number}".encode()


def filled(box: Outbox, count: int) -> list[bytes]:
    taps = [tap(number) for number in range(1, count + 1)]
    assert [box.append(data) for data in taps] == list(range(1, count + 1))
    return taps


def opened(message: bytes) -> Batch:
    return open_message(message, lambda device: [KEY.public_key()] if device == DEVICE else [])


def test_taps_wait_in_the_order_in_which_they_were_stored(outbox: Outbox) -> None:
    taps = filled(outbox, 5)
    live = outbox.live
    assert (live.last_sequence, live.pending) == (5, 5)
    assert live.head == heads_after(genesis_head(DEVICE, live.epoch, None), taps)[-1]
    assert outbox.list_taps(live.epoch, 1) == taps


def test_a_message_begins_wherever_the_server_asks_and_its_chain_holds(outbox: Outbox) -> None:
    taps = filled(outbox, 6)
    epoch = outbox.live.epoch
    for first in range(1, 8):
        for most in (0, 1, 2, 200):
            batch = opened(outbox.message(KEY, epoch, first, sent_at=5, most=most))
            assert list(batch.taps) == taps[first - 1 : first - 1 + most]
            assert batch.header.first_sequence == first
    with pytest.raises(OutboxError, match="not yet there"):
        outbox.message(KEY, epoch, 8, sent_at=5)


def test_an_epoch_names_the_one_before_it(outbox: Outbox) -> None:
    filled(outbox, 3)
    first = outbox.live
    second = outbox.begin_epoch(random.Random(2).randbytes)
    assert second.epoch != first.epoch
    before = Predecessor(first.epoch, 3, first.head)
    assert opened(outbox.message(KEY, second.epoch, 1, sent_at=0)).header.predecessor == before
    outbox.append(tap(1))
    assert opened(outbox.message(KEY, second.epoch, 1, sent_at=0)).header.predecessor == before
    assert opened(outbox.message(KEY, first.epoch, 1, sent_at=0)).header.predecessor is None


def test_what_is_acknowledged_waits_no_longer_but_can_be_sent_again(outbox: Outbox) -> None:
    taps = filled(outbox, 4)
    epoch = outbox.live.epoch
    outbox.acknowledged(epoch, 3, at=100)
    outbox.acknowledged(epoch, 2, at=101)
    assert (outbox.live.acknowledged_through, outbox.live.pending) == (3, 1)
    assert list(opened(outbox.message(KEY, epoch, 2, sent_at=0)).taps) == taps[1:]
    outbox.acknowledged(epoch, 4, at=102)
    assert outbox.list_pending() == []


def test_nobody_can_acknowledge_what_was_never_written(outbox: Outbox) -> None:
    filled(outbox, 2)
    with pytest.raises(OutboxError, match="ends at 2"):
        outbox.acknowledged(outbox.live.epoch, 3, at=0)
    with pytest.raises(OutboxError, match="no epoch"):
        outbox.acknowledged(bytes(8), 1, at=0)
    assert outbox.live.pending == 2


def test_live_taps_come_before_a_backlog_and_the_oldest_backlog_before_others(outbox: Outbox) -> None:
    source = random.Random(3).randbytes
    epochs = [outbox.live.epoch]
    for _ in range(2):
        filled(outbox, 2)
        epochs.append(outbox.set_aside_backlog(source).epoch)
    assert [state.epoch for state in outbox.list_pending()] == epochs[:2]
    outbox.append(tap(1))
    assert [state.epoch for state in outbox.list_pending()] == [epochs[2], epochs[0], epochs[1]]


def test_no_epoch_begins_where_there_is_no_backlog(outbox: Outbox) -> None:
    filled(outbox, 1)
    outbox.acknowledged(outbox.live.epoch, 1, at=0)
    assert outbox.set_aside_backlog(random.Random(3).randbytes) == outbox.live
    assert len(outbox.list_epochs()) == 1


def test_taps_are_kept_for_thirty_days_after_their_acknowledgement_and_others_for_ever(outbox: Outbox) -> None:
    taps = filled(outbox, 6)
    epoch = outbox.live.epoch
    outbox.acknowledged(epoch, 2, at=1000)
    outbox.acknowledged(epoch, 4, at=2000)
    assert outbox.prune(at=1000 + KEEP_MS) == 0
    assert outbox.prune(at=1001 + KEEP_MS) == 2
    assert list(opened(outbox.message(KEY, epoch, 3, sent_at=0)).taps) == taps[2:]
    with pytest.raises(OutboxError, match="kept no longer"):
        outbox.message(KEY, epoch, 2, sent_at=0)
    assert opened(outbox.message(KEY, epoch, 1, sent_at=0, most=0)).header.first_sequence == 1
    assert outbox.prune(at=10 * KEEP_MS) == 2
    assert list(opened(outbox.message(KEY, epoch, 5, sent_at=0)).taps) == taps[4:]
    assert outbox.prune(at=100 * KEEP_MS) == 0
    assert outbox.append(tap(7)) == 7


def test_everything_is_there_after_reopening(outbox: Outbox, path: Path) -> None:
    filled(outbox, 3)
    outbox.acknowledged(outbox.live.epoch, 1, at=0)
    before = outbox.list_epochs()
    outbox.close()
    again = Outbox(path, DEVICE)
    assert again.list_epochs() == before
    assert again.append(tap(4)) == 4
    assert list(opened(again.message(KEY, again.live.epoch, 2, sent_at=0)).taps) == [tap(2), tap(3), tap(4)]
    again.close()


def test_a_file_serves_one_process_and_one_device(outbox: Outbox, path: Path) -> None:
    with pytest.raises(OutboxError, match="locked"):
        Outbox(path, DEVICE)
    outbox.close()
    with pytest.raises(OutboxError, match="'bus-07'"):
        Outbox(path, DeviceId("bus-08"))


def test_a_tap_that_cannot_be_stored_takes_no_sequence(outbox: Outbox) -> None:
    filled(outbox, 1)
    outbox._connection.execute("PRAGMA max_page_count = 1")
    before = outbox.live
    with pytest.raises(OutboxError, match="not stored"):
        outbox.append(bytes(1_000_000))
    assert outbox.live == before == outbox.get_epoch(before.epoch)
    outbox._connection.execute("PRAGMA max_page_count = 100000")
    assert outbox.append(tap(2)) == 2


def test_what_is_stored_is_forced_to_the_disk(outbox: Outbox) -> None:
    """Only pulling the plug would show it; so the settings that promise it are asked for."""
    found = {name: outbox._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")}
    assert found == {"journal_mode": "wal", "synchronous": 2}


def test_a_thousand_outboxes_fit_in_one_process() -> None:
    boxes = [Outbox(":memory:", DeviceId(f"bus-{number}")) for number in range(1000)]
    for number, box in enumerate(boxes):
        box.begin_epoch(random.Random(number).randbytes)
        box.append(tap(1))
    assert {box.live.pending for box in boxes} == {1}
    assert len({box.live.epoch for box in boxes}) == 1000
    for box in boxes:
        box.close()


# ---- damage on the disk


def reopened(outbox: Outbox, path: Path, *statements: str) -> Outbox:
    """The outbox after a boot, with its file changed by these statements while nobody had it open."""
    outbox.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            assert connection.execute(statement).rowcount == 1, statement
    return Outbox(path, DEVICE)


def test_a_changed_tap_ends_its_epoch_there_and_nothing_else(outbox: Outbox, path: Path) -> None:
    taps = filled(outbox, 9)
    damaged = outbox.live
    second = outbox.begin_epoch(random.Random(2).randbytes)
    filled(outbox, 4)
    again = reopened(outbox, path, "UPDATE taps SET tap = x'00' WHERE number = 1 AND sequence = 6")
    assert again.list_damage() == [Damage(epoch=damaged.epoch.hex(), from_sequence=6, last_sequence=9)]
    assert [(state.epoch, state.pending) for state in again.list_pending()] == [(second.epoch, 4), (damaged.epoch, 5)]
    assert list(opened(again.message(KEY, damaged.epoch, 1, sent_at=0)).taps) == taps[:5]
    assert opened(again.message(KEY, damaged.epoch, 6, sent_at=0)).header.count == 0
    predecessor = opened(again.message(KEY, second.epoch, 1, sent_at=0)).header.predecessor
    assert predecessor == Predecessor(damaged.epoch, 9, damaged.head), "so that the server counts four as missing"
    again.acknowledged(damaged.epoch, 5, at=0)
    assert [state.epoch for state in again.list_pending()] == [second.epoch]
    again.close()


def test_a_live_epoch_that_is_damaged_takes_no_more_and_the_next_names_what_is_known(outbox: Outbox, path: Path) -> None:
    filled(outbox, 5)
    before = outbox.live
    again = reopened(outbox, path, "UPDATE taps SET tap = x'00' WHERE sequence = 3")
    with pytest.raises(OutboxError, match="damaged"):
        again.append(tap(6))
    new = again.begin_epoch(random.Random(2).randbytes)
    assert again.append(tap(1)) == 1
    predecessor = opened(again.message(KEY, new.epoch, 1, sent_at=0)).header.predecessor
    assert predecessor == Predecessor(before.epoch, 5, before.head)
    again.close()


@pytest.mark.parametrize("sequence", [1, 4, 6])
def test_a_changed_head_is_mended_from_the_taps(outbox: Outbox, path: Path, sequence: int) -> None:
    taps = filled(outbox, 6)
    outbox.acknowledged(outbox.live.epoch, 4, at=0)
    before = outbox.live
    again = reopened(outbox, path, f"UPDATE taps SET head = zeroblob(32) WHERE sequence = {sequence}")
    assert again.list_damage() == []
    assert list(opened(again.message(KEY, before.epoch, 1, sent_at=0)).taps) == taps
    assert list(opened(again.message(KEY, before.epoch, 5, sent_at=0)).taps) == taps[4:]
    again.close()


@pytest.mark.parametrize(
    "change",
    ["head = zeroblob(32)", "last_sequence = 3", "acknowledged_through = 5", "acknowledged_through = 900", "last_sequence = 6"],
)
def test_an_epoch_s_row_that_was_changed_is_mended_as_far_as_its_taps_tell(outbox: Outbox, path: Path, change: str) -> None:
    taps = filled(outbox, 5)
    outbox.acknowledged(outbox.live.epoch, 2, at=0)
    before = outbox.live
    again = reopened(outbox, path, f"UPDATE epochs SET {change}")
    found = again.get_epoch(before.epoch)
    assert (found.pending, found.acknowledged_through, found.sendable_through) == (3, 2, 5)
    assert list(opened(again.message(KEY, before.epoch, 3, sent_at=0)).taps) == taps[2:]
    again.close()


@pytest.mark.parametrize("change", ["epoch = x'ffffffffffffffff'", "epoch = x'01'", "head = 5", "last_sequence = 'x'"])
def test_an_epoch_whose_row_says_nothing_any_more_is_reported_and_the_others_go_on(
    outbox: Outbox, path: Path, change: str
) -> None:
    filled(outbox, 3)
    second = outbox.begin_epoch(random.Random(2).randbytes)
    taps = filled(outbox, 2)
    again = reopened(outbox, path, f"UPDATE epochs SET {change} WHERE number = 1")
    assert [damage.from_sequence for damage in again.list_damage()] == [1]
    assert [state.epoch for state in again.list_pending()] == [second.epoch]
    assert list(opened(again.message(KEY, second.epoch, 1, sent_at=0)).taps) == taps
    again.close()


def test_damage_that_comes_while_the_terminal_runs_is_found_when_it_is_read(outbox: Outbox) -> None:
    taps = filled(outbox, 5)
    outbox._connection.execute("UPDATE taps SET tap = x'00' WHERE sequence = 4")
    assert list(opened(outbox.message(KEY, outbox.live.epoch, 1, sent_at=0)).taps) == taps[:3]
    assert (outbox.live.damaged_from, outbox.live.pending) == (4, 3)


@pytest.mark.parametrize("rubbish", [b"no database at all" * 1000, b"SQLite format 3\x00" + bytes(8000)])
def test_a_file_that_is_no_outbox_any_more_is_moved_aside_and_another_begins(outbox: Outbox, path: Path, rubbish: bytes) -> None:
    filled(outbox, 3)
    outbox.close()
    for number in (1, 2):
        path.write_bytes(rubbish)
        again = Outbox(path, DEVICE)
        assert again.moved_to == path.with_name(f"outbox.sqlite.damaged-{number}")
        assert again.moved_to.read_bytes() == rubbish
        assert "damaged" in again.list_damage()[0].detail
        again.begin_epoch(random.Random(number).randbytes)
        assert again.append(tap(1)) == 1
        again.close()


def test_what_can_be_read_of_a_torn_file_is_saved_from_it(outbox: Outbox, path: Path) -> None:
    taps = [bytes([number % 256]) * 200 for number in range(400)]
    for data in taps:
        outbox.append(data)
    first = outbox.live
    second = outbox.begin_epoch(random.Random(2).randbytes)
    outbox.append(tap(1))
    outbox.close()
    data = bytearray(path.read_bytes())
    middle = data.find(taps[120] * 1, 4096)
    page = middle - middle % 4096
    data[page : page + 64] = bytes(64)
    path.write_bytes(data)
    again = Outbox(path, DEVICE)
    assert again.moved_to is not None
    assert {state.epoch for state in again.list_pending()} == {first.epoch, second.epoch}
    whole = again.get_epoch(first.epoch).sendable_through
    assert 50 < whole < 121
    assert list(opened(again.message(KEY, first.epoch, 1, sent_at=0, most=2000)).taps) == taps[:whole]
    assert opened(again.message(KEY, second.epoch, 1, sent_at=0)).taps == (tap(1),)
    assert {damage.from_sequence for damage in again.list_damage()} == {0, whole + 1}
    again.close()


def test_a_file_in_use_is_not_taken_for_a_damaged_one(outbox: Outbox, path: Path) -> None:
    with pytest.raises(OutboxError, match="locked"):
        Outbox(path, DEVICE)
    assert list(path.parent.glob("*damaged*")) == []


@given(data=st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_bit_of_the_file_flips_what_is_sent_is_what_was_stored(tmp_path: Path, data: st.DataObject) -> None:
    """Either the file is found to be damaged, or what can still be sent is true: nobody is charged for a changed tap."""
    path = tmp_path / "box"
    if not (tmp_path / "good").exists():
        box = Outbox(path, DEVICE)
        for seed in (1, 2):
            box.begin_epoch(random.Random(seed).randbytes)
            filled(box, 40)
        box.close()
        path.rename(tmp_path / "good")
    content = bytearray((tmp_path / "good").read_bytes())
    bit = data.draw(st.integers(0, len(content) * 8 - 1))
    content[bit // 8] ^= 1 << bit % 8
    path = tmp_path / f"box-{len(list(tmp_path.iterdir()))}"
    path.write_bytes(content)
    try:
        box = Outbox(path, DEVICE)
    except OutboxError as error:
        if "the outbox of" in str(error):  # a bit of its owner's name
            return
        raise
    with closing(box):
        box.begin_epoch(random.Random(3).randbytes)
        for state in box.list_pending():
            batch = opened(box.message(KEY, state.epoch, 1, sent_at=0))
            assert list(batch.taps) == [tap(number) for number in range(1, state.pending + 1)]
        waiting = sum(state.pending for state in box.list_pending())
        assert waiting == 80 or box.list_damage()


def test_an_outbox_of_the_form_before_is_taken_over(outbox: Outbox, path: Path) -> None:
    filled(outbox, 2)
    outbox.begin_epoch(random.Random(2).randbytes)
    filled(outbox, 2)
    epochs = outbox.list_epochs()
    outbox.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("ALTER TABLE epochs ADD COLUMN predecessor INTEGER")
        connection.execute("UPDATE epochs SET predecessor = number - 1 WHERE number > 1")
        for column in ("before_epoch", "before_last", "before_head", "damaged_from"):
            connection.execute(f"ALTER TABLE epochs DROP COLUMN {column}")
        connection.execute("PRAGMA user_version = 1")
    again = Outbox(path, DEVICE)
    assert again.list_epochs() == epochs
    assert again.find_predecessor(epochs[1].epoch) == Predecessor(epochs[0].epoch, 2, epochs[0].head)
    assert again.list_damage() == []
    again.close()


# ---- a month without contact


def test_a_month_of_taps_waits_boots_and_leaves_quickly(path: Path) -> None:
    """30 days of 2,000 taps. Stored in large transactions here, since forcing each to the disk is what takes the time."""
    box = Outbox(path, DEVICE)
    source = random.Random(5)
    for _ in range(30):
        live = box.begin_epoch(source.randbytes)
        taps = [source.randbytes(120) for _ in range(2000)]
        heads = heads_after(live.head, taps)
        rows = [(live.number, at, data, heads[at]) for at, data in enumerate(taps, start=1)]
        box._connection.execute("BEGIN")
        box._connection.executemany("INSERT INTO taps VALUES (?, ?, ?, ?)", rows)
        box._connection.execute("UPDATE epochs SET last_sequence = 2000, head = ? WHERE number = ?", (heads[-1], live.number))
        box._connection.execute("COMMIT")
    box.close()
    begun = time.perf_counter()
    box = Outbox(path, DEVICE)
    booted = time.perf_counter() - begun
    assert (sum(state.pending for state in box.list_pending()), box.list_damage()) == (60_000, [])
    assert path.stat().st_size < 30_000_000
    begun = time.perf_counter()
    messages = 0
    for state in box.list_pending():
        for first in range(1, state.last_sequence + 1, 200):
            opened(box.message(KEY, state.epoch, first, sent_at=0))
            box.acknowledged(state.epoch, first + 199, at=1000)
            messages += 1
    sent = time.perf_counter() - begun
    assert (messages, box.list_pending()) == (300, [])
    assert (box.prune(at=1000 + KEEP_MS), box.prune(at=1001 + KEEP_MS)) == (0, 60_000)
    assert booted < 5
    assert sent < 15
    box.close()


WRITER = """
import os, sys
from validators.outbox import Outbox
box = Outbox(sys.argv[1], "bus-07")
box.begin_epoch(os.urandom)
while True:
    sequence = box.append(os.urandom(60))
    os.write(1, f"{box.live.epoch.hex()} {sequence}\\n".encode())
    if sequence % 7 == 0:
        box.acknowledged(box.live.epoch, sequence - 3, sequence)
"""


def test_nothing_that_was_said_to_be_stored_is_missing_after_a_kill(path: Path) -> None:
    said: dict[str, int] = {}
    for lines in (1, 25, 60):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, cwd=ROOT, env=os.environ)
        assert process.stdout is not None
        heard = [process.stdout.readline() for _ in range(lines)]
        process.send_signal(signal.SIGKILL)
        heard += process.stdout.read().splitlines(keepends=True)
        process.stdout.close()
        assert process.wait() == -signal.SIGKILL
        for line in heard:
            epoch, sequence = line.split()
            said[epoch.decode()] = int(sequence)

        box = Outbox(path, DEVICE)
        held = {state.epoch.hex(): state.last_sequence for state in box.list_epochs()}
        for epoch_hex, sequence in said.items():
            assert held[epoch_hex] >= sequence
        epochs = box.list_epochs()
        for index, state in enumerate(epochs):
            batch = opened(box.message(KEY, state.epoch, 1, sent_at=0, most=2000))
            assert batch.header.head == state.head
            assert (batch.header.predecessor is None) == (index == 0)
        box.close()
    assert len(said) == 3
