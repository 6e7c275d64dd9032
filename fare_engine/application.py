"""Application: what received taps do to travellers, lines, books and balances, and what is answered.

Idempotent by tap id: a fact that a record holds already changes nothing. A traveller is always refolded from the state
before the open window, so it does not matter whether a tap comes in order or late (`refold`). Whether a tap can be used is
asked of the tap alone (`verdicts`)."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import msgspec
from sqlalchemy import Connection

from fare_engine import facts, ledger, windows
from fare_engine.answers import AnswerLine, CapState, TapAnswer
from fare_engine.booking import Record
from fare_engine.certificates import DeviceLimits
from fare_engine.clones import impossible_pair
from fare_engine.errors import NotFoundError
from fare_engine.facts import Cancellation, Completion, Fact, Purchase, Tap, TapAction
from fare_engine.ids import FactId, tap_id
from fare_engine.mending import Mender
from fare_engine.pricing.fold import Folded
from fare_engine.pricing.legs import dearest_exit
from fare_engine.pricing.lines import Leg
from fare_engine.pricing.periods import spent
from fare_engine.pricing.state import NEVER
from fare_engine.refold import DRIFT, Change, Refolded, Refolder
from fare_engine.service_day import DAY_MS, to_date
from fare_engine.store import books, receipts, registry, travellers
from fare_engine.store.database import after_commit, is_away, is_conflict
from fare_engine.store.receipts import QuarantinedTap
from fare_engine.store.travellers import CASH, Account, Link, NewToken, Token, Traveller
from fare_engine.tap_format import Decision, Outcome, TapEvent, TapKind, TapPlace
from fare_engine.tariff.compile import CompiledTariff
from fare_engine.tokens import stored_token
from fare_engine.verdicts import AHEAD_MS, Rejected, blocked, check_content, check_limits, check_time, check_token, is_blocked

logger = logging.getLogger(__name__)

RECENT_TAPS = 20
"""So many of a traveller's last facts are looked at for a tap elsewhere too soon."""
TOKENS_KEPT = 4096
"""The id of a tap's token is asked for several times while it is applied."""
GROUP = 500
"""How many travellers a job takes up in one transaction."""

_ACTIONS: dict[TapKind, TapAction] = {TapKind.ENTRY: "entry", TapKind.EXIT: "exit", TapKind.BOARD: "board"}


@dataclass(frozen=True, slots=True)
class ReceivedTap:
    """A tap with the operator whose device it is, what the device may speak of, and why it is set aside unlooked at."""

    event: TapEvent
    device_operator_id: str
    limits: DeviceLimits | None = None
    set_aside: Rejected | None = None
    is_corrected: bool = True
    """Whether there may be corrections of its device's clock."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A tap that is not in the format, with the reason."""

    device_id: str
    epoch: str
    sequence: int
    reason: str


