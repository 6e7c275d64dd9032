"""One type per kind of identifier, so that a stop cannot be passed for an area."""

from __future__ import annotations

from typing import NewType

AccountId = NewType("AccountId", str)
AreaId = NewType("AreaId", str)
DeviceId = NewType("DeviceId", str)
FactId = NewType("FactId", str)
"""A tap's is `device/epoch/sequence`; any other fact's is made by whoever recorded it."""
LegId = NewType("LegId", str)
"""The id of the leg's first tap, or of the purchase that a sale's lines hang on."""
LineId = NewType("LineId", str)
MediaId = NewType("MediaId", str)
NetworkId = NewType("NetworkId", str)
OperatorId = NewType("OperatorId", str)
ProductId = NewType("ProductId", str)
RouteId = NewType("RouteId", str)
RuleId = NewType("RuleId", str)
StopId = NewType("StopId", str)
TokenId = NewType("TokenId", str)
TravellerId = NewType("TravellerId", str)
VersionId = NewType("VersionId", str)


def tap_id(device_id: str, epoch: str, sequence: int) -> FactId:
    """The id of a tap: its place in its device's stream, which no other tap can have."""
    return FactId(f"{device_id}/{epoch}/{sequence}")
