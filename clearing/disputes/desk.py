"""Disputes: opened once for a claim, held until they are decided, decided once.

Each is one transaction: what is claimed is checked against the published statements while nobody else disputes anything of their
date, then row, evidence and postings are written together. Published statements never change: money moves under the first open
date."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgspec
from sqlalchemy import Connection

from clearing.audit import Difference
from clearing.close import Rules
from clearing.disputes import claims, evidence, holdings, store
from clearing.disputes.claims import AUDITOR, CLEARING_HOUSE, MOST_TEXT, Claim, Dispute
from clearing.disputes.store import Evidence
from fare_engine import ledger
from fare_engine.errors import DisputeError, NotFoundError
from fare_engine.ledger import Code, Posting
from fare_engine.store import books


def open_dispute(connection: Connection, rules: Rules, claim: Claim, now: int, known: Iterable[Evidence] = ()) -> Dispute:
    """Hold what somebody disputes; the same claim again is the same dispute. `known` goes with the evidence. NotFoundError for
    what there is not, DisputeError for what is not left."""
    claim = msgspec.structs.replace(claim, text=_plain(claim.text))
    parties = rules.tariff.network.parties
    if claim.claimant not in parties and claim.claimant not in (AUDITOR, CLEARING_HOUSE):
        raise NotFoundError(f"no party {claim.claimant!r}")
    statements = store.statements_of(connection, claim.accounting_date, alone=True)
    held_before = store.find(connection, claims.dispute_id(claim))
    if held_before is not None:
        return held_before
    rows = {party: holdings.read_rows(content) for party, content in statements.items()}
    booked = store.lines_of_legs(connection, claim.leg_ids, claim.accounting_date)
    found = holdings.holdings(claim, rows, booked)
    taken = store.taken_under(connection, claim.accounting_date, {holding.party_id for holding in found})
    items = claims.hold(claim, found, holdings.amounts(rows), taken)
    told = [*known, *evidence.gather(connection, rules, claim, items, statements, booked)]
    dispute = Dispute(
        dispute_id=claims.dispute_id(claim),
        claimant=claim.claimant,
        accounting_date=claim.accounting_date,
        party_id=claim.party_id,
        line=claim.line,
        amount=sum(item.amount for item in items),
        text=claim.text,
        opened_at=now,
        held_under=_book(connection, Code.HELD, claims.dispute_id(claim), claim.accounting_date, claims.held_postings(items)),
        evidence_sha256=store.digest(told),
    )
    store.add(connection, dispute, items, told)
    return dispute


def can_be_claimed(connection: Connection, claim: Claim) -> bool:
    """Whether anybody else was given what somebody would dispute."""
    statements = store.statements_of(connection, claim.accounting_date)
    rows = {party: holdings.read_rows(content) for party, content in statements.items()}
    return bool(holdings.holdings(claim, rows, store.lines_of_legs(connection, claim.leg_ids, claim.accounting_date)))


def decide(
    connection: Connection,
    rules: Rules,
    name: str,
    granted: int | None,
    decided_by: str,
    reason: str,
    now: int,
    granted_to: str | None = None,
) -> Dispute:
    """Decide a dispute, once: so much (None: all) goes to the claimant or `granted_to`, the rest back to who was given it."""
    dispute = store.find(connection, name, alone=True)
    if dispute is None:
        raise NotFoundError(f"no dispute {name}")
    if not _plain(decided_by) or not _plain(reason):
        raise DisputeError("no_reason", "a decision names who decides, and why")
    state, items = claims.decide(dispute, store.items_of(connection, name), dispute.amount if granted is None else granted)
    receiver = _receiver(rules, dispute, granted_to, {item.party_id for item in items}) if state != "declined" else None
    postings = claims.decided_postings(items, receiver)
    decided = msgspec.structs.replace(
        dispute,
        state=state,
        granted=sum(item.taken for item in items),
        granted_to=receiver,
        decided_at=now,
        decided_by=_plain(decided_by),
        decided_under=_book(connection, Code.DECIDED, name, dispute.accounting_date, postings),
        reason=_plain(reason),
    )
    store.save_decided(connection, decided, items)
    return decided


def hold_legs(connection: Connection, rules: Rules, differences: Iterable[Difference], now: int) -> list[Dispute]:
    """Hold the legs on which the auditor disagrees, one dispute for each published statement that they stand in. A leg that the
    auditor disputed once is not disputed again, also after its decision."""
    concerned = {difference.leg_id: difference for difference in differences}
    before = store.legs_disputed_by(connection, AUDITOR)
    opened = []
    for on, leg_ids in sorted(store.dates_of_legs(connection, concerned).items()):
        new = {leg_id for leg_id in leg_ids if (on, leg_id) not in before}
        holders: dict[str, set[str]] = {}
        for line in store.lines_of_legs(connection, new, on):
            holders.setdefault(line.operator_id, set()).add(line.leg_id)
        for party, legs in sorted(holders.items()):
            told = [_difference(concerned[leg_id]) for leg_id in sorted(legs)]
            claim = Claim(
                claimant=AUDITOR,
                accounting_date=on,
                party_id=party,
                leg_ids=tuple(sorted(legs)),
                text="the auditor prices these legs otherwise",
            )
            try:
                opened.append(open_dispute(connection, rules, claim, now, told))
            except DisputeError:  # nothing was given by these legs, or all of it is held already
                continue
    return opened


def _difference(found: Difference) -> Evidence:
    told = {"what": found.what, "audited": str(found.audited), "booked": str(found.booked)}
    return Evidence("audit", found.leg_id, told)


def _receiver(rules: Rules, dispute: Dispute, granted_to: str | None, holders: Collection[str]) -> str:
    named = granted_to or dispute.claimant
    if named not in rules.tariff.network.parties:
        raise DisputeError("no_receiver", f"{named!r} is no party: say who gets what {dispute.claimant} disputed")
    if named in holders:
        raise DisputeError("no_receiver", f"{named} was given it: decline instead")
    return named


def _book(connection: Connection, code: Code, name: str, on: str, postings: Iterable[Posting]) -> str:
    """Move money for a date under the first open one, which is returned."""
    booking = books.Booking(books.last_closed(connection))
    under = ledger.accounting_date(on, booking.closed_through)
    for number, posting in enumerate(postings):
        booking.add_posting(claims.transaction_id(code, name), number, code, posting, on, under)
    booking.write(connection)
    return under


def _plain(text: str) -> str:
    """On one line, of bounded length, without what no database takes."""
    return " ".join(text.replace("\x00", "").split())[:MOST_TEXT]
