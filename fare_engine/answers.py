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
    provisional: bool = False


class BatchAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to one message, tap by tap."""

    device_id: str
    epoch: str
    acknowledged_through: int
    server_time: int
    deny_list_version: int
    answers: tuple[TapAnswer, ...]


encode = msgspec.json.Encoder().encode
decode_stored = msgspec.json.Decoder(tuple[TapAnswer, ...]).decode
