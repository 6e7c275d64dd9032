"""One terminal: a token is presented, the rider gets an answer, and what was seen is signed, stored and sent.

Decides whether the server is asked or the terminal decides alone, what goes into a tap, and what is sent next: live
taps before a backlog. Leaves fares to the server: a terminal knows none. By what it decides alone is in published.py (deny
list, rules) and memory.py (who was here). It reads no clock and sends nothing by itself;
time is the device's, in milliseconds UTC, and comes as an argument. docs/terminal-protocol.md is the specification."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fare_engine.errors import MottheError
from fare_engine.ids import DeviceId, FactId, RouteId, StopId, tap_id
from fare_engine.publications import Kind, Publisher, TerminalRules
from fare_engine.tap_format import Decision, Outcome, TapEvent, TapKind, TapPlace, encode_tap
from validators.clock import ClockEstimate, learn
from validators.deny_list import EMPTY, DenyList, Limits
from validators.memory import LastKnown, Memory, Seen
from validators.outbox import BATCH_TAPS, Damage, EpochState, Outbox, OutboxError, RandomBytes
from validators.published import Published, RefusedPublication, Wanted
from validators.rules import RuleBook
from validators.uplink import Answer, Backoff, Problem, Reply, TapAnswer, Unreachable, Uplink, WantedTaps

ENTRY_ONLY: Final = frozenset({TapKind.BOARD, TapKind.INSPECTION})
ENTRY_AND_EXIT: Final = frozenset({TapKind.ENTRY, TapKind.EXIT, TapKind.INSPECTION})

STOP_CAUSES: Final = frozenset({"unknown_device", "revoked_device", "bad_signature", "device_mismatch", "unsupported_algorithm"})
"""The device itself is not taken: only the operator can help."""
NEW_EPOCH_CAUSES: Final = frozenset({"not_cbor", "bad_structure", "bad_header", "broken_chain", "forked_chain"})
"""The epoch cannot go on: what follows goes into a new one, and the operator looks at the old one."""

STAFF_MEDIUM: Final = "staff"
"""Tokens of staff open the gate and ride on no account: their taps are inspections."""
ACCOUNT_REASONS: Final = frozenset({"blocked", "insufficient_balance"})
"""Refusals by the server that would be the same at any terminal a moment later."""
REVOKED: Final = "revoked_device"
"""With this reason the server sets aside what a revoked device sends: evidence, and no ride."""
BEGINNINGS: Final = frozenset({TapKind.ENTRY, TapKind.BOARD})


class TerminalError(MottheError):
    """A terminal was asked for what it is not set up to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TerminalConfig:
    """What a terminal is and where it stands."""

    device_id: DeviceId
    key: Ed25519PrivateKey
    kinds: frozenset[TapKind] = ENTRY_AND_EXIT | ENTRY_ONLY
    """What its network has: boardings only, or entries and exits."""
    stop_id: StopId | None = None
    route_id: RouteId | None = None
    vehicle_id: str | None = None
    token_key_version: int = 1
    """Version of the domain key that makes the tokens presented."""
    tariff_version: str | None = None
    """Written into taps as long as no rules say another."""
    online_ms: int = 300
    """How long the server may take to decide before the terminal does."""
    double_tap_ms: int = 3000
    """As in TerminalRules, as long as no rules say another."""
    most_live_waiting: int = 20
    """More taps than this that wait in the live epoch are set aside as a backlog: a tap online must be quick."""
    batch_taps: int = BATCH_TAPS
    most_epoch_taps: int = 2_000
    """A new epoch begins after so many taps, so that damage on the disk spoils no more than these."""
    deny_limits: Limits = field(default_factory=Limits)
    """How much of the deny list may change without people."""

    @property
    def built_in_rules(self) -> TerminalRules:
        """How the terminal decides before it was given rules."""
        return TerminalRules(tariff_version=self.tariff_version, double_tap_ms=self.double_tap_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Presented:
    """A token held to the terminal."""

    kind: TapKind
    token: bytes
    """Terminal token, 16 bytes (tap_format.terminal_token)."""
    medium: str
    section: str | None = None
    persons: int = 1
    joining: bool = False
    """More persons on a token that was presented before: a tap of its own, however soon after."""
    former_token: bytes | None = None
    """The medium's token under the domain key before; only while a change of that key overlaps."""


class Decided(Enum):
    """Who decided."""

    ONLINE = "online"
    ALONE = "alone"
    BEFORE = "before"
    """The token was here a moment ago: no new tap, and the answer is the earlier one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TapResult:
    """What the rider is told."""

    tap_id: FactId
    place: TapPlace
    admitted: bool
    decided: Decided
    reason: str | None = None
    """Why not admitted."""
    answer: TapAnswer | None = None
    """The server's, with fare, caps and balance; None: the fare follows."""
    seen: Seen | None = None
    """For an inspection: the last ride that began or ended here with this token, as far as this terminal remembers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """A message to send, and what it carries."""

    message: bytes
    epoch: bytes
    first_sequence: int
    count: int
    at: int
    """When it was made, by the device's clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """A tap that is stored and waits for the server's decision: send `sending.message`, then call `conclude`."""

    tap: TapEvent
    sending: Sending
    timeout_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FlushReport:
    """How far a flush came."""

    batches: int
    acknowledged: int
    """Taps that the server acknowledged now."""
    pending: int
    """Taps that still wait."""
    stopped: str | None
    """Cause for which the server takes nothing from this device; the operator must act."""
    stuck: Mapping[str, str] = field(default_factory=dict)
    """Epochs (hexadecimal) that the server does not take, and the cause."""
    damage: tuple[Damage, ...] = ()
    """Taps that were stored and cannot be sent, because the disk did not keep them."""
    refused_publications: tuple[RefusedPublication, ...] = ()
    """What the city published and this terminal keeps out."""
    revoked: bool = False
    """The server takes what this device sends as evidence only: nobody is let in here any more."""


class Terminal:
    """A terminal that has just booted: it begins a new epoch in its outbox. Not for several threads."""

    def __init__(
        self,
        config: TerminalConfig,
        outbox: Outbox,
        uplink: Uplink,
        *,
        random_bytes: RandomBytes,
        backoff: Backoff,
        deny_list: DenyList = EMPTY,
        rules: RuleBook | None = None,
        clock: ClockEstimate | None = None,
        publishers: Mapping[bytes, Publisher] | None = None,
    ) -> None:
        self.config = config
        self.outbox = outbox
        self.published = Published(deny_list, rules or RuleBook(config.built_in_rules), publishers or {}, config.deny_limits)
        self.memory = Memory()
        self.clock = clock
        self.stopped: str | None = None
        self.revoked = False
        self.stuck: dict[bytes, str] = {}
        self._uplink = uplink
        self._random_bytes = random_bytes
        self._backoff = backoff
        self._failures = 0
        self._silence: tuple[int, int] | None = None
        self._epochs_given_up = 0
        self._resume: dict[bytes, int] = {}
        self._to_announce: list[bytes] = []
        self._heard_of: set[bytes] = set()
        self._batch_taps = config.batch_taps
        self._last: dict[bytes, tuple[int, TapResult]] = {}
        self._at_gate: tuple[bytes, Seen] | None = None
        outbox.begin_epoch(random_bytes)

    # ---- what happens at the terminal

    def tap(self, presented: Presented, at: int) -> TapResult:
        """Store what was presented, ask the server or decide alone, and say what the rider is told."""
        asked = self.present(presented, at)
        if isinstance(asked, TapResult):
            return asked
        return self.conclude(asked, self._uplink.send(asked.sending.message, asked.timeout_s))

    def present(self, presented: Presented, at: int) -> TapResult | Asking:
        """The first half of `tap`, for callers that send by themselves: the result, or a message to send first.

        The tap is stored in either case. Raises TerminalError for a kind that is not done here, OutboxError where it
        could not be stored: then nobody is let in."""
        presented = _as_staff(presented)
        rules = self.rules_at(at)
        self._check_presented(presented, rules)
        earlier = self._find_earlier(presented, at, rules)
        if earlier is not None:
            return replace(earlier, decided=Decided.BEFORE)
        if self._is_passed_back(presented, at, rules):
            return self._decide(presented, at, Decision.REFUSED_ALONE, "pass_back")
        self._resolve_clash(presented, at, rules)
        return self._ask(presented, at) if self.is_online(at) else self._decide_offline(presented, at)

    def _check_presented(self, presented: Presented, rules: TerminalRules) -> None:
        if presented.kind not in self.config.kinds:
            raise TerminalError(f"{self.config.device_id} takes no {presented.kind.name}")
        if presented.persons > rules.most_persons:
            raise TerminalError(f"{presented.persons} persons on one tap, at most {rules.most_persons}")

    def conclude(self, asked: Asking, heard: Reply | Unreachable) -> TapResult:
        """The second half of `tap`: what the rider is told after the server spoke, or did not in time."""
        answer = self.hear(asked.sending, heard)
        mine = answer.find(asked.tap.sequence) if answer else None
        in_time = heard.elapsed_ms <= self.config.online_ms
        if mine is None or mine.decision == "none" or not in_time:
            result = self._decide_late(asked.tap, asked.sending.at + heard.elapsed_ms, mine)
        else:
            admitted = mine.decision == "admitted"
            result = _result(asked.tap, admitted, Decided.ONLINE, None if admitted else mine.reason, mine)
        self._learn(asked.tap, mine)
        return self._remember(asked.tap, result)

    def inspect(self, token: bytes) -> Seen | None:
        """The last ride that began or ended here with this token, admitted or not, as far as this terminal remembers: not
        over a boot, and for some thousand tokens. It says nothing of taps elsewhere."""
        return self.memory.latest.get(token)

    def passed(self, place: TapPlace) -> None:
        """The rider of the tap at `place` went through the gate: another token is another rider from now on."""
        if self._at_gate and self._at_gate[1].place == place:
            self._at_gate = None

    def gate_not_opened(self, place: TapPlace, at: int) -> TapPlace:
        """Record that the gate stayed shut after the tap at `place`; gives the record's own place."""
        return self._record_outcome(place, Outcome.GATE_NOT_OPENED, at)

    def cancel(self, place: TapPlace, at: int) -> TapPlace:
        """Record that the tap at `place` was cancelled by staff; gives the record's own place."""
        return self._record_outcome(place, Outcome.CANCELLED, at)

    def move(self, *, stop_id: StopId | None, route_id: RouteId | None) -> None:
        """The vehicle is now at this stop, on this route."""
        self.config = replace(self.config, stop_id=stop_id, route_id=route_id)

    @property
    def deny_list(self) -> DenyList:
        """The deny list held."""
        return self.published.deny_list

    @property
    def newest_deny_list(self) -> int:
        """Version that the server last spoke of: when it is above the held one, it is time to fetch it."""
        return self.published.newest[Kind.DENY_LIST]

    def replace_deny_list(self, new: DenyList) -> None:
        """Hold a newer deny list that nobody signed; raises DenyListError for one that is not newer or changes too much."""
        self.published.replace_deny_list(new)

    def wanted_publications(self, at: int) -> tuple[Wanted, ...]:
        """What to fetch from the server now: it has spoken of something newer than what is held."""
        return self.published.wanted(at)

    def take_publication(self, kind: Kind, data: bytes, at: int) -> RefusedPublication | None:
        """Take what was fetched; gives why not, and then it is also in the next FlushReport."""
        return self.published.take(kind, data, at, self.corrected(at))

    def corrected(self, at: int) -> int:
        """The device's time `at` as the server would say it, as far as is known. Milliseconds UTC."""
        return at + self._offset()

    def rules_at(self, at: int) -> TerminalRules:
        """The rules by which the terminal decides at the device's time `at`: new ones not before their time has surely come."""
        return self.published.rules.at(self.corrected(at) - (self._error(at) or 0))

    def prune(self, at: int) -> int:
        """Drop taps acknowledged long ago, as Outbox.prune, but none while the server asks for old ones; how many."""
        return 0 if self._resume else self.outbox.prune(at)

    # ---- what goes to the server

    def is_online(self, at: int) -> bool:
        """Whether the server is worth asking: it takes this device and no pause after a failure is running."""
        if self.stopped or self.revoked or self._to_announce:
            return False
        return self._silence is None or not self._silence[0] <= at < self._silence[1]

    def flush(self, at: int, *, timeout_s: float = 10.0, most_batches: int = 1000, heartbeat: bool = False) -> FlushReport:
        """Send what waits, live epoch first, until nothing does, the server is silent or `most_batches` are sent.

        With `heartbeat` one message goes out even if nothing waits: it keeps the clock's offset fresh. Call it after
        boot, then every few seconds, and with few batches, so that riders do not wait behind it."""
        waiting = self._waiting()
        batches = 0
        while batches < most_batches:
            sending = self.next_sending(at, heartbeat=heartbeat and batches == 0)
            if sending is None:
                break
            heard = self._uplink.send(sending.message, timeout_s)
            at += heard.elapsed_ms
            self.hear(sending, heard)
            batches += 1
        pending = self._waiting()
        return FlushReport(
            batches=batches,
            acknowledged=waiting - pending,
            pending=pending,
            stopped=self.stopped,
            stuck={epoch.hex(): cause for epoch, cause in self.stuck.items()},
            damage=tuple(self.outbox.list_damage()),
            refused_publications=tuple(self.published.refused.values()),
            revoked=self.revoked,
        )

    def next_sending(self, at: int, *, heartbeat: bool = False) -> Sending | None:
        """What `flush` would send next, for callers that send by themselves and then call `hear`; None: nothing now."""
        if self.stopped or (self._silence and self._silence[0] <= at < self._silence[1]):
            return None
        if self._to_announce:
            return self._sending(self._to_announce[-1], 1, 0, at)
        live = self.outbox.live
        if live.pending == 0 and live.epoch not in self._resume and (heartbeat or live.epoch not in self._heard_of):
            return self._sending(live.epoch, live.last_sequence + 1, 0, at)
        return self._next_batch(at)

    def hear(self, sending: Sending, heard: Reply | Unreachable) -> Answer | None:
        """Take in what came back for a message; gives the answer if the server took it."""
        at = sending.at + heard.elapsed_ms
        if isinstance(heard, Unreachable):
            self._fail(sending, at, None)
            return None
        if isinstance(heard.content, Problem):
            self._heed(sending, heard.content, at, heard.retry_after_s)
            return None
        if not self._is_ours(sending, heard.content):
            self._fail(sending, at, None)
            return None
        self._accept(sending, heard.content, heard.elapsed_ms)
        return heard.content

    def _accept(self, sending: Sending, answer: Answer, elapsed_ms: int) -> None:
        """The server took the batch."""
        self._failures, self._silence = 0, None
        self._heard_of.add(sending.epoch)
        self._to_announce = [epoch for epoch in self._to_announce if epoch != sending.epoch]
        if sending.epoch == self.outbox.live.epoch:
            self._epochs_given_up = 0
        self.revoked = self.revoked or any(tap.result == "QUARANTINED" and tap.reason == REVOKED for tap in answer.answers)
        self.clock = learn(self.clock, sending.at, elapsed_ms, answer.server_time)
        self.published.heard_of(Kind.DENY_LIST, answer.deny_list_version)
        self.published.heard_of(Kind.RULES, answer.rules_version)
        through = min(answer.acknowledged_through, self._last_sequence(sending.epoch))
        self.outbox.acknowledged(sending.epoch, through, sending.at + elapsed_ms)
        self._resend_lost(sending.epoch, answer.acknowledged_through)
        for wanted in answer.wanted:
            self._resend_missing(wanted)

    def _resend_missing(self, wanted: WantedTaps) -> None:
        """The server misses taps of an earlier epoch: they are sent again if they are still kept, whole and known here. An
        epoch that never had any is announced, for its header says what was before it."""
        try:
            epoch = bytes.fromhex(wanted.epoch)
            kept = self.outbox.list_taps(epoch, max(1, wanted.first), 1)
        except (ValueError, OutboxError):
            return
        if epoch in self.stuck:
            return
        if kept:
            self._resume.setdefault(epoch, max(1, wanted.first))
        elif self._last_sequence(epoch) == 0 and epoch not in (*self._to_announce, self.outbox.live.epoch):
            self._to_announce.append(epoch)

    def _resend_lost(self, epoch: bytes, acknowledged_through: int) -> None:
        """A server that was restored from a backup has less than it once acknowledged: the rest is sent again."""
        self._resume.pop(epoch, None)
        if acknowledged_through < self.outbox.get_epoch(epoch).acknowledged_through:
            self._want_from(epoch, acknowledged_through + 1)

    def _is_ours(self, sending: Sending, answer: Answer) -> bool:
        """Whether an answer speaks of what was sent: it acknowledges that, and nothing that this device never wrote. Of an
        epoch before this boot's the server may have more: then the disk was set back, and what is here is there as well."""
        of_this = answer.device_id == self.config.device_id and answer.epoch == sending.epoch.hex()
        last_sent = sending.first_sequence + sending.count - 1
        set_back = sending.epoch != self.outbox.live.epoch
        known = set_back or answer.acknowledged_through <= self._last_sequence(sending.epoch)
        return of_this and known and last_sent <= answer.acknowledged_through

    def _last_sequence(self, epoch: bytes) -> int:
        return self.outbox.get_epoch(epoch).last_sequence

    def _heed(self, sending: Sending, problem: Problem, at: int, retry_after_s: float | None) -> None:
        """Do what the protocol says for a batch that the server did not take."""
        if problem.cause in STOP_CAUSES:
            self.stopped = problem.cause
        elif problem.cause in NEW_EPOCH_CAUSES:
            self._give_up(sending.epoch, problem.cause)
        elif problem.cause == "gap":
            self._resend_from(sending, problem.resume_from)
        elif problem.cause == "unknown_predecessor":
            self._announce_before(sending.epoch)
        elif problem.cause == "too_large" and sending.count > 1:
            self._batch_taps = max(1, sending.count // 2)
        else:
            self._fail(sending, at, retry_after_s)

    def _fail(self, sending: Sending, at: int, retry_after_s: float | None) -> None:
        """Leave the server alone for a while after `at`; taps are decided here meanwhile."""
        self._failures += 1
        self._silence = (sending.at, at + int(self._backoff.delay_s(self._failures, retry_after_s) * 1000))

    def _give_up(self, epoch: bytes, cause: str) -> None:
        """Send nothing more of an epoch. Taps go on in a new one; if that fares no better, the device stops."""
        self.stuck[epoch] = cause
        self._resume.pop(epoch, None)
        self._to_announce = [waiting for waiting in self._to_announce if waiting != epoch]
        if epoch != self.outbox.live.epoch:
            return
        self._epochs_given_up += 1
        if self._epochs_given_up > 1:
            self.stopped = cause
        else:
            self.outbox.begin_epoch(self._random_bytes)

    def _resend_from(self, sending: Sending, sequence: int | None) -> None:
        """The server wants an epoch from this sequence on, which comes before what it was sent."""
        if sequence is None or not 1 <= sequence < sending.first_sequence:
            self._give_up(sending.epoch, "gap")
        else:
            self._want_from(sending.epoch, sequence)

    def _want_from(self, epoch: bytes, sequence: int) -> None:
        """Send an epoch again from this sequence on, if its taps are still kept."""
        try:
            kept = self.outbox.list_taps(epoch, sequence, 1)
        except OutboxError:
            kept = []
        if kept:
            self._resume[epoch] = sequence
        else:
            self._give_up(epoch, "gap")

    def _announce_before(self, epoch: bytes) -> None:
        """The server has never heard of the epoch before this one: it is announced first, by a batch without taps."""
        before = self.outbox.find_predecessor(epoch)
        if before is None or before.epoch in self._to_announce or before.epoch in self.stuck:
            self._give_up(epoch, "unknown_predecessor")
        else:
            self._to_announce.append(before.epoch)

    def _next_batch(self, at: int) -> Sending | None:
        """Taps to send: those that wait and those that the server asked for again, of the live epoch first."""
        wanted = [state.epoch for state in self.outbox.list_pending()]
        live = self.outbox.live.epoch
        for epoch in [*([live] if live in self._resume else []), *wanted, *self._resume]:
            if epoch not in self.stuck:
                sending = self._sending(epoch, self._first_wanted(epoch), self._batch_taps, at)
                if sending.count:
                    return sending
                self._resume.pop(epoch, None)  # nothing of it is whole from there on
        return None

    def _sending(self, epoch: bytes, first_sequence: int, most: int, at: int) -> Sending:
        message = self.outbox.message(self.config.key, epoch, first_sequence, at, most)
        count = max(0, min(most, self.outbox.get_epoch(epoch).sendable_through - first_sequence + 1))
        return Sending(message=message, epoch=epoch, first_sequence=first_sequence, count=count, at=at)

    def _first_wanted(self, epoch: bytes) -> int:
        """Sequence from which an epoch goes on at the server, as far as is known here."""
        return self._resume.get(epoch, self.outbox.get_epoch(epoch).acknowledged_through + 1)

    def _waiting(self) -> int:
        return sum(state.pending for state in self.outbox.list_pending())

    # ---- one tap

    def _ask(self, presented: Presented, at: int) -> Asking:
        """Store the tap as one that the server decides, and make the message that asks."""
        live = self.outbox.live
        if live.last_sequence + 1 - self._first_wanted(live.epoch) > self.config.most_live_waiting:
            self.outbox.begin_epoch(self._random_bytes)
        tap, sending = self._store_and_pack(presented, at)
        if sending.count < tap.sequence - sending.first_sequence + 1:
            # What waits before it turned out to be damaged: nothing after that can be sent, so the tap gets another place.
            tap, sending = self._store_and_pack(presented, at)
        return Asking(tap=tap, sending=sending, timeout_s=self.config.online_ms / 1000)

    def _store_and_pack(self, presented: Presented, at: int) -> tuple[TapEvent, Sending]:
        tap = self._store(self._presentation(presented, at, Decision.ASKED_ONLINE, None))
        first = self._first_wanted(tap.epoch)
        return tap, self._sending(tap.epoch, first, tap.sequence - first + 1, at)

    def _live(self) -> EpochState:
        """The epoch for the next tap: a new one if the last is damaged or long."""
        live = self.outbox.live
        if live.damaged_from is not None or live.last_sequence >= self.config.most_epoch_taps:
            return self.outbox.begin_epoch(self._random_bytes)
        return live

    def _decide_offline(self, presented: Presented, at: int) -> TapResult:
        """Decide alone at once; the decision stands in the tap itself."""
        return self._decide(presented, at, *self._decision_alone(presented, at))

    def _decide(self, presented: Presented, at: int, decision: Decision, reason: str | None) -> TapResult:
        """Store a tap with the terminal's own decision."""
        tap = self._store(self._presentation(presented, at, decision, reason))
        return self._remember(tap, _result(tap, decision is Decision.ADMITTED_ALONE, Decided.ALONE, reason, None))

    def _decide_late(self, tap: TapEvent, at: int, answer: TapAnswer | None) -> TapResult:
        """Decide alone after the server was asked; the decision follows in the chain as an OUTCOME record."""
        decision, reason = self._decision_alone(_presented(tap), at)
        self._store_outcome(TapPlace(tap.epoch, tap.sequence), Outcome.TIMED_OUT, at, decision, reason)
        return _result(tap, decision is Decision.ADMITTED_ALONE, Decided.ALONE, reason, answer)

    def _decision_alone(self, presented: Presented, at: int) -> tuple[Decision, str | None]:
        """Whether to let a token in without the server, and why not."""
        reason = self._why_not(presented, at)
        return (Decision.ADMITTED_ALONE, None) if reason is None else (Decision.REFUSED_ALONE, reason)

    def _why_not(self, presented: Presented, at: int) -> str | None:
        """Why a token is not let in. Only who begins a ride is asked more than whether he is denied: nobody is kept inside
        for want of a list."""
        if self.revoked or self.stopped == REVOKED:
            return REVOKED
        if presented.token in self.deny_list or (presented.former_token and presented.former_token in self.deny_list):
            return "deny_list"
        if presented.kind not in BEGINNINGS:
            return None
        rules = self.rules_at(at)
        return self._last_known_refusal(presented.token, at, rules) or self._medium_refusal(presented.medium, at, rules)

    def _last_known_refusal(self, token: bytes, at: int, rules: TerminalRules) -> str | None:
        """What the server said of the token a moment ago still holds."""
        known = self.memory.known.get(token)
        if known is None or abs(at - known.at) >= rules.last_known_ms:
            return None
        if known.refused:
            return known.refused
        below = rules.offline_floor is not None and known.balance is not None and known.balance < rules.offline_floor
        return "low_balance" if below else None

    def _medium_refusal(self, medium: str, at: int, rules: TerminalRules) -> str | None:
        """Media that may ride once and never pay are not let in without a list that is fresh enough, or at all."""
        if not _names(rules.media_offline, medium):
            return "medium_offline"
        stale = rules.stale_list_ms is not None and self.deny_list.age_ms(self.corrected(at)) > rules.stale_list_ms
        return "stale_list" if stale and not _names(rules.media_when_stale, medium) else None

    def _is_passed_back(self, presented: Presented, at: int, rules: TerminalRules) -> bool:
        """Whether the token was let through here the same way a moment ago: handed back to somebody behind."""
        seen = self.memory.admitted.get(presented.token)
        if seen is None or presented.joining or presented.kind is not seen.kind:
            return False
        return abs(at - seen.at) < rules.pass_back_ms

    def _resolve_clash(self, presented: Presented, at: int, rules: TerminalRules) -> None:
        """Two media were held up at once: the first, which has not passed the gate, is cancelled for the second."""
        if self._at_gate is None or presented.kind is TapKind.INSPECTION:
            return
        token, seen = self._at_gate
        if token != presented.token and abs(at - seen.at) < rules.card_clash_ms:
            self._record_outcome(seen.place, Outcome.CANCELLED, at)

    def _learn(self, tap: TapEvent, answer: TapAnswer | None) -> None:
        """Keep what the server said of a token, for when it cannot be asked."""
        if answer is None or tap.token is None or answer.decision == "none":
            return
        lasting = answer.decision == "refused" and answer.reason in ACCOUNT_REASONS
        refused = answer.reason if lasting else None
        self.memory.heard(tap.token, LastKnown(at=tap.device_time, refused=refused, balance=answer.balance))

    def _record_outcome(self, place: TapPlace, outcome: Outcome, at: int) -> TapPlace:
        """Store how the tap at `place` ended; the token may be presented again at once."""
        if not 1 <= place.sequence <= self._last_sequence(place.epoch):
            raise TerminalError(f"no tap {place.sequence} in epoch {place.epoch.hex()}")
        record = self._store_outcome(place, outcome, at, None, None)
        self._last = {token: entry for token, entry in self._last.items() if entry[1].place != place}
        self.memory.forget(place)
        self.passed(place)
        return TapPlace(record.epoch, record.sequence)

    def _store_outcome(
        self, place: TapPlace, outcome: Outcome, at: int, decision: Decision | None, reason: str | None
    ) -> TapEvent:
        live = self._live()
        return self._store(
            TapEvent(
                device_id=self.config.device_id,
                epoch=live.epoch,
                sequence=live.last_sequence + 1,
                kind=TapKind.OUTCOME,
                device_time=at,
                clock_offset_ms=self._offset(),
                clock_error_ms=self._error(at),
                decision=decision,
                reason=reason,
                deny_list_version=self.deny_list.version,
                spoken_of=place,
                outcome=outcome,
            )
        )

    def _presentation(self, presented: Presented, at: int, decision: Decision, reason: str | None) -> TapEvent:
        """The tap, with the place that it will have."""
        live = self._live()
        return TapEvent(
            device_id=self.config.device_id,
            epoch=live.epoch,
            sequence=live.last_sequence + 1,
            kind=presented.kind,
            token=presented.token,
            token_key_version=self.config.token_key_version,
            former_token=presented.former_token,
            medium=presented.medium,
            stop_id=self.config.stop_id,
            route_id=self.config.route_id,
            vehicle_id=self.config.vehicle_id,
            section=presented.section,
            persons=presented.persons,
            device_time=at,
            clock_offset_ms=self._offset(),
            clock_error_ms=self._error(at),
            decision=decision,
            reason=reason,
            deny_list_version=self.deny_list.version,
            tariff_version=self.rules_at(at).tariff_version or self.config.tariff_version,
        )

    def _store(self, tap: TapEvent) -> TapEvent:
        """Put a tap at its place in the chain, on the disk."""
        self.outbox.append(encode_tap(tap))
        return tap

    def _offset(self) -> int:
        return self.clock.offset_ms if self.clock else 0

    def _error(self, at: int) -> int | None:
        return self.clock.error_at(at) if self.clock else None

    def _find_earlier(self, presented: Presented, at: int, rules: TerminalRules) -> TapResult | None:
        """The result of the same token a moment ago. An inspection is no ride and always a tap of its own, and so is who
        joins."""
        window = rules.double_tap_ms
        self._last = {token: entry for token, entry in self._last.items() if abs(at - entry[0]) < window}
        if presented.kind is TapKind.INSPECTION or presented.joining or presented.token not in self._last:
            return None
        return self._last[presented.token][1]

    def _remember(self, tap: TapEvent, result: TapResult) -> TapResult:
        assert tap.token is not None
        if tap.kind is TapKind.INSPECTION:
            return replace(result, seen=self.inspect(tap.token))
        seen = Seen(
            tap_id=result.tap_id,
            place=result.place,
            kind=tap.kind,
            at=tap.device_time,
            persons=tap.persons,
            admitted=result.admitted,
            reason=result.reason,
        )
        self._last[tap.token] = (tap.device_time, result)
        self.memory.saw(tap.token, seen)
        self._at_gate = (tap.token, seen) if result.admitted else None
        return result


def _as_staff(presented: Presented) -> Presented:
    """Staff open the gate and begin no ride, whatever the gate is set to."""
    return replace(presented, kind=TapKind.INSPECTION) if presented.medium == STAFF_MEDIUM else presented


def _presented(tap: TapEvent) -> Presented:
    """What was presented, from the tap that tells of it."""
    assert tap.token is not None
    assert tap.medium is not None
    return Presented(kind=tap.kind, token=tap.token, medium=tap.medium, persons=tap.persons, former_token=tap.former_token)


def _names(media: tuple[str, ...] | None, medium: str) -> bool:
    """Whether a rule names a medium: by its name, or by the part of it before a colon. None names all."""
    return media is None or medium in media or medium.partition(":")[0] in media


def _result(tap: TapEvent, admitted: bool, decided: Decided, reason: str | None, answer: TapAnswer | None) -> TapResult:
    return TapResult(
        tap_id=tap_id(tap.device_id, tap.epoch.hex(), tap.sequence),
        place=TapPlace(tap.epoch, tap.sequence),
        admitted=admitted,
        decided=decided,
        reason=reason,
        answer=answer,
    )
