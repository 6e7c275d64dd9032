"""Which taps are known to be missing, by what a device's epochs say of one another."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from fare_engine.gaps import Gap, find_gaps
from fare_engine.store.receipts import StreamRow


def stream(
    epoch: str, held: int, before: str | None = None, last: int | None = None, *, device: str = "gate-1", begun: int = 0
) -> StreamRow:
    """An epoch of which `held` taps are held, and which names the one before it with its last sequence."""
    return StreamRow(device, epoch, held, b"head", before, last, None if before is None else b"head", begun, begun)


def test_nothing_is_missing_where_every_epoch_is_held_to_its_end() -> None:
    assert find_gaps([stream("a", 3), stream("b", 2, "a", 3), stream("c", 0, "b", 2)]) == []


def test_what_the_next_epoch_says_there_was_more_is_missing() -> None:
    (gap,) = find_gaps([stream("a", 3), stream("b", 2, "a", 7, begun=50)])
    assert gap == Gap("gate-1", "a", 4, 7, 50)
    assert gap.taps == 4


def test_an_epoch_that_was_never_heard_of_is_missing_from_its_first_tap_on() -> None:
    assert find_gaps([stream("b", 2, "a", 7, begun=50)]) == [Gap("gate-1", "a", 1, 7, 50)]


def test_an_epoch_without_taps_leaves_no_gap() -> None:
    assert find_gaps([stream("b", 2, "a", 0)]) == []


def test_more_than_was_said_is_no_gap_for_it_is_an_alarm() -> None:
    assert find_gaps([stream("a", 9), stream("b", 2, "a", 7)]) == []


def test_the_newest_epoch_cannot_be_known_to_lack_anything() -> None:
    assert find_gaps([stream("a", 3)]) == []


def test_one_devices_epoch_says_nothing_of_anothers() -> None:
    found = find_gaps([stream("a", 3, device="gate-2"), stream("b", 2, "a", 5, begun=1)])
    assert found == [Gap("gate-1", "a", 1, 5, 1)]


def test_gaps_stand_by_device_and_by_how_long_they_are_known() -> None:
    found = find_gaps(
        [
            stream("z", 0, "y", 1, device="gate-2", begun=1),
            stream("c", 0, "b", 1, begun=9),
            stream("b", 0, "a", 1, begun=5),
        ]
    )
    assert [(gap.device_id, gap.known_since) for gap in found] == [("gate-1", 5), ("gate-1", 9), ("gate-2", 1)]


@given(sizes=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=8), seed=st.integers(0, 1 << 32))
def test_whatever_arrived_in_whatever_order_the_gaps_are_what_is_not_held(sizes: list[tuple[int, int]], seed: int) -> None:
    """A device wrote epochs of some sizes, of each only a beginning arrived: of all but the last it is known what lacks."""
    streams, missing = [], 0
    for number, (size, lacking) in enumerate(sizes):
        held = max(0, size - lacking)
        before = (str(number - 1), sizes[number - 1][0]) if number else (None, None)
        streams.append(stream(str(number), held, *before, begun=number))
        missing += size - held if number < len(sizes) - 1 else 0
    random.Random(seed).shuffle(streams)
    assert sum(gap.taps for gap in find_gaps(streams)) == missing
