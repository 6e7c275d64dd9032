"""A terminal against a small server of our own that opens what it is sent, as the real one does."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from fare_engine.errors import EnvelopeError
from fare_engine.ids import DeviceId, RouteId, StopId
from fare_engine.publications import Kind, TerminalRules, approve, make_delta, make_rules, make_snapshot, sign
from fare_engine.tap_format import (
    Decision,
    Outcome,
    TapEvent,
    TapFormatError,
    TapKind,
    TapPlace,
    decode_tap,
    open_message,
    terminal_token,
)
from tests.unit.test_publications import PUBLISHERS, person, signers
from tests.vectors.make_vectors import KEY
from validators.clock import ClockEstimate, learn
from validators.commands import app, describe, read_line
from validators.deny_list import deny_list_of
from validators.memory import MOST_TOKENS, LastKnown, Memory
from validators.outbox import KEEP_MS, Outbox
from validators.rules import RuleBook
from validators.terminal import (
    ENTRY_AND_EXIT,
    Asking,
    Decided,
    Presented,
    TapResult,
    Terminal,
    TerminalConfig,
    TerminalError,
)
from validators.uplink import Answer, Backoff, Problem, Reply, TapAnswer, Unreachable, WantedTaps

DEVICE = DeviceId("gate-1")
NOON = 1_767_243_600_000


@dataclass
class Stream:
    """What the server holds of an epoch."""

    taps: list[bytes] = field(default_factory=list)
    heads: list[bytes] = field(default_factory=list)


@dataclass
class Server:
    """Opens messages and keeps streams. `ahead_ms` is how far its clock is ahead of the device's."""

    key: Ed25519PrivateKey = KEY
    elapsed_ms: int = 20
    ahead_ms: int = 0
    decision: str = "admitted"
    silent: bool = False
    forgets_to_answer: bool = False
    problem: Problem | None = None
    retry_after_s: float | None = None
    deny_list_version: int = 0
    rules_version: int = 0
    wanted: tuple[WantedTaps, ...] = ()
    revoked: bool = False
    reason: str = "no_money"
    balance: int | None = None
    knows_predecessors: bool = False
    streams: dict[bytes, Stream] = field(default_factory=dict)
    sent: list[tuple[bytes, int, int]] = field(default_factory=list)
    """Epoch, first sequence and count of each message that came in."""

    def send(self, message: bytes, timeout_s: float) -> Reply | Unreachable:
        if self.silent:
            return Unreachable(detail="silent", elapsed_ms=int(timeout_s * 1000))
        content = self.problem or self._receive(message)
        if self.forgets_to_answer:
            return Unreachable(detail="answer lost", elapsed_ms=int(timeout_s * 1000))
        return Reply(content=content, elapsed_ms=self.elapsed_ms, retry_after_s=self.retry_after_s)

    def _receive(self, message: bytes) -> Answer | Problem:
        try:
            batch = open_message(message, lambda _: [self.key.public_key()])
        except EnvelopeError as error:
            return Problem(status=400, cause=error.cause)
        header = batch.header
        self.sent.append((header.epoch, header.first_sequence, header.count))
        before = header.predecessor
        if self.knows_predecessors and before and before.epoch not in self.streams:
            return Problem(status=409, cause="unknown_predecessor")
        held = self.streams.get(header.epoch, Stream(heads=[batch.heads[0]]))
        if header.first_sequence > len(held.taps) + 1:
            return Problem(status=409, cause="gap", resume_from=len(held.taps) + 1)
        if held.heads[header.first_sequence - 1] != header.previous_head:
            return Problem(status=409, cause="forked_chain")
        new = batch.taps[len(held.taps) - header.first_sequence + 1 :]
        held.heads += batch.heads[len(batch.heads) - len(new) :] if new else []
        held.taps += new
        self.streams[header.epoch] = held
        first_new = len(held.taps) - len(new) + 1
        answers = tuple(
            TapAnswer(
                sequence=sequence,
                result="EXISTS" if sequence < first_new else "ACCEPTED",
                decision=self.decision,  # type: ignore[arg-type]
                reason=None if self.decision == "admitted" else self.reason,
                fare=6000,
                balance=self.balance,
            )
            if not self.revoked
            else TapAnswer(sequence=sequence, result="QUARANTINED", reason="revoked_device")
            for sequence in range(header.first_sequence, header.last_sequence + 1)
        )
        return Answer(
            device_id=header.device_id,
            epoch=header.epoch_hex,
            acknowledged_through=len(held.taps),
            server_time=header.sent_at + self.elapsed_ms // 2 + self.ahead_ms,
            deny_list_version=self.deny_list_version,
            rules_version=self.rules_version,
            wanted=self.wanted,
            answers=answers,
        )

    def events(self) -> list[TapEvent]:
        """All taps that the server holds, in the order of their streams."""
        return [
            decode_tap(data, DEVICE, epoch, sequence)
            for epoch, stream in self.streams.items()
            for sequence, data in enumerate(stream.taps, start=1)
        ]


def booted(server: Server, outbox: Outbox | None = None, *, seed: int = 1, **changes: object) -> Terminal:
    held = {name: changes.pop(name) for name in ("rules", "publishers", "deny_list") if name in changes}
    config = TerminalConfig(device_id=DEVICE, key=KEY, stop_id=StopId("ben-thanh"), route_id=RouteId("metro-1"))
    return Terminal(
        replace(config, **changes),  # type: ignore[arg-type]
        outbox or Outbox(":memory:", DEVICE),
        server,
        random_bytes=random.Random(seed).randbytes,
        backoff=Backoff(lambda: 0.5, first_s=1, ceiling_s=8),
        **held,  # type: ignore[arg-type]
    )


def card(number: int, kind: TapKind = TapKind.ENTRY) -> Presented:
    return Presented(kind=kind, token=terminal_token(b"domain", str(number).encode()), medium="emv")


def everything_stored(terminal: Terminal) -> list[TapEvent]:
    return [
        decode_tap(data, DEVICE, state.epoch, sequence)
        for state in terminal.outbox.list_epochs()
        for sequence, data in enumerate(terminal.outbox.list_taps(state.epoch, 1, 10_000), start=1)
    ]


# ---- at the tap


def test_a_tap_online_is_decided_by_the_server_and_acknowledged() -> None:
    server = Server()
    terminal = booted(server)
    result = terminal.tap(card(1), NOON)
    assert (result.admitted, result.decided, result.reason) == (True, Decided.ONLINE, None)
    assert result.answer is not None
    assert result.answer.fare == 6000
    [event] = server.events()
    assert (event.tap_id, event.decision, event.stop_id) == (result.tap_id, Decision.ASKED_ONLINE, "ben-thanh")
    assert terminal.outbox.live.pending == 0


