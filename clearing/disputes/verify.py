"""Whether disputes still say what was written: each row against its own hash, evidence against its dispute's, and the money that
they hold and gave against the books."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection

from clearing.disputes import claims, store
from clearing.disputes.claims import Dispute
from fare_engine.ledger import Code, Posting
from fare_engine.store.verify import Finding


def check(connection: Connection) -> list[Finding]:
    """What of disputes was changed, or is booked otherwise than it was decided. Empty: nothing."""
    found = [Finding(table, key, "its hash is not that of what it says") for table, key in store.changed_rows(connection)]
    booked = store.booked(connection)
    for dispute in store.list_disputes(connection):
        found += _check(connection, dispute, booked)
    return found + [Finding("postings", name, "no dispute makes this transaction") for name in sorted(booked)]


def _check(connection: Connection, dispute: Dispute, booked: dict[str, list[tuple[str, str, str, int]]]) -> Iterator[Finding]:
    name = dispute.dispute_id
    items = store.items_of(connection, name)
    if sum(item.amount for item in items) != dispute.amount:
        yield Finding("dispute_items", name, f"do not sum to the {dispute.amount} that are disputed")
    if store.evidence_digest(connection, name) != dispute.evidence_sha256:
        yield Finding("dispute_evidence", name, "is not what was known when the dispute was opened")
    if booked.pop(claims.transaction_id(Code.HELD, name), []) != _rows(dispute.held_under, claims.held_postings(items)):
        yield Finding("postings", name, "do not hold what is disputed")
    decided = claims.decided_postings(items, dispute.granted_to) if dispute.state != "open" else []
    if booked.pop(claims.transaction_id(Code.DECIDED, name), []) != _rows(dispute.decided_under or "", decided):
        yield Finding("postings", name, "do not give what was decided")


def _rows(under: str, postings: list[Posting]) -> list[tuple[str, str, str, int]]:
    return [(under, posting.debit, posting.credit, posting.amount) for posting in postings]
