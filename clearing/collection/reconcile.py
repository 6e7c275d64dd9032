"""What the provider says it did against what our books say, and our books against themselves: every difference has a name, an
age and a reason. Nothing is changed here; what is merely late is put right by `motthe collect`, which asks again.

The comparison is a function of a report and a snapshot of what is kept (pure); `snapshot` and `deny_breaks` read the store."""

from __future__ import annotations

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec
from sqlalchemy import Connection

from clearing.collection import store
from clearing.collection.booking import CODES, captured_id, charged_back_id, refunded_id, won_back_id
from clearing.collection.charges import TAKES, UNDECIDED, Charge, Event, Folded, Refund, fold
from clearing.collection.collector import Collector, is_debts_own, tokens_of
from clearing.collection.store import DEBT, PAID, WriteOff
from fare_engine.errors import Fault, InputError
from fare_engine.store import travellers

COLUMNS = ("kind", "charge_id", "reference", "amount", "at")
MOVED = ("captured", "refunded", "charged_back", "won_back")
MOST_ROWS = 5_000_000
HOUR_MS, DAY_MS = 3_600_000, 86_400_000

REASONS = {
    "missing_in_our_feed": "settled at the provider, but nothing has told us",
    "missing_at_provider": "booked here, but not settled at the provider",
    "unknown_charge": "the provider speaks of a charge that is not written down here",
    "amount_differs": "settled with another amount than is booked",
    "charged_twice": "more than one charge of an account was captured for one date",
    "settled_twice": "the provider settled one thing twice",
    "pending_too_long": "the provider does not decide",
    "unanswered": "asked, and never answered",
    "refund_unanswered": "a refund was asked for and never answered",
    "refund_before_capture": "refunded before it was captured: nothing is booked",
    "chargeback_before_capture": "charged back before it was captured: nothing is booked",
    "refund_twice": "a second refund of what was given back already: nothing is booked",
    "refund_above_capture": "a refund of more than was captured: nothing is booked",
    "refund_after_chargeback": "a refund of what was charged back before: nothing is booked",
    "refund_not_asked": "a refund that nobody here asked for: nothing is booked",
    "refund_otherwise": "a refund of another amount than was asked: nothing is booked",
    "chargeback_twice": "a second chargeback of what was taken back already: nothing is booked",
    "chargeback_after_refund": "a chargeback of what was refunded before: nothing is booked",
    "chargeback_above_capture": "a chargeback of more than was captured: nothing is booked",
    "won_back_before_chargeback": "a chargeback was won back that nothing has told us of: nothing is booked",
    "won_back_twice": "one chargeback was won back twice, with other amounts: the first is booked",
    "won_back_above_chargeback": "more was won back than the chargeback took: nothing is booked",
    "refund_above_line": "more is given back of a ride than it costs by now",
    "captured_otherwise": "captured with another amount than was asked, or twice",
    "declined_and_captured": "declined, and captured all the same: what was captured is booked",
    "state_differs": "its state is not what its events say",
    "money_without_value": "the provider took money that is not booked",
    "value_without_money": "booked, though no event of the provider tells of the money",
    "denied_though_paid": "its tokens are on the deny list for a debt that is paid",
    "rides_though_denied": "a debt denies the account, and a token of it is good",
    "unblocked_though_lost": "a payment took a token off the deny list that something else had put there",
}
"""Kind of break → what it means; docs/collection.md says who looks after it."""


class Settled(msgspec.Struct, frozen=True):
    """A row of the provider's report."""

    kind: str
    charge_id: str
    reference: str
    amount: int
    at: int

    @property
    def taken(self) -> int:
        """What it adds to what the provider holds."""
        return self.amount if self.kind in TAKES else -self.amount