def test_a_token_that_the_server_refuses_is_refused_with_its_reason() -> None:
    terminal = booted(Server(decision="refused"))
    result = terminal.tap(card(1), NOON)
    assert (result.admitted, result.decided, result.reason) == (False, Decided.ONLINE, "no_money")


def test_a_silent_server_is_waited_for_three_tenths_of_a_second_and_the_decision_follows_in_the_chain() -> None:
    server = Server(silent=True)
    terminal = booted(server)
    asked = terminal.present(card(1), NOON)
    assert isinstance(asked, Asking)
    assert asked.timeout_s == 0.3
    assert terminal.outbox.live.last_sequence == 1
    result = terminal.conclude(asked, server.send(asked.sending.message, asked.timeout_s))
    assert (result.admitted, result.decided, result.answer) == (True, Decided.ALONE, None)
    tap, outcome = everything_stored(terminal)
    assert tap.decision is Decision.ASKED_ONLINE
    assert (outcome.kind, outcome.outcome) == (TapKind.OUTCOME, Outcome.TIMED_OUT)
    assert outcome.spoken_of_id == tap.tap_id == result.tap_id
    assert (outcome.decision, outcome.device_time) == (Decision.ADMITTED_ALONE, NOON + 300)


def test_an_answer_that_comes_too_late_does_not_decide() -> None:
    in_time, late = Server(decision="refused", elapsed_ms=300), Server(decision="refused", elapsed_ms=301)
    assert booted(in_time).tap(card(1), NOON).decided is Decided.ONLINE
    result = booted(late).tap(card(1), NOON)
    assert (result.admitted, result.decided) == (True, Decided.ALONE)


def test_an_answer_without_a_decision_leaves_it_to_the_terminal() -> None:
    server = Server(decision="none")
    terminal = booted(server)
    assert terminal.tap(card(1), NOON).decided is Decided.ALONE
    assert [event.outcome for event in everything_stored(terminal)] == [None, Outcome.TIMED_OUT]


def test_while_the_server_is_silent_nobody_waits_for_it_again() -> None:
    server = Server(silent=True)
    terminal = booted(server)
    terminal.tap(card(1), NOON)
    assert isinstance(terminal.present(card(2), NOON + 400), TapResult)
    assert everything_stored(terminal)[-1].decision is Decision.ADMITTED_ALONE
    server.silent = False
    assert terminal.tap(card(3), NOON + 300 + 1000).decided is Decided.ONLINE
    assert [event.kind for event in server.events()] == [TapKind.ENTRY, TapKind.OUTCOME, TapKind.ENTRY, TapKind.ENTRY]


def test_waiting_grows_with_each_failure_and_a_clock_set_back_does_not_prolong_it() -> None:
    terminal = booted(Server(silent=True))
    at = NOON
    for pause in (750, 1500, 3000, 6000, 6000):
        report = terminal.flush(at, timeout_s=0)
        assert report.batches == 1
        assert not terminal.is_online(at + pause - 1)
        assert terminal.is_online(at + pause)
        at += pause
    terminal.flush(at, timeout_s=0)
    assert terminal.is_online(at - 1)


def test_after_a_success_waiting_begins_anew() -> None:
    server = Server(silent=True)
    terminal = booted(server)
    for minute in range(5):
        terminal.flush(NOON + minute * 60_000, timeout_s=0)
    server.silent = False
    terminal.flush(NOON + 600_000)
    server.silent = True
    terminal.flush(NOON + 660_000, timeout_s=0, heartbeat=True)
    assert not terminal.is_online(NOON + 660_000 + 749)
    assert terminal.is_online(NOON + 660_000 + 750)


def test_a_denied_token_is_refused_alone_and_only_that_one() -> None:
    terminal = booted(Server(silent=True))
    terminal.replace_deny_list(deny_list_of(7, NOON, [card(2).token]))
    terminal.tap(card(1), NOON)
    denied = terminal.tap(card(2), NOON + 500)
    assert (denied.admitted, denied.reason) == (False, "deny_list")
    assert terminal.tap(card(3), NOON + 600).admitted
    stored = [event for event in everything_stored(terminal) if event.kind is TapKind.ENTRY]
    assert [(event.decision, event.reason) for event in stored] == [
        (Decision.ASKED_ONLINE, None),
        (Decision.REFUSED_ALONE, "deny_list"),
        (Decision.ADMITTED_ALONE, None),
    ]
    assert {event.deny_list_version for event in stored} == {7}


def test_a_denied_token_that_the_server_did_not_answer_for_is_refused_in_the_outcome() -> None:
    terminal = booted(Server(silent=True))
    terminal.replace_deny_list(deny_list_of(7, NOON, [card(2).token]))
    assert not terminal.tap(card(2), NOON).admitted
    assert everything_stored(terminal)[-1].reason == "deny_list"


def test_the_same_token_a_moment_later_is_the_same_tap() -> None:
    server = Server()
    terminal = booted(server)
    first = terminal.tap(card(1), NOON)
    again = terminal.tap(card(1), NOON + 2999)
    assert (again.decided, again.tap_id, again.answer) == (Decided.BEFORE, first.tap_id, first.answer)
    assert terminal.tap(card(2), NOON + 2999).decided is Decided.ONLINE
    assert terminal.tap(card(1), NOON + 3000).tap_id != first.tap_id
    assert len(server.events()) == 3


def test_after_a_gate_that_did_not_open_the_token_may_be_presented_at_once() -> None:
    server = Server()
    terminal = booted(server)
    first = terminal.tap(card(1), NOON)
    terminal.gate_not_opened(first.place, NOON + 900)
    second = terminal.tap(card(1), NOON + 1000)
    assert second.decided is Decided.ONLINE
    tap, outcome, again = server.events()
    assert (outcome.outcome, outcome.spoken_of_id, outcome.decision) == (Outcome.GATE_NOT_OPENED, tap.tap_id, None)
    assert again.tap_id == second.tap_id


def test_staff_can_cancel_a_tap_but_not_one_that_never_was() -> None:
    server = Server()
    terminal = booted(server)
    first = terminal.tap(card(1), NOON)
    place = terminal.cancel(first.place, NOON + 5000)
    assert place.sequence == 2
    terminal.flush(NOON + 6000)
    assert server.events()[1].outcome is Outcome.CANCELLED
    with pytest.raises(TerminalError, match="no tap 9"):
        terminal.cancel(TapPlace(first.place.epoch, 9), NOON)


