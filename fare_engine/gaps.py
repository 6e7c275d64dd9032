"""Which taps are known to be missing: those of an epoch that a later one says had more than is held.

An epoch's first header names the one before it with its last sequence. So what is missing is known as soon as the next epoch is
heard of, device by device, without waiting for anything. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import msgspec

from fare_engine.store.receipts import StreamRow


class Gap(msgspec.Struct, frozen=True):
    """Taps of an epoch that are not held, `first` to `last`. `known_since`: when the server heard that they exist."""

    device_id: str
    epoch: str
    first: int
    last: int
    known_since: int

    @property
    def taps(self) -> int:
        """How many they are."""
        return self.last - self.first + 1


def find_gaps(streams: Iterable[StreamRow]) -> list[Gap]:
    """The gaps of all devices, by device and the time since they are known. An epoch that was set aside and is still on its
    way is one of them until it has arrived."""
    by_device: dict[str, dict[str, StreamRow]] = defaultdict(dict)
    for stream in streams:
        by_device[stream.device_id][stream.epoch] = stream
    found = []
    for device_id, own in by_device.items():
        for stream in own.values():
            if stream.predecessor is None or stream.predecessor_last is None:
                continue
            held = own[stream.predecessor].acknowledged_through if stream.predecessor in own else 0
            if held < stream.predecessor_last:
                found.append(Gap(device_id, stream.predecessor, held + 1, stream.predecessor_last, stream.begun_at))
    return sorted(found, key=lambda gap: (gap.device_id, gap.known_since, gap.epoch))
