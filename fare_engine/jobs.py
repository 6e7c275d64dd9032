"""What happens without a tap: time passes, failed folds are tried again, taps that waited become usable.

Each job takes up a bounded part in one transaction and says how much it did, so that it can run beside the taps, in their
process or in one of its own; two that run at once wait for each other's rows and find nothing left to do."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from fare_engine.application import Application
from fare_engine.errors import LinkError
from fare_engine.linking import link_token
from fare_engine.publishing import confirm_if_old
from fare_engine.refold import Change
from fare_engine.store import receipts, travellers
from fare_engine.store.database import Database, after_commit
from fare_engine.store.travellers import CASH, NewToken
from fare_engine.verdicts import NETWORK

PART = 50
"""How many travellers or taps a turn takes up: a live tap waits no longer than this takes."""

FIRST_WAIT_MS, LONGEST_WAIT_MS = 1000, 60_000
"""How long after a pass over failed folds that cured none the next one begins: twice as long each time."""


class Jobs:
    """The jobs of one process."""

    def __init__(self, database: Database, application: Application) -> None:
        self.database = database
        self.application = application
        self._tried = ""
        """The last of the travellers whose fold was tried again in this pass."""
        self._cured = 0
        self._wait_ms, self._not_before = FIRST_WAIT_MS, 0

    def run_turn(self, now: int) -> int:
        """Each job once; how much was done."""
        jobs = (self._advance, self._retry, confirm_if_old)
        return sum(self.database.transact(lambda connection, job=job: job(connection, now)) for job in jobs)  # type: ignore[misc]

    def _advance(self, connection: Connection, now: int) -> int:
        return self.application.advance(connection, now, PART)

    def _retry(self, connection: Connection, now: int) -> int:
        """Fold again some travellers whose last fold failed, one part after the other; how many are priced now."""
        if now < self._not_before:
            return 0
        part = travellers.list_dirty(connection, self._tried, PART)
        cured = self.application.retry(connection, part, now)
        after_commit(connection, lambda: self._remember(part, cured, now))
        return cured

    def _remember(self, part: list[str], cured: int, now: int) -> None:
        self._cured += cured
        if len(part) == PART:
            self._tried = part[-1]
            return
        in_vain = self._cured == 0 and (part or self._tried)
        self._wait_ms = min(2 * self._wait_ms, LONGEST_WAIT_MS) if in_vain else FIRST_WAIT_MS
        self._not_before = now + self._wait_ms if in_vain else now
        self._tried, self._cured = "", 0


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
    """Tokens are known from now on, and taps that were made with them before are used; how many. To be run `alone`.

    A token that was taken for a paper ticket's is the traveller's from now on. LinkError for one that is somebody else's."""
    known = travellers.find_tokens(connection, [token.token_id for token in tokens])
    new = [token for token in tokens if token.token_id not in known]
    for token in tokens:
        held = known.get(token.token_id)
        if held is None or held.traveller_at(now) == token.traveller_id:
            continue
        if held.account_id != CASH or held.links:
            raise LinkError(f"the token {token.token_id} is somebody else's")
        link_token(connection, application, token.token_id, token.traveller_id, now, now, "registration")
    travellers.add_tokens(connection, new)
    return release(connection, application, [f"token:{token.token_id}" for token in new], now)


def release(connection: Connection, application: Application, awaited: Sequence[str], now: int) -> int:
    """Taps in quarantine that wait for something that is there now; how many could be used."""
    return application.release(connection, receipts.find_waiting(connection, awaited), now)