def test_a_gate_takes_no_boarding() -> None:
    terminal = booted(Server(), kinds=ENTRY_AND_EXIT)
    with pytest.raises(TerminalError, match="BOARD"):
        terminal.tap(card(1, TapKind.BOARD), NOON)
    assert terminal.outbox.live.last_sequence == 0


def test_an_inspection_right_after_the_tap_is_a_tap_of_its_own() -> None:
    server = Server()
    terminal = booted(server)
    terminal.tap(card(1, TapKind.BOARD), NOON)
    terminal.tap(card(1, TapKind.INSPECTION), NOON + 100)
    assert [event.kind for event in server.events()] == [TapKind.BOARD, TapKind.INSPECTION]


def test_a_bus_says_where_it_is() -> None:
    server = Server()
    terminal = booted(server, vehicle_id="51B-123.45")
    terminal.move(stop_id=None, route_id=RouteId("bus-19"))
    terminal.tap(replace(card(1, TapKind.BOARD), persons=2, section="Chợ Lớn"), NOON)
    [event] = server.events()
    assert (event.stop_id, event.route_id, event.vehicle_id) == (None, "bus-19", "51B-123.45")
    assert (event.persons, event.section) == (2, "Chợ Lớn")


def test_a_tap_that_cannot_be_written_is_not_stored() -> None:
    terminal = booted(Server())
    with pytest.raises(TapFormatError, match="medium"):
        terminal.tap(replace(card(1), medium="x" * 100), NOON)
    assert terminal.outbox.live.last_sequence == 0


# ---- rules: pass-back, groups, media, what was last known


PASS_BACK = RuleBook(TerminalRules(pass_back_ms=600_000))


def kinds_and_reasons(terminal: Terminal) -> list[tuple[TapKind, str | None]]:
    return [(event.kind, event.reason) for event in everything_stored(terminal)]


def test_a_token_handed_back_to_the_next_in_line_is_refused_alone_and_the_tap_is_stored() -> None:
    server = Server()
    terminal = booted(server, rules=PASS_BACK)
    first = terminal.tap(card(1), NOON)
    assert terminal.tap(card(1), NOON + 2999).decided is Decided.BEFORE
    again = terminal.tap(card(1), NOON + 3000)
    assert (again.admitted, again.decided, again.reason) == (False, Decided.ALONE, "pass_back")
    assert again.tap_id != first.tap_id
    assert terminal.tap(card(1), NOON + 4000).tap_id == again.tap_id, "which is a double tap of the refusal"
    assert terminal.tap(card(2), NOON + 5000).admitted
    assert terminal.tap(card(1), NOON + 600_000).admitted, "counted from the tap that was admitted"
    assert len([reason for _, reason in kinds_and_reasons(terminal) if reason == "pass_back"]) == 1


def test_pass_back_is_about_one_direction_and_about_rides_that_began() -> None:
    terminal = booted(Server(), rules=PASS_BACK)
    terminal.tap(card(1), NOON)
    assert terminal.tap(card(1, TapKind.EXIT), NOON + 10_000).admitted
    assert terminal.tap(card(1), NOON + 20_000).admitted, "who has left may come in again"
    refused = Server(decision="refused")
    terminal = booted(refused, rules=PASS_BACK)
    terminal.tap(card(1), NOON)
    refused.decision = "admitted"
    assert terminal.tap(card(1), NOON + 10_000).admitted, "who was not let in may try again"
    shut = terminal.tap(card(2), NOON + 20_000)
    terminal.gate_not_opened(shut.place, NOON + 21_000)
    assert terminal.tap(card(2), NOON + 30_000).admitted


def test_a_group_is_one_tap_and_who_joins_it_is_a_further_one() -> None:
    server = Server()
    terminal = booted(server, rules=RuleBook(TerminalRules(pass_back_ms=600_000, most_persons=4)))
    first = terminal.tap(replace(card(1), persons=3), NOON)
    joined = terminal.tap(replace(card(1), persons=2, joining=True), NOON + 1000)
    assert joined.tap_id != first.tap_id
    assert [event.persons for event in server.events()] == [3, 2]
    with pytest.raises(TerminalError, match="5 persons on one tap, at most 4"):
        terminal.tap(replace(card(2), persons=5), NOON)
    assert len(server.events()) == 2


def test_who_was_refused_online_a_moment_ago_is_not_admitted_when_the_server_is_gone() -> None:
    server = Server(decision="refused", reason="insufficient_balance")
    terminal = booted(server)
    terminal.tap(card(1), NOON)
    server.silent = True
    late = terminal.tap(card(1), NOON + 60_000)
    assert (late.admitted, late.reason) == (False, "insufficient_balance")
    assert terminal.tap(card(2), NOON + 60_000).admitted
    assert terminal.tap(card(1, TapKind.EXIT), NOON + 64_000).admitted, "nobody is kept inside"
    assert terminal.tap(card(1), NOON + 300_000).admitted


def test_who_was_admitted_since_is_known_as_that() -> None:
    server = Server(decision="refused", reason="insufficient_balance")
    terminal = booted(server)
    terminal.tap(card(1), NOON)
    server.decision = "admitted"
    terminal.tap(card(1), NOON + 10_000)
    server.silent = True
    assert terminal.tap(card(1), NOON + 20_000).admitted


def test_a_balance_below_the_floor_does_not_ride_offline() -> None:
    server = Server(balance=4999)
    terminal = booted(server, rules=RuleBook(TerminalRules(offline_floor=5000)))
    terminal.tap(card(1), NOON)
    server.balance = 5000
    terminal.tap(card(2), NOON)
    server.silent = True
    assert terminal.tap(card(1), NOON + 10_000).reason == "low_balance"
    assert terminal.tap(card(2), NOON + 10_000).admitted


def test_only_named_media_ride_offline_and_fewer_when_the_deny_list_is_old() -> None:
    rules = TerminalRules(media_offline=("card", "emv", "wallet"), stale_list_ms=86_400_000, media_when_stale=("card",))
    terminal = booted(Server(silent=True), rules=RuleBook(rules))
    terminal.replace_deny_list(deny_list_of(1, NOON, []))

    numbers = iter(range(100))

    def reason_for(medium: str, at: int, kind: TapKind = TapKind.ENTRY) -> str | None:
        return terminal.tap(replace(card(next(numbers), kind), medium=medium), at).reason

    assert reason_for("emv", NOON) is None
    assert reason_for("wallet:momo", NOON) is None
    assert reason_for("paper", NOON) == "medium_offline"
    assert reason_for("paper", NOON, TapKind.EXIT) is None
    stale = NOON + 86_400_001
    assert reason_for("emv", stale) == "stale_list"
    assert reason_for("emv", stale, TapKind.EXIT) is None
    assert reason_for("card", stale) is None


