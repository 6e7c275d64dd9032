"""One type per kind of identifier, so that a stop cannot be passed for an area."""

from __future__ import annotations

from typing import NewType

DeviceId = NewType("DeviceId", str)
FactId = NewType("FactId", str)
"""A tap's is `device/epoch/sequence`; any other fact's is made by whoever recorded it."""
LineId = NewType("LineId", str)
RouteId = NewType("RouteId", str)
StopId = NewType("StopId", str)


def tap_id(device_id: str, epoch: str, sequence: int) -> FactId:
    """The id of a tap: its place in its device's stream, which no other tap can have."""
    return FactId(f"{device_id}/{epoch}/{sequence}")