class Application:
    """Applies taps, purchases and the passing of time. Holds the tariff; everything else is in the database."""

    def __init__(self, tariff: CompiledTariff, server_key: bytes, ages: windows.Ages = windows.USUAL) -> None:
        """`ages`: when windows of travellers' records are closed."""
        self.tariff = tariff
        self.server_key = server_key
        self._stored = lru_cache(TOKENS_KEPT)(partial(stored_token, server_key))
        self.refolder = Refolder(tariff, ages)
        self.mender = Mender(tariff)
        self.charged = 0
        """What has been charged since the process began: a figure for pages, not for books."""

    def token_id(self, event: TapEvent) -> str:
        """The id under which a tap's token is known; empty where it has none."""
        return self._stored(event.token) if event.token is not None else ""

    # ---- taps

    def apply(
        self,
        connection: Connection,
        taps: Sequence[ReceivedTap],
        now: int,
        *,
        released: bool = False,
        beside: Sequence[ReceivedTap] = (),
    ) -> dict[FactId, TapAnswer]:
        """Apply taps that are new in their streams; the answer of each by tap id. Part of the caller's transaction.

        With `released` they are taps that come out of the quarantine because somebody decided so. `beside` are taps of the
        same transaction that are not stored yet and may be spoken of."""
        group = _Group(self, connection, taps, now, released=released, beside=beside)
        answers = group.apply()
        if group.opened:
            awaited = [f"token:{token_id}" for token_id in sorted(group.opened)]
            self.release(connection, receipts.find_waiting(connection, awaited), now)
        return answers

    def apply_one_by_one(self, connection: Connection, taps: Sequence[ReceivedTap], now: int) -> dict[FactId, TapAnswer]:
        """As `apply`, each tap by itself: one that cannot be applied, whatever it is, is set aside alone, for somebody who can
        read the log."""
        answers: dict[FactId, TapAnswer] = {}
        for tap in taps:
            try:
                with connection.begin_nested():
                    answers.update(self.apply(connection, [tap], now, beside=taps))
            except Exception as error:
                if is_away(error) or is_conflict(error):
                    raise
                logger.exception("tap %s could not be applied", tap.event.tap_id)
                failed = replace(tap, set_aside=Rejected("internal_error", repr(error)[:500]))
                answers.update(self.apply(connection, [failed], now, beside=taps))
        return answers

    def release(self, connection: Connection, events: Sequence[TapEvent], now: int) -> int:
        """Take taps out of the quarantine that can be used; how many could."""
        if not events:
            return 0
        devices = registry.lock_devices(connection, {event.device_id for event in events})
        taps = [ReceivedTap(event, devices[event.device_id].operator_id) for event in events]
        answers = self.apply(connection, taps, now, released=True)
        used = [event for event in events if answers[event.tap_id].result != "QUARANTINED"]
        receipts.release_quarantined(connection, used, now)
        return len(used)

    # ---- other facts

    def purchase(self, connection: Connection, traveller_id: str, purchase: Purchase, now: int) -> None:
        """A pass or book that a traveller bought."""
        self.add_facts(connection, {traveller_id: [purchase]}, now)

    def sell(self, connection: Connection, purchase: Purchase, now: int) -> None:
        """A pass or book that was bought with a token: it is whose the token was then. NotFoundError for an unknown token."""
        token = travellers.find_tokens(connection, [purchase.token_id]).get(purchase.token_id)
        if token is None:
            raise NotFoundError(f"no token {purchase.token_id}")
        self.purchase(connection, token.traveller_at(purchase.at), purchase, now)

    def complete_leg(self, connection: Connection, fact: Completion, now: int) -> None:
        """Record where the rider of a leg is taken to have left. NotFoundError for an entry that is not held."""
        device_id, epoch, sequence = fact.leg_id.rsplit("/", 2)
        entry = receipts.find_tap(connection, device_id, epoch, int(sequence))
        token = travellers.find_tokens(connection, [self.token_id(entry)]).get(self.token_id(entry)) if entry else None
        if entry is None or token is None:
            raise NotFoundError(f"no entry {fact.leg_id}")
        self.add_facts(connection, {token.traveller_at(entry.event_time_ms): [fact]}, now)

    def correct_clock(self, connection: Connection, correction: registry.Correction, now: int) -> int:
        """A device's clock was off: its taps in the range are shifted, those that are here and those to come. Of how many
        travellers there were any."""
        registry.lock_devices(connection, [correction.device_id])
        if correction in registry.find_corrections(connection, [correction.device_id]).get(correction.device_id, ()):
            return 0
        registry.add_correction(connection, correction)
        events = [
            event
            for event in receipts.taps_of_device(connection, correction.device_id, correction.begins - AHEAD_MS)
            if event.kind in _ACTIONS and correction.begins <= event.event_time_ms < correction.ends
        ]
        tokens = travellers.find_tokens(connection, {self.token_id(event) for event in events})
        owners = {tokens[name].traveller_at(event.event_time_ms) for event in events if (name := self.token_id(event)) in tokens}
        self.add_facts(connection, {owner: [correction_fact(correction)] for owner in owners}, now)
        return len(owners)

    def add_facts(self, connection: Connection, found: Mapping[str, Sequence[Fact]], now: int) -> Refolded:
        """Facts of some travellers that came by another way than taps."""
        return self.change(connection, {name: Change(facts=list(new)) for name, new in found.items()}, now)

    def accept_drift(self, connection: Connection, traveller_id: str, now: int) -> None:
        """Prices that changed though no fact explains it are meant: book them."""
        rows = travellers.get_travellers(connection, [traveller_id], {traveller_id: now})
        for row in rows.values():
            row.record.revision = self.refolder.revision
            row.dirty_since = row.dirty_reason = None
        self.refold(connection, rows, {traveller_id: Change()}, now, booked_for="drift")
        travellers.decide_drift(connection, traveller_id, now)

    def advance(self, connection: Connection, as_of: int, most: int = GROUP) -> int:
        """Let time pass for some travellers for whom something is due before `as_of`; how many there were."""
        due = travellers.list_due(connection, as_of, most)
        rows = travellers.get_travellers(connection, due, dict.fromkeys(due, as_of))
        self.refold(connection, rows, {traveller_id: Change() for traveller_id in rows}, as_of, booked_for="time")
        return len(rows)

    def retry(self, connection: Connection, traveller_ids: Iterable[str], now: int) -> int:
        """Fold again some travellers whose last fold failed; how many of them are priced now."""
        found = self.change(connection, {traveller_id: Change() for traveller_id in traveller_ids}, now, booked_for="retry")
        return len(found.folded)

    def change(self, connection: Connection, changes: Mapping[str, Change], now: int, booked_for: str = "") -> Refolded:
        """Add to travellers' records, refold them, and book the difference."""
        back_to = {name: _back_to(change, now) for name, change in changes.items()}
        rows = travellers.get_travellers(connection, changes.keys(), back_to)
        return self.refold(connection, rows, changes, now, booked_for)

    def refold(
        self,
        connection: Connection,
        rows: Mapping[str, Traveller],
        changes: Mapping[str, Change],
        now: int,
        booked_for: str = "",
        floors: Mapping[str, int] | None = None,
    ) -> Refolded:
        """Refold travellers whose rows are locked, book the difference, and complete rides without an exit where the tariff
        says how; what a ride was completed with before is replaced where the facts say otherwise now."""
        found = self.refolder.refold(connection, rows, changes, now, booked_for, floors)
        completing = {
            name: change
            for name, folded in found.folded.items()
            if (change := self.mender.changes(rows[name].record, folded, now)) is not None
        }
        if completing:
            found.add(self.refolder.refold(connection, {name: rows[name] for name in completing}, completing, now))
        self.refolder.close_windows(connection, [rows[name] for name in found.folded], now)
        after_commit(connection, lambda: self._count(found.charged))
        return found

    def _count(self, charged: int) -> None:
        self.charged += charged