def test_staff_open_the_gate_without_a_ride_and_are_denied_as_others_are() -> None:
    terminal = booted(Server(silent=True), rules=RuleBook(TerminalRules(media_offline=())))
    terminal.replace_deny_list(deny_list_of(1, NOON, [card(8).token]))
    assert terminal.tap(replace(card(7), medium="staff"), NOON).admitted
    assert not terminal.tap(replace(card(8), medium="staff"), NOON + 60_000).admitted
    assert {kind for kind, _ in kinds_and_reasons(terminal)} == {TapKind.INSPECTION, TapKind.OUTCOME}


def test_an_inspection_tells_whether_the_token_was_here() -> None:
    terminal = booted(Server())
    first = terminal.tap(replace(card(1, TapKind.BOARD), persons=2), NOON)
    found = terminal.tap(card(1, TapKind.INSPECTION), NOON + 600_000).seen
    assert found is not None
    assert (found.tap_id, found.kind, found.persons, found.at, found.admitted) == (first.tap_id, TapKind.BOARD, 2, NOON, True)
    assert terminal.tap(card(2, TapKind.INSPECTION), NOON + 600_000).seen is None
    terminal.cancel(first.place, NOON + 700_000)
    assert terminal.inspect(card(1).token) is None


def test_two_media_held_up_at_once_are_one_ride() -> None:
    rules = RuleBook(TerminalRules(card_clash_ms=800))
    server = Server()
    terminal = booted(server, rules=rules)
    first = terminal.tap(card(1), NOON)
    terminal.tap(card(2), NOON + 500)
    entry, outcome, _ = server.events()
    assert (outcome.outcome, outcome.spoken_of_id) == (Outcome.CANCELLED, entry.tap_id)
    assert first.tap_id == entry.tap_id
    third = terminal.tap(card(3), NOON + 2000)
    terminal.passed(third.place)
    terminal.tap(card(4), NOON + 2500)
    assert len([event for event in server.events() if event.kind is TapKind.OUTCOME]) == 1


def test_while_the_domain_key_changes_a_tap_names_both_tokens_and_either_may_be_denied() -> None:
    terminal = booted(Server(silent=True), token_key_version=2)
    old = terminal_token(b"old domain", b"1")
    terminal.replace_deny_list(deny_list_of(1, NOON, [old]))
    result = terminal.tap(replace(card(1), former_token=old), NOON)
    assert (result.admitted, result.reason) == (False, "deny_list")
    tap = everything_stored(terminal)[0]
    assert (tap.token_key_version, tap.token, tap.former_token) == (2, card(1).token, old)


def test_what_a_terminal_remembers_is_bounded() -> None:
    memory = Memory()
    for number in range(MOST_TOKENS + 10):
        memory.heard(number.to_bytes(16, "big"), LastKnown(at=NOON, refused=None, balance=number))
    assert len(memory.known) == MOST_TOKENS
    assert (0).to_bytes(16, "big") not in memory.known


# ---- publications


def test_a_terminal_fetches_what_it_heard_of_and_taps_say_what_it_held() -> None:
    server = Server(deny_list_version=3, rules_version=1)
    terminal = booted(server, publishers=PUBLISHERS)
    assert terminal.wanted_publications(NOON) == ()
    terminal.flush(NOON)
    wanted = [(one.kind, one.path) for one in terminal.wanted_publications(NOON)]
    assert wanted == [
        (Kind.DENY_LIST, "/v1/publications/deny-list?from=0"),
        (Kind.RULES, "/v1/publications/rules?from=0"),
    ]
    signed = sign(make_snapshot(3, NOON, [card(9).token]), signers("service"))
    assert terminal.take_publication(Kind.DENY_LIST, signed, NOON) is None
    rules = make_rules(1, NOON, TerminalRules(tariff_version="tet-2026"), NOON + 3_600_000)
    assert terminal.take_publication(Kind.RULES, sign(rules, signers("service", "lan", "minh")), NOON) is None
    assert terminal.wanted_publications(NOON) == ()
    for at in (NOON + 1000, NOON + 3_599_000, NOON + 3_601_000):
        terminal.tap(card(at), at)
    assert [event.tariff_version for event in server.events()] == [None, None, "tet-2026"]
    assert {event.deny_list_version for event in server.events()} == {3}


def test_rules_never_act_early_by_a_clock_that_is_ahead_and_need_no_contact_to_begin() -> None:
    server = Server(ahead_ms=-21 * 86_400_000)
    terminal = booted(server, publishers=PUBLISHERS)
    terminal.flush(NOON)
    true_noon = NOON - 21 * 86_400_000
    rules = sign(make_rules(1, true_noon, TerminalRules(pass_back_ms=1), true_noon + 60_000), signers("service", "lan", "minh"))
    assert terminal.take_publication(Kind.RULES, rules, NOON) is None
    server.silent = True
    error = terminal.clock.error_at(NOON + 60_000) if terminal.clock else 0
    assert terminal.rules_at(NOON + 60_000 - 1).pass_back_ms == 0
    assert terminal.rules_at(NOON + 60_000).pass_back_ms == 0, "it may be a few milliseconds early still"
    assert terminal.rules_at(NOON + 60_000 + error).pass_back_ms == 1


def test_a_publication_that_is_kept_out_is_told_to_the_operator_and_fetched_again_only_later() -> None:
    server = Server(deny_list_version=3)
    terminal = booted(server, publishers=PUBLISHERS)
    terminal.flush(NOON)
    tokens = [number.to_bytes(8, "big") for number in range(30_000)]
    poisoned = sign(make_snapshot(3, NOON, tokens), signers("service", "lan"))
    refused = terminal.take_publication(Kind.DENY_LIST, poisoned, NOON)
    assert refused is not None
    assert (refused.kind, refused.serial, refused.cause) == (Kind.DENY_LIST, 3, "needs_persons")
    assert terminal.deny_list.version == 0
    assert terminal.flush(NOON + 1000).refused_publications == (refused,)
    assert terminal.wanted_publications(NOON + 59_999) == ()
    assert len(terminal.wanted_publications(NOON + 60_000)) == 1
    approved = approve(poisoned, b"minh-1", person("minh"))
    assert terminal.take_publication(Kind.DENY_LIST, approved, NOON + 60_000) is None
    assert terminal.flush(NOON + 61_000).refused_publications == ()
    assert len(terminal.deny_list) == 30_000


