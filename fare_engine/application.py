"""Application: what received taps do to travellers, lines, books and balances, and what is answered.

Idempotent by tap id: a fact that a record holds already changes nothing. A traveller is always refolded from the state
before the open window, so it does not matter whether a tap comes in order or late. What goes wrong in one traveller's fold
stays there: his facts are kept, he is marked dirty, his answer is provisional, and a later try prices him."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection

from fare_engine import booking
from fare_engine.answers import AnswerLine, CapState, TapAnswer
from fare_engine.booking import Record
from fare_engine.facts import Cancellation, Fact, Purchase, Tap, TapAction
from fare_engine.ids import FactId, tap_id
from fare_engine.pricing.fold import Folded
from fare_engine.pricing.lines import Leg
from fare_engine.pricing.periods import spent
from fare_engine.pricing.state import NEVER
from fare_engine.service_day import DAY_MS, MINUTE_MS, to_date
from fare_engine.store import books, receipts, registry, travellers
from fare_engine.store.receipts import QuarantinedTap
from fare_engine.store.travellers import CASH, Account, Token, Traveller
from fare_engine.tap_format import Decision, Outcome, TapEvent, TapKind, TapPlace
from fare_engine.tariff.compile import CompiledTariff
from fare_engine.tokens import stored_token

logger = logging.getLogger(__name__)

AHEAD_MS = 10 * MINUTE_MS
"""A tap this far in the future is impossible."""
BEHIND_MS = 45 * DAY_MS
"""A tap older than this is impossible: terminals keep theirs for 30 days after the acknowledgement."""
GROUP = 500

_ACTIONS: dict[TapKind, TapAction] = {TapKind.ENTRY: "entry", TapKind.EXIT: "exit", TapKind.BOARD: "board"}


@dataclass(frozen=True, slots=True)
class ReceivedTap:
    """A tap with the operator whose device it is."""

    event: TapEvent
    device_operator_id: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A tap that is not in the format, with the reason."""

    device_id: str
    epoch: str
    sequence: int
    reason: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """A tap that cannot be used: a stable word, and a sentence with the value."""

    reason: str
    detail: str
    waits_for: FactId | None = None
    """The tap that would make it usable."""


@dataclass(slots=True)
class _Change:
    """What a group of taps adds to one traveller."""

    facts: list[Fact] = field(default_factory=list)
    refused: list[Tap] = field(default_factory=list)
    released: set[str] = field(default_factory=set)
    """Refused taps whose terminal let the rider in all the same."""