class _Group:
    """Some taps on their way through one transaction.

    Locks are taken in one order, here as everywhere: devices (by receipt), then travellers, then accounts, each by id."""

    def __init__(
        self,
        application: Application,
        connection: Connection,
        taps: Sequence[ReceivedTap],
        now: int,
        *,
        released: bool,
        beside: Sequence[ReceivedTap],
    ) -> None:
        self.application = application
        self.tariff = application.tariff
        self.connection = connection
        self.taps = taps
        self.now = now
        self.released = released
        self.in_group = {tap.event.tap_id: tap.event for tap in (*beside, *taps)}
        self.answers: dict[FactId, TapAnswer] = {}
        self.rejected: list[tuple[TapEvent, Rejected]] = []
        self.changes: dict[str, Change] = defaultdict(Change)
        self.owners: dict[FactId, str] = {}
        self.tokens: dict[str, Token] = {}
        self.opened: set[str] = set()
        """Tokens that are known from now on."""
        self.rows: dict[str, Traveller] = {}
        self.corrections: Mapping[str, list[registry.Correction]] = {}

    def apply(self) -> dict[FactId, TapAnswer]:
        """Sort the taps by traveller, lock, refuse or take, refold, answer."""
        usable = self._usable()
        outcomes = [(tap, *self._spoken_of(tap.event)) for tap in usable if tap.event.kind is TapKind.OUTCOME]
        waiting = [
            (ReceivedTap(event, ""), *self._spoken_of(event))
            for event in receipts.find_waiting(self.connection, self.in_group.keys())
        ]
        for tap in usable:
            if tap.event.kind in _ACTIONS:
                self.owners[tap.event.tap_id] = self._token(tap.event).traveller_at(tap.event.event_time_ms)
        corrected = {tap.event.device_id for tap in usable if tap.is_corrected}
        self.corrections = registry.find_corrections(self.connection, corrected) if corrected else {}
        back_to = self._back_to([(spoken_of, owner) for _, spoken_of, owner in (*outcomes, *waiting)])
        self.rows = rows = travellers.get_travellers(self.connection, back_to.keys(), back_to)
        presented = self._with_records(usable)
        accounts = travellers.find_accounts(self.connection, {row.account_id for row in rows.values()} - {CASH})
        self._take_presented(presented, rows, accounts)
        self._take_outcomes(outcomes)
        receipts.release_quarantined(self.connection, self._take_waiting(waiting), self.now)
        for tap in usable:
            if tap.event.kind is TapKind.INSPECTION:
                self.answers[tap.event.tap_id] = TapAnswer(sequence=tap.event.sequence, result="ACCEPTED")
        changed = {name: rows[name] for name in rows if name in self.changes}
        found = self.application.refold(self.connection, changed, self.changes, self.now, floors=self._floors(accounts))
        self.answers.update(self._quarantine_rejected())
        self._answer_presented(presented, rows, accounts, found)
        self._look_for_clones(rows)
        return self.answers

    # ---- which can be used

    def _usable(self) -> list[ReceivedTap]:
        """The taps that can be used; the others are noted as rejected."""
        new = [tap for tap in self.taps if tap.set_aside is None]
        self.rejected += [(tap.event, tap.set_aside) for tap in self.taps if tap.set_aside is not None]
        self.tokens = self._find_tokens(new)
        found = []
        for tap in new:
            verdict = self._verdict(tap)
            if verdict is None:
                found.append(tap)
            else:
                self.rejected.append((tap.event, verdict))
        return found

    def _back_to(self, spoken_of: Iterable[tuple[TapEvent | None, str | None]]) -> dict[str, int]:
        """Whose records are needed, and up to which time: of the taps, as their clocks are corrected, and of those spoken of."""
        found: dict[str, int] = {}
        concerned = [(event, owner) for event, owner in spoken_of if event is not None and owner is not None]
        concerned += [(tap.event, self.owners[tap.event.tap_id]) for tap in self.taps if tap.event.tap_id in self.owners]
        for event, owner in concerned:
            at = event.event_time_ms
            for one in self.corrections.get(event.device_id, ()):
                at = min(at, one.begins, one.begins + one.shift_ms) if one.begins <= event.event_time_ms < one.ends else at
            found[owner] = min(at, found.get(owner, at))
        return found

    def _with_records(self, usable: Sequence[ReceivedTap]) -> list[ReceivedTap]:
        """The presentations among some taps whose travellers' records can be read; the others are noted as rejected."""
        found = []
        for tap in usable:
            owner = self.owners.get(tap.event.tap_id)
            if owner is not None and owner not in self.rows:
                self.rejected.append((tap.event, Rejected("unreadable_record", f"the record of traveller {owner}")))
            elif owner is not None:
                found.append(tap)
        return found

    def _verdict(self, tap: ReceivedTap) -> Rejected | None:
        event = tap.event
        wrong = check_time(event, self.now, however_old=self.released) or check_content(self.tariff, event)
        if wrong is not None:
            return wrong
        if event.kind is TapKind.OUTCOME:
            return None
        token_id = self.application.token_id(event)
        unknown = check_token(event, self.tokens.get(token_id), token_id)
        if unknown is not None and not (self.released and unknown.reason == "blocked_token"):
            return unknown
        return check_limits(event, tap.limits) if tap.limits is not None and not self.released else None

    def _find_tokens(self, taps: Sequence[ReceivedTap]) -> dict[str, Token]:
        """The tokens of some taps. A paper ticket sold for cash is known from its first usable tap on; a medium whose token
        is made with a new key is known by its token of before."""
        presented = [(self.application.token_id(tap.event), tap.event) for tap in taps if tap.event.token is not None]
        known = travellers.find_tokens(self.connection, {token_id for token_id, _ in presented})
        strange = [
            (token_id, event)
            for token_id, event in presented
            if token_id not in known
            and check_time(event, self.now, however_old=self.released) is None
            and check_content(self.tariff, event) is None
        ]
        tickets = {token_id for token_id, event in strange if event.medium == "cash"}
        if tickets:
            known.update(_open_tickets(self.connection, tickets))
        renamed = {token_id: event for token_id, event in strange if event.former_token is not None}
        if renamed:
            known.update(self._rename(renamed))
        self.opened = tickets | (renamed.keys() & known.keys())
        return known

    def _rename(self, strange: Mapping[str, TapEvent]) -> dict[str, Token]:
        """While the domain key changes, a tap names its token under the old key, too: the new one is the same person's."""
        former = {
            token_id: stored_token(self.application.server_key, event.former_token or b"") for token_id, event in strange.items()
        }
        known = travellers.find_tokens(self.connection, set(former.values()))
        found = {token_id: known[former[token_id]] for token_id in sorted(strange) if former[token_id] in known}
        new = [
            NewToken(token_id, token.traveller_id, token.account_id, strange[token_id].token, token.token_id, token.blocked_at)
            for token_id, token in found.items()
        ]
        travellers.add_tokens(self.connection, new)
        for token_id, token in found.items():
            for valid_from, traveller_id in token.links:
                travellers.add_link(self.connection, Link(token_id, valid_from, traveller_id, self.now, "token key"))
        return travellers.find_tokens(self.connection, found.keys())

    def _token(self, event: TapEvent) -> Token:
        return self.tokens[self.application.token_id(event)]

    # ---- what they do

    def _take_presented(
        self, presented: Sequence[ReceivedTap], rows: Mapping[str, Traveller], accounts: Mapping[str, Account]
    ) -> None:
        ran = registry.find_vehicles(
            self.connection, {tap.event.vehicle_id for tap in presented if tap.event.vehicle_id is not None}
        )
        for tap in presented:
            event, owner = tap.event, self.owners[tap.event.tap_id]
            change = self.changes[owner]
            fact = self._fact(tap, ran)
            change.facts += _corrections_of(fact, self.corrections.get(event.device_id, ()))
            refusal = self._refusal(event, rows[owner], accounts)
            if refusal is None and event.decision is not Decision.REFUSED_ALONE:
                change.facts.append(fact)
                if event.decision is Decision.ASKED_ONLINE and event.kind is not TapKind.EXIT and not self.released:
                    change.asking.add(fact.fact_id)
                continue
            change.refused.append(fact)
            self.answers[event.tap_id] = self._refused(event, refusal or event.reason or "refused by the terminal")

    def _refused(self, event: TapEvent, reason: str) -> TapAnswer:
        return TapAnswer(sequence=event.sequence, result="ACCEPTED", decision="refused", reason=reason)

    def _refusal(self, event: TapEvent, traveller: Traveller, accounts: Mapping[str, Account]) -> str | None:
        """Why a rider who asks online is not let in; None if he is. Nobody is kept from leaving."""
        if event.kind is TapKind.EXIT or event.decision is not Decision.ASKED_ONLINE or self.released:
            return None
        if is_blocked(self._token(event), event):
            return "blocked"
        account = accounts.get(traveller.account_id)
        if account is None or account.kind != "prepaid":
            return None
        version = self.tariff.version_at(event.event_time_ms)
        above = version.version.file.accounts.prepaid_above if version is not None else 0
        return "insufficient_balance" if account.balance <= above else None

    def _floors(self, accounts: Mapping[str, Account]) -> dict[str, int]:
        """What may be taken now from each prepaid account for whoever asks to be let in."""
        version = self.tariff.version_at(self.now)
        floor = version.version.file.accounts.prepaid_floor if version is not None else None
        if floor is None:
            return {}
        return {name: account.balance - floor for name, account in accounts.items() if account.kind == "prepaid"}

    def _fact(self, tap: ReceivedTap, ran: Mapping[str, list[tuple[int, str]]]) -> Tap:
        event = tap.event
        return Tap(
            event.tap_id,
            event.event_time_ms,
            event.device_id,
            event.epoch.hex(),
            event.sequence,
            _ACTIONS[event.kind],
            self.application.token_id(event),
            event.medium or "",
            self.tariff.default_category,
            event.stop_id,
            event.route_id,
            _operator(tap, ran),
            event.persons,
            None,
            event.vehicle_id,
        )

    # ---- OUTCOME records

    def _spoken_of(self, event: TapEvent) -> tuple[TapEvent | None, str | None]:
        """The tap that an OUTCOME record speaks of, and whose it is; None where it is not held or nobody's."""
        place = event.spoken_of
        spoken_of = self._find_tap(event, place) if place is not None else None
        if spoken_of is None or spoken_of.token is None:
            return None, None
        token_id = self.application.token_id(spoken_of)
        if token_id not in self.tokens:
            self.tokens.update(travellers.find_tokens(self.connection, [token_id]))
        token = self.tokens.get(token_id)
        return spoken_of, token.traveller_at(spoken_of.event_time_ms) if token is not None else None

    def _find_tap(self, event: TapEvent, place: TapPlace) -> TapEvent | None:
        spoken_of = tap_id(event.device_id, place.epoch.hex(), place.sequence)
        if spoken_of in self.in_group:
            return self.in_group[spoken_of]
        return receipts.find_tap(self.connection, event.device_id, place.epoch.hex(), place.sequence)

    def _take_outcomes(self, outcomes: Sequence[tuple[ReceivedTap, TapEvent | None, str | None]]) -> None:
        for tap, spoken_of, owner in outcomes:
            verdict = self._take_outcome(tap.event, spoken_of, owner)
            if verdict is not None:
                self.rejected.append((tap.event, verdict))
            else:
                self.answers[tap.event.tap_id] = TapAnswer(sequence=tap.event.sequence, result="ACCEPTED")

    def _take_waiting(self, waiting: Sequence[tuple[ReceivedTap, TapEvent | None, str | None]]) -> list[TapEvent]:
        """Records in quarantine whose tap has come in now: those that could be used."""
        return [tap.event for tap, spoken_of, owner in waiting if self._take_outcome(tap.event, spoken_of, owner) is None]

    def _take_outcome(self, event: TapEvent, spoken_of: TapEvent | None, owner: str | None) -> Rejected | None:
        """An OUTCOME record acts on the traveller of the tap it speaks of; before that tap is used it waits for it."""
        spoken_of_id = event.spoken_of_id
        if spoken_of is None:
            return Rejected("unknown_tap", f"the record speaks of {spoken_of_id}, which is not held", spoken_of_id)
        if spoken_of.kind not in _ACTIONS:
            return None
        if owner is None or not self._is_used(spoken_of.tap_id, owner):
            return Rejected("unused_tap", f"the record speaks of {spoken_of_id}, which is not used", spoken_of_id)
        let_in = event.outcome is Outcome.TIMED_OUT and event.decision is Decision.ADMITTED_ALONE
        if let_in and is_blocked(self._token(spoken_of), spoken_of) and not self.released:
            return blocked(self._token(spoken_of), spoken_of)
        change = self.changes[owner]
        if let_in:
            change.released.add(spoken_of.tap_id)
            change.asking.discard(spoken_of.tap_id)
        else:
            change.facts.append(_cancellation(event, spoken_of))
        return None

    def _is_used(self, fact_id: FactId, owner: str) -> bool:
        """Whether a tap stands in a traveller's record, or comes into it now."""
        change = self.changes.get(owner, Change())
        record = self.rows[owner].record if owner in self.rows else Record()
        return any(fact.fact_id == fact_id for fact in (*change.facts, *change.refused, *record.facts, *record.refused))

    def _look_for_clones(self, rows: Mapping[str, Traveller]) -> None:
        """Raise an alarm where a token was in two places too soon; once for a token and pair of places."""
        alarms = []
        for owner, change in self.changes.items():
            recent = [fact for fact in rows[owner].record.facts[-RECENT_TAPS:] if isinstance(fact, Tap)]
            for tap in (fact for fact in change.facts if isinstance(fact, Tap)):
                pair = impossible_pair(self.tariff.network, tap, recent)
                if pair is not None:
                    other, km = pair
                    places = " and ".join(sorted((_place_of(tap), _place_of(other))))
                    detail = f"token {tap.token_id} at {places}, {km:.1f} km apart, within {abs(tap.at - other.at) // 1000} s"
                    alarms.append(receipts.Alarm(self.now, "two_places", tap.device_id, detail))
        receipts.add_alarms(self.connection, alarms)

    # ---- answers

    def _quarantine_rejected(self) -> dict[FactId, TapAnswer]:
        """Set aside what cannot be used; what comes out of the quarantine and still cannot, stays there as it is."""
        if self.released:
            return {event.tap_id: _quarantined(event.sequence, verdict) for event, verdict in self.rejected}
        places: list[tuple[tuple[str, str, int], Rejected, int]] = []
        for event, verdict in self.rejected:
            at = self.now if check_time(event, self.now) is not None else event.event_time_ms
            places.append(((event.device_id, event.epoch.hex(), event.sequence), verdict, at))
        return _set_aside(self.connection, places, self.tariff, self.now)

    def _answer_presented(
        self,
        presented: Sequence[ReceivedTap],
        rows: Mapping[str, Traveller],
        accounts: Mapping[str, Account],
        found: Refolded,
    ) -> None:
        for tap in presented:
            event, owner = tap.event, self.owners[tap.event.tap_id]
            if event.tap_id in self.answers:
                continue
            if event.tap_id in self.changes[owner].turned_away:
                self.answers[event.tap_id] = self._refused(event, "insufficient_balance")
                continue
            account = accounts.get(rows[owner].account_id)
            balance = account.balance + found.balances.get(account.account_id, 0) if account is not None else None
            answer = self._answer(event, found.folded.get(owner), rows[owner])
            if account is not None and account.kind == "prepaid":
                answer = msgspec.structs.replace(answer, balance=balance)
            elif account is not None and balance is not None:
                answer = msgspec.structs.replace(answer, balance=balance, post_paid_total=-balance)
            self.answers[event.tap_id] = answer

    def _answer(self, event: TapEvent, folded: Folded | None, traveller: Traveller) -> TapAnswer:
        """The answer to an admitted tap but for the balance: its leg so far, its caps, what an exit would still cost."""
        sequence = event.sequence
        if folded is None:
            reason = "held" if traveller.dirty_reason == DRIFT else None
            return TapAnswer(sequence=sequence, result="ACCEPTED", decision="admitted", reason=reason, provisional=True)
        leg = _leg_of(folded, event.tap_id)
        if leg is None:
            reason = folded.ignored.get(event.tap_id)
            return TapAnswer(sequence=sequence, result="ACCEPTED", decision="admitted", reason=reason)
        lines = [line for line in folded.lines if line.leg_id == leg.leg_id]
        return TapAnswer(
            sequence=sequence,
            result="ACCEPTED",
            reason=leg.reason or None,
            decision="admitted",
            fare=None if leg.status == "unknown" else sum(line.amount for line in lines),
            lines=tuple(AnswerLine(line.kind, line.rule_id, line.amount) for line in lines),
            caps=self._caps(folded, leg),
            exit_fare=dearest_exit(self.tariff, leg) if leg.status == "open" else None,
            provisional=leg.status == "open",
        )

    def _caps(self, folded: Folded, leg: Leg) -> tuple[CapState, ...]:
        version = self.tariff.versions.get(leg.version_id)
        if version is None or leg.network_id is None:
            return ()
        terms = version.terms(leg.network_id, leg.route_id, leg.media, leg.rider_category)
        caps = terms.caps if terms else ()
        return tuple(CapState(cap.rule_id, spent(folded.state, cap, leg), cap.amount) for cap in caps)