class Break(msgspec.Struct, frozen=True, order=True):
    """A difference: its kind, what it is about, both amounts, and since when (ms)."""

    kind: str
    subject: str
    theirs: int = 0
    ours: int = 0
    since: int = 0

    def text(self, now: int) -> str:
        """The break in one line, with its age."""
        hours = max(now - self.since, 0) // HOUR_MS
        age = f"{hours // 24} d {hours % 24} h"
        return f"{self.kind} {self.subject}: theirs {self.theirs}, ours {self.ours}, age {age}: {REASONS[self.kind]}"


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of collection, as of one instant."""

    charges: Mapping[str, Charge]
    events: Mapping[str, Sequence[Event]]
    refunds: Mapping[str, Refund]
    write_offs: Sequence[WriteOff]
    postings: Mapping[str, Sequence[tuple[str, str, str, int]]]
    """transaction → (code, debit, credit, amount)."""
    paid: Mapping[str, int]
    """What each leg of which something is given back costs by now."""

    def folded(self) -> dict[str, Folded]:
        """Each charge as its events leave it."""
        of_charge: dict[str, dict[str, Refund]] = defaultdict(dict)
        for refund in self.refunds.values():
            if refund.charge_id is not None:
                of_charge[refund.charge_id][refund.refund_id] = refund
        return {name: fold(charge, of_charge[name], self.events.get(name, ())) for name, charge in self.charges.items()}


def snapshot(connection: Connection) -> Snapshot:
    """What the store keeps of collection."""
    refunds = store.list_refunds(connection)
    return Snapshot(
        charges={charge.charge_id: charge for charge in store.list_charges(connection)},
        events=store.list_events(connection),
        refunds=refunds,
        write_offs=store.list_write_offs(connection),
        postings=store.collected_postings(connection, [code.value for code in CODES]),
        paid=store.paid_for_legs(connection, sorted({refund.leg_id for refund in refunds.values()})),
    )


def read_report(text: str, name: str) -> list[Settled]:
    """A provider's settlement report. InputError names every row that cannot be read."""
    rows = csv.reader(io.StringIO(text))
    if tuple(next(rows, ())) != COLUMNS:
        raise InputError([Fault(name, text[:60], f"its columns are not {','.join(COLUMNS)}")])
    found, faults = [], []
    for number, row in enumerate(rows, start=2):
        if number > MOST_ROWS:
            raise InputError([Fault(name, number, "has too many rows")])
        try:
            kind, charge_id, reference, amount, at = row
            settled = Settled(kind, charge_id, reference, int(amount), int(at))
        except ValueError as error:
            faults.append(Fault(f"{name}:{number}", ",".join(row)[:100], str(error)))
            continue
        if kind not in MOVED or settled.amount <= 0:
            faults.append(Fault(f"{name}:{number}", ",".join(row)[:100], f"no {', '.join(MOVED)} of a positive amount"))
        found.append(settled)
    if faults:
        raise InputError(faults)
    return found


# ---- the provider's report against ours


def compare(report: Iterable[Settled], ours: Snapshot, now: int, pending_hours: int) -> list[Break]:
    """Where a report and our books differ."""
    theirs: dict[tuple[str, str, str], list[Settled]] = defaultdict(list)
    for row in report:
        theirs[row.kind, row.charge_id, row.reference].append(row)
    folded = ours.folded()
    found = [one for rows in theirs.values() for one in _theirs(rows, folded)]
    for name, done in folded.items():
        charge = ours.charges[name]
        if charge.purpose == "till":
            continue
        for effect in done.effects:
            if (effect.kind, name, effect.reference) not in theirs:
                since = next(e.received_at for e in ours.events[name] if (e.kind, e.reference) == (effect.kind, effect.reference))
                found.append(Break("missing_at_provider", f"{effect.kind} {name}", 0, effect.amount, since))
    return sorted([*found, *own_breaks(ours, now, pending_hours)])