def test_a_change_of_a_list_that_is_not_held_is_followed_by_a_snapshot() -> None:
    server = Server(deny_list_version=9)
    terminal = booted(server, publishers=PUBLISHERS, deny_list=deny_list_of(5, NOON, [card(1).token]))
    terminal.flush(NOON)
    for base, removed, cause in ((7, [], "unknown_base"), (5, [card(2).token], "wrong_base")):
        delta = sign(make_delta(9, base, NOON, [card(3).token], removed), signers("service"))
        refused = terminal.take_publication(Kind.DENY_LIST, delta, NOON)
        assert refused is not None
        assert refused.cause == cause
        assert terminal.published.path(Kind.DENY_LIST) == "/v1/publications/deny-list?from=0"
    snapshot = sign(make_snapshot(9, NOON, [card(3).token]), signers("service"))
    assert terminal.take_publication(Kind.DENY_LIST, snapshot, NOON) is None
    assert terminal.published.path(Kind.DENY_LIST) == "/v1/publications/deny-list?from=9"


def test_many_small_steps_in_a_day_are_a_large_one() -> None:
    terminal = booted(Server(), publishers=PUBLISHERS)
    causes = []
    for step in range(3):
        added = [(step * 600 + number).to_bytes(8, "big") for number in range(600)]
        delta = sign(make_delta(step + 1, step, NOON, added, []), signers("service"))
        refused = terminal.take_publication(Kind.DENY_LIST, delta, NOON + step)
        causes.append(refused.cause if refused else None)
    assert causes == [None, "needs_persons", "unknown_base"]
    second = sign(make_delta(2, 1, NOON, added, []), signers("service"))
    assert terminal.take_publication(Kind.DENY_LIST, second, NOON + 86_400_000) is None


def test_a_publication_that_is_stale_or_of_another_kind_is_not_taken() -> None:
    terminal = booted(Server(), publishers=PUBLISHERS)
    old = sign(make_snapshot(1, NOON, [], expires_at=NOON), signers("service"))
    rules = sign(make_rules(1, NOON, TerminalRules(), NOON), signers("service"))
    for data, cause in ((old, "expired"), (rules, "bad_content"), (b"a page", "bad_structure")):
        refused = terminal.take_publication(Kind.DENY_LIST, data, NOON)
        assert refused is not None
        assert refused.cause == cause


# ---- to the server


def test_the_first_flush_announces_the_epoch_and_later_ones_send_nothing() -> None:
    server = Server()
    terminal = booted(server)
    assert terminal.flush(NOON).batches == 1
    assert [(first, count) for _, first, count in server.sent] == [(1, 0)]
    assert terminal.flush(NOON + 1000).batches == 0
    assert terminal.flush(NOON + 2000, heartbeat=True).batches == 1
    terminal.tap(card(1), NOON + 3000)
    terminal.flush(NOON + 4000, heartbeat=True)
    assert server.sent[-1][1:] == (2, 0)


def test_an_answer_that_is_lost_costs_nothing_but_a_repeat() -> None:
    server = Server(forgets_to_answer=True)
    terminal = booted(server)
    terminal.tap(card(1), NOON)
    server.forgets_to_answer = False
    report = terminal.flush(NOON + 10_000)
    assert (report.acknowledged, report.pending) == (2, 0)
    assert server.events() == everything_stored(terminal)


def test_a_long_backlog_is_set_aside_so_that_a_live_tap_goes_first() -> None:
    server = Server(silent=True)
    terminal = booted(server)
    for number in range(500):
        terminal.tap(card(number), NOON + number)
    server.silent = False
    live = terminal.tap(card(1000), NOON + 100_000)
    assert live.decided is Decided.ONLINE
    assert [count for _, _, count in server.sent] == [1]
    waiting = terminal.outbox.list_pending()[0]
    report = terminal.flush(NOON + 101_000)
    assert (report.batches, report.acknowledged, report.pending) == (3, waiting.pending, 0)
    assert [(first, count) for _, first, count in server.sent[1:]] == [(1, 200), (201, 200), (401, 101)]
    assert {event.tap_id for event in server.events()} == {event.tap_id for event in everything_stored(terminal)}


def test_a_flush_stops_after_as_many_batches_as_it_may_send() -> None:
    server = Server(silent=True)
    terminal = booted(server, batch_taps=10)
    for number in range(30):
        terminal.tap(card(number), NOON + number)
    server.silent = False
    report = terminal.flush(NOON + 100_000, most_batches=1)
    assert (report.batches, report.acknowledged, report.pending) == (1, 10, 21)


def test_a_server_restored_from_a_backup_gets_again_what_it_lost() -> None:
    server = Server()
    terminal = booted(server)
    for number in range(10):
        terminal.tap(card(number), NOON + number)
    stream = server.streams[terminal.outbox.live.epoch]
    del stream.taps[4:], stream.heads[5:]
    terminal.tap(card(11), NOON + 1000)
    report = terminal.flush(NOON + 2000)
    assert report.pending == 0
    assert server.events() == everything_stored(terminal)
    assert terminal.flush(NOON + 3000).batches == 0


def test_what_the_server_misses_of_earlier_epochs_is_sent_again_if_it_is_still_there() -> None:
    server = Server()
    outbox = Outbox(":memory:", DEVICE)
    first = booted(server, outbox)
    for number in range(3):
        first.tap(card(number), NOON + number)
    old = first.outbox.live.epoch
    stream = server.streams[old]
    del stream.taps[1:], stream.heads[2:]
    second = booted(server, outbox, seed=2)
    server.wanted = (WantedTaps(old.hex(), 2), WantedTaps("00" * 8, 1), WantedTaps("no hex", 1), WantedTaps(old.hex(), 99))
    second.flush(NOON + 10_000, most_batches=1)
    server.wanted = ()
    assert second.flush(NOON + 11_000).batches == 1
    assert {event.tap_id for event in server.events()} == {event.tap_id for event in everything_stored(second)}
    assert second.flush(NOON + 12_000).batches == 0


def test_an_epoch_without_taps_that_the_server_misses_is_announced() -> None:
    server = Server()
    outbox = Outbox(":memory:", DEVICE)
    empty = booted(server, outbox).outbox.live.epoch
    terminal = booted(server, outbox, seed=2)
    server.wanted = (WantedTaps(empty.hex(), 1), WantedTaps(empty.hex(), 1), WantedTaps(terminal.outbox.live.epoch.hex(), 1))
    terminal.flush(NOON, most_batches=1)
    server.wanted = ()
    assert terminal.flush(NOON + 1000).batches == 1
    assert server.sent == [(terminal.outbox.live.epoch, 1, 0), (empty, 1, 0)]
    assert terminal.is_online(NOON + 2000)


