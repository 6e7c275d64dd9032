"""What the service answers to a tap (docs/terminal-protocol.md). A repeated tap gets the same answer again."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

Result: TypeAlias = Literal["ACCEPTED", "EXISTS", "QUARANTINED"]
Admission: TypeAlias = Literal["admitted", "refused", "none"]


class AnswerLine(msgspec.Struct, frozen=True):
    """One line of the leg so far."""

    kind: str
    rule_id: str
    amount: int


class CapState(msgspec.Struct, frozen=True):
    """How far a cap that counts this leg is used, in minor units."""

    rule_id: str
    spent: int
    amount: int


class TapAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to one tap. `fare` is what the leg costs so far, a hold included; None: not priced, which is not zero."""

    sequence: int
    result: Result
    reason: str | None = None
    decision: Admission = "none"
    fare: int | None = None
    lines: tuple[AnswerLine, ...] = ()
    caps: tuple[CapState, ...] = ()
    balance: int | None = None
    """The stored value, or minus what a post-paid account owes."""
    post_paid_total: int | None = None
    """What a post-paid account owes."""
    exit_fare: int | None = None
    """While the ride is open: what it costs at most when the rider leaves, before caps; what was held is part of it."""
    provisional: bool = False


class Wanted(msgspec.Struct, frozen=True):
    """Taps that the server misses of an earlier epoch of the device: it sends them again if it still has them."""

    epoch: str
    first: int


class BatchAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to one message, tap by tap."""

    device_id: str
    epoch: str
    acknowledged_through: int
    server_time: int
    deny_list_version: int
    rules_version: int = 0
    """Serial of the newest rules for terminals; 0: there are none."""
    wanted: tuple[Wanted, ...] = ()
    """In the answer to the first message of an epoch, and to one without taps."""
    answers: tuple[TapAnswer, ...]


encode = msgspec.json.Encoder().encode
decode_stored = msgspec.json.Decoder(tuple[TapAnswer, ...]).decode
