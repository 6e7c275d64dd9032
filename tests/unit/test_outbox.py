"""The outbox: what was stored is there after any crash, and can be sent from wherever the server asks."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fare_engine.ids import DeviceId
from fare_engine.tap_format import Batch, Predecessor, genesis_head, heads_after, open_message
from tests.vectors.make_vectors import KEY
from validators.outbox import KEEP_MS, Outbox, OutboxError

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
    return open_message(message, lambda device: KEY.public_key() if device == DEVICE else None)


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