def _back_to(change: Change, now: int) -> int:
    """Up to which time a change may concern what stands in a record; 0: anything."""
    facts = [*change.facts, *change.refused]
    if change.withdrawn or change.released or any(isinstance(fact, Cancellation) for fact in facts):
        return 0
    return min(map(windows.begins_to_act, facts), default=now)


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


def _set_aside(
    connection: Connection, places: Sequence[tuple[tuple[str, str, int], Rejected, int]], tariff: CompiledTariff, now: int
) -> dict[FactId, TapAnswer]:
    if not places:
        return {}
    closed_through = books.last_closed(connection)
    answers, rows = {}, []
    for place, verdict, at in places:
        service_date = _service_date(tariff, at)
        on = ledger.accounting_date(service_date, closed_through)
        rows.append(QuarantinedTap(*place, now, verdict.reason, verdict.detail, service_date, on, verdict.waits_for))
        answers[tap_id(*place)] = _quarantined(place[2], verdict)
    receipts.add_quarantined(connection, rows)
    return answers


def _quarantined(sequence: int, verdict: Rejected) -> TapAnswer:
    return TapAnswer(sequence=sequence, result="QUARANTINED", reason=verdict.reason)


def _place_of(tap: Tap) -> str:
    return tap.stop_id or f"route {tap.route_id}"