def test_a_terminal_whose_disk_was_set_back_is_content_with_a_server_that_has_more(tmp_path: Path) -> None:
    server = Server(silent=True)
    outbox = Outbox(tmp_path / "gate-1.db", DEVICE)
    first = booted(server, outbox)
    first.tap(card(1), NOON)
    outbox.close()
    image = (tmp_path / "gate-1.db").read_bytes()
    server.silent = False
    second = booted(server, Outbox(tmp_path / "gate-1.db", DEVICE), seed=2)
    second.tap(card(2), NOON + 60_000)
    second.flush(NOON + 61_000)
    old = server.streams[first.outbox.live.epoch]
    old.taps.append(old.taps[0])  # as if it had written one more before the image was put back
    old.heads.append(old.heads[0])
    second.outbox.close()
    (tmp_path / "gate-1.db").write_bytes(image)
    third = booted(server, Outbox(tmp_path / "gate-1.db", DEVICE), seed=3)
    assert third.tap(card(3), NOON + 120_000).decided is Decided.ONLINE
    assert third.flush(NOON + 121_000).pending == 0
    assert third.is_online(NOON + 122_000)


def test_a_restored_server_that_asks_for_an_acknowledged_epoch_gets_it() -> None:
    server = Server(knows_predecessors=True)
    outbox = Outbox(":memory:", DEVICE)
    first = booted(server, outbox)
    for number in range(3):
        first.tap(card(number), NOON + number)
    server.streams.clear()
    second = booted(server, outbox, seed=2)
    second.tap(card(9), NOON + 10_000)
    assert second.flush(NOON + 20_000).pending == 0
    assert {event.tap_id for event in server.events()} == {event.tap_id for event in everything_stored(second)}


def test_epochs_that_the_server_never_heard_of_are_announced_oldest_first() -> None:
    server = Server(silent=True, knows_predecessors=True)
    outbox = Outbox(":memory:", DEVICE)
    for seed in range(4):
        terminal = booted(server, outbox, seed=seed)
        terminal.tap(card(seed), NOON + seed)
    server.silent = False
    report = terminal.flush(NOON + 60_000)
    assert (report.pending, report.stopped, report.stuck) == (0, None, {})
    assert list(server.streams) == [state.epoch for state in outbox.list_epochs()]
    assert server.events() == everything_stored(terminal)


def test_a_gap_that_cannot_be_filled_any_more_is_given_up_and_named() -> None:
    server = Server()
    terminal = booted(server)
    terminal.tap(card(1), NOON)
    terminal.tap(card(2), NOON)
    old = terminal.outbox.live.epoch
    assert terminal.prune(NOON + KEEP_MS + 1000) == 2
    server.streams.clear()
    later = NOON + KEEP_MS + 5000
    assert terminal.tap(card(3), later).decided is Decided.ALONE
    report = terminal.flush(later + 1000)
    assert report.stuck == {old.hex(): "gap"}
    assert report.stopped is None
    assert terminal.tap(card(4), later + 9000).decided is Decided.ONLINE


@pytest.mark.parametrize("resume_from", [None, 0, 1, 2])
def test_a_server_that_asks_for_what_it_was_just_sent_is_not_asked_for_ever(resume_from: int | None) -> None:
    server = Server(problem=Problem(status=409, cause="gap", resume_from=resume_from))
    terminal = booted(server)
    live = terminal.outbox.live.epoch
    terminal.tap(card(1), NOON)
    assert terminal.stuck == {live: "gap"}
    assert terminal.flush(NOON + 1000).batches == 1


def test_nothing_is_dropped_while_the_server_asks_for_old_taps() -> None:
    server = Server()
    terminal = booted(server)
    for number in range(3):
        terminal.tap(card(number), NOON)
    server.streams.clear()
    later = NOON + KEEP_MS + 1000
    terminal.tap(card(4), later)
    assert terminal.prune(later) == 0
    assert terminal.flush(later + 1000).stuck == {}
    assert server.events() == everything_stored(terminal)


@pytest.mark.parametrize("cause", ["forked_chain", "broken_chain", "bad_header"])
def test_an_epoch_that_cannot_go_on_is_followed_by_another_and_a_second_refusal_stops(cause: str) -> None:
    server = Server()
    terminal = booted(server)
    terminal.tap(card(1), NOON)
    old = terminal.outbox.live.epoch
    server.problem = Problem(status=409, cause=cause)
    assert terminal.tap(card(2), NOON + 1).decided is Decided.ALONE
    assert terminal.outbox.live.epoch != old
    server.problem = None
    assert terminal.tap(card(3), NOON + 2).decided is Decided.ONLINE
    assert (terminal.stopped, terminal.stuck) == (None, {old: cause})
    server.problem = Problem(status=409, cause=cause)
    terminal.tap(card(4), NOON + 3)
    assert terminal.stopped is None
    terminal.tap(card(5), NOON + 4)
    assert terminal.stopped == cause
    assert terminal.tap(card(6), NOON + 5).admitted


@pytest.mark.parametrize("cause", ["unknown_device", "bad_signature", "revoked_device"])
def test_a_device_that_is_not_taken_stops_sending_and_keeps_storing(cause: str) -> None:
    server = Server(problem=Problem(status=403, cause=cause))
    terminal = booted(server)
    result = terminal.tap(card(1), NOON)
    assert terminal.stopped == cause
    assert result.admitted == (cause != "revoked_device")
    assert terminal.tap(card(2), NOON + 60_000).decided is Decided.ALONE
    report = terminal.flush(NOON + 120_000)
    assert (report.batches, report.pending, report.stopped) == (0, 3, cause)


def test_a_revoked_device_lets_nobody_in_and_goes_on_sending_its_evidence() -> None:
    server = Server()
    terminal = booted(server)
    terminal.tap(card(1), NOON)
    server.silent = True
    assert terminal.tap(card(2), NOON + 1000).admitted
    server.silent, server.revoked = False, True
    report = terminal.flush(NOON + 60_000)
    assert (report.pending, report.stopped, report.revoked) == (0, None, True)
    refused = terminal.tap(card(3), NOON + 61_000)
    assert (refused.admitted, refused.reason, refused.decided) == (False, "revoked_device", Decided.ALONE)
    assert terminal.flush(NOON + 62_000).pending == 0
    assert server.events() == everything_stored(terminal)