def _theirs(rows: Sequence[Settled], folded: Mapping[str, Folded]) -> Iterator[Break]:
    """What is wrong with one thing that the provider settled; what our own events tell of it already is not said twice."""
    first = rows[0]
    subject = f"{first.kind} {first.charge_id}" + (f" {first.reference}" if first.reference else "")
    if len(rows) > 1:
        yield Break("settled_twice", subject, sum(row.amount for row in rows), first.amount, rows[-1].at)
    done = folded.get(first.charge_id)
    if done is None:
        yield Break("unknown_charge", subject, first.amount, 0, first.at)
        return
    effect = next((e for e in done.effects if (e.kind, e.reference) == (first.kind, first.reference)), None)
    if effect is not None:
        if effect.amount != first.amount:
            yield Break("amount_differs", subject, first.amount, effect.amount, first.at)
    elif not any((m.event.kind, m.event.reference) == (first.kind, first.reference) for m in done.misfits):
        yield Break("missing_in_our_feed", subject, first.amount, 0, first.at)


# ---- our books against themselves


def own_breaks(ours: Snapshot, now: int, pending_hours: int) -> list[Break]:
    """What does not hold in our own books, and what the provider has not said for too long."""
    folded = ours.folded()
    found = [*_not_decided(ours, now - pending_hours * HOUR_MS), *_charged_twice(ours), *_given_too_much(ours)]
    for name, done in folded.items():
        charge = ours.charges[name]
        if done.state != charge.state:
            found.append(Break("state_differs", name, 0, charge.amount, charge.made_at))
        for misfit in done.misfits:
            subject = f"{name} {misfit.event.reference}".rstrip()
            found.append(Break(misfit.why, subject, misfit.event.amount, 0, misfit.event.received_at))
    for name, events in ours.events.items():
        if name not in ours.charges:
            found += [Break("unknown_charge", f"{event.kind} {name}", event.amount, 0, event.received_at) for event in events]
    return [*found, *book_breaks(ours)]


def _not_decided(ours: Snapshot, asked_before: int) -> Iterator[Break]:
    for charge in ours.charges.values():
        if charge.state in UNDECIDED and charge.made_at <= asked_before:
            kind = "pending_too_long" if charge.state == "pending" else "unanswered"
            yield Break(kind, charge.charge_id, 0, charge.amount, charge.made_at)
    for refund in ours.refunds.values():
        if refund.state == "asked" and refund.made_at <= asked_before:
            yield Break("refund_unanswered", refund.refund_id, 0, refund.amount, refund.made_at)


def _charged_twice(ours: Snapshot) -> Iterator[Break]:
    by_date: dict[tuple[str, str], list[Charge]] = defaultdict(list)
    for charge in ours.charges.values():
        if charge.purpose == "fares" and charge.state == "captured":
            by_date[charge.account_id, charge.service_date].append(charge)
    for (account_id, on), charges in by_date.items():
        if len(charges) > 1:
            taken, last = sum(charge.amount for charge in charges), max(charge.made_at for charge in charges)
            yield Break("charged_twice", f"{account_id} {on}", taken, min(charge.amount for charge in charges), last)


def _given_too_much(ours: Snapshot) -> Iterator[Break]:
    """Refunds of rides that turned out to be cheaper, or none, after something was given back of them."""
    given: dict[str, list[Refund]] = defaultdict(list)
    for refund in ours.refunds.values():
        if refund.state != "failed":
            given[refund.leg_id].append(refund)
    for leg_id, refunds in given.items():
        total, paid = sum(refund.amount for refund in refunds), ours.paid.get(leg_id, 0)
        if total > paid:
            yield Break("refund_above_line", leg_id, total, paid, max(refund.made_at for refund in refunds))


def book_breaks(ours: Snapshot) -> list[Break]:
    """Money that is told of and not booked, or booked and not told of."""
    wanted = _wanted(ours)
    found = []
    for transaction_id, (subject, moved, since) in wanted.items():
        booked = _moved(ours.postings.get(transaction_id, ()))
        if booked != moved:
            kind = "money_without_value" if booked.size < moved.size else "value_without_money"
            found.append(Break(kind, subject, moved.size, booked.size, since))
    for transaction_id, rows in ours.postings.items():
        booked = _moved(rows)
        if transaction_id not in wanted and booked.size:
            found.append(Break("value_without_money", transaction_id, 0, booked.size))
    return found


