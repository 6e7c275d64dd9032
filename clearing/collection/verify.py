"""Whether collection's rows still say what was written: each against its own hash, states against events, and both against the
books."""

from __future__ import annotations

from sqlalchemy import Connection

from clearing.collection import store
from clearing.collection.reconcile import book_breaks, snapshot
from fare_engine.store.verify import Finding


def check(connection: Connection) -> list[Finding]:
    """What of collection was changed, or is booked otherwise than it was told. Empty: nothing."""
    found = [Finding(table, key, "its hash is not that of what it says") for table, key in store.changed_rows(connection)]
    ours = snapshot(connection)
    for name, done in ours.folded().items():
        if done.state != ours.charges[name].state:
            found.append(Finding("charges", name, f"is {ours.charges[name].state}, its events say {done.state}"))
    return found + [
        Finding("postings", broken.subject, f"{broken.kind}: {broken.ours} is booked") for broken in book_breaks(ours)
    ]
