"""What collection does to the books: one balanced transaction for each thing that happened, with an id made of its cause.

`collector:<provider>` is what the provider holds, and owes at the next netting; `rider:<account>` what an account owes; what is
never paid stands in `losses:<bearer>`. Each transaction moves the accounts' balances with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sqlalchemy import Connection

from clearing.collection.charges import OWED, Charge, Effect, Refund, digest
from clearing.collection.rules import Rules
from clearing.collection.store import DEPOSITS, Card, WriteOff
from fare_engine import ledger
from fare_engine.ledger import Code, Posting
from fare_engine.store import books, travellers

CODES = (
    Code.COLLECTED,
    Code.TOPPED_UP,
    Code.REFUNDED,
    Code.CHARGED_BACK,
    Code.WON_BACK,
    Code.WRITTEN_OFF,
    Code.PROVIDER_FEE,
    Code.EXPIRED,
)
"""Codes of transactions that nothing but collection makes, but for top-ups that others book against `top-ups`."""


class Entries:
    """Transactions on their way into the books, with the balances that they move."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._booking = books.Booking(books.last_closed(connection))

    def add(self, transaction_id: str, code: Code, service_date: str, postings: Iterable[Posting]) -> None:
        """One transaction for a service date."""
        on = ledger.accounting_date(service_date, self._booking.closed_through)
        for number, posting in enumerate(postings):
            self._booking.add_posting(transaction_id, number, code, posting, service_date, on)
            for name, sign in ((posting.debit, -1), (posting.credit, 1)):
                if name.startswith("rider:"):
                    account_id = name.removeprefix("rider:")
                    changes = self._booking.balance_changes
                    changes[account_id] = changes.get(account_id, 0) + sign * posting.amount

    def write(self) -> None:
        """Add everything to the books, with the balances."""
        self._booking.write(self.connection)
        travellers.change_balances(self.connection, self._booking.balance_changes)


Transaction = tuple[str, Code, list[Posting]]


def transactions_of(
    rules: Rules, charge: Charge, effect: Effect, recovered: Mapping[str, int], refund: Refund | None
) -> list[Transaction]:
    """What an effect of a charge books. `recovered`: what of it pays debts that were given up, by who bore them; `refund`: whose
    it is."""
    holder, payer = ledger.collector(holder_of(rules, charge)), ledger.rider(charge.account_id)
    losses = [posting for bearer, part in recovered.items() for posting in ledger.signed(holder, ledger.losses(bearer), part)]
    brought = ledger.signed(holder, payer, effect.amount - sum(recovered.values())) + losses
    if effect.kind == "won_back":
        return [(won_back_id(charge, effect.reference), Code.WON_BACK, brought)]
    if effect.kind == "captured":
        code = Code.COLLECTED if charge.purpose in OWED else Code.TOPPED_UP
        found: list[Transaction] = [(captured_id(charge), code, brought)]
        taken = 0 if charge.purpose == "till" else rules.fee(effect.amount)
        return found + _fee(rules, digest("fee", charge.charge_id), taken)
    if effect.kind == "refunded":
        assert refund is not None, effect
        return [(refunded_id(refund), Code.REFUNDED, [*_given(refund), Posting(payer, holder, effect.amount)])]
    back = charged_back_id(charge, effect.reference)
    given = [Posting(payer, holder, effect.amount)]
    fee = _fee(rules, digest("fee", charge.charge_id, effect.reference), rules.provider.chargeback_fee)
    return [(back, Code.CHARGED_BACK, given), *fee]


def holder_of(rules: Rules, charge: Charge) -> str:
    """The party that holds a charge's money until it is netted."""
    return charge.source if charge.purpose == "till" else rules.provider.party


def credited(refund: Refund) -> Transaction:
    """What a refund books that goes to the account itself, for no source has paid yet."""
    return refunded_id(refund), Code.REFUNDED, _given(refund)


def written_off(losses: Iterable[WriteOff]) -> list[Transaction]:
    """A debt that is given up."""
    posted = [Posting(ledger.losses(loss.bearer), ledger.rider(loss.account_id), loss.amount) for loss in losses]
    return [(next(iter(losses)).transaction_id, Code.WRITTEN_OFF, posted)]


def deposited(card: Card, transaction_id: str, amount: int, code: Code) -> Transaction:
    """A card's deposit, taken from the stored value; given back with a minus."""
    return transaction_id, code, ledger.signed(ledger.rider(card.account_id), DEPOSITS + card.account_id, amount)


def swept(card: Card, transaction_id: str, rest: int, party: str) -> Transaction:
    """What was left on a card long after its end."""
    return transaction_id, Code.EXPIRED, ledger.signed(ledger.rider(card.account_id), ledger.fees(party), rest)


def captured_id(charge: Charge) -> str:
    """The transaction of a charge's capture."""
    return digest("captured", charge.charge_id)


def charged_back_id(charge: Charge, reference: str) -> str:
    """The transaction of a chargeback."""
    return digest("charged_back", charge.charge_id, reference)


def won_back_id(charge: Charge, reference: str) -> str:
    """The transaction of a chargeback that was won back."""
    return digest("won_back", charge.charge_id, reference)


def refunded_id(refund: Refund) -> str:
    """The transaction of a refund."""
    return digest("refunded", refund.refund_id)


def _given(refund: Refund) -> list[Posting]:
    """The fare that is given back, and who bears it."""
    return [Posting(ledger.losses(refund.bearer), ledger.rider(refund.account_id), refund.amount)]


def _fee(rules: Rules, transaction_id: str, amount: int) -> list[Transaction]:
    moved = ledger.signed(ledger.fees(rules.provider.fees_paid_by), ledger.fees(rules.provider.party), amount)
    return [(transaction_id, Code.PROVIDER_FEE, moved)] if moved else []