class Application:
    """Applies taps, purchases and the passing of time. Holds the tariff; everything else is in the database."""

    def __init__(self, tariff: CompiledTariff, server_key: bytes) -> None:
        self.tariff = tariff
        self.server_key = server_key
        self.deny_list_version = 0
        self.charged = 0
        """What has been charged since the process began: a figure for pages, not for books."""

    # ---- taps

    def apply(self, connection: Connection, taps: Sequence[ReceivedTap], now: int) -> dict[FactId, TapAnswer]:
        """Apply taps that are new in their streams; the answer of each by tap id. Part of the caller's transaction."""
        known = self._tokens(connection, taps, now)
        ran = registry.find_vehicles(connection, {tap.event.vehicle_id for tap in taps if tap.event.vehicle_id is not None})
        accounts = travellers.find_accounts(connection, {token.account_id for token in known.values()})
        answers: dict[FactId, TapAnswer] = {}
        rejected: list[tuple[TapEvent, Rejected]] = []
        changes: dict[str, _Change] = defaultdict(_Change)
        owner: dict[FactId, str] = {}
        in_group = {tap.event.tap_id: tap.event for tap in taps}
        for tap in taps:
            event = tap.event
            verdict = self._check(event, known, now)
            if verdict is None and event.kind is TapKind.OUTCOME:
                verdict = self._take_outcome(connection, event, in_group, known, changes)
            if verdict is not None:
                rejected.append((event, verdict))
            elif event.kind in _ACTIONS:
                token = known[self._token_id(event)]
                refusal = _refusal(event, token, accounts[token.account_id])
                fact = self._fact(tap, token.token_id, ran)
                change = changes[token.traveller_id]
                owner[event.tap_id] = token.traveller_id
                if refusal is not None or event.decision is Decision.REFUSED_ALONE:
                    change.refused.append(fact)
                    reason = refusal or event.reason or "refused by the terminal"
                    answers[event.tap_id] = TapAnswer(
                        sequence=event.sequence, result="ACCEPTED", decision="refused", reason=reason
                    )
                else:
                    change.facts.append(fact)
            else:
                answers[event.tap_id] = TapAnswer(sequence=event.sequence, result="ACCEPTED")
        waiting = receipts.find_waiting(connection, in_group.keys())
        usable = [event for event in waiting if self._take_outcome(connection, event, in_group, known, changes) is None]
        receipts.release_quarantined(connection, usable, now)
        folded, changed = self._change(connection, changes, now)
        answers.update(_quarantine_rejected(connection, rejected, self.tariff, now))
        for fact_id, traveller_id in owner.items():
            if fact_id not in answers:
                token = known[self._token_id(in_group[fact_id])]
                account = accounts.get(token.account_id)
                balance = account.balance + changed.get(token.account_id, 0) if account is not None else None
                if token.account_id == CASH:
                    balance = None
                answers[fact_id] = self._answer(in_group[fact_id], folded.get(traveller_id), balance)
        return answers

    def _tokens(self, connection: Connection, taps: Sequence[ReceivedTap], now: int) -> dict[str, Token]:
        """The tokens of some taps. A paper ticket sold for cash is known from its first usable tap on."""
        presented = [(self._token_id(tap.event), tap.event) for tap in taps if tap.event.token is not None]
        known = travellers.find_tokens(connection, {token_id for token_id, _ in presented})
        tickets = {
            token_id
            for token_id, event in presented
            if token_id not in known and event.medium == "cash" and self._check_content(event, now) is None
        }
        if tickets:
            known.update(_open_tickets(connection, tickets))
        return known

    def _token_id(self, event: TapEvent) -> str:
        return stored_token(self.server_key, event.token) if event.token is not None else ""

    def _check(self, event: TapEvent, known: dict[str, Token], now: int) -> Rejected | None:
        """Why a tap cannot be used, or None."""
        wrong = self._check_content(event, now)
        if wrong is not None or event.kind is TapKind.OUTCOME:
            return wrong
        token = known.get(self._token_id(event))
        if token is None:
            return Rejected("unknown_token", "the token belongs to no traveller")
        if _is_blocked(token, event) and event.decision is not Decision.ASKED_ONLINE:
            return None if event.decision is Decision.REFUSED_ALONE else _blocked(token, event)
        return None

    def _check_content(self, event: TapEvent, now: int) -> Rejected | None:
        """Why a tap's time, place or medium cannot be right, or None."""
        at = event.event_time_ms
        if at > now + AHEAD_MS or at < now - BEHIND_MS:
            return Rejected("impossible_time", f"{at} ms is not near {now} ms, when it was received")
        if event.kind is TapKind.OUTCOME:
            return None
        network = self.tariff.network
        if event.stop_id is not None and event.stop_id not in network.stops:
            return Rejected("unknown_stop", repr(event.stop_id))
        if event.route_id is not None and event.route_id not in network.routes:
            return Rejected("unknown_route", repr(event.route_id))
        if self.tariff.network_of(event.route_id, event.stop_id) is None:
            return Rejected("unknown_place", f"route {event.route_id!r} and stop {event.stop_id!r} name no network")
        if (event.medium or "").split(":")[0] not in self.tariff.media:
            return Rejected("unknown_medium", repr(event.medium))
        return None

    def _fact(self, tap: ReceivedTap, token_id: str, ran: Mapping[str, list[tuple[int, str]]]) -> Tap:
        event = tap.event
        return Tap(
            event.tap_id,
            event.event_time_ms,
            event.device_id,
            event.epoch.hex(),
            event.sequence,
            _ACTIONS[event.kind],
            token_id,
            event.medium or "",
            self.tariff.default_category,
            event.stop_id,
            event.route_id,
            _operator(tap, ran),
            event.persons,
        )

    def _take_outcome(
        self,
        connection: Connection,
        event: TapEvent,
        in_group: dict[FactId, TapEvent],
        known: dict[str, Token],
        changes: dict[str, _Change],
    ) -> Rejected | None:
        """An OUTCOME record acts on the traveller of the tap it speaks of."""
        place = event.spoken_of
        spoken_of = self._find_tap(connection, event, place, in_group) if place is not None else None
        if spoken_of is None or spoken_of.token is None:
            spoken_of_id = event.spoken_of_id
            return Rejected("unknown_tap", f"the record speaks of {spoken_of_id}, which is not held", spoken_of_id)
        token_id = self._token_id(spoken_of)
        token = known.get(token_id) or travellers.find_tokens(connection, [token_id]).get(token_id)
        if token is None:
            return Rejected("unknown_token", "the tap spoken of belongs to no traveller")
        let_in = event.outcome is Outcome.TIMED_OUT and event.decision is Decision.ADMITTED_ALONE
        if let_in and _is_blocked(token, spoken_of):
            return _blocked(token, spoken_of)
        change = changes[token.traveller_id]
        if let_in:
            change.released.add(spoken_of.tap_id)
        else:
            change.facts.append(_cancellation(event, spoken_of))
        return None

    def _find_tap(
        self, connection: Connection, event: TapEvent, place: TapPlace, in_group: dict[FactId, TapEvent]
    ) -> TapEvent | None:
        spoken_of = tap_id(event.device_id, place.epoch.hex(), place.sequence)
        if spoken_of in in_group:
            return in_group[spoken_of]
        return receipts.find_tap(connection, event.device_id, place.epoch.hex(), place.sequence)

    # ---- other facts

    def purchase(self, connection: Connection, traveller_id: str, purchase: Purchase, now: int) -> None:
        """A pass or book that a traveller bought."""
        self._change(connection, {traveller_id: _Change(facts=[purchase])}, now)

    def advance(self, connection: Connection, as_of: int) -> int:
        """Let time pass for up to GROUP travellers for whom something is due before `as_of`; how many there were."""
        due = travellers.list_due(connection, as_of, GROUP)
        self._change(connection, {traveller_id: _Change() for traveller_id in due}, as_of, booked_for="time")
        return len(due)

    def retry_dirty(self, connection: Connection, now: int) -> int:
        """Fold again the travellers whose last fold failed; how many were tried."""
        dirty = travellers.list_dirty(connection, GROUP)
        self._change(connection, {traveller_id: _Change() for traveller_id in dirty}, now, booked_for="retry")
        return len(dirty)

    # ---- one traveller

    def _change(
        self, connection: Connection, changes: dict[str, _Change], now: int, booked_for: str = ""
    ) -> tuple[dict[str, Folded], dict[str, int]]:
        """Add to travellers' records, refold them, and book the difference: the folds (none for one that failed), and by how
        much accounts' balances changed."""
        if not changes:
            return {}, {}
        rows = travellers.get_travellers(connection, changes.keys())
        entries = books.Booking(books.last_closed(connection))
        folded: dict[str, Folded] = {}
        for traveller_id, traveller in rows.items():
            change = changes[traveller_id]
            _add_facts(traveller.record, change)
            result = self._refold(traveller, change, now)
            if result is not None:
                found, movements = result
                folded[traveller_id] = found
                cause = change.facts[-1].fact_id if change.facts else booked_for
                entries.add(traveller_id, traveller.account_id, cause, movements)
                self.charged += sum(m.line.amount for m in movements if m.line.kind not in ("hold", "sale"))
        entries.write(connection)
        travellers.save_travellers(connection, rows.values())
        travellers.change_balances(connection, entries.balance_changes)
        return folded, entries.balance_changes

    def _refold(self, traveller: Traveller, change: _Change, now: int) -> tuple[Folded, list[booking.Movement]] | None:
        untouched = booking.encode(traveller.record)
        try:
            folded = booking.price(self.tariff, traveller.record, now)
            movements = booking.book(traveller.record, folded)
        except Exception as error:  # whatever it is, it must not leave this traveller: the tap is kept and tried again
            logger.exception("the fold of a traveller failed")
            traveller.record = booking.decode(untouched)
            since = min((fact.at for fact in change.facts), default=now)
            traveller.dirty_since = since if traveller.dirty_since is None else min(traveller.dirty_since, since)
            traveller.dirty_reason = type(error).__name__
            return None
        traveller.next_due = folded.state.next_due
        traveller.dirty_since = traveller.dirty_reason = None
        return folded, movements

    def _answer(self, event: TapEvent, folded: Folded | None, balance: int | None) -> TapAnswer:
        """The answer to an admitted tap: its leg so far, its caps, the balance."""
        if folded is None:
            return TapAnswer(sequence=event.sequence, result="ACCEPTED", decision="admitted", balance=balance, provisional=True)
        leg = _leg_of(folded, event.tap_id)
        if leg is None:
            reason = folded.ignored.get(event.tap_id)
            return TapAnswer(sequence=event.sequence, result="ACCEPTED", decision="admitted", reason=reason, balance=balance)
        lines = [line for line in folded.lines if line.leg_id == leg.leg_id]
        return TapAnswer(
            sequence=event.sequence,
            result="ACCEPTED",
            reason=leg.reason or None,
            decision="admitted",
            fare=None if leg.status == "unknown" else sum(line.amount for line in lines),
            lines=tuple(AnswerLine(line.kind, line.rule_id, line.amount) for line in lines),
            caps=self._caps(folded, leg),
            balance=balance,
            provisional=leg.status == "open",
        )

    def _caps(self, folded: Folded, leg: Leg) -> tuple[CapState, ...]:
        version = self.tariff.versions.get(leg.version_id)
        if version is None or leg.network_id is None:
            return ()
        terms = version.terms(leg.network_id, leg.route_id, leg.media, leg.rider_category)
        caps = terms.caps if terms else ()
        return tuple(CapState(cap.rule_id, spent(folded.state, cap, leg), cap.amount) for cap in caps)


