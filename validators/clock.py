"""What a terminal believes about its own clock: how far it is off, and how well it knows that.

Learnt from the server's time in each answer, as NTP does from one exchange (RFC 5905, 8): the server made its answer
at some moment between sending and hearing, so the offset is known to half the time that the exchange took. The terminal
never sets its clock; it writes the offset into each tap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

DRIFT_PPM: Final = 100
"""How fast a terminal's clock may drift: twice what a cheap crystal does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockEstimate:
    """The offset as last learnt."""

    offset_ms: int
    """To add to the device's time."""
    error_ms: int
    """Half-width, when it was learnt."""
    learnt_at: int
    """Milliseconds by the device's clock."""

    def error_at(self, at: int) -> int:
        """Half-width at the device's time `at`: it grows with the drift since then."""
        return self.error_ms + abs(at - self.learnt_at) * DRIFT_PPM // 1_000_000


def learn(held: ClockEstimate | None, sent_at: int, elapsed_ms: int, server_time: int) -> ClockEstimate:
    """The better of what was held and what an exchange teaches: the narrower one now, but the new one if both cannot be
    true, for then the clock was set meanwhile. `sent_at` is by the device's clock, `server_time` by the server's."""
    heard_at = sent_at + elapsed_ms
    new = ClockEstimate(
        offset_ms=server_time - (sent_at + heard_at) // 2,
        error_ms=(elapsed_ms + 1) // 2 + 1,  # and one for the milliseconds that both clocks cut off
        learnt_at=heard_at,
    )
    if held is None:
        return new
    held_error = held.error_at(heard_at)
    apart = abs(new.offset_ms - held.offset_ms) > new.error_ms + held_error
    return new if apart or new.error_ms <= held_error else held
