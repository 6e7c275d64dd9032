"""What a terminal remembers for a while: who was here, and what the server last said of a token.

Bounded: the oldest is forgotten first, so that no crowd fills a terminal. Nothing of it outlives a boot, and nothing is
decided here."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final, TypeVar

from fare_engine.ids import FactId
from fare_engine.tap_format import TapKind, TapPlace

MOST_TOKENS: Final = 5_000
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A ride that began or ended here."""

    tap_id: FactId
    place: TapPlace
    kind: TapKind
    at: int
    """Milliseconds by the device's clock."""
    persons: int
    admitted: bool
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LastKnown:
    """What the server last said of a token."""

    at: int
    """Milliseconds by the device's clock."""
    refused: str | None
    """Why it was refused; None: it was not."""
    balance: int | None


@dataclass(slots=True)
class Memory:
    """By terminal token."""

    latest: OrderedDict[bytes, Seen] = field(default_factory=OrderedDict)
    """The last tap of a ride, admitted or not."""
    admitted: OrderedDict[bytes, Seen] = field(default_factory=OrderedDict)
    """The last one that was admitted."""
    known: OrderedDict[bytes, LastKnown] = field(default_factory=OrderedDict)

    def saw(self, token: bytes, seen: Seen) -> None:
        """A tap was decided."""
        _put(self.latest, token, seen)
        if seen.admitted:
            _put(self.admitted, token, seen)

    def heard(self, token: bytes, known: LastKnown) -> None:
        """The server answered."""
        _put(self.known, token, known)

    def forget(self, place: TapPlace) -> None:
        """The tap at `place` led to nothing."""
        for taps in (self.latest, self.admitted):
            for token in [token for token, seen in taps.items() if seen.place == place]:
                del taps[token]


def _put(entries: OrderedDict[bytes, _Value], token: bytes, value: _Value) -> None:
    entries[token] = value
    entries.move_to_end(token)
    if len(entries) > MOST_TOKENS:
        entries.popitem(last=False)