def _operator(tap: ReceivedTap, ran: Mapping[str, list[tuple[int, str]]]) -> str:
    """Who ran the vehicle at the tap's time; at a station, whose device it is."""
    event = tap.event
    by_then = [operator for since, operator in ran.get(event.vehicle_id or "", ()) if since <= event.event_time_ms]
    return by_then[-1] if by_then else tap.device_operator_id


def _corrections_of(fact: Tap, corrections: Iterable[registry.Correction]) -> list[Fact]:
    """The corrections of the device's clock that concern a tap: they go into the record beside it."""
    return [correction_fact(one) for one in corrections if one.begins <= fact.at < one.ends]


def correction_fact(correction: registry.Correction) -> facts.Correction:
    """A correction as the fold knows it."""
    return facts.Correction(
        f"correction/{correction.correction_id}",
        correction.made_at,
        correction.device_id,
        "correction",
        0,
        correction.begins,
        correction.ends,
        correction.shift_ms,
    )


def _open_tickets(connection: Connection, token_ids: Iterable[str]) -> dict[str, Token]:
    """Paper tickets, each a traveller of its own."""
    tokens = {token_id: Token(token_id, f"ticket:{token_id}", CASH, None) for token_id in sorted(token_ids)}
    travellers.ensure_cash(connection)
    travellers.add_tokens(connection, [NewToken(t.token_id, t.traveller_id, CASH) for t in tokens.values()])
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


def _leg_of(folded: Folded, fact_id: str) -> Leg | None:
    """The leg that a tap began, or the one whose lines it caused by ending it."""
    if fact_id in folded.legs:
        return folded.legs[fact_id]
    ended = [line.leg_id for line in folded.lines if line.cause == fact_id and line.kind in ("list_fare", "hold")]
    return folded.legs.get(ended[0]) if ended else None
