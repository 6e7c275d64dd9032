"""Double entry: what a priced line does to the books.

Every posting names both sides and a positive amount, so nothing can be out of balance. Nothing is changed or deleted: when a
later fact makes a line of no effect, a further transaction reverses it. A transaction's id comes from its cause, so that a
rerun makes the same one. A **pool** is debtor × where × product: everything in it is shared by one agreement at the close."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import date, timedelta
from enum import StrEnum

import msgspec

from fare_engine.errors import BooksError
from fare_engine.pricing.lines import Line

HOLDS = "holds"
TOP_UPS = "top-ups"
"""Money that riders put on their cards, before it reaches the bank."""
BANK = "bank"
"""The clearing house's own account at its bank."""
SINGLE = "single"


class Code(StrEnum):
    """Why a transaction was made."""

    JOURNEY_CHARGED = "JOURNEY_CHARGED"
    FARE_ADJUSTED = "FARE_ADJUSTED"
    FARE_CAPPED = "FARE_CAPPED"
    PRODUCT_USED = "PRODUCT_USED"
    PRODUCT_SOLD = "PRODUCT_SOLD"
    PRODUCT_EXPIRED = "PRODUCT_EXPIRED"
    HOLD = "HOLD"
    TOPPED_UP = "TOPPED_UP"
    PASS_RELEASED = "PASS_RELEASED"
    SETTLED = "SETTLED"
    WAIVED = "WAIVED"
    COMMISSION = "COMMISSION"
    """A fee or commission that an agreement names, taken at the close."""
    NETTED = "NETTED"
    """At the close: what a party is owed and owes, on his account of net positions."""
    PAID = "PAID"
    """The bank paid a net position out, or received one."""
    COLLECTED = "COLLECTED"
    """A provider took from a rider's source what the account owed."""
    REFUNDED = "REFUNDED"
    CHARGED_BACK = "CHARGED_BACK"
    WON_BACK = "WON_BACK"
    """The provider paid a chargeback again."""
    WRITTEN_OFF = "WRITTEN_OFF"
    """A debt that is not collected: its bearer pays it."""
    PROVIDER_FEE = "PROVIDER_FEE"
    EXPIRED = "EXPIRED"
    """What was left on a card at the end of its time."""
    HELD = "HELD"
    """Disputed, and held back until it is decided."""
    DECIDED = "DECIDED"


CODES = {
    "list_fare": Code.JOURNEY_CHARGED,
    "companions": Code.JOURNEY_CHARGED,
    "product": Code.PRODUCT_USED,
    "discount": Code.FARE_ADJUSTED,
    "transfer": Code.FARE_ADJUSTED,
    "surcharge": Code.JOURNEY_CHARGED,
    "reward": Code.FARE_ADJUSTED,
    "rebate": Code.FARE_ADJUSTED,
    "cap": Code.FARE_CAPPED,
    "hold": Code.HOLD,
    "sale": Code.PRODUCT_SOLD,
    "release": Code.PASS_RELEASED,
    "expiry": Code.PRODUCT_EXPIRED,
}


class Posting(msgspec.Struct, frozen=True, gc=False):
    """One debit and its credit of the same positive amount."""

    debit: str
    credit: str
    amount: int


def accounting_date(service_date: str, closed_through: str | None) -> str:
    """The service date if it is open, else the first open date."""
    if closed_through is None or service_date > closed_through:
        return service_date
    return (date.fromisoformat(closed_through) + timedelta(days=1)).isoformat()


def fares(accounting_date: str, pool: str) -> str:
    """The clearing account of one pool and date; zero when the date is closed."""
    return f"fares:{accounting_date}:{pool}"


def deferred(product_id: str) -> str:
    """What was sold and is not yet used."""
    return f"deferred:{product_id}"


def waivers(bearer: str) -> str:
    """What was charged too late to be collected, and who bears it; what was given back too late stands there with a minus."""
    return f"waivers:{bearer}"


def operator(operator_id: str) -> str:
    """What the clearing house owes an operator."""
    return f"operator:{operator_id}"


def rider(account_id: str) -> str:
    """What an account owes."""
    return f"rider:{account_id}"


def collector(operator_id: str | None) -> str:
    """What an operator owes because his till holds it."""
    return f"collector:{operator_id}"


def losses(bearer: str) -> str:
    """What riders owed and never paid, and who bears it."""
    return f"losses:{bearer}"


def fees(party_id: str) -> str:
    """What a party owes for services, or earned by them (with a minus)."""
    return f"fees:{party_id}"


def held(dispute_id: str) -> str:
    """What is held back until a dispute is decided."""
    return f"held:{dispute_id}"


def net(party_id: str) -> str:
    """A party's published net positions that are not paid yet: what the clearing house owes him, or with a minus he owes it."""
    return f"net:{party_id}"


def party(party_id: str) -> str:
    """What a bearer of discounts owes."""
    return f"party:{party_id}"


def pool_of(debtor: str, line: Line, network_id: str | None) -> str:
    """The pool a line's money belongs to: `debtor|where|product`.

    A cap's line stands for several legs, so its place is the cap; every other line's is its leg's network."""
    if line.kind == "cap":
        return f"{debtor}|{line.kind}:{line.rule_id}|{SINGLE}"
    if line.kind in ("release", "expiry"):
        return f"{debtor}|{line.kind}|{line.rule_id.partition('/')[2]}"
    product = line.rule_id.partition("/")[2] if line.kind == "product" else SINGLE
    return f"{debtor}|{network_id}|{product}"


def postings(line: Line, payer: str, accounting_date: str, network_id: str | None) -> list[Posting]:
    """What booking a line does: the payer (`rider:…` or `collector:…`) and the bearer against the pool, or a hold or sale
    against its own account."""
    if line.kind == "hold":
        return signed(payer, HOLDS, line.amount)
    if line.kind == "sale":
        return signed(payer, deferred(line.rule_id.partition("/")[2]), line.amount)
    found = signed(payer, fares(accounting_date, pool_of("rider", line, network_id)), line.amount)
    if line.funded:
        bearer = line.bearer
        debtor = deferred(bearer.partition(":")[2]) if bearer.startswith("product:") else party(bearer)
        found += signed(debtor, fares(accounting_date, pool_of(bearer, line, network_id)), line.funded)
    return found


def signed(debit: str, credit: str, amount: int) -> list[Posting]:
    """A posting of an amount that may be negative, which then runs the other way; none for zero."""
    if amount == 0:
        return []
    return [Posting(debit, credit, amount) if amount > 0 else Posting(credit, debit, -amount)]


def transaction_id(traveller_id: str, line_id: str, generation: int) -> str:
    """The id of a line's n-th movement in a traveller's books: 0 books it, 1 reverses it, 2 books it again."""
    return hashlib.sha256(f"{traveller_id}/{line_id}/{generation}".encode()).hexdigest()[:32]


def balances(rows: Iterable[Posting]) -> dict[str, int]:
    """Debits less credits of each account. BooksError if they do not sum to zero, which a posting cannot make happen."""
    found: dict[str, int] = {}
    for posting in rows:
        if posting.amount <= 0:
            raise BooksError(f"a posting must have a positive amount: {posting!r}")
        found[posting.debit] = found.get(posting.debit, 0) + posting.amount
        found[posting.credit] = found.get(posting.credit, 0) - posting.amount
    if sum(found.values()):
        raise BooksError(f"debits and credits differ by {sum(found.values())}")
    return found