def quarantine(
    connection: Connection, unreadable: Iterable[Unreadable], tariff: CompiledTariff, now: int
) -> dict[FactId, TapAnswer]:
    """Set aside taps that are not in the format; their answers by tap id."""
    return _set_aside(
        connection,
        [((tap.device_id, tap.epoch, tap.sequence), Rejected("unreadable", tap.reason), now) for tap in unreadable],
        tariff,
        now,
    )


def _quarantine_rejected(
    connection: Connection, rejected: Iterable[tuple[TapEvent, Rejected]], tariff: CompiledTariff, now: int
) -> dict[FactId, TapAnswer]:
    places: list[tuple[tuple[str, str, int], Rejected, int]] = []
    for event, verdict in rejected:
        at = now if verdict.reason == "impossible_time" else event.event_time_ms
        places.append(((event.device_id, event.epoch.hex(), event.sequence), verdict, at))
    return _set_aside(connection, places, tariff, now)


def _set_aside(
    connection: Connection, places: Sequence[tuple[tuple[str, str, int], Rejected, int]], tariff: CompiledTariff, now: int
) -> dict[FactId, TapAnswer]:
    if not places:
        return {}
    closed_through = books.last_closed(connection)
    answers, rows = {}, []
    for place, verdict, at in places:
        service_date = _service_date(tariff, at)
        on = books.accounting_date(service_date, closed_through)
        rows.append(QuarantinedTap(*place, now, verdict.reason, verdict.detail, service_date, on, verdict.waits_for))
        answers[tap_id(*place)] = TapAnswer(sequence=place[2], result="QUARANTINED", reason=verdict.reason)
    receipts.add_quarantined(connection, rows)
    return answers


