"""What happens without a tap: time passes, failed folds are tried again, taps that waited become usable.

Each job takes up a bounded part in one transaction and says how much it did, so that it can run beside the taps, in their
process or in one of its own; two that run at once wait for each other's rows and find nothing left to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlalchemy import Connection

from fare_engine.application import Application, ReceivedTap
from fare_engine.publishing import confirm_if_old
from fare_engine.refold import Change
from fare_engine.store import receipts, registry, travellers
from fare_engine.store.database import Database
from fare_engine.store.travellers import NewToken
from fare_engine.tap_format import TapEvent
from fare_engine.verdicts import NETWORK

PART = 50
"""How many travellers or taps a turn takes up: a live tap waits no longer than this takes."""

Job = Callable[[Connection, int], int]


def jobs_of(application: Application) -> tuple[Job, ...]:
    """The jobs of every turn; each gives how much it did."""
    return (
        lambda connection, now: application.advance(connection, now, PART),
        lambda connection, now: application.retry_dirty(connection, now, PART),
        confirm_if_old,
    )


def run_turn(database: Database, application: Application, now: int) -> int:
    """Each job once; how much was done."""
    return sum(database.transact(lambda connection, job=job: job(connection, now)) for job in jobs_of(application))  # type: ignore[misc]


def use_what_waits(database: Database, application: Application, now: int) -> tuple[int, int]:
    """After the network or tariff changed: use taps that waited for it (how many), and price again rides that had no price
    (of how many travellers)."""
    used = database.transact(lambda connection: release(connection, application, [NETWORK], now))
    unpriced = database.transact(travellers.list_unpriced)
    for start in range(0, len(unpriced), PART):
        part = {traveller_id: Change() for traveller_id in unpriced[start : start + PART]}
        database.transact(lambda connection, part=part: application.change(connection, part, now, booked_for="tariff"))  # type: ignore[misc]
    return used, len(unpriced)


def register(connection: Connection, application: Application, tokens: Sequence[NewToken], now: int) -> int:
    """Tokens are known from now on, and taps that were made with them before are used; how many. To be run `alone`."""
    travellers.add_tokens(connection, tokens)
    return release(connection, application, [f"token:{token.token_id}" for token in tokens], now)


def release(connection: Connection, application: Application, awaited: Sequence[str], now: int) -> int:
    """Taps in quarantine that wait for something that is there now; how many could be used."""
    return release_events(connection, application, receipts.find_waiting(connection, awaited), now)


def release_events(connection: Connection, application: Application, events: Sequence[TapEvent], now: int) -> int:
    """Take taps out of the quarantine that can be used; how many could."""
    devices = registry.lock_devices(connection, {event.device_id for event in events})
    taps = [ReceivedTap(event, devices[event.device_id].operator_id) for event in events]
    answers = application.apply(connection, taps, now, released=True)
    used = [event for event in events if answers[event.tap_id].result != "QUARANTINED"]
    receipts.release_quarantined(connection, used, now)
    return len(used)
