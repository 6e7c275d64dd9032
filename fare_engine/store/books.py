"""Lines and postings: added, never changed; and which accounting dates are closed."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, func, insert, select

from fare_engine import ledger
from fare_engine.booking import Movement
from fare_engine.rides import RideMovement
from fare_engine.store import schema
from fare_engine.store.hashes import hashed
from fare_engine.store.many import execute_many
from fare_engine.store.travellers import CASH

_LAST_CLOSED = select(func.max(schema.closes.c.accounting_date))
_ADD_LINE = insert(schema.lines)
_ADD_LEG = insert(schema.legs)
_ADD_POSTING = insert(schema.postings)


def last_closed(connection: Connection) -> str | None:
    """The latest closed accounting date."""
    latest: str | None = connection.execute(_LAST_CLOSED).scalar_one()
    return latest


class Booking:
    """Movements of one transaction on their way into the books."""

    def __init__(self, closed_through: str | None, revision: str | None = None) -> None:
        self.closed_through = closed_through
        self.revision = revision
        self.lines: list[dict[str, object]] = []
        self.legs: list[dict[str, object]] = []
        self.postings: list[dict[str, object]] = []
        self.balance_changes: dict[str, int] = {}

    def add(self, traveller_id: str, account_id: str, booked_for: str, movements: Iterable[Movement]) -> None:
        """A traveller's movements, made because the fact `booked_for` came in."""
        for movement in movements:
            line = movement.line
            paying = movement.account_id or account_id
            payer = ledger.rider(paying) if paying != CASH else ledger.collector(movement.operator_id)
            on = movement.accounting_date
            self.lines.append(
                {
                    "transaction_id": movement.transaction_id,
                    "line_id": movement.line_id,
                    "generation": movement.generation,
                    "booked_for": booked_for,
                    "traveller_id": traveller_id,
                    "payer": payer,
                    "leg_id": line.leg_id,
                    "kind": line.kind,
                    "rule_id": line.rule_id,
                    "cause": line.cause,
                    "version_id": line.version_id,
                    "amount": line.amount,
                    "bearer": line.bearer,
                    "funded": line.funded,
                    "operator_id": movement.operator_id,
                    "network_id": movement.network_id,
                    "service_date": movement.service_date,
                    "accounting_date": on,
                    "revision": self.revision,
                }
            )
            found = ledger.postings(line, payer, on, movement.network_id)
            for number, posting in enumerate(found):
                self.add_posting(movement.transaction_id, number, ledger.CODES[line.kind], posting, movement.service_date, on)
            if line.amount and paying != CASH:
                self.balance_changes[paying] = self.balance_changes.get(paying, 0) - line.amount

    def add_rides(self, traveller_id: str, movements: Iterable[RideMovement]) -> None:
        """What becomes of a traveller's priced legs."""
        for movement in movements:
            ride = movement.ride
            self.legs.append(
                {
                    "movement_id": movement.movement_id,
                    "leg_id": movement.leg_id,
                    "generation": movement.generation,
                    "traveller_id": traveller_id,
                    "token_id": ride.token_id,
                    "media": ride.media,
                    "rider_category": ride.rider_category,
                    "network_id": ride.network_id,
                    "route_id": ride.route_id,
                    "operator_id": ride.operator_id,
                    "vehicle_id": ride.vehicle_id,
                    "from_stop_id": ride.from_stop_id,
                    "to_stop_id": ride.to_stop_id,
                    "began_at": ride.began_at,
                    "ended_at": ride.ended_at,
                    "persons": ride.persons,
                    "distance_m": ride.distance_m,
                    "journey": ride.journey,
                    "status": ride.status,
                    "service_date": ride.service_date,
                    "accounting_date": movement.accounting_date,
                }
            )

    def waive(self, transaction_id: str, account_id: str, bearer: str, amount: int, service_date: str) -> None:
        """What a rider is charged too late is not collected: the bearer pays it. With a minus: what he would get is kept."""
        on = ledger.accounting_date(service_date, self.closed_through)
        for posting in ledger.signed(ledger.waivers(bearer), ledger.rider(account_id), amount):
            self.add_posting(transaction_id, 0, ledger.Code.WAIVED, posting, service_date, on)
        self.balance_changes[account_id] = self.balance_changes.get(account_id, 0) + amount

    def add_posting(
        self, transaction_id: str, number: int, code: str, posting: ledger.Posting, service_date: str, on: str
    ) -> None:
        """One posting of a transaction, for a service date and under an accounting date."""
        self.postings.append(
            {
                "transaction_id": transaction_id,
                "number": number,
                "code": str(code),
                "debit": posting.debit,
                "credit": posting.credit,
                "amount": posting.amount,
                "service_date": service_date,
                "accounting_date": on,
            }
        )

    def write(self, connection: Connection) -> None:
        """Add everything to the books. A transaction that is there already is a fault of ours and stops the commit."""
        execute_many(connection, _ADD_LINE, hashed(schema.lines, self.lines))
        execute_many(connection, _ADD_LEG, hashed(schema.legs, self.legs))
        execute_many(connection, _ADD_POSTING, hashed(schema.postings, self.postings))