def _operator(tap: ReceivedTap, ran: Mapping[str, list[tuple[int, str]]]) -> str:
    """Who ran the vehicle at the tap's time; at a station, whose device it is."""
    event = tap.event
    by_then = [operator for since, operator in ran.get(event.vehicle_id or "", ()) if since <= event.event_time_ms]
    return by_then[-1] if by_then else tap.device_operator_id


def _open_tickets(connection: Connection, token_ids: Iterable[str]) -> dict[str, Token]:
    """Paper tickets, each a traveller of its own."""
    tokens = {token_id: Token(token_id, f"ticket:{token_id}", CASH, None) for token_id in sorted(token_ids)}
    if CASH not in travellers.find_accounts(connection, [CASH]):
        travellers.add_accounts(connection, [Account(CASH, "collector", 0)])
    travellers.add_tokens(connection, tokens.values())
    travellers.add_travellers(connection, [Traveller(t.traveller_id, CASH, Record(), NEVER) for t in tokens.values()])
    return tokens


def _service_date(tariff: CompiledTariff, at: int) -> str:
    version = tariff.version_at(at)
    return to_date(version.service_day(at) if version else at // DAY_MS).isoformat()


def _cancellation(event: TapEvent, spoken_of: TapEvent) -> Cancellation:
    """The tap spoken of let nobody through."""
    reasons = {Outcome.GATE_NOT_OPENED: "gate not opened", Outcome.CANCELLED: "cancelled"}
    reason = reasons.get(event.outcome or Outcome.TIMED_OUT, "kept out by the terminal")
    at, place = event.event_time_ms, (event.device_id, event.epoch.hex(), event.sequence)
    return Cancellation(event.tap_id, at, *place, spoken_of.tap_id, reason)


def _is_blocked(token: Token, event: TapEvent) -> bool:
    return token.blocked_at is not None and event.event_time_ms >= token.blocked_at


def _blocked(token: Token, event: TapEvent) -> Rejected:
    return Rejected("blocked_token", f"blocked since {token.blocked_at} ms, let in by the terminal at {event.event_time_ms} ms")


def _refusal(event: TapEvent, token: Token, account: Account) -> str | None:
    """Why the service does not let a rider in who asks online; None if it does. Nobody is kept from leaving."""
    if event.kind is TapKind.EXIT or event.decision is not Decision.ASKED_ONLINE:
        return None
    if _is_blocked(token, event):
        return "blocked"
    return "insufficient_balance" if account.kind == "prepaid" and account.balance <= 0 else None


def _add_facts(record: Record, change: _Change) -> None:
    known = {fact.fact_id for fact in record.facts} | {fact.fact_id for fact in record.refused}
    record.facts += [fact for fact in change.facts if fact.fact_id not in known]
    record.refused += [fact for fact in change.refused if fact.fact_id not in known]
    if change.released:
        record.facts += [fact for fact in record.refused if fact.fact_id in change.released]
        record.refused = [fact for fact in record.refused if fact.fact_id not in change.released]


def _leg_of(folded: Folded, fact_id: str) -> Leg | None:
    """The leg that a tap began, or the one whose lines it caused by ending it."""
    if fact_id in folded.legs:
        return folded.legs[fact_id]
    ended = [line.leg_id for line in folded.lines if line.cause == fact_id and line.kind in ("list_fare", "hold")]
    return folded.legs.get(ended[0]) if ended else None