class _Moved(msgspec.Struct, frozen=True):
    """What a transaction adds to what holders of money and bearers of losses owe."""

    held: int = 0
    lost: int = 0

    @property
    def size(self) -> int:
        """The larger of both, for people to read."""
        return max(abs(self.held), abs(self.lost))


def _wanted(ours: Snapshot) -> dict[str, tuple[str, _Moved, int]]:
    """Transaction → what it is about, what it moves, and since when."""
    found: dict[str, tuple[str, _Moved, int]] = {}
    recovered: Counter[str] = Counter()
    given_up: Counter[str] = Counter()
    for loss in ours.write_offs:
        given_up[loss.transaction_id] += loss.amount
        recovered[loss.recovered_by or ""] += loss.amount
    for name, done in ours.folded().items():
        charge = ours.charges[name]
        for effect in done.effects:
            if effect.kind == "captured":
                moved, transaction_id = _Moved(effect.amount, -recovered[name]), captured_id(charge)
            elif effect.kind == "won_back":
                transaction_id = won_back_id(charge, effect.reference)
                moved = _Moved(effect.amount, given_up.pop(transaction_id, 0))
            elif effect.kind == "charged_back":
                moved, transaction_id = _Moved(-effect.amount), charged_back_id(charge, effect.reference)
            else:
                moved = _Moved(-effect.amount, effect.amount)
                transaction_id = refunded_id(ours.refunds[effect.reference])
            found[transaction_id] = (f"{effect.kind} {name}", moved, charge.made_at)
    for refund in ours.refunds.values():
        if refund.state == "credited":
            found[refunded_id(refund)] = (f"credited {refund.refund_id}", _Moved(0, refund.amount), refund.made_at)
    return found | {name: (f"written_off {name}", _Moved(0, amount), 0) for name, amount in given_up.items()}


def _moved(rows: Iterable[tuple[str, str, str, int]]) -> _Moved:
    held = lost = 0
    for _, debit, credit, amount in rows:
        held += amount * (debit.startswith("collector:") - credit.startswith("collector:"))
        lost += amount * (debit.startswith("losses:") - credit.startswith("losses:"))
    return _Moved(held, lost)


# ---- the deny list


def deny_breaks(collector: Collector, connection: Connection) -> list[Break]:
    """Tokens that are denied though nothing is owed, good though much is, or good though they were lost."""
    found = []
    blocks = defaultdict(list)
    for block in store.blocks_of(connection):
        blocks[block.account_id].append(block)
    names = {*blocks, *store.list_blamed(connection)}
    for account in travellers.find_accounts(connection, names).values():
        name = account.account_id
        if not collector.standing_of(connection, account).denied:
            own = [block for block in blocks[name] if is_debts_own(connection, block)]
            found += [Break("denied_though_paid", block.token_id, 0, account.balance, block.blocked_at) for block in own]
            continue
        good = [token for token, at in store.blocked_tokens(connection, tokens_of(connection, name)).items() if at is None]
        found += [Break("rides_though_denied", token, 0, account.balance) for token in sorted(good)]
    for token_id in store.tokens_ever_blocked(connection):
        terminal_token = travellers.find_terminal_token(connection, token_id)
        told = store.list_denials(connection, terminal_token) if terminal_token is not None else []
        if _forgets(told) and store.blocked_tokens(connection, [token_id])[token_id] is None:
            found.append(Break("unblocked_though_lost", token_id))
    return found


def _forgets(told: Sequence[tuple[bool, str]]) -> bool:
    """Whether what a debt did not put on the list was last taken off it by a payment."""
    others, last = False, (False, "")
    for added, reason in told:
        if reason != DEBT and not (not added and reason == PAID):
            others = added
        last = (added, reason)
    return others and last == (False, PAID)