def test_the_tap_by_which_a_device_learns_that_it_was_revoked_is_refused() -> None:
    terminal = booted(Server(revoked=True))
    result = terminal.tap(card(1), NOON)
    assert (result.admitted, result.reason) == (False, "revoked_device")
    assert terminal.flush(NOON + 1000).pending == 0


def test_a_key_that_is_not_the_device_s_stops_it() -> None:
    terminal = booted(Server(key=Ed25519PrivateKey.generate()))
    terminal.flush(NOON)
    assert terminal.stopped == "bad_signature"


def test_a_batch_that_is_too_large_is_halved() -> None:
    server = Server(silent=True)
    terminal = booted(server)
    for number in range(15):
        terminal.tap(card(number), NOON + number)
    server.silent = False
    server.problem = Problem(status=413, cause="too_large")
    terminal.flush(NOON + 60_000, most_batches=1)
    server.problem = None
    terminal.flush(NOON + 61_000)
    assert [count for _, _, count in server.sent] == [8, 8]


def test_a_busy_server_is_left_alone_as_long_as_it_asks() -> None:
    server = Server(problem=Problem(status=503), retry_after_s=40)
    terminal = booted(server)
    terminal.flush(NOON)
    assert not terminal.is_online(NOON + 40_000)
    assert terminal.flush(NOON + 40_000).batches == 0
    assert terminal.is_online(NOON + 60_000)


def test_an_answer_about_something_else_acknowledges_nothing() -> None:
    terminal = booted(Server())
    asked = terminal.present(card(1), NOON)
    assert isinstance(asked, Asking)
    good = Answer(
        device_id=DEVICE,
        epoch=asked.sending.epoch.hex(),
        acknowledged_through=1,
        server_time=NOON,
        deny_list_version=0,
        answers=(TapAnswer(sequence=1, result="ACCEPTED", decision="admitted"),),
    )
    change = msgspec.structs.replace
    for wrong in ({"device_id": "gate-2"}, {"epoch": "00" * 8}, {"acknowledged_through": 2}, {"acknowledged_through": 0}):
        reply = Reply(content=change(good, **wrong), elapsed_ms=5)
        assert terminal.hear(asked.sending, reply) is None
        assert terminal.outbox.live.pending == 1
    assert terminal.hear(asked.sending, Reply(content=good, elapsed_ms=5)) == good
    assert terminal.outbox.live.pending == 0


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["tap", "silent", "back", "lose", "flush", "boot", "restore", "gate"]), max_size=40))
def test_whatever_happens_every_stored_tap_arrives_once_in_the_end(happenings: list[str]) -> None:
    server = Server(knows_predecessors=True)
    outbox = Outbox(":memory:", DEVICE)
    terminal = booted(server, outbox, most_live_waiting=3, batch_taps=4)
    at = NOON
    last: TapPlace | None = None
    for number, what in enumerate(happenings):
        at += 500
        match what:
            case "tap":
                last = terminal.tap(card(number), at).place
            case "gate" if last:
                terminal.gate_not_opened(last, at)
            case "silent" | "back":
                server.silent = what == "silent"
            case "lose":
                server.forgets_to_answer = not server.forgets_to_answer
            case "flush":
                terminal.flush(at, timeout_s=0.1, most_batches=2)
            case "boot":
                terminal = booted(server, outbox, seed=number + 2, most_live_waiting=3, batch_taps=4)
            case "restore" if server.streams:
                stream = server.streams[list(server.streams)[-1]]
                kept = len(stream.taps) // 2
                del stream.taps[kept:], stream.heads[kept + 1 :]
    server.silent = server.forgets_to_answer = False
    terminal = booted(server, outbox, seed=1000, most_live_waiting=3, batch_taps=4)
    for _ in range(3):
        at += 60_000
        report = terminal.flush(at, heartbeat=True)
    assert (report.pending, report.stopped, report.stuck) == (0, None, {})
    if "restore" not in happenings:
        stored = {event.tap_id for event in everything_stored(terminal)}
        assert {event.tap_id for event in server.events()} == stored
    assert len({event.tap_id for event in server.events()}) == len(server.events())
    outbox.close()


# ---- damage on the disk


def spoil(terminal: Terminal, sequence: int) -> None:
    terminal.outbox._connection.execute("UPDATE taps SET tap = x'00' WHERE sequence = ?", (sequence,))


def test_a_tap_that_comes_after_damage_in_its_epoch_gets_another_place_and_is_sent() -> None:
    server = Server(silent=True)
    terminal = booted(server)
    for number in range(3):
        terminal.tap(card(number), NOON + number)
    old = terminal.outbox.live
    spoil(terminal, 3)
    server.silent = False
    live = terminal.tap(card(9), NOON + 60_000)
    assert (live.admitted, live.decided, live.place.sequence) == (True, Decided.ONLINE, 1)
    report = terminal.flush(NOON + 61_000)
    assert report.pending == 0
    assert [damage.from_sequence for damage in report.damage] == [3]
    assert [len(server.streams[epoch].taps) for epoch in (old.epoch, live.place.epoch)] == [2, 1]
    assert terminal.tap(card(10), NOON + 62_000).decided is Decided.ONLINE


def test_a_server_that_asks_for_damaged_taps_again_does_not_stop_the_terminal() -> None:
    server = Server()
    terminal = booted(server)
    for number in range(6):
        terminal.tap(card(number), NOON + number)
    old = terminal.outbox.live.epoch
    spoil(terminal, 3)
    del server.streams[old]
    terminal.tap(card(9), NOON + 10_000)
    for minute in range(1, 4):
        report = terminal.flush(NOON + minute * 600_000)
    assert (report.pending, report.stopped) == (0, None)
    assert len(server.streams[old].taps) == 2
    assert terminal.tap(card(10), NOON + 3_600_000).decided is Decided.ONLINE


def test_an_epoch_does_not_grow_for_ever_so_that_damage_spoils_little() -> None:
    terminal = booted(Server(silent=True), most_epoch_taps=50)
    for number in range(120):
        terminal.tap(card(number), NOON + number)
    assert [state.last_sequence for state in terminal.outbox.list_epochs()] == [50, 50, 21]


# ---- the clock


def test_the_offset_is_learnt_at_the_first_contact_and_written_into_taps() -> None:
    server = Server(ahead_ms=150_000, elapsed_ms=80)
    terminal = booted(server)
    terminal.tap(card(1), NOON)
    terminal.tap(card(2), NOON + 1000)
    before, after = server.events()
    assert (before.clock_offset_ms, before.clock_error_ms) == (0, None)
    assert after.clock_offset_ms == 150_000
    assert after.clock_error_ms == 41
    assert after.event_time_ms == NOON + 151_000


def test_a_quicker_exchange_is_believed_and_a_slower_one_is_not() -> None:
    held = learn(None, NOON, 100, NOON + 50 + 7)
    assert (held.offset_ms, held.error_ms) == (7, 51)
    assert learn(held, NOON + 1000, 400, NOON + 1200 + 90) == held
    assert learn(held, NOON + 1000, 20, NOON + 1010 + 9).error_ms == 11


def test_belief_fades_with_time_so_that_a_slower_exchange_is_welcome_later() -> None:
    held = learn(None, NOON, 20, NOON + 10)
    day = 24 * 3600 * 1000
    assert held.error_at(NOON + 20 + day) == 11 + 8640
    assert learn(held, NOON + day, 400, NOON + day + 200).error_ms == 201


def test_a_clock_that_was_set_meanwhile_is_noticed() -> None:
    held = learn(None, NOON, 20, NOON + 10)
    assert learn(held, NOON + 1000, 400, NOON + 1200 + 3_600_000).offset_ms == 3_600_000


@given(st.integers(-(10**9), 10**9), st.integers(0, 5000), st.floats(0, 1))
def test_the_true_offset_lies_within_what_is_believed(offset: int, elapsed: int, share: float) -> None:
    answered_at = NOON + round(elapsed * share)
    believed = learn(None, NOON, elapsed, answered_at + offset)
    assert abs(believed.offset_ms - offset) <= believed.error_at(NOON + elapsed)
    assert isinstance(believed, ClockEstimate)


# ---- the deny list


def test_a_newer_list_is_heard_of_at_the_next_answer() -> None:
    terminal = booted(Server(deny_list_version=12))
    terminal.flush(NOON)
    assert (terminal.newest_deny_list, terminal.deny_list.version) == (12, 0)


# ---- the command line


def test_a_line_is_a_tap() -> None:
    presented = read_line("board wallet:momo 04A1b2\n", b"domain")
    assert presented == Presented(
        kind=TapKind.BOARD, token=terminal_token(b"domain", bytes.fromhex("04a1b2")), medium="wallet:momo"
    )
    for wrong in ("board emv", "outcome emv 00", "fly emv 00", "board emv 0x", "board emv 00 two"):
        with pytest.raises(ValueError, match=r"ACTION MEDIUM RAWHEX|hexadecimal|invalid literal"):
            read_line(wrong, b"domain")


def test_a_rider_is_told_fare_and_balance_or_that_the_fare_follows() -> None:
    online = booted(Server()).tap(card(1), NOON)
    assert describe(online).endswith("admitted  online  fare 6000  balance None")
    alone = booted(Server(silent=True)).tap(card(1), NOON)
    assert describe(alone).endswith("admitted  alone  fare follows")


def test_the_command_stores_taps_while_nobody_answers(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_bytes(KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path / "domain").write_text("00ff\n")
    options = {"url": "http://127.0.0.1:1", "device": DEVICE, "stop": "ben-thanh", "outbox": str(tmp_path / "box")}
    options |= {"key-file": str(tmp_path / "key.pem"), "domain-key-file": str(tmp_path / "domain")}
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    run = CliRunner().invoke(app, arguments, input="entry emv 04a1\nwhat is this\nentry emv 04a2\n")
    assert run.exit_code == 0, run.output
    assert run.output.count("admitted  alone  fare follows") == 2
    assert "? not `ACTION MEDIUM RAWHEX [PERSONS]`" in run.output
    box = Outbox(tmp_path / "box", DEVICE)
    assert box.live.last_sequence == 2
    box.close()
    (tmp_path / "domain").write_text("no key")
    assert CliRunner().invoke(app, arguments).exit_code == 2


class CityServer(BaseHTTPRequestHandler):
    """Answers taps as `Server` does, and has two publications."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        reply = self.server.city.send(self.rfile.read(int(self.headers["Content-Length"])), 1)  # type: ignore[attr-defined]
        self._answer(200, msgspec.json.encode(reply.content))

    def do_GET(self) -> None:
        body = self.server.published.get(self.path, b"")  # type: ignore[attr-defined]
        self._answer(200 if body else 204, body)

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        if status == 200:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_the_command_fetches_publications_and_has_them_after_the_next_boot(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_bytes(KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path / "domain").write_text("00ff\n")
    (tmp_path / "former").write_text("00ee\n")
    trusted = [
        {"key_id": key_id.decode(), "name": one.name, "role": one.role, "public_key": one.public_key.public_bytes_raw().hex()}
        for key_id, one in PUBLISHERS.items()
    ]
    (tmp_path / "trust.json").write_bytes(msgspec.json.encode(trusted))
    denied = terminal_token(bytes.fromhex("00ee"), bytes.fromhex("04a1"))
    rules = make_rules(1, NOON, TerminalRules(tariff_version="tet"), NOON)
    server = ThreadingHTTPServer(("127.0.0.1", 0), CityServer)
    server.city = Server(deny_list_version=2, rules_version=1, decision="none")  # type: ignore[attr-defined]
    server.published = {  # type: ignore[attr-defined]
        "/v1/publications/deny-list?from=0": sign(make_snapshot(1, NOON, [denied]), signers("service")),
        "/v1/publications/deny-list?from=1": sign(make_delta(2, 1, NOON, [card(1).token], []), signers("service")),
        "/v1/publications/rules?from=0": sign(rules, signers("service", "lan", "minh")),
    }
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    options = {"url": f"http://127.0.0.1:{server.server_address[1]}", "device": DEVICE, "state": str(tmp_path / "state")}
    options |= {"key-file": str(tmp_path / "key.pem"), "domain-key-file": str(tmp_path / "domain")}
    options |= {"former-domain-key-file": str(tmp_path / "former"), "token-key-version": "2"}
    options |= {"trust-file": str(tmp_path / "trust.json")}
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    try:
        run = CliRunner().invoke(app, arguments, input="entry emv 04a1\nentry emv 04a2 2\n")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert run.exit_code == 0, run.output
    assert run.output.count("deny-list: taken") == 2
    assert run.output.count("rules: taken") == 1
    assert "refused (deny_list)  alone" in run.output
    taps = [event for event in server.city.events() if event.kind is TapKind.ENTRY]  # type: ignore[attr-defined]
    assert [(event.deny_list_version, event.tariff_version, event.persons) for event in taps] == [(2, "tet", 1), (2, "tet", 2)]
    assert taps[0].former_token == denied
    again = CliRunner().invoke(app, arguments, input="entry emv 04a1\n")
    assert "refused (deny_list)  alone" in again.output, "though nobody answers now"
